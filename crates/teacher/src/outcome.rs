//! What came of a call, as the ledger keeps it and as whoever asked hears it.

use std::time::{SystemTime, UNIX_EPOCH};

use stillroom_core::Digest;
use stillroom_formats::openai::{Finish, Reply};
use stillroom_store::{Ending, LedgerReader, Outcome};

use crate::TeacherError;
use crate::ask::{Answer, Ask, Receipt};
use crate::call::{Fault, FaultKind};
use crate::estimate::Estimator;
use crate::settings::Price;

/// Characters of a model's name that are kept.
const NAME_CHARS_MAX: usize = 256;

/// The receipt of a reply. The estimator learns from its usage, or says what it may have been.
pub(crate) fn receipt(price: &Price, estimator: &mut Estimator, ask: &Ask, reply: Reply) -> Receipt {
    let (prompt_tokens, cached, completion_tokens, estimated) = match reply.usage {
        Some(usage) => {
            estimator.learn(ask, usage.prompt_tokens, usage.completion_tokens);
            let cached = usage.cached_prompt_tokens.unwrap_or(0);
            (usage.prompt_tokens, cached, usage.completion_tokens, false)
        }
        None => {
            let written = reply.content.len() + reply.reasoning_content.as_ref().map_or(0, String::len);
            (estimator.prompt_tokens(ask), 0, estimator.completion_tokens(written, reply.pieces), true)
        }
    };
    let usd = price.of(prompt_tokens, cached, completion_tokens);
    Receipt { reply, prompt_tokens, completion_tokens, usd, estimated, logprobs: Vec::new() }
}

/// Of a reply: it is the answer, unless the service filtered it.
pub(crate) fn of_receipt(call: u64, receipt: Receipt) -> (Outcome, Answer) {
    let filtered = receipt.reply.finish == Finish::ContentFilter;
    let fault = filtered.then(|| "the service filtered the reply".to_owned());
    let outcome = Outcome {
        call,
        ending: if filtered { Ending::Refused } else { Ending::Done },
        ended_unix_ms: unix_ms(),
        status: Some(200),
        fault: fault.clone(),
        model: receipt.reply.model.as_deref().map(|name| name.chars().take(NAME_CHARS_MAX).collect()),
        prompt_tokens: Some(receipt.prompt_tokens),
        completion_tokens: Some(receipt.completion_tokens),
        usd: receipt.usd,
        estimated: receipt.estimated,
        leave_alone_until_unix_ms: None,
        receipt: Some(serde_json::to_vec(&receipt).expect("a receipt is plain data")),
    };
    match fault {
        Some(fault) => (outcome, Answer::Refused { fault }),
        None => (outcome, Answer::Reply(Box::new(receipt))),
    }
}

/// Of a call without a reply. `tokens` of prompt and reply are what it may be billed for.
pub(crate) fn of_fault(call: u64, fault: &Fault, tokens: Option<(u64, u64)>, price: &Price) -> Outcome {
    Outcome {
        call,
        ending: if fault.kind == FaultKind::Refused { Ending::Refused } else { Ending::Failed },
        ended_unix_ms: unix_ms(),
        status: fault.status,
        fault: Some(fault.what.clone()),
        model: None,
        prompt_tokens: tokens.map(|(prompt, _)| prompt),
        completion_tokens: tokens.map(|(_, completion)| completion),
        usd: tokens.map_or(0.0, |(prompt, completion)| price.of(prompt, 0, completion)),
        estimated: tokens.is_some(),
        leave_alone_until_unix_ms: fault.wait.map(|wait| unix_ms() + wait.as_millis() as u64 + 1),
        receipt: None,
    }
}

/// Of a reply to a request that has another one: it may be billed, and is not kept.
pub(crate) fn late(outcome: Outcome) -> Outcome {
    let fault = Some("another reply to this request came first".to_owned());
    Outcome { ending: Ending::Failed, fault, receipt: None, ..outcome }
}

/// What the ledger has of a request, for the prompt of that id.
pub(crate) fn kept(
    ledger: &LedgerReader,
    request: &Digest,
    prompt: &str,
) -> Result<Option<Answer>, TeacherError> {
    let Some(settled) = ledger.settled(request)? else { return Ok(None) };
    if settled.ending == Ending::Refused {
        return Ok(Some(Answer::Refused { fault: settled.fault.unwrap_or_default() }));
    }
    match serde_json::from_slice(&settled.receipt) {
        Ok(receipt) => Ok(Some(Answer::Reply(Box::new(receipt)))),
        Err(error) => Err(damaged(prompt, error.to_string())),
    }
}

/// The same of a request that was answered.
pub(crate) fn read_back(
    ledger: &LedgerReader,
    request: &Digest,
    prompt: &str,
) -> Result<Answer, TeacherError> {
    kept(ledger, request, prompt)?.ok_or_else(|| damaged(prompt, "it is gone".to_owned()))
}

fn damaged(prompt: &str, cause: String) -> TeacherError {
    TeacherError::DamagedReceipt { prompt: prompt.to_owned(), cause }
}

pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
}

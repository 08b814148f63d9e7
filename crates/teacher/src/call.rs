//! One call: a request is sent, and what comes back is a reply or a fault.

use std::time::{Duration, Instant};

use stillroom_formats::openai::{self, Caps, Reply, ReplyFault, StreamReader};
use stillroom_net::{CallOff, Client, NetError, Phase, Request, Response};

use crate::ask::{Ask, Question};
use crate::redact;
use crate::settings::{Endpoint, Patience, Sampling};

/// Bytes that a reply may have besides those for its tokens.
const REPLY_BYTES: u64 = 1 << 20;
/// Bytes of a token, and of what is said of one token's likelihood; generous.
const TOKEN_BYTES: u64 = 512;
/// Bytes of an error's body that are looked at.
const ERROR_BYTES_MAX: u64 = 64 << 10;
/// How long the end of a stream is waited for once the reply is whole.
const END_SILENCE: Duration = Duration::from_millis(500);

/// Names a call to the service, which may name it back.
const REQUEST_ID: &str = "x-client-request-id";

/// Why a call gave no reply.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fault {
    /// In words that hold no secret and no control characters.
    pub(crate) what: String,
    pub(crate) status: Option<u16>,
    pub(crate) kind: FaultKind,
    /// How long the service asks to be left alone.
    pub(crate) wait: Option<Duration>,
    /// Whether the service may have worked, and so may bill it; with the pieces that came.
    pub(crate) pieces: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// Another try may do.
    Again,
    /// It is too early; that is no try.
    Postponed,
    /// This request is refused as it stands.
    Refused,
    /// Every request would be.
    Hopeless,
    /// Nobody wanted the reply any more.
    CalledOff,
}

/// Sends what is asked to an endpoint and reads the reply. Neither that nor a fault has the endpoint's key in it.
pub(crate) fn send(
    client: &Client,
    endpoint: &Endpoint,
    asked: (&Ask, &[u8]),
    (request_id, call_off): (&str, Option<CallOff>),
    how: (&Sampling, &Patience),
) -> Result<Reply, Fault> {
    let key = endpoint.key.as_ref();
    match exchange(client, endpoint, asked, (request_id, call_off), how) {
        Ok(reply) => Ok(redact::in_reply(reply, key)),
        Err(fault) => Err(Fault { what: redact::in_error(fault.what, key), ..fault }),
    }
}

fn exchange(
    client: &Client,
    endpoint: &Endpoint,
    (ask, body): (&Ask, &[u8]),
    (request_id, call_off): (&str, Option<CallOff>),
    (sampling, patience): (&Sampling, &Patience),
) -> Result<Reply, Fault> {
    let address = endpoint.base.below(ask.path()).map_err(|e| of_net(&e, None))?;
    let request = Request::post(address, "application/json", body)
        .header("accept", "text/event-stream, application/json")
        .header(REQUEST_ID, request_id)
        .called_off_by(call_off);
    let response = client.send(&signed(endpoint, request)).map_err(|e| of_net(&e, None))?;
    if !response.is_success() {
        return Err(of_status(response));
    }
    if response.header(REQUEST_ID).is_some_and(|id| id != request_id) {
        let what = format!("the reply names another request in `{REQUEST_ID}`");
        return Err(Fault::of_work(what, Some(response.status()), 0));
    }
    read(response, patience, reply_bytes_max(ask, sampling)).and_then(checked)
}

/// A reply of which a part came twice is not what the teacher wrote.
pub(crate) fn checked(reply: Reply) -> Result<Reply, Fault> {
    // Some servers tell of a usage and count nothing.
    let counted = reply.usage.is_some_and(|usage| usage.completion_tokens > 0);
    if counted && reply.has_more_pieces_than_tokens() {
        let what = format!("{} pieces came, more than the tokens that were counted", reply.pieces);
        return Err(Fault::of_work(what, Some(200), reply.pieces));
    }
    Ok(reply)
}

fn read(mut response: Response, patience: &Patience, bytes_max: u64) -> Result<Reply, Fault> {
    let streams = response.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream"));
    if streams {
        return streamed(&mut response, bytes_max, patience);
    }
    let status = Some(response.status());
    response.allow_silence(Duration::from_secs_f64(patience.stall_timeout_s));
    let whole = response.read_to_vec(bytes_max).map_err(|e| of_net(&e, Some(0)))?;
    openai::read_reply(&whole).map_err(|fault| Fault::of_work(fault.to_string(), status, 0))
}

/// A request to an endpoint, with its key.
pub(crate) fn signed<'a>(endpoint: &'a Endpoint, request: Request<'a>) -> Request<'a> {
    request.bearer(endpoint.key.as_ref()).bearer_may_be_read(endpoint.send_key_unencrypted)
}

fn reply_bytes_max(ask: &Ask, sampling: &Sampling) -> u64 {
    if let Question::Score(text) = &ask.question {
        // Each token and the likeliest in its place, and the one that is written behind them.
        return REPLY_BYTES + (text.ids.len() as u64 + 1) * TOKEN_BYTES * 2;
    }
    chat_bytes_max(sampling)
}

/// Of a reply to a conversation.
pub(crate) fn chat_bytes_max(sampling: &Sampling) -> u64 {
    let alternatives = sampling.top_logprobs.map_or(0, |n| u64::from(n) + 1);
    REPLY_BYTES + sampling.max_tokens as u64 * TOKEN_BYTES * (1 + alternatives)
}

fn streamed(response: &mut Response, bytes_max: u64, patience: &Patience) -> Result<Reply, Fault> {
    let status = Some(response.status());
    let mut reader = StreamReader::new(Caps { bytes_max: bytes_max as usize, ..Caps::default() });
    let (first, stall) = (patience.first_token_timeout_s, patience.stall_timeout_s);
    let (mut pieces, mut last) = (0, Instant::now());
    let mut buffer = vec![0; 16 << 10];
    let unusable = |fault: ReplyFault, pieces| Fault::of_work(fault.to_string(), status, pieces);
    loop {
        // Signs of life (comments) may go on for ever; pieces of the reply are what is waited for.
        let patience_s = if pieces == 0 { first } else { first.max(stall) };
        let left = Duration::from_secs_f64(patience_s).saturating_sub(last.elapsed());
        if left.is_zero() {
            let what = format!("nothing of the reply for {patience_s} s");
            return Err(Fault::of_work(what, status, pieces));
        }
        let silence = if pieces == 0 { left } else { left.min(Duration::from_secs_f64(stall)) };
        response.allow_silence(silence);
        let n = match response.read(&mut buffer) {
            Ok(n) => n,
            // A stream that was cut behind its end is whole.
            Err(error) => return reader.finish().map_err(|_| of_net(&error, Some(pieces))),
        };
        if n == 0 {
            return reader.finish().map_err(|fault| unusable(fault, pieces));
        }
        let progress = reader.feed(&buffer[..n]).map_err(|fault| unusable(fault, pieces))?;
        if progress.pieces > pieces {
            (pieces, last) = (progress.pieces, Instant::now());
        }
        if progress.ended {
            drain(response, &mut buffer);
            return reader.finish().map_err(|fault| unusable(fault, pieces));
        }
    }
}

/// Reads what little follows, so that the connection can be used again.
fn drain(response: &mut Response, buffer: &mut [u8]) {
    response.allow_silence(END_SILENCE);
    for _ in 0..4 {
        if !response.read(buffer).is_ok_and(|n| n > 0) {
            return;
        }
    }
}

impl Fault {
    /// Without a status, and nothing to be billed for.
    pub(crate) fn new(kind: FaultKind, what: impl Into<String>) -> Fault {
        Fault { what: what.into(), status: None, kind, wait: None, pieces: None }
    }

    /// Of a reply that came and cannot be used: the service has worked, and may bill it.
    pub(crate) fn of_work(what: impl Into<String>, status: Option<u16>, pieces: u64) -> Fault {
        Fault { status, pieces: Some(pieces), ..Fault::new(FaultKind::Again, what) }
    }
}

/// `pieces` is what had come of the reply; `None` where not even a status had.
pub(crate) fn of_net(error: &NetError, pieces: Option<u64>) -> Fault {
    let kind = match error {
        NetError::NotCleared { .. }
        | NetError::Redirect { .. }
        | NetError::OpenKey { .. }
        | NetError::BadAddress { .. }
        | NetError::BadPath { .. }
        | NetError::BadHeader { .. } => FaultKind::Hopeless,
        NetError::CalledOff { .. } => FaultKind::CalledOff,
        _ => FaultKind::Again,
    };
    // Without a connection nothing was asked.
    let asked = !matches!(
        error,
        NetError::Connect { .. }
            | NetError::UnknownHost { .. }
            | NetError::Tls { .. }
            | NetError::Timeout { phase: Phase::Connect, .. }
    );
    let pieces = (kind != FaultKind::Hopeless && asked).then_some(pieces.unwrap_or(0));
    Fault { pieces, ..Fault::new(kind, error.to_string()) }
}

/// What a status that is no success means for another try.
pub(crate) fn kind_of_status(status: u16) -> FaultKind {
    match status {
        429 => FaultKind::Postponed,
        400 | 413 | 414 | 415 | 422 => FaultKind::Refused,
        300..=499 if !matches!(status, 408 | 409 | 425) => FaultKind::Hopeless,
        _ => FaultKind::Again,
    }
}

/// Of a status that is no success: the service did no work.
pub(crate) fn of_status(response: Response) -> Fault {
    let (status, wait, place) = (response.status(), response.retry_after(), response.place().to_owned());
    let kind = match status {
        503 if wait.is_some() => FaultKind::Postponed,
        _ => kind_of_status(status),
    };
    let said = response.read_to_vec(ERROR_BYTES_MAX).ok().and_then(|body| openai::read_error(&body));
    let what = match said {
        Some(said) => format!("`{place}` answers {status}: {said}"),
        None => format!("`{place}` answers {status}"),
    };
    Fault { status: Some(status), wait, ..Fault::new(kind, what) }
}

//! What is asked, and what names it.

use serde::{Deserialize, Serialize};
use stillroom_core::{Digest, Digester, Message};
use stillroom_formats::openai::{ChatRequest, Reply};

use crate::settings::Sampling;

/// One conversation to be continued.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// Id of the prompt.
    pub id: String,
    /// Which of the replies to it.
    pub sample: u32,
    pub messages: Vec<Message>,
    /// What the reply is to be drawn with, where the endpoint heeds seeds.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Reply(Box<Receipt>),
    /// The teacher will not answer it as it stands.
    Refused {
        fault: String,
    },
    /// Every try failed.
    GivenUp {
        fault: String,
    },
}

/// A reply as the ledger keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    pub reply: Reply,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// What it cost.
    pub usd: f64,
    /// Whether tokens and cost are estimated, since the reply names no usage.
    pub estimated: bool,
}

impl Ask {
    /// The body of its request.
    pub(crate) fn body(&self, model: &str, sampling: &Sampling, stream: bool) -> Vec<u8> {
        let request = ChatRequest {
            model,
            messages: &self.messages,
            max_tokens: sampling.max_tokens,
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            seed: sampling.send_seed.then_some(self.seed),
            stream,
            top_logprobs: sampling.top_logprobs,
            return_token_ids: sampling.return_token_ids,
            extra: &sampling.extra,
        };
        request.body()
    }

    /// Of all that the reply depends on: the prompt's id, the sample and the body, but not where or how it is sent.
    pub fn digest(&self, model: &str, sampling: &Sampling) -> Digest {
        let mut digester = Digester::new();
        for part in [self.id.as_bytes(), &self.sample.to_le_bytes(), &self.body(model, sampling, false)] {
            digester.update(&(part.len() as u64).to_le_bytes());
            digester.update(part);
        }
        digester.finish()
    }
}

//! What a teacher replied.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fault::ReplyFault;
use super::gather::Gathering;
use super::stream::Caps;
use super::wire;

/// A whole reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    pub id: Option<String>,
    pub model: Option<String>,
    /// The answer: of a chat without white space around it, of a completion as it came. A refusal, if that is all there is.
    pub content: String,
    /// What came before the answer, from `reasoning_content`, `reasoning`, `thinking` or between `<think>` tags.
    pub reasoning_content: Option<String>,
    /// Calls as [`stillroom_core::Message`] holds them: arguments as an object, where they are one.
    pub tool_calls: Vec<Value>,
    pub finish: Finish,
    pub usage: Option<Usage>,
    /// One for each token of the reply, and of the prompt before it if it was echoed.
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// vLLM's: one for each token of the prompt, none for its first; the prompt's own token comes first in each.
    pub prompt_logprobs: Option<Vec<Option<Vec<IdLogprob>>>>,
    pub token_ids: Option<Vec<u32>>,
    pub prompt_token_ids: Option<Vec<u32>>,
    /// Chunks of a stream that carried text or calls; 1 for a whole body.
    pub pieces: u64,
}

/// Why a reply ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    Stop,
    Length,
    ToolCalls,
    ContentFilter,
    /// Foreign text of at most [`Finish::NAME_CHARS_MAX`] characters.
    Other(String),
}

/// What the server counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub cached_prompt_tokens: Option<u64>,
    pub reasoning_tokens: Option<u64>,
}

/// A token of a reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    pub token: String,
    pub bytes: Option<Vec<u8>>,
    pub id: Option<u32>,
    /// None for the first token of an echoed prompt.
    pub logprob: Option<f64>,
    pub top: Vec<(String, Option<Vec<u8>>, f64)>,
}

/// A token of a prompt, or one that could have stood there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IdLogprob {
    pub id: u32,
    pub logprob: f64,
    pub rank: Option<u32>,
    pub token: Option<String>,
}

impl Reply {
    /// Whether more pieces came than tokens were counted. Some came twice then, or the server cuts finer than tokens.
    pub fn has_more_pieces_than_tokens(&self) -> bool {
        self.usage.is_some_and(|usage| {
            self.pieces > usage.completion_tokens.saturating_add(usage.reasoning_tokens.unwrap_or(0)).max(1)
        })
    }
}

impl Finish {
    pub const NAME_CHARS_MAX: usize = 64;

    pub(super) fn of(name: &str) -> Finish {
        match name.to_ascii_lowercase().as_str() {
            "stop" | "eos_token" | "stop_sequence" | "end_turn" => Finish::Stop,
            "length" | "model_length" | "max_tokens" => Finish::Length,
            "tool_calls" | "function_call" => Finish::ToolCalls,
            "content_filter" => Finish::ContentFilter,
            _ => Finish::Other(name.chars().take(Finish::NAME_CHARS_MAX).collect()),
        }
    }
}

/// Reads a whole JSON body, of a chat or a completion.
pub fn read_reply(bytes: &[u8]) -> Result<Reply, ReplyFault> {
    let caps = Caps::default();
    ReplyFault::check_cap("the body", bytes.len(), caps.bytes_max)?;
    reply_of(wire::read(bytes)?, caps)
}

pub(super) fn reply_of(body: wire::Body, caps: Caps) -> Result<Reply, ReplyFault> {
    let mut gathering = Gathering::new(caps);
    gathering.add(body)?;
    if gathering.saw_choices() { gathering.finish() } else { Err(ReplyFault::NoChoice) }
}

/// Reasoning and answer of a reply's text. What precedes `</think>` is reasoning.
pub fn split_reasoning(text: &str) -> (Option<String>, String) {
    match text.split_once("</think>") {
        None => (None, text.trim().to_owned()),
        Some((reasoning, content)) => {
            let reasoning = reasoning.trim_start();
            let reasoning = reasoning.strip_prefix("<think>").unwrap_or(reasoning).trim();
            ((!reasoning.is_empty()).then(|| reasoning.to_owned()), content.trim().to_owned())
        }
    }
}

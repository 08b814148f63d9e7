//! Who is told of each answer.

use stillroom_core::Digest;

/// An answer that is about to be whole: everything of it is known, and its end has not been sent.
#[derive(Clone, Debug)]
pub struct Answer<'a> {
    /// The reply's own `id`.
    pub id: &'a str,
    /// `chat/completions` or `completions`.
    pub endpoint: &'static str,
    /// The body of the request, byte for byte; it is JSON.
    pub request: &'a str,
    /// Digest of the API key that it came with.
    pub key: Option<Digest>,
    pub model: &'a str,
    /// Of the model's weights.
    pub weights: Digest,
    /// What was drawn with, also where the request named no seed.
    pub seed: u64,
    pub prompt_tokens: usize,
    pub choices: Vec<AnsweredChoice<'a>>,
    pub unix_ms: u64,
}

/// One of its texts.
#[derive(Clone, Debug)]
pub struct AnsweredChoice<'a> {
    pub index: usize,
    pub text: &'a str,
    pub completion_tokens: usize,
    /// `stop`, `length`, or `cancelled` where the client went away first; some of it may have been sent by then.
    pub finish_reason: &'a str,
}

/// Takes note of answers.
pub trait AnswerSink: Send + Sync {
    /// Takes note of an answer, for good: what it returns from is not lost by a power cut. The end of a reply is sent after
    /// that, and not at all if it fails.
    fn record(&self, answer: &Answer<'_>) -> Result<(), String>;
}

//! Who says how likely the tokens of a text are.

use std::fmt::Debug;

use crate::{Digest, ErrorKind};

/// A text behind its prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ScoredText<'a> {
    /// Id of the prompt.
    pub id: &'a str,
    /// Prompt and text.
    pub ids: &'a [u32],
    /// Tokens of the prompt, one at least: nothing predicts a first token.
    pub n_prompt: usize,
}

/// A model that reads what another wrote: one at hand, or one behind endpoints.
///
/// It may take its time; whoever asks waits.
pub trait Scorer: Debug {
    /// log p in nats, at temperature 1, of each token behind the prompt of each text, given all before it.
    ///
    /// The same texts have the same numbers whenever they are asked for.
    fn score(&self, texts: &[ScoredText<'_>]) -> Result<Vec<Vec<f32>>, ScoreError>;

    /// Of what the numbers depend on besides the texts, as far as it is known.
    fn identity(&self) -> Digest;
}

/// Why texts have no log-probabilities.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct ScoreError {
    pub kind: ErrorKind,
    pub cause: String,
    pub fix: Option<String>,
}

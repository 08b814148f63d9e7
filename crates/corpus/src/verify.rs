//! Verifiers: is a reply right, and if not, why.

use serde::{Deserialize, Serialize};
use stillroom_core::{Message, Prompt};

/// What a verifier says about one reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub correct: bool,
    /// A lowercase fragment; `right answer` where the reply is correct.
    pub reason: String,
}

impl Verdict {
    pub fn right() -> Verdict {
        Verdict { correct: true, reason: "right answer".into() }
    }

    pub fn wrong(reason: impl Into<String>) -> Verdict {
        Verdict { correct: false, reason: reason.into() }
    }
}

/// Decides whether a reply answers its prompt.
pub trait Verifier: Send + Sync {
    /// The name that recipes and reports use.
    fn name(&self) -> &'static str;

    /// Judges the reply against the prompt's own answer; a prompt without one makes every reply wrong.
    fn verify(&self, prompt: &Prompt, reply: &Message) -> Verdict;
}

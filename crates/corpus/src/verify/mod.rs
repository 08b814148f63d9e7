//! Verifiers: is a reply right, and if not, why.

pub mod numeric_answer;

use serde::{Deserialize, Serialize};
use stillroom_core::{Message, Prompt};

use crate::word_problems::WordProblems;

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

    /// The answer that a reply gives, so written that equal answers are equal; `None` where it gives none.
    fn answer(&self, reply: &Message) -> Option<String>;
}

/// Names of the verifiers that a recipe can ask for.
pub const VERIFIERS: [&str; 3] = ["word_problems", "word_problems_steps", "numeric_answer"];

/// The verifier of that name. `word_problems_steps` judges the reasoning too.
pub fn verifier(name: &str) -> Option<Box<dyn Verifier>> {
    match name {
        "word_problems" => Some(Box::new(WordProblems { check_steps: false })),
        "word_problems_steps" => Some(Box::new(WordProblems { check_steps: true })),
        "numeric_answer" => Some(Box::new(numeric_answer::NumericAnswer)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_verifier_exists_under_its_name() {
        for name in VERIFIERS {
            assert_eq!(verifier(name).map(|verifier| verifier.name()), Some(name));
        }
        assert!(verifier("none").is_none());
    }
}

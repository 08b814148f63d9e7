//! Verifiers: is a reply right, and if not, why.
//!
//! Two more are not here, since they run programs: `code` and `command`, in `crates/cli/src/verifiers`.

mod ending;
pub mod exact_answer;
pub mod json_schema;
pub mod multiple_choice;
mod number;
pub mod numeric_answer;
pub mod pattern;

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

/// Names of the verifiers that are here.
pub const VERIFIERS: [&str; 7] = [
    "word_problems",
    "word_problems_steps",
    "numeric_answer",
    "exact_answer",
    "multiple_choice",
    "json_schema",
    "regex",
];

/// What a verifier may be told besides its name; each knows its own only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// `exact_answer`: leaves "a", "an" and "the" out.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ignore_articles: bool,
    /// `exact_answer`: capitals matter.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub case_sensitive: bool,
    /// `regex`: the pattern for all rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// `json_schema`: the schema for all rows, as JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
}

/// The verifier of that name. `word_problems_steps` judges the reasoning too.
pub fn verifier(name: &str) -> Option<Box<dyn Verifier>> {
    verifier_with(name, &Options::default()).ok().flatten()
}

/// The verifier of that name, as the options have it; nothing where there is none of that name.
///
/// # Errors
/// Says what is wrong with a pattern or schema.
pub fn verifier_with(name: &str, options: &Options) -> Result<Option<Box<dyn Verifier>>, String> {
    Ok(Some(match name {
        "word_problems" => Box::new(WordProblems { check_steps: false }),
        "word_problems_steps" => Box::new(WordProblems { check_steps: true }),
        "numeric_answer" => Box::new(numeric_answer::NumericAnswer),
        "exact_answer" => {
            let Options { ignore_articles, case_sensitive, .. } = *options;
            Box::new(exact_answer::ExactAnswer { ignore_articles, case_sensitive })
        }
        "multiple_choice" => Box::new(multiple_choice::MultipleChoice),
        "json_schema" => Box::new(json_schema::JsonSchema::new(options.schema.as_deref())?),
        "regex" => Box::new(pattern::Pattern::new(options.pattern.as_deref())?),
        _ => return Ok(None),
    }))
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

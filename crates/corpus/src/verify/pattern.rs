//! The verifier `regex`: a reply matches a pattern.

use regex::{Regex, RegexBuilder};
use stillroom_core::{Message, Prompt};

use super::{Verdict, Verifier};

/// Memory that a compiled pattern may take.
const PATTERN_BYTES_MAX: usize = 4 << 20;
/// Most characters of a pattern.
const PATTERN_CHARS_MAX: usize = 4096;

/// Matches a pattern of the recipe or, where it has none, the row's answer as a pattern. Time grows with the reply's length
/// alone, whatever the pattern: the syntax is that of the crate `regex`, without look-around and back references.
#[derive(Clone, Debug, Default)]
pub struct Pattern {
    pattern: Option<Regex>,
}

impl Pattern {
    /// # Errors
    /// Says why the pattern is none.
    pub fn new(pattern: Option<&str>) -> Result<Pattern, String> {
        Ok(Pattern { pattern: pattern.map(compiled).transpose()? })
    }

    fn of(&self, prompt: &Prompt) -> Result<Regex, String> {
        match (&self.pattern, prompt.answer.as_deref()) {
            (Some(pattern), _) => Ok(pattern.clone()),
            (None, Some(answer)) => {
                compiled(answer).map_err(|error| format!("the prompt's pattern: {error}"))
            }
            (None, None) => Err("the prompt has no pattern as its answer".into()),
        }
    }
}

/// # Errors
/// Says why a text is no pattern, or that it is too large.
pub(super) fn compiled(pattern: &str) -> Result<Regex, String> {
    if pattern.chars().count() > PATTERN_CHARS_MAX {
        return Err(format!("longer than {PATTERN_CHARS_MAX} characters"));
    }
    RegexBuilder::new(pattern)
        .size_limit(PATTERN_BYTES_MAX)
        .dfa_size_limit(PATTERN_BYTES_MAX)
        .build()
        .map_err(|error| {
            // The last line says what is wrong; those before draw the pattern.
            let error = error.to_string();
            error.lines().last().unwrap_or("").trim().trim_start_matches("error: ").to_owned()
        })
}

impl Verifier for Pattern {
    fn name(&self) -> &'static str {
        "regex"
    }

    fn verify(&self, prompt: &Prompt, reply: &Message) -> Verdict {
        match self.of(prompt) {
            Err(reason) => Verdict::wrong(reason),
            Ok(pattern) if pattern.is_match(&reply.content) => Verdict::right(),
            Ok(_) => Verdict::wrong("does not match the pattern"),
        }
    }

    /// The pattern's first group, or the whole match where it has none.
    fn answer(&self, reply: &Message) -> Option<String> {
        let found = self.pattern.as_ref()?.captures(&reply.content)?;
        found.get(1).or_else(|| found.get(0)).map(|part| part.as_str().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use stillroom_core::Role;

    use super::*;

    #[test]
    fn the_recipes_pattern_comes_before_the_rows() {
        let prompt = |answer: Option<&str>| Prompt {
            id: "1".into(),
            messages: vec![],
            answer: answer.map(str::to_owned),
            target: None,
        };
        let reply = Message::new(Role::Assistant, "Total: 42 EUR");
        let of = |pattern: Option<&str>, answer: Option<&str>| {
            Pattern::new(pattern).expect("a pattern").verify(&prompt(answer), &reply)
        };
        assert!(of(Some(r"^Total: \d+ EUR$"), None).correct);
        assert!(!of(Some(r"^\d+$"), Some("Total")).correct);
        assert!(of(None, Some("(?i)total")).correct);
        assert_eq!(of(None, None).reason, "the prompt has no pattern as its answer");
        assert!(of(None, Some("(")).reason.starts_with("the prompt's pattern: unclosed group"));
        assert!(Pattern::new(Some("(?=x)")).is_err_and(|e| e.contains("look-around")));
        assert!(Pattern::new(Some(&"a{1000}".repeat(500))).is_err());
        let total = Pattern::new(Some(r"Total: (\d+)")).expect("a pattern");
        assert_eq!(total.answer(&reply).as_deref(), Some("42"));
        // Patterns that take other engines for ever.
        let slow = Pattern::new(Some("^(a+)+$")).expect("a pattern");
        let text = format!("{}b", "a".repeat(1 << 20));
        assert!(!slow.verify(&prompt(None), &Message::new(Role::Assistant, text)).correct);
    }
}

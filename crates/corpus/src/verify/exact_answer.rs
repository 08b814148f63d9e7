//! The verifier `exact_answer`: a reply's answer is the prompt's, word for word.
//!
//! The answer is taken from behind `####`, out of `\boxed{…}`, from behind "the answer is" or "Answer:", or is the whole reply.
//! Both sides are compared without case, without white space beyond single spaces, without quotation marks, Markdown's marks
//! and `$` around them, and without marks at the end of a sentence.

use stillroom_core::{Message, Prompt};

use super::ending::{Ending, ending, plain};
use super::{Verdict, Verifier};

/// How much of a wrong answer a reason quotes.
const QUOTED_CHARS: usize = 60;

#[derive(Clone, Copy, Debug, Default)]
pub struct ExactAnswer {
    /// Whether "a", "an" and "the" are left out of both sides.
    pub ignore_articles: bool,
    pub case_sensitive: bool,
}

impl Verifier for ExactAnswer {
    fn name(&self) -> &'static str {
        "exact_answer"
    }

    fn verify(&self, prompt: &Prompt, reply: &Message) -> Verdict {
        let answer = prompt.answer.as_deref().map(|answer| self.normal(answer)).unwrap_or_default();
        if answer.is_empty() {
            return Verdict::wrong("the prompt has no answer");
        }
        match self.given(&reply.content) {
            given if given == answer => Verdict::right(),
            given if given.is_empty() => Verdict::wrong("no answer in the reply"),
            given => {
                Verdict::wrong(format!("answered `{}` instead of `{}`", quoted(&given), quoted(&answer)))
            }
        }
    }

    fn answer(&self, reply: &Message) -> Option<String> {
        Some(self.given(&reply.content)).filter(|given| !given.is_empty())
    }
}

impl ExactAnswer {
    fn given(&self, text: &str) -> String {
        match ending(text) {
            Ending::Hashes(answer) | Ending::Boxed(answer) | Ending::Said(answer) => self.normal(answer),
            Ending::Open(_) => self.normal(text),
        }
    }

    fn normal(&self, text: &str) -> String {
        let text = plain(text);
        let text = if self.case_sensitive { text } else { text.to_lowercase() };
        let around: &[char] = &['"', '\'', '`', '*', '_', '“', '”', '‘', '’', '«', '»'];
        let end: &[char] = &['.', '!', '?', ';', ':', ',', '。'];
        let mut text = text.trim();
        // Marks may stand around marks: `**"Paris".**`
        loop {
            let less = text.trim_matches(around).trim_end_matches(end).trim();
            if less.len() == text.len() {
                break;
            }
            text = less;
        }
        let article =
            |word: &&str| ["a", "an", "the"].iter().any(|article| article.eq_ignore_ascii_case(word));
        text.split_whitespace()
            .filter(|word| !(self.ignore_articles && article(word)))
            .collect::<Vec<_>>()
            .join(" ")
    }
}

fn quoted(text: &str) -> String {
    text.chars().take(QUOTED_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use stillroom_core::Role;

    use super::*;

    #[test]
    fn answers_are_compared_without_what_does_not_matter() {
        let prompt = |answer: &str| Prompt {
            id: "1".into(),
            messages: vec![],
            answer: Some(answer.into()),
            target: None,
        };
        let judge = |of: ExactAnswer, answer: &str, reply: &str| {
            of.verify(&prompt(answer), &Message::new(Role::Assistant, reply))
        };
        let plain = ExactAnswer::default();
        for reply in [
            "Paris",
            " paris. ",
            "**Paris**",
            "\"Paris\"",
            "The answer is Paris.",
            "Thus\n#### Paris",
            "\\boxed{\\text{Paris}}",
            "Answer: **Paris**.",
        ] {
            assert!(judge(plain, "Paris", reply).correct, "{reply}");
        }
        assert_eq!(judge(plain, "Paris", "Lyon").reason, "answered `lyon` instead of `paris`");
        assert!(!judge(plain, "Paris", "Paris or Lyon").correct);
        assert!(!judge(plain, "Beatles", "The  Beatles").correct);
        assert!(judge(ExactAnswer { ignore_articles: true, ..plain }, "Beatles", "The  Beatles").correct);
        assert!(!judge(ExactAnswer { case_sensitive: true, ..plain }, "Paris", "paris").correct);
        assert_eq!(judge(plain, "", "x").reason, "the prompt has no answer");
    }
}

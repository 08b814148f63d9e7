//! What a trace may look like: its length, code in it, its paragraphs, and the scripts that it is written in.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use stillroom_core::Trace;
use unicode_script::{Script, UnicodeScript};

/// Bounds of a trace; without one nothing is dropped for it. The last three are those by which DeepSeek-R1's makers
/// chose reasoning to distil (2501.12948, section 2.3.3), who do not publish their numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filters {
    /// Tokens of the teacher's tokenizer, reasoning included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_completion_tokens: Option<u32>,
    /// Characters of the longest paragraph of the reasoning, between blank lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_paragraph_chars: Option<usize>,
    /// Drops reasoning with a fenced block of code.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_code_blocks: bool,
    /// Share of the letters of reasoning and answer in scripts that the conversation has none of; Greek, which
    /// mathematics is written with everywhere, does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_script_mixing: Option<f64>,
}

impl Filters {
    /// Why a trace is out of bounds, if it is.
    pub fn refuse(&self, trace: &Trace) -> Option<String> {
        self.refuse_length(trace)
            .or_else(|| self.refuse_reasoning(trace))
            .or_else(|| self.refuse_mixing(trace))
    }

    fn refuse_length(&self, trace: &Trace) -> Option<String> {
        let n = trace.completion_tokens;
        if let Some(least) = self.min_completion_tokens.filter(|least| n < *least) {
            return Some(format!("{n} tokens, fewer than {least}"));
        }
        let most = self.max_completion_tokens.filter(|most| n > *most)?;
        Some(format!("{n} tokens, more than {most}"))
    }

    fn refuse_reasoning(&self, trace: &Trace) -> Option<String> {
        let reasoning = trace.reasoning_content.as_deref()?;
        if self.no_code_blocks && reasoning.lines().any(|line| line.trim_start().starts_with("```")) {
            return Some("a block of code in the reasoning".into());
        }
        let most = self.max_paragraph_chars?;
        let longest = paragraphs(reasoning).max().unwrap_or(0);
        (longest > most).then(|| format!("a paragraph of {longest} characters, more than {most}"))
    }

    fn refuse_mixing(&self, trace: &Trace) -> Option<String> {
        let most = self.max_script_mixing?;
        let mixing = script_mixing(trace);
        (mixing > most).then(|| format!("{:.1} % of the letters are of other scripts", 100.0 * mixing))
    }
}

/// Characters of each paragraph.
fn paragraphs(text: &str) -> impl Iterator<Item = usize> {
    let mut lines = text.lines().peekable();
    std::iter::from_fn(move || {
        lines.peek()?;
        Some(lines.by_ref().take_while(|line| !line.trim().is_empty()).map(|line| line.chars().count()).sum())
    })
}

/// Share of the reply's letters whose script is not among those of the conversation.
fn script_mixing(trace: &Trace) -> f64 {
    let asked: HashSet<Script> =
        trace.messages.iter().flat_map(|message| scripts(&message.content)).collect();
    let reasoning = trace.reasoning_content.as_deref().unwrap_or("");
    let (mut n, mut other) = (0u64, 0u64);
    for script in scripts(reasoning).chain(scripts(&trace.content)) {
        n += 1;
        other += u64::from(!asked.contains(&script));
    }
    if n == 0 { 0.0 } else { other as f64 / n as f64 }
}

/// The script of each letter.
fn scripts(text: &str) -> impl Iterator<Item = Script> {
    let shared = [Script::Common, Script::Inherited, Script::Unknown, Script::Greek];
    text.chars()
        .filter(|c| c.is_alphabetic())
        .map(|c| c.script())
        .filter(move |script| !shared.contains(script))
}

#[cfg(test)]
mod tests {
    use stillroom_core::{FinishReason, Message, Role};

    use super::*;

    fn trace(question: &str, reasoning: &str, content: &str) -> Trace {
        Trace {
            id: "p".into(),
            sample: 0,
            messages: vec![Message::new(Role::User, question)],
            reasoning_content: Some(reasoning.into()),
            content: content.into(),
            finish_reason: FinishReason::Stop,
            prompt_tokens: 1,
            completion_tokens: 7,
            teacher: "t".into(),
            usd: 0.0,
        }
    }

    #[test]
    fn nothing_is_dropped_without_bounds() {
        let messy = trace("Why?", "```\nx\n```\n你好", "да");
        assert_eq!(Filters::default().refuse(&messy), None);
    }

    #[test]
    fn lengths_code_and_paragraphs_have_their_reasons() {
        let reason =
            |filters: Filters, reasoning: &str| filters.refuse(&trace("Why?", reasoning, "Because."));
        let of = |n| Some(n);
        let short = Filters { min_completion_tokens: of(8), ..Filters::default() };
        assert_eq!(reason(short, "").as_deref(), Some("7 tokens, fewer than 8"));
        let long = Filters { max_completion_tokens: of(6), ..Filters::default() };
        assert_eq!(reason(long, "").as_deref(), Some("7 tokens, more than 6"));
        let exact =
            Filters { min_completion_tokens: of(7), max_completion_tokens: of(7), ..Filters::default() };
        assert_eq!(reason(exact, ""), None);
        let code = Filters { no_code_blocks: true, ..Filters::default() };
        assert!(reason(code.clone(), "So:\n  ```python\nx\n```").is_some());
        assert_eq!(reason(code, "the mark ``` within a line"), None);
        let paragraph = Filters { max_paragraph_chars: Some(6), ..Filters::default() };
        assert_eq!(reason(paragraph.clone(), "abc\ndef\n\nabcd\n \nab"), None);
        let refused = reason(paragraph, "abc\ndefg\n\nab");
        assert_eq!(refused.as_deref(), Some("a paragraph of 7 characters, more than 6"));
    }

    #[test]
    fn scripts_that_nobody_asked_in_are_mixing_and_mathematics_is_not() {
        let filters = Filters { max_script_mixing: Some(0.1), ..Filters::default() };
        let refused = |question: &str, reasoning: &str| filters.refuse(&trace(question, reasoning, "4"));
        assert_eq!(refused("What is 2 + 2?", "Let α = 2, so 2α = 4 → done, 4 €"), None);
        assert_eq!(
            refused("What is 2 + 2?", "所以答案是四").as_deref(),
            Some("100.0 % of the letters are of other scripts")
        );
        assert_eq!(refused("二加二等于几？", "所以答案是四"), None);
        assert_eq!(refused("Translate 你好 please", "It means hello: 你好"), None);
        assert!(refused("Why?", "Therefore it is так").is_some());
        assert_eq!(refused("Why?", "1234"), None, "no letters");
    }
}

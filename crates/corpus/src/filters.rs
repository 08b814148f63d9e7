//! What a trace may look like: its length, code in it, its paragraphs, its scripts and language; whether it goes round,
//! refuses or speaks of itself.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use stillroom_core::{Role, Trace};
use unicode_script::{Script, UnicodeScript};

use crate::curation::Step;
use crate::language::language;
use crate::phrases::{refusal, self_identification};
use crate::repetition::{longest_loop, repeated_share};

/// Most that a reason shows of a sentence.
const SENTENCE_CHARS_MAX: usize = 80;

/// Bounds of a trace; without one nothing is dropped for it. Paragraphs, code and scripts are those by which DeepSeek-R1's
/// makers chose reasoning to distil (2501.12948, section 2.3.3), who do not publish their numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filters {
    /// Tokens of the teacher's tokenizer, reasoning included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_completion_tokens: Option<u32>,
    /// Characters of reasoning and answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_chars: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_chars: Option<usize>,
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
    /// Drops answers in another language than these, where [`language`] knows which it is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub languages: Vec<String>,
    /// Drops answers in another language than the question, where [`language`] knows both.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub same_language: bool,
    /// Drops reasoning or answers with a [`longest_loop`].
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_loops: bool,
    /// The most that [`repeated_share`] may be, of reasoning and answer each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_repeated_share: Option<f64>,
    /// Drops answers that refuse; see [`refusal`].
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_refusals: bool,
    /// Drops answers in which a model says what it is; see [`self_identification`].
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_self_identification: bool,
}

impl Filters {
    /// Why a trace is out of bounds, if it is, and which step of curation that is.
    pub fn refuse(&self, trace: &Trace) -> Option<(Step, String)> {
        let looks = self
            .refuse_length(trace)
            .or_else(|| self.refuse_reasoning(trace))
            .or_else(|| self.refuse_mixing(trace));
        looks
            .map(|reason| (Step::Filter, reason))
            .or_else(|| self.refuse_language(trace).map(|reason| (Step::Language, reason)))
            .or_else(|| self.refuse_repetition(trace).map(|reason| (Step::Repetition, reason)))
            .or_else(|| self.refuse_speech(trace))
    }

    fn refuse_length(&self, trace: &Trace) -> Option<String> {
        let chars = || {
            let reasoning = trace.reasoning_content.as_deref().unwrap_or("");
            reasoning.chars().count() + trace.content.chars().count()
        };
        let tokens = trace.completion_tokens as usize;
        let least_tokens = self.min_completion_tokens.map(|least| least as usize);
        let most_tokens = self.max_completion_tokens.map(|most| most as usize);
        out_of_bounds(|| tokens, "tokens", least_tokens, most_tokens)
            .or_else(|| out_of_bounds(chars, "characters", self.min_chars, self.max_chars))
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

    fn refuse_language(&self, trace: &Trace) -> Option<String> {
        if self.languages.is_empty() && !self.same_language {
            return None;
        }
        let answered = language(&trace.content)?;
        if !self.languages.is_empty() && !self.languages.iter().any(|code| code == answered) {
            return Some(format!("answered in `{answered}`"));
        }
        let question = trace.messages.iter().rfind(|message| message.role == Role::User)?;
        let asked = language(&question.content).filter(|asked| self.same_language && *asked != answered)?;
        Some(format!("asked in `{asked}`, answered in `{answered}`"))
    }

    fn refuse_repetition(&self, trace: &Trace) -> Option<String> {
        trace.reasoning_content.iter().chain([&trace.content]).find_map(|text| {
            if let Some(found) = self.no_loops.then(|| longest_loop(text)).flatten() {
                return Some(format!("{} words {} times in a row", found.passage_words, found.times));
            }
            let most = self.max_repeated_share?;
            let share = repeated_share(text);
            (share > most).then(|| format!("{:.1} % of the words repeat others", 100.0 * share))
        })
    }

    fn refuse_speech(&self, trace: &Trace) -> Option<(Step, String)> {
        if let Some(sentence) = self.no_refusals.then(|| refusal(&trace.content)).flatten() {
            return Some((Step::Refusal, format!("it refuses: {}", clipped(sentence))));
        }
        let sentence = self.no_self_identification.then(|| self_identification(&trace.content)).flatten()?;
        Some((Step::SelfIdentification, format!("a model speaks of itself: {}", clipped(sentence))))
    }
}

/// A sentence as part of a reason, on one line.
fn clipped(sentence: &str) -> String {
    let shown = sentence.chars().take(SENTENCE_CHARS_MAX);
    shown.map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn out_of_bounds(
    n: impl Fn() -> usize,
    unit: &str,
    least: Option<usize>,
    most: Option<usize>,
) -> Option<String> {
    least.or(most)?;
    let n = n();
    if let Some(least) = least.filter(|least| n < *least) {
        return Some(format!("{n} {unit}, fewer than {least}"));
    }
    most.filter(|most| n > *most).map(|most| format!("{n} {unit}, more than {most}"))
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
    use stillroom_core::{Message, Role};

    use super::*;
    use crate::made_up;

    fn trace(question: &str, reasoning: &str, content: &str) -> Trace {
        Trace {
            messages: vec![Message::new(Role::User, question)],
            reasoning_content: Some(reasoning.into()),
            completion_tokens: 7,
            ..made_up::trace("p", 0, content)
        }
    }

    fn reason(filters: &Filters, trace: &Trace) -> Option<String> {
        filters.refuse(trace).map(|(step, reason)| {
            assert_eq!(step, Step::Filter);
            reason
        })
    }

    #[test]
    fn nothing_is_dropped_without_bounds() {
        let messy = trace("Why?", "```\nx\n```\n你好", "да");
        assert_eq!(Filters::default().refuse(&messy), None);
    }

    #[test]
    fn lengths_code_and_paragraphs_have_their_reasons() {
        let reason =
            |filters: Filters, reasoning: &str| reason(&filters, &trace("Why?", reasoning, "Because."));
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
        let chars = Filters { min_chars: Some(9), ..Filters::default() };
        assert_eq!(reason(chars, "").as_deref(), Some("8 characters, fewer than 9"));
        let chars = Filters { max_chars: Some(9), ..Filters::default() };
        assert_eq!(reason(chars, "né?").as_deref(), Some("11 characters, more than 9"));
        let paragraph = Filters { max_paragraph_chars: Some(6), ..Filters::default() };
        assert_eq!(reason(paragraph.clone(), "abc\ndef\n\nabcd\n \nab"), None);
        let refused = reason(paragraph, "abc\ndefg\n\nab");
        assert_eq!(refused.as_deref(), Some("a paragraph of 7 characters, more than 6"));
    }

    #[test]
    fn scripts_that_nobody_asked_in_are_mixing_and_mathematics_is_not() {
        let filters = Filters { max_script_mixing: Some(0.1), ..Filters::default() };
        let refused = |question: &str, reasoning: &str| reason(&filters, &trace(question, reasoning, "4"));
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

    #[test]
    fn language_repetition_and_speech_are_steps_of_their_own() {
        let english = "She eats three of them for breakfast every morning and sells the remainder at the market for two dollars each.";
        let german = "Sie verkauft den Rest jeden Tag auf dem Bauernmarkt, und zwar für zwei Dollar je frisches Entenei.";
        let refused = |filters: Filters, question: &str, content: &str| {
            filters.refuse(&trace(question, "Let me see.", content))
        };
        let same = || Filters { same_language: true, ..Filters::default() };
        let mixed = Some((Step::Language, "asked in `eng`, answered in `deu`".to_owned()));
        assert_eq!(refused(same(), english, german), mixed);
        assert_eq!(refused(same(), "Why?", german), None, "too short to tell");
        let english_only = || Filters { languages: vec!["eng".into()], ..Filters::default() };
        assert_eq!(
            refused(english_only(), "Why?", german),
            Some((Step::Language, "answered in `deu`".into()))
        );
        assert_eq!(refused(english_only(), "Why?", english), None);
        let loops = Filters { no_loops: true, ..Filters::default() };
        let round = "Wait, let me check that again. ".repeat(5);
        assert_eq!(
            refused(loops, "Why?", &round),
            Some((Step::Repetition, "6 words 5 times in a row".into()))
        );
        let repeated = Filters { max_repeated_share: Some(0.7), ..Filters::default() };
        assert_eq!(
            refused(repeated, "Why?", &round),
            Some((Step::Repetition, "80.0 % of the words repeat others".into()))
        );
        let refusals = || Filters { no_refusals: true, ..Filters::default() };
        let reason = "it refuses: I can't help with that".to_owned();
        assert_eq!(refused(refusals(), "Why?", "Oh. I can't help with that."), Some((Step::Refusal, reason)));
        assert_eq!(refused(refusals(), "Why?", "I'm ChatGPT."), None);
        let selves = Filters { no_self_identification: true, ..Filters::default() };
        let reason = "a model speaks of itself: I'm ChatGPT".to_owned();
        let expected = Some((Step::SelfIdentification, reason));
        assert_eq!(refused(selves, "Why?", "Hello! *I'm ChatGPT.*"), expected);
    }
}

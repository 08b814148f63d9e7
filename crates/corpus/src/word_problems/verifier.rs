//! Checks a reply to a word problem: its answer and, where wanted, every step that led there.

use stillroom_core::{Message, Prompt};

use super::VALUE_MAX;
use super::wording::{MONTHS, operator};
use crate::{Verdict, Verifier};

/// Longer reasoning is refused unread.
const REASONING_BYTES_MAX: usize = 4096;

/// The verifier of the task `word_problems`.
#[derive(Clone, Copy, Debug, Default)]
pub struct WordProblems {
    /// Besides the answer, every step of the reasoning must hold, start from the last result, quote
    /// the word and the number of the problem's sentence of that month, and do what they say; the
    /// first must start from the problem's first number, and the last end in the answer.
    pub check_steps: bool,
}

/// One step `month: cue number, left operator right = result` of a reply's reasoning.
struct Step<'a> {
    month: &'a str,
    cue: &'a str,
    quoted: Option<u32>,
    left: u32,
    operator: &'a str,
    right: u32,
    result: u32,
}

impl Step<'_> {
    fn holds(&self) -> bool {
        let (left, right) = (u64::from(self.left), u64::from(self.right));
        let result = u64::from(self.result);
        match self.operator {
            "+" => left + right == result,
            "-" => left == right + result,
            "*" => left * right == result,
            "/" => right != 0 && left == right * result,
            _ => false,
        }
    }

    /// Whether the equation does what the quote says.
    fn follows_quote(&self) -> bool {
        let operand = match self.operator {
            "+" | "-" => self.quoted == Some(self.right),
            _ => self.quoted.is_none() && self.right == 2,
        };
        operand && operator(self.cue) == Some(self.operator)
    }
}

/// A sentence of the problem's text, without its punctuation.
struct Sentence<'a> {
    month: &'a str,
    words: Vec<&'a str>,
}

impl Sentence<'_> {
    /// Whether this is the only number of the sentence, or it has none where none is given.
    fn states(&self, given: Option<u32>) -> bool {
        self.words.iter().filter_map(|word| number(word)).eq(given)
    }
}

impl Verifier for WordProblems {
    fn name(&self) -> &'static str {
        if self.check_steps { "word_problems_steps" } else { "word_problems" }
    }

    fn verify(&self, prompt: &Prompt, reply: &Message) -> Verdict {
        let Some(answer) = prompt.answer.as_deref().and_then(|text| number(text.trim())) else {
            return Verdict::wrong("the prompt has no whole number as its answer");
        };
        let content = reply.content.trim();
        match number(content) {
            None => return Verdict::wrong("the reply is not a whole number alone"),
            Some(given) if given != answer => {
                return Verdict::wrong(format!("answered {given} instead of {answer}"));
            }
            Some(_) => {}
        }
        if self.check_steps
            && let Err(reason) = check_steps(prompt, reply.reasoning_content.as_deref(), answer)
        {
            return Verdict::wrong(reason);
        }
        Verdict::right()
    }

    fn answer(&self, reply: &Message) -> Option<String> {
        number(reply.content.trim()).map(|number| number.to_string())
    }
}

fn check_steps(prompt: &Prompt, reasoning: Option<&str>, answer: u32) -> Result<(), String> {
    let steps = parse_reasoning(reasoning.ok_or("no reasoning")?)?;
    let mut last = None;
    for (i, step) in steps.iter().enumerate() {
        let n = i + 1;
        if !step.holds() || step.result > u32::from(VALUE_MAX) {
            return Err(format!("step {n} is false"));
        }
        if last.is_some_and(|last| last != step.left) {
            return Err(format!("step {n} does not start from the result before it"));
        }
        if !step.follows_quote() {
            return Err(format!("step {n} does not do what it quotes"));
        }
        last = Some(step.result);
    }
    if last != Some(answer) {
        return Err("the steps do not end in the answer".into());
    }
    let text = prompt.messages.last().map(|message| message.content.as_str()).unwrap_or_default();
    check_quotes(&steps, text)
}

/// Holds the steps against the problem: a start, one sentence per step, and a question without a date.
fn check_quotes(steps: &[Step<'_>], text: &str) -> Result<(), String> {
    let sentences: Vec<Sentence<'_>> = text.split('.').filter_map(sentence).collect();
    let Some((opening, told)) = sentences.split_first() else {
        return Err("the problem has no dated sentence".into());
    };
    if !told.iter().map(|sentence| sentence.month).eq(steps.iter().map(|step| step.month)) {
        return Err("the steps are not dated as the problem's sentences".into());
    }
    if !opening.states(steps.first().map(|step| step.left)) {
        return Err("the steps do not start from the problem's first number".into());
    }
    for (i, (step, sentence)) in steps.iter().zip(told).enumerate() {
        if !sentence.words.contains(&step.cue) {
            return Err(format!("step {} quotes a word that {} does not have", i + 1, step.month));
        }
        if !sentence.states(step.quoted) {
            return Err(format!("step {} does not quote the number of {}", i + 1, step.month));
        }
    }
    Ok(())
}

/// A sentence with a month; the question has none.
fn sentence(text: &str) -> Option<Sentence<'_>> {
    let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric()).collect();
    let month = *words.iter().find(|word| MONTHS.contains(word))?;
    Some(Sentence { month, words })
}

/// Reads reasoning such as `In May: won 5, 7 + 5 = 12; June: lost 3, 12 - 3 = 9; July: doubled, 9 * 2 = 18`.
fn parse_reasoning(text: &str) -> Result<Vec<Step<'_>>, String> {
    if text.len() > REASONING_BYTES_MAX {
        return Err("reasoning too long".into());
    }
    let text = text.trim();
    let text = text.strip_prefix("In ").unwrap_or(text);
    let numbered = text.split(';').enumerate();
    numbered.map(|(i, part)| step(part).ok_or_else(|| format!("step {} cannot be read", i + 1))).collect()
}

fn step(text: &str) -> Option<Step<'_>> {
    let (quote, equation) = text.split_once(',')?;
    let quote: Vec<&str> = quote.split_ascii_whitespace().collect();
    let (month, cue, quoted) = match quote[..] {
        [month, cue] => (month, cue, None),
        [month, cue, quoted] => (month, cue, Some(number(quoted)?)),
        _ => return None,
    };
    let equation: Vec<&str> = equation.split_ascii_whitespace().collect();
    let [left, operator @ ("+" | "-" | "*" | "/"), right, "=", result] = equation[..] else { return None };
    Some(Step {
        month: month.strip_suffix(':')?,
        cue,
        quoted,
        left: number(left)?,
        operator,
        right: number(right)?,
        result: number(result)?,
    })
}

/// A whole number in plain digits, without sign.
fn number(text: &str) -> Option<u32> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

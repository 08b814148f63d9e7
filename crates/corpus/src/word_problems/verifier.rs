//! Checks a reply to a word problem: its answer and, where wanted, every step that led there.

use stillroom_core::{Message, Prompt};

use super::VALUE_MAX;
use super::wording::MONTHS;
use crate::{Verdict, Verifier};

/// Longer reasoning is refused unread.
const REASONING_BYTES_MAX: usize = 4096;

/// The verifier of the task `word_problems`.
#[derive(Clone, Copy, Debug, Default)]
pub struct WordProblems {
    /// Besides the answer, every equation of the reasoning must hold, start from the last result,
    /// use the problem's numbers in their order, and end in the answer.
    pub check_steps: bool,
}

/// One equation `month: left operator right = result` of a reply's reasoning.
struct Equation<'a> {
    month: &'a str,
    left: u32,
    operator: char,
    right: u32,
    result: u32,
}

impl Equation<'_> {
    fn holds(&self) -> bool {
        let (left, right) = (u64::from(self.left), u64::from(self.right));
        let result = u64::from(self.result);
        match self.operator {
            '+' => left + right == result,
            '-' => left == right + result,
            '*' => left * right == result,
            '/' => right != 0 && left == right * result,
            _ => false,
        }
    }
}

impl Verifier for WordProblems {
    fn name(&self) -> &'static str {
        "word_problems"
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
}

fn check_steps(prompt: &Prompt, reasoning: Option<&str>, answer: u32) -> Result<(), String> {
    let equations = parse_reasoning(reasoning.ok_or("no reasoning")?)?;
    let mut last = None;
    let mut stated = Vec::new();
    for (i, equation) in equations.iter().enumerate() {
        let step = i + 1;
        if !equation.holds() || equation.result > u32::from(VALUE_MAX) {
            return Err(format!("step {step} is false"));
        }
        if last.is_some_and(|last| last != equation.left) {
            return Err(format!("step {step} does not start from the result before it"));
        }
        if last.is_none() {
            stated.push(equation.left);
        }
        match (equation.operator, equation.right) {
            ('+' | '-', operand) => stated.push(operand),
            (_, 2) => {}
            _ => return Err(format!("step {step} is not a step of this task")),
        }
        last = Some(equation.result);
    }
    if last != Some(answer) {
        return Err("the steps do not end in the answer".into());
    }
    let text = prompt.messages.last().map(|message| message.content.as_str()).unwrap_or_default();
    let given: Vec<u32> = text.split(|c: char| !c.is_ascii_digit()).filter_map(number).collect();
    if stated != given {
        return Err("the steps do not use the problem's numbers in their order".into());
    }
    let dates = text.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| MONTHS.contains(word)).skip(1);
    if !dates.eq(equations.iter().map(|equation| equation.month)) {
        return Err("the steps are not dated as the problem's sentences".into());
    }
    Ok(())
}

/// Reads reasoning of the form `In May: 7 + 5 = 12; June: 12 - 3 = 9`.
fn parse_reasoning(text: &str) -> Result<Vec<Equation<'_>>, String> {
    if text.len() > REASONING_BYTES_MAX {
        return Err("reasoning too long".into());
    }
    let text = text.trim();
    let text = text.strip_prefix("In ").unwrap_or(text);
    let numbered = text.split(';').enumerate();
    numbered.map(|(i, part)| equation(part).ok_or_else(|| format!("step {} is no equation", i + 1))).collect()
}

fn equation(text: &str) -> Option<Equation<'_>> {
    let mut words = text.split_ascii_whitespace();
    let month = words.next()?.strip_suffix(':')?;
    let left = number(words.next()?)?;
    let mut operator = words.next()?.chars();
    let right = number(words.next()?)?;
    let equals = words.next()?;
    let result = number(words.next()?)?;
    let symbol = operator.next()?;
    let whole = equals == "=" && words.next().is_none() && operator.next().is_none();
    (whole && "+-*/".contains(symbol)).then_some(Equation { month, left, operator: symbol, right, result })
}

/// A whole number in plain digits, without sign.
fn number(text: &str) -> Option<u32> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

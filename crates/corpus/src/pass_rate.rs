//! Rejection sampling: of a prompt's samples those that are right, and only of prompts that are neither too easy nor too hard.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use stillroom_core::{FinishReason, Prompt, Trace};

use crate::Verifier;
use crate::curation::{Dropped, Step, part};

/// Which prompts are kept, by the share of their samples that is right; both ends count as within.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Without it, none is too hard.
    #[serde(rename = "pass_rate_min", skip_serializing_if = "Option::is_none")]
    pub least: Option<f64>,
    /// Without it, none is too easy.
    #[serde(rename = "pass_rate_max", skip_serializing_if = "Option::is_none")]
    pub most: Option<f64>,
}

impl Window {
    /// Why a prompt with so many right samples of so many is out of the window, if it is.
    pub fn refuse(&self, right: u32, of: u32) -> Option<String> {
        // As products, so that 1 of 3 is within 1/3 however that is rounded.
        let within = |bound: f64, sign: f64| {
            sign * (f64::from(right) - bound * f64::from(of)) >= -1e-9 * f64::from(of)
        };
        let (side, bound) = match (self.least, self.most) {
            (Some(least), _) if !within(least, 1.0) => ("less than", least),
            (_, Some(most)) if !within(most, -1.0) => ("more than", most),
            _ => return None,
        };
        Some(format!("{right} of {of} samples are right, {side} {:.1} %", 100.0 * bound))
    }
}

/// Which of a prompt's right samples are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    #[default]
    All,
    /// The first.
    First,
    /// The one with the fewest tokens, of equals the first.
    Shortest,
}

impl Keep {
    pub fn is_all(&self) -> bool {
        *self == Keep::All
    }
}

/// Drops all traces of prompts that are out of the window. A sample that was cut off counts as wrong. All samples of a prompt
/// have to be among the traces, and every prompt among `prompts`; traces of another are left to the steps after this.
pub fn within(
    traces: Vec<Trace>,
    prompts: &HashMap<&str, &Prompt>,
    verifier: &dyn Verifier,
    window: &Window,
) -> (Vec<Trace>, Vec<Dropped>) {
    let mut rates: HashMap<String, (u32, u32)> = HashMap::new();
    for trace in &traces {
        let Some(prompt) = prompts.get(trace.id.as_str()) else { continue };
        let whole = trace.finish_reason == FinishReason::Stop;
        let right = whole && verifier.verify(prompt, &trace.reply()).correct;
        let rate = rates.entry(trace.id.clone()).or_default();
        *rate = (rate.0 + u32::from(right), rate.1 + 1);
    }
    part(traces, Step::PassRate, |_, trace| {
        let refused = rates.get(&trace.id).and_then(|(right, of)| window.refuse(*right, *of));
        refused.map_or(Ok(()), Err)
    })
}

/// Keeps of each prompt's traces what the rule says. All of a prompt's traces have to be here, after those that are wrong
/// were dropped.
pub fn keep(traces: Vec<Trace>, rule: Keep) -> (Vec<Trace>, Vec<Dropped>) {
    let mut best: HashMap<String, (u32, u32)> = HashMap::new();
    for trace in &traces {
        let rank = if rule == Keep::Shortest { trace.completion_tokens } else { 0 };
        let held = best.entry(trace.id.clone()).or_insert((rank, trace.sample));
        if rank < held.0 {
            *held = (rank, trace.sample);
        }
    }
    part(traces, Step::PassRate, |_, trace| match best.get(&trace.id) {
        Some((_, kept)) if !rule.is_all() && *kept != trace.sample => Err(format!("sample {kept} is kept")),
        _ => Ok(()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made_up;
    use crate::verify::numeric_answer::NumericAnswer;

    /// The longer the answer, the more tokens it has.
    fn trace(id: &str, sample: u32, content: &str) -> Trace {
        Trace { completion_tokens: 10 + content.len() as u32, ..made_up::trace(id, sample, content) }
    }

    fn prompt(id: &str) -> Prompt {
        Prompt { id: id.into(), messages: vec![], answer: Some("7".into()), target: None }
    }

    #[test]
    fn prompts_too_easy_and_too_hard_go_with_all_their_samples() {
        let all = [prompt("easy"), prompt("even"), prompt("hard"), prompt("cut")];
        let prompts = all.iter().map(|prompt| (prompt.id.as_str(), prompt)).collect();
        let cut = |sample| Trace { finish_reason: FinishReason::Length, ..trace("cut", sample, "7") };
        let traces = vec![
            trace("easy", 0, "7"),
            trace("easy", 1, "7"),
            trace("even", 0, "7"),
            trace("even", 1, "8"),
            trace("hard", 0, "8"),
            trace("hard", 1, "9"),
            cut(0),
            cut(1),
        ];
        let window = Window { least: Some(0.5), most: Some(0.5) };
        let (kept, dropped) = within(traces.clone(), &prompts, &NumericAnswer, &window);
        assert_eq!(
            kept.iter().map(|t| (t.id.as_str(), t.sample)).collect::<Vec<_>>(),
            [("even", 0), ("even", 1)]
        );
        let reasons: Vec<&str> = dropped.iter().map(|drop| drop.reason.as_str()).step_by(2).collect();
        assert_eq!(
            reasons,
            [
                "2 of 2 samples are right, more than 50.0 %",
                "0 of 2 samples are right, less than 50.0 %",
                "0 of 2 samples are right, less than 50.0 %",
            ]
        );
        assert!(dropped.iter().all(|drop| drop.step == Step::PassRate));
        let (kept, _) = within(traces, &prompts, &NumericAnswer, &Window { least: None, most: Some(0.9) });
        assert_eq!(kept.len(), 6);
    }

    #[test]
    fn bounds_are_within_however_they_are_rounded() {
        for of in 1..=64u32 {
            for right in 0..=of {
                let rate = f64::from(right) / f64::from(of);
                assert_eq!(Window { least: Some(rate), most: Some(rate) }.refuse(right, of), None);
                if right > 0 {
                    assert!(Window { least: Some(rate), most: None }.refuse(right - 1, of).is_some());
                    assert!(Window { least: None, most: Some(rate - 0.01) }.refuse(right, of).is_some());
                }
            }
        }
    }

    #[test]
    fn one_right_sample_is_kept_or_all() {
        let traces =
            || vec![trace("a", 0, "xxx 7"), trace("a", 2, "7"), trace("a", 3, "7"), trace("b", 1, "7")];
        let names = |rule| keep(traces(), rule).0.into_iter().map(|t| (t.id, t.sample)).collect::<Vec<_>>();
        assert_eq!(names(Keep::First), [("a".to_owned(), 0), ("b".to_owned(), 1)]);
        assert_eq!(names(Keep::Shortest), [("a".to_owned(), 2), ("b".to_owned(), 1)]);
        assert_eq!(names(Keep::All).len(), 4);
        assert_eq!(keep(traces(), Keep::First).1[0].reason, "sample 0 is kept");
    }
}

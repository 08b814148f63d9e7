//! Of several traces for one prompt, those that are kept: the answer of most, or the best.

use std::collections::{BTreeMap, HashMap};

use stillroom_core::{FinishReason, Trace};

use crate::Verifier;
use crate::curation::{Dropped, Step, part};

/// Keeps of each prompt's traces those whose answer more traces have than any other answer.
///
/// Where no right answer is known, the one that independent samples agree on is right more often than one sample
/// (Wang et al. 2022, "Self-Consistency"). Votes are counted of traces that ended by themselves and in which `verifier`
/// finds an answer; the others are dropped, and so are all of a prompt whose first place is shared.
pub fn majority(traces: Vec<Trace>, verifier: &dyn Verifier) -> (Vec<Trace>, Vec<Dropped>) {
    let answers: Vec<Option<String>> = traces.iter().map(|trace| answer_of(trace, verifier)).collect();
    let mut votes: HashMap<&str, BTreeMap<&str, u32>> = HashMap::new();
    for (trace, answer) in traces.iter().zip(&answers) {
        if let Some(answer) = answer {
            *votes.entry(&trace.id).or_default().entry(answer).or_default() += 1;
        }
    }
    let winners: HashMap<String, Result<String, String>> =
        votes.iter().map(|(id, votes)| ((*id).to_owned(), winner(votes))).collect();
    part(traces, Step::Majority, |i, trace| {
        let answer = answers[i].as_ref().ok_or("no answer to vote with")?;
        match winners.get(&trace.id) {
            Some(Ok(winner)) if winner == answer => Ok(()),
            Some(Ok(winner)) => Err(format!("answered {answer}, most answered {winner}")),
            Some(Err(tie)) => Err(tie.clone()),
            None => unreachable!("every answer is counted"),
        }
    })
}

fn answer_of(trace: &Trace, verifier: &dyn Verifier) -> Option<String> {
    let whole = trace.finish_reason == FinishReason::Stop;
    whole.then(|| verifier.answer(&trace.reply())).flatten()
}

/// The answer with the most votes, or why there is none.
fn winner(votes: &BTreeMap<&str, u32>) -> Result<String, String> {
    let most = votes.values().copied().max().unwrap_or(0);
    let mut first = votes.iter().filter(|(_, n)| **n == most).map(|(answer, _)| *answer);
    match (first.next(), first.next()) {
        (Some(answer), None) => Ok(answer.to_owned()),
        (Some(a), Some(b)) => Err(format!("no majority: {a} and {b} have {most} votes each")),
        _ => Err("no answer has a vote".to_owned()),
    }
}

/// Keeps of each prompt's traces the one with the highest grade; of equals the first. A trace without a grade is
/// dropped.
pub fn best_of_n(traces: Vec<Trace>, grades: &HashMap<(String, u32), f64>) -> (Vec<Trace>, Vec<Dropped>) {
    let grade = |trace: &Trace| grades.get(&(trace.id.clone(), trace.sample)).copied();
    let mut best: HashMap<String, (u32, f64)> = HashMap::new();
    for trace in &traces {
        let Some(grade) = grade(trace) else { continue };
        let held = best.entry(trace.id.clone()).or_insert((trace.sample, grade));
        if grade > held.1 {
            *held = (trace.sample, grade);
        }
    }
    part(traces, Step::BestOfN, |_, trace| {
        let own = grade(trace).ok_or("no grade")?;
        match best.get(&trace.id) {
            Some((sample, _)) if *sample == trace.sample => Ok(()),
            Some((sample, grade)) => Err(format!("grade {own:.3}, sample {sample} has {grade:.3}")),
            None => unreachable!("every grade is compared"),
        }
    })
}

/// Puts in the place of each trace its revision, as a reply to the trace's own prompt. A trace without one is dropped.
pub fn revised(traces: Vec<Trace>, revisions: &HashMap<(String, u32), Trace>) -> (Vec<Trace>, Vec<Dropped>) {
    let of = |trace: &Trace| revisions.get(&(trace.id.clone(), trace.sample));
    let found = |_: usize, trace: &Trace| of(trace).map(drop).ok_or("no revision".to_owned());
    let (kept, dropped) = part(traces, Step::Revised, found);
    let replaced = kept.into_iter().map(|trace| match of(&trace) {
        Some(revision) => Trace { messages: trace.messages, ..revision.clone() },
        None => unreachable!("it was kept for its revision"),
    });
    (replaced.collect(), dropped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made_up::trace;
    use crate::verify::numeric_answer::NumericAnswer;

    fn names(traces: &[Trace]) -> Vec<(&str, u32)> {
        traces.iter().map(|trace| (trace.id.as_str(), trace.sample)).collect()
    }

    #[test]
    fn the_answer_of_most_is_kept_however_it_is_written() {
        let cut = Trace { finish_reason: FinishReason::Length, ..trace("a", 4, "7") };
        let traces = vec![
            trace("a", 0, "It is 18."),
            trace("a", 1, "7"),
            trace("a", 2, "#### 18.00"),
            trace("a", 3, "who knows"),
            cut,
            trace("b", 0, "1"),
            trace("b", 1, "2"),
            trace("c", 0, "5"),
        ];
        let (kept, dropped) = majority(traces, &NumericAnswer);
        assert_eq!(names(&kept), [("a", 0), ("a", 2), ("c", 0)]);
        let reasons: Vec<&str> = dropped.iter().map(|drop| drop.reason.as_str()).collect();
        let tie = "no majority: 1 and 2 have 1 votes each";
        let none = "no answer to vote with";
        assert_eq!(reasons, ["answered 7, most answered 18", none, none, tie, tie]);
        assert!(dropped.iter().all(|drop| drop.step == Step::Majority));
    }

    #[test]
    fn a_revision_stands_in_its_traces_place() {
        let question = vec![stillroom_core::Message::new(stillroom_core::Role::User, "q")];
        let first = Trace { messages: question.clone(), ..trace("a", 0, "x") };
        let revisions = [(("a".to_owned(), 0), trace("a", 0, "better"))].into();
        let (kept, dropped) = revised(vec![first, trace("a", 1, "y")], &revisions);
        assert_eq!((kept[0].content.as_str(), &kept[0].messages), ("better", &question));
        assert_eq!((dropped.len(), dropped[0].sample, dropped[0].step), (1, 1, Step::Revised));
    }

    #[test]
    fn the_best_grade_is_kept_and_the_first_of_equals() {
        let traces = vec![trace("a", 0, "x"), trace("a", 1, "y"), trace("a", 2, "z"), trace("b", 0, "w")];
        let grades = [(("a", 0), 2.0), (("a", 1), 4.5), (("a", 2), 4.5)];
        let grades = grades.map(|((id, sample), grade)| ((String::from(id), sample), grade)).into();
        let (kept, dropped) = best_of_n(traces, &grades);
        assert_eq!(names(&kept), [("a", 1)]);
        let reasons: Vec<&str> = dropped.iter().map(|drop| drop.reason.as_str()).collect();
        assert_eq!(
            reasons,
            ["grade 2.000, sample 1 has 4.500", "grade 4.500, sample 1 has 4.500", "no grade"]
        );
    }
}

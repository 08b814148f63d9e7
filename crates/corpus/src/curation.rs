//! Which traces a student may learn from; each that it may not is recorded with the reason.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use stillroom_core::{Digest, FinishReason, Message, Prompt, Trace};

use crate::filters::Filters;
use crate::{CorpusError, Verifier};

/// The steps of curation, in the order in which a trace passes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The row has tool calls, and the recipe leaves those out; dropped before the teacher sees it.
    ToolCalls,
    /// Its source does not allow it; dropped before the teacher sees it. See [`sources`](crate::sources).
    Source,
    /// The reply ended at the length limit.
    Truncated,
    /// The reply has no content.
    Empty,
    /// Out of the bounds of [`Filters`](crate::filters::Filters).
    Filter,
    /// Answered in another language than the filters allow.
    Language,
    /// It goes round.
    Repetition,
    /// The answer refuses.
    Refusal,
    /// A model says what it is or who made it.
    SelfIdentification,
    /// The verifier found the reply wrong.
    Verify,
    /// Too many or too few of the prompt's samples are right, or another right one is kept; see
    /// [`pass_rate`](crate::pass_rate).
    PassRate,
    /// The same conversation with the same reply was kept before.
    Duplicate,
    /// Most traces of the prompt have another answer; see [`majority`](crate::selection::majority).
    Majority,
    /// Another trace of the prompt has a better grade; see [`best_of_n`](crate::selection::best_of_n).
    BestOfN,
    /// It has no revision with an end; see [`revised`](crate::selection::revised).
    Revised,
    /// It holds personal data or a secret; see [`pii`](crate::pii).
    Pii,
    /// It holds an evaluation item; see [`contaminants`](crate::contaminants).
    Contaminated,
    /// It says nearly the same as one before; see [`near_duplicates`](crate::near_duplicates).
    NearDuplicate,
    /// Its answer, or its row's class, has its share already; see [`balance`](crate::balance).
    Balance,
}

impl Step {
    pub fn as_str(self) -> &'static str {
        match self {
            Step::ToolCalls => "tool_calls",
            Step::Source => "source",
            Step::Truncated => "truncated",
            Step::Empty => "empty",
            Step::Filter => "filter",
            Step::Language => "language",
            Step::Repetition => "repetition",
            Step::Refusal => "refusal",
            Step::SelfIdentification => "self_identification",
            Step::Verify => "verify",
            Step::PassRate => "pass_rate",
            Step::Duplicate => "duplicate",
            Step::Majority => "majority",
            Step::BestOfN => "best_of_n",
            Step::Revised => "revised",
            Step::Pii => "pii",
            Step::Contaminated => "contaminated",
            Step::NearDuplicate => "near_duplicate",
            Step::Balance => "balance",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// In what way a prompt or its target uses tools, if it does.
pub fn tool_use(prompt: &Prompt) -> Option<&'static str> {
    let calls = |message: &Message| message.uses_tools() && message.tools.is_empty();
    if !prompt.uses_tools() {
        return None;
    }
    Some(match &prompt.target {
        Some(target) if target.uses_tools() => "the reply has tool calls",
        _ if prompt.messages.iter().any(calls) => "the conversation has tool calls",
        _ => "the conversation offers tools",
    })
}

/// One trace that was not kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    pub id: String,
    pub sample: u32,
    pub step: Step,
    pub reason: String,
}

/// How many traces came, stayed, and went at each step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub seen: u64,
    pub kept: u64,
    pub dropped: BTreeMap<Step, u64>,
}

/// Passes traces one by one; what it kept depends on their order only for duplicates, of which
/// the first stays.
pub struct Curator<'a> {
    prompts: HashMap<&'a str, &'a Prompt>,
    verifier: Option<&'a dyn Verifier>,
    filters: Filters,
    kept: HashSet<Digest>,
    counts: Counts,
    dropped: Vec<Dropped>,
}

impl<'a> Curator<'a> {
    /// A curator for the traces of these prompts; without a verifier no answer is judged.
    pub fn new(
        prompts: impl IntoIterator<Item = &'a Prompt>,
        verifier: Option<&'a dyn Verifier>,
    ) -> Curator<'a> {
        let prompts = prompts.into_iter().map(|prompt| (prompt.id.as_str(), prompt)).collect();
        Curator {
            prompts,
            verifier,
            filters: Filters::default(),
            kept: HashSet::new(),
            counts: Counts::default(),
            dropped: Vec::new(),
        }
    }

    /// With bounds for what a trace looks like.
    pub fn with_filters(self, filters: Filters) -> Curator<'a> {
        Curator { filters, ..self }
    }

    /// Whether this trace is kept.
    ///
    /// # Errors
    /// A trace of an unknown prompt means that prompts and traces do not belong together.
    pub fn keeps(&mut self, trace: &Trace) -> Result<bool, CorpusError> {
        let Some(&prompt) = self.prompts.get(trace.id.as_str()) else {
            return Err(CorpusError::UnknownPrompt { id: trace.id.clone(), sample: trace.sample });
        };
        self.counts.seen += 1;
        let Err((step, reason)) = self.judge(prompt, trace) else {
            self.counts.kept += 1;
            return Ok(true);
        };
        *self.counts.dropped.entry(step).or_default() += 1;
        self.dropped.push(Dropped { id: trace.id.clone(), sample: trace.sample, step, reason });
        Ok(false)
    }

    fn judge(&mut self, prompt: &Prompt, trace: &Trace) -> Result<(), (Step, String)> {
        if trace.finish_reason == FinishReason::Length {
            return Err((Step::Truncated, "ended at the length limit".into()));
        }
        if trace.content.trim().is_empty() {
            return Err((Step::Empty, "no content".into()));
        }
        if let Some(refused) = self.filters.refuse(trace) {
            return Err(refused);
        }
        if let Some(verifier) = self.verifier {
            let verdict = verifier.verify(prompt, &trace.reply());
            if !verdict.correct {
                return Err((Step::Verify, verdict.reason));
            }
        }
        if !self.kept.insert(digest(trace)) {
            return Err((Step::Duplicate, "same conversation and reply as a trace before".into()));
        }
        Ok(())
    }

    /// The counts, and every dropped trace in order.
    pub fn finish(self) -> (Counts, Vec<Dropped>) {
        (self.counts, self.dropped)
    }
}

/// Of conversation and reply, whatever the id, the sample and the price.
fn digest(trace: &Trace) -> Digest {
    let words = (&trace.messages, &trace.reasoning_content, &trace.content);
    Digest::of(&serde_json::to_vec(&words).expect("text is always JSON"))
}

/// Traces that `keeps` says `Ok` of, and the others with their reason.
pub(crate) fn part(
    traces: Vec<Trace>,
    step: Step,
    keeps: impl Fn(usize, &Trace) -> Result<(), String>,
) -> (Vec<Trace>, Vec<Dropped>) {
    let (mut kept, mut dropped) = (Vec::new(), Vec::new());
    for (i, trace) in traces.into_iter().enumerate() {
        match keeps(i, &trace) {
            Ok(()) => kept.push(trace),
            Err(reason) => dropped.push(Dropped { id: trace.id, sample: trace.sample, step, reason }),
        }
    }
    (kept, dropped)
}

/// What curation left.
#[derive(Clone, Debug, PartialEq)]
pub struct Curated {
    /// In the order in which they came.
    pub kept: Vec<Trace>,
    pub dropped: Vec<Dropped>,
    pub counts: Counts,
}

/// Curates all traces at once; see [`Curator`].
///
/// # Errors
/// A trace of an unknown prompt means that prompts and traces do not belong together.
pub fn curate<'a>(
    traces: Vec<Trace>,
    prompts: impl IntoIterator<Item = &'a Prompt>,
    verifier: Option<&'a dyn Verifier>,
    filters: &Filters,
) -> Result<Curated, CorpusError> {
    let mut curator = Curator::new(prompts, verifier).with_filters(filters.clone());
    let mut kept = Vec::with_capacity(traces.len());
    for trace in traces {
        if curator.keeps(&trace)? {
            kept.push(trace);
        }
    }
    let (counts, dropped) = curator.finish();
    Ok(Curated { kept, dropped, counts })
}

#[cfg(test)]
mod tests {
    use stillroom_core::Role;

    use super::*;
    use crate::word_problems::{WordProblem, WordProblems};
    use crate::{Split, made_up, word_problems};

    fn trace(problem: &WordProblem, sample: u32) -> Trace {
        let worked = problem.worked();
        Trace {
            messages: problem.prompt().messages,
            reasoning_content: worked.reasoning_content,
            ..made_up::trace(&problem.id, sample, &worked.content)
        }
    }

    fn with(trace: &Trace, sample: u32, change: impl FnOnce(&mut Trace)) -> Trace {
        let mut changed = Trace { sample, ..trace.clone() };
        change(&mut changed);
        changed
    }

    #[test]
    fn each_step_drops_its_own_and_the_rest_stays_in_order() {
        let problems = word_problems::problems(3, Split::Train, 3);
        let prompts: Vec<Prompt> = problems.iter().map(WordProblem::prompt).collect();
        let first = trace(&problems[0], 0);
        let traces = vec![
            first.clone(),
            with(&first, 1, |t| t.usd = 1.0),
            with(&first, 2, |t| t.finish_reason = FinishReason::Length),
            with(&first, 3, |t| t.content = " \n".into()),
            with(&first, 4, |t| t.content = "21".into()),
            with(&first, 5, |t| t.reasoning_content = None),
            trace(&problems[2], 0),
            trace(&problems[1], 0),
        ];
        let verifier = WordProblems { check_steps: false };
        let curated = curate(traces.clone(), &prompts, Some(&verifier), &Filters::default())
            .expect("every prompt is known");
        let kept: Vec<_> = curated.kept.iter().map(|t| (t.id.as_str(), t.sample)).collect();
        let id = |i: usize| problems[i].id.as_str();
        assert_eq!(kept, [(id(0), 0), (id(0), 5), (id(2), 0), (id(1), 0)]);
        let dropped: Vec<_> = curated.dropped.iter().map(|d| (d.sample, d.step)).collect();
        assert_eq!(
            dropped,
            [(1, Step::Duplicate), (2, Step::Truncated), (3, Step::Empty), (4, Step::Verify)]
        );
        assert_eq!(curated.dropped[3].reason, format!("answered 21 instead of {}", problems[0].answer()));
        assert_eq!((curated.counts.seen, curated.counts.kept), (8, 4));
        assert_eq!(curated.counts.dropped.values().sum::<u64>(), 4);

        let strict = WordProblems { check_steps: true };
        let curated =
            curate(traces, &prompts, Some(&strict), &Filters::default()).expect("every prompt is known");
        assert_eq!(curated.counts.dropped[&Step::Verify], 2, "no reasoning is no reasoning");
    }

    #[test]
    fn without_a_verifier_no_answer_is_judged() {
        let problem = WordProblem::draw(0, Split::Train, 0);
        let prompts = [problem.prompt()];
        let wrong = with(&trace(&problem, 0), 0, |t| t.content = "21".into());
        assert_eq!(curate(vec![wrong], &prompts, None, &Filters::default()).expect("known").counts.kept, 1);
    }

    #[test]
    fn a_trace_of_an_unknown_prompt_is_an_error() {
        let problem = WordProblem::draw(0, Split::Train, 0);
        let other = [Prompt {
            id: "other".into(),
            messages: vec![Message::new(Role::User, "x")],
            answer: None,
            target: None,
        }];
        let error = curate(vec![trace(&problem, 7)], &other, None, &Filters::default())
            .expect_err("nobody asked this");
        assert!(matches!(error, CorpusError::UnknownPrompt { sample: 7, .. }));
    }

    #[test]
    fn counts_are_written_with_the_names_of_the_steps() {
        let counts = Counts { seen: 3, kept: 1, dropped: [(Step::Verify, 2)].into() };
        let json = serde_json::to_string(&counts).expect("counts are JSON");
        assert_eq!(json, r#"{"seen":3,"kept":1,"dropped":{"verify":2}}"#);
    }
}

//! Stages `candidates` and `feedback`: replies are judged, and of each prompt's a better and a worse one make a pair.
//!
//! A verdict of a model is one of a few given tokens; what it weighs each is read from its distribution, so nothing
//! that it could write needs parsing, and no reply can talk it into another form.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;
use stillroom_core::{FinishReason, Message, Prompt, Role, Trace};
use stillroom_corpus::{Split, Verifier};
use stillroom_evaluate::{Agreement, FeedbackFacts, RevisionFacts};

use crate::failure::{Exit, Failure, Result};
use crate::flow::teach::{self, Writer};
use crate::flow::{Flow, data, digest_of, revisions};
use crate::models::Model;
use crate::recipe::{Candidates, Feedback, Judge};

pub(crate) const STAGE: &str = "feedback";
const CANDIDATES_STAGE: &str = "candidates";
const CANDIDATES: &str = "corpus/candidates";
const GRADES: &str = "corpus/feedback/grades.jsonl";
const PAIRS: &str = "corpus/feedback/pairs.jsonl";
const SUMMARY: &str = "corpus/feedback/summary.json";
/// Prompts that are judged between two lines of progress.
const PROMPTS_AT_ONCE: usize = 64;

/// What a reply was judged to be worth.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Grade {
    pub(crate) id: String,
    pub(crate) sample: u32,
    pub(crate) grade: f64,
}

/// Two replies to one prompt of which the first was preferred. `prompt`, `chosen` and `rejected` are as TRL reads
/// them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Pair {
    pub(crate) id: String,
    pub(crate) prompt: Vec<Message>,
    pub(crate) chosen: Vec<Message>,
    pub(crate) rejected: Vec<Message>,
    pub(crate) chosen_sample: u32,
    pub(crate) rejected_sample: u32,
    pub(crate) chosen_grade: f64,
    pub(crate) rejected_grade: f64,
}

impl Flow {
    pub(crate) fn feedback(&mut self) -> Result<()> {
        let Some(feedback) = self.recipe.feedback.clone() else { return Ok(()) };
        let from = match &feedback.candidates {
            Candidates::Teacher => teach::STAGE,
            Candidates::Student { .. } => {
                self.write_candidates(&feedback.candidates)?;
                CANDIDATES_STAGE
            }
        };
        let judge = match feedback.judge {
            Judge::Verified | Judge::Revision { .. } => json!(self.recipe.prompts.verifier),
            _ => json!(self.teacher_digest()?),
        };
        let mut after = vec![data::STAGE, from];
        if let Judge::Revision { rubric } = &feedback.judge {
            self.revise(rubric, &feedback.candidates, from)?;
            after.push(revisions::STAGE);
        }
        let settings = json!([1, feedback, judge]);
        self.stage(STAGE, &settings, &after, &["corpus/feedback"], |flow| flow.judge(&feedback))
    }

    /// What is judged.
    pub(crate) fn candidates(&self, candidates: &Candidates) -> Result<Vec<Trace>> {
        match candidates {
            Candidates::Teacher => self.traces(),
            Candidates::Student { .. } => self.traces_in(CANDIDATES),
        }
    }

    /// The student, before it is trained, answers every prompt.
    fn write_candidates(&mut self, candidates: &Candidates) -> Result<()> {
        let Candidates::Student { samples_per_prompt, max_tokens, temperature, top_p, seed } = *candidates
        else {
            return Ok(());
        };
        let start = json!([self.recipe.student, self.recipe.train.seed, self.start_digest()?]);
        let settings = json!([1, candidates, start]);
        let writer = Writer {
            folder: CANDIDATES,
            stage: CANDIDATES_STAGE,
            name: "student".to_owned(),
            max_tokens,
            temperature,
            top_p,
            seed,
            max_in_flight: teach::PROMPTS_PER_PART,
        };
        let after: Vec<&str> = [data::STAGE].into_iter().chain(self.start_stage()).collect();
        self.stage(CANDIDATES_STAGE, &settings, &after, &[CANDIDATES], |flow| {
            let mut start = None;
            let (made_from, parts) = (digest_of(&settings), flow.asked_of_all(samples_per_prompt)?);
            flow.write_parts(&writer, parts, made_from, |flow| {
                Ok(Rc::clone(match &mut start {
                    Some(model) => model,
                    none => none.insert(Rc::new(flow.start()?)),
                }))
            })?;
            Ok(())
        })
    }

    fn judge(&mut self, feedback: &Feedback) -> Result<()> {
        let candidates = self.candidates(&feedback.candidates)?;
        let mut by_prompt: HashMap<&str, Vec<&Trace>> = HashMap::new();
        for trace in candidates.iter().filter(|trace| may_be_judged(trace)) {
            by_prompt.entry(&trace.id).or_default().push(trace);
        }
        let validation = self.prompts_of(Split::Validation)?;
        let prompts: Vec<Prompt> = validation.iter().cloned().chain(self.prompts_of(Split::Train)?).collect();
        let judged: Vec<Judged<'_>> = prompts
            .iter()
            .filter_map(|prompt| Some(Judged { prompt, replies: by_prompt.remove(prompt.id.as_str())? }))
            .collect();
        let Verdicts { grades, pairs, position_bias, revision } = match &feedback.judge {
            Judge::Revision { .. } => {
                let (revisions, verifier) = (self.revisions()?, self.verifier());
                let verifier = verifier.as_deref();
                let revision = Some(revisions::facts(&judged, &revisions, verifier));
                let pairs = revisions::pairs(&judged, &revisions, verifier);
                Verdicts { pairs, revision, ..Verdicts::default() }
            }
            judge => self.graded(judge, &judged, feedback.margin)?,
        };
        let of_validation: HashSet<&str> = validation.iter().map(|prompt| prompt.id.as_str()).collect();
        let verifier = self.verifier().filter(|_| !matches!(feedback.judge, Judge::Verified));
        let summary = FeedbackFacts {
            judged: judged.iter().map(|judged| judged.replies.len() as u64).sum(),
            prompts: judged.len() as u64,
            mean_grade: (!grades.is_empty()).then(|| mean(grades.iter().flatten().copied())),
            pairs: pairs.iter().filter(|pair| !of_validation.contains(pair.id.as_str())).count() as u64,
            validation_pairs: pairs.iter().filter(|pair| of_validation.contains(pair.id.as_str())).count()
                as u64,
            position_bias,
            agreement: verifier.and_then(|verifier| agreement(&judged, &grades, verifier.as_ref())),
            revision,
        };
        self.write_lines(GRADES, &rows(&judged, &grades))?;
        self.write_lines(PAIRS, &pairs)?;
        self.write_json(SUMMARY, &summary)
    }

    fn graded(&mut self, judge: &Judge, judged: &[Judged<'_>], margin: f64) -> Result<Verdicts> {
        let mut bench = Bench::new(judge, self)?;
        let mut grades = Vec::new();
        for (done, group) in judged.chunks(PROMPTS_AT_ONCE).enumerate() {
            grades.extend(bench.grade(group)?);
            let n = (done + 1) * PROMPTS_AT_ONCE;
            self.progress.update(&format!("feedback: {} of {} prompts", n.min(judged.len()), judged.len()));
        }
        let (pairs, position_bias) = (pairs(judged, &grades, margin), bench.position_bias());
        Ok(Verdicts { grades, pairs, position_bias, revision: None })
    }

    pub(crate) fn feedback_facts(&self) -> Result<Option<FeedbackFacts>> {
        self.recipe.feedback.as_ref().map(|_| self.read_json(SUMMARY)).transpose()
    }

    /// Grades by prompt and sample.
    pub(crate) fn grades(&self) -> Result<HashMap<(String, u32), f64>> {
        let rows: Vec<Grade> = self.read_lines(GRADES)?;
        Ok(rows.into_iter().map(|row| ((row.id, row.sample), row.grade)).collect())
    }

    /// Pairs of the prompts of a split, in their order.
    pub(crate) fn pairs_of(&self, split: Split) -> Result<Vec<Pair>> {
        let wanted: HashSet<String> = self.prompts_of(split)?.into_iter().map(|prompt| prompt.id).collect();
        let mut pairs: Vec<Pair> = self.read_lines(PAIRS)?;
        pairs.retain(|pair| wanted.contains(&pair.id));
        if pairs.is_empty() {
            return Err(Failure::new(Exit::BadData, "feedback left no pair to learn a preference from")
                .code("nothing-left")
                .fix(
                    "a smaller `feedback.margin`, more `samples_per_prompt` or a higher temperature may help",
                ));
        }
        Ok(pairs)
    }
}

/// A prompt and its replies.
pub(crate) struct Judged<'t> {
    pub(crate) prompt: &'t Prompt,
    pub(crate) replies: Vec<&'t Trace>,
}

/// What came of judging.
#[derive(Default)]
struct Verdicts {
    /// Of each reply, prompt by prompt; none where replies are revised.
    grades: Vec<Vec<f64>>,
    pairs: Vec<Pair>,
    position_bias: Option<f64>,
    revision: Option<RevisionFacts>,
}

/// A reply that was cut off has no end to be learned, and none to be judged.
pub(crate) fn may_be_judged(trace: &Trace) -> bool {
    trace.finish_reason == FinishReason::Stop && !trace.content.trim().is_empty()
}

/// Who judges, with what it takes.
enum Bench<'r> {
    Verifier(Arc<dyn Verifier>),
    Grades { model: Rc<Model>, rubric: &'r str, best: u32 },
    Preferences { model: Rc<Model>, rubric: &'r str, first: Vec<f64> },
}

impl<'r> Bench<'r> {
    fn new(judge: &'r Judge, flow: &mut Flow) -> Result<Bench<'r>> {
        Ok(match judge {
            Judge::Verified => {
                let missing = || Failure::new(Exit::BadRecipe, "these prompts have no verifier");
                Bench::Verifier(flow.verifier().ok_or_else(missing)?)
            }
            Judge::Grade { rubric, best } => Bench::Grades { model: flow.teacher()?, rubric, best: *best },
            Judge::Preference { rubric } => {
                Bench::Preferences { model: flow.teacher()?, rubric, first: Vec::new() }
            }
            Judge::Revision { .. } => unreachable!("a revision has no grade"),
        })
    }

    /// The grade of each reply, prompt by prompt.
    fn grade(&mut self, group: &[Judged<'_>]) -> Result<Vec<Vec<f64>>> {
        match self {
            Bench::Verifier(verifier) => Ok(group
                .iter()
                .map(|judged| {
                    let right = |trace: &&Trace| verifier.verify(judged.prompt, &trace.reply()).correct;
                    judged.replies.iter().map(|trace| f64::from(u8::from(right(trace)))).collect()
                })
                .collect()),
            Bench::Grades { model, rubric, best } => grades(model, rubric, *best, group),
            Bench::Preferences { model, rubric, first } => preferences(model, rubric, group, first),
        }
    }

    fn position_bias(&self) -> Option<f64> {
        match self {
            Bench::Preferences { first, .. } if !first.is_empty() => Some(mean(first.iter().copied()) - 0.5),
            _ => None,
        }
    }
}

/// Σ points·probability of each reply.
fn grades(model: &Model, rubric: &str, best: u32, group: &[Judged<'_>]) -> Result<Vec<Vec<f64>>> {
    let ask = |judged: &Judged<'_>, trace: &Trace| {
        format!(
            "{rubric}\n\nQuestion:\n{}\n\nAnswer:\n{}\n\nGrade the answer with one digit from 1 (worst) to {best} \
             (best). Write the digit and nothing else.",
            question(judged.prompt),
            answer(trace)
        )
    };
    let asked = group.iter().flat_map(|judged| judged.replies.iter().map(|trace| ask(judged, trace)));
    let verdicts: Vec<String> = (1..=best).map(|points| points.to_string()).collect();
    let mut found = choose(model, asked, &verdicts)?.into_iter();
    let mut grade = |_: &&Trace| {
        let probabilities = found.next().expect("one verdict for each reply");
        probabilities.iter().zip(1..).map(|(p, points)| p * f64::from(points)).sum()
    };
    Ok(group.iter().map(|judged| judged.replies.iter().map(&mut grade).collect()).collect())
}

/// The mean probability that each reply is preferred to another, over both orders of the two; `first` gets the
/// probabilities that the one which is read first is. A reply without another has ½.
fn preferences(
    model: &Model,
    rubric: &str,
    group: &[Judged<'_>],
    first: &mut Vec<f64>,
) -> Result<Vec<Vec<f64>>> {
    let ask = |judged: &Judged<'_>, a: usize, b: usize| {
        format!(
            "{rubric}\n\nQuestion:\n{}\n\nAnswer A:\n{}\n\nAnswer B:\n{}\n\nWhich answer is better? Write A or B and \
             nothing else.",
            question(judged.prompt),
            answer(judged.replies[a]),
            answer(judged.replies[b])
        )
    };
    let asked = group.iter().flat_map(|judged| {
        comparisons(judged.replies.len()).map(move |(a, b)| ask(judged, a, b)).collect::<Vec<_>>()
    });
    let mut found = choose(model, asked, &["A".to_owned(), "B".to_owned()])?.into_iter();
    let mut of_prompt = |judged: &Judged<'_>| {
        let n = judged.replies.len();
        if n == 1 {
            return vec![0.5];
        }
        let mut wins = vec![0.0; n];
        for (a, b) in comparisons(n) {
            let probabilities = found.next().expect("one verdict for each comparison");
            first.push(probabilities[0]);
            wins[a] += probabilities[0];
            wins[b] += probabilities[1];
        }
        wins.iter().map(|wins| wins / (2 * (n - 1)) as f64).collect()
    };
    Ok(group.iter().map(&mut of_prompt).collect())
}

/// Every two of n, in both orders.
fn comparisons(n: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n).flat_map(move |a| (0..n).filter(move |&b| b != a).map(move |b| (a, b)))
}

/// The probability of each verdict behind each question.
fn choose(model: &Model, asked: impl Iterator<Item = String>, verdicts: &[String]) -> Result<Vec<Vec<f64>>> {
    let encode = |text: String| model.tokenizer.encode_chat(&[Message::new(Role::User, text)], true);
    let prompts: Vec<Vec<u32>> = asked.map(encode).collect::<std::result::Result<_, _>>()?;
    let choices: Vec<Vec<u32>> = verdicts
        .iter()
        .map(|verdict| model.tokenizer.encode_plain(verdict))
        .collect::<std::result::Result<_, _>>()?;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let context = model.decoder.config().max_position_embeddings;
    if longest > context {
        let cause = format!("a question to the judge has {longest} tokens, and it reads {context}");
        return Err(Failure::new(Exit::BadData, cause)
            .code("too-long")
            .fix("shorten the rubric or the replies (`max_tokens`), or let another teacher judge"));
    }
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let choices: Vec<&[u32]> = choices.iter().map(Vec::as_slice).collect();
    Ok(model.decoder.choose(&prompts, &choices))
}

fn question(prompt: &Prompt) -> String {
    asked_as(&prompt.messages)
}

/// The conversation as the judge reads it.
pub(crate) fn asked_as(messages: &[Message]) -> String {
    match messages {
        [only] => only.content.clone(),
        several => {
            let turn = |message: &Message| format!("{:?}: {}", message.role, message.content).to_lowercase();
            several.iter().map(turn).collect::<Vec<_>>().join("\n")
        }
    }
}

/// A reply as the judge reads it, reasoning first.
pub(crate) fn answer(trace: &Trace) -> String {
    match &trace.reasoning_content {
        Some(reasoning) => format!("{reasoning}\n\n{}", trace.content),
        None => trace.content.clone(),
    }
}

fn rows(judged: &[Judged<'_>], grades: &[Vec<f64>]) -> Vec<Grade> {
    let each = judged.iter().zip(grades).flat_map(|(judged, grades)| judged.replies.iter().zip(grades));
    each.map(|(trace, &grade)| Grade { id: trace.id.clone(), sample: trace.sample, grade }).collect()
}

/// The best and the worst reply to each prompt, of equals the first, where their grades differ by `margin` and at all.
fn pairs(judged: &[Judged<'_>], grades: &[Vec<f64>], margin: f64) -> Vec<Pair> {
    let of_prompt = |(judged, grades): (&Judged<'_>, &Vec<f64>)| {
        let place = |better: fn(f64, f64) -> bool| {
            (1..grades.len()).fold(0, |held, i| if better(grades[i], grades[held]) { i } else { held })
        };
        let (best, worst) = (place(|a, b| a > b), place(|a, b| a < b));
        let difference = grades[best] - grades[worst];
        let (chosen, rejected) = (judged.replies[best], judged.replies[worst]);
        (difference > 0.0 && difference >= margin && chosen.reply() != rejected.reply()).then(|| Pair {
            id: judged.prompt.id.clone(),
            prompt: judged.prompt.messages.clone(),
            chosen: vec![chosen.reply()],
            rejected: vec![rejected.reply()],
            chosen_sample: chosen.sample,
            rejected_sample: rejected.sample,
            chosen_grade: grades[best],
            rejected_grade: grades[worst],
        })
    };
    judged.iter().zip(grades).filter_map(of_prompt).collect()
}

fn agreement(judged: &[Judged<'_>], grades: &[Vec<f64>], verifier: &dyn Verifier) -> Option<Agreement> {
    let (mut comparisons, mut agreed) = (0u64, 0.0);
    for (judged, grades) in judged.iter().zip(grades) {
        let mut by_verdict: BTreeMap<bool, Vec<f64>> = BTreeMap::new();
        for (trace, &grade) in judged.replies.iter().zip(grades) {
            let verdict = verifier.verify(judged.prompt, &trace.reply());
            by_verdict.entry(verdict.correct).or_default().push(grade);
        }
        let (Some(right), Some(wrong)) = (by_verdict.get(&true), by_verdict.get(&false)) else { continue };
        for (right, wrong) in right.iter().flat_map(|right| wrong.iter().map(move |wrong| (right, wrong))) {
            comparisons += 1;
            agreed += if right > wrong { 1.0 } else { 0.5 * f64::from(u8::from(right == wrong)) };
        }
    }
    (comparisons > 0).then(|| Agreement { comparisons, share: agreed / comparisons as f64 })
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (n, sum) = values.fold((0u64, 0.0), |(n, sum), value| (n + 1, sum + value));
    if n == 0 { 0.0 } else { sum / n as f64 }
}

#[cfg(test)]
mod tests {
    use stillroom_corpus::verify::numeric_answer::NumericAnswer;

    use super::*;

    fn trace(sample: u32, content: &str) -> Trace {
        Trace {
            id: "p".into(),
            sample,
            messages: vec![],
            reasoning_content: None,
            content: content.into(),
            finish_reason: FinishReason::Stop,
            prompt_tokens: 1,
            completion_tokens: 1,
            teacher: "t".into(),
            usd: 0.0,
        }
    }

    fn prompt() -> Prompt {
        let messages = vec![Message::new(Role::User, "2 + 2?")];
        Prompt { id: "p".into(), messages, answer: Some("4".into()), target: None }
    }

    #[test]
    fn the_best_and_the_worst_make_a_pair_where_they_differ_enough() {
        let (prompt, traces) = (prompt(), [trace(0, "4"), trace(1, "5"), trace(2, "four"), trace(3, "5")]);
        let of = |grades: [f64; 4], margin| {
            let judged = [Judged { prompt: &prompt, replies: traces.iter().collect() }];
            let pairs = pairs(&judged, &[grades.to_vec()], margin);
            pairs.first().map(|pair| (pair.chosen_sample, pair.rejected_sample))
        };
        assert_eq!(of([3.0, 1.0, 4.0, 1.0], 1.0), Some((2, 1)));
        assert_eq!(of([3.0, 1.0, 4.0, 1.0], 3.5), None);
        assert_eq!(of([2.0; 4], 0.0), None);
        assert_eq!(of([2.0, 3.0, 2.5, 1.0], 0.0), None, "the same words twice");
    }

    #[test]
    fn a_judge_agrees_with_the_verifier_where_it_prefers_what_is_right() {
        let (prompt, traces) = (prompt(), [trace(0, "4"), trace(1, "5"), trace(2, "6"), trace(3, "so 4")]);
        let judged = [Judged { prompt: &prompt, replies: traces.iter().collect() }];
        let of = |grades: [f64; 4]| agreement(&judged, &[grades.to_vec()], &NumericAnswer);
        assert_eq!(of([2.0, 1.0, 1.0, 3.0]), Some(Agreement { comparisons: 4, share: 1.0 }));
        assert_eq!(of([2.0, 2.0, 3.0, 1.0]), Some(Agreement { comparisons: 4, share: 0.125 }));
        let right = [Judged { prompt: &prompt, replies: vec![&traces[0], &traces[3]] }];
        assert_eq!(agreement(&right, &[vec![1.0, 2.0]], &NumericAnswer), None);
    }

    #[test]
    fn every_two_are_compared_in_both_orders() {
        let all: Vec<(usize, usize)> = comparisons(3).collect();
        assert_eq!(all, [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]);
        assert_eq!(comparisons(1).count(), 0);
    }
}

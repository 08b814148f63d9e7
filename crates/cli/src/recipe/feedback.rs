//! The table `[feedback]`: who judges replies, and how.

use serde::Serialize;

use super::raw::RawFeedback;
use super::resolve::{Checker, first_given};
use super::{Curate, PromptSource, Prompts, Select, Teacher, TeacherKind, Train, VerifierChoice};
use crate::failure::Result;

/// Grades have one digit, which is one token in the vocabularies that we know.
const GRADES: std::ops::RangeInclusive<usize> = 2..=9;
const RUBRIC_BYTES_MAX: usize = 1 << 14;
const RUBRIC: &str = "Judge whether the answer is correct, complete and to the point.";

/// Replies that are judged, by whom, and what a preference takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Feedback {
    pub(crate) judge: Judge,
    pub(crate) candidates: Candidates,
    /// Least difference of two grades at which the better is preferred: points for `grade`, and shares of 1 for
    /// the others.
    pub(crate) margin: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "form", rename_all = "snake_case")]
pub(crate) enum Judge {
    /// The task's verifier: 1 for a right reply, 0 for a wrong one.
    Verified,
    /// The teacher gives 1 to `best` points.
    Grade { rubric: String, best: u32 },
    /// The teacher compares each two replies, in both orders; a reply's grade is the mean probability that it is
    /// preferred.
    Preference { rubric: String },
    /// The teacher says what is wrong with a reply and revises it; the revision is preferred.
    Revision { rubric: String },
}

/// Whose replies are judged.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub(crate) enum Candidates {
    /// The teacher's traces.
    Teacher,
    /// What the student writes before it is trained.
    Student { samples_per_prompt: u32, max_tokens: usize, temperature: f64, top_p: f64, seed: u64 },
}

#[derive(Clone, Copy)]
enum Form {
    Verified,
    Grade,
    Preference,
    Revision,
}

fn key(name: &'static str) -> [&'static str; 2] {
    ["feedback", name]
}

pub(super) fn feedback(
    at: &Checker<'_>,
    raw: RawFeedback,
    teacher: Option<&Teacher>,
    prompts: &Prompts,
    seed: u64,
) -> Result<Feedback> {
    let forms = [
        ("verified", Form::Verified),
        ("grade", Form::Grade),
        ("preference", Form::Preference),
        ("revision", Form::Revision),
    ];
    let fix = "write `form = \"verified\"`, `\"grade\"`, `\"preference\"` or `\"revision\"`";
    let form = at.choose(&key("form"), &at.need(&key("form"), raw.form.clone(), fix)?, &forms)?;
    // A revision is a pair already.
    let samples = if matches!(form, Form::Revision) { 1 } else { 4 };
    let candidates = candidates(at, &raw, teacher, samples, seed)?;
    let judge = judge(at, &raw, form, teacher, prompts)?;
    if let (Judge::Revision { .. }, Some(_)) = (&judge, raw.margin) {
        return Err(at.bad(&key("margin"), "a revision has no grade to differ by").fix("remove it"));
    }
    let (usual, most) = match &judge {
        Judge::Verified | Judge::Revision { .. } => (0.5, 1.0),
        Judge::Grade { best, .. } => (1.0, f64::from(*best)),
        Judge::Preference { .. } => (0.1, 1.0),
    };
    let margin = at.number(&key("margin"), raw.margin.unwrap_or(usual), 0.0..=most)?;
    Ok(Feedback { judge, candidates, margin })
}

/// Refuses feedback that nobody uses, and use of feedback that there is none of.
pub(super) fn check_use(
    at: &Checker<'_>,
    feedback: Option<&Feedback>,
    curate: &Curate,
    train: &Train,
    prompts: &Prompts,
) -> Result<()> {
    let graded = curate.select == Select::BestOfN;
    let revised = curate.select == Select::Revised;
    if curate.select == Select::Majority
        && !prompts.verifier.as_ref().is_some_and(VerifierChoice::finds_answers)
    {
        return Err(at
            .bad(&["curate", "select"], "votes are of answers, which only a verifier finds in a reply")
            .fix("name one as `prompts.verifier` that does, for example `numeric_answer`"));
    }
    let Some(feedback) = feedback else {
        let add = "add a table `[feedback]`, for example with `form = \"verified\"`";
        if train.learns_preferences() {
            let keys = ["train", "loss_functions"];
            return Err(at.bad(&keys, "`dpo` learns from pairs that somebody judged").fix(add));
        }
        if graded {
            return Err(at
                .bad(&["curate", "select"], "the best of n is the one with the best grade")
                .fix(add));
        }
        if revised {
            return Err(at
                .bad(&["curate", "select"], "nobody revises the traces")
                .fix("add a table `[feedback]` with `form = \"revision\"` and `from = \"teacher\"`"));
        }
        return Ok(());
    };
    let revises = matches!(feedback.judge, Judge::Revision { .. });
    if revised && !revises || graded && revises {
        return Err(at
            .bad(&["curate", "select"], "grades are for `best_of_n`, revisions for `revised`")
            .fix("change `curate.select` or `feedback.form`"));
    }
    if matches!(prompts.source, PromptSource::Text { .. }) {
        return Err(at.bad(&["feedback"], "texts that are learned as they stand have no replies to judge"));
    }
    if (graded || revised) && feedback.candidates != Candidates::Teacher {
        return Err(at
            .bad(&key("from"), "what is learned is chosen among the teacher's traces")
            .fix("write `from = \"teacher\"`"));
    }
    if !graded && !revised && !train.learns_preferences() {
        let select = if revises { "revised" } else { "best_of_n" };
        let what = if revises { "revisions" } else { "grades" };
        return Err(at
            .bad(&["feedback"], format!("nothing of this recipe uses the {what}"))
            .fix(format!("write `curate.select = \"{select}\"`, or train on `{{ function = \"dpo\" }}`")));
    }
    Ok(())
}

fn judge(
    at: &Checker<'_>,
    raw: &RawFeedback,
    form: Form,
    teacher: Option<&Teacher>,
    prompts: &Prompts,
) -> Result<Judge> {
    if matches!(form, Form::Verified) {
        if prompts.verifier.is_none() {
            return Err(at
                .bad(&key("form"), "these prompts have no verifier")
                .fix("name one as `prompts.verifier`, or let the teacher judge: `form = \"grade\"`"));
        }
        if raw.rubric.is_some() || raw.best.is_some() {
            return Err(at.bad(&key("form"), "a verifier takes neither `rubric` nor `best`"));
        }
        return Ok(Judge::Verified);
    }
    if teacher.is_none_or(|teacher| teacher.kind != TeacherKind::Local) {
        return Err(at
            .bad(&key("form"), "the teacher judges, and there is none on this machine")
            .fix("add a `[teacher]` with `kind = \"local\"`, or write `form = \"verified\"`"));
    }
    let rubric = raw.rubric.clone().unwrap_or_else(|| RUBRIC.to_owned());
    if rubric.trim().is_empty() || rubric.len() > RUBRIC_BYTES_MAX {
        let cause = format!("`feedback.rubric` has 1 to {RUBRIC_BYTES_MAX} bytes");
        return Err(at.bad(&key("rubric"), cause));
    }
    if matches!(form, Form::Grade) {
        let best = at.count(&key("best"), raw.best.unwrap_or(5) as usize, GRADES)? as u32;
        return Ok(Judge::Grade { rubric, best });
    }
    if raw.best.is_some() {
        return Err(at.bad(&key("best"), "`best` is for `form = \"grade\"`").fix("remove it"));
    }
    Ok(if matches!(form, Form::Revision) { Judge::Revision { rubric } } else { Judge::Preference { rubric } })
}

fn candidates(
    at: &Checker<'_>,
    raw: &RawFeedback,
    teacher: Option<&Teacher>,
    samples: u32,
    seed: u64,
) -> Result<Candidates> {
    let from = [("teacher", false), ("student", true)];
    let student = at.choose(&key("from"), raw.from.as_deref().unwrap_or("student"), &from)?;
    if student {
        let samples = raw.samples_per_prompt.unwrap_or(samples) as usize;
        return Ok(Candidates::Student {
            samples_per_prompt: at.count(&key("samples_per_prompt"), samples, 1..=4096)? as u32,
            max_tokens: at.count(&key("max_tokens"), raw.max_tokens.unwrap_or(512), 1..=1 << 20)?,
            temperature: at.number(&key("temperature"), raw.temperature.unwrap_or(1.0), 0.0..=100.0)?,
            top_p: at.number(&key("top_p"), raw.top_p.unwrap_or(1.0), 1e-6..=1.0)?,
            seed: raw.seed.unwrap_or(seed),
        });
    }
    let given = [
        ("samples_per_prompt", raw.samples_per_prompt.is_some()),
        ("max_tokens", raw.max_tokens.is_some()),
        ("temperature", raw.temperature.is_some()),
        ("top_p", raw.top_p.is_some()),
        ("seed", raw.seed.is_some()),
    ];
    if let Some(name) = first_given(given) {
        return Err(at
            .bad(&key(name), format!("`feedback.{name}` is for `from = \"student\"`"))
            .fix(format!("set `teacher.{name}`, or write `from = \"student\"`")));
    }
    if teacher.is_none() {
        return Err(at.bad(&key("from"), "there is no teacher whose replies could be judged"));
    }
    Ok(Candidates::Teacher)
}

//! `report.json`: everything that a run has to say for itself.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use stillroom_core::statistics::Estimate;
use stillroom_core::{Digest, Tail};

use crate::checks::Checks;
use crate::error::EvaluateError;
use crate::machine::MachineFacts;
use crate::measurement::{Comparison, Metric};
use crate::own_text::OwnTextScore;
use crate::score::ModelScore;

/// Version of the JSON's shape; it grows when a field changes its meaning or goes away.
pub const REPORT_VERSION: u32 = 1;

/// Largest `report.json` that is read.
pub const REPORT_BYTES_MAX: usize = 256 << 20;

/// Which model of a run. The order is that of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Contender {
    Teacher,
    Student,
    /// Control: the teacher's text with hard labels, none of its distributions.
    TracesOnly,
    /// Control: the data's own targets, nothing from the teacher.
    Undistilled,
    /// The same control, trained until it has seen as many tokens as the student.
    UndistilledEqualTokens,
    /// The student's initial weights.
    Untrained,
}

impl Contender {
    pub const ALL: [Contender; 6] = [
        Contender::Teacher,
        Contender::Student,
        Contender::TracesOnly,
        Contender::Undistilled,
        Contender::UndistilledEqualTokens,
        Contender::Untrained,
    ];

    /// The name in JSON.
    pub fn key(self) -> &'static str {
        match self {
            Contender::Teacher => "teacher",
            Contender::Student => "student",
            Contender::TracesOnly => "traces_only",
            Contender::Undistilled => "undistilled",
            Contender::UndistilledEqualTokens => "undistilled_equal_tokens",
            Contender::Untrained => "untrained",
        }
    }

    /// The name for people.
    pub fn label(self) -> &'static str {
        match self {
            Contender::Teacher => "Teacher",
            Contender::Student => "Student",
            Contender::TracesOnly => "Traces only",
            Contender::Undistilled => "Undistilled",
            Contender::UndistilledEqualTokens => "Undistilled, equal tokens",
            Contender::Untrained => "Untrained",
        }
    }
}

/// Two models compared: `student_minus_undistilled` in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair {
    pub first: Contender,
    pub second: Contender,
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{MINUS}{}", self.first.key(), self.second.key())
    }
}

const MINUS: &str = "_minus_";

impl Serialize for Pair {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Pair {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pair, D::Error> {
        let text = String::deserialize(deserializer)?;
        let contender = |key: &str| Contender::ALL.into_iter().find(|c| c.key() == key);
        text.split_once(MINUS)
            .and_then(|(first, second)| Some(Pair { first: contender(first)?, second: contender(second)? }))
            .ok_or_else(|| serde::de::Error::custom(format!("`{text}` names no two models")))
    }
}

/// `report.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub report_version: u32,
    /// Of the program that wrote it.
    pub stillroom_version: String,
    /// Name of the recipe.
    pub recipe: String,
    /// When the report was written, RFC 3339.
    pub created: String,
    /// Cut short on purpose: nothing in it is a result.
    pub trial: bool,
    /// Name of the task or data set.
    pub task: String,
    /// What the task is and how replies are graded, for a reader who does not know it.
    pub task_description: String,
    /// What the losses are measured on: `the teacher's replies to the held-out prompts`.
    pub heldout_text: String,
    pub heldout_examples: u64,
    pub models: BTreeMap<Contender, ModelScore>,
    /// Student ÷ teacher accuracy.
    pub accuracy_retained: Option<Estimate>,
    pub paired: BTreeMap<Pair, BTreeMap<Metric, Comparison>>,
    /// How far each model is from the teacher on what it writes itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub own_text: BTreeMap<Contender, OwnTextScore>,
    pub checks: Checks,
    pub curves: Vec<Curve>,
    pub stages: Vec<StageTime>,
    pub licence: Option<LicenceDecision>,
    pub corpus: CorpusFacts,
    pub cache: Option<CacheFacts>,
    pub machine: MachineFacts,
    pub seeds: BTreeMap<String, u64>,
    /// Held-out problems side by side: the first ones, never chosen by outcome.
    pub examples: Vec<Sample>,
    /// SHA-256 of what went in and came out: recipe, binary, teacher, data, student.
    pub digests: BTreeMap<String, Digest>,
}

/// Losses of one training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    pub model: Contender,
    /// What the loss is: `forward_kl + 0.1 hard_labels, nats per supervised token`.
    pub loss: String,
    pub points: Vec<CurvePoint>,
    /// The step whose weights were kept.
    pub best_step: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    pub step: u64,
    pub tokens: u64,
    pub train_loss: Option<f64>,
    pub validation_loss: Option<f64>,
    /// Each loss of the weighted sum apart, unweighted, where there are several.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub train_terms: BTreeMap<String, f64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub validation_terms: BTreeMap<String, f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageTime {
    pub stage: String,
    pub wall_s: f64,
    /// Its outputs were there already.
    pub skipped: bool,
}

/// What the licence gate decided, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LicenceDecision {
    /// `allow`, `conditional`, `deny` or `unknown`.
    pub verdict: String,
    pub rules: Vec<LicenceRule>,
    /// Conditions that the recipe accepts.
    #[serde(default)]
    pub accepted: Vec<String>,
    /// The reason for which a closed gate was opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overridden: Option<String>,
    /// `local`, `listed` or `any`.
    #[serde(default)]
    pub egress: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LicenceRule {
    pub release: String,
    pub licence: String,
    #[serde(default)]
    pub clause: Option<String>,
    #[serde(default)]
    pub evidence: Option<String>,
    pub says: String,
    #[serde(default)]
    pub obliges: Vec<String>,
}

/// Where the training data came from and what became of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CorpusFacts {
    pub train_prompts: u64,
    pub validation_prompts: u64,
    /// Traces that the teacher wrote.
    pub traces_bought: u64,
    pub traces_kept: u64,
    /// Of those kept, how many carry reasoning.
    pub traces_with_reasoning: u64,
    /// Traces dropped, by reason.
    pub rejected: BTreeMap<String, u64>,
    /// Supervised tokens of the kept traces.
    pub supervised_tokens: u64,
    /// Training examples that also stood in the held-out set and were dropped.
    pub heldout_overlaps: u64,
    /// Paid to the teacher.
    pub teacher_usd: Option<f64>,
    /// What judging replies came to, where they were judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feedback: Option<FeedbackFacts>,
}

/// Replies that were judged, and the pairs made of better and worse ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FeedbackFacts {
    /// Replies judged; those that were cut off or empty are not.
    pub judged: u64,
    pub prompts: u64,
    /// Where replies are graded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_grade: Option<f64>,
    /// To learn from.
    pub pairs: u64,
    pub validation_pairs: u64,
    /// How much more probable than ½ the judge's preference for the reply that it reads first is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position_bias: Option<f64>,
    /// Beside the task's verifier, where there is one and a model judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
    /// Where replies are revised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<RevisionFacts>,
}

/// Revisions by the teacher.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RevisionFacts {
    /// Replies with a revision that has an end.
    pub revised: u64,
    /// Of these, revisions that say the same.
    pub unchanged: u64,
    /// Of these, right ones to the task's verifier: replies before, and after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub right: Option<[u64; 2]>,
}

/// Of two replies to one prompt, one right and one wrong to the verifier: how often the judge prefers the right one;
/// equal grades count one half.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    pub comparisons: u64,
    pub share: f64,
}

/// The teacher's distributions as they were kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CacheFacts {
    pub positions: u64,
    pub bytes: u64,
    pub bytes_per_token: f64,
    /// Mean number of distinct token ids kept per position.
    pub unique_ids_mean: f64,
    /// Draws per position, for random sampling.
    pub draws: Option<u32>,
    /// Likeliest ids per position, for top-K.
    pub top_k: Option<u32>,
    pub tail: Tail,
    pub temperature: f64,
}

/// A held-out problem and what each model replied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub id: String,
    pub problem: String,
    pub answer: Option<String>,
    pub replies: BTreeMap<Contender, SampleReply>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleReply {
    pub text: String,
    pub correct: Option<bool>,
}

impl Report {
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a report has only types that JSON knows") + "\n"
    }

    pub fn from_json(text: &str) -> Result<Report, EvaluateError> {
        let bad = |reason: String| EvaluateError::BadReport { reason };
        if text.len() > REPORT_BYTES_MAX {
            return Err(bad(format!("{} bytes are more than {REPORT_BYTES_MAX}", text.len())));
        }
        let report: Report = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
        if report.report_version != REPORT_VERSION {
            return Err(bad(format!("version {} is not {REPORT_VERSION}", report.report_version)));
        }
        Ok(report)
    }

    /// The comparison of two models by a metric, where it was made.
    pub fn comparison(&self, first: Contender, second: Contender, metric: Metric) -> Option<&Comparison> {
        self.paired.get(&Pair { first, second })?.get(&metric)
    }
}

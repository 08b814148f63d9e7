//! What is measured of one model on the held-out examples, item by item, and what follows from it.
//!
//! A [`Measurement`] is what a run directory keeps: every number of a report is computed from
//! such rows by [`Measurement::score`], [`compare`] and [`accuracy_retained`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stillroom_core::statistics::{
    CONFIDENCE_95, ClusterSum, Estimate, PairedOutcomes, bootstrap_interval, clustered_mean, wilson_interval,
};
use stillroom_core::{Message, Prompt};

use crate::error::EvaluateError;
use crate::measured::Measured;
use crate::score::{ModelScore, TrainingFacts};

/// One reply, graded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grade {
    /// Id of the held-out prompt.
    pub id: String,
    pub correct: bool,
    /// Why, as the verifier says it.
    pub reason: String,
}

/// Loss of one held-out document, summed over its supervised tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DocumentLoss {
    pub id: String,
    /// Supervised tokens.
    pub tokens: u64,
    /// UTF-8 bytes of the supervised text, the same for every tokenizer.
    pub bytes: u64,
    /// Σ −ln p(token), in nats.
    pub nats: f64,
}

/// KL(teacher‖model) on one held-out document, summed over its supervised positions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DocumentDivergence {
    pub id: String,
    pub tokens: u64,
    /// Σ KL(teacher‖model), in nats, over the whole vocabulary.
    pub nats: f64,
}

/// Tokens written and the time that took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Throughput {
    pub tokens: u64,
    pub seconds: f64,
}

/// Everything that was measured of one model, item by item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// How the model is named: an ID, or how it came about.
    pub model: String,
    pub parameters: Measured<u64>,
    pub training: Option<TrainingFacts>,
    /// In the order of the held-out prompts.
    pub grades: Measured<Vec<Grade>>,
    pub losses: Measured<Vec<DocumentLoss>>,
    pub divergences: Measured<Vec<DocumentDivergence>>,
    /// Of writing the graded replies.
    pub generation: Measured<Throughput>,
    /// Energy of writing the graded replies.
    pub joules: Measured<f64>,
    /// Money for the graded replies.
    pub usd: Measured<f64>,
}

/// Grades replies to held-out prompts with any judge: `(prompt, reply) → (correct, reason)`.
///
/// The replies stand in the prompts' order.
pub fn grade_replies(
    prompts: &[Prompt],
    replies: &[Message],
    judge: &mut dyn FnMut(&Prompt, &Message) -> (bool, String),
) -> Result<Vec<Grade>, EvaluateError> {
    if prompts.len() != replies.len() {
        return Err(EvaluateError::DifferentCounts {
            what: "prompts",
            first_count: prompts.len(),
            second_count: replies.len(),
        });
    }
    let graded = prompts.iter().zip(replies).map(|(prompt, reply)| {
        let (correct, reason) = judge(prompt, reply);
        Grade { id: prompt.id.clone(), correct, reason }
    });
    Ok(graded.collect())
}

impl Measurement {
    /// The figures of the report.
    pub fn score(&self) -> ModelScore {
        let correct = self.grades.value().map(|grades| count_correct(grades));
        let per_correct = |total: &Measured<f64>, times: f64| {
            let (Some(n), total) = (correct, total) else {
                return Measured::not_measured(self.grades.reason().unwrap_or_default());
            };
            total.and_then(|&total| Measured::ratio(total * times, n as f64, "no reply was right"))
        };
        ModelScore {
            model: self.model.clone(),
            parameters: self.parameters.clone(),
            training: self.training.clone(),
            graded: self.grades.value().map(|grades| grades.len() as u64),
            correct,
            accuracy: self.grades.and_then(|grades| {
                Measured::ratio(count_correct(grades) as f64, grades.len() as f64, "no held-out prompt")
            }),
            accuracy_ci95: self.grades.and_then(|grades| {
                match wilson_interval(count_correct(grades), grades.len() as u64, CONFIDENCE_95) {
                    Some(interval) => Measured::Value(interval),
                    None => Measured::not_measured("no held-out prompt"),
                }
            }),
            nll_nats_per_token: self.losses.and_then(|losses| {
                let (nats, tokens, _) = sum_losses(losses);
                Measured::ratio(nats, tokens, "no supervised token or no finite loss")
            }),
            bits_per_byte: self.losses.and_then(|losses| {
                let (nats, _, bytes) = sum_losses(losses);
                Measured::ratio(nats / std::f64::consts::LN_2, bytes, "no supervised text or no finite loss")
            }),
            kl_to_teacher: self.divergences.and_then(|rows| {
                let tokens: u64 = rows.iter().map(|row| row.tokens).sum();
                let nats: f64 = rows.iter().map(|row| row.nats).sum();
                Measured::ratio(nats, tokens as f64, "no supervised token or no finite divergence")
            }),
            tokens_per_second: self.generation.and_then(|throughput| {
                Measured::ratio(throughput.tokens as f64, throughput.seconds, "nothing was generated")
            }),
            usd_per_1k_correct: per_correct(&self.usd, 1_000.0),
            joules_per_correct: per_correct(&self.joules, 1.0),
        }
    }
}

fn count_correct(grades: &[Grade]) -> u64 {
    grades.iter().filter(|grade| grade.correct).count() as u64
}

/// Nats, tokens, bytes.
fn sum_losses(losses: &[DocumentLoss]) -> (f64, f64, f64) {
    losses.iter().fold((0.0, 0.0, 0.0), |(nats, tokens, bytes), row| {
        (nats + row.nats, tokens + row.tokens as f64, bytes + row.bytes as f64)
    })
}

/// What two models are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of held-out prompts answered rightly.
    Accuracy,
    /// KL(teacher‖model), nats per supervised token.
    KlToTeacher,
    /// Loss on the held-out documents, nats per supervised token.
    NllNatsPerToken,
}

impl Metric {
    pub fn higher_is_better(self) -> bool {
        self == Metric::Accuracy
    }
}

/// What a paired interval allows to be said about the first model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Claim {
    Better,
    Worse,
    /// The interval holds 0.
    NoClaim,
}

/// First minus second on the same items.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    pub difference: f64,
    pub ci95: stillroom_core::statistics::Interval,
    pub claim: Claim,
    /// Paired items: prompts for accuracy, documents for losses.
    pub items: u64,
    /// How the interval was made.
    pub method: String,
    /// Who was right where, for accuracy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcomes: Option<PairedOutcomes>,
    /// McNemar's exact p, for accuracy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p_value: Option<f64>,
}

impl Comparison {
    fn new(metric: Metric, estimate: Estimate, items: usize, method: &str) -> Comparison {
        let (low, high) = (estimate.interval.low, estimate.interval.high);
        let claim = match metric.higher_is_better() {
            _ if low <= 0.0 && 0.0 <= high => Claim::NoClaim,
            higher_is_better if higher_is_better == (low > 0.0) => Claim::Better,
            _ => Claim::Worse,
        };
        Comparison {
            difference: estimate.value,
            ci95: estimate.interval,
            claim,
            items: items as u64,
            method: method.into(),
            outcomes: None,
            p_value: None,
        }
    }
}

/// Compares two models on every metric that both were measured by, item by item.
///
/// Accuracy: Tango's score interval and McNemar's exact test. Losses: mean difference per token,
/// standard errors clustered by document. A metric that one side lacks, or that has too few
/// items for an interval, is left out; sides that were measured on different items are an error.
pub fn compare(
    first: &Measurement,
    second: &Measurement,
) -> Result<BTreeMap<Metric, Comparison>, EvaluateError> {
    let mut found = BTreeMap::new();
    if let (Some(a), Some(b)) = (first.grades.value(), second.grades.value()) {
        found.extend(compare_grades(a, b)?.map(|comparison| (Metric::Accuracy, comparison)));
    }
    if let (Some(a), Some(b)) = (first.losses.value(), second.losses.value()) {
        let rows = |side: &[DocumentLoss]| -> Vec<Row> {
            side.iter().map(|r| Row { id: r.id.clone(), units: r.tokens, total: r.nats }).collect()
        };
        let comparison = compare_rows(Metric::NllNatsPerToken, &rows(a), &rows(b))?;
        found.extend(comparison.map(|comparison| (Metric::NllNatsPerToken, comparison)));
    }
    if let (Some(a), Some(b)) = (first.divergences.value(), second.divergences.value()) {
        let rows = |side: &[DocumentDivergence]| -> Vec<Row> {
            side.iter().map(|r| Row { id: r.id.clone(), units: r.tokens, total: r.nats }).collect()
        };
        let comparison = compare_rows(Metric::KlToTeacher, &rows(a), &rows(b))?;
        found.extend(comparison.map(|comparison| (Metric::KlToTeacher, comparison)));
    }
    Ok(found)
}

/// The same prompts in the same order?
fn check_same<'a>(
    what: &'static str,
    first: impl ExactSizeIterator<Item = &'a String>,
    second: impl ExactSizeIterator<Item = &'a String>,
) -> Result<(), EvaluateError> {
    let (first_count, second_count) = (first.len(), second.len());
    if first_count != second_count {
        return Err(EvaluateError::DifferentCounts { what, first_count, second_count });
    }
    match first.zip(second).enumerate().find(|(_, (a, b))| a != b) {
        None => Ok(()),
        Some((index, (a, b))) => {
            Err(EvaluateError::DifferentItems { what, index, first_id: a.clone(), second_id: b.clone() })
        }
    }
}

fn paired_outcomes(first: &[Grade], second: &[Grade]) -> Result<PairedOutcomes, EvaluateError> {
    check_same("prompt", first.iter().map(|g| &g.id), second.iter().map(|g| &g.id))?;
    let correct = |side: &[Grade]| -> Vec<bool> { side.iter().map(|grade| grade.correct).collect() };
    Ok(PairedOutcomes::count(&correct(first), &correct(second)))
}

fn compare_grades(first: &[Grade], second: &[Grade]) -> Result<Option<Comparison>, EvaluateError> {
    let outcomes = paired_outcomes(first, second)?;
    let (Some(value), Some(interval)) = (outcomes.difference(), outcomes.difference_interval(CONFIDENCE_95))
    else {
        return Ok(None);
    };
    let estimate = Estimate { value, interval };
    let comparison = Comparison::new(Metric::Accuracy, estimate, first.len(), "Tango 1998 paired score");
    Ok(Some(Comparison { outcomes: Some(outcomes), p_value: Some(outcomes.mcnemar_exact_p()), ..comparison }))
}

/// A sum over the units of one document.
struct Row {
    id: String,
    units: u64,
    total: f64,
}

fn compare_rows(metric: Metric, first: &[Row], second: &[Row]) -> Result<Option<Comparison>, EvaluateError> {
    let estimate = paired_drop(first, second)?;
    Ok(estimate.map(|e| Comparison::new(metric, e, first.len(), "paired t, clustered by document")))
}

/// Mean of first − second per unit, clustered by document.
fn paired_drop(first: &[Row], second: &[Row]) -> Result<Option<Estimate>, EvaluateError> {
    check_same("document", first.iter().map(|r| &r.id), second.iter().map(|r| &r.id))?;
    let mut clusters = Vec::with_capacity(first.len());
    for (a, b) in first.iter().zip(second) {
        if a.units != b.units {
            return Err(EvaluateError::DifferentUnits {
                id: a.id.clone(),
                first_units: a.units,
                second_units: b.units,
            });
        }
        if !(a.total.is_finite() && b.total.is_finite()) {
            return Err(EvaluateError::NotFinite { what: "loss", id: a.id.clone() });
        }
        clusters.push(ClusterSum { total: a.total - b.total, units: a.units });
    }
    Ok(clustered_mean(&clusters, CONFIDENCE_95))
}

/// Paired drop of the held-out loss, initial − trained, in nats per token.
pub(crate) fn loss_drop(
    initial: &[DocumentLoss],
    trained: &[DocumentLoss],
) -> Result<Option<Estimate>, EvaluateError> {
    let rows = |side: &[DocumentLoss]| -> Vec<Row> {
        side.iter().map(|r| Row { id: r.id.clone(), units: r.tokens, total: r.nats }).collect()
    };
    paired_drop(&rows(initial), &rows(trained))
}

/// Share of the teacher's accuracy that the student reaches, with a percentile bootstrap
/// interval over the prompts; `None` where either was not graded or the teacher is never right.
pub fn accuracy_retained(
    student: &Measurement,
    teacher: &Measurement,
    seed: u64,
) -> Result<Option<Estimate>, EvaluateError> {
    let (Some(of_student), Some(of_teacher)) = (student.grades.value(), teacher.grades.value()) else {
        return Ok(None);
    };
    paired_outcomes(of_student, of_teacher)?;
    let share = |indices: &mut dyn Iterator<Item = usize>| {
        let (mut right, mut taught) = (0u32, 0u32);
        for index in indices {
            right += u32::from(of_student[index].correct);
            taught += u32::from(of_teacher[index].correct);
        }
        (taught > 0).then(|| f64::from(right) / f64::from(taught))
    };
    let Some(value) = share(&mut (0..of_student.len())) else { return Ok(None) };
    let mut statistic = |indices: &[usize]| share(&mut indices.iter().copied());
    let interval =
        bootstrap_interval(of_student.len(), BOOTSTRAP_RESAMPLES, seed, CONFIDENCE_95, &mut statistic);
    Ok(interval.map(|interval| Estimate { value, interval }))
}

const BOOTSTRAP_RESAMPLES: u32 = 2_000;

//! The figures of one model, as `report.json` has them.

use serde::{Deserialize, Serialize};
use stillroom_core::statistics::Interval;

use crate::measured::Measured;

/// What training a model took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingFacts {
    pub steps: u64,
    /// Tokens that passed through the model, prompts included.
    pub tokens: u64,
    pub wall_s: f64,
    /// The step whose weights were kept, where that was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_step: Option<u64>,
}

/// Figures of one model on the held-out examples.
///
/// In JSON a figure that was not measured is `null` and has its reason beside it, under the same
/// name with `_reason`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "ScoreWire", into = "ScoreWire")]
pub struct ModelScore {
    pub model: String,
    pub parameters: Measured<u64>,
    pub training: Option<TrainingFacts>,
    /// Replies graded, and how many of them are right.
    pub graded: Option<u64>,
    pub correct: Option<u64>,
    pub accuracy: Measured<f64>,
    /// Wilson's interval.
    pub accuracy_ci95: Measured<Interval>,
    /// Mean loss per supervised token of the held-out documents.
    pub nll_nats_per_token: Measured<f64>,
    /// The same loss in bits per byte of text, comparable across tokenizers.
    pub bits_per_byte: Measured<f64>,
    /// Mean KL(teacher‖model) per supervised token, nats.
    pub kl_to_teacher: Measured<f64>,
    /// While writing the graded replies, all requests together.
    pub tokens_per_second: Measured<f64>,
    pub usd_per_1k_correct: Measured<f64>,
    pub joules_per_correct: Measured<f64>,
}

/// [`ModelScore`] in JSON.
#[derive(Clone, Serialize, Deserialize)]
struct ScoreWire {
    model: String,
    parameters: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parameters_reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    training: Option<TrainingFacts>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    graded: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    correct: Option<u64>,
    accuracy: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    accuracy_reason: Option<String>,
    accuracy_ci95: Option<Interval>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    accuracy_ci95_reason: Option<String>,
    nll_nats_per_token: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nll_nats_per_token_reason: Option<String>,
    bits_per_byte: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bits_per_byte_reason: Option<String>,
    kl_to_teacher: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kl_to_teacher_reason: Option<String>,
    tokens_per_second: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tokens_per_second_reason: Option<String>,
    usd_per_1k_correct: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    usd_per_1k_correct_reason: Option<String>,
    joules_per_correct: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    joules_per_correct_reason: Option<String>,
}

fn split<T>(measured: Measured<T>) -> (Option<T>, Option<String>) {
    match measured {
        Measured::Value(value) => (Some(value), None),
        Measured::NotMeasured(reason) => (None, Some(reason)),
    }
}

fn join<T>(value: Option<T>, reason: Option<String>) -> Measured<T> {
    match value {
        Some(value) => Measured::Value(value),
        None => Measured::NotMeasured(reason.unwrap_or_else(|| "no reason was recorded".into())),
    }
}

impl From<ModelScore> for ScoreWire {
    fn from(score: ModelScore) -> ScoreWire {
        let (parameters, parameters_reason) = split(score.parameters);
        let (accuracy, accuracy_reason) = split(score.accuracy);
        let (accuracy_ci95, accuracy_ci95_reason) = split(score.accuracy_ci95);
        let (nll_nats_per_token, nll_nats_per_token_reason) = split(score.nll_nats_per_token);
        let (bits_per_byte, bits_per_byte_reason) = split(score.bits_per_byte);
        let (kl_to_teacher, kl_to_teacher_reason) = split(score.kl_to_teacher);
        let (tokens_per_second, tokens_per_second_reason) = split(score.tokens_per_second);
        let (usd_per_1k_correct, usd_per_1k_correct_reason) = split(score.usd_per_1k_correct);
        let (joules_per_correct, joules_per_correct_reason) = split(score.joules_per_correct);
        ScoreWire {
            model: score.model,
            parameters,
            parameters_reason,
            training: score.training,
            graded: score.graded,
            correct: score.correct,
            accuracy,
            accuracy_reason,
            accuracy_ci95,
            accuracy_ci95_reason,
            nll_nats_per_token,
            nll_nats_per_token_reason,
            bits_per_byte,
            bits_per_byte_reason,
            kl_to_teacher,
            kl_to_teacher_reason,
            tokens_per_second,
            tokens_per_second_reason,
            usd_per_1k_correct,
            usd_per_1k_correct_reason,
            joules_per_correct,
            joules_per_correct_reason,
        }
    }
}

impl From<ScoreWire> for ModelScore {
    fn from(wire: ScoreWire) -> ModelScore {
        ModelScore {
            model: wire.model,
            parameters: join(wire.parameters, wire.parameters_reason),
            training: wire.training,
            graded: wire.graded,
            correct: wire.correct,
            accuracy: join(wire.accuracy, wire.accuracy_reason),
            accuracy_ci95: join(wire.accuracy_ci95, wire.accuracy_ci95_reason),
            nll_nats_per_token: join(wire.nll_nats_per_token, wire.nll_nats_per_token_reason),
            bits_per_byte: join(wire.bits_per_byte, wire.bits_per_byte_reason),
            kl_to_teacher: join(wire.kl_to_teacher, wire.kl_to_teacher_reason),
            tokens_per_second: join(wire.tokens_per_second, wire.tokens_per_second_reason),
            usd_per_1k_correct: join(wire.usd_per_1k_correct, wire.usd_per_1k_correct_reason),
            joules_per_correct: join(wire.joules_per_correct, wire.joules_per_correct_reason),
        }
    }
}

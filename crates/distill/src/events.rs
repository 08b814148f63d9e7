//! What training tells while it runs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stillroom_core::Digest;

use crate::{PreferenceMeans, RolloutMeans, RolloutPoint, TrainPlan};

/// Something that happened in training, as `events.jsonl` records it.
///
/// After [`TrainEvent::Resumed`] the steps behind the checkpoint happen again: points of later steps
/// that were recorded before are void (and equal, but for the speed).
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum TrainEvent {
    /// Before the first step.
    Planned(TrainPlan),
    /// A checkpoint that could not be used.
    CheckpointSkipped { name: String, reason: String },
    /// Training goes on behind this step, whose checkpoint has these files.
    Resumed { step: u64, files: BTreeMap<String, Digest> },
    /// A step is done; `digest` is of the texts that it learned from, in their order, with what a cache has of their
    /// teacher.
    Batch { step: u64, digest: Digest },
    /// Every `logging_steps`.
    Step(TrainPoint),
    /// Every `eval_steps`, before the first step and after the last.
    Validation(ValidationPoint),
    /// A checkpoint is about to be written: what is kept of the steps up to it should be durable first.
    Saving { step: u64 },
    /// A checkpoint is durable; `files` has the digest of each of its files, its state aside: that holds speeds, too.
    Checkpoint { step: u64, name: String, files: BTreeMap<String, Digest> },
    /// The last step is done; the weights of `chosen_step` are the result.
    Finished { steps: u64, tokens: u64, chosen_step: u64 },
}

/// Means over the supervised tokens since the last point, in nats per token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainPoint {
    /// Optimiser steps done.
    pub step: u64,
    /// Passes over the examples done.
    pub epoch: f64,
    /// The weighted sum that is minimised, with the weights of each step.
    pub loss: f64,
    /// Cross-entropy on the text's own tokens, whatever its weight.
    pub hard_label: f64,
    /// Each divergence that is trained on, unweighted and with its τ², under the name of its function; the
    /// second of one function has `_2` behind it.
    pub divergences: BTreeMap<String, f64>,
    /// Mean teacher probability of the tokens that the cache kept; 1 for random sampling and a live teacher.
    pub captured_mass: Option<f64>,
    /// Of the last step.
    pub learning_rate: f64,
    /// ‖gradient‖₂ of the last step, before clipping.
    pub grad_norm: f64,
    /// Steps since the last point whose gradient was clipped.
    pub clipped_steps: u64,
    /// Tokens seen since the start, masked ones included.
    pub tokens: u64,
    pub supervised_tokens: u64,
    /// Tokens per second of optimiser steps since the last point, the writing of rollouts included; validation and
    /// saving do not count.
    pub tokens_per_second: f64,
    /// What on-policy steps learned from; none where there was no such step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollouts: Option<RolloutPoint>,
    /// What `dpo` came to; then the losses are means over pairs, and `hard_label` is of the preferred replies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preferences: Option<PreferenceMeans>,
}

/// Means over the supervised tokens of the validation examples, in nats per token.
///
/// With an `on_policy_fraction` f the student continues the validation prompts, too, and each mean is f·(that over its
/// own tokens) + (1 − f)·(that over the examples' tokens), as training has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidationPoint {
    pub step: u64,
    pub tokens: u64,
    /// The same weighted sum as in training, always with the weights of the last step, so that points compare.
    pub loss: f64,
    pub hard_label: f64,
    pub divergences: BTreeMap<String, f64>,
    pub captured_mass: Option<f64>,
    /// The student's own continuations alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollouts: Option<RolloutMeans>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preferences: Option<PreferenceMeans>,
    /// Whether no earlier step (0 aside) had a loss as low.
    pub best: bool,
}

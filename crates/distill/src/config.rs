//! Settings of a training run, under the names that TRL and transformers use.

use serde::{Deserialize, Serialize};
use stillroom_core::{Digest, Tail};
use stillroom_model::AdamW;

use crate::hidden::AlignedLayers;
use crate::losses::{LossFunction, LossTerm, Losses, TeacherTargets, Text, check_losses};
use crate::{DistillError, OnPolicy, Result};

/// Epochs accepted at most.
const EPOCHS_MAX: f64 = 100_000.0;
/// Optimiser steps accepted at most.
const STEPS_MAX: u64 = 100_000_000;
/// Rows of a micro-batch and micro-batches of a step accepted at most.
const BATCH_MAX: usize = 1 << 16;
/// Tokens of a packed row accepted at most.
const LENGTH_MAX: usize = 1 << 20;

/// How the learning rate moves after its warm-up; see [`crate::learning_rate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchedulerType {
    #[serde(alias = "constant_with_warmup")]
    Constant,
    Linear,
    #[serde(alias = "cosine_with_min_lr")]
    Cosine,
}

/// What becomes of a document longer than `max_length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlong {
    /// Training does not start.
    Refuse,
    /// Its first `max_length` tokens are used, and counted; without a supervised one among them it is
    /// dropped, and counted.
    Truncate,
}

/// Settings of a training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Peak of the schedule.
    pub learning_rate: f64,
    pub lr_scheduler_type: SchedulerType,
    /// Share of all steps in which the rate rises from 0, rounded up to whole steps.
    pub warmup_ratio: f64,
    /// Where the rate ends, as a share of its peak.
    pub min_lr_ratio: f64,
    /// Passes over the examples; a fraction is a part of the last pass. Not used with `max_steps`.
    pub num_train_epochs: f64,
    /// Optimiser steps, whatever number of passes that takes.
    pub max_steps: Option<u64>,
    /// Packed rows in a micro-batch.
    pub per_device_train_batch_size: usize,
    /// Micro-batches in an optimiser step.
    pub gradient_accumulation_steps: usize,
    /// Tokens that a packed row holds.
    pub max_length: usize,
    /// Several documents in a row; else each has its own.
    pub packing: bool,
    pub overlong: Overlong,
    /// Decoupled weight decay, on matrices only.
    pub weight_decay: f64,
    pub adam_beta1: f64,
    pub adam_beta2: f64,
    pub adam_epsilon: f64,
    /// Gradients are scaled down to this global norm; 0 for never.
    pub max_grad_norm: f64,
    /// Seed of the order of examples.
    pub seed: u64,
    /// What is minimised, per supervised token: Σ weight·τ²·divergence, weight·(−log q(label)), and weight·`alm`.
    pub losses: Vec<LossTerm>,
    /// What stands for the teacher's mass outside the stored tokens; `none` for random sampling, and for a
    /// teacher that is live.
    pub tail: Tail,
    /// How many ids student and live teacher both have, where the paddings of their vocabularies differ; how many the student
    /// has, where its teacher has a vocabulary of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_ids: Option<usize>,
    /// Steps between checkpoints; 0 for the last only.
    pub save_steps: u64,
    /// Steps between validations; 0 for the last only.
    pub eval_steps: u64,
    /// Steps between logged points.
    pub logging_steps: u64,
    /// Checkpoints kept, the best on validation among them; 0 for all.
    pub save_total_limit: usize,
    /// Computes activations a second time instead of keeping them: less memory, more time, the same
    /// weights. See [`TrainState::with_gradient_checkpointing`](stillroom_model::TrainState::with_gradient_checkpointing).
    // Left out where it is off: digests of settings from before it existed stay what they were.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub gradient_checkpointing: bool,
    /// How the student writes texts to learn from; where it does not, all are given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_policy: Option<OnPolicy>,
    /// How the student's hidden states follow a live teacher's, beside `losses`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden_alignment: Option<AlignedLayers>,
}

impl Default for TrainConfig {
    fn default() -> TrainConfig {
        TrainConfig {
            learning_rate: 1e-3,
            lr_scheduler_type: SchedulerType::Cosine,
            warmup_ratio: 0.03,
            min_lr_ratio: 0.0,
            num_train_epochs: 1.0,
            max_steps: None,
            per_device_train_batch_size: 8,
            gradient_accumulation_steps: 1,
            max_length: 512,
            packing: true,
            overlong: Overlong::Refuse,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.95,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            seed: 0,
            losses: vec![LossTerm::new(LossFunction::HardLabels)],
            tail: Tail::None,
            n_ids: None,
            save_steps: 100,
            eval_steps: 100,
            logging_steps: 10,
            save_total_limit: 2,
            gradient_checkpointing: false,
            on_policy: None,
            hidden_alignment: None,
        }
    }
}

impl TrainConfig {
    /// Refuses settings that cannot be right, naming the key.
    pub fn validate(&self) -> Result<()> {
        let at_least_0 = (0.0, f64::MAX, "expected 0 or more");
        let share = (0.0, 1.0, "expected 0 to 1");
        let decay = (0.0, 1.0 - f64::EPSILON, "expected 0 to below 1");
        let small = (f64::MIN_POSITIVE, 1.0, "expected more than 0, at most 1");
        let epochs = (f64::MIN_POSITIVE, EPOCHS_MAX, "expected more than 0, at most 100000");
        let steps = (1.0, STEPS_MAX as f64, "expected 1 to 100000000");
        let rows = (1.0, BATCH_MAX as f64, "expected 1 to 65536");
        let tokens = (2.0, LENGTH_MAX as f64, "expected 2 to 1048576");
        let numbers = [
            ("learning_rate", self.learning_rate, at_least_0),
            ("warmup_ratio", self.warmup_ratio, share),
            ("min_lr_ratio", self.min_lr_ratio, share),
            ("num_train_epochs", self.num_train_epochs, epochs),
            ("max_steps", self.max_steps.unwrap_or(1) as f64, steps),
            ("per_device_train_batch_size", self.per_device_train_batch_size as f64, rows),
            ("gradient_accumulation_steps", self.gradient_accumulation_steps as f64, rows),
            ("max_length", self.max_length as f64, tokens),
            ("weight_decay", self.weight_decay, at_least_0),
            ("adam_beta1", self.adam_beta1, decay),
            ("adam_beta2", self.adam_beta2, decay),
            ("adam_epsilon", self.adam_epsilon, small),
            ("max_grad_norm", self.max_grad_norm, at_least_0),
            ("logging_steps", self.logging_steps as f64, steps),
        ];
        for (key, value, (low, high, rule)) in numbers {
            if !(low..=high).contains(&value) {
                return Err(DistillError::Config { key, value: value.to_string(), rule });
            }
        }
        // Validation, which chooses the checkpoint, has the weights of the last step.
        if self.losses.iter().all(|term| term.weight.at_the_end() == 0.0) {
            let rule = "at least one loss needs a weight at the last step";
            return Err(DistillError::Config { key: "losses", value: "0".into(), rule });
        }
        Ok(())
    }

    /// Refuses losses that these targets cannot give, or not of the texts that there are.
    pub(crate) fn validate_losses(&self, targets: TeacherTargets) -> Result<()> {
        check_losses(&self.losses, targets)?;
        if let Some(aligned) = &self.hidden_alignment {
            aligned.check(&self.losses)?;
            if targets != TeacherTargets::Live && self.aligns_hidden_states() {
                return Err(DistillError::HiddenStates { what: "only a live teacher has some".to_owned() });
            }
        }
        let reads_along = !matches!(targets, TeacherTargets::Cached(_));
        check_on_policy(&self.losses, self.on_policy.as_ref(), reads_along)
    }

    /// Digest of the settings that the trained weights and their choice depend on. How often is saved or
    /// logged, how many checkpoints are kept, and whether activations are, may change between a kill and
    /// the resumption.
    pub fn digest(&self) -> Digest {
        let relevant = TrainConfig {
            save_steps: 0,
            logging_steps: 1,
            save_total_limit: 0,
            gradient_checkpointing: false,
            ..self.clone()
        };
        // Every field is a number, a name or absent, so this cannot fail; field order is declaration order.
        let text = serde_json::to_vec(&relevant).unwrap_or_default();
        assert!(!text.is_empty(), "settings serialise");
        Digest::of(&text)
    }

    /// Whether a loss is trained on that takes what a teacher, with the student's tokenizer, says of the texts.
    pub fn needs_teacher(&self) -> bool {
        self.computed_losses().need_teacher()
    }

    /// Whether the student learns from log-probabilities of the tokens that it wrote itself.
    pub fn learns_own_tokens(&self) -> bool {
        self.computed_losses().need_own_text()
    }

    /// Whether the student's hidden states are held against a live teacher's.
    pub fn aligns_hidden_states(&self) -> bool {
        self.hidden_alignment.as_ref().is_some_and(|aligned| !aligned.weight.is_zero())
    }

    /// Refuses what cannot be learned from several teachers at once: they are mixed in their distributions over the
    /// student's vocabulary, and in nothing else.
    pub(crate) fn validate_for_several(&self) -> Result<()> {
        let refuse = |what| Err(DistillError::SeveralTeachers { what });
        if self.needs_foreign_readings() {
            return refuse("`uld` and `gold`");
        }
        if self.needs_chunks() {
            return refuse("`alm`");
        }
        if self.aligns_hidden_states() {
            return refuse("`hidden_alignment`");
        }
        Ok(())
    }

    /// Whether a loss is trained on that compares the student's distributions with a teacher's.
    pub fn needs_distributions(&self) -> bool {
        self.computed_losses().need_distributions()
    }

    /// Whether a loss is trained on that compares distributions over two vocabularies.
    pub fn needs_foreign_readings(&self) -> bool {
        self.computed_losses().need_foreign_readings()
    }

    /// Whether a preference is learned, from pairs.
    pub fn needs_pairs(&self) -> bool {
        self.computed_losses().dpo_beta().is_some()
    }

    /// Whether a loss is trained on that needs a teacher's likelihood of pieces of the text.
    pub fn needs_chunks(&self) -> bool {
        self.computed_losses().alm_temperature().is_some()
    }

    pub(crate) fn computed_losses(&self) -> Losses {
        Losses::of(&self.losses).with_hidden(self.hidden_alignment.as_ref())
    }

    /// The temperature that cached targets must have been softened at; none where no loss needs them.
    pub(crate) fn cached_temperature(&self) -> Option<f64> {
        let computed = self.losses.iter().filter(|term| !term.weight.is_zero());
        computed.filter(|term| term.function.divergence().is_some()).map(|term| term.temperature).next()
    }

    pub(crate) fn adamw(&self, learning_rate: f64) -> AdamW {
        AdamW {
            learning_rate: learning_rate as f32,
            beta1: self.adam_beta1 as f32,
            beta2: self.adam_beta2 as f32,
            eps: self.adam_epsilon as f32,
            weight_decay: self.weight_decay as f32,
            max_grad_norm: self.max_grad_norm as f32,
        }
    }
}

/// Refuses losses that do not go with `on_policy`, `None` for off-policy training: one that only the student's own text
/// has, without any; texts that no loss learns from; and rollouts without a teacher who `reads_along`, live or scoring.
///
/// ```
/// use stillroom_distill::{LossFunction, LossTerm, OnPolicy, check_on_policy};
/// let (sampled, reverse_kl) = (LossFunction::SampledReverseKl, LossFunction::ReverseKl);
/// let (sampled, reverse_kl) = (LossTerm::new(sampled), LossTerm::new(reverse_kl));
/// let always = OnPolicy::default();
/// assert!(check_on_policy(&[sampled], Some(&always), true).is_ok());
/// assert!(check_on_policy(&[sampled], None, true).is_err());
/// let half = OnPolicy { on_policy_fraction: 0.5, ..always };
/// assert!(check_on_policy(&[sampled], Some(&half), true).is_err());
/// assert!(check_on_policy(&[sampled, reverse_kl], Some(&half), true).is_ok());
/// ```
pub fn check_on_policy(losses: &[LossTerm], on_policy: Option<&OnPolicy>, reads_along: bool) -> Result<()> {
    let computed = Losses::of(losses);
    let refuse = |key, value: String, rule| Err(DistillError::Config { key, value, rule });
    let sampled = || LossFunction::SampledReverseKl.name().to_owned();
    let Some(on_policy) = on_policy else {
        if computed.need_own_text() {
            let rule = "it learns from the student's own text; set `on_policy_fraction`";
            return refuse("losses", sampled(), rule);
        }
        return Ok(());
    };
    on_policy.validate()?;
    let fraction = on_policy.on_policy_fraction.to_string();
    if !reads_along {
        let rule = "the student's own text needs a live teacher to read it";
        return refuse("on_policy_fraction", fraction, rule);
    }
    if !computed.learn_from(Text::Own) {
        let rule = "no loss learns from the student's own text at the last step; hard labels never do";
        return refuse("on_policy_fraction", fraction, rule);
    }
    if !on_policy.always() && !computed.learn_from(Text::Given) {
        let rule = "below 1 it leaves steps on given text, from which no loss learns at the last step";
        return refuse("on_policy_fraction", fraction, rule);
    }
    if computed.dpo_beta().is_some() {
        let rule = "`dpo` learns from pairs, which the student does not write as it goes";
        return refuse("on_policy_fraction", fraction, rule);
    }
    if computed.need_foreign_readings() {
        let rule = "`uld` and `gold` have a teacher that reads given texts only, in its own tokens";
        return refuse("on_policy_fraction", fraction, rule);
    }
    if computed.alm_temperature().is_some() {
        let rule = "`alm` knows chunks of given texts only";
        return refuse("on_policy_fraction", fraction, rule);
    }
    if computed.need_own_text() && !on_policy.draws_plainly() {
        let rule = "it is right only for tokens drawn at `rollout_temperature` 1 and `rollout_top_p` 1";
        return refuse("losses", sampled(), rule);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LossWeight;

    #[test]
    fn settings_out_of_range_are_named() {
        let base = TrainConfig::default();
        base.validate().unwrap();
        let hard = LossTerm::new(LossFunction::HardLabels);
        let fading = LossWeight::Linear { from: 1.0, to: 0.0 };
        let wrong: [(&str, TrainConfig); 8] = [
            ("learning_rate", TrainConfig { learning_rate: f64::NAN, ..base.clone() }),
            ("warmup_ratio", TrainConfig { warmup_ratio: 1.5, ..base.clone() }),
            ("num_train_epochs", TrainConfig { num_train_epochs: 0.0, ..base.clone() }),
            ("max_steps", TrainConfig { max_steps: Some(0), ..base.clone() }),
            ("max_length", TrainConfig { max_length: 1, ..base.clone() }),
            ("losses", TrainConfig { losses: vec![LossTerm { weight: fading, ..hard }], ..base.clone() }),
            ("losses", TrainConfig { losses: vec![], ..base.clone() }),
            ("logging_steps", TrainConfig { logging_steps: 0, ..base.clone() }),
        ];
        for (expected, config) in wrong {
            let error = config.validate().unwrap_err();
            assert!(matches!(&error, DistillError::Config { key, .. } if *key == expected), "{error}");
            assert_eq!(error.kind(), stillroom_core::ErrorKind::BadRecipe);
        }
    }

    #[test]
    fn the_digest_covers_what_the_weights_depend_on() {
        let base = TrainConfig::default();
        let saving = TrainConfig { save_steps: 7, logging_steps: 3, save_total_limit: 9, ..base.clone() };
        assert_eq!(base.digest(), saving.digest());
        let recomputing = TrainConfig { gradient_checkpointing: true, ..base.clone() };
        assert_eq!(base.digest(), recomputing.digest());
        assert_ne!(base.digest(), TrainConfig { seed: 1, ..base.clone() }.digest());
        assert_ne!(base.digest(), TrainConfig { eval_steps: 1, ..base.clone() }.digest());
        let hard = LossTerm::new(LossFunction::HardLabels);
        let softer = vec![hard, LossTerm::new(LossFunction::ForwardKl).at_temperature(2.0)];
        let with_loss = TrainConfig { losses: softer, ..base.clone() };
        assert_ne!(base.digest(), with_loss.digest());
        assert_ne!(with_loss.digest(), TrainConfig { n_ids: Some(7), ..with_loss.clone() }.digest());
        let text = serde_json::to_string(&base).unwrap();
        assert_eq!(serde_json::from_str::<TrainConfig>(&text).unwrap().digest(), base.digest());
        assert!(serde_json::from_str::<TrainConfig>("{\"learning_rat\": 1}").is_err());
    }
}

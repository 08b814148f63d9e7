//! The two checks that a run fails by: every trained tensor moved, and the held-out loss fell.

use serde::{Deserialize, Serialize};
use stillroom_core::statistics::Estimate;

use crate::error::EvaluateError;
use crate::measurement::{DocumentLoss, loss_drop};
use crate::own_text::OwnText;

/// `checks` of `report.json`: the verdicts, and beside them what they rest on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checks {
    /// Every tensor that should train differs from its initial weights.
    pub student_tensors_changed: bool,
    /// The lower bound of the paired drop of the held-out loss from the initial weights is above 0.
    pub heldout_loss_fell: bool,
    pub tensors: TensorChanges,
    pub heldout_loss: LossDrop,
}

impl Checks {
    pub fn new(tensors: TensorChanges, heldout_loss: LossDrop) -> Checks {
        Checks {
            student_tensors_changed: tensors.all_changed(),
            heldout_loss_fell: heldout_loss.fell(),
            tensors,
            heldout_loss,
        }
    }

    /// A run whose checks fail exits 1.
    pub fn passed(&self) -> bool {
        self.student_tensors_changed && self.heldout_loss_fell
    }
}

/// How far training moved each tensor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TensorChanges {
    /// Tensors that should train.
    pub compared: u64,
    /// Tensors that are not meant to train and were left out.
    pub frozen: u64,
    /// Names of those that should and did not.
    pub unchanged: Vec<String>,
    /// Names of those that hold a number that is not finite.
    pub not_finite: Vec<String>,
    /// The least ‖final − initial‖ / ‖initial‖ (1 where the initial norm is 0), and where.
    pub smallest_relative_change: Option<f64>,
    pub smallest_change_in: Option<String>,
}

impl TensorChanges {
    pub fn all_changed(&self) -> bool {
        self.compared > 0 && self.unchanged.is_empty() && self.not_finite.is_empty()
    }

    /// Takes one tensor's weights before and after training into account. Norms in f64.
    pub fn add(&mut self, name: &str, initial: &[f32], trained: &[f32]) -> Result<(), EvaluateError> {
        if initial.len() != trained.len() {
            return Err(EvaluateError::DifferentShapes {
                name: name.into(),
                initial_len: initial.len(),
                final_len: trained.len(),
            });
        }
        self.compared += 1;
        if trained.iter().any(|value| !value.is_finite()) {
            self.not_finite.push(name.into());
            return Ok(());
        }
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let moved = norm(&mut initial.iter().zip(trained).map(|(a, b)| f64::from(*b) - f64::from(*a)));
        let size = norm(&mut initial.iter().map(|v| f64::from(*v)));
        let relative = match (moved, size) {
            (0.0, _) => 0.0,
            (_, 0.0) => 1.0,
            _ => moved / size,
        };
        // Bits decide: a change too small for the norm is still a change.
        if initial.iter().zip(trained).all(|(a, b)| a.to_bits() == b.to_bits()) {
            self.unchanged.push(name.into());
        }
        if self.smallest_relative_change.is_none_or(|least| relative < least) {
            self.smallest_relative_change = Some(relative);
            self.smallest_change_in = Some(name.into());
        }
        Ok(())
    }
}

/// The paired drop of the held-out loss from the initial weights.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LossDrop {
    /// Initial − final, nats per token, 95 % interval clustered by document; `null` with fewer
    /// than two documents, which is too little to claim a fall.
    pub drop: Option<Estimate>,
    pub documents: u64,
    #[serde(default)]
    pub of: HeldOutLoss,
}

/// Which held-out loss training is after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldOutLoss {
    /// −log q of held-out text, in nats per token.
    #[default]
    Text,
    /// That of a preference, in nats per validation pair: likelier text is not what such training is after.
    Pairs,
    /// KL(model‖teacher) on what the model continues held-out prompts by, the mean over texts of nats per token: where
    /// every text to learn from is the student's own, others' need not become likelier.
    OwnText,
}

impl LossDrop {
    /// Both sides list the same documents in the same order.
    pub fn measure(initial: &[DocumentLoss], trained: &[DocumentLoss]) -> Result<LossDrop, EvaluateError> {
        let (drop, documents) = (loss_drop(initial, trained)?, initial.len() as u64);
        Ok(LossDrop { drop, documents, of: HeldOutLoss::Text })
    }

    /// [`LossDrop::measure`] of pairs: what each loses under the student, and ln 2 under its start.
    pub fn of_pairs(losses: &[(String, f64)]) -> Result<LossDrop, EvaluateError> {
        let row = |id: &str, nats| DocumentLoss { id: id.to_owned(), tokens: 1, bytes: 1, nats };
        let initial: Vec<_> = losses.iter().map(|(id, _)| row(id, std::f64::consts::LN_2)).collect();
        let trained: Vec<_> = losses.iter().map(|(id, nats)| row(id, *nats)).collect();
        Ok(LossDrop { of: HeldOutLoss::Pairs, ..LossDrop::measure(&initial, &trained)? })
    }

    /// [`LossDrop::measure`] of what both wrote for the same prompts, each text counting alike; an empty one is left out,
    /// with the other side's.
    ///
    /// # Panics
    /// Where one wrote more texts than the other.
    pub fn of_own_text(initial: &[OwnText], trained: &[OwnText]) -> Result<LossDrop, EvaluateError> {
        assert_eq!(initial.len(), trained.len(), "both continue the same prompts");
        let row = |text: &OwnText| {
            let sum: f64 = text.reverse_kl.iter().map(|&nats| f64::from(nats)).sum();
            let nats = sum / text.reverse_kl.len() as f64;
            DocumentLoss { id: text.id.clone(), tokens: 1, bytes: 1, nats }
        };
        let written =
            initial.iter().zip(trained).filter(|(a, b)| !a.reverse_kl.is_empty() && !b.reverse_kl.is_empty());
        let (initial, trained): (Vec<_>, Vec<_>) = written.map(|(a, b)| (row(a), row(b))).unzip();
        Ok(LossDrop { of: HeldOutLoss::OwnText, ..LossDrop::measure(&initial, &trained)? })
    }

    /// What the drop is measured in.
    pub fn unit(&self) -> &'static str {
        match self.of {
            HeldOutLoss::Text => "nats per token",
            HeldOutLoss::Pairs => "nats per validation pair",
            HeldOutLoss::OwnText => "nats per token of own text",
        }
    }

    pub fn fell(&self) -> bool {
        self.drop.is_some_and(|drop| drop.interval.low > 0.0)
    }
}

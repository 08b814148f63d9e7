//! The two checks that a run fails by: every trained tensor moved, and the held-out loss fell.

use serde::{Deserialize, Serialize};
use stillroom_core::statistics::Estimate;

use crate::error::EvaluateError;
use crate::measurement::{DocumentLoss, loss_drop};

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
    /// Where a preference is learned, likelier text is not what training is after: then documents are the validation
    /// pairs, and the loss is that of the preference, in nats per pair.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub of_pairs: bool,
}

impl LossDrop {
    /// Both sides list the same documents in the same order.
    pub fn measure(initial: &[DocumentLoss], trained: &[DocumentLoss]) -> Result<LossDrop, EvaluateError> {
        Ok(LossDrop { drop: loss_drop(initial, trained)?, documents: initial.len() as u64, of_pairs: false })
    }

    /// [`LossDrop::measure`] of pairs: what each loses under the student, and ln 2 under its start.
    pub fn of_pairs(losses: &[(String, f64)]) -> Result<LossDrop, EvaluateError> {
        let row = |id: &str, nats| DocumentLoss { id: id.to_owned(), tokens: 1, bytes: 1, nats };
        let initial: Vec<_> = losses.iter().map(|(id, _)| row(id, std::f64::consts::LN_2)).collect();
        let trained: Vec<_> = losses.iter().map(|(id, nats)| row(id, *nats)).collect();
        Ok(LossDrop { of_pairs: true, ..LossDrop::measure(&initial, &trained)? })
    }

    /// What the drop is measured in.
    pub fn unit(&self) -> &'static str {
        if self.of_pairs { "nats per validation pair" } else { "nats per token" }
    }

    pub fn fell(&self) -> bool {
        self.drop.is_some_and(|drop| drop.interval.low > 0.0)
    }
}

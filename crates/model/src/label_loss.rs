//! Losses of the log-probabilities that the student gives the text's own tokens.
//!
//! A loss L of ℓ = (log q(y₁), …, log q(yₙ)) has the gradient Σᵢ ∂L/∂ℓᵢ·∇ℓᵢ, and ∇(−ℓᵢ) is that of a hard label. So the
//! head takes it as hard labels that weigh −∂L/∂ℓᵢ each, once the ℓᵢ are known from a pass of the head that
//! differentiates nothing. The body goes forward once.

use std::fmt::Debug;
use std::ops::Range;

use stillroom_kernels::{Buf, Device, HeadLosses, HeadTargets, Weight};

/// A loss of the log-probabilities of the text's own tokens, which knows the batch that it belongs to.
pub trait LabelLoss: Debug {
    /// Writes for each row its part of the loss, in nats, and ∂(Σ of all parts)/∂logprobs\[i\].
    ///
    /// `rows` are consecutive indices into [`Targets::rows`](crate::Targets::rows), those of whole documents, of which
    /// [`Targets::documents_together`](crate::Targets::documents_together) are never parted;
    /// `logprobs[i]` is log q(`hard_labels[rows.start + i]`) at temperature 1. The other slices are as long, and what
    /// they hold on entry has no meaning. A part depends on rows of its own documents only.
    fn evaluate(&self, rows: Range<usize>, logprobs: &[f32], losses: &mut [f32], slopes: &mut [f32]);
}

/// A [`LabelLoss`] and how much it weighs.
#[derive(Clone, Copy, Debug)]
pub struct WeightedLabelLoss<'t> {
    pub loss: &'t dyn LabelLoss,
    pub weight: f32,
}

/// What it takes to have label losses; the memory serves every step.
#[derive(Default)]
pub(crate) struct LabelMemory {
    scored: HeadLosses,
    weights: Vec<f32>,
}

impl LabelMemory {
    /// Scores the labels of `targets`, appends their losses to `losses`, and gives `targets` with the labels' weights.
    pub(crate) fn weigh<'a>(
        &'a mut self,
        label_loss: Option<(WeightedLabelLoss<'_>, Range<usize>)>,
        (device, hidden, head): (&Device, &Buf, Weight<'_>),
        targets: &HeadTargets<'a>,
        losses: &mut HeadLosses,
    ) -> HeadTargets<'a> {
        let Some((WeightedLabelLoss { loss, weight }, rows)) = label_loss else { return *targets };
        self.scored.clear();
        let labels =
            HeadTargets { hard_labels: targets.hard_labels, n_ids: targets.n_ids, ..HeadTargets::default() };
        device.divergence_head_forward(hidden, head, rows.len(), &labels, &[], &mut self.scored);
        evaluate(loss, rows, &mut self.scored.hard_label, losses, &mut self.weights);
        self.weights.iter_mut().for_each(|slope| *slope *= -weight);
        HeadTargets { label_weights: Some(&self.weights), ..*targets }
    }
}

/// Appends the parts of `loss` to `losses` and leaves its slopes in `slopes`. `scored` holds −log q(label) on entry.
pub(crate) fn evaluate(
    loss: &dyn LabelLoss,
    rows: Range<usize>,
    scored: &mut [f32],
    losses: &mut HeadLosses,
    slopes: &mut Vec<f32>,
) {
    let n = rows.len();
    scored.iter_mut().for_each(|loss| *loss = -*loss);
    let before = losses.label_loss.len();
    losses.label_loss.resize(before + n, 0.0);
    slopes.clear();
    slopes.resize(n, 0.0);
    loss.evaluate(rows, scored, &mut losses.label_loss[before..], slopes);
}

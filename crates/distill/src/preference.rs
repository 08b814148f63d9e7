//! Direct preference optimisation: from pairs of replies of which one was preferred.
//!
//! Source: Rafailov et al. 2023, "Direct Preference Optimization", equation 7.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use stillroom_model::{Decoder, LabelLoss};

use crate::example::Rejected;
use crate::{DistillError, Example, Result};

/// β that a preference takes.
const BETAS: std::ops::RangeInclusive<f64> = 1e-4..=100.0;

/// One pair: what the reference says of it, and where its rows are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairRows {
    /// Supervised tokens of the preferred reply, then of the other.
    pub sizes: [usize; 2],
    /// log of the probability of each reply under the reference, in nats.
    pub reference: [f64; 2],
}

/// −log σ(h) per pair, with h = β·((log π(y₊) − log π₀(y₊)) − (log π(y₋) − log π₀(y₋))): π is the student, π₀ the
/// reference, y₊ the preferred reply and y₋ the other; log-probabilities are summed over a reply's tokens.
///
/// β is TRL's `beta`, the loss its `sigmoid`. A pair's loss stands in the first row of its preferred reply, and 0
/// in the others, so that it is the sum over rows; its gradient by each log-probability is −β·σ(−h) for y₊ and
/// β·σ(−h) for y₋. A batch has y₊, y₋, y₊, y₋ … as its documents.
#[derive(Clone, Debug)]
pub struct DirectPreference {
    pub beta: f64,
    pub pairs: Vec<PairRows>,
}

/// What a pair came to, besides its loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rewards {
    /// β·(log π(y₊) − log π₀(y₊)).
    pub chosen: f64,
    /// β·(log π(y₋) − log π₀(y₋)).
    pub rejected: f64,
}

impl Rewards {
    /// h of [`DirectPreference`].
    pub fn margin(self) -> f64 {
        self.chosen - self.rejected
    }

    /// −log σ(h) = log(1 + e^−h), which does not overflow.
    pub fn loss(self) -> f64 {
        let h = self.margin();
        (-h).max(0.0) + (-h.abs()).exp().ln_1p()
    }
}

impl PairRows {
    /// Of an example that is a pair.
    pub(crate) fn of(example: &Example, rejected: &Rejected) -> PairRows {
        PairRows { sizes: [example.n_supervised(), rejected.n_supervised()], reference: rejected.reference }
    }
}

/// What pairs came to, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PreferenceSums {
    preferred: u64,
    chosen: f64,
    rejected: f64,
}

/// Means over pairs; TRL's `rewards/…`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreferenceMeans {
    /// Share of pairs whose preferred reply has the higher reward.
    pub accuracy: f64,
    /// The rewards of [`Rewards`], and how much higher the first is.
    pub chosen: f64,
    pub rejected: f64,
    pub margin: f64,
}

impl PreferenceSums {
    pub(crate) fn add(&mut self, other: &PreferenceSums) {
        self.preferred += other.preferred;
        self.chosen += other.chosen;
        self.rejected += other.rejected;
    }

    pub(crate) fn means(&self, n: u64) -> PreferenceMeans {
        let mean = |sum: f64| sum / (n as f64).max(1.0);
        PreferenceMeans {
            accuracy: mean(self.preferred as f64),
            chosen: mean(self.chosen),
            rejected: mean(self.rejected),
            margin: mean(self.chosen - self.rejected),
        }
    }
}

/// The loss of each pair under `decoder`, in nats; ln 2 under the reference itself.
///
/// # Panics
/// Where an example is no pair, or has ids outside the vocabulary.
pub fn preference_losses(examples: &[Example], decoder: &Decoder, beta: f64) -> Vec<f64> {
    let of_pair = |example: &Example| {
        let rejected = example.rejected.as_ref().expect("a pair has two documents");
        let logprobs = pair_logprobs(example, rejected, decoder).concat();
        let loss = DirectPreference { beta, pairs: Vec::new() };
        loss.rewards(&PairRows::of(example, rejected), &logprobs).loss()
    };
    examples.iter().map(of_pair).collect()
}

/// Log-probabilities of the supervised tokens: of the preferred document, then of the other.
pub(crate) fn pair_logprobs(example: &Example, rejected: &Rejected, decoder: &Decoder) -> [Vec<f32>; 2] {
    let scored = decoder.token_logprobs(&[&example.ids, &rejected.ids]);
    let of_document = |document: usize, mask: &[bool]| {
        let supervised = scored[document].iter().zip(&mask[1..]).filter(|(_, s)| **s);
        supervised.map(|(&logprob, _)| logprob).collect()
    };
    [of_document(0, &example.supervised), of_document(1, &rejected.supervised)]
}

/// Refuses a β out of range.
pub(crate) fn check_beta(beta: f64) -> Result<()> {
    if BETAS.contains(&beta) {
        return Ok(());
    }
    let rule = "beta of `dpo` lies between 0.0001 and 100";
    Err(DistillError::Config { key: "beta", value: beta.to_string(), rule })
}

impl DirectPreference {
    /// Sums over the pairs, and the mean over them of −log π per token of the preferred reply, added up; `labels` holds
    /// −log π of every row.
    pub(crate) fn sums(&self, labels: &[f32]) -> (PreferenceSums, f64) {
        let (mut sums, mut preferred_labels, mut start) = (PreferenceSums::default(), 0.0, 0);
        for pair in &self.pairs {
            let [chosen, rejected] = pair.sizes;
            let of_pair = &labels[start..start + chosen + rejected];
            let logprobs: Vec<f32> = of_pair.iter().map(|label| -label).collect();
            let rewards = self.rewards(pair, &logprobs);
            let one = PreferenceSums {
                preferred: u64::from(rewards.margin() > 0.0),
                chosen: rewards.chosen,
                rejected: rewards.rejected,
            };
            sums.add(&one);
            preferred_labels += of_pair[..chosen].iter().map(|&l| f64::from(l)).sum::<f64>() / chosen as f64;
            start += chosen + rejected;
        }
        (sums, preferred_labels)
    }

    /// Rewards of a pair whose log-probabilities, those of y₊ first, are given.
    pub fn rewards(&self, pair: &PairRows, logprobs: &[f32]) -> Rewards {
        let (chosen, rejected) = logprobs.split_at(pair.sizes[0]);
        let ratio = |logprobs: &[f32], reference: f64| {
            self.beta * (logprobs.iter().map(|&l| f64::from(l)).sum::<f64>() - reference)
        };
        Rewards { chosen: ratio(chosen, pair.reference[0]), rejected: ratio(rejected, pair.reference[1]) }
    }
}

impl LabelLoss for DirectPreference {
    fn evaluate(&self, rows: Range<usize>, logprobs: &[f32], losses: &mut [f32], slopes: &mut [f32]) {
        losses.fill(0.0);
        let mut start = 0;
        for pair in &self.pairs {
            let end = start + pair.sizes[0] + pair.sizes[1];
            if start >= rows.start && end <= rows.end {
                let at = start - rows.start..end - rows.start;
                let rewards = self.rewards(pair, &logprobs[at.clone()]);
                losses[at.start] = rewards.loss() as f32;
                let slope = (self.beta / (1.0 + rewards.margin().exp())) as f32;
                let (chosen, rejected) = slopes[at].split_at_mut(pair.sizes[0]);
                chosen.fill(-slope);
                rejected.fill(slope);
            }
            start = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs() -> DirectPreference {
        let pair = |sizes, reference| PairRows { sizes, reference };
        DirectPreference { beta: 0.5, pairs: vec![pair([2, 1], [-3.0, -1.5]), pair([1, 3], [-0.5, -9.0])] }
    }

    const LOGPROBS: [f32; 7] = [-1.0, -0.5, -2.0, -0.25, -1.0, -4.0, -6.0];

    #[test]
    fn slopes_are_those_of_finite_differences() {
        let loss = pairs();
        let total = |logprobs: &[f32]| {
            let (mut losses, mut slopes) = ([0.0; 7], [0.0; 7]);
            loss.evaluate(0..7, logprobs, &mut losses, &mut slopes);
            (losses.iter().map(|&l| f64::from(l)).sum::<f64>(), slopes)
        };
        let slopes = total(&LOGPROBS).1;
        for (i, slope) in slopes.into_iter().enumerate() {
            let moved = |h: f32| {
                let mut logprobs = LOGPROBS;
                logprobs[i] += h;
                total(&logprobs).0
            };
            let quotient = (moved(0.0625) - moved(-0.0625)) / 0.125;
            assert!((quotient - f64::from(slope)).abs() < 1e-4, "{i}: {quotient} against {slope}");
        }
    }

    #[test]
    fn the_reference_itself_has_a_loss_of_log_two() {
        let mut loss = pairs();
        loss.pairs[0].reference = [-1.5, -2.0];
        let (mut losses, mut slopes) = ([9.0; 3], [9.0; 3]);
        loss.evaluate(0..3, &LOGPROBS[..3], &mut losses, &mut slopes);
        assert_eq!(losses, [std::f32::consts::LN_2, 0.0, 0.0]);
        assert_eq!(slopes, [-0.25, -0.25, 0.25]);
    }

    #[test]
    fn a_part_of_the_batch_has_the_losses_that_it_has_in_the_whole() {
        let loss = pairs();
        let (mut whole, mut slopes) = ([0.0; 7], [0.0; 7]);
        loss.evaluate(0..7, &LOGPROBS, &mut whole, &mut slopes);
        let (mut part, mut its_slopes) = ([0.0; 4], [0.0; 4]);
        loss.evaluate(3..7, &LOGPROBS[3..], &mut part, &mut its_slopes);
        assert_eq!((part, its_slopes), (whole[3..].try_into().unwrap(), slopes[3..].try_into().unwrap()));
    }

    #[test]
    fn far_pairs_neither_overflow_nor_vanish() {
        let far = |margin: f64| Rewards { chosen: margin, rejected: 0.0 }.loss();
        assert_eq!((far(-1e4), far(1e4)), (1e4, 0.0));
        assert!((far(-40.0) - 40.0).abs() < 1e-12 && far(30.0) > 0.0);
    }
}

//! Divergences between a teacher's distribution p and a student's q: which there are, what they are
//! called, and which can be taken of what a teacher gives.
//!
//! # Conventions
//!
//! p = softmax(t/τ) and q = softmax(z/τ), with t and z the logits of teacher and student. A loss is a sum
//! over outcomes of φ(p, q), times τ², so that gradients keep their size as τ grows (Hinton et al. 2015).
//! With g = ∂φ/∂q, its gradient is ∂L/∂zⱼ = τ·(qⱼgⱼ − qⱼ·Σᵢ qᵢgᵢ).
//!
//! | divergence | Σ φ | q·g |
//! |---|---|---|
//! | `forward_kl` | KL(p‖q) = Σ p·log(p/q) | −p |
//! | `reverse_kl` | KL(q‖p) = Σ q·log(q/p) | q·(log(q/p) + 1) |
//! | `jsd`, β | β·KL(p‖m) + (1−β)·KL(q‖m), m = βp + (1−β)q | (1−β)·q·log(q/m) |
//! | `skew_kl`, α | KL(p‖m), m = αp + (1−α)q | −(1−α)·q·p/m |
//! | `skew_reverse_kl`, α | KL(q‖m), m = (1−α)p + αq | q·(log(q/m) + 1 − αq/m) |
//! | `tvd` | ½·Σ abs(p − q) | ½·q·sign(q − p) |
//!
//! `uld` and `gold` are of a teacher with another vocabulary, and of no other; `uld.rs` has them.
//!
//! `jsd` is equation 1 of Agarwal et al. 2023 (GKD), where β is the teacher's share of the mixture;
//! `skew_kl` and `skew_reverse_kl` are from Ko et al. 2024 (DistiLLM).
//!
//! **TRL** calls the same β `beta`, and the same loss for 0 < β < 1; at 0 and 1, where this loss is zero
//! whatever q is, it computes `forward_kl` and `reverse_kl` instead ([`Divergence::from_trl_beta`]). Next
//! to those ends the loss is β·KL(p‖q) or (1−β)·KL(q‖p), so β is then a factor of the learning rate and
//! nothing else, and the loss jumps where the end is reached; such a β is refused. TRL has no factor τ².
//!
//! # Impossible tokens
//!
//! An id with p = 0 (a teacher's logit of −∞) adds nothing to what p multiplies. `reverse_kl` would be
//! infinite there; log p counts as no less than [`LOG_P_MIN`], about the smallest number of an f32. Ids
//! without a token (a padded vocabulary) are cut off on both sides before anything is normalised.
//!
//! # What is stored of p
//!
//! Where only some ids K are stored, outcomes are, by [`TailMode`]:
//! - `Drop`: the stored ids, with q normalised over the whole vocabulary and nothing renormalised. The sum
//!   can be negative, and it is not zero at q = p in gradient: an approximation.
//! - `Renormalise`: as `Drop`, with the stored probabilities divided by their sum: `forward_kl` of that sharper
//!   teacher, whose other ids have nothing, from the whole student. It is not zero at q = p either. Divergences
//!   that would be of q outside the stored ids are refused.
//! - `Bucket`: the stored ids and one more that holds the rest on each side, 1 − Σ_K p and Σ over the other
//!   ids of q: the divergence of coarser distributions, never more than that of the whole ones.
//! - `Uniform`: every id, with the rest of p spread evenly over the V − K others: exact for that p.
//! - `None`: the weights are counts of random draws. They are unbiased for what is linear in p, which is
//!   `forward_kl` alone; the rest is refused.
//!
//! At K = V the first four are the divergence itself. From f32 probabilities, 1 − Σ_K p is known to a
//! rounding at best, so apart from `forward_kl`, which does not mind, it counts as no less than [`REST_MIN`].

mod outcome;
mod row;

pub(crate) use outcome::{Kernel, Softmaxes};
pub use row::{SparseRow, TeacherRow, row_losses};

use crate::head::TailMode;

/// The least that log p counts as in `reverse_kl`.
pub const LOG_P_MIN: f32 = -100.0;
/// The least that teacher mass outside the stored ids counts as: half an ulp of 1.
pub const REST_MIN: f64 = 1.0 / (1 << 24) as f64;
/// Most divergences in one loss.
pub const TERMS_MAX: usize = 8;
/// β of `jsd`; outside, the loss is close to nothing (see [`crate::divergence`]).
pub const TEACHER_WEIGHTS: std::ops::RangeInclusive<f32> = 0.01..=0.99;
/// α of the skewed divergences: 0 is the plain one, and towards 1 both sides become the same.
pub const ALPHAS: std::ops::RangeInclusive<f32> = 0.0..=0.9;

/// A divergence between the teacher's distribution p and the student's q; formulas in [`crate::divergence`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Divergence {
    /// KL(p‖q).
    ForwardKl,
    /// KL(q‖p).
    ReverseKl,
    /// β·KL(p‖m) + (1−β)·KL(q‖m) with m = βp + (1−β)q; β is `teacher_weight`, TRL's `beta`.
    Jsd { teacher_weight: f32 },
    /// KL(p‖αp + (1−α)q).
    SkewKl { alpha: f32 },
    /// KL(q‖(1−α)p + αq).
    SkewReverseKl { alpha: f32 },
    /// ½·Σ abs(p − q).
    Tvd,
    /// Σ abs(p↓ − q↓), each sorted from the greatest down: of two vocabularies.
    Uld,
    /// A divergence on the ids that two vocabularies share and [`Divergence::Uld`] on the others: `forward_kl` where
    /// `teacher_weight` is 0, `reverse_kl` where it is 1, and `jsd` between; TRL's `beta`.
    Gold { teacher_weight: f32 },
}

/// Why a loss cannot be taken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DivergenceError {
    #[error(
        "a teacher weight of {value} leaves `jsd` next to nothing: it goes from {} to {}; `forward_kl` is what \
         it tends to towards 0, divided by the weight, and `reverse_kl` towards 1", TEACHER_WEIGHTS.start(),
        TEACHER_WEIGHTS.end()
    )]
    TeacherWeight { value: f32 },
    #[error("alpha of `{divergence}` is {value}: it goes from {} to {}", ALPHAS.start(), ALPHAS.end())]
    Alpha { divergence: &'static str, value: f32 },
    #[error("temperature of `{divergence}` is {value}: it is a positive number")]
    Temperature { divergence: &'static str, value: f32 },
    #[error("weight of `{loss}` is {value}: it is zero or a positive number")]
    Weight { loss: &'static str, value: f32 },
    #[error("{n} divergences in one loss, of at most {TERMS_MAX}")]
    TooMany { n: usize },
    #[error("`{divergence}` needs a teacher's distribution, and there is none")]
    NoTeacher { divergence: &'static str },
    #[error("`{divergence}` {}", match of_two {
        true => "is for a teacher with another vocabulary that is at hand",
        false => "needs a teacher with the student's vocabulary",
    })]
    Vocabulary { divergence: &'static str, of_two: bool },
    #[error("a batch has one teacher: sparse targets or dense ones")]
    TwoTeachers,
    #[error("several teachers are mixed over one vocabulary, and these have another than the student's")]
    SeveralTeachers,
    #[error(
        "counts of random draws are unbiased for `forward_kl` only, not for `{divergence}`: store the most \
         probable tokens with a tail, or take a teacher that is at hand"
    )]
    Counts { divergence: &'static str },
    #[error(
        "a renormalised teacher gives nothing to the ids that are not stored: `forward_kl` can be taken of it, and \
         `{divergence}` cannot"
    )]
    Renormalised { divergence: &'static str },
    #[error(
        "sparse targets were softened once: temperatures {first} and {other} cannot both be taken of them"
    )]
    Temperatures { first: f32, other: f32 },
    #[error(
        "vocabularies of {student} and {teacher} ids need to be told how many ids both have, at most the \
         smaller number, and not {n_ids:?}"
    )]
    Vocabularies { student: usize, teacher: usize, n_ids: Option<usize> },
}

impl Divergence {
    /// The name in recipes and records.
    pub fn name(self) -> &'static str {
        match self {
            Divergence::ForwardKl => "forward_kl",
            Divergence::ReverseKl => "reverse_kl",
            Divergence::Jsd { .. } => "jsd",
            Divergence::SkewKl { .. } => "skew_kl",
            Divergence::SkewReverseKl { .. } => "skew_reverse_kl",
            Divergence::Tvd => "tvd",
            Divergence::Uld => "uld",
            Divergence::Gold { .. } => "gold",
        }
    }

    /// What TRL's `generalized_jsd_loss` computes for `beta` at temperature 1, mean over tokens apart:
    /// `forward_kl` at 0, `reverse_kl` at 1, `jsd` with that teacher weight between.
    ///
    /// ```
    /// use stillroom_kernels::Divergence;
    /// assert_eq!(Divergence::from_trl_beta(0.0), Ok(Divergence::ForwardKl));
    /// assert_eq!(Divergence::from_trl_beta(0.5), Ok(Divergence::Jsd { teacher_weight: 0.5 }));
    /// assert!(Divergence::from_trl_beta(0.9999).is_err());
    /// ```
    pub fn from_trl_beta(beta: f32) -> Result<Divergence, DivergenceError> {
        let divergence = match beta {
            0.0 => Divergence::ForwardKl,
            1.0 => Divergence::ReverseKl,
            teacher_weight => Divergence::Jsd { teacher_weight },
        };
        divergence.validate().map(|()| divergence)
    }

    /// Whether the loss, as far as it depends on q, is linear in p: then random draws from p give it without bias.
    pub fn linear_in_teacher(self) -> bool {
        matches!(self.canonical(), Divergence::ForwardKl)
    }

    /// Whether the parameter is in range.
    pub fn validate(self) -> Result<(), DivergenceError> {
        match self {
            Divergence::Gold { teacher_weight } => Divergence::from_trl_beta(teacher_weight).map(drop),
            Divergence::Jsd { teacher_weight: value } if !TEACHER_WEIGHTS.contains(&value) => {
                Err(DivergenceError::TeacherWeight { value })
            }
            Divergence::SkewKl { alpha: value } | Divergence::SkewReverseKl { alpha: value }
                if !ALPHAS.contains(&value) =>
            {
                Err(DivergenceError::Alpha { divergence: self.name(), value })
            }
            _ => Ok(()),
        }
    }

    /// Whether it can be taken of targets stored with this tail.
    pub fn validate_for(self, tail: TailMode) -> Result<(), DivergenceError> {
        if self.of_two_vocabularies() {
            return Err(DivergenceError::Vocabulary { divergence: self.name(), of_two: true });
        }
        if tail == TailMode::None && !self.linear_in_teacher() {
            return Err(DivergenceError::Counts { divergence: self.name() });
        }
        if tail == TailMode::Renormalise && self.canonical() != Divergence::ForwardKl {
            return Err(DivergenceError::Renormalised { divergence: self.name() });
        }
        Ok(())
    }

    /// Whether it compares distributions over two vocabularies.
    pub fn of_two_vocabularies(self) -> bool {
        matches!(self, Divergence::Uld | Divergence::Gold { .. })
    }

    /// A skew of nothing is the plain divergence.
    fn canonical(self) -> Divergence {
        match self {
            Divergence::SkewKl { alpha: 0.0 } => Divergence::ForwardKl,
            Divergence::SkewReverseKl { alpha: 0.0 } => Divergence::ReverseKl,
            other => other,
        }
    }
}

/// One divergence in a weighted list.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Term {
    pub divergence: Divergence,
    pub weight: f32,
    /// τ; softens both sides, and the loss carries τ². Sparse targets come softened at it.
    pub temperature: f32,
}

/// The loss that is differentiated: scale·(hard_label·(−log q(label)) + Σ weightᵢ·τᵢ²·divergenceᵢ).
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadTerms<'a> {
    /// Weight of −log q(label), always at temperature 1.
    pub hard_label: f32,
    pub divergences: &'a [Term],
    /// Multiplies every row's gradient (1 / tokens in the optimiser step).
    pub scale: f32,
}

impl HeadTerms<'_> {
    /// Whether every number is in range; what the targets allow is another question.
    pub fn validate(&self) -> Result<(), DivergenceError> {
        if self.divergences.len() > TERMS_MAX {
            return Err(DivergenceError::TooMany { n: self.divergences.len() });
        }
        let weight = |loss, value: f32| match value.is_finite() && value >= 0.0 {
            true => Ok(()),
            false => Err(DivergenceError::Weight { loss, value }),
        };
        weight("hard_label", self.hard_label)?;
        for &Term { divergence, weight: w, temperature } in self.divergences {
            divergence.validate()?;
            weight(divergence.name(), w)?;
            if !(temperature.is_finite() && temperature > 0.0) {
                return Err(DivergenceError::Temperature {
                    divergence: divergence.name(),
                    value: temperature,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_out_of_range_are_refused_by_name() {
        for teacher_weight in [0.0, 1.0, 1e-6, 0.999_999, -0.5, f32::NAN] {
            let error = Divergence::Jsd { teacher_weight }.validate().unwrap_err();
            assert!(error.to_string().contains("`reverse_kl`"), "{error}");
        }
        for alpha in [1.0, -0.1, f32::NAN] {
            assert!(Divergence::SkewKl { alpha }.validate().unwrap_err().to_string().contains("`skew_kl`"));
            assert!(Divergence::SkewReverseKl { alpha }.validate().is_err());
        }
        let term = Term { divergence: Divergence::Tvd, weight: 1.0, temperature: 1.0 };
        let check = |divergences: &[Term]| HeadTerms { hard_label: 0.0, divergences, scale: 1.0 }.validate();
        assert_eq!(check(&[term; TERMS_MAX]), Ok(()));
        assert_eq!(check(&[term; TERMS_MAX + 1]), Err(DivergenceError::TooMany { n: 9 }));
        assert!(check(&[Term { temperature: 0.0, ..term }]).is_err());
        assert!(check(&[Term { weight: f32::NAN, ..term }]).is_err());
    }

    #[test]
    fn only_what_is_linear_in_the_teacher_is_taken_of_counts() {
        let alpha = 0.1;
        let others = [
            Divergence::ReverseKl,
            Divergence::Jsd { teacher_weight: 0.5 },
            Divergence::SkewKl { alpha },
            Divergence::SkewReverseKl { alpha },
            Divergence::Tvd,
        ];
        for divergence in others {
            let refused = DivergenceError::Counts { divergence: divergence.name() };
            assert_eq!(divergence.validate_for(TailMode::None), Err(refused));
            let refused = DivergenceError::Renormalised { divergence: divergence.name() };
            assert_eq!(divergence.validate_for(TailMode::Renormalise), Err(refused));
            assert_eq!(divergence.validate_for(TailMode::Drop), Ok(()));
        }
        assert_eq!(Divergence::ForwardKl.validate_for(TailMode::None), Ok(()));
        assert_eq!(Divergence::ForwardKl.validate_for(TailMode::Renormalise), Ok(()));
        assert_eq!(Divergence::SkewKl { alpha: 0.0 }.validate_for(TailMode::None), Ok(()));
    }
}

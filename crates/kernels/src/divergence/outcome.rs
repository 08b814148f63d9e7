//! φ(p, q) and q·∂φ/∂q of one outcome, and the passes over a row that are made of them.

use super::{Divergence, LOG_P_MIN};
use crate::cpu::multiversion;
use crate::math::{exp, ln};

/// Ids that are looked at together.
pub(super) const BLOCK: usize = 256;
const LANES: usize = 8;

/// φ(p, q) and h = q·∂φ/∂q.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) loss: f32,
    pub(crate) h: f32,
}

/// How logits become log-probabilities: log q = z·scale − student, log p = t·scale − teacher.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Softmaxes {
    pub(crate) scale: f32,
    pub(crate) student: f32,
    pub(crate) teacher: f32,
}

/// p·difference, and 0 where p is 0 and the difference may be infinite.
#[inline(always)]
fn weighted(p: f32, difference: f32) -> f32 {
    if p == 0.0 { 0.0 } else { p * difference }
}

#[inline(always)]
fn forward_kl(log_p: f32, log_q: f32, _: f32) -> Outcome {
    let p = exp(log_p);
    Outcome { loss: weighted(p, log_p - log_q), h: -p }
}

#[inline(always)]
fn reverse_kl(log_p: f32, log_q: f32, _: f32) -> Outcome {
    let q = exp(log_q);
    // A comparison that NaN fails, so that it is kept.
    let log_p = if log_p < LOG_P_MIN { LOG_P_MIN } else { log_p };
    let loss = weighted(q, log_q - log_p);
    Outcome { loss, h: loss + q }
}

/// share·a + (1 − share)·b, never so small that its logarithm or a quotient by it is not finite.
#[inline(always)]
fn mixture(share: f32, a: f32, b: f32) -> f32 {
    let m = share * a + (1.0 - share) * b;
    if m < f32::MIN_POSITIVE { f32::MIN_POSITIVE } else { m }
}

#[inline(always)]
fn jsd(log_p: f32, log_q: f32, beta: f32) -> Outcome {
    let (p, q) = (exp(log_p), exp(log_q));
    let log_m = ln(mixture(beta, p, q));
    let student = (1.0 - beta) * weighted(q, log_q - log_m);
    Outcome { loss: beta * weighted(p, log_p - log_m) + student, h: student }
}

#[inline(always)]
fn skew_kl(log_p: f32, log_q: f32, alpha: f32) -> Outcome {
    let (p, q) = (exp(log_p), exp(log_q));
    let m = mixture(alpha, p, q);
    Outcome { loss: weighted(p, log_p - ln(m)), h: -(1.0 - alpha) * p * (q / m) }
}

#[inline(always)]
fn skew_reverse_kl(log_p: f32, log_q: f32, alpha: f32) -> Outcome {
    let (p, q) = (exp(log_p), exp(log_q));
    let m = mixture(alpha, q, p);
    let loss = weighted(q, log_q - ln(m));
    Outcome { loss, h: loss + q * (1.0 - alpha * (q / m)) }
}

#[inline(always)]
fn tvd(log_p: f32, log_q: f32, _: f32) -> Outcome {
    let (p, q) = (exp(log_p), exp(log_q));
    let difference = q - p;
    let sign = if difference > 0.0 { 0.5 } else { -0.5 };
    let sign = if difference == 0.0 { 0.0 } else { sign };
    Outcome { loss: sign * difference, h: q * sign }
}

/// Two passes over a piece of a row: Σ φ and Σ h, and out += weight·(h − total·q).
macro_rules! passes {
    ($outcome:ident, $sums:ident, $gradient:ident) => {
        multiversion! {
            fn $sums(z: &[f32], t: &[f32], s: Softmaxes, parameter: f32) -> (f64, f64) {
                let (mut losses, mut hs) = ([0.0f64; LANES], [0.0f64; LANES]);
                let (z8, t8) = (z.chunks_exact(LANES), t.chunks_exact(LANES));
                let (z_rest, t_rest) = (z8.remainder(), t8.remainder());
                for (z, t) in z8.zip(t8) {
                    for k in 0..LANES {
                        let o = $outcome(t[k] * s.scale - s.teacher, z[k] * s.scale - s.student, parameter);
                        losses[k] += f64::from(o.loss);
                        hs[k] += f64::from(o.h);
                    }
                }
                for (k, (z, t)) in z_rest.iter().zip(t_rest).enumerate() {
                    let o = $outcome(t * s.scale - s.teacher, z * s.scale - s.student, parameter);
                    losses[k] += f64::from(o.loss);
                    hs[k] += f64::from(o.h);
                }
                (losses.iter().sum(), hs.iter().sum())
            }
        }

        multiversion! {
            fn $gradient(out: &mut [f32], z: &[f32], t: &[f32], s: Softmaxes, parameter: f32, weight: f32, total: f32) {
                for ((out, z), t) in out.iter_mut().zip(z).zip(t) {
                    let log_q = z * s.scale - s.student;
                    let o = $outcome(t * s.scale - s.teacher, log_q, parameter);
                    *out += weight * (o.h - total * exp(log_q));
                }
            }
        }
    };
}

passes!(forward_kl, forward_kl_sums, forward_kl_gradient);
passes!(reverse_kl, reverse_kl_sums, reverse_kl_gradient);
passes!(jsd, jsd_sums, jsd_gradient);
passes!(skew_kl, skew_kl_sums, skew_kl_gradient);
passes!(skew_reverse_kl, skew_reverse_kl_sums, skew_reverse_kl_gradient);
passes!(tvd, tvd_sums, tvd_gradient);

type Sums = fn(&[f32], &[f32], Softmaxes, f32) -> (f64, f64);
type Gradient = fn(&mut [f32], &[f32], &[f32], Softmaxes, f32, f32, f32);

/// A divergence as it is computed.
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    outcome: fn(f32, f32, f32) -> Outcome,
    sums: Sums,
    gradient: Gradient,
    parameter: f32,
}

impl Kernel {
    /// # Panics
    /// For a divergence of two vocabularies, which no outcome has by itself.
    pub(super) fn of(divergence: Divergence) -> Kernel {
        macro_rules! kernel {
            ($outcome:ident, $sums:ident, $gradient:ident, $parameter:expr) => {
                Kernel { outcome: $outcome, sums: $sums, gradient: $gradient, parameter: $parameter }
            };
        }
        match divergence.canonical() {
            Divergence::ForwardKl => kernel!(forward_kl, forward_kl_sums, forward_kl_gradient, 0.0),
            Divergence::ReverseKl => kernel!(reverse_kl, reverse_kl_sums, reverse_kl_gradient, 0.0),
            Divergence::Jsd { teacher_weight } => kernel!(jsd, jsd_sums, jsd_gradient, teacher_weight),
            Divergence::SkewKl { alpha } => kernel!(skew_kl, skew_kl_sums, skew_kl_gradient, alpha),
            Divergence::SkewReverseKl { alpha } => {
                kernel!(skew_reverse_kl, skew_reverse_kl_sums, skew_reverse_kl_gradient, alpha)
            }
            Divergence::Tvd => kernel!(tvd, tvd_sums, tvd_gradient, 0.0),
            Divergence::Uld | Divergence::Gold { .. } => {
                panic!("`{}` is of two vocabularies", divergence.name())
            }
        }
    }

    pub(crate) fn outcome(&self, log_p: f32, log_q: f32) -> Outcome {
        (self.outcome)(log_p, log_q, self.parameter)
    }

    /// Σ φ and Σ h over a row, block by block; without `t` every log p is −`s.teacher`.
    pub(super) fn sums(&self, z: &[f32], t: Option<&[f32]>, s: Softmaxes) -> (f64, f64) {
        let flat = [0.0; BLOCK];
        let (mut loss, mut h) = (0.0, 0.0);
        for (i, z) in z.chunks(BLOCK).enumerate() {
            let t = t.map_or(&flat[..z.len()], |t| &t[i * BLOCK..][..z.len()]);
            let (l, more) = (self.sums)(z, t, s, self.parameter);
            loss += l;
            h += more;
        }
        (loss, h)
    }

    /// out += weight·(h − total·q) for up to [`BLOCK`] ids.
    pub(super) fn add_gradient(
        &self,
        out: &mut [f32],
        z: &[f32],
        t: Option<&[f32]>,
        s: Softmaxes,
        weight: f32,
        total: f32,
    ) {
        let flat = [0.0; BLOCK];
        let t = t.unwrap_or(&flat[..z.len()]);
        (self.gradient)(out, z, t, s, self.parameter, weight, total);
    }
}

//! Approximate likelihood matching: a teacher of another tokenizer teaches how likely pieces of text are.
//!
//! For a chunk of bytes c that both tokenizations split at ([`crate::align`]), P = Π p over the teacher's tokens
//! in c and Q = Π q over the student's. With p = P^(1/τ) and q = Q^(1/τ), its loss is
//!
//! τ·( p·log(p/q) + (1−p)·log((1−p)/(1−q)) ),
//!
//! the KL of "c or something else" (Minixhofer et al. 2025, where the factor τ is left out). The
//! factor keeps gradients at their size as τ grows: the loss then tends to B − A + A·log(A/B) with A = −log P
//! and B = −log Q, which weighs unlikely chunks as much as it does likely ones.
//!
//! The loss of an example is the sum over its chunks; each stands at its last token. It is zero where Q = P in
//! every chunk, and only there. Of the teacher it needs nothing but log-probabilities of its own tokens.

use std::ops::Range;

use stillroom_model::LabelLoss;

use crate::TeacherChunk;

/// Nats by which every chunk counts as less likely, so that 1 − P is never 0; the same on both sides.
const LESS: f64 = 1e-6;

/// The loss of one chunk in nats and its slope by log Q; P and Q are given by their logarithms, in f64.
///
/// ```
/// use stillroom_distill::approximate_likelihood_loss;
/// assert_eq!(approximate_likelihood_loss(-2.0, -2.0, 100.0), (0.0, 0.0));
/// let (loss, slope) = approximate_likelihood_loss(0.5f64.ln(), 0.25f64.ln(), 1.0);
/// assert!((loss - (0.5 * 2f64.ln() + 0.5 * (2.0f64 / 3.0).ln())).abs() < 1e-6);
/// assert!((slope - (0.25 - 0.5) / 0.75).abs() < 1e-6);
/// ```
///
/// # Panics
/// Where a log-likelihood is above 0 by more than rounding, or not a number.
pub fn approximate_likelihood_loss(teacher: f64, student: f64, temperature: f64) -> (f64, f64) {
    let soften = |logprob: f64| {
        assert!(logprob <= LIKELIHOOD_SLACK, "a log-likelihood is {logprob}");
        (logprob.min(0.0) - LESS) / temperature
    };
    let (a, b) = (soften(teacher), soften(student));
    let (p, not_p, not_q) = (a.exp(), -a.exp_m1(), -b.exp_m1());
    let here = if p > 0.0 { p * (a - b) } else { 0.0 };
    let elsewhere = not_p * (log1mexp(a) - log1mexp(b));
    // (q − p)/(1 − q), by a difference that does not cancel.
    let slope = if a < b { b.exp() * -(a - b).exp_m1() } else { p * (b - a).exp_m1() } / not_q;
    // The sum cancels where both sides are close; the loss is not negative.
    let loss = if a == b { 0.0 } else { (temperature * (here + elsewhere)).max(0.0) };
    (loss, slope)
}

/// How far rounding of f32 sums may carry a log-likelihood above 0.
const LIKELIHOOD_SLACK: f64 = 1e-3;

/// log(1 − e^x) for x < 0, by the formula that keeps its digits (Mächler 2012).
fn log1mexp(x: f64) -> f64 {
    if x > -std::f64::consts::LN_2 { (-x.exp_m1()).ln() } else { (-x.exp()).ln_1p() }
}

/// The chunks of a micro-batch.
#[derive(Debug)]
pub(crate) struct ApproximateLikelihood {
    /// Supervised rows of the batch and the teacher's log-likelihood, in order.
    chunks: Vec<(Range<usize>, f64)>,
    temperature: f64,
}

impl ApproximateLikelihood {
    pub(crate) fn new(temperature: f64) -> ApproximateLikelihood {
        ApproximateLikelihood { chunks: Vec::new(), temperature }
    }

    /// Appends a document whose supervised tokens are rows `first_row..first_row + n_supervised`. Chunks that it
    /// was cut in do not count.
    pub(crate) fn push(&mut self, chunks: &[TeacherChunk], first_row: usize, n_supervised: usize) {
        let whole = chunks.iter().filter(|chunk| chunk.tokens.end <= n_supervised);
        self.chunks.extend(whole.map(|c| (first_row + c.tokens.start..first_row + c.tokens.end, c.logprob)));
    }
}

impl LabelLoss for ApproximateLikelihood {
    fn evaluate(&self, rows: Range<usize>, logprobs: &[f32], losses: &mut [f32], slopes: &mut [f32]) {
        losses.fill(0.0);
        slopes.fill(0.0);
        let from = self.chunks.partition_point(|(chunk, _)| chunk.start < rows.start);
        for (chunk, teacher) in self.chunks[from..].iter().take_while(|(chunk, _)| chunk.end <= rows.end) {
            let at = chunk.start - rows.start..chunk.end - rows.start;
            let student = logprobs[at.clone()].iter().map(|&l| f64::from(l)).sum();
            let (loss, slope) = approximate_likelihood_loss(*teacher, student, self.temperature);
            losses[at.end - 1] = loss as f32;
            slopes[at].fill(slope as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_central_differences() {
        for temperature in [1.0, 4.0, 100.0] {
            for teacher in [-1e-5, -0.01, -0.7, -3.0, -40.0] {
                for student in [-1e-3, -0.2, -0.7, -5.0, -60.0] {
                    let (_, slope) = approximate_likelihood_loss(teacher, student, temperature);
                    let h = 1e-5 * student.abs();
                    let at = |x: f64| approximate_likelihood_loss(teacher, x, temperature).0;
                    let found = (at(student + h) - at(student - h)) / (2.0 * h);
                    let close = 1e-6 * slope.abs().max(1.0);
                    assert!(
                        (found - slope).abs() < close,
                        "{temperature} {teacher} {student}: {found} {slope}"
                    );
                }
            }
        }
    }

    #[test]
    fn it_is_zero_where_the_likelihoods_match_and_nowhere_else() {
        for temperature in [1.0, 100.0] {
            for (a, b) in [(0.0, 0.0), (-1e-9, -1e-9), (-700.0, -700.0), (-2000.0, -2000.0)] {
                assert_eq!(approximate_likelihood_loss(a, b, temperature), (0.0, 0.0));
            }
            for (a, b) in [(0.0, -0.1), (-0.1, 0.0), (-3.0, -4.0), (-4.0, -3.0), (-1e-3, -30.0)] {
                let (loss, slope) = approximate_likelihood_loss(a, b, temperature);
                assert!(loss > 0.0 && loss.is_finite(), "{a} {b}: {loss}");
                // A likelier chunk is wanted where the student finds it less likely than the teacher.
                assert!(slope.is_finite() && (slope < 0.0) == (b < a), "{a} {b}: {slope}");
            }
        }
        // What the teacher finds impossible costs what the student gives it, and that only.
        let (loss, slope) = approximate_likelihood_loss(f64::NEG_INFINITY, 0.5f64.ln(), 1.0);
        assert!((loss - 2f64.ln()).abs() < 1e-5 && (slope - 1.0).abs() < 1e-5, "{loss} {slope}");
    }

    #[test]
    fn with_temperature_it_tends_to_its_limit() {
        for (teacher, student) in [(-0.3f64, -2.0f64), (-2.0, -0.3), (-9.0, -4.0)] {
            let limit = (teacher - student) - teacher * (teacher / student).ln();
            let (loss, slope) = approximate_likelihood_loss(teacher, student, 1e5);
            assert!((loss / limit - 1.0).abs() < 1e-3, "{loss} {limit}");
            assert!((slope - (teacher / student - 1.0)).abs() < 1e-3);
        }
    }

    #[test]
    fn each_chunk_stands_at_its_last_token_and_pulls_all_of_its_tokens() {
        let mut batch = ApproximateLikelihood::new(1.0);
        let chunk = |tokens, logprob| TeacherChunk { tokens, logprob };
        batch.push(&[chunk(0..2, -1.0), chunk(3..4, -0.5)], 0, 4);
        batch.push(&[chunk(0..1, -2.0), chunk(1..3, -2.0)], 4, 2);
        let logprobs = [-0.5, -0.25, -9.0, -0.5, -1.0, -1.0];
        let (mut losses, mut slopes) = ([f32::NAN; 6], [f32::NAN; 6]);
        batch.evaluate(0..6, &logprobs, &mut losses, &mut slopes);
        let (first, slope) = approximate_likelihood_loss(-1.0, -0.75, 1.0);
        let (last, steep) = approximate_likelihood_loss(-2.0, -1.0, 1.0);
        assert_eq!(
            losses,
            [0.0, first as f32, 0.0, 0.0, last as f32, 0.0],
            "a chunk that is cut has no loss"
        );
        assert_eq!(slopes, [slope as f32, slope as f32, 0.0, 0.0, steep as f32, 0.0]);
        // The second document alone.
        let (mut part, mut slope) = ([f32::NAN; 2], [f32::NAN; 2]);
        batch.evaluate(4..6, &logprobs[4..], &mut part, &mut slope);
        assert_eq!((part[0], part[1], slope[0]), (losses[4], losses[5], slopes[4]));
    }
}

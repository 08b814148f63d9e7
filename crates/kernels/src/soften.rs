//! One row of logits as a distribution to draw from.

use crate::cpu::multiversion;
use crate::math::exp;
use crate::rows;

/// Numbers whose sum [`Softened`] keeps together.
pub const SUM_BLOCK: usize = 256;
const LANES: usize = 8;

/// What is known of p = e / Σe, where a row of logits has become e = exp((z − max z)/τ).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Softened {
    /// Σe of each [`SUM_BLOCK`] ids, in f64.
    pub block_sums: Vec<f64>,
    /// Their sum in ascending order.
    pub sum: f64,
    /// −Σ p·log p in nats.
    pub entropy: f64,
}

/// Turns logits into exp((z − max z)/τ) in place. Sums are f64, in fixed order.
pub fn soften(z: &mut [f32], temperature: f32) -> Softened {
    let top = maximum(z);
    let mut softened = Softened::default();
    let mut weighted = 0.0f64;
    for block in z.chunks_mut(SUM_BLOCK) {
        let (sum, dot) = soften_block(block, top, 1.0 / temperature);
        softened.block_sums.push(sum);
        weighted += dot;
    }
    softened.sum = softened.block_sums.iter().sum();
    softened.entropy = (softened.sum.ln() - weighted / softened.sum).max(0.0);
    softened
}

/// [`soften`] without the entropy: `block_sums` are replaced, their sum is returned. No new memory for as
/// long a row as before.
pub fn weigh(z: &mut [f32], temperature: f32, block_sums: &mut Vec<f64>) -> f64 {
    let top = maximum(z);
    block_sums.clear();
    block_sums.extend(z.chunks_mut(SUM_BLOCK).map(|block| weigh_block(block, top, 1.0 / temperature)));
    block_sums.iter().sum()
}

/// The largest number and where it stands first; NaN is passed over.
pub fn first_maximum(z: &[f32]) -> (usize, f32) {
    let top = maximum(z);
    let block = z.chunks(SUM_BLOCK).position(|block| holds(block, top)).unwrap_or(0) * SUM_BLOCK;
    let within = z.get(block..).and_then(|rest| rest.iter().position(|&v| v == top));
    (block + within.unwrap_or(0), top)
}

multiversion! {
    /// Whether a number stands anywhere in `z`; all of it is looked at, eight numbers at a time.
    fn holds(z: &[f32], number: f32) -> bool {
        z.iter().fold(0u32, |found, &v| found | u32::from(v == number)) != 0
    }
}

/// log Σ eᶻ as the divergence head computes it; not finite where a logit is NaN or +∞.
pub fn log_sum_exp(z: &[f32]) -> f32 {
    rows::log_sum_exp(z, 1.0)
}

multiversion! {
    /// e in place; Σe and Σe·log e. At most [`SUM_BLOCK`] numbers.
    fn soften_block(z: &mut [f32], top: f32, scale: f32) -> (f64, f64) {
        let mut logs = [0.0; SUM_BLOCK];
        let logs = &mut logs[..z.len()];
        for (log, v) in logs.iter_mut().zip(&mut *z) {
            *log = (*v - top) * scale;
            *v = exp(*log);
        }
        let mut dots = [0.0f64; LANES];
        for (logs, e) in logs.chunks(LANES).zip(z.chunks(LANES)) {
            for ((dot, log), e) in dots.iter_mut().zip(logs).zip(e) {
                *dot += if *e > 0.0 { f64::from(*e) * f64::from(*log) } else { 0.0 };
            }
        }
        (lanes_sum(z), dots.iter().sum())
    }
}

multiversion! {
    /// e in place; Σe.
    fn weigh_block(z: &mut [f32], top: f32, scale: f32) -> f64 {
        for v in &mut *z {
            *v = exp((*v - top) * scale);
        }
        lanes_sum(z)
    }
}

/// Σe of interleaved lanes.
#[inline(always)]
fn lanes_sum(e: &[f32]) -> f64 {
    let mut sums = [0.0f64; LANES];
    let (pieces, rest) = e.as_chunks::<LANES>();
    for piece in pieces {
        for k in 0..LANES {
            sums[k] += f64::from(piece[k]);
        }
    }
    sums.iter_mut().zip(rest).for_each(|(sum, e)| *sum += f64::from(*e));
    sums.iter().sum()
}

multiversion! {
    fn maximum(z: &[f32]) -> f32 {
        rows::max(z)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_entropy_are_those_of_f64_arithmetic() {
        for n in [1, 7, 8, 255, 256, 257, 1000] {
            let logits: Vec<f32> = (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.1).collect();
            for temperature in [0.5, 1.0, 2.0] {
                let mut e = logits.clone();
                let found = soften(&mut e, temperature);
                let top = logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
                let logs = logits.iter().map(|&z| f64::from(z - top) / f64::from(temperature));
                let exact: Vec<f64> = logs.map(f64::exp).collect();
                let sum: f64 = exact.iter().sum();
                let entropy: f64 = exact.iter().map(|e| -(e / sum) * (e / sum).ln()).sum();
                assert!((found.sum / sum - 1.0).abs() < 1e-6);
                assert!((found.entropy - entropy).abs() < 1e-5, "{} {entropy}", found.entropy);
                assert!(e.iter().zip(&exact).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6));
                let blocks = e.chunks(SUM_BLOCK).map(|b| b.iter().map(|&v| f64::from(v)).sum::<f64>());
                assert!(blocks.zip(&found.block_sums).all(|(a, b)| (a - b).abs() < 1e-9));
                let (mut weighed, mut sums) = (logits.clone(), vec![7.0]);
                assert_eq!(weigh(&mut weighed, temperature, &mut sums), found.sum);
                assert_eq!((weighed, sums), (e, found.block_sums));
            }
        }
    }

    #[test]
    fn the_first_of_equal_maxima_is_found() {
        for n in [1, 2, 255, 256, 257, 1000] {
            for at in [0, n / 2, n - 1] {
                let mut z = vec![-1.0; n];
                z[at..].iter_mut().step_by(3).for_each(|v| *v = 0.5);
                assert_eq!(first_maximum(&z), (at, 0.5));
            }
        }
        assert_eq!(first_maximum(&[f32::NAN, -2.0, f32::NAN, -1.0]), (3, -1.0));
        assert_eq!(first_maximum(&[f32::NEG_INFINITY; 3]), (0, f32::NEG_INFINITY));
    }

    #[test]
    fn impossible_ids_have_no_weight_and_no_entropy() {
        let mut z = [0.0, f32::NEG_INFINITY, 0.0];
        let found = soften(&mut z, 1.0);
        assert_eq!(z, [1.0, 0.0, 1.0]);
        assert!((found.entropy - 2.0f64.ln()).abs() < 1e-12);
        assert!(!log_sum_exp(&[0.0, f32::NAN]).is_finite());
        assert!(!log_sum_exp(&[0.0, f32::INFINITY]).is_finite());
    }
}

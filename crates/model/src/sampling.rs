//! From one row of logits to a token, to draws, to the most probable ids.

use std::cell::RefCell;

use stillroom_core::{CounterRng, SparseRow};
use stillroom_kernels::{SUM_BLOCK, first_maximum, log_sum_exp, soften, weigh};

use crate::generate::SamplingParams;

/// What one thread needs to draw from a row; kept from token to token.
#[derive(Default)]
struct Scratch {
    /// exp((z − max z)/τ).
    e: Vec<f32>,
    /// Sums of it, see [`weigh`].
    block_sums: Vec<f64>,
    /// Mass of weights that begin with the same bits.
    bins: Vec<f64>,
    nucleus: Vec<(u32, f32)>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The next token and its log-probability under the model (temperature 1, nothing cut off), which is
/// not finite where a logit is NaN or +∞.
pub(crate) fn pick(z: &[f32], sampling: &SamplingParams, rng: &mut CounterRng) -> (u32, f32) {
    let lse = log_sum_exp(z);
    if !lse.is_finite() {
        return (0, f32::NAN);
    }
    if sampling.temperature == 0.0 {
        let (id, top) = first_maximum(z);
        return (id as u32, top - lse);
    }
    let id = SCRATCH.with_borrow_mut(|scratch| {
        scratch.e.clear();
        scratch.e.extend_from_slice(z);
        let sum = weigh(&mut scratch.e, sampling.temperature, &mut scratch.block_sums);
        if sampling.top_p < 1.0 {
            return draw_from_nucleus(scratch, sum, f64::from(sampling.top_p), rng.uniform());
        }
        Walk::new(&scratch.e, &scratch.block_sums).find(rng.uniform() * sum) as u32
    });
    (id, z[id as usize] - lse)
}

/// The `n` most probable ids and their log-probabilities at temperature 1, in falling order, lower ids first among equals.
pub(crate) fn likeliest(z: &[f32], n: usize) -> Vec<(u32, f32)> {
    let lse = log_sum_exp(z);
    let n = n.min(z.len());
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(n + 1);
    for (id, &logit) in (0..).zip(z) {
        if best.len() == n && best.last().is_none_or(|&(_, last)| logit <= last) {
            continue;
        }
        let at = best.partition_point(|&(_, other)| other >= logit);
        best.insert(at, (id, logit));
        best.truncate(n);
    }
    best.iter_mut().for_each(|(_, logit)| *logit -= lse);
    best
}

/// Finds ids by the running sum of their weights; targets come in ascending order.
struct Walk<'a> {
    e: &'a [f32],
    block_sums: &'a [f64],
    block: usize,
    /// Mass of the blocks before.
    before: f64,
}

impl<'a> Walk<'a> {
    fn new(e: &'a [f32], block_sums: &'a [f64]) -> Walk<'a> {
        Walk { e, block_sums, block: 0, before: 0.0 }
    }

    /// The first id at which the running sum exceeds `target`; where rounding leaves none, the last one
    /// with any weight.
    fn find(&mut self, target: f64) -> usize {
        while self.block + 1 < self.block_sums.len() && self.before + self.block_sums[self.block] <= target {
            self.before += self.block_sums[self.block];
            self.block += 1;
        }
        let start = self.block * SUM_BLOCK;
        let block = &self.e[start..self.e.len().min(start + SUM_BLOCK)];
        let (mut sum, mut last) = (self.before, None);
        for (k, &e) in block.iter().enumerate().filter(|(_, e)| **e > 0.0) {
            sum += f64::from(e);
            last = Some(start + k);
            if sum > target {
                break;
            }
        }
        last.or_else(|| self.e[..start].iter().rposition(|&e| e > 0.0)).unwrap_or(0)
    }
}

/// Draws from the smallest set of most probable tokens with at least `top_p` of the mass; among equals
/// lower ids come first. Source: Holtzman et al. 2020, section 3.1.
fn draw_from_nucleus(scratch: &mut Scratch, sum: f64, top_p: f64, uniform: f64) -> u32 {
    let Scratch { e, bins, nucleus, .. } = scratch;
    // Tokens below this share hold less than 1 − top_p together, so the set closes before them.
    let floor = (sum * (1.0 - top_p) / e.len() as f64) as f32;
    let floor = floor.max(least_of_nucleus(e, floor, top_p * sum, bins));
    nucleus.clear();
    for (block, start) in e.chunks(SUM_BLOCK).zip((0..).step_by(SUM_BLOCK)) {
        if block.iter().fold(false, |any, &e| any | (e >= floor)) {
            let above = block.iter().zip(start..).filter(|(e, _)| **e >= floor);
            nucleus.extend(above.map(|(&e, id)| (id, e)));
        }
    }
    nucleus.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let mut mass = 0.0f64;
    let closing = nucleus.iter().position(|(_, e)| {
        mass += f64::from(*e);
        mass >= top_p * sum
    });
    nucleus.truncate(closing.map_or(nucleus.len(), |n| n + 1));
    let target = uniform * mass;
    let mut running = 0.0f64;
    let found = nucleus.iter().find(|(_, e)| {
        running += f64::from(*e);
        running > target
    });
    found.or(nucleus.last()).map_or(0, |(id, _)| *id)
}

/// A weight such that those from it on hold at least `mass`, and not many more than needed: so only these
/// must be sorted. Weights are counted by their first bits, whose order is theirs.
fn least_of_nucleus(e: &[f32], floor: f32, mass: f64, bins: &mut Vec<f64>) -> f32 {
    /// Leaves the exponent and four bits of the mantissa.
    const SHIFT: u32 = 19;
    /// Sums in another order differ by less than this share.
    const ROUNDING: f64 = 1e-9;
    let bin = |e: f32| (e.to_bits() >> SHIFT) as usize;
    bins.clear();
    bins.resize(bin(1.0) + 1, 0.0);
    e.iter().filter(|e| **e >= floor).for_each(|&e| bins[bin(e)] += f64::from(e));
    let mut above = 0.0;
    let closing = bins.iter().rposition(|bin| {
        above += bin;
        above >= mass * (1.0 + ROUNDING)
    });
    f32::from_bits((closing.unwrap_or(0) as u32) << SHIFT)
}

/// How the draws of one position go together. Either way an id is expected n·p times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    /// Each by itself: the variance of an id's share is p(1−p)/n.
    Independent,
    /// At equal distances along the cumulated probabilities, with one random beginning (systematic sampling, Madow
    /// and Madow 1944): an id is drawn ⌊n·p⌋ or ⌈n·p⌉ times, and the variance of its share is f(1−f)/n², f the fraction
    /// of n·p.
    Even,
}

/// `n` draws from softmax(z/τ), as unique ids with count/n, and the exact entropy.
pub(crate) fn draw_targets(
    z: &mut [f32],
    n: u32,
    spacing: Spacing,
    temperature: f32,
    rng: &mut CounterRng,
) -> SparseRow {
    let softened = soften(z, temperature);
    let beginning = rng.uniform();
    let mut targets: Vec<f64> = match spacing {
        Spacing::Independent => (1..n).map(|_| rng.uniform()).chain([beginning]).collect(),
        Spacing::Even => (0..n).map(|i| (beginning + f64::from(i)) / f64::from(n)).collect(),
    };
    targets.iter_mut().for_each(|target| *target *= softened.sum);
    targets.sort_unstable_by(f64::total_cmp);
    let mut walk = Walk::new(z, &softened.block_sums);
    let mut counts: Vec<(usize, u32)> = Vec::new();
    for target in targets {
        let id = walk.find(target);
        match counts.last_mut() {
            Some((last, count)) if *last == id => *count += 1,
            _ => counts.push((id, 1)),
        }
    }
    SparseRow {
        ids: counts.iter().map(|(id, _)| *id as u32).collect(),
        probs: counts.iter().map(|(_, count)| *count as f32 / n as f32).collect(),
        teacher_entropy: softened.entropy as f32,
    }
}

/// The `k` most probable ids of softmax(z/τ) with their exact probabilities, ids ascending; among
/// equals lower ids are kept. The entropy is that of the whole distribution.
pub(crate) fn top_k(z: &mut [f32], k: usize, temperature: f32) -> SparseRow {
    let k = k.min(z.len());
    let softened = soften(z, temperature);
    let mut ids: Vec<u32> = (0..z.len() as u32).collect();
    if k < ids.len() {
        let by_weight = |a: &u32, b: &u32| z[*b as usize].total_cmp(&z[*a as usize]).then(a.cmp(b));
        ids.select_nth_unstable_by(k, by_weight);
        ids.truncate(k);
    }
    ids.sort_unstable();
    let probs = ids.iter().map(|&id| (f64::from(z[id as usize]) / softened.sum) as f32).collect();
    SparseRow { ids, probs, teacher_entropy: softened.entropy as f32 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn params(temperature: f32, top_p: f32) -> SamplingParams {
        SamplingParams { max_tokens: 1, temperature, top_p, seed: 0, stop_token_ids: vec![] }
    }

    fn probabilities(z: &[f32], temperature: f64) -> Vec<f64> {
        let e: Vec<f64> = z.iter().map(|&v| (f64::from(v) / temperature).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.iter().map(|e| e / sum).collect()
    }

    const Z: [f32; 6] = [0.5, -1.0, 2.0, 2.0, 0.0, -30.0];

    #[test]
    fn greedy_takes_the_lowest_of_equal_ids_with_its_log_probability() {
        let (id, logprob) = pick(&Z, &params(0.0, 1.0), &mut CounterRng::new(&[1]));
        assert_eq!(id, 2);
        assert!((f64::from(logprob) - probabilities(&Z, 1.0)[2].ln()).abs() < 1e-6);
    }

    #[test]
    fn sampled_frequencies_are_those_of_the_tempered_distribution() {
        let p = probabilities(&Z, 0.7);
        let mut counts = [0u32; 6];
        for n in 0..20_000 {
            let (id, _) = pick(&Z, &params(0.7, 1.0), &mut CounterRng::new(&[n]));
            counts[id as usize] += 1;
        }
        for (&count, &p) in counts.iter().zip(&p) {
            let bound = 4.5 * (p * (1.0 - p) / 20_000.0).sqrt() + 1e-4;
            assert!((f64::from(count) / 20_000.0 - p).abs() < bound, "{counts:?} {p:?}");
        }
    }

    #[test]
    fn the_nucleus_is_the_smallest_set_that_holds_top_p() {
        // Ids 2 and 3 hold 0.415 each, id 0 holds 0.093.
        let draw_all = |top_p| -> std::collections::BTreeSet<u32> {
            (0..500).map(|n| pick(&Z, &params(1.0, top_p), &mut CounterRng::new(&[n])).0).collect()
        };
        assert_eq!(draw_all(0.3), [2].into());
        assert_eq!(draw_all(0.5), [2, 3].into());
        assert_eq!(draw_all(0.9), [0, 2, 3].into());
    }

    #[test]
    fn logits_that_are_not_finite_are_told_by_the_log_probability() {
        for bad in [f32::NAN, f32::INFINITY] {
            let (_, logprob) = pick(&[0.0, bad], &params(1.0, 1.0), &mut CounterRng::new(&[1]));
            assert!(logprob.is_nan());
        }
    }

    #[test]
    fn draws_are_counted_and_the_entropy_is_exact() {
        let p = probabilities(&Z, 2.0);
        let entropy: f64 = p.iter().map(|p| -p * p.ln()).sum();
        let mut mean = [0.0f64; 6];
        for n in 0..400 {
            let row =
                draw_targets(&mut Z.to_vec(), 50, Spacing::Independent, 2.0, &mut CounterRng::new(&[n]));
            assert!(row.ids.is_sorted() && row.probs.iter().all(|&p| p > 0.0));
            assert!((row.probs.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            assert!((f64::from(row.teacher_entropy) - entropy).abs() < 1e-6);
            for (&id, &p) in row.ids.iter().zip(&row.probs) {
                mean[id as usize] += f64::from(p) / 400.0;
            }
        }
        for (mean, p) in mean.iter().zip(&p) {
            assert!((mean - p).abs() < 4.5 * (p * (1.0 - p) / 20_000.0).sqrt() + 1e-5);
        }
    }

    #[test]
    fn evenly_spaced_draws_are_unbiased_and_never_more_than_one_from_their_share() {
        let p = probabilities(&Z, 2.0);
        let mut mean = [0.0f64; 6];
        for key in 0..4000 {
            let mut rng = CounterRng::new(&[key]);
            let row = draw_targets(&mut Z.to_vec(), 50, Spacing::Even, 2.0, &mut rng);
            assert!((row.probs.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            for (id, p) in p.iter().enumerate() {
                let stored = row.ids.iter().position(|&other| other == id as u32);
                let share = stored.map_or(0.0, |i| f64::from(row.probs[i]));
                assert!((50.0 * (share - p)).abs() < 1.0 + 1e-5, "{share} of {p}");
                mean[id] += share / 4000.0;
            }
        }
        for (mean, p) in mean.iter().zip(&p) {
            let fraction = (50.0 * p).fract();
            let deviation = (fraction * (1.0 - fraction) / 4000.0).sqrt() / 50.0;
            assert!((mean - p).abs() < 4.5 * deviation + 1e-6, "{mean} of {p}");
        }
    }

    #[test]
    fn a_wide_row_is_walked_to_its_end() {
        // Weight in the first, a middle and the last block only; the rest is impossible.
        let mut z = vec![f32::NEG_INFINITY; 1000];
        [3, 500, 999].into_iter().for_each(|id| z[id] = 0.0);
        let row = draw_targets(&mut z.clone(), 300, Spacing::Independent, 1.0, &mut CounterRng::new(&[1]));
        assert_eq!(row.ids, [3, 500, 999]);
        assert!(row.probs.iter().all(|p| (p - 1.0 / 3.0).abs() < 0.15), "{row:?}");
        let softened = soften(&mut z, 1.0);
        assert_eq!(Walk::new(&z, &softened.block_sums).find(f64::INFINITY), 999);
        z[999] = 0.0;
        assert_eq!(Walk::new(&z, &[1.0, 1.0, 0.0, 0.0]).find(2.0), 500, "nothing in the last block");
    }

    #[test]
    fn top_k_keeps_exact_probabilities_and_the_lower_of_equal_ids() {
        let p = probabilities(&Z, 1.0);
        let row = top_k(&mut Z.to_vec(), 1, 1.0);
        assert_eq!(row.ids, [2]);
        let row = top_k(&mut Z.to_vec(), 3, 1.0);
        assert_eq!(row.ids, [0, 2, 3]);
        assert!((f64::from(row.probs[0]) - p[0]).abs() < 1e-7);
        assert_eq!(top_k(&mut Z.to_vec(), 99, 1.0).ids.len(), 6);
    }

    #[test]
    fn the_likeliest_ids_come_in_order_and_the_lower_of_equals_first() {
        let top = likeliest(&Z, 4);
        assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [2, 3, 0, 4]);
        let p = probabilities(&Z, 1.0);
        assert!(top.iter().all(|&(id, logprob)| (f64::from(logprob) - p[id as usize].ln()).abs() < 1e-6));
        assert_eq!((likeliest(&Z, 0).len(), likeliest(&Z, 99).len()), (0, 6));
    }

    /// Rows of few different logits, so that ties are common, over more than one block.
    fn rows() -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec((-6i8..6).prop_map(f32::from), 1..600)
    }

    /// Ids from the most probable down, lower ids first among equals.
    fn descending(z: &[f32]) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..z.len() as u32).collect();
        ids.sort_by(|a, b| z[*b as usize].total_cmp(&z[*a as usize]));
        ids
    }

    proptest! {
        #[test]
        fn a_token_of_the_nucleus_has_less_than_top_p_before_it(
            z in rows(), top_p in 0.01f32..0.99, temperature in 0.3f32..3.0, key: u64
        ) {
            let (id, _) = pick(&z, &params(temperature, top_p), &mut CounterRng::new(&[key]));
            let p = probabilities(&z, f64::from(temperature));
            let before: f64 =
                descending(&z).iter().take_while(|&&other| other != id).map(|&other| p[other as usize]).sum();
            prop_assert!(before < f64::from(top_p) + 1e-5);
        }

        #[test]
        fn the_nucleus_is_that_of_all_weights_sorted(
            z in rows(), top_p in 0.01f32..0.99, temperature in 0.3f32..3.0, key: u64
        ) {
            let (id, _) = pick(&z, &params(temperature, top_p), &mut CounterRng::new(&[key]));
            let mut e = z.clone();
            let sum = soften(&mut e, temperature).sum;
            let ids = descending(&z);
            let mut mass = 0.0;
            let closing = ids.iter().position(|&id| {
                mass += f64::from(e[id as usize]);
                mass >= f64::from(top_p) * sum
            });
            let target = CounterRng::new(&[key]).uniform() * mass;
            let mut running = 0.0;
            let drawn = ids[..=closing.unwrap_or(ids.len() - 1)].iter().find(|id| {
                running += f64::from(e[**id as usize]);
                running > target
            });
            prop_assert_eq!(Some(&id), drawn.or(ids.get(closing.unwrap_or(0))));
        }

        #[test]
        fn a_draw_is_where_the_running_sum_passes_the_uniform_number(z in rows(), key: u64) {
            let (id, logprob) = pick(&z, &params(1.0, 1.0), &mut CounterRng::new(&[key]));
            let p = probabilities(&z, 1.0);
            let uniform = CounterRng::new(&[key]).uniform();
            let before: f64 = p[..id as usize].iter().sum();
            prop_assert!(before <= uniform + 1e-6 && uniform <= before + p[id as usize] + 1e-6);
            prop_assert!((f64::from(logprob) - p[id as usize].ln()).abs() < 1e-4);
        }

        #[test]
        fn top_k_is_the_head_of_the_sorted_row(z in rows(), k in 1usize..40) {
            let row = top_k(&mut z.clone(), k, 1.0);
            let mut expected = descending(&z);
            expected.truncate(k);
            expected.sort_unstable();
            prop_assert_eq!(row.ids, expected);
            prop_assert!(row.probs.iter().sum::<f32>() < 1.0 + 1e-5);
        }

        #[test]
        fn counts_of_draws_add_up(z in rows(), n in 1u32..200, key: u64) {
            let row = draw_targets(&mut z.clone(), n, Spacing::Independent, 1.0, &mut CounterRng::new(&[key]));
            prop_assert!(row.ids.windows(2).all(|w| w[0] < w[1]));
            let counts: Vec<f32> = row.probs.iter().map(|p| p * n as f32).collect();
            prop_assert!(counts.iter().all(|c| (c - c.round()).abs() < 1e-3 && *c > 0.5));
            prop_assert_eq!(counts.iter().map(|c| c.round() as u32).sum::<u32>(), n);
        }
    }
}

//! Intervals and paired comparisons: what turns two measurements into a claim, or into none.
//!
//! Everything here is a pure function of its arguments. Intervals are two-sided; `confidence`
//! is a probability strictly between 0 and 1, usually [`CONFIDENCE_95`]. A question that the
//! data cannot answer (no items, a single cluster) is `None`, never a made-up number.

use serde::{Deserialize, Serialize};

use crate::CounterRng;

/// The confidence that reports use.
pub const CONFIDENCE_95: f64 = 0.95;

/// A closed interval; as JSON `[low, high]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "[f64; 2]", into = "[f64; 2]")]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

impl Interval {
    pub fn contains(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }

    /// The interval of the negated quantity.
    pub fn negated(&self) -> Interval {
        Interval { low: -self.high, high: -self.low }
    }
}

impl From<[f64; 2]> for Interval {
    fn from([low, high]: [f64; 2]) -> Interval {
        Interval { low, high }
    }
}

impl From<Interval> for [f64; 2] {
    fn from(interval: Interval) -> [f64; 2] {
        [interval.low, interval.high]
    }
}

/// Arithmetic mean; `None` of nothing.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Median: the middle value, or the mean of the two middle ones; `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// Wilson's score interval for a proportion of `successes` in `n` independent trials:
/// (p̂ + z²/2n ± z·√(p̂(1−p̂)/n + z²/4n²)) / (1 + z²/n).
///
/// Source: Wilson 1927, JASA 22, 209–212. `None` where `n` is 0.
pub fn wilson_interval(successes: u64, n: u64, confidence: f64) -> Option<Interval> {
    assert!(successes <= n, "{successes} successes in {n} trials");
    if n == 0 {
        return None;
    }
    let z = two_sided_z(confidence);
    let (n_f, p) = (n as f64, successes as f64 / n as f64);
    let scale = 1.0 + z * z / n_f;
    let centre = (p + z * z / (2.0 * n_f)) / scale;
    let half = z * (p * (1.0 - p) / n_f + z * z / (4.0 * n_f * n_f)).sqrt() / scale;
    // The ends are exactly 0 and 1 there; rounding would leave 1e-18.
    let low = if successes == 0 { 0.0 } else { centre - half };
    let high = if successes == n { 1.0 } else { centre + half };
    Some(Interval { low, high })
}

/// Outcomes of two methods on the same items, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairedOutcomes {
    pub both: u64,
    pub only_first: u64,
    pub only_second: u64,
    pub neither: u64,
}

impl PairedOutcomes {
    /// Counts item by item. The slices list the same items in the same order.
    pub fn count(first: &[bool], second: &[bool]) -> PairedOutcomes {
        assert_eq!(first.len(), second.len(), "outcomes of different items");
        let mut counts = PairedOutcomes::default();
        for pair in first.iter().zip(second) {
            *match pair {
                (true, true) => &mut counts.both,
                (true, false) => &mut counts.only_first,
                (false, true) => &mut counts.only_second,
                (false, false) => &mut counts.neither,
            } += 1;
        }
        counts
    }

    pub fn n(&self) -> u64 {
        self.both + self.only_first + self.only_second + self.neither
    }

    /// Share of successes of the first method minus that of the second; `None` without items.
    pub fn difference(&self) -> Option<f64> {
        let n = self.n();
        (n > 0).then(|| (self.only_first as f64 - self.only_second as f64) / n as f64)
    }

    /// Tango's score interval of [`difference`](Self::difference).
    ///
    /// The set of all Δ that the score test does not reject: with b = only the first right,
    /// c = only the second, |b − c − nΔ| ≤ z·√(n(2q(Δ) + Δ(1−Δ))), where q(Δ) is the
    /// maximum-likelihood probability of "only the second" given Δ. It excludes 0 exactly
    /// when McNemar's asymptotic test rejects, stays inside [−1, 1] and needs no correction
    /// for empty cells.
    ///
    /// Source: Tango 1998, Statistics in Medicine 17, 891–908, equations 24–26.
    pub fn difference_interval(&self, confidence: f64) -> Option<Interval> {
        let estimate = self.difference()?;
        let z = two_sided_z(confidence);
        // The statistic falls as Δ grows; bisection finds where it crosses ±z.
        let low = bisect(-1.0, estimate, |delta| self.score(delta) > z);
        let high = bisect(estimate, 1.0, |delta| self.score(delta) > -z);
        Some(Interval { low, high })
    }

    /// Tango's score statistic for the hypothesis that the true difference is `delta`.
    fn score(&self, delta: f64) -> f64 {
        let (n, b, c) = (self.n() as f64, self.only_first as f64, self.only_second as f64);
        let linear = (2.0 * n - b + c) * delta - b - c;
        let constant = -c * delta * (1.0 - delta);
        let q = ((linear * linear - 8.0 * n * constant).max(0.0).sqrt() - linear) / (4.0 * n);
        let variance = n * (2.0 * q + delta * (1.0 - delta));
        let distance = b - c - n * delta;
        if variance > 0.0 {
            distance / variance.sqrt()
        } else if distance == 0.0 {
            0.0
        } else {
            distance.signum() * f64::INFINITY
        }
    }

    /// McNemar's exact two-sided p: twice the lower tail of Binomial(b + c, ½) at min(b, c),
    /// at most 1. It is 1 where no item tells the methods apart.
    ///
    /// Source: McNemar 1947, Psychometrika 12, 153–157, with the exact conditional
    /// distribution in place of χ².
    pub fn mcnemar_exact_p(&self) -> f64 {
        let (least, n) = (self.only_first.min(self.only_second), (self.only_first + self.only_second) as f64);
        let log_choose_half = |k: f64| {
            ln_gamma(n + 1.0) - ln_gamma(k + 1.0) - ln_gamma(n - k + 1.0) - n * std::f64::consts::LN_2
        };
        let tail: f64 = (0..=least).map(|k| log_choose_half(k as f64).exp()).sum();
        (2.0 * tail).min(1.0)
    }
}

/// A mean with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    pub value: f64,
    pub interval: Interval,
}

/// A quantity summed over the units of one cluster: the tokens of one document, say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClusterSum {
    /// Σ of the quantity over the cluster's units.
    pub total: f64,
    /// How many units the cluster has.
    pub units: u64,
}

/// Mean per unit over clusters, R = Σ total / Σ units, with a cluster-robust t interval.
///
/// SE² = G/(G−1) · Σ_g (total_g − R·units_g)² / (Σ units)², t with G − 1 degrees of freedom
/// over G clusters: the linearised variance of a ratio (Cochran 1977, Sampling Techniques,
/// §6), identical to ordinary least squares on the units with standard errors clustered by
/// document. With one unit in each cluster it is the plain t interval of a mean. For a paired
/// comparison `total` is the sum of the per-token differences.
///
/// `None` with fewer than two clusters that have units, or where a total is not finite.
pub fn clustered_mean(clusters: &[ClusterSum], confidence: f64) -> Option<Estimate> {
    let used = || clusters.iter().filter(|cluster| cluster.units > 0);
    let n_clusters = used().count();
    let units: f64 = used().map(|cluster| cluster.units as f64).sum();
    let value = used().map(|cluster| cluster.total).sum::<f64>() / units;
    if n_clusters < 2 || !value.is_finite() {
        return None;
    }
    let squares: f64 = used().map(|c| (c.total - value * c.units as f64).powi(2)).sum();
    let g = n_clusters as f64;
    let standard_error = (g / (g - 1.0) * squares).sqrt() / units;
    let half = student_t_quantile(0.5 + confidence / 2.0, g - 1.0) * standard_error;
    Some(Estimate { value, interval: Interval { low: value - half, high: value + half } })
}

/// Mean of paired per-item differences first − second with its t interval (n − 1 degrees of
/// freedom); `None` with fewer than two items.
pub fn paired_mean_difference(first: &[f64], second: &[f64], confidence: f64) -> Option<Estimate> {
    assert_eq!(first.len(), second.len(), "values of different items");
    let differences: Vec<ClusterSum> =
        first.iter().zip(second).map(|(a, b)| ClusterSum { total: a - b, units: 1 }).collect();
    clustered_mean(&differences, confidence)
}

/// Percentile bootstrap interval of any statistic of `n_items` items.
///
/// `statistic` receives the indices of one resample (with replacement) and may answer `None`
/// where it is undefined; such resamples are left out, and where more than a tenth are, so
/// is the interval. The draws depend on `seed` and the resample's number only.
///
/// Source: Efron 1979, Annals of Statistics 7, 1–26.
pub fn bootstrap_interval(
    n_items: usize,
    resamples: u32,
    seed: u64,
    confidence: f64,
    statistic: &mut dyn FnMut(&[usize]) -> Option<f64>,
) -> Option<Interval> {
    if n_items == 0 {
        return None;
    }
    let mut indices = vec![0usize; n_items];
    let mut values = Vec::with_capacity(resamples as usize);
    for resample in 0..resamples {
        let mut rng = CounterRng::new(&[BOOTSTRAP_STREAM, seed, u64::from(resample)]);
        indices.iter_mut().for_each(|index| *index = rng.below(n_items as u64) as usize);
        values.extend(statistic(&indices).filter(|value| value.is_finite()));
    }
    if values.is_empty() || values.len() * 10 < resamples as usize * 9 {
        return None;
    }
    values.sort_by(f64::total_cmp);
    let tail = (1.0 - confidence) / 2.0;
    Some(Interval { low: sorted_quantile(&values, tail), high: sorted_quantile(&values, 1.0 - tail) })
}

const BOOTSTRAP_STREAM: u64 = 0x626f_6f74_7374_7261;

/// Quantile of ascending values with linear interpolation (Hyndman & Fan 1996, type 7).
fn sorted_quantile(sorted: &[f64], probability: f64) -> f64 {
    let position = probability * (sorted.len() - 1) as f64;
    let (below, above) = (position.floor() as usize, position.ceil() as usize);
    sorted[below] + (position - below as f64) * (sorted[above] - sorted[below])
}

/// The z with `confidence` of the standard normal between −z and z.
pub fn two_sided_z(confidence: f64) -> f64 {
    assert!(0.0 < confidence && confidence < 1.0, "confidence {confidence}");
    normal_quantile(0.5 + confidence / 2.0)
}

/// Quantile of the standard normal distribution, 0 < `probability` < 1, relative error about
/// 1e-16.
///
/// Source: Wichura 1988, algorithm AS 241 (PPND16), Applied Statistics 37, 477–484.
pub fn normal_quantile(probability: f64) -> f64 {
    assert!(0.0 < probability && probability < 1.0, "probability {probability}");
    let centred = probability - 0.5;
    if centred.abs() <= 0.425 {
        let r = 0.180_625 - centred * centred;
        return centred * horner(&AS241_A, r) / horner(&AS241_B, r);
    }
    let tail = if centred < 0.0 { probability } else { 1.0 - probability };
    let r = (-tail.ln()).sqrt();
    let value = if r <= 5.0 {
        horner(&AS241_C, r - 1.6) / horner(&AS241_D, r - 1.6)
    } else {
        horner(&AS241_E, r - 5.0) / horner(&AS241_F, r - 5.0)
    };
    value.copysign(centred)
}

const AS241_A: [f64; 8] = [
    3.387_132_872_796_366_5,
    133.141_667_891_784_38,
    1_971.590_950_306_551_3,
    13_731.693_765_509_46,
    45_921.953_931_549_87,
    67_265.770_927_008_7,
    33_430.575_583_588_13,
    2_509.080_928_730_122_7,
];
const AS241_B: [f64; 8] = [
    1.0,
    42.313_330_701_600_91,
    687.187_007_492_057_9,
    5_394.196_021_424_751,
    21_213.794_301_586_597,
    39_307.895_800_092_71,
    28_729.085_735_721_943,
    5_226.495_278_852_854,
];
const AS241_C: [f64; 8] = [
    1.423_437_110_749_683_5,
    4.630_337_846_156_546,
    5.769_497_221_460_691,
    3.647_848_324_763_204_5,
    1.270_458_252_452_368_4,
    0.241_780_725_177_450_6,
    0.022_723_844_989_269_184,
    7.745_450_142_783_414e-4,
];
const AS241_D: [f64; 8] = [
    1.0,
    2.053_191_626_637_759,
    1.676_384_830_183_803_8,
    0.689_767_334_985_1,
    0.148_103_976_427_480_08,
    0.015_198_666_563_616_457,
    5.475_938_084_995_345e-4,
    1.050_750_071_644_416_9e-9,
];
const AS241_E: [f64; 8] = [
    6.657_904_643_501_103,
    5.463_784_911_164_114,
    1.784_826_539_917_291_3,
    0.296_560_571_828_504_87,
    0.026_532_189_526_576_124,
    1.242_660_947_388_078_4e-3,
    2.711_555_568_743_487_6e-5,
    2.010_334_399_292_288_1e-7,
];
const AS241_F: [f64; 8] = [
    1.0,
    0.599_832_206_555_887_9,
    0.136_929_880_922_735_8,
    0.014_875_361_290_850_615,
    7.868_691_311_456_133e-4,
    1.846_318_317_510_054_8e-5,
    1.421_511_758_316_446e-7,
    2.044_263_103_389_939_8e-15,
];

/// Σ coefficients\[i\]·xⁱ.
fn horner(coefficients: &[f64], x: f64) -> f64 {
    coefficients.iter().rev().fold(0.0, |sum, c| sum * x + c)
}

/// Quantile of Student's t with `freedom` > 0 degrees of freedom, 0 < `probability` < 1.
///
/// By bisection of the distribution function, which is the regularised incomplete beta
/// function: for t ≥ 0, 1 − F(t) = I_{ν/(ν+t²)}(ν/2, ½) / 2. From ten thousand degrees on, where
/// that loses digits to cancellation, by the expansion of Abramowitz & Stegun 26.7.5.
pub fn student_t_quantile(probability: f64, freedom: f64) -> f64 {
    assert!(0.0 < probability && probability < 1.0 && freedom > 0.0, "t({probability}, {freedom})");
    if freedom >= 1e4 {
        let z = normal_quantile(probability);
        let odd = |coefficients: &[f64]| z * horner(coefficients, z * z) / freedom;
        let third = odd(&[-15.0, 17.0, 19.0, 3.0]) / 384.0;
        return z + odd(&[0.25, 0.25]) + (odd(&[3.0, 16.0, 5.0]) / 96.0 + third / freedom) / freedom;
    }
    let tail = probability.min(1.0 - probability);
    let upper_tail = |t: f64| 0.5 * incomplete_beta(freedom / 2.0, 0.5, freedom / (freedom + t * t));
    let mut high = 1.0;
    while upper_tail(high) > tail && high < 1e150 {
        high *= 2.0;
    }
    let magnitude = bisect(0.0, high, |t| upper_tail(t) > tail);
    if probability < 0.5 { -magnitude } else { magnitude }
}

/// Where a predicate that holds at the left end and not at the right one changes, to the
/// last bit or two.
fn bisect(mut low: f64, mut high: f64, holds: impl Fn(f64) -> bool) -> f64 {
    for _ in 0..BISECTION_STEPS_MAX {
        let middle = low + (high - low) / 2.0;
        if middle <= low || middle >= high {
            break;
        }
        if holds(middle) { low = middle } else { high = middle }
    }
    low + (high - low) / 2.0
}

const BISECTION_STEPS_MAX: u32 = 1_100;

/// Regularised incomplete beta function I_x(a, b), by the continued fraction of Abramowitz &
/// Stegun 26.5.8, evaluated with Lentz's method.
fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return x.clamp(0.0, 1.0);
    }
    // The fraction converges fast on this side only; the other side is its mirror.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(b, a, 1.0 - x);
    }
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (-x).ln_1p()).exp() / a;
    let away_from_zero = |v: f64| if v.abs() < 1e-300 { 1e-300 } else { v };
    let (mut fraction, mut numerator, mut denominator) = (1.0, 1.0, 0.0);
    for step in 0..BETA_STEPS_MAX {
        let m = f64::from(step / 2);
        let coefficient = match step {
            0 => 1.0,
            _ if step % 2 == 0 => m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m)),
            _ => -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0)),
        };
        denominator = 1.0 / away_from_zero(1.0 + coefficient * denominator);
        numerator = away_from_zero(1.0 + coefficient / numerator);
        let factor = numerator * denominator;
        fraction *= factor;
        if (factor - 1.0).abs() < 1e-16 {
            break;
        }
    }
    front * (fraction - 1.0)
}

const BETA_STEPS_MAX: u32 = 20_000;

/// ln Γ(x) for x > 0.
///
/// Up to 15 by Γ(x + 1) = x·Γ(x), above by Stirling's series (Abramowitz & Stegun 6.1.40).
fn ln_gamma(x: f64) -> f64 {
    let (mut x, mut product) = (x, 1.0);
    while x < 15.0 {
        product *= x;
        x += 1.0;
    }
    let inverse_square = 1.0 / (x * x);
    let series = [1.0 / 12.0, -1.0 / 360.0, 1.0 / 1260.0, -1.0 / 1680.0, 1.0 / 1188.0, -691.0 / 360_360.0];
    (x - 0.5) * x.ln() - x + 0.5 * std::f64::consts::TAU.ln() + horner(&series, inverse_square) / x
        - f64::ln(product)
}

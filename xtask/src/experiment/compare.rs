//! Paired differences, with intervals over seeds and over documents.

use serde::Serialize;
use stillroom_core::CounterRng;
use stillroom_core::statistics::{
    CONFIDENCE_95, ClusterSum, Interval, bootstrap_interval, clustered_mean, mean,
};

use super::description::{Comparison, Quantity};
use super::runs::{Document, Outcome};

const RESAMPLES: u32 = 10_000;
const SEED_STREAM: u64 = 0x7365_6564;

/// A difference of two variants, in nats per token or as a share.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Difference {
    pub(super) a: String,
    pub(super) b: String,
    pub(super) of: Quantity,
    /// As a share of what `b` has.
    pub(super) relative: bool,
    /// None stands for no bound.
    pub(super) expected: [Option<f64>; 2],
    /// Mean over seeds.
    pub(super) value: f64,
    pub(super) by_seed: Vec<f64>,
    /// Student's t over seeds. With three of them it is 2.5 standard deviations wide to each side.
    pub(super) interval_over_seeds: Option<Interval>,
    /// Percentile bootstrap over seeds and, within all of them at once, over documents.
    pub(super) interval_over_both: Option<Interval>,
    /// Whether the interval over seeds lies within what was expected.
    pub(super) as_expected: bool,
}

/// Compares outcomes of the same seeds on the same documents.
pub(super) fn compare(comparison: &Comparison, outcomes: &[Outcome]) -> Result<Difference, String> {
    let Comparison { a, b, of, relative, expected } = comparison;
    let mut pairs: Vec<(Vec<Document>, Vec<Document>)> = Vec::new();
    for first in outcomes.iter().filter(|o| o.variant == *a) {
        let second = outcomes.iter().find(|o| o.variant == *b && o.seed == first.seed);
        let second = second.ok_or_else(|| format!("`{b}` has no seed {}", first.seed))?;
        let (first, second) = (first.documents(*of), second.documents(*of));
        let same = |(x, y): (&Document, &Document)| x.id == y.id && x.tokens == y.tokens;
        if first.len() != second.len() || !first.iter().zip(&second).all(same) {
            return Err(format!("`{a}` and `{b}` were measured on other documents"));
        }
        pairs.push((first, second));
    }
    let all: Vec<usize> = (0..pairs.first().map_or(0, |(first, _)| first.len())).collect();
    let by_seed: Vec<f64> = pairs.iter().filter_map(|pair| difference(pair, &all, *relative)).collect();
    let value = mean(&by_seed).ok_or_else(|| format!("`{a}` was not trained"))?;
    let seeds: Vec<ClusterSum> = by_seed.iter().map(|&total| ClusterSum { total, units: 1 }).collect();
    let over_seeds = clustered_mean(&seeds, CONFIDENCE_95).map(|estimate| estimate.interval);
    let mut resample = 0;
    let over_both = bootstrap_interval(all.len(), RESAMPLES, 0, CONFIDENCE_95, &mut |documents| {
        let mut rng = CounterRng::new(&[SEED_STREAM, resample]);
        resample += 1;
        let drawn = (0..pairs.len()).map(|_| &pairs[rng.below(pairs.len() as u64) as usize]);
        mean(&drawn.filter_map(|pair| difference(pair, documents, *relative)).collect::<Vec<f64>>())
    });
    let within = |interval: Interval| interval.low >= expected[0] && interval.high <= expected[1];
    Ok(Difference {
        a: a.clone(),
        b: b.clone(),
        of: *of,
        relative: *relative,
        expected: expected.map(|bound| bound.is_finite().then_some(bound)),
        value,
        by_seed,
        interval_over_seeds: over_seeds,
        interval_over_both: over_both,
        as_expected: over_seeds.is_some_and(within),
    })
}

/// Σ differences over some documents, by their tokens or by what the second has in sum.
fn difference(
    (first, second): &(Vec<Document>, Vec<Document>),
    documents: &[usize],
    relative: bool,
) -> Option<f64> {
    let nats: f64 = documents.iter().map(|&i| first[i].nats - second[i].nats).sum();
    let by: f64 = match relative {
        true => documents.iter().map(|&i| second[i].nats).sum(),
        false => documents.iter().map(|&i| first[i].tokens as f64).sum(),
    };
    (by > 0.0).then(|| nats / by)
}

/// Σ nats / Σ tokens.
pub(super) fn level(documents: &[Document]) -> f64 {
    let nats: f64 = documents.iter().map(|d| d.nats).sum();
    nats / documents.iter().map(|d| d.tokens).sum::<u64>() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(variant: &str, seed: u64, nats: &[f64]) -> Outcome {
        let rows: Vec<_> = nats
            .iter()
            .enumerate()
            .map(|(i, nats)| serde_json::json!({ "id": format!("d{i}"), "tokens": 10, "nats": nats }))
            .collect();
        let value = serde_json::json!({
            "variant": variant, "seed": seed, "made_from": null, "steps": 1, "best_step": 1, "tokens": 1,
            "losses": rows, "divergences": rows, "validation": [], "tokens_per_second": [], "wall_s": 0.0,
            "cache": null, "teacher_losses": [], "parameters": [1, 1],
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn differences_are_paired_by_seed_and_document() {
        let outcomes = [
            outcome("a", 1, &[20.0, 30.0]),
            outcome("b", 2, &[1.0, 2.0]),
            outcome("a", 2, &[2.0, 3.0]),
            outcome("b", 1, &[21.0, 33.0]),
        ];
        let comparison = |a: &str, b: &str| Comparison {
            a: a.into(),
            b: b.into(),
            of: Quantity::Loss,
            relative: false,
            expected: [-1.0, 0.0],
        };
        let difference = compare(&comparison("a", "b"), &outcomes).unwrap();
        assert_eq!(difference.by_seed, [-0.2, 0.1]);
        assert!((difference.value + 0.05).abs() < 1e-12 && !difference.as_expected);
        let t = difference.interval_over_seeds.unwrap();
        // t(1) at 97.5 % is 12.706; the standard error 0.15.
        assert!((t.high - (-0.05 + 12.706_205 * 0.15)).abs() < 1e-5, "{t:?}");
        let both = difference.interval_over_both.unwrap();
        assert!(both.low <= -0.2 && both.high >= 0.1 && both.low >= -0.3 && both.high <= 0.1 + 1e-12);
        let relative = Comparison { relative: true, ..comparison("a", "b") };
        let shares = compare(&relative, &outcomes).unwrap().by_seed;
        assert!((shares[0] + 4.0 / 54.0).abs() < 1e-12 && (shares[1] - 2.0 / 3.0).abs() < 1e-12);
        let error = compare(&comparison("a", "c"), &outcomes).unwrap_err();
        assert!(error.contains("`c` has no seed 1"), "{error}");
        let other = [outcome("a", 1, &[1.0]), outcome("b", 1, &[1.0, 2.0])];
        assert!(compare(&comparison("a", "b"), &other).unwrap_err().contains("other documents"));
    }
}

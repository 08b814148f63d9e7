//! Intervals and paired tests against scipy, statsmodels and printed examples
//! (`oracles/intervals.py`), and the properties that make them usable as claims.

use proptest::prelude::*;
use serde_json::Value;
use stillroom_core::CounterRng;
use stillroom_core::statistics::*;

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/statistics.json")).expect("golden file")
}

fn rows<'a>(golden: &'a Value, name: &str) -> &'a Vec<Value> {
    golden[name].as_array().expect(name)
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("number")
}

fn close(ours: f64, theirs: f64, tolerance: f64, what: &dyn std::fmt::Debug) {
    let scale = theirs.abs().max(1.0);
    assert!((ours - theirs).abs() <= tolerance * scale, "{ours} is not {theirs}: {what:?}");
}

fn close_interval(ours: Interval, theirs: &Value, tolerance: f64, what: &dyn std::fmt::Debug) {
    close(ours.low, number(&theirs[0]), tolerance, what);
    close(ours.high, number(&theirs[1]), tolerance, what);
}

fn table(row: &Value) -> PairedOutcomes {
    let cell = |i: usize| row["table"][i].as_u64().expect("count");
    PairedOutcomes { both: cell(0), only_first: cell(1), only_second: cell(2), neither: cell(3) }
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("numbers").iter().map(number).collect()
}

#[test]
fn quantiles_are_those_of_scipy() {
    let golden = golden();
    for row in rows(&golden, "normal_quantile") {
        close(normal_quantile(number(&row[0])), number(&row[1]), 1e-14, row);
    }
    for row in rows(&golden, "student_t_quantile") {
        close(student_t_quantile(number(&row[0]), number(&row[1])), number(&row[2]), 2e-10, row);
    }
}

#[test]
fn wilson_intervals_are_those_of_statsmodels() {
    for row in rows(&golden(), "wilson") {
        let count = |key: &str| row[key].as_u64().expect(key);
        let ours = wilson_interval(count("successes"), count("n"), number(&row["confidence"]));
        close_interval(ours.expect("interval"), &row["interval"], 1e-13, row);
    }
    assert_eq!(wilson_interval(0, 0, CONFIDENCE_95), None);
}

#[test]
fn tango_intervals_are_those_of_a_numerical_inversion_and_of_the_paper() {
    let golden = golden();
    for row in rows(&golden, "tango") {
        let ours = table(row).difference_interval(number(&row["confidence"])).expect("interval");
        close_interval(ours, &row["interval"], 1e-8, row);
    }
    for row in rows(&golden, "tango_published") {
        let ours = table(row).difference_interval(number(&row["confidence"])).expect("interval");
        close(ours.low, number(&row["low"]), 5.1e-4, row);
        if let Some(high) = row["high"].as_f64() {
            close(ours.high, high, 5.1e-4, row);
        }
    }
}

#[test]
fn mcnemar_exact_p_is_that_of_statsmodels() {
    for row in rows(&golden(), "mcnemar") {
        let (ours, theirs) = (table(row).mcnemar_exact_p(), number(&row["p"]));
        assert!((ours / theirs - 1.0).abs() < 1e-9, "{ours} is not {theirs}: {row}");
    }
}

#[test]
fn paired_t_and_clustered_intervals_are_those_of_scipy_and_statsmodels() {
    let golden = golden();
    for row in rows(&golden, "paired_t") {
        let (first, second) = (numbers(&row["first"]), numbers(&row["second"]));
        let ours = paired_mean_difference(&first, &second, CONFIDENCE_95).expect("estimate");
        close(ours.value, number(&row["value"]), 1e-12, row);
        close_interval(ours.interval, &row["interval"], 1e-9, row);
    }
    for row in rows(&golden, "clustered") {
        let clusters: Vec<ClusterSum> = row["clusters"]
            .as_array()
            .expect("clusters")
            .iter()
            .map(|c| ClusterSum { total: number(&c["total"]), units: c["units"].as_u64().expect("units") })
            .collect();
        let ours = clustered_mean(&clusters, CONFIDENCE_95).expect("estimate");
        close(ours.value, number(&row["value"]), 1e-12, row);
        close_interval(ours.interval, &row["interval"], 1e-9, row);
    }
}

#[test]
fn means_and_medians() {
    for row in rows(&golden(), "median") {
        assert_eq!(median(&numbers(&row[0])), row[1].as_f64());
    }
    assert_eq!((mean(&[]), median(&[])), (None, None));
    assert_eq!(mean(&[1.0, 2.0, 6.0]), Some(3.0));
}

#[test]
fn nothing_is_claimed_from_too_little() {
    assert_eq!(PairedOutcomes::default().difference_interval(CONFIDENCE_95), None);
    assert_eq!(PairedOutcomes::default().mcnemar_exact_p(), 1.0);
    let one = ClusterSum { total: 3.0, units: 2 };
    assert_eq!(clustered_mean(&[one], CONFIDENCE_95), None);
    assert_eq!(clustered_mean(&[one, ClusterSum { total: 1.0, units: 0 }], CONFIDENCE_95), None);
    assert_eq!(clustered_mean(&[one, ClusterSum { total: f64::NAN, units: 1 }], CONFIDENCE_95), None);
    assert_eq!(bootstrap_interval(0, 10, 1, CONFIDENCE_95, &mut |_| Some(0.0)), None);
    assert_eq!(bootstrap_interval(5, 10, 1, CONFIDENCE_95, &mut |_| None), None);
}

#[test]
fn the_bootstrap_agrees_with_the_t_interval_and_repeats_itself() {
    let mut rng = CounterRng::new(&[5]);
    let values: Vec<f64> = (0..400).map(|_| rng.normal() + 0.5).collect();
    let mut resampled_mean =
        |indices: &[usize]| Some(indices.iter().map(|&i| values[i]).sum::<f64>() / indices.len() as f64);
    let ours = bootstrap_interval(values.len(), 4_000, 3, CONFIDENCE_95, &mut resampled_mean).unwrap();
    let again = bootstrap_interval(values.len(), 4_000, 3, CONFIDENCE_95, &mut resampled_mean).unwrap();
    assert_eq!(ours, again);
    let t = paired_mean_difference(&values, &vec![0.0; 400], CONFIDENCE_95).unwrap().interval;
    assert!((ours.low - t.low).abs() < 0.01 && (ours.high - t.high).abs() < 0.01, "{ours:?} {t:?}");
}

/// The promise of a 95 % interval, on 60 correlated pairs with a true difference of 15 points.
#[test]
fn the_paired_interval_covers_the_truth_as_often_as_it_says() {
    let trials = 4_000;
    let covered = (0..trials)
        .filter(|&trial| {
            let mut rng = CounterRng::new(&[99, trial]);
            let mut counts = PairedOutcomes::default();
            for _ in 0..60 {
                match rng.uniform() {
                    u if u < 0.55 => counts.both += 1,
                    u if u < 0.75 => counts.only_first += 1,
                    u if u < 0.80 => counts.only_second += 1,
                    _ => counts.neither += 1,
                }
            }
            counts.difference_interval(CONFIDENCE_95).unwrap().contains(0.15)
        })
        .count();
    let share = covered as f64 / f64::from(trials as u32);
    assert!((0.935..0.965).contains(&share), "covered {share}");
}

#[test]
fn intervals_are_two_numbers_in_json() {
    let interval = Interval { low: 0.25, high: 0.5 };
    assert_eq!(serde_json::to_string(&interval).unwrap(), "[0.25,0.5]");
    assert_eq!(serde_json::from_str::<Interval>("[0.25,0.5]").unwrap(), interval);
}

proptest! {
    #[test]
    fn a_paired_interval_holds_its_estimate_and_mirrors(
        both in 0u64..2_000, first in 0u64..300, second in 0u64..300, neither in 0u64..2_000,
    ) {
        let counts = PairedOutcomes { both, only_first: first, only_second: second, neither };
        let mirrored = PairedOutcomes { only_first: second, only_second: first, ..counts };
        match (counts.difference(), counts.difference_interval(CONFIDENCE_95)) {
            (Some(estimate), Some(interval)) => {
                prop_assert!(interval.contains(estimate), "{estimate} {interval:?}");
                prop_assert!(-1.0 <= interval.low && interval.high <= 1.0);
                let other = mirrored.difference_interval(CONFIDENCE_95).unwrap().negated();
                prop_assert!((other.low - interval.low).abs() < 1e-9 && (other.high - interval.high).abs() < 1e-9);
                // Zero is outside exactly where McNemar's score test rejects.
                let (b, c) = (first as f64, second as f64);
                let rejects = (b - c).abs() > two_sided_z(CONFIDENCE_95) * (b + c).sqrt();
                prop_assert_eq!(rejects, !interval.contains(0.0));
            }
            (None, None) => prop_assert_eq!(counts.n(), 0),
            other => prop_assert!(false, "{:?}", other),
        }
        prop_assert!((0.0..=1.0).contains(&counts.mcnemar_exact_p()));
    }

    #[test]
    fn more_confidence_is_a_wider_interval(successes in 0u64..500, more in 0u64..500) {
        let n = successes + more;
        if let Some(narrow) = wilson_interval(successes, n, 0.8) {
            let wide = wilson_interval(successes, n, 0.99).unwrap();
            prop_assert!(wide.low <= narrow.low && narrow.high <= wide.high);
            prop_assert!(narrow.contains(successes as f64 / n as f64));
        }
    }
}

//! Learning-rate schedules.

use std::f64::consts::PI;

use crate::{SchedulerType, TrainConfig};

/// Learning rate of optimiser step `step` (from 1) of `n_steps`.
///
/// As in transformers' `get_scheduler`, with k = step − 1, W = ⌈`warmup_ratio`·n_steps⌉ and
/// s = (k − W) / max(1, n_steps − W): k / W while k < W (so the very first step of a warm-up has
/// rate 0), then 1 for `constant`, 1 − s for `linear`, (1 + cos πs) / 2 for `cosine`. A
/// `min_lr_ratio` r turns the factor f after the warm-up into r + (1 − r)·f, as `cosine_with_min_lr` does.
///
/// ```
/// use stillroom_distill::{SchedulerType, TrainConfig, learning_rate};
/// let config = TrainConfig {
///     learning_rate: 1.0,
///     lr_scheduler_type: SchedulerType::Linear,
///     warmup_ratio: 0.2,
///     ..TrainConfig::default()
/// };
/// let rates: Vec<f64> = (1..=5).map(|step| learning_rate(&config, step, 5)).collect();
/// assert_eq!(rates, [0.0, 1.0, 0.75, 0.5, 0.25]);
/// ```
pub fn learning_rate(config: &TrainConfig, step: u64, n_steps: u64) -> f64 {
    let done = step.saturating_sub(1) as f64;
    let warmup = (config.warmup_ratio * n_steps as f64).ceil();
    if done < warmup {
        return config.learning_rate * done / warmup;
    }
    let share = (done - warmup) / (n_steps as f64 - warmup).max(1.0);
    let factor = match config.lr_scheduler_type {
        SchedulerType::Constant => return config.learning_rate,
        SchedulerType::Linear => (1.0 - share).max(0.0),
        SchedulerType::Cosine => (0.5 * (1.0 + (PI * share).cos())).max(0.0),
    };
    config.learning_rate * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * factor)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rates(kind: SchedulerType, warmup_ratio: f64, min_lr_ratio: f64, n_steps: u64) -> Vec<f64> {
        let config = TrainConfig {
            learning_rate: 2e-3,
            lr_scheduler_type: kind,
            warmup_ratio,
            min_lr_ratio,
            ..TrainConfig::default()
        };
        (1..=n_steps).map(|step| learning_rate(&config, step, n_steps)).collect()
    }

    fn assert_close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() < 1e-12, "{found:?} is not {expected:?}");
        }
    }

    /// Values of transformers' `get_cosine_schedule_with_warmup(num_warmup_steps=2, num_training_steps=10)`,
    /// `get_linear_schedule_with_warmup` and `get_constant_schedule_with_warmup` for a peak of 2e-3,
    /// worked out by hand from their formulas.
    #[test]
    fn rates_are_those_of_transformers() {
        let cosine = [
            0.0,
            0.001,
            0.002,
            0.001_923_879_532_511_286_7,
            0.001_707_106_781_186_547_5,
            0.001_382_683_432_365_089_8,
            0.001,
            0.000_617_316_567_634_910_3,
            0.000_292_893_218_813_452_6,
            0.000_076_120_467_488_713_24,
        ];
        assert_close(&rates(SchedulerType::Cosine, 0.15, 0.0, 10), &cosine);
        let with_floor: Vec<f64> = cosine
            .iter()
            .enumerate()
            .map(|(k, rate)| if k < 2 { *rate } else { 0.0002 + 0.9 * rate })
            .collect();
        assert_close(&rates(SchedulerType::Cosine, 0.2, 0.1, 10), &with_floor);
        let linear = [0.0, 0.001, 0.002, 0.00175, 0.0015, 0.00125, 0.001, 0.00075, 0.0005, 0.00025];
        assert_close(&rates(SchedulerType::Linear, 0.2, 0.0, 10), &linear);
        assert_close(&rates(SchedulerType::Constant, 0.5, 0.0, 4), &[0.0, 0.001, 0.002, 0.002]);
        assert_close(&rates(SchedulerType::Constant, 0.0, 0.0, 2), &[0.002, 0.002]);
    }

    proptest! {
        #[test]
        fn rates_stay_between_floor_and_peak_and_fall_after_the_warm_up(
            n_steps in 1u64..300, warmup in 0.0f64..=1.0, floor in 0.0f64..=1.0, linear: bool,
        ) {
            let kind = if linear { SchedulerType::Linear } else { SchedulerType::Cosine };
            let rates = rates(kind, warmup, floor, n_steps);
            let start = (warmup * n_steps as f64).ceil() as usize;
            prop_assert!(rates.iter().all(|r| (0.0..=2e-3 + 1e-15).contains(r)));
            for pair in rates[start.min(rates.len())..].windows(2) {
                prop_assert!(pair[1] <= pair[0] + 1e-15);
                prop_assert!(pair[1] >= 2e-3 * floor - 1e-15);
            }
            prop_assert!(rates[..start.min(rates.len())].windows(2).all(|p| p[1] > p[0]));
        }
    }
}

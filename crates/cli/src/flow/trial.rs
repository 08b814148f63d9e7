//! `--trial`: the whole flow on as little as fits the time.

use std::time::Duration;

use stillroom_kernels::Device;

use super::estimate::estimate;
use super::teach::PROMPTS_PER_PART;
use crate::failure::Result;
use crate::recipe::{Recipe, Source};

/// Below these, nothing can be learned from a trial.
const EXAMPLES_MIN: usize = PROMPTS_PER_PART;
const HELD_OUT_MIN: usize = 32;
const STEPS_MIN: u64 = 8;
/// Loading, writing and reporting take their share of the time.
const USABLE: f64 = 0.7;

/// The recipe with fewer examples, steps and held-out items, so that the estimate fits `time`.
///
/// Prompts keep their order and parts their size, so the full run finds what a trial has bought.
pub(crate) fn shrink(recipe: &Recipe, source: &Source, device: &Device, time: Duration) -> Result<Recipe> {
    let whole = estimate(recipe, source, device)?.wall_s;
    let share = (time.as_secs_f64() * USABLE / whole).min(1.0);
    let mut small = recipe.clone();
    let scaled = |n: usize, min: usize| ((n as f64 * share) as usize).max(min).min(n);
    if let Some(n) = small.prompts.num_examples {
        let parts = scaled(n, EXAMPLES_MIN).div_ceil(PROMPTS_PER_PART);
        small.prompts.num_examples = Some((parts * PROMPTS_PER_PART).min(n));
    }
    small.evaluate.num_examples = scaled(recipe.evaluate.num_examples, HELD_OUT_MIN);
    small.train.max_steps =
        recipe.train.max_steps.map(|n| ((n as f64 * share) as u64).clamp(STEPS_MIN.min(n), n));
    // Where the floor on examples holds, fewer passes make up for it.
    let rest = estimate(&small, source, device)?.wall_s;
    if small.train.max_steps.is_none() && rest > time.as_secs_f64() * USABLE {
        let share = time.as_secs_f64() * USABLE / rest;
        small.train.num_train_epochs = (recipe.train.num_train_epochs * share).max(0.05);
    }
    Ok(small)
}

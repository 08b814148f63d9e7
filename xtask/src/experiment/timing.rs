//! How fast each variant is: short runs of all variants in turns, so that what else the machine does hits them
//! alike; of each variant the fastest turn counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::description::Description;
use super::runs::Place;
use crate::say;

const TURNS: usize = 3;
const EXAMPLES: usize = 120;
const STEPS: usize = 30;

/// Times of one variant.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Speed {
    /// Tokens trained on per second, a live teacher included.
    pub(super) tokens_per_second: f64,
    /// Seconds per position of the cache, before training; 0 without one.
    pub(super) cache_s_per_position: f64,
}

pub(super) type Timing = BTreeMap<String, Speed>;

pub(super) fn read(place: &Place) -> Result<Timing, String> {
    match fs::read(place.work.join("timing.json")) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| format!("timing.json: {e}")),
        Err(_) => Ok(Timing::new()),
    }
}

pub(super) fn measure(
    place: &Place,
    description: &Description,
    variants: BTreeSet<String>,
) -> Result<(), String> {
    let mut timing = read(place)?;
    timing.retain(|name, _| !variants.contains(name));
    for _ in 0..TURNS {
        for name in &variants {
            let now = once(place, description, name)?;
            let best = timing.entry(name.clone()).or_insert(now);
            best.tokens_per_second = best.tokens_per_second.max(now.tokens_per_second);
            best.cache_s_per_position = best.cache_s_per_position.min(now.cache_s_per_position);
        }
    }
    for (name, speed) in &timing {
        let cache = 1e3 * speed.cache_s_per_position;
        say(&format!("{name}: {:.0} tokens/s, {cache:.3} ms per cached position", speed.tokens_per_second));
    }
    let path = place.work.join("timing.json");
    let text = serde_json::to_vec_pretty(&timing).expect("times are plain data");
    fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))
}

fn once(place: &Place, description: &Description, name: &str) -> Result<Speed, String> {
    let output = place.work.join("timing").join(name);
    if output.exists() {
        fs::remove_dir_all(&output).map_err(|e| format!("{}: {e}", output.display()))?;
    }
    let variant = &description.variants[name];
    let mut set = variant.set.clone();
    set.extend(place.given(name, variant)?);
    set.extend([
        format!("prompts.num_examples={EXAMPLES}"),
        "prompts.num_validation=4".to_owned(),
        format!("train.max_steps={STEPS}"),
        "train.num_train_epochs=100".to_owned(),
        "train.logging_steps=5".to_owned(),
    ]);
    let recipe = variant.recipe.as_ref().unwrap_or(&description.recipe);
    let events = place.trained(recipe, &output, &set)?;
    let of = |kind: &'static str| events.iter().filter(move |event| event["event"] == kind);
    let speeds = of("step").filter_map(|event| event["tokens_per_second"].as_f64());
    let logits = of("stage_finished").find(|event| event["stage"] == "logits");
    let positions = of("planned").find_map(|event| event["supervised_tokens_per_epoch"].as_f64());
    let seconds = logits.and_then(|event| event["wall_s"].as_f64()).unwrap_or(0.0);
    Ok(Speed {
        // The first steps fill caches, and any of them may have been disturbed.
        tokens_per_second: speeds.fold(0.0, f64::max),
        cache_s_per_position: seconds / positions.ok_or_else(|| format!("`{name}` has no plan"))?,
    })
}

impl Place {
    /// The events of `stillroom train`.
    fn trained(&self, recipe: &str, output: &std::path::Path, set: &[String]) -> Result<Vec<Value>, String> {
        self.stillroom("train", &self.recipes.join(recipe), output, set)?;
        let path = output.join("events.jsonl");
        let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        text.lines().map(|line| serde_json::from_str(line).map_err(|e| format!("events: {e}"))).collect()
    }
}

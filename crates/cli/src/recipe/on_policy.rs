//! Keys of on-policy training: `on_policy_fraction` and what goes with it.

use serde::Serialize;
use stillroom_distill::{LossTerm, OnPolicy, check_on_policy};

use super::raw::RawTrain;
use super::resolve::{Checker, first_given};
use super::{Logits, Teacher};
use crate::failure::Result;

const TOKENS_MAX: usize = 1 << 20;
const ROLLOUTS_MAX: usize = 1 << 16;
const STALENESS_MAX: usize = 1_000_000_000;

/// How the student writes texts to learn from. `on_policy_fraction` is TRL's `lmbda`, `max_new_tokens` is TRL's name,
/// in its newer trainers `max_completion_length`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Rollouts {
    pub(crate) on_policy_fraction: f64,
    pub(crate) max_new_tokens: usize,
    rollout_temperature: f64,
    rollout_top_p: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rollouts_per_step: Option<usize>,
    replay_buffer_size: usize,
    pub(crate) replay_fraction: f64,
    replay_max_staleness: u64,
}

impl Rollouts {
    /// As training takes it; a text ends with one of `stop_token_ids`.
    pub(crate) fn config(&self, stop_token_ids: Vec<u32>) -> OnPolicy {
        OnPolicy {
            on_policy_fraction: self.on_policy_fraction,
            max_new_tokens: self.max_new_tokens,
            rollout_temperature: self.rollout_temperature,
            rollout_top_p: self.rollout_top_p,
            rollouts_per_step: self.rollouts_per_step,
            replay_buffer_size: self.replay_buffer_size,
            replay_fraction: self.replay_fraction,
            replay_max_staleness: self.replay_max_staleness,
            stop_token_ids,
        }
    }

    /// Whether no text is given but the prompts.
    pub(crate) fn always(&self) -> bool {
        self.on_policy_fraction >= 1.0
    }

    /// Texts of a step whose rows hold `n_tokens`, from prompts of at most `prompt` tokens.
    pub(crate) fn per_step(&self, n_tokens: usize, prompt: usize) -> usize {
        self.rollouts_per_step.unwrap_or_else(|| (n_tokens / (prompt + self.max_new_tokens)).max(1))
    }

    /// In words, for the report.
    pub(crate) fn in_words(&self) -> String {
        let percent = 100.0 * self.on_policy_fraction;
        let mut text = format!("{percent} % of the steps on the student's own text");
        if self.rollout_temperature != 1.0 || self.rollout_top_p != 1.0 {
            let (temperature, top_p) = (self.rollout_temperature, self.rollout_top_p);
            text.push_str(&format!(" (temperature {temperature}, top-p {top_p})"));
        }
        if self.replay_fraction > 0.0 {
            text.push_str(&format!(", {} % of it replayed", 100.0 * self.replay_fraction));
        }
        text
    }
}

fn key(name: &'static str) -> [&'static str; 2] {
    ["train", name]
}

/// How the student writes for itself, if it does.
pub(super) fn rollouts(
    at: &Checker<'_>,
    raw: &RawTrain,
    losses: &[LossTerm],
    teacher: Option<&Teacher>,
) -> Result<Option<Rollouts>> {
    let fraction = one_of(at, [("on_policy_fraction", raw.on_policy_fraction), ("lmbda", raw.lmbda)])?;
    let length =
        [("max_new_tokens", raw.max_new_tokens), ("max_completion_length", raw.max_completion_length)];
    let length = one_of(at, length)?;
    let Some((name, fraction)) = fraction else {
        without_fraction(at, raw, length.map(|(name, _)| name))?;
        return check(at, losses, None, teacher).map(|()| None);
    };
    let fraction = at.number(&key(name), fraction, 0.0..=1.0)?;
    if fraction == 0.0 {
        return check(at, losses, None, teacher).map(|()| None);
    }
    let default = teacher.map_or(128, |teacher| teacher.max_tokens);
    let (name, length) = length.unwrap_or(("max_new_tokens", default));
    let buffer = at.count(&key("replay_buffer_size"), raw.replay_buffer_size.unwrap_or(0), 0..=TOKENS_MAX)?;
    let replayed = raw.replay_fraction.unwrap_or(if buffer > 0 { 0.5 } else { 0.0 });
    let staleness = raw.replay_max_staleness.unwrap_or(16) as usize;
    let temperature = raw.rollout_temperature.unwrap_or(1.0);
    let per_step = raw.rollouts_per_step;
    let rollouts = Rollouts {
        on_policy_fraction: fraction,
        max_new_tokens: at.count(&key(name), length, 1..=TOKENS_MAX)?,
        rollout_temperature: at.number(&key("rollout_temperature"), temperature, 1e-2..=100.0)?,
        rollout_top_p: at.number(&key("rollout_top_p"), raw.rollout_top_p.unwrap_or(1.0), 1e-6..=1.0)?,
        rollouts_per_step: per_step
            .map(|n| at.count(&key("rollouts_per_step"), n, 1..=ROLLOUTS_MAX))
            .transpose()?,
        replay_buffer_size: buffer,
        replay_fraction: at.number(&key("replay_fraction"), replayed, 0.0..=1.0)?,
        replay_max_staleness: at.count(&key("replay_max_staleness"), staleness, 0..=STALENESS_MAX)? as u64,
    };
    check(at, losses, Some(&rollouts), teacher)?;
    Ok(Some(rollouts))
}

/// A key that has two names.
fn one_of<T: Copy>(
    at: &Checker<'_>,
    given: [(&'static str, Option<T>); 2],
) -> Result<Option<(&'static str, T)>> {
    let [(first, a), (second, b)] = given;
    match (a, b) {
        (Some(_), Some(_)) => Err(at
            .bad(&key(second), format!("`{second}` is another name of `{first}`: a recipe has one of them"))
            .fix("remove one of them")),
        (Some(a), None) => Ok(Some((first, a))),
        (None, b) => Ok(b.map(|b| (second, b))),
    }
}

fn without_fraction(at: &Checker<'_>, raw: &RawTrain, length: Option<&'static str>) -> Result<()> {
    let given = [
        ("rollout_temperature", raw.rollout_temperature.is_some()),
        ("rollout_top_p", raw.rollout_top_p.is_some()),
        ("rollouts_per_step", raw.rollouts_per_step.is_some()),
        ("replay_buffer_size", raw.replay_buffer_size.is_some()),
        ("replay_fraction", raw.replay_fraction.is_some()),
        ("replay_max_staleness", raw.replay_max_staleness.is_some()),
    ];
    let Some(name) = length.or(first_given(given)) else { return Ok(()) };
    let cause = format!("`train.{name}` without `train.on_policy_fraction`: the student writes nothing");
    Err(at.bad(&key(name), cause).fix(format!("add `on_policy_fraction = 0.5`, or remove `{name}`")))
}

/// Refuses what does not go together.
fn check(
    at: &Checker<'_>,
    losses: &[LossTerm],
    rollouts: Option<&Rollouts>,
    teacher: Option<&Teacher>,
) -> Result<()> {
    let live = teacher.and_then(|teacher| teacher.logits).is_some_and(Logits::is_live);
    let over_wire = teacher.is_some_and(|teacher| teacher.wire.is_some());
    let reads_along = live || teacher.is_some_and(|teacher| teacher.scores.is_some());
    let config = rollouts.map(|rollouts| rollouts.config(Vec::new()));
    check_on_policy(losses, config.as_ref(), reads_along).map_err(|refused| {
        let (cause, name) = (refused.to_string(), if rollouts.is_some() { "on_policy_fraction" } else { "loss_functions" });
        let fix = match (rollouts, reads_along) {
            (Some(_), false) if over_wire => "learn by `sampled_reverse_kl`, and add `tokenizer = \"DIRECTORY\"` to `[teacher]`; docs/on-policy.md",
            (Some(_), false) => "take the teacher live, with `logits = { kind = \"live\" }`, or remove `on_policy_fraction`",
            (Some(_), true) => "change `loss_functions`, `on_policy_fraction` or the keys that go with them; docs/on-policy.md",
            (None, _) => "add `on_policy_fraction = 1`, or take `reverse_kl` itself",
        };
        at.bad(&key(name), cause).fix(fix)
    })
}

//! What a benchmark says.

use std::fmt::Write as _;

use serde::Serialize;
use stillroom_core::statistics::median;
use stillroom_evaluate::MachineFacts;
use stillroom_formats::DecoderConfig;
use stillroom_kernels::{Device, cpu_features};

use super::work::Timed;
use crate::args::BenchSetting;
use crate::verbs::plan::bytes;

/// What one kind of work took, and what it did in a step.
pub(super) struct Outcome {
    pub(super) config: DecoderConfig,
    /// Tokens that each sequence passes through the model; in decoding, with its prompt.
    pub(super) sequence: usize,
    /// Tokens that `step_seconds` counts for: all of a training or scoring step, new ones in decoding.
    pub(super) tokens_per_step: usize,
    /// See `flops`.
    pub(super) algorithmic_flops_per_step: u64,
    /// The most memory of the whole process, as `plan` predicts it.
    pub(super) predicted_resident_bytes: u64,
    /// Wall-clock seconds of each step after the warm-up.
    pub(super) timed: Timed<f64>,
    pub(super) detail: Detail,
}

/// What only one kind of work has.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Detail {
    Train {
        loss: &'static str,
        /// Rank of the adapter that is trained in place of the weights.
        lora_r: Option<usize>,
        trained_parameters: u64,
        supervised_tokens_per_step: usize,
        /// Mean per supervised token in nats, before the first step of all (a warm-up) and at the last.
        first_loss: f64,
        last_loss: f64,
    },
    Score {
        nll_nats_per_token: f64,
    },
    Decode {
        prompt_tokens: usize,
        temperature: f32,
        /// Median; all prompts together, with the first new token of each.
        prefill_seconds: f64,
        prefill_tokens_per_second: f64,
    },
}

/// The figures of one benchmark; `--json` prints them as they are.
#[derive(Serialize)]
pub(super) struct Report<'a> {
    work: &'static str,
    model: ModelFacts<'a>,
    batch: usize,
    sequence: usize,
    threads: usize,
    cpu: String,
    instruction_set: &'static str,
    tokens_per_step: usize,
    step_seconds: &'a [f64],
    /// `tokens_per_step` / median of `step_seconds`.
    tokens_per_second: f64,
    /// Of the whole process, loading and warm-up included; null where the system does not say.
    peak_resident_bytes: Option<u64>,
    /// The same over the timed steps alone.
    steady_peak_resident_bytes: Option<u64>,
    /// What the sizes alone say of `peak_resident_bytes`; `plan` predicts with the same figures.
    predicted_resident_bytes: u64,
    algorithmic_flops_per_step: u64,
    /// The largest of what was measured before the work and after each timed step.
    fma_peak_flops: f64,
    /// `algorithmic_flops_per_step` / median of `step_seconds` / `fma_peak_flops`.
    fma_share: f64,
    #[serde(flatten)]
    detail: &'a Detail,
}

#[derive(Serialize)]
struct ModelFacts<'a> {
    /// What `--model` named; `random` without it.
    source: &'a str,
    family: &'static str,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    intermediate_size: usize,
    vocab_size: usize,
    tie_word_embeddings: bool,
    /// A tied head counts once.
    parameters: u64,
}

impl<'a> ModelFacts<'a> {
    fn of(config: &DecoderConfig, source: Option<&'a str>) -> ModelFacts<'a> {
        ModelFacts {
            source: source.unwrap_or("random"),
            family: config.family.as_str(),
            hidden_size: config.hidden_size,
            num_hidden_layers: config.num_hidden_layers,
            num_attention_heads: config.num_attention_heads,
            num_key_value_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            intermediate_size: config.intermediate_size,
            vocab_size: config.vocab_size,
            tie_word_embeddings: config.tie_word_embeddings,
            parameters: config.n_parameters(),
        }
    }
}

impl<'a> Report<'a> {
    pub(super) fn new(
        work: &'static str,
        setting: &'a BenchSetting,
        outcome: &'a Outcome,
        device: &Device,
        fma_peak_before: f64,
    ) -> Report<'a> {
        let Timed { steps, memory, fma_peak } = &outcome.timed;
        let fma_peak_flops = fma_peak.max(fma_peak_before);
        let step = median(steps).expect("at least one step is timed");
        Report {
            work,
            model: ModelFacts::of(&outcome.config, setting.model.as_deref()),
            batch: setting.batch,
            sequence: outcome.sequence,
            threads: device.n_threads(),
            cpu: MachineFacts::read(device.n_threads(), cpu_features()).cpu,
            instruction_set: cpu_features(),
            tokens_per_step: outcome.tokens_per_step,
            step_seconds: steps,
            tokens_per_second: outcome.tokens_per_step as f64 / step,
            peak_resident_bytes: memory.whole,
            steady_peak_resident_bytes: memory.steady,
            predicted_resident_bytes: outcome.predicted_resident_bytes,
            algorithmic_flops_per_step: outcome.algorithmic_flops_per_step,
            fma_peak_flops,
            fma_share: outcome.algorithmic_flops_per_step as f64 / step / fma_peak_flops,
            detail: &outcome.detail,
        }
    }

    pub(super) fn in_words(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, what: String| {
            let _ = writeln!(text, "{name:<10}{what}");
        };
        let millions = self.model.parameters as f64 / 1e6;
        line("Work", self.work_in_words());
        line(
            "Model",
            format!("{} ({}), {millions:.1} million parameters", self.model.source, self.model.family),
        );
        line("Machine", format!("{} threads, {}, {}", self.threads, self.cpu, self.instruction_set));
        let of = |f: fn(f64, f64) -> f64, start: f64| self.step_seconds.iter().copied().fold(start, f);
        line(
            "Speed",
            format!(
                "{:.1} tokens/s, the median of {} steps of {:.4} to {:.4} s",
                self.tokens_per_second,
                self.step_seconds.len(),
                of(f64::min, f64::INFINITY),
                of(f64::max, 0.0)
            ),
        );
        line(
            "FMA peak",
            format!("{:.0} % of {:.1} GFLOP/s", 100.0 * self.fma_share, self.fma_peak_flops / 1e9),
        );
        let known = |n: Option<u64>| n.map_or("not known here".into(), bytes);
        line(
            "Memory",
            format!(
                "{} at most, {} in the timed steps, {} predicted",
                known(self.peak_resident_bytes),
                known(self.steady_peak_resident_bytes),
                bytes(self.predicted_resident_bytes)
            ),
        );
        match self.detail {
            Detail::Train { first_loss, last_loss, .. } => {
                line("Loss", format!("{first_loss:.4} to {last_loss:.4} nats per supervised token"));
            }
            Detail::Score { nll_nats_per_token } => {
                line("Score", format!("{nll_nats_per_token:.4} nats per token"));
            }
            Detail::Decode { prefill_tokens_per_second, .. } => {
                line("Prefill", format!("{prefill_tokens_per_second:.1} tokens/s"));
            }
        }
        text
    }

    fn work_in_words(&self) -> String {
        let tokens = format!("{} × {} tokens", self.batch, self.sequence);
        match *self.detail {
            Detail::Train { loss, lora_r, supervised_tokens_per_step, .. } => {
                let what = lora_r.map_or(String::new(), |r| format!(" an adapter of rank {r}"));
                format!("train{what} with {loss}, {tokens} a step, {supervised_tokens_per_step} supervised")
            }
            Detail::Score { .. } => format!("score, {tokens} a step"),
            Detail::Decode { prompt_tokens, temperature, .. } => {
                format!("decode at temperature {temperature}, {tokens} a step, {prompt_tokens} of each given")
            }
        }
    }
}

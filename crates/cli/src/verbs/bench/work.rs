//! The three kinds of work, step by step on the clock.

use std::time::Instant;

use stillroom_core::statistics::{mean, median};
use stillroom_kernels::Device;
use stillroom_model::{
    AdamW, Decoder, Divergence, GenerationRequest, HeadTerms, SamplingParams, Term, TrainState,
};

use super::memory::{Mark, MemoryPeaks};
use super::synthetic::{Supervision, sequences, supervised};
use crate::failure::{Exit, Failure, Result};

/// Steps before the timed ones: they lay weights out, allocate buffers and touch their pages.
const WARM_UP_STEPS: usize = 2;

/// As people fine-tune with it; small enough for trained weights too.
const ADAMW: AdamW = AdamW {
    learning_rate: 3e-4,
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 0.01,
    max_grad_norm: 1.0,
};

/// Sizes of one step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    /// Tokens of each sequence; in decoding, those of its prompt and those that are timed.
    pub(super) sequence: usize,
    /// Steps to time.
    pub(super) steps: usize,
}

/// What each of the timed steps said, the memory that they took, and what the machine could do meanwhile.
pub(super) struct Timed<T> {
    pub(super) steps: Vec<T>,
    pub(super) memory: MemoryPeaks,
    /// The largest FMA peak that was found after a step, in operations per second: a measurement takes
    /// milliseconds, and one while the machine is busy elsewhere finds half of it.
    pub(super) fma_peak: f64,
}

/// Training steps: wall-clock seconds of each.
pub(super) struct Trained {
    pub(super) timed: Timed<f64>,
    /// Mean loss per supervised token in nats, before the first step of all and at the last one.
    pub(super) first_loss: f64,
    pub(super) last_loss: f64,
}

/// Optimiser steps on one batch, the same in each: gradients, clipping, AdamW.
pub(super) fn train(
    mut state: TrainState,
    sizes: Sizes,
    masked: usize,
    supervision: Supervision,
) -> Result<Trained> {
    let vocab_size = state.decoder().config().vocab_size;
    let (batch, targets) = supervised(sizes.batch, sizes.sequence, vocab_size, masked, supervision);
    let forward_kl = [Term { divergence: Divergence::ForwardKl, weight: 1.0, temperature: 1.0 }];
    let (hard_label, divergences) = match supervision {
        Supervision::HardLabels => (1.0, &[][..]),
        Supervision::Sparse { .. } => (0.0, &forward_kl[..]),
    };
    let terms = HeadTerms { hard_label, divergences, scale: 1.0 / targets.rows.len() as f32 };
    let device = state.decoder().device().clone();
    let mut losses = Vec::new();
    let timed = repeat(sizes.steps, &device, |step| {
        let began = Instant::now();
        let of_rows = state.accumulate(&batch, &targets, &terms);
        let nats = of_rows.hard_label.iter().chain(of_rows.divergence(0)).map(|&loss| f64::from(loss));
        let loss = nats.sum::<f64>() / targets.rows.len() as f64;
        let report = state.step(&ADAMW);
        let seconds = began.elapsed().as_secs_f64();
        losses.push(loss);
        if loss.is_finite() && report.grad_norm.is_finite() {
            return Ok(seconds);
        }
        Err(Failure::new(Exit::Failed, format!("step {step} has a loss of {loss}: training diverged"))
            .fix("take another model: this one's weights do not stand a training step"))
    })?;
    let (first_loss, last_loss) = (losses[0], losses[losses.len() - 1]);
    Ok(Trained { timed, first_loss, last_loss })
}

/// Scoring steps: wall-clock seconds of each, and the mean of −log p per token in nats.
pub(super) struct Scored {
    pub(super) timed: Timed<f64>,
    pub(super) nll: f64,
}

/// log p of the token after each of batch × sequence tokens, as `stillroom score` computes it.
pub(super) fn score(decoder: &Decoder, sizes: Sizes) -> Result<Scored> {
    // One token more than is read: it is what the last row is asked about.
    let ids = sequences(sizes.batch, sizes.sequence + 1, decoder.config().vocab_size);
    let documents: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    let mut logprobs = Vec::new();
    let timed = repeat(sizes.steps, decoder.device(), |_| {
        let began = Instant::now();
        logprobs = decoder.token_logprobs(&documents);
        Ok(began.elapsed().as_secs_f64())
    })?;
    let all: Vec<f64> = logprobs.iter().flatten().map(|&logprob| f64::from(logprob)).collect();
    assert_eq!(all.len(), sizes.batch * sizes.sequence, "one score per token");
    Ok(Scored { timed, nll: -mean(&all).unwrap_or(f64::NAN) })
}

/// Writing, the prompts' passes apart.
pub(super) struct Decoded {
    /// Wall-clock seconds of each step, which writes what a sequence has beyond its prompt.
    pub(super) timed: Timed<f64>,
    /// The median.
    pub(super) prefill_seconds: f64,
}

/// New tokens for `batch` prompts.
///
/// A step is the work twice: with one new token, which the prompts' own pass gives, and with `tokens` more,
/// where `tokens` is what a sequence has beyond its prompt. The second time less the median of the first is
/// what those took, token by token.
pub(super) fn decode(
    decoder: &Decoder,
    sizes: Sizes,
    prompt_tokens: usize,
    temperature: f32,
) -> Result<Decoded> {
    let (batch, tokens) = (sizes.batch, sizes.sequence - prompt_tokens);
    let prompts = sequences(batch, prompt_tokens, decoder.config().vocab_size).into_iter().enumerate();
    let requests: Vec<GenerationRequest> =
        prompts.map(|(i, prompt_ids)| GenerationRequest { prompt_ids, key: i as u64, sample: 0 }).collect();
    let write = |max_tokens: usize| -> Result<f64> {
        // No stop tokens: every sequence runs to its full length.
        let sampling =
            SamplingParams { max_tokens, temperature, top_p: 1.0, seed: 0, stop_token_ids: Vec::new() };
        let mut n_written = 0;
        let began = Instant::now();
        decoder.generate(&requests, &sampling, batch, &mut |_, done| n_written += done.token_ids.len())?;
        let seconds = began.elapsed().as_secs_f64();
        assert_eq!(n_written, batch * max_tokens, "every sequence is written in full");
        Ok(seconds)
    };
    let both = repeat(sizes.steps, decoder.device(), |_| Ok((write(1)?, write(1 + tokens)?)))?;
    let (prefills, wholes): (Vec<f64>, Vec<f64>) = both.steps.into_iter().unzip();
    let prefill_seconds = median(&prefills).expect("at least one step is timed");
    let steps: Vec<f64> = wholes.iter().map(|whole| whole - prefill_seconds).collect();
    if steps.iter().any(|&seconds| seconds <= 0.0) {
        let cause = "the new tokens took less time than the prompts' passes vary by";
        return Err(Failure::new(Exit::Failed, cause)
            .at("--tokens")
            .fix("write more tokens, or give shorter prompts"));
    }
    Ok(Decoded { timed: Timed { steps, memory: both.memory, fma_peak: both.fma_peak }, prefill_seconds })
}

/// What `steps` calls say, after [`WARM_UP_STEPS`] whose word does not count; steps count from 1.
fn repeat<T>(steps: usize, device: &Device, mut step: impl FnMut(usize) -> Result<T>) -> Result<Timed<T>> {
    for n in 1..=WARM_UP_STEPS {
        step(n)?;
    }
    let mark = Mark::set();
    let (mut said, mut fma_peak) = (Vec::with_capacity(steps), 0.0f64);
    for n in 1..=steps {
        said.push(step(WARM_UP_STEPS + n)?);
        fma_peak = fma_peak.max(device.fma_peak());
    }
    Ok(Timed { steps: said, memory: mark.peaks(), fma_peak })
}

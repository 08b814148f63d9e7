//! A decoder in training: gradients, clipping, AdamW.

use stillroom_formats::{NamedTensor, TensorSource};
use stillroom_kernels::{AdamWStep, Buf, HeadLosses, HeadTerms};

use crate::backward::{self, StepMemory};
use crate::batch::{Batch, Targets};
use crate::decoder::{Decoder, WeightStorage, export, read_tensor, upload_tensors};
use crate::error::ModelError;
use crate::lora::StepDropout;

/// Settings of one optimiser step (Loshchilov and Hutter 2019, algorithm 2).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    pub learning_rate: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    /// Decoupled; applied to matrices only, neither to norms nor to biases.
    pub weight_decay: f32,
    /// Gradients longer than this, over all parameters together, are scaled down to it. 0 for never.
    pub max_grad_norm: f32,
}

/// What one optimiser step saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// ‖gradient‖₂ over all parameters, before clipping. Where it is not finite, no weight was changed
    /// and the step does not count.
    pub grad_norm: f64,
    pub clipped: bool,
}

/// A decoder with gradients and optimiser moments of what is trained: its adapter where it has one, else all
/// weights.
pub struct TrainState {
    decoder: Decoder,
    gradients: Vec<Buf>,
    m: Vec<Buf>,
    v: Vec<Buf>,
    /// Optimiser steps taken.
    n_steps: u64,
    /// Tokens accumulated since the last step, those of unsupervised documents too.
    n_tokens: u64,
    dropout_seed: u64,
    memory: StepMemory,
}

/// Added to the norm that gradients are divided by, as `torch.nn.utils.clip_grad_norm_` does.
const CLIP_EPS: f64 = 1e-6;

const FIRST_MOMENT: &str = "exp_avg.";
const SECOND_MOMENT: &str = "exp_avg_sq.";

impl TrainState {
    /// Gradients and moments of zero.
    ///
    /// # Panics
    /// Where the weights are held as they are stored.
    pub fn new(decoder: Decoder) -> TrainState {
        assert_eq!(
            decoder.storage(),
            WeightStorage::F32,
            "a decoder in training has its weights held as f32"
        );
        let zeros = || decoder.trained().1.iter().map(|w| decoder.device.zeros(w.len())).collect();
        TrainState {
            gradients: zeros(),
            m: zeros(),
            v: zeros(),
            n_steps: 0,
            n_tokens: 0,
            dropout_seed: 0,
            memory: StepMemory::default(),
            decoder,
        }
    }

    /// With `true`, the forward pass keeps of each layer only its input, and the backward pass computes
    /// the layer's activations again right before it needs them. Gradients and losses have the same bits.
    ///
    /// Activations then take L·D numbers per token and those of one layer, not those of L layers, which are
    /// about 2·F + 5·D each; a step takes about three quarters of one more forward pass of the layers
    /// longer, of what are three (the down projection and the last layer are not computed again). Chen et
    /// al. 2016, "Training Deep Nets with Sublinear Memory Cost".
    pub fn with_gradient_checkpointing(mut self, on: bool) -> TrainState {
        self.memory.activations.inputs_only = on;
        self
    }

    /// Dropout of an adapter's inputs is a function of this seed, the step, the layer, the target, the token's
    /// number among those accumulated since the last step, and the column. So it depends neither on how a
    /// step is split into batches, nor on the threads, nor on a [`TrainState::restore`] between steps.
    pub fn with_dropout_seed(mut self, seed: u64) -> TrainState {
        self.dropout_seed = seed;
        self
    }

    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    pub fn into_decoder(self) -> Decoder {
        self.decoder
    }

    /// Optimiser steps taken, those before a [`TrainState::restore`] included.
    pub fn n_steps(&self) -> u64 {
        self.n_steps
    }

    /// Forward and backward over one batch; gradients of Σ over supervised rows of
    /// `terms.scale`·(weighted losses) are added. Returns each row's losses in nats, unweighted.
    ///
    /// From about the second step on batches of the same shape, neither this nor [`TrainState::step`]
    /// allocates memory.
    ///
    /// # Panics
    /// Where ids, labels or target ids lie outside the vocabulary, shapes disagree, or the targets cannot
    /// give the terms ([`HeadTargets::validate`](stillroom_kernels::HeadTargets::validate)).
    pub fn accumulate(&mut self, batch: &Batch, targets: &Targets<'_>, terms: &HeadTerms<'_>) -> &HeadLosses {
        let dropout = StepDropout { seed: self.dropout_seed, step: self.n_steps, first_row: self.n_tokens };
        let memory = &mut self.memory;
        backward::accumulate(&self.decoder, &mut self.gradients, memory, batch, targets, terms, dropout);
        self.n_tokens += batch.n_tokens() as u64;
        &memory.losses
    }

    /// Clips the gradients by their global norm, takes one AdamW step and sets the gradients to zero.
    pub fn step(&mut self, opt: &AdamW) -> StepReport {
        self.n_tokens = 0;
        let device = self.decoder.device.clone();
        let grad_norm = self.gradients.iter().map(|g| device.sum_of_squares(g)).sum::<f64>().sqrt();
        let max = f64::from(opt.max_grad_norm);
        let scale = if max > 0.0 { (max / (grad_norm + CLIP_EPS)).min(1.0) } else { 1.0 };
        if grad_norm.is_finite() {
            self.n_steps += 1;
            self.update(opt, scale as f32);
        } else {
            self.gradients.iter_mut().for_each(|g| device.fill_zero(g));
        }
        StepReport { grad_norm, clipped: scale < 1.0 }
    }

    fn update(&mut self, opt: &AdamW, gradient_scale: f32) {
        let device = self.decoder.device.clone();
        let (n_steps, gradients) = (self.n_steps, &mut self.gradients);
        let moments = self.m.iter_mut().zip(&mut self.v);
        self.decoder.change_trained(|slots, parameters| {
            let tensors = parameters.iter_mut().zip(gradients).zip(moments);
            for (((weight, gradient), (m, v)), parameter) in tensors.zip(&slots.parameters) {
                let step = AdamWStep {
                    step: n_steps,
                    learning_rate: opt.learning_rate,
                    beta1: opt.beta1,
                    beta2: opt.beta2,
                    eps: opt.eps,
                    weight_decay: if parameter.decays { opt.weight_decay } else { 0.0 },
                    gradient_scale,
                };
                device.adamw(weight, gradient, m, v, &step);
            }
        });
    }

    /// What was accumulated since the last step, under the names of [`Decoder::trained_tensors`].
    pub fn gradients(&self) -> impl Iterator<Item = NamedTensor> + '_ {
        export(&self.decoder.device, self.decoder.trained().0, &self.gradients, "")
    }

    /// Adam's moments for a checkpoint: `exp_avg.NAME` and `exp_avg_sq.NAME` of each of
    /// [`Decoder::trained_tensors`], f32 as they are. With those and [`TrainState::n_steps`] they are the whole state between two steps.
    pub fn optimiser_tensors(&self) -> impl Iterator<Item = NamedTensor> + '_ {
        let of = |buffers, prefix| export(&self.decoder.device, self.decoder.trained().0, buffers, prefix);
        of(&self.m, FIRST_MOMENT).chain(of(&self.v, SECOND_MOMENT))
    }

    /// The state that [`TrainState::optimiser_tensors`] and the decoder's tensors were taken from, bit for
    /// bit. `moments` may hold other tensors too.
    pub fn restore(
        decoder: Decoder,
        n_steps: u64,
        moments: &dyn TensorSource,
    ) -> Result<TrainState, ModelError> {
        let read = |prefix: &str| {
            upload_tensors(&decoder.device, decoder.trained().0, |slot, out| {
                read_tensor(moments, &format!("{prefix}{}", slot.name), slot, out)
            })
        };
        let (m, v) = (read(FIRST_MOMENT)?, read(SECOND_MOMENT)?);
        Ok(TrainState { n_steps, m, v, ..TrainState::new(decoder) })
    }
}

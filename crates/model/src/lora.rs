//! LoRA: low-rank matrices beside frozen weights, which are all that is then trained.
//!
//! y = x·Wᵀ + scale·(dropout(x)·Aᵀ)·Bᵀ, with W \[out, in\], A \[r, in\], B \[out, r\] (Hu et al. 2022). q, k
//! and v lie in one fused weight, as do gate and up; each target has an A and a B of its own, and adds to its
//! columns of the fused output.

use std::ops::Range;

use stillroom_core::CounterRng;
use stillroom_formats::{DecoderConfig, LoraConfig, LoraTarget, NamedTensor, TensorSource};
use stillroom_kernels::{Buf, Columns, Device, Dropout};

use crate::decoder::{
    Decoder, WeightStorage, check_names, copy, export, random_tensor, read_tensor, upload_tensors,
};
use crate::error::ModelError;
use crate::layout::{Init, LayerIds, Layout, Linear, Slots, TensorSlot, attention_shape};
use crate::workspace::Lent;

/// A and B of every target of every layer.
pub(crate) struct Adapter {
    config: LoraConfig,
    scale: f32,
    /// As PEFT names them; a parameter is one tensor.
    slots: Slots,
    /// A and B in turn, by parameter.
    weights: Vec<Buf>,
    /// Pair i is parameters 2i and 2i + 1.
    pairs: Vec<Pair>,
    /// By parameter of the decoder: the pairs that act on it.
    of_weight: Vec<Range<usize>>,
}

/// Where an A and a B act.
#[derive(Clone, Copy)]
struct Pair {
    layer: usize,
    target: LoraTarget,
    /// The decoder's parameter.
    weight: usize,
    /// The target's among the outputs of the weight.
    columns: Columns,
    n_in: usize,
}

/// What dropout depends on beside layer, target and column.
#[derive(Clone, Copy)]
pub(crate) struct StepDropout {
    pub(crate) seed: u64,
    /// Optimiser steps taken before.
    pub(crate) step: u64,
    /// Tokens of the step before the first row. However the step's documents are split into batches, a row
    /// has the same number.
    pub(crate) first_row: u64,
}

/// Which rows of a pass a linear map is computed for.
#[derive(Clone, Copy, Default)]
pub(crate) struct Rows<'a> {
    /// None where nothing is dropped: outside training.
    pub(crate) dropout: Option<StepDropout>,
    /// Some of the pass, where the last layer was narrowed.
    pub(crate) picked: Option<&'a [u32]>,
}

impl Adapter {
    fn new(
        decoder: &Decoder,
        config: LoraConfig,
        fill: impl Fn(&TensorSlot, &mut [f32]) -> Result<(), ModelError>,
    ) -> Result<Adapter, ModelError> {
        let slots = slots(&config, &decoder.config);
        let weights = upload_tensors(&decoder.device, &slots, fill)?;
        let pairs = pairs(&config, &decoder.config, &decoder.layout);
        let of_weight = |id: usize| {
            // Those of one weight follow each other.
            let first = pairs.iter().position(|pair| pair.weight == id).unwrap_or(0);
            first..first + pairs.iter().filter(|pair| pair.weight == id).count()
        };
        let of_weight = (0..decoder.layout.parameters.len()).map(of_weight).collect();
        Ok(Adapter { scale: config.scale(), config, slots, weights, pairs, of_weight })
    }

    pub(crate) fn config(&self) -> &LoraConfig {
        &self.config
    }

    pub(crate) fn copy(&self, device: &Device) -> Adapter {
        Adapter {
            config: self.config.clone(),
            scale: self.scale,
            slots: self.slots.clone(),
            weights: self.weights.iter().map(|w| copy(device, w)).collect(),
            pairs: self.pairs.clone(),
            of_weight: self.of_weight.clone(),
        }
    }

    /// The mask of pair `i` over `rows`.
    fn dropout<'a>(&self, i: usize, rows: Rows<'a>) -> Option<Dropout<'a>> {
        let StepDropout { seed, step, first_row } = rows.dropout.filter(|_| self.config.dropout > 0.0)?;
        let Pair { layer, target, .. } = self.pairs[i];
        let key = CounterRng::new(&[seed, step, layer as u64, target as u64]).next_u64();
        Some(Dropout { probability: self.config.dropout as f32, key, first_row, rows: rows.picked })
    }
}

/// A and B of each target as parameters and tensors, a layer a group.
fn slots(config: &LoraConfig, of: &DecoderConfig) -> Slots {
    let mut slots = Slots::default();
    let tensors = config.tensors(of);
    for of_layer in tensors.chunk_by(|a, b| a.layer == b.layer) {
        for tensor in of_layer {
            let [rows, cols] = tensor.shape;
            let init =
                if tensor.is_b { Init::Zero } else { Init::Uniform { bound: 1.0 / (cols as f64).sqrt() } };
            let parameter = slots.matrix(rows, cols);
            slots.tensor(tensor.name.clone(), &tensor.shape, parameter, 0, init);
        }
        slots.end_group();
    }
    slots
}

/// In the order of [`LoraConfig::tensors`].
fn pairs(config: &LoraConfig, of: &DecoderConfig, layout: &Layout) -> Vec<Pair> {
    let shape = attention_shape(of);
    let (q, kv) = (shape.n_q_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim);
    let layers = layout.layers.iter().enumerate();
    let each = layers.flat_map(|(i, ids)| config.target_modules.iter().map(move |&t| (i, ids, t)));
    let pair = |(layer, ids, target): (usize, &LayerIds, LoraTarget)| {
        let [len, n_in] = target.shape(of);
        let (weight, first) = match target {
            LoraTarget::Q => (ids.qkv, 0),
            LoraTarget::K => (ids.qkv, q),
            LoraTarget::V => (ids.qkv, q + kv),
            LoraTarget::O => (ids.o, 0),
            LoraTarget::Gate => (ids.gate_up, 0),
            LoraTarget::Up => (ids.gate_up, of.intermediate_size),
            LoraTarget::Down => (ids.down, 0),
        };
        let columns = Columns { stride: layout.parameters[weight].rows, first, len };
        Pair { layer, target, weight, columns, n_in }
    };
    each.map(pair).collect()
}

impl Decoder {
    /// With a fresh adapter, which changes nothing yet: B is zero, and A as PEFT starts it,
    /// `kaiming_uniform` with a = √5, which is U(−1/√in, 1/√in).
    ///
    /// The weights are frozen from here on: [`TrainState`](crate::TrainState) trains A and B alone. Every
    /// number comes from `CounterRng(seed, digest of the tensor's name, index)`. An adapter that was there
    /// is replaced.
    pub fn with_new_adapter(mut self, config: LoraConfig, seed: u64) -> Result<Decoder, ModelError> {
        config.validate()?;
        let n_threads = self.device.n_threads();
        let adapter = Adapter::new(&self, config, |slot, out| {
            random_tensor(slot, seed, out, n_threads);
            Ok(())
        })?;
        self.adapter = Some(adapter);
        Ok(self)
    }

    /// With the adapter of `source`, which has every tensor of [`LoraConfig::tensors`] in its shape, and no
    /// other. An adapter that was there is replaced.
    pub fn with_adapter(
        mut self,
        config: LoraConfig,
        source: &dyn TensorSource,
    ) -> Result<Decoder, ModelError> {
        config.validate()?;
        check_names(&slots(&config, &self.config), &source.names(), |_| false)?;
        let read = |slot: &TensorSlot, out: &mut [f32]| read_tensor(source, &slot.name, slot, out);
        let adapter = Adapter::new(&self, config, read)?;
        self.adapter = Some(adapter);
        Ok(self)
    }

    /// The weights alone.
    pub fn without_adapter(mut self) -> Decoder {
        self.adapter = None;
        self
    }

    /// Settings of the adapter, if there is one.
    pub fn adapter_config(&self) -> Option<&LoraConfig> {
        self.adapter.as_ref().map(Adapter::config)
    }

    /// Adds scale·B·A to the weights, and has no adapter any more; without one nothing changes.
    ///
    /// # Panics
    /// Where the weights are held as they are stored.
    pub fn merge(&mut self) {
        let Some(adapter) = self.adapter.take() else { return };
        let device = self.device.clone();
        self.change_weights(|weights| {
            for (pair, ab) in adapter.pairs.iter().zip(adapter.weights.chunks_exact(2)) {
                let (w, shape) = (&mut weights[pair.weight], (pair.columns.len, adapter.config.r, pair.n_in));
                device.low_rank_merge(w, pair.columns.first, &ab[1], &ab[0], adapter.scale, shape);
            }
        });
    }

    /// What training changes, as it is: the adapter under PEFT's names, or without one all weights.
    pub fn trained_tensors(&self) -> Box<dyn Iterator<Item = NamedTensor> + '_> {
        match &self.adapter {
            Some(adapter) => Box::new(export(&self.device, &adapter.slots, &adapter.weights, "")),
            None => Box::new(self.tensors()),
        }
    }

    /// This decoder with what training changes read from `source`: the counterpart of
    /// [`Decoder::trained_tensors`].
    pub fn with_trained(self, source: &dyn TensorSource) -> Result<Decoder, ModelError> {
        match self.adapter_config().cloned() {
            Some(config) => self.with_adapter(config, source),
            None => {
                let (device, config) = (self.device.clone(), self.config.clone());
                // No second copy of the weights while they are read.
                drop(self);
                Decoder::load(device, config, source)
            }
        }
    }

    /// Numbers that training changes.
    pub fn n_trained(&self) -> u64 {
        self.trained_slots().parameters.iter().map(|p| p.len() as u64).sum()
    }

    /// How the parameters that training changes lie, and the numbers in them.
    pub(crate) fn trained(&self) -> (&Slots, &[Buf]) {
        match &self.adapter {
            Some(adapter) => (&adapter.slots, &adapter.weights),
            None => (&self.layout, &self.weights),
        }
    }

    pub(crate) fn trained_slots(&self) -> &Slots {
        self.trained().0
    }

    /// Changes the parameters that training changes.
    ///
    /// # Panics
    /// Where the weights are held as they are stored.
    pub(crate) fn change_trained(&mut self, change: impl FnOnce(&Slots, &mut [Buf])) {
        assert_eq!(self.storage(), WeightStorage::F32, "weights that are held as stored do not change");
        match &mut self.adapter {
            Some(adapter) => change(&adapter.slots, &mut adapter.weights),
            None => {
                let layout = self.layout.clone();
                self.change_weights(|weights| change(&layout, weights));
            }
        }
    }

    /// y\[n, out\] = x\[n, in\]·wᵀ + bias, and what the adapter adds.
    pub(crate) fn linear(&self, y: &mut Buf, x: &Buf, map: Linear, n: usize, rows: Rows<'_>) {
        let bias = map.bias.map(|id| self.weight(id));
        self.device.linear_forward(y, x, self.product(map.weight), bias, n);
        let Some(adapter) = &self.adapter else { return };
        for i in adapter.of_weight[map.weight].clone() {
            let (t, dropped) = self.low_rank_down(adapter, i, x, n, rows);
            let (columns, b) = (adapter.pairs[i].columns, &adapter.weights[2 * i + 1]);
            self.device.low_rank_up(y, columns, &t, b, n, adapter.config.r);
            self.workspace.give_all(dropped.into_iter().chain([t]));
        }
    }

    /// scale·dropout(x)·Aᵀ \[n, r\] of pair `i`, and dropout(x) where something is dropped.
    fn low_rank_down(
        &self,
        adapter: &Adapter,
        i: usize,
        x: &Buf,
        n: usize,
        rows: Rows<'_>,
    ) -> (Lent, Option<Lent>) {
        let (n_in, r) = (adapter.pairs[i].n_in, adapter.config.r);
        let dropped = adapter.dropout(i, rows).map(|dropout| {
            let mut dropped = self.take(n, n_in);
            self.device.dropout_forward(&mut dropped, x, &dropout, n, n_in);
            dropped
        });
        let mut t = self.take(n, r);
        let x = dropped.as_deref().unwrap_or(x);
        self.device.low_rank_down(&mut t, x, &adapter.weights[2 * i], adapter.scale, (n, r, n_in));
        (t, dropped)
    }

    /// Backward of what the adapter adds in [`Decoder::linear`]: gradients of A and B are added, and to dx
    /// what comes through them.
    pub(crate) fn adapter_backward(
        &self,
        gradients: &mut [Buf],
        dx: &mut Buf,
        dy: &Buf,
        x: &Buf,
        weight: usize,
        n: usize,
        rows: Rows<'_>,
    ) {
        let Some(adapter) = &self.adapter else { return };
        let (device, r) = (&self.device, adapter.config.r);
        for i in adapter.of_weight[weight].clone() {
            let Pair { columns, n_in, .. } = adapter.pairs[i];
            let (a, b) = (&adapter.weights[2 * i], &adapter.weights[2 * i + 1]);
            let (t, mut dropped) = self.low_rank_down(adapter, i, x, n, rows);
            let mut dt = self.take(n, r);
            let db = &mut gradients[2 * i + 1];
            device.low_rank_up_backward(&mut dt, db, dy, columns, &t, b, adapter.scale, (n, r));
            let x = dropped.as_deref().unwrap_or(x);
            device.linear_backward_weight(&mut gradients[2 * i], &dt, x, n, n_in, r);
            match (adapter.dropout(i, rows), &mut dropped) {
                (Some(dropout), Some(through)) => {
                    device.linear_backward_input(through, &dt, a, n, n_in, r);
                    device.dropout_backward(dx, through, &dropout, n, n_in);
                }
                _ => device.low_rank_down_backward(dx, &dt, a, (n, r, n_in)),
            }
            self.workspace.give_all(dropped.into_iter().chain([t, dt]));
        }
    }
}

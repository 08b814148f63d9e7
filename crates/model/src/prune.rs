//! Students from a wider model: what of its width matters on given text, and a model with only that.
//!
//! Source: Muralidharan et al. 2024, "Compact Language Models via Pruning and Knowledge Distillation" (Minitron),
//! section 2. A part's importance is the size of what it gives, averaged over the tokens of a document, with the
//! root of the sum of squares over documents:
//!
//! | part | what it gives |
//! |---|---|
//! | channel of the residual stream | its number after each norm of the layers, all norms added up |
//! | neuron of a feed-forward block | its activation, silu(gate)·up |
//! | attention head | ‖its output‖₂; a key/value head has the sum over the query heads that it serves |
//!
//! Query heads go with their key/value head, so that each of those serves as many as before.
//!
//! A norm divides by the root of the mean square over all channels, which dropping some changes. So its weight is
//! multiplied by √(ρ·D/D′), where ρ is the share of the kept channels in the sum of squares on the given text: what
//! the norm gives then keeps its size.

use std::cell::RefCell;

use stillroom_formats::{DecoderConfig, NamedTensor};

use crate::backward::TOKENS_PER_GROUP;
use crate::batch::Batch;
use crate::decoder::Decoder;
use crate::error::ModelError;
use crate::forward::{Activations, Kept};
use crate::layout::{Layout, TensorSlot};

/// How wide a pruned model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Width {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_key_value_heads: usize,
}

impl Width {
    /// The width of a model with `config`.
    pub fn of(config: &DecoderConfig) -> Width {
        Width {
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            num_key_value_heads: config.num_key_value_heads,
        }
    }

    /// The configuration of a model with `config` that keeps this width.
    ///
    /// # Errors
    /// A width that is not between 1 and this model's.
    pub fn narrow(self, config: &DecoderConfig) -> Result<DecoderConfig, ModelError> {
        let whole = Width::of(config);
        let widths = [
            ("hidden_size", self.hidden_size, whole.hidden_size),
            ("intermediate_size", self.intermediate_size, whole.intermediate_size),
            ("num_key_value_heads", self.num_key_value_heads, whole.num_key_value_heads),
        ];
        for (field, width, of_model) in widths {
            if width == 0 || width > of_model {
                return Err(ModelError::Width { field, width, of_model });
            }
        }
        let per_kv_head = config.num_attention_heads / config.num_key_value_heads;
        Ok(DecoderConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_key_value_heads: self.num_key_value_heads,
            num_attention_heads: self.num_key_value_heads * per_kv_head,
            ..config.clone()
        })
    }
}

/// What of a model matters on some text; larger is more important.
#[derive(Clone, Debug, PartialEq)]
pub struct Importance {
    /// By channel of the residual stream.
    pub channels: Vec<f64>,
    /// By layer and neuron.
    pub neurons: Vec<Vec<f64>>,
    /// By layer and key/value head.
    pub kv_heads: Vec<Vec<f64>>,
    /// Σ x² of each channel in front of each norm: the two of every layer, then the last.
    squares: Vec<Vec<f64>>,
}

/// What is kept, ascending.
struct KeptParts {
    channels: Vec<usize>,
    neurons: Vec<Vec<usize>>,
    kv_heads: Vec<Vec<usize>>,
    /// Factor of each norm's weight.
    norm_scales: Vec<f32>,
}

impl Decoder {
    /// A decoder of width `to` with the parts of this one that matter most on `documents`.
    ///
    /// # Errors
    /// A width that is not between 1 and this model's, and no text.
    ///
    /// # Panics
    /// Where an id is outside the vocabulary ([`Decoder::check_ids`]) or there is an adapter: merge it first.
    pub fn keep_width(&self, to: Width, documents: &[&[u32]]) -> Result<Decoder, ModelError> {
        let config = to.narrow(&self.config)?;
        if documents.iter().all(|ids| ids.is_empty()) {
            return Err(ModelError::NoCalibration);
        }
        let kept = self.importance(documents).keep(to);
        let layout = Layout::new(&config)?;
        // Both models have the same tensors in one order: a few of the wide ones are on the host at a time.
        let tensors = RefCell::new(self.tensors());
        let fill = |slot: &TensorSlot, out: &mut [f32]| {
            let whole = tensors.borrow_mut().next().filter(|whole| whole.name == slot.name);
            let whole = whole.unwrap_or_else(|| panic!("`{}` is in both models", slot.name));
            kept.slice(&whole, &self.config, out);
            Ok(())
        };
        Decoder::assemble(self.device.clone(), config, layout, fill)
    }

    /// What matters on `documents`.
    ///
    /// # Panics
    /// As [`Decoder::keep_width`].
    pub fn importance(&self, documents: &[&[u32]]) -> Importance {
        assert!(self.adapter.is_none(), "an adapter belongs to the whole width of its decoder");
        let c = &self.config;
        let rows = |n: usize| vec![vec![0.0; n]; c.num_hidden_layers];
        let mut found = Importance {
            channels: vec![0.0; c.hidden_size],
            neurons: rows(c.intermediate_size),
            kv_heads: rows(c.num_key_value_heads),
            squares: vec![vec![0.0; c.hidden_size]; 2 * c.num_hidden_layers + 1],
        };
        let whole = Batch::from_documents(documents);
        let mut group = Batch::default();
        for documents in whole.groups(TOKENS_PER_GROUP, 1) {
            group.set_part(&whole, documents);
            self.add_importance(&group, &mut found);
        }
        let roots = [&mut found.neurons, &mut found.kv_heads].into_iter().flatten();
        roots.chain([&mut found.channels]).flatten().for_each(|sum| *sum = sum.sqrt());
        found
    }

    fn add_importance(&self, group: &Batch, found: &mut Importance) {
        let (n, positions) = (group.n_tokens(), group.positions());
        let mut activations = Activations::default();
        let mut pass = self.documents(group, &positions);
        let x = self.layers_forward(&group.ids, &mut pass, None, Some(&mut activations));
        let mut channels = vec![vec![0.0; self.config.hidden_size]; group.segments.len()];
        for (layer, kept) in activations.kept.drain(..).enumerate() {
            let ids = &self.layout.layers[layer];
            for (i, (x, norm)) in
                [(&kept.x_in, ids.input_norm), (&kept.x_mid, ids.post_norm)].into_iter().enumerate()
            {
                add_squares(&mut found.squares[2 * layer + i], &self.device.download(x));
                let normed = self.norm(x, norm, n);
                let of_documents = means(group, &self.device.download(&normed), 1);
                channels.iter_mut().zip(&of_documents).for_each(|(sum, means)| add(sum, means));
                self.workspace.give(normed);
            }
            self.add_layer(group, layer, kept, found);
        }
        add_squares(&mut found.squares[2 * self.config.num_hidden_layers], &self.device.download(&x));
        channels.iter().for_each(|sum| add_squared(&mut found.channels, sum));
        self.workspace.give(x);
    }

    /// Neurons and heads of one layer.
    fn add_layer(&self, group: &Batch, layer: usize, kept: Kept, found: &mut Importance) {
        let (c, n) = (&self.config, group.n_tokens());
        let mut hidden = self.take(n, c.intermediate_size);
        self.device.swiglu_forward(&mut hidden, &kept.gate_up, n, c.intermediate_size);
        let of_neurons = means(group, &self.device.download(&hidden), 1);
        of_neurons.iter().for_each(|means| add_squared(&mut found.neurons[layer], means));
        self.workspace.give(hidden);
        let per_kv_head = c.num_attention_heads / c.num_key_value_heads;
        for of_heads in means(group, &self.device.download(&kept.attention), c.head_dim) {
            let sums: Vec<f64> = of_heads.chunks(per_kv_head).map(|heads| heads.iter().sum()).collect();
            add_squared(&mut found.kv_heads[layer], &sums);
        }
        let (x_in, rest) = kept.into_bufs();
        self.workspace.give_all(rest.chain([x_in]));
    }
}

/// For each document, the mean over its tokens of ‖·‖₂ of every `width` numbers of a row.
fn means(group: &Batch, data: &[f32], width: usize) -> Vec<Vec<f64>> {
    let per_row = data.len() / group.n_tokens();
    let of_document = |start: usize, len: usize| {
        let mut sums = vec![0.0; per_row / width];
        for row in data[start * per_row..(start + len) * per_row].chunks(per_row) {
            for (sum, part) in sums.iter_mut().zip(row.chunks(width)) {
                *sum += part.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            }
        }
        sums.iter_mut().for_each(|sum| *sum /= len as f64);
        sums
    };
    group.segments.iter().map(|s| of_document(s.start, s.len)).collect()
}

fn add(sums: &mut [f64], values: &[f64]) {
    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

fn add_squared(sums: &mut [f64], values: &[f64]) {
    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value * value);
}

fn add_squares(sums: &mut [f64], rows: &[f32]) {
    for row in rows.chunks(sums.len()) {
        sums.iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v).powi(2));
    }
}

/// The `n` largest, ascending; of equals those that come first.
fn largest(importance: &[f64], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..importance.len()).collect();
    order.sort_by(|&a, &b| importance[b].total_cmp(&importance[a]).then(a.cmp(&b)));
    order.truncate(n);
    order.sort_unstable();
    order
}

impl Importance {
    fn keep(&self, to: Width) -> KeptParts {
        let of_layers = |parts: &[Vec<f64>], n| parts.iter().map(|part| largest(part, n)).collect();
        let channels = largest(&self.channels, to.hidden_size);
        let scale = |squares: &Vec<f64>| {
            let whole: f64 = squares.iter().sum();
            let kept: f64 = channels.iter().map(|&i| squares[i]).sum();
            let share = if whole > 0.0 { kept / whole } else { 1.0 };
            (share * squares.len() as f64 / channels.len() as f64).sqrt() as f32
        };
        KeptParts {
            norm_scales: self.squares.iter().map(scale).collect(),
            channels,
            neurons: of_layers(&self.neurons, to.intermediate_size),
            kv_heads: of_layers(&self.kv_heads, to.num_key_value_heads),
        }
    }
}

/// What an axis of a tensor goes by.
enum Axis {
    Channels,
    Neurons,
    QueryHeads,
    KvHeads,
    Whole,
}

impl KeptParts {
    /// The kept part of a tensor of the model with `config`.
    fn slice(&self, whole: &NamedTensor, config: &DecoderConfig, out: &mut [f32]) {
        let (layer, part) = place(&whole.name);
        let (rows, cols) = axes(part);
        let n_cols = if whole.shape.len() > 1 { whole.shape[1] } else { 1 };
        let rows = self.kept(rows, layer, config).unwrap_or_else(|| (0..whole.shape[0]).collect());
        let cols = self.kept(cols, layer, config).unwrap_or_else(|| (0..n_cols).collect());
        assert_eq!(out.len(), rows.len() * cols.len(), "`{}` in its new shape", whole.name);
        let scale = self.norm_scale(layer, part);
        for (row, out) in rows.iter().zip(out.chunks_mut(cols.len())) {
            let from = &whole.data[row * n_cols..(row + 1) * n_cols];
            out.iter_mut().zip(&cols).for_each(|(out, &col)| *out = scale * from[col]);
        }
    }

    fn norm_scale(&self, layer: usize, part: &str) -> f32 {
        match part {
            "input_layernorm.weight" => self.norm_scales[2 * layer],
            "post_attention_layernorm.weight" => self.norm_scales[2 * layer + 1],
            "norm.weight" => self.norm_scales[self.norm_scales.len() - 1],
            _ => 1.0,
        }
    }

    /// Indices along an axis; `None` for all of them.
    fn kept(&self, axis: Axis, layer: usize, config: &DecoderConfig) -> Option<Vec<usize>> {
        let per_kv_head = config.num_attention_heads / config.num_key_value_heads;
        let heads = |width: usize| {
            let of_head = move |&head: &usize| head * width..(head + 1) * width;
            self.kv_heads[layer].iter().flat_map(of_head).collect()
        };
        match axis {
            Axis::Channels => Some(self.channels.clone()),
            Axis::Neurons => Some(self.neurons[layer].clone()),
            Axis::QueryHeads => Some(heads(per_kv_head * config.head_dim)),
            Axis::KvHeads => Some(heads(config.head_dim)),
            Axis::Whole => None,
        }
    }
}

/// Layer and place in it of a tensor under Hugging Face's name; those outside the layers have 0.
fn place(name: &str) -> (usize, &str) {
    let name = name.strip_prefix("model.").unwrap_or(name);
    let in_layer = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
    let layer = in_layer.and_then(|(layer, part)| Some((layer.parse().ok()?, part)));
    layer.unwrap_or((0, name))
}

/// What rows and columns of a tensor go by.
fn axes(part: &str) -> (Axis, Axis) {
    match part {
        "embed_tokens.weight" | "lm_head.weight" => (Axis::Whole, Axis::Channels),
        "norm.weight" | "input_layernorm.weight" | "post_attention_layernorm.weight" => {
            (Axis::Channels, Axis::Whole)
        }
        "self_attn.q_proj.weight" => (Axis::QueryHeads, Axis::Channels),
        "self_attn.q_proj.bias" => (Axis::QueryHeads, Axis::Whole),
        "self_attn.k_proj.weight" | "self_attn.v_proj.weight" => (Axis::KvHeads, Axis::Channels),
        "self_attn.k_proj.bias" | "self_attn.v_proj.bias" => (Axis::KvHeads, Axis::Whole),
        "self_attn.o_proj.weight" => (Axis::Channels, Axis::QueryHeads),
        "mlp.gate_proj.weight" | "mlp.up_proj.weight" => (Axis::Neurons, Axis::Channels),
        "mlp.gate_proj.bias" | "mlp.up_proj.bias" => (Axis::Neurons, Axis::Whole),
        "mlp.down_proj.weight" => (Axis::Channels, Axis::Neurons),
        "self_attn.o_proj.bias" | "mlp.down_proj.bias" => (Axis::Channels, Axis::Whole),
        "self_attn.q_norm.weight" | "self_attn.k_norm.weight" => (Axis::Whole, Axis::Whole),
        other => panic!("no tensor of this architecture: `{other}`"),
    }
}

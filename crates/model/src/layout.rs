//! Which fused parameters a configuration has, and where Hugging Face's tensors lie in them.

use std::ops::Deref;

use stillroom_formats::DecoderConfig;
use stillroom_kernels::AttentionShape;

use crate::error::ModelError;

/// Numbers in all weights together that are accepted: 2³⁶, 256 GiB in f32.
const N_PARAMETERS_MAX: u64 = 1 << 36;
const N_LAYERS_MAX: usize = 1024;

/// Token embeddings start larger by this factor, so that what a token is outweighs what the first
/// layers write beside it: at D = 128 that saved a quarter of the tokens to the same loss.
const EMBEDDING_GAIN: f64 = 2.0;

/// Standard deviation of random weights, 1/√D: each product keeps the size of what it is given (Lecun
/// et al. 1998). GPT-2's fixed 0.02 is that of D = 2,500; at D = 128 it starves the signal, and a small
/// decoder then takes several times as many tokens to learn its first pattern.
fn init_std(config: &DecoderConfig) -> f64 {
    1.0 / (config.hidden_size as f64).sqrt()
}

/// A fused parameter as the device holds it.
#[derive(Clone, Debug)]
pub(crate) struct Parameter {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Weight decay applies: matrices only, no norms and no biases.
    pub(crate) decays: bool,
}

impl Parameter {
    pub(crate) fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether it is the right-hand side of a product, or a table of embeddings.
    pub(crate) fn is_matrix(&self) -> bool {
        self.decays
    }
}

/// How a random decoder starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Init {
    Normal {
        std: f64,
    },
    /// Between −bound and bound.
    Uniform {
        bound: f64,
    },
    One,
    Zero,
}

/// A linear map's parameters: weight and bias.
#[derive(Clone, Copy)]
pub(crate) struct Linear {
    pub(crate) weight: usize,
    pub(crate) bias: Option<usize>,
}

/// One of Hugging Face's tensors: numbers `offset..` of a fused parameter.
#[derive(Clone, Debug)]
pub(crate) struct TensorSlot {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) parameter: usize,
    pub(crate) offset: usize,
    pub(crate) init: Init,
}

impl TensorSlot {
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Indices of a layer's parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerIds {
    pub(crate) input_norm: usize,
    pub(crate) qkv: usize,
    pub(crate) qkv_bias: Option<usize>,
    pub(crate) q_norm: Option<usize>,
    pub(crate) k_norm: Option<usize>,
    pub(crate) o: usize,
    pub(crate) o_bias: Option<usize>,
    pub(crate) post_norm: usize,
    pub(crate) gate_up: usize,
    pub(crate) gate_up_bias: Option<usize>,
    pub(crate) down: usize,
    pub(crate) down_bias: Option<usize>,
}

impl LayerIds {
    pub(crate) fn qkv(&self) -> Linear {
        Linear { weight: self.qkv, bias: self.qkv_bias }
    }

    pub(crate) fn o(&self) -> Linear {
        Linear { weight: self.o, bias: self.o_bias }
    }

    pub(crate) fn gate_up(&self) -> Linear {
        Linear { weight: self.gate_up, bias: self.gate_up_bias }
    }

    pub(crate) fn down(&self) -> Linear {
        Linear { weight: self.down, bias: self.down_bias }
    }
}

/// Parameters, and the tensors that lie in them. `groups` cuts `tensors` where the parameters under them
/// change.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slots {
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) tensors: Vec<TensorSlot>,
    pub(crate) groups: Vec<std::ops::Range<usize>>,
}

/// All parameters of a configuration. A group is the embedding, a layer, the final norm, the head.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    slots: Slots,
    pub(crate) embedding: usize,
    pub(crate) layers: Vec<LayerIds>,
    pub(crate) final_norm: usize,
    /// None where the embedding is the head too.
    pub(crate) head: Option<usize>,
}

impl Deref for Layout {
    type Target = Slots;

    fn deref(&self) -> &Slots {
        &self.slots
    }
}

impl Slots {
    pub(crate) fn matrix(&mut self, rows: usize, cols: usize) -> usize {
        self.parameters.push(Parameter { rows, cols, decays: true });
        self.parameters.len() - 1
    }

    fn vector(&mut self, len: usize) -> usize {
        self.parameters.push(Parameter { rows: 1, cols: len, decays: false });
        self.parameters.len() - 1
    }

    pub(crate) fn tensor(
        &mut self,
        name: String,
        shape: &[usize],
        parameter: usize,
        offset: usize,
        init: Init,
    ) {
        self.tensors.push(TensorSlot { name, shape: shape.to_vec(), parameter, offset, init });
    }

    pub(crate) fn end_group(&mut self) {
        let start = self.groups.last().map_or(0, |g| g.end);
        self.groups.push(start..self.tensors.len());
    }
}

impl Layout {
    pub(crate) fn new(config: &DecoderConfig) -> Result<Layout, ModelError> {
        check(config)?;
        let (v, d) = (config.vocab_size, config.hidden_size);
        let embedding = Init::Normal { std: EMBEDDING_GAIN * init_std(config) };
        let mut layout = Layout::default();
        layout.embedding = layout.slots.matrix(v, d);
        layout.slots.tensor("model.embed_tokens.weight".into(), &[v, d], layout.embedding, 0, embedding);
        layout.slots.end_group();
        for i in 0..config.num_hidden_layers {
            layout.layer(config, i);
        }
        layout.final_norm = layout.slots.vector(d);
        layout.slots.tensor("model.norm.weight".into(), &[d], layout.final_norm, 0, Init::One);
        layout.slots.end_group();
        if !config.tie_word_embeddings {
            let head = layout.slots.matrix(v, d);
            layout.head = Some(head);
            layout.slots.tensor("lm_head.weight".into(), &[v, d], head, 0, embedding);
            layout.slots.end_group();
        }
        Ok(layout)
    }

    /// The parameter that gives logits.
    pub(crate) fn head_or_embedding(&self) -> usize {
        self.head.unwrap_or(self.embedding)
    }

    fn layer(&mut self, config: &DecoderConfig, i: usize) {
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let shape = attention_shape(config);
        let (nq, nk) = (shape.n_q_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim);
        let normal = Init::Normal { std: init_std(config) };
        let residual =
            Init::Normal { std: init_std(config) / (2.0 * config.num_hidden_layers as f64).sqrt() };
        let ids = LayerIds {
            input_norm: self.slots.vector(d),
            qkv: self.slots.matrix(nq + 2 * nk, d),
            qkv_bias: config.qkv_bias.then(|| self.slots.vector(nq + 2 * nk)),
            q_norm: config.qk_norm.then(|| self.slots.vector(shape.head_dim)),
            k_norm: config.qk_norm.then(|| self.slots.vector(shape.head_dim)),
            o: self.slots.matrix(d, nq),
            o_bias: config.attention_out_bias.then(|| self.slots.vector(d)),
            post_norm: self.slots.vector(d),
            gate_up: self.slots.matrix(2 * f, d),
            gate_up_bias: config.mlp_bias.then(|| self.slots.vector(2 * f)),
            down: self.slots.matrix(d, f),
            down_bias: config.mlp_bias.then(|| self.slots.vector(d)),
        };
        self.layers.push(ids);
        let name = |part: &str| format!("model.layers.{i}.{part}");
        for (part, rows, at) in [("q", nq, 0), ("k", nk, nq), ("v", nk, nq + nk)] {
            let part = name(&format!("self_attn.{part}_proj"));
            self.linear(part, [rows, d], ids.qkv, ids.qkv_bias, at, normal);
        }
        self.linear(name("self_attn.o_proj"), [d, nq], ids.o, ids.o_bias, 0, residual);
        for (part, id) in [("self_attn.q_norm", ids.q_norm), ("self_attn.k_norm", ids.k_norm)] {
            if let Some(id) = id {
                self.slots.tensor(name(part) + ".weight", &[shape.head_dim], id, 0, Init::One);
            }
        }
        for (part, at) in [("gate", 0), ("up", f)] {
            let part = name(&format!("mlp.{part}_proj"));
            self.linear(part, [f, d], ids.gate_up, ids.gate_up_bias, at, normal);
        }
        self.linear(name("mlp.down_proj"), [d, f], ids.down, ids.down_bias, 0, residual);
        self.slots.tensor(name("input_layernorm.weight"), &[d], ids.input_norm, 0, Init::One);
        self.slots.tensor(name("post_attention_layernorm.weight"), &[d], ids.post_norm, 0, Init::One);
        self.slots.end_group();
    }

    /// Weight \[rows, inputs\] and its bias, `at` rows into the fused parameters.
    fn linear(
        &mut self,
        name: String,
        [rows, inputs]: [usize; 2],
        weight: usize,
        bias: Option<usize>,
        at: usize,
        init: Init,
    ) {
        self.slots.tensor(format!("{name}.weight"), &[rows, inputs], weight, at * inputs, init);
        if let Some(bias) = bias {
            self.slots.tensor(format!("{name}.bias"), &[rows], bias, at, Init::Zero);
        }
    }
}

pub(crate) fn attention_shape(config: &DecoderConfig) -> AttentionShape {
    AttentionShape {
        n_q_heads: config.num_attention_heads,
        n_kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
    }
}

fn check(config: &DecoderConfig) -> Result<(), ModelError> {
    let counts = [
        ("vocab_size", config.vocab_size),
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.intermediate_size),
        ("num_hidden_layers", config.num_hidden_layers),
        ("num_attention_heads", config.num_attention_heads),
        ("num_key_value_heads", config.num_key_value_heads),
        ("head_dim", config.head_dim),
        ("max_position_embeddings", config.max_position_embeddings),
    ];
    let refuse = |field, value: usize, rule| Err(ModelError::Config { field, value: value as u64, rule });
    for (field, value) in counts {
        if value == 0 {
            return refuse(field, value, "must be at least 1");
        }
        if value > u32::MAX as usize {
            return refuse(field, value, "must be below 2^32");
        }
    }
    if config.num_hidden_layers > N_LAYERS_MAX {
        return refuse("num_hidden_layers", config.num_hidden_layers, "must be at most 1024");
    }
    if !config.head_dim.is_multiple_of(2) {
        return refuse("head_dim", config.head_dim, "must be even for rotary positions");
    }
    if !config.num_attention_heads.is_multiple_of(config.num_key_value_heads) {
        return refuse(
            "num_attention_heads",
            config.num_attention_heads,
            "must be a multiple of num_key_value_heads",
        );
    }
    let n = n_parameters(config);
    if n.is_none_or(|n| n > N_PARAMETERS_MAX) {
        return Err(ModelError::Config {
            field: "hidden_size",
            value: config.hidden_size as u64,
            rule: "with the other sizes gives more than 2^36 parameters",
        });
    }
    Ok(())
}

/// Numbers in the matrices, None where they overflow.
fn n_parameters(config: &DecoderConfig) -> Option<u64> {
    let mul = |a: usize, b: usize| (a as u64).checked_mul(b as u64);
    let add = |a: Option<u64>, b: Option<u64>| a?.checked_add(b?);
    let heads = config.num_key_value_heads.checked_mul(2)?.checked_add(config.num_attention_heads)?;
    let qkv = mul(heads, config.head_dim)?.checked_mul(config.hidden_size as u64);
    let o = mul(config.num_attention_heads, config.head_dim)?.checked_mul(config.hidden_size as u64);
    let mlp = mul(config.intermediate_size, config.hidden_size)?.checked_mul(3);
    let layers = add(add(qkv, o), mlp)?.checked_mul(config.num_hidden_layers as u64);
    add(layers, mul(config.vocab_size, config.hidden_size)?.checked_mul(2))
}

//! Golden files and small models. The safetensors reader is a second one, apart from `formats`.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stillroom_core::CounterRng;
use stillroom_formats::{
    DecoderConfig, Encoding, Family, FormatError, NamedTensor, RopeScaling, TensorSource, TensorView,
};
use stillroom_kernels::{Buf, Device};
use stillroom_model::{Batch, Decoder};

/// Variants with logits, gradients and losses.
pub(crate) const VARIANTS: [&str; 7] = [
    "llama-tied",
    "llama-untied-bias",
    "llama3-scaled",
    "llama3-scaled-rope-parameters",
    "qwen2",
    "qwen3",
    "qwen3-tied",
];

pub(crate) fn golden_dir(variant: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(variant)
}

/// A tensor of a golden file; integers are in `ints`.
pub(crate) struct Golden {
    pub(crate) shape: Vec<usize>,
    pub(crate) floats: Vec<f32>,
    pub(crate) ints: Vec<i64>,
}

pub(crate) fn read_safetensors(path: &Path) -> BTreeMap<String, Golden> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&bytes[8..8 + n]).unwrap();
    let entries = header.into_iter().filter(|(name, _)| name != "__metadata__");
    entries
        .map(|(name, entry)| {
            let at = |i: usize| 8 + n + entry["data_offsets"][i].as_u64().unwrap() as usize;
            let data = &bytes[at(0)..at(1)];
            let shape = serde_json::from_value(entry["shape"].clone()).unwrap();
            let (mut floats, mut ints) = (vec![], vec![]);
            match entry["dtype"].as_str().unwrap() {
                "F32" => floats = data.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
                "I64" => ints = data.chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect(),
                other => panic!("golden file holds {other}"),
            }
            (name, Golden { shape, floats, ints })
        })
        .collect()
}

/// Tensors in memory as a source.
#[derive(Clone)]
pub(crate) struct Tensors(pub(crate) BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl Tensors {
    pub(crate) fn of(tensors: impl Iterator<Item = NamedTensor>) -> Tensors {
        Tensors(tensors.map(|t| (t.name, (t.shape, t.data))).collect())
    }
}

impl TensorSource for Tensors {
    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn tensor(&self, name: &str) -> Result<TensorView<'_>, FormatError> {
        let missing = || FormatError::MissingTensor { name: name.to_owned() };
        let (shape, data) = self.0.get(name).ok_or_else(missing)?;
        let bytes: Vec<u8> = data.iter().flat_map(|v| v.to_le_bytes()).collect();
        Ok(TensorView { shape: shape.clone(), encoding: Encoding::F32, bytes: bytes.into() })
    }
}

/// A golden variant's model and values.
pub(crate) struct Variant {
    pub(crate) decoder: Decoder,
    pub(crate) golden: BTreeMap<String, Golden>,
    pub(crate) json: serde_json::Value,
}

impl Variant {
    pub(crate) fn open(name: &str, n_threads: usize) -> Variant {
        let dir = golden_dir(name);
        let text = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap();
        let config = DecoderConfig::from_json(&text("config.json")).unwrap();
        let weights = read_safetensors(&dir.join("model.safetensors"));
        let source = Tensors(weights.into_iter().map(|(name, t)| (name, (t.shape, t.floats))).collect());
        let decoder = Decoder::load(Arc::new(Device::cpu(n_threads)), config, &source).unwrap();
        let golden = read_safetensors(&dir.join("golden.safetensors"));
        let json = serde_json::from_str(&text("golden.json")).unwrap();
        Variant { decoder, golden, json }
    }

    /// Rows of a matrix of token ids.
    pub(crate) fn documents(&self, name: &str) -> Vec<Vec<u32>> {
        let ids = &self.golden[name];
        ids.ints.chunks(ids.shape[1]).map(|row| row.iter().map(|&id| id as u32).collect()).collect()
    }
}

pub(crate) fn slices(documents: &[Vec<u32>]) -> Vec<&[u32]> {
    documents.iter().map(Vec::as_slice).collect()
}

/// All logits of a batch, through the public parts of the decoder.
pub(crate) fn logits(decoder: &Decoder, batch: &Batch) -> Vec<f32> {
    let hidden = decoder.hidden_states(batch);
    head_logits(decoder, &hidden, batch.n_tokens())
}

fn head_logits(decoder: &Decoder, hidden: &Buf, n_rows: usize) -> Vec<f32> {
    let (device, config) = (decoder.device(), decoder.config());
    let name = if config.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
    let head = decoder.tensors().find(|t| t.name == name).unwrap();
    let head = device.pack(&device.upload(&head.data), config.vocab_size, config.hidden_size);
    let mut logits = device.zeros(n_rows * config.vocab_size);
    device.linear_forward(&mut logits, hidden, &head, None, n_rows);
    device.download(&logits)
}

/// A small model that still fills several panels of every kernel.
pub(crate) fn config(family: Family) -> DecoderConfig {
    DecoderConfig {
        family,
        vocab_size: 211,
        hidden_size: 72,
        intermediate_size: 104,
        num_hidden_layers: 3,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        head_dim: 12,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        max_position_embeddings: 128,
        tie_word_embeddings: family != Family::Qwen2,
        qkv_bias: family == Family::Qwen2,
        attention_out_bias: false,
        mlp_bias: false,
        qk_norm: family == Family::Qwen3,
        bos_token_id: None,
        eos_token_ids: vec![],
    }
}

/// A random model whose biases and norms are random too and whose logits are far apart.
pub(crate) fn lively(config: DecoderConfig, n_threads: usize, seed: u64) -> Decoder {
    let device = Arc::new(Device::cpu(n_threads));
    let plain = Decoder::random(device.clone(), config.clone(), seed);
    let mut tensors = Tensors::of(plain.tensors());
    for (i, (name, (_, data))) in tensors.0.iter_mut().enumerate() {
        let mut rng = CounterRng::new(&[seed, i as u64]);
        let base = if name.contains("norm") { 1.0 } else { 0.0 };
        data.iter_mut().for_each(|v| *v = base + 0.2 * rng.normal() as f32);
    }
    Decoder::load(device, config, &tensors).unwrap()
}

/// Documents of the given lengths with random ids.
pub(crate) fn documents(lengths: &[usize], vocab_size: usize, seed: u64) -> Vec<Vec<u32>> {
    let mut rng = CounterRng::new(&[seed]);
    let mut document = |n: &usize| (0..*n).map(|_| rng.below(vocab_size as u64) as u32).collect();
    lengths.iter().map(&mut document).collect()
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

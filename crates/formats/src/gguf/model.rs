//! A GGUF file as a model: its settings, its tensors under Hugging Face names, its tokenizer.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use super::{FORMAT, Gguf, HeadRows, ROPE_FREQS, gguf_row, head_rows, hf_name};
use crate::config::{DecoderConfig, Family, RopeScaling, setting};
use crate::error::{FormatError, Result};
use crate::files::MappedFile;
use crate::model_files::ModelFiles;
use crate::tensors::{TensorSource, TensorView};
use crate::tokenizer::Tokenizer;

pub(crate) fn open(path: &Path) -> Result<ModelFiles> {
    let bytes = MappedFile::open(path)?;
    let in_file = |error: FormatError| error.in_file(path);
    let gguf = Gguf::read(&bytes).map_err(in_file)?;
    let config = config(&gguf, &bytes).map_err(in_file)?;
    let tokenizer = Tokenizer::from_gguf(&gguf).map_err(in_file)?;
    let licence_name = gguf.string("general.license").map_err(in_file)?.map(str::to_owned);
    let tensors = GgufTensors::new(gguf, bytes, &config).map_err(in_file)?;
    Ok(ModelFiles {
        config,
        tensors: Box::new(tensors),
        tokenizer,
        licence_text: None,
        licence_name,
        path: path.to_owned(),
    })
}

/// Keys of one architecture.
struct Settings<'a> {
    gguf: &'a Gguf,
    family: Family,
}

impl Settings<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.family.as_str())
    }

    fn size(&self, name: &str) -> Result<Option<usize>> {
        self.gguf.size(&self.key(name))
    }

    fn required_size(&self, name: &str) -> Result<usize> {
        self.size(name)?.ok_or_else(|| setting(self.key(name), "absent", "a whole number"))
    }

    /// A number of heads: one for all layers, or the same for each.
    fn heads(&self, name: &str) -> Result<Option<usize>> {
        let key = self.key(name);
        let Ok(Some(list)) = self.gguf.integers(&key) else { return self.gguf.size(&key) };
        let first = list.first().copied().and_then(|n| usize::try_from(n).ok());
        match first {
            Some(first) if list.iter().all(|&n| n == first as i64) => Ok(Some(first)),
            _ => Err(setting(key, "different between layers", "one number for all layers")),
        }
    }

    /// Refuses what would change the arithmetic and is not implemented.
    fn refuse_what_is_not_implemented(&self) -> Result<()> {
        for name in ["expert_count", "attention.sliding_window", "leading_dense_block_count"] {
            if self.size(name)?.is_some_and(|n| n != 0) {
                return Err(FormatError::Unsupported { what: "GGUF setting", value: self.key(name) });
            }
        }
        let kind = self.gguf.string(&self.key("rope.scaling.type"))?.unwrap_or("none");
        let factor = self.gguf.float(&self.key("rope.scaling.factor"))?.unwrap_or(1.0);
        let linear_by_one = kind == "linear" && factor == 1.0;
        if kind != "none" && !linear_by_one {
            return Err(FormatError::Unsupported { what: "rope scaling", value: kind.to_owned() });
        }
        Ok(())
    }
}

fn config(gguf: &Gguf, bytes: &[u8]) -> Result<DecoderConfig> {
    let name = gguf.string("general.architecture")?;
    let name = name.ok_or_else(|| setting("general.architecture", "absent", "a string"))?;
    let family = Family::from_name(name)
        .ok_or_else(|| FormatError::Unsupported { what: "architecture", value: name.to_owned() })?;
    let settings = Settings { gguf, family };
    settings.refuse_what_is_not_implemented()?;
    let embedding = "token_embd.weight";
    let vocab_size = match gguf.tensors.get(embedding).map(|info| info.shape.as_slice()) {
        Some(&[vocab_size, _]) => vocab_size,
        _ => return Err(FormatError::MissingTensor { name: embedding.to_owned() }),
    };
    let hidden_size = settings.required_size("embedding_length")?;
    let heads_key = "attention.head_count";
    let num_attention_heads = settings
        .heads(heads_key)?
        .filter(|&n| n > 0)
        .ok_or_else(|| setting(settings.key(heads_key), "absent or 0", "a whole number above 0"))?;
    let head_dim = settings.size("attention.key_length")?.unwrap_or(hidden_size / num_attention_heads);
    for other in ["attention.value_length", "rope.dimension_count"] {
        if let Some(dim) = settings.size(other)?
            && dim != head_dim
        {
            return Err(setting(settings.key(other), dim, format!("the head dimension, {head_dim}")));
        }
    }
    let rope_theta = gguf.float(&settings.key("rope.freq_base"))?.unwrap_or(10_000.0);
    let has = |name: &str| gguf.tensors.contains_key(name);
    let epsilon = "attention.layer_norm_rms_epsilon";
    let config = DecoderConfig {
        family,
        vocab_size,
        hidden_size,
        intermediate_size: settings.required_size("feed_forward_length")?,
        num_hidden_layers: settings.required_size("block_count")?,
        num_attention_heads,
        num_key_value_heads: settings.heads("attention.head_count_kv")?.unwrap_or(num_attention_heads),
        head_dim,
        rms_norm_eps: gguf
            .float(&settings.key(epsilon))?
            .ok_or_else(|| setting(settings.key(epsilon), "absent", "a number"))?,
        rope_theta,
        rope_scaling: rope_scaling(gguf, bytes, rope_theta, head_dim)?,
        max_position_embeddings: settings.required_size("context_length")?,
        tie_word_embeddings: !has("output.weight"),
        qkv_bias: has("blk.0.attn_q.bias"),
        attention_out_bias: has("blk.0.attn_output.bias"),
        mlp_bias: has("blk.0.ffn_gate.bias"),
        qk_norm: has("blk.0.attn_q_norm.weight"),
        bos_token_id: gguf.token_id("tokenizer.ggml.bos_token_id")?,
        eos_token_ids: eos_token_ids(gguf)?,
    };
    config.validate()?;
    Ok(config)
}

/// What ends generation: end of sequence, end of turn, and the full list of a file of ours.
fn eos_token_ids(gguf: &Gguf) -> Result<Vec<u32>> {
    const IDS_MAX: usize = 256;
    let mut ids = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
        ids.extend(gguf.token_id(key)?);
    }
    for id in gguf.integers(EOS_TOKEN_IDS)?.unwrap_or_default().into_iter().take(IDS_MAX) {
        ids.push(u32::try_from(id).map_err(|_| setting(EOS_TOKEN_IDS, id, "token ids"))?);
    }
    let mut seen = std::collections::HashSet::new();
    ids.retain(|id| seen.insert(*id));
    Ok(ids)
}

/// A key of ours: GGUF itself has room for one or two ends only.
pub(super) const EOS_TOKEN_IDS: &str = "stillroom.eos_token_ids";
/// Keys of ours: GGUF itself keeps the divisors, not what they were made from.
pub(super) const ROPE_LOW: &str = "stillroom.rope.low_freq_factor";
pub(super) const ROPE_HIGH: &str = "stillroom.rope.high_freq_factor";
pub(super) const ROPE_CONTEXT: &str = "stillroom.rope.original_context";

/// Finds the Llama 3 settings behind the divisors in `rope_freqs.weight`: ours if the file has
/// them, else those of Meta's releases (1, 4, 8192). They must give the very divisors.
fn rope_scaling(gguf: &Gguf, bytes: &[u8], theta: f32, head_dim: usize) -> Result<RopeScaling> {
    const RELATIVE_ERROR_MAX: f32 = 1e-3;
    let Some(info) = gguf.tensors.get(ROPE_FREQS) else { return Ok(RopeScaling::None) };
    let divisors: Vec<f32> =
        bytes[info.bytes.clone()].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let unsupported = || FormatError::Unsupported {
        what: "rope scaling",
        value: "divisors that are not Llama 3's".to_owned(),
    };
    if divisors.len() != head_dim / 2 {
        return Err(unsupported());
    }
    let factor = divisors.iter().copied().fold(1.0f32, f32::max);
    if divisors.iter().all(|&divisor| divisor == 1.0) {
        return Ok(RopeScaling::None);
    }
    let scaling = RopeScaling::Llama3 {
        factor,
        low_freq_factor: gguf.float(ROPE_LOW)?.unwrap_or(1.0),
        high_freq_factor: gguf.float(ROPE_HIGH)?.unwrap_or(4.0),
        original_context: gguf.size(ROPE_CONTEXT)?.unwrap_or(8192),
    };
    let expected = scaling.divisors(theta, head_dim).unwrap_or_default();
    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= RELATIVE_ERROR_MAX * b;
    if divisors.iter().zip(&expected).all(close) { Ok(scaling) } else { Err(unsupported()) }
}

/// Tensors of a mapped GGUF file.
struct GgufTensors {
    gguf: Gguf,
    bytes: MappedFile,
    /// Hugging Face name → GGUF name.
    names: HashMap<String, String>,
    /// Order of the file's names, sorted.
    order: Vec<String>,
    family: Family,
    head_dim: usize,
}

impl GgufTensors {
    fn new(gguf: Gguf, bytes: MappedFile, config: &DecoderConfig) -> Result<GgufTensors> {
        let mut names = HashMap::new();
        let mut order = Vec::new();
        for name in gguf.tensors.keys().filter(|name| name.as_str() != ROPE_FREQS) {
            let hf = hf_name(name).ok_or_else(|| FormatError::UnexpectedTensor { name: name.clone() })?;
            if names.insert(hf.clone(), name.clone()).is_some() {
                return Err(FormatError::UnexpectedTensor { name: name.clone() });
            }
            order.push(hf);
        }
        Ok(GgufTensors { gguf, bytes, names, order, family: config.family, head_dim: config.head_dim })
    }

    fn rows_differ(&self, name: &str) -> bool {
        self.family == Family::Llama && matches!(head_rows(name), Some(HeadRows::Query | HeadRows::KeyValue))
    }
}

impl TensorSource for GgufTensors {
    fn names(&self) -> Vec<String> {
        self.order.clone()
    }

    fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        let missing = || FormatError::MissingTensor { name: name.to_owned() };
        let info = self.names.get(name).and_then(|gguf| self.gguf.tensors.get(gguf)).ok_or_else(missing)?;
        // `Gguf::read` checked the range against these very bytes.
        let bytes = &self.bytes[info.bytes.clone()];
        let view =
            TensorView { shape: info.shape.clone(), encoding: info.encoding, bytes: Cow::Borrowed(bytes) };
        if !self.rows_differ(name) {
            return Ok(view);
        }
        let n_rows = info.shape[0];
        if !n_rows.is_multiple_of(self.head_dim) {
            let what = format!("`{name}` has {n_rows} rows, not whole heads of {}", self.head_dim);
            return Err(FormatError::malformed(FORMAT, what));
        }
        // A bias quantised in blocks has no rows to reorder.
        if info.shape.len() == 1 && info.encoding.block().0 > 1 {
            let what = format!("`{name}` is a vector in {}", info.encoding.as_str());
            return Err(FormatError::malformed(FORMAT, what));
        }
        let row_bytes = bytes.len() / n_rows;
        let mut reordered = Vec::with_capacity(bytes.len());
        for row in 0..n_rows {
            let start = gguf_row(row, self.head_dim) * row_bytes;
            reordered.extend_from_slice(&bytes[start..start + row_bytes]);
        }
        Ok(TensorView { bytes: Cow::Owned(reordered), ..view })
    }
}

//! Writing GGUF version 3 as llama.cpp's own converter does.

use std::collections::{BTreeMap, HashSet};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use super::model::{EOS_TOKEN_IDS, ROPE_CONTEXT, ROPE_HIGH, ROPE_LOW};
use super::{
    ALIGNMENT_DEFAULT, HeadRows, MAGIC, ROPE_FREQS, Value, gguf_name, head_rows, hf_row, type_number,
};
use crate::config::{DecoderConfig, Family, RopeScaling, setting};
use crate::encode::{Q8_0_BLOCK, encode};
use crate::error::{FormatError, Result};
use crate::files::StagedFile;
use crate::hf_dir::check_vocabulary;
use crate::safetensors_file::check_shape;
use crate::tensors::{Encoding, NamedTensor};
use crate::tokenizer::Tokenizer;

/// Longest name that llama.cpp reads.
const NAME_BYTES_MAX: usize = 63;

/// Writes a model for llama.cpp and its relatives.
///
/// Matrices are stored in `store` (f32, f16, bf16 or q8_0; a q8_0 matrix whose rows are not whole
/// blocks of 32 in f16), vectors in f32. `metadata` are further string entries such as
/// `general.name` or `general.license`. The tensors may come in any order, each exactly once.
/// The file gets its name only when it is whole.
pub fn write_gguf(
    path: &Path,
    config: &DecoderConfig,
    tensors: &mut dyn Iterator<Item = NamedTensor>,
    store: Encoding,
    tokenizer: &Tokenizer,
    metadata: &[(String, String)],
) -> Result<()> {
    config.validate()?;
    check_vocabulary(config, tokenizer)?;
    let mut entries = model_metadata(config, store)?;
    entries.extend(tokenizer.gguf_metadata(config)?);
    entries.extend(metadata.iter().map(|(key, text)| (key.clone(), Value::String(text.clone()))));
    let mut keys = HashSet::new();
    if let Some((twice, _)) = entries.iter().find(|(key, _)| !keys.insert(key.as_str())) {
        return Err(setting(twice.clone(), "given twice", "a key that the writer does not set itself"));
    }
    let layout = Layout::new(config, store)?;
    let mut file = StagedFile::create(path)?;
    write_file(file.writer(), &layout, &entries, config, tensors).map_err(|error| match error {
        FormatError::Write(source) => FormatError::io("write", path)(source),
        other => other,
    })?;
    file.commit()
}

/// Where each tensor goes, by its Hugging Face name.
struct Layout {
    places: Vec<Place>,
    data_len: u64,
}

struct Place {
    hf_name: String,
    gguf_name: String,
    shape: Vec<usize>,
    encoding: Encoding,
    offset: u64,
}

impl Layout {
    fn new(config: &DecoderConfig, store: Encoding) -> Result<Layout> {
        let mut shapes = config.parameters();
        if config.rope_scaling != RopeScaling::None {
            shapes.push((ROPE_FREQS.to_owned(), vec![config.head_dim / 2]));
        }
        let mut layout = Layout { places: Vec::new(), data_len: 0 };
        for (hf_name, shape) in shapes {
            let encoding = match (shape.as_slice(), store) {
                ([_], _) => Encoding::F32,
                ([.., row], Encoding::Q8_0) if !row.is_multiple_of(Q8_0_BLOCK) => Encoding::F16,
                (_, Encoding::F32 | Encoding::F16 | Encoding::BF16 | Encoding::Q8_0) => store,
                (_, other) => {
                    let value = other.as_str().to_owned();
                    return Err(FormatError::Unsupported { what: "encoding to write", value });
                }
            };
            let gguf_name = gguf_name(&hf_name).unwrap_or_else(|| hf_name.clone());
            let n_bytes = encoding.n_bytes(&shape).ok_or_else(|| FormatError::Shape {
                name: hf_name.clone(),
                found: shape.clone(),
                expected: Vec::new(),
            })?;
            let offset = layout.data_len;
            layout.data_len += n_bytes.next_multiple_of(ALIGNMENT_DEFAULT) as u64;
            layout.places.push(Place { hf_name, gguf_name, shape, encoding, offset });
        }
        Ok(layout)
    }
}

fn write_file<W: Write + Seek>(
    out: &mut W,
    layout: &Layout,
    entries: &[(String, Value)],
    config: &DecoderConfig,
    tensors: &mut dyn Iterator<Item = NamedTensor>,
) -> Result<()> {
    let mut header = Vec::new();
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&3u32.to_le_bytes());
    header.extend_from_slice(&(layout.places.len() as u64).to_le_bytes());
    header.extend_from_slice(&(entries.len() as u64).to_le_bytes());
    for (key, value) in entries {
        put_string(&mut header, key);
        put_value(&mut header, value);
    }
    for place in &layout.places {
        assert!(place.gguf_name.len() <= NAME_BYTES_MAX, "names are built from a fixed table");
        put_string(&mut header, &place.gguf_name);
        header.extend_from_slice(&(place.shape.len() as u32).to_le_bytes());
        place.shape.iter().rev().for_each(|&axis| header.extend_from_slice(&(axis as u64).to_le_bytes()));
        header.extend_from_slice(&type_number(place.encoding).to_le_bytes());
        header.extend_from_slice(&place.offset.to_le_bytes());
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT_DEFAULT), 0);
    out.write_all(&header).map_err(FormatError::Write)?;

    let data_start = header.len() as u64;
    let mut missing: BTreeMap<&str, &Place> =
        layout.places.iter().map(|place| (place.hf_name.as_str(), place)).collect();
    if let Some(divisors) = config.rope_scaling.divisors(config.rope_theta, config.head_dim)
        && let Some(place) = missing.remove(ROPE_FREQS)
    {
        put_tensor(out, data_start, place, &divisors)?;
    }
    for NamedTensor { name, shape, mut data } in tensors {
        let place = missing
            .remove(name.as_str())
            .ok_or_else(|| FormatError::UnexpectedTensor { name: name.clone() })?;
        check_shape(&name, &shape, &place.shape, data.len())?;
        if config.family == Family::Llama
            && let Some(HeadRows::Query | HeadRows::KeyValue) = head_rows(&name)
        {
            data = rows_for_gguf(&data, shape[0], config.head_dim);
        }
        put_tensor(out, data_start, place, &data)?;
    }
    match missing.into_keys().next() {
        Some(name) => Err(FormatError::MissingTensor { name: name.to_owned() }),
        None => Ok(()),
    }
}

/// Rows of q or k in the order of neighbouring pairs.
fn rows_for_gguf(data: &[f32], n_rows: usize, head_dim: usize) -> Vec<f32> {
    let width = data.len() / n_rows;
    (0..n_rows)
        .flat_map(|row| {
            let start = hf_row(row, head_dim) * width;
            &data[start..start + width]
        })
        .copied()
        .collect()
}

/// Numbers encoded at a time: whole blocks.
const CHUNK_NUMBERS: usize = 1 << 16;

fn put_tensor<W: Write + Seek>(out: &mut W, data_start: u64, place: &Place, data: &[f32]) -> Result<()> {
    out.seek(SeekFrom::Start(data_start + place.offset)).map_err(FormatError::Write)?;
    let mut bytes = Vec::new();
    let mut written = 0;
    for numbers in data.chunks(CHUNK_NUMBERS) {
        bytes.clear();
        encode(place.encoding, numbers, &mut bytes)?;
        out.write_all(&bytes).map_err(FormatError::Write)?;
        written += bytes.len();
    }
    let padding = written.next_multiple_of(ALIGNMENT_DEFAULT) - written;
    out.write_all(&[0; ALIGNMENT_DEFAULT][..padding]).map_err(FormatError::Write)
}

fn model_metadata(config: &DecoderConfig, store: Encoding) -> Result<Vec<(String, Value)>> {
    let file_type = match store {
        Encoding::F32 => 0,
        Encoding::F16 => 1,
        Encoding::Q8_0 => 7,
        Encoding::BF16 => 32,
        other => {
            let value = other.as_str().to_owned();
            return Err(FormatError::Unsupported { what: "encoding to write", value });
        }
    };
    let family = config.family.as_str();
    let size = |n: usize| Value::Unsigned(n as u64);
    let float = |x: f32| Value::Float(f64::from(x));
    let mut entries = vec![
        ("general.architecture".to_owned(), Value::String(family.to_owned())),
        ("general.type".to_owned(), Value::String("model".to_owned())),
        ("general.file_type".to_owned(), Value::Unsigned(file_type)),
        ("general.quantization_version".to_owned(), Value::Unsigned(2)),
    ];
    let architecture = [
        ("vocab_size", size(config.vocab_size)),
        ("context_length", size(config.max_position_embeddings)),
        ("embedding_length", size(config.hidden_size)),
        ("block_count", size(config.num_hidden_layers)),
        ("feed_forward_length", size(config.intermediate_size)),
        ("attention.head_count", size(config.num_attention_heads)),
        ("attention.head_count_kv", size(config.num_key_value_heads)),
        ("attention.key_length", size(config.head_dim)),
        ("attention.value_length", size(config.head_dim)),
        ("attention.layer_norm_rms_epsilon", float(config.rms_norm_eps)),
        ("rope.dimension_count", size(config.head_dim)),
        ("rope.freq_base", float(config.rope_theta)),
    ];
    entries.extend(architecture.map(|(name, value)| (format!("{family}.{name}"), value)));
    if let RopeScaling::Llama3 { low_freq_factor, high_freq_factor, original_context, .. } =
        config.rope_scaling
    {
        entries.push((ROPE_LOW.to_owned(), float(low_freq_factor)));
        entries.push((ROPE_HIGH.to_owned(), float(high_freq_factor)));
        entries.push((ROPE_CONTEXT.to_owned(), size(original_context)));
    }
    if config.eos_token_ids.len() > 1 {
        let ids = config.eos_token_ids.iter().map(|&id| u64::from(id)).collect();
        entries.push((EOS_TOKEN_IDS.to_owned(), Value::Unsigneds(ids)));
    }
    Ok(entries)
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Writes a value with its type: whole numbers as u32 or i32 where they fit (llama.cpp asks for
/// just those), floats as f32.
fn put_value(out: &mut Vec<u8>, value: &Value) {
    let mut put_type = |number: u32| out.extend_from_slice(&number.to_le_bytes());
    let array = |out: &mut Vec<u8>, item_type: u32, len: usize| {
        out.extend_from_slice(&9u32.to_le_bytes());
        out.extend_from_slice(&item_type.to_le_bytes());
        out.extend_from_slice(&(len as u64).to_le_bytes());
    };
    match value {
        Value::Unsigned(n) => match u32::try_from(*n) {
            Ok(n) => {
                put_type(4);
                out.extend_from_slice(&n.to_le_bytes());
            }
            Err(_) => {
                put_type(10);
                out.extend_from_slice(&n.to_le_bytes());
            }
        },
        Value::Signed(n) => {
            put_type(11);
            out.extend_from_slice(&n.to_le_bytes());
        }
        Value::Float(x) => {
            put_type(6);
            out.extend_from_slice(&(*x as f32).to_le_bytes());
        }
        Value::Bool(flag) => {
            put_type(7);
            out.push(u8::from(*flag));
        }
        Value::String(text) => {
            put_type(8);
            put_string(out, text);
        }
        Value::Strings(list) => {
            array(out, 8, list.len());
            list.iter().for_each(|text| put_string(out, text));
        }
        Value::Unsigneds(list) => {
            array(out, 10, list.len());
            list.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
        }
        Value::Signeds(list) => {
            // Token types: llama.cpp reads them as i32.
            array(out, 5, list.len());
            list.iter().for_each(|&n| out.extend_from_slice(&(n as i32).to_le_bytes()));
        }
        Value::Floats(list) => {
            array(out, 6, list.len());
            list.iter().for_each(|&x| out.extend_from_slice(&(x as f32).to_le_bytes()));
        }
        Value::Bools(list) => {
            array(out, 7, list.len());
            list.iter().for_each(|&flag| out.push(u8::from(flag)));
        }
    }
}

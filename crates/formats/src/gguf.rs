//! GGUF: the format of llama.cpp. Versions 2 and 3 are read, 3 is written.

mod model;
mod reader;
mod writer;

pub(crate) use model::open;
pub(crate) use reader::{Gguf, Value};
pub use writer::write_gguf;

use crate::tensors::Encoding;

const FORMAT: &str = "GGUF";
const MAGIC: &[u8; 4] = b"GGUF";
const ALIGNMENT_DEFAULT: usize = 32;

/// Numbers of ggml's types. Listed are those that this program decodes.
const TYPES: [(u32, Encoding); 10] = [
    (0, Encoding::F32),
    (1, Encoding::F16),
    (2, Encoding::Q4_0),
    (3, Encoding::Q4_1),
    (6, Encoding::Q5_0),
    (8, Encoding::Q8_0),
    (12, Encoding::Q4K),
    (13, Encoding::Q5K),
    (14, Encoding::Q6K),
    (30, Encoding::BF16),
];

fn type_number(encoding: Encoding) -> u32 {
    TYPES.iter().find(|(_, known)| *known == encoding).map_or(0, |(number, _)| *number)
}

/// What a tensor's name means: (GGUF, Hugging Face). A layer's names follow `blk.N.` and
/// `model.layers.N.`.
const NAMES: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];
const LAYER_NAMES: [(&str, &str); 18] = [
    ("attn_norm.weight", "input_layernorm.weight"),
    ("attn_q.weight", "self_attn.q_proj.weight"),
    ("attn_q.bias", "self_attn.q_proj.bias"),
    ("attn_k.weight", "self_attn.k_proj.weight"),
    ("attn_k.bias", "self_attn.k_proj.bias"),
    ("attn_v.weight", "self_attn.v_proj.weight"),
    ("attn_v.bias", "self_attn.v_proj.bias"),
    ("attn_output.weight", "self_attn.o_proj.weight"),
    ("attn_output.bias", "self_attn.o_proj.bias"),
    ("attn_q_norm.weight", "self_attn.q_norm.weight"),
    ("attn_k_norm.weight", "self_attn.k_norm.weight"),
    ("ffn_norm.weight", "post_attention_layernorm.weight"),
    ("ffn_gate.weight", "mlp.gate_proj.weight"),
    ("ffn_gate.bias", "mlp.gate_proj.bias"),
    ("ffn_up.weight", "mlp.up_proj.weight"),
    ("ffn_up.bias", "mlp.up_proj.bias"),
    ("ffn_down.weight", "mlp.down_proj.weight"),
    ("ffn_down.bias", "mlp.down_proj.bias"),
];
/// Divisors of the rotary frequencies: not a parameter, see `RopeScaling::divisors`.
const ROPE_FREQS: &str = "rope_freqs.weight";

fn hf_name(gguf: &str) -> Option<String> {
    if let Some((_, hf)) = NAMES.iter().find(|(known, _)| *known == gguf) {
        return Some((*hf).to_owned());
    }
    let (layer, rest) = gguf.strip_prefix("blk.")?.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let (_, hf) = LAYER_NAMES.iter().find(|(known, _)| *known == rest)?;
    Some(format!("model.layers.{layer}.{hf}"))
}

fn gguf_name(hf: &str) -> Option<String> {
    if let Some((gguf, _)) = NAMES.iter().find(|(_, known)| *known == hf) {
        return Some((*gguf).to_owned());
    }
    let (layer, rest) = hf.strip_prefix("model.layers.")?.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let (gguf, _) = LAYER_NAMES.iter().find(|(_, known)| *known == rest)?;
    Some(format!("blk.{layer}.{gguf}"))
}

/// Which heads a tensor's rows belong to, where GGUF orders the rows of a head differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeadRows {
    Query,
    KeyValue,
}

/// llama.cpp rotates neighbouring pairs in the Llama architecture, Hugging Face the two halves of
/// a head; so the rows of q and k differ in order (and in no other architecture).
fn head_rows(hf_name: &str) -> Option<HeadRows> {
    let (name, _) = hf_name.rsplit_once('.')?;
    if name.ends_with("self_attn.q_proj") {
        Some(HeadRows::Query)
    } else if name.ends_with("self_attn.k_proj") {
        Some(HeadRows::KeyValue)
    } else {
        None
    }
}

/// For each row of Hugging Face's order the row of GGUF's: half h, pair i of a head is row
/// `h·d/2 + i` there and `2i + h` here.
fn gguf_row(hf_row: usize, head_dim: usize) -> usize {
    let (head, row) = (hf_row / head_dim, hf_row % head_dim);
    let half = head_dim / 2;
    head * head_dim + 2 * (row % half) + row / half
}

/// The inverse of [`gguf_row`].
fn hf_row(gguf_row: usize, head_dim: usize) -> usize {
    let (head, row) = (gguf_row / head_dim, gguf_row % head_dim);
    head * head_dim + (row % 2) * (head_dim / 2) + row / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_rows_map_one_to_one() {
        for (gguf, hf) in LAYER_NAMES {
            let (gguf, hf) = (format!("blk.17.{gguf}"), format!("model.layers.17.{hf}"));
            assert_eq!(hf_name(&gguf).as_deref(), Some(hf.as_str()));
            assert_eq!(gguf_name(&hf), Some(gguf));
        }
        assert_eq!(hf_name("blk.x.attn_q.weight"), None);
        assert_eq!(hf_name("rope_freqs.weight"), None);
        // The first head of dimension 6: halves (0 1 2) and (3 4 5) interleave.
        assert_eq!((0..6).map(|row| hf_row(row, 6)).collect::<Vec<_>>(), [0, 3, 1, 4, 2, 5]);
        assert!((0..96).all(|row| hf_row(gguf_row(row, 8), 8) == row));
    }
}

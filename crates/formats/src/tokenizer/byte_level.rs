//! Byte-level BPE: how tokens spell bytes, and which ways of splitting text have a name.

use serde_json::{Value, json};
use tokenizers::Tokenizer as Inner;

use crate::error::{FormatError, Result};

/// How the model's tokens spell bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// GPT-2's alphabet: one printable character per byte.
    ByteLevel,
    /// SentencePiece: `▁` is a space, `<0xNN>` a byte.
    SentencePiece,
    /// As written.
    Plain,
}

impl Spelling {
    pub(super) fn of(inner: &Inner) -> Result<Spelling> {
        let decoder = serde_json::to_string(&inner.get_decoder())
            .map_err(|error| FormatError::Tokenizer { what: error.to_string() })?;
        Ok(if decoder.contains("\"ByteLevel\"") {
            Spelling::ByteLevel
        } else if decoder.contains('▁') {
            Spelling::SentencePiece
        } else {
            Spelling::Plain
        })
    }

    pub(super) fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            Spelling::ByteLevel => {
                let bytes: Option<Vec<u8>> = token.chars().map(byte_of_char).collect();
                bytes.unwrap_or_else(|| token.as_bytes().to_vec())
            }
            Spelling::SentencePiece => {
                let byte = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                match byte.filter(|hex| hex.len() == 2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                    Some(byte) => vec![byte],
                    None => token.replace('▁', " ").into_bytes(),
                }
            }
            Spelling::Plain => token.as_bytes().to_vec(),
        }
    }
}

/// The byte that a character of GPT-2's alphabet stands for.
///
/// Printable Latin-1 characters stand for themselves; the other 68 bytes are U+0100 onwards, in
/// order.
fn byte_of_char(c: char) -> Option<u8> {
    let code = u32::from(c);
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => Some(code as u8),
        0x100..=0x120 => Some((code - 0x100) as u8),
        0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// The contractions, letters, digits and spaces of Llama 3; Qwen 2 takes digits one by one.
const LLAMA_BPE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The names that `tokenizer.ggml.pre` can have here.
pub(super) const SPLIT_NAMES: [&str; 4] = ["gpt-2", "smollm", "llama-bpe", "qwen2"];

/// `normalizer`, `pre_tokenizer` and `model.ignore_merges` of `tokenizer.json` behind a name of
/// `tokenizer.ggml.pre`.
pub(super) fn split_by_name(name: &str) -> Option<(Value, Value, bool)> {
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let sequence =
        |first: Value, second: Value| json!({"type": "Sequence", "pretokenizers": [first, second]});
    let by_pattern = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let digits = json!({"type": "Digits", "individual_digits": true});
    Some(match name {
        "gpt-2" => (Value::Null, byte_level(true), false),
        "smollm" => (Value::Null, sequence(digits, byte_level(true)), false),
        "llama-bpe" => (Value::Null, sequence(by_pattern(LLAMA_BPE), byte_level(false)), true),
        "qwen2" => (json!({"type": "NFC"}), sequence(by_pattern(QWEN2), byte_level(false)), false),
        _ => return None,
    })
}

/// The name for how this `tokenizer.json` splits text, if it is a byte-level BPE and llama.cpp
/// has one.
pub(super) fn split_name(tokenizer_json: &Value) -> Option<&'static str> {
    let model = &tokenizer_json["model"];
    let is_bpe = model["type"] == "BPE" || model["type"].is_null() && model["merges"].is_array();
    let set = |key: &str| model[key].as_str().is_some_and(|text| !text.is_empty());
    let plain_bpe = !model["byte_fallback"].as_bool().unwrap_or(false)
        && !set("continuing_subword_prefix")
        && !set("end_of_word_suffix")
        && model["dropout"].as_f64().unwrap_or(0.0) == 0.0;
    if !is_bpe || !plain_bpe {
        return None;
    }
    let splits = split_steps(&tokenizer_json["pre_tokenizer"])?;
    let ignore_merges = model["ignore_merges"].as_bool().unwrap_or(false);
    SPLIT_NAMES.into_iter().find(|name| {
        let Some((normalizer, split, ignores)) = split_by_name(name) else { return false };
        Some(&splits) == split_steps(&split).as_ref()
            && tokenizer_json["normalizer"] == normalizer
            && ignore_merges == ignores
    })
}

/// What a pre-tokenizer does, step by step, without the settings that change no id.
fn split_steps(pre_tokenizer: &Value) -> Option<Vec<String>> {
    let steps = match pre_tokenizer["type"].as_str()? {
        "Sequence" => pre_tokenizer["pretokenizers"].as_array()?.as_slice(),
        _ => std::slice::from_ref(pre_tokenizer),
    };
    steps
        .iter()
        .map(|step| match step["type"].as_str()? {
            "ByteLevel" if step["add_prefix_space"] == false => {
                Some(format!("bytes, words {}", step["use_regex"].as_bool().unwrap_or(true)))
            }
            "Digits" if step["individual_digits"] == true => Some("digits".to_owned()),
            "Split" if step["behavior"] == "Isolated" && step["invert"] == false => {
                step["pattern"]["Regex"].as_str().map(str::to_owned)
            }
            _ => None,
        })
        .collect()
}

/// The merges of a BPE model, written as `"a b"` or `["a", "b"]`.
pub(super) fn merges(tokenizer_json: &Value) -> Option<Vec<(String, String)>> {
    let pair = |merge: &Value| match merge {
        Value::String(text) => text.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
        Value::Array(parts) => match parts.as_slice() {
            [Value::String(a), Value::String(b)] => Some((a.clone(), b.clone())),
            _ => None,
        },
        _ => None,
    };
    tokenizer_json["model"]["merges"].as_array()?.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_covers_each_byte_once() {
        let mut bytes: Vec<u8> = (0u32..0x200).filter_map(char::from_u32).filter_map(byte_of_char).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(Spelling::ByteLevel.bytes("Ġthe"), b" the");
        assert_eq!(Spelling::ByteLevel.bytes("Ċ"), b"\n");
        assert_eq!(Spelling::SentencePiece.bytes("<0x0A>"), b"\n");
        assert_eq!(Spelling::SentencePiece.bytes("▁the"), b" the");
    }

    #[test]
    fn each_way_of_splitting_is_recognised_by_its_own_name_only() {
        for name in SPLIT_NAMES {
            let (normalizer, pre_tokenizer, ignore_merges) = split_by_name(name).expect("a known name");
            let json = json!({
                "normalizer": normalizer,
                "pre_tokenizer": pre_tokenizer,
                "model": {"type": "BPE", "ignore_merges": ignore_merges, "merges": []},
            });
            assert_eq!(split_name(&json), Some(name));
        }
        assert_eq!(split_name(&json!({"model": {"type": "Unigram"}})), None);
    }
}

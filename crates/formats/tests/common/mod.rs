//! A small byte-level BPE tokenizer, and where the shared golden files are.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::PathBuf;

use serde_json::{Map, Value, json};
use stillroom_formats::Tokenizer;

/// The model crate's golden folder.
pub(crate) fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden")
}

/// The SmolLM2 GGUF, if it was fetched; its absence fails in CI and is loud elsewhere.
pub(crate) fn smollm2() -> Option<PathBuf> {
    let file = "SmolLM2-135M-Instruct.Q4_1.gguf";
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.cache/smollm2").join(file);
    if path.exists() {
        return Some(path);
    }
    let how = "run `scripts/fetch-smollm2.sh .cache/smollm2`";
    assert!(std::env::var_os("CI").is_none(), "{} is missing: {how}", path.display());
    #[expect(clippy::print_stderr, reason = "a skipped test says so")]
    {
        eprintln!("SKIPPED: {} is missing: {how}", path.display());
    }
    None
}

/// GPT-2's character for a byte.
fn character(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let n = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(0x100 + n).expect("below the surrogates")
}

pub(crate) const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// 256 bytes, some merges, three special tokens and one added plain one; split as `smollm`.
pub(crate) fn tokenizer_json() -> Value {
    let mut vocab = Map::new();
    for byte in 0..=255u8 {
        vocab.insert(character(byte).to_string(), json!(vocab.len()));
    }
    let merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "t"), ("Ġt", "he"), ("Ċ", "Ċ")];
    for (left, right) in merges {
        vocab.insert(format!("{left}{right}"), json!(vocab.len()));
    }
    let mut added = Vec::new();
    for (content, special) in
        [("<|endoftext|>", true), ("<|im_start|>", true), ("<|im_end|>", true), ("<think>", false)]
    {
        added.push(json!({
            "id": vocab.len(), "content": content, "special": special,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        }));
        vocab.insert(content.to_owned(), json!(vocab.len()));
    }
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocab,
            "merges": merges.map(|(left, right)| format!("{left} {right}")),
        },
    })
}

pub(crate) fn tokenizer_config_json() -> Value {
    json!({"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "pad_token": "<|endoftext|>"})
}

pub(crate) fn tokenizer(template: Option<&str>) -> Tokenizer {
    let config = tokenizer_config_json().to_string();
    Tokenizer::from_json_files(&tokenizer_json().to_string(), Some(&config), template)
        .expect("a valid tokenizer")
}

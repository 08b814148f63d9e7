//! A tokenizer from GGUF's metadata, and back.

use serde_json::{Map, Value as Json, json};

use super::Tokenizer;
use super::byte_level::{merges, split_by_name, split_name};
use crate::config::{DecoderConfig, setting};
use crate::error::{FormatError, Result};
use crate::gguf::{Gguf, Value};

/// `tokenizer.ggml.token_type`.
const NORMAL: i64 = 1;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

/// (key of GGUF, key of `tokenizer_config.json`).
const NAMED_TOKENS: [(&str, &str); 4] = [
    ("tokenizer.ggml.bos_token_id", "bos_token"),
    ("tokenizer.ggml.eos_token_id", "eos_token"),
    ("tokenizer.ggml.unknown_token_id", "unk_token"),
    ("tokenizer.ggml.padding_token_id", "pad_token"),
];

impl Tokenizer {
    /// Builds the tokenizer that a GGUF file describes; `None` if it describes none.
    pub(crate) fn from_gguf(gguf: &Gguf) -> Result<Option<Tokenizer>> {
        let Some(model) = gguf.string("tokenizer.ggml.model")? else { return Ok(None) };
        if model != "gpt2" {
            return Err(FormatError::Unsupported { what: "GGUF tokenizer", value: model.to_owned() });
        }
        let pre = match gguf.string("tokenizer.ggml.pre")?.unwrap_or("gpt-2") {
            // Other names that llama.cpp reads as these.
            "llama3" | "llama-v3" => "llama-bpe",
            "deepseek-r1-qwen" => "qwen2",
            pre => pre,
        };
        let (normalizer, pre_tokenizer, ignore_merges) = split_by_name(pre)
            .ok_or_else(|| FormatError::Unsupported { what: "tokenizer.ggml.pre", value: pre.to_owned() })?;
        let required =
            |key: &str| gguf.strings(key)?.ok_or_else(|| setting(key, "absent", "an array of strings"));
        let tokens = required("tokenizer.ggml.tokens")?;
        let merges = required("tokenizer.ggml.merges")?;
        let types = gguf.integers("tokenizer.ggml.token_type")?.unwrap_or_else(|| vec![NORMAL; tokens.len()]);
        if types.len() != tokens.len() {
            let expected = format!("as many entries as tokens ({})", tokens.len());
            return Err(setting("tokenizer.ggml.token_type", types.len(), expected));
        }
        let mut vocab = Map::new();
        let mut added = Vec::new();
        for (id, (token, &kind)) in tokens.iter().zip(&types).enumerate() {
            if kind == UNUSED {
                continue;
            }
            if vocab.insert(token.clone(), json!(id)).is_some() {
                let what = format!("token `{token}` appears twice");
                return Err(FormatError::malformed("tokenizer.ggml.tokens", what));
            }
            if kind == CONTROL || kind == USER_DEFINED {
                added.push(json!({
                    "id": id, "content": token, "special": kind == CONTROL,
                    "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                }));
            }
        }
        let config = named_tokens(gguf, tokens)?;
        // llama.cpp's own default.
        let add_bos = gguf.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(pre == "llama-bpe");
        let bos = gguf.token_id("tokenizer.ggml.bos_token_id")?.filter(|_| add_bos);
        let post_processor = post_processor(bos.zip(config.get("bos_token").and_then(Json::as_str)));
        let json = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": post_processor,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": ignore_merges, "vocab": vocab, "merges": merges,
            },
        });
        let template = gguf.string("tokenizer.chat_template")?.map(str::to_owned);
        Tokenizer::new(json.to_string(), config, template).map(Some)
    }

    /// The entries `tokenizer.*` that describe this tokenizer to llama.cpp.
    pub(crate) fn gguf_metadata(&self, model: &DecoderConfig) -> Result<Vec<(String, Value)>> {
        let json: Json = serde_json::from_str(&self.json)
            .map_err(|error| FormatError::malformed("tokenizer.json", error.to_string()))?;
        let pre = split_name(&json).ok_or(FormatError::NoGgufTokenizer { part: "way of splitting text" })?;
        let merges = merges(&json).ok_or(FormatError::NoGgufTokenizer { part: "list of merges" })?;
        let added = self.inner.get_added_tokens_decoder();
        let mut tokens = Vec::with_capacity(model.vocab_size);
        let mut types = Vec::with_capacity(model.vocab_size);
        for id in 0..model.vocab_size as u32 {
            let (token, kind) = match (self.inner.id_to_token(id), added.get(&id)) {
                (None, _) => (format!("[PAD{id}]"), UNUSED),
                (Some(token), None) => (token, NORMAL),
                (Some(token), Some(added)) if added.special => (token, CONTROL),
                (Some(token), Some(_)) => (token, USER_DEFINED),
            };
            tokens.push(token);
            types.push(kind);
        }
        let merges = merges.into_iter().map(|(left, right)| format!("{left} {right}")).collect();
        let text = |text: &str| Value::String(text.to_owned());
        let mut entries = vec![
            ("tokenizer.ggml.model".to_owned(), text("gpt2")),
            ("tokenizer.ggml.pre".to_owned(), text(pre)),
            ("tokenizer.ggml.tokens".to_owned(), Value::Strings(tokens)),
            ("tokenizer.ggml.token_type".to_owned(), Value::Signeds(types)),
            ("tokenizer.ggml.merges".to_owned(), Value::Strings(merges)),
        ];
        for (key, id) in self.named_ids(model) {
            entries.push((key.to_owned(), Value::Unsigned(u64::from(id))));
        }
        entries.push(("tokenizer.ggml.add_bos_token".to_owned(), Value::Bool(self.adds_bos())));
        entries.push(("tokenizer.ggml.add_space_prefix".to_owned(), Value::Bool(false)));
        if let Some(template) = self.chat_template() {
            entries.push(("tokenizer.chat_template".to_owned(), text(template)));
        }
        Ok(entries)
    }

    /// Ids of the tokens with a role. The first end is the tokenizer's own if it has one.
    fn named_ids(&self, model: &DecoderConfig) -> Vec<(&'static str, u32)> {
        let from_config = |key: &str| {
            super::config_token(&self.config, key).and_then(|token| self.inner.token_to_id(&token))
        };
        let eos = self.eos_id().or(model.eos_token_ids.first().copied());
        let other_end = model.eos_token_ids.iter().copied().find(|&id| Some(id) != eos);
        let ids = [
            ("tokenizer.ggml.bos_token_id", self.bos_id().or(model.bos_token_id)),
            ("tokenizer.ggml.eos_token_id", eos),
            ("tokenizer.ggml.eot_token_id", other_end),
            ("tokenizer.ggml.unknown_token_id", from_config("unk_token")),
            ("tokenizer.ggml.padding_token_id", from_config("pad_token")),
        ];
        ids.into_iter().filter_map(|(key, id)| Some((key, id?))).collect()
    }
}

/// The tokens with a role, as `tokenizer_config.json` names them.
fn named_tokens(gguf: &Gguf, tokens: &[String]) -> Result<Map<String, Json>> {
    let mut config = Map::new();
    for (key, name) in NAMED_TOKENS {
        if let Some(id) = gguf.token_id(key)? {
            let token = tokens
                .get(id as usize)
                .ok_or_else(|| setting(key, id, format!("below the number of tokens ({})", tokens.len())))?;
            config.insert(name.to_owned(), json!(token));
        }
    }
    Ok(config)
}

/// Byte-level offsets, after the beginning-of-sequence token where the model wants one.
fn post_processor(bos: Option<(u32, &str)>) -> Json {
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true});
    let Some((id, token)) = bos else { return byte_level };
    let special = |type_id: u32| json!({"SpecialToken": {"id": token, "type_id": type_id}});
    let sequence = |name: &str, type_id: u32| json!({"Sequence": {"id": name, "type_id": type_id}});
    let mut special_tokens = Map::new();
    special_tokens.insert(token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}));
    json!({"type": "Sequence", "processors": [byte_level, {
        "type": "TemplateProcessing",
        "single": [special(0), sequence("A", 0)],
        "pair": [special(0), sequence("A", 0), special(1), sequence("B", 1)],
        "special_tokens": special_tokens,
    }]})
}

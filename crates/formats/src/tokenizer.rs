//! Text to token ids and back, and conversations to token ids with a supervision mask.

use std::collections::HashSet;
use std::sync::OnceLock;

use serde_json::{Map, Value, json};
use stillroom_core::{Digest, Digester, Message};
use tokenizers::tokenizer::{Model as _, OffsetType, PreTokenizer as _};
use tokenizers::{AddedVocabulary, Encoding, Tokenizer as Inner};

use crate::chat_template::{ChatTemplate, Rendering};
use crate::config::{DecoderConfig, Family};
use crate::error::{FormatError, Result, without_panic};

mod byte_level;
mod escape;
mod gguf;
mod supervised;

use byte_level::Spelling;
use escape::Literals;
pub use supervised::SupervisedTokens;

/// Above every tokenizer in use, and a bound on what a digest or an export has to walk.
const VOCAB_SIZE_MAX: usize = 1 << 22;

/// A tokenizer with its chat template.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Inner,
    /// `tokenizer.json` as read or built.
    json: String,
    /// `tokenizer_config.json` as read; empty if there was none.
    config: Map<String, Value>,
    template: Option<ChatTemplate>,
    spelling: Spelling,
    /// Contents of the special tokens, longest first.
    special: Vec<String>,
    special_ids: HashSet<u32>,
    vocab_size: usize,
    bos: NamedToken,
    eos: NamedToken,
    digest: OnceLock<Digest>,
}

/// A token with a role, as the config spells it, and its id if the vocabulary has it.
#[derive(Clone, Default)]
struct NamedToken {
    text: Option<String>,
    id: Option<u32>,
}

impl Tokenizer {
    /// From the texts of `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`.
    ///
    /// The separate template wins over `chat_template` of the config, as in transformers; of a
    /// list of named templates, `default` is taken. Truncation and padding settings are ignored.
    pub fn from_json_files(
        tokenizer_json: &str,
        tokenizer_config_json: Option<&str>,
        chat_template: Option<&str>,
    ) -> Result<Tokenizer> {
        let config = match tokenizer_config_json {
            Some(text) => serde_json::from_str(text)
                .map_err(|error| FormatError::malformed("tokenizer_config.json", error.to_string()))?,
            None => Map::new(),
        };
        let template = match chat_template {
            Some(source) => Some(source.to_owned()),
            None => template_of_config(&config),
        };
        Tokenizer::new(tokenizer_json.to_owned(), config, template)
    }

    pub(crate) fn new(
        json: String,
        config: Map<String, Value>,
        template: Option<String>,
    ) -> Result<Tokenizer> {
        let mut inner = without_panic(
            || Inner::from_bytes(json.as_bytes()).map_err(wrong),
            || FormatError::Tokenizer {
                what: "the parts of `tokenizer.json` do not fit each other".to_owned(),
            },
        )?;
        inner.with_truncation(None).map_err(wrong)?;
        inner.with_padding(None);
        let added = inner.get_added_tokens_decoder();
        let highest = inner.get_vocab(true).into_values().chain(added.keys().copied()).max();
        let vocab_size = highest.map_or(0, |id| id as usize + 1);
        if vocab_size > VOCAB_SIZE_MAX {
            let (value, limit) = (vocab_size as u64, VOCAB_SIZE_MAX as u64);
            return Err(FormatError::TooLarge { what: "vocabulary size".to_owned(), value, limit });
        }
        let is_special = added.iter().filter(|(_, token)| token.special);
        let special_ids = is_special.clone().map(|(id, _)| *id).collect();
        let mut special: Vec<String> = is_special.map(|(_, token)| token.content.clone()).collect();
        special.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        let named = |key: &str| {
            let text = config_token(&config, key);
            let id = text.as_deref().and_then(|text| inner.token_to_id(text));
            NamedToken { text, id }
        };
        let (bos, eos) = (named("bos_token"), named("eos_token"));
        let template = template.map(ChatTemplate::new).transpose()?;
        let spelling = Spelling::of(&inner)?;
        Ok(Tokenizer {
            inner,
            json,
            config,
            template,
            spelling,
            special,
            special_ids,
            vocab_size,
            bos,
            eos,
            digest: OnceLock::new(),
        })
    }

    /// Token ids of a text. Special tokens written in it are recognised; nothing is added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(wrong)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// A plain text's tokens as the tokenizer's own rules begin them: some put a token before every text.
    pub fn begun(&self, ids: Vec<u32>) -> Vec<u32> {
        let bos = self.bos_id().filter(|bos| self.adds_bos() && ids.first().is_some_and(|id| id != bos));
        bos.into_iter().chain(ids).collect()
    }

    /// Token ids of a text from outside: what looks like an added token is ordinary text.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.encode_with(&AddedVocabulary::new(), text, OffsetType::None)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// What [`Tokenizer::encode`] does up to the last step, in which offsets would lose the white space that belongs to
    /// a token, with the added tokens of `added`.
    fn encode_with(&self, added: &AddedVocabulary, text: &str, offsets: OffsetType) -> Result<Encoding> {
        let mut pieces = added.extract_and_normalize(self.inner.get_normalizer(), text);
        if let Some(splitter) = self.inner.get_pre_tokenizer() {
            splitter.pre_tokenize(&mut pieces).map_err(wrong)?;
        }
        let model = self.inner.get_model();
        pieces.tokenize(|piece| model.tokenize(piece.get())).map_err(wrong)?;
        pieces.into_encoding(None, 0, offsets).map_err(wrong)
    }

    /// Whether the tokenizer's own rules put the beginning-of-text token before a plain text.
    pub fn adds_bos(&self) -> bool {
        let start = self.inner.encode("", true).ok();
        start.and_then(|start| start.get_ids().first().copied()).is_some_and(|id| Some(id) == self.bos_id())
    }

    /// The text of these tokens, special ones spelled out. Unknown ids are left out, bytes that
    /// are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.decode_with(ids, false)
    }

    /// The text of these tokens without the special ones.
    pub fn decode_text(&self, ids: &[u32]) -> String {
        self.decode_with(ids, true)
    }

    fn decode_with(&self, ids: &[u32], skip_special: bool) -> String {
        self.inner.decode(ids, skip_special).unwrap_or_else(|_| {
            let bytes: Vec<u8> = ids.iter().filter_map(|&id| self.token_bytes(id)).flatten().collect();
            String::from_utf8_lossy(&bytes).into_owned()
        })
    }

    /// The bytes that one token stands for; special tokens are spelled out.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        if let Some(token) = self.inner.get_added_vocabulary().simple_id_to_token(id) {
            return Some(token.into_bytes());
        }
        self.inner.get_model().id_to_token(id).map(|token| self.spelling.bytes(&token))
    }

    /// One more than the highest token id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    pub fn bos_id(&self) -> Option<u32> {
        self.bos.id
    }

    pub fn eos_id(&self) -> Option<u32> {
        self.eos.id
    }

    /// The id of a token by its exact (stored) spelling.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The stored spelling of a token.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether the token is special: skipped by [`Tokenizer::decode_text`].
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    /// Digest of what decides token ids: every (id, token, special), the merges, and how text is
    /// split. The same for a `tokenizer.json` and the GGUF file made from it.
    pub fn digest(&self) -> Digest {
        *self.digest.get_or_init(|| self.compute_digest())
    }

    fn compute_digest(&self) -> Digest {
        let mut digester = Digester::new();
        let mut put = |part: &str| {
            digester.update(&(part.len() as u64).to_le_bytes());
            digester.update(part.as_bytes());
        };
        let added = self.inner.get_added_tokens_decoder();
        for id in 0..self.vocab_size as u32 {
            if let Some(token) = self.inner.id_to_token(id) {
                put(&id.to_string());
                put(&token);
                put(match added.get(&id) {
                    None => "plain",
                    Some(token) if token.special => "special",
                    Some(_) => "added",
                });
            }
        }
        let json: Value = serde_json::from_str(&self.json).unwrap_or_default();
        let merges = byte_level::merges(&json).unwrap_or_default();
        merges.iter().for_each(|(left, right)| {
            put(left);
            put(right);
        });
        match byte_level::split_name(&json) {
            Some(name) => put(name),
            None => {
                put(&json["normalizer"].to_string());
                put(&json["pre_tokenizer"].to_string());
            }
        }
        digester.finish()
    }

    pub fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    /// The source of the chat template.
    pub fn chat_template(&self) -> Option<&str> {
        self.template.as_ref().map(ChatTemplate::source)
    }

    /// The conversation as the template writes it.
    pub fn render_chat(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let template = self.template.as_ref().ok_or(FormatError::NoChatTemplate)?;
        template.render(&self.rendering(messages, add_generation_prompt))
    }

    fn rendering<'a>(&'a self, messages: &'a [Message], add_generation_prompt: bool) -> Rendering<'a> {
        let bos_token = self.bos.text.as_deref().unwrap_or_default();
        let eos_token = self.eos.text.as_deref().unwrap_or_default();
        Rendering { messages, add_generation_prompt, bos_token, eos_token }
    }

    /// Token ids of the conversation. Special tokens come from the template only: one that is
    /// spelled out in a message is ordinary text.
    pub fn encode_chat(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Vec<u32>> {
        let mut literals = Literals::default();
        let messages: Vec<Message> =
            messages.iter().map(|message| self.hide_specials(message, &mut literals)).collect();
        let text = self.render_chat(&messages, add_generation_prompt)?;
        self.encode_hidden(&text, &literals)
    }

    fn hide_specials(&self, message: &Message, literals: &mut Literals) -> Message {
        let mut hide = |text: &str| literals.hide(text, &self.special);
        Message {
            role: message.role,
            content: hide(&message.content),
            reasoning_content: message.reasoning_content.as_deref().map(&mut hide),
            tool_calls: message.tool_calls.iter().map(|call| hide_in(call, &mut hide)).collect(),
            tool_call_id: message.tool_call_id.as_deref().map(&mut hide),
            name: message.name.as_deref().map(&mut hide),
            tools: message.tools.iter().map(|tool| hide_in(tool, &mut hide)).collect(),
        }
    }

    /// Encodes rendered text; what [`Literals::hide`] hid comes back as ordinary text.
    fn encode_hidden(&self, text: &str, literals: &Literals) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for (piece, _) in literals.split(text) {
            ids.extend(match piece {
                escape::Piece::Text(text) => self.encode(text)?,
                escape::Piece::Literal(text) => self.encode_plain(text)?,
            });
        }
        Ok(ids)
    }

    /// `tokenizer.json`.
    pub(crate) fn tokenizer_json(&self) -> &str {
        &self.json
    }

    /// `tokenizer_config.json`: the one that was read, or one that transformers can start from.
    ///
    /// The class is always the one that takes `tokenizer.json` as it is: others (`GPT2Tokenizer`,
    /// `Qwen2Tokenizer`) split text in their own fixed way in transformers 5.
    pub(crate) fn tokenizer_config(&self, model: &DecoderConfig) -> Result<Value> {
        self.check_for(model)?;
        let mut config = self.config.clone();
        // Code, and paths of the machine where the model was made.
        for key in ["auto_map", "name_or_path", "tokenizer_file", "special_tokens_map_file"] {
            config.shift_remove(key);
        }
        config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
        let mut default = |key: &str, value: Value| {
            config.entry(key).or_insert(value);
        };
        default("clean_up_tokenization_spaces", json!(false));
        default("model_max_length", json!(model.max_position_embeddings));
        for (key, token) in [("bos_token", &self.bos), ("eos_token", &self.eos)] {
            default(key, json!(token.text));
        }
        if let Some(template) = self.chat_template() {
            default("chat_template", json!(template));
        }
        Ok(Value::Object(config))
    }

    /// Refuses a model that others would read with another tokenizer: transformers splits text for Qwen2 in Qwen2's way,
    /// whatever `tokenizer.json` says.
    pub fn check_for(&self, model: &DecoderConfig) -> Result<()> {
        match model.family == Family::Qwen2 && self.split_name() != Some("qwen2") {
            true => Err(FormatError::NotQwen2Splitting),
            false => Ok(()),
        }
    }

    /// llama.cpp's name for how this tokenizer splits text (`tokenizer.ggml.pre`), if it has one:
    /// `gpt-2`, `smollm`, `llama-bpe` or `qwen2`.
    pub fn split_name(&self) -> Option<&'static str> {
        byte_level::split_name(&serde_json::from_str(&self.json).unwrap_or_default())
    }
}

/// The value with every text in it hidden, keys too. (A JSON reader has bounded its depth.)
fn hide_in(value: &Value, hide: &mut impl FnMut(&str) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(hide(text)),
        Value::Array(items) => items.iter().map(|item| hide_in(item, hide)).collect(),
        Value::Object(fields) => {
            fields.iter().map(|(key, field)| (hide(key), hide_in(field, hide))).collect()
        }
        other => other.clone(),
    }
}

fn wrong(error: tokenizers::Error) -> FormatError {
    FormatError::Tokenizer { what: error.to_string() }
}

/// `chat_template`: a string, or a list of `{name, template}`.
fn template_of_config(config: &Map<String, Value>) -> Option<String> {
    let template = match config.get("chat_template")? {
        Value::Array(list) => {
            let named = |name: &str| list.iter().find(|entry| entry["name"] == name);
            named("default").or(list.first())?.get("template")?
        }
        other => other,
    };
    template.as_str().map(str::to_owned)
}

/// A token given as a string or as an object with `content`.
fn config_token(config: &Map<String, Value>, key: &str) -> Option<String> {
    let value = config.get(key)?;
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

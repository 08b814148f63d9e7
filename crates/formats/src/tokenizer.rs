//! Text to token ids and back, and conversations to token ids with a supervision mask.

use std::collections::HashSet;
use std::sync::OnceLock;

use serde_json::{Map, Value, json};
use stillroom_core::{Digest, Digester, Message, Role};
use tokenizers::tokenizer::{Model as _, OffsetType, PreTokenizer as _};
use tokenizers::{AddedVocabulary, Tokenizer as Inner};

use crate::chat_template::{ChatTemplate, Rendering};
use crate::config::{DecoderConfig, Family};
use crate::error::{FormatError, Result, without_panic};

mod byte_level;
mod escape;
mod gguf;

use byte_level::Spelling;
use escape::Literals;

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

/// A conversation whose last turn is to be learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SupervisedTokens {
    pub ids: Vec<u32>,
    /// `supervised[t]`: token t is a target (it belongs to the reply or ends it).
    pub supervised: Vec<bool>,
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

    /// Token ids of a text from outside: what looks like an added token is ordinary text.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        let none = AddedVocabulary::new();
        let mut pieces = none.extract_and_normalize(self.inner.get_normalizer(), text);
        if let Some(splitter) = self.inner.get_pre_tokenizer() {
            splitter.pre_tokenize(&mut pieces).map_err(wrong)?;
        }
        let model = self.inner.get_model();
        pieces.tokenize(|piece| model.tokenize(piece.get())).map_err(wrong)?;
        let encoding = pieces.into_encoding(None, 0, OffsetType::None).map_err(wrong)?;
        Ok(encoding.get_ids().to_vec())
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
        let bos_token = self.bos.text.as_deref().unwrap_or_default();
        let eos_token = self.eos.text.as_deref().unwrap_or_default();
        template.render(&Rendering { messages, add_generation_prompt, bos_token, eos_token })
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

    /// Token ids of a conversation with its reply; the reply and the token that ends it are
    /// supervised, what came before is not.
    ///
    /// The prompt's ids are exactly those of `encode_chat(messages, true)`, so that training
    /// sees what generation sees. `reasoning_content` goes where the template puts it; a template
    /// that does not mention it gets `<think>\n…\n</think>\n\n` before the content. A template
    /// that would drop part of the reply is bypassed for the reply.
    pub fn encode_supervised(&self, messages: &[Message], reply: &Message) -> Result<SupervisedTokens> {
        let is_empty = |text: &str| text.trim().is_empty();
        if is_empty(&reply.content) && reply.reasoning_content.as_deref().is_none_or(is_empty) {
            return Err(FormatError::EmptySupervision);
        }
        let mut literals = Literals::default();
        let mut turns: Vec<Message> =
            messages.iter().map(|message| self.hide_specials(message, &mut literals)).collect();
        let reply = self.hide_specials(reply, &mut literals);
        let prompt = self.render_chat(&turns, true)?;
        turns.push(Message::new(Role::Assistant, END_PROBE));
        let end_id = self.end_of_reply(&turns)?;
        turns.pop();

        let text = self.reply_text(&prompt, turns, &reply)?;
        let mut reply_ids = self.encode_hidden(&text, &literals)?;
        let ends_at = end_id.and_then(|end| reply_ids.iter().rposition(|&id| id == end));
        if let Some(position) = ends_at {
            reply_ids.truncate(position);
        }
        if reply_ids.is_empty() {
            return Err(FormatError::EmptySupervision);
        }
        reply_ids.extend(end_id);
        let mut ids = self.encode_hidden(&prompt, &literals)?;
        let mut supervised = vec![false; ids.len()];
        supervised.resize(ids.len() + reply_ids.len(), true);
        ids.extend(reply_ids);
        Ok(SupervisedTokens { ids, supervised })
    }

    /// What the assistant writes after the prompt, up to and including what ends its turn.
    fn reply_text(&self, prompt: &str, mut turns: Vec<Message>, reply: &Message) -> Result<String> {
        let template = self.template.as_ref().ok_or(FormatError::NoChatTemplate)?;
        let whole = match &reply.reasoning_content {
            Some(reasoning) => format!("<think>\n{reasoning}\n</think>\n\n{}", reply.content),
            None => reply.content.clone(),
        };
        let mut turn = reply.clone();
        if !template.knows_reasoning() {
            turn = Message::new(Role::Assistant, whole.clone());
        }
        turns.push(turn);
        let rendered = self.render_chat(&turns, false)?;
        let parts = [reply.reasoning_content.as_deref().unwrap_or(""), &reply.content];
        if let Some(text) = rendered.strip_prefix(prompt)
            && parts.iter().all(|part| text.contains(part.trim()))
        {
            return Ok(text.to_owned());
        }
        // Some templates open the reasoning themselves.
        let opened = prompt.trim_end().ends_with("<think>");
        let text = if opened { whole.strip_prefix("<think>\n").unwrap_or(&whole) } else { &whole };
        Ok(text.to_owned())
    }

    /// The token that the template puts after a reply, or the tokenizer's end of sequence.
    /// `turns` ends with an assistant turn of [`END_PROBE`].
    fn end_of_reply(&self, turns: &[Message]) -> Result<Option<u32>> {
        let rendered = self.render_chat(turns, false)?;
        let after = rendered.rsplit_once(END_PROBE).map_or("", |(_, after)| after);
        let first_special = self.encode(after)?.into_iter().find(|&id| self.is_special(id));
        Ok(first_special.or(self.eos_id()))
    }

    fn hide_specials(&self, message: &Message, literals: &mut Literals) -> Message {
        Message {
            role: message.role,
            content: literals.hide(&message.content, &self.special),
            reasoning_content: message
                .reasoning_content
                .as_deref()
                .map(|text| literals.hide(text, &self.special)),
        }
    }

    /// Encodes rendered text; what [`Literals::hide`] hid comes back as ordinary text.
    fn encode_hidden(&self, text: &str, literals: &Literals) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for piece in literals.split(text) {
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
        if model.family == Family::Qwen2 && self.split_name() != Some("qwen2") {
            return Err(FormatError::NotQwen2Splitting);
        }
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

    /// llama.cpp's name for how this tokenizer splits text (`tokenizer.ggml.pre`), if it has one:
    /// `gpt-2`, `smollm`, `llama-bpe` or `qwen2`.
    pub fn split_name(&self) -> Option<&'static str> {
        byte_level::split_name(&serde_json::from_str(&self.json).unwrap_or_default())
    }
}

/// A reply that no text contains (a Unicode noncharacter), to see what the template puts after it.
const END_PROBE: &str = "\u{FDD2}";

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

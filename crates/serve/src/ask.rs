//! What is asked for: the body of a request, read and checked.

use std::sync::Arc;

use serde_json::Value;
use stillroom_core::Message;
use stillroom_formats::{FormatError, Tokenizer};
use stillroom_model::SamplingParams;

use crate::fields::Fields;
use crate::refusal::Refusal;

/// Sequences of one request: prompts times `n`.
const SEQUENCES_MAX: usize = 128;
/// Bytes of one prompt's text.
const PROMPT_BYTES_MAX: usize = 1 << 20;
const STOPS_MAX: usize = 16;
const STOP_BYTES_MAX: usize = 1 << 10;
/// Most probable tokens with each token.
const TOP_MAX: u64 = 20;
/// What a completion has where it does not say how much it wants, as in OpenAI's interface.
const COMPLETION_TOKENS: usize = 16;
const TURNS_MAX: usize = 4096;

type Result<T> = std::result::Result<T, Refusal>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Chat,
    Completions,
}

impl Endpoint {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Endpoint::Chat => "chat/completions",
            Endpoint::Completions => "completions",
        }
    }
}

/// A request that can be answered.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) endpoint: Endpoint,
    /// One or more, each fitting the context.
    pub(crate) prompts: Vec<Arc<[u32]>>,
    /// Answers to each.
    pub(crate) n: usize,
    /// Of each prompt; they differ in `max_tokens` only, where that is what the context has room for.
    pub(crate) sampling: Vec<Arc<SamplingParams>>,
    pub(crate) stops: Vec<String>,
    /// Log-probabilities are wanted, and so many other tokens with each.
    pub(crate) logprobs: Option<usize>,
    /// The prompt comes back before the answer.
    pub(crate) echo: bool,
    /// vLLM's log-probabilities of the prompt, with so many other tokens.
    pub(crate) prompt_logprobs: Option<usize>,
    pub(crate) return_token_ids: bool,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
}

/// What requests are read for.
pub(crate) struct Reader<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    /// The name that a request may name.
    pub(crate) model: &'a str,
    /// Tokens of a prompt and its answer together.
    pub(crate) context: usize,
    pub(crate) stop_token_ids: &'a [u32],
    /// Ids from here on are none of the model's.
    pub(crate) vocab_size: usize,
}

impl Reader<'_> {
    pub(crate) fn read(&self, endpoint: Endpoint, body: &str) -> Result<Ask> {
        let mut fields = Fields::read(body)?;
        self.check_model(&mut fields)?;
        let prompts = match endpoint {
            Endpoint::Chat => vec![self.conversation(&mut fields)?],
            Endpoint::Completions => self.prompts(&mut fields)?,
        };
        let n = fields.count("n", 1, SEQUENCES_MAX as u64)?.unwrap_or(1);
        if prompts.len() * n > SEQUENCES_MAX {
            return Err(Refusal::of("n", format!("a request has at most {SEQUENCES_MAX} answers")));
        }
        let max_tokens = max_tokens(endpoint, &mut fields)?;
        let sampling = self.sampling(&prompts, max_tokens, &mut fields)?;
        let logprobs = logprobs(endpoint, &mut fields)?;
        let stream = fields.bool("stream")?;
        let ask = Ask {
            endpoint,
            n,
            sampling,
            stops: stops(&mut fields)?,
            logprobs,
            echo: endpoint == Endpoint::Completions && fields.bool("echo")?,
            prompt_logprobs: match endpoint {
                Endpoint::Chat => None,
                Endpoint::Completions => fields.count("prompt_logprobs", 0, TOP_MAX)?,
            },
            return_token_ids: fields.bool("return_token_ids")?,
            stream,
            include_usage: include_usage(stream, &mut fields)?,
            prompts,
        };
        for (param, is_asked) in [("echo", ask.echo), ("prompt_logprobs", ask.prompt_logprobs.is_some())] {
            if stream && is_asked {
                return Err(Refusal::of(param, format!("`{param}` is not supported with `stream`")));
            }
        }
        pass_over(&mut fields, n)?;
        fields.finish()?;
        Ok(ask)
    }

    fn check_model(&self, fields: &mut Fields) -> Result<()> {
        match fields.take("model") {
            None => Ok(()),
            Some(Value::String(name)) if name == self.model => Ok(()),
            Some(_) => {
                let message = format!("this server has one model, `{}`", self.model);
                let refusal = Refusal::of("model", message).code("model_not_found");
                Err(Refusal { status: 404, ..refusal })
            }
        }
    }

    /// A conversation in the model's own template.
    fn conversation(&self, fields: &mut Fields) -> Result<Arc<[u32]>> {
        let turns = match fields.take("messages") {
            Some(Value::Array(turns)) if (1..=TURNS_MAX).contains(&turns.len()) => turns,
            Some(Value::Array(_)) => {
                return Err(Refusal::of("messages", format!("a conversation has 1 to {TURNS_MAX} turns")));
            }
            _ => return Err(Refusal::of("messages", "`messages` is a list of turns")),
        };
        let messages: Vec<Message> =
            turns.into_iter().enumerate().map(|(at, turn)| message(at, turn)).collect::<Result<_>>()?;
        let bytes: usize = messages.iter().map(|message| message.content.len()).sum();
        check_bytes("messages", bytes)?;
        let ids = self.tokenizer.encode_chat(&messages, true).map_err(|error| match error {
            FormatError::NoChatTemplate => {
                Refusal::of("messages", "the model has no chat template").code("no_chat_template")
            }
            error => {
                Refusal::of("messages", format!("the model's chat template does not take this: {error}"))
            }
        })?;
        self.fitting("messages", ids)
    }

    fn prompts(&self, fields: &mut Fields) -> Result<Vec<Arc<[u32]>>> {
        let shape = || {
            Refusal::of(
                "prompt",
                "`prompt` is a text, a list of token ids, or a list of texts or of such lists",
            )
        };
        let prompt = fields.take("prompt").ok_or_else(shape)?;
        let one = |value: &Value| match value {
            Value::String(text) => self.text(text),
            Value::Array(ids) if !ids.is_empty() => self.ids(ids),
            _ => Err(shape()),
        };
        match &prompt {
            Value::Array(list) if !list.is_empty() && !list[0].is_number() => {
                if list.len() > SEQUENCES_MAX {
                    return Err(Refusal::of(
                        "prompt",
                        format!("a request has at most {SEQUENCES_MAX} prompts"),
                    ));
                }
                list.iter().map(one).collect()
            }
            other => Ok(vec![one(other)?]),
        }
    }

    fn text(&self, text: &str) -> Result<Arc<[u32]>> {
        check_bytes("prompt", text.len())?;
        let ids = self.tokenizer.encode(text).map_err(|error| Refusal::of("prompt", error.to_string()))?;
        self.fitting("prompt", self.tokenizer.begun(ids))
    }

    fn ids(&self, list: &[Value]) -> Result<Arc<[u32]>> {
        let id =
            |value: &Value| value.as_u64().filter(|&id| (id as usize) < self.vocab_size).map(|id| id as u32);
        let ids: Option<Vec<u32>> = list.iter().map(id).collect();
        let wrong = || {
            let message = format!("token ids are whole numbers below {}", self.vocab_size);
            Refusal::of("prompt", message)
        };
        self.fitting("prompt", ids.ok_or_else(wrong)?)
    }

    fn fitting(&self, param: &str, ids: Vec<u32>) -> Result<Arc<[u32]>> {
        let (n, max) = (ids.len(), self.context);
        if n == 0 {
            return Err(Refusal::of(param, "the prompt has no tokens"));
        }
        if n > max {
            let message = format!("the prompt has {n} tokens, the context holds {max}");
            return Err(Refusal::of(param, message).code("context_length_exceeded"));
        }
        Ok(ids.into())
    }

    fn sampling(
        &self,
        prompts: &[Arc<[u32]>],
        max_tokens: Option<usize>,
        fields: &mut Fields,
    ) -> Result<Vec<Arc<SamplingParams>>> {
        let temperature = fields.number("temperature", 0.0, 100.0)?.unwrap_or(1.0) as f32;
        let top_p = fields.number("top_p", 0.0, 1.0)?.unwrap_or(1.0) as f32;
        if top_p == 0.0 {
            return Err(Refusal::of("top_p", "`top_p` is above 0"));
        }
        let seed = match fields.seed("seed")? {
            Some(seed) => seed,
            None => random_seed()?,
        };
        let stop_token_ids = self.stop_token_ids.to_vec();
        let of = |prompt: &Arc<[u32]>| {
            // Behind a prompt that fills the context one token can still be told.
            let room = (self.context - prompt.len()).max(1);
            if let Some(wanted) = max_tokens.filter(|&wanted| wanted > room) {
                let message = format!(
                    "the prompt has {} tokens and {wanted} are wanted; the context holds {}",
                    prompt.len(),
                    self.context
                );
                return Err(Refusal::of("max_tokens", message).code("context_length_exceeded"));
            }
            let max_tokens = max_tokens.unwrap_or(room);
            let stop_token_ids = stop_token_ids.clone();
            Ok(Arc::new(SamplingParams { max_tokens, temperature, top_p, seed, stop_token_ids }))
        };
        prompts.iter().map(of).collect()
    }
}

fn random_seed() -> Result<u64> {
    getrandom::u64().map_err(|_| Refusal::new(500, "the system gives no random numbers"))
}

fn check_bytes(param: &str, bytes: usize) -> Result<()> {
    if bytes <= PROMPT_BYTES_MAX {
        return Ok(());
    }
    let message = format!("the prompt has {bytes} bytes, at most {PROMPT_BYTES_MAX} are read");
    Err(Refusal::of(param, message).code("context_length_exceeded"))
}

/// None for as many as the context has room for.
fn max_tokens(endpoint: Endpoint, fields: &mut Fields) -> Result<Option<usize>> {
    let least = u64::from(endpoint == Endpoint::Chat);
    let most = u64::from(u32::MAX);
    let old = fields.count("max_tokens", least, most)?;
    let new = match endpoint {
        Endpoint::Chat => fields.count("max_completion_tokens", least, most)?,
        Endpoint::Completions => None,
    };
    match (old, new) {
        (Some(old), Some(new)) if old != new => {
            Err(Refusal::of("max_tokens", "`max_tokens` and `max_completion_tokens` say different things"))
        }
        (None, None) if endpoint == Endpoint::Completions => Ok(Some(COMPLETION_TOKENS)),
        (old, new) => Ok(new.or(old)),
    }
}

fn logprobs(endpoint: Endpoint, fields: &mut Fields) -> Result<Option<usize>> {
    if endpoint == Endpoint::Completions {
        return fields.count("logprobs", 0, TOP_MAX);
    }
    let wanted = fields.bool("logprobs")?;
    let top = fields.count("top_logprobs", 0, TOP_MAX)?;
    match (wanted, top) {
        (false, Some(1..)) => Err(Refusal::of("top_logprobs", "`top_logprobs` needs `logprobs`")),
        _ => Ok(wanted.then_some(top.unwrap_or(0))),
    }
}

fn stops(fields: &mut Fields) -> Result<Vec<String>> {
    let listed = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(one) => vec![one],
    };
    let stop = |value: Value| match value {
        Value::String(text) if (1..=STOP_BYTES_MAX).contains(&text.len()) => Some(text),
        _ => None,
    };
    let stops: Option<Vec<String>> = listed.into_iter().map(stop).collect();
    stops.filter(|stops| stops.len() <= STOPS_MAX).ok_or_else(|| {
        let message =
            format!("`stop` is a text, or up to {STOPS_MAX} of them, of 1 to {STOP_BYTES_MAX} bytes each");
        Refusal::of("stop", message)
    })
}

fn include_usage(stream: bool, fields: &mut Fields) -> Result<bool> {
    let wrong = |message: &str| Refusal::of("stream_options", message);
    match fields.take("stream_options") {
        None => Ok(false),
        Some(_) if !stream => Err(wrong("`stream_options` needs `stream`")),
        Some(Value::Object(options)) => {
            let known = |(name, value): (&String, &Value)| match name.as_str() {
                "include_usage" => value.is_boolean(),
                // It asks for bytes that hide lengths, and promises nothing when it is false.
                "include_obfuscation" => value == false,
                _ => false,
            };
            match options.iter().all(known) {
                true => Ok(options.get("include_usage") == Some(&Value::Bool(true))),
                false => Err(wrong("only `include_usage` is supported in `stream_options`")),
            }
        }
        Some(_) => Err(wrong("`stream_options` is an object")),
    }
}

/// Fields that change nothing, and fields that change nothing as they stand.
fn pass_over(fields: &mut Fields, n: usize) -> Result<()> {
    fields.ignore(&["user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier"]);
    let is = |wanted: f64| move |value: &Value| value.as_f64() == Some(wanted);
    let is_empty = |value: &Value| match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::String(text) => text.is_empty(),
        other => *other == false,
    };
    for name in ["presence_penalty", "frequency_penalty", "min_p", "min_tokens"] {
        fields.neutral(name, is(0.0))?;
    }
    for name in ["repetition_penalty", "length_penalty"] {
        fields.neutral(name, is(1.0))?;
    }
    for name in ["logit_bias", "tools", "functions", "suffix", "store", "ignore_eos", "stop_token_ids"] {
        fields.neutral(name, is_empty)?;
    }
    fields.neutral("top_k", |value| matches!(value.as_i64(), Some(-1 | 0)))?;
    fields.neutral("best_of", is(n as f64))?;
    fields.neutral("response_format", |value| value.get("type").is_some_and(|kind| kind == "text"))?;
    fields.neutral("tool_choice", |value| value == "none" || value == "auto")?;
    fields.neutral("parallel_tool_calls", Value::is_boolean)?;
    fields.neutral("modalities", |value| *value == serde_json::json!(["text"]))
}

/// One turn. Its content is a text, or parts of text, which are read one behind the other.
fn message(at: usize, mut turn: Value) -> Result<Message> {
    let param = format!("messages[{at}]");
    let wrong = |message: String| Refusal::of(&param, message);
    let Some(fields) = turn.as_object_mut() else { return Err(wrong("a turn is an object".to_owned())) };
    if fields.contains_key("tools") {
        return Err(wrong("tools do not stand in a turn".to_owned()));
    }
    if fields.get("role").is_some_and(|role| role == "developer") {
        fields.insert("role".to_owned(), "system".into());
    }
    if let Some(Value::Array(parts)) = fields.get("content") {
        let text = |part: &Value| match (part["type"].as_str(), part["text"].as_str()) {
            (Some("text"), Some(text)) => Some(text.to_owned()),
            _ => None,
        };
        let texts: Option<String> = parts.iter().map(text).collect();
        let texts = texts.ok_or_else(|| wrong("only parts of type `text` are supported".to_owned()))?;
        fields.insert("content".to_owned(), texts.into());
    }
    serde_json::from_value(turn).map_err(|error| wrong(error.to_string()))
}

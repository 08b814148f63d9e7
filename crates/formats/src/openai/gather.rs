//! One reply out of a body or out of the chunks of a stream.

use serde_json::{Value, json};

use super::fault::{ErrorObject, ReplyFault};
use super::reply::{Finish, IdLogprob, Reply, TokenLogprob, Usage, split_reasoning};
use super::stream::Caps;
use super::wire::{
    self, Alternatives, Body, Call, Choice, Logprobs, TOKENS_MAX, TOOL_CALLS_MAX, Turn, UsageWire,
};

/// Characters of an id or a model's name.
const NAME_BYTES_MAX: usize = 1 << 10;
/// A count of tokens above this is no count.
const COUNT_MAX: usize = 1 << 40;
/// Depth of a call's arguments; deeper ones stay text, so that what is written can be read again.
const ARGUMENTS_DEPTH_MAX: usize = 64;
/// Longer arguments stay text: values take many times the memory.
const ARGUMENTS_BYTES_MAX: usize = 1 << 20;

/// What has come of a reply so far.
pub(super) struct Gathering {
    caps: Caps,
    id: Option<String>,
    model: Option<String>,
    is_chat: bool,
    content: String,
    /// From `reasoning_content`, `reasoning`, `thinking` and blocks among the content.
    reasonings: [String; 4],
    refusal: String,
    calls: Vec<Called>,
    text_bytes: usize,
    finish: Option<Finish>,
    usage: Option<Usage>,
    logprobs: Option<Vec<TokenLogprob>>,
    prompt_logprobs: Option<Vec<Option<Vec<IdLogprob>>>>,
    token_ids: Option<Vec<u32>>,
    prompt_token_ids: Option<Vec<u32>>,
    pieces: u64,
    other_index: Option<i64>,
    has_choice: bool,
}

/// A call of a tool.
struct Called {
    index: Option<u64>,
    id: Option<String>,
    name: String,
    arguments: String,
}

impl Gathering {
    pub(super) fn new(caps: Caps) -> Gathering {
        Gathering {
            caps,
            id: None,
            model: None,
            is_chat: false,
            content: String::new(),
            reasonings: Default::default(),
            refusal: String::new(),
            calls: Vec::new(),
            text_bytes: 0,
            finish: None,
            usage: None,
            logprobs: None,
            prompt_logprobs: None,
            token_ids: None,
            prompt_token_ids: None,
            pieces: 0,
            other_index: None,
            has_choice: false,
        }
    }

    pub(super) fn pieces(&self) -> u64 {
        self.pieces
    }

    /// Whether any choice has come, of whatever index.
    pub(super) fn saw_choices(&self) -> bool {
        self.has_choice || self.other_index.is_some()
    }

    /// Takes a whole body or a chunk.
    pub(super) fn add(&mut self, body: Body) -> Result<(), ReplyFault> {
        if let Some(error) = body.error {
            return Err(ReplyFault::ErrorObject(ErrorObject::of(error)));
        }
        if let (None, Some(error)) = (&body.choices, body.message.or(body.detail)) {
            return Err(ReplyFault::ErrorObject(ErrorObject::of(error)));
        }
        // A chunk that lost its text must not pass for one that has none.
        if body.id.is_some() && body.choices.is_none() && body.usage.is_none() {
            return Err(ReplyFault::NoChoice);
        }
        self.take_names(body.id, body.model)?;
        if let Some(usage) = body.usage {
            self.usage = usage_of(&usage)?.or(self.usage);
        }
        self.take_prompt(body.prompt_logprobs, body.prompt_token_ids)?;
        let mut found = false;
        for (position, choice) in body.choices.into_iter().flatten().enumerate() {
            match choice.index.unwrap_or(position as i64) {
                0 if found => return Err(ReplyFault::SameIndex),
                0 => {
                    found = true;
                    self.take_choice(choice)?;
                }
                other => self.other_index = Some(other),
            }
        }
        Ok(())
    }

    /// The reply, if its end has come.
    pub(super) fn finish(self) -> Result<Reply, ReplyFault> {
        let Some(finish) = self.finish else {
            return Err(match self.other_index {
                Some(index) if !self.has_choice => ReplyFault::WrongIndex { index },
                _ => ReplyFault::Cut { pieces: self.pieces },
            });
        };
        let is_refusal = self.content.is_empty() && !self.refusal.is_empty();
        let content = if is_refusal { self.refusal } else { self.content };
        let given = self.reasonings.into_iter().find(|text| !text.trim().is_empty());
        let (reasoning_content, content) = match given {
            Some(reasoning) if self.is_chat => (Some(reasoning.trim().to_owned()), content.trim().to_owned()),
            None if self.is_chat => split_reasoning(&content),
            given => (given, content),
        };
        Ok(Reply {
            id: self.id,
            model: self.model,
            content,
            reasoning_content,
            tool_calls: self.calls.into_iter().map(Called::into_value).collect(),
            finish: if is_refusal { Finish::ContentFilter } else { finish },
            usage: self.usage,
            logprobs: self.logprobs,
            prompt_logprobs: self.prompt_logprobs,
            token_ids: self.token_ids,
            prompt_token_ids: self.prompt_token_ids,
            pieces: self.pieces,
        })
    }

    fn take_names(&mut self, id: Option<String>, model: Option<String>) -> Result<(), ReplyFault> {
        if let Some(id) = id.filter(|id| !id.is_empty()) {
            ReplyFault::check_cap("the id", id.len(), NAME_BYTES_MAX)?;
            if self.id.as_ref().is_some_and(|known| *known != id) {
                return Err(ReplyFault::MixedIds);
            }
            self.id = Some(id);
        }
        if let Some(model) = model.filter(|model| !model.is_empty()) {
            ReplyFault::check_cap("the model's name", model.len(), NAME_BYTES_MAX)?;
            self.model.get_or_insert(model);
        }
        Ok(())
    }

    fn take_prompt(
        &mut self,
        logprobs: Option<Vec<Option<Alternatives>>>,
        ids: Option<Vec<u32>>,
    ) -> Result<(), ReplyFault> {
        if let Some(logprobs) = logprobs {
            let of = |position: Option<Alternatives>| position.map(alternatives_of).transpose();
            self.prompt_logprobs = Some(logprobs.into_iter().map(of).collect::<Result<_, _>>()?);
        }
        if ids.is_some() {
            self.prompt_token_ids = ids;
        }
        Ok(())
    }

    fn take_choice(&mut self, choice: Choice) -> Result<(), ReplyFault> {
        self.has_choice = true;
        let is_chat = choice.message.is_some() || choice.delta.is_some();
        self.is_chat |= is_chat;
        let before = self.text_bytes;
        for (turn, is_whole) in [(choice.message, true), (choice.delta, false)] {
            if let Some(turn) = turn {
                self.take_turn(turn, is_whole)?;
            }
        }
        // Some servers write the text of a chat twice.
        if let Some(text) = choice.text.filter(|_| !is_chat) {
            self.grow(text.len())?;
            self.content.push_str(&text);
        }
        if self.text_bytes > before {
            if self.finish.is_some() {
                return Err(ReplyFault::AfterEnd);
            }
            self.pieces += 1;
        }
        if let Some(logprobs) = choice.logprobs {
            self.take_logprobs(logprobs)?;
        }
        if let Some(ids) = choice.token_ids {
            let known = self.token_ids.get_or_insert_default();
            ReplyFault::check_cap("the number of tokens", known.len() + ids.len(), TOKENS_MAX)?;
            known.extend(ids);
        }
        self.take_prompt(choice.prompt_logprobs, choice.prompt_token_ids)?;
        if let Some(name) = choice.finish_reason.filter(|name| !name.is_empty()) {
            self.finish = Some(Finish::of(&name));
        }
        Ok(())
    }

    fn take_turn(&mut self, turn: Turn, is_whole: bool) -> Result<(), ReplyFault> {
        let fields = [turn.reasoning_content, turn.reasoning, turn.thinking];
        for (i, field) in fields.into_iter().enumerate() {
            self.grow(field.text.len() + field.thinking.len())?;
            self.reasonings[i].push_str(&field.text);
            self.reasonings[i].push_str(&field.thinking);
        }
        self.grow(turn.content.text.len() + turn.content.thinking.len())?;
        self.content.push_str(&turn.content.text);
        self.reasonings[3].push_str(&turn.content.thinking);
        if let Some(refusal) = turn.refusal {
            self.grow(refusal.len())?;
            self.refusal.push_str(&refusal);
        }
        for call in turn.tool_calls.into_iter().flatten() {
            self.take_call(call, is_whole)?;
        }
        Ok(())
    }

    /// A whole call, or the next part of one.
    fn take_call(&mut self, call: Call, is_whole: bool) -> Result<(), ReplyFault> {
        let same = |known: &Called| match (call.index, &call.id) {
            (Some(index), _) => known.index == Some(index),
            (None, Some(id)) => known.id.as_ref() == Some(id),
            (None, None) => true,
        };
        let known = if is_whole { None } else { self.calls.iter().rposition(same) };
        let at = match known {
            Some(at) => at,
            None => {
                ReplyFault::check_cap("the number of tool calls", self.calls.len() + 1, TOOL_CALLS_MAX)?;
                let (name, arguments) = (String::new(), String::new());
                self.calls.push(Called { index: call.index, id: None, name, arguments });
                self.calls.len() - 1
            }
        };
        let (name, arguments) = call.function.map_or((None, String::new()), |f| (f.name, f.arguments.0));
        let (name, id) = (name.unwrap_or_default(), call.id.filter(|id| !id.is_empty()));
        self.grow(name.len() + arguments.len() + id.as_ref().map_or(0, String::len))?;
        let called = &mut self.calls[at];
        called.id = called.id.take().or(id);
        if called.name.is_empty() {
            called.name = name;
        }
        called.arguments.push_str(&arguments);
        Ok(())
    }

    fn take_logprobs(&mut self, logprobs: Logprobs) -> Result<(), ReplyFault> {
        let tokens = match logprobs.content {
            Some(content) => content.into_iter().map(token_of).collect(),
            None if logprobs.tokens.is_some() => tokens_of(logprobs)?,
            None => return Ok(()),
        };
        let known = self.logprobs.get_or_insert_default();
        ReplyFault::check_cap("the number of tokens", known.len() + tokens.len(), TOKENS_MAX)?;
        known.extend(tokens);
        Ok(())
    }

    fn grow(&mut self, bytes: usize) -> Result<(), ReplyFault> {
        self.text_bytes = self.text_bytes.saturating_add(bytes);
        ReplyFault::check_cap("the text", self.text_bytes, self.caps.text_bytes_max)
    }
}

impl Called {
    fn into_value(self) -> Value {
        let short = self.arguments.len() <= ARGUMENTS_BYTES_MAX;
        let object = short.then(|| serde_json::from_str::<Value>(&self.arguments).ok()).flatten();
        let arguments = object
            .filter(|value| value.is_object() && depth(value) <= ARGUMENTS_DEPTH_MAX)
            .unwrap_or(Value::String(self.arguments));
        let function = json!({ "name": self.name, "arguments": arguments });
        match self.id {
            Some(id) => json!({ "id": id, "type": "function", "function": function }),
            None => json!({ "type": "function", "function": function }),
        }
    }
}

/// Levels of lists and objects; values come from a reader that goes at most 128 deep.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn usage_of(wire: &UsageWire) -> Result<Option<Usage>, ReplyFault> {
    let count = |count: &Option<wire::Count>| -> Result<Option<u64>, ReplyFault> {
        let Some(wire::Count(n)) = count else { return Ok(None) };
        let limit = COUNT_MAX as u64;
        let what = "a count of tokens";
        if *n > limit { Err(ReplyFault::TooLarge { what, value: *n, limit }) } else { Ok(Some(*n)) }
    };
    let (prompt, completion) = (count(&wire.prompt_tokens)?, count(&wire.completion_tokens)?);
    let cached = match &wire.prompt_tokens_details {
        Some(details) => count(&details.cached_tokens)?,
        None => None,
    };
    let reasoning = match &wire.completion_tokens_details {
        Some(details) => count(&details.reasoning_tokens)?,
        None => None,
    };
    let cached = match cached {
        Some(cached) => Some(cached),
        None => count(&wire.prompt_cache_hit_tokens)?,
    };
    if prompt.is_none() && completion.is_none() {
        return Ok(None);
    }
    Ok(Some(Usage {
        prompt_tokens: prompt.unwrap_or(0),
        completion_tokens: completion.unwrap_or(0),
        cached_prompt_tokens: cached,
        reasoning_tokens: reasoning,
    }))
}

fn token_of(token: wire::Token) -> TokenLogprob {
    TokenLogprob {
        id: token.id.or_else(|| id_in(&token.token)),
        bytes: token.bytes,
        logprob: token.logprob,
        top: token.top_logprobs.into_iter().flatten().map(|t| (t.token, t.bytes, t.logprob)).collect(),
        token: token.token,
    }
}

/// The id that vLLM writes in place of a token if it is asked to.
fn id_in(token: &str) -> Option<u32> {
    token.strip_prefix("token_id:")?.parse().ok()
}

/// Log-probabilities in the form of completions: lists of one length.
fn tokens_of(wire: Logprobs) -> Result<Vec<TokenLogprob>, ReplyFault> {
    let tokens = wire.tokens.unwrap_or_default();
    let logprobs = wire.token_logprobs.unwrap_or_default();
    let tops = wire.top_logprobs.unwrap_or_default();
    if logprobs.len() != tokens.len() || !(tops.is_empty() || tops.len() == tokens.len()) {
        let what = format!("{} tokens with {} log-probabilities", tokens.len(), logprobs.len());
        return Err(ReplyFault::Shape { what });
    }
    let mut tops = tops.into_iter();
    let all = tokens.into_iter().zip(logprobs).map(|(token, logprob)| {
        let top = tops.next().flatten().map_or_else(Vec::new, |pairs| pairs.0);
        TokenLogprob {
            id: id_in(&token),
            bytes: None,
            logprob,
            top: top.into_iter().map(|(token, logprob)| (token, None, logprob)).collect(),
            token,
        }
    });
    Ok(all.collect())
}

fn alternatives_of(wire: Alternatives) -> Result<Vec<IdLogprob>, ReplyFault> {
    let of = |(key, alternative): (String, wire::Alternative)| {
        let what = || "a prompt's log-probability without a token id".to_owned();
        let id = key.parse().map_err(|_| ReplyFault::Shape { what: what() })?;
        let wire::Alternative { logprob, rank, decoded_token } = alternative;
        Ok(IdLogprob { id, logprob, rank, token: decoded_token })
    };
    wire.0.into_iter().map(of).collect()
}

//! Choices as JSON, whole or in pieces.

use serde_json::{Map, Value, json};
use stillroom_formats::Tokenizer;
use stillroom_model::ScoredToken;

use crate::ask::{Ask, Endpoint};
use crate::writing::{Entry, Piece};

/// What all of a reply's objects have in common.
pub(crate) struct Frame<'a> {
    pub(crate) ask: &'a Ask,
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) id: &'a str,
    pub(crate) created: u64,
    pub(crate) model: &'a str,
    pub(crate) fingerprint: &'a str,
}

/// Tokens of a reply.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) prompt: usize,
    pub(crate) completion: usize,
}

impl Usage {
    fn json(self) -> Value {
        let Usage { prompt, completion } = self;
        json!({ "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion })
    }
}

impl Frame<'_> {
    fn object(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        })
    }

    /// A whole reply. `scores` has one list for each prompt whose tokens were scored.
    pub(crate) fn whole(
        &self,
        pieces: Vec<Piece>,
        scores: &[Option<Vec<ScoredToken>>],
        usage: Usage,
    ) -> Value {
        let choice = |(index, piece): (usize, Piece)| self.whole_choice(index, piece, scores);
        let choices = pieces.into_iter().enumerate().map(choice).collect();
        let object = match self.ask.endpoint {
            Endpoint::Chat => "chat.completion",
            Endpoint::Completions => "text_completion",
        };
        let mut reply = self.object(object, choices);
        if self.ask.return_token_ids && self.ask.endpoint == Endpoint::Chat {
            reply["prompt_token_ids"] = json!(self.ask.prompts[0][..]);
        }
        reply["usage"] = usage.json();
        reply
    }

    fn whole_choice(&self, index: usize, piece: Piece, scores: &[Option<Vec<ScoredToken>>]) -> Value {
        let prompt = index / self.ask.n;
        let (ids, scored) = (&self.ask.prompts[prompt], scores[prompt].as_deref());
        let token_ids: Vec<u32> = piece.entries.iter().map(|entry| entry.id).collect();
        let mut fields = Map::new();
        fields.insert("index".to_owned(), json!(index));
        if self.ask.endpoint == Endpoint::Chat {
            let message = json!({ "role": "assistant", "content": piece.text, "refusal": null });
            fields.insert("message".to_owned(), message);
            fields.insert("logprobs".to_owned(), self.logprobs(&piece.entries));
        } else {
            let (text, entries) = match self.ask.echo {
                true => self.echoed(ids, scored, piece.text, piece.entries),
                false => (piece.text, piece.entries),
            };
            fields.insert("text".to_owned(), json!(text));
            fields.insert("logprobs".to_owned(), self.logprobs(&entries));
            if let Some(top) = self.ask.prompt_logprobs {
                fields.insert("prompt_logprobs".to_owned(), self.prompt_logprobs(ids, scored, top));
            }
        }
        fields.insert("finish_reason".to_owned(), json!(piece.finish_reason));
        if self.ask.return_token_ids {
            fields.insert("token_ids".to_owned(), json!(token_ids));
            if self.ask.endpoint == Endpoint::Completions {
                fields.insert("prompt_token_ids".to_owned(), json!(ids[..]));
            }
        }
        Value::Object(fields)
    }

    /// The prompt before the answer.
    fn echoed(
        &self,
        ids: &[u32],
        scored: Option<&[ScoredToken]>,
        text: String,
        entries: Vec<Entry>,
    ) -> (String, Vec<Entry>) {
        let prompt = self.tokenizer.decode(ids);
        if self.ask.logprobs.is_none() {
            return (prompt + &text, entries);
        }
        let mut offset = 0;
        let mut all: Vec<Entry> = Vec::with_capacity(ids.len() + entries.len());
        for (at, &id) in ids.iter().enumerate() {
            let scored = at.checked_sub(1).and_then(|at| scored?.get(at));
            let top = scored.map(|scored| scored.top.clone()).unwrap_or_default();
            all.push(Entry { id, logprob: scored.map(|scored| scored.logprob), top, offset });
            offset += self.token(id).chars().count();
        }
        let shift = prompt.chars().count();
        all.extend(entries.into_iter().map(|entry| Entry { offset: entry.offset + shift, ..entry }));
        (prompt + &text, all)
    }

    /// A token's text by itself; bytes that are none are replaced.
    fn token(&self, id: u32) -> String {
        String::from_utf8_lossy(&self.tokenizer.token_bytes(id).unwrap_or_default()).into_owned()
    }

    fn logprobs(&self, entries: &[Entry]) -> Value {
        let Some(top) = self.ask.logprobs else { return Value::Null };
        match self.ask.endpoint {
            Endpoint::Chat => {
                json!({ "content": entries.iter().map(|e| self.in_chat(e, top)).collect::<Vec<_>>() })
            }
            Endpoint::Completions => json!({
                "text_offset": entries.iter().map(|entry| entry.offset).collect::<Vec<_>>(),
                "tokens": entries.iter().map(|entry| self.token(entry.id)).collect::<Vec<_>>(),
                "token_logprobs": entries.iter().map(|entry| entry.logprob).collect::<Vec<_>>(),
                "top_logprobs": match top {
                    0 => Value::Null,
                    _ => entries.iter().map(|entry| self.in_completion(entry, top)).collect(),
                },
            }),
        }
    }

    fn in_chat(&self, entry: &Entry, top: usize) -> Value {
        let one = |id: u32, logprob: Option<f32>| {
            let bytes = self.tokenizer.token_bytes(id).unwrap_or_default();
            json!({ "token": String::from_utf8_lossy(&bytes), "logprob": logprob, "bytes": bytes })
        };
        let mut shown = one(entry.id, entry.logprob);
        let others = entry.top.iter().take(top).map(|&(id, logprob)| one(id, Some(logprob)));
        shown["top_logprobs"] = others.collect();
        shown
    }

    /// The most probable tokens, and its own.
    fn in_completion(&self, entry: &Entry, top: usize) -> Value {
        let Some(logprob) = entry.logprob else { return Value::Null };
        let mut shown = Map::new();
        let likeliest = entry.top.iter().take(top).copied();
        for (id, logprob) in likeliest.chain([(entry.id, logprob)]) {
            // Several ids may stand for the same text: the most probable of them comes first.
            shown.entry(self.token(id)).or_insert(json!(logprob));
        }
        Value::Object(shown)
    }

    /// Of each token of a prompt, by ids; none of its first.
    fn prompt_logprobs(&self, ids: &[u32], scored: Option<&[ScoredToken]>, top: usize) -> Value {
        let one = |rank: usize, id: u32, logprob: f32| json!({ "logprob": logprob, "rank": rank, "decoded_token": self.token(id) });
        let entry = |(&id, scored): (&u32, &ScoredToken)| {
            let mut shown = Map::new();
            shown.insert(id.to_string(), one(scored.rank as usize, id, scored.logprob));
            for (rank, &(id, logprob)) in (1..).zip(scored.top.iter().take(top)) {
                shown.entry(id.to_string()).or_insert_with(|| one(rank, id, logprob));
            }
            Value::Object(shown)
        };
        let scored = scored.unwrap_or_default();
        [Value::Null].into_iter().chain(ids[1..].iter().zip(scored).map(entry)).collect()
    }

    /// The first event of a chat's choice.
    pub(crate) fn role(&self, index: usize) -> Value {
        let choice = json!({
            "index": index,
            "delta": { "role": "assistant", "content": "" },
            "logprobs": null,
            "finish_reason": null,
        });
        self.chunk(vec![choice], None)
    }

    /// The event of a piece.
    pub(crate) fn piece(&self, index: usize, piece: &Piece) -> Value {
        let mut choice = json!({ "index": index });
        match self.ask.endpoint {
            Endpoint::Chat if piece.text.is_empty() => choice["delta"] = json!({}),
            Endpoint::Chat => choice["delta"] = json!({ "content": piece.text }),
            Endpoint::Completions => choice["text"] = json!(piece.text),
        }
        choice["logprobs"] = self.logprobs(&piece.entries);
        choice["finish_reason"] = json!(piece.finish_reason);
        if self.ask.return_token_ids {
            choice["token_ids"] = piece.entries.iter().map(|entry| entry.id).collect();
        }
        self.chunk(vec![choice], None)
    }

    /// The last event, where usage is wanted.
    pub(crate) fn usage(&self, usage: Usage) -> Value {
        self.chunk(Vec::new(), Some(usage))
    }

    fn chunk(&self, choices: Vec<Value>, usage: Option<Usage>) -> Value {
        let object = match self.ask.endpoint {
            Endpoint::Chat => "chat.completion.chunk",
            Endpoint::Completions => "text_completion",
        };
        let mut chunk = self.object(object, choices);
        if self.ask.include_usage {
            chunk["usage"] = usage.map_or(Value::Null, Usage::json);
        }
        chunk
    }
}

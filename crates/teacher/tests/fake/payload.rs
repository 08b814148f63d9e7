//! Replies as JSON, whole and in chunks.

use serde_json::{Map, Value, json};

use super::faults::Fault;
use super::hostile::LONE_SURROGATE;
use super::words::{Written, logprob, token_id, tokens};

/// A reply that is to be sent.
pub(crate) struct Payload<'a> {
    pub(crate) body: &'a Value,
    pub(crate) written: &'a Written,
    pub(crate) id: String,
    pub(crate) model: String,
    /// Whether the usage is told at all.
    pub(crate) usage: bool,
    /// Log-probabilities of the prompt's tokens but the first, where somebody has read it.
    pub(crate) read: Option<Vec<f32>>,
}

/// JSON as it goes over the wire, lone surrogates and all.
pub(crate) fn bytes_of(value: &Value) -> Vec<u8> {
    value.to_string().replace(LONE_SURROGATE, "\\ud83d").into_bytes()
}

impl Payload<'_> {
    fn is_chat(&self) -> bool {
        self.body.get("messages").is_some()
    }

    /// The content as it is sent: with the reasoning before it, if that stands in tags.
    fn text(&self) -> String {
        let Written { content, reasoning, .. } = self.written;
        match reasoning {
            Some(reasoning) if self.written.in_tags => format!("<think>{reasoning}</think>{content}"),
            _ if self.body["echo"] == true => format!("{}{content}", self.prompt_text()),
            _ => content.clone(),
        }
    }

    fn prompt_text(&self) -> String {
        match &self.body["prompt"] {
            Value::Array(ids) => ids.iter().map(|id| format!(" t{id}")).collect(),
            prompt => prompt.as_str().unwrap_or_default().to_owned(),
        }
    }

    fn reasoning(&self) -> Option<&str> {
        self.written.reasoning.as_deref().filter(|_| !self.written.in_tags)
    }

    fn call(&self) -> Option<Value> {
        let (name, arguments) = self.written.call.as_ref()?;
        let function = json!({"name": name, "arguments": arguments});
        Some(json!({"index": 0, "id": "call_0", "type": "function", "function": function}))
    }

    fn usage(&self) -> Value {
        let Written { prompt_tokens, completion_tokens, .. } = self.written;
        json!({
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        })
    }

    /// The whole body.
    pub(crate) fn whole(&self, fault: Fault) -> Value {
        let other = |index: i64| self.choice(index, "something that nobody asked for", None, false);
        let own = |index: i64| self.choice(index, &self.text(), self.reasoning(), true);
        let choices = match fault {
            Fault::ExtraChoices => vec![other(2), own(0), other(1)],
            Fault::WrongIndex => vec![own(1)],
            Fault::NoChoices => Vec::new(),
            _ => vec![own(0)],
        };
        let mut whole = self.frame(if self.is_chat() { "chat.completion" } else { "text_completion" });
        whole.insert("choices".into(), Value::Array(choices));
        if self.usage {
            whole.insert("usage".into(), self.usage());
        }
        if self.is_chat() && self.body["return_token_ids"] == true {
            let prompt: Vec<u32> = (0..self.written.prompt_tokens as u32).collect();
            whole.insert("prompt_token_ids".into(), json!(prompt));
        }
        Value::Object(whole)
    }

    fn frame(&self, object: &str) -> Map<String, Value> {
        let Value::Object(frame) =
            json!({"id": self.id, "object": object, "created": 0, "model": self.model})
        else {
            unreachable!("an object is written above")
        };
        frame
    }

    fn choice(&self, index: i64, text: &str, reasoning: Option<&str>, complete: bool) -> Value {
        let mut choice = json!({ "index": index });
        if self.is_chat() {
            choice["message"] = json!({"role": "assistant", "content": text});
            if let Some(reasoning) = reasoning {
                choice["message"]["reasoning_content"] = json!(reasoning);
            }
            if let Some(call) = self.call() {
                choice["message"]["tool_calls"] = json!([call]);
            }
        } else {
            choice["text"] = json!(text);
        }
        if complete {
            choice["logprobs"] = self.logprobs(&tokens(text));
            if self.body["return_token_ids"] == true {
                choice["token_ids"] = json!(tokens(text).into_iter().map(token_id).collect::<Vec<_>>());
            }
            if let Some(k) = self.body["prompt_logprobs"].as_u64() {
                choice["prompt_logprobs"] = self.prompt_logprobs(k);
            }
        }
        choice["finish_reason"] = json!(self.written.finish);
        choice
    }

    /// Log-probabilities of these tokens, if they were asked for; null otherwise.
    fn logprobs(&self, tokens: &[&str]) -> Value {
        if self.is_chat() {
            if self.body["logprobs"] != true {
                return Value::Null;
            }
            let top = self.body["top_logprobs"].as_u64().unwrap_or(0);
            return json!({"content": tokens.iter().map(|token| logprob(token, top)).collect::<Vec<_>>()});
        }
        let Some(top) = self.body["logprobs"].as_u64() else { return Value::Null };
        let has_prompt = self.body["echo"] == true;
        let of =
            |(i, token): (usize, &&str)| if i == 0 && has_prompt { Value::Null } else { logprob(token, top) };
        let mut each: Vec<Value> = tokens.iter().enumerate().map(of).collect();
        if let Some(read) = self.read.as_ref().filter(|_| has_prompt) {
            each.iter_mut().skip(1).zip(read).for_each(|(each, logprob)| each["logprob"] = json!(logprob));
        }
        let tops = each.iter().map(|of_token| match &of_token["top_logprobs"] {
            Value::Array(list) => list
                .iter()
                .map(|other| {
                    (other["token"].as_str().unwrap_or_default().to_owned(), other["logprob"].clone())
                })
                .collect::<Map<_, _>>()
                .into(),
            _ => Value::Null,
        });
        json!({
            "tokens": tokens,
            "token_logprobs": each.iter().map(|of_token| &of_token["logprob"]).collect::<Vec<_>>(),
            "top_logprobs": tops.collect::<Vec<Value>>(),
        })
    }

    /// vLLM's form: a map by token id for each token but the first.
    fn prompt_logprobs(&self, k: u64) -> Value {
        let text = self.prompt_text();
        let given = |i: usize| self.body["prompt"][i].as_u64().map(|id| id.to_string());
        let of = |(i, token): (usize, &str)| -> Value {
            if i == 0 {
                return Value::Null;
            }
            let logprob = self.read.as_ref().map_or(-0.125, |read| read[i - 1]);
            let own = json!({"logprob": logprob, "rank": 1, "decoded_token": token});
            let others = (1..k).map(|rank| {
                let token = format!(" {rank}");
                let id = token_id(&token).to_string();
                (id, json!({"logprob": -0.125 - rank as f64, "rank": rank + 1, "decoded_token": token}))
            });
            let all: Map<String, Value> =
                std::iter::once((given(i).unwrap_or_else(|| token_id(token).to_string()), own))
                    .chain(others)
                    .collect();
            Value::Object(all)
        };
        Value::Array(tokens(&text).into_iter().enumerate().map(of).collect())
    }

    /// The data of each event, `[DONE]` too; with each the completion tokens that it brings.
    pub(crate) fn events(&self, fault: Fault) -> Vec<(Vec<u8>, u64)> {
        let index = if fault == Fault::WrongIndex { 1 } else { 0 };
        let mut events: Vec<(Value, u64)> = Vec::new();
        if self.is_chat() && fault != Fault::NoChoices {
            events.push((self.chunk(index, json!({"role": "assistant", "content": ""}), None), 0));
        }
        let text = self.text();
        let reasoning = self.reasoning().map_or_else(Vec::new, tokens);
        let pieces =
            reasoning.into_iter().map(|t| (t, true)).chain(tokens(&text).into_iter().map(|t| (t, false)));
        for (token, reasons) in pieces {
            if fault == Fault::NoChoices {
                break;
            }
            events.push((self.piece(index, token, reasons), 1));
            if fault == Fault::ExtraChoices {
                events.push((self.piece(1, " else", false), 0));
            }
        }
        if fault == Fault::RepeatedText
            && let Some(at) = events.iter().rposition(|(_, tokens)| *tokens == 1)
        {
            events.insert(at, events[at].clone());
        }
        if let Some(call) = self.call() {
            events.push((self.chunk(index, json!({"tool_calls": [call]}), None), 0));
        }
        if fault != Fault::NoChoices {
            events.push((self.chunk(index, json!({}), Some(&self.written.finish)), 0));
        }
        if self.usage && self.body["stream_options"]["include_usage"] == true {
            let mut last =
                self.frame(if self.is_chat() { "chat.completion.chunk" } else { "text_completion" });
            last.insert("choices".into(), json!([]));
            last.insert("usage".into(), self.usage());
            events.push((Value::Object(last), 0));
        }
        let mut data: Vec<(Vec<u8>, u64)> = Vec::new();
        for (event, tokens) in events {
            let bytes = bytes_of(&event);
            if fault == Fault::Repeated && tokens == 0 {
                data.push((bytes.clone(), 0));
            }
            data.push((bytes, tokens));
        }
        let ends = if fault == Fault::Repeated { 2 } else { 1 };
        data.extend(std::iter::repeat_n((b"[DONE]".to_vec(), 0), ends));
        if fault == Fault::BadJson {
            let at = data.len() / 2;
            let half = data[at].0.len() / 2;
            data[at].0.truncate(half);
            data[at].0.push(b']');
        }
        data
    }

    fn piece(&self, index: i64, token: &str, reasons: bool) -> Value {
        let field = if reasons { "reasoning_content" } else { "content" };
        let mut chunk = self.chunk(index, json!({ field: token }), None);
        if !reasons {
            chunk["choices"][0]["logprobs"] = self.logprobs(&[token]);
        }
        if self.body["return_token_ids"] == true {
            chunk["choices"][0]["token_ids"] = json!([token_id(token)]);
        }
        chunk
    }

    fn chunk(&self, index: i64, delta: Value, finish: Option<&str>) -> Value {
        let mut frame = self.frame(if self.is_chat() { "chat.completion.chunk" } else { "text_completion" });
        let choice = if self.is_chat() {
            json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": finish})
        } else {
            let text = delta.get("content").cloned().unwrap_or_else(|| json!(""));
            json!({"index": index, "text": text, "logprobs": null, "finish_reason": finish})
        };
        frame.insert("choices".into(), json!([choice]));
        Value::Object(frame)
    }
}

//! Bodies of requests. The same request gives the same bytes.

use std::collections::VecDeque;

use serde_json::{Map, Value, json};
use stillroom_core::{Message, Role};

/// A seed is sent modulo 2^53: every JSON reader holds such a number exactly.
const SEED_BITS: u32 = 53;

/// What `POST …/chat/completions` is asked.
#[derive(Clone, Copy, Debug)]
pub struct ChatRequest<'a> {
    pub model: &'a str,
    /// The conversation; the tools of its first turn become the body's.
    pub messages: &'a [Message],
    pub max_tokens: usize,
    pub temperature: f64,
    pub top_p: f64,
    pub seed: Option<u64>,
    pub stream: bool,
    /// Asks for the log-probability of each token, and of this many others.
    pub top_logprobs: Option<u32>,
    /// Asks for token ids, which vLLM gives.
    pub return_token_ids: bool,
    /// Laid over the body last. With `max_completion_tokens` in it, `max_tokens` is not sent.
    pub extra: &'a Map<String, Value>,
}

/// What `POST …/completions` is asked.
#[derive(Clone, Copy, Debug)]
pub struct CompletionRequest<'a> {
    pub model: &'a str,
    pub prompt: PromptText<'a>,
    pub max_tokens: usize,
    pub temperature: f64,
    pub top_p: f64,
    pub seed: Option<u64>,
    pub stream: bool,
    /// Asks for the log-probability of each token, and of this many others.
    pub logprobs: Option<u32>,
    /// Asks for the prompt before the reply, with its log-probabilities.
    pub echo: bool,
    /// Asks for the prompt's log-probabilities in vLLM's way.
    pub prompt_logprobs: Option<u32>,
    /// Asks for token ids, which vLLM gives.
    pub return_token_ids: bool,
    /// Laid over the body last.
    pub extra: &'a Map<String, Value>,
}

/// A prompt of a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptText<'a> {
    Text(&'a str),
    TokenIds(&'a [u32]),
}

impl ChatRequest<'_> {
    /// The body as JSON, its fields in a fixed order.
    pub fn body(&self) -> Vec<u8> {
        let mut body = Map::new();
        body.insert("model".into(), json!(self.model));
        body.insert("messages".into(), json!(turns(self.messages)));
        let tools = self.messages.first().map_or(&[][..], |message| &message.tools);
        if !tools.is_empty() {
            body.insert("tools".into(), json!(tools));
        }
        if !self.extra.contains_key("max_completion_tokens") {
            body.insert("max_tokens".into(), json!(self.max_tokens));
        }
        sampling(&mut body, self.temperature, self.top_p, self.seed);
        if let Some(top) = self.top_logprobs {
            body.insert("logprobs".into(), json!(true));
            body.insert("top_logprobs".into(), json!(top));
        }
        ids(&mut body, self.return_token_ids);
        closed(body, self.stream, self.extra)
    }
}

impl CompletionRequest<'_> {
    /// The body as JSON, its fields in a fixed order.
    pub fn body(&self) -> Vec<u8> {
        let mut body = Map::new();
        body.insert("model".into(), json!(self.model));
        let prompt = match self.prompt {
            PromptText::Text(text) => json!(text),
            PromptText::TokenIds(ids) => json!(ids),
        };
        body.insert("prompt".into(), prompt);
        body.insert("max_tokens".into(), json!(self.max_tokens));
        sampling(&mut body, self.temperature, self.top_p, self.seed);
        if let Some(logprobs) = self.logprobs {
            body.insert("logprobs".into(), json!(logprobs));
        }
        if self.echo {
            body.insert("echo".into(), json!(true));
        }
        if let Some(logprobs) = self.prompt_logprobs {
            body.insert("prompt_logprobs".into(), json!(logprobs));
        }
        ids(&mut body, self.return_token_ids);
        closed(body, self.stream, self.extra)
    }
}

fn sampling(body: &mut Map<String, Value>, temperature: f64, top_p: f64, seed: Option<u64>) {
    body.insert("temperature".into(), json!(temperature));
    body.insert("top_p".into(), json!(top_p));
    if let Some(seed) = seed {
        body.insert("seed".into(), json!(seed % (1 << SEED_BITS)));
    }
}

fn ids(body: &mut Map<String, Value>, wanted: bool) {
    if wanted {
        body.insert("return_token_ids".into(), json!(true));
    }
}

fn closed(mut body: Map<String, Value>, stream: bool, extra: &Map<String, Value>) -> Vec<u8> {
    body.insert("stream".into(), json!(stream));
    if stream {
        body.insert("stream_options".into(), json!({ "include_usage": true }));
    }
    for (key, value) in extra {
        body.insert(key.clone(), value.clone());
    }
    serde_json::to_vec(&body).expect("JSON values can be written")
}

/// The turns as the interface has them. Calls without an id get one, and the tools' turns after them answer in order.
fn turns(messages: &[Message]) -> Vec<Value> {
    let mut calls = 0;
    let mut open = VecDeque::new();
    messages.iter().map(|message| turn(message, &mut calls, &mut open)).collect()
}

fn turn(message: &Message, calls: &mut usize, open: &mut VecDeque<String>) -> Value {
    let mut turn = Map::new();
    turn.insert("role".into(), json!(message.role));
    let has_calls = !message.tool_calls.is_empty();
    let content = if has_calls && message.content.is_empty() { Value::Null } else { json!(message.content) };
    turn.insert("content".into(), content);
    if let Some(reasoning) = &message.reasoning_content {
        turn.insert("reasoning_content".into(), json!(reasoning));
    }
    if has_calls {
        let written: Vec<Value> = message.tool_calls.iter().map(|call| call_of(call, calls, open)).collect();
        turn.insert("tool_calls".into(), Value::Array(written));
    }
    if message.role == Role::Tool {
        let id = match &message.tool_call_id {
            Some(id) => Some(id.clone()),
            None => open.front().cloned(),
        };
        if let Some(id) = id {
            open.retain(|waiting| *waiting != id);
            turn.insert("tool_call_id".into(), json!(id));
        }
    } else if let Some(id) = &message.tool_call_id {
        turn.insert("tool_call_id".into(), json!(id));
    }
    if let Some(name) = &message.name {
        turn.insert("name".into(), json!(name));
    }
    Value::Object(turn)
}

/// A call whose arguments are a string of JSON.
fn call_of(call: &Value, calls: &mut usize, open: &mut VecDeque<String>) -> Value {
    let number = *calls;
    *calls += 1;
    let id = call.get("id").and_then(Value::as_str).map_or_else(|| format!("call_{number}"), str::to_owned);
    open.push_back(id.clone());
    let function = call.get("function").unwrap_or(call);
    let arguments = match function.get("arguments") {
        None | Some(Value::Null) => "{}".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    };
    let name = function.get("name").cloned().unwrap_or_default();
    json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat<'a>(messages: &'a [Message], extra: &'a Map<String, Value>) -> ChatRequest<'a> {
        ChatRequest {
            model: "m",
            messages,
            max_tokens: 16,
            temperature: 0.5,
            top_p: 1.0,
            seed: Some(u64::MAX),
            stream: false,
            top_logprobs: None,
            return_token_ids: false,
            extra,
        }
    }

    fn text(body: Vec<u8>) -> String {
        String::from_utf8(body).expect("JSON is text")
    }

    #[test]
    fn a_chat_body_has_its_fields_in_a_fixed_order() {
        let messages = [Message::new(Role::System, "s"), Message::new(Role::User, "a\u{1b}\"")];
        let none = Map::new();
        let request = chat(&messages, &none);
        assert_eq!(
            text(request.body()),
            r#"{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":"a\u001b\""}],"max_tokens":16,"temperature":0.5,"top_p":1.0,"seed":9007199254740991,"stream":false}"#
        );
        let request = ChatRequest {
            stream: true,
            top_logprobs: Some(5),
            return_token_ids: true,
            seed: None,
            ..request
        };
        let body = text(request.body());
        assert!(body.ends_with(
            r#""top_p":1.0,"logprobs":true,"top_logprobs":5,"return_token_ids":true,"stream":true,"stream_options":{"include_usage":true}}"#
        ));
    }

    #[test]
    fn extra_keys_have_the_last_word() {
        let messages = [Message::new(Role::User, "q")];
        let Value::Object(extra) = json!({"top_p": 0.9, "max_completion_tokens": 7, "chat_template_kwargs": {"enable_thinking": false}})
        else {
            unreachable!("an object is written above")
        };
        let body: Value = serde_json::from_slice(&chat(&messages, &extra).body()).expect("JSON");
        assert_eq!(body["top_p"], 0.9);
        assert_eq!(body["chat_template_kwargs"]["enable_thinking"], false);
        assert_eq!((body.get("max_tokens"), &body["max_completion_tokens"]), (None, &json!(7)));
    }

    #[test]
    fn tool_calls_are_written_as_the_interface_has_them() {
        let lines = r#"[
            {"role":"user","content":"q","tools":[{"type":"function","function":{"name":"f"}}]},
            {"role":"assistant","content":null,"reasoning_content":"why","tool_calls":[
                {"type":"function","function":{"name":"f","arguments":"{\"a\": 1}"}},
                {"name":"g","arguments":{}}]},
            {"role":"tool","content":"1"},
            {"role":"tool","content":"2"}]"#;
        let messages: Vec<Message> = serde_json::from_str(lines).expect("a conversation");
        let none = Map::new();
        let body: Value = serde_json::from_slice(&chat(&messages, &none).body()).expect("JSON");
        assert_eq!(body["tools"], json!([{"type": "function", "function": {"name": "f"}}]));
        assert_eq!(body["messages"][0], json!({"role": "user", "content": "q"}));
        let call = |n: &str, name: &str, arguments: &str| json!({"id": n, "type": "function", "function": {"name": name, "arguments": arguments}});
        assert_eq!(
            body["messages"][1],
            json!({"role": "assistant", "content": null, "reasoning_content": "why",
                   "tool_calls": [call("call_0", "f", r#"{"a":1}"#), call("call_1", "g", "{}")]})
        );
        assert_eq!(body["messages"][2]["tool_call_id"], "call_0");
        assert_eq!(body["messages"][3]["tool_call_id"], "call_1");
    }

    #[test]
    fn a_completion_takes_text_or_ids() {
        let none = Map::new();
        let request = CompletionRequest {
            model: "m",
            prompt: PromptText::TokenIds(&[1, 2]),
            max_tokens: 1,
            temperature: 0.0,
            top_p: 1.0,
            seed: Some(3),
            stream: false,
            logprobs: Some(1),
            echo: true,
            prompt_logprobs: Some(2),
            return_token_ids: false,
            extra: &none,
        };
        assert_eq!(
            text(request.body()),
            r#"{"model":"m","prompt":[1,2],"max_tokens":1,"temperature":0.0,"top_p":1.0,"seed":3,"logprobs":1,"echo":true,"prompt_logprobs":2,"stream":false}"#
        );
        let request = CompletionRequest { prompt: PromptText::Text("x"), echo: false, ..request };
        assert!(text(request.body()).contains(r#""prompt":"x","max_tokens":1"#));
        let request = CompletionRequest { stream: true, return_token_ids: true, ..request };
        let end = r#""prompt_logprobs":2,"return_token_ids":true,"stream":true,"stream_options":{"include_usage":true}}"#;
        assert!(text(request.body()).ends_with(end));
    }
}

//! A turn as data sets and interfaces write it.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Message, Role};

/// What a [`Message`] is read from. Other fields are left alone.
#[derive(Deserialize)]
pub(super) struct Written {
    role: Role,
    content: Option<String>,
    #[serde(default, alias = "reasoning", alias = "thinking")]
    reasoning_content: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<Value>>,
    /// OpenAI's form before `tool_calls`.
    #[serde(default)]
    function_call: Option<Value>,
    #[serde(default)]
    tool_call_id: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    tools: Option<Vec<Value>>,
}

/// A turn that cannot be.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotATurn {
    #[error("`content` is not a string, and there are no tool calls")]
    NoContent,
    #[error("`tool_calls` in a turn that is not the assistant's")]
    NotItsCalls,
    #[error("a tool call without a function's name")]
    Nameless,
}

impl TryFrom<Written> for Message {
    type Error = NotATurn;

    fn try_from(written: Written) -> Result<Message, NotATurn> {
        let former = written.function_call.map(|function| json!({"type": "function", "function": function}));
        let tool_calls: Vec<Value> = written.tool_calls.into_iter().flatten().chain(former).collect();
        if !tool_calls.is_empty() && written.role != Role::Assistant {
            return Err(NotATurn::NotItsCalls);
        }
        let content = match written.content {
            Some(content) => content,
            None if tool_calls.is_empty() => return Err(NotATurn::NoContent),
            None => String::new(),
        };
        Ok(Message {
            role: written.role,
            content,
            reasoning_content: written.reasoning_content,
            tool_calls: tool_calls.into_iter().map(with_arguments).collect::<Result<_, _>>()?,
            tool_call_id: written.tool_call_id,
            name: written.name,
            tools: written.tools.unwrap_or_default(),
        })
    }
}

/// The call with its arguments as an object. OpenAI's interface writes them as a string of JSON, while templates write
/// JSON of what they are given, which would make it a string within a string.
fn with_arguments(mut call: Value) -> Result<Value, NotATurn> {
    let function = if call.get("function").is_some() { &mut call["function"] } else { &mut call };
    if !function.get("name").is_some_and(Value::is_string) {
        return Err(NotATurn::Nameless);
    }
    if let Some(text) = function.get("arguments").and_then(Value::as_str)
        && let Ok(object @ Value::Object(_)) = serde_json::from_str(text)
    {
        function["arguments"] = object;
    }
    Ok(call)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Message, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn calls_are_read_in_each_form_and_written_as_one() {
        let call = json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": [2]}}});
        let openai = r#"{"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"b\": 1, \"a\": [2]}"}}]}"#;
        let message = read(openai).expect("a turn");
        assert_eq!((message.content.as_str(), &message.tool_calls), ("", &vec![call.clone()]));
        assert!(message.uses_tools());
        let written = serde_json::to_string(&message).expect("JSON");
        assert_eq!(read(&written).expect("a turn"), message, "{written}");
        assert!(written.contains(r#"{"b":1,"a":[2]}"#), "keys keep their order: {written}");
        let former = read(
            r#"{"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "not JSON"}}"#,
        );
        let kept = json!({"type": "function", "function": {"name": "f", "arguments": "not JSON"}});
        assert_eq!(former.expect("a turn").tool_calls, vec![kept]);
        let answer =
            read(r#"{"role": "tool", "content": "18", "tool_call_id": "1", "name": "f"}"#).expect("a turn");
        assert_eq!((answer.tool_call_id.as_deref(), answer.name.as_deref()), (Some("1"), Some("f")));
    }

    #[test]
    fn a_plain_turn_is_written_as_before() {
        let plain = r#"{"role":"assistant","content":"a","reasoning_content":"b"}"#;
        let message =
            read(r#"{"role":"assistant","content":"a","thinking":"b","tool_calls":null,"weight":1}"#);
        let message = message.expect("a turn");
        assert!(!message.uses_tools());
        assert_eq!(serde_json::to_string(&message).expect("JSON"), plain);
    }

    #[test]
    fn turns_that_cannot_be_are_refused() {
        for (text, expected) in [
            (r#"{"role": "assistant", "content": null}"#, "no tool calls"),
            (r#"{"role": "assistant", "content": null, "tool_calls": []}"#, "no tool calls"),
            (r#"{"role": "user", "content": "a", "tool_calls": [{"name": "f"}]}"#, "not the assistant's"),
            (
                r#"{"role": "assistant", "content": "", "tool_calls": [{"function": {}}]}"#,
                "without a function's name",
            ),
            (r#"{"role": "assistant", "content": "", "tool_calls": [3]}"#, "without a function's name"),
        ] {
            let error = read(text).expect_err("no turn").to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}

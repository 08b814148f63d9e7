//! The shapes that one JSON row can have.
//!
//! | keys | becomes |
//! |---|---|
//! | `messages` | a prompt; a last assistant turn is its target |
//! | `prompt` (text or messages), perhaps `completion` | a prompt; the completion is its target |
//! | `question`, `answer` | a prompt; the worked answer is its target, what follows `####` its answer |
//! | `text` | a text |
//!
//! `id` (text or whole number) and, for prompts, `answer` (text or number) may stand beside them; so may `tools`, a list
//! of JSON schemas or the same as text, for the rows with messages or a prompt. What a row says of its source is read by
//! [`Origin::of`].

use serde_json::{Map, Value};
use stillroom_core::{Message, Prompt, Role};

use super::Item;
use crate::error::RowProblem;
use crate::sources::Origin;

/// Longest id.
pub const ID_BYTES_MAX: usize = 256;
/// Most turns of one conversation.
const MESSAGES_MAX: usize = 1024;

pub(super) fn read(
    line: &str,
    class_field: Option<&str>,
    default_id: impl FnOnce() -> String,
) -> Result<(Item, Origin), RowProblem> {
    let Value::Object(row) = serde_json::from_str(line)? else {
        return Err(RowProblem::NotAnObject);
    };
    of_fields(row, class_field, default_id)
}

/// The same of a row that has been parted into its fields.
pub(super) fn of_fields(
    row: Map<String, Value>,
    class_field: Option<&str>,
    default_id: impl FnOnce() -> String,
) -> Result<(Item, Origin), RowProblem> {
    let class = class_field.and_then(|field| class(row.get(field)?));
    let origin = Origin { class, ..Origin::of(&row) };
    Ok((item(row, default_id)?, origin))
}

/// The fields that rows are read for.
pub(super) const FIELDS: [&str; 16] = [
    "id",
    "messages",
    "prompt",
    "completion",
    "question",
    "answer",
    "text",
    "tools",
    "functions",
    "source",
    "licence",
    "license",
    "robots",
    "tdm",
    "tdm_reservation",
    "tdm-reservation",
];

/// A value as the name of a class; nothing, and an empty text, is none.
fn class(value: &Value) -> Option<String> {
    let name = match value {
        Value::Null => return None,
        Value::String(text) => text.trim().to_owned(),
        other => other.to_string(),
    };
    (!name.is_empty()).then_some(name)
}

fn item(mut row: Map<String, Value>, default_id: impl FnOnce() -> String) -> Result<Item, RowProblem> {
    let id = read_id(&row)?.unwrap_or_else(default_id);
    if row.contains_key("messages") {
        let messages = read_messages(row.remove("messages"), "messages")?;
        return prompt("messages", id, with_tools(messages, &mut row)?, None, read_answer(&row)?);
    }
    if let Some(value) = row.remove("prompt") {
        let messages = match value {
            Value::String(text) => vec![Message::new(Role::User, text)],
            other => read_messages(Some(other), "prompt")?,
        };
        let target = read_completion(row.remove("completion"))?;
        return prompt("prompt", id, with_tools(messages, &mut row)?, target, read_answer(&row)?);
    }
    if row.contains_key("question") && row.contains_key("answer") {
        let question = text(row.remove("question"), "question")?;
        let worked = text(row.remove("answer"), "answer")?;
        let answer =
            worked.rsplit_once("####").map_or(worked.as_str(), |(_, answer)| answer).trim().to_string();
        let target = Message::new(Role::Assistant, without_calculator_marks(&worked));
        return prompt("question", id, vec![Message::new(Role::User, question)], Some(target), Some(answer));
    }
    if let Some(value) = row.remove("text") {
        return Ok(Item::Text { id, text: text(Some(value), "text")? });
    }
    Err(RowProblem::UnknownShape)
}

fn prompt(
    field: &'static str,
    id: String,
    mut messages: Vec<Message>,
    mut target: Option<Message>,
    answer: Option<String>,
) -> Result<Item, RowProblem> {
    let bad = |problem| Err(RowProblem::BadField { field, problem });
    if target.is_none() && messages.last().is_some_and(|message| message.role == Role::Assistant) {
        target = messages.pop();
    }
    match messages.last() {
        None => bad("without a question"),
        Some(last) if last.role == Role::Assistant => bad("not a question at its end"),
        Some(last) if last.content.trim().is_empty() && last.role != Role::Tool => bad("empty at its end"),
        Some(_) => Ok(Item::Prompt(Prompt { id, messages, answer, target })),
    }
}

fn read_id(row: &Map<String, Value>) -> Result<Option<String>, RowProblem> {
    let bad = |problem| Err(RowProblem::BadField { field: "id", problem });
    let id = match row.get("id") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(id)) => id.clone(),
        Some(Value::Number(id)) if !id.is_f64() => id.to_string(),
        Some(_) => return bad("neither text nor a whole number"),
    };
    match id.as_str() {
        "" => bad("empty"),
        _ if id.len() > ID_BYTES_MAX => bad("longer than 256 bytes"),
        _ if id.chars().any(char::is_control) => bad("not printable"),
        _ => Ok(Some(id)),
    }
}

fn read_messages(value: Option<Value>, field: &'static str) -> Result<Vec<Message>, RowProblem> {
    let bad = |problem| Err(RowProblem::BadField { field, problem });
    match value {
        Some(Value::Array(turns)) if turns.len() > MESSAGES_MAX => bad("longer than 1,024 turns"),
        Some(Value::Array(turns)) => turns
            .into_iter()
            .map(|turn| serde_json::from_value(turn).map_err(RowProblem::NotAMessage))
            .collect(),
        _ => bad("no list of messages"),
    }
}

/// The conversation, whose first turn offers the row's tools. `functions`, the older name, is read as well.
fn with_tools(mut messages: Vec<Message>, row: &mut Map<String, Value>) -> Result<Vec<Message>, RowProblem> {
    for field in ["tools", "functions"] {
        let bad = RowProblem::BadField { field, problem: "no list of tools" };
        let value = match row.remove(field) {
            Some(Value::String(text)) if !text.trim().is_empty() => serde_json::from_str(&text).ok(),
            None | Some(Value::Null | Value::String(_)) => continue,
            other => other,
        };
        let Some(Value::Array(tools)) = value else { return Err(bad) };
        if !tools.iter().all(Value::is_object) {
            return Err(bad);
        }
        if let Some(first) = messages.first_mut()
            && !tools.is_empty()
        {
            first.tools = tools;
        }
    }
    Ok(messages)
}

fn read_completion(value: Option<Value>) -> Result<Option<Message>, RowProblem> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(Message::new(Role::Assistant, text))),
        other => match <[Message; 1]>::try_from(read_messages(other, "completion")?) {
            Ok([turn]) if turn.role == Role::Assistant => Ok(Some(turn)),
            _ => Err(RowProblem::BadField { field: "completion", problem: "not one assistant turn" }),
        },
    }
}

fn read_answer(row: &Map<String, Value>) -> Result<Option<String>, RowProblem> {
    match row.get("answer") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(answer)) => Ok(Some(answer.clone())),
        Some(Value::Number(answer)) => Ok(Some(answer.to_string())),
        Some(_) => Err(RowProblem::BadField { field: "answer", problem: "neither text nor a number" }),
    }
}

fn text(value: Option<Value>, field: &'static str) -> Result<String, RowProblem> {
    match value {
        Some(Value::String(text)) if text.trim().is_empty() => {
            Err(RowProblem::BadField { field, problem: "empty" })
        }
        Some(Value::String(text)) => Ok(text),
        _ => Err(RowProblem::BadField { field, problem: "no text" }),
    }
}

/// GSM8K's worked answers hold marks for a calculator, `<<16-3-4=9>>`, that nobody would write.
fn without_calculator_marks(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("<<") {
        let Some((_, behind)) = after.split_once(">>") else { break };
        plain.push_str(before);
        rest = behind;
    }
    plain + rest
}

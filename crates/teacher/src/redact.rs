//! The key that a service was given, taken out of what the service says: some repeat it.

use serde_json::Value;
use stillroom_formats::openai::{Finish, Reply};
use stillroom_net::Secret;

/// Bytes of a key's beginning that are taken out of an error, which may have been cut short.
const BEGINNING_BYTES: usize = 8;
/// Shorter keys (`EMPTY`, `lm-studio`) are no secrets, and words that a teacher may use.
const KEY_BYTES_MIN: usize = 12;

/// An error's words without the key and without its beginning.
pub(crate) fn in_error(text: String, key: Option<&Secret>) -> String {
    key.map(|key| key.hidden_in(&text, BEGINNING_BYTES)).unwrap_or(text)
}

/// A reply without the key, wherever it stands.
pub(crate) fn in_reply(reply: Reply, key: Option<&Secret>) -> Reply {
    let Some(key) = key.filter(|key| key.len() >= KEY_BYTES_MIN && holds(&reply, key)) else { return reply };
    let mut value = serde_json::to_value(&reply).expect("a reply is plain data");
    hide(&mut value, key);
    serde_json::from_value(value).expect("text stays text")
}

fn holds(reply: &Reply, key: &Secret) -> bool {
    let finish = match &reply.finish {
        Finish::Other(name) => Some(name),
        _ => None,
    };
    let texts = [
        reply.id.as_ref(),
        reply.model.as_ref(),
        Some(&reply.content),
        reply.reasoning_content.as_ref(),
        finish,
    ];
    let tokens = reply.logprobs.iter().flatten();
    let prompt = reply.prompt_logprobs.iter().flatten().flatten().flatten();
    texts.into_iter().flatten().any(|text| key.is_in(text))
        || reply.tool_calls.iter().any(|call| value_holds(call, key))
        || tokens
            .flat_map(|token| token.top.iter().map(|(text, ..)| text).chain([&token.token]))
            .any(|t| key.is_in(t))
        || prompt.filter_map(|token| token.token.as_ref()).any(|text| key.is_in(text))
}

/// Nesting is what the reader of replies lets through.
fn value_holds(value: &Value, key: &Secret) -> bool {
    match value {
        Value::String(text) => key.is_in(text),
        Value::Array(items) => items.iter().any(|item| value_holds(item, key)),
        Value::Object(fields) => fields.iter().any(|(name, item)| key.is_in(name) || value_holds(item, key)),
        _ => false,
    }
}

fn hide(value: &mut Value, key: &Secret) {
    match value {
        Value::String(text) => *text = key.hidden_in(text, key.len()),
        Value::Array(items) => items.iter_mut().for_each(|item| hide(item, key)),
        Value::Object(fields) => {
            let all = std::mem::take(fields).into_iter().map(|(name, mut item)| {
                hide(&mut item, key);
                (key.hidden_in(&name, key.len()), item)
            });
            *fields = all.collect();
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_taken_out_of_every_field_and_nothing_else_changes() {
        let key = Secret::new("canary-in-the-cellar");
        let said = r#"{"id":"canary-in-the-cellar","model":"m","choices":[{"index":0,"finish_reason":"canary-in-the-cellar",
            "message":{"content":"a canary-in-the-cellar, a canary-in-the","tool_calls":[{"id":"x","type":"function",
            "function":{"name":"f","arguments":"{\"canary-in-the-cellar\": [\"canary-in-the-cellar\"]}"}}]}}]}"#;
        let reply = stillroom_formats::openai::read_reply(said.as_bytes()).expect("a reply");
        let clean = in_reply(reply.clone(), Some(&key));
        assert!(!serde_json::to_string(&clean).unwrap().contains("canary-in-the-cellar"));
        assert_eq!(clean.content, "a [redacted], a canary-in-the", "a part of it is a word");
        assert_eq!((&clean.model, clean.pieces), (&reply.model, reply.pieces));
        let other = Secret::new("another-key-of-ours");
        assert_eq!(in_reply(reply.clone(), Some(&other)), reply);
        assert_eq!(in_reply(reply.clone(), Some(&Secret::new("canary"))), reply, "too short to be a secret");
    }

    #[test]
    fn an_error_that_was_cut_amid_a_key_loses_what_is_left_of_it() {
        let key = Secret::new("canary-in-the-cellar");
        let said = in_error("bad key canary-in-the-cellar and canary-in-th".to_owned(), Some(&key));
        assert_eq!(said, "bad key [redacted] and [redacted]");
        assert_eq!(in_error("a canary".to_owned(), None), "a canary");
    }
}

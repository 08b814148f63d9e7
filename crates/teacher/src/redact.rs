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
pub(crate) fn in_reply(mut reply: Reply, key: Option<&Secret>) -> Reply {
    let Some(key) = key.filter(|key| key.len() >= KEY_BYTES_MIN) else { return reply };
    hide(&mut reply.content, key);
    for text in [&mut reply.id, &mut reply.model, &mut reply.reasoning_content].into_iter().flatten() {
        hide(text, key);
    }
    if let Finish::Other(name) = &mut reply.finish {
        hide(name, key);
    }
    reply.tool_calls.iter_mut().for_each(|call| hide_in(call, key));
    for token in reply.logprobs.iter_mut().flatten() {
        hide_token(&mut token.token, &mut token.bytes, key);
        token.top.iter_mut().for_each(|(text, bytes, _)| hide_token(text, bytes, key));
    }
    for token in reply.prompt_logprobs.iter_mut().flatten().flatten().flatten() {
        token.token.iter_mut().for_each(|text| hide(text, key));
    }
    reply
}

fn hide(text: &mut String, key: &Secret) {
    if key.is_in(text) {
        *text = key.hidden_in(text, key.len());
    }
}

fn hide_token(text: &mut String, bytes: &mut Option<Vec<u8>>, key: &Secret) {
    if key.is_in(text) {
        *bytes = None;
        hide(text, key);
    }
}

/// Nesting is what the reader of replies lets through.
fn hide_in(value: &mut Value, key: &Secret) {
    match value {
        Value::String(text) => hide(text, key),
        Value::Array(items) => items.iter_mut().for_each(|item| hide_in(item, key)),
        Value::Object(fields) => {
            fields.values_mut().for_each(|item| hide_in(item, key));
            if fields.keys().any(|name| key.is_in(name)) {
                let all = std::mem::take(fields).into_iter();
                *fields = all.map(|(name, item)| (key.hidden_in(&name, key.len()), item)).collect();
            }
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
        let named_like_a_field = Secret::new("reasoning_content");
        assert_eq!(in_reply(reply.clone(), Some(&named_like_a_field)), reply);
    }

    #[test]
    fn an_error_that_was_cut_amid_a_key_loses_what_is_left_of_it() {
        let key = Secret::new("canary-in-the-cellar");
        let said = in_error("bad key canary-in-the-cellar and canary-in-th".to_owned(), Some(&key));
        assert_eq!(said, "bad key [redacted] and [redacted]");
        assert_eq!(in_error("a canary".to_owned(), None), "a canary");
    }
}

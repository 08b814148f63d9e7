//! Replies as they stand in JSON, read leniently and without taking memory for what nobody looks at.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::fault::ReplyFault;

/// Choices of one reply or chunk; one was asked for.
const CHOICES_MAX: usize = 128;
/// Calls of one turn.
pub(super) const TOOL_CALLS_MAX: usize = 128;
/// Tokens of one reply with log-probabilities or ids.
pub(super) const TOKENS_MAX: usize = 1 << 20;
/// Alternatives of one token.
const TOP_MAX: usize = 1 << 10;
/// Bytes of one token.
const TOKEN_BYTES_MAX: usize = 1 << 10;

/// A whole reply, or a chunk of a stream, of either interface.
#[derive(Deserialize)]
pub(super) struct Body {
    pub(super) id: Option<String>,
    pub(super) model: Option<String>,
    #[serde(default, deserialize_with = "capped_option::<_, _, CHOICES_MAX>")]
    pub(super) choices: Option<Vec<Choice>>,
    pub(super) usage: Option<UsageWire>,
    pub(super) error: Option<ErrorWire>,
    /// Of an error without an `error`.
    pub(super) message: Option<ErrorWire>,
    pub(super) detail: Option<ErrorWire>,
    #[serde(default, deserialize_with = "capped_option::<_, _, TOKENS_MAX>")]
    pub(super) prompt_logprobs: Option<Vec<Option<Alternatives>>>,
    #[serde(default, deserialize_with = "capped_option::<_, _, TOKENS_MAX>")]
    pub(super) prompt_token_ids: Option<Vec<u32>>,
}

#[derive(Deserialize)]
pub(super) struct Choice {
    pub(super) index: Option<i64>,
    pub(super) message: Option<Turn>,
    pub(super) delta: Option<Turn>,
    pub(super) text: Option<String>,
    pub(super) finish_reason: Option<String>,
    pub(super) logprobs: Option<Logprobs>,
    #[serde(default, deserialize_with = "capped_option::<_, _, TOKENS_MAX>")]
    pub(super) token_ids: Option<Vec<u32>>,
    #[serde(default, deserialize_with = "capped_option::<_, _, TOKENS_MAX>")]
    pub(super) prompt_token_ids: Option<Vec<u32>>,
    #[serde(default, deserialize_with = "capped_option::<_, _, TOKENS_MAX>")]
    pub(super) prompt_logprobs: Option<Vec<Option<Alternatives>>>,
}

#[derive(Default, Deserialize)]
pub(super) struct Turn {
    #[serde(default)]
    pub(super) content: Blocks,
    #[serde(default)]
    pub(super) reasoning_content: Blocks,
    #[serde(default)]
    pub(super) reasoning: Blocks,
    #[serde(default)]
    pub(super) thinking: Blocks,
    pub(super) refusal: Option<String>,
    #[serde(default, deserialize_with = "capped_option::<_, _, TOOL_CALLS_MAX>")]
    pub(super) tool_calls: Option<Vec<Call>>,
}

#[derive(Deserialize)]
pub(super) struct Call {
    pub(super) index: Option<u64>,
    pub(super) id: Option<String>,
    pub(super) function: Option<Function>,
}

#[derive(Deserialize)]
pub(super) struct Function {
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) arguments: Arguments,
}

/// Log-probabilities in the form of either interface.
#[derive(Deserialize)]
pub(super) struct Logprobs {
    #[serde(default, deserialize_with = "capped_option::<_, _, TOKENS_MAX>")]
    pub(super) content: Option<Vec<Token>>,
    #[serde(default, deserialize_with = "capped_option::<_, _, TOKENS_MAX>")]
    pub(super) tokens: Option<Vec<String>>,
    #[serde(default, deserialize_with = "capped_option::<_, _, TOKENS_MAX>")]
    pub(super) token_logprobs: Option<Vec<Option<f64>>>,
    #[serde(default, deserialize_with = "capped_option::<_, _, TOKENS_MAX>")]
    pub(super) top_logprobs: Option<Vec<Option<Pairs<f64>>>>,
}

#[derive(Deserialize)]
pub(super) struct Token {
    pub(super) token: String,
    pub(super) id: Option<u32>,
    pub(super) logprob: Option<f64>,
    #[serde(default, deserialize_with = "capped_option::<_, _, TOKEN_BYTES_MAX>")]
    pub(super) bytes: Option<Vec<u8>>,
    #[serde(default, deserialize_with = "capped_option::<_, _, TOP_MAX>")]
    pub(super) top_logprobs: Option<Vec<Top>>,
}

#[derive(Deserialize)]
pub(super) struct Top {
    pub(super) token: String,
    pub(super) logprob: f64,
    #[serde(default, deserialize_with = "capped_option::<_, _, TOKEN_BYTES_MAX>")]
    pub(super) bytes: Option<Vec<u8>>,
}

/// vLLM's alternatives of a prompt's token, by id.
pub(super) type Alternatives = Pairs<Alternative>;

#[derive(Deserialize)]
pub(super) struct Alternative {
    pub(super) logprob: f64,
    pub(super) rank: Option<u32>,
    pub(super) decoded_token: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct UsageWire {
    pub(super) prompt_tokens: Option<Count>,
    pub(super) completion_tokens: Option<Count>,
    pub(super) prompt_cache_hit_tokens: Option<Count>,
    pub(super) prompt_tokens_details: Option<PromptDetails>,
    pub(super) completion_tokens_details: Option<CompletionDetails>,
}

#[derive(Deserialize)]
pub(super) struct PromptDetails {
    pub(super) cached_tokens: Option<Count>,
}

#[derive(Deserialize)]
pub(super) struct CompletionDetails {
    pub(super) reasoning_tokens: Option<Count>,
}

/// A whole number, which some servers write as `12.0`.
pub(super) struct Count(pub(super) u64);

/// Text, or a list of blocks of text and thinking.
#[derive(Default)]
pub(super) struct Blocks {
    pub(super) text: String,
    pub(super) thinking: String,
}

/// A call's arguments as JSON text: a string of JSON, or the JSON itself, as some servers write it. Values are never
/// built: they would take many times the memory of their text.
#[derive(Default)]
pub(super) struct Arguments(pub(super) String);

/// An object as a list, in its order.
pub(super) struct Pairs<T>(pub(super) Vec<(String, T)>);

/// An error in any of the shapes that servers give it.
#[derive(Default)]
pub(super) struct ErrorWire {
    pub(super) message: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) code: Option<String>,
}

impl ErrorWire {
    pub(super) fn is_empty(&self) -> bool {
        self.message.is_none() && self.kind.is_none() && self.code.is_none()
    }

    fn or(self, other: ErrorWire) -> ErrorWire {
        ErrorWire {
            message: self.message.or(other.message),
            kind: self.kind.or(other.kind),
            code: self.code.or(other.code),
        }
    }

    fn text(text: &str) -> ErrorWire {
        ErrorWire { message: Some(text.to_owned()), ..ErrorWire::default() }
    }
}

/// Reads JSON text. Lone surrogates, which no UTF-8 can hold, become U+FFFD as they do everywhere on the web.
pub(super) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ReplyFault> {
    if let Err(error) = std::str::from_utf8(bytes) {
        return Err(ReplyFault::NotUtf8 { offset: error.valid_up_to() as u64 });
    }
    serde_json::from_slice(&without_lone_surrogates(bytes)).map_err(|error| ReplyFault::of_json(&error))
}

/// JSON in which each `\uD800`…`\uDFFF` without its other half is `\uFFFD`.
fn without_lone_surrogates(json: &[u8]) -> Cow<'_, [u8]> {
    let mut out: Option<Vec<u8>> = None;
    let mut at = 0;
    while let Some(found) = json[at..].iter().position(|&b| b == b'\\') {
        at += found;
        at = match surrogate(json, at) {
            None => at + 2,
            Some(0xd800..=0xdbff) if matches!(surrogate(json, at + 6), Some(0xdc00..=0xdfff)) => at + 12,
            Some(_) => {
                out.get_or_insert_with(|| json.to_vec())[at + 2..at + 6].copy_from_slice(b"fffd");
                at + 6
            }
        };
        if at >= json.len() {
            break;
        }
    }
    out.map_or(Cow::Borrowed(json), Cow::Owned)
}

/// The surrogate whose escape begins at `at`.
fn surrogate(json: &[u8], at: usize) -> Option<u16> {
    let hex = json.get(at..at + 6)?.strip_prefix(b"\\u")?;
    let text = std::str::from_utf8(hex).ok().filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()))?;
    u16::from_str_radix(text, 16).ok().filter(|code| (0xd800..=0xdfff).contains(code))
}

/// A list of at most `MAX`, or null.
fn capped_option<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct List<T, const MAX: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for List<T, MAX> {
        type Value = Option<Vec<T>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MAX}")
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut items = Vec::new();
            while let Some(item) = list.next_element()? {
                if items.len() == MAX {
                    return Err(A::Error::custom(format_args!("a list of more than {MAX}")));
                }
                items.push(item);
            }
            Ok(Some(items))
        }
    }

    deserializer.deserialize_any(List::<T, MAX>(PhantomData))
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Count, D::Error> {
        struct Whole;

        impl Visitor<'_> for Whole {
            type Value = Count;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a count")
            }

            fn visit_u64<E: Error>(self, n: u64) -> Result<Count, E> {
                Ok(Count(n))
            }

            fn visit_f64<E: Error>(self, n: f64) -> Result<Count, E> {
                let whole = n >= 0.0 && n.fract() == 0.0 && n < 9e15;
                if whole { Ok(Count(n as u64)) } else { Err(E::custom("a count is not a whole number")) }
            }
        }

        deserializer.deserialize_any(Whole)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pairs<T>, D::Error> {
        struct Object<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
            type Value = Pairs<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<T>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    if pairs.len() == TOP_MAX {
                        return Err(A::Error::custom(format_args!("more than {TOP_MAX} alternatives")));
                    }
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(Object(PhantomData))
    }
}

impl<'de> Deserialize<'de> for Blocks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Blocks, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Blocks;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text or blocks of text")
            }

            fn visit_unit<E: Error>(self) -> Result<Blocks, E> {
                Ok(Blocks::default())
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Blocks, E> {
                self.visit_string(text.to_owned())
            }

            fn visit_string<E: Error>(self, text: String) -> Result<Blocks, E> {
                Ok(Blocks { text, thinking: String::new() })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Blocks, A::Error> {
                let mut all = Blocks::default();
                while let Some(block) = list.next_element::<Blocks>()? {
                    all.text.push_str(&block.text);
                    all.thinking.push_str(&block.thinking);
                }
                Ok(all)
            }

            /// One block: `{"type": "text", "text": …}` or `{"type": "thinking", "thinking": …}`.
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Blocks, A::Error> {
                let mut all = Blocks::default();
                while let Some(key) = map.next_key::<Cow<'_, str>>()? {
                    match key.as_ref() {
                        "text" | "content" => {
                            let inner = map.next_value::<Blocks>()?;
                            all.text.push_str(&inner.text);
                            all.thinking.push_str(&inner.thinking);
                        }
                        "thinking" | "reasoning" | "reasoning_content" => {
                            let inner = map.next_value::<Blocks>()?;
                            all.thinking.push_str(&inner.thinking);
                            all.thinking.push_str(&inner.text);
                        }
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(all)
            }
        }

        deserializer.deserialize_any(Any)
    }
}

impl<'de> Deserialize<'de> for Arguments {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Arguments, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Arguments;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("arguments")
            }

            fn visit_unit<E: Error>(self) -> Result<Arguments, E> {
                Ok(Arguments::default())
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Arguments, E> {
                Ok(Arguments(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Arguments, A::Error> {
                Rewritten.visit_seq(list).map(|json| Arguments(json.0))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Arguments, A::Error> {
                Rewritten.visit_map(map).map(|json| Arguments(json.0))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

/// A value as it would be written.
struct Json(String);

struct Rewritten;

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(Rewritten)
    }
}

impl<'de> Visitor<'de> for Rewritten {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Json, E> {
        Ok(Json("null".to_owned()))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Json, E> {
        Ok(Json(value.to_string()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Json, E> {
        Ok(Json(value.to_string()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Json, E> {
        Ok(Json(value.to_string()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Json, E> {
        serde_json::to_string(&value).map(Json).map_err(E::custom)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Json, E> {
        serde_json::to_string(text).map(Json).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        let mut out = "[".to_owned();
        while let Some(Json(item)) = list.next_element()? {
            if out.len() > 1 {
                out.push(',');
            }
            out.push_str(&item);
        }
        out.push(']');
        Ok(Json(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut out = "{".to_owned();
        while let Some((Json(key), Json(value))) = map.next_entry()? {
            if out.len() > 1 {
                out.push(',');
            }
            out.push_str(&key);
            out.push(':');
            out.push_str(&value);
        }
        out.push('}');
        Ok(Json(out))
    }
}

impl<'de> Deserialize<'de> for ErrorWire {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ErrorWire, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = ErrorWire;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an error")
            }

            fn visit_unit<E: Error>(self) -> Result<ErrorWire, E> {
                Ok(ErrorWire::default())
            }

            fn visit_bool<E: Error>(self, _: bool) -> Result<ErrorWire, E> {
                Ok(ErrorWire::default())
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<ErrorWire, E> {
                Ok(ErrorWire::text(text))
            }

            fn visit_u64<E: Error>(self, n: u64) -> Result<ErrorWire, E> {
                Ok(ErrorWire::text(&n.to_string()))
            }

            fn visit_i64<E: Error>(self, n: i64) -> Result<ErrorWire, E> {
                Ok(ErrorWire::text(&n.to_string()))
            }

            fn visit_f64<E: Error>(self, n: f64) -> Result<ErrorWire, E> {
                Ok(ErrorWire::text(&n.to_string()))
            }

            /// Of several, the first.
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<ErrorWire, A::Error> {
                let first = list.next_element::<ErrorWire>()?.unwrap_or_default();
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(first)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ErrorWire, A::Error> {
                let mut own = ErrorWire::default();
                let mut inner = ErrorWire::default();
                while let Some(key) = map.next_key::<Cow<'_, str>>()? {
                    match key.as_ref() {
                        "message" | "msg" => {
                            own.message = map.next_value::<ErrorWire>()?.message.or(own.message)
                        }
                        "type" => own.kind = map.next_value::<ErrorWire>()?.message,
                        "code" => own.code = map.next_value::<ErrorWire>()?.message,
                        "error" | "detail" => inner = map.next_value::<ErrorWire>()?.or(inner),
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(inner.or(own))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repaired(json: &str) -> String {
        String::from_utf8(without_lone_surrogates(json.as_bytes()).into_owned()).expect("text")
    }

    #[test]
    fn lone_surrogates_become_replacement_characters() {
        assert_eq!(repaired(r#""\ud83d\ude00""#), r#""\ud83d\ude00""#);
        assert_eq!(repaired(r#""\ud83d""#), r#""\ufffd""#);
        assert_eq!(repaired(r#""\uDE00\ud83d""#), r#""\ufffd\ufffd""#);
        assert_eq!(repaired(r#""\ud83d\ud83d\ude00""#), r#""\ufffd\ud83d\ude00""#);
        assert_eq!(repaired(r#""\\ud83d""#), r#""\\ud83d""#, "a backslash and letters");
        assert_eq!(repaired(r#""\ud8"#), r#""\ud8"#);
        assert_eq!(repaired("\\"), "\\");
        assert_eq!(read::<String>(br#""a\ud800b\u0000""#), Ok("a\u{fffd}b\0".to_owned()));
    }
}

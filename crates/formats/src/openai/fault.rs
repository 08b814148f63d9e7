//! What can be wrong with a reply.

use thiserror::Error;

use super::shown::shown;
use super::wire::{self, ErrorWire};

/// Bytes of an error's body that are read.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// Why a reply cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReplyFault {
    /// Not JSON, or cut in the middle of it.
    #[error("the reply is not JSON: {what}")]
    NotJson { what: String },
    /// Not text.
    #[error("the reply is not UTF-8 from byte {offset} on")]
    NotUtf8 { offset: u64 },
    /// JSON, but not what the interface promises.
    #[error("the reply has another shape than a completion: {what}")]
    Shape { what: String },
    /// No choice at all, or a chunk of a reply without any.
    #[error("the reply, or a part of it, has no choices")]
    NoChoice,
    /// Choices, but none of index 0.
    #[error("the reply has choice {index}, which was not asked for, and no choice 0")]
    WrongIndex { index: i64 },
    /// Two choices of index 0.
    #[error("the reply has two choices of index 0")]
    SameIndex,
    /// Chunks of different replies in one stream.
    #[error("the stream mixes two replies")]
    MixedIds,
    /// Text after the end of the reply.
    #[error("the stream goes on after its end")]
    AfterEnd,
    /// More than a cap allows.
    #[error("{what} of the reply is {value}, above the limit of {limit}")]
    TooLarge { what: &'static str, value: u64, limit: u64 },
    /// The server says that something went wrong.
    #[error("the server reports an error: {0}")]
    ErrorObject(ErrorObject),
    /// The end of the reply never came.
    #[error("the reply was cut after {pieces} pieces")]
    Cut { pieces: u64 },
}

/// An error as a server tells it: escaped, cut short, and without what looks like a key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct ErrorObject {
    pub message: String,
    /// OpenAI's `type`.
    pub kind: Option<String>,
    pub code: Option<String>,
}

impl ErrorObject {
    pub(super) fn of(wire: ErrorWire) -> ErrorObject {
        let clean = |text: Option<String>| text.map(|text| shown(&text)).filter(|text| !text.is_empty());
        ErrorObject {
            message: clean(wire.message).unwrap_or_else(|| "no message".to_owned()),
            kind: clean(wire.kind),
            code: clean(wire.code),
        }
    }
}

impl ReplyFault {
    pub(super) fn of_json(error: &serde_json::Error) -> ReplyFault {
        let what = shown(&error.to_string());
        if error.is_data() { ReplyFault::Shape { what } } else { ReplyFault::NotJson { what } }
    }

    pub(super) fn check_cap(what: &'static str, value: usize, limit: usize) -> Result<(), ReplyFault> {
        let (value, limit) = (value as u64, limit as u64);
        if value > limit { Err(ReplyFault::TooLarge { what, value, limit }) } else { Ok(()) }
    }
}

/// The body of a reply whose status is an error: OpenAI's, vLLM's, llama.cpp's or FastAPI's object, or plain text.
/// None if the body is empty.
pub fn read_error(bytes: &[u8]) -> Option<ErrorObject> {
    let bytes = &bytes[..bytes.len().min(ERROR_BYTES_MAX)];
    if let Ok(wire) = wire::read::<ErrorWire>(bytes)
        && !wire.is_empty()
    {
        return Some(ErrorObject::of(wire));
    }
    let text = String::from_utf8_lossy(bytes);
    let message = shown(&text);
    (!message.is_empty()).then_some(ErrorObject { message, kind: None, code: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(bytes: &[u8]) -> (String, Option<String>, Option<String>) {
        let error = read_error(bytes).expect("an error");
        (error.message, error.kind, error.code)
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn errors_of_each_server_are_read() {
        let openai = br#"{"error":{"message":"Rate limit reached","type":"requests","param":null,"code":"rate_limit_exceeded"}}"#;
        assert_eq!(
            error(openai),
            ("Rate limit reached".into(), some("requests"), some("rate_limit_exceeded"))
        );
        let vllm =
            br#"{"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400}"#;
        assert_eq!(error(vllm), ("too long".into(), some("BadRequestError"), some("400")));
        let llama = br#"{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#;
        assert_eq!(error(llama), ("Loading model".into(), some("unavailable_error"), some("503")));
        let fastapi =
            br#"{"detail":[{"loc":["body","model"],"msg":"field required","type":"value_error.missing"}]}"#;
        assert_eq!(error(fastapi), ("field required".into(), some("value_error.missing"), None));
        assert_eq!(error(br#"{"error":"model 'x' not found"}"#).0, "model 'x' not found");
        let list = br#"[{"error":{"code":429,"message":"quota","status":"RESOURCE_EXHAUSTED"}}]"#;
        assert_eq!(error(list), ("quota".into(), None, some("429")));
        assert_eq!(error(b"upstream connect error\r\n").0, "upstream connect error");
        assert_eq!(error(b"<html>\xff\x1b</html>").0, "<html>\u{fffd}\\u{1b}</html>");
        assert_eq!(read_error(b" \n"), None);
    }

    #[test]
    fn an_error_echoes_no_key() {
        let body = br#"{"error":{"message":"Incorrect API key provided: sk-abcdefgh12345678.","code":"sk-abcdefgh12345678"}}"#;
        let shown = format!("{:?}", read_error(body));
        assert!(shown.contains("[redacted]") && !shown.contains("abcdefgh"), "{shown}");
    }
}

//! Lines of batch files, as OpenAI's batches and `vllm run-batch` read and write them.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;

use super::fault::{ErrorObject, ReplyFault};
use super::reply::{Reply, reply_of};
use super::stream::Caps;
use super::wire::{self, Body, ErrorWire};

/// A request of a batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchLine<'a> {
    pub custom_id: &'a str,
    pub method: &'a str,
    pub url: &'a str,
    /// JSON, as [`super::ChatRequest::body`] gives it.
    pub body: &'a [u8],
}

/// What came back for one request.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchResult {
    pub custom_id: String,
    /// The status that the request would have had by itself.
    pub status: Option<u16>,
    pub outcome: Result<Reply, ReplyFault>,
}

impl BatchLine<'_> {
    /// The line, with its line feed.
    pub fn line(&self) -> Vec<u8> {
        let mut line = Vec::with_capacity(self.body.len() + 128);
        let (id, method, url) = (json!(self.custom_id), json!(self.method), json!(self.url));
        let head = format!(r#"{{"custom_id":{id},"method":{method},"url":{url},"body":"#);
        line.extend_from_slice(head.as_bytes());
        line.extend_from_slice(self.body);
        line.extend_from_slice(b"}\n");
        line
    }
}

#[derive(Deserialize)]
struct Named {
    custom_id: String,
}

#[derive(Deserialize)]
struct Line<B> {
    response: Option<Response<B>>,
    error: Option<ErrorWire>,
}

#[derive(Deserialize)]
struct Response<B> {
    status_code: Option<u16>,
    body: Option<B>,
}

/// Reads a line of results, or of errors. A line whose id can be read is a result, whatever else is wrong with it.
pub fn read_batch_line(bytes: &[u8]) -> Result<BatchResult, ReplyFault> {
    let caps = Caps::default();
    ReplyFault::check_cap("the line", bytes.len(), caps.bytes_max)?;
    let Named { custom_id } = wire::read(bytes)?;
    let status = wire::read::<Line<IgnoredAny>>(bytes).ok().and_then(|line| line.response?.status_code);
    let outcome = outcome(bytes, status, caps);
    Ok(BatchResult { custom_id, status, outcome })
}

fn outcome(bytes: &[u8], status: Option<u16>, caps: Caps) -> Result<Reply, ReplyFault> {
    if status.is_some_and(|status| (200..300).contains(&status)) {
        let line: Line<Body> = wire::read(bytes)?;
        return match (line.response.and_then(|response| response.body), line.error) {
            (_, Some(error)) if !error.is_empty() => Err(ReplyFault::ErrorObject(ErrorObject::of(error))),
            (Some(body), _) => reply_of(body, caps),
            (None, _) => Err(ReplyFault::NoChoice),
        };
    }
    let line: Line<ErrorWire> = wire::read(bytes)?;
    let body = line.response.and_then(|response| response.body).filter(|body| !body.is_empty());
    let error = line.error.filter(|error| !error.is_empty()).or(body).unwrap_or_default();
    Err(ReplyFault::ErrorObject(ErrorObject::of(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_line_with_its_body_as_it_is() {
        let line = BatchLine {
            custom_id: "a\n1",
            method: "POST",
            url: "/v1/chat/completions",
            body: br#"{"model":"m"}"#,
        };
        assert_eq!(
            String::from_utf8(line.line()).expect("text"),
            "{\"custom_id\":\"a\\n1\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{\"model\":\"m\"}}\n"
        );
    }

    #[test]
    fn results_errors_and_broken_replies_keep_their_id() {
        let good = br#"{"id":"b","custom_id":"7","response":{"status_code":200,"request_id":"r","body":{"id":"c","choices":[{"index":0,"message":{"role":"assistant","content":" hi "},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1}}},"error":null}"#;
        let result = read_batch_line(good).expect("a result");
        assert_eq!((result.custom_id.as_str(), result.status), ("7", Some(200)));
        assert_eq!(result.outcome.expect("a reply").content, "hi");

        let expired =
            br#"{"custom_id":"8","response":null,"error":{"code":"batch_expired","message":"too late"}}"#;
        let result = read_batch_line(expired).expect("a result");
        let Err(ReplyFault::ErrorObject(error)) = result.outcome else { panic!("an error") };
        assert_eq!((error.message.as_str(), error.code.as_deref()), ("too late", Some("batch_expired")));

        let refused = br#"{"custom_id":"9","response":{"status_code":400,"body":{"error":{"message":"no","type":"t"}}},"error":null}"#;
        let result = read_batch_line(refused).expect("a result");
        let Err(ReplyFault::ErrorObject(error)) = result.outcome else { panic!("an error") };
        assert_eq!((result.status, error.message.as_str()), (Some(400), "no"));

        let broken =
            br#"{"custom_id":"10","response":{"status_code":200,"body":{"choices":7}},"error":null}"#;
        let result = read_batch_line(broken).expect("a result");
        assert!(matches!(result.outcome, Err(ReplyFault::Shape { .. })));
        assert!(matches!(read_batch_line(br#"{"response":null}"#), Err(ReplyFault::Shape { .. })));
    }
}

//! What is not done, as OpenAI's interface says it.

use serde_json::{Value, json};

use crate::http::Response;

/// A request that is not answered, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) message: String,
    /// The field that is at fault.
    pub(crate) param: Option<String>,
    pub(crate) code: Option<&'static str>,
    /// Seconds after which it may be tried again.
    pub(crate) retry_after_s: Option<u32>,
}

impl Refusal {
    pub(crate) fn new(status: u16, message: impl Into<String>) -> Refusal {
        Refusal { status, message: message.into(), param: None, code: None, retry_after_s: None }
    }

    /// A field's value that is refused.
    pub(crate) fn of(param: &str, message: impl Into<String>) -> Refusal {
        Refusal { param: Some(param.to_owned()), ..Refusal::new(400, message) }
    }

    pub(crate) fn code(self, code: &'static str) -> Refusal {
        Refusal { code: Some(code), ..self }
    }

    pub(crate) fn retry_after(self, seconds: u32) -> Refusal {
        Refusal { retry_after_s: Some(seconds), ..self }
    }

    pub(crate) fn body(&self) -> Value {
        let kind = match self.status {
            401 | 403 => "authentication_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        json!({ "error": {
            "message": self.message, "type": kind, "param": self.param, "code": self.code,
        } })
    }

    pub(crate) fn response(&self) -> Response {
        let mut response = Response::json(self.status, &self.body());
        if let Some(seconds) = self.retry_after_s {
            response.headers.push(("retry-after", seconds.to_string()));
        }
        match self.status {
            401 => response.headers.push(("www-authenticate", "Bearer".to_owned())),
            405 => response.headers.push(("allow", "GET, HEAD, POST".to_owned())),
            _ => {}
        }
        response
    }
}

impl Response {
    pub(crate) fn json(status: u16, body: &Value) -> Response {
        let body = body.to_string().into_bytes();
        Response { status, content_type: "application/json", headers: Vec::new(), body }
    }
}

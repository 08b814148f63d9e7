//! Answers what comes over one connection.

use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use stillroom_core::Digest;

use super::Shared;
use super::faults::{Amid, Fault};
use super::hostile::{Hostile, How};
use super::http::{self, Request};
use super::log::{Arrival, Entry};
use super::payload::{Payload, bytes_of};
use super::words::{self, Draw, request_digest};

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream; charset=utf-8";
/// What names a call, and is echoed.
const REQUEST_ID: &str = "x-client-request-id";
const PROMPT_CHARS_MAX: usize = 200;

/// Requests until the client or the server has had enough.
pub(crate) fn connection(stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    loop {
        let request = match http::read(&mut reader) {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(error) => {
                if error.kind() == io::ErrorKind::InvalidData {
                    shared.log.malformed();
                }
                return Err(error);
            }
        };
        if !answer(stream, shared, &request)? || request.closes() {
            return Ok(());
        }
    }
}

/// Answers one request; says whether the connection can go on.
fn answer(stream: &TcpStream, shared: &Shared, request: &Request) -> io::Result<bool> {
    let path = request.path.split('?').next().unwrap_or_default();
    match (request.method.as_str(), path) {
        ("GET", "/stats") => plain(stream, 200, &shared.log.stats().to_json()),
        ("GET", "/health") => plain(stream, 200, &json!({"status": "ok"})),
        _ if !is_authorized(shared, request) => {
            shared.log.unauthorized();
            // Some services show the key that was wrong.
            let given = request.header("authorization").unwrap_or("nothing");
            let message = format!("Incorrect API key provided: {given}.");
            plain(stream, 401, &error(&message, "invalid_request_error", "invalid_api_key"))
        }
        ("GET", "/v1/models") => plain(
            stream,
            200,
            &json!({"object": "list", "data": [{"id": "fake-teacher", "object": "model"}]}),
        ),
        ("POST", "/v1/chat/completions") => text(stream, shared, request, "messages"),
        ("POST", "/v1/completions") => text(stream, shared, request, "prompt"),
        _ => {
            shared.log.malformed();
            plain(stream, 404, &error("Not Found", "invalid_request_error", "not_found"))
        }
    }
}

fn is_authorized(shared: &Shared, request: &Request) -> bool {
    let Some(key) = &shared.options.key else { return true };
    request.header("authorization") == Some(format!("Bearer {key}").as_str())
}

fn plain(mut stream: &TcpStream, status: u16, body: &Value) -> io::Result<bool> {
    let body = body.to_string();
    let mut out = http::head(status, JSON, Some(body.len()), &[]);
    out.extend_from_slice(body.as_bytes());
    stream.write_all(&out)?;
    Ok(true)
}

fn error(message: &str, kind: &str, code: &str) -> Value {
    json!({"error": {"message": message, "type": kind, "param": null, "code": code}})
}

/// A request for text that has come.
struct Exchange<'a> {
    stream: &'a TcpStream,
    shared: &'a Shared,
    body: Value,
    digest: Digest,
    attempt: u64,
    request_id: Option<String>,
    fault: Fault,
    hostile: Option<&'a Hostile>,
}

/// What became of it.
struct Outcome {
    status: u16,
    /// Whether all of it was sent.
    sent: bool,
    /// Whether the connection can go on.
    goes_on: bool,
    billed: (u64, u64),
}

fn text(stream: &TcpStream, shared: &Shared, request: &Request, field: &str) -> io::Result<bool> {
    let now = SystemTime::now();
    let body = serde_json::from_slice(&request.body).ok().filter(|body: &Value| body.get(field).is_some());
    let Some(body) = body else {
        shared.log.malformed();
        return plain(
            stream,
            400,
            &error("no JSON, or nothing is asked", "invalid_request_error", "bad_body"),
        );
    };
    let digest = request_digest(&body);
    let arrival = shared.log.arrive(digest, now);
    let faults = shared.faults.lock().expect("the faults").clone();
    let draw = Draw::of(&digest, &format!("fault {} {}", shared.options.seed, arrival.attempt));
    let mut fault = faults.draw(draw, arrival.attempt);
    let hostile =
        hostile_of(shared, &body, &digest).filter(|hostile| hostile.stays() || arrival.attempt == 0);
    if let (Fault::None, Some(hostile)) = (fault, hostile) {
        fault = Fault::Hostile { is_good: hostile.is_good() };
    }
    let exchange = Exchange {
        stream,
        shared,
        body,
        digest,
        attempt: arrival.attempt,
        request_id: request.header(REQUEST_ID).map(str::to_owned),
        fault,
        hostile: hostile.filter(|_| matches!(fault, Fault::Hostile { .. })),
    };
    if !shared.options.latency.is_zero() {
        std::thread::sleep(shared.options.latency);
    }
    let outcome = exchange.reply();
    let goes_on = outcome.goes_on;
    shared.log.leave(&arrival, exchange.entry(&arrival, &outcome));
    Ok(goes_on)
}

/// The hostile reply of the number behind a `#`, or of one that follows from the request.
fn hostile_of<'a>(shared: &'a Shared, body: &Value, digest: &Digest) -> Option<&'a Hostile> {
    if shared.hostile.is_empty() {
        return None;
    }
    let turn = body["messages"].as_array().and_then(|turns| turns.last());
    let text = turn.and_then(|turn| turn["content"].as_str()).unwrap_or_default();
    let number = text.split_once('#').and_then(|(_, rest)| {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..end].parse::<u64>().ok()
    });
    let number = number.unwrap_or_else(|| Draw::of(digest, "hostile").next());
    shared.hostile.get((number % shared.hostile.len() as u64) as usize)
}

impl Exchange<'_> {
    fn entry(&self, arrival: &Arrival, outcome: &Outcome) -> Entry {
        let prompt = match self.body["messages"].as_array().and_then(|turns| turns.last()) {
            Some(turn) => turn["content"].as_str().unwrap_or_default().to_owned(),
            None => self.body["prompt"].to_string(),
        };
        Entry {
            at_ms: 0,
            took_ms: 0,
            digest: self.digest,
            request_id: self.request_id.clone(),
            attempt: self.attempt,
            fault: self.fault.name(),
            is_good: self.fault.is_good(),
            status: outcome.status,
            sent: outcome.sent,
            early: arrival.early,
            billed_prompt_tokens: outcome.billed.0,
            billed_completion_tokens: outcome.billed.1,
            prompt: prompt.chars().take(PROMPT_CHARS_MAX).collect(),
        }
    }

    fn reply(&self) -> Outcome {
        match self.hostile.map(|hostile| &hostile.how) {
            Some(How::Error { status, message }) => {
                let wait = (*status == 429).then(|| self.retry_after(false));
                return self.refuse(*status, wait, &bytes_of(&error(message, message, message)));
            }
            Some(How::Raw(bytes)) => return self.raw(bytes),
            _ => {}
        }
        match self.fault {
            Fault::TooMany { as_date } => {
                let wait = Some(self.retry_after(as_date));
                self.refuse(
                    429,
                    wait,
                    &bytes_of(&error("Rate limit reached", "requests", "rate_limit_exceeded")),
                )
            }
            Fault::ServerError { status: 502, .. } => {
                self.refuse(502, None, b"<html><head><title>502 Bad Gateway</title></head></html>")
            }
            Fault::ServerError { status, retry_after } => {
                let wait = retry_after.then(|| self.retry_after(false));
                self.refuse(status, wait, &bytes_of(&error("The server is overloaded", "server_error", "")))
            }
            Fault::Stall(Amid::Nothing) => self.hold(0, (0, 0)),
            Fault::Cut(Amid::Nothing | Amid::Headers) => self.broken(0, (0, 0)),
            Fault::Huge => self.huge(),
            _ if self.body["stream"] == true => self.streamed(),
            _ => self.whole(),
        }
    }

    /// An error, which costs nothing.
    fn refuse(&self, status: u16, wait: Option<(String, String)>, body: &[u8]) -> Outcome {
        let kind = if body.starts_with(b"<") { "text/html" } else { JSON };
        let more: Vec<(&str, String)> =
            wait.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        let mut out = http::head(status, kind, Some(body.len()), &more);
        out.extend_from_slice(body);
        self.ended(status, self.send(&out), (0, 0))
    }

    /// The header that asks for patience; earlier retries are counted from here on.
    fn retry_after(&self, as_date: bool) -> (String, String) {
        let wait = self.shared.options.retry_after;
        let now = SystemTime::now();
        let (until, name, value) = if as_date {
            let seconds = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO) + wait;
            let whole = seconds.as_secs() + u64::from(seconds.subsec_nanos() > 0);
            let until = UNIX_EPOCH + Duration::from_secs(whole);
            (until, "retry-after", http::date(until))
        } else if wait.subsec_nanos() == 0 {
            (now + wait, "retry-after", wait.as_secs().to_string())
        } else {
            (now + wait, "retry-after-ms", wait.as_millis().to_string())
        };
        self.shared.log.forbid(self.digest, until);
        (name.to_owned(), value)
    }

    fn payload<'a>(&'a self, written: &'a words::Written) -> Payload<'a> {
        let (kind, name) =
            (if self.body.get("messages").is_some() { "chatcmpl" } else { "cmpl" }, self.digest.to_string());
        let mut payload = Payload {
            body: &self.body,
            written,
            id: format!("{kind}-{}-{}", &name[..12], self.attempt),
            model: self.body["model"].as_str().unwrap_or("fake-teacher").to_owned(),
            usage: self.shared.options.usage,
            read: self.read(),
        };
        if let Some(How::Names(text)) = self.hostile.map(|hostile| &hostile.how) {
            payload.id.push_str(text);
            payload.model.push_str(text);
        }
        payload
    }

    /// Log-probabilities of a prompt of ids, where somebody reads it.
    fn read(&self) -> Option<Vec<f32>> {
        let ids: Option<Vec<u32>> = serde_json::from_value(self.body["prompt"].clone()).ok();
        Some(self.shared.options.reader.as_ref()?(&ids?))
    }

    fn written(&self) -> words::Written {
        let options = &self.shared.options;
        let mut body = self.body.clone();
        if self.fault == Fault::WrongId {
            // Somebody else's question.
            body["seed"] = json!(self.attempt);
            body["messages"] = json!([{"role": "user", "content": "another request"}]);
        }
        let own = options.author.as_ref().map(|author| author(&body));
        let mut written = words::written(&body, options.reasoning, own);
        match self.hostile.map(|hostile| &hostile.how) {
            Some(How::Text { content, reasoning, in_tags }) => {
                written.completion_tokens =
                    reasoning.as_deref().map_or(0, words::count) + words::count(content);
                (written.content, written.reasoning) = (content.clone(), reasoning.clone());
                written.in_tags = *in_tags;
            }
            Some(How::Finish(text)) => written.finish.clone_from(text),
            Some(How::Call { name, arguments }) => written.call = Some((name.clone(), arguments.clone())),
            _ => {}
        }
        written
    }

    /// Bytes in place of a reply; in a stream, as an event.
    fn raw(&self, bytes: &[u8]) -> Outcome {
        let streams = self.body["stream"] == true;
        let body =
            if streams { [b"data: ", bytes, b"\n\ndata: [DONE]\n\n"].concat() } else { bytes.to_vec() };
        let mut out = self.head(if streams { EVENTS } else { JSON }, Some(body.len()));
        out.extend_from_slice(&body);
        self.ended(200, self.send(&out), (words::prompt_tokens(&self.body), 1))
    }

    /// Headers of a good reply.
    fn head(&self, kind: &str, length: Option<usize>) -> Vec<u8> {
        let id = match self.fault {
            Fault::WrongId => Some(format!("not-{}", self.request_id.as_deref().unwrap_or("yours"))),
            _ => self.request_id.clone(),
        };
        let more: Vec<(&str, String)> = id.into_iter().map(|id| (REQUEST_ID, id)).collect();
        http::head(200, kind, length, &more)
    }

    fn whole(&self) -> Outcome {
        let written = self.written();
        let mut body = bytes_of(&self.payload(&written).whole(self.fault));
        if self.fault == Fault::BadJson {
            body.truncate(body.len() / 2);
            body.extend_from_slice(b"]}");
        }
        let billed = (written.prompt_tokens, written.completion_tokens);
        let mut out = self.head(JSON, Some(body.len()));
        match self.fault {
            Fault::Stall(amid) => {
                if amid == Amid::Text {
                    out.extend_from_slice(&body[..body.len() / 2]);
                }
                let sent = self.send(&out);
                self.hold_after(sent, if amid == Amid::Text { billed } else { (0, 0) })
            }
            Fault::Cut(_) => {
                out.extend_from_slice(&body[..body.len() / 2]);
                // The client may have gone before.
                drop(self.send(&out));
                self.broken(200, billed)
            }
            _ => {
                out.extend_from_slice(&body);
                self.ended(200, self.send(&out), billed)
            }
        }
    }

    fn streamed(&self) -> Outcome {
        let written = self.written();
        let events = self.payload(&written).events(self.fault);
        let stops = match self.fault {
            Fault::Stall(Amid::Headers) => 0,
            Fault::Stall(_) | Fault::Cut(_) => events.len() / 2,
            _ => events.len(),
        };
        let pause = self.shared.options.chunk_latency;
        let mut out = self.head(EVENTS, None);
        let mut made = 0;
        let mut sent = Ok(());
        for (data, tokens) in &events[..stops] {
            http::chunk(&mut out, &[b"data: ", &data[..], b"\n\n"].concat());
            made += tokens;
            if !pause.is_zero() {
                sent = self.send(&out);
                out.clear();
                if sent.is_err() {
                    break;
                }
                std::thread::sleep(pause);
            }
        }
        let billed = match made {
            0 if stops == 0 => (0, 0),
            // Tokens in tags may share a chunk, so that the whole is what the usage says.
            _ if stops == events.len() && sent.is_ok() => (written.prompt_tokens, written.completion_tokens),
            _ => (written.prompt_tokens, made),
        };
        let is_whole = stops == events.len();
        if is_whole && sent.is_ok() {
            out.extend_from_slice(http::LAST_CHUNK);
        }
        if sent.is_ok() {
            sent = self.send(&out);
        }
        match self.fault {
            Fault::Stall(_) => self.hold_after(sent, billed),
            Fault::Cut(_) => self.broken(200, billed),
            _ => self.ended(200, sent, billed),
        }
    }

    /// A body without an end that anybody should wait for.
    fn huge(&self) -> Outcome {
        let total = self.shared.options.huge_bytes;
        let streams = self.body["stream"] == true;
        let kind = if streams { EVENTS } else { JSON };
        let start: &[u8] = if streams { b"data: {\"id\":\"" } else { b"{\"id\":\"" };
        let mut out = self.head(kind, Some(total));
        out.extend_from_slice(start);
        let piece = vec![b'a'; 64 << 10];
        let (mut sent, mut left) = (self.send(&out), total - start.len());
        while sent.is_ok() && left > 0 {
            let n = left.min(piece.len());
            sent = self.send(&piece[..n]);
            left -= n;
        }
        let billed = (words::prompt_tokens(&self.body), 1);
        self.ended(200, sent, billed)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let mut stream = self.stream;
        stream.write_all(bytes)
    }

    fn ended(&self, status: u16, sent: io::Result<()>, billed: (u64, u64)) -> Outcome {
        let sent = sent.is_ok();
        Outcome { status, sent, goes_on: sent, billed }
    }

    /// The connection ends here.
    fn broken(&self, status: u16, billed: (u64, u64)) -> Outcome {
        // It may be closed already.
        drop(self.stream.shutdown(std::net::Shutdown::Both));
        Outcome { status, sent: false, goes_on: false, billed }
    }

    fn hold_after(&self, sent: io::Result<()>, billed: (u64, u64)) -> Outcome {
        match sent {
            Ok(()) => self.hold(200, billed),
            Err(_) => Outcome { status: 200, sent: false, goes_on: false, billed },
        }
    }

    /// Silence until the client gives up.
    fn hold(&self, status: u16, billed: (u64, u64)) -> Outcome {
        let mut stream = self.stream;
        // A client that waits sends nothing: a byte, an end and an error all mean that it has given up.
        if stream.set_read_timeout(Some(self.shared.options.stall)).is_ok() {
            drop(stream.read(&mut [0; 1]));
        }
        self.broken(status, billed)
    }
}

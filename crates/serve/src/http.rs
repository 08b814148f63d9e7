//! HTTP/1.1 as far as this server needs it: heads by `httparse`, bodies by their length, replies whole or in chunks.
//!
//! What is unclear is refused rather than guessed at: two lengths, a length and an encoding, a head without a host. A body
//! without a length (`Transfer-Encoding`) is refused with 411, which every client of such an interface can do without.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::limits::Limits;

/// Headers of a request.
const HEADERS_MAX: usize = 64;
/// Bytes that are read at a time.
const PIECE_BYTES: usize = 16 << 10;
/// What is still read of a refused request, so that its sender gets to read why.
const LINGER_BYTES_MAX: usize = 1 << 20;
const LINGER_TIME: Duration = Duration::from_secs(1);

/// A request.
#[derive(Debug, Default)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Without what follows `?`.
    pub(crate) path: String,
    pub(crate) host: Option<String>,
    pub(crate) origin: Option<String>,
    pub(crate) authorization: Option<String>,
    pub(crate) content_type: Option<String>,
    /// Bytes of its body.
    pub(crate) length: usize,
    /// Whether the client waits for leave to send it.
    pub(crate) expects_continue: bool,
    pub(crate) body: Vec<u8>,
    /// Whether the connection stays open after the reply.
    pub(crate) keep_alive: bool,
    /// Whether the client knows chunks.
    pub(crate) knows_chunks: bool,
}

/// Why a request cannot be read.
#[derive(Debug)]
pub(crate) enum Fault {
    /// There is nobody to tell, or nothing to tell: the connection ended, or nothing came in time.
    Ended,
    /// A status, and what is wrong.
    Refused(u16, String),
}

/// A whole reply.
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) content_type: &'static str,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
}

/// One client's connection.
pub(crate) struct Connection {
    stream: TcpStream,
    /// What has come and is not looked at yet.
    buffer: Vec<u8>,
    limits: Limits,
}

/// What a head says of its body.
#[derive(Default)]
struct Head {
    length: Option<usize>,
    is_encoded: bool,
    expects_continue: bool,
    /// Bytes of the head.
    size: usize,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, limits: Limits) -> Connection {
        // Pieces of a stream are small, and wanted at once; where that cannot be had they come later.
        let _ = stream.set_nodelay(true);
        Connection { stream, buffer: Vec::new(), limits }
    }

    /// The head of the next request. Its body is read by [`Connection::read_body`], before anything else.
    pub(crate) fn read(&mut self) -> Result<Request, Fault> {
        let (mut request, head) = self.read_head()?;
        self.buffer.drain(..head.size);
        if head.is_encoded {
            return Err(Fault::Refused(411, "a body must have a `Content-Length`".to_owned()));
        }
        request.length = head.length.unwrap_or(0);
        if request.length > self.limits.body_bytes_max {
            let (length, max) = (request.length, self.limits.body_bytes_max);
            return Err(Fault::Refused(413, format!("the body has {length} bytes, at most {max} are read")));
        }
        request.expects_continue = head.expects_continue;
        Ok(request)
    }

    pub(crate) fn read_body(&mut self, request: &mut Request) -> Result<(), Fault> {
        if request.expects_continue && self.buffer.len() < request.length {
            let deadline = Instant::now() + self.limits.write_time;
            self.write_all(b"HTTP/1.1 100 Continue\r\n\r\n", deadline).map_err(|_| Fault::Ended)?;
        }
        let deadline = Instant::now() + self.limits.body_time;
        while self.buffer.len() < request.length {
            self.fill(deadline).map_err(|error| in_time(&error, "the body"))?;
        }
        request.body = self.buffer.drain(..request.length).collect();
        if self.buffer.is_empty() {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    fn read_head(&mut self) -> Result<(Request, Head), Fault> {
        if self.buffer.is_empty() {
            self.fill(Instant::now() + self.limits.idle).map_err(|_| Fault::Ended)?;
        }
        let deadline = Instant::now() + self.limits.head_time;
        loop {
            if let Some(read) = parse(&self.buffer)? {
                return Ok(read);
            }
            if self.buffer.len() >= self.limits.head_bytes_max {
                let max = self.limits.head_bytes_max;
                return Err(Fault::Refused(431, format!("the headers have more than {max} bytes")));
            }
            self.fill(deadline).map_err(|error| in_time(&error, "the headers"))?;
        }
    }

    /// Reads what there is, until the deadline; an end of the stream is an error.
    fn fill(&mut self, deadline: Instant) -> io::Result<()> {
        let mut piece = [0; PIECE_BYTES];
        loop {
            self.stream.set_read_timeout(Some(left(deadline)?))?;
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    self.buffer.extend_from_slice(&piece[..n]);
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(ErrorKind::TimedOut.into()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether the client has closed its end: it does not wait for a reply any more.
    pub(crate) fn is_gone(&self) -> bool {
        if self.stream.set_nonblocking(true).is_err() {
            return true;
        }
        let seen = self.stream.peek(&mut [0]);
        let restored = self.stream.set_nonblocking(false).is_ok();
        match seen {
            Ok(n) => n == 0 || !restored,
            Err(error) => error.kind() != ErrorKind::WouldBlock || !restored,
        }
    }

    pub(crate) fn send(&mut self, request: &Request, response: &Response) -> io::Result<()> {
        let mut bytes =
            head_of(response.status, response.content_type, &response.headers, request.keep_alive);
        bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", response.body.len()).as_bytes());
        if request.method != "HEAD" {
            bytes.extend_from_slice(&response.body);
        }
        self.write_all(&bytes, Instant::now() + self.limits.write_time)
    }

    /// Refuses what could not be read as a request; nothing more is read of the connection.
    pub(crate) fn refuse(mut self, response: &Response) {
        if self.send(&Request::default(), response).is_err() || self.stream.shutdown(Shutdown::Write).is_err()
        {
            return;
        }
        // A close with bytes unread would take the reply back from the client.
        let deadline = Instant::now() + LINGER_TIME;
        let mut seen = 0;
        while seen < LINGER_BYTES_MAX && self.fill(deadline).is_ok() {
            seen += self.buffer.len();
            self.buffer.clear();
        }
    }

    /// Begins a reply of events.
    pub(crate) fn begin_stream(&mut self, request: &Request) -> io::Result<()> {
        let keep_alive = request.keep_alive && request.knows_chunks;
        let mut bytes = head_of(200, "text/event-stream; charset=utf-8", &[], keep_alive);
        let framing: &[u8] =
            if request.knows_chunks { b"transfer-encoding: chunked\r\n\r\n" } else { b"\r\n" };
        bytes.extend_from_slice(framing);
        self.write_all(&bytes, Instant::now() + self.limits.write_time)
    }

    /// A piece of it, not empty.
    pub(crate) fn send_piece(&mut self, request: &Request, piece: &[u8]) -> io::Result<()> {
        let deadline = Instant::now() + self.limits.write_time;
        if !request.knows_chunks {
            return self.write_all(piece, deadline);
        }
        let mut chunk = format!("{:x}\r\n", piece.len()).into_bytes();
        chunk.extend_from_slice(piece);
        chunk.extend_from_slice(b"\r\n");
        self.write_all(&chunk, deadline)
    }

    pub(crate) fn end_stream(&mut self, request: &Request) -> io::Result<()> {
        match request.knows_chunks {
            true => self.write_all(b"0\r\n\r\n", Instant::now() + self.limits.write_time),
            false => Ok(()),
        }
    }

    fn write_all(&mut self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.set_write_timeout(Some(left(deadline)?))?;
            match self.stream.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => bytes = &bytes[n..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn in_time(error: &io::Error, what: &str) -> Fault {
    match error.kind() {
        ErrorKind::TimedOut => Fault::Refused(408, format!("{what} did not come in time")),
        _ => Fault::Ended,
    }
}

fn head_of(status: u16, content_type: &str, headers: &[(&'static str, String)], keep_alive: bool) -> Vec<u8> {
    let connection = if keep_alive { "keep-alive" } else { "close" };
    let mut head = format!(
        "HTTP/1.1 {status} {}\r\ncontent-type: {content_type}\r\ncache-control: no-store\r\n\
         x-content-type-options: nosniff\r\nconnection: {connection}\r\n",
        reason(status)
    );
    headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
    head.into_bytes()
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        411 => "Length Required",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

/// The head at the front of these bytes; none if it is not whole yet.
fn parse(bytes: &[u8]) -> Result<Option<(Request, Head)>, Fault> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    let size = match parsed.parse(bytes) {
        Ok(httparse::Status::Partial) => return Ok(None),
        Ok(httparse::Status::Complete(size)) => size,
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Fault::Refused(431, format!("there are more than {HEADERS_MAX} headers")));
        }
        Err(httparse::Error::Version) => {
            return Err(Fault::Refused(505, "only HTTP/1.1 and HTTP/1.0 are spoken here".to_owned()));
        }
        Err(error) => return Err(bad(&format!("this is no HTTP request: {error}"))),
    };
    let target = parsed.path.unwrap_or_default();
    if !target.starts_with('/') {
        return Err(bad("the request's target is not a path"));
    }
    let is_1_1 = parsed.version == Some(1);
    let mut request = Request {
        method: parsed.method.unwrap_or_default().to_owned(),
        path: target.split('?').next().unwrap_or_default().to_owned(),
        keep_alive: is_1_1,
        knows_chunks: is_1_1,
        ..Request::default()
    };
    let mut head = Head { size, ..Head::default() };
    parsed.headers.iter().try_for_each(|header| take_header(header, &mut request, &mut head))?;
    if head.is_encoded && head.length.is_some() {
        return Err(bad("a body has a length or an encoding, not both"));
    }
    if is_1_1 && request.host.is_none() {
        return Err(bad("there is no `Host`"));
    }
    Ok(Some((request, head)))
}

fn take_header(header: &httparse::Header<'_>, request: &mut Request, head: &mut Head) -> Result<(), Fault> {
    let name = header.name.to_ascii_lowercase();
    let text = || {
        let text = std::str::from_utf8(header.value).map_err(|_| bad(&format!("`{name}` is not text")));
        text.map(|text| text.trim().to_owned())
    };
    let once = |place: &mut Option<String>| match place.replace(text()?) {
        None => Ok(()),
        Some(_) => Err(bad(&format!("`{name}` stands there twice"))),
    };
    match name.as_str() {
        "host" => once(&mut request.host)?,
        "origin" => once(&mut request.origin)?,
        "authorization" => once(&mut request.authorization)?,
        "content-type" => once(&mut request.content_type)?,
        "content-length" => {
            let text = text()?;
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            let length = text.parse().ok().filter(|_| digits);
            let length = length.ok_or_else(|| bad("`content-length` is no length"))?;
            if head.length.replace(length).is_some() {
                return Err(bad("`content-length` stands there twice"));
            }
        }
        "transfer-encoding" => head.is_encoded = true,
        "expect" if text()?.eq_ignore_ascii_case("100-continue") => head.expects_continue = true,
        "expect" => return Err(Fault::Refused(417, "only `100-continue` can be expected here".to_owned())),
        "connection" => {
            let text = text()?.to_ascii_lowercase();
            let has = |word: &str| text.split(',').any(|part| part.trim() == word);
            request.keep_alive = (request.keep_alive || has("keep-alive")) && !has("close");
        }
        _ => {}
    }
    Ok(())
}

fn bad(what: &str) -> Fault {
    Fault::Refused(400, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(head: &str) -> u16 {
        match parse(head.as_bytes()) {
            Ok(Some(_)) => 200,
            Ok(None) => 0,
            Err(Fault::Refused(status, _)) => status,
            Err(Fault::Ended) => 1,
        }
    }

    #[test]
    fn a_head_is_read_and_what_is_unclear_is_refused() {
        let (request, head) = parse(
            b"POST /v1/completions?x=1 HTTP/1.1\r\nHost: localhost:1\r\nContent-Length: 12\r\nConnection: Close\r\n\r\nrest",
        )
        .expect("a head")
        .expect("whole");
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/v1/completions"));
        assert_eq!(
            (head.length, request.keep_alive, request.host.as_deref()),
            (Some(12), false, Some("localhost:1"))
        );
        for (head, expected) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 200),
            ("GET / HTTP/1.0\r\n\r\n", 200),
            ("GET / HTTP/1.1\r\nHost: a\r\n", 0),
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            ("GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nExpect: miracles\r\n\r\n", 417),
            ("\u{16}\u{3}\u{1} hello", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nName : x\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 400),
        ] {
            assert_eq!(status(head), expected, "{head:?}");
        }
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "x: y\r\n".repeat(HEADERS_MAX));
        assert_eq!(status(&many), 431);
    }
}

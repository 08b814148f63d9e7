//! The client: requests within the gate's leave, redirects by hand, limits on time and size.

use std::fmt;
use std::io::{self, Read};
use std::time::{Duration, SystemTime};

use stillroom_core::{Cleared, Reach};
use ureq::http::{self, HeaderMap, HeaderName, HeaderValue};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector, DefaultConnector};
use ureq::{Agent, Body, BodyReader, SendBody};

use crate::Result;
use crate::error::{NetError, Phase, shown};
use crate::retry_after;
use crate::silence::{self, CallOff, CalledOff, SilenceConnector};
use crate::url::Address;

/// Redirects followed for one request.
pub const REDIRECTS_MAX: usize = 5;
/// Bytes of a reply's headers.
pub const HEADER_BYTES_MAX: usize = 64 << 10;

/// Text that is sent and never shown.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// In bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn is_in(&self, text: &str) -> bool {
        !self.is_empty() && text.contains(&self.0)
    }

    /// `text` with `[redacted]` in place of it, and of its beginning from `bytes_min` bytes on.
    pub fn hidden_in(&self, text: &str, bytes_min: usize) -> String {
        let beginning = self.0.get(..bytes_min).unwrap_or(&self.0);
        if beginning.is_empty() {
            return text.to_owned();
        }
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find(beginning) {
            let same = rest[at..].chars().zip(self.0.chars()).take_while(|(a, b)| a == b);
            let end = at + same.map(|(c, _)| c.len_utf8()).sum::<usize>();
            out.push_str(&rest[..at]);
            out.push_str("[redacted]");
            rest = &rest[end..];
        }
        out + rest
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Limits on time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// From the name to the finished handshake.
    pub connect: Duration,
    /// From the request to the end of the reply's headers.
    pub first_byte: Duration,
    /// Longest silence between two bytes, before the first one too.
    pub stall: Duration,
    /// Connections that are kept open between requests.
    pub idle_connections: usize,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions {
            connect: Duration::from_secs(10),
            first_byte: Duration::from_secs(60),
            stall: Duration::from_secs(30),
            idle_connections: 8,
        }
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Post,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    method: Method,
    address: Address,
    headers: Vec<(&'static str, String)>,
    bearer: Option<&'a Secret>,
    bearer_may_be_read: bool,
    call_off: Option<CallOff>,
    body: &'a [u8],
    stays: bool,
}

impl<'a> Request<'a> {
    pub fn get(address: Address) -> Request<'a> {
        Request {
            method: Method::Get,
            address,
            headers: Vec::new(),
            bearer: None,
            bearer_may_be_read: false,
            call_off: None,
            body: &[],
            stays: false,
        }
    }

    /// Asks for the headers of what [`Request::get`] would give.
    pub fn head(address: Address) -> Request<'a> {
        Request { method: Method::Head, ..Request::get(address) }
    }

    /// Sends `body`; redirects of it are refused.
    pub fn post(address: Address, content_type: &str, body: &'a [u8]) -> Request<'a> {
        let request = Request { method: Method::Post, body, ..Request::get(address) };
        request.header("content-type", content_type)
    }

    /// A header; `authorization` is [`Request::bearer`]'s business.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Request<'a> {
        self.headers.push((name, value.into()));
        self
    }

    /// Proof of who asks. It goes to the address's own origin and to no redirect's, and not where it can be read on the
    /// way.
    #[must_use]
    pub fn bearer(mut self, token: Option<&'a Secret>) -> Request<'a> {
        self.bearer = token;
        self
    }

    /// With leave, the proof of who asks goes to an origin that is open, too.
    #[must_use]
    pub fn bearer_may_be_read(mut self, leave: bool) -> Request<'a> {
        self.bearer_may_be_read = leave;
        self
    }

    /// Lets another thread give this request up.
    #[must_use]
    pub fn called_off_by(mut self, call_off: Option<CallOff>) -> Request<'a> {
        self.call_off = call_off;
        self
    }

    /// A redirect to another origin is the reply and not followed.
    #[must_use]
    pub fn stay(mut self) -> Request<'a> {
        self.stays = true;
        self
    }
}

/// The one HTTP client. Cheap to share between threads.
pub struct Client {
    agent: Agent,
    cleared: Cleared,
    options: ClientOptions,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("cleared", &self.cleared).field("options", &self.options).finish()
    }
}

impl Client {
    /// A client that may ask wherever `cleared` reaches.
    pub fn new(cleared: Cleared, options: ClientOptions) -> Client {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .user_agent(concat!("stillroom/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .max_response_header_size(HEADER_BYTES_MAX)
            .timeout_resolve(Some(options.connect))
            .timeout_connect(Some(options.connect))
            .timeout_recv_response(Some(options.first_byte))
            .timeout_per_read(Some(options.stall))
            .timeout_per_write(Some(options.stall))
            .max_idle_connections(options.idle_connections)
            .max_idle_connections_per_host(options.idle_connections)
            .build();
        let connector = DefaultConnector::default().chain(SilenceConnector);
        let agent = Agent::with_parts(config, connector, DefaultResolver::default());
        Client { agent, cleared, options }
    }

    /// Where this client may ask.
    pub fn reach(&self) -> &Reach {
        self.cleared.reach()
    }

    /// Sends a request and follows redirects within the leave. Any status is a reply.
    pub fn send(&self, request: &Request<'_>) -> Result<Response> {
        let home = request.address.origin();
        let mut address = request.address.clone();
        if !self.reach().permits(home) {
            return Err(NetError::NotCleared { place: home.to_string() });
        }
        let mut first_headers: Option<HeaderMap> = None;
        for _ in 0..=REDIRECTS_MAX {
            let reply = self.once(request, &address, address.origin() == home)?;
            let location = match reply.status().as_u16() {
                301 | 302 | 303 | 307 | 308 => reply.headers().get(http::header::LOCATION).cloned(),
                _ => None,
            };
            let Some(location) = location else {
                return self.response(request, reply, &address, first_headers);
            };
            let location = location.to_str().unwrap_or("\u{fffd}");
            let refused = |to: String| NetError::Redirect { from: address.place(), to };
            let next = address.join(location).map_err(|_| refused(without_query(location)))?;
            if request.stays && next.origin() != home {
                return self.response(request, reply, &address, first_headers);
            }
            let downgrade = address.is_https() && !next.is_https();
            if request.method == Method::Post || downgrade || !self.reach().permits(next.origin()) {
                return Err(refused(next.place()));
            }
            first_headers.get_or_insert_with(|| reply.headers().clone());
            address = next;
        }
        Err(NetError::Redirects { place: address.place(), redirects_max: REDIRECTS_MAX })
    }

    /// Sends a [`Request::post`] whose body is read piece by piece: `bytes` of it. Any status is a reply, a redirect is an
    /// error. If so much of the body cannot be read, the connection is cut.
    pub fn upload(&self, request: &Request<'_>, body: &mut dyn Read, bytes: u64) -> Result<Response> {
        let (address, home) = (&request.address, request.address.origin());
        if !self.reach().permits(home) {
            return Err(NetError::NotCleared { place: home.to_string() });
        }
        let builder = Client::builder(request, address, true)?.header(http::header::CONTENT_LENGTH, bytes);
        let malformed = |_| NetError::BadPath { place: address.place() };
        let mut body = Exactly { body, left: bytes };
        let built = builder.body(SendBody::from_reader(&mut body)).map_err(malformed)?;
        let reply = self.agent.run(built).map_err(|error| self.trouble(error, &address.place()))?;
        if reply.status().is_redirection() {
            let to = reply.headers().get(http::header::LOCATION).and_then(|to| to.to_str().ok());
            let to = without_query(to.unwrap_or("\u{fffd}"));
            return Err(NetError::Redirect { from: address.place(), to });
        }
        self.response(request, reply, address, None)
    }

    fn response(
        &self,
        request: &Request<'_>,
        reply: http::Response<Body>,
        address: &Address,
        first_headers: Option<HeaderMap>,
    ) -> Result<Response> {
        let response = Response::of(reply, address, first_headers, self.options)?;
        Ok(Response { call_off: request.call_off.clone(), ..response })
    }

    fn once(&self, request: &Request<'_>, address: &Address, at_home: bool) -> Result<http::Response<Body>> {
        let builder = Client::builder(request, address, at_home)?;
        let malformed = |_| NetError::BadPath { place: address.place() };
        let call_off = request.call_off.as_ref();
        let sent = if request.method == Method::Post {
            let built = builder.body(request.body).map_err(malformed)?;
            silence::within(None, call_off, || self.agent.run(built))
        } else {
            let built = builder.body(()).map_err(malformed)?;
            silence::within(None, call_off, || self.agent.run(built))
        };
        sent.map_err(|error| self.trouble(error, &address.place()))
    }

    /// A request's head. What proves who asks goes home and nowhere else.
    fn builder(request: &Request<'_>, address: &Address, at_home: bool) -> Result<http::request::Builder> {
        let method = match request.method {
            Method::Get => http::Method::GET,
            Method::Head => http::Method::HEAD,
            Method::Post => http::Method::POST,
        };
        let mut builder = http::Request::builder().method(method).uri(address.uri().clone());
        for &(name, ref value) in &request.headers {
            let value = HeaderValue::from_str(value).map_err(|_| NetError::BadHeader { name })?;
            builder = builder.header(HeaderName::from_static(name), value);
        }
        if let Some(Secret(token)) = request.bearer.filter(|_| at_home) {
            if address.origin().is_open() && !request.bearer_may_be_read {
                return Err(NetError::OpenKey { place: address.origin().to_string() });
            }
            let value = HeaderValue::from_str(&format!("Bearer {token}"));
            let mut value = value.map_err(|_| NetError::BadHeader { name: "authorization" })?;
            value.set_sensitive(true);
            builder = builder.header(http::header::AUTHORIZATION, value);
        }
        Ok(builder)
    }

    fn trouble(&self, error: ureq::Error, place: &str) -> NetError {
        trouble(error, place, Phase::FirstByte, self.options)
    }
}

/// A body whose end is an error before its announced length: who waits for more would wait for ever.
struct Exactly<'a> {
    body: &'a mut dyn Read,
    left: u64,
}

impl Read for Exactly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.body.read(&mut buffer[..most])?;
        if n == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n as u64;
        Ok(n)
    }
}

/// A reply whose body has not been read yet.
pub struct Response {
    status: u16,
    headers: HeaderMap,
    first_headers: Option<HeaderMap>,
    body: BodyReader<'static>,
    place: String,
    options: ClientOptions,
    silence: Option<Duration>,
    call_off: Option<CallOff>,
    bytes: u64,
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response").field("place", &self.place).field("status", &self.status).finish()
    }
}

impl Response {
    fn of(
        reply: http::Response<Body>,
        address: &Address,
        first_headers: Option<HeaderMap>,
        options: ClientOptions,
    ) -> Result<Response> {
        let (parts, body) = reply.into_parts();
        let place = address.place();
        let encoding = parts.headers.get(http::header::CONTENT_ENCODING);
        if encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Err(NetError::bad_reply(&place, "the reply is compressed, which was not asked for"));
        }
        Ok(Response {
            status: parts.status.as_u16(),
            headers: parts.headers,
            first_headers,
            body: body.into_reader(),
            place,
            options,
            silence: None,
            call_off: None,
            bytes: 0,
        })
    }

    pub fn status(&self) -> u16 {
        self.status
    }

    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Where the reply comes from, without a query.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// A header of the reply.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// A header of what the address itself answered, before any redirect.
    pub fn first_header(&self, name: &str) -> Option<&str> {
        self.first_headers.as_ref().unwrap_or(&self.headers).get(name)?.to_str().ok()
    }

    /// Length of the body, where the server announces it.
    pub fn content_length(&self) -> Option<u64> {
        self.header("content-length")?.trim().parse().ok()
    }

    /// This reply, or the error that its status is.
    pub fn success(self) -> Result<Response> {
        if self.is_success() { Ok(self) } else { Err(self.status_error()) }
    }

    /// The error of this status.
    pub fn status_error(&self) -> NetError {
        let wait = self.retry_after();
        NetError::Status {
            place: self.place.clone(),
            status: self.status,
            retry_after_s: wait.map(|wait| wait.as_secs_f64().ceil() as u64),
        }
    }

    /// How long the server asks to be left alone, counted from now.
    pub fn retry_after(&self) -> Option<Duration> {
        retry_after::wait(|name| self.header(name), SystemTime::now())
    }

    /// From here on, reads wait for bytes no longer than this; [`ClientOptions::stall`] before.
    pub fn allow_silence(&mut self, limit: Duration) {
        self.silence = Some(limit);
    }

    /// The next bytes of the body; 0 at its end. A body cut before its announced length is an error.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            match silence::within(self.silence, self.call_off.as_ref(), || self.body.read(buffer)) {
                Ok(n) => {
                    self.bytes += n as u64;
                    return Ok(n);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let stall = self.silence.unwrap_or(self.options.stall);
                    let options = ClientOptions { stall, ..self.options };
                    return Err(trouble(ureq::Error::from(error), &self.place, Phase::Body, options));
                }
            }
        }
    }

    /// The whole body, refused beyond `bytes_max`.
    pub fn read_to_vec(mut self, bytes_max: u64) -> Result<Vec<u8>> {
        let too_large = || NetError::TooLarge { place: self.place.clone(), bytes_max };
        if self.content_length().is_some_and(|bytes| bytes > bytes_max) {
            return Err(too_large());
        }
        let mut whole = Vec::new();
        let mut piece = vec![0; 64 << 10];
        loop {
            let n = self.read(&mut piece)?;
            if n == 0 {
                return Ok(whole);
            }
            if self.bytes > bytes_max {
                return Err(NetError::TooLarge { place: self.place, bytes_max });
            }
            whole.extend_from_slice(&piece[..n]);
        }
    }
}

fn without_query(location: &str) -> String {
    let end = location.find(['?', '#']).unwrap_or(location.len());
    let text = &location[..end];
    // Credentials stand before an `@`.
    match text.rsplit_once('@') {
        Some((_, rest)) => shown(&format!("…@{rest}")),
        None => shown(text),
    }
}

/// The client library's errors in our words; their own text may hold addresses and is not passed on.
fn trouble(error: ureq::Error, place: &str, phase: Phase, options: ClientOptions) -> NetError {
    use ureq::{Error, Timeout};
    let place = place.to_owned();
    match error {
        Error::Timeout(Timeout::Resolve | Timeout::Connect) => {
            NetError::Timeout { place, phase: Phase::Connect, seconds: options.connect.as_secs() }
        }
        Error::Timeout(Timeout::RecvResponse) => {
            NetError::Timeout { place, phase, seconds: options.first_byte.as_secs() }
        }
        Error::Timeout(_) => NetError::Timeout { place, phase, seconds: options.stall.as_secs() },
        Error::HostNotFound => NetError::UnknownHost { place },
        Error::Io(error) if error.get_ref().is_some_and(|inner| inner.is::<CalledOff>()) => {
            NetError::CalledOff { place }
        }
        Error::Io(error) => match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                NetError::Timeout { place, phase, seconds: options.stall.as_secs() }
            }
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::AddrNotAvailable => NetError::Connect { place, cause: error.kind().to_string() },
            // The standard library has no kind of its own for a name that nobody knows.
            _ if error.to_string().starts_with("failed to lookup address") => NetError::UnknownHost { place },
            io::ErrorKind::InvalidData => NetError::Tls { place, cause: shown(&error.to_string()) },
            _ => NetError::Cut { place },
        },
        Error::ConnectionFailed => NetError::Connect { place, cause: "nobody answers".to_owned() },
        Error::Rustls(error) => NetError::Tls { place, cause: shown(&error.to_string()) },
        Error::Tls(cause) => NetError::Tls { place, cause: cause.to_owned() },
        Error::TlsRequired => NetError::Tls { place, cause: "it is missing".to_owned() },
        Error::LargeResponseHeader(..) => {
            NetError::bad_reply(&place, format!("the headers are longer than {HEADER_BYTES_MAX} bytes"))
        }
        Error::BodyExceedsLimit(bytes_max) => NetError::TooLarge { place, bytes_max },
        _ => NetError::bad_reply(&place, "the reply is not well-formed HTTP"),
    }
}

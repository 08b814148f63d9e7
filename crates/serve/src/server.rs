//! The address, who is let in, and which route is which.

use std::collections::HashMap;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use stillroom_core::Digest;
use stillroom_formats::Tokenizer;
use stillroom_model::Decoder;
use subtle::{Choice, ConstantTimeEq};

use crate::answering::{Outcome, answer};
use crate::ask::{Endpoint, Reader};
use crate::engine::{self, Queue};
use crate::error::ServeError;
use crate::http::{Connection, Fault, Request, Response};
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::refusal::Refusal;
use crate::sink::AnswerSink;

/// Characters of the weights' digest in `system_fingerprint`.
const FINGERPRINT_CHARS: usize = 12;
/// How long nothing is accepted where a connection could not be: most likely files have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A model that is served.
pub struct Served {
    pub decoder: Decoder,
    pub tokenizer: Tokenizer,
}

#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen; port 0 takes a free one.
    pub address: SocketAddr,
    /// Digests (SHA-256) of the API keys, one of which each request must have; none asks for none.
    pub keys: Vec<Digest>,
    /// What requests call the model.
    pub model_name: String,
    /// Digest of its weights.
    pub weights: Digest,
    /// Tokens of a prompt and its answer together, where that is to be less than the model can.
    pub context: Option<usize>,
    pub limits: Limits,
}

/// A server that listens, and does not answer yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// What every connection has to do with.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) model: Served,
    pub(crate) sink: Option<Box<dyn AnswerSink>>,
    pub(crate) fingerprint: String,
    pub(crate) queue: Queue,
    pub(crate) metrics: Metrics,
    context: usize,
    started: u64,
    stopping: AtomicBool,
    /// What makes the server unfit to answer.
    failure: Mutex<Option<String>>,
    /// Bytes of the bodies that are held.
    bodies: AtomicUsize,
    open: Mutex<HashMap<u64, TcpStream>>,
    closed: Condvar,
}

/// Ends a server from another thread.
#[derive(Clone)]
pub struct Stopper {
    shared: Arc<Shared>,
    address: SocketAddr,
}

/// Time since 1970.
pub(crate) fn unix() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Shared {
    pub(crate) fn reader(&self) -> Reader<'_> {
        let config = self.model.decoder.config();
        Reader {
            tokenizer: &self.model.tokenizer,
            model: &self.settings.model_name,
            context: self.context,
            stop_token_ids: &config.eos_token_ids,
            vocab_size: config.vocab_size,
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Takes note of why this server cannot answer any more.
    pub(crate) fn fail(&self, cause: &str) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert_with(|| cause.to_owned());
    }

    fn failed(&self) -> bool {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<u64, TcpStream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No more is taken; connections that wait for a request end.
    fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.queue.end(false);
        // What cannot be shut down has ended already.
        self.connections().values().for_each(|stream| drop(stream.shutdown(Shutdown::Read)));
    }
}

impl Stopper {
    /// Answers that are being written may end in their time (`Limits::drain_time`); nothing else is taken any more.
    pub fn stop(&self) {
        self.shared.stop();
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(match address.ip() {
                IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        // The one that waits for connections looks up.
        drop(TcpStream::connect_timeout(&address, Duration::from_secs(1)));
    }
}

impl Server {
    /// Takes the address. One that other machines can reach needs an API key.
    pub fn bind(
        settings: Settings,
        model: Served,
        sink: Option<Box<dyn AnswerSink>>,
    ) -> Result<Server, ServeError> {
        let address = settings.address;
        if !address.ip().is_loopback() && settings.keys.is_empty() {
            return Err(ServeError::Open { address });
        }
        let listen = |source| ServeError::Listen { address, source };
        let listener = TcpListener::bind(address).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let most = model.decoder.config().max_position_embeddings;
        let digits = settings.weights.to_string();
        let shared = Shared {
            fingerprint: format!("fp_{}", &digits[..FINGERPRINT_CHARS]),
            queue: Queue::default(),
            metrics: Metrics::default(),
            context: settings.context.unwrap_or(most).clamp(1, most),
            started: unix().as_secs(),
            stopping: AtomicBool::new(false),
            failure: Mutex::new(None),
            bodies: AtomicUsize::new(0),
            open: Mutex::new(HashMap::new()),
            closed: Condvar::new(),
            settings,
            model,
            sink,
        };
        Ok(Server { listener, address, shared: Arc::new(shared) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tokens of a prompt and its answer together.
    pub fn context(&self) -> usize {
        self.shared.context
    }

    /// `system_fingerprint` of its replies.
    pub fn fingerprint(&self) -> &str {
        &self.shared.fingerprint
    }

    pub fn stopper(&self) -> Stopper {
        Stopper { shared: Arc::clone(&self.shared), address: self.address }
    }

    /// Answers until it is stopped. Behind that every answer that was given is on record.
    pub fn run(self) -> Result<(), ServeError> {
        let stopper = self.stopper();
        let shared = Arc::clone(&self.shared);
        let model = move || {
            let Limits { in_flight_max, .. } = shared.settings.limits;
            let work = || {
                engine::run(
                    &shared.queue,
                    &shared.model.decoder,
                    in_flight_max,
                    shared.context,
                    &shared.metrics,
                );
            };
            let ended = catch_unwind(AssertUnwindSafe(work));
            if ended.is_err() {
                shared.fail("the model's own thread has failed");
                shared.queue.end(true);
                stopper.stop();
            }
            ended.is_ok()
        };
        let thread = std::thread::Builder::new().name("model".to_owned()).spawn(model);
        let thread = thread.map_err(|source| ServeError::Thread { source })?;
        self.accept();
        self.drain();
        self.shared.queue.end(true);
        self.drain();
        match thread.join() {
            Ok(true) => Ok(()),
            _ => Err(ServeError::Engine),
        }
    }

    fn accept(&self) {
        for number in 0.. {
            let accepted = self.listener.accept();
            if self.shared.is_stopping() {
                return;
            }
            match accepted {
                Ok((stream, _)) => self.serve(number, stream),
                Err(_) => std::thread::sleep(ACCEPT_PAUSE),
            }
        }
    }

    /// Gives a connection a thread of its own; one too many is told to come back.
    fn serve(&self, number: u64, stream: TcpStream) {
        let shared = Arc::clone(&self.shared);
        let limits = shared.settings.limits;
        let Ok(other_end) = stream.try_clone() else { return };
        {
            let mut open = shared.connections();
            if open.len() >= limits.connections_max {
                drop(open);
                let refusal = Refusal::new(503, "there are as many connections as this server takes");
                // In one piece and without waiting: whoever does not take it finds a closed connection.
                let limits = Limits { write_time: Duration::from_millis(1), ..limits };
                let refused = refusal.code("too_many_connections").retry_after(1).response();
                drop(Connection::new(stream, limits).send(&Request::default(), &refused));
                shared.metrics.request("none", 503);
                return;
            }
            open.insert(number, other_end);
            shared.metrics.connections.store(open.len() as u64, Ordering::Relaxed);
        }
        let leaving = Leaving { shared: Arc::clone(&shared), number };
        let talk = move || {
            let leaving = leaving;
            converse(&leaving.shared, Connection::new(stream, limits));
        };
        // Where there are no more threads the connection is closed.
        drop(std::thread::Builder::new().name("connection".to_owned()).spawn(talk));
    }

    /// Waits for the connections to end.
    fn drain(&self) {
        let shared = &self.shared;
        let waited = shared.closed.wait_timeout_while(
            shared.connections(),
            shared.settings.limits.drain_time,
            |open| !open.is_empty(),
        );
        drop(waited);
    }
}

/// Takes a connection off the list, however its thread ends.
struct Leaving {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let mut open = self.shared.connections();
        open.remove(&self.number);
        self.shared.metrics.connections.store(open.len() as u64, Ordering::Relaxed);
        self.shared.closed.notify_all();
    }
}

/// Room for a body, as long as it is held.
struct Held<'s> {
    shared: &'s Shared,
    bytes: usize,
}

impl<'s> Held<'s> {
    fn take(shared: &'s Shared, bytes: usize) -> Result<Held<'s>, Refusal> {
        let held = Held { shared, bytes };
        match shared.bodies.fetch_add(bytes, Ordering::Relaxed) + bytes
            > shared.settings.limits.bodies_bytes_max
        {
            true => Err(Refusal::new(
                503,
                "the bodies of other requests take all the room that there is for them",
            )
            .code("bodies_full")
            .retry_after(1)),
            false => Ok(held),
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.shared.bodies.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// One request behind the other.
fn converse(shared: &Shared, mut connection: Connection) {
    while !shared.is_stopping() {
        let refused = |connection: Connection, route, refusal: &Refusal| {
            shared.metrics.request(route, refusal.status);
            connection.refuse(&refusal.response());
        };
        let mut request = match connection.read() {
            Ok(request) => request,
            Err(Fault::Ended) => return,
            Err(Fault::Refused(status, what)) => {
                return refused(connection, "none", &Refusal::new(status, what));
            }
        };
        let route = Route::of(&request.path);
        // Who may not be heard sends no body.
        let admitted = admitted(shared, &request, &route)
            .and_then(|key| Held::take(shared, request.length).map(|held| (key, held)));
        let outcome = match admitted {
            Err(refusal) if request.length > 0 => return refused(connection, route.name(), &refusal),
            Err(refusal) => send(&mut connection, &request, &refusal.response()),
            Ok((key, _held)) => {
                match connection.read_body(&mut request) {
                    Ok(()) => {}
                    Err(Fault::Ended) => return,
                    Err(Fault::Refused(status, what)) => {
                        return refused(connection, route.name(), &Refusal::new(status, what));
                    }
                }
                request.keep_alive &= !shared.is_stopping();
                respond(shared, &mut connection, &request, &route, key)
            }
        };
        shared.metrics.request(route.name(), outcome.status);
        if !outcome.stays {
            return;
        }
    }
}

fn send(connection: &mut Connection, request: &Request, response: &Response) -> Outcome {
    let stays = connection.send(request, response).is_ok() && request.keep_alive;
    Outcome { status: response.status, stays }
}

/// Where a path leads.
enum Route {
    Ask(Endpoint),
    Models,
    Model(String),
    Health,
    Metrics,
    None,
}

impl Route {
    fn of(path: &str) -> Route {
        match path {
            "/v1/chat/completions" => Route::Ask(Endpoint::Chat),
            "/v1/completions" => Route::Ask(Endpoint::Completions),
            "/v1/models" => Route::Models,
            "/healthz" | "/health" => Route::Health,
            "/metrics" => Route::Metrics,
            _ => match path.strip_prefix("/v1/models/") {
                Some(name) => Route::Model(name.to_owned()),
                None => Route::None,
            },
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Route::Ask(endpoint) => endpoint.as_str(),
            Route::Models | Route::Model(_) => "models",
            Route::Health => "healthz",
            Route::Metrics => "metrics",
            Route::None => "none",
        }
    }
}

fn respond(
    shared: &Shared,
    connection: &mut Connection,
    request: &Request,
    route: &Route,
    key: Option<Digest>,
) -> Outcome {
    let response = match route {
        Route::Ask(endpoint) => return answer(shared, connection, request, *endpoint, key),
        Route::Models => Response::json(200, &json!({ "object": "list", "data": [model(shared)] })),
        Route::Model(name) if *name == shared.settings.model_name => Response::json(200, &model(shared)),
        Route::Health => health(shared),
        Route::Metrics => Response {
            status: 200,
            content_type: "text/plain; version=0.0.4; charset=utf-8",
            headers: Vec::new(),
            body: shared.metrics.text().into_bytes(),
        },
        Route::Model(_) | Route::None => {
            let path: String = request.path.chars().take(64).collect();
            Refusal::new(404, format!("there is nothing at `{path}`")).code("not_found").response()
        }
    };
    send(connection, request, &response)
}

/// Whether a request may be heard; with the digest of its key, where keys are asked for.
fn admitted(shared: &Shared, request: &Request, route: &Route) -> Result<Option<Digest>, Refusal> {
    if shared.settings.address.ip().is_loopback() {
        check_is_here(request)?;
    }
    let key = match route {
        Route::Health => None,
        _ => known_key(&shared.settings.keys, request.authorization.as_deref())?,
    };
    let is_ask = matches!(route, Route::Ask(_));
    match (request.method.as_str(), is_ask) {
        ("POST", true) => {}
        ("GET" | "HEAD", false) => return Ok(key),
        _ => {
            let message = if is_ask { "this route is asked by POST" } else { "this route is read by GET" };
            return Err(Refusal::new(405, message).code("method_not_allowed"));
        }
    }
    let is_json = |kind: &str| {
        kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
    };
    // Forms of foreign pages can send other types without asking.
    if !request.content_type.as_deref().is_some_and(is_json) {
        return Err(Refusal::new(415, "the body must be `application/json`").code("unsupported_media_type"));
    }
    Ok(key)
}

/// A page from elsewhere may talk a browser into asking this machine, by a name that leads here or across origins.
fn check_is_here(request: &Request) -> Result<(), Refusal> {
    let is_here = |authority: &str| {
        let host = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((inner, _)) => inner,
            None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
        };
        host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    };
    let refuse =
        |what: &str| Err(Refusal::new(403, format!("`{what}` names another machine")).code("not_here"));
    if request.host.as_deref().is_some_and(|host| !is_here(host)) {
        return refuse("Host");
    }
    let is_ours = |origin: &str| origin.split_once("://").is_some_and(|(_, authority)| is_here(authority));
    match request.origin.as_deref().is_none_or(is_ours) {
        true => Ok(()),
        false => refuse("Origin"),
    }
}

/// Which of the keys a request has. The time that it takes says nothing of them.
fn known_key(keys: &[Digest], authorization: Option<&str>) -> Result<Option<Digest>, Refusal> {
    if keys.is_empty() {
        return Ok(None);
    }
    let refusal = |message: &str| Refusal::new(401, message).code("invalid_api_key");
    let given = authorization.and_then(|header| {
        let (scheme, key) = header.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| Digest::of(key.trim().as_bytes()))
    });
    let given = given.ok_or_else(|| refusal("an API key is needed: `Authorization: Bearer KEY`"))?;
    let same = |key: &Digest| key.as_bytes().ct_eq(given.as_bytes());
    let found = keys.iter().map(same).fold(Choice::from(0), |found, same| found | same);
    match bool::from(found) {
        true => Ok(Some(given)),
        false => Err(refusal("the API key is not one of this server's")),
    }
}

fn model(shared: &Shared) -> Value {
    json!({
        "id": shared.settings.model_name,
        "object": "model",
        "created": shared.started,
        "owned_by": "stillroom",
        "max_model_len": shared.context,
    })
}

fn health(shared: &Shared) -> Response {
    match shared.failed() || shared.is_stopping() {
        true => Response::json(503, &json!({ "status": "failed" })),
        false => Response::json(200, &json!({ "status": "ok" })),
    }
}

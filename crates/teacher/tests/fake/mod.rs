//! A teacher over the wire that is not there: an HTTP server on this machine with OpenAI's interface, whose replies follow
//! from the requests, and whose faults follow from a seed. For tests and benchmarks.
//!
//! The fault of a request depends on its digest and on how often the server has seen it, never on the order of others:
//! a retry draws anew, and a run can be had again.
#![allow(dead_code, unused_imports, reason = "each test that includes this module uses a part of it")]

use std::collections::BTreeMap;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

mod faults;
mod hostile;
pub(crate) mod http;
mod log;
mod payload;
mod serve;
mod words;

pub(crate) use faults::Faults;
pub(crate) use hostile::{HOSTILE, Hostile, How, LONE_SURROGATE, all as all_hostile};
pub(crate) use http::date;
pub(crate) use log::Entry;
pub(crate) use words::{Written, request_digest, tokens, written};

use log::Log;

/// Gives the text of a reply to a request's body, in place of the usual one.
pub(crate) type Author = dyn Fn(&Value) -> String + Send + Sync;

/// Gives log p of each token of a prompt but the first, in place of the usual one.
pub(crate) type Reader = dyn Fn(&[u32]) -> Vec<f32> + Send + Sync;

/// How the server behaves.
#[derive(Clone)]
pub(crate) struct Options {
    /// 0 for any that is free.
    pub(crate) port: u16,
    pub(crate) seed: u64,
    pub(crate) faults: Faults,
    /// Before the first byte of every reply.
    pub(crate) latency: Duration,
    /// Between the chunks of a stream.
    pub(crate) chunk_latency: Duration,
    /// What `Retry-After` asks for; its date form has whole seconds.
    pub(crate) retry_after: Duration,
    /// How long a stalled reply is held if the client does not give up.
    pub(crate) stall: Duration,
    /// Bytes of a huge body.
    pub(crate) huge_bytes: usize,
    /// A bearer key without which the reply is 401.
    pub(crate) key: Option<String>,
    /// Whether `usage` is told.
    pub(crate) usage: bool,
    /// Whether a reply may have reasoning, as a field or between tags.
    pub(crate) reasoning: bool,
    pub(crate) author: Option<Arc<Author>>,
    pub(crate) reader: Option<Arc<Reader>>,
    /// Whether replies are hostile: the one of the number that stands behind a `#` in the last turn, or any.
    pub(crate) hostile: bool,
    /// Where each request's entry is appended as a line of JSON.
    pub(crate) log: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            port: 0,
            seed: 1,
            faults: Faults::none(),
            latency: Duration::ZERO,
            chunk_latency: Duration::ZERO,
            retry_after: Duration::from_secs(1),
            stall: Duration::from_secs(120),
            huge_bytes: 80 << 20,
            key: None,
            usage: true,
            reasoning: true,
            author: None,
            reader: None,
            hostile: false,
            log: None,
        }
    }
}

/// The whole good reply to a request's body.
pub(crate) fn whole_reply(body: &Value) -> Value {
    let written = written(body, Options::default().reasoning, None);
    let name = request_digest(body).to_string();
    let payload = payload::Payload {
        body,
        written: &written,
        id: format!("chatcmpl-{}", &name[..12]),
        model: body["model"].as_str().unwrap_or("fake-teacher").to_owned(),
        usage: true,
        read: None,
    };
    payload.whole(faults::Fault::None)
}

/// What the server has seen and done.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Stats {
    pub(crate) connections: u64,
    /// For text, whatever became of them.
    pub(crate) requests: u64,
    /// Good replies that were sent to their end.
    pub(crate) replies: u64,
    /// Different requests that have had a good reply.
    pub(crate) served: u64,
    /// Good replies to requests that had had one: bought twice.
    pub(crate) served_again: u64,
    /// Retries that came before `Retry-After` allowed them.
    pub(crate) early_retries: u64,
    pub(crate) unauthorized: u64,
    /// Requests that were no HTTP, no JSON or for no known path.
    pub(crate) malformed: u64,
    /// Replies that the client did not read to their end.
    pub(crate) abandoned: u64,
    /// Requests at the same time.
    pub(crate) concurrent_max: u64,
    /// What would be billed, good replies and wasted ones.
    pub(crate) billed_prompt_tokens: u64,
    pub(crate) billed_completion_tokens: u64,
    /// The part of it for replies that are of no use.
    pub(crate) wasted_prompt_tokens: u64,
    pub(crate) wasted_completion_tokens: u64,
    /// Replies by fault; `none` are the good ones.
    pub(crate) faults: BTreeMap<&'static str, u64>,
}

impl Stats {
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "connections": self.connections,
            "requests": self.requests,
            "replies": self.replies,
            "served": self.served,
            "served_again": self.served_again,
            "early_retries": self.early_retries,
            "unauthorized": self.unauthorized,
            "malformed": self.malformed,
            "abandoned": self.abandoned,
            "concurrent_max": self.concurrent_max,
            "billed_prompt_tokens": self.billed_prompt_tokens,
            "billed_completion_tokens": self.billed_completion_tokens,
            "wasted_prompt_tokens": self.wasted_prompt_tokens,
            "wasted_completion_tokens": self.wasted_completion_tokens,
            "faults": self.faults,
        })
    }
}

/// A server that runs until it is dropped.
pub(crate) struct FakeTeacher {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: Option<std::thread::JoinHandle<()>>,
}

/// What the connections share.
struct Shared {
    options: Options,
    faults: Mutex<Faults>,
    hostile: Vec<Hostile>,
    log: Log,
    ends: AtomicBool,
    /// One handle per open connection, by number.
    open: Mutex<BTreeMap<u64, TcpStream>>,
}

impl FakeTeacher {
    /// Listens on 127.0.0.1.
    pub(crate) fn start(options: Options) -> FakeTeacher {
        FakeTeacher::try_start(options).expect("a port of this machine")
    }

    pub(crate) fn try_start(options: Options) -> io::Result<FakeTeacher> {
        let listener = TcpListener::bind(("127.0.0.1", options.port))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            faults: Mutex::new(options.faults.clone()),
            hostile: if options.hostile { hostile::all() } else { Vec::new() },
            log: Log::new(options.log.as_deref())?,
            ends: AtomicBool::new(false),
            open: Mutex::default(),
            options,
        });
        let for_listener = Arc::clone(&shared);
        let listening = std::thread::spawn(move || listen(&listener, &for_listener));
        Ok(FakeTeacher { address, shared, listening: Some(listening) })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What a recipe names: `http://127.0.0.1:PORT/v1`.
    pub(crate) fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Waits for requests that are being answered, for a few seconds.
    pub(crate) fn stats(&self) -> Stats {
        self.shared.log.settle();
        self.shared.log.stats()
    }

    /// Every request for text so far, in the order of their ends.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.shared.log.settle();
        self.shared.log.entries()
    }

    /// From the next request on.
    pub(crate) fn set_faults(&self, faults: Faults) {
        *self.shared.faults.lock().expect("the faults") = faults;
    }

    /// Stops listening and drops every connection, in the middle of a reply too.
    pub(crate) fn shutdown(&mut self) -> Stats {
        self.shared.ends.store(true, Ordering::SeqCst);
        // The listener waits for a connection; this is its last.
        drop(TcpStream::connect(self.address));
        if let Some(listening) = self.listening.take() {
            listening.join().expect("the listener ends");
        }
        for stream in self.shared.open.lock().expect("the connections").values() {
            // A connection that is closed already needs no closing.
            drop(stream.shutdown(Shutdown::Both));
        }
        self.stats()
    }
}

impl Drop for FakeTeacher {
    fn drop(&mut self) {
        if self.listening.is_some() {
            self.shutdown();
        }
    }
}

fn listen(listener: &TcpListener, shared: &Arc<Shared>) {
    for (number, stream) in (0..).zip(listener.incoming()) {
        if shared.ends.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let Ok(handle) = stream.try_clone() else { continue };
        shared.open.lock().expect("the connections").insert(number, handle);
        shared.log.connected();
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            // A connection ends in an error as soon as the client goes away.
            drop(serve::connection(&stream, &shared));
            shared.open.lock().expect("the connections").remove(&number);
        });
    }
}

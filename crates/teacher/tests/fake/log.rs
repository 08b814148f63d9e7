//! What was asked, when, and what became of it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use stillroom_core::Digest;

use super::Stats;

/// One request for text.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// When it had come, since the server's start.
    pub(crate) at_ms: u64,
    /// How long it took.
    pub(crate) took_ms: u64,
    pub(crate) digest: Digest,
    /// The client's name for it.
    pub(crate) request_id: Option<String>,
    /// How often it had come before.
    pub(crate) attempt: u64,
    pub(crate) fault: &'static str,
    pub(crate) is_good: bool,
    pub(crate) status: u16,
    /// Whether the reply was sent to its end.
    pub(crate) sent: bool,
    /// It came before `Retry-After` allowed it.
    pub(crate) early: bool,
    pub(crate) billed_prompt_tokens: u64,
    pub(crate) billed_completion_tokens: u64,
    /// The last turn that was asked about.
    pub(crate) prompt: String,
}

/// A request that has come and is not answered yet.
pub(crate) struct Arrival {
    pub(crate) at: Instant,
    pub(crate) attempt: u64,
    pub(crate) early: bool,
}

/// How long open requests are waited for.
const SETTLES: Duration = Duration::from_secs(5);

pub(crate) struct Log {
    started: Instant,
    inner: Mutex<Inner>,
    left: Condvar,
}

#[derive(Default)]
struct Inner {
    stats: Stats,
    entries: Vec<Entry>,
    known: HashMap<Digest, Known>,
    concurrent: u64,
    file: Option<BufWriter<File>>,
}

#[derive(Default)]
struct Known {
    attempts: u64,
    served: u64,
    not_before: Option<SystemTime>,
}

impl Log {
    pub(crate) fn new(path: Option<&Path>) -> io::Result<Log> {
        let file = path.map(File::create).transpose()?.map(BufWriter::new);
        let inner = Mutex::new(Inner { file, ..Inner::default() });
        Ok(Log { started: Instant::now(), inner, left: Condvar::new() })
    }

    pub(crate) fn stats(&self) -> Stats {
        self.with(|inner| inner.stats.clone())
    }

    /// Waits until what was answered is on record too: a client has its reply a moment earlier.
    pub(crate) fn settle(&self) {
        let inner = self.inner.lock().expect("the log");
        drop(self.left.wait_timeout_while(inner, SETTLES, |inner| inner.concurrent > 0).expect("the log"));
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.with(|inner| inner.entries.clone())
    }

    pub(crate) fn connected(&self) {
        self.with(|inner| inner.stats.connections += 1);
    }

    pub(crate) fn unauthorized(&self) {
        self.with(|inner| inner.stats.unauthorized += 1);
    }

    pub(crate) fn malformed(&self) {
        self.with(|inner| inner.stats.malformed += 1);
    }

    /// A request for text has come.
    pub(crate) fn arrive(&self, digest: Digest, now: SystemTime) -> Arrival {
        self.with(|inner| {
            inner.stats.requests += 1;
            inner.concurrent += 1;
            inner.stats.concurrent_max = inner.stats.concurrent_max.max(inner.concurrent);
            let known = inner.known.entry(digest).or_default();
            let attempt = known.attempts;
            known.attempts += 1;
            let early = known.not_before.is_some_and(|when| now < when);
            inner.stats.early_retries += u64::from(early);
            Arrival { at: Instant::now(), attempt, early }
        })
    }

    /// No retry of this request before that moment.
    pub(crate) fn forbid(&self, digest: Digest, until: SystemTime) {
        self.with(|inner| inner.known.entry(digest).or_default().not_before = Some(until));
    }

    /// It has been dealt with.
    pub(crate) fn leave(&self, arrival: &Arrival, mut entry: Entry) {
        entry.at_ms = arrival.at.saturating_duration_since(self.started).as_millis() as u64;
        entry.took_ms = arrival.at.elapsed().as_millis() as u64;
        self.with(|inner| {
            inner.concurrent -= 1;
            let stats = &mut inner.stats;
            *stats.faults.entry(entry.fault).or_default() += 1;
            stats.abandoned += u64::from(!entry.sent);
            stats.billed_prompt_tokens += entry.billed_prompt_tokens;
            stats.billed_completion_tokens += entry.billed_completion_tokens;
            if entry.is_good && entry.sent {
                stats.replies += 1;
                let known = inner.known.entry(entry.digest).or_default();
                stats.served += u64::from(known.served == 0);
                stats.served_again += u64::from(known.served > 0);
                known.served += 1;
            } else {
                stats.wasted_prompt_tokens += entry.billed_prompt_tokens;
                stats.wasted_completion_tokens += entry.billed_completion_tokens;
            }
            if let Some(file) = &mut inner.file {
                writeln!(file, "{}", line_of(&entry))
                    .and_then(|()| file.flush())
                    .expect("the log can be written");
            }
            inner.entries.push(entry);
        });
        self.left.notify_all();
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.inner.lock().expect("the log"))
    }
}

fn line_of(entry: &Entry) -> Value {
    json!({
        "at_ms": entry.at_ms,
        "took_ms": entry.took_ms,
        "digest": entry.digest.to_string(),
        "request_id": entry.request_id,
        "attempt": entry.attempt,
        "fault": entry.fault,
        "good": entry.is_good,
        "status": entry.status,
        "sent": entry.sent,
        "early": entry.early,
        "billed_prompt_tokens": entry.billed_prompt_tokens,
        "billed_completion_tokens": entry.billed_completion_tokens,
        "prompt": entry.prompt,
    })
}

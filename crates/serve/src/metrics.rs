//! What is counted, as Prometheus reads it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the histograms' buckets, in seconds.
const BUCKETS: [f64; 10] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0];

#[derive(Default)]
pub(crate) struct Metrics {
    /// By route and status.
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) completion_tokens: AtomicU64,
    /// Answers whose client went away first.
    pub(crate) cancelled: AtomicU64,
    /// Answers that the sink has taken.
    pub(crate) recorded: AtomicU64,
    pub(crate) connections: AtomicU64,
    /// Sequences that are being written, and that wait.
    pub(crate) writing: AtomicU64,
    pub(crate) waiting: AtomicU64,
    pub(crate) answer_seconds: Histogram,
    pub(crate) first_token_seconds: Histogram,
    pub(crate) record_seconds: Histogram,
}

#[derive(Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS.len()],
    count: AtomicU64,
    micros: AtomicU64,
}

impl Histogram {
    pub(crate) fn observe(&self, time: Duration) {
        let within = BUCKETS.iter().zip(&self.buckets).filter(|(bound, _)| time.as_secs_f64() <= **bound);
        within.for_each(|(_, bucket)| add(bucket, 1));
        add(&self.count, 1);
        add(&self.micros, time.as_micros() as u64);
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (bound, bucket) in BUCKETS.iter().zip(&self.buckets) {
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {}", get(bucket));
        }
        let (count, seconds) = (get(&self.count), get(&self.micros) as f64 / 1e6);
        let _ =
            writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {seconds}\n{name}_count {count}");
    }
}

pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Metrics {
    pub(crate) fn request(&self, route: &'static str, status: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((route, status)).or_default() += 1;
    }

    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        let name = "stillroom_requests_total";
        let _ = writeln!(out, "# HELP {name} Requests by route and status.\n# TYPE {name} counter");
        for ((route, status), n) in self.requests.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(out, "{name}{{route=\"{route}\",status=\"{status}\"}} {n}");
        }
        for (name, kind, help, value) in [
            ("prompt_tokens_total", "counter", "Tokens of prompts that were answered.", &self.prompt_tokens),
            ("completion_tokens_total", "counter", "Tokens written.", &self.completion_tokens),
            ("cancelled_total", "counter", "Answers whose client went away first.", &self.cancelled),
            ("answers_recorded_total", "counter", "Answers in the owner's log.", &self.recorded),
            ("connections", "gauge", "Open connections.", &self.connections),
            ("sequences_writing", "gauge", "Sequences that are being written.", &self.writing),
            ("sequences_waiting", "gauge", "Sequences that wait for a place.", &self.waiting),
        ] {
            let _ = writeln!(
                out,
                "# HELP stillroom_{name} {help}\n# TYPE stillroom_{name} {kind}\nstillroom_{name} {}",
                get(value)
            );
        }
        let times = [
            ("stillroom_answer_seconds", "From a request to the end of its answer.", &self.answer_seconds),
            (
                "stillroom_first_token_seconds",
                "From a request to its first token.",
                &self.first_token_seconds,
            ),
            ("stillroom_record_seconds", "What the owner's log took of an answer.", &self.record_seconds),
        ];
        times.iter().for_each(|(name, help, histogram)| histogram.write(&mut out, name, help));
        out
    }
}

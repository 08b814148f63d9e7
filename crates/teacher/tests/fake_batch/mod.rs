//! A batch service that is not there: files, jobs and results as OpenAI has them, on this machine. Replies are those of the
//! fake teacher; what becomes of a line follows from its name, and the disorder of results from a seed.
#![allow(dead_code, reason = "each test that includes this module uses a part of it")]

use std::collections::BTreeMap;
use std::io::{self, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use stillroom_core::{CounterRng, Digest};

use crate::fake::http::{self, Request};
use crate::fake::whole_reply;

const JSON: &str = "application/json";

/// How the service behaves.
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    /// Looks at a job before it is done.
    pub(crate) looks: u64,
    /// Before each reply.
    pub(crate) latency: Duration,
    /// A bearer key without which the reply is 401.
    pub(crate) key: Option<String>,
    /// Share of lines that fail, or are missing, in their first three tries.
    pub(crate) failing: f64,
    /// Whether results come shuffled, twice, with foreign and broken lines, and with a cut last one.
    pub(crate) disorder: bool,
    /// How the first jobs end; all others are `completed`. `gone` is so, too, without its file.
    pub(crate) ends: Vec<&'static str>,
    /// Requests whose job is created, and whose reply never comes.
    pub(crate) lost_replies: u64,
    /// Each request of this number is told to come back later; 0 for none.
    pub(crate) busy_every: u64,
    /// Jobs on one page of a list.
    pub(crate) page: usize,
    /// Where requests for content are sent on to.
    pub(crate) redirect: Option<String>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            seed: 1,
            looks: 1,
            latency: Duration::ZERO,
            key: None,
            failing: 0.0,
            disorder: false,
            ends: Vec::new(),
            lost_replies: 0,
            busy_every: 0,
            page: 100,
            redirect: None,
        }
    }
}

/// What the service has seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Stats {
    pub(crate) requests: u64,
    pub(crate) uploads: u64,
    /// Input files of jobs, by the digest in their metadata.
    pub(crate) jobs: Vec<String>,
    pub(crate) runs: Vec<String>,
    pub(crate) unauthorized: u64,
    pub(crate) lists: u64,
    /// Results that were made.
    pub(crate) lines: u64,
}

struct Job {
    id: String,
    input: String,
    metadata: Value,
    looks: u64,
    status: &'static str,
    counts: (u64, u64, u64),
    output: Option<String>,
    errors: Option<String>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    jobs: Vec<Job>,
    stats: Stats,
    lost: u64,
}

struct Shared {
    options: Options,
    state: Mutex<State>,
    ends: AtomicBool,
}

/// A service that runs until it is dropped.
pub(crate) struct FakeBatch {
    url: String,
    shared: Arc<Shared>,
}

impl FakeBatch {
    pub(crate) fn start(options: Options) -> FakeBatch {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port of this machine");
        let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
        let shared = Arc::new(Shared { options, state: Mutex::default(), ends: AtomicBool::new(false) });
        let for_listener = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if for_listener.ends.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&for_listener);
                // A connection ends in an error as soon as the client goes away.
                std::thread::spawn(move || drop(shared.serve(&stream)));
            }
        });
        FakeBatch { url, shared }
    }

    pub(crate) fn base_url(&self) -> String {
        self.url.clone()
    }

    pub(crate) fn stats(&self) -> Stats {
        self.shared.state.lock().expect("the state").stats.clone()
    }

    /// A job that somebody else has here.
    pub(crate) fn add_foreign_jobs(&self, n: usize) {
        let mut state = self.shared.state.lock().expect("the state");
        for _ in 0..n {
            let id = format!("batch_foreign{}", state.jobs.len());
            state.jobs.push(Job {
                id,
                input: String::new(),
                metadata: json!({"project": "another"}),
                looks: 1000,
                status: "completed",
                counts: (0, 0, 0),
                output: None,
                errors: None,
            });
        }
    }
}

impl Drop for FakeBatch {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        // The listener waits for a connection; this is its last.
        drop(TcpStream::connect(self.url.trim_start_matches("http://").trim_end_matches("/v1")));
    }
}

/// Results of a file of requests, and of what failed in it, as the service gives them.
pub(crate) fn answered(requests: &[u8], options: &Options) -> (Vec<u8>, Vec<u8>) {
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    for line in requests.split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
        let line: Value = serde_json::from_slice(line).expect("a request");
        assert_eq!((&line["method"], &line["url"]), (&json!("POST"), &json!("/v1/chat/completions")));
        let id = line["custom_id"].as_str().expect("a name");
        assert!(id.len() <= 64, "{id}");
        let attempt: u64 = id.rsplit('-').next().expect("a try").parse().expect("a number");
        let drawn = Digest::of(format!("{id} {}", options.seed).as_bytes());
        let fate =
            f64::from(u32::from_le_bytes(drawn.as_bytes()[..4].try_into().expect("four"))) / 2f64.powi(32);
        let fails = attempt < 3 && fate < options.failing;
        let of = |status: u16, body: Value| json!({"id": format!("r-{id}"), "custom_id": id, "response": {"status_code": status, "request_id": "q", "body": body}, "error": null});
        match (fails, (fate / options.failing.max(1e-9) * 4.0) as u64) {
            (false, _) => output.push(of(200, whole_reply(&line["body"])).to_string()),
            (true, 0) => errors.push(of(500, json!({"error": {"message": "overloaded", "type": "server_error"}})).to_string()),
            (true, 1) => errors.push(json!({"id": "r", "custom_id": id, "response": null, "error": {"code": "batch_expired", "message": "too late"}}).to_string()),
            (true, 2) => output.push(of(200, json!({"object": "chat.completion", "choices": []})).to_string()),
            (true, _) => {}
        }
    }
    if options.disorder {
        (disordered(output, options.seed), disordered(errors, options.seed + 1))
    } else {
        (lines_of(&output), lines_of(&errors))
    }
}

fn lines_of(lines: &[String]) -> Vec<u8> {
    lines.iter().flat_map(|line| [line.as_bytes(), b"\n"].concat()).collect()
}

/// Shuffled, some twice, among lines that are foreign or broken; the last one is cut.
fn disordered(mut lines: Vec<String>, seed: u64) -> Vec<u8> {
    if lines.is_empty() {
        return Vec::new();
    }
    let mut chance = CounterRng::new(&[seed]);
    let mut below = |n: usize| chance.below(n as u64) as usize;
    for _ in 0..lines.len().div_ceil(10) {
        let again = lines[below(lines.len())].clone();
        lines.push(again);
    }
    let foreign = |name: &str| {
        json!({"custom_id": name, "response": {"status_code": 200, "body": {"choices": [{"index": 0, "message": {"content": "not yours"}, "finish_reason": "stop"}]}}, "error": null}).to_string()
    };
    let other = &lines[0][..];
    let near = serde_json::from_str::<Value>(other).expect("a line")["custom_id"]
        .as_str()
        .expect("a name")
        .to_owned();
    let flipped = format!("{}{}", if near.starts_with('0') { '1' } else { '0' }, &near[1..]);
    lines.extend([foreign("request-1"), foreign(&flipped), foreign(""), foreign("\u{1b}[31m")]);
    lines.extend([
        "{".to_owned(),
        "null".to_owned(),
        "{\"custom_id\": 7}".to_owned(),
        String::new(),
        "\u{0}".to_owned(),
    ]);
    for i in (1..lines.len()).rev() {
        lines.swap(i, below(i + 1));
    }
    let cut = lines.iter().find(|line| line.len() > 40).expect("a result").clone();
    let mut bytes = lines_of(&lines);
    bytes.extend_from_slice(&cut.as_bytes()[..cut.len() * 2 / 3]);
    bytes
}

impl Shared {
    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream);
        while let Some(request) = http::read(&mut reader)? {
            std::thread::sleep(self.options.latency);
            let reply = self.answer(&request);
            std::thread::sleep(self.options.latency);
            let Some((status, kind, body)) = reply else { return Ok(()) };
            let more: Vec<(&str, String)> = self
                .options
                .redirect
                .iter()
                .filter(|_| status == 302)
                .map(|to| ("location", to.clone()))
                .collect();
            let mut out = http::head(status, kind, Some(body.len()), &more);
            out.extend_from_slice(&body);
            (&mut &*stream).write_all(&out)?;
        }
        Ok(())
    }

    /// Status, kind and body; none where the connection is cut.
    fn answer(&self, request: &Request) -> Option<(u16, &'static str, Vec<u8>)> {
        let mut state = self.state.lock().expect("the state");
        state.stats.requests += 1;
        let json = |value: &Value| Some((200, JSON, value.to_string().into_bytes()));
        let refused = |status: u16, message: &str| {
            let body = json!({"error": {"message": message, "type": "invalid_request_error", "code": null}});
            Some((status, JSON, body.to_string().into_bytes()))
        };
        if let Some(key) = &self.options.key
            && request.header("authorization") != Some(&format!("Bearer {key}"))
        {
            state.stats.unauthorized += 1;
            let given = request.header("authorization").unwrap_or_default();
            return refused(401, &format!("Incorrect API key provided: {given}"));
        }
        if state.stats.requests.is_multiple_of(self.options.busy_every) {
            return refused(429, "too many requests");
        }
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        let parts: Vec<&str> = path.trim_start_matches("/v1/").split('/').collect();
        match (request.method.as_str(), &parts[..]) {
            ("POST", ["files"]) => {
                let Some(file) = field_of(request, "file") else { return refused(400, "no file") };
                if field_of(request, "purpose").as_deref() != Some(b"batch") {
                    return refused(400, "another purpose");
                }
                state.stats.uploads += 1;
                let id = format!("file-{}", state.files.len());
                state.files.insert(id.clone(), file);
                json(&json!({"id": id, "object": "file", "purpose": "batch"}))
            }
            ("POST", ["batches"]) => self.create(&mut state, &request.body),
            ("GET", ["batches"]) => {
                state.stats.lists += 1;
                let after = query.split('&').find_map(|pair| pair.strip_prefix("after="));
                let mut newest = state.jobs.iter().rev();
                if let Some(after) = after {
                    newest.by_ref().find(|job| job.id == after)?;
                }
                let page: Vec<Value> = newest.by_ref().take(self.options.page).map(shown).collect();
                let has_more = newest.next().is_some();
                json(&json!({"object": "list", "data": page, "has_more": has_more}))
            }
            ("GET", ["batches", id]) => {
                let Some(at) = state.jobs.iter().position(|job| job.id == *id) else {
                    return refused(404, "no such job");
                };
                self.look(&mut state, at);
                json(&shown(&state.jobs[at]))
            }
            ("GET", ["files", id, "content"]) => match (&self.options.redirect, state.files.get(*id)) {
                (Some(_), _) => Some((302, JSON, Vec::new())),
                (None, Some(file)) => Some((200, "application/octet-stream", file.clone())),
                (None, None) => refused(404, "no such file"),
            },
            _ => refused(404, "no such path"),
        }
    }

    fn create(&self, state: &mut State, body: &[u8]) -> Option<(u16, &'static str, Vec<u8>)> {
        let body: Value = serde_json::from_slice(body).ok()?;
        let input = body["input_file_id"].as_str()?.to_owned();
        assert!(state.files.contains_key(&input), "a job without a file");
        assert_eq!(
            (&body["endpoint"], &body["completion_window"]),
            (&json!("/v1/chat/completions"), &json!("24h"))
        );
        let metadata = body["metadata"].clone();
        let names = |name: &str| metadata[name].as_str().expect("metadata").to_owned();
        state.stats.jobs.push(names("stillroom_file"));
        state.stats.runs.push(names("stillroom_run"));
        let id = format!("batch_{}", state.jobs.len());
        let status = "validating";
        state.jobs.push(Job {
            id,
            input,
            metadata,
            looks: 0,
            status,
            counts: (0, 0, 0),
            output: None,
            errors: None,
        });
        if state.lost < self.options.lost_replies {
            state.lost += 1;
            return None;
        }
        Some((200, JSON, shown(state.jobs.last()?).to_string().into_bytes()))
    }

    /// A job goes on with each look at it.
    fn look(&self, state: &mut State, at: usize) {
        let own = state.jobs[..at].iter().filter(|job| !job.input.is_empty()).count();
        let end = self.options.ends.get(own).copied().unwrap_or("completed");
        let job = &mut state.jobs[at];
        job.looks += 1;
        if job.looks <= self.options.looks {
            job.status = ["validating", "in_progress", "finalizing", "cancelling"][job.looks as usize % 4];
            return;
        }
        if matches!(job.status, "completed" | "expired" | "failed" | "cancelled") {
            return;
        }
        job.status = if end == "gone" { "completed" } else { end };
        if end == "failed" {
            return;
        }
        if end == "gone" {
            job.output = Some("file-gone".to_owned());
            return;
        }
        let requests = state.files[&job.input].clone();
        let n = requests.iter().filter(|&&b| b == b'\n').count() as u64;
        // Of a job that was not completed, the first half came.
        let kept = match end {
            "completed" => requests,
            _ => requests.split_inclusive(|&b| b == b'\n').take(n as usize / 2).flatten().copied().collect(),
        };
        let (output, errors) = answered(&kept, &self.options);
        state.stats.lines += n;
        let job = &mut state.jobs[at];
        job.counts = (n, n, 0);
        let (of_output, of_errors) = (format!("file-output-{at}"), format!("file-errors-{at}"));
        job.output = (!output.is_empty()).then(|| of_output.clone());
        job.errors = (!errors.is_empty()).then(|| of_errors.clone());
        state.files.insert(of_output, output);
        state.files.insert(of_errors, errors);
    }
}

fn shown(job: &Job) -> Value {
    let errors = (job.status == "failed").then(|| {
        json!({"object": "list", "data": [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached", "line": null}]})
    });
    json!({
        "id": job.id,
        "object": "batch",
        "input_file_id": job.input,
        "status": job.status,
        "metadata": job.metadata,
        "output_file_id": job.output,
        "error_file_id": job.errors,
        "errors": errors,
        "request_counts": {"total": job.counts.0, "completed": job.counts.1, "failed": job.counts.2},
    })
}

/// A field of a form.
fn field_of(request: &Request, name: &str) -> Option<Vec<u8>> {
    let boundary = request.header("content-type")?.strip_prefix("multipart/form-data; boundary=")?;
    let (start, end) = (format!("--{boundary}\r\n").into_bytes(), format!("\r\n--{boundary}").into_bytes());
    let body = &request.body;
    let find = |from: usize, what: &[u8]| {
        body[from..].windows(what.len()).position(|window| window == what).map(|at| at + from)
    };
    let mut from = 0;
    // The end of one part is the start of the next.
    while let Some(at) = find(from, &start) {
        let head = at + start.len();
        let text = find(head, b"\r\n\r\n")?;
        let ends = find(text + 2, &end)?;
        if body[head..text].windows(name.len() + 2).any(|w| w == format!("\"{name}\"").as_bytes()) {
            return Some(body[text + 4..ends].to_vec());
        }
        from = ends;
    }
    None
}

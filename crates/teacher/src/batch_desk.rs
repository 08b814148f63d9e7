//! What has been asked in files and what has come back: each result goes to the request whose name it bears, and into the
//! ledger before it counts.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::time::Instant;

use stillroom_core::Digest;
use stillroom_formats::openai::{BatchLine, BatchResult, Reply, ReplyFault, read_batch_line};
use stillroom_store::{
    Call, Entry, Ledger, Outcome, Scribe, StoreError, Totals, Try, atomic_write_with, create_dir_durable,
};

use crate::TeacherError;
use crate::ask::{Answer, Ask};
use crate::batch::{Problem, Tally};
use crate::batch_files::{
    self as files, CustomId, JOBS, Key, LINE_BYTES_MAX, Line, Lines, RESULTS, id_of_request, key_of,
};
use crate::call::{self, Fault, FaultKind};
use crate::estimate::Estimator;
use crate::outcome::{self, unix_ms};
use crate::redact;
use crate::session::Teacher;

/// What the ledger calls the place that a batch went to.
const PLACE: &str = "batch";
const METHOD: &str = "POST";
/// Entries of one commit.
const ENTRIES_MAX: usize = 512;
/// Problems that are listed; all are counted.
const PROBLEMS_MAX: usize = 10_000;
/// Characters of a foreign name that are listed.
const FOREIGN_CHARS_MAX: usize = 80;
/// Kept replies from which an estimate learns.
const LEARNED_FROM_MAX: usize = 256;

/// Sizes of files of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) requests_max: usize,
    pub(crate) bytes_max: u64,
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    Open,
    /// The ledger has the reply.
    Settled,
    /// The teacher will not answer it.
    Refused(String),
    /// The same as one before it.
    Twin(u32),
}

struct Asked {
    ask: Ask,
    request: Digest,
    state: State,
    /// Tries that stand in files: one more than the last one's number.
    written: u32,
    /// Tries of which it is known how they ended.
    tried: u32,
    /// The file of the last try.
    file: u32,
    fault: Option<String>,
}

impl Asked {
    fn waits(&self) -> bool {
        self.state == State::Open && self.written > self.tried
    }

    fn next_attempt(&self) -> u32 {
        self.written.max(self.tried)
    }
}

/// What a result of the same name said before.
struct Seen {
    print: Digest,
    good: bool,
}

#[derive(Default)]
struct RequestFile {
    /// Some result for it came.
    answered: bool,
    /// Nothing more will come.
    over: bool,
}

/// A file of requests that have no result.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Waiting {
    pub(crate) requests: u64,
    /// Of prompts and replies together, estimated.
    pub(crate) tokens: u64,
    pub(crate) usd: f64,
}

/// Where a result stands.
struct Place<'a> {
    file: &'a str,
    line: u64,
}

pub(crate) struct Desk<'a> {
    pub(crate) teacher: &'a Teacher,
    pub(crate) folder: PathBuf,
    pub(crate) tally: Tally,
    ledger: &'a Ledger,
    scribe: Scribe,
    limits: Limits,
    asks: Vec<Asked>,
    index: HashMap<Key, u32>,
    /// Names in files of requests that are not asked now.
    others: HashSet<Key>,
    files: BTreeMap<u32, RequestFile>,
    seen: HashMap<(u32, u32), Seen>,
    read: HashSet<PathBuf>,
    entries: Vec<Entry>,
    estimator: Estimator,
    next_call: u64,
    started: Instant,
}

impl<'a> Desk<'a> {
    /// Looks up what was asked before, in the ledger and in the files of requests in `folder`.
    pub(crate) fn open<E: From<TeacherError>>(
        teacher: &'a Teacher,
        ledger: &'a Ledger,
        folder: PathBuf,
        limits: Limits,
        asks: &mut dyn Iterator<Item = Result<Ask, E>>,
    ) -> Result<Desk<'a>, E> {
        for sub in [RESULTS, JOBS] {
            create_dir_durable(&folder.join(sub)).map_err(TeacherError::from)?;
        }
        let mut desk = Desk {
            teacher,
            folder,
            tally: Tally::default(),
            ledger,
            scribe: ledger.scribe(),
            limits,
            asks: Vec::new(),
            index: HashMap::new(),
            others: HashSet::new(),
            files: BTreeMap::new(),
            seen: HashMap::new(),
            read: HashSet::new(),
            entries: Vec::new(),
            estimator: Estimator::new(teacher.sampling.max_tokens as u64),
            next_call: ledger.next_call(),
            started: Instant::now(),
        };
        let mut learned = 0;
        for ask in asks {
            desk.add(ask?, &mut learned)?;
        }
        desk.tally.kept = desk.count(|asked| asked.state == State::Settled);
        desk.read_requests()?;
        Ok(desk)
    }

    fn add(&mut self, ask: Ask, learned: &mut usize) -> Result<(), TeacherError> {
        let request = self.teacher.request_digest(&ask);
        let number = self.asks.len() as u32;
        let (mut state, mut tried) = (State::Open, 0);
        match self.index.get(&key_of(&request)) {
            Some(&first) => state = State::Twin(first),
            None => {
                self.index.insert(key_of(&request), number);
                match outcome::kept(self.ledger, &request, &ask.id)? {
                    None => tried = self.tries(&request)?.iter().map(|t| t.attempt + 1).max().unwrap_or(0),
                    Some(Answer::Reply(receipt)) => {
                        state = State::Settled;
                        if *learned < LEARNED_FROM_MAX && !receipt.estimated {
                            self.estimator.learn(&ask, receipt.prompt_tokens, receipt.completion_tokens);
                            *learned += 1;
                        }
                    }
                    Some(Answer::Refused { fault } | Answer::GivenUp { fault }) => {
                        state = State::Refused(fault)
                    }
                }
            }
        }
        self.asks.push(Asked { ask, request, state, written: 0, tried, file: 0, fault: None });
        Ok(())
    }

    /// Tries by way of files; those of a session over the wire are another count.
    fn tries(&self, request: &Digest) -> Result<Vec<Try>, TeacherError> {
        let mut tries = self.ledger.tries(request)?;
        tries.retain(|t| t.endpoint.starts_with(PLACE));
        Ok(tries)
    }

    /// Requests that a file has at most.
    pub(crate) fn requests_max(&self) -> u64 {
        self.limits.requests_max as u64
    }

    /// Whether anything has neither an answer nor a refusal.
    pub(crate) fn is_wanting(&self) -> bool {
        self.asks.iter().any(|asked| asked.state == State::Open)
    }

    fn count(&self, is: impl Fn(&Asked) -> bool) -> u64 {
        self.asks.iter().filter(|asked| is(asked)).count() as u64
    }

    fn read_requests(&mut self) -> Result<(), TeacherError> {
        for (number, path) in files::request_files(&self.folder)? {
            self.files.insert(number, RequestFile::default());
            let mut lines = Lines::open(&path, LINE_BYTES_MAX)?;
            let mut line = Vec::new();
            while lines.next(&mut line)?.is_some() {
                let Some(id) = id_of_request(&line) else { continue };
                match self.index.get(&id.key) {
                    None => drop(self.others.insert(id.key)),
                    Some(&i) => {
                        let asked = &mut self.asks[i as usize];
                        if id.attempt >= asked.written {
                            (asked.written, asked.file) = (id.attempt + 1, number);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Nothing more will come for a file.
    pub(crate) fn is_over(&mut self, file: u32) {
        self.files.entry(file).or_default().over = true;
    }

    /// Reads the files of results that this process has not read, and takes for lost what is missing from what was
    /// answered.
    pub(crate) fn read_results(&mut self) -> Result<(), TeacherError> {
        for path in files::result_files(&self.folder.join(RESULTS))? {
            if self.read.insert(path.clone()) {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                self.tally.files += 1;
                self.read_file(&name, Lines::open(&path, LINE_BYTES_MAX)?)?;
            }
        }
        for i in 0..self.asks.len() {
            let asked = &self.asks[i];
            let ended = self.files.get(&asked.file).is_some_and(|file| file.answered || file.over);
            if asked.waits() && ended {
                self.tally.missing += 1;
                let what = "its file was answered, and it was not among the results".to_owned();
                let (attempt, fault) = (asked.written - 1, Fault::new(FaultKind::Again, what));
                self.failed(i, attempt, fault)?;
            }
        }
        self.flush()
    }

    fn read_file(&mut self, name: &str, mut lines: Lines) -> Result<(), TeacherError> {
        let mut line = Vec::new();
        while let Some(kind) = lines.next(&mut line)? {
            if kind != Line::TooLong && line.is_empty() {
                continue;
            }
            self.tally.lines += 1;
            let at = Place { file: name, line: lines.number };
            let what = match (kind, read_batch_line(&line)) {
                (Line::TooLong, _) => format!("it is longer than {LINE_BYTES_MAX} bytes"),
                (_, Ok(result)) => {
                    self.take(result, &at)?;
                    continue;
                }
                (Line::Unended, Err(fault)) => format!("the file ends within it: {fault}"),
                (Line::Whole, Err(fault)) => fault.to_string(),
            };
            self.tally.broken += 1;
            self.problem(&at, None, what);
        }
        Ok(())
    }

    fn problem(&mut self, at: &Place<'_>, custom_id: Option<&str>, what: String) {
        if self.tally.problems.len() < PROBLEMS_MAX {
            let custom_id = custom_id.map(|id| id.chars().take(FOREIGN_CHARS_MAX).collect());
            let (file, line) = (at.file.to_owned(), at.line);
            self.tally.problems.push(Problem { file, line, custom_id, what });
        }
    }

    fn take(&mut self, result: BatchResult, at: &Place<'_>) -> Result<(), TeacherError> {
        let id = CustomId::parse(&result.custom_id);
        let Some((id, i)) = id.and_then(|id| Some((id, *self.index.get(&id.key)? as usize))) else {
            if id.is_some_and(|id| self.others.contains(&id.key)) {
                self.tally.not_asked_now += 1;
            } else {
                self.tally.unknown += 1;
                self.problem(at, Some(&result.custom_id), "nothing of this name was asked".to_owned());
            }
            return Ok(());
        };
        let (print, good) = (print_of(&result), result.outcome.is_ok());
        if let Some(seen) = self.seen.get(&(i as u32, id.attempt)) {
            self.tally.duplicates += 1;
            let (differs, had) = (seen.print != print, seen.good);
            if differs {
                self.tally.differing_duplicates += 1;
                let what = "it differs from the result of the same name before it".to_owned();
                self.problem(at, Some(&result.custom_id), what);
            }
            if had || !good {
                return Ok(());
            }
        }
        self.seen.insert((i as u32, id.attempt), Seen { print, good });
        let asked = &self.asks[i];
        if asked.written == id.attempt + 1 {
            self.files.entry(asked.file).or_default().answered = true;
        }
        match result.outcome {
            Ok(reply) => self.reply(i, id, reply, at),
            Err(cause) => {
                let fault = of_line(&cause, result.status, self.key());
                self.problem(at, Some(&result.custom_id), fault.what.clone());
                self.tally.failed += 1;
                self.failed(i, id.attempt, fault)
            }
        }
    }

    fn key(&self) -> Option<&stillroom_net::Secret> {
        self.teacher.endpoints.first().and_then(|endpoint| endpoint.key.as_ref())
    }

    fn reply(&mut self, i: usize, id: CustomId, reply: Reply, at: &Place<'_>) -> Result<(), TeacherError> {
        let reply = match call::checked(redact::in_reply(reply, self.key())) {
            Ok(reply) => reply,
            Err(fault) => {
                self.tally.failed += 1;
                self.problem(at, Some(&id.to_string()), fault.what.clone());
                return self.failed(i, id.attempt, fault);
            }
        };
        if self.has_answer(i)? {
            return self.late(i, id, reply, at);
        }
        let receipt = outcome::receipt(&self.teacher.price, &mut self.estimator, &self.asks[i].ask, reply);
        let (outcome, answer) = outcome::of_receipt(self.next_call, receipt);
        self.asks[i].state = match answer {
            Answer::Refused { fault } | Answer::GivenUp { fault } => State::Refused(fault),
            Answer::Reply(_) => State::Settled,
        };
        self.tally.replies += 1;
        self.record(i, id.attempt, outcome)
    }

    /// Whether an answer was paid for. A refusal for nothing gives way to a reply.
    fn has_answer(&mut self, i: usize) -> Result<bool, TeacherError> {
        if !matches!(self.asks[i].state, State::Refused(_)) {
            return Ok(self.asks[i].state == State::Settled);
        }
        self.flush()?;
        Ok(self.ledger.settled(&self.asks[i].request)?.is_some())
    }

    /// A reply to a request that has one: read before, or bought a second time.
    fn late(&mut self, i: usize, id: CustomId, reply: Reply, at: &Place<'_>) -> Result<(), TeacherError> {
        self.flush()?;
        let request = self.asks[i].request;
        let tries = self.tries(&request)?;
        let known = tries.iter().find(|t| t.attempt == id.attempt && t.is_billed);
        if known.is_some_and(|known| known.is_done)
            && let Some(Answer::Reply(kept)) = outcome::kept(self.ledger, &request, &self.asks[i].ask.id)?
            && kept.reply != reply
        {
            self.tally.differing_duplicates += 1;
            self.problem(at, Some(&id.to_string()), "it differs from the reply in the ledger".to_owned());
        }
        if known.is_some() {
            return Ok(());
        }
        self.tally.bought_again += 1;
        let receipt = outcome::receipt(&self.teacher.price, &mut self.estimator, &self.asks[i].ask, reply);
        let (outcome, _) = outcome::of_receipt(self.next_call, receipt);
        self.record(i, id.attempt, outcome::late(outcome))
    }

    /// Records a try that gave nothing, once.
    fn failed(&mut self, i: usize, attempt: u32, fault: Fault) -> Result<(), TeacherError> {
        let asked = &mut self.asks[i];
        if asked.state != State::Open {
            return Ok(());
        }
        if attempt + 1 >= asked.tried {
            asked.fault = Some(fault.what.clone());
        }
        let is_new = attempt >= asked.tried;
        if fault.kind == FaultKind::Refused {
            asked.state = State::Refused(fault.what.clone());
        }
        if !is_new {
            return Ok(());
        }
        let tokens = fault.pieces.map(|pieces| self.estimator.of_fault(&asked.ask, pieces));
        let outcome = outcome::of_fault(self.next_call, &fault, tokens, &self.teacher.price);
        self.record(i, attempt, outcome)
    }

    fn record(&mut self, i: usize, attempt: u32, outcome: Outcome) -> Result<(), TeacherError> {
        let asked = &mut self.asks[i];
        asked.tried = asked.tried.max(attempt + 1);
        let call = Call {
            call: self.next_call,
            request: asked.request,
            prompt: asked.ask.id.clone(),
            sample: asked.ask.sample,
            attempt,
            stage: self.teacher.stage,
            teacher: self.teacher.model.clone(),
            endpoint: PLACE.to_owned(),
            // Nobody says when it was sent; it is known from now on.
            sent_unix_ms: unix_ms(),
        };
        self.next_call += 1;
        self.entries.extend([Entry::Begin(call), Entry::End(outcome)]);
        if self.entries.len() >= ENTRIES_MAX { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), TeacherError> {
        if self.entries.is_empty() {
            return Ok(());
        }
        Ok(self.scribe.commit(std::mem::take(&mut self.entries))?)
    }

    /// Files with requests that have no result.
    pub(crate) fn waiting(&self) -> BTreeMap<u32, Waiting> {
        let mut waiting: BTreeMap<u32, Waiting> = BTreeMap::new();
        for asked in self.asks.iter().filter(|asked| asked.waits()) {
            let (tokens, usd) = self.estimate(&asked.ask);
            let file = waiting.entry(asked.file).or_default();
            *file =
                Waiting { requests: file.requests + 1, tokens: file.tokens + tokens, usd: file.usd + usd };
        }
        waiting
    }

    fn estimate(&self, ask: &Ask) -> (u64, f64) {
        let (prompt, completion) = self.estimator.of_fault(ask, 0);
        (prompt + completion, self.teacher.price.of(prompt, 0, completion))
    }

    /// What so many tokens and dollars, beyond what is spent, would use up of the budget.
    pub(crate) fn beyond(&self, more: (u64, f64)) -> Result<Option<&'static str>, TeacherError> {
        Ok(self.beyond_after(&self.ledger.totals(None)?, more))
    }

    fn beyond_after(&self, spent: &Totals, (tokens, usd): (u64, f64)) -> Option<&'static str> {
        let budget = &self.teacher.budget;
        let tokens = spent.prompt_tokens + spent.completion_tokens + tokens;
        if budget.usd.is_some_and(|most| spent.usd + usd > most) {
            Some("money")
        } else if budget.tokens.is_some_and(|most| tokens > most) {
            Some("tokens")
        } else if budget.seconds.is_some_and(|most| self.started.elapsed().as_secs_f64() > most) {
            Some("time")
        } else {
            None
        }
    }

    /// Writes what is to be asked into files, as far as the budget allows. What failed is asked again as soon as nothing
    /// waits. Says what of the budget stopped it.
    pub(crate) fn write_requests(&mut self) -> Result<Option<&'static str>, TeacherError> {
        let waiting = self.waiting();
        let mut committed = waiting.values().fold((0, 0.0), |sum, w| (sum.0 + w.tokens, sum.1 + w.usd));
        let (nothing_waits, tries_max) = (waiting.is_empty(), self.teacher.patience.max_attempts);
        let is_due = |asked: &Asked| {
            let next = asked.next_attempt();
            asked.state == State::Open && !asked.waits() && next < tries_max && (next == 0 || nothing_waits)
        };
        let due: Vec<usize> = (0..self.asks.len()).filter(|&i| is_due(&self.asks[i])).collect();
        let spent = self.ledger.totals(None)?;
        let mut left = &due[..];
        while !left.is_empty() {
            let (n, stopped) = self.write_file(left, &spent, &mut committed)?;
            left = &left[n..];
            if stopped.is_some() {
                return Ok(stopped);
            }
        }
        Ok(None)
    }

    /// Writes the first of `due` into one file; says how many they were.
    fn write_file(
        &mut self,
        due: &[usize],
        spent: &Totals,
        committed: &mut (u64, f64),
    ) -> Result<(usize, Option<&'static str>), TeacherError> {
        let (mut n, mut bytes, mut stopped) = (0, 0, None);
        let mut first = Vec::new();
        // A request that no file has room for is no request.
        for &i in due {
            first = self.line(i);
            if first.len() as u64 <= self.limits.bytes_max {
                break;
            }
            let what =
                format!("it takes {} bytes, of at most {} in a file", first.len(), self.limits.bytes_max);
            self.asks[i].state = State::Refused(what);
            n += 1;
        }
        let begin = n;
        let number = self.files.keys().next_back().map_or(0, |last| last + 1);
        let allowed = |desk: &Desk<'_>, i: usize, committed: (u64, f64)| {
            let (tokens, usd) = desk.estimate(&desk.asks[i].ask);
            let after = (committed.0 + tokens, committed.1 + usd);
            desk.beyond_after(spent, after).map_or(Ok(after), Err)
        };
        let Some(&next) = due.get(n) else { return Ok((n, None)) };
        if let Err(what) = allowed(self, next, *committed) {
            return Ok((n, Some(what)));
        }
        let path = self.folder.join(files::requests_name(number));
        atomic_write_with(&path, |file| {
            let mut line = std::mem::take(&mut first);
            while n - begin < self.limits.requests_max && bytes + line.len() as u64 <= self.limits.bytes_max {
                match allowed(self, due[n], *committed) {
                    Ok(after) => *committed = after,
                    Err(what) => {
                        stopped = Some(what);
                        break;
                    }
                }
                file.write_all(&line).map_err(|e| files::failed("write", &path, e))?;
                bytes += line.len() as u64;
                n += 1;
                let Some(&i) = due.get(n) else { break };
                line = self.line(i);
            }
            Ok::<_, StoreError>(())
        })?;
        for &i in &due[begin..n] {
            let asked = &mut self.asks[i];
            (asked.written, asked.file) = (asked.next_attempt() + 1, number);
        }
        self.files.insert(number, RequestFile::default());
        self.tally.written_files += 1;
        Ok((n, stopped))
    }

    fn line(&self, i: usize) -> Vec<u8> {
        let asked = &self.asks[i];
        let id = CustomId { key: key_of(&asked.request), attempt: asked.next_attempt() };
        let body = asked.ask.body(self.teacher.served_model(), &self.teacher.sampling, false);
        let url = url_of(&asked.ask);
        BatchLine { custom_id: &id.to_string(), method: METHOD, url: &url, body: &body }.line()
    }

    /// What all that is asked is asked of.
    pub(crate) fn url(&self) -> String {
        self.asks.first().map(|asked| url_of(&asked.ask)).unwrap_or_default()
    }

    /// Hands over an answer for everything, in the order in which it was asked.
    pub(crate) fn deliver<E: From<TeacherError>>(
        &self,
        deliver: &mut dyn FnMut(Ask, Answer) -> Result<(), E>,
    ) -> Result<(), E> {
        for asked in &self.asks {
            let first = match asked.state {
                State::Twin(first) => &self.asks[first as usize],
                _ => asked,
            };
            let answer = match &first.state {
                State::Refused(fault) => Answer::Refused { fault: fault.clone() },
                State::Settled => outcome::read_back(self.ledger, &first.request, &first.ask.id)?,
                State::Open | State::Twin(_) => {
                    let fault = first.fault.clone().unwrap_or_else(|| "every try failed".to_owned());
                    Answer::GivenUp { fault }
                }
            };
            deliver(asked.ask.clone(), answer)?;
        }
        Ok(())
    }
}

/// In files, whatever the service's own address.
fn url_of(ask: &Ask) -> String {
    format!("/v1/{}", ask.path())
}

/// Names what a result says.
fn print_of(result: &BatchResult) -> Digest {
    let text = match &result.outcome {
        Ok(reply) => serde_json::to_vec(reply).expect("a reply is plain data"),
        Err(fault) => format!("{:?} {fault}", result.status).into_bytes(),
    };
    Digest::of(&text)
}

/// Of a result without a reply. With a good status the service has worked, and may bill it.
fn of_line(cause: &ReplyFault, status: Option<u16>, key: Option<&stillroom_net::Secret>) -> Fault {
    let worked = status.is_some_and(|status| (200..300).contains(&status));
    let kind = status.filter(|_| !worked).map_or(FaultKind::Again, call::kind_of_status);
    // Another batch may do what this one did not.
    let kind = if kind == FaultKind::Refused { kind } else { FaultKind::Again };
    let what = match status.filter(|_| !worked) {
        Some(status) => format!("its result has status {status}: {cause}"),
        None => cause.to_string(),
    };
    Fault { status, pieces: worked.then_some(0), ..Fault::new(kind, redact::in_error(what, key)) }
}

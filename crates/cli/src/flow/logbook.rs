//! The run's log: what happened, written down as it happens, so that nobody can say later that it was otherwise.
//!
//! ```text
//! log/records.bin   commitments, see `governance::log`
//! log/heads.jsonl   the state of the log at each stage's end, at each checkpoint and every so often in between, one line each
//! log/stamps.jsonl  when somebody else says that heads existed, where a recipe asks for it: see `stamps`
//! log/secret        what the salts are made from: whoever has it can try out what an entry may have been
//! ```
//!
//! An entry's bytes are found again in the run ([`entry`]); the log itself holds none of them. A call is told of when its
//! end is in the ledger, a reply's row when its part of the corpus is durable. What a kill left untold is told by the next
//! run, and what is told twice changes nothing.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use stillroom_core::{Digest, Trace};
use stillroom_formats::parquet_rows;
use stillroom_governance::LogFault;
use stillroom_governance::keys::{PublicKey, Signer};
use stillroom_governance::log::{Head, HeadLine, Kind, Log, LogWriter, Opening, Record, Secret};
use stillroom_governance::oms;
use stillroom_governance::timestamp::{Token, Trusted};
use stillroom_store::{EndedCall, EventLog, LedgerReader, RunDir, StageRecord, create_dir_durable};

use crate::failure::{Exit, Failure, Result};
use crate::flow::stamps::{self, CheckedStamps, STAMPS, Stamper};
use crate::flow::steps::{self, Step};
use crate::flow::{Flow, curate, teach, unix_s, wire};

pub(crate) const FOLDER: &str = "log";
pub(crate) const RECORDS: &str = "records.bin";
pub(crate) const HEADS: &str = "heads.jsonl";
const SECRET: &str = "secret";
/// What a served model answered, beside its log, one line each.
pub(crate) const ANSWERS: &str = "answers.jsonl";
/// Where records and heads lie in a release.
const IN_RELEASE: &str = "provenance/log";
/// Heads that are read at most.
const HEADS_MAX: usize = 1 << 20;

/// Entries that may be without a head.
const ENTRIES_PER_HEAD: u64 = 1 << 16;
/// How long entries may be without a head: the next one that comes makes it.
const HEAD_EVERY: Duration = Duration::from_secs(300);
/// How long entries are kept from the system, whom a kill of this process does not touch: likewise.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// What a head is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// The licence decision, before anything else; the release.
    Grave,
    /// Any other stage.
    Stage,
    /// Each checkpoint, and every so often in between.
    Passing,
}

/// The writing end; whoever has something to tell holds it.
#[derive(Clone)]
pub(crate) struct Logbook(Rc<RefCell<Pages>>);

struct Pages {
    writer: LogWriter,
    heads: EventLog,
    last: Option<HeadLine>,
    signer: Option<Arc<Signer>>,
    stamper: Option<Stamper>,
    last_flush: Instant,
    last_head: Instant,
}

impl Logbook {
    pub(super) fn open(
        run: &RunDir,
        signer: Option<Arc<Signer>>,
        stamper: Option<Stamper>,
    ) -> Result<Logbook> {
        let folder = run.dir(FOLDER)?;
        let secret = match read_secret(&folder)? {
            Some(secret) => secret,
            None => new_secret(&folder)?,
        };
        let writer = LogWriter::open(&folder.join(RECORDS), secret)?;
        let heads = EventLog::open(&folder.join(HEADS))?;
        let last = heads_in(&folder)?.pop();
        if last.as_ref().is_some_and(|last| last.head.size > writer.size()) {
            let cause = "the run's log has fewer records than one of its heads says";
            return Err(Failure::new(Exit::BadData, cause)
                .code("log")
                .at(folder.display().to_string())
                .fix("take `log/` from a copy of the run, or begin the run in another `--output`"));
        }
        let now = Instant::now();
        let pages = Pages { writer, heads, last, signer, stamper, last_flush: now, last_head: now };
        Ok(Logbook(Rc::new(RefCell::new(pages))))
    }

    /// Something that happened; a head follows where the last is long ago.
    pub(super) fn tell(&self, kind: Kind, number: u64, entry: &[u8]) -> Result<()> {
        let mut pages = self.0.borrow_mut();
        pages.writer.append(kind, number, entry)?;
        pages.keep_up()
    }

    /// A call whose end is in the ledger.
    pub(super) fn tell_call(&self, call: &EndedCall) -> Result<()> {
        self.tell(Kind::Call, call.call, &entry_of_call(call)?)
    }

    /// Rows of the teacher's replies in their order, the first of which has this number among all; they are durable.
    pub(super) fn tell_traces(&self, first: u64, traces: &[Trace]) -> Result<()> {
        (first..)
            .zip(traces)
            .try_for_each(|(number, trace)| self.tell(Kind::Trace, number, &entry_of_trace(trace)?))
    }

    /// All calls of a ledger that are not in the log: those that no session told of, and those that a kill kept from it.
    pub(super) fn tell_calls_of(&self, ledger: &LedgerReader) -> Result<()> {
        if !self.0.borrow_mut().is_of(ledger)? {
            self.0.borrow_mut().writer.forget_calls();
        }
        let untold = self.0.borrow().writer.calls_to_come();
        untold
            .into_iter()
            .try_for_each(|numbers| ledger.each_call(numbers, &mut |call| self.tell_call(&call)))
    }

    /// Makes the log durable, and says what it is at this moment, if anything has come to it.
    fn seal(&self, moment: Moment) -> Result<()> {
        self.0.borrow_mut().seal(moment)
    }

    /// The time of a release's signature, where somebody is asked for it and gives it.
    pub(super) fn stamp_signature(&self, signature: &[u8]) -> Result<Option<Token>> {
        self.0.borrow_mut().stamper.as_mut().map_or(Ok(None), |stamper| stamper.stamp_signature(signature))
    }
}

impl Pages {
    /// Lets nothing wait for long.
    fn keep_up(&mut self) -> Result<()> {
        let sealed = self.last.as_ref().map_or(0, |last| last.head.size);
        if self.writer.size() - sealed >= ENTRIES_PER_HEAD || self.last_head.elapsed() >= HEAD_EVERY {
            return self.seal(Moment::Passing);
        }
        if self.last_flush.elapsed() >= FLUSH_EVERY {
            self.writer.flush()?;
            self.last_flush = Instant::now();
        }
        Ok(())
    }

    /// Whether the newest call in the log is this ledger's: somebody may have taken the old one away.
    fn is_of(&mut self, ledger: &LedgerReader) -> Result<bool> {
        let Some((at, number)) = self.writer.newest_call()? else { return Ok(true) };
        let Some(entry) = entry_in(ledger, number)? else { return Ok(false) };
        Ok(self.writer.stands_for(at, &entry)?)
    }

    /// Makes the log durable, and says what it is at this moment, if anything has come to it. A key in a file signs each head;
    /// a command of the user's only those of moments that it is wanted for.
    fn seal(&mut self, moment: Moment) -> Result<()> {
        let signs = |signer: &&Arc<Signer>| moment == Moment::Grave || !signer.is_external();
        let signer = self.signer.clone().filter(|signer| signs(&signer));
        self.last_head = Instant::now();
        let last = self.last.as_ref().filter(|last| last.head.size == self.writer.size());
        if last.is_some_and(|last| last.is_signed() || signer.is_none()) {
            return self.stamp(moment);
        }
        self.writer.sync()?;
        self.last_flush = self.last_head;
        let head = self.writer.head(self.last.as_ref().map(|last| &last.line[..]), unix_s());
        let head = HeadLine::new(head, signer.as_deref())?;
        self.heads.append_line(&head.line)?;
        self.heads.sync()?;
        self.last = Some(head);
        self.stamp(moment)
    }

    /// Asks for the time of the last head, if it has none.
    fn stamp(&mut self, moment: Moment) -> Result<()> {
        match (&mut self.stamper, &self.last) {
            (Some(stamper), Some(last)) => stamper.stamp_head(last, moment),
            _ => Ok(()),
        }
    }
}

fn entry_of_call(call: &EndedCall) -> Result<Vec<u8>> {
    serde_json::to_vec(call).map_err(|e| super::unwritable(wire::LEDGER, &e))
}

fn entry_of_trace(trace: &Trace) -> Result<Vec<u8>> {
    serde_json::to_vec(trace).map_err(|e| super::unwritable(teach::FOLDER, &e))
}

/// The entry of a call that has ended; none where the ledger has no such call.
fn entry_in(ledger: &LedgerReader, number: u64) -> Result<Option<Vec<u8>>> {
    let mut found = None;
    ledger.each_call(number..number.saturating_add(1), &mut |call| -> Result<()> {
        found = Some(entry_of_call(&call)?);
        Ok(())
    })?;
    Ok(found)
}

/// The number of a stage in the log: the first 48 bits of the digest of its name.
pub(crate) fn number_of_stage(name: &str) -> u64 {
    Digest::of(name.as_bytes()).as_bytes()[..6].iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

pub(crate) fn new_secret(folder: &Path) -> Result<Secret> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|e| Failure::new(Exit::Failed, format!("the system gives no random numbers: {e}")))?;
    let path = folder.join(SECRET);
    let hex = Digest::from_bytes(bytes).to_string();
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(&path).and_then(|mut file| {
        file.write_all(hex.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|e| Failure::io("write", &path, &e))?;
    create_dir_durable(folder)?;
    Ok(Secret::new(bytes))
}

/// What the salts of a run's log are made from; none before its first run.
pub(crate) fn read_secret(folder: &Path) -> Result<Option<Secret>> {
    let path = folder.join(SECRET);
    let mut text = String::new();
    match File::open(&path).and_then(|file| file.take(65).read_to_string(&mut text)) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Failure::io("read", &path, &e)),
        Ok(_) => {}
    }
    match Digest::try_from(text) {
        Ok(secret) => Ok(Some(Secret::new(*secret.as_bytes()))),
        Err(_) => Err(Failure::new(Exit::BadData, "the log's secret is damaged")
            .code("log")
            .at(path.display().to_string())
            .fix(
                "take it from a copy of the run; without it no entry can be opened, and the log cannot go on",
            )),
    }
}

/// The heads in a folder, in order; none where there are none.
pub(crate) fn heads_in(folder: &Path) -> Result<Vec<HeadLine>> {
    let path = folder.join(HEADS);
    let file = match File::open(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| Failure::io("read", &path, &e))?,
    };
    let mut heads = Vec::new();
    for line in BufReader::new(file).split(b'\n') {
        let line = line.map_err(|e| Failure::io("read", &path, &e))?;
        let Some(head) = HeadLine::read(&line).ok().filter(|_| heads.len() < HEADS_MAX) else {
            return Err(Failure::new(Exit::BadData, format!("line {} is no head of a log", heads.len() + 1))
                .code("log")
                .at(path.display().to_string()));
        };
        heads.push(head);
    }
    Ok(heads)
}

impl Flow {
    /// The licence decision, before anything else is done.
    pub(super) fn log_decision(&mut self) -> Result<()> {
        let path = self.run.path("licence.json")?;
        self.log_file(Kind::Decision, 0, &path)?;
        self.seal_log(Moment::Grave)
    }

    /// What a stage has done, before it is recorded as done; replies are told of part by part.
    pub(super) fn log_rows(&mut self, stage: &str) -> Result<()> {
        let Some(book) = &self.logbook else { return Ok(()) };
        if stage == curate::STAGE {
            each_trace(self.run.root(), Kind::Kept, |number, trace| book.tell(Kind::Kept, number, trace))?;
            each_line(&self.run.path(curate::DROPPED)?, |number, line| {
                book.tell(Kind::Dropped, number, line)
            })?;
        }
        self.log_calls()
    }

    /// Calls that nobody told of as they ended.
    pub(super) fn log_calls(&self) -> Result<()> {
        let ledger = self.run.path(wire::LEDGER)?;
        match &self.logbook {
            Some(book) if ledger.exists() => book.tell_calls_of(&LedgerReader::open(&ledger)?),
            _ => Ok(()),
        }
    }

    /// That a stage is done, by its record.
    pub(super) fn log_stage(&mut self, record: &StageRecord) -> Result<()> {
        let path = self.run.path(&stage_file(&record.stage))?;
        self.log_file(Kind::Stage, number_of_stage(&record.stage), &path)?;
        self.seal_log(Moment::Stage)
    }

    /// A step of the student's training; behind a checkpoint the log is sealed.
    pub(super) fn log_step(&mut self, step: &Step) -> Result<()> {
        let Some(book) = &self.logbook else { return Ok(()) };
        let Some((kind, number)) = step.in_log() else { return Ok(()) };
        book.tell(kind, number, &step.to_bytes().map_err(|e| super::unwritable(steps::PATH, &e))?)?;
        if kind == Kind::Checkpoint { book.seal(Moment::Passing) } else { Ok(()) }
    }

    /// Says what the log is now.
    pub(super) fn seal_log(&mut self, moment: Moment) -> Result<()> {
        self.logbook.as_ref().map_or(Ok(()), |book| book.seal(moment))
    }

    fn log_file(&mut self, kind: Kind, number: u64, path: &Path) -> Result<()> {
        let Some(book) = &self.logbook else { return Ok(()) };
        let bytes = std::fs::read(path).map_err(|e| Failure::io("read", path, &e))?;
        book.tell(kind, number, &bytes)
    }
}

impl Flow {
    /// The log as far as it has come, for a release.
    pub(super) fn copy_log(&self, release: &Path) -> Result<()> {
        let folder = release.join(IN_RELEASE);
        create_dir_durable(&folder)?;
        for name in [RECORDS, HEADS] {
            let from = self.run.path(&format!("{FOLDER}/{name}"))?;
            std::fs::copy(&from, folder.join(name)).map_err(|e| Failure::io("copy", &from, &e))?;
        }
        let stamps = self.run.path(&format!("{FOLDER}/{STAMPS}"))?;
        if stamps.exists() {
            std::fs::copy(&stamps, folder.join(STAMPS)).map_err(|e| Failure::io("copy", &stamps, &e))?;
        }
        Ok(())
    }
}

fn stage_file(stage: &str) -> String {
    format!("stages/{stage}.json")
}

/// The teacher's replies, or those that curation kept, in their order, as JSON.
fn each_trace(run: &Path, kind: Kind, mut take: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    let files: Vec<PathBuf> = match kind {
        Kind::Kept => [curate::TRAIN, curate::VALIDATION].map(|file| run.join(file)).into(),
        _ => teach::parts_of(&run.join(teach::FOLDER))?,
    };
    let mut number = 0;
    for file in files {
        let bytes = std::fs::read(&file).map_err(|e| Failure::io("read", &file, &e))?;
        let traces: Vec<Trace> = parquet_rows::read_traces(bytes)?;
        for trace in traces {
            take(number, &entry_of_trace(&trace)?)?;
            number += 1;
        }
    }
    Ok(())
}

pub(crate) fn each_line(path: &Path, mut take: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    let file = File::open(path).map_err(|e| Failure::io("read", path, &e))?;
    for (number, line) in BufReader::new(file).split(b'\n').enumerate() {
        take(number as u64, &line.map_err(|e| Failure::io("read", path, &e))?)?;
    }
    Ok(())
}

/// What the log in a folder was found to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct CheckedLog {
    pub(crate) records: u64,
    pub(crate) heads: usize,
    /// Records behind the last head.
    pub(crate) unsealed: u64,
    /// Of the last head.
    pub(crate) root: Option<Digest>,
    /// Heads that are signed: by the key that was given, else by whomever.
    pub(crate) signed_heads: usize,
    /// When the first and the last head were made, by the clock of the machine: seconds since 1970-01-01 UTC.
    pub(crate) first_unix_s: Option<u64>,
    pub(crate) last_unix_s: Option<u64>,
}

/// A log and its heads, as they were read.
pub(crate) struct ReadLog {
    folder: PathBuf,
    log: Log,
    heads: Vec<HeadLine>,
}

impl ReadLog {
    /// The log in a folder; none where there is no such folder.
    fn read(folder: &Path) -> Result<Option<ReadLog>> {
        if !folder.exists() {
            return Ok(None);
        }
        let (log, heads) = (Log::read(&folder.join(RECORDS))?, heads_in(folder)?);
        Ok(Some(ReadLog { folder: folder.to_path_buf(), log, heads }))
    }

    /// That all heads are of this log; what its last head covers, and how many records it does not.
    fn sealed(&self) -> Result<(&[Record], u64)> {
        let unsealed = self.log.check_heads(&self.heads);
        let unsealed = unsealed.map_err(|fault| damaged(&self.folder, fault.to_string()))?;
        let records = &self.log.records;
        Ok((&records[..records.len() - unsealed as usize], unsealed))
    }

    fn begins_with(&self, other: &ReadLog) -> bool {
        self.heads.starts_with(&other.heads) && self.log.records.starts_with(&other.log.records)
    }
}

/// What the last head covers of the log of a run, or of a release on its own; none where it has none.
pub(crate) fn sealed_records(dir: &Path) -> Result<Option<Vec<Record>>> {
    let of_run = ReadLog::read(&dir.join(FOLDER))?;
    let found = match of_run {
        Some(of_run) => Some(of_run),
        None => ReadLog::read(&released_log(dir))?,
    };
    found.map(|found| Ok(found.sealed()?.0.to_vec())).transpose()
}

const NOT_BY_KEY: &str = "the last head of the log is not signed by this key";

/// Checks the log of a run or of a release on its own; none where it has none. With a `key`, a release's last head must be
/// signed by it: that one stands for all before it, whoever signed those. Each log is read once, and where there are two, the
/// tree of the longer is that of both.
pub(crate) fn check(dir: &Path, key: Option<&PublicKey>) -> Result<Option<CheckedLog>> {
    let (released, of_run) = (ReadLog::read(&released_log(dir))?, ReadLog::read(&dir.join(FOLDER))?);
    if let (Some(released), Some(of_run)) = (&released, &of_run)
        && !of_run.begins_with(released)
    {
        let cause = "the run's log does not begin with that of its release";
        return Err(damaged(&released.folder, cause.to_owned()));
    }
    let Some(longest) = of_run.as_ref().or(released.as_ref()) else { return Ok(None) };
    let checked = summary(longest, longest.sealed()?.1, key);
    if let Some(released) = &released {
        let last = released.heads.last();
        if last.map_or(0, |last| last.head.size) != released.log.records.len() as u64 {
            return Err(damaged(&released.folder, LogFault::Beyond.to_string()));
        }
        if key.is_some_and(|key| !last.is_some_and(|last| last.is_by(key))) {
            return Err(damaged(&released.folder, NOT_BY_KEY.to_owned()));
        }
    }
    Ok(Some(checked))
}

/// Whether a directory has a log and no release that it could belong to.
pub(crate) fn is_unreleased(dir: &Path) -> bool {
    let has = |path: &str| dir.join(path).exists();
    dir.join(FOLDER).join(HEADS).exists() && !has("provenance") && !has("release/provenance")
}

/// That a log which stands for itself was signed by `key` to its end.
pub(crate) fn check_signer(dir: &Path, key: &PublicKey) -> Result<()> {
    let folder = dir.join(FOLDER);
    match heads_in(&folder)?.last().is_some_and(|last| last.is_by(key)) {
        true => Ok(()),
        false => Err(damaged(&folder, NOT_BY_KEY.to_owned())),
    }
}

/// Checks the timestamps of a run or of a release on its own, whose log and signature were found to be whole.
pub(crate) fn check_times(dir: &Path, trusted: Option<&Trusted>) -> Result<CheckedStamps> {
    let (released, of_run) = (released_log(dir), dir.join(FOLDER));
    let in_run = dir.join("release");
    let signature = oms::timestamps(if in_run.is_dir() { &in_run } else { dir })?;
    let mut found = stamps::check_stamps(&released, &heads_in(&released)?, signature.as_ref(), trusted)?;
    if of_run.exists() {
        let whole = stamps::check_stamps(&of_run, &heads_in(&of_run)?, None, trusted)?;
        found = CheckedStamps { signature: found.signature, ..whole };
    }
    Ok(found)
}

fn summary(read: &ReadLog, unsealed: u64, key: Option<&PublicKey>) -> CheckedLog {
    let ReadLog { log, heads, .. } = read;
    let time = |line: Option<&HeadLine>| line.map(|line| line.head.unix_s);
    let signed = |head: &HeadLine| key.map_or(head.is_signed(), |key| head.is_by(key));
    CheckedLog {
        records: log.records.len() as u64,
        heads: heads.len(),
        unsealed,
        root: heads.last().map(|last| last.head.root),
        signed_heads: heads.iter().filter(|head| signed(head)).count(),
        first_unix_s: time(heads.first()),
        last_unix_s: time(heads.last()),
    }
}

fn damaged(folder: &Path, cause: String) -> Failure {
    Failure::new(Exit::BadData, cause)
        .code("log")
        .at(folder.display().to_string())
        .fix("take the log from where the release came from")
}

/// Where the log of a release lies, in a run or in a release on its own.
fn released_log(dir: &Path) -> PathBuf {
    let in_run = dir.join("release").join(IN_RELEASE);
    if in_run.exists() { in_run } else { dir.join(IN_RELEASE) }
}

/// An entry for somebody who has the release.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shown {
    pub(crate) head: Head,
    pub(crate) opening: Opening,
}

/// Opens one entry of a run's log, under the head that its release has, or the last one.
pub(crate) fn open_entry(run: &Path, kind: Kind, number: u64, stage: Option<&str>) -> Result<Shown> {
    let released = released_log(run);
    let folder = run.join(FOLDER);
    let heads = heads_in(if released.exists() { &released } else { &folder })?;
    let missing =
        |cause: String| Failure::new(Exit::BadData, cause).code("no-entry").at(folder.display().to_string());
    let Some(HeadLine { head, .. }) = heads.last() else {
        return Err(missing("the run has no log".to_owned()));
    };
    let Some(secret) = read_secret(&folder)? else {
        return Err(missing(
            "the log's secret is not here: only the run that wrote it can open it".to_owned(),
        ));
    };
    let log = Log::read(&folder.join(RECORDS))?;
    log.check_heads(&heads).map_err(|fault| damaged(&folder, fault.to_string()))?;
    let named = format!("{} {}", kind.as_str(), stage.map_or(number.to_string(), str::to_owned));
    let Some(bytes) = entry(run, kind, number, stage)? else {
        return Err(missing(format!("the run has no {named}")));
    };
    match log.open(&secret, kind, number, &bytes, head) {
        Some(opening) => Ok(Shown { head: head.clone(), opening }),
        None => Err(missing(format!("{named} is not in the log as the run has it now"))
            .fix("the run has changed since; or the entry came behind the release")),
    }
}

/// Whether an opened entry is in the log of a run or release.
pub(crate) fn check_opening(dir: &Path, shown: &Shown) -> Result<()> {
    let (released, of_run) = (released_log(dir), dir.join(FOLDER));
    let heads = heads_in(if released.exists() { &released } else { &of_run })?;
    let cause = if !heads.iter().any(|line| line.head == shown.head) {
        "the head that this entry is opened under is not one of this release"
    } else if !shown.opening.holds(&shown.head) {
        "the entry is not in the log where it says, or it is not this entry"
    } else {
        return Ok(());
    };
    Err(Failure::new(Exit::BadData, cause).code("not-opened").at(dir.display().to_string()))
}

/// The bytes of an entry as the run has them; none where it has no such thing.
pub(crate) fn entry(run: &Path, kind: Kind, number: u64, stage: Option<&str>) -> Result<Option<Vec<u8>>> {
    let mut found = None;
    let keep = |n: u64, bytes: &[u8]| {
        if n == number {
            found = Some(bytes.to_vec());
        }
        Ok(())
    };
    match kind {
        Kind::Decision => found = read_if_there(&run.join("licence.json"))?,
        Kind::Stage => found = read_if_there(&run.join(stage_file(stage.unwrap_or_default())))?,
        Kind::Trace | Kind::Kept => each_trace(run, kind, keep)?,
        Kind::Dropped => each_line(&run.join(curate::DROPPED), keep)?,
        Kind::Call => {
            let ledger = run.join(wire::LEDGER);
            if ledger.exists() {
                found = entry_in(&LedgerReader::open(&ledger)?, number)?;
            }
        }
        Kind::Answer => each_line(&run.join(ANSWERS), keep)?,
        _ => found = steps::entry(&run.join(steps::PATH), kind, number)?,
    }
    Ok(found)
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Failure::io("read", path, &e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds that are over, as far as the book knows.
    fn let_pass(book: &Logbook, time: Duration) {
        let mut pages = book.0.borrow_mut();
        pages.last_head = pages.last_head.checked_sub(time).expect("the machine runs that long");
        pages.last_flush = pages.last_flush.checked_sub(time).expect("the machine runs that long");
    }

    #[test]
    fn a_head_is_made_every_so_often_while_a_stage_goes_on() {
        let temp = tempfile::tempdir().expect("a folder");
        let run = RunDir::open(temp.path()).expect("a run");
        let book = Logbook::open(&run, None, None).expect("a log");
        let sizes = || -> Vec<u64> {
            let heads = heads_in(&temp.path().join(FOLDER)).expect("heads");
            heads.iter().map(|line| line.head.size).collect()
        };
        let on_disk = || Log::read(&temp.path().join(FOLDER).join(RECORDS)).expect("a log").records.len();
        let tell = |number| book.tell(Kind::Trace, number, b"{}").expect("told");
        tell(0);
        assert_eq!((sizes(), on_disk()), (vec![], 0), "a record alone waits");
        let_pass(&book, FLUSH_EVERY);
        tell(1);
        assert_eq!((sizes(), on_disk()), (vec![], 2));
        let_pass(&book, HEAD_EVERY);
        tell(2);
        tell(3);
        assert_eq!((sizes(), on_disk()), (vec![3], 3));
        (4..ENTRIES_PER_HEAD + 4).for_each(tell);
        assert_eq!(sizes(), [3, ENTRIES_PER_HEAD + 3]);
        book.seal(Moment::Passing).expect("sealed");
        book.seal(Moment::Passing).expect("sealed");
        assert_eq!(sizes(), [3, ENTRIES_PER_HEAD + 3, ENTRIES_PER_HEAD + 4]);
        let checked = check(temp.path(), None).expect("a log").expect("one");
        assert_eq!((checked.records, checked.unsealed), (ENTRIES_PER_HEAD + 4, 0));
    }
}

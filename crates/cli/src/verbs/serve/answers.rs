//! The owner's log of what a served model answered.
//!
//! ```text
//! answers.jsonl     one line for each answer: what was asked, what was answered, when, by which weights, to which key
//! log/records.bin   a salted commitment to each line, see `governance::log`
//! log/heads.jsonl   the state of the log, every so many answers or seconds, at the start and at the end
//! log/secret        what the salts are made from
//! ```
//!
//! The entry of answer N, from 0, is line N of `answers.jsonl` and record N of the log. A line is on the disk before its record,
//! and the record before the end of the answer is sent; answers that end at the same time share that. What a kill left between
//! line and record is made good at the next start.

use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use stillroom_core::Digest;
use stillroom_governance::keys::{PublicKey, Signer};
use stillroom_governance::log::{ENTRY_BYTES_MAX, HeadLine, Kind, Log, LogWriter};
use stillroom_serve::{Answer, AnswerSink, AnsweredChoice};
use stillroom_store::{EventLog, RunDir, StoreError, sync_dir};

use crate::args::Verify;
use crate::failure::{Exit, Failure, Result};
use crate::flow::logbook::{self, ANSWERS, FOLDER, HEADS, RECORDS};
use crate::flow::unix_s;
use crate::terminal;
use crate::verbs::verify;

/// Answers that may be without a head, and how long the first of them may.
const ANSWERS_PER_HEAD: u64 = 64;
const HEAD_AFTER: Duration = Duration::from_secs(10);
/// Answers that share one sync of the disk.
const TOGETHER_MAX: usize = 256;
/// Hexadecimal digits of a key's digest in an entry.
const KEY_DIGITS: usize = 12;

/// What the log's thread is told.
enum Word {
    Answer(Told),
    /// Nothing more comes.
    End,
}

/// An answer on its way to the disk, and who waits for that.
struct Told {
    entry: Map<String, Value>,
    done: SyncSender<std::result::Result<(), String>>,
}

/// The log while a server runs; a thread has it.
pub(super) struct Book {
    tell: Sender<Word>,
    thread: JoinHandle<Result<()>>,
    keeps_texts: bool,
}

/// What tells the log of answers.
struct Teller {
    tell: Sender<Word>,
    keeps_texts: bool,
}

struct Pages {
    /// Held as long as the log is written to.
    _lock: RunDir,
    answers: PathBuf,
    lines: File,
    writer: LogWriter,
    heads: EventLog,
    last: Option<HeadLine>,
    signer: Option<Signer>,
    /// Since when an answer has been without a head.
    unsealed_since: Option<Instant>,
}

impl Book {
    /// Begins a log, or goes on with one; a head says how it stands.
    pub(super) fn open(dir: &Path, signer: Option<Signer>, keeps_texts: bool) -> Result<Book> {
        let mut pages = Pages::open(dir, signer)?;
        pages.seal()?;
        let (tell, told) = channel();
        let thread = std::thread::spawn(move || pages.run(&told));
        Ok(Book { tell, thread, keeps_texts })
    }

    /// Somebody who tells it of answers.
    pub(super) fn sink(&self) -> Box<dyn AnswerSink> {
        Box::new(Teller { tell: self.tell.clone(), keeps_texts: self.keeps_texts })
    }

    /// Seals what came last. Whoever tells it of more is told that it has ended.
    pub(super) fn close(self) -> Result<()> {
        // Where the thread has ended its own words follow.
        drop(self.tell.send(Word::End));
        let ended = self.thread.join();
        ended.unwrap_or_else(|_| Err(Failure::new(Exit::Failed, "the log's own thread has failed")))
    }
}

impl AnswerSink for Teller {
    fn record(&self, answer: &Answer<'_>) -> std::result::Result<(), String> {
        let (done, ended) = sync_channel(1);
        let entry = entry_of(answer, self.keeps_texts);
        let gone = |_| "the log's own thread has ended".to_owned();
        self.tell
            .send(Word::Answer(Told { entry, done }))
            .map_err(|_| "the log's own thread has ended".to_owned())?;
        ended.recv().map_err(gone)?
    }
}

/// What is kept of an answer, its number aside.
fn entry_of(answer: &Answer<'_>, keeps_texts: bool) -> Map<String, Value> {
    let choice = |choice: &AnsweredChoice<'_>| {
        let mut fields = json!({
            "index": choice.index,
            "finish_reason": choice.finish_reason,
            "completion_tokens": choice.completion_tokens,
            "text_sha256": Digest::of(choice.text.as_bytes()),
        });
        if keeps_texts {
            fields["text"] = choice.text.into();
        }
        fields
    };
    let mut entry = Map::new();
    let mut put = |name: &str, value: Value| drop(entry.insert(name.to_owned(), value));
    put("unix_ms", answer.unix_ms.into());
    put("id", answer.id.into());
    put("endpoint", answer.endpoint.into());
    put("model", answer.model.into());
    put("weights_sha256", json!(answer.weights));
    put("key", json!(answer.key.map(|key| key.to_string()[..KEY_DIGITS].to_owned())));
    put("seed", answer.seed.into());
    put("prompt_tokens", answer.prompt_tokens.into());
    put("request_sha256", json!(Digest::of(answer.request.as_bytes())));
    if keeps_texts {
        put("request", answer.request.into());
    }
    put("choices", answer.choices.iter().map(choice).collect());
    entry
}

impl Pages {
    fn open(dir: &Path, signer: Option<Signer>) -> Result<Pages> {
        let lock = RunDir::open(dir)?;
        if !is_log(dir) && dir.join(FOLDER).exists() {
            return Err(Failure::new(
                Exit::Usage,
                "this is the directory of a run, which has a log of its own",
            )
            .at(dir.display().to_string())
            .fix("name a directory for the answers alone"));
        }
        let folder = lock.dir(FOLDER)?;
        let secret = match logbook::read_secret(&folder)? {
            Some(secret) => secret,
            None => logbook::new_secret(&folder)?,
        };
        let answers = dir.join(ANSWERS);
        let lines = EventLog::open(&answers).map(drop).and_then(|()| {
            let io = |source| StoreError::Io { operation: "open", path: answers.clone(), source };
            let lines = OpenOptions::new().append(true).open(&answers).map_err(io)?;
            // What people asked is for the owner's eyes.
            lines.set_permissions(Permissions::from_mode(0o600)).map_err(io)?;
            Ok(lines)
        })?;
        sync_dir(dir)?;
        let mut pages = Pages {
            _lock: lock,
            writer: LogWriter::open(&folder.join(RECORDS), secret)?,
            last: logbook::heads_in(&folder)?.pop(),
            heads: EventLog::open(&folder.join(HEADS))?,
            answers,
            lines,
            signer,
            unsealed_since: None,
        };
        pages.catch_up(&folder)?;
        Ok(pages)
    }

    /// Answers whose record a kill kept from the log come into it now.
    fn catch_up(&mut self, folder: &Path) -> Result<()> {
        let (known, mut lines) = (self.writer.size(), 0);
        logbook::each_line(&self.answers, |number, line| {
            lines = number + 1;
            if number >= known {
                self.writer.append(Kind::Answer, number, line)?;
            }
            Ok(())
        })?;
        let sealed = self.last.as_ref().map_or(0, |last| last.head.size);
        if lines < known || known < sealed {
            let cause = match known < sealed {
                true => format!("the log has {known} records and a head of {sealed}"),
                false => format!("`{ANSWERS}` has {lines} answers, the log {known}"),
            };
            return Err(Failure::new(Exit::BadData, cause)
                .code("log")
                .at(folder.display().to_string())
                .fix("take the directory from a copy, or begin a log in another one"));
        }
        Ok(self.writer.sync()?)
    }

    fn run(&mut self, told: &Receiver<Word>) -> Result<()> {
        loop {
            let left =
                self.unsealed_since.map_or(HEAD_AFTER, |since| HEAD_AFTER.saturating_sub(since.elapsed()));
            match told.recv_timeout(left) {
                Ok(Word::Answer(first)) => {
                    let (mut together, mut ends) = (vec![first], false);
                    for word in told.try_iter().take(TOGETHER_MAX - 1) {
                        match word {
                            Word::Answer(told) => together.push(told),
                            Word::End => {
                                ends = true;
                                break;
                            }
                        }
                    }
                    self.take(together, told)?;
                    if ends {
                        return self.seal();
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.seal()?,
                Ok(Word::End) | Err(RecvTimeoutError::Disconnected) => return self.seal(),
            }
            if self.unsealed() >= ANSWERS_PER_HEAD {
                self.seal()?;
            }
        }
    }

    /// Takes answers, and says so to who waits. After a failure nothing is taken any more: what is on the disk may be half.
    fn take(&mut self, together: Vec<Told>, told: &Receiver<Word>) -> Result<()> {
        let (entries, waiting): (Vec<_>, Vec<_>) =
            together.into_iter().map(|told| (told.entry, told.done)).unzip();
        let written = self.write(entries);
        let outcome = written.as_ref().map(|_| ()).map_err(ToString::to_string);
        // Who waited may have gone.
        waiting.iter().for_each(|done| drop(done.send(outcome.clone())));
        let Err(failure) = written else { return Ok(()) };
        for word in told {
            match word {
                Word::Answer(told) => drop(told.done.send(outcome.clone())),
                Word::End => break,
            }
        }
        Err(failure)
    }

    fn write(&mut self, entries: Vec<Map<String, Value>>) -> Result<()> {
        let first = self.writer.size();
        let mut lines = Vec::with_capacity(entries.len());
        for (number, fields) in (first..).zip(entries) {
            let mut entry = Map::from_iter([("answer".to_owned(), number.into())]);
            entry.extend(fields);
            let line = Value::Object(entry).to_string();
            if line.len() > ENTRY_BYTES_MAX {
                return Err(Failure::new(Exit::BadData, format!("answer {number} is too long for the log")));
            }
            lines.push(line);
        }
        let text: String = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
        let written = self.lines.write_all(text.as_bytes()).and_then(|()| self.lines.sync_data());
        written.map_err(|e| Failure::io("append to", &self.answers, &e))?;
        for (number, line) in (first..).zip(&lines) {
            self.writer.append(Kind::Answer, number, line.as_bytes())?;
        }
        self.writer.sync()?;
        self.unsealed_since.get_or_insert_with(Instant::now);
        Ok(())
    }

    fn unsealed(&self) -> u64 {
        self.writer.size() - self.last.as_ref().map_or(0, |last| last.head.size)
    }

    /// Says how the log stands, where the last head does not; the first head is of an empty log.
    fn seal(&mut self) -> Result<()> {
        self.unsealed_since = None;
        if self.last.is_some() && self.unsealed() == 0 {
            return Ok(());
        }
        let head = self.writer.head(self.last.as_ref().map(|last| &last.line[..]), unix_s());
        let head = HeadLine::new(head, self.signer.as_ref())?;
        self.heads.append_line(&head.line)?;
        self.heads.sync()?;
        self.last = Some(head);
        Ok(())
    }
}

/// Whether a directory is an owner's log, or what was handed on of one, and not a run.
pub(in crate::verbs) fn is_log(dir: &Path) -> bool {
    dir.join(FOLDER).join(HEADS).exists() && !dir.join("recipe.toml").exists()
}

/// `stillroom verify` of an owner's log: what is there is held against the rest.
pub(in crate::verbs) fn verify(args: &Verify, key: Option<&PublicKey>) -> Result<ExitCode> {
    let dir = &args.directory;
    let folder = dir.join(FOLDER);
    let has_records = folder.join(RECORDS).exists();
    let entries = if has_records { check_entries(dir)? } else { None };
    let log = if has_records { logbook::check(dir, key)? } else { None };
    key.map_or(Ok(()), |key| logbook::check_signer(dir, key))?;
    args.opening.as_deref().map_or(Ok(()), |path| verify::check_opening(dir, path))?;
    if args.json {
        let finding =
            json!({ "intact": true, "entries": entries, "log": log, "opened": args.opening.is_some() });
        terminal::print_json(&finding)?;
        return Ok(ExitCode::SUCCESS);
    }
    match entries {
        Some(n) => terminal::print_line(&format!("Intact: {n} answers, each as the log has it."))?,
        None => terminal::print_line(
            "The answers themselves, or the log's secret, are not here: they were not checked.",
        )?,
    }
    if let Some(log) = &log {
        terminal::print_line(&verify::logged(log))?;
        if log.unsealed > 0 {
            let what = format!(
                "{} answers are behind the last head: the next start or end makes one.",
                log.unsealed
            );
            terminal::print_line(&what)?;
        }
    }
    if args.opening.is_some() {
        terminal::print_line("The opened entry is in this log.")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Holds each answer against its record; none where the answers or the secret are not here.
fn check_entries(dir: &Path) -> Result<Option<u64>> {
    let (folder, answers) = (dir.join(FOLDER), dir.join(ANSWERS));
    let log = Log::read(&folder.join(RECORDS))?;
    let misplaced =
        (0..).zip(&log.records).find(|(at, record)| record.kind != Kind::Answer || record.number != *at);
    if let Some((at, record)) = misplaced {
        let cause = format!("record {at} of the log is of {} {}", record.kind.as_str(), record.number);
        return Err(differs(dir, cause));
    }
    let Some(secret) = logbook::read_secret(&folder)?.filter(|_| answers.exists()) else { return Ok(None) };
    let mut lines = 0;
    logbook::each_line(&answers, |number, line| {
        lines = number + 1;
        match log.stands_for(&secret, number, line) {
            true => Ok(()),
            false if number >= log.records.len() as u64 => Ok(()),
            false => Err(differs(dir, format!("answer {number} is not what the log has"))),
        }
    })?;
    let records = log.records.len() as u64;
    match lines < records {
        true => Err(differs(dir, format!("answer {lines} is missing: the log has {records}"))),
        // Lines behind the last record are of a server that runs, or that was killed.
        false => Ok(Some(records)),
    }
}

fn differs(dir: &Path, cause: String) -> Failure {
    Failure::new(Exit::BadData, cause)
        .code("log")
        .at(dir.display().to_string())
        .fix("take the directory from where it came, or from a copy")
}

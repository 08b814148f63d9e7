//! The ledger: every call to a teacher has a row before it is sent, and its receipt is durable before it is used.
//!
//! One SQLite file, `ledger.sqlite`, that any tool can open. A thread of its own writes it: whatever waits is
//! committed in one transaction and synced once, so that many calls share the price of a sync.
//!
//! After a crash, calls of which nothing is known but that they were about to be sent are `unknown`: they may have
//! been billed, and what they asked is asked again.

mod schema;
mod writer;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use serde::Serialize;
use stillroom_core::Digest;

use crate::{Result, StoreError};
pub(crate) use writer::Batch;

/// Largest receipt that is kept.
pub const RECEIPT_BYTES_MAX: usize = 64 << 20;

/// What is about to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Names the call in this ledger; see [`Ledger::next_call`].
    pub call: u64,
    /// Digest of all that the reply depends on: equal requests are bought once.
    pub request: Digest,
    pub prompt: String,
    pub sample: u32,
    /// Which try for this request this is, from 0.
    pub attempt: u32,
    pub stage: &'static str,
    pub teacher: String,
    /// Where it goes, without query or credentials.
    pub endpoint: String,
    pub sent_unix_ms: u64,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With a reply that is kept.
    Done,
    /// Without one; the request may be tried again.
    Failed,
    /// The teacher will not answer this request, however often it is asked.
    Refused,
}

impl Ending {
    fn as_str(self) -> &'static str {
        match self {
            Ending::Done => "done",
            Ending::Failed => "failed",
            Ending::Refused => "refused",
        }
    }
}

/// What a call came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub call: u64,
    pub ending: Ending,
    pub ended_unix_ms: u64,
    /// HTTP status, where there was one.
    pub status: Option<u16>,
    /// What went wrong, in words that hold no secret.
    pub fault: Option<String>,
    /// The model that the reply names.
    pub model: Option<String>,
    pub prompt_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
    /// What it costs, or may cost.
    pub usd: f64,
    /// Whether tokens and cost are an estimate, since no usage came back.
    pub estimated: bool,
    /// Until when the endpoint asks to be left alone, where it does.
    pub leave_alone_until_unix_ms: Option<u64>,
    /// The reply, for [`Ending::Done`] and where it says why for [`Ending::Refused`].
    pub receipt: Option<Vec<u8>>,
}

/// Something to be made durable.
#[derive(Clone, Debug)]
pub enum Entry {
    Begin(Call),
    End(Outcome),
}

/// A request that needs no further call.
#[derive(Clone, Debug, PartialEq)]
pub struct Settled {
    pub ending: Ending,
    pub receipt: Vec<u8>,
    pub usd: f64,
    pub fault: Option<String>,
}

/// A call that has ended, as the ledger has it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EndedCall {
    pub call: u64,
    /// Digest of what was sent.
    pub request: String,
    pub prompt: String,
    pub sample: u32,
    pub attempt: u32,
    pub stage: String,
    pub teacher: String,
    pub endpoint: String,
    pub state: String,
    pub sent_unix_ms: i64,
    pub ended_unix_ms: Option<i64>,
    pub status: Option<u16>,
    pub fault: Option<String>,
    pub model: Option<String>,
    pub prompt_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
    pub usd: f64,
    pub estimated: bool,
    /// Digest of the receipt.
    pub receipt: Option<Digest>,
}

impl EndedCall {
    /// What the ledger says of a call once its end is in it.
    pub fn of(call: &Call, outcome: &Outcome) -> EndedCall {
        EndedCall {
            call: call.call,
            request: call.request.to_string(),
            prompt: call.prompt.clone(),
            sample: call.sample,
            attempt: call.attempt,
            stage: call.stage.to_owned(),
            teacher: call.teacher.clone(),
            endpoint: call.endpoint.clone(),
            state: outcome.ending.as_str().to_owned(),
            sent_unix_ms: call.sent_unix_ms as i64,
            ended_unix_ms: Some(outcome.ended_unix_ms as i64),
            status: outcome.status,
            fault: outcome.fault.clone(),
            model: outcome.model.clone(),
            prompt_tokens: outcome.prompt_tokens,
            completion_tokens: outcome.completion_tokens,
            usd: outcome.usd,
            estimated: outcome.estimated,
            receipt: outcome.receipt.as_deref().map(Digest::of),
        }
    }

    fn of_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<EndedCall> {
        Ok(EndedCall {
            call: row.get::<_, i64>(0)?.unsigned_abs(),
            request: row.get::<_, String>(1)?.to_lowercase(),
            prompt: row.get(2)?,
            sample: row.get(3)?,
            attempt: row.get(4)?,
            stage: row.get(5)?,
            teacher: row.get(6)?,
            endpoint: row.get(7)?,
            state: row.get(8)?,
            sent_unix_ms: row.get(9)?,
            ended_unix_ms: row.get(10)?,
            status: row.get(11)?,
            fault: row.get(12)?,
            model: row.get(13)?,
            prompt_tokens: row.get::<_, Option<i64>>(14)?.map(i64::unsigned_abs),
            completion_tokens: row.get::<_, Option<i64>>(15)?.map(i64::unsigned_abs),
            usd: row.get(16)?,
            estimated: row.get(17)?,
            receipt: row.get_ref(18)?.as_blob_or_null()?.map(Digest::of),
        })
    }
}

/// A call for some request that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Try {
    pub attempt: u32,
    pub endpoint: String,
    pub is_done: bool,
    /// Whether tokens are counted for it.
    pub is_billed: bool,
}

/// Sums over all calls.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    pub calls: u64,
    pub done: u64,
    pub failed: u64,
    pub refused: u64,
    pub unknown: u64,
    pub usd: f64,
    /// The part of `usd` that is an estimate.
    pub estimated_usd: f64,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
}

/// What a ledger says; also of a run that another process is busy with.
pub struct LedgerReader {
    path: PathBuf,
    reader: Connection,
}

/// The ledger of one run, which this process alone writes. It reads as a [`LedgerReader`] does.
///
/// The writing thread ends with the last handle.
pub struct Ledger {
    reader: LedgerReader,
    batches: mpsc::Sender<Batch>,
    next_call: u64,
    /// Calls that an earlier process left open.
    newly_unknown: u64,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").field("path", &self.reader.path).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for LedgerReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LedgerReader").field("path", &self.path).finish_non_exhaustive()
    }
}

impl std::ops::Deref for Ledger {
    type Target = LedgerReader;

    fn deref(&self) -> &LedgerReader {
        &self.reader
    }
}

/// Hands entries to the writing thread.
#[derive(Clone, Debug)]
pub struct Scribe {
    batches: mpsc::Sender<Batch>,
    path: PathBuf,
}

impl Ledger {
    /// Opens or creates a ledger. Calls that an earlier process began and did not end become `unknown`; each is
    /// counted with what replies cost on average, or with `unknown_usd` where there are none.
    pub fn open(path: &Path, unknown_usd: f64) -> Result<Ledger> {
        let mut connection = Connection::open(path).map_err(|e| failed("open", path, e))?;
        schema::prepare(&mut connection).map_err(|e| failed("open", path, e))?;
        let reader = LedgerReader::open(path)?;
        let newly_unknown = connection
            .execute(
                "UPDATE calls SET state = 'unknown', estimated = 1,
                        usd = coalesce((SELECT avg(usd) FROM calls WHERE state = 'done'), ?1)
                 WHERE state = 'in_flight'",
                [unknown_usd],
            )
            .map_err(|e| failed("write", path, e))? as u64;
        let last: Option<i64> = connection
            .query_row("SELECT max(call) FROM calls", [], |row| row.get(0))
            .map_err(|e| failed("read", path, e))?;
        crate::sync_dir(path.parent().unwrap_or(Path::new(".")))?;
        let (batches, waiting) = mpsc::channel();
        writer::start(connection, waiting).map_err(|source| StoreError::Io {
            operation: "start the writer of",
            path: path.into(),
            source,
        })?;
        Ok(Ledger { reader, batches, next_call: last.map_or(1, |call| call as u64 + 1), newly_unknown })
    }

    /// A handle for another thread.
    pub fn scribe(&self) -> Scribe {
        Scribe { batches: self.batches.clone(), path: self.reader.path.clone() }
    }

    /// The first number that no call of this ledger has.
    pub fn next_call(&self) -> u64 {
        self.next_call
    }

    /// Until when endpoints asked to be left alone, the latest of what each said: milliseconds since 1970. Times that have
    /// passed are among them.
    pub fn waits(&self) -> Result<HashMap<String, u64>> {
        let path = &self.reader.path;
        let mut statement = self
            .reader
            .reader
            .prepare_cached("SELECT endpoint, until_unix_ms FROM waits")
            .map_err(|e| failed("read", path, e))?;
        let rows = statement
            .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?.max(0) as u64)));
        rows.and_then(Iterator::collect).map_err(|e| failed("read", path, e))
    }

    /// Calls that were found open when the ledger was opened.
    pub fn newly_unknown(&self) -> u64 {
        self.newly_unknown
    }
}

impl LedgerReader {
    /// Opens a ledger that is there, and changes nothing.
    pub fn open(path: &Path) -> Result<LedgerReader> {
        let reader = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .map_err(|e| failed("open", path, e))?;
        let version = schema::version(&reader).map_err(|e| failed("read", path, e))?;
        if version != schema::VERSION {
            let reason = format!("its format is {version}, and this program reads {}", schema::VERSION);
            return Err(StoreError::Damaged { path: path.to_path_buf(), reason });
        }
        Ok(LedgerReader { path: path.to_path_buf(), reader })
    }

    /// What was bought for a request. A refusal counts where it was paid for; what was refused for nothing may be asked
    /// again.
    pub fn settled(&self, request: &Digest) -> Result<Option<Settled>> {
        let mut statement = self
            .reader
            .prepare_cached(
                "SELECT state, body, usd, fault FROM calls JOIN receipts USING (call)
                 WHERE request = ?1 AND state IN ('done', 'refused') ORDER BY state LIMIT 1",
            )
            .map_err(|e| failed("read", &self.path, e))?;
        let row = statement
            .query_row([&request.as_bytes()[..]], |row| {
                let state: String = row.get(0)?;
                Ok(Settled {
                    ending: if state == "done" { Ending::Done } else { Ending::Refused },
                    receipt: row.get(1)?,
                    usd: row.get(2)?,
                    fault: row.get(3)?,
                })
            })
            .optional();
        row.map_err(|e| failed("read", &self.path, e))
    }

    /// Calls for a request that have ended, in their order.
    pub fn tries(&self, request: &Digest) -> Result<Vec<Try>> {
        let mut statement = self
            .reader
            .prepare_cached(
                "SELECT attempt, endpoint, state = 'done', prompt_tokens IS NOT NULL FROM calls
                 WHERE request = ?1 AND state <> 'in_flight' ORDER BY call",
            )
            .map_err(|e| failed("read", &self.path, e))?;
        let rows = statement.query_map([&request.as_bytes()[..]], |row| {
            Ok(Try {
                attempt: row.get(0)?,
                endpoint: row.get(1)?,
                is_done: row.get(2)?,
                is_billed: row.get(3)?,
            })
        });
        rows.and_then(Iterator::collect).map_err(|e| failed("read", &self.path, e))
    }

    /// Every call of these numbers that has ended, in order; of its receipt the digest.
    pub fn each_call<E: From<StoreError>>(
        &self,
        numbers: Range<u64>,
        take: &mut dyn FnMut(EndedCall) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let fault = |e| E::from(failed("read", &self.path, e));
        let mut statement = self
            .reader
            .prepare_cached(
                "SELECT call, hex(request), prompt, sample, attempt, stage, teacher, endpoint, state, sent_unix_ms,
                        ended_unix_ms, status, fault, model, prompt_tokens, completion_tokens, usd, estimated, body
                 FROM calls LEFT JOIN receipts USING (call)
                 WHERE call >= ?1 AND call < ?2 AND state <> 'in_flight' ORDER BY call",
            )
            .map_err(fault)?;
        let bound = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let mut rows = statement.query([bound(numbers.start), bound(numbers.end)]).map_err(fault)?;
        while let Some(row) = rows.next().map_err(fault)? {
            take(EndedCall::of_row(row).map_err(fault)?)?;
        }
        Ok(())
    }

    /// Sums over all calls, or those of one stage.
    pub fn totals(&self, stage: Option<&str>) -> Result<Totals> {
        let sums = self.reader.query_row(
            "SELECT count(*), sum(state = 'done'), sum(state = 'failed'), sum(state = 'refused'),
                    sum(state = 'unknown'), sum(usd), sum(CASE estimated WHEN 1 THEN usd ELSE 0 END),
                    sum(prompt_tokens), sum(completion_tokens)
             FROM calls WHERE ?1 IS NULL OR stage = ?1",
            params![stage],
            |row| {
                let count = |i: usize| row.get::<_, Option<i64>>(i).map(|n| n.unwrap_or(0) as u64);
                let sum = |i: usize| row.get::<_, Option<f64>>(i).map(|x| x.unwrap_or(0.0));
                Ok(Totals {
                    calls: count(0)?,
                    done: count(1)?,
                    failed: count(2)?,
                    refused: count(3)?,
                    unknown: count(4)?,
                    usd: sum(5)?,
                    estimated_usd: sum(6)?,
                    prompt_tokens: count(7)?,
                    completion_tokens: count(8)?,
                })
            },
        );
        sums.map_err(|e| failed("read", &self.path, e))
    }
}

impl Scribe {
    /// Makes entries durable, in their order; they are when this returns.
    pub fn commit(&self, entries: Vec<Entry>) -> Result<()> {
        if let Some(bytes) = entries.iter().filter_map(Entry::receipt_bytes).find(|n| *n > RECEIPT_BYTES_MAX)
        {
            let reason = format!("a receipt of {bytes} bytes is larger than {RECEIPT_BYTES_MAX}");
            return Err(StoreError::Unrecordable { path: self.path.clone(), reason });
        }
        let (done, outcome) = mpsc::channel();
        let gone = || StoreError::Damaged { path: self.path.clone(), reason: "its writer has ended".into() };
        self.batches.send(Batch { entries, done }).map_err(|_| gone())?;
        let written = outcome.recv().map_err(|_| gone())?;
        written.map_err(|error| match std::sync::Arc::try_unwrap(error) {
            Ok(error) => failed("write", &self.path, error),
            Err(error) => {
                StoreError::Ledger { operation: "write", path: self.path.clone(), cause: error.to_string() }
            }
        })
    }
}

impl Entry {
    fn receipt_bytes(&self) -> Option<usize> {
        match self {
            Entry::End(outcome) => outcome.receipt.as_ref().map(Vec::len),
            Entry::Begin(_) => None,
        }
    }
}

/// SQLite's errors in our words; a full disk is a full disk.
fn failed(operation: &'static str, path: &Path, error: rusqlite::Error) -> StoreError {
    use rusqlite::ErrorCode;
    let path = path.to_path_buf();
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => {
            let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
            StoreError::DiskFull { path, bytes: 0, source }
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Damaged { path, reason: error.to_string() }
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            StoreError::Locked { path, holder: None }
        }
        _ => StoreError::Ledger { operation, path, cause: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(number: u64, request: &str) -> Call {
        Call {
            call: number,
            request: Digest::of(request.as_bytes()),
            prompt: request.to_owned(),
            sample: 0,
            attempt: 0,
            stage: "teach",
            teacher: "t".to_owned(),
            endpoint: "http://127.0.0.1:1/v1".to_owned(),
            sent_unix_ms: 1_700_000_000_000,
        }
    }

    fn outcome(number: u64, ending: Ending) -> Outcome {
        Outcome {
            call: number,
            ending,
            ended_unix_ms: 1_700_000_000_500,
            status: Some(200),
            fault: None,
            model: None,
            prompt_tokens: Some(10),
            completion_tokens: Some(20),
            usd: 0.25,
            estimated: false,
            leave_alone_until_unix_ms: None,
            receipt: (ending == Ending::Done).then(|| format!("reply {number}").into_bytes()),
        }
    }

    fn open(dir: &tempfile::TempDir) -> Ledger {
        Ledger::open(&dir.path().join("ledger.sqlite"), 1.0).unwrap()
    }

    #[test]
    fn what_was_bought_is_there_when_the_ledger_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(&dir);
        let scribe = ledger.scribe();
        scribe.commit(vec![Entry::Begin(call(1, "a")), Entry::Begin(call(2, "b"))]).unwrap();
        scribe.commit(vec![Entry::End(outcome(1, Ending::Done)), Entry::Begin(call(3, "c"))]).unwrap();
        scribe.commit(vec![Entry::End(outcome(3, Ending::Failed))]).unwrap();
        let settled = ledger.settled(&Digest::of(b"a")).unwrap().unwrap();
        assert_eq!((settled.ending, settled.receipt), (Ending::Done, b"reply 1".to_vec()));
        assert_eq!(ledger.settled(&Digest::of(b"b")).unwrap(), None);
        assert_eq!(ledger.tries(&Digest::of(b"b")).unwrap(), []);
        let tries = ledger.tries(&Digest::of(b"c")).unwrap();
        assert_eq!((tries.len(), tries[0].is_done, tries[0].is_billed), (1, false, true));
        drop((ledger, scribe));

        let reader = LedgerReader::open(&dir.path().join("ledger.sqlite")).unwrap();
        assert_eq!(reader.totals(None).unwrap().unknown, 0, "whoever only reads changes nothing");
        let ledger = open(&dir);
        assert_eq!((ledger.newly_unknown(), ledger.next_call()), (1, 4));
        let totals = ledger.totals(Some("teach")).unwrap();
        assert_eq!((totals.calls, totals.done, totals.failed, totals.unknown), (3, 1, 1, 1));
        assert_eq!((totals.usd, totals.estimated_usd), (0.75, 0.25));
        assert_eq!(ledger.totals(Some("other")).unwrap(), Totals::default());
        drop(ledger);
        assert_eq!(open(&dir).newly_unknown(), 0, "an unknown call is counted once");
    }

    /// Whoever hears of a call as it ends, and whoever reads of it later, is told the same.
    #[test]
    fn a_call_is_told_of_as_the_ledger_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(&dir);
        let mut told = Vec::new();
        for (number, ending) in
            [(1, Ending::Done), (2, Ending::Failed), (3, Ending::Refused), (5, Ending::Done)]
        {
            let call = Call { sample: 3, attempt: 1, ..call(number, &format!("q{number}")) };
            let outcome = Outcome {
                usd: 0.1 + 0.2,
                fault: (ending != Ending::Done).then(|| "a \"fault\"\u{0}\u{1f600}".to_owned()),
                model: Some(String::new()),
                prompt_tokens: (number != 3).then_some(7),
                estimated: number == 2,
                status: (number != 2).then_some(418),
                ..outcome(number, ending)
            };
            told.push(EndedCall::of(&call, &outcome));
            ledger.scribe().commit(vec![Entry::Begin(call), Entry::End(outcome)]).unwrap();
        }
        ledger.scribe().commit(vec![Entry::Begin(call(4, "open"))]).unwrap();
        let read = |numbers| {
            let mut found = Vec::new();
            let mut take = |call| -> Result<()> {
                found.push(call);
                Ok(())
            };
            ledger.each_call(numbers, &mut take).unwrap();
            found
        };
        assert_eq!(read(0..u64::MAX), told);
        assert_eq!(read(2..5), told[1..3]);
        assert_eq!(read(6..9), []);
    }

    #[test]
    fn a_request_cannot_be_bought_twice() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(&dir);
        let scribe = ledger.scribe();
        scribe.commit(vec![Entry::Begin(call(1, "a")), Entry::Begin(call(2, "a"))]).unwrap();
        scribe.commit(vec![Entry::End(outcome(1, Ending::Done))]).unwrap();
        let refused = scribe.commit(vec![Entry::End(outcome(2, Ending::Done))]).unwrap_err();
        assert!(refused.to_string().contains("UNIQUE"), "{refused}");
        let totals = ledger.totals(None).unwrap();
        assert_eq!(totals.done, 1);
    }

    #[test]
    fn the_latest_time_that_an_endpoint_asked_for_is_there_when_the_ledger_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(&dir);
        let scribe = ledger.scribe();
        let busy = |number, until| {
            let outcome = outcome(number, Ending::Failed);
            Entry::End(Outcome { leave_alone_until_unix_ms: until, ..outcome })
        };
        for (number, until) in [(1, Some(1_700_000_060_000)), (2, Some(1_700_000_009_000)), (3, None)] {
            scribe
                .commit(vec![Entry::Begin(call(number, &number.to_string())), busy(number, until)])
                .unwrap();
        }
        drop((ledger, scribe));
        let waits = open(&dir).waits().unwrap();
        assert_eq!(
            waits.into_iter().collect::<Vec<_>>(),
            [("http://127.0.0.1:1/v1".to_owned(), 1_700_000_060_000)]
        );
    }

    /// Ledgers that were made before that was kept are opened, and read as they are.
    #[test]
    fn a_ledger_without_that_table_is_opened_too() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(&dir));
        let path = dir.path().join("ledger.sqlite");
        Connection::open(&path).unwrap().execute_batch("DROP TABLE waits").unwrap();
        assert_eq!(LedgerReader::open(&path).unwrap().settled(&Digest::of(b"a")).unwrap(), None);
        assert!(open(&dir).waits().unwrap().is_empty());
    }

    #[test]
    fn many_threads_share_commits_and_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(&dir);
        std::thread::scope(|scope| {
            for thread in 0..16u64 {
                let scribe = ledger.scribe();
                scope.spawn(move || {
                    for i in 0..25 {
                        let number = 1 + thread * 25 + i;
                        scribe.commit(vec![Entry::Begin(call(number, &number.to_string()))]).unwrap();
                        scribe.commit(vec![Entry::End(outcome(number, Ending::Done))]).unwrap();
                    }
                });
            }
        });
        let totals = ledger.totals(None).unwrap();
        assert_eq!((totals.calls, totals.done, totals.usd), (400, 400, 100.0));
    }

    #[test]
    fn other_files_are_refused_with_their_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.sqlite");
        std::fs::write(&path, b"not a database, only some text that is long enough to be read as one")
            .unwrap();
        let refused = Ledger::open(&path, 0.0).unwrap_err();
        assert!(matches!(refused, StoreError::Damaged { .. }), "{refused}");
        assert!(refused.to_string().contains("ledger.sqlite"));
    }
}

//! The thread that writes: whatever waits goes into one transaction.

use std::io;
use std::sync::{Arc, mpsc};
use std::thread;

use rusqlite::{Connection, params};

use super::{Call, Entry, Outcome};

/// Entries of one caller, and where to say that they are durable.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(super) entries: Vec<Entry>,
    pub(super) done: mpsc::Sender<Result<(), Arc<rusqlite::Error>>>,
}

/// Batches of one transaction.
const BATCHES_MAX: usize = 1024;

pub(super) fn start(mut connection: Connection, waiting: mpsc::Receiver<Batch>) -> io::Result<()> {
    thread::Builder::new().name("ledger".into()).spawn(move || {
        while let Ok(first) = waiting.recv() {
            let mut batches = vec![first];
            batches.extend(waiting.try_iter().take(BATCHES_MAX - 1));
            let written = write(&mut connection, &batches).map_err(Arc::new);
            for batch in &batches {
                // Whoever asked may have given up.
                let _ = batch.done.send(written.clone());
            }
        }
    })?;
    Ok(())
}

fn write(connection: &mut Connection, batches: &[Batch]) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    {
        let mut begin = transaction.prepare_cached(
            "INSERT INTO calls (call, request, prompt, sample, attempt, stage, teacher, endpoint, state, sent_unix_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 'in_flight', ?9)",
        )?;
        let mut end = transaction.prepare_cached(
            "UPDATE calls SET state = ?2, ended_unix_ms = ?3, status = ?4, fault = ?5, model = ?6,
                    prompt_tokens = ?7, completion_tokens = ?8, usd = ?9, estimated = ?10
             WHERE call = ?1",
        )?;
        let mut keep = transaction.prepare_cached("INSERT INTO receipts (call, body) VALUES (?1, ?2)")?;
        let mut wait = transaction.prepare_cached(
            "INSERT INTO waits (endpoint, until_unix_ms) SELECT endpoint, ?2 FROM calls WHERE call = ?1
             ON CONFLICT (endpoint) DO UPDATE SET until_unix_ms = max(until_unix_ms, excluded.until_unix_ms)",
        )?;
        for entry in batches.iter().flat_map(|batch| &batch.entries) {
            match entry {
                Entry::Begin(call) => drop(begin.execute(begun(call))?),
                Entry::End(outcome) => {
                    end.execute(ended(outcome))?;
                    if let Some(body) = &outcome.receipt {
                        keep.execute(params![outcome.call as i64, body])?;
                    }
                    if let Some(until) = outcome.leave_alone_until_unix_ms {
                        wait.execute([outcome.call as i64, until as i64])?;
                    }
                }
            }
        }
    }
    transaction.commit()
}

fn begun(call: &Call) -> impl rusqlite::Params + '_ {
    (
        call.call as i64,
        &call.request.as_bytes()[..],
        &call.prompt,
        call.sample,
        call.attempt,
        call.stage,
        &call.teacher,
        &call.endpoint,
        call.sent_unix_ms as i64,
    )
}

fn ended(outcome: &Outcome) -> impl rusqlite::Params + '_ {
    (
        outcome.call as i64,
        outcome.ending.as_str(),
        outcome.ended_unix_ms as i64,
        outcome.status,
        &outcome.fault,
        &outcome.model,
        outcome.prompt_tokens.map(|n| n as i64),
        outcome.completion_tokens.map(|n| n as i64),
        outcome.usd,
        outcome.estimated,
    )
}

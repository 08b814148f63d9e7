//! A teacher that is asked by the file: requests go into files, and results come back in files, whoever carries them.
//!
//! ```text
//! requests-0000.jsonl …      what is asked, in OpenAI's form of a batch
//! results/*.jsonl            what came back: put there by hand, or fetched
//! jobs/requests-0000.json    which job of a service has a file
//! ```
//!
//! The files of requests, the results and the ledger are all that is known; nothing else is kept. So whatever is there is
//! found again, and a result may come late, twice, or in another order.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;
use stillroom_core::Cleared;
use stillroom_store::Ledger;

use crate::TeacherError;
use crate::ask::{Answer, Ask};
use crate::batch_desk::{Desk, Limits};
use crate::batch_files::requests_name;
use crate::batch_jobs::{Carried, Manners, Service, record};
use crate::schedule::Stop;
use crate::session::{Finished, Teacher};

/// How files are made, and how long is waited for what comes back.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchOptions {
    /// Where the files lie. It is there.
    pub folder: PathBuf,
    pub requests_per_file_max: usize,
    pub bytes_per_file_max: u64,
    /// Names the run in the metadata of jobs.
    pub run: String,
    /// Between two looks at the jobs.
    pub poll_s: f64,
    /// After which jobs are left to themselves; without it, they are waited for.
    pub wait_s: Option<f64>,
}

/// What a batch came to.
#[derive(Clone, Debug, PartialEq)]
pub enum BatchEnd {
    /// As a session does.
    Finished(Finished),
    /// These files have no results yet.
    Waits(Vec<WaitingFile>),
    /// These jobs need a look by somebody before anything is asked again.
    Jobs(Vec<JobEnd>),
}

/// A file of requests without results.
#[derive(Clone, Debug, PartialEq)]
pub struct WaitingFile {
    pub name: String,
    /// Those of it that are still wanted.
    pub requests: u64,
    /// Estimated.
    pub usd: f64,
    /// The service's name of its job.
    pub job: Option<String>,
}

/// A job that ended badly.
#[derive(Clone, Debug, PartialEq)]
pub struct JobEnd {
    pub file: String,
    pub job: String,
    pub status: String,
    /// In the service's words, made harmless.
    pub errors: Vec<String>,
}

/// What was read, for whoever wants to know what is in the files.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Tally {
    /// Replies that the ledger had before.
    pub kept: u64,
    /// Files of results.
    pub files: u64,
    /// Their lines, but for empty ones.
    pub lines: u64,
    /// Replies that were put into the ledger.
    pub replies: u64,
    /// Results without a usable reply.
    pub failed: u64,
    /// Requests that were missing from the results of their file.
    pub missing: u64,
    /// Results of a name that had one; the first one counts.
    pub duplicates: u64,
    /// Those of them that say something else.
    pub differing_duplicates: u64,
    /// Replies to another try of a request that had its reply: they were paid for.
    pub bought_again: u64,
    /// Results of names that nothing was asked under.
    pub unknown: u64,
    /// Results of what was asked once and is not asked now.
    pub not_asked_now: u64,
    /// Lines that are no results.
    pub broken: u64,
    /// Files of requests that were written.
    pub written_files: u64,
    /// What of the budget kept others from being written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub over_budget: Option<&'static str>,
    #[serde(skip)]
    pub problems: Vec<Problem>,
}

/// What is wrong with a line of results.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Problem {
    pub file: String,
    pub line: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custom_id: Option<String>,
    pub what: String,
}

impl Teacher {
    /// Asks everything by way of files, and hands over the answers in the order of `asks` once all are there.
    ///
    /// With leave, files are submitted as jobs to the first endpoint; without, somebody carries them. `heard` is told in
    /// words how jobs stand. A result is in the ledger before it counts.
    pub fn batch<E: From<TeacherError>>(
        &self,
        options: &BatchOptions,
        cleared: Option<Cleared>,
        ledger: &Ledger,
        asks: &mut dyn Iterator<Item = Result<Ask, E>>,
        deliver: &mut dyn FnMut(Ask, Answer) -> Result<(), E>,
        heard: &mut dyn FnMut(&str),
    ) -> Result<(BatchEnd, Tally), E> {
        let started = Instant::now();
        let after = |seconds| started.checked_add(Duration::from_secs_f64(seconds));
        let manners = Manners {
            run: options.run.clone(),
            poll: Duration::from_secs_f64(options.poll_s),
            until: options.wait_s.and_then(after),
        };
        let service = cleared.and_then(|cleared| Service::new(self, cleared, manners));
        let limits =
            Limits { requests_max: options.requests_per_file_max, bytes_max: options.bytes_per_file_max };
        let mut desk = Desk::open(self, ledger, options.folder.clone(), limits, asks)?;
        if let Some(service) = &service {
            service.mark_fetched(&mut desk)?;
        }
        let end = rounds(&mut desk, service.as_ref(), heard)?;
        if end == BatchEnd::Finished(Finished::All) {
            desk.deliver(deliver)?;
        }
        Ok((end, desk.tally))
    }
}

/// Writes, carries and reads until nothing is left to be asked, or nobody carries on.
fn rounds(
    desk: &mut Desk<'_>,
    service: Option<&Service<'_>>,
    heard: &mut dyn FnMut(&str),
) -> Result<BatchEnd, TeacherError> {
    let mut ends = Vec::new();
    loop {
        desk.read_results()?;
        if !ends.is_empty() && desk.is_wanting() {
            return Ok(BatchEnd::Jobs(ends));
        }
        let budget = desk.write_requests()?;
        desk.tally.over_budget = budget;
        if desk.waiting().is_empty() {
            let stopped = budget.map(|what| Finished::Stopped(Stop::Budget(what)));
            return Ok(BatchEnd::Finished(stopped.unwrap_or(Finished::All)));
        }
        let Some(service) = service else { return Ok(BatchEnd::Waits(waiting(desk)?)) };
        match service.carry(desk, heard)? {
            Carried::Came(more) => ends.extend(more),
            Carried::Runs => return Ok(BatchEnd::Waits(waiting(desk)?)),
            Carried::Stopped(stop) => return Ok(BatchEnd::Finished(Finished::Stopped(stop))),
        }
    }
}

fn waiting(desk: &Desk<'_>) -> Result<Vec<WaitingFile>, TeacherError> {
    let mut files = Vec::new();
    for (number, file) in desk.waiting() {
        let job = record(&desk.folder, number)?.map(|record| record.job);
        files.push(WaitingFile { name: requests_name(number), requests: file.requests, usd: file.usd, job });
    }
    Ok(files)
}

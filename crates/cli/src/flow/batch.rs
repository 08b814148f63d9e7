//! Teachers that are asked by the file: what is to be carried, what came back, and what is wrong with it.

use serde_json::json;
use stillroom_core::Digest;
use stillroom_store::Ledger;
use stillroom_teacher::{Answer, Ask, BatchEnd, BatchOptions, Finished, JobEnd, Tally, Teacher, WaitingFile};

use super::{Flow, gate};
use crate::failure::{Exit, Failure, Result};
use crate::recipe::Wire;

/// Files of requests, and what came back.
const FOLDER: &str = "batch";
/// What was found in the results that were read last.
const REPORT: &str = "batch/report.json";
/// What is wrong with which line of them.
const PROBLEMS: &str = "batch/problems.jsonl";
/// Files and jobs that a message names.
const NAMED_MAX: usize = 8;

impl Flow {
    /// Whether the teacher is asked by the file.
    pub(super) fn is_asked_by_file(&self) -> bool {
        self.recipe.wire().is_some_and(|wire| wire.batch.is_some())
    }

    /// Asks in files, and hands over the answers once all are there.
    ///
    /// # Errors
    /// While files or jobs are waited for: which, and what is to be done.
    pub(super) fn ask_by_file(
        &mut self,
        teacher: &Teacher,
        wire: &Wire,
        ledger: &Ledger,
        asks: &mut dyn Iterator<Item = Result<Ask>>,
        deliver: &mut dyn FnMut(Ask, Answer) -> Result<()>,
    ) -> Result<Finished> {
        let batch = wire.batch.as_ref().expect("a teacher that is asked by the file");
        let options = BatchOptions {
            folder: self.run.dir(FOLDER)?,
            requests_per_file_max: batch.max_requests_per_file,
            bytes_per_file_max: batch.max_bytes_per_file as u64,
            run: Digest::of(self.recipe.name.as_bytes()).to_string(),
            poll_s: batch.poll_s,
            wait_s: batch.wait_s,
        };
        let cleared = match wire.is_by_hand() {
            true => None,
            false => Some(gate::clear(&self.recipe, &self.source, &self.decision)?),
        };
        let progress = &mut self.progress;
        let mut heard = |words: &str| progress.update(&format!("{}: {words}", teacher.stage));
        let (end, tally) = teacher.batch(&options, cleared, ledger, asks, deliver, &mut heard)?;
        self.tell(teacher.stage, &tally)?;
        match end {
            BatchEnd::Finished(finished) => Ok(finished),
            BatchEnd::Waits(files) => {
                let failure = self.waits(wire, &files);
                Err(match tally.over_budget {
                    None => failure,
                    Some(what) => failure.detail(format!(
                        "more is asked once it is known that the budget of {what} allows it"
                    )),
                })
            }
            BatchEnd::Jobs(jobs) => Err(self.ended_badly(&jobs)),
        }
    }

    /// What was read and written, in the folder, in the log and for whoever watches.
    fn tell(&mut self, stage: &str, tally: &Tally) -> Result<()> {
        self.write_json(REPORT, tally)?;
        self.write_lines(PROBLEMS, &tally.problems)?;
        let mut event = serde_json::to_value(tally).expect("a tally is plain data");
        (event["event"], event["stage"]) = (json!("batch"), json!(stage));
        self.event(event)?;
        let counts = [
            (tally.replies, "new replies"),
            (tally.failed, "failed"),
            (tally.missing, "missing"),
            (tally.duplicates, "there twice"),
            (tally.differing_duplicates, "there twice and different"),
            (tally.bought_again, "paid for twice"),
            (tally.unknown, "of unknown names"),
            (tally.broken, "broken"),
        ];
        let said: Vec<String> =
            counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        if tally.files > 0 {
            let (files, lines) = (tally.files, tally.lines);
            let said = if said.is_empty() { "nothing new".to_owned() } else { said.join(", ") };
            self.progress.line(&format!("{stage}: {lines} results in {files} files: {said}"));
        }
        if !tally.problems.is_empty() {
            let path = self.run.path(PROBLEMS)?;
            self.progress.line(&format!("{stage}: `{}` has what is wrong, line by line", path.display()));
        }
        Ok(())
    }

    fn waits(&self, wire: &Wire, files: &[WaitingFile]) -> Failure {
        let folder = self.run.root().join(FOLDER);
        let requests = counted(files.iter().map(|file| file.requests).sum());
        let (is_one, n) = (files.len() == 1, files.len());
        let cause = match (wire.is_by_hand(), is_one) {
            (true, true) => format!("a file of requests waits for its results ({requests})"),
            (true, false) => format!("{n} files of requests wait for their results ({requests})"),
            (false, true) => format!("a job still runs ({requests})"),
            (false, false) => format!("{n} jobs still run ({requests})"),
        };
        let mut failure = Failure::new(Exit::TryLater, cause);
        for WaitingFile { name, requests, usd, job } in files.iter().take(NAMED_MAX) {
            let place = folder.join(name);
            let job = job.as_ref().map(|job| format!(", job `{job}`")).unwrap_or_default();
            let usd = if *usd > 0.0 { format!(", about ${usd:.4}") } else { String::new() };
            failure = failure.detail(format!("`{}`: {}{usd}{job}", place.display(), counted(*requests)));
        }
        if n > NAMED_MAX {
            failure = failure.detail(format!("and {} more", n - NAMED_MAX));
        }
        if !wire.is_by_hand() {
            return failure
                .code("batch-runs")
                .fix("run the same command again later; nothing is submitted twice");
        }
        let results = folder.join("results");
        failure.code("batch-waits").detail(format!(
            "results go into `{}`, as `.jsonl` files of any name; files of errors go there, too",
            results.display()
        ))
        .fix(format!(
            "have each file answered by the service's batches, or by `vllm run-batch -i {} -o {} --model MODEL`; then run the \
             same command again",
            folder.join(&files[0].name).display(),
            results.join("0.jsonl").display(),
        ))
    }

    fn ended_badly(&self, jobs: &[JobEnd]) -> Failure {
        let cause = match jobs {
            [job] => format!("job `{}` ended as `{}`, without all of its results", job.job, job.status),
            _ => format!("{} jobs ended without all of their results", jobs.len()),
        };
        let mut failure = Failure::new(Exit::TryLater, cause).code("batch-job");
        for job in jobs.iter().take(NAMED_MAX) {
            let why =
                if job.errors.is_empty() { "no reason is given".to_owned() } else { job.errors.join("; ") };
            failure = failure.detail(format!("`{}`, job `{}`, {}: {why}", job.file, job.job, job.status));
        }
        failure.at(self.source.place(&["teacher", "endpoints"])).fix(
            "see to the cause, then run the same command again: what came is kept, and the rest is asked again",
        )
    }
}

fn counted(requests: u64) -> String {
    if requests == 1 { "1 request".to_owned() } else { format!("{requests} requests") }
}

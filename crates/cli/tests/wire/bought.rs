//! What was bought, and that nothing was bought twice that need not be.

use std::collections::BTreeMap;

use crate::desk::{Desk, PRICE, call_of, matched, tell};
use crate::fake::{Entry, FakeTeacher};

/// One request at a time: then what is lost cannot be mistaken for what had not ended. Many: they share commits.
const IN_FLIGHT: [usize; 2] = [1, 16];

/// What interruptions cost.
#[derive(Clone, Copy, Debug, Default)]
struct Lost {
    /// Calls of which the ledger knows only that they were about to be sent.
    unknown: usize,
    /// Good replies that were sent for a request that had had one.
    served_again: u64,
}

/// Runs that are interrupted.
pub(crate) struct Interrupted<'a> {
    /// What is done to them, for whoever reads of it.
    pub(crate) what: &'a str,
    /// Where their folders lie, with a `/` at its end.
    pub(crate) below: &'a str,
    /// How often, all runs together.
    pub(crate) times: usize,
    /// How often one run is, so that it ends some day.
    pub(crate) per_run_max: usize,
}

impl Interrupted<'_> {
    /// `to_its_end` brings a run of `bad.toml` to its end in a folder, and says how often it interrupted it, of so often at
    /// most. Each run has a server of its own, and ends with the bytes of a calm one.
    pub(crate) fn check(
        &self,
        desk: &Desk,
        server: impl Fn(u64) -> FakeTeacher,
        mut to_its_end: impl FnMut(&str, usize) -> usize,
    ) {
        let calm = desk.calm("curate", "");
        let rows = desk.json("calm/teach.json")["rows"].clone();
        let (mut done, mut lost, mut runs) = (0, Lost::default(), 0);
        while done < self.times {
            let output = format!("{}run{runs}", self.below);
            let server = server(runs);
            let in_flight = IN_FLIGHT[runs as usize % 2];
            let teacher = format!("max_in_flight = {in_flight}\nmax_attempts = 20");
            desk.recipe("bad.toml", &server.base_url(), &teacher);
            let times = to_its_end(&output, self.per_run_max.min(self.times - done));
            let differing = desk.differing(&output, &calm);
            assert!(differing.is_empty(), "{output} after {times} {}: {differing:?}", self.what);
            assert_eq!(desk.json(&format!("{output}/teach.json"))["rows"], rows);
            let more = check(desk, &output, &server, times, in_flight);
            (done, runs) = (done + times, runs + 1);
            lost = Lost {
                unknown: lost.unknown + more.unknown,
                served_again: lost.served_again + more.served_again,
            };
            assert!(runs < 10 * self.times as u64 + 10, "hardly any point comes in time");
        }
        tell(&format!("{done} {} of {runs} runs: {lost:?}", self.what));
    }
}

/// Holds the ledger of a run that was interrupted `times` against what the server saw. Whatever had a durable receipt was
/// not asked again; at most what was in flight is unknown, and only that was bought twice.
fn check(desk: &Desk, output: &str, server: &FakeTeacher, times: usize, in_flight: usize) -> Lost {
    let (ledger, entries, stats) = (desk.ledger(output), server.entries(), server.stats());
    let mut by_request: BTreeMap<&str, Vec<(u64, &str, &Entry)>> = BTreeMap::new();
    for (row, entry) in matched(&ledger, &entries) {
        let (call, request) = call_of(entry);
        by_request.entry(request).or_default().push((call, row.state.as_str(), entry));
    }
    for (request, calls) in &by_request {
        let done: Vec<u64> =
            calls.iter().filter(|(_, state, _)| *state == "done").map(|(call, ..)| *call).collect();
        assert_eq!(done.len(), 1, "{request}: {calls:?}");
        for (call, state, entry) in calls {
            assert!(*call <= done[0], "{request} was asked again after its receipt: {calls:?}");
            let was_good = entry.is_good && entry.sent;
            assert!(!was_good || matches!(*state, "done" | "unknown"), "{request}: {calls:?}");
        }
    }
    assert!(ledger.values().all(|row| row.has_receipt == (row.state == "done")));
    let unknown = ledger.values().filter(|row| row.state == "unknown").count();
    assert!(ledger.values().all(|row| row.state != "in_flight"));
    assert!(unknown <= times * in_flight, "{unknown} unknown calls after {times} interruptions");
    assert!(stats.served_again as usize <= unknown, "{stats:?}, {unknown} unknown");
    let spent: f64 = ledger.values().map(|row| row.usd).sum();
    let billed =
        stats.billed_prompt_tokens as f64 * PRICE.0 + stats.billed_completion_tokens as f64 * PRICE.1;
    assert!((desk.json(&format!("{output}/teach.json"))["usd"].as_f64().unwrap() - spent).abs() < 1e-9);
    assert!(spent > 0.9 * billed, "${spent} on record, ${billed} billed");
    Lost { unknown, served_again: stats.served_again }
}

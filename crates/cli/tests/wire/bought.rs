//! What was bought, and that nothing was bought twice that need not be.

use std::collections::BTreeMap;

use crate::desk::{Desk, PRICE, call_of, matched};
use crate::fake::{Entry, FakeTeacher};

/// What interruptions cost.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lost {
    /// Calls of which the ledger knows only that they were about to be sent.
    pub(crate) unknown: usize,
    /// Good replies that were sent for a request that had had one.
    pub(crate) served_again: u64,
}

/// Holds the ledger of a run that was interrupted `times` against what the server saw. Whatever had a durable receipt was
/// not asked again; at most what was in flight is unknown, and only that was bought twice.
pub(crate) fn check(desk: &Desk, output: &str, server: &FakeTeacher, times: usize, in_flight: usize) -> Lost {
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

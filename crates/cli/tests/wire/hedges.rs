//! `hedge_after_s`: what is long on its way is asked of another endpoint as well, and every call has its row and its price.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use stillroom_core::CounterRng;

use crate::desk::{Desk, call_of, matched};
use crate::fake::{FakeTeacher, Faults, Options};
use crate::shop::{self, text};

/// Of each endpoint.
const IN_FLIGHT: usize = 6;

/// A recipe that asks both.
fn recipe(desk: &Desk, servers: &[FakeTeacher; 2], keys: &str) {
    let [first, second] = servers.each_ref().map(FakeTeacher::base_url);
    let url = format!("{first}\" }}, {{ base_url = \"{second}");
    desk.recipe("both.toml", &url, &format!("max_in_flight = {IN_FLIGHT}\n{keys}"));
}

/// The first server never answers, and the second one is asked as well: nobody waits for the silent one, not even at the end.
#[test]
fn what_is_long_on_its_way_is_asked_of_another_endpoint_as_well() {
    let desk = Desk::new(30);
    let calm = desk.calm("teach", "");
    let faults = Faults { stall: 1.0, per_request_max: u64::MAX, ..Faults::none() };
    let silent =
        FakeTeacher::start(Options { faults, stall: Duration::from_secs(120), ..Options::default() });
    let servers = [silent, FakeTeacher::start(Options::default())];
    recipe(&desk, &servers, "hedge_after_s = 0.3\nstall_timeout_s = 100");
    let plan = desk.succeed(&["plan", "both.toml"]);
    assert!(
        text(&plan.stdout).contains("0.3 s; each of those is sent to another endpoint"),
        "{}",
        text(&plan.stdout)
    );

    let started = Instant::now();
    desk.succeed(&["teach", "both.toml", "--output", "out"]);
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    assert_eq!(desk.differing("out", &calm), [""; 0]);
    let [first, second] = servers.each_ref().map(FakeTeacher::stats);
    assert_eq!((second.served, second.served_again, first.replies), (30, 0, 0), "{first:?} {second:?}");
    let ledger = desk.ledger("out");
    let entries = [servers[0].entries(), servers[1].entries()].concat();
    let rows = matched(&ledger, &entries);
    assert_eq!(rows.len(), ledger.len());
    let lost: Vec<_> = rows.iter().filter(|(row, _)| row.state != "done").collect();
    assert!((1..=IN_FLIGHT).contains(&lost.len()), "as many as the silent one takes at once: {lost:?}");
    for (row, entry) in &lost {
        assert_eq!(row.fault.as_deref(), Some("another reply to this request came first"));
        assert!(row.state == "failed" && row.estimated && row.usd > 0.0 && !row.has_receipt, "{row:?}");
        assert!(!entry.is_good || !entry.sent, "{entry:?}");
    }
    let usd: f64 = ledger.values().map(|row| row.usd).sum();
    assert!((desk.json("out/teach.json")["usd"].as_f64().expect("a sum") - usd).abs() < 1e-9);
    let alone = desk.run(&["plan", "calm.toml", "--set", "teacher.hedge_after_s=1"]);
    assert!(text(&alone.stderr).contains("no other endpoint"), "{}", text(&alone.stderr));
}

/// Each call that a hedge makes takes a place of `max_in_flight`: a kill leaves no more unknown than there are places.
#[test]
fn killed_while_it_hedges_it_knows_all_but_what_was_in_flight() {
    let (n, kills) = (24, 8);
    let desk = Desk::new(n);
    let calm = desk.calm("teach", "");
    let slow = || {
        let (latency, chunk_latency) = (Duration::from_millis(30), Duration::from_millis(4));
        FakeTeacher::start(Options { latency, chunk_latency, ..Options::default() })
    };
    let servers = [slow(), slow()];
    recipe(&desk, &servers, "hedge_after_s = 0.02");
    let mut chance = CounterRng::new(&[9]);
    let teach = ["teach", "both.toml", "--output", "out"];
    let mut killed = 0;
    for _ in 0..kills {
        let (started, time) = (Instant::now(), Duration::from_millis(40 + chance.below(120)));
        let command = shop::command(desk.dir.path(), &teach);
        killed += usize::from(shop::kill_when(command, || started.elapsed() >= time).1);
    }
    desk.succeed(&teach);
    assert_eq!(desk.differing("out", &calm), [""; 0]);
    let ledger = desk.ledger("out");
    let entries = [servers[0].entries(), servers[1].entries()].concat();
    let mut by_request: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (row, entry) in matched(&ledger, &entries) {
        by_request.entry(call_of(entry).1).or_default().push(&row.state);
    }
    assert_eq!(by_request.len(), n);
    assert!(by_request.values().all(|states| states.iter().filter(|state| **state == "done").count() == 1));
    let in_state = |name: &str| ledger.values().filter(|row| row.state == name).count();
    let (unknown, lost) = (in_state("unknown"), in_state("failed"));
    assert!(unknown <= killed * 2 * IN_FLIGHT, "{unknown} unknown calls after {killed} kills");
    assert_eq!(in_state("done") + unknown + lost, ledger.len());
    assert!(killed > 0 && lost > 0, "{killed} kills, {lost} calls given up");
    let priced = |row: &crate::desk::Row| row.usd > 0.0 || row.state != "failed";
    assert!(ledger.values().all(priced), "what was given up may be billed");
}

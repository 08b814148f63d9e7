//! Faults that follow from a seed: every prompt has its one reply, every call its row, every cent its reason.

use std::time::Instant;

use crate::desk::{Desk, PRICE, billed_usd, matched, retry_soon, size, tell};
use crate::fake::{FakeTeacher, Faults, Options, Stats};
use crate::shop::text;

const IN_FLIGHT: usize = 48;
const TEACHER: &str = "max_in_flight = 48\nstall_timeout_s = 2\nmax_attempts = 12";

fn bad_day(seed: u64) -> FakeTeacher {
    FakeTeacher::start(retry_soon(Options { seed, faults: Faults::usual(), ..Options::default() }))
}

#[test]
fn a_bad_day_costs_time_but_no_row_when_replies_are_streamed() {
    bad_day_of(true);
}

#[test]
fn a_bad_day_costs_time_but_no_row_when_replies_are_whole() {
    bad_day_of(false);
}

fn bad_day_of(stream: bool) {
    let n = size("STILLROOM_WIRE_PROMPTS", 1000);
    let desk = Desk::new(n);
    let teacher = format!("{TEACHER}\nstream = {stream}");
    let calm = desk.calm("teach", &teacher);
    let server = bad_day(11);
    desk.recipe("bad.toml", &server.base_url(), &teacher);
    let started = Instant::now();
    desk.succeed(&["teach", "bad.toml", "--output", "bad"]);
    let seconds = started.elapsed().as_secs_f64();
    let stats = server.stats();
    assert_eq!(desk.differing("bad", &calm), [""; 0]);
    let mut ids: Vec<String> = desk.traces("bad").into_iter().map(|trace| trace.id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), n);
    assert_eq!(desk.json("bad/teach.json")["rows"], n);
    assert_eq!((stats.served, stats.served_again, stats.early_retries), (n as u64, 0, 0), "{stats:?}");
    assert!(stats.faults.len() >= 12, "{:?}", stats.faults);
    let ratio = check_spend(&desk, &server);
    tell(&format!("{n} prompts, stream = {stream}: {seconds:.1} s, estimate / wasted {ratio:.3}, {stats:?}"));
}

/// Good replies cost what the server bills; others what it may bill. Gives the estimate as a multiple of the waste.
fn check_spend(desk: &Desk, server: &FakeTeacher) -> f64 {
    let (ledger, entries) = (desk.ledger("bad"), server.entries());
    assert_eq!(ledger.len(), entries.len(), "rows without a call");
    let (mut estimate, mut waste, mut good) = (0.0, 0.0, 0.0);
    for (row, entry) in matched(&ledger, &entries) {
        let (usd, billed) = (row.usd, billed_usd(entry));
        if entry.is_good && entry.sent {
            assert!(row.state == "done" && !row.estimated && row.has_receipt, "{row:?} {entry:?}");
            assert!((usd - billed).abs() < 1e-12, "{row:?} {entry:?}");
            good += billed;
        } else {
            assert!(row.state == "failed" && !row.has_receipt && row.fault.is_some(), "{row:?} {entry:?}");
            assert!(row.estimated == (usd > 0.0) && (usd > 0.0 || billed == 0.0), "{row:?} {entry:?}");
            estimate += usd;
            waste += billed;
        }
    }
    let stats = server.stats();
    let total = dollars(stats.billed_prompt_tokens, stats.billed_completion_tokens);
    assert!((good + waste - total).abs() < 1e-9);
    let told = desk.json("bad/teach.json");
    assert!((told["usd"].as_f64().unwrap() - good - estimate).abs() < 1e-9, "{told}");
    assert!((told["estimated_usd"].as_f64().unwrap() - estimate).abs() < 1e-9, "{told}");
    // Nobody tells what a failed call is billed: the estimate must not be below it.
    assert!(estimate >= waste, "${estimate} estimated, ${waste} wasted");
    estimate / waste
}

fn dollars(prompt_tokens: u64, completion_tokens: u64) -> f64 {
    prompt_tokens as f64 * PRICE.0 + completion_tokens as f64 * PRICE.1
}

#[test]
fn a_budget_stops_in_time_and_what_it_bought_is_kept() {
    let n = size("STILLROOM_WIRE_PROMPTS", 600);
    let desk = Desk::new(n);
    let calm = desk.calm("teach", TEACHER);
    let whole: f64 = desk.json("calm/teach.json")["usd"].as_f64().unwrap();
    let server = bad_day(12);
    let limit = whole * 0.4;
    desk.recipe("bad.toml", &server.base_url(), &format!("{TEACHER}\nbudget_usd = {limit}"));
    let stopped = desk.run(&["teach", "bad.toml", "--output", "bad"]);
    let said = text(&stopped.stderr);
    assert_eq!(stopped.status.code(), Some(75), "{said}");
    assert!(said.contains("error[budget]"), "{said}");
    assert!(said.contains("stillroom teach bad.toml --output bad"), "{said}");
    let (ledger, entries, stats) = (desk.ledger("bad"), server.entries(), server.stats());
    let rows = matched(&ledger, &entries);
    assert_eq!(rows.len(), ledger.len());
    assert!(ledger.values().all(|row| row.state != "in_flight" && row.state != "unknown"));
    let spent: f64 = ledger.values().map(|row| row.usd).sum();
    let costliest = ledger.values().map(|row| row.usd).fold(0.0, f64::max);
    let (over, billed) = (spent - limit, billed_of(&stats));
    assert!(over <= costliest * IN_FLIGHT as f64, "${over} over, {costliest} each");
    assert!(over >= -costliest * IN_FLIGHT as f64, "it stopped ${over} before its limit");
    assert!(billed <= spent + 1e-9, "${billed} billed, ${spent} on record");
    tell(&format!("limit ${limit:.6}, over ${over:.6}, billed ${billed:.6}, costliest ${costliest:.6}"));

    desk.recipe("bad.toml", &server.base_url(), &format!("{TEACHER}\nbudget_usd = {}", whole * 10.0));
    desk.succeed(&["teach", "bad.toml", "--output", "bad"]);
    let stats = server.stats();
    assert_eq!((stats.served, stats.served_again, stats.early_retries), (n as u64, 0, 0), "{stats:?}");
    assert_eq!(desk.differing("bad", &calm), [""; 0]);
}

fn billed_of(stats: &Stats) -> f64 {
    dollars(stats.billed_prompt_tokens, stats.billed_completion_tokens)
}

/// Where nothing costs money, what was wasted is still of the allowance.
#[test]
fn a_budget_of_tokens_counts_what_may_have_been_wasted() {
    const FREE: [&str; 4] =
        ["--set", "teacher.price.input_usd_per_mtok=0", "--set", "teacher.price.output_usd_per_mtok=0"];
    let n = 300;
    let desk = Desk::new(n);
    let faults = Faults { bad_json: 0.5, per_request_max: 2, ..Faults::none() };
    let server = FakeTeacher::start(Options { seed: 13, faults, ..Options::default() });
    let run = |limit: u64| {
        desk.recipe("bad.toml", &server.base_url(), &format!("max_in_flight = 8\nbudget_tokens = {limit}"));
        desk.run(&[&["teach", "bad.toml", "--output", "bad"], &FREE[..]].concat())
    };
    let limit = 3000;
    let stopped = run(limit);
    assert_eq!(stopped.status.code(), Some(75), "{}", text(&stopped.stderr));
    assert!(text(&stopped.stderr).contains("the budget of tokens is used up"), "{}", text(&stopped.stderr));
    let ledger = desk.ledger("bad");
    let spent: u64 = ledger.values().map(|row| row.tokens).sum();
    let largest = ledger.values().map(|row| row.tokens).max().expect("calls");
    assert!(ledger.values().any(|row| row.state == "failed" && row.tokens > 0));
    assert!((limit..=limit + 8 * largest).contains(&spent), "{spent} tokens, {largest} at most in a call");
    let resumed = run(1_000_000);
    assert!(resumed.status.success(), "{}", text(&resumed.stderr));
    let stats = server.stats();
    assert_eq!((stats.served, stats.served_again), (n as u64, 0), "{stats:?}");
}

//! Several endpoints: each gets its own key, and one that dies is done without.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::desk::{Desk, matched};
use crate::fake::{FakeTeacher, Faults, Options};
use crate::shop::{self, text};

const KEYS: [&str; 2] = ["the-key-of-the-first", "the-key-of-the-second"];

fn server(key: &str) -> FakeTeacher {
    let latency = Duration::from_millis(2);
    FakeTeacher::start(Options { key: Some(key.to_owned()), latency, ..Options::default() })
}

/// A recipe that asks both.
fn recipe(desk: &Desk, servers: &[FakeTeacher; 2]) {
    let [first, second] = servers.each_ref().map(FakeTeacher::base_url);
    let more = "connect_timeout_s = 1\nmax_attempts = 20";
    desk.recipe("both.toml", "URL", more);
    let endpoints = format!(
        "endpoints = [{{ base_url = \"{first}\", max_in_flight = 6, api_key = \"${{FIRST}}\" }}, \
         {{ base_url = \"{second}\", max_in_flight = 6, api_key = \"${{SECOND}}\" }}]"
    );
    let text = std::fs::read_to_string(desk.path("both.toml")).expect("a recipe");
    let text = text.replace("endpoints = [{ base_url = \"URL\" }]", &endpoints);
    std::fs::write(desk.path("both.toml"), text).expect("a recipe is written");
}

#[test]
fn each_endpoint_gets_its_own_key() {
    let desk = Desk::new(400);
    let calm = desk.calm("teach", "");
    let servers = KEYS.map(server);
    recipe(&desk, &servers);
    let output = shop::command(desk.dir.path(), &["teach", "both.toml", "--output", "out"])
        .envs([("FIRST", KEYS[0]), ("SECOND", KEYS[1])])
        .output()
        .expect("the binary runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(desk.differing("out", &calm), [""; 0]);
    let [first, second] = servers.each_ref().map(FakeTeacher::stats);
    assert_eq!((first.unauthorized, second.unauthorized), (0, 0), "a key went to the other endpoint");
    assert_eq!(first.served + second.served, 400);
    assert!(first.served > 50 && second.served > 50, "{first:?} {second:?}");
}

#[test]
fn an_endpoint_that_dies_is_done_without() {
    let desk = Desk::new(400);
    let calm = desk.calm("teach", "");
    let mut servers = KEYS.map(server);
    recipe(&desk, &servers);
    let child = shop::command(desk.dir.path(), &["teach", "both.toml", "--output", "out"])
        .envs([("FIRST", KEYS[0]), ("SECOND", KEYS[1])])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let log = desk.path("out/ledger.sqlite-wal");
    let started = Instant::now();
    while !log.metadata().is_ok_and(|meta| meta.len() > 200_000) {
        assert!(started.elapsed() < Duration::from_secs(60), "nothing is asked");
        std::thread::sleep(Duration::from_millis(2));
    }
    let first = servers[0].shutdown();
    let output = child.wait_with_output().expect("its end");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(desk.differing("out", &calm), [""; 0]);
    let second = servers[1].stats();
    assert!(first.served > 0 && second.served > 0);
    let ledger = desk.ledger("out");
    let entries = [servers[0].entries(), servers[1].entries()].concat();
    let bought_twice = matched(&ledger, &entries)
        .iter()
        .filter(|(row, entry)| entry.is_good && entry.sent && row.state != "done")
        .count();
    assert!(first.served + second.served >= 400 && bought_twice <= 6, "{first:?} {second:?}");
}

fn teach_with(desk: &Desk, out: &str, keys: [&str; 2]) -> std::process::Output {
    shop::command(desk.dir.path(), &["teach", "both.toml", "--output", out])
        .envs([("FIRST", keys[0]), ("SECOND", keys[1])])
        .output()
        .expect("the binary runs")
}

#[test]
fn an_endpoint_that_refuses_our_key_is_named_and_done_without() {
    let desk = Desk::new(60);
    let calm = desk.calm("teach", "");
    let servers = KEYS.map(server);
    recipe(&desk, &servers);
    let output = teach_with(&desk, "out", [KEYS[0], "another-key-of-ours"]);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(desk.differing("out", &calm), [""; 0]);
    let url = servers[1].base_url();
    assert_eq!(said.matches(&format!("`{url}` is asked no more")).count(), 1, "{said}");
    let left_out = &desk.json("out/teach.json")["endpoints_left_out"];
    assert_eq!(
        (left_out.as_array().map(Vec::len), left_out[0]["endpoint"].as_str()),
        (Some(1), Some(url.as_str()))
    );
    let fault = left_out[0]["fault"].as_str().expect("the cause");
    assert!(fault.contains("answers 401") && !fault.contains("another-key-of-ours"), "{fault}");
    let events = std::fs::read_to_string(desk.path("out/events.jsonl")).expect("the log");
    assert_eq!(events.matches("\"endpoint_left_out\"").count(), 1);
    let [first, second] = servers.each_ref().map(FakeTeacher::stats);
    assert_eq!((first.served, first.served_again, second.served), (60, 0, 0));
    assert!((1..=6).contains(&second.unauthorized), "no more than were on their way: {second:?}");

    let output = teach_with(&desk, "none", ["a-key-of-nobody-1", "a-key-of-nobody-2"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("error[teacher-refuses]"), "{said}");
    assert!(servers.iter().all(|server| said.contains(&server.base_url())), "{said}");
}

/// The first run ends before the time that the server names; the second one waits for it.
#[test]
fn a_run_that_is_started_again_comes_back_no_sooner_than_it_was_told() {
    let desk = Desk::new(8);
    let calm = desk.calm("teach", "");
    let faults = Faults { too_many: 1.0, per_request_max: 1, ..Faults::none() };
    let retry_after = Duration::from_millis(1500);
    let server = FakeTeacher::start(Options { retry_after, faults, ..Options::default() });
    desk.recipe("bad.toml", &server.base_url(), "budget_s = 0.4");
    let stopped = desk.run(&["teach", "bad.toml", "--output", "bad"]);
    assert_eq!(stopped.status.code(), Some(75), "{}", text(&stopped.stderr));
    assert!(text(&stopped.stderr).contains("error[budget]"), "{}", text(&stopped.stderr));
    assert_eq!((server.stats().requests, server.stats().replies), (8, 0));
    desk.recipe("bad.toml", &server.base_url(), "");
    let output = desk.succeed(&["teach", "bad.toml", "--output", "bad"]);
    assert!(
        text(&output.stderr).contains("asked an earlier run to be left alone"),
        "{}",
        text(&output.stderr)
    );
    let stats = server.stats();
    assert_eq!((stats.served, stats.served_again, stats.early_retries), (8, 0, 0), "{stats:?}");
    assert_eq!(desk.differing("bad", &calm), [""; 0]);
}

/// Votes and pass rates are of the traces of one part.
#[test]
fn samples_of_a_prompt_are_in_one_part_however_many_there_are() {
    let desk = Desk::new(1400);
    let server = FakeTeacher::start(Options::default());
    desk.recipe("three.toml", &server.base_url(), "samples_per_prompt = 3\nmax_in_flight = 32");
    desk.succeed(&["teach", "three.toml", "--output", "out"]);
    let parts = desk.parts("out");
    assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [4098, 102]);
    for part in parts {
        let mut samples: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        part.into_iter().for_each(|trace| samples.entry(trace.id).or_default().push(trace.sample));
        assert!(samples.values().all(|samples| *samples == [0, 1, 2]), "{samples:?}");
    }
}

//! Several endpoints: each gets its own key, and one that dies is done without.

use std::time::{Duration, Instant};

use crate::desk::{Desk, matched};
use crate::fake::{FakeTeacher, Options};
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

//! The log of a run tells of each call as it ends, whatever ends the run, and one of them is shown without the others.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use stillroom_core::Digest;

use crate::desk::{Desk, retry_soon};
use crate::fake::{FakeTeacher, Faults, Options};
use crate::shop::{self, text};

const PROMPTS: usize = 700;
/// Bytes of a record, and how many of them may be on their way to the file when a run is killed.
const RECORD_BYTES: usize = 41;
const ON_THEIR_WAY: usize = 8192 / RECORD_BYTES + 64;
/// Kinds of records, as a file has them.
const CALL: u8 = 3;
const TRACE: u8 = 4;

/// Numbers in the log by their kind, in its order.
fn records(desk: &Desk, output: &str) -> BTreeMap<u8, Vec<u64>> {
    let bytes = std::fs::read(desk.path(output).join("log/records.bin")).expect("a log");
    let mut found: BTreeMap<u8, Vec<u64>> = BTreeMap::new();
    for record in bytes.chunks_exact(RECORD_BYTES) {
        let number = u64::from_le_bytes(record[1..9].try_into().expect("eight bytes"));
        found.entry(record[0]).or_default().push(number);
    }
    found
}

fn without_repeats(numbers: &[u64]) -> BTreeSet<u64> {
    let set: BTreeSet<u64> = numbers.iter().copied().collect();
    assert_eq!(set.len(), numbers.len(), "something is told twice");
    set
}

#[test]
fn each_call_is_told_as_it_ends_and_once_however_often_the_run_is_killed() {
    let desk = Desk::new(PROMPTS);
    let log = desk.path("server.jsonl");
    let faults = Faults { stall: 0.0, huge: 0.0, ..Faults::usual() };
    let options = Options { seed: 3, faults, log: Some(log.clone()), ..Options::default() };
    let server = FakeTeacher::start(retry_soon(options));
    desk.recipe("bad.toml", &server.base_url(), "max_attempts = 12");
    let args = ["teach", "bad.toml", "--output", "run"];
    let answered = || shop::text(&std::fs::read(&log).unwrap_or_default()).lines().count();
    for share in [2, 3, 4] {
        let until = PROMPTS * share / 5;
        let killed = shop::kill_when(shop::command(desk.dir.path(), &args), || answered() >= until).1;
        assert!(killed && !desk.path("run/stages/teach.json").exists(), "killed while it teaches");
        let told = records(&desk, "run");
        let calls = without_repeats(&told[&CALL]).len();
        assert!(calls + ON_THEIR_WAY >= until, "{calls} of {until} calls are in the log");
    }
    desk.succeed(&args);
    let told = records(&desk, "run");
    let ledger = desk.ledger("run");
    assert!(ledger.values().any(|row| row.state == "unknown"), "a kill leaves calls open");
    assert_eq!(without_repeats(&told[&CALL]), ledger.keys().copied().collect());
    assert_eq!(told[&TRACE], (0..PROMPTS as u64).collect::<Vec<_>>());
    assert_ne!(
        told[&CALL],
        told[&CALL].iter().copied().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    );

    // Another ledger in the place of this one has calls of its own.
    let size: usize = told.values().map(Vec::len).sum();
    for file in ["ledger.sqlite", "stages/teach.json", "corpus/traces/part-000000.parquet"] {
        std::fs::remove_file(desk.path("run").join(file)).expect("it is there");
    }
    for wal in ["ledger.sqlite-wal", "ledger.sqlite-shm"] {
        drop(std::fs::remove_file(desk.path("run").join(wal)));
    }
    desk.succeed(&args);
    let again = records(&desk, "run");
    let behind = &again[&CALL][told[&CALL].len()..];
    assert_eq!(without_repeats(behind), desk.ledger("run").keys().copied().collect());
    assert!(again.values().map(Vec::len).sum::<usize>() > size);
    let shown = desk.succeed(&["open", "run", "call", "1"]);
    holds(&serde_json::from_slice(&shown.stdout).expect("JSON"));
}

#[test]
fn one_call_is_shown_by_itself() {
    let desk = Desk::new(40);
    let server =
        FakeTeacher::start(Options { seed: 1, faults: Faults::usual(), ..retry_soon(Options::default()) });
    desk.recipe(
        "bad.toml",
        &server.base_url(),
        "max_attempts = 12\nfirst_token_timeout_s = 2\nstall_timeout_s = 2",
    );
    for key in ["ours", "theirs"] {
        desk.succeed(&["key", "new", key]);
    }
    desk.succeed(&["teach", "bad.toml", "--output", "run", "--set", "release.key=ours"]);
    let ledger = desk.ledger("run");
    assert!(
        ledger.values().any(|row| row.state == "failed") && ledger.values().any(|row| row.state == "done")
    );
    let mut entries = BTreeSet::new();
    for (number, row) in &ledger {
        let shown = desk.succeed(&["open", "run", "call", &number.to_string()]);
        let shown: Value = serde_json::from_slice(&shown.stdout).expect("JSON");
        let entry = holds(&shown);
        assert_eq!(
            (&entry["call"], &entry["state"]),
            (&Value::from(*number), &Value::from(row.state.clone()))
        );
        assert!(entries.insert(shown["opening"]["salt"].to_string()), "each has a salt of its own");
        let mut forged = shown.clone();
        let text =
            shown["opening"]["entry"].as_str().expect("text").replacen("\"sample\":0", "\"sample\":1", 1);
        forged["opening"]["entry"] = Value::from(text);
        assert_ne!(root_of(&forged), forged["head"]["root"].as_str().expect("a root"));
    }

    // Nothing was released: the log stands for itself.
    let opened = desk.succeed(&["open", "run", "call", "1"]).stdout;
    std::fs::write(desk.path("opened.json"), &opened).expect("written");
    let check =
        |key: &str, opened: &str| desk.run(&["verify", "run", "--public-key", key, "--opening", opened]);
    let said = check("ours.pub", "opened.json");
    assert!(said.status.success(), "{}", text(&said.stderr));
    let said = text(&said.stdout);
    assert!(
        said.contains("the log alone was checked") && said.contains("The opened entry is in this log"),
        "{said}"
    );
    assert!(text(&check("theirs.pub", "opened.json").stderr).contains("not signed by this key"));
    let forged = text(&opened).replacen("\\\"sample\\\":0", "\\\"sample\\\":1", 1);
    std::fs::write(desk.path("forged.json"), forged).expect("written");
    assert_eq!(check("ours.pub", "forged.json").status.code(), Some(65));
    let records = desk.path("run/log/records.bin");
    let whole = std::fs::read(&records).expect("it is there");
    std::fs::write(&records, &whole[41..]).expect("written");
    assert_eq!(check("ours.pub", "opened.json").status.code(), Some(65), "a record is missing");
}

/// What is shown leads to the head beside it, by RFC 9162 and the log's own page and by nothing else; the entry.
fn holds(shown: &Value) -> Value {
    assert_eq!(root_of(shown), shown["head"]["root"].as_str().expect("a root"));
    serde_json::from_str(shown["opening"]["entry"].as_str().expect("text")).expect("JSON")
}

/// The root that an opened call leads to: RFC 9162, section 2.1.3.2.
fn root_of(shown: &Value) -> String {
    let opening = &shown["opening"];
    let digest =
        |value: &Value| Digest::try_from(value.as_str().expect("text").to_owned()).expect("a digest");
    let number = |value: &Value| value.as_u64().expect("a number");
    let salt = digest(&opening["salt"]);
    let commitment =
        Digest::of(&[salt.as_bytes(), opening["entry"].as_str().expect("text").as_bytes()].concat());
    assert_eq!(opening["kind"], "call");
    let record = [&[CALL][..], &number(&opening["number"]).to_le_bytes(), commitment.as_bytes()].concat();
    let mut hash = Digest::of(&[&[0][..], &record].concat());
    let (mut at, mut last) = (number(&opening["position"]), number(&shown["head"]["size"]) - 1);
    for sibling in opening["proof"].as_array().expect("a list").iter().map(digest) {
        assert!(last > 0, "the proof is too long");
        if at % 2 == 1 || at == last {
            hash = Digest::of(&[&[1][..], sibling.as_bytes(), hash.as_bytes()].concat());
            while at % 2 == 0 && at != 0 {
                (at, last) = (at / 2, last / 2);
            }
        } else {
            hash = Digest::of(&[&[1][..], hash.as_bytes(), sibling.as_bytes()].concat());
        }
        (at, last) = (at / 2, last / 2);
    }
    assert_eq!(last, 0, "the proof is too short");
    hash.to_string()
}

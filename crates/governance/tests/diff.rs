//! What changed between two records: nothing that is said is passed over, and logs are held together by proofs.

#[path = "views/sample.rs"]
#[allow(dead_code, reason = "each test file uses its own part")]
mod sample;

use std::collections::BTreeMap;
use std::path::Path;

use sample::{local, of_outputs, of_weights};
use serde_json::{Value, json};
use stillroom_core::Digest;
use stillroom_governance::diff::{
    Beside, Change, Compared, Diff, Fact, Group, LogRelation, NOT_SHOWN, Which, diff,
};
use stillroom_governance::log::{Kind, Log, LogWriter, Record, Secret};
use stillroom_governance::merkle::is_consistent;
use stillroom_governance::record::{Figure, ProvenanceRecord};

fn alone(record: &ProvenanceRecord) -> Compared {
    Compared { record: record.clone(), beside: None, settings: None }
}

fn with_log(log: Option<Vec<Record>>) -> Compared {
    let beside = Beside { manifest: None, signer: None, log };
    Compared { record: of_outputs(), beside: Some(beside), settings: None }
}

fn between(change: impl FnOnce(&mut ProvenanceRecord)) -> Vec<Change> {
    let mut changed = of_outputs();
    change(&mut changed);
    let diff = diff(&alone(&of_outputs()), &alone(&changed));
    assert_eq!(diff.equal, diff.changes.is_empty());
    diff.changes
}

fn said(change: &Change) -> (Group, String, Value, Value) {
    (change.group, change.path.join("/"), json!(change.a), json!(change.b))
}

fn leaves(value: &Value, at: &str, found: &mut Vec<String>) {
    let mut below = |name: &str, value: &Value| {
        leaves(value, &format!("{at}/{}", name.replace('~', "~0").replace('/', "~1")), found);
    };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| below(name, value)),
        Value::Array(items) => items.iter().enumerate().for_each(|(n, value)| below(&n.to_string(), value)),
        _ => found.push(at.to_owned()),
    }
}

#[test]
fn the_same_record_differs_in_nothing() {
    for record in [of_outputs(), of_weights()] {
        let found = diff(&alone(&record), &alone(&record));
        assert!(found.equal && found.changes.is_empty() && found.log.is_none());
        let groups: Vec<Group> = found.not_compared.iter().map(|left_out| left_out.group).collect();
        assert_eq!(groups, [Group::Signer, Group::Log, Group::Files]);
    }
}

#[test]
fn each_value_of_a_record_counts() {
    let record = json!(of_weights());
    let original: ProvenanceRecord = serde_json::from_value(record.clone()).expect("a record");
    let mut places = Vec::new();
    leaves(&record, "", &mut places);
    let mut tried = 0;
    // The length of a file that has the same SHA-256 is the same.
    for at in places.iter().filter(|at| !at.ends_with("/bytes")) {
        let other = match record.pointer(at).expect("a value") {
            Value::Bool(is) => json!(!is),
            Value::Number(number) if number.is_u64() => json!(number.as_u64().expect("one") + 1),
            Value::Number(number) => json!(number.as_f64().expect("one") + 0.25),
            Value::String(text) if text.len() == 64 => json!(Digest::of(text.as_bytes())),
            Value::String(text) => json!(format!("{text}x")),
            _ => json!("something"),
        };
        let mut changed = record.clone();
        *changed.pointer_mut(at).expect("a value") = other;
        let Ok(changed) = serde_json::from_value::<ProvenanceRecord>(changed) else { continue };
        let found = diff(&alone(&original), &alone(&changed));
        assert!(!found.equal, "{at}");
        let back = diff(&alone(&changed), &alone(&original));
        let turned = |change: &Change| Change { a: change.b.clone(), b: change.a.clone(), ..change.clone() };
        assert_eq!(back.changes, found.changes.iter().map(turned).collect::<Vec<_>>(), "{at}");
        tried += 1;
    }
    assert!(tried > 120, "{tried} of {}", places.len());
}

#[test]
fn changes_have_their_place_and_both_values() {
    let one = |changes: Vec<Change>| {
        assert_eq!(changes.len(), 1, "{changes:?}");
        said(&changes[0])
    };
    let text = |text: &str| json!(text);
    assert_eq!(
        one(between(|r| r.gate.override_reason = Some("I say so".to_owned()))),
        (Group::Licence, "override".to_owned(), Value::Null, text("I say so"))
    );
    assert_eq!(
        one(between(|r| r.gate.accepted.clear())),
        (Group::Licence, "accepted".to_owned(), json!(["change-notices"]), json!([]))
    );
    assert_eq!(
        one(between(|r| r.gate.obligations[0].yours_to_do = Some("ask".to_owned()))),
        (Group::Licence, "obligations/change-notices/yours_to_do".to_owned(), Value::Null, text("ask"))
    );
    assert_eq!(
        one(between(|r| r.teachers[0].licence.concluded = Some("MIT".to_owned()))).1,
        "deepseek:deepseek-reasoner/licence/concluded"
    );
    let sha = |text: &str| json!(Digest::of(text.as_bytes()));
    assert_eq!(
        one(between(|r| r.files[2].sha256 = Digest::of(b"other"))),
        (Group::Weights, "model.safetensors".to_owned(), sha("model.safetensors"), sha("other"))
    );
    assert_eq!(
        one(between(|r| r.files[0].sha256 = Digest::of(b"other"))),
        (Group::Files, "release/config.json".to_owned(), sha("config.json"), sha("other"))
    );
    let (group, path, a, b) = one(between(|r| {
        r.evaluation.models[1].accuracy = Figure { value: Some(0.75), ci95: Some([0.7, 0.8]), reason: None };
    }));
    assert_eq!((group, path.as_str()), (Group::Evaluation, "models/student/accuracy"));
    assert_eq!(b, json!({ "value": 0.75, "ci95": [0.7, 0.8] }));
    assert_eq!(a["value"], 0.7);
    assert_eq!(
        one(between(|r| r.evaluation.differences[0].claim = "no_claim".to_owned())).1,
        "student_minus/teacher/accuracy/claim"
    );
    assert_eq!(
        one(between(|r| r.training.as_mut().expect("training").steps = 200)),
        (Group::Training, "steps".to_owned(), json!(168), json!(200))
    );
    // A teacher more is new with all that is said of it, and nothing else has changed.
    let more = between(|r| r.teachers.insert(0, local("Qwen/Qwen3-1.7B")));
    assert!(
        more.iter().all(|c| c.group == Group::Teachers && c.path[0] == "Qwen/Qwen3-1.7B" && c.a.is_none())
    );
    let opened = between(|r| {
        r.files.push(sample::file("report.html"));
    });
    let opened: Vec<_> = opened.iter().map(said).collect();
    assert!(opened.contains(&(
        Group::Openness,
        "level".to_owned(),
        text("unclassified"),
        text("open_model")
    )));
    // Two of one name are two.
    let twice = between(|r| r.gate.rules.push(r.gate.rules[0].clone()));
    assert!(twice.iter().all(|c| c.path[1].ends_with("#2") && c.a.is_none()) && !twice.is_empty());
}

#[test]
fn settings_are_compared_by_key_and_secrets_are_not_shown() {
    let with = |settings: &[(&str, Value)]| {
        let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        Compared { settings: Some(settings), ..alone(&of_outputs()) }
    };
    let a = with(&[
        ("train.max_steps", json!(10)),
        ("teacher.api_key", json!("sk-hunter2")),
        ("release.key_passphrase", json!("hunter2")),
        ("teacher.endpoints.0.base_url", json!("https://me:hunter2@example.org/v1?x=1")),
        ("train.max_tokens", json!(5)),
    ]);
    let b = with(&[
        ("train.max_steps", json!(20)),
        ("teacher.api_key", json!("${KEY}")),
        ("teacher.endpoints.0.base_url", json!("https://example.org/v1")),
        ("train.max_tokens", json!(6)),
    ]);
    let found = diff(&a, &b);
    let of: BTreeMap<&str, (Value, Value)> =
        found.changes.iter().map(|c| (c.path[1].as_str(), (json!(c.a), json!(c.b)))).collect();
    assert_eq!(of["train.max_steps"], (json!(10), json!(20)));
    assert_eq!(of["train.max_tokens"], (json!(5), json!(6)));
    assert_eq!(of["teacher.api_key"], (json!(NOT_SHOWN), json!(NOT_SHOWN)));
    assert_eq!(of["release.key_passphrase"], (json!(NOT_SHOWN), Value::Null));
    assert_eq!(of["teacher.endpoints.0.base_url"].0, "https://(not shown)@example.org/v1?x=1");
    assert!(!found.to_json().contains("hunter2"));
    // Of one recipe alone nothing can be said.
    let mut other = alone(&of_outputs());
    other.record.recipe.sha256 = Digest::of(b"other");
    let found = diff(&a, &other);
    assert!(found.not_compared.iter().any(|left_out| left_out.group == Group::Recipe));
    assert_eq!(found.changes.len(), 1);
}

/// A log of `n` entries, the last of them otherwise from `other` on.
fn log(dir: &Path, secret: u8, n: u64, other: u64) -> Vec<Record> {
    let path = dir.join(format!("{secret}-{n}-{other}"));
    let mut writer = LogWriter::open(&path, Secret::new([secret; 32])).expect("a log");
    for i in 0..n {
        let entry = if i < other { format!("{i}") } else { format!("{i} otherwise") };
        writer.append(Kind::Trace, i, entry.as_bytes()).expect("appended");
    }
    writer.sync().expect("durable");
    Log::read(&path).expect("a log").records
}

#[test]
fn a_log_that_goes_on_is_proved_to() {
    let dir = tempfile::tempdir().expect("a directory");
    let whole = log(dir.path(), 1, 40, 40);
    for n in 1..40 {
        let begun = whole[..n].to_vec();
        for (a, b, which) in [(&begun, &whole, Which::A), (&whole, &begun, Which::B)] {
            let found = diff(&with_log(Some(a.clone())), &with_log(Some(b.clone())));
            assert!(!found.equal && found.changes.is_empty());
            let Some(LogRelation::Begins { shorter, old_size, old_root, new_size, new_root, proof }) =
                found.log
            else {
                panic!("{n}: {:?}", found.log)
            };
            assert_eq!((shorter, old_size, new_size), (which, n as u64, 40));
            assert!(is_consistent(old_size, &old_root, new_size, &new_root, &proof), "{n}");
        }
    }
    let same = diff(&with_log(Some(whole.clone())), &with_log(Some(whole.clone())));
    assert!(same.equal && matches!(same.log, Some(LogRelation::Same { records: 40, .. })));
    let only = diff(&with_log(None), &with_log(Some(whole.clone())));
    assert!(!only.equal);
    assert_eq!(only.log, Some(LogRelation::Only { which: Which::B, records: 40 }));
    let empty = diff(&with_log(Some(Vec::new())), &with_log(Some(whole)));
    assert!(matches!(empty.log, Some(LogRelation::Begins { old_size: 0, .. })), "{:?}", empty.log);
}

#[test]
fn logs_that_part_are_told_where() {
    let dir = tempfile::tempdir().expect("a directory");
    let whole = log(dir.path(), 1, 40, 40);
    for (n, at) in [(40, 0), (40, 17), (40, 39), (60, 17), (20, 17)] {
        let other = log(dir.path(), 1, n, at);
        let found = diff(&with_log(Some(whole.clone())), &with_log(Some(other)));
        let Some(LogRelation::Part { common, a_size, b_size, a_next, b_next }) = found.log else {
            panic!("{n}, {at}: {:?}", found.log)
        };
        assert_eq!((common, a_size, b_size), (at, 40, n));
        assert_eq!(a_next.map(|next| (next.kind, next.number)), Some((Kind::Trace, at)));
        assert_eq!(b_next, a_next);
    }
    // The same entries under other salts have nothing in common, and one that is dropped is not made up for.
    let salted = diff(&with_log(Some(whole.clone())), &with_log(Some(log(dir.path(), 2, 40, 40))));
    assert!(matches!(salted.log, Some(LogRelation::Part { common: 0, .. })));
    let mut fewer = whole.clone();
    fewer.remove(5);
    let dropped = diff(&with_log(Some(whole)), &with_log(Some(fewer)));
    assert!(matches!(dropped.log, Some(LogRelation::Part { common: 5, .. })));
}

#[test]
fn json_has_stable_names_and_steers_no_terminal() {
    let mut a = of_outputs();
    a.teachers[0].owner = Some("\u{1b}[2J\u{202e}us".to_owned());
    let json = diff(&alone(&of_outputs()), &alone(&a)).to_json();
    assert!(!json.contains(['\u{1b}', '\u{202e}']));
    let read: Value = serde_json::from_str(&json).expect("JSON");
    let names = |value: &Value| value.as_object().expect("fields").keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&read), ["equal", "changes", "log", "not_compared"]);
    assert_eq!(
        read["changes"][0],
        json!({ "group": "teachers", "path": ["deepseek:deepseek-reasoner", "owner"], "a": null, "b": "\u{1b}[2J\u{202e}us" })
    );
    assert_eq!(names(&read["not_compared"][0]), ["group", "because"]);
    let dir = tempfile::tempdir().expect("a directory");
    let whole = log(dir.path(), 1, 4, 4);
    let with = |n: usize| with_log(Some(whole[..n].to_vec()));
    let read: Value = serde_json::from_str(&diff(&with(3), &with(4)).to_json()).expect("JSON");
    assert_eq!(read["log"]["relation"], "begins");
    assert_eq!(
        names(&read["log"]),
        ["relation", "shorter", "old_size", "old_root", "new_size", "new_root", "proof"]
    );
    let found: Diff = diff(&with(3), &with(3));
    assert!(found.equal);
    let signed = |key: &str| {
        let mut side = with(3);
        side.beside.as_mut().expect("beside").signer = Some(key.to_owned());
        side
    };
    let found = diff(&with(3), &signed("abc"));
    assert_eq!(found.changes[0].group, Group::Signer);
    assert_eq!(
        (found.changes[0].a.clone(), found.changes[0].b.clone()),
        (None, Some(Fact::Value(json!("abc"))))
    );
}

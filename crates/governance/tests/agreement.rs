//! A release whose manifest was written anew to fit what somebody changed: the record and the documents part, and where is named.

#[path = "views/sample.rs"]
#[allow(dead_code, reason = "each test file uses its own part")]
mod sample;

use std::fs;
use std::path::{Path, PathBuf};

use sample::of_outputs;
use serde_json::{Map, Value, json};
use stillroom_core::Digest;
use stillroom_governance::keys::{PublicKey, Signer};
use stillroom_governance::record::{FileFacts, ProvenanceRecord, TextFacts};
use stillroom_governance::{
    Agreement, AgreementState, Disagreement, MANIFEST_PATH, Manifest, PROGRAM_VERSION, RunRecord, oms,
    verify, views,
};

/// A run that was released, all its papers in agreement.
struct Released {
    dir: tempfile::TempDir,
    record: ProvenanceRecord,
}

impl Released {
    fn new(signer: Option<&Signer>) -> Released {
        Released::of(of_outputs(), signer)
    }

    fn of(mut record: ProvenanceRecord, signer: Option<&Signer>) -> Released {
        let dir = tempfile::tempdir().expect("a directory");
        let put = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, bytes).expect("written");
        };
        put("recipe.toml", b"name = \"tiny\"\n");
        record.recipe.sha256 = Digest::of(b"name = \"tiny\"\n");
        record.teachers[0].licence.texts =
            vec![TextFacts { name: "LICENSE".to_owned(), sha256: Digest::of(b"a licence") }];
        put("licence.json", licence_json(&record).to_string().as_bytes());
        put("report.json", report_json(&record).to_string().as_bytes());
        put("checkpoints/step-000168/model.safetensors", b"weights at 168");
        for file in &record.files {
            put(&format!("release/{}", file.path), file.path.as_bytes());
        }
        for file in &record.data[1].files {
            put(&file.path, file.path.as_bytes());
        }
        record.files = FileFacts::below(&dir.path().join("release")).expect("digests");
        let staying =
            ["checkpoints/step-000168/model.safetensors", "licence.json", "recipe.toml", "report.json"];
        record.byproducts = FileFacts::of(dir.path(), staying.map(str::to_owned).to_vec()).expect("digests");
        let released = Released { dir, record };
        released.write_documents(signer);
        released.seal(&released.record);
        released
    }

    fn write_documents(&self, signer: Option<&Signer>) {
        self.put("release/provenance/record.json", &self.record.to_bytes());
        for view in views::all(&self.record, signer).expect("views") {
            self.put(&format!("release/{}", view.path), view.text.as_bytes());
        }
    }

    /// Writes the manifest of whatever is there, as `record` has it.
    fn seal(&self, record: &ProvenanceRecord) {
        let manifest = Manifest::of_run(self.dir.path(), RunRecord::of(record)).expect("a run");
        self.put_manifest(&manifest);
    }

    fn put_manifest(&self, manifest: &Manifest) {
        let bytes = manifest.to_bytes().expect("its bytes");
        self.put(MANIFEST_PATH, &bytes);
        let line = format!("{}  manifest.json\n", Digest::of(&bytes));
        self.put(&format!("{MANIFEST_PATH}.sha256"), line.as_bytes());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, bytes).expect("written");
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("a text")
    }

    /// Changes a file, and the manifest with it.
    fn edit(&self, name: &str, from: &str, to: &str) {
        let text = self.text(name);
        assert!(text.contains(from), "{name} has `{from}`");
        self.put(name, text.replacen(from, to, 1).as_bytes());
        self.seal(&self.record);
    }

    fn check(&self, key: Option<&PublicKey>) -> Agreement {
        agreement(self.dir.path(), key)
    }

    fn check_alone(&self) -> Agreement {
        agreement(&self.path("release"), None)
    }

    fn first(&self) -> Disagreement {
        let agreement = self.check(None);
        assert_eq!(agreement.state, AgreementState::Disagrees);
        agreement.disagreements[0].clone()
    }
}

fn agreement(dir: &Path, key: Option<&PublicKey>) -> Agreement {
    let report = verify(dir, key).expect("a manifest");
    assert_eq!(report.differences, [], "the manifest fits");
    let agreement = report.agreement.expect("looked at, since nothing differs");
    assert_eq!(report.intact, agreement.disagreements.is_empty());
    assert_eq!(agreement.state == AgreementState::Disagrees, !report.intact);
    agreement
}

fn licence_json(record: &ProvenanceRecord) -> Value {
    let mut decision = json!(record.gate);
    let fields = decision.as_object_mut().expect("fields");
    fields.shift_remove("decided");
    // As the gate writes it: absent, not null.
    fields.shift_remove("users_register");
    fields.insert("what_to_do".to_owned(), json!(["nothing"]));
    decision
}

fn report_json(record: &ProvenanceRecord) -> Value {
    let evaluation = &record.evaluation;
    let (mut models, mut paired) = (Map::new(), Map::new());
    for model in &evaluation.models {
        let mut score = json!({
            "parameters": model.parameters,
            "accuracy": model.accuracy.value,
            "accuracy_ci95": model.accuracy.ci95,
            "nll_nats_per_token": model.nll_nats_per_token.value,
            "bits_per_byte": model.bits_per_byte.value,
            "tokens_per_second": 12.5,
        });
        score["kl_to_teacher_reason"] = json!(model.kl_to_teacher.reason);
        models.insert(model.contender.clone(), score);
    }
    for pair in &evaluation.differences {
        let comparison = json!({ "difference": pair.difference, "ci95": pair.ci95, "claim": pair.claim, "items": pair.items });
        paired.insert(format!("student_minus_{}", pair.other), json!({ pair.metric.as_str(): comparison }));
    }
    json!({
        "recipe": record.recipe.name,
        "trial": record.release.trial,
        "task": evaluation.task,
        "task_description": evaluation.description,
        "heldout_text": evaluation.heldout_text,
        "heldout_examples": evaluation.heldout_examples,
        "models": models,
        "paired": paired,
        "licence": { "verdict": record.gate.verdict },
        "corpus": { "teacher_usd": record.costs.teacher_usd.value },
        "machine": record.machine,
        "seeds": record.recipe.seeds,
        "digests": { "recipe": record.recipe.sha256 },
    })
}

#[test]
fn papers_that_agree_are_said_to_and_which_they_are() {
    let released = Released::new(None);
    let whole = released.check(None);
    assert_eq!(whole.state, AgreementState::Agrees, "{:?}", whole.disagreements);
    assert_eq!(whole.written_by.as_deref(), Some(PROGRAM_VERSION));
    let facts = |agreement: &Agreement, name: &str| {
        let of_name = agreement.checked.iter().find(|checked| checked.document == name);
        of_name.map(|checked| checked.facts)
    };
    for view in views::all(&released.record, None).expect("views") {
        assert_eq!(facts(&whole, &format!("release/{}", view.path)), Some(None));
    }
    assert_eq!(facts(&whole, "release/provenance/record.json"), Some(None));
    for (name, at_least) in [(MANIFEST_PATH, 17), ("licence.json", 15), ("report.json", 30)] {
        let found = facts(&whole, name).flatten().unwrap_or_default();
        assert!(found >= at_least, "{name}: {found}");
    }
    let alone = released.check_alone();
    assert_eq!((alone.state, facts(&alone, "report.json")), (AgreementState::Agrees, None));
    assert_eq!(facts(&alone, "README.md"), Some(None));
}

#[test]
fn an_edited_card_is_named_by_its_line() {
    let released = Released::new(None);
    let text = released.text("release/README.md");
    let line = text.lines().position(|line| line.contains("70.0 %"));
    released.edit("release/README.md", "70.0 %", "90.0 %");
    let first = released.first();
    assert_eq!(first.document, "release/README.md");
    assert_eq!(first.at, format!("line {}", line.expect("a line") + 1));
    assert!(
        first.stands.expect("a line").contains("90.0 %") && first.record.expect("a line").contains("70.0 %")
    );
    let alone = released.check_alone();
    assert_eq!((alone.disagreements.len(), alone.disagreements[0].document.as_str()), (1, "README.md"));
    // A line more at the end, and one less.
    released.put("release/README.md", format!("{text}\u{1b}[2Jmore\n").as_bytes());
    released.seal(&released.record);
    let first = released.first();
    assert_eq!(
        (first.record.clone(), first.at.as_str()),
        (None, format!("line {}", text.lines().count() + 1).as_str())
    );
    assert!(!first.to_string().contains('\u{1b}'), "{first}");
    released.put("release/README.md", text.trim_end_matches(|c| c != '\n').trim_end().as_bytes());
    released.seal(&released.record);
    assert_eq!(released.first().document, "release/README.md");
}

#[test]
fn an_edited_number_of_the_report_is_named_by_its_place() {
    let released = Released::new(None);
    released.edit("report.json", "\"accuracy\":0.7", "\"accuracy\":0.8");
    let first = released.first();
    assert_eq!(
        first.to_string(),
        "`report.json` does not agree with the record: at /models/student/accuracy stands `0.8`, and by the record `0.7`"
    );
    // The record has its digest as well.
    let others = released.check(None).disagreements;
    assert!(others.iter().any(|other| other.at == "the SHA-256 of `report.json`"), "{others:?}");
    // Of the release alone, whose report is elsewhere, that is what is left to see.
    assert_eq!(released.check_alone().disagreements.len(), 1);
}

#[test]
fn an_edited_licence_digest_is_named_wherever_it_stands() {
    let (register, text) = (Digest::of(b"register").to_string(), Digest::of(b"a licence").to_string());
    let other = Digest::of(b"other").to_string();
    let released = Released::new(None);
    released.edit("licence.json", &register, &other);
    let first = released.first();
    assert_eq!((first.document.as_str(), first.at.as_str()), ("licence.json", "/register"));
    assert_eq!((first.stands, first.record), (Some(other.clone()), Some(register.clone())));

    for digest in [&register, &text] {
        let released = Released::new(None);
        released.edit("release/provenance/gate.intoto.jsonl", digest, &other);
        let first = released.first();
        assert!(first.document.ends_with("gate.intoto.jsonl") && first.at.contains("/predicate/"), "{first}");
        assert_eq!(first.stands, Some(other.clone()));

        // In the record itself: then all that is derived from it is otherwise.
        let released = Released::new(None);
        released.edit("release/provenance/record.json", digest, &other);
        let agreement = released.check(None);
        assert!(agreement.disagreements.iter().any(|d| d.document.ends_with("gate.intoto.jsonl")));
    }
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

/// Another value of the same kind; none of what has no other.
fn another(value: &Value) -> Option<Value> {
    Some(match value {
        Value::Bool(is) => json!(!is),
        Value::Number(number) if number.is_u64() => json!(number.as_u64()? + 1),
        Value::Number(number) => json!(number.as_f64()? + 0.25),
        Value::String(text) if text.len() == 64 => json!(Digest::of(text.as_bytes())),
        Value::String(text) => json!(format!("{text}x")),
        _ => return None,
    })
}

/// Each value of decision and report that the record has too, changed by itself.
#[test]
fn each_fact_that_two_papers_state_is_compared() {
    let released = Released::new(None);
    for name in ["licence.json", "report.json"] {
        let original: Value = serde_json::from_str(&released.text(name)).expect("JSON");
        let mut places = Vec::new();
        leaves(&original, "", &mut places);
        // What the record does not state.
        places
            .retain(|at| !["/what_to_do", "tokens_per_second", "_reason"].iter().any(|own| at.contains(own)));
        assert!(places.len() > 15, "{places:?}");
        for at in places {
            let Some(other) = another(original.pointer(&at).expect("a value")) else { continue };
            let mut changed = original.clone();
            *changed.pointer_mut(&at).expect("a value") = other;
            released.put(name, changed.to_string().as_bytes());
            released.seal(&released.record);
            let first = released.first();
            assert!(first.document == name && at.starts_with(&first.at), "{at}: {first}");
        }
        released.put(name, original.to_string().as_bytes());
        released.seal(&released.record);
    }
}

/// Each value of the record, changed by itself, with a manifest that fits it: the documents do not.
#[test]
fn a_changed_record_is_given_away_by_its_documents() {
    let released = Released::new(None);
    let original: Value = serde_json::from_slice(&released.record.to_bytes()).expect("JSON");
    let mut places = Vec::new();
    leaves(&original, "", &mut places);
    let mut tried = 0;
    for at in places.iter().filter(|at| *at != "/record_version" && *at != "/program/version") {
        let Some(other) = another(original.pointer(at).expect("a value")) else { continue };
        let mut changed = original.clone();
        *changed.pointer_mut(at).expect("a value") = other;
        let text = serde_json::to_string_pretty(&changed).expect("JSON") + "\n";
        // A word that is none of its kind is no record at all.
        let Ok(record) = ProvenanceRecord::from_bytes(text.as_bytes()) else { continue };
        released.put("release/provenance/record.json", text.as_bytes());
        released.seal(&record);
        assert_eq!(released.check_alone().state, AgreementState::Disagrees, "{at}");
        tried += 1;
    }
    assert!(tried > 100, "{tried}");
}

#[test]
fn what_the_manifest_says_of_the_run_is_compared_too() {
    let released = Released::new(None);
    let manifest = Manifest::read(&released.path(MANIFEST_PATH)).expect("a manifest").0;
    type Change = fn(&mut Manifest);
    let changes: [(&str, Change); 5] = [
        ("/predicate/verdict", |m| m.predicate.verdict = "allow".to_owned()),
        ("/predicate/teachers/0/id", |m| m.predicate.teachers[0].id = "somebody".to_owned()),
        ("/predicate/teachers/0/licence", |m| m.predicate.teachers[0].licence = "MIT".to_owned()),
        ("/predicate/data/0/digest", |m| m.predicate.data[0].digest = None),
        ("/predicate/program/digest", |m| m.predicate.program.digest = Some(Digest::of(b"other"))),
    ];
    for (at, change) in changes {
        let mut changed = manifest.clone();
        change(&mut changed);
        released.put_manifest(&changed);
        assert_eq!(released.first().at, at);
    }
    // A file that came to the release later, and one that was exchanged.
    released.put("release/generate.py", b"import os");
    released.seal(&released.record);
    let first = released.first();
    assert_eq!((first.at.as_str(), first.record), ("`release/generate.py`", None));
    fs::remove_file(released.path("release/generate.py")).expect("removed");
    released.put("release/model.safetensors", b"other weights");
    released.seal(&released.record);
    assert_eq!(released.first().at, "the SHA-256 of `release/model.safetensors`");
}

#[test]
fn what_another_version_wrote_is_not_accused() {
    let mut record = of_outputs();
    record.program.version = "0.0.9".to_owned();
    let released = Released::of(record, None);
    assert_eq!(released.check(None).state, AgreementState::Agrees);
    released.edit("release/README.md", "# tiny-student", "# The model tiny-student");
    let agreement = released.check(None);
    assert_eq!(agreement.state, AgreementState::OtherProgram);
    assert_eq!(agreement.not_comparable, ["release/README.md"]);
    assert_eq!(agreement.written_by.as_deref(), Some("0.0.9"));
    // Facts are facts in every version.
    released.edit("report.json", "\"accuracy\":0.7", "\"accuracy\":0.8");
    assert_eq!(released.first().at, "/models/student/accuracy");

    let released = Released::new(None);
    released.edit("release/provenance/record.json", "\"record_version\": 1", "\"record_version\": 2");
    assert_eq!(released.check(None).state, AgreementState::OtherRecordVersion);
}

#[test]
fn a_release_without_a_record_has_none_of_its_documents() {
    let released = Released::new(None);
    fs::remove_file(released.path("release/provenance/record.json")).expect("removed");
    released.seal(&released.record);
    assert_eq!(released.first().document, "release/provenance/ab2013.md");
    for view in views::all(&released.record, None).expect("views") {
        if view.path != "README.md" {
            fs::remove_file(released.path(&format!("release/{}", view.path))).expect("removed");
        }
    }
    released.seal(&released.record);
    assert_eq!(released.check(None).state, AgreementState::NoRecord);
    let released = Released::new(None);
    fs::remove_file(released.path("release/provenance/bom.spdx3.json")).expect("removed");
    released.seal(&released.record);
    let first = released.first();
    assert_eq!(
        (first.document.as_str(), first.at.as_str()),
        ("release/provenance/bom.spdx3.json", "it is missing")
    );
    assert_eq!(
        first.to_string(),
        "`release/provenance/bom.spdx3.json` does not agree with the record: it is missing"
    );
    released.edit("report.json", "{", "no longer {");
    assert!(released.check(None).disagreements.iter().any(|d| d.at == "it is no JSON"));
    released.put("release/provenance/record.json", b"{\"record_version\": 1}");
    released.seal(&released.record);
    assert!(verify(released.dir.path(), None).is_err(), "no record at all");
}

#[test]
fn statements_in_envelopes_are_opened() {
    let keys = tempfile::tempdir().expect("a directory");
    let signer = Signer::create(&keys.path().join("a"), None).expect("a key");
    let other = Signer::create(&keys.path().join("b"), None).expect("a key");
    let released = Released::new(Some(&signer));
    let sign = |signer: &Signer| {
        released.seal(&released.record);
        oms::sign(&released.path("release"), &[], signer).expect("signed");
    };
    sign(&signer);
    let key = Some(signer.public_key());
    assert_eq!(released.check(None).state, AgreementState::Agrees);
    assert_eq!(released.check(key).state, AgreementState::Agrees);
    let name = "release/provenance/provenance.intoto.jsonl";
    let ours = released.text(name);
    // The same statement by another key, or in an envelope with a blank more.
    let theirs = views::all(&released.record, Some(&other)).expect("views");
    let theirs = theirs.iter().find(|view| name.ends_with(view.path)).expect("a view").text.clone();
    released.put(name, theirs.as_bytes());
    sign(&signer);
    assert_eq!(released.check(None).state, AgreementState::Agrees);
    let first = released.check(key).disagreements[0].clone();
    assert!(first.document == name && first.record.expect("a text").contains("signed by the key"));
    released.put(name, ours.replacen(',', ", ", 1).as_bytes());
    sign(&signer);
    assert_eq!(released.check(key).state, AgreementState::Disagrees);
    // Another statement, signed as it should be.
    let mut record = released.record.clone();
    record.release.trial = true;
    let views = views::all(&record, Some(&signer)).expect("views");
    let trial = views.iter().find(|view| name.ends_with(view.path)).expect("a view").text.clone();
    released.put(name, trial.as_bytes());
    sign(&signer);
    let first = released.check(key).disagreements[0].clone();
    assert!(first.at.starts_with("line 1, /predicate/"), "{first}");
}

#[test]
fn what_a_hub_adds_around_a_release_is_not_covered() {
    let keys = tempfile::tempdir().expect("a directory");
    let signer = Signer::create(&keys.path().join("a"), None).expect("a key");
    let released = Released::new(Some(&signer));
    oms::sign(&released.path("release"), &[], &signer).expect("signed");
    let deep = (0..40).map(|n| format!("{n}/")).collect::<String>();
    released.put(&format!("release/.git/{deep}HEAD"), b"ref");
    released.put("release/.github/workflows/x.yml", b"on: push");
    released.put("release/.gitignore", b"*.tmp");
    std::os::unix::fs::symlink("/etc/passwd", released.path("release/.gitattributes")).expect("linked");
    let alone = verify(&released.path("release"), Some(signer.public_key())).expect("a manifest");
    assert!(alone.intact, "{:?}", alone.differences);
    assert_eq!(alone.not_covered, [".git", ".gitattributes", ".github", ".gitignore"]);
    // In a run they are nobody's, and deeper down as well.
    let whole = verify(released.dir.path(), None).expect("a manifest");
    assert!(!whole.intact && whole.not_covered.is_empty());
    released.put("release/provenance/.gitattributes", b"x");
    let deeper = verify(&released.path("release"), None).expect("a manifest");
    assert_eq!(deeper.first().expect("a difference").name, "provenance/.gitattributes");
}

#[test]
fn what_the_manifest_has_is_covered_whatever_it_is_called() {
    let released = Released::new(None);
    released.put("release/.gitattributes", b"*.gguf lfs");
    released.put("release/.git/HEAD", b"ref");
    released.seal(&released.record);
    released.put("release/.git/config", b"more");
    released.put("release/.gitattributes", b"other");
    let report = verify(&released.path("release"), None).expect("a manifest");
    let names: Vec<&str> = report.differences.iter().map(|difference| difference.name.as_str()).collect();
    assert_eq!((names, report.not_covered), (vec![".git/config", ".gitattributes"], vec![]));
}

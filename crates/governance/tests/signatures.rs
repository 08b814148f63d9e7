//! Signatures of releases: by OpenSSF's own tool (`oracles/signatures.py` writes them), by the examples of the
//! specification, and by hundreds of changes, each of which has to be noticed.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64ct::{Base64, Encoding};
use serde_json::Value;
use stillroom_core::Digest;
use stillroom_governance::keys::{PublicKey, Signer};
use stillroom_governance::oms::{self, SIGNATURE_FILE};
use stillroom_governance::timestamp::Token;
use stillroom_governance::{
    Differs, GovernanceError, MANIFEST_PATH, Manifest, Program, RunRecord, SignatureFault, SignatureState,
    TimestampFault, VerifyReport, verify,
};

const RUN: [(&str, &str); 11] = [
    ("recipe.toml", "[teacher]\nmodel = \"t\"\n"),
    ("licence.json", "{}"),
    ("report.json", "{\"task\": \"sums\"}"),
    ("models/student/model.safetensors", "weights in f32"),
    ("checkpoints/step-000100/model.safetensors", "weights at 100"),
    ("release/README.md", "A student.\n"),
    ("release/config.json", "{}"),
    ("release/model.safetensors", "weights"),
    ("release/adapter/model.safetensors", "an adapter"),
    ("release/provenance/notes.txt", "notes"),
    ("release/provenance/log/heads.jsonl", "{\"size\": 3}\n"),
];

/// A run that is sealed, with a release that is signed. `text` is in its weights.
fn signed_run(text: &str, signer: &Signer) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, content) in RUN {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, format!("{content}{text}")).expect("written");
    }
    seal(dir.path());
    oms::sign(&dir.path().join("release"), &[], signer).expect("signed");
    dir
}

/// Writes the manifest and the digest beside it, of whatever is there.
fn seal(run: &Path) {
    let program = Program { name: "stillroom".to_owned(), version: "0.1.0".to_owned(), digest: None };
    let record = RunRecord {
        program,
        teachers: Vec::new(),
        student_base: None,
        data: Vec::new(),
        verdict: "allow".to_owned(),
    };
    let bytes = Manifest::of_run(run, record).expect("a run").to_bytes().expect("its bytes");
    fs::write(run.join(MANIFEST_PATH), &bytes).expect("written");
    let line = format!("{}  manifest.json\n", Digest::of(&bytes));
    fs::write(run.join(format!("{MANIFEST_PATH}.sha256")), line).expect("written");
}

fn key(dir: &Path, name: &str) -> Signer {
    Signer::create(&dir.join(name), None).expect("a key")
}

/// The same key each time, so that the same changes are tried.
fn settled_key(dir: &Path) -> Signer {
    let head = "MEECAQAwEwYHKoZIzj0CAQYIKoZIzj0DAQcEJzAlAgEBBCA=";
    let mut der = Base64::decode_vec(head).expect("base64");
    der.extend([7; 32]);
    let body = Base64::encode_string(&der);
    let path = dir.join("settled");
    fs::write(
        &path,
        format!("-----BEGIN PRIVATE KEY-----\n{}\n{}\n-----END PRIVATE KEY-----\n", &body[..64], &body[64..]),
    )
    .expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
    Signer::open(&path, None).expect("a key")
}

fn refused(result: stillroom_governance::Result<impl std::fmt::Debug>) -> SignatureFault {
    match result {
        Err(GovernanceError::Signature { cause, .. }) => cause,
        other => panic!("{other:?}"),
    }
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/oms").join(name)
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}

/// What stands beside a signature is not signed by it, and is there or not.
#[test]
fn a_timestamp_stands_beside_a_signature_and_changes_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    assert_eq!(oms::timestamps(dir.path()).expect("no signature"), None);
    let signer = key(dir.path(), "key");
    let model = dir.path().join("model");
    fs::create_dir(&model).expect("made");
    fs::write(model.join("config.json"), "{}").expect("written");
    oms::sign(&model, &[], &signer).expect("signed");
    let (signature, none) = oms::timestamps(&model).expect("read").expect("signed");
    assert_eq!(none, vec![]);
    let response = golden("../timestamps/good-rsa-sha256.tsr");
    let token = Token::from_response(&fs::read(response).expect("a token")).expect("a token");
    oms::add_timestamp(&model, &token).expect("written");
    assert_eq!(oms::timestamps(&model).expect("read"), Some((signature.clone(), vec![token.clone()])));
    // It is of other bytes, which whoever asks for the time finds.
    assert_eq!(token.check(&signature, None), Err(TimestampFault::WrongImprint));
    assert_eq!(oms::verify(&model, signer.public_key()).expect("signed"), vec![]);
    let text = fs::read_to_string(model.join(SIGNATURE_FILE)).expect("text");
    for (from, to) in
        [("signedTimestamp", "signedTimestump"), ("rfc3161Timestamps\":[", "rfc3161Timestamps\":[{},")]
    {
        fs::write(model.join(SIGNATURE_FILE), text.replace(from, to)).expect("written");
        assert!(matches!(
            refused(oms::verify(&model, signer.public_key())),
            SignatureFault::Malformed { .. }
        ));
    }
    fs::write(model.join(SIGNATURE_FILE), text.replace("Timestamp\":\"MII", "Timestamp\":\"MIJ"))
        .expect("written");
    assert!(oms::timestamps(&model).is_err());
}

#[test]
fn a_signature_of_the_outside_tool_by_a_larger_key_is_accepted() {
    let key = PublicKey::open(&golden("signed-p384.pub")).expect("its key");
    assert_eq!(oms::verify(&golden("signed-p384"), &key).expect("signed"), vec![]);
    let dir = tempfile::tempdir().expect("a directory");
    let model = dir.path().join("signed");
    copy_tree(&golden("signed-p384"), &model);
    let text = fs::read_to_string(model.join(SIGNATURE_FILE)).expect("text");
    let (before, after) =
        text.split_once("\"sig\": \"").or(text.split_once("\"sig\":\"")).expect("a signature");
    let changed = format!(
        "{before}\"sig\":\"{}",
        after.replacen(&after[20..21], if &after[20..21] == "A" { "B" } else { "A" }, 1)
    );
    fs::write(model.join(SIGNATURE_FILE), changed).expect("written");
    assert!(matches!(refused(oms::verify(&model, &key)), SignatureFault::Envelope(_)));
}

#[test]
fn a_signature_of_the_outside_tool_is_accepted() {
    let key = PublicKey::open(&golden("signed.pub")).expect("its key");
    assert_eq!(oms::verify(&golden("signed"), &key).expect("signed"), vec![]);
    let dir = tempfile::tempdir().expect("a directory");
    let model = dir.path().join("signed");
    copy_tree(&golden("signed"), &model);
    // What belongs to git is nobody's; everything else is.
    fs::create_dir(model.join(".git")).expect("made");
    fs::write(model.join(".git/HEAD"), "x").expect("written");
    fs::write(model.join(".gitattributes"), "x").expect("written");
    assert_eq!(oms::verify(&model, &key).expect("signed"), vec![]);
    fs::write(model.join("sub/.gitattributes"), "x").expect("written");
    fs::write(model.join("empty"), "no more").expect("written");
    fs::remove_file(model.join("sub/b")).expect("removed");
    std::os::unix::fs::symlink("config.json", model.join("link")).expect("linked");
    let differences = oms::verify(&model, &key).expect("signed");
    let found: Vec<String> = differences.iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 4, "{found:?}");
    assert!(
        found[0].starts_with("`empty` differs: SHA-256 ") && found[0].contains("the signature says e3b0c442")
    );
    assert_eq!(found[1], "`link` is a link or no file at all");
    assert_eq!(found[2], "`sub/.gitattributes` is not covered by the signature");
    assert_eq!(found[3], "`sub/b` is missing");

    let other = self::key(dir.path(), "other");
    assert!(matches!(refused(oms::verify(&model, other.public_key())), SignatureFault::OtherKey { .. }));
    fs::remove_file(model.join(SIGNATURE_FILE)).expect("removed");
    assert_eq!(refused(oms::verify(&model, &key)), SignatureFault::Absent);
}

/// The examples of the specification are signed by keys that are not in it, of P-384; so what is read is their form.
#[test]
fn the_examples_of_the_specification_are_told_apart() {
    let dir = tempfile::tempdir().expect("a directory");
    let signer = key(dir.path(), "key");
    let fault = |name: &str| {
        let run = signed_run("", &signer);
        let at = run.path().join("release").join(SIGNATURE_FILE);
        fs::copy(golden("spec").join(name), at).expect("copied");
        let report = verify(run.path(), None).expect("a run");
        assert_eq!(report.signature.state, SignatureState::Invalid, "{name}");
        report.differences
    };
    // Without a key it is read to its end, and is of other files.
    let differences = fault("key.bundle.json");
    assert!(differences.iter().any(|d| d.name == "release/signme-1" && d.differs == Differs::Missing));
    assert!(differences.iter().any(|d| d.name == "release/README.md" && d.differs == Differs::Unsigned));
    for (name, cause) in [
        ("certificate.bundle.json", "it is signed by a certificate; only keys are known here"),
        ("wrong-predicate.bundle.json", "unknown predicateType "),
        ("missing-envelope.bundle.json", "not a signature: missing field `dsseEnvelope`"),
        (
            "missing-verification-material.bundle.json",
            "not a signature: missing field `verificationMaterial`",
        ),
    ] {
        let differences = fault(name);
        let [only] = &differences[..] else { panic!("{name}: {differences:?}") };
        assert!(
            only.to_string().starts_with(&format!("`release/model.sig` does not count: {cause}")),
            "{only}"
        );
    }
}

#[test]
fn a_release_is_signed_by_its_key_or_not_intact() {
    let dir = tempfile::tempdir().expect("a directory");
    let (signer, other) = (key(dir.path(), "key"), key(dir.path(), "other"));
    let run = signed_run("", &signer);
    let state = |key: Option<&Signer>, path: &Path| -> VerifyReport {
        verify(path, key.map(Signer::public_key)).expect("a run")
    };
    for path in [run.path().to_path_buf(), run.path().join("release")] {
        let report = state(Some(&signer), &path);
        assert!(report.intact, "{:?}", report.differences);
        assert_eq!(report.signature.state, SignatureState::Valid);
        assert_eq!(report.signature.files, 8, "six files, the manifest and its digest");
        assert_eq!(report.signature.key, Some(signer.public_key().fingerprint()));
        let report = state(None, &path);
        assert!(report.intact);
        assert_eq!(report.signature.state, SignatureState::Unchecked);
        let report = state(Some(&other), &path);
        assert!(!report.intact);
        assert_eq!(report.signature.state, SignatureState::Invalid);
        let first = report.first().expect("one").to_string();
        assert!(first.contains("model.sig` does not count: it is by another key"), "{first}");
    }
    let signature = run.path().join("release").join(SIGNATURE_FILE);
    fs::remove_file(&signature).expect("removed");
    let report = state(Some(&signer), run.path());
    assert_eq!(report.first().expect("one").to_string(), "`release/model.sig` is missing");
    assert_eq!(report.signature.state, SignatureState::Invalid);
    let report = state(None, run.path());
    assert!(report.intact);
    assert_eq!(report.signature.state, SignatureState::None);
    // Without a key anybody can sign; with one nobody else can.
    oms::sign(&run.path().join("release"), &[], &other).expect("signed");
    assert!(state(None, run.path()).intact);
    assert!(!state(Some(&signer), run.path()).intact);
    fs::remove_file(&signature).expect("removed");
    std::os::unix::fs::symlink("README.md", &signature).expect("linked");
    let first = state(None, run.path()).first().expect("one").to_string();
    assert_eq!(first, "`release/model.sig` is a link or no file at all");
}

#[test]
fn the_same_bytes_have_the_same_signature() {
    let dir = tempfile::tempdir().expect("a directory");
    let signer = key(dir.path(), "key");
    let run = signed_run("", &signer);
    let path = run.path().join("release").join(SIGNATURE_FILE);
    let first = fs::read(&path).expect("its bytes");
    oms::sign(&run.path().join("release"), &[], &signer).expect("signed again, over itself");
    assert_eq!(fs::read(&path).expect("its bytes"), first);
}

#[test]
fn what_cannot_be_covered_is_not_signed() {
    let dir = tempfile::tempdir().expect("a directory");
    let signer = key(dir.path(), "key");
    let model = dir.path().join("model");
    fs::create_dir(&model).expect("made");
    fs::write(model.join(".gitignore"), "x").expect("written");
    assert_eq!(refused(oms::sign(&model, &[], &signer)), SignatureFault::Empty);
    fs::write(model.join("file"), "x").expect("written");
    fs::create_dir(model.join("cache")).expect("made");
    std::os::unix::fs::symlink("../file", model.join("cache/link")).expect("linked");
    let unsafe_name = SignatureFault::UnsafeName { name: "cache/link".to_owned() };
    assert_eq!(refused(oms::sign(&model, &[], &signer)), unsafe_name);
    assert!(!model.join(SIGNATURE_FILE).exists());
    oms::sign(&model, &["cache"], &signer).expect("signed");
    assert_eq!(oms::verify(&model, signer.public_key()).expect("signed"), vec![]);
    fs::write(model.join("cached"), "x").expect("written");
    assert_eq!(oms::verify(&model, signer.public_key()).expect("signed").len(), 1, "not below `cache`");
}

/// A bundle around another statement, by the same key.
fn with_statement(model: &Path, signer: &Signer, change: impl Fn(&mut Value)) {
    let path = model.join(SIGNATURE_FILE);
    let mut bundle: Value = serde_json::from_slice(&fs::read(&path).expect("a bundle")).expect("JSON");
    let payload = bundle["dsseEnvelope"]["payload"].as_str().expect("text");
    let mut statement: Value =
        serde_json::from_slice(&Base64::decode_vec(payload).expect("base64")).expect("JSON");
    change(&mut statement);
    let payload = statement.to_string();
    let kind = stillroom_governance::dsse::IN_TOTO;
    let envelope =
        stillroom_governance::dsse::Envelope::sign(kind, payload.as_bytes(), signer).expect("signed");
    bundle["dsseEnvelope"] = serde_json::to_value(envelope).expect("JSON");
    fs::write(path, bundle.to_string()).expect("written");
}

/// Even what the right key signed is read with care.
#[test]
fn statements_that_promise_too_little_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let signer = key(dir.path(), "key");
    let unsupported = |what: &str| SignatureFault::Unsupported { what: what.to_owned() };
    let named = |name: &str| SignatureFault::UnsafeName { name: name.to_owned() };
    type Change = fn(&mut Value);
    let cases: [(Change, SignatureFault); 10] = [
        (
            |s| s["predicate"]["serialization"]["method"] = "shards".into(),
            unsupported("files by the method `shards`"),
        ),
        (
            |s| s["predicate"]["serialization"]["allow_symlinks"] = true.into(),
            unsupported("what links lead to"),
        ),
        (
            |s| s["predicate"]["resources"][1]["algorithm"] = "blake3".into(),
            unsupported("digests by `blake3`"),
        ),
        (|s| s["predicate"]["resources"] = Value::Array(vec![]), SignatureFault::Empty),
        (|s| s["predicate"]["resources"][0]["name"] = "../README.md".into(), named("../README.md")),
        (|s| s["predicate"]["resources"][0]["name"] = "/etc/passwd".into(), named("/etc/passwd")),
        (
            |s| s["predicate"]["resources"][1] = s["predicate"]["resources"][0].clone(),
            SignatureFault::Twice { name: "README.md".to_owned() },
        ),
        (|s| s["subject"][0]["digest"]["sha256"] = "0".repeat(64).into(), SignatureFault::Root),
        (
            |s| s["_type"] = "https://in-toto.io/Statement/v0.1".into(),
            SignatureFault::UnknownType {
                field: "_type",
                found: "https://in-toto.io/Statement/v0.1".to_owned(),
            },
        ),
        (
            |s| s["subject"] = Value::Array(vec![s["subject"][0].clone(), s["subject"][0].clone()]),
            SignatureFault::Malformed { cause: "2 subjects, not one".to_owned() },
        ),
    ];
    for (change, expected) in cases {
        let run = signed_run("", &signer);
        let release = run.path().join("release");
        with_statement(&release, &signer, change);
        assert_eq!(refused(oms::verify(&release, signer.public_key())), expected);
        assert!(!verify(run.path(), Some(signer.public_key())).expect("a run").intact, "{expected}");
    }
    // A list that leaves files out of a release does not cover it, whatever it says it ignores.
    let run = signed_run("", &signer);
    let release = run.path().join("release");
    fs::write(release.join("more.bin"), "x").expect("written");
    seal(run.path());
    oms::sign(&release, &["more.bin"], &signer).expect("signed");
    assert_eq!(oms::verify(&release, signer.public_key()).expect("signed"), vec![]);
    let report = verify(run.path(), Some(signer.public_key())).expect("a run");
    assert_eq!(
        report.first().expect("one").to_string(),
        "`release/more.bin` is not covered by the signature"
    );
}

/// Draws that are the same each time (SplitMix64).
struct Draws(u64);

impl Draws {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % n as u64).expect("small")
    }
}

fn flip(path: &Path, draws: &mut Draws) {
    let mut bytes = fs::read(path).expect("its bytes");
    let at = draws.below(bytes.len());
    bytes[at] ^= u8::try_from(1 + draws.below(255)).expect("a byte");
    fs::write(path, bytes).expect("written");
}

/// Changes one thing in the release of a run; says what. `others` has signatures of other releases and by other keys.
fn mutate(run: &Path, draws: &mut Draws, others: &[Vec<u8>]) -> String {
    let release = run.join("release");
    let files = ["provenance/manifest.json", "provenance/manifest.json.sha256", SIGNATURE_FILE];
    let in_release = RUN.iter().filter_map(|(name, _)| name.strip_prefix("release/"));
    let names: Vec<&str> = in_release.chain(files).collect();
    let name = names[draws.below(names.len())];
    let path = release.join(name);
    let kind = draws.below(10);
    match kind {
        0 => flip(&path, draws),
        1 => flip(&release.join(SIGNATURE_FILE), draws),
        2 => fs::rename(&path, release.join(format!("{name}x"))).expect("renamed"),
        3 => {
            let other = release.join(
                names[(draws.below(names.len() - 1)
                    + 1
                    + names.iter().position(|n| *n == name).expect("in it"))
                    % names.len()],
            );
            let (ours, theirs) = (fs::read(&path).expect("bytes"), fs::read(&other).expect("bytes"));
            assert_ne!(ours, theirs, "no two files are the same");
            fs::write(&path, theirs).expect("written");
            fs::write(&other, ours).expect("written");
        }
        4 => fs::remove_file(&path).expect("removed"),
        5 => fs::write(release.join(format!("added-{}", draws.below(1000))), "").expect("written"),
        6 => {
            flip(&release.join(names[draws.below(6)]), draws);
            seal(run);
        }
        7 => fs::write(release.join(SIGNATURE_FILE), &others[draws.below(others.len())]).expect("written"),
        8 => {
            let bytes = fs::read(&path).expect("its bytes");
            fs::write(&path, &bytes[..draws.below(bytes.len())]).expect("written");
        }
        // A file is added or dropped, and the manifest says so.
        _ => {
            let other = release.join(names[draws.below(6)]);
            if draws.below(2) == 0 {
                fs::remove_file(other).expect("removed");
            } else {
                fs::write(other.with_extension("more"), "more").expect("written");
            }
            seal(run);
        }
    }
    format!("change of kind {kind} at {name}")
}

/// Whatever one changes in a signed release, it is noticed by whoever has the key.
#[test]
fn four_hundred_changes_are_noticed() {
    let dir = tempfile::tempdir().expect("a directory");
    let signer = settled_key(dir.path());
    let run = signed_run("", &signer);
    let bytes_of =
        |run: &tempfile::TempDir| fs::read(run.path().join("release").join(SIGNATURE_FILE)).expect("bytes");
    let others =
        [bytes_of(&signed_run("more", &signer)), bytes_of(&signed_run("", &key(dir.path(), "other")))];
    let mut kinds = BTreeSet::new();
    for seed in 0..400 {
        let copy = dir.path().join("copy");
        copy_tree(run.path(), &copy);
        let what = mutate(&copy, &mut Draws(seed), &others);
        let whole = seed % 2 == 0;
        let given = if whole { copy.clone() } else { copy.join("release") };
        match verify(&given, Some(signer.public_key())) {
            Ok(report) => assert!(!report.intact, "seed {seed}: {what}"),
            // A manifest that cannot be read, or is not where it was.
            Err(GovernanceError::Manifest { .. } | GovernanceError::NoManifest { .. }) => {}
            Err(error) => panic!("seed {seed}: {what}: {error}"),
        }
        kinds.insert(what);
        fs::remove_dir_all(&copy).expect("removed");
    }
    assert!(kinds.len() > 60, "{} different changes", kinds.len());
}

/// No byte of a signature is idle.
#[test]
fn every_byte_of_a_signature_counts() {
    let dir = tempfile::tempdir().expect("a directory");
    let signer = settled_key(dir.path());
    let model = dir.path().join("model");
    fs::create_dir(&model).expect("made");
    fs::write(model.join("model.safetensors"), "weights").expect("written");
    let path = oms::sign(&model, &[], &signer).expect("signed");
    assert_eq!(oms::verify(&model, signer.public_key()).expect("signed"), vec![]);
    let bytes = fs::read(&path).expect("its bytes");
    let mut draws = Draws(1);
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << draws.below(8);
        fs::write(&path, &changed).expect("written");
        let around = String::from_utf8_lossy(&changed[at.saturating_sub(20)..=at]);
        assert!(oms::verify(&model, signer.public_key()).is_err(), "byte {at}: {around}");
    }
}

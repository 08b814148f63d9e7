//! The manifest: everything that is changed is named, and a hostile manifest reaches nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use proptest::prelude::*;
use stillroom_core::{Digest, ErrorKind};
use stillroom_governance::{
    Differs, GovernanceError, MANIFEST_PATH, Manifest, ManifestFault, ModelRecord, Program, RunRecord, verify,
};

const FILES: [(&str, &str); 12] = [
    ("recipe.toml", "[teacher]\nmodel = \"t\"\n"),
    ("licence.json", "{}"),
    ("report.json", "{\"task\": \"sums\"}"),
    ("teach.json", "{\"rows\": 2}"),
    ("corpus/traces/part-000000.parquet", "PAR1 rows PAR1"),
    ("evaluation/student/measurement.json", "{\"grades\": []}"),
    ("models/student/model.safetensors", "weights in f32"),
    ("training/student.json", "{\"steps\": 1}"),
    ("checkpoints/step-000100/model.safetensors", "weights at 100"),
    ("release/config.json", "{}"),
    ("release/model.safetensors", "weights"),
    ("release/provenance/notes.txt", "n"),
];

fn run_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in FILES {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    fs::write(dir.path().join("events.jsonl"), "not part of the record").unwrap();
    // As `Manifest::write` lays it down, without waiting for the disk.
    let bytes = Manifest::of_run(dir.path(), record()).unwrap().to_bytes().unwrap();
    fs::write(dir.path().join(MANIFEST_PATH), &bytes).unwrap();
    let line = format!("{}  manifest.json\n", Digest::of(&bytes));
    fs::write(dir.path().join(format!("{MANIFEST_PATH}.sha256")), line).unwrap();
    dir
}

fn record() -> RunRecord {
    let teacher = ModelRecord {
        id: "stillroom:quickstart-teacher".to_owned(),
        digest: Some(Digest::of(b"teacher")),
        licence: "Apache-2.0".to_owned(),
    };
    let program = Program { name: "stillroom".to_owned(), version: "0.1.0".to_owned(), digest: None };
    RunRecord {
        program,
        teachers: vec![teacher],
        student_base: None,
        data: Vec::new(),
        verdict: "allow".to_owned(),
    }
}

fn manifest_of(dir: &Path) -> Manifest {
    Manifest::read(&dir.join(MANIFEST_PATH)).unwrap().0
}

fn first(dir: &Path) -> (String, Differs) {
    let report = verify(dir, None).unwrap();
    assert!(!report.intact);
    let first = report.first().unwrap();
    (first.name.clone(), first.differs.clone())
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_run_and_its_release_alone_are_intact() {
    let dir = run_dir();
    let whole = verify(dir.path(), None).unwrap();
    assert!(whole.intact && whole.out_of_reach.is_empty());
    assert_eq!(whole.checked, FILES.len());
    fs::write(dir.path().join("events.jsonl"), "grows on").unwrap();
    assert!(verify(dir.path(), None).unwrap().intact);
    let elsewhere = tempfile::tempdir().unwrap();
    copy_tree(&dir.path().join("release"), elsewhere.path());
    let alone = verify(elsewhere.path(), None).unwrap();
    assert!(alone.intact);
    assert_eq!((alone.checked, alone.out_of_reach.len()), (3, 9));
    assert_eq!(alone.manifest, whole.manifest);
}

#[test]
fn the_statement_is_in_toto_and_names_its_parts() {
    let dir = run_dir();
    let bytes = fs::read(dir.path().join(MANIFEST_PATH)).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(json["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(json["subject"].as_array().unwrap().len(), FILES.len());
    let weights = &json["predicate"]["weights"];
    assert_eq!(weights.as_array().unwrap().len(), 1);
    assert_eq!(weights[0]["name"], "release/model.safetensors");
    assert_eq!(weights[0]["digest"]["sha256"], Digest::of(b"weights").to_string());
    assert_eq!(json["predicate"]["recipe"]["name"], "recipe.toml");
    assert_eq!(json["predicate"]["checkpoints"].as_array().unwrap().len(), 1);
    assert_eq!(Manifest::from_bytes(&bytes).unwrap().to_bytes().unwrap(), bytes);
    // The same run gives the same manifest, and writing it lays down what the tests lay down.
    let sidecar = dir.path().join(format!("{MANIFEST_PATH}.sha256"));
    let line = fs::read(&sidecar).unwrap();
    manifest_of(dir.path()).write(dir.path()).unwrap();
    assert_eq!(fs::read(dir.path().join(MANIFEST_PATH)).unwrap(), bytes);
    assert_eq!(fs::read(&sidecar).unwrap(), line);
    assert_eq!(Manifest::of_run(dir.path(), record()).unwrap().to_bytes().unwrap(), bytes);
}

#[test]
fn changed_missing_extra_and_irregular_files_are_named_in_order() {
    let dir = run_dir();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("release/zzz"), "x").unwrap();
    assert_eq!(first(dir.path()), ("release/zzz".to_owned(), Differs::Extra));
    fs::remove_file(path("release/config.json")).unwrap();
    assert_eq!(first(dir.path()), ("release/config.json".to_owned(), Differs::Missing));
    fs::write(path("recipe.toml"), "other").unwrap();
    let (name, differs) = first(dir.path());
    assert_eq!(name, "recipe.toml");
    assert!(matches!(differs, Differs::Changed { found, .. } if found == Digest::of(b"other")));
    let names: Vec<String> =
        verify(dir.path(), None).unwrap().differences.iter().map(|d| d.name.clone()).collect();
    assert_eq!(names, ["recipe.toml", "release/config.json", "release/zzz"]);
}

#[test]
fn rows_behind_the_report_are_sealed() {
    for (name, _) in FILES {
        let dir = run_dir();
        fs::write(dir.path().join(name), "other").unwrap();
        let (first, differs) = first(dir.path());
        assert_eq!(first, name);
        assert!(matches!(differs, Differs::Changed { .. }), "{name}: {differs:?}");
    }
    for folder in ["checkpoints", "corpus", "evaluation/student", "models/student", "release", "training"] {
        let dir = run_dir();
        let slipped_in = format!("{folder}/slipped-in.json");
        fs::write(dir.path().join(&slipped_in), "{}").unwrap();
        assert_eq!(first(dir.path()), (slipped_in, Differs::Extra));
    }
}

#[cfg(unix)]
#[test]
fn links_are_not_followed() {
    use std::os::unix::fs::symlink;

    let dir = run_dir();
    let model = dir.path().join("release/model.safetensors");
    let outside = dir.path().join("copy");
    fs::rename(&model, &outside).unwrap();
    symlink(&outside, &model).unwrap();
    assert_eq!(first(dir.path()), ("release/model.safetensors".to_owned(), Differs::Irregular));

    let dir = run_dir();
    fs::rename(dir.path().join(MANIFEST_PATH), dir.path().join("elsewhere.json")).unwrap();
    symlink(dir.path().join("elsewhere.json"), dir.path().join(MANIFEST_PATH)).unwrap();
    assert_eq!(first(dir.path()), (MANIFEST_PATH.to_owned(), Differs::Irregular));

    let dir = run_dir();
    let corpus = dir.path().join("corpus");
    fs::rename(&corpus, dir.path().join("elsewhere")).unwrap();
    symlink(dir.path().join("elsewhere"), &corpus).unwrap();
    assert!(!verify(dir.path(), None).unwrap().intact);
    let error = Manifest::of_run(dir.path(), record()).unwrap_err();
    assert!(matches!(error, GovernanceError::Manifest { .. }));
}

#[test]
fn a_folder_in_place_of_a_file_and_the_reverse_are_named() {
    let dir = run_dir();
    fs::remove_file(dir.path().join("report.json")).unwrap();
    fs::create_dir(dir.path().join("report.json")).unwrap();
    assert_eq!(first(dir.path()), ("report.json".to_owned(), Differs::Irregular));
    let dir = run_dir();
    fs::remove_dir_all(dir.path().join("corpus/traces")).unwrap();
    fs::write(dir.path().join("corpus/traces"), "x").unwrap();
    assert_eq!(first(dir.path()), ("corpus/traces".to_owned(), Differs::Extra));
}

#[test]
fn a_second_manifest_does_not_hide_the_run() {
    let dir = run_dir();
    let inner = dir.path().join("provenance");
    fs::create_dir_all(&inner).unwrap();
    fs::copy(dir.path().join(MANIFEST_PATH), inner.join("manifest.json")).unwrap();
    assert!(!verify(dir.path(), None).unwrap().intact);
}

#[test]
fn no_manifest_and_nothing_to_seal_are_errors() {
    let empty = tempfile::tempdir().unwrap();
    let error = verify(empty.path(), None).unwrap_err();
    assert!(matches!(error, GovernanceError::NoManifest { .. }));
    assert_eq!(error.kind(), ErrorKind::BadData);
    assert!(error.fix().is_some());
    let error = Manifest::of_run(empty.path(), record()).unwrap_err();
    assert!(error.to_string().contains("recipe.toml"));
}

/// Writes a changed manifest, with a digest beside it that fits.
fn rewrite(dir: &Path, change: impl FnOnce(&mut Manifest)) -> PathBuf {
    let mut manifest = manifest_of(dir);
    change(&mut manifest);
    manifest.write(dir).unwrap()
}

#[test]
fn hostile_manifests_are_refused() {
    let refused = |change: &dyn Fn(&mut Manifest)| {
        let dir = run_dir();
        rewrite(dir.path(), change);
        let error = verify(dir.path(), None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadData);
        match error {
            GovernanceError::Manifest { cause, .. } => cause,
            other => panic!("{other}"),
        }
    };
    for name in ["../../etc/passwd", "/etc/passwd", "a/../b", "./a", "a//b", "a\\b", "", "a\0b", "a\nb", ".."]
    {
        let cause = refused(&|manifest| manifest.subject[0].name = name.to_owned());
        assert!(matches!(cause, ManifestFault::UnsafeName { .. }), "{name:?}: {cause}");
        let cause = refused(&|manifest| manifest.predicate.sealed[0] = name.to_owned());
        assert!(matches!(cause, ManifestFault::UnsafeName { .. }), "{name:?}: {cause}");
    }
    let twice = refused(&|manifest| {
        let again = manifest.subject[0].clone();
        manifest.subject.insert(0, again);
    });
    assert!(matches!(twice, ManifestFault::OutOfOrder { .. }));
    assert!(matches!(refused(&|manifest| manifest.subject.reverse()), ManifestFault::OutOfOrder { .. }));
    assert!(matches!(refused(&|manifest| manifest.subject.clear()), ManifestFault::Empty));
    let other = Digest::of(b"other");
    let cause = refused(&|manifest| manifest.predicate.recipe.digest.sha256 = other);
    assert_eq!(cause, ManifestFault::Inconsistent { name: "recipe.toml".to_owned() });
    let cause = refused(&|manifest| manifest.predicate.weights.clear());
    assert_eq!(cause, ManifestFault::Inconsistent { name: "release/model.safetensors".to_owned() });
    let cause = refused(&|manifest| manifest.predicate_type = "urn:stillroom:manifest:v9".to_owned());
    assert!(matches!(cause, ManifestFault::UnknownType { field: "predicateType", .. }));
}

#[test]
fn a_truncated_manifest_says_so_at_every_length() {
    let dir = run_dir();
    let path = dir.path().join(MANIFEST_PATH);
    let bytes = fs::read(&path).unwrap();
    for length in 0..bytes.trim_ascii_end().len() {
        let cause = Manifest::from_bytes(&bytes[..length]).unwrap_err();
        assert_eq!(cause, ManifestFault::Truncated { bytes: length });
    }
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let message = verify(dir.path(), None).unwrap_err().to_string();
    assert!(message.contains("manifest.json") && message.contains("truncated"), "{message}");
    assert!(Manifest::from_bytes(b"[1, 2]").is_err());
    assert!(Manifest::from_bytes(&b"[".repeat(100_000)).is_err());
    assert!(Manifest::from_bytes(&[0xff; 64]).is_err());
}

#[test]
fn the_manifests_own_digest_is_checked() {
    let dir = run_dir();
    let sidecar = dir.path().join(format!("{MANIFEST_PATH}.sha256"));
    let text = fs::read_to_string(&sidecar).unwrap();
    assert!(text.ends_with("  manifest.json\n") && text.len() == 64 + 16);
    fs::write(&sidecar, format!("{text} ")).unwrap();
    assert_eq!(first(dir.path()).1, Differs::Malformed);
    fs::remove_file(&sidecar).unwrap();
    assert_eq!(first(dir.path()).1, Differs::Missing);
}

fn all_files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = FILES.iter().map(|(name, _)| (*name).to_owned()).collect();
    names.push(MANIFEST_PATH.to_owned());
    names.push(format!("{MANIFEST_PATH}.sha256"));
    assert!(names.iter().all(|name| dir.join(name).is_file()));
    names
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn any_changed_byte_of_any_file_is_named(which in 0..10usize, at in any::<u32>(), flip in 1..=255u8) {
        let dir = run_dir();
        let name = &all_files(dir.path())[which];
        let path = dir.path().join(name);
        let mut bytes = fs::read(&path).unwrap();
        let at = at as usize % bytes.len();
        bytes[at] ^= flip;
        fs::write(&path, &bytes).unwrap();
        match verify(dir.path(), None) {
            Ok(report) => {
                prop_assert!(!report.intact);
                let found = &report.first().unwrap().name;
                // A changed digest beside the manifest accuses the manifest.
                prop_assert!(found == name || (name.starts_with(MANIFEST_PATH) && found.starts_with(MANIFEST_PATH)));
            }
            Err(error) => {
                prop_assert!(name == MANIFEST_PATH, "{error}");
                prop_assert!(error.to_string().contains("manifest.json"));
            }
        }
    }

    #[test]
    fn any_cut_or_growth_of_any_file_is_named(which in 0..8usize, cut in any::<u32>(), grown in any::<bool>()) {
        let dir = run_dir();
        let name = FILES[which].0;
        let path = dir.path().join(name);
        let mut bytes = fs::read(&path).unwrap();
        if grown { bytes.push(0) } else { bytes.truncate(cut as usize % bytes.len()) }
        fs::write(&path, &bytes).unwrap();
        let report = verify(dir.path(), None).unwrap();
        prop_assert_eq!(&report.first().unwrap().name, name);
    }

    #[test]
    fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        prop_assert!(Manifest::from_bytes(&bytes).is_err());
    }

    #[test]
    fn a_damaged_manifest_never_panics_nor_leaves_its_directory(at in any::<u32>(), byte in any::<u8>()) {
        static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
        let mut bytes = BYTES.get_or_init(|| fs::read(run_dir().path().join(MANIFEST_PATH)).unwrap()).clone();
        let at = at as usize % bytes.len();
        bytes[at] = byte;
        if let Ok(manifest) = Manifest::from_bytes(&bytes) {
            for subject in &manifest.subject {
                prop_assert!(!subject.name.starts_with('/') && !subject.name.split('/').any(|part| part == ".."));
            }
        }
    }
}

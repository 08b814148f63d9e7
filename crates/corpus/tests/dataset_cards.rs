//! Directories whose card names their files, beside what the library `datasets` takes (`oracles/dataset_card.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use stillroom_corpus::prompts::{Choice, DataSet, Files};
use stillroom_corpus::{CorpusError, Split};

#[derive(Deserialize)]
struct Case {
    name: String,
    head: String,
    files: Vec<String>,
    default: Option<String>,
    configs: BTreeMap<String, BTreeMap<String, Vec<String>>>,
}

/// A directory with a card and files of one row each.
fn directory(head: &str, files: &[impl AsRef<str>]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    for name in files {
        let (path, row) =
            (dir.path().join(name.as_ref()), format!("{{\"prompt\": \"{}\"}}\n", name.as_ref()));
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, row).expect("written");
    }
    std::fs::write(dir.path().join("README.md"), format!("---\n{head}---\n\n# A card\n")).expect("written");
    dir
}

fn config(name: &str) -> Choice {
    Choice { config: Some(name.into()), ..Choice::default() }
}

fn relative(root: &Path, files: &[PathBuf]) -> Vec<String> {
    let name = |path: &PathBuf| path.strip_prefix(root).expect("within").to_str().expect("text").to_owned();
    files.iter().map(name).collect()
}

fn refused(dir: &Path, choice: &Choice) -> String {
    match Files::of(dir, choice) {
        Err(error @ CorpusError::BadCard { .. }) => {
            error.to_string().replace(&dir.display().to_string(), "DIR")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_files_of_each_configuration_are_those_of_the_library() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("golden/dataset_cards.json")).expect("cases");
    assert!(cases.len() >= 18);
    for case in cases {
        let dir = directory(&case.head, &case.files);
        for (name, splits) in &case.configs {
            // Whatever the splits are called, each is asked for by its name.
            for (split, expected) in splits {
                let choice = Choice { splits: [(Split::Train, split.clone())].into(), ..config(name) };
                let files = Files::of(dir.path(), &choice).expect("files");
                let mut once: Vec<String> = Vec::new();
                // A file that two patterns name is read twice there, and once here.
                expected.iter().for_each(|path| {
                    if !once.contains(path) {
                        once.push(path.clone())
                    }
                });
                assert_eq!(relative(dir.path(), &files.train), once, "{}: {name}, {split}", case.name);
                assert_eq!(files.card.as_deref(), Some(&*dir.path().join("README.md")));
            }
        }
        match case.default {
            Some(name) => assert_eq!(
                Files::of(dir.path(), &Choice::default()).expect("the default"),
                Files::of(dir.path(), &config(&name)).expect("the same"),
                "{}",
                case.name
            ),
            None => assert_eq!(
                refused(dir.path(), &Choice::default()),
                "DIR/README.md: it has several configurations, and none is the default: `main`, `socratic`"
            ),
        }
    }
}

#[test]
fn splits_by_their_usual_names_are_the_parts() {
    let head = "configs:\n- config_name: a\n  data_files:\n  - {split: train, path: 'x/*'}\n  - {split: test, path: 'y/*'}\n  - {split: extra, path: z}\n";
    let dir = directory(head, &["x/rows.jsonl", "x/more.jsonl", "y/rows.jsonl", "train.jsonl"]);
    let data = DataSet::open(dir.path()).expect("a data set");
    let ids = |part: &[stillroom_corpus::prompts::Item]| {
        part.iter().map(|item| item.id().to_owned()).collect::<Vec<_>>()
    };
    let mut learned = ids(&[data.train.clone(), data.validation.clone()].concat());
    learned.sort();
    assert_eq!(
        learned,
        ["more-000001", "x-rows-000001"],
        "files of one name are told apart by their directories"
    );
    assert_eq!(ids(&data.held_out), ["y-rows-000001"]);
}

#[test]
fn a_directory_without_a_card_takes_splits_by_name_too() {
    let dir = directory(
        "license: mit\n",
        &["data/train_sft-00000-of-00001.jsonl", "data/test_sft.jsonl", "data/test.jsonl"],
    );
    let splits = [(Split::Train, "train_sft".to_owned()), (Split::HeldOut, "test_sft".to_owned())].into();
    let files = Files::of(dir.path(), &Choice { splits, ..Choice::default() }).expect("files");
    assert_eq!(relative(dir.path(), &files.train), ["data/train_sft-00000-of-00001.jsonl"]);
    assert_eq!(relative(dir.path(), &files.held_out), ["data/test_sft.jsonl"]);
    assert_eq!(files.card, None);
    assert_eq!(refused(dir.path(), &config("main")), "DIR/README.md: there is no card here with `configs`");
    let single = Files::of(&dir.path().join("data/test.jsonl"), &config("main"));
    assert!(matches!(single, Err(CorpusError::BadDataSet { .. })));
}

#[test]
fn cards_that_cannot_be_followed_are_errors() {
    let of = |files: &str| format!("configs:\n- config_name: a\n  data_files: {files}\n");
    let deep = format!("x: {}{}\n", "[".repeat(100), "]".repeat(100));
    for (head, problem) in [
        (of("../other.jsonl"), "configuration `a`: `../other.jsonl` is not within the data set's directory"),
        (of("/etc/passwd"), "configuration `a`: `/etc/passwd` is not within the data set's directory"),
        (
            of("hf://datasets/a/b.jsonl"),
            "configuration `a`: `hf://datasets/a/b.jsonl` is not within the data set's directory",
        ),
        (of("missing.jsonl"), "configuration `a`: there is no file `missing.jsonl`"),
        (of("'missing-*'"), "configuration `a`: no file of split `train` is here"),
        (of("{split: x}"), "configuration `a`: no split `train`; it has `split`"),
        (of("[{split: sft, path: a.jsonl}]"), "configuration `a`: no split `train`; it has `sft`"),
        (of("[{split: sft, path: {}}]"), "`data_files` has neither patterns nor `split` and `path`"),
        (of("[[a.jsonl]]\n  config_name: [b]"), "`config_name` is no text"),
        ("configs: a\n".into(), "`configs` is no list"),
        ("configs: [a]\n".into(), "an entry of `configs` is no table"),
        ("- a\n".into(), "its head is no table of YAML"),
        ("a: [1\n".into(), "line "),
        (deep, "its head is nested too deeply"),
        (of("[&x a.jsonl, *x]"), "`data_files` has neither patterns nor `split` and `path`"),
    ] {
        let dir = directory(&head, &["a.jsonl", "train.jsonl"]);
        let found = refused(dir.path(), &Choice::default());
        assert!(found.starts_with(&format!("DIR/README.md: {problem}")), "{head}: {found}");
    }
    let dir = directory(&of("a.jsonl"), &["a.jsonl"]);
    assert_eq!(refused(dir.path(), &config("b")), "DIR/README.md: no configuration `b`; it has `a`");
}

#[test]
fn a_readme_that_is_no_card_changes_nothing() {
    for text in [
        "# Data\n",
        "---\nlicense: mit\n---\n",
        "---\nconfigs:\n",
        "---\nconfigs: ~\n---\n",
        "---\n---\n",
        "\u{feff}---\r\nlicense: mit\r\n---\r\n",
    ] {
        let dir = directory("", &["train.jsonl"]);
        std::fs::write(dir.path().join("README.md"), text).expect("written");
        let files = Files::of(dir.path(), &Choice::default()).expect("by its names");
        assert_eq!(
            (relative(dir.path(), &files.train), files.card),
            (vec!["train.jsonl".to_owned()], None),
            "{text:?}"
        );
    }
}

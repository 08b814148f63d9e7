//! Data sets as the hub has them, written by pyarrow (`oracles/parquet_prompts.py`), read beside the same rows as JSON lines.

use std::path::{Path, PathBuf};

use stillroom_corpus::CorpusError;
use stillroom_corpus::prompts::{Choice, DataSet, Files, Item, Rows, for_each};
use stillroom_corpus::sources::Origin;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/hub").join(name)
}

fn rows(path: &Path) -> Vec<Item> {
    Rows::open(path).expect("a data file").collect::<Result<_, _>>().expect("good rows")
}

/// The items of a data set in the order of its files, whatever part each is in.
fn all(path: &Path) -> Vec<Item> {
    let mut items = Vec::new();
    for_each(&Files::of(path, &Choice::default()).expect("files"), &mut |_, _, _| true, |_, item| {
        items.push(item);
        Ok::<(), CorpusError>(())
    })
    .expect("a data set");
    items
}

#[test]
fn a_data_set_of_the_hub_is_its_rows_as_json_lines() {
    for name in ["chat", "math"] {
        assert_eq!(all(&golden(name)), rows(&golden(&format!("{name}.jsonl"))), "{name}");
    }
    for packed in ["rows.jsonl.zst", "rows.jsonl.gz"] {
        assert_eq!(rows(&golden(packed)), rows(&golden("chat.jsonl")), "{packed}");
    }
    let data = DataSet::open(&golden("chat")).expect("a data set");
    assert_eq!((data.train.len() + data.validation.len(), data.held_out.len()), (9, 3), "`test` is held out");
    let files = Files::of(&golden("chat"), &Choice::default()).expect("files");
    assert_eq!((files.train.len(), files.validation.len(), files.held_out.len()), (2, 0, 1));
}

#[test]
fn a_field_that_is_asked_for_is_read_as_the_class() {
    let classes = |path: &Path, field: Option<&str>| {
        let files = Files::of(path, &Choice::default()).expect("files");
        let files = Files { class_field: field.map(str::to_owned), ..files };
        let mut classes = Vec::new();
        let mut allowed = |_: &Item, origin: &Origin, _: &str| {
            classes.push(origin.class.clone());
            true
        };
        for_each(&files, &mut allowed, |_, _| Ok::<(), CorpusError>(())).expect("a data set");
        classes
    };
    let licences = [None, Some("MIT".to_owned())];
    let expected: Vec<_> = licences.into_iter().cycle().take(12).collect();
    for path in ["chat", "chat.jsonl", "rows.jsonl.gz"] {
        assert_eq!(classes(&golden(path), Some("licence")), expected, "{path}");
        assert_eq!(classes(&golden(path), None), vec![None; 12], "{path}");
    }
    let numbers: Vec<_> = (0..8).map(|i| Some(i.to_string())).collect();
    assert_eq!(classes(&golden("math"), Some("id")), numbers);
    let vectors = vec![Some("[0.5,0.5,0.5,0.5]".to_owned()); 8];
    assert_eq!(
        classes(&golden("math"), Some("embedding")),
        vectors,
        "a column that is read for nothing else"
    );
}

#[test]
fn a_damaged_table_is_an_error_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a folder");
    let whole = std::fs::read(golden("chat/data/train-00000-of-00002.parquet")).expect("a file");
    let path = dir.path().join("train.parquet");
    let mut refused = 0;
    for at in (0..whole.len()).step_by(7) {
        for damaged in [&whole[..at], &[&whole[..at], &[whole[at] ^ 0x5a], &whole[at + 1..]].concat()[..]] {
            std::fs::write(&path, damaged).expect("written");
            let read = Rows::open(&path).and_then(Iterator::collect::<Result<Vec<Item>, _>>);
            refused += u32::from(read.is_err());
        }
    }
    assert!(refused as usize > whole.len() / 7, "what is cut off is refused");
    std::fs::write(&path, "no table").expect("written");
    let error = Rows::open(&path).err().expect("no table");
    assert!(matches!(error, CorpusError::BadTable { .. }), "{error}");
}

#[test]
fn damaged_and_cut_off_packings_are_errors() {
    let dir = tempfile::tempdir().expect("a folder");
    for name in ["rows.jsonl.zst", "rows.jsonl.gz"] {
        let (whole, path) = (std::fs::read(golden(name)).expect("a file"), dir.path().join(name));
        let expected = rows(&golden(name));
        let read = |bytes: &[u8]| -> Result<Vec<Item>, CorpusError> {
            std::fs::write(&path, bytes).expect("written");
            Rows::open(&path)?.collect()
        };
        for at in 0..whole.len() {
            match read(&whole[..at]) {
                Ok(items) => assert!(at == 0 && items.is_empty(), "{name}, cut at {at}"),
                // Where one of two files behind one another ends, a line is cut.
                Err(CorpusError::Io { .. } | CorpusError::BadRow { .. }) => {}
                Err(other) => panic!("{name}, cut at {at}: {other}"),
            }
            let damaged = read(&[&whole[..at], &[whole[at] ^ 0x5a], &whole[at + 1..]].concat());
            // Gzip has checksums, and beside them a time and the like; this file of Zstandard has none.
            let as_before = damaged.as_ref().map_or(true, |items| *items == expected);
            assert!(name.ends_with(".zst") || as_before, "{name}, damaged at {at}");
        }
    }
}

#[test]
fn a_small_file_that_unpacks_to_much_is_refused_by_its_line() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("bomb.jsonl.gz");
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..256 {
        std::io::Write::write_all(&mut packed, &[b'0'; 1 << 20]).expect("in memory");
    }
    let packed = packed.finish().expect("in memory");
    assert!(packed.len() < 1 << 20, "256 MiB in {} bytes", packed.len());
    std::fs::write(&path, packed).expect("written");
    let error = Rows::open(&path).expect("opens").next().expect("a row").expect_err("too long");
    assert!(error.to_string().ends_with("bomb.jsonl.gz:1: line longer than 4194304 bytes"), "{error}");
}

#[test]
fn ids_of_all_shards_differ() {
    let dir = tempfile::tempdir().expect("a folder");
    for i in 0..2 {
        let name = format!("train-0000{i}-of-00002.jsonl");
        std::fs::write(dir.path().join(name), "{\"id\": \"a\", \"prompt\": \"x\"}\n").expect("written");
    }
    let error = DataSet::open(dir.path()).expect_err("the same id twice");
    assert!(error.to_string().ends_with("id `a` was already used in line 1"), "{error}");
}

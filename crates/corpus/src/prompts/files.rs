//! Which files a data set has, and for which part.

use std::path::{Path, PathBuf};

use crate::{CorpusError, Split};

/// What the files of each part may be called, without their endings; the first name that there is counts.
const NAMES: [(Split, &[&str]); 3] = [
    (Split::Train, &["train"]),
    (Split::Validation, &["validation", "valid", "dev"]),
    (Split::HeldOut, &["test", "held_out", "heldout"]),
];
const ENDINGS: [&str; 10] = [
    ".jsonl",
    ".jsonl.zst",
    ".jsonl.gz",
    ".ndjson",
    ".ndjson.zst",
    ".ndjson.gz",
    ".parquet",
    ".txt",
    ".txt.zst",
    ".txt.gz",
];
/// Most files of one part.
const FILES_MAX: usize = 65_536;

/// The files of a data set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    pub train: Vec<PathBuf>,
    /// Where there are none, and the same below, the content's hash parts the training files.
    pub validation: Vec<PathBuf>,
    pub held_out: Vec<PathBuf>,
}

impl Files {
    /// A file is a data set by itself. In a directory, or in its `data/`, a part is `train.jsonl`, or `train.parquet`, or the
    /// shards `train-00000-of-00002.parquet` and so on, as the Hugging Face hub has them. `train.jsonl` itself comes before
    /// all others.
    ///
    /// # Errors
    /// Where a directory has no such file.
    pub fn of(path: &Path) -> Result<Files, CorpusError> {
        if !path.is_dir() {
            return Ok(Files { train: vec![path.into()], ..Files::default() });
        }
        for dir in [path.to_path_buf(), path.join("data")] {
            let files = Files::within(&dir)?;
            if !files.train.is_empty() {
                return Ok(files);
            }
        }
        let problem = "neither `train.jsonl` nor `train-00000-of-….parquet` in this directory or its `data`";
        Err(CorpusError::BadDataSet { path: path.into(), problem })
    }

    fn within(dir: &Path) -> Result<Files, CorpusError> {
        let Ok(entries) = std::fs::read_dir(dir) else { return Ok(Files::default()) };
        let mut found: Vec<PathBuf> = Vec::new();
        for entry in entries {
            let path = entry.map_err(|source| CorpusError::Io { path: dir.into(), source })?.path();
            if path.is_file() {
                found.push(path);
            }
        }
        found.sort();
        let mut files = Files::default();
        for (split, names) in NAMES {
            let part =
                names.iter().map(|name| part(&found, name)).find(|part| !part.is_empty()).unwrap_or_default();
            if part.len() > FILES_MAX {
                return Err(CorpusError::BadDataSet { path: dir.into(), problem: "too many files" });
            }
            match split {
                Split::Train => files.train = part,
                Split::Validation => files.validation = part,
                Split::HeldOut => files.held_out = part,
            }
        }
        Ok(files)
    }

    pub fn all(&self) -> impl Iterator<Item = &PathBuf> {
        self.train.iter().chain(&self.validation).chain(&self.held_out)
    }
}

/// The file of that name with the first ending that there is, or else its shards with that.
fn part(found: &[PathBuf], name: &str) -> Vec<PathBuf> {
    let named = |path: &&PathBuf, ending: &str| -> Option<String> {
        let file = path.file_name()?.to_str()?;
        Some(file.strip_suffix(ending)?.to_owned())
    };
    for ending in ENDINGS {
        if let Some(whole) = found.iter().find(|path| named(path, ending).as_deref() == Some(name)) {
            return vec![whole.clone()];
        }
    }
    for ending in ENDINGS {
        let is_shard = |path: &&PathBuf| named(path, ending).is_some_and(|file| is_shard(&file, name));
        let shards: Vec<PathBuf> = found.iter().filter(is_shard).cloned().collect();
        if !shards.is_empty() {
            return shards;
        }
    }
    Vec::new()
}

/// `train-00000-of-00002`, perhaps with a hash behind it.
fn is_shard(file: &str, name: &str) -> bool {
    let Some(rest) = file.strip_prefix(name).and_then(|rest| rest.strip_prefix('-')) else { return false };
    let Some((first, of)) = rest.split_once("-of-") else { return false };
    let digits = of.bytes().take_while(u8::is_ascii_digit).count();
    let numbered = !first.is_empty() && first.bytes().all(|b| b.is_ascii_digit()) && digits > 0;
    numbered && (digits == of.len() || of[digits..].starts_with('-'))
}

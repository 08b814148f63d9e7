//! Which files a data set has, and for which part.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::card::{self, Config};
use super::pattern;
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
/// Most files and directories that are looked through for a card's patterns, and how deep.
const LOOKED_THROUGH_MAX: usize = 1 << 20;
const DEPTH_MAX: usize = 32;
/// Of a name, in ids and in errors.
const NAME_CHARS_MAX: usize = 64;
/// Names that an error lists.
const LISTED_MAX: usize = 20;

/// What is chosen of a data set that has more than one would read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// One of the configurations in its card.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// What the data set calls its parts, where it does not use their names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub splits: BTreeMap<Split, String>,
}

/// The files of a data set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// The card that named them, if one did.
    pub card: Option<PathBuf>,
    /// The field of a row that is read as its class; none, unless somebody sets it.
    pub class_field: Option<String>,
    pub train: Vec<PathBuf>,
    /// Where there are none, and the same below, the content's hash parts the training files.
    pub validation: Vec<PathBuf>,
    pub held_out: Vec<PathBuf>,
}

impl Files {
    /// A file is a data set by itself. A directory whose `README.md` has `configs` is read as they say. In another, or in its
    /// `data/`, a part is `train.jsonl`, or `train.parquet`, or the shards `train-00000-of-00002.parquet` and so on, as the
    /// Hugging Face hub has them. `train.jsonl` itself comes before all others.
    ///
    /// # Errors
    /// Where a directory has no such file, a card cannot be followed, or there is no such choice.
    pub fn of(path: &Path, choice: &Choice) -> Result<Files, CorpusError> {
        if !path.is_dir() {
            if *choice != Choice::default() {
                let problem = "a single file has neither configurations nor splits";
                return Err(CorpusError::BadDataSet { path: path.into(), problem });
            }
            return Ok(Files { train: vec![path.into()], ..Files::default() });
        }
        let configs = card::configs(path)?;
        let bad = |problem| CorpusError::BadCard { path: card::path(path), problem };
        let mut files = match chosen(&configs, choice.config.as_deref()).map_err(bad)? {
            None => return Files::laid_out(path, choice),
            Some(config) => Files::of_config(path, config, choice).map_err(|problem| match problem {
                Problem::OfCard(problem) => {
                    bad(format!("configuration `{}`: {problem}", printable(&config.name)))
                }
                Problem::OfFiles(error) => error,
            })?,
        };
        files.card = Some(card::path(path));
        Ok(files)
    }

    /// By the names of files in the directory or its `data/`.
    fn laid_out(path: &Path, choice: &Choice) -> Result<Files, CorpusError> {
        for dir in [path.to_path_buf(), path.join("data")] {
            let files = Files::within(&dir, choice)?;
            if !files.train.is_empty() {
                return Ok(files);
            }
        }
        let problem = match choice.splits.is_empty() {
            true => "neither `train.jsonl` nor `train-00000-of-….parquet` in this directory or its `data`",
            false => "no files of that split in this directory or its `data`",
        };
        Err(CorpusError::BadDataSet { path: path.into(), problem })
    }

    fn of_config(path: &Path, config: &Config, choice: &Choice) -> Result<Files, Problem> {
        let base = match &config.data_dir {
            None => path.to_path_buf(),
            Some(dir) => path.join(inside(dir)?),
        };
        if config.splits.is_empty() {
            return Ok(Files::laid_out(&base, choice)?);
        }
        let found = look_through(&base)?;
        let mut files = Files::default();
        for (split, names) in NAMES {
            let own = choice.splits.get(&split).map(String::as_str);
            let names = own.as_ref().map_or(names, std::slice::from_ref);
            let named = |name: &&str| config.splits.iter().find(|(split, _)| split == name);
            let Some((name, patterns)) = names.iter().find_map(named) else {
                if own.is_some() || split == Split::Train {
                    let known = listed(config.splits.iter().map(|(name, _)| name));
                    return Err(Problem::OfCard(format!(
                        "no split `{}`; it has {known}",
                        printable(names[0])
                    )));
                }
                continue;
            };
            let part = by_patterns(&base, &found, patterns)?;
            if part.is_empty() {
                return Err(Problem::OfCard(format!("no file of split `{}` is here", printable(name))));
            }
            *files.part_mut(split) = part;
        }
        Ok(files)
    }

    fn within(dir: &Path, choice: &Choice) -> Result<Files, CorpusError> {
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
            let own = choice.splits.get(&split).map(String::as_str);
            let names = own.as_ref().map_or(names, std::slice::from_ref);
            let part =
                names.iter().map(|name| part(&found, name)).find(|part| !part.is_empty()).unwrap_or_default();
            if part.len() > FILES_MAX {
                return Err(CorpusError::BadDataSet { path: dir.into(), problem: "too many files" });
            }
            *files.part_mut(split) = part;
        }
        Ok(files)
    }

    pub fn part(&self, split: Split) -> &[PathBuf] {
        match split {
            Split::Train => &self.train,
            Split::Validation => &self.validation,
            Split::HeldOut => &self.held_out,
        }
    }

    fn part_mut(&mut self, split: Split) -> &mut Vec<PathBuf> {
        match split {
            Split::Train => &mut self.train,
            Split::Validation => &mut self.validation,
            Split::HeldOut => &mut self.held_out,
        }
    }

    /// What each file adds to the ids of rows that have none: its name without its endings, with its directory's where files of
    /// the data set have one name.
    pub(super) fn stems(&self) -> HashMap<&Path, String> {
        let mut of_name: HashMap<String, u32> = HashMap::new();
        for path in self.all() {
            *of_name.entry(stem(path)).or_default() += 1;
        }
        let named = self.all().map(|path| {
            let (stem, dir) = (stem(path), path.parent().and_then(Path::file_name));
            let with_dir = || {
                format!("{}-{stem}", dir.map_or_else(String::new, |dir| printable(&dir.to_string_lossy())))
            };
            (path.as_path(), if of_name[&stem] > 1 { with_dir() } else { stem.clone() })
        });
        named.collect()
    }

    /// The files with rows, training's first.
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

/// Why a configuration cannot be read.
enum Problem {
    OfCard(String),
    OfFiles(CorpusError),
}

impl From<String> for Problem {
    fn from(problem: String) -> Problem {
        Problem::OfCard(problem)
    }
}

impl From<CorpusError> for Problem {
    fn from(error: CorpusError) -> Problem {
        Problem::OfFiles(error)
    }
}

/// The configuration to read: the one that is wanted, or else the default.
fn chosen<'a>(configs: &'a [Config], wanted: Option<&str>) -> Result<Option<&'a Config>, String> {
    let named = |name: &str| configs.iter().find(|config| config.name == name);
    let known = || listed(configs.iter().map(|config| &config.name));
    match (wanted, configs) {
        (None, []) => Ok(None),
        (Some(_), []) => Err("there is no card here with `configs`".into()),
        (Some(name), _) => match named(name) {
            Some(config) => Ok(Some(config)),
            None => Err(format!("no configuration `{}`; it has {}", printable(name), known())),
        },
        (None, [only]) => Ok(Some(only)),
        (None, _) => match configs.iter().find(|config| config.is_default).or_else(|| named("default")) {
            Some(config) => Ok(Some(config)),
            None => Err(format!("it has several configurations, and none is the default: {}", known())),
        },
    }
}

/// A path of a card, if it stays within the data set.
fn inside(path: &str) -> Result<&str, String> {
    let leaves = path.starts_with('/')
        || path.contains("://")
        || path.contains('\\')
        || path.split('/').any(|part| part == "..");
    if leaves {
        Err(format!("`{}` is not within the data set's directory", printable(path)))
    } else {
        Ok(path)
    }
}

/// Paths of all files below a directory, from it and with `/`, sorted. Links to directories are not followed.
fn look_through(base: &Path) -> Result<Vec<String>, CorpusError> {
    let (mut found, mut n_seen) = (Vec::new(), 0);
    let mut open = vec![(base.to_path_buf(), String::new(), 0)];
    while let Some((dir, prefix, depth)) = open.pop() {
        let io = |source| CorpusError::Io { path: dir.clone(), source };
        for entry in std::fs::read_dir(&dir).map_err(io)? {
            let entry = entry.map_err(io)?;
            n_seen += 1;
            if n_seen > LOOKED_THROUGH_MAX || depth > DEPTH_MAX {
                return Err(CorpusError::BadDataSet {
                    path: base.into(),
                    problem: "too many files, or too deep",
                });
            }
            // What has no name in Unicode is named by no card.
            let Ok(name) = entry.file_name().into_string() else { continue };
            if entry.file_type().map_err(io)?.is_dir() {
                open.push((entry.path(), format!("{prefix}{name}/"), depth + 1));
            } else {
                found.push(format!("{prefix}{name}"));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The files that match, in the patterns' order and within one by name; each once.
fn by_patterns(base: &Path, found: &[String], patterns: &[String]) -> Result<Vec<PathBuf>, Problem> {
    let (mut part, mut taken) = (Vec::new(), HashSet::new());
    for wanted in patterns {
        inside(wanted)?;
        let before = part.len();
        for path in found.iter().filter(|path| pattern::matches(wanted, path)) {
            if taken.insert(path) && base.join(path).is_file() {
                part.push(base.join(path));
            }
        }
        if part.len() == before
            && pattern::is_plain(wanted)
            && !found.iter().any(|path| pattern::matches(wanted, path))
        {
            return Err(Problem::OfCard(format!("there is no file `{}`", printable(wanted))));
        }
        if part.len() > FILES_MAX {
            return Err(Problem::OfFiles(CorpusError::BadDataSet {
                path: base.into(),
                problem: "too many files",
            }));
        }
    }
    Ok(part)
}

/// A file's name without what says how it is written.
pub(super) fn stem(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let inner = [".zst", ".gz"].iter().find_map(|packed| name.strip_suffix(packed)).unwrap_or(&name);
    printable(inner.rsplit_once('.').map_or(inner, |(stem, _)| stem))
}

/// File names are foreign text too: what an id may not hold is replaced.
fn printable(name: &str) -> String {
    name.chars().take(NAME_CHARS_MAX).map(|c| if c.is_control() { '_' } else { c }).collect()
}

fn listed<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let mut names: Vec<String> = names.map(|name| format!("`{}`", printable(name))).collect();
    let more = names.len().saturating_sub(LISTED_MAX);
    names.truncate(LISTED_MAX);
    match more {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

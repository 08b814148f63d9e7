//! Prompts and texts from files: what is in a row, and which part of the data it belongs to.

mod read;
mod row;

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use stillroom_core::{Message, Prompt};

use crate::sources::Origin;
use crate::{CorpusError, Split};
pub use read::{DOCUMENT_BYTES, LINE_BYTES_MAX, ROWS_MAX, Rows};
pub use row::ID_BYTES_MAX;

/// One row of a data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A question to be answered.
    Prompt(Prompt),
    /// A text to be continued token by token.
    Text { id: String, text: String },
}

impl Item {
    pub fn id(&self) -> &str {
        match self {
            Item::Prompt(prompt) => &prompt.id,
            Item::Text { id, .. } => id,
        }
    }

    pub fn as_prompt(&self) -> Option<&Prompt> {
        match self {
            Item::Prompt(prompt) => Some(prompt),
            Item::Text { .. } => None,
        }
    }

    /// What a model reads before it answers, or the text: lower case, white space as single spaces.
    /// Items that differ in nothing else are the same item.
    pub fn content_key(&self) -> String {
        match self {
            Item::Prompt(prompt) => content_key(prompt.messages.iter().flat_map(words)),
            Item::Text { text, .. } => content_key([text.as_str()]),
        }
    }
}

/// What a turn adds to a conversation: its content, and the tools that it offers and calls.
fn words(message: &Message) -> Vec<Cow<'_, str>> {
    let json = message.tools.iter().chain(&message.tool_calls).map(|value| Cow::Owned(value.to_string()));
    std::iter::once(Cow::Borrowed(message.content.as_str())).chain(json).collect()
}

fn content_key(texts: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let mut key = String::new();
    for text in texts {
        for word in text.as_ref().split_whitespace() {
            if !key.is_empty() {
                key.push(' ');
            }
            key.extend(word.chars().flat_map(char::to_lowercase));
        }
    }
    key
}

/// A data set in its three parts, each in the order of its file.
///
/// From one file, or from a directory's `train.jsonl` without companions, items are parted by the
/// hash of their content ([`Split::of`] on [`Item::content_key`]), so that equal items are never
/// parted and nothing moves when the file grows. A companion file is its part: `test.jsonl` (or
/// `held_out.jsonl`, `heldout.jsonl`) is held out, `validation.jsonl` (or `valid.jsonl`,
/// `dev.jsonl`) is for validation; then the hash takes nothing from `train.jsonl` for that part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataSet {
    pub train: Vec<Item>,
    pub validation: Vec<Item>,
    pub held_out: Vec<Item>,
}

/// Whether a row may be used, by what it says of its source and its file's name.
pub type Allowed<'a> = dyn FnMut(&Item, &Origin, &str) -> bool + 'a;

const VALIDATION_FILES: [&str; 3] = ["validation.jsonl", "valid.jsonl", "dev.jsonl"];
const HELD_OUT_FILES: [&str; 3] = ["test.jsonl", "held_out.jsonl", "heldout.jsonl"];

impl DataSet {
    /// Reads a `.jsonl` or `.txt` file, or a directory of `.jsonl` files.
    ///
    /// # Errors
    /// Names the file and, for a bad row, its line. Parts that share an item are refused.
    pub fn open(path: &Path) -> Result<DataSet, CorpusError> {
        DataSet::open_allowed(path, &mut |_, _, _| true)
    }

    /// The same, without the rows that `allowed` says no to; it is told what a row says of its source, and its file's name.
    ///
    /// # Errors
    /// As [`DataSet::open`].
    pub fn open_allowed(path: &Path, allowed: &mut Allowed<'_>) -> Result<DataSet, CorpusError> {
        let mut data = DataSet::default();
        if path.is_dir() {
            let train = path.join("train.jsonl");
            if !train.is_file() {
                return Err(CorpusError::BadDataSet {
                    path: path.into(),
                    problem: "no `train.jsonl` in this directory",
                });
            }
            let validation = companion(path, &VALIDATION_FILES);
            let held_out = companion(path, &HELD_OUT_FILES);
            data.read_by_hash(&train, validation.is_none(), held_out.is_none(), allowed)?;
            for (file, split) in [(validation, Split::Validation), (held_out, Split::HeldOut)] {
                if let Some(file) = file {
                    read_allowed(&file, allowed, |item| data.part_mut(split).push(item))?;
                }
            }
        } else {
            data.read_by_hash(path, true, true, allowed)?;
        }
        data.check_disjoint()?;
        Ok(data)
    }

    fn read_by_hash(
        &mut self,
        path: &Path,
        validation: bool,
        held_out: bool,
        allowed: &mut Allowed<'_>,
    ) -> Result<(), CorpusError> {
        read_allowed(path, allowed, |item| {
            let split = match Split::of(&item.content_key()) {
                Split::Validation if validation => Split::Validation,
                Split::HeldOut if held_out => Split::HeldOut,
                _ => Split::Train,
            };
            self.part_mut(split).push(item);
        })
    }

    pub fn part(&self, split: Split) -> &[Item] {
        match split {
            Split::Train => &self.train,
            Split::Validation => &self.validation,
            Split::HeldOut => &self.held_out,
        }
    }

    fn part_mut(&mut self, split: Split) -> &mut Vec<Item> {
        match split {
            Split::Train => &mut self.train,
            Split::Validation => &mut self.validation,
            Split::HeldOut => &mut self.held_out,
        }
    }

    /// Checks that no id and no content is in two parts.
    ///
    /// # Errors
    /// Names the first item that is.
    pub fn check_disjoint(&self) -> Result<(), CorpusError> {
        let mut contents: HashMap<String, Split> = HashMap::new();
        let mut ids: HashMap<&str, Split> = HashMap::new();
        for second in Split::ALL {
            for item in self.part(second) {
                let places = [
                    *contents.entry(item.content_key()).or_insert(second),
                    *ids.entry(item.id()).or_insert(second),
                ];
                if let Some(&first) = places.iter().find(|&&place| place != second) {
                    return Err(CorpusError::SplitsOverlap { id: item.id().into(), first, second });
                }
            }
        }
        Ok(())
    }
}

/// The rows of one file, without those that `allowed` says no to.
///
/// # Errors
/// Names the file and, for a bad row, its line.
pub fn allowed_rows(path: &Path, allowed: &mut Allowed<'_>) -> Result<Vec<Item>, CorpusError> {
    let mut items = Vec::new();
    read_allowed(path, allowed, |item| items.push(item))?;
    Ok(items)
}

fn read_allowed(
    path: &Path,
    allowed: &mut Allowed<'_>,
    mut keep: impl FnMut(Item),
) -> Result<(), CorpusError> {
    let file = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let mut rows = Rows::open(path)?;
    while let Some(item) = rows.next() {
        let item = item?;
        if allowed(&item, rows.origin(), &file) {
            keep(item);
        }
    }
    Ok(())
}

fn companion(dir: &Path, names: &[&str]) -> Option<PathBuf> {
    names.iter().map(|name| dir.join(name)).find(|path| path.is_file())
}

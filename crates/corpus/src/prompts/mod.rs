//! Prompts and texts from files: what is in a row, and which part of the data it belongs to.

mod card;
mod files;
mod pattern;
mod read;
mod row;

use std::borrow::Cow;
use std::path::Path;

use stillroom_core::{Digest, Message, Prompt};

use crate::sources::Origin;
use crate::{CorpusError, Split};
pub use files::{Choice, Files};
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

/// A data set in its three parts, each in the order of its files; see [`for_each`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataSet {
    pub train: Vec<Item>,
    pub validation: Vec<Item>,
    pub held_out: Vec<Item>,
}

/// Whether a row may be used, by what it says of its source and its file's name.
pub type Allowed<'a> = dyn FnMut(&Item, &Origin, &str) -> bool + 'a;

impl DataSet {
    /// Reads a data set as a whole; see [`Files::of`] for what that may be.
    ///
    /// # Errors
    /// As [`for_each`].
    pub fn open(path: &Path) -> Result<DataSet, CorpusError> {
        let mut data = DataSet::default();
        for_each(&Files::of(path, &Choice::default())?, &mut |_, _, _| true, |split, item| {
            data.part_mut(split).push(item);
            Ok::<(), CorpusError>(())
        })?;
        Ok(data)
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
}

/// Goes through a data set item by item: its training files, then those of validation, then what is held out. Items that
/// `allowed` says no to are passed over; it is told what a row says of its source, and its file's name.
///
/// Training files without companions are parted by the hash of their items' content ([`Split::of`] on
/// [`Item::content_key`]), so that equal items are never parted and nothing moves when a file grows. A companion file is
/// its part: `test.jsonl` (or `held_out.jsonl`, `heldout.jsonl`) is held out, `validation.jsonl` (or `valid.jsonl`,
/// `dev.jsonl`) is for validation; then the hash takes nothing from the training files for that part.
///
/// # Errors
/// Names the file and, for a bad row, its line. Parts that share an item or an id are refused. Passes on what `each` fails with.
pub fn for_each<E: From<CorpusError>>(
    files: &Files,
    allowed: &mut Allowed<'_>,
    mut each: impl FnMut(Split, Item) -> Result<(), E>,
) -> Result<(), E> {
    let (validation, held_out) = (files.validation.is_empty(), files.held_out.is_empty());
    // One file's ids differ, and equal contents have one hash.
    let mut seen = (!(validation && held_out)).then(Seen::default);
    rows_of(files, Split::Train, allowed, |item| {
        let content = Digest::of(item.content_key().as_bytes());
        let split = match Split::of_digest(&content) {
            Split::Validation if validation => Split::Validation,
            Split::HeldOut if held_out => Split::HeldOut,
            _ => Split::Train,
        };
        seen.iter_mut().for_each(|seen| seen.remember(split, &content, item.id()));
        each(split, item)
    })?;
    for split in [Split::Validation, Split::HeldOut] {
        seen.iter_mut().for_each(Seen::sort);
        rows_of(files, split, allowed, |item| {
            let Some(seen) = &mut seen else { return each(split, item) };
            let content = Digest::of(item.content_key().as_bytes());
            if let Some(other) = seen.elsewhere(split, &content, item.id()) {
                let (id, first, second) = (item.id().into(), split.min(other), split.max(other));
                return Err(CorpusError::SplitsOverlap { id, first, second }.into());
            }
            seen.remember(split, &content, item.id());
            each(split, item)
        })?;
    }
    Ok(())
}

/// Goes through the items of a part's files as if they were one.
///
/// # Errors
/// Names the file and, for a bad row, its line; passes on what `each` fails with.
pub fn rows_of<E: From<CorpusError>>(
    files: &Files,
    split: Split,
    allowed: &mut Allowed<'_>,
    mut each: impl FnMut(Item) -> Result<(), E>,
) -> Result<(), E> {
    let (mut ids, mut stems) = (read::Ids::default(), files.stems());
    for path in files.part(split) {
        let file = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let stem = stems.remove(path.as_path()).unwrap_or_default();
        let mut rows = Rows::open_after(path, stem, ids, files.class_field.as_deref())?;
        while let Some(item) = rows.next() {
            let item = item?;
            if allowed(&item, rows.origin(), &file) {
                each(item)?;
            }
        }
        ids = rows.into_ids();
    }
    Ok(())
}

/// Digests of the contents and ids of each part: 128 bits, 32 bytes an item.
#[derive(Default)]
struct Seen {
    contents: [Vec<u128>; 3],
    ids: [Vec<u128>; 3],
}

impl Seen {
    fn remember(&mut self, split: Split, content: &Digest, id: &str) {
        self.contents[split as usize].push(half(content));
        self.ids[split as usize].push(half(&Digest::of(id.as_bytes())));
    }

    fn sort(&mut self) {
        self.contents.iter_mut().chain(&mut self.ids).for_each(|part| part.sort_unstable());
    }

    /// Another part, sorted since, that has this content or id.
    fn elsewhere(&self, split: Split, content: &Digest, id: &str) -> Option<Split> {
        let (content, id) = (half(content), half(&Digest::of(id.as_bytes())));
        Split::ALL.into_iter().filter(|other| *other != split).find(|&other| {
            let has = |part: &[Vec<u128>; 3], digest| part[other as usize].binary_search(&digest).is_ok();
            has(&self.contents, content) || has(&self.ids, id)
        })
    }
}

fn half(digest: &Digest) -> u128 {
    u128::from_le_bytes(digest.as_bytes()[..16].try_into().expect("a digest has 32 bytes"))
}

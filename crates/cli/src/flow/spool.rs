//! Rows on their way through the stage `prompts`: on disk, as they will be written, with sixteen bytes of each in memory.
//!
//! So the stage takes as much memory for a million rows as their order does, whatever is in them.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use stillroom_core::Prompt;
use stillroom_corpus::prompts::Item;

use super::data::Document;
use crate::failure::{Exit, Failure, Result};

/// Where a row lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Note {
    offset: u64,
    length: u32,
    pub(super) is_text: bool,
}

/// A prompt with its row's class, where one was asked for.
#[derive(Serialize)]
struct Classed {
    #[serde(flatten)]
    prompt: Prompt,
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<String>,
}

/// A file of rows that nobody else sees: it has no name once it is open.
pub(super) struct Spool {
    path: PathBuf,
    file: BufWriter<File>,
    end: u64,
}

impl Spool {
    /// # Errors
    /// Where the folder cannot be written to.
    pub(super) fn create(folder: &Path) -> Result<Spool> {
        let path = folder.join(format!(".rows.{}", std::process::id()));
        let failed = |e| Failure::io("create", &path, &e);
        let file =
            File::options().read(true).write(true).create(true).truncate(true).open(&path).map_err(failed)?;
        // What is killed leaves nothing behind.
        std::fs::remove_file(&path).map_err(failed)?;
        Ok(Spool { path, file: BufWriter::with_capacity(1 << 16, file), end: 0 })
    }

    fn failed(&self, error: &std::io::Error) -> Failure {
        Failure::io("write and read", &self.path, error)
    }

    pub(super) fn push(&mut self, item: Item, class: Option<String>) -> Result<Note> {
        let is_text = matches!(item, Item::Text { .. });
        let json = match item {
            Item::Prompt(prompt) => serde_json::to_vec(&Classed { prompt, class }),
            Item::Text { id, text } => serde_json::to_vec(&Document { id, text }),
        };
        let json =
            json.map_err(|e| Failure::new(Exit::Failed, format!("a row cannot be written as JSON: {e}")))?;
        self.file.write_all(&json).map_err(|e| self.failed(&e))?;
        let length = u32::try_from(json.len()).expect("a row has some MiB at most");
        let note = Note { offset: self.end, length, is_text };
        self.end += json.len() as u64;
        Ok(note)
    }

    /// The row as it was written.
    pub(super) fn bytes(&mut self, note: Note) -> Result<Vec<u8>> {
        let mut bytes = vec![0; note.length as usize];
        // Seeking writes out what is still held.
        let read = self
            .file
            .seek(SeekFrom::Start(note.offset))
            .and_then(|_| self.file.get_mut().read_exact(&mut bytes));
        read.map_err(|e| self.failed(&e))?;
        Ok(bytes)
    }

    pub(super) fn item(&mut self, note: Note) -> Result<Item> {
        let bytes = self.bytes(note)?;
        let item = match note.is_text {
            true => serde_json::from_slice(&bytes).map(|Document { id, text }| Item::Text { id, text }),
            false => serde_json::from_slice::<Prompt>(&bytes).map(Item::Prompt),
        };
        item.map_err(|e| Failure::new(Exit::Failed, format!("a row cannot be read again: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use stillroom_core::{Message, Role};

    use super::*;

    #[test]
    fn rows_come_back_as_they_were_in_any_order() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut spool = Spool::create(dir.path()).expect("a spool");
        let item = |i: usize| match i % 2 {
            0 => Item::Text { id: i.to_string(), text: "\u{1}é\n".repeat(i) },
            _ => Item::Prompt(Prompt {
                id: i.to_string(),
                messages: vec![Message::new(Role::User, "x".repeat(i * 100))],
                answer: None,
                target: None,
            }),
        };
        let notes: Vec<Note> = (0..100)
            .map(|i| spool.push(item(i), Some("c".into()).filter(|_| i % 3 == 0)).expect("written"))
            .collect();
        for i in (0..100).rev() {
            assert_eq!(spool.item(notes[i]).expect("read"), item(i));
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 0, "it has no name");
    }
}

//! Reads a data file line by line, whatever its size.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::{Item, row};
use crate::CorpusError;
use crate::error::RowProblem;
use crate::sources::Origin;

/// Longest line that is read.
pub const LINE_BYTES_MAX: usize = 4 << 20;
/// Most rows of one file.
pub const ROWS_MAX: u64 = 10_000_000;
/// A plain text is cut into documents at the first empty line after this many bytes.
pub const DOCUMENT_BYTES: usize = 2048;

/// The rows of one `.jsonl` or `.txt` file, in order; after an error nothing follows.
pub struct Rows {
    path: PathBuf,
    /// Name of the file without its ending; part of the ids of rows that have none.
    stem: String,
    lines: Lines,
    plain: bool,
    ids: HashMap<String, u64>,
    origin: Origin,
    done: bool,
}

impl Rows {
    /// Opens a file; its ending says what it holds.
    ///
    /// # Errors
    /// Where the file cannot be opened or its ending is neither `.jsonl` nor `.txt`.
    pub fn open(path: &Path) -> Result<Rows, CorpusError> {
        let plain = match path.extension().and_then(|ending| ending.to_str()) {
            Some("jsonl" | "ndjson") => false,
            Some("txt") => true,
            _ => {
                return Err(CorpusError::BadDataSet {
                    path: path.into(),
                    problem: "neither `.jsonl` nor `.txt`",
                });
            }
        };
        let io = |source| CorpusError::Io { path: path.into(), source };
        let file = File::open(path).map_err(io)?;
        let stem: String = path.file_stem().map(|stem| stem.to_string_lossy()).unwrap_or_default().into();
        // File names are foreign text too: what an id may not hold is replaced.
        let stem = stem.chars().take(64).map(|c| if c.is_control() { '_' } else { c }).collect();
        let lines = Lines { reader: BufReader::new(Box::new(file)), line: 0 };
        Ok(Rows {
            path: path.into(),
            stem,
            lines,
            plain,
            ids: HashMap::new(),
            origin: Origin::default(),
            done: false,
        })
    }

    /// What the row that was read last says of its source.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    fn next_row(&mut self) -> Result<Option<Item>, Failure> {
        while let Some(line) = self.lines.next_line()? {
            if line.trim().is_empty() {
                continue;
            }
            let number = self.lines.line;
            let (item, origin) = row::read(&line, || format!("{}-{number:06}", self.stem))?;
            self.origin = origin;
            self.remember(item.id(), number)?;
            return Ok(Some(item));
        }
        Ok(None)
    }

    /// Paragraphs up to about [`DOCUMENT_BYTES`], and further to the paragraph's end.
    fn next_document(&mut self) -> Result<Option<Item>, Failure> {
        let mut text = String::new();
        let mut first_line = 0;
        while let Some(line) = self.lines.next_line()? {
            let blank = line.trim().is_empty();
            if text.is_empty() && !blank {
                first_line = self.lines.line;
            }
            if !(text.is_empty() && blank) {
                text.push_str(&line);
                text.push('\n');
            }
            if (blank && text.len() >= DOCUMENT_BYTES) || text.len() >= LINE_BYTES_MAX {
                break;
            }
        }
        let text = text.trim_end().to_string();
        if text.is_empty() {
            return Ok(None);
        }
        let id = format!("{}-{first_line:06}", self.stem);
        self.remember(&id, first_line)?;
        Ok(Some(Item::Text { id, text }))
    }

    fn remember(&mut self, id: &str, line: u64) -> Result<(), RowProblem> {
        if self.ids.len() as u64 >= ROWS_MAX {
            return Err(RowProblem::TooManyRows { limit: ROWS_MAX });
        }
        match self.ids.insert(id.to_string(), line) {
            Some(first_line) => Err(RowProblem::DuplicateId { id: id.into(), first_line }),
            None => Ok(()),
        }
    }
}

impl Iterator for Rows {
    type Item = Result<Item, CorpusError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = if self.plain { self.next_document() } else { self.next_row() };
        self.done = !matches!(item, Ok(Some(_)));
        let path = || self.path.clone();
        match item {
            Ok(item) => item.map(Ok),
            Err(Failure::Io(source)) => Some(Err(CorpusError::Io { path: path(), source })),
            Err(Failure::Row(problem)) => {
                Some(Err(CorpusError::BadRow { path: path(), line: self.lines.line, problem }))
            }
        }
    }
}

enum Failure {
    Io(std::io::Error),
    Row(RowProblem),
}

impl From<RowProblem> for Failure {
    fn from(problem: RowProblem) -> Failure {
        Failure::Row(problem)
    }
}

struct Lines {
    reader: BufReader<Box<dyn Read + Send>>,
    /// Number of the line read last, from 1.
    line: u64,
}

impl Lines {
    /// The next line without its end; a byte order mark before the first is no part of it.
    fn next_line(&mut self) -> Result<Option<String>, Failure> {
        let mut bytes = Vec::new();
        let limit = LINE_BYTES_MAX as u64 + 2;
        let n = self.reader.by_ref().take(limit).read_until(b'\n', &mut bytes).map_err(Failure::Io)?;
        if n == 0 {
            return Ok(None);
        }
        self.line += 1;
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
        if bytes.len() > LINE_BYTES_MAX {
            return Err(RowProblem::LineTooLong { limit: LINE_BYTES_MAX }.into());
        }
        let line = String::from_utf8(bytes)
            .map_err(|error| RowProblem::NotUtf8 { offset: error.utf8_error().valid_up_to() })?;
        match line.strip_prefix('\u{feff}') {
            Some(rest) if self.line == 1 => Ok(Some(rest.to_string())),
            _ => Ok(Some(line)),
        }
    }
}

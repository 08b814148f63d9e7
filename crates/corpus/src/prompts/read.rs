//! Reads a data file line by line, whatever its size.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use stillroom_core::Digest;
use stillroom_formats::FormatError;
use stillroom_formats::parquet_rows::ForeignRows;

use super::{Item, files, row};
use crate::CorpusError;
use crate::error::RowProblem;
use crate::sources::Origin;

/// Longest line that is read.
pub const LINE_BYTES_MAX: usize = 4 << 20;
/// Most rows of one file.
pub const ROWS_MAX: u64 = 10_000_000;
/// A plain text is cut into documents at the first empty line after this many bytes.
pub const DOCUMENT_BYTES: usize = 2048;

/// The rows of one file, in order; after an error nothing follows.
pub struct Rows {
    path: PathBuf,
    /// Part of the ids of rows that have none; see [`Files::stems`](super::Files).
    stem: String,
    of: Of,
    /// The row or line that was read last, from 1.
    number: u64,
    ids: Ids,
    class_field: Option<String>,
    origin: Origin,
    done: bool,
}

/// What a file holds.
enum Of {
    Json(Lines),
    Text(Lines),
    Table(ForeignRows),
}

/// The ids of rows that were read, with their lines. Of each id 64 bits are kept: among ten million, two that are different
/// are taken for the same in one of 370,000 files.
#[derive(Default)]
pub(super) struct Ids(HashMap<u64, u32>);

impl Rows {
    /// Opens a file; its ending says what it holds.
    ///
    /// # Errors
    /// Where the file cannot be opened or its ending is none of `.jsonl`, `.ndjson`, `.parquet` and `.txt`, all but `.parquet` perhaps with `.gz` or `.zst` behind it.
    pub fn open(path: &Path) -> Result<Rows, CorpusError> {
        Rows::open_after(path, files::stem(path), Ids::default(), None)
    }

    /// The same, with what begins the ids of rows that have none, ids that rows of other files have, and the field that says of
    /// which class a row is.
    pub(super) fn open_after(
        path: &Path,
        stem: String,
        ids: Ids,
        class_field: Option<&str>,
    ) -> Result<Rows, CorpusError> {
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let (inner, packing) = Packing::of(&name);
        let ending = inner.rsplit_once('.').map_or("", |(_, ending)| ending);
        let of = match ending {
            "jsonl" | "ndjson" => Of::Json(Lines::open(path, packing)?),
            "txt" => Of::Text(Lines::open(path, packing)?),
            "parquet" if inner == name => {
                let wanted: Vec<&str> = row::FIELDS.into_iter().chain(class_field).collect();
                let rows = ForeignRows::open(path, &wanted, LINE_BYTES_MAX);
                Of::Table(rows.map_err(|source| CorpusError::BadTable { path: path.into(), source })?)
            }
            _ => {
                return Err(CorpusError::BadDataSet {
                    path: path.into(),
                    problem: "none of `.jsonl`, `.jsonl.gz`, `.jsonl.zst`, `.parquet` and `.txt`",
                });
            }
        };
        let (class_field, origin) = (class_field.map(str::to_owned), Origin::default());
        Ok(Rows { path: path.into(), stem, of, number: 0, ids, class_field, origin, done: false })
    }

    pub(super) fn into_ids(self) -> Ids {
        self.ids
    }

    /// What the row that was read last says of its source.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    fn next_item(&mut self) -> Result<Option<Item>, Failure> {
        let class_field = self.class_field.as_deref();
        let read = match &mut self.of {
            Of::Json(lines) => next_row(lines, &self.stem, class_field),
            Of::Text(lines) => next_document(lines, &self.stem),
            Of::Table(rows) => match rows.next().transpose().map_err(Failure::Table)? {
                None => Ok(None),
                Some(fields) => {
                    let number = self.number + 1;
                    let id = || format!("{}-{number:06}", self.stem);
                    // The row is named by its number where it is bad.
                    self.number = number;
                    row::of_fields(fields, class_field, id)
                        .map(|(item, origin)| Some((item, origin, number)))
                        .map_err(Failure::Row)
                }
            },
        };
        if let Of::Json(lines) | Of::Text(lines) = &self.of {
            self.number = lines.line;
        }
        let Some((item, origin, number)) = read? else { return Ok(None) };
        self.origin = origin;
        self.remember(item.id(), number)?;
        Ok(Some(item))
    }

    fn remember(&mut self, id: &str, line: u64) -> Result<(), RowProblem> {
        if self.ids.0.len() as u64 >= ROWS_MAX {
            return Err(RowProblem::TooManyRows { limit: ROWS_MAX });
        }
        let digest = Digest::of(id.as_bytes());
        let head = digest.as_bytes()[..8].try_into().expect("a digest has 32 bytes");
        match self.ids.0.insert(u64::from_le_bytes(head), u32::try_from(line).unwrap_or(u32::MAX)) {
            Some(first_line) => Err(RowProblem::DuplicateId { id: id.into(), first_line: first_line.into() }),
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
        let item = self.next_item();
        self.done = !matches!(item, Ok(Some(_)));
        let path = || self.path.clone();
        match item {
            Ok(item) => item.map(Ok),
            Err(Failure::Io(source)) => Some(Err(CorpusError::Io { path: path(), source })),
            Err(Failure::Table(source)) => Some(Err(CorpusError::BadTable { path: path(), source })),
            Err(Failure::Row(problem)) => {
                Some(Err(CorpusError::BadRow { path: path(), line: self.number, problem }))
            }
        }
    }
}

/// An item, what it says of its source, and its line.
type Found = Result<Option<(Item, Origin, u64)>, Failure>;

fn next_row(lines: &mut Lines, stem: &str, class_field: Option<&str>) -> Found {
    while let Some(line) = lines.next_line()? {
        if line.trim().is_empty() {
            continue;
        }
        let number = lines.line;
        let (item, origin) = row::read(&line, class_field, || format!("{stem}-{number:06}"))?;
        return Ok(Some((item, origin, number)));
    }
    Ok(None)
}

/// Paragraphs up to about [`DOCUMENT_BYTES`], and further to the paragraph's end.
fn next_document(lines: &mut Lines, stem: &str) -> Found {
    let mut text = String::new();
    let mut first_line = 0;
    while let Some(line) = lines.next_line()? {
        let blank = line.trim().is_empty();
        if text.is_empty() && !blank {
            first_line = lines.line;
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
    let id = format!("{stem}-{first_line:06}");
    Ok(Some((Item::Text { id, text }, Origin::default(), first_line)))
}

enum Failure {
    Io(std::io::Error),
    Table(FormatError),
    Row(RowProblem),
}

impl From<RowProblem> for Failure {
    fn from(problem: RowProblem) -> Failure {
        Failure::Row(problem)
    }
}

/// How a file is packed. Both kinds are unpacked as they are read, in windows of a bounded size, so that what a small file
/// unpacks to takes no memory beyond its longest line.
#[derive(Clone, Copy)]
enum Packing {
    Plain,
    Zstd,
    Gzip,
}

impl Packing {
    /// A file's name without the ending that says how it is packed.
    fn of(name: &str) -> (&str, Packing) {
        let packed = [(".zst", Packing::Zstd), (".gz", Packing::Gzip)];
        let inner = |(ending, packing)| Some((name.strip_suffix(ending)?, packing));
        packed.into_iter().find_map(inner).unwrap_or((name, Packing::Plain))
    }
}

struct Lines {
    reader: BufReader<Box<dyn Read + Send>>,
    /// Number of the line read last, from 1.
    line: u64,
}

impl Lines {
    fn open(path: &Path, packing: Packing) -> Result<Lines, CorpusError> {
        let io = |source| CorpusError::Io { path: path.into(), source };
        let file = File::open(path).map_err(io)?;
        let reader: Box<dyn Read + Send> = match packing {
            Packing::Plain => Box::new(file),
            Packing::Zstd => Box::new(zstd::Decoder::new(file).map_err(io)?),
            // A file may be several that were put behind one another.
            Packing::Gzip => Box::new(MultiGzDecoder::new(BufReader::new(file))),
        };
        Ok(Lines { reader: BufReader::new(reader), line: 0 })
    }

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

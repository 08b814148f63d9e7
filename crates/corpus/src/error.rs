//! What can go wrong with prompts and traces.

use std::path::PathBuf;

use stillroom_core::ErrorKind;
use thiserror::Error;

use crate::Split;

#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CorpusError {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}", path = path.display())]
    BadTable { path: PathBuf, source: stillroom_formats::FormatError },
    #[error("{path}: {problem}", path = path.display())]
    BadDataSet { path: PathBuf, problem: &'static str },
    #[error("{path}: {problem}", path = path.display())]
    BadCard { path: PathBuf, problem: String },
    #[error("{path}:{line}: {problem}", path = path.display())]
    BadRow { path: PathBuf, line: u64, problem: RowProblem },
    #[error("`{id}` is in both {first} and {second}")]
    SplitsOverlap { id: String, first: Split, second: Split },
    #[error("trace {sample} of `{id}` belongs to no prompt")]
    UnknownPrompt { id: String, sample: u32 },
    #[error("with {n} of them, no {by} can have at most {share} of the traces")]
    Unbalanced { n: usize, by: &'static str, share: f64 },
}

/// What is wrong with one line of a data file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RowProblem {
    #[error("line longer than {limit} bytes")]
    LineTooLong { limit: usize },
    #[error("not UTF-8 from byte {offset} of the line")]
    NotUtf8 { offset: usize },
    #[error("not JSON: {0}")]
    NotJson(#[from] serde_json::Error),
    #[error("not a JSON object")]
    NotAnObject,
    #[error("not a message: {0}")]
    NotAMessage(serde_json::Error),
    #[error("none of `messages`, `prompt`, `question` with `answer`, or `text`")]
    UnknownShape,
    #[error("`{field}` is {problem}")]
    BadField { field: &'static str, problem: &'static str },
    #[error("id `{id}` was already used in line {first_line}")]
    DuplicateId { id: String, first_line: u64 },
    #[error("more than {limit} rows")]
    TooManyRows { limit: u64 },
}

impl CorpusError {
    /// What kind of failure this is, for the exit code.
    pub fn kind(&self) -> ErrorKind {
        match self {
            CorpusError::Io { .. } => ErrorKind::Io,
            CorpusError::BadDataSet { .. }
            | CorpusError::BadCard { .. }
            | CorpusError::BadTable { .. }
            | CorpusError::BadRow { .. }
            | CorpusError::SplitsOverlap { .. }
            | CorpusError::UnknownPrompt { .. }
            | CorpusError::Unbalanced { .. } => ErrorKind::BadData,
        }
    }

    /// What the user can do about it, where that is known.
    pub fn fix(&self) -> Option<String> {
        let fix = match self {
            CorpusError::Io { .. } => "check that the path exists and can be read",
            CorpusError::BadDataSet { .. } => {
                "name a `.jsonl`, `.jsonl.gz`, `.jsonl.zst`, `.parquet` or `.txt` file, or a directory with `train.jsonl` or `train-00000-of-00001.parquet` and, if there is one, the same of `test`"
            }
            CorpusError::BadCard { .. } => {
                "choose with `prompts.config` and `prompts.splits`, or fetch what is missing, or name a file or another directory"
            }
            CorpusError::BadTable { .. } => "fetch or write the file again",
            CorpusError::BadRow { problem, .. } => problem.fix(),
            CorpusError::SplitsOverlap { .. } => "remove the duplicate from one of the two",
            CorpusError::UnknownPrompt { .. } => {
                "curate the traces with the prompts that they were written for"
            }
            CorpusError::Unbalanced { .. } => "raise that share under `[curate]`, or remove it",
        };
        Some(fix.into())
    }
}

impl RowProblem {
    fn fix(&self) -> &'static str {
        match self {
            RowProblem::LineTooLong { .. } => "split the line, or write one JSON object per line",
            RowProblem::NotUtf8 { .. } => "convert the file to UTF-8",
            RowProblem::NotJson(_) | RowProblem::NotAnObject => "write one JSON object per line",
            RowProblem::NotAMessage(_) => r#"write messages like {"role": "user", "content": "…"}"#,
            RowProblem::UnknownShape => {
                r#"write rows like {"id": "1", "prompt": "…"}, {"messages": […]}, {"question": "…", "answer": "…"} or {"text": "…"}"#
            }
            RowProblem::BadField { .. } => "correct the field in that line",
            RowProblem::DuplicateId { .. } => "give every row an id of its own, or none",
            RowProblem::TooManyRows { .. } => "split the file",
        }
    }
}

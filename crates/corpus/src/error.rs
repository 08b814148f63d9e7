//! What can go wrong with prompts and traces.

use std::path::PathBuf;

use stillroom_core::ErrorKind;
use thiserror::Error;

use crate::Split;

#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CorpusError {
    #[error("`{id}` is in both {first} and {second}")]
    SplitsOverlap { id: String, first: Split, second: Split },
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

impl CorpusError {
    /// What kind of failure this is, for the exit code.
    pub fn kind(&self) -> ErrorKind {
        match self {
            CorpusError::SplitsOverlap { .. } => ErrorKind::BadData,
            CorpusError::Io { .. } => ErrorKind::Io,
        }
    }

    /// What the user can do about it, where that is known.
    pub fn fix(&self) -> Option<String> {
        match self {
            CorpusError::SplitsOverlap { .. } => Some("remove the duplicate from one of the files".into()),
            CorpusError::Io { .. } => Some("check that the path exists and can be read".into()),
        }
    }
}

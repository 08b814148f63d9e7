//! What can go wrong on disk.

use std::io;
use std::path::{Path, PathBuf};

use stillroom_core::ErrorKind;

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The operating system refused an operation.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    /// No room left; `bytes` is the size of what was being written.
    #[error("no space left for {bytes} bytes of {}", path.display())]
    DiskFull { path: PathBuf, bytes: u64, source: io::Error },
    /// Another process holds the run directory.
    #[error("{} is in use by {}", path.display(), name_of(*holder))]
    Locked { path: PathBuf, holder: Option<u32> },
    /// A name that would leave its directory.
    #[error("`{}` is not a plain relative path", name.escape_debug())]
    UnsafePath { name: String },
    /// A record that cannot be read back.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    /// A line of an event log that is no JSON object.
    #[error("line {line} of {} is damaged: {reason}", path.display())]
    DamagedLine { path: PathBuf, line: u64, reason: String },
    /// A value that cannot be written as JSON, or is too large for one line.
    #[error("a value for {} cannot be recorded: {reason}", path.display())]
    Unrecordable { path: PathBuf, reason: String },
    /// The ledger's database refused an operation.
    #[error("cannot {operation} the ledger {}: {cause}", path.display())]
    Ledger { operation: &'static str, path: PathBuf, cause: String },
    /// A stage plan that refers to itself or to nothing.
    #[error("stage `{stage}` comes after `{after}`, which is not planned before it")]
    PlanOrder { stage: String, after: String },
}

fn name_of(holder: Option<u32>) -> String {
    holder.map_or("another process".into(), |pid| format!("process {pid}"))
}

impl StoreError {
    /// The error of `operation` on `path`, where `bytes` were to be written.
    pub(crate) fn writing(operation: &'static str, path: &Path, bytes: u64, source: io::Error) -> StoreError {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                StoreError::DiskFull { path, bytes, source }
            }
            _ => StoreError::Io { operation, path, source },
        }
    }

    /// The error of `operation` on `path`.
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
        move |source| StoreError::writing(operation, path, 0, source)
    }

    /// The kind of failure, for the exit code.
    pub fn kind(&self) -> ErrorKind {
        match self {
            StoreError::Io { .. } | StoreError::DiskFull { .. } | StoreError::Ledger { .. } => ErrorKind::Io,
            StoreError::Locked { .. } => ErrorKind::TryLater,
            StoreError::UnsafePath { .. } | StoreError::Damaged { .. } | StoreError::DamagedLine { .. } => {
                ErrorKind::BadData
            }
            StoreError::Unrecordable { .. } | StoreError::PlanOrder { .. } => ErrorKind::Failed,
        }
    }

    /// What the user can do about it.
    pub fn fix(&self) -> Option<String> {
        match self {
            StoreError::Io { path, source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    Some(format!("check the permissions of `{}`", path.display()))
                }
                io::ErrorKind::ReadOnlyFilesystem => Some("choose a writable `--output`".into()),
                _ => None,
            },
            StoreError::DiskFull { bytes, .. } => Some(format!(
                "free at least {bytes} bytes there, or choose another `--output`, then run it again"
            )),
            StoreError::Locked { .. } => {
                Some("wait until it has finished, or choose another `--output`".into())
            }
            StoreError::UnsafePath { .. } => Some("use a relative path without `..`".into()),
            StoreError::Damaged { path, .. } | StoreError::DamagedLine { path, .. } => {
                Some(format!("move `{}` away and run the same command again", path.display()))
            }
            StoreError::Ledger { .. } => {
                Some("check that the disk is in order, then run the same command again".into())
            }
            StoreError::Unrecordable { .. } | StoreError::PlanOrder { .. } => None,
        }
    }
}

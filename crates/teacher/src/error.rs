//! What ends a session with a teacher before its work is done.

use stillroom_core::ErrorKind;
use stillroom_net::NetError;
use stillroom_store::StoreError;

/// Why a session could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TeacherError {
    /// The ledger cannot be written, so nothing more may be sent.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An address that cannot be asked.
    #[error(transparent)]
    Net(#[from] NetError),
    /// A receipt of the ledger that does not read back.
    #[error("the receipt of `{prompt}` in the ledger is damaged: {cause}")]
    DamagedReceipt { prompt: String, cause: String },
    /// No threads.
    #[error("cannot start a thread for calls: {0}")]
    Thread(std::io::Error),
}

impl TeacherError {
    /// What kind of failure this is; it decides the exit code.
    pub fn kind(&self) -> ErrorKind {
        match self {
            TeacherError::Store(error) => error.kind(),
            TeacherError::Net(error) => error.kind(),
            TeacherError::DamagedReceipt { .. } => ErrorKind::BadData,
            TeacherError::Thread(_) => ErrorKind::Failed,
        }
    }

    /// What the user can do about it.
    pub fn fix(&self) -> Option<String> {
        match self {
            TeacherError::Store(error) => error.fix(),
            TeacherError::Net(error) => error.fix(),
            TeacherError::DamagedReceipt { .. } => {
                Some("check `ledger.sqlite` with `PRAGMA integrity_check`".to_owned())
            }
            TeacherError::Thread(_) => Some("choose a smaller `teacher.max_in_flight`".to_owned()),
        }
    }
}

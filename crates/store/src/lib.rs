//! The run directory: atomic commits, locks, stages, events, numbered parts, the ledger of calls.
//!
//! What carries a final name is complete. Everything is built under a temporary name (prefix
//! `.partial-`) in the same directory, synced, renamed, and the parent directory is synced, so that
//! a process killed or a machine switched off at any moment leaves the old state or the new one.

mod disk;
mod error;
mod events;
#[cfg(test)]
mod faults;
mod ledger;
mod parts;
mod paths;
mod run_dir;
mod stages;

pub use disk::{
    atomic_dir, atomic_write, atomic_write_with, create_dir_durable, digest_file, remove_dir,
    remove_partials, sync_dir,
};
pub use error::StoreError;
pub use events::{EVENT_BYTES_MAX, EventLog, EventReader};
pub use ledger::{
    Call, EndedCall, Ending, Entry, Ledger, LedgerReader, Outcome, RECEIPT_BYTES_MAX, Scribe, Settled,
    Totals, Try,
};
pub use parts::{PartStore, RejectedPart};
pub use paths::{check_name, safe_join};
pub use run_dir::RunDir;
pub use stages::{Check, Freshness, PlannedStage, StageOutput, StageRecord, StaleReason, StaleStage};

/// Result of this crate's functions.
pub type Result<T> = std::result::Result<T, StoreError>;

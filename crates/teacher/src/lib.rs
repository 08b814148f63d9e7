//! Where supervision comes from over the wire: endpoints with their limits and faults, and budgets.
//!
//! Every call has a row in the ledger (`stillroom_store::Ledger`) before it is sent, and its receipt is durable before
//! its reply is used, so that no reply is bought twice.

mod ask;
mod batch;
mod batch_desk;
mod batch_files;
mod batch_jobs;
mod breaker;
mod call;
mod error;
mod estimate;
mod hedges;
mod line;
mod outcome;
mod pace;
mod redact;
mod replay;
mod schedule;
mod scores;
mod session;
mod settings;
mod window;

pub use ask::{Answer, Ask, Question, Receipt, Scoring, Unscored};
pub use batch::{BatchEnd, BatchOptions, JobEnd, Problem, Tally, WaitingFile};
pub use error::TeacherError;
pub use schedule::Stop;
pub use session::{Counts, Event, Finished, IN_FLIGHT_MAX, LeftOut, Teacher};
pub use settings::{Budget, Endpoint, Patience, Price, Sampling};

/// Result of this crate's functions.
pub type Result<T> = std::result::Result<T, TeacherError>;

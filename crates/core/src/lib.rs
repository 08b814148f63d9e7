//! The words of the domain: digests, messages, traces, sparse targets, events and statistics.
//!
//! No I/O happens here. Every other crate may import this one; it imports none of them.

mod cleared;
mod digest;
mod random;
mod scorer;
mod sparse;
pub mod statistics;
mod trace;

pub use cleared::{Cleared, Origin, OriginFault, Reach, Scheme};
pub use digest::{Digest, Digester};
pub use random::CounterRng;
pub use scorer::{ScoreError, ScoredText, Scorer};
pub use sparse::{SparseRow, Tail};
pub use trace::{FinishReason, Message, Prompt, Role, Trace};

/// What kind of failure an error is; the command line turns it into an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The work itself failed (exit 1).
    Failed,
    /// Input that cannot be right (exit 65).
    BadData,
    /// Reading or writing failed (exit 74).
    Io,
    /// May succeed later (exit 75).
    TryLater,
    /// A licence or policy says no (exit 77).
    Policy,
    /// The recipe is wrong (exit 78).
    BadRecipe,
}

//! Prompts, tasks with verifiers, and curation.
//!
//! - [`word_problems`]: the procedural task, split by construction.
//! - [`prompts`]: prompts and texts from files.
//! - [`verify`]: is a reply right, and if not, why.
//! - [`curation`]: which traces a student may learn from.
//! - [`sources`]: which rows may be learned from at all.
//! - [`filters`]: what a trace may look like; its [`language`], whether it goes round ([`repetition`]),
//!   refuses or speaks of itself ([`phrases`]).
//! - [`near_duplicates`]: texts that say nearly the same as one before, by their [`shingles`].
//! - [`balance`]: no answer, or class of rows, more than its share.
//! - [`selection`]: which of several traces for one prompt.
//! - [`pass_rate`]: prompts neither too easy nor too hard, and which of their right samples.
//! - [`decontamination`]: what training and held-out texts share.
//! - [`contaminants`]: traces that hold an evaluation item, nearly or word for word.
//! - [`pii`]: personal data and secrets that have a form, found and taken out.

pub mod balance;
pub mod contaminants;
pub mod curation;
pub mod decontamination;
mod error;
pub mod filters;
pub mod language;
#[cfg(test)]
mod made_up;
pub mod near_duplicates;
pub mod pass_rate;
pub mod phrases;
pub mod pii;
pub mod prompts;
pub mod repetition;
pub mod selection;
pub mod shingles;
pub mod sources;
mod speech;
mod split;
pub mod verify;
pub mod word_problems;
mod words;

pub use error::{CorpusError, RowProblem};
pub use split::Split;
pub use verify::{Verdict, Verifier};

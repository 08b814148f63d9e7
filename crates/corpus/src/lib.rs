//! Prompts, tasks with verifiers, and curation.

mod error;
mod split;
pub mod verify;
pub mod word_problems;

pub use error::CorpusError;
pub use split::Split;
pub use verify::{Verdict, Verifier};

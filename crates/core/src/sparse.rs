//! Sparse teacher targets.

use serde::{Deserialize, Serialize};

/// What becomes of the teacher mass outside the stored tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tail {
    /// Nothing is outside: the stored weights are draws from the whole distribution and sum to one.
    None,
    /// Ignored, without renormalisation.
    Drop,
    /// Ignored, and the stored probabilities are scaled to sum to one; the student's stay as they are.
    Renormalise,
    /// One bucket holds the rest, on both sides.
    Bucket,
    /// Spread evenly over the tokens that are not stored.
    Uniform,
}

/// The teacher's distribution at one position, as far as it was kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SparseRow {
    /// Token ids, ascending and unique.
    pub ids: Vec<u32>,
    /// Weight of each id: count / N for random sampling, probability for top-K.
    pub probs: Vec<f32>,
    /// Entropy in nats of the teacher's full distribution at this position.
    pub teacher_entropy: f32,
}

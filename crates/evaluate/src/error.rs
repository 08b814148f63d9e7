//! What can go wrong while measuring or reading a report.

use stillroom_core::{ErrorKind, ScoreError};
use stillroom_model::ModelError;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvaluateError {
    #[error("{first_count} {what} cannot be paired with {second_count}")]
    DifferentCounts { what: &'static str, first_count: usize, second_count: usize },
    #[error("{what} {index} is `{first_id}` on one side and `{second_id}` on the other")]
    DifferentItems { what: &'static str, index: usize, first_id: String, second_id: String },
    #[error("document `{id}` has {first_units} tokens on one side and {second_units} on the other")]
    DifferentUnits { id: String, first_units: u64, second_units: u64 },
    #[error("{what} of `{id}` is not a finite number")]
    NotFinite { what: &'static str, id: String },
    #[error("tensor `{name}` has {initial_len} numbers before training and {final_len} after")]
    DifferentShapes { name: String, initial_len: usize, final_len: usize },
    #[error("tensor `{name}` stands on one side only")]
    MissingTensor { name: String },
    #[error("document `{id}` has {n_tokens} tokens, but a mask for {n_mask}")]
    BadMask { id: String, n_tokens: usize, n_mask: usize },
    #[error("the teacher has {teacher_vocab} tokens, the model {model_vocab}")]
    DifferentVocabularies { teacher_vocab: usize, model_vocab: usize },
    /// Of a model's own text the teacher said nothing.
    #[error(transparent)]
    Score(#[from] ScoreError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("report is not readable: {reason}")]
    BadReport { reason: String },
}

impl EvaluateError {
    /// What kind of failure it is; the command line turns it into an exit code.
    pub fn kind(&self) -> ErrorKind {
        match self {
            EvaluateError::NotFinite { .. } => ErrorKind::Failed,
            EvaluateError::Score(error) => error.kind,
            EvaluateError::Model(error) => error.kind(),
            _ => ErrorKind::BadData,
        }
    }

    /// What the user can do about it.
    pub fn fix(&self) -> Option<String> {
        match self {
            EvaluateError::DifferentCounts { .. }
            | EvaluateError::DifferentItems { .. }
            | EvaluateError::DifferentUnits { .. } => Some(
                "compare models on the same held-out examples; losses per token also need one tokenizer"
                    .into(),
            ),
            EvaluateError::NotFinite { .. } => {
                Some("training has probably diverged: lower `train.learning_rate`".into())
            }
            EvaluateError::BadReport { .. } => {
                Some("run `stillroom evaluate` again to write the report anew".into())
            }
            EvaluateError::DifferentVocabularies { .. } => {
                Some("a divergence needs a student with the teacher's tokenizer".into())
            }
            EvaluateError::Score(error) => error.fix.clone(),
            EvaluateError::Model(error) => error.fix(),
            EvaluateError::DifferentShapes { .. }
            | EvaluateError::MissingTensor { .. }
            | EvaluateError::BadMask { .. } => None,
        }
    }
}

//! What can go wrong in training.

use std::path::PathBuf;

use stillroom_core::{Digest, ErrorKind, ScoreError};
use stillroom_formats::FormatError;
use stillroom_model::{DivergenceError, ModelError};
use stillroom_store::StoreError;

/// A failure of training or of its preparation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DistillError {
    /// A setting out of range, or one that another forbids.
    #[error("`{key}` is {value}: {rule}")]
    Config { key: &'static str, value: String, rule: &'static str },
    /// A loss that cannot be taken, or not of these targets.
    #[error(transparent)]
    Losses(#[from] DivergenceError),
    #[error("there is nothing to train on: {what}")]
    NoExamples { what: &'static str },
    /// An example whose parts do not fit together.
    #[error("example `{id}`: {what}")]
    Example { id: String, what: String },
    #[error("example `{id}` has {n_tokens} tokens, a row holds {max_length}")]
    TooLong { id: String, n_tokens: usize, max_length: usize },
    /// A loss of the student's own text, which no cache knows.
    #[error("`{loss}` needs a live teacher: what the student writes is in no cache")]
    NoLiveTeacher { loss: &'static str },
    /// A loss that log-probabilities of the text's own tokens do not give.
    #[error(
        "`{loss}` needs the teacher's distributions: log-probabilities of the student's tokens are not enough"
    )]
    OnlyScored { loss: &'static str },
    /// What one teacher alone can give.
    #[error(
        "{what} cannot be taken of several teachers, which are mixed in their distributions over one vocabulary"
    )]
    SeveralTeachers { what: &'static str },
    /// Layers that cannot be compared.
    #[error("hidden states cannot be aligned: {what}")]
    HiddenStates { what: String },
    /// A prompt that leaves no room for what the student may write.
    #[error("prompt `{id}` has {n_tokens} tokens; {max_new_tokens} more do not fit into {max_length}")]
    PromptTooLong { id: String, n_tokens: usize, max_new_tokens: usize, max_length: usize },
    /// A loss that needs the teacher's distributions, and an example without.
    #[error("example `{id}` has no teacher distributions, which the loss needs")]
    NoTeacherTargets { id: String },
    /// A prompt without a target of the data set's own.
    #[error("prompt `{id}` has no target of its own")]
    NoTarget { id: String },
    /// Cached distributions of another text or of shifted positions.
    #[error("the cached distributions of `{id}` belong to tokens {cached}, the example has {found}")]
    ForeignTargets { id: String, cached: Digest, found: Digest },
    #[error("the cache has {n_rows} rows for `{id}`, which has {n_supervised} supervised tokens")]
    TargetCount { id: String, n_rows: usize, n_supervised: usize },
    /// A loss that needs a teacher's likelihoods, and an example without.
    #[error("example `{id}` has no likelihoods of a teacher, which `alm` needs")]
    NoTeacherChunks { id: String },
    /// A loss of a teacher's distributions over its own vocabulary, and an example that it has not read.
    #[error("example `{id}` has not been read by the teacher in its own tokens, which `uld` and `gold` need")]
    NoForeignReading { id: String },
    /// Two tokenizations of what should be one text.
    #[error(
        "the replies that teacher and student read in `{id}` have {shared} bytes in common, of {teacher} and {student}"
    )]
    Misaligned { id: String, shared: usize, teacher: usize, student: usize },
    /// Cached distributions made with another tokenizer or another temperature.
    #[error("the logit cache was made with {what} {cached}, training has {expected}")]
    CacheMismatch { what: &'static str, cached: String, expected: String },
    /// A checkpoint that another training run wrote.
    #[error("{} was written with other {what}", path.display())]
    ForeignCheckpoint { path: PathBuf, what: &'static str },
    /// A checkpoint that is needed and is not as it was written.
    #[error("{} cannot be used: {damage}", path.display())]
    DamagedCheckpoint { path: PathBuf, damage: String },
    #[error("the loss of step {step} is {loss}{}", last_good(checkpoint))]
    NonFiniteLoss { step: u64, loss: f64, checkpoint: Option<PathBuf> },
    #[error("the gradient of step {step} has norm {norm}{}", last_good(checkpoint))]
    NonFiniteGradient { step: u64, norm: f64, checkpoint: Option<PathBuf> },
    /// Of the student's own text the teacher said nothing.
    #[error(transparent)]
    Score(#[from] ScoreError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn last_good(checkpoint: &Option<PathBuf>) -> String {
    checkpoint.as_ref().map_or(String::new(), |path| format!("; the last checkpoint is {}", path.display()))
}

impl DistillError {
    pub(crate) fn example(id: &str, what: impl Into<String>) -> DistillError {
        DistillError::Example { id: id.to_owned(), what: what.into() }
    }

    /// The kind of failure, for the exit code.
    pub fn kind(&self) -> ErrorKind {
        match self {
            DistillError::Config { .. }
            | DistillError::Losses(_)
            | DistillError::HiddenStates { .. }
            | DistillError::SeveralTeachers { .. }
            | DistillError::OnlyScored { .. }
            | DistillError::NoLiveTeacher { .. } => ErrorKind::BadRecipe,
            DistillError::NonFiniteLoss { .. } | DistillError::NonFiniteGradient { .. } => ErrorKind::Failed,
            DistillError::Score(error) => error.kind,
            DistillError::Model(error) => error.kind(),
            DistillError::Format(error) => error.kind(),
            DistillError::Store(error) => error.kind(),
            _ => ErrorKind::BadData,
        }
    }

    /// What the user can do about it.
    pub fn fix(&self) -> Option<String> {
        let text = match self {
            DistillError::Score(error) => return error.fix.clone(),
            DistillError::Model(error) => return error.fix(),
            DistillError::Format(error) => return error.fix(),
            DistillError::Store(error) => return error.fix(),
            DistillError::Losses(DivergenceError::Vocabulary { of_two: true, .. }) => {
                "take the teacher live, with `logits = { kind = \"live\" }`"
            }
            DistillError::Losses(DivergenceError::Counts { .. }) => {
                "take the teacher live, with `logits = { kind = \"live\" }`, or keep its likeliest tokens, with \
                 `kind = \"top_k\"`"
            }
            DistillError::Losses(DivergenceError::Renormalised { .. }) => {
                "write `tail = \"bucket\"` or `tail = \"uniform\"`, or take the teacher live"
            }
            DistillError::Losses(DivergenceError::Temperatures { .. }) => {
                "give them one temperature, or take the teacher live, with `logits = { kind = \"live\" }`"
            }
            DistillError::Losses(_) => "choose a value within these bounds",
            DistillError::TooLong { .. } => {
                "raise `max_length`, or allow longer documents to be cut with `overlong = \"truncate\"`"
            }
            DistillError::NoLiveTeacher { .. } => {
                "take the teacher live, with `logits = { kind = \"live\" }`"
            }
            DistillError::OnlyScored { .. } => {
                "learn from own text by `sampled_reverse_kl` alone, or take a teacher whose weights are at hand"
            }
            DistillError::SeveralTeachers { .. } => {
                "keep one teacher, or learn from its distributions over the student's vocabulary"
            }
            DistillError::HiddenStates { .. } => {
                "change `hidden_alignment`, or remove it; docs/hidden-states.md"
            }
            DistillError::PromptTooLong { .. } => {
                "raise `max_length` as far as both contexts go, or lower `max_new_tokens`"
            }
            DistillError::NoTeacherTargets { .. } => {
                "give the teacher `logits`, or train on `hard_labels` only"
            }
            DistillError::NoForeignReading { .. } => "give each example its reading by the teacher",
            DistillError::NoTeacherChunks { .. } => "let the teacher score these traces",
            DistillError::Misaligned { .. } => {
                "compare the chat templates of both models: each must write the reply as it stands"
            }
            DistillError::NoTarget { .. } => {
                "give every prompt a target, or leave the `undistilled` control out"
            }
            DistillError::ForeignTargets { .. } | DistillError::TargetCount { .. } => {
                "let the teacher make its distributions again for these traces"
            }
            DistillError::CacheMismatch { .. } => {
                "let the teacher make its distributions again with this recipe"
            }
            DistillError::ForeignCheckpoint { .. } => {
                "remove the `checkpoints` directory to start over, or choose another `--output`"
            }
            DistillError::DamagedCheckpoint { .. } => "take the checkpoint from a copy of the run",
            DistillError::NonFiniteLoss { .. } | DistillError::NonFiniteGradient { .. } => {
                "lower `learning_rate`, raise `warmup_ratio` or set `max_grad_norm = 1.0`"
            }
            DistillError::NoExamples { .. } => "give more prompts, or loosen the curation that dropped them",
            DistillError::Config { .. } | DistillError::Example { .. } => return None,
        };
        Some(text.to_owned())
    }
}

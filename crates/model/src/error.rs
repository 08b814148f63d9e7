//! What can go wrong with a model's files and with what is asked of it.

use stillroom_core::ErrorKind;
use stillroom_formats::FormatError;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error("config field `{field}` is {value}: {rule}")]
    Config { field: &'static str, value: u64, rule: &'static str },
    #[error("tensor `{name}` is missing")]
    MissingTensor { name: String },
    #[error("tensor `{name}` has no place in this architecture")]
    UnexpectedTensor { name: String },
    #[error("tensor `{name}` has shape {found:?}, expected {expected:?}")]
    TensorShape { name: String, expected: Vec<usize>, found: Vec<usize> },
    #[error("tensor `{name}` has {found} bytes, expected {expected}")]
    TensorBytes { name: String, expected: usize, found: usize },
    #[error("tensor `{name}` holds a number that is not finite at index {index}")]
    TensorNotFinite { name: String, index: usize },
    #[error("token id {id} at position {position} is outside the vocabulary of {vocab_size}")]
    TokenOutOfRange { id: u32, position: usize, vocab_size: usize },
    #[error("the prompt of request {request} is empty")]
    EmptyPrompt { request: usize },
    #[error("the prompt of request {request} has {n_tokens} tokens, the context holds {n_tokens_max}")]
    PromptTooLong { request: usize, n_tokens: usize, n_tokens_max: usize },
    #[error("sampling parameter `{name}` is {value}: {rule}")]
    Sampling { name: &'static str, value: f64, rule: &'static str },
    #[error("layer {layer} does not exist, the model has {n_layers}")]
    NoSuchLayer { layer: usize, n_layers: usize },
    #[error("no layer is kept")]
    NoLayers,
    #[error("`{field}` of {width} cannot be kept of the {of_model} that the model has")]
    Width { field: &'static str, width: usize, of_model: usize },
    #[error("there is no text to tell what of the model's width matters")]
    NoCalibration,
    #[error("logits of request {request} at position {position} are not finite")]
    NotFinite { request: usize, position: usize },
}

impl ModelError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            ModelError::Format(error) => error.kind(),
            ModelError::Sampling { .. }
            | ModelError::NoSuchLayer { .. }
            | ModelError::NoLayers
            | ModelError::Width { .. } => ErrorKind::BadRecipe,
            ModelError::NotFinite { .. } => ErrorKind::Failed,
            _ => ErrorKind::BadData,
        }
    }

    /// What the user can do about it.
    pub fn fix(&self) -> Option<String> {
        let text = match self {
            ModelError::Format(error) => return error.fix(),
            ModelError::Config { .. } => {
                "check `config.json`, or the sizes that the recipe gives the student"
            }
            ModelError::MissingTensor { .. } | ModelError::UnexpectedTensor { .. } => {
                "check that the weights belong to this `config.json` and that no shard is missing"
            }
            ModelError::TensorShape { .. } | ModelError::TensorBytes { .. } => {
                "check that the weights belong to this `config.json`"
            }
            ModelError::TensorNotFinite { .. } | ModelError::NotFinite { .. } => {
                "the weights are damaged or training diverged: use another checkpoint"
            }
            ModelError::TokenOutOfRange { .. } => "use the tokenizer that belongs to the model",
            ModelError::EmptyPrompt { .. } => "give every prompt at least one token",
            ModelError::PromptTooLong { .. } => "shorten the prompt",
            ModelError::NoSuchLayer { n_layers, .. } => {
                return Some(format!("choose layers from 0 to {}", n_layers.saturating_sub(1)));
            }
            ModelError::NoLayers => "name at least one layer to keep",
            ModelError::Width { of_model, .. } => return Some(format!("choose 1 to {of_model}")),
            ModelError::NoCalibration => "give some text like that which the student is for",
            ModelError::Sampling { .. } => return None,
        };
        Some(text.to_owned())
    }
}

//! The one error of this crate.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};

use stillroom_core::ErrorKind;

/// What can be wrong with foreign bytes, or with what we are asked to write.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// Writing to a stream failed.
    #[error("cannot write: {0}")]
    Write(io::Error),
    /// Wraps an error with the file that it is about.
    #[error("{}: {source}", path.display())]
    InFile { path: PathBuf, source: Box<FormatError> },
    /// Nothing that we read is at this path.
    #[error("{} is neither a Hugging Face model directory nor a .gguf file", path.display())]
    NotAModel { path: PathBuf },
    /// No adapter that we read is at this path.
    #[error("{} holds no LoRA adapter", path.display())]
    NotAnAdapter { path: PathBuf },
    /// The directory holds weights in a format that can execute code.
    #[error("{} holds no safetensors file, only {found}", path.display())]
    NoSafetensors { path: PathBuf, found: String },
    /// A file of the directory leads outside of it.
    #[error("`{name}` leads outside the model directory")]
    Escapes { name: String },
    /// A length, count or size above its cap.
    #[error("{what} is {value}, above the limit of {limit}")]
    TooLarge { what: String, value: u64, limit: u64 },
    /// The bytes end before what they announce.
    #[error("truncated {format}: {what} needs {needed} bytes at offset {offset}, the file has {available}")]
    Truncated { format: &'static str, what: String, offset: u64, needed: u64, available: u64 },
    /// The bytes break the rules of their format.
    #[error("malformed {format}: {what}")]
    Malformed { format: &'static str, what: String },
    /// Valid, but something that this program does not implement.
    #[error("unsupported {what}: `{value}`")]
    Unsupported { what: &'static str, value: String },
    /// A setting that cannot be right.
    #[error("`{key}` is {value}, expected {expected}")]
    Setting { key: String, value: String, expected: String },
    /// No tensor of this name.
    #[error("no tensor `{name}`")]
    MissingTensor { name: String },
    /// A tensor that the architecture does not have, or that came twice.
    #[error("unexpected tensor `{name}`")]
    UnexpectedTensor { name: String },
    /// A tensor of the wrong shape.
    #[error("tensor `{name}` has shape {found:?}, expected {expected:?}")]
    Shape { name: String, found: Vec<usize>, expected: Vec<usize> },
    /// The tokenizer cannot be built or used.
    #[error("tokenizer: {what}")]
    Tokenizer { what: String },
    /// llama.cpp has no name for how this tokenizer splits text.
    #[error("the tokenizer's {part} is none that GGUF has a name for")]
    NoGgufTokenizer { part: &'static str },
    /// transformers would tokenize differently from us.
    #[error("transformers splits the text of every qwen2 model in Qwen 2's way, this tokenizer in another")]
    NotQwen2Splitting,
    /// The tokenizer has more tokens than the model has rows.
    #[error("the tokenizer has {tokens} tokens, the model only {rows} rows")]
    Vocabulary { tokens: usize, rows: usize },
    /// The model has no chat template.
    #[error("the tokenizer has no chat template")]
    NoChatTemplate,
    /// The template is not valid, or refused the messages.
    #[error("chat template: {what}")]
    ChatTemplate { what: String },
    /// A conversation with tools, and a template that would drop them.
    #[error("the conversation has tool calls, and the chat template does not write them")]
    NoToolCalls,
    /// What the template's generation tags enclose cannot be told.
    #[error("the `{{% generation %}}` tags of the chat template: {what}")]
    GenerationTags { what: String },
    /// A reply that cannot be written without the template, which does not write it as it would be generated.
    #[error("the chat template does not write the whole reply after its own generation prompt")]
    ReplyElsewhere,
    /// The template's generation tags enclose nothing of the reply.
    #[error("the `{{% generation %}}` tags of the chat template enclose nothing of the reply")]
    NothingGenerated,
    /// A reply without a single supervised token.
    #[error("the reply leaves nothing to learn: no supervised token")]
    EmptySupervision,
    /// A row that the cache cannot hold exactly.
    #[error("row of `{id}`, position {position}: {what}")]
    LogitRow { id: String, position: usize, what: String },
}

impl FormatError {
    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            FormatError::Io { .. } | FormatError::Write(_) => ErrorKind::Io,
            FormatError::InFile { source, .. } => source.kind(),
            _ => ErrorKind::BadData,
        }
    }

    /// What the user can do about it.
    pub fn fix(&self) -> Option<String> {
        let text = match self {
            FormatError::InFile { source, .. } => return source.fix(),
            FormatError::NotAModel { .. } => {
                "give a directory with `config.json` and `model.safetensors`, or a `.gguf` file"
            }
            FormatError::NotAnAdapter { .. } => {
                "give a directory with `adapter_config.json` and `adapter_model.safetensors`, as PEFT saves it"
            }
            FormatError::Unsupported { what, .. } if what.contains("of an adapter") => {
                "merge the adapter into its model with PEFT (`merge_and_unload`), or train one of plain LoRA"
            }
            FormatError::NoSafetensors { .. } => {
                "convert the weights to safetensors with the tool that wrote them; pickled weights are never read"
            }
            FormatError::Escapes { .. } => "get the model from a source that you trust, and report this file",
            FormatError::Truncated { .. } => "fetch the file again; it is probably an interrupted download",
            FormatError::NoChatTemplate => {
                "use a model with a chat template, or add `chat_template.jinja` to its directory"
            }
            FormatError::NoToolCalls => {
                "use a model whose chat template writes `tool_calls` and `tools`, or leave these conversations out (`curate.tool_calls = \"reject\"`)"
            }
            FormatError::GenerationTags { .. } => {
                "put the tags around what is written, not around what is worked on, or remove them to learn the whole reply"
            }
            FormatError::ReplyElsewhere => {
                "compare what the template writes with and without `add_generation_prompt`: reasoning that only one of them opens is the usual reason; a reply without tool calls is learned whole if the `{% generation %}` tags are removed"
            }
            FormatError::NothingGenerated => {
                "put the reply and what ends its turn between `{% generation %}` and `{% endgeneration %}`, or remove the tags to learn the whole reply"
            }
            FormatError::NotQwen2Splitting => "give the student the architecture `llama` or `qwen3`",
            FormatError::NoGgufTokenizer { .. } => {
                "release this model as a Hugging Face directory only, without GGUF"
            }
            _ => return None,
        };
        Some(text.to_owned())
    }

    /// The same error, naming the file it is about.
    pub(crate) fn in_file(self, path: &Path) -> FormatError {
        match self {
            FormatError::Io { .. } | FormatError::InFile { .. } => self,
            other => FormatError::InFile { path: path.to_owned(), source: Box::new(other) },
        }
    }

    /// For `map_err` on an operation on a path.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FormatError {
        let path = path.to_owned();
        move |source| FormatError::Io { action, path, source }
    }

    pub(crate) fn malformed(format: &'static str, what: impl Into<String>) -> FormatError {
        FormatError::Malformed { format, what: what.into() }
    }
}

/// The result of this crate's functions.
pub type Result<T, E = FormatError> = std::result::Result<T, E>;

/// Runs code of a library that panics on some hostile input, and makes that an error.
///
/// Only for libraries written in safe code, on values that are thrown away afterwards: then a
/// panic leaves nothing half-done behind.
pub(crate) fn without_panic<T>(
    run: impl FnOnce() -> Result<T>,
    damaged: impl FnOnce() -> FormatError,
) -> Result<T> {
    panic::catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(damaged()))
}

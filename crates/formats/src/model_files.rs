//! A model on disk, whichever its format.

use std::path::{Path, PathBuf};

use crate::config::DecoderConfig;
use crate::error::{FormatError, Result};
use crate::tensors::TensorSource;
use crate::tokenizer::Tokenizer;
use crate::{gguf, hf_dir};

/// What a Hugging Face directory or a GGUF file holds.
pub struct ModelFiles {
    pub config: DecoderConfig,
    pub tensors: Box<dyn TensorSource + Send + Sync>,
    pub tokenizer: Option<Tokenizer>,
    /// The text of the directory's licence file.
    pub licence_text: Option<String>,
    /// What the file says its licence is (`general.license` of a GGUF file).
    pub licence_name: Option<String>,
    pub path: PathBuf,
}

impl ModelFiles {
    /// Opens a Hugging Face directory or a `.gguf` file. Weights are mapped, not read.
    pub fn open(path: &Path) -> Result<ModelFiles> {
        let metadata = std::fs::metadata(path).map_err(FormatError::io("open", path))?;
        if metadata.is_dir() {
            hf_dir::open(path)
        } else if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
            gguf::open(path)
        } else {
            Err(FormatError::NotAModel { path: path.to_owned() })
        }
    }
}

//! Bytes to types and back: safetensors, GGUF, tokenizers, chat templates, Parquet rows.
//!
//! Every reader here takes foreign bytes: lengths are capped and checked before memory is
//! taken, and what breaks a rule is a [`FormatError`], never a panic.

mod chat_template;
mod config;
pub mod croissant;
mod encode;
mod error;
mod files;
mod gguf;
mod hf_dir;
mod model_files;
pub mod openai;
pub mod parquet_rows;
pub mod peft;
pub mod safetensors_file;
mod tensors;
mod tokenizer;

pub use chat_template::ChatTemplate;
pub use config::{DecoderConfig, Family, RopeScaling};
pub use error::{FormatError, Result};
pub use files::MappedFile;
pub use gguf::write_gguf;
pub use hf_dir::write_hf_dir;
pub use model_files::ModelFiles;
pub use peft::{LoraConfig, LoraTarget, LoraTensor, PeftAdapter, write_peft_dir};
pub use tensors::{Encoding, NamedTensor, TensorSource, TensorView};
pub use tokenizer::{SupervisedTokens, Tokenizer};

//! Bytes to types and back: safetensors, GGUF, tokenizers, chat templates, Parquet rows.

//! A tiny model for tests through the binary.

use std::path::Path;
use std::sync::Arc;

use stillroom_formats::{DecoderConfig, Encoding, Family, RopeScaling, Tokenizer, write_hf_dir};
use stillroom_kernels::Device;
use stillroom_model::Decoder;

/// One layer of width 16 with two query heads and one key head, its embedding tied.
pub(crate) fn tiny(family: Family, vocab_size: usize, max_position_embeddings: usize) -> DecoderConfig {
    DecoderConfig {
        family,
        vocab_size,
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 8,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        max_position_embeddings,
        tie_word_embeddings: true,
        qkv_bias: family == Family::Qwen2,
        attention_out_bias: false,
        mlp_bias: false,
        qk_norm: family == Family::Qwen3,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
    }
}

/// A random model of that shape, written to `dir` as f32.
pub(crate) fn write_random(dir: &Path, config: DecoderConfig, tokenizer: Option<&Tokenizer>) -> Decoder {
    let decoder = Decoder::random(Arc::new(Device::cpu(2)), config, 7);
    write_hf_dir(dir, decoder.config(), &mut decoder.tensors(), Encoding::F32, tokenizer)
        .expect("the model is written");
    decoder
}

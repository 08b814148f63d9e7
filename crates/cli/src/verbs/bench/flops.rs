//! Floating-point operations that a kind of work needs, however it is computed: recomputation, padding and
//! what norms, rotations and softmax take are not counted.
//!
//! A product with a weight of P numbers takes 2·P per row. Per layer, with D the width, A = heads·head_dim,
//! Q = (heads + 2·kv_heads)·head_dim and F the feed-forward width, these are qkv (Q·D), the attention's
//! output (D·A), gate and up (2·F·D) and down (D·F); then the head (V·D), tied or not. Looking up an embedding
//! is no product. Attention takes two products, with keys and with values: a row at position t has 4·A·(t + 1).

use stillroom_formats::DecoderConfig;

/// Numbers in the weights that rows are multiplied by.
struct Products {
    layers: f64,
    qkv: f64,
    /// The rest of a layer: attention's output and the feed-forward part.
    after_attention: f64,
    head: f64,
    /// A of one layer.
    attention_width: f64,
}

impl Products {
    fn of(config: &DecoderConfig) -> Products {
        let (d, f) = (config.hidden_size as f64, config.intermediate_size as f64);
        let heads = config.num_attention_heads + 2 * config.num_key_value_heads;
        let attention_width = (config.num_attention_heads * config.head_dim) as f64;
        Products {
            layers: config.num_hidden_layers as f64,
            qkv: (heads * config.head_dim) as f64 * d,
            after_attention: attention_width * d + 3.0 * f * d,
            head: config.vocab_size as f64 * d,
            attention_width,
        }
    }

    /// One sequence at positions `positions`, of which the last `wanted` rows need logits. For the other
    /// rows the last layer needs keys and values only to its attention: what follows is not counted there.
    ///
    /// Σ 2·P·rows over the products + L·4·A·Σ (t + 1).
    fn forward(&self, positions: std::ops::Range<usize>, wanted: usize) -> u64 {
        let (rows, wanted) = (positions.len() as f64, wanted as f64);
        let keys = positions.map(|t| t as f64 + 1.0).sum::<f64>();
        let layers = rows * (self.layers * self.qkv + (self.layers - 1.0) * self.after_attention);
        let last = wanted * (self.after_attention + self.head);
        (2.0 * (layers + last) + self.layers * 4.0 * self.attention_width * keys) as u64
    }
}

/// One training step: three times the forward pass, whose products return once for the gradient of the rows
/// and once for that of the weights (attention's likewise). With every row supervised this is
/// 6·(numbers in products)·tokens + 3·attention.
pub(super) fn train(config: &DecoderConfig, batch: usize, sequence: usize, supervised: usize) -> u64 {
    (3 * batch as u64).saturating_mul(Products::of(config).forward(0..sequence, supervised))
}

/// Log-probabilities after each token of `batch` sequences: the forward pass with logits of every row.
pub(super) fn score(config: &DecoderConfig, batch: usize, sequence: usize) -> u64 {
    (batch as u64).saturating_mul(Products::of(config).forward(0..sequence, sequence))
}

/// `tokens` passes of one row for each of `batch` sequences, the first at position `prompt_tokens`.
pub(super) fn decode(config: &DecoderConfig, batch: usize, prompt_tokens: usize, tokens: usize) -> u64 {
    let positions = prompt_tokens..prompt_tokens + tokens;
    (batch as u64).saturating_mul(Products::of(config).forward(positions, tokens))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verbs::bench::tests::tiny;

    /// Numbers in matrices by their names in a file; an embedding counts only where it is the head.
    fn in_products(config: &DecoderConfig) -> u64 {
        let counts = |name: &str| config.tie_word_embeddings || name != "model.embed_tokens.weight";
        let tensors =
            config.parameters().into_iter().filter(|(name, shape)| shape.len() == 2 && counts(name));
        tensors.map(|(_, shape)| (shape[0] * shape[1]) as u64).sum()
    }

    #[test]
    fn a_step_is_six_per_number_and_token_and_the_attention() {
        for tie_word_embeddings in [false, true] {
            let config = DecoderConfig { tie_word_embeddings, ..tiny() };
            // Two layers of two heads of 8; positions 0 to 4 have 15 keys.
            let attention = 3 * 2 * (2 * 2 * 16 * 15);
            assert_eq!(train(&config, 3, 5, 5), 3 * (6 * in_products(&config) * 5 + attention));
            assert_eq!(3 * score(&config, 3, 5), train(&config, 3, 5, 5));
        }
    }

    #[test]
    fn a_masked_row_costs_neither_head_nor_what_follows_the_last_attention() {
        let config = tiny();
        let per_row = config.vocab_size * 16 + 16 * 16 + 3 * 24 * 16;
        let saved = train(&config, 3, 5, 5) - train(&config, 3, 5, 2);
        assert_eq!(saved, (6 * 3 * 3 * per_row) as u64);
    }

    #[test]
    fn decoding_a_sequence_row_by_row_is_scoring_it() {
        let config = tiny();
        assert_eq!(decode(&config, 4, 0, 9), score(&config, 4, 9));
        assert_eq!(score(&config, 4, 3) + decode(&config, 4, 3, 6), score(&config, 4, 9));
    }
}

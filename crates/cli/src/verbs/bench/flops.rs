//! Floating-point operations that a kind of work needs, however it is computed: recomputation, padding and
//! what norms, rotations and softmax take are not counted.
//!
//! A product with a weight of P numbers takes 2·P per row. Per layer, with D the width, A = heads·head_dim,
//! Q = (heads + 2·kv_heads)·head_dim and F the feed-forward width, these are qkv (Q·D), the attention's
//! output (D·A), gate and up (2·F·D) and down (D·F); then the head (V·D), tied or not. Looking up an embedding
//! is no product. Attention takes two products, with keys and with values: a row at position t has 4·A·(t + 1).

use stillroom_formats::{DecoderConfig, LoraConfig, LoraTarget};

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
        (self.of_weights(positions.len(), wanted) + self.of_attention(positions)) as u64
    }

    fn of_weights(&self, rows: usize, wanted: usize) -> f64 {
        let layers = rows as f64 * (self.layers * self.qkv + (self.layers - 1.0) * self.after_attention);
        2.0 * (layers + wanted as f64 * (self.after_attention + self.head))
    }

    fn of_attention(&self, positions: std::ops::Range<usize>) -> f64 {
        let keys = positions.map(|t| t as f64 + 1.0).sum::<f64>();
        self.layers * 4.0 * self.attention_width * keys
    }
}

/// One training step: three times the forward pass, whose products return once for the gradient of the rows
/// and once for that of the weights (attention's likewise). With every row supervised this is
/// 6·(numbers in products)·tokens + 3·attention.
pub(super) fn train(config: &DecoderConfig, batch: usize, sequence: usize, supervised: usize) -> u64 {
    (3 * batch as u64).saturating_mul(Products::of(config).forward(0..sequence, supervised))
}

/// One training step of an adapter: frozen weights are multiplied by once forward and once for the gradient of
/// the rows; attention, A and B come as often as in [`train`]. A and B of a target take 2·r·(inputs + outputs)
/// per row.
pub(super) fn train_adapter(
    config: &DecoderConfig,
    lora: &LoraConfig,
    batch: usize,
    sequence: usize,
    supervised: usize,
) -> u64 {
    let products = Products::of(config);
    let of_adapter = |target: &LoraTarget| {
        let [outputs, inputs] = target.shape(config);
        let before_attention = matches!(target, LoraTarget::Q | LoraTarget::K | LoraTarget::V);
        let in_last = if before_attention { sequence } else { supervised };
        let rows = (config.num_hidden_layers - 1) * sequence + in_last;
        (2 * lora.r * (inputs + outputs) * rows) as f64
    };
    let of_adapter = lora.target_modules.iter().map(of_adapter).sum::<f64>();
    let of_weights = products.of_weights(sequence, supervised);
    let one = 2.0 * of_weights + 3.0 * (products.of_attention(0..sequence) + of_adapter);
    (batch as u64).saturating_mul(one as u64)
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
    fn an_adapter_is_counted_in_place_of_the_weights_own_gradients() {
        let config = tiny();
        let lora = |target_modules: &[LoraTarget]| {
            let target_modules = target_modules.to_vec();
            LoraConfig { r: 3, alpha: 6.0, dropout: 0.0, target_modules, use_rslora: false }
        };
        let whole = train(&config, 1, 5, 5);
        let with = |targets: &[LoraTarget]| train_adapter(&config, &lora(targets), 1, 5, 5);
        // In two layers k maps 16 numbers to 8, and down 24 to 16.
        let per_row = 3 * 2 * 2 * 3 * (16 + 8 + 24 + 16);
        let saved = 2 * in_products(&config) * 5;
        assert_eq!(with(&[LoraTarget::K, LoraTarget::Down]), whole - saved + 5 * per_row);
        let all = lora(&LoraTarget::ALL);
        let numbers = all.n_parameters(&config);
        assert_eq!(train_adapter(&config, &all, 2, 5, 5), 2 * (whole - saved + 6 * numbers * 5));
        let masked = |targets: &[LoraTarget]| train_adapter(&config, &lora(targets), 1, 5, 2);
        let k = with(&[LoraTarget::K]) - masked(&[LoraTarget::K]);
        let down = with(&[LoraTarget::Down]) - masked(&[LoraTarget::Down]);
        assert_eq!(down - k, 3 * 3 * 2 * 3 * (24 + 16), "in the last layer, down is computed for two rows");
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

//! Narrower models: importance against transformers (`oracles/importance.py`), and width that does nothing.

mod common;

use common::{Tensors, Variant, bits, config, documents, golden_dir, lively, logits, slices};
use serde_json::Value;
use stillroom_core::ErrorKind;
use stillroom_formats::{DecoderConfig, Family};
use stillroom_model::{Batch, Decoder, ModelError, Width};

/// All numbers under a key, however deep they lie.
fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(values) => values.iter().flat_map(numbers).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

fn assert_close(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() <= 1e-5 * e.abs() + 1e-7, "{what}: {f} against {e}");
    }
}

#[test]
fn importance_is_that_of_hooks_on_transformers() {
    for name in ["llama-untied-bias", "qwen2", "qwen3-tied"] {
        let text = std::fs::read_to_string(golden_dir(name).join("importance.json")).unwrap();
        let golden: Value = serde_json::from_str(&text).unwrap();
        let variant = Variant::open(name, 2);
        let found = variant.decoder.importance(&slices(&variant.documents("input_ids")));
        assert_close(&found.channels, &numbers(&golden["channels"]), name);
        assert_close(&found.neurons.concat(), &numbers(&golden["neurons"]), name);
        assert_close(&found.kv_heads.concat(), &numbers(&golden["kv_heads"]), name);
    }
}

const LIVE: Width = Width { hidden_size: 12, intermediate_size: 20, num_key_value_heads: 2 };

/// A configuration with `LIVE` of width 18, 26 and 3.
fn wide(family: Family) -> DecoderConfig {
    DecoderConfig {
        vocab_size: 23,
        hidden_size: 18,
        intermediate_size: 26,
        num_hidden_layers: 2,
        num_attention_heads: 6,
        num_key_value_heads: 3,
        head_dim: 4,
        qkv_bias: family == Family::Qwen2,
        qk_norm: family == Family::Qwen3,
        ..config(family)
    }
}

/// A decoder of which channels 0, 3, 6 …, neurons 0, 4, 8 … and key/value head 1 do nothing.
fn with_dead_width(family: Family) -> Decoder {
    let config = wide(family);
    let decoder = lively(config.clone(), 1, 41);
    let dead_channel = |i: usize| i.is_multiple_of(3);
    let dead_neuron = |i: usize| i.is_multiple_of(4) && i < 24;
    // Value head 1 gives nothing, whatever the queries are.
    let dead_value = |i: usize| i / config.head_dim == 1;
    let mut tensors = Tensors::of(decoder.tensors());
    for (name, (shape, data)) in &mut tensors.0 {
        let n_cols = if shape.len() > 1 { shape[1] } else { 1 };
        let ends = |part: &str| name.ends_with(part);
        for (i, value) in data.iter_mut().enumerate() {
            let (row, col) = (i / n_cols, i % n_cols);
            let dead = (ends("embed_tokens.weight") && dead_channel(col))
                || ((ends("o_proj.weight") || ends("down_proj.weight")) && dead_channel(row))
                || ((ends("o_proj.bias") || ends("down_proj.bias")) && dead_channel(row))
                || ((ends("up_proj.weight") || ends("up_proj.bias")) && dead_neuron(row))
                || ((ends("v_proj.weight") || ends("v_proj.bias")) && dead_value(row));
            if dead {
                *value = 0.0;
            }
        }
    }
    Decoder::load(decoder.device().clone(), config, &tensors).unwrap()
}

#[test]
fn width_that_does_nothing_goes_and_the_logits_stay() {
    for family in [Family::Llama, Family::Qwen2, Family::Qwen3] {
        let decoder = with_dead_width(family);
        let documents = documents(&[9, 300, 230, 5], 23, 42);
        let narrow = decoder.keep_width(LIVE, &slices(&documents)).unwrap();
        assert_eq!(Width::of(narrow.config()), LIVE);
        assert_eq!(narrow.config().num_attention_heads, 4);
        assert!(narrow.n_parameters() < decoder.n_parameters());
        let other = common::documents(&[40, 7], 23, 43);
        let batch = Batch::from_documents(&slices(&other));
        let (before, after) = (logits(&decoder, &batch), logits(&narrow, &batch));
        let size = before.iter().fold(0.0f32, |size, v| size.max(v.abs()));
        // The norms' epsilon is added to a mean over fewer channels.
        for (before, after) in before.iter().zip(&after) {
            assert!((before - after).abs() < 2e-4 * size, "{family:?}: {before} became {after}");
        }
        let less = Width { hidden_size: 11, ..LIVE };
        let too_narrow = logits(&decoder.keep_width(less, &slices(&documents)).unwrap(), &batch);
        let changed = before.iter().zip(&too_narrow).filter(|(b, a)| (*b - *a).abs() > 1e-3 * size).count();
        assert!(changed > before.len() / 2, "a channel that matters went unnoticed");
    }
}

#[test]
fn the_whole_width_is_the_model_itself() {
    let decoder = lively(wide(Family::Qwen3), 1, 44);
    let documents = documents(&[9, 5], 23, 45);
    let same = decoder.keep_width(Width::of(decoder.config()), &slices(&documents)).unwrap();
    assert_eq!(same.digest(), decoder.digest());
}

#[test]
fn threads_and_the_order_of_tokens_in_batches_change_no_bit() {
    let texts = documents(&[300, 400, 9], 23, 46);
    let of = |n_threads| {
        let decoder = lively(wide(Family::Llama), n_threads, 47);
        let narrow = decoder.keep_width(LIVE, &slices(&texts)).unwrap();
        narrow.tensors().flat_map(|tensor| bits(&tensor.data)).collect::<Vec<_>>()
    };
    assert_eq!(of(1), of(2));
}

#[test]
fn widths_that_cannot_be_kept_are_refused() {
    let decoder = lively(wide(Family::Llama), 1, 48);
    let texts = documents(&[9], 23, 49);
    for wrong in [Width { hidden_size: 19, ..LIVE }, Width { num_key_value_heads: 0, ..LIVE }] {
        let refused = decoder.keep_width(wrong, &slices(&texts)).unwrap_err();
        assert!(matches!(refused, ModelError::Width { .. }));
        assert_eq!(refused.kind(), ErrorKind::BadRecipe);
    }
    assert!(matches!(decoder.keep_width(LIVE, &[&[]]), Err(ModelError::NoCalibration)));
}

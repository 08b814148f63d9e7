//! Logits, gradients and training against transformers and PyTorch (`oracles/tiny_models.py`).
//!
//! Tolerances: both sides compute in f32 with different orders of summation. On x86-64 with AVX2 logits
//! (up to 5) differ by at most 6e-6 and gradients by 2e-6 of their norm; the bounds leave a factor of
//! ten and more for other machines.

mod common;

use common::{VARIANTS, Variant, bits, logits, slices};
use stillroom_model::{AdamW, Batch, HeadTerms, Targets, TrainState};

const LOGITS_TOLERANCE: f32 = 1e-4;
const GRADIENT_TOLERANCE: f64 = 1e-4;
const COSINE_MIN: f64 = 0.999999;
const LOSS_TOLERANCE: f64 = 1e-4;

fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |max, (a, b)| f32::max(max, (a - b).abs()))
}

#[test]
fn logits_are_those_of_transformers() {
    for name in VARIANTS {
        let variant = Variant::open(name, 1);
        let documents = variant.documents("input_ids");
        let found = logits(&variant.decoder, &Batch::from_documents(&slices(&documents)));
        let difference = max_difference(&found, &variant.golden["logits"].floats);
        assert!(difference <= LOGITS_TOLERANCE, "{name}: {difference:e}");
    }
}

#[test]
fn packed_documents_are_those_of_transformers_and_equal_separate_ones_bit_for_bit() {
    for name in VARIANTS {
        let variant = Variant::open(name, 1);
        let ids = variant.documents("packed_input_ids").remove(0);
        let first = variant.json["document_lengths"][0].as_u64().unwrap() as usize;
        let documents = [&ids[..first], &ids[first..]];
        let packed = logits(&variant.decoder, &Batch::from_documents(&documents));
        let difference = max_difference(&packed, &variant.golden["packed_logits"].floats);
        assert!(difference <= LOGITS_TOLERANCE, "{name}: {difference:e}");
        let apart = documents.map(|ids| logits(&variant.decoder, &Batch::from_documents(&[ids]))).concat();
        assert_eq!(bits(&packed), bits(&apart), "{name}");
    }
}

/// The golden batch and its supervision.
fn supervised(variant: &Variant) -> (Batch, Targets<'static>) {
    let documents = variant.documents("input_ids");
    let labels = &variant.golden["labels"].ints;
    let rows: Vec<u32> = (0..labels.len() as u32).filter(|&r| labels[r as usize] >= 0).collect();
    let hard_labels = rows.iter().map(|&r| labels[r as usize] as u32).collect();
    (Batch::from_documents(&slices(&documents)), Targets { rows, hard_labels, ..Targets::default() })
}

fn mean(losses: &[f32]) -> f64 {
    losses.iter().map(|&l| f64::from(l)).sum::<f64>() / losses.len() as f64
}

fn hard(n_rows: usize) -> HeadTerms<'static> {
    HeadTerms { hard_label: 1.0, divergences: &[], scale: 1.0 / n_rows as f32 }
}

#[test]
fn the_gradient_of_every_parameter_is_that_of_pytorch() {
    for name in VARIANTS {
        let variant = Variant::open(name, 2);
        let (batch, targets) = supervised(&variant);
        let losses = variant.decoder.losses(&batch, &targets, &[]);
        let (golden, json) = (variant.golden, variant.json);
        let mut state = TrainState::new(variant.decoder);
        let trained = state.accumulate(&batch, &targets, &hard(targets.rows.len()));
        assert_eq!(bits(&trained.hard_label), bits(&losses.hard_label), "{name}: held-out losses differ");
        let loss = mean(&trained.hard_label);
        let expected = json["loss"].as_f64().unwrap();
        assert!((loss - expected).abs() <= LOSS_TOLERANCE, "{name}: loss {loss}, expected {expected}");

        let mut seen = 0;
        for gradient in state.gradients() {
            let expected = &golden[&format!("grad.{}", gradient.name)];
            assert_eq!(gradient.shape, expected.shape, "{name}: {}", gradient.name);
            let dot = |a: &[f32], b: &[f32]| -> f64 {
                a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            };
            let delta: Vec<f32> = gradient.data.iter().zip(&expected.floats).map(|(a, b)| a - b).collect();
            let norm = dot(&expected.floats, &expected.floats).sqrt();
            let relative = dot(&delta, &delta).sqrt() / norm;
            let cosine =
                dot(&gradient.data, &expected.floats) / (norm * dot(&gradient.data, &gradient.data).sqrt());
            assert!(relative <= GRADIENT_TOLERANCE, "{name}: {} ‖Δ‖/‖g‖ = {relative:e}", gradient.name);
            assert!(cosine >= COSINE_MIN, "{name}: {} cosine {cosine}", gradient.name);
            seen += 1;
        }
        assert_eq!(seen, golden.keys().filter(|k| k.starts_with("grad.")).count(), "{name}");
    }
}

#[test]
fn ten_adamw_steps_have_the_losses_and_norms_of_pytorch() {
    for name in VARIANTS {
        let variant = Variant::open(name, 1);
        let (batch, targets) = supervised(&variant);
        let adamw = &variant.json["adamw"];
        let number = |key: &str| adamw[key].as_f64().unwrap() as f32;
        let opt = AdamW {
            learning_rate: number("lr"),
            beta1: number("beta1"),
            beta2: number("beta2"),
            eps: number("eps"),
            weight_decay: number("weight_decay"),
            max_grad_norm: number("max_grad_norm"),
        };
        let mut state = TrainState::new(variant.decoder);
        let losses = adamw["losses"].as_array().unwrap();
        assert_eq!(losses.len(), 10);
        for (step, expected) in losses.iter().enumerate() {
            let found = state.accumulate(&batch, &targets, &hard(targets.rows.len()));
            let (loss, expected) = (mean(&found.hard_label), expected.as_f64().unwrap());
            assert!((loss - expected).abs() <= LOSS_TOLERANCE, "{name}: step {step}, {loss} not {expected}");
            let report = state.step(&opt);
            let norm = adamw["grad_norms"][step].as_f64().unwrap();
            let relative = (report.grad_norm - norm).abs() / norm;
            assert!(relative <= 1e-3, "{name}: step {step}, norm {} not {norm}", report.grad_norm);
            assert_eq!(report.clipped, norm > 1.0, "{name}: step {step}");
        }
        assert_eq!(state.n_steps(), 10);
    }
}

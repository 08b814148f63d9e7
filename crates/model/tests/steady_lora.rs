//! Training an adapter allocates no memory after its first steps, as training all weights does
//! (`steady.rs`), and takes the memory of the adapter alone.
//!
//! One test in a program of its own, since the allocator counts for the whole process.

mod common;

use std::alloc::System;

use common::{config, documents, lively, slices};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use stillroom_core::CounterRng;
use stillroom_formats::{DecoderConfig, Family, LoraConfig, LoraTarget};
use stillroom_model::{AdamW, Batch, HeadTerms, Targets, TrainState};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const OPT: AdamW =
    AdamW { learning_rate: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, max_grad_norm: 0.1 };

fn supervised() -> (Batch, Targets<'static>) {
    let documents = documents(&[200, 190, 17, 1, 230, 513], 211, 31);
    let batch = Batch::from_documents(&slices(&documents));
    let mut rng = CounterRng::new(&[32]);
    let rows: Vec<u32> = (0..batch.n_tokens() as u32).filter(|_| rng.uniform() < 0.6).collect();
    let hard_labels = rows.iter().map(|_| rng.below(211) as u32).collect();
    (batch, Targets { rows, hard_labels, ..Targets::default() })
}

#[test]
fn from_the_third_step_on_training_an_adapter_allocates_nothing() {
    let (batch, targets) = supervised();
    let terms = HeadTerms { hard_label: 1.0, divergences: &[], scale: 1.0 / targets.rows.len() as f32 };
    for family in [Family::Llama, Family::Qwen2, Family::Qwen3] {
        for (dropout, gradient_checkpointing) in [(0.0, false), (0.1, false), (0.1, true)] {
            let config = DecoderConfig { max_position_embeddings: 1024, ..config(family) };
            let target_modules = LoraTarget::ALL.to_vec();
            let lora = LoraConfig { r: 4, alpha: 8.0, dropout, target_modules, use_rslora: false };
            let n_trained = lora.n_parameters(&config) as usize;
            let decoder = lively(config, 2, 33).with_new_adapter(lora, 34).unwrap();
            let region = Region::new(ALLOCATOR);
            let mut state = TrainState::new(decoder).with_gradient_checkpointing(gradient_checkpointing);
            let taken = region.change().bytes_allocated;
            // Gradients and two moments, and some bytes that keep them.
            assert!((12 * n_trained..16 * n_trained).contains(&taken), "{taken} for {n_trained} numbers");
            for step in 1..=5 {
                let region = Region::new(ALLOCATOR);
                let n_losses = state.accumulate(&batch, &targets, &terms).hard_label.len();
                let report = state.step(&OPT);
                let change = region.change();
                assert_eq!(n_losses, targets.rows.len());
                assert!(report.grad_norm.is_finite() && report.grad_norm > 0.0);
                let counts = (change.allocations, change.reallocations, change.deallocations);
                assert!(step > 1 || counts.0 > 0, "the allocator counts");
                if step >= 3 {
                    let what =
                        format!("{family:?}, dropout {dropout}, {gradient_checkpointing}, step {step}");
                    assert_eq!(counts, (0, 0, 0), "{what}: {} bytes", change.bytes_allocated);
                }
            }
        }
    }
}

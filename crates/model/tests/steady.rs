//! After its first steps training allocates no memory: everything that a step takes serves the next one.
//!
//! One test in a program of its own, since the allocator counts for the whole process.

mod common;

use std::alloc::System;

use common::{config, documents, lively, slices};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use stillroom_core::{CounterRng, SparseRow, Tail};
use stillroom_formats::{DecoderConfig, Family, LoraConfig, LoraTarget};
use stillroom_model::{
    AdamW, Batch, Decoder, Divergence, HeadTerms, LiveTeacher, SparseBatch, StepReport, Targets, Term,
    TrainState,
};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const OPT: AdamW =
    AdamW { learning_rate: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, max_grad_norm: 0.1 };

/// What supervises beside the text's own tokens.
#[derive(Clone, Copy, Debug)]
enum Teacher<'t> {
    None,
    /// Eight ids of each row.
    Sparse(Tail),
    Live(&'t Decoder),
}

/// Documents that make several groups, most of their rows supervised.
fn supervised(teacher: Teacher<'_>) -> (Batch, Targets<'_>) {
    let documents = documents(&[200, 190, 17, 1, 230, 513], 211, 31);
    let batch = Batch::from_documents(&slices(&documents));
    let mut rng = CounterRng::new(&[32]);
    let rows: Vec<u32> = (0..batch.n_tokens() as u32).filter(|_| rng.uniform() < 0.6).collect();
    let hard_labels = rows.iter().map(|_| rng.below(211) as u32).collect();
    let sparse_of = |tail| {
        let mut sparse = SparseBatch::new(tail);
        for row in &rows {
            let ids = (0..8).map(|i| (row * 7 + 23 * i) % 211).collect();
            sparse.push(&SparseRow { ids, probs: vec![0.1; 8], teacher_entropy: 0.0 });
        }
        sparse
    };
    let (sparse, live) = match teacher {
        Teacher::None => (None, None),
        Teacher::Sparse(tail) => (Some(sparse_of(tail)), None),
        Teacher::Live(decoder) => (None, Some(LiveTeacher::alone(decoder, None))),
    };
    (batch, Targets { rows, hard_labels, sparse, live, ..Targets::default() })
}

/// Asserts that steps 3 to 5 allocate nothing on any thread.
fn assert_steady(what: &str, config: DecoderConfig, teacher: Teacher<'_>, gradient_checkpointing: bool) {
    let (batch, targets) = supervised(teacher);
    let term = |divergence| Term { divergence, weight: 0.7, temperature: 2.0 };
    let both = [term(Divergence::ForwardKl), term(Divergence::Jsd { teacher_weight: 0.5 })];
    let divergences = if matches!(teacher, Teacher::None) { &[][..] } else { &both[..] };
    let terms = HeadTerms { hard_label: 0.3, divergences, scale: 10.0 / targets.rows.len() as f32 };
    let state = TrainState::new(lively(config, 2, 33)).with_gradient_checkpointing(gradient_checkpointing);
    let reports = steady_steps(what, state, &batch, &targets, &terms);
    assert!(reports.iter().all(|report| report.clipped));
}

/// [`assert_steady`] of an adapter, whose memory is that of the adapter alone.
fn assert_adapter_steady(family: Family, dropout: f64, gradient_checkpointing: bool) {
    let (batch, targets) = supervised(Teacher::None);
    let terms = HeadTerms { hard_label: 1.0, divergences: &[], scale: 1.0 / targets.rows.len() as f32 };
    let config = DecoderConfig { max_position_embeddings: 1024, ..config(family) };
    let target_modules = LoraTarget::ALL.to_vec();
    let lora = LoraConfig { r: 4, alpha: 8.0, dropout, target_modules, use_rslora: false };
    let n_trained = lora.n_parameters(&config) as usize;
    let decoder = lively(config, 2, 33).with_new_adapter(lora, 34).unwrap();
    let region = Region::new(ALLOCATOR);
    let state = TrainState::new(decoder).with_gradient_checkpointing(gradient_checkpointing);
    let taken = region.change().bytes_allocated;
    // Gradients and two moments, and some bytes that keep them.
    assert!((12 * n_trained..16 * n_trained).contains(&taken), "{taken} for {n_trained} numbers");
    let what = format!("{family:?}, an adapter, dropout {dropout}, {gradient_checkpointing}");
    steady_steps(&what, state, &batch, &targets, &terms);
}

/// Five steps, of which the last three allocate nothing on any thread.
fn steady_steps(
    what: &str,
    mut state: TrainState,
    batch: &Batch,
    targets: &Targets<'_>,
    terms: &HeadTerms<'_>,
) -> [StepReport; 5] {
    [1, 2, 3, 4, 5].map(|step| {
        let region = Region::new(ALLOCATOR);
        let n_losses = state.accumulate(batch, targets, terms).hard_label.len();
        let report = state.step(&OPT);
        let change = region.change();
        assert_eq!(n_losses, targets.rows.len());
        assert!(report.grad_norm.is_finite() && report.grad_norm > 0.0);
        let counts = (change.allocations, change.reallocations, change.deallocations);
        assert!(step > 1 || counts.0 > 0, "the allocator counts");
        if step >= 3 {
            assert_eq!(counts, (0, 0, 0), "{what}, step {step}: {} bytes", change.bytes_allocated);
        }
        report
    })
}

#[test]
fn from_the_third_step_on_training_allocates_nothing() {
    // Tied and untied heads, with biases and with QK-norm.
    for family in [Family::Llama, Family::Qwen2, Family::Qwen3] {
        let config = DecoderConfig { max_position_embeddings: 1024, ..config(family) };
        let decoder = lively(DecoderConfig { num_hidden_layers: 2, ..config.clone() }, 2, 34);
        let teachers = [
            ("none", Teacher::None),
            ("sparse", Teacher::Sparse(Tail::Bucket)),
            ("live", Teacher::Live(&decoder)),
        ];
        for (name, teacher) in teachers {
            for gradient_checkpointing in [false, true] {
                let what = format!("{family:?}, teacher: {name}, {gradient_checkpointing}");
                assert_steady(&what, config.clone(), teacher, gradient_checkpointing);
            }
        }
        for (dropout, gradient_checkpointing) in [(0.0, false), (0.1, false), (0.1, true)] {
            assert_adapter_steady(family, dropout, gradient_checkpointing);
        }
    }
}

//! After its first call the head allocates no memory, whatever its terms and its teacher.
//!
//! One test in a program of its own, since the allocator counts for the whole process.

mod common;

use std::alloc::System;

use common::numbers;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use stillroom_kernels::{
    DenseTargets, Device, Divergence, HeadLosses, HeadTargets, HeadTerms, Mixture, SparseTargets, TailMode,
    Term, Weight,
};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[test]
fn the_head_takes_no_new_memory() {
    let (n, vocab, width) = (40, 700, 16);
    let dev = Device::cpu(3);
    let (hidden, w) = (dev.upload(&numbers(1, n * width)), dev.upload(&numbers(2, vocab * width)));
    let (mut dh, mut dw) = (dev.zeros(n * width), dev.zeros(vocab * width));
    let labels = vec![3; n];
    let offsets: Vec<u32> = (0..=n as u32).map(|r| 4 * r).collect();
    let ids: Vec<u32> = (0..4 * n as u32).map(|i| i * 13 % 700).collect();
    let probs = vec![0.2; 4 * n];
    let sparse =
        |tail| SparseTargets { offsets: &offsets, ids: &ids, probs: &probs, teacher_entropy: &[], tail };
    let dense = DenseTargets {
        hidden: &hidden,
        first_row: 0,
        head: Weight::Plain { w: &w, n_out: vocab, n_in: width },
    };
    let none = HeadTargets { hard_labels: Some(&labels), ..HeadTargets::default() };
    let mut all_targets = vec![HeadTargets { dense: Some(dense), ..none }];
    let mixture = Some(Mixture::new(1.0, [(dense, 2.0)]));
    all_targets.push(HeadTargets { dense: Some(dense), mixture, ..none });
    let tails = [TailMode::Drop, TailMode::Bucket, TailMode::Uniform];
    all_targets.extend(tails.map(|tail| HeadTargets { sparse: Some(sparse(tail)), ..none }));
    let term = |divergence| Term { divergence, weight: 0.5, temperature: 2.0 };
    let terms = [Divergence::ForwardKl, Divergence::Tvd, Divergence::Jsd { teacher_weight: 0.5 }].map(term);
    let terms = HeadTerms { hard_label: 0.1, divergences: &terms, scale: 1.0 };
    let mut losses = HeadLosses::default();
    for targets in all_targets {
        for call in 0..4 {
            losses.clear();
            let region = Region::new(ALLOCATOR);
            dev.divergence_head(&mut dh, &mut dw, &hidden, &w, n, &targets, &terms, &mut losses);
            let taken = region.change().allocations;
            assert!(call < 2 || taken == 0, "call {call} took memory {taken} times");
        }
        assert_eq!(losses.divergence(2).len(), n);
    }
}

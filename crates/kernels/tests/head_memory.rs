//! The head at 4,096 rows and 49,152 ids takes little memory beside weights and gradients, whatever its teacher.
//!
//! One test in a program of its own, since the peak is that of the whole process. Its hidden width is small, so that it
//! is fast; logits do not depend on it.
#![cfg(target_os = "linux")]

mod common;

use common::numbers;
use stillroom_kernels::{
    DenseTargets, Device, Divergence, HeadLosses, HeadTargets, HeadTerms, SparseTargets, TailMode, Term,
    Weight,
};

const ROWS: usize = 4096;
const VOCAB: usize = 49_152;
const WIDTH: usize = 8;
/// One buffer of all logits would take 805 MB.
const BYTES_MAX: usize = 64_000_000;

/// Bytes that `/proc/self/status` gives for `key`.
fn of_process(key: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("the process's status");
    let line = status.lines().find(|line| line.starts_with(key)).expect("a line of that name");
    let number = line.split_whitespace().nth(1).expect("a number");
    1024 * number.parse::<usize>().expect("kilobytes")
}

#[test]
fn the_head_takes_little_memory_beside_weights_and_gradients() {
    let dev = Device::cpu(2);
    let (hidden, w) = (dev.upload(&numbers(1, ROWS * WIDTH)), dev.upload(&numbers(2, VOCAB * WIDTH)));
    let (mut dh, mut dw) = (dev.zeros(ROWS * WIDTH), dev.zeros(VOCAB * WIDTH));
    // Zeros are given when they are first written.
    dev.add_assign(&mut dw, &w);
    dev.add_assign(&mut dh, &hidden);
    let labels: Vec<u32> = (0..ROWS as u32).map(|r| r * 11 % VOCAB as u32).collect();
    let offsets: Vec<u32> = (0..=ROWS as u32).map(|r| 12 * r).collect();
    let ids: Vec<u32> = (0..12 * ROWS as u32).map(|i| i * 4099 % VOCAB as u32).collect();
    let probs = vec![0.05; 12 * ROWS];
    let tail = TailMode::Bucket;
    let sparse = SparseTargets { offsets: &offsets, ids: &ids, probs: &probs, teacher_entropy: &[], tail };
    let head = Weight::Plain { w: &w, n_out: VOCAB, n_in: WIDTH };
    let dense = DenseTargets { hidden: &hidden, first_row: 0, head };
    let none = HeadTargets { hard_labels: Some(&labels), ..HeadTargets::default() };
    let term = Term { divergence: Divergence::ForwardKl, weight: 1.0, temperature: 1.0 };
    let terms = HeadTerms { hard_label: 0.1, divergences: &[term], scale: 1.0 / ROWS as f32 };
    let mut losses = HeadLosses::default();
    let before = of_process("VmRSS:");
    for targets in [HeadTargets { sparse: Some(sparse), ..none }, HeadTargets { dense: Some(dense), ..none }]
    {
        losses.clear();
        dev.divergence_head(&mut dh, &mut dw, &hidden, &w, ROWS, &targets, &terms, &mut losses);
        assert_eq!(losses.divergence(0).len(), ROWS);
        let taken = of_process("VmHWM:").saturating_sub(before);
        assert!(taken <= BYTES_MAX, "{} MB beside weights and gradients", taken / 1_000_000);
    }
}

//! What each kernel beside the products takes in a training step of a small model, by memory and by arithmetic.
//!
//! `cargo run --release -p stillroom-kernels --example kernels [THREADS]`
//!
//! GB/s counts what a kernel reads and writes once; the sum of two large arrays shows what the memory gives.
//! GFLOP/s counts products: those of attention's causal triangle, of the head, of low rank.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::time::Instant;

use stillroom_kernels::{
    AdamWStep, AttentionShape, Buf, Columns, Device, Divergence, Dropout, HeadLosses, HeadTargets, HeadTerms,
    RopeScaling, RopeTable, Segment, SparseTargets, TailMode, Term, soften, weigh,
};

/// Rows that go forward and backward together, and their two documents.
const ROWS: usize = 512;
const SEGMENTS: [Segment; 2] = [Segment { start: 0, len: 256 }, Segment { start: 256, len: 256 }];
const WIDTH: usize = 384;
const FFN: usize = 1024;
const VOCAB: usize = 8192;
/// Teacher ids per row, and the rank of an adapter.
const KEPT: usize = 50;
const RANK: usize = 16;
const SHAPE: AttentionShape = AttentionShape { n_q_heads: 6, n_kv_heads: 6, head_dim: 64 };
/// Numbers of one large tensor: more than the caches hold.
const LARGE: usize = 8 << 20;
const ROUNDS: usize = 15;

fn main() {
    let threads = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(2);
    let bench = Bench { device: Device::cpu(threads) };
    println!("{:<22} {:>9} {:>8} {:>9}", "kernel", "ms", "GB/s", "GFLOP/s");
    bench.rows();
    bench.attention();
    bench.head();
    bench.low_rank();
    bench.parameters();
    println!("FMA peak {:.0} GFLOP/s", bench.device.fma_peak() / 1e9);
}

struct Bench {
    device: Device,
}

impl Bench {
    /// The best of [`ROUNDS`], with what `numbers` and `flops` make of it.
    fn time(&self, name: &str, numbers: usize, flops: usize, mut kernel: impl FnMut()) {
        let mut best = f64::INFINITY;
        for _ in 0..ROUNDS {
            let start = Instant::now();
            kernel();
            best = best.min(start.elapsed().as_secs_f64());
        }
        let rate = |n: usize| n as f64 / best / 1e9;
        let arithmetic = if flops > 0 { format!("{:.0}", rate(flops)) } else { String::new() };
        println!("{name:<22} {:>9.3} {:>8.1} {arithmetic:>9}", best * 1e3, rate(4 * numbers));
    }

    fn filled(&self, len: usize) -> Buf {
        let values: Vec<f32> = (0..len).map(|i| (i % 251) as f32 / 251.0 - 0.5).collect();
        self.device.upload(&values)
    }

    /// Kernels that go row by row.
    fn rows(&self) {
        let d = &self.device;
        let n = ROWS * WIDTH;
        let (x, w, mut y) = (self.filled(n), self.filled(WIDTH), self.filled(n));
        let (mut dx, mut dw, dy) = (self.filled(n), self.filled(WIDTH), self.filled(n));
        self.time("rmsnorm", 2 * n, 0, || d.rmsnorm_forward(&mut y, &x, &w, 1e-5, ROWS, WIDTH));
        self.time("rmsnorm backward", 4 * n, 0, || {
            d.rmsnorm_backward(&mut dx, &mut dw, &dy, &x, &w, 1e-5, ROWS, WIDTH);
        });
        self.time("add", 3 * n, 0, || d.add_assign(&mut dx, &dy));
        self.time("bias backward", n, 0, || d.bias_backward(&mut dw, &dy, ROWS, WIDTH));

        let (gate_up, mut hidden) = (self.filled(2 * ROWS * FFN), self.filled(ROWS * FFN));
        let mut dgate_up = self.filled(2 * ROWS * FFN);
        self.time("swiglu", 3 * ROWS * FFN, 0, || d.swiglu_forward(&mut hidden, &gate_up, ROWS, FFN));
        self.time("swiglu backward", 5 * ROWS * FFN, 0, || {
            d.swiglu_backward(&mut dgate_up, &hidden, &gate_up, ROWS, FFN);
        });

        let ids: Vec<u32> = (0..ROWS as u32).map(|i| i * 2_654_435 % VOCAB as u32).collect();
        let mut table = self.filled(VOCAB * WIDTH);
        self.time("embedding", 2 * n, 0, || d.embedding_forward(&mut y, &table, &ids, WIDTH));
        self.time("embedding backward", 3 * n, 0, || d.embedding_backward(&mut table, &dy, &ids, WIDTH));
    }

    fn attention(&self) {
        let d = &self.device;
        let qkv_numbers = ROWS * SHAPE.qkv_width();
        let out_numbers = ROWS * SHAPE.n_q_heads * SHAPE.head_dim;
        let mut qkv = self.filled(qkv_numbers);
        let positions: Vec<u32> = SEGMENTS.iter().flat_map(|s| 0..s.len as u32).collect();
        let table = RopeTable::new(SHAPE.head_dim, 1e4, RopeScaling::None, ROWS);
        self.time("rope", 2 * qkv_numbers, 0, || d.rope_forward(&mut qkv, SHAPE, &table, &positions));
        let (q_norm, k_norm) = (self.filled(SHAPE.head_dim), self.filled(SHAPE.head_dim));
        let mut normed = self.filled(qkv_numbers);
        self.time("query and key norms", 2 * qkv_numbers, 0, || {
            d.qk_norm_forward(&mut normed, &qkv, &q_norm, &k_norm, 1e-6, SHAPE);
        });

        let (mut out, mut lse) = (self.filled(out_numbers), self.filled(ROWS * SHAPE.n_q_heads));
        let pairs: usize = SEGMENTS.iter().map(|s| s.len * (s.len + 1) / 2).sum();
        // A product of a triangle of heads: scores, and what they weigh.
        let product = 2 * pairs * SHAPE.n_q_heads * SHAPE.head_dim;
        self.time("attention", qkv_numbers + out_numbers, 2 * product, || {
            d.attention_forward(&mut out, &mut lse, &qkv, SHAPE, &SEGMENTS);
        });
        let (dout, mut dqkv) = (self.filled(out_numbers), self.filled(qkv_numbers));
        self.time("attention backward", 2 * qkv_numbers + 2 * out_numbers, 5 * product, || {
            d.attention_backward(&mut dqkv, &dout, &out, &lse, &qkv, SHAPE, &SEGMENTS);
        });
    }

    /// The divergence head with its products, and what sampling makes of its logits.
    fn head(&self) {
        let d = &self.device;
        let (hidden, w) = (self.filled(ROWS * WIDTH), self.filled(VOCAB * WIDTH));
        let (mut dhidden, mut dw) = (self.filled(ROWS * WIDTH), self.filled(VOCAB * WIDTH));
        let labels = vec![7; ROWS];
        let of_row: Vec<u32> = (0..KEPT as u32).map(|i| i * 97).collect();
        let (ids, probs) = (of_row.repeat(ROWS), vec![0.9 / KEPT as f32; ROWS * KEPT]);
        let offsets: Vec<u32> = (0..=ROWS as u32).map(|r| r * KEPT as u32).collect();
        let sparse = SparseTargets {
            offsets: &offsets,
            ids: &ids,
            probs: &probs,
            teacher_entropy: &[],
            tail: TailMode::Bucket,
        };
        let term = |divergence| Term { divergence, weight: 1.0, temperature: 1.0 };
        let jsd = Divergence::Jsd { teacher_weight: 0.5 };
        let losses = [
            (
                "head, hard labels",
                vec![],
                HeadTargets { hard_labels: Some(&labels), ..HeadTargets::default() },
            ),
            (
                "head, forward KL",
                vec![term(Divergence::ForwardKl)],
                HeadTargets { sparse: Some(sparse), ..HeadTargets::default() },
            ),
            ("head, JSD", vec![term(jsd)], HeadTargets { sparse: Some(sparse), ..HeadTargets::default() }),
        ];
        let product = 2 * ROWS * WIDTH * VOCAB;
        for (name, divergences, targets) in losses {
            let hard_label = if targets.hard_labels.is_some() { 1.0 } else { 0.0 };
            let terms = HeadTerms { hard_label, divergences: &divergences, scale: 1.0 };
            let mut found = HeadLosses::default();
            self.time(name, VOCAB * WIDTH, 3 * product, || {
                found.clear();
                d.divergence_head(&mut dhidden, &mut dw, &hidden, &w, ROWS, &targets, &terms, &mut found);
            });
        }
        let logits: Vec<f32> = (0..VOCAB).map(|i| (i % 101) as f32 * 0.1).collect();
        let (mut row, mut sums) = (logits.clone(), Vec::new());
        self.time("weigh a row", 2 * VOCAB, 0, || {
            row.copy_from_slice(&logits);
            std::hint::black_box(weigh(&mut row, 1.0, &mut sums));
        });
        self.time("soften a row", 2 * VOCAB, 0, || {
            row.copy_from_slice(&logits);
            std::hint::black_box(soften(&mut row, 1.0));
        });
    }

    /// An adapter of rank 16 on a weight of WIDTH × WIDTH.
    fn low_rank(&self) {
        let d = &self.device;
        let (n, shape) = (ROWS * WIDTH, (ROWS, RANK, WIDTH));
        let (x, a, b) = (self.filled(n), self.filled(RANK * WIDTH), self.filled(WIDTH * RANK));
        let (mut y, mut t) = (self.filled(n), self.filled(ROWS * RANK));
        let columns = Columns { stride: WIDTH, first: 0, len: WIDTH };
        let product = 2 * ROWS * RANK * WIDTH;
        self.time("low rank", 2 * n, 2 * product, || {
            d.low_rank_down(&mut t, &x, &a, 2.0, shape);
            d.low_rank_up(&mut y, columns, &t, &b, ROWS, RANK);
        });
        let (mut dt, mut db, mut dx) = (self.filled(ROWS * RANK), self.filled(WIDTH * RANK), self.filled(n));
        self.time("low rank backward", 3 * n, 3 * product, || {
            d.low_rank_up_backward(&mut dt, &mut db, &y, columns, &t, &b, 2.0, (ROWS, RANK));
            d.low_rank_down_backward(&mut dx, &dt, &a, shape);
        });
        let dropout = Dropout { probability: 0.1, key: 1, first_row: 0, rows: None };
        self.time("dropout", 2 * n, 0, || d.dropout_forward(&mut y, &x, &dropout, ROWS, WIDTH));
    }

    /// Kernels that go over the parameters, and a sum beside them.
    fn parameters(&self) {
        let d = &self.device;
        let (mut p, mut g) = (self.filled(LARGE), self.filled(LARGE));
        let (mut m, mut v) = (d.zeros(LARGE), d.zeros(LARGE));
        let step = AdamWStep {
            step: 1,
            learning_rate: 1e-4,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            gradient_scale: 1.0,
        };
        self.time("norm of the gradient", LARGE, 0, || {
            std::hint::black_box(d.sum_of_squares(&g));
        });
        self.time("adamw", 8 * LARGE, 0, || d.adamw(&mut p, &mut g, &mut m, &mut v, &step));
        self.time("add, large", 3 * LARGE, 0, || d.add_assign(&mut m, &v));
    }
}

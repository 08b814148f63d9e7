//! Rates of the matrix products of a training step, beside the FMA peak of the same moment.
//!
//! `cargo run --release -p stillroom-kernels --example products [THREADS]`

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::time::Instant;

use stillroom_kernels::{Device, Weight};

/// (rows, inputs, outputs) of linear maps: attention and feed-forward of a small model, a chunk of a head.
const SHAPES: [(usize, usize, usize); 9] = [
    (2048, 384, 1152),
    (2048, 384, 384),
    (2048, 384, 2048),
    (2048, 1024, 384),
    (512, 384, 1152),
    (512, 384, 384),
    (512, 1024, 384),
    (512, 384, 8192),
    (252, 384, 49152),
];
const ROUNDS: usize = 9;

fn main() {
    let threads = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(2);
    let device = Device::cpu(threads);
    println!(
        "{:>5} {:>5} {:>6} {:>10} {:>10} {:>10}   GFLOP/s (share of the peak)",
        "rows", "in", "out", "y", "dx", "dw"
    );
    for (rows, n_in, n_out) in SHAPES {
        let filled = |len: usize| {
            let values: Vec<f32> = (0..len).map(|i| (i % 251) as f32 / 251.0 - 0.5).collect();
            device.upload(&values)
        };
        let (x, w, mut y) = (filled(rows * n_in), filled(n_out * n_in), filled(rows * n_out));
        let (mut dx, mut dw) = (filled(rows * n_in), filled(n_out * n_in));
        let plain = Weight::Plain { w: &w, n_out, n_in };
        let flops = (2 * rows * n_in * n_out) as f64;
        let (mut best, mut peak) = ([0.0f64; 3], 0.0f64);
        for _ in 0..ROUNDS {
            peak = peak.max(device.fma_peak());
            let mut time = |slot: usize, product: &mut dyn FnMut()| {
                let start = Instant::now();
                product();
                best[slot] = best[slot].max(flops / start.elapsed().as_secs_f64());
            };
            time(0, &mut || device.linear_forward(&mut y, &x, plain, None, rows));
            time(1, &mut || device.linear_backward_input(&mut dx, &y, &w, rows, n_in, n_out));
            time(2, &mut || device.linear_backward_weight(&mut dw, &y, &x, rows, n_in, n_out));
        }
        let [y, dx, dw] = best.map(|rate| format!("{:.0} ({:.2})", rate / 1e9, rate / peak));
        println!("{rows:>5} {n_in:>5} {n_out:>6} {y:>10} {dx:>10} {dw:>10}   peak {:.0}", peak / 1e9);
    }
}

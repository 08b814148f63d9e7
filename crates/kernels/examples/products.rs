//! Speed of the matrix products of a training step, beside the FMA peak of this machine.
//!
//! `cargo run --release -p stillroom-kernels --example products [THREADS]`

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::time::Instant;

use stillroom_kernels::Device;

fn main() {
    let threads = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(2);
    let dev = Device::cpu(threads);
    println!("fma peak      {:7.1} GFLOP/s on {threads} threads", dev.fma_peak() / 1e9);
    for (n, k, m) in [
        (2048, 384, 1152),
        (2048, 384, 2048),
        (2048, 1024, 384),
        (2048, 128, 384),
        (2048, 256, 768),
        (256, 576, 49152),
        (32, 256, 768),
    ] {
        let data: Vec<f32> = (0..n.max(m) * k).map(|i| (i % 17) as f32 * 0.01).collect();
        let dout: Vec<f32> = (0..n * m).map(|i| (i % 13) as f32 * 0.01).collect();
        let (x, w) = (dev.upload(&data[..n * k]), dev.upload(&data[..m * k]));
        let (mut y, dy) = (dev.zeros(n * m), dev.upload(&dout));
        let (mut dx, mut dw) = (dev.zeros(n * k), dev.zeros(m * k));
        let mut packed = dev.pack(&w, m, k);
        let time = |f: &mut dyn FnMut()| {
            f();
            let repeats = (2_000_000_000 / (2 * n * k * m)).clamp(3, 2000);
            let start = Instant::now();
            (0..repeats).for_each(|_| f());
            (2 * n * k * m * repeats) as f64 / start.elapsed().as_secs_f64() / 1e9
        };
        let forward = time(&mut || dev.linear_forward(&mut y, &x, &packed, None, n));
        let with_packing = time(&mut || {
            dev.repack(&mut packed, &w);
            dev.linear_forward(&mut y, &x, &packed, None, n);
        });
        let input = time(&mut || dev.linear_backward_input(&mut dx, &dy, &w, n, k, m));
        let weight = time(&mut || dev.linear_backward_weight(&mut dw, &dy, &x, n, k, m));
        println!(
            "{n:5} x {k:5} -> {m:5}: forward {forward:6.1} ({with_packing:6.1} with packing), input {input:6.1}, weight {weight:6.1} GFLOP/s"
        );
    }
}

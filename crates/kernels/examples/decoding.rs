//! Products with few rows, with the weights of a model of 135 million numbers: what decoding does.
//!
//!     cargo run --release -p stillroom-kernels --example decoding -- [THREADS]

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::time::Instant;

use stillroom_kernels::{BlockFormat, Device, PackedWeight, StoredRows};

/// (outputs, inputs) of one layer, and of the head.
const LAYER: [(usize, usize); 4] = [(960, 576), (576, 576), (3072, 576), (576, 1536)];
const N_LAYERS: usize = 30;
const HEAD: (usize, usize) = (49_152, 576);
const ROWS: [usize; 6] = [1, 2, 3, 4, 8, 32];
const ROUNDS: usize = 7;

fn main() {
    let threads = std::env::args().nth(1).map_or(2, |n| n.parse().expect("a number of threads"));
    let device = Device::cpu(threads);
    println!("{:>6} {:>5} {:>9} {:>8} {:>9}", "format", "rows", "ms", "GB/s", "GFLOP/s");
    for format in
        [BlockFormat::F32, BlockFormat::F16, BlockFormat::Q8_0, BlockFormat::Q4_1, BlockFormat::Q4_0]
    {
        let shapes = (0..N_LAYERS).flat_map(|_| LAYER).chain([HEAD]);
        let weights: Vec<PackedWeight> = shapes.map(|shape| weight(&device, format, shape)).collect();
        let n_bytes: usize = weights.iter().map(PackedWeight::n_bytes).sum();
        let n_numbers: usize = weights.iter().map(|w| w.n_out() * w.n_in()).sum();
        for n_rows in ROWS {
            let x = device.upload(&vec![0.5; n_rows * 1536]);
            let mut y = device.zeros(n_rows * HEAD.0);
            let mut best = f64::INFINITY;
            for _ in 0..ROUNDS {
                let start = Instant::now();
                weights.iter().for_each(|w| device.linear_forward(&mut y, &x, w, None, n_rows));
                best = best.min(start.elapsed().as_secs_f64());
            }
            let (gb, gflop) = (n_bytes as f64 / best / 1e9, (2 * n_rows * n_numbers) as f64 / best / 1e9);
            println!("{:>6} {n_rows:>5} {:>9.2} {gb:>8.1} {gflop:>9.1}", format!("{format:?}"), best * 1e3);
        }
    }
    println!("peak {:.1} GFLOP/s", device.fma_peak() / 1e9);
}

/// A weight of the same block over and over.
fn weight(device: &Device, format: BlockFormat, (n_out, n_in): (usize, usize)) -> PackedWeight {
    let (block_len, block_bytes) = format.block();
    // As halves these bytes are 1.0625, as f32 1.5.
    let block: Vec<u8> = [0x40, 0x3c, 0xc0, 0x3f].into_iter().cycle().take(block_bytes).collect();
    let bytes = block.repeat(n_out * n_in / block_len);
    device.pack_stored(&[StoredRows { format, bytes: &bytes, n_out }], n_in)
}

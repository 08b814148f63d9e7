//! The most multiply-adds this machine can do, measured.

use std::time::Instant;

use crate::cpu::multiversion;
use crate::pool::{Pool, Shards};

multiversion! {
    /// 12 independent chains of 8 lanes: enough to hide the latency of a fused multiply-add.
    fn chains(steps: usize, seed: f32) -> f32 {
        let mut sums = [[seed; 8]; 12];
        for _ in 0..steps {
            for sum in &mut sums {
                for lane in sum.iter_mut() {
                    *lane = lane.mul_add(0.999_999, 1e-6);
                }
            }
        }
        sums.iter().flatten().sum()
    }
}

/// Floating-point operations per second, all threads together; the best of several tries.
pub(crate) fn fma_peak(pool: &Pool) -> f64 {
    const STEPS: usize = 400_000;
    let n = pool.n_threads();
    let mut results = vec![0.0f32; n];
    let sink = Shards::new(&mut results);
    let once = || {
        let start = Instant::now();
        pool.run(n, &|task| {
            // SAFETY: one number per task.
            unsafe { sink.piece(task, 1)[0] = chains(STEPS, task as f32) };
        });
        (2 * 12 * 8 * STEPS * n) as f64 / start.elapsed().as_secs_f64()
    };
    (0..8).map(|_| once()).fold(0.0, f64::max)
}

//! Numbers for tests, and how they are compared.

#![allow(dead_code, reason = "each test file uses its part")]

/// Repeatable numbers in about ±1.
pub(crate) fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    next();
    (0..n).map(|_| next()).collect()
}

pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// ‖a − b‖∞ ≤ tolerance · max(1, ‖b‖∞).
#[track_caller]
pub(crate) fn close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    let scale = b.iter().fold(1.0f32, |m, v| m.max(v.abs()));
    for (k, (x, y)) in a.iter().zip(b).enumerate() {
        assert!((x - y).abs() <= tolerance * scale, "number {k}: {x} against {y} (largest {scale})");
    }
}

//! Every backward pass against central differences of its forward pass.

mod common;

use common::numbers;
use stillroom_kernels::{AttentionShape, Device, RopeScaling, RopeTable, Segment};

/// Checks ∂⟨probe, forward(x)⟩/∂x at a sample of places.
fn check(name: &str, x: &[f32], probe: &[f32], analytic: &[f32], forward: impl Fn(&[f32]) -> Vec<f32>) {
    let value = |x: &[f32]| -> f64 {
        let y = forward(x);
        assert_eq!(y.len(), probe.len(), "{name}");
        y.iter().zip(probe).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let h = 4e-3f32;
    let largest = analytic.iter().fold(0.1f32, |m, v| m.max(v.abs()));
    let mut moved = x.to_vec();
    for k in (0..x.len()).step_by(x.len().div_ceil(60)) {
        moved[k] = x[k] + h;
        let above = value(&moved);
        moved[k] = x[k] - h;
        let below = value(&moved);
        moved[k] = x[k];
        let numeric = ((above - below) / f64::from(2.0 * h)) as f32;
        assert!(
            (numeric - analytic[k]).abs() < 3e-3 * largest,
            "{name} at {k}: {numeric} against {}",
            analytic[k]
        );
    }
}

#[test]
fn linear() {
    let dev = Device::cpu(2);
    let (n, i, o) = (7, 33, 21);
    let (x, w, b, dy) = (numbers(1, n * i), numbers(2, o * i), numbers(3, o), numbers(4, n * o));
    let forward = |x: &[f32], w: &[f32], b: &[f32]| {
        let mut y = dev.zeros(n * o);
        dev.linear_forward(&mut y, &dev.upload(x), &dev.pack(&dev.upload(w), o, i), Some(&dev.upload(b)), n);
        dev.download(&y)
    };
    let (mut dx, mut dw, mut db) = (dev.zeros(n * i), dev.zeros(o * i), dev.zeros(o));
    dev.linear_backward_input(&mut dx, &dev.upload(&dy), &dev.upload(&w), n, i, o);
    dev.linear_backward_weight(&mut dw, &dev.upload(&dy), &dev.upload(&x), n, i, o);
    dev.bias_backward(&mut db, &dev.upload(&dy), n, o);
    check("input", &x, &dy, &dev.download(&dx), |x| forward(x, &w, &b));
    check("weight", &w, &dy, &dev.download(&dw), |w| forward(&x, w, &b));
    check("bias", &b, &dy, &dev.download(&db), |b| forward(&x, &w, b));
}

#[test]
fn rmsnorm() {
    let dev = Device::cpu(2);
    let (n, d) = (9, 31);
    let (x, w, dy) = (numbers(1, n * d), numbers(2, d), numbers(3, n * d));
    let forward = |x: &[f32], w: &[f32]| {
        let mut y = dev.zeros(n * d);
        dev.rmsnorm_forward(&mut y, &dev.upload(x), &dev.upload(w), 1e-5, n, d);
        dev.download(&y)
    };
    let (mut dx, mut dw) = (dev.zeros(n * d), dev.zeros(d));
    dev.rmsnorm_backward(&mut dx, &mut dw, &dev.upload(&dy), &dev.upload(&x), &dev.upload(&w), 1e-5, n, d);
    check("input", &x, &dy, &dev.download(&dx), |x| forward(x, &w));
    check("weight", &w, &dy, &dev.download(&dw), |w| forward(&x, w));
}

#[test]
fn qk_norm_and_rope() {
    let dev = Device::cpu(2);
    let shape = AttentionShape { n_q_heads: 4, n_kv_heads: 2, head_dim: 10 };
    let n = 5;
    let len = n * shape.qkv_width();
    let table = RopeTable::new(10, 100.0, RopeScaling::None, 16);
    let positions = [0, 3, 4, 9, 15];
    let (x, q, k, dy) = (numbers(1, len), numbers(2, 10), numbers(3, 10), numbers(4, len));
    let forward = |x: &[f32], q: &[f32], k: &[f32]| {
        let mut y = dev.zeros(len);
        dev.qk_norm_forward(&mut y, &dev.upload(x), &dev.upload(q), &dev.upload(k), 1e-5, shape);
        dev.rope_forward(&mut y, shape, &table, &positions);
        dev.download(&y)
    };
    let (mut dx, mut dq, mut dk) = (dev.upload(&dy), dev.zeros(10), dev.zeros(10));
    dev.rope_backward(&mut dx, shape, &table, &positions);
    dev.qk_norm_backward(
        &mut dx,
        &mut dq,
        &mut dk,
        &dev.upload(&x),
        &dev.upload(&q),
        &dev.upload(&k),
        1e-5,
        shape,
    );
    check("input", &x, &dy, &dev.download(&dx), |x| forward(x, &q, &k));
    check("q norm", &q, &dy, &dev.download(&dq), |q| forward(&x, q, &k));
    check("k norm", &k, &dy, &dev.download(&dk), |k| forward(&x, &q, k));
}

#[test]
fn attention() {
    let dev = Device::cpu(2);
    let shape = AttentionShape { n_q_heads: 4, n_kv_heads: 2, head_dim: 6 };
    // The second document is longer than a block of queries.
    let segments = [Segment { start: 0, len: 5 }, Segment { start: 5, len: 60 }];
    let n = 65;
    let heads = 24;
    let (x, dy) = (numbers(1, n * shape.qkv_width()), numbers(2, n * heads));
    let forward = |x: &[f32]| {
        let (mut out, mut lse) = (dev.zeros(n * heads), dev.zeros(n * 4));
        dev.attention_forward(&mut out, &mut lse, &dev.upload(x), shape, &segments);
        (out, lse)
    };
    let (out, lse) = forward(&x);
    let mut dx = dev.zeros(x.len());
    dev.attention_backward(&mut dx, &dev.upload(&dy), &out, &lse, &dev.upload(&x), shape, &segments);
    check("qkv", &x, &dy, &dev.download(&dx), |x| dev.download(&forward(x).0));
}

#[test]
fn swiglu() {
    let dev = Device::cpu(2);
    let (n, f) = (6, 19);
    let (x, dy) = (numbers(1, 2 * n * f), numbers(2, n * f));
    let mut dx = dev.zeros(2 * n * f);
    dev.swiglu_backward(&mut dx, &dev.upload(&dy), &dev.upload(&x), n, f);
    check("gate and up", &x, &dy, &dev.download(&dx), |x| {
        let mut y = dev.zeros(n * f);
        dev.swiglu_forward(&mut y, &dev.upload(x), n, f);
        dev.download(&y)
    });
}

#[test]
fn embedding() {
    let dev = Device::cpu(2);
    let ids = [2, 0, 2, 1];
    let (table, dy) = (numbers(1, 3 * 8), numbers(2, 4 * 8));
    let mut dtable = dev.zeros(24);
    dev.embedding_backward(&mut dtable, &dev.upload(&dy), &ids, 8);
    check("table", &table, &dy, &dev.download(&dtable), |table| {
        let mut y = dev.zeros(32);
        dev.embedding_forward(&mut y, &dev.upload(table), &ids, 8);
        dev.download(&y)
    });
}

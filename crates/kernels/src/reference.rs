//! The plain twin of every kernel: loops that can be read beside the formula.
//!
//! Shapes: n rows (tokens), i inputs, o outputs, all row-major. Sums are f32 chains of fused
//! multiply-adds in ascending order unless a function says otherwise.

use crate::device::{AttentionShape, RopeTable, Segment};
use crate::divergence::{Divergence, LOG_P_MIN};

/// y\[n,o\] = Σᵢ x\[n,i\]·w\[o,i\] + b\[o\].
pub fn linear_forward(
    y: &mut [f32],
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    n: usize,
    i: usize,
    o: usize,
) {
    for row in 0..n {
        for out in 0..o {
            let sum = chain(0.0, (0..i).map(|k| (x[row * i + k], w[out * i + k])));
            y[row * o + out] = sum + bias.map_or(0.0, |b| b[out]);
        }
    }
}

/// dx\[n,i\] = Σₒ dy\[n,o\]·w\[o,i\].
pub fn linear_backward_input(dx: &mut [f32], dy: &[f32], w: &[f32], n: usize, i: usize, o: usize) {
    for row in 0..n {
        for k in 0..i {
            dx[row * i + k] = chain(0.0, (0..o).map(|out| (dy[row * o + out], w[out * i + k])));
        }
    }
}

/// dw\[o,i\] += Σₙ dy\[n,o\]·x\[n,i\]: the chain starts from what dw holds.
pub fn linear_backward_weight(dw: &mut [f32], dy: &[f32], x: &[f32], n: usize, i: usize, o: usize) {
    for out in 0..o {
        for k in 0..i {
            let start = dw[out * i + k];
            dw[out * i + k] = chain(start, (0..n).map(|row| (dy[row * o + out], x[row * i + k])));
        }
    }
}

/// db\[o\] += Σₙ dy\[n,o\].
pub fn bias_backward(db: &mut [f32], dy: &[f32], n: usize, o: usize) {
    for row in 0..n {
        for out in 0..o {
            db[out] += dy[row * o + out];
        }
    }
}

/// y = w ⊙ x / √(mean(x²) + ε), each row on its own. Source: Zhang and Sennrich 2019, eq. 4.
pub fn rmsnorm_forward(y: &mut [f32], x: &[f32], w: &[f32], eps: f32, d: usize) {
    for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
        let inv = inverse_rms(x, eps);
        for k in 0..d {
            y[k] = w[k] * (x[k] * inv);
        }
    }
}

/// With r = 1/rms(x) and g = w ⊙ dy: dx += r·g − x·r³·(Σ g·x)/d, dw += Σₙ dy·x·r.
pub fn rmsnorm_backward(
    dx: &mut [f32],
    dw: &mut [f32],
    dy: &[f32],
    x: &[f32],
    w: &[f32],
    eps: f32,
    d: usize,
) {
    let rows = dx.chunks_exact_mut(d).zip(dy.chunks_exact(d)).zip(x.chunks_exact(d));
    for ((dx, dy), x) in rows {
        let inv = inverse_rms(x, eps);
        let dot = lanes_sum((0..d).map(|k| w[k] * dy[k] * x[k]));
        let scale = dot * inv * inv * inv / d as f32;
        for k in 0..d {
            dx[k] += w[k] * dy[k] * inv - x[k] * scale;
            dw[k] += dy[k] * (x[k] * inv);
        }
    }
}

/// 1/√(mean(x²) + ε).
pub fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    let mean = lanes_sum(x.iter().map(|v| v * v)) / x.len() as f32;
    1.0 / (mean + eps).sqrt()
}

/// Rotates the halves of each head: (a, b) → (a·cos − b·sin, b·cos + a·sin), in place.
///
/// `x` has rows of `row_stride` numbers whose first `n_heads · head_dim` are heads;
/// `direction` is +1 forward and −1 backward. Source: Su et al. 2021, in the half-split
/// layout of Hugging Face.
pub fn rope(
    x: &mut [f32],
    row_stride: usize,
    n_heads: usize,
    table: &RopeTable,
    positions: &[u32],
    direction: f32,
) {
    let half = table.head_dim / 2;
    for (row, &position) in x.chunks_exact_mut(row_stride).zip(positions) {
        let (cos, sin) = table.at(position as usize);
        for head in row[..n_heads * table.head_dim].chunks_exact_mut(table.head_dim) {
            for k in 0..half {
                let (a, b, s) = (head[k], head[k + half], direction * sin[k]);
                head[k] = a * cos[k] - b * s;
                head[k + half] = b * cos[k] + a * s;
            }
        }
    }
}

/// y\[n,f\] = silu(gate)·up with gate = gu\[n,0..f\], up = gu\[n,f..2f\], silu(x) = x/(1+e⁻ˣ).
pub fn swiglu_forward(y: &mut [f32], gu: &[f32], f: usize) {
    for (y, gu) in y.chunks_exact_mut(f).zip(gu.chunks_exact(2 * f)) {
        for k in 0..f {
            y[k] = gu[k] * sigmoid(gu[k]) * gu[f + k];
        }
    }
}

/// dgate = dy·up·σ(g)·(1 + g·(1 − σ(g))), dup = dy·silu(g).
pub fn swiglu_backward(dgu: &mut [f32], dy: &[f32], gu: &[f32], f: usize) {
    let rows = dgu.chunks_exact_mut(2 * f).zip(dy.chunks_exact(f)).zip(gu.chunks_exact(2 * f));
    for ((dgu, dy), gu) in rows {
        for k in 0..f {
            let (g, up, s) = (gu[k], gu[f + k], sigmoid(gu[k]));
            dgu[k] = dy[k] * up * (s * (1.0 + g * (1.0 - s)));
            dgu[f + k] = dy[k] * (g * s);
        }
    }
}

pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// y\[n,d\] = table\[ids\[n\],d\].
pub fn embedding_forward(y: &mut [f32], table: &[f32], ids: &[u32], d: usize) {
    for (y, &id) in y.chunks_exact_mut(d).zip(ids) {
        y.copy_from_slice(&table[id as usize * d..][..d]);
    }
}

/// dtable\[ids\[n\],d\] += dy\[n,d\], rows in ascending order.
pub fn embedding_backward(dtable: &mut [f32], dy: &[f32], ids: &[u32], d: usize) {
    for (dy, &id) in dy.chunks_exact(d).zip(ids) {
        for (t, g) in dtable[id as usize * d..][..d].iter_mut().zip(dy) {
            *t += g;
        }
    }
}

/// Causal attention with grouped KV heads, each segment on its own.
///
/// `qkv` rows hold q heads, then k heads, then v heads. out\[n, q heads\], lse\[n, q heads\] is
/// log Σⱼ exp(sⱼ), s = q·k/√d.
pub fn attention_forward(
    out: &mut [f32],
    lse: &mut [f32],
    qkv: &[f32],
    shape: AttentionShape,
    segments: &[Segment],
) {
    let AttentionShape { n_q_heads, head_dim: d, .. } = shape;
    let stride = shape.qkv_width();
    for_each_query(shape, segments, |row, first, h, k_at, v_at| {
        let q = &qkv[row * stride + h * d..][..d];
        let scores = scores(q, qkv, stride, k_at, first, row, shape.scale());
        let top = scores.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
        let weights: Vec<f32> = scores.iter().map(|s| (s - top).exp()).collect();
        let sum = lanes_sum(weights.iter().copied());
        lse[row * n_q_heads + h] = top + sum.ln();
        for k in 0..d {
            let v = (first..=row).map(|j| qkv[j * stride + v_at + k]);
            let total = chain(0.0, weights.iter().copied().zip(v));
            out[row * n_q_heads * d + h * d + k] = total / sum;
        }
    });
}

/// Backward of [`attention_forward`]; `dqkv` is overwritten.
///
/// With P = softmax(S), D = Σ dout·out: dV = Pᵀ·dO, dS = P ⊙ (dO·Vᵀ − D), dQ = dS·K/√d,
/// dK = dSᵀ·Q/√d. Source: Dao et al. 2022, appendix B.
pub fn attention_backward(
    dqkv: &mut [f32],
    dout: &[f32],
    out: &[f32],
    lse: &[f32],
    qkv: &[f32],
    shape: AttentionShape,
    segments: &[Segment],
) {
    let AttentionShape { n_q_heads, head_dim: d, .. } = shape;
    let stride = shape.qkv_width();
    for s in segments {
        dqkv[s.start * stride..(s.start + s.len) * stride].fill(0.0);
    }
    for_each_query(shape, segments, |row, first, h, k_at, v_at| {
        let at = row * n_q_heads * d + h * d;
        let (o, go) = (&out[at..at + d], &dout[at..at + d]);
        let delta = lanes_sum(o.iter().zip(go).map(|(o, go)| o * go));
        let q: Vec<f32> = qkv[row * stride + h * d..][..d].to_vec();
        let scores = scores(&q, qkv, stride, k_at, first, row, shape.scale());
        for (j, s) in (first..=row).zip(scores) {
            let p = (s - lse[row * n_q_heads + h]).exp();
            let dp = chain(0.0, (0..d).map(|k| (go[k], qkv[j * stride + v_at + k])));
            let ds = p * (dp - delta) * shape.scale();
            for k in 0..d {
                dqkv[j * stride + v_at + k] += p * go[k];
                dqkv[j * stride + k_at + k] += ds * q[k];
                dqkv[row * stride + h * d + k] += ds * qkv[j * stride + k_at + k];
            }
        }
    });
}

fn for_each_query(
    shape: AttentionShape,
    segments: &[Segment],
    mut f: impl FnMut(usize, usize, usize, usize, usize),
) {
    let AttentionShape { n_q_heads, n_kv_heads, head_dim: d } = shape;
    for segment in segments {
        for row in segment.start..segment.start + segment.len {
            for h in 0..n_q_heads {
                let kv = h / (n_q_heads / n_kv_heads);
                let k_at = (n_q_heads + kv) * d;
                f(row, segment.start, h, k_at, k_at + n_kv_heads * d);
            }
        }
    }
}

fn scores(
    q: &[f32],
    qkv: &[f32],
    stride: usize,
    k_at: usize,
    first: usize,
    row: usize,
    scale: f32,
) -> Vec<f32> {
    let key = |j: usize| &qkv[j * stride + k_at..][..q.len()];
    (first..=row).map(|j| chain(0.0, q.iter().copied().zip(key(j).iter().copied())) * scale).collect()
}

/// Decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2) in PyTorch's order:
/// p ← p·(1 − lr·λ); m, v as Adam; p ← p − lr·m̂/(√v̂ + ε). `scale` multiplies the gradient
/// first (gradient clipping).
pub fn adamw(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], step: &AdamWStep) {
    let correction1 = 1.0 - f64::from(step.beta1).powi(step.step as i32);
    let correction2 = 1.0 - f64::from(step.beta2).powi(step.step as i32);
    let rate = (f64::from(step.learning_rate) / correction1) as f32;
    let root = correction2.sqrt() as f32;
    let keep = 1.0 - step.learning_rate * step.weight_decay;
    for k in 0..p.len() {
        let g = g[k] * step.gradient_scale;
        m[k] = step.beta1 * m[k] + (1.0 - step.beta1) * g;
        v[k] = step.beta2 * v[k] + (1.0 - step.beta2) * g * g;
        p[k] = p[k] * keep - rate * m[k] / (v[k].sqrt() / root + step.eps);
    }
}

/// The numbers of one AdamW step; `step` counts from 1.
#[derive(Clone, Copy, Debug)]
pub struct AdamWStep {
    pub step: u64,
    pub learning_rate: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub weight_decay: f32,
    pub gradient_scale: f32,
}

/// Σ a·b as one chain of fused multiply-adds.
pub(crate) fn chain(start: f32, pairs: impl Iterator<Item = (f32, f32)>) -> f32 {
    pairs.fold(start, |sum, (a, b)| a.mul_add(b, sum))
}

/// Number of partial sums that a reduction over a row keeps.
pub(crate) const LANES: usize = 16;

/// Sum of a row as [`LANES`] interleaved partial sums, folded in halves: the order that a
/// vector unit of any width up to 16 can follow exactly.
pub fn lanes_sum(values: impl Iterator<Item = f32>) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for (k, v) in values.enumerate() {
        lanes[k % LANES] += v;
    }
    fold_lanes(lanes)
}

pub(crate) fn fold_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for k in 0..width {
            lanes[k] += lanes[k + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// KL(softmax(t)‖softmax(s)) in nats, sums in f64.
pub fn forward_kl_of_logits(t: &[f32], s: &[f32]) -> f32 {
    let lse = |z: &[f32]| {
        let top = z.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
        f64::from(top) + z.iter().map(|&v| f64::from(v - top).exp()).sum::<f64>().ln()
    };
    let (lt, ls) = (lse(t), lse(s));
    let term = |(&t, &s): (&f32, &f32)| {
        let log_p = f64::from(t) - lt;
        log_p.exp() * (log_p - (f64::from(s) - ls))
    };
    t.iter().zip(s).map(term).sum::<f64>() as f32
}

/// φ(p, q) and ∂φ/∂q of one outcome in f64; formulas in [`crate::divergence`].
pub fn divergence_outcome(divergence: Divergence, p: f64, q: f64) -> (f64, f64) {
    let times_log = |p: f64, ratio: f64| if p == 0.0 { 0.0 } else { p * ratio.ln() };
    match divergence {
        Divergence::ForwardKl => (times_log(p, p / q), -p / q),
        Divergence::ReverseKl => {
            let ratio = q / p.max(f64::from(LOG_P_MIN).exp());
            (times_log(q, ratio), ratio.ln() + 1.0)
        }
        Divergence::Jsd { teacher_weight } => {
            let b = f64::from(teacher_weight);
            let m = b * p + (1.0 - b) * q;
            (b * times_log(p, p / m) + (1.0 - b) * times_log(q, q / m), (1.0 - b) * (q / m).ln())
        }
        Divergence::SkewKl { alpha } => {
            let a = f64::from(alpha);
            let m = a * p + (1.0 - a) * q;
            (times_log(p, p / m), -(1.0 - a) * p / m)
        }
        Divergence::SkewReverseKl { alpha } => {
            let a = f64::from(alpha);
            let m = (1.0 - a) * p + a * q;
            (times_log(q, q / m), (q / m).ln() + 1.0 - a * q / m)
        }
        Divergence::Tvd if p == q => (0.0, 0.0),
        Divergence::Tvd => (0.5 * (p - q).abs(), 0.5 * (q - p).signum()),
        Divergence::Uld | Divergence::Gold { .. } => panic!("`{}` is of whole rows", divergence.name()),
    }
}

/// τ²·Σ φ(p, q) over outcomes and its gradient by z, in f64. An outcome is the teacher's probability and
/// the ids whose q make the student's; ids in no outcome count in the softmax only.
pub fn divergence(
    divergence: Divergence,
    outcomes: &[(f64, Vec<usize>)],
    z: &[f64],
    temperature: f64,
) -> (f64, Vec<f64>) {
    let top = z.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
    let e: Vec<f64> = z.iter().map(|v| ((v - top) / temperature).exp()).collect();
    let sum: f64 = e.iter().sum();
    let q: Vec<f64> = e.iter().map(|e| e / sum).collect();
    let (mut loss, mut slope) = (0.0, vec![0.0; z.len()]);
    for (p, ids) in outcomes {
        let of_ids: f64 = ids.iter().map(|&i| q[i]).sum();
        let (phi, g) = divergence_outcome(divergence, *p, of_ids);
        loss += phi;
        ids.iter().for_each(|&i| slope[i] = if q[i] == 0.0 { 0.0 } else { g });
    }
    let mean: f64 = q.iter().zip(&slope).map(|(q, g)| q * g).sum();
    let gradient = q.iter().zip(&slope).map(|(q, g)| temperature * q * (g - mean)).collect();
    (loss * temperature * temperature, gradient)
}

/// `uld`, or with `teacher_weight` `gold`, and its gradient by z, in f64; formulas in `uld.rs`. `pairs` are ids of the
/// same token (student, teacher).
pub fn two_vocabularies(
    teacher_weight: Option<f32>,
    z: &[f64],
    t: &[f64],
    pairs: &[(usize, usize)],
    temperature: f64,
) -> (f64, Vec<f64>) {
    let softmax = |z: &[f64]| {
        let top = z.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
        let e: Vec<f64> = z.iter().map(|v| ((v - top) / temperature).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.into_iter().map(|e| e / sum).collect::<Vec<f64>>()
    };
    let (q, p) = (softmax(z), softmax(t));
    let (mut loss, mut slope) = (0.0, vec![0.0; z.len()]);
    let (mut student, mut teacher): (Vec<usize>, Vec<usize>) =
        ((0..z.len()).collect(), (0..t.len()).collect());
    let mut weight = 1.0;
    if let Some(beta) = teacher_weight {
        let share = pairs.len() as f64 / t.len() as f64;
        weight = 1.0 - share;
        let of_pair = Divergence::from_trl_beta(beta).unwrap_or_else(|refused| panic!("{refused}"));
        for &(j, i) in pairs {
            let (phi, g) = divergence_outcome(of_pair, p[i], q[j]);
            loss += share * phi;
            slope[j] = share * g;
        }
        student.retain(|j| pairs.iter().all(|pair| pair.0 != *j));
        teacher.retain(|i| pairs.iter().all(|pair| pair.1 != *i));
    }
    student.sort_by(|&a, &b| q[b].total_cmp(&q[a]));
    teacher.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
    for rank in 0..student.len().max(teacher.len()) {
        let of = |ids: &[usize], probs: &[f64]| ids.get(rank).map_or(0.0, |&id| probs[id]);
        let difference = of(&student, &q) - of(&teacher, &p);
        loss += weight * difference.abs();
        if let Some(&j) = student.get(rank) {
            slope[j] = weight * if difference == 0.0 { 0.0 } else { difference.signum() };
        }
    }
    let mean: f64 = q.iter().zip(&slope).map(|(q, g)| q * g).sum();
    let gradient = q.iter().zip(&slope).map(|(q, g)| temperature * q * (g - mean)).collect();
    (loss * temperature * temperature, gradient)
}

/// log Σ wᵢ·softmax(tᵢ) of several teachers' logits and weights in f64, the weights divided by their sum.
pub fn mixed_log_probs(teachers: &[(&[f64], f64)]) -> Vec<f64> {
    let total: f64 = teachers.iter().map(|(_, weight)| weight).sum();
    let mut p = vec![0.0; teachers[0].0.len()];
    for (t, weight) in teachers {
        let top = t.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
        let sum: f64 = t.iter().map(|v| (v - top).exp()).sum();
        p.iter_mut().zip(*t).for_each(|(p, v)| *p += weight / total * (v - top).exp() / sum);
    }
    p.into_iter().map(f64::ln).collect()
}

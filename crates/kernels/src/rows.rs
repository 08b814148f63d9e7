//! Kernels that work row by row: norms, rotations, gates, embeddings, the optimiser.

use std::cell::RefCell;

use crate::cpu::multiversion;
use crate::device::{AttentionShape, RopeTable};
use crate::math::{exp, sigmoid};
use crate::pool::{Pool, Shards};
use crate::reference::{AdamWStep, LANES, fold_lanes};

/// Rows whose contributions to a weight gradient are summed together before the pieces are
/// added in order. Fixed, so that the sum does not depend on the number of threads.
const ROWS_PER_PIECE: usize = 128;
/// Numbers per task of an element-wise kernel.
const ELEMENTS_PER_TASK: usize = 16_384;

/// Calls `f(first_row, rows of y)` on pieces of `y` in parallel.
pub(crate) fn for_row_pieces(
    pool: &Pool,
    y: &mut [f32],
    width: usize,
    f: &(dyn Fn(usize, &mut [f32]) + Sync),
) {
    let n_rows = y.len() / width;
    let per_task = (ELEMENTS_PER_TASK / width).max(1);
    let shards = Shards::new(y);
    pool.run(n_rows.div_ceil(per_task), &|task| {
        let first = task * per_task;
        let rows = per_task.min(n_rows - first);
        // SAFETY: tasks own disjoint ranges of rows.
        let piece = unsafe { shards.piece(first * width, rows * width) };
        f(first, piece);
    });
}

thread_local! {
    /// Sums of the pieces of a reduction that this thread asked for.
    static PARTIAL_ROWS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static PARTIAL_SQUARES: RefCell<Vec<f64>> = const { RefCell::new(Vec::new()) };
}

/// Sums `f(rows)` over pieces of rows into `total`: `f` adds the contribution of its rows to a
/// zeroed buffer as long as `total`, and the pieces are added in order.
fn reduce_rows(
    pool: &Pool,
    total: &mut [f32],
    n_rows: usize,
    f: &(dyn Fn(std::ops::Range<usize>, &mut [f32]) + Sync),
) {
    let pieces = n_rows.div_ceil(ROWS_PER_PIECE);
    let width = total.len();
    PARTIAL_ROWS.with_borrow_mut(|partial| {
        partial.clear();
        partial.resize(pieces * width, 0.0);
        let shards = Shards::new(partial);
        pool.run(pieces, &|piece| {
            let rows = piece * ROWS_PER_PIECE..((piece + 1) * ROWS_PER_PIECE).min(n_rows);
            // SAFETY: one piece of the buffer per task.
            f(rows, unsafe { shards.piece(piece * width, width) });
        });
        for piece in partial.chunks_exact(width) {
            total.iter_mut().zip(piece).for_each(|(t, p)| *t += p);
        }
    });
}

multiversion! {
    pub(crate) fn add_assign(y: &mut [f32], x: &[f32]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
    }
}

multiversion! {
    /// Sum with [`LANES`] interleaved partial sums of `f(k)`.
    pub(crate) fn sum_of_products(x: &[f32], y: &[f32]) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let (x16, y16) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
        let (x_rest, y_rest) = (x16.remainder(), y16.remainder());
        for (x, y) in x16.zip(y16) {
            for k in 0..LANES {
                lanes[k] += x[k] * y[k];
            }
        }
        for k in 0..x_rest.len() {
            lanes[k] += x_rest[k] * y_rest[k];
        }
        fold_lanes(lanes)
    }
}

fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (sum_of_products(x, x) / x.len() as f32 + eps).sqrt()
}

multiversion! {
    fn norm_row(y: &mut [f32], x: &[f32], w: &[f32], inv: f32) {
        for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
            *y = w * (x * inv);
        }
    }
}

multiversion! {
    /// dx += w·dy·inv − x·scale.
    fn norm_row_backward(dx: &mut [f32], dy: &[f32], x: &[f32], w: &[f32], inv: f32, scale: f32) {
        for (((dx, dy), x), w) in dx.iter_mut().zip(dy).zip(x).zip(w) {
            *dx += w * dy * inv - x * scale;
        }
    }
}

multiversion! {
    /// dw += dy·x·inv; returns Σ w·dy·x.
    fn norm_row_weight(dw: &mut [f32], dy: &[f32], x: &[f32], inv: f32) {
        for ((dw, dy), x) in dw.iter_mut().zip(dy).zip(x) {
            *dw += dy * (x * inv);
        }
    }
}

multiversion! {
    fn weighted_dot(w: &[f32], dy: &[f32], x: &[f32]) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let whole = x.len() / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            let (w, dy, x) = (&w[at..at + LANES], &dy[at..at + LANES], &x[at..at + LANES]);
            for k in 0..LANES {
                lanes[k] += w[k] * dy[k] * x[k];
            }
        }
        for k in whole..x.len() {
            lanes[k - whole] += w[k] * dy[k] * x[k];
        }
        fold_lanes(lanes)
    }
}

/// A run of heads inside wider rows, or whole rows.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) row_stride: usize,
    pub(crate) offset: usize,
    pub(crate) n_heads: usize,
    pub(crate) width: usize,
}

impl Heads {
    pub(crate) fn rows(width: usize) -> Heads {
        Heads { row_stride: width, offset: 0, n_heads: 1, width }
    }

    fn each<'a>(self, row: &'a [f32]) -> std::slice::ChunksExact<'a, f32> {
        row[self.offset..][..self.n_heads * self.width].chunks_exact(self.width)
    }

    fn each_mut<'a>(self, row: &'a mut [f32]) -> std::slice::ChunksExactMut<'a, f32> {
        row[self.offset..][..self.n_heads * self.width].chunks_exact_mut(self.width)
    }
}

pub(crate) fn rmsnorm_forward(pool: &Pool, y: &mut [f32], x: &[f32], w: &[f32], eps: f32, heads: Heads) {
    let stride = heads.row_stride;
    for_row_pieces(pool, y, stride, &|first, piece| {
        for (row, y) in piece.chunks_exact_mut(stride).enumerate() {
            let x = &x[(first + row) * stride..][..stride];
            for (y, x) in heads.each_mut(y).zip(heads.each(x)) {
                norm_row(y, x, w, inverse_rms(x, eps));
            }
        }
    });
}

/// dx += …, dw += … where it is wanted, all rows laid out as `heads` says.
pub(crate) fn rmsnorm_backward(
    pool: &Pool,
    dx: &mut [f32],
    dw: Option<&mut [f32]>,
    dy: &[f32],
    x: &[f32],
    w: &[f32],
    eps: f32,
    heads: Heads,
) {
    let stride = heads.row_stride;
    let n_rows = dx.len() / stride;
    if let Some(dw) = dw {
        reduce_rows(pool, dw, n_rows, &|rows, dw| {
            for row in rows {
                let (x, dy) = (&x[row * stride..][..stride], &dy[row * stride..][..stride]);
                for (x, dy) in heads.each(x).zip(heads.each(dy)) {
                    norm_row_weight(dw, dy, x, inverse_rms(x, eps));
                }
            }
        });
    }
    for_row_pieces(pool, dx, stride, &|first, piece| {
        for (row, dx) in piece.chunks_exact_mut(stride).enumerate() {
            let at = (first + row) * stride;
            let (x, dy) = (&x[at..at + stride], &dy[at..at + stride]);
            for ((dx, x), dy) in heads.each_mut(dx).zip(heads.each(x)).zip(heads.each(dy)) {
                let inv = inverse_rms(x, eps);
                let scale = weighted_dot(w, dy, x) * inv * inv * inv / heads.width as f32;
                norm_row_backward(dx, dy, x, w, inv, scale);
            }
        }
    });
}

multiversion! {
    fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) {
        let (a, b) = head.split_at_mut(cos.len());
        for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
            let (x, y, s) = (*a, *b, direction * s);
            *a = x * c - y * s;
            *b = y * c + x * s;
        }
    }
}

/// See [`crate::reference::rope`].
pub(crate) fn rope(
    pool: &Pool,
    x: &mut [f32],
    shape: AttentionShape,
    table: &RopeTable,
    positions: &[u32],
    direction: f32,
) {
    let (stride, rotated) = (shape.qkv_width(), (shape.n_q_heads + shape.n_kv_heads) * shape.head_dim);
    for_row_pieces(pool, x, stride, &|first, piece| {
        for (row, x) in piece.chunks_exact_mut(stride).enumerate() {
            let (cos, sin) = table.at(positions[first + row] as usize);
            for head in x[..rotated].chunks_exact_mut(shape.head_dim) {
                rotate(head, cos, sin, direction);
            }
        }
    });
}

multiversion! {
    fn swiglu_row(y: &mut [f32], gate: &[f32], up: &[f32]) {
        for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
            *y = g * sigmoid(g) * u;
        }
    }
}

multiversion! {
    fn swiglu_row_backward(dgate: &mut [f32], dup: &mut [f32], dy: &[f32], gate: &[f32], up: &[f32]) {
        for ((((dg, du), &dy), &g), &u) in dgate.iter_mut().zip(dup).zip(dy).zip(gate).zip(up) {
            let s = sigmoid(g);
            *dg = dy * u * (s * (1.0 + g * (1.0 - s)));
            *du = dy * (g * s);
        }
    }
}

pub(crate) fn swiglu_forward(pool: &Pool, y: &mut [f32], gate_up: &[f32], f: usize) {
    for_row_pieces(pool, y, f, &|first, piece| {
        for (y, gu) in piece.chunks_exact_mut(f).zip(gate_up[first * 2 * f..].chunks_exact(2 * f)) {
            swiglu_row(y, &gu[..f], &gu[f..]);
        }
    });
}

pub(crate) fn swiglu_backward(pool: &Pool, dgate_up: &mut [f32], dy: &[f32], gate_up: &[f32], f: usize) {
    for_row_pieces(pool, dgate_up, 2 * f, &|first, piece| {
        let rows = piece.chunks_exact_mut(2 * f).zip(dy[first * f..].chunks_exact(f));
        for ((dgu, dy), gu) in rows.zip(gate_up[first * 2 * f..].chunks_exact(2 * f)) {
            let (dg, du) = dgu.split_at_mut(f);
            swiglu_row_backward(dg, du, dy, &gu[..f], &gu[f..]);
        }
    });
}

pub(crate) fn bias_add(pool: &Pool, y: &mut [f32], bias: &[f32]) {
    for_row_pieces(pool, y, bias.len(), &|_, piece| {
        piece.chunks_exact_mut(bias.len()).for_each(|row| add_assign(row, bias));
    });
}

pub(crate) fn bias_backward(pool: &Pool, db: &mut [f32], dy: &[f32], n_rows: usize) {
    let width = db.len();
    reduce_rows(pool, db, n_rows, &|rows, db| {
        dy[rows.start * width..rows.end * width].chunks_exact(width).for_each(|row| add_assign(db, row));
    });
}

/// dtable\[ids\[n\]\] += dy\[n\], rows in ascending order; columns are split over the threads.
pub(crate) fn embedding_backward(pool: &Pool, dtable: &mut [f32], dy: &[f32], ids: &[u32], width: usize) {
    const COLUMNS: usize = 64;
    let shards = Shards::new(dtable);
    pool.run(width.div_ceil(COLUMNS), &|task| {
        let (from, len) = (task * COLUMNS, COLUMNS.min(width - task * COLUMNS));
        for (row, &id) in ids.iter().enumerate() {
            // SAFETY: each task owns its columns of every row.
            let target = unsafe { shards.piece(id as usize * width + from, len) };
            add_assign(target, &dy[row * width + from..][..len]);
        }
    });
}

multiversion! {
    fn adamw_piece(p: &mut [f32], g: &mut [f32], m: &mut [f32], v: &mut [f32], step: &AdamWStep, keep: f32, rate: f32, root: f32) {
        for (((p, gradient), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = std::mem::take(gradient) * step.gradient_scale;
            *m = step.beta1 * *m + (1.0 - step.beta1) * g;
            *v = step.beta2 * *v + (1.0 - step.beta2) * g * g;
            *p = *p * keep - rate * *m / (v.sqrt() / root + step.eps);
        }
    }
}

/// See [`crate::reference::adamw`]; g becomes zero in the same pass.
pub(crate) fn adamw(
    pool: &Pool,
    p: &mut [f32],
    g: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    step: &AdamWStep,
) {
    let correction = |beta: f32| 1.0 - f64::from(beta).powi(step.step as i32);
    let rate = (f64::from(step.learning_rate) / correction(step.beta1)) as f32;
    let root = correction(step.beta2).sqrt() as f32;
    let keep = 1.0 - step.learning_rate * step.weight_decay;
    let n = p.len();
    let (p, g, m, v) = (Shards::new(p), Shards::new(g), Shards::new(m), Shards::new(v));
    pool.run(n.div_ceil(ELEMENTS_PER_TASK), &|task| {
        let (from, len) = (task * ELEMENTS_PER_TASK, ELEMENTS_PER_TASK.min(n - task * ELEMENTS_PER_TASK));
        // SAFETY: tasks own disjoint ranges of each tensor.
        let (p, g, m, v) =
            unsafe { (p.piece(from, len), g.piece(from, len), m.piece(from, len), v.piece(from, len)) };
        adamw_piece(p, g, m, v, step, keep, rate, root);
    });
}

multiversion! {
    fn squares(g: &[f32]) -> f64 {
        let mut lanes = [0.0f64; 8];
        let eights = g.chunks_exact(8);
        let rest = eights.remainder();
        for piece in eights {
            for k in 0..8 {
                lanes[k] += f64::from(piece[k]) * f64::from(piece[k]);
            }
        }
        let tail: f64 = rest.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        lanes.iter().sum::<f64>() + tail
    }
}

/// Σ g² in f64 over fixed pieces, added in order.
pub(crate) fn sum_of_squares(pool: &Pool, g: &[f32]) -> f64 {
    let n_tasks = g.len().div_ceil(ELEMENTS_PER_TASK);
    PARTIAL_SQUARES.with_borrow_mut(|partial| {
        partial.resize(n_tasks, 0.0);
        let shards = Shards::new(partial);
        pool.run(n_tasks, &|task| {
            let from = task * ELEMENTS_PER_TASK;
            let sum = squares(&g[from..(from + ELEMENTS_PER_TASK).min(g.len())]);
            // SAFETY: one number per task.
            unsafe { shards.piece(task, 1)[0] = sum };
        });
        partial.iter().sum()
    })
}

multiversion! {
    /// s ← exp(scale·s − top) with top = max(scale·s); returns (top, Σ s).
    pub(crate) fn softmax_row(s: &mut [f32], scale: f32) -> (f32, f32) {
        let top = max(s) * scale;
        let mut lanes = [0.0f32; LANES];
        let mut whole = s.chunks_exact_mut(LANES);
        for piece in &mut whole {
            for k in 0..LANES {
                piece[k] = exp(piece[k] * scale - top);
                lanes[k] += piece[k];
            }
        }
        for (v, lane) in whole.into_remainder().iter_mut().zip(&mut lanes) {
            *v = exp(*v * scale - top);
            *lane += *v;
        }
        (top, fold_lanes(lanes))
    }
}

multiversion! {
    /// log Σ exp(scale·z); NaN where z holds one.
    pub(crate) fn log_sum_exp(z: &[f32], scale: f32) -> f32 {
        let top = max(z) * scale;
        let mut lanes = [0.0f32; LANES];
        let whole = z.chunks_exact(LANES);
        let rest = whole.remainder();
        for piece in whole {
            for k in 0..LANES {
                lanes[k] += exp(piece[k] * scale - top);
            }
        }
        for (v, lane) in rest.iter().zip(&mut lanes) {
            *lane += exp(*v * scale - top);
        }
        top + fold_lanes(lanes).ln()
    }
}

/// The largest number, NaN passed over.
#[inline(always)]
pub(crate) fn max(z: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let whole = z.chunks_exact(LANES);
    let rest = whole.remainder();
    for piece in whole {
        for k in 0..LANES {
            lanes[k] = if piece[k] > lanes[k] { piece[k] } else { lanes[k] };
        }
    }
    let larger = |a: f32, &b: &f32| if b > a { b } else { a };
    rest.iter().fold(lanes.iter().fold(f32::NEG_INFINITY, larger), larger)
}

multiversion! {
    /// z ← a·exp(z − lse_a) + b·exp(scale·z − lse_b) + c, either term left out where its factor is 0.
    pub(crate) fn softmax_mixture(z: &mut [f32], a: f32, lse_a: f32, b: f32, lse_b: f32, scale: f32, c: f32) {
        if b == 0.0 {
            z.iter_mut().for_each(|v| *v = a * exp(*v - lse_a) + c);
        } else if a == 0.0 {
            z.iter_mut().for_each(|v| *v = b * exp(*v * scale - lse_b) + c);
        } else {
            z.iter_mut().for_each(|v| *v = a * exp(*v - lse_a) + b * exp(*v * scale - lse_b) + c);
        }
    }
}

multiversion! {
    /// KL(softmax(t)‖softmax(s)) in nats, terms in f32, summed in f64.
    pub(crate) fn forward_kl_of_logits(t: &[f32], s: &[f32], lse_t: f32, lse_s: f32) -> f32 {
        let mut lanes = [0.0f64; 8];
        let eights = t.chunks_exact(8).zip(s.chunks_exact(8));
        let whole = t.len() / 8 * 8;
        for (t, s) in eights {
            for k in 0..8 {
                let log_p = t[k] - lse_t;
                lanes[k] += f64::from(exp(log_p) * (log_p - (s[k] - lse_s)));
            }
        }
        for k in whole..t.len() {
            let log_p = t[k] - lse_t;
            lanes[k - whole] += f64::from(exp(log_p) * (log_p - (s[k] - lse_s)));
        }
        lanes.iter().sum::<f64>() as f32
    }
}

multiversion! {
    /// s ← exp(scale·s − lse).
    pub(crate) fn exp_row(s: &mut [f32], scale: f32, lse: f32) {
        s.iter_mut().for_each(|v| *v = exp(*v * scale - lse));
    }
}

multiversion! {
    /// ds ← p·(ds − delta)·scale.
    pub(crate) fn softmax_row_backward(ds: &mut [f32], p: &[f32], delta: f32, scale: f32) {
        ds.iter_mut().zip(p).for_each(|(ds, p)| *ds = p * (*ds - delta) * scale);
    }
}

//! Causal attention over packed documents, forward and backward; with a cache: see `kv_cache`.
//!
//! Work is split by document and KV head. Scores exist for a block of queries at a time, so
//! memory is linear in the document's length.

use crate::device::{AttentionShape, Segment};
use crate::gemm::multiply_serial;
use crate::panels::{Left, PANEL, Right, pack_panel, pack_panel_transposed, packed_len};
use crate::pool::{Pool, Shards};
use crate::rows::{exp_row, softmax_row, softmax_row_backward, sum_of_products};
use crate::scratch::{reserve, with_scratch};

/// Queries whose scores are held together.
const QUERIES: usize = 48;

/// Where a task's heads are.
struct Place {
    segment: Segment,
    kv: usize,
    shape: AttentionShape,
}

impl Place {
    fn of(task: usize, shape: AttentionShape, segments: &[Segment]) -> Place {
        Place { segment: segments[task / shape.n_kv_heads], kv: task % shape.n_kv_heads, shape }
    }

    fn query_heads(&self) -> std::ops::Range<usize> {
        let group = self.shape.n_q_heads / self.shape.n_kv_heads;
        self.kv * group..(self.kv + 1) * group
    }

    /// First number of query head `h` of the segment's row `row`.
    fn query(&self, row: usize, h: usize) -> usize {
        (self.segment.start + row) * self.shape.qkv_width() + h * self.shape.head_dim
    }

    fn key(&self, row: usize) -> usize {
        self.query(row, self.shape.n_q_heads + self.kv)
    }

    fn value(&self, row: usize) -> usize {
        self.query(row, self.shape.n_q_heads + self.shape.n_kv_heads + self.kv)
    }

    /// First number of head `h` in rows of query heads only.
    fn output(&self, row: usize, h: usize) -> usize {
        ((self.segment.start + row) * self.shape.n_q_heads + h) * self.shape.head_dim
    }

    fn blocks(&self) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        let n = self.segment.len;
        self.query_heads()
            .flat_map(move |h| (0..n).step_by(QUERIES).map(move |q0| (h, q0, QUERIES.min(n - q0))))
    }
}

/// See [`crate::reference::attention_forward`].
pub(crate) fn forward(
    pool: &Pool,
    out: &mut [f32],
    lse: &mut [f32],
    qkv: &[f32],
    shape: AttentionShape,
    segments: &[Segment],
) {
    let (out, lse) = (Shards::new(out), Shards::new(lse));
    reserve(pool, forward_lens(longest(segments), shape.head_dim));
    pool.run(segments.len() * shape.n_kv_heads, &|task| {
        forward_task(&out, &lse, qkv, &Place::of(task, shape, segments));
    });
}

fn longest(segments: &[Segment]) -> usize {
    segments.iter().map(|s| s.len).max().unwrap_or(0)
}

/// Scratch of [`forward_task`] on n rows: keys, values, scores, and scores times values.
fn forward_lens(n: usize, d: usize) -> [usize; 4] {
    [packed_len(d, n), packed_len(n, d), QUERIES * n.next_multiple_of(PANEL), QUERIES * d]
}

fn forward_task(out: &Shards<'_, f32>, lse: &Shards<'_, f32>, qkv: &[f32], at: &Place) {
    let (n, d, stride) = (at.segment.len, at.shape.head_dim, at.shape.qkv_width());
    let row = n.next_multiple_of(PANEL);
    with_scratch(forward_lens(n, d), |[keys, values, scores, mixed]| {
        pack_all(keys, d, n, |panel, p| pack_panel_transposed(panel, &qkv[at.key(0)..], stride, d, n, p));
        pack_all(values, n, d, |panel, p| pack_panel(panel, &qkv[at.value(0)..], stride, n, d, p));
        for (h, q0, m) in at.blocks() {
            let limit = q0 + m;
            let queries = Left::rows(&qkv[at.query(q0, h)..], stride);
            multiply_serial(scores, row, queries, Right::packed(keys, d), (m, limit, d), false);
            let mut sums = [0.0; QUERIES];
            for i in 0..m {
                let s = &mut scores[i * row..][..limit];
                let (top, sum) = softmax_row(&mut s[..q0 + i + 1], at.shape.scale());
                s[q0 + i + 1..].fill(0.0);
                sums[i] = sum;
                let place = (at.segment.start + q0 + i) * at.shape.n_q_heads + h;
                // SAFETY: a row's head belongs to one task.
                unsafe { lse.piece(place, 1)[0] = top + sum.ln() };
            }
            multiply_serial(
                mixed,
                d,
                Left::rows(scores, row),
                Right::packed(values, n),
                (m, d, limit),
                false,
            );
            for i in 0..m {
                // SAFETY: a row's head belongs to one task.
                let o = unsafe { out.piece(at.output(q0 + i, h), d) };
                o.iter_mut().zip(&mixed[i * d..]).for_each(|(o, v)| *o = v / sums[i]);
            }
        }
    });
}

fn pack_all(out: &mut [f32], k: usize, n: usize, pack: impl Fn(&mut [f32], usize)) {
    for (p, panel) in out[..packed_len(k, n)].chunks_exact_mut(PANEL * k).enumerate() {
        pack(panel, p);
    }
}

/// What the backward pass reads.
pub(crate) struct Saved<'a> {
    pub(crate) dout: &'a [f32],
    pub(crate) out: &'a [f32],
    pub(crate) lse: &'a [f32],
    pub(crate) qkv: &'a [f32],
}

/// See [`crate::reference::attention_backward`].
pub(crate) fn backward(
    pool: &Pool,
    dqkv: &mut [f32],
    saved: &Saved<'_>,
    shape: AttentionShape,
    segments: &[Segment],
) {
    let dqkv = Shards::new(dqkv);
    reserve(pool, backward_lens(longest(segments), shape.head_dim));
    pool.run(segments.len() * shape.n_kv_heads, &|task| {
        backward_task(&dqkv, saved, &Place::of(task, shape, segments));
    });
}

/// Scratch of [`backward_task`] on n rows: keys both ways, values, dkeys, dvalues, p, ds, dq and a block
/// of queries.
fn backward_lens(n: usize, d: usize) -> [usize; 9] {
    let (laid_out, across, scores) =
        (packed_len(d, n), packed_len(n, d), QUERIES * n.next_multiple_of(PANEL));
    [laid_out, across, laid_out, n * d, n * d, scores, scores, QUERIES * d, packed_len(QUERIES, d)]
}

fn backward_task(dqkv: &Shards<'_, f32>, saved: &Saved<'_>, at: &Place) {
    let (n, d, stride) = (at.segment.len, at.shape.head_dim, at.shape.qkv_width());
    let row = n.next_multiple_of(PANEL);
    let qkv = saved.qkv;
    with_scratch(backward_lens(n, d), |[keys_t, keys, values_t, dkeys, dvalues, p, ds, dq, packed]| {
        pack_all(keys_t, d, n, |panel, i| pack_panel_transposed(panel, &qkv[at.key(0)..], stride, d, n, i));
        pack_all(keys, n, d, |panel, i| pack_panel(panel, &qkv[at.key(0)..], stride, n, d, i));
        pack_all(values_t, d, n, |panel, i| {
            pack_panel_transposed(panel, &qkv[at.value(0)..], stride, d, n, i)
        });
        dkeys.fill(0.0);
        dvalues.fill(0.0);
        let heads = at.shape.n_q_heads * d;
        for (h, q0, m) in at.blocks() {
            let limit = q0 + m;
            let queries = &qkv[at.query(q0, h)..];
            let dout = &saved.dout[at.output(q0, h)..];
            multiply_serial(
                p,
                row,
                Left::rows(queries, stride),
                Right::packed(keys_t, d),
                (m, limit, d),
                false,
            );
            multiply_serial(
                ds,
                row,
                Left::rows(dout, heads),
                Right::packed(values_t, d),
                (m, limit, d),
                false,
            );
            for i in 0..m {
                let seen = q0 + i + 1;
                score_gradient_row(
                    &mut p[i * row..][..limit],
                    &mut ds[i * row..][..limit],
                    seen,
                    saved,
                    at,
                    (q0 + i, h),
                );
            }
            multiply_serial(dq, d, Left::rows(ds, row), Right::packed(keys, n), (m, d, limit), false);
            for i in 0..m {
                // SAFETY: a row's query head belongs to one task.
                unsafe { dqkv.piece(at.query(q0 + i, h), d) }.copy_from_slice(&dq[i * d..][..d]);
            }
            pack_all(packed, m, d, |panel, i| pack_panel(panel, queries, stride, m, d, i));
            multiply_serial(
                dkeys,
                d,
                Left::transposed(ds, row),
                Right::packed(packed, m),
                (limit, d, m),
                true,
            );
            pack_all(packed, m, d, |panel, i| pack_panel(panel, dout, heads, m, d, i));
            multiply_serial(
                dvalues,
                d,
                Left::transposed(p, row),
                Right::packed(packed, m),
                (limit, d, m),
                true,
            );
        }
        for i in 0..n {
            // SAFETY: a KV head of a row belongs to one task.
            let (dk, dv) = unsafe { (dqkv.piece(at.key(i), d), dqkv.piece(at.value(i), d)) };
            dk.copy_from_slice(&dkeys[i * d..][..d]);
            dv.copy_from_slice(&dvalues[i * d..][..d]);
        }
    });
}

/// Turns a row of scores into probabilities and a row of dP into dS.
fn score_gradient_row(
    p: &mut [f32],
    ds: &mut [f32],
    seen: usize,
    saved: &Saved<'_>,
    at: &Place,
    (row, h): (usize, usize),
) {
    let d = at.shape.head_dim;
    let from = at.output(row, h);
    let delta = sum_of_products(&saved.out[from..from + d], &saved.dout[from..from + d]);
    exp_row(&mut p[..seen], at.shape.scale(), saved.lse[from / d]);
    softmax_row_backward(&mut ds[..seen], &p[..seen], delta, at.shape.scale());
    p[seen..].fill(0.0);
    ds[seen..].fill(0.0);
}

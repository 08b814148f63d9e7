//! The one value through which the decoder computes.

use std::sync::{Mutex, MutexGuard};

use crate::attention;
use crate::divergence::{HeadTerms, Term};
use crate::gemm;
use crate::head::{DenseTargets, HeadLosses, HeadTargets};
use crate::kv_cache::KvCache;
use crate::memory;
use crate::mixture::Mixture;
use crate::packed::{PackedWeight, StoredRows};
use crate::panels::{Left, Right, TILE_ROWS};
use crate::pool::{Pool, Shards};
use crate::reference::AdamWStep;
use crate::rows::{self, Heads, for_row_pieces};
use crate::scratch::reserve;

/// Numbers that live on a device.
pub struct Buf {
    pub(crate) data: Vec<f32>,
}

impl Buf {
    pub fn len(&self) -> usize {
        self.data.len()
    }

    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// Numbers that fit without new memory.
    pub fn capacity(&self) -> usize {
        self.data.capacity()
    }

    /// Changes the length; what the numbers are is unspecified.
    pub fn resize(&mut self, len: usize) {
        self.data.resize(len, 0.0);
    }
}

/// A weight \[outputs, inputs\] as the right-hand side of products.
#[derive(Clone, Copy)]
pub enum Weight<'a> {
    /// As it is. It is laid out on the way through each product, which costs little beside many rows.
    Plain { w: &'a Buf, n_out: usize, n_in: usize },
    /// Laid out once, for products with few rows.
    Packed(&'a PackedWeight),
}

impl<'a> From<&'a PackedWeight> for Weight<'a> {
    fn from(packed: &'a PackedWeight) -> Weight<'a> {
        Weight::Packed(packed)
    }
}

impl<'a> Weight<'a> {
    pub fn n_out(self) -> usize {
        match self {
            Weight::Plain { n_out, .. } => n_out,
            Weight::Packed(packed) => packed.n_out(),
        }
    }

    pub fn n_in(self) -> usize {
        match self {
            Weight::Plain { n_in, .. } => n_in,
            Weight::Packed(packed) => packed.n_in(),
        }
    }

    /// y\[n_rows, out\] = x\[n_rows, in\]·wᵀ.
    pub(crate) fn multiply(self, pool: &Pool, y: &mut [f32], x: &[f32], n_rows: usize) {
        match self {
            Weight::Packed(packed) => packed.multiply(pool, y, x, n_rows),
            Weight::Plain { w, n_out, n_in } => {
                let (left, right) = (Left::rows(x, n_in), Right::Transposed { data: &w.data, stride: n_in });
                gemm::multiply(pool, y, n_out, left, right, (n_rows, n_out, n_in), false);
            }
        }
    }
}

/// Rows `start..start + len` of a packed batch: one document, which attends to itself only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub start: usize,
    pub len: usize,
}

/// Heads of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    pub n_q_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
}

impl AttentionShape {
    /// Numbers in a row of q, k and v heads.
    pub fn qkv_width(self) -> usize {
        (self.n_q_heads + 2 * self.n_kv_heads) * self.head_dim
    }

    /// 1/√head_dim.
    pub fn scale(self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// How rotary frequencies are stretched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    /// Llama 3: low frequencies divided by `factor`, a smooth ramp between.
    Llama3 {
        factor: f32,
        low_freq_factor: f32,
        high_freq_factor: f32,
        original_context: usize,
    },
}

/// cos and sin of position·frequency, for positions `0..n_positions`.
pub struct RopeTable {
    pub head_dim: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// Frequencies θ^(−2k/d) in f32, as transformers computes them.
    pub fn new(head_dim: usize, theta: f32, scaling: RopeScaling, n_positions: usize) -> RopeTable {
        let half = head_dim / 2;
        let frequencies: Vec<f32> = (0..half)
            .map(|k| 1.0 / theta.powf((2 * k) as f32 / head_dim as f32))
            .map(|f| scaled_frequency(f, scaling))
            .collect();
        let angle = |i: usize| ((i / half) as f32 * frequencies[i % half]) as f64;
        RopeTable {
            head_dim,
            cos: (0..n_positions * half).map(|i| angle(i).cos() as f32).collect(),
            sin: (0..n_positions * half).map(|i| angle(i).sin() as f32).collect(),
        }
    }

    pub(crate) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let half = self.head_dim / 2;
        (&self.cos[position * half..][..half], &self.sin[position * half..][..half])
    }

    pub fn n_positions(&self) -> usize {
        self.cos.len() / (self.head_dim / 2)
    }
}

fn scaled_frequency(frequency: f32, scaling: RopeScaling) -> f32 {
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } = scaling else {
        return frequency;
    };
    let context = original_context as f32;
    let wavelength = std::f32::consts::TAU / frequency;
    if wavelength < context / high_freq_factor {
        frequency
    } else if wavelength > context / low_freq_factor {
        frequency / factor
    } else {
        let smooth = (context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}

/// Computes; today on the CPU. A second device is a second implementation of these methods.
pub struct Device {
    pub(crate) pool: Pool,
    /// Lends memory to the kernels that need much of it, one at a time.
    scratch: Mutex<Vec<f32>>,
}

impl Device {
    pub fn cpu(n_threads: usize) -> Device {
        let pool = Pool::new(n_threads);
        // A thread's first product takes its blocks' memory. All have it now, not when chance gives a
        // thread its first piece of one.
        pool.on_every_thread(&|| {
            let right = Right::Rows { data: &[0.0], stride: 1 };
            gemm::multiply_serial(&mut [0.0], 1, Left::rows(&[0.0], 1), right, (1, 1, 1), false);
        });
        Device { pool, scratch: Mutex::default() }
    }

    pub fn n_threads(&self) -> usize {
        self.pool.n_threads()
    }

    /// The FMA peak of this device in floating-point operations per second, measured now.
    pub fn fma_peak(&self) -> f64 {
        crate::peak::fma_peak(&self.pool)
    }

    fn scratch(&self, len: usize) -> MutexGuard<'_, Vec<f32>> {
        let mut scratch = self.scratch.lock().unwrap_or_else(|e| e.into_inner());
        if scratch.len() < len {
            *scratch = memory::zeros(len);
        }
        scratch
    }

    pub fn zeros(&self, len: usize) -> Buf {
        Buf { data: memory::zeros(len) }
    }

    pub fn upload(&self, data: &[f32]) -> Buf {
        let mut buf = self.zeros(data.len());
        buf.data.copy_from_slice(data);
        buf
    }

    pub fn download(&self, buf: &Buf) -> Vec<f32> {
        buf.data.clone()
    }

    pub fn fill_zero(&self, buf: &mut Buf) {
        buf.data.fill(0.0);
    }

    /// y += x.
    pub fn add_assign(&self, y: &mut Buf, x: &Buf) {
        for_row_pieces(&self.pool, &mut y.data, 1, &|first, y| {
            rows::add_assign(y, &x.data[first..first + y.len()]);
        });
    }

    /// y\[r\] = x\[rows\[r\]\], rows of `width` numbers.
    pub fn gather_rows(&self, y: &mut Buf, x: &Buf, rows: &[u32], width: usize) {
        for (y, &r) in y.data.chunks_exact_mut(width).zip(rows) {
            y.copy_from_slice(&x.data[r as usize * width..][..width]);
        }
    }

    /// x\[rows\[r\]\] = y\[r\]; rows that are not named become zero.
    pub fn scatter_rows(&self, x: &mut Buf, y: &Buf, rows: &[u32], width: usize) {
        x.data.fill(0.0);
        for (y, &r) in y.data.chunks_exact(width).zip(rows) {
            x.data[r as usize * width..][..width].copy_from_slice(y);
        }
    }

    /// Lays a weight \[out, in\] out for [`Device::linear_forward`].
    pub fn pack(&self, w: &Buf, n_out: usize, n_in: usize) -> PackedWeight {
        PackedWeight::of_numbers(&self.pool, &w.data, n_out, n_in)
    }

    /// Lays consecutive outputs out for [`Device::linear_forward`], kept as they are stored where the
    /// kernels know how: Q4_0, Q4_1, Q8_0 and halves in rows of whole 32s; others as f32.
    pub fn pack_stored(&self, rows: &[StoredRows<'_>], n_in: usize) -> PackedWeight {
        PackedWeight::of_stored(&self.pool, rows, n_in)
    }

    /// The plain weight behind a packed one.
    pub fn unpack(&self, packed: &PackedWeight) -> Buf {
        let mut w = self.zeros(packed.n_out() * packed.n_in());
        let rows = w.data.chunks_exact_mut(packed.n_in());
        rows.enumerate().for_each(|(i, row)| packed.row(i, row));
        w
    }

    /// y\[n\] = row ids\[n\] of a packed weight.
    pub fn packed_rows(&self, y: &mut Buf, packed: &PackedWeight, ids: &[u32]) {
        for_row_pieces(
            &self.pool,
            &mut y.data[..ids.len() * packed.n_in()],
            packed.n_in(),
            &|first, piece| {
                let rows = piece.chunks_exact_mut(packed.n_in()).zip(&ids[first..]);
                rows.for_each(|(row, &id)| packed.row(id as usize, row));
            },
        );
    }

    /// y\[n, out\] = x\[n, in\]·wᵀ + bias.
    pub fn linear_forward<'a>(
        &self,
        y: &mut Buf,
        x: &Buf,
        w: impl Into<Weight<'a>>,
        bias: Option<&Buf>,
        n_rows: usize,
    ) {
        let w = w.into();
        let (n_out, n_in) = (w.n_out(), w.n_in());
        w.multiply(&self.pool, &mut y.data, &x.data[..n_rows * n_in], n_rows);
        if let Some(bias) = bias {
            rows::bias_add(&self.pool, &mut y.data[..n_rows * n_out], &bias.data);
        }
    }

    /// dx\[n, in\] = dy\[n, out\]·w, overwritten. `w` is the plain weight \[out, in\].
    pub fn linear_backward_input(
        &self,
        dx: &mut Buf,
        dy: &Buf,
        w: &Buf,
        n_rows: usize,
        n_in: usize,
        n_out: usize,
    ) {
        let left = Left::rows(&dy.data[..n_rows * n_out], n_out);
        let right = Right::Rows { data: &w.data, stride: n_in };
        gemm::multiply(&self.pool, &mut dx.data, n_in, left, right, (n_rows, n_in, n_out), false);
    }

    /// dw\[out, in\] += dyᵀ·x.
    pub fn linear_backward_weight(
        &self,
        dw: &mut Buf,
        dy: &Buf,
        x: &Buf,
        n_rows: usize,
        n_in: usize,
        n_out: usize,
    ) {
        let left = Left::transposed(&dy.data[..n_rows * n_out], n_out);
        let right = Right::Rows { data: &x.data, stride: n_in };
        gemm::multiply(&self.pool, &mut dw.data, n_in, left, right, (n_out, n_in, n_rows), true);
    }

    /// db\[out\] += Σ rows of dy.
    pub fn bias_backward(&self, db: &mut Buf, dy: &Buf, n_rows: usize, n_out: usize) {
        rows::bias_backward(&self.pool, &mut db.data[..n_out], &dy.data, n_rows);
    }

    /// Rows of `width` numbers; see [`crate::reference::rmsnorm_forward`].
    pub fn rmsnorm_forward(&self, y: &mut Buf, x: &Buf, w: &Buf, eps: f32, n_rows: usize, width: usize) {
        rows::rmsnorm_forward(
            &self.pool,
            &mut y.data[..n_rows * width],
            &x.data,
            &w.data,
            eps,
            Heads::rows(width),
        );
    }

    /// dx += …, dw += …, where it is wanted; see [`crate::reference::rmsnorm_backward`].
    pub fn rmsnorm_backward<'a>(
        &self,
        dx: &mut Buf,
        dw: impl Into<Option<&'a mut Buf>>,
        dy: &Buf,
        x: &Buf,
        w: &Buf,
        eps: f32,
        n_rows: usize,
        width: usize,
    ) {
        let dx = &mut dx.data[..n_rows * width];
        rows::rmsnorm_backward(
            &self.pool,
            dx,
            numbers(dw.into()),
            &dy.data,
            &x.data,
            &w.data,
            eps,
            Heads::rows(width),
        );
    }

    /// RMSNorm of q heads and of k heads within qkv rows (Qwen3), from `raw` into `qkv`; v heads are copied.
    pub fn qk_norm_forward(
        &self,
        qkv: &mut Buf,
        raw: &Buf,
        q_norm: &Buf,
        k_norm: &Buf,
        eps: f32,
        shape: AttentionShape,
    ) {
        qkv.data.copy_from_slice(&raw.data);
        let (q, k) = qk_heads(shape);
        rows::rmsnorm_forward(&self.pool, &mut qkv.data, &raw.data, &q_norm.data, eps, q);
        rows::rmsnorm_forward(&self.pool, &mut qkv.data, &raw.data, &k_norm.data, eps, k);
    }

    /// Backward of [`Device::qk_norm_forward`]: `dqkv` is turned in place into the gradient of `raw`, and
    /// those of the norms are added where they are wanted.
    pub fn qk_norm_backward<'a>(
        &self,
        dqkv: &mut Buf,
        dq_norm: impl Into<Option<&'a mut Buf>>,
        dk_norm: impl Into<Option<&'a mut Buf>>,
        raw: &Buf,
        q_norm: &Buf,
        k_norm: &Buf,
        eps: f32,
        shape: AttentionShape,
    ) {
        let stride = shape.qkv_width();
        let normed = (shape.n_q_heads + shape.n_kv_heads) * shape.head_dim;
        let mut upstream = self.scratch(dqkv.len());
        let upstream = &mut upstream[..dqkv.data.len()];
        upstream.copy_from_slice(&dqkv.data);
        dqkv.data.chunks_exact_mut(stride).for_each(|row| row[..normed].fill(0.0));
        let (q, k) = qk_heads(shape);
        rows::rmsnorm_backward(
            &self.pool,
            &mut dqkv.data,
            numbers(dq_norm.into()),
            upstream,
            &raw.data,
            &q_norm.data,
            eps,
            q,
        );
        rows::rmsnorm_backward(
            &self.pool,
            &mut dqkv.data,
            numbers(dk_norm.into()),
            upstream,
            &raw.data,
            &k_norm.data,
            eps,
            k,
        );
    }

    /// Rotates q and k heads of qkv rows in place.
    pub fn rope_forward(&self, qkv: &mut Buf, shape: AttentionShape, table: &RopeTable, positions: &[u32]) {
        let rows = &mut qkv.data[..positions.len() * shape.qkv_width()];
        rows::rope(&self.pool, rows, shape, table, positions, 1.0);
    }

    /// The inverse rotation, for gradients.
    pub fn rope_backward(&self, dqkv: &mut Buf, shape: AttentionShape, table: &RopeTable, positions: &[u32]) {
        let rows = &mut dqkv.data[..positions.len() * shape.qkv_width()];
        rows::rope(&self.pool, rows, shape, table, positions, -1.0);
    }

    /// Causal attention within each segment; see [`crate::reference::attention_forward`].
    pub fn attention_forward(
        &self,
        out: &mut Buf,
        lse: &mut Buf,
        qkv: &Buf,
        shape: AttentionShape,
        segments: &[Segment],
    ) {
        attention::forward(&self.pool, &mut out.data, &mut lse.data, &qkv.data, shape, segments);
    }

    /// dqkv overwritten in the segments' rows; see [`crate::reference::attention_backward`].
    pub fn attention_backward(
        &self,
        dqkv: &mut Buf,
        dout: &Buf,
        out: &Buf,
        lse: &Buf,
        qkv: &Buf,
        shape: AttentionShape,
        segments: &[Segment],
    ) {
        let saved = attention::Saved { dout: &dout.data, out: &out.data, lse: &lse.data, qkv: &qkv.data };
        attention::backward(&self.pool, &mut dqkv.data, &saved, shape, segments);
    }

    /// Room for `n_slots` sequences of up to `capacity` positions, for one layer.
    pub fn kv_cache(&self, shape: AttentionShape, n_slots: usize, capacity: usize) -> KvCache {
        KvCache::new(shape, n_slots, capacity)
    }

    /// Stores the k and v heads of rows `segment` at positions `0..` of `slot` (prefill).
    pub fn kv_store(&self, cache: &mut KvCache, qkv: &Buf, slot: usize, segment: Segment) {
        cache.store(&qkv.data, slot, segment);
    }

    /// One new token per sequence: row r of `qkv` belongs to `slots[r]` at `positions[r]`. Its k and v
    /// are stored, then it attends to positions `0..=positions[r]`. Bits equal [`Device::attention_forward`]'s.
    pub fn attention_decode(
        &self,
        out: &mut Buf,
        qkv: &Buf,
        cache: &mut KvCache,
        slots: &[u32],
        positions: &[u32],
    ) {
        cache.decode(&self.pool, &mut out.data, &qkv.data, slots, positions);
    }

    /// y\[n,f\] = silu(gate)·up; rows of `gate_up` hold gate then up.
    pub fn swiglu_forward(&self, y: &mut Buf, gate_up: &Buf, n_rows: usize, f: usize) {
        rows::swiglu_forward(&self.pool, &mut y.data[..n_rows * f], &gate_up.data, f);
    }

    /// See [`crate::reference::swiglu_backward`].
    pub fn swiglu_backward(&self, dgate_up: &mut Buf, dy: &Buf, gate_up: &Buf, n_rows: usize, f: usize) {
        rows::swiglu_backward(&self.pool, &mut dgate_up.data[..2 * n_rows * f], &dy.data, &gate_up.data, f);
    }

    /// y\[n\] = table\[ids\[n\]\].
    pub fn embedding_forward(&self, y: &mut Buf, table: &Buf, ids: &[u32], width: usize) {
        crate::reference::embedding_forward(&mut y.data, &table.data, ids, width);
    }

    /// dtable\[ids\[n\]\] += dy\[n\], rows in ascending order.
    pub fn embedding_backward(&self, dtable: &mut Buf, dy: &Buf, ids: &[u32], width: usize) {
        rows::embedding_backward(&self.pool, &mut dtable.data, &dy.data, ids, width);
    }

    /// Losses of each row of `hidden` \[n, width\] under head weight `w` are appended to `losses`, nothing
    /// differentiated; the weights of the divergences do not matter.
    ///
    /// # Panics
    /// Where [`HeadTargets::validate`] refuses.
    pub fn divergence_head_forward<'a>(
        &self,
        hidden: &Buf,
        w: impl Into<Weight<'a>>,
        n_rows: usize,
        targets: &HeadTargets<'_>,
        divergences: &[Term],
        losses: &mut HeadLosses,
    ) {
        let terms = HeadTerms { hard_label: 0.0, divergences, scale: 0.0 };
        self.each_chunk_of_losses((hidden, w.into()), n_rows, targets, &terms, losses, &mut |_, _| {});
    }

    /// Losses of each row are appended to `losses`, with dhidden overwritten and dw\[V, width\] +=, where it
    /// is wanted, in the same pass. `w` is \[V, width\].
    ///
    /// Logits exist for a chunk of rows at a time, a dense teacher's too; in each chunk: logits, losses and
    /// their gradient in place, dhidden = dlogits·W, dw += dlogitsᵀ·hidden. The result does not depend
    /// on the chunk's size.
    ///
    /// # Panics
    /// Where [`HeadTargets::validate`] refuses.
    pub fn divergence_head<'a>(
        &self,
        dhidden: &mut Buf,
        dw: impl Into<Option<&'a mut Buf>>,
        hidden: &Buf,
        w: &Buf,
        n_rows: usize,
        targets: &HeadTargets<'_>,
        terms: &HeadTerms<'_>,
        losses: &mut HeadLosses,
    ) {
        if n_rows == 0 {
            return;
        }
        let mut dw = numbers(dw.into());
        let width = hidden.len() / n_rows;
        let vocab = w.len() / width.max(1);
        assert!(hidden.len() == n_rows * width && w.len() == vocab * width, "one width on both sides");
        let head = Weight::Plain { w, n_out: vocab, n_in: width };
        self.each_chunk_of_losses((hidden, head), n_rows, targets, terms, losses, &mut |first, dz| {
            let rows = dz.len() / vocab;
            let chunk = first * width..(first + rows) * width;
            let (dh, h) = (&mut dhidden.data[chunk.clone()], &hidden.data[chunk]);
            let (pool, by_row) = (&self.pool, Left::rows(dz, vocab));
            let w = Right::Rows { data: &w.data, stride: width };
            gemm::multiply(pool, dh, width, by_row, w, (rows, width, vocab), false);
            if let Some(dw) = &mut dw {
                let (by_id, h) = (Left::transposed(dz, vocab), Right::Rows { data: h, stride: width });
                gemm::multiply(pool, dw, width, by_id, h, (vocab, width, rows), true);
            }
        });
    }

    /// Losses of a chunk of rows after the other; `f(first row, dlogits)` gets each chunk's gradient.
    fn each_chunk_of_losses(
        &self,
        (hidden, w): (&Buf, Weight<'_>),
        n_rows: usize,
        targets: &HeadTargets<'_>,
        terms: &HeadTerms<'_>,
        losses: &mut HeadLosses,
        f: &mut dyn FnMut(usize, &[f32]),
    ) {
        let vocab = w.n_out();
        if let Err(refused) = targets.validate(terms, vocab) {
            panic!("{refused}");
        }
        reserve(&self.pool, [targets.n_kept_max()]);
        let sink = losses.append(n_rows, targets, terms.divergences.len());
        let of_teacher = targets.dense.map_or(0, |dense| dense.head.n_out());
        let n_ids = targets.n_ids.unwrap_or(vocab);
        let teachers = targets.dense.map(|dense| Teachers { dense, mixture: targets.mixture, n_ids });
        self.for_each_logits_chunk((hidden, w), teachers, n_rows, &mut |first, z, t| {
            for_row_pieces(&self.pool, z, vocab, &|row, piece| {
                for (i, z) in piece.chunks_exact_mut(vocab).enumerate() {
                    let at = row + i;
                    let t = &t[at * of_teacher..][..of_teacher];
                    sink.put(first + at, &targets.row(z, t, first + at, terms));
                }
            });
            f(first, z);
        });
    }

    /// Calls `f(row, logits)` for every row, holding only a chunk of logits at a time.
    /// Rows are visited on several threads and in any order.
    pub fn for_each_logits_row<'a>(
        &self,
        hidden: &Buf,
        w: impl Into<Weight<'a>>,
        n_rows: usize,
        f: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        let w = w.into();
        let vocab = w.n_out();
        self.for_each_logits_chunk((hidden, w), None, n_rows, &mut |first, z, _| {
            for_row_pieces(&self.pool, z, vocab, &|row, piece| {
                piece.chunks_exact_mut(vocab).enumerate().for_each(|(i, z)| f(first + row + i, z));
            });
        });
    }

    /// [`Device::for_each_logits_row`] of several teachers: `f(row, log p)`, over the first `n_ids` ids that all have.
    pub fn for_each_mixed_row(
        &self,
        dense: DenseTargets<'_>,
        mixture: &Mixture<'_>,
        n_ids: usize,
        n_rows: usize,
        f: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        let DenseTargets { hidden, first_row, head } = dense;
        let (vocab, n_in, room) = (head.n_out(), head.n_in(), mixture.n_room());
        assert!(n_ids <= mixture.vocabularies(vocab).0, "ids that all teachers have");
        let chunk = logits_chunk_rows(vocab + room).min(n_rows);
        let mut logits = self.scratch(chunk * (vocab + room));
        let (t, room) = logits.split_at_mut(chunk * vocab);
        for first in (0..n_rows).step_by(chunk.max(1)) {
            let rows = chunk.min(n_rows - first);
            let (t, from) = (&mut t[..rows * vocab], (first_row + first) * n_in);
            head.multiply(&self.pool, t, &hidden.data[from..from + rows * n_in], rows);
            mixture.mix(&self.pool, (t, vocab), room, first, n_ids);
            for_row_pieces(&self.pool, t, vocab, &|row, piece| {
                let rows = piece.chunks_exact_mut(vocab).enumerate();
                rows.for_each(|(i, t)| f(first + row + i, &mut t[..n_ids]));
            });
        }
    }

    /// Exact KL(teacher‖student) in nats of each row, both distributions dense at temperature 1, in chunks. The teacher
    /// is a mixture where there is one.
    pub fn dense_forward_kl(
        &self,
        teacher: (&Buf, Weight<'_>),
        mixture: Option<Mixture<'_>>,
        student: (&Buf, Weight<'_>),
        n_rows: usize,
    ) -> Vec<f32> {
        let vocab = teacher.1.n_out();
        assert_eq!(vocab, student.1.n_out(), "one vocabulary on both sides");
        let mut kl = vec![0.0; n_rows];
        let sink = Shards::new(&mut kl);
        let same = mixture.is_none_or(|mixture| mixture.vocabularies(vocab) == (vocab, vocab));
        assert!(same, "one vocabulary for all teachers");
        let dense = DenseTargets { hidden: teacher.0, first_row: 0, head: teacher.1 };
        let teachers = Some(Teachers { dense, mixture, n_ids: vocab });
        self.for_each_logits_chunk(student, teachers, n_rows, &mut |first, s, t| {
            for_row_pieces(&self.pool, s, vocab, &|row, piece| {
                for (i, s) in piece.chunks_exact(vocab).enumerate() {
                    let t = &t[(row + i) * vocab..][..vocab];
                    let lse = |z: &[f32]| rows::log_sum_exp(z, 1.0);
                    // SAFETY: one number per row, each row visited once.
                    unsafe {
                        sink.piece(first + row + i, 1)[0] = rows::forward_kl_of_logits(t, s, lse(t), lse(s))
                    };
                }
            });
        });
        kl
    }

    /// One AdamW step on a tensor; see [`crate::reference::adamw`]. The gradient is zero afterwards.
    pub fn adamw(&self, p: &mut Buf, g: &mut Buf, m: &mut Buf, v: &mut Buf, step: &AdamWStep) {
        rows::adamw(&self.pool, &mut p.data, &mut g.data, &mut m.data, &mut v.data, step);
    }

    /// Σ g² in f64, over fixed pieces in order.
    pub fn sum_of_squares(&self, g: &Buf) -> f64 {
        rows::sum_of_squares(&self.pool, &g.data)
    }

    /// Calls `f(first row, student's logits, teacher's logits)` for a chunk of rows after the other; the
    /// teacher's are empty where there is none, and log p of several where they are mixed.
    fn for_each_logits_chunk(
        &self,
        (hidden, w): (&Buf, Weight<'_>),
        teachers: Option<Teachers<'_>>,
        n_rows: usize,
        f: &mut OnChunk<'_>,
    ) {
        let (n_out, n_in) = (w.n_out(), w.n_in());
        let of_teacher = teachers.map_or(0, |teachers| teachers.dense.head.n_out());
        let room = teachers.and_then(|teachers| teachers.mixture).map_or(0, |mixture| mixture.n_room());
        let chunk = logits_chunk_rows(n_out + of_teacher + room).min(n_rows);
        let mut logits = self.scratch(chunk * (n_out + of_teacher + room));
        let (z, t) = logits.split_at_mut(chunk * n_out);
        let (t, room) = t.split_at_mut(chunk * of_teacher);
        for first in (0..n_rows).step_by(chunk.max(1)) {
            let rows = chunk.min(n_rows - first);
            let (z, t) = (&mut z[..rows * n_out], &mut t[..rows * of_teacher]);
            w.multiply(&self.pool, z, &hidden.data[first * n_in..(first + rows) * n_in], rows);
            if let Some(Teachers { dense: DenseTargets { hidden, first_row, head }, mixture, n_ids }) =
                teachers
            {
                let from = (first_row + first) * head.n_in();
                head.multiply(&self.pool, t, &hidden.data[from..from + rows * head.n_in()], rows);
                if let Some(mixture) = mixture {
                    mixture.mix(&self.pool, (t, of_teacher), room, first, n_ids);
                }
            }
            f(first, z, t);
        }
    }
}

/// A teacher at hand, those that are mixed with it, and how many ids all of them and the student have.
#[derive(Clone, Copy)]
struct Teachers<'a> {
    dense: DenseTargets<'a>,
    mixture: Option<Mixture<'a>>,
    n_ids: usize,
}

/// Takes the first row of a chunk, the student's logits and the teacher's.
type OnChunk<'f> = dyn FnMut(usize, &mut [f32], &[f32]) + 'f;

/// Rows whose logits are held at once, of `n_logits` each for student and teachers together: 48 MiB of them.
/// More would not fit the caches any better than they do, fewer would read and write the head's weights and
/// their gradient more often.
pub fn logits_chunk_rows(n_logits: usize) -> usize {
    const LOGITS_MAX: usize = 12 << 20;
    (LOGITS_MAX / n_logits / TILE_ROWS * TILE_ROWS).clamp(4 * TILE_ROWS, 510)
}

/// The numbers of a gradient, if it is wanted.
fn numbers(gradient: Option<&mut Buf>) -> Option<&mut [f32]> {
    gradient.map(|gradient| &mut gradient.data[..])
}

/// Query heads and key heads of qkv rows.
fn qk_heads(shape: AttentionShape) -> (Heads, Heads) {
    let (row_stride, width) = (shape.qkv_width(), shape.head_dim);
    let q = Heads { row_stride, offset: 0, n_heads: shape.n_q_heads, width };
    (q, Heads { offset: shape.n_q_heads * width, n_heads: shape.n_kv_heads, ..q })
}

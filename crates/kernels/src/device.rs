//! The one value through which the decoder computes.

use crate::head::{HeadLosses, HeadTargets, HeadWeights, row_losses};
use crate::reference::{self, AdamWStep};

/// Numbers that live on a device.
pub struct Buf {
    data: Vec<f32>,
}

impl Buf {
    pub fn len(&self) -> usize {
        self.data.len()
    }

    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }
}

/// A weight \[outputs, inputs\] laid out for products with many or few rows.
pub struct PackedWeight {
    data: Vec<f32>,
    pub n_out: usize,
    pub n_in: usize,
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

/// Keys and values of sequences that are being decoded, one slot per sequence.
pub struct KvCache {
    shape: AttentionShape,
    capacity: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// Computes; today on the CPU. A second device is a second implementation of these methods.
pub struct Device {
    n_threads: usize,
}

impl Device {
    pub fn cpu(n_threads: usize) -> Device {
        Device { n_threads: n_threads.max(1) }
    }

    pub fn n_threads(&self) -> usize {
        self.n_threads
    }

    pub fn zeros(&self, len: usize) -> Buf {
        Buf { data: vec![0.0; len] }
    }

    pub fn upload(&self, data: &[f32]) -> Buf {
        Buf { data: data.to_vec() }
    }

    pub fn download(&self, buf: &Buf) -> Vec<f32> {
        buf.data.clone()
    }

    pub fn fill_zero(&self, buf: &mut Buf) {
        buf.data.fill(0.0);
    }

    /// y += x.
    pub fn add_assign(&self, y: &mut Buf, x: &Buf) {
        y.data.iter_mut().zip(&x.data).for_each(|(y, x)| *y += x);
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

    pub fn pack(&self, w: &Buf, n_out: usize, n_in: usize) -> PackedWeight {
        assert_eq!(w.len(), n_out * n_in);
        PackedWeight { data: w.data.clone(), n_out, n_in }
    }

    /// y\[n, out\] = x\[n, in\]·wᵀ + bias.
    pub fn linear_forward(&self, y: &mut Buf, x: &Buf, w: &PackedWeight, bias: Option<&Buf>, n_rows: usize) {
        reference::linear_forward(
            &mut y.data,
            &x.data,
            &w.data,
            bias.map(|b| &b.data[..]),
            n_rows,
            w.n_in,
            w.n_out,
        );
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
        reference::linear_backward_input(&mut dx.data, &dy.data, &w.data, n_rows, n_in, n_out);
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
        reference::linear_backward_weight(&mut dw.data, &dy.data, &x.data, n_rows, n_in, n_out);
    }

    /// db\[out\] += Σ rows of dy.
    pub fn bias_backward(&self, db: &mut Buf, dy: &Buf, n_rows: usize, n_out: usize) {
        reference::bias_backward(&mut db.data, &dy.data, n_rows, n_out);
    }

    /// Rows of `width` numbers; see [`reference::rmsnorm_forward`].
    pub fn rmsnorm_forward(&self, y: &mut Buf, x: &Buf, w: &Buf, eps: f32, n_rows: usize, width: usize) {
        let n = n_rows * width;
        reference::rmsnorm_forward(&mut y.data[..n], &x.data[..n], &w.data, eps, width);
    }

    /// dx += …, dw += …; see [`reference::rmsnorm_backward`].
    pub fn rmsnorm_backward(
        &self,
        dx: &mut Buf,
        dw: &mut Buf,
        dy: &Buf,
        x: &Buf,
        w: &Buf,
        eps: f32,
        n_rows: usize,
        width: usize,
    ) {
        let n = n_rows * width;
        reference::rmsnorm_backward(
            &mut dx.data[..n],
            &mut dw.data,
            &dy.data[..n],
            &x.data[..n],
            &w.data,
            eps,
            width,
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
        let (d, stride) = (shape.head_dim, shape.qkv_width());
        let (nq, nk) = (shape.n_q_heads * d, shape.n_kv_heads * d);
        for (y, x) in qkv.data.chunks_exact_mut(stride).zip(raw.data.chunks_exact(stride)) {
            reference::rmsnorm_forward(&mut y[..nq], &x[..nq], &q_norm.data, eps, d);
            reference::rmsnorm_forward(&mut y[nq..nq + nk], &x[nq..nq + nk], &k_norm.data, eps, d);
            y[nq + nk..].copy_from_slice(&x[nq + nk..]);
        }
    }

    /// Backward of [`Device::qk_norm_forward`]: `dqkv` is turned in place into the gradient of `raw`.
    pub fn qk_norm_backward(
        &self,
        dqkv: &mut Buf,
        dq_norm: &mut Buf,
        dk_norm: &mut Buf,
        raw: &Buf,
        q_norm: &Buf,
        k_norm: &Buf,
        eps: f32,
        shape: AttentionShape,
    ) {
        let (d, stride) = (shape.head_dim, shape.qkv_width());
        let (nq, nk) = (shape.n_q_heads * d, shape.n_kv_heads * d);
        for (dy, x) in dqkv.data.chunks_exact_mut(stride).zip(raw.data.chunks_exact(stride)) {
            let upstream = dy.to_vec();
            dy[..nq + nk].fill(0.0);
            reference::rmsnorm_backward(
                &mut dy[..nq],
                &mut dq_norm.data,
                &upstream[..nq],
                &x[..nq],
                &q_norm.data,
                eps,
                d,
            );
            reference::rmsnorm_backward(
                &mut dy[nq..nq + nk],
                &mut dk_norm.data,
                &upstream[nq..nq + nk],
                &x[nq..nq + nk],
                &k_norm.data,
                eps,
                d,
            );
        }
    }

    /// Rotates q and k heads of qkv rows in place.
    pub fn rope_forward(&self, qkv: &mut Buf, shape: AttentionShape, table: &RopeTable, positions: &[u32]) {
        reference::rope(
            &mut qkv.data,
            shape.qkv_width(),
            shape.n_q_heads + shape.n_kv_heads,
            table,
            positions,
            1.0,
        );
    }

    /// The inverse rotation, for gradients.
    pub fn rope_backward(&self, dqkv: &mut Buf, shape: AttentionShape, table: &RopeTable, positions: &[u32]) {
        reference::rope(
            &mut dqkv.data,
            shape.qkv_width(),
            shape.n_q_heads + shape.n_kv_heads,
            table,
            positions,
            -1.0,
        );
    }

    /// Causal attention within each segment; see [`reference::attention_forward`].
    pub fn attention_forward(
        &self,
        out: &mut Buf,
        lse: &mut Buf,
        qkv: &Buf,
        shape: AttentionShape,
        segments: &[Segment],
    ) {
        reference::attention_forward(&mut out.data, &mut lse.data, &qkv.data, shape, segments);
    }

    /// dqkv overwritten; see [`reference::attention_backward`].
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
        reference::attention_backward(
            &mut dqkv.data,
            &dout.data,
            &out.data,
            &lse.data,
            &qkv.data,
            shape,
            segments,
        );
    }

    /// Room for `n_slots` sequences of up to `capacity` positions, for one layer.
    pub fn kv_cache(&self, shape: AttentionShape, n_slots: usize, capacity: usize) -> KvCache {
        let len = n_slots * capacity * shape.n_kv_heads * shape.head_dim;
        KvCache { shape, capacity, keys: vec![0.0; len], values: vec![0.0; len] }
    }

    /// Stores the k and v heads of rows `segment` at positions `0..` of `slot` (prefill).
    pub fn kv_store(&self, cache: &mut KvCache, qkv: &Buf, slot: usize, segment: Segment) {
        for (position, row) in (segment.start..segment.start + segment.len).enumerate() {
            cache.put(&qkv.data, row, slot, position);
        }
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
        let shape = cache.shape;
        let (width, group) = (shape.n_kv_heads * shape.head_dim, shape.n_q_heads * shape.head_dim);
        for (r, (&slot, &position)) in slots.iter().zip(positions).enumerate() {
            cache.put(&qkv.data, r, slot as usize, position as usize);
            // The plain form: lay the sequence out as a segment and take its last row.
            let n = position as usize + 1;
            let mut rows = vec![0.0; n * shape.qkv_width()];
            for (j, row) in rows.chunks_exact_mut(shape.qkv_width()).enumerate() {
                let at = (slot as usize * cache.capacity + j) * width;
                row[group..group + width].copy_from_slice(&cache.keys[at..at + width]);
                row[group + width..].copy_from_slice(&cache.values[at..at + width]);
            }
            let last = (n - 1) * shape.qkv_width();
            rows[last..last + group].copy_from_slice(&qkv.data[r * shape.qkv_width()..][..group]);
            let (mut all, mut lse) = (vec![0.0; n * group], vec![0.0; n * shape.n_q_heads]);
            reference::attention_forward(&mut all, &mut lse, &rows, shape, &[Segment { start: 0, len: n }]);
            out.data[r * group..][..group].copy_from_slice(&all[(n - 1) * group..]);
        }
    }

    /// y\[n,f\] = silu(gate)·up; rows of `gate_up` hold gate then up.
    pub fn swiglu_forward(&self, y: &mut Buf, gate_up: &Buf, n_rows: usize, f: usize) {
        reference::swiglu_forward(&mut y.data[..n_rows * f], &gate_up.data[..2 * n_rows * f], f);
    }

    pub fn swiglu_backward(&self, dgate_up: &mut Buf, dy: &Buf, gate_up: &Buf, n_rows: usize, f: usize) {
        reference::swiglu_backward(
            &mut dgate_up.data[..2 * n_rows * f],
            &dy.data[..n_rows * f],
            &gate_up.data[..2 * n_rows * f],
            f,
        );
    }

    pub fn embedding_forward(&self, y: &mut Buf, table: &Buf, ids: &[u32], width: usize) {
        reference::embedding_forward(&mut y.data, &table.data, ids, width);
    }

    pub fn embedding_backward(&self, dtable: &mut Buf, dy: &Buf, ids: &[u32], width: usize) {
        reference::embedding_backward(&mut dtable.data, &dy.data, ids, width);
    }

    /// Losses of each row of `hidden` \[n, width\] under head weight `w`, nothing differentiated.
    pub fn divergence_head_forward(
        &self,
        hidden: &Buf,
        w: &PackedWeight,
        n_rows: usize,
        targets: &HeadTargets<'_>,
        loss_temperature: f32,
    ) -> HeadLosses {
        let weights = HeadWeights { hard_label: 0.0, forward_kl: 0.0, loss_temperature, scale: 0.0 };
        let mut losses = HeadLosses::default();
        self.for_each_logits(hidden, w, n_rows, |r, z| push_losses(&mut losses, r, z, targets, &weights));
        losses
    }

    /// Losses of each row, with dhidden overwritten and dw\[V, width\] += in the same pass. `w_plain` is \[V, width\].
    pub fn divergence_head(
        &self,
        dhidden: &mut Buf,
        dw: &mut Buf,
        hidden: &Buf,
        w: &PackedWeight,
        w_plain: &Buf,
        n_rows: usize,
        targets: &HeadTargets<'_>,
        weights: &HeadWeights,
    ) -> HeadLosses {
        let (width, vocab) = (w.n_in, w.n_out);
        let mut losses = HeadLosses::default();
        let mut all = Vec::with_capacity(n_rows * vocab);
        self.for_each_logits(hidden, w, n_rows, |r, z| {
            push_losses(&mut losses, r, z, targets, weights);
            all.extend_from_slice(z);
        });
        reference::linear_backward_input(&mut dhidden.data, &all, &w_plain.data, n_rows, width, vocab);
        reference::linear_backward_weight(&mut dw.data, &all, &hidden.data, n_rows, width, vocab);
        losses
    }

    /// Calls `f(row, logits)` for every row, holding only a chunk of logits at a time.
    /// Rows may be visited on several threads and in any order.
    pub fn for_each_logits_row(
        &self,
        hidden: &Buf,
        w: &PackedWeight,
        n_rows: usize,
        f: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        self.for_each_logits(hidden, w, n_rows, |r, z| f(r, z));
    }

    /// Exact KL(teacher‖student) in nats of each row, both distributions dense at temperature 1, in chunks.
    pub fn dense_forward_kl(
        &self,
        teacher: (&Buf, &PackedWeight),
        student: (&Buf, &PackedWeight),
        n_rows: usize,
    ) -> Vec<f32> {
        let mut rows = Vec::with_capacity(n_rows);
        self.for_each_logits(teacher.0, teacher.1, n_rows, |_, z| rows.push(z.to_vec()));
        let mut kl = Vec::with_capacity(n_rows);
        self.for_each_logits(student.0, student.1, n_rows, |r, z| {
            kl.push(reference::forward_kl_of_logits(&rows[r], z))
        });
        kl
    }

    /// One AdamW step on a tensor; see [`reference::adamw`].
    pub fn adamw(&self, p: &mut Buf, g: &Buf, m: &mut Buf, v: &mut Buf, step: &AdamWStep) {
        reference::adamw(&mut p.data, &g.data, &mut m.data, &mut v.data, step);
    }

    /// Σ g² in f64, over fixed pieces of 4,096 in order.
    pub fn sum_of_squares(&self, g: &Buf) -> f64 {
        g.data.chunks(4096).map(|piece| piece.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>()).sum()
    }

    fn for_each_logits(
        &self,
        hidden: &Buf,
        w: &PackedWeight,
        n_rows: usize,
        mut f: impl FnMut(usize, &mut [f32]),
    ) {
        let mut z = vec![0.0; w.n_out];
        for r in 0..n_rows {
            reference::linear_forward(
                &mut z,
                &hidden.data[r * w.n_in..][..w.n_in],
                &w.data,
                None,
                1,
                w.n_in,
                w.n_out,
            );
            f(r, &mut z);
        }
    }
}

impl KvCache {
    fn put(&mut self, qkv: &[f32], row: usize, slot: usize, position: usize) {
        assert!(position < self.capacity, "position {position} beyond the cache's {}", self.capacity);
        let width = self.shape.n_kv_heads * self.shape.head_dim;
        let from = row * self.shape.qkv_width() + self.shape.n_q_heads * self.shape.head_dim;
        let to = (slot * self.capacity + position) * width;
        self.keys[to..to + width].copy_from_slice(&qkv[from..from + width]);
        self.values[to..to + width].copy_from_slice(&qkv[from + width..from + 2 * width]);
    }
}

fn push_losses(
    losses: &mut HeadLosses,
    r: usize,
    z: &mut [f32],
    targets: &HeadTargets<'_>,
    weights: &HeadWeights,
) {
    let label = targets.hard_labels.map(|labels| labels[r]);
    let sparse = targets.sparse.as_ref().map(|s| s.row(r));
    let (hard, kl) = row_losses(z, label, sparse, weights);
    if label.is_some() {
        losses.hard_label.push(hard);
    }
    if sparse.is_some() {
        losses.forward_kl.push(kl);
    }
}

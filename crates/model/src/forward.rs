//! The layers, forward. One function serves training, scoring, prefill and decoding.
//!
//! Shapes: n rows (tokens), D hidden, A = n_q·head_dim, Q = (n_q + 2·n_kv)·head_dim, F feed-forward.
//!
//! x_mid = x + o(attention(rope(qkv(norm(x))))), x_out = x_mid + down(swiglu(gate_up(norm(x_mid)))).

use std::sync::Arc;

use stillroom_kernels::{Buf, KvCache, RopeTable, Segment};

use crate::batch::Batch;
use crate::decoder::Decoder;
use crate::lora::{Rows, StepDropout};
use crate::workspace::{Lent, Workspace};

/// How rows attend.
pub(crate) enum Attend<'a> {
    /// Whole documents, each to itself.
    Documents(&'a [Segment]),
    /// Whole documents whose keys and values are stored in `slots[i]` of each layer's cache.
    Prefill { segments: &'a [Segment], slots: &'a [u32], caches: &'a mut [KvCache] },
    /// One row per sequence, which attends to what its slot holds.
    Decode { slots: &'a [u32], caches: &'a mut [KvCache] },
}

/// What all layers of one forward pass share.
pub(crate) struct Pass<'a> {
    pub(crate) positions: &'a [u32],
    pub(crate) rope: Arc<RopeTable>,
    pub(crate) attend: Attend<'a>,
    /// In training alone.
    pub(crate) dropout: Option<StepDropout>,
}

impl Pass<'_> {
    /// Its rows, or those `picked`, of a linear map.
    pub(crate) fn rows<'r>(&self, picked: Option<&'r [u32]>) -> Rows<'r> {
        Rows { dropout: self.dropout, picked }
    }
}

/// Activations that the backward pass of a layer needs; norms and swiglu are computed again.
pub(crate) struct Kept {
    /// \[n, D\]
    pub(crate) x_in: Lent,
    /// \[n, Q\] before QK-norm, where there is one.
    pub(crate) qkv_raw: Option<Lent>,
    /// \[n, Q\] after rope.
    pub(crate) qkv: Lent,
    /// \[n, A\]
    pub(crate) attention: Lent,
    /// \[n, n_q\]
    pub(crate) lse: Lent,
    /// \[rows, D\]: all rows, or those that the last layer was narrowed to.
    pub(crate) x_mid: Lent,
    /// \[rows, 2F\]
    pub(crate) gate_up: Lent,
}

impl Kept {
    /// The layer's input, and the rest.
    pub(crate) fn into_bufs(self) -> (Lent, impl Iterator<Item = Lent>) {
        let rest = [self.qkv, self.attention, self.lse, self.x_mid, self.gate_up];
        (self.x_in, rest.into_iter().chain(self.qkv_raw))
    }
}

/// What the forward pass leaves for the backward pass, which takes it from the last layer to the first.
#[derive(Default)]
pub(crate) struct Activations {
    /// Whether all layers but the last keep only their input, from which the backward pass computes the
    /// rest again. The last layer's turn comes at once, so that would save no memory there.
    pub(crate) inputs_only: bool,
    pub(crate) inputs: Vec<Lent>,
    pub(crate) kept: Vec<Kept>,
}

impl Activations {
    fn keep(&mut self, kept: Kept, is_last: bool, workspace: &Workspace) {
        if self.inputs_only && !is_last {
            let (x_in, rest) = kept.into_bufs();
            self.inputs.push(x_in);
            workspace.give_all(rest);
        } else {
            self.kept.push(kept);
        }
    }
}

impl Decoder {
    /// A pass over whole documents.
    pub(crate) fn documents<'a>(&self, batch: &'a Batch, positions: &'a [u32]) -> Pass<'a> {
        batch.check();
        let longest = batch.segments.iter().map(|s| s.len).max().unwrap_or(0);
        let attend = Attend::Documents(&batch.segments);
        Pass { positions, rope: self.rope(longest), attend, dropout: None }
    }

    /// x after the last layer \[rows, D\], before the final norm.
    ///
    /// With `rows`, the last layer computes nothing after its attention for other rows, and only those
    /// come back, in that order. With `keep`, it is given what the backward pass needs.
    ///
    /// # Panics
    /// Where an id is outside the vocabulary.
    pub(crate) fn layers_forward(
        &self,
        ids: &[u32],
        pass: &mut Pass<'_>,
        rows: Option<&[u32]>,
        mut keep: Option<&mut Activations>,
    ) -> Lent {
        let vocab_size = self.config.vocab_size;
        assert!(ids.iter().all(|&id| (id as usize) < vocab_size), "token id outside the vocabulary");
        let rows = rows.filter(|rows| rows.len() < ids.len());
        let mut x = self.take(ids.len(), self.config.hidden_size);
        self.embed(&mut x, ids);
        for layer in 0..self.config.num_hidden_layers {
            let last = layer + 1 == self.config.num_hidden_layers;
            let rows = rows.filter(|_| last);
            let kept = self.layer_inner(layer, x, pass, rows);
            x = self.layer_out(layer, &kept, rows.map_or(ids.len(), <[u32]>::len), pass.rows(rows));
            match &mut keep {
                Some(keep) => keep.keep(kept, last, &self.workspace),
                None => {
                    let (x_in, rest) = kept.into_bufs();
                    self.workspace.give_all(rest.chain([x_in]));
                }
            }
        }
        x
    }

    /// The layer up to `gate_up`: all of its activations that the backward pass needs.
    pub(crate) fn layer_inner(
        &self,
        layer: usize,
        x: Lent,
        pass: &mut Pass<'_>,
        rows: Option<&[u32]>,
    ) -> Kept {
        let (device, ids) = (&self.device, &self.layout.layers[layer]);
        let n = pass.positions.len();
        let width = self.config.hidden_size;
        let (qkv_raw, qkv) = self.qkv_forward(layer, &x, pass);
        let (attention, lse) = self.attend(layer, &qkv, pass);

        let n_mid = rows.map_or(n, <[u32]>::len);
        let mut x_mid = self.take(n_mid, width);
        match rows {
            None => {
                self.linear(&mut x_mid, &attention, ids.o(), n, pass.rows(None));
                device.add_assign(&mut x_mid, &x);
            }
            Some(rows) => {
                let narrow = self.gather(&attention, rows, self.product(ids.o).n_in());
                self.linear(&mut x_mid, &narrow, ids.o(), n_mid, pass.rows(Some(rows)));
                let residual = self.gather(&x, rows, width);
                device.add_assign(&mut x_mid, &residual);
                self.workspace.give_all([narrow, residual]);
            }
        }

        let f = self.config.intermediate_size;
        let norm = self.norm(&x_mid, ids.post_norm, n_mid);
        let mut gate_up = self.take(n_mid, 2 * f);
        self.linear(&mut gate_up, &norm, ids.gate_up(), n_mid, pass.rows(rows));
        self.workspace.give(norm);
        Kept { x_in: x, qkv_raw, qkv, attention, lse, x_mid, gate_up }
    }

    /// What the layer gives to the next one, n rows.
    fn layer_out(&self, layer: usize, kept: &Kept, n: usize, rows: Rows<'_>) -> Lent {
        let (device, ids) = (&self.device, &self.layout.layers[layer]);
        let f = self.config.intermediate_size;
        let mut hidden = self.take(n, f);
        device.swiglu_forward(&mut hidden, &kept.gate_up, n, f);
        let mut x_out = self.take(n, self.config.hidden_size);
        self.linear(&mut x_out, &hidden, ids.down(), n, rows);
        device.add_assign(&mut x_out, &kept.x_mid);
        self.workspace.give(hidden);
        x_out
    }

    /// q, k and v after rope, and before QK-norm where there is one.
    fn qkv_forward(&self, layer: usize, x: &Buf, pass: &Pass<'_>) -> (Option<Lent>, Lent) {
        let (device, ids) = (&self.device, &self.layout.layers[layer]);
        let (n, shape) = (pass.positions.len(), self.attention_shape());
        let norm = self.norm(x, ids.input_norm, n);
        let mut qkv = self.take(n, shape.qkv_width());
        self.linear(&mut qkv, &norm, ids.qkv(), n, pass.rows(None));
        self.workspace.give(norm);
        let mut raw = None;
        if let Some((q_norm, k_norm)) = ids.q_norm.zip(ids.k_norm) {
            let (q_norm, k_norm) = (self.weight(q_norm), self.weight(k_norm));
            let mut normed = self.take(n, shape.qkv_width());
            device.qk_norm_forward(&mut normed, &qkv, q_norm, k_norm, self.config.rms_norm_eps, shape);
            raw = Some(std::mem::replace(&mut qkv, normed));
        }
        device.rope_forward(&mut qkv, shape, &pass.rope, pass.positions);
        (raw, qkv)
    }

    fn attend(&self, layer: usize, qkv: &Buf, pass: &mut Pass<'_>) -> (Lent, Lent) {
        let (device, shape, n) = (&self.device, self.attention_shape(), pass.positions.len());
        let mut out = self.take(n, shape.n_q_heads * shape.head_dim);
        let mut lse = self.take(n, shape.n_q_heads);
        match &mut pass.attend {
            Attend::Documents(segments) => {
                device.attention_forward(&mut out, &mut lse, qkv, shape, segments);
            }
            Attend::Prefill { segments, slots, caches } => {
                device.attention_forward(&mut out, &mut lse, qkv, shape, segments);
                for (&segment, &slot) in segments.iter().zip(*slots) {
                    device.kv_store(&mut caches[layer], qkv, slot as usize, segment);
                }
            }
            Attend::Decode { slots, caches } => {
                device.attention_decode(&mut out, qkv, &mut caches[layer], slots, pass.positions);
            }
        }
        (out, lse)
    }

    /// Final hidden states of `rows` \[rows, D\], after the norm: what the head takes.
    pub(crate) fn hidden_rows(&self, batch: &Batch, rows: &[u32]) -> Lent {
        let positions = batch.positions();
        let x = self.layers_forward(&batch.ids, &mut self.documents(batch, &positions), Some(rows), None);
        self.final_norm(x, rows.len())
    }

    /// Final hidden states \[n_tokens, D\], after the norm.
    pub fn hidden_states(&self, batch: &Batch) -> Buf {
        let positions = batch.positions();
        let x = self.layers_forward(&batch.ids, &mut self.documents(batch, &positions), None, None);
        self.final_norm(x, batch.n_tokens()).into_buf()
    }

    pub(crate) fn final_norm(&self, x: Lent, n: usize) -> Lent {
        let hidden = self.norm(&x, self.layout.final_norm, n);
        self.workspace.give(x);
        hidden
    }

    /// RMSNorm of n rows of x with weight `id`.
    pub(crate) fn norm(&self, x: &Buf, id: usize, n: usize) -> Lent {
        let width = self.config.hidden_size;
        let mut y = self.take(n, width);
        self.device.rmsnorm_forward(&mut y, x, self.weight(id), self.config.rms_norm_eps, n, width);
        y
    }

    pub(crate) fn gather(&self, x: &Buf, rows: &[u32], width: usize) -> Lent {
        let mut y = self.take(rows.len(), width);
        self.device.gather_rows(&mut y, x, rows, width);
        y
    }

    pub(crate) fn take(&self, rows: usize, width: usize) -> Lent {
        self.workspace.take(&self.device, rows, width)
    }
}

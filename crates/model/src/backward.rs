//! The layers, backward. Gradients lie as what is trained does, and are added to; weights beside an adapter
//! are frozen and have none.
//!
//! Shapes and names as in `forward`; dX stands for ∂loss/∂X.

use std::ops::Range;

use stillroom_kernels::{Buf, HeadLosses, HeadTargets, HeadTerms, RopeTable};

use crate::batch::{Batch, Targets};
use crate::decoder::Decoder;
use crate::forward::{Activations, Kept, Pass};
use crate::hidden::HiddenTargets;
use crate::label_loss::{LabelMemory, WeightedLabelLoss};
use crate::layout::Linear;
use crate::lora::{Rows, StepDropout};
use crate::workspace::Lent;

/// One backward pass: where gradients go, and what the layers share.
struct Backward<'a> {
    decoder: &'a Decoder,
    /// Of what training changes: the weights, or with an adapter its A and B.
    gradients: &'a mut [Buf],
    dropout: Option<StepDropout>,
    batch: &'a Batch,
    positions: &'a [u32],
    rope: &'a RopeTable,
}

/// Tokens whose activations training holds at once; a longer document has a group of its own. Documents
/// do not see each other, so a few at a time give what the whole batch gives; their activations stay near
/// the cache and take little memory.
pub const TOKENS_PER_GROUP: usize = 512;

/// What a step takes beside buffers; the memory serves every step.
#[derive(Default)]
pub(crate) struct StepMemory {
    group: Batch,
    positions: Vec<u32>,
    /// Supervised rows of the group.
    rows: Vec<u32>,
    pub(crate) activations: Activations,
    pub(crate) losses: HeadLosses,
    labels: LabelMemory,
}

/// What supervises a group of documents.
struct GroupTargets<'a> {
    head: HeadTargets<'a>,
    /// With the range of supervised rows of the batch that the group has.
    label_loss: Option<(WeightedLabelLoss<'a>, Range<usize>)>,
    hidden: Option<HiddenTargets<'a>>,
}

/// Forward and backward over one batch; `gradients[i]` += ∂loss/∂parameter i of what is trained. Each
/// supervised row's losses, unweighted, are then in `memory.losses`. `dropout` is that of the batch's first
/// row.
///
/// Documents go through in groups of [`TOKENS_PER_GROUP`], each forward and backward.
pub(crate) fn accumulate(
    decoder: &Decoder,
    gradients: &mut [Buf],
    memory: &mut StepMemory,
    batch: &Batch,
    targets: &Targets<'_>,
    terms: &HeadTerms<'_>,
    dropout: StepDropout,
) {
    batch.check();
    targets.check(batch.n_tokens(), decoder.config.vocab_size);
    memory.losses.clear();
    for (documents, supervised) in targets.groups(batch, TOKENS_PER_GROUP) {
        let start = memory.group.set_part(batch, documents) as u32;
        memory.positions.clear();
        memory.positions.extend(memory.group.each_position());
        memory.rows.clear();
        memory.rows.extend(targets.rows[supervised.clone()].iter().map(|r| r - start));
        let first_row = dropout.first_row + u64::from(start);
        let dropout = StepDropout { first_row, ..dropout };
        let label_loss = targets.label_loss.map(|loss| (loss, supervised.clone()));
        let head = targets.head_of(supervised.clone());
        let (of_batch, of_group) = ((batch, documents), (&memory.group, &memory.positions[..]));
        let Some(read) = targets.read(of_batch, of_group, &memory.rows, supervised.clone()) else {
            let of_group = GroupTargets { head, label_loss, hidden: None };
            accumulate_group(decoder, gradients, memory, of_group, terms, dropout);
            continue;
        };
        let of_group = GroupTargets { head: read.supervise(head), label_loss, hidden: read.hidden_targets() };
        accumulate_group(decoder, gradients, memory, of_group, terms, dropout);
        read.give_back();
    }
}

fn accumulate_group(
    decoder: &Decoder,
    gradients: &mut [Buf],
    memory: &mut StepMemory,
    targets: GroupTargets<'_>,
    terms: &HeadTerms<'_>,
    dropout: StepDropout,
) {
    let StepMemory { group, positions, rows, activations, losses, labels } = memory;
    let rows = &rows[..];
    let dropout = Some(dropout);
    let mut pass = Pass { dropout, ..decoder.documents(group, positions) };
    let x = decoder.layers_forward(&group.ids, &mut pass, Some(rows), Some(&mut *activations));

    let rope = pass.rope.clone();
    let mut backward = Backward { decoder, gradients, dropout, batch: group, positions, rope: &rope };
    let (n, width, n_layers) = (rows.len(), decoder.config.hidden_size, decoder.config.num_hidden_layers);
    let hidden = targets.hidden.as_ref().inspect(|_| HiddenTargets::open(losses, n));
    let last = hidden.and_then(|h| h.gradient(decoder, n_layers - 1, &x, None, n, terms.scale, losses));
    let mut dx = backward.head(x, n, (&targets, labels), terms, losses);
    if let Some(last) = last {
        decoder.device.add_assign(&mut dx, &last);
        decoder.workspace.give(last);
    }
    let mut narrowed = Some(rows).filter(|rows| rows.len() < group.n_tokens());
    for layer in (0..n_layers).rev() {
        let kept = activations.kept.pop().unwrap_or_else(|| {
            let x_in = activations.inputs.pop().unwrap_or_else(|| panic!("layer {layer} kept nothing"));
            decoder.layer_inner(layer, x_in, &mut pass, None)
        });
        let before = layer.checked_sub(1).and_then(|before| {
            hidden?.gradient(decoder, before, &kept.x_in, Some(rows), n, terms.scale, losses)
        });
        dx = backward.layer(layer, dx, kept, narrowed.take());
        if let Some(before) = before {
            decoder.device.scatter_add_rows(&mut dx, &before, rows, width);
            decoder.workspace.give(before);
        }
    }
    if let Some(dtable) = backward.gradient(decoder.layout.embedding) {
        decoder.device.embedding_backward(dtable, &dx, &group.ids, decoder.config.hidden_size);
    }
    decoder.workspace.give(dx);
}

impl Backward<'_> {
    /// Where the gradient of weight `id` goes, if it is trained.
    fn gradient(&mut self, id: usize) -> Option<&mut Buf> {
        if self.decoder.adapter.is_some() { None } else { Some(&mut self.gradients[id]) }
    }

    fn rows<'r>(&self, picked: Option<&'r [u32]>) -> Rows<'r> {
        Rows { dropout: self.dropout, picked }
    }

    /// Final norm and divergence head on the supervised rows; gives dx of those rows.
    fn head(
        &mut self,
        x: Lent,
        n: usize,
        (targets, labels): (&GroupTargets<'_>, &mut LabelMemory),
        terms: &HeadTerms<'_>,
        losses: &mut HeadLosses,
    ) -> Lent {
        let (d, layout) = (self.decoder, &self.decoder.layout);
        let width = d.config.hidden_size;
        let hidden = d.norm(&x, layout.final_norm, n);
        let mut dhidden = d.take(n, width);
        let id = layout.head_or_embedding();
        let head = (&*d.device, &*hidden, d.product(id));
        let targets = labels.weigh(targets.label_loss.clone(), head, &targets.head, losses);
        d.device.divergence_head(
            &mut dhidden,
            self.gradient(id),
            &hidden,
            d.weight(id),
            n,
            &targets,
            terms,
            losses,
        );
        let mut dx = hidden;
        d.device.fill_zero(&mut dx);
        self.norm(&mut dx, &dhidden, &x, layout.final_norm, n);
        d.workspace.give_all([x, dhidden]);
        dx
    }

    /// dx_out → dx_in. Where the last layer was narrowed to `rows`, dx_out has only those.
    fn layer(&mut self, layer: usize, dx: Lent, kept: Kept, rows: Option<&[u32]>) -> Lent {
        let d = self.decoder;
        let (n, width) = (self.positions.len(), d.config.hidden_size);
        let Kept { x_in, qkv_raw, qkv, attention, lse, x_mid, gate_up } = kept;
        let dx = self.feed_forward(layer, dx, x_mid, gate_up, rows);

        let shape = d.attention_shape();
        let ids = &d.layout.layers[layer];
        let (mut dx, dattention) = match rows {
            None => {
                let dattention = self.linear(ids.o(), &dx, &attention, n, self.rows(None));
                (dx, dattention)
            }
            Some(rows) => {
                let narrow = d.gather(&attention, rows, d.product(ids.o).n_in());
                let dnarrow = self.linear(ids.o(), &dx, &narrow, rows.len(), self.rows(Some(rows)));
                let mut dattention = d.take(n, d.product(ids.o).n_in());
                d.device.scatter_rows(&mut dattention, &dnarrow, rows, d.product(ids.o).n_in());
                let mut dx_in = d.take(n, width);
                d.device.scatter_rows(&mut dx_in, &dx, rows, width);
                d.workspace.give_all([narrow, dnarrow, dx]);
                (dx_in, dattention)
            }
        };

        let mut dqkv = d.take(n, shape.qkv_width());
        let segments = &self.batch.segments;
        d.device.attention_backward(&mut dqkv, &dattention, &attention, &lse, &qkv, shape, segments);
        d.workspace.give_all([dattention, attention, lse, qkv]);
        d.device.rope_backward(&mut dqkv, shape, self.rope, self.positions);
        if let Some(raw) = qkv_raw {
            self.qk_norm(layer, &mut dqkv, &raw);
            d.workspace.give(raw);
        }

        let norm = d.norm(&x_in, ids.input_norm, n);
        let dnorm = self.linear(ids.qkv(), &dqkv, &norm, n, self.rows(None));
        self.norm(&mut dx, &dnorm, &x_in, ids.input_norm, n);
        d.workspace.give_all([x_in, dqkv, norm, dnorm]);
        dx
    }

    /// dx_out → dx_mid over all rows, or those that the layer was narrowed to.
    fn feed_forward(
        &mut self,
        layer: usize,
        mut dx: Lent,
        x_mid: Lent,
        gate_up: Lent,
        rows: Option<&[u32]>,
    ) -> Lent {
        let (d, f) = (self.decoder, self.decoder.config.intermediate_size);
        let (n, rows) = (rows.map_or(self.positions.len(), <[u32]>::len), self.rows(rows));
        let ids = &d.layout.layers[layer];
        let mut hidden = d.take(n, f);
        d.device.swiglu_forward(&mut hidden, &gate_up, n, f);
        let dhidden = self.linear(ids.down(), &dx, &hidden, n, rows);
        let mut dgate_up = d.take(n, 2 * f);
        d.device.swiglu_backward(&mut dgate_up, &dhidden, &gate_up, n, f);
        d.workspace.give_all([hidden, dhidden, gate_up]);

        let norm = d.norm(&x_mid, ids.post_norm, n);
        let dnorm = self.linear(ids.gate_up(), &dgate_up, &norm, n, rows);
        self.norm(&mut dx, &dnorm, &x_mid, ids.post_norm, n);
        d.workspace.give_all([dgate_up, norm, dnorm, x_mid]);
        dx
    }

    /// y = x·wᵀ + b over n rows, and what an adapter adds: gradients of what is trained are added, dx is
    /// returned.
    fn linear(&mut self, map: Linear, dy: &Buf, x: &Buf, n: usize, rows: Rows<'_>) -> Lent {
        let d = self.decoder;
        let (n_in, n_out) = (d.product(map.weight).n_in(), d.product(map.weight).n_out());
        if let Some(dw) = self.gradient(map.weight) {
            d.device.linear_backward_weight(dw, dy, x, n, n_in, n_out);
        }
        if let Some(db) = map.bias.and_then(|bias| self.gradient(bias)) {
            d.device.bias_backward(db, dy, n, n_out);
        }
        let mut dx = d.take(n, n_in);
        d.device.linear_backward_input(&mut dx, dy, d.weight(map.weight), n, n_in, n_out);
        d.adapter_backward(self.gradients, &mut dx, dy, x, map.weight, n, rows);
        dx
    }

    /// dx += gradient through the norm `id` of n rows of x.
    fn norm(&mut self, dx: &mut Buf, dy: &Buf, x: &Buf, id: usize, n: usize) {
        let (d, width) = (self.decoder, self.decoder.config.hidden_size);
        let eps = d.config.rms_norm_eps;
        d.device.rmsnorm_backward(dx, self.gradient(id), dy, x, d.weight(id), eps, n, width);
    }

    fn qk_norm(&mut self, layer: usize, dqkv: &mut Buf, raw: &Buf) {
        let d = self.decoder;
        let ids = &d.layout.layers[layer];
        let Some((q, k)) = ids.q_norm.zip(ids.k_norm) else {
            return;
        };
        let (dq_norm, dk_norm) = if d.adapter.is_some() {
            (None, None)
        } else {
            // The k norm's index follows the q norm's.
            let (below, above) = self.gradients.split_at_mut(k);
            (Some(&mut below[q]), Some(&mut above[0]))
        };
        d.device.qk_norm_backward(
            dqkv,
            dq_norm,
            dk_norm,
            raw,
            d.weight(q),
            d.weight(k),
            d.config.rms_norm_eps,
            d.attention_shape(),
        );
    }
}

//! Hidden states of a student held against those of its teacher, layer by layer.
//!
//! For a student that was cut out of its teacher, or has its width: what a layer gives should point where the teacher's
//! layer points. Source: Sanh et al. 2019, "DistilBERT", section 3 (the cosine embedding loss).

use stillroom_kernels::HeadLosses;

use crate::batch::Batch;
use crate::decoder::Decoder;
use crate::forward::Activations;
use crate::workspace::Lent;

/// A layer of each whose outputs are compared, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerPair {
    pub teacher: usize,
    pub student: usize,
}

/// The mean over `pairs` of 1 − cos(student's output, teacher's output), in the residual stream behind the layers, at each
/// supervised row. The teacher is live and as wide as the student.
#[derive(Clone, Copy, Debug)]
pub struct HiddenAlignment<'t> {
    pub pairs: &'t [LayerPair],
    pub weight: f32,
}

/// What a live teacher's layers give at the supervised rows of a group, in the order of the pairs.
pub(crate) struct HiddenTargets<'a> {
    pub(crate) alignment: HiddenAlignment<'a>,
    pub(crate) states: &'a [Lent],
}

impl Decoder {
    /// x behind the last layer at `rows`, and what `layers` give at `rows`, in their order.
    pub(crate) fn tapped(
        &self,
        group: &Batch,
        positions: &[u32],
        rows: &[u32],
        layers: impl Iterator<Item = usize>,
    ) -> (Lent, Vec<Lent>) {
        let mut activations = Activations { inputs_only: true, ..Activations::default() };
        let mut pass = self.documents(group, positions);
        let x = self.layers_forward(&group.ids, &mut pass, Some(rows), Some(&mut activations));
        let (width, last) = (self.config.hidden_size, self.config.num_hidden_layers - 1);
        let in_order: Vec<u32> = (0..rows.len() as u32).collect();
        let tap = |layer: usize| match layer {
            layer if layer == last => self.gather(&x, &in_order, width),
            layer if layer + 1 == last => self.gather(&activations.kept[0].x_in, rows, width),
            layer => self.gather(&activations.inputs[layer + 1], rows, width),
        };
        let states = layers.map(tap).collect();
        self.workspace.give_all(activations.inputs);
        for kept in activations.kept {
            let (x_in, rest) = kept.into_bufs();
            self.workspace.give_all(rest.chain([x_in]));
        }
        (x, states)
    }

    /// Appends the losses of `targets` at `rows`, and gives the final hidden states there, after the norm.
    pub(crate) fn compare_hidden(
        &self,
        group: &Batch,
        positions: &[u32],
        rows: &[u32],
        targets: &HiddenTargets<'_>,
        losses: &mut HeadLosses,
    ) -> Lent {
        let pairs = targets.alignment.pairs;
        let (x, states) = self.tapped(group, positions, rows, pairs.iter().map(|pair| pair.student));
        HiddenTargets::open(losses, rows.len());
        // In the order of training, which comes from the last layer down.
        for layer in (0..self.config.num_hidden_layers).rev() {
            let Some(at) = pairs.iter().position(|pair| pair.student == layer) else { continue };
            let unused = targets.gradient(self, layer, &states[at], None, rows.len(), 0.0, losses);
            self.workspace.give_all(unused);
        }
        self.workspace.give_all(states);
        self.final_norm(x, rows.len())
    }
}

impl HiddenTargets<'_> {
    /// Losses of a group's `n` rows get their places.
    pub(crate) fn open(losses: &mut HeadLosses, n: usize) {
        let before = losses.hidden.len();
        losses.hidden.resize(before + n, 0.0);
    }

    /// The gradient, times `scale`, by the output `x` of the student's `layer` at its n supervised rows: `rows` of `x`, or
    /// all that there are. `None` where no pair has this layer. Losses are added to those of the last n rows.
    pub(crate) fn gradient(
        &self,
        student: &Decoder,
        layer: usize,
        x: &Lent,
        rows: Option<&[u32]>,
        n: usize,
        scale: f32,
        losses: &mut HeadLosses,
    ) -> Option<Lent> {
        let HiddenAlignment { pairs, weight } = self.alignment;
        let mut of_layer = pairs.iter().zip(self.states).filter(|(pair, _)| pair.student == layer).peekable();
        of_layer.peek()?;
        let width = student.config.hidden_size;
        let mut dx = student.take(n, width);
        student.device.fill_zero(&mut dx);
        let picked = rows.map(|rows| student.gather(x, rows, width));
        let x = picked.as_ref().unwrap_or(x);
        let (share, first) = (1.0 / pairs.len() as f32, losses.hidden.len() - n);
        for (_, state) in of_layer {
            let losses = &mut losses.hidden[first..];
            student.device.cosine_distance(&mut dx, (x, state), width, losses, share, weight * share * scale);
        }
        student.workspace.give_all(picked);
        Some(dx)
    }
}

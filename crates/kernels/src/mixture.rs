//! Several teachers as one: p = Σ wᵢ·softmax(tᵢ), the weights summing to 1.
//!
//! What a loss is given in place of one teacher's logits is a row of log p. Softened, that is
//! softmax(log p / τ): the temperature is the mixture's, and not its teachers'.

use crate::cpu::multiversion;
use crate::device::Weight;
use crate::head::DenseTargets;
use crate::math::{exp, ln};
use crate::pool::Pool;
use crate::rows::{for_row_pieces, log_sum_exp};

/// Most teachers in a mixture.
pub const MIXED_MAX: usize = 8;

/// The teachers beside a first one, and what each has of the mixture.
#[derive(Clone, Copy)]
pub struct Mixture<'a> {
    /// log w of the first teacher.
    log_share: f32,
    /// In the order in which they are added; with log w of each.
    others: [Option<(DenseTargets<'a>, f32)>; MIXED_MAX - 1],
}

impl<'a> Mixture<'a> {
    /// `weight` is the first teacher's, then come the others with theirs; what they sum to is their unit.
    ///
    /// # Panics
    /// Where there is no other teacher or more than [`MIXED_MAX`] in all, or a weight is not positive and finite.
    pub fn new<I>(weight: f64, others: I) -> Mixture<'a>
    where
        I: IntoIterator<Item = (DenseTargets<'a>, f64)>,
        I::IntoIter: Clone,
    {
        let others = others.into_iter();
        let total = others.clone().fold(weight, |sum, (_, weight)| sum + weight);
        let share = |weight: f64| {
            assert!(weight > 0.0 && total.is_finite(), "a teacher's weight is positive and finite");
            (weight / total).ln() as f32
        };
        let mut mixture = Mixture { log_share: share(weight), others: [None; MIXED_MAX - 1] };
        let mut n = 0;
        for (dense, weight) in others {
            assert!(n < mixture.others.len(), "at most {MIXED_MAX} teachers are mixed");
            mixture.others[n] = Some((dense, share(weight)));
            n += 1;
        }
        assert!(n > 0, "a mixture has two teachers at least");
        mixture
    }

    fn heads(&self) -> impl Iterator<Item = Weight<'a>> + '_ {
        self.others.iter().flatten().map(|(dense, _)| dense.head)
    }

    /// The smallest and the largest vocabulary of the first teacher's and the others'.
    pub(crate) fn vocabularies(&self, first: usize) -> (usize, usize) {
        self.heads().map(Weight::n_out).fold((first, first), |(least, most), n| (least.min(n), most.max(n)))
    }

    /// Logits of a row that one of the others needs room for at most.
    pub(crate) fn n_room(&self) -> usize {
        self.vocabularies(0).1
    }

    /// Turns rows `first..first + n` of the first teacher's logits, `width` each, into log p of their first `n_ids`;
    /// what stands behind those is unspecified. `room` holds one of the others' logits at a time.
    pub(crate) fn mix(
        &self,
        pool: &Pool,
        (t, width): (&mut [f32], usize),
        room: &mut [f32],
        first: usize,
        n_ids: usize,
    ) {
        for_row_pieces(pool, t, width, &|_, piece| {
            for t in piece.chunks_exact_mut(width) {
                let t = &mut t[..n_ids];
                let shift = self.log_share - log_sum_exp(t, 1.0);
                shift_row(t, shift);
            }
        });
        let n_rows = t.len() / width;
        for (DenseTargets { hidden, first_row, head }, log_share) in self.others.iter().flatten() {
            let (n_in, n_out) = (head.n_in(), head.n_out());
            let from = (first_row + first) * n_in;
            let u = &mut room[..n_rows * n_out];
            head.multiply(pool, u, &hidden.data[from..from + n_rows * n_in], n_rows);
            let u = &*u;
            for_row_pieces(pool, t, width, &|row, piece| {
                for (i, t) in piece.chunks_exact_mut(width).enumerate() {
                    let u = &u[(row + i) * n_out..][..n_ids];
                    add_row(&mut t[..n_ids], u, log_share - log_sum_exp(u, 1.0));
                }
            });
        }
    }
}

multiversion! {
    fn shift_row(t: &mut [f32], shift: f32) {
        for t in t {
            *t += shift;
        }
    }
}

multiversion! {
    /// t ← log(eᵗ + e^(u + shift)); −∞ where both are.
    fn add_row(t: &mut [f32], u: &[f32], shift: f32) {
        for (t, u) in t.iter_mut().zip(u) {
            let u = *u + shift;
            let (high, low) = if u > *t { (u, *t) } else { (*t, u) };
            let sum = high + ln(1.0 + exp(low - high));
            *t = if high == f32::NEG_INFINITY { high } else { sum };
        }
    }
}

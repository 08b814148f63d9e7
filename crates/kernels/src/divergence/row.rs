//! Losses of one row and their gradient.

use super::outcome::{BLOCK, Kernel, Softmaxes};
use super::{Divergence, HeadTerms, REST_MIN, TERMS_MAX, Term};
use crate::head::TailMode;
use crate::math::exp;
use crate::rows::{log_sum_exp, softmax_mixture};
use crate::uld::{self, ForeignRow};

/// What a teacher says of one row.
#[derive(Clone, Copy, Debug)]
pub enum TeacherRow<'a> {
    /// Logits of every id, or log-probabilities at temperature 1.
    Logits(&'a [f32]),
    Sparse(SparseRow<'a>),
    /// Logits of every id of another vocabulary.
    Foreign(ForeignRow<'a>),
}

/// The stored part of a teacher's distribution.
#[derive(Clone, Copy, Debug)]
pub struct SparseRow<'a> {
    /// Each once.
    pub ids: &'a [u32],
    /// Of the distribution at the loss temperature; shares of N draws where the tail is [`TailMode::None`].
    pub probs: &'a [f32],
    /// Entropy in nats of the whole distribution, used with [`TailMode::None`] only.
    pub entropy: f32,
    pub tail: TailMode,
}

impl TeacherRow<'_> {
    /// Numbers of room that [`row_losses`] needs.
    pub fn n_kept(&self) -> usize {
        match self {
            TeacherRow::Logits(_) => 0,
            TeacherRow::Sparse(row) => row.ids.len(),
            TeacherRow::Foreign(row) => row.n_room(),
        }
    }

    /// Σ of the stored probabilities, in f64: 1 less what the tail stands for.
    pub fn captured_mass(&self) -> f32 {
        match self {
            TeacherRow::Logits(_) | TeacherRow::Foreign(_) => 1.0,
            TeacherRow::Sparse(row) => mass(row) as f32,
        }
    }
}

/// Losses of one row in nats, unweighted: −log q(label) is returned (0 without a label), each divergence of
/// `terms`, τ² included, goes to its place in `losses`. `z` holds the student's logits on entry and the
/// gradient of the weighted sum on exit. `kept` is room for [`TeacherRow::n_kept`] numbers.
///
/// Sums over the vocabulary are f64 of f32 terms. With no teacher the divergences are not touched.
pub fn row_losses(
    z: &mut [f32],
    kept: &mut [f32],
    label: Option<u32>,
    teacher: Option<&TeacherRow<'_>>,
    terms: &HeadTerms<'_>,
    losses: &mut [f32],
) -> f32 {
    let divergences = if teacher.is_some() { terms.divergences } else { &[] };
    let at_one = label.is_some() || divergences.iter().any(|t| t.temperature == 1.0);
    let base = if at_one { log_sum_exp(z, 1.0) } else { 0.0 };
    let mut plan = RowPlan::new(base);
    let hard = label.map_or(0.0, |y| base - z[y as usize]);
    let hard_weight = if label.is_some() { terms.hard_label * terms.scale } else { 0.0 };
    plan.at_one = hard_weight;
    let mut live = hard_weight != 0.0;
    if let Some(TeacherRow::Foreign(_)) = teacher {
        kept[..z.len()].fill(0.0);
    }
    for (i, term) in divergences.iter().enumerate() {
        let weight = term.weight * terms.scale * term.temperature;
        live |= weight != 0.0;
        losses[i] = match teacher {
            Some(TeacherRow::Logits(t)) => plan.add_dense(z, t, term, weight),
            Some(TeacherRow::Sparse(row)) => plan.add_sparse(z, kept, row, term, weight),
            Some(TeacherRow::Foreign(row)) => plan.add_foreign(z, kept, row, term, weight),
            None => 0.0,
        };
    }
    if !live {
        z.fill(0.0);
        return hard;
    }
    plan.gradient(z, kept, label.map(|y| (y, hard_weight)), teacher);
    hard
}

/// The gradient of a row before it is written: coefficients of q at temperature 1 and at one other, a
/// constant, divergences that need a pass of their own, and what stored ids get beside that.
struct RowPlan {
    /// log Σ exp z, where it is used.
    lse: f32,
    at_one: f32,
    hot: Softened,
    at_hot: f32,
    constant: f32,
    passes: [Option<Pass>; TERMS_MAX],
    stored: [Option<Stored>; TERMS_MAX],
}

/// log Σ exp(z/τ) of the temperature that was asked for last.
#[derive(Clone, Copy)]
struct Softened {
    temperature: f32,
    lse: f32,
}

/// weight·(h − total·q) of every id.
#[derive(Clone, Copy)]
struct Pass {
    kernel: Kernel,
    softmaxes: Softmaxes,
    weight: f32,
    total: f32,
}

/// What stored ids get beside the coefficients and passes.
#[derive(Clone, Copy)]
struct Stored {
    temperature: f32,
    lse: f32,
    weight: f32,
    of: StoredGradient,
}

#[derive(Clone, Copy)]
enum StoredGradient {
    /// weight·(excess·q + spread − share·p).
    ForwardKl { excess: f32, spread: f32, share: f32 },
    /// weight·(h(p, q) − outside·q).
    Outcome { kernel: Kernel, outside: f32 },
    /// weight·(h(p, q) − h(spread, q)), log of spread.
    OverUniform { kernel: Kernel, log_spread: f32 },
}

impl RowPlan {
    fn new(lse: f32) -> RowPlan {
        RowPlan {
            lse,
            at_one: 0.0,
            hot: Softened { temperature: 1.0, lse },
            at_hot: 0.0,
            // The zero that changes nothing when a number is added to it.
            constant: -0.0,
            passes: [None; TERMS_MAX],
            stored: [None; TERMS_MAX],
        }
    }

    /// log Σ exp(z/τ), computed once for a run of terms of one temperature.
    fn student_lse(&mut self, z: &[f32], temperature: f32) -> f32 {
        if temperature == 1.0 {
            return self.lse;
        }
        if self.hot.temperature != temperature {
            self.hot = Softened { temperature, lse: log_sum_exp(z, 1.0 / temperature) };
        }
        self.hot.lse
    }

    /// Adds coefficient·q, q at the term's temperature.
    fn add_coefficient(&mut self, temperature: f32, coefficient: f32) {
        if temperature == 1.0 { self.at_one += coefficient } else { self.at_hot += coefficient }
    }

    fn add_pass(&mut self, pass: Pass) {
        if pass.weight == 0.0 {
            return;
        }
        if let Some(free) = self.passes.iter_mut().find(|p| p.is_none()) {
            *free = Some(pass);
        }
    }

    fn add_stored(&mut self, term: &Term, lse: f32, weight: f32, of: StoredGradient) {
        if let Some(free) = self.stored.iter_mut().find(|s| s.is_none()) {
            *free = Some(Stored { temperature: term.temperature, lse, weight, of });
        }
    }

    fn add_dense(&mut self, z: &[f32], t: &[f32], term: &Term, weight: f32) -> f32 {
        let (kernel, scale) = (Kernel::of(term.divergence), 1.0 / term.temperature);
        let student = self.student_lse(z, term.temperature);
        let softmaxes = Softmaxes { scale, student, teacher: log_sum_exp(t, scale) };
        let (loss, total) = kernel.sums(z, Some(t), softmaxes);
        self.add_pass(Pass { kernel, softmaxes, weight, total: total as f32 });
        with_temperature(loss, term)
    }

    /// Its gradient is added to the first numbers of `kept`: coefficients are for terms of one temperature.
    fn add_foreign(
        &mut self,
        z: &[f32],
        kept: &mut [f32],
        row: &ForeignRow<'_>,
        term: &Term,
        weight: f32,
    ) -> f32 {
        let of_matched = match term.divergence {
            Divergence::Gold { teacher_weight } => {
                Divergence::from_trl_beta(teacher_weight).ok().map(Kernel::of)
            }
            _ => None,
        };
        let (tau, scale) = (term.temperature, 1.0 / term.temperature);
        let student = self.student_lse(z, tau);
        let softmaxes = Softmaxes { scale, student, teacher: log_sum_exp(row.logits, scale) };
        let (h, room) = kept.split_at_mut(z.len());
        let sums = uld::sums(z, row, of_matched, softmaxes, weight, h, room);
        let pull = weight * sums.total as f32;
        h.iter_mut().zip(z).for_each(|(h, z)| *h -= pull * exp(z * scale - student));
        with_temperature(sums.loss, term)
    }

    fn add_sparse(
        &mut self,
        z: &mut [f32],
        kept: &mut [f32],
        row: &SparseRow<'_>,
        term: &Term,
        weight: f32,
    ) -> f32 {
        let lse = self.student_lse(z, term.temperature);
        kept.iter_mut().zip(row.ids).for_each(|(k, &id)| *k = z[id as usize]);
        let kept = &kept[..row.ids.len()];
        let loss = match term.divergence.canonical() {
            Divergence::ForwardKl => self.add_sparse_forward_kl(z, kept, row, term, lse, weight),
            divergence => self.add_sparse_outcomes(z, kept, row, (divergence, term), lse, weight),
        };
        with_temperature(loss, term)
    }

    /// Everything but `forward_kl`, whose gradient is linear in q.
    fn add_sparse_outcomes(
        &mut self,
        z: &mut [f32],
        kept: &[f32],
        row: &SparseRow<'_>,
        (divergence, term): (Divergence, &Term),
        lse: f32,
        weight: f32,
    ) -> f64 {
        let refused = matches!(row.tail, TailMode::None | TailMode::Renormalise);
        assert!(!refused, "these were refused by `validate`");
        let kernel = Kernel::of(divergence);
        let tau = term.temperature;
        let rest = rest(z.len(), row).map(|rest| rest.max(REST_MIN));
        let log_spread = match (row.tail, rest) {
            (TailMode::Uniform, Some(rest)) => Some((rest / (z.len() - row.ids.len()) as f64).ln() as f32),
            _ => None,
        };
        let (mut loss, mut total) = (0.0f64, 0.0f64);
        for (&p, &v) in row.probs.iter().zip(kept) {
            let log_q = v / tau - lse;
            let o = kernel.outcome(p.ln(), log_q);
            let instead = log_spread.map_or_else(Default::default, |spread| kernel.outcome(spread, log_q));
            loss += f64::from(o.loss) - f64::from(instead.loss);
            total += f64::from(o.h) - f64::from(instead.h);
        }
        if let Some(log_spread) = log_spread {
            let softmaxes = Softmaxes { scale: 1.0 / tau, student: lse, teacher: -log_spread };
            let (more, h) = kernel.sums(z, None, softmaxes);
            (loss, total) = (loss + more, total + h);
            self.add_pass(Pass { kernel, softmaxes, weight, total: total as f32 });
            self.add_stored(term, lse, weight, StoredGradient::OverUniform { kernel, log_spread });
            return loss;
        }
        // g of the bucket, by which every id outside the stored ones counts.
        let mut outside = 0.0f64;
        if let (TailMode::Bucket, Some(rest)) = (row.tail, rest) {
            let q = q_outside(z, kept, row.ids, lse, tau);
            let o = kernel.outcome(rest.ln() as f32, q.ln() as f32);
            loss += f64::from(o.loss);
            total += f64::from(o.h);
            outside = f64::from(o.h) / q;
        }
        self.add_coefficient(tau, weight * (outside - total) as f32);
        self.add_stored(term, lse, weight, StoredGradient::Outcome { kernel, outside: outside as f32 });
        loss
    }

    /// L = Σ pᵢ log pᵢ − Σ pᵢ log qᵢ and, with M the mass that the tail counts, ∂L/∂(z/τ) = M·q − p;
    /// for a bucket, ids outside the stored set get q − p_tail·q/q_tail. Renormalised, p is p/Σp, and M is 1.
    fn add_sparse_forward_kl(
        &mut self,
        z: &mut [f32],
        kept: &[f32],
        row: &SparseRow<'_>,
        term: &Term,
        lse: f32,
        weight: f32,
    ) -> f64 {
        let tau = term.temperature;
        let mass = mass(row);
        let share = if row.tail == TailMode::Renormalise && mass > 0.0 { 1.0 / mass } else { 1.0 };
        let present = row.probs.iter().zip(kept).filter(|(p, _)| **p > 0.0);
        let cross: f64 = present.map(|(&p, &v)| -f64::from(p) * f64::from(v / tau - lse)).sum();
        let negentropy = || row.probs.iter().map(|&p| xlogx(f64::from(p))).sum::<f64>();
        // Mass that q is multiplied with, the same outside the stored ids, and p of each id there.
        let (loss, counted, outside, spread) = match (row.tail, rest(z.len(), row)) {
            (TailMode::None, _) => (cross - f64::from(row.entropy), mass, mass, 0.0),
            (TailMode::Drop, _) | (TailMode::Uniform, None | Some(0.0)) => {
                (cross + negentropy(), mass, mass, 0.0)
            }
            // Σ p/M·log(p/M) = (Σ p·log p)/M − log M; nothing at all where nothing has a probability.
            (TailMode::Renormalise, _) if mass == 0.0 => (0.0, 0.0, 0.0, 0.0),
            (TailMode::Renormalise, _) => ((cross + negentropy()) / mass - mass.ln(), 1.0, 1.0, 0.0),
            (TailMode::Bucket, rest) => {
                let rest = rest.unwrap_or(0.0);
                let q_tail = q_outside(z, kept, row.ids, lse, tau);
                let total = mass + rest;
                let outside = total - if rest > 0.0 { rest / q_tail } else { 0.0 };
                let tail = if rest > 0.0 { rest * q_tail.ln() } else { 0.0 };
                (cross + negentropy() + xlogx(rest) - tail, total, outside, 0.0)
            }
            (TailMode::Uniform, Some(rest)) => {
                let others = (z.len() - row.ids.len()) as f64;
                let each = rest / others;
                let all: f64 = z.iter().map(|&v| f64::from(v / tau)).sum();
                let inside: f64 = kept.iter().map(|&v| f64::from(v / tau)).sum();
                let log_q_others = all - inside - others * f64::from(lse);
                let loss = cross + negentropy() + rest * each.ln() - each * log_q_others;
                (loss, mass + rest, mass + rest, each)
            }
        };
        let (counted, outside, spread) = (counted as f32, outside as f32, spread as f32);
        self.add_coefficient(tau, weight * outside);
        self.constant += -weight * spread;
        let gradient = StoredGradient::ForwardKl { excess: counted - outside, spread, share: share as f32 };
        self.add_stored(term, lse, weight, gradient);
        loss
    }

    /// z ← gradient.
    fn gradient(
        &self,
        z: &mut [f32],
        kept: &[f32],
        label: Option<(u32, f32)>,
        teacher: Option<&TeacherRow<'_>>,
    ) {
        let mixture = |z: &mut [f32]| {
            if self.at_one == 0.0 && self.at_hot == 0.0 {
                // There may be no log Σ exp to go with it.
                return z.fill(self.constant);
            }
            let Softened { temperature, lse } = self.hot;
            softmax_mixture(z, self.at_one, self.lse, self.at_hot, lse, 1.0 / temperature, self.constant);
        };
        if self.passes[0].is_none() {
            mixture(z);
        } else {
            let t = match teacher {
                Some(TeacherRow::Logits(t)) => Some(*t),
                _ => None,
            };
            for (i, z) in z.chunks_mut(BLOCK).enumerate() {
                let mut sum = [0.0; BLOCK];
                let sum = &mut sum[..z.len()];
                sum.copy_from_slice(z);
                mixture(sum);
                let t = t.map(|t| &t[i * BLOCK..][..z.len()]);
                for pass in self.passes.iter().flatten() {
                    pass.kernel.add_gradient(sum, z, t, pass.softmaxes, pass.weight, pass.total);
                }
                z.copy_from_slice(sum);
            }
        }
        if let Some((label, weight)) = label {
            z[label as usize] -= weight;
        }
        if let Some(TeacherRow::Foreign(_)) = teacher {
            z.iter_mut().zip(kept).for_each(|(z, h)| *z += h);
        }
        if let Some(TeacherRow::Sparse(row)) = teacher {
            self.stored.iter().flatten().for_each(|stored| stored.add(z, kept, row));
        }
    }
}

impl Stored {
    fn add(&self, z: &mut [f32], kept: &[f32], row: &SparseRow<'_>) {
        for ((&id, &p), &v) in row.ids.iter().zip(row.probs).zip(kept) {
            let log_q = v / self.temperature - self.lse;
            let extra = match self.of {
                StoredGradient::ForwardKl { excess, spread, share } => {
                    excess * log_q.exp() + spread - share * p
                }
                StoredGradient::Outcome { ref kernel, outside } => {
                    kernel.outcome(p.ln(), log_q).h - outside * log_q.exp()
                }
                StoredGradient::OverUniform { ref kernel, log_spread } => {
                    kernel.outcome(p.ln(), log_q).h - kernel.outcome(log_spread, log_q).h
                }
            };
            z[id as usize] += self.weight * extra;
        }
    }
}

fn with_temperature(loss: f64, term: &Term) -> f32 {
    (loss * f64::from(term.temperature * term.temperature)) as f32
}

fn mass(row: &SparseRow<'_>) -> f64 {
    row.probs.iter().map(|&p| f64::from(p)).sum()
}

/// Teacher mass outside the stored ids; none where every id is stored: what is missing there is rounding.
fn rest(vocab: usize, row: &SparseRow<'_>) -> Option<f64> {
    (row.ids.len() < vocab).then(|| (1.0 - mass(row)).max(0.0))
}

fn xlogx(p: f64) -> f64 {
    if p > 0.0 { p * p.ln() } else { 0.0 }
}

/// The student's mass outside `ids`, summed there and not by subtraction from one, which would cancel
/// where it is small. The floor keeps quotients by it finite in f32.
fn q_outside(z: &mut [f32], kept: &[f32], ids: &[u32], lse: f32, tau: f32) -> f64 {
    let outside = if ids.len() == z.len() {
        f32::NEG_INFINITY
    } else {
        ids.iter().for_each(|&id| z[id as usize] = f32::NEG_INFINITY);
        let outside = log_sum_exp(z, 1.0 / tau);
        ids.iter().zip(kept).for_each(|(&id, &v)| z[id as usize] = v);
        outside
    };
    f64::from(outside - lse).exp().max(1e-30)
}

//! The divergence head: linear + softmax + divergence in chunks, forward and backward in one pass.

use crate::pool::Shards;
use crate::rows::{log_sum_exp, softmax_mixture};
use crate::scratch::with_scratch;

/// What becomes of teacher mass outside the stored ids; see [`SparseTargets`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TailMode {
    /// The weights are draws from the whole distribution (random sampling): no tail.
    None,
    /// Ignored without renormalisation.
    Drop,
    /// One bucket on both sides.
    Bucket,
    /// Spread evenly over the other V − K ids.
    Uniform,
}

/// Teacher targets of all rows, in compressed rows: row r holds `offsets[r]..offsets[r+1]`.
#[derive(Clone, Copy, Debug)]
pub struct SparseTargets<'a> {
    pub offsets: &'a [u32],
    /// Unique within a row.
    pub ids: &'a [u32],
    pub probs: &'a [f32],
    /// Entropy in nats of the teacher's full distribution (at the loss temperature), per row;
    /// used where `tail` is [`TailMode::None`], so that what is reported is KL and not cross-entropy.
    pub teacher_entropy: &'a [f32],
    pub tail: TailMode,
}

/// Supervision of each row.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadTargets<'a> {
    /// The text's own next token, per row.
    pub hard_labels: Option<&'a [u32]>,
    pub sparse: Option<SparseTargets<'a>>,
}

/// Weights of the terms in the loss that is differentiated.
#[derive(Clone, Copy, Debug)]
pub struct HeadWeights {
    /// Weight of −log q(label), always at temperature 1.
    pub hard_label: f32,
    /// Weight of τ²·KL(p‖q^τ) on the sparse targets.
    pub forward_kl: f32,
    /// τ: the student's logits are divided by it in the divergence; targets come softened.
    pub loss_temperature: f32,
    /// Multiplies every row's gradient (1 / tokens in the optimiser step).
    pub scale: f32,
}

/// Losses of each row in nats, unweighted; empty where the target is absent.
#[derive(Clone, Debug, Default)]
pub struct HeadLosses {
    pub hard_label: Vec<f32>,
    pub forward_kl: Vec<f32>,
}

impl HeadLosses {
    /// Forgets all rows and keeps their memory.
    pub fn clear(&mut self) {
        self.hard_label.clear();
        self.forward_kl.clear();
    }

    /// Places for the losses of `n_rows` more rows.
    pub(crate) fn append(&mut self, n_rows: usize, targets: &HeadTargets<'_>) -> LossShards<'_> {
        fn places(losses: &mut Vec<f32>, n_rows: usize) -> Shards<'_, f32> {
            let start = losses.len();
            losses.resize(start + n_rows, 0.0);
            Shards::new(&mut losses[start..])
        }
        LossShards {
            hard: targets.hard_labels.map(|_| places(&mut self.hard_label, n_rows)),
            kl: targets.sparse.map(|_| places(&mut self.forward_kl, n_rows)),
        }
    }
}

/// [`HeadLosses`] that several threads fill, each its own rows.
pub(crate) struct LossShards<'a> {
    hard: Option<Shards<'a, f32>>,
    kl: Option<Shards<'a, f32>>,
}

impl LossShards<'_> {
    /// Stores the losses of row `r`, which is visited once.
    pub(crate) fn put(&self, r: usize, (hard, kl): (f32, f32)) {
        for (losses, loss) in [(&self.hard, hard), (&self.kl, kl)] {
            if let Some(losses) = losses {
                // SAFETY: one number per row, each row visited once.
                unsafe { losses.piece(r, 1)[0] = loss };
            }
        }
    }
}

/// Loss terms of one row and, where `grad` is wanted, ∂(weighted loss)/∂logits in place.
///
/// `z` holds the logits of the row on entry and the gradient on exit.
/// Hard label: L = lse(z) − z_y, ∂L/∂z = q − 1\[y\]. Forward KL at temperature τ, with
/// q = softmax(z/τ): L = τ²(Σ pᵢ log pᵢ − Σ pᵢ log qᵢ), ∂L/∂z = τ(M·q − p) with M the mass
/// that `tail` counts; for `Bucket` ids outside the stored set get τ(q − p_tail·q/q_tail).
pub(crate) fn row_losses(z: &mut [f32], targets: &HeadTargets<'_>, r: usize, w: &HeadWeights) -> (f32, f32) {
    let label = targets.hard_labels.map(|labels| labels[r]);
    let sparse = targets.sparse.as_ref().map(|sparse| sparse.row(r));
    let tau = w.loss_temperature;
    let same = tau == 1.0;
    let base = if label.is_some() || same { Some(log_sum_exp(z, 1.0)) } else { None };
    let hot = match (&sparse, same) {
        (None, _) => None,
        (Some(_), true) => base,
        (Some(_), false) => Some(log_sum_exp(z, 1.0 / tau)),
    };
    let hard = label.map_or(0.0, |y| base.unwrap_or(0.0) - z[y as usize]);
    let (kl, plan) = match (&sparse, hot) {
        (Some(row), Some(lse)) => sparse_forward_kl(z, row, lse, tau),
        _ => (0.0, SparsePlan::default()),
    };
    gradient(z, label.zip(base), sparse.as_ref().zip(hot), &plan, w);
    (hard, kl)
}

/// One row of [`SparseTargets`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct SparseRowRef<'a> {
    pub(crate) ids: &'a [u32],
    pub(crate) probs: &'a [f32],
    pub(crate) entropy: f32,
    pub(crate) tail: TailMode,
}

impl<'a> SparseTargets<'a> {
    /// Most ids of a row.
    pub(crate) fn n_ids_max(&self) -> usize {
        self.offsets.windows(2).map(|at| (at[1] - at[0]) as usize).max().unwrap_or(0)
    }

    pub(crate) fn row(&self, r: usize) -> SparseRowRef<'a> {
        let at = self.offsets[r] as usize..self.offsets[r + 1] as usize;
        SparseRowRef {
            ids: &self.ids[at.clone()],
            probs: &self.probs[at],
            entropy: self.teacher_entropy.get(r).copied().unwrap_or(0.0),
            tail: self.tail,
        }
    }
}

/// Coefficients of the KL gradient: inside the stored set `mass·q − p`, outside `outside·q − spread`.
#[derive(Default)]
struct SparsePlan {
    mass: f32,
    outside: f32,
    spread: f32,
}

fn sparse_forward_kl(z: &mut [f32], row: &SparseRowRef<'_>, lse: f32, tau: f32) -> (f32, SparsePlan) {
    let logit = |z: &[f32], id: u32| z[id as usize] / tau;
    let mass: f64 = row.probs.iter().map(|&p| f64::from(p)).sum();
    let kept = row.probs.iter().zip(row.ids).filter(|(p, _)| **p > 0.0);
    let cross: f64 = kept.map(|(&p, &id)| -f64::from(p) * f64::from(logit(z, id) - lse)).sum();
    let others = z.len() - row.ids.len();
    // With every id stored, what is missing from one is rounding.
    let rest = if others == 0 { 0.0 } else { (1.0 - mass).max(0.0) };
    let xlogx = |p: f64| if p > 0.0 { p * p.ln() } else { 0.0 };
    let negentropy: f64 = row.probs.iter().map(|&p| xlogx(f64::from(p))).sum();
    let (kl, plan) = match row.tail {
        TailMode::None => {
            let plan = SparsePlan { mass: mass as f32, outside: mass as f32, spread: 0.0 };
            (cross - f64::from(row.entropy), plan)
        }
        TailMode::Drop => {
            let plan = SparsePlan { mass: mass as f32, outside: mass as f32, spread: 0.0 };
            (cross + negentropy, plan)
        }
        TailMode::Bucket => {
            // The floor keeps rest / q_tail finite in f32; there the loss stops growing.
            let q_tail = log_q_outside(z, row.ids, lse, tau).exp().max(1e-30);
            let total = mass + rest;
            let outside = total - if rest > 0.0 { rest / q_tail } else { 0.0 };
            let plan = SparsePlan { mass: total as f32, outside: outside as f32, spread: 0.0 };
            (cross + negentropy + xlogx(rest) - if rest > 0.0 { rest * q_tail.ln() } else { 0.0 }, plan)
        }
        TailMode::Uniform if rest == 0.0 => {
            let plan = SparsePlan { mass: mass as f32, outside: mass as f32, spread: 0.0 };
            (cross + negentropy, plan)
        }
        TailMode::Uniform => {
            let each = rest / others as f64;
            let all: f64 = z.iter().map(|&v| f64::from(v / tau)).sum();
            let inside: f64 = row.ids.iter().map(|&id| f64::from(logit(z, id))).sum();
            let log_q_others = all - inside - others as f64 * f64::from(lse);
            let plan =
                SparsePlan { mass: (mass + rest) as f32, outside: (mass + rest) as f32, spread: each as f32 };
            (cross + negentropy + rest * each.ln() - each * log_q_others, plan)
        }
    };
    ((kl * f64::from(tau * tau)) as f32, plan)
}

/// log of the student's mass outside `ids`, summed there and not by subtraction from one, which
/// would cancel where the mass is small.
fn log_q_outside(z: &mut [f32], ids: &[u32], lse: f32, tau: f32) -> f64 {
    let mut outside = f32::NEG_INFINITY;
    if ids.len() < z.len() {
        with_scratch([ids.len()], |[kept]| {
            let swap_out = |(kept, &id): (&mut f32, &u32)| {
                *kept = std::mem::replace(&mut z[id as usize], f32::NEG_INFINITY);
            };
            kept.iter_mut().zip(ids).for_each(swap_out);
            outside = log_sum_exp(z, 1.0 / tau);
            kept.iter().zip(ids).for_each(|(&v, &id)| z[id as usize] = v);
        });
    }
    f64::from(outside - lse)
}

/// ∂(weighted loss)/∂z in place of z, given the labels' and the targets' log Σ exp.
fn gradient(
    z: &mut [f32],
    hard: Option<(u32, f32)>,
    sparse: Option<(&SparseRowRef<'_>, f32)>,
    plan: &SparsePlan,
    w: &HeadWeights,
) {
    let tau = w.loss_temperature;
    let hard_weight = if hard.is_some() { w.hard_label * w.scale } else { 0.0 };
    let kl_weight = if sparse.is_some() { w.forward_kl * w.scale * tau } else { 0.0 };
    if hard_weight == 0.0 && kl_weight == 0.0 {
        return z.fill(0.0);
    }
    let mixture = |z: &mut [f32]| {
        let lse = hard.map_or(0.0, |(_, lse)| lse);
        let hot = sparse.map_or(0.0, |(_, lse)| lse);
        let (spread, outside) = (-kl_weight * plan.spread, kl_weight * plan.outside);
        if tau == 1.0 {
            // Both terms read the same softmax.
            let lse = if hard.is_some() { lse } else { hot };
            softmax_mixture(z, hard_weight + outside, lse, 0.0, 0.0, 1.0, spread);
        } else {
            softmax_mixture(z, hard_weight, lse, outside, hot, 1.0 / tau, spread);
        }
        if let Some((label, _)) = hard {
            z[label as usize] -= hard_weight;
        }
    };
    let Some((row, hot)) = sparse else {
        return mixture(z);
    };
    with_scratch([row.ids.len()], |[kept]| {
        kept.iter_mut().zip(row.ids).for_each(|(q, &id)| *q = (z[id as usize] / tau - hot).exp());
        mixture(z);
        for ((&id, &p), &q) in row.ids.iter().zip(row.probs).zip(&*kept) {
            let extra = (plan.mass - plan.outside) * q + plan.spread - p;
            z[id as usize] += kl_weight * extra;
        }
    });
}

//! Divergences of distributions over two vocabularies.
//!
//! With p = softmax(t/τ) over the teacher's ids and q = softmax(z/τ) over the student's:
//!
//! - `uld` is Σᵢ abs(p↓ᵢ − q↓ᵢ), both sorted from the greatest down and the shorter one padded with zeros (Boizard
//!   et al. 2024, "Universal Logit Distillation"). Which id has which probability does not matter to it: a
//!   student that gives the teacher's probabilities to the wrong tokens has loss 0.
//! - `gold`, β is w·Σ_M φ(p, q) + (1−w)·`uld` of the other ids. M are ids with the same bytes in both vocabularies,
//!   w is their share of the teacher's ids, φ that of KL(p‖q) for β = 0, KL(q‖p) for β = 1, and of `jsd` with
//!   teacher weight β between; nothing is renormalised, so the first part can be below 0 (TRL's GOLD with its
//!   default weights; Patiño et al. 2025).
//!
//! Both times τ². With g = ∂φ/∂q, and for a sorted id g = sign(q − p) at its rank, the gradient is
//! τ·(qⱼgⱼ − qⱼ·Σᵢ qᵢgᵢ). Ids of equal q have the mean of their ranks' signs.

use crate::divergence::{Kernel, Softmaxes};
use crate::math::exp;

/// Which ids of two vocabularies are the same token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatchedIds {
    /// (student, teacher), ascending by the student's.
    pairs: Vec<(u32, u32)>,
    /// Ids in no pair.
    student_rest: Vec<u32>,
    teacher_rest: Vec<u32>,
}

impl MatchedIds {
    /// Vocabularies of `n_student` and `n_teacher` ids with these `pairs` (student, teacher) of the same token.
    ///
    /// # Panics
    /// Where an id is outside its vocabulary or in two pairs.
    pub fn new(n_student: usize, n_teacher: usize, mut pairs: Vec<(u32, u32)>) -> MatchedIds {
        let rest = |n: usize, ids: &mut dyn Iterator<Item = u32>| {
            let mut free = vec![true; n];
            ids.for_each(|id| {
                assert!(std::mem::replace(&mut free[id as usize], false), "id {id} is in two pairs");
            });
            (0..n as u32).filter(|&id| free[id as usize]).collect()
        };
        pairs.sort_unstable();
        MatchedIds {
            student_rest: rest(n_student, &mut pairs.iter().map(|pair| pair.0)),
            teacher_rest: rest(n_teacher, &mut pairs.iter().map(|pair| pair.1)),
            pairs,
        }
    }

    /// (student, teacher), ascending by the student's.
    pub fn pairs(&self) -> &[(u32, u32)] {
        &self.pairs
    }

    /// Ids of the student's vocabulary.
    pub fn n_student(&self) -> usize {
        self.pairs.len() + self.student_rest.len()
    }

    /// Ids of the teacher's vocabulary.
    pub fn n_teacher(&self) -> usize {
        self.pairs.len() + self.teacher_rest.len()
    }

    /// Pairs of ids.
    pub fn n_matched(&self) -> usize {
        self.pairs.len()
    }

    /// What φ weighs in `gold`.
    pub fn matched_weight(&self) -> f64 {
        self.pairs.len() as f64 / self.n_teacher().max(1) as f64
    }
}

/// A row of a teacher with another vocabulary.
#[derive(Clone, Copy, Debug)]
pub struct ForeignRow<'a> {
    /// One per id of the teacher's.
    pub logits: &'a [f32],
    pub matched: &'a MatchedIds,
}

impl ForeignRow<'_> {
    /// Numbers of room that its losses need.
    pub(crate) fn n_room(&self) -> usize {
        3 * self.matched.n_student() + self.matched.n_teacher()
    }
}

/// What the sum over one row's outcomes comes to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sums {
    pub(crate) loss: f64,
    /// Σ q·g.
    pub(crate) total: f64,
}

/// Sums of `uld`, or where `of_matched` is φ's kernel of `gold`. weight·qⱼgⱼ is added to `h` for every id j; `room`
/// is for the rest of [`ForeignRow::n_room`] numbers.
pub(crate) fn sums(
    z: &[f32],
    row: &ForeignRow<'_>,
    of_matched: Option<Kernel>,
    s: Softmaxes,
    weight: f32,
    h: &mut [f32],
    room: &mut [f32],
) -> Sums {
    let matched = row.matched;
    let (q, p) = (
        |j: u32| exp(z[j as usize] * s.scale - s.student),
        |i: u32| exp(row.logits[i as usize] * s.scale - s.teacher),
    );
    let Some(kernel) = of_matched else {
        return sorted((0..z.len() as u32, q), (0..row.logits.len() as u32, p), weight, h, room);
    };
    let share = matched.matched_weight();
    let (rest, others) = (matched.student_rest.iter().copied(), matched.teacher_rest.iter().copied());
    let rest = sorted((rest, q), (others, p), weight * (1.0 - share) as f32, h, room);
    let mut sums = Sums { loss: (1.0 - share) * rest.loss, total: (1.0 - share) * rest.total };
    for &(j, i) in &matched.pairs {
        let outcome =
            kernel.outcome(row.logits[i as usize] * s.scale - s.teacher, z[j as usize] * s.scale - s.student);
        sums.loss += share * f64::from(outcome.loss);
        sums.total += share * f64::from(outcome.h);
        h[j as usize] += weight * share as f32 * outcome.h;
    }
    sums
}

/// Σ abs(p↓ − q↓) over some ids of each side, and weight·q·sign added to `h` for the student's.
fn sorted(
    (student, q): (impl Iterator<Item = u32> + Clone, impl Fn(u32) -> f32),
    (teacher, p): (impl Iterator<Item = u32>, impl Fn(u32) -> f32),
    weight: f32,
    h: &mut [f32],
    room: &mut [f32],
) -> Sums {
    let n_all = h.len();
    let (of_student, room) = room.split_at_mut(n_all);
    let (signs, of_teacher) = room.split_at_mut(n_all);
    let (n, m) = (fill(of_student, student.clone().map(&q)), fill(of_teacher, teacher.map(p)));
    let (of_student, of_teacher) = (&mut of_student[..n], &mut of_teacher[..m]);
    // Bits of positive numbers are ordered as they are.
    of_student.sort_unstable_by_key(|q| std::cmp::Reverse(q.to_bits()));
    of_teacher.sort_unstable_by_key(|p| std::cmp::Reverse(p.to_bits()));
    let mut sums = Sums::default();
    for (rank, sign) in signs[..n].iter_mut().enumerate() {
        let difference = of_student[rank] - of_teacher.get(rank).copied().unwrap_or(0.0);
        sums.loss += f64::from(difference.abs());
        *sign = if difference == 0.0 { 0.0 } else { difference.signum() };
    }
    sums.loss += of_teacher.iter().skip(n).map(|&p| f64::from(p)).sum::<f64>();
    let mut start = 0;
    for equal in of_student.chunk_by(|a, b| a == b) {
        let ranks = start..start + equal.len();
        let mean = signs[ranks.clone()].iter().sum::<f32>() / equal.len() as f32;
        signs[ranks.clone()].fill(mean);
        sums.total += f64::from(equal[0]) * f64::from(mean) * equal.len() as f64;
        start = ranks.end;
    }
    for j in student {
        let q = q(j);
        // A logit that is not a number has no rank; what it makes of the sums is seen there.
        let rank = of_student.partition_point(|&other| other > q);
        h[j as usize] += weight * q * signs.get(rank).copied().unwrap_or(f32::NAN);
    }
    sums
}

/// Writes what `values` gives and tells how many there were.
fn fill(room: &mut [f32], values: impl Iterator<Item = f32>) -> usize {
    room.iter_mut().zip(values).map(|(place, value)| *place = value).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_in_one_pair_or_in_none() {
        let matched = MatchedIds::new(4, 3, vec![(2, 0), (0, 2)]);
        assert_eq!((matched.n_student(), matched.n_teacher(), matched.n_matched()), (4, 3, 2));
        assert_eq!((&matched.student_rest[..], &matched.teacher_rest[..]), (&[1, 3][..], &[1][..]));
        assert_eq!(matched.matched_weight(), 2.0 / 3.0);
    }

    #[test]
    #[should_panic(expected = "in two pairs")]
    fn a_token_cannot_be_two() {
        MatchedIds::new(4, 3, vec![(2, 0), (2, 1)]);
    }
}

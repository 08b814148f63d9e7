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

use crate::cpu::multiversion;
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
        5 * self.matched.n_student() + 2 * self.matched.n_teacher()
    }
}

/// What the sum over one row's outcomes comes to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sums {
    pub(crate) loss: f64,
    /// Σ q·g.
    pub(crate) total: f64,
}

multiversion! {
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
}

/// Σ abs(p↓ − q↓) over some ids of each side, and weight·q·sign added to `h` for the student's.
#[inline(always)]
fn sorted(
    (student, q): (impl Iterator<Item = u32> + Clone, impl Fn(u32) -> f32),
    (teacher, p): (impl Iterator<Item = u32>, impl Fn(u32) -> f32),
    weight: f32,
    h: &mut [f32],
    room: &mut [f32],
) -> Sums {
    let (keys, room) = room.split_at_mut(2 * h.len());
    let (spare, of_teacher) = room.split_at_mut(2 * h.len());
    let n = fill(keys, student.clone().flat_map(|j| [q(j), f32::from_bits(j)])) / 2;
    let m = fill(of_teacher, teacher.map(p));
    let (of_teacher, spare_of_teacher) = of_teacher.split_at_mut(m);
    let (of_student, _) = keys[..2 * n].as_chunks_mut();
    sort_descending(of_student, spare[..2 * n].as_chunks_mut().0, |&[q, _]| q);
    sort_descending(of_teacher, &mut spare_of_teacher[..m], |&p| p);
    let signs = &mut spare[..n];
    let mut sums = Sums::default();
    for (rank, (sign, [q, _])) in signs.iter_mut().zip(&*of_student).enumerate() {
        let difference = q - of_teacher.get(rank).copied().unwrap_or(0.0);
        sums.loss += f64::from(difference.abs());
        // That of a number which is none is none.
        *sign = if difference == 0.0 { 0.0 } else { difference.signum() };
    }
    sums.loss += of_teacher.iter().skip(n).map(|&p| f64::from(p)).sum::<f64>();
    let mut start = 0;
    for equal in of_student.chunk_by(|[a, _], [b, _]| a == b) {
        let mean = signs[start..start + equal.len()].iter().sum::<f32>() / equal.len() as f32;
        sums.total += f64::from(equal[0][0]) * f64::from(mean) * equal.len() as f64;
        equal.iter().for_each(|[q, j]| h[j.to_bits() as usize] += weight * q * mean);
        start += equal.len();
    }
    sums
}

/// Bits of a number that one pass of [`sort_descending`] looks at.
const DIGIT_BITS: u32 = 11;
const DIGITS: usize = 1 << DIGIT_BITS;

/// Sorts by numbers of at least 0 from the greatest down, digit by digit of their bits, which are ordered as the numbers
/// are; equal ones stay in their order. `spare` is as long.
fn sort_descending<T: Copy>(values: &mut [T], spare: &mut [T], number: impl Fn(&T) -> f32) {
    // Below this comparisons are faster than counting digits.
    if values.len() < DIGITS / 4 {
        values.sort_by_key(|value| !number(value).to_bits());
        return;
    }
    let digit =
        |value: &T, pass: u32| (!number(value).to_bits() >> (pass * DIGIT_BITS)) as usize & (DIGITS - 1);
    let (mut from, mut to) = (&mut *values, &mut *spare);
    for pass in 0..3 {
        let mut places = [0u32; DIGITS];
        from.iter().for_each(|value| places[digit(value, pass)] += 1);
        let mut next = 0;
        for place in &mut places {
            next += std::mem::replace(place, next);
        }
        for value in from.iter() {
            let place = &mut places[digit(value, pass)];
            to[*place as usize] = *value;
            *place += 1;
        }
        std::mem::swap(&mut from, &mut to);
    }
    // Three passes end in `spare`.
    values.copy_from_slice(spare);
}

/// Writes what `values` gives and tells how many there were.
#[inline(always)]
fn fill(room: &mut [f32], values: impl Iterator<Item = f32>) -> usize {
    room.iter_mut().zip(values).map(|(place, value)| *place = value).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_sort_as_comparisons_do() {
        let mut state = 7u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state
        };
        for n in [0, 1, 3, DIGITS / 4 - 1, DIGITS / 4, 3000, 5000] {
            // All sizes of numbers, and equal ones.
            let number = |next: u32| f32::from_bits((next % 0x7f80_0000) >> (next % 3));
            let mut values: Vec<[f32; 2]> = (0..n).map(|i| [number(next()), i as f32]).collect();
            let mut expected = values.clone();
            expected.sort_by(|[a, _], [b, _]| b.total_cmp(a));
            sort_descending(&mut values, &mut vec![[0.0; 2]; n], |&[value, _]| value);
            let bits = |values: &[[f32; 2]]| values.iter().map(|v| v.map(f32::to_bits)).collect::<Vec<_>>();
            assert_eq!(bits(&values), bits(&expected), "{n}");
        }
    }

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

//! Random tokens and what supervises them.

use std::collections::BTreeSet;

use stillroom_core::{CounterRng, SparseRow, Tail};
use stillroom_model::{Batch, SparseBatch, Targets};

/// Kinds of numbers that are drawn; the first part of their key.
const TOKENS: u64 = 1;
const TEACHER: u64 = 2;

/// How each supervised position is taught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Supervision {
    /// The next token.
    HardLabels,
    /// That many of a teacher's ids.
    Sparse { draws: usize },
}

/// `n` sequences of `length` random token ids.
pub(super) fn sequences(n: usize, length: usize, vocab_size: usize) -> Vec<Vec<u32>> {
    let sequence = |i: usize| {
        let mut rng = CounterRng::new(&[TOKENS, i as u64]);
        (0..length).map(|_| rng.below(vocab_size as u64) as u32).collect()
    };
    (0..n).map(sequence).collect()
}

/// `n` sequences of `length` tokens; each position but the first `masked` ones is supervised, the last by a
/// token that is not in the batch.
pub(super) fn supervised(
    n: usize,
    length: usize,
    vocab_size: usize,
    masked: usize,
    supervision: Supervision,
) -> (Batch, Targets<'static>) {
    let (mut batch, mut targets) = (Batch::default(), Targets::default());
    let mut sparse = SparseBatch::new(Tail::None);
    for ids in sequences(n, length + 1, vocab_size) {
        let first_row = batch.n_tokens();
        batch.push(&ids[..length]);
        for t in masked..length {
            let row = first_row + t;
            targets.rows.push(row as u32);
            match supervision {
                Supervision::HardLabels => targets.hard_labels.push(ids[t + 1]),
                Supervision::Sparse { draws } => sparse.push(&teacher_row(row, draws, vocab_size)),
            }
        }
    }
    targets.sparse = matches!(supervision, Supervision::Sparse { .. }).then_some(sparse);
    (batch, targets)
}

/// A distribution over `draws` ids, drawn without replacement (Floyd 1987) and weighted by exponential
/// numbers, so that it is uniform among all distributions over them. Its entropy stands for the teacher's.
fn teacher_row(row: usize, draws: usize, vocab_size: usize) -> SparseRow {
    let mut rng = CounterRng::new(&[TEACHER, row as u64]);
    let mut ids = BTreeSet::new();
    for last in vocab_size - draws..vocab_size {
        let id = rng.below(last as u64 + 1) as u32;
        if !ids.insert(id) {
            ids.insert(last as u32);
        }
    }
    let weights: Vec<f64> = ids.iter().map(|_| -(1.0 - rng.uniform()).ln()).collect();
    let sum: f64 = weights.iter().sum();
    let probs: Vec<f64> = weights.iter().map(|w| w / sum).collect();
    let entropy: f64 = probs.iter().filter(|&&p| p > 0.0).map(|p| -p * p.ln()).sum();
    SparseRow {
        ids: ids.into_iter().collect(),
        probs: probs.iter().map(|&p| p as f32).collect(),
        teacher_entropy: entropy as f32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_teacher_row_is_a_distribution_over_unique_ids() {
        for (draws, vocab_size) in [(1, 1), (3, 3), (7, 8), (50, 1000)] {
            let row = teacher_row(5, draws, vocab_size);
            assert!(row.ids.windows(2).all(|w| w[0] < w[1]) && row.ids.len() == draws, "{row:?}");
            assert!(row.ids.iter().all(|&id| (id as usize) < vocab_size), "{row:?}");
            let sum: f64 = row.probs.iter().map(|&p| f64::from(p)).sum();
            assert!((sum - 1.0).abs() < 1e-5 && row.probs.len() == draws, "{row:?}");
            assert!((0.0..=(draws as f32).ln() + 1e-5).contains(&row.teacher_entropy), "{row:?}");
        }
        assert_ne!(teacher_row(5, 50, 1000), teacher_row(6, 50, 1000));
    }

    #[test]
    fn masked_positions_are_at_the_front_of_each_sequence() {
        let (batch, targets) = supervised(2, 4, 100, 3, Supervision::HardLabels);
        let ids = sequences(2, 5, 100);
        assert_eq!(batch.ids, [&ids[0][..4], &ids[1][..4]].concat());
        assert_eq!((targets.rows, targets.hard_labels), (vec![3, 7], vec![ids[0][4], ids[1][4]]));
        assert_eq!(targets.sparse, None);
        let (_, targets) = supervised(2, 4, 100, 1, Supervision::Sparse { draws: 9 });
        assert_eq!((targets.rows.len(), targets.hard_labels.len()), (6, 0));
        let offsets: Vec<u32> = (0..=6).map(|row| 9 * row).collect();
        assert_eq!(targets.sparse.map(|sparse| sparse.offsets), Some(offsets));
    }
}

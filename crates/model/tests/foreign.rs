//! A live teacher that reads the text in tokens of its own: gradients are central differences, and with one vocabulary it is
//! the teacher that reads along.

mod common;

use common::{bits, config, documents, lively, slices};
use stillroom_formats::{DecoderConfig, Family};
use stillroom_model::{
    Batch, Decoder, Divergence, ForeignText, HeadTerms, LiveTeacher, MatchedIds, Targets, Term, TrainState,
};

fn small(family: Family, vocab_size: usize) -> DecoderConfig {
    DecoderConfig { vocab_size, num_hidden_layers: 1, ..config(family) }
}

fn term(divergence: Divergence, temperature: f32) -> Term {
    Term { divergence, weight: 1.0, temperature }
}

const GOLD: Divergence = Divergence::Gold { teacher_weight: 0.5 };

/// Rows 1, 3 and 4 of the first document of seven tokens, 1 to 4 of the second of six.
fn supervised(vocab_size: usize) -> (Batch, Vec<u32>, Vec<u32>) {
    let batch = Batch::from_documents(&slices(&documents(&[7, 6], vocab_size, 51)));
    let rows = vec![1, 3, 4, 8, 9, 10, 11];
    let labels = rows.iter().map(|&row| batch.ids[row as usize + 1]).collect();
    (batch, rows, labels)
}

/// A teacher's text of nine and four tokens, whose rows partly go with the student's.
fn foreign(matched: &MatchedIds) -> ForeignText<'_> {
    let batch = Batch::from_documents(&slices(&documents(&[9, 4], matched.n_teacher(), 52)));
    let rows = vec![Some(0), None, Some(6), None, None, Some(9), Some(11)];
    ForeignText { batch, rows, matched }
}

#[test]
fn gradients_through_both_heads_are_central_differences() {
    let matched = MatchedIds::new(21, 33, (0..9).map(|k| (2 * k, 32 - k)).collect());
    let teacher = lively(small(Family::Qwen2, 35), 1, 53);
    let terms = [term(Divergence::Uld, 1.0), term(GOLD, 2.0)];
    let (batch, rows, hard_labels) = supervised(21);
    // One id of the student's table is padding.
    let live = Some(LiveTeacher::alone(&teacher, Some(21)));
    let targets = Targets { rows, hard_labels, live, foreign: Some(foreign(&matched)), ..Targets::default() };
    let value = |decoder: &Decoder| -> f64 {
        let losses = decoder.losses(&batch, &targets, &terms);
        [0, 1].iter().flat_map(|&i| losses.divergence(i).iter().map(|&l| f64::from(l))).sum()
    };
    let start = || lively(small(Family::Llama, 22), 2, 54);
    let mut state = TrainState::new(start());
    let losses =
        state.accumulate(&batch, &targets, &HeadTerms { hard_label: 0.0, divergences: &terms, scale: 1.0 });
    assert_eq!(losses.captured_mass, [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0]);
    assert_eq!(bits(losses.divergence(0)), bits(start().losses(&batch, &targets, &terms).divergence(0)));
    let tensors: Vec<_> = start().tensors().collect();
    let mut looked_at = 0;
    for gradient in state.gradients() {
        // The steepest number of each tensor: f32 shows no others.
        let steepest = (0..gradient.data.len())
            .max_by(|&a, &b| gradient.data[a].abs().total_cmp(&gradient.data[b].abs()))
            .expect("numbers");
        let slope = f64::from(gradient.data[steepest]);
        let at = |by: f32| {
            let mut moved: Vec<_> = tensors.clone();
            let tensor = moved.iter_mut().find(|t| t.name == gradient.name).expect("the same names");
            tensor.data[steepest] += by;
            let device = start().device().clone();
            let views = common::Tensors::of(moved.into_iter());
            value(&Decoder::load(device, small(Family::Llama, 22), &views).expect("a model"))
        };
        let found = (at(2e-3) - at(-2e-3)) / 4e-3;
        assert!((found - slope).abs() < 0.02 * slope.abs().max(0.02), "{}: {found} {slope}", gradient.name);
        looked_at += 1;
    }
    assert!(looked_at > 5);
}

#[test]
fn with_one_vocabulary_and_the_same_tokens_gold_is_the_forward_kl_of_a_teacher_that_reads_along() {
    let teacher = lively(small(Family::Qwen3, 21), 1, 55);
    let student = lively(small(Family::Llama, 21), 2, 56);
    let (batch, rows, hard_labels) = supervised(21);
    let live = Some(LiveTeacher::alone(&teacher, None));
    let along = Targets { rows: rows.clone(), hard_labels, live, ..Targets::default() };
    let matched = MatchedIds::new(21, 21, (0..21).map(|id| (id, id)).collect());
    let own =
        ForeignText { batch: batch.clone(), rows: rows.into_iter().map(Some).collect(), matched: &matched };
    let apart = Targets { foreign: Some(own), ..along.clone() };
    let expected = student.losses(&batch, &along, &[term(Divergence::ForwardKl, 1.0)]);
    let kl = Divergence::Gold { teacher_weight: 0.0 };
    let found = student.losses(&batch, &apart, &[term(kl, 1.0)]);
    for (found, expected) in found.divergence(0).iter().zip(expected.divergence(0)) {
        assert!((found - expected).abs() < 1e-5 * expected.max(1.0), "{found} {expected}");
    }
}

#[test]
#[should_panic(expected = "partners ascend")]
fn a_teachers_rows_do_not_go_back() {
    let matched = MatchedIds::new(21, 33, Vec::new());
    let teacher = lively(small(Family::Qwen2, 33), 1, 53);
    let (batch, rows, hard_labels) = supervised(21);
    let mut text = foreign(&matched);
    text.rows.swap(0, 2);
    let live = Some(LiveTeacher::alone(&teacher, Some(21)));
    let targets = Targets { rows, hard_labels, live, foreign: Some(text), ..Targets::default() };
    lively(small(Family::Llama, 21), 1, 54).losses(&batch, &targets, &[term(GOLD, 1.0)]);
}

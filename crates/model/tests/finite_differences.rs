//! Gradients against finite differences of the loss, for each tensor along a random direction.
//!
//! The loss is computed in f32, so a difference quotient over a step h carries an error of about
//! 1e-6 / h beside the h² of the method; with h near 1e-2 along unit directions both stay below the
//! bound for gradients of the size that these models have.

mod common;

use std::ops::Range;

use common::{Tensors, config, documents, lively, slices};
use stillroom_core::{CounterRng, SparseRow, Tail};
use stillroom_formats::{DecoderConfig, Family};
use stillroom_model::{
    Batch, Decoder, Divergence, HeadLosses, HeadTerms, HiddenAlignment, LabelLoss, LayerPair, LiveTeacher,
    SparseBatch, Targets, Term, TrainState, WeightedLabelLoss,
};

fn small(family: Family) -> DecoderConfig {
    DecoderConfig {
        vocab_size: 23,
        hidden_size: 16,
        intermediate_size: 20,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 6,
        attention_out_bias: family == Family::Llama,
        mlp_bias: family == Family::Llama,
        qkv_bias: family != Family::Qwen3,
        ..config(family)
    }
}

fn supervised(tail: Tail) -> (Batch, Targets<'static>) {
    let documents = documents(&[9, 5], 23, 31);
    let batch = Batch::from_documents(&slices(&documents));
    let rows = vec![1, 2, 5, 7, 9, 12, 13];
    let mut sparse = SparseBatch::new(tail);
    let mut rng = CounterRng::new(&[32]);
    for _ in &rows {
        let first = rng.below(10) as u32;
        let probs = if tail == Tail::None { vec![0.25, 0.75] } else { vec![0.3, 0.5] };
        sparse.push(&SparseRow { ids: vec![first, first + 3], probs, teacher_entropy: 0.4 });
    }
    let hard_labels = rows.iter().map(|_| rng.below(23) as u32).collect();
    (batch, Targets { rows, hard_labels, sparse: Some(sparse), ..Targets::default() })
}

/// Of a [`LabelLoss`], where there is one.
const LABEL_WEIGHT: f32 = 0.7;
/// Of a [`HiddenAlignment`], where there is one.
const HIDDEN_WEIGHT: f32 = 0.8;

fn weighted(losses: &HeadLosses, terms: &HeadTerms<'_>) -> f64 {
    let sum = |values: &[f32]| values.iter().map(|&v| f64::from(v)).sum::<f64>();
    let divergences = terms.divergences.iter().enumerate();
    let divergences = divergences.map(|(i, term)| f64::from(term.weight) * sum(losses.divergence(i)));
    f64::from(terms.scale)
        * (f64::from(terms.hard_label) * sum(&losses.hard_label)
            + divergences.sum::<f64>()
            + f64::from(LABEL_WEIGHT) * sum(&losses.label_loss)
            + f64::from(HIDDEN_WEIGHT) * sum(&losses.hidden))
}

fn check(family: Family, tail: Tail, temperature: f32) {
    let term = Term { divergence: Divergence::ForwardKl, weight: 0.4, temperature };
    let (batch, targets) = supervised(tail);
    check_terms(family, &batch, &targets, &[term]);
}

fn check_terms(family: Family, batch: &Batch, targets: &Targets<'_>, divergences: &[Term]) {
    let terms = HeadTerms { hard_label: 0.6, divergences, scale: 0.3 };
    let decoder = lively(small(family), 1, 33);
    let whole = Tensors::of(decoder.tensors());
    let (device, config) = (decoder.device().clone(), decoder.config().clone());
    let loss_at = |name: &str, direction: &[f64], h: f64| {
        let mut tensors = whole.clone();
        let (_, data) = tensors.0.get_mut(name).unwrap();
        data.iter_mut().zip(direction).for_each(|(v, d)| *v = (f64::from(*v) + h * d) as f32);
        let moved = Decoder::load(device.clone(), config.clone(), &tensors).unwrap();
        weighted(&moved.losses(batch, targets, divergences), &terms)
    };
    let mut state = TrainState::new(decoder);
    state.accumulate(batch, targets, &terms);
    for (i, gradient) in state.gradients().enumerate() {
        // Half along the gradient, so that there is something to see, half at random.
        let norm = gradient.data.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        let mut rng = CounterRng::new(&[34, i as u64]);
        let n = (gradient.data.len() as f64).sqrt();
        let direction: Vec<f64> =
            gradient.data.iter().map(|&g| f64::from(g) / norm + rng.normal() / n).collect();
        let h = 4e-3;
        let quotient =
            (loss_at(&gradient.name, &direction, h) - loss_at(&gradient.name, &direction, -h)) / (2.0 * h);
        let analytic: f64 = gradient.data.iter().zip(&direction).map(|(&g, d)| f64::from(g) * d).sum();
        let error = (quotient - analytic).abs();
        let bound = 5e-3 * analytic.abs() + 3e-4;
        assert!(error <= bound, "{family:?} {}: {quotient} by differences, {analytic}", gradient.name);
    }
}

#[test]
fn llama_with_biases() {
    check(Family::Llama, Tail::None, 1.0);
}

#[test]
fn qwen2_at_a_temperature() {
    check(Family::Qwen2, Tail::Bucket, 2.0);
}

#[test]
fn qwen3_with_a_uniform_tail() {
    check(Family::Qwen3, Tail::Uniform, 1.0);
}

#[test]
fn qwen3_with_a_dropped_tail_and_a_low_temperature() {
    check(Family::Qwen3, Tail::Drop, 0.7);
}

#[test]
fn a_live_teacher_with_a_larger_vocabulary_and_two_temperatures() {
    let teacher = lively(DecoderConfig { vocab_size: 31, ..small(Family::Qwen2) }, 1, 35);
    let (batch, targets) = supervised(Tail::None);
    let hard_labels = targets.hard_labels.iter().map(|id| id % 21).collect();
    let live = Some(LiveTeacher::alone(&teacher, Some(21)));
    let targets = Targets { hard_labels, sparse: None, live, ..targets };
    let term = |divergence, temperature| Term { divergence, weight: 0.4, temperature };
    let terms = [
        term(Divergence::Jsd { teacher_weight: 0.3 }, 1.0),
        term(Divergence::ReverseKl, 2.0),
        term(Divergence::SkewReverseKl { alpha: 0.1 }, 1.0),
    ];
    check_terms(Family::Llama, &batch, &targets, &terms);
}

/// Σ over documents of (their mean log-probability + 1)², so that a slope depends on all rows of a document.
#[derive(Debug)]
struct SquaredMeans {
    /// Rows of each document.
    sizes: Vec<usize>,
}

impl LabelLoss for SquaredMeans {
    fn evaluate(&self, rows: Range<usize>, logprobs: &[f32], losses: &mut [f32], slopes: &mut [f32]) {
        let mut start = 0;
        for &n in &self.sizes {
            if rows.contains(&start) {
                let at = start - rows.start..start + n - rows.start;
                let mean = logprobs[at.clone()].iter().sum::<f32>() / n as f32 + 1.0;
                losses[at.clone()].fill(mean * mean / n as f32);
                slopes[at].fill(2.0 * mean / n as f32);
            }
            start += n;
        }
    }
}

#[test]
fn a_loss_of_the_labels_log_probabilities_beside_other_losses() {
    let (batch, targets) = supervised(Tail::Bucket);
    let loss = SquaredMeans { sizes: vec![4, 3] };
    let label_loss = Some(WeightedLabelLoss { loss: &loss, weight: LABEL_WEIGHT });
    let targets = Targets { label_loss, ..targets };
    let term = Term { divergence: Divergence::ReverseKl, weight: 0.4, temperature: 1.0 };
    check_terms(Family::Qwen3, &batch, &targets, &[term]);
    check_terms(Family::Llama, &batch, &Targets { sparse: None, ..targets }, &[]);
}

#[test]
fn a_loss_of_log_probabilities_does_not_depend_on_how_documents_are_grouped() {
    let documents = documents(&[400, 300], 23, 36);
    let batch = Batch::from_documents(&slices(&documents));
    let rows: Vec<u32> = (0..399).chain(400..699).collect();
    let hard_labels = rows.iter().map(|&row| batch.ids[row as usize + 1]).collect();
    let loss = SquaredMeans { sizes: vec![399, 299] };
    let label_loss = Some(WeightedLabelLoss { loss: &loss, weight: LABEL_WEIGHT });
    let targets = Targets { rows, hard_labels, label_loss, ..Targets::default() };
    let decoder = lively(small(Family::Llama), 2, 37);
    let scored = decoder.token_logprobs(&slices(&documents));
    let terms = HeadTerms { hard_label: 0.0, divergences: &[], scale: 1.0 };
    let validated = decoder.losses(&batch, &targets, &[]);
    let mut state = TrainState::new(decoder);
    let trained = state.accumulate(&batch, &targets, &terms);
    assert_eq!(trained.label_loss, validated.label_loss);
    for (document, part) in [(0, 0..399), (1, 399..698)] {
        let mean = scored[document].iter().sum::<f32>() / part.len() as f32 + 1.0;
        let sum: f32 = trained.label_loss[part].iter().sum();
        assert!((sum - mean * mean).abs() < 1e-4 * sum, "{sum} against {}", mean * mean);
    }
}

#[test]
fn hidden_states_that_point_elsewhere_than_the_teachers() {
    let teacher = lively(DecoderConfig { num_hidden_layers: 3, ..small(Family::Qwen2) }, 1, 38);
    let (batch, targets) = supervised(Tail::None);
    let live = Some(LiveTeacher::alone(&teacher, None));
    let pair = |teacher, student| LayerPair { teacher, student };
    let pairs = [pair(0, 0), pair(2, 1), pair(1, 0)];
    let hidden = Some(HiddenAlignment { pairs: &pairs, weight: HIDDEN_WEIGHT });
    let targets = Targets { sparse: None, live, hidden, ..targets };
    check_terms(Family::Qwen3, &batch, &targets, &[]);
    let every_row = Targets { rows: (0..14).collect(), hard_labels: vec![3; 14], ..targets };
    check_terms(Family::Llama, &batch, &every_row, &[]);
}

#[test]
fn a_copy_of_the_teacher_points_where_it_points_in_training_and_validation() {
    let teacher = lively(small(Family::Llama), 2, 39);
    let (batch, targets) = supervised(Tail::None);
    let live = Some(LiveTeacher::alone(&teacher, None));
    let pairs = [0, 1].map(|layer| LayerPair { teacher: layer, student: layer });
    let hidden = Some(HiddenAlignment { pairs: &pairs, weight: HIDDEN_WEIGHT });
    let targets = Targets { sparse: None, live, hidden, ..targets };
    let losses = teacher.losses(&batch, &targets, &[]).hidden;
    assert!(losses.len() == 7 && losses.iter().all(|loss| loss.abs() < 1e-6), "{losses:?}");
    let other = lively(small(Family::Llama), 2, 40);
    let validated = other.losses(&batch, &targets, &[]);
    assert!(validated.hidden.iter().all(|loss| *loss > 0.1 && *loss < 2.0), "{:?}", validated.hidden);
    let terms = HeadTerms { hard_label: 1.0, divergences: &[], scale: 1.0 };
    for gradient_checkpointing in [false, true] {
        let state = TrainState::new(other.clone()).with_gradient_checkpointing(gradient_checkpointing);
        let mut state = state;
        let trained = state.accumulate(&batch, &targets, &terms);
        assert_eq!(trained.hidden, validated.hidden);
        assert_eq!(trained.hard_label, validated.hard_label);
    }
}

//! What a cache of the teacher's distributions gives beside the teacher at hand, on the same prefixes.

mod common;

use common::{config, documents, lively, logits, slices};
use stillroom_core::{SparseRow, Tail};
use stillroom_formats::{DecoderConfig, Family};
use stillroom_kernels::reference;
use stillroom_model::{
    Batch, Decoder, Divergence, HeadTerms, LiveTeacher, Spacing, SparseBatch, Targets, Term, TrainState,
};

const VOCAB: usize = 211;
const TAILS: [Tail; 3] = [Tail::Drop, Tail::Bucket, Tail::Uniform];
const ALL: [Divergence; 6] = [
    Divergence::ForwardKl,
    Divergence::ReverseKl,
    Divergence::Jsd { teacher_weight: 0.3 },
    Divergence::SkewKl { alpha: 0.1 },
    Divergence::SkewReverseKl { alpha: 0.1 },
    Divergence::Tvd,
];

/// A teacher, a smaller student, and texts of which every position but the last is supervised.
struct Lesson {
    teacher: Decoder,
    student: Decoder,
    documents: Vec<Vec<u32>>,
    batch: Batch,
    rows: Vec<u32>,
}

impl Lesson {
    fn new(lengths: &[usize]) -> Lesson {
        let student =
            DecoderConfig { hidden_size: 48, head_dim: 8, num_hidden_layers: 2, ..config(Family::Llama) };
        let documents = documents(lengths, VOCAB, 5);
        let batch = Batch::from_documents(&slices(&documents));
        let rows = batch.segments.iter().flat_map(|s| s.start as u32..(s.start + s.len - 1) as u32).collect();
        let (teacher, student) = (lively(config(Family::Qwen3), 2, 1), lively(student, 2, 2));
        Lesson { teacher, student, documents, batch, rows }
    }

    fn wanted(&self) -> Vec<Vec<u32>> {
        self.documents.iter().map(|ids| (0..ids.len() as u32 - 1).collect()).collect()
    }

    fn live(&self) -> Targets<'_> {
        let live = Some(LiveTeacher::alone(&self.teacher, None));
        Targets { rows: self.rows.clone(), live, ..Targets::default() }
    }

    fn top_k(&self, k: usize, temperature: f32) -> Vec<SparseRow> {
        let cached = self.teacher.top_k_targets(&slices(&self.documents), &self.wanted(), k, temperature);
        cached.into_iter().flatten().collect()
    }

    fn draws(&self, n: u32, seed: u64) -> Vec<SparseRow> {
        let keys: Vec<u64> = (0..self.documents.len() as u64).collect();
        let documents = slices(&self.documents);
        self.teacher
            .sampled_targets(&documents, &self.wanted(), n, Spacing::Independent, 1.0, &keys, seed)
            .into_iter()
            .flatten()
            .collect()
    }

    fn stored(&self, rows: &[SparseRow], tail: Tail) -> Targets<'static> {
        let mut sparse = SparseBatch::new(tail);
        rows.iter().for_each(|row| sparse.push(row));
        Targets { rows: self.rows.clone(), sparse: Some(sparse), ..Targets::default() }
    }

    /// The gradient of the mean `forward_kl` by all weights.
    fn gradient(&self, targets: &Targets<'_>) -> Vec<f32> {
        let term = Term { divergence: Divergence::ForwardKl, weight: 1.0, temperature: 1.0 };
        let scale = 1.0 / self.rows.len() as f32;
        let terms = HeadTerms { hard_label: 0.0, divergences: &[term], scale };
        let student = Decoder::load(
            self.student.device().clone(),
            self.student.config().clone(),
            &common::Tensors::of(self.student.tensors()),
        );
        let mut state = TrainState::new(student.unwrap());
        state.accumulate(&self.batch, targets, &terms);
        state.gradients().flat_map(|tensor| tensor.data).collect()
    }
}

/// Between two gradients, in degrees.
fn angle(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    (dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()).min(1.0).acos().to_degrees()
}

/// To 1e-6 of the divergence, which the loss carries τ² times.
#[track_caller]
fn near(cached: f32, live: f32, temperature: f32, what: &str) {
    let difference = (cached - live).abs() / (temperature * temperature);
    assert!(difference <= 1e-6 * live.max(1.0), "{what}: {cached} against {live}");
}

#[test]
fn all_ids_stored_equal_the_live_teacher() {
    let lesson = Lesson::new(&[17, 1, 30]);
    for temperature in [1.0, 2.0] {
        let terms = ALL.map(|divergence| Term { divergence, weight: 1.0, temperature });
        let live = lesson.student.losses(&lesson.batch, &lesson.live(), &terms);
        let stored = lesson.top_k(VOCAB, temperature);
        for tail in TAILS {
            let cached = lesson.student.losses(&lesson.batch, &lesson.stored(&stored, tail), &terms);
            for (i, term) in terms.iter().enumerate() {
                let what = format!("{:?} {tail:?} at {temperature}", term.divergence);
                let pairs = cached.divergence(i).iter().zip(live.divergence(i));
                assert_eq!(pairs.len(), lesson.rows.len());
                pairs.for_each(|(&cached, &live)| near(cached, live, temperature, &what));
            }
        }
        let term = &terms[..1];
        let live = lesson.student.losses(&lesson.batch, &lesson.live(), term);
        let targets = lesson.stored(&stored, Tail::Renormalise);
        let cached = lesson.student.losses(&lesson.batch, &targets, term);
        for (&cached, &live) in cached.divergence(0).iter().zip(live.divergence(0)) {
            near(cached, live, temperature, "renormalised");
        }
    }
}

fn softmax(t: &[f32], temperature: f64) -> Vec<f64> {
    let top = t.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let e: Vec<f64> = t.iter().map(|&v| (f64::from(v - top) / temperature).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|e| e / sum).collect()
}

/// What is left of a whole distribution under the rule of a tail: outcomes as the plain twin takes them.
fn under_the_rule(p: &[f64], k: usize, tail: Tail) -> Vec<(f64, Vec<usize>)> {
    let mut ids: Vec<usize> = (0..p.len()).collect();
    ids.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
    let (kept, others) = ids.split_at(k);
    let mass: f64 = kept.iter().map(|&id| p[id]).sum();
    let scale = if tail == Tail::Renormalise { 1.0 / mass } else { 1.0 };
    let mut outcomes: Vec<_> = kept.iter().map(|&id| (scale * p[id], vec![id])).collect();
    match tail {
        Tail::Bucket => outcomes.push((1.0 - mass, others.to_vec())),
        Tail::Uniform => {
            let each = (1.0 - mass) / others.len() as f64;
            outcomes.extend(others.iter().map(|&id| (each, vec![id])));
        }
        Tail::Drop | Tail::Renormalise | Tail::None => {}
    }
    outcomes
}

/// From the live teacher's own logits, cut down in f64.
#[test]
fn some_ids_stored_equal_the_live_teacher_under_the_same_rule() {
    let lesson = Lesson::new(&[12, 20]);
    let (t, z) = (logits(&lesson.teacher, &lesson.batch), logits(&lesson.student, &lesson.batch));
    let row = |x: &[f32], r: u32| x[r as usize * VOCAB..][..VOCAB].to_vec();
    for (k, temperature) in [(1, 1.0f32), (12, 1.0), (12, 2.0), (100, 1.0)] {
        let stored = lesson.top_k(k, temperature);
        for tail in [Tail::Drop, Tail::Bucket, Tail::Uniform, Tail::Renormalise] {
            let n = if tail == Tail::Renormalise { 1 } else { ALL.len() };
            let terms: Vec<Term> =
                ALL[..n].iter().map(|&divergence| Term { divergence, weight: 1.0, temperature }).collect();
            let cached = lesson.student.losses(&lesson.batch, &lesson.stored(&stored, tail), &terms);
            for (i, &r) in lesson.rows.iter().enumerate() {
                let p = softmax(&row(&t, r), f64::from(temperature));
                let outcomes = under_the_rule(&p, k, tail);
                let z: Vec<f64> = row(&z, r).iter().map(|&v| f64::from(v)).collect();
                for (d, term) in terms.iter().enumerate() {
                    let plain = reference::divergence(term.divergence, &outcomes, &z, f64::from(temperature));
                    let what = format!("{:?} {tail:?} k={k} τ={temperature}", term.divergence);
                    let (found, plain) = (f64::from(cached.divergence(d)[i]), plain.0);
                    // Sums of f32 terms of up to 100 nats, with signs.
                    assert!((found - plain).abs() <= 4e-6 * plain.abs().max(1.0), "{what}: {found} {plain}");
                }
            }
        }
    }
}

/// The gradients of caches of draws scatter around that of whole distributions, and their mean comes as close as the
/// number of caches wants it; the likeliest ids alone point elsewhere. How far apart they are on real text is in
/// docs/experiments.md.
#[test]
fn draws_have_the_gradient_of_whole_distributions_on_average() {
    const CACHES: u64 = 9;
    let lesson = Lesson::new(&[64; 66]);
    assert!(lesson.rows.len() >= 4096, "{}", lesson.rows.len());
    let whole = lesson.gradient(&lesson.live());
    let mut sum = vec![0.0; whole.len()];
    let mut alone = 0.0;
    for seed in 0..CACHES {
        let drawn = lesson.gradient(&lesson.stored(&lesson.draws(50, seed), Tail::None));
        alone += angle(&whole, &drawn) / CACHES as f64;
        sum.iter_mut().zip(&drawn).for_each(|(sum, drawn)| *sum += drawn);
    }
    let together = angle(&whole, &sum);
    let shrinks = alone / (CACHES as f64).sqrt();
    assert!((together / shrinks - 1.0).abs() < 0.15, "{together}° together, {alone}° alone");
    let top = angle(&whole, &lesson.gradient(&lesson.stored(&lesson.top_k(12, 1.0), Tail::Drop)));
    assert!(top > 3.0 * together, "{top}° for the likeliest ids, {together}° for draws");
}

//! Several teachers as one: the same beside the student, stored, and compared; and what they are mixed of.

mod common;

use common::{config, documents, lively, logits, slices};
use stillroom_core::{SparseRow, Tail};
use stillroom_formats::{DecoderConfig, Family};
use stillroom_kernels::reference;
use stillroom_model::{
    Batch, Decoder, Divergence, Ensemble, HeadTerms, LiveTeacher, Spacing, SparseBatch, Targets, Term,
    TrainState, WeightedTeacher,
};

const VOCAB: usize = 211;
const WEIGHTS: [f64; 3] = [1.0, 2.5, 0.5];

/// Three teachers of different shape and a student, all of one vocabulary, and texts.
struct Class {
    teachers: Vec<Decoder>,
    student: Decoder,
    documents: Vec<Vec<u32>>,
    batch: Batch,
    rows: Vec<u32>,
}

fn shape(family: Family, hidden_size: usize, vocab_size: usize) -> DecoderConfig {
    DecoderConfig { hidden_size, head_dim: 8, num_hidden_layers: 2, vocab_size, ..config(family) }
}

impl Class {
    fn new(n_threads: usize) -> Class {
        let documents = documents(&[17, 1, 30], VOCAB, 5);
        let batch = Batch::from_documents(&slices(&documents));
        let rows = batch.segments.iter().flat_map(|s| s.start as u32..(s.start + s.len - 1) as u32).collect();
        let teachers = vec![
            lively(config(Family::Qwen3), n_threads, 1),
            lively(shape(Family::Llama, 64, VOCAB), n_threads, 3),
            lively(shape(Family::Qwen2, 32, VOCAB), n_threads, 4),
        ];
        let student = lively(shape(Family::Llama, 48, VOCAB), n_threads, 2);
        Class { teachers, student, documents, batch, rows }
    }

    fn wanted(&self) -> Vec<Vec<u32>> {
        self.documents.iter().map(|ids| (0..ids.len() as u32 - 1).collect()).collect()
    }

    fn others(&self) -> Vec<WeightedTeacher<'_>> {
        let other = |i: usize| WeightedTeacher { decoder: &self.teachers[i], weight: WEIGHTS[i] };
        vec![other(1), other(2)]
    }

    fn targets<'t>(&self, live: LiveTeacher<'t>) -> Targets<'t> {
        Targets { rows: self.rows.clone(), live: Some(live), ..Targets::default() }
    }

    fn stored(&self, rows: &[Vec<SparseRow>], tail: Tail) -> Targets<'static> {
        let mut sparse = SparseBatch::new(tail);
        rows.iter().flatten().for_each(|row| sparse.push(row));
        Targets { rows: self.rows.clone(), sparse: Some(sparse), ..Targets::default() }
    }

    fn mixed<'t>(&'t self, others: &'t [WeightedTeacher<'t>]) -> LiveTeacher<'t> {
        let ensemble = Ensemble { weight: WEIGHTS[0], others };
        LiveTeacher::alone(&self.teachers[0], None).mixed(Some(ensemble))
    }

    /// log p of each supervised row, by the plain twin.
    fn exact(&self) -> Vec<Vec<f64>> {
        let all: Vec<Vec<f32>> = self.teachers.iter().map(|teacher| logits(teacher, &self.batch)).collect();
        let row = |&r: &u32| {
            let at = r as usize * VOCAB..(r as usize + 1) * VOCAB;
            let wide = all.iter().map(|z| z[at.clone()].iter().map(|&v| f64::from(v)).collect());
            let wide: Vec<Vec<f64>> = wide.collect();
            let pairs: Vec<(&[f64], f64)> = wide.iter().map(Vec::as_slice).zip(WEIGHTS).collect();
            reference::mixed_log_probs(&pairs)
        };
        self.rows.iter().map(row).collect()
    }
}

fn all(temperature: f32) -> [Term; 6] {
    [
        Divergence::ForwardKl,
        Divergence::ReverseKl,
        Divergence::Jsd { teacher_weight: 0.3 },
        Divergence::SkewKl { alpha: 0.1 },
        Divergence::SkewReverseKl { alpha: 0.1 },
        Divergence::Tvd,
    ]
    .map(|divergence| Term { divergence, weight: 1.0, temperature })
}

#[track_caller]
fn near(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        let most = tolerance * expected.abs().max(1.0);
        assert!((found - expected).abs() <= most, "{found} against {expected}");
    }
}

#[test]
fn what_is_stored_is_the_weighted_mean_and_its_own_entropy() {
    let class = Class::new(2);
    let others = class.others();
    let live = class.mixed(&others);
    let documents = slices(&class.documents);
    let found = live.top_k_targets(&documents, &class.wanted(), VOCAB, 1.0);
    let drawn = live.sampled_targets(&documents, &class.wanted(), 40, Spacing::Even, 1.0, &[1, 2, 3], 7);
    let logprobs = live.token_logprobs(&documents);
    let mut next = logprobs.iter().flatten().zip(documents.iter().flat_map(|ids| &ids[1..]));
    for ((row, draw), exact) in found.iter().flatten().zip(drawn.iter().flatten()).zip(class.exact()) {
        let entropy: f64 = exact.iter().map(|log_p| -log_p.exp() * log_p).sum();
        assert!((f64::from(row.teacher_entropy) - entropy).abs() < 1e-5);
        assert!((draw.teacher_entropy - row.teacher_entropy).abs() < 1e-6);
        for (&id, &p) in row.ids.iter().zip(&row.probs) {
            assert!((f64::from(p) - exact[id as usize].exp()).abs() < 1e-6);
        }
        for (&id, &share) in draw.ids.iter().zip(&draw.probs) {
            assert!((f64::from(share) - exact[id as usize].exp()).abs() < 1.0 / 40.0 + 1e-6);
        }
        let (&logprob, &id) = next.next().unwrap();
        assert!((f64::from(logprob) - exact[id as usize]).abs() < 1e-5);
    }
    assert!(next.next().is_none());
}

#[test]
fn all_ids_stored_equal_the_live_teachers_at_any_temperature() {
    let class = Class::new(2);
    let others = class.others();
    let live = class.mixed(&others);
    for temperature in [1.0, 2.0] {
        let terms = all(temperature);
        let beside = class.student.losses(&class.batch, &class.targets(live), &terms);
        let stored = live.top_k_targets(&slices(&class.documents), &class.wanted(), VOCAB, temperature);
        let cached = class.student.losses(&class.batch, &class.stored(&stored, Tail::Bucket), &terms);
        for i in 0..terms.len() {
            near(cached.divergence(i), beside.divergence(i), 2e-6 * temperature * temperature);
        }
    }
    let terms = all(1.0);
    let beside = class.student.losses(&class.batch, &class.targets(live), &terms[..1]);
    let kl = live.kl_rows_of_each(&[&class.student], &slices(&class.documents), &class.wanted());
    near(&kl[0].concat(), beside.divergence(0), 2e-6);
}

/// The gradient of all weights by some losses at once.
fn gradient(class: &Class, live: LiveTeacher<'_>) -> Vec<f32> {
    let terms = all(1.5);
    let terms = HeadTerms { hard_label: 0.0, divergences: &terms, scale: 0.1 };
    let mut state = TrainState::new(class.student.clone());
    state.accumulate(&class.batch, &class.targets(live), &terms);
    state.gradients().flat_map(|tensor| tensor.data).collect()
}

#[test]
fn the_same_teacher_twice_teaches_as_it_does_alone() {
    let class = Class::new(2);
    let alone = LiveTeacher::alone(&class.teachers[0], None);
    let others = [WeightedTeacher { decoder: &class.teachers[0], weight: 3.0 }];
    let twice = alone.mixed(Some(Ensemble { weight: 1.0, others: &others }));
    near(&gradient(&class, twice), &gradient(&class, alone), 2e-6);
    let documents = slices(&class.documents);
    near(&twice.token_logprobs(&documents).concat(), &alone.token_logprobs(&documents).concat(), 1e-6);
}

#[test]
fn threads_and_other_documents_change_no_bit() {
    let (one, three) = (Class::new(1), Class::new(3));
    let bits = |numbers: &[f32]| numbers.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let (of_one, of_three) = (one.others(), three.others());
    let (of_one, of_three) = (one.mixed(&of_one), three.mixed(&of_three));
    assert_eq!(bits(&gradient(&one, of_one)), bits(&gradient(&three, of_three)));
    let whole = of_one.top_k_targets(&slices(&one.documents), &one.wanted(), 9, 0.7);
    for (i, ids) in one.documents.iter().enumerate() {
        assert_eq!(of_three.top_k_targets(&[ids], &one.wanted()[i..=i], 9, 0.7)[0], whole[i]);
    }
}

/// Teachers whose tables are padded differently teach the ids that all have.
#[test]
fn paddings_of_any_teacher_take_no_part() {
    let class = Class::new(2);
    let wide = lively(shape(Family::Llama, 40, VOCAB + 13), 2, 6);
    let others = [WeightedTeacher { decoder: &wide, weight: 1.0 }];
    let ensemble = Some(Ensemble { weight: 1.0, others: &others });
    let live = LiveTeacher::alone(&class.teachers[0], Some(VOCAB)).mixed(ensemble);
    let rows = live.top_k_targets(&slices(&class.documents), &class.wanted(), VOCAB + 20, 1.0);
    for row in rows.iter().flatten() {
        assert!(row.ids.len() == VOCAB && row.ids.iter().all(|&id| (id as usize) < VOCAB));
        assert!((row.probs.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }
    let terms = all(1.0);
    let beside = class.student.losses(&class.batch, &class.targets(live), &terms);
    let cached = class.student.losses(&class.batch, &class.stored(&rows, Tail::Drop), &terms);
    (0..terms.len()).for_each(|i| near(cached.divergence(i), beside.divergence(i), 2e-6));
}

//! The divergence head with a list of divergences and a teacher at hand: its gradients, its invariances, what
//! it refuses.

mod common;

use common::{bits, close, numbers};
use stillroom_kernels::{
    DenseTargets, Device, Divergence, DivergenceError, HeadLosses, HeadTargets, HeadTerms, SparseTargets,
    TailMode, Term, Weight, logits_chunk_rows,
};

const WIDTH: usize = 12;
const TEACHER_WIDTH: usize = 20;
const TERMS: [Term; 3] = [
    Term { divergence: Divergence::Jsd { teacher_weight: 0.3 }, weight: 0.8, temperature: 1.0 },
    Term { divergence: Divergence::ReverseKl, weight: 0.5, temperature: 1.7 },
    Term { divergence: Divergence::ForwardKl, weight: 1.5, temperature: 1.0 },
];

fn all() -> [Divergence; 6] {
    let alpha = 0.1;
    [
        Divergence::ForwardKl,
        Divergence::ReverseKl,
        Divergence::Jsd { teacher_weight: 0.5 },
        Divergence::SkewKl { alpha },
        Divergence::SkewReverseKl { alpha },
        Divergence::Tvd,
    ]
}

/// Student and teacher of different width over `vocab` ids.
#[derive(Clone)]
struct Pair {
    vocab: usize,
    n: usize,
    hidden: Vec<f32>,
    w: Vec<f32>,
    teacher_vocab: usize,
    teacher_hidden: Vec<f32>,
    teacher_w: Vec<f32>,
    labels: Vec<u32>,
    n_ids: Option<usize>,
}

/// (losses, dhidden, dw).
type Outcome = (HeadLosses, Vec<f32>, Vec<f32>);

impl Pair {
    fn new(n: usize, vocab: usize) -> Pair {
        Pair {
            vocab,
            n,
            hidden: numbers(1, n * WIDTH),
            w: numbers(2, vocab * WIDTH),
            teacher_vocab: vocab,
            teacher_hidden: numbers(3, n * TEACHER_WIDTH),
            teacher_w: numbers(4, vocab * TEACHER_WIDTH),
            labels: (0..n).map(|r| (r * 13 % vocab.min(40)) as u32).collect(),
            n_ids: None,
        }
    }

    /// Rows `rows` only; the teacher's stay where they are.
    fn run_rows(&self, n_threads: usize, rows: std::ops::Range<usize>, terms: &HeadTerms<'_>) -> Outcome {
        let dev = Device::cpu(n_threads);
        let hidden = &self.hidden[rows.start * WIDTH..rows.end * WIDTH];
        let (hidden, w) = (dev.upload(hidden), dev.upload(&self.w));
        let (t_hidden, t_w) = (dev.upload(&self.teacher_hidden), dev.upload(&self.teacher_w));
        let head = Weight::Plain { w: &t_w, n_out: self.teacher_vocab, n_in: TEACHER_WIDTH };
        let targets = HeadTargets {
            hard_labels: Some(&self.labels[rows.clone()]),
            dense: Some(DenseTargets { hidden: &t_hidden, first_row: rows.start, head }),
            n_ids: self.n_ids,
            ..HeadTargets::default()
        };
        assert_eq!(targets.validate(terms, self.vocab), Ok(()));
        let (mut dh, mut dw) = (dev.zeros(hidden.len()), dev.zeros(self.w.len()));
        let mut losses = HeadLosses::default();
        dev.divergence_head(&mut dh, &mut dw, &hidden, &w, rows.len(), &targets, terms, &mut losses);
        let mut forward = HeadLosses::default();
        let packed = dev.pack(&w, self.vocab, WIDTH);
        dev.divergence_head_forward(&hidden, &packed, rows.len(), &targets, terms.divergences, &mut forward);
        assert_eq!(bits(&forward.hard_label), bits(&losses.hard_label));
        for i in 0..terms.divergences.len() {
            assert_eq!(bits(forward.divergence(i)), bits(losses.divergence(i)));
        }
        (losses, dev.download(&dh), dev.download(&dw))
    }

    fn run(&self, n_threads: usize, terms: &HeadTerms<'_>) -> Outcome {
        self.run_rows(n_threads, 0..self.n, terms)
    }

    /// The teacher's probabilities at a temperature, all ids of each row stored.
    fn stored(&self, temperature: f32) -> (Vec<u32>, Vec<u32>, Vec<f32>) {
        let dev = Device::cpu(1);
        let packed = dev.pack(&dev.upload(&self.teacher_w), self.vocab, TEACHER_WIDTH);
        let rows = std::sync::Mutex::new(vec![vec![]; self.n]);
        dev.for_each_logits_row(&dev.upload(&self.teacher_hidden), &packed, self.n, &|r, z| {
            rows.lock().expect("rows")[r] = softmax(z, temperature);
        });
        let offsets = (0..=self.n as u32).map(|r| r * self.vocab as u32).collect();
        let ids = (0..self.n).flat_map(|_| 0..self.vocab as u32).collect();
        (offsets, ids, rows.into_inner().expect("rows").concat())
    }
}

fn softmax(z: &[f32], temperature: f32) -> Vec<f32> {
    let top = z.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let e: Vec<f64> = z.iter().map(|v| f64::from((v - top) / temperature).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|e| (e / sum) as f32).collect()
}

fn total(losses: &HeadLosses, terms: &HeadTerms<'_>) -> f64 {
    let sum = |x: &[f32]| x.iter().map(|&v| f64::from(v)).sum::<f64>();
    let divergences = terms.divergences.iter().enumerate();
    let divergences: f64 = divergences.map(|(i, t)| f64::from(t.weight) * sum(losses.divergence(i))).sum();
    f64::from(terms.scale) * (f64::from(terms.hard_label) * sum(&losses.hard_label) + divergences)
}

#[test]
fn gradients_through_the_head_match_finite_differences() {
    let terms = HeadTerms { hard_label: 0.4, divergences: &TERMS, scale: 0.1 };
    let mut pair = Pair::new(6, 45);
    pair.n_ids = Some(41);
    let (_, dh, dw) = pair.run(1, &terms);
    let h = 1e-2f32;
    let mut check = |pick: fn(&mut Pair) -> &mut Vec<f32>, k: usize, analytic: f32| {
        let at = pick(&mut pair)[k];
        let mut moved = |by: f32| {
            pick(&mut pair)[k] = at + by;
            total(&pair.run(1, &terms).0, &terms)
        };
        let numeric = (moved(h) - moved(-h)) / f64::from(2.0 * h);
        moved(0.0);
        assert!((numeric - f64::from(analytic)).abs() < 2e-4, "{k}: {numeric} against {analytic}");
    };
    (0..dh.len()).step_by(5).for_each(|k| check(|p| &mut p.hidden, k, dh[k]));
    (0..dw.len()).step_by(17).for_each(|k| check(|p| &mut p.w, k, dw[k]));
}

#[test]
fn threads_and_the_rows_around_change_no_bit() {
    let terms = HeadTerms { hard_label: 0.4, divergences: &TERMS, scale: 0.1 };
    let pair = Pair::new(130, 300);
    let one = pair.run(1, &terms);
    for n_threads in [2, 3] {
        let other = pair.run(n_threads, &terms);
        assert_eq!((bits(&other.1), bits(&other.2)), (bits(&one.1), bits(&one.2)));
    }
    let some = pair.run_rows(2, 40..71, &terms);
    assert_eq!(bits(&some.1), bits(&one.1[40 * WIDTH..71 * WIDTH]));
    for i in 0..3 {
        assert_eq!(bits(some.0.divergence(i)), bits(&one.0.divergence(i)[40..71]));
    }
}

#[test]
fn several_chunks_give_what_one_gives() {
    let (n, vocab) = (50, 150_000);
    assert!(logits_chunk_rows(2 * vocab) < n, "one chunk is no test");
    let terms = HeadTerms { hard_label: 0.4, divergences: &TERMS[..2], scale: 1.0 };
    let pair = Pair::new(n, vocab);
    let whole = pair.run(2, &terms);
    let (first, second) = (pair.run_rows(2, 0..23, &terms), pair.run_rows(2, 23..n, &terms));
    assert_eq!(bits(&whole.1), bits(&[first.1, second.1].concat()));
    let summed: Vec<f32> = first.2.iter().zip(&second.2).map(|(a, b)| a + b).collect();
    close(&whole.2, &summed, 1e-6);
    for i in 0..2 {
        let parts = [first.0.divergence(i), second.0.divergence(i)].concat();
        assert_eq!(bits(whole.0.divergence(i)), bits(&parts));
    }
}

/// What the logits take, teacher's and student's, at 4,096 rows and any usual vocabulary.
#[test]
fn logits_take_at_most_64_mb() {
    for vocab in [49_152, 128_256, 151_936, 262_144] {
        for n_logits in [vocab, 2 * vocab] {
            let bytes = 4 * n_logits * logits_chunk_rows(n_logits).min(4096);
            assert!(bytes <= 64_000_000, "{n_logits}: {bytes}");
        }
    }
}

#[test]
fn a_cache_of_all_ids_equals_the_live_teacher() {
    let pair = Pair::new(9, 77);
    for temperature in [1.0, 2.0] {
        let (offsets, ids, probs) = pair.stored(temperature);
        for divergence in all() {
            let terms = [Term { divergence, weight: 1.0, temperature }];
            let terms = HeadTerms { hard_label: 0.0, divergences: &terms, scale: 1.0 };
            let live = pair.run(1, &terms);
            for tail in [TailMode::Drop, TailMode::Bucket, TailMode::Uniform] {
                let dev = Device::cpu(1);
                let sparse =
                    SparseTargets { offsets: &offsets, ids: &ids, probs: &probs, teacher_entropy: &[], tail };
                let targets = HeadTargets { sparse: Some(sparse), ..HeadTargets::default() };
                let (hidden, w) = (dev.upload(&pair.hidden), dev.upload(&pair.w));
                let (mut dh, mut dw) = (dev.zeros(pair.hidden.len()), dev.zeros(pair.w.len()));
                let mut cached = HeadLosses::default();
                dev.divergence_head(&mut dh, &mut dw, &hidden, &w, pair.n, &targets, &terms, &mut cached);
                close(cached.divergence(0), live.0.divergence(0), 1e-6);
                close(&dev.download(&dh), &live.1, 2e-6);
                close(&dev.download(&dw), &live.2, 2e-6);
                close(&cached.captured_mass, &live.0.captured_mass, 1e-6);
            }
        }
    }
}

/// Ids without a token: whatever the heads hold there, nothing of it is seen, and nothing of it learns.
#[test]
fn a_padded_vocabulary_is_as_if_it_ended() {
    let terms = HeadTerms { hard_label: 0.4, divergences: &TERMS, scale: 0.1 };
    let plain = Pair::new(7, 50);
    let mut padded = Pair { vocab: 64, teacher_vocab: 56, n_ids: Some(50), ..plain.clone() };
    // Large numbers, so that a padded id would win every softmax.
    padded.w.extend(numbers(8, 14 * WIDTH).iter().map(|v| v * 50.0));
    padded.teacher_w.extend(numbers(9, 6 * TEACHER_WIDTH).iter().map(|v| v * 50.0));
    let (expected, found) = (plain.run(1, &terms), padded.run(1, &terms));
    assert_eq!(bits(&found.0.hard_label), bits(&expected.0.hard_label));
    for i in 0..3 {
        assert_eq!(bits(found.0.divergence(i)), bits(expected.0.divergence(i)));
    }
    close(&found.1, &expected.1, 1e-7);
    assert_eq!(bits(&found.2[..50 * WIDTH]), bits(&expected.2));
    assert!(found.2[50 * WIDTH..].iter().all(|&v| v == 0.0));
}

#[test]
fn each_term_is_reported_apart_and_mass_beside_it() {
    let pair = Pair::new(5, 30);
    let together = pair.run(1, &HeadTerms { hard_label: 1.0, divergences: &TERMS, scale: 1.0 });
    for (i, term) in TERMS.iter().enumerate() {
        let alone = pair.run(1, &HeadTerms { hard_label: 0.0, divergences: &[*term], scale: 1.0 });
        assert_eq!(bits(alone.0.divergence(0)), bits(together.0.divergence(i)));
        assert!(alone.0.divergence(1).is_empty());
    }
    assert_eq!(together.0.captured_mass, [1.0; 5]);

    let dev = Device::cpu(1);
    let sparse = SparseTargets {
        offsets: &[0, 2, 3],
        ids: &[4, 9, 1],
        probs: &[0.5, 0.25, 0.125],
        teacher_entropy: &[],
        tail: TailMode::Bucket,
    };
    let targets = HeadTargets { sparse: Some(sparse), ..HeadTargets::default() };
    let (hidden, w) = (dev.upload(&pair.hidden[..2 * WIDTH]), dev.pack(&dev.upload(&pair.w), 30, WIDTH));
    let mut losses = HeadLosses::default();
    dev.divergence_head_forward(&hidden, &w, 2, &targets, &TERMS[..1], &mut losses);
    assert_eq!(losses.captured_mass, [0.75, 0.125]);
    assert!(losses.hard_label.is_empty());
    losses.clear();
    assert!(losses.divergence(0).is_empty() && losses.captured_mass.is_empty());
}

#[test]
fn no_supervised_row_is_no_loss_and_no_gradient() {
    let terms = HeadTerms { hard_label: 0.4, divergences: &TERMS, scale: 0.1 };
    let (losses, dh, dw) = Pair::new(5, 30).run_rows(1, 2..2, &terms);
    assert!(losses.hard_label.is_empty() && losses.divergence(0).is_empty() && dh.is_empty());
    assert!(dw.iter().all(|&v| v == 0.0));
}

#[test]
fn what_targets_cannot_give_is_refused_before_any_work() {
    let dev = Device::cpu(1);
    let (hidden, w) = (dev.zeros(4), dev.zeros(20));
    let dense = Some(DenseTargets {
        hidden: &hidden,
        first_row: 0,
        head: Weight::Plain { w: &w, n_out: 5, n_in: 4 },
    });
    let sparse = |tail| {
        Some(SparseTargets { offsets: &[0, 1], ids: &[0], probs: &[0.5], teacher_entropy: &[0.1], tail })
    };
    let none = HeadTargets::default();
    let check = |targets: HeadTargets<'_>, divergences: &[Term]| {
        targets.validate(&HeadTerms { hard_label: 0.5, divergences, scale: 1.0 }, 7)
    };
    let (jsd, forward_kl) = ([TERMS[0]], [TERMS[2]]);
    assert_eq!(check(none, &[]), Ok(()));
    assert_eq!(check(none, &jsd), Err(DivergenceError::NoTeacher { divergence: "jsd" }));
    let both = HeadTargets { sparse: sparse(TailMode::Drop), dense, n_ids: Some(5), ..none };
    assert_eq!(check(both, &jsd), Err(DivergenceError::TwoTeachers));
    // Seven ids here, five there.
    let unknown = HeadTargets { dense, ..none };
    let refused = DivergenceError::Vocabularies { student: 7, teacher: 5, n_ids: None };
    assert_eq!(check(unknown, &jsd), Err(refused));
    assert!(check(HeadTargets { n_ids: Some(6), ..unknown }, &jsd).is_err());
    assert_eq!(check(HeadTargets { n_ids: Some(5), ..unknown }, &TERMS), Ok(()));
    let counts = HeadTargets { sparse: sparse(TailMode::None), ..none };
    assert_eq!(check(counts, &jsd), Err(DivergenceError::Counts { divergence: "jsd" }));
    assert_eq!(check(counts, &forward_kl), Ok(()));
    let stored = HeadTargets { sparse: sparse(TailMode::Bucket), ..none };
    assert_eq!(check(stored, &TERMS), Err(DivergenceError::Temperatures { first: 1.0, other: 1.7 }));
    assert_eq!(check(stored, &jsd), Ok(()));
}

//! Several teachers as one: against PyTorch (golden file by `oracles/several_teachers.py`), against the plain twin, and
//! what changes no bit.

mod common;

use std::sync::Mutex;

use common::{bits, close, numbers};
use serde::Deserialize;
use stillroom_kernels::{
    Buf, DenseTargets, Device, Divergence, DivergenceError, ForeignVocabulary, HeadLosses, HeadTargets,
    HeadTerms, MatchedIds, Mixture, Term, Weight, logits_chunk_rows, reference,
};

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    rows: usize,
    n_ids: usize,
    hidden: Vec<f32>,
    head: Vec<f32>,
    teachers: Vec<Teacher>,
    log_p: Vec<f32>,
    values: Vec<Value>,
}

#[derive(Clone, Deserialize)]
struct Teacher {
    width: usize,
    hidden: Vec<f32>,
    head: Vec<f32>,
    weight: f64,
}

#[derive(Deserialize)]
struct Value {
    divergence: String,
    parameter: f32,
    temperature: f32,
    losses: Vec<f32>,
    dhidden: Vec<f32>,
    dhead: Vec<f32>,
}

/// A teacher's numbers on a device.
struct Held {
    hidden: Buf,
    head: Buf,
    width: usize,
    weight: f64,
}

impl Held {
    fn of(dev: &Device, teacher: &Teacher) -> Held {
        let (hidden, head) = (dev.upload(&teacher.hidden), dev.upload(&teacher.head));
        Held { hidden, head, width: teacher.width, weight: teacher.weight }
    }

    fn dense(&self, first_row: usize) -> DenseTargets<'_> {
        let head = Weight::Plain { w: &self.head, n_out: self.head.len() / self.width, n_in: self.width };
        DenseTargets { hidden: &self.hidden, first_row, head }
    }
}

fn mixture(held: &[Held], first_row: usize) -> Mixture<'_> {
    Mixture::new(held[0].weight, held[1..].iter().map(|held| (held.dense(first_row), held.weight)))
}

fn divergence(value: &Value) -> Divergence {
    match value.divergence.as_str() {
        "forward_kl" => Divergence::ForwardKl,
        "reverse_kl" => Divergence::ReverseKl,
        "jsd" => Divergence::Jsd { teacher_weight: value.parameter },
        "skew_kl" => Divergence::SkewKl { alpha: value.parameter },
        "tvd" => Divergence::Tvd,
        other => panic!("{other}"),
    }
}

/// Rows of a student and its teachers, all of one width.
struct Setting {
    vocab: usize,
    hidden: Vec<f32>,
    w: Vec<f32>,
    teachers: Vec<Teacher>,
}

const WIDTH: usize = 8;
const TERMS: [Term; 2] = [
    Term { divergence: Divergence::Jsd { teacher_weight: 0.3 }, weight: 0.8, temperature: 1.0 },
    Term { divergence: Divergence::ForwardKl, weight: 0.5, temperature: 2.0 },
];

impl Setting {
    fn new(n: usize, vocab: usize, weights: &[f64]) -> Setting {
        let teacher = |(i, &weight): (usize, &f64)| Teacher {
            width: WIDTH,
            hidden: numbers(10 + i as u64, n * WIDTH),
            head: numbers(20 + i as u64, vocab * WIDTH),
            weight,
        };
        let teachers = weights.iter().enumerate().map(teacher).collect();
        Setting { vocab, hidden: numbers(1, n * WIDTH), w: numbers(2, vocab * WIDTH), teachers }
    }

    /// Losses, dhidden and dw of some rows; of the first teacher alone or of all.
    fn run(
        &self,
        n_threads: usize,
        rows: std::ops::Range<usize>,
        mixed: bool,
    ) -> (HeadLosses, Vec<f32>, Vec<f32>) {
        let dev = Device::cpu(n_threads);
        let held: Vec<Held> = self.teachers.iter().map(|teacher| Held::of(&dev, teacher)).collect();
        let targets = HeadTargets {
            dense: Some(held[0].dense(rows.start)),
            mixture: mixed.then(|| mixture(&held, rows.start)),
            ..HeadTargets::default()
        };
        let terms = HeadTerms { hard_label: 0.0, divergences: &TERMS, scale: 1.0 };
        assert_eq!(targets.validate(&terms, self.vocab), Ok(()));
        let hidden = dev.upload(&self.hidden[rows.start * WIDTH..rows.end * WIDTH]);
        let w = dev.upload(&self.w);
        let (mut dh, mut dw) = (dev.zeros(hidden.len()), dev.zeros(w.len()));
        let mut losses = HeadLosses::default();
        dev.divergence_head(&mut dh, &mut dw, &hidden, &w, rows.len(), &targets, &terms, &mut losses);
        (losses, dev.download(&dh), dev.download(&dw))
    }
}

#[test]
fn losses_and_gradients_equal_pytorch() {
    let golden: Golden =
        serde_json::from_str(include_str!("golden/several_teachers.json")).expect("golden file");
    let mut seen = 0;
    for case in golden.cases {
        let dev = Device::cpu(2);
        let held: Vec<Held> = case.teachers.iter().map(|teacher| Held::of(&dev, teacher)).collect();
        let (hidden, w) = (dev.upload(&case.hidden), dev.upload(&case.head));
        for value in &case.values {
            let targets = HeadTargets {
                dense: Some(held[0].dense(0)),
                mixture: Some(mixture(&held, 0)),
                n_ids: Some(case.n_ids),
                ..HeadTargets::default()
            };
            let terms = [Term { divergence: divergence(value), weight: 1.0, temperature: value.temperature }];
            let terms = HeadTerms { hard_label: 0.0, divergences: &terms, scale: 1.0 };
            assert_eq!(targets.validate(&terms, w.len() / (hidden.len() / case.rows)), Ok(()));
            let (mut dh, mut dw) = (dev.zeros(hidden.len()), dev.zeros(w.len()));
            let mut losses = HeadLosses::default();
            dev.divergence_head(&mut dh, &mut dw, &hidden, &w, case.rows, &targets, &terms, &mut losses);
            close(losses.divergence(0), &value.losses, 3e-6);
            close(&dev.download(&dh), &value.dhidden, 5e-6);
            close(&dev.download(&dw), &value.dhead, 5e-6);
            assert!(losses.captured_mass.iter().all(|&mass| mass == 1.0));
            seen += 1;
        }
        let rows = Mutex::new(vec![vec![]; case.rows]);
        dev.for_each_mixed_row(held[0].dense(0), &mixture(&held, 0), case.n_ids, case.rows, &|r, log_p| {
            rows.lock().expect("rows")[r] = log_p.to_vec();
        });
        close(&rows.into_inner().expect("rows").concat(), &case.log_p, 1e-6);
    }
    assert_eq!(seen, 20);
}

/// An id that one teacher, or none, can write; and numbers far from each other.
#[test]
fn log_probabilities_equal_the_plain_twin_even_of_impossible_ids() {
    let dev = Device::cpu(1);
    let (first, second) = ([0.0, -200.0, f32::NEG_INFINITY, 3.0], [60.0, 1.0, f32::NEG_INFINITY, -1e30]);
    let of = |logits: [f32; 4], weight| Held {
        hidden: dev.upload(&[1.0]),
        head: dev.upload(&logits),
        width: 1,
        weight,
    };
    let held = [of(first, 3.0), of(second, 1.0)];
    let found = Mutex::new(Vec::new());
    dev.for_each_mixed_row(held[0].dense(0), &mixture(&held, 0), 4, 1, &|_, log_p| {
        found.lock().expect("row").extend_from_slice(log_p);
    });
    let found = found.into_inner().expect("row");
    let (first, second) = (first.map(f64::from), second.map(f64::from));
    let exact = reference::mixed_log_probs(&[(&first, 3.0), (&second, 1.0)]);
    for (found, exact) in found.iter().zip(&exact) {
        let same = f64::from(*found) == *exact || (f64::from(*found) - exact).abs() < 1e-5;
        assert!(same, "{found} against {exact}");
    }
    assert_eq!(found[2], f32::NEG_INFINITY);
}

#[test]
fn the_same_teacher_twice_is_that_teacher() {
    let mut setting = Setting::new(9, 60, &[0.3, 0.7]);
    setting.teachers[1] = Teacher { weight: 0.7, ..setting.teachers[0].clone() };
    let (alone, twice) = (setting.run(1, 0..9, false), setting.run(1, 0..9, true));
    // A log p of 8 nats is known to 5e-7, and the mixture rounds it once more.
    close(twice.0.divergence(0), alone.0.divergence(0), 3e-6);
    close(twice.0.divergence(1), alone.0.divergence(1), 3e-6);
    close(&twice.1, &alone.1, 2e-6);
    close(&twice.2, &alone.2, 2e-6);
}

#[test]
fn threads_chunks_and_the_rows_around_change_no_bit() {
    let (n, vocab) = (70, 60_000);
    assert!(logits_chunk_rows(3 * vocab) < n, "one chunk is no test");
    let setting = Setting::new(n, vocab, &[1.0, 2.0, 0.25]);
    let one = setting.run(1, 0..n, true);
    let other = setting.run(3, 0..n, true);
    assert_eq!((bits(&other.1), bits(&other.2)), (bits(&one.1), bits(&one.2)));
    let some = setting.run(2, 31..52, true);
    assert_eq!(bits(&some.1), bits(&one.1[31 * WIDTH..52 * WIDTH]));
    for i in 0..TERMS.len() {
        assert_eq!(bits(some.0.divergence(i)), bits(&one.0.divergence(i)[31..52]));
    }
}

#[test]
fn teachers_that_cannot_be_mixed_are_refused_before_any_work() {
    let dev = Device::cpu(1);
    let of = |vocab: usize| Held { hidden: dev.zeros(4), head: dev.zeros(4 * vocab), width: 4, weight: 1.0 };
    let check = |tables: [usize; 2], n_ids, foreign| {
        let held = tables.map(of);
        let (dense, mixture) = (Some(held[0].dense(0)), Some(mixture(&held, 0)));
        let targets = HeadTargets { dense, mixture, n_ids, foreign, ..HeadTargets::default() };
        targets.validate(&HeadTerms { hard_label: 0.0, divergences: &TERMS, scale: 1.0 }, 7)
    };
    assert_eq!(check([7, 7], None, None), Ok(()));
    assert_eq!(check([7, 9], Some(7), None), Ok(()));
    assert!(matches!(check([7, 9], None, None), Err(DivergenceError::Vocabularies { n_ids: None, .. })));
    assert!(matches!(check([9, 6], Some(7), None), Err(DivergenceError::Vocabularies { teacher: 6, .. })));
    let (matched, paired) = (MatchedIds::new(7, 7, vec![(0, 0)]), [true]);
    let foreign = Some(ForeignVocabulary { matched: &matched, paired: &paired });
    assert_eq!(check([7, 7], None, foreign), Err(DivergenceError::SeveralTeachers));
}

#[test]
#[should_panic(expected = "a teacher's weight is positive and finite")]
fn a_teacher_without_weight_is_a_mistake() {
    let dev = Device::cpu(1);
    let held = Held { hidden: dev.zeros(4), head: dev.zeros(4), width: 4, weight: 0.0 };
    let _ = Mixture::new(1.0, [(held.dense(0), held.weight)]);
}

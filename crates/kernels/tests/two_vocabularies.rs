//! `uld` and `gold` against TRL's own code (golden file by `oracles/cross_tokenizer.py`), against their plain twin in f64,
//! and against what must hold of them whatever the numbers.

mod common;

use common::{bits, close, numbers};
use serde::Deserialize;
use stillroom_kernels::{
    DenseTargets, Device, Divergence, DivergenceError, ForeignRow, ForeignVocabulary, HeadLosses,
    HeadTargets, HeadTerms, MatchedIds, SparseTargets, TailMode, TeacherRow, Term, Weight, reference,
    row_losses,
};

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    beta: Option<f32>,
    temperature: f32,
    pairs: Vec<(u32, u32)>,
    logits: Vec<f32>,
    teacher_logits: Vec<f32>,
    loss: f64,
    grad: Vec<f64>,
}

fn divergence(beta: Option<f32>) -> Divergence {
    beta.map_or(Divergence::Uld, |teacher_weight| Divergence::Gold { teacher_weight })
}

/// Loss and gradient of some terms.
fn taken(terms: &[Term], z: &[f32], t: &[f32], matched: &MatchedIds) -> (Vec<f32>, Vec<f32>) {
    let teacher = TeacherRow::Foreign(ForeignRow { logits: t, matched });
    let terms = HeadTerms { hard_label: 0.0, divergences: terms, scale: 1.0 };
    let (mut z, mut kept) = (z.to_vec(), vec![f32::NAN; teacher.n_kept()]);
    let mut losses = vec![f32::NAN; terms.divergences.len()];
    row_losses(&mut z, &mut kept, None, Some(&teacher), &terms, &mut losses);
    (losses, z)
}

fn term(beta: Option<f32>, temperature: f32) -> Term {
    Term { divergence: divergence(beta), weight: 1.0, temperature }
}

fn one(beta: Option<f32>, temperature: f32, z: &[f32], t: &[f32], matched: &MatchedIds) -> (f32, Vec<f32>) {
    let (losses, gradient) = taken(&[term(beta, temperature)], z, t, matched);
    (losses[0], gradient)
}

fn f64s(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| f64::from(v)).collect()
}

fn f32s(x: &[f64]) -> Vec<f32> {
    x.iter().map(|&v| v as f32).collect()
}

#[test]
fn values_and_gradients_are_those_of_trl() {
    let golden: Golden =
        serde_json::from_str(include_str!("golden/two_vocabularies.json")).expect("a golden file");
    assert!(golden.cases.len() >= 40);
    for case in &golden.cases {
        let (z, t) = (&case.logits, &case.teacher_logits);
        let matched = MatchedIds::new(z.len(), t.len(), case.pairs.clone());
        let (loss, gradient) = one(case.beta, case.temperature, z, t, &matched);
        // TRL's matched part takes no probability for less than 1e-8; f32 is coarser than that.
        close(&[loss], &[case.loss as f32], 1e-6);
        close(&gradient, &f32s(&case.grad), 1e-6);
    }
    let ids = MatchedIds::new(5, 5, Vec::new());
    let (loss, _) = one(None, 1.0, &[0.5, -1.0, 2.0, 0.0, 0.3], &[1.0, 0.0, 1.5, -2.0, 0.7], &ids);
    assert!((loss - 0.427_450_2).abs() < 1e-6, "{loss}");
}

#[test]
fn rows_of_thousands_are_those_of_the_plain_twin_and_gradients_add_up_to_nothing() {
    for (n, m, n_pairs) in [(3000, 1700, 900), (700, 2100, 0), (513, 513, 513), (1, 9, 1)] {
        let z: Vec<f32> = numbers(5, n).iter().map(|v| 6.0 * v).collect();
        let t: Vec<f32> = numbers(6, m).iter().map(|v| 6.0 * v).collect();
        let pairs: Vec<(u32, u32)> =
            (0..n_pairs as u32).map(|k| (k * 2 % n as u32, m as u32 - 1 - k)).collect();
        let pairs = if n == m { (0..n as u32).map(|i| (i, i)).collect() } else { pairs };
        let matched = MatchedIds::new(n, m, pairs.clone());
        let wide: Vec<(usize, usize)> = pairs.iter().map(|&(j, i)| (j as usize, i as usize)).collect();
        for beta in [None, Some(0.0), Some(0.5), Some(1.0)] {
            for temperature in [1.0, 2.5] {
                let (loss, gradient) = one(beta, temperature, &z, &t, &matched);
                let (expected, slope) =
                    reference::two_vocabularies(beta, &f64s(&z), &f64s(&t), &wide, f64::from(temperature));
                close(&[loss], &[expected as f32], 1e-5);
                close(&gradient, &f32s(&slope), 1e-6);
                let sum: f64 = gradient.iter().map(|&g| f64::from(g)).sum();
                assert!(sum.abs() < 1e-5, "{beta:?} {temperature}: {sum}");
            }
        }
    }
}

#[test]
fn the_twins_gradient_is_a_central_difference() {
    let (z, t) = (f64s(&numbers(7, 11)), f64s(&numbers(8, 6)));
    let pairs = [(0, 5), (3, 1), (10, 2)];
    for beta in [None, Some(0.0), Some(0.25), Some(1.0)] {
        let value = |z: &[f64]| reference::two_vocabularies(beta, z, &t, &pairs, 1.5);
        let (_, gradient) = value(&z);
        for (j, slope) in gradient.iter().enumerate() {
            let at = |by: f64| {
                let mut z = z.clone();
                z[j] += by;
                value(&z).0
            };
            let found = (at(1e-6) - at(-1e-6)) / 2e-6;
            assert!((found - slope).abs() < 1e-8, "{beta:?} {j}: {found} {slope}");
        }
    }
}

#[test]
fn several_terms_and_temperatures_add_up() {
    let (z, t) = (numbers(9, 40), numbers(10, 31));
    let matched = MatchedIds::new(40, 31, vec![(1, 1), (7, 30), (39, 4)]);
    let terms = [term(None, 1.0), Term { weight: 0.5, ..term(Some(0.5), 3.0) }, term(None, 2.0)];
    let (losses, gradient) = taken(&terms, &z, &t, &matched);
    let mut sum = vec![0.0; 40];
    for (term, loss) in terms.iter().zip(losses) {
        let (alone, part) = taken(std::slice::from_ref(term), &z, &t, &matched);
        assert_eq!(alone[0].to_bits(), loss.to_bits());
        sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    close(&gradient, &sum, 1e-6);
}

#[test]
fn uld_does_not_know_which_token_has_which_probability() {
    // The known weakness: the teacher's probabilities on all the wrong tokens are a loss of 0 …
    let t = numbers(11, 50);
    let wrong: Vec<f32> = t.iter().rev().copied().collect();
    let none = MatchedIds::new(50, 50, Vec::new());
    let (loss, gradient) = one(None, 1.0, &wrong, &t, &none);
    assert!(loss < 1e-6, "{loss}");
    assert!(gradient.iter().all(|g| g.abs() < 0.05), "signs of rounding, at most");
    // … which what is known of the vocabularies makes good.
    let all = MatchedIds::new(50, 50, (0..50).map(|i| (i, i)).collect());
    assert!(one(Some(0.0), 1.0, &wrong, &t, &all).0 > 0.1);
    assert!(one(Some(0.0), 1.0, &t, &t, &all).0.abs() < 1e-6);
    // Renaming ids on both sides changes nothing but their order.
    let (z, m) = (numbers(12, 50), MatchedIds::new(50, 50, vec![(0, 3), (4, 4)]));
    let (loss, gradient) = one(Some(0.5), 1.0, &z, &t, &m);
    let mut turned = z.clone();
    turned.rotate_left(1);
    let renamed = MatchedIds::new(50, 50, vec![(49, 3), (3, 4)]);
    let (same, mut moved) = one(Some(0.5), 1.0, &turned, &t, &renamed);
    moved.rotate_right(1);
    close(&[same], &[loss], 1e-6);
    close(&moved, &gradient, 1e-6);
}

#[test]
fn everything_matched_is_the_plain_divergence_and_equal_probabilities_pull_alike() {
    let (z, t) = (numbers(13, 30), numbers(14, 30));
    let all = MatchedIds::new(30, 30, (0..30).map(|i| (i, i)).collect());
    for (beta, plain) in [(0.0, Divergence::ForwardKl), (0.5, Divergence::Jsd { teacher_weight: 0.5 })] {
        let (loss, gradient) = one(Some(beta), 2.0, &z, &t, &all);
        let terms = [Term { divergence: plain, weight: 1.0, temperature: 2.0 }];
        let terms = HeadTerms { hard_label: 0.0, divergences: &terms, scale: 1.0 };
        let (mut expected, mut losses) = (z.clone(), [0.0]);
        row_losses(&mut expected, &mut [], None, Some(&TeacherRow::Logits(&t)), &terms, &mut losses);
        close(&[loss], &losses, 1e-6);
        close(&gradient, &expected, 1e-6);
    }
    // A uniform student: no id is more or less than another.
    let none = MatchedIds::new(4, 9, Vec::new());
    let (loss, gradient) = one(None, 1.0, &[0.5; 4], &t[..9], &none);
    assert!(loss > 0.1 && gradient.iter().all(|&g| g.abs() < 1e-7), "{gradient:?}");
}

const WIDTH: usize = 12;
const ROWS: usize = 150;

/// Losses, dhidden and dw of a head whose teacher has 61 ids, the last of them padding, with 4 ids of the student's padding.
fn head(n_threads: usize, paired: &[bool], terms: &[Term]) -> (HeadLosses, Vec<f32>, Vec<f32>) {
    let dev = Device::cpu(n_threads);
    let (vocab, teacher_vocab) = (84, 61);
    let upload = |seed, n| dev.upload(&numbers(seed, n));
    let (hidden, w) = (upload(1, ROWS * WIDTH), upload(2, vocab * WIDTH));
    let (t_hidden, t_w) = (upload(3, ROWS * 8), upload(4, teacher_vocab * 8));
    let weight = Weight::Plain { w: &t_w, n_out: teacher_vocab, n_in: 8 };
    let matched = MatchedIds::new(80, 60, (0..30).map(|k| (2 * k, k)).collect());
    let targets = HeadTargets {
        dense: Some(DenseTargets { hidden: &t_hidden, first_row: 0, head: weight }),
        foreign: Some(ForeignVocabulary { matched: &matched, paired }),
        n_ids: Some(80),
        ..HeadTargets::default()
    };
    let terms = HeadTerms { hard_label: 0.0, divergences: terms, scale: 1.0 };
    assert_eq!(targets.validate(&terms, vocab), Ok(()));
    let (mut dh, mut dw) = (dev.zeros(hidden.len()), dev.zeros(w.len()));
    let mut losses = HeadLosses::default();
    dev.divergence_head(&mut dh, &mut dw, &hidden, &w, ROWS, &targets, &terms, &mut losses);
    (losses, dev.download(&dh), dev.download(&dw))
}

#[test]
fn rows_without_a_partner_and_padding_have_no_loss_and_no_gradient() {
    let paired: Vec<bool> = (0..ROWS).map(|r| r % 3 != 1).collect();
    let terms = [term(None, 1.0), term(Some(0.5), 2.0)];
    let (losses, dh, dw) = head(1, &paired, &terms);
    for r in 0..ROWS {
        let dh = &dh[r * WIDTH..(r + 1) * WIDTH];
        assert_eq!(losses.captured_mass[r], f32::from(u8::from(paired[r])));
        assert_eq!(losses.divergence(0)[r] > 0.0, paired[r]);
        assert_eq!(losses.divergence(1)[r] != 0.0, paired[r]);
        assert_eq!(dh.iter().any(|&g| g != 0.0), paired[r]);
    }
    assert!(dw[80 * WIDTH..].iter().all(|&g| g == 0.0), "padding");
    assert!(dw[79 * WIDTH..80 * WIDTH].iter().any(|&g| g != 0.0));
    let (again, dh_again, dw_again) = head(3, &paired, &terms);
    assert_eq!(bits(again.divergence(1)), bits(losses.divergence(1)), "whatever the threads");
    assert_eq!((bits(&dh_again), bits(&dw_again)), (bits(&dh), bits(&dw)));
}

#[test]
fn each_teacher_gives_the_losses_of_its_vocabulary_only() {
    let dev = Device::cpu(1);
    let (hidden, w) = (dev.zeros(8), dev.zeros(9 * 8));
    let dense =
        DenseTargets { hidden: &hidden, first_row: 0, head: Weight::Plain { w: &w, n_out: 9, n_in: 8 } };
    let matched = MatchedIds::new(5, 9, vec![(0, 0)]);
    let foreign = Some(ForeignVocabulary { matched: &matched, paired: &[true] });
    let none = HeadTargets::default();
    let check = |targets: HeadTargets<'_>, divergence| {
        let terms = [Term { divergence, weight: 1.0, temperature: 1.0 }];
        targets.validate(&HeadTerms { hard_label: 0.0, divergences: &terms, scale: 1.0 }, 5)
    };
    let other = HeadTargets { dense: Some(dense), foreign, ..none };
    assert_eq!(check(other, Divergence::Uld), Ok(()));
    assert_eq!(check(other, Divergence::Gold { teacher_weight: 1.0 }), Ok(()));
    assert!(matches!(
        check(other, Divergence::Gold { teacher_weight: 1e-6 }),
        Err(DivergenceError::TeacherWeight { .. })
    ));
    let refused = Err(DivergenceError::Vocabulary { divergence: "forward_kl", of_two: false });
    assert_eq!(check(other, Divergence::ForwardKl), refused);
    let own = HeadTargets { dense: Some(dense), n_ids: Some(5), ..none };
    let refused = Err(DivergenceError::Vocabulary { divergence: "uld", of_two: true });
    assert_eq!(check(own, Divergence::Uld), refused);
    let sparse =
        SparseTargets { offsets: &[0], ids: &[], probs: &[], teacher_entropy: &[], tail: TailMode::Bucket };
    assert_eq!(check(HeadTargets { sparse: Some(sparse), ..none }, Divergence::Uld), refused);
    // A vocabulary that is not the head's.
    let short = HeadTargets { n_ids: Some(4), ..other };
    assert!(matches!(check(short, Divergence::Uld), Err(DivergenceError::Vocabularies { .. })));
}

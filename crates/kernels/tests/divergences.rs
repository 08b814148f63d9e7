//! Every divergence against PyTorch and TRL (golden file by `oracles/divergences.py`), against its plain
//! twin in f64, and against what must hold of it whatever the numbers.

mod common;

use common::{bits, close, numbers};
use serde::Deserialize;
use stillroom_kernels::divergence::REST_MIN;
use stillroom_kernels::{
    Divergence, HeadTerms, SparseRow, TailMode, TeacherRow, Term, reference, row_losses,
};

const JSD: Divergence = Divergence::Jsd { teacher_weight: 0.5 };
const ALL: [Divergence; 8] = [
    Divergence::ForwardKl,
    Divergence::ReverseKl,
    Divergence::Jsd { teacher_weight: 0.1 },
    JSD,
    Divergence::SkewKl { alpha: 0.1 },
    Divergence::SkewReverseKl { alpha: 0.1 },
    Divergence::SkewReverseKl { alpha: 0.5 },
    Divergence::Tvd,
];
const TAILS: [TailMode; 3] = [TailMode::Drop, TailMode::Bucket, TailMode::Uniform];

/// Loss and gradient of one divergence with weight 1.
fn taken(divergence: Divergence, z: &[f32], teacher: TeacherRow<'_>, temperature: f32) -> (f32, Vec<f32>) {
    let terms = [Term { divergence, weight: 1.0, temperature }];
    let terms = HeadTerms { hard_label: 0.0, divergences: &terms, scale: 1.0 };
    let (mut z, mut kept, mut loss) = (z.to_vec(), vec![0.0; teacher.n_kept()], [f32::NAN]);
    row_losses(&mut z, &mut kept, None, Some(&teacher), &terms, &mut loss);
    (loss[0], z)
}

fn softmax(t: &[f32], temperature: f32) -> Vec<f64> {
    let scaled = t.iter().map(|&v| f64::from(v) / f64::from(temperature));
    let top = scaled.clone().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = scaled.map(|v| (v - top).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|e| e / sum).collect()
}

/// The k most probable ids and their probabilities.
struct TopK {
    ids: Vec<u32>,
    probs: Vec<f32>,
}

impl TopK {
    fn of(p: &[f64], k: usize) -> TopK {
        let mut ids: Vec<u32> = (0..p.len() as u32).collect();
        ids.sort_by(|&a, &b| p[b as usize].total_cmp(&p[a as usize]));
        ids.truncate(k);
        let probs = ids.iter().map(|&id| p[id as usize] as f32).collect();
        TopK { ids, probs }
    }

    fn rest(&self) -> f64 {
        1.0 - self.probs.iter().map(|&p| f64::from(p)).sum::<f64>()
    }

    fn row(&self, tail: TailMode) -> TeacherRow<'_> {
        TeacherRow::Sparse(SparseRow { ids: &self.ids, probs: &self.probs, entropy: 0.0, tail })
    }

    /// What the plain twin takes for the same row.
    fn outcomes(&self, vocab: usize, tail: TailMode) -> Vec<(f64, Vec<usize>)> {
        let stored = self.ids.iter().zip(&self.probs);
        let mut outcomes: Vec<_> = stored.map(|(&id, &p)| (f64::from(p), vec![id as usize])).collect();
        let rest = self.rest().max(REST_MIN);
        let others: Vec<usize> = (0..vocab).filter(|&i| !self.ids.contains(&(i as u32))).collect();
        match tail {
            _ if others.is_empty() => {}
            TailMode::Bucket => outcomes.push((rest, others)),
            TailMode::Uniform => {
                let each = rest / others.len() as f64;
                outcomes.extend(others.into_iter().map(|i| (each, vec![i])));
            }
            TailMode::Drop | TailMode::None => {}
            TailMode::Renormalise => {
                let mass = 1.0 - self.rest();
                outcomes.iter_mut().for_each(|(p, _)| *p /= mass);
            }
        }
        outcomes
    }
}

fn dense_outcomes(p: &[f64]) -> Vec<(f64, Vec<usize>)> {
    p.iter().enumerate().map(|(i, &p)| (p, vec![i])).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| f64::from(v)).collect()
}

/// Logits in about ±size.
fn logits(seed: u64, n: usize, size: f32) -> Vec<f32> {
    numbers(seed, n).iter().map(|v| v * size).collect()
}

#[track_caller]
fn near(a: f32, b: f64, tolerance: f64, what: &str) {
    assert!((f64::from(a) - b).abs() <= tolerance * b.abs().max(1.0), "{what}: {a} against {b}");
}

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
    trl: Vec<TrlCase>,
}

#[derive(Deserialize)]
struct Case {
    temperature: f32,
    logits: Vec<f32>,
    teacher_logits: Vec<f32>,
    ids: Vec<u32>,
    probs: Vec<f32>,
    values: Vec<Value>,
}

#[derive(Deserialize)]
struct Value {
    divergence: String,
    parameter: f32,
    form: String,
    loss: f64,
    grad: Vec<f32>,
}

#[derive(Deserialize)]
struct TrlCase {
    beta: f32,
    temperature: f32,
    logits: Vec<Vec<f32>>,
    teacher_logits: Vec<Vec<f32>>,
    loss: f64,
    grad: Vec<Vec<f32>>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/divergences.json")).expect("golden file")
}

fn named(name: &str, parameter: f32) -> Divergence {
    match name {
        "forward_kl" => Divergence::ForwardKl,
        "reverse_kl" => Divergence::ReverseKl,
        "jsd" => Divergence::Jsd { teacher_weight: parameter },
        "skew_kl" => Divergence::SkewKl { alpha: parameter },
        "skew_reverse_kl" => Divergence::SkewReverseKl { alpha: parameter },
        "tvd" => Divergence::Tvd,
        other => panic!("{other}"),
    }
}

#[test]
fn losses_and_logit_gradients_equal_pytorch() {
    let mut seen = 0;
    for case in golden().cases {
        let stored = TopK { ids: case.ids, probs: case.probs };
        for value in case.values {
            let divergence = named(&value.divergence, value.parameter);
            let teacher = match value.form.as_str() {
                "dense" => TeacherRow::Logits(&case.teacher_logits),
                "drop" => stored.row(TailMode::Drop),
                "renormalise" => stored.row(TailMode::Renormalise),
                "bucket" => stored.row(TailMode::Bucket),
                "uniform" => stored.row(TailMode::Uniform),
                other => panic!("{other}"),
            };
            let (loss, gradient) = taken(divergence, &case.logits, teacher, case.temperature);
            let what = format!("{divergence:?} {} τ={}", value.form, case.temperature);
            near(loss, value.loss, 3e-6, &what);
            close(&gradient, &value.grad, 3e-6);
            seen += 1;
        }
    }
    assert_eq!(seen, 410);
}

/// TRL takes the mean over labelled tokens and no τ²; its β is ours, its ends are the two KLs.
#[test]
fn losses_and_logit_gradients_equal_trl() {
    let cases = golden().trl;
    assert_eq!(cases.len(), 10);
    for case in cases {
        let divergence = Divergence::from_trl_beta(case.beta).expect("a beta in range");
        let square = case.temperature * case.temperature;
        let rows = case.logits.iter().zip(&case.teacher_logits).zip(&case.grad);
        let mut sum = 0.0;
        for ((z, t), grad) in rows.take(2) {
            let (loss, gradient) = taken(divergence, z, TeacherRow::Logits(t), case.temperature);
            sum += f64::from(loss / square);
            let mean: Vec<f32> = gradient.iter().map(|g| g / square / 2.0).collect();
            close(&mean, grad, 3e-6);
        }
        near((sum / 2.0) as f32, case.loss, 3e-6, &format!("beta {}", case.beta));
        assert!(case.grad[2].iter().all(|&g| g == 0.0), "the row without a label");
    }
}

const NOTES_STUDENT: [f32; 5] = [0.5, -1.0, 2.0, 0.0, 0.3];
const NOTES_TEACHER: [f32; 5] = [1.0, 0.0, 1.5, -2.0, 0.7];

/// Values computed once in plain f64, without any library.
#[test]
fn known_values() {
    let teacher = TeacherRow::Logits(&NOTES_TEACHER);
    let expected = [
        (Divergence::ForwardKl, 1.0, 0.190_536_7),
        (Divergence::ForwardKl, 2.0, 0.313_350_4),
        (Divergence::ReverseKl, 1.0, 0.209_635_6),
        (Divergence::Jsd { teacher_weight: 0.1 }, 1.0, 0.017_003_8),
        (Divergence::Jsd { teacher_weight: 0.5 }, 1.0, 0.047_198_3),
        (Divergence::Jsd { teacher_weight: 0.9 }, 1.0, 0.018_153_5),
        (Divergence::SkewKl { alpha: 0.1 }, 1.0, 0.152_010_7),
        (Divergence::SkewReverseKl { alpha: 0.1 }, 1.0, 0.158_261_9),
        (Divergence::Tvd, 1.0, 0.267_497_4),
    ];
    for (divergence, temperature, loss) in expected {
        near(taken(divergence, &NOTES_STUDENT, teacher, temperature).0, loss, 6e-7, divergence.name());
    }
    let top2 = TopK::of(&softmax(&NOTES_TEACHER, 1.0), 2);
    let bucket = taken(Divergence::ForwardKl, &NOTES_STUDENT, top2.row(TailMode::Bucket), 1.0).0;
    near(bucket, 0.087_055_9, 3e-7, "bucket");
    // Normalising the student over the two ids as well would give 0.1048770: that loses what the student puts
    // elsewhere, and is not what this does.
    let sharper = taken(Divergence::ForwardKl, &NOTES_STUDENT, top2.row(TailMode::Renormalise), 1.0).0;
    near(sharper, 0.367_786_2, 6e-7, "renormalised");
}

#[test]
fn plain_gradients_equal_central_differences() {
    let p = softmax(&logits(1, 7, 2.0), 1.0);
    let z = wide(&logits(2, 7, 2.0));
    let some = TopK::of(&p, 3);
    let mut forms = vec![dense_outcomes(&p)];
    forms.extend(TAILS.map(|tail| some.outcomes(7, tail)));
    for divergence in ALL {
        for (outcomes, temperature) in forms.iter().flat_map(|form| [(form, 1.0), (form, 1.7)]) {
            let gradient = reference::divergence(divergence, outcomes, &z, temperature).1;
            for (j, analytic) in gradient.iter().enumerate() {
                let moved = |by: f64| {
                    let mut z = z.clone();
                    z[j] += by;
                    reference::divergence(divergence, outcomes, &z, temperature).0
                };
                let h = 1e-5;
                let numeric = (moved(h) - moved(-h)) / (2.0 * h);
                assert!((numeric - analytic).abs() < 1e-9, "{divergence:?} {j}: {numeric} {analytic}");
            }
        }
    }
}

#[test]
fn rows_equal_the_plain_twin() {
    for (vocab, size) in [(1, 1.0), (2, 3.0), (255, 4.0), (256, 8.0), (1003, 12.0)] {
        let (z, t) = (logits(vocab as u64, vocab, size), logits(vocab as u64 + 9, vocab, size));
        for temperature in [1.0, 2.0] {
            let p = softmax(&t, temperature);
            let check = |divergence: Divergence, teacher: TeacherRow<'_>, outcomes: &[(f64, Vec<usize>)]| {
                let (loss, gradient) = taken(divergence, &z, teacher, temperature);
                let plain = reference::divergence(divergence, outcomes, &wide(&z), f64::from(temperature));
                let what = format!("{divergence:?} V={vocab} τ={temperature} {teacher:?}");
                near(loss, plain.0, 6e-6, &what[..what.len().min(120)]);
                let plain: Vec<f32> = plain.1.iter().map(|&g| g as f32).collect();
                close(&gradient, &plain, 6e-6);
            };
            for divergence in ALL {
                check(divergence, TeacherRow::Logits(&t), &dense_outcomes(&p));
                for k in [1, 12, vocab].map(|k| k.min(vocab)) {
                    let stored = TopK::of(&p, k);
                    let sharper = divergence == Divergence::ForwardKl;
                    for tail in TAILS.into_iter().chain(sharper.then_some(TailMode::Renormalise)) {
                        check(divergence, stored.row(tail), &stored.outcomes(vocab, tail));
                    }
                }
            }
        }
    }
}

#[test]
fn all_ids_stored_equal_the_dense_teacher() {
    let (z, t) = (logits(1, 600, 5.0), logits(2, 600, 5.0));
    for temperature in [1.0, 2.0] {
        let stored = TopK::of(&softmax(&t, temperature), 600);
        for divergence in ALL {
            let (loss, gradient) = taken(divergence, &z, TeacherRow::Logits(&t), temperature);
            for tail in TAILS {
                let (other, other_gradient) = taken(divergence, &z, stored.row(tail), temperature);
                let (loss, other) = (f64::from(loss), f64::from(other));
                assert!(
                    (loss - other).abs() <= 1e-6 * loss.max(1.0),
                    "{divergence:?} {tail:?}: {loss} against {other}"
                );
                close(&other_gradient, &gradient, 1e-6);
            }
        }
    }
}

#[test]
fn nothing_is_lost_where_the_student_is_the_teacher() {
    let z = logits(3, 777, 6.0);
    for divergence in ALL {
        for temperature in [1.0, 3.0] {
            let (loss, gradient) = taken(divergence, &z, TeacherRow::Logits(&z), temperature);
            near(loss, 0.0, 1e-6, divergence.name());
            assert!(gradient.iter().all(|g| g.abs() < 1e-6), "{divergence:?}");
            let top = TopK::of(&softmax(&z, temperature), 9);
            let (loss, gradient) = taken(divergence, &z, top.row(TailMode::Bucket), temperature);
            near(loss, 0.0, 4e-6, divergence.name());
            // The slope of `tvd` jumps there, and a stored p differs from q by its rounding.
            assert!(
                divergence == Divergence::Tvd || gradient.iter().all(|g| g.abs() < 4e-6),
                "{divergence:?}"
            );
        }
    }
}

#[test]
fn shifted_logits_and_a_permuted_vocabulary_change_nothing() {
    let (z, t) = (logits(4, 300, 4.0), logits(5, 300, 4.0));
    let shifted = |x: &[f32], by: f32| x.iter().map(|v| v + by).collect::<Vec<f32>>();
    // 77 and 300 have no common factor.
    let order: Vec<usize> = (0..300).map(|i| i * 77 % 300).collect();
    let permuted = |x: &[f32]| order.iter().map(|&i| x[i]).collect::<Vec<f32>>();
    for divergence in ALL {
        let (loss, gradient) = taken(divergence, &z, TeacherRow::Logits(&t), 1.0);
        let (moved, moved_gradient) =
            taken(divergence, &shifted(&z, 7.5), TeacherRow::Logits(&shifted(&t, -3.25)), 1.0);
        near(moved, f64::from(loss), 3e-6, divergence.name());
        close(&moved_gradient, &gradient, 3e-6);
        let (mixed, mixed_gradient) =
            taken(divergence, &permuted(&z), TeacherRow::Logits(&permuted(&t)), 1.0);
        near(mixed, f64::from(loss), 1e-6, divergence.name());
        close(&mixed_gradient, &permuted(&gradient), 1e-6);
    }
}

#[test]
fn divergences_bound_each_other() {
    for seed in 0..200 {
        let n = 2 + seed as usize * 3;
        let (z, t) = (logits(seed, n, 6.0), logits(seed + 1000, n, 6.0));
        let of = |divergence| f64::from(taken(divergence, &z, TeacherRow::Logits(&t), 1.0).0);
        let tvd = of(Divergence::Tvd);
        assert!((0.0..=1.0).contains(&tvd));
        assert!(of(Divergence::ForwardKl) >= 2.0 * tvd * tvd - 1e-6);
        assert!(of(Divergence::ReverseKl) >= 2.0 * tvd * tvd - 1e-6);
        assert!(of(JSD) <= std::f64::consts::LN_2);
        let p = softmax(&t, 1.0);
        for divergence in ALL {
            let full = of(divergence);
            assert!(full >= -1e-6, "{divergence:?}");
            let mut before = f64::INFINITY;
            for k in [n, n / 2, n / 4, 1] {
                let stored = TopK::of(&p, k.max(1));
                // Where almost nothing is left, f32 probabilities do not tell how much.
                if k < n && stored.rest() < 0.01 {
                    continue;
                }
                let bucket = f64::from(taken(divergence, &z, stored.row(TailMode::Bucket), 1.0).0);
                assert!(
                    bucket <= before + 1e-5 * before.clamp(1.0, 1e3),
                    "{divergence:?} {k}: {bucket} {before}"
                );
                before = bucket;
            }
        }
    }
}

#[test]
fn at_high_temperature_forward_kl_compares_centred_logits() {
    let centred = |x: &[f32]| {
        let mean = wide(x).iter().sum::<f64>() / x.len() as f64;
        wide(x).iter().map(|v| v - mean).collect::<Vec<f64>>()
    };
    let (s, t) = (centred(&NOTES_STUDENT), centred(&NOTES_TEACHER));
    let limit = s.iter().zip(&t).map(|(s, t)| (s - t) * (s - t)).sum::<f64>() / 10.0;
    assert!((limit - 0.5588).abs() < 1e-6);
    let p = softmax(&NOTES_TEACHER, 1000.0);
    let plain =
        reference::divergence(Divergence::ForwardKl, &dense_outcomes(&p), &wide(&NOTES_STUDENT), 1000.0);
    assert!((plain.0 - 0.5582).abs() < 5e-5, "{}", plain.0);
    // At τ = 30 f32 still has the digits.
    let loss = taken(Divergence::ForwardKl, &NOTES_STUDENT, TeacherRow::Logits(&NOTES_TEACHER), 30.0).0;
    near(loss, limit, 0.03, "τ = 30");
}

/// A public report: log-probabilities were mixed where probabilities belong.
#[test]
fn jsd_mixes_probabilities() {
    // The student gives almost nothing to what the teacher is sure of: m = 0.5 there, and JSD is near ln 2.
    // A mixture of logarithms would be near −10 there, and the loss near 5.
    let loss = taken(JSD, &[-20.0, 0.0], TeacherRow::Logits(&[0.0, -20.0]), 1.0).0;
    near(loss, std::f64::consts::LN_2, 1e-5, "jsd");
}

/// A public report: β multiplied the student in the mixture.
#[test]
fn the_teacher_weight_of_jsd_belongs_to_the_teacher() {
    // q is uniform on two ids, p sure of one: m = (½(1+β), ½(1−β)).
    let beta = 0.25f64;
    let m = [0.5 * (1.0 + beta), 0.5 * (1.0 - beta)];
    let expected = beta * -m[0].ln() + (1.0 - beta) * 0.5 * ((0.5 / m[0]).ln() + (0.5 / m[1]).ln());
    let at = |teacher_weight| {
        let teacher = [0.0, f32::NEG_INFINITY];
        taken(Divergence::Jsd { teacher_weight }, &[0.0, 0.0], TeacherRow::Logits(&teacher), 1.0).0
    };
    near(at(0.25), expected, 1e-6, "β of the teacher");
    assert!((f64::from(at(0.75)) - expected).abs() > 0.01);
}

/// A public report: half a cross-entropy came along, at the temperature of sampling.
#[test]
fn a_divergence_alone_is_only_that() {
    let (z, t) = (logits(6, 64, 3.0), logits(7, 64, 3.0));
    for divergence in ALL {
        let terms = [Term { divergence, weight: 1.0, temperature: 1.0 }];
        let terms = HeadTerms { hard_label: 0.0, divergences: &terms, scale: 1.0 };
        let (mut with_label, mut loss) = (z.clone(), [0.0]);
        let teacher = TeacherRow::Logits(&t);
        let hard = row_losses(&mut with_label, &mut [], Some(3), Some(&teacher), &terms, &mut loss);
        let alone = taken(divergence, &z, teacher, 1.0);
        assert!(hard > 0.0);
        assert_eq!(loss[0].to_bits(), alone.0.to_bits());
        assert_eq!(bits(&with_label), bits(&alone.1));
    }
}

/// Public reports: at β = 1 the loss was next to nothing without a word, and the ends were another loss
/// than what is next to them.
#[test]
fn the_ends_of_jsd_are_named_or_refused() {
    let (z, t) = (logits(8, 50, 2.0), logits(9, 50, 2.0));
    let of = |divergence| f64::from(taken(divergence, &z, TeacherRow::Logits(&t), 1.0).0);
    assert_eq!(Divergence::from_trl_beta(0.0), Ok(Divergence::ForwardKl));
    assert_eq!(Divergence::from_trl_beta(1.0), Ok(Divergence::ReverseKl));
    for teacher_weight in [0.0, 1.0, 1e-6, 1.0 - 1e-6] {
        assert!(Divergence::Jsd { teacher_weight }.validate().is_err());
    }
    // What is accepted is never a silent zero, and what it is next to the ends is known.
    let (low, high) = (0.01, 0.99);
    for teacher_weight in [low, high] {
        assert_eq!(Divergence::Jsd { teacher_weight }.validate(), Ok(()));
    }
    let (forward, reverse) = (of(Divergence::ForwardKl), of(Divergence::ReverseKl));
    near((of(Divergence::Jsd { teacher_weight: low }) / 0.01) as f32, forward, 0.03, "β → 0");
    near((of(Divergence::Jsd { teacher_weight: high }) / 0.01) as f32, reverse, 0.05, "β → 1");
    let p = dense_outcomes(&softmax(&t, 1.0));
    let plain = |teacher_weight| {
        reference::divergence(Divergence::Jsd { teacher_weight }, &p, &wide(&z), 1.0).0
            / f64::from(teacher_weight)
    };
    assert!((plain(1e-6) - forward).abs() < 1e-5 * forward.max(1.0));
}

#[test]
fn impossible_tokens_are_finite() {
    let never = f32::NEG_INFINITY;
    let (z, t) = ([0.3, -0.2, 0.9, 0.1], [1.0, never, 0.5, never]);
    let p = softmax(&t, 1.0);
    assert_eq!(p[1], 0.0);
    for divergence in ALL {
        for temperature in [1.0, 2.0] {
            let (loss, gradient) = taken(divergence, &z, TeacherRow::Logits(&t), temperature);
            let p = softmax(&t, temperature);
            let plain =
                reference::divergence(divergence, &dense_outcomes(&p), &wide(&z), f64::from(temperature));
            near(loss, plain.0, 3e-6, divergence.name());
            let plain: Vec<f32> = plain.1.iter().map(|&g| g as f32).collect();
            close(&gradient, &plain, 3e-6);
            // What neither side can say is as if it were not there.
            let both = taken(divergence, &[0.3, never, 0.9, never], TeacherRow::Logits(&t), temperature);
            let without = taken(divergence, &[0.3, 0.9], TeacherRow::Logits(&[1.0, 0.5]), temperature);
            near(both.0, f64::from(without.0), 1e-6, divergence.name());
            close(&both.1, &[without.1[0], 0.0, without.1[1], 0.0], 1e-6);
        }
    }
    let loss = taken(Divergence::ReverseKl, &z, TeacherRow::Logits(&t), 1.0).0;
    assert!(loss > 10.0, "{loss}: half of q is where the teacher never goes");
    let stored = TopK { ids: vec![0, 1], probs: vec![1.0, 0.0] };
    for (divergence, tail) in ALL.iter().flat_map(|d| TAILS.map(|tail| (*d, tail))) {
        let (loss, gradient) = taken(divergence, &z, stored.row(tail), 1.0);
        assert!(loss.is_finite() && gradient.iter().all(|g| g.is_finite()), "{divergence:?} {tail:?}");
    }
}

#[test]
fn far_apart_distributions_are_finite() {
    let (z, t) = ([300.0, 0.0, -300.0], [-300.0, 0.0, 300.0]);
    for divergence in ALL {
        let (loss, gradient) = taken(divergence, &z, TeacherRow::Logits(&t), 1.0);
        assert!(loss.is_finite() && gradient.iter().all(|g| g.is_finite()), "{divergence:?}: {loss}");
        let stored = TopK::of(&softmax(&t, 1.0), 1);
        for tail in TAILS {
            let (loss, gradient) = taken(divergence, &z, stored.row(tail), 1.0);
            assert!(loss.is_finite() && gradient.iter().all(|g| g.is_finite()), "{divergence:?} {tail:?}");
        }
    }
    assert!((taken(Divergence::Tvd, &z, TeacherRow::Logits(&t), 1.0).0 - 1.0).abs() < 1e-6);
    near(taken(Divergence::ForwardKl, &z, TeacherRow::Logits(&t), 1.0).0, 600.0, 1e-6, "forward_kl");
}

#[test]
fn what_is_not_a_number_is_never_hidden() {
    for divergence in ALL {
        for (z, t) in [([0.0, f32::NAN], [0.0, 1.0]), ([0.0, 1.0], [f32::NAN, 0.0])] {
            assert!(taken(divergence, &z, TeacherRow::Logits(&t), 1.0).0.is_nan(), "{divergence:?}");
        }
        let stored = TopK { ids: vec![0], probs: vec![0.5] };
        for tail in TAILS {
            let loss = taken(divergence, &[0.0, f32::NAN], stored.row(tail), 1.0).0;
            assert!(loss.is_nan(), "{divergence:?} {tail:?}");
        }
    }
}

#[test]
fn a_weighted_list_is_the_sum_of_its_terms() {
    let (z, t) = (logits(10, 700, 4.0), logits(11, 700, 4.0));
    let list = [
        Term { divergence: Divergence::ForwardKl, weight: 0.5, temperature: 1.0 },
        Term { divergence: JSD, weight: 2.0, temperature: 3.0 },
        Term { divergence: Divergence::Tvd, weight: 0.0, temperature: 1.5 },
        Term { divergence: Divergence::ReverseKl, weight: 0.25, temperature: 3.0 },
    ];
    let one_temperature = list.map(|term| Term { temperature: 2.0, ..term });
    let stored = TopK::of(&softmax(&t, 2.0), 20);
    let mut teachers = vec![(TeacherRow::Logits(&t), &list)];
    teachers.extend(TAILS.map(|tail| (stored.row(tail), &one_temperature)));
    for (teacher, list) in teachers {
        let run = |hard_label, divergences: &[Term]| {
            let terms = HeadTerms { hard_label, divergences, scale: 0.5 };
            let (mut z, mut kept, mut losses) = (z.clone(), vec![0.0; teacher.n_kept()], [0.0; 4]);
            let hard = row_losses(&mut z, &mut kept, Some(5), Some(&teacher), &terms, &mut losses);
            (hard, losses, z)
        };
        let together = run(0.7, list);
        let mut gradient = run(0.7, &[]).2;
        for (i, term) in list.iter().enumerate() {
            let alone = run(0.0, &[*term]);
            assert_eq!(alone.1[0].to_bits(), together.1[i].to_bits(), "{term:?}");
            assert_eq!(alone.0.to_bits(), together.0.to_bits());
            gradient.iter_mut().zip(&alone.2).for_each(|(sum, g)| *sum += g);
        }
        close(&together.2, &gradient, 2e-6);
    }
}

/// Counts of random draws give `forward_kl` and its gradient without bias: the mean over all outcomes of two
/// draws from three ids is the dense loss exactly; one draw is the cross-entropy of a sample.
#[test]
fn counts_are_unbiased_for_forward_kl() {
    let (z, t) = ([0.4, -0.3, 1.1], [1.0, 0.2, -0.5]);
    let p = softmax(&t, 1.0);
    let entropy = -p.iter().map(|p| p * p.ln()).sum::<f64>();
    let of_draws = |draws: &[usize]| {
        let (mut ids, mut probs) = (vec![], vec![]);
        for id in 0..3 {
            let count = draws.iter().filter(|&&d| d == id).count();
            if count > 0 {
                ids.push(id as u32);
                probs.push(count as f32 / draws.len() as f32);
            }
        }
        let row = SparseRow { ids: &ids, probs: &probs, entropy: entropy as f32, tail: TailMode::None };
        taken(Divergence::ForwardKl, &z, TeacherRow::Sparse(row), 1.0)
    };
    let (mut loss, mut gradient) = (0.0, [0.0f64; 3]);
    for (a, b) in (0..3).flat_map(|a| (0..3).map(move |b| (a, b))) {
        let (l, g) = of_draws(&[a, b]);
        loss += p[a] * p[b] * f64::from(l);
        gradient.iter_mut().zip(&g).for_each(|(sum, &g)| *sum += p[a] * p[b] * f64::from(g));
    }
    let dense = taken(Divergence::ForwardKl, &z, TeacherRow::Logits(&t), 1.0);
    near(dense.0, loss, 3e-7, "loss");
    close(&gradient.map(|g| g as f32), &dense.1, 3e-7);

    let terms = HeadTerms { hard_label: 1.0, divergences: &[], scale: 1.0 };
    for id in 0..3 {
        let (mut hard_gradient, one) = (z, of_draws(&[id]));
        let hard = row_losses(&mut hard_gradient, &mut [], Some(id as u32), None, &terms, &mut []);
        near(one.0, f64::from(hard) - entropy, 3e-7, "one draw");
        close(&one.1, &hard_gradient, 1e-7);
    }
}

/// The mean over 10⁵ sampled rows is within four standard errors of the dense loss, in each gradient too.
#[test]
fn many_draws_average_to_the_dense_loss() {
    let (z, t) = (logits(12, 20, 2.0), logits(13, 20, 2.0));
    let p = softmax(&t, 1.0);
    let entropy = -p.iter().map(|p| p * p.ln()).sum::<f64>();
    let uniforms = numbers(14, 100_000);
    let (n_rows, per_row) = (10_000, 10);
    let (mut sum, mut squares) = (vec![0.0f64; 21], vec![0.0f64; 21]);
    for row in uniforms.chunks(per_row) {
        let mut counts = [0u32; 20];
        for u in row {
            let mut left = (f64::from(*u) + 1.0) / 2.0;
            let id = p.iter().position(|p| {
                left -= p;
                left < 0.0
            });
            counts[id.unwrap_or(19)] += 1;
        }
        let ids: Vec<u32> = (0..20).filter(|&i| counts[i as usize] > 0).collect();
        let probs: Vec<f32> = ids.iter().map(|&i| counts[i as usize] as f32 / per_row as f32).collect();
        let row = SparseRow { ids: &ids, probs: &probs, entropy: entropy as f32, tail: TailMode::None };
        let (loss, gradient) = taken(Divergence::ForwardKl, &z, TeacherRow::Sparse(row), 1.0);
        for (k, v) in std::iter::once(loss).chain(gradient).enumerate() {
            sum[k] += f64::from(v);
            squares[k] += f64::from(v) * f64::from(v);
        }
    }
    let (loss, gradient) = taken(Divergence::ForwardKl, &z, TeacherRow::Logits(&t), 1.0);
    for (k, exact) in std::iter::once(loss).chain(gradient).enumerate() {
        let mean = sum[k] / f64::from(n_rows);
        let error = ((squares[k] / f64::from(n_rows) - mean * mean) / f64::from(n_rows)).sqrt();
        assert!(
            (mean - f64::from(exact)).abs() < 4.0 * error + 1e-6,
            "{k}: {mean} against {exact} ± {error}"
        );
    }
}

//! The divergence head against PyTorch's autograd in f64 (golden file by `oracles/losses.py`), its
//! invariances, and its gradients through the hidden states.

mod common;

use common::{bits, close, numbers};
use serde::Deserialize;
use stillroom_kernels::{
    Device, Divergence, HeadLosses, HeadTargets, HeadTerms, SparseTargets, TailMode, Term, Weight,
};

#[derive(Deserialize)]
struct Golden {
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    kind: String,
    temperature: f32,
    logits: Vec<f32>,
    target_ids: Vec<u32>,
    target_probs: Vec<f32>,
    teacher_entropy: f32,
    loss: f64,
    grad: Vec<f32>,
}

impl Row {
    fn tail(&self) -> TailMode {
        match self.kind.as_str() {
            "topk_drop" => TailMode::Drop,
            "topk_bucket" => TailMode::Bucket,
            "topk_uniform" => TailMode::Uniform,
            _ => TailMode::None,
        }
    }
}

/// Loss and ∂/∂logits of one row, read off the head with an identity for its weight.
fn loss_and_gradient(row: &Row) -> (f32, Vec<f32>) {
    let v = row.logits.len();
    let dev = Device::cpu(1);
    let identity: Vec<f32> = (0..v * v).map(|i| if i / v == i % v { 1.0 } else { 0.0 }).collect();
    let w = dev.upload(&identity);
    let hard = row.kind == "cross_entropy";
    let offsets = [0, row.target_ids.len() as u32];
    let entropy = [row.teacher_entropy];
    let sparse = SparseTargets {
        offsets: &offsets,
        ids: &row.target_ids,
        probs: &row.target_probs,
        teacher_entropy: &entropy,
        tail: row.tail(),
    };
    let targets = HeadTargets {
        hard_labels: hard.then_some(&row.target_ids[..]),
        sparse: (!hard).then_some(sparse),
        ..HeadTargets::default()
    };
    let divergence = [Term { divergence: Divergence::ForwardKl, weight: 1.0, temperature: row.temperature }];
    let divergences = if hard { &[][..] } else { &divergence[..] };
    let terms = HeadTerms { hard_label: 1.0, divergences, scale: 1.0 };
    let (mut dh, mut dw) = (dev.zeros(v), dev.zeros(v * v));
    let hidden = dev.upload(&row.logits);
    let mut losses = HeadLosses::default();
    dev.divergence_head(&mut dh, &mut dw, &hidden, &w, 1, &targets, &terms, &mut losses);
    let (packed, mut only_forward) = (dev.pack(&w, v, v), HeadLosses::default());
    dev.divergence_head_forward(&hidden, &packed, 1, &targets, terms.divergences, &mut only_forward);
    assert_eq!(bits(&only_forward.hard_label), bits(&losses.hard_label));
    assert_eq!(bits(only_forward.divergence(0)), bits(losses.divergence(0)));
    (if hard { losses.hard_label[0] } else { losses.divergence(0)[0] }, dev.download(&dh))
}

#[test]
fn losses_and_logit_gradients_equal_pytorch() {
    let golden: Golden = serde_json::from_str(include_str!("golden/losses.json")).expect("golden file");
    let mut seen = std::collections::BTreeMap::<String, usize>::new();
    for row in &golden.rows {
        // Hard labels are never softened: a temperature on them is another tool's convention.
        if row.kind == "cross_entropy" && row.temperature != 1.0 {
            continue;
        }
        let (loss, gradient) = loss_and_gradient(row);
        assert!(
            (f64::from(loss) - row.loss).abs() < 2e-5 * row.loss.abs().max(1.0),
            "{}: {loss} against {}",
            row.kind,
            row.loss
        );
        close(&gradient, &row.grad, 3e-6);
        *seen.entry(row.kind.clone()).or_default() += 1;
    }
    assert_eq!(seen.len(), 6, "{seen:?}");
}

/// A batch with labels and sparse targets of different lengths.
struct Batch {
    hidden: Vec<f32>,
    w: Vec<f32>,
    labels: Vec<u32>,
    offsets: Vec<u32>,
    ids: Vec<u32>,
    probs: Vec<f32>,
    entropy: Vec<f32>,
}

const WIDTH: usize = 24;
const VOCAB: usize = 50;

impl Batch {
    fn new(n: usize) -> Batch {
        let (mut offsets, mut ids, mut probs) = (vec![0], vec![], vec![]);
        for r in 0..n {
            let k = 1 + r % 5;
            for j in 0..k {
                ids.push(((r * 7 + j * 11) % VOCAB) as u32);
                probs.push(0.9 / k as f32);
            }
            offsets.push(ids.len() as u32);
        }
        let labels = (0..n).map(|r| (r * 13 % VOCAB) as u32).collect();
        Batch {
            hidden: numbers(1, n * WIDTH),
            w: numbers(2, VOCAB * WIDTH),
            labels,
            offsets,
            ids,
            probs,
            entropy: vec![0.5; n],
        }
    }

    fn n(&self) -> usize {
        self.labels.len()
    }

    fn targets(&self, tail: TailMode) -> HeadTargets<'_> {
        let sparse = SparseTargets {
            offsets: &self.offsets,
            ids: &self.ids,
            probs: &self.probs,
            teacher_entropy: &self.entropy,
            tail,
        };
        HeadTargets { hard_labels: Some(&self.labels), sparse: Some(sparse), ..HeadTargets::default() }
    }

    /// (weighted loss in f64, dhidden, dw).
    fn run(&self, n_threads: usize, tail: TailMode, temperature: f32) -> (f64, Vec<f32>, Vec<f32>) {
        let divergences = &[Term { divergence: Divergence::ForwardKl, weight: 0.8, temperature }];
        let terms = HeadTerms { hard_label: 0.3, divergences, scale: 0.1 };
        let dev = Device::cpu(n_threads);
        let (w, hidden) = (dev.upload(&self.w), dev.upload(&self.hidden));
        let (mut dh, mut dw) = (dev.zeros(self.hidden.len()), dev.zeros(self.w.len()));
        let (targets, mut losses) = (self.targets(tail), HeadLosses::default());
        dev.divergence_head(&mut dh, &mut dw, &hidden, &w, self.n(), &targets, &terms, &mut losses);
        let sum = |x: &[f32]| x.iter().map(|&v| f64::from(v)).sum::<f64>();
        let total = f64::from(terms.hard_label) * sum(&losses.hard_label)
            + f64::from(divergences[0].weight) * sum(losses.divergence(0));
        (total * f64::from(terms.scale), dev.download(&dh), dev.download(&dw))
    }
}

#[test]
fn gradients_through_the_head_match_finite_differences() {
    for tail in [TailMode::None, TailMode::Drop, TailMode::Bucket, TailMode::Uniform] {
        for temperature in [1.0, 1.7] {
            let mut batch = Batch::new(9);
            let (_, dh, dw) = batch.run(1, tail, temperature);
            let h = 1e-2f32;
            let mut check = |pick: fn(&mut Batch) -> &mut Vec<f32>, k: usize, analytic: f32| {
                let at = pick(&mut batch)[k];
                pick(&mut batch)[k] = at + h;
                let above = batch.run(1, tail, temperature).0;
                pick(&mut batch)[k] = at - h;
                let below = batch.run(1, tail, temperature).0;
                pick(&mut batch)[k] = at;
                let numeric = (above - below) / f64::from(2.0 * h);
                assert!(
                    (numeric - f64::from(analytic)).abs() < 2e-4,
                    "{tail:?} τ={temperature} {k}: {numeric} against {analytic}"
                );
            };
            (0..dh.len()).step_by(7).for_each(|k| check(|b| &mut b.hidden, k, dh[k]));
            (0..dw.len()).step_by(41).for_each(|k| check(|b| &mut b.w, k, dw[k]));
        }
    }
}

#[test]
fn threads_and_the_rows_around_change_no_bit() {
    let batch = Batch::new(230);
    let one = batch.run(1, TailMode::Bucket, 1.0);
    for n_threads in [2, 3] {
        let other = batch.run(n_threads, TailMode::Bucket, 1.0);
        assert_eq!(
            (other.0.to_bits(), bits(&other.1), bits(&other.2)),
            (one.0.to_bits(), bits(&one.1), bits(&one.2))
        );
    }
    let few = Batch::new(31);
    let alone = few.run(2, TailMode::Bucket, 1.0);
    assert_ne!(few.hidden, batch.hidden);
    assert_eq!(bits(&alone.1), bits(&one.1[..31 * WIDTH]));
}

#[test]
fn a_vocabulary_that_takes_several_chunks_gives_the_plain_result() {
    // 150,000 ids hold 78 rows a chunk; 150 rows take two.
    let (n, vocab, width) = (150, 150_000, 4);
    let dev = Device::cpu(2);
    let (hidden, w) = (numbers(5, n * width), numbers(6, vocab * width));
    let labels: Vec<u32> = (0..n).map(|r| (r * 397) as u32).collect();
    let targets = HeadTargets { hard_labels: Some(&labels), ..HeadTargets::default() };
    let terms = HeadTerms { hard_label: 1.0, divergences: &[], scale: 1.0 };
    let (h, w_buf) = (dev.upload(&hidden), dev.upload(&w));
    let run = |rows: std::ops::Range<usize>, losses: &mut HeadLosses| {
        let (mut dh, mut dw) = (dev.zeros(rows.len() * width), dev.zeros(vocab * width));
        let part = dev.upload(&hidden[rows.start * width..rows.end * width]);
        let targets = HeadTargets { hard_labels: Some(&labels[rows.clone()]), ..HeadTargets::default() };
        dev.divergence_head(&mut dh, &mut dw, &part, &w_buf, rows.len(), &targets, &terms, losses);
        (dev.download(&dh), dev.download(&dw))
    };
    let (mut dh, mut dw) = (dev.zeros(n * width), dev.zeros(vocab * width));
    let (mut whole, mut parts) = (HeadLosses::default(), HeadLosses::default());
    dev.divergence_head(&mut dh, &mut dw, &h, &w_buf, n, &targets, &terms, &mut whole);
    let (first, second) = (run(0..80, &mut parts), run(80..150, &mut parts));
    assert_eq!(bits(&whole.hard_label), bits(&parts.hard_label));
    assert_eq!(bits(&dev.download(&dh)), bits(&[first.0, second.0].concat()));
    let summed: Vec<f32> = first.1.iter().zip(&second.1).map(|(a, b)| a + b).collect();
    close(&dev.download(&dw), &summed, 1e-6);
}

#[test]
fn dense_kl_is_zero_on_itself_and_equals_the_plain_sum() {
    let dev = Device::cpu(2);
    let batch = Batch::new(40);
    let hidden = dev.upload(&batch.hidden);
    let packed = dev.pack(&dev.upload(&batch.w), VOCAB, WIDTH);
    let other = dev.pack(&dev.upload(&numbers(9, VOCAB * WIDTH)), VOCAB, WIDTH);
    let (t, s) = (Weight::from(&packed), Weight::from(&other));
    assert!(dev.dense_forward_kl((&hidden, t), None, (&hidden, t), 40).iter().all(|kl| kl.abs() < 1e-6));
    let kl = dev.dense_forward_kl((&hidden, t), None, (&hidden, s), 40);
    let logits = |w| {
        let rows = std::sync::Mutex::new(vec![vec![]; 40]);
        dev.for_each_logits_row(&hidden, w, 40, &|r, z| rows.lock().expect("rows")[r] = z.to_vec());
        rows.into_inner().expect("rows")
    };
    let plain: Vec<f32> = logits(t)
        .iter()
        .zip(logits(s))
        .map(|(t, s)| stillroom_kernels::reference::forward_kl_of_logits(t, &s))
        .collect();
    close(&kl, &plain, 1e-5);
    assert!(kl.iter().all(|&kl| kl > 0.0));
}

#[test]
fn a_logit_that_is_not_a_number_is_never_hidden() {
    let dev = Device::cpu(1);
    let identity = [1.0, 0.0, 0.0, 1.0];
    let w = dev.upload(&identity);
    let labels = [0];
    let targets = HeadTargets { hard_labels: Some(&labels), ..HeadTargets::default() };
    let (hidden, w, mut losses) = (dev.upload(&[0.0, f32::NAN]), dev.pack(&w, 2, 2), HeadLosses::default());
    dev.divergence_head_forward(&hidden, &w, 1, &targets, &[], &mut losses);
    assert!(losses.hard_label[0].is_nan());
}

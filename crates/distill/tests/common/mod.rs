//! A toy language, a tiny student and a teacher made of arithmetic.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use stillroom_core::{CounterRng, SparseRow};
use stillroom_distill::{Example, LossFunction, LossTerm, TrainConfig, TrainEvent, TrainOutcome};
use stillroom_formats::{DecoderConfig, Family, RopeScaling};
use stillroom_model::{Decoder, Device};

pub(crate) const VOCAB: usize = 13;

pub(crate) fn tiny_config() -> DecoderConfig {
    DecoderConfig {
        family: Family::Llama,
        vocab_size: VOCAB,
        hidden_size: 24,
        intermediate_size: 40,
        num_hidden_layers: 2,
        num_attention_heads: 3,
        num_key_value_heads: 1,
        head_dim: 8,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        max_position_embeddings: 64,
        tie_word_embeddings: true,
        qkv_bias: false,
        attention_out_bias: false,
        mlp_bias: false,
        qk_norm: false,
        bos_token_id: None,
        eos_token_ids: vec![],
    }
}

pub(crate) fn student(seed: u64, n_threads: usize) -> Decoder {
    Decoder::random(Arc::new(Device::cpu(n_threads)), tiny_config(), seed)
}

/// A sentence: a masked prompt of a step and a start, then counting on in that step, modulo 11.
pub(crate) fn sentence(key: u64) -> Example {
    let mut rng = CounterRng::new(&[77, key]);
    let n = 6 + rng.below(12) as usize;
    let step = 1 + rng.below(3) as u32;
    let mut ids = vec![12, step, rng.below(11) as u32];
    (0..n).for_each(|_| ids.push((ids[ids.len() - 1] + step) % 11));
    let supervised = (0..ids.len()).map(|t| t > 2).collect();
    Example::new(key.to_string(), ids, supervised, None).unwrap()
}

pub(crate) fn sentences(keys: std::ops::Range<u64>) -> Vec<Example> {
    keys.map(sentence).collect()
}

/// The sentence with a teacher that gives its next token three quarters and the one after it the rest.
pub(crate) fn taught(mut example: Example) -> Example {
    let row = |next: u32| {
        let other = (next + 1) % 11;
        let mut pairs = [(next, 0.75), (other, 0.25)];
        pairs.sort_by_key(|p| p.0);
        SparseRow {
            ids: pairs.iter().map(|p| p.0).collect(),
            probs: pairs.iter().map(|p| p.1).collect(),
            teacher_entropy: 0.562_335_1,
        }
    };
    example.sparse =
        Some(example.wanted_positions().iter().map(|&r| row(example.ids[r as usize + 1])).collect());
    example
}

pub(crate) fn small_run() -> TrainConfig {
    TrainConfig {
        learning_rate: 4e-3,
        max_steps: Some(12),
        per_device_train_batch_size: 3,
        max_length: 48,
        weight_decay: 0.1,
        seed: 5,
        save_steps: 3,
        eval_steps: 4,
        logging_steps: 2,
        ..TrainConfig::default()
    }
}

/// Hard labels and `forward_kl` with these weights.
pub(crate) fn hard_and_kl(hard_labels: f64, forward_kl: f64) -> Vec<LossTerm> {
    let term = |function, weight| LossTerm::new(function).with_weight(weight);
    vec![term(LossFunction::HardLabels, hard_labels), term(LossFunction::ForwardKl, forward_kl)]
}

pub(crate) fn run(
    start: Decoder,
    examples: &[Example],
    validation: &[Example],
    config: &TrainConfig,
    dir: &std::path::Path,
) -> (TrainOutcome, Vec<TrainEvent>) {
    run_with(start, None, examples, validation, config, dir)
}

pub(crate) fn run_with(
    start: Decoder,
    teacher: Option<&Decoder>,
    examples: &[Example],
    validation: &[Example],
    config: &TrainConfig,
    dir: &std::path::Path,
) -> (TrainOutcome, Vec<TrainEvent>) {
    let mut events = Vec::new();
    let mut sink = |event| events.push(event);
    let outcome = stillroom_distill::train(start, teacher, examples, validation, config, dir, &mut sink);
    (outcome.unwrap(), events)
}

/// Runs the test `name` of this program as a process, which trains to `checkpoints/` in the folder that `variable` names and
/// writes the `digest` of what comes out there: once to its end, and once killed at every checkpoint of `steps`. Asserts
/// that both end with the same bits.
pub(crate) fn assert_kills_change_nothing(name: &str, variable: &str, steps: impl IntoIterator<Item = u64>) {
    let child = |dir: &Path| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(variable, dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let digest = |dir: &Path| std::fs::read_to_string(dir.join("digest")).unwrap();
    let [straight, broken] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    assert!(child(straight.path()).wait().unwrap().success());
    for step in steps {
        let mut process = child(broken.path());
        let start = Instant::now();
        let wanted = format!("step-{step:06}");
        while !broken.path().join("checkpoints").join(&wanted).exists() {
            assert!(start.elapsed() < Duration::from_secs(60), "no checkpoint {wanted}");
            std::thread::park_timeout(Duration::from_millis(1));
        }
        process.kill().unwrap();
        process.wait().unwrap();
        assert!(!broken.path().join("digest").exists(), "it finished before it was killed");
    }
    assert!(child(broken.path()).wait().unwrap().success());
    assert_eq!(digest(broken.path()), digest(straight.path()));
}

//! Training an adapter: what a checkpoint holds of it, and the same bits after a kill, with dropout.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::path::Path;

use common::{run, sentences, small_run, student};
use stillroom_distill::{DistillError, SchedulerType, TrainConfig, TrainEvent, train};
use stillroom_formats::{LoraConfig, LoraTarget, PeftAdapter};
use stillroom_model::Decoder;

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn lora(r: usize) -> LoraConfig {
    let target_modules = LoraTarget::ALL.to_vec();
    LoraConfig { r, alpha: 8.0, dropout: 0.2, target_modules, use_rslora: false }
}

fn adapted(r: usize, seed: u64, n_threads: usize) -> Decoder {
    student(3, n_threads).with_new_adapter(lora(r), seed).unwrap()
}

/// Panics out of the sink at the n-th event: nothing behind it runs any more.
struct Killed;

fn killed_at(n: usize, start: Decoder, config: &TrainConfig, dir: &Path) {
    let (examples, validation) = (sentences(0..60), sentences(500..510));
    let mut seen = 0;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        train(start, None, &examples, &validation, config, dir, &mut |_| {
            seen += 1;
            if seen > n {
                panic_any(Killed);
            }
        })
    }));
    assert!(outcome.is_err_and(|payload| payload.is::<Killed>()), "it was not killed at event {n}");
}

#[test]
fn a_killed_run_of_an_adapter_ends_with_the_same_bits_dropout_included() {
    let config = TrainConfig { gradient_accumulation_steps: 2, ..small_run() };
    let (examples, validation) = (sentences(0..60), sentences(500..510));
    let mut digests = Vec::new();
    for n_threads in [1, 2] {
        let straight_dir = temp();
        let (straight, events) =
            run(adapted(4, 7, n_threads), &examples, &validation, &config, straight_dir.path());
        for n in 0..events.len() {
            let dir = temp();
            killed_at(n, adapted(4, 7, n_threads), &config, dir.path());
            let (again, events) = run(adapted(4, 7, n_threads), &examples, &validation, &config, dir.path());
            assert_eq!(again.decoder.digest(), straight.decoder.digest(), "killed at event {n}");
            assert_eq!(again.validation, straight.validation);
            assert!(n < 8 || events.iter().any(|e| matches!(e, TrainEvent::Resumed { .. })), "event {n}");
        }
        digests.push(straight.decoder.digest());
    }
    assert_eq!(digests[0], digests[1], "threads");
    // The seed of the run is that of dropout: the same order of examples, another mask.
    let all_at_once = |seed, dropout| {
        let examples = &examples[..4];
        let config = TrainConfig {
            per_device_train_batch_size: 16,
            seed,
            max_steps: Some(1),
            packing: false,
            ..config.clone()
        };
        let start = student(3, 1).with_new_adapter(LoraConfig { dropout, ..lora(4) }, 7).unwrap();
        run(start, examples, &[], &config, temp().path()).0.curve[0].grad_norm
    };
    let (with, without) =
        (all_at_once(1, 0.2) - all_at_once(2, 0.2), all_at_once(1, 0.0) - all_at_once(2, 0.0));
    assert!(with.abs() > 100.0 * without.abs(), "{with} and {without}");
}

#[test]
fn only_the_adapter_learns_and_the_best_of_it_goes_onto_the_frozen_weights() {
    let dir = temp();
    // Sixteen sentences are soon learned by heart, at the cost of all others.
    let config = TrainConfig {
        learning_rate: 3e-2,
        lr_scheduler_type: SchedulerType::Constant,
        max_steps: Some(80),
        eval_steps: 5,
        save_steps: 5,
        per_device_train_batch_size: 8,
        ..small_run()
    };
    let validation = sentences(900..930);
    let (outcome, _) = run(adapted(8, 7, 2), &sentences(0..4), &validation, &config, dir.path());
    let losses: Vec<f64> = outcome.validation.iter().map(|p| p.loss).collect();
    assert!(outcome.chosen_step < 80, "validation never turned: {losses:?}");
    assert!(losses.iter().copied().fold(f64::MAX, f64::min) < 0.95 * losses[0], "{losses:?}");
    assert_eq!(outcome.decoder.clone().without_adapter().digest(), student(3, 1).digest());
    // Measured again, alone.
    let again = TrainConfig { learning_rate: 0.0, max_steps: Some(1), ..config.clone() };
    let (measured, _) = run(outcome.decoder.clone(), &sentences(0..4), &validation, &again, temp().path());
    assert_eq!(measured.validation[0].loss, outcome.validation[outcome.chosen_step as usize / 5].loss);
    // A checkpoint is an adapter that PEFT reads too.
    let files = PeftAdapter::open(&dir.path().join(format!("step-{:06}", outcome.chosen_step))).unwrap();
    assert_eq!(files.config, lora(8));
    let loaded = student(3, 1).with_adapter(files.config, files.tensors.as_ref()).unwrap();
    assert_eq!(loaded.digest(), outcome.decoder.digest());
}

fn bytes_of(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    files.filter(|file| file.file_name() != "state.json").map(|file| file.metadata().unwrap().len()).sum()
}

#[test]
fn a_checkpoint_is_as_large_as_its_adapter() {
    let config = TrainConfig { max_steps: Some(2), ..small_run() };
    let bytes = |start: Decoder| {
        let dir = temp();
        run(start, &sentences(0..30), &[], &config, dir.path());
        bytes_of(&dir.path().join("step-000002"))
    };
    let n = |r: usize| adapted(r, 7, 1).n_trained();
    let [small, large] = [1, 4].map(|r| bytes(adapted(r, 7, 1)));
    // Every number and its two moments; names and shapes stay but for their digits.
    let grown = large - small;
    assert!(grown.abs_diff(12 * (n(4) - n(1))) < 3000, "{grown} bytes for {} numbers", n(4) - n(1));
    let whole = bytes(student(3, 1));
    assert!(whole > 12 * student(3, 1).n_parameters());
    assert!(small < whole / 2, "{small} of {whole}: one layer's names are as long as its numbers here");
}

#[test]
fn another_adapter_is_another_run() {
    let (examples, config) = (sentences(0..30), small_run());
    let dir = temp();
    let attempt =
        |start: Decoder| train(start, None, &examples, &[], &config, dir.path(), &mut |_| {}).map(drop);
    attempt(adapted(4, 7, 1)).unwrap();
    let rescaled = LoraConfig { alpha: 9.0, ..lora(4) };
    let others = [
        adapted(2, 7, 1),
        adapted(4, 8, 1),
        student(3, 1),
        student(3, 1).with_new_adapter(rescaled, 7).unwrap(),
        student(4, 1).with_new_adapter(lora(4), 7).unwrap(),
    ];
    for start in others {
        let error = attempt(start).unwrap_err();
        assert!(matches!(error, DistillError::ForeignCheckpoint { what: "initial weights", .. }), "{error}");
    }
    attempt(adapted(4, 7, 1)).unwrap();
}

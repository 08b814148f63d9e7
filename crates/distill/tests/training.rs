//! What training promises: it learns, the same bits come out whatever happens on the way, and what
//! cannot be right is refused.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{
    VOCAB, assert_kills_change_nothing, hard_and_kl, run, sentence, sentences, small_run, student, taught,
};
use stillroom_core::{ErrorKind, SparseRow, Tail};
use stillroom_distill::{
    DistillError, Example, Overlong, SchedulerType, TrainConfig, TrainEvent, TrainOutcome, TrainPoint, plan,
    remove_checkpoints, train,
};
use stillroom_model::Decoder;

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn without_speed(curve: &[TrainPoint]) -> Vec<TrainPoint> {
    curve.iter().map(|p| TrainPoint { tokens_per_second: 0.0, ..p.clone() }).collect()
}

fn fails(result: stillroom_distill::Result<TrainOutcome>) -> DistillError {
    match result {
        Ok(_) => panic!("training went through"),
        Err(error) => error,
    }
}

fn attempt(
    start: Decoder,
    examples: &[Example],
    config: &TrainConfig,
    dir: &Path,
) -> stillroom_distill::Result<TrainOutcome> {
    train(start, None, examples, &[], config, dir, &mut |_| {})
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_loss_falls_on_a_toy_language() {
    let dir = temp();
    let config = TrainConfig {
        max_steps: Some(150),
        eval_steps: 50,
        save_steps: 0,
        logging_steps: 25,
        learning_rate: 1e-2,
        weight_decay: 0.01,
        per_device_train_batch_size: 12,
        ..small_run()
    };
    let start = student(1, 2);
    let untrained = start.digest();
    let (outcome, events) = run(start, &sentences(0..300), &sentences(1000..1040), &config, dir.path());
    let losses: Vec<f64> = outcome.validation.iter().map(|p| p.loss).collect();
    let chance = (VOCAB as f64).ln();
    assert!(losses[0] > 0.9 * chance && losses[3] < 0.3 * chance, "{losses:?}");
    assert_ne!(outcome.decoder.digest(), untrained);
    assert_eq!((outcome.steps, outcome.curve.len()), (150, 6));
    assert!(outcome.curve[5].loss < outcome.curve[0].loss);
    assert!(outcome.curve.iter().all(|p| p.tokens_per_second > 0.0 && p.divergences.is_empty()));
    assert!(matches!(events.first(), Some(TrainEvent::Planned(_))));
    assert!(matches!(events.last(), Some(TrainEvent::Finished { steps: 150, .. })));
}

#[test]
fn the_teachers_distribution_is_learned() {
    let dir = temp();
    let config = TrainConfig {
        max_steps: Some(120),
        losses: hard_and_kl(0.0, 1.0),
        learning_rate: 1e-2,
        per_device_train_batch_size: 12,
        eval_steps: 60,
        save_steps: 0,
        ..small_run()
    };
    let set = |keys| -> Vec<Example> { sentences(keys).into_iter().map(taught).collect() };
    let (outcome, _) = run(student(1, 2), &set(0..300), &set(1000..1040), &config, dir.path());
    let (first, last) = (&outcome.validation[0], outcome.validation.last().unwrap());
    assert!(
        last.divergences["forward_kl"] < 0.3 * first.divergences["forward_kl"],
        "{:?}",
        outcome.validation
    );
    // The best that hard labels can become under this teacher is −ln 0.75.
    assert!(last.hard_label > 0.28 && last.hard_label < 0.8);
    assert_eq!(last.loss, last.divergences["forward_kl"]);
    assert!(outcome.curve.iter().all(|p| (p.captured_mass.unwrap() - 1.0).abs() < 1e-6));

    let dir = temp();
    let top = TrainConfig { tail: Tail::Bucket, max_steps: Some(4), logging_steps: 4, ..config };
    let mut cut = set(0..30);
    for row in cut.iter_mut().flat_map(|e| e.sparse.as_mut().unwrap()) {
        let best = usize::from(row.probs[1] > row.probs[0]);
        *row = SparseRow { ids: vec![row.ids[best]], probs: vec![0.75], ..row.clone() };
    }
    let (outcome, _) = run(student(1, 2), &cut, &[], &top, dir.path());
    assert!((outcome.curve[0].captured_mass.unwrap() - 0.75).abs() < 1e-6);
}

/// Panics out of the sink at the n-th event: nothing behind it runs any more.
struct Killed;

fn killed_at(
    n: usize,
    dir: &Path,
    examples: &[Example],
    validation: &[Example],
    config: &TrainConfig,
) -> bool {
    let mut seen = 0;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        train(student(3, 1), None, examples, validation, config, dir, &mut |_| {
            seen += 1;
            if seen > n {
                panic_any(Killed);
            }
        })
        .unwrap();
    }));
    match outcome {
        Ok(()) => false,
        Err(payload) => {
            assert!(payload.is::<Killed>(), "something else failed");
            true
        }
    }
}

#[test]
fn a_killed_run_ends_with_the_same_bits() {
    std::panic::set_hook(Box::new(|info| {
        if !info.payload().is::<Killed>() {
            eprintln_panic(info);
        }
    }));
    let (examples, validation) = (sentences(0..60), sentences(500..510));
    let config = TrainConfig { gradient_accumulation_steps: 2, ..small_run() };
    let straight_dir = temp();
    let (straight, events) = run(student(3, 1), &examples, &validation, &config, straight_dir.path());
    for n in 0..events.len() {
        let dir = temp();
        assert!(killed_at(n, dir.path(), &examples, &validation, &config));
        let (again, events) = run(student(3, 1), &examples, &validation, &config, dir.path());
        assert_eq!(again.decoder.digest(), straight.decoder.digest(), "killed at event {n}");
        assert_eq!(again.validation, straight.validation);
        assert_eq!(without_speed(&again.curve), without_speed(&straight.curve));
        assert_eq!((again.tokens, again.chosen_step), (straight.tokens, straight.chosen_step));
        let saved =
            n > events.iter().position(|e| matches!(e, TrainEvent::Checkpoint { .. })).unwrap_or(usize::MAX);
        let resumed = events.iter().any(|e| matches!(e, TrainEvent::Resumed { .. }));
        assert!(resumed || !saved);
    }
    // Killed again and again.
    let dir = temp();
    let mut lives = 0;
    while killed_at(9, dir.path(), &examples, &validation, &config) {
        lives += 1;
        assert!(lives < 20, "no progress");
    }
    assert!(lives >= 2);
    let (again, _) = run(student(3, 1), &examples, &validation, &config, dir.path());
    assert_eq!(again.decoder.digest(), straight.decoder.digest());
}

#[expect(clippy::print_stderr, reason = "a failing test tells why")]
fn eprintln_panic(info: &std::panic::PanicHookInfo<'_>) {
    eprintln!("{info}");
}

/// Not a test of its own: the process that `a_process_killed_five_times_ends_with_the_same_bits` kills.
#[test]
fn child_that_trains() {
    let Some(dir) = std::env::var_os("STILLROOM_DISTILL_TEST_DIR") else { return };
    let dir = PathBuf::from(dir);
    let config = TrainConfig { max_steps: Some(40), save_steps: 2, ..small_run() };
    let outcome = train(
        student(4, 2),
        None,
        &sentences(0..60),
        &sentences(500..510),
        &config,
        &dir.join("checkpoints"),
        &mut |_| {
            // Slow enough to be killed in the middle of things.
            std::thread::park_timeout(Duration::from_millis(5));
        },
    );
    std::fs::write(dir.join("digest"), outcome.unwrap().decoder.digest().to_string()).unwrap();
}

#[test]
fn a_process_killed_five_times_ends_with_the_same_bits() {
    assert_kills_change_nothing(
        "child_that_trains",
        "STILLROOM_DISTILL_TEST_DIR",
        (1..=5).map(|life| 6 * life),
    );
}

#[test]
fn recomputed_activations_change_no_bit_even_from_a_checkpoint_on() {
    let config = small_run();
    let recomputing = TrainConfig { gradient_checkpointing: true, ..config.clone() };
    let digest = |config: &TrainConfig, dir: &Path| {
        run(student(4, 1), &sentences(0..40), &[], config, dir).0.decoder.digest()
    };
    let (plain, other, changed) = (temp(), temp(), temp());
    let expected = digest(&config, plain.path());
    assert_eq!(digest(&recomputing, other.path()), expected);
    // Half of the run with all activations kept, the rest without.
    digest(&config, changed.path());
    let last = changed.path().join("step-000012");
    assert!(last.exists(), "the last step is saved");
    std::fs::remove_dir_all(last).unwrap();
    assert_eq!(digest(&recomputing, changed.path()), expected);
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let examples: Vec<Example> = sentences(0..60).into_iter().map(taught).collect();
    let config = TrainConfig { losses: hard_and_kl(1.0, 0.5), ..small_run() };
    let digests = [1, 2, 3].map(|n_threads| {
        let dir = temp();
        run(student(3, n_threads), &examples, &examples[..5], &config, dir.path()).0.decoder.digest()
    });
    assert!(digests.iter().all(|d| *d == digests[0]), "{digests:?}");
}

fn greatest_difference(a: &Decoder, b: &Decoder) -> f32 {
    let pairs = a.tensors().zip(b.tensors());
    pairs
        .flat_map(|(a, b)| a.data.into_iter().zip(b.data).map(|(x, y)| (x - y).abs()).collect::<Vec<_>>())
        .fold(0.0, f32::max)
}

#[test]
fn accumulation_changes_nothing_but_rounding() {
    let examples: Vec<Example> = sentences(0..90).into_iter().map(taught).collect();
    // Adam divides by gradients of any size, so rounding is compared where ε is not negligible.
    let config = |batch, accumulation| TrainConfig {
        per_device_train_batch_size: batch,
        gradient_accumulation_steps: accumulation,
        losses: hard_and_kl(1.0, 0.5),
        adam_epsilon: 1e-4,
        max_steps: Some(8),
        logging_steps: 1,
        ..small_run()
    };
    let outcomes = [(8, 1), (4, 2), (1, 8)].map(|(batch, accumulation)| {
        let dir = temp();
        run(student(3, 2), &examples, &[], &config(batch, accumulation), dir.path()).0
    });
    let moved = greatest_difference(&outcomes[0].decoder, &student(3, 2));
    for other in &outcomes[1..] {
        let difference = greatest_difference(&outcomes[0].decoder, &other.decoder);
        assert!(difference < 2e-4 * moved, "{difference} of {moved}");
        for (a, b) in outcomes[0].curve.iter().zip(&other.curve) {
            assert!((a.loss - b.loss).abs() < 1e-5 && (a.grad_norm - b.grad_norm).abs() < 1e-4 * a.grad_norm);
            assert_eq!((a.tokens, a.supervised_tokens), (b.tokens, b.supervised_tokens));
        }
    }
}

#[test]
fn tokens_behind_the_last_supervised_one_change_no_bit() {
    let with_tail = |junk: u32| -> Vec<Example> {
        let extend = |mut e: Example| {
            (0..4).for_each(|k| {
                e.ids.push((junk + k) % VOCAB as u32);
                e.supervised.push(false);
            });
            e
        };
        sentences(0..40).into_iter().map(extend).collect()
    };
    let digests = [2, 9].map(|junk| {
        let dir = temp();
        run(student(3, 2), &with_tail(junk), &[], &small_run(), dir.path()).0.decoder.digest()
    });
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn packing_only_moves_documents() {
    let examples = sentences(0..24);
    // All documents in one step, packed or not.
    let config = |packing, batch| TrainConfig {
        packing,
        per_device_train_batch_size: batch,
        max_steps: Some(1),
        warmup_ratio: 0.0,
        logging_steps: 1,
        ..small_run()
    };
    let [packed, alone] = [(true, 24), (false, 24)].map(|(packing, batch)| {
        let dir = temp();
        run(student(3, 2), &examples, &[], &config(packing, batch), dir.path()).0
    });
    assert!(packed.plan.rows_first_epoch < alone.plan.rows_first_epoch);
    assert!(packed.plan.fill > 2.0 * alone.plan.fill);
    assert_eq!(packed.tokens, alone.tokens);
    assert!((packed.curve[0].loss - alone.curve[0].loss).abs() < 1e-9);
    assert!((packed.curve[0].grad_norm - alone.curve[0].grad_norm).abs() < 1e-5 * alone.curve[0].grad_norm);
}

#[test]
fn the_best_checkpoint_on_validation_is_given_back_and_kept() {
    let dir = temp();
    // Sixteen sentences are soon learned by heart, at the cost of all others.
    let config = TrainConfig {
        learning_rate: 2e-2,
        lr_scheduler_type: SchedulerType::Constant,
        weight_decay: 0.0,
        max_steps: Some(120),
        eval_steps: 10,
        save_steps: 10,
        per_device_train_batch_size: 8,
        ..small_run()
    };
    let validation = sentences(900..930);
    let (outcome, _) = run(student(3, 2), &sentences(0..4), &validation, &config, dir.path());
    let best = outcome.validation[1..].iter().min_by(|a, b| a.loss.total_cmp(&b.loss)).unwrap();
    assert_eq!(outcome.best_step, Some(best.step));
    assert_eq!(outcome.chosen_step, best.step);
    assert!(best.step < 120, "validation never turned: {:?}", outcome.validation);
    assert_eq!(names(dir.path()), [format!("step-{:06}", best.step), "step-000120".into()]);
    // Measured again, alone.
    let again = TrainConfig { learning_rate: 0.0, max_steps: Some(1), ..config.clone() };
    let (measured, _) = run(outcome.decoder, &sentences(0..4), &validation, &again, temp().path());
    assert_eq!(measured.validation[0].loss, best.loss);
    // Finished already: the same again without a step.
    let (twice, events) = run(student(3, 2), &sentences(0..4), &validation, &config, dir.path());
    assert_eq!(twice.decoder.digest(), measured.decoder.digest());
    assert!(events.iter().all(|e| !matches!(e, TrainEvent::Step(_))));
    // Without its best checkpoint the last one is of no use.
    std::fs::remove_file(dir.path().join(format!("step-{:06}/model.safetensors", best.step))).unwrap();
    let (third, events) = run(student(3, 2), &sentences(0..4), &validation, &config, dir.path());
    assert!(matches!(&events[1], TrainEvent::CheckpointSkipped { name, .. } if name == "step-000120"));
    assert_eq!(third.decoder.digest(), measured.decoder.digest());
}

#[test]
fn damaged_checkpoints_are_skipped_and_the_result_is_the_same() {
    let examples = sentences(0..60);
    let config = TrainConfig { save_total_limit: 0, ..small_run() };
    let straight_dir = temp();
    let (straight, _) = run(student(3, 1), &examples, &[], &config, straight_dir.path());
    assert_eq!(names(straight_dir.path()), ["step-000003", "step-000006", "step-000009", "step-000012"]);
    type Damage = fn(&Path);
    let damages: [Damage; 6] = [
        |dir| {
            let path = dir.join("step-000012/model.safetensors");
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        },
        |dir| {
            let path = dir.join("step-000012/optimiser.safetensors");
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
        },
        |dir| std::fs::remove_file(dir.join("step-000012/state.json")).unwrap(),
        |dir| std::fs::write(dir.join("step-000012/state.json"), b"").unwrap(),
        |dir| {
            std::fs::remove_dir_all(dir.join("step-000012")).unwrap();
            std::fs::rename(dir.join("step-000009"), dir.join("step-000012")).unwrap();
        },
        |dir| std::fs::create_dir(dir.join(".partial-1-1-step000012")).unwrap(),
    ];
    for (i, damage) in damages.into_iter().enumerate() {
        let dir = temp();
        run(student(3, 1), &examples, &[], &config, dir.path());
        damage(dir.path());
        let (again, events) = run(student(3, 1), &examples, &[], &config, dir.path());
        assert_eq!(again.decoder.digest(), straight.decoder.digest(), "damage {i}");
        let skipped = events.iter().any(|e| matches!(e, TrainEvent::CheckpointSkipped { .. }));
        assert_eq!(skipped, i < 5, "damage {i}");
        assert_eq!(names(dir.path()).last().unwrap(), "step-000012");
    }
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let examples: Vec<Example> = sentences(0..30).into_iter().map(taught).collect();
    let config = TrainConfig { losses: hard_and_kl(1.0, 1.0), ..small_run() };
    let dir = temp();
    attempt(student(3, 1), &examples, &config, dir.path()).unwrap();
    let refused = |result| match fails(result) {
        DistillError::ForeignCheckpoint { what, .. } => what,
        other => panic!("{other}"),
    };
    let other = TrainConfig { learning_rate: 1e-3, ..config.clone() };
    assert_eq!(refused(attempt(student(3, 1), &examples, &other, dir.path())), "settings");
    assert_eq!(refused(attempt(student(4, 1), &examples, &config, dir.path())), "initial weights");
    assert_eq!(refused(attempt(student(3, 1), &examples[1..], &config, dir.path())), "examples");
    let mut shifted = examples.clone();
    shifted[7].sparse.as_mut().unwrap()[0].teacher_entropy += 0.001;
    assert_eq!(refused(attempt(student(3, 1), &shifted, &config, dir.path())), "examples");
    // Saving and logging may change.
    let saving = TrainConfig { save_steps: 1, logging_steps: 1, ..config.clone() };
    attempt(student(3, 1), &examples, &saving, dir.path()).unwrap();
    remove_checkpoints(dir.path()).unwrap();
    attempt(student(4, 1), &examples, &config, dir.path()).unwrap();
}

#[test]
fn a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint() {
    let dir = temp();
    let config = TrainConfig {
        learning_rate: 1e30,
        warmup_ratio: 0.3,
        max_grad_norm: 0.0,
        save_steps: 1,
        ..small_run()
    };
    let error = fails(attempt(student(3, 1), &sentences(0..30), &config, dir.path()));
    let (step, checkpoint) = match &error {
        DistillError::NonFiniteLoss { step, checkpoint, .. } => (*step, checkpoint.clone().unwrap()),
        DistillError::NonFiniteGradient { step, checkpoint, .. } => (*step, checkpoint.clone().unwrap()),
        other => panic!("{other}"),
    };
    assert!((2..6).contains(&step), "{error}");
    assert_eq!(checkpoint, dir.path().join(format!("step-{:06}", step - 1)));
    assert!(checkpoint.join("state.json").exists());
    assert_eq!(error.kind(), ErrorKind::Failed);
    assert!(error.to_string().contains(&format!("step {step}")) && error.fix().is_some());
}

#[test]
fn what_cannot_be_right_is_refused_before_anything_is_written() {
    let dir = temp();
    let at = dir.path().join("checkpoints");
    let fail = |examples: &[Example], config: &TrainConfig| {
        let error = fails(attempt(student(3, 1), examples, config, &at));
        assert!(!at.exists());
        error
    };
    let good = sentences(0..5);
    let config = small_run();
    assert!(matches!(fail(&[], &config), DistillError::NoExamples { .. }));
    let wrong = TrainConfig { max_length: 0, ..config.clone() };
    assert_eq!(fail(&good, &wrong).kind(), ErrorKind::BadRecipe);
    let kl = TrainConfig { losses: hard_and_kl(1.0, 1.0), ..config.clone() };
    assert!(matches!(fail(&good, &kl), DistillError::NoTeacherTargets { .. }));
    let short = TrainConfig { max_length: 8, ..config.clone() };
    assert!(matches!(fail(&good, &short), DistillError::TooLong { max_length: 8, .. }));
    let foreign = Example::from_text_ids("x", vec![1, VOCAB as u32]).unwrap();
    assert!(matches!(fail(&[foreign], &config), DistillError::Example { .. }));
    let mut partial = taught(sentence(1));
    partial.sparse.as_mut().unwrap()[0].probs[0] = 0.1;
    assert!(matches!(fail(std::slice::from_ref(&partial), &kl), DistillError::Example { .. }));
    // The model's context bounds documents too: 64 positions.
    let long = Example::from_text_ids("long", vec![1; 65]).unwrap();
    let wide = TrainConfig { max_length: 100, ..config.clone() };
    assert!(matches!(fail(std::slice::from_ref(&long), &wide), DistillError::TooLong { max_length: 64, .. }));
    let cut = TrainConfig { overlong: Overlong::Truncate, max_steps: Some(1), ..wide };
    let (outcome, _) = run(student(3, 1), &[long], &[], &cut, &at);
    assert_eq!((outcome.plan.truncated, outcome.tokens), (1, 64));
}

#[test]
fn a_plan_tells_what_training_does() {
    let examples = sentences(0..50);
    let config = TrainConfig { max_steps: None, num_train_epochs: 2.5, ..small_run() };
    let planned = plan(&examples, &config).unwrap();
    let (outcome, _) = run(student(3, 2), &examples, &[], &config, temp().path());
    assert_eq!(outcome.plan, planned);
    assert_eq!(outcome.steps, planned.steps);
    assert!(outcome.tokens > 2 * planned.tokens_per_epoch && outcome.tokens < 3 * planned.tokens_per_epoch);
    assert!(planned.fill > 0.8 && planned.fill <= 1.0);
    assert!((outcome.curve.last().unwrap().epoch - 2.5).abs() < 0.2);
}

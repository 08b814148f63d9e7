//! Learning from one's own text: it learns, the same bits come out whatever happens on the way, and what cannot be
//! right is refused.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{VOCAB, assert_kills_change_nothing, sentence, sentences, small_run, student, tiny_config};
use stillroom_core::ErrorKind;
use stillroom_distill::{
    DistillError, Example, LossFunction, LossTerm, Material, OnPolicy, RolloutPrompt, RolloutPrompts,
    TrainConfig, TrainEvent, TrainOutcome, TrainPoint, train_with_rollouts,
};
use stillroom_formats::{DecoderConfig, Family};
use stillroom_model::Decoder;

const END: u32 = 11;

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn teacher(seed: u64, n_threads: usize) -> Decoder {
    let config = DecoderConfig { family: Family::Qwen3, qk_norm: true, hidden_size: 32, ..tiny_config() };
    Decoder::random(student(1, n_threads).device().clone(), config, seed)
}

/// The prompts of the sentences, which have three tokens.
fn prompts(keys: std::ops::Range<u64>) -> Vec<RolloutPrompt> {
    keys.map(|key| RolloutPrompt { id: key.to_string(), ids: sentence(key).ids[..3].to_vec() }).collect()
}

fn on_policy(fraction: f64) -> OnPolicy {
    OnPolicy {
        on_policy_fraction: fraction,
        max_new_tokens: 14,
        rollouts_per_step: Some(6),
        stop_token_ids: vec![END],
        ..OnPolicy::default()
    }
}

fn config(losses: &[LossFunction], on_policy: OnPolicy) -> TrainConfig {
    let losses = losses.iter().map(|&function| LossTerm::new(function)).collect();
    TrainConfig { losses, on_policy: Some(on_policy), ..small_run() }
}

/// Half of the steps on-policy, half of their texts from a buffer, whole and sampled divergences.
fn mixed() -> TrainConfig {
    let replay =
        OnPolicy { replay_buffer_size: 16, replay_fraction: 0.5, replay_max_staleness: 6, ..on_policy(0.6) };
    let losses = [LossFunction::ReverseKl, LossFunction::SampledReverseKl, LossFunction::HardLabels];
    TrainConfig {
        save_steps: 2,
        max_steps: Some(20),
        gradient_accumulation_steps: 2,
        ..config(&losses, replay)
    }
}

fn attempt(
    n_threads: usize,
    examples: &[Example],
    config: &TrainConfig,
    dir: &Path,
    sink: &mut dyn FnMut(TrainEvent),
) -> stillroom_distill::Result<TrainOutcome> {
    let (train, validation) = (prompts(0..20), prompts(500..512));
    let held = if examples.is_empty() { Vec::new() } else { sentences(500..505) };
    let prompts = Some(RolloutPrompts { train: &train, validation: &validation });
    let material =
        Material { examples, validation: &held, prompts, matched: None, ensemble: None, scorer: None };
    train_with_rollouts(student(3, n_threads), Some(&teacher(9, n_threads)), material, config, dir, sink)
}

fn run(
    n_threads: usize,
    examples: &[Example],
    config: &TrainConfig,
    dir: &Path,
) -> (TrainOutcome, Vec<TrainEvent>) {
    let mut events = Vec::new();
    let outcome = attempt(n_threads, examples, config, dir, &mut |event| events.push(event));
    (outcome.unwrap(), events)
}

fn without_speed(curve: &[TrainPoint]) -> Vec<TrainPoint> {
    let plain = |point: &TrainPoint| {
        let mut point = TrainPoint { tokens_per_second: 0.0, ..point.clone() };
        point.rollouts.iter_mut().for_each(|rollouts| rollouts.seconds = 0.0);
        point
    };
    curve.iter().map(plain).collect()
}

struct Killed;

#[test]
fn killed_between_rollouts_a_run_ends_with_the_same_bits_on_any_number_of_threads() {
    std::panic::set_hook(Box::new(|_| ()));
    let (config, examples) = (mixed(), sentences(0..60));
    let dir = temp();
    let (straight, events) = run(1, &examples, &config, dir.path());
    assert_eq!(run(2, &examples, &config, temp().path()).0.decoder.digest(), straight.decoder.digest());
    let rollouts = || straight.curve.iter().filter_map(|point| point.rollouts.as_ref());
    let replayed: u64 = rollouts().map(|point| point.replayed).sum();
    assert!(replayed > 5, "something of the buffer is needed after a kill: {replayed}");
    for n in (1..events.len()).step_by(3) {
        let dir = temp();
        let mut seen = 0;
        let killed = catch_unwind(AssertUnwindSafe(|| {
            drop(attempt(1 + n % 2, &examples, &config, dir.path(), &mut |_| {
                seen += 1;
                if seen > n {
                    panic_any(Killed);
                }
            }));
        }));
        assert!(killed.is_err_and(|payload| payload.is::<Killed>()), "killed at event {n}");
        let (again, events) = run(2 - n % 2, &examples, &config, dir.path());
        assert_eq!(again.decoder.digest(), straight.decoder.digest(), "killed at event {n}");
        assert_eq!(again.validation, straight.validation);
        assert_eq!(without_speed(&again.curve), without_speed(&straight.curve));
        let resumed = events.iter().any(|event| matches!(event, TrainEvent::Resumed { .. }));
        assert!(resumed || n < 5, "killed at event {n}");
    }
}

/// Not a test of its own: the process that the next test kills.
#[test]
fn child_that_writes_and_learns() {
    let Some(dir) = std::env::var_os("STILLROOM_DISTILL_ROLLOUTS_DIR") else { return };
    let dir = PathBuf::from(dir);
    let config = TrainConfig { max_steps: Some(40), ..mixed() };
    // Slow enough to be killed in the middle of things.
    let mut slowly = |_| std::thread::park_timeout(Duration::from_millis(5));
    let outcome = attempt(2, &sentences(0..60), &config, &dir.join("checkpoints"), &mut slowly);
    std::fs::write(dir.join("digest"), outcome.unwrap().decoder.digest().to_string()).unwrap();
}

#[test]
fn a_process_killed_four_times_among_rollouts_ends_with_the_same_bits() {
    assert_kills_change_nothing(
        "child_that_writes_and_learns",
        "STILLROOM_DISTILL_ROLLOUTS_DIR",
        (1..=4).map(|life| 8 * life),
    );
}

#[test]
fn a_step_is_on_policy_with_the_probability_asked_for() {
    let config = |fraction| TrainConfig {
        max_steps: Some(40),
        logging_steps: 1,
        eval_steps: 0,
        ..config(&[LossFunction::ReverseKl], on_policy(fraction))
    };
    let steps = |fraction: f64, seed| -> Vec<bool> {
        let config = TrainConfig { seed, ..config(fraction) };
        let (outcome, _) = run(2, &sentences(0..60), &config, temp().path());
        outcome.curve.iter().map(|point| point.rollouts.is_some()).collect()
    };
    let half = steps(0.5, 5);
    let n = half.iter().filter(|&&own| own).count();
    assert!((10..=30).contains(&n), "{n} of 40");
    assert_eq!(half, steps(0.5, 5));
    assert_ne!(half, steps(0.5, 6));
    // A greater fraction only adds steps: the numbers behind the choice are the same.
    let more = steps(0.8, 5);
    assert!(half.iter().zip(&more).all(|(half, more)| *more || !half));
    assert!(steps(1.0, 5).iter().all(|&own| own));
}

#[test]
fn without_any_given_text_whole_and_sampled_reverse_kl_pull_the_student_to_its_teacher() {
    for (loss, name, share) in [
        (LossFunction::ReverseKl, "reverse_kl", 0.5),
        (LossFunction::SampledReverseKl, "sampled_reverse_kl", 0.7),
    ] {
        let config = TrainConfig {
            max_steps: Some(150),
            eval_steps: 50,
            save_steps: 0,
            logging_steps: 50,
            learning_rate: 6e-3,
            weight_decay: 0.0,
            ..config(&[loss], OnPolicy { rollouts_per_step: Some(24), ..on_policy(1.0) })
        };
        let (outcome, _) = run(2, &[], &config, temp().path());
        let points: Vec<f64> = outcome.validation.iter().map(|point| point.loss).collect();
        assert!(points[3] < share * points[0], "{name}: {points:?}");
        let last = outcome.validation.last().unwrap();
        assert_eq!(last.divergences[name], last.loss);
        let own = last.rollouts.as_ref().unwrap();
        assert!(own.loss == last.loss && own.new_tokens > 1.0, "{own:?}");
        assert_eq!(outcome.plan.examples, 20, "the prompts");
        let point = outcome.curve[0].rollouts.as_ref().unwrap();
        assert_eq!((point.share_of_steps, point.written, point.replayed), (1.0, 50 * 24, 0));
        assert_eq!((point.unique_prompts, point.mean_staleness), (20, 0.0));
        // Of the sampled loss no whole distribution is asked.
        assert_eq!(last.captured_mass.is_some(), loss == LossFunction::ReverseKl);
    }
}

#[test]
fn the_buffer_gives_its_share_and_nothing_too_old() {
    let config = |size, staleness| {
        let replay = OnPolicy {
            replay_buffer_size: size,
            replay_fraction: 0.5,
            replay_max_staleness: staleness,
            ..on_policy(1.0)
        };
        TrainConfig { logging_steps: 1, eval_steps: 0, ..config(&[LossFunction::ReverseKl], replay) }
    };
    let (outcome, _) = run(2, &[], &config(100, 3), temp().path());
    for (i, point) in outcome.curve.iter().enumerate() {
        let point = point.rollouts.as_ref().unwrap();
        let replayed = if i == 0 { 0 } else { 3 };
        assert_eq!((point.written, point.replayed), (6 - replayed, replayed));
        // 3 of 6 texts are at most 3 steps old.
        assert!(point.mean_staleness <= 1.5 && (i == 0 || point.mean_staleness >= 0.5), "{point:?}");
    }
    // A buffer of two, and one that forgets at once.
    let (outcome, _) = run(2, &[], &config(2, 3), temp().path());
    assert!(outcome.curve[1..].iter().all(|point| point.rollouts.as_ref().unwrap().replayed == 2));
    let (outcome, _) = run(2, &[], &config(100, 0), temp().path());
    assert!(outcome.curve.iter().all(|point| point.rollouts.as_ref().unwrap().replayed == 0));
}

#[test]
fn points_compare_and_mix_both_kinds_of_text_as_training_does() {
    let config = TrainConfig { max_steps: Some(4), eval_steps: 0, ..mixed() };
    let (outcome, _) = run(2, &sentences(0..60), &config, temp().path());
    let point = outcome.validation.last().unwrap();
    let own = point.rollouts.as_ref().unwrap();
    let sum = own.divergences["reverse_kl"] + own.divergences["sampled_reverse_kl"];
    assert!((own.loss - sum).abs() < 1e-9, "hard labels teach nothing on one's own text: {own:?}");
    // Both were measured on the same tokens.
    assert!((own.divergences["reverse_kl"] - own.divergences["sampled_reverse_kl"]).abs() < 0.3, "{own:?}");
    assert_eq!(point.divergences["sampled_reverse_kl"], own.divergences["sampled_reverse_kl"]);
    // reverse_kl + hard labels of the given text, and the student's own text with its share of 0.6.
    let given = |mixed: f64, own: f64| (mixed - 0.6 * own) / 0.4;
    let loss = given(point.loss, own.loss);
    let parts = given(point.divergences["reverse_kl"], own.divergences["reverse_kl"])
        + given(point.hard_label, own.hard_label);
    assert!((loss - parts).abs() < 1e-9, "{point:?}");
}

#[test]
fn what_cannot_be_right_is_refused_before_anything_is_written() {
    let dir = temp();
    let at = dir.path().join("checkpoints");
    let fail = |examples: &[Example], config: &TrainConfig| {
        let error = attempt(1, examples, config, &at, &mut |_| {}).unwrap_err();
        assert!(!at.exists(), "{error}");
        error
    };
    let given = sentences(0..5);
    let key = |error: DistillError| match &error {
        DistillError::Config { key, .. } => {
            assert_eq!(error.kind(), ErrorKind::BadRecipe);
            *key
        }
        other => panic!("{other}"),
    };
    let (sampled, hard, rkl) =
        (LossFunction::SampledReverseKl, LossFunction::HardLabels, LossFunction::ReverseKl);
    let off = TrainConfig { on_policy: None, ..config(&[sampled], on_policy(1.0)) };
    assert_eq!(key(fail(&given, &off)), "losses");
    assert_eq!(key(fail(&given, &config(&[hard], on_policy(1.0)))), "on_policy_fraction");
    assert_eq!(key(fail(&given, &config(&[sampled], on_policy(0.5)))), "on_policy_fraction");
    let warm = OnPolicy { rollout_temperature: 0.7, ..on_policy(1.0) };
    assert_eq!(key(fail(&given, &config(&[sampled], warm.clone()))), "losses");
    let narrow = OnPolicy { rollout_top_p: 0.9, ..on_policy(1.0) };
    assert_eq!(key(fail(&given, &config(&[sampled], narrow))), "losses");
    let softened = vec![LossTerm::new(sampled).at_temperature(2.0)];
    let softened = TrainConfig { losses: softened, ..config(&[sampled], on_policy(1.0)) };
    assert_eq!(key(fail(&given, &softened)), "temperature");
    let half = OnPolicy { replay_fraction: 0.5, ..on_policy(1.0) };
    assert_eq!(key(fail(&given, &config(&[rkl], half))), "replay_fraction");
    assert_eq!(key(fail(&given, &config(&[rkl], on_policy(0.0)))), "on_policy_fraction");
    assert!(matches!(fail(&[], &config(&[rkl], on_policy(0.5))), DistillError::NoExamples { .. }));
    let long = OnPolicy { max_new_tokens: 46, ..on_policy(1.0) };
    let long = fail(&given, &config(&[rkl], long));
    assert!(matches!(long, DistillError::PromptTooLong { n_tokens: 3, max_length: 48, .. }), "{long}");
    // Without a teacher at hand, and with prompts that are none.
    let attempt = |teacher: Option<&Decoder>, prompts: &[RolloutPrompt], config: &TrainConfig| {
        let prompts = Some(RolloutPrompts { train: prompts, validation: &[] });
        let material = Material {
            examples: &given,
            validation: &[],
            prompts,
            matched: None,
            ensemble: None,
            scorer: None,
        };
        let error =
            train_with_rollouts(student(3, 1), teacher, material, config, &at, &mut |_| {}).unwrap_err();
        assert!(!at.exists());
        error
    };
    let whole = config(&[rkl], warm);
    let alone = attempt(None, &prompts(0..3), &config(&[sampled], on_policy(1.0)));
    assert!(matches!(alone, DistillError::NoLiveTeacher { .. }) && alone.kind() == ErrorKind::BadRecipe);
    assert!(alone.fix().is_some_and(|fix| fix.contains("kind = \"live\"")));
    let (teacher, wrong) =
        (teacher(9, 1), |ids: &[u32]| [RolloutPrompt { id: "x".into(), ids: ids.to_vec() }]);
    assert!(matches!(attempt(Some(&teacher), &[], &whole), DistillError::NoExamples { .. }));
    assert!(matches!(attempt(Some(&teacher), &wrong(&[]), &whole), DistillError::Example { .. }));
    let outside = wrong(&[VOCAB as u32]);
    assert!(matches!(attempt(Some(&teacher), &outside, &whole), DistillError::Example { .. }));
}

#[test]
fn a_checkpoint_of_other_prompts_or_rollouts_is_refused() {
    let dir = temp();
    let config = TrainConfig { max_steps: Some(2), ..config(&[LossFunction::ReverseKl], on_policy(1.0)) };
    run(1, &[], &config, dir.path());
    let refused = |prompts: &[RolloutPrompt], config: &TrainConfig| {
        let prompts = Some(RolloutPrompts { train: prompts, validation: &[] });
        let material =
            Material { examples: &[], validation: &[], prompts, matched: None, ensemble: None, scorer: None };
        let teacher = teacher(9, 1);
        match train_with_rollouts(student(3, 1), Some(&teacher), material, config, dir.path(), &mut |_| {}) {
            Err(DistillError::ForeignCheckpoint { what, .. }) => what,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(&prompts(0..19), &config), "examples");
    let longer = OnPolicy { max_new_tokens: 15, ..on_policy(1.0) };
    let other = TrainConfig { on_policy: Some(longer), ..config.clone() };
    assert!(["examples", "settings"].contains(&refused(&prompts(0..20), &other)));
    let (again, events) = run(1, &[], &config, dir.path());
    assert_eq!(again.steps, 2);
    assert!(events.iter().all(|event| !matches!(event, TrainEvent::Step(_))));
}

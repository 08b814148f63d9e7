//! A teacher that is at hand while the student trains: the same as its whole distributions in a cache, the same
//! bits after a kill, and what is refused of it.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::path::Path;

use common::{VOCAB, hard_and_kl, run, run_with, sentences, small_run, student, tiny_config};
use stillroom_core::{ErrorKind, Tail};
use stillroom_distill::{
    DistillError, Example, LossFunction, LossTerm, LossWeight, TrainConfig, TrainEvent, TrainPoint, train,
};
use stillroom_formats::{DecoderConfig, Family};
use stillroom_model::{Decoder, DivergenceError};

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// A teacher of another shape than the student.
fn teacher(seed: u64, vocab_size: usize, n_threads: usize) -> Decoder {
    let config = DecoderConfig {
        family: Family::Qwen2,
        hidden_size: 32,
        vocab_size,
        num_attention_heads: 4,
        qkv_bias: true,
        ..tiny_config()
    };
    let device = student(1, n_threads).device().clone();
    Decoder::random(device, config, seed)
}

/// The examples with the teacher's whole distributions, as a cache of the V likeliest tokens has them.
fn cached(mut examples: Vec<Example>, teacher: &Decoder, temperature: f32) -> Vec<Example> {
    for example in &mut examples {
        let wanted = [example.wanted_positions()];
        let rows = teacher.top_k_targets(&[&example.ids], &wanted, VOCAB, temperature);
        example.sparse = rows.into_iter().next();
    }
    examples
}

fn greatest_difference(a: &Decoder, b: &Decoder) -> f32 {
    let pairs = a.tensors().zip(b.tensors());
    pairs
        .flat_map(|(a, b)| a.data.into_iter().zip(b.data).map(|(x, y)| (x - y).abs()).collect::<Vec<_>>())
        .fold(0.0, f32::max)
}

const JSD: LossFunction = LossFunction::Jsd { jsd_teacher_weight: 0.3 };

#[test]
fn a_live_teacher_trains_as_its_whole_cached_distributions_do() {
    let teacher = teacher(9, VOCAB, 2);
    let forward_kl = hard_and_kl(0.2, 1.0);
    let jsd = vec![LossTerm::new(JSD)];
    let skewed = vec![LossTerm::new(LossFunction::SkewReverseKl { alpha: 0.1 }).with_weight(2.0)];
    for (losses, temperature) in [(forward_kl, 1.0), (jsd, 1.0), (skewed, 2.0)] {
        let losses: Vec<LossTerm> = losses
            .into_iter()
            .map(|term| match term.function {
                LossFunction::HardLabels => term,
                _ => term.at_temperature(temperature),
            })
            .collect();
        // Adam divides by gradients of any size, so rounding is compared where ε is not negligible.
        let config = TrainConfig { losses, adam_epsilon: 1e-4, max_steps: Some(6), ..small_run() };
        let from_cache = TrainConfig { tail: Tail::Drop, ..config.clone() };
        let (examples, held) = (sentences(0..40), sentences(500..505));
        let (live, _) = run_with(student(3, 2), Some(&teacher), &examples, &held, &config, temp().path());
        let tau = temperature as f32;
        let (examples, held) = (cached(examples, &teacher, tau), cached(held, &teacher, tau));
        let (cache, _) = run(student(3, 2), &examples, &held, &from_cache, temp().path());
        let moved = greatest_difference(&live.decoder, &student(3, 2));
        let difference = greatest_difference(&live.decoder, &cache.decoder);
        assert!(moved > 1e-3 && difference < 1e-5, "{difference} of {moved}");
        for (a, b) in live.curve.iter().zip(&cache.curve) {
            assert!((a.loss - b.loss).abs() < 1e-5, "{a:?} {b:?}");
            assert_eq!(a.divergences.keys().collect::<Vec<_>>(), b.divergences.keys().collect::<Vec<_>>());
            assert!((a.captured_mass.unwrap() - 1.0).abs() < 1e-12);
        }
        for (a, b) in live.validation.iter().zip(&cache.validation) {
            assert!((a.loss - b.loss).abs() < 1e-5, "{a:?} {b:?}");
        }
    }
}

/// Two temperatures, a weight that falls and one that rises.
fn several() -> Vec<LossTerm> {
    let term =
        |function, from, to| LossTerm { weight: LossWeight::Linear { from, to }, ..LossTerm::new(function) };
    vec![
        term(LossFunction::HardLabels, 1.0, 0.0),
        term(JSD, 0.0, 2.0),
        term(JSD, 0.5, 0.5).at_temperature(3.0),
        LossTerm::new(LossFunction::Tvd).with_weight(0.3),
    ]
}

#[test]
fn each_loss_is_logged_apart_and_weights_move_with_the_steps() {
    let teacher = teacher(9, VOCAB, 1);
    let config = TrainConfig { losses: several(), logging_steps: 1, max_steps: Some(5), ..small_run() };
    let (examples, held) = (sentences(0..20), sentences(500..505));
    let (outcome, _) = run_with(student(3, 1), Some(&teacher), &examples, &held, &config, temp().path());
    let sum = |hard: f64, divergences: &std::collections::BTreeMap<String, f64>, share: f64| {
        assert_eq!(divergences.keys().collect::<Vec<_>>(), ["jsd", "jsd_2", "tvd"]);
        (1.0 - share) * hard
            + 2.0 * share * divergences["jsd"]
            + 0.5 * divergences["jsd_2"]
            + 0.3 * divergences["tvd"]
    };
    for (point, share) in outcome.curve.iter().zip([0.0, 0.25, 0.5, 0.75, 1.0]) {
        let expected = sum(point.hard_label, &point.divergences, share);
        assert!((point.loss - expected).abs() < 1e-9 * expected, "{point:?}");
    }
    assert_eq!(outcome.curve.len(), 5);
    // Points of validation compare: they have the weights of the last step.
    for point in &outcome.validation {
        let expected = sum(point.hard_label, &point.divergences, 1.0);
        assert!((point.loss - expected).abs() < 1e-9 * expected, "{point:?}");
    }
}

/// Panics out of the sink at the n-th event: nothing behind it runs any more.
struct Killed;

fn killed_at(n: usize, teacher: &Decoder, config: &TrainConfig, dir: &Path) {
    let mut seen = 0;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let (examples, held) = (sentences(0..60), sentences(500..510));
        drop(train(student(3, 1), Some(teacher), &examples, &held, config, dir, &mut |_| {
            seen += 1;
            if seen > n {
                panic_any(Killed);
            }
        }));
    }));
    assert!(outcome.is_err_and(|payload| payload.is::<Killed>()), "killed at event {n}");
}

#[test]
fn killed_beside_a_live_teacher_a_run_ends_with_the_same_bits_on_any_number_of_threads() {
    std::panic::set_hook(Box::new(|_| ()));
    let config = TrainConfig { losses: several(), gradient_accumulation_steps: 2, ..small_run() };
    let (examples, held) = (sentences(0..60), sentences(500..510));
    let whole = |n_threads: usize, dir: &Path| {
        let teacher = teacher(9, VOCAB, n_threads);
        run_with(student(3, n_threads), Some(&teacher), &examples, &held, &config, dir)
    };
    let without_speed = |curve: &[TrainPoint]| -> Vec<TrainPoint> {
        curve.iter().map(|p| TrainPoint { tokens_per_second: 0.0, ..p.clone() }).collect()
    };
    let dir = temp();
    let (straight, events) = whole(1, dir.path());
    assert_eq!(whole(3, temp().path()).0.decoder.digest(), straight.decoder.digest());
    let saved = events.iter().position(|e| matches!(e, TrainEvent::Checkpoint { .. })).unwrap();
    for n in [saved, events.len() / 2, events.len() - 2] {
        let dir = temp();
        killed_at(n, &teacher(9, VOCAB, 1), &config, dir.path());
        let (again, events) = whole(2, dir.path());
        assert_eq!(again.decoder.digest(), straight.decoder.digest(), "killed at event {n}");
        assert_eq!(again.validation, straight.validation);
        assert_eq!(without_speed(&again.curve), without_speed(&straight.curve));
        let resumed = events.iter().any(|e| matches!(e, TrainEvent::Resumed { .. }));
        assert!(resumed, "killed at event {n}");
    }
}

#[test]
fn vocabularies_that_differ_by_their_paddings_are_cut_to_what_both_have() {
    let padded = teacher(9, VOCAB + 8, 2);
    let config = TrainConfig { losses: vec![LossTerm::new(JSD)], max_steps: Some(2), ..small_run() };
    let attempt = |config: &TrainConfig| {
        let (examples, dir) = (sentences(0..20), temp());
        train(student(3, 2), Some(&padded), &examples, &[], config, dir.path(), &mut |_| {})
    };
    let refused = attempt(&config).unwrap_err();
    let vocabularies = matches!(refused, DistillError::Losses(DivergenceError::Vocabularies { .. }));
    assert!(vocabularies && refused.kind() == ErrorKind::BadRecipe, "{refused}");
    let all = attempt(&TrainConfig { n_ids: Some(VOCAB), ..config.clone() }).unwrap();
    let fewer = attempt(&TrainConfig { n_ids: Some(VOCAB - 1), ..config.clone() });
    assert!(matches!(fewer, Err(DistillError::Example { .. })), "token 12 begins every sentence");
    assert!(all.curve[0].divergences["jsd"] > 0.0);
    assert!(attempt(&TrainConfig { n_ids: Some(VOCAB + 1), ..config }).is_err());
}

#[test]
fn what_targets_cannot_give_is_refused_before_anything_is_written() {
    let dir = temp();
    let at = dir.path().join("checkpoints");
    let teacher = teacher(9, VOCAB, 1);
    let fail = |teacher: Option<&Decoder>, config: &TrainConfig| {
        let examples = cached(sentences(0..5), &self::teacher(9, VOCAB, 1), 1.0);
        let result = train(student(3, 1), teacher, &examples, &[], config, &at, &mut |_| {});
        assert!(!at.exists());
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadRecipe, "{error}");
        error
    };
    let jsd = TrainConfig { losses: vec![LossTerm::new(JSD)], ..small_run() };
    let counts = fail(None, &jsd);
    assert!(matches!(counts, DistillError::Losses(DivergenceError::Counts { divergence: "jsd" })));
    assert!(counts.fix().unwrap().contains("logits = { kind = \"live\" }"));
    let softer = LossTerm::new(LossFunction::ForwardKl).at_temperature(2.0);
    let losses = vec![LossTerm::new(JSD), softer];
    let two = fail(None, &TrainConfig { losses: losses.clone(), tail: Tail::Bucket, ..small_run() });
    assert!(matches!(two, DistillError::Losses(DivergenceError::Temperatures { .. })));
    let edge = LossTerm::new(LossFunction::Jsd { jsd_teacher_weight: 0.001 });
    let edge = fail(Some(&teacher), &TrainConfig { losses: vec![edge], ..small_run() });
    assert!(matches!(edge, DistillError::Losses(DivergenceError::TeacherWeight { .. })));
    // A teacher that no loss needs is not asked, and another one is another run.
    let live = TrainConfig { losses, max_steps: Some(1), ..small_run() };
    let run = |teacher: &Decoder, config| {
        train(student(3, 1), Some(teacher), &sentences(0..5), &[], config, &at, &mut |_| {})
    };
    run(&teacher, &live).unwrap();
    let foreign = run(&self::teacher(10, VOCAB, 1), &live).unwrap_err();
    assert!(matches!(foreign, DistillError::ForeignCheckpoint { what: "teacher weights", .. }), "{foreign}");
}

//! Several teachers beside a student: the mixture's whole distributions in a cache, the same bits after a kill, and
//! what is refused of them.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::path::Path;

use common::{VOCAB, run, sentences, small_run, student, tiny_config};
use stillroom_core::{ErrorKind, Tail};
use stillroom_distill::{
    AlignedLayers, DistillError, Example, LossFunction, LossTerm, LossWeight, Material, OnPolicy,
    RolloutPrompt, RolloutPrompts, TrainConfig, TrainEvent, TrainOutcome, train_with_rollouts,
};
use stillroom_formats::DecoderConfig;
use stillroom_model::{Decoder, Ensemble, LayerPair, LiveTeacher, WeightedTeacher};

const JSD: LossFunction = LossFunction::Jsd { jsd_teacher_weight: 0.3 };

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Two teachers of different width.
fn teachers(n_threads: usize) -> [Decoder; 2] {
    let device = student(1, n_threads).device().clone();
    let wide = DecoderConfig { hidden_size: 32, num_attention_heads: 4, ..tiny_config() };
    [Decoder::random(device.clone(), tiny_config(), 9), Decoder::random(device, wide, 10)]
}

/// Trains beside both teachers, the second with this weight.
fn beside(
    teachers: &[Decoder; 2],
    weight: f64,
    n_threads: usize,
    config: &TrainConfig,
    dir: &Path,
    sink: &mut dyn FnMut(TrainEvent),
) -> Result<TrainOutcome, DistillError> {
    let others = [WeightedTeacher { decoder: &teachers[1], weight }];
    let ensemble = Some(Ensemble { weight: 1.0, others: &others });
    let (examples, held) = (sentences(0..40), sentences(500..505));
    let prompt = |i: u32| RolloutPrompt { id: format!("p{i}"), ids: vec![12, 1 + i % 3, i % 11] };
    let prompts: Vec<RolloutPrompt> = (0..8).map(prompt).collect();
    let prompts = Some(RolloutPrompts { train: &prompts, validation: &prompts[..3] });
    let material =
        Material { examples: &examples, validation: &held, prompts, matched: None, ensemble, scorer: None };
    train_with_rollouts(student(3, n_threads), Some(&teachers[0]), material, config, dir, sink)
}

fn cached(mut examples: Vec<Example>, live: LiveTeacher<'_>, temperature: f32) -> Vec<Example> {
    for example in &mut examples {
        let wanted = [example.wanted_positions()];
        example.sparse = live.top_k_targets(&[&example.ids], &wanted, VOCAB, temperature).into_iter().next();
    }
    examples
}

fn greatest_difference(a: &Decoder, b: &Decoder) -> f32 {
    let pairs = a.tensors().zip(b.tensors()).flat_map(|(a, b)| a.data.into_iter().zip(b.data));
    pairs.map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

#[test]
fn live_teachers_train_as_their_whole_cached_mixture_does() {
    let teachers = teachers(2);
    for (function, temperature) in [(LossFunction::ForwardKl, 1.0), (JSD, 2.0)] {
        let losses = vec![LossTerm::new(function).at_temperature(temperature)];
        // Adam divides by gradients of any size, so rounding is compared where ε is not negligible.
        let config = TrainConfig { losses, adam_epsilon: 1e-4, max_steps: Some(6), ..small_run() };
        let live = beside(&teachers, 2.0, 2, &config, temp().path(), &mut |_| {}).unwrap();
        let others = [WeightedTeacher { decoder: &teachers[1], weight: 2.0 }];
        let mixture =
            LiveTeacher::alone(&teachers[0], None).mixed(Some(Ensemble { weight: 1.0, others: &others }));
        let tau = temperature as f32;
        let examples = cached(sentences(0..40), mixture, tau);
        let held = cached(sentences(500..505), mixture, tau);
        let from_cache = TrainConfig { tail: Tail::Drop, ..config.clone() };
        let (cache, _) = run(student(3, 2), &examples, &held, &from_cache, temp().path());
        let moved = greatest_difference(&live.decoder, &student(3, 2));
        let difference = greatest_difference(&live.decoder, &cache.decoder);
        assert!(moved > 1e-3 && difference < 1e-5, "{difference} of {moved}");
        // The second teacher does take part.
        let otherwise = beside(&teachers, 0.01, 2, &config, temp().path(), &mut |_| {}).unwrap();
        assert!(greatest_difference(&live.decoder, &otherwise.decoder) > 10.0 * difference.max(1e-6));
    }
}

/// Panics out of the sink: nothing behind it runs any more.
struct Killed;

#[test]
fn killed_beside_several_teachers_a_run_ends_with_the_same_bits() {
    std::panic::set_hook(Box::new(|_| ()));
    let losses = vec![LossTerm::new(JSD), LossTerm::new(LossFunction::SampledReverseKl)];
    let on_policy = OnPolicy {
        on_policy_fraction: 0.5,
        max_new_tokens: 6,
        stop_token_ids: vec![4],
        ..OnPolicy::default()
    };
    let config = TrainConfig { losses, on_policy: Some(on_policy), ..small_run() };
    let mut events = Vec::new();
    let straight =
        beside(&teachers(1), 0.5, 1, &config, temp().path(), &mut |event| events.push(event)).unwrap();
    assert!(straight.curve.iter().any(|point| point.rollouts.is_some()));
    let saved = events.iter().position(|event| matches!(event, TrainEvent::Checkpoint { .. })).unwrap();
    for n in [saved + 1, events.len() - 2] {
        let dir = temp();
        let mut seen = 0;
        let killed = catch_unwind(AssertUnwindSafe(|| {
            drop(beside(&teachers(1), 0.5, 1, &config, dir.path(), &mut |_| {
                seen += 1;
                if seen > n {
                    panic_any(Killed);
                }
            }));
        }));
        assert!(killed.is_err_and(|payload| payload.is::<Killed>()), "killed at event {n}");
        // Other weights are other teachers.
        let foreign = beside(&teachers(1), 0.6, 1, &config, dir.path(), &mut |_| {}).unwrap_err();
        assert!(
            matches!(foreign, DistillError::ForeignCheckpoint { what: "teacher weights", .. }),
            "{foreign}"
        );
        let again = beside(&teachers(3), 0.5, 3, &config, dir.path(), &mut |_| {}).unwrap();
        assert_eq!(again.decoder.digest(), straight.decoder.digest(), "killed at event {n}");
        assert_eq!(again.validation, straight.validation);
    }
}

#[test]
fn what_one_teacher_alone_can_give_is_refused_of_several() {
    let dir = temp();
    let at = dir.path().join("checkpoints");
    let fail = |config: &TrainConfig| {
        let error = beside(&teachers(1), 1.0, 1, config, &at, &mut |_| {}).unwrap_err();
        assert!(!at.exists() && error.kind() == ErrorKind::BadRecipe && error.fix().is_some(), "{error}");
        error.to_string()
    };
    let of = |losses: Vec<LossTerm>| TrainConfig { losses, ..small_run() };
    assert!(fail(&of(vec![LossTerm::new(LossFunction::Uld)])).starts_with("`uld` and `gold` cannot"));
    let alm = vec![LossTerm::new(LossFunction::Alm), LossTerm::new(JSD)];
    assert!(fail(&of(alm)).starts_with("`alm` cannot be taken of several teachers"));
    let layers = vec![LayerPair { teacher: 0, student: 0 }];
    let aligned = Some(AlignedLayers { layers, weight: LossWeight::Constant(1.0) });
    let hidden = TrainConfig { hidden_alignment: aligned, ..of(vec![LossTerm::new(JSD)]) };
    assert!(fail(&hidden).starts_with("`hidden_alignment` cannot"));
}

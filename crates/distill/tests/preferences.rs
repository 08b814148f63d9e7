//! The preference loss against TRL's own (`oracles/preferences.py`), and training on pairs.

mod common;

use std::f64::consts::LN_2;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};

use common::{run, sentence, sentences, small_run, student};
use serde::Deserialize;
use stillroom_distill::{
    DirectPreference, DistillError, Example, LossFunction, LossTerm, PairRows, TrainConfig, TrainEvent,
    examples, preference_losses, train,
};
use stillroom_model::{Decoder, LabelLoss};

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    beta: f64,
    /// By pair: of the preferred reply, then of the other.
    logprobs: Vec<[Vec<f32>; 2]>,
    reference: Vec<[f64; 2]>,
    loss: f64,
    gradients: Vec<[Vec<f64>; 2]>,
    accuracy: f64,
    margin: f64,
}

#[test]
fn losses_gradients_and_rewards_are_those_of_trl() {
    let golden: Golden = serde_json::from_str(include_str!("data/preferences.json")).unwrap();
    assert_eq!(golden.cases.len(), 4);
    for case in golden.cases {
        let n = case.logprobs.len() as f64;
        let pairs = case.logprobs.iter().zip(&case.reference).map(|(replies, &reference)| {
            let sizes = [replies[0].len(), replies[1].len()];
            PairRows { sizes, reference }
        });
        let loss = DirectPreference { beta: case.beta, pairs: pairs.collect() };
        let logprobs: Vec<f32> = case.logprobs.concat().concat();
        let (mut losses, mut slopes) = (vec![0.0; logprobs.len()], vec![0.0; logprobs.len()]);
        loss.evaluate(0..logprobs.len(), &logprobs, &mut losses, &mut slopes);
        let mean = losses.iter().map(|&l| f64::from(l)).sum::<f64>() / n;
        assert!((mean - case.loss).abs() < 1e-6, "{mean} against {}", case.loss);
        for (slope, expected) in slopes.iter().zip(case.gradients.concat().concat()) {
            assert!((f64::from(*slope) / n - expected).abs() < 1e-7, "{slope} against {expected}");
        }
        let mut start = 0;
        let rewards = loss.pairs.iter().map(|pair| {
            let end = start + pair.sizes[0] + pair.sizes[1];
            let rewards = loss.rewards(pair, &logprobs[start..end]);
            start = end;
            rewards
        });
        let margins: Vec<f64> = rewards.map(|rewards| rewards.margin()).collect();
        assert!((margins.iter().sum::<f64>() / n - case.margin).abs() < 1e-6);
        assert!((margins.iter().filter(|&&m| m > 0.0).count() as f64 / n - case.accuracy).abs() < 1e-6);
    }
}

const DPO: LossFunction = LossFunction::Dpo { beta: 0.5 };

fn settings() -> TrainConfig {
    TrainConfig { losses: vec![LossTerm::new(DPO)], max_length: 96, learning_rate: 2e-3, ..small_run() }
}

/// Sentences that were preferred to ones that count on in another step.
fn pairs(keys: std::ops::Range<u64>, reference: &Decoder) -> Vec<Example> {
    let pair = |key| {
        let chosen = sentence(key);
        let mut ids = chosen.ids.clone();
        (3..ids.len()).for_each(|t| ids[t] = (ids[t - 1] + 4 + key as u32 % 3) % 11);
        let rejected = Example::new("other", ids, chosen.supervised.clone(), None).unwrap();
        Example::pair(chosen, rejected)
    };
    let mut pairs: Vec<Example> = keys.map(pair).collect();
    examples::score_by_reference(&mut pairs, reference).unwrap();
    pairs
}

#[test]
fn what_is_preferred_becomes_likelier_than_it_was_to_the_reference() {
    let start = student(3, 2);
    let (learned, held) = (pairs(0..60, &start), pairs(500..510, &start));
    let dir = tempfile::tempdir().unwrap();
    let config = TrainConfig { max_steps: Some(40), ..settings() };
    let (outcome, _) = run(start.clone(), &learned, &held, &config, dir.path());
    let (first, last) = (&outcome.validation[0], outcome.validation.last().unwrap());
    let before = first.preferences.unwrap();
    assert!((first.loss - LN_2).abs() < 1e-6 && before.margin.abs() < 1e-4, "{first:?}");
    let after = last.preferences.unwrap();
    assert!(last.loss < 0.2 && after.accuracy == 1.0 && after.margin > 2.0, "{last:?}");
    assert!((after.margin - (after.chosen - after.rejected)).abs() < 1e-9);
    assert_eq!(last.divergences["dpo"], last.loss);
    // The rewards are what the definition says of the trained weights.
    let scored = |decoder: &Decoder, example: &Example| -> f64 {
        let logprobs = decoder.token_logprobs(&[&example.ids]).remove(0);
        let supervised = logprobs.iter().zip(&example.supervised[1..]).filter(|(_, s)| **s);
        supervised.map(|(&l, _)| f64::from(l)).sum()
    };
    let rewards =
        held.iter().map(|example| 0.5 * (scored(&outcome.decoder, example) - scored(&start, example)));
    let mean = rewards.sum::<f64>() / held.len() as f64;
    let chosen = outcome.validation.iter().find(|point| point.step == outcome.chosen_step).unwrap();
    assert!((mean - chosen.preferences.unwrap().chosen).abs() < 1e-4 * mean.abs().max(1.0));
    let losses = preference_losses(&held, &outcome.decoder, 0.5);
    assert!((losses.iter().sum::<f64>() / losses.len() as f64 - chosen.loss).abs() < 1e-5);
    let tokens: usize = learned.iter().map(Example::n_tokens).sum();
    assert_eq!(outcome.plan.tokens_per_epoch, tokens as u64);
}

#[test]
fn a_mean_over_pairs_does_not_depend_on_how_they_are_split() {
    let start = student(3, 1);
    let learned = pairs(0..12, &start);
    let norm = |rows: usize, accumulation: usize, n_threads: usize| {
        let config = TrainConfig {
            per_device_train_batch_size: rows,
            gradient_accumulation_steps: accumulation,
            packing: false,
            max_steps: Some(1),
            logging_steps: 1,
            ..settings()
        };
        let dir = tempfile::tempdir().unwrap();
        run(student(3, n_threads), &learned, &[], &config, dir.path()).0.curve[0].grad_norm
    };
    let all = norm(12, 1, 1);
    assert!(all > 0.0);
    for split in [norm(3, 4, 1), norm(1, 12, 1), norm(12, 1, 2)] {
        assert!((split - all).abs() < 1e-5 * all, "{split} against {all}");
    }
}

struct Killed;

#[test]
fn killed_anywhere_the_same_bits() {
    let start = student(3, 2);
    let (learned, held) = (pairs(0..40, &start), pairs(500..506, &start));
    let (config, dir) = (settings(), tempfile::tempdir().unwrap());
    let (straight, events) = run(start.clone(), &learned, &held, &config, dir.path());
    for n in [2, events.len() / 2, events.len() - 2] {
        let (dir, mut seen) = (tempfile::tempdir().unwrap(), 0);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            train(start.clone(), None, &learned, &held, &config, dir.path(), &mut |_: TrainEvent| {
                seen += 1;
                if seen > n {
                    panic_any(Killed);
                }
            })
        }));
        assert!(outcome.is_err_and(|payload| payload.is::<Killed>()));
        let (again, _) = run(start.clone(), &learned, &held, &config, dir.path());
        assert_eq!(again.decoder.digest(), straight.decoder.digest(), "killed at event {n}");
        assert_eq!(again.validation, straight.validation);
    }
}

#[test]
fn what_is_no_preference_is_refused() {
    let start = student(3, 1);
    let refused = |examples: &[Example], config: &TrainConfig| {
        let dir = tempfile::tempdir().unwrap();
        train(start.clone(), None, examples, &[], config, dir.path(), &mut |_| {}).unwrap_err()
    };
    let learned = pairs(0..4, &start);
    let lone = refused(&sentences(0..4), &settings());
    assert!(lone.to_string().contains("`dpo` needs a pair"), "{lone}");
    let hard = refused(&learned, &TrainConfig { max_length: 96, ..small_run() });
    assert!(hard.to_string().contains("only `dpo`"), "{hard}");
    let both = vec![LossTerm::new(DPO), LossTerm::new(LossFunction::HardLabels)];
    let both = refused(&learned, &TrainConfig { losses: both, ..settings() });
    assert!(matches!(both, DistillError::Config { key: "losses", .. }), "{both}");
    let zero = vec![LossTerm::new(LossFunction::Dpo { beta: 0.0 })];
    let zero = refused(&learned, &TrainConfig { losses: zero, ..settings() });
    assert!(matches!(zero, DistillError::Config { key: "beta", .. }), "{zero}");
    let long = refused(&learned, &TrainConfig { max_length: 12, ..settings() });
    assert!(matches!(long, DistillError::TooLong { .. }), "{long}");
    let unscored = Example::pair(sentence(1), sentence(2));
    let unscored = refused(&[unscored], &settings());
    assert!(unscored.to_string().contains("the reference gives"), "{unscored}");
}

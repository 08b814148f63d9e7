//! A teacher that only says how likely the student's tokens are: the same bits as from one at hand, and what it cannot give
//! is refused.

mod common;

use std::cell::Cell;
use std::path::Path;

use common::{sentence, sentences, small_run, student, tiny_config};
use stillroom_core::{Digest, ErrorKind, ScoreError, ScoredText, Scorer};
use stillroom_distill::{
    DistillError, LossFunction, LossTerm, Material, OnPolicy, RolloutPrompt, RolloutPrompts, TrainConfig,
    TrainOutcome, train_with_rollouts,
};
use stillroom_formats::DecoderConfig;
use stillroom_model::{Decoder, LiveTeacher};

fn teacher() -> Decoder {
    let config = DecoderConfig { hidden_size: 32, ..tiny_config() };
    Decoder::random(student(1, 2).device().clone(), config, 9)
}

/// Reads text by text, and has enough of it after a while.
#[derive(Debug)]
struct Away {
    decoder: Decoder,
    patience: Cell<u64>,
}

impl Away {
    fn new(patience: u64) -> Away {
        Away { decoder: teacher(), patience: Cell::new(patience) }
    }
}

impl Scorer for Away {
    fn score(&self, texts: &[ScoredText<'_>]) -> Result<Vec<Vec<f32>>, ScoreError> {
        if self.patience.get() == 0 {
            let (cause, fix) = ("no endpoint answers".to_owned(), Some("wait".to_owned()));
            return Err(ScoreError { kind: ErrorKind::TryLater, cause, fix });
        }
        self.patience.set(self.patience.get() - 1);
        let live = LiveTeacher::alone(&self.decoder, None);
        texts.iter().map(|text| Ok(live.score(std::slice::from_ref(text))?.remove(0))).collect()
    }

    fn identity(&self) -> Digest {
        Digest::of(b"away")
    }
}

fn config(losses: &[LossFunction], fraction: f64) -> TrainConfig {
    let on_policy = OnPolicy {
        on_policy_fraction: fraction,
        max_new_tokens: 14,
        rollouts_per_step: Some(6),
        replay_buffer_size: 16,
        replay_fraction: 0.5,
        replay_max_staleness: 6,
        stop_token_ids: vec![11],
        ..OnPolicy::default()
    };
    let losses = losses.iter().map(|&function| LossTerm::new(function)).collect();
    TrainConfig {
        losses,
        on_policy: Some(on_policy),
        max_steps: Some(20),
        save_steps: 2,
        eval_steps: 5,
        ..small_run()
    }
}

fn attempt(
    config: &TrainConfig,
    at_hand: Option<&Decoder>,
    scorer: Option<&dyn Scorer>,
    dir: &Path,
) -> stillroom_distill::Result<TrainOutcome> {
    let prompt = |key: u64| RolloutPrompt { id: key.to_string(), ids: sentence(key).ids[..3].to_vec() };
    let (train, validation): (Vec<_>, Vec<_>) =
        ((0..20).map(prompt).collect(), (500..512).map(prompt).collect());
    let (examples, held) = (sentences(0..60), sentences(500..505));
    let material = Material {
        examples: &examples,
        validation: &held,
        prompts: Some(RolloutPrompts { train: &train, validation: &validation }),
        matched: None,
        ensemble: None,
        scorer,
    };
    train_with_rollouts(student(3, 2), at_hand, material, config, dir, &mut |_| {})
}

#[test]
fn a_teacher_that_only_scores_gives_the_same_bits_as_one_at_hand() {
    let (sampled, hard) = (LossFunction::SampledReverseKl, LossFunction::HardLabels);
    for (losses, fraction) in [(&[sampled][..], 1.0), (&[sampled, hard], 0.6)] {
        let config = config(losses, fraction);
        let dir = || tempfile::tempdir().unwrap();
        let beside = attempt(&config, Some(&teacher()), None, dir().path()).unwrap();
        let (away, place) = (Away::new(u64::MAX), dir());
        let scored = attempt(&config, None, Some(&away), place.path()).unwrap();
        assert_eq!(scored.decoder.digest(), beside.decoder.digest());
        assert_eq!(scored.validation, beside.validation);
        assert!(scored.validation.iter().all(|point| point.divergences["sampled_reverse_kl"].is_finite()));
        // The checkpoints are those of this teacher.
        let other = attempt(&config, Some(&teacher()), None, place.path()).unwrap_err();
        assert!(matches!(other, DistillError::ForeignCheckpoint { what: "teacher weights", .. }), "{other}");
    }
}

#[test]
fn a_teacher_that_falls_silent_ends_training_and_nothing_is_lost() {
    let config = config(&[LossFunction::SampledReverseKl], 1.0);
    let whole =
        attempt(&config, None, Some(&Away::new(u64::MAX)), tempfile::tempdir().unwrap().path()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for patience in [0, 5, 8, 4] {
        let error = attempt(&config, None, Some(&Away::new(patience)), dir.path()).unwrap_err();
        assert_eq!((error.kind(), error.fix().as_deref()), (ErrorKind::TryLater, Some("wait")));
        assert_eq!(error.to_string(), "no endpoint answers");
    }
    let again = attempt(&config, None, Some(&Away::new(u64::MAX)), dir.path()).unwrap();
    assert_eq!(again.decoder.digest(), whole.decoder.digest());
    assert_eq!(again.validation, whole.validation);
}

#[test]
fn what_log_probabilities_of_its_tokens_do_not_give_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (sampled, reverse) = (LossFunction::SampledReverseKl, LossFunction::ReverseKl);
    let error =
        attempt(&config(&[sampled, reverse], 1.0), None, Some(&Away::new(9)), dir.path()).unwrap_err();
    assert!(matches!(error, DistillError::OnlyScored { loss: "reverse_kl" }), "{error}");
    assert!(error.kind() == ErrorKind::BadRecipe && error.fix().is_some_and(|fix| fix.contains("alone")));
    // More ids than the student has.
    let wide = TrainConfig { n_ids: Some(1000), ..config(&[sampled], 1.0) };
    let error = attempt(&wide, None, Some(&Away::new(9)), dir.path()).unwrap_err();
    assert!(matches!(error, DistillError::Losses(_)), "{error}");
}

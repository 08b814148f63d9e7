//! Hidden states held against those of a live teacher: the student comes nearer to them, the same bits come out whatever
//! happens on the way, and what cannot be compared is refused.

mod common;

use std::path::{Path, PathBuf};

use common::{assert_kills_change_nothing, run_with, sentence, sentences, small_run, student, tiny_config};
use stillroom_core::ErrorKind;
use stillroom_distill::{
    AlignedLayers, DistillError, LossFunction, LossTerm, LossWeight, Material, OnPolicy, RolloutPrompt,
    RolloutPrompts, TrainConfig, train, train_with_rollouts,
};
use stillroom_formats::DecoderConfig;
use stillroom_model::{Decoder, LayerPair};

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// As wide as the student and one layer deeper.
fn teacher(seed: u64, n_threads: usize) -> Decoder {
    let config = DecoderConfig { num_hidden_layers: 3, ..tiny_config() };
    Decoder::random(student(1, n_threads).device().clone(), config, seed)
}

fn aligned(pairs: &[[usize; 2]], weight: LossWeight) -> Option<AlignedLayers> {
    let layers = pairs.iter().map(|&[teacher, student]| LayerPair { teacher, student }).collect();
    Some(AlignedLayers { layers, weight })
}

/// Beside hard labels alone, with this weight.
fn beside_labels(weight: LossWeight) -> TrainConfig {
    TrainConfig { hidden_alignment: aligned(&[[1, 0], [2, 1]], weight), ..small_run() }
}

#[test]
fn the_student_comes_nearer_to_the_teachers_states_than_without_and_both_losses_are_logged() {
    let teacher = teacher(9, 1);
    let (examples, held) = (sentences(0..40), sentences(500..510));
    let run = |config: &TrainConfig| {
        let config = TrainConfig { max_steps: Some(40), eval_steps: 40, logging_steps: 1, ..config.clone() };
        run_with(student(3, 1), Some(&teacher), &examples, &held, &config, temp().path()).0
    };
    let distance = |outcome: &stillroom_distill::TrainOutcome| {
        [
            outcome.validation[0].divergences["hidden_alignment"],
            outcome.validation[1].divergences["hidden_alignment"],
        ]
    };
    let followed = run(&beside_labels(LossWeight::Constant(2.0)));
    let hardly = run(&beside_labels(LossWeight::Constant(1e-6)));
    let ([start, end], [same_start, end_without]) = (distance(&followed), distance(&hardly));
    assert_eq!(start, same_start);
    assert!((0.5..1.5).contains(&start), "random models have nothing in common: {start}");
    assert!(end < 0.75 * start && end < 0.85 * end_without, "{start} → {end}, without {end_without}");
    for point in &followed.validation {
        let expected = point.hard_label + 2.0 * point.divergences["hidden_alignment"];
        assert!((point.loss - expected).abs() < 1e-9 * expected, "{point:?}");
        assert!(point.captured_mass.is_none() && point.divergences.len() == 1, "{point:?}");
    }
    // In a line from the first step to the last; validation has the weight of the last.
    let rising = run(&beside_labels(LossWeight::Linear { from: 0.0, to: 2.0 }));
    for (i, point) in rising.curve.iter().enumerate() {
        let expected = point.hard_label + 2.0 * i as f64 / 39.0 * point.divergences["hidden_alignment"];
        assert!((point.loss - expected).abs() < 1e-9 * expected, "{point:?}");
    }
    assert_eq!(rising.validation[0].loss, followed.validation[0].loss);
    let none = run(&small_run());
    assert_eq!(rising.curve[0].grad_norm, none.curve[0].grad_norm, "a weight of 0 gives no gradient");
    assert_ne!(followed.curve[0].grad_norm, none.curve[0].grad_norm);
}

const DIR_VARIABLE: &str = "STILLROOM_TEST_HIDDEN_RUN";

/// Given text and the student's own in turn, a divergence and hard labels beside it.
fn mixed_run(n_threads: usize, gradient_checkpointing: bool, dir: &Path) -> String {
    let prompts = |keys: std::ops::Range<u64>| -> Vec<RolloutPrompt> {
        keys.map(|key| RolloutPrompt { id: key.to_string(), ids: sentence(key).ids[..3].to_vec() }).collect()
    };
    let (train, validation) = (prompts(0..20), prompts(500..505));
    let on_policy = OnPolicy {
        on_policy_fraction: 0.5,
        max_new_tokens: 14,
        rollouts_per_step: Some(6),
        ..OnPolicy::default()
    };
    let config = TrainConfig {
        losses: vec![LossTerm::new(LossFunction::ReverseKl), LossTerm::new(LossFunction::HardLabels)],
        hidden_alignment: aligned(&[[0, 0], [2, 1], [1, 0]], LossWeight::Linear { from: 1.0, to: 0.5 }),
        on_policy: Some(on_policy),
        gradient_accumulation_steps: 2,
        gradient_checkpointing,
        save_steps: 2,
        max_steps: Some(16),
        ..small_run()
    };
    let (examples, held) = (sentences(0..40), sentences(500..505));
    let prompts = Some(RolloutPrompts { train: &train, validation: &validation });
    let material = Material {
        examples: &examples,
        validation: &held,
        prompts,
        matched: None,
        ensemble: None,
        scorer: None,
    };
    let (start, teacher) = (student(3, n_threads), teacher(9, n_threads));
    let outcome = train_with_rollouts(start, Some(&teacher), material, &config, dir, &mut |_| {}).unwrap();
    let own = outcome.validation.last().unwrap().rollouts.as_ref().unwrap();
    assert_eq!(own.divergences.keys().collect::<Vec<_>>(), ["hidden_alignment", "reverse_kl"]);
    let curve: Vec<_> = outcome.curve.iter().map(|p| (p.loss, p.divergences.clone())).collect();
    format!("{} {curve:?} {:?}", outcome.decoder.digest(), outcome.validation)
}

#[test]
fn killed_or_not_on_any_number_of_threads_the_bits_are_the_same() {
    if let Some(dir) = std::env::var_os(DIR_VARIABLE).map(PathBuf::from) {
        let digest = mixed_run(2, false, &dir.join("checkpoints"));
        std::fs::write(dir.join("digest"), digest).unwrap();
        return;
    }
    let name = "killed_or_not_on_any_number_of_threads_the_bits_are_the_same";
    assert_kills_change_nothing(name, DIR_VARIABLE, [2, 6]);
    assert_eq!(mixed_run(1, false, temp().path()), mixed_run(3, true, temp().path()));
}

#[test]
fn what_cannot_be_compared_is_refused_before_anything_is_written() {
    let dir = temp();
    let at = dir.path().join("checkpoints");
    let refused = |teacher: Option<&Decoder>, config: TrainConfig, what: &str| {
        let result = train(student(3, 1), teacher, &sentences(0..5), &[], &config, &at, &mut |_| {});
        assert!(!at.exists());
        let error = result.unwrap_err();
        assert!(matches!(&error, DistillError::HiddenStates { .. } | DistillError::Losses(_)), "{error}");
        assert_eq!(error.kind(), ErrorKind::BadRecipe);
        assert!(error.to_string().contains(what) && error.fix().is_some(), "{error}");
    };
    let one = LossWeight::Constant(1.0);
    let with = |pairs: &[[usize; 2]]| TrainConfig { hidden_alignment: aligned(pairs, one), ..small_run() };
    let teacher = teacher(9, 1);
    refused(None, with(&[[0, 0]]), "only a live teacher has some");
    refused(Some(&teacher), with(&[[3, 0]]), "the teacher has no layer 3, only 0 to 2");
    refused(Some(&teacher), with(&[[2, 2]]), "the student has no layer 2, only 0 to 1");
    refused(Some(&teacher), with(&[]), "no pair");
    refused(Some(&teacher), with(&[[1, 0], [1, 0]]), "the pair [1, 0] stands twice");
    refused(Some(&teacher), beside_labels(LossWeight::Constant(-1.0)), "hidden_alignment");
    let wide = DecoderConfig { hidden_size: 32, num_attention_heads: 4, ..tiny_config() };
    let wide = Decoder::random(student(1, 1).device().clone(), wide, 9);
    refused(Some(&wide), with(&[[0, 0]]), "the teacher's are 32 numbers wide, the student's 24");
    let alm = LossTerm::new(LossFunction::Alm).at_temperature(100.0);
    let uld = LossTerm::new(LossFunction::Uld);
    for (other, name) in [(alm, "`alm`"), (uld, "`uld`")] {
        refused(Some(&teacher), TrainConfig { losses: vec![other], ..with(&[[0, 0]]) }, name);
    }
}

#[test]
fn settings_read_back_and_earlier_ones_keep_their_digest() {
    let config = beside_labels(LossWeight::Linear { from: 1.0, to: 0.5 });
    let text = serde_json::to_string(&config).unwrap();
    assert!(
        text.contains("\"hidden_alignment\":{\"layers\":[[1,0],[2,1]],\"weight\":{\"from\":1.0,\"to\":0.5}}")
    );
    assert_eq!(serde_json::from_str::<TrainConfig>(&text).unwrap(), config);
    assert_ne!(config.digest(), small_run().digest());
    assert!(!serde_json::to_string(&small_run()).unwrap().contains("hidden"));
    assert!(config.needs_teacher() && !config.needs_distributions());
    assert!(!beside_labels(LossWeight::Constant(0.0)).needs_teacher());
}

//! Steps that were trained before, done again: digest by digest the same, or it is told where not.

mod common;

use std::path::Path;

use common::{hard_and_kl, sentence, sentences, small_run, student, taught};
use stillroom_distill::{
    Again, DistillError, Example, LossFunction, LossTerm, Material, OnPolicy, RolloutPrompt, RolloutPrompts,
    TrainConfig, TrainEvent, kept_steps, replay, train_with_rollouts,
};
use stillroom_model::Decoder;

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// A run that some tests go through twice.
struct Run {
    config: TrainConfig,
    examples: Vec<Example>,
    prompts: Vec<RolloutPrompt>,
}

impl Run {
    /// On given texts with stored distributions.
    fn given() -> Run {
        let config = TrainConfig { losses: hard_and_kl(0.5, 1.0), save_total_limit: 0, ..small_run() };
        Run { config, examples: sentences(0..40).into_iter().map(taught).collect(), prompts: Vec::new() }
    }

    /// Half on what the student writes, some of it kept in a buffer, with a live teacher.
    fn on_policy() -> Run {
        let on_policy = OnPolicy {
            on_policy_fraction: 0.6,
            max_new_tokens: 14,
            rollouts_per_step: Some(6),
            stop_token_ids: vec![11],
            replay_buffer_size: 16,
            replay_fraction: 0.5,
            replay_max_staleness: 6,
            ..OnPolicy::default()
        };
        let losses = [LossFunction::ReverseKl, LossFunction::SampledReverseKl].map(LossTerm::new).to_vec();
        let config = TrainConfig { losses, on_policy: Some(on_policy), save_total_limit: 0, ..small_run() };
        let prompt = |key: u64| RolloutPrompt { id: key.to_string(), ids: sentence(key).ids[..3].to_vec() };
        Run { config, examples: sentences(0..40), prompts: (0..20).map(prompt).collect() }
    }

    fn teacher(&self) -> Option<Decoder> {
        self.config.on_policy.as_ref().map(|_| student(9, 1))
    }

    fn material(&self) -> Material<'_> {
        let prompts = RolloutPrompts { train: &self.prompts, validation: &[] };
        let prompts = self.config.on_policy.as_ref().map(|_| prompts);
        let examples = &self.examples[..];
        Material { examples, validation: &[], prompts, matched: None, ensemble: None, scorer: None }
    }

    /// Digests of all steps and checkpoints of the run.
    fn train(&self, dir: &Path) -> Vec<TrainEvent> {
        let (mut events, teacher) = (Vec::new(), self.teacher());
        let mut sink = |event| events.push(event);
        let (start, material) = (student(3, 2), self.material());
        train_with_rollouts(start, teacher.as_ref(), material, &self.config, dir, &mut sink).unwrap();
        events.retain(|e| matches!(e, TrainEvent::Batch { .. } | TrainEvent::Checkpoint { .. }));
        events
    }

    /// The same of steps that are done again, on another number of threads.
    fn again(&self, dir: &Path, from: u64, boundaries: &[u64]) -> stillroom_distill::Result<Vec<TrainEvent>> {
        let (mut events, teacher, scratch) = (Vec::new(), self.teacher(), temp());
        let again = Again { checkpoints: dir, from, boundaries, scratch: scratch.path() };
        let mut sink = |event| events.push(event);
        replay(student(3, 1), teacher.as_ref(), self.material(), &self.config, &again, &mut sink)?;
        assert_eq!(kept_steps(scratch.path())?, [0; 0]);
        Ok(events)
    }
}

fn step_of(event: &TrainEvent) -> u64 {
    match event {
        TrainEvent::Batch { step, .. } | TrainEvent::Checkpoint { step, .. } => *step,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_segment_comes_out_the_same_from_any_checkpoint_before_it() {
    for run in [Run::given(), Run::on_policy()] {
        let dir = temp();
        let all = run.train(dir.path());
        let kept = kept_steps(dir.path()).unwrap();
        assert_eq!(kept, [3, 6, 9, 12]);
        for from in [0, 3, 6, 9] {
            let boundaries: Vec<u64> = kept.iter().copied().filter(|&step| step > from).collect();
            let then: Vec<TrainEvent> = all.iter().filter(|event| step_of(event) > from).cloned().collect();
            assert_eq!(run.again(dir.path(), from, &boundaries).unwrap(), then, "from {from}");
        }
        assert_eq!(kept_steps(dir.path()).unwrap(), kept);
    }
}

#[test]
fn an_altered_text_shows_in_its_batch_and_in_all_that_follows() {
    let mut run = Run::given();
    let dir = temp();
    let then = run.train(dir.path());
    let row = &mut run.examples[7].sparse.as_mut().unwrap()[2];
    row.probs = vec![0.5, 0.5];
    let now = run.again(dir.path(), 0, &[3, 6, 9, 12]).unwrap();
    let differs: Vec<usize> = (0..then.len()).filter(|&i| then[i] != now[i]).collect();
    // The twelve steps are three passes over the texts, and it comes once in each.
    let batches: Vec<&TrainEvent> =
        differs.iter().map(|&i| &then[i]).filter(|e| matches!(e, TrainEvent::Batch { .. })).collect();
    assert_eq!(batches.len(), 3, "{differs:?}");
    let first = step_of(batches[0]);
    let later = |event: &TrainEvent| matches!(event, TrainEvent::Checkpoint { step, .. } if *step >= first);
    assert_eq!(differs.len() - 3, then.iter().filter(|event| later(event)).count());
}

#[test]
fn other_settings_show_in_the_checkpoint_and_not_in_the_batches() {
    let mut run = Run::given();
    let dir = temp();
    let then = run.train(dir.path());
    run.config.learning_rate *= 1.0 + 1e-3;
    let now = run.again(dir.path(), 3, &[6]).unwrap();
    let then: Vec<TrainEvent> = then.into_iter().filter(|event| (4..=6).contains(&step_of(event))).collect();
    assert_eq!(now[..3], then[..3]);
    assert_ne!(now[3], then[3]);
}

#[test]
fn a_damaged_or_missing_checkpoint_is_no_place_to_begin() {
    let run = Run::given();
    let dir = temp();
    run.train(dir.path());
    std::fs::write(dir.path().join("step-000006/model.safetensors"), b"short").unwrap();
    for from in [6, 7] {
        let refused = run.again(dir.path(), from, &[9]);
        assert!(matches!(refused, Err(DistillError::DamagedCheckpoint { .. })), "{from}: {refused:?}");
    }
}

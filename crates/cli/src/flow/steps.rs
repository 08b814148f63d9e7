//! What the student learned step by step and what came of it: the record that the same steps, done again, are held against.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use stillroom_core::Digest;
use stillroom_distill::TrainEvent;
use stillroom_evaluate::Contender;
use stillroom_governance::log::Kind;
use stillroom_store::{EventLog, EventReader, StoreError};

/// The student's record, one [`Step`] per line.
pub(crate) const PATH: &str = "training/student.steps.jsonl";

/// The record of a model that is trained.
pub(crate) fn path_of(contender: Contender) -> String {
    format!("training/{}.steps.jsonl", contender.key())
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Step {
    /// A step, and the digest of the texts that it learned from.
    Batch { step: u64, digest: Digest },
    /// The digests of a checkpoint's files.
    Checkpoint { step: u64, files: BTreeMap<String, Digest> },
    /// The last step, and the one whose weights were taken.
    Finished { steps: u64, chosen_step: u64 },
}

impl Step {
    /// What there is to write down of an event.
    pub(super) fn of(event: &TrainEvent) -> Option<Step> {
        Some(match event {
            TrainEvent::Batch { step, digest } => Step::Batch { step: *step, digest: *digest },
            TrainEvent::Checkpoint { step, files, .. } | TrainEvent::Resumed { step, files } => {
                Step::Checkpoint { step: *step, files: files.clone() }
            }
            TrainEvent::Finished { steps, chosen_step, .. } => {
                Step::Finished { steps: *steps, chosen_step: *chosen_step }
            }
            _ => return None,
        })
    }

    /// Its kind and number in the run's log.
    pub(super) fn in_log(&self) -> Option<(Kind, u64)> {
        match self {
            Step::Batch { step, .. } => Some((Kind::Batch, *step)),
            Step::Checkpoint { step, .. } => Some((Kind::Checkpoint, *step)),
            Step::Finished { .. } => None,
        }
    }

    /// Its line in the record, and its entry in the log.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }
}

/// Writes the record while training goes on.
///
/// A killed run does some steps twice, with the same digests; what is written later counts.
pub(super) struct StepLog {
    log: EventLog,
    /// The first line that could not be written.
    failed: Option<StoreError>,
}

impl StepLog {
    pub(super) fn open(path: &Path) -> Result<StepLog, StoreError> {
        Ok(StepLog { log: EventLog::open(path)?, failed: None })
    }

    /// Steps are durable before the checkpoint that training would go on from without doing them again.
    pub(super) fn note(&mut self, event: &TrainEvent) {
        let written = match (event, Step::of(event)) {
            (TrainEvent::Saving { .. }, _) => self.log.sync(),
            (_, Some(step)) => self.log.append(&step),
            (_, None) => return,
        };
        self.failed = self.failed.take().or(written.err());
    }

    pub(super) fn close(self) -> Result<(), StoreError> {
        self.failed.map_or(Ok(()), Err)
    }
}

/// The record of a training run that ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Steps {
    pub(crate) batches: BTreeMap<u64, Digest>,
    pub(crate) checkpoints: BTreeMap<u64, BTreeMap<String, Digest>>,
    /// The last step, and the one whose weights were taken.
    pub(crate) finished: Option<(u64, u64)>,
}

impl Steps {
    pub(crate) fn read(path: &Path) -> Result<Steps, StoreError> {
        let mut steps = Steps::default();
        for line in EventReader::open(path)? {
            steps.take(line?);
        }
        Ok(steps)
    }

    fn take(&mut self, line: Step) {
        match line {
            Step::Batch { step, digest } => {
                if step == 1 {
                    *self = Steps::default();
                }
                self.batches.insert(step, digest);
            }
            Step::Checkpoint { step, files } => {
                self.checkpoints.insert(step, files);
            }
            Step::Finished { steps, chosen_step } => self.finished = Some((steps, chosen_step)),
        }
    }

    /// Each once and in order, as an uninterrupted run has them.
    pub(super) fn to_lines(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut text = Vec::new();
        let mut add = |line: &Step| {
            text.extend(line.to_bytes()?);
            text.push(b'\n');
            Ok::<_, serde_json::Error>(())
        };
        for (&step, &digest) in &self.batches {
            add(&Step::Batch { step, digest })?;
            if let Some(files) = self.checkpoints.get(&step) {
                add(&Step::Checkpoint { step, files: files.clone() })?;
            }
        }
        if let Some((steps, chosen_step)) = self.finished {
            add(&Step::Finished { steps, chosen_step })?;
        }
        Ok(text)
    }

    /// Steps between one checkpoint, or the start, and the next: (behind this one, up to that one).
    pub(crate) fn segments(&self) -> Vec<(u64, u64)> {
        let ends = self.checkpoints.keys().copied();
        let starts = std::iter::once(0).chain(self.checkpoints.keys().copied());
        starts.zip(ends).collect()
    }
}

/// The entry of a step or checkpoint in the run's log, by the record at `path`.
pub(super) fn entry(path: &Path, kind: Kind, number: u64) -> Result<Option<Vec<u8>>, StoreError> {
    for line in EventReader::<Step>::open(path)? {
        let line = line?;
        if line.in_log() == Some((kind, number)) {
            return Ok(line.to_bytes().ok());
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(step: u64) -> TrainEvent {
        TrainEvent::Batch { step, digest: Digest::of(&step.to_le_bytes()) }
    }

    fn files(step: u64) -> BTreeMap<String, Digest> {
        BTreeMap::from([("model.safetensors".to_owned(), Digest::of(&[step as u8]))])
    }

    fn checkpoint(step: u64) -> TrainEvent {
        TrainEvent::Checkpoint { step, name: String::new(), files: files(step) }
    }

    /// What is on record after these events, each inner list one life of the process.
    fn recorded(lives: &[Vec<TrainEvent>]) -> Steps {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("steps.jsonl");
        for life in lives {
            let mut log = StepLog::open(&path).unwrap();
            life.iter().for_each(|event| log.note(event));
            log.close().unwrap();
        }
        let steps = Steps::read(&path).unwrap();
        std::fs::write(&path, steps.to_lines().unwrap()).unwrap();
        assert_eq!(Steps::read(&path).unwrap(), steps);
        steps
    }

    #[test]
    fn the_students_record_is_where_it_is_said_to_be() {
        assert_eq!(path_of(Contender::Student), PATH);
    }

    #[test]
    fn a_killed_runs_record_is_that_of_one_that_was_not() {
        let finished = TrainEvent::Finished { steps: 4, tokens: 9, chosen_step: 2 };
        let straight = recorded(&[vec![
            batch(1),
            batch(2),
            checkpoint(2),
            batch(3),
            batch(4),
            checkpoint(4),
            finished.clone(),
        ]]);
        assert_eq!(straight.segments(), [(0, 2), (2, 4)]);
        assert_eq!(straight.finished, Some((4, 2)));
        let resumed = TrainEvent::Resumed { step: 2, files: files(2) };
        // Killed behind the checkpoint, before it was told of, and again before the next one.
        let killed = recorded(&[
            vec![batch(1), batch(2)],
            vec![resumed.clone(), batch(3)],
            vec![resumed, batch(3), batch(4), checkpoint(4), finished.clone()],
        ]);
        assert_eq!(killed, straight);
        // Something else was trained here before, and longer.
        let longer = vec![batch(1), checkpoint(1), batch(2), batch(3), batch(4), batch(5), checkpoint(5)];
        let again = vec![batch(1), batch(2), checkpoint(2), batch(3), batch(4), checkpoint(4), finished];
        assert_eq!(recorded(&[longer, again]), straight);
    }
}

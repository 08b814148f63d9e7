//! Which stages of a run are done: `stages/<name>.json`.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use stillroom_core::{Digest, Digester};

use crate::disk::files_below;
use crate::{Result, RunDir, StoreError, check_name, digest_file};

/// Largest stage record read, in bytes.
const RECORD_BYTES_MAX: u64 = 64 << 20;

/// A file that a stage wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageOutput {
    /// Relative to the run directory, with `/`.
    pub path: String,
    pub digest: Digest,
    pub bytes: u64,
}

/// The record of a finished stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageRecord {
    pub stage: String,
    /// Digest of all that the outputs depend on.
    pub inputs: Digest,
    pub outputs: Vec<StageOutput>,
    /// Seconds since 1970-01-01 UTC.
    pub finished_unix_s: u64,
}

impl StageRecord {
    /// Digest of what the stage wrote: paths, sizes and contents, in order of path.
    pub fn outputs_digest(&self) -> Digest {
        let mut digester = Digester::new();
        for output in &self.outputs {
            digester.update(&(output.path.len() as u64).to_le_bytes());
            digester.update(output.path.as_bytes());
            digester.update(&output.bytes.to_le_bytes());
            digester.update(output.digest.as_bytes());
        }
        digester.finish()
    }
}

/// How closely outputs are compared with their record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// They exist with the recorded sizes.
    Sizes,
    /// Their digests are the recorded ones too.
    Digests,
}

/// Whether a stage has to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Freshness {
    Fresh(StageRecord),
    Stale(StaleReason),
}

/// Why a stage has to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StaleReason {
    NeverFinished,
    /// Its own settings, or what came out of the stages before it, are other ones.
    InputsChanged,
    OutputMissing(String),
    OutputChanged(String),
    /// A stage before it has to run first.
    After(String),
}

impl fmt::Display for StaleReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StaleReason::NeverFinished => write!(f, "not finished yet"),
            StaleReason::InputsChanged => write!(f, "its inputs changed"),
            StaleReason::OutputMissing(path) => write!(f, "`{path}` is missing"),
            StaleReason::OutputChanged(path) => write!(f, "`{path}` is not what it wrote"),
            StaleReason::After(stage) => write!(f, "follows `{stage}`"),
        }
    }
}

/// A stage as the recipe asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedStage {
    pub name: String,
    /// Digest of the stage's own settings and source files.
    pub settings: Digest,
    /// Names of the stages whose outputs it reads.
    pub after: Vec<String>,
}

/// A stage that has to run, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaleStage {
    pub name: String,
    pub reason: StaleReason,
}

impl RunDir {
    /// The record of a stage, if it ever finished.
    pub fn stage_record(&self, stage: &str) -> Result<Option<StageRecord>> {
        let path = self.record_path(stage)?;
        match path.metadata() {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(StoreError::io("read", &path)(e)),
            Ok(m) if m.len() > RECORD_BYTES_MAX => {
                return Err(StoreError::Damaged { path, reason: format!("{} bytes long", m.len()) });
            }
            Ok(_) => {}
        }
        let bytes = std::fs::read(&path).map_err(StoreError::io("read", &path))?;
        let record: StageRecord = serde_json::from_slice(&bytes)
            .map_err(|e| StoreError::Damaged { path: path.clone(), reason: e.to_string() })?;
        if record.stage != stage {
            return Err(StoreError::Damaged { path, reason: format!("it is of stage `{}`", record.stage) });
        }
        Ok(Some(record))
    }

    /// Whether a stage with these inputs is done and its outputs are still there.
    pub fn freshness(&self, stage: &str, inputs: &Digest, check: Check) -> Result<Freshness> {
        let Some(record) = self.stage_record(stage)? else {
            return Ok(Freshness::Stale(StaleReason::NeverFinished));
        };
        if record.inputs != *inputs {
            return Ok(Freshness::Stale(StaleReason::InputsChanged));
        }
        for output in &record.outputs {
            let path = self.path(&output.path)?;
            match path.metadata() {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    return Ok(Freshness::Stale(StaleReason::OutputMissing(output.path.clone())));
                }
                Err(e) => return Err(StoreError::io("read", &path)(e)),
                Ok(m) if m.len() == output.bytes => {}
                Ok(_) => return Ok(Freshness::Stale(StaleReason::OutputChanged(output.path.clone()))),
            }
            if check == Check::Digests && digest_file(&path)?.0 != output.digest {
                return Ok(Freshness::Stale(StaleReason::OutputChanged(output.path.clone())));
            }
        }
        Ok(Freshness::Fresh(record))
    }

    /// Records that a stage is done. `outputs` are files or directories in the run directory; of a
    /// directory every file below it is recorded. They must be durable already.
    pub fn finish_stage(
        &self,
        stage: &str,
        inputs: Digest,
        outputs: &[&str],
        finished_unix_s: u64,
    ) -> Result<StageRecord> {
        let mut files = Vec::new();
        for &output in outputs {
            let path = self.path(output)?;
            if path.is_dir() {
                files
                    .extend(files_below(&path)?.into_iter().map(|(name, p)| (format!("{output}/{name}"), p)));
            } else {
                files.push((output.to_string(), path));
            }
        }
        files.sort();
        files.dedup();
        let outputs = files
            .into_iter()
            .map(|(path, file)| digest_file(&file).map(|(digest, bytes)| StageOutput { path, digest, bytes }))
            .collect::<Result<Vec<_>>>()?;
        let record = StageRecord { stage: stage.into(), inputs, outputs, finished_unix_s };
        let path = self.record_path(stage)?;
        let mut text = serde_json::to_vec_pretty(&record)
            .map_err(|e| StoreError::Unrecordable { path, reason: e.to_string() })?;
        text.push(b'\n');
        self.write(&format!("stages/{stage}.json"), &text)?;
        Ok(record)
    }

    /// Inputs digest of a planned stage: its settings and the outputs of the stages before it, as they
    /// are on record now. `None` while one of those has never finished.
    pub fn stage_inputs(&self, stage: &PlannedStage) -> Result<Option<Digest>> {
        let mut digester = Digester::new();
        digester.update(b"stillroom stage inputs 1\n");
        digester.update(stage.settings.as_bytes());
        for before in &stage.after {
            let Some(record) = self.stage_record(before)? else { return Ok(None) };
            digester.update(&(before.len() as u64).to_le_bytes());
            digester.update(before.as_bytes());
            digester.update(record.outputs_digest().as_bytes());
        }
        Ok(Some(digester.finish()))
    }

    /// The stages of a plan that have to run, in its order, each with the reason. A stage that follows a
    /// stale one is listed too; when the earlier one turns out the same bytes again, it will be skipped.
    pub fn stale_stages(&self, plan: &[PlannedStage], check: Check) -> Result<Vec<StaleStage>> {
        let mut stale: Vec<StaleStage> = Vec::new();
        for (i, stage) in plan.iter().enumerate() {
            if let Some(after) = stage.after.iter().find(|a| !plan[..i].iter().any(|p| p.name == **a)) {
                return Err(StoreError::PlanOrder { stage: stage.name.clone(), after: after.clone() });
            }
            let own = match self.stage_inputs(stage)? {
                Some(inputs) => match self.freshness(&stage.name, &inputs, check)? {
                    Freshness::Fresh(_) => None,
                    Freshness::Stale(reason) => Some(reason),
                },
                None => Some(StaleReason::NeverFinished),
            };
            let earlier = stage.after.iter().find(|a| stale.iter().any(|s| s.name == **a));
            let reason = own.or_else(|| earlier.map(|name| StaleReason::After(name.clone())));
            stale.extend(reason.map(|reason| StaleStage { name: stage.name.clone(), reason }));
        }
        Ok(stale)
    }

    fn record_path(&self, stage: &str) -> Result<PathBuf> {
        check_name(stage)?;
        self.path(&format!("stages/{stage}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(name: &str, settings: &str, after: &[&str]) -> PlannedStage {
        let after = after.iter().map(|a| a.to_string()).collect();
        PlannedStage { name: name.into(), settings: Digest::of(settings.as_bytes()), after }
    }

    /// Runs a stage that writes `text` to `<name>/out`.
    fn run_stage(run: &RunDir, stage: &PlannedStage, text: &str) {
        run.write(&format!("{}/out", stage.name), text.as_bytes()).unwrap();
        let inputs = run.stage_inputs(stage).unwrap().unwrap();
        run.finish_stage(&stage.name, inputs, &[&stage.name], 7).unwrap();
    }

    fn stale(run: &RunDir, plan: &[PlannedStage]) -> Vec<String> {
        let stale = run.stale_stages(plan, Check::Sizes).unwrap();
        stale.into_iter().map(|s| format!("{}: {}", s.name, s.reason)).collect()
    }

    #[test]
    fn a_changed_recipe_says_which_stages_it_makes_stale() {
        let temp = tempfile::tempdir().unwrap();
        let run = RunDir::open(temp.path()).unwrap();
        let plan = [
            planned("teach", "seed 1", &[]),
            planned("curate", "dedup", &["teach"]),
            planned("train", "lr 1", &["curate"]),
            planned("evaluate", "n 1000", &["train"]),
        ];
        assert_eq!(stale(&run, &plan).len(), 4);
        plan.iter().for_each(|s| run_stage(&run, s, "first"));
        assert_eq!(stale(&run, &plan), [""; 0]);

        let mut changed = plan.clone();
        changed[2] = planned("train", "lr 2", &["curate"]);
        assert_eq!(stale(&run, &changed), ["train: its inputs changed", "evaluate: follows `train`"]);
        run_stage(&run, &changed[2], "other weights");
        assert_eq!(stale(&run, &changed), ["evaluate: its inputs changed"]);
        run_stage(&run, &changed[3], "report");

        // An earlier stage that runs again with the same result leaves the later ones fresh.
        changed[0] = planned("teach", "seed 1, other cache", &[]);
        assert_eq!(stale(&run, &changed).len(), 4);
        run_stage(&run, &changed[0], "first");
        assert_eq!(stale(&run, &changed), [""; 0]);
    }

    #[test]
    fn missing_shortened_and_altered_outputs_are_noticed() {
        let temp = tempfile::tempdir().unwrap();
        let run = RunDir::open(temp.path()).unwrap();
        let stage = planned("teach", "", &[]);
        run_stage(&run, &stage, "abc");
        let inputs = run.stage_inputs(&stage).unwrap().unwrap();
        let look = |check| run.freshness("teach", &inputs, check).unwrap();
        assert!(matches!(look(Check::Digests), Freshness::Fresh(record) if record.outputs.len() == 1));
        run.write("teach/out", b"abd").unwrap();
        assert!(matches!(look(Check::Sizes), Freshness::Fresh(_)));
        let changed = Freshness::Stale(StaleReason::OutputChanged("teach/out".into()));
        assert_eq!(look(Check::Digests), changed);
        run.write("teach/out", b"ab").unwrap();
        assert_eq!(look(Check::Sizes), changed);
        std::fs::remove_file(run.path("teach/out").unwrap()).unwrap();
        assert_eq!(look(Check::Sizes), Freshness::Stale(StaleReason::OutputMissing("teach/out".into())));
    }

    #[test]
    fn hostile_records_and_names_are_errors() {
        let temp = tempfile::tempdir().unwrap();
        let run = RunDir::open(temp.path()).unwrap();
        let inputs = Digest::of(b"");
        assert!(run.freshness("../teach", &inputs, Check::Sizes).is_err());
        assert!(run.finish_stage("teach", inputs, &["../x"], 0).is_err());
        assert!(run.finish_stage("teach", inputs, &["absent"], 0).is_err());
        run.write("stages/teach.json", b"{\"stage\":").unwrap();
        assert!(matches!(run.stage_record("teach"), Err(StoreError::Damaged { .. })));
        let foreign = StageRecord {
            stage: "teach".into(),
            inputs,
            outputs: vec![StageOutput { path: "../../etc/passwd".into(), digest: inputs, bytes: 1 }],
            finished_unix_s: 0,
        };
        run.write("stages/teach.json", &serde_json::to_vec(&foreign).unwrap()).unwrap();
        assert!(matches!(run.freshness("teach", &inputs, Check::Sizes), Err(StoreError::UnsafePath { .. })));
        let backwards = [planned("a", "", &["b"]), planned("b", "", &[])];
        assert!(matches!(run.stale_stages(&backwards, Check::Sizes), Err(StoreError::PlanOrder { .. })));
    }
}

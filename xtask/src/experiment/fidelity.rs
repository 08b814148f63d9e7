//! What the example `fidelity` of `crates/model` measures of trained students.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;
use serde_json::Value;

use super::description::{Experiment, Measure};
use super::runs::{Outcome, Place};
use crate::say;

/// Over the seeds of a variant, in nats per token that the student wrote.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Samples {
    pub(super) teacher_nats: Vec<f64>,
    /// Their expectation is the entropy of the student's distributions along its own text.
    pub(super) student_nats: Vec<f64>,
}

/// The program, and where its texts are.
pub(super) struct Fidelity<'a> {
    pub(super) program: PathBuf,
    pub(super) place: &'a Place,
}

impl Fidelity<'_> {
    /// Angles per student, by variant.
    pub(super) fn angles(
        &self,
        experiment: &Experiment,
        outcomes: &[Outcome],
    ) -> Result<serde_json::Map<String, Value>, String> {
        let mut found = serde_json::Map::new();
        if !experiment.measure.contains(&Measure::Angle) {
            return Ok(found);
        }
        for name in &experiment.variants {
            if let Some(outcome) = outcomes.iter().find(|o| o.variant == *name) {
                found.insert(name.clone(), self.of("angle", outcome)?);
            }
        }
        Ok(found)
    }

    /// Of every seed of a variant, where the experiment wants them.
    pub(super) fn samples(
        &self,
        experiment: &Experiment,
        outcomes: &[Outcome],
        variant: &str,
    ) -> Result<Option<Samples>, String> {
        if !experiment.measure.contains(&Measure::Samples) {
            return Ok(None);
        }
        let mut samples = Samples { teacher_nats: Vec::new(), student_nats: Vec::new() };
        for outcome in outcomes.iter().filter(|o| o.variant == variant) {
            let value = self.of("samples", outcome)?;
            let tokens = value["tokens_each"].as_f64().unwrap_or(f64::NAN);
            let per_token = |key: &str| {
                let nats: Vec<f64> =
                    value[key].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
                nats.iter().sum::<f64>() / (tokens * nats.len() as f64)
            };
            samples.teacher_nats.push(per_token("teacher_nats"));
            samples.student_nats.push(per_token("student_nats"));
        }
        Ok(Some(samples))
    }

    /// What the program says of one student, from an earlier time where the student is the same.
    fn of(&self, mode: &str, outcome: &Outcome) -> Result<Value, String> {
        let student = self.place.weights(&outcome.variant, outcome.seed);
        let kept = student.with_extension(format!("{mode}.json"));
        let newer = |a: &Path, b: &Path| {
            let time = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
            time(a) >= time(b)
        };
        if kept.exists() && newer(&kept, &student.with_extension("json")) {
            return parsed(&fs::read(&kept).map_err(|e| format!("{}: {e}", kept.display()))?);
        }
        let texts = self.place.texts(&outcome.variant);
        say(&format!("{mode} of {}, seed {}", outcome.variant, outcome.seed));
        let mut command = Command::new(&self.program);
        command.arg(mode).args([self.place.teacher(), student, texts]);
        let output = command.output().map_err(|e| format!("{}: {e}", self.program.display()))?;
        if !output.status.success() {
            return Err(format!("fidelity {mode}: {}", String::from_utf8_lossy(&output.stderr)));
        }
        fs::write(&kept, &output.stdout).map_err(|e| format!("{}: {e}", kept.display()))?;
        parsed(&output.stdout)
    }
}

fn parsed(bytes: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(bytes).map_err(|e| format!("fidelity: {e}"))
}

//! Runs the variants, and keeps of each run what is compared.
//!
//! A variant has one output directory, so that its seeds share the teacher's cache and differ in training only
//! (`train.seed`). What a run gave is copied to `results/VARIANT-SEED.json` with the recipe and overrides that made
//! it; where these are the same, it is not run again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::description::{Description, Quantity, Variant};
use super::sums;
use crate::{run, say};

/// Where things are.
pub(super) struct Place {
    /// The program.
    pub(super) binary: PathBuf,
    /// The text.
    pub(super) data: String,
    /// The recipes.
    pub(super) recipes: PathBuf,
    /// What is made.
    pub(super) work: PathBuf,
}

/// Sums over one held-out document, in nats or, of right answers, in answers.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Document {
    pub(super) id: String,
    pub(super) tokens: u64,
    pub(super) nats: f64,
}

/// KL(student‖teacher) at each token that a student wrote.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct OwnText {
    pub(super) id: String,
    pub(super) reverse_kl: Vec<f64>,
}

impl OwnText {
    /// The sum over the tokens from `share` of the text on.
    fn behind(&self, share: f64) -> Document {
        let from = (share * self.reverse_kl.len() as f64).ceil() as usize;
        let tokens = &self.reverse_kl[from..];
        Document { id: self.id.clone(), tokens: tokens.len() as u64, nats: tokens.iter().sum() }
    }
}

/// A point of the validation curve.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Point {
    pub(super) tokens: u64,
    /// −log q of the text's own tokens, nats per token.
    pub(super) loss: f64,
}

/// What one run gave.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Outcome {
    pub(super) variant: String,
    pub(super) seed: u64,
    made_from: Value,
    pub(super) steps: u64,
    pub(super) best_step: Option<u64>,
    pub(super) tokens: u64,
    pub(super) losses: Vec<Document>,
    pub(super) divergences: Vec<Document>,
    pub(super) validation: Vec<Point>,
    /// Of each held-out problem with an answer whether it was right: 1 or 0.
    #[serde(default)]
    pub(super) right: Vec<Document>,
    /// What the student continued held-out texts by, where that was measured: KL(student‖teacher) by token.
    #[serde(default)]
    pub(super) own_text: Vec<OwnText>,
    /// Of each logged stretch of steps, ascending.
    pub(super) tokens_per_second: Vec<f64>,
    /// Time of the stage that trains, on whatever else the machine did.
    pub(super) wall_s: f64,
    /// Of the teacher's cache, as the report has them.
    pub(super) cache: Option<Cache>,
    /// Loss of the teacher on the same documents.
    pub(super) teacher_losses: Vec<Document>,
    /// The student's parameters, and the teacher's.
    pub(super) parameters: [u64; 2],
}

/// What the teacher's cache holds per position.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Cache {
    pub(super) positions: u64,
    pub(super) bytes_per_token: f64,
    pub(super) unique_ids_mean: f64,
}

impl Outcome {
    pub(super) fn documents(&self, of: Quantity) -> Vec<Document> {
        let own = |share: f64| self.own_text.iter().map(|text| text.behind(share)).collect();
        match of {
            Quantity::Loss => self.losses.clone(),
            Quantity::KlToTeacher => self.divergences.clone(),
            Quantity::Accuracy => self.right.clone(),
            Quantity::OwnReverseKl => own(0.0),
            Quantity::OwnReverseKlLastQuarter => own(0.75),
        }
    }

    /// By quarter of the texts that the student wrote, first to last, nats per token.
    pub(super) fn own_reverse_kl_by_quarter(&self) -> Option<[f64; 4]> {
        if self.own_text.is_empty() {
            return None;
        }
        let of_quarter = |quarter: usize| {
            let tokens = self.own_text.iter().flat_map(|text| {
                let n = text.reverse_kl.len();
                text.reverse_kl.iter().enumerate().filter(move |(t, _)| 4 * t / n == quarter)
            });
            let (sum, n) = tokens.fold((0.0, 0.0), |(sum, n), (_, nats)| (sum + nats, n + 1.0));
            sum / n
        };
        Some([0, 1, 2, 3].map(of_quarter))
    }
}

impl Place {
    fn recipe(&self, name: &str) -> PathBuf {
        self.recipes.join(name)
    }

    pub(super) fn teacher(&self) -> PathBuf {
        self.work.join("teacher/models/student")
    }

    /// Where the weights of a run are kept, for what is measured of them later.
    pub(super) fn weights(&self, variant: &str, seed: u64) -> PathBuf {
        self.work.join(format!("results/{variant}-{seed}"))
    }

    /// The held-out texts of a variant, as its run has them.
    pub(super) fn texts(&self, variant: &str) -> PathBuf {
        self.work.join("runs").join(variant).join("corpus/prompts/held_out.jsonl")
    }

    /// `stillroom VERB RECIPE …`, quietly.
    pub(super) fn stillroom(
        &self,
        verb: &str,
        recipe: &Path,
        output: &Path,
        set: &[String],
    ) -> Result<(), String> {
        let mut command = Command::new(&self.binary);
        command.args([verb.as_ref(), recipe.as_os_str(), "--output".as_ref(), output.as_os_str()]);
        command.arg("--quiet");
        set.iter().for_each(|set| {
            command.args(["--set", set]);
        });
        run(&mut command)
    }

    /// Trains the teacher, where it is not there yet.
    pub(super) fn make_teacher(&self, description: &Description) -> Result<(), String> {
        if self.teacher().join("model.safetensors").exists() {
            return Ok(());
        }
        let data = [format!("prompts.path={}", self.data)];
        self.stillroom("train", &self.recipe(&description.teacher), &self.work.join("teacher"), &data)
    }

    /// Where a variant's text and teacher are; sums are written first.
    pub(super) fn given(&self, name: &str, variant: &Variant) -> Result<Vec<String>, String> {
        let mut data = PathBuf::from(&self.data);
        if let Some(form) = variant.sums {
            data = self.work.join("data").join(name);
            sums::write(&data, form)?;
        }
        let teacher = variant.recipe.is_none().then(|| format!("teacher.path={}", self.teacher().display()));
        Ok([format!("prompts.path={}", data.display())].into_iter().chain(teacher).collect())
    }

    /// What a run of a variant gives, from an earlier one where nothing changed.
    pub(super) fn outcome(
        &self,
        description: &Description,
        name: &str,
        variant: &Variant,
        seed: u64,
    ) -> Result<Outcome, String> {
        let recipe = self.recipe(variant.recipe.as_ref().unwrap_or(&description.recipe));
        let text = fs::read_to_string(&recipe).map_err(|e| format!("{}: {e}", recipe.display()))?;
        let mut made_from = vec![serde_json::json!(text), serde_json::json!(variant.set)];
        made_from.extend(variant.start.as_ref().map(|start| serde_json::json!(start)));
        made_from.extend(variant.teacher.as_ref().map(|teacher| serde_json::json!({ "teacher": teacher })));
        made_from.extend(variant.sums.map(|form| serde_json::json!(form)));
        let made_from = Value::Array(made_from);
        let kept = self.weights(name, seed).with_extension("json");
        if let Ok(bytes) = fs::read(&kept)
            && let Ok(outcome) = serde_json::from_slice::<Outcome>(&bytes)
            && outcome.made_from == made_from
        {
            return Ok(outcome);
        }
        let output = self.work.join("runs").join(name);
        let mut set = variant.set.clone();
        set.push(format!("train.seed={seed}"));
        set.extend(self.given(name, variant)?);
        if let Some(start) = &variant.start {
            let path = self.first_student(description, start)?;
            let path = path.display();
            set.push(format!("student={{ kind = \"pretrained\", path = \"{path}\", model = \"us:start\" }}"));
        }
        if let Some(teacher) = &variant.teacher {
            let path = self.first_student(description, teacher)?;
            set.push(format!("teacher.path={}", path.display()));
        }
        let began = Instant::now();
        self.stillroom("evaluate", &recipe, &output, &set)?;
        say(&format!("{name}, seed {seed}: {:.0} s", began.elapsed().as_secs_f64()));
        let outcome = collect(&output, name, seed, made_from)?;
        self.keep(&output, name, seed)?;
        let json = serde_json::to_vec(&outcome).expect("an outcome is plain data");
        fs::write(&kept, json).map_err(|e| format!("{}: {e}", kept.display()))?;
        Ok(outcome)
    }

    /// The student of a variant and the first seed, trained first where it is not there yet.
    fn first_student(&self, description: &Description, variant: &str) -> Result<PathBuf, String> {
        let first = description.seeds.first().ok_or("there are no seeds")?;
        self.outcome(description, variant, &description.variants[variant], *first)?;
        Ok(self.weights(variant, *first))
    }

    /// Copies the student's weights, which the next seed replaces.
    fn keep(&self, output: &Path, name: &str, seed: u64) -> Result<(), String> {
        let (from, to) = (output.join("models/student"), self.weights(name, seed));
        let failed = |e: std::io::Error| format!("{}: {e}", to.display());
        fs::create_dir_all(&to).map_err(failed)?;
        for entry in fs::read_dir(&from).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            fs::copy(entry.path(), to.join(entry.file_name())).map_err(failed)?;
        }
        Ok(())
    }
}

fn collect(output: &Path, variant: &str, seed: u64, made_from: Value) -> Result<Outcome, String> {
    let measurement = |model: &str| json(output, &format!("evaluation/{model}/measurement.json"));
    let student = measurement("student")?;
    let taught = output.join("evaluation/teacher/measurement.json").exists();
    let teacher = if taught { measurement("teacher")? } else { Value::Null };
    let training = json(output, "training/student.json")?;
    let report = json(output, "report.json")?;
    let curve = |key: &str| training[key].as_array().cloned().unwrap_or_default();
    let validation = curve("validation")
        .into_iter()
        .map(|point| Some(Point { tokens: point["tokens"].as_u64()?, loss: point["hard_label"].as_f64()? }));
    let mut speeds: Vec<f64> =
        curve("curve").iter().filter_map(|point| point["tokens_per_second"].as_f64()).collect();
    speeds.sort_by(f64::total_cmp);
    let missing = |what: &str| format!("{}: no {what}", output.display());
    let number = |value: &Value, key: &str| value[key].as_u64().ok_or_else(|| missing(key));
    Ok(Outcome {
        variant: variant.to_owned(),
        seed,
        made_from,
        steps: number(&training, "steps")?,
        best_step: training["best_step"].as_u64(),
        tokens: number(&training, "tokens")?,
        losses: documents(&student["losses"])?,
        divergences: divergences(output, taught)?,
        right: right(&student["grades"]["value"]),
        own_text: own_text(output)?,
        validation: validation.collect::<Option<_>>().ok_or_else(|| missing("validation curve"))?,
        tokens_per_second: speeds,
        wall_s: training["wall_s"].as_f64().ok_or_else(|| missing("time"))?,
        cache: serde_json::from_value(report["cache"].clone()).ok(),
        teacher_losses: if taught { documents(&teacher["losses"])? } else { Vec::new() },
        parameters: [
            number(&student["parameters"], "value")?,
            teacher["parameters"]["value"].as_u64().unwrap_or(0),
        ],
    })
}

/// From the teacher, where there is one, and it has the student's vocabulary.
fn divergences(output: &Path, taught: bool) -> Result<Vec<Document>, String> {
    if !taught {
        return Ok(Vec::new());
    }
    let divergences = json(output, "evaluation/divergence/student.json")?;
    if divergences.get("value").is_some() { documents(&divergences) } else { Ok(Vec::new()) }
}

fn right(grades: &Value) -> Vec<Document> {
    let document = |grade: &Value| {
        let nats = f64::from(u8::from(grade["correct"].as_bool()?));
        Some(Document { id: grade["id"].as_str()?.to_owned(), tokens: 1, nats })
    };
    grades.as_array().into_iter().flatten().filter_map(document).collect()
}

/// Rows that were measured, and not the reason why they were not.
fn documents(measured: &Value) -> Result<Vec<Document>, String> {
    serde_json::from_value(measured["value"].clone()).map_err(|e| format!("held-out rows: {e}"))
}

/// Where the run measured it.
fn own_text(output: &Path) -> Result<Vec<OwnText>, String> {
    let file = "evaluation/own_text/student.json";
    if !output.join(file).exists() {
        return Ok(Vec::new());
    }
    serde_json::from_value(json(output, file)?["value"].clone()).map_err(|e| format!("{file}: {e}"))
}

fn json(output: &Path, file: &str) -> Result<Value, String> {
    let path = output.join(file);
    let bytes = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    serde_json::from_slice(&bytes).map_err(|e| format!("{}: {e}", path.display()))
}

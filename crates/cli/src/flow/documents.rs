//! The record of a release, and the documents that are derived from it.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use stillroom_core::{Digest, Origin};
use stillroom_evaluate::{Contender, Measured, ModelScore, Report};
use stillroom_governance::record::{
    Costs, Counts, DataFacts, DataKind, Evaluation, Figure, FileFacts, GateFacts, Licences, MachineRecord,
    ModelFacts, ModelResult, PairedResult, ProvenanceRecord, RECORD_VERSION, RecipeFacts, ReleaseFacts, Role,
    Route, Span, Start, StudentFacts, TrainingFacts,
};
use stillroom_governance::{Decision, ModelEvidence, Program, views};

use crate::failure::{Failure, Result};
use crate::flow::report::rfc3339;
use crate::flow::train::{Training, training_of};
use crate::flow::{Flow, curate, data, feedback, json_lines, logits, logprobs, report, tree_digest};
use crate::recipe::{Base, Egress, Judge, PiiRule, PromptPii, PromptSource, Student, Teacher};

/// What the program was built from; its digest stands in every record.
const LOCKFILE: &[u8] = include_bytes!("../../../../Cargo.lock");
/// Where the description of the traces goes in a release.
const CROISSANT: &str = "provenance/croissant.json";
/// Files of a run that the record names and the release does not carry.
const STAYING: [&str; 5] = ["licence.json", "plan.json", "recipe.toml", "report.html", "report.json"];

impl Flow {
    /// Completes a release directory: the record of how it was made, the model card and the other documents.
    pub(super) fn write_documents(
        &self,
        dir: &Path,
        decision: &Decision,
        report: &Report,
    ) -> Result<ProvenanceRecord> {
        if self.recipe.teacher.is_some() && self.asks_for_traces() {
            let described = self.run.path(super::describe::FILE)?;
            let bytes = std::fs::read(&described).map_err(|e| Failure::io("read", &described, &e))?;
            put(dir, CROISSANT, &bytes)?;
        }
        let record = self.provenance_record(dir, decision, report)?;
        put(dir, "provenance/record.json", &record.to_bytes())?;
        for view in views::all(&record, self.signer.as_deref())? {
            put(dir, view.path, view.text.as_bytes())?;
        }
        Ok(record)
    }

    fn provenance_record(
        &self,
        dir: &Path,
        decision: &Decision,
        report: &Report,
    ) -> Result<ProvenanceRecord> {
        let release = &self.recipe.release;
        let told = self.told()?;
        let files = FileFacts::below(dir)?;
        let teachers = self.teacher_facts(decision)?;
        let training: Training = self.read_json(&training_of(Contender::Student))?;
        Ok(ProvenanceRecord {
            record_version: RECORD_VERSION,
            release: ReleaseFacts {
                name: release.name.clone(),
                licence: release.licence.clone(),
                card: decision.card_licence(release.licence.as_deref()),
                trial: self.trial,
            },
            program: Program {
                name: "stillroom".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                digest: super::binary_digest(),
            },
            lockfile: Digest::of(LOCKFILE),
            machine: MachineRecord {
                cpu: report.machine.cpu.clone(),
                kernels: report.machine.kernels.clone(),
                threads: report.machine.threads,
                os: report.machine.os.clone(),
            },
            recipe: RecipeFacts {
                name: self.recipe.name.clone(),
                sha256: Digest::of(self.recipe.to_toml().as_bytes()),
                seeds: report.seeds.clone(),
                loss: training.loss.clone(),
                trained: self.recipe.train.lora.as_ref().map_or("all weights".to_owned(), |lora| {
                    format!("a LoRA adapter of rank {}, merged into the weights", lora.config().r)
                }),
            },
            student: self.student_facts(dir, &files, &teachers, decision, report)?,
            teachers,
            training: Some(training_facts(&training)),
            data: self.data_facts(decision, report)?,
            evaluation: evaluation(report),
            costs: Costs {
                wall_s: Figure::of(told.wall_s),
                teacher_usd: report
                    .corpus
                    .teacher_usd
                    .map_or(Figure::missing("no teacher was asked"), Figure::of),
                energy_j: Figure::missing("it is not measured over a whole run"),
            },
            gate: GateFacts::new(decision, told.decided),
            time: told.time,
            files,
            byproducts: self.byproducts()?,
        })
    }

    /// What the events and the records of the stages say about time.
    fn told(&self) -> Result<Told> {
        let (mut begun, mut decided, mut wall_s) = (None, 0, 0.0);
        for event in json_lines::<Value>(self.run.path("events.jsonl")?)? {
            let event = event?;
            let unix_s = event["unix_s"].as_u64().unwrap_or(0);
            begun = begun.or(Some(unix_s));
            match event["event"].as_str() {
                Some("run_started") => decided = unix_s,
                Some("stage_finished") => wall_s += event["wall_s"].as_f64().unwrap_or(0.0),
                _ => {}
            }
        }
        let reported = self.run.stage_record(report::STAGE)?.map_or(decided, |record| record.finished_unix_s);
        let time = Span { started: rfc3339(begun.unwrap_or(decided)), finished: rfc3339(reported) };
        Ok(Told { time, decided: rfc3339(decided), wall_s })
    }

    fn teacher_facts(&self, decision: &Decision) -> Result<Vec<ModelFacts>> {
        let Some(teacher) = &self.recipe.teacher else { return Ok(Vec::new()) };
        let mut roles = self.roles();
        let first = teacher.path.as_deref().filter(|_| teacher.wire.is_none());
        let paths =
            std::iter::once(first).chain(teacher.ensemble.iter().map(|further| Some(further.path.as_str())));
        let mut models = Vec::new();
        for ((id, share), path) in teacher.models().zip(teacher.shares()).zip(paths) {
            let route = if path.is_some() { Route::Weights } else { route(teacher) };
            let model = self.model_facts(decision, id, path)?;
            models.push(ModelFacts { roles: roles.clone(), share, route, ..model });
            roles = of_further(&roles);
        }
        Ok(models)
    }

    /// A model with weights at hand, or known by its ID alone.
    fn model_facts(&self, decision: &Decision, id: &str, path: Option<&str>) -> Result<ModelFacts> {
        let path = path.map(|path| self.source.resolve_path(path));
        let found = path.as_deref().map(ModelEvidence::read).transpose()?;
        let declared = self.recipe.policy.declare.get(id);
        let of_it = decision.rules.iter().find(|rule| rule.id == id && rule.release != id);
        Ok(ModelFacts {
            id: id.to_owned(),
            release: of_it.map(|rule| rule.release.clone()),
            id_is_path: false,
            roles: vec![Role::Ancestor],
            share: 1.0,
            route: Route::Weights,
            revision: path.as_deref().and_then(revision),
            tree_sha256: path.as_deref().map(|path| self.input_digest(path)).transpose()?,
            owner: declared.map(|declared| declared.owner.clone()),
            licence: Licences::of(
                decision,
                id,
                found.as_ref(),
                declared.map(|declared| declared.licence.as_str()),
            ),
        })
    }

    /// What the first teacher did.
    fn roles(&self) -> Vec<Role> {
        let (recipe, mut roles) = (&self.recipe, Vec::new());
        if recipe.asks_for_traces() || recipe.targets().is_some() || recipe.train.needs_likelihoods() {
            roles.push(Role::Teacher);
        }
        match recipe.feedback.as_ref().map(|feedback| &feedback.judge) {
            Some(Judge::Grade { .. } | Judge::Preference { .. }) => roles.push(Role::Judge),
            Some(Judge::Revision { .. }) => roles.push(Role::Rewriter),
            Some(Judge::Verified) | None => {}
        }
        if recipe.train.learns_own_tokens() || recipe.is_scored() {
            roles.push(Role::Scorer);
        }
        if roles.is_empty() { vec![Role::Teacher] } else { roles }
    }

    fn student_facts(
        &self,
        dir: &Path,
        files: &[FileFacts],
        teachers: &[ModelFacts],
        decision: &Decision,
        report: &Report,
    ) -> Result<StudentFacts> {
        let start = match &self.recipe.student {
            Student::Nobody | Student::FromScratch(_) => Start::Random,
            Student::FromLayers { .. } => Start::Layers,
            Student::Pruned(_) => Start::Pruned,
            Student::Pretrained { .. } => Start::Checkpoint,
        };
        let mut ancestors: Vec<ModelFacts> = Vec::new();
        match self.recipe.student.base() {
            None => {}
            Some(Base { path: None, .. }) => ancestors.extend(teachers.first().cloned()),
            Some(Base { path: Some(path), model }) => {
                let base = self.model_facts(decision, model.unwrap_or(path), Some(path))?;
                ancestors.push(ModelFacts { id_is_path: model.is_none(), ..base });
            }
        }
        if let Student::Pretrained { adapter: Some(path), .. } = &self.recipe.student {
            let adapter = self.model_facts(decision, path, Some(path))?;
            ancestors.push(ModelFacts { id_is_path: true, ..adapter });
        }
        let config = dir.join("config.json");
        let text = std::fs::read(&config).map_err(|e| Failure::io("read", &config, &e))?;
        let config: Value = serde_json::from_slice(&text).unwrap_or_default();
        let parameters = report.models.get(&Contender::Student).and_then(|score| score.parameters.value());
        Ok(StudentFacts {
            architecture: config["model_type"].as_str().unwrap_or("unknown").to_owned(),
            parameters: parameters.copied(),
            tree_sha256: tree_digest(files.iter().map(|file| (file.path.as_str(), file.sha256))),
            start,
            ancestors,
        })
    }

    fn data_facts(&self, decision: &Decision, report: &Report) -> Result<Vec<DataFacts>> {
        let mut sets = vec![self.prompt_facts(decision, report)?];
        let prompts = sets[0].id.clone();
        let made = |flow: &Flow, what: &str, stage: &str, about: &str| -> Result<DataFacts> {
            let record = flow.run.stage_record(stage)?;
            Ok(DataFacts {
                id: format!("{}:{what}", flow.recipe.name),
                kind: DataKind::Synthetic,
                about: about.to_owned(),
                tree_sha256: record.map(|record| record.outputs_digest()),
                made_by: flow.recipe.teacher.iter().flat_map(Teacher::models).map(str::to_owned).collect(),
                made_from: vec![prompts.clone()],
                licence: flow.own_licence(),
                counts: Counts::default(),
                personal_data: flow.trace_pii_in_words(),
                egress: flow.egress_in_words(),
                files: Vec::new(),
            })
        };
        if self.asks_for_traces() {
            let about = "The teachers' replies to the prompts, as curation left them.";
            let mut traces = made(self, "traces", curate::STAGE, about)?;
            traces.counts = self.trace_counts(report)?;
            let files = ["train", "validation"].map(|part| format!("corpus/curated/{part}.parquet"));
            traces.files = FileFacts::of(self.run.root(), files.to_vec())?;
            sets.push(traces);
        }
        if let Some(facts) = &report.corpus.feedback {
            let about = "Pairs of a better and a worse reply to a prompt.";
            let mut pairs = made(self, "feedback", feedback::STAGE, about)?;
            if self.recipe.feedback.as_ref().is_some_and(|feedback| feedback.judge == Judge::Verified) {
                pairs.about.push_str(" A verifier judged them, and no model.");
            }
            pairs.counts = Counts {
                answered: Some(facts.judged),
                kept: Some(facts.pairs),
                validation: Some(facts.validation_pairs),
                ..Counts::default()
            };
            sets.push(pairs);
        }
        if self.recipe.cached_targets().is_some() {
            let about =
                "The teachers' distributions at each token of the texts that the student learned from.";
            sets.push(made(self, "logits", logits::STAGE, about)?);
        }
        if self.recipe.train.needs_likelihoods() {
            let about =
                "How likely the teacher finds the texts that the student learned from, in tokens of its own.";
            sets.push(made(self, "logprobs", logprobs::STAGE, about)?);
        }
        Ok(sets)
    }

    fn prompt_facts(&self, decision: &Decision, report: &Report) -> Result<DataFacts> {
        let id = self.data_id();
        let (kind, about) = match &self.recipe.prompts.source {
            PromptSource::Task { .. } => (DataKind::Procedural, report.task_description.clone()),
            PromptSource::Chat { .. } => {
                (DataKind::Given, "Prompts from files that the recipe names.".to_owned())
            }
            PromptSource::Text { .. } => {
                (DataKind::Given, "Texts from files that the recipe names.".to_owned())
            }
        };
        let about = match &self.recipe.prompts.data_class {
            Some(class) => format!("{about} Their class is `{class}`."),
            None => about,
        };
        let corpus = &report.corpus;
        Ok(DataFacts {
            kind,
            about,
            tree_sha256: self.run.stage_record(data::STAGE)?.map(|record| record.outputs_digest()),
            made_by: Vec::new(),
            made_from: Vec::new(),
            licence: Licences::of(decision, &id, None, None),
            counts: Counts {
                kept: Some(corpus.train_prompts),
                validation: Some(corpus.validation_prompts),
                held_out: Some(report.heldout_examples),
                dropped: self.refused_by_step()?,
                ..Counts::default()
            },
            personal_data: self.prompt_pii_in_words(),
            egress: self.egress_in_words(),
            files: Vec::new(),
            id,
        })
    }

    fn refused_by_step(&self) -> Result<BTreeMap<String, u64>> {
        let mut refused = BTreeMap::new();
        for drop in self.refused()? {
            *refused.entry(drop.step.as_str().to_owned()).or_default() += 1;
        }
        Ok(refused)
    }

    fn trace_counts(&self, report: &Report) -> Result<Counts> {
        let curation = self.curation()?;
        let samples = self.recipe.teacher.as_ref().map_or(1, |teacher| u64::from(teacher.samples_per_prompt));
        let mut dropped = curation.dropped;
        // Rows that were left out before anybody was asked are counted with the prompts.
        for (step, n) in self.refused_by_step()? {
            dropped.entry(step).and_modify(|all| *all = all.saturating_sub(n));
        }
        dropped.retain(|_, n| *n > 0);
        let teach: Value = self.read_json("teach.json")?;
        Ok(Counts {
            asked: Some((report.corpus.train_prompts + report.corpus.validation_prompts) * samples),
            answered: teach["rows"].as_u64(),
            kept: Some(curation.kept),
            validation: Some(curation.validation_kept),
            held_out: None,
            dropped,
        })
    }

    /// Of what the run wrote itself: what the recipe says of the release.
    fn own_licence(&self) -> Licences {
        let declared = self.recipe.release.licence.clone();
        let place = if declared.is_some() { "[release]" } else { "" };
        Licences { declared, declared_in: place.to_owned(), ..Licences::default() }
    }

    fn prompt_pii_in_words(&self) -> String {
        let asked = self.recipe.wire().is_some_and(|wire| !wire.asked().is_empty() || wire.is_by_hand());
        let words = match (asked, self.prompt_pii()) {
            (false, _) => "not looked for: nothing left this machine",
            (true, PromptPii::Block) => "looked for before prompts left this machine; none was found",
            (true, PromptPii::Redact) => "looked for and redacted before prompts left this machine",
            (true, PromptPii::Allow) if self.recipe.policy.prompt_pii == PromptPii::Allow => {
                "not looked for; the recipe allows it to leave this machine"
            }
            (true, PromptPii::Allow) => "not looked for: prompts stayed on this machine",
        };
        words.to_owned()
    }

    fn trace_pii_in_words(&self) -> String {
        let Some(pii) = &self.recipe.curate.pii else { return "not looked for".to_owned() };
        let rule = match pii.rule {
            PiiRule::Drop => "traces with it were left out",
            PiiRule::Redact => "what was found was redacted",
        };
        let classes: Vec<String> = pii.classes.iter().map(ToString::to_string).collect();
        format!("looked for by form ({}); {rule}", classes.join(", "))
    }

    fn egress_in_words(&self) -> String {
        let policy = &self.recipe.policy;
        match policy.egress {
            Egress::Local => "nothing may leave this machine".to_owned(),
            Egress::Listed => format!("to listed places only: {}", policy.listed.join(", ")),
            Egress::Any => "to any place".to_owned(),
        }
    }

    fn byproducts(&self) -> Result<Vec<FileFacts>> {
        let root = self.run.root();
        let mut names: Vec<String> =
            STAYING.iter().filter(|name| root.join(name).is_file()).map(|&name| name.to_owned()).collect();
        let checkpoints = self.run.checkpoints();
        let kept = FileFacts::below(&checkpoints)?;
        let mut files = FileFacts::of(root, std::mem::take(&mut names))?;
        files.extend(
            kept.into_iter().map(|file| FileFacts { path: format!("checkpoints/{}", file.path), ..file }),
        );
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }
}

/// When it was, and how long it took.
struct Told {
    time: Span,
    decided: String,
    wall_s: f64,
}

fn route(teacher: &Teacher) -> Route {
    let Some(wire) = &teacher.wire else { return Route::Weights };
    if wire.replay.is_some() {
        return Route::Ledger;
    }
    if wire.is_by_hand() {
        return Route::Files;
    }
    let origins = wire.asked().iter().filter_map(|endpoint| Origin::of_open_url(&endpoint.base_url).ok());
    let mut origins: Vec<String> = origins.map(|origin| origin.to_string()).collect();
    origins.sort();
    origins.dedup();
    Route::Endpoints { origins }
}

/// The commit of a model in the hub's cache (`models--ORG--NAME/snapshots/COMMIT`).
fn revision(path: &Path) -> Option<String> {
    let path = std::fs::canonicalize(path).ok()?;
    let parts: Vec<String> =
        path.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    let at = parts.iter().position(|part| part.starts_with("models--"))?;
    match &parts[at + 1..] {
        [folder, commit, ..] if folder == "snapshots" => Some(commit.clone()),
        _ => None,
    }
}

/// What a further teacher does of what the first one does: it writes its share and has its share of distributions, but the
/// first alone judges and revises.
fn of_further(roles: &[Role]) -> Vec<Role> {
    roles.iter().copied().filter(|role| !matches!(role, Role::Judge | Role::Rewriter)).collect()
}

fn training_facts(training: &Training) -> TrainingFacts {
    let figure = |loss: Option<f64>| match loss.filter(|loss| loss.is_finite()) {
        Some(loss) => Figure::of(loss),
        None => Figure::missing("no point was logged"),
    };
    let chosen = training.best_step.unwrap_or(training.steps);
    let held_back = training.validation.iter().rfind(|point| point.step == chosen);
    TrainingFacts {
        steps: training.steps,
        chosen_step: training.best_step,
        examples: training.examples,
        tokens: training.tokens,
        supervised_tokens: training.supervised_tokens,
        first_loss: figure(training.curve.first().map(|point| point.loss)),
        last_loss: figure(training.curve.last().map(|point| point.loss)),
        validation_loss: match held_back {
            Some(point) => figure(Some(point.loss)),
            None => Figure::missing("no rows were held back, or not at this step"),
        },
    }
}

fn evaluation(report: &Report) -> Evaluation {
    let mut differences = Vec::new();
    for (pair, comparisons) in &report.paired {
        for (metric, comparison) in comparisons {
            differences.push(PairedResult {
                other: pair.second.key().to_owned(),
                metric: json_word(metric),
                difference: comparison.difference,
                ci95: [comparison.ci95.low, comparison.ci95.high],
                claim: json_word(&comparison.claim),
                items: comparison.items,
                method: comparison.method.clone(),
            });
        }
    }
    Evaluation {
        task: report.task.clone(),
        description: report.task_description.clone(),
        heldout_text: report.heldout_text.clone(),
        heldout_examples: report.heldout_examples,
        models: report.models.iter().map(|(contender, score)| result(*contender, score)).collect(),
        differences,
        checks_passed: report.checks.passed(),
    }
}

fn result(contender: Contender, score: &ModelScore) -> ModelResult {
    let interval = score.accuracy_ci95.value().map(|interval| [interval.low, interval.high]);
    ModelResult {
        contender: contender.key().to_owned(),
        label: contender.label().to_owned(),
        parameters: score.parameters.value().copied(),
        accuracy: Figure { ci95: interval, ..figure(&score.accuracy) },
        nll_nats_per_token: figure(&score.nll_nats_per_token),
        bits_per_byte: figure(&score.bits_per_byte),
        kl_to_teacher: figure(&score.kl_to_teacher),
    }
}

fn figure(measured: &Measured<f64>) -> Figure {
    match measured {
        Measured::Value(value) => Figure::of(*value),
        Measured::NotMeasured(reason) => Figure::missing(reason.clone()),
    }
}

/// The word that an enumeration has in JSON.
fn json_word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}

fn put(dir: &Path, relative: &str, bytes: &[u8]) -> Result<()> {
    let path = dir.join(relative);
    let folder = path.parent().unwrap_or(dir);
    std::fs::create_dir_all(folder).map_err(|e| Failure::io("create", folder, &e))?;
    std::fs::write(&path, bytes).map_err(|e| Failure::io("write", &path, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_several_teachers_alone_judges_and_revises() {
        assert_eq!(of_further(&[Role::Teacher, Role::Judge, Role::Scorer]), [Role::Teacher, Role::Scorer]);
        assert_eq!(of_further(&[Role::Teacher, Role::Rewriter]), [Role::Teacher]);
    }
}

//! How open a release is, by the components of the Model Openness Framework (arXiv 2403.13784) that it carries.
//!
//! Open weights are not an open process. A component counts where a file of the release holds it, or the card itself;
//! one that only stays in the run directory, or that anybody could ask for, does not.

use serde::Serialize;

use super::licence;
use crate::record::{DataKind, ProvenanceRecord};

/// Which class of the framework a release is in, the lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// In none: components of class III are missing.
    Unclassified,
    /// Class III, open model.
    OpenModel,
    /// Class II, open tooling.
    OpenTooling,
    /// Class I, open science.
    OpenScience,
}

impl Level {
    /// In words.
    pub fn describe(self) -> &'static str {
        match self {
            Level::Unclassified => "none of the framework's classes",
            Level::OpenModel => "class III, open model",
            Level::OpenTooling => "class II, open tooling",
            Level::OpenScience => "class I, open science",
        }
    }
}

/// One component of the framework.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Component {
    pub name: &'static str,
    /// The lowest class that needs it; none where it is optional.
    pub needed_for: Option<Level>,
    /// Where it is, or why it is missing.
    pub found: Result<String, String>,
}

/// The level, and what it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Openness {
    pub level: Level,
    pub components: Vec<Component>,
}

/// Computes the level from the record.
pub fn openness(record: &ProvenanceRecord) -> Openness {
    let components = components(record);
    let complete = |level: Level| {
        let needed = components.iter().filter(|component| component.needed_for.is_some_and(|l| l <= level));
        needed.into_iter().all(|component| component.found.is_ok())
    };
    let levels = [Level::OpenModel, Level::OpenTooling, Level::OpenScience];
    let level = levels.into_iter().take_while(|&level| complete(level)).last();
    Openness { level: level.unwrap_or(Level::Unclassified), components }
}

fn components(record: &ProvenanceRecord) -> Vec<Component> {
    use Level::{OpenModel, OpenScience, OpenTooling};
    let program = &record.program;
    let code = |what: &str| {
        Err(format!("{what} is in {} {}, whose source is not in the release", program.name, program.version))
    };
    let component = |name, needed_for, found| Component { name, needed_for, found };
    vec![
        component("model architecture", Some(OpenModel), in_file(record, "config.json", "no `config.json`")),
        component("final model parameters", Some(OpenModel), parameters(record)),
        component(
            "technical report",
            Some(OpenModel),
            in_file(record, "report.html", "`report.html` stays in the run directory"),
        ),
        component("evaluation results", Some(OpenModel), evaluation(record)),
        component("model card", Some(OpenModel), Ok("this card".to_owned())),
        component("data card", Some(OpenModel), data_card(record)),
        component(
            "sample model outputs",
            None,
            in_file(record, "report.html", "samples stay with `report.html` in the run directory"),
        ),
        component("training code", Some(OpenTooling), code("it")),
        component("inference code", Some(OpenTooling), code("ours, beside others' for these files,")),
        component("evaluation code", Some(OpenTooling), code("it")),
        component("evaluation data", Some(OpenTooling), evaluation_data(record)),
        component(
            "supporting libraries and tools",
            None,
            Err(format!("`Cargo.lock` is named by its SHA-256, {}", record.lockfile)),
        ),
        component("research paper", Some(OpenScience), Err("there is none".to_owned())),
        component("datasets", Some(OpenScience), datasets(record)),
        component("data preprocessing code", Some(OpenScience), code("it")),
        component("intermediate model parameters", Some(OpenScience), checkpoints(record)),
        component(
            "model metadata",
            None,
            in_file(
                record,
                "recipe.toml",
                "`recipe.toml` stays in the run directory; the record has its SHA-256",
            ),
        ),
    ]
}

fn in_file(record: &ProvenanceRecord, name: &str, otherwise: &str) -> Result<String, String> {
    let is_it = |path: &str| path == name || path.strip_suffix(name).is_some_and(|head| head.ends_with('/'));
    match record.files.iter().find(|file| is_it(&file.path)) {
        Some(file) => Ok(format!("`{}`", file.path)),
        None => Err(otherwise.to_owned()),
    }
}

fn parameters(record: &ProvenanceRecord) -> Result<String, String> {
    let Some(weights) = record.weights().next() else { return Err("no file of weights".to_owned()) };
    match record.release.licence.as_deref() {
        Some(licence) if licence::is_open(licence) => Ok(format!("`{}`", weights.path)),
        Some(_) => Err("they are here, under a licence that is not known as an open one".to_owned()),
        None => Err("they are here, and nobody has said under what licence".to_owned()),
    }
}

fn evaluation(record: &ProvenanceRecord) -> Result<String, String> {
    if record.release.trial {
        return Err("a trial measures nothing".to_owned());
    }
    let measured = record.evaluation.models.iter().any(|model| {
        [&model.accuracy, &model.nll_nats_per_token, &model.kl_to_teacher]
            .iter()
            .any(|figure| figure.value.is_some())
    });
    if measured { Ok("this card".to_owned()) } else { Err("nothing was measured".to_owned()) }
}

fn data_card(record: &ProvenanceRecord) -> Result<String, String> {
    in_file(record, "croissant.json", "no data set was written that a card could describe")
}

fn evaluation_data(record: &ProvenanceRecord) -> Result<String, String> {
    let held_out = record.data.iter().find(|data| data.counts.held_out.is_some());
    Err(match held_out.map(|data| data.kind) {
        Some(DataKind::Procedural) => {
            "held-out problems can be made again by the program; they are not in the release".to_owned()
        }
        _ => "held-out rows stay in the run directory".to_owned(),
    })
}

fn datasets(record: &ProvenanceRecord) -> Result<String, String> {
    Err(match record.data.is_empty() {
        true => "no data set is on record".to_owned(),
        false => "they stay in the run directory; the record has their digests".to_owned(),
    })
}

fn checkpoints(record: &ProvenanceRecord) -> Result<String, String> {
    let n = record
        .byproducts
        .iter()
        .filter(|file| file.is_weights() && file.path.starts_with("checkpoints/"))
        .count();
    Err(match n {
        0 => "none were kept".to_owned(),
        n => format!("{n} of them stay in the run directory; the record has their SHA-256"),
    })
}

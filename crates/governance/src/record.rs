//! The record of a release: who taught it, on what, by which licences, and what came out.
//!
//! A run writes one [`ProvenanceRecord`] and every document about the release is derived from it alone
//! ([`views`](crate::views)), so that no two of them can disagree. It is JSON, versioned by [`RECORD_VERSION`]; a
//! figure that was not measured is null and has its reason beside it.
//!
//! Two kinds of digest occur. `sha256` of a file is what `sha256sum` says. `tree_sha256` of a model, a data set or a
//! stage is SHA-256 over the names and the SHA-256 of its files, and is never written where a file's is expected.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use stillroom_core::Digest;

use crate::decision::{Decision, Part, Rule, Verdict};
use crate::error::{GovernanceError, RecordFault, Result};
use crate::manifest::{Program, RELEASE, has_weights};
use crate::obligations::{CardLicence, Obligation};
use crate::subject::{LicenceFile, ModelEvidence};
use crate::tags::licence_of_tag;
use crate::text::json_text;
use crate::verify::{FileKind, digest_all, list_files};

/// A change of meaning changes the number.
pub const RECORD_VERSION: u32 = 1;
/// Where the record lies in a run directory.
pub const RECORD_PATH: &str = "release/provenance/record.json";
/// Largest record that is read.
pub const RECORD_BYTES_MAX: u64 = 16 << 20;

/// Everything that is said about a release.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProvenanceRecord {
    pub record_version: u32,
    pub release: ReleaseFacts,
    pub program: Program,
    /// SHA-256 of the `Cargo.lock` that the program was built with.
    pub lockfile: Digest,
    pub machine: MachineRecord,
    pub time: Span,
    pub recipe: RecipeFacts,
    pub teachers: Vec<ModelFacts>,
    pub student: StudentFacts,
    /// Not in the first records of version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<TrainingFacts>,
    pub data: Vec<DataFacts>,
    pub evaluation: Evaluation,
    pub costs: Costs,
    pub gate: GateFacts,
    /// Files of the release, in order of path.
    pub files: Vec<FileFacts>,
    /// Files of the run that stay behind, in order of path.
    pub byproducts: Vec<FileFacts>,
}

/// What is released.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseFacts {
    pub name: String,
    /// What the recipe says, an SPDX expression; none where it says nothing.
    pub licence: Option<String>,
    /// What the front matter of its card says.
    pub card: CardLicence,
    /// Cut short on purpose: nothing in it is a result.
    pub trial: bool,
}

/// The machine, as far as results depend on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineRecord {
    pub cpu: String,
    /// Instruction sets and blocking: weights are reproducible within one such class.
    pub kernels: String,
    pub threads: u64,
    pub os: String,
}

/// RFC 3339, UTC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    pub started: String,
    pub finished: String,
}

/// The recipe, and all that its results depend on beside its inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeFacts {
    pub name: String,
    /// SHA-256 of `recipe.toml` with every default written out.
    pub sha256: Digest,
    pub seeds: BTreeMap<String, u64>,
    /// What the student learned, in words: `forward_kl + 0.1 hard_labels`.
    pub loss: String,
    /// `all weights`, or the adapter that was trained.
    pub trained: String,
}

/// A model that took part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelFacts {
    /// The ID that the gate saw.
    pub id: String,
    /// The release of the register that the ID means, where it has one.
    pub release: Option<String>,
    /// Whether `id` is a path of the machine that made the release, and nobody's name for the model.
    pub id_is_path: bool,
    pub roles: Vec<Role>,
    /// Of a mixture of teachers; 1 where there is one.
    pub share: f64,
    pub route: Route,
    /// Commit of the hub's repository that the files came from.
    pub revision: Option<String>,
    /// Null where nobody here has the bytes.
    pub tree_sha256: Option<Digest>,
    pub owner: Option<String>,
    pub licence: Licences,
}

/// What a model did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Wrote text or gave distributions that the student learned.
    Teacher,
    /// Graded or compared replies.
    Judge,
    /// Said what is wrong with replies and rewrote them.
    Rewriter,
    /// Said how likely the student's own text is.
    Scorer,
    /// The student's weights began as this model's.
    Ancestor,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Teacher => "teacher",
            Role::Judge => "judge",
            Role::Rewriter => "rewriter",
            Role::Scorer => "scorer",
            Role::Ancestor => "ancestor",
        }
    }
}

/// How a model was reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case", deny_unknown_fields)]
pub enum Route {
    /// Weights on the machine that made the release.
    Weights,
    /// Somebody's interface; scheme, host and port only.
    Endpoints { origins: Vec<String> },
    /// Files of requests that somebody carried.
    Files,
    /// The ledger of an earlier run.
    Ledger,
}

impl Route {
    /// In words.
    pub fn describe(&self) -> String {
        match self {
            Route::Weights => "weights on this machine".to_owned(),
            Route::Endpoints { origins } => format!("interface at {}", origins.join(", ")),
            Route::Files => "files of requests, carried by hand".to_owned(),
            Route::Ledger => "replies in an earlier run's ledger".to_owned(),
        }
    }
}

/// What is said about a licence, and what was decided.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Licences {
    /// What the publisher says.
    pub declared: Option<String>,
    /// Where: `LICENSE`, `tag of the card`, `[policy.declare]`, `licence register`; empty for nowhere.
    pub declared_in: String,
    /// What the gate decided by; none where it knew none or what it found is in conflict.
    pub concluded: Option<String>,
    /// Licence files of the copy that was used.
    pub texts: Vec<TextFacts>,
}

impl Licences {
    /// Of a subject of the gate: what its files say, else its owner (`declared`), else the tag of its card, else the
    /// register where that quotes the terms themselves; and what the rules about it conclude.
    pub fn of(
        decision: &Decision,
        id: &str,
        found: Option<&ModelEvidence>,
        declared: Option<&str>,
    ) -> Licences {
        let rules: Vec<&Rule> = decision.rules.iter().filter(|rule| rule.id == id).collect();
        let text = |file: &LicenceFile| TextFacts { name: file.name.clone(), sha256: file.digest };
        let texts: Vec<TextFacts> = found.iter().flat_map(|found| &found.files).map(text).collect();
        let by_files = found.map(ModelEvidence::licences).filter(|licences| !licences.is_empty());
        let tag = found.and_then(|found| found.tag.as_deref());
        let by_register =
            rules.iter().find(|rule| rule.grade.speaks_for_itself() && !rule.licence.is_empty());
        let names = || texts.iter().map(|text| text.name.as_str()).collect::<Vec<_>>().join(", ");
        let (said, place) = if let Some(licences) = by_files {
            (Some(licences.join(" AND ")), names())
        } else if let Some(declared) = declared {
            (Some(declared.to_owned()), "[policy.declare]".to_owned())
        } else if let Some(tag) = tag {
            (Some(licence_of_tag(tag).unwrap_or(tag).to_owned()), "tag of the card".to_owned())
        } else if let Some(rule) = by_register {
            (Some(rule.licence.clone()), "licence register".to_owned())
        } else {
            (None, String::new())
        };
        Licences { declared: said, declared_in: place, concluded: concluded(&rules), texts }
    }
}

/// All licences that apply; none where a rule knows none, or cannot say.
fn concluded(rules: &[&Rule]) -> Option<String> {
    let own = rules
        .iter()
        .filter(|rule| !matches!(rule.role, Part::TeacherBase | Part::StudentBaseBase | Part::TrainingData));
    let mut licences: Vec<&str> = Vec::new();
    for rule in own {
        if rule.licence.is_empty() || rule.verdict == Verdict::Unknown {
            return None;
        }
        let new =
            rule.licence.split(" AND ").filter(|licence| !licences.contains(licence)).collect::<Vec<_>>();
        licences.extend(new);
    }
    (!licences.is_empty()).then(|| licences.join(" AND "))
}

/// The student.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudentFacts {
    /// `model_type` of its `config.json`.
    pub architecture: String,
    pub parameters: Option<u64>,
    pub tree_sha256: Digest,
    pub start: Start,
    /// Models whose weights it began with; none where it began at random.
    pub ancestors: Vec<ModelFacts>,
}

/// Where the student's weights come from before training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    Random,
    /// A model as it was.
    Checkpoint,
    /// Chosen layers of a model.
    Layers,
    /// The most important part of a model's width.
    Pruned,
}

impl Start {
    /// In words.
    pub fn describe(self) -> &'static str {
        match self {
            Start::Random => "random weights",
            Start::Checkpoint => "the weights of another model",
            Start::Layers => "chosen layers of another model",
            Start::Pruned => "the most important part of another model",
        }
    }
}

/// How the student was trained, in the loss that its recipe has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingFacts {
    /// Optimiser steps.
    pub steps: u64,
    /// The step whose weights were taken; none where that is the last.
    pub chosen_step: Option<u64>,
    /// Examples of one epoch.
    pub examples: u64,
    pub tokens: u64,
    pub supervised_tokens: u64,
    /// At the first and at the last point that was logged.
    pub first_loss: Figure,
    pub last_loss: Figure,
    /// At the step whose weights were taken, on rows that were not trained on.
    pub validation_loss: Figure,
}

/// A set of data that the student was made with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFacts {
    pub id: String,
    pub kind: DataKind,
    /// What it is, for a reader who does not know it.
    pub about: String,
    /// Null where the run keeps none.
    pub tree_sha256: Option<Digest>,
    /// IDs of the models that wrote it.
    pub made_by: Vec<String>,
    /// IDs of the data that it was made from.
    pub made_from: Vec<String>,
    pub licence: Licences,
    pub counts: Counts,
    /// What was done about personal data and secrets, in words.
    pub personal_data: String,
    /// Where it was allowed to go, in words.
    pub egress: String,
    pub files: Vec<FileFacts>,
}

/// What kind of data it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataKind {
    /// Made by a procedure of this program; no text of anybody's is in it.
    Procedural,
    /// Files that the user gave.
    Given,
    /// Written by models in this run.
    Synthetic,
}

/// Rows on their way; none where a count means nothing for the data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    pub asked: Option<u64>,
    pub answered: Option<u64>,
    /// To train on.
    pub kept: Option<u64>,
    pub validation: Option<u64>,
    pub held_out: Option<u64>,
    pub dropped: BTreeMap<String, u64>,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    pub task: String,
    pub description: String,
    /// What the losses are measured on.
    pub heldout_text: String,
    pub heldout_examples: u64,
    pub models: Vec<ModelResult>,
    /// Paired, the student first.
    pub differences: Vec<PairedResult>,
    /// Every tensor changed, and the held-out loss fell.
    pub checks_passed: bool,
}

/// Figures of one model on the held-out examples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelResult {
    /// `student`, `teacher`, `traces_only`, …
    pub contender: String,
    pub label: String,
    pub parameters: Option<u64>,
    /// With Wilson's 95 % interval.
    pub accuracy: Figure,
    pub nll_nats_per_token: Figure,
    pub bits_per_byte: Figure,
    pub kl_to_teacher: Figure,
}

/// A figure, or why there is none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    pub value: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ci95: Option<[f64; 2]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Figure {
    pub fn of(value: f64) -> Figure {
        Figure { value: Some(value), ..Figure::default() }
    }

    pub fn missing(reason: impl Into<String>) -> Figure {
        Figure { reason: Some(reason.into()), ..Figure::default() }
    }
}

/// The student minus another model on the same items.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairedResult {
    pub other: String,
    pub metric: String,
    pub difference: f64,
    pub ci95: [f64; 2],
    /// `better`, `worse`, `no_claim`.
    pub claim: String,
    pub items: u64,
    pub method: String,
}

/// What it took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Costs {
    /// Of all stages, whenever they were done.
    pub wall_s: Figure,
    pub teacher_usd: Figure,
    pub energy_j: Figure,
}

/// What the licence gate said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateFacts {
    pub verdict: Verdict,
    pub passes: bool,
    /// RFC 3339: when the run that wrote this record asked it.
    pub decided: String,
    pub rules: Vec<Rule>,
    pub accepted: Vec<String>,
    /// Conditions that are visibly met.
    pub settled: Vec<String>,
    pub violated: Vec<String>,
    /// What licences ask for, and who does it.
    pub obligations: Vec<Obligation>,
    /// Lines that licences prescribe.
    pub notices: Vec<String>,
    /// The reason for which a closed gate was opened.
    #[serde(rename = "override")]
    pub override_reason: Option<String>,
    /// SHA-256 of the register that decided.
    pub register: Digest,
    /// SHA-256 of the user's own beside it.
    pub users_register: Option<Digest>,
}

impl GateFacts {
    pub fn new(decision: &Decision, decided: String) -> GateFacts {
        GateFacts {
            verdict: decision.verdict,
            passes: decision.passes,
            decided,
            rules: decision.rules.clone(),
            accepted: decision.accepted.clone(),
            settled: decision.settled.clone(),
            violated: decision.violated.clone(),
            obligations: decision.obligations.clone(),
            notices: decision.notices.clone(),
            override_reason: decision.override_reason.clone(),
            register: decision.register,
            users_register: decision.users_register,
        }
    }
}

/// A licence file of a model's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextFacts {
    pub name: String,
    /// Of what the gate read of it.
    pub sha256: Digest,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileFacts {
    /// Relative, with `/`: to the release for its files, to the run directory for those that stay.
    pub path: String,
    pub sha256: Digest,
    pub bytes: u64,
}

impl FileFacts {
    /// Every file below a directory, in order of path; links are none.
    pub fn below(dir: &Path) -> Result<Vec<FileFacts>> {
        let regular = |(name, kind): (String, FileKind)| (kind == FileKind::Regular).then_some(name);
        let mut names: Vec<String> = list_files(dir, "")?.into_iter().filter_map(regular).collect();
        names.sort_unstable();
        FileFacts::of(dir, names)
    }

    /// Of files in a directory, by their paths from it with `/`.
    pub fn of(dir: &Path, names: Vec<String>) -> Result<Vec<FileFacts>> {
        let digests = digest_all(dir, &names)?;
        let facts = |(path, (sha256, bytes))| FileFacts { path, sha256, bytes };
        Ok(names.into_iter().zip(digests).map(facts).collect())
    }

    /// Whether it holds weights of the release.
    pub fn is_weights(&self) -> bool {
        has_weights(&self.path)
    }
}

impl ProvenanceRecord {
    /// Files of the release that hold weights.
    pub fn weights(&self) -> impl Iterator<Item = &FileFacts> {
        self.files.iter().filter(|file| file.is_weights())
    }

    /// Teachers whose weights are no ancestor of the student's: they gave what they wrote and thought, and no more.
    pub fn teachers_of_outputs(&self) -> impl Iterator<Item = &ModelFacts> {
        let ancestors = &self.student.ancestors;
        self.teachers.iter().filter(|teacher| !ancestors.iter().any(|ancestor| ancestor.id == teacher.id))
    }

    /// Each model once, by its ID: teachers, then ancestors that taught nothing.
    pub fn models(&self) -> impl Iterator<Item = &ModelFacts> {
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        self.teachers.iter().chain(&self.student.ancestors).filter(move |model| seen.insert(&model.id))
    }

    /// Digests of the files that the record names, by their paths in a run directory.
    pub fn digests(&self) -> impl Iterator<Item = (Cow<'_, str>, Digest)> {
        let released =
            self.files.iter().map(|file| (Cow::Owned(format!("{RELEASE}{}", file.path)), file.sha256));
        let staying = self.byproducts.iter().chain(self.data.iter().flat_map(|data| &data.files));
        released.chain(staying.map(|file| (Cow::Borrowed(file.path.as_str()), file.sha256)))
    }

    /// The bytes of `record.json`.
    pub fn to_bytes(&self) -> Vec<u8> {
        json_text(self).into_bytes()
    }

    /// Reads a record that nobody vouches for.
    pub fn from_bytes(bytes: &[u8]) -> std::result::Result<ProvenanceRecord, RecordFault> {
        let length = bytes.len() as u64;
        if length > RECORD_BYTES_MAX {
            return Err(RecordFault::TooLarge { bytes: length, bytes_max: RECORD_BYTES_MAX });
        }
        let fault = |error: serde_json::Error| match error.is_eof() {
            true => RecordFault::Truncated { bytes: bytes.len() },
            false => RecordFault::Malformed { cause: error.to_string() },
        };
        // Another version has other fields: its number says more than the first of them.
        let versioned: Versioned = serde_json::from_slice(bytes).map_err(fault)?;
        if versioned.record_version != u64::from(RECORD_VERSION) {
            return Err(RecordFault::Version { found: versioned.record_version, known: RECORD_VERSION });
        }
        serde_json::from_slice(bytes).map_err(fault)
    }

    /// Reads a `record.json`, or that of a run directory, or of a release on its own.
    pub fn read(path: &Path) -> Result<ProvenanceRecord> {
        let alone = path.join(RECORD_PATH.strip_prefix(RELEASE).unwrap_or(RECORD_PATH));
        let places = [path.to_path_buf(), alone, path.join(RECORD_PATH)];
        let Some(path) = places.into_iter().find(|place| place.is_file()) else {
            return Err(GovernanceError::NoRecord { path: path.to_path_buf() });
        };
        let io = |source| GovernanceError::Io { path: path.clone(), source };
        let refused = |cause| GovernanceError::Record { path: path.clone(), cause };
        let bytes = fs::metadata(&path).map_err(io)?.len();
        if bytes > RECORD_BYTES_MAX {
            return Err(refused(RecordFault::TooLarge { bytes, bytes_max: RECORD_BYTES_MAX }));
        }
        ProvenanceRecord::from_bytes(&fs::read(&path).map_err(io)?).map_err(refused)
    }
}

/// What a record of any version has.
#[derive(Deserialize)]
struct Versioned {
    record_version: u64,
}

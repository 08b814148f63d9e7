//! The manifest: SHA-256 digests of everything that a release was made from.
//!
//! It is an in-toto Statement (v1), so that it can be put into a signed envelope as it is:
//!
//! ```json
//! {
//!   "_type": "https://in-toto.io/Statement/v1",
//!   "subject": [{"name": "release/model.safetensors", "digest": {"sha256": "…"}}],
//!   "predicateType": "urn:stillroom:manifest:v1",
//!   "predicate": {
//!     "program": {"name": "stillroom", "version": "0.1.0", "digest": "…"},
//!     "teachers": [{"id": "…", "digest": "…", "licence": "…"}],
//!     "student_base": null,
//!     "data": [{"id": "…", "digest": "…", "licence": "…"}],
//!     "verdict": "allow",
//!     "recipe": {"name": "recipe.toml", "digest": {"sha256": "…"}},
//!     "checkpoints": [], "weights": [],
//!     "sealed": ["checkpoints", "corpus", "evaluation", "models", "release", "training"]
//!   }
//! }
//! ```
//!
//! Subjects are files of the run directory, by their path in it with `/`, in ascending order of
//! bytes. Directories in `sealed` hold no other files. `digest` of the program, of a model and of
//! data is SHA-256, null where it cannot be known (a service). `manifest.json.sha256` beside the
//! manifest is its own digest in the form of `sha256sum`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stillroom_core::Digest;
use stillroom_store::{atomic_write, create_dir_durable, safe_join};

use crate::decision::Part;
use crate::error::{GovernanceError, ManifestFault, Result};
use crate::record::{ModelFacts, ProvenanceRecord};
use crate::verify::{FileKind, digest_rest, list_files};

/// `_type` of the statement.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// `predicateType` of the statement; a change of meaning changes the number.
pub const PREDICATE_TYPE: &str = "urn:stillroom:manifest:v1";
/// What the paths of a release begin with in a run directory.
pub(crate) const RELEASE: &str = "release/";
/// Where the manifest lies in a run directory.
pub const MANIFEST_PATH: &str = "release/provenance/manifest.json";
/// The manifest's own digest.
pub(crate) const SIDECAR_PATH: &str = "release/provenance/manifest.json.sha256";
/// The signature of the release, manifest and all.
pub(crate) const SIGNATURE_PATH: &str = "release/model.sig";
/// Largest manifest that is read.
pub const MANIFEST_BYTES_MAX: u64 = 64 << 20;
/// Most files that a manifest may name.
pub const SUBJECTS_MAX: usize = 200_000;

/// Files at the top of a run directory that belong to the record where they exist.
const TOP_FILES: [&str; 6] =
    ["licence.json", "plan.json", "recipe.toml", "report.html", "report.json", "teach.json"];
/// Directories that are listed whole: every number of the report comes from rows in them.
const SEALED: [&str; 6] = ["checkpoints", "corpus", "evaluation", "models", "release", "training"];
/// Files without which there is nothing to vouch for.
const NEEDED: [&str; 2] = ["recipe.toml", "release"];
/// What counts as weights.
const WEIGHT_EXTENSIONS: [&str; 2] = ["gguf", "safetensors"];

/// A digest map as in-toto has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DigestMap {
    pub sha256: Digest,
}

/// A file and its digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subject {
    /// Path in the run directory, with `/`.
    pub name: String,
    pub digest: DigestMap,
}

/// The program that made the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    pub name: String,
    pub version: String,
    /// Digest of the binary.
    pub digest: Option<Digest>,
}

/// A model or data set that took part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecord {
    pub id: String,
    /// Digest of weights or data; null for a service.
    pub digest: Option<Digest>,
    /// SPDX expression that the gate decided by; empty where it knew none.
    pub licence: String,
}

/// What only the run itself knows; the rest of the predicate is read from the run directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRecord {
    pub program: Program,
    pub teachers: Vec<ModelRecord>,
    pub student_base: Option<ModelRecord>,
    pub data: Vec<ModelRecord>,
    /// The gate's verdict, as in `licence.json`.
    pub verdict: String,
}

impl RunRecord {
    /// What the record of a release says of all this.
    pub fn of(record: &ProvenanceRecord) -> RunRecord {
        let rule = |part: Part, id: &str| {
            record
                .gate
                .rules
                .iter()
                .find(|rule| rule.role == part && rule.id == id)
                .map(|r| r.licence.clone())
        };
        let model = |model: &ModelFacts, licence: Option<String>| ModelRecord {
            id: model.id.clone(),
            digest: model.tree_sha256,
            licence: licence.unwrap_or_default(),
        };
        let as_base = |id: &str| rule(Part::StudentBase, id).or_else(|| rule(Part::Teacher, id));
        // What was laid over the first ancestor is an adapter: of what it learned, its owner speaks as of data.
        let (base, adapters) = record.student.ancestors.split_first().unzip();
        let adapters = adapters.into_iter().flatten().map(|m| model(m, rule(Part::Data, &m.id)));
        let prompts = record.data.first().map(|data| ModelRecord {
            id: data.id.clone(),
            digest: data.tree_sha256,
            licence: rule(Part::Data, &data.id).unwrap_or_default(),
        });
        RunRecord {
            program: record.program.clone(),
            teachers: record.teachers.iter().map(|m| model(m, rule(Part::Teacher, &m.id))).collect(),
            student_base: base.map(|m| model(m, as_base(&m.id))),
            data: prompts.into_iter().chain(adapters).collect(),
            verdict: record.gate.verdict.as_str().to_owned(),
        }
    }
}

/// The record of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Predicate {
    pub program: Program,
    pub teachers: Vec<ModelRecord>,
    pub student_base: Option<ModelRecord>,
    pub data: Vec<ModelRecord>,
    pub verdict: String,
    pub recipe: Subject,
    pub checkpoints: Vec<Subject>,
    pub weights: Vec<Subject>,
    /// Directories that hold no files but those named.
    pub sealed: Vec<String>,
}

/// The statement; see the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    #[serde(rename = "_type")]
    pub statement_type: String,
    pub subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    pub predicate_type: String,
    pub predicate: Predicate,
}

impl Manifest {
    /// Digests a finished run directory: recipe, decision, report and the rows behind it, data, models,
    /// checkpoints and release.
    pub fn of_run(run_dir: &Path, record: RunRecord) -> Result<Manifest> {
        Manifest::of_digested(run_dir, record, &BTreeMap::new())
    }

    /// Of a run whose record was just made: the files that it has digests of are not read again.
    pub fn of_recorded(run_dir: &Path, record: &ProvenanceRecord) -> Result<Manifest> {
        let known = record.digests().map(|(name, digest)| (name.into_owned(), digest)).collect();
        Manifest::of_digested(run_dir, RunRecord::of(record), &known)
    }

    fn of_digested(run_dir: &Path, record: RunRecord, known: &BTreeMap<String, Digest>) -> Result<Manifest> {
        for needed in NEEDED {
            let path = run_dir.join(needed);
            if !path.exists() {
                return Err(GovernanceError::NothingToSeal { path });
            }
        }
        let mut names: Vec<String> = TOP_FILES
            .iter()
            .filter(|name| run_dir.join(name).is_file())
            .map(|&name| name.to_owned())
            .collect();
        for dir in SEALED {
            for (name, kind) in list_files(run_dir, dir)? {
                if kind != FileKind::Regular || safe_join(run_dir, &name).is_err() {
                    let cause = ManifestFault::UnsafeName { name };
                    return Err(GovernanceError::Manifest { path: run_dir.to_path_buf(), cause });
                }
                names.push(name);
            }
        }
        names.retain(|name| !is_about_itself(name));
        names.sort_unstable();
        let digests = digest_rest(run_dir, &names, known)?;
        let subject: Vec<Subject> = names
            .into_iter()
            .zip(digests)
            .map(|(name, sha256)| Subject { name, digest: DigestMap { sha256 } })
            .collect();
        let of = |wanted: &dyn Fn(&str) -> bool| -> Vec<Subject> {
            subject.iter().filter(|subject| wanted(&subject.name)).cloned().collect()
        };
        let predicate = Predicate {
            program: record.program,
            teachers: record.teachers,
            student_base: record.student_base,
            data: record.data,
            verdict: record.verdict,
            recipe: of(&|name| name == "recipe.toml").remove(0),
            checkpoints: of(&|name| name.starts_with("checkpoints/")),
            weights: of(&is_weights),
            sealed: SEALED.iter().map(|&dir| dir.to_owned()).collect(),
        };
        Ok(Manifest {
            statement_type: STATEMENT_TYPE.to_owned(),
            subject,
            predicate_type: PREDICATE_TYPE.to_owned(),
            predicate,
        })
    }

    /// Writes `release/provenance/manifest.json` and its digest, each atomically.
    pub fn write(&self, run_dir: &Path) -> Result<PathBuf> {
        let path = run_dir.join(MANIFEST_PATH);
        if let Some(dir) = path.parent() {
            create_dir_durable(dir)?;
        }
        let bytes = self.to_bytes()?;
        atomic_write(&path, &bytes)?;
        atomic_write(&run_dir.join(SIDECAR_PATH), sidecar(Digest::of(&bytes)).as_bytes())?;
        Ok(path)
    }

    /// The bytes of `manifest.json`.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self).map_err(|error| GovernanceError::Manifest {
            path: PathBuf::from(MANIFEST_PATH),
            cause: ManifestFault::Malformed { cause: error.to_string() },
        })?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads a manifest that nobody vouches for: names stay within the run directory, in order and
    /// once each; the record agrees with the list.
    pub fn from_bytes(bytes: &[u8]) -> std::result::Result<Manifest, ManifestFault> {
        if bytes.len() as u64 > MANIFEST_BYTES_MAX {
            let bytes = bytes.len() as u64;
            return Err(ManifestFault::TooLarge { bytes, bytes_max: MANIFEST_BYTES_MAX });
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(|error| {
            if error.is_eof() {
                ManifestFault::Truncated { bytes: bytes.len() }
            } else {
                ManifestFault::Malformed { cause: error.to_string() }
            }
        })?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> std::result::Result<(), ManifestFault> {
        if self.statement_type != STATEMENT_TYPE {
            return Err(ManifestFault::UnknownType { field: "_type", found: self.statement_type.clone() });
        }
        if self.predicate_type != PREDICATE_TYPE {
            return Err(ManifestFault::UnknownType {
                field: "predicateType",
                found: self.predicate_type.clone(),
            });
        }
        let count = self.subject.len();
        if count > SUBJECTS_MAX {
            return Err(ManifestFault::TooManySubjects { count, count_max: SUBJECTS_MAX });
        }
        if count == 0 {
            return Err(ManifestFault::Empty);
        }
        let safe = |name: &str| safe_join(Path::new("run"), name).is_ok() && !is_about_itself(name);
        let names = self.subject.iter().map(|subject| &subject.name).chain(&self.predicate.sealed);
        if let Some(name) = names.into_iter().find(|name| !safe(name)) {
            return Err(ManifestFault::UnsafeName { name: name.chars().take(200).collect() });
        }
        let disordered = self.subject.windows(2).find(|pair| pair[0].name >= pair[1].name);
        if let Some(pair) = disordered {
            return Err(ManifestFault::OutOfOrder { name: pair[1].name.clone() });
        }
        self.check_record()
    }

    fn check_record(&self) -> std::result::Result<(), ManifestFault> {
        let record = &self.predicate;
        let listed = std::iter::once(&record.recipe).chain(&record.checkpoints).chain(&record.weights);
        let differs = |of: &&Subject| self.digest_of(&of.name) != Some(of.digest.sha256);
        let absent = |name: &str, list: &[Subject]| !list.iter().any(|listed| listed.name == name);
        let unlisted = self.subject.iter().find(|subject| {
            (subject.name.starts_with("checkpoints/") && absent(&subject.name, &record.checkpoints))
                || (is_weights(&subject.name) && absent(&subject.name, &record.weights))
        });
        match listed.into_iter().find(differs).or(unlisted) {
            Some(wrong) => Err(ManifestFault::Inconsistent { name: wrong.name.chars().take(200).collect() }),
            None => Ok(()),
        }
    }

    /// Reads `path`, with its size capped before anything is read.
    pub fn read(path: &Path) -> Result<(Manifest, Digest)> {
        let refused = |cause| GovernanceError::Manifest { path: path.to_path_buf(), cause };
        let io = |source| GovernanceError::Io { path: path.to_path_buf(), source };
        let bytes = fs::symlink_metadata(path).map_err(io)?.len();
        if bytes > MANIFEST_BYTES_MAX {
            return Err(refused(ManifestFault::TooLarge { bytes, bytes_max: MANIFEST_BYTES_MAX }));
        }
        let bytes = fs::read(path).map_err(io)?;
        Ok((Manifest::from_bytes(&bytes).map_err(refused)?, Digest::of(&bytes)))
    }

    /// Digests of the release's files by their paths in it: of all but the manifest's own two, and the signature.
    pub fn of_release(&self) -> BTreeMap<String, Digest> {
        let in_release = |subject: &Subject| {
            let name = subject.name.strip_prefix(RELEASE)?;
            Some((name.to_owned(), subject.digest.sha256))
        };
        self.subject.iter().filter_map(in_release).collect()
    }

    /// The digest of a file that the manifest names.
    pub fn digest_of(&self, name: &str) -> Option<Digest> {
        let at = self.subject.binary_search_by(|subject| subject.name.as_str().cmp(name)).ok()?;
        Some(self.subject[at].digest.sha256)
    }
}

/// The line that `sha256sum` writes.
pub(crate) fn sidecar(digest: Digest) -> String {
    format!("{digest}  manifest.json\n")
}

/// The manifest cannot name itself, nor the signature that covers it.
pub(crate) fn is_about_itself(name: &str) -> bool {
    name == MANIFEST_PATH || name == SIDECAR_PATH || name == SIGNATURE_PATH
}

fn is_weights(name: &str) -> bool {
    name.starts_with(RELEASE) && has_weights(name)
}

/// Whether a file holds weights, by its name.
pub(crate) fn has_weights(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|found| WEIGHT_EXTENSIONS.contains(&found))
}

//! What changed between two releases, by their records and by what lies beside them.
//!
//! A record is taken apart into facts, each under a group and a path of names; what is known by a name (a teacher, a file, a
//! model that was measured) is compared with what has the same name. Every field of a record is in some group. Nothing here says
//! whether a record is true of its files: [`verify`](crate::verify()) does.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Map, Value, json};
use stillroom_core::Digest;

use crate::log::{Kind, Record};
use crate::manifest::{Manifest, RELEASE, has_weights};
use crate::merkle::{consistency_proof, is_consistent, root};
use crate::record::{Evaluation, Figure, FileFacts, GateFacts, ProvenanceRecord, ReleaseFacts, StudentFacts};
use crate::text::json_text;
use crate::views::openness;

/// What stands for a value that may be a secret.
pub const NOT_SHOWN: &str = "(not shown)";

/// One of the two things that are compared: its record, and what is at hand beside it.
#[derive(Clone, Debug)]
pub struct Compared {
    pub record: ProvenanceRecord,
    /// None where only the record was given.
    pub beside: Option<Beside>,
    /// The recipe's settings by their keys (`train.max_steps`), where they are at hand and are those of the record.
    pub settings: Option<BTreeMap<String, Value>>,
}

/// What lies beside a record in a release.
#[derive(Clone, Debug)]
pub struct Beside {
    pub manifest: Option<Manifest>,
    /// The key that the signature claims to be by ([`claimed_key`](crate::oms::claimed_key)); none where it is not signed.
    pub signer: Option<String>,
    /// What the last head of the log covers; none where there is no log.
    pub log: Option<Vec<Record>>,
}

/// What a fact is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    Release,
    Licence,
    Teachers,
    Student,
    Data,
    Recipe,
    Training,
    Weights,
    Evaluation,
    Openness,
    Signer,
    Log,
    Files,
    Run,
}

impl Group {
    /// For a heading.
    pub fn title(self) -> &'static str {
        match self {
            Group::Release => "Release",
            Group::Licence => "Licence decision",
            Group::Teachers => "Teachers",
            Group::Student => "Student and its base",
            Group::Data => "Data",
            Group::Recipe => "Recipe",
            Group::Training => "Training",
            Group::Weights => "Weights (SHA-256)",
            Group::Evaluation => "Evaluation",
            Group::Openness => "Openness",
            Group::Signer => "Signature, not checked here",
            Group::Log => "Log",
            Group::Files => "Other files (SHA-256)",
            Group::Run => "Program, machine, time and costs",
        }
    }
}

/// What is said at one place.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Fact {
    Figure(Figure),
    Value(Value),
}

/// One fact that is not the same.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    pub group: Group,
    /// Names, from the outside to the inside.
    pub path: Vec<String>,
    /// None where it is not there.
    pub a: Option<Fact>,
    pub b: Option<Fact>,
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    A,
    B,
}

/// How two logs stand to each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "relation", rename_all = "snake_case")]
pub enum LogRelation {
    Same {
        records: u64,
        root: Digest,
    },
    /// One begins with the other: shown by a consistency proof of RFC 9162 that was checked.
    Begins {
        shorter: Which,
        old_size: u64,
        old_root: Digest,
        new_size: u64,
        new_root: Digest,
        /// Lowest first.
        proof: Vec<Digest>,
    },
    /// They have `common` entries from the beginning, and then other ones.
    Part {
        common: u64,
        a_size: u64,
        b_size: u64,
        /// What the next entry is about; none where the log ends.
        a_next: Option<EntryName>,
        b_next: Option<EntryName>,
    },
    /// Only one has a log.
    Only {
        which: Which,
        records: u64,
    },
}

/// An entry of a log by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct EntryName {
    pub kind: Kind,
    pub number: u64,
}

/// Something that could not be compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotCompared {
    pub group: Group,
    pub because: &'static str,
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diff {
    /// Nothing differs of what was compared.
    pub equal: bool,
    /// By group, then by path.
    pub changes: Vec<Change>,
    /// None where neither has a log, or it is not at hand.
    pub log: Option<LogRelation>,
    pub not_compared: Vec<NotCompared>,
}

impl Diff {
    /// As JSON, with nothing in it that could steer a terminal.
    pub fn to_json(&self) -> String {
        json_text(self)
    }
}

/// Compares two releases.
pub fn diff(a: &Compared, b: &Compared) -> Diff {
    let mut not_compared = Vec::new();
    let mut leave_out = |group, because| not_compared.push(NotCompared { group, because });
    let beside = a.beside.as_ref().zip(b.beside.as_ref());
    let manifests = beside.and_then(|(a, b)| a.manifest.as_ref().zip(b.manifest.as_ref()));
    let settings = a.settings.is_some() && b.settings.is_some();
    if !settings && a.record.recipe.sha256 != b.record.recipe.sha256 {
        let because =
            "the settings themselves are in run directories only; the records have a digest of them";
        leave_out(Group::Recipe, because);
    }
    if beside.is_none() {
        leave_out(Group::Signer, "a record alone was given");
        leave_out(Group::Log, "a record alone was given");
    }
    if manifests.is_none() {
        leave_out(Group::Files, "without two manifests, only files that the records name are compared");
    }
    let facts = |side: &Compared, manifest: Option<&Manifest>| {
        let mut facts = Facts::default();
        facts.record(&side.record);
        facts.files(&side.record, manifest);
        if let Some(settings) = side.settings.as_ref().filter(|_| settings) {
            for (key, value) in settings {
                facts.add(Group::Recipe, &["settings", key], value.clone());
            }
        }
        if let Some(beside) = side.beside.as_ref().filter(|_| beside.is_some()) {
            facts.add(Group::Signer, &["key"], json!(beside.signer));
        }
        facts.0
    };
    let changes = changes(
        facts(a, manifests.map(|(manifest, _)| manifest)),
        facts(b, manifests.map(|(_, manifest)| manifest)),
    );
    let log = beside.and_then(|(a, b)| logs(a.log.as_deref(), b.log.as_deref()));
    let equal = changes.is_empty() && matches!(log, None | Some(LogRelation::Same { .. }));
    Diff { equal, changes, log, not_compared }
}

type ByPath = BTreeMap<(Group, Vec<String>), Fact>;

fn changes(mut a: ByPath, mut b: ByPath) -> Vec<Change> {
    let places: BTreeSet<(Group, Vec<String>)> = a.keys().chain(b.keys()).cloned().collect();
    let mut changes = Vec::new();
    for place in places {
        let (a, b) = (a.remove(&place), b.remove(&place));
        if a == b {
            continue;
        }
        let (group, path) = place;
        let is_secret = group == Group::Recipe && path.last().is_some_and(|key| may_be_secret(key));
        let shown = |fact: Fact| if is_secret { Fact::Value(json!(NOT_SHOWN)) } else { without_logins(fact) };
        changes.push(Change { group, path, a: a.map(shown), b: b.map(shown) });
    }
    changes
}

/// Whether a setting of this name can hold what nobody may see. Recipes name variables in such places; one that was written by
/// hand may hold the secret itself.
fn may_be_secret(key: &str) -> bool {
    let name = key.rsplit('.').next().unwrap_or(key).to_lowercase();
    ["passphrase", "password", "secret", "authorization", "api_key", "apikey", "credential"]
        .iter()
        .any(|part| name.contains(part))
        || name == "token"
        || name.ends_with("_token")
}

/// Addresses lose what stands before their `@`.
fn without_logins(fact: Fact) -> Fact {
    let Fact::Value(Value::String(text)) = &fact else { return fact };
    let Some((scheme, rest)) = text.split_once("://") else { return fact };
    let (host, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    match host.rsplit_once('@') {
        Some((_, host)) => Fact::Value(json!(format!("{scheme}://{NOT_SHOWN}@{host}{path}"))),
        None => fact,
    }
}

#[derive(Default)]
struct Facts(ByPath);

impl Facts {
    /// Every field but the files. That none is forgotten, the compiler sees to.
    fn record(&mut self, record: &ProvenanceRecord) {
        let ProvenanceRecord {
            record_version,
            release,
            program,
            lockfile,
            machine,
            time,
            recipe,
            teachers,
            student,
            training,
            data,
            evaluation,
            costs,
            gate,
            files: _,
            byproducts: _,
        } = record;
        let ReleaseFacts { name, licence, card, trial } = release;
        self.add(Group::Release, &["name"], json!(name));
        self.add(Group::Release, &["trial"], json!(trial));
        self.add(Group::Licence, &["release"], json!(licence));
        self.add(Group::Licence, &["card"], json!(card));
        self.gate(gate);
        self.add(Group::Teachers, &[], json!(teachers));
        let StudentFacts { architecture, parameters, tree_sha256, start, ancestors } = student;
        self.add(Group::Student, &["architecture"], json!(architecture));
        self.add(Group::Student, &["parameters"], json!(parameters));
        self.add(Group::Student, &["start"], json!(start));
        self.add(Group::Student, &["ancestors"], json!(ancestors));
        self.add(Group::Weights, &["all files of the model"], json!(tree_sha256));
        self.add(Group::Data, &[], json!(data));
        self.add(Group::Recipe, &[], json!(recipe));
        self.add(Group::Training, &[], json!(training));
        self.evaluation(evaluation);
        self.openness(record);
        self.add(Group::Run, &["record_version"], json!(record_version));
        self.add(Group::Run, &["program"], json!(program));
        self.add(Group::Run, &["lockfile"], json!(lockfile));
        self.add(Group::Run, &["machine"], json!(machine));
        self.add(Group::Run, &["time"], json!(time));
        self.add(Group::Run, &["costs"], json!(costs));
    }

    /// When the gate was asked is no part of what it said.
    fn gate(&mut self, gate: &GateFacts) {
        let mut said = json!(gate);
        let decided = said.as_object_mut().and_then(|said| said.shift_remove("decided"));
        self.add(Group::Licence, &[], said);
        self.add(Group::Run, &["time", "decided"], decided.unwrap_or_default());
    }

    fn evaluation(&mut self, evaluation: &Evaluation) {
        let Evaluation {
            task,
            description,
            heldout_text,
            heldout_examples,
            models,
            differences,
            checks_passed,
        } = evaluation;
        self.add(Group::Evaluation, &["task"], json!(task));
        self.add(Group::Evaluation, &["description"], json!(description));
        self.add(Group::Evaluation, &["heldout_text"], json!(heldout_text));
        self.add(Group::Evaluation, &["heldout_examples"], json!(heldout_examples));
        self.add(Group::Evaluation, &["checks_passed"], json!(checks_passed));
        self.add(Group::Evaluation, &["models"], json!(models));
        for paired in differences {
            let path = ["student_minus", &paired.other, &paired.metric];
            let of = |name| [&path[..], &[name]].concat();
            let figure = Figure { value: Some(paired.difference), ci95: Some(paired.ci95), reason: None };
            self.add(Group::Evaluation, &of("difference"), json!(figure));
            self.add(Group::Evaluation, &of("claim"), json!(paired.claim));
            self.add(Group::Evaluation, &of("items"), json!(paired.items));
            self.add(Group::Evaluation, &of("method"), json!(paired.method));
        }
    }

    fn openness(&mut self, record: &ProvenanceRecord) {
        let openness = openness(record);
        self.add(Group::Openness, &["level"], json!(openness.level));
        for component in openness.components {
            self.add(Group::Openness, &[component.name], json!(component.found.is_ok()));
        }
    }

    /// By the manifest, where both have one, else as far as the record goes.
    fn files(&mut self, record: &ProvenanceRecord, manifest: Option<&Manifest>) {
        let is_other = |name: &str| !(name.starts_with(RELEASE) && has_weights(name));
        for FileFacts { path, sha256, .. } in record.weights() {
            self.add(Group::Weights, &[path], json!(sha256));
        }
        match manifest {
            Some(manifest) => {
                for subject in manifest.subject.iter().filter(|subject| is_other(&subject.name)) {
                    self.add(Group::Files, &[&subject.name], json!(subject.digest.sha256));
                }
            }
            None => {
                for (name, digest) in record.digests().filter(|(name, _)| is_other(name)) {
                    self.add(Group::Files, &[&name], json!(digest));
                }
            }
        }
    }

    /// Each value at its own path; what is null or an empty object is not there.
    fn add(&mut self, group: Group, path: &[&str], value: Value) {
        let path = path.iter().map(|&name| name.to_owned()).collect();
        self.put(group, path, value);
    }

    fn put(&mut self, group: Group, path: Vec<String>, value: Value) {
        let below = |name: String| [path.clone(), vec![name]].concat();
        match value {
            Value::Null => {}
            Value::Object(fields) => match figure(&fields) {
                Some(figure) => drop(self.0.insert((group, path), Fact::Figure(figure))),
                None => fields.into_iter().for_each(|(name, value)| self.put(group, below(name), value)),
            },
            Value::Array(items) if items.first().is_some_and(Value::is_object) => {
                let mut names = BTreeMap::new();
                for item in items {
                    let name = name_of(&item);
                    let n = names.entry(name.clone()).and_modify(|n| *n += 1).or_insert(1);
                    let name = if *n == 1 { name } else { format!("{name} #{n}") };
                    self.put(group, below(name), item);
                }
            }
            value => drop(self.0.insert((group, path), Fact::Value(value))),
        }
    }
}

/// What an item of a list is known by.
fn name_of(item: &Value) -> String {
    let text = |name: &str| item.get(name).and_then(Value::as_str);
    let name = ["id", "contender", "name", "path"].into_iter().find_map(text).unwrap_or_default();
    match text("role") {
        Some(role) => format!("{role} {name}"),
        None => name.to_owned(),
    }
}

fn figure(fields: &Map<String, Value>) -> Option<Figure> {
    if !fields.contains_key("value") {
        return None;
    }
    serde_json::from_value(Value::Object(fields.clone())).ok()
}

/// How two logs stand to each other; none where there are none.
fn logs(a: Option<&[Record]>, b: Option<&[Record]>) -> Option<LogRelation> {
    let (a, b) = match (a, b) {
        (None, None) => return None,
        (Some(a), None) => return Some(LogRelation::Only { which: Which::A, records: a.len() as u64 }),
        (None, Some(b)) => return Some(LogRelation::Only { which: Which::B, records: b.len() as u64 }),
        (Some(a), Some(b)) => (a, b),
    };
    let leaves = |records: &[Record]| records.iter().map(|record| record.leaf()).collect::<Vec<_>>();
    let (a_leaves, b_leaves) = (leaves(a), leaves(b));
    let (a_root, b_root) = (root(&a_leaves), root(&b_leaves));
    let (a_size, b_size) = (a.len() as u64, b.len() as u64);
    if (a_size, a_root) == (b_size, b_root) {
        return Some(LogRelation::Same { records: a_size, root: a_root });
    }
    let (shorter, old_size, old_root, new_size, new_root, whole) = match a_size <= b_size {
        true => (Which::A, a_size, a_root, b_size, b_root, &b_leaves),
        false => (Which::B, b_size, b_root, a_size, a_root, &a_leaves),
    };
    // Of an empty log there is nothing to prove.
    let proof = if old_size == 0 { Vec::new() } else { consistency_proof(whole, old_size as usize) };
    if old_size < new_size && is_consistent(old_size, &old_root, new_size, &new_root, &proof) {
        return Some(LogRelation::Begins { shorter, old_size, old_root, new_size, new_root, proof });
    }
    let common = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let name = |records: &[Record]| {
        records.get(common).map(|record| EntryName { kind: record.kind, number: record.number })
    };
    let (a_next, b_next) = (name(a), name(b));
    Some(LogRelation::Part { common: common as u64, a_size, b_size, a_next, b_next })
}

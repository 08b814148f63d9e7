//! Do the documents of a release say what its record says?
//!
//! The manifest says that files are as they were sealed, and whoever can write them can seal them anew. So every document is
//! derived from the record once more and compared byte for byte, and the record is held against manifest, licence decision and
//! report where they state the same. What is changed in one place then has to be changed in all.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use crate::dsse::{Envelope, IN_TOTO};
use crate::error::{GovernanceError, RecordFault, Result};
use crate::keys::PublicKey;
use crate::manifest::{MANIFEST_PATH, Manifest, RELEASE, RunRecord};
use crate::record::{Figure, ProvenanceRecord, RECORD_PATH};
use crate::text::{json_line, plain};
use crate::verify::Place;
use crate::views;

/// The version of this program, as it writes it into records.
pub const PROGRAM_VERSION: &str = env!("CARGO_PKG_VERSION");
/// Disagreements that are listed.
pub const DISAGREEMENTS_MAX: usize = 100;
/// Largest document, decision or report that is read.
const DOCUMENT_BYTES_MAX: u64 = 256 << 20;
/// Characters of a value or line that are shown.
const SHOWN_CHARS_MAX: usize = 120;
const LICENCE: &str = "licence.json";
const REPORT: &str = "report.json";

/// How the documents of a release and its record stand to each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Agreement {
    pub state: AgreementState,
    /// Version of the program that wrote the record.
    pub written_by: Option<String>,
    /// What was held against the record and agrees with it.
    pub checked: Vec<Checked>,
    /// Documents that come out otherwise, of a release that another version of the program wrote: whether they were changed
    /// cannot be told here.
    pub not_comparable: Vec<String>,
    /// Documents first, then manifest, decision, report and files; no more than [`DISAGREEMENTS_MAX`].
    pub disagreements: Vec<Disagreement>,
}

/// How far documents and record agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AgreementState {
    /// The release has no record.
    NoRecord,
    /// The record is of a version that this program does not read.
    OtherRecordVersion,
    /// All that could be compared is as the record has it.
    Agrees,
    /// What states facts agrees. Some documents come out otherwise, and another version of the program wrote them.
    OtherProgram,
    Disagrees,
}

/// A document, and how many facts of it were found in the record too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Path in the directory that was given.
    pub document: String,
    /// None where it is compared byte for byte.
    pub facts: Option<usize>,
}

/// One place where a document and the record part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Disagreement {
    /// Path in the directory that was given.
    pub document: String,
    /// `line 12`, a JSON pointer, or both; in words what is wrong, where no value is.
    pub at: String,
    /// What stands there; none where nothing does.
    pub stands: Option<String>,
    /// What belongs there by the record; none where nothing does.
    pub record: Option<String>,
}

impl std::fmt::Display for Disagreement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let said =
            |text: &Option<String>| text.as_ref().map_or("nothing".to_owned(), |text| format!("`{text}`"));
        let (document, at) = (plain(&self.document), plain(&self.at));
        write!(f, "`{document}` does not agree with the record: ")?;
        match (&self.stands, &self.record) {
            (None, None) => write!(f, "{at}"),
            (stands, record) => {
                write!(f, "at {at} stands {}, and by the record {}", said(stands), said(record))
            }
        }
    }
}

/// Holds the documents of a directory, whose files are as its manifest says, against its record.
pub(crate) fn check(
    dir: &Path,
    place: &Place,
    manifest: &Manifest,
    key: Option<&PublicKey>,
) -> Result<Agreement> {
    let papers = Papers { dir, place, manifest, key };
    let mut agreement = Agreement {
        state: AgreementState::NoRecord,
        written_by: None,
        checked: Vec::new(),
        not_comparable: Vec::new(),
        disagreements: Vec::new(),
    };
    if manifest.digest_of(RECORD_PATH).is_none() {
        // Documents that are made from a record have been there with one.
        let orphan = views::PATHS.into_iter().find(|path| *path != views::CARD && papers.has(path));
        if let Some(orphan) = orphan {
            agreement.state = AgreementState::Disagrees;
            let at = format!("it is derived from `{}`, and there is none", papers.name(RECORD_PATH));
            let document = place.of_release(orphan);
            agreement.disagreements.push(Disagreement { document, at, stands: None, record: None });
        }
        return Ok(agreement);
    }
    let path = dir.join(papers.name(RECORD_PATH));
    let bytes = papers.read(&papers.name(RECORD_PATH))?;
    let record = match ProvenanceRecord::from_bytes(&bytes) {
        Ok(record) => record,
        Err(RecordFault::Version { .. }) => {
            agreement.state = AgreementState::OtherRecordVersion;
            return Ok(agreement);
        }
        Err(cause) => return Err(GovernanceError::Record { path, cause }),
    };
    agreement.written_by = Some(record.program.version.clone());
    papers.check_documents(&record, &bytes, &mut agreement)?;
    papers.check_facts(&record, &mut agreement)?;
    agreement.disagreements.truncate(DISAGREEMENTS_MAX);
    agreement.state = match (agreement.disagreements.is_empty(), agreement.not_comparable.is_empty()) {
        (true, true) => AgreementState::Agrees,
        (true, false) => AgreementState::OtherProgram,
        (false, _) => AgreementState::Disagrees,
    };
    Ok(agreement)
}

/// What there is to compare.
struct Papers<'a> {
    dir: &'a Path,
    place: &'a Place,
    manifest: &'a Manifest,
    key: Option<&'a PublicKey>,
}

impl Papers<'_> {
    /// A path of the run, as it is in the directory.
    fn name(&self, name: &str) -> String {
        match name.strip_prefix(RELEASE) {
            Some(name) => self.place.of_release(name),
            None => name.to_owned(),
        }
    }

    /// Whether the manifest has a path of the release.
    fn has(&self, path: &str) -> bool {
        self.manifest.digest_of(&format!("{RELEASE}{path}")).is_some()
    }

    /// The bytes of a file of the directory, which are those of the manifest.
    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.dir.join(name);
        let io = |source| GovernanceError::Io { path: path.clone(), source };
        let bytes = fs::metadata(&path).map_err(io)?.len();
        if bytes > DOCUMENT_BYTES_MAX {
            let cause = RecordFault::TooLarge { bytes, bytes_max: DOCUMENT_BYTES_MAX };
            return Err(GovernanceError::Record { path, cause });
        }
        fs::read(&path).map_err(io)
    }

    /// Every document, derived once more.
    fn check_documents(
        &self,
        record: &ProvenanceRecord,
        bytes: &[u8],
        agreement: &mut Agreement,
    ) -> Result<()> {
        let same_program = record.program.version == PROGRAM_VERSION;
        let mut note = |name: String, difference: Option<Disagreement>| match difference {
            None => agreement.checked.push(Checked { document: name, facts: None }),
            Some(difference) if same_program => agreement.disagreements.push(difference),
            Some(_) => agreement.not_comparable.push(name),
        };
        for view in views::all(record, None)? {
            let name = self.place.of_release(view.path);
            if !self.has(view.path) {
                let missing = Disagreement {
                    document: name.clone(),
                    at: "it is missing".to_owned(),
                    stands: None,
                    record: None,
                };
                note(name, Some(missing));
                continue;
            }
            let found = self.read(&name)?;
            let difference = match view.path.ends_with(".jsonl") {
                true => statements_differ(&name, &found, &view.text, self.key),
                false => text_differs(&name, &found, &view.text),
            };
            note(name, difference);
        }
        let own = self.name(RECORD_PATH);
        let text = String::from_utf8_lossy(&record.to_bytes()).into_owned();
        let difference = text_differs(&own, bytes, &text);
        note(own, difference);
        Ok(())
    }

    /// The record against whatever else states the same.
    fn check_facts(&self, record: &ProvenanceRecord, agreement: &mut Agreement) -> Result<()> {
        let mut facts = Facts { document: self.name(MANIFEST_PATH), ..Facts::default() };
        self.check_predicate(record, &mut facts);
        facts.end(agreement);
        for (name, compare) in [(LICENCE, decision as fn(&_, &_, &mut _)), (REPORT, report)] {
            if self.place.alone || self.manifest.digest_of(name).is_none() {
                continue;
            }
            let mut facts = Facts { document: name.to_owned(), ..Facts::default() };
            match serde_json::from_slice::<Value>(&self.read(name)?) {
                Ok(found) => compare(record, &found, &mut facts),
                Err(_) => facts.differ("it is no JSON", None, None),
            }
            facts.end(agreement);
        }
        let mut facts = Facts { document: self.name(MANIFEST_PATH), ..Facts::default() };
        self.check_files(record, &mut facts);
        facts.end(agreement);
        Ok(())
    }

    /// What the manifest says of the run.
    fn check_predicate(&self, record: &ProvenanceRecord, facts: &mut Facts) {
        let expected = RunRecord::of(record);
        let found = &self.manifest.predicate;
        let mut compare = |name: &str, found: Value, expected: Value| {
            facts.all(&expected, &found, &format!("/predicate/{name}"));
        };
        compare("program", json!(found.program), json!(expected.program));
        compare("teachers", json!(found.teachers), json!(expected.teachers));
        compare("student_base", json!(found.student_base), json!(expected.student_base));
        compare("data", json!(found.data), json!(expected.data));
        compare("verdict", json!(found.verdict), json!(expected.verdict));
        compare("recipe/digest/sha256", json!(found.recipe.digest.sha256), json!(record.recipe.sha256));
    }

    /// The digest of each file that both name; and no file of the release that the record does not know.
    fn check_files(&self, record: &ProvenanceRecord, facts: &mut Facts) {
        let mut known = BTreeSet::new();
        for (name, expected) in record.digests() {
            let found = self.manifest.digest_of(&name).map(|digest| json!(digest));
            facts.one(&format!("the SHA-256 of `{name}`"), found.as_ref(), &json!(expected));
            known.insert(name.into_owned());
        }
        let derived = views::PATHS.into_iter().map(|path| format!("{RELEASE}{path}"));
        known.extend(derived.chain([RECORD_PATH.to_owned()]));
        let more = self.manifest.subject.iter();
        for subject in more.filter(|s| s.name.starts_with(RELEASE) && !known.contains(&s.name)) {
            facts.differ(&format!("`{}`", subject.name), Some(&json!(subject.digest.sha256)), None);
        }
    }
}

/// What of a document was compared.
#[derive(Default)]
struct Facts {
    document: String,
    agreeing: usize,
    differing: Vec<Disagreement>,
}

impl Facts {
    /// One value, null where it is absent.
    fn one(&mut self, at: &str, found: Option<&Value>, expected: &Value) {
        let found = found.filter(|found| !found.is_null());
        match (found, expected) {
            (None, Value::Null) => self.agreeing += 1,
            (Some(found), expected) if same(found, expected) => self.agreeing += 1,
            (found, expected) => self.differ(at, found, Some(expected).filter(|value| !value.is_null())),
        }
    }

    /// Each value below `expected`, where it stands below `found`.
    fn all(&mut self, expected: &Value, found: &Value, at: &str) {
        match (expected, found) {
            (Value::Object(expected), Value::Object(found)) => {
                for (name, expected) in expected {
                    let found = found.get(name).unwrap_or(&Value::Null);
                    self.all(expected, found, &format!("{at}/{}", escaped(name)));
                }
            }
            (Value::Array(expected), Value::Array(found)) if !expected.is_empty() || !found.is_empty() => {
                for at_index in 0..expected.len().max(found.len()) {
                    let of = |values: &[Value]| values.get(at_index).cloned().unwrap_or(Value::Null);
                    self.all(&of(expected), &of(found), &format!("{at}/{at_index}"));
                }
            }
            _ => self.one(at, Some(found), expected),
        }
    }

    fn differ(&mut self, at: &str, stands: Option<&Value>, record: Option<&Value>) {
        let (document, at) = (self.document.clone(), at.to_owned());
        let shown = |value: Option<&Value>| value.map(shown_value);
        self.differing.push(Disagreement { document, at, stands: shown(stands), record: shown(record) });
    }

    fn end(self, agreement: &mut Agreement) {
        if self.differing.is_empty() {
            let known = agreement.checked.iter_mut().find(|checked| checked.document == self.document);
            match known {
                Some(Checked { facts: Some(facts), .. }) => *facts += self.agreeing,
                _ => {
                    let checked = Checked { document: self.document, facts: Some(self.agreeing) };
                    agreement.checked.push(checked);
                }
            }
        }
        agreement.disagreements.extend(self.differing);
    }
}

/// The gate's answer. When it was asked stands in the record alone.
fn decision(record: &ProvenanceRecord, found: &Value, facts: &mut Facts) {
    let mut gate = json!(record.gate);
    gate.as_object_mut().and_then(|gate| gate.shift_remove("decided"));
    facts.all(&gate, found, "");
}

fn report(record: &ProvenanceRecord, found: &Value, facts: &mut Facts) {
    for (at, expected) in in_report(record) {
        facts.one(&at, found.pointer(&at), &expected);
    }
}

/// What the report states too, by its place in it.
fn in_report(record: &ProvenanceRecord) -> Vec<(String, Value)> {
    let evaluation = &record.evaluation;
    let mut facts = vec![
        ("/recipe".to_owned(), json!(record.recipe.name)),
        ("/digests/recipe".to_owned(), json!(record.recipe.sha256)),
        ("/trial".to_owned(), json!(record.release.trial)),
        ("/task".to_owned(), json!(evaluation.task)),
        ("/task_description".to_owned(), json!(evaluation.description)),
        ("/heldout_text".to_owned(), json!(evaluation.heldout_text)),
        ("/heldout_examples".to_owned(), json!(evaluation.heldout_examples)),
        ("/licence/verdict".to_owned(), json!(record.gate.verdict)),
        ("/licence/overridden".to_owned(), json!(record.gate.override_reason)),
        ("/corpus/teacher_usd".to_owned(), json!(record.costs.teacher_usd.value)),
        ("/machine/cpu".to_owned(), json!(record.machine.cpu)),
        ("/machine/kernels".to_owned(), json!(record.machine.kernels)),
        ("/machine/threads".to_owned(), json!(record.machine.threads)),
        ("/machine/os".to_owned(), json!(record.machine.os)),
    ];
    for (name, seed) in &record.recipe.seeds {
        facts.push((format!("/seeds/{}", escaped(name)), json!(seed)));
    }
    for model in &evaluation.models {
        let at = |name: &str| format!("/models/{}/{name}", escaped(&model.contender));
        facts.push((at("parameters"), json!(model.parameters)));
        facts.push((at("accuracy_ci95"), json!(model.accuracy.ci95)));
        let figures: [(&str, &Figure); 4] = [
            ("accuracy", &model.accuracy),
            ("nll_nats_per_token", &model.nll_nats_per_token),
            ("bits_per_byte", &model.bits_per_byte),
            ("kl_to_teacher", &model.kl_to_teacher),
        ];
        for (name, figure) in figures {
            facts.push((at(name), json!(figure.value)));
        }
    }
    for paired in &evaluation.differences {
        let (other, metric) = (escaped(&paired.other), escaped(&paired.metric));
        let at = |name: &str| format!("/paired/student_minus_{other}/{metric}/{name}");
        facts.push((at("difference"), json!(paired.difference)));
        facts.push((at("ci95"), json!(paired.ci95)));
        facts.push((at("claim"), json!(paired.claim)));
        facts.push((at("items"), json!(paired.items)));
    }
    facts
}

/// A name in a JSON pointer.
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// Whether two values are the same, numbers by what they mean.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (a, b) => a == b,
    }
}

/// The first place where a document is not the text that the record gives.
fn text_differs(name: &str, found: &[u8], expected: &str) -> Option<Disagreement> {
    if found == expected.as_bytes() {
        return None;
    }
    let found = String::from_utf8_lossy(found);
    let (mut stand, mut belong) = (found.split_inclusive('\n'), expected.split_inclusive('\n'));
    let mut line = 0;
    let (stands, record) = loop {
        line += 1;
        match (stand.next(), belong.next()) {
            (a, b) if a == b && a.is_some() => {}
            differing => break differing,
        }
    };
    let value = name.ends_with(".json").then(|| pointer_of(&found, expected)).flatten();
    let mut difference = value.unwrap_or_else(|| Disagreement {
        document: String::new(),
        at: String::new(),
        stands: stands.map(shown),
        record: record.map(shown),
    });
    difference.document = name.to_owned();
    difference.at = match difference.at.as_str() {
        "" => format!("line {line}"),
        pointer => format!("line {line}, {pointer}"),
    };
    Some(difference)
}

/// Where two JSON texts differ in what they mean.
fn pointer_of(found: &str, expected: &str) -> Option<Disagreement> {
    let parsed = |text: &str| serde_json::from_str::<Value>(text).ok();
    let (found, expected) = (parsed(found)?, parsed(expected)?);
    let mut facts = Facts::default();
    facts.all(&expected, &found, "");
    // What is too much stands only on the one side.
    if facts.differing.is_empty() {
        facts.all(&found, &expected, "");
        facts.differing.iter_mut().for_each(|more| std::mem::swap(&mut more.stands, &mut more.record));
    }
    facts.differing.into_iter().next()
}

/// The first statement that is not the one that the record gives, bare or in an envelope. With a key, an envelope has to be
/// signed by it.
fn statements_differ(
    name: &str,
    found: &[u8],
    expected: &str,
    key: Option<&PublicKey>,
) -> Option<Disagreement> {
    let found = String::from_utf8_lossy(found);
    let (mut stand, mut belong) = (found.split_inclusive('\n'), expected.split_inclusive('\n'));
    for line in 1.. {
        let (stands, statement) = match (stand.next(), belong.next()) {
            (None, None) => return None,
            (Some(stands), Some(statement)) => (stands, statement),
            (stands, statement) => {
                let at = format!("line {line}");
                let (stands, record) = (stands.map(shown), statement.map(shown));
                return Some(Disagreement { document: name.to_owned(), at, stands, record });
            }
        };
        if stands == statement {
            continue;
        }
        let fault = |stands: &str| Disagreement {
            document: name.to_owned(),
            at: format!("line {line}"),
            stands: Some(shown(stands)),
            record: Some(shown(statement)),
        };
        let sealed =
            Envelope::from_bytes(stands.as_bytes()).ok().filter(|sealed| json_line(sealed) == stands);
        let payload = sealed.as_ref().and_then(|sealed| sealed.unverified_payload().ok());
        let (text, sealed) = match (sealed, payload) {
            (Some(sealed), Some(payload)) if sealed.payload_type() == IN_TOTO => {
                (String::from_utf8_lossy(&payload).into_owned(), Some(sealed))
            }
            _ => (stands.trim_end().to_owned(), None),
        };
        if text != statement.trim_end() || sealed.is_none() {
            let mut differs = pointer_of(&text, statement).unwrap_or_else(|| fault(stands));
            if differs.document.is_empty() {
                differs.document = name.to_owned();
                differs.at = format!("line {line}, {}", differs.at);
            }
            return Some(differs);
        }
        if key.is_some_and(|key| sealed.is_some_and(|sealed| sealed.verify(key).is_err())) {
            return Some(Disagreement {
                record: Some("an envelope that is signed by the key that was given".to_owned()),
                ..fault(stands)
            });
        }
    }
    None
}

/// A line of a foreign text, short and harmless.
fn shown(text: &str) -> String {
    let text = plain(text.trim_end_matches(['\r', '\n']));
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn shown_value(value: &Value) -> String {
    match value {
        Value::String(text) => shown(text),
        other => shown(&other.to_string()),
    }
}

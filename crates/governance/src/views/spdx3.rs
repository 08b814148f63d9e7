//! SPDX 3.0.1 as JSON-LD: the student as an AI package, data as dataset packages, licences declared and concluded.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use stillroom_core::Digest;

use super::licence::{Spdx, spdx};
use super::names::{data_uri, digest_of, hub_id, model_uri, number};
use crate::record::{
    DataFacts, DataKind, Figure, FileFacts, Licences, ModelFacts, ModelResult, ProvenanceRecord,
};
use crate::text::{json_text, percent};

const CONTEXT: &str = "https://spdx.org/rdf/3.0.1/spdx-context.jsonld";
const NO_ASSERTION: &str = "expandedlicensing_NoAssertionLicense";
/// Blank node that says who made the elements, and when.
const CREATION: &str = "_:creation";
/// The version that is said where the publisher's is not known.
const UNKNOWN_VERSION: &str = "unknown";

pub(super) fn bom(record: &ProvenanceRecord) -> String {
    let mut graph = Graph::new(record);
    graph.agents();
    let student = graph.student();
    for model in record.models() {
        graph.model(model);
    }
    for data in &record.data {
        graph.data(data);
    }
    graph.lineage(&student);
    graph.document(&student);
    json_text(&json!({ "@context": CONTEXT, "@graph": graph.finish() }))
}

struct Graph<'a> {
    record: &'a ProvenanceRecord,
    /// Of all identifiers in the document.
    namespace: String,
    elements: Vec<Value>,
    /// Expression of each licence that was named, by its identifier.
    licences: BTreeMap<String, Value>,
    n_relationships: usize,
}

impl<'a> Graph<'a> {
    fn new(record: &'a ProvenanceRecord) -> Graph<'a> {
        let namespace = format!("urn:stillroom:spdx:{}", digest_of(record));
        Graph { record, namespace, elements: Vec::new(), licences: BTreeMap::new(), n_relationships: 0 }
    }

    fn id(&self, kind: &str, name: &str) -> String {
        format!("{}:{kind}:{}", self.namespace, percent(name))
    }

    fn element(&mut self, kind: &str, id: &str, fields: Value) {
        let mut element = json!({ "type": kind, "spdxId": id, "creationInfo": CREATION });
        if let (Value::Object(element), Value::Object(fields)) = (&mut element, fields) {
            element.extend(fields);
        }
        self.elements.push(element);
    }

    fn relate(&mut self, from: &str, how: &str, to: &[String]) {
        if to.is_empty() {
            return;
        }
        self.n_relationships += 1;
        let id = self.id("relationship", &self.n_relationships.to_string());
        let fields = json!({ "from": from, "relationshipType": how, "to": to });
        self.element("Relationship", &id, fields);
    }

    /// Who made the document and who supplies what; of a publisher that nobody named, that nobody did.
    fn agents(&mut self) {
        let (program, created) = (&self.record.program, &self.record.time.finished);
        self.elements.push(json!({
            "type": "CreationInfo",
            "@id": CREATION,
            "specVersion": "3.0.1",
            "created": created,
            "createdBy": [self.id("agent", "stillroom")],
        }));
        let name = format!("{} {}", program.name, program.version);
        self.element("SoftwareAgent", &self.id("agent", "stillroom"), json!({ "name": name }));
        let maker = json!({ "name": "the maker of this release", "comment": "whoever ran the recipe; fill in before publishing" });
        self.element("Agent", &self.id("agent", "maker"), maker);
        let nobody = json!({ "name": "not named", "comment": "the recipe names no publisher" });
        self.element("Agent", &self.id("agent", "not-named"), nobody);
        let mut owners: Vec<&String> =
            self.record.models().filter_map(|model| model.owner.as_ref()).collect();
        owners.sort();
        owners.dedup();
        for owner in owners {
            self.element("Agent", &self.id("owner", owner), json!({ "name": owner }));
        }
    }

    fn supplier(&self, owner: Option<&String>) -> String {
        owner.map_or_else(|| self.id("agent", "not-named"), |owner| self.id("owner", owner))
    }

    fn student(&mut self) -> String {
        let record = self.record;
        let id = self.id("package", &record.release.name);
        let student = record.evaluation.models.iter().find(|model| model.contender == "student");
        let limits = super::card::limits(record).join(" ");
        let fields = json!({
            "name": record.release.name,
            "builtTime": record.time.finished,
            "releaseTime": record.time.finished,
            "suppliedBy": self.id("agent", "maker"),
            "software_primaryPurpose": "model",
            "software_packageVersion": record.student.tree_sha256,
            "software_downloadLocation": format!("{}:release", self.namespace),
            "verifiedUsing": [tree_hash(record.student.tree_sha256)],
            "ai_typeOfModel": ["transformer decoder", record.student.architecture],
            "ai_informationAboutTraining": format!(
                "Start: {}. Trained: {}. Loss: {}.",
                record.student.start.describe(), record.recipe.trained, record.recipe.loss
            ),
            "ai_limitation": limits,
            "ai_hyperparameter": entries(record.recipe.seeds.iter().map(|(name, seed)| (format!("seed:{name}"), seed.to_string()))),
            "ai_metric": entries(student.map(metrics).unwrap_or_default().into_iter()),
        });
        self.element("ai_AIPackage", &id, fields);
        // What the recipe says; nobody has judged it.
        self.licensed(&id, &Licences { declared: record.release.licence.clone(), ..Licences::default() });
        let files: Vec<String> = record.files.iter().map(|file| self.file(file)).collect();
        self.relate(&id, "contains", &files);
        id
    }

    fn file(&mut self, file: &FileFacts) -> String {
        let id = self.id("file", &file.path);
        let fields = json!({
            "name": file.path,
            "software_primaryPurpose": if file.is_weights() { "model" } else { "file" },
            "verifiedUsing": [{ "type": "Hash", "algorithm": "sha256", "hashValue": file.sha256 }],
        });
        self.element("software_File", &id, fields);
        id
    }

    fn model_id(&self, model: &ModelFacts) -> String {
        self.id("model", &model.id)
    }

    fn model(&mut self, model: &ModelFacts) {
        let id = self.model_id(model);
        let roles: Vec<&str> = model.roles.iter().map(|role| role.as_str()).collect();
        let mut fields = json!({
            "name": model.id,
            "comment": format!("{}; {}", roles.join(", "), model.route.describe()),
            "releaseTime": self.record.time.started,
            "suppliedBy": self.supplier(model.owner.as_ref()),
            "software_primaryPurpose": "model",
            "software_packageVersion": model.revision.as_deref().unwrap_or(UNKNOWN_VERSION),
            "software_downloadLocation": location(model),
            "software_sourceInfo": "releaseTime is when this run began to use it; the publisher's own is not on record",
        });
        if let Some(tree) = model.tree_sha256 {
            fields["verifiedUsing"] = json!([tree_hash(tree)]);
        }
        if hub_id(model).is_some() {
            fields["software_packageUrl"] = json!(model_uri(model));
        }
        self.element("ai_AIPackage", &id, fields);
        self.licensed(&id, &model.licence);
    }

    fn data_id(&self, data: &DataFacts) -> String {
        self.id("data", &data.id)
    }

    fn data(&mut self, data: &DataFacts) {
        let id = self.data_id(data);
        let counts = &data.counts;
        let rows = [counts.kept, counts.validation, counts.held_out].into_iter().flatten().sum::<u64>();
        let agent = match data.kind {
            DataKind::Given => "not-named",
            DataKind::Procedural | DataKind::Synthetic => "maker",
        };
        let mut fields = json!({
            "name": data.id,
            "description": data.about,
            "builtTime": self.record.time.started,
            "releaseTime": self.record.time.finished,
            "originatedBy": [self.id("agent", agent)],
            "suppliedBy": self.id("agent", agent),
            "software_primaryPurpose": "data",
            "software_downloadLocation": data_uri(data),
            "dataset_datasetType": ["text"],
            "dataset_datasetSize": rows,
            "dataset_dataCollectionProcess": data.about,
            "dataset_dataPreprocessing": [format!("Personal data and secrets: {}", data.personal_data)],
            "dataset_hasSensitivePersonalInformation": "noAssertion",
        });
        if let Some(tree) = data.tree_sha256 {
            fields["verifiedUsing"] = json!([tree_hash(tree)]);
        }
        self.element("dataset_DatasetPackage", &id, fields);
        self.licensed(&id, &data.licence);
        let files: Vec<String> = data.files.iter().map(|file| self.file(file)).collect();
        self.relate(&id, "contains", &files);
    }

    /// Exactly one licence of each kind, as the profiles ask.
    fn licensed(&mut self, id: &str, licences: &Licences) {
        for (how, said) in
            [("hasDeclaredLicense", &licences.declared), ("hasConcludedLicense", &licences.concluded)]
        {
            let licence = said.as_deref().map_or(NO_ASSERTION.to_owned(), |said| self.licence(said));
            self.relate(id, how, &[licence]);
        }
    }

    fn licence(&mut self, said: &str) -> String {
        let licence = spdx(said);
        let id = self.id("licence", licence.expression());
        let mut fields = json!({ "simplelicensing_licenseExpression": licence.expression() });
        if let Spdx::Words { reference, words } = &licence {
            let text = self.id("licence-text", reference);
            let named = json!({
                "type": "simplelicensing_SimpleLicensingText", "spdxId": text, "creationInfo": CREATION,
                "name": reference, "simplelicensing_licenseText": words,
            });
            self.licences.insert(text.clone(), named);
            fields["simplelicensing_customIdToUri"] =
                json!([{ "type": "DictionaryEntry", "key": reference, "value": text }]);
        }
        let mut element =
            json!({ "type": "simplelicensing_LicenseExpression", "spdxId": id, "creationInfo": CREATION });
        if let (Value::Object(element), Value::Object(fields)) = (&mut element, fields) {
            element.extend(fields);
        }
        self.licences.insert(id.clone(), element);
        id
    }

    /// What came from what. SPDX has no word for distillation: a teacher generates data, the student is trained on it;
    /// only inherited weights make a descendant.
    fn lineage(&mut self, student: &str) {
        let record = self.record;
        let data: Vec<String> = record.data.iter().map(|data| self.data_id(data)).collect();
        self.relate(student, "trainedOn", &data);
        for model in record.models() {
            let made = record.data.iter().filter(|data| data.made_by.contains(&model.id));
            let made: Vec<String> = made.map(|data| self.data_id(data)).collect();
            let id = self.model_id(model);
            self.relate(&id, "generates", &made);
        }
        for data in &record.data {
            let from = record.data.iter().filter(|other| data.made_from.contains(&other.id));
            let from: Vec<String> = from.map(|other| self.data_id(other)).collect();
            let id = self.data_id(data);
            self.relate(&id, "dependsOn", &from);
        }
        let ancestors: Vec<String> = record.student.ancestors.iter().map(|a| self.model_id(a)).collect();
        self.relate(student, "descendantOf", &ancestors);
    }

    fn document(&mut self, student: &str) {
        let licences: Vec<Value> = std::mem::take(&mut self.licences).into_values().collect();
        self.elements.extend(licences);
        let of = |element: &Value| element["spdxId"].as_str().map(str::to_owned);
        let elements: Vec<String> = self.elements.iter().filter_map(of).collect();
        let fields = json!({
            "name": self.record.release.name,
            "comment": format!("Licence verdict of the run: {}.", self.record.gate.verdict.as_str()),
            "profileConformance": ["core", "software", "ai", "dataset", "simpleLicensing"],
            "rootElement": [student],
            "element": elements,
        });
        let id = format!("{}:document", self.namespace);
        self.element("SpdxDocument", &id, fields);
    }

    fn finish(self) -> Vec<Value> {
        self.elements
    }
}

/// Over several files, which no algorithm of SPDX's list is.
fn tree_hash(tree: Digest) -> Value {
    json!({
        "type": "Hash",
        "algorithm": "other",
        "hashValue": tree,
        "comment": "SHA-256 over the names and the SHA-256 of its files",
    })
}

fn location(model: &ModelFacts) -> String {
    match hub_id(model) {
        Some(id) => format!("https://huggingface.co/{id}"),
        None => model_uri(model),
    }
}

fn entries(entries: impl Iterator<Item = (String, String)>) -> Vec<Value> {
    entries.map(|(key, value)| json!({ "type": "DictionaryEntry", "key": key, "value": value })).collect()
}

fn metrics(model: &ModelResult) -> Vec<(String, String)> {
    let figures = [
        ("accuracy", &model.accuracy),
        ("nll_nats_per_token", &model.nll_nats_per_token),
        ("bits_per_byte", &model.bits_per_byte),
        ("kl_to_teacher", &model.kl_to_teacher),
    ];
    let shown = |figure: &Figure| {
        let value = number(figure.value?);
        Some(match figure.ci95 {
            Some([low, high]) => format!("{value} (95 % interval {} to {})", number(low), number(high)),
            None => value,
        })
    };
    figures.into_iter().filter_map(|(name, figure)| Some((name.to_owned(), shown(figure)?))).collect()
}

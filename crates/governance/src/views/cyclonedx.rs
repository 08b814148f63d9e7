//! CycloneDX 1.7: the release as an inventory of a model, its data, and who wrote that.
//!
//! A model whose weights the student began with is an ancestor in its pedigree. A teacher that only wrote text or gave
//! distributions is none: its component is what the data depends on, and the student depends on the data.

use serde_json::{Value, json};
use stillroom_core::Digest;

use super::licence::{Spdx, spdx};
use super::names::{digest_of, hub_id, model_uri, number};
use crate::record::{
    DataFacts, DataKind, Figure, FileFacts, Licences, ModelFacts, ModelResult, ProvenanceRecord,
};
use crate::text::json_text;

const STUDENT: &str = "student";
const TOOL: &str = "tool:stillroom";
const WORKFLOW: &str = "workflow:distillation";

pub(super) fn bom(record: &ProvenanceRecord) -> String {
    let mut components: Vec<Value> = record.models().map(model).collect();
    components.extend(record.data.iter().map(data));
    json_text(&json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.7.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "serialNumber": format!("urn:uuid:{}", uuid(digest_of(record))),
        "version": 1,
        "metadata": {
            "timestamp": record.time.finished,
            "lifecycles": [{ "phase": "build" }],
            "tools": { "components": [tool(record)] },
            "component": student(record),
        },
        "components": components,
        "dependencies": dependencies(record),
        "formulation": [formula(record)],
        "citations": citations(record),
        "properties": [
            property("stillroom:verdict", record.gate.verdict.as_str()),
            property("stillroom:recipe:sha256", &record.recipe.sha256.to_string()),
        ],
    }))
}

/// Of a digest, in the version that is for uses of one's own.
fn uuid(digest: Digest) -> String {
    let mut bytes = [0u8; 16];
    bytes.copy_from_slice(&digest.as_bytes()[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

fn model_ref(model: &ModelFacts) -> String {
    format!("model:{}", model.id)
}

fn data_ref(data: &DataFacts) -> String {
    format!("data:{}", data.id)
}

fn property(name: &str, value: &str) -> Value {
    json!({ "name": name, "value": value })
}

/// Of several files; a hash of CycloneDX is one file's.
fn tree_property(tree: Option<Digest>) -> Option<Value> {
    tree.map(|tree| property("stillroom:tree:sha256", &tree.to_string()))
}

fn tool(record: &ProvenanceRecord) -> Value {
    let program = &record.program;
    let mut tool = json!({
        "type": "application",
        "bom-ref": TOOL,
        "name": program.name,
        "version": program.version,
        "properties": [property("stillroom:lockfile:sha256", &record.lockfile.to_string())],
    });
    if let Some(digest) = program.digest {
        tool["hashes"] = json!([{ "alg": "SHA-256", "content": digest }]);
    }
    tool
}

fn licences(licences: &Licences) -> Vec<Value> {
    let said = [(&licences.declared, "declared"), (&licences.concluded, "concluded")];
    said.into_iter().filter_map(|(licence, how)| Some(choice(licence.as_deref()?, how))).collect()
}

fn choice(licence: &str, acknowledgement: &str) -> Value {
    match spdx(licence) {
        Spdx::Listed(id) => json!({ "license": { "id": id, "acknowledgement": acknowledgement } }),
        Spdx::Expression(expression) => {
            json!({ "expression": expression, "acknowledgement": acknowledgement })
        }
        Spdx::Words { words, .. } => {
            json!({ "license": { "name": words, "acknowledgement": acknowledgement } })
        }
    }
}

fn model(model: &ModelFacts) -> Value {
    let mut properties = vec![property("stillroom:route", &model.route.describe())];
    properties.extend(model.roles.iter().map(|role| property("stillroom:role", role.as_str())));
    properties.extend(tree_property(model.tree_sha256));
    let mut component = json!({
        "type": "machine-learning-model",
        "bom-ref": model_ref(model),
        "name": model.id,
        "properties": properties,
    });
    if let Some(revision) = &model.revision {
        component["version"] = json!(revision);
    }
    if let Some(owner) = &model.owner {
        component["publisher"] = json!(owner);
    }
    if hub_id(model).is_some() {
        component["purl"] = json!(model_uri(model));
    }
    let licences = licences(&model.licence);
    if !licences.is_empty() {
        component["licenses"] = json!(licences);
    }
    component
}

fn student(record: &ProvenanceRecord) -> Value {
    let student = &record.student;
    let mut properties = vec![property("stillroom:start", student.start.describe())];
    properties.extend(tree_property(Some(student.tree_sha256)));
    let mut component = json!({
        "type": "machine-learning-model",
        "bom-ref": STUDENT,
        "name": record.release.name,
        "components": record.files.iter().map(file).collect::<Vec<_>>(),
        "modelCard": model_card(record),
        "properties": properties,
    });
    if let Some(licence) = &record.release.licence {
        component["licenses"] = json!([choice(licence, "declared")]);
    }
    if !student.ancestors.is_empty() {
        let ancestor = |ancestor: &ModelFacts| {
            let mut component = model(ancestor);
            component["bom-ref"] = json!(format!("ancestor:{}", ancestor.id));
            component
        };
        component["pedigree"] = json!({
            "ancestors": student.ancestors.iter().map(ancestor).collect::<Vec<_>>(),
            "notes": format!("The weights began as {}.", student.start.describe()),
        });
    }
    component
}

fn file(file: &FileFacts) -> Value {
    json!({
        "type": "file",
        "bom-ref": format!("file:{}", file.path),
        "name": file.path,
        "hashes": [{ "alg": "SHA-256", "content": file.sha256 }],
    })
}

fn model_card(record: &ProvenanceRecord) -> Value {
    let student = record.evaluation.models.iter().find(|model| model.contender == "student");
    let limits: Vec<String> = super::card::limits(record);
    let mut card = json!({
        "modelParameters": {
            "approach": { "type": "supervised" },
            "task": "text-generation",
            "architectureFamily": "transformer decoder",
            "modelArchitecture": record.student.architecture,
            "datasets": record.data.iter().map(|data| json!({ "ref": data_ref(data) })).collect::<Vec<_>>(),
            "inputs": [{ "format": "text" }],
            "outputs": [{ "format": "text" }],
        },
        "quantitativeAnalysis": { "performanceMetrics": student.map(metrics).unwrap_or_default() },
        "considerations": { "technicalLimitations": limits },
    });
    let costs = [
        ("wall_s", &record.costs.wall_s),
        ("teacher_usd", &record.costs.teacher_usd),
        ("energy_j", &record.costs.energy_j),
    ];
    let said = |(name, figure): (&str, &Figure)| match (figure.value, &figure.reason) {
        (Some(value), _) => property(&format!("stillroom:{name}"), &number(value)),
        (None, reason) => {
            property(&format!("stillroom:{name}:reason"), reason.as_deref().unwrap_or("not measured"))
        }
    };
    card["properties"] = costs.into_iter().map(said).collect();
    card
}

fn metrics(model: &ModelResult) -> Vec<Value> {
    let figures = [
        ("accuracy", &model.accuracy),
        ("nll_nats_per_token", &model.nll_nats_per_token),
        ("bits_per_byte", &model.bits_per_byte),
        ("kl_to_teacher", &model.kl_to_teacher),
    ];
    let metric = |(name, figure): (&str, &Figure)| {
        let mut metric = json!({ "type": name, "value": number(figure.value?), "slice": "held-out" });
        if let Some([low, high]) = figure.ci95 {
            metric["confidenceInterval"] = json!({ "lowerBound": number(low), "upperBound": number(high) });
        }
        Some(metric)
    };
    figures.into_iter().filter_map(metric).collect()
}

fn data(data: &DataFacts) -> Value {
    let counts = &data.counts;
    let mut properties = vec![
        property("stillroom:egress", &data.egress),
        property("stillroom:personal_data", &data.personal_data),
    ];
    let counted = [
        ("asked", counts.asked),
        ("answered", counts.answered),
        ("kept", counts.kept),
        ("validation", counts.validation),
        ("held_out", counts.held_out),
    ];
    let rows = |name: &str, n: u64| property(&format!("stillroom:rows:{name}"), &n.to_string());
    properties.extend(counted.into_iter().filter_map(|(name, n)| Some(rows(name, n?))));
    properties.extend(counts.dropped.iter().map(|(reason, n)| rows(&format!("dropped:{reason}"), *n)));
    properties.extend(tree_property(data.tree_sha256));
    let classification = match data.kind {
        DataKind::Procedural => "procedural",
        DataKind::Given => "given",
        DataKind::Synthetic => "synthetic",
    };
    let mut component = json!({
        "type": "data",
        "bom-ref": data_ref(data),
        "name": data.id,
        "description": data.about,
        "data": [{ "type": "dataset", "name": data.id, "classification": classification }],
        "components": data.files.iter().map(file).collect::<Vec<_>>(),
        "properties": properties,
    });
    let licences = licences(&data.licence);
    if !licences.is_empty() {
        component["licenses"] = json!(licences);
    }
    component
}

fn dependencies(record: &ProvenanceRecord) -> Vec<Value> {
    let models: Vec<&ModelFacts> = record.models().collect();
    let mut of_student: Vec<String> = record.data.iter().map(data_ref).collect();
    of_student.extend(record.student.ancestors.iter().map(model_ref));
    // What a teacher gives beside text goes into the student without data between them.
    if !record.data.iter().any(|data| data.kind == DataKind::Synthetic) {
        of_student.extend(record.teachers_of_outputs().map(model_ref));
    }
    let mut dependencies = vec![json!({ "ref": STUDENT, "dependsOn": of_student })];
    for data in &record.data {
        let made_by =
            models.iter().filter(|model| data.made_by.contains(&model.id)).map(|model| model_ref(model));
        let made_from = record.data.iter().filter(|other| data.made_from.contains(&other.id)).map(data_ref);
        let on: Vec<String> = made_by.chain(made_from).collect();
        dependencies.push(json!({ "ref": data_ref(data), "dependsOn": on }));
    }
    dependencies.extend(models.iter().map(|model| json!({ "ref": model_ref(model) })));
    dependencies
}

fn formula(record: &ProvenanceRecord) -> Value {
    let mut used: Vec<String> = record.models().map(model_ref).collect();
    used.extend(record.data.iter().map(data_ref));
    let seeds = record.recipe.seeds.iter();
    let mut properties: Vec<Value> =
        seeds.map(|(name, seed)| property(&format!("stillroom:seed:{name}"), &seed.to_string())).collect();
    properties.push(property("stillroom:loss", &record.recipe.loss));
    properties.push(property("stillroom:trained", &record.recipe.trained));
    json!({
        "bom-ref": "formula:distillation",
        "workflows": [{
            "bom-ref": WORKFLOW,
            "uid": record.recipe.sha256,
            "name": record.recipe.name,
            "taskTypes": ["build", "test", "release"],
            "timeStart": record.time.started,
            "timeEnd": record.time.finished,
            "resourceReferences": used.iter().map(|used| json!({ "ref": used })).collect::<Vec<_>>(),
            "properties": properties,
        }],
    })
}

/// Who asserts what: the tool measured and concluded; what a publisher declared, the tool read.
fn citations(record: &ProvenanceRecord) -> Value {
    json!([
        {
            "pointers": ["/metadata/component/modelCard", "/metadata/component/components", "/formulation"],
            "timestamp": record.time.finished,
            "attributedTo": TOOL,
            "note": "measured or recorded while the release was made",
        },
        {
            "pointers": ["/components"],
            "timestamp": record.gate.decided,
            "attributedTo": TOOL,
            "note": "declared licences are the publishers' words as they were found; concluded ones are the gate's",
        },
    ])
}

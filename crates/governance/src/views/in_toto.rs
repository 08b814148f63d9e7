//! in-toto statements: how the weights were made, and why that was allowed.

use serde_json::{Map, Value, json};
use stillroom_core::Digest;

use super::names::{data_uri, digest_of, model_uri};
use crate::manifest::STATEMENT_TYPE;
use crate::record::{DataFacts, FileFacts, ModelFacts, ProvenanceRecord, Role, Route, TextFacts};
use crate::text::json_line;

/// `predicateType` of SLSA's provenance.
pub const SLSA_TYPE: &str = "https://slsa.dev/provenance/v1";
/// `predicateType` of a simple verification result.
pub const SVR_TYPE: &str = "https://in-toto.io/attestation/svr/v0.2";
/// `predicateType` of the gate's answer in full: the record's `gate`.
pub const LICENCE_DECISION_TYPE: &str = "urn:stillroom:licence-decision:v1";
/// What kind of build it was; a change of meaning changes the number.
pub const BUILD_TYPE: &str = "urn:stillroom:distillation:v1";

/// Who judges licences; a change of what is judged changes the number.
const VERIFIER: &str = "urn:stillroom:licence-gate:v1";

/// How the weights were made, by SLSA. A builder on somebody's own machine is level 1 at most, and so this claims
/// nothing about isolation.
pub(super) fn build(record: &ProvenanceRecord) -> String {
    let mut dependencies: Vec<Value> = record.models().map(|model| model_dependency(record, model)).collect();
    dependencies.extend(record.data.iter().map(data_dependency));
    for model in record.models() {
        dependencies.extend(model.licence.texts.iter().map(|text| licence_text(model, text)));
    }
    let program = &record.program;
    let mut builder = json!({
        "id": format!("urn:stillroom:program:{}", program.digest.map_or("unknown".to_owned(), |d| d.to_string())),
        "version": { program.name.as_str(): program.version },
        "builderDependencies": [{ "name": "Cargo.lock", "digest": { "sha256": record.lockfile } }],
    });
    if program.digest.is_none() {
        builder["id"] = json!(format!("urn:stillroom:program:{}", program.version));
    }
    let ids = |models: &[ModelFacts]| models.iter().map(|model| json!(model.id)).collect::<Vec<_>>();
    let predicate = json!({
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "recipe": { "name": record.recipe.name, "digest": { "sha256": record.recipe.sha256 } },
                "seeds": record.recipe.seeds,
                "teachers": ids(&record.teachers),
                "ancestors": ids(&record.student.ancestors),
                "data": record.data.iter().map(|data| json!(data.id)).collect::<Vec<_>>(),
                "trial": record.release.trial,
            },
            "internalParameters": {
                "kernels": record.machine.kernels,
                "loss": record.recipe.loss,
                "trained": record.recipe.trained,
            },
            "resolvedDependencies": dependencies,
        },
        "runDetails": {
            "builder": builder,
            "metadata": {
                "invocationId": format!("urn:stillroom:run:{}", digest_of(record)),
                "startedOn": record.time.started,
                "finishedOn": record.time.finished,
            },
            "byproducts": record.byproducts.iter().map(file).collect::<Vec<_>>(),
        },
    });
    statement(record, SLSA_TYPE, predicate)
}

/// What the gate found: in short for policies that know only verification results, and in full.
pub(super) fn gate(record: &ProvenanceRecord) -> Vec<String> {
    let gate = &record.gate;
    // An override opens the gate, and verifies nothing.
    let passed = gate.passes && gate.override_reason.is_none();
    let verdict = gate.verdict.as_str().to_uppercase();
    let properties = match passed {
        true => {
            vec!["STILLROOM_LICENCE_GATE_PASSED".to_owned(), format!("STILLROOM_LICENCE_VERDICT_{verdict}")]
        }
        false => Vec::new(),
    };
    let policy = |name: &str, digest: Digest| json!({ "name": name, "digest": { "sha256": digest } });
    let users = gate.users_register.map(|digest| policy("the user's own register", digest));
    let policies: Vec<Value> =
        std::iter::once(policy("licence register", gate.register)).chain(users).collect();
    let short = json!({
        "verifier": { "id": VERIFIER, "policies": policies },
        "timeCreated": gate.decided,
        "properties": properties,
    });
    let mut full = json!(gate);
    full["teachers"] = record.models().map(licences).collect();
    full["data"] = record.data.iter().map(|data| named(&data.id, json!(data.licence))).collect();
    vec![statement(record, SVR_TYPE, short), statement(record, LICENCE_DECISION_TYPE, full)]
}

/// One line; what it is about are the files with weights.
fn statement(record: &ProvenanceRecord, predicate_type: &str, predicate: Value) -> String {
    json_line(&json!({
        "_type": STATEMENT_TYPE,
        "subject": record.weights().map(file).collect::<Vec<_>>(),
        "predicateType": predicate_type,
        "predicate": predicate,
    }))
}

fn file(file: &FileFacts) -> Value {
    json!({ "name": file.path, "digest": { "sha256": file.sha256 } })
}

fn named(id: &str, licence: Value) -> Value {
    json!({ "id": id, "licence": licence })
}

fn licences(model: &ModelFacts) -> Value {
    let mut licences = named(&model.id, json!(model.licence));
    licences["roles"] = json!(model.roles);
    licences
}

fn model_dependency(record: &ProvenanceRecord, model: &ModelFacts) -> Value {
    let mut roles: Vec<Role> = model.roles.clone();
    let is_ancestor = record.student.ancestors.iter().any(|ancestor| ancestor.id == model.id);
    if is_ancestor && !roles.contains(&Role::Ancestor) {
        roles.push(Role::Ancestor);
    }
    let route = match &model.route {
        Route::Weights => "weights",
        Route::Endpoints { .. } => "endpoints",
        Route::Files => "files",
        Route::Ledger => "ledger",
    };
    let annotations = json!({
        "roles": roles,
        "route": route,
        "licenceDeclared": model.licence.declared,
        "licenceConcluded": model.licence.concluded,
    });
    descriptor(&model.id, &model_uri(model), model.tree_sha256.map(|digest| digest.to_string()), annotations)
}

fn data_dependency(data: &DataFacts) -> Value {
    let annotations = json!({
        "roles": ["data"],
        "kind": data.kind,
        "licenceDeclared": data.licence.declared,
        "licenceConcluded": data.licence.concluded,
    });
    descriptor(&data.id, &data_uri(data), data.tree_sha256.map(|digest| digest.to_string()), annotations)
}

/// A digest over several files is no file's `sha256`, and so has a name of its own.
fn descriptor(name: &str, uri: &str, tree: Option<String>, annotations: Value) -> Value {
    let mut descriptor = Map::new();
    descriptor.insert("name".to_owned(), json!(name));
    descriptor.insert("uri".to_owned(), json!(uri));
    if let Some(tree) = tree {
        descriptor.insert("digest".to_owned(), json!({ "stillroomTreeSha256": tree }));
    }
    descriptor.insert("annotations".to_owned(), annotations);
    Value::Object(descriptor)
}

fn licence_text(model: &ModelFacts, text: &TextFacts) -> Value {
    json!({
        "name": text.name,
        "digest": { "sha256": text.sha256 },
        "annotations": { "roles": ["licence"], "of": model.id },
    })
}

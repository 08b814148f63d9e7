//! Documents about a release agree, since each is derived from one record and from nothing else.

#[path = "views/sample.rs"]
mod sample;

use std::collections::BTreeSet;
use std::path::Path;

use sample::{local, of_outputs, of_weights, rule, served};
use serde_json::Value;
use stillroom_core::Digest;
use stillroom_governance::dsse::{Envelope, IN_TOTO};
use stillroom_governance::keys::Signer;
use stillroom_governance::record::{GateFacts, ProvenanceRecord, RECORD_BYTES_MAX, Role, Start};
use stillroom_governance::views::{self, Level, View};
use stillroom_governance::{Decision, NOT_ADVICE, Question, RecordFault, Subject, Verdict, decide};

fn views_of(record: &ProvenanceRecord) -> Vec<View> {
    views::all(record, None).expect("nothing is signed")
}

fn view(record: &ProvenanceRecord, name: &str) -> String {
    let views = views_of(record);
    views.into_iter().find(|view| view.path.ends_with(name)).expect("a view of that name").text
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

fn strings(values: &Value, key: &str) -> Vec<String> {
    let values = values.as_array().expect("an array");
    values.iter().map(|value| value[key].as_str().expect("a string").to_owned()).collect()
}

/// What a view says of the facts that all have.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    models: BTreeSet<String>,
    /// Model, declared or concluded, SPDX expression.
    licences: BTreeSet<(String, &'static str, String)>,
    weights: BTreeSet<(String, String)>,
    verdict: String,
}

fn by_record(record: &ProvenanceRecord) -> Said {
    let mut licences = BTreeSet::new();
    for model in record.models() {
        for (how, licence) in [("declared", &model.licence.declared), ("concluded", &model.licence.concluded)]
        {
            licences.extend(licence.clone().map(|licence| (model.id.clone(), how, licence)));
        }
    }
    Said {
        models: record.models().map(|model| model.id.clone()).collect(),
        licences,
        weights: record.weights().map(|file| (file.path.clone(), file.sha256.to_string())).collect(),
        verdict: record.gate.verdict.as_str().to_owned(),
    }
}

fn subjects(statement: &Value) -> BTreeSet<(String, String)> {
    let subjects = statement["subject"].as_array().expect("subjects");
    let pair = |subject: &Value| {
        let text = |value: &Value| value.as_str().expect("a string").to_owned();
        (text(&subject["name"]), text(&subject["digest"]["sha256"]))
    };
    subjects.iter().map(pair).collect()
}

fn by_slsa(record: &ProvenanceRecord) -> (Said, Value) {
    let statement = json(&view(record, "/provenance.intoto.jsonl"));
    let parameters = &statement["predicate"]["buildDefinition"]["externalParameters"];
    let ids = |key: &str| -> BTreeSet<String> {
        let ids = parameters[key].as_array().expect("ids");
        ids.iter().map(|id| id.as_str().expect("an id").to_owned()).collect()
    };
    let models: BTreeSet<String> = ids("teachers").union(&ids("ancestors")).cloned().collect();
    let mut licences = BTreeSet::new();
    let dependencies = statement["predicate"]["buildDefinition"]["resolvedDependencies"].as_array();
    for dependency in dependencies.expect("dependencies") {
        let name = dependency["name"].as_str().expect("a name").to_owned();
        for (how, key) in [("declared", "licenceDeclared"), ("concluded", "licenceConcluded")] {
            let licence = dependency["annotations"][key].as_str();
            if models.contains(&name) {
                licences.extend(licence.map(|licence| (name.clone(), how, licence.to_owned())));
            }
        }
    }
    let verdict = String::new();
    (Said { models, licences, weights: subjects(&statement), verdict }, statement)
}

fn by_gate(record: &ProvenanceRecord) -> Said {
    let text = view(record, "gate.intoto.jsonl");
    let lines: Vec<Value> = text.lines().map(json).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(subjects(&lines[0]), subjects(&lines[1]));
    let decision = &lines[1]["predicate"];
    let mut licences = BTreeSet::new();
    for model in decision["teachers"].as_array().expect("models") {
        for how in ["declared", "concluded"] {
            let licence = model["licence"][how].as_str();
            let id = model["id"].as_str().expect("an id").to_owned();
            licences.extend(licence.map(|licence| (id, how, licence.to_owned())));
        }
    }
    Said {
        models: strings(&decision["teachers"], "id").into_iter().collect(),
        licences,
        weights: subjects(&lines[1]),
        verdict: decision["verdict"].as_str().expect("a verdict").to_owned(),
    }
}

fn by_cyclonedx(record: &ProvenanceRecord) -> (Said, Value) {
    let bom = json(&view(record, "bom.cdx.json"));
    let components = bom["components"].as_array().expect("components");
    let mut licences = BTreeSet::new();
    let models = components.iter().filter(|component| component["type"] == "machine-learning-model");
    for model in models.clone() {
        for licence in model["licenses"].as_array().into_iter().flatten() {
            let of = |value: &Value| value.as_str().map(str::to_owned);
            let inner = &licence["license"];
            let name =
                of(&licence["expression"]).or(of(&inner["id"])).or(of(&inner["name"])).expect("a name");
            let how = of(&licence["acknowledgement"]).or(of(&inner["acknowledgement"])).expect("how");
            let how = if how == "declared" { "declared" } else { "concluded" };
            licences.insert((model["name"].as_str().expect("a name").to_owned(), how, name));
        }
    }
    let files = bom["metadata"]["component"]["components"].as_array().expect("files");
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let weights = files.iter().map(|file| (text(&file["name"]), text(&file["hashes"][0]["content"])));
    let is_weights = |(name, _): &(String, String)| name.ends_with(".gguf") || name.ends_with(".safetensors");
    let verdict = bom["properties"].as_array().expect("properties").iter();
    let verdict =
        verdict.clone().find(|property| property["name"] == "stillroom:verdict").expect("a verdict");
    let said = Said {
        models: models.map(|model| text(&model["name"])).collect(),
        licences,
        weights: weights.filter(is_weights).collect(),
        verdict: text(&verdict["value"]),
    };
    (said, bom)
}

fn by_spdx(record: &ProvenanceRecord) -> (Said, Value) {
    let document = json(&view(record, "bom.spdx3.json"));
    let graph = document["@graph"].as_array().expect("a graph");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let find = |id: &Value| graph.iter().find(|element| id.is_string() && element["spdxId"] == *id);
    let mut licences = BTreeSet::new();
    let is_model =
        |element: &Value| element["type"] == "ai_AIPackage" && element["name"] != document_name(graph);
    for relationship in graph.iter().filter(|element| element["type"] == "Relationship") {
        let how = match relationship["relationshipType"].as_str() {
            Some("hasDeclaredLicense") => "declared",
            Some("hasConcludedLicense") => "concluded",
            _ => continue,
        };
        let from = find(&relationship["from"]).expect("an element");
        if let (true, Some(licence)) = (is_model(from), find(&relationship["to"][0])) {
            let mut said = text(&licence["simplelicensing_licenseExpression"]);
            if let Some(words) = find(&licence["simplelicensing_customIdToUri"][0]["value"]) {
                said = text(&words["simplelicensing_licenseText"]);
            }
            licences.insert((text(&from["name"]), how, said));
        }
    }
    let files =
        graph.iter().filter(|e| e["type"] == "software_File" && e["software_primaryPurpose"] == "model");
    let weights = files.map(|file| (text(&file["name"]), text(&file["verifiedUsing"][0]["hashValue"])));
    let comment = graph.iter().find(|e| e["type"] == "SpdxDocument").map(|e| text(&e["comment"]));
    let verdict = comment.expect("a document").replace("Licence verdict of the run: ", "").replace('.', "");
    let models =
        graph.iter().filter(|element| is_model(element)).map(|element| text(&element["name"])).collect();
    let weights = weights.collect();
    (Said { models, licences, weights, verdict }, document)
}

fn document_name(graph: &[Value]) -> Value {
    graph.iter().find(|element| element["type"] == "SpdxDocument").expect("a document")["name"].clone()
}

/// Each view, read back, says what the record says.
fn check_agreement(record: &ProvenanceRecord) {
    let expected = by_record(record);
    let (slsa, _) = by_slsa(record);
    assert_eq!(Said { verdict: expected.verdict.clone(), ..slsa }, expected, "SLSA");
    assert_eq!(by_gate(record), expected, "gate");
    assert_eq!(by_cyclonedx(record).0, expected, "CycloneDX");
    assert_eq!(by_spdx(record).0, expected, "SPDX");
    for page in ["README.md", "eu_art53.md", "ab2013.md"] {
        let text = view(record, page);
        let verdict = &expected.verdict;
        assert!(
            text.contains(&format!("made: {verdict}.")) || text.contains(&format!("run: {verdict}.")),
            "{page}"
        );
        let named = if page == "README.md" { record.models().collect() } else { Vec::new() };
        for model in named {
            assert!(text.contains(&format!("| `{}` |", model.id)), "{page}: {}", model.id);
            let concluded = model.licence.concluded.as_deref().unwrap_or("not known");
            assert!(text.contains(concluded), "{page}: {concluded}");
        }
    }
    let eu = view(record, "eu_art53.md");
    for teacher in &record.teachers {
        assert!(eu.contains(&format!("Generating model: `{}`", teacher.id)), "{eu}");
    }
    for model in record.data.iter().flat_map(|data| &data.made_by) {
        assert!(view(record, "ab2013.md").contains(&format!("written by `{model}`")), "{model}");
    }
}

#[test]
fn no_two_views_disagree() {
    check_agreement(&of_outputs());
    check_agreement(&of_weights());
}

#[test]
fn every_view_follows_a_change_of_the_record() {
    let changes: [fn(&mut ProvenanceRecord); 7] = [
        |record| {
            record.teachers[0].id = "other:teacher".to_owned();
            record.data[1].made_by = vec!["other:teacher".to_owned()];
        },
        |record| record.teachers[0].licence.concluded = Some("MIT".to_owned()),
        |record| record.teachers[0].licence.declared = Some("words of their own".to_owned()),
        |record| record.teachers[0].licence.declared = None,
        |record| record.gate.verdict = Verdict::Allow,
        |record| record.files[2].sha256 = Digest::of(b"other weights"),
        |record| record.teachers.push(local("Qwen/Qwen3-1.7B")),
    ];
    for change in changes {
        let before = by_record(&of_outputs());
        let mut record = of_outputs();
        change(&mut record);
        assert_ne!(by_record(&record), before);
        check_agreement(&record);
    }
}

#[test]
fn every_view_changes_with_what_it_is_about() {
    let before = views_of(&of_outputs());
    let mut record = of_outputs();
    record.teachers[0].id = "other:teacher".to_owned();
    record.data[1].made_by = vec!["other:teacher".to_owned()];
    record.gate.verdict = Verdict::Allow;
    for (before, after) in before.iter().zip(views_of(&record)) {
        assert_ne!(before.text, after.text, "{}", before.path);
    }
}

#[test]
fn only_inherited_weights_make_an_ancestor() {
    let (_, bom) = by_cyclonedx(&of_outputs());
    assert!(bom["metadata"]["component"].get("pedigree").is_none());
    let depends = bom["dependencies"].as_array().expect("dependencies");
    let on =
        |reference: &str| depends.iter().find(|d| d["ref"] == reference).expect("one")["dependsOn"].clone();
    assert_eq!(on("student"), serde_json::json!(["data:stillroom:procedural-tasks", "data:tiny:traces"]));
    assert_eq!(on("data:tiny:traces")[0], "model:deepseek:deepseek-reasoner");
    let relations = |document: &Value| -> Vec<String> {
        let graph = document["@graph"].as_array().expect("a graph").clone();
        let relations = graph.iter().filter_map(|element| element["relationshipType"].as_str());
        relations.map(str::to_owned).collect()
    };
    let outputs = relations(&by_spdx(&of_outputs()).1);
    assert!(outputs.iter().any(|how| how == "generates") && outputs.iter().any(|how| how == "trainedOn"));
    assert!(!outputs.iter().any(|how| how == "descendantOf"));
    assert!(!view(&of_outputs(), "README.md").contains("base_model"));

    let (_, bom) = by_cyclonedx(&of_weights());
    assert_eq!(bom["metadata"]["component"]["pedigree"]["ancestors"][0]["name"], "Qwen/Qwen3-0.6B");
    assert!(relations(&by_spdx(&of_weights()).1).iter().any(|how| how == "descendantOf"));
    let card = view(&of_weights(), "README.md");
    assert!(card.contains("\nbase_model: Qwen/Qwen3-0.6B\nbase_model_relation: finetune\n"), "{card}");
    assert!(
        card.contains("license: other\nlicense_name: \"our own terms, version 2\"\nlicense_link: NOTICE\n"),
        "{card}"
    );

    // A path of somebody's machine is no name of a model.
    let mut record = of_weights();
    record.student.ancestors[0].id_is_path = true;
    assert!(!view(&record, "README.md").contains("base_model"));
}

#[test]
fn an_override_verifies_nothing() {
    let properties = |record: &ProvenanceRecord| {
        json(view(record, "gate.intoto.jsonl").lines().next().expect("a line"))["predicate"]["properties"]
            .clone()
    };
    let mut record = of_outputs();
    assert_eq!(properties(&record)[0], "STILLROOM_LICENCE_GATE_PASSED");
    record.gate.override_reason = Some("I say so".to_owned());
    assert_eq!(properties(&record), serde_json::json!([]));
    assert!(view(&record, "README.md").contains("opened with the reason: I say so"));
    record.gate.override_reason = None;
    record.gate.passes = false;
    assert_eq!(properties(&record), serde_json::json!([]));
}

#[test]
fn the_build_claims_no_more_than_a_level_one_builder_can() {
    let (_, statement) = by_slsa(&of_outputs());
    assert_eq!(statement["predicateType"], views::SLSA_TYPE);
    assert_eq!(statement["predicate"]["buildDefinition"]["buildType"], views::BUILD_TYPE);
    let text = statement.to_string();
    assert!(!text.contains("slsa_level") && !text.contains("SLSA_BUILD_LEVEL"), "{text}");
    for page in ["README.md", "eu_art53.md", "ab2013.md"] {
        assert!(!view(&of_outputs(), page).to_lowercase().contains("compliant"), "{page}");
    }
    // A digest of several files is never called a file's.
    let of_teacher =
        by_slsa(&of_weights()).1["predicate"]["buildDefinition"]["resolvedDependencies"][0].clone();
    assert_eq!(
        of_teacher["digest"].as_object().expect("digests").keys().collect::<Vec<_>>(),
        ["stillroomTreeSha256"]
    );
    assert_eq!(of_teacher["uri"], "pkg:huggingface/Qwen/Qwen3-0.6B@c1899de289a04d12100db370d81485cdf75e47ca");
}

/// What foreign cards, recipes and hosts might be called.
const HOSTILE: [&str; 8] = [
    "x\n---\nlicense: mit\nbase_model: evil/model\n---\n# You won",
    "</td></table><script>alert(1)</script><img src=x onerror=alert(1)>",
    "\u{1b}]52;c;aGk=\u{7}\u{1b}[2J\u{9b}31m\u{202e}dlrow\u{200b}\u{2028}",
    "[click](javascript:alert(1)) ![x](http://example.org/x.png) `code` | cell | <!-- ",
    "\"}, {\"name\": \"injected\", \"x\": \"\\",
    "Apache-2.0 AND (MIT\tOR \u{feff}",
    "../../etc/passwd#?&%00",
    "```\n# fenced\n```\n- item\n1. item\n> quote\n=====",
];

fn hostile(text: &str) -> ProvenanceRecord {
    let mut record = of_weights();
    record.release.name = text.to_owned();
    record.release.licence = Some(text.to_owned());
    record.recipe.name = text.to_owned();
    record.recipe.loss = text.to_owned();
    let mut teacher = served(text);
    teacher.licence.declared = Some(text.to_owned());
    teacher.licence.declared_in = text.to_owned();
    teacher.owner = Some(text.to_owned());
    teacher.revision = Some(text.to_owned());
    record.student.ancestors = vec![teacher.clone()];
    record.student.start = Start::Checkpoint;
    record.teachers = vec![teacher];
    record.data[1].id = text.to_owned();
    record.data[1].about = text.to_owned();
    record.data[1].made_by = vec![text.to_owned()];
    record.data[1].counts.dropped.insert(text.to_owned(), 3);
    record.evaluation.task = text.to_owned();
    record.evaluation.models[1].kl_to_teacher.reason = Some(text.to_owned());
    record.gate.rules = vec![rule(text, text)];
    record.gate.obligations[0].name = text.to_owned();
    record.gate.obligations[0].carried_out = Some(text.to_owned());
    record.gate.notices = vec![text.to_owned()];
    record.release.card.license_name = Some(text.to_owned());
    record.gate.override_reason = Some(text.to_owned());
    record
}

#[test]
fn foreign_strings_stay_strings_in_every_format() {
    let tame = views_of(&hostile("tame words"));
    for text in HOSTILE {
        for (view, tame) in views_of(&hostile(text)).iter().zip(&tame) {
            let path = view.path;
            let active =
                |c: char| c.is_control() && c != '\n' || "\u{202e}\u{200b}\u{2028}\u{feff}".contains(c);
            assert!(!view.text.contains(active), "{path}: {text:?}");
            assert_eq!(view.text.lines().count(), tame.text.lines().count(), "{path}: {text:?}");
            if !path.ends_with(".md") {
                continue;
            }
            assert!(!view.text.contains(['<', '>']), "{path}: {text:?}");
            // Rows keep their cells, and nobody's link or picture appears.
            let cells = |text: &str| {
                let body = text
                    .rsplit(
                        "
---
",
                    )
                    .next()
                    .unwrap_or(text);
                body.lines().map(|line| line.replace("\\|", "").matches('|').count()).collect::<Vec<_>>()
            };
            assert_eq!(cells(&view.text), cells(&tame.text), "{path}: {text:?}");
            let body = view.text.rsplit("\n---\n").next().unwrap_or(&view.text);
            let links = outside_code(body).replace("\\]", "").matches("](").count();
            assert_eq!(links, usize::from(path == "README.md"), "{path}: {text:?}");
            let heads = |text: &str| text.lines().filter(|line| line.starts_with('#')).count();
            assert_eq!(heads(&view.text), heads(&tame.text), "{path}: {text:?}");
        }
        let record = hostile(text);
        let read = ProvenanceRecord::from_bytes(&record.to_bytes()).expect("a record");
        assert_eq!(read, record);
        assert_eq!(by_gate(&record), by_record(&record), "{text:?}");
        let card = view(&record, "README.md");
        let front = card.split("---\n").nth(1).expect("front matter");
        assert_eq!(front.lines().filter(|line| line.starts_with("license")).count(), 3, "{front}");
    }
}

fn outside_code(text: &str) -> String {
    text.split('`').step_by(2).collect()
}

#[test]
fn very_long_names_do_not_make_very_long_pages() {
    let record = hostile(&"long ".repeat(20_000));
    for page in ["README.md", "eu_art53.md", "ab2013.md"] {
        assert!(view(&record, page).len() < 50_000, "{page}");
    }
}

#[test]
fn the_same_record_gives_the_same_bytes_and_reads_back_as_itself() {
    for record in [of_outputs(), of_weights()] {
        let read = ProvenanceRecord::from_bytes(&record.to_bytes()).expect("a record");
        assert_eq!(read, record);
        assert_eq!(views_of(&read), views_of(&record));
    }
}

#[test]
fn records_of_another_version_or_size_are_refused() {
    let mut record = of_outputs();
    record.record_version += 1;
    let refused = ProvenanceRecord::from_bytes(&record.to_bytes()).expect_err("another version");
    assert_eq!(refused, RecordFault::Version { found: 2, known: 1 });
    let refused = ProvenanceRecord::from_bytes(b"{\"record_version\": 9, \"of\": \"the future\"}");
    assert_eq!(refused, Err(RecordFault::Version { found: 9, known: 1 }));
    let refused = ProvenanceRecord::from_bytes(b"{\"record_version\": 1").expect_err("the end is missing");
    assert!(matches!(refused, RecordFault::Truncated { .. }), "{refused}");
    let long = vec![b' '; RECORD_BYTES_MAX as usize + 1];
    let refused = ProvenanceRecord::from_bytes(&long).expect_err("too long");
    assert!(matches!(refused, RecordFault::TooLarge { .. }), "{refused}");
    let text = String::from_utf8(of_outputs().to_bytes()).expect("UTF-8");
    let more = text.replacen('{', "{\"more\": 1,", 1);
    let refused = ProvenanceRecord::from_bytes(more.as_bytes()).expect_err("an unknown field");
    assert!(refused.to_string().contains("more"), "{refused}");
}

#[test]
fn each_statement_is_signed_by_itself() {
    let dir = tempfile::tempdir().expect("a directory");
    let signer = Signer::create(&dir.path().join("key"), None).expect("a key");
    let signed = views::all(&of_outputs(), Some(&signer)).expect("views");
    for (plain, signed) in views_of(&of_outputs()).into_iter().zip(signed) {
        if !plain.path.ends_with(".jsonl") {
            assert_eq!(plain, signed);
            continue;
        }
        assert_eq!(plain.text.lines().count(), signed.text.lines().count());
        for (statement, line) in plain.text.lines().zip(signed.text.lines()) {
            let envelope = Envelope::from_bytes(line.as_bytes()).expect("an envelope");
            assert_eq!(envelope.payload_type(), IN_TOTO);
            assert_eq!(envelope.verify(signer.public_key()).expect("signed"), statement.as_bytes());
        }
    }
}

#[test]
fn openness_is_what_the_release_carries() {
    let mut record = of_outputs();
    let found = |record: &ProvenanceRecord, name: &str| {
        let openness = views::openness(record);
        openness.components.into_iter().find(|component| component.name == name).expect("a component").found
    };
    assert_eq!(views::openness(&record).components.len(), 17);
    assert_eq!(views::openness(&record).level, Level::Unclassified);
    assert!(found(&record, "technical report").is_err());
    record.files.push(sample::file("report.html"));
    assert_eq!(views::openness(&record).level, Level::OpenModel);
    assert!(view(&record, "README.md").contains("class III, open model"));
    assert!(found(&record, "training code").is_err());
    record.release.licence = Some("LicenseRef-scancode-llama-3.1-license-2024".to_owned());
    assert_eq!(views::openness(&record).level, Level::Unclassified);
    assert!(found(&record, "final model parameters").is_err());
    record.release.licence = Some("MIT".to_owned());
    record.release.trial = true;
    assert!(found(&record, "evaluation results").is_err());
}

#[test]
fn a_teacher_that_only_thinks_is_still_named() {
    let mut record = of_outputs();
    record.teachers[0].roles = vec![Role::Scorer];
    record.data.truncate(1);
    check_agreement(&record);
    let (_, bom) = by_cyclonedx(&record);
    assert_eq!(bom["dependencies"][0]["dependsOn"][1], "model:deepseek:deepseek-reasoner");
}

fn about(teacher: &str, base: Option<&str>, student: &str) -> Decision {
    let question = Question {
        student_base: base.map(Subject::id),
        student_name: Some(student.to_owned()),
        ..Question::about(Subject::id(teacher))
    };
    let accepted = decide(&question).conditions;
    decide(&Question { accepted, ..question })
}

fn card_of(decision: &Decision, own: Option<&str>) -> String {
    let mut record = of_outputs();
    record.gate = GateFacts::new(decision, record.gate.decided.clone());
    record.release.licence = own.map(str::to_owned);
    record.release.card = decision.card_licence(own);
    view(&record, "README.md")
}

/// The licence lines of a card's front matter.
fn front_matter(card: &str) -> String {
    let lines = card.lines().skip(1).take_while(|line| line.starts_with("license"));
    lines.flat_map(|line| [line, "\n"]).collect()
}

#[test]
fn the_card_names_the_licences_that_a_student_comes_under() {
    let lines = |teacher: &str, base: Option<&str>, student: &str, own: Option<&str>| {
        front_matter(&card_of(&about(teacher, base, student), own))
    };
    let (r1, llama, gemma) = ("deepseek-ai/DeepSeek-R1", "meta-llama/Llama-3.1-8B", "google/gemma-2-9b-it");
    assert_eq!(lines(r1, None, "x", Some("Apache-2.0")), "license: apache-2.0\n");
    assert_eq!(lines(r1, Some(llama), "Llama-x", None), "license: llama3.1\n");
    assert_eq!(
        lines(r1, Some(llama), "Llama-x", Some("MIT")),
        "license: other\nlicense_name: mit and llama3.1\nlicense_link: NOTICE\n"
    );
    assert_eq!(lines(gemma, None, "x", None), "license: gemma\n");
    assert_eq!(
        lines(gemma, None, "x", Some("MIT")),
        "license: other\nlicense_name: mit and gemma\nlicense_link: NOTICE\n"
    );
    let none = lines(r1, None, "x", None);
    assert_eq!(none, "license: other\nlicense_name: not-stated\nlicense_link: NOTICE\n");
    assert!(lines(r1, None, "x", Some("a: \"b\"\n- c")).contains(r#"license_name: "a: \"b\"\n- c""#));
}

#[test]
fn prescribed_words_and_who_does_what_stand_on_the_card() {
    let decision = about("meta-llama/Llama-3.1-8B-Instruct", None, "Llama-tiny");
    let card = card_of(&decision, None);
    for part in [
        "**Built with Llama**",
        "**Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta",
        "clause 1.b.i",
        "carried out: the student is called `Llama-tiny`",
        "yours to do: put a copy of LicenseRef-scancode-llama-3.1-license-2024",
    ] {
        assert!(card.contains(part), "{part} in\n{card}");
    }
    assert_eq!(card.matches(NOT_ADVICE).count(), 1);
}

/// Golden documents, byte for byte; `STILLROOM_BLESS=1` writes them anew.
#[test]
fn documents_are_as_they_were() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/views");
    for (name, record) in [("of_outputs", of_outputs()), ("of_weights", of_weights())] {
        let mut files = vec![("provenance/record.json".to_owned(), record.to_bytes())];
        files
            .extend(views_of(&record).into_iter().map(|view| (view.path.to_owned(), view.text.into_bytes())));
        for (path, bytes) in files {
            let golden = root.join(name).join(path);
            if std::env::var_os("STILLROOM_BLESS").is_some() {
                std::fs::create_dir_all(golden.parent().expect("a folder")).expect("a folder");
                std::fs::write(&golden, &bytes).expect("a golden file is written");
            }
            let expected = std::fs::read(&golden).expect("a golden file");
            assert_eq!(
                String::from_utf8_lossy(&bytes),
                String::from_utf8_lossy(&expected),
                "{}",
                golden.display()
            );
        }
    }
}

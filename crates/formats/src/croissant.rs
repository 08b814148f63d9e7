//! Croissant: what a data set is, in the JSON-LD that catalogues read (version 1.1, <http://mlcommons.org/croissant/1.1>, with the
//! vocabulary for responsible AI, 1.0). Where the text came from is said in PROV-O, as 1.1 asks.

use serde_json::{Value, json};
use stillroom_core::Digest;

/// A data set of trace files.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceSet {
    pub name: String,
    pub description: String,
    /// An SPDX identifier or other words; none where nobody said.
    pub licence: Option<String>,
    /// The data set that was answered.
    pub prompts: String,
    /// Who wrote the text.
    pub teachers: Vec<String>,
    pub files: Vec<TraceFile>,
}

/// One file of it, beside the description.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceFile {
    /// `train`, `validation`.
    pub split: String,
    /// Relative to the description.
    pub path: String,
    pub digest: Digest,
    pub bytes: u64,
}

/// Name, type and meaning of each column of a trace file.
const COLUMNS: [(&str, &str, &str); 10] = [
    ("id", "sc:Text", "Id of the prompt."),
    ("sample", "sc:Integer", "Which of the replies to the prompt, from 0."),
    ("messages", "sc:Text", "The conversation that was answered, as JSON: a list of `role` and `content`."),
    ("reasoning_content", "sc:Text", "What the teacher thought before it answered; may be missing."),
    ("content", "sc:Text", "The teacher's answer."),
    ("finish_reason", "sc:Text", "`stop`, or `length` where the reply was cut."),
    ("prompt_tokens", "sc:Integer", "Tokens of the prompt, as the teacher counts them."),
    ("completion_tokens", "sc:Integer", "Tokens of the reply, as the teacher counts them."),
    ("teacher", "sc:Text", "The model that wrote it."),
    ("usd", "sc:Float", "What the reply cost, in US dollars."),
];

/// The description as JSON-LD.
pub fn describe(set: &TraceSet) -> Value {
    let mut described = json!({
        "@context": context(),
        "@type": "sc:Dataset",
        "conformsTo": ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"],
        "name": set.name,
        "description": set.description,
        "isBasedOn": set.teachers,
        "rai:dataCollection": "Synthetic: prompts were answered by the models named in `isBasedOn`.",
        "rai:dataCollectionType": "Synthetic data generation",
        "rai:machineAnnotationTools": set.teachers,
        "prov:wasDerivedFrom": { "@type": "prov:Entity", "name": set.prompts, "description": "The prompts." },
        "prov:wasGeneratedBy": activities(&set.teachers),
        "distribution": set.files.iter().map(file_object).collect::<Vec<_>>(),
        "recordSet": set.files.iter().map(record_set).collect::<Vec<_>>(),
    });
    if let Some(licence) = &set.licence {
        described["license"] = json!(licence_address(licence));
    }
    described
}

/// How the data set came about: the teachers answered, and curation chose.
fn activities(teachers: &[String]) -> Value {
    let agent = |name: &String| json!({ "@type": "prov:SoftwareAgent", "name": name });
    json!([
        {
            "@type": "prov:Activity",
            "name": "teacher calls",
            "description": "Models answered the prompts.",
            "prov:wasAssociatedWith": teachers.iter().map(agent).collect::<Vec<_>>(),
        },
        {
            "@type": "prov:Activity",
            "name": "curation",
            "description": "Replies were kept or left out by rules.",
            "prov:wasAssociatedWith": [agent(&"stillroom".to_owned())],
        },
    ])
}

/// Catalogues expect an address where there is one.
fn licence_address(licence: &str) -> String {
    let is_id = licence.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+'));
    if is_id { format!("https://spdx.org/licenses/{licence}.html") } else { licence.to_owned() }
}

fn file_object(file: &TraceFile) -> Value {
    json!({
        "@type": "cr:FileObject",
        "@id": file_id(file),
        "name": file.path,
        "contentUrl": file.path,
        "contentSize": format!("{} B", file.bytes),
        "encodingFormat": "application/x-parquet",
        "sha256": file.digest.to_string(),
    })
}

fn file_id(file: &TraceFile) -> String {
    format!("{}-file", file.split)
}

fn record_set(file: &TraceFile) -> Value {
    let field = |&(column, kind, meaning): &(&str, &str, &str)| {
        json!({
            "@type": "cr:Field",
            "@id": format!("{}/{column}", file.split),
            "name": column,
            "description": meaning,
            "dataType": kind,
            "source": { "fileObject": { "@id": file_id(file) }, "extract": { "column": column } },
        })
    };
    json!({
        "@type": "cr:RecordSet",
        "@id": file.split,
        "name": file.split,
        "description": format!("Traces for {}.", file.split),
        "field": COLUMNS.iter().map(field).collect::<Vec<_>>(),
    })
}

/// Terms of the standard's own vocabulary.
const TERMS: [&str; 32] = [
    "arrayShape",
    "citeAs",
    "column",
    "containedIn",
    "dataBiases",
    "dataCollection",
    "equivalentProperty",
    "extract",
    "field",
    "fileObject",
    "fileProperty",
    "fileSet",
    "format",
    "includes",
    "isArray",
    "isLiveDataset",
    "jsonPath",
    "key",
    "md5",
    "parentField",
    "path",
    "personalSensitiveInformation",
    "recordSet",
    "references",
    "regex",
    "repeated",
    "replace",
    "samplingRate",
    "separator",
    "source",
    "subField",
    "transform",
];

/// The standard's own context.
fn context() -> Value {
    let mut context = json!({
        "@language": "en",
        "@vocab": "https://schema.org/",
        "conformsTo": "dct:conformsTo",
        "cr": "http://mlcommons.org/croissant/",
        "dct": "http://purl.org/dc/terms/",
        "prov": "http://www.w3.org/ns/prov#",
        "rai": "http://mlcommons.org/croissant/RAI/",
        "sc": "https://schema.org/",
        "data": { "@id": "cr:data", "@type": "@json" },
        "dataType": { "@id": "cr:dataType", "@type": "@vocab" },
        "description": { "@container": "@language" },
        "examples": { "@id": "cr:examples", "@type": "@json" },
        "name": { "@container": "@language" },
    });
    for term in TERMS {
        context[term] = json!(format!("cr:{term}"));
    }
    context
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parquet_rows;
    use stillroom_core::{FinishReason, Trace};

    #[test]
    fn every_column_of_a_trace_file_is_described() {
        let trace = Trace {
            id: "a".into(),
            sample: 0,
            messages: Vec::new(),
            reasoning_content: None,
            content: "b".into(),
            finish_reason: FinishReason::Stop,
            prompt_tokens: 1,
            completion_tokens: 1,
            teacher: "t".into(),
            usd: 0.0,
        };
        let fields = serde_json::to_value(&trace).expect("a trace is JSON");
        let fields: Vec<&String> = fields.as_object().expect("an object").keys().collect();
        assert_eq!(fields, COLUMNS.map(|(name, ..)| name));
        let mut bytes = Vec::new();
        parquet_rows::write_traces(&mut bytes, &[trace]).expect("a file");
        for (column, ..) in COLUMNS {
            assert!(bytes.windows(column.len()).any(|w| w == column.as_bytes()), "{column}");
        }
    }
}

//! Croissant: what a data set is, in the JSON-LD that catalogues read (version 1.0, <http://mlcommons.org/croissant/1.0>).

use serde_json::{Value, json};
use stillroom_core::Digest;

/// A data set of trace files.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceSet {
    pub name: String,
    pub description: String,
    /// An SPDX identifier or other words; none where nobody said.
    pub licence: Option<String>,
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
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": set.name,
        "description": set.description,
        "isBasedOn": set.teachers,
        "rai:dataCollection": "Synthetic: prompts were answered by the models named in `isBasedOn`.",
        "rai:dataCollectionType": "Synthetic data generation",
        "distribution": set.files.iter().map(file_object).collect::<Vec<_>>(),
        "recordSet": set.files.iter().map(record_set).collect::<Vec<_>>(),
    });
    if let Some(licence) = &set.licence {
        described["license"] = json!(licence_address(licence));
    }
    described
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

/// The standard's own context.
fn context() -> Value {
    json!({
        "@language": "en",
        "@vocab": "https://schema.org/",
        "citeAs": "cr:citeAs",
        "column": "cr:column",
        "conformsTo": "dct:conformsTo",
        "cr": "http://mlcommons.org/croissant/",
        "data": { "@id": "cr:data", "@type": "@json" },
        "dataBiases": "cr:dataBiases",
        "dataCollection": "cr:dataCollection",
        "dataType": { "@id": "cr:dataType", "@type": "@vocab" },
        "dct": "http://purl.org/dc/terms/",
        "equivalentProperty": "cr:equivalentProperty",
        "examples": { "@id": "cr:examples", "@type": "@json" },
        "extract": "cr:extract",
        "field": "cr:field",
        "fileObject": "cr:fileObject",
        "fileProperty": "cr:fileProperty",
        "fileSet": "cr:fileSet",
        "format": "cr:format",
        "includes": "cr:includes",
        "isLiveDataset": "cr:isLiveDataset",
        "jsonPath": "cr:jsonPath",
        "key": "cr:key",
        "md5": "cr:md5",
        "parentField": "cr:parentField",
        "path": "cr:path",
        "personalSensitiveInformation": "cr:personalSensitiveInformation",
        "rai": "http://mlcommons.org/croissant/RAI/",
        "recordSet": "cr:recordSet",
        "references": "cr:references",
        "regex": "cr:regex",
        "repeated": "cr:repeated",
        "replace": "cr:replace",
        "samplingRate": "cr:samplingRate",
        "sc": "https://schema.org/",
        "separator": "cr:separator",
        "source": "cr:source",
        "subField": "cr:subField",
        "transform": "cr:transform",
    })
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

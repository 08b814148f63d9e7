//! Where a row comes from, what its source allows, and rows that nobody may learn from.
//!
//! A row may say so itself, in these fields:
//!
//! | field | holds |
//! |---|---|
//! | `source` | a name; without one, the data file's name |
//! | `licence` or `license` | an SPDX identifier |
//! | `robots` | a list of directives as in a robots meta tag; `noai` and `noml` are an opt-out |
//! | `tdm`, `tdm_reservation` or `tdm-reservation` | a reservation of text and data mining (Directive (EU) 2019/790, article 4(3); the TDM Reservation Protocol's values); anything but 0, false, "no", "none" and the empty text is an opt-out |
//!
//! Or a recipe says it of a source as a whole. An opt-out in either place counts; a row's own licence comes before its
//! source's.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Longest name of a source or licence that is shown.
const NAME_CHARS_MAX: usize = 80;

/// What a row says about where it comes from, and of which class it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    pub source: Option<String>,
    pub licence: Option<String>,
    /// The field that opts out, as it stands in the row.
    pub opt_out: Option<String>,
    /// The value of the field that was asked for as class; see [`Files::class_field`](crate::prompts::Files).
    pub class: Option<String>,
}

impl Origin {
    /// Reads the fields of a row; those of another type than expected say nothing, except a reservation.
    pub fn of(row: &Map<String, Value>) -> Origin {
        let text =
            |name: &str| row.get(name).and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty());
        let licence = text("licence").or_else(|| text("license"));
        let robots = text("robots").filter(|directives| {
            let mut directives = directives.split([',', ' ']).map(str::trim);
            directives.any(|directive| ["noai", "noml"].iter().any(|no| directive.eq_ignore_ascii_case(no)))
        });
        let reserved = ["tdm", "tdm_reservation", "tdm-reservation"].into_iter().find_map(|name| {
            row.get(name).filter(|value| reserves(value)).map(|value| format!("{name}: {value}"))
        });
        Origin {
            source: text("source").map(str::to_owned),
            licence: licence.map(str::to_owned),
            opt_out: robots.map(|directives| format!("robots: {directives}")).or(reserved),
            class: None,
        }
    }
}

fn reserves(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => {
            !["", "0", "no", "none", "false"].contains(&text.trim().to_lowercase().as_str())
        }
        _ => true,
    }
}

/// What a recipe says about a source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataSource {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub opt_out: bool,
}

/// Which sources may be learned from; by default all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceRules {
    /// SPDX identifiers; where there is any, rows under another licence or none are dropped.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_licences: Vec<String>,
    /// Drops rows that opt out of being learned from.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub respect_opt_outs: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, DataSource>,
}

impl SourceRules {
    /// Whether every row passes.
    pub fn allow_all(&self) -> bool {
        self.allowed_licences.is_empty() && !self.respect_opt_outs
    }

    /// Why a row of the data file `file` may not be learned from, if it may not.
    pub fn refuse(&self, origin: &Origin, file: &str) -> Option<String> {
        let name = origin.source.as_deref().unwrap_or(file);
        let declared = self.sources.get(name);
        let shown = clipped(name);
        if self.respect_opt_outs {
            if let Some(field) = &origin.opt_out {
                return Some(format!("the row opts out: {}", clipped(field)));
            }
            if declared.is_some_and(|source| source.opt_out) {
                return Some(format!("source `{shown}` opts out"));
            }
        }
        if self.allowed_licences.is_empty() {
            return None;
        }
        let licence = origin.licence.as_ref().or_else(|| declared.and_then(|source| source.licence.as_ref()));
        match licence {
            None => Some(format!("source `{shown}` names no licence")),
            Some(licence)
                if self.allowed_licences.iter().any(|allowed| allowed.eq_ignore_ascii_case(licence)) =>
            {
                None
            }
            Some(licence) => Some(format!("licence `{}` is not allowed", clipped(licence))),
        }
    }
}

fn clipped(text: &str) -> String {
    text.chars().take(NAME_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn origin(row: Value) -> Origin {
        Origin::of(row.as_object().expect("an object"))
    }

    #[test]
    fn rows_opt_out_in_the_ways_of_the_web() {
        for row in [
            json!({"robots": "index, noai, noimageai"}),
            json!({"robots": "NOML"}),
            json!({"tdm": 1}),
            json!({"tdm": "reserved"}),
            json!({"tdm_reservation": true}),
            json!({"tdm-reservation": "1"}),
            json!({"tdm": {"policy": "https://example.org"}}),
        ] {
            assert!(origin(row.clone()).opt_out.is_some(), "{row}");
        }
        for row in [
            json!({}),
            json!({"robots": "noindex, noimageai"}),
            json!({"robots": 7}),
            json!({"tdm": 0, "tdm_reservation": "0"}),
            json!({"tdm": "none", "tdm-reservation": null}),
        ] {
            assert_eq!(origin(row.clone()).opt_out, None, "{row}");
        }
    }

    #[test]
    fn licences_are_of_the_row_or_of_its_source() {
        let source = |licence: &str| DataSource { licence: Some(licence.into()), opt_out: false };
        let rules = SourceRules {
            allowed_licences: vec!["MIT".into(), "CC-BY-4.0".into()],
            sources: [("forum".into(), source("cc-by-4.0")), ("rows.jsonl".into(), source("GPL-3.0-only"))]
                .into(),
            ..SourceRules::default()
        };
        let refused = |row: Value| rules.refuse(&origin(row), "rows.jsonl");
        assert_eq!(refused(json!({"license": "mit"})), None);
        assert_eq!(refused(json!({"source": "forum"})), None);
        assert_eq!(refused(json!({"source": "forum", "licence": "GPL-3.0-only"})), refused(json!({})));
        assert_eq!(refused(json!({})).as_deref(), Some("licence `GPL-3.0-only` is not allowed"));
        assert_eq!(refused(json!({"source": "x"})).as_deref(), Some("source `x` names no licence"));
        assert_eq!(
            refused(json!({"source": "x", "tdm": 1, "licence": "MIT"})),
            None,
            "nobody asked about that"
        );
    }

    #[test]
    fn an_opt_out_counts_wherever_it_stands_and_only_where_it_is_asked_for() {
        let no = DataSource { licence: None, opt_out: true };
        let rules = SourceRules {
            respect_opt_outs: true,
            sources: [("forum".into(), no)].into(),
            ..SourceRules::default()
        };
        let refused = |row: Value| rules.refuse(&origin(row), "rows.jsonl");
        assert_eq!(refused(json!({"source": "forum"})).as_deref(), Some("source `forum` opts out"));
        assert_eq!(refused(json!({"tdm": 1})).as_deref(), Some("the row opts out: tdm: 1"));
        assert_eq!(refused(json!({"source": "elsewhere"})), None);
        assert!(!rules.allow_all() && SourceRules::default().allow_all());
        assert_eq!(SourceRules::default().refuse(&origin(json!({"tdm": 1})), "f"), None);
    }
}

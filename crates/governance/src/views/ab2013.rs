//! A draft of the documentation that California's AB 2013 asks for (Civil Code § 3111), item by item. Facts come from the
//! record; what it does not know is left to whoever publishes.

use std::fmt::Write as _;

use super::card;
use crate::record::{DataFacts, DataKind, Licences, ProvenanceRecord};
use crate::text::{code, markdown, prose};

const TO_FILL: &str = "*to be filled in by the developer*";

pub(super) fn draft(record: &ProvenanceRecord) -> String {
    let mut draft = format!(
        "# Training data documentation: {}\n\n**A draft for counsel.** Generated from `record.json`; whether the duty applies, and whether this meets it, is not for a \
         program to say. To be done again after a substantial modification. Lines marked {TO_FILL} are not on record.\n\n",
        markdown(&record.release.name)
    );
    if record.release.trial {
        draft.push_str("**The model is a trial, cut short on purpose.**\n\n");
    }
    if !record.student.ancestors.is_empty() {
        let ancestors: Vec<String> = record.student.ancestors.iter().map(|model| code(&model.id)).collect();
        let _ = writeln!(
            draft,
            "The weights began as {} ({}); what those were trained on is for their developers' documentation.\n",
            record.student.start.describe(),
            ancestors.join(", ")
        );
    }
    for data in &record.data {
        data_set(&mut draft, record, data);
    }
    if record.data.is_empty() {
        draft.push_str("No data set is on record.\n\n");
    }
    let _ = writeln!(draft, "Licence verdict of the run: {}.", record.gate.verdict.as_str());
    draft
}

fn data_set(draft: &mut String, record: &ProvenanceRecord, data: &DataFacts) {
    let _ = writeln!(draft, "## {}\n\n| item | answer |\n|---|---|", code(&data.id));
    let owner = match data.kind {
        DataKind::Procedural => "made by a procedure of the program".to_owned(),
        DataKind::Given => TO_FILL.to_owned(),
        DataKind::Synthetic => writers(record, data),
    };
    let terms = match data.kind {
        DataKind::Procedural => "no text of anybody's is in it".to_owned(),
        DataKind::Given | DataKind::Synthetic => {
            format!("{}; whether works or marks of others are in it: {TO_FILL}", licences(&data.licence))
        }
    };
    let bought = match data.kind {
        DataKind::Given => TO_FILL.to_owned(),
        DataKind::Procedural => "no".to_owned(),
        DataKind::Synthetic => match record.costs.teacher_usd.value {
            Some(usd) if usd > 0.0 => {
                format!("answers were paid for: {} US dollars", super::names::number(usd))
            }
            Some(_) => "nothing was paid".to_owned(),
            None => "not known".to_owned(),
        },
    };
    let collected = match data.kind {
        DataKind::Given => TO_FILL.to_owned(),
        DataKind::Procedural | DataKind::Synthetic => {
            format!("{} to {}; not ongoing", markdown(&record.time.started), markdown(&record.time.finished))
        }
    };
    let synthetic = if data.kind == DataKind::Synthetic { "yes, this data set" } else { "no" };
    let personal = format!("{}; whether any is left: {TO_FILL}", markdown(&data.personal_data));
    let cleaning = cleaning(data);
    let rows = format!("{}; text", card::rows(&data.counts));
    let purpose = format!("{} It is what the model learns from or is measured on.", prose(&data.about));
    let items = [
        ("sources or owners", owner),
        ("how it furthers the purpose of the model", purpose),
        ("number of data points", rows),
        ("types of data points", "conversations or texts; labels are the text itself".to_owned()),
        ("copyright, trademark, patent, or public domain", terms),
        ("purchased or licensed", bought),
        ("personal information (§ 1798.140)", personal),
        ("aggregate consumer information (§ 1798.140)", TO_FILL.to_owned()),
        ("cleaning, processing or other modification, and why", cleaning),
        ("time of collection", collected),
        ("first used in development", markdown(&record.time.started)),
        ("synthetic data generation", synthetic.to_owned()),
    ];
    for (item, answer) in items {
        let _ = writeln!(draft, "| {item} | {answer} |");
    }
    draft.push('\n');
}

fn writers(record: &ProvenanceRecord, data: &DataFacts) -> String {
    let writer = |id: &String| match record.models().find(|model| model.id == *id) {
        Some(model) => format!("{} ({})", code(id), markdown(&model.route.describe())),
        None => code(id),
    };
    format!("written by {}", data.made_by.iter().map(writer).collect::<Vec<_>>().join(", "))
}

fn licences(licence: &Licences) -> String {
    let said = |licence: Option<&str>| licence.map_or("not known".to_owned(), code);
    format!(
        "licence declared: {}, concluded: {}",
        said(licence.declared.as_deref()),
        said(licence.concluded.as_deref())
    )
}

fn cleaning(data: &DataFacts) -> String {
    let dropped = data.counts.dropped.iter().map(|(reason, n)| format!("{} {n}", markdown(reason)));
    let dropped: Vec<String> = dropped.collect();
    match dropped.is_empty() {
        true => "no row was left out".to_owned(),
        false => format!("rows left out, by reason: {}", dropped.join(", ")),
    }
}

//! Rules, rows and files in words, for a person at a terminal.

use std::fmt::Write as _;

use crate::decision::Rule;
use crate::licence_text::Identified;
use crate::obligations::Obligation;
use crate::register::{Grant, Register, Row};
use crate::subject::ModelEvidence;

impl Register {
    /// One row, with what its licences ask for by name.
    pub fn describe(&self, row: &Row) -> String {
        let mut text = String::new();
        wrap(&mut text, "", &format!("{} ({}, {})", row.release, row.family, row.release_date));
        if let Some(users) = self.users().filter(|_| row.users) {
            wrap(&mut text, "  ", &format!("from your register {}", users.name()));
        }
        let mut field = |name: &str, value: &str| wrap(&mut text, "  ", &format!("{name}: {value}"));
        field("licence", &format!("{} (version {})", row.licence, row.licence_version));
        field("may outputs train other models", row.outputs.as_str());
        field("may weights be changed and passed on", row.weights.as_str());
        field("commercial use", row.commercial.as_str());
        field("conditions", &row.conditions);
        field("clause", &row.evidence_clause);
        field("evidence", &format!("{} ({}: {})", row.evidence_url, row.grade.as_str(), row.checked));
        if !row.built_on.is_empty() {
            field("built on", &row.built_on.join(", "));
        }
        for part in row.licence_parts() {
            let Some(terms) = self.terms(part) else {
                let _ = writeln!(text, "\n{part}: nobody has read for this program what it asks for");
                continue;
            };
            let _ = writeln!(text, "\n{part} asks for");
            let also = row.also.iter().filter(|name| !terms.outputs_oblige.contains(name));
            for name in terms.outputs_oblige.iter().chain(also) {
                let means = self.condition(name).map_or("", |condition| &condition.means);
                wrap(&mut text, "  ", &format!("{name}: {means}"));
            }
            for name in terms.weights_oblige.iter().filter(|name| !terms.outputs_oblige.contains(name)) {
                let means = self.condition(name).map_or("", |condition| &condition.means);
                wrap(&mut text, "  ", &format!("{name} (for weights): {means}"));
            }
        }
        text
    }
}

impl ModelEvidence {
    /// What a model's own files say about it.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        wrap(&mut text, "", &self.place);
        if self.files.is_empty() {
            wrap(&mut text, "  ", "licence file: none");
        }
        for file in &self.files {
            let what = match &file.text {
                Identified::As { licence } => format!("is {licence}"),
                Identified::Resembles { licence, percent, differs } => {
                    format!("is {percent} % like {licence} and is not it: {differs}")
                }
                Identified::Unknown => "has a text that nobody knows".to_owned(),
            };
            wrap(&mut text, "  ", &format!("licence file: {} {what} (SHA-256 {})", file.name, file.digest));
        }
        let mut hints = |name: &str, values: &[String]| {
            if !values.is_empty() {
                wrap(&mut text, "  ", &format!("{name}: {}", values.join(", ")));
            }
        };
        hints("calls itself", &self.claims);
        hints("built on, by its card", &self.bases);
        hints("learned from, by its card", &self.datasets);
        hints("licence tag of its card, a hint", self.tag.as_slice());
        text
    }
}

impl Grant {
    /// The word used in the register.
    pub fn as_str(self) -> &'static str {
        match self {
            Grant::Yes => "yes",
            Grant::Conditional => "conditional",
            Grant::No => "no",
            Grant::Unclear => "unclear",
        }
    }
}

/// One statement: whose, what it answers, under which licence and clause, and where that was read.
pub(crate) fn render_rule(text: &mut String, rule: &Rule) {
    let release = if rule.release == rule.id { String::new() } else { format!(" ({})", rule.release) };
    wrap(text, "  ", &format!("{}: {}{release}", rule.role.title(), rule.id));
    let licence = if rule.licence.is_empty() { "not known" } else { &rule.licence };
    wrap(text, "    ", &format!("{}, licence {licence}", rule.verdict.as_str()));
    if !rule.clause.is_empty() {
        wrap(text, "    ", &format!("clause: {}", rule.clause));
    }
    wrap(text, "    ", &format!("says: {}", rule.says));
    if !rule.evidence.is_empty() {
        let whose =
            rule.users_register.as_ref().map_or(String::new(), |name| format!("your register {name}; "));
        let (grade, checked) = (rule.grade.as_str(), &rule.checked);
        wrap(text, "    ", &format!("evidence: {} ({whose}{grade}: {checked})", rule.evidence));
    }
}

pub(crate) fn render_obligation(text: &mut String, mark: &str, obligation: &Obligation) {
    wrap(text, "  ", &format!("{mark}{}: {}", obligation.name, obligation.means));
    if let Some(carried_out) = &obligation.carried_out {
        wrap(text, "      ", &format!("carried out: {carried_out}"));
    }
    // What is left is often what the condition says itself.
    if let Some(left) = obligation.yours_to_do.as_ref().filter(|left| **left != obligation.means) {
        wrap(text, "      ", &format!("yours to do: {left}"));
    }
}

/// Columns that a line may have; a longer word stands alone.
const COLUMNS_MAX: usize = 100;

/// Appends foreign text without control characters: lines begin with `indent`, and go on two columns further in.
pub(crate) fn wrap(text: &mut String, indent: &str, foreign: &str) {
    let mut column = indent.chars().count();
    text.push_str(indent);
    let mut at_start = true;
    for word in unbroken_keys(&printable(foreign)).split(' ').filter(|word| !word.is_empty()) {
        let word = word.replace(UNBROKEN, " ");
        let width = word.chars().count();
        if !at_start && column + 1 + width > COLUMNS_MAX {
            let _ = write!(text, "\n{indent}  ");
            column = indent.chars().count() + 2;
        } else if !at_start {
            text.push(' ');
            column += 1;
        }
        text.push_str(&word);
        column += width;
        at_start = false;
    }
    text.push('\n');
}

/// Stands for a blank at which no line is broken; foreign text has none left.
const UNBROKEN: char = '\u{1}';

/// Keys of a recipe that are to be copied, `key = value` between backticks, in one piece.
fn unbroken_keys(text: &str) -> String {
    let pieces = text.split('`').enumerate().map(|(i, piece)| match i % 2 {
        1 if piece.contains(" = ") => piece.replace(' ', &UNBROKEN.to_string()),
        _ => piece.to_owned(),
    });
    pieces.collect::<Vec<_>>().join("`")
}

/// Text from files and recipes without control characters.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

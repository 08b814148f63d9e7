//! What the gate answers: a verdict, the rules that led to it, and what to do.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use stillroom_core::Digest;

use crate::error::{GovernanceError, Result};
use crate::obligations::{LicenceCopy, Obligation};
use crate::register::Grade;
use crate::words::{printable, render_obligation, render_rule, wrap};

/// Said once, at the end of every rendering and in the JSON.
pub const NOT_ADVICE: &str = "A draft for counsel, not legal advice.";

/// The answer, ordered from open to shut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Allow,
    /// Allowed where every condition is accepted by name.
    Conditional,
    /// Nobody can say: no register row, evidence too weak, or evidence in conflict.
    Unknown,
    Deny,
}

impl Verdict {
    /// The word used in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Allow => "allow",
            Verdict::Conditional => "conditional",
            Verdict::Unknown => "unknown",
            Verdict::Deny => "deny",
        }
    }
}

/// How a subject takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// What teaches, judges or rewrites.
    Teacher,
    /// What the teacher was built on.
    TeacherBase,
    /// The service that the teacher is reached through.
    Route,
    /// What the student starts from.
    StudentBase,
    /// What the student's base was built on.
    StudentBaseBase,
    /// What wrote or holds the data.
    Data,
    /// What a model of the others learned from, by its card.
    TrainingData,
}

impl Part {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Part::Teacher => "teacher",
            Part::TeacherBase => "base of the teacher",
            Part::Route => "route to the teacher",
            Part::StudentBase => "student base",
            Part::StudentBaseBase => "base of the student base",
            Part::Data => "data",
            Part::TrainingData => "what it learned from",
        }
    }
}

/// One statement that the verdict rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    pub role: Part,
    /// The ID as it was given.
    pub id: String,
    /// The release of the register, or the ID where there is none.
    pub release: String,
    /// An SPDX expression, empty where nobody knows.
    pub licence: String,
    pub clause: String,
    /// Where the clause can be read: an address, or a file with its SHA-256.
    pub evidence: String,
    pub grade: Grade,
    /// How and when it was checked.
    pub checked: String,
    /// The user's own register, where the statement is from there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users_register: Option<String>,
    pub verdict: Verdict,
    /// In plain words.
    pub says: String,
    /// Names of what it asks for.
    pub obliges: Vec<String>,
    /// Those of them that have to be accepted by name.
    pub conditions: Vec<String>,
}

/// The gate's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    pub verdict: Verdict,
    /// Whether the work may start: allowed, or every condition accepted, or overridden.
    pub passes: bool,
    pub rules: Vec<Rule>,
    /// Every condition of every rule, by name.
    pub conditions: Vec<String>,
    /// Conditions that were accepted.
    pub accepted: Vec<String>,
    /// Conditions that are visibly met, so that nobody has to accept them (`name-begins-with-llama` and a name
    /// that does).
    pub settled: Vec<String>,
    /// Conditions that still have to be accepted.
    pub missing: Vec<String>,
    /// Conditions that are visibly not met (`name-begins-with-llama` and a name that doesn't),
    /// accepted or not.
    pub violated: Vec<String>,
    /// Accepted names that no rule asks for.
    pub unused_acceptances: Vec<String>,
    /// Union of what all rules ask for.
    pub obliges: Vec<String>,
    /// What each name in `obliges` means.
    pub meanings: BTreeMap<String, String>,
    /// Each name in `obliges` with what the release does about it and what is left to do.
    pub obligations: Vec<Obligation>,
    /// Lines of the release's `NOTICE` that licences prescribe.
    pub notices: Vec<String>,
    /// Copyright lines of the licence files at hand.
    pub copyright: Vec<String>,
    /// Licence files that the release copies.
    pub licence_copies: Vec<LicenceCopy>,
    /// Licences that the student itself comes under.
    pub inherits: Vec<String>,
    pub what_to_do: Vec<String>,
    /// The reason for which a closed gate was opened. It stays in the record.
    #[serde(rename = "override")]
    pub override_reason: Option<String>,
    /// SHA-256 of the register that decided.
    pub register: Digest,
    /// SHA-256 of the user's own register, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users_register: Option<Digest>,
    pub notice: &'static str,
}

impl Decision {
    /// Refuses where the gate is closed.
    pub fn enforce(&self) -> Result<()> {
        if self.passes { Ok(()) } else { Err(GovernanceError::Refused(Box::new(self.clone()))) }
    }

    /// The rules that decided, in one line.
    pub fn headline(&self) -> String {
        if self.verdict == Verdict::Conditional && !(self.missing.is_empty() && self.violated.is_empty()) {
            let mut open: Vec<&str> = self.missing.iter().map(String::as_str).collect();
            open.extend(
                self.violated
                    .iter()
                    .map(String::as_str)
                    .filter(|name| !self.missing.iter().any(|m| m == name)),
            );
            return printable(&format!("conditional: {} not met", open.join(", ")));
        }
        match self.rules.iter().find(|rule| rule.verdict == self.verdict) {
            Some(rule) if rule.clause.is_empty() => {
                printable(&format!("{}: {}: {}", self.verdict.as_str(), rule.release, rule.says))
            }
            Some(rule) => printable(&format!(
                "{}: {}, clause {}: {}",
                self.verdict.as_str(),
                rule.release,
                rule.clause,
                rule.says
            )),
            None => self.verdict.as_str().to_owned(),
        }
    }

    /// As JSON, indented.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// Said wherever a closed gate was opened.
    pub fn override_in_words(&self, reason: &str) -> String {
        let verdict = self.verdict.as_str();
        printable(&format!(
            "OVERRIDDEN: the licence gate said `{verdict}`; it was opened with the reason: {reason}"
        ))
    }

    /// For a person: the verdict, why, what it asks for, what to do.
    pub fn render(&self) -> String {
        let mut text = format!("Licence verdict: {}\n", self.verdict.as_str());
        if let Some(reason) = &self.override_reason {
            wrap(&mut text, "", &self.override_in_words(reason));
        }
        text.push_str("\nWhy\n");
        for rule in &self.rules {
            render_rule(&mut text, rule);
        }
        self.render_obligations(&mut text);
        if !self.what_to_do.is_empty() {
            text.push_str("\nWhat to do\n");
            for step in &self.what_to_do {
                wrap(&mut text, "  ", step);
            }
        }
        let _ = writeln!(text, "\n{}", self.notice);
        text
    }

    fn render_obligations(&self, text: &mut String) {
        if !self.conditions.is_empty() {
            text.push_str("\nConditions\n");
        }
        let (conditions, rest): (Vec<&Obligation>, Vec<&Obligation>) =
            self.obligations.iter().partition(|obligation| self.conditions.contains(&obligation.name));
        for obligation in conditions {
            let name = &obligation.name;
            let mark = if self.violated.contains(name) {
                "not met"
            } else if self.settled.contains(name) {
                "met"
            } else if self.accepted.contains(name) {
                "accepted"
            } else {
                "open"
            };
            render_obligation(text, &format!("[{mark}] "), obligation);
        }
        if !rest.is_empty() {
            text.push_str("\nAlso to be kept\n");
        }
        for obligation in rest {
            render_obligation(text, "", obligation);
        }
    }
}

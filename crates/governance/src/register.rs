//! The register of releases: what each licence says, where that was read, and how well.
//!
//! Five tables are compiled in. `licences.csv` is the evidence and is kept as it was written; the
//! others make it usable by a machine: `licence_ids.csv` says which IDs mean which release and what
//! it was built on, `licence_terms.csv` what each licence asks for by name, `licence_conditions.csv`
//! what each name means, and `licence_notices.csv` the words that a licence prescribes.
//! A user's own rows stand beside them ([`Register::with_users`]) and never overrule them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use stillroom_core::Digest;

use crate::error::{GovernanceError, Result};
use crate::identity::{Entry, IdTable};
use crate::users_register::{UsersRegister, Views};

const LICENCES: &str = include_str!("../../../assets/licences.csv");
const IDS: &str = include_str!("../../../assets/licence_ids.csv");
const TERMS: &str = include_str!("../../../assets/licence_terms.csv");
const CONDITIONS: &str = include_str!("../../../assets/licence_conditions.csv");
const NOTICES: &str = include_str!("../../../assets/licence_notices.csv");

/// Rows that one register may hold.
pub const ROWS_MAX: usize = 100_000;

/// What a licence says about one use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grant {
    Yes,
    Conditional,
    No,
    /// The text was not found, or does not say.
    Unclear,
}

impl Grant {
    fn parse(text: &str) -> Option<Grant> {
        match text {
            "yes" => Some(Grant::Yes),
            "conditional" => Some(Grant::Conditional),
            "no" => Some(Grant::No),
            "unclear" => Some(Grant::Unclear),
            _ => None,
        }
    }
}

/// How well a statement about a licence is founded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// From memory only: never opens the gate.
    Recall,
    /// A quotation by somebody else: asks for the licence file.
    Secondary,
    /// The user's own statement about a private model.
    Declared,
    /// A dated snapshot of the terms.
    Archived,
    /// The text itself.
    Primary,
}

impl Grade {
    fn parse(text: &str) -> Option<Grade> {
        match text {
            "primary" => Some(Grade::Primary),
            "archived" => Some(Grade::Archived),
            "secondary" => Some(Grade::Secondary),
            "recall" => Some(Grade::Recall),
            _ => None,
        }
    }

    /// Whether a statement of this grade needs nothing beside it.
    pub fn speaks_for_itself(self) -> bool {
        self >= Grade::Declared
    }

    /// The word used in the register and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Grade::Recall => "recall",
            Grade::Secondary => "secondary",
            Grade::Declared => "declared",
            Grade::Archived => "archived",
            Grade::Primary => "primary",
        }
    }
}

/// One release: a set of weights, or one access route of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub family: String,
    pub release: String,
    /// `YYYY`, `YYYY-MM` or `YYYY-MM-DD`.
    pub release_date: String,
    /// An SPDX expression; only `AND` occurs.
    pub licence: String,
    pub licence_version: String,
    /// May the outputs train other models?
    pub outputs: Grant,
    /// The register's own words on conditions.
    pub conditions: String,
    /// May weights derived from these be made and passed on? `no` for every service.
    pub weights: Grant,
    pub commercial: Grant,
    pub evidence_url: String,
    pub evidence_clause: String,
    /// How and when the clause was checked.
    pub checked: String,
    pub grade: Grade,
    /// What this release asks for beyond its licence, by name.
    pub also: Vec<String>,
    /// A service that serves other people's models: their licences apply as well.
    pub passes_through: bool,
    /// IDs of what it was built on, where the register knows.
    pub built_on: Vec<String>,
    /// A row of the user's own register.
    pub users: bool,
}

impl Row {
    /// The single licences of the expression.
    pub fn licence_parts(&self) -> BTreeSet<&str> {
        self.licence.split(" AND ").collect()
    }
}

/// What a licence asks for, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LicenceTerms {
    pub licence: String,
    pub outputs: Grant,
    pub weights: Grant,
    pub commercial: Grant,
    /// Outputs may at least improve models of the same family under the same licence.
    pub own_family: bool,
    pub outputs_oblige: Vec<String>,
    pub weights_oblige: Vec<String>,
    /// Where its text answers.
    pub clause: String,
}

/// A named condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub name: String,
    /// What the student's name has to begin with.
    pub name_prefix: Option<String>,
    /// What is accepted by accepting it.
    pub means: String,
}

/// Words that a licence prescribes, to meet one condition.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NoticeLine {
    licence: String,
    condition: String,
    /// `{student}` stands for the student's name.
    line: String,
}

/// The tables of a register, as text.
#[derive(Clone, Copy, Debug)]
pub struct Tables<'a> {
    pub licences: &'a str,
    pub ids: &'a str,
    pub terms: &'a str,
    pub conditions: &'a str,
    pub notices: &'a str,
}

/// The register, with everything that resolves and reads it.
#[derive(Clone, Debug)]
pub struct Register {
    rows: Vec<Row>,
    ids: IdTable,
    terms: BTreeMap<String, LicenceTerms>,
    conditions: BTreeMap<String, Condition>,
    notices: Vec<NoticeLine>,
    digest: Digest,
    users: Option<UsersRegister>,
}

impl Register {
    /// The register compiled into this program.
    ///
    /// # Panics
    ///
    /// If the compiled-in tables are wrong, which the tests of this crate exclude.
    pub fn builtin() -> &'static Register {
        static BUILTIN: OnceLock<Register> = OnceLock::new();
        let tables =
            Tables { licences: LICENCES, ids: IDS, terms: TERMS, conditions: CONDITIONS, notices: NOTICES };
        BUILTIN.get_or_init(|| match Register::parse(&tables) {
            Ok(register) => register,
            Err(error) => panic!("the compiled-in register is wrong: {error}"),
        })
    }

    /// Reads a register from its tables (see the module's documentation).
    pub fn parse(tables: &Tables<'_>) -> Result<Register> {
        let conditions = parse_conditions(tables.conditions)?;
        let terms = parse_terms(tables.terms, &conditions)?;
        let notices = parse_notices(tables.notices, &terms, &conditions)?;
        let mut rows = parse_rows(tables.licences)?;
        for (i, row) in rows.iter().enumerate() {
            if let Some(part) = row.licence_parts().into_iter().find(|part| !terms.contains_key(*part)) {
                return Err(fault(i + 1, "licence_id", format!("no terms are known for `{part}`")));
            }
        }
        let entries = parse_ids(tables.ids, &mut rows, &conditions)?;
        let ids = IdTable::new(entries).map_err(|(entry, cause)| fault(entry, "ids", cause))?;
        let digest = Digest::of(tables.licences.as_bytes());
        Ok(Register { rows, ids, terms, conditions, notices, digest, users: None })
    }

    /// This register with a user's own rows beside it: a table with the same columns, in which `release`
    /// is a release of this register or an ID (`org/name`, `service:model`, with `{a,b}` and `*` at the end).
    /// `name` is what the rows are said to be from.
    pub fn with_users(&self, licences: &str, name: &str) -> Result<Register> {
        let users = UsersRegister::parse(self, licences, name)?;
        Ok(Register { users: Some(users), ..self.clone() })
    }

    /// The user's own register, where there is one.
    pub fn users(&self) -> Option<&UsersRegister> {
        self.users.as_ref()
    }

    /// The built-in table of evidence as it was written: the form of a user's own.
    pub fn evidence_csv() -> &'static str {
        LICENCES
    }

    /// Every row of the built-in table, in its order.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The release that an ID means, if any: a hub name (`Qwen/Qwen2.5-3B-Instruct`, with or without
    /// `hf:`) or a route (`openai:gpt-4o`). Case does not matter. Of two rows, the one that counts.
    pub fn resolve(&self, id: &str) -> Option<&Row> {
        self.views(id).map(|views| views.counts)
    }

    /// What both registers say about an ID.
    pub fn views(&self, id: &str) -> Option<Views<'_>> {
        let ours = self.ids.find(id).map(|row| &self.rows[row]);
        let users = self.users.as_ref().and_then(|users| users.find(id, ours));
        Views::of(self, ours, users)
    }

    /// The words that a licence prescribes to meet a condition, for a student of this name.
    pub fn notice_line(&self, licence: &str, condition: &str, student: &str) -> Option<String> {
        let prescribed = |line: &&NoticeLine| line.licence == licence && line.condition == condition;
        self.notices.iter().find(prescribed).map(|notice| notice.line.replace("{student}", student))
    }

    /// What a single licence asks for.
    pub fn terms(&self, licence: &str) -> Option<&LicenceTerms> {
        self.terms.get(licence)
    }

    /// A condition by its name.
    pub fn condition(&self, name: &str) -> Option<&Condition> {
        self.conditions.get(name)
    }

    /// Every condition, by name.
    pub fn conditions(&self) -> impl Iterator<Item = &Condition> {
        self.conditions.values()
    }

    /// SHA-256 of the table of evidence, so that a record can say which register decided.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Refuses names of conditions that do not exist, with the nearest that does.
    pub fn check_condition_names(&self, names: &[String]) -> Result<()> {
        for name in names {
            if self.conditions.contains_key(name) {
                continue;
            }
            let nearest = self
                .conditions
                .keys()
                .map(|known| (strsim::osa_distance(known, name), known))
                .min()
                .filter(|(distance, _)| *distance <= 4)
                .map(|(_, known)| known.clone());
            return Err(GovernanceError::UnknownCondition { name: name.clone(), nearest });
        }
        Ok(())
    }
}

pub(crate) fn fault(row: usize, column: &'static str, cause: impl Into<String>) -> GovernanceError {
    GovernanceError::Register { row, column, cause: cause.into() }
}

/// Reads a table with exactly these columns. Row numbers count from 1, the heading not included.
fn table<const N: usize>(text: &str, columns: [&'static str; N]) -> Result<Vec<[String; N]>> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
    let mut rows = Vec::new();
    for (number, record) in reader.records().enumerate() {
        let record = record.map_err(|error| fault(number, columns[0], error.to_string()))?;
        if record.len() != N {
            return Err(fault(number, columns[0], format!("{} columns where {N} are needed", record.len())));
        }
        if number == 0 {
            if let Some(wrong) = (0..N).find(|&i| &record[i] != columns[i]) {
                return Err(fault(0, columns[wrong], format!("the heading says `{}`", &record[wrong])));
            }
            continue;
        }
        if number > ROWS_MAX {
            return Err(fault(number, columns[0], format!("more than {ROWS_MAX} rows")));
        }
        rows.push(std::array::from_fn(|i| record[i].trim().to_owned()));
    }
    Ok(rows)
}

fn parse_conditions(text: &str) -> Result<BTreeMap<String, Condition>> {
    let mut conditions = BTreeMap::new();
    let rows = table(text, ["condition", "name_prefix", "means"])?;
    for (i, [name, name_prefix, means]) in rows.into_iter().enumerate() {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if name.is_empty() || !name.chars().all(plain) {
            return Err(fault(i + 1, "condition", format!("`{name}` is not in kebab case")));
        }
        if means.is_empty() {
            return Err(fault(i + 1, "means", "empty"));
        }
        let name_prefix = (!name_prefix.is_empty()).then_some(name_prefix);
        let condition = Condition { name: name.clone(), name_prefix, means };
        if conditions.insert(name.clone(), condition).is_some() {
            return Err(fault(i + 1, "condition", format!("`{name}` occurs twice")));
        }
    }
    Ok(conditions)
}

/// A list of condition names separated by spaces, all known.
fn names(
    text: &str,
    row: usize,
    column: &'static str,
    known: &BTreeMap<String, Condition>,
) -> Result<Vec<String>> {
    let unknown = |name: &str| fault(row, column, format!("no condition is called `{name}`"));
    text.split_whitespace()
        .map(|name| known.contains_key(name).then(|| name.to_owned()).ok_or_else(|| unknown(name)))
        .collect()
}

fn grant(text: &str, row: usize, column: &'static str) -> Result<Grant> {
    Grant::parse(text).ok_or_else(|| fault(row, column, format!("`{text}` is no grant")))
}

fn yes_or_no(text: &str, row: usize, column: &'static str) -> Result<bool> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err(fault(row, column, format!("`{text}` is neither yes nor no"))),
    }
}

fn parse_terms(
    text: &str,
    conditions: &BTreeMap<String, Condition>,
) -> Result<BTreeMap<String, LicenceTerms>> {
    let columns = [
        "licence_id",
        "outputs",
        "weights",
        "commercial",
        "own_family",
        "outputs_oblige",
        "weights_oblige",
        "clause",
    ];
    let mut terms = BTreeMap::new();
    for (i, [licence, outputs, weights, commercial, own_family, outputs_oblige, weights_oblige, clause]) in
        table(text, columns)?.into_iter().enumerate()
    {
        let row = i + 1;
        if clause.is_empty() {
            return Err(fault(row, "clause", "empty"));
        }
        let known = LicenceTerms {
            outputs: grant(&outputs, row, "outputs")?,
            weights: grant(&weights, row, "weights")?,
            commercial: grant(&commercial, row, "commercial")?,
            own_family: yes_or_no(&own_family, row, "own_family")?,
            outputs_oblige: names(&outputs_oblige, row, "outputs_oblige", conditions)?,
            weights_oblige: names(&weights_oblige, row, "weights_oblige", conditions)?,
            licence: licence.clone(),
            clause,
        };
        if terms.insert(licence.clone(), known).is_some() {
            return Err(fault(row, "licence_id", format!("`{licence}` occurs twice")));
        }
    }
    Ok(terms)
}

fn parse_notices(
    text: &str,
    terms: &BTreeMap<String, LicenceTerms>,
    conditions: &BTreeMap<String, Condition>,
) -> Result<Vec<NoticeLine>> {
    let rows = table(text, ["licence_id", "condition", "line"])?;
    let known = |(i, [licence, condition, line]): (usize, [String; 3])| {
        if !terms.contains_key(&licence) || !conditions.contains_key(&condition) || line.is_empty() {
            return Err(fault(i + 1, "licence_id", format!("`{licence}`, `{condition}`: unknown or empty")));
        }
        Ok(NoticeLine { licence, condition, line })
    };
    rows.into_iter().enumerate().map(known).collect()
}

/// `YYYY`, `YYYY-MM` or `YYYY-MM-DD`.
fn is_date(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let number = |i: usize, digits: usize, max: u32| {
        parts.get(i).is_none_or(|part| {
            part.len() == digits && part.parse::<u32>().is_ok_and(|value| (1..=max).contains(&value))
        })
    };
    parts.len() <= 3 && number(0, 4, 9999) && number(1, 2, 12) && number(2, 2, 31)
}

/// The rows of a table of evidence; which licences there are is not looked at.
pub(crate) fn parse_rows(text: &str) -> Result<Vec<Row>> {
    let columns = [
        "family",
        "release",
        "release_date",
        "licence_id",
        "licence_version",
        "outputs_may_train_other_models",
        "conditions",
        "derivative_weights",
        "commercial",
        "evidence_url",
        "evidence_clause",
        "checked",
        "evidence_grade",
    ];
    let mut seen = BTreeSet::new();
    let mut rows = Vec::new();
    for (i, cells) in table(text, columns)?.into_iter().enumerate() {
        let number = i + 1;
        if let Some(empty) = cells.iter().position(String::is_empty) {
            return Err(fault(number, columns[empty], "empty"));
        }
        let [family, release, release_date, licence, licence_version, outputs, conditions, ..] = &cells;
        let [.., weights, commercial, evidence_url, evidence_clause, checked, grade] = &cells;
        if !seen.insert(release.clone()) {
            return Err(fault(number, "release", format!("`{release}` occurs twice")));
        }
        if !is_date(release_date) {
            return Err(fault(number, "release_date", format!("`{release_date}` is no date")));
        }
        if !evidence_url.starts_with("https://") {
            return Err(fault(number, "evidence_url", format!("`{evidence_url}` is no https address")));
        }
        let grade = Grade::parse(grade)
            .ok_or_else(|| fault(number, "evidence_grade", format!("`{grade}` is no grade")))?;
        rows.push(Row {
            outputs: grant(outputs, number, "outputs_may_train_other_models")?,
            weights: grant(weights, number, "derivative_weights")?,
            commercial: grant(commercial, number, "commercial")?,
            grade,
            family: family.clone(),
            release: release.clone(),
            release_date: release_date.clone(),
            licence: licence.clone(),
            licence_version: licence_version.clone(),
            conditions: conditions.clone(),
            evidence_url: evidence_url.clone(),
            evidence_clause: evidence_clause.clone(),
            checked: checked.clone(),
            also: Vec::new(),
            passes_through: false,
            built_on: Vec::new(),
            users: false,
        });
    }
    Ok(rows)
}

/// The table of IDs; it fills in what the evidence has no column for.
fn parse_ids(text: &str, rows: &mut [Row], conditions: &BTreeMap<String, Condition>) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let columns = ["release", "passes_through", "also", "built_on", "ids"];
    for (i, [release, passes_through, also, built_on, ids]) in table(text, columns)?.into_iter().enumerate() {
        let number = i + 1;
        let index = rows
            .iter()
            .position(|row| row.release == release)
            .ok_or_else(|| fault(number, "release", format!("`{release}` is not in the register")))?;
        rows[index].passes_through = yes_or_no(&passes_through, number, "passes_through")?;
        rows[index].also = names(&also, number, "also", conditions)?;
        rows[index].built_on = built_on.split_whitespace().map(str::to_owned).collect();
        entries.push(Entry { row: index, patterns: ids.split_whitespace().map(str::to_owned).collect() });
    }
    Ok(entries)
}

//! What licences ask for, and who does it: the release, or its owner.
//!
//! The plan is made with the verdict, so that it can be read before anything is computed; the release does
//! what stands in it and nothing else.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use stillroom_core::Digest;

use crate::decision::{Decision, Part, Rule, Verdict};
use crate::error::{GovernanceError, Result};
use crate::gate::{Question, Use, begins_with};
use crate::licence_text::{TEXT_BYTES_MAX, full_text};
use crate::register::{Grant, Register};
use crate::subject::{ModelEvidence, Subject, read_head};
use crate::tags::{is_tag, licence_of_tag, name_on_cards};

/// One thing that licences ask for. At least one of the last two says who does it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Obligation {
    pub name: String,
    pub means: String,
    /// The releases whose licences ask for it.
    pub asked_by: Vec<String>,
    /// What the release does about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub carried_out: Option<String>,
    /// What is left to its owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub yours_to_do: Option<String>,
}

/// A file that the release copies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LicenceCopy {
    /// Whose it is.
    pub of: String,
    /// Its path in the release.
    pub path: String,
    pub digest: Digest,
    #[serde(skip)]
    pub source: CopySource,
}

/// Where a copy comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopySource {
    File(PathBuf),
    /// A text that this program brings along.
    BuiltIn(&'static str),
}

/// What a student's card says of its licence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CardLicence {
    pub license: String,
    /// With `license: other` only.
    pub license_name: Option<String>,
    pub license_link: Option<String>,
}

/// The whole plan.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) obligations: Vec<Obligation>,
    pub(crate) notices: Vec<String>,
    pub(crate) copies: Vec<LicenceCopy>,
    pub(crate) inherits: Vec<String>,
}

/// Plans what a release does about what the rules ask for; `obliges` is the union of their names.
pub(crate) fn plan(register: &Register, question: &Question, rules: &[Rule], obliges: &[String]) -> Plan {
    let student = question.student_name.as_deref().unwrap_or("the student");
    let mut planner = Planner { register, question, rules, student, plan: Plan::default() };
    planner.copies();
    planner.inherits();
    for name in obliges {
        let askers: Vec<&Rule> = rules.iter().filter(|rule| rule.obliges.contains(name)).collect();
        let (carried_out, yours_to_do) = planner.outcome(name, &askers);
        let mut asked_by: Vec<String> = askers.iter().map(|rule| rule.release.clone()).collect();
        asked_by.dedup();
        let means = register.condition(name).map_or(String::new(), |condition| condition.means.clone());
        planner.plan.obligations.push(Obligation {
            name: name.clone(),
            means,
            asked_by,
            carried_out,
            yours_to_do,
        });
    }
    planner.plan
}

/// What the release does, and what is left to do.
type Outcome = (Option<String>, Option<String>);

struct Planner<'a> {
    register: &'a Register,
    question: &'a Question,
    rules: &'a [Rule],
    student: &'a str,
    plan: Plan,
}

impl Planner<'_> {
    fn subjects(&self) -> impl Iterator<Item = &Subject> {
        let question = self.question;
        question.teachers.iter().chain(&question.student_base).chain(&question.data)
    }

    /// Licence files at hand are copied; of a base known by its ID alone, the text that this program has.
    fn copies(&mut self) {
        let mut copies: Vec<LicenceCopy> = Vec::new();
        for subject in self.subjects() {
            copies.extend(subject.found.iter().flat_map(|found| copies_of(&subject.id, found)));
        }
        for rule in self.rules.iter().filter(|rule| self.has_its_weights(rule)) {
            let text =
                full_text("Apache-2.0").filter(|_| rule.licence.split(" AND ").any(|l| l == "Apache-2.0"));
            if let Some(text) = text
                && !copies.iter().any(|copy| copy.of == rule.id)
            {
                copies.push(LicenceCopy {
                    of: rule.id.clone(),
                    path: format!("licences/{}/Apache-2.0.txt", folder(&rule.id)),
                    digest: Digest::of(text.as_bytes()),
                    source: CopySource::BuiltIn(text),
                });
            }
        }
        copies.sort_by(|a, b| a.path.cmp(&b.path));
        copies.dedup_by(|a, b| a.path == b.path);
        self.plan.copies = copies;
    }

    /// Licences that the student comes under: those of weights in it, and those that say that it derives from
    /// outputs; free ones aside, which ask for their text alone.
    fn inherits(&mut self) {
        let mut inherits: Vec<String> = Vec::new();
        for rule in self.rules {
            for part in rule.licence.split(" AND ") {
                let Some(terms) = self.register.terms(part) else { continue };
                let derives = terms
                    .outputs_oblige
                    .iter()
                    .any(|name| name == "derivative-terms" || name == "share-alike");
                let is_free = terms.outputs == Grant::Yes && terms.weights == Grant::Yes;
                if !is_free
                    && (derives || self.has_its_weights(rule))
                    && !inherits.iter().any(|known| known == part)
                {
                    inherits.push(part.to_owned());
                }
            }
        }
        self.plan.inherits = inherits;
    }

    /// Whether weights of what a rule is about are in the student.
    fn has_its_weights(&self, rule: &Rule) -> bool {
        match rule.role {
            Part::StudentBase | Part::StudentBaseBase => true,
            Part::Teacher | Part::TeacherBase => self.question.use_ == Use::Weights,
            Part::Route | Part::Data | Part::TrainingData => false,
        }
    }

    fn copy_of(&self, rule: &Rule) -> Option<&LicenceCopy> {
        self.plan.copies.iter().find(|copy| copy.of == rule.id)
    }

    fn outcome(&mut self, name: &str, askers: &[&Rule]) -> Outcome {
        let condition = self.register.condition(name);
        if let Some(prefix) = condition.and_then(|condition| condition.name_prefix.as_deref()) {
            return self.named(prefix);
        }
        match name {
            "keep-licence-and-notices" | "keep-copyright-notice" => self.kept_with_weights(askers),
            "licence-copy" => self.licence_copied(askers),
            "change-notices" => self.change_said(askers),
            "attribution" | "record-upstream-lineage" => {
                (Some("NOTICE names it, with its licence and where that can be read".to_owned()), None)
            }
            "derivative-terms" | "share-alike" => {
                let carried = format!("the card's licence names {}", self.plan.inherits.join(", "));
                (
                    Some(carried),
                    Some("give the student to others under these terms and no weaker ones".to_owned()),
                )
            }
            "confirm-licence-file" | "confirm-base-licence" => {
                let means = condition.map_or("", |condition| &condition.means);
                (None, Some(format!("read it, and keep a copy: {means}")))
            }
            _ => self.said(name, askers),
        }
    }

    fn named(&self, prefix: &str) -> Outcome {
        match &self.question.student_name {
            Some(name) if begins_with(name, prefix) => {
                (Some(format!("the student is called `{name}`")), None)
            }
            Some(name) => {
                (None, Some(format!("`{name}` does not begin with `{prefix}`: change `release.name`")))
            }
            None => (None, Some(format!("give the student a name that begins with `{prefix}`"))),
        }
    }

    fn kept_with_weights(&self, askers: &[&Rule]) -> Outcome {
        let inside: Vec<&&Rule> = askers.iter().filter(|rule| self.has_its_weights(rule)).collect();
        if inside.is_empty() {
            return (Some("no weights of it are in the student; NOTICE names it".to_owned()), None);
        }
        let copied = inside.iter().filter_map(|rule| self.copy_of(rule)).map(|copy| copy.path.clone());
        let copied: Vec<String> = copied.collect();
        let without = inside.iter().filter(|rule| self.copy_of(rule).is_none()).map(|rule| rule.id.as_str());
        let without: Vec<&str> = without.collect();
        let carried = (!copied.is_empty()).then(|| format!("{} in the release", copied.join(", ")));
        let left = format!("put the licence file of {} into what you pass on", without.join(", "));
        (carried, (!without.is_empty()).then_some(left))
    }

    fn licence_copied(&self, askers: &[&Rule]) -> Outcome {
        let copied: Vec<&LicenceCopy> = askers.iter().filter_map(|rule| self.copy_of(rule)).collect();
        let paths: Vec<&str> = copied.iter().map(|copy| copy.path.as_str()).collect();
        let without = askers.iter().filter(|rule| self.copy_of(rule).is_none());
        let without: Vec<String> =
            without.map(|rule| format!("{} ({})", rule.licence, rule.evidence)).collect();
        let carried = (!paths.is_empty()).then(|| format!("{} in the release", paths.join(", ")));
        let left = format!("put a copy of {} into what you pass on", without.join(", "));
        (carried, (!without.is_empty()).then_some(left))
    }

    fn change_said(&mut self, askers: &[&Rule]) -> Outcome {
        let inside: Vec<&str> =
            askers.iter().filter(|rule| self.has_its_weights(rule)).map(|rule| rule.id.as_str()).collect();
        if inside.is_empty() {
            return (Some("no file of it is in the release".to_owned()), None);
        }
        let line = format!(
            "{} was made from {} by training: its weights are changed.",
            self.student,
            inside.join(", ")
        );
        let carried = format!("NOTICE says: `{line}`");
        self.note(line);
        (Some(carried), None)
    }

    /// Words that a licence prescribes are said; everything else is for people.
    fn said(&mut self, name: &str, askers: &[&Rule]) -> Outcome {
        let (mut lines, mut without): (Vec<String>, Vec<&str>) = (Vec::new(), Vec::new());
        for rule in askers {
            let parts = rule.licence.split(" AND ");
            let found: Vec<String> =
                parts.filter_map(|part| self.register.notice_line(part, name, self.student)).collect();
            if found.is_empty() {
                without.push(&rule.release);
            }
            lines.extend(found.into_iter().filter(|line| !lines.contains(line)).collect::<Vec<_>>());
        }
        let means = self.register.condition(name).map_or("", |condition| &condition.means);
        let quoted: Vec<String> = lines.iter().map(|line| format!("`{line}`")).collect();
        lines.into_iter().for_each(|line| self.note(line));
        let is_of_conduct = ["use-policy", "use-restrictions", "built-with-minimax-m3"].contains(&name);
        let carried = (!quoted.is_empty()).then(|| format!("NOTICE and the card say: {}", quoted.join(", ")));
        let left = (is_of_conduct || !without.is_empty()).then(|| match carried {
            Some(_) if !is_of_conduct => format!("for {}: {means}", without.join(", ")),
            _ => means.to_owned(),
        });
        (carried, left)
    }

    fn note(&mut self, line: String) {
        if !self.plan.notices.contains(&line) {
            self.plan.notices.push(line);
        }
    }
}

/// Licence files of one model and what goes with them.
fn copies_of(id: &str, found: &ModelEvidence) -> Vec<LicenceCopy> {
    let files = found.files.iter().map(|file| (&file.name, file.digest));
    let papers = found.papers.iter().map(|paper| (&paper.name, paper.digest));
    let whole = |(name, _): &(&String, Digest)| {
        fs::metadata(found.dir.join(name)).is_ok_and(|file| file.len() <= TEXT_BYTES_MAX as u64)
    };
    let copy = |(name, digest): (&String, Digest)| LicenceCopy {
        of: id.to_owned(),
        path: format!("licences/{}/{name}", folder(id)),
        digest,
        source: CopySource::File(found.dir.join(name)),
    };
    files.chain(papers).filter(whole).map(copy).collect()
}

/// A folder's name from an ID or a path.
fn folder(id: &str) -> String {
    let id = if std::path::Path::new(id).is_absolute() || id.starts_with('.') {
        id.trim_end_matches('/').rsplit('/').next().unwrap_or(id)
    } else {
        id
    };
    let plain = |c: char| if c.is_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = id.replace('/', "--").chars().map(plain).collect();
    name.trim_start_matches('.').to_owned()
}

impl LicenceCopy {
    /// The bytes to be copied; they have to be those that the gate saw.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let path = match &self.source {
            CopySource::BuiltIn(text) => return Ok(text.as_bytes().to_vec()),
            CopySource::File(path) => path,
        };
        let bytes = read_head(path, TEXT_BYTES_MAX + 1)?;
        if Digest::of(&bytes) != self.digest {
            return Err(GovernanceError::LicenceChanged { path: path.clone() });
        }
        Ok(bytes)
    }
}

impl Decision {
    /// The text of the release's `NOTICE`: prescribed words first, then what the student was made with.
    pub fn notice_file(&self, student: &str) -> String {
        let mut text = format!("{student}\n\n");
        for line in &self.notices {
            let _ = writeln!(text, "{line}");
        }
        if !self.notices.is_empty() {
            text.push('\n');
        }
        text.push_str("Made with\n");
        for rule in
            self.rules.iter().filter(|rule| !rule.licence.is_empty() || rule.verdict == Verdict::Allow)
        {
            let licence = if rule.licence.is_empty() { "licence not known" } else { &rule.licence };
            let _ = writeln!(text, "- {} {}: {licence}; {}", rule.role.title(), rule.id, rule.evidence);
        }
        if !self.copyright.is_empty() {
            text.push_str("\nCopyright notices of their licence files\n");
        }
        for line in &self.copyright {
            let _ = writeln!(text, "- {line}");
        }
        if !self.licence_copies.is_empty() {
            text.push_str("\nLicence files, with their SHA-256\n");
        }
        for copy in &self.licence_copies {
            let _ = writeln!(text, "- {} (of {}) {}", copy.path, copy.of, copy.digest);
        }
        if let Some(reason) = &self.override_reason {
            let _ = writeln!(text, "\n{}", self.override_in_words(reason));
        }
        text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
    }

    /// What the student's card says of its licence: the owner's own, and with it those that the student comes
    /// under.
    pub fn card_licence(&self, own: Option<&str>) -> CardLicence {
        let own = own.map(|own| licence_of_tag(own).map_or_else(|| own.to_owned(), str::to_owned));
        let mut names: Vec<String> = own.iter().map(|own| name_on_cards(own)).collect();
        names.extend(
            self.inherits.iter().filter(|licence| own.as_ref() != Some(licence)).map(|l| name_on_cards(l)),
        );
        match names.as_slice() {
            [only] if is_tag(only) => {
                CardLicence { license: only.clone(), license_name: None, license_link: None }
            }
            names => CardLicence {
                license: "other".to_owned(),
                license_name: Some(if names.is_empty() {
                    "not-stated".to_owned()
                } else {
                    names.join(" and ")
                }),
                license_link: Some("NOTICE".to_owned()),
            },
        }
    }
}

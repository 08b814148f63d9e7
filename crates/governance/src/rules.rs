//! From evidence to rules: what is said about one subject, and by what.

use std::collections::BTreeSet;

use crate::decision::{Part, Rule, Verdict};
use crate::gate::{Ask, Declaration, Gate, Use};
use crate::identity::{plain_id, service_of_endpoint};
use crate::licence_text::{self, Identified};
use crate::own_assets::{is_own_name, own_rule, recorded};
use crate::register::{Grade, Grant, LicenceTerms, Row};
use crate::subject::{LicenceFile, ModelEvidence, Subject};
use crate::tags::licence_of_tag;
use crate::users_register::Views;

/// How the register says that a release's licence is a belief; what follows is about the licence itself.
const NOT_READ: &str = "licence file of this release not read; ";

/// The words of a licence on one use, from a row or from the licence's own terms.
struct Statement<'a> {
    grant: Grant,
    commercial: Grant,
    parts: BTreeSet<&'a str>,
    also: &'a [String],
}

impl Gate<'_> {
    /// Every rule about one subject.
    pub(crate) fn rules_of(&self, subject: &Subject, ask: &Ask<'_>) -> Vec<Rule> {
        let id = plain_id(&subject.id);
        let is_served = ask.part == Part::Teacher && !self.question.endpoints.is_empty();
        if let Some(own) = own_rule(subject, ask.part, is_served, &recorded()) {
            let mut rules = vec![own];
            rules.extend(self.behind(subject, None, ask));
            return rules;
        }
        let views = self.register.views(id);
        let row = views.map(|views| views.counts);
        let declared = self.question.declared.get(&subject.id).or_else(|| self.question.declared.get(id));
        let mut rules = match (&subject.found, views) {
            (_, Some(views)) if views.in_conflict => self.registers_in_conflict(&subject.id, &views, ask),
            (Some(found), _) if !found.files.is_empty() => self.by_files(subject, found, row, ask),
            (_, Some(views)) => vec![self.by_row(&subject.id, views.counts, ask, false)],
            (found, None) => self.without_file_or_row(subject, found.as_ref(), declared.is_some(), ask),
        };
        if let Some(declaration) = declared {
            rules.extend(self.declared(subject, declaration, &rules, ask));
        }
        if let Some(found) = &subject.found {
            rules = self.against_its_tag(subject, found, rules, ask);
        }
        if let Some(row) = row.filter(|row| row.passes_through) {
            rules.extend(self.behind_the_host(&subject.id, row, ask));
        }
        rules.extend(self.behind(subject, row, ask));
        rules
    }

    /// What the registers say about an ID: the row that counts, or both where they are in conflict.
    pub(crate) fn by_registers(&self, id: &str, ask: &Ask<'_>, settled: bool) -> Vec<Rule> {
        match self.register.views(id) {
            Some(views) if views.in_conflict => self.registers_in_conflict(id, &views, ask),
            Some(views) => vec![self.by_row(id, views.counts, ask, settled)],
            None => Vec::new(),
        }
    }

    /// The user's own register against ours, or against what its licence's text says.
    fn registers_in_conflict(&self, id: &str, views: &Views<'_>, ask: &Ask<'_>) -> Vec<Rule> {
        let says = |row: &Row| {
            let whose = if row.users { "your own register" } else { "the built-in register" };
            let words = grant_in_words(row_grant(row, ask.use_), ask.use_, Verdict::Unknown);
            format!("{whose} has {} under {} ({words})", row.release, row.licence)
        };
        let mut sides = vec![self.by_row(id, views.counts, ask, false)];
        let other = match views.other {
            Some(other) => {
                sides.push(self.by_row(id, other, ask, false));
                says(other)
            }
            None => {
                sides.push(self.by_terms(id, &views.counts.licence, Grade::Primary, ask));
                "the text of that licence, as read for the built-in register, grants less".to_owned()
            }
        };
        in_conflict(id, ask.part, &says(views.counts), &other, sides.into_iter())
    }

    /// A tag is a hint: one that is stricter than what is known of its model makes that uncertain.
    fn against_its_tag(
        &self,
        subject: &Subject,
        found: &ModelEvidence,
        rules: Vec<Rule>,
        ask: &Ask<'_>,
    ) -> Vec<Rule> {
        let licence = found.tag.as_deref().and_then(licence_of_tag);
        let names =
            |licence: &str| rules.iter().any(|rule| rule.licence.split(" AND ").any(|part| part == licence));
        let (Some(tag), Some(licence)) = (&found.tag, licence.filter(|licence| !names(licence))) else {
            return rules;
        };
        let by_tag = self.by_terms(&subject.id, licence, Grade::Primary, ask);
        if rules.iter().map(|rule| rule.verdict).max().is_none_or(|strictest| strictest >= by_tag.verdict) {
            return rules;
        }
        let known =
            rules.iter().find(|rule| !rule.licence.is_empty()).map_or("nothing", |rule| &rule.licence);
        let (one, other) = (format!("the evidence says {known}"), format!("the tag of its card is `{tag}`"));
        in_conflict(&subject.id, ask.part, &one, &other, rules.iter().cloned().chain([by_tag]))
    }

    /// The endpoint's own terms, whatever the model is called.
    pub(crate) fn route_rules(&self, teacher: &Subject, ask: &Ask<'_>) -> Vec<Rule> {
        let own = self.register.resolve(&teacher.id).map(|row| row.release.as_str());
        let services = self.question.endpoints.iter().filter_map(|url| service_of_endpoint(url));
        services
            .map(|service| format!("{service}:{}", teacher.id))
            .filter(|id| self.register.resolve(id).map(|row| row.release.as_str()) != own)
            .flat_map(|id| self.by_registers(&id, &ask.of(Part::Route), false))
            .collect()
    }

    /// The licence of a subject where its evidence speaks for itself: the register's row of primary
    /// grade, or the identified file.
    pub(crate) fn certain_licence(&self, subject: &Subject) -> Option<String> {
        let row =
            self.register.views(&subject.id).filter(|views| !views.in_conflict).map(|views| views.counts);
        if let Some(found) = &subject.found {
            match found.licences().as_slice() {
                [] => {}
                [licence] => return Some((*licence).to_owned()),
                _ => return None,
            }
        }
        row.filter(|row| row.grade.speaks_for_itself()).map(|row| row.licence.clone())
    }

    /// A row of the register. `settled`: the licence file of this very copy has been identified as
    /// the row's licence.
    fn by_row(&self, id: &str, row: &Row, ask: &Ask<'_>, settled: bool) -> Rule {
        let believed = row_grant(row, ask.use_);
        let parts = row.licence_parts();
        let grant =
            if settled { self.strictest_grant(&parts, ask.use_).unwrap_or(believed) } else { believed };
        let statement = Statement { grant, commercial: row.commercial, parts, also: &row.also };
        let grade = if settled { Grade::Primary } else { row.grade };
        let (verdict, obliges, conditions) = self.judge(&statement, grade, ask);
        let mut says = grant_in_words(grant, ask.use_, verdict);
        let words = match row.conditions.split_once(NOT_READ) {
            Some((_, read)) if settled => read,
            _ => &row.conditions,
        };
        says.push_str(&format!(": {words}"));
        match grade {
            Grade::Recall => says.push_str(" (from memory only: it needs the release's own licence file)"),
            Grade::Secondary => says.push_str(" (quoted second-hand: read the release's own licence file)"),
            _ => {}
        }
        if let Some(other) = self.register.views(id).filter(|views| !views.in_conflict).and_then(|v| v.other)
        {
            let whose = if other.users { "your own register" } else { "the built-in register" };
            let (licence, grade) = (&other.licence, other.grade.as_str());
            says.push_str(&format!(" ({whose} has it under {licence}, {grade})"));
        }
        let users = self.register.users().filter(|_| row.users);
        Rule {
            role: ask.part,
            id: id.to_owned(),
            release: row.release.clone(),
            licence: row.licence.clone(),
            clause: row.evidence_clause.clone(),
            evidence: row.evidence_url.clone(),
            grade,
            checked: row.checked.clone(),
            users_register: users.map(|users| users.name().to_owned()),
            verdict,
            says,
            obliges,
            conditions,
        }
    }

    /// Verdict, obligations and conditions of a statement of a given grade.
    fn judge(
        &self,
        statement: &Statement<'_>,
        grade: Grade,
        ask: &Ask<'_>,
    ) -> (Verdict, Vec<String>, Vec<String>) {
        let own_family = self.within_own_family(statement, ask);
        let grant = if own_family { Grant::Conditional } else { statement.grant };
        if grade == Grade::Recall || grant == Grant::Unclear {
            return (Verdict::Unknown, Vec::new(), Vec::new());
        }
        if grant == Grant::No {
            return (Verdict::Deny, Vec::new(), Vec::new());
        }
        let mut obliges: Vec<String> = Vec::new();
        let mut add = |name: &str| {
            if !obliges.iter().any(|known| known == name) {
                obliges.push(name.to_owned());
            }
        };
        if own_family {
            add("same-family-only");
        }
        if statement.commercial == Grant::No {
            add("non-commercial");
        }
        for part in &statement.parts {
            if let Some(terms) = self.register.terms(part) {
                oblige(terms, ask.use_).iter().for_each(|name| add(name));
            }
        }
        statement.also.iter().for_each(|name| add(name));
        if grant == Grant::Conditional && obliges.is_empty() {
            obliges.push("conditions-as-written".to_owned());
        }
        let mut conditions = match grant {
            Grant::Conditional => obliges.clone(),
            _ => obliges.iter().filter(|name| *name == "non-commercial").cloned().collect(),
        };
        if grade == Grade::Secondary {
            obliges.push("confirm-licence-file".to_owned());
            conditions.push("confirm-licence-file".to_owned());
        }
        let verdict = if conditions.is_empty() { Verdict::Allow } else { Verdict::Conditional };
        (verdict, obliges, conditions)
    }

    /// Llama 2 may improve Llama 2: the output ban of such licences spares their own family.
    fn within_own_family(&self, statement: &Statement<'_>, ask: &Ask<'_>) -> bool {
        let Some(into) = ask.into.filter(|_| ask.use_ == Use::Outputs && statement.grant == Grant::No) else {
            return false;
        };
        let has_exception = self.register.terms(into).is_some_and(|terms| terms.own_family);
        has_exception && statement.parts == BTreeSet::from([into])
    }

    fn strictest_grant(&self, parts: &BTreeSet<&str>, use_: Use) -> Option<Grant> {
        let grants: Option<Vec<Grant>> = parts
            .iter()
            .map(|part| {
                self.register.terms(part).map(|terms| match use_ {
                    Use::Outputs => terms.outputs,
                    Use::Weights => terms.weights,
                })
            })
            .collect();
        grants?.into_iter().max_by_key(|grant| match grant {
            Grant::Yes => 0,
            Grant::Conditional => 1,
            Grant::Unclear => 2,
            Grant::No => 3,
        })
    }

    /// A model with licence files of its own.
    fn by_files(
        &self,
        subject: &Subject,
        found: &ModelEvidence,
        row: Option<&Row>,
        ask: &Ask<'_>,
    ) -> Vec<Rule> {
        let claimed = found.claims.iter().find_map(|claim| self.register.resolve(claim));
        let row = row.or(claimed);
        let licences = found.licences();
        let covered = |row: &Row| licences.iter().all(|licence| row.licence_parts().contains(licence));
        let files = || licences.iter().map(|licence| self.by_file(subject, found, licence, ask));
        let mut rules: Vec<Rule> = match row {
            Some(row) if licences.is_empty() => vec![self.by_row(&subject.id, row, ask, false)],
            Some(row) if covered(row) => {
                let mut rule = self.by_row(&subject.id, row, ask, true);
                rule.evidence = format!("{}; {}", files_in_words(found), rule.evidence);
                "the licence file of this copy, identified by its text".clone_into(&mut rule.checked);
                vec![rule]
            }
            Some(row) if row.grade.speaks_for_itself() => {
                let one = format!("the licence file is {}", licences.join(" and "));
                let other = format!("the register knows {} under {}", row.release, row.licence);
                let shown = files().chain([self.by_row(&subject.id, row, ask, false)]);
                in_conflict(&subject.id, ask.part, &one, &other, shown)
            }
            _ if licences.len() > 1 => {
                let one = format!("one licence file is {}", licences[0]);
                let other = format!("another is {}", licences[1..].join(" and "));
                in_conflict(&subject.id, ask.part, &one, &other, files())
            }
            _ => files().collect(),
        };
        for file in found.unread() {
            match row.filter(|row| licences.is_empty() && is_not_its_text(row, file)) {
                Some(row) => {
                    let other = format!("the register knows {} under {}", row.release, row.licence);
                    rules =
                        in_conflict(&subject.id, ask.part, &text_in_words(file), &other, rules.into_iter());
                    if let Some(conflict) = rules.first_mut() {
                        conflict.evidence = format!("{} (SHA-256 {})", file.name, file.digest);
                    }
                }
                None => self.unread_file(subject, file, &mut rules, ask),
            }
        }
        rules
    }

    /// A licence known by the text of the model's own file.
    fn by_file(&self, subject: &Subject, found: &ModelEvidence, licence: &str, ask: &Ask<'_>) -> Rule {
        let mut rule = self.by_terms(&subject.id, licence, Grade::Primary, ask);
        rule.evidence = files_in_words(found);
        "licence file of this copy, identified by its text".clone_into(&mut rule.checked);
        if let Some(tag) = &found.tag {
            rule.says.push_str(&format!(" (the card's tag says `{tag}`; the file counts)"));
        }
        rule
    }

    /// The terms of a licence, by its name.
    fn by_terms(&self, id: &str, licence: &str, grade: Grade, ask: &Ask<'_>) -> Rule {
        let mut rule = empty_rule(ask.part, id, grade);
        licence.clone_into(&mut rule.licence);
        let known = licence.split(" AND ").filter_map(|part| self.register.terms(part)).collect::<Vec<_>>();
        let parts: BTreeSet<&str> = licence.split(" AND ").collect();
        let Some(grant) = self.strictest_grant(&parts, ask.use_) else {
            rule.says = format!("nobody has read what `{licence}` says on this use");
            return rule;
        };
        let commercial =
            if known.iter().any(|terms| terms.commercial == Grant::No) { Grant::No } else { Grant::Yes };
        let statement = Statement { grant, commercial, parts, also: &[] };
        (rule.verdict, rule.obliges, rule.conditions) = self.judge(&statement, grade, ask);
        rule.says = grant_in_words(grant, ask.use_, rule.verdict);
        rule.clause = match known.as_slice() {
            [only] => only.clause.clone(),
            several => several
                .iter()
                .map(|terms| format!("{}: {}", terms.licence, terms.clause))
                .collect::<Vec<_>>()
                .join("; "),
        };
        rule
    }

    /// A licence file that nobody recognises weakens what else is known.
    fn unread_file(&self, subject: &Subject, file: &LicenceFile, rules: &mut Vec<Rule>, ask: &Ask<'_>) {
        let what = text_in_words(file);
        let mut shown = empty_rule(ask.part, &subject.id, Grade::Primary);
        shown.evidence = format!("{} (SHA-256 {})", file.name, file.digest);
        "licence file of this copy".clone_into(&mut shown.checked);
        if rules.is_empty() {
            shown.says = what;
        } else {
            shown.verdict = Verdict::Conditional;
            shown.says = format!("{what}: read it");
            shown.conditions = vec!["confirm-licence-file".to_owned()];
            shown.obliges = shown.conditions.clone();
        }
        rules.push(shown);
    }

    /// Nothing but an ID, perhaps with a claim in its files.
    fn without_file_or_row(
        &self,
        subject: &Subject,
        found: Option<&ModelEvidence>,
        is_declared: bool,
        ask: &Ask<'_>,
    ) -> Vec<Rule> {
        let claimed = found.and_then(|found| {
            found.claims.iter().find_map(|claim| Some((claim, self.register.resolve(claim)?)))
        });
        if let Some((claim, row)) = claimed {
            // What a file says of itself is a hint: it can shut the gate, and open it only with the
            // licence file read.
            let mut rule = self.by_row(&subject.id, row, ask, false);
            rule.says = format!("it calls itself `{claim}`: {}", rule.says);
            if matches!(rule.verdict, Verdict::Allow | Verdict::Conditional) {
                rule.verdict = Verdict::Conditional;
                rule.grade = rule.grade.min(Grade::Secondary);
                for names in [&mut rule.conditions, &mut rule.obliges] {
                    if !names.iter().any(|name| name == "confirm-licence-file") {
                        names.push("confirm-licence-file".to_owned());
                    }
                }
            }
            return vec![rule];
        }
        if is_declared {
            return Vec::new();
        }
        let mut rule = empty_rule(ask.part, &subject.id, Grade::Recall);
        rule.says = match found {
            Some(found) if is_own_name(&subject.id) => format!(
                "no licence file in {}, and its weights are not those that this program brings along under this name",
                found.place
            ),
            None if is_own_name(&subject.id) => {
                "what this program brings along under this name is used otherwise".to_owned()
            }
            Some(found) => {
                let tag = found
                    .tag
                    .as_ref()
                    .map_or(String::new(), |tag| format!("; the tag `{tag}` is a hint and no evidence"));
                format!(
                    "no licence file in {}, and no release of the register by this name{tag}",
                    found.place
                )
            }
            None => "no release of the register has this ID".to_owned(),
        };
        vec![rule]
    }

    /// What the user says about a private model of their own. It cannot overrule evidence.
    fn declared(
        &self,
        subject: &Subject,
        declaration: &Declaration,
        known: &[Rule],
        ask: &Ask<'_>,
    ) -> Vec<Rule> {
        let (owner, licence) = (declaration.owner.trim(), declaration.licence.trim());
        let mut rule = empty_rule(ask.part, &subject.id, Grade::Declared);
        licence.clone_into(&mut rule.licence);
        "declared in the recipe".clone_into(&mut rule.checked);
        "[policy.declare]".clone_into(&mut rule.evidence);
        if owner.is_empty() || licence.is_empty() {
            rule.says = "the declaration names no owner or no licence".to_owned();
            return vec![rule];
        }
        if let (Some(declared), Some(actual)) = (declaration.digest, subject.digest)
            && declared != actual
        {
            rule.says = format!("declared with digest {declared}, and the weights have {actual}");
            return vec![rule];
        }
        if let Some(other) = known.iter().find(|rule| !rule.licence.is_empty() && rule.licence != licence) {
            let says = format!("the recipe declares {licence}");
            return vec![conflict(
                &subject.id,
                ask.part,
                &says,
                &format!("{} is under {}", other.release, other.licence),
            )];
        }
        if known.iter().any(|rule| !rule.licence.is_empty()) {
            return Vec::new();
        }
        if licence.split(" AND ").all(|part| self.register.terms(part).is_some()) {
            let mut by_terms = self.by_terms(&subject.id, licence, Grade::Declared, ask);
            by_terms.says = format!("declared by the user, owner {owner}; {}", by_terms.says);
            by_terms.checked = rule.checked;
            by_terms.evidence = rule.evidence;
            return vec![by_terms];
        }
        rule.verdict = Verdict::Conditional;
        rule.says = format!("declared by the user, owner {owner}, in the owner's own words");
        rule.conditions = vec!["owner-permits-training".to_owned()];
        rule.obliges = rule.conditions.clone();
        vec![rule]
    }

    /// The model behind a service that serves other people's models.
    fn behind_the_host(&self, id: &str, host: &Row, ask: &Ask<'_>) -> Vec<Rule> {
        let model = id.split_once(':').map_or("", |(_, model)| model);
        if self.register.resolve(model).is_some_and(|row| row.release != host.release) {
            return self.by_registers(model, ask, false);
        }
        // A router's name for somebody's own service: `openai/gpt-4o`.
        let vendor = model.split_once('/').filter(|(vendor, _)| {
            ["openai", "anthropic", "google", "x-ai"].contains(&vendor.to_lowercase().as_str())
        });
        if let Some((vendor, name)) = vendor {
            return self.by_registers(&format!("{vendor}:{name}"), ask, false);
        }
        let mut rule = empty_rule(ask.part, model, Grade::Recall);
        rule.says = format!("the model behind {} is no release of the register by this name", host.release);
        vec![rule]
    }
}

fn row_grant(row: &Row, use_: Use) -> Grant {
    match use_ {
        Use::Outputs => row.outputs,
        Use::Weights => row.weights,
    }
}

/// Whether a licence file that nobody knows cannot be the licence of its row: it is close to that text and not
/// it, or close to another while the row's is known.
fn is_not_its_text(row: &Row, file: &LicenceFile) -> bool {
    let Identified::Resembles { licence, .. } = &file.text else { return false };
    let parts = row.licence_parts();
    parts.contains(licence.as_str()) || parts.iter().all(|part| licence_text::is_known(part))
}

/// What is known of a licence file that is no known licence.
fn text_in_words(file: &LicenceFile) -> String {
    match &file.text {
        Identified::Resembles { licence, percent, differs } => {
            format!("`{}` is {percent} % like {licence} and is not it: {differs}", file.name)
        }
        _ => format!("nobody knows the text of `{}`", file.name),
    }
}

fn oblige(terms: &LicenceTerms, use_: Use) -> &[String] {
    match use_ {
        Use::Outputs => &terms.outputs_oblige,
        Use::Weights => &terms.weights_oblige,
    }
}

fn grant_in_words(grant: Grant, use_: Use, verdict: Verdict) -> String {
    let what = match use_ {
        Use::Outputs => "training other models with the outputs",
        Use::Weights => "making other weights from these",
    };
    let says = match (grant, verdict) {
        (Grant::No, Verdict::Conditional) => "forbidden except within the model's own family",
        (Grant::Yes, _) => "allowed",
        (Grant::Conditional, _) => "allowed under conditions",
        (Grant::No, _) => "forbidden",
        (Grant::Unclear, _) => "unclear",
    };
    format!("{what} is {says}")
}

/// A rule that says nothing yet: unknown until something is known.
pub(crate) fn empty_rule(role: Part, id: &str, grade: Grade) -> Rule {
    Rule {
        role,
        id: id.to_owned(),
        release: id.to_owned(),
        licence: String::new(),
        clause: String::new(),
        evidence: String::new(),
        grade,
        checked: String::new(),
        users_register: None,
        verdict: Verdict::Unknown,
        says: String::new(),
        obliges: Vec::new(),
        conditions: Vec::new(),
    }
}

/// Evidence that contradicts itself: each side is shown with what it would say alone, and none counts.
fn in_conflict(id: &str, role: Part, one: &str, other: &str, sides: impl Iterator<Item = Rule>) -> Vec<Rule> {
    let silenced = sides.map(|mut rule| {
        rule.says = format!("by this alone, {}: {}", rule.verdict.as_str(), rule.says);
        rule.verdict = Verdict::Unknown;
        rule.conditions.clear();
        rule.obliges.clear();
        rule
    });
    std::iter::once(conflict(id, role, one, other)).chain(silenced).collect()
}

fn conflict(id: &str, role: Part, one: &str, other: &str) -> Rule {
    let mut rule = empty_rule(role, id, Grade::Primary);
    rule.says = format!("evidence in conflict: {one}, but {other}");
    rule
}

fn files_in_words(found: &ModelEvidence) -> String {
    let known = found.files.iter().filter_map(|file| match &file.text {
        Identified::As { licence } => Some(format!("{} is {licence} (SHA-256 {})", file.name, file.digest)),
        _ => None,
    });
    known.collect::<Vec<_>>().join("; ")
}

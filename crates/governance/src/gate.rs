//! The licence gate: may this student be made from these parts?
//!
//! Evidence decides. `primary` and `archived` rows of the register speak for themselves; `secondary`
//! rows add the condition `confirm-licence-file`; `recall` rows give `unknown`. A model's own licence
//! file, identified by its text, counts as primary and wins over weaker rows and over tags; where it
//! contradicts a primary row, or a declaration contradicts either, the answer is `unknown` and both
//! are shown. The verdict is the strictest of all rules, and the obligations are their union.

use std::collections::{BTreeMap, BTreeSet};

use stillroom_core::Digest;

use crate::decision::{Decision, NOT_ADVICE, Part, Rule, Verdict};
use crate::identity::{plain_id, service_of_endpoint};
use crate::licence_text::Identified;
use crate::own_assets::{is_own_name, own_rule, recorded};
use crate::register::{Grade, Grant, LicenceTerms, Register, Row};
use crate::subject::{LicenceFile, ModelEvidence, Subject};

/// What the teacher gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Use {
    /// Text, grades or distributions that a student learns from.
    #[default]
    Outputs,
    /// Weights that the student is derived from.
    Weights,
}

/// A private model of the user's own, as the recipe declares it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declaration {
    pub owner: String,
    /// An SPDX expression, or the owner's own words.
    pub licence: String,
    /// Digest of its weights.
    pub digest: Option<Digest>,
}

/// What the gate is asked.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// Everything that teaches: judges and rewriters are teachers too.
    pub teachers: Vec<Subject>,
    /// What the student's weights start from; none if they start at random.
    pub student_base: Option<Subject>,
    /// Models and directories that the data comes from.
    pub data: Vec<Subject>,
    /// What the teachers give.
    pub use_: Use,
    /// Addresses that teachers answer at: whose terms apply does not depend on the model's name.
    pub endpoints: Vec<String>,
    /// Name under which the student is released, where known.
    pub student_name: Option<String>,
    /// `[policy.declare]`, by ID.
    pub declared: BTreeMap<String, Declaration>,
    /// `policy.accept`.
    pub accepted: Vec<String>,
    /// `policy.override`.
    pub override_reason: Option<String>,
}

impl Question {
    /// A question about one teacher.
    pub fn about(teacher: Subject) -> Question {
        Question { teachers: vec![teacher], ..Question::default() }
    }
}

/// Decides by the register compiled into this program.
pub fn decide(question: &Question) -> Decision {
    decide_by(Register::builtin(), question)
}

/// Decides by a given register.
pub fn decide_by(register: &Register, question: &Question) -> Decision {
    let gate = Gate { register, question };
    let base_licence = question.student_base.as_ref().and_then(|base| gate.certain_licence(base));
    let mut rules = Vec::new();
    for teacher in &question.teachers {
        let ask = Ask { part: Part::Teacher, use_: question.use_, into: base_licence.as_deref() };
        rules.extend(gate.rules_of(teacher, &ask));
        rules.extend(gate.route_rules(teacher, &ask));
    }
    if let Some(base) = &question.student_base {
        rules.extend(gate.rules_of(base, &Ask { part: Part::StudentBase, use_: Use::Weights, into: None }));
    }
    for data in &question.data {
        let ask = Ask { part: Part::Data, use_: Use::Outputs, into: base_licence.as_deref() };
        rules.extend(gate.rules_of(data, &ask));
    }
    let mut seen: Vec<Rule> = Vec::new();
    rules.retain(|rule| {
        !seen.contains(rule) && {
            seen.push(rule.clone());
            true
        }
    });
    gate.sum_up(rules)
}

/// What is asked about one subject.
struct Ask<'a> {
    part: Part,
    use_: Use,
    /// The licence of the student's base, where it is certain.
    into: Option<&'a str>,
}

impl Ask<'_> {
    fn of(&self, part: Part) -> Ask<'_> {
        Ask { part, use_: self.use_, into: self.into }
    }
}

struct Gate<'a> {
    register: &'a Register,
    question: &'a Question,
}

/// The words of a licence on one use, from a row or from the licence's own terms.
struct Statement<'a> {
    grant: Grant,
    commercial: Grant,
    parts: BTreeSet<&'a str>,
    also: &'a [String],
}

impl Gate<'_> {
    /// Every rule about one subject.
    fn rules_of(&self, subject: &Subject, ask: &Ask<'_>) -> Vec<Rule> {
        let id = plain_id(&subject.id);
        let is_served = ask.part == Part::Teacher && !self.question.endpoints.is_empty();
        if let Some(own) = own_rule(subject, ask.part, is_served, &recorded()) {
            let mut rules = vec![own];
            rules.extend(subject.found.iter().flat_map(|found| self.bases(subject, found, ask)));
            return rules;
        }
        let row = self.register.resolve(id);
        let declared = self.question.declared.get(&subject.id).or_else(|| self.question.declared.get(id));
        let mut rules = match (&subject.found, row) {
            (Some(found), _) if !found.files.is_empty() => self.by_files(subject, found, row, ask),
            (_, Some(row)) => vec![self.by_row(&subject.id, row, ask, false)],
            (found, None) => self.without_file_or_row(subject, found.as_ref(), declared.is_some(), ask),
        };
        if let Some(declaration) = declared {
            rules.extend(self.declared(subject, declaration, &rules, ask));
        }
        if let Some(row) = row.filter(|row| row.passes_through) {
            rules.extend(self.behind_the_host(&subject.id, row, ask));
        }
        if let Some(found) = &subject.found {
            rules.extend(self.bases(subject, found, ask));
        }
        rules
    }

    /// The endpoint's own terms, whatever the model is called.
    fn route_rules(&self, teacher: &Subject, ask: &Ask<'_>) -> Vec<Rule> {
        let own = self.register.resolve(&teacher.id).map(|row| row.release.as_str());
        let services = self.question.endpoints.iter().filter_map(|url| service_of_endpoint(url));
        let rows: Vec<(&str, &Row)> = services
            .filter_map(|service| Some((service, self.register.resolve(&format!("{service}:model"))?)))
            .filter(|(_, row)| Some(row.release.as_str()) != own)
            .collect();
        rows.iter()
            .map(|(service, row)| {
                self.by_row(&format!("{service}:{}", teacher.id), row, &ask.of(Part::Route), false)
            })
            .collect()
    }

    /// The licence of a subject where its evidence speaks for itself: the register's row of primary
    /// grade, or the identified file.
    fn certain_licence(&self, subject: &Subject) -> Option<String> {
        let row = self.register.resolve(&subject.id);
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
        let believed = match ask.use_ {
            Use::Outputs => row.outputs,
            Use::Weights => row.weights,
        };
        let parts = row.licence_parts();
        let grant =
            if settled { self.strictest_grant(&parts, ask.use_).unwrap_or(believed) } else { believed };
        let statement = Statement { grant, commercial: row.commercial, parts, also: &row.also };
        let grade = if settled { Grade::Primary } else { row.grade };
        let (verdict, obliges, conditions) = self.judge(&statement, grade, ask);
        let mut says = grant_in_words(grant, ask.use_, verdict);
        says.push_str(&format!(": {}", row.conditions));
        match grade {
            Grade::Recall => says.push_str(" (from memory only: it needs the release's own licence file)"),
            Grade::Secondary => says.push_str(" (quoted second-hand: read the release's own licence file)"),
            _ => {}
        }
        Rule {
            role: ask.part,
            id: id.to_owned(),
            release: row.release.clone(),
            licence: row.licence.clone(),
            clause: row.evidence_clause.clone(),
            evidence: row.evidence_url.clone(),
            grade,
            checked: row.checked.clone(),
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
                in_conflict(subject, ask.part, &one, &other, shown)
            }
            _ if licences.len() > 1 => {
                let one = format!("one licence file is {}", licences[0]);
                let other = format!("another is {}", licences[1..].join(" and "));
                in_conflict(subject, ask.part, &one, &other, files())
            }
            _ => files().collect(),
        };
        for file in found.unread() {
            self.unread_file(subject, file, &mut rules, ask);
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
        if let Some(row) =
            self.register.rows().iter().filter(|row| row.licence == licence).max_by_key(|row| row.grade)
        {
            rule.clause = row.evidence_clause.clone();
            rule.says.push_str(&format!(", as for {}", row.release));
        }
        rule
    }

    /// A licence file that nobody recognises weakens what else is known.
    fn unread_file(&self, subject: &Subject, file: &LicenceFile, rules: &mut Vec<Rule>, ask: &Ask<'_>) {
        let what = match &file.text {
            Identified::Resembles { licence, first_difference } => {
                format!("`{}` resembles {licence} and is not it: {first_difference}", file.name)
            }
            _ => format!("nobody knows the text of `{}`", file.name),
        };
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
                subject,
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
        if let Some(row) = self.register.resolve(model).filter(|row| row.release != host.release) {
            return vec![self.by_row(model, row, ask, false)];
        }
        // A router's name for somebody's own service: `openai/gpt-4o`.
        let vendor = model.split_once('/').filter(|(vendor, _)| {
            ["openai", "anthropic", "google", "x-ai"].contains(&vendor.to_lowercase().as_str())
        });
        let route = vendor.and_then(|(vendor, name)| self.register.resolve(&format!("{vendor}:{name}")));
        if let Some(row) = route {
            return vec![self.by_row(model, row, ask, false)];
        }
        let mut rule = empty_rule(ask.part, model, Grade::Recall);
        rule.says = format!("the model behind {} is no release of the register by this name", host.release);
        vec![rule]
    }

    /// What the model says it was built on. A copy that calls itself something else than the ID says
    /// is taken at its word as well, so that a name does not wash weights.
    fn bases(&self, subject: &Subject, found: &ModelEvidence, ask: &Ask<'_>) -> Vec<Rule> {
        let part = match ask.part {
            Part::Teacher | Part::TeacherBase | Part::Route => Part::TeacherBase,
            Part::StudentBase | Part::StudentBaseBase => Part::StudentBaseBase,
            Part::Data => Part::Data,
        };
        let ask = ask.of(part);
        // Without a row of its own, a claim has already been taken for the subject itself.
        let own = self.register.resolve(&subject.id);
        let by_claim = || found.claims.iter().find_map(|claim| self.register.resolve(claim));
        let own = if own.is_none() && !is_own_name(&subject.id) { by_claim() } else { own };
        let licences = found.licences();
        let known = found.bases.iter().chain(&found.claims).filter_map(|name| {
            let row = self.register.resolve(name)?;
            let settled = row.licence_parts().iter().all(|part| licences.contains(part));
            let other = own.is_none_or(|own| own.release != row.release);
            other.then(|| self.by_row(name, row, &ask, settled))
        });
        let unknown = found.bases.iter().filter(|base| self.register.resolve(base).is_none()).map(|base| {
            let mut rule = empty_rule(part, base, Grade::Secondary);
            rule.verdict = Verdict::Conditional;
            rule.says =
                format!("{} says it was built on this, which the register does not know", found.place);
            rule.conditions = vec!["confirm-base-licence".to_owned()];
            rule.obliges = rule.conditions.clone();
            rule
        });
        known.chain(unknown).collect()
    }

    /// The strictest verdict, the union of obligations, and what is still open.
    fn sum_up(&self, rules: Vec<Rule>) -> Decision {
        let question = self.question;
        let verdict = rules.iter().map(|rule| rule.verdict).max().unwrap_or(Verdict::Unknown);
        let union = |of: fn(&Rule) -> &[String]| -> Vec<String> {
            rules.iter().flat_map(of).collect::<BTreeSet<_>>().into_iter().cloned().collect()
        };
        let conditions = union(|rule| &rule.conditions);
        let obliges = union(|rule| &rule.obliges);
        let is_accepted = |name: &&String| question.accepted.contains(name);
        let violated: Vec<String> =
            conditions.iter().filter(|name| self.is_violated(name)).cloned().collect();
        let missing: Vec<String> = conditions.iter().filter(|name| !is_accepted(name)).cloned().collect();
        let reason = question.override_reason.as_deref().map(str::trim).filter(|reason| !reason.is_empty());
        let open = missing.is_empty() && violated.is_empty();
        let opened = verdict == Verdict::Allow || (verdict == Verdict::Conditional && open);
        let meanings = obliges
            .iter()
            .filter_map(|name| Some((name.clone(), self.register.condition(name)?.means.clone())))
            .collect();
        let mut decision = Decision {
            verdict,
            passes: opened || reason.is_some(),
            accepted: conditions.iter().filter(is_accepted).cloned().collect(),
            unused_acceptances: question
                .accepted
                .iter()
                .filter(|name| !conditions.contains(name))
                .cloned()
                .collect(),
            override_reason: reason.filter(|_| !opened).map(str::to_owned),
            register: self.register.digest(),
            notice: NOT_ADVICE,
            rules,
            conditions,
            missing,
            violated,
            obliges,
            meanings,
            what_to_do: Vec::new(),
        };
        decision.what_to_do = self.what_to_do(&decision);
        decision
    }

    fn prefix_of(&self, condition: &str) -> Option<&str> {
        self.register.condition(condition)?.name_prefix.as_deref()
    }

    fn is_violated(&self, condition: &str) -> bool {
        match (&self.question.student_name, self.prefix_of(condition)) {
            (Some(name), Some(prefix)) => !begins_with(name, prefix),
            _ => false,
        }
    }

    fn what_to_do(&self, decision: &Decision) -> Vec<String> {
        let mut steps = Vec::new();
        match decision.verdict {
            Verdict::Allow => {}
            Verdict::Conditional => {
                for name in &decision.violated {
                    let prefix = self.prefix_of(name).unwrap_or_default();
                    steps.push(format!("give the student a name that begins with `{prefix}`"));
                }
                if !decision.missing.is_empty() {
                    let names: Vec<String> =
                        decision.missing.iter().map(|name| format!("\"{name}\"")).collect();
                    steps.push(format!(
                        "if each is true, accept them by name in the recipe: `policy.accept = [{}]`",
                        names.join(", ")
                    ));
                }
            }
            Verdict::Unknown => {
                for rule in decision.rules.iter().filter(|rule| rule.verdict == Verdict::Unknown) {
                    steps.push(self.how_to_know(rule));
                }
            }
            Verdict::Deny => {
                for rule in decision.rules.iter().filter(|rule| rule.verdict == Verdict::Deny) {
                    steps.push(format!(
                        "take another {} than {}; `stillroom licence list` shows which releases allow it",
                        rule.role.what(),
                        rule.release
                    ));
                }
            }
        }
        steps.dedup();
        steps
    }

    fn how_to_know(&self, rule: &Rule) -> String {
        if rule.id.contains(':') && self.register.resolve(&rule.id).is_some() {
            return format!(
                "have the terms of {} read, or take the model's weights instead of the service",
                rule.release
            );
        }
        if !rule.licence.is_empty() || rule.grade == Grade::Primary {
            return format!(
                "put the licence file that {} was published with into its directory and name the directory instead of the ID",
                rule.release
            );
        }
        format!(
            "name a local directory that has the model's own licence file, or, if `{0}` is a private model of yours, \
             declare it: `[policy.declare.\"{0}\"]` with `owner` and `licence`",
            rule.id
        )
    }
}

impl Part {
    fn what(self) -> &'static str {
        match self {
            Part::Teacher | Part::TeacherBase => "teacher",
            Part::Route => "route",
            Part::StudentBase | Part::StudentBaseBase => "student base",
            Part::Data => "data source",
        }
    }
}

fn begins_with(name: &str, prefix: &str) -> bool {
    let plain = |text: &str| text.to_lowercase().replace(['-', '_', ' '], "");
    let own = name.rsplit('/').next().unwrap_or(name);
    plain(own).starts_with(&plain(prefix))
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
fn empty_rule(role: Part, id: &str, grade: Grade) -> Rule {
    Rule {
        role,
        id: id.to_owned(),
        release: id.to_owned(),
        licence: String::new(),
        clause: String::new(),
        evidence: String::new(),
        grade,
        checked: String::new(),
        verdict: Verdict::Unknown,
        says: String::new(),
        obliges: Vec::new(),
        conditions: Vec::new(),
    }
}

/// Evidence that contradicts itself: each side is shown with what it would say alone, and none counts.
fn in_conflict(
    subject: &Subject,
    role: Part,
    one: &str,
    other: &str,
    sides: impl Iterator<Item = Rule>,
) -> Vec<Rule> {
    let silenced = sides.map(|mut rule| {
        rule.says = format!("by this alone, {}: {}", rule.verdict.as_str(), rule.says);
        rule.verdict = Verdict::Unknown;
        rule.conditions.clear();
        rule.obliges.clear();
        rule
    });
    std::iter::once(conflict(subject, role, one, other)).chain(silenced).collect()
}

fn conflict(subject: &Subject, role: Part, one: &str, other: &str) -> Rule {
    let mut rule = empty_rule(role, &subject.id, Grade::Primary);
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

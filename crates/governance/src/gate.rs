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
use crate::obligations;
use crate::register::{Grade, Register};
use crate::subject::Subject;
use crate::users_register::UsersRegister;

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
pub(crate) struct Ask<'a> {
    pub(crate) part: Part,
    pub(crate) use_: Use,
    /// The licence of the student's base, where it is certain.
    pub(crate) into: Option<&'a str>,
}

impl Ask<'_> {
    pub(crate) fn of(&self, part: Part) -> Ask<'_> {
        Ask { part, use_: self.use_, into: self.into }
    }
}

pub(crate) struct Gate<'a> {
    pub(crate) register: &'a Register,
    pub(crate) question: &'a Question,
}

impl Gate<'_> {
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
        let by_name =
            |met: bool| conditions.iter().filter(move |name| self.name_meets(name) == Some(met)).cloned();
        let (settled, violated): (Vec<String>, Vec<String>) =
            (by_name(true).collect(), by_name(false).collect());
        let is_open = |name: &&String| !is_accepted(name) && !settled.contains(name);
        let missing: Vec<String> = conditions.iter().filter(is_open).cloned().collect();
        let plan = obligations::plan(self.register, question, &rules, &obliges);
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
            settled,
            unused_acceptances: question
                .accepted
                .iter()
                .filter(|name| !conditions.contains(name))
                .cloned()
                .collect(),
            override_reason: reason.filter(|_| !opened).map(str::to_owned),
            register: self.register.digest(),
            users_register: self.register.users().map(UsersRegister::digest),
            obligations: plan.obligations,
            notices: plan.notices,
            copyright: self.copyright(),
            licence_copies: plan.copies,
            inherits: plan.inherits,
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

    /// Whether the student's name meets a condition on names, where both are known.
    fn name_meets(&self, condition: &str) -> Option<bool> {
        let prefix = self.prefix_of(condition)?;
        self.question.student_name.as_deref().map(|name| begins_with(name, prefix))
    }

    /// Copyright lines of the licence files at hand, with whose they are.
    fn copyright(&self) -> Vec<String> {
        let question = self.question;
        let subjects = question.teachers.iter().chain(&question.student_base).chain(&question.data);
        let mut lines: Vec<String> = Vec::new();
        for (subject, file) in subjects.flat_map(|subject| {
            subject.found.iter().flat_map(|found| &found.files).map(move |file| (subject, file))
        }) {
            for line in file.copyright.iter().map(|line| format!("{}: {line}", subject.id)) {
                if !lines.contains(&line) {
                    lines.push(line);
                }
            }
        }
        lines
    }

    fn what_to_do(&self, decision: &Decision) -> Vec<String> {
        let mut steps = Vec::new();
        match decision.verdict {
            Verdict::Allow => {}
            Verdict::Conditional => {
                for name in &decision.violated {
                    let prefix = self.prefix_of(name).unwrap_or_default();
                    steps.push(format!(
                        "give the student a name that begins with `{prefix}`: `release.name` in the recipe"
                    ));
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
            Part::Data | Part::TrainingData => "data source",
        }
    }
}

/// Whether a name begins with a word: in any case, and with or without a separator where the word has a blank.
/// The organisation before a `/` is not part of the name.
pub(crate) fn begins_with(name: &str, prefix: &str) -> bool {
    const SEPARATORS: [char; 3] = ['-', '_', ' '];
    let own = name.rsplit('/').next().unwrap_or(name).to_lowercase();
    let mut rest = own.chars().peekable();
    prefix.to_lowercase().chars().all(|wanted| {
        if !SEPARATORS.contains(&wanted) {
            return rest.next() == Some(wanted);
        }
        let _ = rest.next_if(|c| SEPARATORS.contains(c));
        true
    })
}

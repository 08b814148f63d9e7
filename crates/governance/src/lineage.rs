//! What stands behind a subject: what it was built on, what it learned from, whose copy it may be.

use crate::decision::{Part, Rule, Verdict};
use crate::gate::{Ask, Gate, Use};
use crate::own_assets::is_own_name;
use crate::register::{Grade, Row};
use crate::rules::empty_rule;
use crate::subject::{ModelEvidence, Subject};

impl Gate<'_> {
    /// Every rule about what stands behind a subject: by the register, by its card and by its `config.json`.
    pub(crate) fn behind(&self, subject: &Subject, row: Option<&Row>, ask: &Ask<'_>) -> Vec<Rule> {
        let mut rules = row.map_or(Vec::new(), |row| self.built_on(row, ask));
        if let Some(found) = &subject.found {
            rules.extend(self.bases(subject, found, ask));
            rules.extend(self.training_data(found, ask));
        }
        rules
    }

    /// What the register says that a release was built on. Where the release's own row says under which licence
    /// its base came, that settles what the base's row knows less well.
    fn built_on(&self, row: &Row, ask: &Ask<'_>) -> Vec<Rule> {
        let ask = ask.of(base_of(ask.part));
        let rule = |id: &String| {
            let base = self.register.views(id)?.counts;
            let says_so = base.licence_parts().is_subset(&row.licence_parts());
            let settled = says_so && row.grade.speaks_for_itself() && !base.grade.speaks_for_itself();
            let mut rules = self.by_registers(id, &ask, settled);
            if settled {
                for rule in &mut rules {
                    rule.evidence.clone_from(&row.evidence_url);
                    rule.checked = format!("{} names this licence for its base", row.release);
                }
            }
            Some(rules)
        };
        row.built_on.iter().filter_map(rule).flatten().collect()
    }

    /// What the model says it was built on. A copy that calls itself something else than the ID says
    /// is taken at its word as well, so that a name does not wash weights.
    fn bases(&self, subject: &Subject, found: &ModelEvidence, ask: &Ask<'_>) -> Vec<Rule> {
        let ask = ask.of(base_of(ask.part));
        // Without a row of its own, a claim has already been taken for the subject itself.
        let own = self.register.resolve(&subject.id);
        let by_claim = || found.claims.iter().find_map(|claim| self.register.resolve(claim));
        let own = if own.is_none() && !is_own_name(&subject.id) { by_claim() } else { own };
        let licences = found.licences();
        let mut rules = Vec::new();
        for name in found.bases.iter().chain(&found.claims) {
            let Some(row) = self.register.resolve(name) else { continue };
            if own.is_none_or(|own| own.release != row.release) {
                let settled = row.licence_parts().iter().all(|part| licences.contains(part));
                rules.extend(self.by_registers(name, &ask, settled));
                rules.extend(self.built_on(row, &ask));
            }
        }
        for base in found.bases.iter().filter(|base| self.register.resolve(base).is_none()) {
            let mut rule = empty_rule(ask.part, base, Grade::Secondary);
            rule.verdict = Verdict::Conditional;
            rule.says =
                format!("{} says it was built on this, which the register does not know", found.place);
            rule.conditions = vec!["confirm-base-licence".to_owned()];
            rule.obliges = rule.conditions.clone();
            rules.push(rule);
        }
        rules
    }

    /// What its card says it learned from: a name that a register knows is a teacher of the teacher. Others are
    /// named in the record; no register says who wrote a data set.
    fn training_data(&self, found: &ModelEvidence, ask: &Ask<'_>) -> Vec<Rule> {
        let ask = Ask { part: Part::TrainingData, use_: Use::Outputs, into: ask.into };
        let (known, unknown): (Vec<&String>, Vec<&String>) =
            found.datasets.iter().partition(|name| self.register.resolve(name).is_some());
        let mut rules: Vec<Rule> =
            known.into_iter().flat_map(|name| self.by_registers(name, &ask, false)).collect();
        if !unknown.is_empty() {
            let names = unknown.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            let mut rule = empty_rule(ask.part, &names, Grade::Secondary);
            rule.verdict = Verdict::Allow;
            rule.says = format!(
                "the card in {} says that it learned from this; who wrote it no register says: look at its card",
                found.place
            );
            rule.obliges = vec!["record-upstream-lineage".to_owned()];
            rules.push(rule);
        }
        rules
    }
}

/// The part of what a subject was built on.
fn base_of(part: Part) -> Part {
    match part {
        Part::Teacher | Part::TeacherBase | Part::Route => Part::TeacherBase,
        Part::StudentBase | Part::StudentBaseBase => Part::StudentBaseBase,
        Part::Data | Part::TrainingData => Part::Data,
    }
}

//! `stillroom licence`: ask the register.

use std::process::ExitCode;

use serde_json::{Map, Value, json};
use stillroom_governance::{Grant, Question, Register, Row, Subject, Use, decide};

use crate::args::{Licence, LicenceCheck, LicenceList, LicenceShow, Use as UseArg};
use crate::failure::{Exit, Failure, Result};
use crate::terminal;

pub(super) fn licence(verb: &Licence) -> Result<ExitCode> {
    match verb {
        Licence::Check(args) => check(args),
        Licence::List(args) => list(args),
        Licence::Show(args) => show(args),
    }
}

fn check(args: &LicenceCheck) -> Result<ExitCode> {
    let register = Register::builtin();
    register.check_condition_names(&args.accept)?;
    let usage = match args.usage {
        UseArg::Outputs => Use::Outputs,
        UseArg::Weights => Use::Weights,
    };
    let question = Question {
        teachers: vec![Subject::from_argument(&args.teacher)?],
        student_base: args.student.as_deref().map(Subject::from_argument).transpose()?,
        data: args.data.iter().map(|id| Ok(Subject::from_argument(id)?)).collect::<Result<_>>()?,
        use_: usage,
        accepted: args.accept.clone(),
        ..Question::default()
    };
    let decision = decide(&question);
    if args.json {
        terminal::print_json(&decision)?;
    } else {
        terminal::print(&terminal::harmless(&decision.render()))?;
    }
    Ok(if decision.passes { ExitCode::SUCCESS } else { ExitCode::from(Exit::Policy as u8) })
}

fn list(args: &LicenceList) -> Result<ExitCode> {
    let register = Register::builtin();
    if args.json {
        let value = json!({
            "releases": register.rows().iter().map(to_json).collect::<Vec<_>>(),
            "conditions": register.conditions().map(|c| (c.name.clone(), json!(c.means))).collect::<Map<_, _>>(),
        });
        terminal::print_json(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text =
        String::from("release | licence | may outputs train others | may weights be changed | evidence\n");
    for row in register.rows() {
        let columns =
            [row.release.as_str(), &row.licence, word(row.outputs), word(row.weights), row.grade.as_str()];
        text.push_str(&columns.join(" | "));
        text.push('\n');
    }
    text.push_str("\nConditions\n");
    for condition in register.conditions() {
        text.push_str(&format!("  {}: {}\n", condition.name, condition.means));
    }
    terminal::print(&terminal::harmless(&text))?;
    Ok(ExitCode::SUCCESS)
}

fn show(args: &LicenceShow) -> Result<ExitCode> {
    let register = Register::builtin();
    let Some(row) = register.resolve(&args.id) else {
        return Err(Failure::new(Exit::BadData, format!("the register does not know `{}`", args.id))
            .code("unknown-release")
            .fix("name a hub model or `service:model`; `stillroom licence list` shows what is known")
            .next("stillroom licence list"));
    };
    if args.json {
        terminal::print_json(&to_json(row))?;
    } else {
        terminal::print(&terminal::harmless(&describe(row)))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn word(grant: Grant) -> &'static str {
    match grant {
        Grant::Yes => "yes",
        Grant::Conditional => "conditional",
        Grant::No => "no",
        Grant::Unclear => "unclear",
    }
}

fn to_json(row: &Row) -> Value {
    json!({
        "release": row.release,
        "family": row.family,
        "release_date": row.release_date,
        "licence": row.licence,
        "licence_version": row.licence_version,
        "outputs": row.outputs,
        "conditions": row.conditions,
        "weights": row.weights,
        "commercial": row.commercial,
        "clause": row.evidence_clause,
        "evidence": row.evidence_url,
        "grade": row.grade,
        "checked": row.checked,
    })
}

fn describe(row: &Row) -> String {
    format!(
        "{} ({}, {})\n  licence     {} {}\n  outputs     {}: {}\n  weights     {}\n  commercial  {}\n  \
         clause      {}\n  evidence    {} ({}, {})\n",
        row.release,
        row.family,
        row.release_date,
        row.licence,
        row.licence_version,
        word(row.outputs),
        row.conditions,
        word(row.weights),
        word(row.commercial),
        row.evidence_clause,
        row.evidence_url,
        row.grade.as_str(),
        row.checked,
    )
}

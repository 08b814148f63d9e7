//! `stillroom licence`: ask the register.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Map, Value, json};
use stillroom_governance::{Identified, ModelEvidence, Question, Register, Row, Subject, Use, decide_by};

use crate::args::{Licence, LicenceCheck, LicenceList, LicenceShow, Use as UseArg};
use crate::failure::{Exit, Failure, Result};
use crate::flow::gate::{register, with_papers};
use crate::terminal;

pub(super) fn licence(verb: &Licence) -> Result<ExitCode> {
    match verb {
        Licence::Check(args) => check(args),
        Licence::List(args) => list(args),
        Licence::Show(args) => show(args),
    }
}

fn check(args: &LicenceCheck) -> Result<ExitCode> {
    let register = register(args.register.as_deref())?;
    register.check_condition_names(&args.accept)?;
    let usage = match args.usage {
        UseArg::Outputs => Use::Outputs,
        UseArg::Weights => Use::Weights,
    };
    let papers = papers(&args.licence_files)?;
    let mut unused: BTreeSet<&str> = papers.keys().copied().collect();
    let mut subject = |id: &str| match papers.get(id) {
        Some(dir) => {
            unused.remove(id);
            with_papers(id, dir)
        }
        None => Ok(Subject::from_argument(id)?),
    };
    let mut subjects = |ids: &[String]| ids.iter().map(|id| subject(id)).collect::<Result<Vec<Subject>>>();
    let question = Question {
        teachers: subjects(&args.teacher)?,
        student_base: subjects(args.student.as_slice())?.pop(),
        data: subjects(&args.data)?,
        use_: usage,
        student_name: args.student_name.clone(),
        accepted: args.accept.clone(),
        ..Question::default()
    };
    if let Some(id) = unused.first() {
        return Err(Failure::new(
            Exit::Usage,
            format!("`--licence-files` names `{id}`, which is not asked about"),
        )
        .code("licence-files")
        .fix("write the ID as `--teacher`, `--student` or `--data` has it"));
    }
    let decision = decide_by(&register, &question);
    if args.json {
        terminal::print_json(&decision)?;
    } else {
        terminal::print(&terminal::harmless(&decision.render()))?;
    }
    Ok(if decision.passes { ExitCode::SUCCESS } else { ExitCode::from(Exit::Policy as u8) })
}

/// `ID=DIR` of each `--licence-files`.
fn papers(arguments: &[String]) -> Result<BTreeMap<&str, &Path>> {
    let mut papers = BTreeMap::new();
    for argument in arguments {
        let Some((id, dir)) = argument.split_once('=').filter(|(id, dir)| !id.is_empty() && !dir.is_empty())
        else {
            return Err(Failure::new(Exit::Usage, format!("`{argument}` is not `ID=DIR`"))
                .code("licence-files")
                .fix("write it as `--licence-files org/model=papers/model`"));
        };
        papers.insert(id, Path::new(dir));
    }
    Ok(papers)
}

fn list(args: &LicenceList) -> Result<ExitCode> {
    let register = register(args.register.as_deref())?;
    let users: &[Row] = register.users().map_or(&[], |users| users.rows());
    if args.csv {
        terminal::print(Register::evidence_csv())?;
    } else if args.json {
        let rows = users.iter().chain(register.rows());
        terminal::print_json(&json!({
            "releases": rows.map(to_json).collect::<Vec<_>>(),
            "conditions": register.conditions().map(|c| (c.name.clone(), json!(c.means))).collect::<Map<_, _>>(),
        }))?;
    } else {
        terminal::print(&terminal::harmless(&in_columns(&register, users)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Rows with short columns first, so that they stand under each other on any terminal.
fn in_columns(register: &Register, users: &[Row]) -> String {
    let mut text = format!("{:<13}{:<13}{:<11}release: licence\n", "outputs", "weights", "evidence");
    for row in users.iter().chain(register.rows()) {
        let whose = if row.users { " (your register)" } else { "" };
        let (outputs, weights, grade) = (row.outputs.as_str(), row.weights.as_str(), row.grade.as_str());
        let _ =
            writeln!(text, "{outputs:<13}{weights:<13}{grade:<11}{}: {}{whose}", row.release, row.licence);
    }
    text.push_str(
        "\noutputs: may they train other models? weights: may they be changed and passed on?\n\
         evidence: primary and archived rows speak for themselves, secondary ones ask for the licence file,\n\
         recall opens nothing. `stillroom licence show ID` has the clause and the source.\n\nConditions\n",
    );
    for condition in register.conditions() {
        let _ = writeln!(text, "  {}: {}", condition.name, condition.means);
    }
    text
}

fn show(args: &LicenceShow) -> Result<ExitCode> {
    let register = register(args.register.as_deref())?;
    let path = Path::new(&args.id);
    if !args.id.is_empty() && path.exists() {
        return show_files(&ModelEvidence::read(path)?, args.json);
    }
    let Some(views) = register.views(&args.id) else {
        return Err(Failure::new(Exit::BadData, format!("the register does not know `{}`", args.id))
            .code("unknown-release")
            .fix("name a hub model or `service:model`; `stillroom licence list` shows what is known")
            .next("stillroom licence list"));
    };
    if args.json {
        let mut value = to_json(views.counts);
        value["other_register"] = views.other.map_or(Value::Null, to_json);
        value["in_conflict"] = views.in_conflict.into();
        terminal::print_json(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = register.describe(views.counts);
    if let Some(other) = views.other {
        text.push_str(if views.in_conflict { "\nIN CONFLICT with\n\n" } else { "\nBeside it\n\n" });
        text.push_str(&register.describe(other));
    }
    terminal::print(&terminal::harmless(&text))?;
    Ok(ExitCode::SUCCESS)
}

/// What a local model's own files say.
fn show_files(found: &ModelEvidence, as_json: bool) -> Result<ExitCode> {
    if !as_json {
        terminal::print(&terminal::harmless(&found.describe()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let file = |file: &stillroom_governance::LicenceFile| {
        let (licence, percent, differs) = match &file.text {
            Identified::As { licence } => (Some(licence), Some(100), None),
            Identified::Resembles { licence, percent, differs } => {
                (Some(licence), Some(*percent), Some(differs))
            }
            Identified::Unknown => (None, None, None),
        };
        json!({
            "name": file.name,
            "sha256": file.digest,
            "licence": licence,
            "likeness_percent": percent,
            "differs": differs,
            "copyright": file.copyright,
        })
    };
    terminal::print_json(&json!({
        "place": found.place,
        "licence_files": found.files.iter().map(file).collect::<Vec<_>>(),
        "calls_itself": found.claims,
        "base_model": found.bases,
        "datasets": found.datasets,
        "tag": found.tag,
    }))?;
    Ok(ExitCode::SUCCESS)
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
        "built_on": row.built_on,
        "yours": row.users,
    })
}

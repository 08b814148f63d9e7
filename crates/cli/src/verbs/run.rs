//! `stillroom run` and the verbs of single stages.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};
use stillroom_evaluate::Report;

use crate::args::{Run, Stage};
use crate::failure::Result;
use crate::flow::{self, Reached, Request, Until};
use crate::terminal;

pub(super) fn run(args: &Run) -> Result<ExitCode> {
    let request = Request {
        recipe: &args.recipe,
        output: args.output.as_deref(),
        trial: args.trial,
        machine: &args.machine,
        quiet: args.quiet,
        until: Until::Release,
    };
    show(&flow::run(&request)?, Until::Release, args.json)
}

pub(super) fn stage(args: &Stage, until: Until) -> Result<ExitCode> {
    show(&go(args, until)?, until, args.json)
}

/// Goes as far as a stage's verb asks.
pub(super) fn go(args: &Stage, until: Until) -> Result<Reached> {
    let request = Request {
        recipe: &args.recipe,
        output: args.output.as_deref(),
        trial: None,
        machine: &args.machine,
        quiet: args.quiet,
        until,
    };
    flow::run(&request)
}

/// The result on stdout; a report whose checks failed is shown, and then the run has failed.
fn show(reached: &Reached, until: Until, as_json: bool) -> Result<ExitCode> {
    let output = reached.output.display();
    match (&reached.report, as_json) {
        (Some(report), true) => terminal::print(&report.to_json())?,
        (Some(report), false) => {
            terminal::print(&terminal::harmless(&summary(report)))?;
            terminal::print_line(&format!("\nReport: {output}/report.html"))?;
            if until == Until::Release {
                terminal::print_line(&format!("Release: {output}/release"))?;
            }
        }
        (None, true) => terminal::print_json(&stage_summary(&reached.output, until)?)?,
        (None, false) => terminal::print_line(&format!("Done: {output}"))?,
    }
    if let Some(report) = &reached.report {
        flow::verdict_of(&report.checks).map_err(|f| f.at(format!("{output}/report.json")))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What a single stage wrote about itself.
fn stage_summary(output: &Path, until: Until) -> Result<Value> {
    let file = match until {
        Until::Teach => "teach.json",
        Until::Curate => "corpus/curation.json",
        _ => "training/student.json",
    };
    let path = output.join(file);
    if !path.exists() {
        return Ok(json!({ "output": output.display().to_string() }));
    }
    flow::json_file(&path)
}

fn summary(report: &Report) -> String {
    let mut text = String::new();
    if report.trial {
        text.push_str("TRIAL: cut short on purpose; nothing here is a result.\n\n");
    }
    let _ = writeln!(
        text,
        "{:<26}{:>12}{:>10}{:>18}{:>16}{:>12}",
        "", "parameters", "accuracy", "95 % interval", "nats per token", "KL"
    );
    let number = |value: Option<&f64>| value.map_or("–".to_owned(), |v| format!("{v:.4}"));
    for (contender, score) in &report.models {
        let accuracy = score.accuracy.value().map_or("–".to_owned(), |v| format!("{:.1} %", 100.0 * v));
        let interval = score
            .accuracy_ci95
            .value()
            .map_or("–".to_owned(), |i| format!("{:.1} to {:.1}", 100.0 * i.low, 100.0 * i.high));
        let _ = writeln!(
            text,
            "{:<26}{:>12}{accuracy:>10}{interval:>18}{:>16}{:>12}",
            contender.label(),
            score.parameters.value().map_or("–".to_owned(), u64::to_string),
            number(score.nll_nats_per_token.value()),
            number(score.kl_to_teacher.value()),
        );
    }
    text.push('\n');
    let verdict = report.verdict();
    let _ = writeln!(text, "{}", verdict.headline);
    for statement in &verdict.statements {
        let _ = writeln!(text, "- {}", statement.text);
    }
    text
}

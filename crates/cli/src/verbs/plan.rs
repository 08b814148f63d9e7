//! `stillroom plan`: what a run takes, before anything is sent or spent.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde_json::json;
use stillroom_governance::Decision;

use crate::args::Plan;
use crate::failure::{Exit, Result};
use crate::flow::estimate::{Estimate, estimate};
use crate::flow::wording::Wording;
use crate::flow::{gate, hidden, start, teachers};
use crate::recipe::{Egress, Recipe, Wire};
use crate::{models, terminal};

pub(super) fn plan(args: &Plan) -> Result<ExitCode> {
    let (recipe, source) = Recipe::load(&args.recipe.recipe, &args.recipe.overrides)?;
    let decision = gate::decision(&recipe, &source)?;
    if !decision.passes {
        if args.json {
            terminal::print_json(&json!({ "licence": decision, "estimate": null }))?;
        } else {
            terminal::print(&terminal::harmless(&decision.render()))?;
        }
        return Ok(ExitCode::from(Exit::Policy as u8));
    }
    gate::warn_of_override(&decision);
    gate::egress(&recipe, &source)?;
    hidden::aligned_layers(&recipe, &source)?;
    teachers::check_tokenizers(&recipe, &source)?;
    start::shared_ids(&recipe, &source)?;
    if let Some(teacher) = recipe.teacher.as_ref().filter(|teacher| teacher.wire.is_some()) {
        Wording::of(teacher, &source)?;
    }
    let estimate = estimate(&recipe, &source, &models::device(&args.machine))?;
    if args.json {
        terminal::print_json(&json!({
            "recipe": recipe,
            "licence": decision,
            "egress": recipe.policy.egress,
            "estimate": estimate,
        }))?;
    } else {
        terminal::print(&terminal::harmless(&in_words(&recipe, &decision, &estimate)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The policy, and where it lets the prompts go.
fn egress_in_words(recipe: &Recipe) -> String {
    let places: Vec<&str> =
        recipe.wire().into_iter().flat_map(Wire::asked).map(|endpoint| endpoint.base_url.as_str()).collect();
    let policy = match recipe.policy.egress {
        Egress::Local => "local",
        Egress::Listed => "listed",
        Egress::Any => "any",
    };
    match places.is_empty() {
        true if recipe.wire().is_some_and(Wire::is_by_hand) => {
            format!("{policy}; prompts go into files, and where you carry them")
        }
        true => format!("{policy}; nobody is asked"),
        false => format!("{policy}; prompts go to {}", places.join(", ")),
    }
}

fn in_words(recipe: &Recipe, decision: &Decision, estimate: &Estimate) -> String {
    let mut text = format!("Recipe `{}`\n\n", estimate.recipe);
    let _ = writeln!(text, "Licence     {}", decision.verdict.as_str());
    for rule in &decision.rules {
        let _ = writeln!(text, "            {} ({}): {}", rule.release, rule.licence, rule.says);
    }
    let _ = writeln!(text, "Egress      {}", egress_in_words(recipe));
    if let Some(timestamps) = &recipe.release.timestamps {
        let url = &timestamps.timestamp_url;
        let _ = writeln!(text, "            digests of the run's log and of its signature go to {url}");
    }
    if let Some(open) = gate::open_places_in_words(recipe) {
        let _ = writeln!(text, "            {open}");
    }
    if let Some(n) = estimate.teacher_parameters {
        let _ = writeln!(text, "Teacher     {n} parameters");
        for n in &estimate.further_teachers_parameters {
            let _ = writeln!(text, "            and {n} parameters");
        }
    }
    if let Some(n) = estimate.student_parameters {
        let _ = writeln!(text, "Student     {n} parameters");
    }
    let _ = writeln!(text, "\n{:<24}{:>14}{:>12}{:>12}", "Stage", "tokens", "time", "memory");
    for stage in &estimate.stages {
        let (wall, memory) = (time(stage.wall_s), bytes(stage.peak_memory_bytes));
        let _ = writeln!(text, "{:<24}{:>14.0}{wall:>12}{memory:>12}", stage.stage, stage.tokens);
    }
    let (wall, memory) = (time(estimate.wall_s), bytes(estimate.peak_memory_bytes));
    let _ = writeln!(text, "{:<24}{:>14}{wall:>12}{memory:>12}", "all", "");
    let _ = writeln!(text, "\nMemory      {memory} at most");
    let _ = writeln!(text, "Disk        {}", bytes(estimate.disk_bytes));
    let _ = writeln!(text, "Money       {:.2} USD", estimate.money_usd);
    if let Some(n) = estimate.break_even_requests {
        let _ = writeln!(text, "Break-even  {n} requests");
    }
    let _ = writeln!(text, "Energy      {:.0} kJ", estimate.energy_joules / 1000.0);
    text.push_str("\nThis assumes\n");
    for assumption in &estimate.assumes {
        let _ = writeln!(text, "  - {assumption}");
    }
    text
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

pub(super) fn bytes(n: u64) -> String {
    match n as f64 {
        n if n < 1e6 => format!("{:.0} kB", n / 1e3),
        n if n < 1e9 => format!("{:.0} MB", n / 1e6),
        n => format!("{:.1} GB", n / 1e9),
    }
}

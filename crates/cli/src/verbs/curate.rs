//! `stillroom curate`: up to the curated training set, and what was removed on the way.

use std::fmt::Write as _;
use std::process::ExitCode;

use crate::args::{Curate, Stage};
use crate::failure::Result;
use crate::flow::Until;
use crate::flow::explain::{Explanation, Sample, explain};
use crate::terminal;
use crate::verbs::run;

pub(super) fn curate(args: &Curate) -> Result<ExitCode> {
    if !args.explain {
        return run::stage(&args.stage, Until::Curate);
    }
    let Stage { json, .. } = args.stage;
    let reached = run::go(&args.stage, Until::Curate)?;
    let explanation = explain(&reached.output)?;
    if json {
        terminal::print_json(&explanation)?;
    } else {
        terminal::print(&written(&explanation))?;
        terminal::print_line(&format!("Done: {}", reached.output.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn written(explanation: &Explanation) -> String {
    let mut text = String::new();
    if let Some(summary) = &explanation.summary {
        let _ = writeln!(
            text,
            "{} traces seen, {} kept to learn from, {} to choose a checkpoint by",
            summary.seen, summary.kept, summary.validation_kept
        );
        if let Some(items) = &summary.evaluation_items {
            let _ = writeln!(
                text,
                "{} evaluation items looked for; {} traces have another problem of an item's template and stay",
                items.items, items.same_template
            );
        }
    }
    if explanation.steps.is_empty() {
        text.push_str("nothing was removed\n");
    }
    for (step, explained) in &explanation.steps {
        let _ = writeln!(text, "\n{step}: {} removed", explained.dropped);
        explained.samples.iter().for_each(|sample| show(sample, &mut text));
    }
    text.push('\n');
    text
}

/// Ids, reasons and texts are foreign: each on one line, without what steers a terminal.
fn show(sample: &Sample, text: &mut String) {
    let Sample { id, sample: number, reason, asked, replied } = sample;
    let (id, reason) = (terminal::one_line(id), terminal::one_line(reason));
    let _ = writeln!(text, "  `{id}`, sample {number}: {reason}");
    for (name, excerpt) in [("asked", asked), ("replied", replied)] {
        if let Some(excerpt) = excerpt {
            let _ = writeln!(text, "    {name}: {}", terminal::one_line(excerpt));
        }
    }
}

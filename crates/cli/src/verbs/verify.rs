//! `stillroom verify`: does a run or release still hold what its manifest names?

use std::process::ExitCode;

use crate::args::Verify;
use crate::failure::{Exit, Failure, Result};
use crate::terminal;

pub(super) fn verify(args: &Verify) -> Result<ExitCode> {
    let report = stillroom_governance::verify(&args.directory)?;
    if args.json {
        terminal::print_json(&report)?;
    }
    let Some(first) = report.first() else {
        if !args.json {
            let mut text = format!("Intact: {} files, {} bytes.", report.checked, report.bytes);
            if !report.out_of_reach.is_empty() {
                text.push_str(&format!(
                    " {} files of the run are not in this directory.",
                    report.out_of_reach.len()
                ));
            }
            terminal::print_line(&text)?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let mut failure = Failure::new(Exit::BadData, first.to_string())
        .code("not-intact")
        .at(args.directory.display().to_string());
    if report.differences.len() > 1 {
        failure = failure.detail(format!("and {} more; `--json` lists all", report.differences.len() - 1));
    }
    Err(failure.fix("take the files from where they came, or run the recipe again"))
}

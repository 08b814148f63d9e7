//! `stillroom open`: one entry of a run's log for somebody else's eyes.

use std::process::ExitCode;

use stillroom_governance::log::Kind;

use crate::args::Open;
use crate::failure::{Exit, Failure, Result};
use crate::flow::logbook::{number_of_stage, open_entry};
use crate::terminal;

pub(super) fn open(args: &Open) -> Result<ExitCode> {
    let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == args.kind);
    let kind = kind.ok_or_else(|| Failure::new(Exit::Usage, format!("no entry is a `{}`", args.kind)))?;
    let stage = (kind == Kind::Stage).then_some(args.entry.as_str());
    let number = match stage {
        Some(name) => number_of_stage(name),
        None => args.entry.parse().map_err(|_| {
            Failure::new(Exit::Usage, format!("`{}` is no number", args.entry))
                .fix("entries of this kind are numbered; only stages have names")
        })?,
    };
    terminal::print_json(&open_entry(&args.run, kind, number, stage)?)?;
    Ok(ExitCode::SUCCESS)
}

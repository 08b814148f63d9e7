//! The `stillroom` command: flags → plan, wiring, printing, exit codes.

mod args;
mod failure;
mod flow;
mod footprint;
mod interrupt;
mod models;
mod process;
mod recipe;
mod terminal;
mod verbs;
mod verifiers;

use std::panic;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind as ClapError;

use crate::args::{Cli, Verb};
use crate::failure::Exit;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(|l| format!(" at {}:{}", l.file(), l.line())).unwrap_or_default();
        let what = info.payload_as_str().unwrap_or("something impossible happened");
        terminal::note(&format!("error[bug]: {}{place}", terminal::one_line(what)));
        terminal::note("  fix: this is a mistake in stillroom, not in what you typed; please report it");
    }));
    if matches!(cli.verb, Verb::Serve(_)) {
        interrupt::hold_termination();
    }
    interrupt::install(cli.verb.continues());
    match panic::catch_unwind(|| verbs::dispatch(cli.verb)) {
        Ok(Ok(code)) => code,
        Ok(Err(failure)) => {
            terminal::note(&failure.to_string());
            ExitCode::from(failure.exit() as u8)
        }
        Err(_) => ExitCode::from(Exit::Failed as u8),
    }
}

/// Help and version are data; everything else clap says is a usage error.
fn usage(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    match error.kind() {
        ClapError::DisplayHelp | ClapError::DisplayVersion => {
            let printed = terminal::print(&text);
            ExitCode::from(if printed.is_ok() { 0 } else { Exit::Io as u8 })
        }
        _ => {
            let text = text.strip_prefix("error: ").map_or(text.clone(), |t| format!("error[usage]: {t}"));
            terminal::note(text.trim_end());
            ExitCode::from(Exit::Usage as u8)
        }
    }
}

//! Chores: `cargo xtask test`, `cargo xtask ci` and `cargo xtask experiment`.

mod experiment;

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

const USAGE: &str = "usage: cargo xtask <test|ci|experiment>

  test   all tests of the workspace; what follows is passed to the test runner
  ci     formatting, lints, the real teacher's file, then all tests
  experiment  trains and compares the variants that an experiment names; docs/experiments.md has the results";

/// Where the tests look for the real teacher; they say loudly that they skip where it is not set.
const SMOLLM2: &str = "STILLROOM_SMOLLM2";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let done = match args.next().as_deref() {
        Some("test") => test(&args.collect::<Vec<_>>()),
        Some("ci") => ci(),
        Some("experiment") => experiment::experiment(args),
        _ => Err(USAGE.to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            say(&cause);
            ExitCode::FAILURE
        }
    }
}

fn ci() -> Result<(), String> {
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    let script = root().join("scripts/fetch-smollm2.sh");
    let fetched = run(Command::new(script).arg(smollm2_folder()));
    fetched
        .map_err(|cause| format!("{cause}\nthe real teacher is needed here: its tests may not be skipped"))?;
    test(&[])
}

/// The whole workspace, in the profile that the binary is built with. The runner's counts come last.
fn test(more: &[String]) -> Result<(), String> {
    let mut command = cargo_command();
    if has_nextest() {
        command.args(["nextest", "run"]);
    } else {
        command.arg("test");
    }
    command.args(["--release", "--workspace"]).args(more);
    let file = smollm2_folder().join("SmolLM2-135M-Instruct.Q4_1.gguf");
    if std::env::var_os(SMOLLM2).is_none() && file.is_file() {
        command.env(SMOLLM2, file);
    } else if std::env::var_os(SMOLLM2).is_none() {
        say("SKIPPED: tests with the real teacher; `scripts/fetch-smollm2.sh .cache/smollm2` gets it");
    }
    run(&mut command)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn smollm2_folder() -> PathBuf {
    root().join(".cache/smollm2")
}

fn cargo_command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(root());
    command
}

fn cargo(args: &[&str]) -> Result<(), String> {
    run(cargo_command().args(args))
}

fn has_nextest() -> bool {
    let mut probe = cargo_command();
    probe.args(["nextest", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

fn run(command: &mut Command) -> Result<(), String> {
    let args: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
    let shown = format!("{} {}", command.get_program().to_string_lossy(), args.join(" "));
    say(&format!("$ {shown}"));
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("`{shown}` failed: {status}")),
        Err(error) => Err(format!("`{shown}` did not start: {error}")),
    }
}

fn say(text: &str) {
    // Nobody is left to tell when stderr is gone.
    drop(writeln!(io::stderr().lock(), "{text}"));
}

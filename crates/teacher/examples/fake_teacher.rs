//! Runs the fake teacher of the tests: `cargo run --release --example fake_teacher -- --port 8080 --faults usual`.
//!
//! Its first line is the address that it listens on. `GET /stats` tells what it has seen.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

#[path = "../tests/fake/mod.rs"]
mod fake;

use fake::{FakeTeacher, Faults, Options};

const USAGE: &str = "fake_teacher [--port N] [--seed N] [--faults none|usual|hostile] [--latency-ms N] [--chunk-latency-ms N] \
[--retry-after-ms N] [--stall-ms N] [--key KEY] [--no-usage] [--no-reasoning] [--log FILE]";

fn main() -> ExitCode {
    match options(std::env::args().skip(1)).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            // Nobody is left to tell when stderr is gone.
            drop(writeln!(std::io::stderr(), "{what}\n{USAGE}"));
            ExitCode::from(2)
        }
    }
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options::default();
    while let Some(flag) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("`{flag}` needs a value"));
        match flag.as_str() {
            "--port" => options.port = number(&flag, &value()?)?,
            "--seed" => options.seed = number(&flag, &value()?)?,
            "--faults" => (options.faults, options.hostile) = faults(&value()?)?,
            "--latency-ms" => options.latency = Duration::from_millis(number(&flag, &value()?)?),
            "--chunk-latency-ms" => options.chunk_latency = Duration::from_millis(number(&flag, &value()?)?),
            "--retry-after-ms" => options.retry_after = Duration::from_millis(number(&flag, &value()?)?),
            "--stall-ms" => options.stall = Duration::from_millis(number(&flag, &value()?)?),
            "--key" => options.key = Some(value()?),
            "--no-usage" => options.usage = false,
            "--no-reasoning" => options.reasoning = false,
            "--log" => options.log = Some(value()?.into()),
            _ => return Err(format!("unknown option `{flag}`")),
        }
    }
    Ok(options)
}

fn number<T: std::str::FromStr>(flag: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("`{flag} {value}` is no number"))
}

/// What the faults are, and whether good replies are hostile.
fn faults(name: &str) -> Result<(Faults, bool), String> {
    match name {
        "none" => Ok((Faults::none(), false)),
        "usual" | "default" => Ok((Faults::usual(), false)),
        "hostile" => Ok((Faults::none(), true)),
        _ => Err(format!("no faults are called `{name}`")),
    }
}

fn run(options: Options) -> Result<(), String> {
    let teacher = FakeTeacher::try_start(options).map_err(|error| format!("it cannot listen: {error}"))?;
    let mut out = std::io::stdout();
    writeln!(out, "{}", teacher.base_url()).and_then(|()| out.flush()).map_err(|error| error.to_string())?;
    loop {
        std::thread::park();
    }
}

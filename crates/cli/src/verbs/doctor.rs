//! `stillroom doctor`: is everything here that a run needs?

use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use stillroom_evaluate::MachineFacts;
use stillroom_kernels::{Device, cpu_features};

use super::plan::bytes;
use crate::args::Doctor;
use crate::failure::{Exit, Result};
use crate::{models, terminal};

/// Less memory than this does not hold the quickstart.
const MEMORY_BYTES_MIN: u64 = 1 << 30;

#[derive(Serialize)]
struct Finding {
    what: &'static str,
    state: State,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Good,
    /// Works without it, but slower or not everything.
    Missing,
    /// Nothing works.
    Broken,
}

pub(super) fn doctor(args: &Doctor) -> Result<ExitCode> {
    let findings = [processor(), memory(), writable(), quickstart(), real_teacher(), hub()];
    if args.json {
        terminal::print_json(&findings)?;
    } else {
        for finding in &findings {
            let mark = match finding.state {
                State::Good => "ok     ",
                State::Missing => "missing",
                State::Broken => "BROKEN ",
            };
            terminal::print_line(&terminal::harmless(&format!(
                "{mark}  {:<18}{}",
                finding.what, finding.found
            )))?;
            if let Some(fix) = &finding.fix {
                terminal::print_line(&format!("         fix: {}", terminal::harmless(fix)))?;
            }
        }
    }
    let broken = findings.iter().any(|finding| finding.state == State::Broken);
    Ok(if broken { ExitCode::from(Exit::Failed as u8) } else { ExitCode::SUCCESS })
}

fn good(what: &'static str, found: String) -> Finding {
    Finding { what, state: State::Good, found, fix: None }
}

fn processor() -> Finding {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let device = Device::cpu(threads);
    let found = format!("{threads} threads, {}, {:.0} GFLOP/s", cpu_features(), device.fma_peak() / 1e9);
    if cpu_features() == "portable" {
        let fix =
            Some("runs go many times slower without AVX2 and FMA; take another machine if you can".into());
        return Finding { what: "processor", state: State::Missing, found, fix };
    }
    good("processor", found)
}

fn memory() -> Finding {
    match MachineFacts::read(1, cpu_features()).memory_bytes {
        None => Finding {
            what: "memory",
            state: State::Missing,
            found: "this system does not say how much there is".into(),
            fix: None,
        },
        Some(n) if n < MEMORY_BYTES_MIN => Finding {
            what: "memory",
            state: State::Broken,
            found: bytes(n),
            fix: Some("the quickstart needs 1 GB".into()),
        },
        Some(n) => good("memory", bytes(n)),
    }
}

/// Runs go to `runs/` in the working directory.
fn writable() -> Finding {
    let probe = Path::new(".stillroom-doctor");
    match std::fs::write(probe, b"probe").and_then(|()| std::fs::remove_file(probe)) {
        Ok(()) => good("working directory", "can be written".into()),
        Err(error) => Finding {
            what: "working directory",
            state: State::Broken,
            found: format!("cannot be written: {error}"),
            fix: Some("go to a directory of yours, or name one with `--output`".into()),
        },
    }
}

fn quickstart() -> Finding {
    let path = Path::new("recipes/quickstart.toml");
    if path.exists() && Path::new("assets/quickstart-teacher").exists() {
        return good("quickstart", "its recipe and teacher are here".into());
    }
    Finding {
        what: "quickstart",
        state: State::Missing,
        found: "no `recipes/quickstart.toml` and `assets/quickstart-teacher` here".into(),
        fix: Some("go to the project's own directory".into()),
    }
}

fn real_teacher() -> Finding {
    let path = Path::new(".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    if path.exists() {
        return good("real teacher", path.display().to_string());
    }
    Finding {
        what: "real teacher",
        state: State::Missing,
        found: "SmolLM2-135M-Instruct is not here; `recipes/smollm2.toml` needs it".into(),
        fix: Some("scripts/fetch-smollm2.sh .cache/smollm2".into()),
    }
}

fn hub() -> Finding {
    let cache = models::hub_cache();
    if cache.is_dir() {
        return good("hub cache", cache.display().to_string());
    }
    Finding {
        what: "hub cache",
        state: State::Missing,
        found: format!("`{}` is not there; `hf:ORG/NAME` finds nothing", cache.display()),
        fix: Some("set `HF_HUB_CACHE`, or name models by their path".into()),
    }
}

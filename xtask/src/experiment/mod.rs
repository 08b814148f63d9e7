//! `cargo xtask experiment`: variants of one recipe, trained under several seeds and compared.
//!
//! ```text
//! description.rs  what recipes/experiments/experiments.toml says
//! runs.rs         `stillroom evaluate` for each variant and seed, and what is kept of it
//! timing.rs       how fast each variant is, measured in turns
//! fidelity.rs     gradients' angles and students' samples, by the example `fidelity` of crates/model
//! compare.rs      paired differences and their intervals
//! sums.rs         sums of two numbers, in several forms
//! plot.rs         validation curves as SVG
//! page.rs         docs/experiments/NAME.json, and the tables of docs/experiments.md
//! ```

mod compare;
mod description;
mod fidelity;
mod page;
mod plot;
mod runs;
mod sums;
mod timing;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use self::description::Description;
use self::fidelity::Fidelity;
use self::runs::{Outcome, Place};
use crate::{cargo, root};

const USAGE: &str =
    "usage: cargo xtask experiment <NAME|all> --data FOLDER [--binary FILE] [--fidelity FILE] [--work FOLDER]
                              [--time]

  NAME      an experiment of recipes/experiments/experiments.toml
  --data    the text: a folder with `train.jsonl` and `test.jsonl`
  --binary, --fidelity
            the program, and the example `fidelity` of crates/model; by default they are built first
  --work    where runs go; by default .cache/experiments. What is there is not run again
  --time    measures instead how fast the variants are, in turns; wants a quiet machine";

struct Options {
    names: Vec<String>,
    data: String,
    binary: Option<PathBuf>,
    fidelity: Option<PathBuf>,
    work: PathBuf,
    time: bool,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut options = Options {
            names: Vec::new(),
            data: String::new(),
            binary: None,
            fidelity: None,
            work: root().join(".cache/experiments"),
            time: false,
        };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("`{arg}` wants a value\n{USAGE}"));
            match arg.as_str() {
                "--data" => options.data = absolute(&value()?)?.display().to_string(),
                "--binary" => options.binary = Some(absolute(&value()?)?),
                "--fidelity" => options.fidelity = Some(absolute(&value()?)?),
                "--work" => options.work = PathBuf::from(value()?),
                "--time" => options.time = true,
                flag if flag.starts_with('-') => return Err(format!("unknown option `{flag}`\n{USAGE}")),
                name => options.names.push(name.to_owned()),
            }
        }
        if options.names.is_empty() || options.data.is_empty() {
            return Err(USAGE.to_owned());
        }
        std::fs::create_dir_all(options.work.join("results"))
            .map_err(|e| format!("{}: {e}", options.work.display()))?;
        options.work = absolute(&options.work.display().to_string())?;
        Ok(options)
    }
}

fn absolute(path: &str) -> Result<PathBuf, String> {
    Path::new(path).canonicalize().map_err(|e| format!("{path}: {e}"))
}

/// Runs what is asked for, and writes it down.
pub(crate) fn experiment(args: impl Iterator<Item = String>) -> Result<(), String> {
    let options = Options::parse(args)?;
    let recipes = root().join("recipes/experiments");
    let description = Description::read(&recipes.join("experiments.toml"))?;
    let all: Vec<String> = description.experiments.keys().cloned().collect();
    let names = if options.names == ["all"] { all } else { options.names };
    if let Some(name) = names.iter().find(|name| !description.experiments.contains_key(*name)) {
        return Err(format!("there is no experiment `{name}`\n{USAGE}"));
    }
    let built = |given: Option<PathBuf>, args: &[&str], file: &str| match given {
        Some(given) => Ok(given),
        None => cargo(args).map(|()| root().join("target/release").join(file)),
    };
    let binary = built(options.binary, &["build", "--release", "-p", "stillroom"], "stillroom")?;
    let example = ["build", "--release", "-p", "stillroom-model", "--example", "fidelity"];
    let program = built(options.fidelity, &example, "examples/fidelity")?;
    let place = Place { binary, data: options.data, recipes, work: options.work };
    place.make_teacher(&description)?;
    if options.time {
        let variants = names.iter().flat_map(|name| &description.experiments[name].variants);
        return timing::measure(&place, &description, variants.cloned().collect());
    }
    let mut outcomes: Vec<Outcome> = Vec::new();
    let wanted: Vec<_> = names.iter().map(|name| &description.experiments[name]).collect();
    let seeds: BTreeSet<u64> = wanted.iter().flat_map(|e| description.seeds_of(e)).copied().collect();
    // Seeds come last, so that what else the machine does hits all variants of one alike.
    for seed in seeds {
        let of_seed = wanted.iter().filter(|e| description.seeds_of(e).contains(&seed));
        for name in of_seed.flat_map(|e| &e.variants) {
            if !outcomes.iter().any(|o| o.variant == *name && o.seed == seed) {
                outcomes.push(place.outcome(&description, name, &description.variants[name], seed)?);
            }
        }
    }
    let timing = timing::read(&place)?;
    let fidelity = Fidelity { program, place: &place };
    names.iter().try_for_each(|name| page::write(name, &description, &outcomes, &timing, &fidelity))
}

/// The commit that this tree is at.
fn commit() -> String {
    let mut git = Command::new("git");
    let output = git.current_dir(root()).args(["rev-parse", "--short", "HEAD"]).output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
}

//! Prints the fingerprint of licence texts, as `assets/licence_fingerprints.csv` holds them:
//! `cargo run --release -p stillroom-governance --example licence_fingerprint -- FILE…`
//!
//! With `--runs OUT LICENCE=FILE…` it writes `assets/licence_runs.bin` instead.

use std::fs;
use std::io::{Error, Result};

use stillroom_governance::{Identified, fingerprint, identify, runs_record};

#[expect(clippy::print_stdout, reason = "printing is all that this example does")]
fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, out, texts @ ..] = arguments.as_slice()
        && flag == "--runs"
    {
        return runs(out, texts);
    }
    for path in arguments {
        let text = read(&path)?;
        let known = match identify(&text) {
            Identified::As { licence } => licence,
            Identified::Resembles { licence, percent, differs } => {
                format!("{percent} % {licence}: {differs}")
            }
            _ => "unknown".to_owned(),
        };
        println!("{} {path} ({known})", fingerprint(&text));
    }
    Ok(())
}

fn runs(out: &str, texts: &[String]) -> Result<()> {
    let mut table = Vec::new();
    for text in texts {
        let (licence, path) = text.split_once('=').ok_or_else(|| Error::other("LICENCE=FILE"))?;
        table.extend(runs_record(licence, &read(path)?));
    }
    fs::write(out, table)
}

fn read(path: &str) -> Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned())
}

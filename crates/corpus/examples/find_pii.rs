//! How much personal data is found in labelled texts, class by class, and how fast.
//!
//!     cargo run -p stillroom-corpus --example find_pii -- LABELLED.jsonl [--misses]
//!
//! `oracles/pii.py ROWS SEED` writes such a file.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;
use std::time::Instant;

use serde::Deserialize;
use stillroom_corpus::pii::{self, Class};

#[derive(Deserialize)]
struct Row {
    source: String,
    text: String,
    spans: Vec<(usize, usize, Class, String)>,
}

/// Labelled, found, found with exactly the label's range, labelled and wholly covered by findings of any class.
type Tally = [u32; 4];

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("which file?")?;
    let misses = std::env::args().any(|arg| arg == "--misses");
    let text = std::fs::read_to_string(path)?;
    let rows: Vec<Row> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let mut out = std::io::stdout().lock();
    let mut tallies: BTreeMap<(String, String), Tally> = BTreeMap::new();
    for row in &rows {
        for (name, of) in count(row) {
            let tally = tallies.entry((row.source.clone(), name)).or_default();
            tally.iter_mut().zip(of).for_each(|(sum, n)| *sum += n);
        }
        if misses {
            show_misses(&mut out, row)?;
        }
    }
    writeln!(
        out,
        "{:<10}{:<32}{:>9}{:>9}{:>9}{:>10}{:>9}",
        "source", "class", "labelled", "recall", "found", "precision", "covered"
    )?;
    for ((source, name), [labelled, found, right, covered]) in &tallies {
        let share = |n: u32, of: u32| f64::from(n) / f64::from(of.max(1));
        let (recall, precision) = (share(*right, *labelled), share(*right, *found));
        writeln!(
            out,
            "{source:<10}{name:<32}{labelled:>9}{recall:>9.4}{found:>9}{precision:>10.4}{:>9.4}",
            share(*covered, *labelled)
        )?;
    }
    let bytes: usize = rows.iter().map(|row| row.text.len()).sum();
    let start = Instant::now();
    let n: usize = rows.iter().map(|row| pii::find(&row.text).len()).sum();
    let seconds = start.elapsed().as_secs_f64();
    writeln!(out, "{n} findings in {bytes} bytes, {:.0} MB/s", bytes as f64 / 1e6 / seconds)?;
    Ok(())
}

/// By class, and national numbers by kind as well.
fn count(row: &Row) -> Vec<(String, Tally)> {
    let found = pii::find(&row.text);
    let mut counts = Vec::new();
    for finding in &found {
        let right = row
            .spans
            .iter()
            .any(|(start, end, class, _)| (*start..*end, *class) == (finding.range.clone(), finding.class));
        counts.push((finding.class.to_string(), [0, 1, u32::from(right), 0]));
    }
    for (start, end, class, kind) in &row.spans {
        let right = found.iter().any(|f| (&f.range, &f.class) == (&(*start..*end), class));
        let covered = found.iter().any(|f| f.range.start <= *start && *end <= f.range.end);
        counts.push((class.to_string(), [1, 0, 0, u32::from(covered)]));
        if *class == Class::NationalId || *class == Class::Phone {
            let n = u32::from(right);
            counts.push((format!("{class} {kind}"), [1, n, n, u32::from(covered)]));
        }
    }
    counts
}

fn show_misses(out: &mut impl Write, row: &Row) -> std::io::Result<()> {
    let found = pii::find(&row.text);
    for (start, end, class, kind) in &row.spans {
        if !found.iter().any(|f| (&f.range, &f.class) == (&(*start..*end), class)) {
            let near: Vec<String> =
                found.iter().map(|f| format!("{} `{}`", f.class, &row.text[f.range.clone()])).collect();
            writeln!(
                out,
                "missed {class} {kind} `{}` in `{}`; found {near:?}",
                &row.text[*start..*end],
                row.text
            )?;
        }
    }
    for f in &found {
        let right = row
            .spans
            .iter()
            .any(|(start, end, class, _)| (*start..*end, *class) == (f.range.clone(), f.class));
        if !right {
            writeln!(out, "wrong {} {} `{}` in `{}`", f.class, f.kind, &row.text[f.range.clone()], row.text)?;
        }
    }
    Ok(())
}

//! `stillroom diff`: what changed between two releases, by their records.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use serde_json::Value;
use stillroom_core::Digest;
use stillroom_governance::diff::{
    Beside, Change, Compared, Diff, EntryName, Fact, Group, LogRelation, Which, diff as compare,
};
use stillroom_governance::record::{Figure, ProvenanceRecord};
use stillroom_governance::{MANIFEST_PATH, Manifest, oms};

use crate::args::Diff as Args;
use crate::failure::{Failure, Result};
use crate::flow::logbook;
use crate::terminal;

/// Largest recipe that is read.
const RECIPE_BYTES_MAX: u64 = 1 << 20;
/// Changes of one group that people are shown.
const SHOWN_MAX: usize = 12;
/// Characters of a value that people are shown.
const CHARS_MAX: usize = 100;
/// Characters of a digest that people are shown.
const DIGEST_CHARS: usize = 12;

/// Exit code 0 where nothing differs and 1 where something does, as of diff(1).
pub(super) fn diff(args: &Args) -> Result<ExitCode> {
    let diff = compare(&compared(&args.a)?, &compared(&args.b)?);
    match args.json {
        true => terminal::print(&diff.to_json())?,
        false => terminal::print(&render(&diff))?,
    }
    Ok(ExitCode::from(u8::from(!diff.equal)))
}

/// What there is at a path: a run directory, a release directory, or a record alone.
fn compared(path: &Path) -> Result<Compared> {
    if !path.exists() {
        let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
        return Err(Failure::io("read", path, &missing));
    }
    let record = ProvenanceRecord::read(path)?;
    if !path.is_dir() {
        return Ok(Compared { record, beside: None, settings: None });
    }
    let release = path.join("release");
    let (release, is_run) = match release.join(in_release(MANIFEST_PATH)).exists() {
        true => (release, true),
        false => (path.to_path_buf(), false),
    };
    let manifest = release.join(in_release(MANIFEST_PATH));
    let manifest = if manifest.exists() { Some(Manifest::read(&manifest)?.0) } else { None };
    let signature = oms::read(&release.join(oms::SIGNATURE_FILE))?;
    let signer = signature.map(|bytes| oms::claimed_key(&bytes)).transpose()?;
    let log = logbook::sealed_records(path)?;
    let settings = if is_run { settings(&path.join("recipe.toml"), &record)? } else { None };
    Ok(Compared { record, beside: Some(Beside { manifest, signer, log }), settings })
}

fn in_release(path: &str) -> &str {
    path.strip_prefix("release/").unwrap_or(path)
}

/// The settings of a run's recipe by their keys; none where it is not the recipe of the record.
fn settings(path: &Path, record: &ProvenanceRecord) -> Result<Option<BTreeMap<String, Value>>> {
    if !path.metadata().is_ok_and(|found| found.is_file() && found.len() <= RECIPE_BYTES_MAX) {
        return Ok(None);
    }
    let bytes = std::fs::read(path).map_err(|e| Failure::io("read", path, &e))?;
    let table = std::str::from_utf8(&bytes).ok().and_then(|text| text.parse::<toml::Table>().ok());
    let Some(table) = table.filter(|_| Digest::of(&bytes) == record.recipe.sha256) else { return Ok(None) };
    let mut settings = BTreeMap::new();
    flatten(String::new(), serde_json::to_value(table).unwrap_or_default(), &mut settings);
    Ok(Some(settings))
}

/// Tables by their keys; of a list each item by its place, from 0.
fn flatten(key: String, value: Value, settings: &mut BTreeMap<String, Value>) {
    let below = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    match value {
        Value::Object(fields) => {
            fields.into_iter().for_each(|(name, value)| flatten(below(&name), value, settings));
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            let numbered = items.into_iter().enumerate();
            numbered.for_each(|(n, value)| flatten(below(&n.to_string()), value, settings));
        }
        value => drop(settings.insert(key, value)),
    }
}

/// For people: what differs, by group; then the log, and what was not compared.
fn render(diff: &Diff) -> String {
    let mut text = String::new();
    if diff.equal {
        text.push_str("Nothing differs.\n");
    }
    let mut changes = diff.changes.as_slice();
    while let Some(first) = changes.first() {
        let of_group = changes.iter().take_while(|change| change.group == first.group).count();
        let (group, rest) = changes.split_at(of_group);
        heading(&mut text, first.group);
        group.iter().take(SHOWN_MAX).for_each(|change| line(&mut text, change));
        if let Some(more @ 1..) = group.len().checked_sub(SHOWN_MAX) {
            let _ = writeln!(text, "  and {more} more; `--json` lists all");
        }
        changes = rest;
    }
    if let Some(relation) = diff.log.as_ref().filter(|log| !matches!(log, LogRelation::Same { .. })) {
        heading(&mut text, Group::Log);
        let _ = writeln!(text, "  {}", log_in_words(relation));
    }
    if !diff.not_compared.is_empty() {
        text.push_str("\nNot compared\n");
    }
    for left_out in &diff.not_compared {
        let _ = writeln!(text, "  {}: {}", left_out.group.title(), left_out.because);
    }
    text.trim_start_matches('\n').to_owned()
}

fn heading(text: &mut String, group: Group) {
    let _ = writeln!(text, "\n{}", group.title());
}

fn line(text: &mut String, change: &Change) {
    let names: Vec<String> = change.path.iter().map(|name| short(name)).collect();
    let name = names.join(", ");
    let _ = match (&change.a, &change.b) {
        (Some(a), Some(b)) => writeln!(text, "  {name}: {} → {}", fact(a), fact(b)),
        (Some(a), None) => writeln!(text, "  {name}: {} → nothing", fact(a)),
        (None, Some(b)) => writeln!(text, "  {name}: nothing → {}", fact(b)),
        (None, None) => writeln!(text, "  {name}"),
    };
}

fn fact(fact: &Fact) -> String {
    match fact {
        Fact::Figure(figure) => figure_in_words(figure),
        Fact::Value(Value::String(text)) if is_digest(text) => format!("{}…", &text[..DIGEST_CHARS]),
        Fact::Value(Value::String(text)) => short(text),
        Fact::Value(Value::Array(items)) if items.is_empty() => "none".to_owned(),
        Fact::Value(Value::Array(items)) => {
            let items = items.iter().map(|item| item.as_str().map_or(item.to_string(), str::to_owned));
            short(&items.collect::<Vec<_>>().join(", "))
        }
        Fact::Value(value) => short(&value.to_string()),
    }
}

fn figure_in_words(figure: &Figure) -> String {
    match (figure.value, figure.ci95) {
        (Some(value), Some([low, high])) => format!("{value:.4} ({low:.4} to {high:.4})"),
        (Some(value), None) => format!("{value:.4}"),
        (None, _) => {
            short(&format!("not measured: {}", figure.reason.as_deref().unwrap_or("no reason given")))
        }
    }
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn log_in_words(relation: &LogRelation) -> String {
    match relation {
        LogRelation::Same { records, .. } => format!("the same {records} entries"),
        LogRelation::Begins { shorter, old_size, new_size, proof, .. } => {
            let (shorter, longer) = letters(*shorter);
            format!(
                "{longer} goes on where {shorter} ends: {old_size} of its {new_size} entries are {shorter}'s, by a consistency \
                 proof of {} hashes (RFC 9162) that holds",
                proof.len()
            )
        }
        LogRelation::Part { common: 0, a_size, b_size, .. } => {
            format!("two logs: {a_size} entries and {b_size}, and not one in common at the beginning")
        }
        LogRelation::Part { common, a_size, b_size, a_next, b_next } => format!(
            "the first {common} entries are the same; then A has {} (of {a_size} entries), and B {} (of {b_size})",
            entry(a_next.as_ref()),
            entry(b_next.as_ref())
        ),
        LogRelation::Only { which, records } => {
            let (which, other) = letters(*which);
            format!("{which} has one, of {records} entries, and {other} has none")
        }
    }
}

fn letters(which: Which) -> (&'static str, &'static str) {
    if which == Which::A { ("A", "B") } else { ("B", "A") }
}

fn entry(name: Option<&EntryName>) -> String {
    name.map_or("no more".to_owned(), |name| format!("{} {}", name.kind.as_str(), name.number))
}

/// One line of foreign text, cut.
fn short(text: &str) -> String {
    let cut: String = text.chars().take(CHARS_MAX).collect();
    let more = if cut.len() < text.len() { "…" } else { "" };
    format!("{}{more}", terminal::one_line(&cut))
}

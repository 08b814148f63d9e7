//! `prompts.verifier`: what judges replies, by its name alone or as a table with options.

use serde::ser::Serializer;
use serde::{Deserialize, Serialize};
use stillroom_corpus::verify::{self, Options};

use super::resolve::Checker;
use crate::failure::{Failure, Result};

/// The verifiers that run programs.
pub(crate) const CODE: &str = "code";
pub(crate) const COMMAND: &str = "command";
const KEY: [&str; 2] = ["prompts", "verifier"];
/// Words of a command at most.
const WORDS_MAX: usize = 64;
/// Bytes of a schema's file at most.
const SCHEMA_BYTES_MAX: u64 = 1 << 20;
const TIMEOUT_S: f64 = 10.0;
const MEMORY_MB: usize = 512;

/// What judges replies.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct VerifierChoice {
    pub(crate) name: String,
    pub(crate) options: Options,
    /// Where the verifier runs a program.
    pub(crate) program: Option<Program>,
}

/// How a verifier runs a program.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Program {
    /// The program and its words, of `command` only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) command: Vec<String>,
    /// Seconds that one reply may take.
    pub(crate) timeout_s: f64,
    /// Memory of `code`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory_mb: Option<usize>,
}

impl VerifierChoice {
    /// Whether it can say what the answer in a reply is: a program and a pattern that comes with a prompt cannot.
    pub(super) fn finds_answers(&self) -> bool {
        self.program.is_none() && (self.name != "regex" || self.options.pattern.is_some())
    }
}

impl Serialize for VerifierChoice {
    /// As it would be typed: its name, or a table.
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Table<'a> {
            name: &'a str,
            #[serde(flatten)]
            options: &'a Options,
            #[serde(flatten)]
            program: &'a Option<Program>,
        }
        let VerifierChoice { name, options, program } = self;
        if *options == Options::default() && program.is_none() {
            return serializer.serialize_str(name);
        }
        Table { name, options, program }.serialize(serializer)
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a verifier is a name, or a table with `name` and of `ignore_articles`, `case_sensitive`, `pattern`, `schema`, `command`, `timeout_s`, `memory_mb` those that it knows"
)]
pub(super) enum RawVerifier {
    Name(String),
    Table(RawVerifierTable),
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawVerifierTable {
    name: String,
    ignore_articles: Option<bool>,
    case_sensitive: Option<bool>,
    pattern: Option<String>,
    schema: Option<String>,
    command: Option<Vec<String>>,
    timeout_s: Option<f64>,
    memory_mb: Option<usize>,
}

impl RawVerifierTable {
    /// Options that are given, each with the verifiers that know it.
    fn given(&self) -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
        let all: [(_, _, &[&str]); 7] = [
            ("ignore_articles", self.ignore_articles.is_some(), &["exact_answer"]),
            ("case_sensitive", self.case_sensitive.is_some(), &["exact_answer"]),
            ("pattern", self.pattern.is_some(), &["regex"]),
            ("schema", self.schema.is_some(), &["json_schema"]),
            ("command", self.command.is_some(), &[COMMAND]),
            ("timeout_s", self.timeout_s.is_some(), &[COMMAND, CODE]),
            ("memory_mb", self.memory_mb.is_some(), &[CODE]),
        ];
        all.into_iter().filter(|(_, given, _)| *given).map(|(name, _, of)| (name, of))
    }
}

/// A task brings its own verifier; for data of the user's own it is named.
pub(super) fn verifier(
    at: &Checker<'_>,
    raw: Option<RawVerifier>,
    task: Option<&str>,
) -> Result<Option<VerifierChoice>> {
    let raw = match (raw, task) {
        (Some(RawVerifier::Table(table)), _) => table,
        (Some(RawVerifier::Name(name)), _) => RawVerifierTable { name, ..RawVerifierTable::default() },
        (None, Some(task)) => RawVerifierTable { name: task.to_owned(), ..RawVerifierTable::default() },
        (None, None) => return Ok(None),
    };
    let known: Vec<_> = verify::VERIFIERS.into_iter().chain([CODE, COMMAND]).map(|name| (name, ())).collect();
    at.choose(&KEY, &raw.name, &known)?;
    if let Some((option, of)) = raw.given().find(|(_, of)| !of.contains(&raw.name.as_str())) {
        return Err(at
            .bad(&KEY, format!("the verifier `{}` knows no `{option}`", raw.name))
            .fix(format!("remove it; it belongs to `{}`", of.join("` and `"))));
    }
    let program = program(at, &raw)?;
    let schema = raw.schema.as_deref().map(|schema| schema_text(at, schema)).transpose()?;
    let options = Options {
        ignore_articles: raw.ignore_articles.unwrap_or(false),
        case_sensitive: raw.case_sensitive.unwrap_or(false),
        pattern: raw.pattern,
        schema,
    };
    verify::verifier_with(&raw.name, &options)
        .map_err(|cause| at.bad(&KEY, format!("the verifier `{}`: {cause}", raw.name)))?;
    Ok(Some(VerifierChoice { name: raw.name, options, program }))
}

fn program(at: &Checker<'_>, raw: &RawVerifierTable) -> Result<Option<Program>> {
    if ![CODE, COMMAND].contains(&raw.name.as_str()) {
        return Ok(None);
    }
    let command = raw.command.clone().unwrap_or_default();
    if raw.name == COMMAND && command.first().is_none_or(String::is_empty) {
        return Err(at
            .bad(&KEY, "the verifier `command` has nothing to run")
            .fix("write `verifier = { name = \"command\", command = [\"./check\"] }`"));
    }
    at.count(&KEY, command.len(), 0..=WORDS_MAX)?;
    for word in &command {
        at.no_environment(&KEY, word)?;
    }
    let timeout_s = at.number(&KEY, raw.timeout_s.unwrap_or(TIMEOUT_S), 0.1..=3600.0)?;
    let memory = at.count(&KEY, raw.memory_mb.unwrap_or(MEMORY_MB), 32..=1 << 20)?;
    Ok(Some(Program { command, timeout_s, memory_mb: (raw.name == CODE).then_some(memory) }))
}

/// A schema itself, or the file that holds it: what a run depends on stands in its recipe.
fn schema_text(at: &Checker<'_>, given: &str) -> Result<String> {
    if given.trim_start().starts_with(['{', '[']) || ["true", "false"].contains(&given.trim()) {
        return Ok(given.to_owned());
    }
    let path = at.path(&KEY, Some(given.to_owned()))?.unwrap_or_default();
    let path = at.source.resolve_path(&path);
    let io = |error: std::io::Error| Failure::io("read", &path, &error).at(at.source.place(&KEY));
    if std::fs::metadata(&path).map_err(io)?.len() > SCHEMA_BYTES_MAX {
        return Err(at.bad(&KEY, format!("`{}` is too large for a schema", path.display())));
    }
    Ok(std::fs::read_to_string(&path).map_err(io)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::{ROWS, load, loaded};

    #[test]
    fn a_verifier_is_a_name_or_a_table_and_reads_back_as_itself() {
        for (given, shown) in [
            ("\"numeric_answer\"", "verifier = \"numeric_answer\""),
            ("{ name = \"multiple_choice\" }", "verifier = \"multiple_choice\""),
            ("{ name = \"exact_answer\", ignore_articles = true }", "ignore_articles = true"),
            ("{ name = \"regex\", pattern = '^\\d+$' }", "pattern = '^\\d+$'"),
            (
                "{ name = \"json_schema\", schema = '{\"type\": \"object\"}' }",
                "schema = '{\"type\": \"object\"}'",
            ),
            ("{ name = \"command\", command = [\"./check\", \"-x\"] }", "timeout_s = 10.0"),
            ("\"code\"", "memory_mb = 512"),
        ] {
            let text = loaded(&format!("{ROWS}verifier = {given}\n"), &[]).to_toml();
            assert!(text.contains(shown), "{text}");
        }
    }

    #[test]
    fn what_a_verifier_does_not_know_is_refused() {
        for (given, said) in [
            ("\"numeric_anser\"", "did you mean `numeric_answer`?"),
            ("{ name = \"regex\", schema = \"{}\" }", "the verifier `regex` knows no `schema`"),
            ("{ name = \"regex\", patern = \"x\" }", "a verifier is a name, or a table"),
            ("{ name = \"regex\", pattern = \"(\" }", "the verifier `regex`: unclosed group"),
            (
                "{ name = \"json_schema\", schema = '{\"format\": \"date\"}' }",
                "the keyword `format` is not known here",
            ),
            ("{ name = \"json_schema\", schema = \"none.json\" }", "none.json"),
            ("\"command\"", "has nothing to run"),
            ("{ name = \"command\", command = [\"./check\", \"${KEY}\"] }", "only secrets do"),
            ("{ name = \"code\", timeout_s = 0.0 }", "it lies between"),
        ] {
            let error = load(&format!("{ROWS}verifier = {given}\n"), &[]).expect_err(given).to_string();
            assert!(error.contains(said), "{given}: {error}");
        }
    }

    /// Every trace would be dropped after it was paid for.
    #[test]
    fn votes_need_a_verifier_that_finds_answers() {
        for (given, finds) in [
            ("\"numeric_answer\"", true),
            ("{ name = \"regex\", pattern = '\\d+$' }", true),
            ("\"regex\"", false),
            ("\"code\"", false),
            ("{ name = \"command\", command = [\"./check\"] }", false),
        ] {
            let voted = load(&format!("{ROWS}verifier = {given}\n"), &["curate.select=majority"]);
            assert_eq!(voted.is_ok(), finds, "{given}");
        }
    }
}

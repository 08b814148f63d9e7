//! The text of a recipe and the overrides laid over it: where each key stands, and what a wrong one may have meant.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use crate::failure::{Exit, Failure, Result};
use crate::recipe::raw::RawRecipe;
use crate::recipe::yaml;

/// A recipe is read whole; nobody writes one of this size.
const RECIPE_BYTES_MAX: u64 = 1 << 20;
/// Tables and arrays within each other; recipes need four.
pub(super) const DEPTH_MAX: usize = 16;
/// How like a known key an unknown one must be (Jaro–Winkler) before it is offered.
const LIKENESS_MIN: f64 = 0.8;

/// Keys that people know from other tools and that this version does not have.
const NOT_YET: &[&str] = &["bf16", "engine", "optim", "push_to_hub", "report_to"];

/// Keys of a loss that other tools keep beside the learning rate.
const OF_A_LOSS: &[&str] = &["alpha", "beta", "jsd_teacher_weight"];

/// Where a recipe comes from.
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    /// TOML: the file's text, or what a file in YAML says.
    text: String,
    /// The file's line of each line of `text`, where they differ.
    lines: Option<Vec<usize>>,
    /// Path of the key, and the override as typed.
    overrides: Vec<(Vec<String>, String)>,
}

impl Source {
    /// Reads the file and lays the overrides over it.
    pub(super) fn read(path: &Path, overrides: &[String]) -> Result<(Source, RawRecipe)> {
        let mut source =
            Source { path: path.to_path_buf(), text: read_text(path)?, lines: None, overrides: Vec::new() };
        if is_yaml(path) {
            source.translate()?;
        }
        source.parse(&source.text, None)?;
        let mut table: Table = source.text.parse().map_err(|e| source.refusal(&e, &source.text, None))?;
        for given in overrides {
            let (keys, value) = source.parse_override(given)?;
            lay_over(&mut table, &keys, value).map_err(|cause| {
                Failure::new(Exit::BadRecipe, cause).at(format!("--set {given}")).next(source.plan_command())
            })?;
            source.overrides.push((keys, given.clone()));
        }
        let raw = RawRecipe::deserialize(table)
            .map_err(|e| Failure::new(Exit::BadRecipe, e.message()).at(source.path.display().to_string()))?;
        Ok((source, raw))
    }

    /// From here on, a recipe in YAML is one in TOML that remembers its lines.
    fn translate(&mut self) -> Result<()> {
        let written = yaml::to_toml(&self.text).map_err(|fault| {
            Failure::new(Exit::BadRecipe, fault.cause)
                .at(format!("{}:{}", self.path.display(), fault.line))
                .fix("correct this line")
                .next(self.plan_command())
        })?;
        self.text = written.toml;
        self.lines = Some(written.lines);
        Ok(())
    }

    /// The file's line of an offset in its text.
    fn line(&self, offset: usize) -> usize {
        let line = line_of(&self.text, offset);
        self.lines.as_ref().and_then(|lines| lines.get(line - 1).copied()).unwrap_or(line)
    }

    /// The command that checks the recipe without running it.
    pub(crate) fn plan_command(&self) -> String {
        format!("stillroom plan {}", self.path.display())
    }

    /// A failure at a key.
    pub(crate) fn bad(&self, keys: &[&str], cause: impl Into<String>) -> Failure {
        Failure::new(Exit::BadRecipe, cause).at(self.place(keys)).next(self.plan_command())
    }

    /// `file:line` of a key, or of the nearest table around it, or the override that set it.
    pub(crate) fn place(&self, keys: &[&str]) -> String {
        for (set, given) in self.overrides.iter().rev() {
            if set.len() <= keys.len() && set.iter().zip(keys).all(|(a, b)| a == b) {
                return format!("--set {given}");
            }
        }
        let file = self.path.display();
        match DeTable::parse(&self.text).ok().and_then(|table| offset_of(table.get_ref(), keys)) {
            Some(offset) => format!("{file}:{}", self.line(offset)),
            None => file.to_string(),
        }
    }

    fn parse(&self, text: &str, given: Option<&str>) -> Result<()> {
        let refused = |e: toml::de::Error| self.refusal(&e, text, given);
        let table = DeTable::parse(text).map_err(refused)?;
        if depth(table.get_ref()) > DEPTH_MAX {
            return Err(Failure::new(Exit::BadRecipe, "tables are nested too deeply")
                .at(self.path.display().to_string()));
        }
        toml::from_str::<RawRecipe>(text).map(drop).map_err(refused)
    }

    fn parse_override(&self, given: &str) -> Result<(Vec<String>, Value)> {
        let usage = |cause: String| {
            Failure::new(Exit::Usage, cause)
                .at(format!("--set {given}"))
                .fix("write `--set table.key=value`, for example `--set train.max_steps=200`")
        };
        let (key, value) =
            given.split_once('=').ok_or_else(|| usage("an override needs a key and a value".into()))?;
        let parsed = |value: &str| format!("{} = {value}", key.trim());
        let typed = parsed(value);
        // What is no TOML value is a string: paths and names need no quotes.
        let quoted = parsed(&Value::String(value.to_owned()).to_string());
        let text = if typed.parse::<Table>().is_ok() && !value.contains('\n') { typed } else { quoted };
        let mut at = Value::Table(text.parse().map_err(|_| usage(format!("`{key}` is not a key")))?);
        self.parse(&text, Some(given))?;
        let mut keys = Vec::new();
        for _ in 0..key_depth(&text) {
            let Value::Table(table) = at else { return Err(usage(format!("`{key}` is not a key"))) };
            let inner = table.into_iter().next();
            let (name, value) = inner.ok_or_else(|| usage(format!("`{key}` is not a key")))?;
            keys.push(name);
            at = value;
        }
        Ok((keys, at))
    }

    /// What toml or serde refused, with its place and what may have been meant.
    fn refusal(&self, error: &toml::de::Error, text: &str, given: Option<&str>) -> Failure {
        let span = error.span();
        let place = match (given, &span) {
            (Some(given), _) => format!("--set {given}"),
            (None, Some(span)) => format!("{}:{}", self.path.display(), self.line(span.start)),
            (None, None) => self.path.display().to_string(),
        };
        let failure = match error.message().strip_prefix("unknown field ") {
            Some(rest) => {
                let keys = span
                    .and_then(|span| path_at(DeTable::parse(text).ok()?.get_ref(), span.start))
                    .unwrap_or_default();
                unknown_key(rest, &keys)
            }
            None => wrong_value(error.message()),
        };
        failure.at(place).next(self.plan_command())
    }
}

fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|found| ["yaml", "yml"].iter().any(|yaml| found.eq_ignore_ascii_case(yaml)))
}

fn read_text(path: &Path) -> Result<String> {
    let length = std::fs::metadata(path).map_err(|e| Failure::io("read", path, &e).code("no-recipe"))?.len();
    if length > RECIPE_BYTES_MAX {
        return Err(Failure::new(Exit::BadRecipe, format!("a recipe of {length} bytes is not a recipe"))
            .at(path.display().to_string()));
    }
    let bytes = std::fs::read(path).map_err(|e| Failure::io("read", path, &e).code("no-recipe"))?;
    String::from_utf8(bytes).map_err(|e| {
        let line = e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count() + 1;
        Failure::new(Exit::BadRecipe, "a recipe is UTF-8 text; this file is not")
            .at(format!("{}:{line}", path.display()))
    })
}

/// What serde says of types, in the words of a recipe.
fn wrong_value(message: &str) -> Failure {
    let message = message.replace('\n', ", ");
    let Some((given, wanted)) =
        message.strip_prefix("invalid type: ").and_then(|m| m.split_once(", expected "))
    else {
        return Failure::new(Exit::BadRecipe, message).fix("correct this line");
    };
    let wanted = match wanted {
        "u64" | "u32" | "usize" => "a whole number",
        "f64" => "a number",
        "a boolean" => "`true` or `false`",
        "a string" => "text in quotes",
        "a sequence" => "a list in `[` and `]`",
        other if other.starts_with("struct ") || other == "a map" => "a table",
        other => other,
    };
    Failure::new(Exit::BadRecipe, format!("{given} is not {wanted}")).fix(format!("write {wanted} here"))
}

/// `rest` is serde's: "`x`, expected one of `a`, `b`".
fn unknown_key(rest: &str, keys: &[String]) -> Failure {
    let mut quoted = rest.split('`').skip(1).step_by(2);
    let unknown = quoted.next().unwrap_or_default();
    let known: Vec<&str> = quoted.collect();
    let shown = if keys.is_empty() { unknown.to_owned() } else { keys.join(".") };
    if NOT_YET.contains(&unknown) {
        return Failure::new(Exit::BadRecipe, format!("`{shown}` is not supported yet"))
            .code("not-supported-yet")
            .fix("remove the key");
    }
    let failure = Failure::new(Exit::BadRecipe, format!("unknown key `{shown}`"));
    if OF_A_LOSS.contains(&unknown) {
        return failure.fix("it belongs to a loss: `loss_functions = [{ function = \"jsd\", beta = 0.5 }]`");
    }
    match did_you_mean(unknown, &known) {
        Some(meant) => failure.fix(format!("did you mean `{meant}`?")),
        None => failure.fix(format!("known here: {}", known.join(", "))),
    }
}

/// The known word most like `given`, if any is like it.
pub(crate) fn did_you_mean<'a>(given: &str, known: &[&'a str]) -> Option<&'a str> {
    let likeness = |word: &str| strsim::jaro_winkler(given, word);
    known
        .iter()
        .copied()
        .filter(|word| likeness(word) >= LIKENESS_MIN)
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
}

/// How many keys stand before the first `=` of `a.b.c = value`: the value may be a table itself.
fn key_depth(text: &str) -> usize {
    let (mut depth, mut quote) = (1, None);
    for c in text.chars() {
        match (quote, c) {
            (None, '"' | '\'') => quote = Some(c),
            (Some(q), c) if q == c => quote = None,
            (None, '.') => depth += 1,
            (None, '=') => break,
            _ => {}
        }
    }
    depth
}

fn lay_over(table: &mut Table, keys: &[String], value: Value) -> std::result::Result<(), String> {
    let Some((first, rest)) = keys.split_first() else { return Err("an override needs a key".into()) };
    if rest.is_empty() {
        table.insert(first.clone(), value);
        return Ok(());
    }
    match table.entry(first.clone()).or_insert_with(|| Value::Table(Table::new())) {
        Value::Table(inner) => lay_over(inner, rest, value),
        _ => Err(format!("`{first}` is not a table")),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|&&b| b == b'\n').count() + 1
}

fn depth(table: &DeTable<'_>) -> usize {
    fn of(value: &DeValue<'_>) -> usize {
        match value {
            DeValue::Table(table) => depth(table),
            DeValue::Array(items) => 1 + items.iter().map(|v| of(v.get_ref())).max().unwrap_or(0),
            _ => 0,
        }
    }
    1 + table.values().map(|v| of(v.get_ref())).max().unwrap_or(0)
}

/// Offset of a key, or of the innermost table around it that is there.
fn offset_of(table: &DeTable<'_>, keys: &[&str]) -> Option<usize> {
    let (first, rest) = keys.split_first()?;
    let (key, value) = table.iter().find(|(key, _)| key.get_ref() == first)?;
    let inner = match value.get_ref() {
        DeValue::Table(inner) => offset_of(inner, rest),
        _ => None,
    };
    inner.or(Some(key.span().start))
}

/// The keys that lead to the key which stands at `offset`.
fn path_at(table: &DeTable<'_>, offset: usize) -> Option<Vec<String>> {
    fn within(value: &Spanned<DeValue<'_>>, offset: usize) -> Option<Vec<String>> {
        match value.get_ref() {
            DeValue::Table(inner) => path_at(inner, offset),
            DeValue::Array(items) => items.iter().find_map(|item| within(item, offset)),
            _ => None,
        }
    }
    table.iter().find_map(|(key, value)| {
        let name = key.get_ref().to_string();
        if key.span().contains(&offset) {
            return Some(vec![name]);
        }
        within(value, offset).map(|rest| std::iter::once(name).chain(rest).collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::raw::RawWeight;

    fn read(text: &str, overrides: &[&str]) -> Result<(Source, RawRecipe)> {
        read_as(".toml", text, overrides)
    }

    fn read_as(suffix: &str, text: &str, overrides: &[&str]) -> Result<(Source, RawRecipe)> {
        let file = tempfile::Builder::new().suffix(suffix).tempfile().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let overrides: Vec<String> = overrides.iter().map(|o| (*o).to_owned()).collect();
        Source::read(file.path(), &overrides)
    }

    #[test]
    fn overrides_keep_their_type_and_win_over_the_file() {
        let text = "[train]\nmax_steps = 5\n[policy.declare.\"a.b\"]\nowner = \"us\"\n";
        let set = [
            "train.max_steps=7",
            "prompts.path=../shared/data",
            "teacher.logits={ kind = \"top_k\", k = 4 }",
            "policy.declare.\"a.b\".licence=MIT",
            "train.loss_functions=[{ function = \"forward_kl\", weight = 1 }]",
        ];
        let (source, raw) = read(text, &set).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(raw.train.as_ref().unwrap().max_steps, Some(7));
        assert_eq!(raw.train.unwrap().loss_functions.unwrap()[0].weight, Some(RawWeight::Constant(1.0)));
        assert_eq!(raw.prompts.unwrap().path.as_deref(), Some("../shared/data"));
        assert_eq!(raw.teacher.unwrap().logits.unwrap().k, Some(4));
        let declared = &raw.policy.unwrap().declare.unwrap()["a.b"];
        assert_eq!((declared.owner.as_deref(), declared.licence.as_deref()), (Some("us"), Some("MIT")));
        assert_eq!(source.place(&["train", "max_steps"]), "--set train.max_steps=7");
        assert!(source.place(&["policy", "declare", "a.b", "owner"]).ends_with(".toml:4"));
        assert!(source.place(&["policy", "declare", "a.b", "digest"]).ends_with(".toml:3"));
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_what_was_meant() {
        let failure = read("name = \"x\"\n\n[train]\nlerning_rate = 1e-3\n", &[]).err().unwrap();
        let shown = failure.to_string();
        assert!(shown.starts_with("error[bad-recipe]: unknown key `train.lerning_rate`\n"), "{shown}");
        assert!(shown.contains(".toml:4\n"), "{shown}");
        assert!(shown.contains("fix: did you mean `learning_rate`?"), "{shown}");
        let shown = read("[train]\nbeta = 0.5\n", &[]).err().unwrap().to_string();
        assert!(shown.contains("unknown key `train.beta`") && shown.contains("belongs to a loss"), "{shown}");
        let shown =
            read("", &["train.loss_functions=[{ weight = { from = 1 } }]"]).err().unwrap().to_string();
        assert!(shown.contains("a weight is a number, or"), "{shown}");
        let shown = read("", &["release.push_to_hub=true"]).err().unwrap().to_string();
        assert!(shown.starts_with("error[not-supported-yet]: `release.push_to_hub`"), "{shown}");
        let shown = read("", &["train.lora_target_linear=true"]).err().unwrap().to_string();
        assert!(shown.contains("did you mean `lora_target_modules`?"), "{shown}");
    }

    #[test]
    fn yaml_is_read_as_toml_is_with_lines_of_its_own() {
        let text = "name: x\n\ntrain:\n  max_steps: 5\n  learning_rate: 1e-3\npolicy:\n  declare:\n    a.b:\n      owner: us\n";
        for suffix in [".yaml", ".YML"] {
            let (source, raw) = read_as(suffix, text, &["train.seed=3"]).unwrap_or_else(|e| panic!("{e}"));
            let train = raw.train.unwrap();
            assert_eq!((train.max_steps, train.learning_rate, train.seed), (Some(5), Some(1e-3), Some(3)));
            assert_eq!(raw.policy.unwrap().declare.unwrap()["a.b"].owner.as_deref(), Some("us"));
            assert!(source.place(&["train", "max_steps"]).ends_with(":4"));
            assert!(source.place(&["policy", "declare", "a.b", "owner"]).ends_with(":9"));
            assert_eq!(source.place(&["train", "seed"]), "--set train.seed=3");
        }
        let shown = |text: &str| read_as(".yaml", text, &[]).err().unwrap().to_string();
        let unknown = shown("name: x\ntrain:\n  # how fast\n  lerning_rate: 1e-3\n");
        assert!(unknown.starts_with("error[bad-recipe]: unknown key `train.lerning_rate`\n"), "{unknown}");
        assert!(
            unknown.contains(".yaml:4\n") && unknown.contains("did you mean `learning_rate`?"),
            "{unknown}"
        );
        let in_list = shown("train:\n  loss_functions:\n    - function: forward_kl\n    - wieght: 1\n");
        assert!(
            in_list.contains("`train.loss_functions.wieght`") && in_list.contains(".yaml:4\n"),
            "{in_list}"
        );
        let of_type = shown("train:\n\n  max_steps: many\n");
        assert!(of_type.contains("is not a whole number") && of_type.contains(".yaml:3\n"), "{of_type}");
        let broken = shown("train: [1\n");
        assert!(broken.starts_with("error[bad-recipe]: ") && broken.contains(".yaml:"), "{broken}");
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = format!("x = {}1{}", "[".repeat(60), "]".repeat(60));
        assert!(read(&deep, &[]).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_and_no_override_makes_the_reader_panic(text in "\\PC{0,80}", set in "[a-z.\"=\\[{ 0-9]{0,20}") {
            drop(read(&text, &[&set]));
        }
    }
}

//! What a data set's card says about its files: the `configs` at the head of its `README.md`, as the Hugging Face hub has them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use saphyr_parser::{Event, Parser, ScalarStyle, StrInput};

use crate::CorpusError;

/// Longest head of a card.
const HEAD_BYTES_MAX: usize = 4 << 20;
/// Deepest nesting of values that are read.
const DEPTH_MAX: usize = 64;
/// Most configurations, splits of one, and patterns of one.
const ENTRIES_MAX: usize = 4096;
/// The split of files that are named without one.
const ONLY_SPLIT: &str = "train";

/// One way to read a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) name: String,
    /// It is taken where nobody chooses.
    pub(super) is_default: bool,
    /// Where its files are, from the data set's directory.
    pub(super) data_dir: Option<String>,
    /// Splits with the patterns of their files, in the card's order; empty where the card names none.
    pub(super) splits: Vec<(String, Vec<String>)>,
}

/// Where a directory would have its card.
pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join("README.md")
}

/// The configurations that the card of a directory names; none where there is no card, or none in it.
///
/// # Errors
/// Where the head is no YAML, or `configs` has not the hub's form.
pub(super) fn configs(dir: &Path) -> Result<Vec<Config>, CorpusError> {
    let path = path(dir);
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let mut bytes = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(HEAD_BYTES_MAX as u64).read_to_end(&mut bytes));
    read.map_err(|source| CorpusError::Io { path: path.clone(), source })?;
    let text = String::from_utf8_lossy(&bytes);
    let Some(head) = head(&text) else { return Ok(Vec::new()) };
    of_head(head).map_err(|problem| CorpusError::BadCard { path, problem })
}

/// What stands between a first line `---` and the next one.
fn head(text: &str) -> Option<&str> {
    let text = text.trim_start_matches('\u{feff}');
    let body = text.strip_prefix("---")?.trim_start_matches([' ', '\t', '\r']).strip_prefix('\n')?;
    let mut at = 0;
    for line in body.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return Some(&body[..at]);
        }
        at += line.len();
    }
    None
}

fn of_head(head: &str) -> Result<Vec<Config>, String> {
    let mut reader = Reader { events: Parser::new_from_str(head) };
    loop {
        match reader.next()? {
            Event::StreamEnd => return Ok(Vec::new()),
            Event::MappingStart(..) => break,
            Event::StreamStart | Event::DocumentStart(_) => {}
            _ => return Err("its head is no table of YAML".into()),
        }
    }
    let Node::Table(entries) = reader.table(0)? else { return Ok(Vec::new()) };
    match entries.into_iter().find(|(key, _)| key == "configs") {
        None | Some((_, Node::Nothing)) => Ok(Vec::new()),
        Some((_, Node::List(configs))) => within(configs.into_iter().map(config).collect()),
        Some(_) => Err("`configs` is no list".into()),
    }
}

/// What is read of a value. Anchors are not followed: what they would stand for is [`Node::Nothing`].
#[derive(Debug)]
enum Node {
    Nothing,
    Text(String),
    List(Vec<Node>),
    Table(Vec<(String, Node)>),
}

struct Reader<'a> {
    events: Parser<'a, StrInput<'a>>,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Event<'a>, String> {
        match self.events.next() {
            Some(Ok((event, _))) => Ok(event),
            Some(Err(error)) => Err(format!("line {}: {}", error.marker().line() + 1, error.info())),
            None => Err("its head ends too early".into()),
        }
    }

    fn table(&mut self, depth: usize) -> Result<Node, String> {
        let mut entries = Vec::new();
        loop {
            let key = match self.next()? {
                Event::MappingEnd => return Ok(Node::Table(entries)),
                event => self.node(event, depth + 1)?,
            };
            let event = self.next()?;
            let value = self.node(event, depth + 1)?;
            if let Node::Text(key) = key {
                entries.push((key, value));
            }
        }
    }

    fn node(&mut self, event: Event<'a>, depth: usize) -> Result<Node, String> {
        if depth > DEPTH_MAX {
            return Err("its head is nested too deeply".into());
        }
        match event {
            Event::Scalar(text, ScalarStyle::Plain, ..)
                if matches!(&*text, "" | "~" | "null" | "Null" | "NULL") =>
            {
                Ok(Node::Nothing)
            }
            Event::Scalar(text, ..) => Ok(Node::Text(text.into_owned())),
            Event::MappingStart(..) => self.table(depth),
            Event::SequenceStart(..) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        Event::SequenceEnd => return Ok(Node::List(items)),
                        event => items.push(self.node(event, depth + 1)?),
                    }
                }
            }
            _ => Ok(Node::Nothing),
        }
    }
}

fn config(node: Node) -> Result<Config, String> {
    let Node::Table(entries) = node else { return Err("an entry of `configs` is no table".into()) };
    let (mut name, mut is_default, mut data_dir, mut splits) = (None, None, None, Vec::new());
    for (key, value) in entries {
        match key.as_str() {
            "config_name" => name = text(value, "config_name")?,
            "default" => is_default = text(value, "default")?,
            "data_dir" => data_dir = text(value, "data_dir")?,
            "data_files" => splits = data_files(value)?,
            _ => {}
        }
    }
    let is_default = is_default.is_some_and(|said| said.eq_ignore_ascii_case("true"));
    Ok(Config { name: name.unwrap_or_else(|| "default".into()), is_default, data_dir, splits })
}

fn text(node: Node, key: &str) -> Result<Option<String>, String> {
    match node {
        Node::Nothing => Ok(None),
        Node::Text(text) => Ok(Some(text)),
        _ => Err(format!("`{key}` is no text")),
    }
}

/// A pattern, a list of patterns, or a list of `{split, path}`; a table of patterns by split is read as well.
fn data_files(node: Node) -> Result<Vec<(String, Vec<String>)>, String> {
    let mut splits: Vec<(String, Vec<String>)> = Vec::new();
    let mut add =
        |split: String, patterns: Vec<String>| match splits.iter_mut().find(|(name, _)| *name == split) {
            Some((_, known)) => known.extend(patterns),
            None => splits.push((split, patterns)),
        };
    match node {
        Node::Nothing => {}
        Node::Text(pattern) => add(ONLY_SPLIT.into(), vec![pattern]),
        Node::Table(entries) => {
            for (split, paths) in entries {
                add(split, patterns(paths)?);
            }
        }
        Node::List(items) => {
            for item in items {
                match item {
                    Node::Table(entries) => {
                        let (split, paths) = split_and_paths(entries)?;
                        add(split, patterns(paths)?);
                    }
                    other => add(ONLY_SPLIT.into(), patterns(other)?),
                }
            }
        }
    }
    within(
        splits
            .into_iter()
            .map(|(split, patterns)| Ok((split, within(patterns.into_iter().map(Ok).collect())?)))
            .collect(),
    )
}

fn split_and_paths(entries: Vec<(String, Node)>) -> Result<(String, Node), String> {
    let (mut split, mut paths) = (None, Node::Nothing);
    for (key, value) in entries {
        match key.as_str() {
            "split" => split = text(value, "split")?,
            "path" => paths = value,
            _ => {}
        }
    }
    Ok((split.unwrap_or_else(|| ONLY_SPLIT.into()), paths))
}

fn patterns(node: Node) -> Result<Vec<String>, String> {
    let items = match node {
        Node::List(items) => items,
        item => vec![item],
    };
    let pattern = |item| match item {
        Node::Text(pattern) => Ok(pattern),
        _ => Err("`data_files` has neither patterns nor `split` and `path`".to_owned()),
    };
    items.into_iter().map(pattern).collect()
}

/// A list that is short enough.
fn within<T>(list: Result<Vec<T>, String>) -> Result<Vec<T>, String> {
    list.and_then(|list| match list.len() <= ENTRIES_MAX {
        true => Ok(list),
        false => Err(format!("`configs` has a list of more than {ENTRIES_MAX} entries")),
    })
}

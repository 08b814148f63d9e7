//! A recipe in YAML, written out as TOML: one line per value, each with the line that it came from.
//!
//! What follows (unknown keys, types, overrides, places) is then the same for both. The YAML of recipes is
//! its plain core: mappings, sequences and scalars by the 1.2 core schema, in which `1e-3` is a number and
//! `no` is text. Anchors, aliases, tags and a second document are refused.

use saphyr_parser::{Event, Parser, ScalarStyle, StrInput};

use super::source::DEPTH_MAX;

/// TOML, and the line of the YAML text that each of its lines came from.
pub(super) struct Written {
    pub(super) toml: String,
    pub(super) lines: Vec<usize>,
}

/// Why a text is no recipe in YAML, and in which line.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) cause: String,
    pub(super) line: usize,
}

type Result<T> = std::result::Result<T, Fault>;

enum Node {
    /// As TOML writes it.
    Scalar(String),
    List(Vec<(usize, Node)>),
    Table(Vec<(String, usize, Node)>),
}

pub(super) fn to_toml(text: &str) -> Result<Written> {
    let mut reader = Reader { events: Parser::new_from_str(text), line: 1 };
    let mut written = Written { toml: String::new(), lines: Vec::new() };
    reader.expect(&Event::StreamStart)?;
    match reader.next()? {
        Event::StreamEnd => return Ok(written),
        Event::DocumentStart(_) => {}
        _ => return Err(reader.fault("this is not the beginning of a document")),
    }
    let root = match reader.next()? {
        Event::Scalar(text, ScalarStyle::Plain, 0, None) if is_null(&text) => Vec::new(),
        Event::MappingStart(0, None) => reader.table(1)?,
        other => return Err(reader.unfit(&other, "a recipe is a mapping of keys")),
    };
    reader.expect(&Event::DocumentEnd)?;
    if !matches!(reader.next()?, Event::StreamEnd) {
        return Err(reader.fault("a recipe is one document"));
    }
    written.table("", &root);
    Ok(written)
}

struct Reader<'a> {
    events: Parser<'a, StrInput<'a>>,
    /// Of the last event.
    line: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Event<'a>> {
        match self.events.next() {
            Some(Ok((event, span))) => {
                self.line = span.start.line();
                Ok(event)
            }
            Some(Err(error)) => Err(Fault { cause: error.info().to_owned(), line: error.marker().line() }),
            None => Err(self.fault("the text ends too early")),
        }
    }

    fn expect(&mut self, wanted: &Event<'_>) -> Result<()> {
        let found = self.next()?;
        if found == *wanted { Ok(()) } else { Err(self.fault("this is no recipe")) }
    }

    fn fault(&self, cause: impl Into<String>) -> Fault {
        Fault { cause: cause.into(), line: self.line }
    }

    /// An event that cannot stand here, by what is wrong with it.
    fn unfit(&self, event: &Event<'_>, otherwise: &str) -> Fault {
        self.fault(match event {
            Event::Alias(_) => "anchors and aliases are not read: write the value out",
            Event::Scalar(_, _, anchor, _)
            | Event::SequenceStart(anchor, _)
            | Event::MappingStart(anchor, _)
                if *anchor != 0 =>
            {
                "anchors and aliases are not read: write the value out"
            }
            Event::Scalar(_, _, _, Some(_))
            | Event::SequenceStart(_, Some(_))
            | Event::MappingStart(_, Some(_)) => "tags are not read: write a plain value, text in quotes",
            _ => otherwise,
        })
    }

    fn table(&mut self, depth: usize) -> Result<Vec<(String, usize, Node)>> {
        let mut entries: Vec<(String, usize, Node)> = Vec::new();
        loop {
            let key = match self.next()? {
                Event::MappingEnd => return Ok(entries),
                Event::Scalar(key, _, 0, None) => key.into_owned(),
                other => return Err(self.unfit(&other, "a key is a word")),
            };
            let line = self.line;
            if entries.iter().any(|(known, _, _)| *known == key) {
                return Err(self.fault(format!("`{key}` stands twice")));
            }
            let value = self.next()?;
            if matches!(&value, Event::Scalar(text, ScalarStyle::Plain, 0, None) if is_null(text)) {
                return Err(Fault { cause: format!("`{key}` has no value"), line });
            }
            let node = self.node(value, depth)?;
            entries.push((key, line, node));
        }
    }

    fn node(&mut self, event: Event<'a>, depth: usize) -> Result<Node> {
        if depth >= DEPTH_MAX {
            return Err(self.fault("tables are nested too deeply"));
        }
        match event {
            Event::Scalar(text, ScalarStyle::Plain, 0, None) => {
                plain(&text).map(Node::Scalar).map_err(|cause| self.fault(cause))
            }
            Event::Scalar(text, _, 0, None) => Ok(Node::Scalar(quoted(&text))),
            Event::MappingStart(0, None) => Ok(Node::Table(self.table(depth + 1)?)),
            Event::SequenceStart(0, None) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        Event::SequenceEnd => return Ok(Node::List(items)),
                        item => {
                            let line = self.line;
                            items.push((line, self.node(item, depth + 1)?));
                        }
                    }
                }
            }
            other => Err(self.unfit(&other, "this is no value")),
        }
    }
}

impl Written {
    fn line(&mut self, text: &str, from: usize) {
        self.toml.push_str(text);
        self.toml.push('\n');
        self.lines.push(from);
    }

    fn table(&mut self, prefix: &str, entries: &[(String, usize, Node)]) {
        for (key, from, node) in entries {
            let path = format!("{prefix}{}", key_in_toml(key));
            match node {
                Node::Table(inner) if !inner.is_empty() => self.table(&format!("{path}."), inner),
                Node::List(items) if !items.is_empty() => {
                    self.line(&format!("{path} = ["), *from);
                    for (from, item) in items {
                        self.line(&format!("{},", in_line(item)), *from);
                    }
                    self.line("]", *from);
                }
                other => self.line(&format!("{path} = {}", in_line(other)), *from),
            }
        }
    }
}

fn in_line(node: &Node) -> String {
    let joined = |parts: Vec<String>| parts.join(", ");
    match node {
        Node::Scalar(literal) => literal.clone(),
        Node::List(items) => format!("[{}]", joined(items.iter().map(|(_, item)| in_line(item)).collect())),
        Node::Table(entries) => {
            let entry =
                |(key, _, node): &(String, usize, Node)| format!("{} = {}", key_in_toml(key), in_line(node));
            format!("{{ {} }}", joined(entries.iter().map(entry).collect()))
        }
    }
}

fn key_in_toml(key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if !key.is_empty() && key.chars().all(bare) { key.to_owned() } else { quoted(key) }
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// A scalar without quotes, by YAML's core schema.
fn plain(text: &str) -> std::result::Result<String, String> {
    match text {
        "true" | "True" | "TRUE" => return Ok("true".to_owned()),
        "false" | "False" | "FALSE" => return Ok("false".to_owned()),
        _ if is_null(text) => return Err("a value is missing".to_owned()),
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let hex = |n: &&str| n.bytes().all(|b| b.is_ascii_hexdigit());
    let radix = |prefix: &str, radix: u32| {
        text.strip_prefix(prefix).filter(hex).map(|n| i64::from_str_radix(n, radix))
    };
    let whole = if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        Some(text.parse::<i64>())
    } else {
        radix("0x", 16).or_else(|| radix("0o", 8)).filter(|n| n.is_ok())
    };
    if let Some(whole) = whole {
        return whole.map(|n| n.to_string()).map_err(|_| format!("`{text}` is too large a number"));
    }
    match digits {
        ".inf" | ".Inf" | ".INF" => return Ok(if text.starts_with('-') { "-inf" } else { "inf" }.to_owned()),
        ".nan" | ".NaN" | ".NAN" if digits.len() == text.len() => return Ok("nan".to_owned()),
        _ => {}
    }
    let like_a_number = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
    match text.parse::<f64>() {
        Ok(number) if like_a_number => Ok(format!("{number:?}")),
        _ => Ok(quoted(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_follow_the_core_schema() {
        for (yaml, toml) in [
            ("1e-3", "0.001"),
            ("1.", "1.0"),
            (".5", "0.5"),
            ("-2E+2", "-200.0"),
            ("007", "7"),
            ("+3", "3"),
            ("0x1F", "31"),
            ("0o17", "15"),
            ("-.inf", "-inf"),
            (".nan", "nan"),
            ("True", "true"),
            ("no", "\"no\""),
            ("1_000", "\"1_000\""),
            ("0xZZ", "\"0xZZ\""),
            ("2026-01-02", "\"2026-01-02\""),
            ("1.2.3", "\"1.2.3\""),
            ("a\"b\\c\u{1}", "\"a\\\"b\\\\c\\u0001\""),
        ] {
            assert_eq!(plain(yaml).unwrap(), toml, "{yaml}");
        }
        assert!(plain("99999999999999999999").unwrap_err().contains("too large"));
    }

    #[test]
    fn each_line_knows_where_it_came_from() {
        let yaml = "# a recipe\nname: x\ntrain:\n  learning_rate: 1e-3\n  loss_functions:\n    - function: forward_kl\n      weight: 1\n\n    - {function: hard_labels}\npolicy:\n  declare:\n    us:mine: {owner: 'us', licence: \"MIT\"}\n  accept: []\ncurate: {}\n";
        let written = to_toml(yaml).unwrap();
        let expected = [
            (2, "name = \"x\""),
            (4, "train.learning_rate = 0.001"),
            (5, "train.loss_functions = ["),
            (6, "{ function = \"forward_kl\", weight = 1 },"),
            (9, "{ function = \"hard_labels\" },"),
            (5, "]"),
            (12, "policy.declare.\"us:mine\".owner = \"us\""),
            (12, "policy.declare.\"us:mine\".licence = \"MIT\""),
            (13, "policy.accept = []"),
            (14, "curate = {  }"),
        ];
        let found: Vec<(usize, &str)> = written.lines.iter().copied().zip(written.toml.lines()).collect();
        assert_eq!(found, expected);
        assert!(written.toml.parse::<toml::Table>().is_ok());
        assert!(to_toml("").unwrap().toml.is_empty() && to_toml("# nothing\n").unwrap().toml.is_empty());
    }

    #[test]
    fn what_recipes_do_not_need_is_refused_with_its_line() {
        for (yaml, cause, line) in [
            ("a: &x 1\nb: *x\n", "anchors and aliases", 1),
            ("a: !!str 1\n", "tags are not read", 1),
            ("a: 1\n---\nb: 2\n", "one document", 2),
            ("a: 1\nb:\nc: 2\n", "`b` has no value", 2),
            ("a: 1\na: 2\n", "`a` stands twice", 2),
            ("- a\n", "a mapping of keys", 1),
            ("? [a]\n: 1\n", "a key is a word", 1),
            ("a: [1, ~]\n", "a value is missing", 1),
        ] {
            let fault = to_toml(yaml).err().unwrap();
            assert!(fault.cause.contains(cause) && fault.line == line, "{yaml}: {fault:?}");
        }
        assert!(to_toml("a: [1\n").is_err() && to_toml("a: \"b\n").is_err());
        let deep = format!("a: {}1{}", "[".repeat(60), "]".repeat(60));
        assert!(to_toml(&deep).err().unwrap().cause.contains("too deeply"));
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_toml_whatever_is_read(text in "[a-c:\\-\\[\\]{}, \n\"'0-9.e!&*#|>~\u{85}\u{7f}\u{e4}?%@]{0,60}") {
            if let Ok(written) = to_toml(&text) {
                proptest::prop_assert!(written.toml.parse::<toml::Table>().is_ok(), "{}", written.toml);
                proptest::prop_assert_eq!(written.toml.lines().count(), written.lines.len());
            }
        }
    }
}

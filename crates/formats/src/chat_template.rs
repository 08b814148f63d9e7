//! Chat templates: Jinja as transformers renders it, with limits.

use std::fmt::Write as _;
use std::io;
use std::ops::Range;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value, context};
use serde::Serialize;
use serde_json::Value as Json;
use stillroom_core::{Message, Role};

use crate::error::{FormatError, Result};

mod generation;

const SOURCE_BYTES_MAX: usize = 1 << 20;
/// Steps of one rendering; the engine charges one per instruction and one per 64 bytes made.
const FUEL: u64 = 250_000;
const RENDERED_BYTES_MAX: usize = 1 << 24;
/// Depth of nested blocks, calls and JSON values.
const DEPTH_MAX: usize = 100;
const NAME: &str = "chat";

/// A compiled chat template.
#[derive(Clone)]
pub struct ChatTemplate {
    source: String,
    environment: Environment<'static>,
    /// The same with marks around what stands between generation tags, where the template has them.
    marked: Option<Environment<'static>>,
}

/// What a template sees.
pub(crate) struct Rendering<'a> {
    pub(crate) messages: &'a [Message],
    pub(crate) add_generation_prompt: bool,
    pub(crate) bos_token: &'a str,
    pub(crate) eos_token: &'a str,
}

impl Rendering<'_> {
    /// What the conversation's first turn offers.
    fn tools(&self) -> &[Json] {
        self.messages.first().map_or(&[], |message| &message.tools)
    }
}

impl ChatTemplate {
    /// From the text of a `chat_template.jinja`.
    pub fn new(source: String) -> Result<ChatTemplate> {
        if source.len() > SOURCE_BYTES_MAX {
            let (value, limit) = (source.len() as u64, SOURCE_BYTES_MAX as u64);
            return Err(FormatError::TooLarge { what: "chat template".to_owned(), value, limit });
        }
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(wrong)?;
        let mut environment = Environment::new();
        environment.set_syntax(syntax);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(DEPTH_MAX);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment.add_test("iterable", is_iterable);
        generation::define(&mut environment, false);
        // Jinja reads every kind of line end as one.
        let (jinja, has_tags) = generation::as_calls(&source.replace("\r\n", "\n").replace('\r', "\n"));
        environment.add_template_owned(NAME, jinja).map_err(wrong)?;
        let marked = has_tags.then(|| {
            let mut marked = environment.clone();
            generation::define(&mut marked, true);
            marked
        });
        Ok(ChatTemplate { source, environment, marked })
    }

    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// A conversation as a text that its reply continues, without the token that a text begins with: who reads texts puts
    /// that before them.
    pub fn prompt(&self, messages: &[Message]) -> Result<String> {
        self.render(&Rendering { messages, add_generation_prompt: true, bos_token: "", eos_token: "" })
    }

    /// Whether the template has the token that ends a turn by its name, which only a tokenizer's configuration knows.
    pub fn names_eos_token(&self) -> bool {
        self.source.contains("eos_token")
    }

    /// Whether the template has a place for reasoning.
    pub(crate) fn knows_reasoning(&self) -> bool {
        let names = ["reasoning_content", ".thinking", "'thinking'", "\"thinking\""];
        names.iter().any(|name| self.source.contains(name))
    }

    /// Whether the template has a place for tool calls.
    fn knows_tools(&self, offered: bool) -> bool {
        self.source.contains("tool_calls") && (!offered || self.source.contains("tools"))
    }

    /// Whether the template says by `{% generation %}` what the assistant wrote.
    pub(crate) fn has_generation_tags(&self) -> bool {
        self.marked.is_some()
    }

    pub(crate) fn render(&self, input: &Rendering<'_>) -> Result<String> {
        let offered = !input.tools().is_empty();
        if input.messages.iter().any(Message::uses_tools) && !self.knows_tools(offered) {
            return Err(FormatError::NoToolCalls);
        }
        render_in(&self.environment, input)
    }

    /// The text, and the bytes of it that stand between generation tags.
    pub(crate) fn render_spans(&self, input: &Rendering<'_>) -> Result<(String, Vec<Range<usize>>)> {
        let plain = self.render(input)?;
        let Some(marked) = &self.marked else { return Ok((plain, Vec::new())) };
        let (text, spans) = generation::spans(&render_in(marked, input)?)?;
        if text == plain { Ok((plain, spans)) } else { Err(generation::torn()) }
    }
}

fn render_in(environment: &Environment<'static>, input: &Rendering<'_>) -> Result<String> {
    let template = environment.get_template(NAME).map_err(wrong)?;
    let turns: Vec<Turn<'_>> = input.messages.iter().map(Turn::new).collect();
    let context = context! {
        messages => Value::from(Serde(turns)),
        add_generation_prompt => input.add_generation_prompt,
        bos_token => input.bos_token,
        eos_token => input.eos_token,
        tools => if input.tools().is_empty() { Value::from(()) } else { Value::from(Serde(input.tools())) },
        documents => (),
    };
    let mut text = Capped(Vec::new());
    template.render_captured_to(context, &mut text).map_err(wrong)?;
    String::from_utf8(text.0).map_err(|error| FormatError::ChatTemplate { what: error.to_string() })
}

/// A message, with its reasoning under the name that some templates read as well.
#[derive(Serialize)]
struct Turn<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking: Option<&'a str>,
    role: Role,
    content: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "<[Json]>::is_empty")]
    tool_calls: &'a [Json],
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

impl<'a> Turn<'a> {
    fn new(message: &'a Message) -> Turn<'a> {
        let reasoning = message.reasoning_content.as_deref();
        Turn {
            thinking: reasoning,
            role: message.role,
            content: &message.content,
            reasoning_content: reasoning,
            tool_calls: &message.tool_calls,
            tool_call_id: message.tool_call_id.as_deref(),
            name: message.name.as_deref(),
        }
    }
}

/// Collects output up to a cap.
struct Capped(Vec<u8>);

impl io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > RENDERED_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the rendered text is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn wrong(error: Error) -> FormatError {
    let mut what = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        let _ = write!(what, ": {cause}");
        source = cause.source();
    }
    FormatError::ChatTemplate { what }
}

/// As in Python: none is not iterable, an undefined value is (and has no items).
fn is_iterable(value: &Value) -> bool {
    use ValueKind::{Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), Iterable | Map | Seq | String | Undefined)
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// `strftime_now` of a fixed day, Friday 26 July 2024, noon: the same conversation must give the
/// same tokens tomorrow. (It is the day that Llama 3's template falls back to.)
fn strftime_now(format: String) -> Result<String, Error> {
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        text.push_str(match chars.next() {
            Some('Y') => "2024",
            Some('y') => "24",
            Some('m') => "07",
            Some('d') => "26",
            Some('B') => "July",
            Some('b') => "Jul",
            Some('A') => "Friday",
            Some('a') => "Fri",
            Some('H' | 'I') => "12",
            Some('p') => "PM",
            Some('M' | 'S') => "00",
            Some('%') => "%",
            other => {
                let what = format!("strftime_now does not know `%{}`", other.unwrap_or(' '));
                return Err(Error::new(ErrorKind::InvalidOperation, what));
            }
        });
    }
    Ok(text)
}

/// `tojson` as transformers defines it: Python's `json.dumps` with `ensure_ascii=False` and no
/// HTML escapes.
fn to_json(value: Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    if indent.is_some_and(|indent| indent > 16) {
        return Err(Error::new(ErrorKind::InvalidOperation, "indent above 16"));
    }
    let json = serde_json::to_value(&value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    let mut text = String::new();
    write_json(&json, indent, 0, &mut text)?;
    Ok(text)
}

fn write_json(value: &Json, indent: Option<usize>, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > DEPTH_MAX {
        return Err(Error::new(ErrorKind::InvalidOperation, "JSON nested too deeply"));
    }
    let new_line = |out: &mut String, depth: usize| {
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    let separator = if indent.is_some() { "," } else { ", " };
    match value {
        Json::Array(items) if !items.is_empty() => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i == 0 { "" } else { separator });
                new_line(out, depth + 1);
                write_json(item, indent, depth + 1, out)?;
            }
            new_line(out, depth);
            out.push(']');
        }
        Json::Object(fields) if !fields.is_empty() => {
            out.push('{');
            for (i, (key, item)) in fields.iter().enumerate() {
                out.push_str(if i == 0 { "" } else { separator });
                new_line(out, depth + 1);
                let _ = write!(out, "{}: ", Json::String(key.clone()));
                write_json(item, indent, depth + 1, out)?;
            }
            new_line(out, depth);
            out.push('}');
        }
        plain => {
            let _ = write!(out, "{plain}");
        }
    }
    Ok(())
}

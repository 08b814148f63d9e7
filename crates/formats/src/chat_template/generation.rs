//! `{% generation %}` … `{% endgeneration %}`: which part of a chat the assistant wrote.
//!
//! transformers makes a call block of the tag, and so do we: what is set inside stays inside, and white space is
//! controlled as the tag says. The call returns its body, between marks where the spans are asked for.

use std::ops::Range;

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, State, Value};

use crate::error::{FormatError, Result};

/// Stand around the assistant's text in a marked rendering: Unicode noncharacters, which no text has a use for.
const OPEN: char = '\u{FDD3}';
const CLOSE: char = '\u{FDD4}';
/// The function that the tag calls. No template knows its name.
const FUNCTION: &str = "stillroom_generation";

/// The template with its generation tags as call blocks, and whether it has any. What stands in comments, in raw blocks
/// and in strings is no tag.
pub(super) fn as_calls(source: &str) -> (String, bool) {
    let mut text = String::with_capacity(source.len());
    let (mut rest, mut found, mut depth) = (source, false, 0usize);
    while let Some(start) = rest.as_bytes().windows(2).position(|pair| matches!(pair, b"{%" | b"{{" | b"{#"))
    {
        text.push_str(&rest[..start]);
        rest = &rest[start..];
        let end = match &rest[..2] {
            "{#" => rest.find("#}").map(|at| at + 2),
            "{{" => end_of(rest, "}}"),
            _ => end_of(rest, "%}"),
        };
        let Some(end) = end else { break };
        let (tag, after) = rest.split_at(end);
        rest = after;
        if !tag.starts_with("{%") {
            text.push_str(tag);
            continue;
        }
        let inside = tag[2..tag.len() - 2].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let name = inside.split(|c: char| c.is_whitespace() || c == '(').next().unwrap_or_default();
        match name {
            "generation" | "macro" | "call" => depth += 1,
            "endgeneration" | "endmacro" | "endcall" => depth = depth.saturating_sub(1),
            _ => {}
        }
        match name {
            "generation" if inside == name => {
                found = true;
                text.push_str(&tag.replace(name, &format!("call {FUNCTION}()")));
            }
            "endgeneration" if inside == name => text.push_str(&tag.replace(name, "endcall")),
            "set" if depth > 0 => match with_its_namespace(inside) {
                Some(set) => text.push_str(&tag.replace(inside, &set)),
                None => text.push_str(tag),
            },
            "raw" => {
                let length = rest.find("endraw").unwrap_or(rest.len());
                text.push_str(tag);
                text.push_str(&rest[..length]);
                rest = &rest[length..];
            }
            _ => text.push_str(tag),
        }
    }
    text.push_str(rest);
    (text, found)
}

/// `set space.name = value` so that it reads `space` as well: the engine takes into a call block or a macro only those
/// variables of its surroundings that are read there, while in Jinja it can write to each.
fn with_its_namespace(set: &str) -> Option<String> {
    let (target, value) = set.strip_prefix("set")?.split_once('=')?;
    let (space, name) = target.trim().split_once('.')?;
    let is_word = |text: &str| text.chars().all(|c| c.is_alphanumeric() || c == '_');
    (is_word(space) && is_word(name)).then(|| format!("set {space}.{name} = [({value}), {space}][0]"))
}

/// Where the tag ends that `text` begins with; what stands in strings does not end it.
fn end_of(text: &str, close: &str) -> Option<usize> {
    let mut quote = None;
    let mut chars = text.char_indices().skip(2);
    while let Some((at, c)) = chars.next() {
        match quote {
            Some(_) if c == '\\' => {
                chars.next();
            }
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if text[at..].starts_with(close) => return Some(at + close.len()),
            None if c == '"' || c == '\'' => quote = Some(c),
            None => {}
        }
    }
    None
}

/// Lets the templates of `environment` call the function that [`as_calls`] writes.
pub(super) fn define(environment: &mut Environment<'static>, marked: bool) {
    environment.add_function(
        FUNCTION,
        move |state: &mut State<'_, '_>, body: Kwargs| -> Result<Value, Error> {
            let caller: Value = body.get("caller")?;
            let text = caller.call(state, &[])?;
            Ok(if marked { Value::from(format!("{OPEN}{text}{CLOSE}")) } else { text })
        },
    );
}

/// The text of a marked rendering without its marks, and the bytes of it that stood between them.
pub(super) fn spans(marked: &str) -> Result<(String, Vec<Range<usize>>)> {
    let mut text = String::with_capacity(marked.len());
    let (mut spans, mut depth, mut start): (Vec<Range<usize>>, usize, usize) = Default::default();
    for c in marked.chars() {
        match c {
            OPEN => {
                if depth == 0 {
                    start = text.len();
                }
                depth += 1;
            }
            CLOSE => {
                depth = depth.checked_sub(1).ok_or_else(torn)?;
                if depth == 0 {
                    spans.push(start..text.len());
                }
            }
            other => text.push(other),
        }
    }
    if depth > 0 { Err(torn()) } else { Ok((text, spans)) }
}

/// For templates that work on what stands between the tags, so that the tags are no longer where they were.
pub(super) fn torn() -> FormatError {
    FormatError::GenerationTags { what: "the template changes what its tags have enclosed".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_become_calls_and_nothing_else_does() {
        let (text, found) =
            as_calls("a{%- generation -%} b {% endgeneration %}{%generation%}{%+ endgeneration -%}");
        assert!(found);
        assert_eq!(
            text,
            "a{%- call stillroom_generation() -%} b {% endcall %}{%call stillroom_generation()%}{%+ endcall -%}"
        );
        for other in [
            "{# {% generation %} #}",
            "{{ '{% generation %}' }}",
            "{% set x = \"\\\"%}{% generation %}\" %}",
            "{% raw %}{% generation %}{% endraw %}",
            "{% if generation %}{{ generation }}{% endif %}",
            "{% generation",
            "{{ 'open {% generation %}",
        ] {
            assert_eq!(as_calls(other), (other.to_owned(), false), "{other}");
        }
        let long = "{% if a %}".repeat(100_000);
        assert_eq!(as_calls(&long), (long.clone(), false), "in time that grows with the length");
    }

    #[test]
    fn marks_give_spans_and_torn_ones_are_refused() {
        let marked = "a\u{FDD3}bc\u{FDD3}é\u{FDD4}\u{FDD4}d\u{FDD3}\u{FDD4}";
        assert_eq!(spans(marked).expect("whole"), ("abcéd".to_owned(), vec![1..5, 6..6]));
        for bad in ["\u{FDD3}", "\u{FDD4}", "\u{FDD3}a\u{FDD4}\u{FDD4}"] {
            assert!(matches!(spans(bad), Err(FormatError::GenerationTags { .. })), "{bad:?}");
        }
    }
}

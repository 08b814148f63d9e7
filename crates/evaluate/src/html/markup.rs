//! Markup that cannot be injected into: tag and attribute names are literals of this program, all
//! text and every attribute value is escaped.

use std::fmt::Display;

/// HTML (with inline SVG) under construction.
#[derive(Default)]
pub(super) struct Markup {
    out: String,
}

pub(super) type Attributes<'a> = &'a [(&'static str, &'a dyn Display)];

impl Markup {
    pub(super) fn into_string(self) -> String {
        self.out
    }

    /// Text of this program, as it stands.
    pub(super) fn literal(&mut self, markup: &'static str) -> &mut Markup {
        self.out.push_str(markup);
        self
    }

    /// Any text, escaped.
    pub(super) fn text(&mut self, text: impl Display) -> &mut Markup {
        escape(&text.to_string(), &mut self.out);
        self
    }

    /// An element with what `content` writes inside.
    pub(super) fn nest(
        &mut self,
        tag: &'static str,
        attributes: Attributes<'_>,
        content: impl FnOnce(&mut Markup),
    ) -> &mut Markup {
        self.open(tag, attributes);
        content(self);
        self.close(tag)
    }

    /// An element that holds text only.
    pub(super) fn element(
        &mut self,
        tag: &'static str,
        attributes: Attributes<'_>,
        text: impl Display,
    ) -> &mut Markup {
        self.nest(tag, attributes, |markup| {
            markup.text(text);
        })
    }

    /// An element without content, closed as SVG wants it.
    pub(super) fn empty(&mut self, tag: &'static str, attributes: Attributes<'_>) -> &mut Markup {
        self.open(tag, attributes);
        self.out.pop();
        self.out.push_str("/>");
        self
    }

    fn open(&mut self, tag: &'static str, attributes: Attributes<'_>) {
        self.out.push('<');
        self.out.push_str(tag);
        for (name, value) in attributes {
            self.out.push(' ');
            self.out.push_str(name);
            self.out.push_str("=\"");
            escape(&value.to_string(), &mut self.out);
            self.out.push('"');
        }
        self.out.push('>');
    }

    fn close(&mut self, tag: &'static str) -> &mut Markup {
        self.out.push_str("</");
        self.out.push_str(tag);
        self.out.push('>');
        // A line for each block keeps the file readable and its differences small.
        if !matches!(tag, "span" | "b" | "code" | "sup" | "a" | "bdi" | "td" | "th" | "dt" | "dd" | "tspan") {
            self.out.push('\n');
        }
        self
    }
}

/// Escapes what HTML gives a meaning, and shows what could deceive a reader instead of obeying
/// it: control characters, and the marks that reorder text.
fn escape(text: &str, out: &mut String) {
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(character),
            '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => hidden(character, out),
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                hidden(character, out)
            }
            _ => out.push(character),
        }
    }
}

/// `[U+202E]`.
fn hidden(character: char, out: &mut String) {
    out.push_str(&format!("[U+{:04X}]", character as u32));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_text_or_attributes_is_markup() {
        let hostile = "</pre><script>alert(1)</script>\" onload='x' &amp; \u{1b}[31m\u{202e}evil\u{0}";
        let mut markup = Markup::default();
        markup.element("pre", &[("title", &hostile)], hostile);
        let html = markup.into_string();
        assert_eq!(html.matches('<').count(), 2, "{html}");
        assert_eq!(html.matches('"').count(), 2, "{html}");
        assert!(!html.contains(['\'', '\u{1b}', '\u{202e}', '\0']), "{html}");
        assert!(html.contains("[U+202E]evil[U+0000]") && html.contains("[U+001B][31m"), "{html}");
    }
}

//! Foreign strings in JSON, Markdown, YAML and addresses: what they say stays, what they could do goes.

use serde::Serialize;

/// Characters of a foreign string that a page for people shows.
const SHOWN_CHARS_MAX: usize = 600;

/// Whether a character can change how others are shown: controls, C1 among them, line and paragraph separators,
/// directions and invisible ones.
fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// Indented JSON with a line feed at the end. Active characters stand as `\uXXXX`, so that nothing is lost and a terminal
/// sees none.
pub(crate) fn json_text(value: &impl Serialize) -> String {
    let mut text = escaped(&serde_json::to_string_pretty(value).expect("a record is plain data"));
    text.push('\n');
    text
}

/// JSON on one line, escaped like [`json_text`].
pub(crate) fn json_line(value: &impl Serialize) -> String {
    let mut text = escaped(&serde_json::to_string(value).expect("a record is plain data"));
    text.push('\n');
    text
}

/// Active characters in JSON stand within strings, or are the line feeds between values.
fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c == '\n' || !is_active(c) {
            text.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            text.push_str(&format!("\\u{unit:04x}"));
        }
    }
    text
}

/// One line without active characters, of bounded length.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::new();
    for (n, c) in text.chars().enumerate() {
        if n == SHOWN_CHARS_MAX {
            plain.push('…');
            break;
        }
        match c {
            '\n' | '\r' | '\t' => plain.push(' '),
            c if is_active(c) => plain.push('\u{fffd}'),
            c => plain.push(c),
        }
    }
    plain
}

/// Prose in Markdown, in a table's cell too: no markup, no HTML.
pub(crate) fn markdown(text: &str) -> String {
    let chars: Vec<char> = plain(text).chars().collect();
    let is_word =
        |at: Option<usize>| at.and_then(|at| chars.get(at)).is_some_and(char::is_ascii_alphanumeric);
    let mut escaped = String::new();
    for (n, &c) in chars.iter().enumerate() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            // Within a word it emphasises nothing.
            '_' if is_word(n.checked_sub(1)) && is_word(Some(n + 1)) => escaped.push(c),
            '\\' | '`' | '*' | '_' | '{' | '}' | '[' | ']' | '#' | '|' | '~' | '!' | '$' | '@' => {
                escaped.push('\\');
                escaped.push(c);
            }
            c => escaped.push(c),
        }
    }
    // What would begin a list, a heading's underline or a quote begins none.
    match escaped.trim_start().chars().next() {
        Some('-' | '+' | '=') => format!("\\{}", escaped.trim_start()),
        _ => escaped,
    }
}

/// Prose in Markdown whose names in backticks stay code: words of this program, with foreign names among them.
pub(crate) fn prose(text: &str) -> String {
    let parts: Vec<&str> = text.split('`').collect();
    if parts.len().is_multiple_of(2) {
        return markdown(text);
    }
    let escaped = |(n, part): (usize, &&str)| match (n % 2, part.is_empty()) {
        (_, true) => String::new(),
        (1, false) => code(part),
        (_, false) => markdown(part),
    };
    parts.iter().enumerate().map(escaped).collect()
}

/// A name as code in Markdown, in a table's cell too. What ends code, a cell or begins HTML is shown by what looks like it.
pub(crate) fn code(text: &str) -> String {
    let inner: String = plain(text)
        .trim()
        .chars()
        .map(|c| match c {
            '`' => 'ˋ',
            '|' => '¦',
            '<' => '‹',
            '>' => '›',
            c => c,
        })
        .collect();
    if inner.is_empty() { "–".to_owned() } else { format!("`{inner}`") }
}

/// A scalar of YAML: as it is where it can only be a string, in double quotes else.
pub(crate) fn yaml(text: &str) -> String {
    // Of a colon and a blank, YAML makes a key.
    let plain_char = |c: char| {
        c.is_ascii_alphanumeric()
            || ".-_/".contains(c)
            || c == ':' && !text.contains(' ')
            || c == ' ' && !text.ends_with(' ')
    };
    let is_word = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(plain_char)
        && !text.ends_with(':')
        && !["true", "false", "yes", "no", "on", "off", "null", "y", "n"]
            .contains(&text.to_ascii_lowercase().as_str());
    if is_word {
        return text.to_owned();
    }
    // Whoever does not know front matter reads it as Markdown, and so as HTML.
    json_line(&text).trim_end().replace('<', "\\u003c").replace('>', "\\u003e")
}

/// A part of an address: everything but letters, digits and `-._~` as `%XX`.
pub(crate) fn percent(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte as char),
            byte => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn json_loses_nothing_and_shows_no_active_character() {
        let hostile = "a\u{1b}[2J\u{9b}31m\u{202e}b\u{200b}\u{e0041}\u{2028}\n\"\\é";
        let json = json_line(&hostile);
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), hostile);
        assert!(!json.trim_end().chars().any(is_active), "{json:?}");
        assert!(json.contains("\\u202e") && json.contains("\\udb40\\udc41") && json.contains('é'), "{json}");
    }

    #[test]
    fn markdown_keeps_words_and_no_markup() {
        assert_eq!(markdown("a|b\n# c <script>[x](y)`"), "a\\|b \\# c &lt;script&gt;\\[x\\](y)\\`");
        assert_eq!(markdown("- item"), "\\- item");
        assert_eq!(code("a`b|c\n"), "`aˋb¦c`");
        assert_eq!(code("``"), "`ˋˋ`");
        assert_eq!(code(""), "–");
        assert_eq!(markdown("a_b _c_ __d"), "a_b \\_c\\_ \\_\\_d");
        assert_eq!(prose("_a is `c_d`, not `e`"), "\\_a is `c_d`, not `e`");
        assert_eq!(prose("a ` b_"), "a \\` b\\_");
        assert_eq!(prose("`` <b> `|`"), " &lt;b&gt; `¦`");
    }

    #[test]
    fn yaml_is_quoted_where_it_could_be_something_else() {
        for word in ["apache-2.0", "stillroom:quickstart-teacher", "Qwen/Qwen2.5-3B", "mit and gemma"] {
            assert_eq!(yaml(word), word);
        }
        for other in ["no", "1.5", "a: b", "a ", "a #b", "- a", "", "a:", "x\ny: z", "*a", "{a}"] {
            assert!(yaml(other).starts_with('"') && yaml(other).ends_with('"'), "{other}: {}", yaml(other));
        }
        assert_eq!(yaml("<b>"), "\"\\u003cb\\u003e\"");
        assert_eq!(yaml("a\nlicense: mit"), "\"a\\nlicense: mit\"");
    }

    #[test]
    fn long_strings_are_cut_for_people_and_kept_for_machines() {
        let long = "x".repeat(10_000);
        assert_eq!(plain(&long).chars().count(), SHOWN_CHARS_MAX + 1);
        assert_eq!(json_line(&long).len(), 10_003);
    }

    proptest! {
        #[test]
        fn no_foreign_text_ends_its_line(text in "\\PC*|(?s:.*)") {
            for shown in [markdown(&text), prose(&text), code(&text), plain(&text), yaml(&text)] {
                prop_assert!(!shown.chars().any(is_active), "{shown:?}");
            }
            for shown in [markdown(&text), prose(&text), code(&text)] {
                prop_assert!(!shown.contains(['<', '>']), "{shown:?}");
            }
            prop_assert!(percent(&text).is_ascii());
            prop_assert_eq!(serde_json::from_str::<String>(&json_line(&text)).unwrap(), text);
        }
    }
}

//! Where in a reply its answer stands.

/// Only the end of a longer reply is read.
const REPLY_BYTES_MAX: usize = 1 << 16;
/// Most levels of braces that are unwrapped.
const DEPTH_MAX: usize = 8;

/// The place of a reply's answer, the surest that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending<'a> {
    /// The line behind the last `####`, as in GSM8K.
    Hashes(&'a str),
    /// What the last `\boxed{…}` holds.
    Boxed(&'a str),
    /// What the last "the answer is" or "Answer:" is followed by, up to the end of its line.
    Said(&'a str),
    /// None of these: the whole text.
    Open(&'a str),
}

/// Finds the answer's place. A box after the last `####` comes before it, since that may be a heading.
pub(super) fn ending(text: &str) -> Ending<'_> {
    let text = tail(text);
    let boxed = last_boxed(text);
    let hashes = text.rfind("####");
    if let Some((start, inside)) = boxed
        && hashes.is_none_or(|hashes| start > hashes)
    {
        return Ending::Boxed(inside);
    }
    if let Some(at) = hashes {
        return Ending::Hashes(text[at + "####".len()..].trim_start().lines().next().unwrap_or(""));
    }
    said(text).map_or(Ending::Open(text), Ending::Said)
}

pub(super) fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(REPLY_BYTES_MAX);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

fn last_boxed(text: &str) -> Option<(usize, &str)> {
    let names = ["\\boxed{", "\\fbox{", "\\boxed {"];
    let (start, name) = names.iter().filter_map(|name| Some((text.rfind(name)?, *name))).max()?;
    Some((start, inside_braces(&text[start + name.len()..])))
}

/// The text up to the brace that closes the one before it; all of it where none does.
pub(super) fn inside_braces(text: &str) -> &str {
    let mut depth = 1usize;
    let mut escaped = false;
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => {}
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        escaped = c == '\\' && !escaped;
        if depth == 0 {
            return &text[..i];
        }
    }
    text
}

/// What follows the last words that announce an answer.
fn said(text: &str) -> Option<&str> {
    // Only ASCII changes its case here, so offsets stay.
    let lower = text.to_ascii_lowercase();
    let words = [
        "answer is",
        "answer:",
        "answer :",
        "answer =",
        "answer**:",
        "answer would be",
        "answer\u{ff1a}",
        "答案是",
        "答案：",
    ];
    let found = words.iter().filter_map(|word| Some((lower.rfind(word)? + word.len(), *word)));
    let (at, _) = found.max_by_key(|(at, _)| *at)?;
    let rest = text[at..].trim_start_matches([':', ' ', '*', '_', '\n', '\r']);
    let line = rest.lines().next().unwrap_or("");
    (!line.trim().is_empty()).then_some(line)
}

/// The text without LaTeX that changes only how it looks: `\text{…}` and its like lose their name, spaces, `$`, `\left` and
/// `\right` go.
pub(super) fn plain(text: &str) -> String {
    let mut plain = text.to_string();
    for name in ["\\text", "\\textbf", "\\textit", "\\mathrm", "\\mathbf", "\\mbox", "\\operatorname"] {
        for _ in 0..DEPTH_MAX {
            let Some(start) = plain.find(&format!("{name}{{")) else { break };
            let from = start + name.len() + 1;
            let inside = inside_braces(&plain[from..]).to_string();
            let end = (from + inside.len() + 1).min(plain.len());
            plain.replace_range(start..end, &inside);
        }
    }
    for (marks, instead) in [
        ("\\left", ""),
        ("\\right", ""),
        ("\\(", ""),
        ("\\)", ""),
        ("\\[", ""),
        ("\\]", ""),
        ("\\quad", " "),
        ("\\;", " "),
        ("\\:", " "),
        ("\\ ", " "),
        ("\\!", ""),
        ("~", " "),
        ("\\$", "$"),
    ] {
        plain = plain.replace(marks, instead);
    }
    plain.replace('$', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_surest_place_is_taken() {
        let cases = [
            ("so\n#### 3\n", Ending::Hashes("3")),
            ("\\boxed{1} then \\boxed{\\frac{1}{2}}.", Ending::Boxed("\\frac{1}{2}")),
            ("#### Final answer\n\\boxed{5}", Ending::Boxed("5")),
            ("\\boxed{5}\n#### 6", Ending::Hashes("6")),
            ("**Answer:** 7 apples\nI checked it 3 times.", Ending::Said("7 apples")),
            ("Therefore, the answer is:\n\n(B)", Ending::Said("(B)")),
            ("It is 5.", Ending::Open("It is 5.")),
            ("\\boxed{\\{1,2\\}}", Ending::Boxed("\\{1,2\\}")),
            ("\\boxed{12", Ending::Boxed("12")),
        ];
        for (text, expected) in cases {
            assert_eq!(ending(text), expected, "{text}");
        }
        assert_eq!(plain("\\text{(B) $5\\text{ km}}").trim(), "(B) 5 km");
    }
}

//! Where in a text something may start and end, and what is said around it.

/// How many bytes before a number are read for words that say what it is.
const BEFORE_BYTES: usize = 56;
/// How many bytes after it.
const AFTER_BYTES: usize = 16;

/// The next place at which something may start.
pub(super) fn next(text: &str, at: usize) -> usize {
    let bytes = text.as_bytes();
    let mut i = at;
    // The rest of a word that starts nothing starts nothing either.
    while i < bytes.len() && is_word(bytes[i]) {
        i += 1;
    }
    i = i.max(at + 1);
    while i < bytes.len() && !(is_word(bytes[i]) || matches!(bytes[i], b'+' | b'(' | b':' | b'-')) {
        // Text within JSON or a program has its line ends written out.
        i += if is_escaped_space(bytes, i) { 2 } else { 1 };
    }
    i
}

/// Whether `\n`, `\r` or `\t` stands here in two characters.
fn is_escaped_space(bytes: &[u8], at: usize) -> bool {
    bytes[at] == b'\\' && matches!(bytes.get(at + 1), Some(b'n' | b'r' | b't'))
}

/// Whether what ends before this byte is a white space written out.
pub(super) fn after_escaped_space(text: &str, at: usize) -> bool {
    at >= 2 && is_escaped_space(text.as_bytes(), at - 2)
}

/// Whether a word may start here: none goes on.
pub(super) fn starts_word(text: &str, at: usize) -> bool {
    let before = at.checked_sub(1).map(|i| text.as_bytes()[i]);
    !before.is_some_and(is_word) || after_escaped_space(text, at)
}

pub(super) fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Whether a number may start here: it goes on from neither a word nor `12-`, `12.`, `12/` and the like.
pub(super) fn starts(text: &str, at: usize) -> bool {
    let bytes = text.as_bytes();
    let before = |n: usize| at.checked_sub(n).map(|i| bytes[i]);
    match (before(2), before(1)) {
        (_, Some(byte)) if is_word(byte) => after_escaped_space(text, at),
        (Some(digit), Some(b'-' | b'.' | b'/' | b',' | b':')) => !digit.is_ascii_digit(),
        _ => true,
    }
}

/// Whether a number may end before this byte: it goes on neither as a word nor as `-12`, `.12` and the like.
pub(super) fn ends(text: &str, end: usize) -> bool {
    let bytes = text.as_bytes();
    match (bytes.get(end), bytes.get(end + 1)) {
        (Some(&byte), _) if is_word(byte) => false,
        (Some(b'-' | b'.' | b'/' | b','), Some(digit)) => !digit.is_ascii_digit(),
        _ => true,
    }
}

/// Whether digits in groups with spaces between go on before or after this range.
pub(super) fn goes_on(text: &str, start: usize, end: usize) -> bool {
    let bytes = text.as_bytes();
    let digit = |i: Option<usize>| i.and_then(|i| bytes.get(i)).is_some_and(u8::is_ascii_digit);
    let space = |i: Option<usize>| i.and_then(|i| bytes.get(i)) == Some(&b' ');
    space(Some(end)) && digit(Some(end + 1)) || space(start.checked_sub(1)) && digit(start.checked_sub(2))
}

/// Whether one of the words stands shortly before the range or right after it. Words are lower case; one with more
/// than ASCII's letters is looked for anywhere, since not every script puts spaces between words.
pub(super) fn said_around(text: &str, start: usize, end: usize, words: &[&str]) -> bool {
    let from = floor(text, start.saturating_sub(BEFORE_BYTES));
    let to = floor(text, (end + AFTER_BYTES).min(text.len()));
    says(&text[from..start], words) || says(&text[end..to], words)
}

fn floor(text: &str, at: usize) -> usize {
    (0..=at).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0)
}

fn says(window: &str, words: &[&str]) -> bool {
    // A placeholder says nothing: `[PHONE]` does not make the next number a telephone's.
    let mut window = without_placeholders(window).to_lowercase();
    for escaped in ["\\n", "\\r", "\\t"] {
        window = window.replace(escaped, " ");
    }
    let letters = |word: &&str| word.bytes().all(|b| b.is_ascii_alphanumeric());
    let (plain, anywhere): (Vec<&str>, Vec<&str>) = words.iter().partition(|word| letters(word));
    window.split(|c: char| !c.is_alphanumeric()).any(|said| plain.contains(&said))
        || anywhere.iter().any(|word| window.contains(word))
}

fn without_placeholders(window: &str) -> String {
    let mut said = String::with_capacity(window.len());
    let mut rest = window;
    while let Some(open) = rest.find('[') {
        said.push_str(&rest[..open]);
        let after = &rest[open + 1..];
        let inside = after.bytes().take_while(|b| b.is_ascii_uppercase() || *b == b'_').count();
        rest = &after[inside..];
        if !rest.starts_with(']') {
            said.push_str(&after[..inside]);
        }
        said.push(' ');
    }
    // The window may start or end within one.
    let rest = rest.split_once(']').map_or(rest, |(head, tail)| if is_capitals(head) { tail } else { rest });
    said + rest
}

fn is_capitals(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
}

//! Addresses of mail, and users with passwords in URLs: both are found by what stands in their middle.

use super::{Class, Finding};

const LOCAL_BYTES_MAX: usize = 64;
const DOMAIN_BYTES_MAX: usize = 253;
const USER_BYTES_MAX: usize = 256;
/// `photo@2x.png` is a file.
const FILE_ENDINGS: [&str; 6] = ["png", "jpg", "jpeg", "gif", "svg", "webp"];

/// All of both in a text, from left to right, none overlapping another.
pub(super) fn marks(text: &str) -> Vec<Finding> {
    let mut marks: Vec<Finding> = Vec::new();
    for (at, byte) in text.bytes().enumerate() {
        let after = marks.last().map_or(0, |mark| mark.range.end);
        let mark = match byte {
            b'@' if at >= after => address(text, at, after),
            b':' if text[at..].starts_with("://") => credentials(text, at + 3),
            _ => None,
        };
        marks.extend(mark.filter(|mark| mark.range.start >= after));
    }
    marks
}

/// The address around an `@`; it starts no earlier than `after`.
fn address(text: &str, at: usize, after: usize) -> Option<Finding> {
    let local = local_part(&text[after..at]);
    // `\nme@example.com` within JSON or a program: the `n` is a part of the line's end.
    let escaped = text[..at - local.len()].ends_with('\\') && local.starts_with(['n', 'r', 't']);
    let local = &local[usize::from(escaped)..];
    let domain = domain(&text[at + 1..])?;
    let whole = !local.is_empty() && local.len() <= LOCAL_BYTES_MAX && !local.contains("..");
    let range = at - local.len()..at + 1 + domain.len();
    whole.then_some(Finding { class: Class::Email, kind: "email", range })
}

/// The longest local part that ends the text; longer than an address may have where there is one.
fn local_part(text: &str) -> &str {
    let mut start = text.len();
    for (i, c) in text.char_indices().rev().take(LOCAL_BYTES_MAX + 1) {
        if !(c.is_alphanumeric() || "._%+-'&=~!#$*?^`{|}/".contains(c)) {
            break;
        }
        start = i;
    }
    let local = &text[start..];
    // Only letters and digits end one; brackets, quotes and slashes around an address are not a part of it.
    if !local.ends_with(|c: char| c.is_alphanumeric() || "_-+%".contains(c)) {
        return "";
    }
    let local =
        local.rsplit(['/', '=', '\'', '`', '{', '|', '}', '?', '!', '#', '&', '*', '^', '$', '~']).next();
    local.unwrap_or("").trim_start_matches(['.', '-', '%', '+'])
}

/// The domain that starts the text: labels with a dot between, the last of letters.
fn domain(text: &str) -> Option<&str> {
    let end = text
        .char_indices()
        .take(DOMAIN_BYTES_MAX + 1)
        .find(|(_, c)| !(c.is_alphanumeric() || matches!(c, '.' | '-')))
        .map_or(text.len().min(floor(text, DOMAIN_BYTES_MAX)), |(i, _)| i);
    let mut domain = text[..end].trim_end_matches(['.', '-']);
    if text[end..].starts_with(['_', '@']) {
        return None;
    }
    // `me@example.com.Then` ends before the sentence; `a@b.1` is none.
    if let Some((head, tail)) = domain.rsplit_once('.')
        && head.contains('.')
        && tail.starts_with(char::is_uppercase)
        && !head.bytes().any(|b| b.is_ascii_uppercase())
    {
        domain = head;
    }
    let labels: Vec<&str> = domain.split('.').collect();
    let last = labels.last()?;
    let named =
        last.chars().all(char::is_alphabetic) && last.chars().count() >= 2 || last.starts_with("xn--");
    let whole = labels.iter().all(|label| {
        !label.is_empty() && label.len() <= 63 && !label.starts_with('-') && !label.ends_with('-')
    });
    let file = FILE_ENDINGS.iter().any(|ending| last.eq_ignore_ascii_case(ending));
    (labels.len() >= 2 && named && whole && !file).then_some(domain)
}

fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0)
}

/// `user:password` from this byte up to an `@`, before the host ends.
fn credentials(text: &str, start: usize) -> Option<Finding> {
    let bytes = &text.as_bytes()[start..];
    let in_host =
        |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b'?' | b'#' | b'"' | b'\'' | b'<' | b'>' | b'`');
    let length = bytes.iter().take(USER_BYTES_MAX).take_while(|&&b| in_host(b)).count();
    let user = bytes[..length].iter().rposition(|&b| b == b'@')?;
    let colon = bytes[..user].iter().position(|&b| b == b':')?;
    let password = &bytes[colon + 1..user];
    // `$USER:$PASSWORD` and `user:<password>` are no passwords but say where one goes.
    let variable = password.first().is_some_and(|b| matches!(b, b'$' | b'{' | b'[' | b'%' | b'*'));
    let range = start..start + user;
    (!password.is_empty() && !variable).then_some(Finding {
        class: Class::UrlCredentials,
        kind: "url_credentials",
        range,
    })
}

//! Addresses of machines.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::place;

const BYTES_MAX: usize = 45;

/// The address that starts here and where it ends. The machine's own address is nobody's.
pub(super) fn at(text: &str, at: usize) -> Option<(&'static str, usize)> {
    v6(text, at).or_else(|| v4(text, at))
}

fn v4(text: &str, at: usize) -> Option<(&'static str, usize)> {
    let bytes = &text.as_bytes()[at..];
    // `v1.2.3.4` and `version 1.2.3.4` are versions.
    if !bytes[0].is_ascii_digit() || !place::starts(text, at) || is_version(&text[..at]) {
        return None;
    }
    let length = bytes.iter().take(16).take_while(|b| b.is_ascii_digit() || **b == b'.').count();
    let shown = text[at..at + length].trim_end_matches('.');
    let address: Ipv4Addr = shown.parse().ok()?;
    let end = at + shown.len();
    let none = address.is_loopback() || address.is_unspecified() || address.is_broadcast();
    let whole = !text.as_bytes().get(end).is_some_and(|&b| {
        place::is_word(b) || b == b'-' && place::is_word(*bytes.get(shown.len() + 1).unwrap_or(&b' '))
    });
    (whole && !none).then_some(("ipv4", end))
}

fn is_version(before: &str) -> bool {
    let before = before.trim_end();
    let words = ["version", "Version", "release", "ver.", "v."];
    words.iter().any(|word| before.ends_with(word))
}

fn v6(text: &str, at: usize) -> Option<(&'static str, usize)> {
    let bytes = &text.as_bytes()[at..];
    let before = at.checked_sub(1).map(|i| text.as_bytes()[i]);
    if !place::starts_word(text, at) || matches!(before, Some(b':' | b'.')) {
        return None;
    }
    // The first group has four characters at most.
    if !bytes.iter().take(5).any(|&b| b == b':') {
        return None;
    }
    let inside = |b: &&u8| b.is_ascii_hexdigit() || matches!(b, b':' | b'.');
    let length = bytes.iter().take(BYTES_MAX + 1).take_while(inside).count();
    let shown = text[at..at + length].trim_end_matches('.');
    let shown = if shown.ends_with("::") { shown } else { shown.trim_end_matches(':') };
    let n_colons = shown.bytes().filter(|&b| b == b':').count();
    // `dead::beef` may be a name in a program; an address has a digit somewhere.
    if n_colons < 2 || shown.len() > BYTES_MAX || !shown.bytes().any(|b| b.is_ascii_digit()) {
        return None;
    }
    let address: Ipv6Addr = shown.parse().ok()?;
    let end = at + shown.len();
    let whole = !text.as_bytes().get(end).is_some_and(|&b| place::is_word(b) || b == b':');
    (whole && !address.is_loopback() && !address.is_unspecified()).then_some(("ipv6", end))
}

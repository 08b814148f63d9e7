//! Foreign text for error messages: short, harmless, without keys.

use std::fmt::Write as _;

/// Characters of foreign text in an error.
pub(super) const SHOWN_CHARS_MAX: usize = 300;
/// Bytes of foreign text that are looked at for that.
const LOOKED_AT_BYTES_MAX: usize = 16 << 10;
/// A run of letters and digits from this length on is taken for a key, if it has both.
const KEY_RUN_CHARS: usize = 20;
/// What keys begin with.
const KEY_PREFIXES: [&str; 14] = [
    "sk-",
    "sk_",
    "pk-",
    "rk-",
    "hf_",
    "gsk_",
    "xai-",
    "pplx-",
    "nvapi-",
    "r8_",
    "AIza",
    "eyJ",
    "ghp_",
    "github_pat_",
];
/// Words that announce a key.
const KEY_WORDS: [&str; 6] = ["bearer", "basic", "authorization", "api_key", "api-key", "apikey"];

/// `text` on one line, escaped, without what looks like a key, and cut to [`SHOWN_CHARS_MAX`] characters.
pub(super) fn shown(text: &str) -> String {
    let mut end = text.len().min(LOOKED_AT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut out = String::new();
    let mut left = SHOWN_CHARS_MAX;
    for c in without_keys(text[..end].trim()).chars() {
        let piece = escaped(c);
        let n = piece.chars().count();
        if n > left {
            break;
        }
        left -= n;
        out.push_str(&piece);
    }
    out
}

/// One character, or its escape if it could steer a terminal or hide.
fn escaped(c: char) -> String {
    let hides = matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    let mut out = String::new();
    match c {
        '\n' | '\r' | '\t' => out.push(' '),
        _ if hides || c.is_control() => {
            write!(out, "\\u{{{:x}}}", u32::from(c)).expect("writing to a string cannot fail");
        }
        _ => out.push(c),
    }
    out
}

/// `text` with `[redacted]` in place of each word that could be a key.
fn without_keys(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut announced = false;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_word = in_key(first);
        let end = rest.find(|c| in_key(c) != is_word).unwrap_or(rest.len());
        let (piece, after) = rest.split_at(end);
        rest = after;
        if !is_word {
            out.push_str(piece);
            continue;
        }
        let lower = piece.to_ascii_lowercase();
        let announces = KEY_WORDS.iter().any(|word| lower.trim_end_matches('=').ends_with(word));
        // `Bearer` may follow `Authorization:`, and a sentence may only speak of a key.
        let secret =
            looks_like_key(piece) || (announced && !announces && piece.len() >= 8 && has_digit(piece));
        out.push_str(if secret { "[redacted]" } else { piece });
        announced = announces || (announced && !secret && piece.len() < 8);
    }
    out
}

fn in_key(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '*' | '+' | '=')
}

fn has_digit(word: &str) -> bool {
    word.bytes().any(|b| b.is_ascii_digit())
}

fn looks_like_key(word: &str) -> bool {
    let prefixed = KEY_PREFIXES.iter().any(|prefix| {
        word.match_indices(prefix).any(|(at, _)| {
            let starts = at == 0 || !word.as_bytes()[at - 1].is_ascii_alphanumeric();
            starts && word.len() - at > prefix.len() + 3
        })
    });
    let runs = word.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '+');
    prefixed
        || runs.into_iter().any(|run| {
            let letters = run.bytes().any(|b| b.is_ascii_alphabetic());
            run.len() >= KEY_RUN_CHARS && letters && has_digit(run)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_not_shown() {
        for (text, expected) in [
            ("Incorrect API key provided: sk-abcd*********1234.", "Incorrect API key provided: [redacted]."),
            ("key=sk-proj-a_b-c12345678", "[redacted]"),
            ("Authorization: Bearer abcd12345", "Authorization: Bearer [redacted]"),
            ("bad token 0123456789abcdef0123456789abcdef!", "bad token [redacted]!"),
            ("eyJhbGciOi.eyJzdWIiOjF9.sig", "[redacted].[redacted].sig"),
            ("(hf_abcdefgh)", "([redacted])"),
        ] {
            assert_eq!(shown(text), expected);
        }
    }

    #[test]
    fn what_only_resembles_a_key_is_shown() {
        for text in [
            "The model `Qwen/Qwen2.5-Coder-32B-Instruct-GPTQ-Int4` does not exist.",
            "maximum context length is 32768 tokens, however you requested 40000",
            "task-based ask-me, risk-free",
            "no api_key was given for this request",
        ] {
            assert_eq!(shown(text), text);
        }
    }

    #[test]
    fn what_steers_or_hides_is_escaped_and_the_rest_is_cut() {
        assert_eq!(
            shown("a\u{1b}[2J\u{9b}\n\u{202e}b\u{200b}\0"),
            r"a\u{1b}[2J\u{9b} \u{202e}b\u{200b}\u{0}"
        );
        assert_eq!(shown(&"é".repeat(40_000)).chars().count(), SHOWN_CHARS_MAX);
        let escapes = shown(&"\u{1b}".repeat(1000));
        assert!(escapes.len() <= SHOWN_CHARS_MAX && escapes.ends_with('}'));
    }
}

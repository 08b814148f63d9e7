//! Keys and tokens of services, by the prefixes that their makers gave them so that they can be found.

use std::ops::Range;

use super::place;

/// What is read of one token, and of a private key.
const TOKEN_BYTES_MAX: usize = 8192;
const KEY_BYTES_MAX: usize = 16_384;
/// Characters of a value that is assigned to a name such as `api_key`.
const VALUE_CHARS: Range<usize> = 12..512;

/// What a token's characters are.
#[derive(Clone, Copy)]
enum Chars {
    /// Letters and digits.
    Plain,
    /// Letters, digits, `-` and `_`.
    Url,
    Capitals,
    Hex,
}

impl Chars {
    fn has(self, byte: u8) -> bool {
        match self {
            Chars::Plain => byte.is_ascii_alphanumeric(),
            Chars::Url => byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'),
            Chars::Capitals => byte.is_ascii_uppercase() || byte.is_ascii_digit(),
            Chars::Hex => byte.is_ascii_hexdigit(),
        }
    }
}

/// Whose token, its prefix, and what follows: which characters, how many at least and at most.
type Token = (&'static str, &'static str, Chars, usize, usize);

const ANY: usize = 512;
const TOKENS: &[Token] = &[
    ("anthropic", "sk-ant-", Chars::Url, 20, ANY),
    ("openai", "sk-proj-", Chars::Url, 20, ANY),
    ("openai", "sk-svcacct-", Chars::Url, 20, ANY),
    ("openai", "sk-admin-", Chars::Url, 20, ANY),
    ("openrouter", "sk-or-", Chars::Url, 20, ANY),
    ("openai", "sk-", Chars::Plain, 20, ANY),
    ("hugging_face", "hf_", Chars::Plain, 30, 64),
    ("groq", "gsk_", Chars::Plain, 40, 64),
    ("xai", "xai-", Chars::Plain, 40, 96),
    ("perplexity", "pplx-", Chars::Plain, 40, 64),
    ("replicate", "r8_", Chars::Plain, 37, 40),
    ("aws", "AKIA", Chars::Capitals, 16, 16),
    ("aws", "ASIA", Chars::Capitals, 16, 16),
    ("aws", "AROA", Chars::Capitals, 16, 16),
    ("github", "ghp_", Chars::Plain, 36, 255),
    ("github", "gho_", Chars::Plain, 36, 255),
    ("github", "ghu_", Chars::Plain, 36, 255),
    ("github", "ghs_", Chars::Plain, 36, 255),
    ("github", "ghr_", Chars::Plain, 36, 255),
    ("github", "github_pat_", Chars::Url, 40, 255),
    ("gitlab", "glpat-", Chars::Url, 20, 128),
    ("slack", "xoxb-", Chars::Url, 20, 255),
    ("slack", "xoxp-", Chars::Url, 20, 255),
    ("slack", "xoxa-", Chars::Url, 20, 255),
    ("slack", "xoxr-", Chars::Url, 20, 255),
    ("slack", "xoxs-", Chars::Url, 20, 255),
    ("slack", "xapp-", Chars::Url, 20, 255),
    ("google", "AIza", Chars::Url, 35, 35),
    ("google", "GOCSPX-", Chars::Url, 28, 28),
    ("google", "ya29.", Chars::Url, 20, ANY),
    ("stripe", "sk_live_", Chars::Plain, 16, 255),
    ("stripe", "sk_test_", Chars::Plain, 16, 255),
    ("stripe", "rk_live_", Chars::Plain, 16, 255),
    ("stripe", "rk_test_", Chars::Plain, 16, 255),
    ("stripe", "whsec_", Chars::Plain, 24, 255),
    ("twilio", "SK", Chars::Hex, 32, 32),
    ("twilio", "AC", Chars::Hex, 32, 32),
    ("sendgrid", "SG.", Chars::Url, 16, 64),
    ("npm", "npm_", Chars::Plain, 36, 36),
    ("pypi", "pypi-AgE", Chars::Url, 50, ANY),
    ("docker", "dckr_pat_", Chars::Url, 20, 64),
    ("digitalocean", "dop_v1_", Chars::Hex, 64, 64),
    ("databricks", "dapi", Chars::Hex, 32, 32),
    ("shopify", "shpat_", Chars::Hex, 32, 32),
    ("square", "sq0atp-", Chars::Url, 22, 22),
    ("mailgun", "key-", Chars::Hex, 32, 32),
    ("linear", "lin_api_", Chars::Plain, 40, 40),
    ("notion", "ntn_", Chars::Plain, 40, 64),
    ("age", "AGE-SECRET-KEY-1", Chars::Capitals, 58, 58),
];

/// The secret that starts here: the whole token, or the value that is assigned to the name that stands here.
pub(super) fn at(text: &str, at: usize) -> Option<(&'static str, Range<usize>)> {
    let bytes = text.as_bytes();
    let before = at.checked_sub(1).map(|i| bytes[i]);
    if bytes[at] == b'-' {
        return private_key(text, at);
    }
    if !place::starts_word(text, at) || before == Some(b'-') {
        return None;
    }
    token(text, at).or_else(|| web_token(text, at)).or_else(|| bot(text, at)).or_else(|| assigned(text, at))
}

fn token(text: &str, at: usize) -> Option<(&'static str, Range<usize>)> {
    let rest = &text[at..];
    let first = text.as_bytes()[at];
    let may_be = |token: &&Token| token.1.as_bytes()[0] == first;
    TOKENS.iter().filter(may_be).find_map(|&(whose, prefix, chars, least, most)| {
        let tail = rest.strip_prefix(prefix)?.as_bytes();
        let length = tail.iter().take(most + 1).take_while(|&&b| chars.has(b)).count();
        // A second part after a dot, as SendGrid's have.
        let dotted = if whose == "sendgrid" { dotted_part(&tail[length..])? } else { 0 };
        let body = &tail[..length + dotted];
        let after = tail.get(body.len());
        let whole = (least..=most).contains(&length) && after.is_none_or(|&b| !place::is_word(b));
        (whole && is_mixed(body)).then(|| (whose, at..at + prefix.len() + body.len()))
    })
}

fn dotted_part(tail: &[u8]) -> Option<usize> {
    let length = tail.strip_prefix(b".")?.iter().take(64).take_while(|&&b| Chars::Url.has(b)).count();
    (length >= 16).then_some(1 + length)
}

/// Words in lower case with dashes are a name, not a token: it has a digit or a capital, and more than a few characters.
fn is_mixed(body: &[u8]) -> bool {
    let varied = body.iter().any(u8::is_ascii_digit) || body.iter().any(u8::is_ascii_uppercase);
    let mut seen = [false; 256];
    body.iter().for_each(|&b| seen[usize::from(b)] = true);
    varied && seen.iter().filter(|&&s| s).count() >= 6
}

/// A JSON web token: header and payload start with the letters of `{"`, in base64.
fn web_token(text: &str, at: usize) -> Option<(&'static str, Range<usize>)> {
    let rest = text.as_bytes().get(at..)?;
    if !rest.starts_with(b"eyJ") {
        return None;
    }
    let part = |from: usize| {
        rest.iter().skip(from).take(TOKEN_BYTES_MAX).take_while(|&&b| Chars::Url.has(b)).count()
    };
    let header = part(0);
    let payload = part(header + 1);
    let opens = rest.get(header) == Some(&b'.') && rest[header + 1..].starts_with(b"eyJ");
    if !opens || header < 10 || payload < 10 {
        return None;
    }
    let end = header + 1 + payload;
    let signed = rest.get(end) == Some(&b'.');
    let end = if signed { end + 1 + part(end + 1) } else { end };
    Some(("jwt", at..at + end))
}

/// A Telegram bot's token: its number, a colon and 35 characters.
fn bot(text: &str, at: usize) -> Option<(&'static str, Range<usize>)> {
    let rest = text.as_bytes().get(at..)?;
    let number = rest.iter().take(11).take_while(|b| b.is_ascii_digit()).count();
    let key = rest.get(number + 1..)?.iter().take(36).take_while(|&&b| Chars::Url.has(b)).count();
    let formed = (8..=10).contains(&number) && rest[number] == b':' && key == 35;
    formed.then_some(("telegram", at..at + number + 36))
}

/// From `-----BEGIN … PRIVATE KEY-----` to its end, or as far as lines of base64 go.
fn private_key(text: &str, at: usize) -> Option<(&'static str, Range<usize>)> {
    let rest = text[at..].strip_prefix("-----BEGIN ")?;
    let (label, _) = rest.get(..rest.len().min(64)).unwrap_or("").split_once("-----")?;
    let keyed =
        label.ends_with("PRIVATE KEY") || label == "PRIVATE KEY BLOCK" || label == "PGP PRIVATE KEY BLOCK";
    if !keyed || label.contains('\n') {
        return None;
    }
    let start = at + "-----BEGIN ".len() + label.len() + "-----".len();
    let inside = |b: &&u8| b.is_ascii_alphanumeric() || b"+/=\r\n \t:,\\-.".contains(b);
    let room = text.as_bytes()[start..].iter().take(KEY_BYTES_MAX).take_while(inside).count();
    let body = &text[start..start + room];
    let close = body.find("-----END ").map(|i| i + "-----END ".len());
    let end = match close {
        Some(from) => body[from..].find("-----").map_or(from, |i| from + i + 5),
        // Cut off, or another key begins.
        None => body.find("-----").unwrap_or(room),
    };
    Some(("private_key", at..start + end))
}

/// Names whose values are secrets, without `_`, `-` and capitals.
const NAMES: &[&str] = &[
    "apikey",
    "secret",
    "secretkey",
    "clientsecret",
    "accesstoken",
    "authtoken",
    "accesskey",
    "secretaccesskey",
    "awssecretaccesskey",
    "accountkey",
    "sharedaccesskey",
    "password",
    "passwd",
    "pwd",
    "token",
    "privatekey",
    "bearer",
    "refreshtoken",
    "dbpassword",
    "openaiapikey",
    "anthropicapikey",
];
const NAME_CHARS_MAX: usize = 40;

/// The value of `api_key = "…"`, `password: …`, `Bearer …`.
fn assigned(text: &str, at: usize) -> Option<(&'static str, Range<usize>)> {
    let bytes = text.as_bytes();
    let name_of = |b: &&u8| place::is_word(**b) || **b == b'-';
    let length = bytes[at..].iter().take(NAME_CHARS_MAX).take_while(name_of).count();
    let skip =
        |from: usize, of: &[u8]| from + bytes[from..].iter().take(3).take_while(|b| of.contains(b)).count();
    let after = skip(skip(at + length, b"\"'"), b" ");
    let assigns = matches!(bytes.get(after), Some(b'=' | b':'));
    let bears = length == "bearer".len() && after > at + length;
    if !(assigns || bears) {
        return None;
    }
    let name =
        bytes[at..at + length].iter().filter(|b| b.is_ascii_alphanumeric()).map(u8::to_ascii_lowercase);
    if !NAMES.iter().any(|known| known.bytes().eq(name.clone())) {
        return None;
    }
    let start = match assigns {
        true => skip(skip(after + 1, b" =>"), b"\"'`"),
        false if name.eq(*b"bearer") => after,
        false => return None,
    };
    let inside = |b: &&u8| b.is_ascii_graphic() && !b"\"'`,;<>(){}[]&\\".contains(b);
    let length = bytes[start..].iter().take(VALUE_CHARS.end).take_while(inside).count();
    let value = text[start..start + length].trim_end_matches(['.', '!', '?', ':']).as_bytes();
    let kinds =
        [u8::is_ascii_digit, u8::is_ascii_uppercase, u8::is_ascii_lowercase, u8::is_ascii_punctuation];
    let kinds = kinds.iter().filter(|kind| value.iter().any(kind)).count();
    let secret = VALUE_CHARS.contains(&value.len())
        && value.iter().any(u8::is_ascii_digit)
        && kinds >= 2
        && value[0] != b'$'
        && is_mixed(value);
    secret.then_some(("assigned", start..start + value.len()))
}

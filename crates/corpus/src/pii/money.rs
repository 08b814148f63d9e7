//! Payment cards and bank accounts.

use super::checks::{luhn, mod_97};
use super::place;

/// Digits of a card, and characters of an IBAN at most.
const CARD_DIGITS: std::ops::RangeInclusive<usize> = 12..=19;
const IBAN_CHARS_MAX: usize = 34;

/// The card that starts here and where it ends.
pub(super) fn card(text: &str, at: usize) -> Option<(&'static str, usize)> {
    if !place::starts(text, at) {
        return None;
    }
    let mut digits = Vec::with_capacity(20);
    let mut best = None;
    let mut grouped = 0;
    let bytes = text.as_bytes();
    let (mut i, mut parting) = (at, None);
    while let Some(&byte) = bytes.get(i) {
        match byte {
            b'0'..=b'9' => digits.push(byte),
            // One kind of parting between digits, one at a time, first after four digits, then after three or more.
            b' ' | b'-' if *parting.get_or_insert(byte) == byte && bytes[i - 1].is_ascii_digit() => {
                let group = digits.len() - grouped;
                if group < 3 || grouped == 0 && group != 4 {
                    break;
                }
                grouped = digits.len();
            }
            _ => break,
        }
        i += 1;
        if digits.len() > *CARD_DIGITS.end() {
            break;
        }
        let ends = place::ends(text, i) && byte.is_ascii_digit();
        if ends && CARD_DIGITS.contains(&digits.len()) && luhn(&digits) {
            best = network(&digits).map(|network| (network, i)).or(best);
        }
    }
    best
}

/// Whose card has this prefix and length.
fn network(digits: &[u8]) -> Option<&'static str> {
    let head = |n: usize| digits[..n].iter().fold(0u32, |sum, d| sum * 10 + u32::from(d - b'0'));
    let n = digits.len();
    match (head(1), head(2), head(4), n) {
        (4, _, _, 13 | 16 | 19) => Some("visa"),
        (_, 51..=55, _, 16) | (_, _, 2221..=2720, 16) => Some("mastercard"),
        (_, 34 | 37, _, 15) => Some("american_express"),
        (_, 36 | 38 | 39 | 30, _, 14 | 16) => Some("diners_club"),
        (_, 60 | 64 | 65, _, 16..=19) => Some("discover"),
        (_, 35, _, 16) | (_, _, 2131 | 1800, 15) => Some("jcb"),
        (_, 62 | 81, _, 16..=19) => Some("unionpay"),
        (_, _, 2200..=2204, 16..=19) => Some("mir"),
        (_, 50 | 56..=58 | 63 | 67, _, 12..=19) | (_, _, 604, 12..=19) => Some("maestro"),
        _ => None,
    }
}

/// The account that starts here and where it ends.
pub(super) fn iban(text: &str, at: usize) -> Option<(&'static str, usize)> {
    let bytes = text.as_bytes();
    let head = bytes.get(at..at + 4)?;
    let opens = head[..2].iter().all(u8::is_ascii_alphabetic) && head[2..].iter().all(u8::is_ascii_digit);
    if !opens || !place::starts_word(text, at) {
        return None;
    }
    let country = [head[0].to_ascii_uppercase(), head[1].to_ascii_uppercase()];
    let (_, length) = LENGTHS.iter().find(|(name, _)| name.as_bytes() == country)?;
    let mut chars = Vec::with_capacity(IBAN_CHARS_MAX);
    let mut i = at;
    while chars.len() < *length {
        match *bytes.get(i)? {
            byte if byte.is_ascii_alphanumeric() => chars.push(byte.to_ascii_uppercase()),
            b' ' | b'-' if bytes[i - 1].is_ascii_alphanumeric() => {}
            _ => return None,
        }
        i += 1;
    }
    let whole = bytes.get(i).is_none_or(|&b| !place::is_word(b));
    let turned = chars[4..].iter().chain(&chars[..4]).copied();
    (whole && mod_97(turned) == 1).then_some(("iban", i))
}

/// Countries of the IBAN registry (ISO 13616) with the length of their accounts.
const LENGTHS: &[(&str, usize)] = &[
    ("AD", 24),
    ("AE", 23),
    ("AL", 28),
    ("AT", 20),
    ("AZ", 28),
    ("BA", 20),
    ("BE", 16),
    ("BG", 22),
    ("BH", 22),
    ("BI", 27),
    ("BR", 29),
    ("BY", 28),
    ("CH", 21),
    ("CR", 22),
    ("CY", 28),
    ("CZ", 24),
    ("DE", 22),
    ("DJ", 27),
    ("DK", 18),
    ("DO", 28),
    ("EE", 20),
    ("EG", 29),
    ("ES", 24),
    ("FI", 18),
    ("FK", 18),
    ("FO", 18),
    ("FR", 27),
    ("GB", 22),
    ("GE", 22),
    ("GI", 23),
    ("GL", 18),
    ("GR", 27),
    ("GT", 28),
    ("HR", 21),
    ("HU", 28),
    ("IE", 22),
    ("IL", 23),
    ("IQ", 23),
    ("IS", 26),
    ("IT", 27),
    ("JO", 30),
    ("KW", 30),
    ("KZ", 20),
    ("LB", 28),
    ("LC", 32),
    ("LI", 21),
    ("LT", 20),
    ("LU", 20),
    ("LV", 21),
    ("LY", 25),
    ("MC", 27),
    ("MD", 24),
    ("ME", 22),
    ("MK", 19),
    ("MN", 20),
    ("MR", 27),
    ("MT", 31),
    ("MU", 30),
    ("NI", 28),
    ("NL", 18),
    ("NO", 15),
    ("OM", 23),
    ("PK", 24),
    ("PL", 28),
    ("PS", 29),
    ("PT", 25),
    ("QA", 29),
    ("RO", 24),
    ("RS", 22),
    ("RU", 33),
    ("SA", 24),
    ("SC", 31),
    ("SD", 18),
    ("SE", 24),
    ("SI", 19),
    ("SK", 24),
    ("SM", 27),
    ("SO", 23),
    ("ST", 25),
    ("SV", 28),
    ("TL", 23),
    ("TN", 24),
    ("TR", 26),
    ("UA", 29),
    ("VA", 22),
    ("VG", 24),
    ("XK", 20),
    ("YE", 30),
];

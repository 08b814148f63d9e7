//! Telephone numbers: with a country's code, or in the forms that countries write their own in.

use super::place;

/// Digits of a number (ITU-T E.164), and of the groups that it is written in.
const DIGITS_MAX: usize = 15;
const GROUPS_MAX: usize = 8;
/// Bytes that are looked at.
const BYTES_MAX: usize = 40;

/// Words beside which a number without a telling form is a telephone's.
const SAID: &[&str] = &[
    "phone",
    "phones",
    "telephone",
    "tel",
    "mobile",
    "cell",
    "cellphone",
    "fax",
    "call",
    "calls",
    "called",
    "calling",
    "dial",
    "ring",
    "text",
    "sms",
    "whatsapp",
    "telegram",
    "signal",
    "voicemail",
    "landline",
    "hotline",
    "reach",
    "answering",
    "message",
    "messages",
    "desk",
    "office",
    "ph",
    "mob",
    "téléphone",
    "telephon",
    "telefon",
    "handy",
    "mobil",
    "mobilnummer",
    "rufnummer",
    "telefonnummer",
    "handynummer",
    "anrufen",
    "ruf",
    "appelez",
    "appeler",
    "portable",
    "numéro",
    "teléfono",
    "telefono",
    "móvil",
    "movil",
    "celular",
    "llama",
    "llame",
    "llámame",
    "cellulare",
    "chiama",
    "chiamami",
    "telefoon",
    "mobiel",
    "bel",
    "bellen",
    "telefone",
    "telemóvel",
    "ligue",
    "ligar",
    "komórka",
    "zadzwoń",
    "телефон",
    "звоните",
    "电话",
    "手机",
    "電話",
    "携帯",
    "전화",
];

/// One group of digits.
#[derive(Clone, Copy)]
struct Group<'a> {
    digits: &'a str,
    /// What stands before it.
    parting: Parting,
    in_brackets: bool,
    end: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Parting {
    None,
    Space,
    Dash,
    Dot,
    Slash,
}

/// The number that starts here and where it ends.
pub(super) fn at(text: &str, at: usize) -> Option<(&'static str, usize)> {
    let bytes = text.as_bytes();
    let plus = bytes[at] == b'+';
    let first = at + usize::from(plus);
    let opens = |b: &u8| b.is_ascii_digit() || *b == b'(';
    if !bytes.get(first).is_some_and(opens) || !place::starts(text, at) {
        return None;
    }
    let groups = groups(text, first);
    let bare = at.checked_sub(1).is_none_or(|i| !matches!(bytes[i], b'/' | b'=' | b'#' | b'-' | b'.' | b'$'));
    (1..=groups.len()).rev().find_map(|n| {
        let end = groups[n - 1].end;
        let rest = groups.get(n).map(|next| next.parting);
        if !place::ends(text, end) && !has_extension(text, end) || rest == Some(Parting::None) {
            return None;
        }
        let said = || place::said_around(text, at, end, SAID);
        // Further digits after it, or before it, make it a part of something else; so do signs of arithmetic.
        let whole = plus || rest.is_none() && !place::goes_on(text, at, end) && !calculates(text, at, end);
        let kind = kind(plus, &groups[..n], whole, bare, &said)?;
        Some((kind, end + extension(text, end)))
    })
}

/// Whether the place is one in a calculation: `=5000-2900`, `5000/500=<<…`.
fn calculates(text: &str, start: usize, end: usize) -> bool {
    let signs = |c: char| matches!(c, '=' | '<' | '*' | '+' | '×' | '÷' | '^');
    let money = |c: char| matches!(c, '$' | '€' | '£' | '¥');
    let after = text[end..].trim_start_matches(' ');
    let before = text[..start].trim_end_matches(' ');
    after.starts_with(signs) || before.ends_with(signs) || before.ends_with(money)
}

/// The same, only where a word beside it says that it is a telephone's.
pub(super) fn said_at(text: &str, start: usize) -> Option<(&'static str, usize)> {
    at(text, start).filter(|(_, end)| place::said_around(text, start, *end, SAID))
}

/// The groups of digits from here on, with one character between two.
fn groups(text: &str, first: usize) -> Vec<Group<'_>> {
    let bytes = text.as_bytes();
    let mut groups: Vec<Group<'_>> = Vec::new();
    let (mut i, mut parting) = (first, Parting::None);
    while groups.len() < GROUPS_MAX && i - first < BYTES_MAX {
        let in_brackets = bytes.get(i) == Some(&b'(');
        let start = i + usize::from(in_brackets);
        let length = bytes[start.min(bytes.len())..]
            .iter()
            .take(DIGITS_MAX + 5)
            .take_while(|b| b.is_ascii_digit())
            .count();
        let mut end = start + length;
        if length == 0 || length > DIGITS_MAX + 3 || in_brackets && bytes.get(end) != Some(&b')') {
            break;
        }
        end += usize::from(in_brackets);
        groups.push(Group { digits: &text[start..start + length], parting, in_brackets, end });
        let (next, width) = parting_at(text, end);
        // `(030)123` and `+41 (0)79` need nothing between.
        let after = bytes.get(end + width);
        let goes_on = after.is_some_and(|b| b.is_ascii_digit() || *b == b'(');
        if !goes_on || next == Parting::None && !in_brackets && after != Some(&b'(') {
            break;
        }
        (i, parting) = (end + width, next);
    }
    groups
}

fn parting_at(text: &str, at: usize) -> (Parting, usize) {
    match text[at..].chars().next() {
        Some(c @ (' ' | '\u{a0}' | '\u{202f}')) => (Parting::Space, c.len_utf8()),
        Some(c @ ('-' | '\u{2010}' | '\u{2011}' | '\u{2013}')) => (Parting::Dash, c.len_utf8()),
        Some('.') => (Parting::Dot, 1),
        Some('/') => (Parting::Slash, 1),
        _ => (Parting::None, 0),
    }
}

/// Which form these groups have, if any. `whole`: no further group follows. `bare`: nothing before the number hints at a
/// path or a reference.
fn kind(
    plus: bool,
    groups: &[Group<'_>],
    whole: bool,
    bare: bool,
    said: &dyn Fn() -> bool,
) -> Option<&'static str> {
    let digits: String = groups.iter().map(|group| group.digits).collect();
    let sizes: Vec<usize> = groups.iter().map(|group| group.digits.len()).collect();
    if plus {
        return (has_country(&digits) && (8..=DIGITS_MAX).contains(&digits.len())).then_some("international");
    }
    if looks_dated(&sizes, groups) || !whole {
        return None;
    }
    let parted = groups.len() > 1;
    if let Some(abroad) = digits.strip_prefix("00") {
        let counted = has_country(abroad) && (9..=DIGITS_MAX).contains(&abroad.len());
        if counted && sizes[0] >= 3 && parted {
            return Some("international");
        }
    }
    if north_american(groups, &sizes, said) {
        return Some("north_american");
    }
    let by_slash = groups.iter().any(|group| group.parting == Parting::Slash);
    // Greenland's, the Faroes' and other small plans have six digits.
    let pairs = sizes == [2, 2, 2] && groups[1..].iter().all(|group| group.parting == Parting::Space);
    let sayable = bare && !by_slash && (pairs || (7..=13).contains(&digits.len()));
    let by_itself = national(groups, &sizes, &digits, bare) || sayable && said();
    by_itself.then_some("national")
}

/// Ten digits as 3-3-4, perhaps with a 1 before them.
fn north_american(groups: &[Group<'_>], sizes: &[usize], said: &dyn Fn() -> bool) -> bool {
    let groups = if groups[0].digits == "1" && sizes.len() > 1 { &groups[1..] } else { groups };
    let sizes: Vec<usize> = groups.iter().map(|group| group.digits.len()).collect();
    if !matches!(sizes[..], [3, 3, 4] | [3, 7]) {
        return false;
    }
    let partings: Vec<Parting> = groups[1..].iter().map(|group| group.parting).collect();
    if groups[0].in_brackets || partings.iter().all(|p| *p == Parting::Dash) {
        return true;
    }
    let of_plan = [0, 1].iter().all(|&i| groups.get(i).is_some_and(|g| g.digits.as_bytes()[0] >= b'2'));
    match sizes[..] {
        [3, 3, 4] if partings.iter().all(|p| *p == Parting::Dot) => true,
        [3, 3, 4] => of_plan || said(),
        _ => false,
    }
}

/// Forms that tell a number without a word beside it.
fn national(groups: &[Group<'_>], sizes: &[usize], digits: &str, bare: bool) -> bool {
    let leading = digits.as_bytes();
    let trunk = leading[0] == b'0' && leading.get(1).is_some_and(|&b| b != b'0');
    let by_dots = groups[1..].iter().filter(|g| g.parting == Parting::Dot).count();
    match sizes {
        // A trunk prefix, as in most of Europe, Asia and Oceania.
        [10 | 11] => trunk && bare,
        [2, 2, 2, 2, 2] if trunk => true,
        [2..=5, rest @ ..] if trunk && !rest.is_empty() => {
            let slashes = groups[1..].iter().skip(1).any(|group| group.parting == Parting::Slash);
            rest.iter().all(|&n| n >= 2) && (9..=12).contains(&digits.len()) && !slashes && by_dots != 1
        }
        // Brazil, India, China.
        [2, 4 | 5, 4] => groups[0].in_brackets,
        [5, 5] => matches!(leading[0], b'6'..=b'9') && groups[1].parting == Parting::Space,
        [3, 4, 4] => leading[0] == b'1' && leading[1] >= b'3' && by_dots == 0,
        _ => false,
    }
}

/// `2024-01-31 10`, `31.01.2024` and the like.
fn looks_dated(sizes: &[usize], groups: &[Group<'_>]) -> bool {
    let year =
        |i: usize| groups.get(i).is_some_and(|g| g.digits.starts_with("19") || g.digits.starts_with("20"));
    match sizes {
        [4, 1..=2, 1..=2, ..] => year(0) && groups[1].parting == groups[2].parting,
        [1..=2, 1..=2, 4, ..] => {
            year(2) && groups[1].parting == groups[2].parting && groups[1].parting != Parting::Space
        }
        _ => false,
    }
}

/// Bytes of `x123`, ` ext. 123` and the like after a number.
fn extension(text: &str, end: usize) -> usize {
    let rest = &text[end..];
    let spaces = usize::from(rest.starts_with(' '));
    let words = ["extension ", "ext. ", "ext.", "ext ", "ext", "x", "#"];
    let head = |word: &&&str| {
        rest.get(spaces..spaces + word.len()).is_some_and(|said| said.eq_ignore_ascii_case(word))
    };
    let Some(word) = words.iter().find(head) else { return 0 };
    let from = spaces + word.len();
    let digits = rest[from..].bytes().take(7).take_while(u8::is_ascii_digit).count();
    let whole = rest[from + digits..].bytes().next().is_none_or(|b| !place::is_word(b));
    if (1..=6).contains(&digits) && whole { from + digits } else { 0 }
}

fn has_extension(text: &str, end: usize) -> bool {
    extension(text, end) > 0
}

/// Whether a number starts with a country's code (ITU-T E.164, list of assigned codes).
fn has_country(digits: &str) -> bool {
    let head = |n: usize| digits.get(..n).and_then(|head| head.parse::<u16>().ok()).unwrap_or(0);
    let two = [
        20, 27, 30, 31, 32, 33, 34, 36, 39, 40, 41, 43, 44, 45, 46, 47, 48, 49, 51, 52, 53, 54, 55, 56, 57,
        58, 60, 61, 62, 63, 64, 65, 66, 81, 82, 84, 86, 90, 91, 92, 93, 94, 95, 98,
    ];
    let three = matches!(
        head(3),
        211..=213 | 216 | 218 | 220..=269 | 290 | 291 | 297..=299 | 350..=359 | 370..=389 | 420 | 421 | 423 | 500..=509
            | 590..=599 | 670..=692 | 800 | 808 | 850..=856 | 870 | 878 | 880..=883 | 886 | 888 | 960..=968 | 970..=979
            | 992..=998
    );
    matches!(head(1), 1 | 7) || two.contains(&head(2)) || three
}

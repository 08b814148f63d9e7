//! Numbers by which states know people, each with its form and the rule that its digits obey.

use super::checks::{day, luhn, mod_11_10, number, value, verhoeff, weighted};
use super::place;

/// A number's form: `d` is a digit, `a` a letter, `x` either, `?` perhaps one of `-./` or a space, `!` surely one, the same
/// at every place; anything else is itself.
struct Form {
    kind: &'static str,
    shape: &'static str,
    holds: fn(&[u8]) -> bool,
    /// What such a number is called by those who give it.
    said: &'static [&'static str],
    /// Whether the form tells it without a word beside it.
    alone: bool,
}

const fn form(kind: &'static str, shape: &'static str, holds: fn(&[u8]) -> bool) -> Form {
    Form { kind, shape, holds, said: &[], alone: true }
}

const fn named(
    kind: &'static str,
    shape: &'static str,
    holds: fn(&[u8]) -> bool,
    said: &'static [&'static str],
) -> Form {
    Form { kind, shape, holds, said, alone: true }
}

const fn said(
    kind: &'static str,
    shape: &'static str,
    holds: fn(&[u8]) -> bool,
    said: &'static [&'static str],
) -> Form {
    Form { kind, shape, holds, said, alone: false }
}

const FORMS: &[Form] = &[
    form("us_ssn", "ddd-dd-dddd", us_ssn),
    said("us_ssn", "ddd?dd?dddd", us_ssn, &["ssn", "social", "tin"]),
    form("us_itin", "ddd-dd-dddd", us_itin),
    said("us_itin", "ddd?dd?dddd", us_itin, &["itin", "tin"]),
    form("uk_nino", "aa?dd?dd?dd?a", uk_nino),
    said("uk_nhs", "ddd?ddd?dddd", uk_nhs, &["nhs"]),
    named("fr_nir", "d?dd?dd?dx?ddd?ddd?dd", fr_nir, &["nir", "sécurité"]),
    form("es_dni", "dddddddd?a", es_dni),
    form("es_nie", "a?ddddddd?a", es_nie),
    form("it_codice_fiscale", "aaaaaaxxaxxaxxxa", it_codice_fiscale),
    said(
        "de_steuer_id",
        "dd?ddd?ddd?ddd",
        de_steuer_id,
        &[
            "steuer",
            "steuernummer",
            "steueridentifikationsnummer",
            "idnr",
            "identifikationsnummer",
            "tin",
            "tax",
        ],
    ),
    form("de_rentenversicherung", "dd?dddddd?a?ddd", de_rentenversicherung),
    said("nl_bsn", "dddd?dd?ddd", nl_bsn, &["bsn", "burgerservicenummer", "sofinummer"]),
    form("be_rijksregister", "dd.dd.dd-ddd.dd", be_rijksregister),
    said(
        "be_rijksregister",
        "ddddddddddd",
        be_rijksregister,
        &["rijksregisternummer", "national", "registre", "nn"],
    ),
    named("pl_pesel", "ddddddddddd", pl_pesel, &["pesel"]),
    form("ch_ahv", "ddd.dddd.dddd.dd", ch_ahv),
    form("se_personnummer", "dddddd-dddd", se_personnummer),
    form("se_personnummer", "dddddddd-dddd", se_personnummer),
    form("fi_hetu", "dddddd-dddx", fi_hetu),
    form("fi_hetu", "ddddddAdddx", fi_hetu_since_2000),
    named("no_fodselsnummer", "dddddd?ddddd", no_fodselsnummer, &["fødselsnummer", "personnummer"]),
    said("dk_cpr", "dddddd-dddd", dk_cpr, &["cpr", "personnummer"]),
    form("cz_rodne_cislo", "dddddd/dddd", cz_rodne_cislo),
    said("cz_rodne_cislo", "dddddd/ddd", born_czech, &["rodné", "rodne"]),
    named("ro_cnp", "ddddddddddddd", ro_cnp, &["cnp", "personal"]),
    said("bg_egn", "dddddddddd", bg_egn, &["egn", "егн"]),
    said("hr_oib", "ddddddddddd", mod_11_10, &["oib"]),
    named("lt_ee_code", "ddddddddddd", baltic_code, &["kodas", "isikukood"]),
    said("pt_nif", "ddd?ddd?ddd", pt_nif, &["nif", "contribuinte"]),
    form("ie_pps", "dddddddaa", ie_pps),
    said("ie_pps", "ddddddda", ie_pps, &["pps", "ppsn"]),
    said(
        "at_sozialversicherung",
        "dddd?dddddd",
        at_svnr,
        &["sozialversicherung", "sozialversicherungsnummer", "svnr"],
    ),
    said("tr_kimlik", "ddddddddddd", tr_kimlik, &["kimlik", "tckn", "tc"]),
    said("ca_sin", "ddd?ddd?ddd", luhn, &["sin", "insurance", "nas"]),
    form("br_cpf", "ddd.ddd.ddd-dd", br_cpf),
    said("br_cpf", "ddddddddddd", br_cpf, &["cpf"]),
    named("cn_resident", "dddddddddddddddddx", cn_resident, &["身份证"]),
    form("in_aadhaar", "dddd!dddd!dddd", in_aadhaar),
    said("in_aadhaar", "dddddddddddd", in_aadhaar, &["aadhaar", "aadhar", "uidai", "uid"]),
    form("kr_rrn", "dddddd-ddddddd", kr_rrn),
    named("za_id", "ddddddddddddd", za_id, &["id", "identity"]),
    said("au_tfn", "ddd?ddd?ddd", au_tfn, &["tfn", "tax"]),
    said("il_teudat_zehut", "ddddddddd", luhn, &["teudat", "zehut", "זהות"]),
];

/// Characters of a number without what parts them.
const CHARS_MAX: usize = 20;

/// How sure a number has to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sure {
    /// A word beside it says what it is, or its form has letters or marks in places of its own.
    Surely,
    /// Its digits obey the rule.
    Perhaps,
}

/// The number that starts here and where it ends.
pub(super) fn at(text: &str, at: usize, sure: Sure) -> Option<(&'static str, usize)> {
    if !place::starts(text, at) {
        return None;
    }
    FORMS.iter().find_map(|form| {
        let (chars, end) = matched(text, at, form.shape)?;
        if !(form.holds)(chars.as_slice()) || !place::ends(text, end) {
            return None;
        }
        let marked = form.shape.bytes().any(|b| !matches!(b, b'd' | b'x' | b'?'));
        let told = form.alone && (marked || sure == Sure::Perhaps);
        (told || place::said_around(text, at, end, form.said)).then_some((form.kind, end))
    })
}

/// Digits and capital letters.
struct Chars {
    bytes: [u8; CHARS_MAX],
    length: usize,
}

impl Chars {
    fn push(&mut self, byte: u8) {
        self.bytes[self.length] = byte.to_ascii_uppercase();
        self.length += 1;
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// The digits and capital letters of what has this shape here, and where it ends.
fn matched(text: &str, at: usize, shape: &str) -> Option<(Chars, usize)> {
    let bytes = text.as_bytes();
    let mut chars = Chars { bytes: [0; CHARS_MAX], length: 0 };
    let mut i = at;
    let mut parting: Option<Option<u8>> = None;
    for wanted in shape.bytes() {
        let byte = *bytes.get(i)?;
        if matches!(wanted, b'?' | b'!') {
            let here = matches!(byte, b' ' | b'-' | b'.' | b'/').then_some(byte);
            // Parted at all places or at none.
            let differs = *parting.get_or_insert(here) != here && !may_differ(shape);
            if differs || wanted == b'!' && here.is_none() {
                return None;
            }
            i += usize::from(here.is_some());
            continue;
        }
        let fits = match wanted {
            b'd' => byte.is_ascii_digit(),
            b'a' => byte.is_ascii_alphabetic(),
            b'x' => byte.is_ascii_alphanumeric(),
            other => byte == other,
        };
        if !fits {
            return None;
        }
        if byte.is_ascii_alphanumeric() {
            chars.push(byte);
        }
        i += 1;
    }
    let word_goes_on = bytes.get(i).is_some_and(|&b| place::is_word(b));
    let digits_go_on = parting == Some(Some(b' ')) && place::goes_on(text, at, i);
    (!word_goes_on && !digits_go_on).then_some((chars, i))
}

/// Numbers with letters in them are parted in more ways than one: `12345678-Z`, `12 345678 A 123`.
fn may_differ(shape: &str) -> bool {
    shape.contains(['a', 'x'])
}

/// `YYMMDD` at the head of a number.
fn born(d: &[u8], months: u32) -> bool {
    let month = value(d[2]) * 10 + value(d[3]);
    day(month % months, value(d[4]) * 10 + value(d[5]))
}

fn born_backwards(d: &[u8]) -> bool {
    day(value(d[2]) * 10 + value(d[3]), value(d[0]) * 10 + value(d[1]))
}

/// Areas 000, 666 and from 900 on, and groups and serials of zeros, were never given.
fn us_ssn(d: &[u8]) -> bool {
    let (area, group, serial) = (number(&d[..3]), number(&d[3..5]), number(&d[5..]));
    area != 0 && area != 666 && area < 900 && group != 0 && serial != 0
}

/// The number of a taxpayer without a social security number: from 900 on, in the groups that are in use.
fn us_itin(d: &[u8]) -> bool {
    let (area, group) = (number(&d[..3]), number(&d[3..5]));
    area >= 900 && matches!(group, 50..=65 | 70..=88 | 90..=92 | 94..=99)
}

fn uk_nino(c: &[u8]) -> bool {
    let prefix = &c[..2];
    let given = !prefix.iter().any(|b| b"DFIQUV".contains(b)) && prefix[1] != b'O';
    let never = ["BG", "GB", "NK", "KN", "TN", "NT", "ZZ"];
    given && !never.iter().any(|p| p.as_bytes() == prefix) && (b'A'..=b'D').contains(&c[8])
}

fn uk_nhs(d: &[u8]) -> bool {
    let check = 11 - weighted(&d[..9], &[10, 9, 8, 7, 6, 5, 4, 3, 2]) % 11;
    check != 10 && check % 11 == value(d[9])
}

/// The key is 97 less the number modulo 97; Corsica's departments 2A and 2B count as 19 and 18.
fn fr_nir(c: &[u8]) -> bool {
    let mut digits = c.to_vec();
    match (c[5], c[6]) {
        (b'2', b'A') => digits[5..7].copy_from_slice(b"19"),
        (b'2', b'B') => digits[5..7].copy_from_slice(b"18"),
        (_, letter) if !letter.is_ascii_digit() => return false,
        _ => {}
    }
    // Months from 20 on stand for those that nobody knows.
    let month = matches!(number(&digits[3..5]), 1..=12 | 20..=42 | 50..=99);
    month
        && matches!(c[0], b'1'..=b'4' | b'7' | b'8')
        && 97 - number(&digits[..13]) % 97 == number(&digits[13..])
}

const DNI: &[u8; 23] = b"TRWAGMYFPDXBNJZSQVHLCKE";

fn es_dni(c: &[u8]) -> bool {
    DNI[(number(&c[..8]) % 23) as usize] == c[8]
}

fn es_nie(c: &[u8]) -> bool {
    let first = match c[0] {
        b'X' => 0,
        b'Y' => 1,
        b'Z' => 2,
        _ => return false,
    };
    DNI[((first * 10_000_000 + number(&c[1..8])) % 23) as usize] == c[8]
}

/// Digits may be written as letters where two people would get the same code.
fn it_codice_fiscale(c: &[u8]) -> bool {
    const ODD: [u32; 26] =
        [1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23];
    let digit = |b: u8| b.is_ascii_digit() || b"LMNPQRSTUV".contains(&b);
    let index = |b: u8| usize::from(if b.is_ascii_digit() { b - b'0' } else { b - b'A' });
    let formed = [6, 7, 9, 10, 12, 13, 14].iter().all(|&i| digit(c[i])) && b"ABCDEHLMPRST".contains(&c[8]);
    let sum: u32 = c[..15]
        .iter()
        .enumerate()
        .map(|(i, &b)| if i % 2 == 0 { ODD[index(b)] } else { index(b) as u32 })
        .sum();
    formed && c[15] == b'A' + (sum % 26) as u8
}

/// Among the first ten digits one occurs two or three times and no other more than once.
fn de_steuer_id(d: &[u8]) -> bool {
    let mut counts = [0u32; 10];
    d[..10].iter().for_each(|&b| counts[value(b) as usize] += 1);
    let more: Vec<u32> = counts.into_iter().filter(|&n| n > 1).collect();
    d[0] != b'0' && matches!(more[..], [2 | 3]) && mod_11_10(d)
}

/// Area, date of birth, a letter, a serial number and a check digit over all with the letter as two digits.
fn de_rentenversicherung(c: &[u8]) -> bool {
    if !c[8].is_ascii_uppercase() {
        return false;
    }
    let letter = u32::from(c[8] - b'A') + 1;
    let mut digits: Vec<u32> = c[..8].iter().map(|&b| value(b)).collect();
    digits.extend([letter / 10, letter % 10]);
    digits.extend(c[9..11].iter().map(|&b| value(b)));
    let weights = [2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1];
    let cross = |n: u32| n / 10 + n % 10;
    let sum: u32 = digits.iter().zip(weights).map(|(d, w)| cross(d * w)).sum();
    born_backwards(&c[2..8]) && sum % 10 == value(c[11])
}

fn nl_bsn(d: &[u8]) -> bool {
    let sum = weighted(&d[..8], &[9, 8, 7, 6, 5, 4, 3, 2]) as i64 - i64::from(value(d[8]));
    number(d) != 0 && sum % 11 == 0
}

/// 97 less the number modulo 97; with a 2 before it for those born from 2000 on.
fn be_rijksregister(d: &[u8]) -> bool {
    let (head, key) = (number(&d[..9]), number(&d[9..]));
    born(d, 20) && (97 - head % 97 == key || 97 - (2_000_000_000 + head) % 97 == key)
}

/// The month says the century: 80 is added for the 19th, 20 for the 21st and so on.
fn pl_pesel(d: &[u8]) -> bool {
    let sum = weighted(&d[..10], &[1, 3, 7, 9, 1, 3, 7, 9, 1, 3]);
    born(d, 20) && (10 - sum % 10) % 10 == value(d[10])
}

/// An EAN-13 that starts with Switzerland's 756.
fn ch_ahv(d: &[u8]) -> bool {
    let sum = weighted(&d[..12], &[1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3]);
    d.starts_with(b"756") && (10 - sum % 10) % 10 == value(d[12])
}

/// Those without a number yet have 60 added to the day.
fn se_personnummer(d: &[u8]) -> bool {
    let d = &d[d.len() - 10..];
    let of_day = value(d[4]) * 10 + value(d[5]);
    day(value(d[2]) * 10 + value(d[3]), of_day % 60) && luhn(d)
}

fn fi_hetu(c: &[u8]) -> bool {
    const CHECKS: &[u8; 31] = b"0123456789ABCDEFHJKLMNPRSTUVWXY";
    let all = [&c[..6], &c[6..9]].concat();
    born_backwards(c) && CHECKS[(number(&all) % 31) as usize] == c[9]
}

fn fi_hetu_since_2000(c: &[u8]) -> bool {
    fi_hetu(&[&c[..6], &c[7..]].concat())
}

/// D-numbers add 40 to the day.
fn no_fodselsnummer(d: &[u8]) -> bool {
    let first = (11 - weighted(&d[..9], &[3, 7, 6, 1, 8, 9, 4, 5, 2]) % 11) % 11;
    let second = (11 - weighted(&d[..10], &[5, 4, 3, 2, 7, 6, 5, 4, 3, 2]) % 11) % 11;
    let of_day = value(d[0]) * 10 + value(d[1]);
    let dated = day(value(d[2]) * 10 + value(d[3]), of_day % 40);
    dated && first == value(d[9]) && second == value(d[10])
}

/// Its check digit has not held since 2007; the date does.
fn dk_cpr(d: &[u8]) -> bool {
    born_backwards(d)
}

/// Numbers from before 1954 are a digit shorter and have no check.
fn cz_rodne_cislo(d: &[u8]) -> bool {
    born_czech(d) && number(d).is_multiple_of(11)
}

/// Women have 50 added to the month, and 20 is added where a day has no numbers left.
fn born_czech(d: &[u8]) -> bool {
    let month = (value(d[2]) * 10 + value(d[3])) % 50;
    let month = if month > 20 { month - 20 } else { month };
    day(month, value(d[4]) * 10 + value(d[5]))
}

fn ro_cnp(d: &[u8]) -> bool {
    let rest = weighted(&d[..12], &[2, 7, 9, 1, 4, 6, 3, 5, 8, 2, 7, 9]) % 11;
    d[0] != b'0' && born(&d[1..], 100) && rest % 10 + rest / 10 == value(d[12])
}

/// 20 is added to the month for the 19th century, 40 for the 21st.
fn bg_egn(d: &[u8]) -> bool {
    let rest = weighted(&d[..9], &[2, 4, 8, 5, 10, 9, 7, 3, 6]) % 11;
    born(d, 20) && rest % 10 == value(d[9])
}

/// Lithuania's and Estonia's: century and sex, date, serial, and a check digit in two attempts.
fn baltic_code(d: &[u8]) -> bool {
    let first = weighted(&d[..10], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 1]) % 11;
    let second = weighted(&d[..10], &[3, 4, 5, 6, 7, 8, 9, 1, 2, 3]) % 11;
    let check = if first < 10 { first } else { second % 10 };
    matches!(d[0], b'1'..=b'8') && born(&d[1..], 100) && check == value(d[10])
}

fn pt_nif(d: &[u8]) -> bool {
    let rest = weighted(&d[..8], &[9, 8, 7, 6, 5, 4, 3, 2]) % 11;
    let check = if rest < 2 { 0 } else { 11 - rest };
    d[0] != b'0' && check == value(d[8])
}

/// A letter that may follow the check letter counts nine times.
fn ie_pps(c: &[u8]) -> bool {
    let more = c.get(8).map_or(0, |&b| if b == b'W' { 0 } else { u32::from(b.saturating_sub(b'@')) });
    let sum = weighted(&c[..7], &[8, 7, 6, 5, 4, 3, 2]) + 9 * more;
    let check = b"WABCDEFGHIJKLMNOPQRSTUV"[(sum % 23) as usize];
    check == c[7] && c.get(8).is_none_or(|&b| (b'A'..=b'I').contains(&b) || b == b'W')
}

fn at_svnr(d: &[u8]) -> bool {
    let others = [&d[..3], &d[4..]].concat();
    let check = weighted(&others, &[3, 7, 9, 5, 8, 4, 2, 1, 6]) % 11;
    d[0] != b'0'
        && day((value(d[6]) * 10 + value(d[7])).min(12), value(d[4]) * 10 + value(d[5]))
        && check == value(d[3])
}

fn tr_kimlik(d: &[u8]) -> bool {
    let digits: Vec<u32> = d.iter().map(|&b| value(b)).collect();
    let odd: u32 = digits[..9].iter().step_by(2).sum();
    let even: u32 = digits[1..8].iter().step_by(2).sum();
    let sum: u32 = digits[..10].iter().sum();
    d[0] != b'0' && (odd * 7 + 90 - even) % 10 == digits[9] && sum % 10 == digits[10]
}

fn br_cpf(d: &[u8]) -> bool {
    let check = |n: usize| {
        let weights: Vec<u32> = (2..=n as u32 + 1).rev().collect();
        weighted(&d[..n], &weights) * 10 % 11 % 10
    };
    let same = d.iter().all(|b| *b == d[0]);
    !same && check(9) == value(d[9]) && check(10) == value(d[10])
}

/// ISO 7064, MOD 11-2, whose ten is written X; a year of birth from 1800 to 2099.
fn cn_resident(c: &[u8]) -> bool {
    let sum = c[..17].iter().fold(0, |p, &b| (p + value(b)) * 2 % 11);
    let check = (12 - sum) % 11;
    let last = if c[17] == b'X' { 10 } else { value(c[17]) };
    let known = c[17] == b'X' || c[17].is_ascii_digit();
    known && matches!(&c[6..8], b"18" | b"19" | b"20") && born(&c[8..], 100) && check == last
}

fn in_aadhaar(d: &[u8]) -> bool {
    d[0] >= b'2' && verhoeff(d)
}

/// Numbers given since October 2020 have no check digit, so the date and the century's digit have to do.
fn kr_rrn(d: &[u8]) -> bool {
    born(d, 100)
}

fn za_id(d: &[u8]) -> bool {
    born(d, 100) && d[10] <= b'2' && luhn(d)
}

fn au_tfn(d: &[u8]) -> bool {
    weighted(d, &[1, 4, 3, 7, 5, 8, 6, 9, 10]).is_multiple_of(11) && number(d) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_form_is_longer_than_the_bound() {
        assert!(
            FORMS.iter().all(|form| form.shape.bytes().filter(u8::is_ascii_alphabetic).count() <= CHARS_MAX)
        );
    }
}

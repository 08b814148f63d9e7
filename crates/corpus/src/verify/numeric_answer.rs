//! The verifier `numeric_answer`: the last word of a worked answer is a number.
//!
//! Replies end in `#### 18` (GSM8K), in `\boxed{18}`, or just somewhere in a number, with
//! currency, units, thousands separators, decimals or fractions. Numbers are compared exactly,
//! as fractions: 0.5 equals 1/2 and 18.00 equals 18.

use stillroom_core::{Message, Prompt};

use super::{Verdict, Verifier};

/// Only the end of a longer reply is read.
const REPLY_BYTES_MAX: usize = 1 << 16;
/// Longer numbers are no numbers.
const DIGITS_MAX: usize = 18;

/// Compares the number that a reply ends in with the number that is the prompt's answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct NumericAnswer;

impl Verifier for NumericAnswer {
    fn name(&self) -> &'static str {
        "numeric_answer"
    }

    fn verify(&self, prompt: &Prompt, reply: &Message) -> Verdict {
        let Some(answer) = prompt.answer.as_deref().and_then(final_number) else {
            return Verdict::wrong("the prompt has no number as its answer");
        };
        match final_number(&reply.content) {
            None => Verdict::wrong("no number in the reply"),
            Some(given) if given != answer => Verdict::wrong(format!("answered {given} instead of {answer}")),
            Some(_) => Verdict::right(),
        }
    }

    fn answer(&self, reply: &Message) -> Option<String> {
        final_number(&reply.content).map(|number| number.to_string())
    }
}

/// A fraction in lowest terms with a positive denominator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Number {
    numerator: i128,
    denominator: i128,
}

impl Number {
    fn new(numerator: i128, denominator: i128) -> Option<Number> {
        if denominator == 0 {
            return None;
        }
        let sign = denominator.signum();
        let divisor = gcd(numerator.unsigned_abs(), denominator.unsigned_abs()) as i128;
        Some(Number { numerator: sign * numerator / divisor, denominator: sign * denominator / divisor })
    }

    fn negated(self) -> Number {
        Number { numerator: -self.numerator, ..self }
    }

    /// This number over another; both have at most [`DIGITS_MAX`] digits on each side, so nothing overflows.
    fn over(self, other: Number) -> Option<Number> {
        let numerator = self.numerator.checked_mul(other.denominator)?;
        Number::new(numerator, self.denominator.checked_mul(other.numerator)?)
    }
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.denominator {
            1 => write!(f, "{}", self.numerator),
            _ => write!(f, "{}/{}", self.numerator, self.denominator),
        }
    }
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The number that a text ends in: the first after the last `####`, else the first in the last
/// `\boxed{…}`, else the last of all.
pub fn final_number(text: &str) -> Option<Number> {
    let text = tail(text);
    if let Some((_, after)) = text.rsplit_once("####") {
        return numbers(after.trim_start().lines().next()?).next();
    }
    if let Some((_, after)) = text.rsplit_once("\\boxed{") {
        return numbers(inside_braces(after)).next();
    }
    numbers(text).last()
}

fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(REPLY_BYTES_MAX);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

/// The text up to the brace that closes the one before it; all of it where none does.
fn inside_braces(text: &str) -> &str {
    let mut depth = 1usize;
    for (i, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &text[..i];
        }
    }
    text
}

/// Every number of a text, from left to right.
fn numbers(text: &str) -> impl Iterator<Item = Number> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < text.len() {
            let start = at;
            match read_number(text, start) {
                Some((number, end)) => {
                    at = end;
                    if let Some(number) = number {
                        return Some(number);
                    }
                }
                None => at += text[start..].chars().next().map_or(1, char::len_utf8),
            }
        }
        None
    })
}

/// The number that starts at `start` (nothing where it is too long) and where it ends.
fn read_number(text: &str, start: usize) -> Option<(Option<Number>, usize)> {
    let rest = &text[start..];
    let sign = ["-", "\u{2212}"].into_iter().find(|sign| rest.starts_with(sign));
    // A dash after a letter, a digit or a bracket is a hyphen or a subtraction.
    let glued = text[..start].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == ')');
    if sign.is_some() && glued {
        return None;
    }
    let mut at = sign.map_or(0, str::len);
    if sign.is_some() && rest[at..].starts_with('$') {
        at += 1;
    }
    let (number, length) = read_latex_fraction(&rest[at..]).or_else(|| read_fraction(&rest[at..]))?;
    let number = number.map(|number| if sign.is_some() { number.negated() } else { number });
    Some((number, start + at + length))
}

/// `\frac{3}{4}`, also `\dfrac` and `\tfrac`.
fn read_latex_fraction(text: &str) -> Option<(Option<Number>, usize)> {
    let name = ["\\frac{", "\\dfrac{", "\\tfrac{"].into_iter().find(|name| text.starts_with(name))?;
    let over = &text[name.len()..];
    let (numerator, n) = read_decimal(over)?;
    let under = over[n..].strip_prefix("}{")?;
    let (denominator, d) = read_decimal(under)?;
    let closed = under[d..].starts_with('}');
    closed.then(|| (quotient(numerator, denominator), name.len() + n + "}{".len() + d + 1))
}

/// A decimal, or one decimal over another as in `3/4`.
fn read_fraction(text: &str) -> Option<(Option<Number>, usize)> {
    let (numerator, n) = read_decimal(text)?;
    let under = text[n..].strip_prefix('/').or_else(|| text[n..].strip_prefix(" / "));
    if let Some(under) = under
        && let Some((denominator, d)) = read_decimal(under)
    {
        return Some((quotient(numerator, denominator), text.len() - under.len() + d));
    }
    Some((numerator, n))
}

fn quotient(numerator: Option<Number>, denominator: Option<Number>) -> Option<Number> {
    numerator?.over(denominator?)
}

/// Digits with thousands separators and a decimal part, and their length in bytes.
fn read_decimal(text: &str) -> Option<(Option<Number>, usize)> {
    let bytes = text.as_bytes();
    let digits_at =
        |at: usize| bytes[at.min(bytes.len())..].iter().take_while(|b| b.is_ascii_digit()).count();
    let mut end = digits_at(0);
    let mut digits = text[..end].to_string();
    // `1,234,567`: groups of exactly three after one to three digits.
    while (1..=3).contains(&digits_at(0)) && bytes.get(end) == Some(&b',') && digits_at(end + 1) == 3 {
        digits.push_str(&text[end + 1..end + 4]);
        end += 4;
    }
    let mut n_decimals = 0;
    if bytes.get(end) == Some(&b'.') && digits_at(end + 1) > 0 {
        n_decimals = digits_at(end + 1);
        digits.push_str(&text[end + 1..end + 1 + n_decimals]);
        end += 1 + n_decimals;
    }
    if digits.is_empty() {
        return None;
    }
    let short = digits.len() <= DIGITS_MAX;
    let number = short.then(|| digits.parse().ok()).flatten();
    Some((number.and_then(|n| Number::new(n, 10i128.pow(n_decimals as u32))), end))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn n(numerator: i128, denominator: i128) -> Option<Number> {
        Number::new(numerator, denominator)
    }

    #[test]
    fn every_way_of_writing_the_answer_is_read() {
        let cases = [
            ("It takes 2+1=<<2+1=3>>3 bolts\n#### 3", n(3, 1)),
            ("#### 70,000", n(70_000, 1)),
            ("#### -5", n(-5, 1)),
            ("#### $1,234.50 per year", n(2469, 2)),
            ("so we get \\boxed{18}.", n(18, 1)),
            ("\\boxed{\\frac{3}{4}} of 12", n(3, 4)),
            ("\\boxed{\\text{about }\\dfrac{10}{4}\\text{ m}}", n(5, 2)),
            ("The answer is 42.", n(42, 1)),
            ("She pays $18.00", n(18, 1)),
            ("a loss of -$7", n(-7, 1)),
            ("16-3 is 13, so 13", n(13, 1)),
            ("16-3", n(3, 1)),
            ("half, so 1/2", n(1, 2)),
            ("0.50 litres", n(1, 2)),
            ("1,2,3", n(3, 1)),
            ("12,3456", n(3456, 1)),
            ("50% of them", n(50, 1)),
            ("\u{2212}4 °C", n(-4, 1)),
            ("no number", None),
            ("", None),
            ("7, so\n#### none\n5", None),
            ("#### about 5\n 7", n(5, 1)),
            ("1/0", None),
            ("99999999999999999999999999", None),
        ];
        for (text, expected) in cases {
            assert_eq!(final_number(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*", tail in "[-0-9.,/$\\\\{} #a-f\u{2212}]{0,40}") {
            final_number(&format!("{text}{tail}"));
            final_number(&format!("\\boxed{{{tail}"));
            final_number(&format!("\\frac{{{tail}"));
        }

        #[test]
        fn a_number_is_read_back_however_it_is_written(value in -1_000_000_000i64..1_000_000_000) {
            let grouped = group_thousands(value.unsigned_abs());
            let sign = if value < 0 { "-" } else { "" };
            for text in [format!("#### {value}"), format!("it is {sign}${grouped}."), format!("\\boxed{{{value}.0}}")] {
                prop_assert_eq!(final_number(&text), n(value.into(), 1), "{}", text);
            }
        }
    }

    fn group_thousands(value: u64) -> String {
        let digits = value.to_string();
        let mut text = String::new();
        for (i, digit) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        text
    }
}

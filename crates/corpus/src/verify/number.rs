//! Numbers as people and models write them: decimals, thousands in groups, fractions, mixed numbers, powers of ten, percent.
//!
//! `1,234` is a thousand and so is `1{,}234`; `1.234` is a decimal and `1.234,5` and `1.234.567` are thousands, since they
//! can be nothing else. A lone comma before other than three digits, as in `1,5`, parts two numbers.

/// Longer numbers are no numbers.
const DIGITS_MAX: usize = 18;
/// What may stand between groups of three digits.
const GROUPINGS: [&str; 8] = [",", "{,}", ",\\!", "\\,", "'", "\u{2009}", "\u{202f}", "\u{a0}"];
/// What may stand between a number and the power of ten that it is multiplied by.
const TIMES: [&str; 6] = ["\\times", "\\cdot", "×", "·", "*", "x"];

/// A fraction in lowest terms with a positive denominator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Number {
    numerator: i128,
    denominator: i128,
}

impl Number {
    pub(crate) fn new(numerator: i128, denominator: i128) -> Option<Number> {
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

    pub(crate) fn over(self, other: Number) -> Option<Number> {
        let numerator = self.numerator.checked_mul(other.denominator)?;
        Number::new(numerator, self.denominator.checked_mul(other.numerator)?)
    }

    fn plus(self, other: Number) -> Option<Number> {
        let left = self.numerator.checked_mul(other.denominator)?;
        let right = other.numerator.checked_mul(self.denominator)?;
        Number::new(left.checked_add(right)?, self.denominator.checked_mul(other.denominator)?)
    }

    /// This number × 10^exponent.
    fn shifted(self, exponent: i32) -> Option<Number> {
        let power = 10i128.checked_pow(exponent.unsigned_abs())?;
        match exponent < 0 {
            true => Number::new(self.numerator, self.denominator.checked_mul(power)?),
            false => Number::new(self.numerator.checked_mul(power)?, self.denominator),
        }
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

/// A number in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) number: Number,
    /// Whether `%` or "percent" follows.
    pub(crate) percent: bool,
    /// Where it starts and where it ends, without the sign of percent.
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// Every number of a text, from left to right.
pub(crate) fn numbers(text: &str) -> impl Iterator<Item = Found> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < text.len() {
            let start = at;
            match read(text, start) {
                Some((number, end)) => {
                    at = end;
                    if let Some(number) = number {
                        return Some(Found { number, percent: is_percent(&text[end..]), start, end });
                    }
                }
                None => at += text[start..].chars().next().map_or(1, char::len_utf8),
            }
        }
        None
    })
}

fn is_percent(rest: &str) -> bool {
    let rest = rest.trim_start_matches([' ', '}', '$']);
    ["%", "\\%", "percent", "per cent"].iter().any(|sign| rest.starts_with(sign))
}

/// A number (nothing where it is too long) and how many bytes it takes.
type Read = Option<(Option<Number>, usize)>;

/// The number that starts at `start`, and where it ends.
fn read(text: &str, start: usize) -> Read {
    let rest = &text[start..];
    let sign = ["-", "\u{2212}"].into_iter().find(|sign| rest.starts_with(sign));
    // A dash after a letter, a digit or a bracket is a hyphen or a subtraction.
    let glued = text[..start].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == ')');
    if sign.is_some() && glued {
        return None;
    }
    let mut at = sign.map_or(0, str::len);
    if sign.is_some() {
        at += ["\\$", "$", "£", "€"]
            .into_iter()
            .find(|money| rest[at..].starts_with(money))
            .map_or(0, str::len);
    }
    let (number, length) = read_latex_fraction(&rest[at..]).or_else(|| read_scaled(&rest[at..]))?;
    let number = number.map(|number| if sign.is_some() { number.negated() } else { number });
    Some((number, start + at + length))
}

/// `\frac{3}{4}`, also `\dfrac`, `\tfrac` and `\frac34`.
fn read_latex_fraction(text: &str) -> Read {
    let name = ["\\frac", "\\dfrac", "\\tfrac", "\\cfrac"].into_iter().find(|name| text.starts_with(name))?;
    let (numerator, n) = read_argument(&text[name.len()..])?;
    let (denominator, d) = read_argument(&text[name.len() + n..])?;
    Some((quotient(numerator, denominator), name.len() + n + d))
}

/// A number in braces, or one digit.
fn read_argument(text: &str) -> Read {
    let spaces = text.len() - text.trim_start_matches(' ').len();
    let inner = &text[spaces..];
    let Some(inner) = inner.strip_prefix('{') else {
        let digit = inner.bytes().next().filter(u8::is_ascii_digit)?;
        return Some((Number::new(i128::from(digit - b'0'), 1), spaces + 1));
    };
    let padding = inner.len() - inner.trim_start_matches(' ').len();
    let minus = usize::from(inner[padding..].starts_with('-'));
    let (number, n) = read_decimal(&inner[padding + minus..])?;
    let number = number.map(|number| if minus == 1 { number.negated() } else { number });
    let after = &inner[padding + minus + n..];
    let close = after.len() - after.trim_start_matches(' ').len();
    after[close..].starts_with('}').then_some((number, spaces + 1 + padding + minus + n + close + 1))
}

/// A decimal alone, over another as in `3/4`, with a fraction behind it as in `1 3/4`, or times a power of ten.
fn read_scaled(text: &str) -> Read {
    let (number, n) = read_decimal(text)?;
    let rest = &text[n..];
    if let Some((exponent, e)) = read_exponent(rest, number) {
        let scaled = exponent.and_then(|exponent| number?.shifted(exponent));
        return Some((scaled, n + e));
    }
    if let Some((fraction, f)) = read_mixed(rest) {
        let whole = text[..n].bytes().all(|b| b.is_ascii_digit());
        if whole {
            return Some((number.zip(fraction).and_then(|(whole, part)| whole.plus(part)), n + f));
        }
    }
    let under = rest.strip_prefix('/').or_else(|| rest.strip_prefix(" / "));
    if let Some(under) = under
        && let Some((denominator, d)) = read_decimal(under)
    {
        return Some((quotient(number, denominator), text.len() - under.len() + d));
    }
    Some((number, n))
}

/// The proper fraction of a mixed number: ` 3/4` or `\frac{3}{4}`.
fn read_mixed(rest: &str) -> Read {
    let spaces = rest.len() - rest.trim_start_matches([' ', '~']).len();
    let fraction = &rest[spaces..];
    if let Some((number, length)) = read_latex_fraction(fraction) {
        return Some((number.filter(|n| n.numerator.abs() < n.denominator), spaces + length));
    }
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let above = digits(fraction);
    let under = fraction[above..].strip_prefix('/')?;
    let below = digits(under);
    let whole = spaces == 1 && (1..=3).contains(&above) && (1..=4).contains(&below);
    if !whole || under[below..].starts_with(['/', '.', ',']) && digits(&under[below + 1..]) > 0 {
        return None;
    }
    let (numerator, denominator) = (fraction[..above].parse().ok()?, under[..below].parse().ok()?);
    (numerator < denominator).then_some((Number::new(numerator, denominator), spaces + above + 1 + below))
}

/// `e3`, `× 10^3`, `\times 10^{-3}`, or `^3` behind a ten: an exponent (nothing where it is too large) and its length.
fn read_exponent(rest: &str, number: Option<Number>) -> Option<(Option<i32>, usize)> {
    let ten = number == Number::new(10, 1);
    if let Some(raised) = rest.strip_prefix('^').filter(|_| ten) {
        let (exponent, length) = read_power(raised)?;
        return Some((exponent.checked_sub(1), 1 + length));
    }
    if let Some(raised) = rest.strip_prefix(['e', 'E']) {
        let (exponent, length) = read_power(raised)?;
        let whole = !raised[length..].starts_with(|c: char| c.is_alphanumeric());
        return whole.then_some((Some(exponent), 1 + length));
    }
    let spaces = |text: &str| text.len() - text.trim_start_matches(' ').len();
    let before = spaces(rest);
    let times = TIMES.into_iter().find(|times| rest[before..].starts_with(times))?;
    let at = before + times.len();
    let at = at + spaces(&rest[at..]);
    let raised = rest[at..].strip_prefix("10^")?;
    let (exponent, length) = read_power(raised)?;
    Some((Some(exponent), at + 3 + length))
}

/// A whole number with a sign, in braces or brackets or not, and its length.
fn read_power(text: &str) -> Option<(i32, usize)> {
    let close = match text.bytes().next()? {
        b'{' => Some('}'),
        b'(' => Some(')'),
        _ => None,
    };
    let open = usize::from(close.is_some());
    let sign = ["-", "\u{2212}", "+"].into_iter().find(|sign| text[open..].starts_with(sign)).unwrap_or("");
    let from = open + sign.len();
    let digits = text[from..].bytes().take(4).take_while(u8::is_ascii_digit).count();
    let value: i32 = text[from..from + digits].parse().ok()?;
    let end = from + digits;
    let closed = close.is_none_or(|close| text[end..].starts_with(close));
    closed.then_some((if matches!(sign, "" | "+") { value } else { -value }, end + open))
}

fn quotient(numerator: Option<Number>, denominator: Option<Number>) -> Option<Number> {
    numerator?.over(denominator?)
}

/// Digits with thousands in groups and a decimal part, and their length in bytes.
fn read_decimal(text: &str) -> Read {
    let count =
        |at: usize| text.as_bytes()[at.min(text.len())..].iter().take_while(|b| b.is_ascii_digit()).count();
    let whole = count(0);
    let mut digits = text[..whole].to_string();
    let mut end = whole;
    let mut decimal = ".";
    if let Some((grouped, marks, by_dots)) = (1..=3).contains(&whole).then(|| groups(text, whole)).flatten() {
        (end, digits) = (marks, grouped);
        decimal = if by_dots { "," } else { "." };
    }
    let mut n_decimals = 0;
    if text[end..].starts_with(decimal) && count(end + 1) > 0 {
        n_decimals = count(end + 1);
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

/// The digits of a number in groups, where it ends, and whether points part its groups; nothing where there is one group.
fn groups(text: &str, first: usize) -> Option<(String, usize, bool)> {
    let count =
        |at: usize| text.as_bytes()[at.min(text.len())..].iter().take_while(|b| b.is_ascii_digit()).count();
    let run = |mark: &str| {
        let (mut digits, mut end, mut n) = (text[..first].to_string(), first, 0);
        while text[end..].starts_with(mark) && count(end + mark.len()) == 3 {
            digits.push_str(&text[end + mark.len()..end + mark.len() + 3]);
            end += mark.len() + 3;
            n += 1;
        }
        (digits, end, n)
    };
    for mark in GROUPINGS {
        let (digits, end, n) = run(mark);
        if n > 0 {
            return Some((digits, end, false));
        }
    }
    if let Some(indian) = indian_groups(text, first) {
        return Some((indian.0, indian.1, false));
    }
    // One group behind a point may be a decimal part; two, or a comma with more behind it, cannot.
    let (digits, end, n) = run(".");
    let decimals = text[end..].strip_prefix(',').map_or(0, |_| count(end + 1));
    (n > 1 || n == 1 && (1..=2).contains(&decimals)).then_some((digits, end, true))
}

/// `12,34,567`: pairs and at last three digits.
fn indian_groups(text: &str, first: usize) -> Option<(String, usize)> {
    let count =
        |at: usize| text.as_bytes()[at.min(text.len())..].iter().take_while(|b| b.is_ascii_digit()).count();
    let (mut digits, mut end, mut pairs) = (text[..first].to_string(), first, 0);
    while first <= 2 && text[end..].starts_with(',') && count(end + 1) == 2 {
        digits.push_str(&text[end + 1..end + 3]);
        end += 3;
        pairs += 1;
    }
    let last = pairs > 0 && text[end..].starts_with(',') && count(end + 1) == 3;
    last.then(|| (digits + &text[end + 1..end + 4], end + 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_writing_a_number_is_read() {
        let cases = [
            ("1,234,567.5", (2_469_135, 2)),
            ("1{,}234", (1234, 1)),
            ("10,\\!000", (10_000, 1)),
            ("1\\,234", (1234, 1)),
            ("1'234", (1234, 1)),
            ("12\u{202f}345", (12_345, 1)),
            ("1.234.567", (1_234_567, 1)),
            ("1.234,50", (2469, 2)),
            ("1.234", (617, 500)),
            ("12,34,567", (1_234_567, 1)),
            ("1 3/4", (7, 4)),
            ("2\\frac{1}{3}", (7, 3)),
            ("2 \\frac13", (7, 3)),
            ("-\\frac{ -3 }{4}", (3, 4)),
            ("\\frac{1,000}{8}", (125, 1)),
            ("1.5e3", (1500, 1)),
            ("2E-2", (1, 50)),
            ("1.5 \\times 10^{3}", (1500, 1)),
            ("3 × 10^-2", (3, 100)),
            ("10^6", (1_000_000, 1)),
            ("6.02*10^(5)", (602_000, 1)),
            ("-$7.50", (-15, 2)),
            ("3 / 4", (3, 4)),
        ];
        for (text, (n, d)) in cases {
            let found: Vec<Found> = numbers(text).collect();
            let whole = found.first().map(|f| (f.start, f.end, Some(f.number)));
            assert_eq!(whole, Some((0, text.len(), Number::new(n, d))), "{text}");
        }
        for text in ["50%", "50 %", "50\\%", "50 percent", "\\frac{1}{2}\\%"] {
            assert!(numbers(text).next().is_some_and(|f| f.percent), "{text}");
        }
        for (text, n) in
            [("1,5", 2), ("3x 10", 2), ("5e", 1), ("1 4/3", 2), ("1/0", 0), ("1e999", 0), ("10^{x}", 1)]
        {
            assert_eq!(numbers(text).count(), n, "{text}");
        }
    }
}

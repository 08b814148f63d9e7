//! The verifier `numeric_answer`: a reply's answer is a number.
//!
//! Replies end in `#### 18` (GSM8K), in `\boxed{18}`, in "the answer is 18", or just somewhere in a number, with currency,
//! units, thousands in groups, decimals, fractions, mixed numbers or powers of ten. Numbers are compared exactly, as
//! fractions: 0.5 equals 1/2 and 18.00 equals 18. 50% equals 1/2, and 50 where the other side has no sign of percent; units
//! are not compared. What is boxed has to be one number: `2\sqrt{3}` and `1, 2` are none.

use stillroom_core::{Message, Prompt};

use super::ending::{Ending, ending, plain};
pub use super::number::Number;
use super::number::{Found, numbers};
use super::{Verdict, Verifier};

/// What in a box makes it something else than the number that it starts with.
const NO_NUMBER: [&str; 12] =
    ["\\sqrt", "\\pi", "\\infty", "\\pm", "\\cup", "\\cap", "\\ln", "\\log", "\\sin", "\\cos", "π", "√"];

/// Compares the number that a reply ends in with the number that is the prompt's answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct NumericAnswer;

impl Verifier for NumericAnswer {
    fn name(&self) -> &'static str {
        "numeric_answer"
    }

    fn verify(&self, prompt: &Prompt, reply: &Message) -> Verdict {
        let Some(answer) = prompt.answer.as_deref().and_then(found) else {
            return Verdict::wrong("the prompt has no number as its answer");
        };
        match found(&reply.content) {
            None => Verdict::wrong("no number in the reply"),
            Some(given) if !same(given, answer) => {
                Verdict::wrong(format!("answered {} instead of {}", given.number, answer.number))
            }
            Some(_) => Verdict::right(),
        }
    }

    fn answer(&self, reply: &Message) -> Option<String> {
        final_number(&reply.content).map(|number| number.to_string())
    }
}

/// The number that a text ends in: the first after the last `####`, else the one in the last `\boxed{…}`, else the one that
/// "the answer is" announces, else the last of all.
pub fn final_number(text: &str) -> Option<Number> {
    found(text).map(|found| found.number)
}

fn found(text: &str) -> Option<Found> {
    match ending(text) {
        Ending::Hashes(line) => numbers(line).next(),
        Ending::Boxed(inside) => alone(inside),
        Ending::Said(line) => announced(line).or_else(|| numbers(text).last()),
        Ending::Open(text) => numbers(text).last(),
    }
}

/// Equal, or one a percentage that the other states as a share.
fn same(a: Found, b: Found) -> bool {
    let hundredth = |found: Found| Number::new(100, 1).and_then(|hundred| found.number.over(hundred));
    a.number == b.number
        || a.percent && !b.percent && hundredth(a) == Some(b.number)
        || b.percent && !a.percent && hundredth(b) == Some(a.number)
}

/// The number that a box holds, if it holds one: behind the last `=`, with a unit perhaps.
fn alone(inside: &str) -> Option<Found> {
    let inside = plain(inside);
    let value = inside.rsplit(['=', '≈']).next().unwrap_or(&inside);
    if NO_NUMBER.iter().any(|sign| value.contains(sign)) {
        return None;
    }
    let number = numbers(value).next()?;
    let before = &value[..number.start];
    let after = &value[number.end..];
    let bracketed = before.trim() == "(" && after.trim() == ")";
    let opens = !before.contains(['(', '[', '{', '^', '/', '*', '+']) || before.trim() == "{";
    (bracketed || opens && !calculates(after)).then_some(number)
}

/// Whether more than a unit follows a number. A unit may have an exponent: `cm^2`, `^\circ`.
fn calculates(after: &str) -> bool {
    let after = after.replace("^\\circ", "").replace("^{\\circ}", "");
    let mut before = ' ';
    let mut raised = after.starts_with(['^', '!']);
    for c in after.chars() {
        if c.is_ascii_digit() && !matches!(before, '^' | '{') && !before.is_ascii_digit() {
            return true;
        }
        raised |= matches!(c, '+' | '*' | '±' | '×' | '∪');
        before = c;
    }
    raised
}

/// The number of a sentence that announces an answer: the first, or the first behind the last `=`.
fn announced(line: &str) -> Option<Found> {
    let sentence = line.find(". ").map_or(line, |end| &line[..end]);
    let value = sentence.rsplit('=').next().unwrap_or(sentence);
    numbers(value).next()
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
            ("\\boxed{x = 5}", n(5, 1)),
            ("\\boxed{12\\text{ cm}^2}", n(12, 1)),
            ("\\boxed{45^\\circ}", n(45, 1)),
            ("\\boxed{2\\sqrt{3}}", None),
            ("\\boxed{1, 2}", None),
            ("\\boxed{(3, 4)}", None),
            ("\\boxed{3^2}", None),
            ("\\boxed{3!}", None),
            ("\\boxed{(3)}", n(3, 1)),
            ("\\boxed{3 + 2i}", None),
            ("\\boxed{\\$1{,}250}", n(1250, 1)),
            ("The answer is 42.", n(42, 1)),
            ("The answer is 42. I checked it 3 times.", n(42, 1)),
            ("Answer: 5 + 3 = 8", n(8, 1)),
            ("The answer is yes: 7", n(7, 1)),
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

    #[test]
    fn a_percentage_is_a_share_too() {
        let prompt = |answer: &str| Prompt {
            id: "1".into(),
            messages: vec![],
            answer: Some(answer.into()),
            target: None,
        };
        let right = |answer: &str, reply: &str| {
            NumericAnswer
                .verify(&prompt(answer), &Message::new(stillroom_core::Role::Assistant, reply))
                .correct
        };
        for (answer, reply) in
            [("50%", "0.5"), ("0.5", "50%"), ("50", "50%"), ("50%", "50"), ("50%", "\\boxed{50\\%}")]
        {
            assert!(right(answer, reply), "{answer} {reply}");
        }
        assert!(!right("50", "0.5") && !right("50%", "5%") && !right("0.5%", "0.5 of 2, so 1"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*", tail in "[-0-9.,/$\\\\{}^ #a-f×'\u{2212}]{0,40}") {
            final_number(&format!("{text}{tail}"));
            final_number(&format!("\\boxed{{{tail}"));
            final_number(&format!("\\frac{{{tail}"));
            final_number(&format!("the answer is {tail}"));
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

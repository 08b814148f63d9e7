//! The verifier `multiple_choice`: a reply chooses the letter that is the prompt's answer.
//!
//! Letters go from A to J. One is looked for in `\boxed{…}`, behind `####`, behind "the answer is", "Answer:" and their like, as
//! the whole of the last line or of the first, in brackets or bold, as a label that starts the last or the first line
//! (`B. because`), and behind a word that chooses ("option B"). A lone `A` or `I` within a sentence is a word.

use stillroom_core::{Message, Prompt};

use super::ending::{Ending, ending, plain, tail};
use super::{Verdict, Verifier};

const LAST: char = 'J';

#[derive(Clone, Copy, Debug, Default)]
pub struct MultipleChoice;

impl Verifier for MultipleChoice {
    fn name(&self) -> &'static str {
        "multiple_choice"
    }

    fn verify(&self, prompt: &Prompt, reply: &Message) -> Verdict {
        let Some(answer) = prompt.answer.as_deref().and_then(|answer| label(answer.trim())) else {
            return Verdict::wrong("the prompt has no letter as its answer");
        };
        match chosen(&reply.content) {
            None => Verdict::wrong("no choice in the reply"),
            Some(given) if given != answer => Verdict::wrong(format!("chose {given} instead of {answer}")),
            Some(_) => Verdict::right(),
        }
    }

    fn answer(&self, reply: &Message) -> Option<String> {
        chosen(&reply.content).map(String::from)
    }
}

/// The letter that a reply chooses.
pub fn chosen(text: &str) -> Option<char> {
    match ending(text) {
        Ending::Boxed(answer) | Ending::Hashes(answer) | Ending::Said(answer) => {
            announced(answer).or_else(|| by_lines(text))
        }
        Ending::Open(text) => by_lines(text),
    }
}

/// The letter at the start of what announces an answer: `(B)`, `B.`, `option B`, `**B**`.
fn announced(answer: &str) -> Option<char> {
    let answer = plain(answer);
    let mut rest = answer.trim_start_matches([':', ' ', '*', '_', '"', '\'']);
    for word in ["option ", "choice ", "letter ", "definitely ", "clearly "] {
        if rest.get(..word.len()).is_some_and(|head| head.eq_ignore_ascii_case(word)) {
            rest = rest[word.len()..].trim_start_matches([' ', '*', '_', '"', '\'']);
        }
    }
    label(rest)
}

/// The letter that a line is, or starts with as a label.
fn label(line: &str) -> Option<char> {
    let open = line.starts_with(['(', '[', '{']);
    let inner = &line[usize::from(open)..];
    let letter = inner.chars().next()?;
    let rest = inner[letter.len_utf8()..].trim_start_matches(['*', '_']);
    let closed = match rest.chars().next() {
        None | Some(')' | ']' | '}' | '.' | ':' | ',' | ';' | '"' | '\'' | '\n') => true,
        // "B because it is" goes on as a sentence; "A man" does as well, and "a" is an article.
        Some(' ') => !open && letter.is_ascii_uppercase() && !matches!(letter, 'A' | 'I'),
        Some(_) => false,
    };
    let choice = letter.to_ascii_uppercase();
    let marked = rest.starts_with([')', ']', '}', '.', ':']) || rest.is_empty();
    let lower = letter.is_ascii_lowercase() && !marked;
    (('A'..=LAST).contains(&choice) && closed && !lower).then_some(choice)
}

/// From the lines of a reply: the last that is a letter alone, the last letter in brackets or bold, the last or first line
/// that a label starts.
fn by_lines(text: &str) -> Option<char> {
    let text = plain(tail(text));
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let alone = |line: &&str| {
        let bare = line.trim_matches(['*', '_', '"', '\'', '`', '(', ')', '[', ']', '.', ':']);
        let mut chars = bare.chars();
        let letter = chars.next().filter(|_| chars.next().is_none())?.to_ascii_uppercase();
        ('A'..=LAST).contains(&letter).then_some(letter)
    };
    let (first, last) = (lines.first()?, lines.last()?);
    alone(last)
        .or_else(|| alone(first))
        .or_else(|| marked(last))
        .or_else(|| strict_label(last))
        .or_else(|| strict_label(first))
        .or_else(|| named(last))
        .or_else(|| marked(&text))
}

/// A label that nothing but a choice starts with: `B)`, `B.`, `(B)`.
fn strict_label(line: &str) -> Option<char> {
    let bare = line.trim_start_matches(['*', '_']);
    let after = bare.trim_start_matches(['(', '[']).chars().nth(1);
    label(bare).filter(|_| matches!(after, Some(')' | ']' | '.' | ':')))
}

/// The last capital behind a word that chooses: "option B", "the best one is B".
fn named(line: &str) -> Option<char> {
    const WORDS: [&str; 8] = ["option", "choice", "is", "choose", "select", "pick", "be", "chose"];
    let words: Vec<&str> =
        line.split_whitespace().map(|word| word.trim_matches(['.', ',', '"', '\'', ':', ';'])).collect();
    words.windows(2).rev().find_map(|pair| {
        let mut letters = pair[1].chars();
        let letter = letters.next().filter(|c| ('A'..=LAST).contains(c) && letters.next().is_none())?;
        WORDS.iter().any(|word| word.eq_ignore_ascii_case(pair[0])).then_some(letter)
    })
}

/// The last `(B)`, `**B**` or `**B.` of a text.
fn marked(text: &str) -> Option<char> {
    let bytes = text.as_bytes();
    let mut found = None;
    for (i, window) in bytes.windows(3).enumerate() {
        let [open, letter, close] = *window else { continue };
        let bold =
            open == b'*' && i > 0 && bytes[i - 1] == b'*' && matches!(close, b'*' | b'.' | b')' | b':');
        let bracketed = open == b'(' && close == b')';
        if (bold || bracketed) && (b'A'..=LAST as u8).contains(&letter) {
            found = Some(char::from(letter));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_choosing_is_read() {
        for reply in [
            "B",
            "(B)",
            "b)",
            "B.",
            "**B**",
            "B) Paris",
            "(B) Paris",
            "Answer: B",
            "Answer: (B)",
            "**Answer:** B",
            "answer is b.",
            "The answer is (B).",
            "The correct answer is option B, since it is so.",
            "\\boxed{B}",
            "\\boxed{\\text{B}}",
            "\\boxed{\\textbf{(B)}\\ 5}",
            "#### B",
            "Because A is wrong and C is too.\n\nB",
            "A man walks. So (A) fails, (B) holds.",
            "The best choice here is **B**.",
            "B. Because I say so.\nIt is a good one.",
            "Final Answer: **B. Paris**",
            "After thinking, I choose\n**B.** Paris",
            "The answer is: $\\boxed{B}$",
            "Answer: B because A is too small",
            "So the best option is B.",
            "Option B",
        ] {
            assert_eq!(chosen(reply), Some('B'), "{reply}");
        }
        for reply in [
            "",
            "A man went.",
            "I do not know",
            "None of them",
            "Because",
            "Baker",
            "the answer is a matter of taste",
        ] {
            assert_eq!(chosen(reply), None, "{reply}");
        }
        assert_eq!(chosen("Answer: A"), Some('A'));
        assert_eq!(chosen("The answer is J"), Some('J'));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,40}", tail in "[(A-C)*.: \n#a]{0,20}") {
            chosen(&format!("{text}{tail}"));
            chosen(&format!("\\boxed{{{tail}"));
        }
    }
}

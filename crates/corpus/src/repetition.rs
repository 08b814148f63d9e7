//! Texts that go round.

use std::collections::HashSet;

use crate::words::{Word, runs, words};

/// Longest passage, in words, that is looked for directly after itself.
const PASSAGE_WORDS_MAX: usize = 256;
/// So many times in a row.
const TIMES_MIN: usize = 4;
/// So many words in all, so that "no, no, no, no" is none.
const LOOP_WORDS_MIN: usize = 24;
/// The same for passages of numbers alone, which a table may hold.
const LOOP_NUMBERS_MIN: usize = 200;
/// Words of a run that counts as repeated.
const RUN_WORDS: usize = 8;

/// A passage that stands directly after itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loop {
    pub passage_words: usize,
    pub times: usize,
}

/// The loop that covers most of the text, if there is one: a passage of at most 256 words that stands four times or more in
/// a row and so covers 24 words at least (200, where no word is without a digit).
pub fn longest_loop(text: &str) -> Option<Loop> {
    let words = words(text);
    let longest = PASSAGE_WORDS_MAX.min(words.len() / TIMES_MIN);
    let mut best: Option<(usize, Loop)> = None;
    for passage_words in 1..=longest {
        let Some((covered, end)) = longest_run(&words, passage_words) else { continue };
        let passage = &words[end - passage_words..end];
        let least = if passage.iter().all(|word| word.has_digit) { LOOP_NUMBERS_MIN } else { LOOP_WORDS_MIN };
        let times = covered / passage_words;
        // Twice the passage covers no more than the passage does: the shortest is named.
        if times >= TIMES_MIN
            && covered >= least
            && best.is_none_or(|(most, _)| covered > most + passage_words)
        {
            best = Some((covered, Loop { passage_words, times }));
        }
    }
    best.map(|(_, found)| found)
}

/// Words of the longest stretch in which each word is the one `period` before, with the first passage; and its end.
fn longest_run(words: &[Word], period: usize) -> Option<(usize, usize)> {
    let (mut run, mut best) = (0, None);
    for at in period..words.len() {
        run = if words[at] == words[at - period] { run + 1 } else { 0 };
        if run > 0 && best.is_none_or(|(covered, _)| run + period > covered) {
            best = Some((run + period, at + 1));
        }
    }
    best
}

/// Share of a text's words that stand in a run of eight words which stood in it before. It is 0 for shorter texts.
pub fn repeated_share(text: &str) -> f64 {
    let words = words(text);
    if words.len() <= RUN_WORDS {
        return 0.0;
    }
    let mut seen = HashSet::new();
    let (mut covered, mut until) = (0, 0);
    for (at, run) in runs(&words, RUN_WORDS).enumerate() {
        if !seen.insert(run) {
            covered += at + RUN_WORDS - until.max(at);
            until = at + RUN_WORDS;
        }
    }
    covered as f64 / words.len() as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_reply_that_goes_round_is_named_by_its_shortest_passage() {
        let start = "First I add the two numbers and write down what comes out of it. ";
        let text = format!("{start}{}", "Wait, let me check that again. ".repeat(9));
        assert_eq!(longest_loop(&text), Some(Loop { passage_words: 6, times: 9 }));
        let text = format!("{start}{} and then", "very ".repeat(40));
        assert_eq!(longest_loop(&text), Some(Loop { passage_words: 1, times: 40 }));
        let text = "所以答案是四。".repeat(6);
        assert_eq!(longest_loop(&text), Some(Loop { passage_words: 6, times: 6 }));
        let broken_off = format!("{}Wait, let", "Wait, let me check that again. ".repeat(5));
        assert_eq!(longest_loop(&broken_off), Some(Loop { passage_words: 6, times: 5 }));
    }

    #[test]
    fn refrains_tables_and_emphasis_are_no_loop() {
        assert_eq!(longest_loop("No, no, no, no, no! I said no."), None);
        assert_eq!(longest_loop(&"Row, row, row your boat, gently down the stream. ".repeat(3)), None);
        assert_eq!(longest_loop(&"0, ".repeat(64)), None);
        assert_eq!(longest_loop(&"0, ".repeat(300)), Some(Loop { passage_words: 1, times: 300 }));
        let counted: String = (0..40).map(|i| format!("Step {i}: add {i} to the sum. ")).collect();
        assert_eq!(longest_loop(&counted), None);
        assert_eq!(longest_loop(""), None);
    }

    #[test]
    fn repeated_words_are_counted_once_each() {
        let passage = "one two three four five six seven eight nine ten ";
        assert_eq!(repeated_share(passage), 0.0);
        assert!((repeated_share(&passage.repeat(2)) - 0.5).abs() < 1e-12);
        assert!((repeated_share(&passage.repeat(10)) - 0.9).abs() < 1e-12);
        assert_eq!(repeated_share("a a a"), 0.0);
    }

    proptest! {
        #[test]
        fn a_loop_is_in_the_text_and_shares_are_shares(
            words in prop::collection::vec(0u8..3, 0..120), passage in prop::collection::vec(0u8..9, 7..20), times in 4usize..9,
        ) {
            let text = |words: &[u8]| words.iter().map(|w| format!("{} ", char::from(b'a' + w))).collect::<String>();
            prop_assert!((0.0..=1.0).contains(&repeated_share(&text(&words))));
            if let Some(found) = longest_loop(&text(&words)) {
                prop_assert!(found.times >= TIMES_MIN && found.passage_words * found.times <= words.len());
            }
            let round = format!("{}{}", text(&words), text(&passage).repeat(times));
            prop_assert!(longest_loop(&round).is_some());
        }
    }
}

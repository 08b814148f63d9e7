//! What a reply says in its own voice: its words by sentences, without what it quotes and without code.

use std::ops::Range;

use crate::words::{mix, step};

/// A word of a sentence; apostrophes belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spoken {
    pub(crate) word: u64,
    /// Within quotation marks.
    pub(crate) quoted: bool,
    /// The first of its sentence, or the first behind a comma, a semicolon or a dash.
    pub(crate) begins_clause: bool,
}

/// Words up to a sentence's end, and where they stand in the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sentence {
    pub(crate) words: Vec<Spoken>,
    pub(crate) place: Range<usize>,
}

/// The sentences of `text`, each with a word at least. A sentence ends with `.`, `!`, `?`, `:` or `…`, their full-width forms, or a
/// line's end. Left out are fenced code and lines that begin with `>`.
pub(crate) fn sentences(text: &str) -> Vec<Sentence> {
    let mut reader = Reader::default();
    let (mut in_code, mut at) = (false, 0);
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim_start();
        if trimmed.starts_with("```") || trimmed.starts_with("~~~") {
            in_code = !in_code;
        } else if !in_code && !trimmed.starts_with('>') {
            reader.read_line(line, at);
        }
        reader.end_sentence();
        at += line.len();
        // An opening mark without its partner says nothing about the next line.
        reader.quotes = Quotes::default();
    }
    reader.sentences
}

/// The words of a phrase, as [`sentences`] has them.
pub(crate) fn phrase(text: &str) -> Vec<u64> {
    sentences(text).into_iter().flat_map(|sentence| sentence.words).map(|spoken| spoken.word).collect()
}

#[derive(Default)]
struct Reader {
    sentences: Vec<Sentence>,
    sentence: Sentence,
    word: Option<u64>,
    /// A comma or the like was read since the last word.
    paused: bool,
    /// Where the word that is being read begins, and what was read last ends.
    begin: usize,
    end: usize,
    quotes: Quotes,
}

impl Reader {
    /// A line that begins at byte `at` of the text.
    fn read_line(&mut self, line: &str, at: usize) {
        let mut before = ' ';
        let mut chars = line.char_indices().peekable();
        while let Some((place, c)) = chars.next() {
            let after = chars.peek().map_or(' ', |&(_, c)| c);
            if self.word.is_none() || is_ideograph(c) {
                self.begin = at + place;
            }
            self.read(before, c, after);
            self.end = at + place + c.len_utf8();
            before = c;
        }
    }

    fn read(&mut self, before: char, c: char, after: char) {
        let within = before.is_alphanumeric() && after.is_alphanumeric();
        if is_ideograph(c) {
            self.end_word();
            self.push(c);
            self.end_word();
        } else if c.is_alphanumeric() {
            self.push(c);
        } else if matches!(c, '\'' | '\u{2019}') && within {
            self.push('\'');
        } else {
            self.end_word();
            self.quotes.read(before, c, after);
            self.paused |= matches!(c, ',' | ';' | '–' | '—' | '，' | '、' | '；');
            let number_goes_on = matches!(c, '.' | ':') && within;
            if matches!(c, '.' | '!' | '?' | ':' | '…' | '。' | '！' | '？' | '：') && !number_goes_on {
                self.end_sentence();
            }
        }
    }

    fn push(&mut self, c: char) {
        let hash = self.word.unwrap_or(0);
        self.word = Some(c.to_lowercase().fold(hash, |hash, c| step(hash ^ 1, u64::from(c))));
    }

    fn end_word(&mut self) {
        if let Some(hash) = self.word.take() {
            if self.sentence.words.is_empty() {
                self.sentence.place.start = self.begin;
            }
            let begins_clause = std::mem::take(&mut self.paused) || self.sentence.words.is_empty();
            self.sentence.words.push(Spoken { word: mix(hash), quoted: self.quotes.open(), begins_clause });
        }
    }

    fn end_sentence(&mut self) {
        self.end_word();
        if !self.sentence.words.is_empty() {
            self.sentence.place.end = self.end;
            self.sentences.push(std::mem::take(&mut self.sentence));
        }
    }
}

/// Written without spaces, so that each is a word.
fn is_ideograph(c: char) -> bool {
    matches!(c, '\u{3041}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}')
}

/// Which quotation marks are open.
#[derive(Default)]
struct Quotes {
    straight: bool,
    single: bool,
    /// `„`, which `“` closes.
    low: u32,
    pairs: u32,
}

impl Quotes {
    fn open(&self) -> bool {
        self.straight || self.single || self.low > 0 || self.pairs > 0
    }

    fn read(&mut self, before: char, c: char, after: char) {
        match c {
            '"' => self.straight = !self.straight,
            '„' => self.low += 1,
            '“' if self.low > 0 => self.low -= 1,
            '“' | '«' | '「' | '『' | '《' => self.pairs += 1,
            '”' | '»' | '」' | '』' | '》' => self.pairs = self.pairs.saturating_sub(1),
            '\'' | '‘' if !before.is_alphanumeric() && after.is_alphanumeric() => self.single = true,
            '\'' | '’' if !after.is_alphanumeric() => self.single = false,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(text: &str) -> Vec<(usize, usize)> {
        let quoted = |sentence: &Sentence| sentence.words.iter().filter(|spoken| spoken.quoted).count();
        sentences(text).iter().map(|sentence| (sentence.words.len(), quoted(sentence))).collect()
    }

    #[test]
    fn sentences_end_where_people_end_them() {
        assert_eq!(
            counts("I can't. It's 3.5 at 10:30! Why?\nSo: yes"),
            [(2, 0), (6, 0), (1, 0), (1, 0), (1, 0)]
        );
        assert_eq!(counts("我不能。对不起！"), [(3, 0), (3, 0)]);
        assert_eq!(counts(" \n…\n"), []);
        assert_eq!(phrase("I CAN’T"), phrase("i can't"));
        assert_ne!(phrase("I can"), phrase("I can't"));
    }

    #[test]
    fn clauses_begin_behind_commas() {
        let begins = |text: &str| -> Vec<usize> {
            let words = sentences(text).into_iter().flat_map(|sentence| sentence.words);
            words.enumerate().filter(|(_, spoken)| spoken.begins_clause).map(|(at, _)| at).collect()
        };
        assert_eq!(begins("I see, but no; he can't — I won't. So be it"), [0, 2, 4, 6, 8]);
        assert_eq!(begins("1,000 cats; 对不起，我不能"), [0, 1, 3, 6], "digits between are a pause too");
        assert_eq!(begins("Yes,\nno"), [0, 1]);
    }

    #[test]
    fn quotations_and_code_are_not_said() {
        assert_eq!(counts("\"I can't help,\" she said."), [(5, 3)]);
        assert_eq!(counts("He said: “I can’t.” Then he left."), [(2, 0), (2, 2), (3, 0)]);
        assert_eq!(counts("Sie sagte „ich kann nicht“ und ging"), [(7, 3)]);
        assert_eq!(counts("'I can't help,' he said, and it's fine"), [(8, 3)]);
        assert_eq!(counts("an unclosed \" here\nand the next line"), [(3, 1), (4, 0)]);
        assert_eq!(counts("> I can't\n```\nI can't\n```\nDone"), [(1, 0)]);
    }

    #[test]
    fn sentences_know_where_they_stand() {
        let text = "  **I can't.** It's 3.5!\r\n\n- 我不能。 end";
        let places: Vec<&str> = sentences(text).into_iter().map(|sentence| &text[sentence.place]).collect();
        assert_eq!(places, ["I can't", "It's 3.5", "我不能", "end"]);
    }
}

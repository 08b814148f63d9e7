//! The words of a text as numbers, for all that compares texts.
//!
//! A word is a run of letters and digits in lower case. A character of a script that is written without spaces is a word of
//! its own. Nothing else of Unicode is made equal: a letter with a combining accent differs from the composed one.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use unicode_script::{Script, UnicodeScript};

/// One word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    /// The same for equal words in every build and on every machine.
    pub(crate) hash: u64,
    /// It has a digit.
    pub(crate) has_digit: bool,
}

/// The words of `text`, in order.
pub(crate) fn words(text: &str) -> Vec<Word> {
    let mut words = Vec::with_capacity(text.len() / 5);
    let mut open = Open::default();
    for c in text.chars() {
        if stands_alone(c) {
            open.close(&mut words);
            open.push(c);
            open.close(&mut words);
        } else if c.is_alphanumeric() {
            open.push(c);
        } else {
            open.close(&mut words);
        }
    }
    open.close(&mut words);
    words
}

/// Of scripts without spaces between words.
fn stands_alone(c: char) -> bool {
    use Script::{Bopomofo, Han, Hiragana, Katakana, Khmer, Lao, Myanmar, Thai, Tibetan};
    let scripts = [Han, Hiragana, Katakana, Bopomofo, Thai, Lao, Khmer, Myanmar, Tibetan];
    !c.is_ascii() && c.is_alphabetic() && scripts.contains(&c.script())
}

/// A word that is being read.
struct Open {
    hash: u64,
    chars: usize,
    has_digit: bool,
}

impl Default for Open {
    fn default() -> Open {
        Open { hash: SEED, chars: 0, has_digit: false }
    }
}

impl Open {
    fn push(&mut self, c: char) {
        self.chars += 1;
        self.has_digit |= c.is_numeric();
        if c.is_ascii() {
            self.hash = step(self.hash, u64::from(c.to_ascii_lowercase()));
        } else {
            self.hash = c.to_lowercase().fold(self.hash, |hash, c| step(hash, u64::from(c)));
        }
    }

    fn close(&mut self, words: &mut Vec<Word>) {
        if self.chars > 0 {
            words.push(Word { hash: mix(self.hash), has_digit: self.has_digit });
        }
        *self = Open::default();
    }
}

const SEED: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, by characters.
pub(crate) fn step(hash: u64, value: u64) -> u64 {
    (hash ^ value).wrapping_mul(0x0000_0100_0000_01b3)
}

/// SplitMix64's finaliser: every bit of the result depends on every bit of `z`.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// One number for a run of numbers, in their order.
pub(crate) fn combined(parts: impl IntoIterator<Item = u64>) -> u64 {
    parts.into_iter().fold(SEED, |hash, part| mix(hash.rotate_left(23) ^ part))
}

/// Hashes of the runs of `n` words; a shorter text that has a word is one run.
pub(crate) fn runs(words: &[Word], n: usize) -> impl Iterator<Item = u64> {
    let width = n.min(words.len()).max(1);
    words.windows(width).map(|run| combined(run.iter().map(|word| word.hash)))
}

/// A table whose keys are hashes already.
pub(crate) type ByHash<K, V> = HashMap<K, V, BuildHasherDefault<AsItIs>>;

/// A table wants bits of a key at both ends.
#[derive(Default)]
pub(crate) struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are whole numbers")
    }

    fn write_u32(&mut self, key: u32) {
        self.0 = u64::from(key) << 32 | u64::from(key);
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn equal(a: &str, b: &str) -> bool {
        words(a) == words(b)
    }

    #[test]
    fn case_and_punctuation_do_not_count_and_order_does() {
        assert!(equal("The quick, brown FOX!", "the quick brown fox"));
        assert!(equal("Straße ÉTÉ", "straße été"));
        assert!(!equal("brown quick", "quick brown"));
        assert!(!equal("quickbrown", "quick brown"));
        assert!(words(" …!? ").is_empty());
    }

    #[test]
    fn numbers_are_known_as_such() {
        let numbers: Vec<bool> =
            words("3 apples, $80,000 or 2nd").iter().map(|word| word.has_digit).collect();
        assert_eq!(numbers, [true, false, true, true, false, true]);
    }

    #[test]
    fn scripts_without_spaces_are_words_by_character() {
        assert_eq!(words("二加二等于几？").len(), 6);
        assert_eq!(words("ここは駅です").len(), 6);
        assert_eq!(words("GPT的4个").len(), 4);
        assert_eq!(words("안녕 세상").len(), 2);
    }

    #[test]
    fn hashes_are_the_same_in_every_build() {
        assert_eq!(words("fox")[0].hash, 6_677_924_658_016_953_368);
        assert_eq!(
            runs(&words("the quick brown fox"), 3).collect::<Vec<_>>(),
            [8_776_614_989_609_908_565, 8_432_932_753_253_214_175]
        );
        assert_eq!(runs(&words("fox"), 3).count(), 1);
        assert_eq!(runs(&[], 3).count(), 0);
    }
}

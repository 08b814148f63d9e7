//! A text as the set of its short pieces, and how much two such sets have in common.

use serde::{Deserialize, Serialize};

use crate::words::{combined, mix, runs, words};

/// What a shingle is a run of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Runs of letters and digits in lower case; for scripts without spaces, characters.
    #[default]
    Words,
    /// Characters in lower case, white space as one space.
    Characters,
}

/// How a text is cut into shingles: every run of `n` units. A text shorter than that is one shingle, a text without any unit
/// has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shingling {
    pub unit: Unit,
    pub n: usize,
}

impl Shingling {
    /// The text's shingles as 32-bit hashes, each once, ascending.
    ///
    /// Two different shingles of a pair of texts have the same hash with a probability of 2⁻³²; of two texts with a thousand
    /// shingles each, one in four thousand such pairs has a wrong Jaccard similarity, by a thousandth.
    pub fn of(self, text: &str) -> Vec<u32> {
        let mut shingles: Vec<u32> = match self.unit {
            Unit::Words => runs(&words(text), self.n).map(|run| (run >> 32) as u32).collect(),
            Unit::Characters => {
                let characters = characters(text);
                let width = self.n.min(characters.len()).max(1);
                let hash = |run: &[char]| (combined(run.iter().map(|c| mix(u64::from(*c)))) >> 32) as u32;
                characters.windows(width).map(hash).collect()
            }
        };
        shingles.sort_unstable();
        shingles.dedup();
        shingles
    }
}

fn characters(text: &str) -> Vec<char> {
    let mut characters = Vec::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !characters.is_empty() {
            characters.push(' ');
        }
        characters.extend(word.chars().flat_map(char::to_lowercase));
    }
    characters
}

/// |A ∩ B| / |A ∪ B| of two ascending sets; 0 where both are empty.
pub fn jaccard(a: &[u32], b: &[u32]) -> f64 {
    let (mut i, mut j, mut both) = (0, 0, 0usize);
    while i < a.len() && j < b.len() {
        let (x, y) = (a[i], b[j]);
        both += usize::from(x == y);
        i += usize::from(x <= y);
        j += usize::from(y <= x);
    }
    let either = a.len() + b.len() - both;
    if either == 0 { 0.0 } else { both as f64 / either as f64 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WORDS: Shingling = Shingling { unit: Unit::Words, n: 3 };

    #[test]
    fn shingles_are_counted_once() {
        assert_eq!(WORDS.of("a b c a b c").len(), 3, "abc, bca, cab");
        assert_eq!(WORDS.of("a b").len(), 1);
        assert!(WORDS.of("  —  ").is_empty());
        let characters = Shingling { unit: Unit::Characters, n: 5 };
        assert_eq!(characters.of("Hello,\n world"), characters.of("hello, WORLD"));
        assert_eq!(characters.of("hello").len(), 1);
        assert_ne!(characters.of("hello!"), characters.of("hello"));
    }

    #[test]
    fn one_word_of_ten_changes_three_shingles() {
        let a = WORDS.of("one two three four five six seven eight nine ten");
        let b = WORDS.of("one two three four FIVE, six seven 8 nine ten");
        assert!((jaccard(&a, &b) - 5.0 / 11.0).abs() < 1e-12);
    }

    proptest! {
        #[test]
        fn similarity_is_that_of_sets(
            a in prop::collection::btree_set(0u32..40, 0..30),
            b in prop::collection::btree_set(0u32..40, 0..30),
        ) {
            let (x, y): (Vec<u32>, Vec<u32>) = (a.iter().copied().collect(), b.iter().copied().collect());
            let either = a.union(&b).count();
            let expected = if either == 0 { 0.0 } else { a.intersection(&b).count() as f64 / either as f64 };
            prop_assert_eq!(jaccard(&x, &y), expected);
            prop_assert_eq!(jaccard(&y, &x), expected);
        }
    }
}

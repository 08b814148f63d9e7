//! Texts that say nearly the same as one before.
//!
//! Candidates come from MinHash signatures whose bands are looked up (Broder 1997, "On the resemblance and containment of
//! documents"; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3). Each candidate is then compared by the
//! Jaccard similarity of its shingles, so that no text is dropped on an estimate.
//!
//! Memory per text that stays: 4 bytes per shingle, at most [`SHINGLES_MAX`] of them, and about 20 bytes per band.

use stillroom_core::CounterRng;

use crate::shingles::{Shingling, jaccard};
use crate::words::{ByHash, combined};

/// Longest signature.
const PERMUTATIONS_MAX: usize = 128;
/// Most shingles of a text that are kept: of a longer text those with the smallest hashes, a uniform sample. The similarity
/// of two such texts is an estimate with a standard error below 0.008.
pub const SHINGLES_MAX: usize = 4096;
/// Most texts with the same band that one is compared with, the newest first. Texts from one template fill such bands with
/// what is alike and no duplicate; without a bound their number would be squared.
pub const COMPARED_PER_BAND_MAX: usize = 256;
/// How likely a pair at the threshold becomes a candidate, at least.
const CANDIDATE_PROBABILITY: f64 = 0.98;

/// A text before, and how alike the two are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Match {
    /// Which of the inserted texts, from 0.
    pub index: usize,
    pub jaccard: f64,
}

/// The texts that were kept so far.
pub struct NearDuplicates {
    threshold: f64,
    shingling: Shingling,
    hashes: MinHash,
    bands: Vec<Band>,
    rows: usize,
    /// Shingles of all texts, one after the other.
    shingles: Vec<u32>,
    /// Where each text's shingles end.
    ends: Vec<usize>,
    cut_short: u64,
}

impl NearDuplicates {
    /// Finds pairs whose shingles have a Jaccard similarity of at least `threshold`, above 0 and at most 1.
    pub fn new(threshold: f64, shingling: Shingling) -> NearDuplicates {
        assert!(threshold > 0.0 && threshold <= 1.0, "a similarity");
        let (bands, rows) = banding(threshold);
        NearDuplicates {
            threshold,
            shingling,
            hashes: MinHash::new(bands * rows),
            bands: (0..bands).map(|_| Band::default()).collect(),
            rows,
            shingles: Vec::new(),
            ends: Vec::new(),
            cut_short: 0,
        }
    }

    /// The first of the texts before that this one nearly repeats; if there is none, it is kept and compared with those
    /// that follow. A text without a shingle repeats nothing.
    pub fn first_match_or_insert(&mut self, text: &str) -> Option<Match> {
        let sketch = self.sketch(text);
        let found = self.matches(&sketch).into_iter().next();
        if found.is_none() {
            self.insert(sketch);
        }
        found
    }

    /// All texts before that `sketch` nearly repeats, in their order.
    pub fn matches(&mut self, sketch: &Sketch) -> Vec<Match> {
        let mut candidates: Vec<u32> = Vec::new();
        let mut cut = false;
        for (band, key) in self.bands.iter().zip(self.keys(sketch)) {
            let mut texts = band.texts(key);
            candidates.extend(texts.by_ref().take(COMPARED_PER_BAND_MAX));
            cut |= texts.next().is_some();
        }
        self.cut_short += u64::from(cut);
        candidates.sort_unstable();
        candidates.dedup();
        let compared = candidates.into_iter().filter_map(|index| {
            let index = index as usize;
            let jaccard = self.similarity(&sketch.shingles, self.shingles_of(index))?;
            (jaccard >= self.threshold).then_some(Match { index, jaccard })
        });
        compared.collect()
    }

    /// Adds a text that those after it are compared with; returns its index.
    pub fn insert(&mut self, sketch: Sketch) -> usize {
        let index = self.ends.len();
        let keys: Vec<u32> = self.keys(&sketch).collect();
        for (band, key) in self.bands.iter_mut().zip(keys) {
            band.push(key, index as u32);
        }
        self.shingles.extend(&sketch.shingles);
        self.ends.push(self.shingles.len());
        index
    }

    /// What is compared of a text.
    pub fn sketch(&self, text: &str) -> Sketch {
        let mut shingles = self.shingling.of(text);
        shingles.truncate(SHINGLES_MAX);
        let signature = self.hashes.signature(&shingles);
        Sketch { shingles, signature }
    }

    /// Texts whose bands held more others than they were compared with.
    pub fn cut_short(&self) -> u64 {
        self.cut_short
    }

    fn shingles_of(&self, index: usize) -> &[u32] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.shingles[start..self.ends[index]]
    }

    /// `None` where the sizes alone leave less than the threshold.
    fn similarity(&self, a: &[u32], b: &[u32]) -> Option<f64> {
        let sampled = a.len() == SHINGLES_MAX || b.len() == SHINGLES_MAX;
        if sampled {
            return Some(sampled_jaccard(a, b));
        }
        let (small, large) = (a.len().min(b.len()), a.len().max(b.len()));
        (small as f64 >= self.threshold * large as f64).then(|| jaccard(a, b))
    }

    fn keys<'a>(&self, sketch: &'a Sketch) -> impl Iterator<Item = u32> + use<'a> {
        // A text without shingles has a signature that says nothing.
        let signature = if sketch.shingles.is_empty() { &[] } else { &sketch.signature[..] };
        signature
            .chunks_exact(self.rows)
            .map(|rows| (combined(rows.iter().map(|&h| u64::from(h))) >> 32) as u32)
    }
}

/// A text's shingles and their signature.
#[derive(Clone, Debug)]
pub struct Sketch {
    shingles: Vec<u32>,
    signature: Vec<u32>,
}

impl Sketch {
    /// |A ∩ B| / |A ∪ B| of the shingles.
    pub fn jaccard(&self, other: &Sketch) -> f64 {
        jaccard(&self.shingles, &other.shingles)
    }

    /// Its estimate: the share of the signatures' places that are equal.
    pub fn estimate(&self, other: &Sketch) -> f64 {
        let equal = self.signature.iter().zip(&other.signature).filter(|(a, b)| a == b).count();
        equal as f64 / self.signature.len() as f64
    }
}

/// Of sets of which at least one is cut at its smallest hashes: the similarity of the smallest of the union.
fn sampled_jaccard(a: &[u32], b: &[u32]) -> f64 {
    let end = |set: &[u32]| if set.len() == SHINGLES_MAX { set[SHINGLES_MAX - 1] } else { u32::MAX };
    let end = end(a).min(end(b));
    let upto = |set: &[u32]| set.partition_point(|&shingle| shingle <= end);
    jaccard(&a[..upto(a)], &b[..upto(b)])
}

/// Bands and rows of a signature: as many rows as leave a pair at the threshold likely enough to be a candidate, so that
/// the fewest others are.
fn banding(threshold: f64) -> (usize, usize) {
    let likely = |rows: usize| {
        let bands = PERMUTATIONS_MAX / rows;
        1.0 - (1.0 - threshold.powi(rows as i32)).powi(bands as i32) >= CANDIDATE_PROBABILITY
    };
    let rows = (1..=PERMUTATIONS_MAX / 4).rev().find(|&rows| likely(rows)).unwrap_or(1);
    (PERMUTATIONS_MAX / rows, rows)
}

/// Hash functions (a·x + b) mod 2⁶⁴ / 2³² of 32-bit x, which are pairwise independent (Dietzfelbinger 1996).
struct MinHash {
    functions: Vec<(u64, u64)>,
}

impl MinHash {
    fn new(n: usize) -> MinHash {
        let mut random = CounterRng::new(&[0x6d69_6e68_6173_6800]);
        MinHash { functions: (0..n).map(|_| (random.next_u64(), random.next_u64())).collect() }
    }

    /// Of each function the smallest value; where there is no shingle, the greatest number.
    fn signature(&self, shingles: &[u32]) -> Vec<u32> {
        let least = |&(a, b): &(u64, u64)| {
            let hash = |&x: &u32| (a.wrapping_mul(u64::from(x)).wrapping_add(b) >> 32) as u32;
            shingles.iter().map(hash).min().unwrap_or(u32::MAX)
        };
        self.functions.iter().map(least).collect()
    }
}

/// Which texts have which value in one band of their signatures.
#[derive(Default)]
struct Band {
    /// The newest text of each value.
    newest: ByHash<u32, u32>,
    /// For each text the one before with the same value, or [`NONE`].
    before: Vec<u32>,
}

const NONE: u32 = u32::MAX;

impl Band {
    fn push(&mut self, key: u32, index: u32) {
        // Texts without shingles are in no band; their places stay empty.
        self.before.resize(index as usize, NONE);
        self.before.push(self.newest.insert(key, index).unwrap_or(NONE));
    }

    fn texts(&self, key: u32) -> impl Iterator<Item = u32> {
        let newest = self.newest.get(&key).copied();
        std::iter::successors(newest, |&index| Some(self.before[index as usize]).filter(|&b| b != NONE))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::shingles::Unit;

    const WORDS: Shingling = Shingling { unit: Unit::Words, n: 3 };

    fn numbered(from: usize, to: usize) -> String {
        (from..to).map(|i| format!("word{i}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_first_of_nearly_equal_texts_stays() {
        let mut texts = NearDuplicates::new(0.8, WORDS);
        assert_eq!(texts.first_match_or_insert(&numbered(0, 60)), None);
        assert_eq!(texts.first_match_or_insert(&numbered(100, 160)), None);
        let found = texts.first_match_or_insert(&numbered(0, 65)).expect("58 of 63 shingles");
        assert_eq!(found.index, 0);
        assert!((found.jaccard - 58.0 / 63.0).abs() < 1e-12);
        assert_eq!(texts.first_match_or_insert(&numbered(0, 80)), None, "58 of 78");
        let found = texts.first_match_or_insert(&numbered(100, 160).to_uppercase()).expect("equal");
        assert_eq!((found.index, found.jaccard), (1, 1.0));
    }

    #[test]
    fn texts_without_words_are_no_duplicates() {
        let mut texts = NearDuplicates::new(0.8, WORDS);
        for _ in 0..3 {
            assert_eq!(texts.first_match_or_insert("…"), None);
            assert_eq!(texts.first_match_or_insert(""), None);
        }
        assert_eq!(texts.first_match_or_insert("a word"), None);
        assert_eq!(texts.first_match_or_insert("A word!").map(|found| found.index), Some(6));
    }

    #[test]
    fn long_texts_are_compared_by_a_sample() {
        let mut texts = NearDuplicates::new(0.8, WORDS);
        assert_eq!(texts.first_match_or_insert(&numbered(0, 20_000)), None);
        let found = texts.first_match_or_insert(&numbered(1_000, 20_000)).expect("19 of 20 thousand");
        assert!((found.jaccard - 0.95).abs() < 0.02, "{}", found.jaccard);
        assert_eq!(texts.first_match_or_insert(&numbered(6_000, 26_000)), None);
    }

    #[test]
    fn a_full_band_is_cut_and_counted() {
        let mut texts = NearDuplicates::new(0.5, WORDS);
        let common = numbered(0, 60);
        for i in 0..2 * COMPARED_PER_BAND_MAX {
            let sketch = texts.sketch(&format!("{common} {}", numbered(1000 + 10 * i, 1010 + 10 * i)));
            texts.matches(&sketch);
            texts.insert(sketch);
        }
        assert!(texts.cut_short() > 0);
    }

    #[test]
    fn bands_fit_the_threshold() {
        assert_eq!(banding(0.8), (18, 7));
        assert_eq!(banding(1.0), (4, 32));
        for threshold in [0.3, 0.5, 0.7, 0.9] {
            let (bands, rows) = banding(threshold);
            assert!(bands * rows <= PERMUTATIONS_MAX && bands > 3, "{threshold}");
            assert!(1.0 - (1.0 - threshold.powi(rows as i32)).powi(bands as i32) > 0.98);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn what_is_found_is_at_least_as_alike_as_asked(
            texts in prop::collection::vec(prop::collection::vec(0u8..6, 0..12), 1..24),
            threshold in 0.2f64..1.0,
        ) {
            let mut index = NearDuplicates::new(threshold, WORDS);
            let mut kept: Vec<Vec<u32>> = Vec::new();
            for words in texts {
                let text: String = words.iter().map(|w| format!("w{w} ")).collect();
                let shingles = WORDS.of(&text);
                match index.first_match_or_insert(&text) {
                    Some(found) => {
                        prop_assert_eq!(jaccard(&kept[found.index], &shingles), found.jaccard);
                        prop_assert!(found.jaccard >= threshold);
                    }
                    None => {
                        prop_assert!(shingles.is_empty() || !kept.contains(&shingles), "an equal text is always found");
                        kept.push(shingles);
                    }
                }
            }
        }
    }
}

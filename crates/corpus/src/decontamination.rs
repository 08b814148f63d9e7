//! Does the training data hold what the held-out data asks?
//!
//! Texts are compared by runs of eight words (lower case, letters and digits only); a text
//! shorter than that is one run. Procedural tasks share their sentences on purpose: for them
//! [`crate::word_problems::overlap`] compares what the problems are about.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};

/// Words in a run, as in most published decontamination.
pub const NGRAM_WORDS: usize = 8;
/// Most examples that a report lists.
const EXAMPLES_MAX: usize = 20;

/// What training and held-out texts share.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Contamination {
    pub train_texts: u64,
    pub held_out_texts: u64,
    /// Training texts with every word of a held-out text, in order and nothing else.
    pub equal_texts: u64,
    /// Training texts that share at least one run with a held-out text.
    pub overlapping_texts: u64,
    /// Held-out texts that share at least one run with a training text.
    pub contaminated_held_out_texts: u64,
    /// The first overlaps found.
    pub examples: Vec<Overlap>,
}

/// One training text, and the held-out text with which it shares its first common run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Overlap {
    pub train_id: String,
    pub held_out_id: String,
    /// Share of the training text's runs that are in held-out texts.
    pub shared: f64,
}

/// Compares training with held-out texts, given as (id, text).
pub fn contamination<'a>(
    train: impl IntoIterator<Item = (&'a str, &'a str)>,
    held_out: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Contamination {
    let mut report = Contamination::default();
    let mut ids = Vec::new();
    let mut whole = HashSet::new();
    let mut runs: HashMap<u64, Vec<u32>> = HashMap::new();
    for (i, (id, text)) in held_out.into_iter().enumerate() {
        let words = words(text);
        if !words.is_empty() {
            whole.insert(hash(&words));
        }
        for run in hashed_runs(&words) {
            let owners = runs.entry(run).or_default();
            if owners.last() != Some(&(i as u32)) {
                owners.push(i as u32);
            }
        }
        ids.push(id);
    }
    let mut contaminated = vec![false; ids.len()];
    for (id, text) in train {
        report.train_texts += 1;
        let words = words(text);
        report.equal_texts += u64::from(whole.contains(&hash(&words)));
        let mut n_runs = 0usize;
        let found: Vec<&Vec<u32>> =
            hashed_runs(&words).inspect(|_| n_runs += 1).filter_map(|run| runs.get(&run)).collect();
        let Some(first) = found.first() else { continue };
        report.overlapping_texts += 1;
        found.iter().flat_map(|owners| owners.iter()).for_each(|&i| contaminated[i as usize] = true);
        if report.examples.len() < EXAMPLES_MAX {
            let held_out_id = ids[first[0] as usize].to_string();
            let shared = found.len() as f64 / n_runs as f64;
            report.examples.push(Overlap { train_id: id.into(), held_out_id, shared });
        }
    }
    report.held_out_texts = ids.len() as u64;
    report.contaminated_held_out_texts = contaminated.iter().filter(|&&is| is).count() as u64;
    report
}

fn words(text: &str) -> Vec<String> {
    let split = text.split(|c: char| !c.is_alphanumeric());
    split.filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

/// A text without words has no run.
fn hashed_runs(words: &[String]) -> impl Iterator<Item = u64> {
    let width = NGRAM_WORDS.min(words.len()).max(1);
    words.windows(width).map(hash)
}

/// SipHash with fixed keys: the same on every machine of one build.
fn hash(words: &[String]) -> u64 {
    let mut hasher = DefaultHasher::new();
    words.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELD_OUT: [(&str, &str); 3] = [
        ("h0", "The quick brown fox jumps over the lazy dog again and again."),
        ("h1", "Short question?"),
        ("h2", ""),
    ];

    #[test]
    fn shared_runs_are_found_whatever_case_and_punctuation() {
        let train = [
            ("t0", "Yesterday: the QUICK brown fox, jumps over the lazy dog."),
            ("t1", "The quick brown fox jumps over the idle dog."),
            ("t2", "short   question"),
            ("t3", "Is a short question inside a longer text a shared run of words?"),
            ("t4", ""),
        ];
        let report = contamination(train, HELD_OUT);
        let found: Vec<_> =
            report.examples.iter().map(|e| (e.train_id.as_str(), e.held_out_id.as_str())).collect();
        assert_eq!(found, [("t0", "h0"), ("t2", "h1")]);
        // Ten words are three runs, of which all but the first lie in `h0`.
        assert!((report.examples[0].shared - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!((report.train_texts, report.held_out_texts), (5, 3));
        assert_eq!(
            (report.equal_texts, report.overlapping_texts, report.contaminated_held_out_texts),
            (1, 2, 2)
        );
    }

    #[test]
    fn separate_texts_share_nothing() {
        let report = contamination([("t", "one two three four five six seven eight nine")], HELD_OUT);
        assert_eq!(
            (report.equal_texts, report.overlapping_texts, report.contaminated_held_out_texts),
            (0, 0, 0)
        );
    }
}

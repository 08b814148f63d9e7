//! Near-duplicates against exact similarities and against datasketch; `oracles/near_duplicates.py` wrote the golden file.

use std::collections::HashSet;

use serde::Deserialize;
use stillroom_corpus::near_duplicates::{NearDuplicates, Sketch};
use stillroom_corpus::shingles::{Shingling, Unit};

#[derive(Deserialize)]
struct Golden {
    threshold: f64,
    permutations: usize,
    texts: Vec<String>,
    /// Two texts, their exact similarity, and datasketch's estimate.
    pairs: Vec<(usize, usize, f64, f64)>,
    lsh: HashSet<(usize, usize)>,
    characters: Vec<(usize, usize, f64)>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/near_duplicates.json")).expect("the golden file is JSON")
}

const WORDS: Shingling = Shingling { unit: Unit::Words, n: 3 };

fn sketches(texts: &[String], shingling: Shingling) -> Vec<Sketch> {
    let index = NearDuplicates::new(0.8, shingling);
    texts.iter().map(|text| index.sketch(text)).collect()
}

#[test]
fn pairs_are_found_at_least_as_well_as_by_datasketch() {
    let golden = golden();
    let truth: HashSet<(usize, usize)> =
        golden.pairs.iter().filter(|pair| pair.2 >= golden.threshold).map(|pair| (pair.0, pair.1)).collect();
    let mut index = NearDuplicates::new(golden.threshold, WORDS);
    let mut found = HashSet::new();
    for (j, text) in golden.texts.iter().enumerate() {
        let sketch = index.sketch(text);
        found.extend(index.matches(&sketch).into_iter().map(|m| (m.index, j)));
        assert_eq!(index.insert(sketch), j);
    }
    let recall = |found: &HashSet<_>| found.intersection(&truth).count() as f64 / truth.len() as f64;
    let precision = |found: &HashSet<_>| found.intersection(&truth).count() as f64 / found.len() as f64;
    assert!(truth.len() > 150, "{} pairs", truth.len());
    assert_eq!(precision(&found), 1.0, "every pair is compared exactly");
    assert!(recall(&found) >= 0.98, "recall {}", recall(&found));
    assert!(recall(&found) >= recall(&golden.lsh), "datasketch {}", recall(&golden.lsh));
    assert!(precision(&golden.lsh) < 1.0, "estimates alone would drop too much");
}

#[test]
fn similarities_are_those_of_python_sets_and_estimates_err_no_more_than_datasketch() {
    let golden = golden();
    let sketched = sketches(&golden.texts, WORDS);
    let (mut ours, mut theirs) = (0.0, 0.0);
    for &(i, j, exact, estimate) in &golden.pairs {
        assert!((sketched[i].jaccard(&sketched[j]) - exact).abs() < 1e-9, "{i} and {j}: {exact}");
        ours += (sketched[i].estimate(&sketched[j]) - exact).abs();
        theirs += (estimate - exact).abs();
    }
    let n = golden.pairs.len() as f64;
    // The expected error of 126 or 128 draws at similarities around 0.7 is about 0.032.
    assert_eq!(golden.permutations, 128);
    assert!(ours / n < 0.045 && theirs / n < 0.045, "{} and {}", ours / n, theirs / n);
    assert!(ours < 1.25 * theirs, "{} and {}", ours / n, theirs / n);
    let characters = sketches(&golden.texts, Shingling { unit: Unit::Characters, n: 5 });
    for &(i, j, exact) in &golden.characters {
        assert!((characters[i].jaccard(&characters[j]) - exact).abs() < 1e-9, "{i} and {j}: {exact}");
    }
}

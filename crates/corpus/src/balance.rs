//! No answer, or class of rows, more than its share.

use std::collections::HashMap;

use crate::CorpusError;

/// What traces are counted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum By {
    #[default]
    Answer,
    /// What a field of the row says.
    Class,
}

impl By {
    fn as_str(self) -> &'static str {
        match self {
            By::Answer => "answer",
            By::Class => "class",
        }
    }
}

/// Counts traces by answer or class, in their order; then says which of them stay.
#[derive(Default)]
pub struct Balance {
    by: By,
    classes: HashMap<String, u32>,
    counts: Vec<u64>,
    /// Which of them each trace has, if any.
    of_traces: Vec<Option<u32>>,
}

impl Balance {
    pub fn new(by: By) -> Balance {
        Balance { by, ..Balance::default() }
    }

    pub fn by(&self) -> By {
        self.by
    }

    /// Counts the next trace. One without an answer, or a class, always stays.
    pub fn count(&mut self, name: Option<&str>) {
        let class = name.map(|name| {
            let next = self.classes.len() as u32;
            let class = *self.classes.entry(name.trim().to_owned()).or_insert(next);
            if class == next {
                self.counts.push(0);
            }
            self.counts[class as usize] += 1;
            class
        });
        self.of_traces.push(class);
    }

    /// For each trace, in order, why it goes, or `None` where it stays: of each class the first ones stay, as many as
    /// leave no class more than `share` of all that stay.
    ///
    /// # Errors
    /// Two classes cannot each have at most a third.
    pub fn chosen(&self, share: f64) -> Result<impl Iterator<Item = Option<String>> + '_, CorpusError> {
        let most = self.most_of_each(share);
        if most == 0 && !self.counts.is_empty() {
            return Err(CorpusError::Unbalanced { n: self.counts.len(), by: self.by.as_str(), share });
        }
        let mut kept = vec![0u64; self.counts.len()];
        Ok(self.of_traces.iter().map(move |class| {
            let class = (*class)? as usize;
            kept[class] += 1;
            let total = self.counts[class];
            (kept[class] > most).then(|| format!("{total} traces have this {}, {most} may", self.by.as_str()))
        }))
    }

    /// The greatest c with c ≤ share · (others + Σ min(n, c)) over the counts n of all classes. The right side is concave in
    /// c and not negative at 0, so all smaller c fulfil it too.
    fn most_of_each(&self, share: f64) -> u64 {
        let others = self.of_traces.iter().filter(|class| class.is_none()).count() as u64;
        let total = |most: u64| others + self.counts.iter().map(|&n| n.min(most)).sum::<u64>();
        let (mut fits, mut end) = (0, self.counts.iter().copied().max().unwrap_or(0) + 1);
        while end - fits > 1 {
            let most = fits + (end - fits) / 2;
            // Shares are written in decimals: a rounding must not cost the last trace.
            if most as f64 <= share * total(most) as f64 + 1e-9 {
                fits = most;
            } else {
                end = most;
            }
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counted(answers: &[&str]) -> Balance {
        let mut counted = Balance::default();
        answers.iter().for_each(|answer| counted.count(Some(answer).filter(|a| !a.is_empty()).copied()));
        counted
    }

    fn stay(answers: &[&str], share: f64) -> Vec<usize> {
        let counted = counted(answers);
        let reasons: Vec<_> = counted.chosen(share).expect("a share that can be had").collect();
        (0..answers.len()).filter(|&i| reasons[i].is_none()).collect()
    }

    #[test]
    fn the_first_of_each_answer_stay() {
        assert_eq!(stay(&["a", "a", "b", "a", " a", "b"], 0.5), [0, 1, 2, 5]);
        assert_eq!(stay(&["a", "a", "b", "a"], 1.0), [0, 1, 2, 3]);
        assert_eq!(stay(&["a", "a", "", "a", "", ""], 0.4), [0, 1, 2, 4, 5]);
        assert_eq!(stay(&["", ""], 0.1), [0, 1], "nothing to balance");
        let counted = counted(&["a", "a", "b", "a"]);
        let reasons: Vec<_> = counted.chosen(0.5).expect("a half").flatten().collect();
        assert_eq!(reasons, ["3 traces have this answer, 1 may"; 2]);
    }

    #[test]
    fn a_share_that_no_choice_has_is_refused() {
        assert!(counted(&["a", "b", "b"]).chosen(0.4).is_err());
        assert!(counted(&["a"]).chosen(0.9).is_err());
        let mut classes = Balance::new(By::Class);
        ["a", "b"].iter().for_each(|class| classes.count(Some(class)));
        let error = classes.chosen(0.4).err().expect("a half each");
        assert_eq!(error.to_string(), "with 2 of them, no class can have at most 0.4 of the traces");
    }

    proptest! {
        #[test]
        fn no_answer_has_more_than_its_share(answers in prop::collection::vec(0u8..6, 1..80), share in 0.05f64..1.0) {
            let mut counted = Balance::new(By::Class);
            // Of six kinds, one stands for no answer.
            let name = |a: u8| (a > 0).then(|| a.to_string());
            answers.iter().for_each(|&a| counted.count(name(a).as_deref()));
            if let Ok(chosen) = counted.chosen(share) {
                let kept: Vec<u8> =
                    chosen.zip(&answers).filter(|(reason, _)| reason.is_none()).map(|(_, &a)| a).collect();
                for answer in 1..6 {
                    let n = kept.iter().filter(|&&a| a == answer).count();
                    prop_assert!(n as f64 <= share * kept.len() as f64 + 1e-6, "{} of {}", n, kept.len());
                }
            }
        }
    }
}

//! Which entries a log has, so that what is told twice is known.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Kind;

/// Which entries of a kind there are.
#[derive(Clone, Debug)]
pub(super) enum Told {
    /// And where: of what may be told again, otherwise.
    Runs { runs: Vec<Run>, newest: Option<u64> },
    /// Numbers alone, of what never changes: they come as their events end, and so in runs too short to keep.
    Numbers(Numbers),
}

/// Where an entry is that may have been told already.
pub(super) enum Found {
    Nowhere,
    At(u64),
    /// Wherever that is.
    Told,
}

impl Told {
    pub(super) fn nothing(kind: Kind) -> Told {
        match kind.is_final() {
            true => Told::Numbers(Numbers::default()),
            false => Told::Runs { runs: Vec::new(), newest: None },
        }
    }

    pub(super) fn find(&self, number: u64) -> Found {
        match self {
            Told::Numbers(numbers) if numbers.contains(number) => Found::Told,
            Told::Runs { runs, newest } if newest.is_some_and(|newest| number <= newest) => {
                runs.iter().rev().find_map(|run| run.position_of(number)).map_or(Found::Nowhere, Found::At)
            }
            _ => Found::Nowhere,
        }
    }

    pub(super) fn add(&mut self, number: u64, position: u64) {
        match self {
            Told::Numbers(numbers) => numbers.insert(number),
            Told::Runs { runs, newest } => {
                *newest = (*newest).max(Some(number));
                match runs.last_mut() {
                    Some(run) if run.goes_on_with(number, position) => run.length += 1,
                    _ => runs.push(Run { number, position, length: 1 }),
                }
            }
        }
    }
}

/// A set of numbers with few holes.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers {
    /// The first of each stretch, and what follows its last.
    stretches: BTreeMap<u64, u64>,
}

impl Numbers {
    fn contains(&self, number: u64) -> bool {
        self.stretches.range(..=number).next_back().is_some_and(|(_, &end)| number < end)
    }

    fn insert(&mut self, number: u64) {
        if self.contains(number) {
            return;
        }
        let before = self.stretches.range(..number).next_back().filter(|&(_, &end)| end == number);
        let start = before.map_or(number, |(&start, _)| start);
        let behind = number.saturating_add(1);
        let end = self.stretches.remove(&behind).unwrap_or(behind);
        self.stretches.insert(start, end);
    }

    /// What lies between, before and behind them.
    pub(super) fn holes(&self) -> Vec<Range<u64>> {
        let ends = std::iter::once(0).chain(self.stretches.values().copied());
        let starts = self.stretches.keys().copied().chain([u64::MAX]);
        ends.zip(starts).filter(|(end, start)| end < start).map(|(end, start)| end..start).collect()
    }
}

/// Records of a kind one behind the other whose numbers count up: rows come in runs, so that a million of them need no memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// Of its first record.
    number: u64,
    position: u64,
    length: u64,
}

impl Run {
    fn position_of(&self, number: u64) -> Option<u64> {
        let behind = number.checked_sub(self.number).filter(|&behind| behind < self.length)?;
        Some(self.position + behind)
    }

    fn goes_on_with(&self, number: u64, position: u64) -> bool {
        self.number.checked_add(self.length) == Some(number) && self.position + self.length == position
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_numbers_is_one_however_they_come() {
        let mut chance = stillroom_core::CounterRng::new(&[3]);
        for _ in 0..50 {
            let (mut numbers, mut plain) = (Numbers::default(), std::collections::BTreeSet::new());
            for _ in 0..60 {
                let number = chance.below(40);
                numbers.insert(number);
                plain.insert(number);
                assert!((0..41).all(|n| numbers.contains(n) == plain.contains(&n)));
                let holes = numbers.holes();
                assert!((0..41).all(|n| holes.iter().any(|hole| hole.contains(&n)) != plain.contains(&n)));
                assert!(holes.windows(2).all(|pair| pair[0].end < pair[1].start));
            }
        }
    }
}

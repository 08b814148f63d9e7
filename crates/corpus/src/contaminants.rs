//! Traces that hold an evaluation item, word for word or nearly so.
//!
//! The rule, of an item's question and each text of a trace (its turns, its reasoning, its answer):
//!
//! 1. An item of [`SHORT_WORDS`] words or more is held where at least the given share of its distinct runs of [`RUN_WORDS`]
//!    words stand in the text, all within a stretch of half as many words again as the item has. Of W words with e of them
//!    exchanged, at least W − 2 − 3e of W − 2 runs are left: at a share of 0.5, every item with a tenth of its words
//!    exchanged is found.
//! 2. A shorter item is held where all its words stand in a row and make up at least half of the text. Three words alone say
//!    nothing about a long text.
//! 3. Numbers tell problems from one template apart. Where fewer than half of an item's numbers (words with digits, and
//!    English cardinals from two on) are in that stretch, text and item share a template: it is counted, not dropped.
//!
//! An item's worked solution of at least [`SOLUTION_WORDS_MIN`] words is looked for in the reply in the same way.

use std::collections::{BTreeSet, HashSet};

use serde::{Deserialize, Serialize};
use stillroom_core::{Prompt, Trace};

use crate::prompts::Item;
use crate::words::{ByHash, Word, combined, runs, words};

/// Words in a run.
pub const RUN_WORDS: usize = 3;
/// Items with fewer words are compared as a whole.
pub const SHORT_WORDS: usize = 8;
/// Shorter solutions are what anybody would write.
pub const SOLUTION_WORDS_MIN: usize = 20;
/// The share of an item's runs that is too much, where a recipe does not say.
pub const OVERLAP: f64 = 0.5;
/// The share of an item's numbers that a text with another item of the same template has less than.
const NUMBERS_SHARE: f64 = 0.5;
/// Words around the stretch in which numbers are looked for.
const MARGIN_WORDS: usize = 3;
/// "One" is more often no number.
const CARDINALS: &str = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen \
    seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million";

const NONE: u32 = u32::MAX;

/// What nobody may learn from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvaluationItem {
    pub id: String,
    pub question: String,
    pub solution: Option<String>,
}

impl EvaluationItem {
    /// Of a prompt, its last turn and its target; of a text, the text.
    pub fn of(item: &Item) -> EvaluationItem {
        match item {
            Item::Prompt(prompt) => EvaluationItem::of_prompt(prompt),
            Item::Text { id, text, .. } => {
                EvaluationItem { id: id.clone(), question: text.clone(), solution: None }
            }
        }
    }

    pub fn of_prompt(prompt: &Prompt) -> EvaluationItem {
        let last = prompt.messages.last().map(|message| message.content.clone());
        let solution = prompt.target.as_ref().map(|target| target.content.clone());
        EvaluationItem { id: prompt.id.clone(), question: last.unwrap_or_default(), solution }
    }
}

/// Where a trace holds an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    Prompt,
    Reply,
}

/// What was found of an item in a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Held<'a> {
    /// Which of the items, from 0.
    pub index: usize,
    /// Its id.
    pub item: &'a str,
    pub side: Side,
    /// Share of the item's runs.
    pub shared: f64,
}

/// What a trace has of the items.
#[derive(Clone, Debug, PartialEq)]
pub enum Finding<'a> {
    Nothing,
    /// Its words with other numbers.
    SameTemplate(Held<'a>),
    Contaminated(Held<'a>),
}

/// Items to look for.
pub struct Contaminants {
    overlap: f64,
    ids: Vec<String>,
    entries: Vec<Entry>,
    /// Of each entry enough of its rarest runs that one of them is in every text that holds it: where among the links the
    /// entries of a run begin.
    rare: ByHash<u64, u32>,
    /// An entry, and the link to the next entry with the same run, or [`NONE`].
    links: Vec<(u32, u32)>,
    /// Short items by the hash of their words.
    short: ByHash<u64, u32>,
    short_lengths: BTreeSet<usize>,
    cardinals: HashSet<u64>,
}

/// A question or a solution.
struct Entry {
    item: u32,
    only_in_replies: bool,
    n_words: usize,
    /// Ascending.
    runs: Vec<u64>,
    numbers: Vec<u64>,
}

impl Contaminants {
    /// Looks for items of which a text has at least the share `overlap` of the runs.
    pub fn new(items: impl IntoIterator<Item = EvaluationItem>, overlap: f64) -> Contaminants {
        assert!(overlap > 0.0 && overlap <= 1.0, "a share");
        let cardinals = words(CARDINALS).iter().map(|word| word.hash).collect();
        let mut all = Contaminants {
            overlap,
            ids: Vec::new(),
            entries: Vec::new(),
            rare: ByHash::default(),
            links: Vec::new(),
            short: ByHash::default(),
            short_lengths: BTreeSet::new(),
            cardinals,
        };
        for item in items {
            let index = all.ids.len() as u32;
            all.add_question(index, &words(&item.question));
            let solution = item.solution.map(|text| words(&text));
            if let Some(solution) = solution.filter(|words| words.len() >= SOLUTION_WORDS_MIN) {
                all.add_entry(index, true, &solution);
            }
            all.ids.push(item.id);
        }
        all.index_rare_runs();
        all
    }

    /// How many items are looked for.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// What the trace has of any item: the first that it holds, else the first with which it shares a template.
    pub fn find(&self, trace: &Trace) -> Finding<'_> {
        let turns = trace.messages.iter().map(|message| (Side::Prompt, message.content.as_str()));
        let replies = trace.reasoning_content.iter().chain([&trace.content]);
        self.find_in_texts(turns.chain(replies.map(|text| (Side::Reply, text.as_str()))))
    }

    /// The same of any texts.
    pub fn find_in_texts<'a>(&self, texts: impl IntoIterator<Item = (Side, &'a str)>) -> Finding<'_> {
        let mut template = None;
        for (side, text) in texts {
            match self.find_in(side, text) {
                Finding::Contaminated(held) => return Finding::Contaminated(held),
                Finding::SameTemplate(held) => template = template.or(Some(held)),
                Finding::Nothing => {}
            }
        }
        template.map_or(Finding::Nothing, Finding::SameTemplate)
    }

    fn find_in(&self, side: Side, text: &str) -> Finding<'_> {
        let words = words(text);
        if let Some(item) = self.find_short(&words) {
            return Finding::Contaminated(self.held(item, side, 1.0));
        }
        let text_runs: Vec<u64> = runs(&words, RUN_WORDS).collect();
        let candidates: BTreeSet<u32> = text_runs.iter().flat_map(|run| self.entries_with(*run)).collect();
        let mut template = None;
        for candidate in candidates {
            let entry = &self.entries[candidate as usize];
            if entry.only_in_replies && side == Side::Prompt {
                continue;
            }
            let stretch = densest(entry, &text_runs);
            let shared = stretch.runs as f64 / entry.runs.len() as f64;
            if shared < self.overlap {
                continue;
            }
            let held = self.held(entry.item, side, shared);
            if self.has_its_numbers(entry, &words, stretch) {
                return Finding::Contaminated(held);
            }
            template = template.or(Some(held));
        }
        template.map_or(Finding::Nothing, Finding::SameTemplate)
    }

    fn entries_with(&self, run: u64) -> impl Iterator<Item = u32> {
        let mut link = self.rare.get(&run).copied().unwrap_or(NONE);
        std::iter::from_fn(move || {
            let &(entry, next) = self.links.get(link as usize)?;
            link = next;
            Some(entry)
        })
    }

    fn held(&self, item: u32, side: Side, shared: f64) -> Held<'_> {
        Held { index: item as usize, item: &self.ids[item as usize], side, shared }
    }

    fn find_short(&self, words: &[Word]) -> Option<u32> {
        let lengths = self.short_lengths.range(words.len().div_ceil(2)..=words.len());
        lengths.flat_map(|&n| words.windows(n)).filter_map(|run| self.short.get(&whole(run)).copied()).min()
    }

    fn has_its_numbers(&self, entry: &Entry, words: &[Word], stretch: Stretch) -> bool {
        let from = stretch.from.saturating_sub(MARGIN_WORDS);
        let to = (stretch.to + RUN_WORDS + MARGIN_WORDS).min(words.len());
        let mut there = self.numbers(&words[from..to]);
        let mut n = 0;
        for number in &entry.numbers {
            if let Some(at) = there.iter().position(|n| n == number) {
                there.swap_remove(at);
                n += 1;
            }
        }
        f64::from(n) >= NUMBERS_SHARE * entry.numbers.len() as f64
    }

    fn numbers(&self, words: &[Word]) -> Vec<u64> {
        let is_number = |word: &&Word| word.has_digit || self.cardinals.contains(&word.hash);
        words.iter().filter(is_number).map(|word| word.hash).collect()
    }

    fn add_question(&mut self, item: u32, question: &[Word]) {
        match question.len() {
            0 => {}
            n if n < SHORT_WORDS => {
                self.short.entry(whole(question)).or_insert(item);
                self.short_lengths.insert(n);
            }
            _ => self.add_entry(item, false, question),
        }
    }

    fn add_entry(&mut self, item: u32, only_in_replies: bool, words: &[Word]) {
        let mut runs: Vec<u64> = runs(words, RUN_WORDS).collect();
        runs.sort_unstable();
        runs.dedup();
        let numbers = self.numbers(words);
        self.entries.push(Entry { item, only_in_replies, n_words: words.len(), runs, numbers });
    }

    /// Of R runs, a text that holds k at least has one of any R − k + 1.
    fn index_rare_runs(&mut self) {
        let mut frequency: ByHash<u64, u32> = ByHash::default();
        for run in self.entries.iter().flat_map(|entry| &entry.runs) {
            *frequency.entry(*run).or_default() += 1;
        }
        for (index, entry) in self.entries.iter().enumerate() {
            let needed = (self.overlap * entry.runs.len() as f64).ceil() as usize;
            let mut runs: Vec<(u32, u64)> = entry.runs.iter().map(|run| (frequency[run], *run)).collect();
            runs.sort_unstable();
            runs.truncate(entry.runs.len() + 1 - needed.max(1));
            for (_, run) in runs {
                let next = self.rare.insert(run, self.links.len() as u32).unwrap_or(NONE);
                self.links.push((index as u32, next));
            }
        }
    }
}

fn whole(words: &[Word]) -> u64 {
    combined(words.iter().map(|word| word.hash))
}

/// Runs of a text from `from` to `to`, and how many distinct ones of an entry are there.
#[derive(Clone, Copy, Debug, Default)]
struct Stretch {
    from: usize,
    to: usize,
    runs: usize,
}

/// The stretch of at most half as many words again as the entry has with the most of its runs; of equals the first.
fn densest(entry: &Entry, text_runs: &[u64]) -> Stretch {
    let hits: Vec<(usize, usize)> = text_runs
        .iter()
        .enumerate()
        .filter_map(|(at, run)| entry.runs.binary_search(run).ok().map(|which| (at, which)))
        .collect();
    let width = entry.n_words + entry.n_words / 2;
    let mut times = vec![0u32; entry.runs.len()];
    let (mut first, mut distinct, mut best) = (0, 0, Stretch::default());
    for &(at, which) in &hits {
        distinct += usize::from(times[which] == 0);
        times[which] += 1;
        while at - hits[first].0 > width {
            let left = hits[first].1;
            times[left] -= 1;
            distinct -= usize::from(times[left] == 0);
            first += 1;
        }
        if distinct > best.runs {
            best = Stretch { from: hits[first].0, to: at, runs: distinct };
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stillroom_core::{Message, Role};

    use super::*;
    use crate::made_up;

    fn trace(question: &str, reasoning: Option<&str>, content: &str) -> Trace {
        Trace {
            messages: vec![Message::new(Role::User, question)],
            reasoning_content: reasoning.map(Into::into),
            ..made_up::trace("p", 0, content)
        }
    }

    const ROBE: &str = "A robe takes 2 bolts of blue fiber and half that much white fiber. How many bolts in total does it take?";
    const SOLUTION: &str = "It takes half of 2, that is 1 bolt of white fiber, so the total amount of fabric is 2 + 1 = 3 bolts of fabric";

    fn items() -> Contaminants {
        let item = |id: &str, question: &str, solution: Option<&str>| EvaluationItem {
            id: id.into(),
            question: question.into(),
            solution: solution.map(Into::into),
        };
        let items = [
            item("robe", ROBE, Some(SOLUTION)),
            item("capital", "What is the capital of France?", Some("Paris")),
            item("empty", "…", None),
        ];
        Contaminants::new(items, OVERLAP)
    }

    fn found(question: &str, content: &str) -> Option<(String, Side)> {
        match items().find(&trace(question, None, content)) {
            Finding::Contaminated(held) => Some((held.item.into(), held.side)),
            _ => None,
        }
    }

    fn prompt(id: &str) -> Option<(String, Side)> {
        Some((id.into(), Side::Prompt))
    }

    #[test]
    fn items_are_found_whole_edited_and_within_other_words() {
        assert_eq!(found(&ROBE.to_uppercase(), "3"), prompt("robe"));
        let edited = ROBE.replace("blue", "dark green").replace("does it take", "are needed");
        assert_eq!(found(&edited, "3"), prompt("robe"));
        let long = format!("{} Solve this: {ROBE} {}", "And so on. ".repeat(90), "More of it. ".repeat(90));
        assert_eq!(found(&long, "3"), prompt("robe"));
        let reply = Some(("robe".to_owned(), Side::Reply));
        assert_eq!(found("Give me an example.", &format!("Here is one: {ROBE}")), reply);
        assert_eq!(found("Robes?", SOLUTION), reply, "the solution counts in a reply");
        assert_eq!(found(SOLUTION, "Robes?"), None, "and only there");
    }

    #[test]
    fn words_of_an_item_all_over_a_long_text_are_no_item() {
        let runs: Vec<&str> = ROBE.split(' ').collect();
        let scattered: Vec<String> =
            runs.windows(3).map(|run| format!("{} {}", run.join(" "), "x y z ".repeat(9))).collect();
        assert_eq!(found(&scattered.concat(), "3"), None);
    }

    #[test]
    fn other_numbers_are_another_problem_of_the_template() {
        let other = ROBE.replace('2', "7");
        let items = items();
        let Finding::SameTemplate(held) = items.find(&trace(&other, None, "10")) else {
            panic!("a template")
        };
        assert_eq!((held.item, held.side), ("robe", Side::Prompt));
        assert!(held.shared > 0.8 && held.shared < 1.0, "{}", held.shared);
        let both = format!("{other} {ROBE}");
        assert!(matches!(items.find(&trace(&both, None, "10")), Finding::Contaminated(_)));
    }

    #[test]
    fn short_items_are_found_as_most_of_a_text_only() {
        assert_eq!(found("what is the capital of france", "Paris"), prompt("capital"));
        assert_eq!(found("Question: What is the capital of France? Answer:", "Paris"), prompt("capital"));
        assert_eq!(found("What is the capital of Spain?", "Madrid"), None);
        let long = "Write a quiz with ten questions such as: what is the capital of France?";
        assert_eq!(found(long, "1. …"), None);
        assert_eq!(found("…", ""), None);
    }

    proptest! {
        #[test]
        fn an_item_with_a_tenth_of_its_words_exchanged_is_found(
            words in prop::collection::vec("[a-f]{1,4}", SHORT_WORDS..70),
            exchanged in prop::collection::vec(any::<prop::sample::Index>(), 0..7),
            around in prop::collection::vec("[g-k]{1,4}", 0..60),
        ) {
            let question = words.join(" ");
            let item = EvaluationItem { id: "i".into(), question, solution: None };
            let items = Contaminants::new([item], OVERLAP);
            let mut edited = words.clone();
            for at in exchanged.iter().take(words.len() / 10) {
                edited[at.index(words.len())] = "zzz".into();
            }
            let around = around.join(" ");
            let text = format!("{around} {} {around}", edited.join(" "));
            let found = items.find(&trace(&text, None, "x"));
            prop_assert!(matches!(found, Finding::Contaminated(_)), "{:?} in {}", found, text);
            prop_assert_eq!(items.find(&trace(&around, None, &around)), Finding::Nothing);
        }
    }
}

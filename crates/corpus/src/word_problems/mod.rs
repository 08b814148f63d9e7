//! The procedural task `word_problems`: arithmetic word problems of several easy steps.
//!
//! A person holds a number of things; each sentence adds to them or takes from them, and the
//! question asks how many are left. Every value stays within 0..=20 and every step is a fact
//! that a small model can learn, so that what is hard is only to keep the chain, which takes
//! written reasoning. The reasoning takes one month after the other: it quotes what the problem says
//! (a cue word and a number) before it reckons. A chain (the start and the operations in order)
//! belongs to exactly one [`Split`], by its hash: no held-out chain can occur in training, under any
//! seed or wording.

mod verifier;
mod wording;

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use stillroom_core::{CounterRng, Message, Prompt, Role};

use crate::{CorpusError, Split};
pub use verifier::WordProblems;

/// No value of a chain is larger.
pub const VALUE_MAX: u8 = 20;
/// No number that is added or taken away is larger.
pub const OPERAND_MAX: u8 = 9;
/// Fewest and most steps of a chain; every length in between is equally likely.
pub const STEPS: std::ops::RangeInclusive<u64> = 3..=8;

/// How often a step doubles or halves, where the value allows it.
const DOUBLE_SHARE: f64 = 0.06;
const HALVE_SHARE: f64 = 0.06;
/// A chain of the wanted split turns up within this many draws (the rarest split is a tenth).
const DRAWS_MAX: usize = 10_000;
/// Keeps this task's random numbers apart from every other use of the seed.
const DOMAIN: u64 = 0x776f_7264_7072_6f62;

/// One step of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    Add(u8),
    Subtract(u8),
    Double,
    Halve,
}

impl Operation {
    /// The value after this step, or nothing where it would leave 0..=[`VALUE_MAX`] or not be whole.
    pub fn apply(self, value: u8) -> Option<u8> {
        match self {
            Operation::Add(n) => value.checked_add(n).filter(|&v| v <= VALUE_MAX),
            Operation::Subtract(n) => value.checked_sub(n),
            Operation::Double => value.checked_mul(2).filter(|&v| (1..=VALUE_MAX).contains(&v)),
            Operation::Halve => (value > 0 && value.is_multiple_of(2)).then_some(value / 2),
        }
    }

    /// The number that the problem's text states for this step.
    pub fn operand(self) -> Option<u8> {
        match self {
            Operation::Add(n) | Operation::Subtract(n) => Some(n),
            Operation::Double | Operation::Halve => None,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operation::Add(n) => write!(f, "+ {n}"),
            Operation::Subtract(n) => write!(f, "- {n}"),
            Operation::Double => f.write_str("* 2"),
            Operation::Halve => f.write_str("/ 2"),
        }
    }
}

/// What a problem is about once its words are taken away.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Chain {
    pub start: u8,
    pub steps: Vec<Operation>,
}

impl Chain {
    fn draw(rng: &mut CounterRng) -> Chain {
        let start = 1 + rng.below(u64::from(VALUE_MAX)) as u8;
        let n_steps = STEPS.start() + rng.below(STEPS.end() - STEPS.start() + 1);
        let mut value = start;
        let mut steps = Vec::with_capacity(n_steps as usize);
        for _ in 0..n_steps {
            let (step, next) = draw_step(value, rng);
            steps.push(step);
            value = next;
        }
        Chain { start, steps }
    }

    /// The values before the first step and after each step.
    pub fn values(&self) -> Vec<u8> {
        let mut values = vec![self.start];
        for step in &self.steps {
            let before = values[values.len() - 1];
            values.push(step.apply(before).expect("a drawn chain stays within its values"));
        }
        values
    }

    pub fn answer(&self) -> u8 {
        self.values()[self.steps.len()]
    }

    /// The part of the data that this chain belongs to, whatever the words, the seed or the index.
    pub fn split(&self) -> Split {
        Split::of(&self.to_string())
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.start)?;
        self.steps.iter().try_for_each(|step| write!(f, " {step}"))
    }
}

/// Mostly one of the additions and subtractions that stay within the values, all equally
/// likely, which keeps the values after many steps nearly uniform.
fn draw_step(value: u8, rng: &mut CounterRng) -> (Operation, u8) {
    let choice = rng.uniform();
    let rare = match choice {
        c if c < DOUBLE_SHARE => Some(Operation::Double),
        c if c < DOUBLE_SHARE + HALVE_SHARE => Some(Operation::Halve),
        _ => None,
    };
    if let Some(step) = rare
        && let Some(next) = step.apply(value)
    {
        return (step, next);
    }
    let additions = (VALUE_MAX - value).min(OPERAND_MAX);
    let subtractions = value.min(OPERAND_MAX);
    let i = rng.below(u64::from(additions + subtractions)) as u8;
    if i < additions {
        (Operation::Add(i + 1), value + i + 1)
    } else {
        (Operation::Subtract(i - additions + 1), value - (i - additions + 1))
    }
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WordProblem {
    pub id: String,
    pub split: Split,
    pub chain: Chain,
    /// Which month (from 0, January) the first sentence is dated.
    pub first_month: usize,
    /// The word of each step's sentence that says what happens, as the solution quotes it.
    pub cues: Vec<&'static str>,
    pub text: String,
}

impl WordProblem {
    /// The problem that `seed`, `split` and `index` name: the same one on every machine, whatever
    /// else was drawn before.
    pub fn draw(seed: u64, split: Split, index: u64) -> WordProblem {
        let mut rng = CounterRng::new(&[DOMAIN, seed, split as u64, index]);
        let chain = (0..DRAWS_MAX)
            .map(|_| Chain::draw(&mut rng))
            .find(|chain| chain.split() == split)
            .expect("every split holds at least a tenth of all chains");
        let first_month = rng.below(12) as usize;
        let (text, cues) = wording::tell(&chain, first_month, &mut rng);
        let id = format!("word_problems-{seed}-{split}-{index:06}");
        WordProblem { id, split, chain, first_month, cues, text }
    }

    pub fn answer(&self) -> u8 {
        self.chain.answer()
    }

    /// The steps as dated quotes and equations, such as
    /// `In May: won 5, 7 + 5 = 12; June: lost 3, 12 - 3 = 9; July: doubled, 9 * 2 = 18`.
    /// The first word gives the first month a leading space, and nothing changes when the text is
    /// trimmed.
    pub fn reasoning(&self) -> String {
        let values = self.chain.values();
        let step = |(i, step): (usize, &Operation)| {
            let month = wording::MONTHS[(self.first_month + 1 + i) % 12];
            let operand = step.operand().map_or(String::new(), |n| format!(" {n}"));
            format!("{month}: {}{operand}, {} {step} = {}", self.cues[i], values[i], values[i + 1])
        };
        let steps: Vec<String> = self.chain.steps.iter().enumerate().map(step).collect();
        format!("In {}", steps.join("; "))
    }

    /// The assistant turn with the reasoning: what a teacher made from scratch is trained on.
    pub fn worked(&self) -> Message {
        let mut message = Message::new(Role::Assistant, self.answer().to_string());
        message.reasoning_content = Some(self.reasoning());
        message
    }

    /// The problem as the data set has it: question, answer, and the answer alone as its target.
    pub fn prompt(&self) -> Prompt {
        let answer = self.answer().to_string();
        Prompt {
            id: self.id.clone(),
            messages: vec![Message::new(Role::User, self.text.clone())],
            answer: Some(answer.clone()),
            target: Some(Message::new(Role::Assistant, answer)),
        }
    }
}

/// The first `count` problems of a split that have different chains, in order of index.
pub fn problems(seed: u64, split: Split, count: usize) -> Vec<WordProblem> {
    let mut seen = HashSet::with_capacity(count);
    let drawn = (0..).map(|index| WordProblem::draw(seed, split, index));
    drawn.filter(|problem| seen.insert(problem.chain.clone())).take(count).collect()
}

/// What two sets of problems share; nothing, where they are parts of one split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlap {
    /// Problems of the second set whose text is in the first.
    pub equal_texts: u64,
    /// Problems of the second set whose chain is in the first.
    pub equal_chains: u64,
}

/// Counts the problems of `held_out` that `train` holds too, as text and as chain.
pub fn overlap(train: &[WordProblem], held_out: &[WordProblem]) -> Overlap {
    let texts: HashSet<&str> = train.iter().map(|problem| problem.text.as_str()).collect();
    let chains: HashSet<&Chain> = train.iter().map(|problem| &problem.chain).collect();
    let count = |is: &dyn Fn(&&WordProblem) -> bool| held_out.iter().filter(is).count() as u64;
    Overlap {
        equal_texts: count(&|problem| texts.contains(problem.text.as_str())),
        equal_chains: count(&|problem| chains.contains(&problem.chain)),
    }
}

/// Checks that no chain and no text is in two splits, and that each problem is where its chain belongs.
///
/// # Errors
/// Names the first problem that is in two places.
pub fn check_disjoint(problems: &[WordProblem]) -> Result<(), CorpusError> {
    let mut chains: HashMap<&Chain, Split> = HashMap::new();
    let mut texts: HashMap<&str, Split> = HashMap::new();
    for problem in problems {
        let overlap = |first: Split| CorpusError::SplitsOverlap {
            id: problem.id.clone(),
            first,
            second: problem.split,
        };
        let places = [
            problem.chain.split(),
            *chains.entry(&problem.chain).or_insert(problem.split),
            *texts.entry(&problem.text).or_insert(problem.split),
        ];
        if let Some(&first) = places.iter().find(|&&place| place != problem.split) {
            return Err(overlap(first));
        }
    }
    Ok(())
}

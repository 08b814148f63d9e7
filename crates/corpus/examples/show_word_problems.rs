//! Prints some problems of the task, and how far answers can be guessed without reasoning.
//!
//! `cargo run --release -p stillroom-corpus --example show_word_problems`

#![expect(clippy::print_stdout, reason = "an example that prints")]

use std::collections::HashMap;
use std::hash::Hash;

use stillroom_corpus::Split;
use stillroom_corpus::word_problems::{WordProblem, problems};

fn main() {
    let train = problems(0, Split::Train, 50_000);
    let held_out = problems(0, Split::HeldOut, 5_000);
    for problem in &held_out[..8] {
        println!("{}\n  {} → {}\n", problem.text, problem.reasoning(), problem.answer());
    }
    let last = |p: &WordProblem| p.chain.steps[p.chain.steps.len() - 1];
    println!("best guess without a look      {:.3}", guess(&train, &held_out, |_| ()));
    println!("best guess from the start      {:.3}", guess(&train, &held_out, |p| p.chain.start));
    println!("best guess from the last step  {:.3}", guess(&train, &held_out, last));
    println!(
        "  … and the number of steps    {:.3}",
        guess(&train, &held_out, |p| (last(p), p.chain.steps.len()))
    );
    println!("  … and the start              {:.3}", guess(&train, &held_out, |p| (last(p), p.chain.start)));
    let two = |p: &WordProblem| (last(p), p.chain.steps[p.chain.steps.len() - 2]);
    println!("best guess from the last two   {:.3}", guess(&train, &held_out, two));
    let sum = |p: &WordProblem| {
        let total: i32 = p.chain.steps.iter().map(|s| signed(*s)).sum();
        total + i32::from(p.chain.start)
    };
    println!("sum that ignores doubling      {:.3}", guess(&train, &held_out, sum));
}

fn signed(step: stillroom_corpus::word_problems::Operation) -> i32 {
    use stillroom_corpus::word_problems::Operation::{Add, Double, Halve, Subtract};
    match step {
        Add(n) => i32::from(n),
        Subtract(n) => -i32::from(n),
        Double | Halve => 0,
    }
}

/// Share of held-out answers that the most frequent training answer for the same clue gets right.
fn guess<K: Hash + Eq>(
    train: &[WordProblem],
    held_out: &[WordProblem],
    clue: impl Fn(&WordProblem) -> K,
) -> f64 {
    let mut counts: HashMap<K, [u32; 21]> = HashMap::new();
    for problem in train {
        counts.entry(clue(problem)).or_insert([0; 21])[usize::from(problem.answer())] += 1;
    }
    let best = |counts: &[u32; 21]| (0..21).max_by_key(|&i| counts[i]).unwrap_or_default();
    let right = held_out.iter().filter(|problem| {
        counts.get(&clue(problem)).is_some_and(|counts| best(counts) == usize::from(problem.answer()))
    });
    right.count() as f64 / held_out.len() as f64
}

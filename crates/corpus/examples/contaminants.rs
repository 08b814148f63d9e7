//! Time and memory of the search for evaluation items: `cargo run --release --example contaminants -- [ROWS] [ITEMS]`.
//!
//! Rows and items are made-up questions of 60 words with a reply of as many; every thousandth row holds an item with three
//! words changed.

use std::time::Instant;

use stillroom_core::{CounterRng, FinishReason, Message, Role, Trace};
use stillroom_corpus::contaminants::{Contaminants, EvaluationItem, Finding, OVERLAP};

const VOCABULARY: u64 = 20_000;
const WORDS: usize = 60;

#[expect(clippy::print_stdout, reason = "an example's result")]
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: u64| args.get(i).and_then(|text| text.parse().ok()).unwrap_or(default);
    let (rows, n_items) = (number(0, 1_000_000), number(1, 10_000));
    let item =
        |i: u64| EvaluationItem { id: i.to_string(), question: text(0, i), solution: Some(text(1, i)) };
    let started = Instant::now();
    let items = Contaminants::new((0..n_items).map(item), OVERLAP);
    println!("items {n_items}: indexed in {:.1} s", started.elapsed().as_secs_f64());
    let started = Instant::now();
    let (mut held, mut wrong) = (0, 0);
    for row in 0..rows {
        let planted = row % 1000 == 999;
        let question = if planted { edited(&text(0, row % n_items)) } else { text(2, row) };
        let found = matches!(items.find(&trace(&question, &text(3, row))), Finding::Contaminated(_));
        held += u64::from(found && planted);
        wrong += u64::from(found && !planted);
    }
    println!("rows {rows}: {held} of {} found, {wrong} others", rows / 1000);
    println!("seconds {:.1}, peak resident MiB {}", started.elapsed().as_secs_f64(), peak_mib());
}

fn text(kind: u64, row: u64) -> String {
    let mut random = CounterRng::new(&[2, kind, row]);
    // Few words are frequent, as in a language.
    let word = |_| (random.uniform().powi(3) * VOCABULARY as f64) as u64;
    (0..WORDS).map(word).map(|word| format!("w{word} ")).collect()
}

fn edited(text: &str) -> String {
    let words = text.split(' ').enumerate();
    words.map(|(i, word)| if i % 20 == 7 { "other ".into() } else { format!("{word} ") }).collect()
}

fn trace(question: &str, content: &str) -> Trace {
    Trace {
        id: String::new(),
        sample: 0,
        messages: vec![Message::new(Role::User, question)],
        reasoning_content: None,
        content: content.into(),
        finish_reason: FinishReason::Stop,
        prompt_tokens: 0,
        completion_tokens: 0,
        teacher: String::new(),
        usd: 0.0,
    }
}

fn peak_mib() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok())
        .map_or("unknown".into(), |kib| (kib / 1024).to_string())
}

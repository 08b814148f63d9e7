//! Time and memory of near-duplicates on made-up rows: `cargo run --release --example near_duplicates -- [ROWS] [WORDS] [template]`.
//!
//! Every tenth row repeats an earlier one with one word changed. With `template`, all rows share half of their words, as the
//! problems of a procedure do; it is the hard case.

use std::time::Instant;

use stillroom_core::CounterRng;
use stillroom_corpus::near_duplicates::NearDuplicates;
use stillroom_corpus::shingles::{Shingling, Unit};

const VOCABULARY: u64 = 20_000;

#[expect(clippy::print_stdout, reason = "an example's result")]
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| args.get(i).and_then(|text| text.parse().ok()).unwrap_or(default);
    let (rows, n_words) = (number(0, 1_000_000), number(1, 60));
    let template = args.iter().any(|arg| arg == "template");
    let mut texts = NearDuplicates::new(0.8, Shingling { unit: Unit::Words, n: 3 });
    let (mut found, mut made) = (0u64, 0u64);
    let started = Instant::now();
    for row in 0..rows as u64 {
        let repeats = row % 10 == 9;
        made += u64::from(repeats);
        found += u64::from(texts.first_match_or_insert(&text(row, n_words, repeats, template)).is_some());
    }
    println!("rows {rows}, words per row {n_words}, template {template}");
    println!("made {made} near-duplicates, found {found}, cut short {}", texts.cut_short());
    println!("seconds {:.1}, peak resident MiB {}", started.elapsed().as_secs_f64(), peak_mib());
}

/// Row `row`, or the one nine before it with one word changed.
fn text(row: u64, n_words: usize, repeats: bool, template: bool) -> String {
    let mut random = CounterRng::new(&[1, if repeats { row - 9 } else { row }]);
    let mut words: Vec<u64> = (0..n_words).map(|_| random.below(VOCABULARY)).collect();
    if template {
        (0..n_words / 2).for_each(|i| words[i] = row / 10 % 4 * VOCABULARY + i as u64);
    }
    if repeats {
        words[n_words / 2] = VOCABULARY * 8 + row;
    }
    words.iter().map(|word| format!("w{word} ")).collect()
}

fn peak_mib() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok())
        .map_or("unknown".into(), |kib| (kib / 1024).to_string())
}

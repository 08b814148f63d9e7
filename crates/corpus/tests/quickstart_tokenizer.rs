//! The committed quickstart tokenizer fits the task.

use std::path::PathBuf;

use stillroom_corpus::Split;
use stillroom_corpus::word_problems::{VALUE_MAX, WordProblem, problems};
use tokenizers::Tokenizer;

fn asset(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../assets/quickstart-tokenizer").join(name)
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_file(asset("tokenizer.json")).expect("the committed tokenizer opens")
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, false).expect("any text encodes").get_ids().to_vec()
}

fn full_text(problem: &WordProblem) -> String {
    let reasoning = problem.reasoning();
    format!("<|user|>{}<|assistant|><think>{reasoning}</think>{}<|end|>", problem.text, problem.answer())
}

#[test]
fn every_number_of_the_task_is_one_token() {
    let tokenizer = tokenizer();
    for n in 0..=VALUE_MAX {
        assert_eq!(ids(&tokenizer, &format!(" {n}")).len(), 1, "` {n}`");
        assert_eq!(ids(&tokenizer, &n.to_string()).len(), 1, "`{n}`");
    }
}

#[test]
fn every_word_of_the_task_is_one_token_and_examples_are_short() {
    let tokenizer = tokenizer();
    let held_out = problems(1, Split::HeldOut, 2_000);
    let mut split_words = std::collections::BTreeMap::new();
    let (mut n_tokens, mut n_sentences, mut n_text, mut longest) = (0, 0, 0, 0);
    for problem in &held_out {
        let all = ids(&tokenizer, &full_text(problem));
        n_tokens += all.len();
        longest = longest.max(all.len());
        n_text += ids(&tokenizer, &problem.text).len();
        n_sentences += problem.chain.steps.len() + 2;
        let words = problem
            .text
            .split_inclusive([' ', '.', '?', ','])
            .map(|w| w.trim_matches(&[' ', '.', '?', ','][..]));
        for (i, word) in words.enumerate().filter(|(_, word)| !word.is_empty()) {
            let word = if i == 0 { word.to_string() } else { format!(" {word}") };
            let n = ids(&tokenizer, &word).len();
            if n > 1 {
                *split_words.entry(word).or_insert(0) += 1;
            }
        }
    }
    let per_example = n_tokens as f64 / held_out.len() as f64;
    let per_sentence = n_text as f64 / f64::from(n_sentences as u32);
    eprintln!(
        "{per_example:.1} tokens per example (longest {longest}), {per_sentence:.2} per sentence, split words {split_words:?}"
    );
    assert!(split_words.is_empty(), "{split_words:?}");
    assert!(per_sentence <= 9.0 && per_example <= 115.0);
}

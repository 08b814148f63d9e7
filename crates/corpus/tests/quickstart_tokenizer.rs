//! The committed quickstart tokenizer fits the task, and is what its generator writes.

#[path = "../examples/train_tokenizer.rs"]
#[expect(dead_code, reason = "the generator's `main` is for the command line")]
mod train_tokenizer;

use std::collections::BTreeSet;
use std::path::PathBuf;

use proptest::prelude::*;
use stillroom_core::Message;
use stillroom_corpus::Split;
use stillroom_corpus::word_problems::{VALUE_MAX, WordProblem, problems};
use tokenizers::Tokenizer;

fn asset(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../assets/quickstart-tokenizer").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(asset(name)).expect("the asset is committed")
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
fn the_generator_writes_the_committed_files() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    train_tokenizer::write(dir.path()).expect("the generator runs");
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        let written = std::fs::read_to_string(dir.path().join(name)).expect("the generator wrote it");
        assert!(written == read(name), "{name} differs; run the example `train_tokenizer`");
    }
}

#[test]
fn every_number_of_the_task_is_one_token() {
    let tokenizer = tokenizer();
    let mut seen = BTreeSet::new();
    for n in 0..=VALUE_MAX {
        for text in [format!(" {n}"), n.to_string()] {
            let ids = ids(&tokenizer, &text);
            assert_eq!(ids.len(), 1, "`{text}`");
            assert!(seen.insert(ids[0]), "`{text}`");
        }
    }
}

#[test]
fn every_word_of_the_task_is_one_token_and_examples_are_short() {
    let tokenizer = tokenizer();
    let held_out = problems(1, Split::HeldOut, 1_000);
    let mut words = BTreeSet::new();
    let (mut n_tokens, mut n_sentences, mut n_text, mut longest) = (0, 0, 0, 0);
    for problem in &held_out {
        let n = ids(&tokenizer, &full_text(problem)).len();
        n_tokens += n;
        longest = longest.max(n);
        n_text += ids(&tokenizer, &problem.text).len();
        n_sentences += problem.chain.steps.len() + 2;
        for text in [&problem.text, &problem.reasoning()] {
            for (i, word) in text.split(' ').enumerate() {
                let word = word.trim_end_matches(['.', ',', '?', ':', ';']);
                words.insert(if i == 0 { word.to_string() } else { format!(" {word}") });
            }
        }
    }
    let split: Vec<&String> = words.iter().filter(|word| ids(&tokenizer, word).len() != 1).collect();
    assert!(split.is_empty(), "{split:?}");
    let per_example = n_tokens as f64 / held_out.len() as f64;
    let per_sentence = n_text as f64 / n_sentences as f64;
    assert!((10.5..12.0).contains(&per_sentence), "{per_sentence}");
    assert!((145.0..158.0).contains(&per_example), "{per_example}");
    assert!(longest <= 232, "{longest}");
}

#[test]
fn ids_are_small_and_the_added_tokens_come_first() {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.get_vocab_size(true), 733);
    let added = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>", "<think>", "</think>"];
    for (id, token) in added.into_iter().enumerate() {
        assert_eq!(tokenizer.token_to_id(token), Some(id as u32), "{token}");
        assert_eq!(ids(&tokenizer, &format!("a{token}b")).len(), 3, "{token}");
    }
    // Programs that hide special tokens still see where the reasoning ends.
    let problem = WordProblem::draw(0, Split::HeldOut, 0);
    let text = full_text(&problem);
    let shown = tokenizer.decode(&ids(&tokenizer, &text), true).expect("ids decode");
    assert!(shown.ends_with(&format!("<think>{}</think>18", problem.reasoning())), "{shown}");
}

#[test]
fn a_text_is_the_same_after_encoding_and_decoding() {
    let tokenizer = tokenizer();
    for problem in problems(8, Split::Validation, 500) {
        let text = full_text(&problem);
        assert_eq!(tokenizer.decode(&ids(&tokenizer, &text), false).expect("ids decode"), text);
    }
}

#[test]
fn the_chat_template_puts_nothing_between_the_parts() {
    let template = read("chat_template.jinja");
    let environment = minijinja::Environment::new();
    let render = |messages: &[Message], prompt: bool| {
        let context = minijinja::context! { messages => minijinja::value::Serde(messages), add_generation_prompt => prompt };
        environment.render_str(&template, context).expect("the template renders")
    };
    let problem = WordProblem::draw(0, Split::HeldOut, 0);
    let prompt = problem.prompt();
    let question = prompt.messages[0].clone();
    let supervised = [question.clone(), problem.worked()];
    assert_eq!(render(&supervised, false), full_text(&problem));
    let start = format!("<|user|>{}<|assistant|>", problem.text);
    assert_eq!(render(&supervised[..1], true), start);
    let plain = [question, prompt.target.expect("the data set has answers")];
    assert_eq!(render(&plain, false), format!("{start}18<|end|>"));
}

proptest! {
    #[test]
    fn any_text_round_trips_through_bytes(text in any::<String>()) {
        let tokenizer = tokenizer();
        let ids = ids(&tokenizer, &text);
        prop_assert_eq!(tokenizer.decode(&ids, false).expect("ids decode"), text);
    }
}

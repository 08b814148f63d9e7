//! Verifiers that run programs, what curation makes of verdicts and of personal data, and the order of prompts, through the
//! binary.
#![cfg(unix)]

#[path = "../../teacher/tests/fake/mod.rs"]
mod fake;
#[path = "common/shop.rs"]
mod shop;

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use fake::{FakeTeacher, Options};
use serde_json::{Value, json};
use shop::{Shop, text};
use stillroom_core::{CounterRng, Trace};
use stillroom_corpus::Split;
use stillroom_corpus::prompts::DataSet;
use stillroom_formats::parquet_rows;

const RECIPE: &str = r#"
name = "judged"
[teacher]
kind = "openai"
model = "us:teacher"
endpoints = [{ base_url = "ADDRESS", max_in_flight = 1 }]
stream = false
samples_per_prompt = 2
[prompts]
path = "rows.jsonl"
verifier = { name = "command", command = ["./check", "7"], timeout_s = 5.0 }
[curate]
pass_rate_min = 0.5
pass_rate_max = 0.5
keep = "first"
pii = "redact"
OUR_TEACHER
"#;

/// Says whether the reply ends in its first word, and leaves a mark each time that it ran.
const CHECK: &str = r#"#!/bin/sh
echo >> ran
[ -z "$HOME" ] || exit 3
reply=$(cat)
case "$reply" in
*"$1\"}}") exit 0 ;;
*) echo "not $1"; exit 1 ;;
esac
"#;

/// Questions, and the replies that come one after the other.
const REPLIES: [(&str, [&str; 2]); 4] = [
    ("easy", ["7", "it is 7"]),
    ("even", ["8", "7"]),
    ("mail", ["from me@example.com: 7", "9"]),
    ("hard", ["8", "9"]),
];

/// Answers each request by its last turn, one reply after the other.
fn teacher() -> FakeTeacher {
    let asked: Mutex<HashMap<String, usize>> = Mutex::default();
    let author = move |body: &Value| {
        let last = body["messages"].as_array().and_then(|turns| turns.last()?["content"].as_str());
        let last = last.expect("a question").to_owned();
        let known = REPLIES.iter().find(|(question, _)| *question == last);
        let replies = known.map_or(["something", "else"], |(_, replies)| *replies);
        let mut asked = asked.lock().expect("counts");
        let n = asked.entry(last).or_default();
        *n += 1;
        replies[(*n - 1) % 2].to_owned()
    };
    FakeTeacher::start(Options { author: Some(Arc::new(author)), reasoning: false, ..Options::default() })
}

fn shop(teacher: &FakeTeacher) -> Shop {
    let recipe = RECIPE.replace("ADDRESS", &teacher.base_url());
    let shop = Shop::with_recipes(&[("judged.toml", &recipe)]);
    let rows =
        REPLIES.map(|(question, _)| json!({"id": question, "prompt": question, "answer": "7"}).to_string());
    std::fs::write(shop.path("rows.jsonl"), rows.join("\n")).expect("rows");
    std::fs::write(shop.path("check"), CHECK).expect("a check");
    std::fs::set_permissions(shop.path("check"), std::fs::Permissions::from_mode(0o755)).expect("it may run");
    shop
}

#[test]
fn a_recipes_command_runs_only_where_its_reader_says_so() {
    let teacher = teacher();
    let shop = shop(&teacher);
    let refused = shop.run(&["curate", "judged.toml"]);
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(77), "{said}");
    assert!(said.starts_with("error[command-not-allowed]: the recipe asks to run a command"), "{said}");
    assert!(said.contains("`./check 7`") && said.contains("`--allow-commands`"), "{said}");
    assert!(!shop.path("ran").exists() && !shop.path("runs/judged/corpus").exists(), "nothing was done");

    shop.succeed(&["curate", "judged.toml", "--allow-commands"]);
    assert_eq!(shop.bytes("ran").len(), 8, "once for each reply, whoever wants to know");
    let bytes = shop.bytes("runs/judged/corpus/curated/train.parquet");
    let kept: Vec<Trace> = parquet_rows::read_traces(bytes).expect("traces");
    let mut kept: Vec<_> = kept.iter().map(|trace| (trace.id.as_str(), trace.content.as_str())).collect();
    kept.sort_unstable();
    assert_eq!(kept, [("even", "7"), ("mail", "from [EMAIL]: 7")]);
    let mut reasons: Vec<(String, String)> = shop
        .json_lines("runs/judged/corpus/dropped.jsonl")
        .iter()
        .map(|drop| (drop["id"].as_str().unwrap_or("").into(), drop["reason"].as_str().unwrap_or("").into()))
        .collect();
    reasons.sort_unstable();
    let too_easy = "2 of 2 samples are right, more than 50.0 %";
    let too_hard = "0 of 2 samples are right, less than 50.0 %";
    let expected = [
        ("easy", too_easy),
        ("easy", too_easy),
        ("even", "not 7"),
        ("hard", too_hard),
        ("hard", too_hard),
        ("mail", "not 7"),
    ];
    assert_eq!(reasons, expected.map(|(id, reason)| (id.to_owned(), reason.to_owned())));
}

const WHOLE: &str = r#"
name = "whole"
seed = 5
TINY_STUDENT
tokenizer = "ASSETS/quickstart-tokenizer"
[teacher]
kind = "openai"
model = "us:teacher"
endpoints = [{ base_url = "ADDRESS" }]
stream = false
[prompts]
path = "many.jsonl"
num_examples = 40
num_validation = 9
[evaluate]
num_examples = 7
OUR_TEACHER
"#;

#[test]
fn prompts_are_those_of_the_whole_data_shuffled_in_memory() {
    let teacher = teacher();
    let recipe = WHOLE.replace("ADDRESS", &teacher.base_url());
    let shop = Shop::with_recipes(&[("whole.toml", &recipe)]);
    let row = |i: usize| match i % 3 {
        0 => json!({"prompt": format!("Frage „{i}“?"), "answer": i}),
        1 => {
            json!({"messages": [{"role": "user", "content": format!("{i}\n?")}, {"role": "assistant", "content": "x"}]})
        }
        _ => json!({"id": format!("row {i}"), "question": format!("{i}?"), "answer": format!("#### {i}")}),
    };
    let rows: Vec<String> = (0..300).map(|i| row(i).to_string()).collect();
    std::fs::write(shop.path("many.jsonl"), rows.join("\n")).expect("rows");
    shop.succeed(&["curate", "whole.toml"]);
    let data = DataSet::open(&shop.path("many.jsonl")).expect("the data");
    for (split, seed, n) in [(Split::Train, 5, 40), (Split::Validation, 5, 9), (Split::HeldOut, 0, 7)] {
        let mut items = data.part(split).to_vec();
        CounterRng::new(&[0x7061_7274, seed, split as u64]).shuffle(&mut items);
        let lines =
            items.iter().take(n).map(|item| serde_json::to_string(item.as_prompt().expect("a prompt")));
        let expected: Vec<String> = lines.collect::<Result<_, _>>().expect("JSON");
        let written = text(&shop.bytes(&format!("runs/whole/corpus/prompts/{split}.jsonl")));
        assert_eq!(written.lines().collect::<Vec<_>>(), expected, "{split}");
    }
}

//! A teacher and a student of different tokenizers, through the binary.

#[path = "common/shop.rs"]
mod shop;

use serde_json::Value;
use shop::{Shop, text};
use stillroom_formats::parquet_rows::read_logprobs;

const RECIPE: &str = r#"
name = "across"
seed = 5
TINY_STUDENT
num_key_value_heads = 1
tokenizer = "ASSETS/experiments-tokenizer"
QUICKSTART_TEACHER
max_tokens = 128
logits = { kind = "live" }
[prompts]
task = "word_problems"
num_examples = 96
num_validation = 16
[curate]
verify = false
[train]
learning_rate = 1e-2
num_train_epochs = 2
per_device_train_batch_size = 2
max_length = 384
save_steps = 4
eval_steps = 16
logging_steps = 1
loss_functions = [{ function = "hard_labels" }, { function = "alm" }, { function = "gold" }]
[evaluate]
num_examples = 8
max_tokens = 128
controls = ["traces_only"]
"#;

fn shop() -> Shop {
    Shop::with_recipes(&[("across.toml", RECIPE)])
}

#[test]
fn a_teacher_of_another_tokenizer_teaches_and_a_killed_run_ends_with_the_same_bits() {
    let shop = shop();
    let plan: Value = serde_json::from_str(&shop.succeed(&["plan", "across.toml", "--json"])).expect("JSON");
    let stages = plan["estimate"]["stages"].as_array().expect("stages");
    assert!(stages.iter().any(|stage| stage["stage"] == "logprobs"), "{plan}");

    let report = shop.succeed(&["run", "across.toml", "--output", "whole", "--json", "--quiet"]);
    let report: Value = serde_json::from_str(&report).expect("a report");
    let curve = &report["curves"][0];
    let method = curve["loss"].as_str().expect("what was trained on");
    let expected = "hard_labels + alm (temperature 100) + gold (beta 0.5), nats per supervised token; from the whole \
                    distributions of a live teacher over its own vocabulary";
    assert!(method.starts_with(expected), "{method}");
    let terms = |point: &Value| point["train_terms"].as_object().expect("terms").clone();
    let points = curve["points"].as_array().expect("points");
    assert_eq!(terms(&points[1]).keys().collect::<Vec<_>>(), ["alm", "gold", "hard_labels"]);
    let training = shop.json("whole/training/student.json");
    let validation = training["validation"].as_array().expect("points");
    for (loss, most) in [("alm", 0.7), ("gold", 0.9)] {
        let of = |point: &Value| point["divergences"][loss].as_f64().expect("a loss");
        let (first, last) = (of(&validation[0]), of(&validation[validation.len() - 1]));
        assert!(last < most * first, "{loss}: {first} {last}");
    }
    // Most tokens begin where one of the teacher's does; digits within its numbers and the reasoning marks do not.
    let paired = validation[0]["captured_mass"].as_f64().expect("a share");
    assert!(paired > 0.5 && paired < 1.0, "{paired}");
    // The control is denied the teacher's scores.
    let control = shop.json("whole/training/traces_only.json");
    assert!(control["curve"][0]["divergences"].as_object().is_some_and(serde_json::Map::is_empty));

    let mut rows = 0;
    for part in ["part-000000", "part-000001", "part-000002"] {
        let Ok(bytes) = std::fs::read(shop.path(&format!("whole/corpus/logprobs/{part}.parquet"))) else {
            continue;
        };
        rows += read_logprobs(bytes).expect("scores").1.len();
    }
    assert!(rows > 64, "{rows} traces were scored, in more than one part");

    let args = ["train", "across.toml", "--output", "killed", "--quiet", "--threads", "1"];
    shop.kill_at(&args, "killed", "\"stage\":\"logprobs\",\"part\":0", 1);
    shop.kill_at(&args, "killed", "\"event\":\"checkpoint\"", 1);
    shop.succeed(&args);
    assert_eq!(shop.weights("killed"), shop.weights("whole"), "the bits differ");
}

#[test]
fn texts_that_are_learned_as_they_stand_are_read_in_both_tokenizations() {
    let shop = shop();
    let row = |i: usize| {
        let text = format!("Zoë paid {} euros for {i} crêpes and 🦀 number {}.", 3 * i + 7, 11 * i);
        serde_json::json!({ "text": text }).to_string() + "\n"
    };
    std::fs::write(shop.path("plain.jsonl"), (0..96).map(row).collect::<String>()).expect("texts");
    let args = [
        "train",
        "across.toml",
        "--output",
        "texts",
        "--quiet",
        "--set",
        "prompts={ kind = \"text\", path = \"plain.jsonl\", num_validation = 4 }",
        "--set",
        "train.max_length=24",
        "--set",
        "train.num_train_epochs=2",
        "--set",
        "evaluate={ num_examples = 4 }",
        "--set",
        "train.loss_functions=[{ function = \"alm\" }, { function = \"uld\", temperature = 2 }]",
    ];
    shop.succeed(&args);
    let training = shop.json("texts/training/student.json");
    let validation = training["validation"].as_array().expect("points");
    for loss in ["alm", "uld"] {
        let of = |point: &Value| point["divergences"][loss].as_f64().expect("a loss");
        let (first, last) = (of(&validation[0]), of(&validation[validation.len() - 1]));
        assert!(last < first, "{loss}: {first} {last}");
    }
}

#[test]
fn what_needs_one_vocabulary_and_what_alm_cannot_have_is_refused() {
    let shop = shop();
    let losses = |of: &str| format!("train.loss_functions=[{of}]");
    let twice = losses("{ function = \"alm\" }, { function = \"alm\", temperature = 2 }");
    let with = |losses: &str| losses.to_owned();
    let cases: [(&[String], &str); 7] = [
        (
            &[losses("{ function = \"forward_kl\" }"), with("teacher.logits={ kind = \"live\" }")],
            "different vocabularies",
        ),
        (&[losses("{ function = \"alm\", temperature = 0 }")], "a temperature of `alm`"),
        (&[twice], "it stands in a list once"),
        (&[losses("{ function = \"alm\", alpha = 0.1 }")], "`alpha` belongs to"),
        (
            &[losses("{ function = \"gold\" }"), with("teacher.logits={ kind = \"top_k\" }")],
            "`gold` is for a teacher with another vocabulary that is at hand",
        ),
        (&[losses("{ function = \"gold\" }, { function = \"forward_kl\" }")], "a vocabulary of its own"),
        (&[losses("{ function = \"gold\" }"), with("train.on_policy_fraction=1")], "reads given texts only"),
    ];
    for (sets, cause) in cases {
        let mut args = vec!["run", "across.toml", "--output", "refused", "--quiet"];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        let refused = shop.run(&args);
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(78), "{sets:?}: {said}");
        assert!(said.contains(cause), "{sets:?}: {said}");
        assert!(!shop.path("refused").exists(), "before anything is written");
    }
}

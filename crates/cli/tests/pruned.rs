//! A pruned student through the binary: what it is cut from, what tells importance, killed and continued, refused.

mod common;
#[path = "common/shop.rs"]
mod shop;

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use shop::{Shop, text};
use stillroom_formats::{DecoderConfig, Family, ModelFiles, NamedTensor, Tokenizer};
use stillroom_kernels::Device;
use stillroom_model::{Decoder, Width};

/// Of the quickstart's teacher, which writes worked solutions: a third of its width, and two of its five layers.
const DISTILLED: &str = r#"
name = "narrow"
seed = 5
[student]
kind = "pruned"
layers = [0, 4]
hidden_size = 80
intermediate_size = 96
num_key_value_heads = 1
calibration_examples = 12
QUICKSTART_TEACHER
max_tokens = 96
logits = { kind = "live" }
[prompts]
task = "word_problems"
num_examples = 48
num_validation = 8
[curate]
verify = false
[train]
learning_rate = 3e-3
max_steps = 8
per_device_train_batch_size = 2
max_length = 256
save_steps = 2
eval_steps = 4
logging_steps = 2
loss_functions = [{ function = "forward_kl" }]
[evaluate]
num_examples = 12
controls = ["traces_only"]
"#;

/// Of a random model, on sums as they stand.
const SUMS: &str = r#"
name = "sums"
seed = 5
[student]
kind = "pruned"
path = "base"
model = "us/base"
hidden_size = 12
intermediate_size = 10
calibration_examples = 16
[prompts]
kind = "text"
path = "sums.jsonl"
num_validation = 8
[train]
learning_rate = 1e-2
max_steps = 6
per_device_train_batch_size = 2
max_length = 64
save_steps = 2
eval_steps = 3
logging_steps = 1
[evaluate]
num_examples = 12
[policy.declare."us/base"]
owner = "us"
licence = "Apache-2.0"
"#;

/// A student that writes replies before anything else is there to be learned.
const DRAFTS: &str = r#"
name = "drafts"
[student]
kind = "pruned"
path = "ASSETS/quickstart-teacher"
model = "stillroom:quickstart-teacher"
intermediate_size = 600
calibration_examples = 3
[prompts]
task = "word_problems"
num_examples = 8
num_validation = 4
[feedback]
form = "verified"
from = "student"
samples_per_prompt = 2
max_tokens = 8
[train]
loss_functions = [{ function = "dpo" }]
"#;

fn tokenizer() -> Tokenizer {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/quickstart-tokenizer");
    let read = |name: &str| std::fs::read_to_string(assets.join(name)).expect("the tokenizer is there");
    let (config, template) = (read("tokenizer_config.json"), read("chat_template.jinja"));
    Tokenizer::from_json_files(&read("tokenizer.json"), Some(&config), Some(&template)).expect("a tokenizer")
}

/// A folder with a random model of two layers, some sums and the recipe.
fn shop_of_sums() -> Shop {
    let shop = Shop::with_recipes(&[("sums.toml", SUMS)]);
    let tokenizer = tokenizer();
    let config = DecoderConfig {
        num_hidden_layers: 2,
        eos_token_ids: tokenizer.eos_id().into_iter().collect(),
        ..common::tiny(Family::Qwen3, tokenizer.vocab_size(), 128)
    };
    std::fs::create_dir(shop.path("base")).expect("a folder");
    common::write_random(&shop.path("base"), config, Some(&tokenizer));
    let row = |i: u32| format!("{{\"id\":\"{i}\",\"text\":\"{i} + {} = {}\"}}\n", i % 7, i + i % 7);
    std::fs::write(shop.path("sums.jsonl"), (0..150).map(row).collect::<String>()).expect("data");
    shop
}

fn open(shop: &Shop, path: &str) -> Decoder {
    let files = ModelFiles::open(&shop.path(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    Decoder::load(Arc::new(Device::cpu(1)), files.config, files.tensors.as_ref()).expect("a decoder")
}

fn tensors(decoder: &Decoder) -> Vec<NamedTensor> {
    decoder.tensors().collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("a number, not {value}"))
}

/// Held-out loss of a model of a report.
fn loss(report: &Value, model: &str) -> f64 {
    number(&report["models"][model]["nll_nats_per_token"])
}

#[test]
fn a_student_is_cut_from_its_teacher_distilled_and_released_in_its_new_shape() {
    let shop = Shop::with_recipes(&[("narrow.toml", DISTILLED)]);
    let report = shop.succeed(&["run", "narrow.toml", "--output", "narrow", "--json", "--quiet"]);
    let report: Value = serde_json::from_str(&report).expect("the report and nothing else");
    let config = ModelFiles::open(&shop.path("narrow/release")).expect("a release").config;
    let shape = (config.num_hidden_layers, config.hidden_size, config.intermediate_size);
    assert_eq!(shape, (2, 80, 96));
    assert_eq!((config.num_key_value_heads, config.num_attention_heads, config.head_dim), (1, 2, 64));
    // Every tensor moved, and the loss fell: from a start that knows more than nothing.
    assert_eq!(report["checks"]["tensors"]["unchanged"], serde_json::json!([]));
    let (before, after) = (loss(&report, "untrained"), loss(&report, "student"));
    assert!(after < before - 0.1, "{before} became {after}");
    // The start is a model of its own, the same for the control, and stands in the manifest with its base.
    let start = open(&shop, "narrow/models/untrained");
    assert_eq!(report["models"]["untrained"]["parameters"], start.n_parameters());
    let facts = shop.json("narrow/training/pruning.json");
    assert_eq!(
        (&facts["parameters"], &facts["calibration_texts"]),
        (&start.n_parameters().into(), &12.into())
    );
    let manifest = text(&shop.bytes("narrow/release/provenance/manifest.json"));
    assert!(manifest.contains("models/untrained/model.safetensors"), "{manifest}");
    let card = text(&shop.bytes("narrow/release/README.md"));
    assert!(card.contains("base_model: stillroom:quickstart-teacher"), "{card}");
    shop.succeed(&["verify", "narrow"]);

    // Nothing is done twice.
    let said = text(&shop.run(&["run", "narrow.toml", "--output", "narrow"]).stderr);
    assert!(
        said.contains("prune: kept") && said.contains("train: kept") && !said.contains("done in"),
        "{said}"
    );
    let said = shop.succeed(&["plan", "narrow.toml", "--json"]);
    let plan: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(plan["estimate"]["student_parameters"], start.n_parameters());
    let stages = plan["estimate"]["stages"].as_array().expect("stages");
    assert!(stages.iter().any(|stage| stage["stage"] == "prune"), "{said}");
}

#[test]
fn importance_is_taken_from_training_text_and_from_nothing_else() {
    let shop = shop_of_sums();
    shop.succeed(&["train", "sums.toml", "--output", "sums", "--quiet"]);
    let start = open(&shop, "sums/models/untrained");
    let rows = text(&shop.bytes("sums/corpus/prompts/train.jsonl"));
    let tokenizer = tokenizer();
    let bos = tokenizer.bos_id().filter(|_| tokenizer.adds_bos());
    let ids = |row: &str| -> Vec<u32> {
        let row: Value = serde_json::from_str(row).expect("JSON");
        let text = tokenizer.encode_plain(row["text"].as_str().expect("a text")).expect("tokens");
        bos.into_iter().chain(text).collect()
    };
    let all: Vec<Vec<u32>> = rows.lines().map(ids).collect();
    let to = Width { hidden_size: 12, intermediate_size: 10, num_key_value_heads: 1 };
    let expected = |n: usize| {
        let chosen: Vec<&[u32]> = (0..n).map(|i| &all[i * all.len() / n][..]).collect();
        tensors(&open(&shop, "base").keep_width(to, &chosen).expect("a narrower model"))
    };
    assert_eq!(tensors(&start), expected(16));

    // One text says something else of what matters: the start, and all that follows from it, is made anew.
    let one = ["train", "sums.toml", "--output", "sums", "--set", "student.calibration_examples=1"];
    let said = text(&shop.run(&one).stderr);
    assert!(said.contains("prune: done") && said.contains("train: done"), "{said}");
    let of_one = tensors(&open(&shop, "sums/models/untrained"));
    assert_eq!(of_one, expected(1));
    assert_ne!(of_one, tensors(&start));
}

#[test]
fn a_student_that_writes_first_is_pruned_first() {
    let shop = Shop::with_recipes(&[("drafts.toml", DRAFTS)]);
    shop.succeed(&["curate", "drafts.toml", "--output", "drafts", "--quiet"]);
    let log = text(&shop.bytes("drafts/events.jsonl"));
    let events = log.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let done = events.filter(|event| event["event"] == "stage_finished");
    let stages: Vec<Value> = done.map(|event| event["stage"].clone()).collect();
    assert_eq!(stages, ["prompts", "prune", "candidates", "feedback"]);
    let facts = shop.json("drafts/training/pruning.json");
    assert_eq!(facts["calibration_texts"], 3);
}

#[test]
fn a_run_that_is_killed_while_it_trains_ends_with_the_same_bits() {
    let shop = shop_of_sums();
    shop.succeed(&["train", "sums.toml", "--output", "straight", "--quiet", "--threads", "2"]);
    let args = ["train", "sums.toml", "--output", "killed", "--quiet", "--threads", "1"];
    shop.kill_at(&args, "killed", "\"event\":\"checkpoint\"", 1);
    shop.succeed(&args);
    assert!(shop.weights("killed") == shop.weights("straight"), "other weights");
    let start = |run: &str| shop.bytes(&format!("{run}/models/untrained/model.safetensors"));
    assert!(start("killed") == start("straight"), "another start");
}

#[test]
fn a_width_that_the_base_does_not_have_is_refused_before_anything_is_done() {
    let shop = shop_of_sums();
    let refused = |set: &str, exit: i32, said: &[&str]| {
        for verb in ["plan", "run"] {
            let output = shop.run(&[verb, "sums.toml", "--set", set]);
            let shown = text(&output.stderr);
            assert_eq!(output.status.code(), Some(exit), "{set}: {shown}");
            assert!(said.iter().all(|part| shown.contains(part)), "{set}: {shown}");
        }
    };
    let bad = |set: &str, cause: &str, fix: &str| {
        refused(set, 78, &[cause, fix, &format!("--> --set {set}"), "bad-recipe"]);
    };
    bad("student.hidden_size=17", "`hidden_size` of 17 cannot be kept of the 16", "choose 1 to 16");
    bad("student.intermediate_size=25", "`intermediate_size` of 25 cannot", "choose 1 to 24");
    bad("student.num_key_value_heads=2", "`num_key_value_heads` of 2 cannot", "choose 1 to 1");
    bad("student.layers=[0, 2]", "layer 2 does not exist", "choose layers from 0 to 1");
    // Its base's licence is asked for, as for any student that has one.
    let output = shop.run(&["run", "sums.toml", "--output", "closed", "--set", "student.model=them/base"]);
    let shown = text(&output.stderr);
    assert!(output.status.code() == Some(77) && shown.contains("them/base"), "{shown}");
    assert!(!shop.path("closed/models").exists());
}

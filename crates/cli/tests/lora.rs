//! LoRA through the binary: a pretrained student is adapted, killed, continued, released, and adapted further.

mod common;
#[path = "common/shop.rs"]
mod shop;

use std::path::Path;

use serde_json::Value;
use shop::{Shop, text};
use stillroom_formats::{DecoderConfig, Family, LoraTarget, PeftAdapter, Tokenizer};
use stillroom_kernels::Device;
use stillroom_model::Decoder;

const RECIPE: &str = r#"
name = "adapted"
seed = 5
[student]
kind = "pretrained"
path = "base"
model = "us/base"
[prompts]
path = "sums.jsonl"
verifier = "numeric_answer"
num_validation = 8
[train]
lora_r = 4
lora_alpha = 8
lora_dropout = 0.1
lora_target_modules = ["q_proj", "v_proj", "down_proj"]
learning_rate = 2e-2
num_train_epochs = 6
per_device_train_batch_size = 2
max_length = 128
save_steps = 2
eval_steps = 4
logging_steps = 1
[evaluate]
num_examples = 12
max_tokens = 4
[policy.declare."us/base"]
owner = "us"
licence = "Apache-2.0"
[policy.declare."straight/models/student/adapter"]
owner = "us"
licence = "Apache-2.0"
[policy.declare.other]
owner = "us"
licence = "Apache-2.0"
"#;
/// Of two layers of width 16: q 16 → 16, v 16 → 8, down 24 → 16.
const TRAINED: u64 = 2 * 4 * ((16 + 16) + (16 + 8) + (24 + 16));

/// A folder with a random model, some sums and the recipe.
fn shop() -> Shop {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/quickstart-tokenizer");
    let read = |name: &str| std::fs::read_to_string(assets.join(name)).expect("the tokenizer is there");
    let tokenizer = Tokenizer::from_json_files(
        &read("tokenizer.json"),
        Some(&read("tokenizer_config.json")),
        Some(&read("chat_template.jinja")),
    )
    .expect("a tokenizer");
    let config = DecoderConfig {
        num_hidden_layers: 2,
        eos_token_ids: tokenizer.eos_id().into_iter().collect(),
        ..common::tiny(Family::Qwen3, tokenizer.vocab_size(), 128)
    };
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(dir.path().join("base")).expect("a folder");
    common::write_random(&dir.path().join("base"), config, Some(&tokenizer));
    let row = |i: u32| {
        let (prompt, answer) = (format!("{i} + 1?"), i + 1);
        format!(
            "{{\"id\":\"{i}\",\"prompt\":\"{prompt}\",\"completion\":\"{answer}\",\"answer\":\"{answer}\"}}\n"
        )
    };
    std::fs::write(dir.path().join("sums.jsonl"), (0..150).map(row).collect::<String>()).expect("data");
    std::fs::write(dir.path().join("adapted.toml"), RECIPE).expect("a recipe is written");
    Shop { dir }
}

fn refused(shop: &Shop, args: &[&str], exit: i32, said: &[&str]) {
    let output = shop.run(args);
    let shown = text(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{args:?}: {shown}");
    assert!(said.iter().all(|part| shown.contains(part)) && shown.contains("\n  fix: "), "{args:?}: {shown}");
}

/// Mean −log p of a text's tokens.
fn score(shop: &Shop, args: &[&str]) -> f64 {
    std::fs::write(shop.path("text.txt"), "7 + 1? 8").expect("a text");
    let said = shop.succeed(&[&["score"], args, &["--text", "text.txt", "--json"]].concat());
    let said: Value = serde_json::from_str(&said).expect("JSON");
    said["nll_nats_per_token"].as_f64().expect("a score")
}

#[test]
fn a_recipe_adapts_a_model_and_releases_weights_and_adapter() {
    let shop = shop();
    let report = shop.succeed(&["run", "adapted.toml", "--output", "whole", "--json", "--quiet"]);
    let report: Value = serde_json::from_str(&report).expect("the report and nothing else");
    let method = report["curves"][0]["loss"].as_str().expect("what was trained");
    let parameters = report["models"]["student"]["parameters"].as_u64().expect("a number");
    let adapted = format!(
        "LoRA r=4, alpha=8, dropout 0.1 on q_proj, v_proj, down_proj: {TRAINED} of {parameters} parameters trained"
    );
    assert!(method.ends_with(&adapted), "{method}");
    // A and B of three targets in two layers moved; the weights under them are those that it began with.
    let tensors = &report["checks"]["tensors"];
    assert_eq!((&tensors["compared"], &tensors["unchanged"]), (&12.into(), &serde_json::json!([])));
    assert!(tensors["frozen"].as_u64() > Some(12), "{tensors}");

    // PEFT's names, and nothing of the base.
    let adapter = PeftAdapter::open(&shop.path("whole/release/adapter")).expect("an adapter");
    assert_eq!(
        (adapter.config.r, adapter.config.alpha, adapter.base_model.as_deref()),
        (4, 8.0, Some("us/base"))
    );
    assert_eq!(adapter.config.target_modules, [LoraTarget::Q, LoraTarget::V, LoraTarget::Down]);
    let names = adapter.tensors.names();
    assert_eq!(names.len(), 12);
    assert!(names.iter().all(|name| name.starts_with("base_model.model.model.layers.")), "{names:?}");
    assert!(names.contains(&"base_model.model.model.layers.1.mlp.down_proj.lora_B.weight".to_owned()));
    // A checkpoint has the adapter alone: twelve bytes for each number of it, and names.
    let last = std::fs::read_dir(shop.path("whole/checkpoints")).expect("checkpoints").flatten().last();
    let checkpoint = last.expect("a checkpoint").path();
    let size = |name: &str| std::fs::metadata(checkpoint.join(name)).expect("a file").len();
    let bytes = size("adapter_model.safetensors") + size("optimiser.safetensors");
    assert!(
        bytes > 12 * TRAINED && bytes < 12 * TRAINED + 8000 && !checkpoint.join("model.safetensors").exists()
    );

    shop.succeed(&["verify", "whole"]);
    let weights = shop.bytes("whole/release/adapter/adapter_model.safetensors");
    let tampered = [&weights[..weights.len() - 1], &[weights[weights.len() - 1] ^ 1]].concat();
    std::fs::write(shop.path("whole/release/adapter/adapter_model.safetensors"), tampered).expect("changed");
    refused(&shop, &["verify", "whole"], 65, &["release/adapter/adapter_model.safetensors"]);
    std::fs::write(shop.path("whole/release/adapter/adapter_model.safetensors"), weights).expect("put back");

    // Merged, laid over the base, and merged by `convert`: one model.
    let laid = score(&shop, &["base", "--adapter", "whole/release/adapter"]);
    let merged = score(&shop, &["whole/release"]);
    assert!((laid - merged).abs() < 1e-5 && (laid - score(&shop, &["base"])).abs() > 1e-3, "{laid} {merged}");
    shop.succeed(&["convert", "base", "converted", "--adapter", "whole/release/adapter"]);
    assert_eq!(shop.bytes("converted/model.safetensors"), shop.bytes("whole/release/model.safetensors"));
    let prompt = ["--prompt", "7 + 1?", "--max-tokens", "4", "--json"];
    let write = |args: &[&str]| -> Value {
        let said = shop.succeed(&[&["generate"], args, &prompt].concat());
        serde_json::from_str::<Value>(&said).expect("JSON")["tokens"].clone()
    };
    assert_eq!(write(&["base", "--adapter", "whole/release/adapter"]), write(&["whole/release"]));
}

/// The adapter is compared with its checkpoint, and what it was merged into where the base is at hand.
#[test]
fn an_adapters_release_is_held_against_its_checkpoint_and_base() {
    let shop = shop();
    let run = ["run", "adapted.toml", "--output", "held", "--quiet"];
    shop.succeed(&run);
    let said = shop.succeed(&["verify", "held"]);
    assert!(said.contains("Weights: 12 released tensors") && said.contains("merged into"), "{said}");
    let again = ["verify", "held", "--replay", "1", "--seed", "3"];
    let said = shop.succeed(&again);
    assert!(said.contains("Weights: ") && !said.contains("Not compared"), "{said}");
    let path = shop.path("held/models/student/model.safetensors");
    let mut weights = shop.bytes("held/models/student/model.safetensors");
    let last = weights.len() - 1;
    weights[last] ^= 0x80;
    std::fs::write(&path, weights).expect("written");
    std::fs::remove_dir_all(shop.path("held/release")).expect("removed");
    std::fs::remove_file(shop.path("held/stages/release.json")).expect("removed");
    shop.succeed(&run);
    shop.succeed(&["verify", "held"]);
    refused(&shop, &again, 65, &["not-the-trained-weights", "has other numbers"]);
}

#[test]
fn an_adapted_run_that_is_killed_ends_with_the_same_bits_and_can_be_trained_on() {
    let shop = shop();
    shop.succeed(&["train", "adapted.toml", "--output", "straight", "--quiet", "--threads", "2"]);
    let args = ["train", "adapted.toml", "--output", "killed", "--quiet", "--threads", "1"];
    shop.kill_at(&args, "killed", "\"event\":\"checkpoint\"", 1);
    shop.succeed(&args);
    for file in ["model.safetensors", "adapter/adapter_model.safetensors"] {
        let of = |run: &str| shop.bytes(&format!("{run}/models/student/{file}"));
        assert_eq!(of("killed"), of("straight"), "{file}");
    }

    // Nobody has said under what licence this one came about.
    let unknown = ["--set", "student.adapter=killed/models/student/adapter", "--output", "unknown"];
    refused(
        &shop,
        &[&["train", "adapted.toml"][..], &unknown].concat(),
        77,
        &["killed/models/student/adapter"],
    );

    // Its adapter is a start like any other: at step 0 the loss is that of the end before.
    let more = ["--set", "student.adapter=straight/models/student/adapter", "--set", "train.max_steps=4"];
    shop.succeed(&[&["train", "adapted.toml", "--output", "further", "--quiet"][..], &more].concat());
    let (before, after) =
        (shop.json("straight/training/student.json"), shop.json("further/training/student.json"));
    let losses = |training: &Value| -> Vec<f64> {
        let points = training["validation"].as_array().expect("points");
        points.iter().map(|point| point["loss"].as_f64().expect("a loss")).collect()
    };
    let best = losses(&before).into_iter().skip(1).fold(f64::MAX, f64::min);
    assert_eq!(losses(&after)[0], best);
    let resolved = std::fs::read_to_string(shop.path("further/recipe.toml")).expect("the recipe");
    assert!(
        resolved.contains("lora_r = 4") && resolved.contains("adapter = \"straight/models"),
        "{resolved}"
    );
    // Nothing is trained again where nothing changed; another rank is another run.
    let said = text(&shop.run(&["train", "adapted.toml", "--output", "straight"]).stderr);
    assert!(said.contains("train: kept"), "{said}");
    let said =
        text(&shop.run(&["train", "adapted.toml", "--output", "straight", "--set", "train.lora_r=2"]).stderr);
    assert!(said.contains("train: done"), "{said}");
    let log = std::fs::read_to_string(shop.path("straight/events.jsonl")).expect("a log");
    assert!(log.contains("checkpoints_discarded"));
}

#[test]
fn an_adapter_that_does_not_fit_is_refused_wherever_it_is_named() {
    let shop = shop();
    let base = Decoder::random(std::sync::Arc::new(Device::cpu(1)), common::tiny(Family::Qwen3, 300, 128), 1);
    let config = stillroom_formats::LoraConfig {
        r: 2,
        alpha: 4.0,
        dropout: 0.0,
        target_modules: vec![LoraTarget::Q],
        use_rslora: false,
    };
    let other = base.with_new_adapter(config.clone(), 1).expect("an adapter");
    stillroom_formats::write_peft_dir(
        &shop.path("other"),
        &config,
        Some("them/other"),
        other.config(),
        &mut other.trained_tensors(),
        stillroom_formats::Encoding::F32,
    )
    .expect("it is written");
    let misfit = ["wrong-adapter", "does not fit this model", "it names `them/other`"];
    let set = ["--set", "train.lora_target_modules=[\"q_proj\"]", "--set", "train.lora_r=2", "--set"];
    let alpha = ["train.lora_alpha=4", "--set", "train.lora_dropout=0", "--set", "student.adapter=other"];
    refused(&shop, &[&["train", "adapted.toml", "--quiet"][..], &set, &alpha].concat(), 65, &misfit);
    std::fs::write(shop.path("text.txt"), "7 + 1? 8").expect("a text");
    refused(&shop, &["score", "base", "--adapter", "other", "--text", "text.txt"], 65, &misfit);
    refused(&shop, &["generate", "base", "--adapter", "other", "--prompt", "7"], 65, &misfit);
    refused(&shop, &["convert", "base", "out.gguf", "--adapter", "other"], 65, &misfit);
    assert!(!shop.path("out.gguf").exists());
    refused(
        &shop,
        &["score", "base", "--adapter", "base", "--text", "text.txt"],
        65,
        &["holds no LoRA adapter"],
    );
    refused(&shop, &["score", "base", "--adapter", "absent", "--text", "text.txt"], 74, &["no-model"]);
}

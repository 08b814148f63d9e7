//! Several teachers through the binary: gated each, mixed, stored or live, killed and continued, and refused.

mod common;
#[path = "common/shop.rs"]
mod shop;

use std::collections::BTreeMap;

use serde_json::Value;
use shop::{Shop, assets, text};
use stillroom_formats::parquet_rows::{read_logits, read_traces};
use stillroom_formats::{Family, Tokenizer};

const RECIPE: &str = r#"
name = "mixed"
seed = 5
TINY_STUDENT
num_key_value_heads = 1
QUICKSTART_TEACHER
max_tokens = 96
weight = 3
logits = { kind = "live" }
[[teacher.ensemble]]
path = "other"
model = "us:other"
TWELVE_STEPS
own_text_examples = 4
[policy.declare."us:other"]
owner = "us"
licence = "MIT"
"#;

/// A folder with the recipe and a teacher that is the quickstart's with a fifth of its numbers moved by up to a half.
fn shop() -> Shop {
    let shop = Shop::with_recipes(&[("mixed.toml", RECIPE)]);
    let teacher = assets().join("quickstart-teacher");
    shop.shape_of_the_teacher("other");
    let mut bytes = std::fs::read(teacher.join("model.safetensors")).expect("weights");
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    bytes[header..].iter_mut().step_by(10).for_each(|low| *low ^= 0x40);
    std::fs::write(shop.path("other/model.safetensors"), bytes).expect("weights are written");
    shop
}

fn parts(shop: &Shop, folder: &str) -> Vec<Vec<u8>> {
    let mut paths: Vec<_> = std::fs::read_dir(shop.path(folder))
        .expect(folder)
        .map(|entry| entry.expect("a file").path())
        .collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "parquet"));
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("a part")).collect()
}

#[test]
fn a_mixture_teaches_from_the_gate_to_the_release() {
    let shop = shop();
    let said = shop.succeed(&["run", "mixed.toml", "--output", "live", "--json", "--quiet"]);
    let report: Value = serde_json::from_str(&said).expect("a report");
    let method = report["curves"][0]["loss"].as_str().expect("what was trained on");
    let mixture = "stillroom:quickstart-teacher (75.0 %) + us:other (25.0 %)";
    assert!(method.ends_with(&format!("; the teacher is a mixture: {mixture}")), "{method}");
    let described = report["task_description"].as_str().expect("words");
    assert!(described.contains(mixture) && described.contains("of the first one"), "{described}");
    assert!(report["heldout_text"].as_str().is_some_and(|said| said.starts_with("the first teacher's")));
    // The first teacher is not the mixture, and nearer to it than the student is.
    let kl = |model: &str| report["models"][model]["kl_to_teacher"].as_f64().expect("nats");
    assert!(kl("teacher") > 1e-5 && kl("teacher") < kl("student"), "{} {}", kl("teacher"), kl("student"));
    assert!(kl("student") < kl("untrained"));
    assert!(report["own_text"]["student"]["reverse_kl"]["value"].as_f64().is_some_and(|nats| nats > 0.0));

    let mut written: BTreeMap<String, usize> = BTreeMap::new();
    for part in parts(&shop, "live/corpus/traces") {
        for trace in read_traces(part).expect("traces") {
            *written.entry(trace.teacher).or_default() += 1;
        }
    }
    let of = |teacher: &str| written.get(teacher).copied().unwrap_or(0);
    let (first, other) = (of("stillroom:quickstart-teacher"), of("us:other"));
    assert!(first + other == 46 && other >= 5 && first > other, "{written:?}");

    let licence = shop.json("live/licence.json");
    let rules = licence["rules"].as_array().expect("rules");
    for id in ["stillroom:quickstart-teacher", "us:other"] {
        assert!(rules.iter().any(|rule| rule["role"] == "teacher" && rule["id"] == id), "{licence}");
    }
    let manifest = text(&shop.bytes("live/release/provenance/manifest.json"));
    assert!(manifest.contains("us:other") && manifest.contains("stillroom:quickstart-teacher"), "{manifest}");
    let card = text(&shop.bytes("live/release/README.md"));
    assert!(
        card.contains("a mixture of `stillroom:quickstart-teacher` (75.0 %), `us:other` (25.0 %)"),
        "{card}"
    );
    shop.succeed(&["verify", "live"]);
}

#[test]
fn stored_distributions_are_the_mixtures_and_a_killed_run_ends_with_the_same_bits() {
    let shop = shop();
    let cached = "teacher.logits={ kind = \"top_k\", k = 8 }";
    let args = |output: &'static str, threads: &'static str| {
        let run = ["train", "mixed.toml", "--quiet", "--output", output, "--threads", threads];
        [&run[..], &["--set", cached, "--set", "prompts.num_examples=20", "--set", "train.max_steps=8"]]
            .concat()
    };
    shop.succeed(&args("whole", "2"));
    let (info, rows) = read_logits(parts(&shop, "whole/corpus/logits").remove(0)).expect("distributions");
    assert_eq!(info.teacher, "stillroom:quickstart-teacher (75.0 %) + us:other (25.0 %)");
    assert!(rows.iter().flat_map(|row| &row.rows).all(|row| row.ids.len() == 8 && row.teacher_entropy > 0.0));
    shop.kill_at(&args("killed", "1"), "killed", "\"stage\":\"teach\",\"part\":0", 1);
    shop.kill_at(&args("killed", "1"), "killed", "\"stage\":\"logits\",\"part\":0", 1);
    shop.kill_at(&args("killed", "1"), "killed", "\"event\":\"checkpoint\"", 1);
    shop.succeed(&args("killed", "2"));
    assert_eq!(shop.weights("killed"), shop.weights("whole"), "the bits differ");

    // Another weight is another mixture: the teachers write and are asked again.
    let again = [&args("whole", "2")[..], &["--set", "teacher.weight=1"]].concat();
    let before = parts(&shop, "whole/corpus/logits");
    shop.succeed(&again);
    assert_ne!(parts(&shop, "whole/corpus/logits"), before);
    assert_ne!(shop.weights("killed"), shop.weights("whole"));
}

#[test]
fn the_same_teacher_twice_trains_as_it_does_alone() {
    let shop = shop();
    let validation = |output: &str| -> Vec<f64> {
        let training = shop.json(&format!("{output}/training/student.json"));
        let points = training["validation"].as_array().expect("points");
        points.iter().map(|point| point["loss"].as_f64().expect("a loss")).collect()
    };
    let twice = "teacher.ensemble=[{ path = \"other\", model = \"us:other\", weight = 2 }]";
    let first = ["--set", "teacher.path=other", "--set", "teacher.model=us:other"];
    let train = |output: &'static str, set: &[&str]| {
        shop.succeed(&[&["train", "mixed.toml", "--quiet", "--output", output], &first[..], set].concat());
    };
    train("twice", &["--set", twice]);
    let alone = text(&shop.bytes("mixed.toml")).replace("weight = 3\n", "");
    let alone = alone.replace("[[teacher.ensemble]]\npath = \"other\"\nmodel = \"us:other\"\n", "");
    std::fs::write(shop.path("mixed.toml"), alone).expect("a recipe is written");
    train("alone", &[]);
    let (twice, alone) = (validation("twice"), validation("alone"));
    assert!(alone.len() > 1 && alone[alone.len() - 1] < alone[0]);
    for (twice, alone) in twice.iter().zip(&alone) {
        assert!((twice - alone).abs() < 1e-3 * alone, "{twice} against {alone}");
    }
}

#[test]
fn a_plan_counts_every_teacher() {
    let shop = shop();
    let plan = |set: &[&str]| -> Value {
        let said = shop.succeed(&[&["plan", "mixed.toml", "--json"], set].concat());
        serde_json::from_str::<Value>(&said).expect("JSON")["estimate"].clone()
    };
    let two = plan(&[]);
    let three = plan(&[
        "--set",
        "teacher.ensemble=[{ path = \"other\", model = \"us:other\" }, { path = \"other\", model = \"us:other\" }]",
    ]);
    let stage = |plan: &Value, name: &str| {
        let stages = plan["stages"].as_array().expect("stages").clone();
        stages.into_iter().find(|stage| stage["stage"] == name).expect("a stage")
    };
    let memory = |plan: &Value, name: &str| stage(plan, name)["peak_memory_bytes"].as_u64().expect("bytes");
    for name in ["teach", "train", "evaluate"] {
        assert!(memory(&three, name) > memory(&two, name), "{name}");
    }
    let n = two["teacher_parameters"].as_u64().expect("a number");
    assert_eq!(two["further_teachers_parameters"], serde_json::json!([n]));
    let words = shop.succeed(&["plan", "mixed.toml"]);
    assert!(words.contains(&format!("and {n} parameters")), "{words}");
}

#[test]
fn every_teacher_passes_the_gate_and_reads_the_same_tokens_or_nothing_is_written() {
    let shop = shop();
    let refused = |set: &str, exit: i32, said: &[&str]| {
        let output = shop.run(&["run", "mixed.toml", "--output", "none", "--set", set]);
        let shown = text(&output.stderr);
        assert_eq!(output.status.code(), Some(exit), "{set}: {shown}");
        assert!(said.iter().all(|part| shown.contains(part)), "{set}: {shown}");
    };
    let unknown = "teacher.ensemble=[{ path = \"other\", model = \"them:other\" }]";
    refused(unknown, 77, &["them:other", "\n  fix: "]);
    let left: Vec<_> = std::fs::read_dir(shop.path("none")).expect("a folder").flatten().collect();
    assert!(left.len() == 1 && left[0].file_name() == "licence.json", "{left:?}");
    std::fs::remove_dir_all(shop.path("none")).expect("it is removed");

    let tokenizer = assets().join("experiments-tokenizer/tokenizer.json");
    let tokenizer = std::fs::read_to_string(tokenizer).expect("a tokenizer");
    let tokenizer = Tokenizer::from_json_files(&tokenizer, None, None).expect("a tokenizer");
    let config = common::tiny(Family::Llama, tokenizer.vocab_size(), 128);
    std::fs::create_dir(shop.path("foreign")).expect("a folder");
    common::write_random(&shop.path("foreign"), config, Some(&tokenizer));
    let foreign = "teacher.ensemble=[{ path = \"foreign\", model = \"us:other\" }]";
    let said =
        ["error[wrong-vocabulary]", "have different tokenizers", "--set teacher.ensemble", "\n  fix: "];
    refused(foreign, 78, &said);
    let planned = shop.run(&["plan", "mixed.toml", "--set", foreign]);
    assert!(!planned.status.success() && text(&planned.stderr).contains("wrong-vocabulary"));
    let missing = "teacher.ensemble=[{ path = \"nowhere\", model = \"us:other\" }]";
    refused(missing, 74, &["error[no-model]", "a further teacher is not at"]);
    refused("train.loss_functions=[{ function = \"gold\" }]", 78, &["compare a student with one teacher"]);
    assert!(!shop.path("none").exists());
}

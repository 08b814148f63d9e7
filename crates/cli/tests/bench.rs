//! `stillroom bench` through the binary: its figures go together, and training trains.

mod common;

use std::process::{Command, Output};

use serde_json::Value;
use stillroom_formats::Family;

const SIZES: &[&str] =
    &["--hidden", "32", "--layers", "2", "--heads", "4", "--kv-heads", "2", "--ffn", "48", "--vocab", "120"];
/// Numbers in the products of such a model: q, k and v; attention's output; feed-forward; head.
const IN_PRODUCTS: u64 = 2 * (64 * 32 + 32 * 32 + 3 * 48 * 32) + 120 * 32;

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_stillroom")).arg("bench").args(args).output().expect("the binary runs")
}

fn figures(args: &[&str]) -> Value {
    let output = run(&[args, &["--threads", "2", "--json"]].concat());
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON and nothing else")
}

fn number(figures: &Value, name: &str) -> f64 {
    figures[name].as_f64().unwrap_or_else(|| panic!("`{name}` is a number: {figures}"))
}

/// What holds of every kind of work: rates are work over the median of the steps.
fn check(figures: &Value, work: &str, tokens_per_step: u64, steps: usize) {
    assert_eq!(figures["work"], work);
    assert_eq!((&figures["threads"], &figures["tokens_per_step"]), (&2.into(), &tokens_per_step.into()));
    assert!(figures["cpu"].is_string() && figures["instruction_set"].is_string(), "{figures}");
    let mut seconds: Vec<f64> = figures["step_seconds"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|s| s.as_f64().expect("a number"))
        .collect();
    seconds.sort_by(f64::total_cmp);
    assert!(seconds.len() == steps && steps % 2 == 1 && seconds[0] > 0.0, "{figures}");
    let median = seconds[steps / 2];
    let close = |name: &str, expected: f64| {
        assert!((number(figures, name) / expected - 1.0).abs() < 1e-9, "{name}: {figures}")
    };
    close("tokens_per_second", tokens_per_step as f64 / median);
    let flops = number(figures, "algorithmic_flops_per_step");
    close("fma_share", flops / median / number(figures, "fma_peak_flops"));
    assert!(number(figures, "fma_share") < 1.0, "{figures}");
    if cfg!(target_os = "linux") {
        let (whole, steady) = ("peak_resident_bytes", "steady_peak_resident_bytes");
        assert!(number(figures, whole) > 1e6, "{figures}");
        assert!(figures[steady].is_null() || number(figures, steady) <= number(figures, whole), "{figures}");
    }
}

fn flops(figures: &Value) -> u64 {
    figures["algorithmic_flops_per_step"].as_u64().expect("a whole number")
}

#[test]
fn training_lowers_the_loss_and_a_masked_row_costs_less() {
    let sizes = [&["train", "--batch", "3", "--sequence", "16", "--steps", "5"], SIZES].concat();
    let all = figures(&sizes);
    check(&all, "train", 48, 5);
    let model = serde_json::json!({
        "source": "random", "family": "llama", "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48,
        "vocab_size": 120, "tie_word_embeddings": false,
        // The embedding, and the norms.
        "parameters": IN_PRODUCTS + 120 * 32 + 5 * 32,
    });
    assert_eq!(all["model"], model);
    let attention = 3 * 2 * 4 * 32 * (1..=16).sum::<u64>();
    assert_eq!(flops(&all), 3 * (6 * IN_PRODUCTS * 16 + attention));
    assert_eq!(all["supervised_tokens_per_step"], 48);
    assert!(number(&all, "last_loss") < number(&all, "first_loss") - 0.01, "{all}");

    let masked = figures(&[&sizes[..], &["--masked", "0.5"]].concat());
    check(&masked, "train", 48, 5);
    assert_eq!(masked["supervised_tokens_per_step"], 24);
    assert!(flops(&masked) < flops(&all), "{masked}");

    let sparse = figures(&[&sizes[..], &["--loss", "sparse_kd", "--draws", "6", "--tied"]].concat());
    check(&sparse, "train", 48, 5);
    assert_eq!(
        (&sparse["loss"], &sparse["model"]["tie_word_embeddings"]),
        (&"sparse_kd".into(), &true.into())
    );
    assert_eq!(flops(&sparse), flops(&all), "the head is a product whether tied or not");
    assert!(number(&sparse, "last_loss") < number(&sparse, "first_loss") - 0.01, "{sparse}");
    assert!(number(&sparse, "last_loss") > 0.0, "a divergence is not negative: {sparse}");
}

#[test]
fn scoring_is_a_third_of_training() {
    let sizes = [&["score", "--batch", "3", "--sequence", "16", "--steps", "5"], SIZES].concat();
    let said = figures(&sizes);
    check(&said, "score", 48, 5);
    let attention = 2 * 4 * 32 * (1..=16).sum::<u64>();
    assert_eq!(flops(&said), 3 * (2 * IN_PRODUCTS * 16 + attention));
    // Tokens are drawn evenly: nothing can be known of them.
    assert!(number(&said, "nll_nats_per_token") > 120f64.ln() - 0.5, "{said}");
}

#[test]
fn decoding_counts_new_tokens_and_prefill_apart() {
    let sizes = [&["decode", "--batch", "2", "--prompt-tokens", "4", "--steps", "3"], SIZES].concat();
    // Enough that writing takes longer than a busy machine holds up the pass over the prompts.
    let said = figures(&[&sizes[..], &["--tokens", "1500"]].concat());
    check(&said, "decode", 3000, 3);
    let attention = 2 * 4 * 32 * (5..=1504).sum::<u64>();
    assert_eq!(flops(&said), 2 * (2 * IN_PRODUCTS * 1500 + attention));
    let prefill = 8.0 / number(&said, "prefill_seconds");
    assert!((number(&said, "prefill_tokens_per_second") / prefill - 1.0).abs() < 1e-9, "{said}");
    assert_eq!((&said["sequence"], &said["prompt_tokens"]), (&1504.into(), &4.into()));

    let drawn = figures(&[&sizes[..], &["--sequence", "1504", "--temperature", "0.5"]].concat());
    check(&drawn, "decode", 3000, 3);
    assert_eq!(
        (&drawn["temperature"], &drawn["algorithmic_flops_per_step"]),
        (&0.5.into(), &flops(&said).into())
    );
}

#[test]
fn a_model_on_disk_needs_no_tokenizer_and_its_context_is_a_limit() {
    let dir = tempfile::tempdir().expect("a folder");
    common::write_random(dir.path(), common::tiny(Family::Qwen2, 50, 12), None);
    let path = dir.path().to_str().expect("a path");
    let run = |args: &[&str]| run(&[args, &["--model", path, "--batch", "2", "--steps", "1"]].concat());

    let fits = run(&["score", "--sequence", "12"]);
    let said = String::from_utf8_lossy(&fits.stdout);
    assert!(fits.status.success(), "{}", String::from_utf8_lossy(&fits.stderr));
    for expected in ["score, 2 × 12 tokens a step", path, "tokens/s", "GFLOP/s", "nats per token"] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    // In decoding, the last token written takes a place too.
    for args in [&["score", "--sequence", "13"][..], &["decode", "--sequence", "12", "--prompt-tokens", "4"]]
    {
        let refused = run(args);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains("sequences of 13 tokens do not fit the model's context of 12\n"), "{said}");
        assert!(said.contains(path) && said.contains("\n  fix: ") && refused.stdout.is_empty(), "{said}");
    }
}

#[test]
fn an_adapter_has_optimiser_memory_for_itself_alone() {
    let sizes = [&["train", "--batch", "3", "--sequence", "16", "--steps", "5"], SIZES].concat();
    let all = figures(&sizes);
    let adapter = figures(&[&sizes[..], &["--lora-r", "4"]].concat());
    check(&adapter, "train", 48, 5);
    assert_eq!((&all["lora_r"], &all["trained_parameters"]), (&Value::Null, &all["model"]["parameters"]));
    // Of width 32: q and o of 32, k and v of 16, gate, up and down of 48.
    let numbers = 2 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48));
    assert_eq!((&adapter["lora_r"], &adapter["trained_parameters"]), (&4.into(), &numbers.into()));
    assert!(flops(&adapter) < flops(&all), "{adapter}");
    assert!(number(&adapter, "last_loss") < number(&adapter, "first_loss"), "{adapter}");
    if !cfg!(target_os = "linux") {
        return;
    }
    let sizes = ["train", "--hidden", "256", "--layers", "4", "--heads", "4", "--ffn", "704", "--steps", "1"];
    let large = |more: &[&str]| figures(&[&sizes[..], &["--vocab", "24576", "--batch", "1"], more].concat());
    let (all, adapter) = (large(&[]), large(&["--lora-r", "4"]));
    let saved = number(&all, "peak_resident_bytes") - number(&adapter, "peak_resident_bytes");
    let untrained = number(&all, "trained_parameters") - number(&adapter, "trained_parameters");
    let ratio = saved / (12.0 * untrained);
    assert!((0.85..1.15).contains(&ratio), "gradients and two moments of frozen weights: {ratio}");
}

#[test]
fn the_memory_predicted_is_the_memory_measured() {
    if !cfg!(target_os = "linux") {
        return;
    }
    // Large enough for weights, activations and logits to outweigh the program.
    let sizes = ["--hidden", "256", "--layers", "4", "--heads", "4", "--ffn", "704", "--steps", "1"];
    for work in [
        &["train", "--vocab", "8192", "--batch", "2"][..],
        &["train", "--vocab", "24576", "--batch", "2", "--lora-r", "16"],
        &["train", "--vocab", "24576", "--tied", "--batch", "2"],
        &["score", "--vocab", "24576", "--batch", "4"],
        &["decode", "--vocab", "24576", "--tied", "--batch", "24", "--tokens", "40"],
    ] {
        let said = figures(&[work, &sizes].concat());
        let ratio = number(&said, "predicted_resident_bytes") / number(&said, "peak_resident_bytes");
        assert!((ratio - 1.0).abs() <= 0.15, "{work:?}: {ratio}: {said}");
    }
}

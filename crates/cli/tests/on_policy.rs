//! On-policy training through the binary: mixed and alone, killed and continued, of problems and of texts, refused.

#[path = "common/shop.rs"]
mod shop;

use serde_json::Value;
use shop::Shop;

const RECIPE: &str = r#"
name = "own"
seed = 5
TINY_STUDENT
num_key_value_heads = 1
QUICKSTART_TEACHER
max_tokens = 96
logits = { kind = "live" }
[prompts]
task = "word_problems"
num_examples = 48
num_validation = 6
[curate]
verify = false
[train]
learning_rate = 1e-2
max_steps = 14
per_device_train_batch_size = 2
max_length = 256
save_steps = 2
eval_steps = 7
logging_steps = 2
on_policy_fraction = 0.5
max_new_tokens = 24
rollouts_per_step = 6
replay_buffer_size = 12
loss_functions = [{ function = "forward_kl" }, { function = "sampled_reverse_kl", weight = 0.5 }]
[evaluate]
num_examples = 10
controls = ["traces_only"]
own_text_examples = 8
"#;

fn shop() -> Shop {
    Shop::with_recipes(&[("own.toml", RECIPE)])
}

#[test]
fn a_mixed_run_reports_how_it_was_trained_and_each_model_on_its_own_text() {
    let shop = shop();
    let report = shop.succeed(&["run", "own.toml", "--output", "mixed", "--json", "--quiet"]);
    let report: Value = serde_json::from_str(&report).expect("stdout holds the report and nothing else");
    let method = report["curves"][0]["loss"].as_str().expect("what was trained on");
    assert!(method.starts_with("forward_kl + 0.5 sampled_reverse_kl"), "{method}");
    assert!(
        method.ends_with("; 50 % of the steps on the student's own text, 50 % of it replayed"),
        "{method}"
    );
    let control = report["curves"][1]["loss"].as_str().expect("what a control was trained on");
    assert!(control.starts_with("hard_labels") && !control.contains("own text"), "{control}");
    let own = report["own_text"].as_object().expect("own texts");
    assert_eq!(own.keys().collect::<Vec<_>>(), ["student", "traces_only", "untrained"]);
    for (model, own) in own {
        assert_eq!(own["texts"], 8);
        let rows = shop.json(&format!("mixed/evaluation/own_text/{model}.json"));
        let rows = rows["value"].as_array().expect("a row for each text");
        let all: Vec<f64> = rows
            .iter()
            .flat_map(|row| row["reverse_kl"].as_array().expect("a number for each token"))
            .map(|nats| nats.as_f64().expect("nats"))
            .collect();
        assert_eq!(own["tokens"], all.len());
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        assert!((own["reverse_kl"]["value"].as_f64().expect("a mean") - mean).abs() < 1e-9 * mean);
        let quarters = own["reverse_kl_by_quarter"].as_array().expect("quarters");
        assert!(quarters.len() == 4 && quarters.iter().all(|quarter| quarter["value"].is_number()), "{own}");
    }
    let page = std::fs::read_to_string(shop.path("mixed/report.html")).expect("a page");
    assert!(page.contains("On their own text") && page.contains("Last"), "the page shows them");
    let curve = shop.json("mixed/training/student.json")["curve"].clone();
    let points = curve.as_array().expect("points").iter().filter_map(|point| point.get("rollouts"));
    let total = |key: &str| points.clone().map(|point| point[key].as_u64().expect("a count")).sum::<u64>();
    assert!(total("written") > 0 && total("replayed") > 0, "{curve}");
    shop.succeed(&["verify", "mixed"]);
}

#[test]
fn a_run_without_given_text_needs_no_trace_and_survives_kills_with_the_same_bits() {
    let shop = shop();
    let always = ["--set", "train.on_policy_fraction=1", "--set", "evaluate.controls=[]"];
    let args = |output: &'static str, threads: &'static str| {
        [&["train", "own.toml", "--quiet", "--output", output, "--threads", threads][..], &always].concat()
    };
    shop.succeed(&args("whole", "2"));
    assert!(!shop.path("whole/corpus/traces").exists() && !shop.path("whole/corpus/curated").exists());
    let training = shop.json("whole/training/student.json");
    assert_eq!((&training["steps"], &training["examples"]), (&Value::from(14), &Value::from(48)));
    let validation = training["validation"].as_array().expect("points");
    assert!(validation.iter().all(|point| point["rollouts"]["new_tokens"].is_number()), "{validation:?}");
    for n in [2, 5] {
        shop.kill_at(&args("killed", "1"), "killed", "\"event\":\"checkpoint\"", n);
    }
    shop.succeed(&args("killed", "2"));
    assert_eq!(shop.weights("killed"), shop.weights("whole"), "the bits differ");

    let plan = |set: &[&str]| -> Value {
        let said = shop.succeed(&[&["plan", "own.toml", "--json"][..], set].concat());
        serde_json::from_str(&said).expect("JSON")
    };
    let stages = |plan: &Value| plan["estimate"]["stages"].as_array().expect("stages").clone();
    let train =
        |plan: &Value| stages(plan).into_iter().find(|stage| stage["stage"] == "train").expect("train");
    let (own, off) = (plan(&always), plan(&["--set", "train.on_policy_fraction=0", "--set", FORWARD]));
    assert!(stages(&own).iter().all(|stage| stage["stage"] != "teach"), "{own}");
    let memory = |plan: &Value| train(plan)["peak_memory_bytes"].as_u64().expect("bytes");
    assert!(memory(&own) > memory(&off), "rollouts take memory");
}

const FORWARD: &str = "train.loss_functions=[{ function = \"forward_kl\" }]";

#[test]
fn a_student_continues_the_beginnings_of_texts() {
    let shop = shop();
    let lines: Vec<String> = (0..40).map(|i| format!("{{\"id\": \"t{i}\", \"text\": \"Tom has {i} red apples and buys 3 more of them at the shop. He eats 2 apples on the way home.\"}}")).collect();
    std::fs::write(shop.path("texts.jsonl"), lines.join("\n")).expect("texts are written");
    let recipe = std::fs::read_to_string(shop.path("own.toml")).expect("the recipe");
    let recipe = recipe.replace("task = \"word_problems\"", "kind = \"text\"\npath = \"texts.jsonl\"");
    std::fs::write(shop.path("texts.toml"), recipe).expect("a recipe is written");
    let sets =
        ["--set", "train.lmbda=1", "--set", "evaluate.controls=[]", "--set", "prompts.num_examples=20"];
    let text = std::fs::read_to_string(shop.path("texts.toml")).expect("the recipe");
    std::fs::write(shop.path("texts.toml"), text.replace("on_policy_fraction = 0.5\n", "")).expect("written");
    shop.run(&[&["evaluate", "texts.toml", "--output", "texts", "--quiet"][..], &sets].concat());
    let curve = shop.json("texts/training/student.json")["curve"].clone();
    assert!(curve[0]["rollouts"]["unique_prompts"].as_u64().is_some_and(|n| n > 5), "{curve}");
    // What all training was about is what the run is judged by.
    let judged = shop.json("texts/report.json")["checks"]["heldout_loss"].clone();
    assert_eq!((&judged["of"], &judged["documents"]), (&Value::from("own_text"), &Value::from(4)));
}

#[test]
fn what_does_not_go_together_is_refused_with_its_key() {
    let shop = shop();
    let off = "train.on_policy_fraction=0";
    let refused: [(&[&str], &str, &str); 8] = [
        (&[off], "set `on_policy_fraction`", "`reverse_kl` itself"),
        (&["teacher.logits={ kind = \"top_k\" }"], "needs a live teacher", "kind = \"live\""),
        (&["teacher.logits={ kind = \"top_k\" }", FORWARD], "needs a live teacher", "kind = \"live\""),
        (&["train.lmbda=0.5"], "another name of `on_policy_fraction`", "remove one"),
        (&["train.rollout_temperature=0.7"], "`rollout_temperature` 1", "docs/on-policy.md"),
        (
            &["train.loss_functions=[{ function = \"hard_labels\" }]"],
            "hard labels never do",
            "loss_functions",
        ),
        (
            &["train.loss_functions=[{ function = \"sampled_reverse_kl\" }]"],
            "from which no loss learns",
            "docs/on-policy.md",
        ),
        (&["train.on_policy_fraction=1.5"], "lies between 0 and 1", "bounds"),
    ];
    for (sets, cause, fix) in refused {
        let mut args = vec!["run", "own.toml", "--output", "refused"];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        let output = shop.run(&args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{sets:?}: {said}");
        assert!(said.contains(cause) && said.contains(fix), "{sets:?}: {said}");
        assert!(!shop.path("refused").exists(), "before anything is written");
    }
    let recipe = std::fs::read_to_string(shop.path("own.toml")).expect("the recipe");
    let without = recipe.replace("on_policy_fraction = 0.5\n", "").replace("max_new_tokens = 24\n", "");
    std::fs::write(shop.path("without.toml"), without).expect("a recipe is written");
    let output = shop.run(&["plan", "without.toml"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("`train.rollouts_per_step` without `train.on_policy_fraction`"), "{said}");
    // Off-policy with the other keys left in place.
    shop.succeed(&["plan", "own.toml", "--set", off, "--set", FORWARD]);
}

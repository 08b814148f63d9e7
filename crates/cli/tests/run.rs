//! The whole line through the binary: a teacher made here, distilled into a student, killed, continued, refused.

#[path = "common/shop.rs"]
mod shop;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;
use shop::{kill_at, recipe, stillroom, succeed, text, weights};
use stillroom_core::Digest;

const TEACHER: &str = r#"
name = "tiny-teacher"
[student]
kind = "from_scratch"
architecture = "qwen3"
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
intermediate_size = 64
tokenizer = "ASSETS/quickstart-tokenizer"
[prompts]
task = "word_problems"
num_examples = 300
num_validation = 16
[train]
learning_rate = 1e-2
num_train_epochs = 3
per_device_train_batch_size = 4
max_length = 256
[evaluate]
num_examples = 16
max_tokens = 4
"#;

const STUDENT: &str = r#"
name = "tiny"
seed = 5
TINY_STUDENT
num_key_value_heads = 1
[teacher]
kind = "local"
path = "teacher/release"
model = "us:tiny-teacher"
max_tokens = 96
temperature = 1.0
logits = { kind = "random_sampling", draws = 8 }
[prompts]
task = "word_problems"
num_examples = 300
num_validation = 32
[curate]
verify = false
[train]
learning_rate = 1e-2
num_train_epochs = 2
per_device_train_batch_size = 2
max_length = 256
save_steps = 3
eval_steps = 6
logging_steps = 1
loss_functions = [{ function = "forward_kl" }, { function = "hard_labels", weight = 0.1 }]
[evaluate]
num_examples = 64
[policy.declare."us:tiny-teacher"]
owner = "us"
licence = "Apache-2.0"
"#;

/// The folder with a trained teacher and the student's recipe. Tests run in processes of their own: the first
/// one makes the teacher, the others find it, as long as the program is the same.
fn workshop() -> &'static Path {
    static SHOP: OnceLock<PathBuf> = OnceLock::new();
    SHOP.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("workshop");
        std::fs::create_dir_all(&dir).expect("a folder for the tests");
        let lock = File::create(dir.join("lock")).expect("a lock");
        lock.lock().expect("the lock is ours");
        let age = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified());
        let program = age(Path::new(env!("CARGO_BIN_EXE_stillroom"))).expect("the binary is there");
        let made = age(&dir.join("teacher/release/config.json"));
        if made.is_ok_and(|made| made > program) {
            return dir;
        }
        drop(std::fs::remove_dir_all(dir.join("teacher")));
        std::fs::write(dir.join("teacher.toml"), recipe(TEACHER)).expect("a recipe is written");
        std::fs::write(dir.join("tiny.toml"), recipe(STUDENT)).expect("a recipe is written");
        succeed(&dir, &["run", "teacher.toml", "--output", "teacher", "--quiet"]);
        dir
    })
}

/// A run directory of a test's own, empty at the start.
fn fresh(dir: &Path, name: &str) {
    drop(std::fs::remove_dir_all(dir.join(name)));
}

#[test]
fn a_run_goes_from_recipe_to_release_and_is_kept() {
    let dir = workshop();
    fresh(dir, "whole");
    let report = succeed(dir, &["run", "tiny.toml", "--output", "whole", "--json", "--quiet"]);
    let report: Value = serde_json::from_str(&report).expect("stdout holds the report and nothing else");
    for model in ["teacher", "student", "untrained", "traces_only", "undistilled", "undistilled_equal_tokens"]
    {
        assert!(report["models"][model]["accuracy"].is_number(), "{model}: {report}");
    }
    assert_eq!(report["models"]["teacher"]["kl_to_teacher"], 0.0);
    let kl = |model: &str| report["models"][model]["kl_to_teacher"].as_f64().expect("a divergence");
    assert!(kl("student") < kl("untrained"), "{} {}", kl("student"), kl("untrained"));
    assert_eq!(report["checks"]["student_tensors_changed"], true);
    assert_eq!(report["checks"]["heldout_loss_fell"], true);
    assert_eq!(report["heldout_examples"], 64);
    // The controls took the same number of steps; a student that only saw answers saw as many tokens.
    let steps = |model: &str| report["models"][model]["training"]["steps"].as_u64().expect("steps");
    assert_eq!(steps("student"), steps("traces_only"));
    assert_eq!(steps("student"), steps("undistilled_equal_tokens"));

    let again = stillroom(dir, &["run", "tiny.toml", "--output", "whole"]);
    assert!(again.status.success());
    let said = text(&again.stderr);
    assert!(!said.contains("done in") && said.matches(": kept").count() > 10, "{said}");

    succeed(dir, &["verify", "whole"]);
    succeed(dir, &["verify", "whole/release"]);
    let of = |model: &str| {
        let said = succeed(dir, &["generate", model, "--prompt", "Tom has", "--max-tokens", "8", "--json"]);
        serde_json::from_str::<Value>(&said).expect("JSON")["tokens"].clone()
    };
    assert_eq!(of("whole/release"), of("whole/release/model.gguf"));
    // Every number of the report comes from rows that the manifest names.
    for rows in ["evaluation/student/measurement.json", "training/student.json", "models/untouched.txt"] {
        let path = dir.join("whole").join(rows);
        let before = std::fs::read(&path);
        std::fs::write(&path, "{}").expect("a file is changed");
        let tampered = stillroom(dir, &["verify", "whole"]);
        assert_eq!(tampered.status.code(), Some(65), "{rows}");
        assert!(text(&tampered.stderr).contains(rows), "{}", text(&tampered.stderr));
        match before {
            Ok(before) => std::fs::write(&path, before).expect("a file is put back"),
            Err(_) => std::fs::remove_file(&path).expect("a file is removed"),
        }
    }
    let release = dir.join("whole/release/config.json");
    let mut config = std::fs::read(&release).expect("a config");
    config.push(b'\n');
    std::fs::write(&release, config).expect("the config is changed");
    let tampered = stillroom(dir, &["verify", "whole"]);
    assert_eq!(tampered.status.code(), Some(65));
    assert!(text(&tampered.stderr).contains("release/config.json"), "{}", text(&tampered.stderr));
}

#[test]
fn a_killed_run_and_one_thread_end_with_the_same_bits() {
    let dir = workshop();
    ["straight", "alone", "killed"].iter().for_each(|name| fresh(dir, name));
    succeed(dir, &["train", "tiny.toml", "--output", "straight", "--quiet", "--threads", "2"]);
    succeed(dir, &["train", "tiny.toml", "--output", "alone", "--quiet", "--threads", "1"]);
    let expected = weights(dir, "straight");
    assert_eq!(weights(dir, "alone"), expected, "one thread and two differ");
    let args = ["train", "tiny.toml", "--output", "killed", "--quiet", "--threads", "2"];
    let log = dir.join("killed/events.jsonl");
    for event in
        ["stage_started", "part_written", "\"stage\":\"logits\"", "\"event\":\"checkpoint\"", "control-"]
    {
        kill_at(dir, &args, &log, event, 1);
    }
    succeed(dir, &args);
    assert_eq!(weights(dir, "killed"), expected, "killed five times and continued, the bits differ");
    for model in ["traces_only", "undistilled", "undistilled_equal_tokens"] {
        let of = |output: &str| {
            std::fs::read(dir.join(output).join("models").join(model).join("model.safetensors"))
        };
        assert_eq!(of("killed").expect("weights"), of("straight").expect("weights"), "{model}");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_exits_130_and_keeps_what_it_has() {
    let dir = workshop();
    fresh(dir, "interrupted");
    let args = ["teach", "tiny.toml", "--output", "interrupted"];
    let child = Command::new(env!("CARGO_BIN_EXE_stillroom"))
        .args(args)
        .current_dir(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let begun = Instant::now();
    let log = dir.join("interrupted/events.jsonl");
    while !std::fs::read_to_string(&log).is_ok_and(|text| text.contains("part_written")) {
        assert!(begun.elapsed() < Duration::from_secs(120), "no part came");
        std::thread::yield_now();
    }
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill is there");
    assert!(sent.success());
    let output = child.wait_with_output().expect("the child ends");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.ends_with("interrupted: the same command continues where it stopped\n"), "{said}");
    let part = dir.join("interrupted/corpus/traces/part-000000.parquet");
    let written = std::fs::metadata(&part).expect("a part").modified().expect("a time");
    succeed(dir, &args);
    assert_eq!(std::fs::metadata(&part).expect("a part").modified().expect("a time"), written);
}

#[test]
fn a_changed_recipe_runs_again_what_it_makes_stale_and_buys_nothing_twice() {
    let dir = workshop();
    fresh(dir, "changed");
    succeed(dir, &["train", "tiny.toml", "--output", "changed", "--quiet"]);
    let first = weights(dir, "changed");
    let set = ["train", "tiny.toml", "--output", "changed", "--set", "train.seed=6"];
    let output = stillroom(dir, &set);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("teach: kept") && said.contains("logits: kept") && said.contains("train: done"),
        "{said}"
    );
    assert_ne!(weights(dir, "changed"), first);
}

#[test]
fn a_teacher_that_may_not_teach_leaves_only_the_decision() {
    let dir = workshop();
    let service = "[teacher]\nkind = \"openai\"\nmodel = \"openai:gpt-4o\"\n\
        endpoints = [{ base_url = \"https://api.openai.com/v1\" }]\n[prompts]\npath = \"p.jsonl\"\n";
    std::fs::write(dir.join("service.toml"), service).expect("a file");
    let cases: [(&[&str], &str); 4] = [
        (&["run", "tiny.toml", "--set", "teacher.model=meta-llama/Llama-2-7b-hf"], "1.b.v"),
        (&["run", "tiny.toml", "--set", "teacher.model=Qwen/Qwen2-72B-Instruct"], "Qwen2"),
        (&["teach", "service.toml"], "OpenAI"),
        (&["run", "tiny.toml", "--set", "teacher.model=nobody/knows-this"], "nobody/knows-this"),
    ];
    for (i, (set, named)) in cases.iter().enumerate() {
        let output = format!("refused-{i}");
        fresh(dir, &output);
        let args = [set, &["--output", &output][..]].concat();
        let refused = stillroom(dir, &args);
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(77), "{set:?}: {said}");
        assert!(said.starts_with("error[licence]") && said.contains(named), "{set:?}: {said}");
        assert!(refused.stdout.is_empty());
        let left: Vec<_> = std::fs::read_dir(dir.join(&output)).expect("the folder").flatten().collect();
        assert!(left.len() == 1 && left[0].file_name() == "licence.json", "{set:?}: {left:?}");
    }
}

#[test]
fn a_run_fails_when_either_check_fails_and_says_which() {
    let dir = workshop();
    fresh(dir, "unchecked");
    let short =
        ["run", "tiny.toml", "--output", "unchecked", "--quiet", "--json", "--set", "evaluate.controls=[]"];
    // A step too small to move weights near 1; one too large to learn from; one held-out problem, which
    // is too little to claim anything.
    let cases: [(&[&str], bool, bool); 3] = [
        (&["--set", "train.learning_rate=1e-9", "--set", "train.max_steps=2"], false, true),
        (&["--set", "train.learning_rate=3", "--set", "train.max_steps=4"], true, false),
        (&["--set", "evaluate.num_examples=1", "--set", "train.max_steps=4"], true, false),
    ];
    for (set, tensors_changed, loss_fell) in cases {
        let output = stillroom(dir, &[&short[..], set].concat());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{set:?}: {said}");
        assert!(said.starts_with("error[checks-failed]"), "{set:?}: {said}");
        let report: Value = serde_json::from_slice(&output.stdout).expect("the report is shown all the same");
        let check = |name: &str, expected: bool| {
            assert_eq!(report["checks"][name], expected, "{set:?}: {}", report["checks"]);
            assert_eq!(said.contains(&format!("{name}: false")), !expected, "{set:?}: {said}");
        };
        check("student_tensors_changed", tensors_changed);
        if tensors_changed {
            check("heldout_loss_fell", loss_fell);
        }
    }
}

#[test]
fn what_cannot_be_done_is_refused_with_its_exit_code() {
    let dir = workshop();
    let refused = |args: &[&str], exit: i32, code: &str| {
        let output = stillroom(dir, args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(exit), "{args:?}: {said}");
        assert!(said.starts_with(&format!("error[{code}]")), "{args:?}: {said}");
        assert!(said.contains("\n  fix: "), "{args:?}: {said}");
    };
    let run = ["run", "tiny.toml", "--quiet", "--output", "impossible"];
    let with = |set: &'static str| [&run[..], &["--set", set]].concat();
    refused(&with("teacher.path=nowhere"), 74, "no-model");
    // Not only when it is released.
    refused(&with("student.architecture=qwen2"), 78, "wrong-tokenizer");
    refused(&with("teacher.kind=openai"), 78, "bad-recipe");
    let lookalike = "[teacher]\nkind = \"openai\"\nmodel = \"us:teacher\"\n\
        endpoints = [{ base_url = \"https://api.example.evil/v1\" }]\n[prompts]\npath = \"p.jsonl\"\n\
        [policy]\negress = \"listed\"\nlisted = [\"https://api.example\"]\n\
        [policy.declare.\"us:teacher\"]\nowner = \"us\"\nlicence = \"Apache-2.0\"\n";
    std::fs::write(dir.join("lookalike.toml"), lookalike).expect("a file");
    refused(&["teach", "lookalike.toml", "--output", "impossible"], 77, "egress");
    let there = lookalike.replace(".evil", "");
    std::fs::write(dir.join("there.toml"), &there).expect("a file");
    let person = "{\"id\": \"a\", \"prompt\": \"Write to jane.doe@example.org\"}\n";
    std::fs::write(dir.join("p.jsonl"), person).expect("a file");
    refused(&["teach", "there.toml", "--quiet", "--output", "impossible"], 77, "prompt-pii");
    let classed = there.replace("[prompts]", "[prompts]\ndata_class = \"internal\"");
    std::fs::write(dir.join("classed.toml"), classed).expect("a file");
    refused(&["teach", "classed.toml", "--quiet", "--output", "impossible"], 77, "data-class");
    refused(&["run", "absent.toml"], 74, "no-recipe");
    refused(&["score", "nowhere", "--text", "tiny.toml"], 74, "no-model");
    refused(&["verify", "."], 65, "bad-data");
    refused(&["convert", "teacher/release", "teacher"], 2, "exists");
    std::fs::write(dir.join("empty.txt"), "").expect("a file");
    refused(&["score", "teacher/release", "--text", "empty.txt"], 65, "bad-data");
    std::fs::write(dir.join("latin.txt"), b"caf\xe9").expect("a file");
    refused(&["score", "teacher/release", "--text", "latin.txt"], 65, "bad-data");
}

#[test]
fn new_writes_a_recipe_that_plan_accepts() {
    let dir = workshop();
    drop(std::fs::remove_file(dir.join("new.toml")));
    std::fs::write(
        dir.join("sums.jsonl"),
        (0..40)
            .map(|i| format!("{{\"id\":\"{i}\",\"prompt\":\"{i}+1?\",\"answer\":{}}}\n", i + 1))
            .collect::<String>(),
    )
    .expect("data");
    let said = stillroom(
        dir,
        &["new", "--teacher", "teacher/release", "--prompts", "sums.jsonl", "--output", "new.toml"],
    );
    assert!(said.status.success(), "{}", text(&said.stderr));
    assert!(text(&said.stderr).contains("numeric_answer"), "{}", text(&said.stderr));
    let declare = ["--set", "policy.declare.\"teacher/release\".owner=us"];
    let licence = ["--set", "policy.declare.\"teacher/release\".licence=Apache-2.0"];
    let plan = succeed(dir, &[&["plan", "new.toml", "--json"][..], &declare, &licence].concat());
    let plan: Value = serde_json::from_str(&plan).expect("JSON");
    assert!(plan["estimate"]["wall_s"].as_f64().is_some_and(|s| s > 0.0), "{plan}");
    assert_eq!(plan["recipe"]["prompts"]["verifier"], "numeric_answer");
}

#[test]
fn a_trial_is_marked_and_the_full_run_keeps_what_it_bought() {
    let dir = workshop();
    fresh(dir, "trial");
    let args = ["run", "tiny.toml", "--output", "trial", "--json", "--quiet", "--trial", "1s"];
    let output = stillroom(dir, &args);
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report, whatever its checks say");
    assert_eq!(report["trial"], true);
    let card = std::fs::read_to_string(dir.join("trial/release/README.md")).expect("a card");
    assert!(card.contains("A trial"), "{card}");
    let part = dir.join("trial/corpus/traces/part-000001.parquet");
    let bought = std::fs::metadata(&part).expect("a part").modified().expect("a time");
    succeed(dir, &["teach", "tiny.toml", "--output", "trial", "--quiet"]);
    assert_eq!(std::fs::metadata(&part).expect("a part").modified().expect("a time"), bought);
}

#[test]
fn a_live_teacher_teaches_any_divergence_without_a_cache_and_survives_a_kill() {
    let dir = workshop();
    ["live", "live-killed"].iter().for_each(|name| fresh(dir, name));
    let cached = "logits = { kind = \"random_sampling\", draws = 8 }";
    let losses =
        "loss_functions = [{ function = \"forward_kl\" }, { function = \"hard_labels\", weight = 0.1 }]";
    let live = "loss_functions = [{ function = \"jsd\", beta = 0.3 }, { function = \"skew_reverse_kl\", weight = \
                { from = 0, to = 1 }, temperature = 2 }, { function = \"hard_labels\", weight = 0.1 }]\n\
                hidden_alignment = {}";
    let recipe = recipe(STUDENT);
    assert!(recipe.contains(cached) && recipe.contains(losses));
    let recipe = recipe.replace(cached, "logits = { kind = \"live\" }").replace(losses, live);
    // Hidden states are compared at one width.
    let recipe = recipe.replace("hidden_size = 16", "hidden_size = 32");
    std::fs::write(dir.join("live.toml"), recipe).expect("a recipe is written");

    let plan = succeed(dir, &["plan", "live.toml", "--json"]);
    let plan: Value = serde_json::from_str(&plan).expect("JSON");
    let stages = plan["estimate"]["stages"].as_array().expect("stages");
    assert!(stages.iter().all(|stage| stage["stage"] != "logits"), "{plan}");
    let impossible = [
        ("student.hidden_size=16", "wrong-width", "the teacher's are 32 numbers wide, the student's 16"),
        ("train.hidden_alignment.layers=[[1, 0]]", "wrong-layers", "the teacher has no layer 1"),
    ];
    for (set, code, cause) in impossible {
        let refused = stillroom(dir, &["plan", "live.toml", "--set", set]);
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(78), "{said}");
        assert!(said.starts_with(&format!("error[{code}]")) && said.contains(cause), "{said}");
        assert!(said.contains("live.toml:") && said.contains("\n  fix: "), "{said}");
    }

    let report = succeed(dir, &["run", "live.toml", "--output", "live", "--json", "--quiet"]);
    let report: Value = serde_json::from_str(&report).expect("stdout holds the report and nothing else");
    assert!(report["cache"].is_null() && !dir.join("live/corpus/logits").exists());
    let curve = &report["curves"][0];
    let method = curve["loss"].as_str().expect("what was trained on");
    let expected =
        "jsd (teacher weight 0.3) + (0 → 1) skew_reverse_kl (alpha 0.1, temperature 2) + 0.1 hard_labels";
    assert!(method.starts_with(expected) && method.contains("live teacher"), "{method}");
    assert!(method.ends_with("(1 − cos) of hidden states, layers teacher → student: 0 → 0"), "{method}");
    let terms = curve["points"][1]["train_terms"].as_object().expect("each loss apart");
    assert_eq!(
        terms.keys().collect::<Vec<_>>(),
        ["hard_labels", "hidden_alignment", "jsd", "skew_reverse_kl"]
    );
    let page = std::fs::read_to_string(dir.join("live/report.html")).expect("a page");
    assert!(page.contains("Unweighted, in validation: hard_labels"), "the page shows the losses apart");
    let training = std::fs::read_to_string(dir.join("live/training/student.json")).expect("its training");
    let training: Value = serde_json::from_str(&training).expect("JSON");
    assert_eq!(training["curve"][0]["captured_mass"], 1.0);
    let jsd = |point: &Value| point["divergences"]["jsd"].as_f64().expect("a divergence");
    let validation = training["validation"].as_array().expect("points");
    assert!(jsd(&validation[validation.len() - 1]) < jsd(&validation[0]), "{validation:?}");

    let args = ["train", "live.toml", "--output", "live-killed", "--quiet", "--threads", "1"];
    kill_at(dir, &args, &dir.join("live-killed/events.jsonl"), "\"event\":\"checkpoint\"", 1);
    succeed(dir, &args);
    assert_eq!(weights(dir, "live-killed"), weights(dir, "live"), "the bits differ");
}

#[test]
fn a_live_teacher_and_its_student_need_one_tokenizer() {
    let dir = workshop();
    fresh(dir, "foreign");
    let other = dir.join("other-tokenizer");
    std::fs::create_dir_all(&other).expect("a folder");
    let tokenizer = dir.join("teacher/release/tokenizer.json");
    let mut tokenizer: Value =
        serde_json::from_slice(&std::fs::read(tokenizer).expect("a tokenizer")).expect("JSON");
    tokenizer["model"]["merges"].as_array_mut().expect("merges").pop();
    std::fs::write(other.join("tokenizer.json"), tokenizer.to_string()).expect("another tokenizer");
    for logits in ["{ kind = \"live\" }", "{ kind = \"top_k\" }"] {
        let set = format!("teacher.logits={logits}");
        let args = ["run", "tiny.toml", "--output", "foreign", "--quiet", "--set", &set, "--set"];
        let refused = stillroom(dir, &[&args[..], &["student.tokenizer=other-tokenizer"]].concat());
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(78), "{said}");
        assert!(said.starts_with("error[wrong-vocabulary]") && said.contains("\n  fix: "), "{said}");
        assert!(!dir.join("foreign").exists(), "before anything is written");
    }
}

/// Puts other bytes into a file of a run, and their digest wherever the run names the old one.
fn forge(run: &Path, name: &str, alter: impl FnOnce(String) -> String) {
    let digest = |path: &Path| Digest::of(&std::fs::read(path).expect("it is there")).to_string();
    let replace = |path: &Path, from: &str, to: &str| {
        let whole = std::fs::read_to_string(path).expect("text");
        assert!(whole.contains(from), "{} names {name}", path.display());
        std::fs::write(path, whole.replace(from, to)).expect("written");
    };
    let (path, manifest) = (run.join(name), run.join("release/provenance/manifest.json"));
    let (old, old_manifest) = (digest(&path), digest(&manifest));
    std::fs::write(&path, alter(std::fs::read_to_string(&path).expect("text"))).expect("written");
    let (new, old_bytes) = (digest(&path), std::fs::metadata(&manifest).expect("it is there").len());
    replace(&manifest, &old, &new);
    assert_eq!(std::fs::metadata(&manifest).expect("it is there").len(), old_bytes);
    replace(&run.join("release/provenance/manifest.json.sha256"), &old_manifest, &digest(&manifest));
}

#[test]
fn training_comes_out_again_bit_for_bit_and_a_forged_record_of_it_does_not() {
    let dir = workshop();
    fresh(dir, "replayed");
    let run = ["run", "tiny.toml", "--output", "replayed", "--set", "train.save_total_limit=1000", "--quiet"];
    kill_at(dir, &run, &dir.join("replayed/events.jsonl"), r#""event":"checkpoint""#, 3);
    succeed(dir, &run);
    let said = succeed(dir, &["verify", "replayed", "--replay", "5", "--seed", "1"]);
    assert!(said.contains("Replayed: 5 of "), "{said}");
    let whole = ["verify", "replayed", "--replay", "100000", "--json", "--threads", "1"];
    let whole: Value = serde_json::from_str(&succeed(dir, &whole)).expect("JSON");
    assert!(whole["replay"]["difference"].is_null(), "{whole}");
    let training: Value = serde_json::from_slice(
        &std::fs::read(dir.join("replayed/training/student.json")).expect("it is there"),
    )
    .expect("JSON");
    let segments = whole["replay"]["segments"].as_array().expect("a list");
    let of_student = |segment: &&Value| segment["model"] == "student";
    assert!(segments.iter().any(|segment| segment["model"] == "traces_only"), "{segments:?}");
    let last = segments.iter().rfind(of_student).expect("the student's");
    assert_eq!(last["to"], training["steps"]);
    assert!(whole["replay"]["steps"].as_u64() > training["steps"].as_u64());
    assert!(
        whole["weights"]["tensors"].as_u64() > Some(8) && whole["weights"]["difference"].is_null(),
        "{whole}"
    );
    assert!(!dir.join("replayed/.partial-replay").exists());

    // Whoever can write a run can write its manifest; but not weights that other batches lead to.
    let steps = "training/student.steps.jsonl";
    let other = Digest::of(b"another batch").to_string();
    forge(&dir.join("replayed"), steps, |lines| {
        let (at, _) = lines.match_indices("\"digest\":\"").nth(9).expect("ten steps");
        let at = at + "\"digest\":\"".len();
        format!("{}{other}{}", &lines[..at], &lines[at + other.len()..])
    });
    succeed(dir, &["verify", "replayed"]);
    let refused = stillroom(dir, &["verify", "replayed", "--replay", "100000"]);
    assert_eq!(refused.status.code(), Some(65));
    assert!(
        text(&refused.stderr).contains("step 10 learned from another batch"),
        "{}",
        text(&refused.stderr)
    );
}

/// A release whose papers all agree, made by this very program, but of weights that were altered behind the training.
#[test]
fn a_tensor_that_was_not_trained_is_named() {
    let dir = workshop();
    fresh(dir, "altered");
    let run = ["run", "tiny.toml", "--output", "altered", "--quiet"];
    succeed(dir, &run);
    let said = succeed(dir, &["verify", "altered"]);
    assert!(said.contains(" released tensors are those of step "), "{said}");
    let path = dir.join("altered/models/student/model.safetensors");
    let mut weights = std::fs::read(&path).expect("weights");
    let header = u64::from_le_bytes(weights[..8].try_into().expect("eight bytes")) as usize;
    let json: Value = serde_json::from_slice(&weights[8..8 + header]).expect("a header");
    let name = "model.layers.0.mlp.up_proj.weight";
    let start = json[name]["data_offsets"][0].as_u64().expect("an offset") as usize;
    // The sign of its sixth number.
    weights[8 + header + start + 23] ^= 0x80;
    std::fs::write(&path, weights).expect("written");
    std::fs::remove_dir_all(dir.join("altered/release")).expect("removed");
    std::fs::remove_file(dir.join("altered/stages/release.json")).expect("removed");
    succeed(dir, &run);
    let refused = stillroom(dir, &["verify", "altered"]);
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(65), "{said}");
    assert!(said.contains(&format!("`{name}` has other numbers")), "{said}");
    succeed(dir, &["verify", "altered/release"]);
}

#[test]
fn a_log_says_what_happened_and_shows_one_entry_without_the_others() {
    let dir = workshop();
    let args = |name| ["run", "tiny.toml", "--output", name, "--quiet"];
    ["logged", "logged-killed"].into_iter().for_each(|name| fresh(dir, name));
    succeed(dir, &args("logged"));
    let checked = |name: &str| -> Value {
        serde_json::from_str(&succeed(dir, &["verify", name, "--json"])).expect("JSON")
    };
    let log = checked("logged")["log"].clone();
    for event in [
        "\"stage_finished\",\"stage\":\"teach\"",
        "\"event\":\"checkpoint\"",
        "\"stage_started\",\"stage\":\"measure",
    ] {
        kill_at(dir, &args("logged-killed"), &dir.join("logged-killed/events.jsonl"), event, 1);
    }
    succeed(dir, &args("logged-killed"));
    let killed = checked("logged-killed")["log"].clone();
    assert_eq!((&killed["records"], &killed["unsealed"]), (&log["records"], &log["unsealed"]));
    assert_ne!(killed["root"], log["root"], "each run salts with a secret of its own");
    let of_release = checked("logged/release")["log"]["records"].as_u64().expect("a number");
    assert!(of_release > 900 && of_release < log["records"].as_u64().expect("a number"), "{of_release}");

    // One reply for somebody who has the release and nothing else.
    let shown = succeed(dir, &["open", "logged", "trace", "7"]);
    std::fs::write(dir.join("opened.json"), &shown).expect("written");
    let opening: Value = serde_json::from_str(&shown).expect("JSON");
    let entry: Value =
        serde_json::from_str(opening["opening"]["entry"].as_str().expect("text")).expect("JSON");
    assert!(entry["content"].is_string() && entry["teacher"] == "us:tiny-teacher", "{entry}");
    succeed(dir, &["verify", "logged/release", "--opening", "opened.json"]);
    let fails = |args: &[&str], what: &str| {
        let refused = stillroom(dir, args);
        assert_eq!(refused.status.code(), Some(65), "{args:?}");
        assert!(text(&refused.stderr).contains(what), "{}", text(&refused.stderr));
    };
    std::fs::write(dir.join("forged.json"), shown.replacen("\\\"sample\\\":0", "\\\"sample\\\":1", 1))
        .expect("written");
    fails(&["verify", "logged/release", "--opening", "forged.json"], "it is not this entry");
    fails(&["verify", "logged-killed/release", "--opening", "opened.json"], "not one of this release");
    fails(&["open", "logged", "trace", "100000"], "the run has no trace 100000");
    for entry in
        [&["decision"][..], &["stage", "train"], &["kept", "3"], &["batch", "5"], &["checkpoint", "6"]]
    {
        let shown = succeed(dir, &[&["open", "logged"][..], entry].concat());
        std::fs::write(dir.join("opened.json"), &shown).expect("written");
        succeed(dir, &["verify", "logged", "--opening", "opened.json"]);
    }

    // What is in the log cannot be changed behind its back.
    let records = dir.join("logged/log/records.bin");
    let whole = std::fs::read(&records).expect("it is there");
    let (left, right) = whole.split_at(41 * 5);
    for altered in
        [[left, &right[41..]].concat(), [left, &right[..41], right].concat(), [right, left].concat()]
    {
        std::fs::write(&records, altered).expect("written");
        fails(&["verify", "logged"], "the run's log does not begin with that of its release");
    }
    std::fs::write(&records, &whole).expect("written");
    succeed(dir, &["verify", "logged"]);
}

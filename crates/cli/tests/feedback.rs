//! Feedback through the binary: pairs from a verifier and a preference learned, killed and continued; grades of the
//! teacher and the best of n; majority votes; what is refused.

#[path = "common/shop.rs"]
mod shop;

use std::collections::HashMap;

use serde_json::Value;
use shop::{Shop, text};

/// A student that solves most problems, and at this temperature not all.
const PREFERENCES: &str = r#"
name = "preferred"
seed = 5
[student]
kind = "pretrained"
path = "ASSETS/quickstart-teacher"
model = "stillroom:quickstart-teacher"
[prompts]
task = "word_problems"
num_examples = 24
num_validation = 40
[feedback]
form = "verified"
from = "student"
samples_per_prompt = 4
max_tokens = 96
temperature = 1.8
[train]
learning_rate = 2e-4
num_train_epochs = 3
per_device_train_batch_size = 2
max_length = 512
save_steps = 2
eval_steps = 4
logging_steps = 1
loss_functions = [{ function = "dpo", beta = 0.2 }]
[evaluate]
num_examples = 8
max_tokens = 96
"#;

/// A teacher that writes several answers to each problem and grades them.
const GRADES: &str = r#"
name = "graded"
seed = 5
TINY_STUDENT
QUICKSTART_TEACHER
samples_per_prompt = 4
max_tokens = 96
temperature = 1.6
[prompts]
task = "word_problems"
num_examples = 24
num_validation = 8
[feedback]
form = "grade"
from = "teacher"
best = 5
[curate]
verify = false
select = "best_of_n"
[evaluate]
num_examples = 8
"#;

fn shop() -> Shop {
    Shop::with_recipes(&[("preferred.toml", PREFERENCES), ("graded.toml", GRADES)])
}

fn refused(shop: &Shop, args: &[&str]) -> String {
    let output = shop.run(args);
    assert_eq!(output.status.code(), Some(78), "{args:?}");
    text(&output.stderr)
}

#[test]
fn right_answers_are_preferred_to_wrong_ones_killed_or_not() {
    let shop = shop();
    shop.succeed(&["run", "preferred.toml", "--output", "straight", "--quiet"]);
    let pairs = shop.json_lines("straight/corpus/feedback/pairs.jsonl");
    assert!(pairs.len() > 8, "{} pairs", pairs.len());
    for pair in &pairs {
        assert_eq!((&pair["chosen_grade"], &pair["rejected_grade"]), (&1.0.into(), &0.0.into()));
        assert_eq!(pair["chosen"][0]["role"], "assistant");
        assert_ne!(pair["chosen"], pair["rejected"]);
    }
    let training = shop.json("straight/training/student.json");
    assert!(training["loss"].as_str().is_some_and(|loss| loss.starts_with("dpo (beta 0.2), nats per pair")));
    let validation = training["validation"].as_array().expect("points");
    let loss = |point: &Value| point["loss"].as_f64().expect("a loss");
    assert!((loss(&validation[0]) - 2f64.ln()).abs() < 1e-5, "the start is the reference");
    let last = validation.last().expect("a point");
    assert!(loss(last) < loss(&validation[0]) && last["preferences"]["margin"].as_f64() > Some(0.0));
    let report = shop.json("straight/report.json");
    assert_eq!(report["checks"]["heldout_loss"]["of"], "pairs");
    assert_eq!(report["checks"]["heldout_loss_fell"], true);
    let feedback = &report["corpus"]["feedback"];
    assert_eq!(
        feedback["pairs"].as_u64().expect("pairs") + feedback["validation_pairs"].as_u64().expect("pairs"),
        pairs.len() as u64
    );
    let args = ["run", "preferred.toml", "--output", "killed", "--quiet"];
    shop.kill_at(&args, "killed", "\"part_written\"", 1);
    shop.kill_at(&args, "killed", "\"event\":\"checkpoint\"", 1);
    shop.succeed(&args);
    assert!(shop.weights("killed") == shop.weights("straight"), "the same weights");
}

#[test]
fn the_best_grade_is_what_a_student_learns_from() {
    let shop = shop();
    shop.succeed(&["curate", "graded.toml", "--output", "out", "--quiet"]);
    let grades = shop.json_lines("out/corpus/feedback/grades.jsonl");
    let mut best: HashMap<String, f64> = HashMap::new();
    for row in &grades {
        let grade = row["grade"].as_f64().expect("a grade");
        assert!((1.0..=5.0).contains(&grade), "{grade}");
        let held = best.entry(row["id"].as_str().expect("an id").to_owned()).or_insert(grade);
        *held = held.max(grade);
    }
    let dropped = shop.json_lines("out/corpus/dropped.jsonl");
    let summary = shop.json("out/corpus/curation.json");
    let kept = summary["kept"].as_u64().expect("kept") + summary["validation_kept"].as_u64().expect("kept");
    assert_eq!(kept, best.len() as u64, "one for each prompt");
    let worse = dropped.iter().filter(|row| row["step"] == "best_of_n").count() as u64;
    assert_eq!(worse + kept, grades.len() as u64 - summary["dropped"]["duplicate"].as_u64().unwrap_or(0));
    let facts = shop.json("out/corpus/feedback/summary.json");
    let agreement = &facts["agreement"];
    assert!(agreement["comparisons"].as_u64() > Some(0) && agreement["share"].as_f64() <= Some(1.0));
    // The teacher compares instead; what it wrote before is kept.
    let text = std::fs::read_to_string(shop.path("graded.toml")).expect("a recipe");
    let text = text.replace("form = \"grade\"", "form = \"preference\"").replace("best = 5\n", "");
    std::fs::write(shop.path("compared.toml"), text).expect("a recipe is written");
    shop.succeed(&["curate", "compared.toml", "--output", "out", "--quiet"]);
    let events = std::fs::read_to_string(shop.path("out/events.jsonl")).expect("events");
    assert_eq!(events.matches("\"event\":\"part_written\"").count(), 2, "validation and training, once each");
    let facts = shop.json("out/corpus/feedback/summary.json");
    let (mean, bias) = (facts["mean_grade"].as_f64(), facts["position_bias"].as_f64());
    assert!(mean.is_some_and(|mean| (mean - 0.5).abs() < 1e-9), "of two, what one wins the other loses");
    assert!(bias.is_some_and(|bias| bias.abs() <= 0.5));
}

#[test]
fn revisions_are_preferred_or_learned_in_the_place_of_what_they_revise() {
    let shop = shop();
    let recipe = std::fs::read_to_string(shop.path("graded.toml")).expect("a recipe");
    let recipe = recipe
        .replace("form = \"grade\"", "form = \"revision\"\nrubric = \"Check the arithmetic.\"")
        .replace("best = 5\n", "")
        .replace("samples_per_prompt = 4", "samples_per_prompt = 2");
    let learned = recipe.replace("select = \"best_of_n\"", "select = \"revised\"");
    std::fs::write(shop.path("revised.toml"), &learned).expect("a recipe is written");
    let args = ["curate", "revised.toml", "--output", "out", "--quiet"];
    shop.kill_at(&args, "out", "\"stage\":\"critiques\"", 1);
    shop.succeed(&args);
    shop.succeed(&["curate", "revised.toml", "--output", "straight", "--quiet"]);
    let curated = |run: &str| shop.bytes(&format!("{run}/corpus/curated/train.parquet"));
    assert!(curated("out") == curated("straight"), "killed or not");
    let read = |file: &str| stillroom_formats::parquet_rows::read_traces(shop.bytes(file)).expect("traces");
    let critiques = read("out/corpus/critiques/part-000001.parquet");
    let revisions = read("out/corpus/revisions/part-000001.parquet");
    assert!(critiques[0].messages[0].content.starts_with("Check the arithmetic.\n\nQuestion:\n"));
    let turns = &revisions[0].messages;
    assert_eq!((turns.len(), &turns[..1]), (3, &critiques[0].messages[..]));
    assert_eq!(turns[1].content, critiques[0].content);
    for trace in read("out/corpus/curated/train.parquet") {
        let of = |other: &&stillroom_core::Trace| (&other.id, other.sample) == (&trace.id, trace.sample);
        let revision = revisions.iter().find(of).expect("it was revised");
        assert_eq!((&trace.content, trace.messages.len()), (&revision.content, 1), "to its own prompt");
    }
    let facts = shop.json("out/corpus/feedback/summary.json")["revision"].clone();
    let (revised, right) = (facts["revised"].as_u64().expect("a count"), &facts["right"]);
    assert!(
        revised > 0 && right[0].as_u64() <= Some(revised) && right[1].as_u64() <= Some(revised),
        "{facts}"
    );

    let preferred = recipe.replace("select = \"best_of_n\"\n", "")
        + "controls = []\n[train]\nloss_functions = [{ function = \"dpo\" }]\n";
    std::fs::write(shop.path("preferred-revision.toml"), preferred).expect("a recipe is written");
    shop.succeed(&["curate", "preferred-revision.toml", "--output", "out", "--quiet"]);
    let pairs = shop.json_lines("out/corpus/feedback/pairs.jsonl");
    assert!(!pairs.is_empty());
    for pair in &pairs {
        assert_eq!(pair["chosen_sample"], pair["rejected_sample"]);
        assert_ne!(pair["chosen"], pair["rejected"]);
    }
    let grade = refused(&shop, &["curate", "revised.toml", "--set", "feedback.margin=1"]);
    assert!(grade.contains("a revision has no grade"), "{grade}");
    let best = refused(&shop, &["curate", "revised.toml", "--set", "curate.select=best_of_n"]);
    assert!(best.contains("revisions for `revised`"), "{best}");
}

#[test]
fn the_answer_of_most_is_what_a_student_learns_from() {
    let shop = shop();
    let text = std::fs::read_to_string(shop.path("graded.toml")).expect("a recipe");
    let start = text.find("[feedback]").expect("feedback");
    let end = text.find("[curate]").expect("curate");
    let text = format!("{}{}", &text[..start], &text[end..]).replace("best_of_n", "majority");
    std::fs::write(shop.path("voted.toml"), text).expect("a recipe is written");
    shop.succeed(&["curate", "voted.toml", "--output", "out", "--quiet"]);
    let dropped = shop.json_lines("out/corpus/dropped.jsonl");
    let minority = dropped.iter().filter(|row| row["step"] == "majority").count();
    assert!(minority > 0, "at this temperature answers differ");
    assert!(dropped.iter().any(|row| row["reason"].as_str().is_some_and(|r| r.contains("most answered"))));
}

#[test]
fn what_does_not_go_together_is_refused() {
    let shop = shop();
    let with = |recipe: &str, set: &str| refused(&shop, &["run", recipe, "--set", set]);
    let sft = with("preferred.toml", "train.loss_functions=[{ function = \"hard_labels\" }]");
    assert!(sft.contains("nothing of this recipe uses the grades") && sft.contains("best_of_n"), "{sft}");
    let both = with(
        "preferred.toml",
        "train.loss_functions=[{ function = \"dpo\" }, { function = \"hard_labels\" }]",
    );
    assert!(both.contains("let it stand alone"), "{both}");
    let beta = with("preferred.toml", "train.loss_functions=[{ function = \"dpo\", beta = 0 }]");
    assert!(beta.contains("beta of `dpo`"), "{beta}");
    let own = with("graded.toml", "feedback.from=student");
    assert!(own.contains("among the teacher's traces"), "{own}");
    let judge = with("preferred.toml", "feedback.form=grade");
    assert!(judge.contains("the teacher judges, and there is none"), "{judge}");
    let form = with("preferred.toml", "feedback.form=verfied");
    assert!(form.contains("did you mean `verified`?"), "{form}");
}

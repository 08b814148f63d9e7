//! Every step of curation through the binary, with a teacher behind a socket that answers what the test wants.

#[path = "../../teacher/tests/fake/mod.rs"]
mod fake;
#[path = "common/shop.rs"]
mod shop;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use fake::{FakeTeacher, Options};
use serde_json::{Value, json};
use shop::{Shop, text};

const RECIPE: &str = r#"
name = "steps"
TINY_STUDENT
tokenizer = "ASSETS/quickstart-tokenizer"
[teacher]
kind = "openai"
model = "us:teacher"
endpoints = [{ base_url = "ADDRESS" }]
stream = false
[prompts]
path = "rows"
[curate]
near_duplicates = 0.8
decontaminate_against = ["bench.jsonl"]
max_share_per_answer = 0.6
languages = ["eng"]
no_loops = true
no_refusals = true
no_self_identification = true
min_chars = 3
allowed_licences = ["MIT", "CC-BY-4.0"]
respect_opt_outs = true
[curate.sources."train.jsonl"]
licence = "MIT"
[curate.sources.forum]
opt_out = true
[evaluate]
num_examples = 1
OUR_TEACHER
"#;

const GERMAN: &str =
    "Sie verkauft den Rest jeden Tag auf dem Bauernmarkt, und zwar für zwei Dollar je frisches Entenei.";
const BENCH: &str = "A wizard has 14 green frogs and 23 striped snakes in a cellar of his tower. Every night 5 of the frogs \
    leave by the window. After how many nights are there no frogs left?";
const HELD_OUT: &str = "Which of the three rivers that cross the old province carries the most water in spring, when the \
    snow melts in the mountains, and why do the others carry less?";

/// Rows of the training file with the reply that the teacher gives: id, question, reply, further fields.
fn rows() -> Vec<(&'static str, String, String, Value)> {
    let plain = |question: &str, reply: &str| (question.to_owned(), reply.to_owned(), json!({}));
    let with = |reply: &str, fields: Value| {
        let question = format!("What do people say about the town of {fields} at night?");
        (question, reply.to_owned(), fields)
    };
    let forest = "Tell me whether a forest of old oaks in a dry valley can live through ten summers without any rain, \
        and name the reason for it in a few words.";
    let edited = BENCH.replace("wizard", "sorcerer").replace("striped", "small");
    let other_numbers = BENCH.replace("14", "31").replace("23", "9").replace("5 of", "4 of");
    let rows = [
        ("first", plain(forest, "Yes, by deep roots.")),
        ("again", plain(&forest.replace("in a few words", "in some words"), "Yes, by deep roots.")),
        ("loop", plain("Why is the sea salt?", &"Wait, let me think about that again. ".repeat(12))),
        ("refusal", plain("Where do swallows sleep?", "I'm sorry, but I can't help with that.")),
        ("self", plain("Who paints the fences?", "As an AI language model, I have no fence.")),
        ("german", plain("How are eggs sold there?", GERMAN)),
        ("short", plain("Is it far?", "No")),
        ("exact", plain(BENCH, "After three nights.")),
        ("edited", plain(&edited, "After three nights.")),
        ("template", plain(&other_numbers, "After eight nights.")),
        ("held-out", plain(&HELD_OUT.replace("melts", "thaws"), "The middle one.")),
        ("quoted", plain("What is asked there?", &format!("They ask: {BENCH}"))),
        ("opted-out", with("Nothing.", json!({"tdm": 1}))),
        ("forum", with("Nothing.", json!({"source": "forum"}))),
        ("copyleft", with("Nothing.", json!({"license": "GPL-3.0-only"}))),
        ("elsewhere", with("Nothing.", json!({"source": "elsewhere", "licence": "cc-by-4.0"}))),
        ("unnamed", with("Nothing.", json!({"source": "nowhere"}))),
    ];
    let mut rows: Vec<_> = rows.into_iter().map(|(id, (q, r, fields))| (id, q, r, fields)).collect();
    for (id, animal) in
        [("v1", "otter"), ("v2", "heron"), ("v3", "badger"), ("v4", "lynx"), ("v5", "stork"), ("v6", "adder")]
    {
        let question = format!("Does the {animal} of {id} swim? Answer with one word.");
        rows.push((id, question, "Certainly".into(), json!({"answer": "Certainly", "group": 7})));
    }
    rows
}

/// Answers each request by its last turn.
fn teacher() -> FakeTeacher {
    let replies: HashMap<String, String> =
        rows().into_iter().map(|(_, question, reply, _)| (question, reply)).collect();
    let author = move |body: &Value| {
        let last = body["messages"].as_array().and_then(|turns| turns.last()?["content"].as_str());
        last.and_then(|last| replies.get(last)).map_or("Somewhere else.", String::as_str).to_owned()
    };
    FakeTeacher::start(Options { author: Some(Arc::new(author)), reasoning: false, ..Options::default() })
}

fn lines(rows: impl IntoIterator<Item = Value>) -> String {
    rows.into_iter().map(|row| format!("{row}\n")).collect()
}

fn shop(teacher: &FakeTeacher) -> Shop {
    let steps = RECIPE.replace("ADDRESS", &teacher.base_url());
    let by_class = "max_share_per_class = 0.6\nclass_field = \"group\"";
    let classes = steps.replace("max_share_per_answer = 0.6", by_class);
    let shop = Shop::with_recipes(&[("steps.toml", &steps), ("classes.toml", &classes)]);
    std::fs::create_dir(shop.path("rows")).expect("a folder");
    let train = rows().into_iter().map(|(id, question, _, mut row)| {
        row["id"] = json!(id);
        row["prompt"] = json!(question);
        row
    });
    let one = |question: &str| lines([json!({"prompt": question, "licence": "MIT"})]);
    for (name, text) in [
        ("rows/train.jsonl", lines(train)),
        ("rows/validation.jsonl", one("Where does the road behind the mill lead to?")),
        ("rows/test.jsonl", one(HELD_OUT)),
        ("bench.jsonl", lines([json!({"id": "b1", "question": BENCH, "answer": "#### 3"})])),
    ] {
        std::fs::write(shop.path(name), text).expect("data");
    }
    shop
}

fn dropped(shop: &Shop, output: &str) -> BTreeMap<String, Vec<String>> {
    let mut steps: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for drop in shop.json_lines(&format!("{output}/corpus/dropped.jsonl")) {
        assert!(drop["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{drop}");
        let step = steps.entry(drop["step"].as_str().expect("a step").to_owned()).or_default();
        step.push(drop["id"].as_str().expect("an id").to_owned());
    }
    steps.values_mut().for_each(|ids| ids.sort());
    steps
}

#[test]
fn each_step_drops_its_own_and_says_why() {
    let teacher = teacher();
    let shop = shop(&teacher);
    shop.succeed(&["curate", "steps.toml", "--output", "out", "--quiet"]);
    let steps = dropped(&shop, "out");
    // Of alike ones the first stays, in the order that the recipe's seed gives.
    let expected: [(&str, &[&str]); 9] = [
        ("balance", &["v4", "v6"]),
        ("contaminated", &["edited", "exact", "held-out", "quoted"]),
        ("filter", &["short"]),
        ("language", &["german"]),
        ("near_duplicate", &["first"]),
        ("refusal", &["refusal"]),
        ("repetition", &["loop"]),
        ("self_identification", &["self"]),
        ("source", &["copyleft", "forum", "opted-out", "unnamed"]),
    ];
    let expected: BTreeMap<String, Vec<String>> = expected
        .into_iter()
        .map(|(step, ids)| (step.to_owned(), ids.iter().map(|id| (*id).to_owned()).collect()))
        .collect();
    assert_eq!(steps, expected);
    let summary = shop.json("out/corpus/curation.json");
    let counted: BTreeMap<String, usize> =
        steps.iter().map(|(step, ids)| (step.clone(), ids.len())).collect();
    assert_eq!(summary["dropped"], json!(counted));
    assert_eq!((&summary["seen"], &summary["kept"]), (&json!(20), &json!(7)));
    assert_eq!((&summary["heldout_overlaps"], &summary["evaluation_items"]["items"]), (&json!(1), &json!(2)));
    let template = &summary["evaluation_items"]["same_template_examples"][0];
    assert_eq!(
        (&template["train_id"], &template["held_out_id"]),
        (&json!("template"), &json!("`b1` of bench.jsonl"))
    );
    // The teacher never saw what its source does not allow.
    let asked = String::from_utf8(shop.bytes("out/corpus/prompts/train.jsonl")).expect("text");
    assert!(!asked.contains("opted-out") && asked.contains("elsewhere"));

    shop.succeed(&["curate", "steps.toml", "--output", "again", "--quiet"]);
    for file in ["curated/train.parquet", "curated/validation.parquet", "dropped.jsonl", "curation.json"] {
        let of = |output: &str| shop.bytes(&format!("{output}/corpus/{file}"));
        assert!(of("out") == of("again"), "{file} differs");
    }
}

#[test]
fn classes_that_rows_name_have_their_share() {
    let teacher = teacher();
    let shop = shop(&teacher);
    shop.succeed(&["curate", "classes.toml", "--output", "out", "--quiet"]);
    assert_eq!(dropped(&shop, "out")["balance"], ["v4", "v6"]);
    let of_step = shop.json_lines("out/corpus/dropped.jsonl");
    let reasons: Vec<&Value> =
        of_step.iter().filter(|drop| drop["step"] == "balance").map(|drop| &drop["reason"]).collect();
    assert_eq!(reasons, [&json!("6 traces have this class, 4 may"); 2]);
    let rows = shop.json_lines("out/corpus/prompts/train.jsonl");
    let classed: Vec<&Value> = rows.iter().filter(|row| row["class"] == "7").map(|row| &row["id"]).collect();
    assert_eq!(classed.len(), 6, "{classed:?}");
}

#[test]
fn what_was_removed_is_explained_and_changed_evaluation_items_are_looked_for_again() {
    let teacher = teacher();
    let shop = shop(&teacher);
    let args = ["curate", "steps.toml", "--output", "out", "--quiet", "--explain"];
    let said = shop.succeed(&args);
    for part in [
        "20 traces seen, 7 kept",
        "contaminated: 4 removed",
        "`held-out`, sample 0: the prompt has 89.3 % of `test-000001` of held-out set",
        "replied: They ask: A wizard has 14 green frogs",
        "refusal: 1 removed",
        "replied: I'm sorry, but I can't help with that.",
        "source: 4 removed",
        "`forum`, sample 0: source `forum` opts out",
        "`refusal`, sample 0: it refuses: I'm sorry, but I can't help with that",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let said: Value =
        serde_json::from_str(&shop.succeed(&[&args[..], &["--json"]].concat())).expect("JSON alone");
    assert_eq!(said["steps"]["near_duplicate"]["dropped"], 1);
    let sample = &said["steps"]["near_duplicate"]["samples"][0];
    assert_eq!((&sample["id"], &sample["replied"]), (&json!("first"), &json!("Yes, by deep roots.")));
    assert!(
        sample["reason"].as_str().is_some_and(|reason| reason.ends_with("like trace 0 of `again`")),
        "{sample}"
    );

    std::fs::write(shop.path("bench.jsonl"), lines([json!({"prompt": "Something else?"})])).expect("data");
    let said = shop.run(&["curate", "steps.toml", "--output", "out"]);
    let progress = text(&said.stderr);
    assert!(progress.contains("teach: kept") && progress.contains("curate: done"), "{progress}");
    assert_eq!(dropped(&shop, "out")["contaminated"], ["held-out"]);

    std::fs::remove_file(shop.path("bench.jsonl")).expect("it was there");
    let said = shop.run(&["curate", "steps.toml", "--output", "out"]);
    assert_eq!(said.status.code(), Some(74), "{}", text(&said.stderr));
    assert!(text(&said.stderr).contains("there is no file `bench.jsonl`"), "{}", text(&said.stderr));
}

const TEXTS: &str = r#"
name = "texts"
TINY_STUDENT
tokenizer = "ASSETS/quickstart-tokenizer"
[prompts]
path = "rows"
kind = "KIND"
[curate]
near_duplicates = 0.8
decontaminate_against = ["bench.jsonl"]
[policy]
override = "the rows are made up for this test"
"#;

#[test]
fn rows_that_are_learned_without_a_teacher_are_curated_themselves() {
    let recipes =
        [("texts.toml", TEXTS.replace("KIND", "text")), ("chat.toml", TEXTS.replace("KIND", "chat"))];
    let shop = Shop::with_recipes(&recipes.each_ref().map(|(name, recipe)| (*name, recipe.as_str())));
    std::fs::create_dir(shop.path("rows")).expect("a folder");
    let alike =
        "The mill at the upper end of the valley has ground no corn since the great flood of that spring.";
    let quoted = format!("In an old book of riddles there is this one. {BENCH} Nobody knows who wrote it.");
    let edited = HELD_OUT.replace("melts", "thaws");
    let kept = "A heron stands in the shallow water below the bridge and waits.";
    for kind in ["texts", "chat"] {
        let row = |(id, text): (&str, &str)| match kind {
            "texts" => json!({"id": id, "text": text}),
            _ => json!({"id": id, "prompt": text, "completion": "So it is."}),
        };
        let again = alike.replace("The mill", "A mill");
        let train = [("kept", kept), ("again", &again), ("quoted", &quoted), ("edited", &edited)];
        for (name, rows) in [
            ("rows/train.jsonl", lines(train.map(row))),
            ("rows/validation.jsonl", lines([row(("alike", alike))])),
            ("rows/test.jsonl", lines([row(("h", HELD_OUT))])),
            ("bench.jsonl", lines([json!({"id": "b1", "question": BENCH, "answer": "#### 3"})])),
        ] {
            std::fs::write(shop.path(name), rows).expect("data");
        }
        let recipe = format!("{kind}.toml");
        let said = shop.succeed(&["curate", &recipe, "--output", kind, "--explain", "--json", "--quiet"]);
        let said: Value = serde_json::from_str(&said).expect("JSON alone");
        assert_eq!(said["steps"]["contaminated"]["dropped"], 2, "{said}");
        // One shingle of eighteen differs, or of twenty-one with the reply.
        let reason = if kind == "texts" { "89.5 % like `alike`" } else { "90.9 % like `alike`" };
        let alike = &said["steps"]["near_duplicate"]["samples"][0];
        assert_eq!((&alike["id"], &alike["reason"]), (&json!("again"), &json!(reason)), "{said}");
        let train =
            String::from_utf8(shop.bytes(&format!("{kind}/corpus/prompts/train.jsonl"))).expect("text");
        assert!(train.lines().count() == 1 && train.contains(kept), "{train}");
        let refused = ["curate", &recipe, "--output", kind, "--set", "curate.no_loops=true"];
        assert_eq!(shop.run(&refused).status.code(), Some(78), "there are no traces to drop");
    }
}

#[test]
fn a_file_that_becomes_one_of_another_part_is_read_again() {
    let shop = Shop::with_recipes(&[("texts.toml", &TEXTS.replace("KIND", "text"))]);
    std::fs::create_dir(shop.path("rows")).expect("a folder");
    let texts =
        |what: &str, n| lines((0..n).map(|i| json!({"text": format!("The {what} of house {i} is open.")})));
    std::fs::write(shop.path("rows/train.jsonl"), texts("door", 60)).expect("data");
    std::fs::write(shop.path("rows/dev.jsonl"), texts("window", 5)).expect("data");
    std::fs::write(shop.path("bench.jsonl"), lines([json!({"prompt": BENCH})])).expect("data");
    let windows = |split: &str| {
        shop.succeed(&["curate", "texts.toml", "--output", "out", "--quiet"]);
        text(&shop.bytes(&format!("out/corpus/prompts/{split}.jsonl"))).matches("window").count()
    };
    assert_eq!((windows("validation"), windows("held_out")), (5, 0));
    // In the order of their names nothing moved.
    std::fs::rename(shop.path("rows/dev.jsonl"), shop.path("rows/heldout.jsonl")).expect("another name");
    assert_eq!((windows("validation"), windows("held_out")), (0, 5));
}

const MIXED: &str = r#"
name = "mixed"
seed = 5
TINY_STUDENT
num_key_value_heads = 1
QUICKSTART_TEACHER
max_tokens = 96
logits = { kind = "live" }
[prompts]
path = "rows"
[curate]
verify = false
decontaminate_against = ["bench.jsonl"]
[train]
max_steps = 4
per_device_train_batch_size = 2
max_length = 256
save_steps = 4
on_policy_fraction = 0.5
max_new_tokens = 8
rollouts_per_step = 6
replay_buffer_size = 64
[evaluate]
num_examples = 1
controls = []
"#;

#[test]
fn a_student_continues_no_prompt_with_an_evaluation_item() {
    let shop = Shop::with_recipes(&[("mixed.toml", MIXED)]);
    std::fs::create_dir(shop.path("rows")).expect("a folder");
    let asked = |name: &str, things: &str| {
        format!(
            "{name} has 12 {things} and buys 7 {things} at the market. How many {things} does {name} have now?"
        )
    };
    let row = |question: String| json!({ "prompt": question });
    let items = [asked("Ann", "apples"), asked("Ben", "books"), asked("Cem", "coins")];
    let clean = [asked("Dora", "dolls"), asked("Eve", "eggs"), asked("Finn", "forks")];
    for (name, rows) in [
        ("rows/train.jsonl", lines(items.iter().chain(&clean).cloned().map(row))),
        ("rows/validation.jsonl", lines([row(asked("Gus", "globes"))])),
        ("rows/test.jsonl", lines([row(asked("Hal", "hats"))])),
        ("bench.jsonl", lines(items.into_iter().map(row))),
    ] {
        std::fs::write(shop.path(name), rows).expect("data");
    }
    shop.succeed(&["train", "mixed.toml", "--output", "out", "--quiet"]);
    assert_eq!(dropped(&shop, "out")["contaminated"].len(), 3);
    let state = shop.json("out/checkpoints/step-000004/state.json");
    let written: Vec<u64> = state["state"]["progress"]["rollouts"]["buffer"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|rollout| rollout["prompt"].as_u64())
        .collect();
    assert!(written.len() >= 6 && written.iter().all(|&prompt| prompt < 3), "{written:?}");
}

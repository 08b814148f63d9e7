//! A student that learns from its own text, read by a teacher behind an endpoint: the same bits as with the same teacher at
//! hand, through faults, budgets and kills, and nothing bought twice.

use std::sync::Arc;

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use stillroom_formats::ModelFiles;
use stillroom_kernels::Device;
use stillroom_model::Decoder;

use crate::desk::retry_soon;
use crate::fake::{FakeTeacher, Faults, Options, Reader};
use crate::shop::{Shop, assets, text};

const RECIPE: &str = r#"
name = "own"
seed = 5
TINY_STUDENT
num_key_value_heads = 1
tokenizer = "ASSETS/quickstart-teacher"
[teacher]
model = "us:teacher"
max_tokens = 24
KEYS
[prompts]
task = "word_problems"
num_examples = 48
num_validation = 6
[train]
learning_rate = 1e-2
max_steps = 12
per_device_train_batch_size = 2
max_length = 256
save_steps = 2
eval_steps = 6
logging_steps = 2
on_policy_fraction = 1.0
max_new_tokens = 24
rollouts_per_step = 8
replay_buffer_size = 12
loss_functions = [{ function = "sampled_reverse_kl" }]
[evaluate]
num_examples = 12
controls = []
OUR_TEACHER
"#;

const AT_HAND: &str = "kind = \"local\"\npath = \"ASSETS/quickstart-teacher\"\nlogits = { kind = \"live\" }";
const AWAY: &str = "kind = \"openai\"\ntokenizer = \"ASSETS/quickstart-teacher\"\nmax_attempts = 20\n\
                    price = { input_usd_per_mtok = 2.0, output_usd_per_mtok = 10.0 }\nendpoints = [{ base_url = \"URL\" }]";

/// The teacher of the local recipe reads for the server.
fn reader() -> Arc<Reader> {
    let files = ModelFiles::open(&assets().join("quickstart-teacher")).expect("a model");
    let decoder =
        Decoder::load(Arc::new(Device::cpu(1)), files.config, files.tensors.as_ref()).expect("weights");
    Arc::new(move |ids: &[u32]| decoder.token_logprobs(&[ids]).remove(0))
}

fn server(options: Options) -> FakeTeacher {
    FakeTeacher::start(Options { reader: Some(reader()), ..options })
}

/// `own.toml` for a teacher at hand, and `away.toml` for the same behind a server.
fn shop(server: &FakeTeacher) -> Shop {
    let of = |teacher: &str| RECIPE.replace("KEYS", &teacher.replace("URL", &server.base_url()));
    Shop::with_recipes(&[("own.toml", &of(AT_HAND)), ("away.toml", &of(AWAY))])
}

fn at_hand(shop: &Shop) -> Vec<u8> {
    shop.succeed(&["train", "own.toml", "--output", "at-hand", "--quiet"]);
    shop.weights("at-hand")
}

/// Done calls of a stage, and requests among them that were bought more than once.
fn bought(shop: &Shop, output: &str, stage: &str) -> (u32, u32) {
    let path = shop.path(output).join("ledger.sqlite");
    let ledger = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("a ledger");
    let sums =
        "SELECT count(*), count(*) - count(DISTINCT request) FROM calls WHERE state = 'done' AND stage = ?1";
    ledger.query_row(sums, [stage], |row| Ok((row.get(0)?, row.get(1)?))).expect("its tables")
}

#[test]
fn through_an_endpoint_the_weights_are_those_of_the_same_teacher_at_hand() {
    let server = server(Options::default());
    let shop = shop(&server);
    let weights = at_hand(&shop);
    for (output, how) in [("asked", "prompt_logprobs"), ("echoed", "echo")] {
        let scoring = format!("teacher.scoring={how}");
        shop.succeed(&["train", "away.toml", "--output", output, "--quiet", "--set", &scoring]);
        assert!(shop.weights(output) == weights, "{how}: other bits");
        let curves =
            |output: &str| shop.json(&format!("{output}/training/student.json"))["validation"].clone();
        assert_eq!(curves(output), curves("at-hand"), "{how}: no loss differs either");
        let (calls, twice) = bought(&shop, output, "train");
        // Twelve steps, half of whose texts are replayed as soon as there are some, and three validations of six prompts.
        assert!((60..=12 * 8 + 18).contains(&calls) && twice == 0, "{how}: {calls} {twice}");
        assert!(!shop.path(output).join("corpus/traces").exists(), "the teacher writes nothing");
    }
    let stats = server.stats();
    assert_eq!((stats.served_again, stats.malformed), (0, 0));
    // Without any server, from the ledger of that run.
    drop(server);
    let recipe = std::fs::read_to_string(shop.path("away.toml")).expect("a recipe");
    let lines = recipe.lines().filter(|line| !line.starts_with("endpoints")).collect::<Vec<_>>().join("\n");
    let recipe = lines.replace("kind = \"openai\"", "kind = \"cache\"\npath = \"asked\"");
    std::fs::write(shop.path("replayed.toml"), recipe).expect("a recipe is written");
    shop.succeed(&["train", "replayed.toml", "--output", "replayed", "--quiet"]);
    assert!(shop.weights("replayed") == weights, "replayed: other bits");
}

#[test]
fn faults_budgets_and_kills_change_no_bit_and_nothing_is_bought_twice() {
    let faults = Faults { stall: 0.0, huge: 0.0, ..Faults::usual() };
    let server = server(retry_soon(Options { seed: 3, faults, ..Options::default() }));
    let shop = shop(&server);
    let weights = at_hand(&shop);
    let args = ["train", "away.toml", "--output", "bad", "--quiet"];
    // A budget ends it in the middle, and says how to go on.
    let stopped = shop.run(&[&args[..], &["--set", "teacher.budget_tokens=4000"]].concat());
    let said = text(&stopped.stderr);
    assert!(stopped.status.code() == Some(75) && said.contains("budget of tokens"), "{said}");
    for n in [1, 3, 5] {
        shop.kill_at(&args, "bad", "\"event\":\"checkpoint\"", n);
    }
    shop.succeed(&args);
    assert!(shop.weights("bad") == weights, "other bits");
    let (calls, twice) = bought(&shop, "bad", "train");
    assert!(calls >= 60 && twice == 0, "{calls} {twice}");
    let stats = server.stats();
    assert!(stats.faults.len() > 5, "it was a bad day: {:?}", stats.faults);
    // What a kill left open may have been answered, and is asked again: as many as were on their way.
    assert!(stats.served_again <= 3 * 8, "{} were served twice", stats.served_again);
}

/// One endpoint does not know our key, another never answers, the third one does all: no bit differs, and it is said.
#[test]
fn endpoints_that_refuse_or_are_slow_change_no_bit() {
    let good = server(Options::default());
    let locked = server(Options { key: Some("a-key-of-others".to_owned()), ..Options::default() });
    let faults = Faults { stall: 1.0, per_request_max: u64::MAX, ..Faults::none() };
    let silent = server(Options { faults, ..Options::default() });
    let shop = shop(&good);
    let weights = at_hand(&shop);
    let url = |server: &FakeTeacher| format!("{{ base_url = \"{}\", max_in_flight = 4 }}", server.base_url());
    let endpoints = format!("teacher.endpoints=[{}, {}, {}]", url(&locked), url(&silent), url(&good));
    let args = [
        "train",
        "away.toml",
        "--output",
        "three",
        "--set",
        &endpoints,
        "--set",
        "teacher.hedge_after_s=0.05",
    ];
    let output = shop.run(&[&args[..], &["--set", "teacher.stall_timeout_s=100"]].concat());
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(shop.weights("three") == weights, "other bits");
    assert_eq!(said.matches(&format!("`{}` is asked no more", locked.base_url())).count(), 1, "{said}");
    assert!(locked.stats().unauthorized <= 4, "it is not asked anew at each step: {:?}", locked.stats());
    assert_eq!((silent.stats().replies, bought(&shop, "three", "train").1), (0, 0));
}

#[test]
fn a_whole_run_is_judged_by_own_text_as_the_endpoint_finds_it() {
    let server = server(Options::default());
    let shop = shop(&server);
    let sets = [
        "--set",
        "train.max_steps=60",
        "--set",
        "train.rollouts_per_step=16",
        "--set",
        "train.save_steps=30",
    ];
    let report =
        shop.succeed(&[&["run", "away.toml", "--output", "whole", "--quiet", "--json"][..], &sets].concat());
    let report: Value = serde_json::from_str(&report).expect("a report");
    let checks = &report["checks"];
    assert_eq!(
        (&checks["heldout_loss"]["of"], &checks["heldout_loss_fell"]),
        (&Value::from("own_text"), &Value::from(true))
    );
    let of = |model: &str| &report["own_text"][model];
    let kl = |model: &str| of(model)["reverse_kl"]["value"].as_f64().expect("a mean");
    assert!(kl("student") < kl("untrained") && of("student")["sampled"] == true, "{}", report["own_text"]);
    assert_eq!((&of("student")["texts"], bought(&shop, "whole", "own-text").1), (&Value::from(12), 0));
    let method = report["curves"][0]["loss"].as_str().expect("what was trained on");
    assert!(method.contains("that the teacher's endpoint gives"), "{method}");
    // All that was paid is in the report: what was read in training, and to measure own text.
    let usd = report["corpus"]["teacher_usd"].as_f64().expect("dollars");
    let stats = server.stats();
    let billed = stats.billed_prompt_tokens as f64 * 2e-6 + stats.billed_completion_tokens as f64 * 10e-6;
    assert!(usd > 0.5 * billed && usd < billed, "{usd} of {billed}, the rest for measuring its replies");
    let page = std::fs::read_to_string(shop.path("whole/report.html")).expect("a page");
    assert!(page.contains("is estimated from them alone"));
    shop.succeed(&["verify", "whole"]);
    // Beforehand it is known what it will take, within a factor.
    let plan = shop.succeed(&[&["plan", "away.toml", "--json"][..], &sets].concat());
    let plan: Value = serde_json::from_str(&plan).expect("JSON");
    let planned = plan["estimate"]["money_usd"].as_f64().expect("dollars");
    assert!(planned > billed / 3.0 && planned < billed * 3.0, "{planned} {billed}");
}

#[test]
fn another_tokenizer_and_impossible_tokens_are_refused_before_and_while_it_learns() {
    let server = FakeTeacher::start(Options {
        reader: Some(Arc::new(|ids: &[u32]| vec![-9999.0; ids.len() - 1])),
        ..Options::default()
    });
    let shop = shop(&server);
    let other = format!("teacher.tokenizer={}", assets().join("experiments-tokenizer").display());
    for verb in ["train", "plan"] {
        let mut args = vec![verb, "away.toml", "--set", &other];
        args.extend((verb == "train").then_some(["--output", "x"]).into_iter().flatten());
        let refused = shop.run(&args);
        let said = text(&refused.stderr);
        assert!(refused.status.code() == Some(78) && said.contains("different tokenizers"), "{said}");
    }
    assert_eq!(server.stats().requests, 0, "nobody was asked");
    let refused = shop.run(&["train", "away.toml", "--output", "y", "--quiet"]);
    let said = text(&refused.stderr);
    assert!(refused.status.code() == Some(1) && said.contains("impossible to the teacher"), "{said}");
    assert!(server.stats().requests <= 8, "one look is enough");
}

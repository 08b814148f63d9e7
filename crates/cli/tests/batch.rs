//! Teachers that are asked by the file: carried by hand, and as jobs of a service, on good days and bad ones.

#[path = "common/shop.rs"]
mod shop;

#[path = "../../teacher/tests/fake/mod.rs"]
mod fake;

#[path = "../../teacher/tests/fake_batch/mod.rs"]
mod fake_batch;

#[path = "wire/desk.rs"]
#[allow(dead_code, reason = "shared with the tests of endpoints")]
mod desk;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use stillroom_core::CounterRng;

use desk::{Desk, Row};
use fake_batch::{FakeBatch, Options, answered};
use shop::{json_lines as lines, kill_when, text};

const TEACH: [&str; 4] = ["teach", "batch.toml", "--output", "run"];

fn recipe(desk: &Desk, teacher: &str) {
    desk.write("batch.toml", &format!("kind = \"batch\"\n{teacher}"), desk::LOCAL);
}

fn jobs_at(service: &FakeBatch, more: &str) -> String {
    format!("endpoints = [{{ base_url = \"{}\" }}]\npoll_s = 0.01\n{more}", service.base_url())
}

/// It stopped with this code in brackets, to be run again.
fn stopped(output: &Output, code: &str) -> String {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(75), "{said}");
    assert!(said.contains(&format!("error[{code}]")), "{said}");
    assert!(said.contains("next: stillroom teach batch.toml --output run"), "{said}");
    said
}

fn requests(desk: &Desk) -> Vec<PathBuf> {
    let files = desk::files_below(&desk.path("run/batch"));
    let is_requests = |path: &PathBuf| {
        path.parent().is_some_and(|dir| dir.ends_with("batch")) && name(path).starts_with("requests-")
    };
    files.into_iter().filter(is_requests).collect()
}

fn name(path: &Path) -> String {
    path.file_name().expect("a name").to_string_lossy().into_owned()
}

/// Answers a file of requests by hand.
fn answer(desk: &Desk, requests: &Path, options: &Options) {
    let (output, errors) = answered(&std::fs::read(requests).expect("requests"), options);
    let results = desk.path("run/batch/results");
    // Any names do; these come in another order than the files.
    let stem: String = name(requests).chars().rev().filter(char::is_ascii_digit).collect();
    std::fs::write(results.join(format!("{stem} of vLLM.jsonl")), output).expect("results");
    std::fs::write(results.join(format!("{stem}.errors.jsonl")), errors).expect("errors");
}

fn report(desk: &Desk) -> Value {
    desk.json("run/batch/report.json")
}

fn count(report: &Value, name: &str) -> u64 {
    report[name].as_u64().unwrap_or_else(|| panic!("{name} in {report}"))
}

fn done(rows: &[&Row]) -> usize {
    rows.iter().filter(|row| row.state == "done").count()
}

/// Each request has one reply, and what was paid is on record.
fn check_ledger(desk: &Desk, n: usize) {
    let ledger = desk.ledger("run");
    let rows: Vec<&Row> = ledger.values().collect();
    assert_eq!(done(&rows), n);
    let requests: BTreeSet<&str> =
        rows.iter().filter(|row| row.state == "done").map(|row| row.request.as_str()).collect();
    assert_eq!(requests.len(), n);
    assert!(rows.iter().all(|row| matches!(row.state.as_str(), "done" | "failed")));
    assert!(rows.iter().all(|row| row.has_receipt == (row.state == "done")));
    let spent: f64 = rows.iter().map(|row| row.usd).sum();
    let told = desk.json("run/teach.json")["usd"].as_f64().expect("a sum");
    assert!((told - spent).abs() < 1e-9, "${told} told, ${spent} on record");
}

#[test]
fn files_carried_by_hand_give_the_corpus_of_an_endpoint() {
    let desk = Desk::new(50);
    let calm = desk.calm("teach", "");
    recipe(&desk, "max_requests_per_file = 20");
    let said = stopped(&desk.run(&TEACH), "batch-waits");
    assert!(said.contains("3 files of requests wait for their results (50 requests)"), "{said}");
    assert!(said.contains("run/batch/requests-0002.jsonl`: 10 requests"), "{said}");
    assert!(said.contains("run/batch/results") && said.contains("vllm run-batch"), "{said}");
    assert!(!desk.path("run/corpus/traces/part-000000.parquet").exists());

    let files = requests(&desk);
    assert_eq!(
        files.iter().map(|path| name(path)).collect::<Vec<_>>(),
        ["requests-0000.jsonl", "requests-0001.jsonl", "requests-0002.jsonl"]
    );
    let ids: BTreeSet<String> =
        files.iter().flat_map(|file| lines(file)).map(|line| line["custom_id"].to_string()).collect();
    assert_eq!(ids.len(), 50, "each request has a name of its own");
    let before: Vec<Vec<u8>> = files.iter().map(|path| std::fs::read(path).expect("requests")).collect();

    let options = Options::default();
    answer(&desk, &files[2], &options);
    answer(&desk, &files[0], &options);
    let said = stopped(&desk.run(&TEACH), "batch-waits");
    assert!(said.contains("a file of requests waits for its results (20 requests)"), "{said}");
    assert_eq!((count(&report(&desk), "replies"), count(&report(&desk), "failed")), (30, 0));
    let after: Vec<Vec<u8>> =
        requests(&desk).iter().map(|path| std::fs::read(path).expect("requests")).collect();
    assert!(before == after, "what waits stays as it is");

    answer(&desk, &files[1], &options);
    desk.succeed(&TEACH);
    assert!(desk.corpus("run") == calm, "another corpus than over the wire");
    assert_eq!((count(&report(&desk), "replies"), count(&report(&desk), "kept")), (20, 30));
    check_ledger(&desk, 50);

    // Without files of results, the ledger has it all.
    std::fs::remove_dir_all(desk.path("run/batch")).expect("the files are gone");
    std::fs::remove_dir_all(desk.path("run/corpus/traces")).expect("the traces are gone");
    std::fs::remove_file(desk.path("run/stages/teach.json")).expect("the record is gone");
    desk.succeed(&TEACH);
    assert!(desk.corpus("run") == calm && requests(&desk).is_empty());
}

#[test]
fn what_fails_is_asked_again_and_nothing_else() {
    let desk = Desk::new(120);
    let calm = desk.calm("teach", "");
    recipe(&desk, "max_requests_per_file = 70");
    let options = Options { failing: 0.4, disorder: true, seed: 3, ..Options::default() };
    let (mut rounds, mut asked) = (0, 0);
    let mut settled: BTreeSet<String> = BTreeSet::new();
    loop {
        let output = desk.run(&TEACH);
        if output.status.success() {
            break;
        }
        stopped(&output, "batch-waits");
        rounds += 1;
        assert!(rounds < 6, "it goes on and on");
        let have = |row: &&Row| row.state == "done";
        settled.extend(if asked > 0 {
            desk.ledger("run").values().filter(have).map(|row| row.request.clone()).collect()
        } else {
            Vec::new()
        });
        for file in requests(&desk).into_iter().skip(asked) {
            for line in lines(&file) {
                let id = line["custom_id"].as_str().expect("a name").to_owned();
                assert!(!settled.contains(&id[..32]), "{id} has a reply already");
            }
            answer(&desk, &file, &options);
            asked += 1;
        }
    }
    assert!(rounds >= 3, "{rounds}");
    assert!(desk.corpus("run") == calm, "another corpus than over the wire");
    check_ledger(&desk, 120);
    let report = report(&desk);
    for what in ["failed", "duplicates", "unknown", "broken"] {
        assert!(count(&report, what) > 0, "no {what} in {report}");
    }
    assert_eq!((count(&report, "bought_again"), count(&report, "differing_duplicates")), (0, 0), "{report}");
    let problems = lines(&desk.path("run/batch/problems.jsonl"));
    let sum = count(&report, "failed") + count(&report, "unknown") + count(&report, "broken");
    assert_eq!(problems.len() as u64, sum);
    let cut = problems
        .iter()
        .find(|p| p["what"].as_str().is_some_and(|what| what.starts_with("the file ends within it")));
    let cut = cut.expect("a cut line");
    assert!(
        cut["line"].as_u64() > Some(1) && cut["file"].as_str().is_some_and(|file| file.ends_with(".jsonl"))
    );
}

#[test]
fn a_result_counts_for_its_own_request_and_once() {
    let desk = Desk::new(4);
    recipe(&desk, "");
    stopped(&desk.run(&TEACH), "batch-waits");
    let file = requests(&desk).remove(0);
    let (output, _) = answered(&std::fs::read(&file).expect("requests"), &Options::default());
    let mut results: Vec<Value> =
        text(&output).lines().map(|line| serde_json::from_str(line).expect("a result")).collect();
    let ids: Vec<String> =
        results.iter().map(|r| r["custom_id"].as_str().expect("a name").to_owned()).collect();
    let content = |i: usize| results[i]["response"]["body"]["choices"][0]["message"]["content"].clone();
    let first = content(0);
    // Another text under a name that has one; an error, then a reply; and a refusal, which is final.
    let mut other = results[0].clone();
    other["response"]["body"]["choices"][0]["message"]["content"] = "another text".into();
    let error =
        serde_json::json!({"custom_id": ids[1], "response": null, "error": {"message": "busy", "code": "x"}});
    results[2] = serde_json::json!({"custom_id": ids[2], "response": {"status_code": 400, "body": {"error": {"message": "too long"}}}, "error": null});
    results.remove(3);
    results.insert(1, error);
    results.push(other);
    let written: String = results.iter().map(|result| format!("{result}\n")).collect();
    std::fs::write(desk.path("run/batch/results/a.jsonl"), written).expect("results");
    let said = stopped(&desk.run(&TEACH), "batch-waits");
    assert!(said.contains("(1 request)"), "only what is missing is asked again: {said}");
    let told = report(&desk);
    let counts =
        ["replies", "failed", "missing", "duplicates", "differing_duplicates"].map(|name| count(&told, name));
    assert_eq!(counts, [2, 2, 1, 2, 2], "{told}");
    let again = lines(&requests(&desk)[1]);
    assert_eq!(again[0]["custom_id"], format!("{}-1", ids[3].trim_end_matches("-0")));
    answer(&desk, &requests(&desk)[1], &Options::default());
    desk.succeed(&TEACH);
    let traces = desk.traces("run");
    assert_eq!(traces.iter().map(|trace| trace.id.as_str()).collect::<Vec<_>>(), ["p0", "p1", "p3"]);
    assert!(first.as_str().is_some_and(|text| text.ends_with(&traces[0].content)), "the first one counts");
    let unanswered = lines(&desk.path("run/corpus/unanswered.jsonl"));
    assert_eq!((unanswered.len(), &unanswered[0]["id"]), (1, &Value::from("p2")));

    // A second reply to what was asked again comes late, and was paid for. A refusal gives way to a reply.
    let (late, _) = answered(&std::fs::read(&file).expect("requests"), &Options::default());
    std::fs::write(desk.path("run/batch/results/late.jsonl"), late).expect("results");
    std::fs::remove_file(desk.path("run/stages/teach.json")).expect("the record is gone");
    desk.succeed(&TEACH);
    assert_eq!(count(&report(&desk), "bought_again"), 1, "{}", report(&desk));
    assert_eq!(desk.traces("run").len(), 4);
    let spent: f64 = desk.ledger("run").values().map(|row| row.usd).sum();
    desk.succeed(&TEACH);
    std::fs::remove_file(desk.path("run/stages/teach.json")).expect("the record is gone");
    desk.succeed(&TEACH);
    assert_eq!(desk.ledger("run").values().map(|row| row.usd).sum::<f64>(), spent, "it is counted once");
}

#[test]
fn tries_have_an_end_and_budgets_are_kept_before_anything_is_asked() {
    let desk = Desk::new(12);
    recipe(&desk, "max_attempts = 2");
    let all_fail = Options { failing: 1.0, ..Options::default() };
    for _ in 0..2 {
        stopped(&desk.run(&TEACH), "batch-waits");
        answer(&desk, requests(&desk).last().expect("requests"), &all_fail);
    }
    // A file of which nothing came waits; an error for each of its lines is an answer.
    let last = requests(&desk).pop().expect("requests");
    let errors: String = lines(&last)
        .iter()
        .map(|line| format!("{{\"custom_id\":{},\"error\":{{\"message\":\"no\"}}}}\n", line["custom_id"]))
        .collect();
    std::fs::write(desk.path("run/batch/results/all.jsonl"), errors).expect("results");
    let said = stopped(&desk.run(&TEACH), "no-reply");
    assert!(said.contains("raise `teacher.max_attempts`"), "{said}");
    assert_eq!(requests(&desk).len(), 2);

    let desk = Desk::new(100);
    // At most 64 tokens of a reply: $0.00064 and some cents of a prompt.
    recipe(&desk, "budget_usd = 0.0067");
    let said = stopped(&desk.run(&TEACH), "batch-waits");
    assert_eq!(lines(&requests(&desk)[0]).len(), 10, "{said}");
    assert!(said.contains("once it is known that the budget of money allows it"), "{said}");
    answer(&desk, &requests(&desk)[0], &Options::default());
    // What came was shorter than the worst, so more can be asked; but not all.
    stopped(&desk.run(&TEACH), "batch-waits");
    let files = requests(&desk);
    assert_eq!(files.len(), 2);
    answer(&desk, &files[1], &Options::default());
    let mut n = 2;
    loop {
        let output = desk.run(&TEACH);
        let spent: f64 = desk.ledger("run").values().map(|row| row.usd).sum();
        // What replies take is estimated by those before them.
        assert!(spent <= 1.05 * 0.0067, "${spent}");
        if text(&output.stderr).contains("error[budget]") {
            stopped(&output, "budget");
            break;
        }
        answer(&desk, &requests(&desk)[n], &Options::default());
        n += 1;
    }
    recipe(&desk, "budget_usd = 1.0");
    stopped(&desk.run(&TEACH), "batch-waits");
    answer(&desk, requests(&desk).last().expect("requests"), &Options::default());
    desk.succeed(&TEACH);
    assert_eq!(desk.traces("run").len(), 100);
}

#[test]
fn jobs_give_the_corpus_of_an_endpoint_however_their_results_come() {
    let desk = Desk::new(150);
    let calm = desk.calm("teach", "");
    let options =
        Options { failing: 0.3, disorder: true, looks: 3, page: 2, busy_every: 5, ..Options::default() };
    let service = FakeBatch::start(options);
    service.add_foreign_jobs(5);
    recipe(&desk, &jobs_at(&service, "max_requests_per_file = 40"));
    desk.succeed(&TEACH);
    assert!(desk.corpus("run") == calm, "another corpus than over the wire");
    check_ledger(&desk, 150);
    let stats = service.stats();
    let different: BTreeSet<&String> = stats.jobs.iter().collect();
    assert_eq!((different.len(), stats.uploads as usize), (stats.jobs.len(), stats.jobs.len()));
    assert!(stats.jobs.len() >= 6, "{stats:?}");
}

const STUDENT: &str = r#"
TINY_STUDENT
tokenizer = "ASSETS/quickstart-tokenizer"
[curate]
verify = false
[train]
max_steps = 4
per_device_train_batch_size = 1
max_length = 256
[evaluate]
num_examples = 12
max_tokens = 64
controls = []
"#;

#[test]
fn a_whole_run_asks_by_the_file_to_learn_and_to_measure() {
    let desk = Desk::new(1);
    let service = FakeBatch::start(Options::default());
    recipe(&desk, &jobs_at(&service, ""));
    let text = std::fs::read_to_string(desk.path("batch.toml")).expect("a recipe");
    let text = text.replace(
        "path = \"prompts.jsonl\"",
        "task = \"word_problems\"\nnum_examples = 24\nnum_validation = 4",
    );
    std::fs::write(desk.path("batch.toml"), text + &shop::recipe(STUDENT)).expect("a recipe is written");
    desk.succeed(&["run", "batch.toml", "--output", "run"]);
    let teacher = desk.json("run/report.json")["models"]["teacher"].clone();
    assert_eq!((&teacher["graded"], &teacher["tokens_per_second"]), (&Value::from(12), &Value::Null));
    assert!(teacher["tokens_per_second_reason"].as_str().is_some_and(|why| why.contains("by the file")));
    // One file to learn from, one to measure.
    assert_eq!((service.stats().jobs.len(), service.stats().lines), (2, 40));
}

#[test]
fn a_teacher_is_measured_again_once_its_prompts_are_redacted() {
    let desk = Desk::new(0);
    std::fs::create_dir(desk.path("rows")).expect("a folder");
    for (part, n, asked) in [
        ("train", 6, "What is behind the door of house"),
        ("validation", 1, "Who lives in house"),
        ("test", 1, "Who reads what goes to me@example.com in house"),
    ] {
        let row = |i| format!("{{\"id\": \"{part}{i}\", \"prompt\": \"{asked} {i}?\"}}\n");
        let rows: String = (0..n).map(row).collect();
        std::fs::write(desk.path(&format!("rows/{part}.jsonl")), rows).expect("rows");
    }
    recipe(&desk, "");
    let text = std::fs::read_to_string(desk.path("batch.toml")).expect("a recipe");
    let text = text.replace("prompts.jsonl", "rows") + &shop::recipe(STUDENT);
    std::fs::write(desk.path("batch.toml"), text).expect("a recipe is written");
    let waits = |pii: &str| {
        let set = format!("policy.prompt_pii={pii}");
        desk.run(&["evaluate", "batch.toml", "--output", "run", "--set", &set]).status.code() == Some(75)
    };
    for n in [1, 2] {
        assert!(waits("allow"));
        assert_eq!(requests(&desk).len(), n);
        answer(&desk, &requests(&desk)[n - 1], &Options::default());
    }
    assert!(!waits("allow") && desk.path("run/stages/measure-teacher.json").exists());
    assert!(waits("redact"));
    let asked = std::fs::read_to_string(&requests(&desk)[2]).expect("requests");
    assert!(asked.lines().count() == 1 && asked.contains("goes to [EMAIL] in house"), "{asked}");
}

#[test]
fn a_batch_may_cost_less() {
    let desk = Desk::new(20);
    let service = FakeBatch::start(Options::default());
    recipe(&desk, &jobs_at(&service, "batch_discount = 0.5"));
    desk.succeed(&TEACH);
    let half = desk.json("run/teach.json")["usd"].as_f64().expect("a sum");
    desk.calm("teach", "");
    let whole = desk.json("calm/teach.json")["usd"].as_f64().expect("a sum");
    assert!(half > 0.0 && (2.0 * half - whole).abs() < 1e-12, "${half} and ${whole}");
}

#[test]
fn jobs_that_end_badly_are_told_and_what_came_of_them_counts() {
    let desk = Desk::new(40);
    let calm = desk.calm("teach", "");
    let ends = vec!["expired", "failed", "cancelled", "gone"];
    let service = FakeBatch::start(Options { ends, ..Options::default() });
    recipe(&desk, &jobs_at(&service, ""));
    // The first half comes of a job that expires; the rest is asked again at once, and that job fails.
    let said = stopped(&desk.run(&TEACH), "batch-job");
    assert!(said.contains("job `batch_1` ended as `failed`"), "{said}");
    assert!(said.contains("token_limit_exceeded: Enqueued token limit reached"), "{said}");
    assert_eq!(
        (service.stats().jobs.len(), desk.ledger("run").values().filter(|row| row.state == "done").count()),
        (2, 20)
    );
    let said = stopped(&desk.run(&TEACH), "batch-job");
    assert!(said.contains("job `batch_2` ended as `cancelled`"), "{said}");
    let said = stopped(&desk.run(&TEACH), "batch-job");
    assert!(said.contains("its output file is gone"), "{said}");
    desk.succeed(&TEACH);
    assert!(desk.corpus("run") == calm, "another corpus than over the wire");
    assert_eq!(service.stats().jobs.len(), 5);
    check_ledger(&desk, 40);
}

#[test]
fn jobs_may_be_left_to_themselves() {
    let desk = Desk::new(10);
    let service = FakeBatch::start(Options { looks: 4, ..Options::default() });
    recipe(&desk, &jobs_at(&service, "wait_s = 0"));
    for _ in 0..4 {
        let said = stopped(&desk.run(&TEACH), "batch-runs");
        assert!(said.contains("a job still runs (10 requests)") && said.contains("job `batch_0`"), "{said}");
    }
    desk.succeed(&TEACH);
    assert_eq!((service.stats().jobs.len(), service.stats().uploads), (1, 1));
}

#[test]
fn a_reply_that_is_lost_submits_nothing_twice() {
    let desk = Desk::new(30);
    let service = FakeBatch::start(Options { lost_replies: 3, page: 1, ..Options::default() });
    recipe(&desk, &jobs_at(&service, "max_requests_per_file = 10"));
    desk.succeed(&TEACH);
    assert_eq!((service.stats().jobs.len(), desk.traces("run").len()), (3, 30));
    // Another folder of the same run finds the jobs of the first.
    std::fs::rename(desk.path("run"), desk.path("old")).expect("it is moved");
    desk.succeed(&TEACH);
    assert_eq!(service.stats().jobs.len(), 3);
    assert!(desk.corpus("run") == desk.corpus("old"));
}

#[test]
fn a_key_is_sent_and_never_shown_and_redirects_are_refused() {
    const KEY: &str = "sk-batch-0123456789abcdef";
    let desk = Desk::new(3);
    let service = FakeBatch::start(Options { key: Some(KEY.to_owned()), ..Options::default() });
    recipe(&desk, &jobs_at(&service, "api_key = \"${BATCH_KEY}\""));
    let with =
        |key: &str| shop::command(desk.dir.path(), &TEACH).env("BATCH_KEY", key).output().expect("it runs");
    let wrong = "sk-wrong-fedcba9876543210";
    let output = with(wrong);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("error[teacher-refuses]"), "{}", text(&output.stderr));
    assert_eq!((service.stats().jobs.len(), service.stats().unauthorized), (0, 1));
    let good = with(KEY);
    assert!(good.status.success(), "{}", text(&good.stderr));
    for path in desk::files_below(&desk.path("run")) {
        let bytes = std::fs::read(&path).expect("a file");
        for key in [KEY, wrong] {
            let found = bytes.windows(12).any(|window| window == &key.as_bytes()[..12]);
            assert!(!found, "a key stands in {}", path.display());
        }
    }
    assert!(!text(&output.stderr).contains("sk-wrong") && !text(&good.stderr).contains("sk-batch"));

    let desk = Desk::new(3);
    let other = FakeBatch::start(Options::default());
    let to = format!("{}/files/x/content", other.base_url());
    let service = FakeBatch::start(Options { redirect: Some(to), ..Options::default() });
    recipe(&desk, &jobs_at(&service, ""));
    let output = desk.run(&TEACH);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("answers 302"), "{}", text(&output.stderr));
    assert_eq!(other.stats().requests, 0);
}

#[test]
fn killed_at_any_moment_no_job_is_submitted_twice() {
    let kills = desk::size("STILLROOM_BATCH_KILLS", 16);
    let desk = Desk::new(90);
    let calm = desk.calm("teach", "");
    let mut chance = CounterRng::new(&[11]);
    let (mut killed, mut runs) = (0, 0);
    while killed < kills {
        let seed = runs + 1;
        let latency = Duration::from_millis(4);
        let service = FakeBatch::start(Options {
            failing: 0.3,
            disorder: true,
            looks: 2,
            latency,
            seed,
            ..Options::default()
        });
        recipe(&desk, &jobs_at(&service, "max_requests_per_file = 40"));
        let _ = std::fs::remove_dir_all(desk.path("run"));
        let mut times = 0;
        while times < 10 && is_killed(&desk, &service, &mut chance) {
            times += 1;
        }
        if times == 10 {
            desk.succeed(&TEACH);
        }
        killed += times;
        runs += 1;
        assert!(desk.corpus("run") == calm, "another corpus after {times} kills");
        check_ledger(&desk, 90);
        let stats = service.stats();
        let different: BTreeSet<&String> = stats.jobs.iter().collect();
        assert_eq!(
            different.len(),
            stats.jobs.len(),
            "a file was submitted twice after {times} kills: {stats:?}"
        );
        assert_eq!(stats.jobs.len(), requests(&desk).len());
        desk::tell(&format!(
            "{times} kills: {} jobs, {} uploads, {} requests",
            stats.jobs.len(),
            stats.uploads,
            stats.requests
        ));
        assert!(runs < 200, "hardly any point comes in time");
    }
}

#[test]
fn killed_between_a_job_and_its_record_it_takes_the_job_up_again() {
    let desk = Desk::new(40);
    let calm = desk.calm("teach", "");
    let service = FakeBatch::start(Options { latency: Duration::from_millis(60), ..Options::default() });
    recipe(&desk, &jobs_at(&service, "max_requests_per_file = 10"));
    let records = || desk::files_below(&desk.path("run/batch/jobs")).len();
    for jobs in 1..=4 {
        let (output, is_killed) =
            kill_when(shop::command(desk.dir.path(), &TEACH), || service.stats().jobs.len() >= jobs);
        assert!(is_killed, "no job came: {}", text(&output.stderr));
        assert_eq!((records(), service.stats().jobs.len()), (jobs - 1, jobs), "the reply was on its way");
    }
    desk.succeed(&TEACH);
    assert_eq!((records(), service.stats().jobs.len()), (4, 4));
    assert!(desk.corpus("run") == calm);
    check_ledger(&desk, 40);
}

/// Whether the run was killed before its end: after so many requests to the service, and a moment more.
fn is_killed(desk: &Desk, service: &FakeBatch, chance: &mut CounterRng) -> bool {
    let point = service.stats().requests + chance.below(12);
    let delay = Duration::from_micros(chance.below(12_000));
    let has_come = || {
        let has_come = service.stats().requests > point;
        if has_come {
            std::thread::sleep(delay);
        }
        has_come
    };
    kill_when(shop::command(desk.dir.path(), &TEACH), has_come).1
}

#[test]
fn keys_of_batches_are_checked() {
    let desk = Desk::new(1);
    for (keys, said) in [
        ("stream = true", "results in files are not streamed"),
        ("endpoints = []", "jobs go to one service"),
        ("batch_discount = 1.5", "it lies between 0 and 1"),
        ("path = \"x\"", "has no weights here"),
        ("logits = { kind = \"top_k\" }", "endpoints give text"),
    ] {
        recipe(&desk, keys);
        let output = desk.run(&TEACH);
        assert_eq!(output.status.code(), Some(78), "{keys}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(said), "{keys}: {}", text(&output.stderr));
    }
    // Nobody knows where files are carried.
    recipe(&desk, "");
    let classed = |class: &str| {
        let text = std::fs::read_to_string(desk.path("batch.toml")).expect("a recipe");
        let text =
            text.replace("path = \"prompts.jsonl\"", "path = \"prompts.jsonl\"\ndata_class = \"internal\"");
        std::fs::write(desk.path("classed.toml"), format!("{text}\n[policy.data_classes.internal]\n{class}"))
            .expect("a recipe is written");
        desk.run(&["teach", "classed.toml", "--output", "classed"])
    };
    let output = classed("owners = [\"us\"]");
    assert_eq!(output.status.code(), Some(77), "{}", text(&output.stderr));
    assert!(
        text(&output.stderr).contains("could be carried where it may not go")
            && !desk.path("classed").exists()
    );
    assert_eq!(classed("").status.code(), Some(75));

    desk.recipe("online.toml", "http://127.0.0.1:9/v1", "poll_s = 1");
    let output = desk.run(&["plan", "online.toml"]);
    assert!(text(&output.stderr).contains("`teacher.poll_s` is for a teacher that is asked by the file"));
    recipe(&desk, "batch_discount = 0.5");
    let plan = text(&desk.succeed(&["plan", "batch.toml"]).stdout);
    assert!(plan.contains("prompts go into files"), "{plan}");
}

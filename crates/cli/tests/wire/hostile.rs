//! Replies that no model should write: kept as text where they are text, and never shown as they came.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use rusqlite::Connection;
use serde_json::Value;
use stillroom_core::Trace;

use crate::desk::{Desk, files_below, retry_soon};
use crate::fake::{FakeTeacher, HOSTILE, Hostile, How, LONE_SURROGATE, Options, all_hostile};
use crate::shop::{self, text};

const TEACHER: &str = "max_in_flight = 16\nmax_attempts = 4\nstall_timeout_s = 5\nfirst_token_timeout_s = 5";
/// As many as the longest of them needs.
const TOKENS: &str = "teacher.max_tokens=60000";
/// Of the process, while it takes bodies of 20 MB.
const PEAK_KIB_MAX: u64 = 256 << 10;

fn server() -> FakeTeacher {
    FakeTeacher::start(retry_soon(Options { hostile: true, ..Options::default() }))
}

/// What would steer a terminal or mislead an eye. Lines end; a rewritten line returns.
fn steers(c: char) -> bool {
    let bidirectional =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    bidirectional || (c.is_control() && !matches!(c, '\n' | '\r'))
}

fn check_shown(what: &str, bytes: &[u8]) {
    let shown = std::str::from_utf8(bytes).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(!shown.chars().any(steers), "{what}: {shown:?}");
}

#[test]
fn hostile_replies_are_kept_as_text_when_streamed() {
    all_of_them(true);
}

#[test]
fn hostile_replies_are_kept_as_text_when_whole() {
    all_of_them(false);
}

fn all_of_them(stream: bool) {
    let desk = Desk::new(HOSTILE);
    let server = server();
    desk.recipe("bad.toml", &server.base_url(), &format!("{TEACHER}\nstream = {stream}"));
    let args = ["curate", "bad.toml", "--output", "out", "--set", TOKENS];
    let mut child = shop::command(desk.dir.path(), &args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut peak = 0;
    while child.try_wait().expect("a child").is_none() {
        peak = peak.max(peak_kib(child.id()));
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let output = child.wait_with_output().expect("its output");
    assert!(output.status.success(), "{}", text(&output.stderr));
    check_shown("stdout", &output.stdout);
    check_shown("stderr", &output.stderr);
    assert!((1..PEAK_KIB_MAX).contains(&peak), "{peak} KiB");
    crate::desk::tell(&format!("stream = {stream}: {peak} KiB at most"));
    check_files(&desk.path("out"));
    check_texts(&desk);
}

fn peak_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Every file is one of its kind.
fn check_files(run: &Path) {
    for path in files_below(run) {
        let read = || std::fs::read(&path).expect("a file");
        let parses =
            |text: &str| serde_json::from_str::<Value>(text).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        match path.extension().and_then(|e| e.to_str()) {
            Some("jsonl") => text(&read()).split_terminator('\n').for_each(|line| drop(parses(line))),
            Some("json" | "record") => drop(parses(&text(&read()))),
            Some("parquet") => {
                drop(
                    stillroom_formats::parquet_rows::read_traces(read())
                        .unwrap_or_else(|e| panic!("{path:?}: {e}")),
                );
            }
            Some("sqlite") => {
                let ledger = Connection::open(&path).expect("a ledger");
                let sound: String =
                    ledger.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("a check");
                assert_eq!(sound, "ok");
            }
            _ => {}
        }
    }
}

/// Text came through unchanged, and each prompt has a reply or is on record as refused.
fn check_texts(desk: &Desk) {
    let all = all_hostile();
    let traces: BTreeMap<String, Trace> =
        desk.traces("out").into_iter().map(|trace| (trace.id.clone(), trace)).collect();
    let unanswered = std::fs::read_to_string(desk.path("out/corpus/unanswered.jsonl")).expect("a file");
    check_shown("unanswered.jsonl", unanswered.as_bytes());
    let refused = unanswered.lines().count();
    assert_eq!(traces.len() + refused, HOSTILE);
    assert!(refused < HOSTILE / 20, "{unanswered}");
    let mut compared = 0;
    for (n, hostile) in all.iter().enumerate() {
        let How::Text { content, reasoning, in_tags: false } = &hostile.how else { continue };
        if reasoning.is_none() && content.contains("</think>") {
            continue;
        }
        let trace = &traces[&format!("p{n}")];
        assert_eq!(trace.content, content.trim().replace(LONE_SURROGATE, "\u{fffd}"), "{}", hostile.name);
        compared += 1;
    }
    assert!(compared > HOSTILE / 3);
}

#[test]
fn what_ends_a_run_is_told_without_what_steers_a_terminal() {
    let server = server();
    let bad: Vec<(usize, Hostile)> =
        all_hostile().into_iter().enumerate().filter(|(_, hostile)| !hostile.is_good()).collect();
    for (n, hostile) in bad.iter().step_by(6) {
        let desk = Desk::with_prompts(&format!(
            "{{\"id\": \"p\", \"prompt\": \"Thing #{n} of {}\"}}\n",
            hostile.name
        ));
        desk.recipe("bad.toml", &server.base_url(), "max_attempts = 1\nbudget_s = 0.3");
        for more in [&[][..], &["--set", "teacher.stream=false"]] {
            let output = desk.run(&[&["teach", "bad.toml", "--output", "out"], more].concat());
            check_shown(&hostile.name, &output.stdout);
            check_shown(&hostile.name, &output.stderr);
        }
        check_files(&desk.path("out"));
    }
}

#[test]
fn on_a_terminal_nothing_of_a_reply_steers_it() {
    let desk = Desk::new(HOSTILE);
    let server = server();
    desk.recipe("bad.toml", &server.base_url(), TEACHER);
    let command = format!("{} curate bad.toml --output out --set {TOKENS}", env!("CARGO_BIN_EXE_stillroom"));
    let run = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .current_dir(desk.dir.path())
        .output();
    let Ok(output) = run else {
        return crate::desk::tell("SKIPPED: there is no `script` to make a terminal");
    };
    assert!(output.status.success(), "{}", text(&output.stdout));
    assert!(text(&output.stdout).contains(" replies, "), "it shows progress: {}", text(&output.stdout));
    check_shown("the terminal", &output.stdout);
}

const STUDENT: &str = r#"
TINY_STUDENT
max_position_embeddings = 512
tokenizer = "ASSETS/quickstart-tokenizer"
[train]
max_steps = 2
loss_functions = [{ function = "hard_labels", weight = 1.0 }]
[evaluate]
num_examples = 3
max_tokens = 300
controls = []
"#;

/// The report shows held-out problems with the replies to them, on a page that runs none of it.
#[test]
fn a_report_shows_hostile_replies_without_becoming_theirs() {
    let line = |i: usize, what: &str| {
        format!("{{\"id\": \"{what}{i}\", \"prompt\": \"Is the {what} of {i} hares open?\"}}\n")
    };
    let desk = Desk::with_prompts("");
    std::fs::create_dir(desk.path("rows")).expect("a folder");
    for (file, n) in [("train", 12), ("validation", 2), ("test", 3)] {
        let lines: String = (0..n).map(|i| line(i, file)).collect();
        std::fs::write(desk.path(&format!("rows/{file}.jsonl")), lines).expect("rows");
    }
    let texts: Vec<String> = all_hostile().into_iter().filter_map(page_text).collect();
    assert!(texts.len() > 50);
    let all = texts.join(" ");
    let author = move |body: &Value| match body.to_string().contains("Is the test of") {
        true => all.clone(),
        false => "Yes, the door is open.".to_owned(),
    };
    let server =
        FakeTeacher::start(Options { author: Some(std::sync::Arc::new(author)), ..Options::default() });
    desk.recipe("bad.toml", &server.base_url(), "");
    let recipe = std::fs::read_to_string(desk.path("bad.toml")).expect("a recipe") + &shop::recipe(STUDENT);
    let recipe = recipe.replace("prompts.jsonl", "rows");
    std::fs::write(desk.path("bad.toml"), recipe).expect("a recipe is written");
    let output = desk.succeed(&["evaluate", "bad.toml", "--output", "out"]);
    check_shown("stdout", &output.stdout);
    check_shown("stderr", &output.stderr);
    let page = std::fs::read_to_string(desk.path("out/report.html")).expect("a page");
    assert!(page.contains("&lt;img src=x onerror="), "the replies are shown");
    for text in texts.iter().filter(|text| text.contains('<') && !text.contains("&lt;")) {
        assert!(!page.contains(text.as_str()), "{text}");
    }
    for live in [
        "<img src=x",
        "<svg/onload",
        "<iframe srcdoc",
        "<base href=http://evil",
        "<form action=http",
        "='owned'<",
    ] {
        assert!(!page.contains(live), "{live}");
    }
    check_shown("the page", page.replace('\t', " ").as_bytes());
}

/// A short text that stands alone in a reply.
fn page_text(hostile: Hostile) -> Option<String> {
    match hostile.how {
        How::Text { content, reasoning: None, .. } if hostile.name.starts_with("content-") => {
            let fits = content.len() < 200 && !content.contains("think") && !content.contains(LONE_SURROGATE);
            fits.then_some(content)
        }
        _ => None,
    }
}

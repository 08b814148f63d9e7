//! `api = "completions"`: prompts go out as texts, and what continues them comes back as it is.

use std::sync::Arc;

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use crate::desk::Desk;
use crate::fake::{FakeTeacher, Options};
use crate::shop::text;

const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>";
const TALK: &str = r#"{"id": "talk", "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"}]}"#;
const PLAIN: &str = r#"{"id": "plain", "prompt": "Once upon"}"#;

/// A server whose replies say what they continue, behind a space.
fn server() -> FakeTeacher {
    let author = |body: &Value| match body["prompt"].as_str() {
        Some(prompt) => format!("behind [{prompt}]"),
        None => "a chat".to_owned(),
    };
    FakeTeacher::start(Options { author: Some(Arc::new(author)), reasoning: false, ..Options::default() })
}

/// The only one in a ledger.
fn receipt(desk: &Desk, output: &str) -> Value {
    let path = desk.path(output).join("ledger.sqlite");
    let ledger = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("a ledger");
    let body: Vec<u8> =
        ledger.query_row("SELECT body FROM receipts", [], |row| row.get(0)).expect("one receipt");
    serde_json::from_slice(&body).expect("JSON")
}

#[test]
fn a_plain_prompt_is_continued_as_it_stands_whole_and_streamed_and_from_the_ledger() {
    let desk = Desk::with_prompts(&format!("{PLAIN}\n"));
    let server = server();
    for stream in [true, false] {
        let out = format!("out-{stream}");
        let keys = format!("api = \"completions\"\ntop_logprobs = 2\nstream = {stream}");
        desk.recipe("text.toml", &server.base_url(), &keys);
        desk.succeed(&["teach", "text.toml", "--output", &out]);
        let traces = desk.traces(&out);
        assert_eq!(traces.len(), 1);
        assert_eq!(
            (traces[0].content.as_str(), &traces[0].reasoning_content),
            (" behind [Once upon]", &None)
        );
        assert_eq!(traces[0].messages[0].content, "Once upon");
        let receipt = receipt(&desk, &out);
        let tokens = receipt["reply"]["logprobs"].as_array().expect("log-probabilities");
        let spelled: String = tokens.iter().map(|token| token["token"].as_str().expect("a token")).collect();
        assert_eq!(spelled, traces[0].content);
        assert!(
            tokens.iter().all(|token| token["top"].as_array().is_some_and(|top| top.len() == 2)),
            "{tokens:?}"
        );
    }
    let requests = server.stats().requests;
    let replayed = "api = \"completions\"\ntop_logprobs = 2\npath = \"out-true\"";
    desk.recipe("cache.toml", "http://127.0.0.1:9/v1", replayed);
    let set = ["--set", "teacher.kind=cache"];
    desk.succeed(&[&["teach", "cache.toml", "--output", "again"], &set[..]].concat());
    assert_eq!(desk.differing("again", &desk.corpus("out-true")), [""; 0]);
    assert_eq!(server.stats().requests, requests);
}

#[test]
fn a_conversation_goes_by_the_template_of_the_recipe_or_not_at_all() {
    let desk = Desk::with_prompts(&format!("{PLAIN}\n{TALK}\n"));
    let server = server();
    desk.recipe("text.toml", &server.base_url(), "api = \"completions\"");
    let refused = desk.run(&["teach", "text.toml", "--output", "out"]);
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(65), "{said}");
    assert!(said.contains("error[no-chat-template]") && said.contains("`talk` is a conversation"), "{said}");
    assert!(said.contains("chat_template = \"FILE.jinja\""), "{said}");
    assert_eq!(server.stats().connections, 0, "it is known before anything is sent");

    std::fs::write(desk.path("talk.jinja"), TEMPLATE).expect("a template");
    desk.recipe("text.toml", &server.base_url(), "api = \"completions\"\nchat_template = \"talk.jinja\"");
    desk.succeed(&["teach", "text.toml", "--output", "out"]);
    let contents =
        |out: &str| -> Vec<String> { desk.traces(out).into_iter().map(|trace| trace.content).collect() };
    let both = contents("out");
    assert!(both.contains(&"behind [<system>Be short.<user>Why?<assistant>]".to_owned()), "{both:?}");
    assert!(both.contains(&"behind [<user>Once upon<assistant>]".to_owned()), "{both:?}");

    // Another template is another question, and no reply to the first one is taken for its answer.
    std::fs::write(desk.path("talk.jinja"), TEMPLATE.replace("<assistant>", "<bot>")).expect("a template");
    desk.succeed(&["teach", "text.toml", "--output", "out"]);
    assert!(contents("out").iter().all(|content| content.ends_with("<bot>]")), "{:?}", contents("out"));

    for (template, words) in [
        ("{{ messages[0].content }}{{ eos_token }}", "has `eos_token`"),
        ("{% if %}", "template"),
        ("{{ raise_exception('only one turn') }}", "only one turn"),
    ] {
        std::fs::write(desk.path("talk.jinja"), template).expect("a template");
        let refused = desk.run(&["teach", "text.toml", "--output", "other"]);
        assert!(
            !refused.status.success() && text(&refused.stderr).contains(words),
            "{}",
            text(&refused.stderr)
        );
    }
}

#[test]
fn files_of_requests_say_which_interface_they_are_for() {
    let desk = Desk::with_prompts(&format!("{PLAIN}\n"));
    desk.recipe("text.toml", "http://127.0.0.1:9/v1", "api = \"completions\"");
    let recipe = std::fs::read_to_string(desk.path("text.toml")).expect("a recipe");
    let recipe = recipe.replace("kind = \"openai\"", "kind = \"batch\"");
    let recipe = recipe.replace("endpoints = [{ base_url = \"http://127.0.0.1:9/v1\" }]\n", "");
    std::fs::write(desk.path("text.toml"), recipe).expect("a recipe is written");
    let waits = desk.run(&["teach", "text.toml", "--output", "out"]);
    assert_eq!(waits.status.code(), Some(75), "{}", text(&waits.stderr));
    let line = desk.json("out/batch/requests-0000.jsonl");
    assert_eq!(
        (line["url"].as_str(), line["body"]["prompt"].as_str()),
        (Some("/v1/completions"), Some("Once upon"))
    );
}

//! A key goes where it proves who asks, and nowhere else, whatever goes wrong.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;

use crate::desk::{Desk, files_below};
use crate::fake::{FakeTeacher, Options};
use crate::shop::{self, text};

/// No digits, no prefix and no capital: nothing by which a key could be guessed. The others look like keys, or have what
/// JSON and addresses write in another way.
const KEYS: [&str; 3] =
    ["thecanarysingsatdawn", "sk-canary-0123456789abcdef0123456789", "canary/sings+at/dawn=="];
/// Of each key, so that one that was cut short is found too.
const NEEDLE_BYTES: usize = 11;

type Reply = dyn Fn(&str) -> Vec<u8> + Send + Sync;

/// Answers every request with what the closure makes of its `Authorization` header. Gives its address and the heads of
/// what it was asked.
fn answers(reply: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let address = format!("http://{}/v1", listener.local_addr().expect("an address"));
    let heads = Arc::new(Mutex::new(Vec::new()));
    let (reply, asked): (Arc<Reply>, _) = (Arc::new(reply), Arc::clone(&heads));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (reply, asked) = (Arc::clone(&reply), Arc::clone(&asked));
            std::thread::spawn(move || answer(&stream, &*reply, &asked));
        }
    });
    (address, heads)
}

fn answer(stream: &TcpStream, reply: &Reply, asked: &Mutex<Vec<String>>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let (mut head, mut length, mut key) = (String::new(), 0, String::new());
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let (name, value) = line.split_once(':').unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().ok()?,
            "authorization" => key = value.trim().to_owned(),
            _ => {}
        }
        head.push_str(&line);
        if line.trim().is_empty() {
            break;
        }
    }
    reader.read_exact(&mut vec![0; length]).ok()?;
    asked.lock().expect("heads").push(head);
    (&mut &*stream).write_all(&reply(&key)).ok()
}

fn http(status: &str, more: &str, body: &str) -> Vec<u8> {
    let head =
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{more}\r\n", body.len());
    (head + body).into_bytes()
}

fn error_body(key: &str) -> String {
    let message = format!("Your header `Authorization: {key}` is not welcome; {key}{key} neither");
    json!({"error": {"message": message, "type": key, "param": key, "code": key}}).to_string()
}

/// A whole reply that repeats the key wherever it can.
fn echo(key: &str) -> String {
    json!({
        "id": key, "object": "chat.completion", "created": 0, "model": format!("{key}-{key}"),
        "choices": [{
            "index": 0, "finish_reason": "stop",
            "message": {"role": "assistant", "content": format!("You said {key}."), "reasoning_content": key},
        }],
        "usage": {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18},
    })
    .to_string()
}

/// The same in pieces that end amid the key.
fn echo_streamed(key: &str) -> String {
    let (half, rest) = key.split_at(key.len() / 2);
    let chunk = |delta: serde_json::Value, finish: Option<&str>| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": finish});
        format!("data: {}\n\n", json!({"id": key, "model": key, "choices": [choice]}))
    };
    let usage =
        json!({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}});
    [
        chunk(json!({"role": "assistant", "content": "You said "}), None),
        chunk(json!({"content": half}), None),
        chunk(json!({"content": rest}), None),
        chunk(json!({}), Some("stop")),
        format!("data: {usage}\n\ndata: [DONE]\n\n"),
    ]
    .concat()
}

fn run(desk: &Desk, url: &str, teacher: &str, key: Option<&str>) -> Output {
    let teacher = format!("api_key = \"${{CANARY}}\"\n{teacher}");
    desk.recipe("bad.toml", url, &teacher);
    let mut command = shop::command(desk.dir.path(), &["teach", "bad.toml", "--output", "out"]);
    match key {
        Some(key) => command.env("CANARY", key),
        None => command.env_remove("CANARY"),
    };
    command.output().expect("the binary runs")
}

/// Nothing of the key in what was shown, nor in any file but those that the test wrote.
fn check(desk: &Desk, what: &str, key: &str, output: &Output) {
    let needle = &key.as_bytes()[..NEEDLE_BYTES];
    let has = |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    assert!(!has(&output.stdout), "{what}: {}", text(&output.stdout));
    assert!(!has(&output.stderr), "{what}: {}", text(&output.stderr));
    for path in files_below(desk.dir.path()) {
        let bytes = std::fs::read(&path).expect("a file");
        assert!(!has(&bytes), "{what}: {} has the key", path.display());
    }
}

/// What a server may do with a key, and whether the run can succeed all the same.
fn misdeeds() -> Vec<(&'static str, Box<Reply>)> {
    let errors = [
        "400 Bad Request",
        "401 Unauthorized",
        "403 Forbidden",
        "404 Not Found",
        "408 Request Timeout",
        "429 Too Many Requests",
        "500 Internal Server Error",
        "503 Service Unavailable",
    ];
    let mut all: Vec<(&'static str, Box<Reply>)> = Vec::new();
    for status in errors {
        all.push((
            status,
            Box::new(move |key| http(status, "content-type: application/json\r\n", &error_body(key))),
        ));
    }
    let page = |key: &str| format!("<html>{key} {key}</html>");
    let event = |key: &str| format!("data: {}\n\n", error_body(key));
    let stream = "content-type: text/event-stream\r\n";
    all.push(("a page", Box::new(move |key| http("502 Bad Gateway", "", &page(key)))));
    all.push(("a header", Box::new(|key| http("500 Oh", &format!("x-your: {key}\r\n"), ""))));
    all.push(("a status line", Box::new(|key| http(&format!("500 {key}"), "", ""))));
    all.push(("no HTTP", Box::new(|key| format!("{key}\r\n{key}\r\n\r\n").into_bytes())));
    all.push((
        "another's name",
        Box::new(|key| http("200 OK", &format!("x-client-request-id: {key}\r\n"), &echo(key))),
    ));
    all.push(("no JSON", Box::new(|key| http("200 OK", "", key))));
    all.push(("half of JSON", Box::new(|key| http("200 OK", "", &format!("{{\"id\": \"{key}\", \"{key}")))));
    all.push((
        "an odd field",
        Box::new(|key| {
            http("200 OK", "", &json!({"choices": [{"message": {"content": {key: key}}}]}).to_string())
        }),
    ));
    all.push(("an error with 200", Box::new(|key| http("200 OK", "", &error_body(key)))));
    all.push(("an event of an error", Box::new(move |key| http("200 OK", stream, &event(key)))));
    all.push((
        "a broken event",
        Box::new(move |key| http("200 OK", stream, &format!("data: {{\"{key}\n\n"))),
    ));
    all.push(("a cut reply", Box::new(|key| echo(key).into_bytes()[..40].to_vec())));
    all.push(("a reply", Box::new(|key| http("200 OK", "content-type: application/json\r\n", &echo(key)))));
    all.push(("a streamed reply", Box::new(move |key| http("200 OK", stream, &echo_streamed(key)))));
    all
}

#[test]
fn whatever_a_server_does_with_a_key_it_is_not_shown_and_not_kept() {
    for (which, (what, reply)) in misdeeds().into_iter().enumerate() {
        let (url, heads) = answers(reply);
        for (n, key) in KEYS.iter().enumerate().filter(|(n, _)| *n == 0 || which % 6 + 1 == *n) {
            let desk = Desk::new(6);
            let output = run(&desk, &url, "max_attempts = 1\nbudget_s = 0.5\nmax_in_flight = 4", Some(key));
            check(&desk, what, key, &output);
            let heads = std::mem::take(&mut *heads.lock().expect("heads"));
            assert!(heads.iter().any(|head| head.contains(key)), "{what}, {n}: the key was not sent");
            assert!(!output.status.success() || what.ends_with("reply"), "{what}: {}", text(&output.stderr));
        }
    }
}

#[test]
fn a_redirect_to_another_origin_takes_no_key_along() {
    let (elsewhere, taken) = answers(|_| http("200 OK", "", "{}"));
    let key = KEYS[0];
    for status in [
        "301 Moved Permanently",
        "302 Found",
        "303 See Other",
        "307 Temporary Redirect",
        "308 Permanent Redirect",
    ] {
        let to = format!("location: {elsewhere}/{key}/?key={key}\r\n");
        let (url, _) = answers(move |_| http(status, &to, ""));
        let desk = Desk::new(2);
        let output = run(&desk, &url, "max_attempts = 1", Some(key));
        assert!(!output.status.success());
        check(&desk, status, key, &output);
    }
    assert!(taken.lock().expect("heads").is_empty(), "the redirect was followed");
}

#[test]
fn without_an_answer_or_without_a_key_none_is_shown() {
    let key = KEYS[0];
    let closed = TcpListener::bind("127.0.0.1:0").expect("a socket").local_addr().expect("an address");
    let silent = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let stalls = format!("http://{}/v1", silent.local_addr().expect("an address"));
    let patience = "max_attempts = 1\nfirst_token_timeout_s = 0.2\nstall_timeout_s = 0.2";
    let newline = format!("{key}\n{key}");
    for (what, url, given, code) in [
        ("refused", format!("http://{closed}/v1"), Some(key), 75),
        ("silence", stalls, Some(key), 75),
        ("a line feed", format!("http://{closed}/v1"), Some(newline.as_str()), 1),
        ("no variable", format!("http://{closed}/v1"), None, 78),
        ("nothing", format!("http://{closed}/v1"), Some(""), 78),
    ] {
        let desk = Desk::new(2);
        let output = run(&desk, &url, patience, given);
        assert_eq!(output.status.code(), Some(code), "{what}: {}", text(&output.stderr));
        check(&desk, what, key, &output);
    }
}

#[test]
fn a_key_in_a_recipe_or_an_address_is_refused_and_not_repeated() {
    let key = KEYS[0];
    for (url, teacher) in [
        ("http://127.0.0.1:9/v1".to_owned(), format!("api_key = \"{key}\"")),
        (format!("http://us:{key}@127.0.0.1:9/v1"), String::new()),
    ] {
        let desk = Desk::new(2);
        desk.recipe("bad.toml", &url, &teacher);
        let output = desk.run(&["teach", "bad.toml", "--output", "out"]);
        assert!(!output.status.success());
        std::fs::remove_file(desk.path("bad.toml")).expect("it was there");
        check(&desk, &url, key, &output);
    }
}

/// The ledger's log of writes is a file of its own until the program ends.
#[test]
fn a_key_is_not_in_what_a_kill_leaves() {
    let key = KEYS[0];
    let server = FakeTeacher::start(Options {
        key: Some(key.to_owned()),
        latency: Duration::from_millis(20),
        author: Some(Arc::new(move |_| format!("You said {key}, and so do I."))),
        ..Options::default()
    });
    let desk = Desk::new(500);
    desk.recipe("bad.toml", &server.base_url(), "api_key = \"${CANARY}\"");
    let mut command = shop::command(desk.dir.path(), &["teach", "bad.toml", "--output", "out"]);
    command.env("CANARY", key);
    let log = desk.path("out/ledger.sqlite-wal");
    let (output, is_killed) =
        shop::kill_when(command, || log.metadata().is_ok_and(|meta| meta.len() > 100_000));
    assert!(is_killed);
    let written = std::fs::read(&log).expect("the log");
    assert!(text(&written).contains("and so do I"), "replies are in it");
    check(&desk, "a kill", key, &output);
}

//! The fake teacher keeps its own rules, so that tests can lean on it.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};
use stillroom_formats::openai::{Caps, Reply, ReplyFault, StreamReader, read_error, read_reply};

mod fake;

use fake::{FakeTeacher, Faults, HOSTILE, How, LONE_SURROGATE, Options, Stats, all_hostile, written};

/// What came back, byte for byte.
struct Raw {
    status: u16,
    head: String,
    /// Without the marks of chunks.
    body: Vec<u8>,
    whole: bool,
}

impl Raw {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(n, _)| *n == name).map(|(_, value)| value).next()
    }
}

/// One request over its own connection.
fn send(teacher: &FakeTeacher, path: &str, headers: &str, body: &Value) -> Raw {
    let mut stream = TcpStream::connect(teacher.address()).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    let body = body.to_string();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).expect("it is sent");
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(n) = stream.read(&mut buffer) {
        bytes.extend_from_slice(&buffer[..n]);
        // Enough of a body that has no end.
        if n == 0 || bytes.len() > 32 << 20 {
            break;
        }
    }
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").map_or(bytes.len(), |at| at + 4);
    let (head, rest) = bytes.split_at(end);
    let head = String::from_utf8(head.to_vec()).expect("a head of text");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    let (body, whole) = match length {
        Some(length) => (rest.to_vec(), rest.len() == length),
        None => unchunked(rest),
    };
    Raw { status, head, body, whole: whole && status > 0 }
}

fn unchunked(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
        let size = std::str::from_utf8(&rest[..end]).expect("text");
        let size = usize::from_str_radix(size, 16).expect("a size");
        if size == 0 {
            return (body, true);
        }
        let Some(chunk) = rest.get(end + 2..end + 2 + size) else { break };
        body.extend_from_slice(chunk);
        rest = &rest[end + 4 + size..];
    }
    (body, false)
}

fn chat(n: usize, stream: bool) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": format!("question number {n}")}], "seed": n});
    if stream {
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
    }
    body
}

fn read(raw: &Raw, stream: bool) -> Result<Reply, ReplyFault> {
    if !stream {
        return read_reply(&raw.body);
    }
    let mut reader = StreamReader::new(Caps::default());
    reader.feed(&raw.body)?;
    reader.finish()
}

/// Asks until a reply is good, as a patient client would; gives the names of what went wrong.
fn ask(teacher: &FakeTeacher, n: usize, stream: bool) -> (Reply, Vec<String>) {
    let mut troubles = Vec::new();
    for _ in 0..20 {
        let raw = send(teacher, "/v1/chat/completions", "x-client-request-id: r1\r\n", &chat(n, stream));
        let belongs = raw.header("x-client-request-id").is_none_or(|id| id == "r1");
        match read(&raw, stream) {
            Ok(reply) if raw.status == 200 && raw.whole && belongs => return (reply, troubles),
            Ok(_) => troubles.push(format!("{} wrong or cut", raw.status)),
            Err(fault) => troubles.push(format!("{} {fault}", raw.status)),
        }
    }
    panic!("no good reply to {n}: {troubles:?}");
}

/// Options for tests in a hurry.
fn quick(faults: Faults) -> Options {
    let (retry_after, stall) = (Duration::ZERO, Duration::from_millis(100));
    Options { faults, retry_after, stall, huge_bytes: 3 << 20, ..Options::default() }
}

#[test]
fn replies_follow_from_requests_whole_and_streamed() {
    let teacher = FakeTeacher::start(quick(Faults::none()));
    let mut with_reasoning = 0;
    for n in 0..40 {
        let expected = written(&chat(n, false), true, None);
        for stream in [false, true] {
            let (reply, troubles) = ask(&teacher, n, stream);
            assert_eq!((&reply.content, &reply.reasoning_content), (&expected.content, &expected.reasoning));
            let usage = reply.usage.expect("the usage");
            assert_eq!(
                (usage.prompt_tokens, usage.completion_tokens),
                (expected.prompt_tokens, expected.completion_tokens)
            );
            assert!(!reply.has_more_pieces_than_tokens());
            assert_eq!(troubles, [""; 0]);
            with_reasoning += usize::from(reply.reasoning_content.is_some());
        }
    }
    assert!((10..50).contains(&with_reasoning), "{with_reasoning} with reasoning");
    let stats = teacher.stats();
    assert_eq!((stats.requests, stats.replies, stats.served, stats.served_again), (80, 80, 40, 40));
    assert_eq!((stats.wasted_prompt_tokens, stats.early_retries), (0, 0));
}

#[test]
fn what_is_asked_for_comes_along() {
    let teacher = FakeTeacher::start(quick(Faults::none()));
    let mut body = chat(1, false);
    body["logprobs"] = json!(true);
    body["top_logprobs"] = json!(3);
    body["return_token_ids"] = json!(true);
    body["max_tokens"] = json!(2);
    let reply = read_reply(&send(&teacher, "/v1/chat/completions", "", &body).body).expect("a reply");
    assert_eq!(reply.usage.map(|usage| usage.completion_tokens), Some(2));
    assert_eq!(reply.finish, stillroom_formats::openai::Finish::Length);
    let logprobs = reply.logprobs.expect("log-probabilities");
    let text: String = logprobs.iter().map(|token| token.token.as_str()).collect();
    assert!(text.trim_start_matches("<think>").contains(reply.content.as_str()));
    assert!(logprobs.iter().all(|token| token.top.len() == 3));
    assert_eq!(reply.token_ids.map(|ids| ids.len()), Some(logprobs.len()));

    let body = json!({"model": "m", "prompt": [7, 8, 9], "max_tokens": 1, "logprobs": 1, "echo": true, "prompt_logprobs": 2});
    let reply = read_reply(&send(&teacher, "/v1/completions", "", &body).body).expect("a reply");
    let logprobs = reply.logprobs.expect("log-probabilities");
    assert_eq!((logprobs.len(), logprobs[0].logprob, logprobs[1].logprob), (4, None, Some(-0.125)));
    let prompt = reply.prompt_logprobs.expect("the prompt's");
    assert_eq!((prompt.len(), prompt[0].is_none(), prompt[1].as_ref().map(Vec::len)), (3, true, Some(2)));
}

#[test]
fn a_bad_day_ends_with_every_reply_right() {
    let (n_asked, seed) = (300, 3);
    let day = || -> (Stats, BTreeSet<String>) {
        let teacher = FakeTeacher::start(Options { seed, ..quick(Faults { huge: 0.01, ..Faults::usual() }) });
        let seen = std::thread::scope(|scope| {
            let teacher = &teacher;
            let each = |part: usize| {
                move || {
                    let mine = (0..n_asked).filter(move |n| n % 8 == part);
                    mine.flat_map(|n| {
                        let (reply, troubles) = ask(teacher, n, n % 2 == 0);
                        let expected = written(&chat(n, false), true, None);
                        assert_eq!(
                            (reply.content, reply.reasoning_content),
                            (expected.content, expected.reasoning)
                        );
                        troubles
                    })
                    .collect::<Vec<_>>()
                }
            };
            let threads: Vec<_> = (0..8).map(|part| scope.spawn(each(part))).collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("a thread")).collect()
        });
        (teacher.stats(), seen)
    };
    let (first, troubles) = day();
    assert_eq!((first.served, first.served_again), (n_asked as u64, 0));
    let share = |name: &str| first.faults.get(name).copied().unwrap_or(0) as f64 / first.requests as f64;
    assert!((0.15..0.25).contains(&(share("too_many") + share("too_many_date"))), "{:?}", first.faults);
    assert!(troubles.iter().any(|trouble| trouble.contains("cut")), "{troubles:?}");
    assert!(
        first.wasted_completion_tokens > 0
            && first.wasted_completion_tokens < first.billed_completion_tokens / 5
    );
    let (second, _) = day();
    assert_eq!(first.faults, second.faults, "whatever the order of requests");
    assert_eq!((first.requests, first.replies), (second.requests, second.replies));
}

#[test]
fn each_fault_is_what_its_name_says() {
    let only = |set: fn(&mut Faults)| {
        let mut faults = Faults::none();
        set(&mut faults);
        FakeTeacher::start(quick(faults))
    };
    let of = |teacher: &FakeTeacher, n: usize, stream: bool| {
        let raw = send(teacher, "/v1/chat/completions", "x-client-request-id: r1\r\n", &chat(n, stream));
        (read(&raw, stream), raw)
    };
    for stream in [false, true] {
        let wrong_index = only(|faults| faults.wrong_index = 1.0);
        assert_eq!(of(&wrong_index, 1, stream).0, Err(ReplyFault::WrongIndex { index: 1 }));
        let none = only(|faults| faults.no_choices = 1.0);
        assert_eq!(of(&none, 1, stream).0, Err(ReplyFault::NoChoice));
        let bad = only(|faults| faults.bad_json = 1.0);
        assert!(matches!(of(&bad, 1, stream).0, Err(ReplyFault::NotJson { .. })));
        assert!(bad.stats().wasted_completion_tokens > 0, "the model had worked");
        let cut = only(|faults| faults.cut = 1.0);
        assert!((0..6).all(|n| !of(&cut, n, stream).1.whole));
        let extra = only(|faults| faults.extra_choices = 1.0);
        assert_eq!(
            of(&extra, 1, stream).0.expect("a reply").content,
            written(&chat(1, false), true, None).content
        );
        let repeated = only(|faults| faults.repeated = 1.0);
        assert_eq!(
            of(&repeated, 1, stream).0.expect("a reply").content,
            written(&chat(1, false), true, None).content
        );
        let wrong_id = only(|faults| faults.wrong_id = 1.0);
        let (reply, raw) = of(&wrong_id, 1, stream);
        assert_eq!(raw.header("x-client-request-id"), Some("not-r1"));
        assert_ne!(reply.expect("another's reply").content, written(&chat(1, false), true, None).content);
        let huge = only(|faults| faults.huge = 1.0);
        assert!(of(&huge, 1, stream).1.body.len() > 500_000);
        let stall = only(|faults| faults.stall = 1.0);
        assert!((0..6).all(|n| !of(&stall, n, stream).1.whole));
    }
    let twice = only(|faults| faults.repeated_text = 1.0);
    let reply = of(&twice, 4, true).0.expect("a reply");
    assert_ne!(reply.content, written(&chat(4, false), true, None).content);
}

#[test]
fn early_retries_are_counted() {
    let faults = Faults { too_many: 1.0, per_request_max: 1, ..Faults::none() };
    let teacher = FakeTeacher::start(Options { retry_after: Duration::from_millis(150), ..quick(faults) });
    let refused = |n| {
        let raw = send(&teacher, "/v1/chat/completions", "", &chat(n, false));
        assert_eq!(raw.status, 429);
        assert!(raw.header("retry-after").is_some() || raw.header("retry-after-ms") == Some("150"));
        assert_eq!(read_error(&raw.body).expect("an error").message, "Rate limit reached");
        Instant::now()
    };
    let asked = refused(1);
    ask(&teacher, 1, false);
    let early = u64::from(asked.elapsed() < Duration::from_millis(150));
    assert_eq!(teacher.stats().early_retries, early);
    refused(2);
    std::thread::sleep(Duration::from_millis(1200));
    ask(&teacher, 2, false);
    assert_eq!(teacher.stats().early_retries, early, "a date has whole seconds, and this waited for longer");
}

#[test]
fn dates_are_written_as_http_writes_them() {
    for (seconds, expected) in [
        (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
        (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
        (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
        (1_798_761_600, "Fri, 01 Jan 2027 00:00:00 GMT"),
        (4_102_444_799, "Thu, 31 Dec 2099 23:59:59 GMT"),
    ] {
        assert_eq!(fake::date(std::time::UNIX_EPOCH + Duration::from_secs(seconds)), expected);
    }
}

#[test]
fn a_key_is_asked_for() {
    let teacher =
        FakeTeacher::start(Options { key: Some("sk-right-key-1234".into()), ..quick(Faults::none()) });
    let raw = send(
        &teacher,
        "/v1/chat/completions",
        "authorization: Bearer sk-wrong-key-1234\r\n",
        &chat(1, false),
    );
    let error = read_error(&raw.body).expect("an error");
    assert_eq!((raw.status, error.code.as_deref()), (401, Some("invalid_api_key")));
    assert!(String::from_utf8_lossy(&raw.body).contains("sk-wrong") && !error.message.contains("sk-wrong"));
    let raw = send(
        &teacher,
        "/v1/chat/completions",
        "authorization: Bearer sk-right-key-1234\r\n",
        &chat(1, false),
    );
    assert_eq!((raw.status, teacher.stats().unauthorized), (200, 1));
}

#[test]
fn a_connection_takes_one_request_after_another_until_the_server_goes() {
    let mut teacher = FakeTeacher::start(quick(Faults::none()));
    let mut stream = TcpStream::connect(teacher.address()).expect("a connection");
    for n in 0..3 {
        let body = chat(n, n == 1).to_string();
        write!(stream, "POST /v1/chat/completions HTTP/1.1\r\ncontent-length: {}\r\n\r\n{body}", body.len())
            .expect("it is sent");
        let mut seen = Vec::new();
        while !(seen.ends_with(b"0\r\n\r\n") || seen.ends_with(b"}}")) {
            let mut buffer = [0; 4096];
            let n = stream.read(&mut buffer).expect("bytes");
            assert!(n > 0, "{}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&buffer[..n]);
        }
    }
    let stats = teacher.shutdown();
    assert_eq!((stats.connections, stats.replies), (1, 3));
    assert!(!stream.read(&mut [0; 16]).is_ok_and(|n| n > 0), "the connection is gone");
    assert!(TcpStream::connect(teacher.address()).is_err(), "nobody listens");
}

/// What a terminal or an eye could be misled by.
fn misleads(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[test]
fn hostile_replies_are_text_or_faults_whose_words_are_harmless() {
    let teacher = FakeTeacher::start(Options { hostile: true, ..quick(Faults::none()) });
    let all = all_hostile();
    assert_eq!(all.len(), HOSTILE);
    let names: BTreeSet<&str> = all.iter().map(|hostile| hostile.name.as_str()).collect();
    assert_eq!(names.len(), HOSTILE, "each has its name");
    let mut faults = 0;
    for (n, hostile) in all.iter().enumerate() {
        for stream in [false, true] {
            let mut body = chat(n, stream);
            body["messages"][0]["content"] = json!(format!("hostile reply #{n}, streamed: {stream}"));
            let raw = send(&teacher, "/v1/chat/completions", "", &body);
            let shown = match (raw.status, read(&raw, stream)) {
                (200, Ok(reply)) => {
                    assert!(!matches!(hostile.how, How::Raw(_)), "{} is no reply", hostile.name);
                    if let How::Text { content, reasoning, in_tags: false } = &hostile.how
                        && (reasoning.is_some() || !content.contains("</think>"))
                    {
                        let expected = content.trim().replace(LONE_SURROGATE, "\u{fffd}");
                        assert_eq!(reply.content, expected, "{}", hostile.name);
                    }
                    continue;
                }
                (200, Err(fault)) => {
                    assert!(!hostile.is_good(), "{}: {fault}", hostile.name);
                    fault.to_string()
                }
                _ => format!(
                    "{:?}",
                    read_error(&raw.body).map(|error| (error.message, error.kind, error.code))
                ),
            };
            faults += 1;
            assert!(!shown.chars().any(misleads), "{}: {shown:?}", hostile.name);
            assert!(shown.len() < 2000, "{}", hostile.name);
            // The next attempt is a good one, unless the request itself is refused.
            if !hostile.stays() {
                let again =
                    read(&send(&teacher, "/v1/chat/completions", "", &body), stream).expect("a reply");
                assert_eq!(again.content, written(&body, true, None).content);
            }
        }
    }
    let refused = all.iter().filter(|hostile| matches!(hostile.how, How::Raw(_) | How::Error { .. })).count();
    assert_eq!(faults, 2 * refused);
}

proptest! {
    #[test]
    fn tokens_are_the_words_and_the_whole_text(text in "[ab \n\u{e9}]{0,30}") {
        let body = json!({"messages": [], "max_tokens": 1000});
        let reply = written(&body, false, Some(text.clone()));
        prop_assert_eq!(reply.completion_tokens as usize, text.split_whitespace().count());
        prop_assert_eq!(fake::tokens(&text).concat(), text.clone());
        let n = text.split_whitespace().count();
        prop_assert_eq!(fake::tokens(&text).len(), if text.is_empty() { 0 } else { n.max(1) });
    }
}

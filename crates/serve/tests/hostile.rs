//! Clients that mean no good, or have a bad day: each gets a clear refusal or nothing, and the server goes on.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use common::{LONG, Running, read_reply, serve};
use serde_json::json;
use stillroom_serve::Limits;

const COMPLETIONS: &str = "/v1/completions";

/// Times so short that a test need not wait for them.
fn impatient() -> Limits {
    let short = Duration::from_millis(200);
    Limits { idle: short, head_time: short, body_time: short, ..Limits::default() }
}

/// Everything until the connection ends, which it must.
fn to_the_end(mut stream: TcpStream) -> String {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Ok(_) => {}
        Err(error) => assert!(
            matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
            "{error}: {}",
            String::from_utf8_lossy(&all)
        ),
    }
    String::from_utf8_lossy(&all).into_owned()
}

fn send(server: &Running, bytes: &[u8]) -> TcpStream {
    let mut stream = server.connect();
    // The server may hang up in the middle of it.
    let _ = stream.write_all(bytes);
    stream
}

fn works(server: &Running) {
    let reply = server.post(COMPLETIONS, r#"{"prompt": "Tom", "max_tokens": 2}"#);
    assert_eq!(reply.status, 200);
}

#[test]
fn malformed_http_is_refused_and_the_connection_ends() {
    let server = serve(Limits::default(), &[]);
    let long_head = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}", "y".repeat(20 << 10));
    let many = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "a: b\r\n".repeat(100));
    for (bytes, status) in [
        (&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello"[..], "400"),
        (b"\0\0\0\0\0\0\0\0\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\n\r\n", "400"),
        (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", "505"),
        (long_head.as_bytes(), "431"),
        (many.as_bytes(), "431"),
        (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "411"),
        (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\n", "413"),
        (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", "400"),
    ] {
        let said = to_the_end(send(&server, bytes));
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{said}");
        assert!(said.contains("\"error\":{\"message\":"), "{said}");
    }
    // A body above the cap that is really sent.
    let head =
        format!("POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", 9 << 20);
    let said = to_the_end(send(&server, &[head.as_bytes(), &vec![b'x'; 9 << 20]].concat()));
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 413 "), "{said}");
    works(&server);
}

#[test]
fn bodies_that_are_no_request_are_refused() {
    let server = serve(Limits::default(), &[]);
    let deep = format!("{{\"prompt\": {}", "[".repeat(100_000));
    for (body, status) in [
        (&b""[..], 400),
        (b"{", 400),
        (b"null", 400),
        (b"[]", 400),
        (b"\"text\"", 400),
        (b"{\"prompt\": \"\xff\xfe\"}", 400),
        (b"{\"prompt\": \"\xed\xa0\x80\"}", 400),
        (b"{\"prompt\": \"\\ud800\"}", 400),
        (deep.as_bytes(), 400),
        (b"{\"prompt\": \"a\", \"max_tokens\": 1e400}", 400),
        (b"{\"prompt\": \"a\", \"max_tokens\": 1} {}", 400),
        (b"{\"prompt\": \"a\", \"prompt\": 7}", 400),
    ] {
        let mut stream = server.connect();
        let head = format!(
            "POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat()).expect("it is sent");
        let reply = read_reply(&mut stream);
        assert_eq!(reply.status, status, "{}", String::from_utf8_lossy(&reply.body));
        assert_eq!(reply.json()["error"]["type"], "invalid_request_error");
    }
    works(&server);
}

#[test]
fn routes_and_methods_that_are_not_there_and_foreign_pages_are_refused() {
    let server = serve(Limits::default(), &[]);
    let status = |text: &str| {
        let mut stream = send(&server, text.as_bytes());
        read_reply(&mut stream).status
    };
    for (text, expected) in [
        ("GET /v1/models HTTP/1.1\r\nHost: localhost:80\r\n\r\n", 200),
        ("GET /v1/models/tiny HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", 200),
        ("GET /healthz HTTP/1.0\r\n\r\n", 200),
        ("GET /v1/models/other HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        ("GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        ("GET /v1/completions HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        ("POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", 405),
        ("OPTIONS /v1/completions HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        ("GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        ("GET /v1/models HTTP/1.1\r\nHost: localhost.evil.example\r\n\r\n", 403),
        ("GET /v1/models HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\n\r\n", 403),
        ("GET /v1/models HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\n\r\n", 403),
        ("GET /v1/models HTTP/1.1\r\nHost: localhost\r\nOrigin: http://127.0.0.1:3000\r\n\r\n", 200),
        (
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}",
            415,
        ),
    ] {
        assert_eq!(status(text), expected, "{text}");
    }
}

#[test]
fn whoever_is_slow_is_not_waited_for() {
    let server = serve(impatient(), &[]);
    // Nothing at all; a head that stops; a body that stops.
    assert_eq!(to_the_end(server.connect()), "");
    assert!(to_the_end(send(&server, b"GET / HT")).starts_with("HTTP/1.1 408 "));
    let head = server.head(COMPLETIONS, "0123456789", "");
    assert!(to_the_end(send(&server, format!("{head}{{").as_bytes())).starts_with("HTTP/1.1 408 "));
    // One byte at a time does not win time.
    let mut stream = server.connect();
    let mut sent = 0;
    while stream.write_all(b"a").is_ok() {
        sent += 1;
        assert!(sent < 50_000_000, "it is still read");
    }
    // Connections that end in the middle.
    let stream = send(&server, head.as_bytes());
    stream.shutdown(Shutdown::Both).expect("closed");
    let stream = send(&server, b"POST /v1/comp");
    stream.shutdown(Shutdown::Write).expect("half closed");
    assert_eq!(to_the_end(stream), "");
    works(&server);
    server.wait_until("a connection is still open", |server| server.metric("stillroom_connections") == 1.0);
}

#[test]
fn whoever_goes_away_stops_what_was_being_written_for_him() {
    let server = serve(Limits { in_flight_max: 2, ..Limits::default() }, &[]);
    // Without an end token the model would go on to the end of its context, many times over.
    let endless = json!({"prompt": "Tom", "max_tokens": 500, "n": 100, "temperature": 1.0, "seed": 1});
    for stream in [false, true] {
        let mut body = endless.clone();
        body["stream"] = stream.into();
        let before = server.metric("stillroom_cancelled_total");
        let body = body.to_string();
        let mut client = send(&server, (server.head(COMPLETIONS, &body, "") + &body).as_bytes());
        server.wait_until("nothing is written", |server| server.metric("stillroom_sequences_writing") > 0.0);
        if stream {
            client.read_exact(&mut [0; 300]).expect("the beginning of it");
        }
        drop(client);
        server.wait_until("it goes on", |server| server.metric("stillroom_cancelled_total") > before);
        server.wait_until("it is still written", |server| {
            server.metric("stillroom_sequences_writing") == 0.0
                && server.metric("stillroom_connections") == 1.0
        });
        let notes = server.notes.0.lock().unwrap().clone();
        match stream {
            false => assert!(notes.is_empty(), "nobody was told anything"),
            true => assert!(notes.len() == 1 && notes[0].contains(":cancelled"), "{notes:?}"),
        }
    }
    works(&server);
}

#[test]
fn more_than_may_wait_is_told_when_to_come_back() {
    let server =
        serve(Limits { in_flight_max: 1, waiting_max: 2, connections_max: 6, ..Limits::default() }, &[]);
    let endless =
        json!({"prompt": "Tom", "max_tokens": 500, "n": 100, "temperature": 1.0, "seed": 1}).to_string();
    let mut first = send(&server, (server.head(COMPLETIONS, &endless, "") + &endless).as_bytes());
    server.wait_until("nothing waits", |server| server.metric("stillroom_sequences_waiting") > 2.0);
    let refused = server.post(COMPLETIONS, r#"{"prompt": "Tom", "max_tokens": 2}"#);
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (429, Some("queue_full")));
    assert!(refused.head.contains("\r\nretry-after: 1\r\n"), "{}", refused.head);
    server.wait_until("a connection stays", |server| server.metric("stillroom_connections") <= 2.0);
    let others: Vec<TcpStream> = (0..5).map(|_| server.connect()).collect();
    let said = to_the_end(server.connect());
    assert!(said.starts_with("HTTP/1.1 503 ") && said.contains("too_many_connections"), "{said}");
    drop(others);
    first.shutdown(Shutdown::Both).expect("closed");
    assert_eq!(first.read(&mut [0]).unwrap_or(0), 0);
    server.wait_until("it is full", |server| {
        let mut stream = server.connect();
        let body = r#"{"prompt": "Tom", "max_tokens": 2}"#;
        let asked = stream.write_all((server.head(COMPLETIONS, body, "") + body).as_bytes());
        asked.is_ok() && read_reply(&mut stream).status == 200
    });
}

#[test]
fn an_end_lets_answers_end_and_takes_no_more() {
    let mut server = serve(Limits::default(), &[]);
    let body = json!({"prompt": "Tom", "max_tokens": 400, "temperature": 0, "stream": true}).to_string();
    let mut client = send(&server, (server.head(COMPLETIONS, &body, "") + &body).as_bytes());
    client.set_read_timeout(Some(LONG)).expect("a time");
    let idle = server.connect();
    // Its reply has begun, and 400 tokens are not written in no time.
    client.peek(&mut [0]).expect("a reply");
    server.end();
    let text = read_reply(&mut client);
    assert_eq!(text.events().last().expect("an end")["choices"][0]["finish_reason"], "length");
    assert_eq!(to_the_end(idle), "");
    assert!(TcpStream::connect(server.address).is_err(), "nobody listens");
}

#[test]
fn bodies_are_read_of_those_who_may_be_heard_and_as_far_as_there_is_room() {
    let server = serve(Limits { bodies_bytes_max: 3 << 20, ..Limits::default() }, &["sesame"]);
    let head = |more: &str| {
        format!(
            "POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{more}Content-Length: {}\r\n\r\n",
            2 << 20
        )
    };
    // Nothing of the body is ever sent.
    let said = to_the_end(send(&server, head("").as_bytes()));
    assert!(said.starts_with("HTTP/1.1 401 "), "{said}");
    let key = "Authorization: Bearer sesame\r\nExpect: 100-continue\r\n";
    let mut first = send(&server, head(key).as_bytes());
    first.read_exact(&mut [0; 25]).expect("leave to go on");
    let said = to_the_end(send(&server, head(key).as_bytes()));
    assert!(said.starts_with("HTTP/1.1 503 ") && said.contains("bodies_full"), "{said}");
    drop(first);
    server.wait_until("there is no room", |server| {
        let mut stream = send(server, head(key).as_bytes());
        let mut start = [0; 12];
        stream.read_exact(&mut start).expect("a status");
        &start == b"HTTP/1.1 100"
    });
}

#[test]
fn a_connection_takes_one_request_behind_the_other() {
    let server = serve(Limits::default(), &[]);
    let mut stream = server.connect();
    let body = r#"{"prompt": "Tom", "max_tokens": 2, "temperature": 0}"#;
    let one = server.head(COMPLETIONS, body, "Expect: 100-continue\r\n") + body;
    stream
        .write_all(
            (one.clone() + &one + "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        )
        .expect("sent");
    let (first, second) = (read_reply(&mut stream).json(), read_reply(&mut stream).json());
    assert_eq!(first["choices"], second["choices"]);
    assert_ne!(first["id"], second["id"]);
    assert_eq!(read_reply(&mut stream).status, 200);
    assert_eq!(to_the_end(stream), "");
}

/// Bytes by fixed seeds: a flip, a cut, something put in.
#[test]
fn altered_requests_never_end_the_server() {
    let server = serve(impatient(), &[]);
    let body = r#"{"model": "tiny", "prompt": ["Tom", "Ana"], "max_tokens": 2, "logprobs": 1, "echo": true, "stop": ["x"]}"#;
    let whole = (server.head(COMPLETIONS, body, "") + body).into_bytes();
    for seed in 0..400u64 {
        let mut rng = stillroom_core::CounterRng::new(&[seed]);
        let mut bytes = whole.clone();
        for _ in 0..=rng.below(3) {
            let at = rng.below(bytes.len() as u64) as usize;
            match rng.below(3) {
                0 => bytes[at] ^= 1 << rng.below(8),
                1 => bytes.insert(at, rng.next_u64() as u8),
                _ => drop(bytes.remove(at)),
            }
        }
        let mut stream = send(&server, &bytes);
        // Half of them do not wait for what is said.
        if seed % 2 == 0 {
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read(&mut [0; 64]);
        }
    }
    works(&server);
    server.wait_until("a connection stays", |server| server.metric("stillroom_connections") == 1.0);
}

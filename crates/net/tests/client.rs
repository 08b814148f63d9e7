//! The client against servers on this machine that answer, lie, stall and cut.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use stillroom_core::{Cleared, ErrorKind, Reach};
use stillroom_net::{
    Address, CallOff, Client, ClientOptions, HEADER_BYTES_MAX, NetError, Phase, REDIRECTS_MAX, Request,
    Response, Secret,
};

type Answer = dyn Fn(&str, &mut TcpStream) + Send + Sync;

/// A server that hands each request, head and body as text, to `answer`, and closes the connection.
struct Server {
    url: String,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(answer: impl Fn(&str, &mut TcpStream) + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, answer): (_, Arc<Answer>) = (seen.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, answer) = (log.clone(), answer.clone());
                std::thread::spawn(move || {
                    let mut stream = stream;
                    if let Some(request) = read_request(&stream) {
                        log.lock().expect("the log").push(request.clone());
                        answer(&request, &mut stream);
                    }
                });
            }
        });
        Server { url, seen }
    }

    fn fixed(reply: impl Into<Vec<u8>>) -> Server {
        let reply = reply.into();
        Server::start(move |_, stream| drop(stream.write_all(&reply)))
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("the log").clone()
    }
}

fn read_request(stream: &TcpStream) -> Option<String> {
    let mut reader = BufReader::new(stream);
    let (mut text, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        text.push_str(&line);
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    text.push_str(&String::from_utf8_lossy(&body));
    Some(text)
}

fn client(places: &[&str]) -> Client {
    let reach = Reach::of(places.iter().copied()).expect("addresses");
    let options = ClientOptions {
        connect: Duration::from_secs(5),
        first_byte: Duration::from_secs(5),
        stall: Duration::from_millis(400),
        ..ClientOptions::default()
    };
    Client::new(Cleared::mint("test", reach), options)
}

fn get(server: &Server, client: &Client) -> Result<Response, NetError> {
    client.send(&Request::get(Address::parse(&server.url).expect("an address")))
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn moved(to: &str) -> String {
    format!(
        "HTTP/1.1 302 Found\r\nLocation: {to}\r\nX-Linked-Etag: \"first\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
}

#[test]
fn a_reply_arrives_whole_and_nothing_but_the_request_is_sent() {
    let server = Server::fixed(ok("hello"));
    let client = client(&[&server.url]);
    let reply = get(&server, &client).unwrap();
    assert_eq!((reply.status(), reply.content_length()), (200, Some(5)));
    assert_eq!(reply.read_to_vec(5).unwrap(), b"hello");
    let request = server.seen().concat().to_ascii_lowercase();
    assert!(
        request.starts_with("get / http/1.1\r\n") && request.contains("user-agent: stillroom/"),
        "{request}"
    );
    assert!(!request.contains("authorization") && !request.contains("gzip"), "{request}");
}

#[test]
fn a_posted_body_arrives_and_is_not_sent_on() {
    let server = Server::start(|request, stream| {
        let answer = if request.starts_with("POST /moved") { moved("/") } else { ok("done") };
        drop(stream.write_all(answer.as_bytes()));
    });
    let client = client(&[&server.url]);
    let address = |path: &str| Address::parse(&format!("{}{path}", server.url)).unwrap();
    let reply = client.send(&Request::post(address("/"), "application/json", b"{\"a\":1}")).unwrap();
    assert_eq!(reply.read_to_vec(100).unwrap(), b"done");
    assert!(server.seen()[0].ends_with("\r\n\r\n{\"a\":1}"), "{:?}", server.seen());
    let refused = client.send(&Request::post(address("/moved"), "text/plain", b"x")).unwrap_err();
    assert!(matches!(refused, NetError::Redirect { .. }), "{refused}");
    assert_eq!(server.seen().len(), 2);
}

#[test]
fn a_body_is_sent_piece_by_piece_with_its_length_and_nowhere_else() {
    let server = Server::start(|request, stream| {
        let answer = if request.starts_with("POST /moved") { moved("/?key=1") } else { ok("done") };
        drop(stream.write_all(answer.as_bytes()));
    });
    let client = client(&[&server.url]);
    let key = Secret::new("abc");
    let post = |path: &str| {
        let address = Address::parse(&format!("{}{path}", server.url)).unwrap();
        Request::post(address, "text/plain", b"").bearer(Some(&key))
    };
    let text = "0123456789".repeat(50_000);
    let reply = client.upload(&post("/"), &mut text.as_bytes(), text.len() as u64).unwrap();
    assert_eq!(reply.read_to_vec(100).unwrap(), b"done");
    let (head, body) =
        server.seen()[0].split_once("\r\n\r\n").map(|(h, b)| (h.to_owned(), b.to_owned())).unwrap();
    let head = head.to_ascii_lowercase();
    assert!(
        body == text && head.contains("content-length: 500000") && head.contains("authorization: bearer abc")
    );
    assert!(!head.contains("transfer-encoding") && head.matches("content-length").count() == 1, "{head}");
    let refused = client.upload(&post("/moved"), &mut &b"x"[..], 1).unwrap_err();
    assert!(
        matches!(refused, NetError::Redirect { .. }) && !refused.to_string().contains("key=1"),
        "{refused}"
    );
    // A body that is shorter than announced is no request.
    assert!(client.upload(&post("/"), &mut &b"x"[..], 2).is_err());
    let elsewhere = Server::fixed(ok(""));
    let address = Address::parse(&elsewhere.url).unwrap();
    let refused = client.upload(&Request::post(address, "text/plain", b""), &mut &b"x"[..], 1).unwrap_err();
    assert!(matches!(refused, NetError::NotCleared { .. }), "{refused}");
    assert_eq!((server.seen().len(), elsewhere.seen().len()), (2, 0));
}

#[test]
fn a_place_without_leave_is_not_asked() {
    let server = Server::fixed(ok("secret"));
    let other = Server::fixed(ok(""));
    let refused = get(&server, &client(&[&other.url])).unwrap_err();
    assert!(
        matches!(refused, NetError::NotCleared { .. }) && refused.kind() == ErrorKind::Policy,
        "{refused}"
    );
    assert!(server.seen().is_empty());
}

#[test]
fn a_redirect_out_of_reach_is_refused_and_its_query_not_shown() {
    let foreign = Server::fixed(ok("stolen"));
    for to in [
        format!("{}/f?X-Signature=s3cret", foreign.url),
        "https://elsewhere.example/f?X-Signature=s3cret".to_owned(),
        "http://elsewhere.example/f?X-Signature=s3cret".to_owned(),
        "http://user:s3cret@127.0.0.1/f".to_owned(),
        "file:///etc/passwd".to_owned(),
    ] {
        let server = Server::fixed(moved(&to));
        let refused = get(&server, &client(&[&server.url])).unwrap_err();
        assert!(matches!(refused, NetError::Redirect { .. }), "{to}: {refused}");
        assert_eq!(refused.kind(), ErrorKind::Policy);
        let shown = format!("{refused} {refused:?}");
        assert!(!shown.contains("s3cret"), "{shown}");
    }
    assert!(foreign.seen().is_empty());
}

#[test]
fn the_token_stays_with_its_own_host() {
    let store = Server::fixed(ok("bytes"));
    let to = format!("{}/blob", store.url);
    let hub = Server::start(move |request, stream| {
        let to = if request.starts_with("GET /second") { to.as_str() } else { "/second" };
        drop(stream.write_all(moved(to).as_bytes()));
    });
    let client = client(&[&hub.url, &store.url]);
    let token = Secret::new("hf_s3cret");
    let request = Request::get(Address::parse(&hub.url).unwrap()).bearer(Some(&token));
    assert!(!format!("{request:?}").contains("s3cret"));
    let reply = client.send(&request).unwrap();
    assert_eq!(reply.first_header("x-linked-etag"), Some("\"first\""));
    assert_eq!(reply.header("x-linked-etag"), None);
    assert_eq!(reply.read_to_vec(10).unwrap(), b"bytes");
    let at_hub = hub.seen();
    assert_eq!(at_hub.len(), 2);
    assert!(at_hub.iter().all(|r| r.to_ascii_lowercase().contains("authorization: bearer hf_s3cret")));
    assert_eq!(store.seen().len(), 1);
    assert!(!store.seen()[0].contains("s3cret"), "{:?}", store.seen());
}

#[test]
fn a_request_that_stays_takes_the_redirect_as_its_reply() {
    let hub = Server::fixed(moved("https://store.example/blob"));
    let reply = client(&[&hub.url]).send(&Request::head(Address::parse(&hub.url).unwrap()).stay()).unwrap();
    assert_eq!((reply.status(), reply.first_header("x-linked-etag")), (302, Some("\"first\"")));
}

#[test]
fn a_ring_of_redirects_ends() {
    let server = Server::fixed(moved("/again"));
    let refused = get(&server, &client(&[&server.url])).unwrap_err();
    assert!(matches!(refused, NetError::Redirects { .. }), "{refused}");
    assert_eq!(server.seen().len(), REDIRECTS_MAX + 1);
}

#[test]
fn silence_is_not_waited_for_for_ever() {
    let mute = Server::start(|_, _| std::thread::sleep(Duration::from_secs(20)));
    let half = Server::start(|_, stream| {
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"));
        std::thread::sleep(Duration::from_secs(20));
    });
    let start = Instant::now();
    let told = get(&mute, &client(&[&mute.url])).unwrap_err();
    assert!(matches!(told, NetError::Timeout { phase: Phase::FirstByte, .. }), "{told}");
    let reply = get(&half, &client(&[&half.url])).unwrap();
    let told = reply.read_to_vec(100).unwrap_err();
    assert!(matches!(told, NetError::Timeout { phase: Phase::Body, .. }), "{told}");
    assert_eq!(told.kind(), ErrorKind::TryLater);
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

#[test]
fn the_first_word_may_take_longer_than_the_next() {
    // 600 ms before the first byte, then nothing: 400 ms are the client's own limit.
    let server = Server::start(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
        std::thread::sleep(Duration::from_millis(600));
        let _ = stream.write_all(b"a");
        std::thread::sleep(Duration::from_secs(20));
    });
    let client = client(&[&server.url]);
    let mut reply = get(&server, &client).unwrap();
    let mut byte = [0; 8];
    reply.allow_silence(Duration::from_secs(10));
    assert_eq!(reply.read(&mut byte).unwrap(), 1);
    reply.allow_silence(Duration::from_millis(150));
    let started = Instant::now();
    let silent = reply.read(&mut byte).unwrap_err();
    assert!(matches!(silent, NetError::Timeout { phase: Phase::Body, .. }), "{silent}");
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn connections_are_kept_for_as_many_requests_as_are_wanted() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let connections = Arc::new(Mutex::new(0));
    let count = connections.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            *count.lock().expect("the count") += 1;
            std::thread::spawn(move || {
                let mut stream = stream;
                while read_request(&stream).is_some() {
                    std::thread::sleep(Duration::from_millis(50));
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                }
            });
        }
    });
    let reach = Reach::of([url.as_str()]).expect("addresses");
    let options = ClientOptions { idle_connections: 12, ..ClientOptions::default() };
    let client = Client::new(Cleared::mint("test", reach), options);
    for _ in 0..3 {
        std::thread::scope(|scope| {
            for _ in 0..12 {
                scope.spawn(|| {
                    let reply = client.send(&Request::get(Address::parse(&url).unwrap())).unwrap();
                    assert_eq!(reply.read_to_vec(9).unwrap(), b"ok");
                });
            }
        });
    }
    assert!(*connections.lock().unwrap() <= 12, "{} connections", connections.lock().unwrap());
}

#[test]
fn a_cut_reply_is_an_error_and_not_a_short_one() {
    for cut in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ] {
        let server = Server::fixed(cut);
        let told = get(&server, &client(&[&server.url])).unwrap().read_to_vec(100).unwrap_err();
        assert!(matches!(told, NetError::Cut { .. }), "{cut:?}: {told}");
    }
    for cut in ["", "HTTP/1.1 200 OK\r\nContent-Le"] {
        let server = Server::fixed(cut);
        let told = get(&server, &client(&[&server.url])).unwrap_err();
        assert_eq!(told.kind(), ErrorKind::TryLater, "{cut:?}: {told}");
    }
}

#[test]
fn nobody_there_is_said_so() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{port}");
    let told = client(&[&url]).send(&Request::get(Address::parse(&url).unwrap())).unwrap_err();
    assert!(matches!(told, NetError::Connect { .. }), "{told}");
}

#[test]
fn replies_have_a_limit_announced_or_not() {
    let announced = Server::fixed(ok(&"x".repeat(1000)));
    let chunked = Server::fixed(format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3e8\r\n{}\r\n0\r\n\r\n",
        "x".repeat(1000)
    ));
    for server in [announced, chunked] {
        let client = client(&[&server.url]);
        assert_eq!(get(&server, &client).unwrap().read_to_vec(1000).unwrap().len(), 1000);
        let told = get(&server, &client).unwrap().read_to_vec(999).unwrap_err();
        assert!(matches!(told, NetError::TooLarge { bytes_max: 999, .. }), "{told}");
    }
    let headers =
        Server::fixed(format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(2 * HEADER_BYTES_MAX)));
    assert!(get(&headers, &client(&[&headers.url])).is_err());
}

#[test]
fn what_is_no_reply_is_refused() {
    let zipped = Server::fixed("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n");
    let told = get(&zipped, &client(&[&zipped.url])).unwrap_err();
    assert!(matches!(told, NetError::BadReply { .. }), "{told}");
    let other = Server::fixed("SSH-2.0-OpenSSH_9.2\r\n\r\n");
    assert!(get(&other, &client(&[&other.url])).is_err());
}

#[test]
fn a_status_says_when_to_come_back() {
    let server =
        Server::fixed("HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n");
    let told = get(&server, &client(&[&server.url])).unwrap().success().unwrap_err();
    assert_eq!((told.retry_after_s(), told.kind()), (Some(7), ErrorKind::TryLater));
}

#[test]
fn a_secure_connection_to_something_else_fails() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut hello = [0; 64];
            let _ = stream.read(&mut hello);
            drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
        }
    });
    let told = client(&[&url]).send(&Request::get(Address::parse(&url).unwrap())).unwrap_err();
    assert!(matches!(told, NetError::Tls { .. }), "{told}");
}

/// `0.0.0.0` is no loopback address, and this machine answers there.
#[test]
fn a_key_goes_to_an_open_place_only_with_leave_for_it() {
    let server = Server::fixed(ok("hello"));
    let open = server.url.replace("127.0.0.1", "0.0.0.0");
    let reach = Reach::of_open([open.as_str()]).expect("places");
    let client = Client::new(Cleared::mint("test", reach), ClientOptions::default());
    let (address, key) = (Address::parse_open(&open).expect("an address"), Secret::new("abc"));
    let refused = client.send(&Request::get(address.clone()).bearer(Some(&key))).expect_err("no leave");
    assert!(matches!(refused, NetError::OpenKey { .. }) && server.seen().is_empty(), "{refused}");
    assert_eq!(client.send(&Request::get(address.clone())).expect("no key").status(), 200);
    client.send(&Request::get(address).bearer(Some(&key)).bearer_may_be_read(true)).expect("leave");
    let seen = server.seen();
    let keys =
        seen.iter().filter(|request| request.to_ascii_lowercase().contains("authorization: bearer abc"));
    assert_eq!((seen.len(), keys.count()), (2, 1), "{seen:?}");
}

/// Before the head of a reply, and amid its body; what is not called off is waited for as before.
#[test]
fn a_request_that_is_called_off_ends_at_once_wherever_it_is() {
    let server = Server::start(|request, stream| {
        if request.starts_with("GET /body") {
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"));
        }
        // Until the client goes.
        drop(stream.read(&mut [0; 16]));
    });
    let reach = Reach::of([server.url.as_str()]).expect("places");
    let long = Duration::from_secs(60);
    let options = ClientOptions { first_byte: long, stall: long, ..ClientOptions::default() };
    let client = Client::new(Cleared::mint("test", reach), options);
    for path in ["/head", "/body"] {
        let call_off = CallOff::default();
        let request = Request::get(Address::parse(&format!("{}{path}", server.url)).expect("an address"))
            .called_off_by(Some(call_off.clone()));
        let started = Instant::now();
        let ended = std::thread::scope(|scope| {
            let asked = scope.spawn(|| client.send(&request)?.read_to_vec(1000));
            while server.seen().iter().all(|request| !request.contains(path)) {
                std::thread::yield_now();
            }
            call_off.call_off();
            asked.join().expect("no panic")
        });
        assert!(matches!(ended, Err(NetError::CalledOff { .. })), "{path}: {ended:?}");
        assert!(started.elapsed() < Duration::from_secs(10), "{path}: {:?}", started.elapsed());
    }
    let kept = CallOff::default();
    let request = Request::get(Address::parse(&format!("{}/head", server.url)).expect("an address"))
        .called_off_by(Some(kept));
    let short = ClientOptions { first_byte: Duration::from_millis(350), ..options };
    let client = Client::new(Cleared::mint("test", Reach::of([server.url.as_str()]).expect("places")), short);
    let ended = client.send(&request).expect_err("silence");
    assert!(matches!(ended, NetError::Timeout { phase: Phase::FirstByte, .. }), "{ended}");
}

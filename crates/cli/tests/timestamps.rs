//! Runs that ask for the time, through the binary. The openssl program is the service, behind a stand-in that speaks HTTP.

#[path = "common/shop.rs"]
mod shop;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use shop::{Shop, json_lines, text};

const RECIPE: &str = r#"
name = "tiny"
TINY_STUDENT
tokenizer = "ASSETS/quickstart-tokenizer"
TWO_STEPS
[release]
key = "a.key"
timestamp_url = "http://127.0.0.1:PORT/tsr"
MORE
"#;

/// What the stand-in does with a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Good,
    Refuses,
    IsSilent,
    Drips,
    Babbles,
    Floods,
    /// Answers each query as it did the first.
    Repeats,
    /// Stamps other bytes.
    Mistakes,
}

fn openssl_is_here() -> bool {
    if Command::new("openssl").arg("version").output().is_ok() {
        return true;
    }
    #[expect(clippy::print_stderr, reason = "a skipped test says so")]
    {
        eprintln!("no openssl program here: nothing was stamped");
    }
    false
}

fn openssl(folder: &Path, line: &str) -> bool {
    let mut command = Command::new("openssl");
    command.args(line.split(' ')).current_dir(folder).stdin(Stdio::null()).stderr(Stdio::null());
    command.stdout(Stdio::null()).status().expect("openssl runs").success()
}

/// A root, a service below it and another root.
fn make_service(folder: &Path) {
    let config = "[req]\ndistinguished_name = name\nprompt = no\n[name]\nCN = NAME\n\
                  [root]\nbasicConstraints = critical,CA:TRUE\n\
                  [service]\nbasicConstraints = critical,CA:FALSE\nextendedKeyUsage = critical,timeStamping\n\
                  [tsa]\ndefault_tsa = one\n[one]\nserial = serial\nsigner_digest = sha256\ndefault_policy = 1.2.3.4\n\
                  digests = sha256\nclock_precision_digits = 3\naccuracy = millisecs:500\ness_cert_id_alg = sha256\n";
    std::fs::write(folder.join("serial"), "01\n").expect("written");
    for (name, title, how) in [
        ("root", "some root", "-x509 -extensions root"),
        ("other", "another root", "-x509 -extensions root"),
        ("service", "some service", ""),
    ] {
        std::fs::write(folder.join("config"), config.replace("NAME", title)).expect("written");
        let line = format!(
            "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -config config -keyout {name}.key -out {name}.pem {how}"
        );
        assert!(openssl(folder, line.trim_end()), "{name}");
    }
    let sign = "x509 -req -in service.pem -CA root.pem -CAkey root.key -CAcreateserial -days 30 -extfile config \
                -extensions service -out signed.pem";
    assert!(openssl(folder, sign));
}

struct Service {
    manner: Arc<Mutex<Manner>>,
    port: u16,
    folder: PathBuf,
}

impl Service {
    fn start(shop: &Shop) -> Service {
        let folder = shop.path("tsa");
        std::fs::create_dir(&folder).expect("made");
        make_service(&folder);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let manner = Arc::new(Mutex::new(Manner::Good));
        let (shared, place) = (Arc::clone(&manner), folder.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let manner = *shared.lock().expect("a manner");
                // A client that goes away is its own affair.
                let _ = serve(stream, manner, &place);
            }
        });
        Service { manner, port, folder }
    }

    fn is(&self, manner: Manner) {
        *self.manner.lock().expect("a manner") = manner;
    }

    fn recipe(&self, more: &str) -> String {
        shop::recipe(RECIPE).replace("PORT", &self.port.to_string()).replace("MORE", more)
    }
}

fn serve(mut stream: TcpStream, manner: Manner, folder: &Path) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut length, mut line, mut is_query) = (0, String::new(), false);
    while reader.read_line(&mut line)? > 2 {
        let header = line.to_ascii_lowercase();
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
        is_query |= header.trim_end() == "content-type: application/timestamp-query";
        line.clear();
    }
    let mut query = vec![0; length];
    reader.read_exact(&mut query)?;
    assert!(is_query && query.len() == 69, "a query and nothing else");
    if manner == Manner::Mistakes {
        query[30] ^= 1;
    }
    let (status, answer) = match manner {
        Manner::Refuses => ("503 Busy", Vec::new()),
        Manner::Babbles => ("200 OK", b"<html>".to_vec()),
        Manner::Floods => ("200 OK", vec![0x30; 1 << 20]),
        Manner::IsSilent => {
            // Until the client goes away.
            return reader.read_to_end(&mut Vec::new()).map(drop);
        }
        Manner::Drips => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n\r\n")?;
            while stream.write_all(b"0").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
            return Ok(());
        }
        Manner::Repeats if folder.join("answer").exists() => {
            ("200 OK", std::fs::read(folder.join("answer"))?)
        }
        _ => {
            std::fs::write(folder.join("query"), &query)?;
            let line =
                "ts -reply -config config -queryfile query -signer signed.pem -inkey service.key -out answer";
            assert!(openssl(folder, line));
            ("200 OK", std::fs::read(folder.join("answer"))?)
        }
    };
    write!(stream, "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", answer.len())?;
    stream.write_all(&answer)
}

fn verify(shop: &Shop, place: &str, more: &[&str]) -> std::process::Output {
    shop.run(&[&["verify", place, "--public-key", "a.key.pub"], more].concat())
}

const UNDER_ROOT: [&str; 2] = ["--timestamp-certificate", "tsa/root.pem"];

#[test]
fn heads_and_signature_have_their_times_and_whoever_swaps_them_is_found() {
    if !openssl_is_here() {
        return;
    }
    let shop = Shop::with_recipes(&[]);
    let service = Service::start(&shop);
    let recipe = service.recipe("timestamp_certificate = \"tsa/root.pem\"\ntimestamp_required = true");
    std::fs::write(shop.path("tiny.toml"), recipe).expect("written");
    shop.succeed(&["key", "new", "a.key"]);
    let plan = shop.succeed(&["plan", "tiny.toml"]);
    assert!(plan.contains("digests of the run's log and of its signature go to http://127.0.0.1"), "{plan}");
    shop.succeed(&["release", "tiny.toml", "--output", "run", "--quiet"]);

    for place in ["run", "run/release"] {
        let said = verify(&shop, place, &UNDER_ROOT);
        assert!(said.status.success(), "{}", text(&said.stderr));
        let said = text(&said.stdout);
        let head = said.lines().find(|line| line.starts_with("Stamped: ")).expect("a line");
        assert!(head.contains(" heads of the log and the signature, by `some service` ("), "{head}");
        assert!(head.contains("In existence: the licence decision no later than 20"), "{head}");
        assert!(
            head.contains("; the signature no later than 20") && head.contains("(within 0.5 s)"),
            "{head}"
        );
        let json = verify(&shop, place, &[&UNDER_ROOT[..], &["--json"]].concat());
        let json: Value = serde_json::from_slice(&json.stdout).expect("JSON");
        let stamped = json["timestamps"]["heads"].as_array().expect("heads").len();
        // All but that of the checkpoint, which came within a minute of another.
        assert_eq!(json["log"]["heads"], stamped + 1, "{json}");
        assert_eq!(json["timestamps"]["signer_checked"], true);
        let unchecked = text(&verify(&shop, place, &[]).stdout);
        assert!(
            unchecked.contains("by whom was not checked: give the certificate of the timestamp service"),
            "{unchecked}"
        );
        let other = verify(&shop, place, &["--timestamp-certificate", "tsa/other.pem"]);
        assert_eq!(other.status.code(), Some(65));
        assert!(text(&other.stderr).contains("does not lead to the certificate that is trusted"));
    }
    let key = verify(&shop, "run", &["--timestamp-certificate", "a.key.pub"]);
    assert!(text(&key.stderr).contains("no PEM block `CERTIFICATE`"), "{}", text(&key.stderr));

    // Nobody vouches for the run's own copy but the tokens themselves.
    let path = shop.path("run/log/stamps.jsonl");
    let kept = std::fs::read_to_string(&path).expect("stamps");
    let lines: Vec<Value> = kept.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let found = |changed: &[Value], says: &str| {
        let written: String = changed.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&path, written).expect("written");
        for certificate in [&[][..], &UNDER_ROOT] {
            let refused = verify(&shop, "run", certificate);
            assert_eq!(refused.status.code(), Some(65));
            assert!(text(&refused.stderr).contains(says), "{says}: {}", text(&refused.stderr));
        }
    };
    let mut swapped = lines.clone();
    (swapped[1]["token"], swapped[2]["token"]) = (lines[2]["token"].clone(), lines[1]["token"].clone());
    found(&swapped, "timestamp 1, of head 1, does not count: it is of other bytes");
    let mut elsewhere = lines.clone();
    elsewhere[1]["head"] = "0".repeat(64).into();
    found(&elsewhere, "timestamp 1 is of a head that is not in the log");
    let mut altered = lines.clone();
    let token = lines[0]["token"].as_str().expect("a token");
    let at = token.len() - 12;
    let other = if &token[at..=at] == "A" { "B" } else { "A" };
    altered[0]["token"] = format!("{}{other}{}", &token[..at], &token[at + 1..]).into();
    found(&altered, "timestamp 0, of head 0, does not count: it is not signed by the certificate in it");
    std::fs::write(&path, &kept).expect("written");

    // The signature's own time: of another signature.
    let path = shop.path("run/release/model.sig");
    let sig = std::fs::read_to_string(&path).expect("a signature");
    let mut bundle: Value = serde_json::from_str(&sig).expect("JSON");
    use base64ct::{Base64, Encoding};
    let token = Base64::decode_vec(token).expect("base64");
    let body = [&[0x30, 0x03, 0x02, 0x01, 0x00][..], &token].concat();
    let response = [&[0x30, 0x82, (body.len() >> 8) as u8, body.len() as u8][..], &body].concat();
    bundle["verificationMaterial"]["timestampVerificationData"]["rfc3161Timestamps"][0]["signedTimestamp"] =
        Base64::encode_string(&response).into();
    std::fs::write(&path, bundle.to_string()).expect("written");
    let refused = verify(&shop, "run/release", &UNDER_ROOT);
    let said = text(&refused.stderr);
    assert!(said.contains("the timestamp of the signature does not count: it is of other bytes"), "{said}");
}

#[test]
fn a_service_that_does_not_answer_costs_a_stamp_and_no_run() {
    if !openssl_is_here() {
        return;
    }
    let shop = Shop::with_recipes(&[]);
    let service = Service::start(&shop);
    let more = "timestamp_certificate = \"tsa/root.pem\"\ntimestamp_timeout_s = 0.4";
    std::fs::write(shop.path("tiny.toml"), service.recipe(more)).expect("written");
    std::fs::write(shop.path("strict.toml"), service.recipe(&format!("{more}\ntimestamp_required = true")))
        .expect("written");
    let other = service.recipe(more).replace("tsa/root.pem", "tsa/other.pem");
    std::fs::write(shop.path("other.toml"), other).expect("written");
    shop.succeed(&["key", "new", "a.key"]);
    for (manner, recipe, on_record, said) in [
        (Manner::Refuses, "tiny", "the service refused", "answers 503"),
        (Manner::IsSilent, "tiny", "no answer", "/tsr`: "),
        (Manner::Drips, "tiny", "no answer", "/tsr`: "),
        (Manner::Babbles, "tiny", "the answer does not count", "malformed DER"),
        (Manner::Floods, "tiny", "the answer was too large", "longer than 65536 bytes"),
        (Manner::Mistakes, "tiny", "the answer does not count", "it is of other bytes"),
        (Manner::Repeats, "tiny", "the answer does not count", "it is the answer to another query"),
        (
            Manner::Good,
            "other",
            "the answer does not count",
            "does not lead to the certificate that is trusted",
        ),
    ] {
        service.is(manner);
        let run = format!("{manner:?}");
        let begun = Instant::now();
        let file = format!("{recipe}.toml");
        let done = shop.run(&["teach", &file, "--output", &run, "--quiet"]);
        let stderr = text(&done.stderr);
        assert!(done.status.success(), "{manner:?}: {stderr}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{manner:?}: {:?}", begun.elapsed());
        assert_eq!(
            stderr.matches("warning[timestamp]: a head of the log is not stamped").count(),
            1,
            "{manner:?}: {stderr}"
        );
        assert!(stderr.contains(said), "{manner:?}: {stderr}");
        let lines = json_lines(&shop.path(&format!("{run}/log/stamps.jsonl")));
        assert!(
            lines.len() >= 2 && lines.iter().all(|line| line["not_stamped"] == on_record),
            "{manner:?}: {lines:?}"
        );
        assert!(lines.iter().all(|line| line["token"].is_null()));
        assert!(shop.path(&format!("{run}/corpus")).is_dir(), "the stages were gone through");
    }

    // Where it is required, nothing goes on without; with it, the same command does.
    service.is(Manner::Refuses);
    let stopped = shop.run(&["teach", "strict.toml", "--output", "strict", "--quiet"]);
    assert_eq!(stopped.status.code(), Some(75), "{}", text(&stopped.stderr));
    assert!(
        text(&stopped.stderr).contains("error[not-stamped]: a head of the log is not stamped"),
        "{}",
        text(&stopped.stderr)
    );
    assert!(!shop.path("strict/corpus").exists(), "nothing was done");
    service.is(Manner::Good);
    shop.succeed(&["teach", "strict.toml", "--output", "strict", "--quiet"]);
    let lines = json_lines(&shop.path("strict/log/stamps.jsonl"));
    assert_eq!(lines[0]["not_stamped"], "the service refused");
    assert_eq!(lines[0]["head"], lines[1]["head"], "the head that had no time has it now");
    assert!(lines[1..].iter().all(|line| line["token"].is_string()));
    drop(service.folder);
}

#[test]
fn nothing_is_asked_before_the_verdict_and_outside_the_policy() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    listener.set_nonblocking(true).expect("set");
    let recipe = shop::recipe(RECIPE).replace("PORT", &port.to_string()).replace("MORE", "");
    let denied = recipe.clone()
        + "[teacher]\nkind = \"local\"\npath = \"nowhere\"\nmodel = \"meta-llama/Llama-2-7b-hf\"\n";
    let far = recipe.replace("http://127.0.0.1", "https://tsa.example");
    let open = recipe.replace("http://127.0.0.1", "http://tsa.example") + "[policy]\negress = \"any\"\n";
    let shop = Shop::with_recipes(&[("denied.toml", &denied), ("far.toml", &far), ("open.toml", &open)]);
    shop.succeed(&["key", "new", "a.key"]);
    for (recipe, says) in [
        ("denied.toml", "licence gate"),
        ("far.toml", "`policy.egress` does not allow the timestamp service `https://tsa.example"),
        ("open.toml", "`policy.egress` does not allow the timestamp service `http://tsa.example"),
    ] {
        let refused = shop.run(&["run", recipe, "--output", "run", "--quiet"]);
        assert_eq!(refused.status.code(), Some(77), "{}", text(&refused.stderr));
        assert!(text(&refused.stderr).contains(says), "{}", text(&refused.stderr));
    }
    assert!(listener.accept().is_err(), "nobody came");
    assert!(!shop.path("run/log").exists());
}

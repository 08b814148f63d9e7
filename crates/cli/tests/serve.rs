//! `stillroom serve` through the binary: the same text as `generate`, our own client against it, and the owner's log.

#[path = "common/shop.rs"]
mod shop;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use shop::{Shop, assets, command, text};

/// A server, ended with the test.
struct Serving {
    child: Child,
    address: String,
    stderr: Option<std::process::ChildStderr>,
}

fn teacher() -> String {
    assets().join("quickstart-teacher").display().to_string()
}

fn serve(shop: &Shop, more: &[&str]) -> Serving {
    let teacher = teacher();
    let args: Vec<&str> =
        ["serve", &teacher, "--port", "0", "--json"].into_iter().chain(more.iter().copied()).collect();
    let mut child = command(shop.dir.path(), &args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("stdout")).read_line(&mut line).expect("a line");
    let mut stderr = child.stderr.take();
    let said: Value = serde_json::from_str(&line).unwrap_or_else(|_| {
        let mut words = String::new();
        let _ = stderr.take().map(|mut stderr| stderr.read_to_string(&mut words));
        panic!("no address: {line} {words}")
    });
    let address = said["address"].as_str().expect("an address").to_owned();
    Serving { child, address, stderr }
}

impl Serving {
    fn ask(&self, path: &str, body: &Value) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time");
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).expect("sent");
        let mut all = String::new();
        stream.read_to_string(&mut all).expect("a reply");
        let (head, body) = all.split_once("\r\n\r\n").expect("a head");
        (head[9..12].parse().expect("a status"), body.to_owned())
    }

    /// A short answer's text.
    fn answer(&self, prompt: &str) -> String {
        let body = json!({"prompt": prompt, "max_tokens": 8, "temperature": 0});
        let (status, reply) = self.ask("/v1/completions", &body);
        assert_eq!(status, 200, "{reply}");
        let reply: Value = serde_json::from_str(&reply).expect("JSON");
        reply["choices"][0]["text"].as_str().expect("text").to_owned()
    }

    /// Ends it as `kill -SIGNAL` does, and says what it said.
    fn end(mut self, signal: &str) -> (Option<i32>, String) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().expect("kill").success());
        let mut words = String::new();
        let _ = self.stderr.take().map(|mut stderr| stderr.read_to_string(&mut words));
        (self.child.wait().expect("an end").code(), words)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn verify(shop: &Shop, more: &[&str]) -> Result<String, String> {
    let args: Vec<&str> = ["verify", "log"].into_iter().chain(more.iter().copied()).collect();
    let output = shop.run(&args);
    match output.status.code() {
        Some(0) => Ok(text(&output.stdout)),
        Some(65) => Err(text(&output.stderr)),
        other => panic!("{other:?}: {}", text(&output.stderr)),
    }
}

#[test]
fn answers_are_those_of_generate_and_ctrl_c_ends_it_well() {
    let shop = Shop::with_recipes(&[]);
    let server = serve(&shop, &[]);
    let prompt = "Tom has 3 apples and buys 4 more. How many apples does he have?";
    for (chat, temperature, seed) in
        [(false, "0", "0"), (true, "0", "0"), (true, "0.9", "18446744073709551615")]
    {
        let teacher = teacher();
        let mut args = vec![
            "generate",
            &teacher,
            "--prompt",
            prompt,
            "--max-tokens",
            "40",
            "--temperature",
            temperature,
            "--seed",
            seed,
            "--json",
        ];
        if chat {
            args.push("--chat");
        }
        let alone: Value = serde_json::from_str(&shop.succeed(&args)).expect("JSON");
        let mut body = json!({"max_tokens": 40, "temperature": temperature.parse::<f64>().unwrap(), "seed": seed.parse::<u64>().unwrap(), "return_token_ids": true});
        let path = if chat {
            body["messages"] = json!([{"role": "user", "content": prompt}]);
            "/v1/chat/completions"
        } else {
            body["prompt"] = json!(prompt);
            "/v1/completions"
        };
        let (status, reply) = server.ask(path, &body);
        assert_eq!(status, 200, "{reply}");
        let choice = serde_json::from_str::<Value>(&reply).expect("JSON")["choices"][0].clone();
        let said = if chat { &choice["message"]["content"] } else { &choice["text"] };
        assert_eq!(
            (said, &choice["token_ids"], &choice["finish_reason"]),
            (&alone["text"], &alone["tokens"], &alone["finish_reason"])
        );
    }
    let (code, words) = server.end("-INT");
    assert_eq!(code, Some(0), "{words}");
    assert!(words.contains("ending: "), "{words}");
}

#[test]
fn other_machines_need_a_key_and_keys_are_no_secret_of_the_log() {
    let shop = Shop::with_recipes(&[]);
    let teacher = teacher();
    let refused = shop.run(&["serve", &teacher, "--port", "0", "--host", "0.0.0.0"]);
    assert_eq!(refused.status.code(), Some(77), "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("--api-key-env NAME"), "{}", text(&refused.stderr));
    let refused = shop.run(&["serve", &teacher, "--port", "0", "--api-key-env", "NO_SUCH_VARIABLE"]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
}

#[test]
fn a_log_goes_on_over_kills_and_one_answer_is_opened_without_the_others() {
    let shop = Shop::with_recipes(&[]);
    shop.succeed(&["key", "new", "key"]);
    let with_log = ["--log", "log", "--key", "key"];
    let server = serve(&shop, &with_log);
    let first: Vec<String> = (0..5).map(|i| server.answer(&format!("prompt {i}"))).collect();
    // Killed: what was answered is there.
    assert_eq!(server.end("-KILL").0, None);
    assert_eq!(shop.json_lines("log/answers.jsonl").len(), 5);
    let said = verify(&shop, &[]).expect("intact");
    assert!(said.contains("5 answers") && said.contains("5 answers are behind the last head"), "{said}");
    // Half a line and half a record, as a power cut leaves them; and a line whose record did not come.
    let append = |name: &str, bytes: &[u8]| {
        let mut file = std::fs::OpenOptions::new().append(true).open(shop.path(name)).expect("a file");
        file.write_all(bytes).expect("written");
    };
    let records = shop.bytes("log/log/records.bin");
    std::fs::write(shop.path("log/log/records.bin"), &records[..records.len() - 7]).expect("written");
    append("log/answers.jsonl", b"{\"answer\":5,\"text\":\"ha");
    let server = serve(&shop, &with_log);
    let more: Vec<String> = (5..9).map(|i| server.answer(&format!("prompt {i}"))).collect();
    let (code, words) = server.end("-TERM");
    assert_eq!(code, Some(0), "{words}");
    let said = verify(&shop, &["--public-key", "key.pub"]).expect("intact");
    assert!(said.contains("Intact: 9 answers") && !said.contains("behind"), "{said}");
    for (i, (line, answer)) in
        shop.json_lines("log/answers.jsonl").iter().zip(first.iter().chain(&more)).enumerate()
    {
        assert_eq!(
            (line["answer"].as_u64(), line["choices"][0]["text"].as_str()),
            (Some(i as u64), Some(answer.as_str()))
        );
        let request: Value =
            serde_json::from_str(line["request"].as_str().expect("a request")).expect("JSON");
        assert_eq!(request["prompt"], format!("prompt {i}"));
        assert!(line["weights_sha256"].as_str().is_some_and(|digest| digest.len() == 64));
    }
    // Somebody who has the heads and the opening, and nothing else.
    let opened = shop.succeed(&["open", "log", "answer", "6"]);
    std::fs::write(shop.path("opened.json"), &opened).expect("written");
    assert!(!opened.contains("prompt 5") && opened.contains("prompt 6"));
    std::fs::create_dir_all(shop.path("theirs/log")).expect("a folder");
    std::fs::copy(shop.path("log/log/heads.jsonl"), shop.path("theirs/log/heads.jsonl")).expect("copied");
    let check = |file: &str| shop.run(&["verify", "theirs", "--opening", file, "--public-key", "key.pub"]);
    let said = check("opened.json");
    assert!(
        said.status.success() && text(&said.stdout).contains("The opened entry is in this log"),
        "{}",
        text(&said.stderr)
    );
    std::fs::write(shop.path("forged.json"), opened.replace("prompt 6", "prompt 7")).expect("written");
    assert_eq!(check("forged.json").status.code(), Some(65));
}

#[test]
fn what_is_changed_in_a_log_is_named() {
    let shop = Shop::with_recipes(&[]);
    let server = serve(&shop, &["--log", "log"]);
    (0..4).for_each(|i| drop(server.answer(&format!("prompt {i}"))));
    assert_eq!(server.end("-INT").0, Some(0));
    verify(&shop, &[]).expect("intact");
    let (answers, records, heads) = (
        shop.bytes("log/answers.jsonl"),
        shop.bytes("log/log/records.bin"),
        shop.bytes("log/log/heads.jsonl"),
    );
    let write = |name: &str, bytes: &[u8]| std::fs::write(shop.path(name), bytes).expect("written");
    let lines: Vec<String> = text(&answers).lines().map(|line| line.to_owned() + "\n").collect();
    let altered = |change: &dyn Fn(&mut Vec<String>)| {
        let mut lines = lines.clone();
        change(&mut lines);
        write("log/answers.jsonl", lines.concat().as_bytes());
        let said = verify(&shop, &[]).expect_err("it is altered");
        write("log/answers.jsonl", &answers);
        said
    };
    assert!(
        altered(&|lines| lines[2] = lines[2].replace("prompt 2", "prompt 9"))
            .contains("answer 2 is not what")
    );
    assert!(altered(&|lines| drop(lines.remove(1))).contains("answer 1 is not what"));
    assert!(altered(&|lines| lines.swap(2, 3)).contains("answer 2 is not what"));
    assert!(altered(&|lines| drop(lines.pop())).contains("answer 3 is missing"));
    // Records: each is 41 bytes.
    let of_records = |bytes: Vec<u8>| {
        write("log/log/records.bin", &bytes);
        let said = verify(&shop, &[]).expect_err("it is altered");
        write("log/log/records.bin", &records);
        said
    };
    assert!(
        of_records([&records[..41], &records[82..]].concat()).contains("record 1 of the log is of answer 2")
    );
    assert!(
        of_records([&records[41..82], &records[..41], &records[82..]].concat())
            .contains("record 0 of the log")
    );
    let mut flipped = records.clone();
    flipped[60] ^= 1;
    assert!(of_records(flipped).contains("answer 1 is not what"));
    assert!(of_records(records[..123].to_vec()).contains("head"));
    let first = heads.split_inclusive(|&b| b == b'\n').next().expect("a head").to_vec();
    write("log/log/heads.jsonl", &[&heads[..], &first].concat());
    assert!(verify(&shop, &[]).expect_err("a head is used again").contains("head"));
    write("log/log/heads.jsonl", &heads);
    verify(&shop, &[]).expect("intact again");
}

#[test]
fn digests_alone_are_kept_where_texts_are_not_to_be() {
    let shop = Shop::with_recipes(&[]);
    let server = serve(&shop, &["--log", "log", "--log-digests-only"]);
    let said = server.answer("a secret prompt");
    assert_eq!(server.end("-INT").0, Some(0));
    let kept = text(&shop.bytes("log/answers.jsonl"));
    assert!(!kept.contains("secret") && !kept.contains(&said), "{kept}");
    let digest = |bytes: &[u8]| stillroom_core::Digest::of(bytes).to_string();
    let line = &shop.json_lines("log/answers.jsonl")[0];
    assert_eq!(line["choices"][0]["text_sha256"], digest(said.as_bytes()));
    assert!(verify(&shop, &[]).expect("intact").contains("Intact: 1 answers"));
    assert!(shop.succeed(&["open", "log", "answer", "0"]).contains(&digest(said.as_bytes())));
}

const RECIPE: &str = r#"
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
num_examples = 24
num_validation = 4
[train]
learning_rate = 1e-2
max_steps = 4
per_device_train_batch_size = 2
max_length = 256
on_policy_fraction = 1.0
max_new_tokens = 24
rollouts_per_step = 8
loss_functions = [{ function = "sampled_reverse_kl" }]
[evaluate]
num_examples = 12
controls = []
OUR_TEACHER
"#;

/// The log-probabilities of the student's own text come from the server, and are those of the teacher at hand.
#[test]
fn a_student_learns_from_it_what_it_learns_from_the_teacher_at_hand() {
    let shop = Shop::with_recipes(&[]);
    let server = serve(&shop, &["--served-model-name", "us:teacher"]);
    let at_hand =
        "kind = \"local\"\npath = \"ASSETS/quickstart-teacher\"\nlogits = { kind = \"live\" }".to_owned();
    let away = |scoring: &str| {
        let address = &server.address;
        format!(
            "kind = \"openai\"\ntokenizer = \"ASSETS/quickstart-teacher\"\nscoring = \"{scoring}\"\n\
             endpoints = [{{ base_url = \"http://{address}/v1\" }}]"
        )
    };
    let mut weights = Vec::new();
    for (name, keys) in
        [("at-hand", at_hand), ("echo", away("echo")), ("prompt_logprobs", away("prompt_logprobs"))]
    {
        let recipe = shop::recipe(&RECIPE.replace("KEYS", &keys));
        std::fs::write(shop.path("recipe.toml"), recipe).expect("a recipe");
        shop.succeed(&["train", "recipe.toml", "--output", name, "--quiet"]);
        weights.push(shop.weights(name));
    }
    assert!(weights[1] == weights[2], "both ways of asking give the same numbers");
    assert!(weights[0] == weights[1], "and they are those of the teacher at hand");
}

/// Our own client: what it is told whole and in pieces is what the teacher at hand writes.
#[test]
fn traces_from_it_are_those_of_the_teacher_at_hand() {
    let shop = Shop::with_recipes(&[]);
    let server = serve(&shop, &["--served-model-name", "us:teacher"]);
    let traces = |name: &str, keys: &str| {
        let text = format!(
            "TINY_STUDENT\ntokenizer = \"ASSETS/quickstart-teacher\"\n[teacher]\nmodel = \"us:teacher\"\nmax_tokens = 60\n\
             temperature = 0.0\n{keys}\n[prompts]\ntask = \"word_problems\"\nnum_examples = 12\nnum_validation = 2\nOUR_TEACHER\n"
        );
        std::fs::write(shop.path("recipe.toml"), shop::recipe(&text)).expect("a recipe");
        shop.succeed(&["teach", "recipe.toml", "--output", name, "--quiet"]);
        let folder = shop.path(name).join("corpus/traces");
        let mut files: Vec<_> =
            std::fs::read_dir(folder).expect("traces").flatten().map(|e| e.path()).collect();
        files.retain(|file| file.extension().is_some_and(|ending| ending == "parquet"));
        files.sort();
        let read = |file: &std::path::PathBuf| {
            let bytes = std::fs::read(file).expect("a part");
            stillroom_formats::parquet_rows::read_traces(bytes).expect("traces")
        };
        files
            .iter()
            .flat_map(read)
            .map(|trace| (trace.id, trace.content, trace.finish_reason, trace.completion_tokens))
            .collect::<Vec<_>>()
    };
    let at_hand = traces("at-hand", "kind = \"local\"\npath = \"ASSETS/quickstart-teacher\"");
    assert!(at_hand.len() >= 12, "{}", at_hand.len());
    for stream in [false, true] {
        let address = &server.address;
        let keys = format!(
            "kind = \"openai\"\nstream = {stream}\nendpoints = [{{ base_url = \"http://{address}/v1\", max_in_flight = 4 }}]"
        );
        assert_eq!(traces(&format!("stream-{stream}"), &keys), at_hand);
    }
}

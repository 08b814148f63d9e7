//! `stillroom pull` through the binary, against a stand-in for the hub on this machine.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use stillroom_core::Digest;
use stillroom_formats::{DecoderConfig, Encoding, Tokenizer, write_hf_dir};
use stillroom_kernels::Device;
use stillroom_model::Decoder;
use stillroom_net::{ContentHasher, ContentId};

const ID: &str = "HuggingFaceTB/SmolLM2-135M";
const FOLDER: &str = "models--HuggingFaceTB--SmolLM2-135M";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the stand-in misbehaves.
#[derive(Default)]
struct Faults {
    /// The first this many replies from the store end after so many bytes.
    cuts: usize,
    cut_after: usize,
    /// The store's bytes are not the listed ones.
    wrong_bytes: bool,
    /// The store does not continue where asked.
    no_ranges: bool,
    /// Large files are said to be here instead.
    store: Option<String>,
    /// One more name in the list of files.
    bad_name: Option<&'static str>,
    /// The list of files says neither lengths nor contents.
    bare: bool,
}

struct Standin {
    url: String,
    seen: Arc<Mutex<Vec<String>>>,
    files: Arc<BTreeMap<String, Vec<u8>>>,
}

impl Standin {
    fn start(files: BTreeMap<String, Vec<u8>>, faults: Faults) -> Standin {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (seen, files) = (Arc::new(Mutex::new(Vec::new())), Arc::new(files));
        let (log, served, faults) = (seen.clone(), files.clone(), Arc::new(Mutex::new(faults)));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, files, faults) = (log.clone(), served.clone(), faults.clone());
                std::thread::spawn(move || serve(&stream, &log, &files, &mut faults.lock().expect("faults")));
            }
        });
        Standin { url, seen, files }
    }

    /// Request lines, with the headers that matter.
    fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("the log").clone()
    }

    fn asked_store(&self) -> Vec<String> {
        self.seen().into_iter().filter(|request| request.contains(" /store/")).collect()
    }

    fn pull(&self, cache: &Path, more: &[&str]) -> Output {
        pull(&self.url, cache, ID, more, &[])
    }
}

fn pull(url: &str, cache: &Path, id: &str, more: &[&str], environment: &[(&str, &str)]) -> Output {
    stillroom(cache, &[&["pull", id], more].concat(), &[&[("HF_ENDPOINT", url)], environment].concat())
}

fn stillroom(cache: &Path, args: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stillroom"));
    command.args(args).env("HF_HUB_CACHE", cache).env_remove("HF_TOKEN").env_remove("HF_HUB_OFFLINE");
    command.envs(environment.iter().copied()).output().expect("the binary runs")
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".gguf")
}

fn content(name: &str, bytes: &[u8]) -> ContentId {
    if is_large(name) {
        return ContentId::Sha256(Digest::of(bytes));
    }
    let mut hasher = ContentHasher::like(&ContentId::GitBlob([0; 20]), bytes.len() as u64);
    hasher.update(bytes);
    hasher.finish()
}

fn description(files: &BTreeMap<String, Vec<u8>>, faults: &Faults) -> String {
    let mut siblings: Vec<Value> = files
        .iter()
        .map(|(name, bytes)| match (faults.bare, is_large(name)) {
            (true, _) => json!({ "rfilename": name }),
            (false, true) => {
                let lfs = json!({ "sha256": Digest::of(bytes), "size": bytes.len(), "pointerSize": 130 });
                json!({ "rfilename": name, "size": bytes.len(), "blobId": "0".repeat(40), "lfs": lfs })
            }
            (false, false) => {
                let id = content(name, bytes).to_string();
                json!({ "rfilename": name, "size": bytes.len(), "blobId": id })
            }
        })
        .collect();
    siblings.extend(faults.bad_name.map(|name| json!({ "rfilename": name })));
    json!({ "id": ID, "sha": COMMIT, "siblings": siblings }).to_string()
}

fn serve(
    stream: &TcpStream,
    log: &Mutex<Vec<String>>,
    files: &BTreeMap<String, Vec<u8>>,
    faults: &mut Faults,
) {
    let mut head = String::new();
    let mut reader = BufReader::new(stream);
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
    }
    let lower = head.to_ascii_lowercase();
    let header =
        |name: &str| lower.lines().find_map(|l| l.strip_prefix(&format!("{name}: ")).map(str::to_owned));
    let line = head.lines().next().unwrap_or_default().to_owned();
    let range = header("range");
    let noted = [Some(line.clone()), range.clone(), header("authorization")];
    log.lock().expect("the log").push(noted.into_iter().flatten().collect::<Vec<_>>().join(" | "));
    let path = line.split(' ').nth(1).unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    let is_head = line.starts_with("HEAD");
    if path == format!("/api/models/{ID}/revision/main") {
        reply(stream, "200 OK", "", description(files, faults).as_bytes(), is_head);
    } else if let Some(name) = path.strip_prefix(&format!("/{ID}/resolve/{COMMIT}/")) {
        let Some(bytes) = files.get(name) else { return reply(stream, "404 Not Found", "", b"", is_head) };
        let id = content(name, bytes);
        if is_large(name) {
            let store = faults.store.clone().unwrap_or_else(|| format!("/store/{name}?X-Signature=s3cret"));
            let more = format!(
                "Location: {store}\r\nX-Repo-Commit: {COMMIT}\r\nX-Linked-Etag: \"{id}\"\r\nX-Linked-Size: {}\r\n",
                bytes.len()
            );
            reply(stream, "302 Found", &more, b"", is_head);
        } else {
            let more = format!("ETag: W/\"{id}\"\r\nX-Repo-Commit: {COMMIT}\r\n");
            reply(stream, "200 OK", &more, bytes, is_head);
        }
    } else if let Some(bytes) = path.strip_prefix("/store/").and_then(|name| files.get(name)) {
        from_store(stream, bytes, range.as_deref(), faults);
    } else {
        reply(stream, "404 Not Found", "", b"", is_head);
    }
}

fn from_store(mut stream: &TcpStream, bytes: &[u8], range: Option<&str>, faults: &mut Faults) {
    let mut bytes = bytes.to_vec();
    if faults.wrong_bytes {
        *bytes.last_mut().expect("a file has bytes") ^= 1;
    }
    let from = range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let from = from.filter(|_| !faults.no_ranges);
    let more =
        from.map(|from| format!("Content-Range: bytes {from}-{}/{}\r\n", bytes.len() - 1, bytes.len()));
    let rest = &bytes[from.unwrap_or(0)..];
    let status = if from.is_some() { "206 Partial Content" } else { "200 OK" };
    if faults.cuts == 0 {
        return reply(stream, status, &more.unwrap_or_default(), rest, false);
    }
    faults.cuts -= 1;
    let head =
        format!("HTTP/1.1 {status}\r\n{}Content-Length: {}\r\n\r\n", more.unwrap_or_default(), rest.len());
    let part = &rest[..faults.cut_after.min(rest.len())];
    drop(stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(part)));
}

fn reply(mut stream: &TcpStream, status: &str, more: &str, body: &[u8], is_head: bool) {
    let head =
        format!("HTTP/1.1 {status}\r\n{more}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let body = if is_head { &[] } else { body };
    drop(stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)));
}

/// A tiny model of its own, as a repository would hold it.
fn model(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let asset = |name: &str| std::fs::read_to_string(root.join("assets").join(name)).expect("an asset");
    let tokenizer = Tokenizer::from_json_files(
        &asset("quickstart-tokenizer/tokenizer.json"),
        Some(&asset("quickstart-tokenizer/tokenizer_config.json")),
        Some(&asset("quickstart-tokenizer/chat_template.jinja")),
    )
    .expect("the tokenizer");
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": tokenizer.vocab_size(),
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "max_position_embeddings": 128, "tie_word_embeddings": true,
    });
    let config = DecoderConfig::from_json(&config.to_string()).expect("a configuration");
    let decoder = Decoder::random(Arc::new(Device::cpu(1)), config.clone(), 7);
    write_hf_dir(dir, &config, &mut decoder.tensors(), Encoding::F32, Some(&tokenizer))
        .expect("the model is written");
    std::fs::write(dir.join("LICENSE"), asset("licence_texts/Apache-2.0.txt"))
        .expect("the licence is written");
    std::fs::write(dir.join("README.md"), "---\nlicense: apache-2.0\n---\n").expect("the card is written");
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).expect("the model's folder").flatten() {
        let name = entry.file_name().into_string().expect("a plain name");
        files.insert(name, std::fs::read(entry.path()).expect("a file"));
    }
    files.insert("pytorch_model.bin".into(), b"a pickle".to_vec());
    files.insert("modeling_evil.py".into(), b"raise SystemExit".to_vec());
    files
}

struct Scene {
    dir: tempfile::TempDir,
    cache: PathBuf,
}

impl Scene {
    fn new() -> Scene {
        let dir = tempfile::tempdir().expect("a folder for the test");
        let cache = dir.path().join("cache");
        Scene { dir, cache }
    }

    fn model(&self) -> BTreeMap<String, Vec<u8>> {
        model(&self.dir.path().join("model"))
    }

    fn repository(&self) -> PathBuf {
        self.cache.join(FOLDER)
    }

    fn snapshot(&self) -> PathBuf {
        self.repository().join("snapshots").join(COMMIT)
    }

    fn weights(&self, files: &BTreeMap<String, Vec<u8>>) -> PathBuf {
        self.repository().join("blobs").join(Digest::of(&files["model.safetensors"]).to_string())
    }

    /// Nothing has a final name but whole blobs.
    fn assert_no_snapshot(&self) {
        assert!(!self.repository().join("refs").exists(), "a revision was named");
        assert!(!self.repository().join("snapshots").exists(), "a snapshot was named");
    }
}

#[track_caller]
fn assert_exit(output: &Output, code: i32) -> String {
    let shown = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{shown}");
    assert!(!shown.contains("s3cret"), "a secret is shown: {shown}");
    shown
}

#[test]
fn a_pulled_model_lies_as_the_hubs_tools_lay_it_and_computes() {
    let scene = Scene::new();
    let hub = Standin::start(scene.model(), Faults::default());
    let token = [("HF_TOKEN", "hf_s3cret")];
    let output = pull(&hub.url, &scene.cache, ID, &["--json"], &token);
    assert_exit(&output, 0);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON on stdout");
    assert_eq!(report["commit"], COMMIT);
    assert_eq!(report["licence"]["verdict"], "allow");
    assert_eq!(report["path"].as_str().map(Path::new), Some(scene.snapshot().as_path()));
    assert_eq!(std::fs::read_to_string(scene.repository().join("refs/main")).unwrap(), COMMIT);
    for (name, bytes) in hub.files.iter() {
        let path = scene.snapshot().join(name);
        if name.ends_with(".bin") || name.ends_with(".py") {
            assert!(!path.exists(), "{name} was fetched");
            continue;
        }
        let expected = Path::new("../../blobs").join(content(name, bytes).to_string());
        assert_eq!(std::fs::read_link(&path).unwrap(), expected, "{name}");
        assert_eq!(&std::fs::read(&path).unwrap(), bytes, "{name}");
    }
    let blobs = std::fs::read_dir(scene.repository().join("blobs")).unwrap().count();
    assert_eq!(blobs, hub.files.len() - 2);
    assert!(scene.cache.join(".locks").join(FOLDER).is_dir());
    let left = std::fs::read_dir(scene.repository()).unwrap().flatten();
    assert_eq!(left.filter(|e| e.file_name().to_string_lossy().starts_with('.')).count(), 0);
    let seen = hub.seen();
    assert!(seen.iter().all(|request| request.ends_with("bearer hf_s3cret")), "{seen:?}");

    let text = scene.dir.path().join("text");
    std::fs::write(&text, "Ann has 3 apples.").unwrap();
    let score = |model: &str| {
        let args = ["score", model, "--text", text.to_str().unwrap(), "--json", "--threads", "1"];
        let output = stillroom(&scene.cache, &args, &[]);
        assert_exit(&output, 0);
        output.stdout
    };
    let of_folder = score(scene.dir.path().join("model").to_str().unwrap());
    assert_eq!(score(&format!("hf:{ID}")), of_folder);
    assert_eq!(score(&format!("hf:{ID}@{COMMIT}")), of_folder);

    let again = hub.pull(&scene.cache, &["--json"]);
    assert_exit(&again, 0);
    let report: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert!(report["files"].as_array().unwrap().iter().all(|file| file["downloaded_bytes"] == 0), "{report}");
    assert_eq!(hub.asked_store().len(), 1);
}

#[test]
fn a_hub_that_lists_bare_names_is_asked_for_each_file() {
    let scene = Scene::new();
    let hub = Standin::start(scene.model(), Faults { bare: true, ..Faults::default() });
    assert_exit(&hub.pull(&scene.cache, &[]), 0);
    assert!(hub.seen().iter().any(|request| request.starts_with("HEAD ")));
    assert!(scene.weights(&hub.files).is_file());
}

#[test]
fn a_cut_download_continues_where_it_stopped() {
    let scene = Scene::new();
    let hub = Standin::start(scene.model(), Faults { cuts: 2, cut_after: 1000, ..Faults::default() });
    let shown = assert_exit(&hub.pull(&scene.cache, &[]), 0);
    assert!(shown.contains("continuing"), "{shown}");
    let asked = hub.asked_store();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(
        !asked[0].contains("bytes=") && asked[1].contains("bytes=1000-") && asked[2].contains("bytes=2000-")
    );
    assert_eq!(std::fs::read(scene.weights(&hub.files)).unwrap(), hub.files["model.safetensors"]);
}

#[test]
fn a_second_command_continues_what_the_first_could_not_finish() {
    let scene = Scene::new();
    let files = scene.model();
    let weights = scene.weights(&files);
    let bytes = files["model.safetensors"].clone();
    // Bytes arrive, then nothing ever again.
    let hub = Standin::start(files.clone(), Faults { cuts: 1, cut_after: 1500, ..Faults::default() });
    let dead = Standin::start(files.clone(), Faults { cuts: 1000, cut_after: 0, ..Faults::default() });
    let shown = assert_exit(&dead.pull(&scene.cache, &[]), 75);
    assert!(shown.contains(&format!("next: stillroom pull {ID}")), "{shown}");
    scene.assert_no_snapshot();
    let incomplete = weights.with_file_name(format!("{}.incomplete", Digest::of(&bytes)));
    std::fs::write(&incomplete, &bytes[..700]).unwrap();
    assert_exit(&hub.pull(&scene.cache, &[]), 0);
    assert!(hub.asked_store()[0].contains("bytes=700-"), "{:?}", hub.asked_store());
    assert_eq!(std::fs::read(&weights).unwrap(), bytes);
    assert!(!incomplete.exists());
}

#[test]
fn a_damaged_beginning_and_a_server_that_starts_over_are_overcome() {
    let scene = Scene::new();
    let files = scene.model();
    let weights = scene.weights(&files);
    std::fs::create_dir_all(weights.parent().unwrap()).unwrap();
    let incomplete =
        weights.with_file_name(format!("{}.incomplete", Digest::of(&files["model.safetensors"])));
    std::fs::write(&incomplete, [0xff; 900]).unwrap();
    let hub = Standin::start(files.clone(), Faults::default());
    assert_exit(&hub.pull(&scene.cache, &[]), 0);
    assert_eq!(std::fs::read(&weights).unwrap(), files["model.safetensors"]);
    assert_eq!(hub.asked_store().len(), 2);

    std::fs::remove_dir_all(&scene.cache).unwrap();
    let hub = Standin::start(
        files.clone(),
        Faults { cuts: 1, cut_after: 1000, no_ranges: true, ..Faults::default() },
    );
    assert_exit(&hub.pull(&scene.cache, &[]), 0);
    assert_eq!(std::fs::read(&weights).unwrap(), files["model.safetensors"]);
}

#[test]
fn other_bytes_than_listed_never_get_their_name() {
    let scene = Scene::new();
    let hub = Standin::start(scene.model(), Faults { wrong_bytes: true, ..Faults::default() });
    let shown = assert_exit(&hub.pull(&scene.cache, &[]), 65);
    assert!(
        shown.contains("error[wrong-digest]") && shown.contains("listed") && shown.contains("fix: "),
        "{shown}"
    );
    assert!(!scene.weights(&hub.files).exists());
    scene.assert_no_snapshot();
}

#[test]
fn names_that_leave_the_folder_are_refused_before_any_file() {
    for name in ["../../outside.json", "a/../../x", "/etc/stillroom", "config.json/x", "a\\..\\b"] {
        let scene = Scene::new();
        let hub = Standin::start(scene.model(), Faults { bad_name: Some(name), ..Faults::default() });
        let shown = assert_exit(&hub.pull(&scene.cache, &[]), 65);
        assert!(shown.contains("not a plain path"), "{name}: {shown}");
        assert_eq!(hub.seen().len(), 1, "{name}: {:?}", hub.seen());
        assert!(!scene.cache.exists(), "{name}: something was written");
    }
}

#[test]
fn a_redirect_to_a_foreign_host_is_not_followed() {
    let foreign = Standin::start(BTreeMap::new(), Faults::default());
    for store in
        [format!("{}/store/x?X-Signature=s3cret", foreign.url), "https://elsewhere.example/?s3cret".into()]
    {
        let scene = Scene::new();
        let hub = Standin::start(scene.model(), Faults { store: Some(store), ..Faults::default() });
        let shown = assert_exit(&hub.pull(&scene.cache, &[]), 77);
        assert!(shown.contains("not followed"), "{shown}");
        scene.assert_no_snapshot();
    }
    assert!(foreign.seen().is_empty());
}

#[test]
fn offline_nothing_is_asked() {
    let scene = Scene::new();
    let hub = Standin::start(scene.model(), Faults::default());
    for word in ["1", "true", "Yes"] {
        let shown = assert_exit(&pull(&hub.url, &scene.cache, ID, &[], &[("HF_HUB_OFFLINE", word)]), 74);
        assert!(shown.contains("error[offline]"), "{shown}");
    }
    assert!(hub.seen().is_empty());
    assert_exit(&hub.pull(&scene.cache, &[]), 0);
    let asked = hub.seen().len();
    let output = pull(&hub.url, &scene.cache, ID, &[], &[("HF_HUB_OFFLINE", "1")]);
    assert_exit(&output, 0);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), scene.snapshot().display().to_string());
    assert_eq!(hub.seen().len(), asked);
}

#[test]
fn a_licence_that_says_no_or_nothing_ends_it_without_a_request() {
    let scene = Scene::new();
    let hub = Standin::start(BTreeMap::new(), Faults::default());
    for (id, word) in [("meta-llama/Llama-2-7b-hf", "deny"), ("nobody/knows-this", "unknown")] {
        let shown = assert_exit(&pull(&hub.url, &scene.cache, id, &[], &[]), 77);
        assert!(shown.contains("error[licence]") && shown.contains(word), "{shown}");
    }
    assert!(hub.seen().is_empty() && !scene.cache.exists());
    // An override is taken at its word, and the request goes out.
    let output = pull(&hub.url, &scene.cache, "nobody/knows-this", &["--override", "it is ours"], &[]);
    assert_exit(&output, 74);
    assert_eq!(hub.seen().len(), 1);
}

#[test]
fn a_licence_file_that_nobody_knows_keeps_the_weights_away() {
    let scene = Scene::new();
    let mut files = scene.model();
    files.insert("LICENSE".into(), b"You may look at it on Sundays.".to_vec());
    let hub = Standin::start(files, Faults::default());
    let shown = assert_exit(&hub.pull(&scene.cache, &[]), 77);
    assert!(shown.contains("--accept confirm-licence-file"), "{shown}");
    assert!(hub.asked_store().is_empty());
    scene.assert_no_snapshot();
    assert_exit(&hub.pull(&scene.cache, &["--accept", "confirm-licence-file"]), 0);
    assert_eq!(hub.asked_store().len(), 1);
}

#[test]
fn weights_of_another_kind_come_when_named() {
    let scene = Scene::new();
    let mut files = scene.model();
    files.insert("q/model-Q8_0.gguf".into(), vec![7; 5000]);
    let hub = Standin::start(files, Faults::default());
    assert_exit(&hub.pull(&scene.cache, &["--include", "*.gguf"]), 0);
    assert_eq!(std::fs::read(scene.snapshot().join("q/model-Q8_0.gguf")).unwrap(), vec![7; 5000]);
    let link = std::fs::read_link(scene.snapshot().join("q/model-Q8_0.gguf")).unwrap();
    assert!(link.starts_with("../../../blobs"), "{}", link.display());
    assert!(!scene.snapshot().join("model.safetensors").exists());
    assert_exit(&hub.pull(&scene.cache, &["--include", "*.bin"]), 65);
}

#[test]
fn a_file_that_another_process_downloads_is_left_to_it() {
    let scene = Scene::new();
    let hub = Standin::start(scene.model(), Faults::default());
    let locks = scene.cache.join(".locks").join(FOLDER);
    std::fs::create_dir_all(&locks).unwrap();
    let name = format!("{}.lock", Digest::of(&hub.files["model.safetensors"]));
    let lock = std::fs::File::create(locks.join(name)).unwrap();
    lock.lock().unwrap();
    let shown = assert_exit(&hub.pull(&scene.cache, &[]), 75);
    assert!(shown.contains("error[locked]"), "{shown}");
    drop(lock);
    assert_exit(&hub.pull(&scene.cache, &[]), 0);
}

#[test]
fn addresses_and_names_that_hide_something_are_usage_errors() {
    let scene = Scene::new();
    for endpoint in ["http://hub.example", "https://user:s3cret@hub.example", "ftp://x", "nonsense"] {
        assert_exit(&pull(endpoint, &scene.cache, ID, &[], &[]), 2);
    }
    for id in ["../x", "a/../b", "only-a-name", "a/b c"] {
        assert_exit(&pull("http://127.0.0.1:1", &scene.cache, id, &[], &[]), 2);
    }
    assert!(!scene.cache.exists());
}

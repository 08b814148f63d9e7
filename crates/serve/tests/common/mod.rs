//! A server of a tiny random model, and a client that speaks bytes.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use stillroom_core::Digest;
use stillroom_formats::{DecoderConfig, Family, RopeScaling, Tokenizer};
use stillroom_kernels::Device;
use stillroom_model::{Decoder, Generation, GenerationRequest, SamplingParams};
use stillroom_serve::{Answer, AnswerSink, Limits, ServeError, Served, Server, Settings, Stopper};

pub(crate) const CONTEXT: usize = 512;
/// Longer than any test may take, so that one that hangs fails.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) fn tokenizer() -> Tokenizer {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/quickstart-tokenizer");
    let read = |name: &str| std::fs::read_to_string(assets.join(name)).expect("the tokenizer is there");
    let (json, config, template) =
        (read("tokenizer.json"), read("tokenizer_config.json"), read("chat_template.jinja"));
    Tokenizer::from_json_files(&json, Some(&config), Some(&template)).expect("a tokenizer")
}

pub(crate) fn decoder(tokenizer: &Tokenizer) -> Decoder {
    let config = DecoderConfig {
        family: Family::Llama,
        vocab_size: tokenizer.vocab_size(),
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 8,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        max_position_embeddings: CONTEXT,
        tie_word_embeddings: true,
        qkv_bias: false,
        attention_out_bias: false,
        mlp_bias: false,
        qk_norm: false,
        bos_token_id: None,
        eos_token_ids: tokenizer.eos_id().into_iter().collect(),
    };
    Decoder::random(Arc::new(Device::cpu(2)), config, 7)
}

/// What a sink was told, as text.
#[derive(Clone, Default)]
pub(crate) struct Notes(pub(crate) Arc<Mutex<Vec<String>>>, pub(crate) Arc<Mutex<bool>>);

impl AnswerSink for Notes {
    fn record(&self, answer: &Answer<'_>) -> Result<(), String> {
        if *self.1.lock().unwrap() {
            return Err("the disk is full".to_owned());
        }
        let choices: Vec<String> = answer
            .choices
            .iter()
            .map(|choice| format!("{}:{}:{}", choice.text, choice.completion_tokens, choice.finish_reason))
            .collect();
        let key = answer.key.is_some();
        self.0.lock().unwrap().push(format!(
            "{} {} key={key} {}",
            answer.endpoint,
            answer.request,
            choices.join("|")
        ));
        Ok(())
    }
}

pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) notes: Notes,
    pub(crate) decoder: Decoder,
    pub(crate) tokenizer: Tokenizer,
    stopper: Stopper,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

pub(crate) fn serve(limits: Limits, keys: &[&str]) -> Running {
    let tokenizer = tokenizer();
    let notes = Notes::default();
    let settings = Settings {
        address: (Ipv4Addr::LOCALHOST, 0).into(),
        keys: keys.iter().map(|key| Digest::of(key.as_bytes())).collect(),
        model_name: "tiny".to_owned(),
        weights: Digest::of(b"weights"),
        context: None,
        limits,
    };
    let served = Served { decoder: decoder(&tokenizer), tokenizer: tokenizer.clone() };
    let server = Server::bind(settings, served, Some(Box::new(notes.clone()))).expect("a server");
    let (address, stopper) = (server.address(), server.stopper());
    let thread = std::thread::spawn(move || server.run());
    let decoder = decoder(&tokenizer);
    Running { address, notes, decoder, tokenizer, stopper, thread: Some(thread) }
}

/// A reply as it came.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// What a stream of events has, its end aside.
    pub(crate) fn events(&self) -> Vec<Value> {
        let text = String::from_utf8(self.body.clone()).expect("UTF-8");
        let data: Vec<&str> = text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
        assert_eq!(data.last(), Some(&"[DONE]"), "{text}");
        data[..data.len() - 1].iter().map(|event| serde_json::from_str(event).expect("JSON")).collect()
    }
}

impl Running {
    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("a connection");
        stream.set_read_timeout(Some(LONG)).expect("a time");
        stream
    }

    pub(crate) fn head(&self, path: &str, body: &str, more: &str) -> String {
        format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n{more}Content-Length: {}\r\n\r\n",
            self.address,
            body.len()
        )
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> Reply {
        self.post_with(path, body, "")
    }

    pub(crate) fn post_with(&self, path: &str, body: &str, more: &str) -> Reply {
        let mut stream = self.connect();
        stream.write_all(self.head(path, body, more).as_bytes()).expect("a head");
        stream.write_all(body.as_bytes()).expect("a body");
        read_reply(&mut stream)
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        let mut stream = self.connect();
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("a head");
        read_reply(&mut stream)
    }

    /// A number of `/metrics`.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = String::from_utf8(self.get("/metrics").body).expect("text");
        let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or_else(|| panic!("{name}: {text}"))
    }

    pub(crate) fn wait_until(&self, what: &str, is_so: impl Fn(&Running) -> bool) {
        let begun = Instant::now();
        while !is_so(self) {
            assert!(begun.elapsed() < LONG, "{what}");
            std::thread::yield_now();
        }
    }

    /// What the model writes by itself.
    pub(crate) fn alone(&self, prompt_ids: &[u32], sampling: &SamplingParams, sample: u32) -> Generation {
        let request = GenerationRequest { prompt_ids: prompt_ids.to_vec(), key: 0, sample };
        let mut written = None;
        self.decoder.generate(&[request], sampling, 1, &mut |_, done| written = Some(done)).expect("text");
        written.expect("a generation")
    }

    pub(crate) fn sampling(&self, max_tokens: usize, temperature: f32, seed: u64) -> SamplingParams {
        let stop_token_ids = self.decoder.config().eos_token_ids.clone();
        SamplingParams { max_tokens, temperature, top_p: 1.0, seed, stop_token_ids }
    }

    pub(crate) fn end(&mut self) {
        self.stopper.stop();
        let thread = self.thread.take().expect("it runs");
        thread.join().expect("no panic").expect("it ends well");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopper.stop();
    }
}

pub(crate) fn read_reply(stream: &mut TcpStream) -> Reply {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1..) => bytes.push(byte[0]),
            Ok(0) => panic!("the connection ended: {}", String::from_utf8_lossy(&bytes)),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => panic!("{e}: {}", String::from_utf8_lossy(&bytes)),
        }
    }
    let head = String::from_utf8(bytes).expect("a head").to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    if status == 100 {
        return read_reply(stream);
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let body = match length {
        Some(length) => {
            let mut body = vec![0; length.parse().expect("a length")];
            stream.read_exact(&mut body).expect("a body");
            body
        }
        None if head.contains("transfer-encoding: chunked") => read_chunks(stream),
        None => {
            let mut body = Vec::new();
            stream.read_to_end(&mut body).expect("a body");
            body
        }
    };
    Reply { status, head, body }
}

fn read_chunks(stream: &mut TcpStream) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\r\n") {
            stream.read_exact(&mut byte).expect("a size");
            line.push(byte[0]);
        }
        let size = usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16).expect("a size");
        let mut chunk = vec![0; size + 2];
        stream.read_exact(&mut chunk).expect("a chunk");
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&chunk[..size]);
    }
}

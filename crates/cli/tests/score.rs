//! `stillroom score` through the binary: every token of a text is scored once, whatever the text is.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use stillroom_formats::{DecoderConfig, Family, Tokenizer};
use stillroom_model::Decoder;

const CONTEXT: usize = 48;

/// A tiny random model on disk, and in memory.
struct Shop {
    dir: tempfile::TempDir,
    decoder: Decoder,
    tokenizer: Tokenizer,
}

fn shop() -> Shop {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/quickstart-tokenizer");
    let read = |name: &str| std::fs::read_to_string(assets.join(name)).expect("the tokenizer is there");
    let tokenizer = Tokenizer::from_json_files(
        &read("tokenizer.json"),
        Some(&read("tokenizer_config.json")),
        Some(&read("chat_template.jinja")),
    )
    .expect("a tokenizer");
    let config = DecoderConfig {
        num_hidden_layers: 2,
        eos_token_ids: tokenizer.eos_id().into_iter().collect(),
        ..common::tiny(Family::Llama, tokenizer.vocab_size(), CONTEXT)
    };
    let dir = tempfile::tempdir().expect("a folder");
    let model = dir.path().join("model");
    std::fs::create_dir(&model).expect("a folder");
    let decoder = common::write_random(&model, config, Some(&tokenizer));
    Shop { dir, decoder, tokenizer }
}

impl Shop {
    fn file(&self, text: &[u8]) -> PathBuf {
        let path = self.dir.path().join("text.txt");
        std::fs::write(&path, text).expect("a text is written");
        path
    }

    fn run(&self, text: &[u8], more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stillroom"));
        command.arg("score").arg(self.dir.path().join("model")).arg("--text").arg(self.file(text)).args(more);
        command.output().expect("the binary runs")
    }

    /// Tokens, log-probabilities and their negative mean, as the program says them.
    fn score(&self, text: &str) -> (Vec<u32>, Vec<Option<f32>>, Option<f64>) {
        let output = self.run(text.as_bytes(), &["--json"]);
        assert!(output.status.success(), "{text:?}: {}", String::from_utf8_lossy(&output.stderr));
        let said: Value = serde_json::from_slice(&output.stdout).expect("JSON and nothing else");
        let list = |name: &str| said[name].as_array().expect(name).clone();
        let tokens = list("tokens").iter().map(|id| id.as_u64().expect("an id") as u32).collect();
        let logprobs = list("token_logprobs").iter().map(|l| l.as_f64().map(|l| l as f32)).collect();
        (tokens, logprobs, said["nll_nats_per_token"].as_f64())
    }

    /// log p of the last of these tokens.
    fn last(&self, ids: &[u32]) -> f32 {
        *self.decoder.token_logprobs(&[ids])[0].last().expect("two tokens at least")
    }
}

#[test]
fn a_single_line_is_scored_token_by_token() {
    let shop = shop();
    let (tokens, logprobs, nll) = shop.score("Tom has 3 apples.\n");
    assert_eq!(tokens, shop.tokenizer.encode_plain("Tom has 3 apples.\n").expect("ids"));
    assert!(tokens.len() > 3 && tokens.len() < CONTEXT && logprobs.len() == tokens.len());
    assert_eq!(logprobs[0], None);
    let mut sum = 0.0;
    for t in 1..tokens.len() {
        assert_eq!(logprobs[t], Some(shop.last(&tokens[..=t])), "token {t}");
        sum -= f64::from(shop.last(&tokens[..=t]));
    }
    let mean = sum / (tokens.len() - 1) as f64;
    assert!((nll.expect("a mean") - mean).abs() < 1e-9, "{nll:?} {mean}");
    let shown = shop.run(b"Tom has 3 apples.\n", &[]);
    let expected = format!(
        "{} tokens scored, {mean:.4} nats per token, perplexity {:.4}\n",
        tokens.len() - 1,
        mean.exp()
    );
    assert_eq!(String::from_utf8_lossy(&shown.stdout), expected);
}

#[test]
fn nothing_to_score_is_said() {
    let shop = shop();
    let empty = shop.run(b"", &["--json"]);
    let said = String::from_utf8_lossy(&empty.stderr);
    assert_eq!(empty.status.code(), Some(65), "{said}");
    assert!(said.starts_with("error[bad-data]: the text is empty") && said.contains("\n  fix: "), "{said}");
    assert!(empty.stdout.is_empty());
    // One token has nothing before it.
    let (tokens, logprobs, nll) = shop.score("\n");
    assert_eq!((tokens.len(), logprobs, nll), (1, vec![None], None));
}

#[test]
fn every_kind_of_utf8_is_scored_and_nothing_else() {
    let shop = shop();
    for text in [
        "plain",
        "\u{f1}and\u{fa} \u{6c34} \u{1f642} \u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}",
        "e\u{301} a\u{30a}\u{323} \u{1100}\u{1161}\u{11a8}",
        "\u{feff}with a mark of byte order",
        "\u{5e9}\u{5dc}\u{5d5}\u{5dd} \u{202e}turned\u{202c} \u{0}\u{7f}\u{85}\u{2028}",
        "\u{10ffff}\u{e000}\u{fffd}",
        "<|im_start|>not a turn<|im_end|>",
        "a\r\nb\rc\n\n  d\t",
    ] {
        let (tokens, logprobs, nll) = shop.score(text);
        assert_eq!(tokens, shop.tokenizer.encode_plain(text).expect("ids"), "{text:?}");
        assert_eq!(shop.tokenizer.decode(&tokens), text);
        assert!(logprobs[1..].iter().all(|l| l.is_some_and(|l| l < 0.0 && l.is_finite())), "{text:?}");
        assert!(nll.is_some_and(f64::is_finite) || tokens.len() == 1, "{text:?}");
    }
    let broken: [(&[u8], usize); 5] = [
        (b"caf\xe9", 3),
        (b"cut \xf0\x9f\x99", 4),
        (b"half a pair \xed\xa0\x80", 12),
        (b"\xc0\x80 too long", 0),
        (b"\xff\xfeU\x00T\x00F\x00", 0),
    ];
    for (bytes, offset) in broken {
        let output = shop.run(bytes, &["--json"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(65), "{said}");
        assert!(said.contains(&format!("not UTF-8 at byte {offset}\n")) && said.contains("fix: "), "{said}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_text_longer_than_the_context_is_scored_in_windows_each_token_once() {
    let shop = shop();
    let mut text = String::new();
    for line in 0.. {
        text.push_str(&format!(
            "{line}: Ana buys {} pens for {} coins, then \u{1f642}.\n",
            line % 17,
            line % 23
        ));
        if text.len() > 60_000 {
            break;
        }
    }
    let (tokens, logprobs, _) = shop.score(&text);
    assert_eq!(tokens, shop.tokenizer.encode_plain(&text).expect("ids"));
    assert!(tokens.len() > 100 * CONTEXT && logprobs.len() == tokens.len() && logprobs[0].is_none());
    // Windows by hand: the first whole, and from each later one, half a context on, its second half.
    let of = |start: usize, end: usize| shop.decoder.token_logprobs(&[&tokens[start..end]]).swap_remove(0);
    let mut expected = of(0, CONTEXT);
    let mut start = CONTEXT / 2;
    while expected.len() < tokens.len() - 1 {
        let end = (start + CONTEXT).min(tokens.len());
        let new = end - 1 - expected.len();
        let window = of(start, end);
        assert!(new <= CONTEXT / 2);
        expected.extend(&window[window.len() - new..]);
        start += CONTEXT / 2;
    }
    let found: Vec<f32> = logprobs[1..].iter().map(|l| l.expect("a score")).collect();
    assert_eq!(found, expected);
    // And some of them alone, with what stood before them in their window.
    for t in
        [1, CONTEXT - 1, CONTEXT, CONTEXT + CONTEXT / 2 - 1, CONTEXT + CONTEXT / 2, 1001, tokens.len() - 1]
    {
        let first = if t < CONTEXT { 0 } else { (t - CONTEXT) / (CONTEXT / 2) * (CONTEXT / 2) + CONTEXT / 2 };
        assert_eq!(found[t - 1], shop.last(&tokens[first..=t]), "token {t}");
    }
}

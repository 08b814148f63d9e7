//! SmolLM2-135M-Instruct against transformers (`oracles/smollm2.py`): perplexity, log-probabilities,
//! greedy continuations. The file comes from `scripts/fetch-smollm2.sh .cache/smollm2`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use stillroom_formats::ModelFiles;
use stillroom_kernels::Device;
use stillroom_model::{Decoder, GenerationRequest, SamplingParams, WeightStorage};

const FILE: &str = ".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

/// Both sides are f32 with different orders of summation over 30 layers, on logits up to about 40; the
/// golden values have 6 decimals.
const LOGPROB_TOLERANCE: f64 = 2e-3;
/// A continuation may part from the golden one where its two best logits lie closer than this.
const TIE: f64 = 1e-3;

/// The model's file, or None after saying so; on CI its absence fails.
#[expect(clippy::print_stderr, reason = "a skipped test must be seen")]
fn file() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = std::env::var_os("STILLROOM_SMOLLM2").map_or(root.join(FILE), PathBuf::from);
    if path.is_file() {
        return Some(path);
    }
    assert!(std::env::var_os("CI").is_none(), "{} is missing; it may not be skipped on CI", path.display());
    eprintln!("SKIPPED: {} is missing; `scripts/fetch-smollm2.sh .cache/smollm2` gets it", path.display());
    None
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[test]
fn perplexity_and_greedy_text_are_those_of_transformers() {
    let Some(path) = file() else {
        return;
    };
    let files = ModelFiles::open(&path).unwrap();
    let decoder = Decoder::load(Arc::new(Device::cpu(2)), files.config, &*files.tensors).unwrap();
    assert_eq!(decoder.n_parameters(), 134_515_008);
    let text = include_str!("golden/smollm2.json");
    let golden: Value = serde_json::from_str(text).unwrap();
    perplexities(&decoder, &golden);
    continuations(&decoder, golden["greedy"].as_array().unwrap());
    kept_in_blocks(&decoder, &path, &ids(&golden["perplexity"]["ids"]));
}

/// The weights in the file's blocks give the bits of the weights as f32.
fn kept_in_blocks(decoder: &Decoder, path: &Path, text: &[u32]) {
    let files = ModelFiles::open(path).unwrap();
    let device = decoder.device().clone();
    let kept = Decoder::load_as(WeightStorage::AsStored, device, files.config, &*files.tensors).unwrap();
    let logprobs = |decoder: &Decoder| decoder.token_logprobs(&[&text[..70], &text[..3]]);
    assert_eq!(logprobs(&kept), logprobs(decoder));
    let requests = [&text[..20], &text[30..33], &text[..1]].map(|ids| GenerationRequest {
        prompt_ids: ids.to_vec(),
        key: 0,
        sample: 0,
    });
    let sampling =
        SamplingParams { max_tokens: 8, temperature: 0.8, top_p: 0.95, seed: 1, stop_token_ids: vec![] };
    let written = |decoder: &Decoder, in_flight| {
        let mut written = vec![None; requests.len()];
        decoder.generate(&requests, &sampling, in_flight, &mut |i, g| written[i] = Some(g)).unwrap();
        written
    };
    let expected = written(decoder, 3);
    assert_eq!(written(&kept, 3), expected);
    assert_eq!(written(&kept, 1), expected);
}

fn perplexities(decoder: &Decoder, golden: &Value) {
    let parts = ["perplexity", "perplexity_file_head"].map(|part| &golden[part]);
    let documents = parts.map(|part| ids(&part["ids"]));
    let logprobs = decoder.token_logprobs(&[&documents[0], &documents[1]]);
    for (part, logprobs) in parts.iter().zip(&logprobs) {
        let nll = -logprobs.iter().map(|&l| f64::from(l)).sum::<f64>() / logprobs.len() as f64;
        let expected = part["perplexity"].as_f64().unwrap();
        assert!((nll.exp() / expected - 1.0).abs() < 5e-5, "perplexity {}, expected {expected}", nll.exp());
    }
    for (t, (found, expected)) in logprobs[0].iter().zip(numbers(&parts[0]["logprobs"])).enumerate() {
        let difference = (f64::from(*found) - expected).abs();
        assert!(difference < LOGPROB_TOLERANCE, "token {t}: {found}, expected {expected}");
    }
}

fn continuations(decoder: &Decoder, cases: &[Value]) {
    let request =
        |case: &Value| GenerationRequest { prompt_ids: ids(&case["prompt_ids"]), key: 0, sample: 0 };
    let requests: Vec<GenerationRequest> = cases.iter().map(request).collect();
    let sampling = SamplingParams {
        max_tokens: 32,
        temperature: 0.0,
        top_p: 1.0,
        seed: 0,
        stop_token_ids: decoder.config().eos_token_ids.clone(),
    };
    let mut n = 0;
    let mut check = |i: usize, generation: stillroom_model::Generation| {
        let expected = ids(&cases[i]["ids"]);
        let tie = numbers(&cases[i]["gaps"]).iter().position(|&gap| gap < TIE).unwrap_or(expected.len());
        assert_eq!(generation.token_ids[..tie], expected[..tie], "{}", cases[i]["name"]);
        n += 1;
    };
    decoder.generate(&requests, &sampling, 8, &mut check).unwrap();
    assert_eq!(n, cases.len());
}

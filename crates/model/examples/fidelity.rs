//! How close to the teacher a student learns, on models and texts of one's own; docs/experiments.md has results.
//!
//!     … --example fidelity -- angle TEACHER STUDENT TEXTS.jsonl [TOKENS]
//!     … --example fidelity -- samples TEACHER STUDENT TEXTS.jsonl
//!
//! Lines of TEXTS.jsonl have a `text`. `angle` compares the gradient of `forward_kl` by the student's weights from what
//! a cache keeps with that from whole distributions, over TOKENS (8192) tokens. `samples` lets the student continue each
//! text's beginning, and scores what it wrote: under the teacher, and under itself (whose mean is its entropy).

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use stillroom_core::{SparseRow, Tail};
use stillroom_formats::{ModelFiles, Tokenizer};
use stillroom_model::{
    Batch, Decoder, Device, Divergence, GenerationRequest, HeadTerms, LiveTeacher, SamplingParams, Spacing,
    SparseBatch, Targets, Term, TrainState,
};

type Failure = Box<dyn Error>;

/// Tokens of a text that a sample continues, and how many it adds.
const BEGINNING: usize = 24;
const CONTINUATION: usize = 64;

fn open(path: &str) -> Result<(Decoder, Option<Tokenizer>), Failure> {
    let files = ModelFiles::open(Path::new(path))?;
    let n_threads = std::thread::available_parallelism()?.get();
    let device = Arc::new(Device::cpu(n_threads));
    Ok((Decoder::load(device, files.config.clone(), &*files.tensors)?, files.tokenizer))
}

fn texts(path: &str, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>, Failure> {
    let lines = std::fs::read_to_string(path)?;
    let text = |line: &str| -> Result<Vec<u32>, Failure> {
        let row: Value = serde_json::from_str(line)?;
        Ok(tokenizer.encode_plain(row["text"].as_str().ok_or("a line without `text`")?)?)
    };
    lines.lines().map(text).collect()
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, teacher, student, file, more @ ..] = arguments.as_slice() else {
        return Err("usage: fidelity angle|samples TEACHER STUDENT TEXTS.jsonl [TOKENS]".into());
    };
    let (teacher, tokenizer) = open(teacher)?;
    let (student, _) = open(student)?;
    let documents = texts(file, &tokenizer.ok_or("the teacher has no tokenizer")?)?;
    let found = match mode.as_str() {
        "angle" => angles(&teacher, student, documents, more.first().map_or(Ok(8192), |n| n.parse())?),
        "samples" => samples(&teacher, &student, &documents)?,
        other => return Err(format!("`{other}` is neither `angle` nor `samples`").into()),
    };
    #[expect(clippy::print_stdout, reason = "an example's result")]
    {
        println!("{found}");
    }
    Ok(())
}

/// Angles to the gradient from whole distributions, in degrees, and the lengths beside its length.
fn angles(teacher: &Decoder, student: Decoder, mut documents: Vec<Vec<u32>>, n_tokens: usize) -> Value {
    let mut n = 0;
    documents.retain(|ids| {
        let wanted = n < n_tokens && ids.len() > 1;
        n += if wanted { ids.len() - 1 } else { 0 };
        wanted
    });
    let ids: Vec<&[u32]> = documents.iter().map(Vec::as_slice).collect();
    let wanted: Vec<Vec<u32>> = ids.iter().map(|ids| (0..ids.len() as u32 - 1).collect()).collect();
    let keys: Vec<u64> = (0..ids.len() as u64).collect();
    let batch = Batch::from_documents(&ids);
    let rows: Vec<u32> =
        batch.segments.iter().flat_map(|s| s.start as u32..(s.start + s.len - 1) as u32).collect();
    let mut state = TrainState::new(student);
    let mut gradient = |targets: Targets<'_>, hard_label: f32| -> Vec<f32> {
        let term = Term { divergence: Divergence::ForwardKl, weight: 1.0, temperature: 1.0 };
        let terms = if hard_label > 0.0 { vec![] } else { vec![term] };
        let terms = HeadTerms { hard_label, divergences: &terms, scale: 1.0 / rows.len() as f32 };
        state.accumulate(&batch, &Targets { rows: rows.clone(), ..targets }, &terms);
        let found = state.gradients().flat_map(|tensor| tensor.data).collect();
        // A step of no length: gradients are zero again.
        let still = stillroom_model::AdamW {
            learning_rate: 0.0,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1.0,
            weight_decay: 0.0,
            max_grad_norm: 0.0,
        };
        state.step(&still);
        found
    };
    let live = Some(LiveTeacher::alone(teacher, None));
    let whole = gradient(Targets { live, ..Targets::default() }, 0.0);
    let stored = |cached: Vec<Vec<SparseRow>>, tail: Tail| {
        let mut sparse = SparseBatch::new(tail);
        cached.iter().flatten().for_each(|row| sparse.push(row));
        Targets { sparse: Some(sparse), ..Targets::default() }
    };
    let mut found = serde_json::Map::new();
    let mut note = |name: String, other: Vec<f32>| {
        let ratio = (dot(&other, &other) / dot(&whole, &whole)).sqrt();
        found.insert(name, json!({ "degrees": angle(&whole, &other), "length": ratio }));
    };
    for (name, spacing) in [("draws_50", Spacing::Independent), ("draws_50_even", Spacing::Even)] {
        for seed in 1..=3 {
            let drawn = teacher.sampled_targets(&ids, &wanted, 50, spacing, 1.0, &keys, seed);
            note(format!("{name}_seed_{seed}"), gradient(stored(drawn, Tail::None), 0.0));
        }
    }
    for tail in [Tail::Drop, Tail::Renormalise, Tail::Bucket] {
        let top = teacher.top_k_targets(&ids, &wanted, 12, 1.0);
        let name = format!("top_12_{}", format!("{tail:?}").to_lowercase());
        note(name, gradient(stored(top, tail), 0.0));
    }
    let hard_labels = documents.iter().flat_map(|ids| ids[1..].iter().copied()).collect();
    note("hard_labels".to_owned(), gradient(Targets { hard_labels, ..Targets::default() }, 1.0));
    json!({ "tokens": rows.len(), "to_whole_distributions": found })
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

fn angle(a: &[f32], b: &[f32]) -> f64 {
    (dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()).min(1.0).acos().to_degrees()
}

/// Of each text that is long enough: the nats that teacher and student give its continuation.
fn samples(teacher: &Decoder, student: &Decoder, documents: &[Vec<u32>]) -> Result<Value, Failure> {
    let long = documents.iter().filter(|ids| ids.len() >= BEGINNING);
    let requests: Vec<GenerationRequest> = long
        .enumerate()
        .map(|(i, ids)| GenerationRequest { prompt_ids: ids[..BEGINNING].to_vec(), key: i as u64, sample: 0 })
        .collect();
    let sampling = SamplingParams {
        max_tokens: CONTINUATION,
        temperature: 1.0,
        top_p: 1.0,
        seed: 1,
        stop_token_ids: vec![],
    };
    let mut written: Vec<Vec<u32>> = requests.iter().map(|r| r.prompt_ids.clone()).collect();
    student
        .generate(&requests, &sampling, 64, &mut |i, generation| written[i].extend(&generation.token_ids))?;
    let ids: Vec<&[u32]> = written.iter().map(Vec::as_slice).collect();
    let nats = |model: &Decoder| -> Vec<f64> {
        let logprobs = model.token_logprobs(&ids);
        logprobs.iter().map(|l| -l[BEGINNING - 1..].iter().map(|&l| f64::from(l)).sum::<f64>()).collect()
    };
    Ok(json!({
        "tokens_each": CONTINUATION,
        "teacher_nats": nats(teacher),
        "student_nats": nats(student),
    }))
}

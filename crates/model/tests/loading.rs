//! Weights in and out: what is refused, what is ignored, what is kept.

mod common;

use std::sync::Arc;

use common::{Tensors, Variant, bits, config, documents, lively, logits, slices};
use stillroom_formats::{Family, ModelFiles};
use stillroom_kernels::Device;
use stillroom_model::{
    AdamW, Batch, Decoder, GenerationRequest, HeadTerms, ModelError, SamplingParams, Targets, TrainState,
    WeightStorage,
};

const HARD: HeadTerms<'static> = HeadTerms { hard_label: 1.0, divergences: &[], scale: 1.0 };

const OPT: AdamW =
    AdamW { learning_rate: 0.01, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, max_grad_norm: 1.0 };

fn load(decoder: &Decoder, tensors: &Tensors) -> Result<Decoder, ModelError> {
    Decoder::load(decoder.device().clone(), decoder.config().clone(), tensors)
}

#[test]
fn tensors_come_back_as_they_were_loaded() {
    for name in common::VARIANTS {
        let decoder = Variant::open(name, 1).decoder;
        let golden = common::read_safetensors(&common::golden_dir(name).join("model.safetensors"));
        let mut n = 0;
        for tensor in decoder.tensors() {
            assert_eq!(tensor.shape, golden[&tensor.name].shape, "{name}: {}", tensor.name);
            assert_eq!(bits(&tensor.data), bits(&golden[&tensor.name].floats), "{name}: {}", tensor.name);
            n += tensor.data.len() as u64;
        }
        assert_eq!(n, decoder.n_parameters(), "{name}");
        assert_eq!(n, decoder.config().n_parameters(), "{name}");
        assert_eq!(n, golden.values().map(|t| t.floats.len() as u64).sum::<u64>(), "{name}");
    }
}

#[test]
fn halves_and_shards_have_the_logits_of_transformers() {
    for name in ["llama-tied-bf16", "llama-tied-f16", "llama-tied-sharded"] {
        let dir = common::golden_dir(name);
        let files = ModelFiles::open(&dir).unwrap();
        let decoder = Decoder::load(Arc::new(Device::cpu(1)), files.config, &*files.tensors).unwrap();
        let golden = common::read_safetensors(&dir.join("golden.safetensors"));
        let ids: Vec<u32> = golden["input_ids"].ints.iter().map(|&id| id as u32).collect();
        let documents: Vec<&[u32]> = ids.chunks(golden["input_ids"].shape[1]).collect();
        let found = logits(&decoder, &Batch::from_documents(&documents));
        let pairs = found.iter().zip(&golden["logits"].floats);
        let difference = pairs.fold(0.0, |max, (a, b)| f32::max(max, (a - b).abs()));
        assert!(difference <= 1e-4, "{name}: {difference:e}");
    }
}

/// What a decoder writes after each of some prompts, with log-probabilities.
fn written(decoder: &Decoder) -> Vec<(Vec<u32>, Vec<u32>)> {
    let prompts = documents(&[3, 1, 9, 40], decoder.config().vocab_size, 5);
    let request = |prompt_ids| GenerationRequest { prompt_ids, key: 1, sample: 0 };
    let requests: Vec<GenerationRequest> = prompts.into_iter().map(request).collect();
    let sampling =
        SamplingParams { max_tokens: 12, temperature: 0.9, top_p: 0.8, seed: 3, stop_token_ids: vec![] };
    let mut written = vec![(vec![], vec![]); requests.len()];
    let mut done = |i: usize, g: stillroom_model::Generation| written[i] = (g.token_ids, bits(&g.logprobs));
    decoder.generate(&requests, &sampling, 3, &mut done).unwrap();
    written
}

#[test]
fn weights_held_as_they_are_stored_give_the_bits_of_weights_held_as_f32() {
    for name in ["llama-tied", "llama-tied-bf16", "llama-tied-f16", "llama-untied-bias", "qwen2", "qwen3"] {
        let open = || ModelFiles::open(&common::golden_dir(name)).unwrap();
        let load = |storage, files: ModelFiles| {
            Decoder::load_as(storage, Arc::new(Device::cpu(2)), files.config, &*files.tensors).unwrap()
        };
        let (plain, stored) = (load(WeightStorage::F32, open()), load(WeightStorage::AsStored, open()));
        assert_eq!(stored.storage(), WeightStorage::AsStored);
        assert_eq!(stored.digest(), plain.digest(), "{name}");
        assert_eq!(stored.keep_layers(&[1]).unwrap().digest(), plain.keep_layers(&[1]).unwrap().digest());
        let documents = documents(&[70, 5, 1], plain.config().vocab_size, 6);
        let batch = Batch::from_documents(&slices(&documents));
        let hidden = |decoder: &Decoder| bits(&decoder.device().download(&decoder.hidden_states(&batch)));
        assert_eq!(hidden(&stored), hidden(&plain), "{name}");
        let logprobs = |decoder: &Decoder| decoder.token_logprobs(&slices(&documents));
        assert_eq!(logprobs(&stored), logprobs(&plain), "{name}");
        assert_eq!(written(&stored), written(&plain), "{name}");
        assert_eq!(written(&stored.clone()), written(&plain), "{name}");
    }
}

#[test]
#[should_panic(expected = "held as f32")]
fn weights_held_as_they_are_stored_are_not_trained() {
    let files = ModelFiles::open(&common::golden_dir("llama-tied-bf16")).unwrap();
    let device = Arc::new(Device::cpu(1));
    let decoder = Decoder::load_as(WeightStorage::AsStored, device, files.config, &*files.tensors).unwrap();
    TrainState::new(decoder);
}

#[test]
fn a_missing_an_extra_and_a_misshapen_tensor_are_named() {
    let decoder = lively(config(Family::Qwen2), 1, 1);
    let whole = Tensors::of(decoder.tensors());
    assert_eq!(load(&decoder, &whole).unwrap().digest(), decoder.digest());

    let name = "model.layers.1.self_attn.k_proj.bias";
    let mut tensors = whole.clone();
    tensors.0.remove(name);
    assert!(matches!(load(&decoder, &tensors), Err(ModelError::MissingTensor { name: n }) if n == name));

    let mut tensors = whole.clone();
    tensors.0.insert("model.layers.9.mlp.up_proj.weight".into(), (vec![1], vec![0.0]));
    let error = load(&decoder, &tensors).unwrap_err();
    assert!(matches!(&error, ModelError::UnexpectedTensor { name } if name.contains("layers.9")));

    let mut tensors = whole.clone();
    let (shape, _) = tensors.0.get_mut("model.layers.0.self_attn.v_proj.weight").unwrap();
    shape.reverse();
    let error = load(&decoder, &tensors).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tensor `model.layers.0.self_attn.v_proj.weight` has shape [72, 24], expected [24, 72]"
    );

    let mut tensors = whole.clone();
    tensors.0.get_mut("model.norm.weight").unwrap().1[5] = f32::NAN;
    assert!(matches!(load(&decoder, &tensors), Err(ModelError::TensorNotFinite { index: 5, .. })));
}

#[test]
fn rotary_tables_and_a_copy_of_a_tied_head_are_ignored() {
    let decoder = lively(config(Family::Llama), 1, 2);
    let mut tensors = Tensors::of(decoder.tensors());
    tensors.0.insert("lm_head.weight".into(), tensors.0["model.embed_tokens.weight"].clone());
    tensors.0.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), (vec![1], vec![1.0]));
    assert_eq!(load(&decoder, &tensors).unwrap().digest(), decoder.digest());
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let refused = |change: &dyn Fn(&mut stillroom_formats::DecoderConfig)| {
        let mut config = config(Family::Llama);
        change(&mut config);
        match Decoder::check_config(&config) {
            Err(ModelError::Config { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(&|c| c.head_dim = 7), "head_dim");
    assert_eq!(refused(&|c| c.num_key_value_heads = 4), "num_attention_heads");
    assert_eq!(refused(&|c| c.vocab_size = 0), "vocab_size");
    assert_eq!(refused(&|c| c.num_hidden_layers = 100_000), "num_hidden_layers");
    assert_eq!(refused(&|c| c.intermediate_size = 1 << 31), "hidden_size");
    assert_eq!(refused(&|c| c.hidden_size = usize::MAX), "hidden_size");
}

#[test]
fn kept_layers_are_those_chosen() {
    let decoder = lively(config(Family::Qwen3), 1, 3);
    let pruned = decoder.keep_layers(&[0, 2]).unwrap();
    assert_eq!(pruned.config().num_hidden_layers, 2);
    let (old, new) = (Tensors::of(decoder.tensors()), Tensors::of(pruned.tensors()));
    for (name, tensor) in &new.0 {
        assert_eq!(tensor, &old.0[&name.replace("layers.1.", "layers.2.")], "{name}");
    }
    let same = decoder.keep_layers(&[0, 1, 2]).unwrap();
    assert_eq!(same.digest(), decoder.digest());
    assert!(matches!(decoder.keep_layers(&[]), Err(ModelError::NoLayers)));
    assert!(matches!(decoder.keep_layers(&[3]), Err(ModelError::NoSuchLayer { layer: 3, n_layers: 3 })));
}

#[test]
fn a_random_decoder_depends_on_its_seed_only() {
    let random = |threads, seed| Decoder::random(Arc::new(Device::cpu(threads)), config(Family::Qwen3), seed);
    assert_eq!(random(1, 7).digest(), random(3, 7).digest());
    assert_ne!(random(1, 7).digest(), random(1, 8).digest());
    let inner = 1.0 / (config(Family::Qwen3).hidden_size as f64).sqrt();
    for tensor in random(1, 7).tensors() {
        let n = tensor.data.len() as f64;
        let mean = tensor.data.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let std = (tensor.data.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n).sqrt();
        let expected = if tensor.name.contains("norm") {
            assert!(tensor.data.iter().all(|&v| v == 1.0));
            continue;
        } else if tensor.name.contains("o_proj") || tensor.name.contains("down_proj") {
            inner / 6.0f64.sqrt()
        } else if tensor.name.contains("embed") || tensor.name.contains("lm_head") {
            2.0 * inner
        } else {
            inner
        };
        assert!((std / expected - 1.0).abs() < 5.0 / (2.0 * n).sqrt(), "{}: {std}", tensor.name);
        assert!(mean.abs() < 5.0 * expected / n.sqrt(), "{}: {mean}", tensor.name);
    }
}

#[test]
fn a_clone_is_its_own() {
    let decoder = lively(config(Family::Llama), 1, 4);
    let documents = documents(&[9], 211, 1);
    let batch = Batch::from_documents(&slices(&documents));
    let before = logits(&decoder, &batch);
    let mut state = TrainState::new(decoder.clone());
    let targets = Targets { rows: vec![3], hard_labels: vec![1], ..Targets::default() };
    state.accumulate(&batch, &targets, &HARD);
    let report = state.step(&AdamW { max_grad_norm: 0.0, ..OPT });
    assert!(!report.clipped && report.grad_norm > 0.0);
    assert_ne!(state.decoder().digest(), decoder.digest());
    assert_eq!(bits(&logits(&decoder, &batch)), bits(&before));
}

#[test]
fn a_gradient_that_is_not_finite_changes_no_weight() {
    let decoder = lively(config(Family::Llama), 1, 4);
    let digest = decoder.digest();
    let documents = documents(&[9], 211, 1);
    let batch = Batch::from_documents(&slices(&documents));
    let targets = Targets { rows: vec![3], hard_labels: vec![1], ..Targets::default() };
    let mut state = TrainState::new(decoder);
    state.accumulate(&batch, &targets, &HeadTerms { scale: f32::INFINITY, ..HARD });
    let report = state.step(&OPT);
    assert!(!report.grad_norm.is_finite() && !report.clipped);
    assert_eq!((state.n_steps(), state.decoder().digest()), (0, digest));
    assert!(state.gradients().all(|g| g.data.iter().all(|&v| v == 0.0)), "gradients start anew");
}

#[test]
fn requests_that_cannot_be_met_are_refused() {
    let decoder = lively(config(Family::Llama), 1, 5);
    let sampling =
        SamplingParams { max_tokens: 500, temperature: 0.0, top_p: 1.0, seed: 0, stop_token_ids: vec![] };
    let request = |prompt_ids: Vec<u32>| GenerationRequest { prompt_ids, key: 0, sample: 0 };
    let run = |prompt_ids: Vec<u32>, sampling: &SamplingParams| {
        let mut length = 0;
        decoder
            .generate(&[request(prompt_ids)], sampling, 4, &mut |_, g| length = g.token_ids.len())
            .map(|()| length)
    };
    assert!(matches!(run(vec![], &sampling), Err(ModelError::EmptyPrompt { request: 0 })));
    assert!(matches!(run(vec![1; 129], &sampling), Err(ModelError::PromptTooLong { n_tokens: 129, .. })));
    let outside = run(vec![1, 211], &sampling);
    assert!(matches!(outside, Err(ModelError::TokenOutOfRange { id: 211, position: 1, .. })));
    for (temperature, top_p) in [(-1.0, 1.0), (f32::NAN, 1.0), (1.0, 0.0), (1.0, 1.5)] {
        let sampling = SamplingParams { temperature, top_p, ..sampling.clone() };
        assert!(matches!(run(vec![1], &sampling), Err(ModelError::Sampling { .. })));
    }
    // The context of 128 ends a sequence; a full prompt leaves room for one token.
    assert_eq!(run(vec![1; 100], &sampling).unwrap(), 28);
    assert_eq!(run(vec![1; 128], &sampling).unwrap(), 1);
    assert_eq!(run(vec![1], &SamplingParams { max_tokens: 0, ..sampling.clone() }).unwrap(), 0);
    assert!(decoder.generate(&[], &sampling, 4, &mut |_, _| ()).is_ok());
}

//! LoRA adapters: PEFT's numbers (`oracles/lora.py`), finite differences, and bits that depend on neither
//! threads, batches nor restarts.
//!
//! Tolerances: both sides compute in f32 with different orders of summation.

mod common;

use std::collections::BTreeMap;

use common::{Golden, Tensors, Variant, bits, config, documents, golden_dir, lively, logits, slices};
use stillroom_core::CounterRng;
use stillroom_formats::{DecoderConfig, Family, LoraConfig, LoraTarget, PeftAdapter};
use stillroom_model::{
    AdamW, Batch, Decoder, GenerationRequest, HeadTerms, ModelError, SamplingParams, Targets, TrainState,
    WeightStorage,
};

const FAMILIES: [Family; 3] = [Family::Llama, Family::Qwen2, Family::Qwen3];
const VARIANTS: [&str; 4] = ["llama-all", "llama-qv-rslora", "qwen2-all", "qwen2-qv-rslora"];

const LOGITS_TOLERANCE: f32 = 1e-5;
const GRADIENT_TOLERANCE: f64 = 1e-5;
const LOSS_TOLERANCE: f64 = 1e-4;

fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |max, (a, b)| f32::max(max, (a - b).abs()))
}

fn mean(losses: &[f32]) -> f64 {
    losses.iter().map(|&l| f64::from(l)).sum::<f64>() / losses.len() as f64
}

fn hard(n_rows: usize) -> HeadTerms<'static> {
    HeadTerms { hard_label: 1.0, divergences: &[], scale: 1.0 / n_rows as f32 }
}

/// A base model with PEFT's adapter on it, the base's batch and PEFT's values.
struct Adapted {
    decoder: Decoder,
    batch: Batch,
    targets: Targets<'static>,
    golden: BTreeMap<String, Golden>,
    json: serde_json::Value,
}

fn open(name: &str, n_threads: usize) -> Adapted {
    let dir = golden_dir(&format!("lora/{name}"));
    let text = std::fs::read_to_string(dir.join("golden.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let base = Variant::open(json["base"].as_str().unwrap(), n_threads);
    let batch = Batch::from_documents(&slices(&base.documents("input_ids")));
    let labels = &base.golden["labels"].ints;
    let rows: Vec<u32> = (0..labels.len() as u32).filter(|&r| labels[r as usize] >= 0).collect();
    let hard_labels = rows.iter().map(|&r| labels[r as usize] as u32).collect();
    let adapter = PeftAdapter::open(&dir).unwrap();
    let plain = LoraConfig { dropout: 0.0, ..adapter.config };
    let decoder = base.decoder.with_adapter(plain, &*adapter.tensors).unwrap();
    let golden = common::read_safetensors(&dir.join("golden.safetensors"));
    Adapted { decoder, batch, targets: Targets { rows, hard_labels, ..Targets::default() }, golden, json }
}

#[test]
fn logits_are_those_of_peft_and_merged_ones_too() {
    for name in VARIANTS {
        let Adapted { mut decoder, batch, golden, .. } = open(name, 2);
        let found = logits(&decoder, &batch);
        let difference = max_difference(&found, &golden["logits"].floats);
        assert!(difference <= LOGITS_TOLERANCE, "{name}: {difference:e}");
        let base = logits(&decoder.clone().without_adapter(), &batch);
        assert!(max_difference(&found, &base) > 0.1, "{name}: the adapter does something");

        decoder.merge();
        assert!(decoder.adapter_config().is_none());
        let merged = logits(&decoder, &batch);
        let difference = max_difference(&found, &merged);
        assert!(difference <= LOGITS_TOLERANCE, "{name}: merged, {difference:e}");
    }
}

#[test]
fn gradients_of_a_and_b_are_those_of_peft() {
    for name in VARIANTS {
        let Adapted { decoder, batch, targets, golden, json } = open(name, 2);
        let held_out = decoder.losses(&batch, &targets, &[]);
        let mut state = TrainState::new(decoder);
        let trained = state.accumulate(&batch, &targets, &hard(targets.rows.len()));
        assert_eq!(bits(&trained.hard_label), bits(&held_out.hard_label), "{name}");
        let (loss, expected) = (mean(&trained.hard_label), json["loss"].as_f64().unwrap());
        assert!((loss - expected).abs() <= LOSS_TOLERANCE, "{name}: loss {loss}, expected {expected}");
        let mut seen = 0;
        for gradient in state.gradients() {
            let expected = &golden[&format!("grad.{}", gradient.name)];
            assert_eq!(gradient.shape, expected.shape, "{name}: {}", gradient.name);
            let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            let delta = norm(&mut gradient.data.iter().zip(&expected.floats).map(|(a, b)| a - b));
            let relative = delta / norm(&mut expected.floats.iter().copied());
            assert!(relative <= GRADIENT_TOLERANCE, "{name}: {} ‖Δ‖/‖g‖ = {relative:e}", gradient.name);
            seen += 1;
        }
        assert_eq!(seen, golden.keys().filter(|k| k.starts_with("grad.")).count(), "{name}");
    }
}

#[test]
fn five_adamw_steps_have_the_losses_and_norms_of_peft() {
    for name in VARIANTS {
        let Adapted { decoder, batch, targets, json, .. } = open(name, 1);
        let adamw = &json["adamw"];
        let number = |key: &str| adamw[key].as_f64().unwrap() as f32;
        let opt = AdamW {
            learning_rate: number("lr"),
            beta1: number("beta1"),
            beta2: number("beta2"),
            eps: number("eps"),
            weight_decay: number("weight_decay"),
            max_grad_norm: number("max_grad_norm"),
        };
        let mut state = TrainState::new(decoder);
        let losses = adamw["losses"].as_array().unwrap();
        assert_eq!(losses.len(), 5);
        for (step, expected) in losses.iter().enumerate() {
            let found = state.accumulate(&batch, &targets, &hard(targets.rows.len()));
            let (loss, expected) = (mean(&found.hard_label), expected.as_f64().unwrap());
            assert!((loss - expected).abs() <= LOSS_TOLERANCE, "{name}: step {step}, {loss} not {expected}");
            let report = state.step(&opt);
            let norm = adamw["grad_norms"][step].as_f64().unwrap();
            let relative = (report.grad_norm - norm).abs() / norm;
            assert!(relative <= 1e-4, "{name}: step {step}, norm {} not {norm}", report.grad_norm);
        }
    }
}

fn lora(dropout: f64, target_modules: &[LoraTarget]) -> LoraConfig {
    LoraConfig { r: 3, alpha: 5.0, dropout, target_modules: target_modules.to_vec(), use_rslora: false }
}

/// A lively model with an adapter whose B is not zero.
fn adapted(config: DecoderConfig, lora: LoraConfig, n_threads: usize) -> Decoder {
    let decoder = lively(config, n_threads, 3).with_new_adapter(lora.clone(), 4).unwrap();
    let mut tensors = Tensors::of(decoder.trained_tensors());
    for (i, (name, (_, data))) in tensors.0.iter_mut().enumerate() {
        if name.contains("lora_B") {
            let mut rng = CounterRng::new(&[5, i as u64]);
            data.iter_mut().for_each(|v| *v = 0.2 * rng.normal() as f32);
        }
    }
    decoder.with_adapter(lora, &tensors).unwrap()
}

/// Documents of these lengths, about 70 % of their rows supervised.
fn supervised(lengths: &[usize], vocab_size: usize, seed: u64) -> (Batch, Targets<'static>) {
    let documents = documents(lengths, vocab_size, seed);
    let batch = Batch::from_documents(&slices(&documents));
    let mut rng = CounterRng::new(&[seed, 1]);
    let rows: Vec<u32> = (0..batch.n_tokens() as u32).filter(|_| rng.uniform() < 0.7).collect();
    let hard_labels = rows.iter().map(|_| rng.below(vocab_size as u64) as u32).collect();
    (batch, Targets { rows, hard_labels, ..Targets::default() })
}

/// Every A and B along a direction that is half its gradient, half random; with dropout, whose mask stays.
fn check_by_differences(family: Family, dropout: f64, targets: &[LoraTarget]) {
    let small = DecoderConfig {
        vocab_size: 23,
        hidden_size: 16,
        intermediate_size: 20,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 6,
        ..config(family)
    };
    let lora = lora(dropout, targets);
    let decoder = adapted(small, lora.clone(), 1);
    let (batch, targets) = supervised(&[9, 5], 23, 31);
    let terms = HeadTerms { hard_label: 1.0, divergences: &[], scale: 0.3 };
    let whole = Tensors::of(decoder.trained_tensors());
    let loss_at = |name: &str, direction: &[f64], h: f64| {
        let mut tensors = whole.clone();
        let (_, data) = tensors.0.get_mut(name).unwrap();
        data.iter_mut().zip(direction).for_each(|(v, d)| *v = (f64::from(*v) + h * d) as f32);
        let moved = decoder.clone().with_adapter(lora.clone(), &tensors).unwrap();
        let mut state = TrainState::new(moved).with_dropout_seed(8);
        let losses = &state.accumulate(&batch, &targets, &terms).hard_label;
        0.3 * losses.iter().map(|&l| f64::from(l)).sum::<f64>()
    };
    let mut state = TrainState::new(decoder.clone()).with_dropout_seed(8);
    state.accumulate(&batch, &targets, &terms);
    for (i, gradient) in state.gradients().enumerate() {
        let norm = gradient.data.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        assert!(norm > 0.0, "{}", gradient.name);
        let mut rng = CounterRng::new(&[34, i as u64]);
        let n = (gradient.data.len() as f64).sqrt();
        let direction: Vec<f64> =
            gradient.data.iter().map(|&g| f64::from(g) / norm + rng.normal() / n).collect();
        let h = 4e-3;
        let quotient =
            (loss_at(&gradient.name, &direction, h) - loss_at(&gradient.name, &direction, -h)) / (2.0 * h);
        let analytic: f64 = gradient.data.iter().zip(&direction).map(|(&g, d)| f64::from(g) * d).sum();
        let (error, bound) = ((quotient - analytic).abs(), 5e-3 * analytic.abs() + 3e-4);
        assert!(error <= bound, "{family:?} {}: {quotient} by differences, {analytic}", gradient.name);
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    check_by_differences(Family::Llama, 0.0, &LoraTarget::ALL);
    check_by_differences(Family::Qwen2, 0.3, &LoraTarget::ALL);
    check_by_differences(Family::Qwen3, 0.3, &[LoraTarget::K, LoraTarget::O, LoraTarget::Up]);
}

const OPT: AdamW =
    AdamW { learning_rate: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, max_grad_norm: 1.0 };

fn one_step(state: &mut TrainState, step: u64) {
    for half in 0..2 {
        let lengths = [3 + step as usize, 100, 41, 1, 30 + 7 * half];
        let (batch, targets) = supervised(&lengths, 211, 100 + 2 * step + half as u64);
        state.accumulate(&batch, &targets, &hard(100));
    }
    state.step(&OPT);
}

fn start(family: Family, n_threads: usize) -> TrainState {
    let decoder = adapted(config(family), lora(0.2, &LoraTarget::ALL), n_threads);
    TrainState::new(decoder).with_dropout_seed(6)
}

fn train(family: Family, n_threads: usize, n_steps: u64) -> TrainState {
    let mut state = start(family, n_threads);
    (0..n_steps).for_each(|step| one_step(&mut state, step));
    state
}

#[test]
fn one_and_two_and_three_threads_train_to_the_same_bits() {
    for family in FAMILIES {
        let one = train(family, 1, 3);
        assert_ne!(one.decoder().digest(), start(family, 1).decoder().digest());
        for n_threads in [2, 3] {
            let other = train(family, n_threads, 3);
            assert_eq!(one.decoder().digest(), other.decoder().digest(), "{family:?}, {n_threads} threads");
        }
    }
}

#[test]
fn the_weights_stay_and_only_the_adapter_has_moments() {
    let before = start(Family::Qwen2, 2).into_decoder();
    let state = train(Family::Qwen2, 2, 2);
    let after = state.decoder();
    assert_eq!(
        before.clone().without_adapter().digest(),
        after.clone().without_adapter().digest(),
        "a frozen weight changed"
    );
    for (before, after) in before.trained_tensors().zip(after.trained_tensors()) {
        assert_ne!(before, after);
    }
    let n_moments: usize = state.optimiser_tensors().map(|t| t.data.len()).sum();
    let n = after.adapter_config().unwrap().n_parameters(after.config());
    assert_eq!((after.n_trained(), n_moments as u64), (n, 2 * n));
    assert!(state.gradients().all(|g| g.name.contains("lora_")));
}

#[test]
fn a_restored_state_goes_on_bit_for_bit() {
    let straight = train(Family::Qwen3, 1, 4);
    let before = train(Family::Qwen3, 1, 2);
    let moments = Tensors::of(before.optimiser_tensors());
    let trained = Tensors::of(before.decoder().trained_tensors());
    let (n_steps, device) = (before.n_steps(), before.decoder().device().clone());
    let weights = Tensors::of(before.decoder().tensors());
    let base = Decoder::load(device, config(Family::Qwen3), &weights).unwrap();
    let fresh = base.with_new_adapter(lora(0.2, &LoraTarget::ALL), 77).unwrap();
    let decoder = fresh.with_trained(&trained).unwrap();
    let mut restored = TrainState::restore(decoder, n_steps, &moments).unwrap().with_dropout_seed(6);
    (2..4).for_each(|step| one_step(&mut restored, step));
    assert_eq!(restored.decoder().digest(), straight.decoder().digest());
    let all =
        |state: &TrainState| -> Vec<Vec<u32>> { state.optimiser_tensors().map(|t| bits(&t.data)).collect() };
    assert_eq!(all(&restored), all(&straight));
}

fn gradient_bits(state: &TrainState) -> Vec<Vec<u32>> {
    state.gradients().map(|g| bits(&g.data)).collect()
}

#[test]
fn recomputed_activations_give_the_same_bits() {
    for family in FAMILIES {
        let mut kept = start(family, 2);
        let mut recomputed = start(family, 2).with_gradient_checkpointing(true);
        for step in 0..2 {
            let (batch, targets) = supervised(&[61, 1, 40, 120], 211, 200 + step);
            let losses = kept.accumulate(&batch, &targets, &hard(100));
            let again = recomputed.accumulate(&batch, &targets, &hard(100));
            assert_eq!(bits(&losses.hard_label), bits(&again.hard_label), "{family:?}");
            assert_eq!(gradient_bits(&kept), gradient_bits(&recomputed), "{family:?}");
            assert_eq!(kept.step(&OPT), recomputed.step(&OPT));
        }
    }
}

#[test]
fn dropout_depends_on_neither_the_split_into_batches_nor_on_rows_without_supervision() {
    // Each document is a group of its own, so only dropout could differ.
    let lengths = [300, 280, 310];
    let long = DecoderConfig { max_position_embeddings: 512, ..config(Family::Llama) };
    let begin = || {
        let decoder = adapted(long.clone(), lora(0.2, &LoraTarget::ALL), 1);
        TrainState::new(decoder).with_dropout_seed(6)
    };
    let (batch, targets) = supervised(&lengths, 211, 40);
    let mut together = begin();
    let losses = together.accumulate(&batch, &targets, &hard(100)).hard_label.clone();

    let (mut apart, mut first, mut found) = (begin(), 0, Vec::new());
    for length in lengths {
        let inside = |row: &&u32| (first..first + length).contains(&(**row as usize));
        let skipped = targets.rows.iter().filter(|&&row| (row as usize) < first).count();
        let rows: Vec<u32> = targets.rows.iter().filter(inside).map(|row| row - first as u32).collect();
        let hard_labels = targets.hard_labels[skipped..skipped + rows.len()].to_vec();
        let document = Batch::from_documents(&[&batch.ids[first..first + length]]);
        let part = Targets { rows, hard_labels, ..Targets::default() };
        found.extend_from_slice(&apart.accumulate(&document, &part, &hard(100)).hard_label);
        first += length;
    }
    assert_eq!(bits(&found), bits(&losses));
    assert_eq!(gradient_bits(&apart), gradient_bits(&together));

    // With every row supervised the last layer is not narrowed; its rows are dropped alike.
    let all = Targets {
        rows: (0..batch.n_tokens() as u32).collect(),
        hard_labels: vec![7; batch.n_tokens()],
        ..Targets::default()
    };
    let some = Targets { hard_labels: vec![7; targets.rows.len()], ..targets.clone() };
    let whole = begin().accumulate(&batch, &all, &hard(100)).hard_label.clone();
    let picked: Vec<f32> = targets.rows.iter().map(|&r| whole[r as usize]).collect();
    let found = begin().accumulate(&batch, &some, &hard(100)).hard_label.clone();
    assert_eq!(bits(&found), bits(&picked));
}

#[test]
fn dropout_is_for_training_alone_and_new_at_every_step() {
    let (batch, targets) = supervised(&[30, 9], 211, 50);
    let mut state = start(Family::Llama, 1);
    let held_out = state.decoder().losses(&batch, &targets, &[]).hard_label;
    let losses = |state: &mut TrainState| {
        let losses = state.accumulate(&batch, &targets, &hard(20)).hard_label.clone();
        state.step(&AdamW { learning_rate: 0.0, ..OPT });
        losses
    };
    let (first, second) = (losses(&mut state), losses(&mut state));
    assert!(first != held_out && second != first);
    let other_seed = &mut start(Family::Llama, 1).with_dropout_seed(7);
    assert_ne!(losses(other_seed), first);
    assert_eq!(losses(&mut start(Family::Llama, 1)), first);
    // The same on average: far fewer nats apart than the adapter moves them.
    let difference = (mean(&first) - mean(&held_out)).abs();
    assert!(difference < 0.2, "{difference}");
}

#[test]
fn a_new_adapter_changes_nothing_and_starts_as_peft_starts_it() {
    let plain = lively(config(Family::Llama), 1, 3);
    let (batch, targets) = supervised(&[30, 9], 211, 60);
    let before = logits(&plain, &batch);
    let decoder = plain.clone().with_new_adapter(lora(0.0, &LoraTarget::ALL), 1).unwrap();
    assert_eq!(logits(&decoder, &batch), before);
    assert_ne!(decoder.digest(), plain.digest());
    for tensor in decoder.trained_tensors() {
        if tensor.name.contains("lora_B") {
            assert!(tensor.data.iter().all(|&v| v == 0.0));
        } else {
            let bound = 1.0 / (tensor.shape[1] as f32).sqrt();
            let largest = tensor.data.iter().fold(0.0, |max, v| f32::max(max, v.abs()));
            assert!(largest <= bound && largest > 0.9 * bound, "{}: {largest} of {bound}", tensor.name);
        }
    }
    let mut state = TrainState::new(decoder);
    state.accumulate(&batch, &targets, &hard(20));
    for gradient in state.gradients() {
        let zero = gradient.data.iter().all(|&g| g == 0.0);
        assert_eq!(zero, gradient.name.contains("lora_A"), "{}", gradient.name);
    }
}

#[test]
fn what_is_generated_has_the_bits_of_what_is_scored_however_the_weights_are_held() {
    for family in FAMILIES {
        let decoder = adapted(config(family), lora(0.2, &LoraTarget::ALL), 2);
        let (weights, trained) = (Tensors::of(decoder.tensors()), Tensors::of(decoder.trained_tensors()));
        let stored =
            Decoder::load_as(WeightStorage::AsStored, decoder.device().clone(), config(family), &weights)
                .unwrap()
                .with_adapter(lora(0.2, &LoraTarget::ALL), &trained)
                .unwrap();
        let sampling =
            SamplingParams { max_tokens: 12, temperature: 0.0, top_p: 1.0, seed: 0, stop_token_ids: vec![] };
        let request = |(key, prompt_ids)| GenerationRequest { prompt_ids, key, sample: 0 };
        let prompts = documents(&[3, 17, 8], 211, 70);
        let requests: Vec<GenerationRequest> = (0..).zip(prompts).map(request).collect();
        let mut seen = 0;
        decoder
            .generate(&requests, &sampling, 3, &mut |i, generation| {
                let ids = [&requests[i].prompt_ids[..], &generation.token_ids].concat();
                let scored = &decoder.token_logprobs(&[&ids])[0][requests[i].prompt_ids.len() - 1..];
                assert_eq!(bits(&generation.logprobs), bits(scored), "{family:?}");
                let again = &stored.token_logprobs(&[&ids])[0][requests[i].prompt_ids.len() - 1..];
                assert_eq!(bits(again), bits(scored), "{family:?}");
                seen += 1;
            })
            .unwrap();
        assert_eq!(seen, 3);
    }
}

#[test]
fn an_adapter_that_does_not_fit_is_refused() {
    let decoder = adapted(config(Family::Llama), lora(0.0, &[LoraTarget::Q, LoraTarget::Down]), 1);
    let lora = decoder.adapter_config().unwrap().clone();
    let whole = Tensors::of(decoder.trained_tensors());
    let name = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight";
    assert!(whole.0.contains_key(name));
    let with = |lora: &LoraConfig, change: &dyn Fn(&mut Tensors)| {
        let mut tensors = whole.clone();
        change(&mut tensors);
        decoder.clone().with_adapter(lora.clone(), &tensors).unwrap_err()
    };
    let error = with(&lora, &|t| drop(t.0.remove(name)));
    assert!(matches!(&error, ModelError::MissingTensor { name: n } if n == name), "{error}");
    let error = with(&lora, &|t| drop(t.0.insert("extra".into(), (vec![1], vec![0.0]))));
    assert!(matches!(error, ModelError::UnexpectedTensor { .. }), "{error}");
    let error = with(&LoraConfig { r: 4, ..lora.clone() }, &|_| {});
    assert!(matches!(error, ModelError::TensorShape { .. }), "{error}");
    let error = with(&lora, &|t| t.0.get_mut(name).unwrap().1[5] = f32::NAN);
    assert!(matches!(error, ModelError::TensorNotFinite { index: 5, .. }), "{error}");
    let error = with(&LoraConfig { r: 0, ..lora.clone() }, &|_| {});
    assert!(matches!(error, ModelError::Format(_)), "{error}");
    // The adapter of another model: more layers than this one has.
    let deeper = DecoderConfig { num_hidden_layers: 4, ..config(Family::Llama) };
    let other = adapted(deeper, lora.clone(), 1);
    let error = decoder.clone().with_adapter(lora, &Tensors::of(other.trained_tensors())).unwrap_err();
    assert!(matches!(error, ModelError::UnexpectedTensor { .. }), "{error}");
}

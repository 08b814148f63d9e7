//! Measurements of real decoders, tiny and random.

use std::sync::Arc;

use stillroom_core::FinishReason;
use stillroom_evaluate::*;
use stillroom_formats::{DecoderConfig, Family, NamedTensor, RopeScaling};
use stillroom_kernels::{Device, HeadTerms};
use stillroom_model::{
    AdamW, Batch, Decoder, GenerationRequest, LiveTeacher, SamplingParams, Targets, TrainState,
};

const VOCAB: usize = 40;

fn config(vocab_size: usize) -> DecoderConfig {
    DecoderConfig {
        family: Family::Llama,
        vocab_size,
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 8,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        max_position_embeddings: 4_096,
        tie_word_embeddings: true,
        qkv_bias: false,
        attention_out_bias: false,
        mlp_bias: false,
        qk_norm: false,
        bos_token_id: None,
        eos_token_ids: vec![],
    }
}

fn decoder(seed: u64) -> Decoder {
    Decoder::random(Arc::new(Device::cpu(1)), config(VOCAB), seed)
}

/// Counting documents: each token is one more than the one before.
struct Document {
    id: String,
    ids: Vec<u32>,
    supervised: Vec<bool>,
}

fn documents(n: usize, len: usize) -> Vec<Document> {
    let one = |d: usize| Document {
        id: format!("d{d}"),
        ids: (0..len).map(|t| ((d * 7 + t) % VOCAB) as u32).collect(),
        supervised: (0..len).map(|t| t >= 3).collect(),
    };
    (0..n).map(one).collect()
}

fn texts(documents: &[Document]) -> Vec<HeldOutText<'_>> {
    let one = |d: &'_ Document| -> (usize, u64) {
        (d.ids.len(), d.supervised.iter().filter(|s| **s).count() as u64)
    };
    documents
        .iter()
        .map(|d| HeldOutText { id: &d.id, ids: &d.ids, supervised: &d.supervised, bytes: 2 * one(d).1 })
        .collect()
}

/// Trains on the documents for a few steps with the crate's own trainer.
fn trained(start: Decoder, documents: &[Document], steps: u32, learning_rate: f32) -> Decoder {
    let mut state = TrainState::new(start);
    let ids: Vec<&[u32]> = documents.iter().map(|d| &d.ids[..]).collect();
    let batch = Batch::from_documents(&ids);
    let mut targets = Targets::default();
    let mut start = 0;
    for document in documents {
        for t in 1..document.ids.len() {
            targets.rows.push(start + t as u32 - 1);
            targets.hard_labels.push(document.ids[t]);
        }
        start += document.ids.len() as u32;
    }
    let terms = HeadTerms { hard_label: 1.0, divergences: &[], scale: 1.0 / targets.rows.len() as f32 };
    let optimiser =
        AdamW { learning_rate, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 };
    for _ in 0..steps {
        state.accumulate(&batch, &targets, &terms);
        state.step(&optimiser);
    }
    state.into_decoder()
}

#[test]
fn losses_are_those_of_the_scored_tokens_however_they_are_batched() {
    let (decoder, documents) = (decoder(1), documents(90, 40));
    let texts = texts(&documents);
    let all = document_losses(&decoder, &texts).unwrap();
    assert!(texts.iter().map(|t| t.ids.len()).sum::<usize>() > 2048, "more than one pass");
    for (text, found) in texts.iter().zip(&all) {
        let logprobs = &decoder.token_logprobs(&[text.ids])[0];
        let expected: f64 = logprobs[2..].iter().map(|&p| -f64::from(p)).sum();
        assert!((found.nats - expected).abs() < 1e-4, "{} {expected}", found.nats);
        assert_eq!((found.tokens, found.bytes, found.id.as_str()), (37, 74, text.id));
        assert_eq!(document_losses(&decoder, &[*text]).unwrap().first(), Some(found));
    }
}

#[test]
fn pieces_of_a_document_are_one_document() {
    let (decoder, documents) = (decoder(1), documents(3, 30));
    let mut pieces = texts(&documents);
    let apart = document_losses(&decoder, &pieces).unwrap();
    pieces[1].id = pieces[0].id;
    let joined = document_losses(&decoder, &pieces).unwrap();
    assert_eq!(joined.len(), 2);
    assert_eq!(joined[0].nats, apart[0].nats + apart[1].nats);
    assert_eq!((joined[0].tokens, joined[1].clone()), (54, apart[2].clone()));
    let divergences = document_divergences(&decoder, &[&self::decoder(2)], &pieces).unwrap();
    assert_eq!((divergences[0].len(), divergences[0][0].tokens), (2, 54));
}

#[test]
fn the_divergence_from_oneself_is_nothing_and_from_another_is_positive() {
    let documents = documents(4, 20);
    let texts = texts(&documents);
    let own = document_divergences(&decoder(1), &[&decoder(1)], &texts).unwrap().remove(0);
    assert!(own.iter().all(|d| d.nats.abs() < 1e-5 && d.tokens == 17), "{own:?}");
    let other = document_divergences(&decoder(1), &[&decoder(2)], &texts).unwrap().remove(0);
    assert!(other.iter().all(|d| d.nats > 1e-3), "{other:?}");
    let both = document_divergences(&decoder(1), &[&decoder(2), &decoder(1)], &texts).unwrap();
    assert_eq!(both, [other, own], "a model has the divergence that it has alone");
    assert!(document_divergences(&decoder(1), &[], &texts).unwrap().is_empty());
}

#[test]
fn what_does_not_fit_the_model_is_an_error() {
    let documents = documents(2, 20);
    let mut wrong = texts(&documents);
    wrong[1].supervised = &wrong[1].supervised[1..];
    assert!(matches!(document_losses(&decoder(1), &wrong), Err(EvaluateError::BadMask { .. })));
    let ids = vec![VOCAB as u32; 20];
    let mut outside = texts(&documents);
    outside[0].ids = &ids;
    assert!(matches!(document_losses(&decoder(1), &outside), Err(EvaluateError::Model(_))));
    assert!(document_divergences(&decoder(1), &[&decoder(2)], &outside).is_err());
    let larger = Decoder::random(Arc::new(Device::cpu(1)), config(VOCAB + 1), 1);
    let found = document_divergences(&larger, &[&decoder(1)], &texts(&documents));
    assert!(matches!(found, Err(EvaluateError::DifferentVocabularies { .. })));
}

fn checks(start: &Decoder, end: &Decoder) -> Checks {
    let held_out = documents(12, 25);
    let texts = texts(&held_out);
    let losses = |decoder| document_losses(decoder, &texts).unwrap();
    let tensors = tensor_changes(start.tensors(), end.tensors(), &|_| true).unwrap();
    Checks::new(tensors, LossDrop::measure(&losses(start), &losses(end)).unwrap())
}

#[test]
fn training_passes_both_checks() {
    let end = trained(decoder(1), &documents(10, 40), 30, 1e-2);
    let checks = checks(&decoder(1), &end);
    assert!(checks.passed(), "{checks:?}");
    assert!(checks.tensors.compared > 10 && checks.tensors.smallest_relative_change.unwrap() > 1e-4);
    assert!(checks.heldout_loss.drop.unwrap().interval.low > 0.1);
}

#[test]
fn a_run_that_trains_nothing_fails_both_checks() {
    let checks = checks(&decoder(1), &decoder(1));
    assert!(!checks.student_tensors_changed && !checks.heldout_loss_fell);
    assert_eq!(checks.tensors.unchanged.len() as u64, checks.tensors.compared);
}

#[test]
fn one_forgotten_tensor_fails_the_tensor_check_only() {
    let (start, end) = (decoder(1), trained(decoder(1), &documents(10, 40), 30, 1e-2));
    let forgotten = "model.layers.1.mlp.down_proj.weight";
    let original = start.tensors().find(|t| t.name == forgotten).unwrap();
    let stuck = || end.tensors().map(|t| if t.name == forgotten { original.clone() } else { t });
    let found = tensor_changes(start.tensors(), stuck(), &|_| true).unwrap();
    assert_eq!((found.all_changed(), found.unchanged), (false, vec![forgotten.to_string()]));
    let frozen = tensor_changes(start.tensors(), stuck(), &|name| name != forgotten).unwrap();
    assert!(frozen.all_changed() && frozen.frozen == 1);
}

#[test]
fn a_run_that_learns_the_wrong_thing_fails_the_loss_check_only() {
    // Learns to count down.
    let backwards: Vec<Document> = documents(10, 40)
        .into_iter()
        .map(|d| Document { ids: d.ids.into_iter().rev().collect(), ..d })
        .collect();
    let end = trained(decoder(1), &backwards, 60, 1e-2);
    let checks = checks(&decoder(1), &end);
    assert!(checks.student_tensors_changed && !checks.heldout_loss_fell, "{checks:?}");
}

#[test]
fn tensors_that_stand_on_one_side_only_are_errors() {
    let all: Vec<NamedTensor> = decoder(1).tensors().collect();
    let fewer = tensor_changes(all.clone().into_iter(), all[1..].iter().cloned(), &|_| true);
    assert!(matches!(fewer, Err(EvaluateError::MissingTensor { .. })));
    let n = all.len();
    let cut = tensor_changes(all[..n - 1].iter().cloned(), all.iter().cloned(), &|_| true);
    assert!(matches!(cut, Err(EvaluateError::MissingTensor { .. })));
}

fn own_text_prompts(n: usize) -> (Vec<(String, GenerationRequest)>, SamplingParams) {
    let request = |i: usize| {
        let prompt_ids: Vec<u32> = (0..3 + i % 2).map(|t| ((7 * i + t) % VOCAB) as u32).collect();
        (format!("p{i}"), GenerationRequest { prompt_ids, key: i as u64, sample: 0 })
    };
    let sampling =
        SamplingParams { max_tokens: 12, temperature: 1.0, top_p: 1.0, seed: 4, stop_token_ids: vec![5, 6] };
    ((0..n).map(request).collect(), sampling)
}

fn own_texts_of(teacher: &Decoder, model: &Decoder, n: usize, n_ids: Option<usize>) -> Vec<OwnText> {
    let (prompts, sampling) = own_text_prompts(n);
    let live = LiveTeacher::alone(teacher, n_ids);
    own_texts(live, model, &prompts, &sampling, 3, &mut |_| {}).unwrap()
}

#[test]
fn from_log_probabilities_of_drawn_tokens_the_same_divergence_is_estimated() {
    let (teacher, model) = (decoder(1), decoder(2));
    let (prompts, sampling) = own_text_prompts(400);
    let live = LiveTeacher::alone(&teacher, None);
    let of = |n_ids| scored_own_texts(&live, &model, &prompts, &sampling, n_ids, 3).unwrap();
    let (sampled, exact) = (of(None), own_texts_of(&teacher, &model, 400, None));
    for ((sampled, exact), (_, request)) in sampled.iter().zip(&exact).zip(&prompts) {
        assert_eq!((&sampled.token_ids, sampled.finish_reason), (&exact.token_ids, exact.finish_reason));
        let ids = [&request.prompt_ids[..], &sampled.token_ids].concat();
        let [q, p] = [&model, &teacher].map(|decoder| decoder.token_logprobs(&[&ids]).remove(0));
        let behind = q.iter().zip(p).skip(request.prompt_ids.len() - 1);
        assert_eq!(behind.len(), sampled.reverse_kl.len());
        assert!(behind.zip(&sampled.reverse_kl).all(|((q, p), nats)| (q - p - nats).abs() < 1e-4));
    }
    let (sampled, exact) = (OwnTextScore::of(&sampled), OwnTextScore::of(&exact));
    assert!(sampled.sampled && !exact.sampled);
    let (estimate, truth) = (sampled.reverse_kl.unwrap(), exact.reverse_kl.unwrap().value);
    let width = estimate.interval.high - estimate.interval.low;
    assert!((estimate.value - truth).abs() < width, "{estimate:?} {truth}");
    assert!(width < truth, "the estimate says something: {estimate:?} {truth}");
    let cut = of(Some(30));
    assert!(cut.iter().all(|text| text.token_ids.iter().all(|&id| id < 30)));
    assert!(cut.iter().all(|text| text.token_ids.len() == text.reverse_kl.len()));
}

#[test]
fn a_model_is_measured_on_what_it_writes_itself_token_by_token() {
    let (teacher, model) = (decoder(1), decoder(2));
    let texts = own_texts_of(&teacher, &model, 200, None);
    assert_eq!(texts[..3], own_texts_of(&teacher, &model, 3, None)[..], "however many there are");
    for (i, text) in texts.iter().enumerate() {
        let whole = text.token_ids.iter().any(|id| [5, 6].contains(id));
        assert_eq!(text.finish_reason == FinishReason::Stop, whole);
        let prompt: Vec<u32> = (0..3 + i % 2).map(|t| ((7 * i + t) % VOCAB) as u32).collect();
        let ids = [&prompt[..], &text.token_ids].concat();
        let wanted: Vec<u32> = (prompt.len() as u32 - 1..ids.len() as u32 - 1).collect();
        // KL(model‖teacher), from a kernel of its own.
        let expected = Decoder::kl_rows(&model, &teacher, &[&ids], &[wanted]).remove(0);
        assert_eq!(text.reverse_kl.len(), expected.len());
        for (found, expected) in text.reverse_kl.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
    }
    let of_itself = own_texts_of(&model, &model, 5, None);
    assert!(of_itself.iter().flat_map(|text| &text.reverse_kl).all(|nats| nats.abs() < 1e-6));
    // Ids that the teacher does not have end a text.
    let cut = own_texts_of(&teacher, &model, 20, Some(30));
    assert!(cut.iter().all(|text| text.token_ids.iter().all(|&id| id < 30)));
    assert!(cut.iter().zip(&texts).all(|(cut, text)| text.token_ids.starts_with(&cut.token_ids)));
}

#[test]
fn quarters_are_those_of_each_text_and_every_token_counts_the_same() {
    let text = |nats: &[f32], finish_reason| OwnText {
        sampled: false,
        id: "x".into(),
        token_ids: vec![0; nats.len()],
        finish_reason,
        reverse_kl: nats.to_vec(),
    };
    let long = text(&[1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0], FinishReason::Length);
    let short = text(&[5.0, 6.0, 7.0], FinishReason::Stop);
    let score = OwnTextScore::of(&[long, short, text(&[], FinishReason::Stop)]);
    assert_eq!((score.texts, score.tokens), (3, 11));
    assert!((score.share_cut - 1.0 / 3.0).abs() < 1e-12);
    let value = |estimate: Option<stillroom_core::statistics::Estimate>| estimate.map(|e| e.value);
    assert!((value(score.reverse_kl).unwrap() - 38.0 / 11.0).abs() < 1e-12);
    // Tokens 0, 1 and 2 of three lie in quarters 0, 1 and 2; the last quarter has one text only, and no interval.
    let quarters = score.reverse_kl_by_quarter.map(value);
    assert_eq!(quarters, [Some(7.0 / 3.0), Some(10.0 / 3.0), Some(13.0 / 3.0), None]);
}

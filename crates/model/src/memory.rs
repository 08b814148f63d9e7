//! Memory that a decoder takes, predicted from its configuration: the buffers of `forward`, `backward`,
//! `score`, `generate` and of the kernels under them, at the moment when most are held.
//!
//! In bytes that are written to. Left out are the program itself, the text, what a file keeps mapped
//! while it is read, and each thread's scratch memory (a few MB at most). Buffers stay with their decoder,
//! so those of several decoders add up; the chunk of logits is the device's, and there once.

use stillroom_formats::{DecoderConfig, Encoding, LoraConfig, LoraTarget};
use stillroom_kernels::{KvCache, PackedWeight, logits_chunk_rows};

use crate::backward::TOKENS_PER_GROUP;
use crate::decoder::{WeightStorage, block_format};
use crate::generate::n_slots;
use crate::layout::{Layout, attention_shape};
use crate::score::TOKENS_PER_CHUNK;

/// Bytes of an f32.
const NUMBER: u64 = 4;

/// The weights of a decoder. `encoding` says how the file stores a tensor, by its name; it is asked only
/// where matrices are held as they are stored.
///
/// # Panics
/// Where [`Decoder::check_config`](crate::Decoder::check_config) gives an error.
pub fn weight_bytes(
    config: &DecoderConfig,
    storage: WeightStorage,
    encoding: &dyn Fn(&str) -> Encoding,
) -> u64 {
    let layout = Layout::new(config).unwrap_or_else(|error| panic!("check_config first: {error}"));
    let of_tensor = |slot: &crate::layout::TensorSlot| {
        let parameter = &layout.parameters[slot.parameter];
        if storage == WeightStorage::F32 || !parameter.is_matrix() {
            return NUMBER * slot.len() as u64;
        }
        let format = block_format(encoding(&slot.name));
        PackedWeight::n_bytes_of(format, slot.len() / parameter.cols, parameter.cols) as u64
    };
    layout.tensors.iter().map(of_tensor).sum()
}

/// Training on `batch` documents of `sequence` tokens each: the weights; gradients and two moments of what is
/// trained, which is all of them or the adapter `lora`; activations of a group of documents, a chunk of logits.
pub fn training_bytes(
    config: &DecoderConfig,
    lora: Option<&LoraConfig>,
    batch: usize,
    sequence: usize,
    gradient_checkpointing: bool,
) -> u64 {
    let n = tokens_together(batch, sequence, TOKENS_PER_GROUP);
    let of_weights = training_numbers_per_token(config, gradient_checkpointing);
    let of_adapter = lora.map_or(0, |lora| adapter_numbers_per_token(config, lora));
    let activations = NUMBER * n as u64 * (of_weights + of_adapter);
    NUMBER * state_numbers(config, lora) + activations + logits_bytes(config, n)
}

/// Weights, and of what is trained gradients and two moments.
fn state_numbers(config: &DecoderConfig, lora: Option<&LoraConfig>) -> u64 {
    let n = config.n_parameters();
    lora.map_or(4 * n, |lora| n + 4 * lora.n_parameters(config))
}

/// What a target of an adapter takes besides while it is computed: x·Aᵀ and its gradient, and the map's input
/// with some of it dropped. Attention's output needs none for that: there is one for its supervised rows.
fn adapter_numbers_per_token(config: &DecoderConfig, lora: &LoraConfig) -> u64 {
    let adapts = |targets: &[LoraTarget]| targets.iter().any(|target| lora.target_modules.contains(target));
    let Widths { d, f, .. } = Widths::of(config);
    let of = |dropped: bool, width: u64| if dropped && lora.dropout > 0.0 { width } else { 0 };
    let from_norms = [LoraTarget::Q, LoraTarget::K, LoraTarget::V, LoraTarget::Gate, LoraTarget::Up];
    2 * lora.r as u64 + of(adapts(&from_norms), d) + of(adapts(&[LoraTarget::Down]), f)
}

/// What a live teacher takes beside its weights while a student trains, or is validated, on `batch` documents of
/// `sequence` tokens: its activations of a group of documents, and its share of the chunk of logits.
pub fn live_teacher_bytes(
    teacher: &DecoderConfig,
    student: &DecoderConfig,
    batch: usize,
    sequence: usize,
) -> u64 {
    live_teachers_bytes(&[teacher], student, batch, sequence)
}

/// [`live_teacher_bytes`] of several that are mixed: activations of each, and logits of the first and of one other.
pub fn live_teachers_bytes(
    teachers: &[&DecoderConfig],
    student: &DecoderConfig,
    batch: usize,
    sequence: usize,
) -> u64 {
    let n = tokens_together(batch, sequence, TOKENS_PER_GROUP);
    let first = teachers.first().map_or(0, |first| first.vocab_size);
    let logits = student.vocab_size + first + widest(teachers.iter().skip(1).copied());
    let of_all = NUMBER * (logits_chunk_rows(logits).min(n) * logits) as u64;
    let activations = NUMBER * n as u64 * teachers.iter().map(|t| passing_numbers_per_token(t)).sum::<u64>();
    activations + of_all.saturating_sub(logits_bytes(student, n))
}

/// Scoring with several teachers that are mixed ([`scoring_bytes`]): activations of each, and logits of the first and
/// of one other.
pub fn mixed_scoring_bytes(teachers: &[&DecoderConfig], documents: usize, sequence: usize) -> u64 {
    let n = tokens_together(documents, sequence, TOKENS_PER_CHUNK);
    let first = teachers.first().map_or(0, |first| first.vocab_size);
    let logits = first + widest(teachers.iter().skip(1).copied());
    let activations = NUMBER * n as u64 * teachers.iter().map(|t| passing_numbers_per_token(t)).sum::<u64>();
    activations + NUMBER * (logits_chunk_rows(logits.max(1)).min(n) * logits) as u64
}

/// The largest vocabulary.
fn widest<'a>(configs: impl Iterator<Item = &'a DecoderConfig>) -> usize {
    configs.map(|config| config.vocab_size).max().unwrap_or(0)
}

/// What comparing `n_pairs` of layers takes besides: what goes into each of a live teacher's layers is held until its
/// outputs are picked, those of the pairs until the student has learned from them; the student's own are picked, with
/// their gradients, one layer at a time.
pub fn hidden_alignment_bytes(teacher: &DecoderConfig, n_pairs: usize, batch: usize, sequence: usize) -> u64 {
    let n = tokens_together(batch, sequence, TOKENS_PER_GROUP) as u64;
    let held = teacher.num_hidden_layers - 1 + n_pairs + 2;
    NUMBER * n * (held * teacher.hidden_size) as u64
}

/// The most activations of each width that are in use together: buffers stay with their width.
fn training_numbers_per_token(config: &DecoderConfig, gradient_checkpointing: bool) -> u64 {
    let Widths { d, qkv, raw, heads, lse, f } = Widths::of(config);
    // `Kept`: x_in and x_mid, qkv, attention with its lse, gate_up.
    let kept = 2 * d + qkv * raw + heads + lse + 2 * f;
    let layers = config.num_hidden_layers as u64;
    let of_layers = if gradient_checkpointing { (layers - 1) * d + kept } else { layers * kept };
    // Of the head or a norm: x, its norm, and their gradients. Of a feed-forward part: hidden, dhidden and
    // dgate_up. Of attention: dqkv, dattention, and the supervised rows of attention and dattention.
    of_layers + 3 * d + 4 * f + qkv + 3 * heads
}

/// Scoring `documents` of `sequence` tokens each, beside the weights: activations of as many documents as
/// pass together, a chunk of logits.
pub fn scoring_bytes(config: &DecoderConfig, documents: usize, sequence: usize) -> u64 {
    let n = tokens_together(documents, sequence, TOKENS_PER_CHUNK);
    NUMBER * n as u64 * passing_numbers_per_token(config) + logits_bytes(config, n)
}

/// Telling what of a model's width matters on `documents` of `sequence` tokens each, beside its weights: activations of
/// as many documents as pass together, every layer's.
pub fn importance_bytes(config: &DecoderConfig, documents: usize, sequence: usize) -> u64 {
    let n = tokens_together(documents, sequence, TOKENS_PER_GROUP);
    let Widths { d, qkv, raw, heads, lse, f } = Widths::of(config);
    let kept = 2 * d + qkv * raw + heads + lse + 2 * f;
    // The last x, a norm of it, and a layer's neurons.
    let beside = 2 * d + f;
    NUMBER * n as u64 * (config.num_hidden_layers as u64 * kept + beside)
}

/// The most activations of each width that are in use together.
fn passing_numbers_per_token(config: &DecoderConfig) -> u64 {
    let Widths { d, qkv, raw, heads, lse, f } = Widths::of(config);
    // `Kept`, the wanted rows of attention, hidden and x_out.
    3 * d + qkv * raw + 2 * heads + lse + 3 * f
}

/// Writing `in_flight` sequences at a time, each from a prompt of `prompt` tokens up to `positions` tokens
/// with it, beside the weights: the products' weights laid out where they are held as f32, keys and
/// values, activations of the prompts that pass together, logits.
///
/// # Panics
/// Where [`Decoder::check_config`](crate::Decoder::check_config) gives an error.
pub fn generation_bytes(
    config: &DecoderConfig,
    storage: WeightStorage,
    in_flight: usize,
    prompt: usize,
    positions: usize,
) -> u64 {
    let positions = positions.min(config.max_position_embeddings);
    let slots = n_slots(config, in_flight, positions);
    let laid_out = match storage {
        WeightStorage::F32 => {
            let panels = weight_bytes(config, WeightStorage::AsStored, &|_| Encoding::F32);
            // A table of embeddings that is not the head is in no product.
            let table = if config.tie_word_embeddings { 0 } else { config.vocab_size * config.hidden_size };
            panels.saturating_sub(NUMBER * table as u64)
        }
        WeightStorage::AsStored => 0,
    };
    let cache = KvCache::n_bytes_of(attention_shape(config), slots, positions) as u64;
    let caches = config.num_hidden_layers as u64 * cache;
    let n = tokens_together(slots, prompt, TOKENS_PER_CHUNK).max(slots);
    laid_out + caches + NUMBER * n as u64 * passing_numbers_per_token(config) + logits_bytes(config, slots)
}

/// Logits of `rows`, of which a chunk is held at a time.
pub fn logits_bytes(config: &DecoderConfig, rows: usize) -> u64 {
    NUMBER * (logits_chunk_rows(config.vocab_size).min(rows) as u64) * config.vocab_size as u64
}

/// Tokens of the documents that pass together.
fn tokens_together(documents: usize, tokens: usize, tokens_max: usize) -> usize {
    tokens * (tokens_max / tokens.max(1)).clamp(1, documents.max(1))
}

/// Numbers per token.
struct Widths {
    /// Hidden size.
    d: u64,
    /// q, k and v heads.
    qkv: u64,
    /// How often they are held: twice where QK-norm keeps what it was given.
    raw: u64,
    /// Attention's output.
    heads: u64,
    /// Its log Σ exp.
    lse: u64,
    /// Feed-forward size.
    f: u64,
}

impl Widths {
    fn of(config: &DecoderConfig) -> Widths {
        let shape = attention_shape(config);
        Widths {
            d: config.hidden_size as u64,
            qkv: shape.qkv_width() as u64,
            raw: if config.qk_norm { 2 } else { 1 },
            heads: (shape.n_q_heads * shape.head_dim) as u64,
            lse: shape.n_q_heads as u64,
            f: config.intermediate_size as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use stillroom_formats::{Family, RopeScaling};
    use stillroom_kernels::{Device, Divergence, HeadTerms, Term};

    use super::*;
    use crate::{
        AdamW, Batch, Decoder, Ensemble, HiddenAlignment, LayerPair, LiveTeacher, Targets, TrainState,
        WeightedTeacher,
    };

    fn config(family: Family) -> DecoderConfig {
        DecoderConfig {
            family,
            vocab_size: 300,
            hidden_size: 64,
            intermediate_size: 160,
            num_hidden_layers: 4,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 16,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            max_position_embeddings: 4096,
            tie_word_embeddings: family == Family::Llama,
            qkv_bias: false,
            attention_out_bias: false,
            mlp_bias: false,
            qk_norm: family == Family::Qwen3,
            bos_token_id: None,
            eos_token_ids: vec![],
        }
    }

    fn batch(documents: usize, sequence: usize) -> Batch {
        let ids: Vec<u32> = (0..sequence as u32).map(|i| i * 31 % 300).collect();
        Batch::from_documents(&vec![&ids[..]; documents])
    }

    /// Buffers have an eighth more room than was asked for, and a few stay that did not fit.
    fn assert_predicts(what: &str, predicted: u64, decoder: &Decoder) {
        let ratio = (NUMBER as usize * decoder.workspace.n_idle()) as f64 / predicted as f64;
        assert!((1.0..1.3).contains(&ratio), "{what}: {ratio} times the prediction is held");
    }

    #[test]
    fn activations_are_those_that_the_workspace_holds() {
        let terms = HeadTerms { hard_label: 1.0, divergences: &[], scale: 1.0 };
        let opt = AdamW {
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.9,
            eps: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
        };
        for family in [Family::Llama, Family::Qwen3] {
            let config = config(family);
            let fresh = Decoder::random(Arc::new(Device::cpu(1)), config.clone(), 1);
            let lora = |r, dropout| {
                let target_modules = LoraTarget::ALL.to_vec();
                Some(LoraConfig { r, alpha: 4.0, dropout, target_modules, use_rslora: false })
            };
            for (documents, sequence) in [(5, 100), (3, 200), (1, 700)] {
                let trained = [None, lora(4, 0.0), lora(40, 0.1)];
                for (lora, checkpointing) in trained.iter().flat_map(|lora| [(lora, false), (lora, true)]) {
                    let decoder = match lora {
                        Some(lora) => fresh.clone().with_new_adapter(lora.clone(), 1).unwrap(),
                        None => fresh.clone(),
                    };
                    let mut state = TrainState::new(decoder).with_gradient_checkpointing(checkpointing);
                    let batch = batch(documents, sequence);
                    let mut rows: Vec<u32> = (0..batch.n_tokens() as u32).collect();
                    rows.retain(|r| !(r + 1).is_multiple_of(sequence as u32));
                    let hard_labels = vec![7; rows.len()];
                    let targets = Targets { hard_labels, rows, ..Targets::default() };
                    for _ in 0..2 {
                        state.accumulate(&batch, &targets, &terms);
                        state.step(&opt);
                    }
                    let n = tokens_together(documents, sequence, TOKENS_PER_GROUP);
                    let of_state = state.decoder().n_parameters() + 3 * state.decoder().n_trained();
                    let of_adapter = lora.as_ref().map_or(0, |lora| lora.n_parameters(&config));
                    let apart = NUMBER * (of_state + of_adapter) + logits_bytes(&config, n);
                    let whole = training_bytes(&config, lora.as_ref(), documents, sequence, checkpointing);
                    let predicted = whole - apart;
                    let what = format!("{family:?}, {documents} × {sequence}, {checkpointing}, {lora:?}");
                    assert_predicts(&what, predicted, state.decoder());
                }
                let decoder = fresh.clone();
                let batch = batch(documents, sequence);
                let (teacher, rows) = (fresh.clone(), 0..batch.n_tokens() as u32);
                let live = Some(LiveTeacher::alone(&teacher, None));
                let targets = Targets { rows: rows.collect(), live, ..Targets::default() };
                let term = Term { divergence: Divergence::Tvd, weight: 1.0, temperature: 1.0 };
                (0..2).for_each(|_| drop(fresh.losses(&batch, &targets, &[term])));
                let n = tokens_together(documents, sequence, TOKENS_PER_GROUP);
                let both = NUMBER * (logits_chunk_rows(600).min(n) * 600) as u64;
                let of_logits = both - logits_bytes(&config, n);
                let predicted = live_teacher_bytes(&config, &config, documents, sequence) - of_logits;
                assert_predicts(
                    &format!("a live teacher, {family:?}, {documents} × {sequence}"),
                    predicted,
                    &teacher,
                );
                let (first, other) = (fresh.clone(), fresh.clone());
                let others = [WeightedTeacher { decoder: &other, weight: 2.0 }];
                let ensemble = Some(Ensemble { weight: 1.0, others: &others });
                let live = Some(LiveTeacher::alone(&first, None).mixed(ensemble));
                let targets = Targets { live, ..targets };
                (0..2).for_each(|_| drop(fresh.losses(&batch, &targets, &[term])));
                let all = NUMBER * (logits_chunk_rows(900).min(n) * 900) as u64;
                let of_logits = all - logits_bytes(&config, n);
                let of_both = live_teachers_bytes(&[&config; 2], &config, documents, sequence) - of_logits;
                for (which, decoder) in [("first", &first), ("other", &other)] {
                    let what = format!("the {which} of two, {family:?}, {documents} × {sequence}");
                    assert_predicts(&what, of_both / 2, decoder);
                }
                let teacher = fresh.clone();
                let live = Some(LiveTeacher::alone(&teacher, None));
                let pairs = [0, 1, 2, 3].map(|layer| LayerPair { teacher: layer, student: layer });
                let hidden = Some(HiddenAlignment { pairs: &pairs, weight: 1.0 });
                let targets = Targets { live, hidden, ..targets };
                (0..2).for_each(|_| drop(fresh.losses(&batch, &targets, &[term])));
                // Two more of its width are the student's.
                let of_student = NUMBER * (2 * n * config.hidden_size) as u64;
                let more = hidden_alignment_bytes(&config, pairs.len(), documents, sequence) - of_student;
                assert_predicts(
                    &format!("its hidden states, {family:?}, {documents} × {sequence}"),
                    predicted + more,
                    &teacher,
                );
                let texts: Vec<&[u32]> =
                    batch.segments.iter().map(|s| &batch.ids[s.start..s.start + s.len]).collect();
                (0..2).for_each(|_| drop(decoder.token_logprobs(&texts)));
                let n = tokens_together(documents, sequence, TOKENS_PER_CHUNK);
                let predicted = scoring_bytes(&config, documents, sequence) - logits_bytes(&config, n);
                assert_predicts(
                    &format!("scoring, {family:?}, {documents} × {sequence}"),
                    predicted,
                    &decoder,
                );
                let decoder = fresh.clone();
                (0..2).for_each(|_| drop(decoder.importance(&texts)));
                assert_predicts(
                    &format!("importance, {family:?}, {documents} × {sequence}"),
                    importance_bytes(&config, documents, sequence),
                    &decoder,
                );
            }
        }
    }

    #[test]
    fn weights_take_the_bytes_of_their_numbers_or_of_their_file() {
        for family in [Family::Llama, Family::Qwen3] {
            let config = config(family);
            let decoder = Decoder::random(Arc::new(Device::cpu(1)), config.clone(), 1);
            let plain = weight_bytes(&config, WeightStorage::F32, &|_| unreachable!("held as f32"));
            assert_eq!(plain, 4 * decoder.n_parameters());
            let halves = weight_bytes(&config, WeightStorage::AsStored, &|_| Encoding::BF16);
            let vectors = layout_vectors(&config);
            // The vocabulary is rounded up to whole tablets of 32 rows.
            let rounded = 20 * 64 * if config.tie_word_embeddings { 1 } else { 2 };
            assert_eq!(halves, 4 * vectors + 2 * (decoder.n_parameters() - vectors + rounded));
            let fallback = weight_bytes(&config, WeightStorage::AsStored, &|_| Encoding::Q6K);
            assert!(fallback >= plain, "formats that the kernels do not keep are f32");
        }
    }

    fn layout_vectors(config: &DecoderConfig) -> u64 {
        let layout = Layout::new(config).unwrap();
        layout.parameters.iter().filter(|p| !p.is_matrix()).map(|p| p.len() as u64).sum()
    }
}

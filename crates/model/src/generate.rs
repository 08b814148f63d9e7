//! Generation with a KV cache, many sequences at once.
//!
//! Sequences live in slots. A finished one's slot goes to the next request at once, whose prompt is
//! prefilled together with those of other newcomers; then every sequence in a slot gets one token.
//! What a sequence becomes depends on its own tokens and on `CounterRng(seed, key, sample, position)`
//! only, so neither `max_in_flight` nor the other requests change it.

use std::collections::VecDeque;
use std::sync::OnceLock;

use stillroom_core::{CounterRng, FinishReason};
use stillroom_formats::DecoderConfig;
use stillroom_kernels::KvCache;

use crate::batch::Batch;
use crate::decoder::Decoder;
use crate::error::ModelError;
use crate::forward::{Attend, Pass};
use crate::sampling::pick;
use crate::score::TOKENS_PER_CHUNK;
use crate::workspace::Lent;

/// Slots that are ever used, whatever the caller asks for.
const IN_FLIGHT_MAX: usize = 4096;
/// Numbers that the caches of all layers may hold together (8 GiB, touched only as sequences grow):
/// more slots than fit are not used.
const CACHE_NUMBERS_MAX: usize = 1 << 31;

/// One sequence to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerationRequest {
    pub prompt_ids: Vec<u32>,
    /// Names the prompt in the random numbers.
    pub key: u64,
    /// Which of the samples for the prompt.
    pub sample: u32,
}

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    pub max_tokens: usize,
    /// 0 takes the most probable token, of equals the lowest id.
    pub temperature: f32,
    /// Only the smallest set of most probable tokens with this much mass is drawn from; 1 for all.
    pub top_p: f32,
    pub seed: u64,
    /// A sequence ends with the first of these that it produces. The model's own end tokens are not
    /// added: see `DecoderConfig::eos_token_ids`.
    pub stop_token_ids: Vec<u32>,
}

/// A finished sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// What followed the prompt, the stop token included if one was produced.
    pub token_ids: Vec<u32>,
    /// log p of each token under the model, at temperature 1 and with nothing cut off.
    pub logprobs: Vec<f32>,
    /// `Length` where `max_tokens` or the end of the context came first.
    pub finish_reason: FinishReason,
}

struct Sequence {
    request: usize,
    slot: u32,
    token_ids: Vec<u32>,
    logprobs: Vec<f32>,
}

impl Sequence {
    /// Tokens of the prompt and those written.
    fn length(&self, requests: &[GenerationRequest]) -> usize {
        requests[self.request].prompt_ids.len() + self.token_ids.len()
    }
}

struct Generator<'a> {
    decoder: &'a Decoder,
    requests: &'a [GenerationRequest],
    sampling: &'a SamplingParams,
    caches: Vec<KvCache>,
    waiting: VecDeque<usize>,
    free: Vec<u32>,
    active: Vec<Sequence>,
    step: Step,
    on_done: &'a mut dyn FnMut(usize, Generation),
}

/// What a step takes, per active sequence; the memory serves every step.
#[derive(Default)]
struct Step {
    ids: Vec<u32>,
    slots: Vec<u32>,
    positions: Vec<u32>,
    picked: Vec<OnceLock<(u32, f32)>>,
}

impl Decoder {
    /// Writes a continuation for each request, at most `max_in_flight` of them at a time, and calls
    /// `on_done(index of the request, result)` when one is finished, in whatever order that happens.
    ///
    /// Memory: 2·L·n_kv·head_dim numbers for each slot and position in use.
    pub fn generate(
        &self,
        requests: &[GenerationRequest],
        sampling: &SamplingParams,
        max_in_flight: usize,
        on_done: &mut dyn FnMut(usize, Generation),
    ) -> Result<(), ModelError> {
        check_sampling(sampling)?;
        requests.iter().enumerate().try_for_each(|(i, request)| self.check_request(i, request))?;
        self.pack();
        let longest = requests.iter().map(|r| r.prompt_ids.len()).max().unwrap_or(0);
        let capacity = longest.saturating_add(sampling.max_tokens).min(self.config.max_position_embeddings);
        let (shape, n_layers) = (self.attention_shape(), self.config.num_hidden_layers);
        let n_slots = n_slots(&self.config, max_in_flight, capacity).min(requests.len());
        let mut generator = Generator {
            decoder: self,
            requests,
            sampling,
            caches: (0..n_layers).map(|_| self.device.kv_cache(shape, n_slots, capacity)).collect(),
            waiting: (0..requests.len()).collect(),
            free: (0..n_slots as u32).rev().collect(),
            active: Vec::new(),
            step: Step::default(),
            on_done,
        };
        while !generator.waiting.is_empty() || !generator.active.is_empty() {
            if !generator.waiting.is_empty() && !generator.free.is_empty() {
                generator.admit()?;
            } else {
                generator.decode()?;
            }
        }
        Ok(())
    }

    fn check_request(&self, request: usize, given: &GenerationRequest) -> Result<(), ModelError> {
        let (n_tokens, n_tokens_max) = (given.prompt_ids.len(), self.config.max_position_embeddings);
        if n_tokens == 0 {
            return Err(ModelError::EmptyPrompt { request });
        }
        if n_tokens > n_tokens_max {
            return Err(ModelError::PromptTooLong { request, n_tokens, n_tokens_max });
        }
        self.check_ids(&given.prompt_ids)
    }
}

impl Generator<'_> {
    /// Prefills the prompts of the next requests into free slots and draws their first tokens.
    fn admit(&mut self) -> Result<(), ModelError> {
        let d = self.decoder;
        let first = self.active.len();
        let (mut batch, mut rows, mut slots) = (Batch::default(), Vec::new(), Vec::new());
        while let Some(&request) = self.waiting.front() {
            let prompt = &self.requests[request].prompt_ids;
            let fits = batch.ids.is_empty() || batch.n_tokens() + prompt.len() <= TOKENS_PER_CHUNK;
            if self.sampling.max_tokens == 0 {
                self.waiting.pop_front();
                let empty =
                    Generation { token_ids: vec![], logprobs: vec![], finish_reason: FinishReason::Length };
                (self.on_done)(request, empty);
                continue;
            }
            let Some(slot) = self.free.pop_if(|_| fits) else {
                break;
            };
            self.waiting.pop_front();
            batch.push(prompt);
            rows.push(batch.n_tokens() as u32 - 1);
            slots.push(slot);
            self.active.push(Sequence { request, slot, token_ids: vec![], logprobs: vec![] });
        }
        if slots.is_empty() {
            return Ok(());
        }
        let positions = batch.positions();
        let mut pass = d.documents(&batch, &positions);
        pass.attend = Attend::Prefill { segments: &batch.segments, slots: &slots, caches: &mut self.caches };
        let x = d.layers_forward(&batch.ids, &mut pass, Some(&rows), None);
        let hidden = d.final_norm(x, rows.len());
        self.advance(first, hidden)
    }

    /// One more token for every active sequence.
    fn decode(&mut self) -> Result<(), ModelError> {
        let d = self.decoder;
        self.active.sort_unstable_by_key(|s| s.slot);
        let Step { mut ids, mut slots, mut positions, picked } = std::mem::take(&mut self.step);
        for sequence in &self.active {
            ids.extend(sequence.token_ids.last());
            slots.push(sequence.slot);
            positions.push(sequence.length(self.requests) as u32 - 1);
        }
        let longest = positions.iter().max().map_or(0, |&p| p as usize + 1);
        let attend = Attend::Decode { slots: &slots, caches: &mut self.caches };
        let mut pass = Pass { positions: &positions, rope: d.rope(longest), attend, dropout: None };
        let x = d.layers_forward(&ids, &mut pass, None, None);
        let hidden = d.final_norm(x, ids.len());
        [&mut ids, &mut slots, &mut positions].into_iter().for_each(Vec::clear);
        self.step = Step { ids, slots, positions, picked };
        self.advance(0, hidden)
    }

    /// Draws the next token of each active sequence from `first` on, from its row of `hidden`.
    fn advance(&mut self, first: usize, hidden: Lent) -> Result<(), ModelError> {
        let (d, sampling) = (self.decoder, self.sampling);
        let mut picked = std::mem::take(&mut self.step.picked);
        picked.resize_with(self.active.len() - first, OnceLock::new);
        let (active, requests) = (&self.active[first..], self.requests);
        let head = d.product(d.layout.head_or_embedding());
        d.device.for_each_logits_row(&hidden, head, picked.len(), &|row, logits| {
            let request = &requests[active[row].request];
            let length = active[row].length(requests) as u64;
            let parts = [sampling.seed, request.key, u64::from(request.sample), length];
            let fresh = picked[row].set(pick(logits, sampling, &mut CounterRng::new(&parts))).is_ok();
            assert!(fresh, "row {row} was visited twice");
        });
        d.workspace.give(hidden);
        let mut at = first;
        for (id, logprob) in picked.iter_mut().filter_map(OnceLock::take) {
            let length = self.active[at].length(self.requests);
            let sequence = &mut self.active[at];
            if logprob.is_nan() {
                return Err(ModelError::NotFinite { request: sequence.request, position: length });
            }
            sequence.token_ids.push(id);
            sequence.logprobs.push(logprob);
            let full = sequence.token_ids.len() == sampling.max_tokens
                || length + 1 >= d.config.max_position_embeddings;
            if sampling.stop_token_ids.contains(&id) {
                self.finish(at, FinishReason::Stop);
            } else if full {
                self.finish(at, FinishReason::Length);
            } else {
                at += 1;
            }
        }
        self.step.picked = picked;
        Ok(())
    }

    fn finish(&mut self, at: usize, finish_reason: FinishReason) {
        let Sequence { request, slot, token_ids, logprobs } = self.active.remove(at);
        self.free.push(slot);
        (self.on_done)(request, Generation { token_ids, logprobs, finish_reason });
    }
}

/// Sequences of up to `capacity` positions that are written at a time where `max_in_flight` were asked for.
pub(crate) fn n_slots(config: &DecoderConfig, max_in_flight: usize, capacity: usize) -> usize {
    let per_position = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim;
    let room = (CACHE_NUMBERS_MAX / (per_position * capacity).max(1)).max(1);
    max_in_flight.clamp(1, IN_FLIGHT_MAX).min(room)
}

fn check_sampling(sampling: &SamplingParams) -> Result<(), ModelError> {
    let refuse = |name, value: f32, rule| Err(ModelError::Sampling { name, value: f64::from(value), rule });
    if !(sampling.temperature >= 0.0 && sampling.temperature.is_finite()) {
        return refuse("temperature", sampling.temperature, "must be 0 or more");
    }
    if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
        return refuse("top_p", sampling.top_p, "must be above 0 and at most 1");
    }
    Ok(())
}

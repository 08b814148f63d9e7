//! Generation with a KV cache, many sequences at once.
//!
//! Sequences live in slots. A finished one's slot goes to the next request at once, whose prompt is
//! prefilled together with those of other newcomers; then every sequence in a slot gets one token.
//! What a sequence becomes depends on its own tokens and on `CounterRng(seed, key, sample, position)`
//! only, so neither `max_in_flight` nor the other requests change it.

use std::sync::{Arc, OnceLock};

use stillroom_core::{CounterRng, FinishReason};
use stillroom_formats::DecoderConfig;
use stillroom_kernels::KvCache;

use crate::batch::Batch;
use crate::decoder::Decoder;
use crate::error::ModelError;
use crate::forward::{Attend, Pass};
use crate::sampling::{likeliest, pick};
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

/// A sequence that is to be written.
#[derive(Clone, Debug)]
pub struct Begin<'a> {
    /// The caller's name for it.
    pub ticket: u64,
    /// One token at least, and no more than the capacity; ids of the vocabulary ([`Decoder::check_ids`]).
    pub prompt_ids: &'a [u32],
    /// Key and sample of the random numbers, as in [`GenerationRequest`].
    pub key: u64,
    pub sample: u32,
    /// Checked ([`SamplingParams::check`]), and for one token at least.
    pub sampling: Arc<SamplingParams>,
    /// How many of the most probable tokens are wanted with each token.
    pub top: usize,
}

/// A token that was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    pub id: u32,
    /// log p under the model, at temperature 1 and with nothing cut off.
    pub logprob: f32,
    /// The most probable tokens and their log p, in falling order, lower ids first among equals; as many as were wanted.
    pub top: Vec<(u32, f32)>,
    /// The whole sequence, where this token is its last.
    pub done: Option<Generation>,
}

struct Sequence {
    ticket: u64,
    slot: u32,
    n_prompt: usize,
    key: u64,
    sample: u32,
    sampling: Arc<SamplingParams>,
    top: usize,
    token_ids: Vec<u32>,
    logprobs: Vec<f32>,
}

impl Sequence {
    /// Tokens of the prompt and those written.
    fn length(&self) -> usize {
        self.n_prompt + self.token_ids.len()
    }

    fn pick(&self, logits: &[f32]) -> Picked {
        let parts = [self.sampling.seed, self.key, u64::from(self.sample), self.length() as u64];
        let (id, logprob) = pick(logits, &self.sampling, &mut CounterRng::new(&parts));
        let top = if self.top == 0 { Vec::new() } else { likeliest(logits, self.top) };
        Picked { id, logprob, top }
    }
}

struct Picked {
    id: u32,
    logprob: f32,
    top: Vec<(u32, f32)>,
}

/// Sequences that are written together. They come and go at any time; what one becomes depends on no other.
pub struct Writing<'d> {
    decoder: &'d Decoder,
    /// Positions of a sequence at most, its prompt's among them.
    capacity: usize,
    caches: Vec<KvCache>,
    free: Vec<u32>,
    active: Vec<Sequence>,
    step: Step,
}

/// What a step takes, per active sequence; the memory serves every step.
#[derive(Default)]
struct Step {
    ids: Vec<u32>,
    slots: Vec<u32>,
    positions: Vec<u32>,
    picked: Vec<OnceLock<Picked>>,
}

/// Told of each token, by its sequence's ticket; an error ends that sequence and no other.
pub type OnToken<'a> = dyn FnMut(u64, Result<Token, ModelError>) + 'a;

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
        sampling.check()?;
        requests.iter().enumerate().try_for_each(|(i, request)| self.check_request(i, request))?;
        if sampling.max_tokens == 0 {
            let empty =
                Generation { token_ids: vec![], logprobs: vec![], finish_reason: FinishReason::Length };
            (0..requests.len()).for_each(|request| on_done(request, empty.clone()));
            return Ok(());
        }
        let longest = requests.iter().map(|r| r.prompt_ids.len()).max().unwrap_or(0);
        let capacity = longest.saturating_add(sampling.max_tokens).min(self.config.max_position_embeddings);
        let mut writing = Writing::new(self, max_in_flight.min(requests.len()), capacity);
        let sampling = Arc::new(sampling.clone());
        let begins = (0..).zip(requests).map(|(ticket, request)| Begin {
            ticket,
            prompt_ids: &request.prompt_ids,
            key: request.key,
            sample: request.sample,
            sampling: Arc::clone(&sampling),
            top: 0,
        });
        let waiting: Vec<Begin<'_>> = begins.collect();
        let (mut next, mut failed) = (0, None);
        let mut on_token = |ticket: u64, token: Result<Token, ModelError>| match token {
            Ok(Token { done: Some(done), .. }) => on_done(ticket as usize, done),
            Ok(_) => {}
            Err(error) => failed = failed.take().or(Some(error)),
        };
        while next < waiting.len() || !writing.is_idle() {
            if next < waiting.len() && writing.n_free() > 0 {
                next += writing.admit(&waiting[next..], &mut on_token);
            } else {
                writing.decode(&mut on_token);
            }
        }
        failed.map_or(Ok(()), Err)
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

impl<'d> Writing<'d> {
    /// Room for `max_in_flight` sequences of up to `capacity` positions, as far as memory is not to be exceeded
    /// ([`Writing::n_free`] says how many there is room for).
    pub fn new(decoder: &'d Decoder, max_in_flight: usize, capacity: usize) -> Writing<'d> {
        decoder.pack();
        let capacity = capacity.min(decoder.config.max_position_embeddings);
        let (shape, n_layers) = (decoder.attention_shape(), decoder.config.num_hidden_layers);
        let n_slots = n_slots(&decoder.config, max_in_flight, capacity);
        Writing {
            decoder,
            capacity,
            caches: (0..n_layers).map(|_| decoder.device.kv_cache(shape, n_slots, capacity)).collect(),
            free: (0..n_slots as u32).rev().collect(),
            active: Vec::new(),
            step: Step::default(),
        }
    }

    /// Sequences that could begin now.
    pub fn n_free(&self) -> usize {
        self.free.len()
    }

    /// Whether nothing is being written.
    pub fn is_idle(&self) -> bool {
        self.active.is_empty()
    }

    /// Gives up the sequences that are not wanted any more.
    pub fn retain(&mut self, mut is_wanted: impl FnMut(u64) -> bool) {
        let free = &mut self.free;
        self.active.retain(|sequence| {
            let wanted = is_wanted(sequence.ticket);
            free.extend((!wanted).then_some(sequence.slot));
            wanted
        });
    }

    /// Reads the prompts of the first of those `waiting`, as many as there is room for in one pass, and writes their first
    /// tokens. How many have begun: one at least, if there is a free place.
    ///
    /// # Panics
    /// Where a prompt or its sampling is not as [`Begin`] says.
    pub fn admit(&mut self, waiting: &[Begin<'_>], on_token: &mut OnToken<'_>) -> usize {
        let d = self.decoder;
        let first = self.active.len();
        let (mut batch, mut rows, mut slots) = (Batch::default(), Vec::new(), Vec::new());
        for begin in waiting {
            let Begin { ticket, prompt_ids, key, sample, ref sampling, top } = *begin;
            assert!(
                (1..=self.capacity).contains(&prompt_ids.len()) && sampling.max_tokens > 0,
                "a prompt that fits, and a token to write"
            );
            let fits = batch.ids.is_empty() || batch.n_tokens() + prompt_ids.len() <= TOKENS_PER_CHUNK;
            let Some(slot) = self.free.pop_if(|_| fits) else {
                break;
            };
            batch.push(prompt_ids);
            rows.push(batch.n_tokens() as u32 - 1);
            slots.push(slot);
            let (n_prompt, sampling) = (prompt_ids.len(), Arc::clone(sampling));
            let (token_ids, logprobs) = (Vec::new(), Vec::new());
            let sequence =
                Sequence { ticket, slot, n_prompt, key, sample, sampling, top, token_ids, logprobs };
            self.active.push(sequence);
        }
        if slots.is_empty() {
            return 0;
        }
        let positions = batch.positions();
        let mut pass = d.documents(&batch, &positions);
        pass.attend = Attend::Prefill { segments: &batch.segments, slots: &slots, caches: &mut self.caches };
        let x = d.layers_forward(&batch.ids, &mut pass, Some(&rows), None);
        let hidden = d.final_norm(x, rows.len());
        self.advance(first, hidden, on_token);
        slots.len()
    }

    /// One more token for every sequence.
    pub fn decode(&mut self, on_token: &mut OnToken<'_>) {
        if self.is_idle() {
            return;
        }
        let d = self.decoder;
        self.active.sort_unstable_by_key(|s| s.slot);
        let Step { mut ids, mut slots, mut positions, picked } = std::mem::take(&mut self.step);
        for sequence in &self.active {
            ids.extend(sequence.token_ids.last());
            slots.push(sequence.slot);
            positions.push(sequence.length() as u32 - 1);
        }
        let longest = positions.iter().max().map_or(0, |&p| p as usize + 1);
        let attend = Attend::Decode { slots: &slots, caches: &mut self.caches };
        let mut pass = Pass { positions: &positions, rope: d.rope(longest), attend, dropout: None };
        let x = d.layers_forward(&ids, &mut pass, None, None);
        let hidden = d.final_norm(x, ids.len());
        [&mut ids, &mut slots, &mut positions].into_iter().for_each(Vec::clear);
        self.step = Step { ids, slots, positions, picked };
        self.advance(0, hidden, on_token);
    }

    /// Draws the next token of each active sequence from `first` on, from its row of `hidden`.
    fn advance(&mut self, first: usize, hidden: Lent, on_token: &mut OnToken<'_>) {
        let d = self.decoder;
        let mut picked = std::mem::take(&mut self.step.picked);
        picked.resize_with(self.active.len() - first, OnceLock::new);
        let active = &self.active[first..];
        let head = d.product(d.layout.head_or_embedding());
        d.device.for_each_logits_row(&hidden, head, picked.len(), &|row, logits| {
            let fresh = picked[row].set(active[row].pick(logits)).is_ok();
            assert!(fresh, "row {row} was visited twice");
        });
        d.workspace.give(hidden);
        let mut at = first;
        for Picked { id, logprob, top } in picked.iter_mut().filter_map(OnceLock::take) {
            let (sequence, capacity) = (&mut self.active[at], self.capacity);
            let (ticket, position) = (sequence.ticket, sequence.length());
            if logprob.is_nan() {
                self.end(at);
                on_token(ticket, Err(ModelError::NotFinite { request: ticket as usize, position }));
                continue;
            }
            sequence.token_ids.push(id);
            sequence.logprobs.push(logprob);
            let full = sequence.token_ids.len() == sequence.sampling.max_tokens || position + 1 >= capacity;
            let finish_reason = match sequence.sampling.stop_token_ids.contains(&id) {
                true => Some(FinishReason::Stop),
                false => full.then_some(FinishReason::Length),
            };
            let done = finish_reason.map(|finish_reason| {
                let Sequence { token_ids, logprobs, .. } = self.end(at);
                Generation { token_ids, logprobs, finish_reason }
            });
            at += usize::from(done.is_none());
            on_token(ticket, Ok(Token { id, logprob, top, done }));
        }
        self.step.picked = picked;
    }

    fn end(&mut self, at: usize) -> Sequence {
        let sequence = self.active.remove(at);
        self.free.push(sequence.slot);
        sequence
    }
}

impl SamplingParams {
    /// That tokens can be chosen so.
    pub fn check(&self) -> Result<(), ModelError> {
        let refuse =
            |name, value: f32, rule| Err(ModelError::Sampling { name, value: f64::from(value), rule });
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return refuse("temperature", self.temperature, "must be 0 or more");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse("top_p", self.top_p, "must be above 0 and at most 1");
        }
        Ok(())
    }
}

/// Sequences of up to `capacity` positions that are written at a time where `max_in_flight` were asked for.
pub(crate) fn n_slots(config: &DecoderConfig, max_in_flight: usize, capacity: usize) -> usize {
    let per_position = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim;
    let room = (CACHE_NUMBERS_MAX / (per_position * capacity).max(1)).max(1);
    max_in_flight.clamp(1, IN_FLIGHT_MAX).min(room)
}

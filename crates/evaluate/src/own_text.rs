//! How far a model is from its teacher on its own text: where exposure bias shows.
//!
//! A student that only ever saw its teacher's text meets its own mistakes for the first time when it writes. How much
//! that costs is seen from the reverse KL of what it writes itself, early and late in a text.

use serde::{Deserialize, Serialize};
use stillroom_core::statistics::{CONFIDENCE_95, ClusterSum, Estimate, clustered_mean};
use stillroom_core::{FinishReason, ScoredText, Scorer};
use stillroom_model::{
    Batch, Decoder, Divergence, Generation, GenerationRequest, LiveTeacher, SamplingParams, Targets, Term,
};

use crate::error::EvaluateError;

/// Tokens whose divergences are computed in one call.
const TOKENS_PER_PASS: usize = 2048;
/// Parts of a text.
const QUARTERS: usize = 4;

/// A text that a model wrote, and how far its teacher is from it at each token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OwnText {
    /// Id of the held-out prompt.
    pub id: String,
    /// What the model wrote, an end token included.
    pub token_ids: Vec<u32>,
    pub finish_reason: FinishReason,
    /// KL(model‖teacher) of the distribution that each token was drawn from, in nats, over the whole vocabulary at
    /// temperature 1; where it is `sampled`, log q − log p of the token, whose mean over all draws that is.
    pub reverse_kl: Vec<f32>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sampled: bool,
}

/// Means over the tokens of a model's own texts. Intervals are 95 %, clustered by text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OwnTextScore {
    pub texts: u64,
    pub tokens: u64,
    /// The share of texts that ended because they might not grow longer.
    pub share_cut: f64,
    /// KL(model‖teacher), nats per token.
    pub reverse_kl: Option<Estimate>,
    /// The same over the tokens of each quarter of a text, first to last: token t of n, from 0, lies in quarter
    /// ⌊4t/n⌋.
    pub reverse_kl_by_quarter: [Option<Estimate>; QUARTERS],
    /// Whether it is estimated from the tokens that were drawn, and not computed over the whole vocabulary.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sampled: bool,
}

/// Lets `model` continue each prompt and measures its exact KL from `teacher` at every token it wrote.
///
/// Neither the number of prompts together nor their order changes a bit.
pub fn own_texts(
    teacher: LiveTeacher<'_>,
    model: &Decoder,
    prompts: &[(String, GenerationRequest)],
    sampling: &SamplingParams,
    max_in_flight: usize,
    on_done: &mut dyn FnMut(usize),
) -> Result<Vec<OwnText>, EvaluateError> {
    let requests: Vec<GenerationRequest> = prompts.iter().map(|(_, request)| request.clone()).collect();
    let mut texts: Vec<OwnText> = Vec::with_capacity(prompts.len());
    let empty = |(id, _): &(String, _)| OwnText {
        id: id.clone(),
        token_ids: Vec::new(),
        finish_reason: FinishReason::Length,
        reverse_kl: Vec::new(),
        sampled: false,
    };
    texts.extend(prompts.iter().map(empty));
    let (n_ids, mut done) = (teacher.n_ids.unwrap_or(usize::MAX), 0);
    model.generate(&requests, sampling, max_in_flight, &mut |i, generation| {
        let Generation { token_ids: mut ids, finish_reason, .. } = generation;
        // A token that the teacher does not have ends a text, before it.
        let known = ids.iter().position(|&id| id as usize >= n_ids).unwrap_or(ids.len());
        ids.truncate(known);
        (texts[i].token_ids, texts[i].finish_reason) = (ids, finish_reason);
        done += 1;
        on_done(done);
    })?;
    let mut from = 0;
    while from < texts.len() {
        let mut n_tokens = 0;
        let fits = |(text, request): &(&OwnText, &GenerationRequest)| {
            n_tokens += request.prompt_ids.len() + text.token_ids.len();
            n_tokens <= TOKENS_PER_PASS
        };
        let count = texts[from..].iter().zip(&requests[from..]).take_while(fits).count().max(1);
        measure(teacher, model, &requests[from..from + count], &mut texts[from..from + count])?;
        from += count;
    }
    Ok(texts)
}

fn measure(
    teacher: LiveTeacher<'_>,
    model: &Decoder,
    requests: &[GenerationRequest],
    texts: &mut [OwnText],
) -> Result<(), EvaluateError> {
    let mut batch = Batch::default();
    let mut targets = Targets { live: Some(teacher), ..Targets::default() };
    for (request, text) in requests.iter().zip(&*texts) {
        let (start, before) = (batch.n_tokens(), request.prompt_ids.len());
        batch.push(&[&request.prompt_ids[..], &text.token_ids].concat());
        targets.rows.extend((0..text.token_ids.len()).map(|t| (start + before + t - 1) as u32));
        targets.hard_labels.extend(&text.token_ids);
    }
    if targets.rows.is_empty() {
        return Ok(());
    }
    let term = Term { divergence: Divergence::ReverseKl, weight: 1.0, temperature: 1.0 };
    let losses = model.losses(&batch, &targets, &[term]);
    let mut rows = losses.divergence(0).iter().copied();
    for text in texts {
        text.reverse_kl = rows.by_ref().take(text.token_ids.len()).collect();
        if text.reverse_kl.iter().any(|nats| !nats.is_finite()) {
            return Err(EvaluateError::NotFinite { what: "reverse KL", id: text.id.clone() });
        }
    }
    Ok(())
}

/// Lets `model` continue each prompt at temperature 1, and estimates its KL from a teacher that says how likely each token
/// is and nothing else: log q − log p of the tokens drawn, whose expectation under q is KL(q‖p). Single numbers may be
/// negative, and their mean has the noise of the draws on top.
///
/// A text ends before the first id that is not below `n_ids`.
pub fn scored_own_texts(
    teacher: &dyn Scorer,
    model: &Decoder,
    prompts: &[(String, GenerationRequest)],
    sampling: &SamplingParams,
    n_ids: Option<usize>,
    max_in_flight: usize,
) -> Result<Vec<OwnText>, EvaluateError> {
    assert!(sampling.temperature == 1.0 && sampling.top_p == 1.0, "an estimate is of what is drawn plainly");
    let requests: Vec<GenerationRequest> = prompts.iter().map(|(_, request)| request.clone()).collect();
    let mut written: Vec<Option<Generation>> = vec![None; prompts.len()];
    model.generate(&requests, sampling, max_in_flight, &mut |i, generation| written[i] = Some(generation))?;
    let mut texts = Vec::with_capacity(prompts.len());
    for ((id, _), generation) in prompts.iter().zip(written) {
        let (mut token_ids, mut drawn, finish_reason) = match generation {
            Some(Generation { token_ids, logprobs, finish_reason }) => (token_ids, logprobs, finish_reason),
            None => (Vec::new(), Vec::new(), FinishReason::Length),
        };
        let known = token_ids.iter().position(|&id| id as usize >= n_ids.unwrap_or(usize::MAX));
        token_ids.truncate(known.unwrap_or(token_ids.len()));
        drawn.truncate(token_ids.len());
        texts.push(OwnText { id: id.clone(), token_ids, finish_reason, reverse_kl: drawn, sampled: true });
    }
    let whole =
        |(text, request): (&OwnText, &GenerationRequest)| [&request.prompt_ids[..], &text.token_ids].concat();
    let ids: Vec<Vec<u32>> = texts.iter().zip(&requests).map(whole).collect();
    let asked: Vec<usize> = (0..texts.len()).filter(|&i| !texts[i].token_ids.is_empty()).collect();
    let scored: Vec<ScoredText<'_>> = asked
        .iter()
        .map(|&i| ScoredText { id: &prompts[i].0, ids: &ids[i], n_prompt: requests[i].prompt_ids.len() })
        .collect();
    for (&i, logprobs) in asked.iter().zip(teacher.score(&scored)?) {
        let text = &mut texts[i];
        text.reverse_kl.iter_mut().zip(logprobs).for_each(|(nats, logprob)| *nats -= logprob);
        if text.reverse_kl.iter().any(|nats| !nats.is_finite()) {
            return Err(EvaluateError::NotFinite { what: "reverse KL", id: text.id.clone() });
        }
    }
    Ok(texts)
}

/// Refuses a teacher whose distributions cannot be compared with the model's.
pub fn check_own_texts(teacher: LiveTeacher<'_>, model: &Decoder) -> Result<(), EvaluateError> {
    let ((teacher_vocab, widest), model_vocab) = (teacher.vocabularies(), model.config().vocab_size);
    let shared = teacher.n_ids.unwrap_or(widest.max(model_vocab));
    if shared > teacher_vocab.min(model_vocab) {
        return Err(EvaluateError::DifferentVocabularies { teacher_vocab, model_vocab });
    }
    Ok(())
}

impl OwnTextScore {
    pub fn of(texts: &[OwnText]) -> OwnTextScore {
        let mean = |wanted: &dyn Fn(usize) -> bool| {
            let clusters: Vec<ClusterSum> = texts.iter().map(|text| sum_of(text, wanted)).collect();
            clustered_mean(&clusters, CONFIDENCE_95)
        };
        let cut = texts.iter().filter(|text| text.finish_reason == FinishReason::Length).count();
        OwnTextScore {
            texts: texts.len() as u64,
            tokens: texts.iter().map(|text| text.token_ids.len() as u64).sum(),
            share_cut: cut as f64 / texts.len().max(1) as f64,
            reverse_kl: mean(&|_| true),
            reverse_kl_by_quarter: [0, 1, 2, 3].map(|quarter| mean(&|of| of == quarter)),
            sampled: texts.iter().any(|text| text.sampled),
        }
    }
}

/// Σ of the reverse KL over the tokens of a text that lie in a wanted quarter.
fn sum_of(text: &OwnText, wanted: &dyn Fn(usize) -> bool) -> ClusterSum {
    let n = text.reverse_kl.len();
    let inside = text.reverse_kl.iter().enumerate().filter(|&(t, _)| wanted(QUARTERS * t / n));
    let sum = |(total, units), (_, &nats): (usize, &f32)| (total + f64::from(nats), units + 1);
    let (total, units) = inside.fold((0.0, 0), sum);
    ClusterSum { total, units }
}

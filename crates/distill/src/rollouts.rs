//! Text that the student writes itself, to learn from while it trains.
//!
//! Everything that is drawn comes from counters: whether a step is on-policy from (seed, step), the order of the
//! prompts from (seed, pass), which rollouts are replayed from (seed, step), and each token from (seed, step,
//! prompt, sample, position). What the buffer holds goes into each checkpoint.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use stillroom_core::{CounterRng, Digest, Digester, FinishReason, ScoredText, Scorer};
use stillroom_model::{Decoder, Generation, GenerationRequest, SamplingParams};

use crate::batches::LossSums;
use crate::losses::Losses;
use crate::{DistillError, Example, Result, TrainConfig, TrainPlan};

/// Rollouts written at once; how many changes no bit.
const IN_FLIGHT: usize = 128;
/// Rollouts of one step accepted at most.
const ROLLOUTS_MAX: usize = 1 << 16;
/// Tokens that a replay buffer may hold: it is written with each checkpoint.
const REPLAY_TOKENS_MAX: usize = 1 << 24;

// What random numbers are for.
const STEP: u64 = 0x706f_6c69_6379;
const ORDER: u64 = 0x7072_6f6d_7074;
const TOKENS: u64 = 0x746f_6b65_6e73;
const REPLAY: u64 = 0x7265_706c_6179;

/// How the student writes for itself. Every optimiser step is on-policy with probability
/// `on_policy_fraction`, independently, as `CounterRng(seed, "policy", step)` has it: all of its texts are then the
/// student's own, and none of those given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnPolicy {
    /// Above 0, at most 1; TRL's `lmbda`. At 1 no text is needed but the prompts.
    pub on_policy_fraction: f64,
    /// Rollouts are cut here, and learned from as far as they go.
    pub max_new_tokens: usize,
    pub rollout_temperature: f64,
    /// Only the smallest set of likeliest tokens with this much mass is drawn from; 1 for all.
    pub rollout_top_p: f64,
    /// Texts of an on-policy step; by default as many of the longest as fill the rows of a step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollouts_per_step: Option<usize>,
    /// Rollouts that are kept to be learned from again; 0 for none.
    pub replay_buffer_size: usize,
    /// The share of an on-policy step's texts that comes from the buffer, as far as it goes.
    pub replay_fraction: f64,
    /// Rollouts written more than this many optimiser steps ago are dropped from the buffer.
    pub replay_max_staleness: u64,
    /// A rollout ends with the first of these.
    pub stop_token_ids: Vec<u32>,
}

impl Default for OnPolicy {
    fn default() -> OnPolicy {
        OnPolicy {
            on_policy_fraction: 1.0,
            max_new_tokens: 128,
            rollout_temperature: 1.0,
            rollout_top_p: 1.0,
            rollouts_per_step: None,
            replay_buffer_size: 0,
            replay_fraction: 0.0,
            replay_max_staleness: 16,
            stop_token_ids: Vec::new(),
        }
    }
}

impl OnPolicy {
    pub(crate) fn validate(&self) -> Result<()> {
        let refuse =
            |key, value: String, rule| -> Result<()> { Err(DistillError::Config { key, value, rule }) };
        let share = f64::MIN_POSITIVE..=1.0;
        if !share.contains(&self.on_policy_fraction) {
            let rule = "expected more than 0, at most 1; without rollouts leave it out";
            return refuse("on_policy_fraction", self.on_policy_fraction.to_string(), rule);
        }
        if self.max_new_tokens == 0 {
            return refuse("max_new_tokens", "0".into(), "expected at least 1");
        }
        if !(f64::from(f32::MIN_POSITIVE)..=100.0).contains(&self.rollout_temperature) {
            let rule = "expected more than 0, at most 100";
            return refuse("rollout_temperature", self.rollout_temperature.to_string(), rule);
        }
        if !share.contains(&self.rollout_top_p) {
            return refuse(
                "rollout_top_p",
                self.rollout_top_p.to_string(),
                "expected more than 0, at most 1",
            );
        }
        if let Some(n) = self.rollouts_per_step.filter(|n| !(1..=ROLLOUTS_MAX).contains(n)) {
            return refuse("rollouts_per_step", n.to_string(), "expected 1 to 65536");
        }
        if self.replay_buffer_size.saturating_mul(self.max_new_tokens) > REPLAY_TOKENS_MAX {
            let rule = "that many rollouts of `max_new_tokens` are more than 16777216 tokens";
            return refuse("replay_buffer_size", self.replay_buffer_size.to_string(), rule);
        }
        if !(0.0..=1.0).contains(&self.replay_fraction) {
            return refuse("replay_fraction", self.replay_fraction.to_string(), "expected 0 to 1");
        }
        if (self.replay_fraction > 0.0) != (self.replay_buffer_size > 0) {
            let rule = "a buffer and a share of rollouts from it belong together: neither or both are 0";
            return refuse("replay_fraction", self.replay_fraction.to_string(), rule);
        }
        Ok(())
    }

    /// Whether rollouts are drawn from the student's distribution as it is.
    pub(crate) fn draws_plainly(&self) -> bool {
        self.rollout_temperature == 1.0 && self.rollout_top_p == 1.0
    }

    /// Whether optimiser step `step`, from 1, learns from the student's own text.
    pub(crate) fn is_on_policy(&self, seed: u64, step: u64) -> bool {
        CounterRng::new(&[seed, STEP, step]).uniform() < self.on_policy_fraction
    }

    /// Whether no step learns from given text.
    pub(crate) fn always(&self) -> bool {
        self.on_policy_fraction >= 1.0
    }

    fn sampling(&self, seed: u64) -> SamplingParams {
        SamplingParams {
            max_tokens: self.max_new_tokens,
            temperature: self.rollout_temperature as f32,
            top_p: self.rollout_top_p as f32,
            seed,
            stop_token_ids: self.stop_token_ids.clone(),
        }
    }
}

/// What the student continues: tokens as the model takes them, templated already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolloutPrompt {
    /// Names the prompt in the random numbers, too.
    pub id: String,
    pub ids: Vec<u32>,
}

impl RolloutPrompt {
    pub(crate) fn digest_into(&self, digester: &mut Digester) {
        let lengths = [self.id.len() as u64, self.ids.len() as u64];
        lengths.iter().for_each(|n| digester.update(&n.to_le_bytes()));
        digester.update(self.id.as_bytes());
        digester.update(&self.ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());
    }

    /// The first eight bytes of the SHA-256 of its id.
    fn key(&self) -> u64 {
        let mut key = [0; 8];
        key.copy_from_slice(&Digest::of(self.id.as_bytes()).as_bytes()[..8]);
        u64::from_le_bytes(key)
    }
}

/// A continuation that the student wrote.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rollout {
    /// Index of its prompt.
    pub(crate) prompt: u32,
    /// The optimiser step that it was written for.
    pub(crate) step: u64,
    /// What follows the prompt, an end token included if one was written.
    pub(crate) ids: Vec<u32>,
    /// Whether it ends because it may not grow longer.
    pub(crate) cut: bool,
    /// log q of each token when it was written, at temperature 1.
    pub(crate) drawn: Vec<f32>,
    /// log p of each token; empty where no loss takes it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) teacher: Vec<f32>,
}

impl Rollout {
    /// Who found its tokens how likely; the tokens themselves are the example's.
    pub(crate) fn digest_into(&self, digester: &mut Digester) {
        for logprob in self.drawn.iter().chain(&self.teacher) {
            digester.update(&logprob.to_le_bytes());
        }
    }

    /// The prompt masked, every token of the rollout supervised.
    fn example(&self, prompts: &[RolloutPrompt]) -> Result<Example> {
        let prompt = &prompts[self.prompt as usize];
        let ids = [&prompt.ids[..], &self.ids].concat();
        let supervised = (0..ids.len()).map(|t| t >= prompt.ids.len()).collect();
        Example::new(format!("{}@{}", prompt.id, self.step), ids, supervised, None)
    }
}

/// Each rollout as an example.
pub(crate) fn examples(rollouts: &[Rollout], prompts: &[RolloutPrompt]) -> Result<Vec<Example>> {
    rollouts.iter().map(|rollout| rollout.example(prompts)).collect()
}

/// What is known of rollouts between two steps: part of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RolloutState {
    /// Rollouts written so far: where the next step goes on among the prompts.
    pub(crate) n_written: u64,
    /// In the order in which they were written.
    pub(crate) buffer: VecDeque<Rollout>,
    /// Since the last logged point.
    pub(crate) window: RolloutSums,
}

impl RolloutState {
    /// Whether there is nothing to remember.
    pub(crate) fn is_empty(&self) -> bool {
        *self == RolloutState::default()
    }
}

/// Counts over the texts of on-policy steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RolloutSums {
    pub(crate) steps: u64,
    written: u64,
    replayed: u64,
    new_tokens: u64,
    cut: u64,
    staleness: u64,
    prompts: BTreeSet<u32>,
    pub(crate) losses: LossSums,
}

impl RolloutSums {
    pub(crate) fn add(&mut self, step: u64, rollouts: &[Rollout]) {
        self.steps += 1;
        for rollout in rollouts {
            let age = step - rollout.step;
            self.written += u64::from(age == 0);
            self.replayed += u64::from(age > 0);
            self.staleness += age;
            self.new_tokens += rollout.ids.len() as u64;
            self.cut += u64::from(rollout.cut);
            self.prompts.insert(rollout.prompt);
        }
    }

    /// None where no step of `n_steps` was on-policy.
    pub(crate) fn point(&self, n_steps: u64, losses: &Losses, seconds: f64) -> Option<RolloutPoint> {
        (self.steps > 0).then(|| RolloutPoint {
            share_of_steps: self.steps as f64 / n_steps.max(1) as f64,
            written: self.written,
            replayed: self.replayed,
            unique_prompts: self.prompts.len() as u64,
            mean_staleness: self.per_text(self.staleness),
            means: self.means(losses),
            seconds,
        })
    }

    pub(crate) fn means(&self, losses: &Losses) -> RolloutMeans {
        RolloutMeans {
            new_tokens: self.per_text(self.new_tokens),
            share_cut: self.per_text(self.cut),
            loss: self.losses.per_token(self.losses.loss),
            hard_label: self.losses.per_token(self.losses.hard_label),
            divergences: losses.means(&LossSums::default(), &self.losses),
        }
    }

    fn per_text(&self, sum: u64) -> f64 {
        sum as f64 / (self.written + self.replayed).max(1) as f64
    }
}

/// What on-policy steps learned from since the last point, and their losses alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutPoint {
    /// The share of the optimiser steps that were on-policy.
    pub share_of_steps: f64,
    /// Texts written for the step that learned from them, and texts from the replay buffer.
    pub written: u64,
    pub replayed: u64,
    pub unique_prompts: u64,
    /// Optimiser steps since the texts were written, mean over them.
    pub mean_staleness: f64,
    pub means: RolloutMeans,
    /// Seconds that writing took, and asking the teacher for log-probabilities.
    pub seconds: f64,
}

/// Means over texts that the student wrote itself, and over their tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutMeans {
    /// Tokens of a text, its prompt aside.
    pub new_tokens: f64,
    /// The share of texts that ended because they might not grow longer.
    pub share_cut: f64,
    /// The weighted sum that is minimised, per token.
    pub loss: f64,
    /// −log q of the student's own tokens: its entropy on its own text, where nothing was cut off in drawing.
    pub hard_label: f64,
    /// Each divergence, unweighted.
    pub divergences: BTreeMap<String, f64>,
}

/// Writes rollouts and draws from the buffer.
pub(crate) struct Rollouts<'a> {
    pub(crate) config: &'a OnPolicy,
    seed: u64,
    pub(crate) prompts: &'a [RolloutPrompt],
    validation: &'a [RolloutPrompt],
    /// Texts of an on-policy step.
    per_step: usize,
    /// Who says log p of each token, where a loss takes it.
    scorer: Option<&'a dyn Scorer>,
    /// Ids behind the last that the teacher has end a rollout, before them.
    n_ids: usize,
    /// The last pass over the prompts that was looked at, and their order in it.
    order: (u64, Vec<u32>),
}

/// What the student continues in training and in validation.
#[derive(Clone, Copy, Debug)]
pub struct RolloutPrompts<'a> {
    pub train: &'a [RolloutPrompt],
    pub validation: &'a [RolloutPrompt],
}

impl<'a> Rollouts<'a> {
    /// Refuses prompts that leave no room for a rollout in a row of `n_tokens_max`, and ids outside the vocabulary.
    /// `n_tokens` is what the rows of a step hold.
    pub(crate) fn new(
        config: &'a OnPolicy,
        seed: u64,
        prompts: RolloutPrompts<'a>,
        vocab_size: usize,
        n_tokens_max: usize,
        n_tokens: usize,
    ) -> Result<Rollouts<'a>> {
        if prompts.train.is_empty() {
            return Err(DistillError::NoExamples { what: "the student has no prompt to continue" });
        }
        let mut longest = 0;
        for prompt in prompts.train.iter().chain(prompts.validation) {
            let n = prompt.ids.len();
            if n == 0 {
                return Err(DistillError::example(&prompt.id, "it is a prompt without tokens"));
            }
            if n + config.max_new_tokens > n_tokens_max {
                return Err(DistillError::PromptTooLong {
                    id: prompt.id.clone(),
                    n_tokens: n,
                    max_new_tokens: config.max_new_tokens,
                    max_length: n_tokens_max,
                });
            }
            if let Some(id) = prompt.ids.iter().find(|&&id| id as usize >= vocab_size) {
                let what = format!("token {id} of the prompt is outside the vocabulary of {vocab_size}");
                return Err(DistillError::example(&prompt.id, what));
            }
            longest = longest.max(n);
        }
        let fill = (n_tokens / (longest + config.max_new_tokens)).clamp(1, ROLLOUTS_MAX);
        Ok(Rollouts {
            config,
            seed,
            prompts: prompts.train,
            validation: prompts.validation,
            per_step: config.rollouts_per_step.unwrap_or(fill),
            scorer: None,
            n_ids: usize::MAX,
            order: (0, Vec::new()),
        })
    }

    /// With the teacher whose log-probabilities go with each rollout.
    pub(crate) fn scored_by(self, scorer: Option<&'a dyn Scorer>) -> Rollouts<'a> {
        Rollouts { scorer, ..self }
    }

    /// For a teacher that has the first `n_ids` ids alone.
    pub(crate) fn of_ids(self, n_ids: Option<usize>) -> Rollouts<'a> {
        Rollouts { n_ids: n_ids.unwrap_or(usize::MAX), ..self }
    }

    /// Steps of one pass over the prompts where every step is on-policy and all text is fresh.
    pub(crate) fn steps_per_pass(&self) -> u64 {
        self.prompts.len().div_ceil(self.per_step) as u64
    }

    /// The plan of a run without given text: only its steps and prompts are known beforehand.
    pub(crate) fn plan(&self, config: &TrainConfig) -> TrainPlan {
        let passes = (config.num_train_epochs * self.steps_per_pass() as f64).ceil() as u64;
        TrainPlan {
            steps: config.max_steps.unwrap_or(passes),
            examples: self.prompts.len() as u64,
            tokens_per_epoch: 0,
            supervised_tokens_per_epoch: 0,
            rows_first_epoch: 0,
            steps_first_epoch: self.steps_per_pass(),
            fill: 0.0,
            truncated: 0,
            dropped: 0,
        }
    }

    /// The texts of on-policy step `step`: first those from the buffer, in the order in which they were written,
    /// then fresh ones, which go into the buffer.
    pub(crate) fn step(
        &mut self,
        step: u64,
        student: &Decoder,
        state: &mut RolloutState,
    ) -> Result<Vec<Rollout>> {
        state.buffer.retain(|rollout| step - rollout.step <= self.config.replay_max_staleness);
        let mut texts = self.replayed(step, &state.buffer);
        let asked: Vec<(u32, u32)> =
            (0..(self.per_step - texts.len()) as u64).map(|i| self.prompt_at(state.n_written + i)).collect();
        let seed = CounterRng::new(&[self.seed, TOKENS, step]).next_u64();
        let fresh = self.write(student, self.prompts, &asked, seed, step)?;
        state.n_written += asked.len() as u64;
        if self.config.replay_buffer_size > 0 {
            state.buffer.extend(fresh.iter().cloned());
            let excess = state.buffer.len().saturating_sub(self.config.replay_buffer_size);
            state.buffer.drain(..excess);
        }
        texts.extend(fresh);
        if texts.is_empty() {
            return Err(DistillError::NoExamples { what: "the student wrote no token that its teacher has" });
        }
        Ok(texts)
    }

    /// One rollout for each validation prompt, drawn with the same numbers whatever the step.
    pub(crate) fn validation(&self, step: u64, student: &Decoder) -> Result<Vec<Rollout>> {
        let asked: Vec<(u32, u32)> = (0..self.validation.len() as u32).map(|prompt| (prompt, 0)).collect();
        let seed = CounterRng::new(&[self.seed, TOKENS]).next_u64();
        self.write(student, self.validation, &asked, seed, step)
    }

    pub(crate) fn validation_prompts(&self) -> &'a [RolloutPrompt] {
        self.validation
    }

    fn replayed(&self, step: u64, buffer: &VecDeque<Rollout>) -> Vec<Rollout> {
        let wanted = (self.config.replay_fraction * self.per_step as f64) as usize;
        let mut picked: Vec<usize> = (0..buffer.len()).collect();
        CounterRng::new(&[self.seed, REPLAY, step]).shuffle(&mut picked);
        picked.truncate(wanted);
        picked.sort_unstable();
        picked.into_iter().map(|i| buffer[i].clone()).collect()
    }

    /// Prompt and sample of the n-th rollout of the run: pass after pass, each in an order of its own.
    fn prompt_at(&mut self, n: u64) -> (u32, u32) {
        let n_prompts = self.prompts.len() as u64;
        let pass = n / n_prompts;
        if self.order.1.is_empty() || self.order.0 != pass {
            let mut order: Vec<u32> = (0..n_prompts as u32).collect();
            CounterRng::new(&[self.seed, ORDER, pass]).shuffle(&mut order);
            self.order = (pass, order);
        }
        (self.order.1[(n % n_prompts) as usize], pass as u32)
    }

    /// Continues each (prompt, sample).
    fn write(
        &self,
        student: &Decoder,
        prompts: &[RolloutPrompt],
        asked: &[(u32, u32)],
        seed: u64,
        step: u64,
    ) -> Result<Vec<Rollout>> {
        let request = |&(prompt, sample): &(u32, u32)| {
            let prompt = &prompts[prompt as usize];
            GenerationRequest { prompt_ids: prompt.ids.clone(), key: prompt.key(), sample }
        };
        let requests: Vec<GenerationRequest> = asked.iter().map(request).collect();
        let mut written: Vec<Option<Rollout>> = vec![None; asked.len()];
        student.generate(&requests, &self.config.sampling(seed), IN_FLIGHT, &mut |i, generation| {
            let Generation { token_ids: mut ids, logprobs: mut drawn, finish_reason } = generation;
            let known = ids.iter().position(|&id| id as usize >= self.n_ids).unwrap_or(ids.len());
            let cut = finish_reason == FinishReason::Length || known < ids.len();
            ids.truncate(known);
            drawn.truncate(known);
            let prompt = asked[i].0;
            written[i] = Some(Rollout { prompt, step, ids, cut, drawn, teacher: Vec::new() });
        })?;
        let mut written: Vec<Rollout> = written.into_iter().flatten().filter(|r| !r.ids.is_empty()).collect();
        if let Some(scorer) = self.scorer {
            score(scorer, prompts, &mut written)?;
        }
        Ok(written)
    }
}

/// Asks the teacher for log p of each token of each rollout, all at once.
fn score(scorer: &dyn Scorer, prompts: &[RolloutPrompt], rollouts: &mut [Rollout]) -> Result<()> {
    let whole = |rollout: &Rollout| [&prompts[rollout.prompt as usize].ids[..], &rollout.ids].concat();
    let texts: Vec<Vec<u32>> = rollouts.iter().map(whole).collect();
    let mut asked = Vec::with_capacity(rollouts.len());
    for (rollout, ids) in rollouts.iter().zip(&texts) {
        let prompt = &prompts[rollout.prompt as usize];
        asked.push(ScoredText { id: &prompt.id, ids, n_prompt: prompt.ids.len() });
    }
    let answered = scorer.score(&asked)?;
    assert_eq!(answered.len(), rollouts.len(), "an answer for each text");
    for (rollout, logprobs) in rollouts.iter_mut().zip(answered) {
        assert_eq!(logprobs.len(), rollout.ids.len(), "a number for each token");
        rollout.teacher = logprobs;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use stillroom_formats::{DecoderConfig, Family, RopeScaling};
    use stillroom_model::{Device, HeadTerms, LiveTeacher, TrainState};

    use super::*;
    use crate::batches::Texts;
    use crate::feed::Documents;
    use crate::{LossFunction, LossTerm, Overlong};

    const VOCAB: usize = 17;

    fn decoder(seed: u64) -> Decoder {
        let config = DecoderConfig {
            family: Family::Llama,
            vocab_size: VOCAB,
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 8,
            rms_norm_eps: 1e-5,
            rope_theta: 1e4,
            rope_scaling: RopeScaling::None,
            max_position_embeddings: 64,
            tie_word_embeddings: true,
            qkv_bias: false,
            attention_out_bias: false,
            mlp_bias: false,
            qk_norm: false,
            bos_token_id: None,
            eos_token_ids: vec![],
        };
        Decoder::random(Arc::new(Device::cpu(2)), config, seed)
    }

    fn prompts(n: u32) -> Vec<RolloutPrompt> {
        (0..n).map(|i| RolloutPrompt { id: format!("p{i}"), ids: vec![i % 7, 3, i % 5] }).collect()
    }

    fn settings() -> OnPolicy {
        let stop_token_ids = vec![4, 9];
        OnPolicy { max_new_tokens: 8, rollouts_per_step: Some(5), stop_token_ids, ..OnPolicy::default() }
    }

    fn write(config: &OnPolicy, n_prompts: u32, steps: std::ops::RangeInclusive<u64>) -> Vec<Vec<Rollout>> {
        let (prompts, student, teacher) = (prompts(n_prompts), decoder(1), decoder(2));
        let live = LiveTeacher::alone(&teacher, None);
        let both = RolloutPrompts { train: &prompts, validation: &[] };
        let rollouts = Rollouts::new(config, 7, both, VOCAB, 64, 64).unwrap();
        let (mut rollouts, mut state) = (rollouts.scored_by(Some(&live)), RolloutState::default());
        steps.map(|step| rollouts.step(step, &student, &mut state).unwrap()).collect()
    }

    #[test]
    fn a_rollout_ends_with_its_end_token_or_where_it_is_cut_and_has_both_models_log_probabilities() {
        let (student, teacher, prompts) = (decoder(1), decoder(2), prompts(12));
        let written = write(&settings(), 12, 1..=6).concat();
        let (cut, whole): (Vec<_>, Vec<_>) = written.iter().partition(|rollout| rollout.cut);
        assert!(cut.len() > 3 && whole.len() > 3, "{} {}", cut.len(), whole.len());
        let ends = |rollout: &Rollout| rollout.ids.iter().position(|id| [4, 9].contains(id));
        assert!(whole.iter().all(|rollout| ends(rollout) == Some(rollout.ids.len() - 1)));
        assert!(cut.iter().all(|rollout| ends(rollout).is_none() && rollout.ids.len() == 8));
        for (rollout, example) in written.iter().zip(examples(&written, &prompts).unwrap()) {
            assert_eq!(example.n_supervised(), rollout.ids.len());
            assert_eq!(example.ids[..3], prompts[rollout.prompt as usize].ids);
            assert_eq!((example.supervised[2], example.supervised[3]), (false, true));
            let scored = |decoder: &Decoder| decoder.token_logprobs(&[&example.ids]).remove(0)[2..].to_vec();
            assert_eq!(rollout.teacher, scored(&teacher));
            for (drawn, full) in rollout.drawn.iter().zip(scored(&student)) {
                assert!((drawn - full).abs() < 1e-5, "{drawn} {full}");
            }
        }
    }

    #[test]
    fn every_pass_sees_every_prompt_and_no_text_repeats_itself() {
        let steps = write(&settings(), 10, 1..=4);
        let of_pass = |pass: usize| {
            let mut seen: Vec<u32> =
                steps[2 * pass..2 * pass + 2].concat().iter().map(|r| r.prompt).collect();
            let order = seen.clone();
            seen.sort_unstable();
            assert_eq!(seen, (0..10).collect::<Vec<u32>>());
            order
        };
        assert_ne!(of_pass(0), of_pass(1));
        let text = |step: &[Rollout]| step.iter().map(|r| (r.prompt, r.ids.clone())).collect::<Vec<_>>();
        let (first, second) = (text(&steps[..2].concat()), text(&steps[2..].concat()));
        assert!(second.iter().filter(|text| first.contains(text)).count() < 5, "other numbers in each pass");
        // More texts in a step than prompts: each prompt's samples differ.
        let twice = write(&OnPolicy { rollouts_per_step: Some(8), ..settings() }, 4, 1..=1).concat();
        let pairs =
            twice[..4].iter().filter(|a| twice[4..].iter().any(|b| a.prompt == b.prompt && a.ids == b.ids));
        assert!(pairs.count() < 4);
    }

    #[test]
    fn ids_that_the_teacher_does_not_have_end_a_rollout_before_them() {
        let (prompts, student, teacher) = (prompts(30), decoder(1), decoder(2));
        let config = OnPolicy { stop_token_ids: vec![], ..settings() };
        let both = RolloutPrompts { train: &prompts, validation: &prompts };
        let live = LiveTeacher::alone(&teacher, None);
        let rollouts = |n_ids| {
            let rollouts = Rollouts::new(&config, 7, both, VOCAB, 64, 64).unwrap();
            rollouts.scored_by(Some(&live)).of_ids(n_ids).validation(0, &student).unwrap()
        };
        let (all, known) = (rollouts(None), rollouts(Some(12)));
        assert!(known.len() < 30 && known.iter().all(|r| r.cut && r.ids.iter().all(|&id| id < 12)));
        let of = |prompt| all.iter().find(|r: &&Rollout| r.prompt == prompt).unwrap();
        assert!(known.iter().all(|r| of(r.prompt).ids.starts_with(&r.ids) && r.teacher.len() == r.ids.len()));
    }

    /// Gradients and mean loss of rollouts learned from together.
    fn learned(own: &[Rollout]) -> (Vec<f32>, f64) {
        let (prompts, teacher) = (prompts(4), decoder(2));
        let live = Some(LiveTeacher::alone(&teacher, None));
        let losses = [LossFunction::SampledReverseKl, LossFunction::ReverseKl].map(LossTerm::new).to_vec();
        let config = TrainConfig { losses, on_policy: Some(settings()), ..TrainConfig::default() };
        let examples = examples(own, &prompts).unwrap();
        let documents = Documents::fit(&examples, 64, Overlong::Refuse).unwrap().all;
        let texts = Texts::written(&documents, own, &config);
        let weights = config.computed_losses().at_the_end(texts.kind());
        let (mut state, (_, n)) = (TrainState::new(decoder(1)), texts.n_tokens());
        let terms = HeadTerms { hard_label: 0.0, divergences: &weights.terms, scale: 1.0 / n as f32 };
        let sums = texts.each_batch(&config, live, &weights, |batch, targets, pairs, sums| {
            sums.add_batch(state.accumulate(batch, targets, &terms), targets, pairs, &weights);
        });
        (state.gradients().flat_map(|tensor| tensor.data).collect(), sums.per_token(sums.loss))
    }

    #[test]
    fn every_token_counts_the_same_however_long_its_text_is() {
        let written = write(&OnPolicy { rollouts_per_step: Some(40), ..settings() }, 4, 1..=1).concat();
        let length = |rollout: &&Rollout| rollout.ids.len();
        let (short, long) =
            (written.iter().min_by_key(length).unwrap(), written.iter().max_by_key(length).unwrap());
        let (n, m) = (short.ids.len() as f64, long.ids.len() as f64);
        assert!(2.0 * n < m, "{n} {m}");
        let (a, loss_a) = learned(std::slice::from_ref(short));
        let (b, loss_b) = learned(std::slice::from_ref(long));
        let (both, loss) = learned(&[short.clone(), long.clone()]);
        assert!((loss - (n * loss_a + m * loss_b) / (n + m)).abs() < 1e-6);
        assert!((loss - (loss_a + loss_b) / 2.0).abs() > 1e-3, "a mean of the texts' means is another");
        for ((&a, &b), &both) in a.iter().zip(&b).zip(&both) {
            let expected = (n * f64::from(a) + m * f64::from(b)) / (n + m);
            assert!((f64::from(both) - expected).abs() < 1e-6);
        }
    }
}

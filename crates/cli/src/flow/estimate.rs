//! What a run takes, before it is started: counts from the recipe, rates from a short measurement of this
//! machine, each figure with what it assumes.

use std::path::Path;

use serde::Serialize;
use stillroom_corpus::Split;
use stillroom_corpus::prompts::Item;
use stillroom_corpus::sources::Origin;
use stillroom_corpus::word_problems;
use stillroom_formats::{DecoderConfig, ModelFiles, Tokenizer};
use stillroom_kernels::Device;

use super::data::each_row;
use super::memory::Stages;
use super::wire_estimate::OverWire;
use crate::failure::Result;
use crate::recipe::{Control, Logits, Lora, PromptSource, Recipe, Source, Student, WeightType};

/// Share of the machine's FMA peak that each kind of work is taken to reach.
const TRAIN_SHARE: f64 = 0.70;
const SCORE_SHARE: f64 = 0.75;
const DECODE_SHARE: f64 = 0.50;
/// Items that are looked at for mean lengths.
const ITEMS: usize = 64;
/// Distinct ids of a position's random samples, and bytes that each takes.
const UNIQUE_SHARE: f64 = 0.25;
pub(super) const BYTES_PER_ID: f64 = 4.0;
/// Bytes of a token, where no tokenizer is at hand.
const BYTES_PER_TOKEN: usize = 4;
/// Watts of one busy thread, where nothing measures them.
const WATTS_PER_THREAD: f64 = 10.0;

/// `plan.json`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Estimate {
    pub(crate) recipe: String,
    pub(crate) teacher_parameters: Option<u64>,
    /// Of the teachers that it is mixed with.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) further_teachers_parameters: Vec<u64>,
    /// None where nobody is taught.
    pub(crate) student_parameters: Option<u64>,
    pub(crate) stages: Vec<StageEstimate>,
    pub(crate) wall_s: f64,
    pub(crate) peak_memory_bytes: u64,
    pub(crate) disk_bytes: u64,
    pub(crate) money_usd: f64,
    pub(crate) energy_joules: f64,
    /// Requests after which a student is cheaper than its teacher; none where the teacher costs nothing.
    pub(crate) break_even_requests: Option<u64>,
    pub(crate) assumes: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct StageEstimate {
    pub(crate) stage: &'static str,
    pub(crate) tokens: f64,
    pub(crate) wall_s: f64,
    pub(crate) peak_memory_bytes: u64,
}

/// The sizes that an estimate rests on.
pub(super) struct Sizes {
    pub(super) train_items: f64,
    pub(super) validation_items: f64,
    pub(super) held_out_items: f64,
    pub(super) prompt_tokens: f64,
    /// Of those that were looked at.
    pub(super) longest_prompt: usize,
    pub(super) reply_tokens: f64,
}

pub(crate) fn estimate(recipe: &Recipe, source: &Source, device: &Device) -> Result<Estimate> {
    if recipe.student.is_nobody() {
        return teaching_alone(recipe, source, device);
    }
    let threads = device.n_threads();
    let teacher = local_teacher(recipe, source)?;
    let further = super::teachers::further_files(recipe, source)?;
    let (student, tokenizer) = super::start::student_shape(recipe, source)?;
    let sizes = sizes(recipe, source, Some(&tokenizer))?;
    let peak = device.fma_peak();
    let teacher_config = teacher.as_ref().map(|files| &files.config);
    let base = match &recipe.student {
        Student::Pretrained { .. } | Student::Pruned(_) => Some(super::start::base_files(recipe, source)?),
        _ => None,
    };
    let memory = Stages::of(recipe, &sizes, teacher.as_ref(), &further, &student, base.as_ref())?;
    let base = base.as_ref().map(|files| &files.config);
    let teachers: Vec<&DecoderConfig> =
        teacher_config.into_iter().chain(further.iter().map(|files| &files.config)).collect();
    let mut stages = stages(recipe, &sizes, (&teachers, base), &student, peak, &memory);
    let over_wire = OverWire::of(recipe, &sizes);
    stages.splice(0..0, over_wire.iter().flat_map(OverWire::stages));
    let wall_s = stages.iter().map(|stage| stage.wall_s).sum::<f64>();
    Ok(Estimate {
        recipe: recipe.name.clone(),
        teacher_parameters: teacher_config.map(DecoderConfig::n_parameters),
        further_teachers_parameters: further.iter().map(|files| files.config.n_parameters()).collect(),
        student_parameters: Some(student.n_parameters()),
        peak_memory_bytes: stages.iter().map(|stage| stage.peak_memory_bytes).max().unwrap_or(0),
        disk_bytes: disk(recipe, &sizes, &student),
        money_usd: over_wire.as_ref().map_or(0.0, OverWire::usd),
        energy_joules: wall_s * WATTS_PER_THREAD * threads as f64,
        break_even_requests: over_wire.as_ref().and_then(OverWire::break_even_requests),
        assumes: assumptions(recipe, &sizes, peak, threads),
        wall_s,
        stages,
    })
}

/// The teacher's files, if it is on this machine.
fn local_teacher(recipe: &Recipe, source: &Source) -> Result<Option<ModelFiles>> {
    let local = recipe.teacher.as_ref().filter(|teacher| teacher.wire.is_none());
    local.map(|_| super::teacher_files(recipe, source)).transpose()
}

/// Of a recipe that trains nobody: its teacher's text.
fn teaching_alone(recipe: &Recipe, source: &Source, device: &Device) -> Result<Estimate> {
    let teacher = local_teacher(recipe, source)?;
    let tokenizer = teacher.as_ref().and_then(|files| files.tokenizer.as_ref());
    let sizes = sizes(recipe, source, tokenizer)?;
    let (peak, threads) = (device.fma_peak(), device.n_threads());
    let over_wire = OverWire::of(recipe, &sizes);
    let mut stages: Vec<StageEstimate> = over_wire.iter().flat_map(OverWire::stages).collect();
    if let Some(files) = &teacher {
        let tokens = (sizes.prompt_tokens + sizes.reply_tokens) * asked(recipe, &sizes);
        let wall_s = tokens * 2.0 * files.config.n_parameters() as f64 / (peak * DECODE_SHARE);
        let peak_memory_bytes = 4 * files.config.n_parameters();
        stages.push(StageEstimate { stage: "teach", tokens, wall_s, peak_memory_bytes });
    }
    let wall_s = stages.iter().map(|stage| stage.wall_s).sum::<f64>();
    Ok(Estimate {
        recipe: recipe.name.clone(),
        teacher_parameters: teacher.as_ref().map(|files| files.config.n_parameters()),
        further_teachers_parameters: Vec::new(),
        student_parameters: None,
        peak_memory_bytes: stages.iter().map(|stage| stage.peak_memory_bytes).max().unwrap_or(0),
        disk_bytes: over_wire.as_ref().map_or(0, OverWire::disk_bytes),
        money_usd: over_wire.as_ref().map_or(0.0, OverWire::usd),
        energy_joules: wall_s * WATTS_PER_THREAD * threads as f64,
        break_even_requests: None,
        assumes: assumptions(recipe, &sizes, peak, threads),
        wall_s,
        stages,
    })
}

/// Replies that the teacher is asked for before training.
pub(super) fn asked(recipe: &Recipe, sizes: &Sizes) -> f64 {
    let samples = recipe.teacher.as_ref().map_or(1.0, |teacher| f64::from(teacher.samples_per_prompt));
    samples * (sizes.train_items + sizes.validation_items)
}

fn sizes(recipe: &Recipe, source: &Source, tokenizer: Option<&Tokenizer>) -> Result<Sizes> {
    let n_tokens = |text: &str| -> Result<usize> {
        Ok(match tokenizer {
            Some(tokenizer) => tokenizer.encode_plain(text)?.len(),
            None => text.len().div_ceil(BYTES_PER_TOKEN),
        })
    };
    // Where nobody is trained every row is asked.
    let [validation, held_out] = match recipe.student.is_nobody() {
        true => [0, 0],
        false => [recipe.prompts.num_validation, recipe.evaluate.num_examples],
    };
    match &recipe.prompts.source {
        PromptSource::Task { .. } => {
            let problems = word_problems::problems(recipe.prompts.seed, Split::Train, ITEMS);
            let (mut prompts, mut replies) = (Vec::new(), Vec::new());
            for problem in &problems {
                let messages = problem.prompt().messages;
                let Some(tokenizer) = tokenizer else {
                    prompts.push(n_tokens(&messages.iter().map(|m| m.content.as_str()).collect::<String>())?);
                    replies.push(n_tokens(&problem.worked().content)?);
                    continue;
                };
                let whole = tokenizer.encode_supervised(&messages, &problem.worked())?;
                let supervised = whole.supervised.iter().filter(|&&s| s).count();
                prompts.push(whole.ids.len() - supervised);
                replies.push(supervised);
            }
            Ok(Sizes {
                train_items: recipe.prompts.num_examples.unwrap_or(0) as f64,
                validation_items: validation as f64,
                held_out_items: held_out as f64,
                longest_prompt: prompts.iter().copied().max().unwrap_or(0),
                prompt_tokens: mean(&prompts),
                reply_tokens: mean(&replies),
            })
        }
        PromptSource::Chat { path } | PromptSource::Text { path } => {
            let text = matches!(recipe.prompts.source, PromptSource::Text { .. });
            let (n, lengths) = rows_of_data(recipe, &source.resolve_path(path), &n_tokens)?;
            let [in_train, in_validation, in_held_out] = n;
            let tokens = recipe.teacher.as_ref().map_or(0, |teacher| teacher.max_tokens) as f64 / 2.0;
            Ok(Sizes {
                train_items: recipe.prompts.num_examples.map_or(in_train, |wanted| wanted.min(in_train))
                    as f64,
                validation_items: validation.min(in_validation) as f64,
                held_out_items: held_out.min(in_held_out) as f64,
                longest_prompt: lengths.iter().copied().max().filter(|_| !text).unwrap_or(0),
                prompt_tokens: if text { 0.0 } else { mean(&lengths) },
                reply_tokens: if text { mean(&lengths) } else { tokens },
            })
        }
    }
}

fn mean(lengths: &[usize]) -> f64 {
    lengths.iter().sum::<usize>() as f64 / lengths.len().max(1) as f64
}

/// How many rows each part of the data has, and the tokens of the first training rows: of their prompts, or of all that is
/// learned as it stands.
fn rows_of_data(
    recipe: &Recipe,
    root: &Path,
    n_tokens: &dyn Fn(&str) -> Result<usize>,
) -> Result<([usize; 3], Vec<usize>)> {
    let text = matches!(recipe.prompts.source, PromptSource::Text { .. });
    let length = |item: &Item| -> Result<usize> {
        match item {
            Item::Text { text, .. } => n_tokens(text),
            Item::Prompt(prompt) => {
                let turns = prompt.messages.iter().chain(prompt.target.iter().filter(|_| text));
                turns.map(|turn| n_tokens(&turn.content)).sum()
            }
        }
    };
    let rules = &recipe.curate.sources;
    let mut allowed = |_: &Item, origin: &Origin, file: &str| rules.refuse(origin, file).is_none();
    let (mut n, mut lengths) = ([0; 3], Vec::new());
    each_row(recipe, root, &mut allowed, |split, item| {
        n[split as usize] += 1;
        if split == Split::Train && lengths.len() < ITEMS {
            lengths.push(length(&item)?);
        }
        Ok(())
    })?;
    Ok((n, lengths))
}

fn stages(
    recipe: &Recipe,
    sizes: &Sizes,
    (teachers, base): (&[&DecoderConfig], Option<&DecoderConfig>),
    student: &DecoderConfig,
    peak: f64,
    memory: &Stages<'_>,
) -> Vec<StageEstimate> {
    let forward = |config: &DecoderConfig| 2.0 * config.n_parameters() as f64;
    // What all teachers read, and what each writes its share of.
    let read = teachers.iter().map(|config| forward(config)).sum::<f64>();
    let shares = recipe.teacher.as_ref().map(|teacher| teacher.shares()).unwrap_or_default();
    let write = teachers.iter().zip(shares).map(|(config, share)| share * forward(config)).sum::<f64>();
    let teacher = teachers.first().copied();
    let seconds = |flops: f64, share: f64| flops / (peak * share);
    let of =
        |stage, tokens, wall_s, peak_memory_bytes| StageEstimate { stage, tokens, wall_s, peak_memory_bytes };
    let whole = sizes.prompt_tokens + sizes.reply_tokens;
    let learned = (sizes.train_items + sizes.validation_items) * whole;
    let text = matches!(recipe.prompts.source, PromptSource::Text { .. });
    let mut stages = Vec::new();
    if let (Some(teacher), Some(first)) = (&recipe.teacher, teacher) {
        let samples = f64::from(teacher.samples_per_prompt);
        let traces_only = recipe.evaluate.controls.contains(&Control::TracesOnly);
        if !text && (traces_only || !recipe.train.only_own_text()) {
            let wall_s = seconds(samples * learned * write, DECODE_SHARE);
            stages.push(of("teach", samples * learned, wall_s, memory.teach()));
        }
        if recipe.cached_targets().is_some() {
            let wall_s = seconds(samples * learned * read, SCORE_SHARE);
            stages.push(of("logits", samples * learned, wall_s, memory.logits()));
        }
        if recipe.train.needs_likelihoods() {
            let wall_s = seconds(samples * learned * forward(first), SCORE_SHARE);
            stages.push(of("logprobs", samples * learned, wall_s, memory.logits()));
        }
    }
    if let (Student::Pruned(pruned), Some(base)) = (&recipe.student, base) {
        let read = whole * sizes.train_items.min(pruned.calibration_examples as f64);
        stages.push(of("prune", read, seconds(read * forward(base), SCORE_SHARE), memory.pruning()));
    }
    let given = training_tokens(recipe, sizes);
    let own = own_text(recipe, sizes, given);
    let train = given * (1.0 - own.share) + own.learned;
    // Frozen weights need no gradient of their own.
    let passes = if recipe.train.lora.is_some() { 2.0 } else { 3.0 };
    let wall_s = seconds(passes * train * forward(student), TRAIN_SHARE);
    // Live teachers read all that the student reads, each time.
    let live = recipe.targets().is_some_and(Logits::is_live);
    let reading = if live { seconds(train * read, SCORE_SHARE) } else { 0.0 };
    let writing = seconds(own.written * forward(student), DECODE_SHARE);
    stages.push(of("train", train, wall_s + reading + writing, memory.training(true)));
    let wall_s = seconds(passes * given * forward(student), TRAIN_SHARE);
    for control in &recipe.evaluate.controls {
        let (stage, more) = match control {
            Control::TracesOnly => ("control-traces_only", 1.0),
            // The same epochs on answers alone, and then the same tokens.
            Control::Undistilled => ("control-undistilled", 1.0 + sizes.prompt_tokens / whole.max(1.0)),
        };
        stages.push(of(stage, more * given, more * wall_s, memory.training(false)));
    }
    let held_out = sizes.held_out_items * whole;
    let n_students = 2.0 + recipe.evaluate.controls.len() as f64;
    // Its own loss, and once for the divergences of all the others.
    let of_teacher = teacher.map_or(0.0, |config| held_out * (forward(config) + read));
    let of_students = held_out * forward(student) * n_students * 2.0;
    let replies =
        if text { 0.0 } else { held_out * (forward(student) * n_students + teacher.map_or(0.0, forward)) };
    let wall_s = seconds(of_teacher + of_students, SCORE_SHARE) + seconds(replies, DECODE_SHARE);
    stages.push(of("evaluate", held_out, wall_s, memory.evaluation()));
    stages
}

/// Tokens that the student is trained on.
fn training_tokens(recipe: &Recipe, sizes: &Sizes) -> f64 {
    let train = &recipe.train;
    let per_step = train.per_device_train_batch_size * train.gradient_accumulation_steps * train.max_length;
    let samples = recipe.teacher.as_ref().map_or(1.0, |teacher| f64::from(teacher.samples_per_prompt));
    let epoch = samples * sizes.train_items * (sizes.prompt_tokens + sizes.reply_tokens);
    match train.max_steps {
        Some(steps) => steps as f64 * (per_step as f64).min(epoch),
        None => train.num_train_epochs * epoch,
    }
}

/// Texts of the student's own that a teacher behind endpoints reads, in training and where they are measured, and their
/// tokens with the prompts.
pub(super) fn scored(recipe: &Recipe, sizes: &Sizes) -> (f64, f64) {
    let own = own_text(recipe, sizes, training_tokens(recipe, sizes));
    let rollouts = recipe.train.rollouts.as_ref();
    let new_tokens = rollouts.map_or(recipe.evaluate.max_tokens, |rollouts| rollouts.max_new_tokens);
    let whole = (sizes.prompt_tokens + sizes.reply_tokens.min(new_tokens as f64)).max(1.0);
    let of_control = |control: &Control| if *control == Control::Undistilled { 2.0 } else { 1.0 };
    let writers = 2.0 + recipe.evaluate.controls.iter().map(of_control).sum::<f64>();
    let measured = writers * sizes.held_out_items.min(recipe.evaluate.own_text_examples as f64);
    let tokens = own.written + measured * whole;
    (tokens / whole, tokens)
}

/// What the student writes while it trains.
#[derive(Default)]
struct OwnText {
    /// Of the optimiser steps.
    share: f64,
    /// Tokens, prompts included, that it learns from and that it writes.
    learned: f64,
    written: f64,
}

/// Texts are taken to be as long as the teacher's. `given` are the tokens of a run without rollouts.
fn own_text(recipe: &Recipe, sizes: &Sizes, given: f64) -> OwnText {
    let train = &recipe.train;
    let Some(rollouts) = &train.rollouts else { return OwnText::default() };
    let per_step = train.per_device_train_batch_size * train.gradient_accumulation_steps * train.max_length;
    let texts = rollouts.per_step(per_step, sizes.longest_prompt) as f64;
    let steps = match train.max_steps {
        Some(steps) => steps as f64,
        None if rollouts.always() => train.num_train_epochs * sizes.train_items / texts,
        None => given / per_step as f64,
    };
    let share = rollouts.on_policy_fraction;
    let whole = sizes.prompt_tokens + sizes.reply_tokens.min(rollouts.max_new_tokens as f64);
    let learned = share * steps * texts * whole;
    let validations = 1.0 + steps / train.eval_steps as f64;
    let written = learned * (1.0 - rollouts.replay_fraction) + validations * sizes.validation_items * whole;
    OwnText { share, learned, written }
}

fn disk(recipe: &Recipe, sizes: &Sizes, student: &DecoderConfig) -> u64 {
    let weights = 4 * student.n_parameters();
    let n_models = 1 + 2 * recipe.evaluate.controls.len() as u64 + u64::from(recipe.student.is_pruned());
    let lora = recipe.train.lora.as_ref().map(Lora::config);
    let trained = lora.map_or(weights, |lora| 4 * lora.n_parameters(student));
    let checkpoints = 3 * trained * (recipe.train.save_total_limit as u64 + 1);
    let of = |store: WeightType| match store {
        WeightType::F32 => weights,
        WeightType::F16 | WeightType::Bf16 => weights / 2,
        WeightType::Q8_0 => weights * 34 / 128,
    };
    let positions = (sizes.train_items + sizes.validation_items) * sizes.reply_tokens;
    let ids = recipe.cached_targets().map_or(0.0, ids_per_position);
    let cache = positions * ids * BYTES_PER_ID;
    n_models * weights + checkpoints + of(recipe.release.dtype) + of(recipe.release.gguf) + cache as u64
}

/// Ids that are stored of a distribution.
pub(super) fn ids_per_position(logits: Logits) -> f64 {
    match logits {
        Logits::RandomSampling { draws, .. } => f64::from(draws) * UNIQUE_SHARE,
        Logits::TopK { k, .. } => f64::from(k),
        Logits::Live { .. } => 0.0,
    }
}

fn assumptions(recipe: &Recipe, sizes: &Sizes, peak: f64, threads: usize) -> Vec<String> {
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    let mut assumes = vec![
        format!(
            "{threads} threads with an FMA peak of {:.0} GFLOP/s, measured now; training reaches {} of it, scoring {}, \
             writing {} as models of 17 to 135 million parameters do; smaller ones reach less",
            peak / 1e9,
            percent(TRAIN_SHARE),
            percent(SCORE_SHARE),
            percent(DECODE_SHARE)
        ),
        format!(
            "{:.0} prompt tokens and {:.0} reply tokens per example, the mean of the first {ITEMS}",
            sizes.prompt_tokens, sizes.reply_tokens
        ),
        format!("energy at {WATTS_PER_THREAD:.0} W per thread; nothing is measured beforehand"),
        "memory of the largest stage: what its models, activations, keys and values, logits and texts take at once"
            .to_owned(),
    ];
    if matches!(recipe.prompts.source, PromptSource::Chat { .. }) {
        assumes.push("replies of half of `teacher.max_tokens`".to_owned());
    }
    if recipe.train.rollouts.is_some() {
        assumes.push("texts of the student's own as long as the teacher's replies".to_owned());
    }
    if let Some(over_wire) = OverWire::of(recipe, sizes) {
        assumes.extend(over_wire.assumptions());
    } else if recipe.teacher.is_some() {
        assumes
            .push("the teacher runs on this machine and costs nothing, so there is no break-even".to_owned());
    }
    assumes
}

//! Stages `train` and `control-…`: the student, and the students that are denied part of the supervision.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stillroom_core::{Prompt, Scorer, Tail, Trace};
use stillroom_corpus::Split;
use stillroom_distill::{
    DistillError, Example, LossFunction, LossTerm, LossWeight, Material, Overlong, RolloutPrompt,
    RolloutPrompts, SchedulerType, TrainConfig, TrainEvent, TrainOutcome, TrainPoint, ValidationPoint,
    examples, matched_ids, preference_losses, remove_checkpoints, train_with_rollouts,
};
use stillroom_evaluate::{Contender, LossDrop};
use stillroom_formats::{
    Encoding, LoraConfig, LoraTarget, PeftAdapter, Tokenizer, write_hf_dir, write_peft_dir,
};
use stillroom_model::Decoder;
use stillroom_net::hub::RepositoryId;
use stillroom_store::create_dir_durable;

use crate::failure::{Failure, Result};
use crate::flow::across::{cut_between_characters, examples_of, has_two_tokens};
use crate::flow::start::{shared_ids, student_shape};
use crate::flow::steps::{self, Step, StepLog, Steps};
use crate::flow::{Flow, curate, data, feedback, hidden, logits, logprobs, scoring, unwritable};
use crate::models::Model;
use crate::recipe::{Control, Logits, Schedule, Student};

/// Folder of a model that was trained by an adapter: the adapter alone, as PEFT reads it.
pub(crate) const ADAPTER: &str = "adapter";

/// An example, and what it is made of: sample `sample` for a prompt, or piece `sample` of a text.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) id: String,
    pub(crate) sample: u32,
    pub(crate) example: Example,
}

/// What became of a training run, beside its weights.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Training {
    pub(crate) steps: u64,
    pub(crate) tokens: u64,
    pub(crate) supervised_tokens: u64,
    pub(crate) supervised_tokens_per_epoch: u64,
    pub(crate) examples: u64,
    pub(crate) truncated: u64,
    pub(crate) wall_s: f64,
    pub(crate) best_step: Option<u64>,
    pub(crate) loss: String,
    pub(crate) curve: Vec<TrainPoint>,
    pub(crate) validation: Vec<ValidationPoint>,
}

/// What a training run learns from.
#[derive(Clone, Copy)]
pub(super) struct Supervision<'a> {
    /// At hand while the student trains.
    pub(super) teacher: Option<&'a Decoder>,
    pub(super) material: Material<'a>,
}

/// Where the weights of a model of this run lie.
pub(crate) fn weights_of(contender: Contender) -> String {
    format!("models/{}", contender.key())
}

pub(crate) fn training_of(contender: Contender) -> String {
    format!("training/{}.json", contender.key())
}

/// Whether the log has each step: of what is released.
fn is_logged(contender: Contender) -> bool {
    contender == Contender::Student
}

/// Name of the stage that trains a model.
pub(crate) fn stage_of(contender: Contender) -> String {
    match contender {
        Contender::Student => "train".to_owned(),
        control => format!("control-{}", control.key()),
    }
}

impl Flow {
    /// The models that are trained, the student first.
    pub(crate) fn trained(&self) -> Vec<Contender> {
        let controls = &self.recipe.evaluate.controls;
        let mut trained = vec![Contender::Student];
        if controls.contains(&Control::TracesOnly) {
            trained.push(Contender::TracesOnly);
        }
        if controls.contains(&Control::Undistilled) {
            trained.extend([Contender::Undistilled, Contender::UndistilledEqualTokens]);
        }
        trained
    }

    pub(crate) fn train_controls(&mut self) -> Result<()> {
        let controls = self.trained().into_iter().filter(|&contender| contender != Contender::Student);
        controls.collect::<Vec<_>>().into_iter().try_for_each(|control| self.train_one(control))
    }

    /// How a model is trained, and whether its teacher reads along.
    pub(super) fn training_of_model(&self, contender: Contender) -> Result<(TrainConfig, bool)> {
        let mut config = self.train_config(contender);
        if contender == Contender::Student {
            config.hidden_alignment = hidden::aligned_layers(&self.recipe, &self.source)?;
        }
        let live = config.needs_teacher() && self.recipe.targets().is_some_and(Logits::is_live);
        if live || config.learns_own_tokens() && self.is_scored() {
            config.n_ids = shared_ids(&self.recipe, &self.source)?;
        }
        if let Some(on_policy) = &mut config.on_policy {
            on_policy.stop_token_ids = student_shape(&self.recipe, &self.source)?.0.eos_token_ids;
        }
        Ok((config, live))
    }

    pub(crate) fn train_one(&mut self, contender: Contender) -> Result<()> {
        let (config, live) = self.training_of_model(contender)?;
        let scored = config.learns_own_tokens() && self.is_scored();
        let teacher = match (live, scored) {
            (true, _) => Some(self.teachers_digest()?),
            (false, true) => Some(self.scoring_identity()?),
            (false, false) => None,
        };
        // A run goes on with or without it: the bits are the same.
        let of_result = TrainConfig { gradient_checkpointing: false, ..config.clone() };
        let (student, seed) = (&self.recipe.student, self.recipe.train.seed);
        let mut settings = vec![json!(2), json!(student), self.start_digest()?, json!(seed)];
        settings.extend([json!(of_result), json!(teacher)]);
        settings.extend(self.recipe.train.lora.as_ref().map(|lora| json!(lora)));
        let stage = stage_of(contender);
        let mut after = vec![data::STAGE];
        if self.asks_for_traces() {
            after.push(curate::STAGE);
        }
        if config.needs_distributions() && !live {
            after.push(logits::STAGE);
        }
        if config.needs_chunks() {
            after.push(logprobs::STAGE);
        }
        if config.needs_pairs() {
            after.push(feedback::STAGE);
        }
        after.extend(self.start_stage());
        if contender == Contender::UndistilledEqualTokens {
            after.push("train");
        }
        let outputs = [weights_of(contender), training_of(contender), steps::path_of(contender)];
        let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
        self.stage(&stage, &settings, &after, &outputs, |flow| {
            if !live {
                flow.forget_teacher();
            }
            flow.train_and_save(contender, config, live)
        })
    }

    fn train_and_save(&mut self, contender: Contender, mut config: TrainConfig, live: bool) -> Result<()> {
        self.bound_steps(contender, &mut config)?;
        let folder = self.checkpoints_of(contender)?;
        let (outcome, wall) = self.supervise(contender, &config, live, |flow, start, supervision| {
            let began = Instant::now();
            let outcome = match flow.train_once(contender, start, supervision, &config, &folder)? {
                Err(DistillError::ForeignCheckpoint { .. }) => {
                    flow.event(json!({ "event": "checkpoints_discarded", "model": contender.key() }))?;
                    remove_checkpoints(&folder)?;
                    let again = flow.start()?.decoder;
                    flow.train_once(contender, again, supervision, &config, &folder)?
                }
                other => other,
            };
            Ok(outcome.map(|outcome| (outcome, began.elapsed())))
        })?;
        self.tidy_steps(contender)?;
        let loss = self.method_in_words(&config, &outcome.decoder);
        let training = training(&outcome, wall.as_secs_f64(), loss);
        let tokenizer = self.student_tokenizer()?;
        let mut decoder = outcome.decoder;
        let dir = self.run.path(&weights_of(contender))?;
        stillroom_store::atomic_dir(&dir, |dir| {
            self.write_adapter(&dir.join(ADAPTER), &decoder, Encoding::F32)?;
            decoder.merge();
            let mut tensors = decoder.tensors();
            write_hf_dir(dir, decoder.config(), &mut tensors, Encoding::F32, Some(&tokenizer))
                .map_err(Failure::from)
        })?;
        self.write_json(&training_of(contender), &training)?;
        if contender != Contender::Student {
            remove_checkpoints(&folder)?;
        }
        Ok(())
    }

    /// Leaves of the record what a run without kills would have.
    fn tidy_steps(&self, contender: Contender) -> Result<()> {
        let path = steps::path_of(contender);
        let lines = Steps::read(&self.run.path(&path)?)?.to_lines();
        self.run.write(&path, &lines.map_err(|e| unwritable(&path, &e))?)?;
        Ok(())
    }

    /// A control that is to see as many tokens as the student takes as many steps.
    pub(super) fn bound_steps(&self, contender: Contender, config: &mut TrainConfig) -> Result<()> {
        if contender == Contender::UndistilledEqualTokens {
            let student: Training = self.read_json(&training_of(Contender::Student))?;
            config.max_steps = Some(student.steps);
        }
        Ok(())
    }

    /// Where the checkpoints of a model lie; those of a control are gone when it is trained.
    pub(super) fn checkpoints_of(&self, contender: Contender) -> Result<PathBuf> {
        match contender {
            Contender::Student => Ok(self.run.checkpoints()),
            control => Ok(self.run.dir("controls")?.join(control.key()).join("checkpoints")),
        }
    }

    /// Calls `work` with where a model starts and with all that it learns from.
    pub(super) fn supervise<T>(
        &mut self,
        contender: Contender,
        config: &TrainConfig,
        live: bool,
        work: impl FnOnce(&mut Flow, Decoder, Supervision<'_>) -> Result<std::result::Result<T, DistillError>>,
    ) -> Result<T> {
        let start = self.start()?;
        let tokenizer = &start.tokenizer;
        let prompts = match &config.on_policy {
            Some(_) => [Split::Train, Split::Validation].map(|split| self.rollout_prompts(split, tokenizer)),
            None => [Ok(Vec::new()), Ok(Vec::new())],
        };
        let [train_prompts, validation_prompts] = prompts;
        let (train_prompts, validation_prompts) = (train_prompts?, validation_prompts?);
        let given = |split| match contender == Contender::Student && self.recipe.train.only_own_text() {
            true => Ok(Vec::new()),
            false if config.needs_pairs() => self.preferences(split, &start),
            false => self.examples(contender, split, tokenizer, config, live),
        };
        let (train, validation) = (given(Split::Train)?, given(Split::Validation)?);
        let teachers = if live { Some(self.teachers()?) } else { None };
        let others = teachers.as_ref().map(|teachers| teachers.others()).unwrap_or_default();
        let teacher = teachers.as_ref().map(|teachers| &teachers.first.decoder);
        let ensemble = teachers.as_ref().and_then(|teachers| teachers.ensemble(&others));
        let prompts = RolloutPrompts { train: &train_prompts, validation: &validation_prompts };
        let prompts = config.on_policy.is_some().then_some(prompts);
        let matched = match config.needs_foreign_readings() {
            true => Some(matched_ids(tokenizer, &self.teacher_tokenizer()?)),
            false => None,
        };
        let scorer = match config.learns_own_tokens() && !live {
            true => Some(self.scorer(scoring::TRAINING, &[Split::Train, Split::Validation])?),
            false => None,
        };
        let (examples, validation, matched) = (&train[..], &validation[..], matched.as_ref());
        let scored_by = scorer.as_ref().map(|scorer| scorer as &dyn Scorer);
        let material = Material { examples, validation, prompts, matched, ensemble, scorer: scored_by };
        let worked = work(self, start.decoder, Supervision { teacher, material })?;
        if let Some(scorer) = &scorer {
            self.tell_left_out(scorer)?;
        }
        worked.map_err(|error| match scorer.as_ref().and_then(|scorer| self.why_silent(scorer)) {
            Some(failure) => failure,
            None => Failure::from(error),
        })
    }

    /// What a model was trained on and how, for the report.
    fn method_in_words(&self, config: &TrainConfig, trained: &Decoder) -> String {
        let mut loss = method(&config.losses, self.recipe.targets());
        if self.has_several_teachers() && config.needs_teacher() {
            loss.push_str(&format!("; the teacher is a mixture: {}", self.teachers_in_words()));
        }
        if config.learns_own_tokens() && self.is_scored() {
            loss.push_str(
                "; from log-probabilities of the student's own tokens that the teacher's endpoint gives",
            );
        }
        loss.push_str(&hidden::in_words(config.hidden_alignment.as_ref()));
        if let (Some(rollouts), Some(_)) = (&self.recipe.train.rollouts, &config.on_policy) {
            loss.push_str(&format!("; {}", rollouts.in_words()));
        }
        loss.push_str(&adapted(trained));
        loss
    }

    fn train_once(
        &mut self,
        contender: Contender,
        start: Decoder,
        supervision: Supervision<'_>,
        config: &TrainConfig,
        folder: &std::path::Path,
    ) -> Result<std::result::Result<TrainOutcome, DistillError>> {
        let (mut n_steps, mut unlogged) = (0, None);
        let Supervision { teacher, material } = supervision;
        let path = self.run.path(&steps::path_of(contender))?;
        create_dir_durable(path.parent().unwrap_or(self.run.root()))?;
        let mut record = StepLog::open(&path)?;
        let outcome = train_with_rollouts(start, teacher, material, config, folder, &mut |event| {
            record.note(&event);
            if is_logged(contender) {
                let logged = Step::of(&event).map_or(Ok(()), |step| self.log_step(&step));
                unlogged = unlogged.take().or(logged.err());
            }
            match &event {
                // Of ten thousands of steps, `events.jsonl` has the points of the curve.
                TrainEvent::Batch { .. } | TrainEvent::Saving { .. } => return,
                TrainEvent::Planned(plan) => n_steps = plan.steps,
                TrainEvent::Step(point) => self.progress.update(&format!(
                    "{}: step {} of {n_steps}, loss {:.4}, {:.0} tokens/s",
                    contender.label(),
                    point.step,
                    point.loss,
                    point.tokens_per_second
                )),
                _ => {}
            }
            let mut value = serde_json::to_value(&event).unwrap_or(Value::Null);
            if let Value::Object(fields) = &mut value {
                fields.insert("model".to_owned(), json!(contender.key()));
                // A full disk shows at the next checkpoint, with its own message.
                drop(self.event(value));
            }
        });
        record.close()?;
        unlogged.map_or(Ok(outcome), Err)
    }

    /// What a model learns from, in order; with what the teacher stored of it where a loss needs that.
    fn examples(
        &self,
        contender: Contender,
        split: Split,
        tokenizer: &Tokenizer,
        config: &TrainConfig,
        live: bool,
    ) -> Result<Vec<Example>> {
        let undistilled = matches!(contender, Contender::Undistilled | Contender::UndistilledEqualTokens);
        if !self.learns_text() && (undistilled || self.recipe.teacher.is_none()) {
            let mut prompts = self.prompts_of(split)?;
            if undistilled && self.asks_for_traces() {
                self.only_same_problems(&mut prompts, split)?;
            }
            return Ok(examples::from_targets(&prompts, tokenizer)?);
        }
        let pieces = self.teacher_pieces(split, tokenizer)?;
        let mut examples = match config.needs_foreign_readings() || config.needs_chunks() {
            true => self.attach_both_readings(split, pieces, tokenizer, config)?,
            false => examples_of(pieces),
        };
        if config.needs_distributions() && !live {
            self.attach_logits(&mut examples, config)?;
        }
        Ok(examples)
    }

    /// How much less the student loses on the validation pairs than its start, where a preference is learned.
    pub(crate) fn preference_drop(&mut self) -> Result<LossDrop> {
        let start = self.start()?;
        let pairs = self.preferences(Split::Validation, &start)?;
        let student = self.model_of(Contender::Student)?;
        let beta = self.recipe.train.loss_functions.iter().find_map(|term| match term.function {
            LossFunction::Dpo { beta } => Some(beta),
            _ => None,
        });
        let losses = preference_losses(&pairs, &student.decoder, beta.unwrap_or_default());
        let losses: Vec<_> = pairs.iter().map(|pair| pair.id.clone()).zip(losses).collect();
        Ok(LossDrop::of_pairs(&losses)?)
    }

    /// Pairs to learn a preference from, which the student's start, as the reference, has read.
    fn preferences(&self, split: Split, start: &Model) -> Result<Vec<Example>> {
        let mut pairs = self.pairs_of(split)?;
        let contaminated = self.contaminated_prompts()?;
        pairs.retain(|pair| !contaminated.contains(&pair.id));
        let parts = pairs
            .iter()
            .map(|pair| (pair.id.as_str(), &pair.prompt[..], [&pair.chosen[0], &pair.rejected[0]]));
        let mut examples = examples::from_pairs(parts, &start.tokenizer)?;
        examples::score_by_reference(&mut examples, &start.decoder)?;
        Ok(examples)
    }

    /// What the student continues in training.
    fn rollout_prompts(&self, split: Split, tokenizer: &Tokenizer) -> Result<Vec<RolloutPrompt>> {
        let mut continued = self.continued(split, tokenizer)?;
        let contaminated = self.contaminated_prompts()?;
        continued.retain(|(id, _)| !contaminated.contains(id));
        Ok(continued.into_iter().map(|(id, ids)| RolloutPrompt { id, ids }).collect())
    }

    /// The teacher's text, or the texts that are learned as they stand.
    pub(crate) fn teacher_pieces(&self, split: Split, tokenizer: &Tokenizer) -> Result<Vec<Piece>> {
        if self.learns_text() {
            return self.text_pieces(split, tokenizer);
        }
        trace_pieces(&self.curated(split)?, tokenizer)
    }

    /// Texts in pieces of at most `train.max_length` tokens.
    pub(crate) fn text_pieces(&self, split: Split, tokenizer: &Tokenizer) -> Result<Vec<Piece>> {
        let texts = self.texts_of(split)?;
        let pairs = texts.iter().map(|document| (document.id.as_str(), document.text.as_str()));
        let most = self.recipe.train.max_length;
        let other = match self.recipe.train.reads_in_own_tokens() {
            true => Some(self.teacher_tokenizer()?),
            false => None,
        };
        let mut pieces = Vec::new();
        for whole in examples::from_texts(pairs, tokenizer)? {
            let (mut rest, mut sample) = (&whole.ids[..], 0);
            while !rest.is_empty() {
                let end = if rest.len() > most {
                    cut_between_characters(rest, most, tokenizer)
                } else {
                    rest.len()
                };
                let (ids, behind) = rest.split_at(end);
                // One token alone predicts nothing.
                let teaches =
                    ids.len() > 1 && other.as_ref().is_none_or(|other| has_two_tokens(ids, tokenizer, other));
                if teaches {
                    let example =
                        Example::from_text_ids(examples::example_id(&whole.id, sample), ids.to_vec())?;
                    pieces.push(Piece { id: whole.id.clone(), sample, example });
                }
                (rest, sample) = (behind, sample + 1);
            }
        }
        Ok(pieces)
    }

    /// A control sees the problems that the student sees, no more and no fewer.
    fn only_same_problems(&self, prompts: &mut Vec<Prompt>, split: Split) -> Result<()> {
        let kept: HashSet<String> = self.curated(split)?.into_iter().map(|trace| trace.id).collect();
        prompts.retain(|prompt| kept.contains(&prompt.id));
        Ok(())
    }

    pub(crate) fn train_config(&self, contender: Contender) -> TrainConfig {
        let train = &self.recipe.train;
        let losses = match contender {
            Contender::Student => train.loss_functions.clone(),
            _ => vec![LossTerm::new(LossFunction::HardLabels)],
        };
        TrainConfig {
            learning_rate: train.learning_rate,
            lr_scheduler_type: match train.lr_scheduler_type {
                Schedule::Constant => SchedulerType::Constant,
                Schedule::Linear => SchedulerType::Linear,
                Schedule::Cosine => SchedulerType::Cosine,
            },
            warmup_ratio: train.warmup_ratio,
            min_lr_ratio: train.min_lr_ratio,
            num_train_epochs: train.num_train_epochs,
            max_steps: train.max_steps,
            per_device_train_batch_size: train.per_device_train_batch_size,
            gradient_accumulation_steps: train.gradient_accumulation_steps,
            max_length: train.max_length,
            gradient_checkpointing: train.gradient_checkpointing,
            packing: true,
            overlong: Overlong::Refuse,
            weight_decay: train.weight_decay,
            adam_beta1: train.adam_beta1,
            adam_beta2: train.adam_beta2,
            adam_epsilon: train.adam_epsilon,
            max_grad_norm: train.max_grad_norm,
            seed: train.seed,
            losses,
            tail: match self.recipe.targets() {
                Some(Logits::TopK { tail, .. }) => tail,
                _ => Tail::None,
            },
            n_ids: None,
            save_steps: train.save_steps,
            eval_steps: train.eval_steps,
            logging_steps: train.logging_steps,
            save_total_limit: train.save_total_limit,
            on_policy: match contender {
                // Its end tokens are known when it is opened.
                Contender::Student => train.rollouts.as_ref().map(|rollouts| rollouts.config(Vec::new())),
                _ => None,
            },
            // Which layers there are is known when both models are opened.
            hidden_alignment: None,
        }
    }

    /// Writes the adapter of a decoder as PEFT reads it, if it has one.
    pub(crate) fn write_adapter(
        &self,
        dir: &std::path::Path,
        decoder: &Decoder,
        store: Encoding,
    ) -> Result<()> {
        let Some(config) = decoder.adapter_config() else { return Ok(()) };
        let (base, mut tensors) = (self.base_name(), decoder.trained_tensors());
        Ok(write_peft_dir(dir, config, base.as_deref(), decoder.config(), &mut tensors, store)?)
    }

    /// The adapter that the student was trained by.
    pub(crate) fn trained_adapter(&self) -> Result<PeftAdapter> {
        Ok(PeftAdapter::open(&self.run.path(&weights_of(Contender::Student))?.join(ADAPTER))?)
    }

    /// What PEFT loads an adapter's base by: its name on the hub, else its path.
    fn base_name(&self) -> Option<String> {
        let Student::Pretrained { model, path, .. } = &self.recipe.student else { return None };
        let on_hub = model.as_ref().filter(|&model| model != path && RepositoryId::parse(model).is_ok());
        Some(on_hub.cloned().unwrap_or_else(|| self.source.resolve_path(path).display().to_string()))
    }
}

pub(crate) fn trace_pieces(traces: &[Trace], tokenizer: &Tokenizer) -> Result<Vec<Piece>> {
    let made = examples::from_traces(traces, tokenizer)?;
    let piece =
        |(trace, example): (&Trace, Example)| Piece { id: trace.id.clone(), sample: trace.sample, example };
    Ok(traces.iter().zip(made).map(piece).collect())
}

/// A loss in words: `0.5 jsd (teacher weight 0.3, temperature 2)`.
fn in_words(term: &LossTerm) -> String {
    let weight = match term.weight {
        LossWeight::Constant(1.0) => String::new(),
        LossWeight::Constant(weight) => format!("{weight} "),
        LossWeight::Linear { from, to } => format!("({from} → {to}) "),
    };
    let parameter = match term.function {
        LossFunction::Jsd { jsd_teacher_weight } => Some(format!("teacher weight {jsd_teacher_weight}")),
        LossFunction::SkewKl { alpha } | LossFunction::SkewReverseKl { alpha } => {
            Some(format!("alpha {alpha}"))
        }
        LossFunction::Dpo { beta } | LossFunction::Gold { beta } => Some(format!("beta {beta}")),
        _ => None,
    };
    let temperature = (term.temperature != 1.0).then(|| format!("temperature {}", term.temperature));
    let notes: Vec<String> = parameter.into_iter().chain(temperature).collect();
    let notes = if notes.is_empty() { String::new() } else { format!(" ({})", notes.join(", ")) };
    format!("{weight}{}{notes}", term.function.name())
}

/// What a model was trained on, for the report.
fn method(losses: &[LossTerm], targets: Option<Logits>) -> String {
    let computed: Vec<&LossTerm> = losses.iter().filter(|term| !term.weight.is_zero()).collect();
    let terms: Vec<String> = computed.iter().map(|term| in_words(term)).collect();
    let of = match targets.filter(|_| computed.iter().any(|term| term.function.divergence().is_some())) {
        Some(Logits::TopK { k, tail, .. }) => {
            let tail = format!("{tail:?}").to_lowercase();
            format!("; approximate: from the teacher's {k} likeliest tokens, the rest as `{tail}`")
        }
        Some(Logits::Live { .. }) if computed.iter().any(|term| term.function.of_two_vocabularies()) => {
            "; from the whole distributions of a live teacher over its own vocabulary, where both begin a token".to_owned()
        }
        Some(Logits::Live { .. }) => "; from the whole distributions of a live teacher".to_owned(),
        Some(Logits::RandomSampling { .. }) | None => String::new(),
    };
    let alm = computed.iter().any(|term| term.function == LossFunction::Alm);
    let of = of + if alm { "; `alm` from how likely the teacher finds pieces of the same bytes" } else { "" };
    let pairs = computed.iter().any(|term| matches!(term.function, LossFunction::Dpo { .. }));
    let per = if pairs { "pair of a preferred reply and another" } else { "supervised token" };
    format!("{}, nats per {per}{of}", terms.join(" + "))
}

/// What of a model was trained, where that is an adapter.
fn adapted(decoder: &Decoder) -> String {
    let Some(LoraConfig { r, alpha, dropout, target_modules, use_rslora }) = decoder.adapter_config() else {
        return String::new();
    };
    let names: Vec<&str> = target_modules.iter().map(|target| target.as_str()).collect();
    let targets = match target_modules[..] == LoraTarget::ALL {
        true => "all linear maps".to_owned(),
        false => names.join(", "),
    };
    let stabilised = if *use_rslora { ", rank-stabilised" } else { "" };
    let dropped = if *dropout > 0.0 { format!(", dropout {dropout}") } else { String::new() };
    let (n, all) = (decoder.n_trained(), decoder.n_parameters());
    format!("; LoRA r={r}, alpha={alpha}{stabilised}{dropped} on {targets}: {n} of {all} parameters trained")
}

fn training(outcome: &TrainOutcome, wall_s: f64, loss: String) -> Training {
    Training {
        steps: outcome.steps,
        tokens: outcome.tokens,
        supervised_tokens: outcome.supervised_tokens,
        supervised_tokens_per_epoch: outcome.plan.supervised_tokens_per_epoch,
        examples: outcome.plan.examples,
        truncated: outcome.plan.truncated,
        wall_s,
        best_step: outcome.best_step,
        loss,
        curve: outcome.curve.clone(),
        validation: outcome.validation.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_was_trained_on() {
        let jsd = LossTerm::new(LossFunction::Jsd { jsd_teacher_weight: 0.3 }).at_temperature(2.0);
        let hard = LossTerm::new(LossFunction::HardLabels);
        let falling = LossTerm { weight: LossWeight::Linear { from: 1.0, to: 0.1 }, ..hard };
        let unused = LossTerm::new(LossFunction::Tvd).with_weight(0.0);
        let live = method(&[jsd.with_weight(0.5), falling, unused], Some(Logits::Live { temperature: 1.0 }));
        assert_eq!(
            live,
            "0.5 jsd (teacher weight 0.3, temperature 2) + (1 → 0.1) hard_labels, nats per supervised token; from \
             the whole distributions of a live teacher"
        );
        let top = Logits::TopK { k: 64, tail: Tail::Bucket, temperature: 1.0 };
        let skew = LossTerm::new(LossFunction::SkewKl { alpha: 0.1 });
        let expected = "skew_kl (alpha 0.1), nats per supervised token; approximate: from the teacher's 64 \
                        likeliest tokens, the rest as `bucket`";
        assert_eq!(method(&[skew], Some(top)), expected);
        assert_eq!(method(&[hard], Some(top)), "hard_labels, nats per supervised token");
    }
}

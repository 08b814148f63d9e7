//! The training loop.

use std::path::Path;
use std::time::{Duration, Instant};

use stillroom_core::{Digest, Scorer};
use stillroom_model::{Decoder, DivergenceError, Ensemble, HeadTerms, LiveTeacher, MatchedIds, TrainState};
use stillroom_store::{create_dir_durable, remove_partials};

use crate::batches::{LossSums, Texts};
use crate::checkpoint::{Best, Checkpoints, Identity, Progress};
use crate::feed::{Document, Documents, Feed, pack_rows};
use crate::foreign::check_readings;
use crate::losses::{Losses, StepWeights, Text};
use crate::rollouts::{self, Rollout, RolloutSums, Rollouts};
use crate::schedule::learning_rate;
use crate::{
    DistillError, Example, Result, RolloutPrompts, TeacherTargets, TrainConfig, TrainEvent, TrainPlan,
    TrainPoint, ValidationPoint,
};

/// Teacher entries of one micro-batch accepted at most: its offsets are 32 bits wide.
const SPARSE_ENTRIES_MAX: u64 = u32::MAX as u64;

/// What training made.
#[derive(Debug)]
pub struct TrainOutcome {
    /// The weights of `chosen_step`.
    pub decoder: Decoder,
    pub plan: TrainPlan,
    /// Optimiser steps done.
    pub steps: u64,
    /// Tokens seen, masked ones included.
    pub tokens: u64,
    pub supervised_tokens: u64,
    /// The step with the lowest validation loss; `None` without validation examples.
    pub best_step: Option<u64>,
    /// `best_step`, else the last.
    pub chosen_step: u64,
    pub curve: Vec<TrainPoint>,
    pub validation: Vec<ValidationPoint>,
}

/// How much training `config` means for these examples. Nothing is computed.
pub fn plan(examples: &[Example], config: &TrainConfig) -> Result<TrainPlan> {
    config.validate()?;
    let documents = fit(examples, config.max_length, config)?;
    let (truncated, dropped) = (documents.truncated, documents.dropped);
    Ok(Feed::new(documents.all, config).plan(truncated, dropped))
}

/// What a run learns from.
#[derive(Clone, Copy, Debug)]
pub struct Material<'a> {
    /// Given texts; none are needed where every step is on-policy.
    pub examples: &'a [Example],
    pub validation: &'a [Example],
    /// What the student continues, where some steps are on-policy.
    pub prompts: Option<RolloutPrompts<'a>>,
    /// Ids that are the same token for the student and for a live teacher that reads the examples in its own.
    pub matched: Option<&'a MatchedIds>,
    /// Teachers that a live one is mixed with.
    pub ensemble: Option<Ensemble<'a>>,
    /// Who reads the student's own text where no live teacher does.
    pub scorer: Option<&'a dyn Scorer>,
}

/// [`train_with_rollouts`] without rollouts: every text is given.
pub fn train(
    start: Decoder,
    teacher: Option<&Decoder>,
    examples: &[Example],
    validation: &[Example],
    config: &TrainConfig,
    dir: &Path,
    sink: &mut dyn FnMut(TrainEvent),
) -> Result<TrainOutcome> {
    let (prompts, matched, ensemble, scorer) = (None, None, None, None);
    let material = Material { examples, validation, prompts, matched, ensemble, scorer };
    train_with_rollouts(start, teacher, material, config, dir, sink)
}

/// Trains `start`, or the adapter that it has, and gives back the checkpoint with the lowest loss in validation, or
/// the last one without anything to validate on.
///
/// One optimiser step minimises Σ (the weighted `losses` of a token) / n over the n supervised tokens of all
/// its micro-batches together, so that splitting them otherwise changes nothing but rounding. Rows of
/// micro-batches are packed documents that don't see each other; nothing is padded. Divergences are taken
/// from `teacher`, which reads every batch right before the student, or from the examples' own targets. Beside an
/// `ensemble` they are taken from the mixture.
///
/// With `config.on_policy` the student writes the texts of some or all steps itself, right before it learns from
/// them; the examples of such a step are passed over. See [`OnPolicy`](crate::OnPolicy).
///
/// Checkpoints go to `dir`, which must belong to this run alone (the run directory's lock sees to that).
/// Where one is found, training goes on behind the newest good one, and ends with the same bits as if it
/// had never stopped; one that was written with other settings, examples, prompts, initial weights or another live
/// teacher is an error.
/// The material must be the same in the same order.
pub fn train_with_rollouts(
    start: Decoder,
    teacher: Option<&Decoder>,
    material: Material<'_>,
    config: &TrainConfig,
    dir: &Path,
    sink: &mut dyn FnMut(TrainEvent),
) -> Result<TrainOutcome> {
    let live = live_teacher(teacher, material, config);
    let mut trainer = set_up(start, live.as_ref(), material, config, dir, Origin::Newest, sink)?;
    trainer.run()?;
    trainer.finish()
}

/// Does steps again that were trained before, and tells of them by [`TrainEvent::Batch`] and, behind each step of
/// `again.boundaries`, [`TrainEvent::Checkpoint`]; nothing else is told, and nothing is written but below `again.scratch`.
///
/// Whether settings, examples, weights and teacher are those of then, is not asked: where they are not, the digests that
/// are told differ from those that were told then.
///
/// # Errors
/// Where the checkpoint of `again.from` is missing or damaged, and what [`train_with_rollouts`] refuses.
pub fn replay(
    start: Decoder,
    teacher: Option<&Decoder>,
    material: Material<'_>,
    config: &TrainConfig,
    again: &Again<'_>,
    sink: &mut dyn FnMut(TrainEvent),
) -> Result<()> {
    let mut only_digests = |event: TrainEvent| match event {
        TrainEvent::Batch { .. } | TrainEvent::Checkpoint { .. } => sink(event),
        _ => {}
    };
    let (live, origin) = (live_teacher(teacher, material, config), Origin::Step(again.from));
    let sink = &mut only_digests;
    let mut trainer = set_up(start, live.as_ref(), material, config, again.checkpoints, origin, sink)?;
    trainer.checkpoints.move_to(again.scratch);
    trainer.repeat(again.boundaries)
}

/// Which steps [`replay`] does again.
#[derive(Clone, Copy, Debug)]
pub struct Again<'a> {
    /// Folder of the run's checkpoints.
    pub checkpoints: &'a Path,
    /// The step behind which it begins: 0, or one of [`kept_steps`](crate::kept_steps).
    pub from: u64,
    /// Steps whose checkpoints are told, ascending, all behind `from`; it ends with the last of them.
    pub boundaries: &'a [u64],
    /// An empty folder; what is written there is removed again.
    pub scratch: &'a Path,
}

/// Where training goes on from.
enum Origin {
    /// The newest good checkpoint of this very run, or the start.
    Newest,
    /// The checkpoint of this step, whosever it is; the start if it is 0.
    Step(u64),
}

fn live_teacher<'a>(
    teacher: Option<&'a Decoder>,
    material: Material<'a>,
    config: &TrainConfig,
) -> Option<LiveTeacher<'a>> {
    let live = teacher.filter(|_| config.needs_teacher());
    live.map(|decoder| LiveTeacher::alone(decoder, config.n_ids).mixed(material.ensemble))
}

fn set_up<'a>(
    start: Decoder,
    live: Option<&'a LiveTeacher<'a>>,
    material: Material<'a>,
    config: &'a TrainConfig,
    dir: &Path,
    origin: Origin,
    sink: &'a mut dyn FnMut(TrainEvent),
) -> Result<Trainer<'a>> {
    config.validate()?;
    let reader = live.map(|live| live as &dyn Scorer);
    let live = live.copied();
    let reader = reader.or(material.scorer.filter(|_| config.learns_own_tokens()));
    config.validate_losses(match (live, reader) {
        (Some(_), _) => TeacherTargets::Live,
        (None, Some(_)) => TeacherTargets::Scored,
        (None, None) => TeacherTargets::Cached(config.tail),
    })?;
    if material.ensemble.is_some() {
        config.validate_for_several()?;
    }
    if let (Some(aligned), Some(teacher)) = (&config.hidden_alignment, live) {
        aligned.check_models(teacher.decoder.config(), start.config())?;
    }
    let matched = material.matched.filter(|_| config.needs_foreign_readings());
    let vocab_size = match matched {
        Some(matched) => own_vocabulary(&start, matched, config)?,
        None if config.needs_foreign_readings() => {
            let (value, rule) =
                ("none".to_owned(), "`uld` and `gold` need to know which ids are the same token");
            return Err(DistillError::Config { key: "matched", value, rule });
        }
        None => shared_vocabulary(&start, live, reader.and(config.n_ids))?,
    };
    let context = |decoder: &Decoder| decoder.config().max_position_embeddings;
    let along = live.filter(|_| matched.is_none());
    let of_teacher = along.map_or(usize::MAX, LiveTeacher::max_positions);
    let n_tokens_max = config.max_length.min(context(&start)).min(of_teacher);
    let rollouts = rollouts(material.prompts, config, reader, vocab_size, n_tokens_max)?;
    let given = match &rollouts {
        Some(rollouts) if rollouts.config.always() => None,
        _ => Some(Given::fit(material, config, live, vocab_size, n_tokens_max)?),
    };
    let plan = match (&given, &rollouts) {
        (Some(given), _) => given.plan.clone(),
        (None, Some(rollouts)) => rollouts.plan(config),
        (None, None) => unreachable!("without rollouts the texts are given"),
    };
    sink(TrainEvent::Planned(plan.clone()));
    let identity = Identity::new(&start, reader, material, config);
    let checkpoints = Checkpoints::new(dir, identity);
    let (state, progress) = match origin {
        Origin::Newest => {
            create_dir_durable(dir)?;
            remove_partials(dir)?;
            begin(start, &checkpoints, sink)?
        }
        Origin::Step(0) => (TrainState::new(start), Progress::default()),
        Origin::Step(step) => checkpoints.resume(step, start)?,
    };
    let state =
        state.with_gradient_checkpointing(config.gradient_checkpointing).with_dropout_seed(config.seed);
    let losses = config.computed_losses();
    let timed = Timed::default();
    Ok(Trainer {
        config,
        losses,
        live,
        matched,
        given,
        rollouts,
        plan,
        checkpoints,
        state,
        progress,
        sink,
        timed,
    })
}

fn rollouts<'a>(
    prompts: Option<RolloutPrompts<'a>>,
    config: &'a TrainConfig,
    reader: Option<&'a dyn Scorer>,
    vocab_size: usize,
    n_tokens_max: usize,
) -> Result<Option<Rollouts<'a>>> {
    let Some(on_policy) = &config.on_policy else { return Ok(None) };
    let prompts = prompts.unwrap_or(RolloutPrompts { train: &[], validation: &[] });
    let n_rows = config.per_device_train_batch_size * config.gradient_accumulation_steps;
    let n_tokens = n_rows * config.max_length;
    let rollouts = Rollouts::new(on_policy, config.seed, prompts, vocab_size, n_tokens_max, n_tokens)?;
    let scorer = reader.filter(|_| config.learns_own_tokens());
    Ok(Some(rollouts.scored_by(scorer).of_ids(config.n_ids)))
}

/// Texts that the student did not write.
struct Given<'a> {
    feed: Feed<'a>,
    plan: TrainPlan,
    held: Vec<Document<'a>>,
    held_rows: Vec<Vec<u32>>,
}

impl<'a> Given<'a> {
    fn fit(
        material: Material<'a>,
        config: &'a TrainConfig,
        live: Option<LiveTeacher<'_>>,
        vocab_size: usize,
        n_tokens_max: usize,
    ) -> Result<Given<'a>> {
        check_examples(vocab_size, live, material.examples, config)?;
        check_examples(vocab_size, live, material.validation, config)?;
        let documents = fit(material.examples, n_tokens_max, config)?;
        let held = Documents::fit(material.validation, n_tokens_max, config.overlong)?.all;
        let (truncated, dropped) = (documents.truncated, documents.dropped);
        let mut feed = Feed::new(documents.all, config);
        let plan = feed.plan(truncated, dropped);
        let order: Vec<u32> = (0..held.len() as u32).collect();
        let held_rows = pack_rows(&held, &order, config);
        Ok(Given { feed, plan, held, held_rows })
    }
}

fn fit<'a>(examples: &'a [Example], n_tokens_max: usize, config: &TrainConfig) -> Result<Documents<'a>> {
    if examples.is_empty() {
        return Err(DistillError::NoExamples { what: "no example is left" });
    }
    let documents = Documents::fit(examples, n_tokens_max, config.overlong)?;
    if documents.all.is_empty() {
        return Err(DistillError::NoExamples {
            what: "every example was cut before its first supervised token",
        });
    }
    Ok(documents)
}

/// How many ids the student, and live teachers, have; `n_ids` where not all of their tables are tokens of whoever reads.
fn shared_vocabulary(start: &Decoder, live: Option<LiveTeacher<'_>>, n_ids: Option<usize>) -> Result<usize> {
    let student = start.config().vocab_size;
    let (teacher, widest) = live.map_or((student, student), LiveTeacher::vocabularies);
    let shared = n_ids.unwrap_or(student.max(widest));
    if shared > student.min(teacher) {
        return Err(DivergenceError::Vocabularies { student, teacher, n_ids }.into());
    }
    Ok(shared)
}

/// How many ids the student has, whose teacher has a vocabulary of its own.
fn own_vocabulary(start: &Decoder, matched: &MatchedIds, config: &TrainConfig) -> Result<usize> {
    let (student, n_ids) = (start.config().vocab_size, config.n_ids);
    if n_ids.unwrap_or(student) != matched.n_student() || matched.n_student() > student {
        let teacher = matched.n_teacher();
        return Err(DivergenceError::Vocabularies { student, teacher, n_ids }.into());
    }
    Ok(matched.n_student())
}

fn check_examples(
    vocab_size: usize,
    live: Option<LiveTeacher<'_>>,
    examples: &[Example],
    config: &TrainConfig,
) -> Result<()> {
    let tail = (config.needs_distributions() && live.is_none()).then_some(config.tail);
    if let Some(LiveTeacher { decoder, .. }) = live.filter(|_| config.needs_foreign_readings()) {
        check_readings(examples, decoder.config().vocab_size, decoder.config().max_position_embeddings)?;
    }
    let mut longest = 0;
    for example in examples {
        example.check(vocab_size, tail)?;
        if config.needs_chunks() && example.chunks.is_none() {
            return Err(DistillError::NoTeacherChunks { id: example.id.clone() });
        }
        if config.needs_pairs() != example.rejected.is_some() {
            let what =
                if config.needs_pairs() { "`dpo` needs a pair" } else { "only `dpo` learns from a pair" };
            return Err(DistillError::example(&example.id, what));
        }
        let rows = example.sparse.iter().flatten();
        longest = rows.map(|row| row.ids.len()).fold(longest, usize::max);
    }
    let tokens = config.per_device_train_batch_size as u64 * config.max_length as u64;
    let entries = tokens * if tail.is_some() { longest as u64 } else { 1 };
    if entries > SPARSE_ENTRIES_MAX {
        let value = config.per_device_train_batch_size.to_string();
        let rule = "a micro-batch of that many rows is too large; use `gradient_accumulation_steps`";
        return Err(DistillError::Config { key: "per_device_train_batch_size", value, rule });
    }
    Ok(())
}

/// The newest good checkpoint, or the start.
fn begin(
    start: Decoder,
    checkpoints: &Checkpoints,
    sink: &mut dyn FnMut(TrainEvent),
) -> Result<(TrainState, Progress)> {
    let found = checkpoints.newest_good()?;
    for (name, reason) in found.skipped {
        sink(TrainEvent::CheckpointSkipped { name, reason });
    }
    let Some(progress) = found.progress else {
        checkpoints.remove_after(0)?;
        return Ok((TrainState::new(start), Progress::default()));
    };
    checkpoints.remove_after(progress.step)?;
    let state = checkpoints.load(progress.step, start)?;
    sink(TrainEvent::Resumed { step: progress.step, files: found.files });
    Ok((state, progress))
}

/// Time and tokens of optimiser steps since the last logged point.
#[derive(Default)]
struct Timed {
    time: Duration,
    tokens: u64,
    /// Seconds of it that rollouts took.
    rollouts: f64,
}

struct Trainer<'a> {
    config: &'a TrainConfig,
    losses: Losses,
    live: Option<LiveTeacher<'a>>,
    /// Where the teacher has a vocabulary of its own.
    matched: Option<&'a MatchedIds>,
    given: Option<Given<'a>>,
    rollouts: Option<Rollouts<'a>>,
    plan: TrainPlan,
    checkpoints: Checkpoints,
    state: TrainState,
    progress: Progress,
    sink: &'a mut dyn FnMut(TrainEvent),
    timed: Timed,
}

/// What one optimiser step did.
struct Stepped {
    epoch: f64,
    learning_rate: f64,
    grad_norm: f64,
}

/// What a step learned from.
struct Learned {
    batch: Digest,
    tokens: u64,
    supervised: u64,
    sums: LossSums,
}

/// Adds the gradients of texts.
fn learn(
    state: &mut TrainState,
    texts: &Texts<'_>,
    weights: &StepWeights,
    config: &TrainConfig,
    live: Option<LiveTeacher<'_>>,
) -> Learned {
    let batch = texts.digest(config.needs_distributions() && live.is_none());
    let (tokens, supervised) = texts.n_tokens();
    let (hard_label, divergences) = (weights.hard_label as f32, &weights.terms[..]);
    let terms = HeadTerms { hard_label, divergences, scale: 1.0 / texts.n_terms(config) as f32 };
    let sums = texts.each_batch(config, live, weights, |batch, targets, pairs, sums| {
        let losses = state.accumulate(batch, targets, &terms);
        sums.add_batch(losses, targets, pairs, weights);
    });
    Learned { batch, tokens, supervised, sums }
}

impl Trainer<'_> {
    /// Does the steps up to the last boundary again.
    fn repeat(&mut self, boundaries: &[u64]) -> Result<()> {
        for &boundary in boundaries {
            while self.progress.step < boundary {
                self.step(self.progress.step + 1)?;
            }
            self.commit()?;
            self.checkpoints.remove_after(0)?;
        }
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        let last = self.plan.steps;
        if self.progress.step == 0 {
            self.validate()?;
        }
        while self.progress.step < last {
            let step = self.progress.step + 1;
            let due = |every: u64| step == last || (every > 0 && step.is_multiple_of(every));
            let stepped = self.step(step)?;
            if due(self.config.logging_steps) {
                self.log(&stepped);
            }
            let improved = due(self.config.eval_steps) && self.validate()?;
            if improved || due(self.config.save_steps) {
                self.save()?;
            }
        }
        Ok(())
    }

    /// One optimiser step over all its micro-batches.
    fn step(&mut self, step: u64) -> Result<Stepped> {
        let began = Instant::now();
        let own = self.rollouts.as_ref().is_some_and(|r| r.config.is_on_policy(self.config.seed, step));
        let (epoch, Learned { batch, tokens, supervised, sums }) =
            if own { self.learn_from_own(step)? } else { self.learn_from_given(step) };
        self.check_finite(step, sums.per_token(sums.loss))?;
        let learning_rate = learning_rate(self.config, step, self.plan.steps);
        let report = self.state.step(&self.config.adamw(learning_rate));
        if !report.grad_norm.is_finite() {
            let (norm, checkpoint) = (report.grad_norm, self.last_checkpoint());
            return Err(DistillError::NonFiniteGradient { step, norm, checkpoint });
        }
        let progress = &mut self.progress;
        progress.step = step;
        progress.tokens += tokens;
        progress.supervised_tokens += supervised;
        let window = if own { &mut progress.rollouts.window.losses } else { &mut progress.window };
        window.add(&sums);
        progress.window_clipped += u64::from(report.clipped);
        self.timed.time += began.elapsed();
        self.timed.tokens += tokens;
        (self.sink)(TrainEvent::Batch { step, digest: batch });
        Ok(Stepped { epoch, learning_rate, grad_norm: report.grad_norm })
    }

    /// Gradients of the examples of a step; passes over them when it is done, and what was learned.
    fn learn_from_given(&mut self, step: u64) -> (f64, Learned) {
        let given = self.given.as_mut().unwrap_or_else(|| panic!("step {step} needs given text"));
        let rows = given.feed.step(step);
        let (epoch, rows) = (rows.epoch, rows.micro_batches().flatten().cloned().collect());
        let texts = Texts { documents: given.feed.documents(), rows, own: None, matched: self.matched };
        let weights = self.losses.at(step, self.plan.steps, Text::Given);
        (epoch, learn(&mut self.state, &texts, &weights, self.config, self.live))
    }

    /// Writes the texts of an on-policy step and takes their gradients.
    fn learn_from_own(&mut self, step: u64) -> Result<(f64, Learned)> {
        let began = Instant::now();
        let rollouts = self.rollouts.as_mut().unwrap_or_else(|| panic!("step {step} needs rollouts"));
        let state = &mut self.progress.rollouts;
        let own = rollouts.step(step, self.state.decoder(), state)?;
        self.timed.rollouts += began.elapsed().as_secs_f64();
        state.window.add(step, &own);
        let examples = rollouts::examples(&own, rollouts.prompts)?;
        let documents = Documents::fit(&examples, usize::MAX, self.config.overlong)?.all;
        let texts = Texts::written(&documents, &own, self.config);
        let weights = self.losses.at(step, self.plan.steps, Text::Own);
        let learned = learn(&mut self.state, &texts, &weights, self.config, self.live);
        let epoch = match &mut self.given {
            Some(given) => given.feed.step(step).epoch,
            None => step as f64 / rollouts.steps_per_pass() as f64,
        };
        Ok((epoch, learned))
    }

    fn check_finite(&self, step: u64, loss: f64) -> Result<()> {
        if loss.is_finite() {
            return Ok(());
        }
        Err(DistillError::NonFiniteLoss { step, loss, checkpoint: self.last_checkpoint() })
    }

    fn last_checkpoint(&self) -> Option<std::path::PathBuf> {
        self.checkpoints.newest_step().map(|step| self.checkpoints.path(step))
    }

    fn log(&mut self, stepped: &Stepped) {
        let progress = &mut self.progress;
        let n_steps = progress.step - progress.curve.last().map_or(0, |point| point.step);
        let (given, rollouts) =
            (std::mem::take(&mut progress.window), std::mem::take(&mut progress.rollouts.window));
        let mut window = given.clone();
        window.add(&rollouts.losses);
        let point = TrainPoint {
            step: progress.step,
            epoch: stepped.epoch,
            loss: window.per_token(window.loss),
            hard_label: window.per_token(window.hard_label),
            divergences: self.losses.means(&given, &rollouts.losses),
            captured_mass: self.losses.need_distributions().then(|| window.per_token(window.mass)),
            learning_rate: stepped.learning_rate,
            grad_norm: stepped.grad_norm,
            clipped_steps: std::mem::take(&mut progress.window_clipped),
            tokens: progress.tokens,
            supervised_tokens: progress.supervised_tokens,
            tokens_per_second: self.timed.tokens as f64 / self.timed.time.as_secs_f64().max(1e-9),
            rollouts: rollouts.point(n_steps, &self.losses, self.timed.rollouts),
            preferences: window.preferences.map(|sums| sums.means(window.n)),
        };
        self.timed = Timed::default();
        progress.curve.push(point.clone());
        (self.sink)(TrainEvent::Step(point));
    }

    /// Validates and tells whether this step is the best so far. Step 0 is measured, but never chosen.
    fn validate(&mut self) -> Result<bool> {
        let given = self.validate_given();
        let own = self.validate_own()?;
        if given.n == 0 && own.losses.n == 0 {
            return Ok(false);
        }
        // The share of the student's own text, as training has it.
        let share = match (&self.config.on_policy, given.n, own.losses.n) {
            (_, _, 0) => 0.0,
            (_, 0, _) => 1.0,
            (on_policy, ..) => on_policy.as_ref().map_or(0.0, |on_policy| on_policy.on_policy_fraction),
        };
        let mean = |of: fn(&LossSums) -> f64| {
            share * own.losses.per_token(of(&own.losses)) + (1.0 - share) * given.per_token(of(&given))
        };
        let (step, loss) = (self.progress.step, mean(|sums| sums.loss));
        self.check_finite(step, loss)?;
        let best = step > 0 && self.progress.best.is_none_or(|best| loss < best.loss);
        if best {
            self.progress.best = Some(Best { step, loss });
        }
        let point = ValidationPoint {
            step,
            tokens: self.progress.tokens,
            loss,
            hard_label: mean(|sums| sums.hard_label),
            divergences: self.losses.mixed_means(&given, &own.losses, share),
            captured_mass: self.losses.need_distributions().then(|| mean(|sums| sums.mass)),
            rollouts: (own.losses.n > 0).then(|| own.means(&self.losses)),
            preferences: given.preferences.map(|sums| sums.means(given.n)),
            best,
        };
        self.progress.validation.push(point.clone());
        (self.sink)(TrainEvent::Validation(point));
        Ok(best)
    }

    /// Losses on the validation examples.
    fn validate_given(&self) -> LossSums {
        let Some(given) = &self.given else { return LossSums::default() };
        let (documents, rows) = (&given.held[..], given.held_rows.clone());
        let texts = Texts { documents, rows, own: None, matched: self.matched };
        self.judge(&texts)
    }

    /// Losses on what the student makes of the validation prompts.
    fn validate_own(&self) -> Result<RolloutSums> {
        let mut sums = RolloutSums::default();
        let Some(rollouts) = &self.rollouts else { return Ok(sums) };
        let step = self.progress.step;
        let own: Vec<Rollout> = rollouts.validation(step, self.state.decoder())?;
        let examples = rollouts::examples(&own, rollouts.validation_prompts())?;
        let documents = Documents::fit(&examples, usize::MAX, self.config.overlong)?.all;
        sums.add(step, &own);
        sums.losses = self.judge(&Texts::written(&documents, &own, self.config));
        Ok(sums)
    }

    fn judge(&self, texts: &Texts<'_>) -> LossSums {
        let weights = self.losses.at_the_end(texts.kind());
        texts.each_batch(self.config, self.live, &weights, |batch, targets, pairs, sums| {
            let losses = self.state.decoder().losses(batch, targets, &weights.terms);
            sums.add_batch(&losses, targets, pairs, &weights);
        })
    }

    /// Writes a checkpoint, and tells of it when it is durable.
    fn commit(&mut self) -> Result<()> {
        (self.sink)(TrainEvent::Saving { step: self.progress.step });
        let (name, files) = self.checkpoints.save(&self.state, &self.progress)?;
        (self.sink)(TrainEvent::Checkpoint { step: self.progress.step, name, files });
        Ok(())
    }

    fn save(&mut self) -> Result<()> {
        self.commit()?;
        self.checkpoints.retain(self.config.save_total_limit, self.progress.best.map(|best| best.step))
    }

    fn finish(self) -> Result<TrainOutcome> {
        let Progress { step, tokens, supervised_tokens, best, curve, validation, .. } = self.progress;
        let chosen_step = best.map_or(step, |best| best.step);
        let decoder = if chosen_step == step {
            self.state.into_decoder()
        } else {
            self.checkpoints.load_decoder(chosen_step, self.state.into_decoder())?
        };
        (self.sink)(TrainEvent::Finished { steps: step, tokens, chosen_step });
        Ok(TrainOutcome {
            decoder,
            plan: self.plan,
            steps: step,
            tokens,
            supervised_tokens,
            best_step: best.map(|best| best.step),
            chosen_step,
            curve,
            validation,
        })
    }
}

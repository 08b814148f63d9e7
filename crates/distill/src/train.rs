//! The training loop.

use std::path::Path;
use std::time::{Duration, Instant};

use stillroom_model::{Decoder, DivergenceError, HeadTerms, LiveTeacher, TrainState};
use stillroom_store::{create_dir_durable, remove_partials};

use crate::batches::{LossSums, label_loss, micro_batch};
use crate::checkpoint::{Best, Checkpoints, Identity, Progress};
use crate::feed::{Document, Documents, Feed, pack_rows};
use crate::losses::Losses;
use crate::schedule::learning_rate;
use crate::{DistillError, Example, Result, TrainConfig, TrainEvent, TrainPlan, TrainPoint, ValidationPoint};

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

/// Trains `start`, or the adapter that it has, on `examples` and gives back the checkpoint with the lowest loss on `validation`, or
/// the last one without validation examples.
///
/// One optimiser step minimises Σ (the weighted `losses` of a token) / n over the n supervised tokens of all
/// its micro-batches together, so that splitting them otherwise changes nothing but rounding. Rows of
/// micro-batches are packed documents that don't see each other; nothing is padded. Divergences are taken
/// from `teacher`, which reads every batch right before the student, or from the examples' own targets.
///
/// Checkpoints go to `dir`, which must belong to this run alone (the run directory's lock sees to that).
/// Where one is found, training goes on behind the newest good one, and ends with the same bits as if it
/// had never stopped; one that was written with other settings, examples, initial weights or another live
/// teacher is an error.
/// `examples` must be the same in the same order.
pub fn train(
    start: Decoder,
    teacher: Option<&Decoder>,
    examples: &[Example],
    validation: &[Example],
    config: &TrainConfig,
    dir: &Path,
    sink: &mut dyn FnMut(TrainEvent),
) -> Result<TrainOutcome> {
    config.validate()?;
    let live = teacher.filter(|_| config.needs_teacher());
    let live = live.map(|decoder| LiveTeacher { decoder, n_ids: config.n_ids });
    config.validate_losses(live.is_some())?;
    let vocab_size = shared_vocabulary(&start, live)?;
    check_examples(vocab_size, live, examples, config)?;
    check_examples(vocab_size, live, validation, config)?;
    let context = |decoder: &Decoder| decoder.config().max_position_embeddings;
    let of_teacher = live.map_or(usize::MAX, |teacher| context(teacher.decoder));
    let n_tokens_max = config.max_length.min(context(&start)).min(of_teacher);
    let documents = fit(examples, n_tokens_max, config)?;
    let held = Documents::fit(validation, n_tokens_max, config.overlong)?.all;
    let (truncated, dropped) = (documents.truncated, documents.dropped);
    let mut feed = Feed::new(documents.all, config);
    let plan = feed.plan(truncated, dropped);
    sink(TrainEvent::Planned(plan.clone()));
    create_dir_durable(dir)?;
    remove_partials(dir)?;
    let checkpoints = Checkpoints::new(
        dir,
        Identity::new(&start, live.map(|teacher| teacher.decoder), examples, validation, config),
    );
    let (state, progress) = begin(start, &checkpoints, sink)?;
    let state =
        state.with_gradient_checkpointing(config.gradient_checkpointing).with_dropout_seed(config.seed);
    let order: Vec<u32> = (0..held.len() as u32).collect();
    let held_rows = pack_rows(&held, &order, config);
    let mut trainer = Trainer {
        config,
        losses: config.computed_losses(),
        live,
        feed,
        plan,
        held,
        held_rows,
        checkpoints,
        state,
        progress,
        sink,
        timed: Timed::default(),
    };
    trainer.run()?;
    trainer.finish()
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

/// How many ids the student, and a live teacher, have.
fn shared_vocabulary(start: &Decoder, live: Option<LiveTeacher<'_>>) -> Result<usize> {
    let student = start.config().vocab_size;
    let Some(LiveTeacher { decoder, n_ids }) = live else { return Ok(student) };
    let teacher = decoder.config().vocab_size;
    let shared = n_ids.unwrap_or(student.max(teacher));
    if shared > student.min(teacher) {
        return Err(DivergenceError::Vocabularies { student, teacher, n_ids }.into());
    }
    Ok(shared)
}

fn check_examples(
    vocab_size: usize,
    live: Option<LiveTeacher<'_>>,
    examples: &[Example],
    config: &TrainConfig,
) -> Result<()> {
    let tail = (config.needs_teacher() && live.is_none()).then_some(config.tail);
    let mut longest = 0;
    for example in examples {
        example.check(vocab_size, tail)?;
        if config.needs_chunks() && example.chunks.is_none() {
            return Err(DistillError::NoTeacherChunks { id: example.id.clone() });
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
    sink(TrainEvent::Resumed { step: progress.step });
    Ok((state, progress))
}

/// Time and tokens of optimiser steps since the last logged point.
#[derive(Default)]
struct Timed {
    time: Duration,
    tokens: u64,
}

struct Trainer<'a> {
    config: &'a TrainConfig,
    losses: Losses,
    live: Option<LiveTeacher<'a>>,
    feed: Feed<'a>,
    plan: TrainPlan,
    held: Vec<Document<'a>>,
    held_rows: Vec<Vec<u32>>,
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

impl Trainer<'_> {
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
        let rows = self.feed.step(step);
        let epoch = rows.epoch;
        let micro_batches: Vec<Vec<Vec<u32>>> = rows.micro_batches().map(<[_]>::to_vec).collect();
        let documents = self.feed.documents();
        let in_step = || micro_batches.iter().flatten().flatten().map(|&i| documents[i as usize]);
        let n_supervised: usize = in_step().map(|d| d.n_supervised).sum();
        let n_tokens = in_step().map(|d| d.length as u64).sum::<u64>();
        let weights = self.losses.at(step, self.plan.steps);
        let (hard_label, divergences) = (weights.hard_label as f32, &weights.terms[..]);
        let terms = HeadTerms { hard_label, divergences, scale: 1.0 / n_supervised as f32 };
        let mut sums = LossSums::default();
        for rows in &micro_batches {
            let label_loss = label_loss(documents, rows, self.config);
            let label_loss = label_loss.as_ref().map(|loss| weights.of_labels(loss));
            let (batch, targets) = micro_batch(documents, rows, self.config, self.live, label_loss);
            let losses = self.state.accumulate(&batch, &targets, &terms);
            sums.add_batch(losses, &targets, &weights);
        }
        self.check_finite(step, sums.per_token(sums.loss))?;
        let learning_rate = learning_rate(self.config, step, self.plan.steps);
        let report = self.state.step(&self.config.adamw(learning_rate));
        if !report.grad_norm.is_finite() {
            let (norm, checkpoint) = (report.grad_norm, self.last_checkpoint());
            return Err(DistillError::NonFiniteGradient { step, norm, checkpoint });
        }
        let progress = &mut self.progress;
        progress.step = step;
        progress.tokens += n_tokens;
        progress.supervised_tokens += n_supervised as u64;
        progress.window.add(&sums);
        progress.window_clipped += u64::from(report.clipped);
        self.timed.time += began.elapsed();
        self.timed.tokens += n_tokens;
        Ok(Stepped { epoch, learning_rate, grad_norm: report.grad_norm })
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
        let window = std::mem::take(&mut progress.window);
        let point = TrainPoint {
            step: progress.step,
            epoch: stepped.epoch,
            loss: window.per_token(window.loss),
            hard_label: window.per_token(window.hard_label),
            divergences: window.by_name(self.losses.names()),
            captured_mass: self.losses.need_teacher().then(|| window.per_token(window.mass)),
            learning_rate: stepped.learning_rate,
            grad_norm: stepped.grad_norm,
            clipped_steps: std::mem::take(&mut progress.window_clipped),
            tokens: progress.tokens,
            supervised_tokens: progress.supervised_tokens,
            tokens_per_second: self.timed.tokens as f64 / self.timed.time.as_secs_f64().max(1e-9),
        };
        self.timed = Timed::default();
        progress.curve.push(point.clone());
        (self.sink)(TrainEvent::Step(point));
    }

    /// Validates and tells whether this step is the best so far. Step 0 is measured, but never chosen.
    fn validate(&mut self) -> Result<bool> {
        if self.held.is_empty() {
            return Ok(false);
        }
        let weights = self.losses.at_the_end();
        let mut sums = LossSums::default();
        for rows in self.held_rows.chunks(self.config.per_device_train_batch_size) {
            let label_loss = label_loss(&self.held, rows, self.config);
            let label_loss = label_loss.as_ref().map(|loss| weights.of_labels(loss));
            let (batch, targets) = micro_batch(&self.held, rows, self.config, self.live, label_loss);
            let losses = self.state.decoder().losses(&batch, &targets, &weights.terms);
            sums.add_batch(&losses, &targets, &weights);
        }
        let (step, loss) = (self.progress.step, sums.per_token(sums.loss));
        self.check_finite(step, loss)?;
        let best = step > 0 && self.progress.best.is_none_or(|best| loss < best.loss);
        if best {
            self.progress.best = Some(Best { step, loss });
        }
        let point = ValidationPoint {
            step,
            tokens: self.progress.tokens,
            loss,
            hard_label: sums.per_token(sums.hard_label),
            divergences: sums.by_name(self.losses.names()),
            captured_mass: self.losses.need_teacher().then(|| sums.per_token(sums.mass)),
            best,
        };
        self.progress.validation.push(point.clone());
        (self.sink)(TrainEvent::Validation(point));
        Ok(best)
    }

    fn save(&mut self) -> Result<()> {
        let name = self.checkpoints.save(&self.state, &self.progress)?;
        (self.sink)(TrainEvent::Checkpoint { step: self.progress.step, name });
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

//! Raw keys → a complete recipe: defaults, ranges and what excludes what.

use std::ops::RangeInclusive;

use stillroom_core::Tail;
use stillroom_corpus::Split;
use stillroom_distill::{LossFunction, LossWeight, check_losses};

use super::raw::*;
use super::*;
use crate::failure::Failure;

/// Sizes that no recipe reaches by intent.
pub(super) const SIZE_MAX: usize = 1 << 20;
const EXAMPLES_MAX: usize = 100_000_000;
const STEPS_MAX: u64 = 1_000_000_000;
const WEIGHTS: RangeInclusive<f64> = 0.0..=1e6;
/// Own texts that are measured of a student that learns from nothing else.
const OWN_TEXTS: usize = 128;
const LOSSES: [&str; 2] = ["train", "loss_functions"];
/// τ of `alm` where none is given, as its authors have it.
const ALM_TEMPERATURE: f64 = 100.0;

pub(super) fn resolve(raw: RawRecipe, source: &Source) -> Result<Recipe> {
    let at = Checker { source };
    let seed = raw.seed.unwrap_or(0);
    at.seed(&["seed"], seed)?;
    let stem = source.path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let name = raw.name.unwrap_or(stem);
    at.name(&["name"], &name)?;
    let teacher = raw.teacher.map(|t| teacher(&at, t, seed)).transpose()?;
    // A recipe that only says who is asked what trains nobody, and holds nothing out.
    let trains = raw.student.is_some() || raw.train.is_some() || raw.evaluate.is_some();
    let student = match trains || teacher.is_none() {
        true => student::student(&at, raw.student, teacher.as_ref())?,
        false => Student::Nobody,
    };
    let prompts = prompts(&at, raw.prompts, seed)?;
    let curate = curate::curate(&at, raw.curate.unwrap_or_default())?;
    let feedback = match raw.feedback {
        Some(raw) => Some(feedback::feedback(&at, raw, teacher.as_ref(), &prompts, seed)?),
        None => None,
    };
    let raw_train = raw.train.unwrap_or_default();
    let lora = lora::lora(&at, &raw_train, &student)?;
    let losses = losses(&at, raw_train.loss_functions.clone(), teacher.as_ref())?;
    let rollouts = on_policy::rollouts(&at, &raw_train, &losses, teacher.as_ref())?;
    let raw_hidden = raw_train.hidden_alignment.as_ref();
    let hidden_alignment = hidden::alignment(&at, raw_hidden, &losses, &student, teacher.as_ref())?;
    let train = Train { lora, rollouts, hidden_alignment, ..train(&at, raw_train, losses, seed)? };
    across_tokenizers(&at, &train, teacher.as_ref())?;
    ensemble::check_use(&at, teacher.as_ref(), &train)?;
    let evaluate = evaluate(&at, raw.evaluate.unwrap_or_default(), teacher.as_ref(), &prompts, &train)?;
    feedback::check_use(&at, feedback.as_ref(), &curate, &train, &prompts)?;
    let policy = policy::policy(&at, raw.policy.unwrap_or_default())?;
    let release = release(&at, raw.release.unwrap_or_default(), &name)?;
    let output_dir = raw.output_dir;
    Ok(Recipe {
        name,
        seed,
        output_dir,
        student,
        teacher,
        prompts,
        feedback,
        curate,
        train,
        evaluate,
        policy,
        release,
    })
}

pub(super) struct Checker<'a> {
    pub(super) source: &'a Source,
}

impl Checker<'_> {
    pub(super) fn bad(&self, keys: &[&str], cause: impl Into<String>) -> Failure {
        self.source.bad(keys, cause)
    }

    pub(super) fn missing(&self, keys: &[&str], fix: &str) -> Failure {
        self.bad(keys, format!("`{}` is missing", keys.join("."))).fix(fix)
    }

    pub(super) fn need<T>(&self, keys: &[&str], value: Option<T>, fix: &str) -> Result<T> {
        value.ok_or_else(|| self.missing(keys, fix))
    }

    /// A whole number within bounds.
    pub(super) fn count(&self, keys: &[&str], value: usize, range: RangeInclusive<usize>) -> Result<usize> {
        if range.contains(&value) {
            return Ok(value);
        }
        let cause =
            format!("`{}` is {value}; it lies between {} and {}", keys.join("."), range.start(), range.end());
        Err(self.bad(keys, cause).fix("choose a value within these bounds"))
    }

    pub(super) fn number(&self, keys: &[&str], value: f64, range: RangeInclusive<f64>) -> Result<f64> {
        if range.contains(&value) {
            return Ok(value);
        }
        let cause =
            format!("`{}` is {value}; it lies between {} and {}", keys.join("."), range.start(), range.end());
        Err(self.bad(keys, cause).fix("choose a value within these bounds"))
    }

    /// TOML's integers end at 2⁶³ − 1.
    fn seed(&self, keys: &[&str], seed: u64) -> Result<()> {
        if i64::try_from(seed).is_ok() {
            return Ok(());
        }
        Err(self.bad(keys, format!("`{}` is too large", keys.join("."))).fix("choose a smaller seed"))
    }

    /// A name that is also the name of a folder.
    fn name(&self, keys: &[&str], name: &str) -> Result<()> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if !name.is_empty() && name.len() <= 96 && name.chars().all(plain) && !name.starts_with('.') {
            return Ok(());
        }
        Err(self
            .bad(keys, format!("`{name}` cannot name a run"))
            .fix("use letters, digits, `-`, `_` and `.`, at most 96 of them"))
    }

    pub(super) fn choose<T: Copy>(
        &self,
        keys: &[&str],
        given: &str,
        known: &[(&'static str, T)],
    ) -> Result<T> {
        if let Some((_, value)) = known.iter().find(|(name, _)| *name == given) {
            return Ok(*value);
        }
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        let failure = self.bad(keys, format!("`{}` cannot be `{given}`", keys.join(".")));
        Err(match did_you_mean(given, &names) {
            Some(meant) => failure.fix(format!("did you mean `{meant}`?")),
            None => failure.fix(format!("it is one of {}", quoted_list(&names))),
        })
    }

    /// Secrets come from the environment, and only they do.
    pub(super) fn no_environment(&self, keys: &[&str], text: &str) -> Result<()> {
        if !text.contains("${") {
            return Ok(());
        }
        Err(self
            .bad(keys, format!("`{}` cannot come from the environment; only secrets do", keys.join(".")))
            .fix("write the value itself, or pass it with `--set`"))
    }

    pub(super) fn path(&self, keys: &[&str], text: Option<String>) -> Result<Option<String>> {
        let Some(text) = text else { return Ok(None) };
        self.no_environment(keys, &text)?;
        if text.is_empty() || text.contains('\0') {
            return Err(self.bad(keys, format!("`{}` is not a path", keys.join("."))));
        }
        Ok(Some(text))
    }
}

/// The first of these keys that stands in the recipe.
pub(super) fn first_given(keys: impl IntoIterator<Item = (&'static str, bool)>) -> Option<&'static str> {
    keys.into_iter().find(|(_, is_given)| *is_given).map(|(name, _)| name)
}

fn quoted_list(names: &[&str]) -> String {
    names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}

fn teacher(at: &Checker<'_>, mut raw: RawTeacher, seed: u64) -> Result<Teacher> {
    let key = |name: &'static str| ["teacher", name];
    let kind = at.need(&key("kind"), raw.kind.take(), "write `kind = \"local\"`")?;
    let kinds = [
        ("local", TeacherKind::Local),
        ("openai", TeacherKind::Openai),
        ("cache", TeacherKind::Cache),
        ("batch", TeacherKind::Batch),
    ];
    let kind = at.choose(&key("kind"), &kind, &kinds)?;
    let (weight, ensemble) = ensemble::ensemble(at, kind, raw.weight, raw.ensemble.take())?;
    let scores = scoring::scores(at, kind, &mut raw)?;
    let wire = wire::wire(at, kind, &mut raw)?;
    let path = at.path(&key("path"), raw.path.take())?;
    if kind == TeacherKind::Local && path.is_none() {
        return Err(at.missing(&key("path"), "name the teacher's directory or `.gguf` file"));
    }
    let model = raw.model.take().or_else(|| path.clone());
    let model = at.need(&key("model"), model, "name the model; the licence gate decides on it")?;
    at.no_environment(&key("model"), &model)?;
    let seed = raw.seed.unwrap_or(seed);
    at.seed(&key("seed"), seed)?;
    let samples =
        at.count(&key("samples_per_prompt"), raw.samples_per_prompt.unwrap_or(1) as usize, 1..=4096)?;
    let in_flight = raw.max_in_flight.unwrap_or(if wire.is_some() { wire::IN_FLIGHT } else { 64 });
    let logits = raw.logits.map(|l| logits(at, l)).transpose()?;
    wire::check_use(at, wire.as_ref(), logits)?;
    Ok(Teacher {
        kind,
        model,
        path,
        seed,
        samples_per_prompt: samples as u32,
        max_tokens: at.count(&key("max_tokens"), raw.max_tokens.unwrap_or(512), 1..=SIZE_MAX)?,
        temperature: at.number(&key("temperature"), raw.temperature.unwrap_or(0.7), 0.0..=100.0)?,
        top_p: at.number(&key("top_p"), raw.top_p.unwrap_or(1.0), 1e-6..=1.0)?,
        max_in_flight: at.count(&key("max_in_flight"), in_flight, 1..=4096)?,
        logits,
        weight,
        ensemble,
        wire,
        scores,
    })
}

fn logits(at: &Checker<'_>, raw: RawLogits) -> Result<Logits> {
    let key = |name: &'static str| ["teacher", "logits", name];
    #[derive(Clone, Copy, PartialEq)]
    enum Kind {
        Sampled,
        TopK,
        Live,
    }
    let fix = "write `kind = \"random_sampling\"`, `kind = \"top_k\"` or `kind = \"live\"`";
    let kind = at.need(&key("kind"), raw.kind, fix)?;
    let kinds = [("random_sampling", Kind::Sampled), ("top_k", Kind::TopK), ("live", Kind::Live)];
    let kind = at.choose(&key("kind"), &kind, &kinds)?;
    let temperature = at.number(&key("temperature"), raw.temperature.unwrap_or(1.0), 1e-2..=100.0)?;
    if kind == Kind::Live {
        if raw.draws.or(raw.k).is_some() || raw.tail.is_some() || raw.evenly_spaced.is_some() {
            return Err(at
                .bad(&key("kind"), "of a live teacher nothing is stored")
                .fix("remove `draws`, `evenly_spaced`, `k` and `tail`, or choose another `kind`"));
        }
        return Ok(Logits::Live { temperature });
    }
    if kind == Kind::Sampled {
        if raw.k.is_some() || raw.tail.is_some() {
            return Err(at
                .bad(&key("kind"), "draws from the whole distribution leave no tail")
                .fix("remove `k` and `tail`, or write `kind = \"top_k\"`"));
        }
        let draws = at.count(&key("draws"), raw.draws.unwrap_or(50) as usize, 1..=100_000)? as u32;
        let evenly_spaced = raw.evenly_spaced.unwrap_or(false);
        return Ok(Logits::RandomSampling { draws, temperature, evenly_spaced });
    }
    if raw.draws.is_some() || raw.evenly_spaced.is_some() {
        return Err(at.bad(&key("draws"), "`top_k` draws nothing").fix("remove `draws` and `evenly_spaced`"));
    }
    let tails = [
        ("drop", Tail::Drop),
        ("renormalise", Tail::Renormalise),
        ("bucket", Tail::Bucket),
        ("uniform", Tail::Uniform),
    ];
    let tail = at.choose(&key("tail"), raw.tail.as_deref().unwrap_or("bucket"), &tails)?;
    let k = at.count(&key("k"), raw.k.unwrap_or(64) as usize, 1..=100_000)? as u32;
    Ok(Logits::TopK { k, tail, temperature })
}

fn prompts(at: &Checker<'_>, raw: Option<RawPrompts>, seed: u64) -> Result<Prompts> {
    let raw = at.need(&["prompts"], raw, "add a table `[prompts]` with a `task` or a `path`")?;
    let key = |name: &'static str| ["prompts", name];
    let path = at.path(&key("path"), raw.path)?;
    let kind = raw.kind.as_deref().unwrap_or(match (&raw.task, &path) {
        (Some(_), _) => "task",
        (None, Some(path)) if path.ends_with(".txt") => "text",
        (None, _) => "chat",
    });
    #[derive(Clone, Copy)]
    enum Kind {
        Task,
        Chat,
        Text,
    }
    let kinds = [("task", Kind::Task), ("chat", Kind::Chat), ("text", Kind::Text)];
    let required = "name your data, in the recipe or with `--set prompts.path=FILE_OR_FOLDER`";
    let verifier = super::verifier::verifier(at, raw.verifier, raw.task.as_deref())?;
    let source = match at.choose(&key("kind"), kind, &kinds)? {
        Kind::Task if path.is_some() => {
            return Err(at
                .bad(&key("task"), "`prompts` has both a `task` and a `path`")
                .fix("keep one of them"));
        }
        Kind::Task => {
            let task = at.need(&key("task"), raw.task, "name a task")?;
            at.choose(&key("task"), &task, &[("word_problems", ())])?;
            PromptSource::Task { task }
        }
        Kind::Chat => PromptSource::Chat { path: at.need(&key("path"), path, required)? },
        Kind::Text => PromptSource::Text { path: at.need(&key("path"), path, required)? },
    };
    let choice = data_choice(at, &source, raw.config, raw.splits)?;
    let num_examples =
        raw.num_examples.map(|n| at.count(&key("num_examples"), n, 1..=EXAMPLES_MAX)).transpose()?;
    if matches!(source, PromptSource::Task { .. }) && num_examples.is_none() {
        return Err(at.missing(&key("num_examples"), "say how many problems the task should make"));
    }
    let seed = raw.seed.unwrap_or(seed);
    at.seed(&key("seed"), seed)?;
    let num_validation =
        at.count(&key("num_validation"), raw.num_validation.unwrap_or(128), 1..=EXAMPLES_MAX)?;
    let data_class = raw.data_class.filter(|class| class != policy::PUBLIC);
    Ok(Prompts { source, choice, verifier, num_examples, num_validation, seed, data_class })
}

fn data_choice(
    at: &Checker<'_>,
    source: &PromptSource,
    config: Option<String>,
    splits: Option<RawSplits>,
) -> Result<Choice> {
    let is_task = matches!(source, PromptSource::Task { .. });
    let of_a_task = |key: &'static str| {
        at.bad(&["prompts", key], "a task has neither configurations nor splits").fix("remove it")
    };
    if is_task && config.is_some() {
        return Err(of_a_task("config"));
    }
    if is_task && splits.is_some() {
        return Err(of_a_task("splits"));
    }
    let splits = splits.unwrap_or_default();
    let splits = [
        (Split::Train, splits.train),
        (Split::Validation, splits.validation),
        (Split::HeldOut, splits.held_out),
    ];
    let splits = splits.into_iter().filter_map(|(split, name)| Some((split, name?))).collect();
    Ok(Choice { config, splits })
}

fn train(at: &Checker<'_>, raw: RawTrain, loss_functions: Vec<LossTerm>, seed: u64) -> Result<Train> {
    let key = |name: &'static str| ["train", name];
    let number = |name: &'static str, value: Option<f64>, default: f64, range: RangeInclusive<f64>| {
        at.number(&key(name), value.unwrap_or(default), range)
    };
    let steps = |name: &'static str, value: Option<u64>, default: u64| -> Result<u64> {
        let value = value.unwrap_or(default);
        at.count(&key(name), value as usize, 1..=STEPS_MAX as usize).map(|n| n as u64)
    };
    let schedules =
        [("constant", Schedule::Constant), ("linear", Schedule::Linear), ("cosine", Schedule::Cosine)];
    let schedule = raw.lr_scheduler_type.as_deref().unwrap_or("cosine");
    let seed = raw.seed.unwrap_or(seed);
    at.seed(&key("seed"), seed)?;
    if raw.packing == Some(false) {
        return Err(at
            .bad(
                &key("packing"),
                "`packing = false` is not supported: documents in a row never see each other",
            )
            .fix("remove the key"));
    }
    Ok(Train {
        seed,
        learning_rate: number("learning_rate", raw.learning_rate, 1e-3, 1e-9..=10.0)?,
        lr_scheduler_type: at.choose(&key("lr_scheduler_type"), schedule, &schedules)?,
        warmup_ratio: number("warmup_ratio", raw.warmup_ratio, 0.03, 0.0..=1.0)?,
        min_lr_ratio: number("min_lr_ratio", raw.min_lr_ratio, 0.1, 0.0..=1.0)?,
        num_train_epochs: number("num_train_epochs", raw.num_train_epochs, 1.0, 1e-6..=1e6)?,
        max_steps: raw.max_steps.map(|n| steps("max_steps", Some(n), n)).transpose()?,
        per_device_train_batch_size: at.count(
            &key("per_device_train_batch_size"),
            raw.per_device_train_batch_size.unwrap_or(8),
            1..=65_536,
        )?,
        gradient_accumulation_steps: at.count(
            &key("gradient_accumulation_steps"),
            raw.gradient_accumulation_steps.unwrap_or(1),
            1..=65_536,
        )?,
        max_length: at.count(&key("max_length"), raw.max_length.unwrap_or(1024), 8..=SIZE_MAX)?,
        gradient_checkpointing: raw.gradient_checkpointing.unwrap_or(false),
        packing: true,
        weight_decay: number("weight_decay", raw.weight_decay, 0.0, 0.0..=10.0)?,
        adam_beta1: number("adam_beta1", raw.adam_beta1, 0.9, 0.0..=0.999_999)?,
        adam_beta2: number("adam_beta2", raw.adam_beta2, 0.95, 0.0..=0.999_999_9)?,
        adam_epsilon: number("adam_epsilon", raw.adam_epsilon, 1e-8, 1e-20..=1.0)?,
        max_grad_norm: number("max_grad_norm", raw.max_grad_norm, 1.0, 1e-9..=1e9)?,
        save_steps: steps("save_steps", raw.save_steps, 100)?,
        eval_steps: steps("eval_steps", raw.eval_steps, 100)?,
        logging_steps: steps("logging_steps", raw.logging_steps, 10)?,
        save_total_limit: at.count(&key("save_total_limit"), raw.save_total_limit.unwrap_or(2), 1..=1000)?,
        lora: None,
        rollouts: None,
        loss_functions,
        hidden_alignment: None,
    })
}

fn losses(at: &Checker<'_>, raw: Option<Vec<RawLoss>>, teacher: Option<&Teacher>) -> Result<Vec<LossTerm>> {
    let logits = teacher.and_then(|t| t.logits);
    let Some(raw) = raw else {
        let function = if logits.is_some() { LossFunction::ForwardKl } else { LossFunction::HardLabels };
        return Ok(vec![LossTerm::new(function).at_temperature(logits.map_or(1.0, Logits::temperature))]);
    };
    let mut losses: Vec<LossTerm> = Vec::with_capacity(raw.len());
    for given in raw {
        let term = loss(at, given, teacher)?;
        let name = term.function.name();
        if losses.iter().any(|l| l.function == term.function && l.temperature == term.temperature) {
            return Err(at.bad(&LOSSES, format!("`{name}` stands twice")).fix("add up the weights"));
        }
        losses.push(term);
    }
    if losses.iter().all(|l| l.weight.at_the_end() == 0.0) {
        let cause = match losses.iter().all(|l| l.weight.is_zero()) {
            true => "every loss has weight 0",
            false => "every loss has weight 0 at the last step, which is what validation goes by",
        };
        return Err(at.bad(&LOSSES, cause).fix("give one of them a weight above 0"));
    }
    let scored = teacher.is_some_and(|teacher| teacher.scores.is_some());
    let without = if scored { TeacherTargets::Scored } else { TeacherTargets::Live };
    let targets = logits.map_or(without, Logits::targets);
    check_losses(&losses, targets).map_err(|refused| {
        let failure = at.bad(&LOSSES, refused.to_string());
        failure.fix(refused.fix().unwrap_or_else(|| "choose a value within these bounds".to_owned()))
    })?;
    Ok(losses)
}

/// What `alm` needs.
fn across_tokenizers(at: &Checker<'_>, train: &Train, teacher: Option<&Teacher>) -> Result<()> {
    if !train.needs_likelihoods() || teacher.is_some() {
        return Ok(());
    }
    Err(at
        .bad(&LOSSES, "`alm` needs a teacher")
        .fix("add a table `[teacher]`, or train on `hard_labels` only"))
}

fn loss(at: &Checker<'_>, given: RawLoss, teacher: Option<&Teacher>) -> Result<LossTerm> {
    let logits = teacher.and_then(|teacher| teacher.logits);
    let function = loss_function(at, &given)?;
    let (name, softened) = (function.name(), function.divergence().is_some());
    let is_scored = function == LossFunction::SampledReverseKl && teacher.is_some_and(|t| t.scores.is_some());
    if function.asks_teacher() && logits.is_none() && !is_scored {
        let over_wire = teacher.is_some_and(|teacher| teacher.wire.is_some());
        let fix = match function {
            LossFunction::SampledReverseKl if over_wire => {
                "add `tokenizer = \"DIRECTORY\"` to `[teacher]`, whose `tokenizer.json` is teacher's and student's; docs/on-policy.md"
            }
            _ if over_wire => {
                "take `sampled_reverse_kl`: of a teacher behind endpoints only log-probabilities of the student's own \
                 tokens can be had; docs/on-policy.md"
            }
            LossFunction::ForwardKl => {
                "add `[teacher.logits]`, for example `logits = { kind = \"random_sampling\", draws = 50 }`"
            }
            _ => "add `[teacher.logits]`, for example `logits = { kind = \"live\" }`",
        };
        return Err(at.bad(&LOSSES, format!("`{name}` needs the teacher's distributions")).fix(fix));
    }
    let weight = weight(at, &LOSSES, given.weight)?;
    let default = match function {
        LossFunction::Alm => ALM_TEMPERATURE,
        _ => logits.filter(|_| softened).map_or(1.0, Logits::temperature),
    };
    let temperature = given.temperature.unwrap_or(default);
    // A live teacher's distributions are softened as each loss wants them; hard labels never are.
    if softened && temperature != default && !logits.is_some_and(Logits::is_live) {
        let cause = format!("`{name}` at temperature {temperature} does not fit targets at {default}");
        return Err(at.bad(&LOSSES, cause).fix(
            "set `teacher.logits.temperature` to the same value, or take the teacher live: `logits = { kind = \"live\" }`",
        ));
    }
    Ok(LossTerm { function, weight, temperature })
}

pub(super) fn weight(at: &Checker<'_>, keys: &[&str], given: Option<RawWeight>) -> Result<LossWeight> {
    let number = |weight| at.number(keys, weight, WEIGHTS);
    Ok(match given.unwrap_or(RawWeight::Constant(1.0)) {
        RawWeight::Constant(weight) => LossWeight::Constant(number(weight)?),
        RawWeight::Linear(RawLine { from, to }) => {
            LossWeight::Linear { from: number(from)?, to: number(to)? }
        }
    })
}

fn loss_function(at: &Checker<'_>, given: &RawLoss) -> Result<LossFunction> {
    #[derive(Clone, Copy)]
    enum Kind {
        Plain(LossFunction),
        Jsd,
        Dpo,
        Gold,
        Skew(fn(f64) -> LossFunction),
    }
    let known = [
        ("forward_kl", Kind::Plain(LossFunction::ForwardKl)),
        ("reverse_kl", Kind::Plain(LossFunction::ReverseKl)),
        ("jsd", Kind::Jsd),
        ("skew_kl", Kind::Skew(|alpha| LossFunction::SkewKl { alpha })),
        ("skew_reverse_kl", Kind::Skew(|alpha| LossFunction::SkewReverseKl { alpha })),
        ("tvd", Kind::Plain(LossFunction::Tvd)),
        ("uld", Kind::Plain(LossFunction::Uld)),
        ("gold", Kind::Gold),
        ("alm", Kind::Plain(LossFunction::Alm)),
        ("dpo", Kind::Dpo),
        ("sampled_reverse_kl", Kind::Plain(LossFunction::SampledReverseKl)),
        ("hard_labels", Kind::Plain(LossFunction::HardLabels)),
        ("cross_entropy", Kind::Plain(LossFunction::HardLabels)),
    ];
    let name = at.need(&LOSSES, given.function.as_deref(), "give each loss a `function`")?;
    let kind = at.choose(&LOSSES, name, &known)?;
    let foreign = |key: &str, of: &str| {
        Err(at
            .bad(&LOSSES, format!("`{key}` belongs to {of}, not to `{name}`"))
            .fix(format!("remove `{key}`")))
    };
    if given.alpha.is_some() && !matches!(kind, Kind::Skew(_)) {
        return foreign("alpha", "`skew_kl` and `skew_reverse_kl`");
    }
    match (given.jsd_teacher_weight, given.beta) {
        (Some(_), Some(_)) => Err(at
            .bad(&LOSSES, "`beta` is TRL's name of `jsd_teacher_weight`: a loss has one of them")
            .fix("remove one of them")),
        (Some(_), _) if !matches!(kind, Kind::Jsd) => foreign("jsd_teacher_weight", "`jsd`"),
        (_, Some(_)) if !matches!(kind, Kind::Jsd | Kind::Dpo | Kind::Gold) => {
            foreign("beta", "`jsd`, `gold` and `dpo`")
        }
        (_, beta) if matches!(kind, Kind::Gold) => Ok(LossFunction::Gold { beta: beta.unwrap_or(0.5) }),
        (_, beta) if matches!(kind, Kind::Dpo) => Ok(LossFunction::Dpo { beta: beta.unwrap_or(0.1) }),
        // As TRL has it: `jsd` is 0 at both ends, and another loss is meant there.
        (_, Some(0.0)) => Ok(LossFunction::ForwardKl),
        (_, Some(1.0)) => Ok(LossFunction::ReverseKl),
        (ours, trls) => Ok(match kind {
            Kind::Plain(function) => function,
            Kind::Jsd => LossFunction::Jsd { jsd_teacher_weight: ours.or(trls).unwrap_or(0.5) },
            Kind::Skew(of) => of(given.alpha.unwrap_or(0.1)),
            Kind::Dpo | Kind::Gold => unreachable!("it has its beta"),
        }),
    }
}

fn evaluate(
    at: &Checker<'_>,
    raw: RawEvaluate,
    teacher: Option<&Teacher>,
    prompts: &Prompts,
    train: &Train,
) -> Result<Evaluate> {
    let key = |name: &'static str| ["evaluate", name];
    let names = [("undistilled", Control::Undistilled), ("traces_only", Control::TracesOnly)];
    let distils = train.distils();
    let controls = match raw.controls {
        Some(given) => {
            given.iter().map(|name| at.choose(&key("controls"), name, &names)).collect::<Result<Vec<_>>>()?
        }
        None if teacher.is_none() => Vec::new(),
        None => {
            let has_targets = matches!(prompts.source, PromptSource::Task { .. });
            let undistilled = has_targets.then_some(Control::Undistilled);
            let traces_only = distils.then_some(Control::TracesOnly);
            undistilled.into_iter().chain(traces_only).collect()
        }
    };
    if teacher.is_none() && !controls.is_empty() {
        return Err(at
            .bad(&key("controls"), "without a teacher there is nothing to control for")
            .fix("remove `controls`"));
    }
    let default_tokens = teacher.map_or(512, |t| t.max_tokens);
    Ok(Evaluate {
        num_examples: at.count(&key("num_examples"), raw.num_examples.unwrap_or(1000), 1..=EXAMPLES_MAX)?,
        max_tokens: at.count(&key("max_tokens"), raw.max_tokens.unwrap_or(default_tokens), 1..=SIZE_MAX)?,
        own_text_examples: own_text_examples(at, raw.own_text_examples, teacher, train)?,
        controls,
    })
}

/// Where all that is learned is own text, a run is judged by it.
fn own_text_examples(
    at: &Checker<'_>,
    given: Option<usize>,
    teacher: Option<&Teacher>,
    train: &Train,
) -> Result<usize> {
    let key = ["evaluate", "own_text_examples"];
    let default = if train.only_own_text() { OWN_TEXTS } else { 0 };
    let n = at.count(&key, given.unwrap_or(default), 0..=EXAMPLES_MAX)?;
    if n > 0 && teacher.is_none() {
        return Err(at.bad(&key, "own texts are measured against a teacher").fix("remove the key"));
    }
    if n > 0 && teacher.is_some_and(|teacher| teacher.wire.is_some() && teacher.scores.is_none()) {
        let cause =
            "a teacher behind endpoints does not say what it thinks of own texts unless it scores them";
        return Err(at
            .bad(&key, cause)
            .fix("remove the key, or add `tokenizer` to `[teacher]`; docs/on-policy.md"));
    }
    Ok(n)
}

fn release(at: &Checker<'_>, mut raw: RawRelease, recipe_name: &str) -> Result<Release> {
    let signing = signing::signing(at, &mut raw)?;
    let timestamps = timestamps::timestamps(at, &mut raw)?;
    let name = raw.name.unwrap_or_else(|| format!("{recipe_name}-student"));
    at.name(&["release", "name"], &name)?;
    let plain = [("f32", WeightType::F32), ("f16", WeightType::F16), ("bf16", WeightType::Bf16)];
    let quantised = ("q8_0", WeightType::Q8_0);
    let any: Vec<_> = plain.iter().copied().chain([quantised]).collect();
    Ok(Release {
        name,
        licence: raw.licence.or(raw.license),
        dtype: at.choose(&["release", "dtype"], raw.dtype.as_deref().unwrap_or("f32"), &plain)?,
        gguf: at.choose(&["release", "gguf"], raw.gguf.as_deref().unwrap_or("f32"), &any)?,
        signing,
        timestamps,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{load, loaded};

    const WHOLE: &str = r#"
        seed = 3
        [student]
        kind = "from_scratch"
        hidden_size = 96
        num_hidden_layers = 2
        num_attention_heads = 4
        intermediate_size = 256
        [teacher]
        kind = "local"
        path = "assets/teacher"
        model = "us:teacher"
        logits = { kind = "random_sampling", draws = 50, temperature = 1 }
        [prompts]
        task = "word_problems"
        num_examples = 100
        [train]
        loss_functions = [{ function = "forward_kl" }, { function = "hard_labels", weight = 0.5 }]
        [policy.declare."us:teacher"]
        owner = "us"
        licence = "Apache-2.0"
    "#;

    #[test]
    fn a_resolved_recipe_reads_back_as_itself() {
        let recipe = loaded(WHOLE, &[]);
        assert_eq!(recipe.train.seed, 3);
        assert_eq!(recipe.evaluate.controls, [Control::Undistilled, Control::TracesOnly]);
    }

    #[test]
    fn a_recipe_of_a_teacher_alone_keeps_the_licence_of_its_text() {
        let text = "[teacher]\nkind = \"local\"\npath = \"teacher\"\n[prompts]\npath = \"rows.jsonl\"\n";
        let plain = loaded(text, &[]).to_toml();
        assert!(!plain.contains("[release]"), "{plain}");
        loaded(text, &["release.licence=CC-BY-4.0"]);
    }

    #[test]
    fn a_data_sets_configuration_and_splits_are_chosen() {
        let text = "[teacher]\nkind = \"local\"\npath = \"teacher\"\n[prompts]\npath = \"data\"\nconfig = \"main\"\n";
        let recipe =
            loaded(&format!("{text}splits = {{ train = \"train_sft\", held_out = \"test_sft\" }}\n"), &[]);
        let splits = [(Split::Train, "train_sft".to_owned()), (Split::HeldOut, "test_sft".to_owned())].into();
        assert_eq!(recipe.prompts.choice, Choice { config: Some("main".into()), splits });
        let unknown = load(text, &["prompts.splits.test=\"x\""]).expect_err("no such part").to_string();
        assert!(unknown.contains("unknown key `prompts.splits.test`"), "{unknown}");
        let task = text.replace("path = \"data\"", "task = \"word_problems\"\nnum_examples = 8");
        let refused = load(&task, &[]).expect_err("a task has no files").to_string();
        assert!(refused.contains("a task has neither configurations nor splits"), "{refused}");
    }

    #[test]
    fn a_live_teacher_gives_every_loss_and_two_temperatures() {
        let text = WHOLE
            .replace("{ kind = \"random_sampling\", draws = 50, temperature = 1 }", "{ kind = \"live\" }");
        let losses = r#"train.loss_functions=[
            { function = "jsd" }, { function = "jsd", beta = 0.25, temperature = 2 }, { function = "jsd", beta = 0 },
            { function = "jsd", beta = 1, weight = { from = 0, to = 2 } }, { function = "skew_kl" },
            { function = "skew_reverse_kl", alpha = 0.3 }, { function = "tvd" }, { function = "hard_labels" }]"#;
        let recipe = loaded(&text, &[&losses.replace('\n', "")]);
        let jsd = |jsd_teacher_weight| LossTerm::new(LossFunction::Jsd { jsd_teacher_weight });
        let rising = LossWeight::Linear { from: 0.0, to: 2.0 };
        let expected = [
            jsd(0.5),
            jsd(0.25).at_temperature(2.0),
            LossTerm::new(LossFunction::ForwardKl),
            LossTerm { weight: rising, ..LossTerm::new(LossFunction::ReverseKl) },
            LossTerm::new(LossFunction::SkewKl { alpha: 0.1 }),
            LossTerm::new(LossFunction::SkewReverseKl { alpha: 0.3 }),
            LossTerm::new(LossFunction::Tvd),
            LossTerm::new(LossFunction::HardLabels),
        ];
        assert_eq!(recipe.train.loss_functions, expected);
        assert!(recipe.targets().is_some_and(Logits::is_live) && recipe.cached_targets().is_none());
        assert_eq!(recipe.evaluate.controls, [Control::Undistilled, Control::TracesOnly]);
        let refused = [
            ("[{ function = \"jsd\", beta = 0.001 }]", "leaves `jsd` next to nothing"),
            ("[{ function = \"jsd\", jsd_teacher_weight = 1 }]", "leaves `jsd` next to nothing"),
            ("[{ function = \"skew_kl\", alpha = 0.95 }]", "alpha of `skew_kl` is 0.95"),
            ("[{ function = \"jsd\" }, { function = \"jsd\", beta = 0.5 }]", "stands twice"),
        ];
        for (losses, cause) in refused {
            let shown =
                load(&text, &[&format!("train.loss_functions={losses}")]).expect_err(cause).to_string();
            assert!(shown.contains(cause) && shown.contains("fix: "), "{shown}");
        }
        let top_k = "teacher.logits={ kind = \"top_k\", temperature = 2 }";
        let two = "train.loss_functions=[{ function = \"jsd\" }, { function = \"tvd\", temperature = 1 }]";
        let shown = load(&text, &[top_k, two]).unwrap_err().to_string();
        assert!(shown.contains("`tvd` at temperature 1 does not fit targets at 2"), "{shown}");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_key() {
        let refused = [
            ("teacher.api_key=sk-123", "a secret does not belong in a recipe"),
            ("train.learning_rate=nan", "`train.learning_rate` is NaN"),
            ("train.loss_functions=[{ function = \"reverse_kl\" }]", "unbiased for `forward_kl` only"),
            ("train.loss_functions=[{ function = \"reversed_kl\" }]", "did you mean `reverse_kl`?"),
            ("train.loss_functions=[{ function = \"tvd\", beta = 0.5 }]", "`beta` belongs to `jsd`"),
            ("train.loss_functions=[{ function = \"gold\" }]", "another vocabulary that is at hand"),
            ("train.loss_functions=[{ function = \"gold\", beta = 0.999 }]", "next to nothing"),
            (
                "train.loss_functions=[{ function = \"jsd\", beta = 1, jsd_teacher_weight = 1 }]",
                "one of them",
            ),
            (
                "train.loss_functions=[{ function = \"forward_kl\", weight = { from = 1, to = 0 } }]",
                "last step",
            ),
            ("train.loss_functions=[{ function = \"hard_labels\", temperature = 2 }]", "not softened"),
            ("teacher.logits={ kind = \"live\", k = 3 }", "nothing is stored"),
            ("train.loss_functions=[{ function = \"forward_kl\", temperature = 2 }]", "does not fit"),
            ("train.lr_scheduler_type=cosin", "cannot be `cosin`"),
            ("student.num_key_value_heads=3", "cannot serve"),
            ("student.kind=from_layers", "the student's shape follows"),
            ("prompts.path=${HOME}/x", "only secrets"),
            ("evaluate.controls=[\"undistiled\"]", "cannot be `undistiled`"),
            ("policy.declare.\"x\".owner=me", "is missing"),
            ("name=../x", "cannot name a run"),
            ("seed=-1", "invalid value"),
        ];
        for (set, cause) in refused {
            let shown = load(WHOLE, &[set]).expect_err(set).to_string();
            assert!(shown.contains(cause), "{set}: {shown}");
            assert!(shown.contains("-->"), "{set}: {shown}");
        }
    }
}

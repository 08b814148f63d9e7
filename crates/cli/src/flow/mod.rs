//! The flow of `run`: one file per stage.
//!
//! ```text
//! gate → prompts → teach → feedback → curate → logits, logprobs (cached) → prune (a pruned student) → train (student, controls) → measure → divergence → own-text → report → release
//! ```
//!
//! A stage reads what the ones before it committed, writes its own output under a temporary name, renames
//! it, and then records digests of what went in and came out. A stage whose inputs are on record is
//! skipped. Verbs for single stages call the same functions and stop earlier.

mod across;
mod batch;
mod curate;
mod data;
mod describe;
mod divergence;
mod documents;
pub(crate) mod estimate;
pub(crate) mod explain;
mod feedback;
pub(crate) mod gate;
pub(crate) mod hidden;
pub(crate) mod logbook;
mod logits;
mod logprobs;
mod measure;
mod memory;
mod obligations;
mod own_text;
mod prompt_pii;
mod prune;
pub(crate) mod release;
pub(crate) mod replay;
pub(crate) mod report;
mod revisions;
mod rows;
mod scoring;
pub(crate) mod signing;
mod spool;
pub(crate) mod stamps;
pub(crate) mod start;
pub(crate) mod steps;
mod teach;
pub(crate) mod teachers;
mod tools;
pub(crate) mod train;
pub(crate) mod trial;
pub(crate) mod weights;
mod wire;
mod wire_estimate;
pub(crate) mod wording;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use stillroom_core::{Digest, Digester};
use stillroom_corpus::Verifier;
use stillroom_evaluate::{Contender, Report};
use stillroom_formats::ModelFiles;
use stillroom_governance::Decision;
use stillroom_governance::keys::Signer;
use stillroom_kernels::Device;
use stillroom_store::{Check, EventLog, Freshness, PlannedStage, RunDir, digest_file};

pub(crate) use report::{rfc3339, verdict_of};

use crate::args::{Machine, RecipeArgs};
use crate::failure::{Exit, Failure, Result};
use crate::flow::logbook::Logbook;
use crate::flow::stamps::Stamper;
use crate::models::{self, Model};
use crate::recipe::{Recipe, Source};
use crate::terminal::Progress;
use crate::verifiers;

/// How far a verb goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Until {
    Teach,
    Curate,
    Train,
    Evaluate,
    Release,
}

impl Until {
    fn verb(self) -> &'static str {
        match self {
            Until::Teach => "teach",
            Until::Curate => "curate",
            Until::Train => "train",
            Until::Evaluate => "evaluate",
            Until::Release => "run",
        }
    }
}

/// A stage that was gone through, for the report.
#[derive(Clone, Debug)]
pub(crate) struct Timed {
    pub(crate) stage: String,
    pub(crate) wall_s: f64,
    pub(crate) skipped: bool,
}

/// One run of a recipe in its directory.
pub(crate) struct Flow {
    pub(crate) recipe: Recipe,
    pub(crate) source: Source,
    pub(crate) run: RunDir,
    pub(crate) progress: Progress,
    pub(crate) device: Arc<Device>,
    pub(crate) trial: bool,
    pub(crate) times: Vec<Timed>,
    /// What judges replies, where the recipe has it.
    judge: Option<Arc<dyn Verifier>>,
    /// Who signs what the run says, where the recipe has it.
    signer: Option<Arc<Signer>>,
    decision: Decision,
    events: EventLog,
    /// None where nothing new happens.
    logbook: Option<Logbook>,
    /// Of models that the run is given, by where they lie.
    input_digests: RefCell<BTreeMap<PathBuf, Digest>>,
    teacher: Option<Rc<Model>>,
    /// Teachers beside it.
    others: Vec<Rc<Model>>,
}

/// What a verb asks for.
pub(crate) struct Request<'a> {
    pub(crate) recipe: &'a RecipeArgs,
    pub(crate) output: Option<&'a Path>,
    pub(crate) trial: Option<Duration>,
    pub(crate) machine: &'a Machine,
    pub(crate) quiet: bool,
    pub(crate) until: Until,
}

/// Where a run got to.
pub(crate) struct Reached {
    pub(crate) output: PathBuf,
    /// There from the report on.
    pub(crate) report: Option<Report>,
}

/// Goes through the stages that a verb asks for.
pub(crate) fn run(request: &Request<'_>) -> Result<Reached> {
    let (mut recipe, source) = Recipe::load(&request.recipe.recipe, &request.recipe.overrides)?;
    let output = output_of(request.output, &recipe);
    let decision = gate::pass(&recipe, &source, &output)?;
    gate::egress(&recipe, &source)?;
    check_student(&recipe, request.until)?;
    hidden::aligned_layers(&recipe, &source)?;
    teachers::check_tokenizers(&recipe, &source)?;
    start::shared_ids(&recipe, &source)?;
    let judge = verifiers::verifier(&recipe, &source, request.recipe.allow_commands)?;
    let signer = signing::signer(&recipe, &source, request.recipe.allow_commands)?.map(Arc::new);
    let device = models::device(request.machine);
    if let Some(time) = request.trial {
        recipe = trial::shrink(&recipe, &source, &device, time)?;
    }
    let run = RunDir::open(&output)?;
    let stamper = Stamper::open(&recipe, &source, &decision, &run.dir(logbook::FOLDER)?)?;
    let (events, logbook) = (run.events()?, Logbook::open(&run, signer.clone(), stamper)?);
    let mut flow = Flow {
        recipe,
        source,
        run,
        progress: Progress::new(request.quiet),
        device,
        trial: request.trial.is_some(),
        times: Vec::new(),
        judge,
        signer,
        decision: decision.clone(),
        events,
        logbook: Some(logbook),
        input_digests: RefCell::default(),
        teacher: None,
        others: Vec::new(),
    };
    flow.open(&decision)?;
    let report = flow.go(request.until, &decision).map_err(|failure| {
        let (verb, recipe) = (request.until.verb(), flow.source.path.display());
        let again = format!("stillroom {verb} {recipe} --output {}", output.display());
        failure.next(format!("{again}    (continues where it stopped)"))
    })?;
    Ok(Reached { output, report })
}

/// A recipe of a teacher alone goes no further than its text.
fn check_student(recipe: &Recipe, until: Until) -> Result<()> {
    if !recipe.student.is_nobody() || until <= Until::Curate {
        return Ok(());
    }
    Err(Failure::new(Exit::BadRecipe, "the recipe has nobody to teach")
        .fix("add a table `[student]` with a `kind`; without one, `stillroom teach` and `curate` work"))
}

/// `--output`, else the recipe's, else `runs/NAME`.
pub(crate) fn output_of(given: Option<&Path>, recipe: &Recipe) -> PathBuf {
    match (given, &recipe.output_dir) {
        (Some(path), _) => path.to_path_buf(),
        (None, Some(path)) => PathBuf::from(path),
        (None, None) => Path::new("runs").join(&recipe.name),
    }
}

impl Flow {
    /// Writes down what is about to be done.
    fn open(&mut self, decision: &Decision) -> Result<()> {
        let recipe = self.recipe.to_toml();
        self.write_json("licence.json", decision)?;
        self.log_decision()?;
        // The plan measures the machine, so it differs each time; a run that continues keeps its own.
        let continues = std::fs::read_to_string(self.run.path("recipe.toml")?).is_ok_and(|old| old == recipe);
        if !continues || !self.run.path("plan.json")?.exists() {
            let plan = estimate::estimate(&self.recipe, &self.source, &self.device)?;
            self.write_json("plan.json", &plan)?;
        }
        self.run.write("recipe.toml", recipe.as_bytes())?;
        let verdict = decision.verdict.as_str();
        self.progress.line(&format!("gate: {verdict}"));
        if let Some(open) = gate::open_places_in_words(&self.recipe) {
            self.progress.line(&format!("gate: {open}"));
        }
        self.event(json!({
            "event": "run_started",
            "recipe": self.recipe.name,
            "path": std::path::absolute(&self.source.path).unwrap_or_else(|_| self.source.path.clone()),
            "trial": self.trial,
            "verdict": verdict,
            "version": env!("CARGO_PKG_VERSION"),
        }))
    }

    fn go(&mut self, until: Until, decision: &Decision) -> Result<Option<Report>> {
        self.prompts()?;
        self.teach()?;
        if until >= Until::Curate {
            if self.drafts() {
                self.prune()?;
            }
            self.feedback()?;
            self.curate()?;
            self.describe()?;
        }
        if until >= Until::Train {
            self.logits()?;
            self.logprobs()?;
            if !self.drafts() {
                self.prune()?;
            }
            self.train_one(Contender::Student)?;
        }
        if until >= Until::Evaluate {
            // The student's own result first: the controls take longer than the student.
            self.measure_where(measure::is_own)?;
            self.say_own_result()?;
        }
        if until >= Until::Train {
            self.train_controls()?;
        }
        if until < Until::Evaluate {
            return Ok(None);
        }
        self.measure_where(|contender| !measure::is_own(contender))?;
        self.diverge()?;
        self.own_text()?;
        let report = self.report(decision)?;
        if until >= Until::Release {
            self.release(decision, &report)?;
        }
        Ok(Some(report))
    }

    /// Does a stage, unless it is done already.
    ///
    /// `settings` is all that the outputs depend on besides the outputs of the stages in `after`.
    pub(crate) fn stage(
        &mut self,
        name: &str,
        settings: &impl Serialize,
        after: &[&str],
        outputs: &[&str],
        work: impl FnOnce(&mut Flow) -> Result<()>,
    ) -> Result<()> {
        let planned = PlannedStage {
            name: name.to_owned(),
            settings: digest_of(settings),
            after: after.iter().map(|&stage| stage.to_owned()).collect(),
        };
        let inputs = self.run.stage_inputs(&planned)?;
        let inputs = inputs.unwrap_or_else(|| panic!("stage `{name}` runs before those that it follows"));
        let started = Instant::now();
        let why = match self.run.freshness(name, &inputs, Check::Sizes)? {
            Freshness::Fresh(record) => {
                self.log_stage(&record)?;
                self.times.push(Timed { stage: name.to_owned(), wall_s: 0.0, skipped: true });
                self.progress.line(&format!("{name}: kept"));
                return self.event(json!({ "event": "stage_kept", "stage": name }));
            }
            Freshness::Stale(why) => why,
        };
        self.progress.update(&format!("{name} …"));
        self.event(json!({ "event": "stage_started", "stage": name, "because": why.to_string() }))?;
        work(self)?;
        self.log_rows(name)?;
        let record = self.run.finish_stage(name, inputs, outputs, unix_s())?;
        self.log_stage(&record)?;
        let wall_s = started.elapsed().as_secs_f64();
        self.times.push(Timed { stage: name.to_owned(), wall_s, skipped: false });
        self.event(json!({ "event": "stage_finished", "stage": name, "wall_s": wall_s }))?;
        self.events.sync()?;
        self.progress.line(&format!("{name}: done in {wall_s:.1} s"));
        Ok(())
    }

    /// Appends to `events.jsonl`, with the time.
    pub(crate) fn event(&mut self, event: Value) -> Result<()> {
        let mut event = event;
        if let Value::Object(fields) = &mut event {
            fields.insert("unix_s".to_owned(), json!(unix_s()));
        }
        Ok(self.events.append(&event)?)
    }

    /// The teacher, loaded where it is not yet.
    pub(crate) fn teacher(&mut self) -> Result<Rc<Model>> {
        if let Some(teacher) = &self.teacher {
            return Ok(Rc::clone(teacher));
        }
        let files = self.teacher_files()?;
        self.progress.update("loading the teacher …");
        let teacher = Rc::new(models::load_files(files, Arc::clone(&self.device))?);
        self.teacher = Some(Rc::clone(&teacher));
        Ok(teacher)
    }

    /// Frees the memory of all teachers.
    pub(crate) fn forget_teacher(&mut self) {
        self.teacher = None;
        self.others.clear();
    }

    pub(crate) fn teacher_files(&self) -> Result<ModelFiles> {
        teacher_files(&self.recipe, &self.source)
    }

    /// Digest of the teacher's weights, or of what names one behind endpoints.
    pub(crate) fn teacher_digest(&self) -> Result<Digest> {
        if let Some((teacher, wire)) = self.recipe.teacher.as_ref().and_then(|t| Some((t, t.wire.as_ref()?)))
        {
            return Ok(digest_of(&self.wire_identity(teacher, wire)?));
        }
        let path =
            self.recipe.teacher.as_ref().and_then(|teacher| teacher.path.as_deref()).unwrap_or_default();
        self.input_digest(&self.source.resolve_path(path))
    }

    /// Digest of a model that the run is given: taken once, for as long as the run goes on.
    pub(crate) fn input_digest(&self, path: &Path) -> Result<Digest> {
        if let Some(&known) = self.input_digests.borrow().get(path) {
            return Ok(known);
        }
        let digest = weights_digest(path)?;
        self.input_digests.borrow_mut().insert(path.to_path_buf(), digest);
        Ok(digest)
    }

    /// Writes a JSON file of the run.
    pub(crate) fn write_json(&self, relative: &str, value: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(value).map_err(|e| unwritable(relative, &e))?;
        text.push(b'\n');
        self.run.write(relative, &text)?;
        Ok(())
    }

    pub(crate) fn read_json<T: DeserializeOwned>(&self, relative: &str) -> Result<T> {
        json_file(&self.run.path(relative)?)
    }

    /// Writes one JSON value per line.
    pub(crate) fn write_lines<T: Serialize>(&self, relative: &str, values: &[T]) -> Result<()> {
        let mut text = Vec::new();
        for value in values {
            serde_json::to_writer(&mut text, value).map_err(|e| unwritable(relative, &e))?;
            text.push(b'\n');
        }
        self.run.write(relative, &text)?;
        Ok(())
    }

    pub(crate) fn read_lines<T: DeserializeOwned>(&self, relative: &str) -> Result<Vec<T>> {
        self.lines_of(relative)?.collect()
    }

    /// The JSON values of a file, one at a time.
    pub(crate) fn lines_of<T: DeserializeOwned>(
        &self,
        relative: &str,
    ) -> Result<impl Iterator<Item = Result<T>> + use<T>> {
        json_lines(self.run.path(relative)?)
    }
}

/// What a file of a run says as JSON.
pub(crate) fn json_file<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(|e| Failure::io("read", path, &e))?;
    serde_json::from_slice(&bytes).map_err(|e| unreadable(path, &e))
}

/// The JSON values of a file, one at a time.
pub(crate) fn json_lines<T: DeserializeOwned>(
    path: PathBuf,
) -> Result<impl Iterator<Item = Result<T>> + use<T>> {
    let file = File::open(&path).map_err(|e| Failure::io("read", &path, &e))?;
    Ok(BufReader::new(file).lines().map(move |line| {
        let line = line.map_err(|e| Failure::io("read", &path, &e))?;
        serde_json::from_str(&line).map_err(|e| unreadable(&path, &e))
    }))
}

/// The files in a folder, in order of name.
pub(crate) fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let listed: std::io::Result<Vec<PathBuf>> =
        std::fs::read_dir(folder).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    let mut files = listed.map_err(|e| Failure::io("list", folder, &e))?;
    files.retain(|path| path.is_file());
    files.sort();
    Ok(files)
}

fn unwritable(relative: &str, error: &serde_json::Error) -> Failure {
    Failure::new(Exit::Failed, format!("`{relative}` cannot be written as JSON: {error}"))
}

fn unreadable(path: &Path, error: &serde_json::Error) -> Failure {
    Failure::new(Exit::BadData, format!("`{}` is damaged: {error}", path.display()))
        .fix("remove its record in `stages/` and run the same command again")
}

/// The files of a local teacher.
pub(crate) fn teacher_files(recipe: &Recipe, source: &Source) -> Result<ModelFiles> {
    let path = recipe.teacher.as_ref().and_then(|teacher| teacher.path.as_deref());
    let path = path.ok_or_else(|| Failure::new(Exit::BadRecipe, "the recipe has no local teacher"))?;
    let path = source.resolve_path(path);
    if !path.exists() {
        let cause = format!("the teacher is not at `{}`", path.display());
        return Err(Failure::new(Exit::Io, cause)
            .code("no-model")
            .at(source.place(&["teacher", "path"]))
            .fix("check the path, or fetch the model first; the recipe's head says how"));
    }
    ModelFiles::open(&path).map_err(Failure::from)
}

/// Digest of the files that a model consists of: names and contents, in order of name.
fn weights_digest(path: &Path) -> Result<Digest> {
    let name_of = |file: &Path| file.file_name().map(|name| name.to_string_lossy().into_owned());
    if !path.is_dir() {
        let (name, digest) = (name_of(path).unwrap_or_default(), digest_file(path)?.0);
        return Ok(digest_of_files([(name.as_str(), digest)].into_iter()));
    }
    let mut files = Vec::new();
    for file in files_in(path)? {
        let name = name_of(&file).unwrap_or_default();
        if is_of_model(&name) {
            files.push((name, digest_file(&file)?.0));
        }
    }
    Ok(tree_digest(files.iter().map(|(name, digest)| (name.as_str(), *digest))))
}

/// The same of a directory, by the digests of its files in order of their paths in it.
pub(crate) fn tree_digest<'a>(files: impl Iterator<Item = (&'a str, Digest)>) -> Digest {
    digest_of_files(files.filter(|(name, _)| is_of_model(name)))
}

fn is_of_model(path: &str) -> bool {
    let extension = Path::new(path).extension().and_then(|extension| extension.to_str());
    !path.contains('/') && extension.is_some_and(|e| ["safetensors", "json", "jinja"].contains(&e))
}

fn digest_of_files<'a>(files: impl Iterator<Item = (&'a str, Digest)>) -> Digest {
    let mut digester = Digester::new();
    for (name, digest) in files {
        digester.update(&(name.len() as u64).to_le_bytes());
        digester.update(name.as_bytes());
        digester.update(digest.as_bytes());
    }
    digester.finish()
}

/// Digest of the running program.
pub(crate) fn binary_digest() -> Option<Digest> {
    std::env::current_exe().ok().and_then(|path| digest_file(&path).ok()).map(|(digest, _)| digest)
}

/// Digest of settings as JSON; fields keep their order.
pub(crate) fn digest_of(settings: &impl Serialize) -> Digest {
    let text = serde_json::to_vec(settings).expect("settings are plain data");
    Digest::of(&text)
}

/// Seconds since 1970-01-01 UTC.
pub(crate) fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

//! Steps of a finished run done again, and held against its record, bit for bit.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use stillroom_core::CounterRng;
use stillroom_distill::{Again, DistillError, TrainEvent, kept_steps, replay};
use stillroom_evaluate::Contender;
use stillroom_store::{EventReader, RunDir, create_dir_durable};

use crate::args::Machine;
use crate::failure::{Exit, Failure, Result};
use crate::flow::steps::{self, Steps};
use crate::flow::weights::ReleasedWeights;
use crate::flow::{Flow, gate};
use crate::models;
use crate::recipe::{Recipe, Source};
use crate::terminal::Progress;
use crate::verifiers;

/// Where steps are done again; removed behind them, or by the next run.
const SCRATCH: &str = ".partial-replay";

/// What is to be done again.
pub(crate) struct Replay<'a> {
    pub(crate) run: &'a Path,
    /// Segments, drawn from all that are on record; each once.
    pub(crate) segments: usize,
    pub(crate) seed: u64,
    /// The recipe, where it lies elsewhere than the run says.
    pub(crate) recipe: Option<&'a Path>,
    pub(crate) machine: &'a Machine,
    pub(crate) quiet: bool,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Replayed {
    /// Model by model, in order.
    pub(crate) segments: Vec<Segment>,
    /// Of how many.
    pub(crate) recorded: usize,
    /// Optimiser steps that were done again; more than the segments have, where no checkpoint was kept at their start.
    pub(crate) steps: u64,
    /// The first thing that came out otherwise.
    pub(crate) difference: Option<String>,
    pub(crate) seed: u64,
    /// Whether the release is what the student's training chose.
    pub(crate) weights: Option<ReleasedWeights>,
}

/// Steps of a model's training: behind `from`, up to `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Segment {
    pub(crate) model: Contender,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// Does `asked.segments` segments again, of those of all models between one checkpoint on record and the next.
pub(crate) fn again(asked: &Replay<'_>) -> Result<Replayed> {
    let mut flow = open(asked)?;
    let (models, mut records, mut all) = (flow.trained(), Vec::new(), Vec::new());
    for &model in &models {
        let record = record_of(asked.run, model)?;
        all.extend(record.segments().into_iter().map(|(from, to)| Segment { model, from, to }));
        records.push(record);
    }
    let drawn = draw(&all, asked.segments, asked.seed);
    let scratch = flow.run.dir(SCRATCH)?;
    let (mut steps, mut difference) = (0, None);
    for (&model, record) in models.iter().zip(&records) {
        let of_model: Vec<Segment> = drawn.iter().filter(|segment| segment.model == model).copied().collect();
        if of_model.is_empty() || difference.is_some() {
            continue;
        }
        let done = flow.repeat(model, record, &of_model, &scratch);
        drop(std::fs::remove_dir_all(&scratch));
        let (more, differs) = done?;
        steps += more;
        difference = differs.map(|what| format!("{}: {what}", model.key()));
    }
    drop(std::fs::remove_dir_all(&scratch));
    let weights = flow.check_weights()?;
    let seed = asked.seed;
    Ok(Replayed { segments: drawn, recorded: all.len(), steps, difference, seed, weights })
}

fn record_of(run: &Path, model: Contender) -> Result<Steps> {
    let path = run.join(steps::path_of(model));
    let record = Steps::read(&path).map_err(|error| {
        Failure::from(error)
            .code("no-record")
            .fix("run the recipe again with this version: it keeps a record of each step")
    })?;
    if record.checkpoints.is_empty() || record.finished.is_none() {
        return Err(Failure::new(Exit::BadData, "no training that came to its end is on record")
            .code("no-record")
            .at(path.display().to_string()));
    }
    Ok(record)
}

/// `n` different ones, in their order.
fn draw(all: &[Segment], n: usize, seed: u64) -> Vec<Segment> {
    let mut order: Vec<usize> = (0..all.len()).collect();
    CounterRng::new(&[seed]).shuffle(&mut order);
    let chosen: BTreeSet<usize> = order.into_iter().take(n).collect();
    chosen.into_iter().map(|i| all[i]).collect()
}

/// The run's own recipe; what it names is looked for where the run found it.
fn open(asked: &Replay<'_>) -> Result<Flow> {
    let (recipe, mut source) = Recipe::load(&asked.run.join("recipe.toml"), &[])?;
    let named = asked.recipe.map(Path::to_path_buf);
    let beside = match named {
        Some(path) => Some(path),
        None => recipe_path(asked.run)?,
    };
    source.path = beside.filter(|path| path.exists()).ok_or_else(|| {
        Failure::new(Exit::Io, "the recipe of this run is not where it was").code("no-recipe").fix(
            "name it with `--recipe FILE`: the teacher and the data that it names are looked for beside it",
        )
    })?;
    refuse_endpoints(&recipe, &source)?;
    let decision = gate::decision(&recipe, &source)?;
    let judge = verifiers::verifier(&recipe, &source, false)?;
    let run = RunDir::open(asked.run)?;
    let events = run.events()?;
    Ok(Flow {
        recipe,
        source,
        run,
        progress: Progress::new(asked.quiet),
        device: models::device(asked.machine),
        trial: false,
        times: Vec::new(),
        judge,
        signer: None,
        decision,
        events,
        logbook: None,
        input_digests: std::cell::RefCell::default(),
        teacher: None,
        others: Vec::new(),
    })
}

/// What a teacher behind endpoints said of the student's own text, nobody asks again for a proof.
fn refuse_endpoints(recipe: &Recipe, source: &Source) -> Result<()> {
    if !recipe.is_scored() {
        return Ok(());
    }
    Err(Failure::new(Exit::BadRecipe, "its student learned from what endpoints say of its own text")
        .code("not-replayable")
        .at(source.place(&["teacher", "kind"]))
        .fix("steps are done again of recipes whose teacher is at hand, or whose text is given"))
}

/// Where the run's recipe lay when it was last run.
fn recipe_path(run: &Path) -> Result<Option<PathBuf>> {
    let mut found = None;
    for event in EventReader::<Value>::open(&run.join("events.jsonl"))? {
        let event = event?;
        if event["event"] == "run_started" {
            found = event["path"].as_str().map(PathBuf::from).or(found);
        }
    }
    Ok(found)
}

impl Flow {
    /// Does segments of one model again, those that begin at one checkpoint together; how many steps that took, and the first
    /// thing that came out otherwise.
    fn repeat(
        &mut self,
        model: Contender,
        record: &Steps,
        drawn: &[Segment],
        scratch: &Path,
    ) -> Result<(u64, Option<String>)> {
        let folder = self.checkpoints_of(model)?;
        let kept = kept_steps(&folder)?;
        create_dir_durable(scratch)?;
        let mut ends: BTreeMap<u64, u64> = BTreeMap::new();
        for &Segment { from, to, .. } in drawn {
            let start = kept.iter().copied().filter(|&step| step <= from).max().unwrap_or(0);
            let end = ends.entry(start).or_default();
            *end = to.max(*end);
        }
        let (mut config, live) = self.training_of_model(model)?;
        self.bound_steps(model, &mut config)?;
        self.supervise(model, &config, live, |flow, first, supervision| {
            let mut found = Found { record, done: 0, difference: None };
            let mut first = Some(first);
            for (from, end) in ends {
                let boundaries: Vec<u64> =
                    record.checkpoints.range(from + 1..=end).map(|(&step, _)| step).collect();
                let again = Again { checkpoints: &folder, from, boundaries: &boundaries, scratch };
                let start = first.take().map_or_else(|| flow.start().map(|start| start.decoder), Ok)?;
                let mut sink = |event| found.compare(&event, &mut flow.progress);
                let (teacher, material) = (supervision.teacher, supervision.material);
                match replay(start, teacher, material, &config, &again, &mut sink) {
                    Err(DistillError::DamagedCheckpoint { path, damage }) => {
                        found.differs(format!("{}: {damage}", path.display()));
                    }
                    Err(error) => return Ok(Err(error)),
                    Ok(()) => {}
                }
                if found.difference.is_some() {
                    break;
                }
            }
            Ok(Ok((found.done, found.difference)))
        })
    }
}

/// What was found while steps were done again.
struct Found<'a> {
    record: &'a Steps,
    done: u64,
    difference: Option<String>,
}

impl Found<'_> {
    fn compare(&mut self, event: &TrainEvent, progress: &mut Progress) {
        match event {
            TrainEvent::Batch { step, digest } => {
                self.done += 1;
                progress.update(&format!("step {step} again …"));
                match self.record.batches.get(step) {
                    Some(recorded) if recorded == digest => {}
                    Some(_) => {
                        self.differs(format!("step {step} learned from another batch than is on record"))
                    }
                    None => self.differs(format!("no batch of step {step} is on record")),
                }
            }
            TrainEvent::Checkpoint { step, name, files } => {
                let recorded = self.record.checkpoints.get(step);
                let of = |file: &String| recorded.and_then(|recorded| recorded.get(file));
                if let Some((file, _)) = files.iter().find(|(file, digest)| of(file) != Some(digest)) {
                    self.differs(format!("`{file}` of {name} comes out with other bytes than are on record"));
                }
            }
            _ => {}
        }
    }

    fn differs(&mut self, what: String) {
        self.difference.get_or_insert(what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_drawn_once_each_by_the_seed() {
        let segment = |i: u64| Segment { model: Contender::Student, from: 10 * i, to: 10 * i + 10 };
        let all: Vec<Segment> = (0..40).map(segment).collect();
        let drawn = draw(&all, 20, 1);
        assert_eq!(drawn.len(), 20);
        assert!(drawn.windows(2).all(|pair| pair[0].from < pair[1].from));
        assert_eq!(drawn, draw(&all, 20, 1));
        assert_ne!(drawn, draw(&all, 20, 2));
        assert_eq!(draw(&all, 99, 1), all);
    }
}

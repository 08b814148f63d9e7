//! Stage `curate`: which traces the student may learn from, each drop with its reason.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::json;
use stillroom_core::{Prompt, Trace};
use stillroom_corpus::Split;
use stillroom_corpus::curation::{self, Dropped};
use stillroom_corpus::decontamination::{self, Contamination};
use stillroom_corpus::selection;
use stillroom_formats::parquet_rows;

use crate::failure::{Exit, Failure, Result};
use crate::flow::{Flow, data, feedback, teach};
use crate::recipe::{PromptSource, Select};

pub(crate) const STAGE: &str = "curate";
const TRAIN: &str = "corpus/curated/train.parquet";
const VALIDATION: &str = "corpus/curated/validation.parquet";
const SUMMARY: &str = "corpus/curation.json";

/// What curation did, for the report.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) seen: u64,
    pub(crate) kept: u64,
    pub(crate) validation_kept: u64,
    pub(crate) dropped: BTreeMap<String, u64>,
    pub(crate) heldout_overlaps: u64,
    pub(crate) contamination: Option<Contamination>,
}

impl Flow {
    pub(crate) fn curate(&mut self) -> Result<()> {
        if !self.asks_for_traces() {
            return Ok(());
        }
        let settings = json!([1, self.recipe.curate, self.recipe.prompts.verifier]);
        let outputs = ["corpus/curated", SUMMARY, "corpus/dropped.jsonl"];
        let mut after = vec![data::STAGE, teach::STAGE];
        if matches!(self.recipe.curate.select, Select::BestOfN | Select::Revised) {
            after.push(feedback::STAGE);
        }
        self.stage(STAGE, &settings, &after, &outputs, Flow::choose_traces)
    }

    fn choose_traces(&mut self) -> Result<()> {
        let train = self.prompts_of(Split::Train)?;
        let validation = self.prompts_of(Split::Validation)?;
        let verifier = if self.recipe.curate.verify { self.verifier() } else { None };
        let prompts = train.iter().chain(&validation);
        let filters = &self.recipe.curate.filters;
        let traces = self.traces()?;
        let seen = traces.len() as u64;
        let mut dropped = self.refused()?;
        let (traces, outvoted) = self.voted_or_revised(traces)?;
        dropped.extend(outvoted);
        let curated = curation::curate(traces, prompts, verifier.as_deref(), filters)?;
        dropped.extend(curated.dropped);
        let (kept, worse) = self.best(curated.kept)?;
        dropped.extend(worse);
        let in_validation: HashSet<&str> = validation.iter().map(|prompt| prompt.id.as_str()).collect();
        let (held_back, mut kept): (Vec<Trace>, Vec<Trace>) =
            kept.into_iter().partition(|trace| in_validation.contains(trace.id.as_str()));
        let mut summary = Summary { seen, ..Summary::default() };
        if self.recipe.curate.decontaminate {
            summary.contamination =
                self.drop_contaminated(&train, &mut kept, &mut summary.heldout_overlaps)?;
        }
        for drop in &dropped {
            *summary.dropped.entry(drop.step.as_str().to_owned()).or_default() += 1;
        }
        summary.kept = kept.len() as u64;
        summary.validation_kept = held_back.len() as u64;
        if kept.is_empty() || held_back.is_empty() {
            return Err(nothing_left(&summary));
        }
        for (file, traces) in [(TRAIN, &kept), (VALIDATION, &held_back)] {
            let mut bytes = Vec::new();
            parquet_rows::write_traces(&mut bytes, traces)?;
            self.run.write(file, &bytes)?;
        }
        self.write_lines("corpus/dropped.jsonl", &dropped)?;
        self.write_json(SUMMARY, &summary)
    }

    /// Those with the answer of most, or the revision of each, where that is asked for; it comes before anything else is
    /// dropped.
    fn voted_or_revised(&self, traces: Vec<Trace>) -> Result<(Vec<Trace>, Vec<Dropped>)> {
        Ok(match (self.recipe.curate.select, self.verifier()) {
            (Select::Majority, Some(verifier)) => selection::majority(traces, verifier.as_ref()),
            (Select::Revised, _) => selection::revised(traces, &self.revisions()?),
            _ => (traces, Vec::new()),
        })
    }

    /// The best of each prompt's, where that is asked for; of those that may be learned at all.
    fn best(&self, traces: Vec<Trace>) -> Result<(Vec<Trace>, Vec<Dropped>)> {
        match self.recipe.curate.select {
            Select::BestOfN => Ok(selection::best_of_n(traces, &self.grades()?)),
            Select::All | Select::Majority | Select::Revised => Ok((traces, Vec::new())),
        }
    }

    /// Problems of a task are disjoint by construction and were checked; other data is compared.
    fn drop_contaminated(
        &self,
        train: &[Prompt],
        kept: &mut Vec<Trace>,
        overlaps: &mut u64,
    ) -> Result<Option<Contamination>> {
        if matches!(self.recipe.prompts.source, PromptSource::Task { .. }) {
            return Ok(None);
        }
        let held_out = self.prompts_of(Split::HeldOut)?;
        let last = |prompt: &Prompt| prompt.messages.last().map(|m| m.content.clone()).unwrap_or_default();
        let text = |prompts: &[Prompt]| -> Vec<(String, String)> {
            prompts.iter().map(|prompt| (prompt.id.clone(), last(prompt))).collect()
        };
        let (train, held_out) = (text(train), text(&held_out));
        let report = decontamination::contamination(
            train.iter().map(|(id, text)| (id.as_str(), text.as_str())),
            held_out.iter().map(|(id, text)| (id.as_str(), text.as_str())),
        );
        let equal: HashSet<&String> = held_out.iter().map(|(_, text)| text).collect();
        let tainted: HashSet<&String> =
            train.iter().filter(|(_, text)| equal.contains(text)).map(|(id, _)| id).collect();
        let before = kept.len();
        kept.retain(|trace| !tainted.contains(&trace.id));
        *overlaps = (before - kept.len()) as u64;
        Ok(Some(report))
    }

    pub(crate) fn curated(&self, split: Split) -> Result<Vec<Trace>> {
        let path = self.run.path(if split == Split::Train { TRAIN } else { VALIDATION })?;
        let bytes = std::fs::read(&path).map_err(|e| Failure::io("read", &path, &e))?;
        Ok(parquet_rows::read_traces(bytes)?)
    }

    pub(crate) fn curation(&self) -> Result<Summary> {
        self.read_json(SUMMARY)
    }
}

fn nothing_left(summary: &Summary) -> Failure {
    let dropped: Vec<String> = summary.dropped.iter().map(|(step, n)| format!("{n} by {step}")).collect();
    Failure::new(Exit::BadData, "curation left nothing to train on")
        .code("nothing-left")
        .detail(format!("{} traces seen; dropped: {}", summary.seen, dropped.join(", ")))
        .fix("look at `corpus/dropped.jsonl`; a larger `teacher.max_tokens` or a better teacher may help")
}

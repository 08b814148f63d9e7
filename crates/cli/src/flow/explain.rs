//! What curation removed, step by step, with a few of the removed.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::Serialize;
use stillroom_core::Trace;
use stillroom_corpus::curation::{Dropped, Step};
use stillroom_formats::parquet_rows;

use super::curate::{DROPPED, SUMMARY, Summary};
use super::{json_file, json_lines, teach, tools};
use crate::failure::{Failure, Result};

/// Traces that are shown of each step.
const SAMPLES: usize = 3;
/// Characters of an excerpt.
const EXCERPT_CHARS: usize = 120;

/// What became of all traces of a run.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Explanation {
    /// Absent where no traces were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) summary: Option<Summary>,
    /// In the order in which a trace passes them.
    pub(crate) steps: BTreeMap<Step, Explained>,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Explained {
    pub(crate) dropped: u64,
    /// The first ones.
    pub(crate) samples: Vec<Sample>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) id: String,
    pub(crate) sample: u32,
    pub(crate) reason: String,
    /// The beginning of the last turn and of the answer; rows that were left out before the teacher saw them have neither.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) asked: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) replied: Option<String>,
}

/// Reads what the curation of a run directory wrote.
pub(crate) fn explain(output: &Path) -> Result<Explanation> {
    let mut explanation = Explanation::default();
    let summary = output.join(SUMMARY);
    let file = if summary.exists() { DROPPED } else { tools::REFUSED };
    if summary.exists() {
        explanation.summary = Some(json_file(&summary)?);
    }
    let dropped = output.join(file);
    if dropped.exists() {
        explanation.count(dropped)?;
    }
    explanation.find_excerpts(&output.join(teach::FOLDER))?;
    Ok(explanation)
}

impl Explanation {
    fn count(&mut self, path: PathBuf) -> Result<()> {
        for drop in json_lines::<Dropped>(path)? {
            let drop = drop?;
            let step = self.steps.entry(drop.step).or_default();
            step.dropped += 1;
            if step.samples.len() < SAMPLES {
                let Dropped { id, sample, reason, .. } = drop;
                step.samples.push(Sample { id, sample, reason, asked: None, replied: None });
            }
        }
        Ok(())
    }

    /// Looks through the traces, part by part, until all samples are found.
    fn find_excerpts(&mut self, folder: &Path) -> Result<()> {
        if !folder.is_dir() {
            return Ok(());
        }
        let samples = self.steps.values_mut().flat_map(|step| &mut step.samples);
        let mut wanted: HashMap<(String, u32), Vec<&mut Sample>> = HashMap::new();
        for sample in samples {
            wanted.entry((sample.id.clone(), sample.sample)).or_default().push(sample);
        }
        for path in teach::parts_of(folder)? {
            if wanted.is_empty() {
                break;
            }
            let bytes = std::fs::read(&path).map_err(|e| Failure::io("read", &path, &e))?;
            for trace in parquet_rows::read_traces(bytes)? {
                let found = wanted.remove(&(trace.id.clone(), trace.sample)).unwrap_or_default();
                found.into_iter().for_each(|sample| sample.show(&trace));
            }
        }
        Ok(())
    }
}

impl Sample {
    fn show(&mut self, trace: &Trace) {
        self.asked = trace.messages.last().map(|message| excerpt(&message.content));
        self.replied = Some(excerpt(&trace.content));
    }
}

fn excerpt(text: &str) -> String {
    let mut excerpt: String = text.chars().take(EXCERPT_CHARS).collect();
    if excerpt.len() < text.len() {
        excerpt.push('…');
    }
    excerpt
}

//! Stage `describe`: what the curated data set is, for catalogues.

use serde_json::json;
use stillroom_formats::croissant::{self, TraceFile, TraceSet};
use stillroom_store::digest_file;

use super::{Flow, curate};
use crate::failure::Result;

pub(crate) const STAGE: &str = "describe";
pub(super) const FILE: &str = "corpus/croissant.json";

impl Flow {
    /// Writes `corpus/croissant.json` beside the traces that curation kept.
    pub(crate) fn describe(&mut self) -> Result<()> {
        let Some(teacher) = &self.recipe.teacher else { return Ok(()) };
        if !self.asks_for_traces() {
            return Ok(());
        }
        let teachers: Vec<String> = teacher.models().map(str::to_owned).collect();
        let licence = self.recipe.release.licence.clone();
        let prompts = self.prompts_name();
        let settings = json!([2, self.recipe.name, licence, prompts, teachers]);
        self.stage(STAGE, &settings, &[curate::STAGE], &[FILE], |flow| {
            let set = TraceSet {
                name: flow.recipe.name.clone(),
                description: format!(
                    "Traces by {}, curated by Stillroom with the recipe `{}`.",
                    teachers.join(", "),
                    flow.recipe.name
                ),
                licence,
                prompts,
                teachers,
                files: flow.curated_files()?,
            };
            flow.write_json(FILE, &croissant::describe(&set))
        })
    }

    /// A file's own name: where it lies on this machine is no matter for a catalogue.
    fn prompts_name(&self) -> String {
        let id = self.data_id();
        let name = std::path::Path::new(&id).file_name().and_then(|name| name.to_str());
        name.map_or_else(|| id.clone(), str::to_owned)
    }

    fn curated_files(&self) -> Result<Vec<TraceFile>> {
        let mut files = Vec::new();
        for split in ["train", "validation"] {
            let path = format!("curated/{split}.parquet");
            let on_disk = self.run.path(&format!("corpus/{path}"))?;
            if on_disk.is_file() {
                let (digest, bytes) = digest_file(&on_disk)?;
                files.push(TraceFile { split: split.to_owned(), path, digest, bytes });
            }
        }
        Ok(files)
    }
}

//! Rows that use tools: left out and counted, or kept where the student's chat template writes them.

use stillroom_core::{Message, Prompt};
use stillroom_corpus::curation::Dropped;

use crate::failure::{Failure, Result};
use crate::flow::Flow;
use crate::recipe::{PromptSource, ToolCalls};

pub(super) const REFUSED: &str = "corpus/prompts/refused.jsonl";

impl Flow {
    /// Whether the recipe keeps rows with tools.
    pub(super) fn keeps_tools(&self) -> bool {
        self.recipe.curate.tool_calls == ToolCalls::Keep && !self.learns_text()
    }

    /// Writes down which rows were left out.
    pub(super) fn write_refused(&self, refused: &[Dropped]) -> Result<()> {
        self.write_lines(REFUSED, refused)
    }

    /// The rows that were left out before the teacher saw them.
    pub(crate) fn refused(&self) -> Result<Vec<Dropped>> {
        match self.recipe.prompts.source {
            PromptSource::Task { .. } => Ok(Vec::new()),
            // A run from before there was this file left nothing out.
            _ if !self.run.path(REFUSED)?.exists() => Ok(Vec::new()),
            PromptSource::Chat { .. } | PromptSource::Text { .. } => self.read_lines(REFUSED),
        }
    }

    /// Whether the student's chat template writes rows with tools, such as this one, is known before the teacher is asked.
    pub(super) fn check_template(&self, prompt: &Prompt) -> Result<()> {
        let turns: Vec<Message> = prompt.messages.iter().chain(&prompt.target).cloned().collect();
        match self.student_tokenizer()?.render_chat(&turns, false) {
            Ok(_) => Ok(()),
            Err(error) => {
                let place = self.source.place(&["curate", "tool_calls"]);
                Err(Failure::from(error)
                    .code("tool-calls")
                    .at(place)
                    .detail(format!("first such row: `{}`", prompt.id)))
            }
        }
    }
}

//! Rows that use tools: left out and counted, or kept where the student's chat template writes them.

use stillroom_core::Message;
use stillroom_corpus::curation::{Dropped, Step, tool_use};
use stillroom_corpus::prompts::Item;

use crate::failure::{Failure, Result};
use crate::flow::Flow;
use crate::recipe::{PromptSource, ToolCalls};

pub(super) const REFUSED: &str = "corpus/prompts/refused.jsonl";

impl Flow {
    /// Takes rows with tools out of `parts`, where the recipe leaves them out.
    pub(super) fn refuse_tools(&self, parts: &mut [Vec<Item>], refused: &mut Vec<Dropped>) -> Result<()> {
        let keeps = self.recipe.curate.tool_calls == ToolCalls::Keep && !self.learns_text();
        for items in parts {
            if keeps {
                self.check_template(items)?;
                continue;
            }
            items.retain(|item| {
                let Some(reason) = item.as_prompt().and_then(tool_use) else { return true };
                let (id, reason) = (item.id().to_owned(), reason.to_owned());
                refused.push(Dropped { id, sample: 0, step: Step::ToolCalls, reason });
                false
            });
        }
        Ok(())
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

    /// Whether the student's chat template writes these rows is known before the teacher is asked.
    fn check_template(&self, items: &[Item]) -> Result<()> {
        let uses_tools = |item: &&Item| item.as_prompt().is_some_and(|prompt| prompt.uses_tools());
        let Some(prompt) = items.iter().find(uses_tools).and_then(Item::as_prompt) else { return Ok(()) };
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

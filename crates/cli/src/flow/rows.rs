//! Rows that are learned without a teacher's text: what curation does to traces, it does to them before anything else.

use serde_json::{Value, json};
use stillroom_core::Message;
use stillroom_corpus::contaminants::{EvaluationItem, Finding, Side};
use stillroom_corpus::curation::{Dropped, Step};
use stillroom_corpus::prompts::Item;

use crate::failure::Result;
use crate::flow::Flow;
use crate::flow::curate::{Seen, said};
use crate::flow::spool::{Note, Spool};
use crate::recipe::Compared;

impl Flow {
    /// Takes out of training and validation, the first two of `parts`, rows that hold evaluation items or nearly repeat
    /// others, where nobody writes traces for them.
    pub(super) fn refuse_rows(
        &self,
        parts: &mut [Vec<Note>; 3],
        spool: &mut Spool,
        refused: &mut Vec<Dropped>,
    ) -> Result<()> {
        if !self.curates_rows() {
            return Ok(());
        }
        let [train, validation, held_out] = parts;
        let compared = if self.compares_held_out() { &held_out[..] } else { &[] };
        let compared: Result<Vec<EvaluationItem>> =
            compared.iter().map(|note| Ok(EvaluationItem::of(&spool.item(*note)?))).collect();
        let items = self.evaluation_items(compared?.into_iter())?;
        let mut seen = self.recipe.curate.near.map(Seen::new);
        // Validation first, so that no training row repeats one of it.
        for part in [validation, train] {
            let mut kept = Vec::with_capacity(part.len());
            for note in std::mem::take(part) {
                let item = spool.item(note)?;
                let found =
                    items.as_ref().map_or(Finding::Nothing, |items| items.find_in_texts(texts(&item)));
                let drop = match (found, &mut seen) {
                    (Finding::Contaminated(held), _) => Some((Step::Contaminated, said(&held))),
                    (_, Some(seen)) => seen.repeats(item.id(), 0, |compared| joined(&item, compared)).map(
                        |(share, id, _)| (Step::NearDuplicate, format!("{:.1} % like `{id}`", 100.0 * share)),
                    ),
                    _ => None,
                };
                match drop {
                    None => kept.push(note),
                    Some((step, reason)) => {
                        refused.push(Dropped { id: item.id().to_owned(), sample: 0, step, reason });
                    }
                }
            }
            *part = kept;
        }
        Ok(())
    }

    /// What the rows depend on because of that.
    pub(super) fn rows_settings(&self) -> Result<Option<Value>> {
        if !self.curates_rows() {
            return Ok(None);
        }
        let curate = &self.recipe.curate;
        let compared = self.compares_held_out();
        Ok(Some(json!([curate.near, curate.decontamination, compared, self.evaluation_digests()?])))
    }

    fn curates_rows(&self) -> bool {
        let curate = &self.recipe.curate;
        !self.asks_for_traces() && (curate.near.is_some() || curate.decontamination.is_some())
    }
}

/// A text may hold question and solution.
fn texts(item: &Item) -> Vec<(Side, &str)> {
    match item {
        Item::Text { text, .. } => vec![(Side::Reply, text)],
        Item::Prompt(prompt) => {
            let asked = prompt.messages.iter().map(|message| (Side::Prompt, message.content.as_str()));
            asked.chain(prompt.target.iter().flat_map(reply).map(|text| (Side::Reply, text))).collect()
        }
    }
}

fn joined(item: &Item, compared: Compared) -> String {
    let texts: Vec<&str> = match item {
        Item::Text { text, .. } => vec![text],
        Item::Prompt(prompt) => {
            let asked = prompt.messages.last().map(|message| message.content.as_str());
            compared.of(asked, prompt.target.iter().flat_map(reply))
        }
    };
    texts.join("\n")
}

fn reply(target: &Message) -> impl Iterator<Item = &str> {
    target.reasoning_content.as_deref().into_iter().chain([target.content.as_str()])
}

//! Stage `prune`: what of a base's width matters on training text, and a start with only that.
//!
//! The start is computed once and kept, so the student and every control begin with the same bits.

use serde_json::json;
use stillroom_core::{Digester, Prompt};
use stillroom_corpus::Split;
use stillroom_formats::{DecoderConfig, Encoding, Tokenizer, write_hf_dir};
use stillroom_model::{Decoder, ModelError, Width};

use crate::failure::{Failure, Result};
use crate::flow::train::{Piece, trace_pieces};
use crate::flow::{Flow, curate, data};
use crate::recipe::{Candidates, Pruned, Source, Student, key_of};

pub(crate) const STAGE: &str = "prune";
/// A model as any other of the run, of the one that evaluation calls untrained.
pub(crate) const START: &str = "models/untrained";
const FACTS: &str = "training/pruning.json";

/// The shape of a student that keeps part of a base with `config`.
pub(crate) fn kept_shape(student: &Student, config: DecoderConfig, source: &Source) -> Result<DecoderConfig> {
    let kept = match student {
        Student::Nobody | Student::FromScratch(_) | Student::Pretrained { .. } => Ok(config),
        Student::FromLayers { layers, .. } => with_layers(config, layers),
        Student::Pruned(pruned) => {
            let to = pruned.width(Width::of(&config));
            let narrow = to.narrow(&config);
            match &pruned.layers {
                Some(layers) => narrow.and_then(|narrow| with_layers(narrow, layers)),
                None => narrow,
            }
        }
    };
    kept.map_err(|error| placed(error, source))
}

fn with_layers(config: DecoderConfig, layers: &[usize]) -> std::result::Result<DecoderConfig, ModelError> {
    let n_layers = config.num_hidden_layers;
    match layers.iter().find(|&&layer| layer >= n_layers) {
        Some(&layer) => Err(ModelError::NoSuchLayer { layer, n_layers }),
        None => Ok(DecoderConfig { num_hidden_layers: layers.len(), ..config }),
    }
}

fn placed(error: ModelError, source: &Source) -> Failure {
    let key = key_of(&error);
    Failure::from(error).at(source.place(&key))
}

impl Flow {
    /// The stage that the student's start comes from, where it is not made anew each time.
    pub(crate) fn start_stage(&self) -> Option<&'static str> {
        self.recipe.student.is_pruned().then_some(STAGE)
    }

    /// Whether the student writes replies before there is anything else to learn from.
    pub(crate) fn drafts(&self) -> bool {
        let from = self.recipe.feedback.as_ref().map(|feedback| &feedback.candidates);
        matches!(from, Some(Candidates::Student { .. }))
    }

    pub(crate) fn prune(&mut self) -> Result<()> {
        let Student::Pruned(pruned) = self.recipe.student.clone() else { return Ok(()) };
        let settings = json!([1, pruned, self.start_digest()?, self.recipe.train.max_length]);
        let mut after = vec![data::STAGE];
        if self.calibrates_on_traces() {
            after.push(curate::STAGE);
        }
        self.stage(STAGE, &settings, &after, &[START, FACTS], |flow| flow.prune_base(&pruned))
    }

    fn calibrates_on_traces(&self) -> bool {
        self.asks_for_traces() && !self.drafts()
    }

    fn prune_base(&mut self, pruned: &Pruned) -> Result<()> {
        // It is loaded again where it is needed.
        self.forget_teacher();
        let tokenizer = self.student_tokenizer()?;
        let texts = self.calibration_texts(pruned.calibration_examples, &tokenizer)?;
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let files = self.base_files()?;
        let base = Decoder::load(self.device.clone(), files.config, files.tensors.as_ref())?;
        texts.iter().try_for_each(|ids| base.check_ids(ids))?;
        let n_of_base = base.n_parameters();
        let placed = |error| placed(error, &self.source);
        let base = match &pruned.layers {
            Some(layers) => base.keep_layers(layers).map_err(placed)?,
            None => base,
        };
        let to = pruned.width(Width::of(base.config()));
        let start = base.keep_width(to, &texts).map_err(placed)?;
        let facts = json!({
            "base_parameters": n_of_base,
            "parameters": start.n_parameters(),
            "calibration_texts": texts.len(),
            "calibration_tokens": texts.iter().map(|ids| ids.len()).sum::<usize>(),
            "calibration_digest": digest_of(&texts),
        });
        stillroom_store::atomic_dir(&self.run.path(START)?, |dir| {
            write_hf_dir(dir, start.config(), &mut start.tensors(), Encoding::F32, Some(&tokenizer))
                .map_err(Failure::from)
        })?;
        self.write_json(FACTS, &facts)
    }

    /// At most `n` of the texts that the student is trained on, evenly spaced among them, in its own tokens. None is
    /// of the validation or the held-out part.
    fn calibration_texts(&self, n: usize, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>> {
        let ids = |piece: Piece| piece.example.ids;
        let mut texts: Vec<Vec<u32>> = if self.learns_text() {
            let pieces = self.text_pieces(Split::Train, tokenizer)?;
            spaced(n, pieces).into_iter().map(ids).collect()
        } else if self.calibrates_on_traces() {
            let traces = spaced(n, self.curated(Split::Train)?);
            trace_pieces(&traces, tokenizer)?.into_iter().map(ids).collect()
        } else {
            let prompts = spaced(n, self.prompts_of(Split::Train)?);
            prompts.iter().map(|prompt| whole(prompt, tokenizer)).collect::<Result<_>>()?
        };
        texts.iter_mut().for_each(|ids| ids.truncate(self.recipe.train.max_length));
        Ok(texts)
    }
}

/// A prompt with the reply that is wanted, where that is known.
fn whole(prompt: &Prompt, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    Ok(match &prompt.target {
        Some(target) => tokenizer.encode_supervised(&prompt.messages, target)?.ids,
        None => tokenizer.encode_chat(&prompt.messages, true)?,
    })
}

/// At most `n` of `items`: every second, third … of them.
fn spaced<T>(n: usize, items: Vec<T>) -> Vec<T> {
    let len = items.len();
    let n = n.min(len);
    let mut chosen = (0..n).map(|i| i * len / n).peekable();
    let is_chosen = |(index, item)| (chosen.next_if_eq(&index)).map(|_| item);
    items.into_iter().enumerate().filter_map(is_chosen).collect()
}

fn digest_of(texts: &[&[u32]]) -> stillroom_core::Digest {
    let mut digester = Digester::new();
    for ids in texts {
        digester.update(&(ids.len() as u64).to_le_bytes());
        ids.iter().for_each(|id| digester.update(&id.to_le_bytes()));
    }
    digester.finish()
}

#[cfg(test)]
mod tests {
    use super::spaced;

    #[test]
    fn what_is_chosen_lies_evenly_among_all() {
        let of = |n, len: usize| spaced(n, (0..len).collect());
        assert_eq!(of(3, 10), [0, 3, 6]);
        assert_eq!(of(10, 3), [0, 1, 2]);
        assert_eq!(of(1, 5), [0]);
        assert_eq!(of(4, 0), [0; 0]);
    }
}

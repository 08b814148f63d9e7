//! Stage `logprobs`: how likely the teacher finds the traces, in its own tokens, in durable parts.

use serde_json::json;
use stillroom_core::{Digest, Trace};
use stillroom_corpus::Split;
use stillroom_distill::examples::{self, Reading, check_tokenizer};
use stillroom_distill::{DistillError, Example};
use stillroom_formats::Tokenizer;
use stillroom_formats::parquet_rows::{self, LogprobInfo, LogprobRow};
use stillroom_store::PartStore;

use crate::failure::{Exit, Failure, Result};
use crate::flow::{Flow, curate, data, digest_of};
use crate::models::Model;

pub(crate) const STAGE: &str = "logprobs";
pub(crate) const FOLDER: &str = "corpus/logprobs";
/// Traces of one part: what a kill can cost at most.
const TRACES_PER_PART: usize = 64;

impl Flow {
    /// Lets the teacher score the traces that `alm` learns from.
    pub(crate) fn logprobs(&mut self) -> Result<()> {
        if !self.recipe.train.needs_likelihoods() {
            return Ok(());
        }
        let settings = json!([1, self.teacher_digest()?]);
        self.stage(STAGE, &settings, &[data::STAGE, curate::STAGE], &[FOLDER], |flow| {
            flow.write_logprobs(digest_of(&settings))
        })
    }

    fn write_logprobs(&mut self, made_from: Digest) -> Result<()> {
        let model = self.teacher()?;
        let mut parts: Vec<Vec<Trace>> = Vec::new();
        for split in [Split::Validation, Split::Train] {
            parts.extend(self.curated(split)?.chunks(TRACES_PER_PART).map(<[Trace]>::to_vec));
        }
        let info = LogprobInfo {
            tokenizer_digest: model.tokenizer.digest(),
            teacher: self.recipe.teacher.as_ref().map(|teacher| teacher.model.clone()).unwrap_or_default(),
        };
        let mut store = PartStore::open(&self.run.dir(FOLDER)?, "parquet", made_from)?;
        for (number, traces) in parts.iter().enumerate() {
            let examples = examples::from_traces(traces, &model.tokenizer)?;
            let kept = match store.contains(number as u32) {
                true => fits(&parquet_rows::read_logprobs(store.read(number as u32)?)?.1, traces, &examples),
                false => false,
            };
            if !kept {
                let mut bytes = Vec::new();
                parquet_rows::write_logprobs(&mut bytes, &info, &score(&model, traces, &examples)?)?;
                store.put(number as u32, &bytes)?;
                self.event(json!({ "event": "part_written", "stage": STAGE, "part": number }))?;
            }
            self.progress.update(&format!("logprobs: part {} of {}", number + 1, parts.len()));
        }
        store.seal(parts.len() as u32)?;
        Ok(())
    }

    /// Gives each example of these traces what the teacher thinks of its bytes; scores of other tokens are an
    /// error, never silent.
    pub(crate) fn attach_likelihoods(
        &self,
        traces: &[Trace],
        examples: &mut [Example],
        tokenizer: &Tokenizer,
    ) -> Result<()> {
        let teacher = self.teacher_files()?.tokenizer.ok_or_else(|| {
            Failure::new(Exit::BadData, "the teacher has no tokenizer")
                .fix("put its `tokenizer.json` beside `config.json`")
        })?;
        let mut rows = Vec::new();
        for bytes in self.part_files(FOLDER)? {
            let (info, part) = parquet_rows::read_logprobs(bytes)?;
            check_tokenizer(&info.tokenizer_digest, &teacher.digest())?;
            rows.extend(part);
        }
        let read = examples::from_traces(traces, &teacher)?;
        let own = Reading { examples, tokenizer };
        let chunks = examples::likelihoods(own, Reading { examples: &read, tokenizer: &teacher }, rows)?;
        examples.iter_mut().zip(chunks).for_each(|(example, chunks)| example.chunks = Some(chunks));
        Ok(())
    }
}

/// log p of the supervised tokens of each trace.
fn score(model: &Model, traces: &[Trace], examples: &[Example]) -> Result<Vec<LogprobRow>> {
    let context = model.decoder.config().max_position_embeddings;
    if let Some(example) = examples.iter().find(|example| example.ids.len() > context) {
        let (id, n_tokens) = (example.id.clone(), example.ids.len());
        return Err(DistillError::TooLong { id, n_tokens, max_length: context }.into());
    }
    let ids: Vec<&[u32]> = examples.iter().map(|example| &example.ids[..]).collect();
    let row = |((trace, example), logprobs): ((&Trace, &Example), Vec<f32>)| LogprobRow {
        id: trace.id.clone(),
        sample: trace.sample,
        token_ids_digest: Digest::of_token_ids(&example.ids),
        n_tokens: example.ids.len() as u32,
        logprobs: example.wanted_positions().iter().map(|&position| logprobs[position as usize]).collect(),
    };
    let logprobs = model.decoder.token_logprobs(&ids);
    Ok(traces.iter().zip(examples).zip(logprobs).map(row).collect())
}

/// Whether a part that was found is of these traces.
fn fits(rows: &[LogprobRow], traces: &[Trace], examples: &[Example]) -> bool {
    rows.len() == traces.len()
        && rows.iter().zip(traces).zip(examples).all(|((row, trace), example)| {
            row.id == trace.id
                && row.sample == trace.sample
                && row.token_ids_digest == Digest::of_token_ids(&example.ids)
                && row.logprobs.len() == example.n_supervised()
        })
}

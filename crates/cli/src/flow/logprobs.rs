//! Stage `logprobs`: how likely the teacher finds the texts, in its own tokens, in durable parts.

use serde_json::{Value, json};
use stillroom_core::Digest;
use stillroom_corpus::Split;
use stillroom_distill::examples::{self, Reading, check_tokenizer};
use stillroom_distill::{DistillError, Example};
use stillroom_formats::Tokenizer;
use stillroom_formats::parquet_rows::{self, LogprobInfo, LogprobRow};
use stillroom_store::PartStore;

use crate::failure::Result;
use crate::flow::train::Piece;
use crate::flow::{Flow, curate, data, digest_of};
use crate::models::Model;

pub(crate) const STAGE: &str = "logprobs";
pub(crate) const FOLDER: &str = "corpus/logprobs";
/// Texts of one part: what a kill can cost at most.
const TEXTS_PER_PART: usize = 64;

impl Flow {
    /// Lets the teacher score the texts that `alm` learns from.
    pub(crate) fn logprobs(&mut self) -> Result<()> {
        if !self.recipe.train.needs_likelihoods() {
            return Ok(());
        }
        let (mut settings, mut after) = (vec![json!(1), json!(self.teacher_digest()?)], vec![data::STAGE]);
        if self.learns_text() {
            // How a text is cut into pieces is the student's.
            settings.push(json!([self.student_tokenizer()?.digest(), self.recipe.train.max_length]));
        } else {
            after.push(curate::STAGE);
        }
        let settings = Value::Array(settings);
        self.stage(STAGE, &settings, &after, &[FOLDER], |flow| flow.write_logprobs(digest_of(&settings)))
    }

    fn write_logprobs(&mut self, made_from: Digest) -> Result<()> {
        let (model, tokenizer) = (self.teacher()?, self.student_tokenizer()?);
        let mut parts: Vec<Vec<Piece>> = Vec::new();
        for split in [Split::Validation, Split::Train] {
            let own = self.teacher_pieces(split, &tokenizer)?;
            let read = self.read_by_teacher(split, &own, &tokenizer, &model.tokenizer)?;
            parts.extend(read.chunks(TEXTS_PER_PART).map(<[Piece]>::to_vec));
        }
        let info = LogprobInfo {
            tokenizer_digest: model.tokenizer.digest(),
            teacher: self.recipe.teacher.as_ref().map(|teacher| teacher.model.clone()).unwrap_or_default(),
        };
        let mut store = PartStore::open(&self.run.dir(FOLDER)?, "parquet", made_from)?;
        for (number, pieces) in parts.iter().enumerate() {
            let kept = match store.contains(number as u32) {
                true => fits(&parquet_rows::read_logprobs(store.read(number as u32)?)?.1, pieces),
                false => false,
            };
            if !kept {
                let mut bytes = Vec::new();
                parquet_rows::write_logprobs(&mut bytes, &info, &score(&model, pieces)?)?;
                store.put(number as u32, &bytes)?;
                self.event(json!({ "event": "part_written", "stage": STAGE, "part": number }))?;
            }
            self.progress.update(&format!("logprobs: part {} of {}", number + 1, parts.len()));
        }
        store.seal(parts.len() as u32)?;
        Ok(())
    }

    /// Gives each example what the teacher thinks of its bytes; scores of other tokens are an error, never silent.
    pub(crate) fn attach_likelihoods(
        &self,
        examples: &mut [Example],
        tokenizer: &Tokenizer,
        read: Reading<'_>,
    ) -> Result<()> {
        let mut rows = Vec::new();
        for bytes in self.part_files(FOLDER)? {
            let (info, part) = parquet_rows::read_logprobs(bytes)?;
            check_tokenizer(&info.tokenizer_digest, &read.tokenizer.digest())?;
            rows.extend(part);
        }
        let chunks = examples::likelihoods(Reading { examples, tokenizer }, read, rows)?;
        examples.iter_mut().zip(chunks).for_each(|(example, chunks)| example.chunks = Some(chunks));
        Ok(())
    }
}

/// log p of the supervised tokens of each text.
fn score(model: &Model, pieces: &[Piece]) -> Result<Vec<LogprobRow>> {
    let context = model.decoder.config().max_position_embeddings;
    if let Some(Piece { example, .. }) = pieces.iter().find(|piece| piece.example.ids.len() > context) {
        let (id, n_tokens) = (example.id.clone(), example.ids.len());
        return Err(DistillError::TooLong { id, n_tokens, max_length: context }.into());
    }
    let ids: Vec<&[u32]> = pieces.iter().map(|piece| &piece.example.ids[..]).collect();
    let row = |(Piece { id, sample, example }, logprobs): (&Piece, Vec<f32>)| LogprobRow {
        id: id.clone(),
        sample: *sample,
        token_ids_digest: Digest::of_token_ids(&example.ids),
        n_tokens: example.ids.len() as u32,
        logprobs: example.wanted_positions().iter().map(|&position| logprobs[position as usize]).collect(),
    };
    Ok(pieces.iter().zip(model.decoder.token_logprobs(&ids)).map(row).collect())
}

/// Whether a part that was found is of these texts.
fn fits(rows: &[LogprobRow], pieces: &[Piece]) -> bool {
    rows.len() == pieces.len()
        && rows.iter().zip(pieces).all(|(row, Piece { id, sample, example })| {
            row.id == *id
                && row.sample == *sample
                && row.token_ids_digest == Digest::of_token_ids(&example.ids)
                && row.logprobs.len() == example.n_supervised()
        })
}

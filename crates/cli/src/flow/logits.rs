//! Stage `logits`: the teacher's distributions on the training texts, in durable parts.

use serde_json::json;
use stillroom_core::{Digest, SparseRow, Tail};
use stillroom_corpus::Split;
use stillroom_distill::examples::{attach_targets, check_cache};
use stillroom_distill::{Example, TrainConfig};
use stillroom_formats::Tokenizer;
use stillroom_formats::parquet_rows::{self, Kept, LogitCacheInfo, LogitCacheRow};
use stillroom_model::{LiveTeacher, Spacing};
use stillroom_store::PartStore;

use crate::failure::Result;
use crate::flow::train::Piece;
use crate::flow::{Flow, curate, data, digest_of, teach};
use crate::models::Model;
use crate::recipe::Logits;

pub(crate) const STAGE: &str = "logits";
pub(crate) const FOLDER: &str = "corpus/logits";
/// Pieces of one part: what a kill can cost at most.
const PIECES_PER_PART: usize = 64;

impl Flow {
    /// Stores what the teacher thinks of every supervised position.
    pub(crate) fn logits(&mut self) -> Result<()> {
        let Some((teacher, logits)) = self.recipe.teacher.clone().zip(self.recipe.cached_targets()) else {
            return Ok(());
        };
        let tokenizer = self.student_tokenizer()?;
        let settings = json!([1, self.teachers_digest()?, logits, teacher.seed, tokenizer.digest()]);
        let after: &[&str] = if self.learns_text() { &[data::STAGE] } else { &[data::STAGE, curate::STAGE] };
        self.stage(STAGE, &settings, after, &[FOLDER], |flow| {
            flow.write_logits(&tokenizer, logits, digest_of(&settings))
        })
    }

    fn write_logits(&mut self, tokenizer: &Tokenizer, logits: Logits, made_from: Digest) -> Result<()> {
        let teachers = self.teachers()?;
        let others = teachers.others();
        let live = teachers.live(&others, None);
        let mut parts: Vec<Vec<Piece>> = Vec::new();
        for split in [Split::Validation, Split::Train] {
            let pieces = self.teacher_pieces(split, tokenizer)?;
            parts.extend(pieces.chunks(PIECES_PER_PART).map(<[Piece]>::to_vec));
        }
        let mut store = PartStore::open(&self.run.dir(FOLDER)?, "parquet", made_from)?;
        for (number, pieces) in parts.iter().enumerate() {
            let kept = match store.contains(number as u32) {
                true => fits(&parquet_rows::read_logits(store.read(number as u32)?)?.1, pieces),
                false => false,
            };
            if !kept {
                let rows = self.distributions(live, logits, pieces);
                let mut bytes = Vec::new();
                parquet_rows::write_logits(&mut bytes, &self.info(&teachers.first, logits), &rows)?;
                store.put(number as u32, &bytes)?;
                self.event(json!({ "event": "part_written", "stage": STAGE, "part": number }))?;
            }
            self.progress.update(&format!("logits: part {} of {}", number + 1, parts.len()));
        }
        store.seal(parts.len() as u32)?;
        Ok(())
    }

    fn distributions(&self, live: LiveTeacher<'_>, logits: Logits, pieces: &[Piece]) -> Vec<LogitCacheRow> {
        let ids: Vec<&[u32]> = pieces.iter().map(|piece| &piece.example.ids[..]).collect();
        let wanted: Vec<Vec<u32>> = pieces.iter().map(|piece| piece.example.wanted_positions()).collect();
        let rows: Vec<Vec<SparseRow>> = match logits {
            Logits::RandomSampling { draws, temperature, evenly_spaced } => {
                let spacing = if evenly_spaced { Spacing::Even } else { Spacing::Independent };
                let keys: Vec<u64> =
                    pieces.iter().map(|piece| teach::key_of(&piece.id) ^ u64::from(piece.sample)).collect();
                let seed = self.recipe.teacher.as_ref().map_or(0, |teacher| teacher.seed);
                live.sampled_targets(&ids, &wanted, draws, spacing, temperature as f32, &keys, seed)
            }
            Logits::TopK { k, temperature, .. } => {
                live.top_k_targets(&ids, &wanted, k as usize, temperature as f32)
            }
            Logits::Live { .. } => unreachable!("of a live teacher nothing is stored"),
        };
        let row = |(piece, rows): (&Piece, Vec<SparseRow>)| LogitCacheRow {
            id: piece.id.clone(),
            sample: piece.sample,
            token_ids_digest: Digest::of_token_ids(&piece.example.ids),
            n_tokens: piece.example.ids.len() as u32,
            rows,
        };
        pieces.iter().zip(rows).map(row).collect()
    }

    fn info(&self, model: &Model, logits: Logits) -> LogitCacheInfo {
        let (kept, tail) = match logits {
            Logits::RandomSampling { draws, .. } => (Kept::Draws(draws), Tail::None),
            Logits::TopK { k, tail, .. } => (Kept::TopK(k), tail),
            Logits::Live { .. } => unreachable!("of a live teacher nothing is stored"),
        };
        LogitCacheInfo {
            kept,
            tail,
            temperature: logits.temperature() as f32,
            tokenizer_digest: model.tokenizer.digest(),
            teacher: self.teachers_in_words(),
        }
    }

    /// Gives each example its teacher's distributions; those of other tokens are an error, never silent.
    pub(crate) fn attach_logits(&self, examples: &mut [Example], config: &TrainConfig) -> Result<()> {
        let tokenizer = self.student_tokenizer()?.digest();
        let mut rows = Vec::new();
        for bytes in self.part_files(FOLDER)? {
            let (info, part) = parquet_rows::read_logits(bytes)?;
            check_cache(&info, &tokenizer, config)?;
            rows.extend(part);
        }
        Ok(attach_targets(examples, rows)?)
    }
}

/// Whether a part that was found is of these pieces.
fn fits(rows: &[LogitCacheRow], pieces: &[Piece]) -> bool {
    rows.len() == pieces.len()
        && rows.iter().zip(pieces).all(|(row, piece)| {
            row.id == piece.id
                && row.sample == piece.sample
                && row.token_ids_digest == Digest::of_token_ids(&piece.example.ids)
                && row.rows.len() == piece.example.n_supervised()
        })
}

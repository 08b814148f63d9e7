//! A teacher with a tokenizer of its own: the same texts in its tokens.

use stillroom_corpus::Split;
use stillroom_distill::examples::{self, Reading};
use stillroom_distill::{Example, TrainConfig, read_in_own_tokens};
use stillroom_formats::Tokenizer;

use crate::failure::{Exit, Failure, Result};
use crate::flow::Flow;
use crate::flow::train::{Piece, trace_pieces};
use crate::recipe::{Recipe, Source};

/// The tokenizer of a local teacher.
pub(crate) fn teacher_tokenizer(recipe: &Recipe, source: &Source) -> Result<Tokenizer> {
    super::teacher_files(recipe, source)?.tokenizer.ok_or_else(|| {
        Failure::new(Exit::BadData, "the teacher has no tokenizer")
            .fix("put its `tokenizer.json` beside `config.json`")
    })
}

impl Flow {
    pub(crate) fn teacher_tokenizer(&self) -> Result<Tokenizer> {
        teacher_tokenizer(&self.recipe, &self.source)
    }

    /// The texts of `pieces`, which `tokenizer` made, in the teacher's tokens.
    pub(crate) fn read_by_teacher(
        &self,
        split: Split,
        pieces: &[Piece],
        tokenizer: &Tokenizer,
        teacher: &Tokenizer,
    ) -> Result<Vec<Piece>> {
        if !self.learns_text() {
            return trace_pieces(&self.curated(split)?, teacher);
        }
        let read = |piece: &Piece| {
            let text = text_of(&piece.example.ids, tokenizer);
            let example = examples::from_texts([(&piece.example.id[..], &text[..])], teacher)?.remove(0);
            Ok(Piece { id: piece.id.clone(), sample: piece.sample, example })
        };
        pieces.iter().map(read).collect()
    }

    /// Gives the examples of `pieces` what a teacher that reads them in its own tokens has to do with them, as the losses
    /// want it.
    pub(crate) fn attach_both_readings(
        &self,
        split: Split,
        pieces: Vec<Piece>,
        tokenizer: &Tokenizer,
        config: &TrainConfig,
    ) -> Result<Vec<Example>> {
        let teacher = self.teacher_tokenizer()?;
        let read = examples_of(self.read_by_teacher(split, &pieces, tokenizer, &teacher)?);
        let read = Reading { examples: &read, tokenizer: &teacher };
        let mut examples = examples_of(pieces);
        if config.needs_foreign_readings() {
            let readings = read_in_own_tokens(Reading { examples: &examples, tokenizer }, read)?;
            examples.iter_mut().zip(readings).for_each(|(example, reading)| example.foreign = Some(reading));
        }
        if config.needs_chunks() {
            self.attach_likelihoods(&mut examples, tokenizer, read)?;
        }
        Ok(examples)
    }
}

pub(crate) fn examples_of(pieces: Vec<Piece>) -> Vec<Example> {
    pieces.into_iter().map(|piece| piece.example).collect()
}

/// What tokens of a text stand for, special ones aside.
fn text_of(ids: &[u32], tokenizer: &Tokenizer) -> String {
    let text = ids.iter().filter(|&&id| !tokenizer.is_special(id));
    let bytes: Vec<u8> = text.flat_map(|&id| tokenizer.token_bytes(id).unwrap_or_default()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether a teacher of this tokenizer can learn something from these tokens of a text: its own must be two at least.
pub(crate) fn has_two_tokens(ids: &[u32], tokenizer: &Tokenizer, teacher: &Tokenizer) -> bool {
    teacher.encode_plain(&text_of(ids, tokenizer)).is_ok_and(|ids| ids.len() > 1)
}

/// The ids before `end` of a text that may be cut there: no character is in two pieces.
pub(crate) fn cut_between_characters(ids: &[u32], end: usize, tokenizer: &Tokenizer) -> usize {
    /// A byte of a character that is not its first.
    fn continues(byte: u8) -> bool {
        byte & 0b1100_0000 == 0b1000_0000
    }
    let inside = |&end: &usize| {
        let next = ids.get(end).and_then(|&id| tokenizer.token_bytes(id));
        next.is_some_and(|bytes| bytes.first().is_some_and(|&byte| continues(byte)))
    };
    // A character has four bytes at most.
    (end.saturating_sub(3)..=end).rev().find(|end| *end > 0 && !inside(end)).unwrap_or(end)
}

//! What a live teacher of another tokenizer reads beside the student.
//!
//! Its next-token distribution says something to the student wherever both have read the same bytes: before the first
//! token of a chunk that both split at ([`align`]). There the losses `uld` and `gold` compare the two; the
//! student's other tokens, those within a chunk, have no partner and no such loss.

use std::collections::HashMap;

use stillroom_core::Digester;
use stillroom_formats::Tokenizer;
use stillroom_model::{Batch, ForeignText, MatchedIds};

use crate::alignment::{ReplyTokens, align, check_overlap};
use crate::examples::Reading;
use crate::{DistillError, Example, Result};

/// A text in the tokens of a teacher that has its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignReading {
    pub ids: Vec<u32>,
    /// For each of the student's supervised tokens the position of `ids` whose next-token distribution is of the same place
    /// in the text, if one is; ascending.
    pub partners: Vec<Option<u32>>,
}

impl ForeignReading {
    /// What `teacher` has to say about `student`'s text; both are of one text.
    fn of(student: Reading<'_>, teacher: Reading<'_>, i: usize) -> Result<ForeignReading> {
        let (own, others) = (&student.examples[i], &teacher.examples[i]);
        let (of_student, of_teacher) =
            (ReplyTokens::of(own, student.tokenizer)?, ReplyTokens::of(others, teacher.tokenizer)?);
        let chunks = align(&of_student, &of_teacher);
        check_overlap(&own.id, &of_student, &of_teacher, &chunks)?;
        let positions = others.wanted_positions();
        let mut partners = vec![None; of_student.len()];
        for chunk in chunks {
            partners[chunk.student.start] = Some(positions[chunk.teacher.start]);
        }
        Ok(ForeignReading { ids: others.ids.clone(), partners })
    }

    /// Refuses a reading that does not fit an example of `n_supervised` tokens, or a teacher of `n_ids`.
    pub(crate) fn check(&self, n_supervised: usize, n_ids: usize) -> std::result::Result<(), String> {
        if self.partners.len() != n_supervised {
            return Err(format!("{} partners for {n_supervised} supervised tokens", self.partners.len()));
        }
        if !self.partners.iter().flatten().is_sorted_by(|a, b| a < b) {
            return Err("its teacher goes back in the text".into());
        }
        if self.partners.iter().flatten().any(|&position| position as usize >= self.ids.len()) {
            return Err("its teacher has not read so far".into());
        }
        match self.ids.iter().find(|&&id| id as usize >= n_ids) {
            Some(id) => Err(format!("token {id} is outside the teacher's vocabulary of {n_ids}")),
            None => Ok(()),
        }
    }

    pub(crate) fn digest_into(&self, digester: &mut Digester) {
        digester.update(b"foreign");
        digester.update(&(self.ids.len() as u64).to_le_bytes());
        let partner = |position: &Option<u32>| position.map_or(u32::MAX, |position| position);
        let numbers = self.ids.iter().copied().chain(self.partners.iter().map(partner));
        digester.update(&numbers.flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
    }
}

/// Appends to `text` what its teacher reads of a document of which `n_supervised` supervised tokens are learned.
pub(crate) fn push(text: &mut ForeignText<'_>, reading: &ForeignReading, n_supervised: usize) {
    let first_row = text.batch.n_tokens() as u32;
    text.batch.push(&reading.ids);
    let partners = reading.partners[..n_supervised].iter();
    text.rows.extend(partners.map(|partner| partner.map(|position| first_row + position)));
}

pub(crate) fn nothing_read(matched: &MatchedIds) -> ForeignText<'_> {
    ForeignText { batch: Batch::default(), rows: Vec::new(), matched }
}

/// Gives each example of `student` the same example of `teacher`, which has them in the same order.
///
/// # Errors
/// Replies of which less than half is the same text on both sides.
///
/// # Panics
/// Where there are more of one than of the other.
pub fn read_in_own_tokens(student: Reading<'_>, teacher: Reading<'_>) -> Result<Vec<ForeignReading>> {
    assert_eq!(student.examples.len(), teacher.examples.len(), "the teacher reads every example");
    let same = |i: &usize| student.examples[*i].id == teacher.examples[*i].id;
    let read = |i: usize| match same(&i) {
        true => ForeignReading::of(student, teacher, i),
        false => {
            Err(DistillError::example(&student.examples[i].id, "the teacher reads another in its place"))
        }
    };
    (0..student.examples.len()).map(read).collect()
}

/// Ids that are the same token in both vocabularies: those of the same bytes, special ones of the same name, and the
/// tokens that end a turn. Of several ids with the same bytes the first counts.
pub fn matched_ids(student: &Tokenizer, teacher: &Tokenizer) -> MatchedIds {
    let mut of_teacher: HashMap<(bool, Vec<u8>), u32> = HashMap::new();
    for (key, id) in keys(teacher) {
        of_teacher.entry(key).or_insert(id);
    }
    let ends = student.eos_id().zip(teacher.eos_id());
    if let Some((_, end)) = ends {
        of_teacher.retain(|_, &mut id| id != end);
    }
    let own = keys(student).filter(|&(_, id)| ends.is_none_or(|(end, _)| id != end));
    let pairs = own.filter_map(|(key, id)| Some((id, of_teacher.remove(&key)?))).chain(ends).collect();
    MatchedIds::new(student.vocab_size(), teacher.vocab_size(), pairs)
}

/// What makes an id of a vocabulary the token that it is: whether it is special, and its bytes.
fn keys(tokenizer: &Tokenizer) -> impl Iterator<Item = ((bool, Vec<u8>), u32)> + '_ {
    let key = |id: u32| {
        let special = tokenizer.is_special(id);
        let bytes = if special { tokenizer.token(id)?.into_bytes() } else { tokenizer.token_bytes(id)? };
        Some(((special, bytes), id))
    };
    (0..tokenizer.vocab_size() as u32).filter_map(key)
}

/// Refuses examples that a teacher with tokens of its own has not read.
pub(crate) fn check_readings(examples: &[Example], n_ids: usize, context: usize) -> Result<()> {
    for example in examples {
        let id = &example.id;
        let reading = example.foreign.as_ref();
        let reading = reading.ok_or_else(|| DistillError::NoForeignReading { id: id.clone() })?;
        reading.check(example.n_supervised(), n_ids).map_err(|what| DistillError::example(id, what))?;
        let n_tokens = reading.ids.len();
        if n_tokens > context {
            return Err(DistillError::TooLong { id: id.clone(), n_tokens, max_length: context });
        }
    }
    Ok(())
}

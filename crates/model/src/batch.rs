//! Packed documents and what supervises them.

use std::ops::Range;

use stillroom_core::Tail;
use stillroom_kernels::{ForeignVocabulary, HeadTargets, MatchedIds, Segment, SparseTargets, TailMode};

use crate::decoder::Decoder;
use crate::ensemble::{Ensemble, dense};
use crate::hidden::{HiddenAlignment, HiddenTargets};
use crate::label_loss::WeightedLabelLoss;
use crate::workspace::Lent;

/// Documents packed one after the other; each attends to itself only and its positions start at 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub ids: Vec<u32>,
    /// In order, without gaps, covering `ids`.
    pub segments: Vec<Segment>,
}

impl Batch {
    /// Packs documents in the order given. An empty document takes no row and no segment.
    pub fn from_documents(documents: &[&[u32]]) -> Batch {
        let mut batch = Batch::default();
        documents.iter().for_each(|ids| batch.push(ids));
        batch
    }

    /// Appends a document; an empty one leaves the batch as it is.
    pub fn push(&mut self, ids: &[u32]) {
        if !ids.is_empty() {
            self.segments.push(Segment { start: self.ids.len(), len: ids.len() });
            self.ids.extend_from_slice(ids);
        }
    }

    /// Rows, one per token.
    pub fn n_tokens(&self) -> usize {
        self.ids.len()
    }

    /// Position of each row within its document.
    pub fn positions(&self) -> Vec<u32> {
        self.each_position().collect()
    }

    pub(crate) fn each_position(&self) -> impl Iterator<Item = u32> + '_ {
        self.segments.iter().flat_map(|s| 0..s.len as u32)
    }

    /// The documents in groups of consecutive ones of at most `n_tokens_max` tokens together; `together` of them are
    /// never parted, and where they have more tokens they are a group of their own.
    pub(crate) fn groups(&self, n_tokens_max: usize, together: usize) -> impl Iterator<Item = &[Segment]> {
        let mut rest = &self.segments[..];
        std::iter::from_fn(move || {
            let start = rest.first()?.start;
            let end = |s: &[Segment]| s.last().map_or(start, |s| s.start + s.len);
            let fitting = rest.chunks(together).take_while(|&s| end(s) - start <= n_tokens_max).count();
            let (group, after) = rest.split_at((fitting.max(1) * together).min(rest.len()));
            rest = after;
            Some(group)
        })
    }

    /// Becomes the `documents`, consecutive ones of `whole`, and gives the row at which they begin there.
    /// Keeps its own memory.
    pub(crate) fn set_part(&mut self, whole: &Batch, documents: &[Segment]) -> usize {
        self.ids.clear();
        self.segments.clear();
        documents.iter().for_each(|s| self.push(&whole.ids[s.start..s.start + s.len]));
        documents.first().map_or(0, |s| s.start)
    }

    pub(crate) fn check(&self) {
        let end = self.segments.iter().fold(0, |end, s| {
            assert!(s.start == end && s.len > 0, "segment {s:?} does not follow row {end}");
            end + s.len
        });
        assert_eq!(end, self.ids.len(), "segments do not cover the batch");
    }
}

/// Supervision of a batch: row `rows[i]` is taught `hard_labels[i]` and row i of `sparse`, or what `live`
/// makes of the same documents. There is one teacher, or none.
#[derive(Clone, Debug, Default)]
pub struct Targets<'t> {
    /// Batch rows with supervision, ascending. The token that row r predicts is at row r + 1.
    pub rows: Vec<u32>,
    /// The text's own next token of each row; empty for none.
    pub hard_labels: Vec<u32>,
    pub sparse: Option<SparseBatch>,
    pub live: Option<LiveTeacher<'t>>,
    /// How the directions of hidden states follow those of `live`.
    pub hidden: Option<HiddenAlignment<'t>>,
    /// A loss of log q(`hard_labels`), where there are some.
    pub label_loss: Option<WeightedLabelLoss<'t>>,
    /// What `live` reads where its tokens are not the student's.
    pub foreign: Option<ForeignText<'t>>,
    /// How many consecutive documents, from the first on, belong to one part of the label loss: 2 for pairs. 0 is 1.
    pub documents_together: usize,
}

/// A teacher at hand. It reads each group of documents right before the student does; its logits exist for
/// a chunk of rows at a time. What it gives has the bits that it gives alone.
#[derive(Clone, Copy, Debug)]
pub struct LiveTeacher<'t> {
    pub decoder: &'t Decoder,
    /// How many ids both vocabularies have, from 0; needed where they differ in size, by their paddings. Of a teacher
    /// that reads a [`ForeignText`], how many the student has.
    pub n_ids: Option<usize>,
    /// Teachers that it is mixed with: what supervises is then the mixture.
    pub ensemble: Option<Ensemble<'t>>,
}

/// The batch's texts in the tokens of a live teacher that has a vocabulary of its own.
#[derive(Clone, Debug)]
pub struct ForeignText<'t> {
    /// A document for each of the student's, in order.
    pub batch: Batch,
    /// For each supervised row the row of `batch` before which the teacher has read the same text, if one has; ascending.
    pub rows: Vec<Option<u32>>,
    pub matched: &'t MatchedIds,
}

impl<'t> ForeignText<'t> {
    /// The teacher reads its `documents`, which belong to the supervised rows `rows`.
    fn read(&self, teacher: LiveTeacher<'t>, documents: &[Segment], rows: &[Option<u32>]) -> Read<'t> {
        let mut group = Batch::default();
        let start = group.set_part(&self.batch, documents) as u32;
        let mut wanted: Vec<u32> = rows.iter().flatten().map(|row| row - start).collect();
        let mut next = 0;
        let mut place = |row: &Option<u32>| {
            next += u32::from(row.is_some());
            // A row without a partner borrows another's hidden state; what it gives is not looked at.
            if row.is_some() { next - 1 } else { 0 }
        };
        let places: Vec<u32> = rows.iter().map(&mut place).collect();
        if wanted.is_empty() {
            wanted.push(0);
        }
        let decoder = teacher.decoder;
        let positions = group.positions();
        let mut pass = decoder.documents(&group, &positions);
        let x = decoder.layers_forward(&group.ids, &mut pass, Some(&wanted), None);
        let hidden = decoder.final_norm(x, wanted.len());
        let of_rows = decoder.gather(&hidden, &places, decoder.config.hidden_size);
        decoder.workspace.give(hidden);
        let paired = rows.iter().map(Option::is_some).collect();
        let foreign = Some(Partners { paired, matched: self.matched });
        Read { teacher, hidden: of_rows, states: Vec::new(), alignment: None, foreign, others: Vec::new() }
    }
}

/// Which rows a teacher with another vocabulary supervises.
struct Partners<'t> {
    paired: Vec<bool>,
    matched: &'t MatchedIds,
}

/// What a live teacher makes of a group of documents.
pub(crate) struct Read<'t> {
    teacher: LiveTeacher<'t>,
    /// Its final hidden states of the supervised rows, after the norm.
    hidden: Lent,
    /// What the layers give that the student's are compared with.
    states: Vec<Lent>,
    alignment: Option<HiddenAlignment<'t>>,
    foreign: Option<Partners<'t>>,
    /// What `hidden` is, of the teachers that this one is mixed with.
    others: Vec<Lent>,
}

impl<'t> LiveTeacher<'t> {
    /// Reads a group, and so do those that it is mixed with. Buffers are each teacher's own.
    pub(crate) fn read(
        self,
        group: &Batch,
        positions: &[u32],
        rows: &[u32],
        alignment: Option<HiddenAlignment<'t>>,
    ) -> Read<'t> {
        let (x, states) = match alignment {
            Some(HiddenAlignment { pairs, .. }) => {
                self.decoder.tapped(group, positions, rows, pairs.iter().map(|pair| pair.teacher))
            }
            None => {
                let mut pass = self.decoder.documents(group, positions);
                (self.decoder.layers_forward(&group.ids, &mut pass, Some(rows), None), Vec::new())
            }
        };
        let hidden = self.decoder.final_norm(x, rows.len());
        let others = self.others_hidden(group, rows);
        Read { teacher: self, hidden, states, alignment, foreign: None, others }
    }
}

impl Read<'_> {
    /// `targets` with this teacher in them.
    pub(crate) fn supervise<'a>(&'a self, targets: HeadTargets<'a>) -> HeadTargets<'a> {
        let dense = Some(dense(self.teacher.decoder, &self.hidden));
        let mixture = self.teacher.ensemble.map(|ensemble| ensemble.mixture(&self.others));
        let foreign = self.foreign.as_ref();
        let foreign = foreign.map(|of| ForeignVocabulary { matched: of.matched, paired: &of.paired });
        HeadTargets { dense, mixture, n_ids: self.teacher.n_ids, foreign, ..targets }
    }

    /// What the student's layers are held against, if they are.
    pub(crate) fn hidden_targets(&self) -> Option<HiddenTargets<'_>> {
        self.alignment.map(|alignment| HiddenTargets { alignment, states: &self.states })
    }

    pub(crate) fn give_back(self) {
        self.teacher.give_back(self.others);
        self.teacher.decoder.workspace.give_all(self.states.into_iter().chain([self.hidden]));
    }
}

/// Teacher distributions in compressed rows; the owned twin of [`SparseTargets`].
#[derive(Clone, Debug, PartialEq)]
pub struct SparseBatch {
    /// Row i holds `offsets[i]..offsets[i + 1]`; one more than there are rows, from 0.
    pub offsets: Vec<u32>,
    pub ids: Vec<u32>,
    pub probs: Vec<f32>,
    /// Entropy in nats of the teacher's full distribution, per row.
    pub teacher_entropy: Vec<f32>,
    pub tail: Tail,
}

impl SparseBatch {
    pub fn new(tail: Tail) -> SparseBatch {
        SparseBatch {
            offsets: vec![0],
            ids: Vec::new(),
            probs: Vec::new(),
            teacher_entropy: Vec::new(),
            tail,
        }
    }

    /// Appends one row.
    pub fn push(&mut self, row: &stillroom_core::SparseRow) {
        self.ids.extend_from_slice(&row.ids);
        self.probs.extend_from_slice(&row.probs);
        self.teacher_entropy.push(row.teacher_entropy);
        self.offsets.push(self.ids.len() as u32);
    }

    fn check(&self, n_rows: usize, vocab_size: usize) {
        assert_eq!(self.offsets.len(), n_rows + 1, "one offset more than rows");
        assert_eq!(self.teacher_entropy.len(), n_rows, "one entropy per row");
        assert_eq!(self.ids.len(), self.probs.len(), "one weight per id");
        assert_eq!(self.offsets.last().copied(), Some(self.ids.len() as u32), "offsets end at the last id");
        assert!(self.ids.iter().all(|&id| (id as usize) < vocab_size), "target outside the vocabulary");
    }
}

impl<'t> Targets<'t> {
    pub(crate) fn check(&self, n_tokens: usize, vocab_size: usize) {
        if let Some(foreign) = &self.foreign {
            assert!(
                self.live.is_some() && self.hidden.is_none(),
                "another vocabulary is a live teacher's head's"
            );
            assert_eq!(foreign.rows.len(), self.rows.len(), "a partner or none per row");
            assert!(foreign.rows.iter().flatten().is_sorted_by(|a, b| a < b), "partners ascend");
            foreign.batch.check();
        }
        assert!(self.rows.windows(2).all(|w| w[0] < w[1]), "supervised rows ascend");
        assert!(
            self.rows.last().is_none_or(|&r| (r as usize) < n_tokens),
            "supervised row outside the batch"
        );
        assert!(
            self.hard_labels.is_empty() || self.hard_labels.len() == self.rows.len(),
            "one label per row"
        );
        assert!(self.label_loss.is_none() || !self.hard_labels.is_empty(), "a loss of labels needs them");
        let n_ids = self.live.and_then(|live| live.n_ids).unwrap_or(vocab_size);
        assert!(
            self.hard_labels.iter().all(|&id| (id as usize) < vocab_size.min(n_ids)),
            "label outside the vocabulary"
        );
        if let Some(sparse) = &self.sparse {
            sparse.check(self.rows.len(), vocab_size);
        }
        let several = self.live.is_some_and(|live| live.ensemble.is_some());
        assert!(
            !several || (self.hidden.is_none() && self.foreign.is_none()),
            "several teachers are mixed in their distributions over one vocabulary, and in nothing else"
        );
        assert!(self.hidden.is_none() || self.live.is_some(), "hidden states are those of a live teacher");
    }

    /// Groups of documents ([`Batch::groups`]) that have supervised rows, with the range of `rows` in each.
    pub(crate) fn groups<'a>(
        &'a self,
        batch: &'a Batch,
        n_tokens_max: usize,
    ) -> impl Iterator<Item = (&'a [Segment], Range<usize>)> {
        let place = |row: usize| self.rows.partition_point(|&r| (r as usize) < row);
        let with_rows = move |documents: &'a [Segment]| {
            let (first, last) = (documents.first()?, documents.last()?);
            let supervised = place(first.start)..place(last.start + last.len);
            (!supervised.is_empty()).then_some((documents, supervised))
        };
        batch.groups(n_tokens_max, self.documents_together.max(1)).filter_map(with_rows)
    }

    /// What the live teacher, if there is one, makes of a group of documents whose supervised rows are
    /// `rows[supervised]` of the batch `whole`, and `rows` of the `group`.
    pub(crate) fn read(
        &self,
        (whole, documents): (&Batch, &[Segment]),
        (group, positions): (&Batch, &[u32]),
        rows: &[u32],
        supervised: Range<usize>,
    ) -> Option<Read<'t>> {
        let teacher = self.live?;
        let Some(foreign) = &self.foreign else {
            return Some(teacher.read(group, positions, rows, self.hidden));
        };
        let start = documents.first().map_or(0, |first| first.start);
        let first = whole.segments.partition_point(|s| s.start < start);
        let documents = &foreign.batch.segments[first..first + documents.len()];
        Some(foreign.read(teacher, documents, &foreign.rows[supervised]))
    }

    /// What supervises `rows[range]`, a live teacher aside.
    pub(crate) fn head_of(&self, range: Range<usize>) -> HeadTargets<'_> {
        HeadTargets {
            hard_labels: (!self.hard_labels.is_empty()).then(|| &self.hard_labels[range.clone()]),
            sparse: self.sparse.as_ref().map(|s| SparseTargets {
                offsets: &s.offsets[range.start..=range.end],
                ids: &s.ids,
                probs: &s.probs,
                teacher_entropy: &s.teacher_entropy[range.clone()],
                tail: tail_mode(s.tail),
            }),
            ..HeadTargets::default()
        }
    }
}

/// What the kernels call a stored cache's tail.
pub fn tail_mode(tail: Tail) -> TailMode {
    match tail {
        Tail::None => TailMode::None,
        Tail::Drop => TailMode::Drop,
        Tail::Renormalise => TailMode::Renormalise,
        Tail::Bucket => TailMode::Bucket,
        Tail::Uniform => TailMode::Uniform,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_laid_out_one_after_the_other() {
        let batch = Batch::from_documents(&[&[5, 6, 7], &[], &[8]]);
        assert_eq!(batch.ids, [5, 6, 7, 8]);
        assert_eq!(batch.segments, [Segment { start: 0, len: 3 }, Segment { start: 3, len: 1 }]);
        assert_eq!(batch.positions(), [0, 1, 2, 0]);
        batch.check();
    }

    #[test]
    fn groups_hold_whole_documents_and_keep_their_order() {
        let batch = Batch::from_documents(&[&[1; 3], &[2; 4], &[3; 9], &[4; 1], &[5; 7]]);
        let sizes = |max, together| batch.groups(max, together).map(<[_]>::len).collect::<Vec<_>>();
        assert_eq!(sizes(7, 1), [2, 1, 1, 1]);
        assert_eq!(sizes(8, 1), [2, 1, 2]);
        assert_eq!(sizes(100, 1), [5]);
        assert_eq!(sizes(1, 2), [2, 2, 1]);
        assert_eq!(sizes(17, 2), [4, 1]);
        assert_eq!(Batch::default().groups(8, 1).count(), 0);
        let mut part = Batch::from_documents(&[&[9; 2]]);
        part.set_part(&batch, batch.groups(8, 1).last().unwrap());
        assert_eq!(part, Batch::from_documents(&[&[4; 1], &[5; 7]]));
    }

    #[test]
    #[should_panic(expected = "does not follow")]
    fn a_gap_between_segments_is_refused() {
        Batch { ids: vec![1, 2], segments: vec![Segment { start: 1, len: 1 }] }.check();
    }

    #[test]
    #[should_panic(expected = "label outside")]
    fn a_label_outside_the_vocabulary_is_refused() {
        Targets { rows: vec![0], hard_labels: vec![9], ..Targets::default() }.check(1, 9);
    }
}

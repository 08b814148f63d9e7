//! The divergence head: linear + softmax + divergence in chunks, forward and backward in one pass.

use crate::device::{Buf, Weight};
use crate::divergence::{DivergenceError, HeadTerms, SparseRow, TERMS_MAX, TeacherRow, Term, row_losses};
use crate::mixture::Mixture;
use crate::pool::Shards;
use crate::scratch::with_scratch;
use crate::uld::{ForeignRow, MatchedIds};

/// What becomes of teacher mass outside the stored ids; what that means for each divergence stands in
/// [`crate::divergence`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TailMode {
    /// The weights are draws from the whole distribution (random sampling): no tail.
    None,
    /// Ignored without renormalisation.
    Drop,
    /// Ignored, with the stored probabilities scaled to sum to one and the student's left as they are.
    Renormalise,
    /// One bucket on both sides.
    Bucket,
    /// Spread evenly over the other V − K ids.
    Uniform,
}

/// Teacher targets of all rows, in compressed rows: row r holds `offsets[r]..offsets[r+1]`.
#[derive(Clone, Copy, Debug)]
pub struct SparseTargets<'a> {
    pub offsets: &'a [u32],
    /// Unique within a row.
    pub ids: &'a [u32],
    pub probs: &'a [f32],
    /// Entropy in nats of the teacher's full distribution (at the loss temperature), per row;
    /// used where `tail` is [`TailMode::None`], so that what is reported is KL and not cross-entropy.
    pub teacher_entropy: &'a [f32],
    pub tail: TailMode,
}

/// A teacher at hand: its logits are computed beside the student's, a chunk of rows at a time, and are never
/// there as a whole.
#[derive(Clone, Copy)]
pub struct DenseTargets<'a> {
    /// What goes into the teacher's head: rows of its width, after the final norm.
    pub hidden: &'a Buf,
    /// The row of `hidden` that supervises row 0.
    pub first_row: usize,
    /// The teacher's head \[V, width\].
    pub head: Weight<'a>,
}

/// Supervision of each row. There is one teacher: `sparse` or `dense`.
#[derive(Clone, Copy, Default)]
pub struct HeadTargets<'a> {
    /// The text's own next token, per row.
    pub hard_labels: Option<&'a [u32]>,
    /// What −log q(label) of each row weighs in the gradient beside [`HeadTerms::hard_label`]; may be negative.
    /// Losses that are reported do not have it.
    pub label_weights: Option<&'a [f32]>,
    pub sparse: Option<SparseTargets<'a>>,
    pub dense: Option<DenseTargets<'a>>,
    /// Teachers whose distributions are mixed with that of `dense`; without one they have no part.
    pub mixture: Option<Mixture<'a>>,
    /// Ids from here on carry no token (a padded vocabulary): neither side gives them anything, and their
    /// gradient is 0. None where every id of the head is a token.
    pub n_ids: Option<usize>,
    /// The dense teacher has another vocabulary. `n_ids` is then of the student's alone.
    pub foreign: Option<ForeignVocabulary<'a>>,
}

/// How a dense teacher's other vocabulary and tokens go with the student's.
#[derive(Clone, Copy, Debug)]
pub struct ForeignVocabulary<'a> {
    pub matched: &'a MatchedIds,
    /// Which rows both sides reach with the same text: elsewhere their distributions are of different things, and
    /// have no loss.
    pub paired: &'a [bool],
}

impl HeadTargets<'_> {
    /// Whether these targets can give this loss, to a student with a head of `vocab` ids. To be asked before any work.
    pub fn validate(&self, terms: &HeadTerms<'_>, vocab: usize) -> Result<(), DivergenceError> {
        terms.validate()?;
        let (sparse, dense) = (self.sparse.as_ref(), self.dense.as_ref());
        if sparse.is_some() && dense.is_some() {
            return Err(DivergenceError::TwoTeachers);
        }
        let mut teacher = dense.map_or(vocab, |dense| dense.head.n_out());
        let mut widest = teacher;
        if let Some(mixture) = self.mixture.filter(|_| dense.is_some()) {
            if self.foreign.is_some() {
                return Err(DivergenceError::SeveralTeachers);
            }
            (teacher, widest) = mixture.vocabularies(teacher);
        }
        if let Some(ForeignVocabulary { matched, .. }) = self.foreign.filter(|_| dense.is_some()) {
            let n_ids = self.n_ids.unwrap_or(vocab);
            if matched.n_student() != n_ids || matched.n_teacher() > teacher {
                return Err(DivergenceError::Vocabularies { student: vocab, teacher, n_ids: Some(n_ids) });
            }
            (teacher, widest) = (vocab, vocab);
        }
        let n_ids = self.n_ids.unwrap_or(vocab.max(widest));
        if n_ids == 0 || n_ids > vocab.min(teacher) {
            return Err(DivergenceError::Vocabularies { student: vocab, teacher, n_ids: self.n_ids });
        }
        let Some(first) = terms.divergences.first() else {
            return Ok(());
        };
        if !self.has_teacher() {
            return Err(DivergenceError::NoTeacher { divergence: first.divergence.name() });
        }
        let foreign = dense.is_some() && self.foreign.is_some();
        for Term { divergence, .. } in terms.divergences {
            if divergence.of_two_vocabularies() != foreign {
                let (divergence, of_two) = (divergence.name(), divergence.of_two_vocabularies());
                return Err(DivergenceError::Vocabulary { divergence, of_two });
            }
        }
        let Some(sparse) = sparse else {
            return Ok(());
        };
        for term in terms.divergences {
            term.divergence.validate_for(sparse.tail)?;
            if term.temperature != first.temperature {
                let (first, other) = (first.temperature, term.temperature);
                return Err(DivergenceError::Temperatures { first, other });
            }
        }
        Ok(())
    }

    pub fn has_teacher(&self) -> bool {
        self.sparse.is_some() || self.dense.is_some()
    }

    /// Most numbers that a row's losses need room for.
    pub(crate) fn n_kept_max(&self) -> usize {
        let foreign = self.foreign.map_or(0, |foreign| foreign.row(&[]).n_room());
        self.sparse.map_or(foreign, |sparse| sparse.n_ids_max())
    }

    /// The loss of row `r`, and its gradient in place of `z`. `t` holds the teacher's logits where it is dense.
    pub(crate) fn row(&self, z: &mut [f32], t: &[f32], r: usize, terms: &HeadTerms<'_>) -> RowLosses {
        let n_ids = self.n_ids.unwrap_or(z.len());
        let (z, padding) = z.split_at_mut(n_ids);
        let teacher = match (&self.sparse, &self.dense) {
            (Some(sparse), _) => Some(TeacherRow::Sparse(sparse.row(r))),
            (None, Some(_)) if self.foreign.is_some() => self
                .foreign
                .filter(|foreign| foreign.paired[r])
                .map(|foreign| TeacherRow::Foreign(foreign.row(t))),
            (None, Some(_)) => Some(TeacherRow::Logits(&t[..n_ids])),
            (None, None) => None,
        };
        let label = self.hard_labels.map(|labels| labels[r]);
        let weight = self.label_weights.map_or(0.0, |weights| weights[r]);
        let terms = &HeadTerms { hard_label: terms.hard_label + weight, ..*terms };
        let mut losses = RowLosses::default();
        with_scratch([teacher.map_or(0, |teacher| teacher.n_kept())], |[kept]| {
            losses.hard_label = row_losses(z, kept, label, teacher.as_ref(), terms, &mut losses.divergences);
        });
        losses.captured_mass = teacher.map_or(0.0, |teacher| teacher.captured_mass());
        padding.fill(0.0);
        losses
    }
}

impl<'a> ForeignVocabulary<'a> {
    /// A row with these logits, of which those behind the vocabulary are padding.
    fn row(self, t: &'a [f32]) -> ForeignRow<'a> {
        ForeignRow { logits: &t[..t.len().min(self.matched.n_teacher())], matched: self.matched }
    }
}

impl<'a> SparseTargets<'a> {
    /// Most ids of a row.
    fn n_ids_max(&self) -> usize {
        self.offsets.windows(2).map(|at| (at[1] - at[0]) as usize).max().unwrap_or(0)
    }

    fn row(&self, r: usize) -> SparseRow<'a> {
        let at = self.offsets[r] as usize..self.offsets[r + 1] as usize;
        SparseRow {
            ids: &self.ids[at.clone()],
            probs: &self.probs[at],
            entropy: self.teacher_entropy.get(r).copied().unwrap_or(0.0),
            tail: self.tail,
        }
    }
}

/// Losses of each row in nats, unweighted; empty where the target is absent.
#[derive(Clone, Debug, Default)]
pub struct HeadLosses {
    pub hard_label: Vec<f32>,
    /// One list per divergence, in the order of the terms, each with its τ².
    pub divergences: Vec<Vec<f32>>,
    /// Teacher probability of the stored ids of each row; 1 for a dense teacher, 0 in rows that it does not pair with.
    pub captured_mass: Vec<f32>,
    /// What a caller makes of the labels' log-probabilities; the head neither fills nor needs it.
    pub label_loss: Vec<f32>,
    /// How far hidden states point from a teacher's; the head neither fills nor needs it either.
    pub hidden: Vec<f32>,
}

impl HeadLosses {
    /// Losses of term `i`, none if there is no such term.
    pub fn divergence(&self, i: usize) -> &[f32] {
        self.divergences.get(i).map_or(&[], |losses| losses)
    }

    /// Forgets all rows and keeps their memory.
    pub fn clear(&mut self) {
        self.hard_label.clear();
        self.divergences.iter_mut().for_each(Vec::clear);
        self.captured_mass.clear();
        self.label_loss.clear();
        self.hidden.clear();
    }

    /// Places for the losses of `n_rows` more rows.
    pub(crate) fn append(
        &mut self,
        n_rows: usize,
        targets: &HeadTargets<'_>,
        n_terms: usize,
    ) -> LossShards<'_> {
        fn places(losses: &mut Vec<f32>, n_rows: usize) -> Shards<'_, f32> {
            let start = losses.len();
            losses.resize(start + n_rows, 0.0);
            Shards::new(&mut losses[start..])
        }
        if self.divergences.len() < n_terms {
            self.divergences.resize_with(n_terms, Vec::new);
        }
        let mut lists = self.divergences[..n_terms].iter_mut();
        LossShards {
            hard_label: targets.hard_labels.map(|_| places(&mut self.hard_label, n_rows)),
            divergences: std::array::from_fn(|_| lists.next().map(|losses| places(losses, n_rows))),
            captured_mass: targets.has_teacher().then(|| places(&mut self.captured_mass, n_rows)),
        }
    }
}

/// Losses of one row.
#[derive(Default)]
pub(crate) struct RowLosses {
    hard_label: f32,
    divergences: [f32; TERMS_MAX],
    captured_mass: f32,
}

/// [`HeadLosses`] that several threads fill, each its own rows.
pub(crate) struct LossShards<'a> {
    hard_label: Option<Shards<'a, f32>>,
    divergences: [Option<Shards<'a, f32>>; TERMS_MAX],
    captured_mass: Option<Shards<'a, f32>>,
}

impl LossShards<'_> {
    /// Stores the losses of row `r`, which is visited once.
    pub(crate) fn put(&self, r: usize, row: &RowLosses) {
        let put = |(losses, loss): (&Option<Shards<'_, f32>>, f32)| {
            if let Some(losses) = losses {
                // SAFETY: one number per row, each row visited once.
                unsafe { losses.piece(r, 1)[0] = loss };
            }
        };
        [(&self.hard_label, row.hard_label), (&self.captured_mass, row.captured_mass)]
            .into_iter()
            .for_each(put);
        self.divergences.iter().zip(row.divergences).for_each(put);
    }
}

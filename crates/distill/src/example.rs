//! One document to learn from.

use stillroom_core::{Digester, SparseRow, Tail};

use crate::{DistillError, ForeignReading, Result, TeacherChunk};

/// How far the stored weights of a row may sum from one, where they should: f32 rounding of many terms.
const MASS_SLACK: f64 = 1e-3;

/// A document with its supervision: token `t` ≥ 1 with `supervised[t]` is predicted from those before it.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    pub id: String,
    pub ids: Vec<u32>,
    /// As long as `ids`; the first token cannot be supervised.
    pub supervised: Vec<bool>,
    /// The teacher's distribution for each supervised token, in order.
    pub sparse: Option<Vec<SparseRow>>,
    /// What a teacher of another tokenizer says about some of the supervised tokens together, in order.
    pub chunks: Option<Vec<TeacherChunk>>,
    /// The text in the tokens of a live teacher that has its own.
    pub foreign: Option<ForeignReading>,
    /// The document that this one was preferred to.
    pub rejected: Option<Rejected>,
}

/// The other document of a pair; see [`DirectPreference`](crate::DirectPreference).
#[derive(Clone, Debug, PartialEq)]
pub struct Rejected {
    pub ids: Vec<u32>,
    /// As long as `ids`; the first token cannot be supervised.
    pub supervised: Vec<bool>,
    /// Σ log π₀ of the supervised tokens, in nats: of the preferred document, then of this one.
    pub reference: [f64; 2],
}

impl Example {
    /// An example whose parts fit together; see [`Example::check`] for what depends on the student.
    pub fn new(
        id: impl Into<String>,
        ids: Vec<u32>,
        supervised: Vec<bool>,
        sparse: Option<Vec<SparseRow>>,
    ) -> Result<Example> {
        let (id, chunks, foreign, rejected) = (id.into(), None, None, None);
        let example = Example { id, ids, supervised, sparse, chunks, foreign, rejected };
        example.check_parts()?;
        Ok(example)
    }

    /// A plain text: every token but the first is supervised.
    pub fn from_text_ids(id: impl Into<String>, ids: Vec<u32>) -> Result<Example> {
        let supervised = (0..ids.len()).map(|t| t > 0).collect();
        Example::new(id, ids, supervised, None)
    }

    /// A pair of which `chosen` was preferred to `rejected`. What the reference says of them is filled in by
    /// [`score_by_reference`](crate::examples::score_by_reference).
    pub fn pair(chosen: Example, rejected: Example) -> Example {
        let Example { ids, supervised, .. } = rejected;
        Example { rejected: Some(Rejected { ids, supervised, reference: [f64::NAN; 2] }), ..chosen }
    }

    /// Tokens with supervision, the other document of a pair aside.
    pub fn n_supervised(&self) -> usize {
        n_supervised(&self.supervised)
    }

    /// Tokens, those of both documents of a pair.
    pub fn n_tokens(&self) -> usize {
        self.ids.len() + self.rejected.as_ref().map_or(0, |rejected| rejected.ids.len())
    }

    /// Positions whose next-token distribution supervises this example, ascending: `t − 1` for each
    /// supervised token `t`. What to ask a teacher for, so that its rows fit `sparse`.
    pub fn wanted_positions(&self) -> Vec<u32> {
        let supervised = self.supervised.iter().enumerate().skip(1);
        supervised.filter(|&(_, &s)| s).map(|(t, _)| t as u32 - 1).collect()
    }

    /// Refuses an example that a student with `vocab_size` tokens cannot learn from: ids out of range, a
    /// mask of the wrong length or without a supervised token, and, where `tail` is given, teacher rows
    /// that are missing or no distributions.
    pub fn check(&self, vocab_size: usize, tail: Option<Tail>) -> Result<()> {
        self.check_parts()?;
        if let Some(t) = self.ids.iter().position(|&id| id as usize >= vocab_size) {
            let what =
                format!("token {} at position {t} is outside the vocabulary of {vocab_size}", self.ids[t]);
            return Err(DistillError::example(&self.id, what));
        }
        if let Some(rejected) = &self.rejected {
            rejected.check(vocab_size).map_err(|what| DistillError::example(&self.id, what))?;
        }
        let Some(tail) = tail else { return Ok(()) };
        let rows =
            self.sparse.as_ref().ok_or_else(|| DistillError::NoTeacherTargets { id: self.id.clone() })?;
        for (k, row) in rows.iter().enumerate() {
            check_row(row, vocab_size, tail)
                .map_err(|what| DistillError::example(&self.id, format!("teacher row {k}: {what}")))?;
        }
        Ok(())
    }

    fn check_parts(&self) -> Result<()> {
        let refuse = |what: String| Err(DistillError::example(&self.id, what));
        if self.supervised.len() != self.ids.len() {
            return refuse(format!("{} tokens, but a mask for {}", self.ids.len(), self.supervised.len()));
        }
        if self.supervised.first() == Some(&true) {
            return refuse("the first token cannot be supervised, nothing comes before it".into());
        }
        let n_supervised = self.n_supervised();
        if n_supervised == 0 {
            return refuse("no token is supervised".into());
        }
        let mut free = 0;
        for chunk in self.chunks.iter().flatten() {
            let TeacherChunk { tokens, logprob } = chunk;
            if tokens.start < free || tokens.is_empty() || tokens.end > n_supervised {
                return refuse(format!(
                    "tokens {tokens:?} of {n_supervised} are no chunk behind token {free}"
                ));
            }
            if logprob.is_nan() || *logprob > MASS_SLACK {
                return refuse(format!("the teacher's log-likelihood of tokens {tokens:?} is {logprob}"));
            }
            free = tokens.end;
        }
        match &self.sparse {
            Some(rows) if rows.len() != n_supervised => {
                Err(DistillError::TargetCount { id: self.id.clone(), n_rows: rows.len(), n_supervised })
            }
            _ => Ok(()),
        }
    }

    /// Adds everything that training sees of this example; the id is only a name.
    pub(crate) fn digest_into(&self, digester: &mut Digester, with_sparse: bool) {
        digester.update(&(self.ids.len() as u64).to_le_bytes());
        let bytes: Vec<u8> = self.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        digester.update(&bytes);
        let mask: Vec<u8> = self.supervised.iter().map(|&s| u8::from(s)).collect();
        digester.update(&mask);
        let rows = self.sparse.as_deref().filter(|_| with_sparse).unwrap_or(&[]);
        digester.update(&(rows.len() as u64).to_le_bytes());
        for row in rows {
            let mut bytes = Vec::with_capacity(12 + 8 * row.ids.len());
            bytes.extend((row.ids.len() as u64).to_le_bytes());
            bytes.extend(row.teacher_entropy.to_le_bytes());
            row.ids.iter().for_each(|id| bytes.extend(id.to_le_bytes()));
            row.probs.iter().for_each(|p| bytes.extend(p.to_le_bytes()));
            digester.update(&bytes);
        }
        if let Some(Rejected { ids, supervised, reference }) = &self.rejected {
            let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            digester.update(b"rejected");
            digester.update(&(ids.len() as u64).to_le_bytes());
            digester.update(&bytes);
            digester.update(&supervised.iter().map(|&s| u8::from(s)).collect::<Vec<u8>>());
            reference.iter().for_each(|logprob| digester.update(&logprob.to_le_bytes()));
        }
        for chunk in self.chunks.iter().flatten() {
            let numbers = [chunk.tokens.start as u64, chunk.tokens.end as u64, chunk.logprob.to_bits()];
            numbers.iter().for_each(|n| digester.update(&n.to_le_bytes()));
        }
        self.foreign.iter().for_each(|reading| reading.digest_into(digester));
    }
}

impl Rejected {
    pub(crate) fn n_supervised(&self) -> usize {
        n_supervised(&self.supervised)
    }

    fn check(&self, vocab_size: usize) -> std::result::Result<(), String> {
        if self.supervised.len() != self.ids.len() || self.supervised.first() == Some(&true) {
            return Err("the mask of the rejected document does not fit".into());
        }
        if self.n_supervised() == 0 {
            return Err("no token of the rejected document is supervised".into());
        }
        if let Some(id) = self.ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(format!(
                "token {id} of the rejected document is outside the vocabulary of {vocab_size}"
            ));
        }
        match self.reference.iter().find(|logprob| !(logprob.is_finite() && **logprob <= MASS_SLACK)) {
            Some(logprob) => Err(format!("the reference gives a document of the pair {logprob} nats")),
            None => Ok(()),
        }
    }
}

fn n_supervised(supervised: &[bool]) -> usize {
    supervised.iter().filter(|&&s| s).count()
}

fn check_row(row: &SparseRow, vocab_size: usize, tail: Tail) -> std::result::Result<(), String> {
    if row.ids.len() != row.probs.len() {
        return Err(format!("{} ids, but {} weights", row.ids.len(), row.probs.len()));
    }
    if row.ids.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Err("its ids do not ascend".into());
    }
    if let Some(&id) = row.ids.last().filter(|&&id| id as usize >= vocab_size) {
        return Err(format!("token {id} is outside the vocabulary of {vocab_size}"));
    }
    if let Some(p) = row.probs.iter().find(|p| !(0.0..=1.0 + MASS_SLACK as f32).contains(*p)) {
        return Err(format!("weight {p} is not between 0 and 1"));
    }
    let mass: f64 = row.probs.iter().map(|&p| f64::from(p)).sum();
    if mass > 1.0 + MASS_SLACK || (tail == Tail::None && mass < 1.0 - MASS_SLACK) {
        return Err(format!("its weights sum to {mass}"));
    }
    if !row.teacher_entropy.is_finite() || row.teacher_entropy < -(MASS_SLACK as f32) {
        return Err(format!("its entropy is {}", row.teacher_entropy));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ids: &[u32], probs: &[f32]) -> SparseRow {
        SparseRow { ids: ids.to_vec(), probs: probs.to_vec(), teacher_entropy: 0.5 }
    }

    fn with_rows(rows: Vec<SparseRow>) -> Example {
        let supervised = (0..=rows.len()).map(|t| t > 0).collect();
        let ids = vec![1; rows.len() + 1];
        let (id, sparse) = ("x".into(), Some(rows));
        Example { id, ids, supervised, sparse, chunks: None, foreign: None, rejected: None }
    }

    #[test]
    fn a_teacher_is_asked_for_the_position_before_each_supervised_token() {
        let example = Example::new("a", vec![5, 6, 7, 8], vec![false, true, false, true], None).unwrap();
        assert_eq!((example.wanted_positions(), example.n_supervised()), (vec![0, 2], 2));
        let text = Example::from_text_ids("b", vec![5, 6, 7]).unwrap();
        assert_eq!(text.wanted_positions(), [0, 1]);
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        assert!(Example::new("a", vec![1, 2], vec![false], None).is_err());
        assert!(Example::new("a", vec![1, 2], vec![true, true], None).is_err());
        assert!(Example::new("a", vec![1, 2], vec![false, false], None).is_err());
        assert!(Example::from_text_ids("a", vec![1]).is_err());
        assert!(Example::from_text_ids("a", vec![]).is_err());
        let one_row = Some(vec![row(&[1], &[1.0])]);
        let counted = Example::new("a", vec![1, 2, 3], vec![false, true, true], one_row);
        assert!(matches!(counted, Err(DistillError::TargetCount { n_rows: 1, n_supervised: 2, .. })));
    }

    #[test]
    fn rows_that_are_no_distributions_are_refused() {
        with_rows(vec![row(&[1, 3], &[0.5, 0.5])]).check(4, Some(Tail::None)).unwrap();
        with_rows(vec![row(&[1, 3], &[0.5, 0.25])]).check(4, Some(Tail::Bucket)).unwrap();
        let wrong = [
            row(&[3, 1], &[0.5, 0.5]),
            row(&[1, 1], &[0.5, 0.5]),
            row(&[1, 4], &[0.5, 0.5]),
            row(&[1], &[0.5, 0.5]),
            row(&[1, 2], &[0.5, 0.25]),
            row(&[1, 2], &[0.9, 0.9]),
            row(&[1, 2], &[1.5, -0.5]),
            row(&[1, 2], &[f32::NAN, 0.5]),
            SparseRow { teacher_entropy: f32::INFINITY, ..row(&[1], &[1.0]) },
        ];
        for row in wrong {
            assert!(with_rows(vec![row.clone()]).check(4, Some(Tail::None)).is_err(), "{row:?}");
        }
        let bare = Example::from_text_ids("a", vec![1, 2]).unwrap();
        bare.check(3, None).unwrap();
        assert!(bare.check(2, None).is_err());
        assert!(matches!(bare.check(3, Some(Tail::None)), Err(DistillError::NoTeacherTargets { .. })));
    }
}

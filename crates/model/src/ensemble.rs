//! Several teachers as one: p = Σ wᵢ·softmax(tᵢ), the weights summing to 1, over ids that all have.
//!
//! With log p in the place of one teacher's logits everything that is taken of a teacher is taken of the mixture:
//! losses beside a student, targets to be stored, divergences. A temperature softens the mixture as a whole.

use std::sync::OnceLock;

use stillroom_core::{CounterRng, Digest, Digester, ScoreError, ScoredText, Scorer, SparseRow};
use stillroom_kernels::{Buf, DenseTargets, Mixture};

use crate::batch::{Batch, LiveTeacher};
use crate::decoder::Decoder;
use crate::sampling::{Spacing, draw_targets, top_k};
use crate::score::{Chunk, chunks, empty_rows};
use crate::workspace::Lent;

/// The teachers beside a first one.
#[derive(Clone, Copy, Debug)]
pub struct Ensemble<'t> {
    /// The first teacher's weight. Weights are positive; what they sum to is their unit.
    pub weight: f64,
    /// One at least; together with the first at most [`MIXED_MAX`](stillroom_kernels::MIXED_MAX).
    pub others: &'t [WeightedTeacher<'t>],
}

#[derive(Clone, Copy, Debug)]
pub struct WeightedTeacher<'t> {
    pub decoder: &'t Decoder,
    pub weight: f64,
}

impl<'t> Ensemble<'t> {
    /// What each has of the mixture, the first teacher first.
    pub fn shares(&self) -> impl Iterator<Item = f64> {
        let weights = std::iter::once(self.weight).chain(self.others.iter().map(|teacher| teacher.weight));
        let total: f64 = weights.clone().sum();
        weights.map(move |weight| weight / total)
    }

    /// The mixture of a first teacher with the others, whose final hidden states these are.
    pub(crate) fn mixture<'a>(&self, hidden: &'a [Lent]) -> Mixture<'a>
    where
        't: 'a,
    {
        let dense = |(teacher, hidden): (&WeightedTeacher<'t>, &'a Lent)| {
            (dense(teacher.decoder, hidden), teacher.weight)
        };
        Mixture::new(self.weight, self.others.iter().zip(hidden).map(dense))
    }

    fn give_back(&self, hidden: Vec<Lent>) {
        self.others.iter().zip(hidden).for_each(|(teacher, hidden)| teacher.decoder.workspace.give(hidden));
    }
}

/// A teacher's distributions, given what goes into its head.
pub(crate) fn dense<'a>(decoder: &'a Decoder, hidden: &'a Buf) -> DenseTargets<'a> {
    DenseTargets { hidden, first_row: 0, head: decoder.product(decoder.layout.head_or_embedding()) }
}

/// One teacher, whose ids are all tokens.
impl<'t> From<&'t Decoder> for LiveTeacher<'t> {
    fn from(decoder: &'t Decoder) -> LiveTeacher<'t> {
        LiveTeacher::alone(decoder, None)
    }
}

/// In one pass over all texts.
impl Scorer for LiveTeacher<'_> {
    fn score(&self, texts: &[ScoredText<'_>]) -> Result<Vec<Vec<f32>>, ScoreError> {
        let documents: Vec<&[u32]> = texts.iter().map(|text| text.ids).collect();
        let behind_prompt =
            |(text, logprobs): (&ScoredText<'_>, Vec<f32>)| logprobs[text.n_prompt - 1..].to_vec();
        Ok(texts.iter().zip(self.token_logprobs(&documents)).map(behind_prompt).collect())
    }

    fn identity(&self) -> Digest {
        self.digest()
    }
}

impl<'t> LiveTeacher<'t> {
    /// One teacher; `n_ids` as [`LiveTeacher::n_ids`].
    pub fn alone(decoder: &'t Decoder, n_ids: Option<usize>) -> LiveTeacher<'t> {
        LiveTeacher { decoder, n_ids, ensemble: None }
    }

    /// Mixed with others.
    pub fn mixed(self, ensemble: Option<Ensemble<'t>>) -> LiveTeacher<'t> {
        LiveTeacher { ensemble, ..self }
    }

    /// All of them, in order.
    pub fn decoders(self) -> impl Iterator<Item = &'t Decoder> {
        let others = self.ensemble.map_or(&[][..], |ensemble| ensemble.others);
        std::iter::once(self.decoder).chain(others.iter().map(|teacher| teacher.decoder))
    }

    /// Digest of its weights; of several, of the weights of each and what it has of the mixture.
    pub fn digest(self) -> Digest {
        let first = self.decoder.digest();
        let Some(ensemble) = self.ensemble else { return first };
        let mut digester = Digester::new();
        for (decoder, share) in self.decoders().zip(ensemble.shares()) {
            digester.update(decoder.digest().as_bytes());
            digester.update(&share.to_le_bytes());
        }
        digester.finish()
    }

    /// As many tokens as all of them read at once.
    pub fn max_positions(self) -> usize {
        self.decoders().map(|d| d.config.max_position_embeddings).min().unwrap_or(0)
    }

    /// The smallest and the largest of their vocabularies, paddings included.
    pub fn vocabularies(self) -> (usize, usize) {
        let sizes = self.decoders().map(|decoder| decoder.config.vocab_size);
        sizes.fold((usize::MAX, 0), |(least, most), n| (least.min(n), most.max(n)))
    }

    /// [`Decoder::sampled_targets`], of a mixture where there is one.
    pub fn sampled_targets(
        self,
        documents: &[&[u32]],
        wanted: &[Vec<u32>],
        draws: u32,
        spacing: Spacing,
        temperature: f32,
        keys: &[u64],
        seed: u64,
    ) -> Vec<Vec<SparseRow>> {
        assert_eq!(keys.len(), documents.len(), "one key per document");
        assert!(draws > 0 && temperature > 0.0, "at least one draw at a positive temperature");
        self.read_rows(documents, wanted, |document, position, logits| {
            let mut rng = CounterRng::new(&[seed, keys[document], position as u64]);
            draw_targets(logits, draws, spacing, temperature, &mut rng)
        })
    }

    /// [`Decoder::top_k_targets`], of a mixture where there is one.
    pub fn top_k_targets(
        self,
        documents: &[&[u32]],
        wanted: &[Vec<u32>],
        k: usize,
        temperature: f32,
    ) -> Vec<Vec<SparseRow>> {
        assert!(k > 0 && temperature > 0.0, "at least one id at a positive temperature");
        self.read_rows(documents, wanted, |_, _, logits| top_k(logits, k, temperature))
    }

    /// [`Decoder::token_logprobs`], of a mixture where there is one.
    pub fn token_logprobs(self, documents: &[&[u32]]) -> Vec<Vec<f32>> {
        let first = self.decoder.token_logprobs(documents);
        let Some(ensemble) = self.ensemble else { return first };
        let mut scored = vec![first];
        scored.extend(ensemble.others.iter().map(|teacher| teacher.decoder.token_logprobs(documents)));
        let mut mixed: Vec<Vec<f64>> =
            scored[0].iter().map(|row| vec![f64::NEG_INFINITY; row.len()]).collect();
        for (rows, share) in scored.iter().zip(ensemble.shares()) {
            for (sum, &logprob) in mixed.iter_mut().flatten().zip(rows.iter().flatten()) {
                let more = f64::from(logprob) + share.ln();
                let (high, low) = if more > *sum { (more, *sum) } else { (*sum, more) };
                *sum = if high == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() };
            }
        }
        mixed.into_iter().map(|row| row.into_iter().map(|v| v as f32).collect()).collect()
    }

    /// [`Decoder::kl_rows_of_each`], of a mixture where there is one.
    ///
    /// # Panics
    /// Where the vocabularies differ in size.
    pub fn kl_rows_of_each(
        self,
        students: &[&Decoder],
        documents: &[&[u32]],
        wanted: &[Vec<u32>],
    ) -> Vec<Vec<Vec<f32>>> {
        let (least, most) = self.vocabularies();
        for student in students {
            assert_eq!((least, most), (student.config.vocab_size, least), "one vocabulary for all");
        }
        let teacher = self.decoder;
        let mut kl: Vec<_> = students.iter().map(|_| empty_rows(documents.len())).collect();
        for chunk in chunks(teacher, documents, |d| wanted[d].clone()) {
            let t = teacher.hidden_rows(&chunk.batch, &chunk.rows);
            let others = self.others_hidden(&chunk.batch, &chunk.rows);
            let mixture = self.ensemble.map(|ensemble| ensemble.mixture(&others));
            for (student, kl) in students.iter().zip(&mut kl) {
                let s = student.hidden_rows(&chunk.batch, &chunk.rows);
                let rows = teacher.device.dense_forward_kl(
                    (&*t, teacher.product(teacher.layout.head_or_embedding())),
                    mixture,
                    (&*s, student.product(student.layout.head_or_embedding())),
                    chunk.rows.len(),
                );
                student.workspace.give(s);
                for (&(d, _), row) in chunk.owners.iter().zip(rows) {
                    kl[d].push(row);
                }
            }
            teacher.workspace.give(t);
            self.give_back(others);
        }
        kl
    }

    /// `f(document, position, logits)` at every wanted position; of a mixture, log p of the ids that all teachers have.
    pub(crate) fn read_rows<T: Send + Sync>(
        self,
        documents: &[&[u32]],
        wanted: &[Vec<u32>],
        f: impl Fn(usize, usize, &mut [f32]) -> T + Sync,
    ) -> Vec<Vec<T>> {
        let mut rows = empty_rows(documents.len());
        for chunk in chunks(self.decoder, documents, |d| wanted[d].clone()) {
            let hidden = self.decoder.hidden_rows(&chunk.batch, &chunk.rows);
            let f = |row: usize, logits: &mut [f32]| {
                let (document, position) = chunk.owners[row];
                f(document, position, logits)
            };
            let found = match self.ensemble {
                None => self.decoder.for_each_row(&hidden, chunk.rows.len(), f),
                Some(ensemble) => self.for_each_mixed_row(ensemble, &hidden, &chunk, f),
            };
            self.decoder.workspace.give(hidden);
            for (&(d, _), row) in chunk.owners.iter().zip(found) {
                rows[d].push(row);
            }
        }
        rows
    }

    /// `f(row, log p)` of every row of a chunk, in order of rows.
    fn for_each_mixed_row<T: Send + Sync>(
        self,
        ensemble: Ensemble<'t>,
        hidden: &Buf,
        chunk: &Chunk,
        f: impl Fn(usize, &mut [f32]) -> T + Sync,
    ) -> Vec<T> {
        let (least, most) = self.vocabularies();
        let n_ids = self.n_ids.unwrap_or(most);
        assert!(n_ids <= least, "ids that all teachers have");
        let others = self.others_hidden(&chunk.batch, &chunk.rows);
        let results: Vec<OnceLock<T>> = (0..chunk.rows.len()).map(|_| OnceLock::new()).collect();
        let (dense, mixture) = (dense(self.decoder, hidden), ensemble.mixture(&others));
        let device = &self.decoder.device;
        device.for_each_mixed_row(dense, &mixture, n_ids, chunk.rows.len(), &|row, log_p| {
            let fresh = results[row].set(f(row, log_p)).is_ok();
            assert!(fresh, "row {row} was visited twice");
        });
        self.give_back(others);
        results.into_iter().filter_map(OnceLock::into_inner).collect()
    }

    /// Final hidden states of the other teachers, each in buffers of its own.
    pub(crate) fn others_hidden(self, batch: &Batch, rows: &[u32]) -> Vec<Lent> {
        let others = self.ensemble.map_or(&[][..], |ensemble| ensemble.others);
        others.iter().map(|teacher| teacher.decoder.hidden_rows(batch, rows)).collect()
    }

    pub(crate) fn give_back(self, others: Vec<Lent>) {
        if let Some(ensemble) = self.ensemble {
            ensemble.give_back(others);
        }
    }
}

//! What a decoder says about given text: log-probabilities, teacher targets, divergences.
//!
//! Documents are packed into chunks of bounded size; as rows don't depend on their batch, neither do
//! results on the chunks.

use std::sync::OnceLock;

use stillroom_core::SparseRow;
use stillroom_kernels::{Buf, HeadLosses, HeadTargets, Term, log_sum_exp};

use crate::backward::TOKENS_PER_GROUP;
use crate::batch::{Batch, LiveTeacher, Read, Targets};
use crate::decoder::Decoder;
use crate::label_loss::{self, WeightedLabelLoss};
use crate::sampling::{Spacing, likeliest};

/// Tokens of one forward pass that scores or prefills; a longer document has a pass of its own.
pub const TOKENS_PER_CHUNK: usize = 2048;

/// Some documents in one batch, with the rows that are wanted.
pub(crate) struct Chunk {
    pub(crate) batch: Batch,
    /// Batch rows, ascending.
    pub(crate) rows: Vec<u32>,
    /// Document and position of each row.
    pub(crate) owners: Vec<(usize, usize)>,
}

/// How likely a token of a text is, and what else could have stood there.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredToken {
    /// log p in nats.
    pub logprob: f32,
    /// 1 for the most probable token; among equals lower ids come first.
    pub rank: u32,
    /// The most probable tokens and their log p, in falling order.
    pub top: Vec<(u32, f32)>,
}

impl ScoredToken {
    fn of(id: u32, logits: &[f32], top: usize) -> ScoredToken {
        let own = logits[id as usize];
        let before = |(other, &logit): (u32, &f32)| logit > own || (logit == own && other < id);
        let rank = (0..).zip(logits).filter(|&pair| before(pair)).count() as u32 + 1;
        ScoredToken { logprob: own - log_sum_exp(logits), rank, top: likeliest(logits, top) }
    }
}

impl Decoder {
    /// Of each token of a text but its first: how likely it is behind those before it, with the `top` most probable ones.
    ///
    /// # Panics
    /// Where an id is outside the vocabulary; see [`Decoder::check_ids`].
    pub fn scored_tokens(&self, ids: &[u32], top: usize) -> Vec<ScoredToken> {
        let wanted = (0..ids.len().saturating_sub(1) as u32).collect();
        let scored = |_, t: usize, logits: &mut [f32]| ScoredToken::of(ids[t + 1], logits, top);
        self.read_rows(&[ids], &[wanted], scored).swap_remove(0)
    }

    /// log p(ids\[t\] | ids\[..t\]) in nats for t ≥ 1, one list per document.
    ///
    /// # Panics
    /// Where an id is outside the vocabulary; see [`Decoder::check_ids`].
    pub fn token_logprobs(&self, documents: &[&[u32]]) -> Vec<Vec<f32>> {
        let mut logprobs = empty_rows(documents.len());
        let all_but_last = |d: usize| (0..documents[d].len().saturating_sub(1) as u32).collect();
        for chunk in chunks(self, documents, all_but_last) {
            let labels: Vec<u32> = chunk.owners.iter().map(|&(d, t)| documents[d][t + 1]).collect();
            let targets = HeadTargets { hard_labels: Some(&labels), ..HeadTargets::default() };
            let hidden = self.hidden_rows(&chunk.batch, &chunk.rows);
            let head = self.product(self.layout.head_or_embedding());
            let (n, mut losses) = (chunk.rows.len(), HeadLosses::default());
            self.device.divergence_head_forward(&hidden, head, n, &targets, &[], &mut losses);
            self.workspace.give(hidden);
            for (&(d, _), loss) in chunk.owners.iter().zip(losses.hard_label) {
                logprobs[d].push(-loss);
            }
        }
        logprobs
    }

    /// Teacher targets by random sampling: at each of `wanted[d]` (positions of document d, ascending),
    /// `draws` tokens from softmax(logits/temperature) as unique ids with count/draws, and the exact
    /// entropy. Draws are spaced as `spacing` says, and come from `CounterRng(seed, keys[d], position)`.
    ///
    /// Source: Anshumann et al. 2025, "Sparse Logit Sampling".
    pub fn sampled_targets(
        &self,
        documents: &[&[u32]],
        wanted: &[Vec<u32>],
        draws: u32,
        spacing: Spacing,
        temperature: f32,
        keys: &[u64],
        seed: u64,
    ) -> Vec<Vec<SparseRow>> {
        let alone = LiveTeacher::alone(self, None);
        alone.sampled_targets(documents, wanted, draws, spacing, temperature, keys, seed)
    }

    /// Teacher targets by truncation: the `k` most probable tokens at each wanted position, with their
    /// exact probabilities at `temperature` and the exact entropy of the whole distribution.
    pub fn top_k_targets(
        &self,
        documents: &[&[u32]],
        wanted: &[Vec<u32>],
        k: usize,
        temperature: f32,
    ) -> Vec<Vec<SparseRow>> {
        LiveTeacher::alone(self, None).top_k_targets(documents, wanted, k, temperature)
    }

    /// Exact KL(teacher‖student) in nats of the next-token distributions at the wanted positions.
    ///
    /// # Panics
    /// Where the vocabularies differ in size.
    pub fn kl_rows(
        teacher: &Decoder,
        student: &Decoder,
        documents: &[&[u32]],
        wanted: &[Vec<u32>],
    ) -> Vec<Vec<f32>> {
        Decoder::kl_rows_of_each(teacher, &[student], documents, wanted).swap_remove(0)
    }

    /// [`Decoder::kl_rows`] of several students, each with the bits that it has alone. The teacher's
    /// hidden states are computed once for all; one chunk is held at a time.
    pub fn kl_rows_of_each(
        teacher: &Decoder,
        students: &[&Decoder],
        documents: &[&[u32]],
        wanted: &[Vec<u32>],
    ) -> Vec<Vec<Vec<f32>>> {
        LiveTeacher::alone(teacher, None).kl_rows_of_each(students, documents, wanted)
    }

    /// Losses of each supervised row in nats, unweighted; nothing is differentiated, and the weights of the
    /// divergences do not matter.
    ///
    /// # Panics
    /// As [`TrainState::accumulate`](crate::TrainState::accumulate).
    pub fn losses(&self, batch: &Batch, targets: &Targets<'_>, divergences: &[Term]) -> HeadLosses {
        targets.check(batch.n_tokens(), self.config.vocab_size);
        batch.check();
        let (mut losses, mut slopes) = (HeadLosses::default(), Vec::new());
        let (mut group, head) = (Batch::default(), self.product(self.layout.head_or_embedding()));
        for (documents, supervised) in targets.groups(batch, TOKENS_PER_GROUP) {
            let start = group.set_part(batch, documents) as u32;
            let rows: Vec<u32> = targets.rows[supervised.clone()].iter().map(|r| r - start).collect();
            let positions = group.positions();
            let read = targets.read((batch, documents), (&group, &positions), &rows, supervised.clone());
            let of_group = targets.head_of(supervised.clone());
            let of_group = read.as_ref().map_or(of_group, |read| read.supervise(of_group));
            let hidden = match read.as_ref().and_then(Read::hidden_targets) {
                Some(targets) => self.compare_hidden(&group, &positions, &rows, &targets, &mut losses),
                None => self.hidden_rows(&group, &rows),
            };
            self.device.divergence_head_forward(
                &hidden,
                head,
                rows.len(),
                &of_group,
                divergences,
                &mut losses,
            );
            self.workspace.give(hidden);
            read.into_iter().for_each(Read::give_back);
            if let Some(WeightedLabelLoss { loss, .. }) = targets.label_loss {
                let mut scored = losses.hard_label[losses.hard_label.len() - rows.len()..].to_vec();
                label_loss::evaluate(loss, supervised, &mut scored, &mut losses, &mut slopes);
            }
        }
        losses
    }

    /// `f(document, position, logits)` at every wanted position.
    pub(crate) fn read_rows<T: Send + Sync>(
        &self,
        documents: &[&[u32]],
        wanted: &[Vec<u32>],
        f: impl Fn(usize, usize, &mut [f32]) -> T + Sync,
    ) -> Vec<Vec<T>> {
        LiveTeacher::alone(self, None).read_rows(documents, wanted, f)
    }

    /// `f(row, logits)` of every row of `hidden`, in order of rows.
    pub(crate) fn for_each_row<T: Send + Sync>(
        &self,
        hidden: &Buf,
        n_rows: usize,
        f: impl Fn(usize, &mut [f32]) -> T + Sync,
    ) -> Vec<T> {
        let results: Vec<OnceLock<T>> = (0..n_rows).map(|_| OnceLock::new()).collect();
        let head = self.product(self.layout.head_or_embedding());
        self.device.for_each_logits_row(hidden, head, n_rows, &|row, logits| {
            let fresh = results[row].set(f(row, logits)).is_ok();
            assert!(fresh, "row {row} was visited twice");
        });
        results.into_iter().filter_map(OnceLock::into_inner).collect()
    }
}

/// Packs documents with wanted positions, each only as far as its last one.
pub(crate) fn chunks<'a>(
    decoder: &Decoder,
    documents: &'a [&'a [u32]],
    wanted: impl Fn(usize) -> Vec<u32> + 'a,
) -> impl Iterator<Item = Chunk> + 'a {
    for ids in documents {
        assert!(decoder.check_ids(ids).is_ok(), "token id outside the vocabulary");
    }
    let mut next = 0;
    std::iter::from_fn(move || {
        let mut chunk = Chunk { batch: Batch::default(), rows: vec![], owners: vec![] };
        while let Some(ids) = documents.get(next) {
            let positions = wanted(next);
            if let Some(&last) = positions.last() {
                assert!(positions.is_sorted_by(|a, b| a < b), "wanted positions ascend");
                let ids = &ids[..=last as usize];
                let start = chunk.batch.n_tokens();
                if start > 0 && start + ids.len() > TOKENS_PER_CHUNK {
                    break;
                }
                chunk.batch.push(ids);
                chunk.rows.extend(positions.iter().map(|&p| start as u32 + p));
                chunk.owners.extend(positions.iter().map(|&p| (next, p as usize)));
            }
            next += 1;
        }
        (!chunk.rows.is_empty()).then_some(chunk)
    })
}

pub(crate) fn empty_rows<T>(n: usize) -> Vec<Vec<T>> {
    (0..n).map(|_| Vec::new()).collect()
}

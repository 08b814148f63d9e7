//! From rows of documents to what the model takes.

use serde::{Deserialize, Serialize};
use stillroom_core::{Digest, Digester};
use stillroom_model::{
    Batch, HeadLosses, LabelLoss, LiveTeacher, MatchedIds, SparseBatch, Targets, WeightedLabelLoss,
};

use crate::TrainConfig;
use crate::alm::ApproximateLikelihood;
use crate::feed::{Document, pack_rows};
use crate::foreign;
use crate::losses::{Place, StepWeights, Text};
use crate::preference::{DirectPreference, PairRows, PreferenceSums};
use crate::rollouts::Rollout;
use crate::sampled::SampledReverseKl;

/// Documents to learn from, or to be judged by, and how they lie in rows.
pub(crate) struct Texts<'d> {
    pub(crate) documents: &'d [Document<'d>],
    /// Indices of documents.
    pub(crate) rows: Vec<Vec<u32>>,
    /// Where the student wrote them: `documents[i]` is `own[i]` behind its prompt.
    pub(crate) own: Option<&'d [Rollout]>,
    /// Ids that are the same token for a teacher that reads them in its own.
    pub(crate) matched: Option<&'d MatchedIds>,
}

impl<'d> Texts<'d> {
    /// Rollouts, in their order.
    pub(crate) fn written(
        documents: &'d [Document<'d>],
        own: &'d [Rollout],
        config: &TrainConfig,
    ) -> Texts<'d> {
        let order: Vec<u32> = (0..documents.len() as u32).collect();
        Texts { documents, rows: pack_rows(documents, &order, config), own: Some(own), matched: None }
    }

    pub(crate) fn kind(&self) -> Text {
        if self.own.is_some() { Text::Own } else { Text::Given }
    }

    /// Tokens, and supervised ones among them.
    pub(crate) fn n_tokens(&self) -> (u64, u64) {
        let documents = self.rows.iter().flatten().map(|&i| self.documents[i as usize]);
        documents.fold((0, 0), |(n, supervised), d| (n + d.length as u64, supervised + d.n_supervised as u64))
    }

    /// Which documents lie in which rows, how much of each is used, and all that is learned from them; the teacher's
    /// distributions too, where they are stored with them.
    pub(crate) fn digest(&self, with_sparse: bool) -> Digest {
        let mut digester = Digester::new();
        for row in &self.rows {
            digester.update(&(row.len() as u64).to_le_bytes());
            for &i in row {
                let Document { example, length, .. } = self.documents[i as usize];
                digester.update(&(length as u64).to_le_bytes());
                example.digest_into(&mut digester, with_sparse);
                self.own.iter().for_each(|own| own[i as usize].digest_into(&mut digester));
            }
        }
        digester.finish()
    }

    /// How many terms a step's loss is the mean of: pairs, or supervised tokens.
    pub(crate) fn n_terms(&self, config: &TrainConfig) -> u64 {
        match config.needs_pairs() {
            true => self.rows.iter().map(|row| row.len() as u64).sum(),
            false => self.n_tokens().1,
        }
    }

    /// Calls `learn` with each micro-batch, and sums what it says.
    pub(crate) fn each_batch(
        &self,
        config: &TrainConfig,
        live: Option<LiveTeacher<'_>>,
        weights: &StepWeights,
        mut learn: impl FnMut(&Batch, &Targets<'_>, Option<&DirectPreference>, &mut LossSums),
    ) -> LossSums {
        let mut sums = LossSums::default();
        for rows in self.rows.chunks(config.per_device_train_batch_size) {
            let pairs = self.pairs(rows, config);
            let loss = if pairs.is_some() { None } else { self.label_loss(rows, config) };
            let loss = pairs.as_ref().map(|pairs| pairs as &dyn LabelLoss).or(loss.as_deref());
            let loss = loss.map(|loss| weights.of_labels(loss));
            let (batch, mut targets) = micro_batch(self.documents, rows, config, live, loss);
            let aligned = config.hidden_alignment.as_ref().zip(weights.hidden);
            targets.foreign = self.matched.map(|matched| self.foreign(rows, matched));
            targets.hidden = aligned.map(|(aligned, weight)| aligned.with_weight(weight));
            learn(&batch, &targets, pairs.as_ref(), &mut sums);
        }
        sums
    }

    /// What a teacher with tokens of its own reads of a micro-batch.
    fn foreign<'t>(&self, rows: &[Vec<u32>], matched: &'t MatchedIds) -> stillroom_model::ForeignText<'t> {
        let mut text = foreign::nothing_read(matched);
        for &document in rows.iter().flatten() {
            let Document { example, n_supervised, .. } = self.documents[document as usize];
            let reading = example.foreign.as_ref();
            let reading = reading.unwrap_or_else(|| panic!("`{}` has not been read", example.id));
            foreign::push(&mut text, reading, n_supervised);
        }
        text
    }

    /// The pairs of a micro-batch, where a preference is learned.
    fn pairs(&self, rows: &[Vec<u32>], config: &TrainConfig) -> Option<DirectPreference> {
        let beta = config.computed_losses().dpo_beta()?;
        let examples = rows.iter().flatten().map(|&i| self.documents[i as usize].example);
        let rows_of = |example: &crate::Example| Some(PairRows::of(example, example.rejected.as_ref()?));
        Some(DirectPreference { beta, pairs: examples.filter_map(rows_of).collect() })
    }

    /// The loss of the labels' log-probabilities of a micro-batch.
    fn label_loss(&self, rows: &[Vec<u32>], config: &TrainConfig) -> Option<Box<dyn LabelLoss>> {
        let Some(own) = self.own else {
            return label_loss(self.documents, rows, config).map(|alm| Box::new(alm) as Box<dyn LabelLoss>);
        };
        if !config.computed_losses().need_own_text() {
            return None;
        }
        let rollouts = || rows.iter().flatten().map(|&i| &own[i as usize]);
        let teacher = rollouts().flat_map(|rollout| rollout.teacher.iter().copied()).collect();
        let drawn = rollouts().flat_map(|rollout| rollout.drawn.iter().copied()).collect();
        Some(Box::new(SampledReverseKl { teacher, drawn }))
    }
}

/// Packed documents of one micro-batch with their targets.
///
/// The token at position t of a document is predicted from row t − 1, so its label and the teacher's
/// distribution belong to that row. A teacher, cached or live, goes in where the loss uses it; `label_loss` is of the
/// same documents ([`label_loss`]).
pub(crate) fn micro_batch<'t>(
    documents: &[Document<'_>],
    rows: &[Vec<u32>],
    config: &TrainConfig,
    live: Option<LiveTeacher<'t>>,
    label_loss: Option<WeightedLabelLoss<'t>>,
) -> (Batch, Targets<'t>) {
    let mut batch = Batch::default();
    let taught = config.needs_distributions();
    let documents_together = if config.needs_pairs() { 2 } else { 1 };
    let mut targets = Targets {
        live: live.filter(|_| taught || config.aligns_hidden_states()),
        label_loss,
        documents_together,
        ..Targets::default()
    };
    let mut sparse = (taught && live.is_none()).then(|| SparseBatch::new(config.tail));
    for &document in rows.iter().flatten() {
        let Document { example, length, n_supervised } = documents[document as usize];
        let length = length.min(example.ids.len());
        push(&mut batch, &mut targets, &example.ids[..length], &example.supervised[..length]);
        if let Some(rejected) = &example.rejected {
            push(&mut batch, &mut targets, &rejected.ids, &rejected.supervised);
        }
        if let (Some(sparse), Some(taught)) = (&mut sparse, &example.sparse) {
            taught[..n_supervised].iter().for_each(|row| sparse.push(row));
        }
    }
    targets.sparse = sparse;
    (batch, targets)
}

/// Appends a document with its labels.
fn push(batch: &mut Batch, targets: &mut Targets<'_>, ids: &[u32], supervised: &[bool]) {
    let first_row = batch.ids.len();
    batch.push(ids);
    for (t, _) in supervised.iter().enumerate().filter(|&(_, &s)| s) {
        targets.rows.push((first_row + t - 1) as u32);
        targets.hard_labels.push(ids[t]);
    }
}

/// The loss of the labels' log-probabilities that goes with a micro-batch of the same documents.
fn label_loss(
    documents: &[Document<'_>],
    rows: &[Vec<u32>],
    config: &TrainConfig,
) -> Option<ApproximateLikelihood> {
    let mut loss = ApproximateLikelihood::new(config.computed_losses().alm_temperature()?);
    let mut first_row = 0;
    for &document in rows.iter().flatten() {
        let Document { example, n_supervised, .. } = documents[document as usize];
        loss.push(example.chunks.as_deref().unwrap_or(&[]), first_row, n_supervised);
        first_row += n_supervised;
    }
    Some(loss)
}

/// Losses summed over supervised tokens, or over pairs, in nats.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LossSums {
    /// The weighted sum, with the weights of each step.
    pub(crate) loss: f64,
    /// Of pairs: of each preferred reply the mean over its tokens.
    pub(crate) hard_label: f64,
    /// By name, each with its τ² or τ.
    pub(crate) divergences: Vec<f64>,
    /// Teacher probability of the stored tokens; 1 each for a live teacher.
    pub(crate) mass: f64,
    /// Supervised tokens, or pairs.
    pub(crate) n: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) preferences: Option<PreferenceSums>,
}

impl LossSums {
    /// Adds a micro-batch, token by token in order; or pair by pair where it has `pairs`.
    pub(crate) fn add_batch(
        &mut self,
        losses: &HeadLosses,
        targets: &Targets<'_>,
        pairs: Option<&DirectPreference>,
        weights: &StepWeights,
    ) {
        let sum = |values: &[f32]| values.iter().map(|&v| f64::from(v)).sum::<f64>();
        let of_batch = |&place: &Place| match place {
            Place::Head(i) => sum(losses.divergence(i)),
            Place::Labels => sum(&losses.label_loss),
            Place::Hidden => sum(&losses.hidden),
        };
        let divergences = weights.places.iter().map(of_batch).collect();
        let of_pairs = pairs.map(|pairs| pairs.sums(&losses.hard_label));
        let hard_label = of_pairs.map_or_else(|| sum(&losses.hard_label), |(_, hard_label)| hard_label);
        let mut batch = LossSums {
            loss: weights.hard_label * hard_label,
            hard_label,
            divergences,
            mass: sum(&losses.captured_mass),
            n: pairs.map_or(targets.rows.len(), |pairs| pairs.pairs.len()) as u64,
            preferences: of_pairs.map(|(preferences, _)| preferences),
        };
        for (weight, sum) in weights.divergences.iter().zip(&batch.divergences) {
            batch.loss += weight * sum;
        }
        self.add(&batch);
    }

    pub(crate) fn add(&mut self, other: &LossSums) {
        self.loss += other.loss;
        self.hard_label += other.hard_label;
        self.divergences.resize(self.divergences.len().max(other.divergences.len()), 0.0);
        self.divergences.iter_mut().zip(&other.divergences).for_each(|(sum, more)| *sum += more);
        self.mass += other.mass;
        self.n += other.n;
        if let Some(more) = &other.preferences {
            self.preferences.get_or_insert_default().add(more);
        }
    }

    pub(crate) fn per_token(&self, sum: f64) -> f64 {
        sum / (self.n as f64).max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use stillroom_core::{SparseRow, Tail};

    use super::*;
    use crate::feed::Documents;
    use crate::{Example, LossFunction, LossTerm, Overlong};

    fn row(id: u32) -> SparseRow {
        SparseRow { ids: vec![id, id + 1], probs: vec![0.75, 0.25], teacher_entropy: id as f32 }
    }

    #[test]
    fn each_supervised_token_is_taught_at_the_row_before_it() {
        let a = Example::new("a", vec![10, 11, 12], vec![false, false, true], Some(vec![row(12)])).unwrap();
        let b_rows = Some(vec![row(21), row(23), row(24)]);
        let b_mask = vec![false, true, false, true, true];
        let b = Example::new("b", vec![20, 21, 22, 23, 24], b_mask, b_rows).unwrap();
        let examples = [a, b];
        let documents = Documents::fit(&examples, 4, Overlong::Truncate).unwrap().all;
        let losses = vec![LossTerm::new(LossFunction::ForwardKl)];
        let config = TrainConfig { losses, tail: Tail::None, ..TrainConfig::default() };
        let (batch, targets) = micro_batch(&documents, &[vec![1], vec![0]], &config, None, None);
        assert_eq!(batch.ids, [20, 21, 22, 23, 10, 11, 12]);
        assert_eq!(targets.rows, [0, 2, 5]);
        assert_eq!(targets.hard_labels, [21, 23, 12]);
        let sparse = targets.sparse.unwrap();
        assert_eq!(sparse.teacher_entropy, [21.0, 23.0, 12.0]);
        assert_eq!(sparse.offsets, [0, 2, 4, 6]);
        let hard_only = TrainConfig::default();
        assert_eq!(micro_batch(&documents, &[vec![0]], &hard_only, None, None).1.sparse, None);
    }
}

//! What a decoder makes of held-out text.

use std::ops::AddAssign;

use stillroom_formats::NamedTensor;
use stillroom_model::{Batch, Decoder, LiveTeacher, Targets};

use crate::checks::TensorChanges;
use crate::error::EvaluateError;
use crate::measurement::{DocumentDivergence, DocumentLoss};

/// Tokens of one forward pass; a longer piece has a pass of its own.
const TOKENS_PER_PASS: usize = 2048;

/// A held-out document, or a piece of one that is too long for the context.
///
/// Pieces that follow each other under one id are one document in what is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeldOutText<'a> {
    pub id: &'a str,
    pub ids: &'a [u32],
    /// `supervised[t]`: token t ≥ 1 is scored, from the tokens before it. As long as `ids`.
    pub supervised: &'a [bool],
    /// UTF-8 bytes of the scored text, the same for every tokenizer.
    pub bytes: u64,
}

impl HeldOutText<'_> {
    /// Positions whose next token is scored, ascending.
    fn wanted(&self) -> Vec<u32> {
        let scored = self.supervised.iter().enumerate().skip(1).filter(|(_, scored)| **scored);
        scored.map(|(t, _)| t as u32 - 1).collect()
    }

    fn check(&self, decoder: &Decoder) -> Result<(), EvaluateError> {
        if self.ids.len() != self.supervised.len() {
            return Err(EvaluateError::BadMask {
                id: self.id.into(),
                n_tokens: self.ids.len(),
                n_mask: self.supervised.len(),
            });
        }
        Ok(decoder.check_ids(self.ids)?)
    }
}

/// Loss of each document over its scored tokens: Σ −ln p(token), nats, summed in f64.
///
/// No row without a scored token reaches the head. Results depend neither on the order of the
/// documents nor on how they are batched.
pub fn document_losses(
    decoder: &Decoder,
    texts: &[HeldOutText<'_>],
) -> Result<Vec<DocumentLoss>, EvaluateError> {
    texts.iter().try_for_each(|text| text.check(decoder))?;
    let mut found: Vec<DocumentLoss> = Vec::new();
    for pass in passes(texts) {
        let mut batch = Batch::default();
        let mut targets = Targets::default();
        for text in pass {
            let start = batch.n_tokens() as u32;
            batch.push(text.ids);
            for position in text.wanted() {
                targets.rows.push(start + position);
                targets.hard_labels.push(text.ids[position as usize + 1]);
            }
        }
        let mut losses = decoder.losses(&batch, &targets, &[]).hard_label.into_iter();
        for text in pass {
            let tokens = text.wanted().len();
            let nats = losses.by_ref().take(tokens).map(f64::from).sum();
            check_finite("loss", text.id, nats)?;
            let loss = DocumentLoss { id: text.id.into(), tokens: tokens as u64, bytes: text.bytes, nats };
            merge(&mut found, loss, |a, b| a.id == b.id);
        }
    }
    Ok(found)
}

/// Exact KL(teacher‖model) of each document over its scored positions, of a mixture where there is one: Σ over the
/// vocabulary and over the positions, nats, summed in f64; one list per model. All have one vocabulary.
///
/// The teacher reads each text once for all models.
pub fn document_divergences<'t>(
    teacher: impl Into<LiveTeacher<'t>>,
    models: &[&Decoder],
    texts: &[HeldOutText<'_>],
) -> Result<Vec<Vec<DocumentDivergence>>, EvaluateError> {
    let teacher = teacher.into();
    for model in models {
        let ((teacher_vocab, widest), model_vocab) = (teacher.vocabularies(), model.config().vocab_size);
        if (teacher_vocab, widest) != (model_vocab, model_vocab) {
            return Err(EvaluateError::DifferentVocabularies { teacher_vocab, model_vocab });
        }
    }
    for decoder in teacher.decoders() {
        texts.iter().try_for_each(|text| text.check(decoder))?;
    }
    let mut found: Vec<Vec<DocumentDivergence>> = models.iter().map(|_| Vec::new()).collect();
    for pass in passes(texts) {
        let ids: Vec<&[u32]> = pass.iter().map(|text| text.ids).collect();
        let wanted: Vec<Vec<u32>> = pass.iter().map(HeldOutText::wanted).collect();
        let of_each = teacher.kl_rows_of_each(models, &ids, &wanted);
        for (found, of_model) in found.iter_mut().zip(of_each) {
            for (text, rows) in pass.iter().zip(of_model) {
                let nats = rows.iter().map(|&nats| f64::from(nats)).sum();
                check_finite("divergence", text.id, nats)?;
                let divergence = DocumentDivergence { id: text.id.into(), tokens: rows.len() as u64, nats };
                merge(found, divergence, |a, b| a.id == b.id);
            }
        }
    }
    Ok(found)
}

/// Compares the weights before and after training, tensor by tensor, by name.
///
/// `should_train` says of a name whether it is meant to move; the others are counted as frozen.
/// A tensor that stands on one side only is an error.
pub fn tensor_changes(
    initial: impl Iterator<Item = NamedTensor>,
    trained: impl Iterator<Item = NamedTensor>,
    should_train: &dyn Fn(&str) -> bool,
) -> Result<TensorChanges, EvaluateError> {
    let mut changes = TensorChanges::default();
    let (mut initial, mut trained) = (initial.fuse(), trained.fuse());
    loop {
        let (before, after) = match (initial.next(), trained.next()) {
            (None, None) => return Ok(changes),
            (Some(before), Some(after)) if before.name == after.name => (before, after),
            (Some(only), _) | (None, Some(only)) => {
                return Err(EvaluateError::MissingTensor { name: only.name });
            }
        };
        if should_train(&before.name) {
            changes.add(&before.name, &before.data, &after.data)?;
        } else {
            changes.frozen += 1;
        }
    }
}

/// Runs of texts that fit a pass together.
fn passes<'a, 'b>(texts: &'a [HeldOutText<'b>]) -> impl Iterator<Item = &'a [HeldOutText<'b>]> {
    let mut rest = texts;
    std::iter::from_fn(move || {
        let mut n_tokens = 0;
        let fits = |text: &&HeldOutText<'_>| {
            n_tokens += text.ids.len();
            n_tokens <= TOKENS_PER_PASS
        };
        let count = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (pass, left) = rest.split_at(count);
        rest = left;
        (!pass.is_empty()).then_some(pass)
    })
}

fn check_finite(what: &'static str, id: &str, nats: f64) -> Result<(), EvaluateError> {
    if nats.is_finite() { Ok(()) } else { Err(EvaluateError::NotFinite { what, id: id.into() }) }
}

/// Adds a piece to its document where that came just before.
fn merge<T: for<'a> AddAssign<&'a T>>(found: &mut Vec<T>, piece: T, same: impl Fn(&T, &T) -> bool) {
    match found.last_mut().filter(|last| same(last, &piece)) {
        Some(last) => *last += &piece,
        None => found.push(piece),
    }
}

impl AddAssign<&DocumentLoss> for DocumentLoss {
    fn add_assign(&mut self, piece: &DocumentLoss) {
        self.tokens += piece.tokens;
        self.bytes += piece.bytes;
        self.nats += piece.nats;
    }
}

impl AddAssign<&DocumentDivergence> for DocumentDivergence {
    fn add_assign(&mut self, piece: &DocumentDivergence) {
        self.tokens += piece.tokens;
        self.nats += piece.nats;
    }
}

//! Examples from traces, from data-set targets, from plain texts, and from logit caches.

use std::collections::HashMap;

use stillroom_core::{Digest, Message, Prompt, Tail, Trace};
use stillroom_formats::Tokenizer;
use stillroom_formats::parquet_rows::{Kept, LogitCacheInfo, LogitCacheRow, LogprobRow};
use stillroom_model::Decoder;

use crate::alignment::{ReplyTokens, TeacherChunk, align, check_overlap};
use crate::example::Rejected;
use crate::preference::pair_logprobs;
use crate::{DistillError, Example, Result, TrainConfig};

/// The id of the example made from a trace: prompt and sample.
pub fn example_id(id: &str, sample: u32) -> String {
    format!("{id}#{sample}")
}

/// One example per trace, in order: the conversation masked, the teacher's reasoning and answer
/// supervised, with the token that ends the turn. A mask that comes out empty is an error.
pub fn from_traces(traces: &[Trace], tokenizer: &Tokenizer) -> Result<Vec<Example>> {
    let make = |trace: &Trace| {
        let tokens = tokenizer.encode_supervised(&trace.messages, &trace.reply())?;
        Example::new(example_id(&trace.id, trace.sample), tokens.ids, tokens.supervised, None)
    };
    traces.iter().map(make).collect()
}

/// One example per pair, in order: (id, conversation, preferred reply, the other one). Both documents are as
/// [`from_traces`] makes them.
pub fn from_pairs<'a>(
    pairs: impl IntoIterator<Item = (&'a str, &'a [Message], [&'a Message; 2])>,
    tokenizer: &Tokenizer,
) -> Result<Vec<Example>> {
    let make = |(id, messages, replies): (&'a str, &'a [Message], [&'a Message; 2])| {
        let document = |reply: &Message| {
            let tokens = tokenizer.encode_supervised(messages, reply)?;
            Example::new(id, tokens.ids, tokens.supervised, None)
        };
        Ok(Example::pair(document(replies[0])?, document(replies[1])?))
    };
    pairs.into_iter().map(make).collect()
}

/// Fills in what `reference` says of each pair.
///
/// # Errors
/// Token ids outside its vocabulary.
pub fn score_by_reference(examples: &mut [Example], reference: &Decoder) -> Result<()> {
    for example in examples {
        let Some(rejected) = example.rejected.take() else { continue };
        reference.check_ids(&example.ids)?;
        reference.check_ids(&rejected.ids)?;
        let sums = pair_logprobs(example, &rejected, reference)
            .map(|logprobs| logprobs.iter().map(|&logprob| f64::from(logprob)).sum());
        example.rejected = Some(Rejected { reference: sums, ..rejected });
    }
    Ok(())
}

/// One example per prompt from the data set's own target, with nothing of a teacher's: what the
/// `undistilled` control is trained on. A prompt without a target is an error.
pub fn from_targets(prompts: &[Prompt], tokenizer: &Tokenizer) -> Result<Vec<Example>> {
    let make = |prompt: &Prompt| {
        let target =
            prompt.target.as_ref().ok_or_else(|| DistillError::NoTarget { id: prompt.id.clone() })?;
        let tokens = tokenizer.encode_supervised(&prompt.messages, target)?;
        Example::new(prompt.id.clone(), tokens.ids, tokens.supervised, None)
    };
    prompts.iter().map(make).collect()
}

/// One example per (id, text), each token after the first supervised. What looks like a special token in
/// the text is ordinary text; the beginning-of-text token comes first where the tokenizer's own rules put
/// it there. A text of fewer than two tokens has nothing to teach and is an error.
pub fn from_texts<'a>(
    texts: impl IntoIterator<Item = (&'a str, &'a str)>,
    tokenizer: &Tokenizer,
) -> Result<Vec<Example>> {
    let bos = tokenizer.bos_id().filter(|_| tokenizer.adds_bos());
    let make = |(id, text): (&str, &str)| {
        let mut ids: Vec<u32> = bos.into_iter().collect();
        ids.extend(tokenizer.encode_plain(text)?);
        Example::from_text_ids(id, ids)
    };
    texts.into_iter().map(make).collect()
}

/// Refuses a logit cache that was made with another tokenizer, or whose distributions are not those that
/// the loss expects: another temperature or tail, or a tail where the kept ids are draws.
pub fn check_cache(info: &LogitCacheInfo, tokenizer_digest: &Digest, config: &TrainConfig) -> Result<()> {
    let refuse =
        |what, cached: String, expected: String| Err(DistillError::CacheMismatch { what, cached, expected });
    check_tokenizer(&info.tokenizer_digest, tokenizer_digest)?;
    if let Some(expected) = config.cached_temperature().map(|t| t as f32)
        && info.temperature != expected
    {
        return refuse("temperature", info.temperature.to_string(), expected.to_string());
    }
    let cached = match info.kept {
        Kept::Draws(_) => Tail::None,
        Kept::TopK(_) => info.tail,
    };
    if cached != config.tail
        || cached != info.tail
        || (matches!(info.kept, Kept::TopK(_)) && cached == Tail::None)
    {
        return refuse(
            "tail",
            format!("{:?}", info.tail).to_lowercase(),
            format!("{:?}", config.tail).to_lowercase(),
        );
    }
    Ok(())
}

/// Refuses scores that were made with another tokenizer.
pub fn check_tokenizer(cached: &Digest, tokenizer: &Digest) -> Result<()> {
    if cached == tokenizer {
        return Ok(());
    }
    let (cached, expected) = (cached.to_string(), tokenizer.to_string());
    Err(DistillError::CacheMismatch { what: "tokenizer", cached, expected })
}

/// Gives each example made by [`from_traces`] (or named by [`example_id`]) its teacher's distributions.
/// Rows of other examples are left alone.
///
/// An example without a row, a row of other tokens, of another length or with another number of
/// distributions than the example has supervised tokens, and two rows for one example are errors: a
/// shifted or foreign cache is never silent.
pub fn attach_targets(examples: &mut [Example], rows: impl IntoIterator<Item = LogitCacheRow>) -> Result<()> {
    let mut wanted: HashMap<String, usize> = HashMap::with_capacity(examples.len());
    for (i, example) in examples.iter_mut().enumerate() {
        example.sparse = None;
        if wanted.insert(example.id.clone(), i).is_some() {
            return Err(DistillError::example(&example.id, "two examples have this id"));
        }
    }
    for row in rows {
        let id = example_id(&row.id, row.sample);
        let Some(&i) = wanted.get(&id) else { continue };
        let example = &mut examples[i];
        if example.sparse.is_some() {
            return Err(DistillError::example(&id, "the logit cache has two rows for it"));
        }
        let found = Digest::of_token_ids(&example.ids);
        if row.token_ids_digest != found || row.n_tokens as usize != example.ids.len() {
            return Err(DistillError::ForeignTargets { id, cached: row.token_ids_digest, found });
        }
        let (n_rows, n_supervised) = (row.rows.len(), example.n_supervised());
        if n_rows != n_supervised {
            return Err(DistillError::TargetCount { id, n_rows, n_supervised });
        }
        example.sparse = Some(row.rows);
    }
    match examples.iter().find(|example| example.sparse.is_none()) {
        Some(example) => Err(DistillError::NoTeacherTargets { id: example.id.clone() }),
        None => Ok(()),
    }
}

/// The texts of some examples as one model reads them.
#[derive(Clone, Copy)]
pub struct Reading<'a> {
    pub examples: &'a [Example],
    pub tokenizer: &'a Tokenizer,
}

/// What a teacher that reads the same texts with a tokenizer of its own says about the student's tokens: for each
/// example of `student` the chunks that both split at, with the teacher's log-likelihoods.
///
/// `teacher` holds the same examples, by id and in order, and `rows` the log-probabilities of its supervised
/// tokens. A row of other tokens (another tokenizer, template or text), of another number of them, two rows
/// for one example, none, and replies of which less than half is the same text on both sides are errors.
pub fn likelihoods(
    student: Reading<'_>,
    teacher: Reading<'_>,
    rows: impl IntoIterator<Item = LogprobRow>,
) -> Result<Vec<Vec<TeacherChunk>>> {
    let mut wanted: HashMap<&str, usize> = HashMap::with_capacity(student.examples.len());
    for (i, example) in teacher.examples.iter().enumerate() {
        if wanted.insert(&example.id, i).is_some() {
            return Err(DistillError::example(&example.id, "two examples have this id"));
        }
    }
    let mut logprobs: Vec<Option<Vec<f32>>> = vec![None; teacher.examples.len()];
    for row in rows {
        let id = example_id(&row.id, row.sample);
        let Some(&i) = wanted.get(&id[..]) else { continue };
        if logprobs[i].is_some() {
            return Err(DistillError::example(&id, "the teacher's scores have two rows for it"));
        }
        let example = &teacher.examples[i];
        let found = Digest::of_token_ids(&example.ids);
        if row.token_ids_digest != found || row.n_tokens as usize != example.ids.len() {
            return Err(DistillError::ForeignTargets { id, cached: row.token_ids_digest, found });
        }
        let (n_rows, n_supervised) = (row.logprobs.len(), example.n_supervised());
        if n_rows != n_supervised {
            return Err(DistillError::TargetCount { id, n_rows, n_supervised });
        }
        logprobs[i] = Some(row.logprobs);
    }
    let of_example = |example: &Example| {
        let none = || DistillError::NoTeacherChunks { id: example.id.clone() };
        let &i = wanted.get(&example.id[..]).ok_or_else(none)?;
        let logprobs = logprobs[i].as_ref().ok_or_else(none)?;
        let own = ReplyTokens::of(example, student.tokenizer)?;
        let others = ReplyTokens::of(&teacher.examples[i], teacher.tokenizer)?;
        chunks_of(&example.id, &own, &others, logprobs)
    };
    student.examples.iter().map(of_example).collect()
}

fn chunks_of(
    id: &str,
    student: &ReplyTokens,
    teacher: &ReplyTokens,
    logprobs: &[f32],
) -> Result<Vec<TeacherChunk>> {
    let chunks = align(student, teacher);
    check_overlap(id, student, teacher, &chunks)?;
    let sum = |tokens: std::ops::Range<usize>| logprobs[tokens].iter().map(|&l| f64::from(l)).sum();
    let chunk = |chunk: crate::Chunk| TeacherChunk { tokens: chunk.student, logprob: sum(chunk.teacher) };
    Ok(chunks.into_iter().map(chunk).collect())
}

//! Examples from traces, from data-set targets and from plain texts.

use stillroom_core::{Prompt, Trace};
use stillroom_formats::Tokenizer;

use crate::{DistillError, Example, Result};

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

/// One example per text, each token after the first supervised. What looks like a special token in the text is
/// ordinary text; the tokenizer's beginning- and end-of-text tokens stand around it where it has them.
pub fn from_texts<'a>(
    texts: impl IntoIterator<Item = (&'a str, &'a str)>,
    tokenizer: &Tokenizer,
) -> Result<Vec<Example>> {
    let make = |(id, text): (&str, &str)| {
        let mut ids: Vec<u32> = tokenizer.bos_id().into_iter().collect();
        ids.extend(tokenizer.encode_plain(text)?);
        ids.extend(tokenizer.eos_id());
        Example::from_text_ids(id, ids)
    };
    texts.into_iter().map(make).collect()
}

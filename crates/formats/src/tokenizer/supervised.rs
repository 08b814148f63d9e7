//! Which tokens of a conversation are learned.

use std::ops::Range;

use serde_json::Value;
use stillroom_core::{Message, Role};
use tokenizers::OffsetType;

use super::Tokenizer;
use super::escape::{Literals, Piece};
use crate::error::{FormatError, Result};

/// A reply that no text contains (a Unicode noncharacter), to see what the template puts after it.
const END_PROBE: &str = "\u{FDD2}";

/// A conversation whose last turn is to be learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SupervisedTokens {
    pub ids: Vec<u32>,
    /// `supervised[t]`: token t is a target (it belongs to the reply or ends it).
    pub supervised: Vec<bool>,
}

/// What the assistant writes after the prompt, up to and including what ends its turn.
struct ReplyText {
    text: String,
    /// The bytes of it that are learned, where the template's generation tags say so.
    learned: Option<Vec<Range<usize>>>,
}

impl Tokenizer {
    /// Token ids of a conversation with its reply; the reply and the token that ends it are
    /// supervised, what came before is not: neither are earlier turns of the assistant.
    ///
    /// The prompt's ids are exactly those of `encode_chat(messages, true)`, so that training
    /// sees what generation sees. `reasoning_content` goes where the template puts it; a template
    /// that does not mention it gets `<think>\n…\n</think>\n\n` before the content. A template
    /// that would drop part of the reply is bypassed for the reply.
    ///
    /// Of a template with `{% generation %}` tags, those tokens of the reply are supervised that
    /// have a character between the tags: what `return_assistant_tokens_mask` of transformers
    /// masks, up to the token that ends the turn. Such a template is never bypassed, nor is one
    /// for a reply with tool calls.
    pub fn encode_supervised(&self, messages: &[Message], reply: &Message) -> Result<SupervisedTokens> {
        let is_empty = |text: &str| text.trim().is_empty();
        let says_nothing =
            is_empty(&reply.content) && reply.reasoning_content.as_deref().is_none_or(is_empty);
        if says_nothing && reply.tool_calls.is_empty() {
            return Err(FormatError::EmptySupervision);
        }
        let mut literals = Literals::default();
        let mut turns: Vec<Message> =
            messages.iter().map(|message| self.hide_specials(message, &mut literals)).collect();
        let reply = self.hide_specials(reply, &mut literals);
        let prompt = self.render_chat(&turns, true)?;
        turns.push(Message::new(Role::Assistant, END_PROBE));
        let mut end_id = self.end_of_reply(&turns)?;
        turns.pop();

        let text = self.reply_text(&prompt, turns, &reply)?;
        let (mut reply_ids, mut learned) = self.encode_reply(&text, &literals)?;
        if !reply.tool_calls.is_empty() {
            end_id = self.end_of_calls(&reply_ids);
        }
        let ends_at = end_id.and_then(|end| reply_ids.iter().rposition(|&id| id == end));
        // An end that the template does not write is not between its tags, and learned all the same.
        let learns_end = ends_at.is_none_or(|position| learned[position]);
        if let Some(position) = ends_at {
            reply_ids.truncate(position);
            learned.truncate(position);
        }
        if reply_ids.is_empty() {
            return Err(FormatError::EmptySupervision);
        }
        if !learned.contains(&true) {
            return Err(FormatError::NothingGenerated);
        }
        reply_ids.extend(end_id);
        learned.extend(end_id.map(|_| learns_end));
        let mut ids = self.encode_hidden(&prompt, &literals)?;
        let mut supervised = vec![false; ids.len()];
        supervised.extend(learned);
        ids.extend(reply_ids);
        Ok(SupervisedTokens { ids, supervised })
    }

    fn reply_text(&self, prompt: &str, mut turns: Vec<Message>, reply: &Message) -> Result<ReplyText> {
        let template = self.template.as_ref().ok_or(FormatError::NoChatTemplate)?;
        let whole = match &reply.reasoning_content {
            Some(reasoning) => format!("<think>\n{reasoning}\n</think>\n\n{}", reply.content),
            None => reply.content.clone(),
        };
        let mut turn = reply.clone();
        if !template.knows_reasoning() {
            turn = Message { content: whole.clone(), reasoning_content: None, ..turn };
        }
        turns.push(turn);
        let (rendered, spans) = template.render_spans(&self.rendering(&turns, false))?;
        let called = reply.tool_calls.iter().filter_map(name_of_call);
        let mut parts = called.chain(reply.reasoning_content.as_deref()).chain([reply.content.as_str()]);
        if let Some(text) = rendered.strip_prefix(prompt)
            && parts.all(|part| text.contains(part.trim()))
        {
            let after_prompt = |at: usize| at.saturating_sub(prompt.len());
            let shift = |span: Range<usize>| after_prompt(span.start)..after_prompt(span.end);
            let learned =
                template.has_generation_tags().then(|| spans.into_iter().map(shift).collect::<Vec<_>>());
            return Ok(ReplyText { text: text.to_owned(), learned });
        }
        if !reply.tool_calls.is_empty() || template.has_generation_tags() {
            return Err(FormatError::ReplyElsewhere);
        }
        // Some templates open the reasoning themselves.
        let opened = prompt.trim_end().ends_with("<think>");
        let text = if opened { whole.strip_prefix("<think>\n").unwrap_or(&whole) } else { &whole };
        Ok(ReplyText { text: text.to_owned(), learned: None })
    }

    /// The token that the template puts after a reply, or the tokenizer's end of sequence.
    /// `turns` ends with an assistant turn of [`END_PROBE`].
    fn end_of_reply(&self, turns: &[Message]) -> Result<Option<u32>> {
        let rendered = self.render_chat(turns, false)?;
        let after = rendered.rsplit_once(END_PROBE).map_or("", |(_, after)| after);
        let first_special = self.encode(after)?.into_iter().find(|&id| self.is_special(id));
        Ok(first_special.or(self.eos_id()))
    }

    /// The special token that a reply with tool calls ends with (some templates end it otherwise than text), or the
    /// tokenizer's end of sequence. What a message spells out is not special here.
    fn end_of_calls(&self, ids: &[u32]) -> Option<u32> {
        let last = ids.iter().rposition(|&id| self.is_special(id));
        let end = last.filter(|&at| self.decode(&ids[at + 1..]).trim().is_empty());
        end.map(|at| ids[at]).or(self.eos_id())
    }

    /// Token ids of a reply, and which of them have a byte that is learned.
    fn encode_reply(&self, reply: &ReplyText, literals: &Literals) -> Result<(Vec<u32>, Vec<bool>)> {
        let Some(spans) = &reply.learned else {
            let ids = self.encode_hidden(&reply.text, literals)?;
            let learned = vec![true; ids.len()];
            return Ok((ids, learned));
        };
        let is_learned =
            |token: Range<usize>| spans.iter().any(|span| token.start < span.end && span.start < token.end);
        let (mut ids, mut learned) = (Vec::new(), Vec::new());
        for (piece, place) in literals.split(&reply.text) {
            match piece {
                Piece::Text(text) => {
                    let added = self.inner.get_added_vocabulary();
                    let encoding = self.encode_with(added, text, OffsetType::Byte)?;
                    ids.extend(encoding.get_ids());
                    let tokens = encoding.get_offsets().iter();
                    learned.extend(
                        tokens.map(|&(start, end)| is_learned(place.start + start..place.start + end)),
                    );
                }
                // A special token that a message spells out is enclosed as a whole.
                Piece::Literal(text) => {
                    ids.extend(self.encode_plain(text)?);
                    learned.resize(ids.len(), is_learned(place));
                }
            }
        }
        Ok((ids, learned))
    }
}

/// The name of the function that is called.
fn name_of_call(call: &Value) -> Option<&str> {
    call.get("function").unwrap_or(call).get("name")?.as_str()
}

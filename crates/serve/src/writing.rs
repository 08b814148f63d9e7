//! A choice as it is being written: from tokens to what is sent of them.

use stillroom_core::FinishReason;
use stillroom_formats::Tokenizer;
use stillroom_model::Token;

use crate::text::{Detokenizer, Stops};

/// A token as it is told of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) id: u32,
    /// None for the first token of a prompt.
    pub(crate) logprob: Option<f32>,
    pub(crate) top: Vec<(u32, f32)>,
    /// Characters of the text before it.
    pub(crate) offset: usize,
}

/// What came to a choice since the last piece.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) entries: Vec<Entry>,
    /// Of the last piece.
    pub(crate) finish_reason: Option<&'static str>,
}

pub(crate) struct Choice<'t> {
    detokenizer: Detokenizer<'t>,
    stops: Stops,
    /// What has been shown.
    pub(crate) text: String,
    n_chars: usize,
    /// Tokens that it took.
    pub(crate) n_tokens: usize,
    waiting: Vec<Entry>,
    keeps_entries: bool,
    pub(crate) finish_reason: Option<&'static str>,
}

impl<'t> Choice<'t> {
    /// One whose tokens are told of one by one only with `keeps_entries`.
    pub(crate) fn new(tokenizer: &'t Tokenizer, stops: Vec<String>, keeps_entries: bool) -> Choice<'t> {
        Choice {
            detokenizer: Detokenizer::new(tokenizer),
            stops: Stops::new(stops),
            text: String::new(),
            n_chars: 0,
            n_tokens: 0,
            waiting: Vec::new(),
            keeps_entries,
            finish_reason: None,
        }
    }

    /// Takes the next token. A piece, where there is text to show or the choice has ended; it has ended with the piece that
    /// has a `finish_reason`, and takes no more tokens.
    pub(crate) fn take(&mut self, token: Token) -> Option<Piece> {
        let Token { id, logprob, top, done } = token;
        self.n_tokens += 1;
        if self.keeps_entries {
            self.waiting.push(Entry { id, logprob: Some(logprob), top, offset: self.n_chars });
        }
        let certain = self.detokenizer.push(id);
        self.n_chars += certain.chars().count();
        let mut text = self.stops.push(certain);
        if let Some(done) = done {
            text.push_str(&self.stops.push(self.detokenizer.finish()));
            text.push_str(&self.stops.finish());
            self.finish_reason = Some(done.finish_reason.as_str());
        }
        if self.stops.has_stopped() {
            self.finish_reason = Some(FinishReason::Stop.as_str());
        }
        if text.is_empty() && self.finish_reason.is_none() {
            return None;
        }
        self.text.push_str(&text);
        Some(Piece { text, entries: std::mem::take(&mut self.waiting), finish_reason: self.finish_reason })
    }

    /// Ends it where no token is wanted of it, or no more.
    pub(crate) fn end(&mut self, finish_reason: &'static str) -> Piece {
        self.finish_reason = Some(finish_reason);
        Piece { finish_reason: self.finish_reason, ..Piece::default() }
    }
}

impl Piece {
    pub(crate) fn append(&mut self, other: Piece) {
        self.text.push_str(&other.text);
        self.entries.extend(other.entries);
        self.finish_reason = other.finish_reason;
    }
}

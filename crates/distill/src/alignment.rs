//! Which tokens of two tokenizations stand for the same bytes.
//!
//! Tokens are laid on the bytes of the supervised text, never on its characters: a byte-level token may be
//! part of one. A **chunk** begins and ends where both sides begin and end a token, and nowhere in between
//! do they: 12345 as `123 45` and as `1 2 3 4 5` are the chunks 123 and 45.
//!
//! Each side's chat template may write something of its own around the reply, and a tokenizer may normalise
//! some of it. So only the longest common beginning and the longest common end of the two texts are aligned,
//! which is everything where the texts are the same. The token that ends the turn is a chunk of its own
//! with the other side's; other special tokens are in no chunk.
//!
//! A text that is learned as it stands begins with a token that nothing predicts. Its bytes lead the others, so that
//! both texts are the same from the first byte on.

use std::ops::Range;

use stillroom_formats::Tokenizer;

use crate::{DistillError, Example, Result};

/// What a supervised token is on its side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Bytes from the end of the text token before it up to here.
    Text { end: usize },
    /// Ends the turn.
    End,
    /// Stands for no text.
    Special,
}

/// The supervised tokens of one document, laid on the bytes that they stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplyTokens {
    text: Vec<u8>,
    /// Bytes of `text` that belong to no supervised token.
    lead: usize,
    kinds: Vec<Kind>,
}

impl ReplyTokens {
    /// The supervised tokens of `example`, which `tokenizer` made.
    pub fn of(example: &Example, tokenizer: &Tokenizer) -> Result<ReplyTokens> {
        let mut tokens = ReplyTokens::default();
        let supervised = example.ids.iter().zip(&example.supervised).filter(|&(_, &s)| s);
        let ids: Vec<u32> = supervised.map(|(&id, _)| id).collect();
        if let ([first, ..], Some(true)) = (&example.ids[..], example.supervised.get(1))
            && !tokenizer.is_special(*first)
        {
            tokens.text.extend(tokenizer.token_bytes(*first).unwrap_or_default());
            tokens.lead = tokens.text.len();
        }
        for (i, &id) in ids.iter().enumerate() {
            if tokenizer.is_special(id) || Some(id) == tokenizer.eos_id() {
                tokens.push_special(i + 1 == ids.len());
                continue;
            }
            let bytes = tokenizer.token_bytes(id).ok_or_else(|| {
                DistillError::example(&example.id, format!("token {id} is none of its tokenizer"))
            })?;
            tokens.push(&bytes);
        }
        Ok(tokens)
    }

    /// Appends a token that stands for these bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.text.extend_from_slice(bytes);
        self.kinds.push(Kind::Text { end: self.text.len() });
    }

    /// Appends a token that stands for no text, and may end the turn.
    pub fn push_special(&mut self, ends_turn: bool) {
        self.kinds.push(if ends_turn { Kind::End } else { Kind::Special });
    }

    /// The bytes of all text tokens, behind those that lead them.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    fn supervised_bytes(&self) -> usize {
        self.text.len() - self.lead
    }

    /// Bytes that these tokens stand for together.
    pub(crate) fn n_bytes(&self, tokens: Range<usize>) -> usize {
        let end = |kind: &Kind| if let Kind::Text { end } = *kind { Some(end) } else { None };
        let before = |n: usize| self.kinds[..n].iter().rev().find_map(end).unwrap_or(self.lead);
        before(tokens.end) - before(tokens.start)
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.kinds.len()
    }

    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// Text tokens that lie in `range` of the bytes.
    fn spans(&self, range: Range<usize>) -> Vec<Span> {
        let mut spans = Vec::new();
        let mut start = self.lead;
        for (token, kind) in self.kinds.iter().enumerate() {
            if let Kind::Text { end } = *kind {
                if start >= range.start && end <= range.end {
                    spans.push(Span { token, start: start - range.start, end: end - range.start });
                }
                start = end;
            }
        }
        spans
    }

    fn turn_end(&self) -> Option<usize> {
        self.kinds.iter().rposition(|&kind| kind == Kind::End)
    }
}

/// A text token and its bytes, counted from where its piece of text begins.
#[derive(Clone, Copy, Debug)]
struct Span {
    token: usize,
    start: usize,
    end: usize,
}

/// Tokens of both sides that stand for the same bytes, or both for the end of the turn; by their index among
/// the supervised tokens of their side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub student: Range<usize>,
    pub teacher: Range<usize>,
}

/// The minimal chunks of two tokenizations, in order.
///
/// ```
/// use stillroom_distill::{Chunk, ReplyTokens, align};
/// let of = |tokens: &[&str]| {
///     let mut all = ReplyTokens::default();
///     tokens.iter().for_each(|token| all.push(token.as_bytes()));
///     all
/// };
/// let chunks = align(&of(&["1", "2", "3", "4", "5"]), &of(&["123", "45"]));
/// assert_eq!(chunks, [Chunk { student: 0..3, teacher: 0..1 }, Chunk { student: 3..5, teacher: 1..2 }]);
/// ```
pub fn align(student: &ReplyTokens, teacher: &ReplyTokens) -> Vec<Chunk> {
    let (s, t) = (student.text(), teacher.text());
    let shorter = s.len().min(t.len());
    let before = s.iter().zip(t).take_while(|(a, b)| a == b).count();
    let matches = s.iter().rev().zip(t.iter().rev()).take_while(|(a, b)| a == b).count();
    let after = matches.min(shorter - before);
    let mut chunks = Vec::new();
    align_pieces(&student.spans(0..before), &teacher.spans(0..before), &mut chunks);
    if after > 0 {
        let (s, t) = (student.spans(s.len() - after..s.len()), teacher.spans(t.len() - after..t.len()));
        align_pieces(&s, &t, &mut chunks);
    }
    if let Some((s, t)) = student.turn_end().zip(teacher.turn_end()) {
        chunks.push(Chunk { student: s..s + 1, teacher: t..t + 1 });
    }
    chunks
}

/// Refuses two tokenizations whose `chunks` are less than half of the shorter text.
pub(crate) fn check_overlap(
    id: &str,
    student: &ReplyTokens,
    teacher: &ReplyTokens,
    chunks: &[Chunk],
) -> Result<()> {
    let shared = chunks.iter().map(|chunk| student.n_bytes(chunk.student.clone())).sum();
    let (of_teacher, of_student) = (teacher.supervised_bytes(), student.supervised_bytes());
    if 2 * shared < of_teacher.min(of_student) || chunks.is_empty() {
        let (id, teacher, student) = (id.to_owned(), of_teacher, of_student);
        return Err(DistillError::Misaligned { id, shared, teacher, student });
    }
    Ok(())
}

/// Appends the chunks of a piece of text that both sides have.
fn align_pieces(student: &[Span], teacher: &[Span], chunks: &mut Vec<Chunk>) {
    let (mut s, mut t) = (0, 0);
    loop {
        // A common beginning: everywhere but at the edge of a piece that cuts tokens, the tokens are there already.
        while let (Some(a), Some(b)) = (student.get(s), teacher.get(t))
            && a.start != b.start
        {
            if a.start < b.start { s += 1 } else { t += 1 }
        }
        let (first_s, first_t) = (s, t);
        // A common end.
        while let (Some(a), Some(b)) = (student.get(s), teacher.get(t))
            && a.end != b.end
        {
            if a.end < b.end { s += 1 } else { t += 1 }
        }
        let (Some(last_s), Some(last_t)) = (student.get(s), teacher.get(t)) else { return };
        let chunk = Chunk {
            student: student[first_s].token..last_s.token + 1,
            teacher: teacher[first_t].token..last_t.token + 1,
        };
        // A special token within has a probability, but no text.
        if chunk.student.len() == s + 1 - first_s && chunk.teacher.len() == t + 1 - first_t {
            chunks.push(chunk);
        }
        (s, t) = (s + 1, t + 1);
    }
}

/// What a teacher of any tokenizer says about some of the student's tokens together.
#[derive(Clone, Debug, PartialEq)]
pub struct TeacherChunk {
    /// By their index among the example's supervised tokens.
    pub tokens: Range<usize>,
    /// Nats that the teacher gives the same bytes: Σ log p over its own tokens.
    pub logprob: f64,
}

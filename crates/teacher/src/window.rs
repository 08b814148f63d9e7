//! What has been asked and not yet handed over, in its order.
//!
//! One request that has to be tried again and again holds up all that come after it. So many may wait; what they ask is
//! kept in memory up to a cap, and of their answers, which the ledger has, only the nearest.

use std::collections::VecDeque;
use std::sync::Arc;

use stillroom_core::Message;

use crate::ask::{Answer, Question};
use crate::session::Asked;

/// Requests that may be ahead of the first one without an answer.
const ASKED_MAX: usize = 16_384;
/// Bytes that they may ask, all together.
const ASKED_BYTES_MAX: usize = 64 << 20;
/// Bytes of answers that are kept.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// An answer that is durable.
pub(crate) struct Arrived {
    pub(crate) index: u64,
    pub(crate) answer: Answer,
}

enum Slot {
    Waits,
    Answered(Answer),
    /// In the ledger alone.
    InLedger,
}

#[derive(Default)]
pub(crate) struct Window {
    slots: VecDeque<(Arc<Asked>, Slot)>,
    /// Index of the first.
    first: u64,
    asked_bytes: usize,
    answer_bytes: usize,
}

impl Window {
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(crate) fn has_room(&self) -> bool {
        self.slots.len() < ASKED_MAX && self.asked_bytes < ASKED_BYTES_MAX
    }

    /// The index of what is asked next, with its answer if it was there already.
    pub(crate) fn push(&mut self, asked: Arc<Asked>, answer: Option<Answer>) -> u64 {
        let index = self.first + self.slots.len() as u64;
        self.asked_bytes += asked_bytes(&asked);
        self.slots.push_back((asked, Slot::Waits));
        if let Some(answer) = answer {
            self.answer(Arrived { index, answer });
        }
        index
    }

    pub(crate) fn answer(&mut self, Arrived { index, answer }: Arrived) {
        let bytes = answer_bytes(&answer);
        let fits = self.answer_bytes + bytes <= ANSWER_BYTES_MAX || index == self.first;
        // Only what was bought can be read back.
        let keep = fits || !matches!(answer, Answer::Reply(_));
        self.answer_bytes += if keep { bytes } else { 0 };
        let slot = &mut self.slots[(index - self.first) as usize].1;
        *slot = if keep { Slot::Answered(answer) } else { Slot::InLedger };
    }

    pub(crate) fn first_is_answered(&self) -> bool {
        self.slots.front().is_some_and(|(_, slot)| !matches!(slot, Slot::Waits))
    }

    /// The first request, if it is answered; without the answer where only the ledger has it.
    pub(crate) fn pop_answered(&mut self) -> Option<(Arc<Asked>, Option<Answer>)> {
        if !self.first_is_answered() {
            return None;
        }
        let (asked, slot) = self.slots.pop_front()?;
        self.first += 1;
        self.asked_bytes -= asked_bytes(&asked);
        let Slot::Answered(answer) = slot else { return Some((asked, None)) };
        self.answer_bytes -= answer_bytes(&answer);
        Some((asked, Some(answer)))
    }
}

/// Of the text, and of what holds it.
fn asked_bytes(asked: &Asked) -> usize {
    let turns = |messages: &[Message]| -> usize {
        messages.iter().map(|message| size_of_val(message) + message.content.len()).sum()
    };
    let question = match &asked.ask.question {
        Question::Chat(messages) => turns(messages),
        Question::Complete { messages, text } => turns(messages) + text.len(),
        Question::Score(text) => size_of_val(&text.ids[..]),
    };
    size_of::<Asked>() + asked.ask.id.len() + question
}

fn answer_bytes(answer: &Answer) -> usize {
    let Answer::Reply(receipt) = answer else { return size_of::<Answer>() };
    let reply = &receipt.reply;
    let logprobs = reply.logprobs.as_ref().map_or(0, |all| all.len() * 256);
    size_of_val(&**receipt)
        + reply.content.len()
        + reply.reasoning_content.as_ref().map_or(0, String::len)
        + logprobs
        + size_of_val(&receipt.logprobs[..])
}

#[cfg(test)]
mod tests {
    use stillroom_core::Digest;

    use super::*;
    use crate::ask::Ask;

    fn asked(id: u64) -> Arc<Asked> {
        let ask = Ask::chat(id.to_string(), 0, Vec::new(), 0);
        Arc::new(Asked { ask, request: Digest::of(b"") })
    }

    fn refused(fault: String) -> Answer {
        Answer::Refused { fault }
    }

    #[test]
    fn answers_come_out_in_the_order_of_questions() {
        let mut window = Window::default();
        for i in 0..5 {
            assert_eq!(window.push(asked(i), (i == 1).then(|| refused("kept".into()))), i);
        }
        for index in [3, 0, 4] {
            window.answer(Arrived { index, answer: refused(index.to_string()) });
        }
        let mut seen = Vec::new();
        while let Some((asked, answer)) = window.pop_answered() {
            assert!(answer.is_some());
            seen.push(asked.ask.id.clone());
        }
        assert_eq!(seen, ["0", "1"]);
        window.answer(Arrived { index: 2, answer: refused(String::new()) });
        std::iter::from_fn(|| window.pop_answered()).for_each(|(asked, _)| seen.push(asked.ask.id.clone()));
        assert_eq!(seen, ["0", "1", "2", "3", "4"]);
        assert!(
            window.is_empty() && window.has_room() && window.asked_bytes == 0 && window.answer_bytes == 0
        );
    }

    fn reply() -> Answer {
        let reply = stillroom_formats::openai::read_reply(
            br#"{"choices":[{"index":0,"message":{"content":"a"},"finish_reason":"stop"}]}"#,
        );
        let reply = reply.expect("a reply");
        Answer::Reply(Box::new(crate::Receipt {
            reply,
            prompt_tokens: 1,
            completion_tokens: 1,
            usd: 0.0,
            estimated: false,
            logprobs: Vec::new(),
        }))
    }

    #[test]
    fn it_is_full_at_its_cap_and_leaves_answers_to_the_ledger_beyond_theirs() {
        let mut window = Window::default();
        for i in 0..ASKED_MAX as u64 {
            assert!(window.has_room());
            window.push(asked(i), None);
        }
        assert!(!window.has_room());
        window.answer_bytes = ANSWER_BYTES_MAX;
        window.answer(Arrived { index: 7, answer: reply() });
        window.answer(Arrived { index: 8, answer: refused(String::new()) });
        assert!(matches!(window.slots[7].1, Slot::InLedger));
        assert!(matches!(window.slots[8].1, Slot::Answered(_)));
        window.answer(Arrived { index: 0, answer: refused("first".into()) });
        assert_eq!(window.pop_answered().unwrap().1, Some(refused("first".into())));
    }
}

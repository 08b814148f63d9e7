//! How many tokens something is, where nobody counted them.

use crate::ask::{Ask, Question};

/// Bytes of a token before any reply has told better.
const BYTES_PER_TOKEN: f64 = 4.0;

/// Learns from the usage that replies report.
#[derive(Clone, Debug)]
pub(crate) struct Estimator {
    prompt_bytes: f64,
    prompt_tokens: f64,
    completion_tokens: f64,
    replies: f64,
    max_tokens: u64,
}

impl Estimator {
    pub(crate) fn new(max_tokens: u64) -> Estimator {
        Estimator { prompt_bytes: 0.0, prompt_tokens: 0.0, completion_tokens: 0.0, replies: 0.0, max_tokens }
    }

    pub(crate) fn learn(&mut self, ask: &Ask, prompt_tokens: u64, completion_tokens: u64) {
        self.prompt_bytes += bytes_of(ask) as f64;
        self.prompt_tokens += prompt_tokens as f64;
        self.completion_tokens += completion_tokens as f64;
        self.replies += 1.0;
    }

    pub(crate) fn prompt_tokens(&self, ask: &Ask) -> u64 {
        if let Question::Score(text) = &ask.question {
            return text.ids.len() as u64;
        }
        let ratio = match self.prompt_bytes > 0.0 && self.prompt_tokens > 0.0 {
            true => self.prompt_tokens / self.prompt_bytes,
            false => 1.0 / BYTES_PER_TOKEN,
        };
        (bytes_of(ask) as f64 * ratio).ceil() as u64
    }

    /// Of a reply that names no usage.
    pub(crate) fn completion_tokens(&self, written_bytes: usize, pieces: u64) -> u64 {
        pieces.max((written_bytes as f64 / BYTES_PER_TOKEN).ceil() as u64).min(self.max_tokens)
    }

    /// What a service may bill for a call that gave no usable reply, as (prompt, completion): what other replies took on
    /// average, and no less than what came of this one.
    pub(crate) fn of_fault(&self, ask: &Ask, pieces: u64) -> (u64, u64) {
        (self.prompt_tokens(ask), self.average().max(pieces.min(self.max_tokens)))
    }

    /// What a request takes of an allowance of tokens.
    pub(crate) fn of_request(&self, ask: &Ask) -> u64 {
        self.prompt_tokens(ask) + self.average()
    }

    fn average(&self) -> u64 {
        match self.replies > 0.0 {
            true => (self.completion_tokens / self.replies).ceil() as u64,
            false => self.max_tokens,
        }
    }
}

fn bytes_of(ask: &Ask) -> usize {
    match &ask.question {
        Question::Chat(messages) => {
            messages.iter().map(|message| message.content.len()).sum::<usize>().max(1)
        }
        Question::Complete { text, .. } => text.len().max(1),
        Question::Score(text) => size_of_val(&text.ids[..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillroom_core::{Message, Role};

    #[test]
    fn usage_teaches_what_a_token_is() {
        let ask = |text: &str| Ask::chat("a".into(), 0, vec![Message::new(Role::User, text)], 0);
        let mut estimator = Estimator::new(100);
        assert_eq!(estimator.of_fault(&ask("12345678"), 3), (2, 100), "before any reply: the worst");
        estimator.learn(&ask("12345678"), 8, 30);
        estimator.learn(&ask("12345678"), 8, 10);
        assert_eq!(estimator.of_fault(&ask("1234"), 3), (4, 20));
        assert_eq!(estimator.of_fault(&ask("1234"), 40), (4, 40));
        assert_eq!(estimator.completion_tokens(400, 7), 100);
        assert_eq!(estimator.completion_tokens(8, 7), 7);
    }
}

//! What is asked, and what names it.

use serde::{Deserialize, Serialize};
use stillroom_core::{Digest, Digester, Message};
use stillroom_formats::openai::{ChatRequest, CompletionRequest, PromptText, Reply};

use crate::settings::Sampling;

/// One thing that is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// Id of the prompt.
    pub id: String,
    /// Which of the replies to it.
    pub sample: u32,
    pub question: Question,
    /// What the reply is to be drawn with, where the endpoint heeds seeds.
    pub seed: u64,
}

/// What is wanted of the teacher.
#[derive(Clone, Debug, PartialEq)]
pub enum Question {
    /// A conversation to be continued.
    Chat(Vec<Message>),
    /// The same as a text that the reply continues.
    Complete { messages: Vec<Message>, text: String },
    /// How likely each token of a text is behind its prompt.
    Score(Unscored),
}

/// A text whose log-probabilities are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unscored {
    /// Prompt and text.
    pub ids: Vec<u32>,
    /// Tokens of the prompt, one at least.
    pub n_prompt: usize,
    pub how: Scoring,
}

/// How an endpoint is asked for log-probabilities of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scoring {
    /// vLLM's field of a completion.
    PromptLogprobs,
    /// `echo` with `logprobs`: the prompt comes back before the reply.
    Echo,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Reply(Box<Receipt>),
    /// The teacher will not answer it as it stands.
    Refused {
        fault: String,
    },
    /// Every try failed.
    GivenUp {
        fault: String,
    },
}

/// A reply as the ledger keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    pub reply: Reply,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// What it cost.
    pub usd: f64,
    /// Whether tokens and cost are estimated, since the reply names no usage.
    pub estimated: bool,
    /// Of a text that was to be scored: log p of each token behind its prompt. The reply itself has none then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<f64>,
}

impl Ask {
    /// A conversation to be continued.
    pub fn chat(id: String, sample: u32, messages: Vec<Message>, seed: u64) -> Ask {
        Ask { id, sample, question: Question::Chat(messages), seed }
    }

    /// A conversation to be continued, as `text` has it.
    pub fn complete(id: String, sample: u32, messages: Vec<Message>, text: String, seed: u64) -> Ask {
        Ask { id, sample, question: Question::Complete { messages, text }, seed }
    }

    /// A text to be scored. Nothing is drawn, so the seed is always the same.
    pub fn score(id: String, text: Unscored) -> Ask {
        Ask { id, sample: 0, question: Question::Score(text), seed: 0 }
    }

    /// The conversation; none of a text to be scored.
    pub fn into_messages(self) -> Vec<Message> {
        match self.question {
            Question::Chat(messages) | Question::Complete { messages, .. } => messages,
            Question::Score(_) => Vec::new(),
        }
    }

    /// Where it is sent, below an endpoint's address.
    pub(crate) fn path(&self) -> &'static str {
        match self.question {
            Question::Chat(_) => "chat/completions",
            Question::Complete { .. } | Question::Score(_) => "completions",
        }
    }

    /// The body of its request.
    pub(crate) fn body(&self, model: &str, sampling: &Sampling, stream: bool) -> Vec<u8> {
        let seed = sampling.send_seed.then_some(self.seed);
        let &Sampling { max_tokens, temperature, top_p, top_logprobs, return_token_ids, ref extra, .. } =
            sampling;
        match &self.question {
            Question::Chat(messages) => ChatRequest {
                model,
                messages,
                max_tokens,
                temperature,
                top_p,
                seed,
                stream,
                top_logprobs,
                return_token_ids,
                extra,
            }
            .body(),
            Question::Complete { text, .. } => CompletionRequest {
                model,
                prompt: PromptText::Text(text),
                max_tokens,
                temperature,
                top_p,
                seed,
                stream,
                logprobs: top_logprobs,
                echo: false,
                prompt_logprobs: None,
                return_token_ids,
                extra,
            }
            .body(),
            Question::Score(text) => self.body_of_score(text, model, sampling),
        }
    }

    /// Of the reply, which is never streamed, nothing is wanted; most servers write one token at least.
    fn body_of_score(&self, text: &Unscored, model: &str, sampling: &Sampling) -> Vec<u8> {
        let echo = text.how == Scoring::Echo;
        let request = CompletionRequest {
            model,
            prompt: PromptText::TokenIds(&text.ids),
            max_tokens: 1,
            temperature: 0.0,
            top_p: 1.0,
            seed: sampling.send_seed.then_some(self.seed),
            stream: false,
            logprobs: echo.then_some(1),
            echo,
            prompt_logprobs: (!echo).then_some(1),
            return_token_ids: false,
            extra: &sampling.extra,
        };
        request.body()
    }

    /// Of all that the answer depends on: the prompt's id, the sample and the body, of a text also where its prompt ends,
    /// but not where or how it is sent.
    pub fn digest(&self, model: &str, sampling: &Sampling) -> Digest {
        let mut digester = Digester::new();
        let mut update = |part: &[u8]| {
            digester.update(&(part.len() as u64).to_le_bytes());
            digester.update(part);
        };
        update(self.id.as_bytes());
        update(&self.sample.to_le_bytes());
        update(&self.body(model, sampling, false));
        if let Question::Score(text) = &self.question {
            update(&(text.n_prompt as u64).to_le_bytes());
        }
        digester.finish()
    }
}

//! Prompts and the traces that a teacher writes for them.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    System,
    User,
    Assistant,
    Tool,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub role: Role,
    pub content: String,
    /// Reasoning that came before the answer; read under `reasoning` and `thinking` too.
    #[serde(default, skip_serializing_if = "Option::is_none", alias = "reasoning", alias = "thinking")]
    pub reasoning_content: Option<String>,
}

impl Message {
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        Message { role, content: content.into(), reasoning_content: None }
    }
}

/// A question for the teacher, with what the data set itself knows about its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    pub id: String,
    pub messages: Vec<Message>,
    /// The right answer, where the data has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// The data set's own target: what an undistilled student is trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Message>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    Stop,
    Length,
}

impl FinishReason {
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        }
    }
}

/// What a teacher wrote for a prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// Id of the prompt.
    pub id: String,
    /// Which of the samples for the prompt, from 0.
    pub sample: u32,
    /// The conversation that the teacher answered.
    pub messages: Vec<Message>,
    pub reasoning_content: Option<String>,
    pub content: String,
    pub finish_reason: FinishReason,
    pub prompt_tokens: u32,
    pub completion_tokens: u32,
    /// The ID that the licence gate saw.
    pub teacher: String,
    pub usd: f64,
}

impl Trace {
    /// The assistant turn that a student learns.
    pub fn reply(&self) -> Message {
        Message {
            role: Role::Assistant,
            content: self.content.clone(),
            reasoning_content: self.reasoning_content.clone(),
        }
    }
}

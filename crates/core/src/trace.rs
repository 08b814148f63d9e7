//! Prompts and the traces that a teacher writes for them.

use serde::{Deserialize, Serialize};
use serde_json::Value;

mod turn;

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
#[serde(try_from = "turn::Written")]
pub struct Message {
    pub role: Role,
    pub content: String,
    /// Reasoning that came before the answer; read under `reasoning` and `thinking` too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Calls that the assistant makes, as OpenAI's interface writes them, with arguments as objects.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<Value>,
    /// Which call a tool's turn answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Who speaks: the tool, or one of several users.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The tools that the conversation offers, as JSON schemas; on its first turn only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Value>,
}

impl Message {
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        Message {
            role,
            content: content.into(),
            reasoning_content: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
            name: None,
            tools: Vec::new(),
        }
    }

    /// Whether the turn belongs to a conversation with tools: it offers, calls or answers as one.
    pub fn uses_tools(&self) -> bool {
        self.role == Role::Tool
            || !self.tool_calls.is_empty()
            || !self.tools.is_empty()
            || self.tool_call_id.is_some()
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

impl Prompt {
    /// Whether conversation or target use tools.
    pub fn uses_tools(&self) -> bool {
        self.messages.iter().chain(&self.target).any(Message::uses_tools)
    }
}

impl Trace {
    /// The assistant turn that a student learns.
    pub fn reply(&self) -> Message {
        Message {
            reasoning_content: self.reasoning_content.clone(),
            ..Message::new(Role::Assistant, self.content.clone())
        }
    }
}

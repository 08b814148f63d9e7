//! What tests are made of.

use stillroom_core::{FinishReason, Trace};

/// A whole trace without conversation or reasoning.
pub(crate) fn trace(id: &str, sample: u32, content: &str) -> Trace {
    Trace {
        id: id.into(),
        sample,
        messages: Vec::new(),
        reasoning_content: None,
        content: content.into(),
        finish_reason: FinishReason::Stop,
        prompt_tokens: 1,
        completion_tokens: 1,
        teacher: "t".into(),
        usd: 0.0,
    }
}

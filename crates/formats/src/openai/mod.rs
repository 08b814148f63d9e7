//! OpenAI's interface as bytes: what is asked, what comes back whole or as a stream, and what says that it went wrong.
//!
//! Nothing here does I/O. What a teacher sends is foreign: every length has a cap, broken bytes are a [`ReplyFault`], and
//! no error text carries control characters or what looks like a key.

mod batch;
mod fault;
mod gather;
mod reply;
mod request;
mod shown;
mod sse;
mod stream;
mod wire;

pub use batch::{BatchLine, BatchResult, read_batch_line};
pub use fault::{ErrorObject, ReplyFault, read_error};
pub use reply::{Finish, IdLogprob, Reply, TokenLogprob, Usage, read_reply, split_reasoning};
pub use request::{ChatRequest, CompletionRequest, PromptText};
pub use stream::{Caps, Progress, StreamReader};

//! An OpenAI-compatible server for one model.
//!
//! ```text
//! server.rs    the address, who is let in, and which route is which
//! http.rs      requests and replies as bytes
//! fields.rs    a body's fields: each is read, known to be harmless, or refused by its name
//! ask.rs       what is asked for
//! engine.rs    the thread that has the model: every sequence gets a token in turn
//! writing.rs   what the engine writes, as choices: text, stops, log-probabilities
//! reply.rs     choices as JSON, whole or in pieces
//! answering.rs one answer, from what is asked to what is sent
//! ```
//!
//! A connection has a thread, and the model has one; there is no other runtime. What a sequence becomes depends on what was
//! asked alone, so an answer does not depend on what else is being served.

mod answering;
mod ask;
mod engine;
mod error;
mod fields;
mod http;
mod limits;
mod metrics;
mod refusal;
mod reply;
mod server;
mod sink;
mod text;
mod writing;

pub use error::ServeError;
pub use limits::Limits;
pub use server::{Served, Server, Settings, Stopper};
pub use sink::{Answer, AnswerSink, AnsweredChoice};

//! What a teacher over the wire is asked with, and within which limits.

use serde_json::{Map, Value};
use stillroom_net::{Address, Secret};

/// Where a teacher is reached.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Up to and including the version: `http://127.0.0.1:8080/v1`.
    pub base: Address,
    pub key: Option<Secret>,
    /// Whether the key may go where it can be read on the way.
    pub send_key_unencrypted: bool,
    /// Share of the requests, relative to the other endpoints'.
    pub weight: f64,
    pub max_in_flight: usize,
    pub requests_per_minute: Option<f64>,
    /// Of prompts and replies together.
    pub tokens_per_minute: Option<f64>,
}

/// How a teacher writes; all of it is part of what names a request in the ledger.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    pub max_tokens: usize,
    pub temperature: f64,
    pub top_p: f64,
    /// Whether each request carries a seed of its own.
    pub send_seed: bool,
    /// Log-probabilities of that many alternatives to each token; 0 for those of the token alone.
    pub top_logprobs: Option<u32>,
    /// vLLM's: ids of the tokens beside their text.
    pub return_token_ids: bool,
    /// Further fields of the body, over all others.
    pub extra: Map<String, Value>,
}

/// US dollars per million tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Price {
    pub input_usd_per_mtok: f64,
    pub output_usd_per_mtok: f64,
    /// Of prompt tokens that the service had in its cache; as other input by default.
    pub cached_input_usd_per_mtok: Option<f64>,
}

impl Price {
    /// What a reply costs: tokens times price, the cached part of the prompt at its own.
    pub fn of(&self, prompt_tokens: u64, cached_prompt_tokens: u64, completion_tokens: u64) -> f64 {
        let cached = cached_prompt_tokens.min(prompt_tokens);
        let cached_price = self.cached_input_usd_per_mtok.unwrap_or(self.input_usd_per_mtok);
        ((prompt_tokens - cached) as f64 * self.input_usd_per_mtok
            + cached as f64 * cached_price
            + completion_tokens as f64 * self.output_usd_per_mtok)
            / 1e6
    }
}

/// When a run of calls ends of itself; what is in flight then is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Budget {
    pub usd: Option<f64>,
    /// Of prompts and replies together.
    pub tokens: Option<u64>,
    pub seconds: Option<f64>,
}

/// What is done about faults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Patience {
    pub connect_timeout_s: f64,
    /// From the request to the first piece of the reply.
    pub first_token_timeout_s: f64,
    /// Longest silence after that.
    pub stall_timeout_s: f64,
    /// Tries for one request. Being told to come back later is no try.
    pub max_attempts: u32,
    /// A request that has been on its way for longer is sent once more, to another endpoint with room for it. The first
    /// reply counts; the other call is given up, and may be billed.
    pub hedge_after_s: Option<f64>,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            connect_timeout_s: 10.0,
            first_token_timeout_s: 120.0,
            stall_timeout_s: 30.0,
            max_attempts: 8,
            hedge_after_s: None,
        }
    }
}

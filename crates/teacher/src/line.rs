//! One endpoint as the schedule sees it: how much room it has, and from when on it may be asked.

use crate::breaker::Breaker;
use crate::pace::Pace;
use crate::settings::Endpoint;

/// Times are milliseconds since the session began.
pub(crate) struct Line {
    weight: f64,
    max_in_flight: usize,
    in_flight: usize,
    served: u64,
    requests: Option<Pace>,
    tokens: Option<Pace>,
    breaker: Breaker,
    held_until_ms: u64,
    /// Why it is asked no more.
    left_out: Option<String>,
}

impl Line {
    pub(crate) fn new(endpoint: &Endpoint) -> Line {
        Line {
            weight: endpoint.weight,
            max_in_flight: endpoint.max_in_flight,
            in_flight: 0,
            served: 0,
            requests: endpoint.requests_per_minute.map(Pace::per_minute),
            tokens: endpoint.tokens_per_minute.map(Pace::per_minute),
            breaker: Breaker::default(),
            held_until_ms: 0,
            left_out: None,
        }
    }

    /// Nothing is sent before then.
    pub(crate) fn hold(&mut self, until_ms: u64) {
        self.held_until_ms = self.held_until_ms.max(until_ms);
    }

    /// Nothing is sent any more. Whether that is news.
    pub(crate) fn leave_out(&mut self, fault: &str) -> bool {
        let is_news = self.left_out.is_none();
        self.left_out.get_or_insert_with(|| fault.to_owned());
        is_news
    }

    pub(crate) fn why_left_out(&self) -> Option<&str> {
        self.left_out.as_deref()
    }

    /// When it can take a request of that many tokens; `None` where something must end first, or never.
    pub(crate) fn ready_at(&mut self, tokens: u64, now_ms: u64) -> Option<u64> {
        if self.left_out.is_some() || self.in_flight >= self.max_in_flight {
            return None;
        }
        let breaker = self.breaker.ready_at(now_ms)?;
        let requests = self.requests.as_mut().map_or(now_ms, |pace| pace.ready_at(1.0, now_ms));
        let tokens = self.tokens.as_mut().map_or(now_ms, |pace| pace.ready_at(tokens as f64, now_ms));
        Some(breaker.max(requests).max(tokens).max(self.held_until_ms))
    }

    /// How busy it would be with one request more, for its weight; then how much it has done.
    pub(crate) fn load(&self) -> (f64, f64) {
        ((self.in_flight + 1) as f64 / self.weight, (self.served + 1) as f64 / self.weight)
    }

    pub(crate) fn sent(&mut self, tokens: u64) {
        self.in_flight += 1;
        self.breaker.sent();
        self.requests.iter_mut().for_each(|pace| pace.take(1.0));
        self.tokens.iter_mut().for_each(|pace| pace.take(tokens as f64));
    }

    /// A request has ended, which took `tokens` in place of those that it was sent with.
    pub(crate) fn ended(&mut self, estimate: u64, tokens: u64) {
        self.in_flight -= 1;
        self.served += 1;
        self.tokens.iter_mut().for_each(|pace| pace.take(tokens as f64 - estimate as f64));
    }

    pub(crate) fn breaker(&mut self) -> &mut Breaker {
        &mut self.breaker
    }

    /// Probes that failed since it last answered.
    pub(crate) fn failed_probes(&self) -> u32 {
        self.breaker.failed_probes()
    }
}

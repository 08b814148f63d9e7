//! Leaves an endpoint alone that does nothing but fail.

/// Failures in a row after which an endpoint is left alone.
const FAILURES_MAX: u32 = 8;
/// First pause; each failed probe doubles it.
const PAUSE_MS: u64 = 1_000;
const PAUSE_MS_MAX: u64 = 60_000;

/// Open after [`FAILURES_MAX`] failures in a row; then one request at a time asks whether it is over.
#[derive(Clone, Debug, Default)]
pub(crate) struct Breaker {
    in_a_row: u32,
    failed_probes: u32,
    open_until_ms: Option<u64>,
    probing: bool,
}

impl Breaker {
    /// When a request may be sent; `None` while a probe is on its way.
    pub(crate) fn ready_at(&self, now_ms: u64) -> Option<u64> {
        match self.open_until_ms {
            None => Some(now_ms),
            Some(_) if self.probing => None,
            Some(until) => Some(until.max(now_ms)),
        }
    }

    pub(crate) fn sent(&mut self) {
        self.probing = self.open_until_ms.is_some();
    }

    /// It answered, whatever it said.
    pub(crate) fn answered(&mut self) {
        *self = Breaker::default();
    }

    /// It was not waited for: nothing is known but that a probe may be sent again.
    pub(crate) fn called_off(&mut self) {
        self.probing = false;
    }

    /// It failed, or said that it has no time for the next `wait_ms`.
    pub(crate) fn failed(&mut self, now_ms: u64, wait_ms: u64) {
        self.in_a_row += 1;
        if self.in_a_row < FAILURES_MAX {
            return;
        }
        // Those that were on their way when it opened say nothing new.
        let is_probe = std::mem::take(&mut self.probing);
        if is_probe {
            self.failed_probes += 1;
        }
        if is_probe || self.open_until_ms.is_none() {
            let pause = (PAUSE_MS << self.failed_probes.min(16)).min(PAUSE_MS_MAX);
            self.open_until_ms = Some(now_ms + pause.max(wait_ms));
        }
    }

    /// Probes that failed since it last answered.
    pub(crate) fn failed_probes(&self) -> u32 {
        self.failed_probes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_a_row_of_failures_and_probes_ever_more_seldom() {
        let mut breaker = Breaker::default();
        (0..FAILURES_MAX - 1).for_each(|_| breaker.failed(0, 0));
        assert_eq!(breaker.ready_at(5), Some(5));
        breaker.failed(10, 0);
        breaker.failed(11, 0);
        assert_eq!(breaker.ready_at(20), Some(1_010), "late failures do not prolong it");
        let mut now = 1_010;
        for pause in [2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000] {
            breaker.sent();
            assert_eq!(breaker.ready_at(now), None, "one probe at a time");
            breaker.failed(now, 0);
            assert_eq!(breaker.ready_at(now), Some(now + pause));
            now += pause;
        }
        assert_eq!(breaker.failed_probes(), 7);
        breaker.sent();
        breaker.failed(now, 90_000);
        assert_eq!(breaker.ready_at(now), Some(now + 90_000), "it is believed when it will be back");
        breaker.sent();
        breaker.answered();
        assert_eq!((breaker.ready_at(now), breaker.failed_probes()), (Some(now), 0));
    }

    #[test]
    fn failures_among_answers_do_not_open_it() {
        let mut breaker = Breaker::default();
        for i in 0..1000 {
            if i % FAILURES_MAX == 0 { breaker.answered() } else { breaker.failed(i.into(), 0) }
        }
        assert_eq!(breaker.ready_at(0), Some(0));
    }
}

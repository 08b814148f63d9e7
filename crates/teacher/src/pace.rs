//! An allowance per minute.

/// Part of a minute's allowance that may be used at once.
const BURST_SHARE: f64 = 1.0 / 60.0;

/// Fills at a steady rate up to its burst; may be overdrawn by what was not known beforehand.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    per_ms: f64,
    burst: f64,
    left: f64,
    at_ms: u64,
}

impl Pace {
    /// Full at time 0. One unit can always be had at once.
    pub(crate) fn per_minute(rate: f64) -> Pace {
        let burst = (rate * BURST_SHARE).max(1.0);
        Pace { per_ms: rate / 60_000.0, burst, left: burst, at_ms: 0 }
    }

    fn fill(&mut self, now_ms: u64) {
        let passed = now_ms.saturating_sub(self.at_ms) as f64;
        self.left = (self.left + passed * self.per_ms).min(self.burst);
        self.at_ms = self.at_ms.max(now_ms);
    }

    /// When `amount` can be taken: now, or at that time. What is larger than the burst waits for a full one.
    pub(crate) fn ready_at(&mut self, amount: f64, now_ms: u64) -> u64 {
        self.fill(now_ms);
        let missing = amount.min(self.burst) - self.left;
        if missing <= 0.0 { now_ms } else { now_ms + (missing / self.per_ms).ceil() as u64 }
    }

    /// Takes what [`Pace::ready_at`] allowed, or corrects it afterwards.
    pub(crate) fn take(&mut self, amount: f64) {
        self.left -= amount;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_minute_takes_more_than_its_allowance_and_one_burst() {
        let mut pace = Pace::per_minute(600.0);
        let (mut now, mut taken) = (0, Vec::new());
        while now < 300_000 {
            let at = pace.ready_at(1.0, now);
            if at == now {
                pace.take(1.0);
                taken.push(now);
            }
            now = at.max(now);
        }
        for start in (0..240_000).step_by(997) {
            let within = taken.iter().filter(|t| (start..start + 60_000).contains(*t)).count();
            assert!(within <= 610, "{within} from {start} ms");
        }
        assert!(taken.len() >= 2990, "{} in five minutes", taken.len());
    }

    #[test]
    fn an_overdraft_is_paid_back() {
        let mut pace = Pace::per_minute(60_000.0);
        pace.take(5_000.0);
        assert_eq!(pace.ready_at(1.0, 0), 4_001);
        assert_eq!(pace.ready_at(10_000.0, 0), 5_000, "more than a burst waits for a full one");
    }
}

//! Requests that have been on their way for long: each may be sent once more, to another endpoint, and the first reply counts.

use std::collections::{BTreeMap, BTreeSet};

use crate::schedule::Job;

/// What is on its way, in a schedule that hedges.
pub(crate) struct Hedges<T> {
    after_ms: u64,
    flights: BTreeMap<u64, Flight<T>>,
    /// When a request will have been on its way for so long, and its index; those alone that may be sent once more.
    due: BTreeSet<(u64, u64)>,
}

struct Flight<T> {
    job: Job<T>,
    /// Where it is being answered: one place, or two.
    endpoints: Vec<usize>,
    due_ms: u64,
    /// It has its reply.
    settled: bool,
    /// The latest time that an endpoint named which failed it.
    not_before_ms: u64,
}

/// How one of the calls for a request ended, as far as its others are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Landed {
    /// There is no other.
    Alone,
    /// Another is on its way.
    Accompanied,
    /// Another has brought the reply.
    Late,
}

impl<T: Clone> Hedges<T> {
    pub(crate) fn new(after_ms: u64) -> Hedges<T> {
        Hedges { after_ms, flights: BTreeMap::new(), due: BTreeSet::new() }
    }

    /// A request goes out, for the first time or after a fault.
    pub(crate) fn sent(&mut self, job: &Job<T>, endpoint: usize, now_ms: u64) {
        let due_ms = now_ms + self.after_ms;
        if !job.hedged {
            self.due.insert((due_ms, job.index));
        }
        let flight =
            Flight { job: job.clone(), endpoints: vec![endpoint], due_ms, settled: false, not_before_ms: 0 };
        self.flights.insert(job.index, flight);
    }

    /// Requests that are due to be sent once more, each with its allowance of tokens and where it is already.
    pub(crate) fn due(&self, now_ms: u64) -> Vec<(u64, u64, usize)> {
        let due = self.due.iter().take_while(|(at, _)| *at <= now_ms);
        due.map(|(_, index)| {
            let flight = &self.flights[index];
            (*index, flight.job.tokens, flight.endpoints[0])
        })
        .collect()
    }

    /// When the next one will be.
    pub(crate) fn next_due(&self, now_ms: u64) -> Option<u64> {
        self.due.range((now_ms + 1, 0)..).next().map(|(at, _)| *at)
    }

    /// What is sent to `endpoint` besides.
    pub(crate) fn hedge(&mut self, index: u64, endpoint: usize) -> Job<T> {
        let flight = self.flights.get_mut(&index).expect("what is due is on its way");
        self.due.remove(&(flight.due_ms, index));
        flight.job.hedged = true;
        flight.endpoints.push(endpoint);
        flight.job.clone()
    }

    /// A call for `job` has ended, with the reply or without; what another call for it has learned goes into `job`.
    pub(crate) fn landed(
        &mut self,
        job: &mut Job<T>,
        endpoint: usize,
        settles: bool,
        not_before_ms: u64,
    ) -> Landed {
        let flight = self.flights.get_mut(&job.index).expect("what lands was on its way");
        let place = flight.endpoints.iter().position(|other| *other == endpoint);
        flight.endpoints.swap_remove(place.expect("it was sent there"));
        flight.not_before_ms = flight.not_before_ms.max(not_before_ms);
        let (alone, late) = (flight.endpoints.is_empty(), flight.settled);
        flight.settled |= settles;
        (job.hedged, job.not_before_ms) = (flight.job.hedged, flight.not_before_ms);
        self.due.remove(&(flight.due_ms, job.index));
        if alone {
            self.flights.remove(&job.index);
        }
        match (late, alone) {
            (true, _) => Landed::Late,
            (false, true) => Landed::Alone,
            (false, false) => Landed::Accompanied,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stillroom_core::CounterRng;
    use stillroom_net::Address;

    use super::*;
    use crate::schedule::{Ended, Fate, How, Next, Schedule, Stop};
    use crate::settings::{Budget, Endpoint, Patience};

    fn schedule(slots: &[usize], budget: Budget) -> Schedule<u64> {
        let endpoint = |max_in_flight: &usize| Endpoint {
            base: Address::parse("http://127.0.0.1:1/v1").expect("an address"),
            key: None,
            send_key_unencrypted: false,
            weight: 1.0,
            max_in_flight: *max_in_flight,
            requests_per_minute: None,
            tokens_per_minute: None,
        };
        let endpoints: Vec<Endpoint> = slots.iter().map(endpoint).collect();
        let patience = Patience { hedge_after_s: Some(2.0), ..Patience::default() };
        Schedule::new(&endpoints, budget, &patience, 7, (0.0, 0))
    }

    fn send(schedule: &mut Schedule<u64>, now: u64) -> (Job<u64>, usize) {
        match schedule.next(now) {
            Next::Send { job, endpoint } => (job, endpoint),
            other => panic!("{other:?} at {now}"),
        }
    }

    fn ended(how: How) -> Ended {
        Ended { usd: 0.0, tokens: 10, how }
    }

    fn failed(wait_ms: Option<u64>) -> Ended {
        ended(How::Failed { fault: "x".into(), postponed: false, wait_ms })
    }

    #[test]
    fn what_is_long_on_its_way_is_sent_once_more_and_the_first_reply_counts() {
        let mut schedule = schedule(&[2, 2], Budget::default());
        schedule.push(0, 0, 1);
        let (first, at) = send(&mut schedule, 100);
        assert_eq!(schedule.next(101), Next::Wait(Some(2_100)));
        let (second, other) = send(&mut schedule, 2_100);
        assert!(other != at && second.index == 0 && second.attempt == first.attempt);
        assert_eq!(schedule.next(9_000), Next::Wait(None), "never a third one");
        let call_off = first.call_off.clone().expect("a way to give it up");
        assert_eq!(schedule.ended(second, other, &ended(How::Answered), 9_001), Fate::Settled);
        assert!(call_off.is_called_off());
        assert_eq!(schedule.ended(first, at, &ended(How::CalledOff), 9_050), Fate::Late);
        assert_eq!(schedule.next(9_051), Next::Wait(None));
    }

    #[test]
    fn a_second_reply_is_late_however_good_it_is() {
        let mut schedule = schedule(&[1, 1], Budget::default());
        schedule.push(0, 0, 1);
        let (first, at) = send(&mut schedule, 0);
        let (second, other) = send(&mut schedule, 2_000);
        assert_eq!(schedule.ended(first, at, &ended(How::Answered), 2_010), Fate::Settled);
        assert_eq!(schedule.ended(second, other, &ended(How::Answered), 2_011), Fate::Late);
    }

    #[test]
    fn one_that_fails_leaves_it_to_the_other_and_both_make_one_try() {
        let mut schedule = schedule(&[1, 1], Budget::default());
        schedule.push(0, 0, 1);
        let (first, at) = send(&mut schedule, 0);
        let (second, other) = send(&mut schedule, 2_000);
        assert_eq!(schedule.ended(first, at, &failed(Some(60_000)), 2_100), Fate::Elsewhere);
        assert_eq!(schedule.next(2_101), Next::Wait(None), "the other one decides");
        assert_eq!(schedule.ended(second, other, &failed(None), 2_200), Fate::Again);
        let Next::Wait(Some(due)) = schedule.next(2_300) else { panic!("it is not due") };
        assert!(due >= 62_100, "{due}: what either endpoint asked for holds");
        let (third, at) = send(&mut schedule, due);
        assert_eq!(third.attempt, 1);
        assert_eq!(schedule.next(due + 50_000), Next::Wait(None), "one hedge for a request, not for a try");
        assert_eq!(schedule.ended(third, at, &ended(How::Answered), due + 50_001), Fate::Settled);
    }

    #[test]
    fn what_waits_goes_first_and_a_full_endpoint_is_waited_for() {
        let mut schedule = schedule(&[1, 1], Budget::default());
        (0..3).for_each(|i| schedule.push(i, i, 1));
        let (slow, at) = send(&mut schedule, 0);
        let (quick, other) = send(&mut schedule, 0);
        assert_eq!(schedule.next(5_000), Next::Wait(None), "one waits, and both are full");
        schedule.ended(quick, other, &ended(How::Answered), 5_000);
        let (waited, other) = send(&mut schedule, 5_001);
        assert_eq!(waited.index, 2);
        assert_eq!(schedule.next(5_002), Next::Wait(Some(7_001)), "when the next one is due");
        schedule.ended(waited, other, &ended(How::Answered), 5_003);
        let (again, place) = send(&mut schedule, 5_004);
        assert_eq!((again.index, place), (slow.index, other));
        assert_ne!(place, at);
    }

    #[test]
    fn a_budget_that_is_used_up_sends_nothing_twice() {
        let mut schedule = schedule(&[2, 2], Budget { usd: Some(1.0), ..Budget::default() });
        (0..2).for_each(|i| schedule.push(i, i, 1));
        let (first, at) = send(&mut schedule, 0);
        let (_, _) = send(&mut schedule, 0);
        schedule.ended(first, at, &Ended { usd: 0.6, tokens: 10, how: How::Answered }, 10);
        assert_eq!(schedule.next(5_000), Next::Wait(None), "two more at that price would be too much");
        assert_eq!(schedule.stopped(), None, "what is on its way is waited for");

        let mut timed = self::schedule(&[1, 1], Budget { seconds: Some(1.0), ..Budget::default() });
        timed.push(0, 0, 1);
        send(&mut timed, 0);
        assert_eq!(timed.next(10), Next::Wait(Some(1_000)));
        assert_eq!(
            timed.next(1_000),
            Next::Wait(None),
            "there is no time any more, and none to look again at"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Whatever fails, lingers and comes twice: each request meets one fate, is nowhere twice at once, is hedged once at
        /// most, and no endpoint has more than it takes: so no more calls are open than there are places, if all is cut.
        #[test]
        fn every_request_meets_one_fate_and_no_endpoint_has_more_than_it_takes(
            seed in any::<u64>(),
            n in 1u64..40,
            slots in proptest::collection::vec(1usize..4, 2..4),
            fail_share in 0.0f64..0.5,
        ) {
            let mut schedule = schedule(&slots, Budget::default());
            (0..n).for_each(|i| schedule.push(i, i, 5));
            let mut chance = CounterRng::new(&[seed]);
            let mut flying: Vec<(u64, Job<u64>, usize)> = Vec::new();
            let (mut fates, mut hedges): (BTreeSet<u64>, BTreeSet<u64>) = Default::default();
            let mut not_before: BTreeMap<u64, u64> = BTreeMap::new();
            let mut now = 0u64;
            while (fates.len() as u64) < n || !flying.is_empty() {
                match schedule.next(now) {
                    Next::Send { job, endpoint } => {
                        let others: Vec<_> = flying.iter().filter(|(_, other, _)| other.index == job.index).collect();
                        prop_assert!(others.len() <= 1 && others.iter().all(|(.., place)| *place != endpoint));
                        if others.is_empty() {
                            prop_assert!(not_before.get(&job.index).is_none_or(|at| *at <= now));
                            prop_assert!(!fates.contains(&job.index));
                        } else {
                            prop_assert!(hedges.insert(job.index), "hedged twice");
                        }
                        flying.push((now + chance.below(8_000), job, endpoint));
                        let there = flying.iter().filter(|(.., place)| *place == endpoint).count();
                        prop_assert!(there <= slots[endpoint]);
                        continue;
                    }
                    Next::Stopped => {
                        let nobody = matches!(schedule.stopped(), Some(Stop::NobodyThere { .. }));
                        prop_assert!(nobody);
                        break;
                    }
                    Next::Wait(at) => {
                        let lands = flying.iter().map(|(t, ..)| *t).min();
                        let next = lands.into_iter().chain(at).min();
                        prop_assert!(next.is_some(), "nothing would ever happen again");
                        now = now.max(next.unwrap_or(now));
                    }
                }
                while let Some(i) = flying.iter().position(|(t, ..)| *t <= now) {
                    let (_, job, endpoint) = flying.swap_remove(i);
                    let (index, is_settled) = (job.index, fates.contains(&job.index));
                    let called_off = job.call_off.as_ref().is_some_and(|call_off| call_off.is_called_off());
                    let how = if called_off && chance.uniform() < 0.5 {
                        ended(How::CalledOff)
                    } else if chance.uniform() < fail_share {
                        let wait = chance.below(2_000);
                        let at = not_before.entry(index).or_default();
                        *at = (*at).max(now + wait);
                        failed(Some(wait))
                    } else {
                        ended(How::Answered)
                    };
                    let accompanied = flying.iter().any(|(_, other, _)| other.index == index);
                    match schedule.ended(job, endpoint, &how, now) {
                        Fate::Settled | Fate::GivenUp { .. } => prop_assert!(fates.insert(index)),
                        Fate::Late => prop_assert!(is_settled),
                        Fate::Elsewhere => prop_assert!(accompanied && !is_settled),
                        Fate::Again => prop_assert!(!accompanied && !is_settled),
                    }
                }
            }
        }
    }
}

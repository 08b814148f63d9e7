//! Which request goes where and when. Knows no clock, thread or socket: time comes in, decisions go out.
//!
//! Times are milliseconds since the session began.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use stillroom_core::CounterRng;
use stillroom_net::CallOff;

use crate::hedges::{Hedges, Landed};
use crate::line::Line;
use crate::settings::{Budget, Endpoint, Patience};

/// First wait before a request is tried again; doubles with each try, and half of it is left to chance.
const BACKOFF_MS: u64 = 250;
const BACKOFF_MS_MAX: u64 = 8_000;
/// How often a request may be told to come back later.
const POSTPONED_MAX: u32 = 200;
/// Failed probes of every endpoint after which nobody is there; fewer where nobody has ever answered.
const PROBES_MAX: u32 = 6;
const FIRST_PROBES_MAX: u32 = 2;
/// Requests that are refused as they stand, with none answered, after which it is the settings that are wrong.
const REFUSED_MAX: u64 = 5;
/// Names the draws of waits among others of the same seed.
const WAITS: u64 = 0x0077_6169_7473;

/// A request on its way through the schedule.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Job<T> {
    /// Its place in the order of requests.
    pub(crate) index: u64,
    pub(crate) what: T,
    /// Tries that failed.
    pub(crate) attempt: u32,
    postponed: u32,
    /// Estimate, for the allowance of tokens.
    pub(crate) tokens: u64,
    /// Whether it has been sent once more while it was on its way.
    pub(crate) hedged: bool,
    /// A time that some endpoint named for it.
    pub(crate) not_before_ms: u64,
    /// Ends its other calls as soon as one has brought the reply; only where there may be others.
    pub(crate) call_off: Option<CallOff>,
    /// The last fault.
    pub(crate) fault: Option<String>,
}

/// What to do now.
#[derive(Debug, PartialEq)]
pub(crate) enum Next<T> {
    Send {
        job: Job<T>,
        endpoint: usize,
    },
    /// Nothing before that time, unless something else ends or arrives.
    Wait(Option<u64>),
    /// No more will be sent.
    Stopped,
}

/// Why no more is sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Stop {
    /// The budget is used up.
    Budget(&'static str),
    /// No endpoint answers.
    NobodyThere { fault: String },
    /// What would fail for every request at every endpoint: the key, the address, the model's name.
    Hopeless { fault: String },
    /// The caller has had enough.
    Closed,
}

/// How a request that was sent ended, and what that may have taken.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ended {
    pub(crate) usd: f64,
    pub(crate) tokens: u64,
    pub(crate) how: How,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum How {
    Answered,
    /// It may be tried again, by the count of attempts or without it.
    Failed {
        fault: String,
        postponed: bool,
        wait_ms: Option<u64>,
    },
    /// This request is refused as it stands.
    Refused {
        fault: String,
    },
    /// The endpoint would refuse every request.
    Hopeless {
        fault: String,
    },
    /// Another call has brought the reply, and this one was given up for it.
    CalledOff,
}

/// What becomes of the request.
#[derive(Debug, PartialEq)]
pub(crate) enum Fate {
    Settled,
    Again,
    /// Another call for it is on its way, and decides.
    Elsewhere,
    /// Another call for it has brought the reply.
    Late,
    /// Too many tries.
    GivenUp {
        fault: String,
    },
}

/// Requests that wait, and the endpoints that they wait for.
pub(crate) struct Schedule<T> {
    ready: VecDeque<Job<T>>,
    delayed: BTreeMap<u64, Job<T>>,
    due: BinaryHeap<Reverse<(u64, u64)>>,
    lines: Vec<Line>,
    hedges: Option<Hedges<T>>,
    budget: Budget,
    max_attempts: u32,
    seed: u64,
    in_flight: usize,
    spent_usd: f64,
    spent_tokens: u64,
    /// What was spent before this session.
    before: (f64, u64),
    settled: u64,
    answered: u64,
    refused: u64,
    stop: Option<Stop>,
    left_out: Vec<(usize, String)>,
}

impl<T: Clone> Schedule<T> {
    /// `spent_usd` and `spent_tokens` were spent before this session.
    pub(crate) fn new(
        endpoints: &[Endpoint],
        budget: Budget,
        patience: &Patience,
        seed: u64,
        (spent_usd, spent_tokens): (f64, u64),
    ) -> Schedule<T> {
        Schedule {
            ready: VecDeque::new(),
            delayed: BTreeMap::new(),
            due: BinaryHeap::new(),
            lines: endpoints.iter().map(Line::new).collect(),
            hedges: patience.hedge_after_s.map(|s| Hedges::new((s * 1000.0) as u64)),
            budget,
            max_attempts: patience.max_attempts,
            seed,
            in_flight: 0,
            spent_usd,
            spent_tokens,
            before: (spent_usd, spent_tokens),
            settled: 0,
            answered: 0,
            refused: 0,
            stop: None,
            left_out: Vec::new(),
        }
    }

    /// Nothing is sent to that endpoint before then.
    pub(crate) fn hold(&mut self, endpoint: usize, until_ms: u64) {
        self.lines[endpoint].hold(until_ms);
    }

    /// A new request; `tokens` is what it may take of an allowance.
    pub(crate) fn push(&mut self, index: u64, what: T, tokens: u64) {
        let call_off = self.hedges.is_some().then(CallOff::default);
        self.ready.push_back(Job {
            index,
            what,
            attempt: 0,
            postponed: 0,
            tokens,
            hedged: false,
            not_before_ms: 0,
            call_off,
            fault: None,
        });
    }

    /// Requests that could be sent if there were room.
    pub(crate) fn n_ready(&self) -> usize {
        self.ready.len()
    }

    pub(crate) fn stop(&mut self, why: Stop) {
        self.stop.get_or_insert(why);
    }

    pub(crate) fn stopped(&self) -> Option<&Stop> {
        self.stop.as_ref()
    }

    pub(crate) fn next(&mut self, now_ms: u64) -> Next<T> {
        self.release_due(now_ms);
        let is_wanted = !self.ready.is_empty() || !self.delayed.is_empty();
        if self.stop.is_none() && is_wanted {
            self.check_budget(now_ms);
        }
        if self.stop.is_some() {
            return Next::Stopped;
        }
        let Some(tokens) = self.ready.front().map(|job| job.tokens) else { return self.hedge(now_ms) };
        if self.in_flight > 0 && self.would_exceed_budget() {
            return Next::Wait(None);
        }
        match self.choose(tokens, None, now_ms) {
            Err(at) => Next::Wait(at.map(|at| self.in_time(at))),
            Ok(endpoint) => {
                let job = self.ready.pop_front().expect("there is one, see above");
                self.hedges.iter_mut().for_each(|hedges| hedges.sent(&job, endpoint, now_ms));
                self.send(job, endpoint)
            }
        }
    }

    fn send(&mut self, job: Job<T>, endpoint: usize) -> Next<T> {
        self.lines[endpoint].sent(job.tokens);
        self.in_flight += 1;
        Next::Send { job, endpoint }
    }

    /// Nothing waits to be sent: what has been on its way for long is sent once more, where there is room that nobody else
    /// wants.
    fn hedge(&mut self, now_ms: u64) -> Next<T> {
        let mut next = self.due.peek().map(|Reverse((at, _))| *at);
        let mut sooner = |at: u64| next = Some(next.map_or(at, |next| next.min(at)));
        let affordable = self.over_budget(now_ms).is_none() && !self.would_exceed_budget();
        if let Some(mut hedges) = self.hedges.take_if(|_| affordable) {
            let mut found = None;
            for (index, tokens, at) in hedges.due(now_ms) {
                match self.choose(tokens, Some(at), now_ms) {
                    Ok(endpoint) => {
                        found = Some((hedges.hedge(index, endpoint), endpoint));
                        break;
                    }
                    Err(at) => at.into_iter().for_each(&mut sooner),
                }
            }
            hedges.next_due(now_ms).into_iter().for_each(&mut sooner);
            self.hedges = Some(hedges);
            if let Some((job, endpoint)) = found {
                return self.send(job, endpoint);
            }
        }
        Next::Wait(next.map(|at| self.in_time(at)))
    }

    fn release_due(&mut self, now_ms: u64) {
        while let Some(&Reverse((at, index))) = self.due.peek()
            && at <= now_ms
        {
            self.due.pop();
            let job = self.delayed.remove(&index).expect("whatever is due is delayed");
            self.ready.push_front(job);
        }
    }

    fn check_budget(&mut self, now_ms: u64) {
        if let Some(what) = self.over_budget(now_ms) {
            self.stop(Stop::Budget(what));
        }
    }

    fn over_budget(&self, now_ms: u64) -> Option<&'static str> {
        let Budget { usd, tokens, seconds } = self.budget;
        let over = [
            (usd.is_some_and(|limit| self.spent_usd >= limit), "money"),
            (tokens.is_some_and(|limit| self.spent_tokens >= limit), "tokens"),
            (seconds.is_some_and(|limit| now_ms as f64 >= limit * 1000.0), "time"),
        ];
        over.iter().find(|(is, _)| *is).map(|(_, what)| *what)
    }

    /// That time, or the end of the budget's time if it comes before.
    fn in_time(&self, at_ms: u64) -> u64 {
        self.budget.seconds.map_or(at_ms, |limit| at_ms.min((limit * 1000.0).ceil() as u64))
    }

    /// Whether what is in flight will by its average use up what is left, so that it is better waited for.
    fn would_exceed_budget(&self) -> bool {
        let ended = self.settled.max(1) as f64;
        let more = (self.in_flight + 1) as f64;
        let exceeds = |limit: Option<f64>, spent: f64, before: f64| {
            limit.is_some_and(|limit| spent + more * (spent - before) / ended > limit)
        };
        exceeds(self.budget.usd, self.spent_usd, self.before.0)
            || exceeds(self.budget.tokens.map(|n| n as f64), self.spent_tokens as f64, self.before.1 as f64)
    }

    /// The endpoint with the most room for its weight, `but` not that one; or when one may have room.
    fn choose(&mut self, tokens: u64, but: Option<usize>, now_ms: u64) -> Result<usize, Option<u64>> {
        let mut best: Option<(f64, f64, usize)> = None;
        let mut soonest: Option<u64> = None;
        for (i, line) in self.lines.iter_mut().enumerate().filter(|(i, _)| Some(*i) != but) {
            let Some(at) = line.ready_at(tokens, now_ms) else { continue };
            if at > now_ms {
                soonest = Some(soonest.map_or(at, |s| s.min(at)));
                continue;
            }
            let (load, served) = line.load();
            if best.is_none_or(|(l, s, _)| (load, served) < (l, s)) {
                best = Some((load, served, i));
            }
        }
        best.map(|(_, _, i)| i).ok_or(soonest)
    }

    /// Takes note of how a call ended, and keeps its request where it is to be tried again.
    pub(crate) fn ended(&mut self, mut job: Job<T>, endpoint: usize, ended: &Ended, now_ms: u64) -> Fate {
        self.account(&job, endpoint, ended, now_ms);
        let settles = ended.how == How::Answered;
        let not_before_ms = match ended.how {
            How::Failed { wait_ms: Some(wait), .. } => now_ms + wait,
            _ => 0,
        };
        let landed = self
            .hedges
            .as_mut()
            .map_or(Landed::Alone, |hedges| hedges.landed(&mut job, endpoint, settles, not_before_ms));
        match landed {
            Landed::Late => return Fate::Late,
            Landed::Accompanied if !settles => return Fate::Elsewhere,
            Landed::Accompanied => job.call_off.iter().for_each(CallOff::call_off),
            Landed::Alone => {}
        }
        match &ended.how {
            How::Answered | How::Refused { .. } => Fate::Settled,
            // Only where another call has brought the reply.
            How::CalledOff => Fate::Late,
            How::Hopeless { .. } => {
                self.ready.push_front(job);
                Fate::Again
            }
            How::Failed { fault, postponed, wait_ms } => {
                job.fault = Some(fault.clone());
                if *postponed {
                    job.postponed += 1
                } else {
                    job.attempt += 1
                }
                if job.attempt >= self.max_attempts || job.postponed > POSTPONED_MAX {
                    return Fate::GivenUp { fault: fault.clone() };
                }
                self.delay(job, *wait_ms, now_ms);
                Fate::Again
            }
        }
    }

    /// What the end of a call says of its endpoint, and what it has cost.
    fn account(&mut self, job: &Job<T>, endpoint: usize, ended: &Ended, now_ms: u64) {
        self.in_flight -= 1;
        let line = &mut self.lines[endpoint];
        line.ended(job.tokens, ended.tokens);
        match &ended.how {
            How::Failed { wait_ms, .. } => line.breaker().failed(now_ms, wait_ms.unwrap_or(0)),
            How::CalledOff => line.breaker().called_off(),
            How::Answered | How::Refused { .. } | How::Hopeless { .. } => line.breaker().answered(),
        }
        // What costs no money may still be of an allowance of tokens.
        let has_settled = matches!(ended.how, How::Answered | How::Refused { .. });
        if has_settled || ended.usd > 0.0 || ended.tokens > 0 {
            self.spend(ended.usd, ended.tokens);
        }
        match &ended.how {
            How::Answered => self.answered += 1,
            How::Refused { fault } => {
                self.refused += 1;
                if self.answered == 0 && self.refused >= REFUSED_MAX {
                    self.stop(Stop::Hopeless { fault: fault.clone() });
                }
            }
            How::Hopeless { fault } => self.leave_out(endpoint, fault),
            How::Failed { fault, .. } => self.check_outage(fault),
            How::CalledOff => {}
        }
    }

    fn spend(&mut self, usd: f64, tokens: u64) {
        self.spent_usd += usd;
        self.spent_tokens += tokens;
        self.settled += 1;
    }

    /// The others go on, if there are any.
    fn leave_out(&mut self, endpoint: usize, fault: &str) {
        let is_news = self.lines[endpoint].leave_out(fault);
        let faults: Option<Vec<&str>> = self.lines.iter().map(Line::why_left_out).collect();
        match faults {
            Some(mut faults) => {
                faults.dedup();
                let fault = faults.join("; ");
                self.stop(Stop::Hopeless { fault });
            }
            None if is_news => self.left_out.push((endpoint, fault.to_owned())),
            None => {}
        }
    }

    /// Endpoints that were left out since this was asked last, while others go on; with the reason.
    pub(crate) fn take_left_out(&mut self) -> Vec<(usize, String)> {
        std::mem::take(&mut self.left_out)
    }

    fn check_outage(&mut self, fault: &str) {
        let probes_max = if self.answered == 0 { FIRST_PROBES_MAX } else { PROBES_MAX };
        let is_gone = |line: &Line| line.why_left_out().is_some() || line.failed_probes() >= probes_max;
        if self.lines.iter().all(is_gone) {
            self.stop(Stop::NobodyThere { fault: fault.to_owned() });
        }
    }

    /// When the server says, or else by exponential backoff; with jitter, so that those that were sent away together do
    /// not come back together.
    fn delay(&mut self, job: Job<T>, wait_ms: Option<u64>, now_ms: u64) {
        let tries = job.attempt + job.postponed;
        let mut chance = CounterRng::new(&[WAITS, self.seed, job.index, tries.into()]);
        let wait = match wait_ms {
            Some(asked) => asked + 1 + chance.below(asked / 10 + 50),
            None => {
                let backoff = (BACKOFF_MS << (tries.saturating_sub(1)).min(16)).min(BACKOFF_MS_MAX);
                backoff / 2 + chance.below(backoff / 2 + 1)
            }
        };
        let at = (now_ms + wait).max(job.not_before_ms);
        self.due.push(Reverse((at, job.index)));
        self.delayed.insert(job.index, job);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use stillroom_net::Address;

    use super::*;

    fn endpoint(weight: f64, max_in_flight: usize) -> Endpoint {
        Endpoint {
            base: Address::parse("http://127.0.0.1:1/v1").unwrap(),
            key: None,
            send_key_unencrypted: false,
            weight,
            max_in_flight,
            requests_per_minute: None,
            tokens_per_minute: None,
        }
    }

    fn schedule(endpoints: &[Endpoint], budget: Budget) -> Schedule<u64> {
        Schedule::new(endpoints, budget, &Patience::default(), 7, (0.0, 0))
    }

    fn answered(usd: f64) -> Ended {
        Ended { usd, tokens: 10, how: How::Answered }
    }

    fn failed(postponed: bool, wait_ms: Option<u64>) -> Ended {
        Ended { usd: 0.0, tokens: 0, how: How::Failed { fault: "x".into(), postponed, wait_ms } }
    }

    fn send(schedule: &mut Schedule<u64>, now: u64) -> (Job<u64>, usize) {
        match schedule.next(now) {
            Next::Send { job, endpoint } => (job, endpoint),
            other => panic!("{other:?} at {now}"),
        }
    }

    #[test]
    fn requests_are_shared_by_weight_and_never_above_what_an_endpoint_takes() {
        let mut schedule = schedule(&[endpoint(3.0, 8), endpoint(1.0, 8)], Budget::default());
        (0..400).for_each(|i| schedule.push(i, i, 10));
        let mut served = [0, 0];
        let mut flying: VecDeque<(Job<u64>, usize)> = VecDeque::new();
        for now in 0..400 {
            let (job, at) = send(&mut schedule, now);
            served[at] += 1;
            flying.push_back((job, at));
            assert!([0, 1].iter().all(|at| flying.iter().filter(|(_, own)| own == at).count() <= 8));
            if flying.len() == 8 {
                let (job, at) = flying.pop_front().unwrap();
                assert_eq!(schedule.ended(job, at, &answered(0.0), now), Fate::Settled);
            }
        }
        assert!((280..=320).contains(&served[0]), "{served:?}");
    }

    #[test]
    fn a_retry_waits_as_long_as_the_server_asks() {
        let mut schedule = schedule(&[endpoint(1.0, 4)], Budget::default());
        schedule.push(0, 0, 1);
        let (job, at) = send(&mut schedule, 100);
        assert_eq!(schedule.ended(job, at, &failed(true, Some(5_000)), 130), Fate::Again);
        let Next::Wait(Some(due)) = schedule.next(140) else { panic!("it is not due") };
        assert!((5_131..=5_800).contains(&due), "{due}");
        let (job, _) = send(&mut schedule, due);
        assert_eq!((job.attempt, job.postponed), (0, 1), "being told to come back is no try");
    }

    #[test]
    fn tries_end_and_the_last_fault_is_told() {
        let mut schedule = schedule(&[endpoint(1.0, 4)], Budget::default());
        schedule.push(0, 0, 1);
        schedule.push(1, 1, 1);
        let (mut now, mut tries) = (0, 0);
        loop {
            match schedule.next(now) {
                Next::Send { job, endpoint } if job.index == 1 => {
                    schedule.ended(job, endpoint, &answered(0.0), now);
                }
                Next::Send { job, endpoint } => {
                    tries += 1;
                    if let Fate::GivenUp { fault } = schedule.ended(job, endpoint, &failed(false, None), now)
                    {
                        assert_eq!(fault, "x");
                        break;
                    }
                }
                Next::Wait(Some(at)) => now = at,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(tries, 8);
    }

    #[test]
    fn a_budget_stops_what_was_not_sent() {
        let mut schedule = schedule(&[endpoint(1.0, 4)], Budget { usd: Some(1.0), ..Budget::default() });
        (0..100).for_each(|i| schedule.push(i, i, 1));
        let mut now = 0;
        let mut flying: VecDeque<(Job<u64>, usize)> = VecDeque::new();
        loop {
            now += 1;
            match schedule.next(now) {
                Next::Send { job, endpoint } => flying.push_back((job, endpoint)),
                Next::Wait(_) => {
                    let (job, at) = flying.pop_front().unwrap();
                    schedule.ended(job, at, &answered(0.3), now);
                }
                Next::Stopped => break,
            }
        }
        assert_eq!(schedule.stopped(), Some(&Stop::Budget("money")));
        assert!(flying.is_empty() && schedule.spent_usd < 1.0 + 4.0 * 0.3, "{}", schedule.spent_usd);
        assert!(schedule.spent_usd >= 1.0);
    }

    #[test]
    fn a_time_limit_and_a_limit_of_tokens_stop_too() {
        let mut timed = schedule(&[endpoint(1.0, 1)], Budget { seconds: Some(2.0), ..Budget::default() });
        timed.push(0, 0, 1);
        assert_eq!(timed.next(2_000), Next::Stopped);
        let mut counted = schedule(&[endpoint(1.0, 1)], Budget { tokens: Some(10), ..Budget::default() });
        (0..2).for_each(|i| counted.push(i, i, 1));
        let (job, at) = send(&mut counted, 0);
        counted.ended(job, at, &answered(0.0), 1);
        assert_eq!(counted.next(2), Next::Stopped);
        assert_eq!(counted.stopped(), Some(&Stop::Budget("tokens")));
    }

    #[test]
    fn where_nobody_is_it_ends_soon_and_one_that_answers_is_enough() {
        let mut schedule = schedule(&[endpoint(1.0, 4)], Budget::default());
        (0..50).for_each(|i| schedule.push(i, i, 1));
        let mut now = 0;
        loop {
            match schedule.next(now) {
                Next::Send { job, endpoint } => {
                    schedule.ended(job, endpoint, &failed(false, None), now);
                }
                Next::Wait(Some(at)) => now = at,
                Next::Stopped => break,
                Next::Wait(None) => panic!("nothing to wait for"),
            }
        }
        assert!(matches!(schedule.stopped(), Some(Stop::NobodyThere { .. })));
        assert!(now < 10_000, "{now} ms");

        let mut schedule = super::tests::schedule(&[endpoint(1.0, 4), endpoint(1.0, 4)], Budget::default());
        (0..200).for_each(|i| schedule.push(i, i, 1));
        let (mut now, mut done) = (0, 0);
        while done < 200 {
            match schedule.next(now) {
                Next::Send { job, endpoint: 0 } => {
                    assert_eq!(schedule.ended(job, 0, &failed(false, None), now), Fate::Again);
                }
                Next::Send { job, endpoint } => {
                    schedule.ended(job, endpoint, &answered(0.0), now);
                    done += 1;
                }
                Next::Wait(Some(at)) => now = at,
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_no_request_can_pass_stops_all() {
        let mut schedule = schedule(&[endpoint(1.0, 9)], Budget::default());
        (0..9).for_each(|i| schedule.push(i, i, 1));
        let how = How::Refused { fault: "no such model".into() };
        let refused = Ended { usd: 0.0, tokens: 0, how };
        for _ in 0..REFUSED_MAX {
            assert!(schedule.stopped().is_none());
            let (job, at) = send(&mut schedule, 0);
            schedule.ended(job, at, &refused, 0);
        }
        assert_eq!(schedule.next(0), Next::Stopped);
        assert!(matches!(schedule.stopped(), Some(Stop::Hopeless { .. })));
    }

    #[test]
    fn an_endpoint_that_would_refuse_all_is_left_out_and_the_last_one_stops_all() {
        let mut schedule = schedule(&[endpoint(1.0, 2), endpoint(1.0, 2)], Budget::default());
        (0..20).for_each(|i| schedule.push(i, i, 1));
        let no_key = |fault: &str| Ended { usd: 0.0, tokens: 0, how: How::Hopeless { fault: fault.into() } };
        let flying: Vec<_> = (0..4).map(|_| send(&mut schedule, 0)).collect();
        for (job, at) in flying {
            let ended = if at == 0 { no_key("401 here") } else { answered(0.0) };
            let fate = schedule.ended(job, at, &ended, 1);
            assert_eq!(fate, if at == 0 { Fate::Again } else { Fate::Settled });
        }
        assert_eq!(schedule.take_left_out(), [(0, "401 here".to_owned())], "it is news once");
        assert_eq!(schedule.take_left_out(), []);
        let mut asked = BTreeSet::new();
        for now in 2..10 {
            let (job, at) = send(&mut schedule, now);
            assert_eq!((at, job.attempt), (1, 0), "what was refused there is no try of the request");
            asked.insert(job.index);
            schedule.ended(job, at, &answered(0.0), now);
        }
        assert!(asked.contains(&0) && asked.contains(&2), "{asked:?}: they go to the other one");
        let (job, at) = send(&mut schedule, 10);
        assert_eq!(schedule.ended(job, at, &no_key("403 there"), 11), Fate::Again);
        assert_eq!(schedule.next(12), Next::Stopped);
        let fault = "401 here; 403 there".to_owned();
        assert_eq!(schedule.stopped(), Some(&Stop::Hopeless { fault }));
        assert_eq!(schedule.take_left_out(), [], "the end says so itself");
    }

    #[test]
    fn where_the_others_are_gone_an_outage_is_an_outage() {
        let mut schedule = schedule(&[endpoint(1.0, 4), endpoint(1.0, 4)], Budget::default());
        (0..50).for_each(|i| schedule.push(i, i, 1));
        let hopeless = Ended { usd: 0.0, tokens: 0, how: How::Hopeless { fault: "401".into() } };
        let mut now = 0;
        loop {
            match schedule.next(now) {
                Next::Send { job, endpoint: 0 } => {
                    schedule.ended(job, 0, &hopeless, now);
                }
                Next::Send { job, endpoint } => {
                    schedule.ended(job, endpoint, &failed(false, None), now);
                }
                Next::Wait(Some(at)) => now = at,
                Next::Stopped => break,
                Next::Wait(None) => panic!("nothing to wait for"),
            }
        }
        assert_eq!(schedule.stopped(), Some(&Stop::NobodyThere { fault: "x".into() }));
    }

    #[test]
    fn a_time_limit_does_not_wait_for_what_is_due_later() {
        let mut schedule = schedule(&[endpoint(1.0, 1)], Budget { seconds: Some(2.0), ..Budget::default() });
        schedule.push(0, 0, 1);
        let (job, at) = send(&mut schedule, 0);
        schedule.ended(job, at, &failed(true, Some(3_600_000)), 10);
        assert_eq!(schedule.next(20), Next::Wait(Some(2_000)));
        assert_eq!(schedule.next(2_000), Next::Stopped);
        assert_eq!(schedule.stopped(), Some(&Stop::Budget("time")));
    }

    #[test]
    fn an_endpoint_that_is_held_gets_nothing_before_its_time() {
        let mut schedule = schedule(&[endpoint(1.0, 4), endpoint(1.0, 1)], Budget::default());
        schedule.hold(0, 5_000);
        (0..6).for_each(|i| schedule.push(i, i, 1));
        let (job, at) = send(&mut schedule, 0);
        assert_eq!(at, 1);
        assert_eq!(schedule.next(10), Next::Wait(Some(5_000)), "the other one is full");
        schedule.ended(job, at, &answered(0.0), 20);
        assert_eq!(send(&mut schedule, 4_998).1, 1);
        assert_eq!(schedule.next(4_999), Next::Wait(Some(5_000)));
        assert_eq!(send(&mut schedule, 5_000).1, 0);
    }

    #[test]
    fn an_allowance_of_requests_is_kept() {
        let limited = Endpoint { requests_per_minute: Some(120.0), ..endpoint(1.0, 100) };
        let mut schedule = schedule(&[limited], Budget::default());
        (0..100).for_each(|i| schedule.push(i, i, 1));
        let (mut now, mut sent) = (0, Vec::new());
        while sent.len() < 100 {
            match schedule.next(now) {
                Next::Send { job, endpoint } => {
                    sent.push(now);
                    schedule.ended(job, endpoint, &answered(0.0), now);
                }
                Next::Wait(Some(at)) => now = at,
                other => panic!("{other:?}"),
            }
        }
        assert!((48_000..=50_000).contains(sent.last().unwrap()), "{:?}", sent.last());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Whatever fails and however long it takes: each request is settled or given up once, never while it is
        /// in flight, and never tried again before its time.
        #[test]
        fn every_request_meets_one_fate(
            seed in any::<u64>(),
            n in 1u64..60,
            slots in 1usize..9,
            fail_share in 0.0f64..0.6,
            postponed_share in 0.0f64..1.0,
        ) {
            let mut schedule = schedule(&[endpoint(2.0, slots), endpoint(1.0, slots)], Budget::default());
            (0..n).for_each(|i| schedule.push(i, i, 5));
            let mut chance = CounterRng::new(&[seed]);
            let mut flying: Vec<(u64, Job<u64>, usize)> = Vec::new();
            let mut not_before: BTreeMap<u64, u64> = BTreeMap::new();
            let (mut fates, mut now) = (BTreeSet::new(), 0u64);
            while (fates.len() as u64) < n {
                match schedule.next(now) {
                    Next::Send { job, endpoint } => {
                        prop_assert!(flying.iter().all(|(_, other, _)| other.index != job.index));
                        prop_assert!(not_before.get(&job.index).is_none_or(|at| *at <= now));
                        flying.push((now + chance.below(3_000), job, endpoint));
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
                        now = now.max(next.unwrap());
                    }
                }
                while let Some(i) = flying.iter().position(|(t, ..)| *t <= now) {
                    let (_, job, endpoint) = flying.swap_remove(i);
                    let index = job.index;
                    let ended = if chance.uniform() < fail_share {
                        let wait = chance.below(2_000);
                        not_before.insert(index, now + wait);
                        failed(chance.uniform() < postponed_share, Some(wait))
                    } else {
                        answered(0.0)
                    };
                    if schedule.ended(job, endpoint, &ended, now) != Fate::Again {
                        prop_assert!(fates.insert(index));
                    }
                }
            }
        }
    }
}

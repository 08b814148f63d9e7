//! A session: threads that send what the schedule gives them, and the ledger between them and every reply.
//!
//! The caller's thread reads what is to be asked and takes the answers in the same order; threads of the session's own
//! send. A call's row is durable before it is sent. Its receipt is durable, in one commit with the next call's row,
//! before anybody sees the answer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use stillroom_core::{Cleared, Digest};
use stillroom_formats::openai::Reply;
use stillroom_net::{Client, ClientOptions};
use stillroom_store::{Call, EndedCall, Entry, Ledger, Outcome, Scribe, Totals};

use crate::TeacherError;
use crate::ask::{Answer, Ask, Receipt};
use crate::call::{self, Fault, FaultKind};
use crate::estimate::Estimator;
use crate::outcome::{self, unix_ms};
use crate::schedule::{Ended, Fate, How, Job, Next, Schedule, Stop};
use crate::scores;
use crate::settings::{Budget, Endpoint, Patience, Price, Sampling};
use crate::window::{Arrived, Window};

/// Threads of one session.
pub const IN_FLIGHT_MAX: usize = 1024;
/// How long an endpoint is left alone at most for what it told an earlier session, perhaps one request alone of it.
const HELD_MS_MAX: u64 = 10 * 60_000;
/// How long a thread waits at most before it looks again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Who is asked, and how.
#[derive(Clone, Debug)]
pub struct Teacher {
    /// As the licence gate saw it; sent as `model` unless `served_as` says otherwise.
    pub model: String,
    pub served_as: Option<String>,
    pub endpoints: Vec<Endpoint>,
    pub sampling: Sampling,
    pub price: Price,
    pub budget: Budget,
    pub patience: Patience,
    pub stream: bool,
    /// Of waits and of nothing else.
    pub seed: u64,
    /// The stage that the calls are counted under.
    pub stage: &'static str,
}

/// How a session ended, where no error ended it.
#[derive(Clone, Debug, PartialEq)]
pub enum Finished {
    /// Everything was answered, refused or given up.
    All,
    /// It stopped before.
    Stopped(Stop),
}

/// What the caller hears while a session runs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    /// Answers handed over, those from the ledger included.
    pub answers: u64,
    /// Answers that were in the ledger.
    pub kept: u64,
    pub calls: u64,
    pub failed_calls: u64,
    pub usd: f64,
}

/// An endpoint that refuses what it would refuse to every request, and is asked no more; others are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Which of the teacher's endpoints it is.
    #[serde(skip)]
    pub index: usize,
    /// Its address.
    pub endpoint: String,
    pub fault: String,
}

/// Something that happens while a session runs.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A call is in the ledger with its end.
    Ended(Box<EndedCall>),
    LeftOut(LeftOut),
}

enum News {
    Ended(Box<Ending>),
    LeftOut(LeftOut),
    Broken(TeacherError),
}

struct Shared<'a> {
    teacher: &'a Teacher,
    client: &'a Client,
    scribe: Scribe,
    schedule: Mutex<Schedule<Arc<Asked>>>,
    wake: Condvar,
    estimator: Mutex<Estimator>,
    started: Instant,
    next_call: AtomicU64,
    calls: AtomicU64,
    failed_calls: AtomicU64,
}

/// What is asked, with what names it in the ledger.
pub(crate) struct Asked {
    pub(crate) ask: Ask,
    pub(crate) request: Digest,
}

/// A call that has ended, with its answer where it brought one.
struct Ending {
    call: EndedCall,
    answer: Option<Arrived>,
}

/// A call that has ended and is not yet in the ledger.
struct Unwritten {
    entry: Entry,
    ending: Box<Ending>,
}

impl Teacher {
    /// Asks everything, and hands over the answers in the order of `asks`.
    ///
    /// `Cleared` is the gate's leave; it has to cover every endpoint. What `deliver` gets is durable in the ledger.
    /// When a budget stops the session, what came before is delivered, and what was bought beyond stays in the ledger.
    /// `heard` is told what happens meanwhile, as it happens: of calls in the order in which they came into the ledger,
    /// but not of those whose answer nobody waits for any more when the last one has come.
    pub fn answer_all<E: From<TeacherError>>(
        &self,
        cleared: Cleared,
        ledger: &Ledger,
        asks: &mut dyn Iterator<Item = Result<Ask, E>>,
        deliver: &mut dyn FnMut(Ask, Answer, Counts) -> Result<(), E>,
        heard: &mut dyn FnMut(Event) -> Result<(), E>,
    ) -> Result<Finished, E> {
        self.answer_all_by(&self.client(cleared), ledger, asks, deliver, heard)
    }

    /// What speaks to the endpoints in one session after another, over connections that stay open between them.
    pub fn client(&self, cleared: Cleared) -> Client {
        Client::new(cleared, self.client_options(self.n_threads()))
    }

    /// [`Teacher::answer_all`] by a client that [`Teacher::client`] made. The ledger has been opened since the last
    /// session: it knows the numbers of its calls then.
    pub fn answer_all_by<E: From<TeacherError>>(
        &self,
        client: &Client,
        ledger: &Ledger,
        asks: &mut dyn Iterator<Item = Result<Ask, E>>,
        deliver: &mut dyn FnMut(Ask, Answer, Counts) -> Result<(), E>,
        heard: &mut dyn FnMut(Event) -> Result<(), E>,
    ) -> Result<Finished, E> {
        // Who sets no limit need not go through all calls, which a student's teacher has done by the million.
        let limited = self.budget.usd.is_some() || self.budget.tokens.is_some();
        let totals =
            if limited { ledger.totals(None).map_err(TeacherError::from)? } else { Totals::default() };
        let spent = (totals.usd, totals.prompt_tokens + totals.completion_tokens);
        let n_threads = self.n_threads();
        let mut schedule = Schedule::new(&self.endpoints, self.budget, &self.patience, self.seed, spent);
        for (endpoint, ms) in self.held(ledger)? {
            schedule.hold(endpoint, ms);
        }
        let shared = Shared {
            teacher: self,
            client,
            scribe: ledger.scribe(),
            schedule: Mutex::new(schedule),
            wake: Condvar::new(),
            estimator: Mutex::new(Estimator::new(self.sampling.max_tokens as u64)),
            started: Instant::now(),
            next_call: AtomicU64::new(ledger.next_call()),
            calls: AtomicU64::new(0),
            failed_calls: AtomicU64::new(0),
        };
        let (sender, news) = mpsc::channel();
        thread::scope(|scope| {
            for _ in 0..n_threads {
                let (shared, sender) = (&shared, sender.clone());
                let worker = thread::Builder::new().name("teacher".into()).stack_size(512 << 10);
                let spawned = worker.spawn_scoped(scope, move || shared.work(&sender));
                if let Err(error) = spawned {
                    shared.close();
                    return Err(TeacherError::Thread(error).into());
                }
            }
            drop(sender);
            let outcome =
                Desk { shared: &shared, ledger, counts: Counts::default() }.run(asks, deliver, heard, &news);
            shared.close();
            outcome
        })
    }

    pub(crate) fn client_options(&self, idle_connections: usize) -> ClientOptions {
        let seconds = Duration::from_secs_f64;
        let first = seconds(self.patience.first_token_timeout_s);
        ClientOptions {
            connect: seconds(self.patience.connect_timeout_s),
            first_byte: first,
            stall: first.max(seconds(self.patience.stall_timeout_s)),
            idle_connections,
        }
    }

    /// Endpoints that a session would leave alone at first, since they asked an earlier one for it; and for how many
    /// milliseconds.
    pub fn held(&self, ledger: &Ledger) -> Result<Vec<(usize, u64)>, TeacherError> {
        Ok(self.held_at(&ledger.waits()?, unix_ms()))
    }

    fn held_at(&self, waits: &HashMap<String, u64>, now_unix_ms: u64) -> Vec<(usize, u64)> {
        let of = |(i, endpoint): (usize, &Endpoint)| {
            let left = waits.get(&endpoint.base.place())?.saturating_sub(now_unix_ms);
            (left > 0).then_some((i, left.min(HELD_MS_MAX)))
        };
        self.endpoints.iter().enumerate().filter_map(of).collect()
    }

    fn n_threads(&self) -> usize {
        self.endpoints.iter().map(|e| e.max_in_flight).sum::<usize>().clamp(1, IN_FLIGHT_MAX)
    }

    /// What names a request of this teacher in a ledger.
    pub fn request_digest(&self, ask: &Ask) -> Digest {
        ask.digest(self.served_model(), &self.sampling)
    }

    pub(crate) fn served_model(&self) -> &str {
        self.served_as.as_deref().unwrap_or(&self.model)
    }
}

/// The caller's side: what is still to be asked, and answers in their order.
struct Desk<'a> {
    shared: &'a Shared<'a>,
    ledger: &'a Ledger,
    counts: Counts,
}

impl Desk<'_> {
    fn run<E: From<TeacherError>>(
        &mut self,
        asks: &mut dyn Iterator<Item = Result<Ask, E>>,
        deliver: &mut dyn FnMut(Ask, Answer, Counts) -> Result<(), E>,
        heard: &mut dyn FnMut(Event) -> Result<(), E>,
        news: &mpsc::Receiver<News>,
    ) -> Result<Finished, E> {
        let mut open = Window::default();
        let (mut outstanding, mut exhausted) = (0u64, false);
        let full = 4 * self.shared.teacher.endpoints.iter().map(|e| e.max_in_flight).sum::<usize>();
        loop {
            while !exhausted && open.has_room() && self.has_room(full) {
                let Some(ask) = asks.next().transpose()? else {
                    exhausted = true;
                    break;
                };
                let (asked, answer) = self.look_up(ask)?;
                let is_answered = answer.is_some();
                let index = open.push(Arc::clone(&asked), answer);
                if !is_answered {
                    self.shared.push(index, &asked);
                    outstanding += 1;
                } else if open.first_is_answered() {
                    break;
                }
            }
            while let Some((asked, answer)) = open.pop_answered() {
                let answer = match answer {
                    Some(answer) => answer,
                    None => outcome::read_back(self.ledger, &asked.request, &asked.ask.id)?,
                };
                self.hand_over(&asked, answer, deliver)?;
            }
            if exhausted && open.is_empty() {
                return Ok(Finished::All);
            }
            if outstanding == 0 && !exhausted && self.has_room(full) {
                continue;
            }
            match news.recv() {
                Ok(News::Ended(ending)) => {
                    let Ending { call, answer } = *ending;
                    heard(Event::Ended(Box::new(call)))?;
                    if let Some(arrived) = answer {
                        outstanding -= 1;
                        open.answer(arrived);
                    }
                }
                Ok(News::LeftOut(left_out)) => heard(Event::LeftOut(left_out))?,
                Ok(News::Broken(error)) => return Err(error.into()),
                // Every thread has ended: the schedule has stopped.
                Err(mpsc::RecvError) => return Ok(Finished::Stopped(self.shared.why_stopped())),
            }
        }
    }

    fn has_room(&self, full: usize) -> bool {
        let schedule = self.shared.lock();
        schedule.stopped().is_none() && schedule.n_ready() < full
    }

    fn look_up(&mut self, ask: Ask) -> Result<(Arc<Asked>, Option<Answer>), TeacherError> {
        let request = self.shared.teacher.request_digest(&ask);
        let answer = outcome::kept(self.ledger, &request, &ask.id)?;
        self.counts.kept += u64::from(answer.is_some());
        Ok((Arc::new(Asked { ask, request }), answer))
    }

    fn hand_over<E>(
        &mut self,
        asked: &Asked,
        answer: Answer,
        deliver: &mut dyn FnMut(Ask, Answer, Counts) -> Result<(), E>,
    ) -> Result<(), E> {
        self.counts.answers += 1;
        self.counts.calls = self.shared.calls.load(Ordering::Relaxed);
        self.counts.failed_calls = self.shared.failed_calls.load(Ordering::Relaxed);
        if let Answer::Reply(receipt) = &answer {
            self.counts.usd += receipt.usd;
        }
        deliver(asked.ask.clone(), answer, self.counts)
    }
}

impl Shared<'_> {
    fn lock(&self) -> MutexGuard<'_, Schedule<Arc<Asked>>> {
        self.schedule.lock().expect("no thread panics while it holds the schedule")
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn push(&self, index: u64, asked: &Arc<Asked>) {
        let tokens = self.estimator().of_request(&asked.ask);
        self.lock().push(index, Arc::clone(asked), tokens);
        self.wake.notify_one();
    }

    fn estimator(&self) -> MutexGuard<'_, Estimator> {
        self.estimator.lock().expect("no thread panics while it estimates")
    }

    fn close(&self) {
        self.lock().stop(Stop::Closed);
        self.wake.notify_all();
    }

    fn why_stopped(&self) -> Stop {
        self.lock().stopped().cloned().unwrap_or(Stop::Closed)
    }

    /// One thread's day.
    fn work(&self, news: &mpsc::Sender<News>) {
        let mut unwritten: Option<Unwritten> = None;
        loop {
            match self.take(unwritten.is_some()) {
                Next::Send { job, endpoint } => {
                    let call = self.call_of(&job, endpoint);
                    if !self.write(unwritten.take(), Some(Entry::Begin(call.clone())), news) {
                        return;
                    }
                    unwritten = Some(self.send(job, endpoint, &call, news));
                }
                // Nothing to do: what is not written yet is not kept waiting.
                Next::Wait(_) | Next::Stopped if unwritten.is_some() => {
                    if !self.write(unwritten.take(), None, news) {
                        return;
                    }
                }
                Next::Wait(_) => {}
                Next::Stopped => return,
            }
        }
    }

    /// The next request, or nothing: at once where something has to be written, else after a wait.
    fn take(&self, at_once: bool) -> Next<Arc<Asked>> {
        let mut schedule = self.lock();
        let next = schedule.next(self.now_ms());
        let Next::Wait(until) = next else {
            // Somebody has to look when this request has been on its way for long.
            if self.teacher.patience.hedge_after_s.is_some() {
                self.wake.notify_one();
            }
            return next;
        };
        if !at_once {
            let wait = until.map_or(LOOK_AGAIN, |at| {
                Duration::from_millis(at.saturating_sub(self.now_ms()).max(1)).min(LOOK_AGAIN)
            });
            drop(
                self.wake.wait_timeout(schedule, wait).expect("no thread panics while it holds the schedule"),
            );
        }
        Next::Wait(until)
    }

    /// Makes the end of one call and the beginning of the next durable, then tells of the end.
    fn write(&self, ended: Option<Unwritten>, begin: Option<Entry>, news: &mpsc::Sender<News>) -> bool {
        let (end, ending) = ended.map_or((None, None), |u| (Some(u.entry), Some(u.ending)));
        if let Err(error) = self.scribe.commit(end.into_iter().chain(begin).collect()) {
            self.close();
            let _ = news.send(News::Broken(error.into()));
            return false;
        }
        // Of a call without an answer nobody need hear.
        ending.is_none_or(|ending| {
            let is_waited_for = ending.answer.is_some();
            news.send(News::Ended(ending)).is_ok() || !is_waited_for
        })
    }

    fn call_of(&self, job: &Job<Arc<Asked>>, endpoint: usize) -> Call {
        Call {
            call: self.next_call.fetch_add(1, Ordering::Relaxed),
            request: job.what.request,
            prompt: job.what.ask.id.clone(),
            sample: job.what.ask.sample,
            attempt: job.attempt,
            stage: self.teacher.stage,
            teacher: self.teacher.model.clone(),
            endpoint: self.teacher.endpoints[endpoint].base.place(),
            sent_unix_ms: unix_ms(),
        }
    }

    fn send(
        &self,
        job: Job<Arc<Asked>>,
        endpoint: usize,
        begun: &Call,
        news: &mpsc::Sender<News>,
    ) -> Unwritten {
        let (teacher, call) = (self.teacher, begun.call);
        let ask = &job.what.ask;
        let body = ask.body(teacher.served_model(), &teacher.sampling, teacher.stream);
        let request_id = format!("{}-{call}", &job.what.request.to_string()[..32]);
        let how = (&teacher.sampling, &teacher.patience);
        let named = (&request_id[..], job.call_off.clone());
        let got = call::send(self.client, &teacher.endpoints[endpoint], (ask, &body), named, how)
            .and_then(|reply| scores::of(ask, reply));
        self.calls.fetch_add(1, Ordering::Relaxed);
        let (outcome, ended, answer) = match got {
            Ok((reply, logprobs)) => self.of_reply(call, ask, reply, logprobs),
            Err(fault) => {
                self.failed_calls.fetch_add(1, Ordering::Relaxed);
                self.of_fault(call, ask, fault)
            }
        };
        let index = job.index;
        let (fate, stopped, left_out) = {
            let mut schedule = self.lock();
            let fate = schedule.ended(job, endpoint, &ended, self.now_ms());
            (fate, schedule.stopped().is_some(), schedule.take_left_out())
        };
        for (index, fault) in left_out {
            let endpoint = teacher.endpoints[index].base.place();
            // Whoever does not listen any more needs no warning.
            let _ = news.send(News::LeftOut(LeftOut { index, endpoint, fault }));
        }
        // This thread looks for more itself; another may have waited for what has just ended.
        if stopped {
            self.wake.notify_all()
        } else {
            self.wake.notify_one()
        }
        let outcome = match (&fate, &ended.how) {
            (Fate::Late, How::Answered | How::CalledOff) => outcome::late(outcome),
            _ => outcome,
        };
        let answer = match fate {
            Fate::GivenUp { fault } => Some(Answer::GivenUp { fault }),
            Fate::Settled => answer,
            Fate::Late | Fate::Elsewhere | Fate::Again => None,
        };
        let answer = answer.map(|answer| Arrived { index, answer });
        let ending = Box::new(Ending { call: EndedCall::of(begun, &outcome), answer });
        Unwritten { entry: Entry::End(outcome), ending }
    }

    fn of_reply(
        &self,
        call: u64,
        ask: &Ask,
        reply: Reply,
        logprobs: Vec<f64>,
    ) -> (Outcome, Ended, Option<Answer>) {
        let receipt = outcome::receipt(&self.teacher.price, &mut self.estimator(), ask, reply);
        let receipt = Receipt { logprobs, ..receipt };
        let (usd, tokens) = (receipt.usd, receipt.prompt_tokens + receipt.completion_tokens);
        let (outcome, answer) = outcome::of_receipt(call, receipt);
        let how = match &answer {
            Answer::Refused { fault } => How::Refused { fault: fault.clone() },
            _ => How::Answered,
        };
        (outcome, Ended { usd, tokens, how }, Some(answer))
    }

    fn of_fault(&self, call: u64, ask: &Ask, fault: Fault) -> (Outcome, Ended, Option<Answer>) {
        let tokens = fault.pieces.map(|pieces| self.estimator().of_fault(ask, pieces));
        let outcome = outcome::of_fault(call, &fault, tokens, &self.teacher.price);
        let (what, usd) = (fault.what, outcome.usd);
        let tokens = tokens.map_or(0, |(prompt, completion)| prompt + completion);
        let (how, answer) = match fault.kind {
            FaultKind::Refused => {
                (How::Refused { fault: what.clone() }, Some(Answer::Refused { fault: what }))
            }
            FaultKind::Hopeless => (How::Hopeless { fault: what }, None),
            FaultKind::CalledOff => (How::CalledOff, None),
            FaultKind::Again | FaultKind::Postponed => {
                let postponed = fault.kind == FaultKind::Postponed;
                let wait_ms = fault.wait.map(|wait| wait.as_millis() as u64 + 1);
                (How::Failed { fault: what, postponed, wait_ms }, None)
            }
        };
        (outcome, Ended { usd, tokens, how }, answer)
    }
}

#[cfg(test)]
mod tests {
    use stillroom_net::Address;

    use super::*;

    #[test]
    fn what_an_endpoint_said_before_holds_for_the_rest_of_its_time_and_not_for_ever() {
        let endpoint = |url: &str| Endpoint {
            base: Address::parse(url).expect("an address"),
            key: None,
            send_key_unencrypted: false,
            weight: 1.0,
            max_in_flight: 1,
            requests_per_minute: None,
            tokens_per_minute: None,
        };
        let teacher = Teacher {
            model: "m".to_owned(),
            served_as: None,
            endpoints: ["https://a.example/v1", "https://b.example/v1", "https://c.example/v1"]
                .map(endpoint)
                .into(),
            sampling: Sampling {
                max_tokens: 1,
                temperature: 0.0,
                top_p: 1.0,
                send_seed: false,
                top_logprobs: None,
                return_token_ids: false,
                extra: Default::default(),
            },
            price: Price::default(),
            budget: Budget::default(),
            patience: Patience::default(),
            stream: false,
            seed: 0,
            stage: "teach",
        };
        let now = 1_700_000_000_000;
        let waits = [
            ("https://a.example/v1", now + 5_000),
            ("https://b.example/v1", now),
            ("https://c.example/v1", now + 86_400_000),
            ("https://gone.example/v1", now + 5_000),
        ];
        let waits = waits.map(|(place, until)| (place.to_owned(), until)).into();
        assert_eq!(teacher.held_at(&waits, now), [(0, 5_000), (2, HELD_MS_MAX)]);
        assert_eq!(teacher.held_at(&waits, now + 4_999), [(0, 1), (2, HELD_MS_MAX)]);
        assert_eq!(teacher.held_at(&waits, now + 86_400_000), []);
    }
}

//! The thread that has the model. Sequences of all requests are written together: each gets a token in turn, newcomers join
//! as places become free, and what nobody waits for any more is given up.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use stillroom_model::{Begin, Decoder, ModelError, SamplingParams, ScoredToken, Token, Writing};

use crate::metrics::Metrics;

/// What the model is to do.
pub(crate) struct Job {
    pub(crate) prompt: Arc<[u32]>,
    /// Which of the request's sequences it is, or, of a score, of its prompts.
    pub(crate) index: usize,
    /// How many other tokens are wanted with each.
    pub(crate) top: usize,
    pub(crate) work: Work,
    pub(crate) events: Sender<Event>,
    /// Whether somebody waits for it.
    pub(crate) wanted: Arc<AtomicBool>,
}

pub(crate) enum Work {
    /// A continuation: which of the samples of its prompt, and how.
    Write(u32, Arc<SamplingParams>),
    /// How likely the prompt's own tokens are.
    Score,
}

pub(crate) enum Event {
    Token(usize, Result<Token, ModelError>),
    Scored(usize, Vec<ScoredToken>),
}

/// The queue before the model.
#[derive(Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    /// No more is taken; what is there may go on.
    ended: bool,
    /// Nor does what is there.
    cut: bool,
}

/// Why jobs are not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotTaken {
    Full,
    Ended,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all of these jobs or none: at most `waiting_max` wait, unless nothing else does.
    pub(crate) fn submit(&self, jobs: Vec<Job>, waiting_max: usize) -> Result<(), NotTaken> {
        let mut state = self.lock();
        if state.ended {
            return Err(NotTaken::Ended);
        }
        state.waiting.retain(|job| job.wanted.load(Ordering::Relaxed));
        if !state.waiting.is_empty() && state.waiting.len() + jobs.len() > waiting_max {
            return Err(NotTaken::Full);
        }
        state.waiting.extend(jobs);
        self.changed.notify_all();
        Ok(())
    }

    /// Nothing is taken from now on. With `cut`, what waits and what is being written is given up.
    pub(crate) fn end(&self, cut: bool) {
        let mut state = self.lock();
        state.ended = true;
        if cut {
            state.cut = true;
            state.waiting.clear();
        }
        self.changed.notify_all();
    }

    /// The next scores and up to `places` sequences, waiting for some if the model has nothing else to do; none at the end.
    fn next(&self, places: usize, is_idle: bool, metrics: &Metrics) -> Option<Vec<Job>> {
        let mut state = self.lock();
        loop {
            state.waiting.retain(|job| job.wanted.load(Ordering::Relaxed));
            let is_done = state.waiting.is_empty() && is_idle;
            if state.cut || (is_done && state.ended) {
                return None;
            }
            if !is_done {
                break;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let n = match state.waiting.front() {
            Some(Job { work: Work::Score, .. }) => 1,
            _ => {
                let sequences = state.waiting.iter().take_while(|job| matches!(job.work, Work::Write(..)));
                sequences.take(places).count()
            }
        };
        let taken = state.waiting.drain(..n).collect();
        metrics.waiting.store(state.waiting.len() as u64, Ordering::Relaxed);
        Some(taken)
    }
}

/// Who is told of a sequence.
struct Listener {
    index: usize,
    events: Sender<Event>,
    wanted: Arc<AtomicBool>,
}

/// Does what is in the queue until it has ended and is empty.
pub(crate) fn run(queue: &Queue, decoder: &Decoder, in_flight: usize, context: usize, metrics: &Metrics) {
    let mut writing = Writing::new(decoder, in_flight, context);
    let mut listeners: HashMap<u64, Listener> = HashMap::new();
    let mut pending: VecDeque<Job> = VecDeque::new();
    let mut next_ticket = 0;
    loop {
        let places = writing.n_free().saturating_sub(pending.len());
        let Some(taken) = queue.next(places, writing.is_idle() && pending.is_empty(), metrics) else {
            return;
        };
        for job in taken {
            match job.work {
                Work::Score => score(decoder, &job),
                Work::Write(..) => pending.push_back(job),
            }
        }
        let mut on_token = |ticket: u64, token: Result<Token, ModelError>| {
            let has_ended = token.as_ref().map_or(true, |token| token.done.is_some());
            let Some(listener) = listeners.get(&ticket) else { return };
            if listener.events.send(Event::Token(listener.index, token)).is_err() {
                listener.wanted.store(false, Ordering::Relaxed);
            }
            if has_ended {
                listeners.remove(&ticket);
            }
        };
        // What is being written goes on before newcomers are read, and they join it.
        writing.decode(&mut on_token);
        admit(&mut writing, &mut pending, &mut next_ticket, &mut listeners);
        writing.retain(|ticket| listeners.get(&ticket).is_some_and(Listener::waits));
        listeners.retain(|_, listener| listener.waits());
        metrics.writing.store(listeners.len() as u64, Ordering::Relaxed);
    }
}

impl Listener {
    fn waits(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }
}

/// Begins as many of the pending sequences as are read in one pass.
fn admit(
    writing: &mut Writing<'_>,
    pending: &mut VecDeque<Job>,
    next_ticket: &mut u64,
    listeners: &mut HashMap<u64, Listener>,
) {
    let mut begins = Vec::with_capacity(pending.len());
    for (job, ticket) in pending.iter().zip(*next_ticket..) {
        let Work::Write(sample, sampling) = &job.work else { continue };
        let Job { index, ref events, ref wanted, .. } = *job;
        listeners.insert(ticket, Listener { index, events: events.clone(), wanted: Arc::clone(wanted) });
        begins.push(Begin {
            ticket,
            prompt_ids: &job.prompt,
            key: 0,
            sample: *sample,
            sampling: Arc::clone(sampling),
            top: job.top,
        });
    }
    if begins.is_empty() {
        return;
    }
    let mut ended = Vec::new();
    let begun = writing.admit(&begins, &mut |ticket, token| {
        if token.as_ref().map_or(true, |token| token.done.is_some()) {
            ended.push(ticket);
        }
        let listener = &listeners[&ticket];
        if listener.events.send(Event::Token(listener.index, token)).is_err() {
            listener.wanted.store(false, Ordering::Relaxed);
        }
    });
    drop(begins);
    let (after, all) = (*next_ticket + begun as u64, *next_ticket + pending.len() as u64);
    ended.into_iter().chain(after..all).for_each(|ticket| drop(listeners.remove(&ticket)));
    *next_ticket = after;
    pending.drain(..begun);
}

fn score(decoder: &Decoder, job: &Job) {
    let scored = decoder.scored_tokens(&job.prompt, job.top);
    // Nobody may wait for it any more.
    let _ = job.events.send(Event::Scored(job.index, scored));
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    fn job(work: Work, wanted: &Arc<AtomicBool>) -> Job {
        let (events, _) = channel();
        Job { prompt: Arc::from([1]), index: 0, top: 0, work, events, wanted: Arc::clone(wanted) }
    }

    #[test]
    fn a_full_queue_takes_nothing_and_forgets_what_is_not_wanted() {
        let (queue, metrics) = (Queue::default(), Metrics::default());
        let (here, gone) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
        let scores =
            |n: usize, wanted: &Arc<AtomicBool>| (0..n).map(|_| job(Work::Score, wanted)).collect::<Vec<_>>();
        assert_eq!(queue.submit(scores(9, &gone), 8), Ok(()), "alone it may be more than fits");
        assert_eq!(queue.submit(scores(1, &here), 8), Err(NotTaken::Full));
        gone.store(false, Ordering::Relaxed);
        assert_eq!(queue.submit(scores(8, &here), 8), Ok(()));
        assert_eq!(queue.submit(scores(1, &here), 8), Err(NotTaken::Full));
        assert_eq!(queue.next(4, true, &metrics).map(|jobs| jobs.len()), Some(1));
        queue.end(false);
        assert_eq!(queue.submit(scores(1, &here), 8), Err(NotTaken::Ended));
        (0..7).for_each(|_| assert_eq!(queue.next(4, true, &metrics).map(|jobs| jobs.len()), Some(1)));
        assert!(queue.next(4, true, &metrics).is_none());
    }
}

//! One answer, from what is asked to what is sent.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use stillroom_core::Digest;
use stillroom_model::ScoredToken;

use crate::ask::{Ask, Endpoint};
use crate::engine::{Event, Job, NotTaken, Work};
use crate::http::{Connection, Request, Response};
use crate::metrics::add;
use crate::refusal::Refusal;
use crate::reply::{Frame, Usage};
use crate::server::{Shared, unix};
use crate::sink::{Answer, AnsweredChoice};
use crate::writing::{Choice, Piece};

/// How often a client that waits is looked after.
const LOOK: Duration = Duration::from_millis(100);
/// After so much silence a stream has a line without meaning, so that nobody takes it for dead.
const SILENCE: Duration = Duration::from_secs(5);
/// Seconds after which a full server may be asked again.
const RETRY_AFTER_S: u32 = 1;

/// What is left of a connection, and what the request is counted as.
pub(crate) struct Outcome {
    pub(crate) status: u16,
    pub(crate) stays: bool,
}

/// Why an answer did not come to its end.
enum Broken {
    /// Nobody waits for it any more.
    Gone,
    Refused(Refusal),
}

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Broken {
        Broken::Gone
    }
}

/// Whoever sends a reply's pieces.
type OnPiece<'a> = dyn FnMut(&mut Connection, usize, Piece) -> io::Result<()> + 'a;

struct Answering<'s> {
    shared: &'s Shared,
    ask: &'s Ask,
    begun: Instant,
    events: Receiver<Event>,
    /// One for each sequence.
    wanted: Vec<Arc<AtomicBool>>,
    choices: Vec<Choice<'s>>,
    /// One for each prompt.
    scores: Vec<Option<Vec<ScoredToken>>>,
    /// Jobs that have not ended.
    open: usize,
}

/// Answers a request for text.
pub(crate) fn answer(
    shared: &Shared,
    connection: &mut Connection,
    request: &Request,
    endpoint: Endpoint,
    key: Option<Digest>,
) -> Outcome {
    let begun = Instant::now();
    let refuse = |connection: &mut Connection, refusal: &Refusal| {
        let stays = connection.send(request, &refusal.response()).is_ok() && request.keep_alive;
        Outcome { status: refusal.status, stays }
    };
    let read = std::str::from_utf8(&request.body)
        .map_err(|_| Refusal::new(400, "the body is not UTF-8").code("invalid_json"))
        .and_then(|body| shared.reader().read(endpoint, body).map(|ask| (ask, body)));
    let (ask, body) = match read {
        Ok(read) => read,
        Err(refusal) => return refuse(connection, &refusal),
    };
    let answering = match Answering::begin(shared, &ask, begun) {
        Ok(answering) => answering,
        Err(refusal) => return refuse(connection, &refusal),
    };
    let id = match new_id(endpoint) {
        Ok(id) => id,
        Err(refusal) => return refuse(connection, &refusal),
    };
    let frame = Frame {
        ask: &ask,
        tokenizer: &shared.model.tokenizer,
        id: &id,
        created: unix().as_secs(),
        model: &shared.settings.model_name,
        fingerprint: &shared.fingerprint,
    };
    let told = Told { body, key, id: &id };
    let status = match ask.stream {
        true => answering.stream(connection, request, &frame, &told),
        false => answering.whole(connection, request, &frame, &told),
    };
    shared.metrics.answer_seconds.observe(begun.elapsed());
    match status {
        Ok(()) => Outcome { status: 200, stays: request.keep_alive && (!ask.stream || request.knows_chunks) },
        Err(Broken::Gone) => {
            add(&shared.metrics.cancelled, 1);
            Outcome { status: 499, stays: false }
        }
        // A stream has told of it already, and cannot go on.
        Err(Broken::Refused(refusal)) if ask.stream => Outcome { status: refusal.status, stays: false },
        Err(Broken::Refused(refusal)) => refuse(connection, &refusal),
    }
}

/// What the sink is told besides what was written.
struct Told<'a> {
    body: &'a str,
    key: Option<Digest>,
    id: &'a str,
}

fn new_id(endpoint: Endpoint) -> Result<String, Refusal> {
    let mut bytes = [0; 12];
    getrandom::fill(&mut bytes).map_err(|_| Refusal::new(500, "the system gives no random numbers"))?;
    let start = if endpoint == Endpoint::Chat { "chatcmpl-" } else { "cmpl-" };
    Ok(bytes.iter().fold(start.to_owned(), |id, byte| format!("{id}{byte:02x}")))
}

impl<'s> Answering<'s> {
    fn begin(shared: &'s Shared, ask: &'s Ask, begun: Instant) -> Result<Answering<'s>, Refusal> {
        let (events, received) = channel();
        let n_sequences = ask.prompts.len() * ask.n;
        let wanted: Vec<_> = (0..n_sequences).map(|_| Arc::new(AtomicBool::new(true))).collect();
        let mut jobs = Vec::new();
        let echoed = ask.logprobs.filter(|_| ask.echo);
        if let Some(top) = echoed.max(ask.prompt_logprobs) {
            jobs.extend(ask.prompts.iter().enumerate().map(|(index, prompt)| Job {
                prompt: Arc::clone(prompt),
                index,
                top,
                work: Work::Score,
                events: events.clone(),
                wanted: Arc::clone(&wanted[index * ask.n]),
            }));
        }
        let sequence = |(index, wanted): (usize, &Arc<AtomicBool>)| Job {
            prompt: Arc::clone(&ask.prompts[index / ask.n]),
            index,
            top: ask.logprobs.unwrap_or(0),
            work: Work::Write((index % ask.n) as u32, Arc::clone(&ask.sampling[index / ask.n])),
            events: events.clone(),
            wanted: Arc::clone(wanted),
        };
        let keeps_entries = ask.logprobs.is_some() || ask.return_token_ids;
        let mut choices: Vec<Choice<'_>> = (0..n_sequences)
            .map(|_| Choice::new(&shared.model.tokenizer, ask.stops.clone(), keeps_entries))
            .collect();
        if ask.sampling[0].max_tokens > 0 {
            jobs.extend(wanted.iter().enumerate().map(sequence));
        } else {
            choices.iter_mut().for_each(|choice| drop(choice.end("length")));
        }
        let open = jobs.len();
        shared.queue.submit(jobs, shared.settings.limits.waiting_max).map_err(
            |not_taken| match not_taken {
                NotTaken::Full => Refusal::new(429, "more requests wait than this server takes")
                    .code("queue_full")
                    .retry_after(RETRY_AFTER_S),
                NotTaken::Ended => ending(),
            },
        )?;
        let scores = vec![None; ask.prompts.len()];
        Ok(Answering { shared, ask, begun, events: received, wanted, choices, scores, open })
    }

    /// Takes what the model writes until all has ended.
    fn drive(&mut self, connection: &mut Connection, on_piece: &mut OnPiece<'_>) -> Result<(), Broken> {
        let mut looked = Instant::now();
        while self.open > 0 {
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                if connection.is_gone() && !self.shared.is_stopping() {
                    return Err(Broken::Gone);
                }
            }
            match self.events.recv_timeout(LOOK) {
                Ok(event) => self.take(event, connection, on_piece)?,
                Err(RecvTimeoutError::Timeout) => on_piece(connection, 0, Piece::default())?,
                Err(RecvTimeoutError::Disconnected) => return Err(Broken::Refused(ending())),
            }
        }
        Ok(())
    }

    fn take(
        &mut self,
        event: Event,
        connection: &mut Connection,
        on_piece: &mut OnPiece<'_>,
    ) -> Result<(), Broken> {
        match event {
            Event::Scored(prompt, scored) => {
                self.open -= 1;
                self.scores[prompt] = Some(scored);
                Ok(())
            }
            // A token behind a stop.
            Event::Token(index, _) if self.choices[index].finish_reason.is_some() => Ok(()),
            Event::Token(_, Err(error)) => {
                Err(Broken::Refused(Refusal::new(500, format!("the model failed: {error}"))))
            }
            Event::Token(index, Ok(token)) => {
                if self.choices.iter().all(|choice| choice.n_tokens == 0) {
                    self.shared.metrics.first_token_seconds.observe(self.begun.elapsed());
                }
                let Some(piece) = self.choices[index].take(token) else { return Ok(()) };
                if piece.finish_reason.is_some() {
                    self.open -= 1;
                    self.wanted[index].store(false, Ordering::Relaxed);
                }
                Ok(on_piece(connection, index, piece)?)
            }
        }
    }

    fn usage(&self) -> Usage {
        let prompt = self.ask.prompts.iter().map(|prompt| prompt.len()).sum();
        Usage { prompt, completion: self.choices.iter().map(|choice| choice.n_tokens).sum() }
    }

    /// Counts the answer, and tells the sink of it.
    fn record(&self, told: &Told<'_>) -> Result<(), Broken> {
        let (usage, shared) = (self.usage(), self.shared);
        add(&shared.metrics.prompt_tokens, usage.prompt as u64);
        add(&shared.metrics.completion_tokens, usage.completion as u64);
        let Some(sink) = &shared.sink else { return Ok(()) };
        let choice =
            |(index, choice): (usize, &'_ Choice<'s>)| (index, choice.n_tokens, choice.finish_reason);
        let facts: Vec<_> = self.choices.iter().enumerate().map(choice).collect();
        let choices = facts.iter().zip(&self.choices).map(|(&(index, completion_tokens, ended), choice)| {
            let finish_reason = ended.unwrap_or("cancelled");
            AnsweredChoice { index, text: &choice.text, completion_tokens, finish_reason }
        });
        let answer = Answer {
            id: told.id,
            endpoint: self.ask.endpoint.as_str(),
            request: told.body,
            key: told.key,
            model: &shared.settings.model_name,
            weights: shared.settings.weights,
            seed: self.ask.sampling[0].seed,
            prompt_tokens: usage.prompt,
            choices: choices.collect(),
            unix_ms: unix().as_millis() as u64,
        };
        let begun = Instant::now();
        let recorded = sink.record(&answer);
        shared.metrics.record_seconds.observe(begun.elapsed());
        match recorded {
            Ok(()) => {
                add(&shared.metrics.recorded, 1);
                Ok(())
            }
            Err(cause) => {
                shared.fail(&cause);
                let message = "the owner's log of this server cannot be written, so no answer is given";
                Err(Broken::Refused(Refusal::new(500, message).code("log_failed")))
            }
        }
    }

    fn whole(
        mut self,
        connection: &mut Connection,
        request: &Request,
        frame: &Frame<'_>,
        told: &Told<'_>,
    ) -> Result<(), Broken> {
        let mut pieces = vec![Piece::default(); self.choices.len()];
        pieces
            .iter_mut()
            .zip(&self.choices)
            .for_each(|(piece, choice)| piece.finish_reason = choice.finish_reason);
        self.drive(connection, &mut |_, index, piece| {
            if piece != Piece::default() {
                pieces[index].append(piece);
            }
            Ok(())
        })?;
        self.record(told)?;
        let reply = frame.whole(pieces, &self.scores, self.usage());
        Ok(connection.send(request, &Response::json(200, &reply))?)
    }

    fn stream(
        mut self,
        connection: &mut Connection,
        request: &Request,
        frame: &Frame<'_>,
        told: &Told<'_>,
    ) -> Result<(), Broken> {
        connection.begin_stream(request)?;
        if self.ask.endpoint == Endpoint::Chat {
            (0..self.choices.len()).try_for_each(|index| send(connection, request, &frame.role(index)))?;
        }
        // The end of a choice is held back until the answer is on record.
        let mut ends: Vec<(usize, Piece)> = Vec::new();
        for (index, choice) in self.choices.iter_mut().enumerate() {
            ends.extend(choice.finish_reason.map(|reason| (index, choice.end(reason))));
        }
        let mut spoken = Instant::now();
        let driven = self.drive(connection, &mut |connection, index, piece| {
            if piece == Piece::default() {
                return match spoken.elapsed() >= SILENCE {
                    false => Ok(()),
                    true => {
                        spoken = Instant::now();
                        connection.send_piece(request, b": still here\n\n")
                    }
                };
            }
            spoken = Instant::now();
            match piece.finish_reason {
                Some(_) => ends.push((index, piece)),
                None => send(connection, request, &frame.piece(index, &piece))?,
            }
            Ok(())
        });
        let was_told_something = self.choices.iter().any(|choice| choice.n_tokens > 0);
        let recorded = match &driven {
            Err(_) if !was_told_something => Ok(()),
            _ => self.record(told),
        };
        let broken = match driven.and(recorded) {
            Ok(()) => return self.finish(connection, request, frame, &ends),
            Err(broken) => broken,
        };
        if let Broken::Refused(refusal) = &broken {
            // Whether it arrives or not, the answer has ended.
            let _ = send(connection, request, &refusal.body());
            let _ = connection.end_stream(request);
        }
        Err(broken)
    }
}

impl Answering<'_> {
    /// The ends of a stream's choices, and its own.
    fn finish(
        &self,
        connection: &mut Connection,
        request: &Request,
        frame: &Frame<'_>,
        ends: &[(usize, Piece)],
    ) -> Result<(), Broken> {
        ends.iter().try_for_each(|(index, piece)| send(connection, request, &frame.piece(*index, piece)))?;
        if self.ask.include_usage {
            send(connection, request, &frame.usage(self.usage()))?;
        }
        connection.send_piece(request, b"data: [DONE]\n\n")?;
        Ok(connection.end_stream(request)?)
    }
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.wanted.iter().for_each(|wanted| wanted.store(false, Ordering::Relaxed));
    }
}

fn ending() -> Refusal {
    Refusal::new(503, "the server is ending").code("ending").retry_after(RETRY_AFTER_S)
}

fn send(connection: &mut Connection, request: &Request, event: &Value) -> io::Result<()> {
    connection.send_piece(request, format!("data: {event}\n\n").as_bytes())
}

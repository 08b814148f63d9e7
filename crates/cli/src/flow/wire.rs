//! Teachers behind endpoints: what is asked goes through the ledger, and what is answered into parts as everywhere.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};
use stillroom_core::{Digest, Prompt, Trace};
use stillroom_corpus::Split;
use stillroom_formats::parquet_rows;
use stillroom_net::{Address, Secret};
use stillroom_store::{Ledger, LedgerReader, PartStore, Totals, digest_file};
use stillroom_teacher::{
    Answer, Ask, Budget, Counts, Endpoint, Event, Finished, LeftOut, Patience, Price, Sampling, Stop,
    TeacherError,
};

use super::logbook::{Logbook, Moment};
use super::prompt_pii::redacted;
use super::teach;
use super::wording::Wording;
use super::{Flow, gate};
use crate::failure::{Exit, Failure, Result};
use crate::recipe::{Api, PromptPii, Teacher, Wire, variable_of};
use crate::terminal::Progress;

pub(crate) const LEDGER: &str = "ledger.sqlite";
/// What was asked and never answered, with the reason.
pub(super) const UNANSWERED: &str = "corpus/unanswered.jsonl";
/// A part of traces ends with the prompt that brings it to so many rows.
const ROWS_PER_PART: usize = 4096;
/// How often progress is shown.
const SHOW_EVERY: Duration = Duration::from_millis(200);

/// A prompt that will get no reply.
#[derive(Debug, Serialize)]
struct Unanswered {
    id: String,
    sample: u32,
    fault: String,
}

/// What a session with the teacher came to.
pub(super) struct Outcome {
    pub(super) finished: Finished,
    /// Over all calls of the stage.
    pub(super) totals: Totals,
    pub(super) left_out: Vec<LeftOut>,
}

/// Greedy replies to held-out prompts, with what they took.
pub(super) struct WireReplies {
    /// In the order of the prompts; those that the teacher refused are empty.
    pub(super) traces: Vec<Trace>,
    pub(super) usd: f64,
    pub(super) seconds: f64,
}

impl Flow {
    /// Whether the teacher is behind endpoints.
    pub(crate) fn is_over_wire(&self) -> bool {
        self.recipe.wire().is_some()
    }

    /// Whether its replies come from the ledger of another run.
    fn is_replayed(&self) -> bool {
        self.recipe.wire().is_some_and(|wire| wire.replay.is_some())
    }

    /// What the replies of a teacher behind endpoints depend on besides prompts: who it is, and how it is asked to write.
    pub(super) fn wire_identity(&self, teacher: &Teacher, wire: &Wire) -> Result<Value> {
        let mut identity = vec![
            json!("over the wire"),
            json!(teacher.model),
            json!(wire.served_model_name),
            json!(wire.send_seed),
            json!(wire.top_logprobs),
            json!(wire.return_token_ids),
            json!(wire.extra_body),
        ];
        if wire.api == Api::Completions {
            identity.push(json!(wire.api));
        }
        if let Some(path) = &wire.chat_template {
            identity.push(json!(digest_file(&self.source.resolve_path(path))?.0));
        }
        Ok(Value::Array(identity))
    }

    /// How many prompts there are, all of which can be put like this, and none of which the policy blocks.
    fn check_prompts(&self, prompts: impl Iterator<Item = Result<Prompt>>, wording: &Wording) -> Result<u64> {
        self.check_pii(
            prompts.map(|prompt| prompt.and_then(|prompt| wording.check(&prompt).map(|()| prompt))),
        )
    }

    /// Lets the teacher answer every prompt of training and validation.
    pub(super) fn write_traces_over_wire(&mut self, made_from: Digest) -> Result<()> {
        let teacher = self.recipe.teacher.clone().expect("a stage of a teacher");
        // Validation first: its rows stay where they are when the number of examples grows.
        let rows = || -> Result<_> {
            Ok(self.prompt_rows(Split::Validation)?.chain(self.prompt_rows(Split::Train)?))
        };
        let wording = Wording::of(&teacher, &self.source)?;
        let n_asked = self.check_prompts(rows()?, &wording)? * u64::from(teacher.samples_per_prompt);
        let redacts = self.prompt_pii() == PromptPii::Redact;
        let prompts = rows()?;
        let samples = teacher.samples_per_prompt;
        let mut asks = prompts.flat_map(|prompt| {
            let prompt = prompt.map(|prompt| if redacts { redacted(prompt) } else { prompt });
            let asks: Vec<Result<Ask>> = match prompt {
                Ok(prompt) => (0..samples).map(|sample| wording.ask(&prompt, sample)).collect(),
                Err(error) => vec![Err(error)],
            };
            asks
        });
        let dir = self.run.dir(teach::FOLDER)?;
        let store = PartStore::open(&dir, "parquet", made_from)?;
        let mut parts = TraceParts::open(store, &wording, self.logbook.clone());
        let outcome =
            self.ask_all(teach::STAGE, &sampling(&teacher), n_asked, &mut asks, &mut |ask, answer| {
                parts.take(ask, answer)
            })?;
        self.check_finished(&outcome, parts.given_up.as_ref())?;
        let (rows, unanswered) = parts.close()?;
        if let (0, Some(Unanswered { id, fault, .. })) = (rows, unanswered.first()) {
            let cause = format!("the teacher refuses every prompt, the first is `{id}`: {fault}");
            return Err(refuses(self.source.place(&["teacher", "endpoints"]), cause));
        }
        self.write_lines(UNANSWERED, &unanswered)?;
        self.write_json("teach.json", &summary(rows, unanswered.len() as u64, &outcome))
    }

    /// Greedy replies to held-out prompts, counted under the stage that measures the teacher.
    pub(super) fn replies_over_wire(
        &mut self,
        stage: &'static str,
        prompts: &[Prompt],
    ) -> Result<WireReplies> {
        let teacher = self.recipe.teacher.clone().expect("a teacher is measured");
        let greedy = greedy(&teacher, self.recipe.evaluate.max_tokens);
        let wording = Wording::of(&teacher, &self.source)?;
        self.check_prompts(prompts.iter().cloned().map(Ok), &wording)?;
        let redacts = self.prompt_pii() == PromptPii::Redact;
        let sent = |prompt: &Prompt| if redacts { redacted(prompt.clone()) } else { prompt.clone() };
        let mut asks = prompts.iter().map(|prompt| wording.ask(&sent(prompt), 0));
        let (mut traces, mut usd, mut given_up) = (Vec::with_capacity(prompts.len()), 0.0, None);
        let started = Instant::now();
        let of = prompts.len() as u64;
        let outcome = self.ask_all(stage, &greedy, of, &mut asks, &mut |ask, answer| {
            let trace = match answer {
                Answer::Reply(receipt) => wording.trace(ask, &receipt),
                Answer::Refused { .. } => wording.no_reply(ask),
                Answer::GivenUp { fault } => {
                    given_up.get_or_insert((ask.id.clone(), fault));
                    wording.no_reply(ask)
                }
            };
            usd += trace.usd;
            traces.push(trace);
            Ok(())
        })?;
        let seconds = started.elapsed().as_secs_f64();
        self.check_finished(&outcome, given_up.as_ref())?;
        Ok(WireReplies { traces, usd, seconds })
    }

    /// Asks the endpoints, or the ledger of the run that is replayed; with the sums of the stage in this run's ledger.
    fn ask_all(
        &mut self,
        stage: &'static str,
        sampling: &Sampling,
        of: u64,
        asks: &mut dyn Iterator<Item = Result<Ask>>,
        deliver: &mut dyn FnMut(Ask, Answer) -> Result<()>,
    ) -> Result<Outcome> {
        let teacher = self.recipe.teacher.clone().expect("somebody is asked");
        let session = self.session(&teacher, stage, sampling)?;
        if let Some(replayed) = teacher.wire.as_ref().and_then(|wire| wire.replay.as_deref()) {
            let ledger = self.replayed_ledger(replayed)?;
            let mut shown = Shown::new(&mut self.progress, stage, of);
            session.replay(&ledger, asks, &mut |ask, answer, counts| {
                shown.counts(counts);
                deliver(ask, answer)
            })?;
            return Ok(Outcome { finished: Finished::All, totals: Totals::default(), left_out: Vec::new() });
        }
        let ledger = self.ledger(&teacher)?;
        if let Some(wire) = teacher.wire.as_ref().filter(|wire| wire.batch.is_some()) {
            let finished = self.ask_by_file(&session, wire, &ledger, asks, deliver)?;
            return Ok(Outcome { finished, totals: ledger.totals(Some(stage))?, left_out: Vec::new() });
        }
        let cleared = gate::clear(&self.recipe, &self.source, &self.decision)?;
        self.tell_held(&session, &ledger)?;
        let (shown, mut left_out) = (RefCell::new(Shown::new(&mut self.progress, stage, of)), Vec::new());
        let mut deliver = |ask, answer, counts| {
            shown.borrow_mut().counts(counts);
            deliver(ask, answer)
        };
        let book = self.logbook.clone();
        let mut heard = |event| match event {
            Event::Ended(call) => book.as_ref().map_or(Ok(()), |book| book.tell_call(&call)),
            Event::LeftOut(endpoint) => {
                shown.borrow_mut().progress.line(&format!("{stage}: {}", left_out_in_words(&endpoint)));
                left_out.push(endpoint);
                Ok(())
            }
        };
        let finished = session.answer_all(cleared, &ledger, asks, &mut deliver, &mut heard)?;
        self.log_calls()?;
        self.seal_log(Moment::Passing)?;
        self.record_left_out(stage, &left_out)?;
        Ok(Outcome { finished, totals: ledger.totals(Some(stage))?, left_out })
    }

    /// Says which endpoints get nothing at first, so that nobody wonders at the silence.
    pub(super) fn tell_held(&mut self, session: &stillroom_teacher::Teacher, ledger: &Ledger) -> Result<()> {
        for (endpoint, ms) in session.held(ledger)? {
            let (place, seconds) = (session.endpoints[endpoint].base.place(), ms.div_ceil(1000));
            self.progress.line(&format!(
                "{}: `{place}` asked an earlier run to be left alone, and is for {seconds} s more",
                session.stage
            ));
        }
        Ok(())
    }

    /// Writes down in the log which endpoints were left out.
    pub(super) fn record_left_out(&mut self, stage: &str, left_out: &[LeftOut]) -> Result<()> {
        for LeftOut { endpoint, fault, .. } in left_out {
            let event = "endpoint_left_out";
            self.event(json!({ "event": event, "stage": stage, "endpoint": endpoint, "fault": fault }))?;
        }
        Ok(())
    }

    /// The ledger in a run's directory, or the file itself.
    pub(super) fn replayed_ledger(&self, named: &str) -> Result<LedgerReader> {
        let mut path = self.source.resolve_path(named);
        if path.is_dir() {
            path = path.join(LEDGER);
        }
        if !path.is_file() {
            return Err(Failure::new(Exit::Io, format!("there is no ledger at `{}`", path.display()))
                .code("no-ledger")
                .at(self.source.place(&["teacher", "path"]))
                .fix("name the directory of a run whose teacher was behind endpoints"));
        }
        Ok(LedgerReader::open(&path)?)
    }

    /// What the teacher's text has cost.
    pub(super) fn teacher_usd(&self) -> Result<f64> {
        let summary: Value = self.read_json("teach.json")?;
        Ok(summary["usd"].as_f64().unwrap_or(0.0))
    }

    /// The ledger of this run. What a kill left open is counted at the price of a longest reply, until replies say more; the
    /// log is told of it, and of what a kill kept from it.
    pub(super) fn ledger(&mut self, teacher: &Teacher) -> Result<Ledger> {
        let longest =
            teacher.wire.as_ref().map_or(0.0, |wire| price(wire).of(0, 0, teacher.max_tokens as u64));
        let ledger = Ledger::open(&self.run.path(LEDGER)?, longest)?;
        self.log_calls()?;
        if ledger.newly_unknown() > 0 {
            self.event(json!({ "event": "calls_unknown", "calls": ledger.newly_unknown() }))?;
            self.progress.line(&format!(
                "ledger: {} calls were on their way when an earlier run ended; they may have been billed",
                ledger.newly_unknown()
            ));
        }
        Ok(ledger)
    }

    pub(super) fn session(
        &self,
        teacher: &Teacher,
        stage: &'static str,
        sampling: &Sampling,
    ) -> Result<stillroom_teacher::Teacher> {
        let wire = teacher.wire.as_ref().expect("a teacher behind endpoints");
        let endpoint = |endpoint: &crate::recipe::Endpoint| -> Result<Endpoint> {
            Ok(Endpoint {
                // The gate has seen to it that text may go there unencrypted.
                base: Address::parse_open(&endpoint.base_url).map_err(TeacherError::from)?,
                send_key_unencrypted: endpoint.send_key_unencrypted,
                key: wire.key_of(endpoint).map(|key| self.secret(key)).transpose()?,
                weight: endpoint.weight,
                max_in_flight: endpoint.max_in_flight,
                requests_per_minute: endpoint.requests_per_minute,
                tokens_per_minute: endpoint.tokens_per_minute,
            })
        };
        Ok(stillroom_teacher::Teacher {
            model: teacher.model.clone(),
            served_as: wire.served_model_name.clone(),
            endpoints: wire.asked().iter().map(endpoint).collect::<Result<_>>()?,
            sampling: sampling.clone(),
            price: price(wire),
            budget: Budget { usd: wire.budget_usd, tokens: wire.budget_tokens, seconds: wire.budget_s },
            patience: Patience {
                connect_timeout_s: wire.connect_timeout_s,
                first_token_timeout_s: wire.first_token_timeout_s,
                stall_timeout_s: wire.stall_timeout_s,
                max_attempts: wire.max_attempts,
                hedge_after_s: wire.hedge_after_s,
            },
            stream: wire.stream,
            seed: teacher.seed,
            stage,
        })
    }

    /// What stands in the environment under the name in `${NAME}`.
    fn secret(&self, named: &str) -> Result<Secret> {
        let name = variable_of(named).unwrap_or_default();
        match std::env::var(name).map(|text| text.trim().to_owned()) {
            Ok(text) if !text.is_empty() => Ok(Secret::new(text)),
            _ => Err(Failure::new(Exit::BadRecipe, format!("the environment has no `{name}`"))
                .code("no-key")
                .at(self.source.place(&["teacher", "api_key"]))
                .fix(format!("set it before the command: `export {name}=…`"))),
        }
    }

    /// Whether everything was answered; else why not, and what can be done.
    pub(super) fn check_finished(
        &self,
        outcome: &Outcome,
        given_up: Option<&(String, String)>,
    ) -> Result<()> {
        let Outcome { finished, totals, left_out } = outcome;
        let spent = format!(
            "{} calls so far, {} replies, {} failed, ${:.4} spent; all of it is in `{LEDGER}` and is not bought again",
            totals.calls, totals.done, totals.failed, totals.usd
        );
        let failure = match (finished, given_up) {
            (Finished::All, None) => return Ok(()),
            (Finished::All, Some((id, fault))) if self.is_replayed() => {
                let cause = format!("some prompts were not asked in that run, the first is `{id}`: {fault}");
                return Err(Failure::new(Exit::BadData, cause)
                    .code("not-recorded")
                    .at(self.source.place(&["teacher", "path"]))
                    .fix("replay with the prompts, samples, seed and sampling of that run; its `recipe.toml` has them"));
            }
            (Finished::All, Some((id, fault))) => {
                let cause = format!("some prompts have no reply, the first is `{id}`: {fault}");
                Failure::new(Exit::TryLater, cause).code("no-reply").fix(match self.is_asked_by_file() {
                    true => {
                        "raise `teacher.max_attempts` and run the same command again: only those are asked"
                    }
                    false => {
                        "run the same command again: only those are asked; or raise `teacher.max_attempts`"
                    }
                })
            }
            (Finished::Stopped(Stop::Budget(what)), _) => {
                let key = match *what {
                    "money" => "budget_usd",
                    "tokens" => "budget_tokens",
                    _ => "budget_s",
                };
                Failure::new(Exit::TryLater, format!("the budget of {what} is used up"))
                    .code("budget")
                    .at(self.source.place(&["teacher", key]))
                    .fix(format!("raise `teacher.{key}` and run the same command again"))
            }
            (Finished::Stopped(Stop::NobodyThere { fault }), _) => {
                Failure::new(Exit::TryLater, format!("no endpoint answers: {fault}"))
                    .code("nobody-there")
                    .at(self.source.place(&["teacher", "endpoints"]))
                    .fix(
                        "check that the server runs and `base_url` is right, then run the same command again",
                    )
            }
            (Finished::Stopped(Stop::Hopeless { fault }), _) => {
                refuses(self.source.place(&["teacher", "endpoints"]), fault.clone())
            }
            (Finished::Stopped(Stop::Closed), _) => {
                Failure::new(Exit::Failed, "the session with the teacher was closed")
            }
        };
        let failure = failure.detail(spent);
        Err(left_out.iter().fold(failure, |failure, left_out| failure.detail(left_out_in_words(left_out))))
    }
}

pub(super) fn left_out_in_words(LeftOut { endpoint, fault, .. }: &LeftOut) -> String {
    format!("`{endpoint}` is asked no more, and the other endpoints are: {fault}")
}

/// What no request gets past.
fn refuses(place: String, cause: String) -> Failure {
    Failure::new(Exit::Failed, cause)
        .code("teacher-refuses")
        .at(place)
        .fix("check `api_key`, `base_url` and the model's name; every request would be refused like this")
}

/// Shows how far a session is, not more often than can be read.
struct Shown<'a> {
    progress: &'a mut Progress,
    stage: &'static str,
    of: u64,
    last: Instant,
}

impl<'a> Shown<'a> {
    fn new(progress: &'a mut Progress, stage: &'static str, of: u64) -> Shown<'a> {
        Shown { progress, stage, of, last: Instant::now() }
    }

    fn counts(&mut self, counts: Counts) {
        if self.last.elapsed() < SHOW_EVERY && counts.answers < self.of {
            return;
        }
        self.last = Instant::now();
        let Counts { answers, kept, failed_calls, usd, .. } = counts;
        self.progress.update(&format!(
            "{}: {answers} of {} replies, {kept} of them kept from before, {failed_calls} failed calls, ${usd:.4}",
            self.stage, self.of
        ));
    }
}

/// Answers in their order become parts of traces.
struct TraceParts<'a> {
    store: PartStore,
    wording: &'a Wording,
    /// Told of each part that is written.
    logbook: Option<Logbook>,
    number: u32,
    /// Asked in this part, answered or not.
    asked: usize,
    traces: Vec<Trace>,
    rows: u64,
    unanswered: Vec<Unanswered>,
    /// The first of those that were tried too often; nothing is written from there on.
    given_up: Option<(String, String)>,
}

impl<'a> TraceParts<'a> {
    fn open(store: PartStore, wording: &'a Wording, logbook: Option<Logbook>) -> TraceParts<'a> {
        TraceParts {
            store,
            wording,
            logbook,
            number: 0,
            asked: 0,
            traces: Vec::new(),
            rows: 0,
            unanswered: Vec::new(),
            given_up: None,
        }
    }

    fn take(&mut self, ask: Ask, answer: Answer) -> Result<()> {
        // All samples of a prompt are in one part: curation looks at them together.
        if self.asked >= ROWS_PER_PART && ask.sample == 0 && self.given_up.is_none() {
            self.write()?;
        }
        match answer {
            _ if self.given_up.is_some() => {}
            Answer::Reply(receipt) => self.traces.push(self.wording.trace(ask, &receipt)),
            Answer::Refused { fault } => {
                self.unanswered.push(Unanswered { id: ask.id, sample: ask.sample, fault });
            }
            Answer::GivenUp { fault } => self.given_up = Some((ask.id, fault)),
        }
        self.asked += 1;
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        let mut bytes = Vec::new();
        parquet_rows::write_traces(&mut bytes, &self.traces)?;
        let is_there = self.store.contains(self.number) && self.store.read(self.number)? == bytes;
        if !is_there {
            self.store.put(self.number, &bytes)?;
        }
        if let Some(book) = &self.logbook {
            book.tell_traces(self.rows, &self.traces)?;
        }
        self.rows += self.traces.len() as u64;
        self.number += 1;
        self.asked = 0;
        self.traces.clear();
        Ok(())
    }

    /// Rows, and what has none.
    fn close(mut self) -> Result<(u64, Vec<Unanswered>)> {
        if self.asked > 0 {
            self.write()?;
        }
        self.store.seal(self.number)?;
        Ok((self.rows, self.unanswered))
    }
}

fn summary(rows: u64, unanswered: u64, Outcome { totals, left_out, .. }: &Outcome) -> Value {
    json!({
        "rows": rows,
        "calls": totals.calls,
        "failed_calls": totals.failed,
        "refused_calls": totals.refused,
        "unknown_calls": totals.unknown,
        "unanswered": unanswered,
        "usd": totals.usd,
        "estimated_usd": totals.estimated_usd,
        "prompt_tokens": totals.prompt_tokens,
        "completion_tokens": totals.completion_tokens,
        "endpoints_left_out": left_out,
    })
}

fn sampling(teacher: &Teacher) -> Sampling {
    let wire = teacher.wire.as_ref().expect("a teacher behind endpoints");
    Sampling {
        max_tokens: teacher.max_tokens,
        temperature: teacher.temperature,
        top_p: teacher.top_p,
        send_seed: wire.send_seed,
        top_logprobs: wire.top_logprobs,
        return_token_ids: wire.return_token_ids,
        extra: wire.extra_body.clone(),
    }
}

pub(super) fn greedy(teacher: &Teacher, max_tokens: usize) -> Sampling {
    Sampling { max_tokens, temperature: 0.0, top_p: 1.0, ..sampling(teacher) }
}

fn price(wire: &Wire) -> Price {
    let paid = wire.paid();
    Price {
        input_usd_per_mtok: paid.input_usd_per_mtok,
        output_usd_per_mtok: paid.output_usd_per_mtok,
        cached_input_usd_per_mtok: paid.cached_input_usd_per_mtok,
    }
}

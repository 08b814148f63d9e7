//! A teacher behind endpoints that says how likely the student's own tokens are. Its calls go through the ledger, so that
//! whoever asks again is told the same, for nothing.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stillroom_core::{Digest, ErrorKind, ScoreError, ScoredText, Scorer};
use stillroom_corpus::Split;
use stillroom_net::Client;
use stillroom_store::{Ledger, LedgerReader, Totals};
use stillroom_teacher::{
    Answer, Ask, Event, Finished, LeftOut, Receipt, Sampling, Scoring, Teacher, Unscored,
};

use super::logbook::Logbook;
use super::wire::{LEDGER, Outcome, greedy, left_out_in_words};
use super::{Flow, digest_of, gate, own_text};
use crate::failure::{Exit, Failure, Result};
use crate::recipe::{PromptPii, Scores};

/// What is scored in training is counted under its stage.
pub(super) const TRAINING: &str = "train";

/// Asks endpoints, or the ledger of a run that is replayed.
pub(super) struct EndpointScorer {
    /// Without the endpoints that were left out.
    session: RefCell<Teacher>,
    left_out: RefCell<Vec<LeftOut>>,
    how: Scoring,
    records: Records,
    /// Told of each call.
    logbook: Option<Logbook>,
    identity: Digest,
    /// Time that asking has taken, for a budget of time.
    asked_for: Cell<Duration>,
    silence: RefCell<Option<Silence>>,
}

enum Records {
    /// This run's ledger, with what an unknown call may have cost; and what speaks to the endpoints.
    Own {
        path: PathBuf,
        unknown_usd: f64,
        client: Client,
    },
    Replayed(LedgerReader),
}

/// What a session came to that did not answer everything.
struct Unfinished {
    outcome: Outcome,
    given_up: Option<(String, String)>,
}

/// Why texts have no log-probabilities.
enum Silence {
    Unfinished(Box<Unfinished>),
    Refused { id: String, fault: String },
    Failed(Failure),
}

impl From<Failure> for Silence {
    fn from(failure: Failure) -> Silence {
        Silence::Failed(failure)
    }
}

impl From<stillroom_teacher::TeacherError> for Silence {
    fn from(error: stillroom_teacher::TeacherError) -> Silence {
        Silence::Failed(error.into())
    }
}

impl std::fmt::Debug for EndpointScorer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EndpointScorer").field("model", &self.session.borrow().model).finish_non_exhaustive()
    }
}

impl Scorer for EndpointScorer {
    fn score(&self, texts: &[ScoredText<'_>]) -> std::result::Result<Vec<Vec<f32>>, ScoreError> {
        self.ask(texts).map_err(|silence| {
            *self.silence.borrow_mut() = Some(silence);
            let cause = "the teacher did not say how likely the student's text is".to_owned();
            ScoreError { kind: ErrorKind::TryLater, cause, fix: None }
        })
    }

    fn identity(&self) -> Digest {
        self.identity
    }
}

impl EndpointScorer {
    /// A text that occurs twice is asked once.
    fn ask(&self, texts: &[ScoredText<'_>]) -> std::result::Result<Vec<Vec<f32>>, Silence> {
        let (mut known, mut different) = (HashMap::new(), Vec::new());
        let places: Vec<usize> = texts
            .iter()
            .map(|&text| {
                *known.entry(text).or_insert_with(|| {
                    different.push(text);
                    different.len() - 1
                })
            })
            .collect();
        let started = Instant::now();
        let answers = self.ask_each(&different);
        self.asked_for.set(self.asked_for.get() + started.elapsed());
        let answers = answers?;
        Ok(places.into_iter().map(|place| answers[place].clone()).collect())
    }

    fn ask_each(&self, texts: &[ScoredText<'_>]) -> std::result::Result<Vec<Vec<f32>>, Silence> {
        let mut asks = texts.iter().map(|text| {
            let unscored = Unscored { ids: text.ids.to_vec(), n_prompt: text.n_prompt, how: self.how };
            Ok(Ask::score(text.id.to_owned(), unscored))
        });
        let (mut answers, mut given_up) = (Vec::with_capacity(texts.len()), None);
        let mut deliver = |ask: Ask, answer: Answer| match answer {
            Answer::Reply(receipt) => {
                answers.push(logprobs_of(&texts[answers.len()], &receipt)?);
                Ok(())
            }
            Answer::Refused { fault } => Err(Silence::Refused { id: ask.id, fault }),
            Answer::GivenUp { fault } => {
                given_up.get_or_insert((ask.id, fault));
                // In its place, until all that can be bought is bought.
                answers.push(Vec::new());
                Ok(())
            }
        };
        let finished = match &self.records {
            Records::Replayed(ledger) => {
                self.session
                    .borrow()
                    .replay(ledger, &mut asks, &mut |ask, answer, _| deliver(ask, answer))?;
                Finished::All
            }
            Records::Own { path, unknown_usd, client } => {
                let ledger = Ledger::open(path, *unknown_usd).map_err(Failure::from)?;
                let mut session = self.session.borrow().clone();
                let left = |seconds: f64| (seconds - self.asked_for.get().as_secs_f64()).max(0.0);
                session.budget.seconds = session.budget.seconds.map(left);
                let mut deliver = |ask, answer, _| deliver(ask, answer);
                let mut gone = Vec::new();
                let mut heard = |event| match event {
                    Event::Ended(call) => {
                        self.logbook.as_ref().map_or(Ok(()), |book| Ok(book.tell_call(&call)?))
                    }
                    Event::LeftOut(endpoint) => {
                        gone.push(endpoint.index);
                        self.left_out.borrow_mut().push(endpoint);
                        Ok(())
                    }
                };
                let finished = session.answer_all_by(client, &ledger, &mut asks, &mut deliver, &mut heard);
                let mut places = 0..;
                self.session
                    .borrow_mut()
                    .endpoints
                    .retain(|_| places.next().is_some_and(|i| !gone.contains(&i)));
                finished?
            }
        };
        if finished == Finished::All && given_up.is_none() {
            return Ok(answers);
        }
        let totals = match &self.records {
            Records::Replayed(_) => Totals::default(),
            Records::Own { path, .. } => {
                let ledger = LedgerReader::open(path).map_err(Failure::from)?;
                ledger.totals(Some(self.session.borrow().stage)).map_err(Failure::from)?
            }
        };
        let outcome = Outcome { finished, totals, left_out: Vec::new() };
        Err(Silence::Unfinished(Box::new(Unfinished { outcome, given_up })))
    }
}

fn logprobs_of(text: &ScoredText<'_>, receipt: &Receipt) -> Result<Vec<f32>> {
    let wanted = text.ids.len() - text.n_prompt;
    if receipt.logprobs.len() == wanted {
        return Ok(receipt.logprobs.iter().map(|&logprob| logprob as f32).collect());
    }
    let found = receipt.logprobs.len();
    let cause = format!("`{LEDGER}` has {found} log-probabilities for {wanted} tokens behind `{}`", text.id);
    Err(Failure::new(Exit::BadData, cause).fix("check it with `PRAGMA integrity_check`"))
}

impl Flow {
    /// Whether a teacher behind endpoints says how likely the student's own tokens are.
    pub(super) fn is_scored(&self) -> bool {
        self.recipe.is_scored()
    }

    /// What log-probabilities depend on besides texts: who is asked, and how. Prompts may have gone out redacted.
    pub(super) fn scoring_identity(&self) -> Result<Value> {
        let scores = self.recipe.teacher.as_ref().and_then(|teacher| teacher.scores.as_ref());
        let redacted = self.prompt_pii() == PromptPii::Redact;
        Ok(json!([self.teacher_digest()?, scores.map(|scores| scores.scoring), redacted]))
    }

    /// Whoever says how likely the texts are that follow prompts of these parts; the calls are counted under `stage`.
    pub(super) fn scorer(&mut self, stage: &'static str, splits: &[Split]) -> Result<EndpointScorer> {
        let teacher = self.recipe.teacher.clone().expect("somebody scores");
        let Some(Scores { scoring, .. }) = teacher.scores else {
            unreachable!("a recipe whose teacher does not score has no such loss")
        };
        for &split in splits {
            self.check_own_text_pii(split)?;
        }
        let wire = teacher.wire.as_ref().expect("a teacher behind endpoints");
        let sampling = Sampling { top_logprobs: None, return_token_ids: false, ..greedy(&teacher, 1) };
        let session = self.session(&teacher, stage, &sampling)?;
        let records = match wire.replay.as_deref() {
            Some(replayed) => Records::Replayed(self.replayed_ledger(replayed)?),
            None => {
                // What a kill left open is told of here, once, and what is waited for.
                let ledger = self.ledger(&teacher)?;
                self.tell_held(&session, &ledger)?;
                drop(ledger);
                let cleared = gate::clear(&self.recipe, &self.source, &self.decision)?;
                let (path, client) = (self.run.path(LEDGER)?, session.client(cleared));
                Records::Own { path, unknown_usd: session.price.of(0, 0, 1), client }
            }
        };
        let identity = digest_of(&self.scoring_identity()?);
        Ok(EndpointScorer {
            session: session.into(),
            left_out: RefCell::default(),
            how: scoring,
            records,
            logbook: self.logbook.clone(),
            identity,
            asked_for: Cell::default(),
            silence: RefCell::default(),
        })
    }

    /// What the student continues goes out with what it writes.
    fn check_own_text_pii(&self, split: Split) -> Result<()> {
        if !self.learns_text() {
            return self.check_pii(self.prompt_rows(split)?).map(drop);
        }
        if self.prompt_pii() == PromptPii::Allow {
            return Ok(());
        }
        let cause = "beginnings of texts would leave this machine, and are not searched for personal data";
        Err(Failure::new(Exit::Policy, cause)
            .code("prompt-pii")
            .at(self.source.place(&["policy", "prompt_pii"]))
            .fix("write `prompt_pii = \"allow\"` under `[policy]` if they may be sent"))
    }

    /// Says which endpoints refused a scorer while others went on.
    pub(super) fn tell_left_out(&mut self, scorer: &EndpointScorer) -> Result<()> {
        let (left_out, stage) = (scorer.left_out.take(), scorer.session.borrow().stage);
        for left_out in &left_out {
            self.progress.line(&format!("{stage}: {}", left_out_in_words(left_out)));
        }
        self.record_left_out(stage, &left_out)
    }

    /// Why a scorer fell silent, in the place of what it told whoever asked.
    pub(super) fn why_silent(&self, scorer: &EndpointScorer) -> Option<Failure> {
        Some(match scorer.silence.take()? {
            Silence::Failed(failure) => failure,
            Silence::Unfinished(unfinished) => {
                let Unfinished { outcome, given_up } = *unfinished;
                self.check_finished(&outcome, given_up.as_ref()).err()?
            }
            Silence::Refused { id, fault } => {
                let cause =
                    format!("the teacher does not read what the student wrote behind `{id}`: {fault}");
                Failure::new(Exit::Failed, cause)
                    .code("teacher-refuses")
                    .at(self.source.place(&["teacher", "scoring"]))
                    .fix("prompt and text and one token more must fit its context: lower `train.max_new_tokens`; docs/on-policy.md")
            }
        })
    }

    /// What all that was scored has cost.
    pub(super) fn scoring_usd(&self) -> Result<f64> {
        let path = self.run.path(LEDGER)?;
        if !path.is_file() {
            return Ok(0.0);
        }
        let (ledger, mut usd) = (LedgerReader::open(&path)?, 0.0);
        for stage in [TRAINING, own_text::STAGE] {
            usd += ledger.totals(Some(stage))?.usd;
        }
        Ok(usd)
    }
}

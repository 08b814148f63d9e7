//! What a teacher behind endpoints takes: money, and time at a pace that nobody has measured yet.

use super::estimate::{Sizes, StageEstimate, asked, scored};
use crate::recipe::{Recipe, Wire};

/// Tokens that one request receives in a second: what hosted services give, and what a plan can be wrong about.
const TOKENS_PER_SECOND: f64 = 50.0;
/// Memory of a session: its threads, and the answers that wait for one before them.
const SESSION_BYTES: u64 = 128 << 20;
/// Bytes of the ledger and of traces for a token of a reply, both together.
const BYTES_PER_TOKEN: f64 = 12.0;
/// Within which a job is done.
const JOB_S: f64 = 86_400.0;

pub(super) struct OverWire<'a> {
    wire: &'a Wire,
    /// Replies that are asked for, to learn from and to measure the teacher by.
    asked: f64,
    measured: f64,
    /// Texts of the student's own that it reads, and their tokens, prompts included.
    scored: (f64, f64),
    prompt_tokens: f64,
    reply_tokens: f64,
    in_flight: f64,
}

impl OverWire<'_> {
    /// Nothing for a teacher on this machine.
    pub(super) fn of<'a>(recipe: &'a Recipe, sizes: &Sizes) -> Option<OverWire<'a>> {
        let wire = recipe.wire()?;
        Some(OverWire {
            wire,
            asked: if recipe.asks_for_traces() { asked(recipe, sizes) } else { 0.0 },
            scored: if recipe.is_scored() { scored(recipe, sizes) } else { (0.0, 0.0) },
            measured: sizes.held_out_items,
            prompt_tokens: sizes.prompt_tokens,
            reply_tokens: sizes.reply_tokens,
            in_flight: wire.endpoints.iter().map(|endpoint| endpoint.max_in_flight).sum::<usize>().max(1)
                as f64,
        })
    }

    pub(super) fn stages(&self) -> Vec<StageEstimate> {
        let of = |stage, replies: f64| StageEstimate {
            stage,
            tokens: replies * (self.prompt_tokens + self.reply_tokens),
            wall_s: match &self.wire.batch {
                Some(_) if self.wire.is_by_hand() => 0.0,
                Some(_) => JOB_S,
                None => {
                    replies * self.reply_tokens / TOKENS_PER_SECOND / self.in_flight.min(replies.max(1.0))
                }
            },
            peak_memory_bytes: SESSION_BYTES,
        };
        let measured = (self.measured > 0.0).then(|| of("measure-teacher", self.measured));
        let teach = (self.asked > 0.0).then(|| of("teach", self.asked));
        let (texts, tokens) = self.scored;
        let scoring = (texts > 0.0).then(|| StageEstimate {
            stage: "scoring",
            tokens,
            wall_s: texts / TOKENS_PER_SECOND / self.in_flight.min(texts.max(1.0)),
            peak_memory_bytes: SESSION_BYTES,
        });
        teach.into_iter().chain(measured).chain(scoring).collect()
    }

    fn usd_per_request(&self) -> f64 {
        let price = &self.wire.paid();
        (self.prompt_tokens * price.input_usd_per_mtok + self.reply_tokens * price.output_usd_per_mtok) / 1e6
    }

    pub(super) fn usd(&self) -> f64 {
        let (texts, tokens) = self.scored;
        let price = &self.wire.paid();
        let scoring = (tokens * price.input_usd_per_mtok + texts * price.output_usd_per_mtok) / 1e6;
        (self.asked + self.measured) * self.usd_per_request() + scoring
    }

    /// Requests for which the teacher would cost what making the student costs.
    pub(super) fn break_even_requests(&self) -> Option<u64> {
        (self.usd_per_request() > 0.0).then(|| (self.usd() / self.usd_per_request()).round() as u64)
    }

    pub(super) fn disk_bytes(&self) -> u64 {
        let replies = (self.asked + self.measured) * (self.prompt_tokens + self.reply_tokens);
        ((replies + self.scored.1) * BYTES_PER_TOKEN) as u64
    }

    pub(super) fn assumptions(&self) -> Vec<String> {
        let pace = format!(
            "the teacher writes {TOKENS_PER_SECOND:.0} tokens a second for each of {:.0} requests at once; its pace is not \
             known before it is asked",
            self.in_flight
        );
        let mut assumes = vec![match &self.wire.batch {
            Some(_) if self.wire.is_by_hand() => {
                "files that are answered at once: how long you carry them is not known".to_owned()
            }
            Some(_) => "jobs that take their whole window of 24 hours; most are done sooner".to_owned(),
            None => pace,
        }];
        let price = &self.wire.paid();
        assumes.push(if self.usd_per_request() > 0.0 {
            format!(
                "${} per million tokens read and ${} written, no faults, and a student that costs nothing to run: then it \
                 has paid for itself after as many requests as its teacher was asked",
                price.input_usd_per_mtok, price.output_usd_per_mtok
            )
        } else {
            "a teacher that costs nothing, since `teacher.price` is not given".to_owned()
        });
        if let Some(seconds) = self.wire.hedge_after_s {
            assumes.push(format!(
                "no request on its way for longer than {seconds} s; each of those is sent to another endpoint as well, and if \
                 all were, they would cost ${:.2} more",
                self.usd()
            ));
        }
        if self.scored.0 > 0.0 {
            assumes.push(
                "texts of the student's own as long as its teacher's replies, each read in the time of one written token"
                    .to_owned(),
            );
        }
        assumes
    }
}

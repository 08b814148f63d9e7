//! Which documents each optimiser step sees.

use serde::{Deserialize, Serialize};
use stillroom_core::CounterRng;

use crate::packing::first_fit;
use crate::{DistillError, Example, Overlong, Result, TrainConfig};

/// Examples that one run accepts at most.
const EXAMPLES_MAX: usize = u32::MAX as usize;

/// How much training a configuration means.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainPlan {
    /// Optimiser steps.
    pub steps: u64,
    /// Examples that are used; prompts where no text is given.
    pub examples: u64,
    /// Tokens of one pass, masked ones included. This and the following, but for the steps, are 0 where no text is
    /// given.
    pub tokens_per_epoch: u64,
    pub supervised_tokens_per_epoch: u64,
    /// Packed rows and optimiser steps of the first pass.
    pub rows_first_epoch: u64,
    pub steps_first_epoch: u64,
    /// Share of the first pass's rows that holds tokens.
    pub fill: f64,
    /// Documents that were cut to `max_length`.
    pub truncated: u64,
    /// Documents left out because no supervised token came before the cut.
    pub dropped: u64,
}

/// An example as far as it is used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Document<'a> {
    pub(crate) example: &'a Example,
    /// Tokens used, of both documents of a pair.
    pub(crate) length: usize,
    /// Supervised ones among them.
    pub(crate) n_supervised: usize,
}

/// Documents that fit, and how many were cut or left out.
pub(crate) struct Documents<'a> {
    pub(crate) all: Vec<Document<'a>>,
    pub(crate) truncated: u64,
    pub(crate) dropped: u64,
}

impl<'a> Documents<'a> {
    /// Cuts or refuses what is longer than `n_tokens_max`.
    pub(crate) fn fit(
        examples: &'a [Example],
        n_tokens_max: usize,
        overlong: Overlong,
    ) -> Result<Documents<'a>> {
        let mut documents = Documents { all: Vec::with_capacity(examples.len()), truncated: 0, dropped: 0 };
        if examples.len() > EXAMPLES_MAX {
            let n = examples.len();
            return Err(DistillError::example(&examples[0].id, format!("one of {n} examples, too many")));
        }
        for example in examples {
            let n_tokens = example.n_tokens();
            let length = n_tokens.min(n_tokens_max);
            if length < n_tokens && overlong == Overlong::Refuse {
                let (id, max_length) = (example.id.clone(), n_tokens_max);
                return Err(DistillError::TooLong { id, n_tokens, max_length });
            }
            if let Some(rejected) = &example.rejected {
                // A reply without its end is not what was preferred.
                if length < n_tokens {
                    documents.dropped += 1;
                    continue;
                }
                let n_supervised = example.n_supervised() + rejected.n_supervised();
                documents.all.push(Document { example, length, n_supervised });
                continue;
            }
            let n_supervised = example.supervised[..length].iter().filter(|&&s| s).count();
            if n_supervised == 0 {
                documents.dropped += 1;
                continue;
            }
            documents.truncated += u64::from(length < n_tokens);
            documents.all.push(Document { example, length, n_supervised });
        }
        Ok(documents)
    }
}

/// The order of documents, epoch by epoch: shuffled by `CounterRng(seed, epoch)`, packed first-fit into rows
/// of `max_length`, rows taken in order. The last step of an epoch may have fewer rows.
pub(crate) struct Feed<'a> {
    documents: Vec<Document<'a>>,
    config: &'a TrainConfig,
    /// `starts[e]` is the number of steps before epoch e, for every epoch looked at so far.
    starts: Vec<u64>,
    epoch: usize,
    rows: Vec<Vec<u32>>,
}

/// The documents of one optimiser step.
pub(crate) struct StepRows<'f> {
    rows: &'f [Vec<u32>],
    rows_per_batch: usize,
    /// Passes over the examples when this step is done.
    pub(crate) epoch: f64,
}

impl<'f> StepRows<'f> {
    /// Rows of each micro-batch, in order.
    pub(crate) fn micro_batches(&self) -> impl Iterator<Item = &'f [Vec<u32>]> + use<'f> {
        self.rows.chunks(self.rows_per_batch)
    }
}

impl<'a> Feed<'a> {
    /// # Panics
    /// Without documents.
    pub(crate) fn new(documents: Vec<Document<'a>>, config: &'a TrainConfig) -> Feed<'a> {
        assert!(!documents.is_empty(), "a feed needs documents");
        let mut feed = Feed { documents, config, starts: vec![0], epoch: 0, rows: Vec::new() };
        feed.enter(0);
        feed
    }

    pub(crate) fn documents(&self) -> &[Document<'a>] {
        &self.documents
    }

    /// The plan of the whole run; `truncated` and `dropped` are those of [`Documents`].
    pub(crate) fn plan(&mut self, truncated: u64, dropped: u64) -> TrainPlan {
        let steps = self.n_steps();
        self.enter(0);
        let tokens: usize = self.documents.iter().map(|d| d.length).sum();
        let supervised: usize = self.documents.iter().map(|d| d.n_supervised).sum();
        TrainPlan {
            steps,
            examples: self.documents.len() as u64,
            tokens_per_epoch: tokens as u64,
            supervised_tokens_per_epoch: supervised as u64,
            rows_first_epoch: self.rows.len() as u64,
            steps_first_epoch: self.steps_of_epoch(),
            fill: tokens as f64 / (self.rows.len() as f64 * self.config.max_length as f64),
            truncated,
            dropped,
        }
    }

    /// Optimiser steps of the run: `max_steps`, or all steps of the whole epochs and the asked-for share,
    /// rounded up, of the last one.
    fn n_steps(&mut self) -> u64 {
        if let Some(steps) = self.config.max_steps {
            return steps;
        }
        let whole = self.config.num_train_epochs.floor();
        let share = self.config.num_train_epochs - whole;
        let whole = whole as usize;
        self.enter(whole);
        let last = (share * self.steps_of_epoch() as f64).ceil() as u64;
        self.starts[whole] + last
    }

    /// Documents of step `step`, from 1.
    pub(crate) fn step(&mut self, step: u64) -> StepRows<'_> {
        let before = step - 1;
        let known = self.starts.partition_point(|&start| start <= before) - 1;
        self.enter(known);
        while before >= self.starts[self.epoch] + self.steps_of_epoch() {
            self.enter(self.epoch + 1);
        }
        let within = before - self.starts[self.epoch];
        let per_step = self.rows_per_step();
        let from = within as usize * per_step;
        let to = (from + per_step).min(self.rows.len());
        StepRows {
            rows: &self.rows[from..to],
            rows_per_batch: self.config.per_device_train_batch_size,
            epoch: self.epoch as f64 + (within + 1) as f64 / self.steps_of_epoch() as f64,
        }
    }

    /// Packs `epoch`, and every one on the way to it that was never looked at.
    fn enter(&mut self, epoch: usize) {
        if epoch == self.epoch && !self.rows.is_empty() {
            return;
        }
        let first = epoch.min(self.starts.len() - 1);
        for e in first..=epoch {
            self.rows = self.pack(e as u64);
            self.epoch = e;
            if self.starts.len() == e + 1 {
                self.starts.push(self.starts[e] + self.steps_of_epoch());
            }
        }
    }

    fn pack(&self, epoch: u64) -> Vec<Vec<u32>> {
        let mut order: Vec<u32> = (0..self.documents.len() as u32).collect();
        CounterRng::new(&[self.config.seed, epoch]).shuffle(&mut order);
        pack_rows(&self.documents, &order, self.config)
    }

    fn rows_per_step(&self) -> usize {
        self.config.per_device_train_batch_size * self.config.gradient_accumulation_steps
    }

    /// Steps of the epoch in hand.
    fn steps_of_epoch(&self) -> u64 {
        self.rows.len().div_ceil(self.rows_per_step()) as u64
    }
}

/// Rows of `documents`, taken in `order`.
pub(crate) fn pack_rows(documents: &[Document<'_>], order: &[u32], config: &TrainConfig) -> Vec<Vec<u32>> {
    if config.packing {
        first_fit(order.iter().map(|&i| (i, documents[i as usize].length)), config.max_length)
    } else {
        order.iter().map(|&i| vec![i]).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn examples(lengths: &[usize]) -> Vec<Example> {
        let make = |(i, &n): (usize, &usize)| Example::from_text_ids(i.to_string(), vec![1; n]).unwrap();
        lengths.iter().enumerate().map(make).collect()
    }

    fn config(batch: usize, accumulation: usize, epochs: f64) -> TrainConfig {
        TrainConfig {
            per_device_train_batch_size: batch,
            gradient_accumulation_steps: accumulation,
            num_train_epochs: epochs,
            max_length: 16,
            ..TrainConfig::default()
        }
    }

    fn rows(feed: &mut Feed<'_>, step: u64) -> Vec<Vec<u32>> {
        feed.step(step).micro_batches().flatten().cloned().collect()
    }

    #[test]
    fn an_epoch_sees_every_document_once_in_an_order_of_its_own() {
        let examples = examples(&[5, 9, 16, 3, 2, 7, 8, 4, 11, 6]);
        let config = config(2, 1, 2.0);
        let fit = Documents::fit(&examples, 16, Overlong::Refuse).unwrap();
        let mut feed = Feed::new(fit.all, &config);
        let plan = feed.plan(0, 0);
        assert_eq!(plan.tokens_per_epoch, 71);
        let order = |feed: &mut Feed<'_>, steps: std::ops::RangeInclusive<u64>| -> Vec<u32> {
            steps.flat_map(|s| rows(feed, s)).flatten().collect()
        };
        let first = order(&mut feed, 1..=plan.steps_first_epoch);
        let second = order(&mut feed, plan.steps_first_epoch + 1..=plan.steps);
        assert_ne!(first, second);
        for mut seen in [first, second] {
            seen.sort_unstable();
            assert_eq!(seen, (0..10).collect::<Vec<u32>>());
        }
        assert_eq!(feed.step(plan.steps).epoch, 2.0);
    }

    #[test]
    fn fractions_and_step_counts_mean_what_they_say() {
        let examples = examples(&[16; 10]);
        let fit = |config: &TrainConfig| {
            let fit = Documents::fit(&examples, 16, Overlong::Refuse).unwrap();
            Feed::new(fit.all, config).plan(0, 0).steps
        };
        assert_eq!(fit(&config(2, 1, 1.0)), 5);
        assert_eq!(fit(&config(4, 1, 1.0)), 3);
        assert_eq!(fit(&config(2, 2, 2.0)), 6);
        assert_eq!(fit(&config(1, 1, 0.25)), 3);
        assert_eq!(fit(&config(1, 1, 2.5)), 25);
        assert_eq!(fit(&TrainConfig { max_steps: Some(77), ..config(1, 1, 2.5) }), 77);
    }

    #[test]
    fn long_documents_are_refused_or_cut_and_counted() {
        let mut long = examples(&[5, 20, 16]);
        long.push(Example::new("late", vec![1; 18], (0..18).map(|t| t == 17).collect(), None).unwrap());
        let refused = Documents::fit(&long, 16, Overlong::Refuse);
        assert!(matches!(refused, Err(DistillError::TooLong { n_tokens: 20, max_length: 16, .. })));
        let cut = Documents::fit(&long, 16, Overlong::Truncate).unwrap();
        assert_eq!((cut.truncated, cut.dropped, cut.all.len()), (1, 1, 3));
        assert_eq!((cut.all[1].length, cut.all[1].n_supervised), (16, 15));
    }

    proptest! {
        #[test]
        fn any_step_can_be_found_without_those_before_it(
            lengths in proptest::collection::vec(2usize..=16, 1..40),
            batch in 1usize..4,
            seed in any::<u64>(),
        ) {
            let examples = examples(&lengths);
            let config = TrainConfig { seed, max_steps: Some(40), ..config(batch, 2, 1.0) };
            let documents = Documents::fit(&examples, 16, Overlong::Refuse).unwrap().all;
            let mut straight = Feed::new(documents.clone(), &config);
            let all: Vec<_> = (1..=40).map(|step| rows(&mut straight, step)).collect();
            for step in [40, 7, 23, 1] {
                let mut feed = Feed::new(documents.clone(), &config);
                prop_assert_eq!(&rows(&mut feed, step), &all[step as usize - 1]);
                prop_assert_eq!(&rows(&mut straight, step), &all[step as usize - 1]);
            }
            prop_assert!(all.iter().all(|rows| !rows.is_empty() && rows.len() <= 2 * batch));
        }
    }
}

//! The most memory that each stage of a recipe takes, from what it holds at once.

use stillroom_formats::{DecoderConfig, ModelFiles};
use stillroom_model::WeightStorage;
use stillroom_model::memory::{
    generation_bytes, hidden_alignment_bytes, importance_bytes, live_teachers_bytes, mixed_scoring_bytes,
    scoring_bytes, training_bytes,
};

use super::estimate::Sizes;
use super::{divergence, measure, teach};
use crate::failure::Result;
use crate::footprint::{PROGRAM_BYTES, Stored};
use crate::recipe::{Logits, Lora, Recipe, Student};

/// Of a text's token: its id and mask, and its share of the strings that it stands in.
const BYTES_PER_TOKEN: f64 = 24.0;
/// Of a position's distribution: the row itself, and what two allocations take besides their numbers.
const BYTES_PER_ROW: f64 = 56.0 + 2.0 * 16.0;
/// Of an id and its weight in a distribution.
const BYTES_PER_KEPT_ID: f64 = 8.0;

/// What the stages of a recipe hold.
pub(super) struct Stages<'a> {
    recipe: &'a Recipe,
    sizes: &'a Sizes,
    teacher: Option<(&'a DecoderConfig, Stored)>,
    /// Teachers that it is mixed with.
    further: Vec<(&'a DecoderConfig, Stored)>,
    student: &'a DecoderConfig,
    /// Where the student's weights are read from, and their bytes in the file.
    base: Option<(&'a DecoderConfig, u64)>,
}

impl<'a> Stages<'a> {
    pub(super) fn of(
        recipe: &'a Recipe,
        sizes: &'a Sizes,
        teacher: Option<&'a ModelFiles>,
        further: &'a [ModelFiles],
        student: &'a DecoderConfig,
        base: Option<&'a ModelFiles>,
    ) -> Result<Stages<'a>> {
        let teacher = match teacher {
            Some(files) => Some((&files.config, Stored::of(&files.config, files.tensors.as_ref())?)),
            None => None,
        };
        let base = match base {
            Some(files) => Some((&files.config, Stored::of(&files.config, files.tensors.as_ref())?.in_file)),
            None => None,
        };
        let stored = |files: &'a ModelFiles| -> Result<_> {
            Ok((&files.config, Stored::of(&files.config, files.tensors.as_ref())?))
        };
        let further = further.iter().map(stored).collect::<Result<_>>()?;
        Ok(Stages { recipe, sizes, teacher, further, student, base })
    }

    /// The teacher writes.
    pub(super) fn teach(&self) -> u64 {
        let (Some(asked), Some((config, stored))) = (&self.recipe.teacher, self.teacher) else {
            return PROGRAM_BYTES;
        };
        let requests = teach::PROMPTS_PER_PART * asked.samples_per_prompt as usize;
        let in_flight = asked.max_in_flight.min(requests);
        let writing = |config| self.writing(config, in_flight, asked.max_tokens);
        let further = self.further.iter().map(|(config, stored)| stored.with(writing(config))).sum::<u64>();
        PROGRAM_BYTES + self.texts() + stored.with(writing(config)) + further
    }

    /// The teacher reads what the student learns from.
    pub(super) fn logits(&self) -> u64 {
        let most = self.teacher.map_or(0, |(_, stored)| stored.with(self.teachers_reading()));
        PROGRAM_BYTES + self.texts() + most + self.further_held()
    }

    /// The base reads some of what the student learns from, then part of it is copied.
    pub(super) fn pruning(&self) -> u64 {
        let (Student::Pruned(pruned), Some((base, in_file))) = (&self.recipe.student, self.base) else {
            return PROGRAM_BYTES;
        };
        let tokens = self.documents().1;
        let of_layers = pruned
            .layers
            .as_ref()
            .map_or(base.clone(), |layers| DecoderConfig { num_hidden_layers: layers.len(), ..base.clone() });
        let kept = 4 * self.student.n_parameters();
        let reading = importance_bytes(&of_layers, pruned.calibration_examples, tokens);
        let copy = if pruned.layers.is_some() { 4 * of_layers.n_parameters() } else { 0 };
        PROGRAM_BYTES + self.texts() + 4 * base.n_parameters() + in_file.max(copy).max(reading + kept)
    }

    /// A student learns; `from_distributions` of the teacher, or from the text alone.
    pub(super) fn training(&self, from_distributions: bool) -> u64 {
        let learned = if from_distributions { self.distributions() } else { 0 };
        let recomputing = self.recipe.train.gradient_checkpointing;
        let (documents, tokens) = self.documents();
        let lora = self.recipe.train.lora.as_ref().map(Lora::config);
        let own = training_bytes(self.student, lora.as_ref(), documents, tokens, recomputing);
        // The weights of a base model are in memory twice while they are read.
        let weights = 4 * self.student.n_parameters();
        let in_file = match self.base.filter(|_| !self.recipe.student.is_pruned()) {
            Some((_, in_file)) => in_file,
            None if self.recipe.student.is_pruned() => weights,
            None => 0,
        };
        let own = own.max(weights + in_file);
        let own = own + if from_distributions { self.rollouts() } else { 0 };
        let live = from_distributions && self.recipe.targets().is_some_and(Logits::is_live);
        let models = match self.teacher.filter(|_| live) {
            Some((teacher, stored)) => {
                let aligned = self.recipe.train.hidden_alignment.as_ref().map_or(0, |alignment| {
                    let between =
                        alignment.between(teacher.num_hidden_layers, self.student.num_hidden_layers);
                    hidden_alignment_bytes(teacher, between.layers.len(), documents, tokens)
                });
                let reading = live_teachers_bytes(&self.teachers(), self.student, documents, tokens);
                stored.with(own + reading + aligned) + self.further_held()
            }
            None => own,
        };
        PROGRAM_BYTES + self.texts() + learned + models
    }

    /// The student writes while its gradients and moments are held.
    fn rollouts(&self) -> u64 {
        let train = &self.recipe.train;
        let Some(rollouts) = &train.rollouts else { return 0 };
        let per_step =
            train.per_device_train_batch_size * train.gradient_accumulation_steps * train.max_length;
        let prompt = self.sizes.longest_prompt.max(1);
        let in_flight = measure::IN_FLIGHT.min(rollouts.per_step(per_step, prompt));
        let positions = prompt + rollouts.max_new_tokens.min((2.0 * self.sizes.reply_tokens) as usize);
        generation_bytes(self.student, WeightStorage::F32, in_flight, prompt, positions)
    }

    /// Every model in turn writes and reads; at last the teacher reads beside as many others as go together.
    pub(super) fn evaluation(&self) -> u64 {
        let alone = |config: &DecoderConfig, stored: Stored| {
            let in_flight = measure::IN_FLIGHT.min(self.sizes.held_out_items as usize);
            let writing = self.writing(config, in_flight, self.recipe.evaluate.max_tokens);
            stored.with(writing.max(self.reading(config)))
        };
        let student = Stored::trained(self.student);
        let students = alone(self.student, student);
        let Some((config, stored)) = self.teacher else { return PROGRAM_BYTES + self.texts() + students };
        let others = divergence::at_once(self.student).min(1 + self.recipe.evaluate.controls.len());
        let together =
            stored.held + self.teachers_reading() + others as u64 * student.with(self.reading(self.student));
        let together = together + self.further_held();
        PROGRAM_BYTES + self.texts() + students.max(alone(config, stored)).max(together)
    }

    fn teachers(&self) -> Vec<&'a DecoderConfig> {
        self.teacher.iter().chain(&self.further).map(|(config, _)| *config).collect()
    }

    /// The weights of all teachers but the first.
    fn further_held(&self) -> u64 {
        self.further.iter().map(|(_, stored)| stored.with(0)).sum()
    }

    /// All teachers read together.
    fn teachers_reading(&self) -> u64 {
        mixed_scoring_bytes(&self.teachers(), self.examples() as usize, self.documents().1)
    }

    /// Replies of up to `max_tokens`. A slot serves many of them, and keeps what the longest took: about twice
    /// the mean.
    fn writing(&self, config: &DecoderConfig, in_flight: usize, max_tokens: usize) -> u64 {
        let prompt = self.sizes.longest_prompt;
        if prompt == 0 {
            return 0;
        }
        let positions = prompt + max_tokens.min((2.0 * self.sizes.reply_tokens) as usize);
        generation_bytes(config, WeightStorage::AsStored, in_flight, prompt, positions)
    }

    /// Tokens of a prompt and its reply.
    fn whole(&self) -> usize {
        (self.sizes.prompt_tokens + self.sizes.reply_tokens).ceil() as usize
    }

    fn reading(&self, config: &DecoderConfig) -> u64 {
        scoring_bytes(config, self.examples() as usize, self.documents().1)
    }

    /// How many documents are in a batch, and how long they are.
    fn documents(&self) -> (usize, usize) {
        let train = &self.recipe.train;
        let tokens = self.whole().clamp(1, train.max_length);
        let in_batch = train.per_device_train_batch_size * train.max_length / tokens;
        (in_batch.max(1), tokens)
    }

    fn examples(&self) -> f64 {
        let samples =
            self.recipe.teacher.as_ref().map_or(1.0, |teacher| f64::from(teacher.samples_per_prompt));
        samples * (self.sizes.train_items + self.sizes.validation_items)
    }

    /// Texts of a run, as tokens and as strings.
    fn texts(&self) -> u64 {
        (self.examples() * self.whole() as f64 * BYTES_PER_TOKEN) as u64
    }

    /// The teacher's distributions on the texts, and the files that they are read from.
    fn distributions(&self) -> u64 {
        let Some(logits) = self.recipe.cached_targets() else { return 0 };
        let ids = super::estimate::ids_per_position(logits);
        let per_position = BYTES_PER_ROW + ids * (BYTES_PER_KEPT_ID + super::estimate::BYTES_PER_ID);
        (self.examples() * self.sizes.reply_tokens * per_position) as u64
    }
}

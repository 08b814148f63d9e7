//! Recipes: raw keys → a resolved recipe with every default filled in.
//!
//! [`Recipe::load`] reads the file, lays `--set` overrides over it and checks every key. What it returns is
//! complete: written out again ([`Recipe::to_toml`]) it reads back as itself, and that text is what a run
//! directory keeps.

mod batch;
mod curate;
mod ensemble;
mod feedback;
mod hidden;
mod lora;
mod on_policy;
mod policy;
mod raw;
mod resolve;
mod scoring;
mod signing;
mod source;
mod student;
mod timestamps;
mod verifier;
mod wire;
mod yaml;

use std::path::{Path, PathBuf};

use serde::Serialize;
use stillroom_core::Tail;
use stillroom_corpus::prompts::Choice;
use stillroom_distill::{LossFunction, LossTerm, TeacherTargets};

pub(crate) use batch::Batch;
pub(crate) use curate::{Compared, Curate, Near, PiiRule, Select, ToolCalls, TracePii};
pub(crate) use ensemble::{EnsembleTeacher, KEY as ENSEMBLE};
pub(crate) use feedback::{Candidates, Feedback, Judge};
pub(crate) use hidden::{HiddenAlignment, KEY as HIDDEN_ALIGNMENT};
pub(crate) use lora::{Lora, open as open_adapter};
pub(crate) use on_policy::Rollouts;
pub(crate) use policy::{Egress, Policy, PromptPii, is_this_machine};
pub(crate) use scoring::{Scores, TOKENIZER};
pub(crate) use signing::Signing;
pub(crate) use source::{Source, did_you_mean};
pub(crate) use student::{Base, Pruned, key_of};
pub(crate) use timestamps::Timestamps;
pub(crate) use verifier::VerifierChoice;
pub(crate) use wire::{Api, Endpoint, Wire, variable_of};

use crate::failure::Result;

/// A resolved recipe.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Recipe {
    /// Names the run directory and the release.
    pub(crate) name: String,
    pub(crate) seed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) output_dir: Option<String>,
    pub(crate) student: Student,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) teacher: Option<Teacher>,
    pub(crate) prompts: Prompts,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) feedback: Option<Feedback>,
    pub(crate) curate: Curate,
    pub(crate) train: Train,
    pub(crate) evaluate: Evaluate,
    pub(crate) policy: Policy,
    pub(crate) release: Release,
}

/// Where the student's weights come from before training.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Student {
    /// Nobody learns: the recipe is about the teacher's text.
    Nobody,
    /// Random weights.
    FromScratch(Shape),
    /// Chosen layers of another model, by default the teacher's.
    FromLayers {
        #[serde(skip_serializing_if = "Option::is_none")]
        model: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        path: Option<String>,
        layers: Vec<usize>,
    },
    /// The most important part of another model's width, by default the teacher's.
    Pruned(Pruned),
    /// A model as it is.
    Pretrained {
        #[serde(skip_serializing_if = "Option::is_none")]
        model: Option<String>,
        path: String,
        /// A directory as PEFT writes it: training goes on with this adapter.
        #[serde(skip_serializing_if = "Option::is_none")]
        adapter: Option<String>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Architecture {
    Llama,
    Qwen2,
    Qwen3,
}

/// A decoder to be made from random weights; names as in `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Shape {
    pub(crate) architecture: Architecture,
    pub(crate) hidden_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) num_key_value_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) max_position_embeddings: usize,
    pub(crate) rope_theta: f64,
    pub(crate) rms_norm_eps: f64,
    pub(crate) tie_word_embeddings: bool,
    /// A directory with `tokenizer.json`; by default the teacher's tokenizer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tokenizer: Option<String>,
}

/// Who supervises.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Teacher {
    pub(crate) kind: TeacherKind,
    /// The ID that the licence gate sees.
    pub(crate) model: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<String>,
    /// Seed of what it draws.
    pub(crate) seed: u64,
    pub(crate) samples_per_prompt: u32,
    pub(crate) max_tokens: usize,
    pub(crate) temperature: f64,
    pub(crate) top_p: f64,
    pub(crate) max_in_flight: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) logits: Option<Logits>,
    /// Beside those of `ensemble`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) weight: Option<f64>,
    /// Teachers that it is mixed with.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) ensemble: Vec<EnsembleTeacher>,
    /// Where it is reached, if it is not on this machine.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) wire: Option<Wire>,
    /// How it says how likely the student's own tokens are, if it does and is not on this machine.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) scores: Option<Scores>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TeacherKind {
    /// Weights on this machine.
    Local,
    /// An OpenAI-compatible endpoint.
    Openai,
    /// The replies in an earlier run's ledger.
    Cache,
    /// An interface for files of requests, or whoever carries them.
    Batch,
}

/// What is kept of the teacher's distributions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Logits {
    /// `draws` token ids drawn from the distribution at each position.
    RandomSampling {
        draws: u32,
        temperature: f64,
        /// Along the cumulated probabilities, which leaves less to chance.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        evenly_spaced: bool,
    },
    /// The `k` likeliest ids, and what becomes of the rest.
    TopK { k: u32, tail: Tail, temperature: f64 },
    /// Nothing: the teacher is held while the student trains, and reads each batch as it comes.
    Live { temperature: f64 },
}

impl Logits {
    pub(crate) fn temperature(self) -> f64 {
        match self {
            Logits::RandomSampling { temperature, .. }
            | Logits::TopK { temperature, .. }
            | Logits::Live { temperature } => temperature,
        }
    }

    pub(crate) fn is_live(self) -> bool {
        matches!(self, Logits::Live { .. })
    }

    /// As training takes them.
    pub(crate) fn targets(self) -> TeacherTargets {
        match self {
            Logits::RandomSampling { .. } => TeacherTargets::Cached(Tail::None),
            Logits::TopK { tail, .. } => TeacherTargets::Cached(tail),
            Logits::Live { .. } => TeacherTargets::Live,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Prompts {
    #[serde(flatten)]
    pub(crate) source: PromptSource,
    /// Which of a directory's configurations, and what it calls its parts.
    #[serde(flatten)]
    pub(crate) choice: Choice,
    /// What judges replies; without one, nothing is judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) verifier: Option<VerifierChoice>,
    /// Examples to train on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) num_examples: Option<usize>,
    /// Examples that choose the checkpoint; neither trained on nor held out.
    pub(crate) num_validation: usize,
    pub(crate) seed: u64,
    /// What kind of data the prompts are, for the policy; public if it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) data_class: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum PromptSource {
    /// Problems made by a procedure that can check answers.
    Task { task: String },
    /// Prompts of the user's own: `{"id", "prompt"}` or `{"id", "messages"}`, with `answer` where known.
    Chat { path: String },
    /// Texts that are learned as they stand.
    /// Of a row with prompt and target, both are joined.
    Text { path: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Schedule {
    Constant,
    Linear,
    Cosine,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Train {
    /// Seed of the student's start and of the order of examples.
    pub(crate) seed: u64,
    pub(crate) learning_rate: f64,
    pub(crate) lr_scheduler_type: Schedule,
    pub(crate) warmup_ratio: f64,
    pub(crate) min_lr_ratio: f64,
    pub(crate) num_train_epochs: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_steps: Option<u64>,
    /// Packed rows of `max_length` tokens.
    pub(crate) per_device_train_batch_size: usize,
    pub(crate) gradient_accumulation_steps: usize,
    pub(crate) max_length: usize,
    /// Activations are computed a second time rather than kept: less memory, more time, the same bits.
    pub(crate) gradient_checkpointing: bool,
    pub(crate) packing: bool,
    pub(crate) weight_decay: f64,
    pub(crate) adam_beta1: f64,
    pub(crate) adam_beta2: f64,
    pub(crate) adam_epsilon: f64,
    pub(crate) max_grad_norm: f64,
    pub(crate) save_steps: u64,
    pub(crate) eval_steps: u64,
    pub(crate) logging_steps: u64,
    pub(crate) save_total_limit: usize,
    /// Low-rank matrices are trained in place of the weights.
    #[serde(flatten)]
    pub(crate) lora: Option<Lora>,
    /// The student writes texts to learn from.
    #[serde(flatten)]
    pub(crate) rollouts: Option<Rollouts>,
    pub(crate) loss_functions: Vec<LossTerm>,
    /// The student's hidden states follow the teacher's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hidden_alignment: Option<HiddenAlignment>,
}

impl Train {
    /// Whether the student is compared with the teacher beside learning its text.
    pub(crate) fn distils(&self) -> bool {
        self.asks_teacher() || self.needs_likelihoods()
    }

    /// Whether it learns from what the teacher thinks of each token of its texts.
    pub(crate) fn asks_teacher(&self) -> bool {
        self.hidden_alignment.is_some() || self.computed(LossFunction::asks_teacher)
    }

    /// Whether it learns from how likely the teacher finds the tokens that it wrote itself.
    pub(crate) fn learns_own_tokens(&self) -> bool {
        self.computed(|function| function == LossFunction::SampledReverseKl)
    }

    /// Whether it learns from prompts alone.
    pub(crate) fn only_own_text(&self) -> bool {
        self.rollouts.as_ref().is_some_and(Rollouts::always)
    }

    /// Whether it is compared with how likely the teacher finds its text, in tokens of the teacher's own.
    pub(crate) fn needs_likelihoods(&self) -> bool {
        self.computed(|function| function == LossFunction::Alm)
    }

    /// Whether it compares its distributions with a teacher's over another vocabulary.
    pub(crate) fn compares_two_vocabularies(&self) -> bool {
        self.computed(LossFunction::of_two_vocabularies)
    }

    /// Whether the teacher reads the texts in tokens of its own.
    pub(crate) fn reads_in_own_tokens(&self) -> bool {
        self.needs_likelihoods() || self.compares_two_vocabularies()
    }

    /// Whether it learns which of two replies is preferred, and nothing else.
    pub(crate) fn learns_preferences(&self) -> bool {
        self.computed(|function| matches!(function, LossFunction::Dpo { .. }))
    }

    fn computed(&self, is: impl Fn(LossFunction) -> bool) -> bool {
        self.loss_functions.iter().any(|term| is(term.function) && !term.weight.is_zero())
    }
}

/// A student of the same architecture, start, seed and steps that is denied part of the supervision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Control {
    /// Learns the data set's own targets, nothing of the teacher's.
    Undistilled,
    /// Learns the teacher's text with hard labels, none of its distributions.
    TracesOnly,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Evaluate {
    /// Held-out examples.
    pub(crate) num_examples: usize,
    pub(crate) max_tokens: usize,
    /// Held-out prompts that every model continues by its own draws, for its divergence from the teacher there; 0 for
    /// none.
    pub(crate) own_text_examples: usize,
    pub(crate) controls: Vec<Control>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum WeightType {
    #[serde(rename = "f32")]
    F32,
    #[serde(rename = "f16")]
    F16,
    #[serde(rename = "bf16")]
    Bf16,
    #[serde(rename = "q8_0")]
    Q8_0,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Release {
    pub(crate) name: String,
    /// Licence of the release, as an SPDX expression; by default what the gate's verdict leaves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) licence: Option<String>,
    /// Of `model.safetensors`: f32, f16 or bf16.
    pub(crate) dtype: WeightType,
    /// Of `model.gguf`.
    pub(crate) gguf: WeightType,
    /// What signs it, and the heads of the run's log.
    #[serde(flatten)]
    pub(crate) signing: Option<Signing>,
    /// Who is asked for the time of both.
    #[serde(flatten)]
    pub(crate) timestamps: Option<Timestamps>,
}

impl Recipe {
    /// Reads, overrides, checks and completes a recipe.
    pub(crate) fn load(path: &Path, overrides: &[String]) -> Result<(Recipe, Source)> {
        let (source, raw) = Source::read(path, overrides)?;
        let recipe = resolve::resolve(raw, &source)?;
        curate::check_use(&source, &recipe)?;
        Ok((recipe, source))
    }

    /// Whether anybody learns from what the teacher writes.
    pub(crate) fn asks_for_traces(&self) -> bool {
        let control = self.evaluate.controls.contains(&Control::TracesOnly);
        let judged = self.feedback.as_ref().is_some_and(|f| f.candidates == Candidates::Teacher);
        let learned = control || judged || !(self.train.only_own_text() || self.train.learns_preferences());
        let texts = matches!(self.prompts.source, PromptSource::Text { .. });
        self.teacher.is_some() && !texts && learned
    }

    /// The teacher's endpoints, if it is behind some.
    pub(crate) fn wire(&self) -> Option<&Wire> {
        self.teacher.as_ref()?.wire.as_ref()
    }

    /// Whether a teacher behind endpoints says how likely the student's own tokens are: to learn from, or to measure it by.
    pub(crate) fn is_scored(&self) -> bool {
        let wanted = self.train.learns_own_tokens() || self.evaluate.own_text_examples > 0;
        wanted && self.teacher.as_ref().is_some_and(|teacher| teacher.scores.is_some())
    }

    /// The teacher's distributions that the student learns from, if it does.
    pub(crate) fn targets(&self) -> Option<Logits> {
        self.teacher.as_ref().and_then(|teacher| teacher.logits).filter(|_| self.train.asks_teacher())
    }

    /// Those of them that are stored before training.
    pub(crate) fn cached_targets(&self) -> Option<Logits> {
        self.targets().filter(|logits| !logits.is_live())
    }

    /// The recipe as TOML, every default written out.
    pub(crate) fn to_toml(&self) -> String {
        let mut table =
            toml::Table::try_from(self).expect("a resolved recipe has only types that TOML knows");
        if self.student.is_nobody() {
            for unused in ["student", "train", "evaluate"] {
                table.remove(unused);
            }
            // The text has a licence, too, and its log is signed.
            let Release { licence, signing, timestamps, .. } = &self.release;
            if licence.is_none() && signing.is_none() && timestamps.is_none() {
                table.remove("release");
            }
        }
        toml::to_string(&table).expect("a table is TOML")
    }
}

impl Source {
    /// A path that a recipe names: looked for beside the recipe, then in the working directory.
    pub(crate) fn resolve_path(&self, named: &str) -> PathBuf {
        let beside = self.path.parent().unwrap_or(Path::new("")).join(named);
        if beside.exists() { beside } else { PathBuf::from(named) }
    }
}

/// A recipe of this text, for tests.
#[cfg(test)]
fn load(text: &str, overrides: &[&str]) -> Result<Recipe> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("some.toml");
    std::fs::write(&path, text).unwrap();
    let overrides: Vec<String> = overrides.iter().map(|o| (*o).to_owned()).collect();
    Recipe::load(&path, &overrides).map(|(recipe, _)| recipe)
}

/// The same of one that is accepted; written out, it reads back as itself.
#[cfg(test)]
fn loaded(text: &str, overrides: &[&str]) -> Recipe {
    let recipe = load(text, overrides).unwrap_or_else(|e| panic!("{overrides:?}: {e}"));
    let written = recipe.to_toml();
    let again = load(&written, &[]).unwrap_or_else(|e| panic!("{e}\n{written}"));
    assert_eq!(again, recipe, "{written}");
    recipe
}

/// A student, a teacher on this machine and rows of the user's own, for tests of further keys.
#[cfg(test)]
const ROWS: &str = r#"
[student]
kind = "from_scratch"
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 32
[teacher]
kind = "local"
path = "teacher"
[prompts]
path = "rows.jsonl"
"#;

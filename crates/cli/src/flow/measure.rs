//! Stages `measure-…`: every model on the same held-out examples, item by item.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use stillroom_core::{Message, Prompt, Trace};
use stillroom_corpus::Split;
use stillroom_distill::{Example, examples};
use stillroom_evaluate::{
    Contender, EnergyMeter, Grade, HeldOutText, Measured, Measurement, Throughput, TrainingFacts,
    document_losses, grade_replies,
};
use stillroom_formats::{ModelFiles, Tokenizer, parquet_rows};
use stillroom_model::{GenerationRequest, SamplingParams};

use crate::failure::{Failure, Result};
use crate::flow::teach::{generate_all, key_of, trace_of};
use crate::flow::train::{Piece, Training, stage_of, trace_pieces, training_of, weights_of};
use crate::flow::{Flow, data, divergence, wire};
use crate::models::{self, Model};
use crate::recipe::PromptPii;

/// Replies written at once.
pub(super) const IN_FLIGHT: usize = 128;
/// The CPU's energy counters are read this often: they wrap within minutes.
const ENERGY_EVERY: Duration = Duration::from_secs(10);

/// Name of the stage that measures a model.
pub(crate) fn stage(contender: Contender) -> String {
    format!("measure-{}", contender.key())
}

/// Whether a model is one of the two that the run is about, and no control.
pub(crate) fn is_own(contender: Contender) -> bool {
    matches!(contender, Contender::Teacher | Contender::Student)
}

fn folder(contender: Contender) -> String {
    format!("evaluation/{}", contender.key())
}

/// Where a model's measurement stands, item by item.
pub(crate) fn file(contender: Contender) -> String {
    format!("{}/measurement.json", folder(contender))
}

impl Flow {
    /// The models of the report; the teacher comes first, its replies are the others' held-out text.
    pub(crate) fn contenders(&self) -> Vec<Contender> {
        let teacher = self.recipe.teacher.is_some().then_some(Contender::Teacher);
        teacher.into_iter().chain(self.trained()).chain([Contender::Untrained]).collect()
    }

    /// Measures the contenders that `wanted` picks; the teacher's measurement precedes every other's.
    pub(crate) fn measure_where(&mut self, wanted: impl Fn(Contender) -> bool) -> Result<()> {
        for contender in self.contenders().into_iter().filter(|&contender| wanted(contender)) {
            let mut after = vec![data::STAGE.to_owned()];
            match contender {
                Contender::Teacher => {}
                Contender::Untrained => after.extend(self.start_stage().map(str::to_owned)),
                trained => after.push(stage_of(trained)),
            }
            if self.recipe.teacher.is_some() && contender != Contender::Teacher {
                after.push(stage(Contender::Teacher));
            }
            let teacher = self.recipe.teacher.as_ref().map(|_| self.teacher_digest()).transpose()?;
            let start = match contender {
                Contender::Untrained => {
                    json!([self.recipe.student, self.recipe.train.seed, self.start_digest()?])
                }
                _ => json!(null),
            };
            let recipe = &self.recipe;
            let mut settings = vec![
                json!(2),
                json!(recipe.evaluate.max_tokens),
                json!(recipe.prompts.verifier),
                json!(recipe.train.max_length),
                json!(teacher),
                start,
            ];
            let redacts = contender == Contender::Teacher && self.prompt_pii() == PromptPii::Redact;
            settings.extend(redacts.then(|| json!("redacted")));
            let after: Vec<&str> = after.iter().map(String::as_str).collect();
            let folder = folder(contender);
            self.stage(&stage(contender), &settings, &after, &[&folder], |flow| flow.measure(contender))?;
        }
        Ok(())
    }

    /// One line as soon as it is known, long before the report.
    pub(crate) fn say_own_result(&mut self) -> Result<()> {
        let accuracy = |contender: Contender| -> Result<Option<f64>> {
            let measured: Measurement = self.read_json(&format!("{}/measurement.json", folder(contender)))?;
            Ok(measured.score().accuracy.value().copied())
        };
        let Some(student) = accuracy(Contender::Student)? else { return Ok(()) };
        let teacher = if self.recipe.teacher.is_some() { accuracy(Contender::Teacher)? } else { None };
        let beside =
            teacher.map_or(String::new(), |teacher| format!(", its teacher {:.1} %", 100.0 * teacher));
        let line = format!("student: {:.1} % of the held-out problems right{beside}", 100.0 * student);
        self.progress.line(&line);
        Ok(())
    }

    /// What was measured of a model, its divergence from the teacher included.
    pub(crate) fn measurement(&self, contender: Contender) -> Result<Measurement> {
        let mut measurement: Measurement = self.read_json(&file(contender))?;
        if self.recipe.teacher.is_some() {
            measurement.divergences = self.read_json(&divergence::file(contender))?;
        }
        Ok(measurement)
    }

    pub(crate) fn replies(&self, contender: Contender) -> Result<Option<Vec<Trace>>> {
        let path = self.run.path(&format!("{}/replies.parquet", folder(contender)))?;
        if !path.exists() {
            return Ok(None);
        }
        let bytes = std::fs::read(&path).map_err(|e| Failure::io("read", &path, &e))?;
        Ok(Some(parquet_rows::read_traces(bytes)?))
    }

    fn measure(&mut self, contender: Contender) -> Result<()> {
        if contender != Contender::Teacher {
            self.forget_teacher();
        }
        if contender == Contender::Teacher && self.is_over_wire() {
            return self.measure_over_wire();
        }
        let model = self.model_of(contender)?;
        let mut measurement = Measurement {
            parameters: Measured::Value(model.decoder.n_parameters()),
            ..self.unmeasured(contender)?
        };
        let verifier = self.verifier();
        if !self.learns_text() && (verifier.is_some() || contender == Contender::Teacher) {
            let prompts = self.prompts_of(Split::HeldOut)?;
            let replies = self.reply(contender, &model, &prompts, &mut measurement)?;
            self.grade(contender, &prompts, &replies, &mut measurement)?;
        }
        self.progress.update(&format!("{}: held-out loss", contender.label()));
        let documents = self.held_out_documents(&model.tokenizer)?;
        let texts = held_out_texts(&documents, &model.tokenizer);
        measurement.losses = Measured::Value(document_losses(&model.decoder, &texts)?);
        self.write_json(&file(contender), &measurement)
    }

    /// A teacher behind endpoints: what it answers is graded; what it thinks of a text cannot be asked.
    fn measure_over_wire(&mut self) -> Result<()> {
        let contender = Contender::Teacher;
        let not_here = "the teacher is behind an endpoint";
        let mut measurement = self.unmeasured(contender)?;
        measurement.losses = Measured::not_measured(not_here);
        measurement.joules = Measured::not_measured(not_here);
        if !self.learns_text() {
            let prompts = self.prompts_of(Split::HeldOut)?;
            let wire::WireReplies { traces, usd, seconds } =
                self.replies_over_wire("measure-teacher", &prompts)?;
            let tokens = traces.iter().map(|trace| u64::from(trace.completion_tokens)).sum();
            measurement.generation = match self.is_asked_by_file() {
                true => Measured::not_measured("the teacher is asked by the file, whoever has time for it"),
                false => Measured::Value(Throughput { tokens, seconds }),
            };
            measurement.usd = Measured::Value(usd);
            self.grade(contender, &prompts, &traces, &mut measurement)?;
        }
        self.write_json(&file(contender), &measurement)
    }

    fn unmeasured(&self, contender: Contender) -> Result<Measurement> {
        Ok(Measurement {
            model: self.name_of(contender),
            parameters: Measured::not_measured("the model is not on this machine"),
            training: self.training_facts(contender)?,
            grades: Measured::not_measured("the recipe has no verifier"),
            losses: Measured::not_measured("nothing was held out"),
            divergences: Measured::not_measured(match self.recipe.teacher {
                Some(_) => format!("they stand in `{}`", divergence::file(contender)),
                None => "the recipe has no teacher".to_owned(),
            }),
            generation: Measured::not_measured("no reply was asked for"),
            joules: Measured::not_measured("no reply was asked for"),
            usd: Measured::not_measured("the model ran on this machine, which has no price"),
        })
    }

    /// Lets the verifier, where there is one, judge replies, and writes them down.
    fn grade(
        &self,
        contender: Contender,
        prompts: &[Prompt],
        replies: &[Trace],
        measurement: &mut Measurement,
    ) -> Result<()> {
        if let Some(verifier) = self.verifier() {
            let messages: Vec<Message> = replies.iter().map(Trace::reply).collect();
            let mut judge = |prompt: &Prompt, reply: &Message| {
                let verdict = verifier.verify(prompt, reply);
                (verdict.correct, verdict.reason)
            };
            let grades: Vec<Grade> = grade_replies(prompts, &messages, &mut judge)?;
            measurement.grades = Measured::Value(grades);
        }
        let mut bytes = Vec::new();
        parquet_rows::write_traces(&mut bytes, replies)?;
        self.run.write(&format!("{}/replies.parquet", folder(contender)), &bytes)?;
        Ok(())
    }

    pub(crate) fn model_of(&mut self, contender: Contender) -> Result<Rc<Model>> {
        match contender {
            Contender::Teacher => self.teacher(),
            Contender::Untrained => Ok(Rc::new(self.start()?)),
            trained => {
                let files = ModelFiles::open(&self.run.path(&weights_of(trained))?)?;
                Ok(Rc::new(models::load_files(files, Arc::clone(&self.device))?))
            }
        }
    }

    fn name_of(&self, contender: Contender) -> String {
        match (contender, &self.recipe.teacher) {
            (Contender::Teacher, Some(teacher)) => teacher.model.clone(),
            (Contender::Student, _) => self.recipe.release.name.clone(),
            (other, _) => format!("{} ({})", self.recipe.release.name, other.label().to_lowercase()),
        }
    }

    fn training_facts(&self, contender: Contender) -> Result<Option<TrainingFacts>> {
        if matches!(contender, Contender::Teacher | Contender::Untrained) {
            return Ok(None);
        }
        let training: Training = self.read_json(&training_of(contender))?;
        Ok(Some(TrainingFacts {
            steps: training.steps,
            tokens: training.tokens,
            wall_s: training.wall_s,
            best_step: training.best_step,
        }))
    }

    /// Greedy replies to the held-out prompts, with the time and energy they took.
    fn reply(
        &mut self,
        contender: Contender,
        model: &Model,
        prompts: &[Prompt],
        measurement: &mut Measurement,
    ) -> Result<Vec<Trace>> {
        self.progress.update(&format!("{}: {} held-out prompts", contender.label(), prompts.len()));
        let requests = prompts.iter().map(|prompt| {
            let prompt_ids = model.tokenizer.encode_chat(&prompt.messages, true)?;
            Ok(GenerationRequest { prompt_ids, key: key_of(&prompt.id), sample: 0 })
        });
        let requests: Vec<GenerationRequest> = requests.collect::<Result<_>>()?;
        let sampling = SamplingParams {
            max_tokens: self.recipe.evaluate.max_tokens,
            temperature: 0.0,
            top_p: 1.0,
            seed: 0,
            stop_token_ids: model.decoder.config().eos_token_ids.clone(),
        };
        let mut meter = EnergyMeter::start();
        let (began, mut read) = (Instant::now(), Instant::now());
        let written = generate_all(model, &requests, &sampling, IN_FLIGHT, &mut |done| {
            if read.elapsed() >= ENERGY_EVERY {
                meter.sample();
                read = Instant::now();
            }
            self.progress.update(&format!("{}: {done} of {} replies", contender.label(), requests.len()));
        })?;
        let seconds = began.elapsed().as_secs_f64();
        measurement.joules = meter.stop();
        let tokens = written.iter().map(|generation| generation.token_ids.len() as u64).sum();
        measurement.generation = Measured::Value(Throughput { tokens, seconds });
        let replies = written.iter().zip(prompts).zip(&requests);
        let traces = replies.map(|((generation, prompt), request)| {
            trace_of(model, &measurement.model, (&prompt.id, &prompt.messages), request, generation)
        });
        Ok(traces.collect())
    }

    /// What losses are measured on: the same text for every model.
    pub(crate) fn held_out_documents(&self, tokenizer: &Tokenizer) -> Result<Vec<Piece>> {
        if self.learns_text() {
            return self.text_pieces(Split::HeldOut, tokenizer);
        }
        if self.recipe.teacher.is_none() {
            let prompts = self.prompts_of(Split::HeldOut)?;
            let made = examples::from_targets(&prompts, tokenizer)?;
            let piece =
                |(prompt, example): (&Prompt, Example)| Piece { id: prompt.id.clone(), sample: 0, example };
            return Ok(prompts.iter().zip(made).map(piece).collect());
        }
        let replies = self.replies(Contender::Teacher)?.unwrap_or_default();
        let whole: Vec<Trace> = replies.into_iter().filter(crate::flow::teach::is_whole).collect();
        trace_pieces(&whole, tokenizer)
    }

    /// In words, for the report.
    pub(crate) fn held_out_text(&self) -> &'static str {
        match (&self.recipe.teacher, self.learns_text()) {
            (_, true) => "the held-out texts",
            (Some(_), _) if self.has_several_teachers() => {
                "the first teacher's greedy replies to the held-out prompts, right or wrong"
            }
            (None, _) => "the worked solutions of the held-out problems",
            (Some(_), _) => "the teacher's greedy replies to the held-out prompts, right or wrong",
        }
    }
}

/// The documents as they are measured: what is supervised is scored.
pub(crate) fn held_out_texts<'a>(documents: &'a [Piece], tokenizer: &Tokenizer) -> Vec<HeldOutText<'a>> {
    let text = |Piece { id, example, .. }: &'a Piece| {
        let scored = example.ids.iter().zip(&example.supervised).skip(1).filter(|(_, scored)| **scored);
        let scored: Vec<u32> = scored.map(|(&token, _)| token).collect();
        let bytes = tokenizer.decode_text(&scored).len() as u64;
        HeldOutText { id, ids: &example.ids, supervised: &example.supervised, bytes }
    };
    documents.iter().map(text).collect()
}

//! Stages `measure-…`: every model on the same held-out examples, item by item.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;
use stillroom_core::{Message, Prompt, Trace};
use stillroom_corpus::Split;
use stillroom_distill::{Example, examples};
use stillroom_evaluate::{
    Contender, DocumentDivergence, DocumentLoss, EnergyMeter, Grade, Measured, Measurement, Throughput,
    TrainingFacts, grade_replies,
};
use stillroom_formats::{ModelFiles, parquet_rows};
use stillroom_model::{Decoder, GenerationRequest, SamplingParams};

use crate::failure::{Failure, Result};
use crate::flow::teach::{generate_all, key_of, parse_reply};
use crate::flow::train::{Piece, Training, stage_of, trace_pieces, training_of, weights_of};
use crate::flow::{Flow, data};
use crate::models::{self, Model};

/// Replies written at once.
const IN_FLIGHT: usize = 128;

/// Name of the stage that measures a model.
pub(crate) fn stage(contender: Contender) -> String {
    format!("measure-{}", contender.key())
}

fn folder(contender: Contender) -> String {
    format!("evaluation/{}", contender.key())
}

impl Flow {
    /// The models of the report; the teacher comes first, its replies are the others' held-out text.
    pub(crate) fn contenders(&self) -> Vec<Contender> {
        let teacher = self.recipe.teacher.is_some().then_some(Contender::Teacher);
        teacher.into_iter().chain(self.trained()).chain([Contender::Untrained]).collect()
    }

    pub(crate) fn measure_all(&mut self) -> Result<()> {
        for contender in self.contenders() {
            let mut after = vec![data::STAGE.to_owned()];
            match contender {
                Contender::Teacher | Contender::Untrained => {}
                trained => after.push(stage_of(trained)),
            }
            if self.recipe.teacher.is_some() && contender != Contender::Teacher {
                after.push(stage(Contender::Teacher));
            }
            let teacher = self.recipe.teacher.as_ref().map(|_| self.teacher_digest()).transpose()?;
            let start = (contender == Contender::Untrained)
                .then(|| json!([self.recipe.student, self.recipe.train.seed]));
            let recipe = &self.recipe;
            let settings = json!([
                1,
                recipe.evaluate.max_tokens,
                recipe.prompts.verifier,
                recipe.train.max_length,
                teacher,
                start
            ]);
            let after: Vec<&str> = after.iter().map(String::as_str).collect();
            let folder = folder(contender);
            self.stage(&stage(contender), &settings, &after, &[&folder], |flow| flow.measure(contender))?;
        }
        Ok(())
    }

    pub(crate) fn measurement(&self, contender: Contender) -> Result<Measurement> {
        self.read_json(&format!("{}/measurement.json", folder(contender)))
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
        let model = self.model_of(contender)?;
        let mut measurement = Measurement {
            model: self.name_of(contender),
            parameters: model.decoder.n_parameters(),
            training: self.training_facts(contender)?,
            grades: Measured::not_measured("the recipe has no verifier"),
            losses: Measured::not_measured("nothing was held out"),
            divergences: Measured::not_measured("the recipe has no teacher"),
            generation: Measured::not_measured("no reply was asked for"),
            joules: Measured::not_measured("no reply was asked for"),
            usd: Measured::not_measured("the model ran on this machine, which has no price"),
        };
        let verifier = self.verifier();
        if !self.learns_text() && (verifier.is_some() || contender == Contender::Teacher) {
            let prompts = self.prompts_of(Split::HeldOut)?;
            let replies = self.reply(contender, &model, &prompts, &mut measurement)?;
            if let Some(verifier) = verifier {
                let messages: Vec<Message> = replies.iter().map(Trace::reply).collect();
                let mut judge = |prompt: &Prompt, reply: &Message| {
                    let verdict = verifier.verify(prompt, reply);
                    (verdict.correct, verdict.reason)
                };
                let grades: Vec<Grade> = grade_replies(&prompts, &messages, &mut judge)?;
                measurement.grades = Measured::Value(grades);
            }
            let mut bytes = Vec::new();
            parquet_rows::write_traces(&mut bytes, &replies)?;
            self.run.write(&format!("{}/replies.parquet", folder(contender)), &bytes)?;
        }
        self.progress.update(&format!("{}: held-out loss", contender.label()));
        let documents = self.held_out_documents(&model)?;
        measurement.losses = Measured::Value(losses(&model, &documents));
        if self.recipe.teacher.is_some() {
            measurement.divergences = self.divergences(contender, &model, &documents)?;
        }
        self.write_json(&format!("{}/measurement.json", folder(contender)), &measurement)
    }

    fn model_of(&mut self, contender: Contender) -> Result<Rc<Model>> {
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
        let meter = EnergyMeter::start();
        let began = Instant::now();
        let written = generate_all(model, &requests, &sampling, IN_FLIGHT)?;
        let seconds = began.elapsed().as_secs_f64();
        measurement.joules = meter.stop();
        let tokens = written.iter().map(|generation| generation.token_ids.len() as u64).sum();
        measurement.generation = Measured::Value(Throughput { tokens, seconds });
        let traces = written.iter().zip(prompts).zip(&requests).map(|((generation, prompt), request)| {
            let (reasoning_content, content) =
                parse_reply(&model.tokenizer.decode_text(&generation.token_ids));
            Trace {
                id: prompt.id.clone(),
                sample: 0,
                messages: prompt.messages.clone(),
                reasoning_content,
                content,
                finish_reason: generation.finish_reason,
                prompt_tokens: request.prompt_ids.len() as u32,
                completion_tokens: generation.token_ids.len() as u32,
                teacher: measurement.model.clone(),
                usd: 0.0,
            }
        });
        Ok(traces.collect())
    }

    /// What losses are measured on: the same text for every model.
    fn held_out_documents(&self, model: &Model) -> Result<Vec<Piece>> {
        let tokenizer = &model.tokenizer;
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
            (None, _) => "the worked solutions of the held-out problems",
            (Some(_), _) => "the teacher's greedy replies to the held-out prompts, right or wrong",
        }
    }

    fn divergences(
        &mut self,
        contender: Contender,
        model: &Model,
        documents: &[Piece],
    ) -> Result<Measured<Vec<DocumentDivergence>>> {
        let row = |piece: &Piece, nats: f64| DocumentDivergence {
            id: piece.id.clone(),
            tokens: piece.example.n_supervised() as u64,
            nats,
        };
        if contender == Contender::Teacher {
            // KL(p‖p) is 0 by definition.
            return Ok(Measured::Value(merge_divergences(documents.iter().map(|e| row(e, 0.0)))));
        }
        let teacher = self.teacher()?;
        let same = teacher.tokenizer.digest() == model.tokenizer.digest()
            && teacher.decoder.config().vocab_size == model.decoder.config().vocab_size;
        if !same {
            return Ok(Measured::not_measured("teacher and student have different vocabularies"));
        }
        self.progress.update(&format!("{}: divergence from the teacher", contender.label()));
        let ids: Vec<&[u32]> = documents.iter().map(|piece| &piece.example.ids[..]).collect();
        let wanted: Vec<Vec<u32>> = documents.iter().map(|piece| piece.example.wanted_positions()).collect();
        let kl = Decoder::kl_rows(&teacher.decoder, &model.decoder, &ids, &wanted);
        let sum = |kl: &[f32]| kl.iter().map(|&nats| f64::from(nats)).sum();
        let rows = documents.iter().zip(&kl).map(|(piece, kl)| row(piece, sum(kl)));
        Ok(Measured::Value(merge_divergences(rows)))
    }
}

/// Loss of each document over its supervised tokens.
fn losses(model: &Model, documents: &[Piece]) -> Vec<DocumentLoss> {
    let ids: Vec<&[u32]> = documents.iter().map(|piece| &piece.example.ids[..]).collect();
    let logprobs = model.decoder.token_logprobs(&ids);
    let mut merged: Vec<DocumentLoss> = Vec::new();
    for (Piece { id, example, .. }, logprobs) in documents.iter().zip(&logprobs) {
        let wanted = example.wanted_positions();
        let supervised: Vec<u32> = wanted.iter().map(|&row| example.ids[row as usize + 1]).collect();
        let nats: f64 = wanted.iter().map(|&row| -f64::from(logprobs[row as usize])).sum();
        let bytes = model.tokenizer.decode_text(&supervised).len() as u64;
        match merged.last_mut().filter(|last| last.id == *id) {
            Some(last) => {
                last.tokens += wanted.len() as u64;
                last.bytes += bytes;
                last.nats += nats;
            }
            None => merged.push(DocumentLoss { id: id.clone(), tokens: wanted.len() as u64, bytes, nats }),
        }
    }
    merged
}

fn merge_divergences(rows: impl Iterator<Item = DocumentDivergence>) -> Vec<DocumentDivergence> {
    let mut merged: Vec<DocumentDivergence> = Vec::new();
    for row in rows {
        match merged.last_mut().filter(|last| last.id == row.id) {
            Some(last) => {
                last.tokens += row.tokens;
                last.nats += row.nats;
            }
            None => merged.push(row),
        }
    }
    merged
}

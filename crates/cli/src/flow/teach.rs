//! Stage `teach`: the teacher answers every prompt, in durable parts.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde_json::json;
use stillroom_core::{Digest, FinishReason, Message, Prompt, Trace};
use stillroom_corpus::Split;
use stillroom_formats::openai::split_reasoning;
use stillroom_formats::parquet_rows;
use stillroom_model::{Generation, GenerationRequest, SamplingParams};
use stillroom_store::PartStore;

use crate::failure::{Exit, Failure, Result};
use crate::flow::{Flow, data, digest_of, files_in, wire};
use crate::models::Model;
use crate::recipe::PromptPii;

pub(crate) const STAGE: &str = "teach";
pub(super) const FOLDER: &str = "corpus/traces";
/// Prompts of one part: what a kill can cost at most.
pub(crate) const PROMPTS_PER_PART: usize = 256;

impl Flow {
    /// Lets the teacher write; what was written before is kept, part by part.
    pub(crate) fn teach(&mut self) -> Result<()> {
        let Some(teacher) = self.recipe.teacher.clone() else { return Ok(()) };
        if !self.asks_for_traces() {
            return Ok(());
        }
        if let Some(wire) = &teacher.wire {
            let mut settings = vec![
                json!(1),
                self.wire_identity(&teacher, wire)?,
                json!(teacher.seed),
                json!(teacher.samples_per_prompt),
                json!(teacher.max_tokens),
                json!(teacher.temperature),
                json!(teacher.top_p),
            ];
            settings.extend((self.prompt_pii() == PromptPii::Redact).then(|| json!("redacted")));
            let outputs = [FOLDER, "teach.json", wire::UNANSWERED];
            return self.stage(STAGE, &settings, &[data::STAGE], &outputs, |flow| {
                flow.write_traces_over_wire(digest_of(&settings))
            });
        }
        let settings = json!([
            1,
            self.teachers_digest()?,
            match teacher.ensemble.is_empty() {
                true => json!(teacher.model),
                false => json!(teacher.models().collect::<Vec<_>>()),
            },
            teacher.seed,
            teacher.samples_per_prompt,
            teacher.max_tokens,
            teacher.temperature,
            teacher.top_p,
        ]);
        self.stage(STAGE, &settings, &[data::STAGE], &[FOLDER, "teach.json"], |flow| {
            flow.write_traces(digest_of(&settings))
        })
    }

    fn write_traces(&mut self, made_from: Digest) -> Result<()> {
        let samples = self.recipe.teacher.as_ref().map_or(1, |teacher| teacher.samples_per_prompt);
        let (writer, parts) = (self.teacher_writer(FOLDER, STAGE), self.asked_of_all(samples)?);
        let totals = match self.has_several_teachers() {
            true => self.write_parts_by(&writer, parts, made_from, Flow::ask_each)?,
            false => self.write_parts(&writer, parts, made_from, Flow::teacher)?,
        };
        self.write_json(
            "teach.json",
            &json!({
                "rows": totals.rows,
                "calls": totals.calls,
                "failed_calls": 0,
                "unknown_calls": 0,
                "usd": totals.usd,
                "prompt_tokens": totals.prompt_tokens,
                "completion_tokens": totals.completion_tokens,
            }),
        )
    }

    /// How the teacher writes.
    pub(crate) fn teacher_writer(&self, folder: &'static str, stage: &'static str) -> Writer {
        let teacher = self.recipe.teacher.clone().expect("only a recipe with a teacher lets it write");
        Writer {
            folder,
            stage,
            name: teacher.model,
            max_tokens: teacher.max_tokens,
            temperature: teacher.temperature,
            top_p: teacher.top_p,
            seed: teacher.seed,
            max_in_flight: teacher.max_in_flight,
        }
    }

    /// Every prompt of training and validation, `samples` times, in parts.
    pub(crate) fn asked_of_all(&self, samples: u32) -> Result<Vec<Vec<Asked>>> {
        // Validation first: its parts stay where they are when the number of examples grows.
        let prompts = [self.prompts_of(Split::Validation)?, self.prompts_of(Split::Train)?];
        let asked = |prompt: &Prompt| {
            let (id, messages, key) = (prompt.id.clone(), prompt.messages.clone(), key_of(&prompt.id));
            (0..samples).map(move |sample| Asked { id: id.clone(), sample, key, messages: messages.clone() })
        };
        let part = |prompts: &[Prompt]| prompts.iter().flat_map(asked).collect();
        Ok(prompts.iter().flat_map(|prompts| prompts.chunks(PROMPTS_PER_PART)).map(part).collect())
    }

    /// Lets a model write, in durable parts; those that are there already are kept, and where all are, the model is never
    /// loaded.
    pub(crate) fn write_parts(
        &mut self,
        writer: &Writer,
        parts: Vec<Vec<Asked>>,
        made_from: Digest,
        mut model: impl FnMut(&mut Flow) -> Result<Rc<Model>>,
    ) -> Result<Totals> {
        self.write_parts_by(writer, parts, made_from, |flow, writer, asked| writer.ask(&*model(flow)?, asked))
    }

    /// [`Flow::write_parts`] by whoever answers what is asked. The log is told of the teacher's replies part by part.
    pub(crate) fn write_parts_by(
        &mut self,
        writer: &Writer,
        parts: Vec<Vec<Asked>>,
        made_from: Digest,
        mut ask: impl FnMut(&mut Flow, &Writer, &[Asked]) -> Result<Vec<Trace>>,
    ) -> Result<Totals> {
        let mut store = PartStore::open(&self.run.dir(writer.folder)?, "parquet", made_from)?;
        let mut totals = Totals::default();
        for (number, asked) in parts.iter().enumerate() {
            let number = number as u32;
            let kept = if store.contains(number) {
                let traces = parquet_rows::read_traces(store.read(number)?)?;
                belongs(&traces, asked).then_some(traces)
            } else {
                None
            };
            let traces = match kept {
                Some(traces) => traces,
                None => {
                    let traces = ask(self, writer, asked)?;
                    let mut bytes = Vec::new();
                    parquet_rows::write_traces(&mut bytes, &traces)?;
                    store.put(number, &bytes)?;
                    self.event(json!({ "event": "part_written", "stage": writer.stage, "part": number }))?;
                    totals.calls += traces.len() as u64;
                    traces
                }
            };
            if let Some(book) = self.logbook.as_ref().filter(|_| writer.folder == FOLDER) {
                book.tell_traces(totals.rows, &traces)?;
            }
            totals.add(&traces);
            let (stage, done) = (writer.stage, number as usize + 1);
            self.progress.update(&format!("{stage}: part {done} of {}, {} traces", parts.len(), totals.rows));
        }
        store.seal(parts.len() as u32)?;
        Ok(totals)
    }

    /// All traces, in the order of their prompts.
    pub(crate) fn traces(&self) -> Result<Vec<Trace>> {
        self.traces_in(FOLDER)
    }

    /// All that [`Flow::write_parts`] wrote to a folder.
    pub(crate) fn traces_in(&self, folder: &str) -> Result<Vec<Trace>> {
        let mut traces = Vec::new();
        for bytes in self.part_files(folder)? {
            traces.extend(parquet_rows::read_traces(bytes)?);
        }
        Ok(traces)
    }

    /// The parts of a finished stage, in order.
    pub(crate) fn part_files(&self, folder: &str) -> Result<Vec<Vec<u8>>> {
        let read = |path: PathBuf| std::fs::read(&path).map_err(|e| Failure::io("read", &path, &e));
        self.part_paths(folder)?.into_iter().map(read).collect()
    }

    /// Where they are.
    pub(crate) fn part_paths(&self, folder: &str) -> Result<Vec<PathBuf>> {
        parts_of(&self.run.path(folder)?)
    }
}

/// The parts in a folder, in order.
pub(super) fn parts_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = files_in(folder)?;
    paths.retain(|path| path.extension().is_some_and(|e| e == "parquet"));
    Ok(paths)
}

/// How a model of this machine writes.
#[derive(Clone)]
pub(crate) struct Writer {
    pub(crate) folder: &'static str,
    pub(crate) stage: &'static str,
    /// Its ID or, for a student, its name.
    pub(crate) name: String,
    pub(crate) max_tokens: usize,
    pub(crate) temperature: f64,
    pub(crate) top_p: f64,
    pub(crate) seed: u64,
    pub(crate) max_in_flight: usize,
}

/// A conversation that is to be continued.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Of the prompt.
    pub(crate) id: String,
    pub(crate) sample: u32,
    /// Names it in the random numbers, together with `sample`.
    pub(crate) key: u64,
    pub(crate) messages: Vec<Message>,
}

impl Writer {
    pub(super) fn ask(&self, model: &Model, asked: &[Asked]) -> Result<Vec<Trace>> {
        let request = |asked: &Asked| -> Result<GenerationRequest> {
            let prompt_ids = model.tokenizer.encode_chat(&asked.messages, true)?;
            Ok(GenerationRequest { prompt_ids, key: asked.key, sample: asked.sample })
        };
        let requests = asked.iter().map(request).collect::<Result<Vec<_>>>()?;
        let sampling = SamplingParams {
            max_tokens: self.max_tokens,
            temperature: self.temperature as f32,
            top_p: self.top_p as f32,
            seed: self.seed,
            stop_token_ids: model.decoder.config().eos_token_ids.clone(),
        };
        let written = generate_all(model, &requests, &sampling, self.max_in_flight, &mut |_| {})?;
        let traces = written.iter().zip(&requests).zip(asked).map(|((generation, request), asked)| {
            trace_of(model, &self.name, (&asked.id, &asked.messages), request, generation)
        });
        Ok(traces.collect())
    }
}

/// What was written, and what of it just now.
#[derive(Default)]
pub(crate) struct Totals {
    pub(crate) rows: u64,
    pub(crate) calls: u64,
    usd: f64,
    prompt_tokens: u64,
    completion_tokens: u64,
}

impl Totals {
    fn add(&mut self, traces: &[Trace]) {
        self.rows += traces.len() as u64;
        for trace in traces {
            self.usd += trace.usd;
            self.prompt_tokens += u64::from(trace.prompt_tokens);
            self.completion_tokens += u64::from(trace.completion_tokens);
        }
    }
}

/// Whether a part that was found continues these conversations.
fn belongs(traces: &[Trace], asked: &[Asked]) -> bool {
    let same = |(trace, asked): (&Trace, &Asked)| {
        trace.id == asked.id && trace.sample == asked.sample && trace.messages == asked.messages
    };
    traces.len() == asked.len() && traces.iter().zip(asked).all(same)
}

/// All continuations, in the order of the requests; `on_done` hears how many there are so far.
pub(crate) fn generate_all(
    model: &Model,
    requests: &[GenerationRequest],
    sampling: &SamplingParams,
    max_in_flight: usize,
    on_done: &mut dyn FnMut(usize),
) -> Result<Vec<Generation>> {
    let mut written: Vec<Option<Generation>> = requests.iter().map(|_| None).collect();
    let mut done = 0;
    model.decoder.generate(requests, sampling, max_in_flight, &mut |i, generation| {
        written[i] = Some(generation);
        done += 1;
        on_done(done);
    })?;
    let all: Option<Vec<Generation>> = written.into_iter().collect();
    all.ok_or_else(|| Failure::new(Exit::Failed, "a prompt was left without a reply"))
}

/// Names a prompt in the random numbers: the first eight bytes of its id's SHA-256.
pub(crate) fn key_of(id: &str) -> u64 {
    let digest = Digest::of(id.as_bytes());
    u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("a digest has 32 bytes"))
}

/// What a model of this machine wrote for the prompt of this id; `writer` is its ID or, for a student, its name.
pub(crate) fn trace_of(
    model: &Model,
    writer: &str,
    (id, messages): (&str, &[Message]),
    request: &GenerationRequest,
    generation: &Generation,
) -> Trace {
    let (reasoning_content, content) = split_reasoning(&model.tokenizer.decode_text(&generation.token_ids));
    Trace {
        id: id.to_owned(),
        sample: request.sample,
        messages: messages.to_vec(),
        reasoning_content,
        content,
        finish_reason: generation.finish_reason,
        prompt_tokens: request.prompt_ids.len() as u32,
        completion_tokens: generation.token_ids.len() as u32,
        teacher: writer.to_owned(),
        usd: 0.0,
    }
}

/// Whether a reply ended by itself.
pub(crate) fn is_whole(trace: &Trace) -> bool {
    trace.finish_reason == FinishReason::Stop
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_the_id() {
        assert_eq!(key_of("a"), key_of("a"));
        assert_ne!(key_of("a"), key_of("b"));
    }
}

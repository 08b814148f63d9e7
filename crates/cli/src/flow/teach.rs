//! Stage `teach`: the teacher answers every prompt, in durable parts.

use std::rc::Rc;

use serde_json::json;
use stillroom_core::{Digest, FinishReason, Prompt, Trace};
use stillroom_corpus::Split;
use stillroom_formats::parquet_rows;
use stillroom_model::{Generation, GenerationRequest, SamplingParams};
use stillroom_store::PartStore;

use crate::failure::{Exit, Failure, Result};
use crate::flow::{Flow, data, digest_of};
use crate::models::Model;

pub(crate) const STAGE: &str = "teach";
const FOLDER: &str = "corpus/traces";
/// Prompts of one part: what a kill can cost at most.
pub(crate) const PROMPTS_PER_PART: usize = 256;

impl Flow {
    /// Lets the teacher write; what was written before is kept, part by part.
    pub(crate) fn teach(&mut self) -> Result<()> {
        let Some(teacher) = self.recipe.teacher.clone() else { return Ok(()) };
        if !self.asks_for_traces() {
            return Ok(());
        }
        let settings = json!([
            1,
            self.teacher_digest()?,
            teacher.model,
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
        let teacher = self.recipe.teacher.clone().expect("only a recipe with a teacher teaches");
        let writer = Writer {
            folder: FOLDER,
            stage: STAGE,
            name: teacher.model,
            samples_per_prompt: teacher.samples_per_prompt,
            max_tokens: teacher.max_tokens,
            temperature: teacher.temperature,
            top_p: teacher.top_p,
            seed: teacher.seed,
            max_in_flight: teacher.max_in_flight,
        };
        let totals = self.write_parts(&writer, made_from, Flow::teacher)?;
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

    /// Lets a model write for every prompt of training and validation, in durable parts; those that are there already
    /// are kept, and where all are, the model is never loaded.
    pub(crate) fn write_parts(
        &mut self,
        writer: &Writer,
        made_from: Digest,
        mut model: impl FnMut(&mut Flow) -> Result<Rc<Model>>,
    ) -> Result<Totals> {
        // Validation first: its parts stay where they are when the number of examples grows.
        let parts: Vec<Vec<Prompt>> = [Split::Validation, Split::Train]
            .into_iter()
            .map(|split| self.prompts_of(split))
            .collect::<Result<Vec<_>>>()?
            .iter()
            .flat_map(|prompts| prompts.chunks(PROMPTS_PER_PART).map(<[Prompt]>::to_vec))
            .collect();
        let mut store = PartStore::open(&self.run.dir(writer.folder)?, "parquet", made_from)?;
        let mut totals = Totals::default();
        for (number, prompts) in parts.iter().enumerate() {
            let number = number as u32;
            let kept = if store.contains(number) {
                let traces = parquet_rows::read_traces(store.read(number)?)?;
                belongs(&traces, prompts).then_some(traces)
            } else {
                None
            };
            let traces = match kept {
                Some(traces) => traces,
                None => {
                    let traces = writer.ask(&*model(self)?, prompts)?;
                    let mut bytes = Vec::new();
                    parquet_rows::write_traces(&mut bytes, &traces)?;
                    store.put(number, &bytes)?;
                    self.event(json!({ "event": "part_written", "stage": writer.stage, "part": number }))?;
                    totals.calls += traces.len() as u64;
                    traces
                }
            };
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
        let dir = self.run.path(folder)?;
        let entries = std::fs::read_dir(&dir).map_err(|e| Failure::io("list", &dir, &e))?;
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|e| e == "parquet"));
        paths.sort();
        paths.iter().map(|path| std::fs::read(path).map_err(|e| Failure::io("read", path, &e))).collect()
    }
}

/// How a model of this machine writes.
pub(crate) struct Writer {
    pub(crate) folder: &'static str,
    pub(crate) stage: &'static str,
    /// Its ID or, for a student, its name.
    pub(crate) name: String,
    pub(crate) samples_per_prompt: u32,
    pub(crate) max_tokens: usize,
    pub(crate) temperature: f64,
    pub(crate) top_p: f64,
    pub(crate) seed: u64,
    pub(crate) max_in_flight: usize,
}

impl Writer {
    fn ask(&self, model: &Model, prompts: &[Prompt]) -> Result<Vec<Trace>> {
        let mut requests = Vec::new();
        for prompt in prompts {
            let prompt_ids = model.tokenizer.encode_chat(&prompt.messages, true)?;
            let key = key_of(&prompt.id);
            requests.extend((0..self.samples_per_prompt).map(|sample| GenerationRequest {
                prompt_ids: prompt_ids.clone(),
                key,
                sample,
            }));
        }
        let sampling = SamplingParams {
            max_tokens: self.max_tokens,
            temperature: self.temperature as f32,
            top_p: self.top_p as f32,
            seed: self.seed,
            stop_token_ids: model.decoder.config().eos_token_ids.clone(),
        };
        let written = generate_all(model, &requests, &sampling, self.max_in_flight, &mut |_| {})?;
        let samples = self.samples_per_prompt as usize;
        let traces = written.iter().zip(&requests).enumerate().map(|(i, (generation, request))| {
            trace_of(model, &self.name, &prompts[i / samples], request, generation)
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

/// Whether a part that was found answers these prompts.
fn belongs(traces: &[Trace], prompts: &[Prompt]) -> bool {
    let samples = traces.len() / prompts.len().max(1);
    samples * prompts.len() == traces.len()
        && traces
            .iter()
            .zip(prompts.iter().flat_map(|p| std::iter::repeat_n(p, samples)))
            .all(|(trace, prompt)| trace.id == prompt.id && trace.messages == prompt.messages)
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

/// What a model of this machine wrote for a prompt; `writer` is its ID or, for a student, its name.
pub(crate) fn trace_of(
    model: &Model,
    writer: &str,
    prompt: &Prompt,
    request: &GenerationRequest,
    generation: &Generation,
) -> Trace {
    let (reasoning_content, content) = parse_reply(&model.tokenizer.decode_text(&generation.token_ids));
    Trace {
        id: prompt.id.clone(),
        sample: request.sample,
        messages: prompt.messages.clone(),
        reasoning_content,
        content,
        finish_reason: generation.finish_reason,
        prompt_tokens: request.prompt_ids.len() as u32,
        completion_tokens: generation.token_ids.len() as u32,
        teacher: writer.to_owned(),
        usd: 0.0,
    }
}

/// Reasoning and answer of a reply's text. What precedes `</think>` is reasoning.
fn parse_reply(text: &str) -> (Option<String>, String) {
    match text.split_once("</think>") {
        None => (None, text.trim().to_owned()),
        Some((reasoning, content)) => {
            let reasoning = reasoning.trim_start();
            let reasoning = reasoning.strip_prefix("<think>").unwrap_or(reasoning).trim();
            ((!reasoning.is_empty()).then(|| reasoning.to_owned()), content.trim().to_owned())
        }
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
    fn reasoning_and_answer_are_told_apart() {
        let of = |text: &str| parse_reply(text);
        assert_eq!(of("<think>\nSo 1 + 1 = 2\n</think>\n\n2"), (Some("So 1 + 1 = 2".into()), "2".into()));
        assert_eq!(of("already open</think>2"), (Some("already open".into()), "2".into()));
        assert_eq!(of(" 2\n"), (None, "2".into()));
        assert_eq!(of("<think></think>2"), (None, "2".into()));
        assert_eq!(of("<think>never closed"), (None, "<think>never closed".into()));
    }

    #[test]
    fn keys_are_those_of_the_id() {
        assert_eq!(key_of("a"), key_of("a"));
        assert_ne!(key_of("a"), key_of("b"));
    }
}

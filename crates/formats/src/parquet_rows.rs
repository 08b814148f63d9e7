//! Traces and sparse logits as Parquet, readable by any tool (`pandas.read_parquet`).
//!
//! # Traces, one row per trace
//!
//! | column | type | |
//! |---|---|---|
//! | `id` | string | the prompt's id |
//! | `sample` | uint32 | which sample of the prompt, from 0 |
//! | `messages` | string | the conversation, as JSON |
//! | `reasoning_content` | string, nullable | |
//! | `content` | string | |
//! | `finish_reason` | string | `stop` or `length` |
//! | `prompt_tokens`, `completion_tokens` | uint32 | |
//! | `teacher` | string | the ID that the licence gate saw |
//! | `usd` | float64 | |
//!
//! # Sparse logits, one row per trace
//!
//! | column | type | |
//! |---|---|---|
//! | `id`, `sample` | as above | |
//! | `token_ids_digest` | string | SHA-256 of the sequence's token ids (little-endian u32) |
//! | `n_tokens` | uint32 | length of that sequence |
//! | `teacher_entropy` | list of float32 | nats, one per supervised position |
//! | `n_ids` | list of uint32 | how many ids that position has |
//! | `ids` | list of uint32 | of all positions one after the other; ascending within each |
//! | `counts` | list of uint32 | random sampling only: how often each id was drawn |
//! | `probs` | list of float32 | top-K only: the probability of each id |
//!
//! File metadata: `stillroom.format` (`logits/1`), `n_draws` or `top_k`, `tail`, `temperature`,
//! `tokenizer_digest`, `teacher`. With `n_draws`, `counts` of each position sum to it and the
//! weight of an id is count / n_draws.
//!
//! # Log-probabilities, one row per trace
//!
//! | column | type | |
//! |---|---|---|
//! | `id`, `sample` | as above | |
//! | `token_ids_digest`, `n_tokens` | as above | of the sequence in the teacher's own tokens |
//! | `logprobs` | list of float32 | nats, one per supervised token |
//!
//! File metadata: `stillroom.format` (`logprobs/1`), `tokenizer_digest`, `teacher`.

use std::io::Write;

use parquet::basic::Encoding as PageEncoding;
use stillroom_core::{Digest, FinishReason, SparseRow, Tail, Trace};

use crate::error::{FormatError, Result};

mod columns;
mod foreign;
mod logprobs;

pub use foreign::ForeignRows;
pub use logprobs::{LogprobInfo, LogprobRow, read_logprobs, write_logprobs};

use columns::{Columns, Pages, Rows, Table, guarded, wrong};

const TRACES_FORMAT: &str = "traces/1";
const LOGITS_FORMAT: &str = "logits/1";
const FORMAT_KEY: &str = "stillroom.format";
const ROWS_PER_GROUP: usize = 4096;
/// Ids in a row group, so that a reader needs some tens of megabytes for one.
const IDS_PER_GROUP: usize = 1 << 21;

const TRACES_SCHEMA: &str = "message traces {
    required binary id (STRING);
    required int32 sample (INTEGER(32,false));
    required binary messages (STRING);
    optional binary reasoning_content (STRING);
    required binary content (STRING);
    required binary finish_reason (STRING);
    required int32 prompt_tokens (INTEGER(32,false));
    required int32 completion_tokens (INTEGER(32,false));
    required binary teacher (STRING);
    required double usd;
}";

/// Writes traces.
pub fn write_traces(out: impl Write + Send, traces: &[Trace]) -> Result<()> {
    let mut table = Table::create(out, TRACES_SCHEMA, Pages::default())?;
    traces.chunks(ROWS_PER_GROUP).try_for_each(|traces| write_trace_group(&mut table, traces))?;
    table.close(&[(FORMAT_KEY, TRACES_FORMAT.to_owned())])
}

/// Writes traces as they come, to the same bytes as [`write_traces`]; those of one row group are held at a time.
pub struct TraceWriter<W: Write + Send> {
    table: Table<W>,
    pending: Vec<Trace>,
}

impl<W: Write + Send> TraceWriter<W> {
    pub fn create(out: W) -> Result<TraceWriter<W>> {
        Ok(TraceWriter { table: Table::create(out, TRACES_SCHEMA, Pages::default())?, pending: Vec::new() })
    }

    pub fn push(&mut self, trace: Trace) -> Result<()> {
        self.pending.push(trace);
        if self.pending.len() == ROWS_PER_GROUP {
            write_trace_group(&mut self.table, &self.pending)?;
            self.pending.clear();
        }
        Ok(())
    }

    /// Writes what is left, and the footer; returns what it was written to.
    pub fn finish(mut self) -> Result<W> {
        if !self.pending.is_empty() {
            write_trace_group(&mut self.table, &self.pending)?;
        }
        self.table.into_inner(&[(FORMAT_KEY, TRACES_FORMAT.to_owned())])
    }
}

fn write_trace_group<W: Write + Send>(table: &mut Table<W>, traces: &[Trace]) -> Result<()> {
    let mut messages = Vec::with_capacity(traces.len());
    for trace in traces {
        let json = serde_json::to_string(&trace.messages)
            .map_err(|error| FormatError::malformed("trace", error.to_string()))?;
        messages.push(json);
    }
    let mut group = table.row_group()?;
    group.strings(traces.iter().map(|trace| trace.id.as_str()))?;
    group.numbers(traces.iter().map(|trace| trace.sample))?;
    group.strings(messages.iter().map(String::as_str))?;
    group.optional_strings(traces.iter().map(|trace| trace.reasoning_content.as_deref()))?;
    group.strings(traces.iter().map(|trace| trace.content.as_str()))?;
    group.strings(traces.iter().map(|trace| trace.finish_reason.as_str()))?;
    group.numbers(traces.iter().map(|trace| trace.prompt_tokens))?;
    group.numbers(traces.iter().map(|trace| trace.completion_tokens))?;
    group.strings(traces.iter().map(|trace| trace.teacher.as_str()))?;
    group.doubles(traces.iter().map(|trace| trace.usd))?;
    group.close()
}

/// Reads what [`write_traces`] wrote; further columns are left alone.
pub fn read_traces(bytes: Vec<u8>) -> Result<Vec<Trace>> {
    guarded(|| read_traces_unguarded(bytes))
}

fn read_traces_unguarded(bytes: Vec<u8>) -> Result<Vec<Trace>> {
    let columns = Columns::open(bytes)?;
    let mut traces = Vec::new();
    for group in 0..columns.n_groups() {
        let rows = columns.group(group)?;
        let mut id = rows.strings("id")?.into_iter();
        let mut sample = rows.numbers("sample")?.into_iter();
        let mut messages = rows.strings("messages")?.into_iter();
        let mut reasoning = rows.optional_strings("reasoning_content")?.into_iter();
        let mut content = rows.strings("content")?.into_iter();
        let mut finish_reason = rows.strings("finish_reason")?.into_iter();
        let mut prompt_tokens = rows.numbers("prompt_tokens")?.into_iter();
        let mut completion_tokens = rows.numbers("completion_tokens")?.into_iter();
        let mut teacher = rows.strings("teacher")?.into_iter();
        let mut usd = rows.doubles("usd")?.into_iter();
        for _ in 0..rows.n_rows() {
            // Every column was checked to have as many values as the group has rows.
            let missing = || wrong("a column ends early");
            traces.push(Trace {
                id: id.next().ok_or_else(missing)?,
                sample: sample.next().ok_or_else(missing)?,
                messages: serde_json::from_str(&messages.next().ok_or_else(missing)?)
                    .map_err(|error| wrong(format!("`messages`: {error}")))?,
                reasoning_content: reasoning.next().ok_or_else(missing)?,
                content: content.next().ok_or_else(missing)?,
                finish_reason: finish_reason_named(&finish_reason.next().ok_or_else(missing)?)?,
                prompt_tokens: prompt_tokens.next().ok_or_else(missing)?,
                completion_tokens: completion_tokens.next().ok_or_else(missing)?,
                teacher: teacher.next().ok_or_else(missing)?,
                usd: usd.next().ok_or_else(missing)?,
            });
        }
    }
    Ok(traces)
}

fn finish_reason_named(name: &str) -> Result<FinishReason> {
    [FinishReason::Stop, FinishReason::Length]
        .into_iter()
        .find(|reason| reason.as_str() == name)
        .ok_or_else(|| wrong(format!("finish reason `{}`", name.escape_debug())))
}

/// What all rows of a logit cache have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct LogitCacheInfo {
    pub kept: Kept,
    /// What the mass outside the kept ids means.
    pub tail: Tail,
    /// The temperature of the distribution that was kept.
    pub temperature: f32,
    /// [`crate::Tokenizer::digest`] of the teacher's tokenizer.
    pub tokenizer_digest: Digest,
    /// The ID that the licence gate saw.
    pub teacher: String,
}

/// Which part of each distribution was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// That many independent draws, as counts.
    Draws(u32),
    /// The most probable ids, at most that many.
    TopK(u32),
}

/// The teacher's distributions along one trace.
#[derive(Clone, Debug, PartialEq)]
pub struct LogitCacheRow {
    /// Id of the prompt.
    pub id: String,
    /// Which of the samples for the prompt.
    pub sample: u32,
    /// [`Digest::of_token_ids`] of the whole sequence, so that a shifted cache is an error.
    pub token_ids_digest: Digest,
    /// Length of that sequence.
    pub n_tokens: u32,
    /// One per supervised token, in order.
    pub rows: Vec<SparseRow>,
}

fn logits_schema(kept: Kept) -> String {
    let list = |name: &str, element: &str| {
        format!("required group {name} (LIST) {{ repeated group list {{ required {element}; }} }}")
    };
    let unsigned = "int32 element (INTEGER(32,false))";
    let weights = match kept {
        Kept::Draws(_) => list("counts", unsigned),
        Kept::TopK(_) => list("probs", "float element"),
    };
    format!(
        "message logits {{
            required binary id (STRING);
            required int32 sample (INTEGER(32,false));
            required binary token_ids_digest (STRING);
            required int32 n_tokens (INTEGER(32,false));
            {} {} {} {weights}
        }}",
        list("teacher_entropy", "float element"),
        list("n_ids", unsigned),
        list("ids", unsigned),
    )
}

/// Writes a logit cache. Every row is checked: ids ascending, weights that the file can hold
/// exactly, as many counts as draws.
pub fn write_logits(out: impl Write + Send, info: &LogitCacheInfo, rows: &[LogitCacheRow]) -> Result<()> {
    // Measured on synthetic draws (64 per position, vocabularies of 512 and 49,152): split bytes
    // take 10 to 20 % less than delta, dictionary or plain pages.
    let pages = Pages {
        plain: vec![
            ("teacher_entropy.list.element", PageEncoding::BYTE_STREAM_SPLIT),
            ("ids.list.element", PageEncoding::BYTE_STREAM_SPLIT),
            ("counts.list.element", PageEncoding::BYTE_STREAM_SPLIT),
            ("probs.list.element", PageEncoding::BYTE_STREAM_SPLIT),
        ],
    };
    let mut table = Table::create(out, &logits_schema(info.kept), pages)?;
    let mut rest = rows;
    while !rest.is_empty() {
        let mut n_ids = 0;
        let ids_of = |row: &LogitCacheRow| row.rows.iter().map(|row| row.ids.len()).sum::<usize>();
        let fits = |row: &&LogitCacheRow| {
            n_ids += ids_of(row);
            n_ids <= IDS_PER_GROUP
        };
        let n_rows = rest.iter().take(ROWS_PER_GROUP).take_while(fits).count().max(1);
        let (group, after) = rest.split_at(n_rows);
        write_logit_group(&mut table, info, group)?;
        rest = after;
    }
    let (key, number) = match info.kept {
        Kept::Draws(n) => ("n_draws", n),
        Kept::TopK(k) => ("top_k", k),
    };
    table.close(&[
        (FORMAT_KEY, LOGITS_FORMAT.to_owned()),
        (key, number.to_string()),
        ("tail", tail_name(info.tail).to_owned()),
        ("temperature", info.temperature.to_string()),
        ("tokenizer_digest", info.tokenizer_digest.to_string()),
        ("teacher", info.teacher.clone()),
    ])
}

fn write_logit_group(
    table: &mut Table<impl Write + Send>,
    info: &LogitCacheInfo,
    rows: &[LogitCacheRow],
) -> Result<()> {
    for row in rows {
        for (position, sparse) in row.rows.iter().enumerate() {
            check_row(sparse, info.kept).map_err(|what| FormatError::LogitRow {
                id: row.id.clone(),
                position,
                what,
            })?;
        }
    }
    let digests: Vec<String> = rows.iter().map(|row| row.token_ids_digest.to_string()).collect();
    let mut group = table.row_group()?;
    group.strings(rows.iter().map(|row| row.id.as_str()))?;
    group.numbers(rows.iter().map(|row| row.sample))?;
    group.strings(digests.iter().map(String::as_str))?;
    group.numbers(rows.iter().map(|row| row.n_tokens))?;
    group.float_lists(rows.iter().map(|row| row.rows.iter().map(|row| row.teacher_entropy)))?;
    group.number_lists(rows.iter().map(|row| row.rows.iter().map(|row| row.ids.len() as u32)))?;
    group.number_lists(rows.iter().map(|row| row.rows.iter().flat_map(|row| row.ids.iter().copied())))?;
    match info.kept {
        Kept::Draws(n) => {
            let count = |probability: &f32| draws_of(*probability, n).unwrap_or(0);
            group.number_lists(
                rows.iter().map(|row| row.rows.iter().flat_map(|row| row.probs.iter().map(count))),
            )?;
        }
        Kept::TopK(_) => {
            group.float_lists(
                rows.iter().map(|row| row.rows.iter().flat_map(|row| row.probs.iter().copied())),
            )?;
        }
    }
    group.close()
}

/// The count behind a weight, if the weight is exactly count / n.
fn draws_of(weight: f32, n: u32) -> Option<u32> {
    let count = (f64::from(weight) * f64::from(n)).round();
    let valid = count >= 1.0 && count <= f64::from(n);
    valid.then_some(count as u32).filter(|&count| weight == weight_of(count, n))
}

fn weight_of(count: u32, n: u32) -> f32 {
    count as f32 / n as f32
}

/// What is wrong with a row, if anything.
fn check_row(row: &SparseRow, kept: Kept) -> Result<(), String> {
    if row.ids.len() != row.probs.len() {
        return Err(format!("{} ids and {} weights", row.ids.len(), row.probs.len()));
    }
    if let Some(pair) = row.ids.windows(2).find(|pair| pair[0] >= pair[1]) {
        return Err(format!("id {} before id {}", pair[0], pair[1]));
    }
    if !(row.teacher_entropy.is_finite() && row.teacher_entropy >= -ROUNDING) {
        return Err(format!("an entropy of {}", row.teacher_entropy));
    }
    match kept {
        Kept::Draws(n) => {
            let mut sum = 0u64;
            for &weight in &row.probs {
                let count =
                    draws_of(weight, n).ok_or_else(|| format!("weight {weight} is not a count of {n}"))?;
                sum += u64::from(count);
            }
            if sum != u64::from(n) {
                return Err(format!("{sum} draws instead of {n}"));
            }
        }
        Kept::TopK(k) => {
            if row.ids.len() > k as usize {
                return Err(format!("{} ids, more than {k}", row.ids.len()));
            }
            if let Some(p) = row.probs.iter().find(|p| !(0.0..=1.0 + ROUNDING).contains(*p)) {
                return Err(format!("a probability of {p}"));
            }
            let sum: f64 = row.probs.iter().map(|&p| f64::from(p)).sum();
            if sum > 1.0 + f64::from(ROUNDING) * 10.0 {
                return Err(format!("probabilities that sum to {sum}"));
            }
        }
    }
    Ok(())
}

/// How far f32 arithmetic may leave the range of a probability or an entropy.
const ROUNDING: f32 = 1e-4;

/// Reads what [`write_logits`] wrote, and checks every row as that does.
pub fn read_logits(bytes: Vec<u8>) -> Result<(LogitCacheInfo, Vec<LogitCacheRow>)> {
    guarded(|| {
        let columns = Columns::open(bytes)?;
        let info = logit_info(&columns)?;
        let mut all = Vec::new();
        for group in 0..columns.n_groups() {
            read_logit_group(&columns.group(group)?, &info, &mut all)?;
        }
        Ok((info, all))
    })
}

fn read_logit_group(rows: &Rows<'_>, info: &LogitCacheInfo, all: &mut Vec<LogitCacheRow>) -> Result<()> {
    let id = rows.strings("id")?;
    let sample = rows.numbers("sample")?;
    let digest = rows.strings("token_ids_digest")?;
    let n_tokens = rows.numbers("n_tokens")?;
    let entropy = rows.float_lists("teacher_entropy")?;
    let n_ids = rows.number_lists("n_ids")?;
    let ids = rows.number_lists("ids")?;
    let weights = match info.kept {
        Kept::Draws(n) => rows.number_lists("counts")?.map(|count| weight_of(count, n)),
        Kept::TopK(_) => rows.float_lists("probs")?,
    };
    for (i, id) in id.into_iter().enumerate() {
        let (lengths, entropies) = (n_ids.list(i), entropy.list(i));
        let (ids, weights) = (ids.list(i), weights.list(i));
        let announced: u64 = lengths.iter().map(|&n| u64::from(n)).sum();
        if lengths.len() != entropies.len() || ids.len() as u64 != announced || weights.len() != ids.len() {
            return Err(wrong(format!("the lists of `{}` do not fit each other", id.escape_debug())));
        }
        let mut start = 0;
        let mut sparse = Vec::with_capacity(lengths.len());
        for (position, (&len, &teacher_entropy)) in lengths.iter().zip(entropies).enumerate() {
            let range = start..start + len as usize;
            start = range.end;
            let (ids, probs) = (ids[range.clone()].to_vec(), weights[range].to_vec());
            let row = SparseRow { ids, probs, teacher_entropy };
            check_row(&row, info.kept).map_err(|what| FormatError::LogitRow {
                id: id.clone(),
                position,
                what,
            })?;
            sparse.push(row);
        }
        all.push(LogitCacheRow {
            id,
            sample: sample[i],
            token_ids_digest: Digest::try_from(digest[i].clone()).map_err(wrong)?,
            n_tokens: n_tokens[i],
            rows: sparse,
        });
    }
    Ok(())
}

fn logit_info(columns: &Columns) -> Result<LogitCacheInfo> {
    let required =
        |key: &str| columns.metadata(key).ok_or_else(|| wrong(format!("the file's metadata has no `{key}`")));
    let bad = |key: &str, value: &str| wrong(format!("metadata `{key}` is `{}`", value.escape_debug()));
    let format = required(FORMAT_KEY)?;
    if format != LOGITS_FORMAT {
        let value = format.escape_debug().to_string();
        return Err(FormatError::Unsupported { what: "logit cache", value });
    }
    let positive =
        |key: &str, value: &str| value.parse().ok().filter(|&n: &u32| n > 0).ok_or_else(|| bad(key, value));
    let kept = match (columns.metadata("n_draws"), columns.metadata("top_k")) {
        (Some(n), None) => Kept::Draws(positive("n_draws", n)?),
        (None, Some(k)) => Kept::TopK(positive("top_k", k)?),
        _ => return Err(wrong("the file's metadata needs either `n_draws` or `top_k`")),
    };
    let tail = required("tail")?;
    let temperature = required("temperature")?;
    Ok(LogitCacheInfo {
        kept,
        tail: TAILS.into_iter().find(|t| tail_name(*t) == tail).ok_or_else(|| bad("tail", tail))?,
        temperature: temperature
            .parse()
            .ok()
            .filter(|t: &f32| t.is_finite() && *t > 0.0)
            .ok_or_else(|| bad("temperature", temperature))?,
        tokenizer_digest: Digest::try_from(required("tokenizer_digest")?.to_owned()).map_err(wrong)?,
        teacher: required("teacher")?.to_owned(),
    })
}

const TAILS: [Tail; 5] = [Tail::None, Tail::Drop, Tail::Renormalise, Tail::Bucket, Tail::Uniform];

fn tail_name(tail: Tail) -> &'static str {
    match tail {
        Tail::None => "none",
        Tail::Drop => "drop",
        Tail::Renormalise => "renormalise",
        Tail::Bucket => "bucket",
        Tail::Uniform => "uniform",
    }
}

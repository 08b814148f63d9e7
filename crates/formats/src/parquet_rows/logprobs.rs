//! Log-probabilities that a teacher gives its own tokens of some texts.

use std::io::Write;

use parquet::basic::Encoding as PageEncoding;
use stillroom_core::Digest;

use super::columns::{Columns, Pages, Table, guarded, wrong};
use super::{FORMAT_KEY, ROWS_PER_GROUP};
use crate::error::{FormatError, Result};

const FORMAT: &str = "logprobs/1";

const SCHEMA: &str = "message logprobs {
    required binary id (STRING);
    required int32 sample (INTEGER(32,false));
    required binary token_ids_digest (STRING);
    required int32 n_tokens (INTEGER(32,false));
    required group logprobs (LIST) { repeated group list { required float element; } }
}";

/// What all rows have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogprobInfo {
    /// [`crate::Tokenizer::digest`] of the teacher's tokenizer.
    pub tokenizer_digest: Digest,
    /// The ID that the licence gate saw.
    pub teacher: String,
}

/// The teacher's scores of one text.
#[derive(Clone, Debug, PartialEq)]
pub struct LogprobRow {
    /// Id of the prompt.
    pub id: String,
    /// Which of the samples for the prompt.
    pub sample: u32,
    /// [`Digest::of_token_ids`] of the whole sequence in the teacher's own tokens.
    pub token_ids_digest: Digest,
    /// Length of that sequence.
    pub n_tokens: u32,
    /// log p in nats at temperature 1 of each supervised token, in order.
    pub logprobs: Vec<f32>,
}

/// Writes scores. Every number is checked to be a log-probability.
pub fn write_logprobs(out: impl Write + Send, info: &LogprobInfo, rows: &[LogprobRow]) -> Result<()> {
    let pages = Pages { plain: vec![("logprobs.list.element", PageEncoding::BYTE_STREAM_SPLIT)] };
    let mut table = Table::create(out, SCHEMA, pages)?;
    for rows in rows.chunks(ROWS_PER_GROUP) {
        rows.iter().try_for_each(check)?;
        let digests: Vec<String> = rows.iter().map(|row| row.token_ids_digest.to_string()).collect();
        let mut group = table.row_group()?;
        group.strings(rows.iter().map(|row| row.id.as_str()))?;
        group.numbers(rows.iter().map(|row| row.sample))?;
        group.strings(digests.iter().map(String::as_str))?;
        group.numbers(rows.iter().map(|row| row.n_tokens))?;
        group.float_lists(rows.iter().map(|row| row.logprobs.iter().copied()))?;
        group.close()?;
    }
    table.close(&[
        (FORMAT_KEY, FORMAT.to_owned()),
        ("tokenizer_digest", info.tokenizer_digest.to_string()),
        ("teacher", info.teacher.clone()),
    ])
}

/// Reads what [`write_logprobs`] wrote, and checks it as that does.
pub fn read_logprobs(bytes: Vec<u8>) -> Result<(LogprobInfo, Vec<LogprobRow>)> {
    guarded(|| {
        let columns = Columns::open(bytes)?;
        let required = |key: &str| {
            columns.metadata(key).ok_or_else(|| wrong(format!("the file's metadata has no `{key}`")))
        };
        let format = required(FORMAT_KEY)?;
        if format != FORMAT {
            let value = format.escape_debug().to_string();
            return Err(FormatError::Unsupported { what: "file of log-probabilities", value });
        }
        let digest = |text: &str| Digest::try_from(text.to_owned()).map_err(wrong);
        let tokenizer_digest = digest(required("tokenizer_digest")?)?;
        let info = LogprobInfo { tokenizer_digest, teacher: required("teacher")?.to_owned() };
        let mut all = Vec::new();
        for group in 0..columns.n_groups() {
            let rows = columns.group(group)?;
            let (id, sample) = (rows.strings("id")?, rows.numbers("sample")?);
            let (digests, n_tokens) = (rows.strings("token_ids_digest")?, rows.numbers("n_tokens")?);
            let logprobs = rows.float_lists("logprobs")?;
            for (i, id) in id.into_iter().enumerate() {
                let (token_ids_digest, logprobs) = (digest(&digests[i])?, logprobs.list(i).to_vec());
                let (sample, n_tokens) = (sample[i], n_tokens[i]);
                let row = LogprobRow { id, sample, token_ids_digest, n_tokens, logprobs };
                check(&row)?;
                all.push(row);
            }
        }
        Ok((info, all))
    })
}

fn check(row: &LogprobRow) -> Result<()> {
    if row.logprobs.len() > row.n_tokens as usize {
        let (n, of) = (row.logprobs.len(), row.n_tokens);
        return Err(wrong(format!("`{}` has {n} scores of {of} tokens", row.id.escape_debug())));
    }
    let is_logprob = |l: f32| l.is_finite() && l <= super::ROUNDING;
    match row.logprobs.iter().position(|&l| !is_logprob(l)) {
        None => Ok(()),
        Some(position) => {
            let what = format!("a log-probability of {}", row.logprobs[position]);
            Err(FormatError::LogitRow { id: row.id.clone(), position, what })
        }
    }
}

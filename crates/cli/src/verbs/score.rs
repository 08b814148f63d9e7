//! `stillroom score`: the log-probability of each token of a text.

use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use serde_json::json;
use stillroom_model::Decoder;

use crate::args::Score;
use crate::failure::{Exit, Failure, Result};
use crate::{models, terminal};

/// A text is scored whole in memory.
const TEXT_BYTES_MAX: u64 = 256 << 20;

pub(super) fn score(args: &Score) -> Result<ExitCode> {
    let text = read_text(&args.text)?;
    let model = models::load_adapted(&args.model, args.adapter.as_deref(), models::device(&args.machine))?;
    let ids = model.tokenizer.begun(model.tokenizer.encode_plain(&text)?);
    if ids.is_empty() {
        return Err(Failure::new(Exit::BadData, "the text is empty: there is nothing to score")
            .at(args.text.display().to_string())
            .fix("give a text of at least two tokens"));
    }
    model.decoder.check_ids(&ids)?;
    let logprobs = score_in_windows(&model.decoder, &ids);
    let scored = logprobs.len();
    let nll = -logprobs.iter().map(|&l| f64::from(l)).sum::<f64>() / scored as f64;
    let nll = (scored > 0).then_some(nll);
    if args.json {
        let first: Option<f32> = None;
        let all: Vec<Option<f32>> = std::iter::once(first).chain(logprobs.into_iter().map(Some)).collect();
        let value = json!({ "tokens": ids, "token_logprobs": all, "nll_nats_per_token": nll });
        terminal::print_line(&value.to_string())?;
    } else if let Some(nll) = nll {
        terminal::print_line(&format!(
            "{scored} tokens scored, {nll:.4} nats per token, perplexity {:.4}",
            nll.exp()
        ))?;
    } else {
        terminal::print_line("1 token, nothing before it: no score")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// log p of ids\[1..\]. A text longer than the context is read in windows that start half a context
/// apart; each token is scored once, in the first window that holds it with something before it.
pub(crate) fn score_in_windows(decoder: &Decoder, ids: &[u32]) -> Vec<f32> {
    let context = decoder.config().max_position_embeddings.max(2);
    let mut logprobs: Vec<f32> = Vec::with_capacity(ids.len());
    for (start, end) in windows(ids.len(), context) {
        let of_window = decoder.token_logprobs(&[&ids[start..end]]).swap_remove(0);
        // Entry i belongs to token start + 1 + i; the first ones were scored with more before them.
        logprobs.extend(&of_window[logprobs.len() - start..]);
    }
    logprobs
}

/// Windows of at most `context` tokens, half a context apart, the last one ending at `n`.
fn windows(n: usize, context: usize) -> Vec<(usize, usize)> {
    let stride = (context / 2).max(1);
    let mut windows = Vec::new();
    let mut start = 0;
    loop {
        let end = (start + context).min(n);
        windows.push((start, end));
        if end == n {
            return windows;
        }
        start += stride;
    }
}

fn read_text(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    let failed = |e: std::io::Error| Failure::io("read", path, &e);
    if path == Path::new("-") {
        std::io::stdin().lock().take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    } else {
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    }
    if bytes.len() as u64 > TEXT_BYTES_MAX {
        let cause = format!("the text is longer than {TEXT_BYTES_MAX} bytes");
        return Err(Failure::new(Exit::BadData, cause).fix("score it in pieces"));
    }
    String::from_utf8(bytes).map_err(|e| {
        let offset = e.utf8_error().valid_up_to();
        Failure::new(Exit::BadData, format!("the text is not UTF-8 at byte {offset}"))
            .at(path.display().to_string())
            .fix("convert it to UTF-8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_but_the_first_is_scored_once_with_half_a_context_before_it() {
        for context in [2usize, 3, 8, 9] {
            for n in 1..40 {
                let mut scored_to = 1;
                for (start, end) in windows(n, context) {
                    assert!(end - start <= context && start < scored_to, "{n} {context}");
                    assert!(scored_to < 2 || end == n || end > scored_to);
                    if scored_to > 1 {
                        assert!(scored_to - start >= context / 2, "{n} {context}");
                    }
                    scored_to = end;
                }
                assert_eq!(scored_to, n);
            }
        }
    }
}

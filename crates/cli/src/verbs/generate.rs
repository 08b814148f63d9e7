//! `stillroom generate`: continue a text with a model.

use std::process::ExitCode;

use serde_json::json;
use stillroom_core::{Message, Role};
use stillroom_model::{GenerationRequest, SamplingParams};

use crate::args::Generate;
use crate::failure::{Exit, Failure, Result};
use crate::{models, terminal};

pub(super) fn generate(args: &Generate) -> Result<ExitCode> {
    let model = models::load_adapted(&args.model, args.adapter.as_deref(), models::device(&args.machine))?;
    let prompt_ids = if args.chat {
        model.tokenizer.encode_chat(&[Message::new(Role::User, args.prompt.as_str())], true)?
    } else {
        model.tokenizer.begun(model.tokenizer.encode(&args.prompt)?)
    };
    if prompt_ids.is_empty() {
        return Err(Failure::new(Exit::Usage, "the prompt is empty").at("--prompt").fix("give it a text"));
    }
    model.decoder.check_ids(&prompt_ids)?;
    let sampling = SamplingParams {
        max_tokens: args.max_tokens,
        temperature: args.temperature,
        top_p: args.top_p,
        seed: args.seed,
        stop_token_ids: model.decoder.config().eos_token_ids.clone(),
    };
    let request = GenerationRequest { prompt_ids, key: 0, sample: 0 };
    let mut written = None;
    model.decoder.generate(&[request], &sampling, 1, &mut |_, generation| written = Some(generation))?;
    let written = written.ok_or_else(|| Failure::new(Exit::Failed, "the model wrote nothing at all"))?;
    let text = model.tokenizer.decode_text(&written.token_ids);
    if args.json {
        let value = json!({
            "tokens": written.token_ids,
            "text": text,
            "token_logprobs": written.logprobs,
            "finish_reason": written.finish_reason.as_str(),
        });
        terminal::print_line(&value.to_string())?;
    } else {
        terminal::print_line(&terminal::harmless(&text))?;
    }
    Ok(ExitCode::SUCCESS)
}

//! How a prompt is put to a teacher behind endpoints, as a conversation or as a text that the reply continues; and what its
//! reply becomes.

use stillroom_core::{CounterRng, FinishReason, Prompt, Role, Trace};
use stillroom_formats::ChatTemplate;
use stillroom_formats::openai::{Finish, split_reasoning};
use stillroom_teacher::{Ask, Receipt};

use super::teach::key_of;
use crate::failure::{Exit, Failure, Result};
use crate::recipe::{Api, Source, Teacher};

/// Names seeds of replies among other draws.
const REPLY: u64 = 0x0072_6570_6c79;
/// Seeds that every service takes.
const SEED_MASK: u64 = 0x7fff_ffff;
const TEMPLATE: [&str; 2] = ["teacher", "chat_template"];

/// How this teacher is asked.
pub(crate) struct Wording {
    teacher: String,
    seed: u64,
    how: How,
}

enum How {
    Chat,
    /// By the template, where there is one. `place` is where the recipe could name it.
    Text {
        template: Option<Box<ChatTemplate>>,
        place: String,
    },
}

impl Wording {
    /// Reads the template, where the recipe names one.
    pub(crate) fn of(teacher: &Teacher, source: &Source) -> Result<Wording> {
        let wire = teacher.wire.as_ref().expect("a teacher behind endpoints");
        let how = match wire.api {
            Api::Chat => How::Chat,
            Api::Completions => {
                let template =
                    wire.chat_template.as_deref().map(|path| template(path, source)).transpose()?;
                How::Text { template: template.map(Box::new), place: source.place(&["teacher", "api"]) }
            }
        };
        Ok(Wording { teacher: teacher.model.clone(), seed: teacher.seed, how })
    }

    /// Whether the prompt can be put like this at all.
    pub(super) fn check(&self, prompt: &Prompt) -> Result<()> {
        match &self.how {
            How::Chat => Ok(()),
            How::Text { template, place } => text_of(prompt, template.as_deref(), place).map(drop),
        }
    }

    pub(super) fn ask(&self, prompt: &Prompt, sample: u32) -> Result<Ask> {
        let draw = CounterRng::new(&[REPLY, self.seed, key_of(&prompt.id), sample.into()]).next_u64();
        let (id, messages, seed) = (prompt.id.clone(), prompt.messages.clone(), draw & SEED_MASK);
        match &self.how {
            How::Chat => Ok(Ask::chat(id, sample, messages, seed)),
            How::Text { template, place } => {
                let text = text_of(prompt, template.as_deref(), place)?;
                Ok(Ask::complete(id, sample, messages, text, seed))
            }
        }
    }

    /// What came of it. A text that continues another stays as it came, white space and all; one that answers a conversation
    /// loses its edges, and its reasoning stands apart.
    pub(super) fn trace(&self, ask: Ask, receipt: &Receipt) -> Trace {
        let reply = &receipt.reply;
        let (reasoning_content, content) = match &self.how {
            How::Text { template: Some(_), .. } => split_reasoning(&reply.content),
            _ => (reply.reasoning_content.clone(), reply.content.clone()),
        };
        Trace {
            reasoning_content,
            content,
            finish_reason: match reply.finish {
                Finish::Length => FinishReason::Length,
                _ => FinishReason::Stop,
            },
            prompt_tokens: u32::try_from(receipt.prompt_tokens).unwrap_or(u32::MAX),
            completion_tokens: u32::try_from(receipt.completion_tokens).unwrap_or(u32::MAX),
            usd: receipt.usd,
            ..self.no_reply(ask)
        }
    }

    /// What stands for a reply that the teacher refused: an empty one, which no verifier takes for right.
    pub(super) fn no_reply(&self, ask: Ask) -> Trace {
        Trace {
            id: ask.id.clone(),
            sample: ask.sample,
            messages: ask.into_messages(),
            reasoning_content: None,
            content: String::new(),
            finish_reason: FinishReason::Stop,
            prompt_tokens: 0,
            completion_tokens: 0,
            teacher: self.teacher.clone(),
            usd: 0.0,
        }
    }
}

fn template(path: &str, source: &Source) -> Result<ChatTemplate> {
    let path = source.resolve_path(path);
    let text = std::fs::read_to_string(&path).map_err(|error| Failure::io("read", &path, &error))?;
    let template =
        ChatTemplate::new(text).map_err(|error| Failure::from(error).at(source.place(&TEMPLATE)))?;
    if template.names_eos_token() {
        let cause = format!(
            "the template in `{}` has `eos_token`, which the file alone does not say",
            path.display()
        );
        return Err(source.bad(&TEMPLATE, cause).fix("write the token itself in its place"));
    }
    Ok(template)
}

/// A plain prompt is its own text.
fn text_of(prompt: &Prompt, template: Option<&ChatTemplate>, place: &str) -> Result<String> {
    if let Some(template) = template {
        return template.prompt(&prompt.messages).map_err(|error| {
            let cause = format!("`{}` does not go into the chat template: {error}", prompt.id);
            Failure::new(Exit::BadData, cause).code("chat-template").at(place.to_owned())
        });
    }
    match &prompt.messages[..] {
        [turn] if turn.role == Role::User && !turn.uses_tools() => Ok(turn.content.clone()),
        _ => {
            let cause = format!("`{}` is a conversation, and completions continue a text", prompt.id);
            Err(Failure::new(Exit::BadData, cause)
                .code("no-chat-template")
                .at(place.to_owned())
                .fix("name the teacher's template, `chat_template = \"FILE.jinja\"` under `[teacher]`; or write `api = \"chat\"`"))
        }
    }
}

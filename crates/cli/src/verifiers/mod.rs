//! Verifiers that run programs, beside those of `corpus`.
//!
//! A recipe may come from anybody. So what it asks to run on this machine (`command`) runs only where whoever started the
//! program says so on its command line, and what a teacher wrote (`code`) runs only in a sandbox.

mod code;
mod command;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use stillroom_core::{Digest, Message, Prompt};
use stillroom_corpus::{Verdict, Verifier, verify};

use crate::failure::{Exit, Failure, Result};
use crate::flow::digest_of;
use crate::process;
use crate::recipe::{Recipe, Source};

/// The verifier of a recipe, if it has one; `consent` says whether its command may run.
///
/// # Errors
/// Where nobody consented to a command, or code cannot be run in a sandbox here.
pub(crate) fn verifier(recipe: &Recipe, source: &Source, consent: bool) -> Result<Option<Arc<dyn Verifier>>> {
    let Some(choice) = &recipe.prompts.verifier else { return Ok(None) };
    let place = || source.place(&["prompts", "verifier"]);
    let Some(program) = &choice.program else {
        return match verify::verifier_with(&choice.name, &choice.options) {
            Ok(Some(verifier)) => Ok(Some(verifier.into())),
            // The recipe was checked when it was read.
            Ok(None) => {
                Err(Failure::new(Exit::BadRecipe, format!("no verifier `{}`", choice.name)).at(place()))
            }
            Err(cause) => Err(Failure::new(Exit::BadRecipe, cause).at(place())),
        };
    };
    let time = Duration::from_secs_f64(program.timeout_s);
    if let Some(memory_mb) = program.memory_mb {
        let verifier = code::CodeVerifier::new(time, memory_mb).map_err(|reason| {
            Failure::new(Exit::Failed, "code that a model wrote is run in a sandbox only, and there is none here")
                .code("no-sandbox")
                .at(place())
                .detail(reason)
                .fix("allow user namespaces on this machine (`unshare --user --net true` has to work), or use another verifier")
        })?;
        return Ok(Some(Arc::new(verifier)));
    }
    if !consent {
        return Err(process::not_allowed(&program.command, place(), "for each reply"));
    }
    let (program, words) = process::located(source, &program.command);
    Ok(Some(Arc::new(command::CommandVerifier { program, words, time })))
}

/// A verifier that remembers what it said: several steps ask for the same reply, and a program may take seconds or judge
/// otherwise the next time.
pub(crate) struct Remembering<'a> {
    verifier: &'a dyn Verifier,
    said: Mutex<HashMap<Digest, Verdict>>,
}

impl Remembering<'_> {
    pub(crate) fn new(verifier: &dyn Verifier) -> Remembering<'_> {
        Remembering { verifier, said: Mutex::default() }
    }

    /// What was said takes memory.
    pub(crate) fn forget(&self) {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Verifier for Remembering<'_> {
    fn name(&self) -> &'static str {
        self.verifier.name()
    }

    fn verify(&self, prompt: &Prompt, reply: &Message) -> Verdict {
        let asked = digest_of(&(&prompt.id, reply));
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.entry(asked).or_insert_with(|| self.verifier.verify(prompt, reply)).clone()
    }

    fn answer(&self, reply: &Message) -> Option<String> {
        self.verifier.answer(reply)
    }
}

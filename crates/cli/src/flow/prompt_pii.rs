//! Personal data in prompts that go to other machines: stopped, replaced, or let through, as the policy says.

use std::collections::BTreeMap;

use stillroom_core::Prompt;
use stillroom_corpus::pii::{self, Class};

use super::Flow;
use crate::failure::{Exit, Failure, Result};
use crate::recipe::{Endpoint, PromptPii, is_this_machine};

/// Prompts that a message names.
const NAMED_MAX: usize = 3;

impl Flow {
    /// What is done with personal data in prompts; nothing where they stay on this machine.
    pub(super) fn prompt_pii(&self) -> PromptPii {
        let Some(wire) = self.recipe.wire() else { return PromptPii::Allow };
        let elsewhere = |endpoint: &Endpoint| !is_this_machine(&endpoint.base_url);
        let leaves = wire.is_by_hand() || wire.asked().iter().any(elsewhere);
        match self.recipe.policy.prompt_pii {
            // A replayed run has what was sent then.
            PromptPii::Redact if leaves || wire.replay.is_some() => PromptPii::Redact,
            PromptPii::Block if leaves => PromptPii::Block,
            _ => PromptPii::Allow,
        }
    }

    /// How many prompts there are, none of which the policy blocks.
    ///
    /// # Errors
    /// Where it blocks and something is found: how much of what, and in which prompts, but not the text itself.
    pub(super) fn check_pii(&self, prompts: impl Iterator<Item = Result<Prompt>>) -> Result<u64> {
        let blocks = self.prompt_pii() == PromptPii::Block;
        let (mut n_prompts, mut n) = (0, 0);
        let mut classes: BTreeMap<Class, u64> = BTreeMap::new();
        let mut named = Vec::new();
        for prompt in prompts {
            let prompt = prompt?;
            n_prompts += 1;
            let found = blocks.then(|| pii::find_in_prompt(&prompt, &Class::ALL)).flatten();
            let Some((_, finding)) = found else { continue };
            n += 1;
            *classes.entry(finding.class).or_default() += 1;
            if named.len() < NAMED_MAX {
                named.push(format!("`{}` ({})", prompt.id, finding.kind));
            }
        }
        if n == 0 {
            return Ok(n_prompts);
        }
        let counts: Vec<String> = classes.iter().map(|(class, n)| format!("{n} with {class}")).collect();
        let cause = format!("{n} prompts hold personal data or secrets, and they would leave this machine");
        Err(Failure::new(Exit::Policy, cause)
            .code("prompt-pii")
            .at(self.source.place(&["policy", "prompt_pii"]))
            .detail(format!("by what is found first: {}", counts.join(", ")))
            .detail(format!("for example {}", named.join(", ")))
            .fix("write `prompt_pii = \"redact\"` under `[policy]` to send placeholders, or `\"allow\"` if they may be sent"))
    }
}

/// A prompt with placeholders for what is found in it.
pub(super) fn redacted(prompt: Prompt) -> Prompt {
    let of = |message| pii::redact_message(message, &Class::ALL);
    Prompt { messages: prompt.messages.into_iter().map(of).collect(), ..prompt }
}

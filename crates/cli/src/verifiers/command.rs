//! The verifier `command`: a program of the user's says whether a reply is right.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use stillroom_core::{Message, Prompt};
use stillroom_corpus::{Verdict, Verifier};

use crate::process::{End, bare, first_line, run};

/// Runs a program for each reply. It reads `{"prompt": …, "reply": …}` and ends with 0 for a right reply, with 1 for a wrong one;
/// its first line of output is the reason. Its environment has `PATH` and nothing else, so no keys.
pub(super) struct CommandVerifier {
    pub(super) program: PathBuf,
    pub(super) words: Vec<String>,
    pub(super) time: Duration,
}

impl Verifier for CommandVerifier {
    fn name(&self) -> &'static str {
        "command"
    }

    fn verify(&self, prompt: &Prompt, reply: &Message) -> Verdict {
        let command = bare(&self.program, &self.words);
        let input = json!({"prompt": prompt, "reply": reply}).to_string().into_bytes();
        let outcome = match run(command, input, self.time) {
            Ok(outcome) => outcome,
            Err(error) => return Verdict::wrong(format!("the command cannot be run: {error}")),
        };
        let said = first_line(&outcome.stdout);
        match outcome.end {
            End::TimedOut => {
                Verdict::wrong(format!("the command took longer than {} s", self.time.as_secs_f64()))
            }
            End::Flooded => Verdict::wrong("the command says too much"),
            End::Exited(status) => match status.code() {
                Some(0) => Verdict::right(),
                Some(1) if said.is_empty() => Verdict::wrong("the command says no"),
                Some(1) => Verdict::wrong(said),
                Some(code) => {
                    Verdict::wrong(format!("the command failed with {code}: {}", first_line(&outcome.stderr)))
                }
                None => Verdict::wrong("the command was ended by a signal"),
            },
        }
    }

    /// Only the program knows what the answer in a reply is.
    fn answer(&self, _: &Message) -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use stillroom_core::Role;

    use super::*;

    fn verdict(script: &str) -> (bool, String) {
        let verifier = CommandVerifier {
            program: "sh".into(),
            words: vec!["-c".into(), script.into()],
            time: Duration::from_millis(500),
        };
        let prompt = Prompt { id: "1".into(), messages: vec![], answer: Some("7".into()), target: None };
        let verdict = verifier.verify(&prompt, &Message::new(Role::Assistant, "seven"));
        (verdict.correct, verdict.reason)
    }

    #[test]
    fn a_commands_end_is_its_verdict() {
        assert_eq!(verdict("exit 0"), (true, "right answer".into()));
        assert_eq!(verdict("echo; echo ' because '; exit 1"), (false, "because".into()));
        assert_eq!(verdict("exit 1"), (false, "the command says no".into()));
        assert_eq!(verdict("echo oh >&2; exit 3"), (false, "the command failed with 3: oh".into()));
        assert_eq!(verdict("kill -9 $$"), (false, "the command was ended by a signal".into()));
        let input = r#"read -r line; case "$line" in '{"prompt":{"id":"1"'*'"content":"seven"}}') exit 0;; esac; echo "$line"; exit 1"#;
        assert_eq!(verdict(input), (true, "right answer".into()));
        let missing = CommandVerifier {
            program: "no-such-program".into(),
            words: vec![],
            time: Duration::from_secs(1),
        };
        let prompt = Prompt { id: "1".into(), messages: vec![], answer: None, target: None };
        let verdict = missing.verify(&prompt, &Message::new(Role::Assistant, ""));
        assert!(verdict.reason.starts_with("the command cannot be run"), "{}", verdict.reason);
    }

    #[test]
    fn a_command_that_goes_on_is_ended_with_all_that_it_started() {
        let begun = Instant::now();
        assert_eq!(verdict("sleep 60 & sleep 60"), (false, "the command took longer than 0.5 s".into()));
        assert_eq!(verdict("sleep 60 & exit 0"), (true, "right answer".into()));
        assert!(
            verdict("while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done").1.starts_with("the command ")
        );
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
}

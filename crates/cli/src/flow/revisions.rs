//! Stages `critiques` and `revisions`: the teacher says what is wrong with a reply, and writes a better one.
//!
//! After Bai et al. 2022, "Constitutional AI", section 3.1. What comes of it is text like any other: a revision that is
//! preferred to what it revises is compared by the verifier, one that is learned in its place is curated as a trace is.

use std::collections::{HashMap, HashSet};

use serde_json::json;
use stillroom_core::{Message, Role, Trace};
use stillroom_corpus::{Split, Verifier};
use stillroom_evaluate::RevisionFacts;

use crate::failure::Result;
use crate::flow::feedback::{Judged, Pair, answer, asked_as, may_be_judged};
use crate::flow::teach::{Asked, PROMPTS_PER_PART, key_of};
use crate::flow::{Flow, digest_of};
use crate::recipe::Candidates;

pub(crate) const STAGE: &str = "revisions";
const FOLDER: &str = "corpus/revisions";
const CRITIQUES_STAGE: &str = "critiques";
const CRITIQUES: &str = "corpus/critiques";
const REVISE: &str = "Now write a better answer to the question. Write the answer and nothing else.";

/// Revisions by prompt and sample of what they revise.
pub(crate) type Revisions = HashMap<(String, u32), Trace>;

impl Flow {
    /// Lets the teacher criticise and revise what stage `from` wrote.
    pub(crate) fn revise(&mut self, rubric: &str, candidates: &Candidates, from: &str) -> Result<()> {
        let teacher = self.recipe.teacher.as_ref();
        let writes = teacher.map(|t| json!([t.model, t.seed, t.max_tokens, t.temperature, t.top_p]));
        let settings = json!([1, rubric, self.teacher_digest()?, writes]);
        let made_from = digest_of(&settings);
        self.stage(CRITIQUES_STAGE, &settings, &[from], &[CRITIQUES], |flow| {
            let about = |trace: &Trace| vec![Message::new(Role::User, ask(rubric, trace))];
            let parts = flow.in_parts(&flow.candidates(candidates)?, about)?;
            let writer = flow.teacher_writer(CRITIQUES, CRITIQUES_STAGE);
            flow.write_parts(&writer, parts, made_from, Flow::teacher).map(drop)
        })?;
        self.stage(STAGE, &settings, &[CRITIQUES_STAGE], &[FOLDER], |flow| {
            let again = |critique: &Trace| {
                let said = Message::new(Role::Assistant, critique.content.clone());
                [&critique.messages[..], &[said, Message::new(Role::User, REVISE)]].concat()
            };
            let parts = flow.in_parts(&flow.traces_in(CRITIQUES)?, again)?;
            let writer = flow.teacher_writer(FOLDER, STAGE);
            flow.write_parts(&writer, parts, made_from, Flow::teacher).map(drop)
        })
    }

    /// What the teacher is asked about each reply that has an end; in parts, validation first.
    fn in_parts(&self, replies: &[Trace], about: impl Fn(&Trace) -> Vec<Message>) -> Result<Vec<Vec<Asked>>> {
        let validation: HashSet<String> =
            self.prompts_of(Split::Validation)?.into_iter().map(|prompt| prompt.id).collect();
        let ended = replies.iter().filter(|trace| may_be_judged(trace));
        let (first, rest): (Vec<&Trace>, Vec<&Trace>) =
            ended.partition(|trace| validation.contains(&trace.id));
        let asked = |trace: &&Trace| {
            let messages = about(trace);
            // Other random numbers than those that the reply was drawn by.
            let key = key_of(&format!("{} {}", trace.id, messages.len()));
            Asked { id: trace.id.clone(), sample: trace.sample, key, messages }
        };
        let parts = |traces: Vec<&Trace>| -> Vec<Vec<Asked>> {
            traces.chunks(PROMPTS_PER_PART).map(|part| part.iter().map(asked).collect()).collect()
        };
        Ok([parts(first), parts(rest)].concat())
    }

    /// Those that have an end.
    pub(crate) fn revisions(&self) -> Result<Revisions> {
        let ended = self.traces_in(FOLDER)?.into_iter().filter(may_be_judged);
        Ok(ended.map(|trace| ((trace.id.clone(), trace.sample), trace)).collect())
    }
}

/// What a critique is asked for by.
fn ask(rubric: &str, trace: &Trace) -> String {
    let (question, answer) = (asked_as(&trace.messages), answer(trace));
    format!(
        "{rubric}\n\nQuestion:\n{question}\n\nAnswer:\n{answer}\n\nSay in a few sentences what is wrong with the answer, or \
         could be better."
    )
}

/// Of each prompt the first reply that a revision is preferred to: one that says something else and, where a verifier
/// can tell, is not wrong where the reply was right.
pub(crate) fn pairs(
    judged: &[Judged<'_>],
    revisions: &Revisions,
    verifier: Option<&dyn Verifier>,
) -> Vec<Pair> {
    let right = |judged: &Judged<'_>, reply: &Message| {
        verifier.map(|verifier| verifier.verify(judged.prompt, reply).correct)
    };
    let of_prompt = |judged: &Judged<'_>| {
        judged.replies.iter().find_map(|trace| {
            let (chosen, rejected) =
                (revisions.get(&(trace.id.clone(), trace.sample))?.reply(), trace.reply());
            let better = right(judged, &chosen) >= right(judged, &rejected);
            (better && chosen != rejected).then(|| Pair {
                id: judged.prompt.id.clone(),
                prompt: judged.prompt.messages.clone(),
                chosen: vec![chosen],
                rejected: vec![rejected],
                chosen_sample: trace.sample,
                rejected_sample: trace.sample,
                chosen_grade: 1.0,
                rejected_grade: 0.0,
            })
        })
    };
    judged.iter().filter_map(of_prompt).collect()
}

/// What revising did, and where a verifier can tell, whether it helped.
pub(crate) fn facts(
    judged: &[Judged<'_>],
    revisions: &Revisions,
    verifier: Option<&dyn Verifier>,
) -> RevisionFacts {
    let mut facts = RevisionFacts::default();
    let (mut before, mut after) = (0, 0);
    for judged in judged {
        for trace in &judged.replies {
            let Some(revision) = revisions.get(&(trace.id.clone(), trace.sample)) else { continue };
            facts.revised += 1;
            facts.unchanged += u64::from(revision.reply() == trace.reply());
            if let Some(verifier) = verifier {
                let right = |reply: &Message| u64::from(verifier.verify(judged.prompt, reply).correct);
                (before, after) = (before + right(&trace.reply()), after + right(&revision.reply()));
            }
        }
    }
    facts.right = verifier.map(|_| [before, after]);
    facts
}

#[cfg(test)]
mod tests {
    use stillroom_core::{FinishReason, Prompt};
    use stillroom_corpus::verify::numeric_answer::NumericAnswer;

    use super::*;

    fn trace(sample: u32, content: &str) -> Trace {
        Trace {
            id: "p".into(),
            sample,
            messages: vec![Message::new(Role::User, "2 + 2?")],
            reasoning_content: None,
            content: content.into(),
            finish_reason: FinishReason::Stop,
            prompt_tokens: 1,
            completion_tokens: 1,
            teacher: "t".into(),
            usd: 0.0,
        }
    }

    fn revisions(contents: &[(u32, &str)]) -> Revisions {
        contents.iter().map(|&(sample, content)| (("p".to_owned(), sample), trace(sample, content))).collect()
    }

    #[test]
    fn a_revision_is_preferred_unless_it_says_the_same_or_spoils_a_right_answer() {
        let prompt = Prompt {
            id: "p".into(),
            messages: vec![Message::new(Role::User, "2 + 2?")],
            answer: Some("4".into()),
            target: None,
        };
        let traces = [trace(0, "It is 4"), trace(1, "5"), trace(2, "6")];
        let judged = [Judged { prompt: &prompt, replies: traces.iter().collect() }];
        let chosen = |contents: &[(u32, &str)], verifier: Option<&dyn Verifier>| {
            let pairs = pairs(&judged, &revisions(contents), verifier);
            pairs.first().map(|pair| (pair.chosen[0].content.clone(), pair.rejected_sample))
        };
        let all = [(0, "7"), (1, "5"), (2, "4")];
        assert_eq!(chosen(&all, Some(&NumericAnswer)), Some(("4".to_owned(), 2)));
        assert_eq!(chosen(&all, None), Some(("7".to_owned(), 0)), "nobody can tell");
        assert_eq!(chosen(&[(0, "4, so it is 4"), (1, "5")], Some(&NumericAnswer)).map(|c| c.1), Some(0));
        assert_eq!(chosen(&[(0, "It is 4"), (1, "5")], Some(&NumericAnswer)), None, "the same words");
        let facts = facts(&judged, &revisions(&all), Some(&NumericAnswer));
        assert_eq!((facts.revised, facts.unchanged, facts.right), (3, 1, Some([1, 1])));
    }

    #[test]
    fn a_critique_is_asked_for_with_question_and_answer() {
        let asked = ask("Be strict.", &trace(0, "5"));
        assert!(asked.starts_with("Be strict.\n\nQuestion:\n2 + 2?\n\nAnswer:\n5\n\nSay "), "{asked}");
    }
}

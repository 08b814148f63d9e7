//! Keys of `[teacher]` for one behind endpoints that says how likely the student's own tokens are.

use serde::Serialize;
use stillroom_teacher::Scoring;

use super::TeacherKind;
use super::raw::RawTeacher;
use super::resolve::Checker;
use crate::failure::Result;

/// Where the teacher's tokenizer is named.
pub(crate) const TOKENIZER: [&str; 2] = ["teacher", "tokenizer"];
const SCORING: [&str; 2] = ["teacher", "scoring"];

/// How it is asked, and in whose tokens.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Scores {
    /// A directory with the teacher's `tokenizer.json`: token ids are sent, and must mean the same there.
    pub(crate) tokenizer: String,
    pub(crate) scoring: Scoring,
}

/// What the keys say, if one of them is given.
pub(super) fn scores(at: &Checker<'_>, kind: TeacherKind, raw: &mut RawTeacher) -> Result<Option<Scores>> {
    let (scoring, tokenizer) = (raw.scoring.take(), at.path(&TOKENIZER, raw.tokenizer.take())?);
    let key = if scoring.is_some() { SCORING } else { TOKENIZER };
    if scoring.is_none() && tokenizer.is_none() {
        return Ok(None);
    }
    if !matches!(kind, TeacherKind::Openai | TeacherKind::Cache) {
        let fix = match kind {
            TeacherKind::Batch => "write `kind = \"openai\"`: the student cannot wait for files at each step",
            _ => {
                "remove the key: a teacher on this machine reads what the student writes with `logits = { kind = \"live\" }`"
            }
        };
        let cause = format!("`{}` is for a teacher that is asked while the student trains", key.join("."));
        return Err(at.bad(&key, cause).fix(fix));
    }
    let fix = "name a directory with the teacher's `tokenizer.json`, which must be the student's, too";
    let tokenizer = at.need(&TOKENIZER, tokenizer, fix)?;
    let ways = [("prompt_logprobs", Scoring::PromptLogprobs), ("echo", Scoring::Echo)];
    let scoring = at.choose(&SCORING, scoring.as_deref().unwrap_or("prompt_logprobs"), &ways)?;
    Ok(Some(Scores { tokenizer, scoring }))
}

#[cfg(test)]
mod tests {
    use crate::recipe::{load, loaded};

    const RECIPE: &str = r#"
[student]
kind = "pretrained"
path = "start"
[teacher]
kind = "openai"
model = "us:teacher"
endpoints = [{ base_url = "http://127.0.0.1:8000/v1" }]
tokenizer = "theirs"
[prompts]
path = "prompts.jsonl"
[train]
on_policy_fraction = 1.0
loss_functions = [{ function = "sampled_reverse_kl" }]
"#;

    #[test]
    fn a_teacher_behind_endpoints_may_score_own_text() {
        let recipe = loaded(RECIPE, &[]);
        let text = recipe.to_toml();
        assert!(
            text.contains("scoring = \"prompt_logprobs\"") && text.contains("tokenizer = \"theirs\""),
            "{text}"
        );
        assert!(recipe.is_scored() && recipe.evaluate.own_text_examples == 128);
        let both =
            "train.loss_functions=[{ function = \"sampled_reverse_kl\" }, { function = \"hard_labels\" }]";
        let half = load(RECIPE, &["train.on_policy_fraction=0.5", both, "teacher.scoring=echo"]).unwrap();
        assert!(half.is_scored() && half.asks_for_traces() && half.to_toml().contains("scoring = \"echo\""));
    }

    #[test]
    fn what_it_cannot_do_is_refused_with_what_to_do() {
        let without = RECIPE.replace("tokenizer = \"theirs\"\n", "");
        let refused: [(&str, &[&str], &str); 9] = [
            (&without, &[], "tokenizer = \"DIRECTORY\""),
            (&without, &["teacher.scoring=echo"], "`teacher.tokenizer` is missing"),
            (RECIPE, &["teacher.scoring=logits"], "cannot be `logits`"),
            (RECIPE, &["train.loss_functions=[{ function = \"reverse_kl\" }]"], "take `sampled_reverse_kl`"),
            (RECIPE, &["train.loss_functions=[{ function = \"hard_labels\" }]"], "hard labels never do"),
            (RECIPE, &["train.rollout_top_p=0.9"], "`rollout_top_p` 1"),
            (RECIPE, &["train.on_policy_fraction=0.5"], "no loss learns at the last step"),
            (RECIPE, &["train.on_policy_fraction=0"], "set `on_policy_fraction`"),
            (RECIPE, &["teacher.kind=local", "teacher.path=x", "teacher.endpoints=[]"], "kind = \"live\""),
        ];
        for (recipe, sets, words) in refused {
            let shown = load(recipe, sets).expect_err(words).to_string();
            assert!(shown.contains(words) && shown.contains("fix: "), "{sets:?}: {shown}");
        }
        let plain =
            without.replace("on_policy_fraction = 1.0\n", "").replace("sampled_reverse_kl", "hard_labels");
        let shown = load(&plain, &["evaluate.own_text_examples=8"]).expect_err("nobody measures").to_string();
        assert!(shown.contains("own texts"), "{shown}");
        let plain = plain.replace("[prompts]", "tokenizer = \"theirs\"\n[prompts]");
        let of = |n: &str| load(&plain, &[&format!("evaluate.own_text_examples={n}")]).unwrap();
        assert!(of("8").is_scored() && !of("0").is_scored());
    }
}

//! Log-probabilities of a text out of a reply to it.
//!
//! A number that belongs to another token is worse than none: entries are counted, and ids compared wherever they come back.

use stillroom_formats::openai::Reply;

use crate::ask::{Ask, Question, Scoring, Unscored};
use crate::call::{Fault, FaultKind};

/// What vLLM writes for a probability of 0.
const IMPOSSIBLE: f64 = -9999.0;

/// The reply without its log-probabilities, and those of the text that was to be scored; none of a conversation.
pub(crate) fn of(ask: &Ask, mut reply: Reply) -> Result<(Reply, Vec<f64>), Fault> {
    let Question::Score(text) = &ask.question else { return Ok((reply, Vec::new())) };
    let scores = match text.how {
        Scoring::PromptLogprobs => of_prompt_logprobs(text, &reply),
        Scoring::Echo => of_echo(text, &reply),
    }?;
    for (t, &logprob) in scores.iter().enumerate() {
        if !logprob.is_finite() || logprob > 0.0 {
            return Err(again(format!("token {t} has log-probability {logprob}")));
        }
        if logprob <= IMPOSSIBLE {
            let what =
                format!("token {t} of a text is impossible to the teacher: its tokenizer is another one");
            return Err(hopeless(what));
        }
    }
    (reply.logprobs, reply.prompt_logprobs) = (None, None);
    (reply.token_ids, reply.prompt_token_ids) = (None, None);
    Ok((reply, scores.into_iter().skip(text.n_prompt - 1).collect()))
}

/// Of every token but the first.
fn of_prompt_logprobs(text: &Unscored, reply: &Reply) -> Result<Vec<f64>, Fault> {
    let Some(entries) = &reply.prompt_logprobs else {
        let what = "the reply has no `prompt_logprobs`: the server does not give them, or not in this way";
        return Err(hopeless(what.to_owned()));
    };
    check_ids(text, reply.prompt_token_ids.as_deref())?;
    check_count(text, entries.len(), 0)?;
    check_first(entries[0].is_none())?;
    let found = entries.iter().zip(&text.ids).enumerate().skip(1).map(|(t, (entry, &id))| {
        let mut candidates = entry.iter().flatten();
        candidates.find(|candidate| candidate.id == id).map(|own| own.logprob).ok_or_else(|| other_token(t))
    });
    found.collect()
}

/// Of every token but the first. The one token that had to be written stands behind them.
fn of_echo(text: &Unscored, reply: &Reply) -> Result<Vec<f64>, Fault> {
    let Some(entries) = &reply.logprobs else {
        return Err(hopeless("the reply has no `logprobs`: the server does not give them".to_owned()));
    };
    if entries.len() <= 1 {
        return Err(hopeless(
            "the reply does not have the prompt in it: the server knows no `echo`".to_owned(),
        ));
    }
    check_ids(text, reply.prompt_token_ids.as_deref())?;
    check_count(text, entries.len(), 1)?;
    check_first(entries[0].logprob.is_none())?;
    let found = entries.iter().zip(&text.ids).enumerate().skip(1).map(|(t, (entry, &id))| {
        if entry.id.is_some_and(|named| named != id) {
            return Err(other_token(t));
        }
        entry.logprob.ok_or_else(|| again(format!("token {t} has no log-probability")))
    });
    found.collect()
}

fn check_ids(text: &Unscored, named: Option<&[u32]>) -> Result<(), Fault> {
    match named.is_some_and(|named| named != text.ids) {
        true => Err(again("the reply is to other tokens than those that were sent".to_owned())),
        false => Ok(()),
    }
}

/// `behind` tokens may follow the prompt.
fn check_count(text: &Unscored, found: usize, behind: usize) -> Result<(), Fault> {
    let sent = text.ids.len();
    if (sent..=sent + behind).contains(&found) {
        return Ok(());
    }
    Err(again(format!("{found} log-probabilities came for {sent} tokens")))
}

fn check_first(is_none: bool) -> Result<(), Fault> {
    if is_none {
        return Ok(());
    }
    let what =
        "the first token has a log-probability, and nothing before it: numbers are not where they belong";
    Err(again(what.to_owned()))
}

fn other_token(t: usize) -> Fault {
    again(format!("the log-probability at token {t} is of another token than was sent"))
}

fn again(what: String) -> Fault {
    Fault::of_work(what, Some(200), 0)
}

fn hopeless(what: String) -> Fault {
    Fault { kind: FaultKind::Hopeless, ..again(what) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use stillroom_formats::openai::read_reply;

    use super::*;

    const IDS: [u32; 4] = [7, 5, 9, 5];

    fn ask(how: Scoring) -> Ask {
        Ask::score("a".into(), Unscored { ids: IDS.to_vec(), n_prompt: 2, how })
    }

    fn read(how: Scoring, choice: Value) -> Result<Vec<f64>, (FaultKind, String)> {
        let mut whole = json!({"index": 0, "text": " x", "finish_reason": "length"});
        whole.as_object_mut().unwrap().extend(choice.as_object().unwrap().clone());
        let reply = read_reply(json!({ "choices": [whole] }).to_string().as_bytes()).unwrap();
        let (reply, scores) = of(&ask(how), reply).map_err(|fault| (fault.kind, fault.what))?;
        assert!(reply.logprobs.is_none() && reply.prompt_logprobs.is_none() && reply.content == " x");
        Ok(scores)
    }

    fn entry(id: u32, logprob: f64) -> Value {
        json!({ "3": {"logprob": -0.25, "rank": 1}, id.to_string(): {"logprob": logprob, "rank": 2} })
    }

    fn prompt(entries: &[Value]) -> Result<Vec<f64>, (FaultKind, String)> {
        read(Scoring::PromptLogprobs, json!({ "prompt_logprobs": entries }))
    }

    fn echo(tokens: &[&str], logprobs: &[Option<f64>]) -> Result<Vec<f64>, (FaultKind, String)> {
        read(Scoring::Echo, json!({ "logprobs": {"tokens": tokens, "token_logprobs": logprobs} }))
    }

    #[test]
    fn each_token_behind_the_prompt_has_its_own_number() {
        let good = [Value::Null, entry(5, -1.5), entry(9, -2.5), entry(5, 0.0)];
        assert_eq!(prompt(&good), Ok(vec![-2.5, 0.0]));
        let (tokens, logprobs) =
            (["a", "b", "c", "b", " x"], [None, Some(-1.5), Some(-2.5), Some(-0.0), None]);
        assert_eq!(echo(&tokens, &logprobs), Ok(vec![-2.5, -0.0]));
        assert_eq!(echo(&tokens[..4], &logprobs[..4]), Ok(vec![-2.5, -0.0]), "nothing was written behind it");
        let named = ["token_id:7", "token_id:5", "token_id:9", "token_id:5"];
        assert_eq!(echo(&named, &logprobs[..4]), Ok(vec![-2.5, -0.0]));
    }

    #[test]
    fn numbers_that_are_not_those_of_the_text_are_faults_and_say_so() {
        let good = [Value::Null, entry(5, -1.5), entry(9, -2.5), entry(5, -0.5)];
        let with = |t: usize, value: Value| {
            let mut entries = good.to_vec();
            entries[t] = value;
            prompt(&entries).unwrap_err()
        };
        let faults = [
            (prompt(&good[..3]).unwrap_err(), FaultKind::Again, "3 log-probabilities came for 4 tokens"),
            (with(0, entry(7, -1.0)), FaultKind::Again, "the first token has a log-probability"),
            (with(2, entry(8, -1.0)), FaultKind::Again, "at token 2 is of another token"),
            (with(2, Value::Null), FaultKind::Again, "at token 2 is of another token"),
            (with(3, entry(5, 0.5)), FaultKind::Again, "log-probability 0.5"),
            (with(3, entry(5, -9999.0)), FaultKind::Hopeless, "its tokenizer is another one"),
            (
                read(Scoring::PromptLogprobs, json!({})).unwrap_err(),
                FaultKind::Hopeless,
                "no `prompt_logprobs`",
            ),
            (read(Scoring::Echo, json!({})).unwrap_err(), FaultKind::Hopeless, "no `logprobs`"),
            (echo(&[" x"], &[Some(-1.0)]).unwrap_err(), FaultKind::Hopeless, "knows no `echo`"),
            (echo(&["a", "b"], &[None, Some(-1.0)]).unwrap_err(), FaultKind::Again, "2 log-probabilities"),
            (echo(&["a", "b", "c", "d"], &[None; 4]).unwrap_err(), FaultKind::Again, "token 1 has no"),
        ];
        for ((kind, what), expected, words) in faults {
            assert!(kind == expected && what.contains(words), "{kind:?} {what}");
        }
        let ids = json!({ "prompt_logprobs": good, "prompt_token_ids": [7, 5, 9, 6] });
        let (_, what) = read(Scoring::PromptLogprobs, ids).unwrap_err();
        assert!(what.contains("other tokens than those that were sent"), "{what}");
        let named = ["token_id:7", "token_id:6", "token_id:9", "token_id:5"];
        let (_, what) = echo(&named, &[None, Some(-1.0), Some(-1.0), Some(-1.0)]).unwrap_err();
        assert!(what.contains("at token 1 is of another token"), "{what}");
    }
}

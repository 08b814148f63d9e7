//! Examples from text, and what a foreign or shifted logit cache leads to.

use std::path::Path;

use stillroom_core::{Digest, ErrorKind, FinishReason, Message, Prompt, Role, SparseRow, Tail, Trace};
use stillroom_distill::examples::{attach_targets, check_cache, from_targets, from_texts, from_traces};
use stillroom_distill::{DistillError, Example, LossFunction, LossTerm, TrainConfig};
use stillroom_formats::Tokenizer;
use stillroom_formats::parquet_rows::{Kept, LogitCacheInfo, LogitCacheRow, read_logits, write_logits};

fn tokenizer() -> Tokenizer {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/quickstart-tokenizer");
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let (config, template) = (read("tokenizer_config.json"), read("chat_template.jinja"));
    Tokenizer::from_json_files(&read("tokenizer.json"), Some(&config), Some(&template)).unwrap()
}

fn kl_at(temperature: f64) -> Vec<LossTerm> {
    vec![LossTerm::new(LossFunction::ForwardKl).at_temperature(temperature)]
}

fn trace(id: &str, sample: u32, question: &str, reasoning: &str, answer: &str) -> Trace {
    Trace {
        id: id.into(),
        sample,
        messages: vec![Message::new(Role::User, question)],
        reasoning_content: Some(reasoning.into()),
        content: answer.into(),
        finish_reason: FinishReason::Stop,
        prompt_tokens: 0,
        completion_tokens: 0,
        teacher: "t".into(),
        usd: 0.0,
    }
}

fn traces() -> Vec<Trace> {
    vec![
        trace("a", 0, "How many apples?", "3 and 4 make 7", "7"),
        trace("a", 1, "How many apples?", "4 and 3 make 7, so it is 7", "7"),
        trace("b", 0, "How many <|end|> pears?", "2 and 2 make 4", "4 <|endoftext|>"),
    ]
}

/// Rows that draw each token twice out of two draws.
fn cache_of(traces: &[Trace], examples: &[Example]) -> Vec<LogitCacheRow> {
    let row = |(trace, example): (&Trace, &Example)| LogitCacheRow {
        id: trace.id.clone(),
        sample: trace.sample,
        token_ids_digest: Digest::of_token_ids(&example.ids),
        n_tokens: example.ids.len() as u32,
        rows: example
            .wanted_positions()
            .iter()
            .map(|&r| SparseRow {
                ids: vec![example.ids[r as usize + 1]],
                probs: vec![1.0],
                teacher_entropy: 0.25,
            })
            .collect(),
    };
    traces.iter().zip(examples).map(row).collect()
}

#[test]
fn a_reply_is_supervised_to_its_end_and_the_question_is_not() {
    let tokenizer = tokenizer();
    let examples = from_traces(&traces(), &tokenizer).unwrap();
    assert_eq!(examples.iter().map(|e| e.id.as_str()).collect::<Vec<_>>(), ["a#0", "a#1", "b#0"]);
    for (example, trace) in examples.iter().zip(traces()) {
        let first = example.supervised.iter().position(|&s| s).unwrap();
        let prompt = tokenizer.encode_chat(&trace.messages, true).unwrap();
        assert_eq!(example.ids[..first], prompt[..]);
        let taught = |s: bool| -> Vec<u32> {
            example.ids.iter().zip(&example.supervised).filter(|p| *p.1 == s).map(|p| *p.0).collect()
        };
        let text = tokenizer.decode(&taught(true));
        assert!(
            text.contains(trace.reasoning_content.as_deref().unwrap()) && text.contains(&trace.content),
            "{text}"
        );
        let end = tokenizer.token_id("<|end|>").unwrap();
        assert!(taught(true).iter().filter(|&&id| id == end).count() == 1, "the turn ends once: {text}");
        example.check(tokenizer.vocab_size(), None).unwrap();
    }
}

#[test]
fn a_control_learns_the_data_sets_own_targets() {
    let tokenizer = tokenizer();
    let mut prompt = Prompt {
        id: "p".into(),
        messages: vec![Message::new(Role::User, "How many apples?")],
        answer: Some("7".into()),
        target: Some(Message::new(Role::Assistant, "7")),
    };
    let examples = from_targets(std::slice::from_ref(&prompt), &tokenizer).unwrap();
    assert!(examples[0].n_supervised() >= 2);
    prompt.target = None;
    let error = from_targets(&[prompt], &tokenizer).unwrap_err();
    assert!(matches!(&error, DistillError::NoTarget { id } if id == "p"));
    assert_eq!(error.kind(), ErrorKind::BadData);
}

#[test]
fn texts_are_learned_as_they_stand() {
    let tokenizer = tokenizer();
    let text = "Three apples <|end|> and é\u{1F34E}";
    let examples = from_texts([("t", text)], &tokenizer).unwrap();
    assert_eq!(tokenizer.decode(&examples[0].ids), text);
    assert!(!examples[0].ids.contains(&tokenizer.token_id("<|end|>").unwrap()));
    assert_eq!(examples[0].n_supervised(), examples[0].ids.len() - 1);
    assert!(from_texts([("t", "")], &tokenizer).is_err());
}

#[test]
fn a_cache_fits_its_own_examples_only() {
    let tokenizer = tokenizer();
    let traces = traces();
    let bare = from_traces(&traces, &tokenizer).unwrap();
    let rows = cache_of(&traces, &bare);
    // Through the file and in another order, with rows of examples that were dropped since.
    let info = LogitCacheInfo {
        kept: Kept::Draws(2),
        tail: Tail::None,
        temperature: 1.0,
        tokenizer_digest: tokenizer.digest(),
        teacher: "t".into(),
    };
    let mut bytes = Vec::new();
    write_logits(&mut bytes, &info, &rows).unwrap();
    let (read_info, mut read) = read_logits(bytes).unwrap();
    read.reverse();
    let config = TrainConfig { losses: kl_at(1.0), ..TrainConfig::default() };
    check_cache(&read_info, &tokenizer.digest(), &config).unwrap();
    let mut examples = bare[..2].to_vec();
    attach_targets(&mut examples, read).unwrap();
    for example in &examples {
        example.check(tokenizer.vocab_size(), Some(Tail::None)).unwrap();
        let first = &example.sparse.as_ref().unwrap()[0];
        let start = example.supervised.iter().position(|&s| s).unwrap();
        assert_eq!(first.ids, [example.ids[start]]);
    }

    let attach = |change: &dyn Fn(&mut Vec<LogitCacheRow>)| {
        let mut rows = rows.clone();
        change(&mut rows);
        attach_targets(&mut bare.clone(), rows)
    };
    assert!(attach(&|_| ()).is_ok());
    let missing = attach(&|rows| drop(rows.remove(1)));
    assert!(matches!(missing, Err(DistillError::NoTeacherTargets { id }) if id == "a#1"));
    let swapped = attach(&|rows| {
        rows[0].sample = 1;
        rows[1].sample = 0;
    });
    assert!(matches!(swapped, Err(DistillError::ForeignTargets { .. })));
    let shifted = attach(&|rows| drop(rows[0].rows.remove(0)));
    assert!(matches!(shifted, Err(DistillError::TargetCount { .. })));
    let longer = attach(&|rows| rows[2].n_tokens += 1);
    assert!(matches!(longer, Err(DistillError::ForeignTargets { .. })));
    assert!(attach(&|rows| rows.push(rows[0].clone())).is_err());
}

#[test]
fn a_cache_made_otherwise_is_refused() {
    let digest = Digest::of(b"tokenizer");
    let info = LogitCacheInfo {
        kept: Kept::TopK(8),
        tail: Tail::Bucket,
        temperature: 2.0,
        tokenizer_digest: digest,
        teacher: "t".into(),
    };
    let config = TrainConfig { losses: kl_at(2.0), tail: Tail::Bucket, ..TrainConfig::default() };
    check_cache(&info, &digest, &config).unwrap();
    let what = |info: &LogitCacheInfo, config: &TrainConfig| match check_cache(info, &digest, config) {
        Err(DistillError::CacheMismatch { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    let other = LogitCacheInfo { tokenizer_digest: Digest::of(b"other"), ..info.clone() };
    assert_eq!(what(&other, &config), "tokenizer");
    assert_eq!(what(&info, &TrainConfig { losses: kl_at(1.0), ..config.clone() }), "temperature");
    assert_eq!(what(&info, &TrainConfig { tail: Tail::Drop, ..config.clone() }), "tail");
    let draws = LogitCacheInfo { kept: Kept::Draws(8), ..info.clone() };
    assert_eq!(what(&draws, &config), "tail");
    let bare = LogitCacheInfo { tail: Tail::None, ..info };
    assert_eq!(what(&bare, &TrainConfig { tail: Tail::None, ..config }), "tail");
}

//! A live teacher that reads the examples in tokens of its own: where it stands beside the student, and what the student
//! learns from it.

mod common;

use std::path::Path;

use common::{VOCAB, run_with, sentences, small_run, student, tiny_config};
use stillroom_distill::examples::{Reading, from_texts};
use stillroom_distill::{
    DistillError, Example, ForeignReading, LossFunction, LossTerm, Material, TrainConfig, TrainOutcome,
    matched_ids, read_in_own_tokens, train_with_rollouts,
};
use stillroom_formats::{DecoderConfig, Tokenizer};
use stillroom_model::{Decoder, MatchedIds};

fn tokenizer(name: &str) -> Tokenizer {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets").join(name);
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).expect("it is committed");
    let (config, template) = (read("tokenizer_config.json"), read("chat_template.jinja"));
    Tokenizer::from_json_files(&read("tokenizer.json"), Some(&config), Some(&template)).expect("a tokenizer")
}

fn bytes(ids: &[u32], tokenizer: &Tokenizer) -> Vec<u8> {
    ids.iter().flat_map(|&id| tokenizer.token_bytes(id).expect("its own id")).collect()
}

#[test]
fn partners_have_read_the_same_bytes_and_every_common_beginning_has_one() {
    let (own, others) = (tokenizer("experiments-tokenizer"), tokenizer("quickstart-tokenizer"));
    let texts = [
        ("numbers", "Zoë has 12 apples and 1234 🦀, which is 12 + 1234 = 1246."),
        ("short", "12 apples"),
        ("a number first", "17 and 4 make 21, said nobody."),
    ];
    let (student, teacher) = (from_texts(texts, &own).unwrap(), from_texts(texts, &others).unwrap());
    let readings = read_in_own_tokens(
        Reading { examples: &student, tokenizer: &own },
        Reading { examples: &teacher, tokenizer: &others },
    )
    .unwrap();
    let (mut paired, mut alone) = (0, 0);
    for (example, reading) in student.iter().zip(&readings) {
        let read_by_teacher = |n: usize| bytes(&reading.ids[..n], &others);
        // The first token of all is learned by neither.
        let ends: Vec<Vec<u8>> = (1..reading.ids.len()).map(read_by_teacher).collect();
        for (k, partner) in reading.partners.iter().enumerate() {
            let before = bytes(&example.ids[..=k], &own);
            match partner {
                Some(position) => assert_eq!(read_by_teacher(*position as usize + 1), before),
                None => assert!(!ends.contains(&before), "{}: token {k} has a partner", example.id),
            }
            paired += usize::from(partner.is_some());
            alone += usize::from(partner.is_none());
        }
    }
    assert!(paired > 20 && alone > 3, "{paired} {alone}");
    let swapped: Vec<Example> = teacher.iter().rev().cloned().collect();
    let own = Reading { examples: &student, tokenizer: &own };
    let error = read_in_own_tokens(own, Reading { examples: &swapped, tokenizer: &others }).unwrap_err();
    assert!(error.to_string().contains("the teacher reads another in its place"), "{error}");
}

#[test]
fn the_same_token_is_that_of_the_same_bytes_and_the_end_of_a_turn_is_the_end() {
    let (own, others) = (tokenizer("experiments-tokenizer"), tokenizer("quickstart-tokenizer"));
    let matched = matched_ids(&own, &others);
    assert_eq!((matched.n_student(), matched.n_teacher()), (own.vocab_size(), others.vocab_size()));
    let ends = (own.eos_id().unwrap(), others.eos_id().unwrap());
    assert!(matched.pairs().contains(&ends));
    for &(a, b) in matched.pairs().iter().filter(|&&pair| pair != ends) {
        assert_eq!(own.is_special(a), others.is_special(b));
        assert_eq!(own.token_bytes(a), others.token_bytes(b), "{a} {b}");
    }
    let all_bytes = (0..=255u8).filter(|&byte| {
        let is = |tokenizer: &Tokenizer, id: u32| tokenizer.token_bytes(id) == Some(vec![byte]);
        matched.pairs().iter().any(|&(a, b)| is(&own, a) && is(&others, b))
    });
    assert_eq!(all_bytes.count(), 256, "single bytes are tokens of both");
    let itself = matched_ids(&own, &own);
    assert_eq!(itself.n_matched(), own.vocab_size());
    assert!(itself.pairs().iter().all(|(a, b)| a == b));
}

/// A teacher of the toy language whose id for n is `VOCAB + 4 − n`.
fn teacher() -> Decoder {
    let config = DecoderConfig {
        vocab_size: VOCAB + 5,
        hidden_size: 32,
        head_dim: 16,
        num_attention_heads: 2,
        ..tiny_config()
    };
    let (train, held) = (others(&sentences(0..60)), others(&sentences(100..110)));
    let start = Decoder::random(student(1, 2).device().clone(), config, 9);
    let hard = TrainConfig { max_steps: Some(80), learning_rate: 1e-2, ..small_run() };
    let temp = tempfile::tempdir().unwrap();
    run_with(start, None, &train, &held, &hard, temp.path()).0.decoder
}

fn other(id: u32) -> u32 {
    VOCAB as u32 + 4 - id
}

fn others(examples: &[Example]) -> Vec<Example> {
    let turned = |example: &Example| Example {
        ids: example.ids.iter().map(|&id| other(id)).collect(),
        ..example.clone()
    };
    examples.iter().map(turned).collect()
}

/// Every other token has a partner.
fn read(examples: Vec<Example>) -> Vec<Example> {
    let reading = |example: &Example| ForeignReading {
        ids: example.ids.iter().map(|&id| other(id)).collect(),
        partners: example.wanted_positions().iter().map(|&p| (p % 2 == 0).then_some(p)).collect(),
    };
    examples.into_iter().map(|example| Example { foreign: Some(reading(&example)), ..example }).collect()
}

fn matched() -> MatchedIds {
    MatchedIds::new(VOCAB, VOCAB + 5, (0..VOCAB as u32).map(|id| (id, other(id))).collect())
}

fn trained(
    losses: Vec<LossTerm>,
    teacher: &Decoder,
    examples: [&[Example]; 2],
) -> Result<TrainOutcome, DistillError> {
    let (temp, matched) = (tempfile::tempdir().unwrap(), matched());
    let [examples, validation] = examples;
    let material = Material {
        examples,
        validation,
        prompts: None,
        matched: Some(&matched),
        ensemble: None,
        scorer: None,
    };
    let config = TrainConfig { losses, max_steps: Some(60), learning_rate: 1e-2, ..small_run() };
    train_with_rollouts(student(1, 2), Some(teacher), material, &config, temp.path(), &mut |_| {})
}

#[test]
fn a_student_learns_the_text_from_a_teacher_that_has_other_ids_for_it_and_uld_alone_cannot_say_which() {
    let teacher = teacher();
    let (train, held) = (read(sentences(0..60)), read(sentences(100..110)));
    let at_the_end = |function: LossFunction| {
        let outcome = trained(vec![LossTerm::new(function)], &teacher, [&train, &held]).unwrap();
        let (first, last) = (outcome.validation.first().unwrap(), outcome.validation.last().unwrap());
        let name = function.name();
        assert!(last.divergences[name] < 0.5 * first.divergences[name], "{name}");
        let paired = last.captured_mass.unwrap();
        assert!(paired > 0.4 && paired < 0.6, "every other token has a partner: {paired}");
        (first.hard_label, last.hard_label)
    };
    for beta in [0.0, 0.5, 1.0] {
        let (first, last) = at_the_end(LossFunction::Gold { beta });
        assert!(last < 0.6 * first, "beta {beta}: {first} {last}");
    }
    let (first, last) = at_the_end(LossFunction::Uld);
    assert!(last > 0.9 * first, "sorted probabilities alone do not name tokens: {first} {last}");
}

#[test]
fn examples_that_the_teacher_has_not_read_or_not_like_that_are_refused() {
    let teacher = teacher();
    let gold = || vec![LossTerm::new(LossFunction::Gold { beta: 0.5 })];
    let unread = sentences(0..4);
    let error = trained(gold(), &teacher, [&unread, &[]]).unwrap_err();
    assert!(matches!(error, DistillError::NoForeignReading { .. }), "{error}");
    type Spoil = fn(&mut ForeignReading);
    let spoiled: [(Spoil, &str); 4] = [
        (|reading| reading.partners.truncate(1), "partners for"),
        (|reading| reading.partners.reverse(), "goes back"),
        (|reading| reading.ids.truncate(3), "has not read so far"),
        (|reading| reading.ids[0] = 99, "outside the teacher's vocabulary"),
    ];
    for (spoil, cause) in spoiled {
        let mut examples = read(sentences(0..4));
        spoil(examples[2].foreign.as_mut().unwrap());
        let error = trained(gold(), &teacher, [&examples, &[]]).unwrap_err().to_string();
        assert!(error.contains(cause), "{error}");
    }
}

//! A teacher of another tokenizer: what is refused of its scores, how a student learns from them, and PyTorch.

mod common;

use std::path::Path;

use common::{run, sentences, small_run, student};
use serde_json::Value;
use stillroom_core::{Digest, FinishReason, Message, Role, Trace};
use stillroom_distill::examples::{Reading, check_tokenizer, from_traces, likelihoods};
use stillroom_distill::{
    DistillError, Example, LossFunction, LossTerm, TeacherChunk, TrainConfig, approximate_likelihood_loss,
};
use stillroom_formats::parquet_rows::{LogprobInfo, LogprobRow, read_logprobs, write_logprobs};
use stillroom_formats::{FormatError, Tokenizer};
use stillroom_model::Decoder;

#[test]
fn losses_and_slopes_are_those_of_pytorch() {
    let golden = include_str!("golden/alm.json");
    let golden: Value = serde_json::from_str(golden).expect("a golden file");
    let number = |value: &Value| value.as_f64().expect("a number");
    let cases = golden["alm"].as_array().expect("cases");
    assert!(cases.len() >= 60);
    for case in cases {
        let of = |key: &str| number(&case[key]);
        let (loss, slope) = approximate_likelihood_loss(of("teacher"), of("student"), of("temperature"));
        // Both in f64; the loss is a difference of terms of size τ.
        assert!((loss - of("loss")).abs() < 1e-9 * of("loss").abs().max(of("temperature")), "{case}: {loss}");
        assert!((slope - of("slope")).abs() < 1e-9 * of("slope").abs().max(1.0), "{case}: {slope}");
    }
}

/// Chunks of one and two tokens that a teacher gives what `of` says.
fn chunked(mut example: Example, of: impl Fn(&[f32]) -> f64, logprobs: &[f32]) -> Example {
    let first = example.ids.len() - example.n_supervised();
    let logprobs = &logprobs[first - 1..];
    let mut chunks = Vec::new();
    let mut start = 0;
    while start < logprobs.len() {
        let end = (start + 1 + start % 2).min(logprobs.len());
        chunks.push(TeacherChunk { tokens: start..end, logprob: of(&logprobs[start..end]) });
        start = end;
    }
    example.chunks = Some(chunks);
    example
}

fn sum(logprobs: &[f32]) -> f64 {
    logprobs.iter().map(|&l| f64::from(l)).sum()
}

fn taught_by(teacher: &Decoder, examples: Vec<Example>) -> Vec<Example> {
    let ids: Vec<&[u32]> = examples.iter().map(|example| &example.ids[..]).collect();
    let logprobs = teacher.token_logprobs(&ids);
    examples.iter().zip(logprobs).map(|(example, l)| chunked(example.clone(), sum, &l)).collect()
}

fn alm(temperature: f64) -> TrainConfig {
    let losses = vec![LossTerm::new(LossFunction::Alm).at_temperature(temperature)];
    TrainConfig { losses, max_steps: Some(60), weight_decay: 0.0, learning_rate: 1e-2, ..small_run() }
}

#[test]
fn a_student_comes_to_give_the_text_the_teachers_likelihood() {
    // A teacher that knows the language, made by training on it.
    let (train, held) = (sentences(0..60), sentences(100..110));
    let temp = tempfile::tempdir().expect("a folder");
    let hard = TrainConfig { max_steps: Some(60), learning_rate: 1e-2, ..small_run() };
    let (teacher, _) = run(student(3, 2), &train, &held, &hard, &temp.path().join("teacher"));
    let teacher = teacher.decoder;
    let (train, held) = (taught_by(&teacher, train), taught_by(&teacher, held));
    for temperature in [1.0, 100.0] {
        let dir = temp.path().join(temperature.to_string());
        let (outcome, _) = run(student(1, 2), &train, &held, &alm(temperature), &dir);
        let of = |i: usize| outcome.validation[i].divergences["alm"];
        let last = outcome.validation.len() - 1;
        assert!(of(last) < 0.25 * of(0), "{temperature}: {} {}", of(0), of(last));
        assert_eq!(outcome.validation[last].loss, of(last), "it is all that is minimised");
        assert_eq!(outcome.curve[0].captured_mass, None);
        // It never saw a hard label's gradient but through the chunks.
        assert!(outcome.validation[last].hard_label < outcome.validation[0].hard_label);
    }
}

#[test]
fn a_teacher_that_is_the_student_teaches_nothing() {
    let start = student(1, 2);
    let own = taught_by(&start, sentences(0..20));
    let temp = tempfile::tempdir().expect("a folder");
    let config = TrainConfig { max_steps: Some(1), ..alm(1.0) };
    let (outcome, _) = run(start, &own, &[], &config, temp.path());
    // Scored once in other batches: the same bits, so the same likelihoods.
    assert_eq!((outcome.curve[0].loss, outcome.curve[0].grad_norm), (0.0, 0.0));
}

#[test]
fn examples_without_likelihoods_and_chunks_that_cannot_be_are_refused() {
    let temp = tempfile::tempdir().expect("a folder");
    let try_with = |examples: &[Example], config: &TrainConfig| {
        stillroom_distill::train(student(1, 1), None, examples, &[], config, temp.path(), &mut |_| {})
            .expect_err("refused")
    };
    let bare = sentences(0..3);
    assert!(matches!(try_with(&bare, &alm(1.0)), DistillError::NoTeacherChunks { .. }));
    for (tokens, logprob) in [(0..0, -1.0), (2..99, -1.0), (0..1, 0.5), (0..1, f64::NAN)] {
        let mut wrong = bare.clone();
        wrong.iter_mut().for_each(|example| example.chunks = Some(Vec::new()));
        wrong[1].chunks = Some(vec![TeacherChunk { tokens, logprob }]);
        assert!(matches!(try_with(&wrong, &alm(1.0)), DistillError::Example { .. }));
    }
    let twice = TrainConfig { losses: [alm(1.0).losses, alm(2.0).losses].concat(), ..alm(1.0) };
    assert!(matches!(try_with(&bare, &twice), DistillError::Config { key: "losses", .. }));
    assert!(matches!(try_with(&bare, &alm(0.0)), DistillError::Config { key: "temperature", .. }));
}

fn asset(name: &str) -> String {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/quickstart-tokenizer");
    std::fs::read_to_string(dir.join(name)).expect("it is committed")
}

fn tokenizer(tokenizer_json: &str, template: &str) -> Tokenizer {
    let config = asset("tokenizer_config.json");
    Tokenizer::from_json_files(tokenizer_json, Some(&config), Some(template)).expect("a tokenizer")
}

/// The quickstart's tokenizer, and one without its last merges that takes digits one by one.
fn both() -> (Tokenizer, Tokenizer) {
    let template = asset("chat_template.jinja");
    let mut other: Value = serde_json::from_str(&asset("tokenizer.json")).expect("JSON");
    let merges = other["model"]["merges"].as_array_mut().expect("merges");
    merges.truncate(merges.len() / 2);
    other["pre_tokenizer"] = serde_json::json!({"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": true},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    ]});
    (tokenizer(&asset("tokenizer.json"), &template), tokenizer(&other.to_string(), &template))
}

fn traces() -> Vec<Trace> {
    let trace = |id: &str, sample, content: &str| Trace {
        id: id.into(),
        sample,
        messages: vec![Message::new(Role::User, "How many apples are there?")],
        reasoning_content: Some("There are 1200 apples, and 1200 + 34 = 1234".into()),
        content: content.into(),
        finish_reason: FinishReason::Stop,
        prompt_tokens: 0,
        completion_tokens: 0,
        teacher: "t".into(),
        usd: 0.0,
    };
    vec![trace("a", 0, "1234"), trace("a", 1, "It is 1234 \u{1F980}."), trace("b", 0, "<|end|> 1234 of them")]
}

fn scores(traces: &[Trace], examples: &[Example]) -> Vec<LogprobRow> {
    let row = |(trace, example): (&Trace, &Example)| LogprobRow {
        id: trace.id.clone(),
        sample: trace.sample,
        token_ids_digest: Digest::of_token_ids(&example.ids),
        n_tokens: example.ids.len() as u32,
        logprobs: (0..example.n_supervised()).map(|i| -0.25 - i as f32).collect(),
    };
    traces.iter().zip(examples).map(row).collect()
}

#[test]
fn the_teachers_scores_go_to_the_students_tokens_of_the_same_bytes() {
    let (teacher, student) = both();
    let traces = traces();
    let read = |tokenizer| from_traces(&traces, tokenizer).expect("examples");
    let (of_teacher, of_student) = (read(&teacher), read(&student));
    let (own, others) = (
        Reading { examples: &of_student, tokenizer: &student },
        Reading { examples: &of_teacher, tokenizer: &teacher },
    );
    let rows = scores(&traces, &of_teacher);
    let found = likelihoods(own, others, rows.clone()).expect("they fit");
    for (((mut example, chunks), row), other) in
        of_student.clone().into_iter().zip(found).zip(&rows).zip(&of_teacher)
    {
        assert!(other.n_supervised() < example.n_supervised() && chunks.len() <= other.n_supervised());
        let tokens: usize = chunks.iter().map(|chunk| chunk.tokens.len()).sum();
        assert_eq!(tokens, example.n_supervised(), "the same text: every token is in a chunk");
        let total: f64 = chunks.iter().map(|chunk| chunk.logprob).sum();
        assert_eq!(total, sum(&row.logprobs), "and nothing of the teacher's is left over");
        example.chunks = Some(chunks);
        example.check(student.vocab_size(), None).expect("a sound example");
    }

    let refused = |rows: Vec<LogprobRow>| likelihoods(own, others, rows).expect_err("refused");
    // Scores of the student's tokens, of a shifted text, of too few tokens, of another text, twice, and none.
    assert!(matches!(refused(scores(&traces, &of_student)), DistillError::ForeignTargets { .. }));
    let mut shifted = of_teacher.clone();
    shifted.iter_mut().for_each(|example| example.ids.rotate_left(1));
    assert!(matches!(refused(scores(&traces, &shifted)), DistillError::ForeignTargets { .. }));
    let mut fewer = rows.clone();
    fewer[1].logprobs.pop();
    assert!(matches!(refused(fewer), DistillError::TargetCount { .. }));
    let mut swapped = rows.clone();
    (swapped[0].sample, swapped[1].sample) = (1, 0);
    assert!(matches!(refused(swapped), DistillError::ForeignTargets { .. }));
    assert!(matches!(refused([&rows[..], &rows[..1]].concat()), DistillError::Example { .. }));
    assert!(matches!(refused(rows[1..].to_vec()), DistillError::NoTeacherChunks { .. }));
    let mismatch = check_tokenizer(&student.digest(), &teacher.digest()).expect_err("refused");
    assert!(matches!(mismatch, DistillError::CacheMismatch { what: "tokenizer", .. }));
}

#[test]
fn another_template_is_noticed_by_its_tokens_and_another_reply_by_its_bytes() {
    let (teacher, student) = both();
    let traces = traces();
    let of_student = from_traces(&traces, &student).expect("examples");
    let own = Reading { examples: &of_student, tokenizer: &student };
    let scored = scores(&traces, &from_traces(&traces, &teacher).expect("examples"));
    let other = asset("chat_template.jinja").replace("'<|user|>'", "'<|user|>Please: '");
    let other = tokenizer(&asset("tokenizer.json"), &other);
    let read = from_traces(&traces, &other).expect("examples");
    let others = Reading { examples: &read, tokenizer: &other };
    let stale = likelihoods(own, others, scored).expect_err("refused");
    assert!(matches!(stale, DistillError::ForeignTargets { .. }));
    // Asked anew, that teacher is fine: prompts may differ, replies are the same.
    likelihoods(own, others, scores(&traces, &read)).expect("the prompt is not aligned");
    let mut rewritten = Vec::new();
    for (trace, example) in traces.iter().zip(&of_student) {
        let text = trace.reasoning_content.as_deref().unwrap_or_default().to_uppercase().replace(' ', "_");
        let ids = teacher.encode_plain(&text).expect("any text");
        rewritten.push(Example::from_text_ids(example.id.clone(), ids).expect("an example"));
    }
    let others = Reading { examples: &rewritten, tokenizer: &teacher };
    let error = likelihoods(own, others, scores(&traces, &rewritten)).expect_err("another text");
    assert!(matches!(error, DistillError::Misaligned { .. }), "{error}");
}

#[test]
fn scores_are_kept_bit_for_bit_and_what_is_no_log_probability_is_refused() {
    let rows = scores(&traces(), &from_traces(&traces(), &both().0).expect("examples"));
    let info = LogprobInfo { tokenizer_digest: Digest::of(b"tokenizer"), teacher: "a teacher".into() };
    let mut bytes = Vec::new();
    write_logprobs(&mut bytes, &info, &rows).expect("written");
    assert_eq!(read_logprobs(bytes.clone()).expect("read"), (info.clone(), rows.clone()));
    for cut in (0..bytes.len()).step_by(7) {
        assert!(read_logprobs(bytes[..cut].to_vec()).is_err(), "cut at {cut}");
    }
    for wrong in [0.5, f32::NAN, f32::NEG_INFINITY] {
        let mut rows = rows.clone();
        rows[0].logprobs[2] = wrong;
        let error = write_logprobs(Vec::new(), &info, &rows).expect_err("refused");
        assert!(matches!(error, FormatError::LogitRow { position: 2, .. }), "{error}");
    }
    assert!(stillroom_formats::parquet_rows::read_traces(bytes).is_err(), "another kind of file");
}

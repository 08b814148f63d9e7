//! Parquet rows: round trips, refusals, size.

use proptest::prelude::*;
use stillroom_core::{CounterRng, Digest, FinishReason, Message, Role, SparseRow, Tail, Trace};
use stillroom_formats::FormatError;
use stillroom_formats::parquet_rows::{
    Kept, LogitCacheInfo, LogitCacheRow, TraceWriter, read_logits, read_traces, write_logits, write_traces,
};

fn info(kept: Kept) -> LogitCacheInfo {
    LogitCacheInfo {
        kept,
        tail: if matches!(kept, Kept::Draws(_)) { Tail::None } else { Tail::Bucket },
        temperature: 1.25,
        tokenizer_digest: Digest::of(b"tokenizer"),
        teacher: "ours/teacher \u{1F980}".to_owned(),
    }
}

fn row_of_draws(rng: &mut CounterRng, n: u32, vocab_size: u64) -> SparseRow {
    // A long-tailed distribution: id 0 is drawn most.
    let mut ids: Vec<u32> = (0..n).map(|_| (rng.uniform().powi(6) * vocab_size as f64) as u32).collect();
    ids.sort_unstable();
    let mut row =
        SparseRow { ids: Vec::new(), probs: Vec::new(), teacher_entropy: rng.uniform() as f32 * 4.0 };
    for group in ids.chunk_by(|a, b| a == b) {
        row.ids.push(group[0]);
        row.probs.push(group.len() as f32 / n as f32);
    }
    row
}

fn row_of_top_k(rng: &mut CounterRng, k: u32) -> SparseRow {
    let ids = (0..rng.below(u64::from(k) + 1) as u32).map(|i| 7 * i).collect::<Vec<_>>();
    let probs = ids.iter().map(|_| rng.uniform() as f32 / k as f32).collect();
    SparseRow { ids, probs, teacher_entropy: rng.uniform() as f32 }
}

fn cache(seed: u64, kept: Kept, n_rows: usize) -> Vec<LogitCacheRow> {
    let mut rng = CounterRng::new(&[seed]);
    (0..n_rows)
        .map(|i| {
            let n_positions = rng.below(9) as usize;
            let rows = (0..n_positions).map(|_| match kept {
                Kept::Draws(n) => row_of_draws(&mut rng, n, 5000),
                Kept::TopK(k) => row_of_top_k(&mut rng, k),
            });
            LogitCacheRow {
                id: format!("prompt \u{e9}{i}"),
                sample: u32::MAX - i as u32,
                token_ids_digest: Digest::of(&[i as u8]),
                n_tokens: n_positions as u32 + 5,
                rows: rows.collect(),
            }
        })
        .collect()
}

fn trace(i: u32, text: &str) -> Trace {
    Trace {
        id: format!("p{i}"),
        sample: i % 3,
        messages: vec![Message::new(Role::System, text), Message::new(Role::User, format!("{text}?"))],
        reasoning_content: i.is_multiple_of(2).then(|| text.repeat(2)),
        content: text.to_owned(),
        finish_reason: if i.is_multiple_of(5) { FinishReason::Length } else { FinishReason::Stop },
        prompt_tokens: i,
        completion_tokens: u32::MAX - i,
        teacher: "openai:gpt".to_owned(),
        usd: f64::from(i) * 1e-7,
    }
}

fn written(info: &LogitCacheInfo, rows: &[LogitCacheRow]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_logits(&mut bytes, info, rows).expect("writing to memory");
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn traces_come_back(text in "\\PC{0,40}", n in 0u32..40) {
        let traces: Vec<Trace> = (0..n).map(|i| trace(i, &text)).collect();
        let mut bytes = Vec::new();
        write_traces(&mut bytes, &traces).expect("writing to memory");
        prop_assert_eq!(read_traces(bytes).expect("reading"), traces);
    }

    #[test]
    fn logits_come_back_bit_for_bit(seed: u64, n_rows in 0usize..12, draws in 1u32..90, top_k: bool) {
        let kept = if top_k { Kept::TopK(draws) } else { Kept::Draws(draws) };
        let rows = cache(seed, kept, n_rows);
        let bytes = written(&info(kept), &rows);
        let (read_info, read_rows) = read_logits(bytes).expect("reading");
        prop_assert_eq!(read_info, info(kept));
        prop_assert_eq!(read_rows, rows);
    }

    #[test]
    fn damaged_files_are_errors_or_valid_rows(seed: u64, flips in prop::collection::vec((any::<u16>(), any::<u8>()), 1..5), cut in 0usize..64) {
        let kept = Kept::Draws(16);
        let mut logits = written(&info(kept), &cache(1, kept, 6));
        let mut traces = Vec::new();
        write_traces(&mut traces, &[trace(0, "some text"), trace(1, "more text")]).expect("writing");
        for bytes in [&mut logits, &mut traces] {
            for &(at, xor) in &flips {
                let at = (usize::from(at) ^ seed as usize) % bytes.len();
                bytes[at] ^= xor;
            }
            bytes.truncate(bytes.len() - cut.min(bytes.len()));
        }
        let _ = read_logits(logits);
        let _ = read_traces(traces);
    }
}

#[test]
fn traces_that_come_one_by_one_give_the_same_bytes() {
    for n in [0, 1, 4096, 9000] {
        let traces: Vec<Trace> = (0..n).map(|i| trace(i, "some text")).collect();
        let mut whole = Vec::new();
        write_traces(&mut whole, &traces).expect("writing to memory");
        let mut writer = TraceWriter::create(Vec::new()).expect("writing to memory");
        traces.into_iter().for_each(|trace| writer.push(trace).expect("writing to memory"));
        assert_eq!(writer.finish().expect("writing to memory"), whole, "{n} traces");
    }
}

#[test]
fn large_caches_span_row_groups() {
    let kept = Kept::Draws(4);
    let rows = cache(3, kept, 9000);
    let bytes = written(&info(kept), &rows);
    assert_eq!(read_logits(bytes).expect("reading").1, rows);
}

#[test]
fn rows_that_cannot_be_held_exactly_are_refused() {
    let kept = Kept::Draws(10);
    let good = SparseRow { ids: vec![3, 8], probs: vec![0.3, 0.7], teacher_entropy: 0.6 };
    let bad = [
        (SparseRow { ids: vec![8, 3], ..good.clone() }, "id 8 before id 3"),
        (SparseRow { ids: vec![3, 3], ..good.clone() }, "id 3 before id 3"),
        (SparseRow { probs: vec![0.3], ..good.clone() }, "2 ids and 1 weights"),
        (SparseRow { probs: vec![0.3, 0.6], ..good.clone() }, "9 draws instead of 10"),
        (SparseRow { probs: vec![0.35, 0.65], ..good.clone() }, "weight 0.35 is not a count of 10"),
        (SparseRow { probs: vec![f32::NAN, 0.7], ..good.clone() }, "weight NaN is not a count of 10"),
        (SparseRow { teacher_entropy: -1.0, ..good.clone() }, "an entropy of -1"),
    ];
    let row = |sparse: SparseRow| LogitCacheRow {
        rows: vec![good.clone(), sparse],
        ..cache(1, kept, 1)[0].clone()
    };
    assert!(write_logits(Vec::new(), &info(kept), &[row(good.clone())]).is_ok());
    for (sparse, message) in bad {
        let error = write_logits(Vec::new(), &info(kept), &[row(sparse)]).unwrap_err();
        assert!(matches!(error, FormatError::LogitRow { position: 1, .. }), "{error}");
        assert!(error.to_string().contains(message), "{error}");
    }
    let too_many = SparseRow { ids: vec![1, 2, 3], probs: vec![0.1; 3], teacher_entropy: 1.0 };
    assert!(write_logits(Vec::new(), &info(Kept::TopK(2)), &[row(too_many)]).is_err());
}

#[test]
fn a_file_of_another_kind_is_named() {
    let mut traces = Vec::new();
    write_traces(&mut traces, &[trace(1, "x")]).expect("writing");
    let error = read_logits(traces).unwrap_err();
    assert_eq!(error.to_string(), "unsupported logit cache: `traces/1`");
    let kept = Kept::TopK(3);
    let error = read_traces(written(&info(kept), &cache(1, kept, 2))).unwrap_err();
    assert!(error.to_string().contains("no column `messages`"), "{error}");
    assert!(read_traces(b"PAR1 but not really".to_vec()).is_err());
}

#[test]
fn a_cache_of_draws_is_compact() {
    let mut rng = CounterRng::new(&[11]);
    let rows: Vec<LogitCacheRow> = (0..40)
        .map(|i| LogitCacheRow {
            rows: (0..100).map(|_| row_of_draws(&mut rng, 64, 49152)).collect(),
            ..cache(i, Kept::Draws(64), 1)[0].clone()
        })
        .collect();
    let n_ids: usize = rows.iter().flat_map(|row| &row.rows).map(|row| row.ids.len()).sum();
    let bytes = written(&info(Kept::Draws(64)), &rows).len();
    // Plain lists of u32 and f32 would take 8.
    assert!(bytes < 3 * n_ids, "{bytes} bytes for {n_ids} ids");
}

//! Alignment of two tokenizations: properties on made-up splits, and what real tokenizers do with digits, spaces,
//! characters of several bytes and special tokens.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use stillroom_core::{Message, Role};
use stillroom_distill::{Chunk, Example, ReplyTokens, align};
use stillroom_formats::{ModelFiles, Tokenizer};

/// Tokens that end at these bytes and at the end.
fn split(text: &[u8], ends: &BTreeSet<usize>) -> ReplyTokens {
    let mut tokens = ReplyTokens::default();
    let mut start = 0;
    for end in ends.iter().copied().chain([text.len()]) {
        if end > start && end <= text.len() {
            tokens.push(&text[start..end]);
            start = end;
        }
    }
    tokens
}

fn ends_of(ends: &BTreeSet<usize>, len: usize) -> BTreeSet<usize> {
    ends.iter().copied().filter(|&end| end > 0 && end < len).chain([len]).collect()
}

fn texts_and_splits() -> impl Strategy<Value = (Vec<u8>, BTreeSet<usize>, BTreeSet<usize>)> {
    let ends = || prop::collection::btree_set(0usize..40, 0..30);
    ("[a-c é\u{1F980}\n]{1,12}", ends(), ends()).prop_map(|(text, a, b)| (text.into_bytes(), a, b))
}

proptest! {
    #[test]
    fn chunks_cover_both_sides_end_at_common_boundaries_and_are_minimal((text, a, b) in texts_and_splits()) {
        let (student, teacher) = (split(&text, &a), split(&text, &b));
        let (a, b) = (ends_of(&a, text.len()), ends_of(&b, text.len()));
        let chunks = align(&student, &teacher);
        let common: Vec<usize> = a.intersection(&b).copied().collect();
        // As many chunks as there are common ends: none could be split further.
        prop_assert_eq!(chunks.len(), common.len());
        let (mut s, mut t) = (0, 0);
        for (chunk, &end) in chunks.iter().zip(&common) {
            prop_assert_eq!((chunk.student.start, chunk.teacher.start), (s, t));
            (s, t) = (chunk.student.end, chunk.teacher.end);
            let end_of = |ends: &BTreeSet<usize>, n: usize| ends.iter().copied().nth(n - 1);
            prop_assert_eq!(end_of(&a, s), Some(end));
            prop_assert_eq!(end_of(&b, t), Some(end));
        }
        prop_assert_eq!((s, t), (student.len(), teacher.len()));
    }

    #[test]
    fn one_tokenization_gives_chunks_of_one_token((text, a, _) in texts_and_splits()) {
        let tokens = split(&text, &a);
        let chunks = align(&tokens, &tokens);
        let expected: Vec<Chunk> =
            (0..tokens.len()).map(|i| Chunk { student: i..i + 1, teacher: i..i + 1 }).collect();
        prop_assert_eq!(chunks, expected);
    }

    #[test]
    fn what_one_template_writes_around_a_reply_is_in_no_chunk(
        (text, a, b) in texts_and_splits(), before in "[x-z]{0,6}", after in "[x-z]{0,4}",
    ) {
        let student = split(&text, &a);
        let mut teacher = ReplyTokens::default();
        before.as_bytes().iter().for_each(|&byte| teacher.push(&[byte]));
        let offset = teacher.len();
        let whole = split(&text, &b);
        let mut start = 0;
        for end in ends_of(&b, text.len()) {
            teacher.push(&text[start..end]);
            start = end;
        }
        // Neither beginning nor end is common where something stands on both sides.
        if !after.is_empty() && before.is_empty() {
            after.as_bytes().iter().for_each(|&byte| teacher.push(&[byte]));
        }
        let alone = align(&student, &whole);
        let found = align(&student, &teacher);
        let shifted: Vec<Chunk> = alone
            .into_iter()
            .map(|c| Chunk { student: c.student, teacher: c.teacher.start + offset..c.teacher.end + offset })
            .collect();
        prop_assert_eq!(found, shifted);
    }
}

/// Text tokens, `<end>` and `<special>`.
fn tokens(spelled: &[&str]) -> ReplyTokens {
    let mut all = ReplyTokens::default();
    for token in spelled {
        match *token {
            "<end>" => all.push_special(true),
            "<special>" => all.push_special(false),
            text => all.push(text.as_bytes()),
        }
    }
    all
}

fn chunk(student: std::ops::Range<usize>, teacher: std::ops::Range<usize>) -> Chunk {
    Chunk { student, teacher }
}

#[test]
fn the_ends_of_both_turns_are_one_chunk_and_other_special_tokens_are_in_none() {
    let found = align(&tokens(&["ab", "c", "<end>"]), &tokens(&["a", "bc", "<end>"]));
    assert_eq!(found, [chunk(0..2, 0..2), chunk(2..3, 2..3)]);
    // A turn that has no end on one side.
    assert_eq!(align(&tokens(&["a"]), &tokens(&["a", "<end>"])), [chunk(0..1, 0..1)]);
    let special = tokens(&["<special>", "ab", "<special>", "c", "<end>"]);
    let expected = [chunk(0..1, 1..2), chunk(1..2, 3..4), chunk(2..3, 4..5)];
    assert_eq!(align(&tokens(&["ab", "c", "<end>"]), &special), expected);
    // The probability of text across a special token is not that of the text.
    let across = align(&tokens(&["abc", "d", "<end>"]), &tokens(&["ab", "<special>", "c", "d", "<end>"]));
    assert_eq!(across, [chunk(1..2, 3..4), chunk(2..3, 4..5)]);
}

#[test]
fn texts_that_differ_in_the_middle_are_aligned_around_it() {
    // As a normaliser does: e and a combining accent, or one character.
    let student = tokens(&["caf", "e\u{301}", " noir", "<end>"]);
    let teacher = tokens(&["ca", "f\u{e9}", " no", "ir", "<end>"]);
    assert_eq!(align(&student, &teacher), [chunk(2..3, 2..4), chunk(3..4, 4..5)]);
    // A space that one side puts before the first word belongs to another token, and to no chunk.
    let found = align(&tokens(&["Hello", " world"]), &tokens(&[" Hello", " world"]));
    assert_eq!(found, [chunk(1..2, 1..2)]);
    assert_eq!(align(&tokens(&["abc"]), &tokens(&["xyz"])), []);
}

fn quickstart() -> Tokenizer {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/quickstart-tokenizer");
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).expect("it is committed");
    let (config, template) = (read("tokenizer_config.json"), read("chat_template.jinja"));
    Tokenizer::from_json_files(&read("tokenizer.json"), Some(&config), Some(&template)).expect("a tokenizer")
}

/// A file of `.cache`, if it was fetched.
fn fetched(path: &str, how: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache").join(path);
    if path.exists() {
        return Some(path);
    }
    #[expect(clippy::print_stderr, reason = "a skipped test says so")]
    {
        eprintln!("SKIPPED in part: {} is missing: run `{how}`", path.display());
    }
    None
}

fn smollm2() -> Option<Tokenizer> {
    let how = "scripts/fetch-smollm2.sh .cache/smollm2";
    let path = fetched("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", how)?;
    ModelFiles::open(&path).expect("a model").tokenizer
}

fn from_npm(name: &str) -> Option<Tokenizer> {
    let dir = fetched(&format!("tokenizers/{name}"), "scripts/fetch-tokenizers.sh .cache/tokenizers")?;
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).expect("a file");
    let config = read("tokenizer_config.json");
    Some(Tokenizer::from_json_files(&read("tokenizer.json"), Some(&config), None).expect("a tokenizer"))
}

/// The reply as `tokenizer` reads it behind its own chat template.
fn reply(tokenizer: &Tokenizer, content: &str) -> (Example, ReplyTokens) {
    let question = [Message::new(Role::User, "And what?")];
    let answer = Message::new(Role::Assistant, content);
    let read = tokenizer.encode_supervised(&question, &answer).expect("a reply");
    let example = Example::new("a", read.ids, read.supervised, None).expect("an example");
    let tokens = ReplyTokens::of(&example, tokenizer).expect("tokens of its own tokenizer");
    (example, tokens)
}

const REPLIES: [&str; 7] = [
    "12345 + 678 = 13023",
    "Na\u{ef}ve caf\u{e9}s, \u{4f60}\u{597d} and \u{1F980}\u{1F980}!",
    "  two spaces,\n\n\ttabs and\r\nlines  end",
    "def f(x):\n    return x ** 2  # 0.125",
    "A <|im_end|> that is only spelled, <|eot_id|> and <think> too",
    "x",
    "Tom has 3 apples and buys 4 more. 3 + 4 = <think>7</think> #### 7",
];

#[test]
fn real_tokenizers_agree_on_the_bytes_of_a_reply_and_on_its_end() {
    let all = [Some(quickstart()), smollm2(), from_npm("qwen3"), from_npm("llama3.1")];
    let all: Vec<Tokenizer> = all.into_iter().flatten().collect();
    for student in &all {
        for teacher in &all {
            let same = student.digest() == teacher.digest();
            for content in REPLIES {
                let (_, s) = reply(student, content);
                let (_, t) = reply(teacher, content);
                let chunks = align(&s, &t);
                let last = chunk(s.len() - 1..s.len(), t.len() - 1..t.len());
                assert_eq!(chunks.last(), Some(&last), "the ends of both turns");
                if same {
                    assert_eq!(chunks.len(), s.len(), "one tokenizer, one token each");
                }
                let text = content.trim().as_bytes();
                let contains = |side: &ReplyTokens| side.text().windows(text.len()).any(|w| w == text);
                assert!(contains(&s) && contains(&t), "{content:?}");
                if s.text() == t.text() {
                    let covered: usize = chunks.iter().map(|c| c.student.len()).sum();
                    assert_eq!(covered, s.len(), "{content:?}");
                    let covered: usize = chunks.iter().map(|c| c.teacher.len()).sum();
                    assert_eq!(covered, t.len(), "{content:?}");
                }
            }
        }
    }
}

#[test]
fn a_beginning_of_text_token_is_part_of_the_prompt_on_the_side_that_has_one() {
    let (Some(with), without) = (from_npm("llama3.1"), quickstart()) else { return };
    let ((with_bos, t), (_, s)) = (reply(&with, "4 apples"), reply(&without, "4 apples"));
    assert_eq!(Some(with_bos.ids[0]), with.bos_id(), "Llama's template begins with it");
    let chunks = align(&s, &t);
    assert_eq!((chunks[0].student.start, chunks[0].teacher.start), (0, 0));
    assert_eq!(chunks.iter().map(|chunk| chunk.teacher.len()).sum::<usize>(), t.len());
}

#[test]
fn digits_that_are_grouped_differently_are_chunks_of_the_larger_groups() {
    let (Some(grouped), Some(single)) = (from_npm("llama3.1"), from_npm("qwen3")) else { return };
    let of = |tokenizer: &Tokenizer, text: &str| {
        let mut tokens = ReplyTokens::default();
        for id in tokenizer.encode_plain(text).expect("any text") {
            tokens.push(&tokenizer.token_bytes(id).expect("a known id"));
        }
        tokens
    };
    let (s, t) = (of(&single, "= 1234567"), of(&grouped, "= 1234567"));
    // `=`, ` `, then 123, 456 and 7 together.
    let expected =
        [chunk(0..1, 0..1), chunk(1..2, 1..2), chunk(2..5, 2..3), chunk(5..8, 3..4), chunk(8..9, 4..5)];
    assert_eq!(align(&s, &t), expected);
    if let Some(smollm2) = smollm2() {
        assert_eq!(
            align(&of(&smollm2, "12345"), &of(&grouped, "12345")),
            [chunk(0..3, 0..1), chunk(3..5, 1..2)]
        );
    }
}

#[test]
fn a_character_that_is_split_differently_is_one_chunk() {
    let (Some(a), b) = (smollm2(), quickstart()) else { return };
    let crab = "\u{1F980}".as_bytes();
    let of = |tokenizer: &Tokenizer| {
        let mut tokens = ReplyTokens::default();
        for id in tokenizer.encode_plain("a\u{1F980}b").expect("any text") {
            tokens.push(&tokenizer.token_bytes(id).expect("a known id"));
        }
        tokens
    };
    let (s, t) = (of(&a), of(&b));
    assert!(s.len() > 3 && t.len() > 3 && s.len() < 6 + crab.len() && s.text() == t.text());
    let chunks = align(&s, &t);
    assert_eq!((chunks[0].clone(), chunks.last().map(|c| c.student.end)), (chunk(0..1, 0..1), Some(s.len())));
}

//! Prompts and texts from files, good and bad.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use stillroom_core::{ErrorKind, Message, Prompt, Role};
use stillroom_corpus::curation::tool_use;
use stillroom_corpus::decontamination::contamination;
use stillroom_corpus::prompts::{DOCUMENT_BYTES, DataSet, Item, LINE_BYTES_MAX, Rows};
use stillroom_corpus::verify::numeric_answer::NumericAnswer;
use stillroom_corpus::{CorpusError, Split, Verifier};
use tempfile::TempDir;

struct Files(TempDir);

impl Files {
    fn new(files: &[(&str, &[u8])]) -> Files {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (name, bytes) in files {
            std::fs::write(dir.path().join(name), bytes).expect("a small file is written");
        }
        Files(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn rows(bytes: &[u8]) -> Result<Vec<Item>, CorpusError> {
    let files = Files::new(&[("rows.jsonl", bytes)]);
    Rows::open(&files.path("rows.jsonl"))?.collect()
}

fn one(line: &str) -> Prompt {
    match rows(line.as_bytes()).expect("a good row").remove(0) {
        Item::Prompt(prompt) => prompt,
        Item::Text { .. } => panic!("a prompt is no text: {line}"),
    }
}

fn reason(bytes: &[u8]) -> (u64, String) {
    match rows(bytes).expect_err("a bad row") {
        CorpusError::BadRow { line, problem, .. } => (line, problem.to_string()),
        other => panic!("{other}"),
    }
}

#[test]
fn every_shape_of_a_row_is_read() {
    let user = |text: &str| vec![Message::new(Role::User, text)];
    let assistant = |text: &str| Some(Message::new(Role::Assistant, text));
    let prompt = one(r#"{"id": "a", "prompt": "Why?"}"#);
    assert_eq!(prompt, Prompt { id: "a".into(), messages: user("Why?"), answer: None, target: None });
    let prompt = one(r#"{"id": 7, "prompt": "2+2?", "answer": 4, "completion": "Four."}"#);
    assert_eq!(
        (prompt.id.as_str(), prompt.answer.as_deref(), prompt.target),
        ("7", Some("4"), assistant("Four."))
    );
    let prompt =
        one(r#"{"messages": [{"role":"system","content":"Be brief."},{"role":"user","content":"Hi"}]}"#);
    assert_eq!((prompt.id.as_str(), prompt.messages.len(), prompt.target), ("rows-000001", 2, None));
    let prompt = one(
        r#"{"messages": [{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello","reasoning":"greet"}]}"#,
    );
    assert_eq!(prompt.messages, user("Hi"));
    assert_eq!(prompt.target.and_then(|target| target.reasoning_content).as_deref(), Some("greet"));
    let prompt = one(
        r#"{"prompt": [{"role":"user","content":"Hi"}], "completion": [{"role":"assistant","content":"Hello"}]}"#,
    );
    assert_eq!((prompt.messages, prompt.target), (user("Hi"), assistant("Hello")));
    let prompt = one(r###"{"question": "Eggs?", "answer": "16-3=<<16-3=13>>13 eggs\n#### 1,300"}"###);
    assert_eq!(prompt.answer.as_deref(), Some("1,300"));
    assert_eq!(prompt.target, assistant("16-3=13 eggs\n#### 1,300"));
    let text = rows(br#"{"text": "Once upon a time"}"#).expect("a good row").remove(0);
    assert_eq!(text, Item::Text { id: "rows-000001".into(), text: "Once upon a time".into() });
}

#[test]
fn rows_with_tools_are_read_whole_and_say_so() {
    let tool = r#"{"type": "function", "function": {"name": "f"}}"#;
    let asked = r#"{"role": "user", "content": "Hi"}"#;
    let called = r#"{"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}"#;
    let found = r#"{"role": "tool", "content": ""}"#;
    let text = serde_json::to_string(&format!("[{tool}]")).expect("a string");
    for (row, expected) in [
        (format!(r#"{{"messages": [{asked}, {called}]}}"#), Some("the reply has tool calls")),
        (format!(r#"{{"prompt": "Hi", "completion": [{called}]}}"#), Some("the reply has tool calls")),
        (format!(r#"{{"messages": [{asked}, {called}, {found}]}}"#), Some("the conversation has tool calls")),
        (format!(r#"{{"messages": [{asked}], "tools": [{tool}]}}"#), Some("the conversation offers tools")),
        (format!(r#"{{"prompt": "Hi", "tools": {text}}}"#), Some("the conversation offers tools")),
        (format!(r#"{{"prompt": "Hi", "functions": [{tool}]}}"#), Some("the conversation offers tools")),
        (r#"{"prompt": "Hi", "tools": []}"#.to_owned(), None),
        (r#"{"prompt": "Hi", "tools": null, "completion": "<tool_call>{}</tool_call>"}"#.to_owned(), None),
    ] {
        let prompt = one(&row);
        assert_eq!(tool_use(&prompt), expected, "{row}");
        assert_eq!(
            prompt.messages[0].tools.len(),
            usize::from(row.contains("s\": [{\"type\"") || row.contains(&text)),
            "{row}"
        );
    }
    let key = |row: String| rows(row.as_bytes()).expect("a row")[0].content_key();
    let offers = key(format!(r#"{{"prompt": "Hi", "tools": [{tool}]}}"#));
    assert_ne!(offers, key(r#"{"prompt": "Hi"}"#.to_owned()), "tools are a part of what is asked");
    assert_eq!(reason(br#"{"prompt": "Hi", "tools": [1]}"#).1, "`tools` is no list of tools");
    assert_eq!(reason(br#"{"prompt": "Hi", "tools": "none"}"#).1, "`tools` is no list of tools");
}

#[test]
fn blank_lines_byte_order_marks_and_line_ends_do_not_matter() {
    let items = rows(b"\xef\xbb\xbf{\"prompt\": \"a\"}\r\n\n  \n{\"prompt\": \"b\"}").expect("good rows");
    assert_eq!(items.iter().map(Item::id).collect::<Vec<_>>(), ["rows-000001", "rows-000004"]);
    assert!(rows(b"").expect("an empty file is no error").is_empty());
}

#[test]
fn bad_rows_name_their_line_and_what_is_wrong() {
    let good = "{\"id\": \"x\", \"prompt\": \"fine\"}\n";
    let cases = [
        ("{\"prompt\": ", "not JSON"),
        ("[1]", "not a JSON object"),
        ("{\"promt\": \"a\"}", "none of"),
        ("{\"prompt\": \" \"}", "`prompt` is empty"),
        ("{\"prompt\": 3}", "`prompt` is no list of messages"),
        ("{\"messages\": []}", "`messages` is without a question"),
        ("{\"messages\": [{\"role\": \"wizard\", \"content\": \"a\"}]}", "not a message"),
        ("{\"messages\": [{\"role\": \"user\", \"content\": null}]}", "not a message"),
        (
            "{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}]}",
            "`messages` is without a question",
        ),
        ("{\"question\": \"a\", \"answer\": 5}", "`answer` is no text"),
        ("{\"text\": \"\"}", "`text` is empty"),
        ("{\"id\": \"\", \"prompt\": \"a\"}", "`id` is empty"),
        ("{\"id\": 1.5, \"prompt\": \"a\"}", "`id` is neither"),
        ("{\"id\": \"\\u001b[2J\", \"prompt\": \"a\"}", "`id` is not printable"),
        ("{\"id\": \"x\", \"prompt\": \"a\"}", "id `x` was already used in line 1"),
        ("{\"prompt\": \"a\", \"answer\": [1]}", "`answer` is neither"),
        (
            "{\"prompt\": \"a\", \"completion\": [{\"role\":\"user\",\"content\":\"b\"}]}",
            "`completion` is not one",
        ),
    ];
    for (line, expected) in cases {
        let (at, reason) = reason(format!("{good}{line}\n").as_bytes());
        assert!(at == 2 && reason.starts_with(expected), "{line}: line {at}, {reason}");
    }
    assert_eq!(
        reason(&[good.as_bytes(), b"{\"prompt\": \"\xff\"}"].concat()),
        (2, "not UTF-8 from byte 12 of the line".into())
    );
    let deep = "[".repeat(100_000);
    assert!(reason(format!("{{\"prompt\": {deep}").as_bytes()).1.contains("recursion limit"));
    let long = vec![b' '; LINE_BYTES_MAX + 1];
    assert_eq!(reason(&long), (1, format!("line longer than {LINE_BYTES_MAX} bytes")));
}

#[test]
fn errors_have_their_kind_and_a_fix() {
    let missing = Rows::open(Path::new("/nowhere/at/all.jsonl")).err().expect("there is no such file");
    assert_eq!(missing.kind(), ErrorKind::Io);
    assert!(missing.to_string().starts_with("/nowhere/at/all.jsonl: "));
    let other = Rows::open(Path::new("data.xlsx")).err().expect("no such format");
    assert_eq!((other.kind(), other.fix().is_some()), (ErrorKind::BadData, true));
    let empty = Files::new(&[]);
    assert!(matches!(DataSet::open(empty.0.path()), Err(CorpusError::BadDataSet { .. })));
}

#[test]
fn one_file_is_parted_by_content_whatever_the_order() {
    let lines: Vec<String> =
        (0..2_000).map(|i| format!("{{\"id\": {i}, \"prompt\": \"Question {i}\"}}")).collect();
    let reversed: Vec<String> = lines.iter().rev().cloned().collect();
    let files =
        Files::new(&[("a.jsonl", lines.join("\n").as_bytes()), ("b.jsonl", reversed.join("\n").as_bytes())]);
    let (a, b) = (DataSet::open(&files.path("a.jsonl")), DataSet::open(&files.path("b.jsonl")));
    let (a, b) = (a.expect("good rows"), b.expect("good rows"));
    let ids = |items: &[Item]| items.iter().map(|item| item.id().to_string()).collect::<HashSet<_>>();
    for split in Split::ALL {
        assert_eq!(ids(a.part(split)), ids(b.part(split)));
    }
    assert_eq!(a.train.len() + a.validation.len() + a.held_out.len(), 2_000);
    assert!((150..250).contains(&a.validation.len()) && (150..250).contains(&a.held_out.len()));
    assert!(a.train.is_sorted_by_key(|item| item.id().parse::<u32>().expect("ids are numbers")));
}

#[test]
fn equal_items_are_never_parted() {
    let lines: Vec<String> = (0..600)
        .map(|i| format!("{{\"prompt\": \"{} {}\"}}", ["Question", " question"][i % 2], i / 2))
        .collect();
    let files = Files::new(&[("a.jsonl", lines.join("\n").as_bytes())]);
    let data = DataSet::open(&files.path("a.jsonl")).expect("parted by content");
    assert!(data.held_out.len().is_multiple_of(2) && !data.held_out.is_empty());
}

#[test]
fn a_directory_keeps_its_own_parts_and_a_leak_between_them_is_an_error() {
    let train: Vec<String> =
        (0..300).map(|i| format!("{{\"id\": {i}, \"prompt\": \"Question {i}\"}}")).collect();
    let train = train.join("\n");
    let files = Files::new(&[
        ("train.jsonl", train.as_bytes()),
        ("test.jsonl", br#"{"prompt": "Another question"}"#),
    ]);
    let data = DataSet::open(files.0.path()).expect("disjoint");
    assert_eq!(data.held_out.len(), 1);
    assert_eq!(data.train.len() + data.validation.len(), 300);
    assert!((15..50).contains(&data.validation.len()));
    let leak = files.path("test.jsonl");
    std::fs::write(&leak, r#"{"id": "leak", "prompt": "question  17"}"#).expect("a small file is written");
    let error = DataSet::open(files.0.path()).expect_err("the question is in both");
    assert!(matches!(error, CorpusError::SplitsOverlap { id, second: Split::HeldOut, .. } if id == "leak"));
}

#[test]
fn a_plain_text_becomes_documents_at_paragraph_ends() {
    let paragraph = "All the world's a stage,\nand all the men and women merely players.\n\n";
    let text = paragraph.repeat(100);
    let files = Files::new(&[("play.txt", text.as_bytes()), ("empty.txt", b"\n\n \n")]);
    let items: Vec<Item> =
        Rows::open(&files.path("play.txt")).and_then(Iterator::collect).expect("plain text is read");
    let texts: Vec<&str> = items
        .iter()
        .map(|item| match item {
            Item::Text { text, .. } => text.as_str(),
            Item::Prompt(_) => panic!("plain text holds no prompts"),
        })
        .collect();
    assert!(
        texts[..texts.len() - 1]
            .iter()
            .all(|t| (DOCUMENT_BYTES - 2..DOCUMENT_BYTES + 100).contains(&t.len()))
    );
    assert_eq!(texts.join("\n\n"), text.trim_end());
    assert_eq!(items[0].id(), "play-000001");
    assert_eq!(Rows::open(&files.path("empty.txt")).expect("opens").count(), 0);
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), line in "[\\[\\]{}\":, a-z0-9\n]{0,120}") {
        let _ = rows(&bytes);
        let _ = rows(line.as_bytes());
        let _ = rows(format!("{{\"messages\": {line}}}").as_bytes());
    }
}

/// The real data set, where it is at hand.
fn gsm8k() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/gsm8k");
    if !dir.is_dir() {
        #[expect(clippy::print_stderr, reason = "a skipped test says so")]
        {
            eprintln!("SKIPPED: {} is absent, the GSM8K tests check nothing", dir.display());
        }
        return None;
    }
    Some(dir)
}

#[test]
fn gsm8k_is_read_and_every_answer_verifies_itself_and_no_other() {
    let Some(dir) = gsm8k() else { return };
    let data = DataSet::open(&dir).expect("the data set is clean");
    assert_eq!(data.held_out.len(), 1_319);
    assert_eq!(data.train.len() + data.validation.len(), 7_473);
    for item in Split::ALL.iter().flat_map(|&split| data.part(split)) {
        let prompt = item.as_prompt().expect("GSM8K holds questions");
        let target = prompt.target.clone().expect("GSM8K has worked answers");
        assert!(NumericAnswer.verify(prompt, &target).correct, "{}: {}", item.id(), target.content);
        assert!(!target.content.contains("<<"), "{}", target.content);
        let answer = prompt.answer.as_deref().expect("GSM8K has answers");
        let plain: f64 = answer.replace(',', "").parse().expect("a plain number");
        for (text, right) in [
            (format!("So the answer is ${answer}."), true),
            (format!("Thus \\boxed{{{answer}\\text{{ eggs}}}}"), true),
            (format!("{plain:.2} dollars"), true),
            (format!("#### {}", plain + 1.0), false),
            (format!("#### {}", -plain - 1.0), false),
        ] {
            let reply = Message::new(Role::Assistant, text);
            assert_eq!(NumericAnswer.verify(prompt, &reply).correct, right, "{answer} {}", reply.content);
        }
    }
}

#[test]
fn gsm8k_overlap_is_counted() {
    let Some(dir) = gsm8k() else { return };
    let data = DataSet::open(&dir).expect("the data set is clean");
    let report = contamination(questions(&data.train), questions(&data.held_out));
    assert_eq!(report.equal_texts, 0);
    assert!(report.overlapping_texts > 0 && report.overlapping_texts < report.train_texts / 5, "{report:?}");
}

fn questions(items: &[Item]) -> impl Iterator<Item = (&str, &str)> {
    let prompts = items.iter().filter_map(Item::as_prompt);
    prompts.map(|prompt| (prompt.id.as_str(), prompt.messages[0].content.as_str()))
}

//! Chat templates with generation tags and tool calls against transformers (`oracles/chat_templates.py`).

mod common;

use std::collections::HashMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;
use stillroom_core::{Message, Role};
use stillroom_formats::{FormatError, Tokenizer};

#[derive(Deserialize)]
struct Golden {
    templates: Vec<Named>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    source: String,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    messages: Vec<Message>,
    #[serde(default)]
    tools: Vec<Value>,
    prompt: String,
    text: String,
    ids: Vec<u32>,
    mask: Option<Vec<usize>>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/chat_templates.json")).expect("a golden file")
}

fn tokenizer(template: &str) -> Tokenizer {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../assets/quickstart-tokenizer");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).expect("an asset");
    let (json, config) = (read("tokenizer.json"), read("tokenizer_config.json"));
    Tokenizer::from_json_files(&json, Some(&config), Some(template)).expect("a valid tokenizer")
}

#[test]
fn text_and_learned_tokens_are_those_of_transformers() {
    let Golden { templates, cases } = golden();
    let tokenizers: HashMap<String, Tokenizer> =
        templates.into_iter().map(|named| (named.name, tokenizer(&named.source))).collect();
    let mut n_masked = 0;
    for (i, mut case) in cases.into_iter().enumerate() {
        let (name, tokenizer) = (format!("case {i}, {}", case.template), &tokenizers[&case.template]);
        case.messages[0].tools = case.tools;
        let (reply, turns) = case.messages.split_last().expect("a conversation");
        assert_eq!(tokenizer.render_chat(turns, true).expect("a prompt"), case.prompt, "{name}");
        assert_eq!(tokenizer.render_chat(&case.messages, false).expect("a chat"), case.text, "{name}");
        let tokens = tokenizer.encode_supervised(turns, reply).expect("a conversation");
        let prompt = tokenizer.encode_chat(turns, true).expect("a prompt").len();
        let end = case.ids.iter().rposition(|&id| Some(id) == tokenizer.eos_id()).expect("an end");
        assert_eq!(tokens.ids, case.ids[..=end], "{name}");
        let learned: Vec<usize> = (0..tokens.ids.len()).filter(|&t| tokens.supervised[t]).collect();
        n_masked += usize::from(case.mask.is_some());
        let masked = case.mask.unwrap_or_else(|| (0..case.ids.len()).collect());
        let masked: Vec<usize> = masked.into_iter().filter(|t| (prompt..=end).contains(t)).collect();
        assert_eq!(learned, masked, "{name}");
        assert!(!masked.is_empty() && masked.len() < tokens.ids.len(), "{name}");
    }
    assert!(n_masked >= 15, "{n_masked} cases with tags");
}

/// (what is learned of the reply, piece by piece).
fn learned(template: &str, reply: &Message) -> Result<Vec<String>, FormatError> {
    let tokenizer = tokenizer(template);
    let tokens = tokenizer.encode_supervised(&[Message::new(Role::User, "q")], reply)?;
    let pieces = tokens.ids.chunk_by(|_, _| false).zip(&tokens.supervised).fold(
        (Vec::<Vec<u32>>::new(), false),
        |(mut pieces, was), (id, &is)| {
            match (was, is) {
                (false, true) => pieces.push(id.to_vec()),
                (true, true) => pieces.last_mut().expect("a piece").extend(id),
                (_, false) => {}
            }
            (pieces, is)
        },
    );
    Ok(pieces.0.iter().map(|ids| tokenizer.decode(ids)).collect())
}

const FRAME: &str = "{% for m in messages %}{% if m.role == 'assistant' %}TURN{% else %}{{ m.content }}{% endif %}{% endfor %}";

#[test]
fn tags_decide_what_is_learned_of_a_reply() {
    let reply = Message::new(Role::Assistant, "a b<|end|>🙂");
    for (turn, expected) in [
        ("{% generation %}{{ m.content }}<|end|>{% endgeneration %}", vec!["a b<|end|>🙂<|end|>"]),
        // A last character of several tokens is learned to its end (transformers masks its first token only).
        ("{% generation %}{{ m.content }}{% endgeneration %}<|end|>", vec!["a b<|end|>🙂"]),
        (
            "{% generation %}A{% endgeneration %}<{{ m.content }}>{% generation %}B{% endgeneration %}<|end|>",
            vec!["A", "B"],
        ),
        (
            "{% generation %}{% generation %}A{% endgeneration %}1{% endgeneration %}{{ m.content }}<|end|>",
            vec!["A1"],
        ),
        // What the template does not write is no matter of its tags.
        ("{{ m.content }}{% generation %}B{% endgeneration %}", vec!["B<|end|>"]),
        (
            "{% macro say() %}{% generation %}{{ m.content }}{% endgeneration %}{% endmacro %}{{ say() }}<|end|>",
            vec!["a b<|end|>🙂"],
        ),
        ("{{ m.content }}<|end|>", vec!["a b<|end|>🙂<|end|>"]),
    ] {
        assert_eq!(learned(&FRAME.replace("TURN", turn), &reply).expect(turn), expected, "{turn}");
    }
}

#[test]
fn tags_that_leave_nothing_or_lose_the_reply_are_errors() {
    let reply = Message::new(Role::Assistant, "yes");
    let nothing = [
        "{{ m.content }}{% generation %}{% endgeneration %}<|end|>",
        "{{ m.content }}<|end|>{% generation %}\n{% endgeneration %}",
    ];
    for turn in nothing {
        let error = learned(&FRAME.replace("TURN", turn), &reply).expect_err("nothing to learn");
        assert!(matches!(error, FormatError::NothingGenerated), "{turn}: {error}");
        assert!(error.to_string().contains("`{% generation %}`") && error.fix().is_some(), "{error}");
    }
    let elsewhere =
        FRAME.replace("TURN", "{% generation %}{{ m.content | upper }}{% endgeneration %}<|end|>");
    let error = learned(&elsewhere, &reply).expect_err("another reply");
    assert!(matches!(error, FormatError::ReplyElsewhere) && error.fix().is_some(), "{error}");
    let lost = [
        "{% set x %} {% generation %} y {% endgeneration %}{% endset %}{{ x | trim | replace('y', m.content) | upper }}",
        "{% set x %}{% generation %} yes {% endgeneration %}{% endset %}{{ x | trim }}",
    ];
    for turn in lost {
        let error = learned(&FRAME.replace("TURN", turn), &reply).expect_err("a lost reply");
        assert!(matches!(error, FormatError::GenerationTags { .. }), "{turn}: {error}");
        assert!(error.fix().is_some());
    }
}

#[test]
fn a_template_that_would_drop_calls_is_refused() {
    let call = |role: &str, more: &str| -> Message {
        serde_json::from_str(&format!(r#"{{"role": "{role}", "content": "look"{more}}}"#)).expect("a turn")
    };
    let calls = r#", "tool_calls": [{"function": {"name": "weather", "arguments": {"place": "<|end|>"}}}]"#;
    let plain = tokenizer(common::CHATML);
    for turn in
        [call("assistant", calls), call("tool", ""), call("user", r#", "tools": [{"name": "weather"}]"#)]
    {
        let error = plain.render_chat(&[turn], false).expect_err("no place for it");
        assert!(matches!(error, FormatError::NoToolCalls) && error.fix().is_some(), "{error}");
    }
    let reply = call("assistant", calls);
    let mentions = "{# tool_calls #}{% for m in messages %}{{ m.content }}<|end|>{% endfor %}";
    let error = learned(mentions, &reply).expect_err("the call is not written");
    assert!(matches!(error, FormatError::ReplyElsewhere), "{error}");
    // Calls may end otherwise than text does.
    let ends = FRAME.replace(
        "TURN",
        "{{ m.content }}{{ m.tool_calls }}{{ '<|user|>\\n' if m.tool_calls else '<|end|>' }}",
    );
    assert!(learned(&ends, &reply).expect("a call").concat().ends_with("}}]<|user|>"));
    // A special token within an argument is text.
    let writes = FRAME.replace("TURN", "{{ m.content }}{{ m.tool_calls | tojson }}<|end|>");
    let text = r#"look[{"function": {"name": "weather", "arguments": {"place": "<|end|>"}}}]<|end|>"#;
    assert_eq!(learned(&writes, &reply).expect("a call"), [text]);
    let tokenizer = tokenizer(&writes);
    let tokens = tokenizer.encode_supervised(&[Message::new(Role::User, "q")], &reply).expect("a call");
    assert_eq!(tokens.ids.iter().filter(|&&id| Some(id) == tokenizer.eos_id()).count(), 1);
    // And text that looks like a call is text.
    let looks = Message::new(Role::Assistant, r#"<tool_call>{"name": "weather"}</tool_call>"#);
    assert_eq!(
        learned(common::CHATML, &looks).expect("a reply").concat(),
        format!("{}<|im_end|>\n<|end|>", looks.content)
    );
}

//! Rows with tool calls through the binary: left out and counted, or refused by a template without a place for them.

#[path = "common/shop.rs"]
mod shop;

use serde_json::{Value, json};
use shop::{Shop, text};

const RECIPE: &str = r#"
name = "tools"
seed = 3
TINY_STUDENT
QUICKSTART_TEACHER
max_tokens = 96
[prompts]
path = "rows.jsonl"
num_validation = 6
[curate]
verify = false
decontaminate = false
[train]
max_steps = 1
[evaluate]
num_examples = 4
"#;

fn shop() -> Shop {
    let shop = Shop::with_recipes(&[("tools.toml", RECIPE)]);
    let called = json!({"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]});
    let row = |i: usize| {
        let question = format!(
            "Ann has {} apples and buys {} apples. How many apples does Ann have now?",
            i + 2,
            i % 7 + 3
        );
        let asked = json!({"role": "user", "content": question});
        match i % 20 {
            3 => json!({"id": i, "messages": [asked, called]}),
            7 => json!({"id": i, "messages": [asked, called, {"role": "tool", "content": "12"}]}),
            11 => {
                json!({"id": i, "messages": [asked], "tools": [{"type": "function", "function": {"name": "f"}}]})
            }
            15 => json!({"id": i, "prompt": question, "completion": "<tool_call>{}</tool_call>"}),
            _ => json!({"id": i, "prompt": question}),
        }
    };
    let rows: String = (0..160).map(|i| format!("{}\n", row(i))).collect();
    std::fs::write(shop.path("rows.jsonl"), rows).expect("data");
    shop
}

#[test]
fn rows_with_tool_calls_are_left_out_and_counted() {
    let shop = shop();
    shop.succeed(&["curate", "tools.toml", "--output", "out"]);
    let lines = |name: &str| shop.json_lines(name);
    let dropped: Vec<Value> =
        lines("out/corpus/dropped.jsonl").into_iter().filter(|d| d["step"] == "tool_calls").collect();
    assert_eq!(dropped.len(), 24, "three of twenty rows");
    let reason = |of: u64| -> Vec<&str> {
        let id = |d: &&Value| {
            d["id"].as_str().and_then(|id| id.parse::<u64>().ok()).is_some_and(|id| id % 20 == of)
        };
        dropped.iter().filter(id).filter_map(|d| d["reason"].as_str()).collect()
    };
    assert_eq!(reason(3), ["the reply has tool calls"; 8]);
    assert_eq!(reason(7), ["the conversation has tool calls"; 8]);
    assert_eq!(reason(11), ["the conversation offers tools"; 8]);
    assert_eq!(shop.json("out/corpus/curation.json")["dropped"]["tool_calls"], 24);
    let asked =
        ["train", "validation", "held_out"].map(|part| lines(&format!("out/corpus/prompts/{part}.jsonl")));
    assert!(
        asked
            .iter()
            .flatten()
            .all(|prompt| prompt["messages"].as_array().is_some_and(|turns| turns.len() == 1))
    );
}

#[test]
fn a_template_without_a_place_for_them_is_refused_before_the_teacher_is_asked() {
    let shop = shop();
    let output =
        shop.run(&["curate", "tools.toml", "--output", "out", "--set", "curate.tool_calls=\"keep\""]);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(65), "{message}");
    for part in ["error[tool-calls]", "chat template does not write them", "first such row", "fix: "] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(!shop.path("out/corpus/traces").exists());
    let output =
        shop.run(&["curate", "tools.toml", "--output", "out", "--set", "curate.tool_calls=\"maybe\""]);
    assert_eq!(output.status.code(), Some(78), "{}", text(&output.stderr));
}

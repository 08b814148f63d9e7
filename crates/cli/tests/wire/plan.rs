//! What is said of a teacher behind endpoints before anybody asks it.

use serde_json::Value;

use crate::desk::{Desk, PRICE};

#[test]
fn a_plan_counts_every_row_that_will_be_asked() {
    let line = |i: usize| {
        let source = if i.is_multiple_of(4) { "closed" } else { "open" };
        format!("{{\"prompt\": \"Tell me about thing {i:03}.\", \"source\": \"{source}\"}}\n")
    };
    let desk = Desk::with_prompts(&(0..200).map(line).collect::<String>());
    desk.recipe("plan.toml", "http://127.0.0.1:9/v1", "");
    let usd = |set: &[&str]| {
        let plan = desk.succeed(&[&["plan", "plan.toml", "--json"], set].concat());
        let plan: Value = serde_json::from_slice(&plan.stdout).expect("JSON");
        plan["estimate"]["money_usd"].as_f64().expect("dollars")
    };
    // Six tokens of a prompt, and half of what a reply may have.
    let each = 6.0 * PRICE.0 + 32.0 * PRICE.1;
    assert!((usd(&[]) - 200.0 * each).abs() < 1e-9, "{}", usd(&[]));
    let closed = ["curate.respect_opt_outs=true", "curate.sources={ closed = { opt_out = true } }"];
    let open = usd(&["--set", closed[0], "--set", closed[1]]);
    assert!((open - 150.0 * each).abs() < 1e-9, "{open}");
}

//! A user's own register: it fills gaps, and never silently overrules what was read for the built-in one.

use stillroom_governance::{Decision, Grade, Part, Question, Register, Subject, Use, Verdict, decide_by};

const HEAD: &str = "family,release,release_date,licence_id,licence_version,outputs_may_train_other_models,conditions,\
                    derivative_weights,commercial,evidence_url,evidence_clause,checked,evidence_grade\n";

/// A row: release, licence, outputs, weights, commercial use, grade.
fn row(cells: [&str; 6]) -> String {
    let [release, licence, outputs, weights, commercial, grade] = cells;
    format!(
        "Ours,\"{release}\",2026-05,{licence},1,{outputs},as our contract says,{weights},{commercial},\
         https://counsel.example/1,7.2,read 2026-06-01,{grade}\n"
    )
}

fn with(rows: &[[&str; 6]]) -> Register {
    let rows: String = rows.iter().map(|cells| row(*cells)).collect();
    Register::builtin().with_users(&format!("{HEAD}{rows}"), "ours.csv").expect("a register")
}

fn ask(register: &Register, id: &str) -> Decision {
    decide_by(register, &Question::about(Subject::id(id)))
}

#[test]
fn a_row_of_ones_own_speaks_for_what_nobody_else_knows() {
    let register = with(&[
        ["acme/Big-{7b,13b}", "Apache-2.0", "yes", "yes", "yes", "primary"],
        ["acme:*", "LicenseRef-acme", "conditional", "no", "yes", "primary"],
        ["acme/closed", "LicenseRef-acme", "no", "no", "yes", "primary"],
        ["acme/rumour", "MIT", "yes", "yes", "yes", "recall"],
    ]);
    let own = ask(&register, "ACME/big-13B");
    assert_eq!((own.verdict, own.rules[0].grade), (Verdict::Allow, Grade::Declared));
    assert_eq!(own.rules[0].users_register.as_deref(), Some("ours.csv"));
    assert_eq!((own.rules[0].clause.as_str(), own.rules[0].checked.as_str()), ("7.2", "read 2026-06-01"));
    assert_eq!(own.users_register, register.users().map(|users| users.digest()));
    assert!(own.render().contains("your register ours.csv"), "{}", own.render());
    // A licence whose terms nobody has read here asks for what the row says itself.
    let contract = ask(&register, "acme:model-1");
    assert_eq!(
        (contract.verdict, contract.conditions),
        (Verdict::Conditional, vec!["conditions-as-written".into()])
    );
    assert!(contract.rules[0].says.contains("as our contract says"));
    assert_eq!(ask(&register, "acme/closed").verdict, Verdict::Deny);
    assert_eq!(ask(&register, "acme/rumour").verdict, Verdict::Unknown);
    assert_eq!(ask(&register, "acme/other").verdict, Verdict::Unknown);
    assert_eq!(ask(Register::builtin(), "acme/Big-7b").verdict, Verdict::Unknown);
}

#[test]
fn a_row_that_was_read_stands_in_for_one_from_memory_and_both_are_shown() {
    // By an ID, and by the release's name.
    for release in ["Qwen/Qwen2-7B-Instruct", "Qwen2 0.5B/1.5B/7B/57B-A14B"] {
        let register = with(&[[release, "Apache-2.0", "yes", "yes", "yes", "primary"]]);
        let decision = ask(&register, "Qwen/Qwen2-7B-Instruct");
        assert_eq!(decision.verdict, Verdict::Allow, "{release}");
        let says = &decision.rules[0].says;
        assert!(says.contains("the built-in register has it under Apache-2.0, recall"), "{says}");
    }
    // One that only quotes does not.
    let register = with(&[["Qwen/Qwen2-7B-Instruct", "Apache-2.0", "yes", "yes", "yes", "secondary"]]);
    let decision = ask(&register, "Qwen/Qwen2-7B-Instruct");
    assert_eq!(decision.conditions, ["confirm-licence-file"]);
    // A second-hand row is settled where both say the same.
    let register = with(&[["microsoft/phi-4", "MIT", "yes", "yes", "yes", "primary"]]);
    assert_eq!(ask(&register, "microsoft/phi-4").verdict, Verdict::Allow);
    assert_eq!(ask(&register, "microsoft/phi-4-reasoning").conditions, ["confirm-licence-file"]);
}

#[test]
fn registers_in_conflict_are_unknown_and_both_are_shown() {
    for (id, cells) in [
        ("openai:gpt-4o", ["openai:*", "LicenseRef-our-contract", "yes", "no", "yes", "primary"]),
        ("meta-llama/Llama-2-7b-hf", ["Llama 2 (7B/13B/70B)", "MIT", "yes", "yes", "yes", "archived"]),
        ("deepseek-ai/DeepSeek-R1", ["deepseek-ai/DeepSeek-R1", "MIT", "no", "yes", "yes", "primary"]),
        ("microsoft/phi-4", ["microsoft/phi-4", "Apache-2.0", "yes", "yes", "yes", "primary"]),
        ("google/gemma-2-9b-it", ["google/gemma-2-9b-it", "Apache-2.0", "yes", "yes", "yes", "primary"]),
    ] {
        let register = with(&[cells]);
        let question = Question::about(Subject::id(id));
        let accepted = Register::builtin().conditions().map(|condition| condition.name.clone()).collect();
        let decision = decide_by(&register, &Question { accepted, ..question });
        assert!(decision.verdict == Verdict::Unknown && !decision.passes, "{id}: {}", decision.render());
        assert!(decision.rules[0].says.contains("evidence in conflict"), "{id}");
        assert!(decision.rules.iter().any(|rule| rule.users_register.is_some()), "{id}");
        assert!(decision.rules.iter().filter(|rule| rule.users_register.is_none()).count() >= 2, "{id}");
    }
    // A licence that was read grants no more because a row says so.
    let more = ["acme/x", "LicenseRef-scancode-llama-2-license-2023", "yes", "yes", "yes", "primary"];
    let decision = ask(&with(&[more]), "acme/x");
    assert_eq!(decision.verdict, Verdict::Unknown);
    assert!(
        decision.rules.iter().any(|rule| rule.says.contains("by this alone, deny")),
        "{}",
        decision.render()
    );
}

#[test]
fn rows_of_ones_own_count_for_bases_data_sets_and_routes() {
    let register = with(&[
        ["acme/questions", "LicenseRef-acme", "no", "no", "yes", "primary"],
        ["acme/base", "LicenseRef-acme", "conditional", "conditional", "no", "primary"],
        ["openai:*", "LicenseRef-our-contract", "yes", "no", "yes", "primary"],
    ]);
    let dir = tempfile::tempdir().unwrap();
    let apache = stillroom_governance::full_text("Apache-2.0").unwrap();
    std::fs::write(dir.path().join("LICENSE"), apache).unwrap();
    let card = |lines: &str| {
        std::fs::write(dir.path().join("README.md"), format!("---\n{lines}\n---\n")).unwrap();
        decide_by(&register, &Question::about(Subject::open_as("acme/tuned", dir.path()).unwrap()))
    };
    let learned = card("datasets:\n- acme/questions");
    assert_eq!(learned.verdict, Verdict::Deny);
    assert!(learned.rules.iter().any(|rule| rule.role == Part::TrainingData));
    assert_eq!(card("base_model: acme/base").conditions, ["non-commercial"]);
    let endpoints = vec!["https://api.openai.com/v1".to_owned()];
    let routed = decide_by(&register, &Question { endpoints, ..Question::about(Subject::id("acme/x")) });
    assert_eq!(routed.verdict, Verdict::Unknown);
    assert!(routed.rules.iter().any(|rule| rule.says.contains("evidence in conflict")));
    let weights = Question { use_: Use::Weights, ..Question::about(Subject::id("acme/base")) };
    assert_eq!(decide_by(&register, &weights).conditions, ["non-commercial"]);
}

#[test]
fn broken_registers_are_refused_with_their_place() {
    let good = row(["acme/x", "MIT", "yes", "yes", "yes", "primary"]);
    let parse = |rows: &str| Register::builtin().with_users(&format!("{HEAD}{rows}"), "ours.csv");
    assert!(parse(&good).is_ok() && parse("").is_ok());
    // As a spreadsheet writes it.
    assert!(
        Register::builtin().with_users(&format!("\u{feff}{HEAD}{good}").replace('\n', "\r\n"), "x").is_ok()
    );
    for (from, to, said) in [
        ("acme/x", "Llama 9 (all of it)", "row 1, column `release`: `Llama 9 (all of it)` is no release"),
        ("acme/x", "acme/{x", "open brace"),
        ("acme/x", "acme/*x", "is no pattern"),
        ("yes,as our", "maybe,as our", "`maybe` is no grant"),
        ("primary", "certain", "`certain` is no grade"),
        ("2026-05", "May", "`May` is no date"),
        (",7.2", "", "12 columns where 13 are needed"),
    ] {
        let message = parse(&good.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(message.contains(said), "{message}");
    }
    let twice = format!("{good}{}", good.replacen("acme/x", "acme/{w,x}", 1));
    let message = parse(&twice).unwrap_err().to_string();
    assert!(message.contains("row 2") && message.contains("claimed twice"), "{message}");
    for hostile in ["\0\0", "family,release\n", "\"", &"a,".repeat(100_000)] {
        assert!(Register::builtin().with_users(hostile, "x").is_err());
    }
}

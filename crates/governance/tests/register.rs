//! Every row of the register: it is valid, an ID leads to it, and its verdict is the right one.

use stillroom_governance::{Grade, Grant, Question, Register, Subject, Tables, Use, Verdict, decide};

/// `id,release,outputs,weights`: written from the columns of the register by the rules of evidence.
const ROWS: &str = include_str!("rows.csv");

fn table() -> Vec<[String; 4]> {
    let mut reader = csv::Reader::from_reader(ROWS.as_bytes());
    reader
        .records()
        .map(|record| {
            let record = record.unwrap();
            std::array::from_fn(|i| record[i].to_owned())
        })
        .collect()
}

#[test]
fn every_row_has_an_id_and_every_id_its_row() {
    let register = Register::builtin();
    let table = table();
    assert_eq!(table.len(), register.rows().len());
    for (row, [id, release, ..]) in register.rows().iter().zip(&table) {
        assert_eq!(&row.release, release);
        for spelling in [id.clone(), id.to_lowercase(), id.to_uppercase(), format!(" hf:{id} ")] {
            let found = register.resolve(&spelling).map(|row| row.release.as_str());
            assert_eq!(found, Some(release.as_str()), "{spelling}");
        }
    }
}

#[test]
fn every_row_gives_its_verdict_with_clause_and_evidence() {
    for [id, release, outputs, weights] in table() {
        for (use_, expected) in [(Use::Outputs, &outputs), (Use::Weights, &weights)] {
            let decision = decide(&Question { use_, ..Question::about(Subject::id(id.clone())) });
            let rule = decision.rules.iter().find(|rule| rule.release == release).unwrap();
            assert_eq!(rule.verdict.as_str(), expected, "{id} {use_:?}: {}", rule.says);
            assert!(decision.verdict >= rule.verdict, "{id}");
            assert!(
                !rule.clause.is_empty() && rule.evidence.starts_with("https://") && !rule.checked.is_empty()
            );
            let asks = rule.conditions.iter().any(|name| name == "confirm-licence-file");
            let open = matches!(rule.verdict, Verdict::Allow | Verdict::Conditional);
            assert_eq!(asks, rule.grade == Grade::Secondary && open, "{id}");
            assert_eq!(rule.verdict == Verdict::Conditional, !rule.conditions.is_empty(), "{id}");
            assert!(rule.conditions.iter().all(|name| rule.obliges.contains(name)), "{id}");
        }
    }
}

#[test]
fn conditional_opens_only_with_every_condition_accepted() {
    for [id, ..] in table() {
        let question = Question::about(Subject::id(id.clone()));
        let decision = decide(&question);
        assert_eq!(decision.passes, decision.verdict == Verdict::Allow, "{id}");
        if decision.verdict != Verdict::Conditional {
            continue;
        }
        let all = decision.conditions.clone();
        let accept = |accepted: Vec<String>| decide(&Question { accepted, ..question.clone() });
        assert!(accept(all.clone()).passes, "{id}");
        for left_out in &all {
            let some = all.iter().filter(|name| *name != left_out).cloned().collect();
            let decision = accept(some);
            assert!(!decision.passes && decision.missing == [left_out.clone()], "{id}");
        }
    }
}

#[test]
fn a_closed_gate_stays_closed_whatever_is_accepted() {
    let register = Register::builtin();
    let everything: Vec<String> = register.conditions().map(|condition| condition.name.clone()).collect();
    for [id, _, outputs, _] in table() {
        let question = Question { accepted: everything.clone(), ..Question::about(Subject::id(id.clone())) };
        if outputs == "deny" || outputs == "unknown" {
            assert!(!decide(&question).passes, "{id}");
        }
    }
}

#[test]
fn terms_agree_with_the_best_evidence_and_every_condition_is_in_use() {
    let register = Register::builtin();
    for row in register.rows().iter().filter(|row| row.grade != Grade::Recall) {
        let parts = row.licence_parts();
        if parts.len() > 1 || row.release.starts_with("Tulu") || row.outputs == Grant::Unclear {
            continue;
        }
        // One licence can cover two products with different answers; the stricter one is its terms.
        if row.release.starts_with("Stored completions") || row.release.contains("fine-tune") {
            continue;
        }
        if row.release.contains("Model Distillation") {
            continue;
        }
        let terms = register.terms(&row.licence).unwrap();
        assert_eq!((terms.outputs, terms.weights), (row.outputs, row.weights), "{}", row.release);
        assert_eq!(terms.commercial == Grant::No, row.commercial == Grant::No, "{}", row.release);
    }
    let used = |name: &String| {
        let in_terms = register.rows().iter().any(|row| {
            row.also.contains(name)
                || row.licence_parts().iter().any(|part| {
                    let terms = register.terms(part).unwrap();
                    terms.outputs_oblige.contains(name) || terms.weights_oblige.contains(name)
                })
        });
        let in_gate = [
            "attribution",
            "conditions-as-written",
            "confirm-base-licence",
            "confirm-licence-file",
            "owner-permits-training",
            "same-family-only",
        ];
        in_terms || in_gate.contains(&name.as_str())
    };
    for condition in register.conditions() {
        assert!(used(&condition.name), "{} is asked by nobody", condition.name);
    }
}

#[test]
fn neighbours_of_known_names_are_not_guessed() {
    let register = Register::builtin();
    for id in [
        "",
        "x",
        ":",
        "openai:",
        "Qwen/Qwen2.5-4B",
        "Qwen/Qwen2.5-3B-Instruct-Finetune",
        "somebody/Llama-3.1-8B",
        "meta-llama/Llama-5-8B",
        "meta-llama",
        "google/gemma-3-270m-it",
        "mistralai/Mistral-7B",
        "unknown:gpt-4o",
        "acme/gpt-4o",
        "\u{0}",
        "Qwen/Qwen2.5-３B",
    ] {
        assert_eq!(register.resolve(id).map(|row| &row.release), None, "{id}");
        assert_eq!(decide(&Question::about(Subject::id(id))).verdict, Verdict::Unknown, "{id}");
    }
}

#[test]
fn broken_tables_are_refused_with_their_place() {
    let ids = "release,passes_through,also,built_on,ids\n";
    let terms = "licence_id,outputs,weights,commercial,own_family,outputs_oblige,weights_oblige,clause\n\
                 MIT,yes,yes,yes,no,keep,keep,1\n";
    let conditions = "condition,name_prefix,means\nkeep,,keep it\n";
    let notices = "licence_id,condition,line\n";
    let head = "family,release,release_date,licence_id,licence_version,outputs_may_train_other_models,conditions,\
                derivative_weights,commercial,evidence_url,evidence_clause,checked,evidence_grade\n";
    let good = "F,R,2024-01,MIT,-,yes,c,yes,yes,https://x,1,today,primary\n";
    let good = format!("{head}{good}");
    let tables = Tables { licences: &good, ids, terms, conditions, notices };
    let ok = |licences: &str| Register::parse(&Tables { licences, ..tables });
    assert!(ok(&good).is_ok());
    for (from, to, column) in [
        ("2024-01", "2024-13", "release_date"),
        (",MIT", ",MIT AND Mine", "licence_id"),
        ("https://x", "http://x", "evidence_url"),
        ("primary", "sure", "evidence_grade"),
        (",yes,c,", ",perhaps,c,", "outputs_may_train_other_models"),
        ("today", "", "checked"),
        (",1,", ",", "family"),
    ] {
        let message = ok(&good.replace(from, to)).unwrap_err().to_string();
        assert!(message.contains("row 1") && message.contains(column), "{message}");
    }
    let row = good.lines().nth(1).unwrap();
    assert!(ok(&format!("{good}{row}\n")).is_err());
    assert!(ok("").is_ok_and(|register| register.rows().is_empty()));
    assert!(ok("nonsense\n").is_err());
    let with =
        |ids: &str, terms: &str, notices: &str| Register::parse(&Tables { ids, terms, notices, ..tables });
    assert!(with(&format!("{ids}R,no,,,a/b a/b\n"), terms, notices).is_err());
    assert!(with(&format!("{ids}S,no,,,a/b\n"), terms, notices).is_err());
    assert!(with(ids, &terms.replace("keep,1", "keep,"), notices).is_err());
    assert!(with(ids, terms, &format!("{notices}MIT,other,words\n")).is_err());
}

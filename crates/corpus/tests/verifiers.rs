//! Verdicts beside those of parsers that nobody here wrote (`oracles/verifiers.py`).

use serde::Deserialize;
use stillroom_core::{Message, Prompt, Role};
use stillroom_corpus::verify::json_schema::Schema;
use stillroom_corpus::verify::{Options, verifier_with};

#[derive(Deserialize)]
struct Row {
    kind: String,
    answer: String,
    reply: String,
    math_verify: bool,
    lm_eval_strict: bool,
    lm_eval_flexible: Option<bool>,
}

fn rows(kind: &str) -> Vec<Row> {
    let all = include_str!("golden/verifiers.jsonl").lines();
    let rows = all.map(|line| serde_json::from_str::<Row>(line).expect("a row"));
    rows.filter(|row| row.kind == kind).collect()
}

/// Whether our verifier finds the answer in the reply.
fn ours(name: &str, row: &Row) -> bool {
    let prompt = Prompt { id: "1".into(), messages: vec![], answer: Some(row.answer.clone()), target: None };
    let verifier = verifier_with(name, &Options::default()).expect("no options").expect("a verifier");
    verifier.verify(&prompt, &Message::new(Role::Assistant, row.reply.as_str())).correct
}

/// The replies on which two judges differ, each with what ours says.
fn differences<'a>(
    name: &str,
    rows: &'a [Row],
    theirs: impl Fn(&Row) -> bool,
) -> Vec<(bool, &'a str, &'a str)> {
    let differ = rows.iter().filter_map(|row| {
        let ours = ours(name, row);
        (ours != theirs(row)).then_some((ours, row.answer.as_str(), row.reply.as_str()))
    });
    differ.collect()
}

#[test]
fn numbers_are_found_where_math_verify_finds_them() {
    let rows = rows("numeric");
    // Ours is right in these; the reason is what math-verify makes of them.
    let ours_only = [
        ("18", "The final answer is: $\\boxed{\\text{18 dollars}}$"), // reads no number within `\text`
        ("18", "First I thought \\boxed{20}, but no: \\boxed{18}"),   // takes all boxes for one list
        ("70000", "The answer is $\\boxed{70\\,000}$"),               // 70 times 0
        ("70000", "The answer is 7e4."),                              // 7 times e times 4
        ("-5", "It falls to −5 °C"),                                  // the sign U+2212 is none
        ("-5", "The answer is $-$5."),                                // the sign alone is LaTeX
        ("\\frac{7}{4}", "The answer is 1 3/4 cups."),                // 3/4
        ("1234.5", "The total is 1.234,50 euros."),                   // 1.23450
        ("1000000", "1e6"),                                           // no number
    ];
    // And these are theirs: nothing is worked out here, neither products nor roots.
    let theirs_only = [("18", "\\boxed{2 \\times 9}"), ("5", "\\boxed{\\sqrt{25}}")];
    let expected =
        |right: bool| move |&(answer, reply): &(&'static str, &'static str)| (right, answer, reply);
    let mut expected: Vec<_> =
        ours_only.iter().map(expected(true)).chain(theirs_only.iter().map(expected(false))).collect();
    let mut found = differences("numeric_answer", &rows, |row| row.math_verify);
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(rows.len(), 106);
}

#[test]
fn what_lm_eval_counts_for_gsm8k_counts_here() {
    let rows = rows("numeric");
    let strict = differences("numeric_answer", &rows, |row| row.lm_eval_strict);
    assert!(strict.iter().all(|(ours, ..)| *ours), "{strict:?}");
    let flexible = differences("numeric_answer", &rows, |row| row.lm_eval_flexible == Some(true));
    let lenient: Vec<_> = flexible.iter().filter(|(ours, ..)| !ours).map(|(_, _, reply)| *reply).collect();
    // The pattern takes any number, a factorial's or a multiple of pi too.
    assert_eq!(lenient, ["\\boxed{5!}", "\\boxed{5\\pi}"]);
}

#[test]
fn choices_are_found_where_others_find_them() {
    let rows = rows("choice");
    let math_verify = differences("multiple_choice", &rows, |row| row.math_verify);
    let lm_eval = differences("multiple_choice", &rows, |row| row.lm_eval_strict);
    for (ours, _, reply) in math_verify.iter().chain(&lm_eval) {
        assert!(ours, "theirs only: {reply}");
    }
    let right = rows.iter().filter(|row| ours("multiple_choice", row)).count();
    assert_eq!((right, rows.len()), (23, 27), "all but those that choose A or nothing");
}

#[derive(Deserialize)]
struct Checked {
    schema: String,
    value: String,
    valid: bool,
}

#[test]
fn schemas_allow_what_python_jsonschema_allows() {
    let rows: Vec<Checked> = include_str!("golden/json_schema.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).expect("a row"))
        .collect();
    assert!(rows.len() > 100);
    for Checked { schema, value, valid } in rows {
        let parsed = serde_json::from_str(&value).expect("JSON");
        let checked = Schema::parse(&schema).unwrap_or_else(|e| panic!("{schema}: {e}")).check(&parsed);
        assert_eq!(checked.is_ok(), valid, "{schema} {value}: {checked:?}");
    }
}

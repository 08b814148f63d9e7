//! `golden/cases.csv`: what the licences say about a teacher, a student, data and a use, written from their texts.
//!
//! A cell of `files` describes the teacher's own directory: a licence ID is its licence file, `~ID` that text with
//! a clause more, `~words` a text that nobody knows; `base:`, `dataset:` and `tag:` stand on its card,
//! `calls-itself:` in its `config.json`. In `accept`, `*` is every condition that is asked for, `-NAME` all but one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use stillroom_core::Digest;
use stillroom_governance::{
    Decision, Declaration, Identified, LicenceFile, Question, Subject, Use, Verdict, decide, full_text,
};

const CASES: &str = include_str!("golden/cases.csv");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    teacher: String,
    #[serde(rename = "use")]
    usage: String,
    student: String,
    data: String,
    endpoint: String,
    name: String,
    files: String,
    accept: String,
    declare: String,
    verdict: String,
    passes: String,
    asks: String,
    asks_not: String,
    clause: String,
    why: String,
}

fn cases() -> Vec<Case> {
    let mut reader = csv::Reader::from_reader(CASES.as_bytes());
    reader.deserialize().collect::<Result<_, _>>().expect("the table is well formed")
}

/// A text that is the licence's but for one clause, or none that anybody knows.
fn changed(licence: &str) -> String {
    match licence {
        "words" => "You may look at it on Sundays.\n".to_owned(),
        licence => {
            format!("{}\nIts outputs may not train other models.\n", full_text(licence).expect("a text"))
        }
    }
}

/// The teacher as its own directory shows it.
fn with_files(id: &str, files: &str) -> Subject {
    let dir = tempfile::tempdir().expect("a directory");
    let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("a file");
    let (mut card, mut identified) = (String::new(), Vec::new());
    for token in files.split_whitespace() {
        match token.split_once(':') {
            Some(("base", name)) => card.push_str(&format!("base_model: {name}\n")),
            Some(("dataset", name)) => card.push_str(&format!("datasets:\n- {name}\n")),
            Some(("tag", name)) => card.push_str(&format!("license: {name}\n")),
            Some(("calls-itself", name)) => {
                put("config.json", &format!(r#"{{"_name_or_path": "{name}"}}"#));
            }
            _ => match (token.strip_prefix('~'), full_text(token)) {
                (Some(licence), _) => put("LICENSE", &changed(licence)),
                (None, Some(text)) => put("LICENSE", text),
                // A licence whose text is not ours to carry: as if it had been recognised.
                (None, None) => identified.push(LicenceFile {
                    name: "LICENSE".to_owned(),
                    digest: Digest::of(token.as_bytes()),
                    text: Identified::As { licence: token.to_owned() },
                    copyright: Vec::new(),
                }),
            },
        }
    }
    if !card.is_empty() {
        put("README.md", &format!("---\n{card}---\n"));
    }
    let mut subject = Subject::open_as(id, Path::new(dir.path())).expect("the directory is read");
    subject.found.as_mut().expect("evidence").files.extend(identified);
    subject
}

fn question(case: &Case) -> Question {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let mut teachers: Vec<Subject> = case.teacher.split(' ').map(Subject::id).collect();
    if !case.files.is_empty() {
        teachers = vec![with_files(&case.teacher, &case.files)];
    }
    let declared = case.declare.split_once('|').map(|(id, rest)| {
        let (owner, licence) = rest.split_once('|').expect("id|owner|licence");
        let declaration = Declaration { owner: owner.to_owned(), licence: licence.to_owned(), digest: None };
        (id.to_owned(), declaration)
    });
    Question {
        teachers,
        student_base: some(&case.student).map(Subject::id),
        data: case.data.split_whitespace().map(Subject::id).collect(),
        use_: if case.usage == "weights" { Use::Weights } else { Use::Outputs },
        endpoints: some(&case.endpoint).into_iter().collect(),
        student_name: some(&case.name),
        declared: BTreeMap::from_iter(declared),
        ..Question::default()
    }
}

/// The decision with what the case accepts.
fn decision(case: &Case) -> Decision {
    let question = question(case);
    let asked = decide(&question).conditions;
    let accepted = match case.accept.as_str() {
        "*" => asked,
        all_but if all_but.starts_with('-') => {
            asked.into_iter().filter(|name| name != &all_but[1..]).collect()
        }
        names => names.split_whitespace().map(str::to_owned).collect(),
    };
    decide(&Question { accepted, ..question })
}

/// What a decision says otherwise than its case.
fn differences(case: &Case, decision: &Decision) -> Vec<String> {
    let mut wrong = Vec::new();
    if decision.verdict.as_str() != case.verdict {
        wrong.push(format!("verdict {}", decision.verdict.as_str()));
    }
    if decision.passes != (case.passes == "yes") {
        wrong.push(format!("passes {}", decision.passes));
    }
    let asks = |name: &str| decision.obliges.iter().any(|asked| asked == name);
    wrong.extend(case.asks.split_whitespace().filter(|name| !asks(name)).map(|name| format!("no {name}")));
    wrong
        .extend(case.asks_not.split_whitespace().filter(|name| asks(name)).map(|name| format!("has {name}")));
    // Where nothing is certain the clause is one of those shown; elsewhere it is of a rule that decided.
    let mut deciding = decision
        .rules
        .iter()
        .filter(|rule| decision.verdict == Verdict::Unknown || rule.verdict == decision.verdict);
    if !deciding.any(|rule| rule.clause.contains(&case.clause)) {
        wrong.push(format!("no clause `{}`", case.clause));
    }
    if case.clause.is_empty()
        && case.verdict != "unknown"
        && !decision.rules.iter().all(|rule| !rule.says.is_empty())
    {
        wrong.push("a rule says nothing".to_owned());
    }
    wrong
}

#[test]
fn every_case_is_decided_as_its_licences_say() {
    let cases = cases();
    assert!(cases.len() >= 60, "{}", cases.len());
    let mut wrong = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        let decision = decision(case);
        let differences = differences(case, &decision);
        if !differences.is_empty() {
            let what = differences.join("; ");
            wrong.push(format!("line {}: {} ({}): {what}", i + 2, case.teacher, case.why));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

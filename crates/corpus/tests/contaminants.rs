//! Evaluation items planted among clean rows are found, and clean rows stay.

use std::path::{Path, PathBuf};

use stillroom_core::{CounterRng, FinishReason, Message, Role, Trace};
use stillroom_corpus::contaminants::{Contaminants, EvaluationItem, Finding, OVERLAP};
use stillroom_corpus::prompts::{Item, Rows};
use stillroom_corpus::{Split, word_problems};

fn trace(id: &str, question: &str, content: &str) -> Trace {
    Trace {
        id: id.into(),
        sample: 0,
        messages: vec![Message::new(Role::User, question)],
        reasoning_content: None,
        content: content.into(),
        finish_reason: FinishReason::Stop,
        prompt_tokens: 1,
        completion_tokens: 1,
        teacher: "t".into(),
        usd: 0.0,
    }
}

/// The real data set, where it is at hand.
fn gsm8k() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/gsm8k");
    if !dir.is_dir() {
        #[expect(clippy::print_stderr, reason = "a skipped test says so")]
        {
            eprintln!("SKIPPED: {} is absent, the test of planted items checks nothing", dir.display());
        }
        return None;
    }
    Some(dir)
}

fn rows(path: &Path) -> Vec<Item> {
    Rows::open(path).expect("a data file").collect::<Result<_, _>>().expect("it is clean")
}

/// Of ten words at most one exchanged, left out or added.
fn paraphrased(question: &str, random: &mut CounterRng) -> String {
    const OTHERS: [&str; 8] = ["really", "then", "big", "some", "altogether", "people", "made", "new"];
    let mut words: Vec<&str> = question.split_whitespace().collect();
    for _ in 0..words.len() / 10 {
        let at = random.below(words.len() as u64) as usize;
        let other = OTHERS[random.below(OTHERS.len() as u64) as usize];
        match random.below(3) {
            0 => words[at] = other,
            1 => words.insert(at, other),
            _ => drop(words.remove(at)),
        }
    }
    words.join(" ")
}

/// Every number one greater.
fn other_numbers(question: &str) -> String {
    let mut text = String::new();
    let mut rest = question;
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        text.push_str(&rest[..at]);
        let digits = rest[at..].find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len() - at);
        let number: u64 = rest[at..at + digits].parse().expect("digits");
        text.push_str(&(number + 1).to_string());
        rest = &rest[at + digits..];
    }
    text + rest
}

#[test]
fn planted_items_are_found_and_clean_rows_stay() {
    let Some(dir) = gsm8k() else { return };
    let test = rows(&dir.join("test.jsonl"));
    let items = Contaminants::new(test.iter().map(EvaluationItem::of), OVERLAP);
    let contaminated = |trace: &Trace| matches!(items.find(trace), Finding::Contaminated(_));
    let mut clean: Vec<Trace> = Vec::new();
    for item in rows(&dir.join("train.jsonl")) {
        let prompt = item.as_prompt().expect("a question");
        let target = prompt.target.as_ref().expect("a worked answer");
        clean.push(trace(&prompt.id, &prompt.messages[0].content, &target.content));
    }
    for problem in word_problems::problems(0, Split::Train, 10_000 - clean.len()) {
        clean.push(trace(&problem.id, &problem.prompt().messages[0].content, &problem.worked().content));
    }
    assert_eq!(clean.len(), 10_000);
    let mut said = vec![format!("clean rows: {}", clean.len())];
    let dropped: Vec<&Trace> = clean.iter().filter(|row| contaminated(row)).collect();
    said.push(format!("of these dropped: {}", dropped.len()));
    assert!(dropped.len() <= 5, "{} clean rows", dropped.len());

    let mut random = CounterRng::new(&[7]);
    let mut order: Vec<usize> = (0..test.len()).collect();
    random.shuffle(&mut order);
    let questions: Vec<&str> = order
        .iter()
        .map(|&i| test[i].as_prompt().expect("a question").messages[0].content.as_str())
        .collect();
    let found = |texts: &[String]| texts.iter().filter(|text| contaminated(&trace("x", text, "42"))).count();
    let exact: Vec<String> = questions[..100].iter().map(|q| (*q).to_owned()).collect();
    assert_eq!(found(&exact), 100);
    let edited: Vec<String> = questions[100..200].iter().map(|q| paraphrased(q, &mut random)).collect();
    let n_edited = found(&edited);
    said.push(format!("edited items found: {n_edited} of 100"));
    assert!(n_edited >= 97, "{n_edited} of 100");
    let templates: Vec<String> = questions[200..]
        .iter()
        .filter(|q| q.matches(|c: char| c.is_ascii_digit()).count() > 3)
        .map(|q| other_numbers(q))
        .collect();
    let n_templates = found(&templates);
    said.push(format!("items with other numbers dropped: {n_templates} of {}", templates.len()));
    #[expect(clippy::print_stderr, reason = "`--nocapture` shows the figures")]
    {
        eprintln!("{}", said.join("\n"));
    }
    assert!(n_templates * 10 < templates.len(), "{n_templates} of {}", templates.len());
}

//! Personal data in labelled texts that nobody here wrote (`oracles/pii.py`).

use std::collections::BTreeMap;

use serde::Deserialize;
use stillroom_corpus::pii::{self, Class};

#[derive(Deserialize)]
struct Row {
    source: String,
    text: String,
    /// Start, end, class and kind.
    spans: Vec<(usize, usize, Class, String)>,
}

#[derive(Clone, Copy, Default)]
struct Tally {
    labelled: u32,
    found: u32,
    right: u32,
}

impl Tally {
    fn recall(&self) -> f64 {
        f64::from(self.right) / f64::from(self.labelled.max(1))
    }

    fn precision(&self) -> f64 {
        f64::from(self.right) / f64::from(self.found.max(1))
    }
}

fn rows(text: &str) -> Vec<Row> {
    text.lines().map(|line| serde_json::from_str(line).expect("a labelled row")).collect()
}

/// What is right has the label's class and exactly its range.
fn tally(rows: &[Row]) -> BTreeMap<(String, Class), Tally> {
    let mut tallies: BTreeMap<(String, Class), Tally> = BTreeMap::new();
    for row in rows {
        let of = |class| (row.source.clone(), class);
        for finding in pii::find(&row.text) {
            let right = row.spans.iter().any(|(start, end, class, _)| {
                (*start..*end, *class) == (finding.range.clone(), finding.class)
            });
            let tally = tallies.entry(of(finding.class)).or_default();
            tally.found += 1;
            tally.right += u32::from(right);
        }
        for (_, _, class, _) in &row.spans {
            tallies.entry(of(*class)).or_default().labelled += 1;
        }
    }
    tallies
}

#[test]
fn classes_with_a_form_are_found_in_labelled_texts() {
    let tallies = tally(&rows(include_str!("golden/pii.jsonl")));
    for ((source, class), tally) in &tallies {
        let shown = format!(
            "{source} {class}: {} labelled, {} found, {} right",
            tally.labelled, tally.found, tally.right
        );
        // Presidio's templates hold few IP addresses and social security numbers; larger runs are measured by hand.
        let enough = if source == "faker" { 10 } else { 2 };
        assert!(tally.labelled >= enough, "{shown}");
        assert!(tally.recall() >= 0.95 && tally.precision() >= 0.90, "{shown}");
    }
    assert_eq!(tallies.keys().filter(|(source, _)| source == "presidio").count(), 6);
    assert_eq!(tallies.keys().filter(|(source, _)| source == "faker").count(), 7);
}

#[derive(Deserialize)]
struct Number {
    kind: String,
    text: String,
    valid: bool,
}

#[test]
fn national_numbers_hold_where_python_stdnum_says_so() {
    let numbers: Vec<Number> = include_str!("golden/national_ids.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).expect("a number"))
        .collect();
    assert!(numbers.iter().filter(|number| number.valid).count() >= 180);
    let disagreed: Vec<&str> = numbers
        .iter()
        .filter(|number| pii::find(&number.text).iter().any(|f| f.kind == number.kind) != number.valid)
        .map(|number| number.text.as_str())
        .collect();
    assert_eq!(disagreed, [""; 0]);
}

#[test]
fn what_is_redacted_is_gone_and_the_rest_stays() {
    for row in rows(include_str!("golden/pii.jsonl")) {
        let redacted = pii::redact(&row.text, &Class::ALL);
        assert!(pii::find(&redacted).is_empty(), "{redacted}");
        assert_eq!(pii::redact(&redacted, &Class::ALL), redacted);
        let emails = pii::redact(&row.text, &[Class::Email]);
        assert_eq!(emails != row.text, emails.contains("[EMAIL]"), "{emails}");
    }
}

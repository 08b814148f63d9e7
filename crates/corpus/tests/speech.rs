//! Text that people wrote neither refuses, nor speaks of itself as a model, nor goes round; and how many of the phrases are found
//! in which a model does (`golden/speech.jsonl`, written by hand before the lists were looked at).

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use stillroom_corpus::phrases::{refusal, self_identification};
use stillroom_corpus::prompts::Rows;
use stillroom_corpus::repetition::{longest_loop, repeated_share};

#[test]
fn what_people_wrote_stays() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    if !dir.is_dir() {
        #[expect(clippy::print_stderr, reason = "a skipped test says so")]
        {
            eprintln!("SKIPPED: {} is absent, the test of people's texts checks nothing", dir.display());
        }
        return;
    }
    let mut texts: Vec<String> = Vec::new();
    for part in ["train", "test"] {
        for item in Rows::open(&dir.join(format!("gsm8k/{part}.jsonl"))).expect("a data file") {
            let prompt = item.expect("it is clean").as_prompt().cloned().expect("a question");
            texts.push(prompt.messages[0].content.clone());
            texts.extend(prompt.target.map(|target| target.content));
        }
    }
    let plays = std::fs::read_to_string(dir.join("tinyshakespeare/input.txt")).expect("plays");
    texts.extend(plays.split("\n\n").map(str::to_owned));
    assert!(texts.len() > 20_000, "{} texts", texts.len());
    let wrong =
        |is: &dyn Fn(&str) -> bool| -> Vec<&String> { texts.iter().filter(|text| is(text)).collect() };
    assert_eq!(wrong(&|text| refusal(text).is_some()), Vec::<&String>::new());
    assert_eq!(wrong(&|text| self_identification(text).is_some()), Vec::<&String>::new());
    assert_eq!(wrong(&|text| longest_loop(text).is_some()), Vec::<&String>::new());
    assert_eq!(wrong(&|text| repeated_share(text) > 0.5), Vec::<&String>::new());
}

#[derive(Deserialize)]
struct Labelled {
    language: String,
    text: String,
    /// Whether it refuses, and whether it says that a model wrote it; without a label it says nothing about that list.
    refusal: Option<bool>,
    identity: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    labelled: u32,
    found: u32,
    others: u32,
    wrong: u32,
}

/// The list, and which half: every second text was looked at while the lists were made longer, the others never were.
type Kind = (String, bool);

fn tally(mut wrong: impl FnMut(&str, &str)) -> BTreeMap<Kind, Tally> {
    let mut tallies: BTreeMap<Kind, Tally> = BTreeMap::new();
    for (at, line) in include_str!("golden/speech.jsonl").lines().enumerate() {
        let row: Labelled = serde_json::from_str(line).expect("a labelled text");
        let language = if row.language == "en" { "English" } else { "others" };
        let lists = [
            ("refusal", row.refusal, refusal(&row.text).is_some()),
            ("identity", row.identity, self_identification(&row.text).is_some()),
        ];
        for (list, label, found) in lists {
            let Some(label) = label else { continue };
            let tally = tallies.entry((format!("{list}, {language}"), at % 2 == 0)).or_default();
            let (of, counted) = match label {
                true => (&mut tally.labelled, &mut tally.found),
                false => (&mut tally.others, &mut tally.wrong),
            };
            *of += 1;
            *counted += u32::from(found);
            if label != found && at % 2 == 0 {
                wrong(list, &row.text);
            }
        }
    }
    tallies
}

#[test]
#[expect(clippy::print_stderr, reason = "`--nocapture` shows the figures")]
fn phrasings_written_by_hand_are_found_as_often_as_is_said() {
    let tallies = tally(|list, text| eprintln!("{list}, wrong: {text}"));
    let mut figures = Vec::new();
    for ((list, seen), Tally { labelled, found, others, wrong }) in &tallies {
        let half = if *seen { "looked at" } else { "not looked at" };
        figures.push(format!("{list}, {half}: {found} of {labelled} found, {wrong} of {others} others"));
    }
    eprintln!("{}", figures.join("\n"));
    let said = [
        "identity, English, not looked at: 16 of 22 found, 0 of 13 others",
        "identity, English, looked at: 21 of 23 found, 0 of 13 others",
        "identity, others, not looked at: 6 of 6 found, 0 of 4 others",
        "identity, others, looked at: 6 of 6 found, 0 of 4 others",
        "refusal, English, not looked at: 27 of 35 found, 0 of 18 others",
        "refusal, English, looked at: 32 of 35 found, 0 of 18 others",
        "refusal, others, not looked at: 6 of 8 found, 0 of 4 others",
        "refusal, others, looked at: 8 of 8 found, 0 of 4 others",
    ];
    assert_eq!(figures, said, "docs/curation.md says the same");
}

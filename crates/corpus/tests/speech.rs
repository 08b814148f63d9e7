//! Text that people wrote neither refuses, nor speaks of itself as a model, nor goes round.

use std::path::Path;

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

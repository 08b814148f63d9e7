//! The claims of the task `word_problems`, each with a test that can fail.

use proptest::prelude::*;
use stillroom_core::{Message, Prompt};
use stillroom_corpus::word_problems::{
    Operation, STEPS, VALUE_MAX, WordProblem, WordProblems, check_disjoint, overlap, problems,
};
use stillroom_corpus::{CorpusError, Split, Verdict, Verifier};

const STRICT: WordProblems = WordProblems { check_steps: true };
const LENIENT: WordProblems = WordProblems { check_steps: false };

fn verdict(problem: &WordProblem, reasoning: &str, content: &str) -> Verdict {
    let mut reply = problem.worked();
    reply.reasoning_content = Some(reasoning.into());
    reply.content = content.into();
    STRICT.verify(&problem.prompt(), &reply)
}

fn numbers(text: &str) -> Vec<u8> {
    let digits = text.split(|c: char| !c.is_ascii_digit());
    digits.filter(|d| !d.is_empty()).map(|d| d.parse().expect("numbers are small")).collect()
}

#[test]
fn twenty_thousand_problems_are_disjoint_across_splits_and_seeds() {
    let mut all = problems(0, Split::Train, 14_000);
    all.extend(problems(0, Split::Validation, 2_000));
    all.extend(problems(0, Split::HeldOut, 2_000));
    all.extend(problems(1, Split::HeldOut, 2_000));
    check_disjoint(&all).expect("disjoint by construction");
    assert_eq!(overlap(&all[..14_000], &all[14_000..]), Default::default());
}

#[test]
fn a_leaked_problem_is_found() {
    let train = problems(0, Split::Train, 100);
    let mut held_out = problems(0, Split::HeldOut, 100);
    held_out[7] = WordProblem { split: Split::HeldOut, id: "leak".into(), ..train[50].clone() };
    assert_eq!(overlap(&train, &held_out).equal_chains, 1);
    assert_eq!(overlap(&train, &held_out).equal_texts, 1);
    let error = check_disjoint(&[train, held_out].concat()).expect_err("one problem is in both");
    assert!(matches!(error, CorpusError::SplitsOverlap { id, .. } if id == "leak"));
}

#[test]
fn no_chain_comes_twice_and_the_first_problems_do_not_depend_on_how_many_are_drawn() {
    let many = problems(5, Split::HeldOut, 3_000);
    let mut chains: Vec<String> = many.iter().map(|problem| problem.chain.to_string()).collect();
    chains.sort();
    chains.dedup();
    assert_eq!(chains.len(), 3_000);
    assert_eq!(problems(5, Split::HeldOut, 100), many[..100]);
}

#[test]
fn the_worked_solution_is_right_and_the_text_states_the_chain() {
    for problem in problems(2, Split::Train, 3_000) {
        let prompt = problem.prompt();
        assert_eq!(STRICT.verify(&prompt, &problem.worked()), Verdict::right(), "{}", problem.text);
        let target = prompt.target.as_ref().expect("the data set has answers");
        assert!(LENIENT.verify(&prompt, target).correct && target.reasoning_content.is_none());
        let mut stated = vec![problem.chain.start];
        stated.extend(problem.chain.steps.iter().filter_map(|step| step.operand()));
        assert_eq!(numbers(&problem.text), stated, "{}", problem.text);
    }
}

#[test]
fn numbers_follow_a_space_sentences_are_complete_and_one_thing_is_one() {
    for problem in problems(3, Split::Train, 3_000) {
        let text = &problem.text;
        let spaced = |text: &str| {
            text.char_indices().all(|(i, c)| {
                let before = text[..i].chars().next_back();
                !c.is_ascii_digit() || before.is_some_and(|b| b == ' ' || b.is_ascii_digit())
            })
        };
        assert!(spaced(text) && spaced(&problem.reasoning()), "{text}");
        assert!(text.ends_with(['?', '.']) && !text.contains(['{', '}']) && !text.contains("  "), "{text}");
        let n_sentences = text.matches(['.', '?']).count();
        assert_eq!(n_sentences, problem.chain.steps.len() + 2, "{text}");
        for one in text.split(" 1 ").skip(1) {
            let words: Vec<&str> = one.split([' ', '.', ',']).collect();
            let unit = if words[0] == "more" { words[1] } else { words[0] };
            assert!(!unit.ends_with('s'), "{text}");
        }
    }
}

#[test]
fn answers_cannot_be_guessed() {
    for split in Split::ALL {
        let drawn = problems(4, split, 4_000);
        let mut counts = [0u32; VALUE_MAX as usize + 1];
        drawn.iter().for_each(|problem| counts[usize::from(problem.answer())] += 1);
        let majority = f64::from(counts.iter().copied().max().unwrap_or_default()) / drawn.len() as f64;
        assert!(majority < 0.08, "{split}: {majority}");
        assert!(counts.iter().all(|&count| count > 0), "{split}: {counts:?}");
        let stated = drawn.iter().filter(|p| numbers(&p.text).last() == Some(&p.answer())).count();
        assert!(stated < drawn.len() / 10, "{stated} answers are the last number of the text");
    }
}

#[test]
fn every_length_and_operation_occurs_and_values_stay_in_range() {
    let drawn = problems(6, Split::Train, 6_000);
    for n_steps in STEPS {
        let count = drawn.iter().filter(|problem| problem.chain.steps.len() as u64 == n_steps).count();
        assert!((800..1_200).contains(&count), "{count} problems of {n_steps} steps");
    }
    let mut rare = 0;
    for problem in &drawn {
        assert!(problem.chain.values().iter().all(|&value| value <= VALUE_MAX));
        rare += problem.chain.steps.iter().filter(|step| step.operand().is_none()).count();
    }
    let n_steps: usize = drawn.iter().map(|problem| problem.chain.steps.len()).sum();
    assert!((0.04..0.12).contains(&(rare as f64 / n_steps as f64)), "{rare} of {n_steps}");
}

#[test]
fn the_problem_behind_a_name_never_changes() {
    let problem = WordProblem::draw(0, Split::HeldOut, 0);
    assert_eq!(problem.id, "word_problems-0-held_out-000000");
    assert_eq!(problem.chain.to_string(), "6 + 8 - 3 - 5 + 8 - 5 + 9");
    let expected = "In November, Ben got 6 cookies as a gift. In December, Emma had too many cookies and gave Ben 8. \
                    Later, in January, Mia took 3 cookies away. In February, he sold 5 cookies at school. Then, in \
                    March, Ida had too many cookies and gave him 8. Then, in April, his mother took 5 of the cookies. \
                    Then, in May, Ben took 9 more cookies out of a bag. What is the number of cookies now?";
    assert_eq!(problem.text, expected);
    let reasoning = "In December: 6 + 8 = 14; January: 14 - 3 = 11; February: 11 - 5 = 6; March: 6 + 8 = 14; \
                     April: 14 - 5 = 9; May: 9 + 9 = 18";
    assert_eq!(problem.reasoning(), reasoning);
}

#[test]
fn operations_refuse_what_leaves_the_values() {
    assert_eq!(Operation::Add(9).apply(12), None);
    assert_eq!(Operation::Add(255).apply(20), None);
    assert_eq!(Operation::Subtract(9).apply(8), None);
    assert_eq!(Operation::Double.apply(11), None);
    assert_eq!(Operation::Double.apply(0), None);
    assert_eq!(Operation::Halve.apply(7), None);
    assert_eq!(Operation::Halve.apply(20), Some(10));
}

#[test]
fn replies_that_are_no_number_or_reach_it_by_luck_are_wrong() {
    let problem = WordProblem::draw(0, Split::HeldOut, 0);
    let right = problem.reasoning();
    assert!(verdict(&problem, &right, " 18 ").correct);
    for content in ["", "18 pears", "-18", "+18", "18.0", "1 8", "١٨", "99999999999999999999"] {
        assert_eq!(
            verdict(&problem, &right, content).reason,
            "the reply is not a whole number alone",
            "{content}"
        );
    }
    let misdated = right.replace("January", "July");
    let cases = [
        ("", "step 1 is no equation"),
        ("In December: 9 + 9 = 18", "the steps do not use the problem's numbers in their order"),
        ("In December: 6 + 8 = 15; January: 15 - 3 = 12", "step 1 is false"),
        ("In December: 6 + 8 = 14; January: 13 - 3 = 10", "step 2 does not start from the result before it"),
        ("In December: 6 * 3 = 18", "step 1 is not a step of this task"),
        ("In December: 6 ^ 3 = 18", "step 1 is no equation"),
        ("In December: 6 + 8 = 14 = 14", "step 1 is no equation"),
        ("In December: 6 + 8 = 14;", "step 2 is no equation"),
        ("In December: 6 + 8 = 14", "the steps do not end in the answer"),
        ("In December: 4294967295 + 1 = 4294967296", "step 1 is no equation"),
        ("In December: 4294967295 * 4294967295 = 1", "step 1 is false"),
        ("In December: 1 / 0 = 0", "step 1 is false"),
        ("6 + 8 = 14", "step 1 is no equation"),
        (&misdated, "the steps are not dated as the problem's sentences"),
    ];
    for (reasoning, reason) in cases {
        assert_eq!(verdict(&problem, reasoning, "18").reason, reason, "{reasoning}");
    }
    assert_eq!(verdict(&problem, &"In ".repeat(5_000), "18").reason, "reasoning too long");
    let no_answer = Prompt { answer: None, ..problem.prompt() };
    assert!(!LENIENT.verify(&no_answer, &problem.worked()).correct);
}

proptest! {
    /// Whichever number of a worked solution is changed, and however, the solution is refused.
    #[test]
    fn a_corrupted_solution_is_refused(index in 0u64..5_000, place in 0usize..1_000, by in 1u8..20) {
        let problem = WordProblem::draw(9, Split::Train, index);
        let worked = problem.reasoning();
        let mut words: Vec<String> = worked.split(' ').map(String::from).collect();
        let places: Vec<usize> =
            (0..words.len()).filter(|&i| words[i].starts_with(|c: char| c.is_ascii_digit())).collect();
        let i = places[place % places.len()];
        let old: u8 = words[i].trim_end_matches(';').parse().expect("a number");
        let end = if words[i].ends_with(';') { ";" } else { "" };
        words[i] = format!("{}{end}", (old + by) % 40);
        prop_assert!(!verdict(&problem, &words.join(" "), &problem.answer().to_string()).correct);
    }

    #[test]
    fn a_solution_without_one_of_its_steps_is_refused(index in 0u64..5_000, gone in 0usize..8) {
        let problem = WordProblem::draw(9, Split::Train, index);
        let worked = problem.reasoning();
        let mut steps: Vec<&str> = worked.split("; ").collect();
        steps.remove(gone % steps.len());
        prop_assert!(!verdict(&problem, &steps.join("; "), &problem.answer().to_string()).correct);
    }

    #[test]
    fn any_other_answer_is_refused(index in 0u64..5_000, other in 0u32..100) {
        let problem = WordProblem::draw(9, Split::Train, index);
        prop_assume!(other != u32::from(problem.answer()));
        let reply = Message::new(stillroom_core::Role::Assistant, other.to_string());
        prop_assert!(!LENIENT.verify(&problem.prompt(), &reply).correct);
    }

    #[test]
    fn any_text_is_judged_without_panic(reasoning in "\\PC{0,80}", content in "\\PC{0,20}", sums in "[-A-Zo0-9:+*/=; ]{0,80}") {
        let problem = WordProblem::draw(9, Split::Train, 0);
        verdict(&problem, &reasoning, &content);
        verdict(&problem, &sums, &problem.answer().to_string());
    }
}

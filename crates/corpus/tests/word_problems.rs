//! The claims of the task `word_problems`, each with a test that can fail.

use proptest::prelude::*;
use stillroom_core::{Digest, Message, Prompt, Role};
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
        let told = problem.text.split('.').skip(1);
        for (cue, sentence) in problem.cues.iter().zip(told) {
            assert_eq!(
                sentence.split(' ').filter(|word| word.trim_end_matches(',') == *cue).count(),
                1,
                "{sentence}"
            );
        }
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
    let expected = "In November, Ben got 6 cookies as a gift. Later, in December, a friend brought him 8 more \
                    cookies. Later, in January, Ida wanted some cookies and took 3. In February, he handed 5 \
                    cookies to Nina. Then, in March, his mother added 8 cookies. Then, in April, Nina borrowed \
                    5 cookies. Later, in May, Ben collected 9 more cookies on the way home. What is the number \
                    of cookies now?";
    assert_eq!(problem.text, expected);
    let reasoning = "In December: brought 8, 6 + 8 = 14; January: took 3, 14 - 3 = 11; February: handed 5, \
                     11 - 5 = 6; March: added 8, 6 + 8 = 14; April: borrowed 5, 14 - 5 = 9; May: collected 9, \
                     9 + 9 = 18";
    assert_eq!(problem.reasoning(), reasoning);
    let halved = WordProblem::draw(0, Split::HeldOut, 1);
    let reasoning = "In June: delivered 2, 12 + 2 = 14; July: hid 4, 14 - 4 = 10; August: halved, 10 / 2 = 5";
    assert_eq!((halved.reasoning().as_str(), halved.answer()), (reasoning, 5));
}

/// A teacher is trained on these texts: a change of wording needs a new teacher.
#[test]
fn texts_and_solutions_are_those_that_the_teacher_learnt() {
    let text =
        |problem: &WordProblem| format!("{}\n{}\n{}\n", problem.text, problem.reasoning(), problem.answer());
    let digest = |split| {
        let texts: String = problems(0, split, 2_000).iter().map(text).collect();
        Digest::of(texts.as_bytes()).to_string()
    };
    assert_eq!(digest(Split::Train), "524ac3102a01f49453c4af51ae794417158ef37dad3ac0a77559824536fac37e");
    assert_eq!(digest(Split::HeldOut), "74fa6ec224aace20f435ba83490e4c93fe746cc0a273639b2efc819999774804");
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
fn replies_that_are_no_number_are_wrong() {
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
    let no_answer = Prompt { answer: None, ..problem.prompt() };
    assert!(!LENIENT.verify(&no_answer, &problem.worked()).correct);
}

#[test]
fn reasoning_that_reaches_the_answer_by_luck_is_wrong() {
    let problem = WordProblem::draw(0, Split::HeldOut, 0);
    let unreadable = "step 1 cannot be read";
    let cases = [
        ("", unreadable),
        ("In December: 6 + 8 = 14", unreadable),
        ("brought 8, 6 + 8 = 14", unreadable),
        ("In December: brought 8 6 + 8 = 14", unreadable),
        ("In December: brought 8 more, 6 + 8 = 14", unreadable),
        ("In December: brought eight, 6 + 8 = 14", unreadable),
        ("In December: brought 8, 6 ^ 8 = 14", unreadable),
        ("In December: brought 8, 6 + 8 = 14 = 14", unreadable),
        ("In December: brought 8, 4294967295 + 1 = 4294967296", unreadable),
        ("In December: brought 8, 6 + 8 = 14;", "step 2 cannot be read"),
        ("In December: brought 8, 4294967295 * 4294967295 = 1", "step 1 is false"),
        ("In December: brought 8, 1 / 0 = 0", "step 1 is false"),
        ("In December: brought 8, 6 + 8 = 15; January: took 3, 15 - 3 = 12", "step 1 is false"),
        ("In December: brought 18, 6 + 18 = 24", "step 1 is false"),
        (
            "In December: brought 8, 6 + 8 = 14; January: took 3, 13 - 3 = 10",
            "step 2 does not start from the result before it",
        ),
        ("In December: doubled, 6 * 3 = 18", "step 1 does not do what it quotes"),
        ("In December: doubled 3, 6 * 3 = 18", "step 1 does not do what it quotes"),
        ("In December: doubled 2, 9 * 2 = 18", "step 1 does not do what it quotes"),
        ("In December: brought, 6 + 8 = 14", "step 1 does not do what it quotes"),
        ("In December: brought 8, 6 + 8 = 14", "the steps do not end in the answer"),
        ("In December: brought 9, 9 + 9 = 18", "the steps are not dated as the problem's sentences"),
    ];
    for (reasoning, reason) in cases {
        assert_eq!(verdict(&problem, reasoning, "18").reason, reason, "{reasoning}");
    }
    assert_eq!(verdict(&problem, &"In ".repeat(5_000), "18").reason, "reasoning too long");
    let mut silent = problem.worked();
    silent.reasoning_content = None;
    assert_eq!(STRICT.verify(&problem.prompt(), &silent).reason, "no reasoning");
    let undated = Prompt { messages: Vec::new(), ..problem.prompt() };
    assert_eq!(STRICT.verify(&undated, &problem.worked()).reason, "the problem has no dated sentence");
}

/// Each case changes the worked solution so that its equations still hold and still end in 18.
#[test]
fn steps_that_quote_what_their_sentence_does_not_say_are_wrong() {
    let problem = WordProblem::draw(0, Split::HeldOut, 0);
    let right = problem.reasoning();
    let cases: [(&[(&str, &str)], &str); 9] = [
        (&[("brought 8,", "brought 7,")], "step 1 does not do what it quotes"),
        (
            // Two wrong signs that cancel.
            &[
                ("took 3, 14 - 3 = 11", "took 3, 14 + 3 = 17"),
                ("handed 5, 11 - 5 = 6", "handed 11, 17 - 11 = 6"),
            ],
            "step 2 does not do what it quotes",
        ),
        (&[("took", "gave")], "step 2 does not do what it quotes"),
        (&[("took", "cookies")], "step 2 does not do what it quotes"),
        (&[("took", "lost")], "step 2 quotes a word that January does not have"),
        // A word of another month.
        (&[("took", "borrowed")], "step 2 quotes a word that January does not have"),
        // The numbers of two months, exchanged.
        (
            &[("took 3, 14 - 3 = 11", "took 5, 14 - 5 = 9"), ("handed 5, 11 - 5 = 6", "handed 3, 9 - 3 = 6")],
            "step 2 does not quote the number of January",
        ),
        (
            &[("brought 8, 6 + 8", "brought 9, 5 + 9")],
            "the steps do not start from the problem's first number",
        ),
        (&[("January", "July")], "the steps are not dated as the problem's sentences"),
    ];
    for (changes, reason) in cases {
        let mut changed = right.clone();
        for (from, to) in changes {
            assert!(changed.contains(from), "{from}");
            changed = changed.replace(from, to);
        }
        assert_eq!(verdict(&problem, &changed, "18").reason, reason, "{changed}");
    }
}

/// The place of each step's cue among the words of a solution.
fn cue_places(words: &[&str]) -> Vec<usize> {
    (1..words.len()).filter(|&i| words[i - 1].ends_with(':')).collect()
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
        let digits = words[i].trim_end_matches([';', ',']).to_string();
        let old: u8 = digits.parse().expect("a number");
        words[i] = words[i].replace(&digits, &((old + by) % 40).to_string());
        prop_assert!(!verdict(&problem, &words.join(" "), &problem.answer().to_string()).correct);
    }

    /// No other word can stand for a step's cue, whether the problem has it elsewhere or not at all.
    #[test]
    fn another_word_for_a_cue_is_refused(index in 0u64..5_000, place in 0usize..8, other in 0u64..5_000) {
        let problem = WordProblem::draw(9, Split::Train, index);
        let elsewhere = WordProblem::draw(9, Split::Validation, other);
        let worked = problem.reasoning();
        let words: Vec<&str> = worked.split(' ').collect();
        let places = cue_places(&words);
        prop_assert_eq!(places.len(), problem.cues.len());
        let i = places[place % places.len()];
        let cue = words[i].trim_end_matches(',');
        let both = format!("{} {}", problem.text, elsewhere.text);
        for word in both.split([' ', '.', ',', '?']).filter(|&word| word != cue) {
            let mut changed = words.clone();
            let replaced = words[i].replace(cue, word);
            changed[i] = &replaced;
            let reply = changed.join(" ");
            prop_assert!(!verdict(&problem, &reply, &problem.answer().to_string()).correct, "{}", reply);
        }
    }

    /// A solution that is right for another problem with the same answer is refused.
    #[test]
    fn the_solution_of_another_problem_is_refused(index in 0u64..5_000) {
        let problem = WordProblem::draw(9, Split::Train, index);
        let others = (1..1_000).map(|i| WordProblem::draw(9, Split::Validation, index + i));
        let other = others.into_iter().find(|other| other.answer() == problem.answer()).expect("answers repeat");
        prop_assert!(!STRICT.verify(&problem.prompt(), &other.worked()).correct);
        let mut redated = other;
        redated.first_month = problem.first_month;
        prop_assert!(!STRICT.verify(&problem.prompt(), &redated.worked()).correct);
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
        let reply = Message::new(Role::Assistant, other.to_string());
        prop_assert!(!LENIENT.verify(&problem.prompt(), &reply).correct);
    }

    #[test]
    fn any_text_is_judged_without_panic(reasoning in "\\PC{0,80}", content in "\\PC{0,20}", sums in "[-A-Zo0-9:+*/=;, ]{0,80}") {
        let problem = WordProblem::draw(9, Split::Train, 0);
        verdict(&problem, &reasoning, &content);
        verdict(&problem, &sums, &problem.answer().to_string());
        let mut prompt = problem.prompt();
        prompt.messages[0].content = content;
        STRICT.verify(&prompt, &problem.worked());
    }
}

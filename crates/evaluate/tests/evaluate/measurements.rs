//! From rows to figures, comparisons and checks.

use proptest::prelude::*;
use stillroom_core::{FinishReason, Message, Prompt, Role};
use stillroom_evaluate::*;

use crate::made_up;

fn prompt(id: &str, answer: &str) -> Prompt {
    let messages = vec![Message::new(Role::User, "how many?")];
    Prompt { id: id.into(), messages, answer: Some(answer.into()), target: None }
}

#[test]
fn replies_are_graded_by_the_judge_in_order() {
    let prompts = [prompt("a", "1"), prompt("b", "2"), prompt("c", "3")];
    let replies = ["1", "3", "3"].map(|text| Message::new(Role::Assistant, text));
    let mut judge = |prompt: &Prompt, reply: &Message| {
        let right = prompt.answer.as_deref() == Some(reply.content.as_str());
        (right, if right { "right answer".into() } else { format!("{} given", reply.content) })
    };
    let grades = grade_replies(&prompts, &replies, &mut judge).unwrap();
    assert_eq!(grades.iter().map(|g| g.correct).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!((grades[1].id.as_str(), grades[1].reason.as_str()), ("b", "3 given"));
    assert!(grade_replies(&prompts, &replies[..2], &mut judge).is_err());
}

#[test]
fn figures_follow_from_the_rows() {
    let mut measured = made_up::measurement("m", 10, 0.5, 1.0, Some(0.5));
    let grade = |id: &str, correct| Grade { id: id.into(), correct, reason: String::new() };
    measured.grades =
        Measured::Value(vec![grade("a", true), grade("b", false), grade("c", true), grade("d", true)]);
    let loss = |id: &str, tokens, bytes, nats| DocumentLoss { id: id.into(), tokens, bytes, nats };
    measured.losses = Measured::Value(vec![loss("a", 2, 8, 3.0), loss("b", 6, 24, 5.0)]);
    measured.divergences = Measured::Value(vec![DocumentDivergence { id: "a".into(), tokens: 4, nats: 1.0 }]);
    measured.generation = Measured::Value(Throughput { tokens: 300, seconds: 1.5 });
    measured.joules = Measured::Value(12.0);
    measured.usd = Measured::Value(0.006);
    let score = measured.score();
    assert_eq!((score.graded, score.correct), (Some(4), Some(3)));
    assert_eq!(score.accuracy.value(), Some(&0.75));
    assert_eq!(score.nll_nats_per_token.value(), Some(&1.0));
    let bits = *score.bits_per_byte.value().unwrap();
    assert!((bits - 8.0 / std::f64::consts::LN_2 / 32.0).abs() < 1e-12);
    assert_eq!(score.kl_to_teacher.value(), Some(&0.25));
    assert_eq!(score.tokens_per_second.value(), Some(&200.0));
    assert_eq!(score.joules_per_correct.value(), Some(&4.0));
    assert!((score.usd_per_1k_correct.value().unwrap() - 2.0).abs() < 1e-12);

    measured.grades = Measured::Value(vec![grade("a", false)]);
    assert_eq!(measured.score().joules_per_correct.reason(), Some("no reply was right"));
    measured.grades = Measured::not_measured("the task has no verifier");
    let score = measured.score();
    assert_eq!(score.accuracy.reason(), Some("the task has no verifier"));
    assert_eq!(score.usd_per_1k_correct.reason(), Some("the task has no verifier"));
    measured.losses = Measured::Value(vec![loss("a", 2, 8, f64::NAN)]);
    assert!(measured.score().nll_nats_per_token.value().is_none());
}

#[test]
fn comparisons_know_which_way_is_better_and_when_to_be_silent() {
    let all = made_up::measurements();
    let of = |a, b| compare(&all[&a], &all[&b]).unwrap();
    let found = of(Contender::Student, Contender::Undistilled);
    assert!(found.values().all(|c| c.claim == Claim::Better), "{found:?}");
    assert!(found[&Metric::Accuracy].difference > 0.0 && found[&Metric::KlToTeacher].difference < 0.0);
    assert!(found[&Metric::Accuracy].p_value.unwrap() < 1e-6);
    let mirrored = of(Contender::Undistilled, Contender::Student);
    assert!(mirrored.values().all(|c| c.claim == Claim::Worse), "{mirrored:?}");
    let same = of(Contender::Student, Contender::Student);
    assert!(same.values().all(|c| c.claim == Claim::NoClaim && c.difference == 0.0), "{same:?}");
    assert!(!of(Contender::Student, Contender::Teacher).contains_key(&Metric::KlToTeacher));
}

#[test]
fn models_measured_on_different_items_are_not_compared() {
    let first = made_up::measurement("first", 1, 0.5, 1.0, None);
    let changed = |change: &dyn Fn(&mut Measurement)| {
        let mut second = first.clone();
        change(&mut second);
        compare(&first, &second).unwrap_err().to_string()
    };
    let fewer = changed(&|m| {
        let Measured::Value(grades) = &mut m.grades else { return };
        grades.pop();
    });
    assert!(fewer.contains("1000 prompt cannot be paired with 999"), "{fewer}");
    let other = changed(&|m| {
        let Measured::Value(grades) = &mut m.grades else { return };
        grades[3].id = "other".into();
    });
    assert!(other.contains("`made-up-0003` on one side and `other`"), "{other}");
    let tokenizer = changed(&|m| {
        let Measured::Value(losses) = &mut m.losses else { return };
        losses[0].tokens += 1;
    });
    assert!(tokenizer.contains("tokens on one side"), "{tokenizer}");
    let diverged = changed(&|m| {
        let Measured::Value(losses) = &mut m.losses else { return };
        losses[0].nats = f64::INFINITY;
    });
    assert!(diverged.contains("not a finite number"), "{diverged}");
}

#[test]
fn the_share_of_the_teachers_accuracy_has_an_interval_that_holds_it() {
    let all = made_up::measurements();
    let retained =
        accuracy_retained(&all[&Contender::Student], &all[&Contender::Teacher], 1).unwrap().unwrap();
    assert!(
        retained.interval.contains(retained.value) && retained.interval.high - retained.interval.low < 0.06
    );
    let untrained = made_up::measurement("u", 1, -1.0, 1.0, None);
    assert_eq!(accuracy_retained(&all[&Contender::Student], &untrained, 1).unwrap(), None);
}

#[test]
fn the_tensor_check_passes_only_when_every_tensor_moved() {
    let check = |pairs: &[(&[f32], &[f32])]| {
        let mut changes = TensorChanges::default();
        for (i, (before, after)) in pairs.iter().enumerate() {
            changes.add(&format!("t{i}"), before, after).unwrap();
        }
        changes
    };
    let moved = check(&[(&[3.0, 4.0], &[3.0, 4.5]), (&[0.0, 0.0], &[0.0, 1e-30])]);
    assert!(moved.all_changed());
    assert_eq!(moved.smallest_relative_change, Some(0.1));
    assert_eq!(moved.smallest_change_in.as_deref(), Some("t0"));

    let stuck = check(&[(&[3.0, 4.0], &[3.0, 4.5]), (&[1.0], &[1.0])]);
    assert!(!stuck.all_changed());
    assert_eq!((stuck.unchanged, stuck.smallest_relative_change), (vec!["t1".to_string()], Some(0.0)));

    let broken = check(&[(&[1.0], &[f32::NAN])]);
    assert!(!broken.all_changed() && broken.not_finite == ["t0"]);
    assert!(!TensorChanges::default().all_changed());
    assert!(TensorChanges::default().add("t", &[1.0], &[1.0, 2.0]).is_err());
}

#[test]
fn what_models_write_themselves_is_compared_text_by_text_each_counting_alike() {
    let text = |id: &str, reverse_kl: &[f32]| OwnText {
        sampled: false,
        id: id.to_owned(),
        token_ids: vec![0; reverse_kl.len()],
        finish_reason: FinishReason::Length,
        reverse_kl: reverse_kl.to_vec(),
    };
    let start = [text("a", &[1.0, 3.0]), text("b", &[4.0]), text("c", &[9.0]), text("d", &[2.0])];
    let student = [text("a", &[1.0]), text("b", &[2.0, 4.0]), text("c", &[]), text("d", &[1.0; 40])];
    let drop = LossDrop::of_own_text(&start, &student).unwrap();
    assert_eq!(
        (drop.of, drop.documents, drop.unit()),
        (HeldOutLoss::OwnText, 3, "nats per token of own text")
    );
    // 2 − 1, 4 − 3 and 2 − 1, however long the texts are; the empty one is no text.
    assert_eq!(drop.drop.unwrap().value, 1.0);
    assert!(drop.fell());
    let others = ["w", "x", "y", "z"].map(|id| text(id, &[1.0]));
    assert!(LossDrop::of_own_text(&start, &others).is_err(), "of other prompts");
}

#[test]
fn the_loss_check_passes_only_when_the_lower_bound_of_the_drop_is_above_zero() {
    let documents = |losses: &[f64]| -> Vec<DocumentLoss> {
        let row =
            |(i, nats): (usize, &f64)| DocumentLoss { id: i.to_string(), tokens: 10, bytes: 30, nats: *nats };
        losses.iter().enumerate().map(row).collect()
    };
    let check =
        |before: &[f64], after: &[f64]| LossDrop::measure(&documents(before), &documents(after)).unwrap();
    let fell = check(&[50.0, 52.0, 49.0, 51.0], &[30.0, 31.0, 30.0, 29.0]);
    assert!(fell.fell() && fell.drop.unwrap().value > 2.0);
    // The mean fell, but not beyond doubt.
    let doubtful = check(&[50.0, 52.0, 49.0, 51.0], &[30.0, 55.0, 52.0, 53.0]);
    assert!(doubtful.drop.unwrap().value > 0.0 && !doubtful.fell());
    let rose = check(&[30.0, 31.0, 30.0], &[50.0, 52.0, 49.0]);
    assert!(!rose.fell());
    let one = check(&[50.0], &[1.0]);
    assert!(one.drop.is_none() && !one.fell());
    assert!(LossDrop::measure(&documents(&[1.0]), &documents(&[1.0, 2.0])).is_err());

    let mut moved = TensorChanges::default();
    moved.add("t", &[1.0], &[2.0]).unwrap();
    assert!(Checks::new(moved.clone(), fell.clone()).passed());
    assert!(!Checks::new(moved, rose).passed());
    assert!(!Checks::new(TensorChanges::default(), fell).passed());
}

proptest! {
    #[test]
    fn rows_survive_json(accuracy in 0.0f64..1.0, loss in 0.0f64..9.0) {
        let measured = made_up::measurement("m", 5, accuracy, loss, Some(loss / 3.0));
        let json = serde_json::to_string(&measured).unwrap();
        let back: Measurement = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(serde_json::to_string(&back).unwrap(), json);
    }
}

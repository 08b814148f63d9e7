//! Reports: the JSON that other tools read, and the page that people read.

use std::fs;
use std::path::Path;

use serde_json::Value;
use stillroom_core::CounterRng;
use stillroom_core::statistics::Interval;
use stillroom_evaluate::*;

use crate::made_up;

/// Compares with a golden file; what differs is left under the target folder.
fn assert_golden(name: &str, found: &str, same: &dyn Fn(&str, &str) -> bool) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if !fs::read_to_string(&golden).is_ok_and(|golden| same(&golden, found)) {
        let written = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::write(&written, found).unwrap();
        panic!("{} differs; look at {} and copy it if it is right", golden.display(), written.display());
    }
}

/// Equal in names, order and text; numbers up to what different maths libraries make of `ln` and `exp`.
fn nearly_equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|((ka, va), (kb, vb))| ka == kb && nearly_equal(va, vb))
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| nearly_equal(a, b))
        }
        (Value::Number(x), Value::Number(y)) => {
            let (x, y) = (x.as_f64().unwrap(), y.as_f64().unwrap());
            a == b || (x - y).abs() <= 1e-9 * x.abs().max(y.abs())
        }
        _ => a == b,
    }
}

#[test]
fn the_json_is_the_golden_one_and_reads_back_as_itself() {
    let report = made_up::report();
    let json = report.to_json();
    let same = |golden: &str, found: &str| {
        let parse = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
        nearly_equal(&parse(golden), &parse(found))
    };
    assert_golden("made-up-report.json", &json, &same);
    assert_eq!(Report::from_json(&json).unwrap().to_json(), json);
}

#[test]
fn the_page_is_the_golden_one() {
    assert_golden("made-up-report.html", &made_up::report().to_html(), &|golden, found| golden == found);
}

#[test]
fn losses_of_a_weighted_sum_are_shown_apart_where_there_are_several() {
    let mut report = made_up::report();
    assert!(!report.to_html().contains("Unweighted") && !report.to_json().contains("_terms"));
    for (i, point) in report.curves[0].points.iter_mut().enumerate() {
        point.train_terms.insert("jsd".into(), 0.5 / (1.0 + i as f64));
        if point.validation_loss.is_some() {
            point.validation_terms.insert("jsd".into(), 0.25);
            point.validation_terms.insert("<tvd>".into(), 0.125);
        }
    }
    let page = report.to_html();
    assert!(
        page.contains("Unweighted, in validation: &lt;tvd&gt; 0.125 → 0.125, jsd 0.250 → 0.250"),
        "{page}"
    );
    report.curves[0].points.iter_mut().for_each(|point| point.validation_terms.clear());
    assert!(report.to_html().contains("Unweighted, in training: jsd 0.500 → "));
    assert_eq!(Report::from_json(&report.to_json()).unwrap(), report);
}

#[test]
fn the_json_has_the_names_that_other_tools_rely_on() {
    let json: Value = serde_json::from_str(&made_up::report().to_json()).unwrap();
    for key in ["recipe", "task", "heldout_examples", "models", "paired", "checks"] {
        assert!(!json[key].is_null(), "{key}");
    }
    for model in ["teacher", "student", "untrained", "traces_only", "undistilled"] {
        let score = json["models"][model].as_object().unwrap();
        for key in [
            "accuracy",
            "accuracy_ci95",
            "nll_nats_per_token",
            "bits_per_byte",
            "kl_to_teacher",
            "tokens_per_second",
            "usd_per_1k_correct",
            "joules_per_correct",
        ] {
            let value = score.get(key).unwrap_or_else(|| panic!("{model}.{key}"));
            let reason = score.get(&format!("{key}_reason"));
            assert_eq!(value.is_null(), reason.is_some_and(|reason| reason.is_string()), "{model}.{key}");
        }
        assert!(score["parameters"].is_u64());
    }
    assert!(json["models"]["student"]["accuracy_ci95"][1].is_f64());
    assert_eq!(json["checks"]["student_tensors_changed"], true);
    assert_eq!(json["checks"]["heldout_loss_fell"], true);
    let paired = &json["paired"]["student_minus_undistilled"]["accuracy"];
    assert!(paired["ci95"][0].as_f64().unwrap() > 0.2, "{paired}");
}

#[test]
fn a_page_has_no_script_no_request_and_no_markup_from_a_model() {
    let mut report = made_up::report();
    let hostile =
        "\"><script src=https://evil.example/x.js></script><style>*{}</style><a href='https://evil.example'>";
    report.recipe = hostile.into();
    report.task_description = hostile.into();
    report.examples[0].problem = hostile.into();
    report.corpus.rejected.insert(hostile.into(), 1);
    report.stages[0].stage = hostile.into();
    report.licence.as_mut().unwrap().rules[0].says = hostile.into();
    report.licence.as_mut().unwrap().verdict = hostile.into();
    report.models.get_mut(&Contender::Teacher).unwrap().model = hostile.into();
    report.models.get_mut(&Contender::Student).unwrap().kl_to_teacher = Measured::not_measured(hostile);
    report.curves[0].loss = hostile.into();
    let html = report.to_html();
    // Every tag and attribute name of the page, values and text left out.
    let mut names = Vec::new();
    for tag in html.split('<').skip(1).filter_map(|rest| rest.split('>').next()) {
        names.extend(tag.split('"').step_by(2).flat_map(|outside| outside.split_whitespace()));
    }
    for name in names {
        let bare = name.trim_matches(['/', '=']);
        assert!(
            !["script", "img", "a", "iframe", "link", "object", "base", "form"].contains(&bare),
            "{name}"
        );
        assert!(
            !["src", "href", "style=", "xlink:href"].contains(&bare) && !bare.starts_with("on"),
            "{name}"
        );
    }
    assert!(!html.contains("url(") && !html.contains("@import"));
    assert_eq!(html.matches("<style>").count(), 1);
    assert!(html.contains("default-src 'none'") || html.contains("default-src &#39;none&#39;"));
    assert!(!html.contains('\u{202e}') && !html.contains('\u{1b}'));
}

#[test]
fn the_verdict_claims_what_intervals_allow_and_nothing_else() {
    let report = made_up::report();
    let words = report.verdict().headline.replace('\u{202f}', " ");
    assert!(words.starts_with("The student reaches 9"), "{words}");
    assert!(
        words.contains("% of the teacher's accuracy with 12.1 % of its parameters; reasoning moved: +7"),
        "{words}"
    );

    let mut no_gain = report.clone();
    let pair = Pair { first: Contender::Student, second: Contender::Undistilled };
    let comparison = no_gain.paired.get_mut(&pair).unwrap().get_mut(&Metric::Accuracy).unwrap();
    comparison.difference = 0.004;
    comparison.ci95 = Interval { low: -0.012, high: 0.02 };
    comparison.claim = Claim::NoClaim;
    let words = no_gain.verdict().headline;
    assert!(
        words.contains("no claim of a gain over the undistilled control: +0.4 points [−1.2, 2.0]"),
        "{words}"
    );
    assert!(no_gain.to_html().contains("no claim"));

    let mut failed = report.clone();
    failed.checks.heldout_loss_fell = false;
    assert!(failed.verdict().headline.contains("held-out loss did not fall"));

    let mut eighth = report.clone();
    eighth.models.get_mut(&Contender::Teacher).unwrap().parameters = Measured::Value(412_160 * 8 + 1_000);
    assert!(eighth.verdict().headline.contains("with 1/8 of its parameters"));

    let mut text_only = report;
    text_only.accuracy_retained = None;
    text_only.paired.retain(|pair, _| pair.second == Contender::TracesOnly);
    text_only.paired.values_mut().for_each(|metrics| metrics.retain(|m, _| *m == Metric::KlToTeacher));
    let words = text_only.verdict().headline;
    assert!(
        words.contains("nats per token away from its teacher")
            && words.contains("closer than the traces-only control"),
        "{words}"
    );
}

#[test]
fn a_sparse_report_still_makes_a_page() {
    let mut report = made_up::report();
    report.models.clear();
    report.paired.clear();
    report.curves.clear();
    report.stages.clear();
    report.examples.clear();
    report.digests.clear();
    report.seeds.clear();
    report.licence = None;
    report.cache = None;
    report.accuracy_retained = None;
    report.trial = true;
    report.checks = Checks::new(TensorChanges::default(), LossDrop::default());
    let html = report.to_html();
    assert!(html.contains("This is a trial.") && html.contains("failed both checks"));
    assert!(!html.contains("NaN") && !html.contains("inf"));
}

#[test]
fn foreign_reports_are_errors() {
    let json = made_up::report().to_json();
    assert!(Report::from_json("{}").is_err());
    assert!(Report::from_json(&json.replacen("\"report_version\": 1", "\"report_version\": 2", 1)).is_err());
    assert!(
        Report::from_json(&json.replace("student_minus_undistilled\"", "student_minus_nobody\"")).is_err()
    );
}

/// Replaces every fraction in the JSON by one of the numbers.
fn with_numbers(value: &mut Value, rng: &mut CounterRng, numbers: &[f64]) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(|v| with_numbers(v, rng, numbers)),
        Value::Array(items) => items.iter_mut().for_each(|v| with_numbers(v, rng, numbers)),
        Value::Number(n) if n.is_f64() => *value = numbers[rng.below(numbers.len() as u64) as usize].into(),
        _ => {}
    }
}

#[test]
fn a_report_with_absurd_numbers_still_makes_a_page() {
    let plain: Value = serde_json::from_str(&made_up::report().to_json()).unwrap();
    for seed in 0..40 {
        let mut absurd = plain.clone();
        let numbers = [0.0, -1e308, 1e308, 1e-308, -0.5, 1e15];
        with_numbers(&mut absurd, &mut CounterRng::new(&[seed]), &numbers);
        let report = Report::from_json(&absurd.to_string()).unwrap();
        assert!(report.to_html().ends_with("</html>\n"), "{seed}");
    }
}

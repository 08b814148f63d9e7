//! The page's sections, top to bottom.

use std::collections::BTreeMap;

use super::charts::{Bar, ForestRow, bars, forest};
use super::curves;
use super::markup::Markup;
use super::own_text::own_text;
use crate::measured::Measured;
use crate::measurement::{Claim, Comparison, Metric};
use crate::report::{
    Agreement, CacheFacts, Contender, FeedbackFacts, LicenceDecision, Pair, Report, RevisionFacts, Sample,
    SampleReply,
};
use crate::score::ModelScore;
use crate::words;

/// Held-out problems shown, and characters shown of each text.
const SAMPLES_MAX: usize = 8;
const SAMPLE_CHARS_MAX: usize = 2_400;
/// Rows shown of any list that a foreign file could make long.
const ROWS_MAX: usize = 60;

pub(super) fn body(body: &mut Markup, report: &Report) {
    body.nest("main", &[], |main| {
        header(main, report);
        accuracy(main, report);
        differences(main, report);
        loss_curves(main, report);
        figures(main, report);
        own_text(main, report);
        samples(main, report);
        data(main, report);
        licence(main, report);
        machine(main, report);
        digests(main, report);
        reading(main, report);
        main.element(
            "footer",
            &[],
            format_args!("Written by Stillroom {}, {}.", report.stillroom_version, report.created),
        );
    });
}

/// A section with its heading and one line under it.
pub(super) fn section(main: &mut Markup, heading: &str, under: &str, content: impl FnOnce(&mut Markup)) {
    main.nest("section", &[], |section| {
        section.element("h2", &[], heading);
        if !under.is_empty() {
            section.nest("p", &[("class", &"muted small")], |p| prose(p, under));
        }
        content(section);
    });
}

/// A sentence in which backticks mark what is typed.
fn prose(markup: &mut Markup, text: &str) {
    for (i, part) in text.split('`').enumerate() {
        if i % 2 == 1 {
            markup.element("code", &[], part)
        } else {
            markup.text(part)
        };
    }
}

/// The same text with intervals that do not break over lines.
fn unbroken(text: &str) -> String {
    let mut inside = false;
    let keep = |character: char| {
        inside = character == '[' || inside && character != ']';
        if inside && character == ' ' { '\u{a0}' } else { character }
    };
    text.chars().map(keep).collect()
}

fn header(main: &mut Markup, report: &Report) {
    main.nest("header", &[], |header| {
        let line = format!(
            "Stillroom report · recipe {} · task {} · {} held-out examples",
            report.recipe,
            report.task,
            words::thousands(report.heldout_examples)
        );
        header.element("p", &[("class", &"overline")], line);
        header.element("h1", &[], unbroken(&report.verdict().headline));
        header.nest("p", &[("class", &"muted")], |p| prose(p, &report.task_description));
        if report.trial {
            header.nest("div", &[("class", &"banner")], |banner| {
                banner.nest("p", &[], |p| {
                    p.element("b", &[], "This is a trial.").text(
                        " The run was cut short to show the whole flow; none of its figures is a result.",
                    );
                });
            });
        }
        checks(header, report);
        tiles(header, report);
    });
}

fn checks(header: &mut Markup, report: &Report) {
    let checks = &report.checks;
    if checks.passed() {
        return;
    }
    header.nest("div", &[("class", &"banner failed")], |banner| {
        banner.nest("p", &[], |p| {
            p.element("b", &[], "Failed checks.").text(" ");
            if !checks.student_tensors_changed {
                let named = &checks.tensors.unchanged;
                let broken = &checks.tensors.not_finite;
                if !named.is_empty() {
                    p.text(format_args!("Did not change in training: {}. ", shortened(named)));
                }
                if !broken.is_empty() {
                    p.text(format_args!("Hold numbers that are not finite: {}. ", shortened(broken)));
                }
                if checks.tensors.compared == 0 {
                    p.text("No tensor was meant to train. ");
                }
            }
            if !checks.heldout_loss_fell {
                match checks.heldout_loss.drop {
                    Some(drop) => {
                        let metric = Metric::NllNatsPerToken;
                        let (value, interval) = words::difference(metric, drop.value, drop.interval);
                        p.text(format_args!(
                            "Drop of the held-out loss from the initial weights: {value} {} {interval}.",
                            checks.heldout_loss.unit()
                        ))
                    }
                    None => p.text("Too few held-out documents to say that the loss fell."),
                };
            }
        });
    });
}

fn shortened(names: &[String]) -> String {
    let shown = names.iter().take(6).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(6) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn tiles(header: &mut Markup, report: &Report) {
    let student = report.models.get(&Contender::Student);
    let mut tiles: Vec<(&str, String, String)> = Vec::new();
    if let Some(accuracy) = student.and_then(|score| score.accuracy.value()) {
        let interval = student.and_then(|score| score.accuracy_ci95.value());
        let note = interval.map(|i| format!("{}, 95 %", words::percent_interval(*i))).unwrap_or_default();
        tiles.push(("Student's accuracy", words::percent(*accuracy), note));
    }
    if let Some(retained) = report.accuracy_retained {
        let note = format!("{}, 95 %", words::percent_interval(retained.interval));
        tiles.push(("Of teacher's accuracy", words::percent(retained.value), note));
    }
    for (control, name) in
        [(Contender::Undistilled, "Gain over undistilled"), (Contender::TracesOnly, "Gain over traces only")]
    {
        if let Some(found) = report.comparison(Contender::Student, control, Metric::Accuracy) {
            let (value, interval) = words::difference(Metric::Accuracy, found.difference, found.ci95);
            let value = if found.claim == Claim::NoClaim { "no claim".into() } else { value };
            let note = format!("points {interval}");
            tiles.push((name, value, note));
        }
    }
    if let Some(score) = student {
        let teacher = report.models.get(&Contender::Teacher);
        let note = teacher.map(|t| format!("teacher {}", words::size(&t.parameters))).unwrap_or_default();
        tiles.push(("Student's parameters", words::size(&score.parameters), note));
        if let Some(kl) = score.kl_to_teacher.value().filter(|_| tiles.len() < 5) {
            tiles.push(("KL to the teacher", words::significant(*kl), "nats per token".into()));
        }
    }
    header.nest("ul", &[("class", &"tiles")], |list| {
        for (name, value, note) in tiles {
            list.nest("li", &[], |tile| {
                tile.element("span", &[("class", &"name")], name);
                tile.element("span", &[("class", &"value")], value);
                tile.element("span", &[("class", &"note")], note);
            });
        }
    });
}

fn accuracy(main: &mut Markup, report: &Report) {
    let rows: Vec<Bar<'_>> = report
        .models
        .iter()
        .filter_map(|(contender, score)| {
            let value = *score.accuracy.value()?;
            let interval = score.accuracy_ci95.value().copied();
            Some(Bar {
                label: contender.label(),
                detail: format!("{} parameters", words::size(&score.parameters)),
                class: contender.key(),
                value,
                interval,
                shown: words::percent(value),
                shown_interval: interval.map(words::percent_interval).unwrap_or_default(),
            })
        })
        .collect();
    if rows.is_empty() {
        return;
    }
    let under = format!(
        "Share of {} held-out problems answered rightly, with 95 % intervals.",
        words::thousands(report.heldout_examples)
    );
    section(main, "Accuracy", &under, |section| {
        section.nest("div", &[("class", &"scroll")], |scroll| {
            let tick = |share: f64| format!("{:.0}\u{202f}%", share * 100.0);
            bars(scroll, "Accuracy of each model", &rows, 1.0, &tick);
        });
    });
}

fn differences(main: &mut Markup, report: &Report) {
    let of_metric = |metric: Metric| -> Vec<(&Pair, &Comparison)> {
        report.paired.iter().filter_map(|(pair, found)| Some((pair, found.get(&metric)?))).collect()
    };
    if report.paired.values().all(BTreeMap::is_empty) {
        return;
    }
    let under = "Each line pairs two models on the same examples. A line that touches zero is no claim.";
    section(main, "Differences", under, |section| {
        for metric in [Metric::Accuracy, Metric::KlToTeacher, Metric::NllNatsPerToken] {
            let found = of_metric(metric);
            if !found.is_empty() {
                forest_of(section, metric, &found);
            }
        }
    });
}

fn forest_of(section: &mut Markup, metric: Metric, found: &[(&Pair, &Comparison)]) {
    let (heading, sides) = match metric {
        Metric::Accuracy => ("Accuracy, points", ["← worse", "better →"]),
        Metric::KlToTeacher => {
            ("KL to the teacher, nats per token (lower is better)", ["← closer", "farther →"])
        }
        Metric::NllNatsPerToken => {
            ("Held-out loss, nats per token (lower is better)", ["← lower", "higher →"])
        }
    };
    let extent = |comparison: &Comparison| comparison.ci95.low.abs().max(comparison.ci95.high.abs());
    let widest = found.iter().map(|(_, comparison)| extent(comparison)).fold(0.0, f64::max);
    let (near, far): (Vec<_>, Vec<_>) =
        found.iter().partition(|(_, comparison)| extent(comparison) * CLOSE_UP_RATIO < widest);
    for (rows, suffix) in [(far, ""), (near, ", close up")] {
        if !rows.is_empty() {
            let heading = format!("{heading}{suffix}");
            let rows: Vec<_> =
                rows.into_iter().map(|(pair, found)| forest_row(metric, pair, found)).collect();
            section.nest("div", &[("class", &"scroll")], |scroll| {
                scroll.element("h3", &[], &heading);
                forest(scroll, &heading, &rows, sides);
            });
        }
    }
}

/// Differences this many times smaller than the largest get an axis of their own.
const CLOSE_UP_RATIO: f64 = 10.0;

fn forest_row(metric: Metric, pair: &Pair, comparison: &Comparison) -> ForestRow<'static> {
    let scale = words::scale(metric);
    let (value, interval) = words::difference(metric, comparison.difference, comparison.ci95);
    ForestRow {
        label: pair.first.label().to_string(),
        detail: format!("minus {}", pair.second.label().to_lowercase()),
        class: claim_class(comparison.claim),
        value: comparison.difference * scale,
        interval: [comparison.ci95.low * scale, comparison.ci95.high * scale].into(),
        shown: value,
        verdict: format!("{interval} {}", words::claim_word(comparison.claim)),
    }
}

fn claim_class(claim: Claim) -> &'static str {
    match claim {
        Claim::Better => "better",
        Claim::Worse => "worse",
        Claim::NoClaim => "no-claim",
    }
}

fn loss_curves(main: &mut Markup, report: &Report) {
    if report.curves.iter().any(|curve| !curve.points.is_empty()) {
        let under = "Each run has its own loss, named beside it, so heights compare within a panel only.";
        section(main, "Training", under, |section| curves::panels(section, &report.curves));
    }
}

/// A row of the table: name, unit, and what a model has there.
type FigureRow = (&'static str, &'static str, fn(&ModelScore) -> Measured<String>);

fn figure_rows() -> Vec<FigureRow> {
    fn shown(measured: &Measured<f64>) -> Measured<String> {
        measured.and_then(|value| Measured::Value(words::significant(*value)))
    }
    vec![
        ("Parameters", "", |s| s.parameters.and_then(|n| Measured::Value(words::compact(*n)))),
        ("Accuracy", "95 % interval", |s| {
            s.accuracy.and_then(|accuracy| {
                let interval = s.accuracy_ci95.value().map(|i| words::percent_interval(*i));
                Measured::Value(format!("{}\n{}", words::percent(*accuracy), interval.unwrap_or_default()))
            })
        }),
        ("Held-out loss", "nats per token", |s| shown(&s.nll_nats_per_token)),
        ("The same", "bits per byte", |s| shown(&s.bits_per_byte)),
        ("KL to the teacher", "nats per token", |s| shown(&s.kl_to_teacher)),
        ("Speed", "tokens per second, batched", |s| shown(&s.tokens_per_second)),
        ("Cost", "US$ per 1,000 right answers", |s| shown(&s.usd_per_1k_correct)),
        ("Energy", "joules per right answer", |s| shown(&s.joules_per_correct)),
        ("Training", "steps, tokens, time", |s| match &s.training {
            Some(t) => Measured::Value(format!(
                "{}\n{} tokens\n{}",
                words::thousands(t.steps),
                words::compact(t.tokens),
                words::duration(t.wall_s)
            )),
            None => Measured::not_measured("not trained in this run"),
        }),
    ]
}

fn figures(main: &mut Markup, report: &Report) {
    if report.models.is_empty() {
        return;
    }
    let under = format!("Losses are measured on {}.", report.heldout_text);
    section(main, "All figures", &under, |section| {
        let mut reasons: Vec<String> = Vec::new();
        section.nest("div", &[("class", &"scroll")], |scroll| {
            scroll.nest("table", &[("class", &"figures")], |table| {
                table.nest("thead", &[], |head| {
                    head.nest("tr", &[], |tr| {
                        tr.element("th", &[], "");
                        for (contender, score) in &report.models {
                            tr.nest("th", &[("scope", &"col")], |th| {
                                th.text(contender.label());
                                if score.model != contender.key() {
                                    th.element("span", &[("class", &"sub")], clipped(&score.model, 60));
                                }
                            });
                        }
                    });
                });
                table.nest("tbody", &[], |rows| {
                    for (name, unit, figure) in figure_rows() {
                        rows.nest("tr", &[], |tr| {
                            tr.nest("th", &[("scope", &"row")], |th| {
                                th.text(name);
                                if !unit.is_empty() {
                                    th.element("span", &[("class", &"sub")], unit);
                                }
                            });
                            for score in report.models.values() {
                                figure_cell(tr, figure(score), &mut reasons);
                            }
                        });
                    }
                });
            });
        });
        if !reasons.is_empty() {
            section.nest("ol", &[("class", &"notes")], |list| {
                for reason in &reasons {
                    list.nest("li", &[], |li| prose(li, &sentence(reason)));
                }
            });
        }
    });
}

fn figure_cell(tr: &mut Markup, figure: Measured<String>, reasons: &mut Vec<String>) {
    tr.nest("td", &[], |td| match figure {
        Measured::Value(shown) => {
            let mut lines = shown.lines();
            td.text(lines.next().unwrap_or_default());
            for line in lines {
                td.element("span", &[("class", &"sub")], line);
            }
        }
        Measured::NotMeasured(reason) => {
            let number = reasons.iter().position(|known| *known == reason).unwrap_or_else(|| {
                reasons.push(reason);
                reasons.len() - 1
            });
            td.text("–").element("sup", &[], number + 1);
        }
    });
}

/// A fragment as a sentence.
fn sentence(fragment: &str) -> String {
    let mut characters = fragment.chars();
    match characters.next() {
        Some(first) => format!("{}{}.", first.to_uppercase(), characters.as_str().trim_end_matches('.')),
        None => "No reason was recorded.".into(),
    }
}

fn clipped(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        None => text.to_string(),
        Some((end, _)) => format!("{}…", text[..end].trim_end()),
    }
}

fn samples(main: &mut Markup, report: &Report) {
    if report.examples.is_empty() {
        return;
    }
    let under = "The same held-out problems, as each model answered them. They were not chosen by outcome.";
    section(main, "Side by side", under, |section| {
        for sample in report.examples.iter().take(SAMPLES_MAX) {
            section.nest("article", &[], |article| sample_of(article, sample));
        }
    });
}

fn sample_of(article: &mut Markup, sample: &Sample) {
    article.element("p", &[("class", &"problem"), ("dir", &"auto")], long(&sample.problem));
    article.nest("p", &[("class", &"muted small")], |p| {
        p.element("code", &[], clipped(&sample.id, 80));
        if let Some(answer) = &sample.answer {
            p.text(" · right answer ").element("b", &[], clipped(answer, 200));
        }
    });
    article.nest("div", &[("class", &"replies")], |grid| {
        for (contender, reply) in &sample.replies {
            grid.nest("div", &[("class", &format_args!("reply {}", contender.key()))], |card| {
                reply_card(card, *contender, reply);
            });
        }
    });
}

fn reply_card(card: &mut Markup, contender: Contender, reply: &SampleReply) {
    card.nest("div", &[("class", &"head")], |head| {
        head.element("span", &[], contender.label());
        match reply.correct {
            Some(true) => head.element("span", &[("class", &"better")], "✓ right"),
            Some(false) => head.element("span", &[("class", &"worse")], "✗ wrong"),
            None => head.element("span", &[("class", &"muted")], "not graded"),
        };
    });
    let shown = if reply.text.trim().is_empty() { "(empty reply)".into() } else { long(&reply.text) };
    card.element("pre", &[("dir", &"auto")], shown);
}

/// A text of a model or a data set, up to a length.
fn long(text: &str) -> String {
    match text.char_indices().nth(SAMPLE_CHARS_MAX) {
        None => text.to_string(),
        Some((end, _)) => {
            format!("{}… ({} more bytes)", &text[..end], words::thousands((text.len() - end) as u64))
        }
    }
}

/// `name: value` lines under a small heading.
fn facts(grid: &mut Markup, heading: &str, rows: &[(String, String)]) {
    if rows.is_empty() {
        return;
    }
    grid.nest("div", &[], |block| {
        block.element("h3", &[], heading);
        block.nest("dl", &[], |list| {
            for (name, value) in rows.iter().take(ROWS_MAX) {
                list.element("dt", &[], name).element("dd", &[], value);
            }
        });
    });
}

fn row(name: &str, value: impl Into<String>) -> (String, String) {
    (name.to_string(), value.into())
}

fn data(main: &mut Markup, report: &Report) {
    let corpus = &report.corpus;
    let count = words::thousands;
    section(main, "Data", "", |section| {
        section.nest("div", &[("class", &"facts")], |grid| {
            let mut prompts = vec![
                row("Training prompts", count(corpus.train_prompts)),
                row("Validation prompts", count(corpus.validation_prompts)),
                row("Held-out prompts", count(report.heldout_examples)),
                row("Training examples dropped, also held out", count(corpus.heldout_overlaps)),
                row("Traces written by the teacher", count(corpus.traces_bought)),
                row("Traces kept", count(corpus.traces_kept)),
                row("… with reasoning", count(corpus.traces_with_reasoning)),
                row("Supervised tokens", count(corpus.supervised_tokens)),
            ];
            prompts.extend(corpus.teacher_usd.map(|usd| row("Paid to the teacher", format!("US$ {usd:.2}"))));
            facts(grid, "Prompts and traces", &prompts);
            let mut reasons: Vec<_> = corpus.rejected.iter().collect();
            reasons.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
            let rejected: Vec<_> =
                reasons.into_iter().map(|(reason, n)| (clipped(reason, 80), count(*n))).collect();
            facts(grid, "Traces rejected", &rejected);
            facts(grid, "Teacher's distributions", &cache_rows(report.cache.as_ref()));
            facts(grid, "Replies judged", &feedback_rows(corpus.feedback.as_ref()));
        });
    });
}

fn feedback_rows(feedback: Option<&FeedbackFacts>) -> Vec<(String, String)> {
    let Some(feedback) = feedback else { return Vec::new() };
    let mut rows = vec![
        row(
            "Replies, of prompts",
            format!("{}, of {}", words::thousands(feedback.judged), words::thousands(feedback.prompts)),
        ),
        row("Pairs to learn from", words::thousands(feedback.pairs)),
    ];
    rows.extend(feedback.mean_grade.map(|grade| row("Mean grade", format!("{grade:.3}"))));
    if let Some(RevisionFacts { revised, unchanged, right }) = feedback.revision {
        let said =
            format!("{}, of them unchanged {}", words::thousands(revised), words::thousands(unchanged));
        rows.push(row("Revised", said));
        rows.extend(right.map(|[before, after]| {
            let said = format!("{} before, {} after", words::thousands(before), words::thousands(after));
            row("Right to the verifier", said)
        }));
    }
    rows.extend(
        feedback
            .position_bias
            .map(|bias| row("Preference for what is read first", format!("{:+.1} points", 100.0 * bias))),
    );
    rows.extend(feedback.agreement.map(|agreement| {
        let Agreement { comparisons, share } = agreement;
        let share = format!("{:.1} % of {} comparisons", 100.0 * share, words::thousands(comparisons));
        row("Judge agrees with the verifier", share)
    }));
    rows
}

fn cache_rows(cache: Option<&CacheFacts>) -> Vec<(String, String)> {
    let Some(cache) = cache else { return Vec::new() };
    let mut rows = Vec::new();
    rows.extend(cache.draws.map(|n| row("Draws per position", words::thousands(u64::from(n)))));
    rows.extend(cache.top_k.map(|k| row("Likeliest ids per position", words::thousands(u64::from(k)))));
    if cache.top_k.is_some() {
        rows.push(row("Mass outside them", format!("{:?}", cache.tail).to_lowercase()));
    }
    rows.push(row("Temperature", words::significant(cache.temperature)));
    rows.push(row("Positions", words::thousands(cache.positions)));
    rows.push(row("Distinct ids per position", words::significant(cache.unique_ids_mean)));
    rows.push(row("Bytes per token", words::significant(cache.bytes_per_token)));
    rows.push(row("Bytes in all", words::bytes(cache.bytes)));
    rows
}

fn licence(main: &mut Markup, report: &Report) {
    let Some(decision) = &report.licence else { return };
    section(main, "Licence", "Decided before anything was sent, spent or trained.", |section| {
        decision_of(section, decision);
    });
}

fn decision_of(section: &mut Markup, decision: &LicenceDecision) {
    let class = match decision.verdict.as_str() {
        "allow" => "better",
        "deny" => "worse",
        _ => "no-claim",
    };
    section.nest("p", &[], |p| {
        p.element("span", &[("class", &format_args!("chip {class}"))], &decision.verdict);
        if let Some(egress) = &decision.egress {
            p.text(format_args!("  egress: {egress}"));
        }
        if !decision.accepted.is_empty() {
            p.text(format_args!("  accepted: {}", decision.accepted.join(", ")));
        }
    });
    if let Some(reason) = &decision.overridden {
        section.nest("div", &[("class", &"banner")], |banner| {
            banner.nest("p", &[], |p| {
                p.element("b", &[], "The licence gate was closed, and the recipe opened it.");
                p.text(format_args!(" Its reason: {reason}"));
            });
        });
    }
    for rule in decision.rules.iter().take(ROWS_MAX) {
        section.nest("div", &[("class", &"rule")], |block| {
            block.nest("p", &[], |p| {
                p.element("b", &[], &rule.release).text(" · ").text(&rule.licence);
                if let Some(clause) = &rule.clause {
                    p.text(format_args!(" · clause {clause}"));
                }
            });
            block.element("p", &[], &rule.says);
            if !rule.obliges.is_empty() {
                block.nest("ul", &[], |list| {
                    for duty in rule.obliges.iter().take(ROWS_MAX) {
                        list.element("li", &[], duty);
                    }
                });
            }
            if let Some(evidence) = &rule.evidence {
                block.element("p", &[("class", &"muted small")], format_args!("Evidence: {evidence}"));
            }
        });
    }
}

fn machine(main: &mut Markup, report: &Report) {
    let facts_of = &report.machine;
    section(main, "Machine and time", "", |section| {
        let longest = report.stages.iter().map(|stage| stage.wall_s).fold(0.0, f64::max);
        if longest > 0.0 && longest.is_finite() {
            let rows: Vec<Bar<'_>> = report
                .stages
                .iter()
                .take(ROWS_MAX)
                .map(|stage| Bar {
                    label: &stage.stage,
                    detail: String::new(),
                    class: "stage",
                    value: stage.wall_s,
                    interval: None,
                    shown: format!(
                        "{}{}",
                        words::duration(stage.wall_s),
                        if stage.skipped { "\u{202f}*" } else { "" }
                    ),
                    shown_interval: String::new(),
                })
                .collect();
            section.nest("div", &[("class", &"scroll")], |scroll| {
                scroll.element("h3", &[], "Wall-clock time of each stage");
                bars(scroll, "Wall-clock time of each stage", &rows, longest, &words::duration);
            });
            if report.stages.iter().any(|stage| stage.skipped) {
                let note = "* Its outputs were there already; the time is what they took then.";
                section.element("p", &[("class", &"muted small")], note);
            }
        }
        section.nest("div", &[("class", &"facts")], |grid| {
            let mut rows = vec![
                row("Processor", clipped(&facts_of.cpu, 80)),
                row("Threads used", format!("{} of {}", facts_of.threads, facts_of.logical_cores)),
                row("Kernels", clipped(&facts_of.kernels, 120)),
                row("System", clipped(&facts_of.os, 80)),
            ];
            rows.extend(facts_of.memory_bytes.map(|n| row("Memory", words::bytes(n))));
            rows.extend(facts_of.peak_resident_bytes.map(|n| row("Most memory held", words::bytes(n))));
            facts(grid, "Machine", &rows);
            let seeds: Vec<_> =
                report.seeds.iter().map(|(name, seed)| (clipped(name, 40), seed.to_string())).collect();
            facts(grid, "Seeds", &seeds);
            facts(grid, "Checks", &check_rows(report));
        });
    });
}

fn check_rows(report: &Report) -> Vec<(String, String)> {
    let checks = &report.checks;
    let passed = |passed: bool| if passed { "passed" } else { "failed" };
    let mut rows = vec![
        row("Every tensor changed", passed(checks.student_tensors_changed)),
        row("Tensors compared", words::thousands(checks.tensors.compared)),
    ];
    rows.extend(
        checks
            .tensors
            .smallest_relative_change
            .map(|change| row("Least relative change", words::significant(change))),
    );
    rows.push(row("Held-out loss fell", passed(checks.heldout_loss_fell)));
    rows.extend(checks.heldout_loss.drop.map(|drop| {
        let (value, interval) = words::difference(Metric::NllNatsPerToken, drop.value, drop.interval);
        row(&format!("Drop, {}", checks.heldout_loss.unit()), format!("{value} {interval}"))
    }));
    rows
}

fn digests(main: &mut Markup, report: &Report) {
    if report.digests.is_empty() {
        return;
    }
    let under = "SHA-256 of what went in and came out. `stillroom verify` recomputes them.";
    section(main, "Provenance", under, |section| {
        section.nest("div", &[("class", &"scroll")], |scroll| {
            scroll.nest("table", &[], |table| {
                table.nest("tbody", &[], |rows| {
                    for (name, digest) in report.digests.iter().take(ROWS_MAX) {
                        rows.nest("tr", &[], |tr| {
                            tr.element("th", &[("scope", &"row")], clipped(name, 60));
                            tr.nest("td", &[("class", &"left")], |td| {
                                td.element("code", &[], digest);
                            });
                        });
                    }
                });
            });
        });
    });
}

fn reading(main: &mut Markup, report: &Report) {
    section(main, "How to read this", "", |section| {
        let present = |contender| report.models.contains_key(&contender);
        section.element("p", &[], "Every figure comes from held-out examples that no training, tuning or choice of a checkpoint has seen. Intervals are two-sided at 95 %: Wilson's for a share, Tango's score interval for a difference of shares on the same problems, a t interval clustered by document for losses, a bootstrap over problems for the share of the teacher's accuracy. Where an interval of a difference holds zero, this page makes no claim.");
        if present(Contender::TracesOnly) {
            section.element("p", &[], "Traces only: the student's architecture, start, seed and steps, trained on the teacher's text with hard labels and none of its distributions. What the student gains over it is what the distributions add.");
        }
        if present(Contender::Undistilled) || present(Contender::UndistilledEqualTokens) {
            section.element("p", &[], "Undistilled: the same again, trained on the data set's own targets with nothing from the teacher. What the student gains over it came from the teacher.");
        }
        if present(Contender::Untrained) {
            section.element("p", &[], "Untrained: the student's initial weights.");
        }
    });
}

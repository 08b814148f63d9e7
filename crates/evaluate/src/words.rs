//! Numbers as people read them, and the verdict of a report in words.

use stillroom_core::statistics::Interval;

use crate::measurement::{Claim, Comparison, Metric};
use crate::report::{Contender, Report};

/// Narrow space between a number and its unit.
const UNIT_SPACE: char = '\u{202f}';

/// `96.2 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{}{UNIT_SPACE}%", signless_zero(share * 100.0, 1))
}

/// `[95.0, 97.1]`, without the unit.
pub(crate) fn percent_interval(interval: Interval) -> String {
    let end = |share: f64| signless_zero(share * 100.0, 1);
    format!("[{}, {}]", end(interval.low), end(interval.high))
}

/// A difference with its sign in the unit of its metric, and its interval: `+71.2`, `[68.3, 74.0]`.
pub(crate) fn difference(metric: Metric, value: f64, interval: Interval) -> (String, String) {
    let scale = scale(metric);
    // Enough digits that the interval has a width.
    let width = ((interval.high - interval.low) * scale).abs();
    let needed = if width > 0.0 { (-width.log10()).ceil().max(0.0) as usize } else { 0 };
    let decimals = needed.clamp(if metric == Metric::Accuracy { 1 } else { 3 }, 6);
    let end = |value: f64| typographic(&signless_zero(value * scale, decimals));
    let interval = format!("[{}, {}]", end(interval.low), end(interval.high));
    (signed(value * scale, decimals), interval)
}

pub(crate) fn unit(metric: Metric) -> &'static str {
    match metric {
        Metric::Accuracy => "points",
        Metric::KlToTeacher | Metric::NllNatsPerToken => "nats per token",
    }
}

/// From the stored value to the unit of [`unit`].
pub(crate) fn scale(metric: Metric) -> f64 {
    if metric == Metric::Accuracy { 100.0 } else { 1.0 }
}

/// `+1.5`, `−1.5`, `0.0`.
pub(crate) fn signed(value: f64, decimals: usize) -> String {
    let text = signless_zero(value, decimals);
    if text.starts_with('-') || !text.contains(|c: char| ('1'..='9').contains(&c)) {
        typographic(&text)
    } else {
        format!("+{text}")
    }
}

/// Rounded; what rounds to zero has no sign.
fn signless_zero(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    match text.strip_prefix('-') {
        Some(rest) if !rest.contains(|c: char| ('1'..='9').contains(&c)) => rest.to_string(),
        _ => text,
    }
}

fn typographic(text: &str) -> String {
    text.replace('-', "−")
}

/// `1,234,567`.
pub(crate) fn thousands(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Three significant digits with a unit: `3.42 M`, `135 M`, `412 k`, `7`.
pub(crate) fn compact(count: u64) -> String {
    let steps = [(1e9, "G"), (1e6, "M"), (1e3, "k")];
    match steps.iter().find(|(size, _)| count as f64 >= *size * 0.9995) {
        None => count.to_string(),
        Some((size, letter)) => format!("{}{UNIT_SPACE}{letter}", significant(count as f64 / size)),
    }
}

/// `3.42 MB`.
pub(crate) fn bytes(count: u64) -> String {
    let steps = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match steps.iter().find(|(size, _)| count as f64 >= *size * 0.9995) {
        None => format!("{count}{UNIT_SPACE}B"),
        Some((size, unit)) => format!("{}{UNIT_SPACE}{unit}", significant(count as f64 / size)),
    }
}

/// Three significant digits, without an exponent where that stays short.
pub(crate) fn significant(value: f64) -> String {
    let magnitude = value.abs();
    let text = match magnitude {
        0.0 => "0".to_string(),
        _ if !(1e-4..1e15).contains(&magnitude) => format!("{value:.2e}"),
        m if m >= 99.95 => {
            let whole = thousands(magnitude.round() as u64);
            if value < 0.0 { format!("-{whole}") } else { whole }
        }
        m if m >= 9.995 => format!("{value:.1}"),
        m if m >= 0.9995 => format!("{value:.2}"),
        m if m >= 0.099_95 => format!("{value:.3}"),
        m if m >= 0.009_995 => format!("{value:.4}"),
        _ => format!("{value:.5}"),
    };
    typographic(&text)
}

/// `0.8 s`, `48 s`, `4 min 05 s`, `2 h 10 min`.
pub(crate) fn duration(seconds: f64) -> String {
    let whole = seconds.round().max(0.0) as u64;
    match whole {
        _ if seconds < 9.95 => format!("{seconds:.1}{UNIT_SPACE}s"),
        0..60 => format!("{whole}{UNIT_SPACE}s"),
        60..3_600 => format!("{}{UNIT_SPACE}min {:02}{UNIT_SPACE}s", whole / 60, whole % 60),
        _ => format!("{}{UNIT_SPACE}h {:02}{UNIT_SPACE}min", whole / 3_600, whole % 3_600 / 60),
    }
}

/// What a run shows, in words.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// One sentence.
    pub headline: String,
    /// One statement for each comparison that the report makes, claims and missing claims alike.
    pub statements: Vec<Statement>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    pub claim: Claim,
    pub text: String,
}

impl Report {
    /// The verdict in words. It claims nothing that a paired interval does not.
    pub fn verdict(&self) -> Verdict {
        Verdict { headline: headline(self), statements: statements(self) }
    }
}

fn headline(report: &Report) -> String {
    let words = if report.checks.passed() { shown(report) } else { failed_checks(report) };
    if report.trial { format!("Trial, not a result: {}", lower_first(&words)) } else { words }
}

fn lower_first(text: &str) -> String {
    let mut characters = text.chars();
    characters
        .next()
        .map_or_else(String::new, |first| format!("{}{}", first.to_lowercase(), characters.as_str()))
}

/// What a run whose checks passed has shown.
fn shown(report: &Report) -> String {
    let size = size_phrase(report);
    let opening = match (report.accuracy_retained, student_kl(report)) {
        (Some(retained), _) => {
            format!("The student reaches {} of the teacher's accuracy{size}", percent(retained.value))
        }
        (None, Some(kl)) => format!(
            "On held-out text the student is {} nats per token away from its teacher{size}",
            significant(kl)
        ),
        (None, None) => {
            "The student was trained, and nothing was measured that compares it with the teacher".into()
        }
    };
    match lead_comparison(report) {
        None => format!("{opening}."),
        Some((control, metric, comparison)) => {
            format!("{opening}; {}.", lead_phrase(report, control, metric, comparison))
        }
    }
}

fn failed_checks(report: &Report) -> String {
    match (report.checks.student_tensors_changed, report.checks.heldout_loss_fell) {
        (false, false) => "This run failed both checks: tensors of the student did not change, and its held-out loss did not fall.",
        (false, true) => "This run failed a check: tensors of the student did not change.",
        _ => "This run failed a check: the student's held-out loss did not fall.",
    }
    .into()
}

/// How many parameters a model has, for a line.
pub(crate) fn size(parameters: &crate::Measured<u64>) -> String {
    parameters.value().map_or_else(|| "unknown".to_owned(), |&n| compact(n))
}

/// ` with 1/8 of its parameters`, or nothing where the sizes are not known.
fn size_phrase(report: &Report) -> String {
    let parameters = |contender| {
        report.models.get(&contender).and_then(|score| score.parameters.value().map(|&n| n as f64))
    };
    let (Some(teacher), Some(student)) = (parameters(Contender::Teacher), parameters(Contender::Student))
    else {
        return String::new();
    };
    if teacher <= 0.0 || student <= 0.0 {
        return String::new();
    }
    let ratio = teacher / student;
    let whole = ratio.round();
    if whole >= 2.0 && (ratio / whole - 1.0).abs() < 0.02 {
        format!(" with 1/{whole:.0} of its parameters")
    } else if student < teacher {
        format!(" with {} of its parameters", percent(student / teacher))
    } else {
        " without being smaller".into()
    }
}

fn student_kl(report: &Report) -> Option<f64> {
    report.models.get(&Contender::Student)?.kl_to_teacher.value().copied()
}

/// The comparison that a reader wants to know first.
fn lead_comparison(report: &Report) -> Option<(Contender, Metric, &Comparison)> {
    let wanted = [
        (Contender::Undistilled, Metric::Accuracy),
        (Contender::TracesOnly, Metric::Accuracy),
        (Contender::TracesOnly, Metric::KlToTeacher),
        (Contender::Untrained, Metric::KlToTeacher),
        (Contender::Untrained, Metric::NllNatsPerToken),
    ];
    wanted.into_iter().find_map(|(control, metric)| {
        let comparison = report.comparison(Contender::Student, control, metric)?;
        Some((control, metric, comparison))
    })
}

fn lead_phrase(report: &Report, control: Contender, metric: Metric, comparison: &Comparison) -> String {
    let over = match control {
        Contender::Untrained => "its initial weights".to_string(),
        other => {
            format!("the {} control", other.label().to_lowercase().replace("traces only", "traces-only"))
        }
    };
    let (value, interval) = difference(metric, comparison.difference, comparison.ci95);
    let what = match metric {
        // The sentence has named the unit already.
        Metric::KlToTeacher => format!("{value} {interval}"),
        _ => format!("{value} {} {interval}", unit(metric)),
    };
    let taught_reasoning = control == Contender::Undistilled
        && report.corpus.traces_with_reasoning > 0
        && metric == Metric::Accuracy;
    match (comparison.claim, metric) {
        (Claim::Better, _) if taught_reasoning => format!("reasoning moved: {what} over {over}"),
        (Claim::Better, Metric::KlToTeacher) => format!("closer than {over}: {what}"),
        (Claim::Better, _) => format!("it gains on {over}: {what}"),
        (Claim::Worse, Metric::KlToTeacher) => format!("farther than {over}: {what}"),
        (Claim::Worse, _) => format!("it falls behind {over}: {what}"),
        (Claim::NoClaim, _) => format!("no claim of a gain over {over}: {what}"),
    }
}

fn statements(report: &Report) -> Vec<Statement> {
    let all = report.paired.iter().flat_map(|(pair, metrics)| {
        metrics.iter().map(move |(metric, comparison)| {
            let (value, interval) = difference(*metric, comparison.difference, comparison.ci95);
            let text = format!(
                "{} against {}, {}: {value} {} {interval}, {}",
                pair.first.label(),
                pair.second.label().to_lowercase(),
                metric_name(*metric),
                unit(*metric),
                claim_word(comparison.claim),
            );
            Statement { claim: comparison.claim, text }
        })
    });
    all.collect()
}

pub(crate) fn metric_name(metric: Metric) -> &'static str {
    match metric {
        Metric::Accuracy => "accuracy",
        Metric::KlToTeacher => "KL to the teacher",
        Metric::NllNatsPerToken => "held-out loss",
    }
}

pub(crate) fn claim_word(claim: Claim) -> &'static str {
    match claim {
        Claim::Better => "better",
        Claim::Worse => "worse",
        Claim::NoClaim => "no claim",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_show_the_width_of_their_interval() {
        let shown = |metric, low, value, high| difference(metric, value, Interval { low, high });
        assert_eq!(shown(Metric::Accuracy, -0.012, 0.0041, 0.02), ("+0.4".into(), "[−1.2, 2.0]".into()));
        let narrow = shown(Metric::KlToTeacher, -0.015_3, -0.015_1, -0.014_9);
        assert_eq!(narrow, ("−0.0151".into(), "[−0.0153, −0.0149]".into()));
        assert_eq!(shown(Metric::KlToTeacher, 0.0, 0.0, 0.0), ("0.000".into(), "[0.000, 0.000]".into()));
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(percent(0.96249), "96.2\u{202f}%");
        assert_eq!(signed(-0.04, 1), "0.0");
        assert_eq!(signed(0.04, 1), "0.0");
        assert_eq!((signed(71.24, 1), signed(-3.0, 1)), ("+71.2".into(), "−3.0".into()));
        assert_eq!((thousands(999), thousands(1_234_567)), ("999".into(), "1,234,567".into()));
        assert_eq!((compact(412_160), compact(999_999)), ("412\u{202f}k".into(), "1.00\u{202f}M".into()));
        assert_eq!((bytes(12), bytes(8_212_000)), ("12\u{202f}B".into(), "8.21\u{202f}MB".into()));
        let shown = [0.0, 0.05123, 1.0, 9.999, 1234.5, 1e-9, -2.5].map(significant);
        assert_eq!(shown, ["0", "0.0512", "1.00", "10.0", "1,235", "1.00e−9", "−2.50"]);
        let lasted = [0.84, 48.2, 59.9, 245.0, 7_800.0].map(duration).map(|d| d.replace('\u{202f}', " "));
        assert_eq!(lasted, ["0.8 s", "48 s", "1 min 00 s", "4 min 05 s", "2 h 10 min"]);
    }
}

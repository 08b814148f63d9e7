//! Writes an experiment down: `docs/experiments/NAME.json`, its charts, and its tables in `docs/experiments.md`.

use std::fmt::Write;
use std::fs;

use serde::Serialize;
use serde_json::Value;

use super::compare::{Difference, compare, level};
use super::description::{Description, Quantity};
use super::fidelity::{Fidelity, Samples};
use super::plot::{Line, chart};
use super::runs::{Cache, Outcome, Point};
use super::timing::{Speed, Timing};
use crate::{root, say};

/// All that a table or a chart shows.
#[derive(Serialize)]
struct Record<'a> {
    experiment: &'a str,
    title: &'a str,
    commit: String,
    seeds: &'a [u64],
    held_out_documents: usize,
    held_out_tokens: u64,
    teacher_loss: f64,
    /// Of student and teacher.
    parameters: [u64; 2],
    variants: Vec<Summary<'a>>,
    differences: Vec<Difference>,
    /// Between gradients, by student; see the example `fidelity`.
    angles: serde_json::Map<String, Value>,
}

/// A variant, over its seeds.
#[derive(Serialize)]
struct Summary<'a> {
    name: &'a str,
    label: &'a str,
    set: &'a [String],
    tokens: u64,
    best_steps: Vec<Option<u64>>,
    /// Held-out nats per token.
    loss: f64,
    loss_by_seed: Vec<f64>,
    kl_to_teacher: f64,
    kl_to_teacher_by_seed: Vec<f64>,
    /// Share of right answers.
    accuracy_by_seed: Vec<f64>,
    cache: Option<Cache>,
    /// Measured apart, on one machine.
    speed: Option<Speed>,
    /// Cache and training at that speed.
    seconds: Option<f64>,
    /// KL(student‖teacher) by quarter of what the student writes, first to last, and by seed.
    own_reverse_kl_by_quarter: Vec<[f64; 4]>,
    /// What the student writes.
    samples: Option<Samples>,
    validation_by_seed: Vec<&'a [Point]>,
}

impl<'a> Summary<'a> {
    fn of(
        name: &'a str,
        description: &'a Description,
        outcomes: &'a [Outcome],
        timing: &Timing,
        samples: Option<Samples>,
    ) -> Option<Summary<'a>> {
        let own: Vec<&Outcome> = outcomes.iter().filter(|o| o.variant == name).collect();
        let first = own.first()?;
        let levels = |of: Quantity| own.iter().map(|o| level(&o.documents(of))).collect::<Vec<f64>>();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let (loss, kl) = (levels(Quantity::Loss), levels(Quantity::KlToTeacher));
        let speed = timing.get(name).copied();
        let variant = &description.variants[name];
        Some(Summary {
            name,
            label: &variant.label,
            set: &variant.set,
            tokens: first.tokens,
            best_steps: own.iter().map(|o| o.best_step).collect(),
            loss: mean(&loss),
            loss_by_seed: loss,
            kl_to_teacher: mean(&kl),
            kl_to_teacher_by_seed: kl,
            accuracy_by_seed: levels(Quantity::Accuracy)
                .into_iter()
                .filter(|share| share.is_finite())
                .collect(),
            cache: first.cache,
            speed,
            seconds: speed.map(|speed| first.cache_s(speed) + first.tokens as f64 / speed.tokens_per_second),
            own_reverse_kl_by_quarter: own.iter().filter_map(|o| o.own_reverse_kl_by_quarter()).collect(),
            samples,
            validation_by_seed: own.iter().map(|o| &o.validation[..]).collect(),
        })
    }

    /// The validation curves of the seeds over what `x` makes of tokens.
    fn line(&self, x: impl Fn(u64) -> f64) -> Line {
        let curve = |points: &&[Point]| points.iter().map(|p| (x(p.tokens), p.loss)).collect();
        Line { label: self.label.to_owned(), seeds: self.validation_by_seed.iter().map(curve).collect() }
    }
}

impl Outcome {
    /// Seconds that the cache takes before the first step.
    fn cache_s(&self, speed: Speed) -> f64 {
        self.cache.map_or(0.0, |cache| cache.positions as f64 * speed.cache_s_per_position)
    }
}

pub(super) fn write(
    name: &str,
    description: &Description,
    outcomes: &[Outcome],
    timing: &Timing,
    fidelity: &Fidelity<'_>,
) -> Result<(), String> {
    let experiment = &description.experiments[name];
    let seeds = description.seeds_of(experiment);
    let outcomes: Vec<Outcome> = outcomes.iter().filter(|o| seeds.contains(&o.seed)).cloned().collect();
    let mut summaries = Vec::new();
    for variant in &experiment.variants {
        let samples = fidelity.samples(experiment, &outcomes, variant)?;
        summaries.extend(Summary::of(variant, description, &outcomes, timing, samples));
    }
    let differences: Vec<Difference> =
        experiment.compare.iter().map(|c| compare(c, &outcomes)).collect::<Result<_, _>>()?;
    let any = outcomes.first().ok_or("nothing was run")?;
    let folder = root().join("docs/experiments");
    let put = |file: String, text: String| {
        let path = folder.join(file);
        fs::create_dir_all(&folder)
            .and_then(|()| fs::write(&path, text))
            .map_err(|e| format!("{}: {e}", path.display()))
    };
    let lines: Vec<Line> = summaries.iter().map(|s| s.line(|tokens| tokens as f64)).collect();
    let title = format!("{}: validation loss, nats per token", experiment.title);
    put(format!("{name}-tokens.svg"), chart(&title, "tokens trained on", &lines))?;
    if summaries.iter().all(|s| s.speed.is_some()) {
        let timed = summaries.iter().filter_map(|s| {
            let (speed, cached) = (s.speed?, s.cache.map_or(0.0, |c| c.positions as f64));
            let before = cached * speed.cache_s_per_position;
            Some(s.line(move |tokens| before + tokens as f64 / speed.tokens_per_second))
        });
        let lines: Vec<Line> = timed.collect();
        put(format!("{name}-seconds.svg"), chart(&title, "seconds, the teacher's cache included", &lines))?;
    }
    let angles = fidelity.angles(experiment, &outcomes)?;
    let table = tables(&summaries, &differences)
        + &of_answers(&summaries)
        + &of_own_text(&summaries)
        + &of_samples(&summaries)
        + &of_angles(&angles);
    let record = Record {
        experiment: name,
        title: &experiment.title,
        commit: super::commit(),
        seeds,
        held_out_documents: any.losses.len(),
        held_out_tokens: any.losses.iter().map(|d| d.tokens).sum(),
        teacher_loss: level(&any.teacher_losses),
        parameters: any.parameters,
        variants: summaries,
        differences,
        angles,
    };
    let json = serde_json::to_string_pretty(&record).expect("a record is plain data");
    put(format!("{name}.json"), json + "\n")?;
    say(&table);
    insert(name, &table)
}

fn tables(summaries: &[Summary<'_>], differences: &[Difference]) -> String {
    let mut text = String::from(
        "| variant | tokens | held-out loss, by seed | KL to the teacher | bytes per cached token | ids | seconds |\n\
         |---|---|---|---|---|---|---|\n",
    );
    let dash = || "–".to_owned();
    for s in summaries {
        let by_seed: Vec<String> = s.loss_by_seed.iter().map(|l| format!("{l:.4}")).collect();
        let bytes = s.cache.map_or_else(dash, |c| format!("{:.1}", c.bytes_per_token));
        let ids = s.cache.map_or_else(dash, |c| format!("{:.1}", c.unique_ids_mean));
        let kl = if s.kl_to_teacher.is_finite() { format!("{:.4}", s.kl_to_teacher) } else { dash() };
        let seconds = s.seconds.map_or_else(dash, |s| format!("{s:.0}"));
        writeln!(
            text,
            "| {} | {} | **{:.4}** ({}) | {kl} | {bytes} | {ids} | {seconds} |",
            s.label,
            s.tokens,
            s.loss,
            by_seed.join(", "),
        )
        .expect("a string grows");
    }
    text.push_str(
        "\n| difference, nats per held-out token | mean | 95 %, t over seeds | 95 %, bootstrap over seeds and documents \
         | expected | |\n|---|---|---|---|---|---|\n",
    );
    let label = |name: &str| summaries.iter().find(|s| s.name == name).map_or("", |s| s.label);
    for d in differences {
        let shown = |value: f64| match d.relative {
            true => format!("{:+.1} %", 100.0 * value),
            false => format!("{value:+.4}"),
        };
        let interval = |i: Option<stillroom_core::statistics::Interval>| {
            i.map_or_else(dash, |i| format!("[{}, {}]", shown(i.low), shown(i.high)))
        };
        let of = d.of.in_words();
        let bound = |value: f64| if d.relative { format!("{} %", 100.0 * value) } else { value.to_string() };
        let expected = match d.expected {
            [None, Some(high)] => format!("≤ {}", bound(high)),
            [Some(low), None] => format!("≥ {}", bound(low)),
            [low, high] => {
                format!("{} to {}", low.unwrap_or(f64::NEG_INFINITY), high.unwrap_or(f64::INFINITY))
            }
        };
        writeln!(
            text,
            "| {} − {}{of} | {} | {} | {} | {expected} | {} |",
            label(&d.a),
            label(&d.b),
            shown(d.value),
            interval(d.interval_over_seeds),
            interval(d.interval_over_both),
            if d.as_expected { "as expected" } else { "**not shown**" },
        )
        .expect("a string grows");
    }
    text
}

/// How often students are right, where they answer.
fn of_answers(summaries: &[Summary<'_>]) -> String {
    let mut text = String::new();
    for s in summaries.iter().filter(|s| !s.accuracy_by_seed.is_empty()) {
        if text.is_empty() {
            text.push_str("\n| right answers | mean | by seed |\n|---|---|---|\n");
        }
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let mean = s.accuracy_by_seed.iter().sum::<f64>() / s.accuracy_by_seed.len() as f64;
        let by_seed: Vec<String> = s.accuracy_by_seed.iter().map(|&share| percent(share)).collect();
        writeln!(text, "| {} | **{}** | {} |", s.label, percent(mean), by_seed.join(", "))
            .expect("a string grows");
    }
    text
}

/// How far students are from their teacher on what they write themselves, where it was measured.
fn of_own_text(summaries: &[Summary<'_>]) -> String {
    let mut text = String::new();
    for s in summaries {
        if s.own_reverse_kl_by_quarter.is_empty() {
            continue;
        }
        if text.is_empty() {
            text.push_str(
                "\n| KL(student‖teacher) on own text, nats per token, by quarter | first | second | third | last, by seed |\n\
                 |---|---|---|---|---|\n",
            );
        }
        let n = s.own_reverse_kl_by_quarter.len() as f64;
        let mean = |quarter: usize| s.own_reverse_kl_by_quarter.iter().map(|q| q[quarter]).sum::<f64>() / n;
        let last: Vec<String> = s.own_reverse_kl_by_quarter.iter().map(|q| format!("{:.3}", q[3])).collect();
        writeln!(
            text,
            "| {} | {:.3} | {:.3} | {:.3} | **{:.3}** ({}) |",
            s.label,
            mean(0),
            mean(1),
            mean(2),
            mean(3),
            last.join(", ")
        )
        .expect("a string grows");
    }
    text
}

/// What the students write, where it was measured.
fn of_samples(summaries: &[Summary<'_>]) -> String {
    let mut text = String::new();
    for s in summaries {
        let Some(samples) = &s.samples else { continue };
        if text.is_empty() {
            text.push_str(
                "\n| what the student writes | nats per token under the teacher, by seed | under itself: its entropy |\n\
                 |---|---|---|\n",
            );
        }
        let shown = |nats: &[f64]| {
            let by_seed: Vec<String> = nats.iter().map(|n| format!("{n:.3}")).collect();
            format!("**{:.3}** ({})", nats.iter().sum::<f64>() / nats.len() as f64, by_seed.join(", "))
        };
        let row = [s.label, &shown(&samples.teacher_nats), &shown(&samples.student_nats)].join(" | ");
        writeln!(text, "| {row} |").expect("a string grows");
    }
    text
}

/// Angles of gradients, where they were measured: a column for each student.
fn of_angles(angles: &serde_json::Map<String, Value>) -> String {
    let of = |student: &Value| student["to_whole_distributions"].as_object().cloned().unwrap_or_default();
    let Some((_, first)) = angles.iter().next() else { return String::new() };
    let students: Vec<String> = angles.keys().map(|name| format!("`{name}`")).collect();
    let mut text = format!(
        "\n| gradient of {} tokens, in degrees from that of whole distributions; student: | {} |\n|---|{}\n",
        first["tokens"],
        students.join(" | "),
        "---|".repeat(students.len())
    );
    for kept in of(first).keys() {
        let degrees = angles.values().map(|student| of(student)[kept]["degrees"].as_f64());
        let cells: Vec<String> = degrees.map(|d| format!("{:.2}", d.unwrap_or(f64::NAN))).collect();
        writeln!(text, "| `{kept}` | {} |", cells.join(" | ")).expect("a string grows");
    }
    text
}

/// Puts the tables between the page's marks of this experiment.
fn insert(name: &str, table: &str) -> Result<(), String> {
    let path = root().join("docs/experiments.md");
    let page = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let page =
        between(&page, name, table).ok_or_else(|| format!("docs/experiments.md has no mark of `{name}`"))?;
    fs::write(&path, page).map_err(|e| format!("{}: {e}", path.display()))
}

/// `page` with `table` between `<!-- NAME -->` and `<!-- end of NAME -->`.
fn between(page: &str, name: &str, table: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
    let (before, rest) = page.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}\n{table}\n{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let page = "a\n<!-- e1 -->\nold\n<!-- end of e1 -->\nb\n";
        let new = between(page, "e1", "| new |\n").unwrap();
        assert_eq!(new, "a\n<!-- e1 -->\n\n| new |\n\n<!-- end of e1 -->\nb\n");
        assert_eq!(between(&new, "e1", "| new |\n").unwrap(), new);
        assert_eq!(between(page, "e2", ""), None);
    }
}

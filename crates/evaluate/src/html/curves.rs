//! Loss curves, one panel for each training run.

use std::collections::BTreeMap;

use super::charts::{Px, Scale, svg, text, ticks, vertical};
use super::markup::Markup;
use crate::report::{Curve, CurvePoint};
use crate::words::{compact, significant, thousands};

const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 236.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 40.0;

/// Points drawn of one line; more are averaged in runs.
const POINTS_MAX: usize = 240;

pub(super) fn panels(markup: &mut Markup, curves: &[Curve]) {
    markup.nest("p", &[("class", &"legend")], |p| {
        p.literal("<span class=\"key train\"></span>training ");
        p.literal("<span class=\"key validation\"></span>validation ");
        p.literal("<span class=\"key kept\"></span>step that was kept");
    });
    markup.nest("div", &[("class", &"panels")], |grid| {
        for curve in curves.iter().filter(|curve| !curve.points.is_empty()) {
            grid.nest("figure", &[("class", &curve.model.key())], |figure| {
                figure.nest("figcaption", &[], |caption| {
                    caption.element("b", &[], curve.model.label());
                    caption.text(" ").element("span", &[("class", &"muted")], &curve.loss);
                });
                panel(figure, curve);
                terms(figure, curve);
            });
        }
    });
}

/// Each loss of a weighted sum apart, from its first point to its last: of validation, else of training.
fn terms(figure: &mut Markup, curve: &Curve) {
    let of = |terms: fn(&CurvePoint) -> &BTreeMap<String, f64>| {
        let mut points = curve.points.iter().map(terms).filter(|terms| !terms.is_empty());
        let first = points.next()?;
        Some((first, points.next_back().unwrap_or(first)))
    };
    let validation = of(|point| &point.validation_terms).map(|ends| ("validation", ends));
    let training = || of(|point| &point.train_terms).map(|ends| ("training", ends));
    let Some((on, (first, last))) = validation.or_else(training) else { return };
    let term = |(name, end): (&String, &f64)| match first.get(name) {
        Some(start) => format!("{name} {} → {}", significant(*start), significant(*end)),
        None => format!("{name} {}", significant(*end)),
    };
    let all: Vec<String> = last.iter().map(term).collect();
    figure.nest("p", &[("class", &"muted")], |p| {
        p.text(format_args!("Unweighted, in {on}: {}", all.join(", ")));
    });
}

fn panel(markup: &mut Markup, curve: &Curve) {
    let train = line(&curve.points, |point| point.train_loss);
    let validation = line(&curve.points, |point| point.validation_loss);
    let last_step = curve.points.iter().map(|point| point.step).max().unwrap_or(1).max(1);
    let all = || train.iter().chain(&validation).map(|(_, loss)| *loss);
    let (low, high) = (all().fold(0.0, f64::min), all().fold(0.0, f64::max));
    let (losses, decimals) = ticks(low, if high > low { high } else { low + 1.0 }, 4);
    let x = Scale { from: 0.0, to: last_step as f64, pixel_from: LEFT, pixel_to: WIDTH - RIGHT };
    let y =
        Scale { from: losses[0], to: losses[losses.len() - 1], pixel_from: HEIGHT - BOTTOM, pixel_to: TOP };
    let title = format!("Loss of {} over {} steps", curve.model.label(), thousands(last_step));
    svg(markup, WIDTH, HEIGHT, &title, |svg| {
        for loss in &losses {
            let at = y.at(*loss);
            svg.empty(
                "line",
                &[
                    ("class", &"grid"),
                    ("x1", &Px(LEFT)),
                    ("x2", &Px(WIDTH - RIGHT)),
                    ("y1", &at),
                    ("y2", &at),
                ],
            );
            text(svg, "tick end", Px(LEFT - 8.0), at.0 + 4.0, format_args!("{loss:.decimals$}"));
        }
        let (steps, _) = ticks(0.0, last_step as f64, 4);
        for step in steps.into_iter().filter(|step| *step <= last_step as f64) {
            text(svg, "tick middle", x.at(step), HEIGHT - BOTTOM + 18.0, compact(step as u64));
        }
        text(svg, "tick end", Px(WIDTH - RIGHT), HEIGHT - 4.0, "step");
        if let Some(best) = curve.best_step {
            vertical(svg, "kept", x.at(best as f64), TOP, HEIGHT - BOTTOM);
        }
        polyline(svg, "train", &x, &y, &train);
        polyline(svg, "validation", &x, &y, &validation);
        if let Some((step, loss)) = validation.last().or(train.last()) {
            svg.empty(
                "circle",
                &[("class", &"dot"), ("cx", &x.at(*step)), ("cy", &y.at(*loss)), ("r", &3.5)],
            );
            text(svg, "figure end", Px(WIDTH - RIGHT), y.at(*loss).0 - 9.0, significant(*loss));
        }
    });
}

/// The finite points of one loss; long lines averaged in runs of equal length.
fn line(points: &[CurvePoint], loss: impl Fn(&CurvePoint) -> Option<f64>) -> Vec<(f64, f64)> {
    let all: Vec<(f64, f64)> = points
        .iter()
        .filter_map(|point| Some((point.step as f64, loss(point).filter(|loss| loss.is_finite())?)))
        .collect();
    let run = all.len().div_ceil(POINTS_MAX).max(1);
    let average = |run: &[(f64, f64)]| {
        let n = run.len() as f64;
        (run.iter().map(|p| p.0).sum::<f64>() / n, run.iter().map(|p| p.1).sum::<f64>() / n)
    };
    all.chunks(run).map(average).collect()
}

fn polyline(svg: &mut Markup, class: &str, x: &Scale, y: &Scale, points: &[(f64, f64)]) {
    if points.len() > 1 {
        let drawn: Vec<String> =
            points.iter().map(|(step, loss)| format!("{},{}", x.at(*step), y.at(*loss))).collect();
        svg.empty("polyline", &[("class", &format_args!("curve {class}")), ("points", &drawn.join(" "))]);
    }
}

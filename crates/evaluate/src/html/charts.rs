//! Bars and forest plots, drawn as SVG. Coordinates are in the units of the view box.

use std::fmt::Display;

use stillroom_core::statistics::Interval;

use super::markup::Markup;

/// Two decimals are a hundredth of a pixel.
pub(super) struct Px(pub f64);

impl Display for Px {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rounded = (self.0 * 100.0).round() / 100.0;
        write!(f, "{}", if rounded == 0.0 { 0.0 } else { rounded })
    }
}

/// A linear scale from data to pixels.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) pixel_from: f64,
    pub(super) pixel_to: f64,
}

impl Scale {
    pub(super) fn at(&self, value: f64) -> Px {
        let share = (value - self.from) / (self.to - self.from);
        Px(self.pixel_from + share.clamp(0.0, 1.0) * (self.pixel_to - self.pixel_from))
    }
}

/// Round numbers that span the values, about `wanted` steps of 1, 2 or 5 · 10ⁿ.
pub(super) fn ticks(low: f64, high: f64, wanted: usize) -> (Vec<f64>, usize) {
    let span = if high > low { high - low } else { 1.0 };
    let rough = span / wanted as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = power * [1.0, 2.0, 5.0, 10.0].into_iter().find(|m| m * power >= rough * 0.999).unwrap_or(10.0);
    let first = (low / step + 1e-9).floor();
    let last = (high / step - 1e-9).ceil().max(first + 1.0);
    let decimals = (-(step.log10() + 1e-9).floor()).clamp(0.0, 6.0) as usize;
    let count = ((last - first).round() as usize).min(TICKS_MAX);
    ((0..=count).map(|i| (first + i as f64) * step).collect(), decimals)
}

const TICKS_MAX: usize = 40;

/// A bar with its interval.
pub(super) struct Bar<'a> {
    pub(super) label: &'a str,
    pub(super) detail: String,
    /// Class that colours it.
    pub(super) class: &'a str,
    pub(super) value: f64,
    pub(super) interval: Option<Interval>,
    pub(super) shown: String,
    pub(super) shown_interval: String,
}

const WIDTH: f64 = 760.0;
const LABELS: f64 = 204.0;
const ROW: f64 = 46.0;
/// Height of a row of one line.
const ROW_SINGLE: f64 = 31.0;
const AXIS: f64 = 30.0;

/// Horizontal bars from 0 to `end`, labels left, figures right.
pub(super) fn bars(
    markup: &mut Markup,
    title: &str,
    bars: &[Bar<'_>],
    end: f64,
    tick: &dyn Fn(f64) -> String,
) {
    let single = bars.iter().all(|bar| bar.detail.is_empty() && bar.shown_interval.is_empty());
    let row = if single { ROW_SINGLE } else { ROW };
    let height = row * bars.len() as f64 + AXIS;
    let scale = Scale { from: 0.0, to: end, pixel_from: LABELS, pixel_to: WIDTH - 128.0 };
    svg(markup, WIDTH, height, title, |svg| {
        let (values, _) = ticks(0.0, end, 5);
        for value in values.into_iter().filter(|value| *value <= end * 1.000_001) {
            vertical(svg, "grid", scale.at(value), 4.0, height - AXIS + 2.0);
            text(svg, "tick middle", scale.at(value), height - 10.0, tick(value));
        }
        for (i, bar) in bars.iter().enumerate() {
            let middle = row * (i as f64 + 0.5);
            row_labels(svg, middle, bar.label, &bar.detail);
            let (start, stop) = (scale.at(0.0), scale.at(bar.value));
            svg.empty(
                "rect",
                &[
                    ("class", &format_args!("bar {}", bar.class)),
                    ("x", &start),
                    ("y", &Px(middle - 10.0)),
                    ("width", &Px((stop.0 - start.0).max(1.0))),
                    ("height", &20),
                    ("rx", &2),
                ],
            );
            if let Some(interval) = bar.interval {
                whisker(svg, WHISKER, &scale, interval, middle);
            }
            let figures = Px(WIDTH - 112.0);
            text(
                svg,
                "figure",
                figures,
                middle + if bar.shown_interval.is_empty() { 5.0 } else { -2.0 },
                &bar.shown,
            );
            text(svg, "tick", Px(WIDTH - 112.0), middle + 14.0, &bar.shown_interval);
        }
    });
}

/// One paired difference.
pub(super) struct ForestRow<'a> {
    pub(super) label: String,
    pub(super) detail: String,
    /// Class that colours it.
    pub(super) class: &'a str,
    pub(super) value: f64,
    pub(super) interval: Interval,
    pub(super) shown: String,
    pub(super) verdict: String,
}

/// Differences with their intervals around a line at zero.
pub(super) fn forest(markup: &mut Markup, title: &str, rows: &[ForestRow<'_>], sides: [&str; 2]) {
    let top = 24.0;
    let height = top + ROW * rows.len() as f64 + AXIS;
    let low = rows.iter().map(|row| row.interval.low.min(row.value)).fold(0.0, f64::min);
    let high = rows.iter().map(|row| row.interval.high.max(row.value)).fold(0.0, f64::max);
    let margin = (high - low).max(1e-12) * 0.04;
    let (values, decimals) = ticks(low - margin, high + margin, 6);
    let (from, to) = (values[0], values[values.len() - 1]);
    let right = WIDTH - 214.0;
    let scale = Scale { from, to, pixel_from: LABELS, pixel_to: right };
    svg(markup, WIDTH, height, title, |svg| {
        for value in &values {
            vertical(svg, "grid", scale.at(*value), top, height - AXIS + 2.0);
            let shown = crate::words::signed(*value, decimals);
            text(svg, "tick middle", scale.at(*value), height - 10.0, shown);
        }
        let zero = scale.at(0.0);
        vertical(svg, "zero", scale.at(0.0), top - 6.0, height - AXIS + 2.0);
        if zero.0 - LABELS > 60.0 {
            text(svg, "tick end", Px(zero.0 - 8.0), 14.0, sides[0]);
        }
        if right - zero.0 > 60.0 {
            text(svg, "tick", Px(zero.0 + 8.0), 14.0, sides[1]);
        }
        for (i, row) in rows.iter().enumerate() {
            let middle = top + ROW * (i as f64 + 0.5);
            row_labels(svg, middle, &row.label, &row.detail);
            whisker(svg, row.class, &scale, row.interval, middle);
            svg.empty(
                "circle",
                &[
                    ("class", &format_args!("dot {}", row.class)),
                    ("cx", &scale.at(row.value)),
                    ("cy", &Px(middle)),
                    ("r", &6),
                ],
            );
            text(svg, "figure", Px(right + 18.0), middle - 2.0, &row.shown);
            svg.element(
                "text",
                &[
                    ("class", &format_args!("tick {}", row.class)),
                    ("x", &Px(right + 18.0)),
                    ("y", &Px(middle + 14.0)),
                ],
                &row.verdict,
            );
        }
    });
}

fn row_labels(svg: &mut Markup, middle: f64, label: &str, detail: &str) {
    let lift = if detail.is_empty() { 5.0 } else { -2.0 };
    text(svg, "label", Px(0.0), middle + lift, label);
    text(svg, "tick", Px(0.0), middle + 14.0, detail);
}

/// Class of a whisker on a bar, which needs a halo to be seen.
const WHISKER: &str = "whisker";

fn whisker(svg: &mut Markup, class: &str, scale: &Scale, interval: Interval, middle: f64) {
    let (low, high) = (scale.at(interval.low), scale.at(interval.high));
    let path = format!(
        "M{low} {y}H{high}M{low} {up}V{down}M{high} {up}V{down}",
        y = Px(middle),
        up = Px(middle - 5.0),
        down = Px(middle + 5.0)
    );
    if class == WHISKER {
        svg.empty("path", &[("class", &"halo"), ("d", &path)]);
    }
    svg.empty("path", &[("class", &format_args!("range {class}")), ("d", &path)]);
}

pub(super) fn vertical(svg: &mut Markup, class: &str, x: Px, top: f64, bottom: f64) {
    svg.empty("line", &[("class", &class), ("x1", &x), ("x2", &x), ("y1", &Px(top)), ("y2", &Px(bottom))]);
}

pub(super) fn text(svg: &mut Markup, class: &str, x: Px, y: f64, content: impl Display) {
    let content = content.to_string();
    if !content.is_empty() {
        svg.element("text", &[("class", &class), ("x", &x), ("y", &Px(y))], content);
    }
}

/// An SVG that scales to its column; `title` is what a screen reader says.
pub(super) fn svg(markup: &mut Markup, width: f64, height: f64, title: &str, draw: impl FnOnce(&mut Markup)) {
    markup.nest(
        "svg",
        &[
            ("viewBox", &format_args!("0 0 {} {}", Px(width), Px(height))),
            ("width", &Px(width)),
            ("height", &Px(height)),
            ("role", &"img"),
            ("aria-label", &title),
        ],
        draw,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_span_the_values() {
        assert_eq!(ticks(0.0, 100.0, 5), (vec![0.0, 20.0, 40.0, 60.0, 80.0, 100.0], 0));
        let (values, decimals) = ticks(-0.013, 0.041, 6);
        assert!(values[0] <= -0.013 && *values.last().unwrap() >= 0.041 && decimals == 2, "{values:?}");
        assert!(ticks(3.0, 3.0, 4).0.len() >= 2);
    }
}

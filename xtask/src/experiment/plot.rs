//! A chart of validation losses: one line per variant, the mean over seeds, and the seeds behind it.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 250.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 48.0;
/// Told apart by people who see few colours too (Okabe & Ito 2008).
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

/// One line of a chart.
pub(super) struct Line {
    pub(super) label: String,
    /// Of each seed: (x, y), x ascending; the same x for all.
    pub(super) seeds: Vec<Vec<(f64, f64)>>,
}

impl Line {
    fn mean(&self) -> Vec<(f64, f64)> {
        let n = self.seeds.iter().map(Vec::len).min().unwrap_or(0);
        let mean = |i: usize, of: fn(&(f64, f64)) -> f64| {
            self.seeds.iter().map(|seed| of(&seed[i])).sum::<f64>() / self.seeds.len() as f64
        };
        (0..n).map(|i| (mean(i, |p| p.0), mean(i, |p| p.1))).collect()
    }

    fn points(&self) -> impl Iterator<Item = &(f64, f64)> {
        self.seeds.iter().flatten()
    }
}

/// Steps of 1, 2 or 5 times a power of ten: about `wanted` of them.
fn ticks(low: f64, high: f64, wanted: f64) -> Vec<f64> {
    let rough = ((high - low) / wanted).max(1e-12);
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|s| s * power).find(|s| *s >= rough).unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    (first..).map(|i| i as f64 * step).take_while(|v| *v <= high + step * 1e-9).collect()
}

fn shown(value: f64) -> String {
    match value.abs() {
        v if v >= 1e6 => format!("{}M", (value / 1e4).round() / 100.0),
        v if v >= 1e3 => format!("{}k", (value / 1e2).round() / 10.0),
        _ => format!("{}", (value * 1e4).round() / 1e4),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The chart as SVG. y starts at the lowest loss and ends where all lines have left their start.
pub(super) fn chart(title: &str, x_label: &str, lines: &[Line]) -> String {
    let x_max = lines.iter().flat_map(Line::points).map(|p| p.0).fold(0.0, f64::max);
    // The first sixth of every curve is a fall from the same height, which would flatten the rest.
    let late = || lines.iter().flat_map(Line::points).filter(|p| p.0 >= x_max / 6.0).map(|p| p.1);
    let (low, high) = late().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), y| (l.min(y), h.max(y)));
    let margin = 0.04 * (high - low).max(1e-3);
    let (low, high) = (low - margin, high + margin);
    let x = |v: f64| LEFT + v / x_max.max(1e-12) * (WIDTH - LEFT - RIGHT);
    let y = |v: f64| TOP + (high - v) / (high - low) * (HEIGHT - TOP - BOTTOM);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"18\" font-size=\"14\">{}</text>\n\
         <clipPath id=\"plot\"><rect x=\"{LEFT}\" y=\"{TOP}\" width=\"{}\" height=\"{}\"/></clipPath>\n",
        escaped(title),
        WIDTH - LEFT - RIGHT,
        HEIGHT - TOP - BOTTOM,
    );
    let mut put = |text: std::fmt::Arguments<'_>| {
        svg.write_fmt(text).expect("a string grows");
        svg.push('\n');
    };
    for tick in ticks(low, high, 6.0) {
        let at = y(tick);
        put(format_args!(
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" \
             text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0,
            shown(tick)
        ));
    }
    for tick in ticks(0.0, x_max, 5.0) {
        put(format_args!(
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            x(tick),
            HEIGHT - BOTTOM + 18.0,
            shown(tick)
        ));
    }
    put(format_args!(
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 8.0,
        escaped(x_label)
    ));
    for (i, line) in lines.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let path = |points: &[(f64, f64)]| {
            points.iter().map(|p| format!("{:.1},{:.1} ", x(p.0), y(p.1))).collect::<String>()
        };
        let drawn = line.seeds.iter().map(|seed| (path(seed), 0.6, 0.35));
        for (points, width, opacity) in drawn.chain([(path(&line.mean()), 2.0, 1.0)]) {
            put(format_args!(
                "<polyline clip-path=\"url(#plot)\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" \
                 opacity=\"{opacity}\" points=\"{}\"/>",
                points.trim_end()
            ));
        }
        let at = TOP + 16.0 * i as f64 + 8.0;
        put(format_args!(
            "<line x1=\"{0}\" x2=\"{1}\" y1=\"{at}\" y2=\"{at}\" stroke=\"{colour}\" stroke-width=\"2\"/><text \
             x=\"{2}\" y=\"{3}\">{4}</text>",
            WIDTH - RIGHT + 10.0,
            WIDTH - RIGHT + 28.0,
            WIDTH - RIGHT + 33.0,
            at + 4.0,
            escaped(&line.label)
        ));
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 1.0, 5.0), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(ticks(3.1, 4.9, 4.0), [3.5, 4.0, 4.5]);
    }

    #[test]
    fn a_chart_has_every_line_inside_its_frame() {
        let seeds =
            vec![vec![(0.0, 9.0), (50.0, 3.0), (100.0, 2.0)], vec![(0.0, 9.0), (50.0, 3.2), (100.0, 2.2)]];
        let line = Line { label: "a < b".into(), seeds };
        assert_eq!(line.mean(), [(0.0, 9.0), (50.0, 3.1), (100.0, 2.1)]);
        let svg = chart("some & all", "tokens", &[line]);
        assert_eq!(svg.matches("<polyline").count(), 3);
        assert!(svg.contains("a &lt; b") && svg.contains("some &amp; all"));
        let end = format!("{:.1},", WIDTH - RIGHT);
        assert!(svg.contains(&end), "the last point lies at the right edge");
    }
}

//! The section on what models write themselves.

use stillroom_core::statistics::Estimate;

use super::markup::Markup;
use super::sections::section;
use crate::report::Report;
use crate::words;

const UNDER: &str = "Each model continues the held-out prompts by its own draws at temperature 1; the teacher says how far it \
     is from the distribution of each token, KL(model‖teacher) in nats. A model that was trained on its teacher's text \
     alone strays from it as a text goes on.";
/// Where whole distributions are not to be had.
const SAMPLED: &str = "Each model continues the held-out prompts by its own draws at temperature 1; the teacher, behind an \
     endpoint, says how likely each of those tokens is. KL(model‖teacher) in nats is estimated from them alone: the mean \
     over tokens of what the model's log-probability exceeds the teacher's by.";

pub(super) fn own_text(main: &mut Markup, report: &Report) {
    if report.own_text.is_empty() {
        return;
    }
    let under = if report.own_text.values().any(|own| own.sampled) { SAMPLED } else { UNDER };
    section(main, "On their own text", under, |section| {
        section.nest("div", &[("class", &"scroll")], |scroll| {
            scroll.nest("table", &[("class", &"figures")], |table| table_of(table, report));
        });
    });
}

fn table_of(table: &mut Markup, report: &Report) {
    table.nest("thead", &[], |head| {
        head.nest("tr", &[], |tr| {
            tr.element("th", &[], "");
            for contender in report.own_text.keys() {
                tr.element("th", &[("scope", &"col")], contender.label());
            }
        });
    });
    table.nest("tbody", &[], |rows| {
        let names = ["First quarter of a text", "Second", "Third", "Last"];
        for (quarter, name) in names.into_iter().enumerate() {
            row(rows, name, report, |own| estimate(own.reverse_kl_by_quarter[quarter]));
        }
        row(rows, "Whole texts", report, |own| estimate(own.reverse_kl));
        row(rows, "Texts, tokens", report, |own| [words::thousands(own.texts), words::thousands(own.tokens)]);
        row(rows, "Cut for their length", report, |own| [words::percent(own.share_cut), String::new()]);
    });
}

fn row(rows: &mut Markup, name: &str, report: &Report, figure: impl Fn(&crate::OwnTextScore) -> [String; 2]) {
    rows.nest("tr", &[], |tr| {
        tr.element("th", &[("scope", &"row")], name);
        for own in report.own_text.values() {
            let [shown, below] = figure(own);
            tr.nest("td", &[], |td| {
                td.text(shown);
                if !below.is_empty() {
                    td.element("span", &[("class", &"sub")], below);
                }
            });
        }
    });
}

/// Value and interval.
fn estimate(estimate: Option<Estimate>) -> [String; 2] {
    let shown = words::significant;
    estimate.map_or(["–".to_owned(), String::new()], |Estimate { value, interval }| {
        [shown(value), format!("[{}, {}]", shown(interval.low), shown(interval.high))]
    })
}

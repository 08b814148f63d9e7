//! Licences as each standard writes them.

use crate::register::Register;
use crate::text::plain;

/// On SPDX's list, and open by the Open Source or the Open Definition. Of the register's licences and of what users give
/// to data and models.
const OPEN: [&str; 33] = [
    "0BSD",
    "AGPL-3.0-only",
    "AGPL-3.0-or-later",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "CC-BY-SA-3.0",
    "CC-BY-SA-4.0",
    "CC0-1.0",
    "CDLA-Permissive-1.0",
    "CDLA-Permissive-2.0",
    "CDLA-Sharing-1.0",
    "ECL-2.0",
    "EPL-2.0",
    "EUPL-1.2",
    "GPL-2.0-only",
    "GPL-2.0-or-later",
    "GPL-3.0-only",
    "GPL-3.0-or-later",
    "ISC",
    "LGPL-2.1-only",
    "LGPL-2.1-or-later",
    "LGPL-3.0-only",
    "LGPL-3.0-or-later",
    "MIT",
    "MPL-2.0",
    "ODbL-1.0",
    "PDDL-1.0",
    "Unlicense",
    "Zlib",
];
/// On SPDX's list, and not open.
const CLOSED: [&str; 4] = ["CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0", "CC-BY-NC-ND-4.0"];

/// A licence in SPDX's terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Spdx {
    /// One identifier of SPDX's list.
    Listed(&'static str),
    /// An expression of listed identifiers and `LicenseRef-`.
    Expression(String),
    /// Words of somebody's own, with a `LicenseRef-` for them.
    Words { reference: String, words: String },
}

impl Spdx {
    /// What stands where an expression is expected.
    pub(super) fn expression(&self) -> &str {
        match self {
            Spdx::Listed(id) => id,
            Spdx::Expression(expression) => expression,
            Spdx::Words { reference, .. } => reference,
        }
    }
}

/// Reads what somebody called a licence; case does not matter.
pub(super) fn spdx(text: &str) -> Spdx {
    let text = text.trim();
    if let Some(id) = listed(text) {
        return Spdx::Listed(id);
    }
    match expression(text) {
        Some(expression) => Spdx::Expression(expression),
        None => Spdx::Words { reference: format!("LicenseRef-{}", slug(text)), words: text.to_owned() },
    }
}

/// Whether every licence of an expression is an open one.
pub(super) fn is_open(text: &str) -> bool {
    let operands = |text: &str| {
        text.split(" AND ").all(|id| OPEN.iter().any(|open| open.eq_ignore_ascii_case(id.trim())))
    };
    !text.trim().is_empty() && operands(text)
}

/// A short name of lower-case letters, digits, `.` and `-`.
fn slug(text: &str) -> String {
    const CHARS_MAX: usize = 64;
    let text = text.strip_prefix("LicenseRef-").unwrap_or(text);
    let text = text.strip_prefix("scancode-").unwrap_or(text);
    let mut slug = String::new();
    for c in plain(text).chars().take(CHARS_MAX) {
        if c.is_ascii_alphanumeric() || c == '.' {
            slug.push(c.to_ascii_lowercase());
        } else if !slug.ends_with('-') && !slug.is_empty() {
            slug.push('-');
        }
    }
    let slug = slug.trim_matches(['-', '.']);
    if slug.is_empty() { "unnamed".to_owned() } else { slug.to_owned() }
}

fn listed(text: &str) -> Option<&'static str> {
    OPEN.iter().chain(&CLOSED).find(|id| id.eq_ignore_ascii_case(text)).copied()
}

/// Operands joined by `AND` and `OR`; parentheses are not read, and make it somebody's own words.
fn expression(text: &str) -> Option<String> {
    let mut words = Vec::new();
    for (n, word) in text.split_whitespace().enumerate() {
        let is_operator = n % 2 == 1;
        words.push(match is_operator {
            true if word == "AND" || word == "OR" => word.to_owned(),
            true => return None,
            false => operand(word)?,
        });
    }
    (words.len() % 2 == 1).then(|| words.join(" "))
}

fn operand(word: &str) -> Option<String> {
    if let Some(id) = listed(word) {
        return Some(id.to_owned());
    }
    let is_reference = word.strip_prefix("LicenseRef-").is_some_and(|rest| {
        !rest.is_empty() && rest.chars().all(|c| c.is_ascii_alphanumeric() || c == '.' || c == '-')
    });
    (is_reference || Register::builtin().terms(word).is_some()).then(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_expressions_and_words_are_told_apart() {
        assert_eq!(spdx("apache-2.0"), Spdx::Listed("Apache-2.0"));
        let both = "Apache-2.0 AND LicenseRef-scancode-llama-3.1-license-2024";
        assert_eq!(spdx(both), Spdx::Expression(both.to_owned()));
        for words in ["our own terms", "MIT\nApache-2.0", "MIT AND", "AND", "", "LicenseRef-", "MIT WITH x"] {
            let Spdx::Words { reference, .. } = spdx(words) else { panic!("{words:?}") };
            assert!(expression(&reference).is_some(), "{reference}");
        }
        assert_eq!(spdx("<b>\u{1b}[31m x").expression(), "LicenseRef-b-31m-x");
    }

    #[test]
    fn every_licence_of_the_register_is_an_expression() {
        for row in Register::builtin().rows() {
            assert_eq!(spdx(&row.licence).expression(), row.licence, "{}", row.release);
        }
    }

    #[test]
    fn open_means_every_part() {
        assert!(is_open("MIT") && is_open("MIT AND Apache-2.0") && is_open("cc-by-4.0"));
        assert!(
            !is_open("CC-BY-NC-4.0") && !is_open("MIT AND LicenseRef-x") && !is_open("") && !is_open("x")
        );
    }
}

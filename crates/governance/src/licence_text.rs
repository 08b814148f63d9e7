//! Which licence a text is.
//!
//! A text is reduced to its words: lower case, markup, punctuation, addresses, copyright lines and
//! titles dropped. Two files with the same words are the same licence, whoever filled in the
//! copyright line; a single added, missing or changed word makes it another text, because riders are
//! exactly what a gate must not overlook. Texts that only resemble a known one are named as such and
//! never count as it.

use std::collections::HashSet;
use std::sync::OnceLock;

use stillroom_core::Digest;

const APACHE: &str = include_str!("../../../assets/licence_texts/Apache-2.0.txt");
const MIT: &str = include_str!("../../../assets/licence_texts/MIT.txt");
/// Digests of the words of licences whose text is not ours to carry.
const FINGERPRINTS: &str = include_str!("../../../assets/licence_fingerprints.csv");

/// Bytes of a licence file that are looked at; a longer file is not identified.
pub const TEXT_BYTES_MAX: usize = 1 << 20;
/// Share of common three-word runs from which a text is said to resemble a known one.
const RESEMBLANCE_MIN: f64 = 0.4;
/// Words of the first difference that are shown.
const SHOWN_WORDS: usize = 16;

/// What a licence file was recognised as.
#[derive(Clone, Debug, PartialEq)]
pub enum Identified {
    /// The words of this licence, nothing added and nothing missing.
    As { licence: String },
    /// Close to a known licence, and not it.
    Resembles { licence: &'static str, first_difference: String },
    /// No known text.
    Unknown,
}

/// Says which licence a text is.
pub fn identify(text: &str) -> Identified {
    if text.len() > TEXT_BYTES_MAX {
        return Identified::Unknown;
    }
    let words = words(text);
    let digest = digest_of_words(&words);
    let known = known();
    if let Some((_, licence)) = known.digests.iter().find(|(known, _)| *known == digest) {
        return Identified::As { licence: licence.clone() };
    }
    let shingles = shingles(&words);
    let mut best: Option<(f64, &KnownText)> = None;
    for text in &known.texts {
        let common = shingles.intersection(&text.shingles).count() as f64;
        let share = common / text.shingles.len().min(shingles.len()).max(1) as f64;
        if share >= RESEMBLANCE_MIN && best.is_none_or(|(most, _)| share > most) {
            best = Some((share, text));
        }
    }
    match best {
        Some((_, text)) => Identified::Resembles {
            licence: text.licence,
            first_difference: first_difference(&words, &text.words),
        },
        None => Identified::Unknown,
    }
}

/// SHA-256 over the words of a licence text, joined by single blanks: what
/// `assets/licence_fingerprints.csv` holds.
pub fn fingerprint(text: &str) -> Digest {
    digest_of_words(&words(text))
}

/// The text of a licence that this program carries in full.
pub fn full_text(licence: &str) -> Option<&'static str> {
    match licence {
        "Apache-2.0" => Some(APACHE),
        "MIT" => Some(MIT),
        _ => None,
    }
}

struct KnownText {
    licence: &'static str,
    words: Vec<String>,
    shingles: HashSet<Digest>,
}

struct Known {
    digests: Vec<(Digest, String)>,
    texts: Vec<KnownText>,
}

fn known() -> &'static Known {
    static KNOWN: OnceLock<Known> = OnceLock::new();
    KNOWN.get_or_init(|| {
        let mut digests: Vec<(Digest, String)> = fingerprints();
        for variant in apache_variants() {
            digests.push((fingerprint(&variant), "Apache-2.0".to_owned()));
        }
        digests.push((fingerprint(MIT), "MIT".to_owned()));
        let text = |licence, text: &str| {
            let words = words(text);
            KnownText { licence, shingles: shingles(&words), words }
        };
        Known { digests, texts: vec![text("Apache-2.0", APACHE), text("MIT", MIT)] }
    })
}

/// The licence as it is published, and with none or only the one half of its appendix.
fn apache_variants() -> Vec<String> {
    let (body, appendix) = APACHE.split_once("APPENDIX:").unwrap_or((APACHE, ""));
    let notice = appendix.find("Licensed under the Apache").map_or("", |at| &appendix[at..]);
    let unmarked = body.replace("END OF TERMS AND CONDITIONS", "");
    let advice = &APACHE[..APACHE.len() - notice.len()];
    vec![
        APACHE.to_owned(),
        advice.to_owned(),
        body.to_owned(),
        format!("{body}{notice}"),
        format!("{unmarked}{notice}"),
        unmarked,
    ]
}

fn fingerprints() -> Vec<(Digest, String)> {
    FINGERPRINTS
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut cells = line.split(',');
            let licence = cells.next()?.to_owned();
            let digest = Digest::try_from(cells.next()?.to_owned()).ok()?;
            Some((digest, licence))
        })
        .collect()
}

fn digest_of_words(words: &[String]) -> Digest {
    Digest::of(words.join(" ").as_bytes())
}

fn shingles(words: &[String]) -> HashSet<Digest> {
    words.windows(3).map(|run| Digest::of(run.join(" ").as_bytes())).collect()
}

/// Titles that some copies carry and some do not.
const TITLES: [&str; 4] = ["mit license", "the mit license", "the mit license mit", "mit license mit"];

fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    // A copyright line stands at the head of a paragraph; within one it is part of a sentence.
    let mut at_head = true;
    for line in text.lines() {
        let line_words = words_of_line(line);
        if line_words.is_empty() {
            at_head = true;
            continue;
        }
        let title = words.is_empty() && TITLES.contains(&line_words.join(" ").as_str());
        if title || (at_head && is_copyright_line(line, &line_words)) {
            continue;
        }
        at_head = false;
        words.extend(line_words);
    }
    words
}

fn words_of_line(line: &str) -> Vec<String> {
    let line = line.to_lowercase().replace("non-infringement", "noninfringement");
    line.split_whitespace()
        .filter(|token| {
            !token.contains("://") && !token.trim_start_matches(['(', '<', '"']).starts_with("www.")
        })
        .flat_map(|token| token.split(|c: char| !c.is_alphanumeric()))
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Words that make a line more than a statement of who holds the copyright.
const NOT_IN_COPYRIGHT_LINES: [&str; 21] = [
    "and",
    "agreement",
    "commercial",
    "evaluation",
    "except",
    "grant",
    "interest",
    "law",
    "licence",
    "license",
    "licensed",
    "may",
    "must",
    "not",
    "notice",
    "only",
    "permission",
    "prohibited",
    "purposes",
    "research",
    "use",
];
/// Words of a copyright line, at most.
const COPYRIGHT_WORDS_MAX: usize = 24;

/// `Copyright (c) 2024 Somebody`, `Copyright [yyyy] [name of copyright owner]`, `All rights reserved.`
/// A line that says more than that is no copyright line: it may be a rider.
fn is_copyright_line(line: &str, words: &[String]) -> bool {
    if words.len() > COPYRIGHT_WORDS_MAX || words.join(" ") == "all rights reserved" {
        return words.len() <= COPYRIGHT_WORDS_MAX;
    }
    let line = line.trim().trim_start_matches(['#', '*', '/', ';', '-', ' ', '>']).to_lowercase();
    let holder = line.starts_with("copyright") || line.starts_with('©') || line.starts_with("(c) ");
    holder && !words.iter().any(|word| NOT_IN_COPYRIGHT_LINES.contains(&word.as_str()))
}

/// The first words that one text has where the other goes on differently.
fn first_difference(found: &[String], known: &[String]) -> String {
    let same = found.iter().zip(known).take_while(|(a, b)| a == b).count();
    let (rest, what) = if same < found.len() { (&found[same..], "has") } else { (&known[same..], "lacks") };
    let shown: Vec<&str> = rest.iter().take(SHOWN_WORDS).map(String::as_str).collect();
    format!("after {same} equal words it {what} \"{}\"", shown.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(text: &str, licence: &str) -> bool {
        identify(text) == Identified::As { licence: licence.to_owned() }
    }

    #[test]
    fn the_texts_themselves_and_their_usual_copies_are_recognised() {
        assert!(is(APACHE, "Apache-2.0"));
        assert!(is(&APACHE.replace("[yyyy] [name of copyright owner]", "2024 Hugging Face"), "Apache-2.0"));
        let body = APACHE.split("APPENDIX:").next().unwrap();
        assert!(is(&format!("Copyright 2024 Alibaba Cloud\n\n{body}"), "Apache-2.0"));
        assert!(is(&APACHE.replace("http://", "https://").replace('\n', "\r\n"), "Apache-2.0"));
        assert!(is(MIT, "MIT"));
        let title = "# The MIT License (MIT)\n\nCopyright (c) 2023 DeepSeek\n";
        assert!(is(&MIT.replace("MIT License", title).replace("  ", " "), "MIT"));
        assert!(is(&MIT.split_whitespace().skip(2).collect::<Vec<_>>().join(" "), "MIT"));
    }

    #[test]
    fn a_rider_or_a_changed_word_is_never_the_known_licence() {
        let rider = format!("{MIT}\nOur only modification: display the name above 100 million users.");
        match identify(&rider) {
            Identified::Resembles { licence: "MIT", first_difference } => {
                assert!(first_difference.contains("our only modification"), "{first_difference}");
            }
            other => panic!("{other:?}"),
        }
        for changed in [
            APACHE.replace(
                "END OF TERMS AND CONDITIONS",
                "END OF TERMS AND CONDITIONS\nNon-commercial use only.",
            ),
            APACHE.replace("no-charge", "charged"),
            format!("Research only.\n{APACHE}"),
            format!("Copyright 2024 Somebody, research use only\n{APACHE}"),
            APACHE.replacen("may", "may not", 1),
        ] {
            let found = identify(&changed);
            assert!(matches!(found, Identified::Resembles { licence: "Apache-2.0", .. }), "{found:?}");
        }
        assert_eq!(identify("All rights reserved to the moon."), Identified::Unknown);
        assert_eq!(identify(""), Identified::Unknown);
        assert_eq!(identify(&"a ".repeat(TEXT_BYTES_MAX)), Identified::Unknown);
    }

    #[test]
    fn every_fingerprint_is_a_digest_of_a_licence_with_terms() {
        let lines = FINGERPRINTS.lines().skip(1).count();
        assert_eq!(fingerprints().len(), lines);
        for (_, licence) in fingerprints() {
            assert!(crate::Register::builtin().terms(&licence).is_some(), "{licence}");
        }
        let distinct: HashSet<Digest> = fingerprints().into_iter().map(|(digest, _)| digest).collect();
        assert_eq!(distinct.len(), lines);
    }
}

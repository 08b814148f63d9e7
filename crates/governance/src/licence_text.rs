//! Which licence a text is.
//!
//! A text is reduced to its words: lower case, markup, punctuation, addresses, copyright lines and
//! titles dropped. Two files with the same words are the same licence, whoever filled in the
//! copyright line; a single added, missing or changed word makes it another text, because riders are
//! exactly what a gate must not overlook. Texts that only resemble a known one are named as such, with
//! what differs, and never count as it.
//!
//! Of licences whose text is not ours to carry there are two tables: digests of all their words, and
//! 16-bit hashes of their runs of three words, from which likeness and differences are told.

use std::collections::{BTreeSet, HashSet};
use std::sync::OnceLock;

use stillroom_core::Digest;

const APACHE: &str = include_str!("../../../assets/licence_texts/Apache-2.0.txt");
const MIT: &str = include_str!("../../../assets/licence_texts/MIT.txt");
/// Digests of the words of licences whose text is not ours to carry.
const FINGERPRINTS: &str = include_str!("../../../assets/licence_fingerprints.csv");
/// What [`runs_record`] writes, one record after the other.
const RUNS: &[u8] = include_bytes!("../../../assets/licence_runs.bin");

/// Bytes of a licence file that are looked at; a longer file is not identified.
pub const TEXT_BYTES_MAX: usize = 1 << 20;
/// Likeness from which a text is said to resemble a known one: twice the common runs of three words, by the runs
/// of both.
const LIKENESS_MIN: f64 = 0.4;
/// Words in a run.
const RUN_WORDS: usize = 3;
/// Words of a difference that are shown, and differences.
const SHOWN_WORDS: usize = 16;
const SHOWN_DIFFERENCES: usize = 3;

/// What a licence file was recognised as.
#[derive(Clone, Debug, PartialEq)]
pub enum Identified {
    /// The words of this licence, nothing added and nothing missing.
    As { licence: String },
    /// Close to a known licence, and not it: how close, and in what it differs.
    Resembles { licence: String, percent: u8, differs: String },
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
    let runs = runs(&words);
    let set: HashSet<u16> = runs.iter().copied().collect();
    let likeness = |known: &KnownRuns| {
        let common = set.intersection(&known.runs).count();
        2.0 * common as f64 / (set.len() + known.runs.len()).max(1) as f64
    };
    let best = known.runs.iter().map(|known| (likeness(known), known)).max_by(|a, b| a.0.total_cmp(&b.0));
    match best.filter(|(likeness, _)| *likeness >= LIKENESS_MIN) {
        Some((likeness, known)) => Identified::Resembles {
            licence: known.licence.clone(),
            // Not the same, so never wholly like it.
            percent: ((100.0 * likeness) as u8).min(99),
            differs: differences(&words, &runs, &set, &known.runs),
        },
        None => Identified::Unknown,
    }
}

/// Whether the text of a licence is known well enough to recognise a copy.
pub(crate) fn is_known(licence: &str) -> bool {
    known().digests.iter().any(|(_, known)| known == licence)
}

/// Lines of a text that say who holds the copyright, as they stand, blanks aside; templates are left out.
pub(crate) fn copyright_lines(text: &str) -> Vec<String> {
    let is_filled_in =
        |line: &str| !line.contains(['[', '<', '{']) && line.contains(|c: char| c.is_ascii_digit());
    let plain = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let holds = |line: &&str| is_copyright_line(line, &words_of_line(line)) && is_filled_in(line);
    let mut lines: Vec<String> = text.lines().filter(holds).take(COPYRIGHT_LINES_MAX).map(plain).collect();
    lines.dedup();
    lines
}

/// What `assets/licence_runs.bin` has of a text: the licence's name and the hashes of its runs, each behind its
/// length as a 16-bit number; all numbers little-endian, hashes in ascending order.
pub fn runs_record(licence: &str, text: &str) -> Vec<u8> {
    let runs: BTreeSet<u16> = runs(&words(text)).into_iter().collect();
    let mut record = (licence.len() as u16).to_le_bytes().to_vec();
    record.extend(licence.as_bytes());
    record.extend((runs.len() as u16).to_le_bytes());
    record.extend(runs.into_iter().flat_map(u16::to_le_bytes));
    record
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

/// The runs of one licence's text.
struct KnownRuns {
    licence: String,
    runs: HashSet<u16>,
}

struct Known {
    digests: Vec<(Digest, String)>,
    runs: Vec<KnownRuns>,
}

fn known() -> &'static Known {
    static KNOWN: OnceLock<Known> = OnceLock::new();
    KNOWN.get_or_init(|| {
        let mut digests: Vec<(Digest, String)> = fingerprints();
        for variant in apache_variants() {
            digests.push((fingerprint(&variant), "Apache-2.0".to_owned()));
        }
        digests.push((fingerprint(MIT), "MIT".to_owned()));
        let own = |licence: &str, text: &str| KnownRuns {
            licence: licence.to_owned(),
            runs: runs(&words(text)).into_iter().collect(),
        };
        let mut runs = vec![own("Apache-2.0", APACHE), own("MIT", MIT)];
        runs.extend(recorded_runs(RUNS));
        Known { digests, runs }
    })
}

/// The records of a table of runs; what does not fit ends it.
fn recorded_runs(mut table: &[u8]) -> Vec<KnownRuns> {
    fn part<'a>(table: &mut &'a [u8], width: usize) -> Option<&'a [u8]> {
        let (length, rest) = table.split_first_chunk::<2>()?;
        let (part, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)) * width)?;
        *table = rest;
        Some(part)
    }
    let mut records = Vec::new();
    while let (Some(name), Some(runs)) = (part(&mut table, 1), part(&mut table, 2)) {
        let runs = runs.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
        records.push(KnownRuns { licence: String::from_utf8_lossy(name).into_owned(), runs });
    }
    records
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

fn digest_of_words(words: &[Word]) -> Digest {
    let words: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
    Digest::of(words.join(" ").as_bytes())
}

/// A hash of each run of words.
fn runs(words: &[Word]) -> Vec<u16> {
    let hash = |run: &[Word]| {
        let run: Vec<&str> = run.iter().map(|word| word.text.as_str()).collect();
        let digest = Digest::of(run.join(" ").as_bytes());
        u16::from_le_bytes([digest.as_bytes()[0], digest.as_bytes()[1]])
    };
    words.windows(RUN_WORDS).map(hash).collect()
}

/// A word, and the line that it stands in, from 1.
#[derive(Clone, Debug)]
struct Word {
    text: String,
    line: usize,
}

/// Titles that some copies carry and some do not.
const TITLES: [&str; 4] = ["mit license", "the mit license", "the mit license mit", "mit license mit"];

fn words(text: &str) -> Vec<Word> {
    let mut words = Vec::new();
    // A copyright line stands at the head of a paragraph; within one it is part of a sentence.
    let mut at_head = true;
    for (i, line) in text.lines().enumerate() {
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
        words.extend(line_words.into_iter().map(|text| Word { text, line: i + 1 }));
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
/// Copyright lines that are taken from one file.
const COPYRIGHT_LINES_MAX: usize = 8;

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

/// In what a text differs from a known one: words of it in no known run, by line, and how much it lacks.
fn differences(words: &[Word], runs: &[u16], set: &HashSet<u16>, known: &HashSet<u16>) -> String {
    let is_known = |word: usize| {
        let first = (word + 1).saturating_sub(RUN_WORDS);
        (first..=word).filter_map(|at| runs.get(at)).any(|run| known.contains(run))
    };
    let (mut stretches, mut at): (Vec<&[Word]>, usize) = (Vec::new(), 0);
    while at < words.len() {
        let length = (at..words.len()).take_while(|&word| !is_known(word)).count();
        if length > 0 {
            stretches.push(&words[at..at + length]);
        }
        at += length.max(1);
    }
    let shown = |stretch: &&[Word]| {
        let words: Vec<&str> = stretch.iter().take(SHOWN_WORDS).map(|word| word.text.as_str()).collect();
        let more = if stretch.len() > SHOWN_WORDS { " …" } else { "" };
        format!("line {} has \"{}{more}\"", stretch[0].line, words.join(" "))
    };
    let mut said: Vec<String> = stretches.iter().take(SHOWN_DIFFERENCES).map(shown).collect();
    if stretches.len() > SHOWN_DIFFERENCES {
        said.push(format!("and {} more places", stretches.len() - SHOWN_DIFFERENCES));
    }
    let lacking = known.difference(set).count();
    // A word that is changed or put in breaks this many runs of the known text at most.
    if lacking > stretches.len() * (RUN_WORDS + 1) {
        said.push(format!("it lacks about {lacking} words"));
    }
    match said.as_slice() {
        [] => "the same runs of words in another order or number".to_owned(),
        said => said.join("; "),
    }
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
            Identified::Resembles { licence, percent, differs } => {
                assert!(licence == "MIT" && (90..100).contains(&percent), "{licence} {percent}");
                let line = rider.lines().count();
                assert!(differs.contains(&format!("line {line} has \"our only modification")), "{differs}");
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
            assert!(
                matches!(&found, Identified::Resembles { licence, .. } if licence == "Apache-2.0"),
                "{found:?}"
            );
        }
        assert_eq!(identify("All rights reserved to the moon."), Identified::Unknown);
        assert_eq!(identify(""), Identified::Unknown);
        assert_eq!(identify(&"a ".repeat(TEXT_BYTES_MAX)), Identified::Unknown);
    }

    #[test]
    fn the_table_of_runs_is_of_fingerprinted_licences_and_survives_damage() {
        let records = recorded_runs(RUNS);
        assert!(records.len() >= 19 && records.iter().all(|record| record.runs.len() > 300));
        for record in &records {
            assert!(
                fingerprints().iter().any(|(_, licence)| *licence == record.licence),
                "{}",
                record.licence
            );
        }
        let record = runs_record("Apache-2.0", APACHE);
        let [back] = recorded_runs(&record).try_into().ok().expect("one record");
        assert_eq!(back.runs, runs(&words(APACHE)).into_iter().collect());
        for cut in 0..record.len() {
            assert!(recorded_runs(&record[..cut]).is_empty(), "{cut}");
        }
        assert_eq!(recorded_runs(&[0xff; 9]).len(), 0);
    }

    #[test]
    fn a_text_that_lacks_something_or_has_it_changed_says_so() {
        let differs = |text: &str| match identify(text) {
            Identified::Resembles { licence, differs, .. } if licence == "Apache-2.0" => differs,
            other => panic!("{other:?}"),
        };
        let changed = differs(&APACHE.replace("no-charge", "charged"));
        assert!(changed.contains("has \"charged\"") && !changed.contains("lacks"), "{changed}");
        let grant = APACHE.find("3. Grant of Patent License.").expect("a section");
        let next = APACHE.find("4. Redistribution.").expect("a section");
        let lacking = differs(&format!("{}{}", &APACHE[..grant], &APACHE[next..]));
        assert!(lacking.contains("it lacks about 1"), "{lacking}");
        // Another width of lines changes nothing.
        let wide = APACHE.replace("\n\n", "\u{1}").replace('\n', " ").replace('\u{1}', "\n\n");
        assert!(is(&wide, "Apache-2.0"));
    }

    #[test]
    fn copyright_lines_are_taken_as_they_stand() {
        let text = "Copyright 2024  Alibaba Cloud\n\nCopyright [yyyy] [name of copyright owner]\nWords.\n";
        assert_eq!(copyright_lines(text), ["Copyright 2024 Alibaba Cloud"]);
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

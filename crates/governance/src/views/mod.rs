//! Documents about a release, each derived from its [record](crate::record) alone.
//!
//! | file | standard | for |
//! |---|---|---|
//! | `README.md` | Hugging Face model card | people, hubs |
//! | `provenance/provenance.intoto.jsonl` | in-toto Statement v1, SLSA provenance v1 | build policies |
//! | `provenance/gate.intoto.jsonl` | in-toto Statement v1: SVR v0.2, licence decision v1 | licence policies |
//! | `provenance/bom.cdx.json` | CycloneDX 1.7 | inventories |
//! | `provenance/bom.spdx3.json` | SPDX 3.0.1, profiles AI, Dataset, SimpleLicensing | inventories |
//! | `provenance/eu_art53.md` | headings of the EU template for Art. 53(1)(d) | counsel |
//! | `provenance/ab2013.md` | items of California's AB 2013 | counsel |
//!
//! The same record gives the same bytes: times are the record's, identifiers are digests of it.

mod ab2013;
mod card;
mod cyclonedx;
mod eu_art53;
mod in_toto;
mod licence;
mod names;
mod openness;
mod spdx3;

pub use in_toto::{BUILD_TYPE, LICENCE_DECISION_TYPE, SLSA_TYPE, SVR_TYPE};
pub use openness::{Component, Level, Openness, openness};

use crate::dsse::{Envelope, IN_TOTO};
use crate::error::Result;
use crate::keys::Signer;
use crate::record::ProvenanceRecord;
use crate::text::json_line;

/// One document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Relative to the release directory.
    pub path: &'static str,
    pub text: String,
}

/// The model card, which a release without a record may have too.
pub(crate) const CARD: &str = "README.md";
/// Where the documents go, by their paths in a release.
pub(crate) const PATHS: [&str; 7] = [
    CARD,
    "provenance/ab2013.md",
    "provenance/bom.cdx.json",
    "provenance/bom.spdx3.json",
    "provenance/eu_art53.md",
    "provenance/gate.intoto.jsonl",
    "provenance/provenance.intoto.jsonl",
];

/// Every document of a record.
///
/// Each in-toto statement is a line of its file: in an envelope that `signer` signs, or as it is where nobody does.
pub fn all(record: &ProvenanceRecord, signer: Option<&Signer>) -> Result<Vec<View>> {
    let lines = |statements: Vec<String>| {
        statements.into_iter().map(|statement| sealed(statement, signer)).collect::<Result<String>>()
    };
    let texts = [
        card::card(record),
        ab2013::draft(record),
        cyclonedx::bom(record),
        spdx3::bom(record),
        eu_art53::draft(record),
        lines(in_toto::gate(record))?,
        lines(vec![in_toto::build(record)])?,
    ];
    Ok(PATHS.into_iter().zip(texts).map(|(path, text)| View { path, text }).collect())
}

fn sealed(statement: String, signer: Option<&Signer>) -> Result<String> {
    let Some(signer) = signer else { return Ok(statement) };
    let envelope = Envelope::sign(IN_TOTO, statement.trim_end().as_bytes(), signer)?;
    Ok(json_line(&envelope))
}

//! What models and data are called where a document asks for an address or a number.

use stillroom_core::Digest;

use crate::identity::plain_id;
use crate::record::{DataFacts, ModelFacts, ProvenanceRecord};
use crate::text::percent;

/// Digest of the record: what identifiers of a document are made from.
pub(super) fn digest_of(record: &ProvenanceRecord) -> Digest {
    Digest::of(&record.to_bytes())
}

/// `ORG/NAME`, where an ID can be a repository of the hub.
pub(super) fn hub_id(model: &ModelFacts) -> Option<&str> {
    let id = plain_id(&model.id);
    let part = |part: &str| {
        !part.is_empty()
            && part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    let (org, name) = id.split_once('/')?;
    (!model.id_is_path && part(org) && part(name)).then_some(id)
}

/// A package URL where the hub has the model, else a name of our own.
pub(super) fn model_uri(model: &ModelFacts) -> String {
    match hub_id(model) {
        Some(id) => {
            let revision = model.revision.as_ref().map(|revision| format!("@{}", percent(revision)));
            format!("pkg:huggingface/{id}{}", revision.unwrap_or_default())
        }
        None => format!("urn:stillroom:model:{}", percent(&model.id)),
    }
}

pub(super) fn data_uri(data: &DataFacts) -> String {
    format!("urn:stillroom:data:{}", percent(&data.id))
}

/// A number of six significant digits at most.
pub(super) fn number(value: f64) -> String {
    let digits = if value == 0.0 { 0 } else { (5 - value.abs().log10().floor() as i32).clamp(0, 12) };
    let text = format!("{value:.*}", digits as usize);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_right() {
        for (value, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (-0.046875, "-0.046875"),
            (1.857_134_973_573_552_5, "1.85713"),
            (123_456_789.0, "123456789"),
            (0.05, "0.05"),
            (1e-9, "0.000000001"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}

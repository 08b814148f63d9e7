//! Licence tags of the hub's cards: hints about a model, and what the card of a student says itself.

/// Tag and licence, where a licence has a tag of its own.
const TAGS: [(&str, &str); 23] = [
    ("apache-2.0", "Apache-2.0"),
    ("mit", "MIT"),
    ("bsd-2-clause", "BSD-2-Clause"),
    ("bsd-3-clause", "BSD-3-Clause"),
    ("isc", "ISC"),
    ("cc0-1.0", "CC0-1.0"),
    ("cc-by-4.0", "CC-BY-4.0"),
    ("cc-by-sa-4.0", "CC-BY-SA-4.0"),
    ("cc-by-nc-4.0", "CC-BY-NC-4.0"),
    ("cc-by-nc-sa-4.0", "CC-BY-NC-SA-4.0"),
    ("bigscience-bloom-rail-1.0", "LicenseRef-scancode-bigscience-rail-1.0"),
    ("bigcode-openrail-m", "LicenseRef-scancode-bigcode-open-rail-m-v1"),
    ("llama2", "LicenseRef-scancode-llama-2-license-2023"),
    ("llama3", "LicenseRef-llama-3-community"),
    ("llama3.1", "LicenseRef-scancode-llama-3.1-license-2024"),
    ("llama3.2", "LicenseRef-scancode-llama-3.2-license-2024"),
    ("llama3.3", "LicenseRef-scancode-llama-3.3-license-2024"),
    ("llama4", "LicenseRef-scancode-llama-4-license-2025"),
    ("gemma", "LicenseRef-scancode-gemma-tou-2025-03-24"),
    // Names that stand in `license_name` beside `license: other`.
    ("tongyi-qianwen", "LicenseRef-scancode-tongyi-qianwen-2023"),
    ("qwen", "LicenseRef-scancode-qwen-2024"),
    ("qwen-research", "LicenseRef-qwen-research-2024"),
    ("deepseek", "LicenseRef-scancode-deepseek-la-1.0"),
];
/// Tags before this one are values of the card's `license`.
const FIRST_NAME: &str = "tongyi-qianwen";

/// The licence that a tag or a `license_name` means.
pub(crate) fn licence_of_tag(tag: &str) -> Option<&'static str> {
    let tag = tag.trim().to_lowercase();
    TAGS.iter().find(|(known, _)| *known == tag).map(|(_, licence)| *licence)
}

/// A licence's short name on cards.
pub(crate) fn name_on_cards(licence: &str) -> String {
    let known = TAGS.iter().find(|(_, known)| *known == licence).map(|(tag, _)| (*tag).to_owned());
    known.unwrap_or_else(|| {
        let plain = licence.trim_start_matches("LicenseRef-").trim_start_matches("scancode-");
        // One tag for the terms of every date.
        if plain.starts_with("gemma-tou") { "gemma".to_owned() } else { plain.to_lowercase() }
    })
}

/// Whether a short name may stand as the card's `license`.
pub(crate) fn is_tag(name: &str) -> bool {
    TAGS.iter().take_while(|(tag, _)| *tag != FIRST_NAME).any(|(tag, _)| *tag == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_of_licences_with_terms() {
        for (tag, licence) in TAGS {
            assert!(crate::Register::builtin().terms(licence).is_some(), "{tag}");
            assert_eq!(licence_of_tag(&tag.to_uppercase()), Some(licence));
            assert_eq!(name_on_cards(licence), tag);
        }
        assert!(is_tag("llama3.1") && !is_tag("qwen") && !is_tag("other"));
        assert_eq!(name_on_cards("LicenseRef-scancode-gemma-tou-2024-04-01"), "gemma");
        assert_eq!(name_on_cards("LicenseRef-scancode-falcon-2-11b-1.0"), "falcon-2-11b-1.0");
    }
}

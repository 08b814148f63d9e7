//! Which release an ID means.
//!
//! A pattern is a lower-case ID in which `{a,b,}` stands for any of the alternatives and one `*` at
//! the end for any rest without `/` and `:` — after a service (`openai:*`) for any rest at all.
//! Everything else is literal: one size of a family may have another licence than its neighbour, so
//! an ID that nobody wrote down is not guessed.

use std::collections::HashMap;

/// What one pattern may expand to.
pub const EXPANSIONS_MAX: usize = 4096;
/// The longest ID that is looked up.
pub const ID_BYTES_MAX: usize = 1024;

/// The patterns of one row.
pub(crate) struct Entry {
    pub(crate) row: usize,
    pub(crate) patterns: Vec<String>,
}

/// Exact IDs and open-ended patterns, each with its row.
#[derive(Clone, Debug)]
pub(crate) struct IdTable {
    exact: HashMap<String, usize>,
    /// Longest first.
    prefixes: Vec<(String, usize)>,
}

impl IdTable {
    /// Expands the patterns; an ID claimed by two rows is an error, given with the entry's number.
    pub(crate) fn new(entries: Vec<Entry>) -> Result<IdTable, (usize, String)> {
        let mut exact = HashMap::new();
        let mut prefixes: HashMap<String, usize> = HashMap::new();
        for (i, entry) in entries.iter().enumerate() {
            for pattern in &entry.patterns {
                for id in expand(pattern).map_err(|cause| (i + 1, cause))? {
                    let open = id.strip_suffix('*').map(str::to_owned);
                    if id.trim_end_matches('*').contains('*') || id.to_lowercase() != id {
                        return Err((i + 1, format!("`{id}` is no pattern")));
                    }
                    let before = match open {
                        Some(prefix) => prefixes.insert(prefix, entry.row),
                        None => exact.insert(id.clone(), entry.row),
                    };
                    if before.is_some() {
                        return Err((i + 1, format!("`{id}` is claimed twice")));
                    }
                }
            }
        }
        let mut prefixes: Vec<(String, usize)> = prefixes.into_iter().collect();
        prefixes.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.0.cmp(&b.0)));
        Ok(IdTable { exact, prefixes })
    }

    /// The row that an ID means.
    pub(crate) fn find(&self, id: &str) -> Option<usize> {
        if id.len() > ID_BYTES_MAX {
            return None;
        }
        let id = plain_id(id).to_lowercase();
        if let Some(row) = self.exact.get(&id) {
            return Some(*row);
        }
        let fits = |prefix: &str| {
            let service = prefix.ends_with(':');
            id.strip_prefix(prefix)
                .is_some_and(|rest| !rest.is_empty() && (service || !rest.contains(['/', ':'])))
        };
        self.prefixes.iter().find(|(prefix, _)| fits(prefix)).map(|(_, row)| *row)
    }
}

/// An ID without the blanks around it and without `hf:`.
pub(crate) fn plain_id(id: &str) -> &str {
    let id = id.trim();
    match id.get(..3) {
        Some(head) if head.eq_ignore_ascii_case("hf:") => &id[3..],
        _ => id,
    }
}

/// The model's name within its service: `gpt-4o` of `openai:gpt-4o`, the whole ID elsewhere. It is
/// what a client sends as `model`.
pub fn model_of_route(id: &str) -> &str {
    match id.split_once(':') {
        Some((service, model)) if !service.contains('/') && !model.is_empty() => model,
        _ => id,
    }
}

/// Hosts whose terms are in the register: exact name, or suffix after a dot.
const HOSTS: [(&str, &str); 20] = [
    ("api.anthropic.com", "anthropic"),
    ("api.cohere.ai", "cohere"),
    ("api.cohere.com", "cohere"),
    ("api.deepseek.com", "deepseek"),
    ("api.fireworks.ai", "fireworks"),
    ("api.groq.com", "groq"),
    ("api.llama.com", "meta"),
    ("api.mistral.ai", "mistral"),
    ("api.openai.com", "openai"),
    ("api.together.ai", "together"),
    ("api.together.xyz", "together"),
    ("api.x.ai", "xai"),
    ("cognitiveservices.azure.com", "azure"),
    ("dashscope-intl.aliyuncs.com", "alibaba"),
    ("dashscope.aliyuncs.com", "alibaba"),
    ("generativelanguage.googleapis.com", "google"),
    ("openai.azure.com", "azure"),
    ("openrouter.ai", "openrouter"),
    ("services.ai.azure.com", "azure"),
    ("amazonaws.com", "bedrock"),
];

/// The service that answers at an address, where its terms are known: `openai` for
/// `https://api.openai.com/v1`. A declared name for the model does not change whose terms apply.
pub fn service_of_endpoint(base_url: &str) -> Option<&'static str> {
    let rest = base_url.trim().split_once("://").map_or(base_url.trim(), |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or(rest);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = host.split(':').next().unwrap_or(host).trim_end_matches('.').to_ascii_lowercase();
    let fits =
        |known: &str| host == known || host.strip_suffix(known).is_some_and(|head| head.ends_with('.'));
    HOSTS.iter().find(|(known, _)| fits(known)).map(|(_, service)| *service)
}

/// All IDs that a pattern stands for (a `*` stays).
fn expand(pattern: &str) -> Result<Vec<String>, String> {
    let mut done = vec![String::new()];
    let mut rest = pattern;
    while let Some((literal, tail)) = rest.split_once('{') {
        let (group, tail) = tail.split_once('}').ok_or_else(|| format!("`{pattern}` has an open brace"))?;
        let choices: Vec<&str> = group.split(',').collect();
        if done.len().saturating_mul(choices.len()) > EXPANSIONS_MAX {
            return Err(format!("`{pattern}` stands for more than {EXPANSIONS_MAX} names"));
        }
        done = done
            .iter()
            .flat_map(|head| choices.iter().map(move |choice| format!("{head}{literal}{choice}")))
            .collect();
        rest = tail;
    }
    if rest.contains('}') {
        return Err(format!("`{pattern}` has a stray brace"));
    }
    for id in &mut done {
        id.push_str(rest);
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_expand_and_broken_ones_are_refused() {
        assert_eq!(expand("a{b,}c{1,2}").unwrap(), ["abc1", "abc2", "ac1", "ac2"]);
        assert!(expand("a{b").is_err());
        assert!(expand("a}b").is_err());
        assert!(expand(&"{a,b}".repeat(20)).is_err());
    }

    #[test]
    fn an_id_of_two_rows_is_refused() {
        let entries = vec![
            Entry { row: 0, patterns: vec!["a/{b,c}".to_owned()] },
            Entry { row: 1, patterns: vec!["a/c".to_owned()] },
        ];
        assert_eq!(IdTable::new(entries).unwrap_err().0, 2);
    }

    #[test]
    fn an_open_end_stays_within_its_name() {
        let table =
            IdTable::new(vec![Entry { row: 7, patterns: vec!["o/x-*".to_owned(), "s:*".to_owned()] }])
                .unwrap();
        assert_eq!(table.find("O/X-1"), Some(7));
        assert_eq!(table.find("o/x-1/y"), None);
        assert_eq!(table.find("o/x-"), None);
        assert_eq!(table.find("s:org/name"), Some(7));
        assert_eq!(table.find("hf:o/x-2"), Some(7));
        assert_eq!(table.find(&"s:".repeat(2000)), None);
    }

    #[test]
    fn endpoints_belong_to_services_whatever_their_spelling() {
        assert_eq!(service_of_endpoint("https://api.openai.com/v1"), Some("openai"));
        assert_eq!(service_of_endpoint("HTTPS://user:pw@API.OpenAI.com.:443/v1"), Some("openai"));
        assert_eq!(service_of_endpoint("https://my.openai.azure.com/x"), Some("azure"));
        assert_eq!(service_of_endpoint("https://bedrock-runtime.eu-west-1.amazonaws.com"), Some("bedrock"));
        assert_eq!(service_of_endpoint("http://127.0.0.1:8080/v1"), None);
        assert_eq!(service_of_endpoint("https://api.openai.com.example.org/v1"), None);
        assert_eq!(service_of_endpoint("https://notapi.openai.com/v1"), None);
    }

    #[test]
    fn a_route_is_sent_without_its_service() {
        assert_eq!(model_of_route("openai:gpt-4o"), "gpt-4o");
        assert_eq!(model_of_route("together:meta-llama/Llama-3.1-8B"), "meta-llama/Llama-3.1-8B");
        assert_eq!(model_of_route("my-teacher"), "my-teacher");
        assert_eq!(model_of_route("org/name"), "org/name");
    }
}

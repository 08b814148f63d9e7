//! Which files of a repository a model needs.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use stillroom_net::hub::{ListedFile, RemoteFile, Repository, check_name};

use crate::failure::{Exit, Failure, Result};

/// Which shard holds which tensor.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// Bytes of a file that is read whole.
const SMALL_BYTES_MAX: u64 = 256 << 20;
/// Patterns of one command, and characters of one pattern.
const PATTERNS_MAX: usize = 64;
const PATTERN_BYTES_MAX: usize = 256;
/// Shards that an index may name.
const SHARDS_MAX: usize = 10_000;

/// What a model needs beside its weights, where it is there.
const SMALL: [&str; 13] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "README.md",
    INDEX,
];
const SMALL_HEADS: [&str; 4] = ["license", "licence", "copying", "notice"];
/// What `--include` can name: data that nothing executes. Pickles and programs are not among it.
const DATA: [&str; 8] = ["safetensors", "gguf", "json", "jinja", "txt", "md", "model", "tiktoken"];

/// The files that are asked for.
pub(super) struct Selection {
    patterns: Vec<String>,
}

impl Selection {
    pub(super) fn new(patterns: &[String]) -> Result<Selection> {
        let long = patterns.iter().any(|pattern| pattern.is_empty() || pattern.len() > PATTERN_BYTES_MAX);
        if long || patterns.len() > PATTERNS_MAX {
            let cause = format!("at most {PATTERNS_MAX} patterns of 1 to {PATTERN_BYTES_MAX} bytes");
            return Err(Failure::new(Exit::Usage, cause).at("--include"));
        }
        Ok(Selection { patterns: patterns.to_vec() })
    }

    /// Configuration, tokenizer, licences, card.
    pub(super) fn small<'a>(&self, repository: &'a Repository) -> Vec<&'a ListedFile> {
        repository.files.iter().filter(|file| is_small(&file.name)).collect()
    }

    /// The weights: what the patterns name, else the index's shards, else `model.safetensors`, else every
    /// safetensors file beside `config.json`.
    pub(super) fn weights<'a>(
        &self,
        repository: &'a Repository,
        index: Option<&Path>,
    ) -> Result<Vec<&'a ListedFile>> {
        let by = |wanted: &dyn Fn(&str) -> bool| -> Vec<&'a ListedFile> {
            repository.files.iter().filter(|file| wanted(&file.name) && !is_small(&file.name)).collect()
        };
        if !self.patterns.is_empty() {
            let named = by(&|name| is_data(name) && self.patterns.iter().any(|p| matches(p, name)));
            let small = || repository.files.iter().filter(|file| is_small(&file.name));
            let is_enough = small().any(|file| self.patterns.iter().any(|p| matches(p, &file.name)));
            return if named.is_empty() && !is_enough { Err(self.nothing(repository)) } else { Ok(named) };
        }
        if let Some(index) = index {
            let shards = shards(index)?;
            let found = by(&|name| shards.contains(name));
            return match shards.iter().find(|shard| !found.iter().any(|file| file.name == **shard)) {
                Some(missing) => Err(Failure::new(
                    Exit::BadData,
                    format!("`{INDEX}` names `{missing}`, which is not in the repository"),
                )
                .fix("name the weights with `--include`")),
                None => Ok(found),
            };
        }
        let single = by(&|name| name == "model.safetensors");
        let weights = if single.is_empty() {
            by(&|name| !name.contains('/') && has_extension(name, "safetensors"))
        } else {
            single
        };
        if weights.is_empty() { Err(self.nothing(repository)) } else { Ok(weights) }
    }

    /// Small files must be small.
    pub(super) fn check_size(&self, file: &RemoteFile) -> Result<()> {
        if is_small(&file.name) && file.bytes > SMALL_BYTES_MAX {
            let cause = format!("`{}` is {} bytes long, more than {SMALL_BYTES_MAX}", file.name, file.bytes);
            return Err(Failure::new(Exit::BadData, cause).fix("do not use this repository"));
        }
        Ok(())
    }

    fn nothing(&self, repository: &Repository) -> Failure {
        let id = &repository.id;
        let cause = if self.patterns.is_empty() {
            format!("`{id}` has no weights in safetensors files")
        } else {
            format!("`{id}` has no such file that only holds data")
        };
        let failure = Failure::new(Exit::BadData, cause).code("no-weights");
        let ggufs = repository.files.iter().filter(|file| has_extension(&file.name, "gguf"));
        let names: Vec<&str> = ggufs.map(|file| file.name.as_str()).take(3).collect();
        match names.first() {
            Some(first) => failure
                .detail(format!("it has {}", names.join(", ")))
                .next(format!("stillroom pull {id} --include {first}")),
            None => {
                failure.fix("name a repository with `.safetensors` files, or `.gguf` files by `--include`")
            }
        }
    }
}

fn is_small(name: &str) -> bool {
    let is_template =
        || name.strip_prefix("additional_chat_templates/").is_some_and(|n| has_extension(n, "jinja"));
    let is_licence = || {
        let lower = name.to_lowercase();
        let plain = !has_extension(name, "pdf") && !has_extension(name, "py");
        !name.contains('/') && plain && SMALL_HEADS.iter().any(|head| lower.starts_with(head))
    };
    SMALL.contains(&name) || is_licence() || is_template()
}

fn is_data(name: &str) -> bool {
    DATA.iter().any(|extension| has_extension(name, extension))
}

fn has_extension(name: &str, extension: &str) -> bool {
    Path::new(name).extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

/// The files that an index names.
fn shards(index: &Path) -> Result<BTreeSet<String>> {
    let bytes = std::fs::read(index).map_err(|e| Failure::io("read", index, &e))?;
    let bad = |what: String| Failure::new(Exit::BadData, format!("`{INDEX}` {what}"));
    let read: Value = serde_json::from_slice(&bytes).map_err(|e| bad(format!("is not JSON: {e}")))?;
    let map = read.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| bad("has no `weight_map`".to_owned()))?;
    let mut shards = BTreeSet::new();
    for shard in map.values() {
        let name = shard.as_str().ok_or_else(|| bad("names a file that is no text".to_owned()))?;
        check_name(name)?;
        if !has_extension(name, "safetensors") {
            return Err(bad(format!("names `{name}`, which is no safetensors file")));
        }
        shards.insert(name.to_owned());
        if shards.len() > SHARDS_MAX {
            return Err(bad(format!("names more than {SHARDS_MAX} files")));
        }
    }
    Ok(shards)
}

/// Whether `name` fits `pattern`: `*` is any text, `/` too, and `?` any character, as in the hub's own tools.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == '?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((at, from)) = star else { return false };
                star = Some((at, from + 1));
                p = at + 1;
                n = from + 1;
            }
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stillroom_net::hub::RepositoryId;

    use super::*;

    fn repository(names: &[&str]) -> Repository {
        let file = |name: &&str| ListedFile { name: (*name).to_owned(), bytes: None, content: None };
        let id = RepositoryId::parse("o/n").expect("a plain name");
        Repository { id, commit: "0".repeat(40), files: names.iter().map(file).collect() }
    }

    fn names(files: Vec<&ListedFile>) -> Vec<&str> {
        files.into_iter().map(|file| file.name.as_str()).collect()
    }

    fn all(patterns: &[&str]) -> Selection {
        Selection::new(&patterns.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>()).expect("patterns")
    }

    #[test]
    fn weights_are_safetensors_unless_named() {
        let both = repository(&[
            "config.json",
            "model.safetensors",
            "consolidated.safetensors",
            "x.gguf",
            "pytorch_model.bin",
        ]);
        assert_eq!(names(all(&[]).weights(&both, None).unwrap()), ["model.safetensors"]);
        assert_eq!(names(all(&["*.gguf"]).weights(&both, None).unwrap()), ["x.gguf"]);
        assert!(all(&["*.bin"]).weights(&both, None).is_err());
        let loose = repository(&["a.safetensors", "onnx/b.safetensors"]);
        assert_eq!(names(all(&[]).weights(&loose, None).unwrap()), ["a.safetensors"]);
        let gguf = repository(&["q.gguf"]);
        let told = all(&[]).weights(&gguf, None).unwrap_err().to_string();
        assert!(told.contains("stillroom pull o/n --include q.gguf"), "{told}");
    }

    #[test]
    fn small_files_are_configuration_tokenizer_and_licences() {
        let repository = repository(&[
            "LICENSE",
            "Licence.md",
            "NOTICE",
            "README.md",
            "additional_chat_templates/rag.jinja",
            "config.json",
            "license_check.py",
            "modeling_x.py",
            "sub/config.json",
            "tokenizer.json",
        ]);
        let expected = [
            "LICENSE",
            "Licence.md",
            "NOTICE",
            "README.md",
            "additional_chat_templates/rag.jinja",
            "config.json",
            "tokenizer.json",
        ];
        assert_eq!(names(all(&[]).small(&repository)), expected);
    }

    #[test]
    fn an_index_decides_which_shards_there_are() {
        let dir = tempfile::tempdir().unwrap();
        let index = dir.path().join(INDEX);
        let put = |text: &str| std::fs::write(&index, text).unwrap();
        let repository = repository(&["consolidated.safetensors", "m-1.safetensors", "m-2.safetensors"]);
        put(r#"{"weight_map":{"a":"m-2.safetensors","b":"m-1.safetensors","c":"m-1.safetensors"}}"#);
        let found = all(&[]).weights(&repository, Some(&index)).unwrap();
        assert_eq!(names(found), ["m-1.safetensors", "m-2.safetensors"]);
        for bad in [
            r#"{"weight_map":{"a":"../../m-1.safetensors"}}"#,
            r#"{"weight_map":{"a":"/m-1.safetensors"}}"#,
            r#"{"weight_map":{"a":"m-3.safetensors"}}"#,
            r#"{"weight_map":{"a":"m.bin"}}"#,
            r#"{"weight_map":{"a":1}}"#,
            r#"{"weight_map":[]}"#,
            "{",
        ] {
            put(bad);
            assert!(all(&[]).weights(&repository, Some(&index)).is_err(), "{bad}");
        }
    }

    #[test]
    fn patterns_match_as_in_the_hubs_tools() {
        for (pattern, name) in
            [("*.gguf", "a/b.gguf"), ("*", ""), ("a?c", "abc"), ("*Q4*.g*", "x-Q4_K.gguf"), ("", "")]
        {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("*.gguf", "a.gguf2"), ("?", ""), ("a", "ab"), ("b*", "ab")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    proptest! {
        #[test]
        fn a_star_in_place_of_any_piece_still_matches(name in "[a-c/.]{0,8}", from in 0usize..9, to in 0usize..9) {
            let (from, to) = (from.min(name.len()), to.min(name.len()));
            let (from, to) = (from.min(to), from.max(to));
            let pattern = format!("{}*{}", &name[..from], &name[to..]);
            prop_assert!(matches(&pattern, &name));
        }
    }
}

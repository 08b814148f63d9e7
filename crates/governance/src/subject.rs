//! What the gate is asked about: an ID, and what lies in the model's own directory.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;
use stillroom_core::Digest;

use crate::error::{GovernanceError, Result};
use crate::identity::plain_id;
use crate::licence_text::{Identified, TEXT_BYTES_MAX, copyright_lines, identify};
use crate::own_assets::{digest_of_weights, is_own_name};

/// Entries of a model directory that are looked at.
pub const ENTRIES_MAX: usize = 10_000;
/// Licence files of a directory that are read.
pub const LICENCE_FILES_MAX: usize = 32;
/// Bytes of `config.json` and of the card's head that are read.
pub const CARD_BYTES_MAX: usize = 1 << 20;

/// A teacher, a student's base, or data (through the model that wrote it, or a directory).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Subject {
    /// A hub name, a route `service:model`, a declared name, or a path.
    pub id: String,
    /// What its own files say, where they are at hand.
    pub found: Option<ModelEvidence>,
    /// Digest of its weights, where known; compared with a declaration's.
    pub digest: Option<Digest>,
}

impl Subject {
    /// Something known by its ID alone.
    pub fn id(id: impl Into<String>) -> Subject {
        Subject { id: plain_id(&id.into()).to_owned(), ..Subject::default() }
    }

    /// A local model directory or `.gguf` file.
    pub fn open(path: &Path) -> Result<Subject> {
        Subject::open_as(path.display().to_string(), path)
    }

    /// A local copy of something that has an ID (`hf:ORG/NAME` from the local cache). What carries the
    /// name of this program's own is digested, since only its bytes can prove it.
    pub fn open_as(id: impl Into<String>, path: &Path) -> Result<Subject> {
        let mut subject = Subject { found: Some(ModelEvidence::read(path)?), ..Subject::id(id) };
        if is_own_name(&subject.id) {
            subject.digest = digest_of_weights(path)?;
        }
        Ok(subject)
    }

    /// An argument of the command line: a path if something lies there, an ID otherwise.
    pub fn from_argument(argument: &str) -> Result<Subject> {
        let path = Path::new(argument);
        if !argument.is_empty() && path.exists() { Subject::open(path) } else { Ok(Subject::id(argument)) }
    }
}

/// A licence file and what it was recognised as.
#[derive(Clone, Debug, PartialEq)]
pub struct LicenceFile {
    pub name: String,
    pub digest: Digest,
    pub text: Identified,
    /// Its lines that say who holds the copyright.
    pub copyright: Vec<String>,
}

/// A file that goes with a licence: `NOTICE`, a use policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Paper {
    pub name: String,
    pub digest: Digest,
}

/// What a model's own files say about it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelEvidence {
    /// The directory, or the file.
    pub place: String,
    /// Where its licence files lie.
    pub dir: PathBuf,
    /// Licence files, by name.
    pub files: Vec<LicenceFile>,
    /// What goes with them, by name.
    pub papers: Vec<Paper>,
    /// Names that the files give the model itself (`_name_or_path`, the hub cache's folder).
    pub claims: Vec<String>,
    /// Names of models that it says it was built on (`base_model` of the card).
    pub bases: Vec<String>,
    /// Names of what it says it learned from (`datasets` of the card).
    pub datasets: Vec<String>,
    /// The licence tag of the card or of GGUF metadata: a hint, never evidence.
    pub tag: Option<String>,
}

impl ModelEvidence {
    /// Reads licence files, `config.json` and the head of `README.md` of a model directory; for a
    /// file, the licence files beside it that can only be its own.
    pub fn read(path: &Path) -> Result<ModelEvidence> {
        let is_dir = fs::metadata(path).map_err(io(path))?.is_dir();
        let dir = if is_dir { path } else { path.parent().unwrap_or(Path::new(".")) };
        let mut evidence = ModelEvidence {
            place: path.display().to_string(),
            dir: dir.to_path_buf(),
            ..ModelEvidence::default()
        };
        for name in licence_files_of(path, dir, is_dir)? {
            let bytes = read_head(&dir.join(&name), TEXT_BYTES_MAX + 1)?;
            let (digest, text) = (Digest::of(&bytes), String::from_utf8_lossy(&bytes));
            let copyright = copyright_lines(&text);
            evidence.files.push(LicenceFile { name, digest, text: identify(&text), copyright });
        }
        if is_dir {
            for name in names_in(dir)?.0.into_iter().filter(|name| is_paper(name)).take(LICENCE_FILES_MAX) {
                let digest = Digest::of(&read_head(&dir.join(&name), TEXT_BYTES_MAX + 1)?);
                evidence.papers.push(Paper { name, digest });
            }
            evidence.claims.extend(hub_name(path));
            evidence.read_config(&dir.join("config.json"))?;
            evidence.read_card(&dir.join("README.md"))?;
        }
        Ok(evidence)
    }

    fn read_config(&mut self, path: &Path) -> Result<()> {
        if !path.is_file() {
            return Ok(());
        }
        let bytes = read_head(path, CARD_BYTES_MAX)?;
        let config: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        if let Some(name) = config.get("_name_or_path").and_then(Value::as_str)
            && !name.is_empty()
            && !self.claims.iter().any(|known| known == name)
        {
            self.claims.push(name.to_owned());
        }
        Ok(())
    }

    fn read_card(&mut self, path: &Path) -> Result<()> {
        if !path.is_file() {
            return Ok(());
        }
        let bytes = read_head(path, CARD_BYTES_MAX)?;
        let text = String::from_utf8_lossy(&bytes);
        let front = front_matter(&text);
        self.bases = front.values("base_model");
        self.datasets = front.values("datasets");
        let tag = |key| front.values(key).into_iter().next();
        self.tag = match tag("license").as_deref() {
            Some("other") => tag("license_name").or(Some("other".to_owned())),
            _ => tag("license"),
        };
        Ok(())
    }

    /// The licences that its files were recognised as, each once.
    pub(crate) fn licences(&self) -> Vec<&str> {
        let mut licences: Vec<&str> = Vec::new();
        for file in &self.files {
            if let Identified::As { licence } = &file.text
                && !licences.contains(&licence.as_str())
            {
                licences.push(licence);
            }
        }
        licences
    }

    /// Licence files whose text nobody knows.
    pub(crate) fn unread(&self) -> impl Iterator<Item = &LicenceFile> {
        self.files.iter().filter(|file| !matches!(file.text, Identified::As { .. }))
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> GovernanceError + use<> {
    let path = path.to_path_buf();
    move |source| GovernanceError::Io { path, source }
}

pub(crate) fn read_head(path: &Path, bytes_max: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(io(path))?;
    file.take(bytes_max as u64).read_to_end(&mut bytes).map_err(io(path))?;
    Ok(bytes)
}

/// Names of the licence files of a model, sorted.
///
/// In a directory: `LICENSE…`, `LICENCE…`, `COPYING…`, without those for code where there is one for
/// the model. For a single file: `NAME.LICENSE` or `STEM.LICENSE`, else the directory's, provided
/// that no other model lies there that they could belong to.
fn licence_files_of(path: &Path, dir: &Path, is_dir: bool) -> Result<Vec<String>> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let (mut names, models) = names_in(dir)?;
    if !is_dir {
        let file = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
        let stem = path.file_stem().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
        let own = [format!("{file}.license"), format!("{stem}.license")];
        if let Some(name) = names.iter().find(|name| own.contains(&name.to_lowercase())) {
            return Ok(vec![name.clone()]);
        }
        if models > 1 && !dir.join("config.json").is_file() {
            return Ok(Vec::new());
        }
    }
    names.retain(|name| is_licence_name(name));
    if names.iter().any(|name| name.to_lowercase().contains("model")) {
        names.retain(|name| !name.to_lowercase().contains("code"));
    }
    names.truncate(LICENCE_FILES_MAX);
    Ok(names)
}

/// Names of the files of a directory, sorted, and how many models lie in it.
fn names_in(dir: &Path) -> Result<(Vec<String>, usize)> {
    let mut names = Vec::new();
    let mut models = 0usize;
    for entry in fs::read_dir(dir).map_err(io(dir))?.take(ENTRIES_MAX) {
        let entry = entry.map_err(io(dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        models += usize::from(has_extension(&name, "gguf") || has_extension(&name, "safetensors"));
        if entry.path().is_file() {
            names.push(name);
        }
    }
    names.sort();
    Ok((names, models))
}

fn is_paper(name: &str) -> bool {
    let name = name.to_lowercase();
    ["notice", "use_policy", "use-policy", "acceptable_use"].iter().any(|head| name.starts_with(head))
}

fn has_extension(name: &str, extension: &str) -> bool {
    Path::new(name).extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

fn is_licence_name(name: &str) -> bool {
    let name = name.to_lowercase();
    ["license", "licence", "copying", "model_license", "tongyi qianwen license"]
        .iter()
        .any(|head| name.starts_with(head))
        && !has_extension(&name, "json")
        && !has_extension(&name, "pdf")
}

/// `ORG/NAME` from a path through the hub's cache (`models--ORG--NAME/snapshots/…`).
fn hub_name(path: &Path) -> Option<String> {
    let absolute: PathBuf = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    absolute.components().rev().find_map(|component| {
        let name = component.as_os_str().to_string_lossy().into_owned();
        let (org, model) = name.strip_prefix("models--")?.split_once("--")?;
        Some(format!("{org}/{model}"))
    })
}

/// The block between `---` lines at the head of a card: scalars and flat lists, nothing else of YAML.
struct FrontMatter<'a>(Vec<&'a str>);

fn front_matter(text: &str) -> FrontMatter<'_> {
    let mut lines = text.trim_start_matches('\u{feff}').lines();
    if lines.next().map(str::trim_end) != Some("---") {
        return FrontMatter(Vec::new());
    }
    FrontMatter(lines.take_while(|line| line.trim_end() != "---").collect())
}

impl FrontMatter<'_> {
    fn values(&self, key: &str) -> Vec<String> {
        let clean = |text: &str| text.trim().trim_matches(['"', '\'']).trim().to_owned();
        let at = self
            .0
            .iter()
            .position(|line| line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(':')));
        let Some(at) = at else { return Vec::new() };
        let rest = self.0[at].split_once(':').map_or("", |(_, rest)| rest).trim();
        let values: Vec<String> = if rest.is_empty() {
            let items = self.0[at + 1..].iter().map_while(|line| line.trim_start().strip_prefix("- "));
            items.map(clean).collect()
        } else {
            rest.trim_start_matches('[').trim_end_matches(']').split(',').map(clean).collect()
        };
        values.into_iter().filter(|value| !value.is_empty()).take(LICENCE_FILES_MAX).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_a_card_gives_bases_and_tag() {
        let card = "---\nlicense: other\nlicense_name: 'llama3.1'\nbase_model:\n- a/b\n  - \"c/d\"\ntags: [x]\n---\n#";
        let front = front_matter(card);
        assert_eq!(front.values("base_model"), ["a/b", "c/d"]);
        assert_eq!(front.values("license"), ["other"]);
        assert_eq!(front.values("license_name"), ["llama3.1"]);
        assert_eq!(front_matter("---\nbase_model: [a/b, c/d]\n---").values("base_model"), ["a/b", "c/d"]);
        assert!(front_matter("license: mit").values("license").is_empty());
    }

    #[test]
    fn a_folder_with_many_models_gives_its_licence_to_none() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str| fs::write(dir.path().join(name), "text").unwrap();
        put("a.gguf");
        put("LICENSE");
        let a = dir.path().join("a.gguf");
        assert_eq!(licence_files_of(&a, dir.path(), false).unwrap(), ["LICENSE"]);
        put("b.gguf");
        assert!(licence_files_of(&a, dir.path(), false).unwrap().is_empty());
        put("a.LICENSE");
        assert_eq!(licence_files_of(&a, dir.path(), false).unwrap(), ["a.LICENSE"]);
    }

    #[test]
    fn a_licence_for_the_code_is_not_the_models() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["LICENSE-CODE", "LICENSE-MODEL", "license.json", "README.md"] {
            fs::write(dir.path().join(name), "text").unwrap();
        }
        assert_eq!(licence_files_of(dir.path(), dir.path(), true).unwrap(), ["LICENSE-MODEL"]);
    }

    #[test]
    fn the_hub_cache_names_its_model() {
        let dir = tempfile::tempdir().unwrap();
        let snapshot = dir.path().join("models--Qwen--Qwen2.5-3B/snapshots/abc");
        fs::create_dir_all(&snapshot).unwrap();
        assert_eq!(ModelEvidence::read(&snapshot).unwrap().claims, ["Qwen/Qwen2.5-3B"]);
    }
}

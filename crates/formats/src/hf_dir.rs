//! A Hugging Face model directory: `config.json`, safetensors (one file or shards), tokenizer.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::{DecoderConfig, token_ids};
use crate::error::{FormatError, Result};
use crate::files::{StagedFile, read_text};
use crate::model_files::ModelFiles;
use crate::safetensors_file::{SafetensorsFile, Writer};
use crate::tensors::{Encoding, NamedTensor, TensorSource, TensorView};
use crate::tokenizer::Tokenizer;

pub(crate) const CONFIG_BYTES_MAX: u64 = 1 << 20;
const TOKENIZER_BYTES_MAX: u64 = 1 << 27;
const TOKENIZER_CONFIG_BYTES_MAX: u64 = 1 << 24;
const TEMPLATE_BYTES_MAX: u64 = 1 << 20;
const LICENCE_BYTES_MAX: u64 = 1 << 20;
const INDEX_BYTES_MAX: u64 = 1 << 26;
const SHARDS_MAX: usize = 4096;

const LICENCE_NAMES: [&str; 8] = [
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "LICENCE",
    "LICENCE.txt",
    "LICENCE.md",
    "COPYING",
    "license.txt",
];

pub(crate) fn open(path: &Path) -> Result<ModelFiles> {
    let dir = Dir::open(path)?;
    let Some(config_text) = dir.text("config.json", CONFIG_BYTES_MAX)? else {
        return Err(FormatError::NotAModel { path: path.to_owned() });
    };
    let in_config = |error: FormatError| error.in_file(&path.join("config.json"));
    let mut config = DecoderConfig::from_json(&config_text).map_err(in_config)?;
    dir.add_generation_config(&mut config)?;
    let tensors = dir.tensors(&config)?;
    let tokenizer = dir.tokenizer()?;
    let mut licence_text = None;
    for name in LICENCE_NAMES {
        licence_text = dir.text(name, LICENCE_BYTES_MAX)?;
        if licence_text.is_some() {
            break;
        }
    }
    Ok(ModelFiles {
        config,
        tensors: Box::new(tensors),
        tokenizer,
        licence_text,
        licence_name: None,
        path: path.to_owned(),
    })
}

/// A directory whose files may not lead elsewhere.
pub(crate) struct Dir {
    path: PathBuf,
    /// `path` without links.
    root: PathBuf,
    /// In the hub's cache, `snapshots/REVISION` holds links into this folder.
    blobs: Option<PathBuf>,
}

impl Dir {
    pub(crate) fn open(path: &Path) -> Result<Dir> {
        let root = path.canonicalize().map_err(FormatError::io("open", path))?;
        let snapshots = root.parent().filter(|parent| parent.file_name() == Some(OsStr::new("snapshots")));
        let blobs = snapshots.and_then(Path::parent).map(|repository| repository.join("blobs"));
        Ok(Dir { path: path.to_owned(), root, blobs })
    }

    /// The file of that relative name, its links followed; `None` if there is none.
    ///
    /// Refused are absolute names, `..`, and links that end neither in the directory nor in the
    /// hub cache's blobs of the same repository.
    pub(crate) fn resolve(&self, name: &str) -> Result<Option<PathBuf>> {
        let escapes = || FormatError::Escapes { name: name.to_owned() };
        let relative = Path::new(name);
        let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
        if name.is_empty() || !plain || name.contains(['\\', '\0']) {
            return Err(escapes());
        }
        let target = match self.root.join(relative).canonicalize() {
            Ok(target) => target,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(FormatError::io("open", &self.path.join(relative))(error)),
        };
        let in_blobs = self.blobs.as_deref().is_some_and(|blobs| target.parent() == Some(blobs));
        if !target.starts_with(&self.root) && !in_blobs {
            return Err(escapes().in_file(&self.path));
        }
        Ok(Some(target))
    }

    pub(crate) fn text(&self, name: &str, limit: u64) -> Result<Option<String>> {
        match self.resolve(name)? {
            Some(file) => read_text(&file, limit),
            None => Ok(None),
        }
    }

    /// Ends of generation that only `generation_config.json` names.
    fn add_generation_config(&self, config: &mut DecoderConfig) -> Result<()> {
        let Some(text) = self.text("generation_config.json", CONFIG_BYTES_MAX)? else { return Ok(()) };
        let in_file = |error: FormatError| error.in_file(&self.path.join("generation_config.json"));
        let value: Value = serde_json::from_str(&text)
            .map_err(|error| in_file(FormatError::malformed("JSON", error.to_string())))?;
        for id in token_ids("eos_token_id", value.get("eos_token_id")).map_err(in_file)? {
            if !config.eos_token_ids.contains(&id) {
                config.eos_token_ids.push(id);
            }
        }
        config.validate().map_err(in_file)
    }

    fn tensors(&self, config: &DecoderConfig) -> Result<Shards> {
        let mut shards = Shards::default();
        if let Some(file) = self.resolve("model.safetensors")? {
            shards.add_file(SafetensorsFile::open(&file)?, None, "model.safetensors")?;
        } else if let Some(text) = self.text(INDEX, INDEX_BYTES_MAX)? {
            self.add_shards(&text, &mut shards).map_err(|error| error.in_file(&self.path.join(INDEX)))?;
        } else {
            return Err(self.no_safetensors());
        }
        // Rotary frequencies of old files are buffers; a tied head is the embedding.
        shards.names.retain(|name| {
            let tied_head = config.tie_word_embeddings && name == "lm_head.weight";
            !tied_head && !name.ends_with(".rotary_emb.inv_freq")
        });
        Ok(shards)
    }

    fn add_shards(&self, index: &str, shards: &mut Shards) -> Result<()> {
        let index: Index = serde_json::from_str(index)
            .map_err(|error| FormatError::malformed("safetensors index", error.to_string()))?;
        let mut by_file: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (tensor, file) in index.weight_map {
            by_file.entry(file).or_default().push(tensor);
        }
        if by_file.len() > SHARDS_MAX {
            let what = "number of shards".to_owned();
            return Err(FormatError::TooLarge {
                what,
                value: by_file.len() as u64,
                limit: SHARDS_MAX as u64,
            });
        }
        // All names before any file: a hostile index opens nothing.
        let mut paths = Vec::new();
        for file in by_file.keys() {
            let missing = std::io::Error::new(std::io::ErrorKind::NotFound, "the index names it");
            let path =
                self.resolve(file)?.ok_or_else(|| FormatError::io("open", &self.path.join(file))(missing))?;
            paths.push(path);
        }
        for ((file, tensors), path) in by_file.iter().zip(paths) {
            shards.add_file(SafetensorsFile::open(&path)?, Some(tensors), file)?;
        }
        Ok(())
    }

    fn no_safetensors(&self) -> FormatError {
        const NAMED_MAX: usize = 4;
        let mut found: Vec<String> = fs::read_dir(&self.root)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| {
                [".bin", ".pt", ".pth", ".ckpt", ".gguf", ".safetensors"]
                    .iter()
                    .any(|end| name.ends_with(end))
            })
            .collect();
        found.sort();
        found.truncate(NAMED_MAX);
        let found = if found.is_empty() { "no weights".to_owned() } else { found.join(", ") };
        FormatError::NoSafetensors { path: self.path.clone(), found }
    }

    fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        let Some(text) = self.text("tokenizer.json", TOKENIZER_BYTES_MAX)? else { return Ok(None) };
        let config = self.text("tokenizer_config.json", TOKENIZER_CONFIG_BYTES_MAX)?;
        let template = self.text("chat_template.jinja", TEMPLATE_BYTES_MAX)?;
        Tokenizer::from_json_files(&text, config.as_deref(), template.as_deref())
            .map(Some)
            .map_err(|error| error.in_file(&self.path.join("tokenizer.json")))
    }
}

const INDEX: &str = "model.safetensors.index.json";

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// The tensors of one or more safetensors files.
#[derive(Default)]
struct Shards {
    files: Vec<SafetensorsFile>,
    /// Which file holds a tensor.
    file_of: HashMap<String, usize>,
    names: Vec<String>,
}

impl Shards {
    /// Adds a file: the tensors that the index gives to it, or all.
    fn add_file(&mut self, file: SafetensorsFile, wanted: Option<&[String]>, name: &str) -> Result<()> {
        let mut tensors = file.names();
        if let Some(wanted) = wanted {
            let held: std::collections::HashSet<&String> = tensors.iter().collect();
            if let Some(absent) = wanted.iter().find(|tensor| !held.contains(tensor)) {
                let what = format!("`{absent}` is not in `{name}`, where the index says it is");
                return Err(FormatError::malformed("safetensors index", what));
            }
            let wanted: std::collections::HashSet<&String> = wanted.iter().collect();
            tensors.retain(|tensor| wanted.contains(tensor));
        }
        for tensor in tensors {
            self.file_of.insert(tensor.clone(), self.files.len());
            self.names.push(tensor);
        }
        self.files.push(file);
        Ok(())
    }
}

impl TensorSource for Shards {
    fn names(&self) -> Vec<String> {
        self.names.clone()
    }

    fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        match self.file_of.get(name) {
            Some(&file) => self.files[file].tensor(name),
            None => Err(FormatError::MissingTensor { name: name.to_owned() }),
        }
    }
}

/// Writes a directory that transformers, vLLM and this program read: `config.json`,
/// `generation_config.json`, `model.safetensors` in `store` (f32, f16 or bf16) and, with a
/// tokenizer, `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`.
///
/// The tensors may come in any order, each exactly once. Files get their names together at the
/// end; on an error none of them exists.
pub fn write_hf_dir(
    dir: &Path,
    config: &DecoderConfig,
    tensors: &mut dyn Iterator<Item = NamedTensor>,
    store: Encoding,
    tokenizer: Option<&Tokenizer>,
) -> Result<()> {
    config.validate()?;
    if let Some(tokenizer) = tokenizer {
        check_vocabulary(config, tokenizer)?;
    }
    fs::create_dir_all(dir).map_err(FormatError::io("create", dir))?;
    let weights_path = dir.join("model.safetensors");
    let mut weights = StagedFile::create(&weights_path)?;
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut writer = Writer::start(weights.writer(), &weights_path, &config.parameters(), store, &metadata)?;
    for NamedTensor { name, shape, data } in tensors {
        writer.put(&name, &shape, &data)?;
    }
    writer.finish()?;

    let mut files = vec![weights];
    let mut stage = |name: &str, text: &str| -> Result<()> {
        files.push(StagedFile::with_text(&dir.join(name), text)?);
        Ok(())
    };
    let mut config_json = config.to_json();
    config_json["torch_dtype"] = json!(match store {
        Encoding::F16 => "float16",
        Encoding::BF16 => "bfloat16",
        _ => "float32",
    });
    stage("config.json", &pretty(&config_json))?;
    let generation = json!({
        "bos_token_id": config_json["bos_token_id"],
        "eos_token_id": config_json["eos_token_id"],
        "do_sample": false,
    });
    stage("generation_config.json", &pretty(&generation))?;
    if let Some(tokenizer) = tokenizer {
        stage("tokenizer.json", tokenizer.tokenizer_json())?;
        stage("tokenizer_config.json", &pretty(&tokenizer.tokenizer_config(config)?))?;
        if let Some(template) = tokenizer.chat_template() {
            stage("chat_template.jinja", template)?;
        }
    }
    files.into_iter().try_for_each(StagedFile::commit)
}

/// Every token needs a row; rows without a token are padding.
pub(crate) fn check_vocabulary(config: &DecoderConfig, tokenizer: &Tokenizer) -> Result<()> {
    let (tokens, rows) = (tokenizer.vocab_size(), config.vocab_size);
    if tokens > rows { Err(FormatError::Vocabulary { tokens, rows }) } else { Ok(()) }
}

pub(crate) fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

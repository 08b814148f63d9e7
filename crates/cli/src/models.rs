//! Models on disk: where a `MODEL` argument points, and how it is loaded.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use stillroom_formats::{ModelFiles, Tokenizer};
use stillroom_kernels::Device;
use stillroom_model::Decoder;

use crate::args::Machine;
use crate::failure::{Exit, Failure, Result};

/// A model ready to compute.
pub(crate) struct Model {
    pub(crate) decoder: Decoder,
    pub(crate) tokenizer: Tokenizer,
}

/// The device that a command computes on.
pub(crate) fn device(machine: &Machine) -> Arc<Device> {
    Arc::new(Device::cpu(threads(machine)))
}

pub(crate) fn threads(machine: &Machine) -> usize {
    let all = || std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    machine.threads.map_or_else(all, std::num::NonZeroUsize::get)
}

/// The path of a `MODEL`: a path as it is, or `hf:ORG/NAME` in the local hub cache.
pub(crate) fn locate(named: &str) -> Result<PathBuf> {
    let Some(repository) = named.strip_prefix("hf:") else {
        let path = PathBuf::from(named);
        if path.exists() {
            return Ok(path);
        }
        let failure = Failure::new(Exit::Io, format!("there is no model at `{named}`")).code("no-model");
        return Err(failure.fix("name a Hugging Face directory, a `.gguf` file, or `hf:ORG/NAME`"));
    };
    let plain = |part: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty() && !part.starts_with('.') && part.chars().all(known)
    };
    let Some((organisation, name)) = repository.split_once('/').filter(|(o, n)| plain(o) && plain(n)) else {
        return Err(Failure::new(Exit::Usage, format!("`{named}` is not of the form `hf:ORG/NAME`")));
    };
    let cache = hub_cache();
    let folder = cache.join(format!("models--{organisation}--{name}"));
    snapshot(&folder).ok_or_else(|| {
        Failure::new(Exit::Io, format!("`{repository}` is not in the hub cache `{}`", cache.display()))
            .code("no-model")
            .fix("download it with your hub's own tool, or name its folder")
    })
}

/// `HF_HUB_CACHE`, else `$HF_HOME/hub`, else the default place.
pub(crate) fn hub_cache() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    variable("HF_HUB_CACHE")
        .or_else(|| variable("HF_HOME").map(|home| home.join("hub")))
        .unwrap_or_else(|| variable("HOME").unwrap_or_default().join(".cache/huggingface/hub"))
}

/// The snapshot that `refs/main` names, else the only one there is.
fn snapshot(folder: &Path) -> Option<PathBuf> {
    let snapshots = folder.join("snapshots");
    if let Ok(commit) = std::fs::read_to_string(folder.join("refs/main")) {
        let commit = commit.trim();
        let path = snapshots.join(commit);
        if commit.chars().all(|c| c.is_ascii_hexdigit()) && !commit.is_empty() && path.is_dir() {
            return Some(path);
        }
    }
    let mut found = std::fs::read_dir(&snapshots).ok()?.flatten().map(|entry| entry.path());
    let only = found.next()?;
    found.next().is_none().then_some(only)
}

/// Opens and loads a `MODEL`.
pub(crate) fn load(named: &str, device: Arc<Device>) -> Result<Model> {
    load_files(ModelFiles::open(&locate(named)?)?, device)
}

pub(crate) fn load_files(files: ModelFiles, device: Arc<Device>) -> Result<Model> {
    let ModelFiles { config, tensors, tokenizer, path, .. } = files;
    let tokenizer = tokenizer.ok_or_else(|| {
        Failure::new(Exit::BadData, format!("`{}` has no tokenizer", path.display()))
            .fix("put its `tokenizer.json` beside `config.json`")
    })?;
    let decoder = Decoder::load(device, config, tensors.as_ref())
        .map_err(|e| Failure::from(e).at(path.display().to_string()))?;
    Ok(Model { decoder, tokenizer })
}

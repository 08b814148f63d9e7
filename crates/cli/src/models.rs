//! Models on disk: where a `MODEL` argument points, and how it is loaded.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use stillroom_formats::{ModelFiles, PeftAdapter, Tokenizer};
use stillroom_kernels::Device;
use stillroom_model::{Decoder, WeightStorage};
use stillroom_net::hub::{RepositoryId, check_revision, is_commit};

use crate::args::Machine;
use crate::failure::{Exit, Failure, Result};

/// A model ready to score and to write, its weights held as they are stored.
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

/// The path of a `MODEL`: a path as it is, or `hf:ORG/NAME[@REVISION]` in the local hub cache.
pub(crate) fn locate(named: &str) -> Result<PathBuf> {
    let Some(wanted) = named.strip_prefix("hf:") else {
        let path = PathBuf::from(named);
        if path.exists() {
            return Ok(path);
        }
        let failure = Failure::new(Exit::Io, format!("there is no model at `{named}`")).code("no-model");
        return Err(failure.fix("name a Hugging Face directory, a `.gguf` file, or `hf:ORG/NAME`"));
    };
    let (repository, revision) = wanted.split_once('@').unwrap_or((wanted, "main"));
    let form = |_| {
        let failure = Failure::new(Exit::Usage, format!("`{named}` is not of the form `hf:ORG/NAME`"));
        failure.fix("write the name as the hub shows it; a revision may follow after `@`")
    };
    let id = RepositoryId::parse(repository).map_err(form)?;
    check_revision(revision).map_err(form)?;
    let cache = hub_cache();
    let found = snapshot(&cache.join(id.folder()), revision).ok_or_else(|| {
        Failure::new(Exit::Io, format!("`{wanted}` is not in the hub cache `{}`", cache.display()))
            .code("no-model")
            .fix("download it, or name its folder")
            .next(match revision {
                "main" => format!("stillroom pull {id}"),
                _ => format!("stillroom pull {id} --revision {revision}"),
            })
    })?;
    Ok(only_gguf(&found).unwrap_or(found))
}

/// `HF_HUB_CACHE`, else `$HF_HOME/hub`, else the default place.
pub(crate) fn hub_cache() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home =
        || variable("XDG_CACHE_HOME").unwrap_or_else(|| variable("HOME").unwrap_or_default().join(".cache"));
    variable("HF_HUB_CACHE")
        .unwrap_or_else(|| variable("HF_HOME").unwrap_or_else(|| home().join("huggingface")).join("hub"))
}

/// The snapshot of a revision: the commit itself, else what `refs/REVISION` names, else for `main` the
/// only one there is.
pub(crate) fn snapshot(folder: &Path, revision: &str) -> Option<PathBuf> {
    let snapshots = folder.join("snapshots");
    let commit = if is_commit(revision) {
        Some(revision.to_owned())
    } else {
        std::fs::read_to_string(folder.join("refs").join(revision)).ok()
    };
    if let Some(commit) = commit {
        let path = snapshots.join(commit.trim());
        if is_commit(commit.trim()) && path.is_dir() {
            return Some(path);
        }
    }
    if revision != "main" {
        return None;
    }
    let mut found = std::fs::read_dir(&snapshots).ok()?.flatten().map(|entry| entry.path());
    let only = found.next()?;
    found.next().is_none().then_some(only)
}

/// The one `.gguf` file of a snapshot without safetensors files.
fn only_gguf(snapshot: &Path) -> Option<PathBuf> {
    let names = std::fs::read_dir(snapshot).ok()?.flatten().map(|entry| entry.path());
    let has = |path: &Path, extension| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension));
    let (mut gguf, mut others) = (Vec::new(), false);
    for path in names {
        others |= has(&path, "safetensors");
        if has(&path, "gguf") {
            gguf.push(path);
        }
    }
    match (gguf.pop(), gguf.is_empty(), others) {
        (Some(only), true, false) => Some(only),
        _ => None,
    }
}

/// Opens and loads a `MODEL`.
pub(crate) fn load(named: &str, device: Arc<Device>) -> Result<Model> {
    load_files(ModelFiles::open(&locate(named)?)?, device)
}

/// [`load`], with the adapter of a directory.
pub(crate) fn load_adapted(named: &str, adapter: Option<&str>, device: Arc<Device>) -> Result<Model> {
    let Some(adapter) = adapter else { return load(named, device) };
    let files = adapter_files(adapter)?;
    let Model { decoder, tokenizer } = load(named, device)?;
    Ok(Model { decoder: with_adapter(decoder, files)?, tokenizer })
}

/// Opens what `--adapter` names.
pub(crate) fn adapter_files(named: &str) -> Result<PeftAdapter> {
    let path = locate(named).map_err(|failure| failure.at("--adapter"))?;
    PeftAdapter::open(&path).map_err(|error| Failure::from(error).at(path.display().to_string()))
}

/// The model with an adapter, which must have been made for one of its shape.
pub(crate) fn with_adapter(decoder: Decoder, files: PeftAdapter) -> Result<Decoder> {
    let PeftAdapter { config, base_model, tensors, path } = files;
    decoder.with_adapter(config, tensors.as_ref()).map_err(|error| {
        let its_own = base_model.map_or(String::new(), |base| format!(": it names `{base}`"));
        let cause = format!("the adapter does not fit this model: {error}");
        Failure::new(Exit::from(error.kind()), cause)
            .code("wrong-adapter")
            .at(path.display().to_string())
            .fix(format!("take the model that it was made for{its_own}"))
    })
}

pub(crate) fn load_files(files: ModelFiles, device: Arc<Device>) -> Result<Model> {
    let ModelFiles { config, tensors, tokenizer, path, .. } = files;
    let tokenizer = tokenizer.ok_or_else(|| {
        Failure::new(Exit::BadData, format!("`{}` has no tokenizer", path.display()))
            .fix("put its `tokenizer.json` beside `config.json`")
    })?;
    let decoder = Decoder::load_as(WeightStorage::AsStored, device, config, tensors.as_ref())
        .map_err(|e| Failure::from(e).at(path.display().to_string()))?;
    Ok(Model { decoder, tokenizer })
}

//! Whether what a run released is what its training chose: the checkpoint's tensors, written again, against the release's.

use std::path::{Path, PathBuf};

use serde::Serialize;
use stillroom_core::Digest;
use stillroom_distill::checkpoint_path;
use stillroom_formats::{Encoding, FormatError, MappedFile, NamedTensor, peft, safetensors_file};
use stillroom_store::digest_file;

use crate::failure::Result;
use crate::flow::Flow;
use crate::flow::release::{self, encoding};
use crate::flow::steps::{self, Steps};
use crate::flow::train::ADAPTER;
use crate::recipe::Recipe;

/// Of a model and of a checkpoint of all weights.
const MODEL: &str = "model.safetensors";

/// What came of comparing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ReleasedWeights {
    /// The step whose checkpoint was chosen.
    pub(crate) step: u64,
    /// Tensors of the release that are the checkpoint's, bit for bit.
    pub(crate) tensors: usize,
    /// What was not compared, and why.
    pub(crate) unchecked: Option<String>,
    /// The first thing that differs.
    pub(crate) difference: Option<String>,
}

/// The checkpoint that training chose.
struct Chosen {
    step: u64,
    /// What was trained.
    weights: PathBuf,
    store: Encoding,
    is_adapter: bool,
}

/// Compares as far as the run alone suffices: of an adapter that is trained the adapter, and not the weights that it was merged
/// into. None of a release on its own, and of a run that has no record of its steps.
pub(crate) fn check(run: &Path) -> Result<Option<ReleasedWeights>> {
    let (record, recipe) = (run.join(steps::PATH), run.join("recipe.toml"));
    if !record.is_file() || !recipe.is_file() || !run.join(release::FOLDER).join(MODEL).is_file() {
        return Ok(None);
    }
    let (recipe, _) = Recipe::load(&recipe, &[])?;
    let record = Steps::read(&record)?;
    let Some((_, step)) = record.finished else { return Ok(None) };
    let found = |tensors, unchecked: Option<&str>, difference| {
        let unchecked = unchecked.map(str::to_owned);
        Ok(Some(ReleasedWeights { step, tensors, unchecked, difference }))
    };
    let chosen = Chosen::of(run, &recipe, step);
    if !chosen.weights.is_file() {
        return found(0, Some("the checkpoint that was chosen is not here"), None);
    }
    if let Some(difference) = chosen.not_on_record(&record)? {
        return found(0, None, Some(difference));
    }
    let folder = run.join(release::FOLDER);
    let released = match chosen.is_adapter {
        true => folder.join(ADAPTER).join(peft::WEIGHTS),
        false => folder.join(MODEL),
    };
    let bytes = MappedFile::open(&chosen.weights)?;
    let trained = safetensors_file::read(&bytes)?;
    let (tensors, difference) = compare(&released, trained.f32_tensors(), &chosen)?;
    let unchecked = "the weights that the adapter was merged into, for which its base is needed: `--replay` compares them";
    found(tensors, chosen.is_adapter.then_some(unchecked), difference)
}

impl Chosen {
    fn of(run: &Path, recipe: &Recipe, step: u64) -> Chosen {
        let is_adapter = recipe.train.lora.is_some();
        let file = if is_adapter { peft::WEIGHTS } else { MODEL };
        let weights = checkpoint_path(&run.join("checkpoints"), step).join(file);
        Chosen { step, weights, store: encoding(recipe.release.dtype), is_adapter }
    }

    /// In what its weights are not those that the record of the steps has.
    fn not_on_record(&self, record: &Steps) -> Result<Option<String>> {
        let name =
            self.weights.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let recorded: Option<Digest> =
            record.checkpoints.get(&self.step).and_then(|files| files.get(&name)).copied();
        let step = self.step;
        let (found, _) = digest_file(&self.weights)?;
        Ok((recorded != Some(found))
            .then(|| format!("`{name}` of the checkpoint of step {step} is not the one on record")))
    }
}

/// How many tensors of a released file are these, and the first that is another.
fn compare(
    released: &Path,
    tensors: impl Iterator<Item = std::result::Result<NamedTensor, FormatError>>,
    chosen: &Chosen,
) -> Result<(usize, Option<String>)> {
    if !released.is_file() {
        return Ok((0, Some(format!("`{}` is missing", released.display()))));
    }
    let bytes = MappedFile::open(released)?;
    let (alike, difference) =
        safetensors_file::compare(&safetensors_file::read(&bytes)?, tensors, chosen.store)?;
    let name = released.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let step = chosen.step;
    Ok((
        alike,
        difference.map(|what| format!("the released `{name}` is not what step {step} came to: {what}")),
    ))
}

impl Flow {
    /// [`check`], and where an adapter was trained also the weights that it was merged into.
    pub(super) fn check_weights(&self) -> Result<Option<ReleasedWeights>> {
        let Some(found) = check(self.run.root())? else { return Ok(None) };
        let chosen = Chosen::of(self.run.root(), &self.recipe, found.step);
        if !chosen.is_adapter || found.difference.is_some() || !chosen.weights.is_file() {
            return Ok(Some(found));
        }
        let bytes = MappedFile::open(&chosen.weights)?;
        let mut decoder = self.start()?.decoder.with_trained(&safetensors_file::read(&bytes)?)?;
        decoder.merge();
        let (merged, difference) =
            compare(&self.run.release().join(MODEL), decoder.tensors().map(Ok), &chosen)?;
        let tensors = found.tensors + merged;
        Ok(Some(ReleasedWeights { tensors, unchecked: None, difference, ..found }))
    }
}

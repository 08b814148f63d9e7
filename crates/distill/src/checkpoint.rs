//! Checkpoints: `step-000100/` with `model.safetensors`, `optimiser.safetensors`, `config.json` and
//! `state.json`; where an adapter is trained, its weights and settings stand in place of the model's, as PEFT
//! keeps them.
//!
//! A checkpoint is committed as a whole directory, and `state.json` holds the digest of every other
//! file and of itself: whatever was cut short or altered is noticed before anything is loaded.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stillroom_core::{Digest, Digester, Scorer};
use stillroom_formats::{Encoding, MappedFile, NamedTensor, peft, safetensors_file, write_peft_dir};
use stillroom_model::{Decoder, TrainState};
use stillroom_store::{StoreError, atomic_dir, atomic_write, digest_file, remove_dir};

use crate::batches::LossSums;
use crate::rollouts::RolloutState;
use crate::{DistillError, Material, Result, TrainConfig, TrainPoint, ValidationPoint};

/// Version of `state.json`. 2: any list of losses.
const FORMAT: u32 = 2;
/// Largest `state.json` read, in bytes.
const STATE_BYTES_MAX: u64 = 256 << 20;

const MODEL: &str = "model.safetensors";
const OPTIMISER: &str = "optimiser.safetensors";
const CONFIG: &str = "config.json";
const STATE: &str = "state.json";

/// What a checkpoint of all weights consists of, beside its state.
const OF_WEIGHTS: [&str; 3] = [MODEL, OPTIMISER, CONFIG];
/// What a checkpoint of an adapter consists of.
const OF_ADAPTER: [&str; 3] = [peft::WEIGHTS, OPTIMISER, peft::CONFIG];

/// What a run's weights depend on; a checkpoint belongs to the run where all agree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    pub(crate) settings: Digest,
    pub(crate) data: Digest,
    /// Digest of the initial weights, and of an adapter beside them.
    pub(crate) start: Digest,
    /// Digest of a live teacher's weights; of several, of the weights of each and what it has of the mixture; of one behind
    /// endpoints, of what names it.
    pub(crate) teacher: Option<Digest>,
}

impl Identity {
    pub(crate) fn new(
        start: &Decoder,
        teacher: Option<&dyn Scorer>,
        material: Material<'_>,
        config: &TrainConfig,
    ) -> Identity {
        let with_sparse = config.needs_teacher() && teacher.is_none();
        let mut digester = Digester::new();
        for set in [material.examples, material.validation] {
            digester.update(&(set.len() as u64).to_le_bytes());
            set.iter().for_each(|example| example.digest_into(&mut digester, with_sparse));
        }
        for set in material.prompts.iter().flat_map(|prompts| [prompts.train, prompts.validation]) {
            digester.update(&(set.len() as u64).to_le_bytes());
            set.iter().for_each(|prompt| prompt.digest_into(&mut digester));
        }
        for (own, others) in material.matched.iter().flat_map(|matched| matched.pairs()) {
            digester.update(&[own.to_le_bytes(), others.to_le_bytes()].concat());
        }
        Identity {
            settings: config.digest(),
            data: digester.finish(),
            start: start.digest(),
            teacher: teacher.map(Scorer::identity),
        }
    }

    /// What differs, if anything does.
    fn difference(&self, other: &Identity) -> Option<&'static str> {
        if self.start != other.start {
            Some("initial weights")
        } else if self.teacher != other.teacher {
            Some("teacher weights")
        } else if self.data != other.data {
            Some("examples")
        } else if self.settings != other.settings {
            Some("settings")
        } else {
            None
        }
    }
}

/// The best step on validation so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Best {
    pub(crate) step: u64,
    pub(crate) loss: f64,
}

/// All that training knows between two steps, weights and moments aside.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Progress {
    pub(crate) step: u64,
    pub(crate) tokens: u64,
    pub(crate) supervised_tokens: u64,
    pub(crate) best: Option<Best>,
    /// Losses since the last logged point, those of on-policy steps aside.
    pub(crate) window: LossSums,
    #[serde(default, skip_serializing_if = "RolloutState::is_empty")]
    pub(crate) rollouts: RolloutState,
    pub(crate) window_clipped: u64,
    pub(crate) curve: Vec<TrainPoint>,
    pub(crate) validation: Vec<ValidationPoint>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    format: u32,
    identity: Identity,
    progress: Progress,
    /// Digest and size of each other file.
    files: BTreeMap<String, (Digest, u64)>,
}

/// `state.json`: the state, and the digest of its compact JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    digest: Digest,
    state: State,
}

/// As much of `state.json` as every version has.
#[derive(Deserialize)]
struct SealedFormat {
    state: Format,
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// Why a checkpoint cannot be used.
type Damage = String;

/// The checkpoints of one run in one directory.
pub(crate) struct Checkpoints {
    dir: PathBuf,
    identity: Identity,
}

/// The newest good checkpoint, and which newer ones are not.
pub(crate) struct Found {
    pub(crate) progress: Option<Progress>,
    /// Of the good one.
    pub(crate) files: BTreeMap<String, Digest>,
    /// (name, reason)
    pub(crate) skipped: Vec<(String, Damage)>,
}

/// Removes every checkpoint in `dir`, each as a whole: for a run that starts over.
pub fn remove_checkpoints(dir: &Path) -> Result<()> {
    for step in steps_in(dir)? {
        remove_dir(&dir.join(name_of(step)))?;
    }
    Ok(())
}

/// The checkpoint of a step in `dir`, whether it is there or not.
pub fn checkpoint_path(dir: &Path, step: u64) -> PathBuf {
    dir.join(name_of(step))
}

/// Steps whose checkpoints lie in `dir`, ascending.
pub fn kept_steps(dir: &Path) -> Result<Vec<u64>> {
    steps_in(dir)
}

impl Checkpoints {
    pub(crate) fn new(dir: &Path, identity: Identity) -> Checkpoints {
        Checkpoints { dir: dir.to_path_buf(), identity }
    }

    pub(crate) fn path(&self, step: u64) -> PathBuf {
        checkpoint_path(&self.dir, step)
    }

    /// Commits the state between two steps; returns its name, and the digest of each file that needs no clock to be
    /// made again.
    pub(crate) fn save(
        &self,
        state: &TrainState,
        progress: &Progress,
    ) -> Result<(String, BTreeMap<String, Digest>)> {
        let name = name_of(progress.step);
        let files = atomic_dir(&self.dir.join(&name), |dir| {
            write_trained(dir, state.decoder())?;
            write_tensors(&dir.join(OPTIMISER), state.optimiser_tensors())?;
            let files = files_of(state.decoder())
                .into_iter()
                .map(|file| Ok((file.to_owned(), digest_file(&dir.join(file))?)))
                .collect::<Result<BTreeMap<_, _>>>()?;
            let (identity, progress) = (self.identity.clone(), progress.clone());
            let text = seal(State { format: FORMAT, identity, progress, files: files.clone() });
            atomic_write(&dir.join(STATE), &text)?;
            Ok::<_, DistillError>(files)
        })?;
        Ok((name, digests(files)))
    }

    /// From now on in another folder.
    pub(crate) fn move_to(&mut self, dir: &Path) {
        self.dir = dir.to_path_buf();
    }

    /// The state of a checkpoint that is whole, whosever it is; `start` as for [`Checkpoints::load`].
    pub(crate) fn resume(&self, step: u64, start: Decoder) -> Result<(TrainState, Progress)> {
        let state = self
            .verify(step)?
            .map_err(|damage| DistillError::DamagedCheckpoint { path: self.path(step), damage })?;
        Ok((self.load(step, start)?, state.progress))
    }

    /// Looks for the newest checkpoint that is good and whose best one is good too.
    ///
    /// A good checkpoint of another run is an error.
    pub(crate) fn newest_good(&self) -> Result<Found> {
        let mut skipped = Vec::new();
        for step in steps_in(&self.dir)?.into_iter().rev() {
            match self.examine(step)? {
                Ok(State { progress, files, .. }) => {
                    return Ok(Found { progress: Some(progress), files: digests(files), skipped });
                }
                Err(reason) => skipped.push((name_of(step), reason)),
            }
        }
        Ok(Found { progress: None, files: BTreeMap::new(), skipped })
    }

    fn examine(&self, step: u64) -> Result<std::result::Result<State, Damage>> {
        let state = match self.verify(step)? {
            Ok(state) => state,
            Err(damage) => return Ok(Err(damage)),
        };
        if let Some(what) = self.identity.difference(&state.identity) {
            return Err(DistillError::ForeignCheckpoint { path: self.path(step), what });
        }
        if let Some(best) = state.progress.best.filter(|best| best.step != step)
            && let Err(damage) = self.verify(best.step)?
        {
            return Ok(Err(format!("{}, the best before it: {damage}", name_of(best.step))));
        }
        Ok(Ok(state))
    }

    /// The state of a checkpoint all of whose files are as they were written.
    fn verify(&self, step: u64) -> Result<std::result::Result<State, Damage>> {
        let dir = self.path(step);
        let Some(text) = read_capped(&dir.join(STATE), STATE_BYTES_MAX)? else {
            return Ok(Err(format!("{STATE} is missing")));
        };
        let state = match unseal(&text) {
            Ok(state) => state,
            Err(damage) => return Ok(Err(damage)),
        };
        if state.progress.step != step {
            return Ok(Err(format!("{STATE} is of step {}", state.progress.step)));
        }
        let of_known = |files: [&str; 3]| files.iter().all(|&file| state.files.contains_key(file));
        if state.files.len() != 3 || ![OF_WEIGHTS, OF_ADAPTER].into_iter().any(of_known) {
            return Ok(Err(format!("{STATE} lists other files")));
        }
        for (file, written) in &state.files {
            let found = match digest_file(&dir.join(file)) {
                Ok(found) => found,
                Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    return Ok(Err(format!("{file} is missing")));
                }
                Err(error) => return Err(error.into()),
            };
            if *written != found {
                return Ok(Err(format!("{file} does not match its digest")));
            }
        }
        Ok(Ok(state))
    }

    /// The decoder of a checkpoint. `decoder` is that of another step of this run: of it stays what is not
    /// trained, and at no time is there a second copy of that.
    pub(crate) fn load_decoder(&self, step: u64, decoder: Decoder) -> Result<Decoder> {
        let [trained, ..] = files_of(&decoder);
        let bytes = MappedFile::open(&self.path(step).join(trained))?;
        Ok(decoder.with_trained(&safetensors_file::read(&bytes)?)?)
    }

    /// Decoder and moments of a checkpoint; as for [`Checkpoints::load_decoder`].
    pub(crate) fn load(&self, step: u64, decoder: Decoder) -> Result<TrainState> {
        let decoder = self.load_decoder(step, decoder)?;
        let bytes = MappedFile::open(&self.path(step).join(OPTIMISER))?;
        Ok(TrainState::restore(decoder, step, &safetensors_file::read(&bytes)?)?)
    }

    /// The newest checkpoint there is.
    pub(crate) fn newest_step(&self) -> Option<u64> {
        steps_in(&self.dir).ok()?.last().copied()
    }

    /// Removes the checkpoints behind `step`: damaged, or to be written again.
    pub(crate) fn remove_after(&self, step: u64) -> Result<()> {
        for later in steps_in(&self.dir)?.into_iter().filter(|&s| s > step) {
            remove_dir(&self.path(later))?;
        }
        Ok(())
    }

    /// Removes the oldest checkpoints until `limit` are left; the newest and the best always stay.
    pub(crate) fn retain(&self, limit: usize, best: Option<u64>) -> Result<()> {
        let steps = steps_in(&self.dir)?;
        let excess = if limit == 0 { 0 } else { steps.len().saturating_sub(limit) };
        let newest = steps.last().copied();
        let old = steps.iter().copied().filter(|&s| Some(s) != best && Some(s) != newest);
        for step in old.take(excess) {
            remove_dir(&self.path(step))?;
        }
        Ok(())
    }
}

fn digests(files: BTreeMap<String, (Digest, u64)>) -> BTreeMap<String, Digest> {
    files.into_iter().map(|(file, (digest, _))| (file, digest)).collect()
}

fn name_of(step: u64) -> String {
    format!("step-{step:06}")
}

/// Steps of the checkpoints in `dir`, ascending.
fn steps_in(dir: &Path) -> Result<Vec<u64>> {
    let failed = |source| StoreError::Io { operation: "list", path: dir.to_path_buf(), source };
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut steps = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let digits = name.to_str().and_then(|name| name.strip_prefix("step-"));
        let step =
            digits.and_then(|d| d.parse().ok()).filter(|&step| Some(name_of(step).as_str()) == name.to_str());
        steps.extend(step);
    }
    steps.sort_unstable();
    Ok(steps)
}

/// What a checkpoint of this decoder in training consists of, first what is trained.
fn files_of(decoder: &Decoder) -> [&'static str; 3] {
    if decoder.adapter_config().is_some() { OF_ADAPTER } else { OF_WEIGHTS }
}

/// What is trained, and its settings.
fn write_trained(dir: &Path, decoder: &Decoder) -> Result<()> {
    let model = decoder.config();
    if let Some(config) = decoder.adapter_config() {
        let mut tensors = decoder.trained_tensors();
        return Ok(write_peft_dir(dir, config, None, model, &mut tensors, Encoding::F32)?);
    }
    write_tensors(&dir.join(MODEL), decoder.tensors())?;
    let config = format!("{:#}\n", model.to_json());
    Ok(atomic_write(&dir.join(CONFIG), config.as_bytes())?)
}

fn write_tensors(path: &Path, tensors: impl Iterator<Item = NamedTensor>) -> Result<()> {
    let tensors: Vec<NamedTensor> = tensors.collect();
    let views: Vec<_> = tensors.iter().map(|t| (t.name.as_str(), &t.shape[..], &t.data[..])).collect();
    Ok(safetensors_file::write(path, &views, &BTreeMap::from([("format".into(), "pt".into())]))?)
}

fn seal(state: State) -> Vec<u8> {
    let digest = state_digest(&state);
    serde_json::to_vec(&Sealed { digest, state }).unwrap_or_default()
}

fn unseal(text: &[u8]) -> std::result::Result<State, Damage> {
    let unreadable = |e: serde_json::Error| format!("{STATE}: {e}");
    let of: SealedFormat = serde_json::from_slice(text).map_err(unreadable)?;
    if of.state.format != FORMAT {
        return Err(format!("{STATE} has format {}, expected {FORMAT}", of.state.format));
    }
    let sealed: Sealed = serde_json::from_slice(text).map_err(unreadable)?;
    // Written compactly, so there is one spelling of every state.
    let same_bytes = serde_json::to_vec(&sealed).is_ok_and(|again| again == text);
    if !same_bytes || state_digest(&sealed.state) != sealed.digest {
        return Err(format!("{STATE} does not match its digest"));
    }
    Ok(sealed.state)
}

fn state_digest(state: &State) -> Digest {
    // Numbers, names and text only, so this cannot fail.
    Digest::of(&serde_json::to_vec(state).unwrap_or_default())
}

/// The bytes of a file, `None` if it is missing; what goes beyond `bytes_max` is cut off, and so will
/// not parse.
fn read_capped(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>> {
    let failed = |source| StoreError::Io { operation: "read", path: path.to_path_buf(), source };
    match fs::File::open(path) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(failed(e).into()),
        Ok(file) => {
            let mut bytes = Vec::new();
            file.take(bytes_max).read_to_end(&mut bytes).map_err(failed)?;
            Ok(Some(bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use stillroom_core::CounterRng;
    use stillroom_formats::{DecoderConfig, Family, LoraConfig, LoraTarget, RopeScaling};
    use stillroom_model::Device;

    use super::*;

    fn tiny() -> DecoderConfig {
        DecoderConfig {
            family: Family::Qwen3,
            vocab_size: 7,
            hidden_size: 8,
            intermediate_size: 8,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 4,
            rms_norm_eps: 1e-6,
            rope_theta: 1e4,
            rope_scaling: RopeScaling::None,
            max_position_embeddings: 8,
            tie_word_embeddings: true,
            qkv_bias: false,
            attention_out_bias: false,
            mlp_bias: false,
            qk_norm: true,
            bos_token_id: None,
            eos_token_ids: vec![],
        }
    }

    fn progress(step: u64, best: Option<u64>) -> Progress {
        let best = best.map(|step| Best { step, loss: 0.1 + 0.2 });
        Progress { step, tokens: 99, best, ..Progress::default() }
    }

    fn random() -> Decoder {
        Decoder::random(Arc::new(Device::cpu(1)), tiny(), 1)
    }

    fn adapted() -> Decoder {
        let target_modules = vec![LoraTarget::Q, LoraTarget::Down];
        let lora = LoraConfig { r: 2, alpha: 4.0, dropout: 0.1, target_modules, use_rslora: false };
        random().with_new_adapter(lora, 2).unwrap()
    }

    /// Steps 1 and 2 are saved.
    fn two_checkpoints(dir: &Path) -> Checkpoints {
        two_checkpoints_of(dir, random())
    }

    fn two_checkpoints_of(dir: &Path, decoder: Decoder) -> Checkpoints {
        let digest = Digest::of(b"");
        let checkpoints =
            Checkpoints::new(dir, Identity { settings: digest, data: digest, start: digest, teacher: None });
        let state = TrainState::new(decoder);
        [1, 2].iter().for_each(|&step| drop(checkpoints.save(&state, &progress(step, None)).unwrap()));
        checkpoints
    }

    fn newest(checkpoints: &Checkpoints) -> u64 {
        checkpoints.newest_good().unwrap().progress.unwrap().step
    }

    #[test]
    fn a_thousand_flipped_bits_and_every_truncation_are_noticed() {
        let temp = tempfile::tempdir().unwrap();
        flip_and_cut(&two_checkpoints(temp.path()), &[MODEL, OPTIMISER, CONFIG, STATE]);
        let temp = tempfile::tempdir().unwrap();
        let of_adapter = two_checkpoints_of(temp.path(), adapted());
        flip_and_cut(&of_adapter, &[peft::WEIGHTS, OPTIMISER, peft::CONFIG, STATE]);
    }

    fn flip_and_cut(checkpoints: &Checkpoints, files: &[&str]) {
        let mut rng = CounterRng::new(&[3]);
        for file in files {
            let path = checkpoints.path(2).join(file);
            let whole = fs::read(&path).unwrap();
            for _ in 0..250 {
                let mut flipped = whole.clone();
                flipped[rng.below(whole.len() as u64) as usize] ^= 1 << rng.below(8);
                fs::write(&path, &flipped).unwrap();
                assert_eq!(newest(checkpoints), 1, "{file}");
            }
            for cut in (0..whole.len()).step_by(1 + whole.len() / 40) {
                fs::write(&path, &whole[..cut]).unwrap();
                assert_eq!(newest(checkpoints), 1, "{file} cut at {cut}");
            }
            fs::write(&path, &whole).unwrap();
            assert_eq!(newest(checkpoints), 2, "{file} is whole again");
        }
    }

    #[test]
    fn a_checkpoint_of_an_earlier_format_says_so() {
        let temp = tempfile::tempdir().unwrap();
        let checkpoints = two_checkpoints(temp.path());
        let path = checkpoints.path(2).join(STATE);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"format\":2", "\"format\":1")).unwrap();
        let found = checkpoints.newest_good().unwrap();
        assert_eq!(found.progress.unwrap().step, 1);
        assert_eq!(found.skipped, [("step-000002".into(), "state.json has format 1, expected 2".into())]);
    }

    #[test]
    fn old_checkpoints_go_and_the_best_and_the_newest_stay() {
        let temp = tempfile::tempdir().unwrap();
        let checkpoints = two_checkpoints(temp.path());
        let state = TrainState::new(random());
        (3..=6).for_each(|step| drop(checkpoints.save(&state, &progress(step, Some(2))).unwrap()));
        fs::create_dir(temp.path().join("step-7")).unwrap();
        checkpoints.retain(0, Some(2)).unwrap();
        assert_eq!(steps_in(temp.path()).unwrap(), [1, 2, 3, 4, 5, 6]);
        checkpoints.retain(3, Some(2)).unwrap();
        assert_eq!(steps_in(temp.path()).unwrap(), [2, 5, 6]);
        checkpoints.retain(1, Some(2)).unwrap();
        assert_eq!(steps_in(temp.path()).unwrap(), [2, 6]);
        checkpoints.remove_after(2).unwrap();
        remove_checkpoints(temp.path()).unwrap();
        assert_eq!(steps_in(temp.path()).unwrap(), [0; 0]);
        assert!(temp.path().join("step-7").exists());
    }

    #[test]
    fn a_loaded_state_has_the_bits_that_were_saved() {
        let temp = tempfile::tempdir().unwrap();
        let checkpoints = two_checkpoints(temp.path());
        let state = checkpoints.load(2, random()).unwrap();
        assert_eq!(state.n_steps(), 2);
        assert_eq!(state.decoder().digest(), random().digest());
        let other = DecoderConfig { vocab_size: 8, ..tiny() };
        assert!(checkpoints.load(2, Decoder::random(Arc::new(Device::cpu(1)), other, 1)).is_err());
        let found = checkpoints.newest_good().unwrap();
        assert_eq!((found.progress, found.skipped.len()), (Some(progress(2, None)), 0));
    }

    #[test]
    fn an_adapters_checkpoint_is_the_adapter_alone_and_goes_onto_the_weights() {
        let temp = tempfile::tempdir().unwrap();
        let checkpoints = two_checkpoints_of(temp.path(), adapted());
        let mut files: Vec<String> = fs::read_dir(checkpoints.path(2))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        assert_eq!(files, [peft::CONFIG, peft::WEIGHTS, OPTIMISER, STATE]);
        let other_adapter =
            random().with_new_adapter(adapted().adapter_config().unwrap().clone(), 9).unwrap();
        assert_ne!(other_adapter.digest(), adapted().digest());
        let state = checkpoints.load(2, other_adapter).unwrap();
        assert_eq!(state.decoder().digest(), adapted().digest());
        assert!(checkpoints.load(2, random()).is_err(), "a model without an adapter");
    }
}

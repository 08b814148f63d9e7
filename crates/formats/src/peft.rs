//! LoRA adapters as PEFT keeps them: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Format: <https://huggingface.co/docs/peft/developer_guides/checkpoint>. What changes the arithmetic and
//! is not implemented here is an error, never ignored.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::config::{DecoderConfig, setting, shortened};
use crate::error::{FormatError, Result};
use crate::files::StagedFile;
use crate::hf_dir::{CONFIG_BYTES_MAX, Dir, pretty};
use crate::safetensors_file::{SafetensorsFile, Writer};
use crate::tensors::{Encoding, NamedTensor, TensorSource};

/// Settings of an adapter.
pub const CONFIG: &str = "adapter_config.json";
/// Its matrices.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts before a module's name.
const PREFIX: &str = "base_model.model.";
/// PEFT's word for every linear layer but the head.
const ALL_LINEAR: &str = "all-linear";
const R_MAX: usize = 1 << 14;

/// A linear map of a layer that can be adapted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LoraTarget {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl LoraTarget {
    /// In the order of transformers' modules.
    pub const ALL: [LoraTarget; 7] = [
        LoraTarget::Q,
        LoraTarget::K,
        LoraTarget::V,
        LoraTarget::O,
        LoraTarget::Gate,
        LoraTarget::Up,
        LoraTarget::Down,
    ];

    /// Its name in `target_modules`.
    pub fn as_str(self) -> &'static str {
        match self {
            LoraTarget::Q => "q_proj",
            LoraTarget::K => "k_proj",
            LoraTarget::V => "v_proj",
            LoraTarget::O => "o_proj",
            LoraTarget::Gate => "gate_proj",
            LoraTarget::Up => "up_proj",
            LoraTarget::Down => "down_proj",
        }
    }

    /// The targets that names of `target_modules` mean, in the order of [`LoraTarget::ALL`]; `all-linear`
    /// means all.
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Vec<LoraTarget>> {
        let mut found = Vec::new();
        for name in names {
            match LoraTarget::ALL.into_iter().find(|target| target.as_str() == name) {
                Some(target) => found.push(target),
                None if name == ALL_LINEAR => found.extend(LoraTarget::ALL),
                None => {
                    let known = LoraTarget::ALL.map(|target| format!("`{}`", target.as_str())).join(", ");
                    let expected = format!("`{ALL_LINEAR}` or some of {known}");
                    return Err(setting("target_modules", shortened(&json!(name)), expected));
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// The part of a layer that it is in.
    fn part(self) -> &'static str {
        match self {
            LoraTarget::Q | LoraTarget::K | LoraTarget::V | LoraTarget::O => "self_attn",
            LoraTarget::Gate | LoraTarget::Up | LoraTarget::Down => "mlp",
        }
    }

    /// The module of layer `layer`, as transformers names it.
    fn module(self, layer: usize) -> String {
        format!("model.layers.{layer}.{}.{}", self.part(), self.as_str())
    }

    /// The target that ends a module's name, and the layer where the name is the whole one.
    fn of_module(name: &str) -> Option<(LoraTarget, Option<usize>)> {
        let (path, last) = name.rsplit_once('.').unwrap_or(("", name));
        let target = LoraTarget::ALL.into_iter().find(|target| target.as_str() == last)?;
        if path.is_empty() || path == target.part() {
            return Some((target, None));
        }
        let layer = path.strip_suffix(target.part())?.strip_suffix('.')?.strip_prefix("model.layers.")?;
        Some((target, Some(layer.parse().ok()?)))
    }

    /// \[outputs, inputs\] of the map.
    pub fn shape(self, config: &DecoderConfig) -> [usize; 2] {
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        match self {
            LoraTarget::Q => [q, d],
            LoraTarget::K | LoraTarget::V => [kv, d],
            LoraTarget::O => [d, q],
            LoraTarget::Gate | LoraTarget::Up => [f, d],
            LoraTarget::Down => [d, f],
        }
    }
}

/// One of an adapter's matrices: A \[r, inputs\] or B \[outputs, r\] of a target of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraTensor {
    /// As PEFT names it.
    pub name: String,
    pub shape: [usize; 2],
    pub layer: usize,
    pub target: LoraTarget,
    pub is_b: bool,
}

/// y = x·Wᵀ + scale·(dropout(x)·Aᵀ)·Bᵀ in the targets of every layer (Hu et al. 2022, "LoRA"). Names are
/// PEFT's, `lora_` left out.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    pub alpha: f64,
    /// Probability that an input of A is zero in training; the others are then divided by 1 − `dropout`.
    pub dropout: f64,
    /// Ascending, each once, not empty: see [`LoraTarget::from_names`].
    pub target_modules: Vec<LoraTarget>,
    /// Scale by alpha/√r (Kalajdzievski 2023, "A Rank Stabilization Scaling Factor").
    pub use_rslora: bool,
}

impl LoraConfig {
    /// alpha/r, or alpha/√r with `use_rslora`.
    pub fn scale(&self) -> f32 {
        let r = self.r as f64;
        (self.alpha / if self.use_rslora { r.sqrt() } else { r }) as f32
    }

    /// Checks every number and the list of targets.
    pub fn validate(&self) -> Result<()> {
        if self.r == 0 || self.r > R_MAX {
            return Err(setting("r", self.r, format!("a number from 1 to {R_MAX}")));
        }
        if !(self.alpha > 0.0 && self.scale().is_finite()) {
            return Err(setting("lora_alpha", self.alpha, "a finite number above 0"));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(setting("lora_dropout", self.dropout, "a number from 0 to below 1"));
        }
        if self.target_modules.is_empty() || !self.target_modules.is_sorted_by(|a, b| a < b) {
            let found: Vec<&str> = self.target_modules.iter().map(|target| target.as_str()).collect();
            return Err(setting("target_modules", json!(found), "at least one target, each once, in order"));
        }
        Ok(())
    }

    /// Every A and B of an adapter for a decoder, layer by layer, target by target, A before B.
    pub fn tensors(&self, config: &DecoderConfig) -> Vec<LoraTensor> {
        let layers = 0..config.num_hidden_layers;
        let modules = layers.flat_map(|layer| self.target_modules.iter().map(move |&target| (layer, target)));
        let both = modules.flat_map(|(layer, target)| {
            let ([out, inputs], module) = (target.shape(config), target.module(layer));
            [("lora_A", [self.r, inputs]), ("lora_B", [out, self.r])].map(|(part, shape)| LoraTensor {
                name: format!("{PREFIX}{module}.{part}.weight"),
                shape,
                layer,
                target,
                is_b: part == "lora_B",
            })
        });
        both.collect()
    }

    /// Numbers in all of an adapter's matrices.
    pub fn n_parameters(&self, config: &DecoderConfig) -> u64 {
        let of = |target: &LoraTarget| {
            let [out, inputs] = target.shape(config);
            (self.r * (out + inputs)) as u64
        };
        config.num_hidden_layers as u64 * self.target_modules.iter().map(of).sum::<u64>()
    }

    /// Reads `adapter_config.json`.
    pub fn from_json(text: &str) -> Result<LoraConfig> {
        Ok(read_config(text)?.0)
    }

    /// The `adapter_config.json` that PEFT reads. `base` names the model that is adapted.
    pub fn to_json(&self, base: Option<&str>) -> Value {
        let targets: Vec<&str> = self.target_modules.iter().map(|target| target.as_str()).collect();
        // PEFT annotates alpha as a whole number.
        let alpha = if self.alpha.fract() == 0.0 && self.alpha < 9e15 {
            json!(self.alpha as u64)
        } else {
            json!(self.alpha)
        };
        json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.r,
            "lora_alpha": alpha,
            "lora_dropout": self.dropout,
            "target_modules": targets,
            "use_rslora": self.use_rslora,
            "bias": "none",
            "fan_in_fan_out": false,
            "modules_to_save": null,
            "inference_mode": true,
        })
    }
}

/// An adapter on disk.
pub struct PeftAdapter {
    pub config: LoraConfig,
    /// What `adapter_config.json` says is adapted.
    pub base_model: Option<String>,
    /// By PEFT's names.
    pub tensors: Box<dyn TensorSource + Send + Sync>,
    pub path: PathBuf,
}

impl PeftAdapter {
    /// Opens a directory that PEFT or [`write_peft_dir`] wrote. Weights are mapped, not read; whether they
    /// fit a model is for the one who knows it to check.
    pub fn open(path: &Path) -> Result<PeftAdapter> {
        let dir = Dir::open(path)?;
        let not_an_adapter = || FormatError::NotAnAdapter { path: path.to_owned() };
        let text = dir.text(CONFIG, CONFIG_BYTES_MAX)?.ok_or_else(not_an_adapter)?;
        let (config, base_model) = read_config(&text).map_err(|error| error.in_file(&path.join(CONFIG)))?;
        let file = dir.resolve(WEIGHTS)?.ok_or_else(not_an_adapter)?;
        let tensors = Box::new(SafetensorsFile::open(&file)?);
        Ok(PeftAdapter { config, base_model, tensors, path: path.to_owned() })
    }
}

/// Writes an adapter for `model` as a directory that PEFT, vLLM and this program read: `adapter_config.json`
/// and `adapter_model.safetensors` in `store` (f32, f16 or bf16). `base` names the model that is adapted.
///
/// The tensors are those of [`LoraConfig::tensors`], each exactly once, in any order. Files get their names
/// together at the end; on an error none of them exists.
pub fn write_peft_dir(
    dir: &Path,
    config: &LoraConfig,
    base: Option<&str>,
    model: &DecoderConfig,
    tensors: &mut dyn Iterator<Item = NamedTensor>,
    store: Encoding,
) -> Result<()> {
    config.validate()?;
    fs::create_dir_all(dir).map_err(FormatError::io("create", dir))?;
    let path = dir.join(WEIGHTS);
    let mut weights = StagedFile::create(&path)?;
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let shapes: Vec<(String, Vec<usize>)> =
        config.tensors(model).into_iter().map(|tensor| (tensor.name, tensor.shape.to_vec())).collect();
    let mut writer = Writer::start(weights.writer(), &path, &shapes, store, &metadata)?;
    for NamedTensor { name, shape, data } in tensors {
        writer.put(&name, &shape, &data)?;
    }
    writer.finish()?;
    let config = StagedFile::with_text(&dir.join(CONFIG), &pretty(&config.to_json(base)))?;
    [weights, config].into_iter().try_for_each(StagedFile::commit)
}

/// Keys that change nothing about how an adapter computes.
const HARMLESS: [&str; 14] = [
    "auto_mapping",
    "base_model_name_or_path",
    "ephemeral_gpu_offload",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    "lora_bias_lr_scale",
    "loftq_config",
    "eva_config",
    "lora_ga_config",
];

/// Keys that [`read_config`] reads.
const READ: [&str; 8] = [
    "peft_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "use_rslora",
    "bias",
    "init_lora_weights",
];

/// The configuration and the name of the base model.
fn read_config(text: &str) -> Result<(LoraConfig, Option<String>)> {
    let value: Value =
        serde_json::from_str(text).map_err(|error| FormatError::malformed(CONFIG, error.to_string()))?;
    let object =
        value.as_object().ok_or_else(|| FormatError::malformed(CONFIG, "the top level is not an object"))?;
    refuse_what_is_not_implemented(object)?;
    let get = |key: &str| object.get(key).filter(|value| !value.is_null());
    let number = |key: &str, default: f64| match get(key) {
        None => Ok(default),
        Some(value) => value.as_f64().ok_or_else(|| setting(key, shortened(value), "a number")),
    };
    // PEFT's defaults, where a key is absent.
    let r = match get("r") {
        None => 8,
        Some(value) => value
            .as_u64()
            .and_then(|r| usize::try_from(r).ok())
            .ok_or_else(|| setting("r", shortened(value), "a whole number"))?,
    };
    let use_rslora = match get("use_rslora") {
        None => false,
        Some(value) => {
            value.as_bool().ok_or_else(|| setting("use_rslora", shortened(value), "true or false"))?
        }
    };
    let config = LoraConfig {
        r,
        alpha: number("lora_alpha", 8.0)?,
        dropout: number("lora_dropout", 0.0)?,
        target_modules: read_targets(get("target_modules"))?,
        use_rslora,
    };
    config.validate()?;
    let base = get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned);
    Ok((config, base))
}

fn read_targets(value: Option<&Value>) -> Result<Vec<LoraTarget>> {
    let expected = "a list of names, or `all-linear`";
    match value {
        Some(Value::String(name)) if name == ALL_LINEAR => Ok(LoraTarget::ALL.to_vec()),
        Some(Value::String(pattern)) => {
            let what = "regular expression in `target_modules` of an adapter";
            Err(FormatError::Unsupported { what, value: shortened(&json!(pattern)) })
        }
        Some(Value::Array(names)) => {
            let name = |value: &'_ Value| match value {
                Value::String(name) => Ok(name.clone()),
                other => Err(setting("target_modules", shortened(other), expected)),
            };
            let names: Vec<String> = names.iter().map(name).collect::<Result<_>>()?;
            targets_of_modules(&names)
        }
        Some(other) => Err(setting("target_modules", shortened(other), expected)),
        None => Err(setting("target_modules", "absent", expected)),
    }
}

/// The targets that modules' names mean. PEFT writes `all-linear` as the whole names of all layers' modules;
/// some of a target's layers alone are refused.
fn targets_of_modules(names: &[String]) -> Result<Vec<LoraTarget>> {
    let mut layers: BTreeMap<LoraTarget, BTreeSet<usize>> = BTreeMap::new();
    let mut targets = Vec::new();
    for name in names {
        match LoraTarget::of_module(name) {
            Some((target, Some(layer))) => {
                layers.entry(target).or_default().insert(layer);
            }
            Some((target, None)) => targets.push(target.as_str()),
            None => targets.push(name.as_str()),
        }
    }
    let deepest = layers.values().flatten().max().copied().unwrap_or(0);
    for (target, layers) in layers {
        if layers.len() <= deepest {
            let what = "choice of layers in `target_modules` of an adapter";
            return Err(FormatError::Unsupported { what, value: target.as_str().to_owned() });
        }
        targets.push(target.as_str());
    }
    LoraTarget::from_names(targets)
}

/// An error for every key that would make PEFT compute something else.
fn refuse_what_is_not_implemented(object: &Map<String, Value>) -> Result<()> {
    let unsupported = |key: &str, value: &Value| {
        let value = format!("{key}: {}", shortened(value));
        Err(FormatError::Unsupported { what: "setting of an adapter", value })
    };
    match object.get("peft_type") {
        Some(kind) if kind == "LORA" => {}
        Some(kind) => return unsupported("peft_type", kind),
        None => return Err(setting("peft_type", "absent", "`LORA`")),
    }
    if let Some(task) = object.get("task_type")
        && !(task.is_null() || task == "CAUSAL_LM")
    {
        return unsupported("task_type", task);
    }
    if let Some(bias) = object.get("bias")
        && !(bias.is_null() || bias == "none")
    {
        return unsupported("bias", bias);
    }
    // How A and B began matters no more, but these change the base model too.
    let init = object.get("init_lora_weights").filter(|init| !(init.is_null() || init.is_boolean()));
    if let Some(init) = init
        && init != "gaussian"
        && init != "orthogonal"
        && init != "eva"
    {
        return unsupported("init_lora_weights", init);
    }
    let known: HashSet<&str> = HARMLESS.into_iter().chain(READ).collect();
    let is_off = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    match object.iter().find(|(key, value)| !known.contains(key.as_str()) && !is_off(value)) {
        Some((key, value)) => unsupported(&shortened(&json!(key)), value),
        None => Ok(()),
    }
}

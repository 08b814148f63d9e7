//! The student before training: its shape, its tokenizer, its weights, and which ids it shares with its teacher.

use std::sync::Arc;

use serde_json::{Value, json};
use stillroom_formats::{DecoderConfig, Family, ModelFiles, RopeScaling, Tokenizer};
use stillroom_model::Decoder;

use crate::failure::{Exit, Failure, Result};
use crate::flow::across::teacher_tokenizer;
use crate::flow::teachers::further_files;
use crate::flow::{Flow, prune};
use crate::models::{Model, with_adapter};
use crate::recipe::{Architecture, Base, Recipe, Scores, Shape, Source, Student, TOKENIZER, open_adapter};

impl Flow {
    /// The student before training; the same for every control.
    pub(crate) fn start(&self) -> Result<Model> {
        let device = Arc::clone(&self.device);
        let tokenizer = self.student_tokenizer()?;
        let decoder = match &self.recipe.student {
            Student::Nobody => unreachable!("a recipe without a student was refused before"),
            Student::FromScratch(shape) => {
                let config = scratch_config(&self.recipe, &self.source, shape, &tokenizer)?;
                Decoder::check_config(&config)?;
                Decoder::random(device, config, self.recipe.train.seed)
            }
            Student::FromLayers { layers, .. } => {
                let files = self.base_files()?;
                let base = Decoder::load(device, files.config, files.tensors.as_ref())?;
                base.keep_layers(layers)
                    .map_err(|e| Failure::from(e).at(self.source.place(&["student", "layers"])))?
            }
            Student::Pruned(_) => {
                let files = ModelFiles::open(&self.run.path(prune::START)?)?;
                Decoder::load(device, files.config, files.tensors.as_ref())?
            }
            Student::Pretrained { adapter, .. } => {
                let files = self.base_files()?;
                let base = Decoder::load(device, files.config, files.tensors.as_ref())?;
                self.adapted(base, adapter.as_deref())?
            }
        };
        Ok(Model { decoder, tokenizer })
    }

    /// With the adapter that is trained, if one is: that of `path`, or a fresh one.
    fn adapted(&self, base: Decoder, path: Option<&str>) -> Result<Decoder> {
        let Some(lora) = &self.recipe.train.lora else { return Ok(base) };
        match path {
            Some(path) => {
                let files = open_adapter(&self.source, path)?;
                with_adapter(base, files).map_err(|e| e.at(self.source.place(&["student", "adapter"])))
            }
            None => Ok(base.with_new_adapter(lora.config(), self.recipe.train.seed)?),
        }
    }

    pub(crate) fn base_files(&self) -> Result<ModelFiles> {
        base_files(&self.recipe, &self.source)
    }

    pub(crate) fn student_tokenizer(&self) -> Result<Tokenizer> {
        student_tokenizer(&self.recipe, &self.source)
    }

    /// Digest of what the student's start depends on besides the recipe.
    pub(crate) fn start_digest(&self) -> Result<Value> {
        let tokenizer = self.student_tokenizer()?.digest();
        let base = match self.recipe.student.base() {
            None => None,
            Some(Base { path: Some(path), .. }) => Some(self.input_digest(&self.source.resolve_path(path))?),
            Some(Base { path: None, .. }) => Some(self.teacher_digest()?),
        };
        let mut digests = vec![json!(tokenizer), json!(base)];
        if let Student::Pretrained { adapter: Some(path), .. } = &self.recipe.student {
            digests.push(json!(self.input_digest(&self.source.resolve_path(path))?));
        }
        Ok(Value::Array(digests))
    }
}

/// The student before training: its shape and its tokenizer.
pub(crate) fn student_shape(recipe: &Recipe, source: &Source) -> Result<(DecoderConfig, Tokenizer)> {
    let tokenizer = student_tokenizer(recipe, source)?;
    let config = match &recipe.student {
        Student::FromScratch(shape) => scratch_config(recipe, source, shape, &tokenizer)?,
        part => prune::kept_shape(part, base_files(recipe, source)?.config, source)?,
    };
    Decoder::check_config(&config)?;
    // Else the release is the first to refuse it.
    tokenizer.check_for(&config).map_err(|refused| {
        Failure::new(Exit::BadRecipe, refused.to_string())
            .code("wrong-tokenizer")
            .at(source.place(&["student", "architecture"]))
            .fix(refused.fix().unwrap_or_default())
    })?;
    Ok((config, tokenizer))
}

/// Of the teachers' tables, for a message.
fn sizes(tables: &[usize]) -> String {
    tables.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

/// How many ids a live teacher and its student both have, where the paddings of their vocabularies differ; how many the
/// student has, where a loss is of two vocabularies. A teacher whose distributions the student cannot learn from is refused.
pub(crate) fn shared_ids(recipe: &Recipe, source: &Source) -> Result<Option<usize>> {
    if recipe.is_scored() {
        return scored_ids(recipe, source);
    }
    let Some(targets) = recipe.targets() else { return Ok(None) };
    let teacher = super::teacher_files(recipe, source)?;
    let (config, tokenizer) = student_shape(recipe, source)?;
    if recipe.train.compares_two_vocabularies() {
        teacher_tokenizer(recipe, source)?;
        return Ok(Some(tokenizer.vocab_size()));
    }
    let same = teacher.tokenizer.as_ref().is_none_or(|its| its.digest() == tokenizer.digest());
    let (width, n_ids) = (config.vocab_size, tokenizer.vocab_size());
    let mut tables = vec![teacher.config.vocab_size];
    tables.extend(further_files(recipe, source)?.iter().map(|files| files.config.vocab_size));
    if same && tables.iter().all(|&table| table == width) {
        return Ok(None);
    }
    let other = tables.iter().copied().min().unwrap_or(width);
    if same && targets.is_live() && n_ids <= width.min(other) {
        return Ok(Some(n_ids));
    }
    let failure = Failure::new(Exit::BadRecipe, "teacher and student have different vocabularies")
        .code("wrong-vocabulary")
        .at(source.place(&["train", "loss_functions"]));
    Err(match same && n_ids <= width.min(other) {
        true => {
            failure.detail(format!("one tokenizer, but tables of {} and {width} ids", sizes(&tables))).fix(
                "take the teacher live, with `logits = { kind = \"live\" }`: the paddings are left out then",
            )
        }
        false => failure.fix("train on `hard_labels` only, or give the student the teacher's tokenizer"),
    })
}

/// How many ids are tokens, where the student's table has more. Ids are sent to the teacher's endpoint as they are, so one
/// whose tokenizer is not the student's, token by token, is refused.
fn scored_ids(recipe: &Recipe, source: &Source) -> Result<Option<usize>> {
    let scores = recipe.teacher.as_ref().and_then(|teacher| teacher.scores.as_ref());
    let Some(Scores { tokenizer: named, .. }) = scores else { return Ok(None) };
    let theirs = read_tokenizer(&source.resolve_path(named), "teacher.tokenizer")?;
    let (config, tokenizer) = student_shape(recipe, source)?;
    if theirs.digest() != tokenizer.digest() {
        return Err(Failure::new(Exit::BadRecipe, "teacher and student have different tokenizers")
            .code("wrong-tokenizer")
            .at(source.place(&TOKENIZER))
            .detail("token ids that the student writes would be other tokens to the teacher")
            .fix(
                "take a student with the teacher's tokenizer, or learn the teacher's text by `hard_labels`",
            ));
    }
    let n_ids = tokenizer.vocab_size();
    Ok((n_ids < config.vocab_size).then_some(n_ids))
}

/// The model whose weights the student starts from.
pub(super) fn base_files(recipe: &Recipe, source: &Source) -> Result<ModelFiles> {
    match recipe.student.base() {
        Some(Base { path: Some(path), .. }) => Ok(ModelFiles::open(&source.resolve_path(path))?),
        _ => super::teacher_files(recipe, source),
    }
}

fn student_tokenizer(recipe: &Recipe, source: &Source) -> Result<Tokenizer> {
    let files = match &recipe.student {
        Student::FromScratch(Shape { tokenizer: Some(path), .. }) => {
            return read_tokenizer(&source.resolve_path(path), "student.tokenizer");
        }
        Student::FromScratch(_) => super::teacher_files(recipe, source)?,
        _ => base_files(recipe, source)?,
    };
    let path = files.path;
    files.tokenizer.ok_or_else(|| {
        Failure::new(Exit::BadData, format!("`{}` has no tokenizer", path.display()))
            .fix("put its `tokenizer.json` beside `config.json`")
    })
}

fn scratch_config(
    recipe: &Recipe,
    source: &Source,
    shape: &Shape,
    tokenizer: &Tokenizer,
) -> Result<DecoderConfig> {
    // A teacher's table may be wider than its tokenizer; its distributions are over the table.
    let vocab_size = match (&shape.tokenizer, &recipe.teacher) {
        (None, Some(_)) => super::teacher_files(recipe, source)?.config.vocab_size,
        _ => tokenizer.vocab_size(),
    };
    let family = match shape.architecture {
        Architecture::Llama => Family::Llama,
        Architecture::Qwen2 => Family::Qwen2,
        Architecture::Qwen3 => Family::Qwen3,
    };
    Ok(DecoderConfig {
        family,
        vocab_size,
        hidden_size: shape.hidden_size,
        intermediate_size: shape.intermediate_size,
        num_hidden_layers: shape.num_hidden_layers,
        num_attention_heads: shape.num_attention_heads,
        num_key_value_heads: shape.num_key_value_heads,
        head_dim: shape.head_dim,
        rms_norm_eps: shape.rms_norm_eps as f32,
        rope_theta: shape.rope_theta as f32,
        rope_scaling: RopeScaling::None,
        max_position_embeddings: shape.max_position_embeddings,
        tie_word_embeddings: shape.tie_word_embeddings,
        qkv_bias: family == Family::Qwen2,
        attention_out_bias: false,
        mlp_bias: false,
        qk_norm: family == Family::Qwen3,
        bos_token_id: tokenizer.bos_id(),
        eos_token_ids: tokenizer.eos_id().into_iter().collect(),
    })
}

/// The tokenizer in a directory that `key` names.
fn read_tokenizer(dir: &std::path::Path, key: &str) -> Result<Tokenizer> {
    let optional = |name: &str| -> Result<Option<String>> {
        let path = dir.join(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Failure::io("read", &path, &e)),
        }
    };
    let text = optional("tokenizer.json")?.ok_or_else(|| {
        Failure::new(Exit::Io, format!("there is no `tokenizer.json` in `{}`", dir.display()))
            .fix(format!("check `{key}`"))
    })?;
    let (config, template) = (optional("tokenizer_config.json")?, optional("chat_template.jinja")?);
    Ok(Tokenizer::from_json_files(&text, config.as_deref(), template.as_deref())?)
}

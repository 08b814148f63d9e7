//! `stillroom bench`: what the engine does on this machine in one kind of work, on random tokens.

mod flops;
mod memory;
mod report;
mod synthetic;
mod work;

use std::process::ExitCode;
use std::sync::Arc;

use stillroom_formats::{DecoderConfig, Encoding, Family, LoraConfig, LoraTarget, ModelFiles, RopeScaling};
use stillroom_kernels::Device;
use stillroom_model::memory::{generation_bytes, scoring_bytes, training_bytes, weight_bytes};
use stillroom_model::{Decoder, TrainState, WeightStorage};

use self::report::{Detail, Outcome, Report};
use self::synthetic::Supervision;
use self::work::Sizes;
use crate::args::{Bench, BenchDecode, BenchLoss, BenchScore, BenchSetting, BenchTrain};
use crate::failure::{Exit, Failure, Result};
use crate::footprint::{PROGRAM_BYTES, Stored};
use crate::{models, terminal};

/// Tokens of one step that are accepted.
const TOKENS_MAX: usize = 1 << 20;
/// Teacher ids of one step that are accepted: their offsets are 32 bits wide.
const TEACHER_IDS_MAX: usize = u32::MAX as usize;
/// Ids per position, as recipes draw them.
const DRAWS: usize = 50;
/// The random model's seed.
const SEED: u64 = 1;

pub(super) fn bench(work: &Bench) -> Result<ExitCode> {
    let (name, setting) = match work {
        Bench::Train(args) => ("train", &args.setting),
        Bench::Score(args) => ("score", &args.setting),
        Bench::Decode(args) => ("decode", &args.setting),
    };
    let device = models::device(&setting.machine);
    let fma_peak_before = device.fma_peak();
    let outcome = match work {
        Bench::Train(args) => train(args, device.clone())?,
        Bench::Score(args) => score(args, device.clone())?,
        Bench::Decode(args) => decode(args, device.clone())?,
    };
    let report = Report::new(name, setting, &outcome, &device, fma_peak_before);
    if setting.json {
        terminal::print_json(&report)?;
    } else {
        terminal::print(&terminal::harmless(&report.in_words()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn train(args: &BenchTrain, device: Arc<Device>) -> Result<Outcome> {
    let (batch, sequence) = (args.setting.batch, args.sequence);
    check_tokens(batch, sequence)?;
    let model = Model::open(&args.setting, sequence)?;
    let config = model.config().clone();
    let supervision = supervision(args, config.vocab_size)?;
    // At least one position of each sequence is left to learn from.
    let masked = ((args.masked * sequence as f64).round() as usize).min(sequence - 1);
    let sizes = Sizes { batch, sequence, steps: args.setting.steps };
    let lora = args.lora_r.map(|r| {
        let target_modules = LoraTarget::ALL.to_vec();
        LoraConfig { r, alpha: 2.0 * r as f64, dropout: 0.0, target_modules, use_rslora: false }
    });
    let recomputing = args.gradient_checkpointing;
    let predicted = training_bytes(&config, lora.as_ref(), batch, sequence, recomputing);
    // While they are read, weights are in memory as they are in the file too.
    let predicted = predicted.max(4 * config.n_parameters() + model.bytes_in_file()?);
    let mut decoder = model.load(device, WeightStorage::F32)?;
    if let Some(lora) = &lora {
        decoder = decoder.with_new_adapter(lora.clone(), SEED)?;
    }
    let trained_parameters = decoder.n_trained();
    let state = TrainState::new(decoder).with_gradient_checkpointing(recomputing);
    let trained = work::train(state, sizes, masked, supervision)?;
    let loss = match supervision {
        Supervision::HardLabels => "ce",
        Supervision::Sparse { .. } => "sparse_kd",
    };
    Ok(Outcome {
        algorithmic_flops_per_step: match &lora {
            Some(lora) => flops::train_adapter(&config, lora, batch, sequence, sequence - masked),
            None => flops::train(&config, batch, sequence, sequence - masked),
        },
        predicted_resident_bytes: PROGRAM_BYTES + predicted,
        config,
        sequence,
        tokens_per_step: batch * sequence,
        timed: trained.timed,
        detail: Detail::Train {
            loss,
            lora_r: args.lora_r,
            trained_parameters,
            supervised_tokens_per_step: batch * (sequence - masked),
            first_loss: trained.first_loss,
            last_loss: trained.last_loss,
        },
    })
}

fn score(args: &BenchScore, device: Arc<Device>) -> Result<Outcome> {
    let (batch, sequence) = (args.setting.batch, args.sequence);
    check_tokens(batch, sequence)?;
    let model = Model::open(&args.setting, sequence)?;
    let predicted = model.predicted(&|config, _| scoring_bytes(config, batch, sequence))?;
    let decoder = model.load(device, WeightStorage::AsStored)?;
    let scored = work::score(&decoder, Sizes { batch, sequence, steps: args.setting.steps })?;
    Ok(Outcome {
        algorithmic_flops_per_step: flops::score(decoder.config(), batch, sequence),
        predicted_resident_bytes: predicted,
        config: decoder.config().clone(),
        sequence,
        tokens_per_step: batch * sequence,
        timed: scored.timed,
        detail: Detail::Score { nll_nats_per_token: scored.nll },
    })
}

fn decode(args: &BenchDecode, device: Arc<Device>) -> Result<Outcome> {
    let (batch, prompt_tokens, tokens) = (args.setting.batch, args.prompt_tokens, new_tokens(args)?);
    let sequence = prompt_tokens + tokens;
    check_tokens(batch, sequence)?;
    // The last token written takes a place in the context too, though nothing is computed from it.
    let model = Model::open(&args.setting, sequence + 1)?;
    let work = |config: &DecoderConfig, storage| {
        generation_bytes(config, storage, batch, prompt_tokens, sequence + 1)
    };
    let predicted = model.predicted(&work)?;
    let decoder = model.load(device, WeightStorage::AsStored)?;
    let sizes = Sizes { batch, sequence, steps: args.setting.steps };
    let decoded = work::decode(&decoder, sizes, prompt_tokens, args.temperature)?;
    Ok(Outcome {
        algorithmic_flops_per_step: flops::decode(decoder.config(), batch, prompt_tokens, tokens),
        predicted_resident_bytes: predicted,
        config: decoder.config().clone(),
        sequence,
        tokens_per_step: batch * tokens,
        timed: decoded.timed,
        detail: Detail::Decode {
            prompt_tokens,
            temperature: args.temperature,
            prefill_seconds: decoded.prefill_seconds,
            prefill_tokens_per_second: (batch * prompt_tokens) as f64 / decoded.prefill_seconds,
        },
    })
}

/// `--tokens`, or what `--sequence` leaves beside the prompt.
fn new_tokens(args: &BenchDecode) -> Result<usize> {
    let Some(sequence) = args.sequence else {
        return Ok(args.tokens);
    };
    sequence.checked_sub(args.prompt_tokens).filter(|&tokens| tokens > 0).ok_or_else(|| {
        let cause = format!(
            "a sequence of {sequence} tokens leaves none to write after a prompt of {}",
            args.prompt_tokens
        );
        Failure::new(Exit::Usage, cause).at("--sequence").fix("make it longer, or lower `--prompt-tokens`")
    })
}

fn supervision(args: &BenchTrain, vocab_size: usize) -> Result<Supervision> {
    let refuse = |cause: String, fix: String| Err(Failure::new(Exit::Usage, cause).at("--draws").fix(fix));
    let draws = args.draws.unwrap_or(DRAWS);
    let sparse = args.loss == BenchLoss::SparseKd;
    if !sparse && args.draws.is_some() {
        let cause = "cross-entropy has no teacher to draw from".into();
        return refuse(cause, "add `--loss sparse_kd`, or leave `--draws` out".into());
    }
    if sparse && draws > vocab_size {
        let cause = format!("{draws} different ids cannot be drawn from a vocabulary of {vocab_size}");
        return refuse(cause, format!("draw at most {vocab_size}"));
    }
    if sparse && args.setting.batch * args.sequence > TEACHER_IDS_MAX / draws {
        let cause = format!("{draws} ids per position are more than {TEACHER_IDS_MAX} in one step");
        return refuse(cause, "draw fewer, or lower `--batch`".into());
    }
    Ok(if sparse { Supervision::Sparse { draws } } else { Supervision::HardLabels })
}

fn check_tokens(batch: usize, sequence: usize) -> Result<()> {
    if batch.saturating_mul(sequence) <= TOKENS_MAX {
        return Ok(());
    }
    let cause =
        format!("{batch} sequences of {sequence} tokens are more than {TOKENS_MAX} tokens in one step");
    Err(Failure::new(Exit::Usage, cause).at("--batch").fix("lower it"))
}

/// What is timed, before its weights are there.
enum Model {
    Random(DecoderConfig),
    OnDisk(Box<ModelFiles>),
}

impl Model {
    /// The model that is named, else a random one. Its context holds `positions`.
    fn open(setting: &BenchSetting, positions: usize) -> Result<Model> {
        let Some(named) = &setting.model else {
            return Ok(Model::Random(random_config(setting, positions)?));
        };
        let files = ModelFiles::open(&models::locate(named)?)?;
        let context = files.config.max_position_embeddings;
        if positions > context {
            let cause =
                format!("sequences of {positions} tokens do not fit the model's context of {context}");
            return Err(Failure::new(Exit::Usage, cause)
                .at(files.path.display().to_string())
                .fix("take shorter ones, or another model"));
        }
        Ok(Model::OnDisk(Box::new(files)))
    }

    fn config(&self) -> &DecoderConfig {
        match self {
            Model::Random(config) => config,
            Model::OnDisk(files) => &files.config,
        }
    }

    /// None for a random model.
    fn bytes_in_file(&self) -> Result<u64> {
        match self {
            Model::Random(_) => Ok(0),
            Model::OnDisk(files) => Ok(Stored::of(&files.config, files.tensors.as_ref())?.in_file),
        }
    }

    /// The most memory of scoring or writing, where `work` is what it takes beside the weights.
    fn predicted(&self, work: &dyn Fn(&DecoderConfig, WeightStorage) -> u64) -> Result<u64> {
        let most = match self {
            Model::Random(config) => {
                let storage = WeightStorage::F32;
                weight_bytes(config, storage, &|_| Encoding::F32) + work(config, storage)
            }
            Model::OnDisk(files) => Stored::of(&files.config, files.tensors.as_ref())?
                .with(work(&files.config, WeightStorage::AsStored)),
        };
        Ok(PROGRAM_BYTES + most)
    }

    fn load(self, device: Arc<Device>, storage: WeightStorage) -> Result<Decoder> {
        match self {
            Model::Random(config) => Ok(Decoder::random(device, config, SEED)),
            Model::OnDisk(files) => Decoder::load_as(storage, device, files.config, files.tensors.as_ref())
                .map_err(|e| Failure::from(e).at(files.path.display().to_string())),
        }
    }
}

/// A Llama of the sizes asked for.
fn random_config(setting: &BenchSetting, positions: usize) -> Result<DecoderConfig> {
    let refuse = |at: &str, cause: String, fix: &str| Failure::new(Exit::Usage, cause).at(at).fix(fix);
    let (hidden, heads) = (setting.hidden, setting.heads);
    if !hidden.is_multiple_of(2 * heads) {
        let cause = format!("a width of {hidden} does not split into {heads} heads of an even width");
        return Err(refuse("--hidden", cause, "choose a multiple of twice the heads"));
    }
    let config = DecoderConfig {
        family: Family::Llama,
        vocab_size: setting.vocab,
        hidden_size: hidden,
        intermediate_size: setting.ffn,
        num_hidden_layers: setting.layers,
        num_attention_heads: heads,
        num_key_value_heads: setting.kv_heads.unwrap_or(heads),
        head_dim: hidden / heads,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        max_position_embeddings: positions,
        tie_word_embeddings: setting.tied,
        qkv_bias: false,
        attention_out_bias: false,
        mlp_bias: false,
        qk_norm: false,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
    };
    let fix = "change the sizes so that they go together";
    config.validate().map_err(|e| refuse("the random model", e.to_string(), fix))?;
    Decoder::check_config(&config).map_err(|e| refuse("the random model", e.to_string(), fix))?;
    Ok(config)
}

#[cfg(test)]
pub(super) mod tests {
    use clap::{Args, FromArgMatches};

    use super::*;

    /// Two layers of width 16 with two query heads and one key head.
    pub(super) fn tiny() -> DecoderConfig {
        let sizes = ["--hidden", "16", "--layers", "2", "--heads", "2", "--kv-heads", "1", "--ffn", "24"];
        let line = [&["bench"], &sizes[..], &["--vocab", "40"]].concat();
        let found = BenchSetting::augment_args(clap::Command::new("bench")).get_matches_from(line);
        let setting = BenchSetting::from_arg_matches(&found).expect("sizes that go together");
        random_config(&setting, 64).expect("a model of these sizes")
    }
}

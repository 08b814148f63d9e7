//! A recipe as typed: every key optional, unknown keys refused.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::verifier::RawVerifier;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRecipe {
    pub(super) name: Option<String>,
    pub(super) seed: Option<u64>,
    pub(super) output_dir: Option<String>,
    pub(super) student: Option<RawStudent>,
    pub(super) teacher: Option<RawTeacher>,
    pub(super) prompts: Option<RawPrompts>,
    pub(super) curate: Option<RawCurate>,
    pub(super) feedback: Option<RawFeedback>,
    pub(super) train: Option<RawTrain>,
    pub(super) evaluate: Option<RawEvaluate>,
    pub(super) policy: Option<RawPolicy>,
    pub(super) release: Option<RawRelease>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStudent {
    pub(super) kind: Option<String>,
    pub(super) model: Option<String>,
    pub(super) path: Option<String>,
    pub(super) adapter: Option<String>,
    pub(super) layers: Option<Vec<usize>>,
    pub(super) tokenizer: Option<String>,
    pub(super) architecture: Option<String>,
    pub(super) hidden_size: Option<usize>,
    pub(super) num_hidden_layers: Option<usize>,
    pub(super) num_attention_heads: Option<usize>,
    pub(super) num_key_value_heads: Option<usize>,
    pub(super) head_dim: Option<usize>,
    pub(super) intermediate_size: Option<usize>,
    pub(super) max_position_embeddings: Option<usize>,
    pub(super) rope_theta: Option<f64>,
    pub(super) rms_norm_eps: Option<f64>,
    pub(super) tie_word_embeddings: Option<bool>,
    pub(super) calibration_examples: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTeacher {
    pub(super) kind: Option<String>,
    pub(super) model: Option<String>,
    pub(super) path: Option<String>,
    pub(super) seed: Option<u64>,
    pub(super) samples_per_prompt: Option<u32>,
    pub(super) max_tokens: Option<usize>,
    pub(super) temperature: Option<f64>,
    pub(super) top_p: Option<f64>,
    pub(super) max_in_flight: Option<usize>,
    pub(super) logits: Option<RawLogits>,
    pub(super) weight: Option<f64>,
    pub(super) ensemble: Option<Vec<RawEnsembleTeacher>>,
    pub(super) endpoints: Option<Vec<RawEndpoint>>,
    pub(super) api_key: Option<String>,
    pub(super) served_model_name: Option<String>,
    pub(super) api: Option<String>,
    pub(super) chat_template: Option<String>,
    pub(super) stream: Option<bool>,
    pub(super) send_seed: Option<bool>,
    pub(super) top_logprobs: Option<usize>,
    pub(super) return_token_ids: Option<bool>,
    pub(super) scoring: Option<String>,
    pub(super) tokenizer: Option<String>,
    pub(super) extra_body: Option<serde_json::Map<String, serde_json::Value>>,
    pub(super) connect_timeout_s: Option<f64>,
    pub(super) first_token_timeout_s: Option<f64>,
    pub(super) stall_timeout_s: Option<f64>,
    pub(super) max_attempts: Option<usize>,
    pub(super) hedge_after_s: Option<f64>,
    pub(super) budget_usd: Option<f64>,
    pub(super) budget_tokens: Option<u64>,
    pub(super) budget_s: Option<f64>,
    pub(super) price: Option<RawPrice>,
    pub(super) max_requests_per_file: Option<usize>,
    pub(super) max_bytes_per_file: Option<usize>,
    pub(super) batch_discount: Option<f64>,
    pub(super) poll_s: Option<f64>,
    pub(super) wait_s: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEnsembleTeacher {
    pub(super) model: Option<String>,
    pub(super) path: Option<String>,
    pub(super) weight: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLogits {
    pub(super) kind: Option<String>,
    pub(super) draws: Option<u32>,
    pub(super) evenly_spaced: Option<bool>,
    pub(super) k: Option<u32>,
    pub(super) tail: Option<String>,
    pub(super) temperature: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEndpoint {
    pub(super) base_url: Option<String>,
    pub(super) weight: Option<f64>,
    pub(super) max_in_flight: Option<usize>,
    pub(super) requests_per_minute: Option<f64>,
    pub(super) tokens_per_minute: Option<f64>,
    pub(super) api_key: Option<String>,
    pub(super) send_key_unencrypted: Option<bool>,
    pub(super) owner: Option<String>,
    pub(super) jurisdiction: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPrice {
    pub(super) input_usd_per_mtok: Option<f64>,
    pub(super) output_usd_per_mtok: Option<f64>,
    pub(super) cached_input_usd_per_mtok: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPrompts {
    pub(super) kind: Option<String>,
    pub(super) task: Option<String>,
    pub(super) path: Option<String>,
    pub(super) config: Option<String>,
    pub(super) splits: Option<RawSplits>,
    pub(super) verifier: Option<RawVerifier>,
    pub(super) num_examples: Option<usize>,
    pub(super) num_validation: Option<usize>,
    pub(super) seed: Option<u64>,
    pub(super) data_class: Option<String>,
}

/// What a data set calls its parts.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSplits {
    pub(super) train: Option<String>,
    pub(super) validation: Option<String>,
    pub(super) held_out: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCurate {
    pub(super) verify: Option<bool>,
    pub(super) decontaminate: Option<bool>,
    pub(super) select: Option<String>,
    pub(super) tool_calls: Option<String>,
    pub(super) min_completion_tokens: Option<u32>,
    pub(super) max_completion_tokens: Option<u32>,
    pub(super) max_paragraph_chars: Option<usize>,
    pub(super) no_code_blocks: Option<bool>,
    pub(super) max_script_mixing: Option<f64>,
    pub(super) min_chars: Option<usize>,
    pub(super) max_chars: Option<usize>,
    pub(super) languages: Option<Vec<String>>,
    pub(super) same_language: Option<bool>,
    pub(super) no_loops: Option<bool>,
    pub(super) max_repeated_share: Option<f64>,
    pub(super) no_refusals: Option<bool>,
    pub(super) no_self_identification: Option<bool>,
    pub(super) pass_rate_min: Option<f64>,
    pub(super) pass_rate_max: Option<f64>,
    pub(super) keep: Option<String>,
    pub(super) pii: Option<String>,
    pub(super) pii_classes: Option<Vec<String>>,
    pub(super) near_duplicates: Option<f64>,
    pub(super) near_duplicates_of: Option<String>,
    pub(super) near_duplicates_unit: Option<String>,
    pub(super) near_duplicates_ngram: Option<usize>,
    pub(super) decontaminate_against: Option<Vec<String>>,
    pub(super) decontaminate_overlap: Option<f64>,
    pub(super) max_share_per_answer: Option<f64>,
    pub(super) max_share_per_class: Option<f64>,
    pub(super) class_field: Option<String>,
    pub(super) allowed_licences: Option<Vec<String>>,
    pub(super) allowed_licenses: Option<Vec<String>>,
    pub(super) respect_opt_outs: Option<bool>,
    pub(super) sources: Option<BTreeMap<String, RawDataSource>>,
}

/// What is known of a source of rows.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDataSource {
    pub(super) licence: Option<String>,
    pub(super) license: Option<String>,
    pub(super) opt_out: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFeedback {
    pub(super) form: Option<String>,
    pub(super) rubric: Option<String>,
    pub(super) best: Option<u32>,
    pub(super) margin: Option<f64>,
    pub(super) from: Option<String>,
    pub(super) samples_per_prompt: Option<u32>,
    pub(super) max_tokens: Option<usize>,
    pub(super) temperature: Option<f64>,
    pub(super) top_p: Option<f64>,
    pub(super) seed: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTrain {
    pub(super) seed: Option<u64>,
    pub(super) learning_rate: Option<f64>,
    pub(super) lr_scheduler_type: Option<String>,
    pub(super) warmup_ratio: Option<f64>,
    pub(super) min_lr_ratio: Option<f64>,
    pub(super) num_train_epochs: Option<f64>,
    pub(super) max_steps: Option<u64>,
    pub(super) per_device_train_batch_size: Option<usize>,
    pub(super) gradient_accumulation_steps: Option<usize>,
    pub(super) max_length: Option<usize>,
    pub(super) gradient_checkpointing: Option<bool>,
    pub(super) packing: Option<bool>,
    pub(super) weight_decay: Option<f64>,
    pub(super) adam_beta1: Option<f64>,
    pub(super) adam_beta2: Option<f64>,
    pub(super) adam_epsilon: Option<f64>,
    pub(super) max_grad_norm: Option<f64>,
    pub(super) on_policy_fraction: Option<f64>,
    /// TRL's name of it.
    pub(super) lmbda: Option<f64>,
    pub(super) max_new_tokens: Option<usize>,
    /// TRL's name of it in its newer trainers.
    pub(super) max_completion_length: Option<usize>,
    pub(super) rollout_temperature: Option<f64>,
    pub(super) rollout_top_p: Option<f64>,
    pub(super) rollouts_per_step: Option<usize>,
    pub(super) replay_buffer_size: Option<usize>,
    pub(super) replay_fraction: Option<f64>,
    pub(super) replay_max_staleness: Option<u64>,
    pub(super) lora_r: Option<usize>,
    pub(super) lora_alpha: Option<f64>,
    pub(super) lora_dropout: Option<f64>,
    pub(super) lora_target_modules: Option<RawNames>,
    pub(super) use_rslora: Option<bool>,
    pub(super) loss_functions: Option<Vec<RawLoss>>,
    pub(super) hidden_alignment: Option<RawHidden>,
    pub(super) save_steps: Option<u64>,
    pub(super) eval_steps: Option<u64>,
    pub(super) logging_steps: Option<u64>,
    pub(super) save_total_limit: Option<usize>,
}

/// One name, or a list of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "it is `\"all-linear\"`, or a list of names such as `[\"q_proj\", \"v_proj\"]`"
)]
pub(super) enum RawNames {
    One(String),
    Many(Vec<String>),
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLoss {
    pub(super) function: Option<String>,
    pub(super) weight: Option<RawWeight>,
    pub(super) temperature: Option<f64>,
    pub(super) jsd_teacher_weight: Option<f64>,
    /// TRL's name of it.
    pub(super) beta: Option<f64>,
    pub(super) alpha: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHidden {
    /// Pairs \[teacher, student\].
    pub(super) layers: Option<Vec<Vec<usize>>>,
    pub(super) weight: Option<RawWeight>,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(untagged, expecting = "a weight is a number, or `{ from = NUMBER, to = NUMBER }`")]
pub(super) enum RawWeight {
    Constant(f64),
    Linear(RawLine),
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLine {
    pub(super) from: f64,
    pub(super) to: f64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEvaluate {
    pub(super) num_examples: Option<usize>,
    pub(super) max_tokens: Option<usize>,
    pub(super) own_text_examples: Option<usize>,
    pub(super) controls: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPolicy {
    pub(super) egress: Option<String>,
    pub(super) listed: Option<Vec<String>>,
    pub(super) accept: Option<Vec<String>>,
    #[serde(rename = "override")]
    pub(super) override_reason: Option<String>,
    pub(super) declare: Option<BTreeMap<String, RawDeclaration>>,
    pub(super) register: Option<String>,
    #[serde(alias = "license_files")]
    pub(super) licence_files: Option<BTreeMap<String, String>>,
    pub(super) data_classes: Option<BTreeMap<String, RawDataClass>>,
    pub(super) prompt_pii: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDataClass {
    pub(super) owners: Option<Vec<String>>,
    pub(super) jurisdictions: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDeclaration {
    pub(super) owner: Option<String>,
    pub(super) licence: Option<String>,
    pub(super) license: Option<String>,
    pub(super) digest: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRelease {
    pub(super) name: Option<String>,
    pub(super) dtype: Option<String>,
    pub(super) gguf: Option<String>,
    pub(super) licence: Option<String>,
    pub(super) license: Option<String>,
    pub(super) key: Option<String>,
    pub(super) key_passphrase: Option<String>,
    pub(super) sign_command: Option<Vec<String>>,
    pub(super) public_key: Option<String>,
    pub(super) sign_timeout_s: Option<f64>,
    pub(super) timestamp_url: Option<String>,
    pub(super) timestamp_certificate: Option<String>,
    pub(super) timestamp_required: Option<bool>,
    pub(super) timestamp_timeout_s: Option<f64>,
}

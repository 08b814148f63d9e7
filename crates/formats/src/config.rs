//! `config.json` of a Hugging Face directory, in all its spellings.

use serde_json::{Map, Value, json};

use crate::error::{FormatError, Result};

/// The architectures that one decoder covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Llama,
    Qwen2,
    Qwen3,
}

impl Family {
    /// `model_type` of `config.json`, and `general.architecture` of a GGUF file.
    pub fn as_str(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
        }
    }

    /// The family of that name.
    pub fn from_name(name: &str) -> Option<Family> {
        [Family::Llama, Family::Qwen2, Family::Qwen3].into_iter().find(|family| family.as_str() == name)
    }

    /// Class name in transformers.
    fn class(self) -> &'static str {
        match self {
            Family::Llama => "LlamaForCausalLM",
            Family::Qwen2 => "Qwen2ForCausalLM",
            Family::Qwen3 => "Qwen3ForCausalLM",
        }
    }
}

/// How rotary frequencies are stretched for long contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    /// Llama 3: frequencies whose wavelength exceeds `original_context / low_freq_factor` are
    /// divided by `factor`, those below `original_context / high_freq_factor` kept, the ones
    /// between interpolated.
    Llama3 {
        factor: f32,
        low_freq_factor: f32,
        high_freq_factor: f32,
        original_context: usize,
    },
}

impl RopeScaling {
    /// By how much each of the `head_dim / 2` frequencies `theta^(-2k/head_dim)` is divided
    /// (`None` without scaling). This is GGUF's tensor `rope_freqs.weight`.
    pub fn divisors(self, theta: f32, head_dim: usize) -> Option<Vec<f32>> {
        let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } = self else {
            return None;
        };
        let (factor, low, high) =
            (f64::from(factor), f64::from(low_freq_factor), f64::from(high_freq_factor));
        let context = original_context as f64;
        let divisor = |k: usize| {
            let frequency = f64::from(theta).powf(-2.0 * k as f64 / head_dim as f64);
            let wavelength = std::f64::consts::TAU / frequency;
            if wavelength < context / high {
                1.0
            } else if wavelength > context / low {
                factor
            } else {
                let smooth = (context / wavelength - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        };
        Some((0..head_dim / 2).map(|k| divisor(k) as f32).collect())
    }
}

/// Everything that decides the shape and the arithmetic of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    pub family: Family,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub rms_norm_eps: f32,
    pub rope_theta: f32,
    pub rope_scaling: RopeScaling,
    pub max_position_embeddings: usize,
    pub tie_word_embeddings: bool,
    /// Biases on the query, key and value projections.
    pub qkv_bias: bool,
    pub attention_out_bias: bool,
    pub mlp_bias: bool,
    /// RMSNorm over each query and key head before the rotation (Qwen3).
    pub qk_norm: bool,
    pub bos_token_id: Option<u32>,
    pub eos_token_ids: Vec<u32>,
}

/// Caps of the sizes: above the largest released models, and small enough that no product of
/// two of them overflows.
const VOCAB_SIZE_MAX: usize = 1 << 22;
const HIDDEN_SIZE_MAX: usize = 1 << 17;
const INTERMEDIATE_SIZE_MAX: usize = 1 << 20;
const LAYERS_MAX: usize = 1 << 10;
const HEADS_MAX: usize = 1 << 10;
const HEAD_DIM_MAX: usize = 1 << 12;
const POSITIONS_MAX: usize = 1 << 26;
const EOS_TOKENS_MAX: usize = 256;

impl DecoderConfig {
    /// Reads `config.json`: Llama, Qwen2 and Qwen3, with `rope_theta`/`rope_scaling` or
    /// `rope_parameters`. What the decoder does not implement is an error, never ignored.
    pub fn from_json(text: &str) -> Result<DecoderConfig> {
        let value: Value = serde_json::from_str(text)
            .map_err(|error| FormatError::malformed("config.json", error.to_string()))?;
        let object = value
            .as_object()
            .ok_or_else(|| FormatError::malformed("config.json", "the top level is not an object"))?;
        Fields(object).config()
    }

    /// Checks every size against its cap and the sizes against each other.
    pub fn validate(&self) -> Result<()> {
        within("vocab_size", self.vocab_size, VOCAB_SIZE_MAX)?;
        within("hidden_size", self.hidden_size, HIDDEN_SIZE_MAX)?;
        within("intermediate_size", self.intermediate_size, INTERMEDIATE_SIZE_MAX)?;
        within("num_hidden_layers", self.num_hidden_layers, LAYERS_MAX)?;
        within("num_attention_heads", self.num_attention_heads, HEADS_MAX)?;
        within("num_key_value_heads", self.num_key_value_heads, self.num_attention_heads)?;
        within("head_dim", self.head_dim, HEAD_DIM_MAX)?;
        within("max_position_embeddings", self.max_position_embeddings, POSITIONS_MAX)?;
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let expected = format!("a multiple of num_key_value_heads ({})", self.num_key_value_heads);
            return Err(setting("num_attention_heads", self.num_attention_heads, expected));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(setting("head_dim", self.head_dim, "an even number"));
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return Err(setting("rms_norm_eps", self.rms_norm_eps, "a number between 0 and 1"));
        }
        if !(self.rope_theta >= 1.0 && self.rope_theta.is_finite()) {
            return Err(setting("rope_theta", self.rope_theta, "a finite number of at least 1"));
        }
        if let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } =
            self.rope_scaling
        {
            within("original_max_position_embeddings", original_context, POSITIONS_MAX)?;
            if !(factor >= 1.0 && factor.is_finite()) {
                return Err(setting("factor", factor, "a finite number of at least 1"));
            }
            if !(low_freq_factor > 0.0 && high_freq_factor > low_freq_factor && high_freq_factor.is_finite())
            {
                let expected = format!("a finite number above low_freq_factor ({low_freq_factor}) above 0");
                return Err(setting("high_freq_factor", high_freq_factor, expected));
            }
        }
        let named = self.bos_token_id.iter().map(|id| ("bos_token_id", *id));
        for (key, id) in named.chain(self.eos_token_ids.iter().map(|id| ("eos_token_id", *id))) {
            if id as usize >= self.vocab_size {
                return Err(setting(key, id, format!("below vocab_size ({})", self.vocab_size)));
            }
        }
        self.validate_family()
    }

    /// transformers has no switch for these combinations, so neither has a file of ours.
    fn validate_family(&self) -> Result<()> {
        let qk_norm = self.family == Family::Qwen3;
        if self.qk_norm != qk_norm {
            return Err(setting("qk_norm", self.qk_norm, format!("{qk_norm} for {}", self.family.as_str())));
        }
        let (qkv_bias, out_bias) = match self.family {
            Family::Qwen2 => (true, false),
            Family::Llama | Family::Qwen3 => (self.qkv_bias, self.qkv_bias),
        };
        if (self.qkv_bias, self.attention_out_bias) != (qkv_bias, out_bias) {
            let found = format!("{} on q, k, v and {} on the output", self.qkv_bias, self.attention_out_bias);
            let expected = format!("{qkv_bias} and {out_bias} for {}", self.family.as_str());
            return Err(setting("attention_bias", found, expected));
        }
        if self.mlp_bias && self.family != Family::Llama {
            return Err(setting("mlp_bias", true, format!("false for {}", self.family.as_str())));
        }
        Ok(())
    }

    /// The `config.json` that transformers (4 and 5), vLLM and llama.cpp's converter read.
    pub fn to_json(&self) -> Value {
        let rope_scaling = match self.rope_scaling {
            RopeScaling::None => Value::Null,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => json!({
                "rope_type": "llama3",
                "factor": decimal(factor),
                "low_freq_factor": decimal(low_freq_factor),
                "high_freq_factor": decimal(high_freq_factor),
                "original_max_position_embeddings": original_context,
            }),
        };
        let eos = match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [id] => json!(id),
            ids => json!(ids),
        };
        let mut value = json!({
            "architectures": [self.family.class()],
            "model_type": self.family.as_str(),
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": decimal(self.rms_norm_eps),
            "rope_theta": decimal(self.rope_theta),
            "rope_scaling": rope_scaling,
            "max_position_embeddings": self.max_position_embeddings,
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "use_cache": true,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
        });
        match self.family {
            Family::Llama => {
                value["attention_bias"] = json!(self.qkv_bias);
                value["mlp_bias"] = json!(self.mlp_bias);
            }
            Family::Qwen2 => value["use_sliding_window"] = json!(false),
            Family::Qwen3 => {
                value["attention_bias"] = json!(self.qkv_bias);
                value["use_sliding_window"] = json!(false);
            }
        }
        value
    }

    /// Name and shape (`[out, in]` for matrices) of every parameter, in the order in which
    /// transformers lists them. A tied output head is not listed.
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let (d, f) = (self.hidden_size, self.intermediate_size);
        let q = self.num_attention_heads * self.head_dim;
        let kv = self.num_key_value_heads * self.head_dim;
        let mut list = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, d])];
        for layer in 0..self.num_hidden_layers {
            let mut push = |name: &str, shape: Vec<usize>| {
                list.push((format!("model.layers.{layer}.{name}"), shape));
            };
            let mut linear = |name: &str, n_out: usize, n_in: usize, bias: bool| {
                push(&format!("{name}.weight"), vec![n_out, n_in]);
                if bias {
                    push(&format!("{name}.bias"), vec![n_out]);
                }
            };
            linear("self_attn.q_proj", q, d, self.qkv_bias);
            linear("self_attn.k_proj", kv, d, self.qkv_bias);
            linear("self_attn.v_proj", kv, d, self.qkv_bias);
            linear("self_attn.o_proj", d, q, self.attention_out_bias);
            linear("mlp.gate_proj", f, d, self.mlp_bias);
            linear("mlp.up_proj", f, d, self.mlp_bias);
            linear("mlp.down_proj", d, f, self.mlp_bias);
            if self.qk_norm {
                push("self_attn.q_norm.weight", vec![self.head_dim]);
                push("self_attn.k_norm.weight", vec![self.head_dim]);
            }
            push("input_layernorm.weight", vec![d]);
            push("post_attention_layernorm.weight", vec![d]);
        }
        list.push(("model.norm.weight".to_owned(), vec![d]));
        if !self.tie_word_embeddings {
            list.push(("lm_head.weight".to_owned(), vec![self.vocab_size, d]));
        }
        list
    }

    /// Number of parameters, tied ones counted once.
    pub fn n_parameters(&self) -> u64 {
        self.parameters().iter().map(|(_, shape)| shape.iter().map(|&n| n as u64).product::<u64>()).sum()
    }
}

/// A `Setting` error.
pub(crate) fn setting(
    key: impl Into<String>,
    value: impl ToString,
    expected: impl Into<String>,
) -> FormatError {
    FormatError::Setting { key: key.into(), value: value.to_string(), expected: expected.into() }
}

fn within(key: &str, value: usize, limit: usize) -> Result<()> {
    if value == 0 || value > limit {
        return Err(setting(key, value, format!("a number from 1 to {limit}")));
    }
    Ok(())
}

/// The shortest decimal number that reads back as this `f32` (1e-5, not 9.99999974738e-6).
fn decimal(number: f32) -> Value {
    number.to_string().parse::<f64>().map_or(Value::Null, |number| json!(number))
}

/// The object of `config.json`, read field by field; null counts as absent.
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn config(&self) -> Result<DecoderConfig> {
        let family = self.family()?;
        self.refuse_what_is_not_implemented(family)?;
        let attention_bias = self.flag("attention_bias")?.unwrap_or(false);
        let (qkv_bias, attention_out_bias) = match family {
            Family::Qwen2 => (true, false),
            Family::Llama | Family::Qwen3 => (attention_bias, attention_bias),
        };
        let hidden_size = self.required_size("hidden_size")?;
        let num_attention_heads = self.required_size("num_attention_heads")?;
        let head_dim = match (self.size("head_dim")?, family) {
            (Some(head_dim), _) => head_dim,
            // Qwen3Config's default; the others divide.
            (None, Family::Qwen3) if !self.0.contains_key("head_dim") => 128,
            (None, _) => match hidden_size.checked_div(num_attention_heads) {
                Some(head_dim) if head_dim * num_attention_heads == hidden_size => head_dim,
                _ => {
                    let expected = format!("a multiple of num_attention_heads ({num_attention_heads})");
                    return Err(setting("hidden_size", hidden_size, expected));
                }
            },
        };
        let max_position_embeddings = self.size("max_position_embeddings")?.unwrap_or(match family {
            Family::Llama => 2048,
            Family::Qwen2 | Family::Qwen3 => 32768,
        });
        let (rope_theta, rope_scaling) = self.rope(max_position_embeddings)?;
        let config = DecoderConfig {
            family,
            vocab_size: self.required_size("vocab_size")?,
            hidden_size,
            intermediate_size: self.required_size("intermediate_size")?,
            num_hidden_layers: self.required_size("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads: self.size("num_key_value_heads")?.unwrap_or(num_attention_heads),
            head_dim,
            rms_norm_eps: self.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            max_position_embeddings,
            tie_word_embeddings: self.flag("tie_word_embeddings")?.unwrap_or(false),
            qkv_bias,
            attention_out_bias,
            mlp_bias: family == Family::Llama && self.flag("mlp_bias")?.unwrap_or(false),
            qk_norm: family == Family::Qwen3,
            bos_token_id: self.token_ids("bos_token_id")?.first().copied(),
            eos_token_ids: self.token_ids("eos_token_id")?,
        };
        config.validate()?;
        Ok(config)
    }

    fn family(&self) -> Result<Family> {
        let unsupported =
            |value: &str| FormatError::Unsupported { what: "architecture", value: value.to_owned() };
        let class = self.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
        let name = match (self.text("model_type")?, class) {
            (Some(name), _) => name,
            (None, Some(class)) => {
                let known = [Family::Llama, Family::Qwen2, Family::Qwen3];
                return known.into_iter().find(|f| f.class() == class).ok_or_else(|| unsupported(class));
            }
            (None, None) => return Err(setting("model_type", "absent", "`llama`, `qwen2` or `qwen3`")),
        };
        Family::from_name(name).ok_or_else(|| unsupported(name))
    }

    fn refuse_what_is_not_implemented(&self, family: Family) -> Result<()> {
        let unsupported =
            |what, value: &Value| Err(FormatError::Unsupported { what, value: shortened(value) });
        match self.get("hidden_act") {
            None => {}
            Some(act) if matches!(act.as_str(), Some("silu" | "swish")) => {}
            Some(act) => return unsupported("hidden_act", act),
        }
        if let Some(quantisation) = self.get("quantization_config") {
            return unsupported("quantization_config", quantisation);
        }
        if let Some(Value::Array(types)) = self.get("layer_types")
            && let Some(other) = types.iter().find(|kind| kind.as_str() != Some("full_attention"))
        {
            return unsupported("layer type", other);
        }
        if family != Family::Llama && self.flag("use_sliding_window")? == Some(true) {
            let first_sliding = self.size("max_window_layers")?.unwrap_or(28);
            let layers = self.required_size("num_hidden_layers")?;
            if self.get("sliding_window").is_some() && first_sliding < layers {
                return unsupported("use_sliding_window", &Value::Bool(true));
            }
        }
        if let Some(share) = self.number("partial_rotary_factor")?
            && share != 1.0
        {
            return unsupported("partial_rotary_factor", &json!(share));
        }
        Ok(())
    }

    /// θ and scaling from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`.
    fn rope(&self, max_position_embeddings: usize) -> Result<(f32, RopeScaling)> {
        let mut theta = self.number("rope_theta")?;
        let mut scaling = RopeScaling::None;
        for key in ["rope_scaling", "rope_parameters"] {
            let Some(value) = self.get(key) else { continue };
            let inner = Fields(value.as_object().ok_or_else(|| setting(key, shortened(value), "an object"))?);
            if let Some(inner_theta) = inner.number("rope_theta")? {
                theta = Some(inner_theta);
            }
            if inner.number("partial_rotary_factor")?.is_some_and(|share| share != 1.0) {
                return Err(FormatError::Unsupported {
                    what: "partial_rotary_factor",
                    value: shortened(value),
                });
            }
            let kind = match inner.text("rope_type")? {
                Some(kind) => Some(kind),
                None => inner.text("type")?,
            };
            match kind {
                None | Some("default") => {}
                Some("llama3") => {
                    let original = match inner.size("original_max_position_embeddings")? {
                        Some(original) => Some(original),
                        None => self.size("original_max_position_embeddings")?,
                    };
                    scaling = RopeScaling::Llama3 {
                        factor: inner.required_number("factor")?,
                        low_freq_factor: inner.required_number("low_freq_factor")?,
                        high_freq_factor: inner.required_number("high_freq_factor")?,
                        original_context: original.unwrap_or(max_position_embeddings),
                    };
                }
                Some(other) => {
                    return Err(FormatError::Unsupported { what: "rope type", value: other.to_owned() });
                }
            }
        }
        Ok((theta.unwrap_or(10_000.0), scaling))
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.map(Some).ok_or_else(|| setting(key, shortened(value), "a whole number"))
    }

    fn required_size(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| setting(key, "absent", "a whole number"))
    }

    fn number(&self, key: &str) -> Result<Option<f32>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f64().ok_or_else(|| setting(key, shortened(value), "a number"))?;
        Ok(Some(number as f32))
    }

    fn required_number(&self, key: &str) -> Result<f32> {
        self.number(key)?.ok_or_else(|| setting(key, "absent", "a number"))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| setting(key, shortened(value), "true or false"))
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| setting(key, shortened(value), "a string"))
    }

    /// A token id or a list of them.
    fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        token_ids(key, self.0.get(key))
    }
}

/// A token id, a list of them, or null.
pub(crate) fn token_ids(key: &str, value: Option<&Value>) -> Result<Vec<u32>> {
    let wrong = |value: &Value| setting(key, shortened(value), "a token id or a list of token ids");
    let one =
        |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| wrong(value));
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) if list.len() <= EOS_TOKENS_MAX => list.iter().map(one).collect(),
        Some(Value::Array(list)) => Err(FormatError::TooLarge {
            what: format!("number of entries of `{key}`"),
            value: list.len() as u64,
            limit: EOS_TOKENS_MAX as u64,
        }),
        Some(value) => one(value).map(|id| vec![id]),
    }
}

/// Foreign JSON, short enough for one line of an error.
pub(crate) fn shortened(value: &Value) -> String {
    const CHARS_MAX: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

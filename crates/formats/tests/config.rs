//! `config.json` in all spellings, and values that cannot be right.

use proptest::prelude::*;
use serde_json::{Value, json};
use stillroom_formats::{DecoderConfig, Family, FormatError, RopeScaling};

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 49152, "hidden_size": 576,
        "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "rms_norm_eps": 1e-5, "rope_theta": 100_000, "max_position_embeddings": 8192, "tie_word_embeddings": true,
        "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "rope_scaling": null, "pretraining_tp": 1
    })
}

fn read(value: &Value) -> Result<DecoderConfig, FormatError> {
    DecoderConfig::from_json(&value.to_string())
}

fn with(changes: Value) -> Value {
    let mut value = llama();
    for (key, change) in changes.as_object().expect("an object") {
        value[key] = change.clone();
    }
    value
}

#[test]
fn smollm2_has_its_known_size() {
    let config = read(&llama()).expect("valid");
    assert_eq!(config.n_parameters(), 134_515_008);
    assert_eq!(config.head_dim, 64);
    assert_eq!(config.parameters().len(), 272);
    assert_eq!(config.to_json()["rms_norm_eps"].to_string(), "0.00001");
    assert_eq!(read(&config.to_json()).expect("our own"), config);
}

#[test]
fn defaults_are_those_of_transformers() {
    let mut value = llama();
    for key in [
        "num_key_value_heads",
        "rms_norm_eps",
        "rope_theta",
        "max_position_embeddings",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
        "hidden_act",
    ] {
        value.as_object_mut().expect("an object").remove(key);
    }
    let config = read(&value).expect("valid");
    assert_eq!((config.num_key_value_heads, config.rms_norm_eps, config.rope_theta), (9, 1e-6, 10_000.0));
    assert_eq!((config.max_position_embeddings, config.tie_word_embeddings), (2048, false));
    assert_eq!((config.bos_token_id, config.eos_token_ids.len()), (None, 0));
    value["model_type"] = json!("qwen3");
    let qwen3 = read(&value).expect("valid");
    assert_eq!((qwen3.head_dim, qwen3.qk_norm, qwen3.qkv_bias), (128, true, false));
    value["head_dim"] = Value::Null;
    assert_eq!(read(&value).expect("valid").head_dim, 64);
    value["model_type"] = json!("qwen2");
    let qwen2 = read(&value).expect("valid");
    assert!(qwen2.qkv_bias && !qwen2.attention_out_bias && !qwen2.qk_norm);
    value.as_object_mut().expect("an object").remove("model_type");
    assert_eq!(read(&value).expect("by its class").family, Family::Llama);
}

#[test]
fn both_spellings_of_rope_and_of_its_type_are_read() {
    let scaling = |kind: &str| {
        json!({kind: "llama3", "factor": 8.0, "low_freq_factor": 1, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192})
    };
    let old = read(&with(json!({"rope_theta": 5e5, "rope_scaling": scaling("rope_type")}))).expect("valid");
    let older = read(&with(json!({"rope_theta": 5e5, "rope_scaling": scaling("type")}))).expect("valid");
    let mut parameters = scaling("rope_type");
    parameters["rope_theta"] = json!(5e5);
    let mut new = llama();
    new.as_object_mut().expect("an object").remove("rope_theta");
    new["rope_parameters"] = parameters;
    let new = read(&new).expect("valid");
    assert_eq!((&old, &older), (&new, &new));
    assert_eq!(
        new.rope_scaling,
        RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192
        }
    );
    let divisors = new.rope_scaling.divisors(5e5, 64).expect("scaled");
    assert_eq!((divisors[0], divisors[31], divisors.len()), (1.0, 8.0, 32));
    let plain = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}, "rope_scaling": {"type": "default"}});
    let plain = read(&with(plain)).expect("valid");
    assert_eq!((plain.rope_theta, plain.rope_scaling), (7.0, RopeScaling::None));
}

#[test]
fn what_would_change_the_arithmetic_is_refused() {
    for (changes, message) in [
        (json!({"model_type": "mixtral"}), "unsupported architecture: `mixtral`"),
        (json!({"hidden_act": "gelu"}), "unsupported hidden_act: `\"gelu\"`"),
        (json!({"quantization_config": {"bits": 4}}), "unsupported quantization_config"),
        (json!({"rope_scaling": {"type": "yarn", "factor": 4.0}}), "unsupported rope type: `yarn`"),
        (json!({"rope_parameters": {"partial_rotary_factor": 0.5}}), "partial_rotary_factor"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (json!({"layer_types": ["full_attention", "sliding_attention"]}), "unsupported layer type"),
        (
            json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 4096, "max_window_layers": 3}),
            "use_sliding_window",
        ),
    ] {
        let error = read(&with(changes)).unwrap_err().to_string();
        assert!(error.contains(message), "{error} should contain {message}");
    }
    let unused = json!({"model_type": "qwen2", "use_sliding_window": false, "sliding_window": 32768, "max_window_layers": 21});
    assert!(read(&with(unused)).is_ok());
}

#[test]
fn values_that_cannot_be_right_are_named() {
    for (changes, message) in [
        (json!({"vocab_size": 0}), "`vocab_size` is 0, expected a number from 1 to"),
        (json!({"vocab_size": 1u64 << 40}), "`vocab_size` is 1099511627776"),
        (json!({"hidden_size": -576}), "`hidden_size` is -576, expected a whole number"),
        (json!({"hidden_size": 577}), "`hidden_size` is 577, expected a multiple of num_attention_heads (9)"),
        (json!({"num_hidden_layers": 1e9}), "`num_hidden_layers` is 1000000000.0"),
        (json!({"num_hidden_layers": 100_000}), "`num_hidden_layers` is 100000"),
        (json!({"num_attention_heads": 0}), "`hidden_size` is 576"),
        (json!({"num_key_value_heads": 2}), "`num_attention_heads` is 9, expected a multiple of"),
        (json!({"num_key_value_heads": 18}), "`num_key_value_heads` is 18"),
        (json!({"head_dim": 63}), "`head_dim` is 63, expected an even number"),
        (json!({"rms_norm_eps": 0}), "`rms_norm_eps` is 0"),
        (json!({"rms_norm_eps": "1e-5"}), "`rms_norm_eps` is \"1e-5\", expected a number"),
        (json!({"rope_theta": 1e300}), "`rope_theta` is inf"),
        (json!({"tie_word_embeddings": "yes"}), "`tie_word_embeddings` is \"yes\", expected true or false"),
        (json!({"eos_token_id": [2, 49152]}), "`eos_token_id` is 49152, expected below vocab_size (49152)"),
        (json!({"eos_token_id": vec![1; 1000]}), "number of entries of `eos_token_id` is 1000"),
        (json!({"bos_token_id": {"a": "x".repeat(500)}}), "…, expected a token id"),
        (
            json!({"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}}),
            "`high_freq_factor` is 1",
        ),
        (json!({"rope_scaling": {"type": "llama3"}}), "`factor` is absent"),
        (json!({"rope_scaling": 3}), "`rope_scaling` is 3, expected an object"),
    ] {
        let error = read(&with(changes)).unwrap_err().to_string();
        assert!(error.contains(message), "{error} should contain {message}");
        assert!(error.len() < 300, "{error}");
    }
    assert!(DecoderConfig::from_json("[]").is_err());
    assert!(DecoderConfig::from_json("{\"rms_norm_eps\": NaN}").is_err());
    assert!(DecoderConfig::from_json(&"[".repeat(1_000_000)).is_err());
}

proptest! {
    #[test]
    fn any_valid_config_reads_back(
        family in prop::sample::select(vec!["llama", "qwen2", "qwen3"]),
        (kv, group, half) in (1usize..5, 1usize..5, 1usize..65),
        (hidden, ffn, layers, vocab) in (1usize..3000, 1usize..3000, 1usize..40, 300usize..200_000),
        (eps, theta) in (1e-8f32..1e-2, 1.0f32..1e7),
        (tied, bias, llama3) in any::<(bool, bool, bool)>(),
        eos in prop::collection::vec(0u32..300, 0..4),
    ) {
        let mut value = json!({
            "model_type": family, "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": ffn,
            "num_hidden_layers": layers, "num_attention_heads": kv * group, "num_key_value_heads": kv,
            "head_dim": 2 * half, "rms_norm_eps": eps, "rope_theta": theta, "tie_word_embeddings": tied,
            "attention_bias": bias, "mlp_bias": bias, "eos_token_id": eos,
        });
        if llama3 {
            value["rope_scaling"] = json!({"rope_type": "llama3", "factor": theta, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
        }
        let config = read(&value).expect("valid");
        prop_assert_eq!(read(&config.to_json()).expect("our own"), config);
    }
}

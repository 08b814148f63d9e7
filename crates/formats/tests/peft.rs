//! LoRA adapters: reading what PEFT wrote (`oracles/lora.py`), writing, refusing.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Value, json};
use stillroom_core::ErrorKind;
use stillroom_formats::{
    DecoderConfig, Encoding, FormatError, LoraConfig, LoraTarget, ModelFiles, NamedTensor, PeftAdapter,
    write_peft_dir,
};

const VARIANTS: [(&str, &str); 4] = [
    ("llama-all", "llama-tied"),
    ("llama-qv-rslora", "llama-tied"),
    ("qwen2-all", "qwen2"),
    ("qwen2-qv-rslora", "qwen2"),
];

fn adapter_dir(variant: &str) -> PathBuf {
    common::golden().join("lora").join(variant)
}

fn base_config(base: &str) -> DecoderConfig {
    ModelFiles::open(&common::golden().join(base)).expect(base).config
}

fn tensors(adapter: &PeftAdapter) -> Vec<NamedTensor> {
    let read = |name: String| {
        let view = adapter.tensors.tensor(&name).expect("a listed tensor");
        assert_eq!(view.encoding, Encoding::F32);
        let data = view.bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        NamedTensor { name, shape: view.shape, data }
    };
    adapter.tensors.names().into_iter().map(read).collect()
}

#[test]
fn directories_of_peft_are_read_whole() {
    for (variant, base) in VARIANTS {
        let adapter = PeftAdapter::open(&adapter_dir(variant)).expect(variant);
        let expected = if variant.ends_with("all") {
            LoraConfig {
                r: 4,
                alpha: 6.0,
                dropout: 0.1,
                target_modules: LoraTarget::ALL.to_vec(),
                use_rslora: false,
            }
        } else {
            LoraConfig {
                r: 8,
                alpha: 16.0,
                dropout: 0.0,
                target_modules: vec![LoraTarget::Q, LoraTarget::V],
                use_rslora: true,
            }
        };
        assert_eq!(adapter.config, expected, "{variant}");
        assert_eq!(adapter.base_model.as_deref(), Some(base));
        let mut expected: Vec<(String, Vec<usize>)> = adapter
            .config
            .tensors(&base_config(base))
            .into_iter()
            .map(|tensor| (tensor.name, tensor.shape.to_vec()))
            .collect();
        let tensors = tensors(&adapter);
        let n: usize = tensors.iter().map(|tensor| tensor.data.len()).sum();
        assert_eq!(n as u64, adapter.config.n_parameters(&base_config(base)), "{variant}");
        let mut found: Vec<_> = tensors.into_iter().map(|tensor| (tensor.name, tensor.shape)).collect();
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "{variant}");
    }
}

#[test]
fn scales_are_those_of_lora_and_of_rslora() {
    let config = |use_rslora| LoraConfig {
        r: 16,
        alpha: 24.0,
        dropout: 0.0,
        target_modules: vec![LoraTarget::Q],
        use_rslora,
    };
    assert_eq!(config(false).scale(), 1.5);
    assert_eq!(config(true).scale(), 6.0);
}

#[test]
fn what_is_written_reads_back_bit_for_bit() {
    for (variant, base) in VARIANTS {
        let adapter = PeftAdapter::open(&adapter_dir(variant)).expect(variant);
        let model = base_config(base);
        let temp = tempfile::tempdir().expect("a temporary directory");
        let dir = temp.path().join("adapter");
        // Any order will do.
        let mut reversed = tensors(&adapter).into_iter().rev();
        write_peft_dir(&dir, &adapter.config, Some(base), &model, &mut reversed, Encoding::F32)
            .expect(variant);
        let again = PeftAdapter::open(&dir).expect(variant);
        assert_eq!((&again.config, &again.base_model), (&adapter.config, &adapter.base_model));
        let sorted = |adapter: &PeftAdapter| {
            let mut all = tensors(adapter);
            all.sort_by(|a, b| a.name.cmp(&b.name));
            all
        };
        assert_eq!(sorted(&again), sorted(&adapter), "{variant}");
        let mut files: Vec<_> =
            fs::read_dir(&dir).expect("listing").map(|entry| entry.expect("entry").file_name()).collect();
        files.sort();
        assert_eq!(files, ["adapter_config.json", "adapter_model.safetensors"]);
    }
}

#[test]
fn an_error_while_writing_leaves_no_file() {
    let adapter = PeftAdapter::open(&adapter_dir("llama-all")).expect("an adapter");
    let (model, whole) = (base_config("llama-tied"), tensors(&adapter));
    let temp = tempfile::tempdir().expect("a temporary directory");
    let write = |config: &LoraConfig, tensors: &[NamedTensor]| {
        let mut tensors = tensors.iter().cloned();
        write_peft_dir(temp.path(), config, None, &model, &mut tensors, Encoding::F32).unwrap_err()
    };
    let error = write(&adapter.config, &whole[1..]);
    assert!(matches!(error, FormatError::MissingTensor { .. }), "{error}");
    let error = write(&LoraConfig { r: 5, ..adapter.config.clone() }, &whole);
    assert!(matches!(error, FormatError::Shape { .. }), "{error}");
    let twice = vec![LoraTarget::Q, LoraTarget::Q];
    let error = write(&LoraConfig { target_modules: twice, ..adapter.config.clone() }, &whole);
    assert!(error.to_string().contains("each once"), "{error}");
    assert_eq!(fs::read_dir(temp.path()).expect("listing").count(), 0);
}

/// The settings that PEFT wrote, with one changed.
fn changed(key: &str, value: Value) -> Result<LoraConfig, FormatError> {
    let text = fs::read_to_string(adapter_dir("llama-all").join("adapter_config.json")).expect("a file");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    config[key] = value;
    LoraConfig::from_json(&config.to_string())
}

#[test]
fn what_peft_would_compute_otherwise_is_refused() {
    let cases = [
        ("peft_type", json!("LOHA"), "unsupported setting of an adapter: `peft_type: \"LOHA\"`"),
        ("task_type", json!("SEQ_CLS"), "`task_type: \"SEQ_CLS\"`"),
        ("bias", json!("lora_only"), "`bias: \"lora_only\"`"),
        ("modules_to_save", json!(["lm_head"]), "`\"modules_to_save\": [\"lm_head\"]`"),
        ("rank_pattern", json!({"q_proj": 8}), "rank_pattern"),
        ("alpha_pattern", json!({"q_proj": 8}), "alpha_pattern"),
        ("use_dora", json!(true), "use_dora"),
        ("lora_bias", json!(true), "lora_bias"),
        ("fan_in_fan_out", json!(true), "fan_in_fan_out"),
        ("layers_to_transform", json!(0), "layers_to_transform"),
        ("exclude_modules", json!("q_proj"), "exclude_modules"),
        ("init_lora_weights", json!("pissa"), "`init_lora_weights: \"pissa\"`"),
        ("a_setting_to_come", json!(1), "a_setting_to_come"),
        ("target_modules", json!(".*_proj"), "unsupported regular expression in `target_modules`"),
        ("target_modules", json!(["q_proj", "lm_head"]), "`target_modules` is \"lm_head\", expected"),
        ("target_modules", json!(["mlp.q_proj"]), "expected `all-linear` or some of `q_proj`"),
        ("target_modules", json!(["model.layers.x.mlp.up_proj"]), "`target_modules` is"),
        ("target_modules", json!(["model.layers.1.mlp.up_proj"]), "choice of layers in `target_modules`"),
        (
            "target_modules",
            json!([
                "model.layers.0.mlp.up_proj",
                "model.layers.1.mlp.up_proj",
                "model.layers.0.mlp.down_proj"
            ]),
            "of an adapter: `down_proj`",
        ),
        ("target_modules", json!([1]), "`target_modules` is 1"),
        ("target_modules", json!([]), "at least one target"),
        ("target_modules", json!(null), "`target_modules` is absent"),
        ("r", json!(0), "`r` is 0, expected a number from 1"),
        ("r", json!(1e9), "`r` is"),
        ("r", json!(u64::MAX), "`r` is 18446744073709551615, expected a number from 1"),
        ("lora_alpha", json!("16"), "`lora_alpha` is \"16\", expected a number"),
        ("lora_alpha", json!(1e300), "expected a finite number above 0"),
        ("lora_alpha", json!(-1), "expected a finite number above 0"),
        ("lora_dropout", json!(1.0), "from 0 to below 1"),
        ("use_rslora", json!("no"), "true or false"),
    ];
    for (key, value, message) in cases {
        let error = changed(key, value).expect_err(key);
        assert!(error.to_string().contains(message), "{key}: {error} should contain {message}");
        assert_eq!(error.kind(), ErrorKind::BadData);
    }
    assert!(changed("use_dora", json!(true)).expect_err("refused").fix().is_some());
    for text in ["[]", "{", "null", "{}"] {
        assert!(LoraConfig::from_json(text).is_err(), "{text}");
    }
}

#[test]
fn other_spellings_of_the_same_are_read() {
    let all = changed("target_modules", json!("all-linear")).expect("all");
    assert_eq!(all.target_modules, LoraTarget::ALL);
    let again = changed("target_modules", json!(["up_proj", "q_proj", "up_proj"])).expect("in any order");
    assert_eq!(again.target_modules, [LoraTarget::Q, LoraTarget::Up]);
    let modules = json!(["self_attn.q_proj", "model.layers.1.mlp.up_proj", "model.layers.0.mlp.up_proj"]);
    assert_eq!(changed("target_modules", modules).expect("whole names"), again);
    assert_eq!(changed("lora_alpha", json!(7.5)).expect("a fraction").alpha, 7.5);
    // PEFT's defaults.
    let short = r#"{"peft_type": "LORA", "target_modules": ["v_proj"]}"#;
    let short = LoraConfig::from_json(short).expect("the least");
    assert_eq!((short.r, short.alpha, short.dropout, short.use_rslora), (8, 8.0, 0.0, false));
    for alpha in [16.0, 7.5] {
        let config = LoraConfig { alpha, ..short.clone() };
        assert_eq!(LoraConfig::from_json(&config.to_json(None).to_string()).expect("ours"), config);
    }
}

fn copy(from: &Path, to: &Path, files: &[&str]) {
    for file in files {
        fs::copy(from.join(file), to.join(file)).expect("copying");
    }
}

#[test]
fn what_is_no_adapter_is_named() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    for files in [&[][..], &["adapter_config.json"], &["adapter_model.safetensors"]] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        copy(&adapter_dir("qwen2-all"), dir.path(), files);
        let error = PeftAdapter::open(dir.path()).err().expect("refused");
        assert!(matches!(error, FormatError::NotAnAdapter { .. }), "{error}");
        assert!(error.fix().is_some());
    }
    assert_eq!(PeftAdapter::open(&temp.path().join("absent")).err().expect("refused").kind(), ErrorKind::Io);
    copy(&adapter_dir("qwen2-all"), temp.path(), &["adapter_config.json"]);
    fs::write(temp.path().join("adapter_model.safetensors"), [7; 40]).expect("writing");
    let error = PeftAdapter::open(temp.path()).err().expect("refused").to_string();
    assert!(error.contains("adapter_model.safetensors: "), "{error}");
    fs::write(temp.path().join("adapter_config.json"), "{\"r\": }").expect("writing");
    let error = PeftAdapter::open(temp.path()).err().expect("refused").to_string();
    assert!(error.contains("adapter_config.json: malformed"), "{error}");
}

#[cfg(unix)]
#[test]
fn weights_outside_the_directory_are_refused() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    copy(&adapter_dir("qwen2-all"), temp.path(), &["adapter_config.json"]);
    let outside = adapter_dir("qwen2-all").canonicalize().expect("a directory");
    let name = "adapter_model.safetensors";
    std::os::unix::fs::symlink(outside.join(name), temp.path().join(name)).expect("linking");
    let error = PeftAdapter::open(temp.path()).err().expect("refused");
    assert!(error.to_string().contains("leads outside"), "{error}");
}

proptest! {
    #[test]
    fn damaged_settings_never_panic(flips in prop::collection::vec((any::<usize>(), any::<u8>()), 1..6)) {
        let mut text = fs::read(adapter_dir("llama-all").join("adapter_config.json")).expect("a file");
        for (at, value) in flips {
            let at = at % text.len();
            text[at] = value;
        }
        if let Ok(config) = LoraConfig::from_json(&String::from_utf8_lossy(&text)) {
            prop_assert!(config.validate().is_ok());
        }
    }
}

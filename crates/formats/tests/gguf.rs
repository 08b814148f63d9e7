//! GGUF: what is written reads back, and hostile files are refused.

mod common;

use std::fs;

use proptest::prelude::*;
use serde_json::json;
use stillroom_core::ErrorKind;
use stillroom_formats::{
    DecoderConfig, Encoding, FormatError, ModelFiles, NamedTensor, RopeScaling, Tokenizer, write_gguf,
};

/// A config of each architecture with the test tokenizer's vocabulary, as the golden folders have.
fn configs() -> Vec<DecoderConfig> {
    ["llama-tied", "llama-untied-bias", "llama3-scaled", "qwen2", "qwen3", "qwen3-tied"]
        .map(|name| {
            let path = common::golden().join(name).join("config.json");
            let text = fs::read_to_string(path).expect("a golden config");
            let mut config = DecoderConfig::from_json(&text).expect("a valid config");
            config.vocab_size = 272;
            config.bos_token_id = Some(264);
            config.eos_token_ids = vec![265, 263, 2];
            config
        })
        .into()
}

/// Different numbers everywhere, so that a wrong order shows.
fn tensors(config: &DecoderConfig) -> Vec<NamedTensor> {
    let mut counter = 0u32;
    let mut next = || {
        counter += 1;
        (f64::from(counter) * 0.618_034 % 1.0 - 0.5) as f32
    };
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let data = (0..shape.iter().product()).map(|_| next()).collect();
        NamedTensor { name, shape, data }
    };
    config.parameters().into_iter().map(tensor).collect()
}

fn gguf(
    config: &DecoderConfig,
    store: Encoding,
    tokenizer: &Tokenizer,
) -> (tempfile::TempDir, std::path::PathBuf) {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let path = temp.path().join("model.gguf");
    let metadata = [("general.license".to_owned(), "apache-2.0".to_owned())];
    // Not the file's own order.
    let mut reversed = tensors(config).into_iter().rev();
    write_gguf(&path, config, &mut reversed, store, tokenizer, &metadata).expect("writing");
    (temp, path)
}

#[test]
fn every_architecture_comes_back_whole() {
    let tokenizer = common::tokenizer(Some(common::CHATML));
    for config in configs() {
        let (_temp, path) = gguf(&config, Encoding::F32, &tokenizer);
        let model = ModelFiles::open(&path).expect("reading");
        assert_eq!(model.config, config);
        assert_eq!(model.licence_name.as_deref(), Some("apache-2.0"));
        let mut names = model.tensors.names();
        names.sort();
        let mut expected = tensors(&config);
        expected.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(names, expected.iter().map(|tensor| tensor.name.clone()).collect::<Vec<_>>());
        for tensor in expected {
            let view = model.tensors.tensor(&tensor.name).expect("listed");
            assert_eq!((&view.shape, view.encoding), (&tensor.shape, Encoding::F32));
            let bytes: Vec<u8> = tensor.data.iter().flat_map(|x| x.to_le_bytes()).collect();
            assert_eq!(*view.bytes, *bytes, "{}", tensor.name);
        }
        let read = model.tokenizer.expect("a tokenizer");
        assert_eq!(read.digest(), tokenizer.digest());
        assert_eq!(read.chat_template(), tokenizer.chat_template());
        assert_eq!((read.bos_id(), read.eos_id()), (tokenizer.bos_id(), tokenizer.eos_id()));
        assert_eq!(read.vocab_size(), tokenizer.vocab_size(), "padding is no token");
        for text in ["hello the\n\n12 é\u{1F600}", "<|im_start|><think> hell"] {
            assert_eq!(read.encode(text).expect("text"), tokenizer.encode(text).expect("text"));
        }
    }
}

#[test]
fn vectors_stay_f32_and_odd_rows_are_not_quantised() {
    let tokenizer = common::tokenizer(None);
    let mut config = configs().remove(0);
    config.intermediate_size = 48; // not a multiple of 32
    for (store, wide) in
        [(Encoding::F16, Encoding::F16), (Encoding::BF16, Encoding::BF16), (Encoding::Q8_0, Encoding::Q8_0)]
    {
        let (_temp, path) = gguf(&config, store, &tokenizer);
        let model = ModelFiles::open(&path).expect("reading");
        let encoding = |name: &str| model.tensors.tensor(name).expect("listed").encoding;
        assert_eq!(encoding("model.norm.weight"), Encoding::F32);
        assert_eq!(encoding("model.layers.1.self_attn.q_proj.weight"), wide);
        let odd = if store == Encoding::Q8_0 { Encoding::F16 } else { store };
        assert_eq!(encoding("model.layers.0.mlp.down_proj.weight"), odd);
    }
}

#[test]
fn quantised_rows_are_reordered_whole() {
    let tokenizer = common::tokenizer(None);
    let config = configs().remove(0);
    let (_temp, path) = gguf(&config, Encoding::Q8_0, &tokenizer);
    let model = ModelFiles::open(&path).expect("reading");
    for tensor in tensors(&config).iter().filter(|tensor| tensor.name.ends_with("k_proj.weight")) {
        let view = model.tensors.tensor(&tensor.name).expect("listed");
        assert_eq!(view.encoding, Encoding::Q8_0);
        for (block, numbers) in view.bytes.chunks(34).zip(tensor.data.chunks(32)) {
            let d = half::f16::from_le_bytes([block[0], block[1]]).to_f32();
            for (q, x) in block[2..].iter().zip(numbers) {
                assert!((f32::from(*q as i8) * d - x).abs() <= 0.6 * d, "{}", tensor.name);
            }
        }
    }
}

#[test]
fn llama_3_scaling_is_recognised_by_its_divisors() {
    let tokenizer = common::tokenizer(None);
    let mut config = configs().remove(0);
    config.rope_theta = 500_000.0;
    config.rope_scaling = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 8192,
    };
    let (_temp, path) = gguf(&config, Encoding::F32, &tokenizer);
    let rename = |from: &str, to: &str| {
        let mut bytes = fs::read(&path).expect("reading");
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect("the key");
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        fs::write(&path, bytes).expect("writing");
    };
    // A file of llama.cpp has none of our keys.
    for key in ["low_freq_factor", "high_freq_factor", "original_context"] {
        rename(&format!("stillroom.rope.{key}"), &format!("othername.rope.{key}"));
    }
    assert_eq!(ModelFiles::open(&path).expect("reading").config, config);
    rename("othername.rope.original_context", "stillroom.rope.original_context");
    ModelFiles::open(&path).expect("the same value again");

    let RopeScaling::Llama3 { original_context, .. } = &mut config.rope_scaling else { unreachable!() };
    *original_context = 4000;
    let (_temp, path) = gguf(&config, Encoding::F32, &tokenizer);
    assert_eq!(ModelFiles::open(&path).expect("our own keys").config, config);
}

#[test]
fn a_tokenizer_that_gguf_has_no_name_for_is_refused() {
    let mut json = common::tokenizer_json();
    json["pre_tokenizer"] =
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let tokenizer = Tokenizer::from_json_files(&json.to_string(), None, None).expect("a valid tokenizer");
    let temp = tempfile::tempdir().expect("a temporary directory");
    let path = temp.path().join("model.gguf");
    let config = configs().remove(0);
    let error = write_gguf(&path, &config, &mut tensors(&config).into_iter(), Encoding::F32, &tokenizer, &[])
        .unwrap_err();
    assert!(matches!(error, FormatError::NoGgufTokenizer { .. }), "{error}");
    assert!(error.fix().is_some());
    assert!(!path.exists());
    let twice = [("llama.block_count".to_owned(), "9".to_owned())];
    let tokenizer = common::tokenizer(None);
    let error =
        write_gguf(&path, &config, &mut tensors(&config).into_iter(), Encoding::F32, &tokenizer, &twice)
            .unwrap_err();
    assert!(matches!(error, FormatError::Setting { .. }), "{error}");
}

/// A GGUF file from its parts: (key, value with its type) and (name, axes, type, offset).
struct Raw {
    bytes: Vec<u8>,
}

impl Raw {
    fn new(version: u32, n_tensors: u64, n_metadata: u64) -> Raw {
        let mut raw = Raw { bytes: b"GGUF".to_vec() };
        raw.u32(version).u64(n_tensors).u64(n_metadata);
        raw
    }

    fn u32(&mut self, n: u32) -> &mut Raw {
        self.bytes.extend(n.to_le_bytes());
        self
    }

    fn u64(&mut self, n: u64) -> &mut Raw {
        self.bytes.extend(n.to_le_bytes());
        self
    }

    fn string(&mut self, text: &str) -> &mut Raw {
        self.u64(text.len() as u64);
        self.bytes.extend(text.as_bytes());
        self
    }

    fn tensor(&mut self, name: &str, axes: &[u64], kind: u32, offset: u64) -> &mut Raw {
        self.string(name).u32(axes.len() as u32);
        axes.iter().for_each(|&axis| {
            self.u64(axis);
        });
        self.u32(kind).u64(offset)
    }

    fn open(&self) -> FormatError {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let path = temp.path().join("x.gguf");
        fs::write(&path, &self.bytes).expect("writing");
        ModelFiles::open(&path).err().expect("refused")
    }
}

#[test]
fn absurd_counts_sizes_and_types_are_refused() {
    let check = |raw: &Raw, message: &str| {
        let error = raw.open();
        assert_eq!(error.kind(), ErrorKind::BadData);
        assert!(error.to_string().contains(message), "{error} should contain {message}");
    };
    check(&Raw { bytes: b"GG".to_vec() }, "truncated GGUF: the magic number needs 4 bytes");
    check(&Raw { bytes: b"GGML0000".to_vec() }, "does not start with `GGUF`");
    check(&Raw::new(1, 0, 0), "unsupported GGUF version: `1`");
    check(&Raw::new(3u32.swap_bytes(), 0, 0), "byte order");
    check(&Raw::new(3, u64::MAX, 0), "number of tensors is 18446744073709551615, above the limit");
    check(&Raw::new(3, 0, 1 << 40), "number of metadata entries is 1099511627776, above the limit");
    check(Raw::new(3, 0, 1).u64(u64::MAX), "length of a metadata key");
    check(Raw::new(3, 0, 1).string("k").u32(99), "metadata type 99");
    check(Raw::new(3, 0, 1).string("k").u32(9).u32(4).u64(1 << 60), "length of a metadata array");
    check(Raw::new(3, 0, 1).string("k").u32(9).u32(4).u64(1 << 20), "truncated GGUF: a metadata array");
    check(Raw::new(3, 0, 1).string("k").u32(9).u32(9).u64(1), "metadata type 9");
    check(Raw::new(3, 0, 1).string("k").u32(8).u64(1 << 20), "truncated GGUF: a metadata value");
    check(Raw::new(3, 0, 2).string("k").u32(4).u32(1).string("k").u32(4).u32(1), "`k` appears twice");
    check(Raw::new(3, 0, 1).string("general.alignment").u32(4).u32(3), "general.alignment");
    check(Raw::new(3, 1, 0).string("t").u32(5), "has 5 axes");
    check(Raw::new(3, 1, 0).tensor("t", &[0], 0, 0), "has an axis of 0");
    // The shape of llama.cpp issue 18674.
    check(Raw::new(3, 1, 0).tensor("t", &[(1 << 42) + 1, 1 << 42], 0, 0), "does not fit f32");
    check(Raw::new(3, 1, 0).tensor("t", &[1 << 62, 1, 1, 1], 0, 0), "tensor `t`");
    check(Raw::new(3, 1, 0).tensor("t", &[33], 8, 0), "does not fit q8_0");
    check(Raw::new(3, 1, 0).tensor("t", &[8], 7, 0), "unsupported GGUF tensor type: `q5_1`");
    check(Raw::new(3, 1, 0).tensor("t", &[8], 0, 5), "not a multiple of 32");
    check(Raw::new(3, 1, 0).tensor("t", &[8], 0, u64::MAX - 31), "truncated GGUF: tensor `t`");
    let mut raw = Raw::new(3, 2, 0);
    raw.tensor("a", &[16], 0, 0).tensor("b", &[16], 0, 32).bytes.extend([0; 200]);
    check(&raw, "tensors `a` and `b` overlap");
    let mut raw = Raw::new(3, 2, 0);
    raw.tensor("a", &[8], 0, 0).tensor("a", &[8], 0, 32).bytes.extend([0; 200]);
    check(&raw, "tensor `a` appears twice");
    check(&Raw::new(3, 0, 0), "general.architecture");
}

#[test]
fn every_truncation_is_an_error() {
    let tokenizer = common::tokenizer(Some(common::CHATML));
    let (temp, path) = gguf(&configs().remove(0), Encoding::Q8_0, &tokenizer);
    let bytes = fs::read(&path).expect("reading");
    let cut = temp.path().join("cut.gguf");
    // The last tensor's padding is not data.
    for len in (0..bytes.len() - 32).step_by(97) {
        fs::write(&cut, &bytes[..len]).expect("writing");
        assert!(ModelFiles::open(&cut).is_err(), "{len} of {} bytes", bytes.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damaged_files_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        use std::sync::OnceLock;
        static FILE: OnceLock<Vec<u8>> = OnceLock::new();
        let original = FILE.get_or_init(|| {
            let tokenizer = common::tokenizer(Some(common::CHATML));
            let (_temp, path) = gguf(&configs().remove(2), Encoding::Q8_0, &tokenizer);
            fs::read(path).expect("reading")
        });
        let mut bytes = original.clone();
        // Mostly in the header, where it can hurt.
        let header_len = bytes.len().min(12_000);
        for (at, value) in flips {
            bytes[at.index(header_len)] = value;
        }
        let temp = tempfile::tempdir().expect("a temporary directory");
        let path = temp.path().join("x.gguf");
        fs::write(&path, bytes).expect("writing");
        if let Ok(model) = ModelFiles::open(&path) {
            for name in model.tensors.names() {
                let _ = model.tensors.tensor(&name);
            }
            if let Some(tokenizer) = model.tokenizer {
                let _ = tokenizer.encode("hello <|im_end|> the 12");
                let _ = tokenizer.digest();
            }
        }
    }
}

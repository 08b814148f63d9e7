//! Hugging Face directories: reading what transformers wrote, writing, refusing.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use stillroom_core::ErrorKind;
use stillroom_formats::{
    DecoderConfig, Encoding, FormatError, ModelFiles, NamedTensor, TensorSource, safetensors_file,
    write_gguf, write_hf_dir,
};

const DIRECTORIES: [&str; 10] = [
    "llama-tied",
    "llama-tied-bf16",
    "llama-tied-f16",
    "llama-tied-sharded",
    "llama-untied-bias",
    "llama3-scaled",
    "llama3-scaled-rope-parameters",
    "qwen2",
    "qwen3",
    "qwen3-tied",
];

fn numbers(source: &dyn TensorSource, name: &str) -> Vec<f32> {
    let tensor = source.tensor(name).expect("a listed tensor");
    match tensor.encoding {
        Encoding::F32 => tensor.bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Encoding::F16 => {
            tensor.bytes.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect()
        }
        Encoding::BF16 => {
            tensor.bytes.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
        }
        other => panic!("{other:?} in a test directory"),
    }
}

fn tensors(source: &dyn TensorSource, config: &DecoderConfig) -> Vec<NamedTensor> {
    let named =
        |(name, shape): (String, Vec<usize>)| NamedTensor { data: numbers(source, &name), name, shape };
    config.parameters().into_iter().map(named).collect()
}

#[test]
fn directories_of_transformers_are_read_whole() {
    for name in DIRECTORIES {
        let model = ModelFiles::open(&common::golden().join(name)).expect(name);
        let mut found = model.tensors.names();
        found.sort();
        let mut expected = model.config.parameters();
        expected.sort();
        assert_eq!(found, expected.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), "{name}");
        for (tensor, shape) in expected {
            assert_eq!(model.tensors.tensor(&tensor).expect("listed").shape, shape, "{name}: {tensor}");
        }
        let again = DecoderConfig::from_json(&model.config.to_json().to_string()).expect(name);
        assert_eq!(again, model.config, "{name}");
    }
}

#[test]
fn the_two_spellings_of_rope_are_one() {
    let open = |name: &str| ModelFiles::open(&common::golden().join(name)).expect(name).config;
    assert_eq!(open("llama3-scaled"), open("llama3-scaled-rope-parameters"));
}

#[test]
fn what_is_written_reads_back_bit_for_bit() {
    for name in DIRECTORIES {
        let model = ModelFiles::open(&common::golden().join(name)).expect(name);
        let whole = tensors(&*model.tensors, &model.config);
        let temp = tempfile::tempdir().expect("a temporary directory");
        let dir = temp.path().join("model");
        // Any order will do.
        let mut reversed = whole.iter().rev().cloned();
        write_hf_dir(&dir, &model.config, &mut reversed, Encoding::F32, None).expect(name);
        let again = ModelFiles::open(&dir).expect(name);
        assert_eq!(again.config, model.config, "{name}");
        assert_eq!(tensors(&*again.tensors, &again.config), whole, "{name}");
        let mut files: Vec<_> =
            fs::read_dir(&dir).expect("listing").map(|entry| entry.expect("entry").file_name()).collect();
        files.sort();
        assert_eq!(files, ["config.json", "generation_config.json", "model.safetensors"]);
    }
}

#[test]
fn the_tokenizer_is_written_with_the_model() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let mut model = ModelFiles::open(&common::golden().join("qwen3-tied")).expect("a directory");
    model.config.vocab_size = 300;
    let tokenizer = common::tokenizer(Some(common::CHATML));
    let zeros = |config: &DecoderConfig| {
        let zero = |(name, shape): (String, Vec<usize>)| NamedTensor {
            data: vec![0.0; shape.iter().product()],
            name,
            shape,
        };
        config.parameters().into_iter().map(zero).collect::<Vec<_>>().into_iter()
    };
    write_hf_dir(temp.path(), &model.config, &mut zeros(&model.config), Encoding::BF16, Some(&tokenizer))
        .expect("writing");
    let again = ModelFiles::open(temp.path()).expect("reading");
    let read = again.tokenizer.expect("a tokenizer");
    assert_eq!(read.digest(), tokenizer.digest());
    assert_eq!(read.chat_template(), tokenizer.chat_template());
    assert_eq!((read.bos_id(), read.eos_id()), (tokenizer.bos_id(), tokenizer.eos_id()));
    let config: Value = serde_json::from_str(
        &fs::read_to_string(temp.path().join("tokenizer_config.json")).expect("written"),
    )
    .expect("JSON");
    assert_eq!(config["chat_template"], common::CHATML);
    assert_eq!(config["clean_up_tokenization_spaces"], false);

    assert_eq!(config["tokenizer_class"], "PreTrainedTokenizerFast");

    // transformers 5 would split its text differently.
    let mut qwen2 = ModelFiles::open(&common::golden().join("qwen2")).expect("a directory").config;
    qwen2.vocab_size = 300;
    let path = temp.path().join("qwen2");
    let error = write_hf_dir(&path, &qwen2, &mut zeros(&qwen2), Encoding::F32, Some(&tokenizer)).unwrap_err();
    assert!(matches!(error, FormatError::NotQwen2Splitting), "{error}");
    assert_eq!(fs::read_dir(&path).expect("listing").count(), 0);

    model.config.vocab_size = 100;
    let refused = write_hf_dir(
        &temp.path().join("small"),
        &model.config,
        &mut zeros(&model.config),
        Encoding::F32,
        Some(&tokenizer),
    );
    assert!(matches!(refused, Err(FormatError::Vocabulary { tokens: 267, rows: 100 })), "{refused:?}");
}

#[test]
fn an_error_while_writing_leaves_no_file() {
    let model = ModelFiles::open(&common::golden().join("llama-tied")).expect("a directory");
    let whole = tensors(&*model.tensors, &model.config);
    let temp = tempfile::tempdir().expect("a temporary directory");
    let mut one_short = whole.iter().skip(1).cloned();
    let error = write_hf_dir(temp.path(), &model.config, &mut one_short, Encoding::F32, None).unwrap_err();
    assert!(matches!(error, FormatError::MissingTensor { .. }), "{error}");
    let mut twice = whole.iter().chain(&whole[..1]).cloned();
    let error = write_hf_dir(temp.path(), &model.config, &mut twice, Encoding::F32, None).unwrap_err();
    assert!(matches!(error, FormatError::UnexpectedTensor { .. }), "{error}");
    let mut flat =
        whole.iter().cloned().map(|tensor| NamedTensor { shape: vec![tensor.data.len()], ..tensor });
    let error = write_hf_dir(temp.path(), &model.config, &mut flat, Encoding::F32, None).unwrap_err();
    assert!(matches!(error, FormatError::Shape { .. }), "{error}");
    let gguf = temp.path().join("model.gguf");
    let mut config = model.config.clone();
    config.vocab_size = 300;
    let error =
        write_gguf(&gguf, &config, &mut whole.iter().cloned(), Encoding::F32, &common::tokenizer(None), &[])
            .unwrap_err();
    assert!(matches!(error, FormatError::Shape { .. }), "{error}");
    assert_eq!(fs::read_dir(temp.path()).expect("listing").count(), 0);
}

/// A copy of the sharded directory, with its index changed.
fn with_index(change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let temp = tempfile::tempdir().expect("a temporary directory");
    copy(&common::golden().join("llama-tied-sharded"), temp.path());
    let path = temp.path().join("model.safetensors.index.json");
    let mut index: Value = serde_json::from_str(&fs::read_to_string(&path).expect("index")).expect("JSON");
    change(&mut index);
    fs::write(path, index.to_string()).expect("writing");
    temp
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("creating");
    for entry in fs::read_dir(from).expect("listing") {
        let entry = entry.expect("entry");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("copying");
    }
}

#[test]
fn shards_outside_the_directory_are_refused() {
    let outside = tempfile::tempdir().expect("a temporary directory");
    let weights = outside.path().join("model.safetensors");
    fs::copy(common::golden().join("llama-tied/model.safetensors"), &weights).expect("copying");
    let absolute = weights.to_str().expect("UTF-8").to_owned();
    let name = outside.path().file_name().expect("a name").to_str().expect("UTF-8");
    for shard in ["../model.safetensors", &format!("../{name}/model.safetensors"), &absolute, "", "a/../../b"]
    {
        let dir = with_index(|index| {
            for (_, file) in index["weight_map"].as_object_mut().expect("a map") {
                *file = json!(shard);
            }
        });
        let error = ModelFiles::open(dir.path()).err().expect("refused");
        assert!(error.to_string().contains("leads outside"), "{shard}: {error}");
        assert_eq!(error.kind(), ErrorKind::BadData);
        assert!(error.fix().is_some());
    }
}

#[cfg(unix)]
#[test]
fn links_may_lead_to_the_hub_caches_blobs_and_nowhere_else() {
    use std::os::unix::fs::symlink;
    let temp = tempfile::tempdir().expect("a temporary directory");
    let repository = temp.path().join("models--a--b");
    let (blobs, snapshot) = (repository.join("blobs"), repository.join("snapshots/0123abcd"));
    copy(&common::golden().join("llama-tied"), &blobs);
    fs::create_dir_all(&snapshot).expect("creating");
    for file in ["config.json", "model.safetensors"] {
        symlink(Path::new("../../blobs").join(file), snapshot.join(file)).expect("linking");
    }
    ModelFiles::open(&snapshot).expect("a snapshot of the hub's cache");
    // The user may come by any path.
    symlink(&snapshot, temp.path().join("here")).expect("linking");
    ModelFiles::open(&temp.path().join("here")).expect("a link to a snapshot");

    let plain = temp.path().join("plain");
    fs::create_dir_all(&plain).expect("creating");
    for file in ["config.json", "model.safetensors"] {
        symlink(blobs.join(file), plain.join(file)).expect("linking");
    }
    let error = ModelFiles::open(&plain).err().expect("refused");
    assert!(
        matches!(&error, FormatError::InFile { source, .. } if matches!(**source, FormatError::Escapes { .. })),
        "{error}"
    );
    // Another repository's blobs are elsewhere, too.
    let other = temp.path().join("models--c--d/snapshots/1");
    fs::create_dir_all(&other).expect("creating");
    symlink(blobs.join("config.json"), other.join("config.json")).expect("linking");
    assert!(ModelFiles::open(&other).is_err());
}

#[test]
fn an_index_that_names_missing_things_is_refused() {
    let dir = with_index(|index| {
        index["weight_map"]["model.norm.weight"] = json!("model-00007-of-00002.safetensors");
    });
    let error = ModelFiles::open(dir.path()).err().expect("refused");
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    let dir = with_index(|index| {
        index["weight_map"]["model.extra.weight"] = index["weight_map"]["model.norm.weight"].clone();
    });
    let error = ModelFiles::open(dir.path()).err().expect("refused");
    assert!(error.to_string().contains("`model.extra.weight` is not in"), "{error}");
}

#[test]
fn a_tied_head_and_old_buffers_are_not_parameters() {
    let golden = common::golden().join("llama-tied");
    let temp = tempfile::tempdir().expect("a temporary directory");
    fs::copy(golden.join("config.json"), temp.path().join("config.json")).expect("copying");
    let model = ModelFiles::open(&golden).expect("a directory");
    let mut whole = tensors(&*model.tensors, &model.config);
    let head = NamedTensor { name: "lm_head.weight".to_owned(), ..whole[0].clone() };
    let name = "model.layers.0.self_attn.rotary_emb.inv_freq".to_owned();
    whole.extend([head, NamedTensor { name, shape: vec![4], data: vec![1.0; 4] }]);
    let list: Vec<safetensors_file::F32Tensor<'_>> =
        whole.iter().map(|t| (t.name.as_str(), t.shape.as_slice(), t.data.as_slice())).collect();
    safetensors_file::write(&temp.path().join("model.safetensors"), &list, &BTreeMap::new())
        .expect("writing");
    let again = ModelFiles::open(temp.path()).expect("reading");
    assert_eq!(again.tensors.names().len(), whole.len() - 2);
}

#[test]
fn ends_of_generation_are_those_of_both_configs() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    copy(&common::golden().join("llama-tied"), temp.path());
    fs::write(temp.path().join("generation_config.json"), r#"{"eos_token_id": [7, 2, 5]}"#).expect("writing");
    fs::write(temp.path().join("LICENSE"), "Apache License\n").expect("writing");
    let model = ModelFiles::open(temp.path()).expect("reading");
    assert_eq!(model.config.eos_token_ids, [2, 7, 5]);
    assert_eq!(model.licence_text.as_deref(), Some("Apache License\n"));
    fs::write(temp.path().join("generation_config.json"), r#"{"eos_token_id": 64}"#).expect("writing");
    let error = ModelFiles::open(temp.path()).err().expect("refused");
    assert!(error.to_string().contains("generation_config.json: `eos_token_id` is 64"), "{error}");
}

#[cfg(unix)]
#[test]
fn devices_and_directories_are_not_read_as_files() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    copy(&common::golden().join("llama-tied"), temp.path());
    fs::create_dir(temp.path().join("tokenizer.json")).expect("creating");
    let error = ModelFiles::open(temp.path()).err().expect("refused");
    assert!(error.to_string().contains("not a regular file"), "{error}");
    let device = temp.path().join("zero.gguf");
    std::os::unix::fs::symlink("/dev/zero", &device).expect("linking");
    let error = ModelFiles::open(&device).err().expect("refused");
    assert!(error.to_string().contains("not a regular file"), "{error}");
}

#[test]
fn what_is_no_model_is_named() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let error = ModelFiles::open(temp.path()).err().expect("refused");
    assert!(matches!(error, FormatError::NotAModel { .. }));
    fs::copy(common::golden().join("qwen2/config.json"), temp.path().join("config.json")).expect("copying");
    fs::write(temp.path().join("pytorch_model.bin"), "pickle").expect("writing");
    let error = ModelFiles::open(temp.path()).err().expect("refused");
    assert!(error.to_string().contains("only pytorch_model.bin"), "{error}");
    let error = ModelFiles::open(&temp.path().join("absent")).err().expect("refused");
    assert_eq!(error.kind(), ErrorKind::Io);
}

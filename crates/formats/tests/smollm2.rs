//! The tokenizer, the chat template and the tensors of a real GGUF file, against transformers
//! and llama.cpp (`oracles/smollm2.py`).

mod common;

use serde::Deserialize;
use stillroom_core::{Message, Role};
use stillroom_formats::{Encoding, ModelFiles, Tokenizer};

#[derive(Deserialize)]
struct Golden {
    tokenize: Vec<Tokenized>,
    chat: Vec<Chat>,
    greedy: Vec<Greedy>,
}

#[derive(Deserialize)]
struct Tokenized {
    text: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Chat {
    messages: Vec<Message>,
    add_generation_prompt: bool,
    text: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Greedy {
    ids: Vec<u32>,
    text: String,
}

fn golden() -> Golden {
    let path = common::golden().join("smollm2.json");
    let text = std::fs::read_to_string(path).expect("the golden file is committed");
    serde_json::from_str(&text).expect("the golden file is JSON")
}

fn check(tokenizer: &Tokenizer) {
    let golden = golden();
    assert!(golden.tokenize.len() > 20 && golden.chat.len() > 2 && !golden.greedy.is_empty());
    for case in &golden.tokenize {
        assert_eq!(tokenizer.encode(&case.text).expect("any text"), case.ids, "{:?}", case.text);
        assert_eq!(tokenizer.decode(&case.ids), case.text);
        let bytes: Vec<u8> =
            case.ids.iter().flat_map(|&id| tokenizer.token_bytes(id).expect("a known id")).collect();
        assert_eq!(bytes, case.text.as_bytes());
    }
    for case in &golden.chat {
        let text = tokenizer.render_chat(&case.messages, case.add_generation_prompt).expect("a chat");
        assert_eq!(text, case.text);
        let ids = tokenizer.encode_chat(&case.messages, case.add_generation_prompt).expect("a chat");
        assert_eq!(ids, case.ids);
    }
    for case in &golden.greedy {
        assert_eq!(tokenizer.decode(&case.ids), case.text);
    }
}

#[test]
fn the_tokenizer_of_the_gguf_gives_the_reference_ids() {
    let Some(path) = common::smollm2() else { return };
    let model = ModelFiles::open(&path).expect("a valid file");
    let tokenizer = model.tokenizer.expect("the file has a tokenizer");
    check(&tokenizer);
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(1), Some(2)));
    assert_eq!(tokenizer.vocab_size(), 49152);

    let message = Message::new(Role::User, "Say <|im_end|> and stop.");
    let ids = tokenizer.encode_chat(std::slice::from_ref(&message), false).expect("a chat");
    assert_eq!(ids.iter().filter(|&&id| id == 2).count(), 2, "the system turn's end and the user turn's");
    assert!(tokenizer.decode(&ids).ends_with("Say <|im_end|> and stop.<|im_end|>\n"));

    let question = Message::new(Role::User, "What is the capital of France?");
    let reply = Message::new(Role::Assistant, "Paris.");
    let tokens = tokenizer.encode_supervised(&[question], &reply).expect("a supervised chat");
    let supervised: Vec<u32> =
        tokens.ids.iter().zip(&tokens.supervised).filter(|(_, s)| **s).map(|(id, _)| *id).collect();
    assert_eq!(tokenizer.decode(&supervised), "Paris.<|im_end|>");
    assert!(tokenizer.decode(&tokens.ids).ends_with("<|im_start|>assistant\nParis.<|im_end|>"));
}

#[test]
fn the_tensors_of_the_gguf_are_those_of_the_architecture() {
    let Some(path) = common::smollm2() else { return };
    let model = ModelFiles::open(&path).expect("a valid file");
    let config = &model.config;
    assert_eq!(config.n_parameters(), 134_515_008);
    assert_eq!((config.num_hidden_layers, config.head_dim, config.vocab_size), (30, 64, 49152));
    assert!(config.tie_word_embeddings);
    assert_eq!((config.rope_theta, config.rms_norm_eps), (100_000.0, 1e-5));
    assert_eq!(model.licence_name.as_deref(), Some("apache-2.0"));
    let mut names = model.tensors.names();
    names.sort();
    let mut expected = config.parameters();
    expected.sort();
    assert_eq!(names, expected.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>());
    for (name, shape) in expected {
        let tensor = model.tensors.tensor(&name).expect("a listed tensor");
        assert_eq!(tensor.shape, shape, "{name}");
        assert_eq!(Some(tensor.bytes.len()), tensor.encoding.n_bytes(&shape), "{name}");
    }
    let encoding = |name: &str| model.tensors.tensor(name).expect("a listed tensor").encoding;
    assert_eq!(encoding("model.embed_tokens.weight"), Encoding::Q8_0);
    assert_eq!(encoding("model.layers.3.self_attn.q_proj.weight"), Encoding::Q4_1);
}

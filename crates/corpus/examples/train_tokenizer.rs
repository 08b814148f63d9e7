//! Trains the quickstart's tokenizer on the task's own text and writes `assets/quickstart-tokenizer/`.
//!
//! `cargo run --release -p stillroom-corpus --example train_tokenizer [DIR]`
//!
//! The output is a function of this file and the task alone: running it again changes nothing.

#![expect(clippy::print_stdout, reason = "an example that reports what it wrote")]

use std::error::Error;
use std::path::{Path, PathBuf};

use serde_json::json;
use stillroom_corpus::Split;
use stillroom_corpus::word_problems::problems;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

/// Room for 256 bytes, the added tokens, every word of the task and the pieces it is merged from.
const VOCAB_SIZE: usize = 768;
/// Problems whose text the merges are learned from; only training problems are read.
const N_PROBLEMS: usize = 20_000;
const SEED: u64 = 0;
/// The added tokens in order of id, and whether a decoder may hide them. As in Qwen3, the marks of
/// reasoning stay visible, because programs tell reasoning from answer by them.
const ADDED_TOKENS: [(&str, bool); 6] = [
    ("<|endoftext|>", true),
    ("<|user|>", true),
    ("<|assistant|>", true),
    ("<|end|>", true),
    ("<think>", false),
    ("</think>", false),
];
/// No reply ends elsewhere than at `<|end|>`, and nothing is put between the parts.
const CHAT_TEMPLATE: &str = "{%- for message in messages -%}\
{%- if message.role == 'assistant' -%}\
{{- '<|assistant|>' -}}\
{%- if message.reasoning_content -%}{{- '<think>' + message.reasoning_content + '</think>' -}}{%- endif -%}\
{{- message.content + '<|end|>' -}}\
{%- else -%}\
{{- '<|user|>' + message.content -}}\
{%- endif -%}\
{%- endfor -%}\
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}";

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/quickstart-tokenizer");
    let dir = std::env::args_os().nth(1).map_or(default, PathBuf::from);
    let n_tokens = write(&dir)?;
    println!("{n_tokens} tokens in {}", dir.display());
    Ok(())
}

/// Writes the three files and returns the size of the vocabulary.
pub(crate) fn write(dir: &Path) -> Result<usize, Box<dyn Error + Send + Sync>> {
    std::fs::create_dir_all(dir)?;
    let tokenizer = train()?;
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string(true)? + "\n")?;
    let config = serde_json::to_string_pretty(&tokenizer_config())?;
    std::fs::write(dir.join("tokenizer_config.json"), config + "\n")?;
    std::fs::write(dir.join("chat_template.jinja"), CHAT_TEMPLATE)?;
    Ok(tokenizer.get_vocab_size(true))
}

/// Byte-level BPE as GPT-2's: the same split into words, no unknown token, nothing added to a text.
fn train() -> Result<Tokenizer, Box<dyn Error + Send + Sync>> {
    let added =
        ADDED_TOKENS.iter().map(|&(content, special)| AddedToken::from(content, special).normalized(false));
    let trainer = BpeTrainer::builder()
        .vocab_size(VOCAB_SIZE)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(added.collect())
        .build();
    let byte_level = ByteLevel::new(false, true, true);
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(byte_level));
    tokenizer.with_post_processor(Some(byte_level));
    tokenizer.with_decoder(Some(byte_level));
    let texts = problems(SEED, Split::Train, N_PROBLEMS).into_iter().flat_map(|problem| {
        let worked = problem.worked();
        [problem.text, worked.reasoning_content.unwrap_or_default(), worked.content]
    });
    tokenizer.train(&mut TrainerWrapper::from(trainer), texts)?;
    Ok(tokenizer)
}

fn tokenizer_config() -> serde_json::Value {
    let added: serde_json::Map<String, serde_json::Value> = ADDED_TOKENS
        .iter()
        .enumerate()
        .map(|(id, &(content, special))| {
            let token = json!({
                "content": content, "lstrip": false, "normalized": false, "rstrip": false,
                "single_word": false, "special": special,
            });
            (id.to_string(), token)
        })
        .collect();
    json!({
        "add_prefix_space": false,
        "added_tokens_decoder": added,
        "bos_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": false,
        "eos_token": "<|end|>",
        "model_max_length": 512,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    })
}

#!/usr/bin/env python3
"""The tokenizers of the experiments: byte-level BPE, learned from GSM8K's training texts. That of most has 4,096 ids and
takes digits one by one; another, for students whose teacher has the first, has 2,048 and up to three digits in one.

Writes  assets/experiments-tokenizer{,-grouped}/{tokenizer.json, tokenizer_config.json}
Run     VENV/bin/python oracles/experiments_tokenizer.py GSM8K_TRAIN_JSONL    (needs `tokenizers` only)
        Takes seconds; the output is deterministic.

The texts are made as `prompts.kind = "text"` makes them: question, line feed, worked answer, without the
calculator's marks. Held-out texts take no part.
"""
import json
import pathlib
import re
import sys

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

# Ids, and what is split before anything is merged.
TOKENIZERS = {
    # Digits stand alone, so that numbers are learned digit by digit.
    "experiments-tokenizer": (4096, pre_tokenizers.Digits(individual_digits=True)),
    "experiments-tokenizer-grouped": (2048, pre_tokenizers.Split(Regex(r"[0-9]{1,3}"), "isolated")),
}
END = "<|endoftext|>"
ASSETS = pathlib.Path(__file__).resolve().parent.parent / "assets"


def texts(path):
    for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield row["question"] + "\n" + re.sub(r"<<.*?>>", "", row["answer"])


def write(name, sample):
    vocabulary, digits = TOKENIZERS[name]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample, trainer)
    assert tokenizer.get_vocab_size() == vocabulary
    out = ASSETS / name
    out.mkdir(parents=True, exist_ok=True)
    # One line: half the bytes of the indented form.
    (out / "tokenizer.json").write_text(tokenizer.to_str(pretty=False) + "\n", encoding="utf-8")
    config = {
        "add_prefix_space": False,
        "bos_token": END,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "model_max_length": 512,
        "pad_token": END,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    ids = [len(e.ids) for e in tokenizer.encode_batch(sample)]
    n_bytes = sum(len(t.encode()) for t in sample)
    print(f"{name}: {sum(ids)} tokens, {n_bytes / sum(ids):.3f} bytes each, longest {max(ids)}")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sample = list(texts(sys.argv[1]))
    for name in TOKENIZERS:
        write(name, sample)


main()

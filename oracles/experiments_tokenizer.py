#!/usr/bin/env python3
"""The tokenizer of the experiments: byte-level BPE with 4,096 ids, learned from GSM8K's training texts.

Writes  assets/experiments-tokenizer/{tokenizer.json, tokenizer_config.json}
Run     VENV/bin/python oracles/experiments_tokenizer.py GSM8K_TRAIN_JSONL    (needs `tokenizers` only)
        Takes seconds; the output is deterministic.

The texts are made as `prompts.kind = "text"` makes them: question, line feed, worked answer, without the
calculator's marks. Held-out texts take no part.
"""
import json
import pathlib
import re
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCABULARY = 4096
END = "<|endoftext|>"
OUT = pathlib.Path(__file__).resolve().parent.parent / "assets" / "experiments-tokenizer"


def texts(path):
    for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield row["question"] + "\n" + re.sub(r"<<.*?>>", "", row["answer"])


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        # Digits stand alone, so that numbers are learned digit by digit.
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(sys.argv[1]), trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    OUT.mkdir(parents=True, exist_ok=True)
    # One line: half the bytes of the indented form.
    (OUT / "tokenizer.json").write_text(tokenizer.to_str(pretty=False) + "\n", encoding="utf-8")
    config = {
        "add_prefix_space": False,
        "bos_token": END,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "model_max_length": 512,
        "pad_token": END,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (OUT / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    sample = list(texts(sys.argv[1]))
    ids = [len(e.ids) for e in tokenizer.encode_batch(sample)]
    print(f"{sum(ids)} tokens, {sum(len(t.encode()) for t in sample) / sum(ids):.3f} bytes each, longest {max(ids)}")


main()

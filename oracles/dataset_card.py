#!/usr/bin/env python3
"""Which files the library `datasets` takes for each configuration and split of a directory with a card.

Writes  crates/corpus/tests/golden/dataset_cards.json
Run     VENV/bin/python oracles/dataset_card.py
        VENV needs datasets 5.2.0.

A case has the card's head, the names of the files, which configuration is the default (null where there is none), and by
configuration and split the files in their order. Nothing is fetched: HF_HUB_OFFLINE is set.
"""
import json
import os
import pathlib
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
import datasets

OUT = pathlib.Path(__file__).resolve().parent.parent / "crates/corpus/tests/golden/dataset_cards.json"
SHARDS = [f"data/{split}-0000{i}-of-00002.jsonl" for split in ("train_sft", "test_sft", "train") for i in range(2)]
TREE = [
    "train.jsonl", "test.jsonl", "en/a.jsonl", "en/b.jsonl", "en/more/c.jsonl", "de/a.jsonl", "de/.hidden.jsonl",
    "__pycache__/x.jsonl", "de/__init.jsonl", "de/x[1].jsonl", "de/part-1.jsonl", "de/part-10.jsonl", "de/part-2.jsonl", "en/b.txt",
]
CASES = [
    ("one pattern", "data_files: data/train-*", SHARDS),
    ("splits", "data_files:\n  - split: train\n    path: data/train_sft-*\n  - split: test\n    path: 'data/test_sft-*'", SHARDS),
    ("a list of patterns", "data_files: [en/b.jsonl, 'en/*.jsonl']", TREE),
    ("lists by split", "data_files:\n  - split: train\n    path: [de/part-2.jsonl, de/part-1.jsonl]\n  - split: validation\n    path: en/**/*.jsonl", TREE),
    ("any depth", "data_files: '**/*.jsonl'", TREE),
    ("any depth below", "data_files: 'en/**'", [name for name in TREE if name != "en/b.txt"]),
    ("one character", "data_files: 'de/part-?.jsonl'", TREE),
    ("a set", "data_files: 'de/part-[0-1]*.jsonl'", TREE),
    ("not in a set", "data_files: 'de/part-[!1]*.jsonl'", TREE),
    ("hidden and special ones", "data_files: 'de/*.jsonl'", TREE),
    ("a hidden one by name", "data_files: 'de/.hidden.jsonl'", TREE),
    ("a directory of its own", "data_dir: en\n  data_files: '*.jsonl'", TREE),
    ("a pattern twice", "data_files: ['en/*.jsonl', 'en/a.jsonl']", TREE),
]
SEVERAL = """configs:
- config_name: main
  data_files:
  - split: train
    path: en/a.jsonl
- config_name: socratic
  %sdata_files:
  - split: train
    path: de/a.jsonl
  - split: test
    path: en/b.jsonl
"""


def heads():
    for name, config, files in CASES:
        yield name, f"configs:\n- config_name: default\n  {config}\n", files
    yield "none is the default", SEVERAL % "", TREE
    yield "a default that is said", SEVERAL % "default: true\n  ", TREE
    yield "a default by name", (SEVERAL % "").replace("socratic", "default"), TREE
    yield "other keys", "license: mit\ntags: [a, 'b: c']\nsize_categories:\n- n<1K\n" + SEVERAL % "default: true\n  ", TREE
    yield "a name of figures", "configs:\n- config_name: '20231101.de'\n  data_files: de/a.jsonl\n", TREE


def resolved(head, files):
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name in files:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text('{"text": "x"}\n')
        (root / "README.md").write_text(f"---\n{head}---\n\n# A card\n")
        configs = {}
        for name in datasets.get_dataset_config_names(folder):
            found = datasets.load_dataset_builder(folder, name, cache_dir=folder + "/.cache").config.data_files
            relative = lambda path: pathlib.Path(path).relative_to(root.resolve()).as_posix()
            configs[name] = {split: [relative(path) for path in paths] for split, paths in found.items()}
        return datasets.get_dataset_default_config_name(folder), configs


def main():
    cases = []
    for name, head, files in heads():
        default, configs = resolved(head, files)
        cases.append({"name": name, "head": head, "files": files, "default": default, "configs": configs})
    OUT.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
    print(len(cases), "cases by datasets", datasets.__version__)


if __name__ == "__main__":
    main()

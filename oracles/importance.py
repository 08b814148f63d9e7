#!/usr/bin/env python3
"""Importance of channels, neurons and key/value heads (Minitron, 2407.14679), by hooks on transformers.

Reads   crates/model/tests/golden/<variant>/ as tiny_models.py wrote it
Writes  crates/model/tests/golden/<variant>/importance.json for the variants below
Run     VENV/bin/python oracles/importance.py    (VENV made by oracles/install.sh)

Each part's size is averaged over a document's tokens; documents are put together by the root of the sum of squares.
"""
import json
import pathlib

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "crates/model/tests/golden"


def importance(variant):
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / variant, dtype=torch.float32).double().eval()
    ids = load_file(GOLDEN / variant / "golden.safetensors")["input_ids"]
    config, layers = model.config, model.model.layers
    head_dim = layers[0].self_attn.head_dim
    seen = {}

    def keep(name, which):
        def hook(_, inputs, output):
            seen[name] = (inputs[0] if which == "input" else output)[0]

        return hook

    for i, layer in enumerate(layers):
        layer.input_layernorm.register_forward_hook(keep(f"norm.{2 * i}", "output"))
        layer.post_attention_layernorm.register_forward_hook(keep(f"norm.{2 * i + 1}", "output"))
        layer.mlp.down_proj.register_forward_hook(keep(f"neurons.{i}", "input"))
        layer.self_attn.o_proj.register_forward_hook(keep(f"heads.{i}", "input"))

    sums = {"channels": 0.0, "neurons": [0.0] * len(layers), "kv_heads": [0.0] * len(layers)}
    for document in ids:
        with torch.no_grad():
            model(document[None])
        norms = sum(seen[f"norm.{i}"].abs().mean(dim=0) for i in range(2 * len(layers)))
        sums["channels"] = sums["channels"] + norms**2
        for i in range(len(layers)):
            sums["neurons"][i] = sums["neurons"][i] + seen[f"neurons.{i}"].abs().mean(dim=0) ** 2
            heads = seen[f"heads.{i}"].unflatten(-1, (-1, head_dim)).norm(dim=-1).mean(dim=0)
            groups = heads.unflatten(0, (config.num_key_value_heads, -1)).sum(dim=-1)
            sums["kv_heads"][i] = sums["kv_heads"][i] + groups**2
    rounded = lambda values: [float(f"{v:.9g}") for v in values.sqrt().tolist()]
    return {
        "channels": rounded(sums["channels"]),
        "neurons": [rounded(v) for v in sums["neurons"]],
        "kv_heads": [rounded(v) for v in sums["kv_heads"]],
    }


for variant in ["llama-untied-bias", "qwen2", "qwen3-tied"]:
    path = GOLDEN / variant / "importance.json"
    path.write_text(json.dumps(importance(variant)) + "\n")
    print(path.name, variant, path.stat().st_size)

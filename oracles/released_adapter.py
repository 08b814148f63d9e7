#!/usr/bin/env python3
"""Holds a release with an adapter against PEFT and transformers (f32, CPU).

Run     VENV/bin/python oracles/released_adapter.py RELEASE BASE [STILLROOM]
        (VENV made by oracles/install.sh; RELEASE a `release/` that `stillroom run` wrote with `train.lora_r`, BASE the
        model it names, STILLROOM the program)

PEFT must read every tensor of RELEASE/adapter onto BASE, and give the logits of the merged weights in RELEASE, as
transformers reads them, to 1e-5 of their largest. With the program, `stillroom score` must give PEFT's log-probability
of each token, from the merged weights and from BASE with `--adapter`.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
import transformers
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

TEXT = "In March, Mia had 3 buns. Then, in April, she made 5 more buns. How many buns does Mia have now?"


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def logits_of(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def scored(program, *model):
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as text:
        text.write(TEXT)
        text.flush()
        said = subprocess.run([program, "score", *model, "--text", text.name, "--json"], capture_output=True, check=True)
    return json.loads(said.stdout)


def main():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    release, base, *program = sys.argv[1:]
    adapter = pathlib.Path(release) / "adapter"
    adapted = PeftModel.from_pretrained(load(base), adapter).eval()
    state, stored = get_peft_model_state_dict(adapted), load_file(adapter / "adapter_model.safetensors")
    assert set(state) == set(stored), set(state) ^ set(stored)
    named = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, adapted.config.vocab_size, (4, 64), generator=generator)
    expected, found, before = logits_of(adapted, ids), logits_of(load(release), ids), logits_of(load(base), ids)
    largest = expected.abs().max().item()
    difference, moved = (found - expected).abs().max().item(), (before - expected).abs().max().item()
    print(f"adapter of `{named}`: {len(stored)} tensors read; merged and adapted logits differ by {difference:.1e}, "
          f"{difference / largest:.1e} of the largest; the adapter moves them by {moved:.1e}")
    assert difference <= 1e-5 * largest, (difference, largest)
    for model in ([release], [base, "--adapter", str(adapter)]) if program else ():
        said = scored(program[0], *model)
        tokens = torch.tensor([said["tokens"]])
        logprobs = torch.log_softmax(logits_of(adapted, tokens)[0, :-1], -1)
        logprobs = logprobs.gather(-1, tokens[0, 1:, None])[:, 0]
        ours = torch.tensor(said["token_logprobs"][1:])
        difference = (ours - logprobs).abs().max().item()
        print(f"`stillroom score {' '.join(model)}`: {len(ours)} log-probabilities differ from PEFT's by {difference:.1e}")
        assert difference <= 3e-5, difference


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Golden values of LoRA adapters, made with PEFT (f32, CPU) on the tiny models of tiny_models.py.

Writes  crates/model/tests/golden/lora/<variant>/{adapter_config.json, adapter_model.safetensors (both
        as PEFT saves them), golden.safetensors, golden.json}, listed in VARIANTS below
Run     VENV/bin/python oracles/lora.py [OUT_DIR]       (VENV made by oracles/install.sh)
        VENV/bin/python oracles/lora.py --check VARIANT ADAPTER_DIR
The first takes some seconds; the output is deterministic. Replaces the folders it writes.

The second holds an adapter directory that Stillroom wrote against the golden values: PEFT must read it,
to the same logits. One is made by
    cargo run --release -p stillroom-model --example copy_adapter -- MODEL_DIR ADAPTER_DIR OUT_DIR
with MODEL_DIR crates/model/tests/golden/<base> and ADAPTER_DIR crates/model/tests/golden/lora/<variant>.

golden.safetensors (ids and labels are those of the base model's golden.safetensors):
  logits            f32 [2, T, V]
  grad.<parameter>  f32   d loss / d parameter, of A and B under their names in adapter_model.safetensors
golden.json: base, loss (mean over unmasked labels), and adamw: losses[i] and grad_norms[i] (before
clipping) measured before step i of torch.optim.AdamW on the same batch, A and B alone; as in
transformers' Trainer both are decayed.
"""
import json
import pathlib
import shutil
import sys

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

ROOT = pathlib.Path(__file__).resolve().parent.parent
BASES = ROOT / "crates/model/tests/golden"
OUT = BASES / "lora"
ADAMW = dict(lr=1e-2, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, max_grad_norm=1.0, steps=5)
ALL = dict(r=4, lora_alpha=6, lora_dropout=0.1, target_modules="all-linear")
SOME = dict(r=8, lora_alpha=16, use_rslora=True, target_modules=["q_proj", "v_proj"])
VARIANTS = {
    "llama-all": dict(seed=11, base="llama-tied", options=ALL),
    "llama-qv-rslora": dict(seed=12, base="llama-tied", options=SOME),
    "qwen2-all": dict(seed=13, base="qwen2", options=ALL),
    "qwen2-qv-rslora": dict(seed=14, base="qwen2", options=SOME),
}


def load_base(name):
    # A relative name is what lands in adapter_config.json.
    return AutoModelForCausalLM.from_pretrained(BASES / name, dtype=torch.float32, attn_implementation="eager")


def run(model, ids):
    return model(input_ids=ids, use_cache=False).logits


def loss_of(model, ids, labels):
    logits = run(model, ids)
    return torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=-100
    )


def adapter_parameters(model):
    """A and B under the names that they have in adapter_model.safetensors."""
    return {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}


def make(name, spec, out):
    folder = out / name
    if folder.exists():
        shutil.rmtree(folder)
    torch.manual_seed(spec["seed"])
    model = get_peft_model(load_base(spec["base"]), LoraConfig(task_type="CAUSAL_LM", **spec["options"]))
    gen = torch.Generator().manual_seed(spec["seed"])
    parameters = adapter_parameters(model)
    with torch.no_grad():
        for p in parameters.values():
            p.copy_(0.2 * torch.randn(p.shape, generator=gen))
    for config in model.peft_config.values():
        config.base_model_name_or_path = spec["base"]
        config.target_modules = sorted(config.target_modules)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    assert set(parameters) == set(load_file(folder / "adapter_model.safetensors"))

    # Without dropout, whose random numbers nobody shares.
    model.eval()
    base = load_file(BASES / spec["base"] / "golden.safetensors")
    ids, labels = base["input_ids"], base["labels"]
    with torch.no_grad():
        logits = run(model, ids)
    loss = loss_of(model, ids, labels)
    loss.backward()
    tensors = dict(logits=logits)
    for pname, p in parameters.items():
        tensors[f"grad.{pname}"] = p.grad.clone()
        assert p.grad.abs().max() > 1e-6, pname
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "golden.safetensors")

    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=ADAMW["lr"],
        betas=(ADAMW["beta1"], ADAMW["beta2"]),
        eps=ADAMW["eps"],
        weight_decay=ADAMW["weight_decay"],
        foreach=False,
    )
    losses, norms = [], []
    for _ in range(ADAMW["steps"]):
        optimizer.zero_grad()
        step_loss = loss_of(model, ids, labels)
        step_loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), ADAMW["max_grad_norm"]).item())
        optimizer.step()
        losses.append(step_loss.item())
    golden = dict(
        written_by="oracles/lora.py",
        torch=torch.__version__.split("+")[0],
        transformers=transformers.__version__,
        peft=peft.__version__,
        base=spec["base"],
        loss=loss.item(),
        adamw=dict(ADAMW, losses=losses, grad_norms=norms),
    )
    (folder / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)
    moved = (logits - base["logits"]).abs().max().item()
    difference = check(name, folder)
    size = sum(f.stat().st_size for f in folder.iterdir()) // 1000
    print(f"{name:18} loss {loss.item():.4f}  after 4 steps {losses[-1]:.4f}  logits moved {moved:.2f}  "
          f"read back {difference:.0e}  {size} KB")


def check(variant, adapter):
    """PEFT reads the directory, every tensor of it, to the golden logits."""
    spec = VARIANTS[variant]
    model = PeftModel.from_pretrained(load_base(spec["base"]), adapter).eval()
    state = get_peft_model_state_dict(model)
    stored = load_file(pathlib.Path(adapter) / "adapter_model.safetensors")
    assert set(state) == set(stored), set(state) ^ set(stored)
    assert all(torch.equal(state[k], stored[k].float()) for k in state)
    config = model.peft_config["default"]
    for key, value in spec["options"].items():
        if value != "all-linear":
            found = getattr(config, key)
            assert (sorted(found) if key == "target_modules" else found) == value, (key, found)
    ids = load_file(BASES / spec["base"] / "golden.safetensors")["input_ids"]
    golden = load_file(OUT / variant / "golden.safetensors") if (OUT / variant).exists() else None
    with torch.no_grad():
        logits = run(model, ids)
    if golden is None:
        golden = load_file(pathlib.Path(adapter) / "golden.safetensors")
    difference = (logits - golden["logits"]).abs().max().item()
    assert difference <= 1e-6, difference
    return difference


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if sys.argv[1:2] == ["--check"]:
        variant, adapter = sys.argv[2:]
        print(f"{variant}: PEFT reads {adapter}, logits differ by {check(variant, adapter):.0e}")
        return
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    for name, spec in VARIANTS.items():
        make(name, spec, out)


if __name__ == "__main__":
    main()

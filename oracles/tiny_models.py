#!/usr/bin/env python3
"""Golden values of tiny random models, made with transformers (f32, CPU, eager attention).

Writes  crates/model/tests/golden/<variant>/{config.json, model.safetensors, golden.safetensors,
        golden.json}, listed in VARIANTS and LOADING below
Run     VENV/bin/python oracles/tiny_models.py [OUT_DIR]    (VENV made by oracles/install.sh)
        Takes under a minute; the output is deterministic. Replaces the folders it writes.

golden.safetensors of a full variant (T = 24):
  input_ids         i64 [2, T]
  labels            i64 [2, T]     label at t = token to predict at t (already shifted), -100 = masked
  logits            f32 [2, T, V]
  packed_input_ids  i64 [1, 24]    documents of 9 and 15 tokens, one after the other
  packed_logits     f32 [1, 24, V] logits of each document run alone (positions start at 0 in each)
  grad.<parameter>  f32            d loss / d parameter, named as transformers names the parameter
golden.json: loss (sum of cross-entropies over unmasked labels / their count, over the whole
batch), and adamw: losses[i] and grad_norms[i] (before clipping) are measured before step i of
torch.optim.AdamW on the same batch; weight decay is applied to 2-D parameters only.

The loading variants hold the llama-tied weights stored another way; their golden.safetensors has
input_ids and logits only (computed in f32 from the stored, rounded weights).
"""
import json
import pathlib
import shutil
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "crates/model/tests/golden"
T, V = 24, 64
DOCS = (9, 15)
ADAMW = dict(lr=1e-2, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, max_grad_norm=1.0, steps=10)
COMMON = dict(
    vocab_size=V,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=None,
)
# With head_dim 8 and theta 100 the four wavelengths are 6.3, 19.9, 62.8 and 199 positions: kept
# (below 32/4), blended, and divided by the factor (above 32/1).
LLAMA3 = dict(
    rope_type="llama3",
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
VARIANTS = {
    "llama-tied": dict(
        seed=1,
        config=LlamaConfig,
        model=LlamaForCausalLM,
        options=dict(tie_word_embeddings=True, rms_norm_eps=1e-5, rope_theta=10000.0),
    ),
    "llama-untied-bias": dict(
        seed=2,
        config=LlamaConfig,
        model=LlamaForCausalLM,
        options=dict(
            tie_word_embeddings=False,
            attention_bias=True,
            mlp_bias=True,
            head_dim=12,
            rms_norm_eps=1e-6,
            rope_theta=500000.0,
        ),
        spelling="theta",
    ),
    "llama3-scaled": dict(
        seed=3,
        config=LlamaConfig,
        model=LlamaForCausalLM,
        options=dict(tie_word_embeddings=False, rms_norm_eps=1e-5, rope_parameters=dict(LLAMA3, rope_theta=100.0)),
        spelling="scaling",
    ),
    "llama3-scaled-rope-parameters": dict(
        seed=3,
        config=LlamaConfig,
        model=LlamaForCausalLM,
        options=dict(tie_word_embeddings=False, rms_norm_eps=1e-5, rope_parameters=dict(LLAMA3, rope_theta=100.0)),
    ),
    "qwen2": dict(
        seed=4,
        config=Qwen2Config,
        model=Qwen2ForCausalLM,
        options=dict(tie_word_embeddings=True, rms_norm_eps=1e-6, rope_theta=1000000.0),
    ),
    "qwen3": dict(
        seed=5,
        config=Qwen3Config,
        model=Qwen3ForCausalLM,
        options=dict(tie_word_embeddings=False, head_dim=16, rms_norm_eps=1e-6, rope_theta=1000000.0),
    ),
    "qwen3-tied": dict(
        seed=6,
        config=Qwen3Config,
        model=Qwen3ForCausalLM,
        options=dict(tie_word_embeddings=True, head_dim=16, rms_norm_eps=1e-6, rope_theta=10000.0),
    ),
}
LOADING = ("llama-tied-bf16", "llama-tied-f16", "llama-tied-sharded")


def build(spec):
    options = dict(spec["options"])
    if "rope_theta" in options:
        options["rope_parameters"] = {"rope_type": "default", "rope_theta": options.pop("rope_theta")}
    config = spec["config"](**COMMON, **options)
    config._attn_implementation = "eager"
    model = spec["model"](config).float().eval()
    gen = torch.Generator().manual_seed(spec["seed"])
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=gen)
            if "norm" in name:
                p.copy_(1 + 0.2 * noise)
            else:
                p.copy_(0.2 * noise)
    return model, gen


def run(model, ids):
    return model(input_ids=ids, use_cache=False).logits


def loss_of(model, ids, labels):
    logits = run(model, ids)
    return torch.nn.functional.cross_entropy(logits.reshape(-1, V), labels.reshape(-1), ignore_index=-100)


def respell(folder, spelling):
    """Rewrites config.json with the rope keys that checkpoints of transformers 4 use."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    if spelling == "scaling":
        config["rope_scaling"] = rope
    config["torch_dtype"] = config.pop("dtype")
    config = dict(sorted(config.items()))
    path.write_text(json.dumps(config, indent=2) + "\n")


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def check_reload(folder, ids, logits):
    """The files as written, spelling included, give the same logits."""
    model = load(folder)
    with torch.no_grad():
        got = run(model, ids)
    assert torch.equal(got, logits), (folder.name, (got - logits).abs().max())


def fresh(folder):
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def save(model, folder, **options):
    model.save_pretrained(folder, **options)
    (folder / "generation_config.json").unlink(missing_ok=True)


def full_variant(name, spec, out):
    folder = out / name
    fresh(folder)
    model, gen = build(spec)
    save(model, folder)
    if "spelling" in spec:
        respell(folder, spec["spelling"])

    stream = torch.randint(3, V, (2, T + 1), generator=gen)
    ids, labels = stream[:, :-1].contiguous(), stream[:, 1:].clone()
    labels[torch.rand(labels.shape, generator=gen) < 1 / 3] = -100
    packed = torch.randint(3, V, (1, sum(DOCS)), generator=gen)
    with torch.no_grad():
        logits = run(model, ids)
        packed_logits = torch.cat([run(model, doc) for doc in packed.split(DOCS, dim=1)], dim=1)

    loss = loss_of(model, ids, labels)
    loss.backward()
    tensors = dict(
        input_ids=ids, labels=labels, logits=logits, packed_input_ids=packed, packed_logits=packed_logits
    )
    for pname, p in model.named_parameters():
        tensors[f"grad.{pname}"] = p.grad.clone()
        assert p.grad.abs().max() > 1e-6, pname
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "golden.safetensors")

    params = list(model.parameters())
    groups = [
        dict(params=[p for p in params if p.dim() >= 2], weight_decay=ADAMW["weight_decay"]),
        dict(params=[p for p in params if p.dim() < 2], weight_decay=0.0),
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=ADAMW["lr"], betas=(ADAMW["beta1"], ADAMW["beta2"]), eps=ADAMW["eps"], foreach=False
    )
    losses, norms = [], []
    for _ in range(ADAMW["steps"]):
        optimizer.zero_grad()
        step_loss = loss_of(model, ids, labels)
        step_loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(params, ADAMW["max_grad_norm"]).item())
        optimizer.step()
        losses.append(step_loss.item())
    assert losses[0] == loss.item()

    golden = dict(
        written_by="oracles/tiny_models.py",
        torch=torch.__version__.split("+")[0],
        transformers=transformers.__version__,
        variant=name,
        loss=loss.item(),
        unmasked=int((labels != -100).sum()),
        document_lengths=list(DOCS),
        adamw=dict(ADAMW, losses=losses, grad_norms=norms),
    )
    (folder / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
    check_reload(folder, ids, logits)
    top = torch.softmax(logits, -1).max(-1).values.mean().item()
    print(f"{name:32} loss {loss.item():.4f}  after 9 steps {losses[-1]:.4f}  mean top p {top:.3f}  "
          f"grad norm {norms[0]:.3f}  {size(folder)} KB")


def loading_variant(name, out):
    folder = out / name
    fresh(folder)
    model, _ = build(VARIANTS["llama-tied"])
    if name.endswith("sharded"):
        save(model, folder, max_shard_size="40KB")
        assert len(list(folder.glob("*.safetensors"))) == 2, "want two shards"
        assert (folder / "model.safetensors.index.json").exists()
    else:
        dtype = torch.bfloat16 if name.endswith("bf16") else torch.float16
        save(model.to(dtype), folder)
        # Not model.float(): model.to(dtype) rounded the RoPE frequencies too.
        model = load(folder)
    ids = load_file(out / "llama-tied/golden.safetensors")["input_ids"]
    with torch.no_grad():
        logits = run(model, ids)
    check_reload(folder, ids, logits)
    save_file(dict(input_ids=ids, logits=logits), folder / "golden.safetensors")
    reference = load_file(out / "llama-tied/golden.safetensors")["logits"]
    print(f"{name:32} max |logits - llama-tied| {(logits - reference).abs().max().item():.2e}  {size(folder)} KB")


def size(folder):
    return sum(f.stat().st_size for f in folder.iterdir()) // 1000


def validate(out):
    """Reads every file back and recomputes the loss from the stored logits."""
    for name in VARIANTS:
        g = load_file(out / name / "golden.safetensors")
        golden = json.loads((out / name / "golden.json").read_text())
        loss = torch.nn.functional.cross_entropy(g["logits"].flatten(0, 1), g["labels"].flatten(), ignore_index=-100)
        assert abs(loss.item() - golden["loss"]) < 1e-6
        weights = load_file(out / name / "model.safetensors")
        grads = {k[5:] for k in g if k.startswith("grad.")}
        assert grads == set(weights), (name, grads ^ set(weights))
        for k in grads:
            assert g["grad." + k].shape == weights[k].shape
        assert g["labels"].shape == g["input_ids"].shape == (2, T)
        assert g["packed_logits"].shape == (1, sum(DOCS), V)
    a = load_file(out / "llama3-scaled/golden.safetensors")
    b = load_file(out / "llama3-scaled-rope-parameters/golden.safetensors")
    assert all(torch.equal(a[k], b[k]) for k in a)


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    for name, spec in VARIANTS.items():
        full_variant(name, spec, out)
    for name in LOADING:
        loading_variant(name, out)
    for path in out.glob("*/*.safetensors"):
        path.chmod(0o644)
    validate(out)
    print("read back: ok")


if __name__ == "__main__":
    main()

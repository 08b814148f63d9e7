"""A Llama in plain PyTorch, as one would write it for speed: one product for q, k and v, one for gate and up,
scaled_dot_product_attention, f32. Shapes: B sequences, T positions, D width, H heads, G key heads, V ids.

Not a program. check_torch.py holds it against LlamaForCausalLM of transformers.
"""
import dataclasses
import json
import pathlib

import torch
import torch.nn.functional as F
from torch import nn


@dataclasses.dataclass(frozen=True)
class Sizes:
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    tied: bool
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    @property
    def head_dim(self):
        return self.hidden // self.heads


def rotate(x, cos, sin):
    """x [B, T, heads, head_dim] turned by its position's angles, cos and sin [T, 1, head_dim / 2]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Block(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        self.attention_norm = nn.RMSNorm(s.hidden, eps=s.norm_eps)
        self.qkv = nn.Linear(s.hidden, (s.heads + 2 * s.kv_heads) * s.head_dim, bias=False)
        self.out = nn.Linear(s.heads * s.head_dim, s.hidden, bias=False)
        self.ffn_norm = nn.RMSNorm(s.hidden, eps=s.norm_eps)
        self.gate_up = nn.Linear(s.hidden, 2 * s.ffn, bias=False)
        self.down = nn.Linear(s.ffn, s.hidden, bias=False)

    def attention(self, x, cos, sin):
        s, (b, t, _) = self.s, x.shape
        qkv = self.qkv(x).view(b, t, s.heads + 2 * s.kv_heads, s.head_dim)
        q, k, v = qkv.split((s.heads, s.kv_heads, s.kv_heads), dim=2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=s.kv_heads != s.heads)
        return self.out(y.transpose(1, 2).reshape(b, t, s.heads * s.head_dim))

    def forward(self, x, cos, sin):
        x = x + self.attention(self.attention_norm(x), cos, sin)
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    """Token ids [B, T] to hidden states [B · T, D]; the product with `head` [V, D] is the loss's own affair."""

    def __init__(self, s, positions):
        super().__init__()
        self.s = s
        self.embedding = nn.Embedding(s.vocab, s.hidden)
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.layers))
        self.norm = nn.RMSNorm(s.hidden, eps=s.norm_eps)
        self.head = self.embedding.weight if s.tied else nn.Parameter(torch.empty(s.vocab, s.hidden))
        frequencies = s.rope_theta ** (-torch.arange(0, s.head_dim, 2) / s.head_dim)
        angles = torch.outer(torch.arange(positions), frequencies).unsqueeze(1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for weight in self.parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02)

    def forward(self, ids):
        t = ids.shape[1]
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.cos[:t], self.sin[:t])
        return self.norm(x).view(-1, self.s.hidden)


def sizes_of(config):
    """Sizes from a config.json of transformers, as a dict."""
    if config["model_type"] != "llama" or config.get("attention_bias") or config.get("mlp_bias"):
        raise ValueError("llama_torch.py knows plain Llamas without biases")
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10_000.0)}
    if rope.get("rope_type", "default") != "default":
        raise ValueError("llama_torch.py knows no scaled rotary embedding")
    return Sizes(
        vocab=config["vocab_size"],
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        ffn=config["intermediate_size"],
        tied=config["tie_word_embeddings"],
        rope_theta=rope["rope_theta"],
        norm_eps=config["rms_norm_eps"],
    )


@torch.no_grad()
def copy_weights(model, tensors):
    """Fills `model` from a dict of tensors under transformers' names."""
    model.embedding.weight.copy_(tensors["model.embed_tokens.weight"])
    model.norm.weight.copy_(tensors["model.norm.weight"])
    if not model.s.tied:
        model.head.copy_(tensors["lm_head.weight"])
    for i, block in enumerate(model.blocks):
        part = {name: tensors[f"model.layers.{i}.{name}.weight"] for name in LAYER_WEIGHTS}
        block.attention_norm.weight.copy_(part["input_layernorm"])
        block.qkv.weight.copy_(torch.cat([part[f"self_attn.{x}_proj"] for x in "qkv"]))
        block.out.weight.copy_(part["self_attn.o_proj"])
        block.ffn_norm.weight.copy_(part["post_attention_layernorm"])
        block.gate_up.weight.copy_(torch.cat([part["mlp.gate_proj"], part["mlp.up_proj"]]))
        block.down.weight.copy_(part["mlp.down_proj"])


LAYER_WEIGHTS = [
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
]


def load(folder, positions):
    """The model of a Hugging Face folder with one model.safetensors."""
    from safetensors.torch import load_file

    folder = pathlib.Path(folder)
    model = Llama(sizes_of(json.loads((folder / "config.json").read_text())), positions)
    copy_weights(model, load_file(folder / "model.safetensors"))
    return model

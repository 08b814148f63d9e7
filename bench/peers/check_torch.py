#!/usr/bin/env python3
"""Checks what train_torch.py times: the model against LlamaForCausalLM of transformers (logits and gradients),
and every form of every head against autograd through the full logits. Exits 1 on a difference.

  check_torch.py [--hf DIR]        with DIR, a Hugging Face folder of a Llama is checked too
"""
import argparse
import sys

sys.dont_write_bytecode = True

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM  # noqa: E402

import heads  # noqa: E402
import llama_torch  # noqa: E402

# Both sides are f32 and add in different orders.
TOLERANCE = 2e-4
failed = False


def hold(what, got, want):
    """Largest difference, as a share of the largest value wanted."""
    global failed
    error = ((got - want).abs().max() / want.abs().max()).item()
    failed |= not error <= TOLERANCE
    print(f"{'ok  ' if error <= TOLERANCE else 'FAIL'} {what}: {error:.1e}")


def check_model(name, theirs, config, ids):
    ours = llama_torch.Llama(llama_torch.sizes_of(config), ids.shape[1] - 1)
    llama_torch.copy_weights(ours, theirs.state_dict())
    inputs, labels = ids[:, :-1], ids[:, 1:].reshape(-1)
    h = ours(inputs)
    our_loss = heads.make_head("full", "ce", 0, False)(h, ours.head, labels.numel(), labels)
    our_loss.backward()
    logits = theirs(input_ids=inputs).logits.flatten(0, 1)
    their_loss = torch.nn.functional.cross_entropy(logits, labels)
    their_loss.backward()
    hold(f"{name}: logits", (h @ ours.head.t()).detach(), logits.detach())
    hold(f"{name}: loss", our_loss.detach(), their_loss.detach())
    block, layer = ours.blocks[0], theirs.model.layers[0]
    attention = layer.self_attn
    qkv = torch.cat([p.weight.grad for p in (attention.q_proj, attention.k_proj, attention.v_proj)])
    hold(f"{name}: gradient of q, k, v", block.qkv.weight.grad, qkv)
    hold(f"{name}: gradient of down", block.down.weight.grad, layer.mlp.down_proj.weight.grad)
    hold(f"{name}: gradient of a norm", block.ffn_norm.weight.grad, layer.post_attention_layernorm.weight.grad)
    hold(f"{name}: gradient of the embedding", ours.embedding.weight.grad, theirs.model.embed_tokens.weight.grad)


def tiny(tied):
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        rms_norm_eps=1e-5,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config), config.to_dict()


def targets_of(loss, n, vocab):
    if loss == "ce":
        labels = torch.randint(vocab, (n,))
        labels[: n // 3] = heads.IGNORED
        return n - n // 3, [labels]
    if loss == "dense_kd":
        p = torch.softmax(torch.randn(n, vocab), dim=-1)
        return n, [p, torch.special.xlogy(p, p).sum(dim=-1)]
    ids = torch.stack([torch.randperm(vocab)[:7] for _ in range(n)])
    p = torch.softmax(torch.randn(n, 7), dim=-1)
    return n, [ids, p, torch.special.xlogy(p, p).sum(dim=-1)]


def check_heads():
    n, width, vocab, chunk = 50, 24, 130, 16
    for loss in heads.SUMS:
        supervised, targets = targets_of(loss, n, vocab)
        h0, w0 = torch.randn(n, width), torch.randn(vocab, width)
        found = {}
        for way in heads.WAYS:
            if (way, loss) == ("torch", "sparse_kd"):
                continue
            h, w = h0.clone().requires_grad_(), w0.clone().requires_grad_()
            value = heads.make_head(way, loss, chunk, False)(h, w, supervised, *targets)
            (3.0 * value).backward()
            found[way] = (value.detach(), h.grad, w.grad)
        for way in found:
            for part, got, want in zip(("loss", "gradient of h", "gradient of w"), found[way], found["full"]):
                hold(f"{loss}, {way}: {part}", got, want)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--hf", metavar="DIR", help="a Hugging Face folder of a Llama")
    args = p.parse_args()
    torch.manual_seed(3)
    check_heads()
    for tied in (False, True):
        model, config = tiny(tied)
        check_model(f"tiny, {'tied' if tied else 'untied'}", model, config, torch.randint(300, (3, 20)))
    if args.hf:
        model = AutoModelForCausalLM.from_pretrained(args.hf, dtype=torch.float32)
        check_model("the given model", model, model.config.to_dict(), torch.randint(model.config.vocab_size, (2, 65)))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

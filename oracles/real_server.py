#!/usr/bin/env python3
"""Teaches from a real server: llama.cpp's, as llama-cpp-python serves it, with SmolLM2-135M-Instruct.

Run     VENV/bin/python oracles/real_server.py STILLROOM GGUF
        VENV    any environment with llama-cpp-python[server]==0.3.36 (built from its sdist, a quarter of an hour)
        GGUF    the file that scripts/fetch-smollm2.sh fetches

Starts the server on a free port of loopback and lets STILLROOM teach eight prompts twice, streamed and whole, greedily,
with `top_logprobs`. Then every prompt has its row; every call is a reply; and each reply's tokens have finite
log-probabilities, none above 0, and none below that of another token. They are held against those of `STILLROOM generate`
as far as both write the same text: the server rounds activations to 8 bits beside Q4_1 weights, so the texts part sooner
or later, and the means may differ by a tenth of a nat. Prints one line per check; exits 1 at the first that fails.
"""
import json
import pathlib
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request

N = 8
TOLERANCE = 0.1
PROMPTS = [f"Write one sentence about the number {i}." for i in range(N)]
RECIPE = """
[teacher]
kind = "openai"
model = "HuggingFaceTB/SmolLM2-135M-Instruct"
endpoints = [{{ base_url = "http://127.0.0.1:{port}/v1", max_in_flight = 2 }}]
max_tokens = 24
temperature = 0.0
top_logprobs = 3
extra_body = {{ repeat_penalty = 1.0 }}
stream = {stream}
first_token_timeout_s = 300
[prompts]
path = "prompts.jsonl"
"""


def check(what, holds):
    print(("ok   " if holds else "FAIL ") + what, flush=True)
    if not holds:
        sys.exit(1)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(port, server):
    for _ in range(600):
        if server.poll() is not None:
            sys.exit("the server ended")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=2)
            return
        except OSError:
            time.sleep(0.5)
    sys.exit("the server does not answer")


def teach(stillroom, dir, port, stream):
    recipe = dir / f"stream-{stream}.toml"
    recipe.write_text(RECIPE.format(port=port, stream=stream))
    run = dir / f"run-{stream}"
    subprocess.run([stillroom, "teach", recipe, "--output", run, "--quiet"], check=True, stdout=subprocess.DEVNULL)
    sums = json.loads((run / "teach.json").read_text())
    how = "streamed" if stream == "true" else "whole"
    check(f"{how}: {N} rows of {N} calls, all replies", (sums["rows"], sums["calls"], sums["failed_calls"]) == (N, N, 0))
    ledger = sqlite3.connect(f"file:{run}/ledger.sqlite?mode=ro", uri=True)
    receipts = ledger.execute("SELECT prompt, body FROM receipts JOIN calls USING (call) ORDER BY prompt").fetchall()
    replies = {prompt: json.loads(body)["reply"] for prompt, body in receipts}
    check(f"{how}: a receipt for every prompt", len(replies) == N)
    tokens = [token for reply in replies.values() for token in reply["logprobs"]]
    check(f"{how}: log-probabilities of {len(tokens)} tokens, none above 0",
          len(tokens) > N and all(-50 < token["logprob"] <= 0 for token in tokens))
    check(f"{how}: three likeliest tokens beside each", all(len(token["top"]) == 3 for token in tokens))
    greedy = sum(token["logprob"] >= max(top[2] for top in token["top"]) - 1e-4 for token in tokens)
    check(f"{how}: the greedy token is the likeliest ({greedy} of {len(tokens)})", greedy == len(tokens))
    return replies


def compare(stillroom, gguf, replies):
    """Over the tokens that both write before their greedy texts part."""
    ours, theirs = [], []
    for i, prompt in enumerate(PROMPTS):
        made = json.loads(subprocess.run(
            [stillroom, "generate", gguf, "--chat", "--prompt", prompt, "--max-tokens", "24", "--json"],
            check=True, capture_output=True).stdout)
        text = ""
        for here, there in zip(made["token_logprobs"], replies[f"p{i}"]["logprobs"]):
            text += there["token"]
            if not made["text"].startswith(text):
                break
            ours.append(here)
            theirs.append(there["logprob"])
    n = len(ours)
    check(f"{n} tokens written alike", n >= 2 * N)
    means = sum(ours) / n, sum(theirs) / n
    check(f"their mean log-probability: {means[0]:.4f} here, {means[1]:.4f} there", abs(means[0] - means[1]) < TOLERANCE)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    stillroom, gguf = (str(pathlib.Path(path).resolve()) for path in sys.argv[1:])
    port = free_port()
    command = [sys.executable, "-m", "llama_cpp.server", "--model", gguf, "--port", str(port), "--host", "127.0.0.1",
               "--interrupt_requests", "false", "--logits_all", "true", "--n_ctx", "1024", "--verbose", "false"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, server)
        with tempfile.TemporaryDirectory() as temp:
            dir = pathlib.Path(temp)
            lines = [json.dumps({"id": f"p{i}", "prompt": prompt}) for i, prompt in enumerate(PROMPTS)]
            (dir / "prompts.jsonl").write_text("\n".join(lines) + "\n")
            for stream in ["true", "false"]:
                replies = teach(stillroom, dir, port, stream)
            compare(stillroom, gguf, replies)
    finally:
        server.kill()


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Asks `stillroom serve` as OpenAI's own Python client does, and holds the answers against `generate` and `score`.

Run     VENV/bin/python oracles/serve_clients.py STILLROOM [MODEL]
        VENV    any environment with openai==3.57.0
        MODEL   a model with a chat template; assets/quickstart-teacher, if none is named

Starts the server on a free port of loopback, with an API key. The client's models are strict types: what it parses has the
shape that it expects. Then: chats whole and streamed, greedy and seeded, are `generate --chat`'s text; log-probabilities are
its too; an echoed prompt has `score`'s numbers; errors are the client's classes of errors. Prints one line per check; exits 1
at the first that fails. (`generate` itself is held against transformers in crates/model/tests/smollm2.rs.)
"""
import asyncio
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import openai

KEY = "a key of the oracle's"
PROMPT = "Tom has 3 apples and buys 4 more. How many apples does he have?"


def main():
    stillroom = sys.argv[1]
    assets = pathlib.Path(__file__).resolve().parent.parent / "assets"
    model = sys.argv[2] if len(sys.argv) > 2 else str(assets / "quickstart-teacher")
    command = [stillroom, "serve", model, "--port", "0", "--json", "--api-key-env", "ORACLE_KEY", "--served-model-name", "m"]
    server = subprocess.Popen(command, env={**os.environ, "ORACLE_KEY": KEY}, stdout=subprocess.PIPE, text=True)
    try:
        base = json.loads(server.stdout.readline())["base_url"]
        check_all(stillroom, model, openai.OpenAI(base_url=base, api_key=KEY, max_retries=0), base)
    finally:
        server.terminate()
        assert server.wait(60) == 0, "it does not end well"
    print("ends well at SIGTERM")


def run(*args):
    return json.loads(subprocess.run(args, check=True, capture_output=True, text=True).stdout)


def check_all(stillroom, model, client, base):
    assert [m.id for m in client.models.list()] == ["m"]
    assert client.models.retrieve("m").owned_by == "stillroom"
    print("models: listed and retrieved")
    for temperature, seed in ((0, 0), (1, 7), (0.6, 2**53 - 1)):
        said = run(stillroom, "generate", model, "--prompt", PROMPT, "--chat", "--max-tokens", "64", "--temperature", str(temperature), "--seed", str(seed), "--json")
        ask = dict(model="m", messages=[{"role": "user", "content": PROMPT}], max_completion_tokens=64, temperature=temperature, seed=seed, logprobs=True, top_logprobs=5)
        whole = client.chat.completions.create(**ask)
        choice = whole.choices[0]
        assert (choice.message.content, choice.finish_reason) == (said["text"], said["finish_reason"])
        assert [t.logprob for t in choice.logprobs.content] == said["token_logprobs"]
        assert all(len(t.top_logprobs) == 5 for t in choice.logprobs.content)
        assert whole.usage.completion_tokens == len(said["tokens"])
        pieces, entries, usage = "", [], None
        for chunk in client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
            usage = chunk.usage or usage
            for part in chunk.choices:
                pieces += part.delta.content or ""
                entries += (part.logprobs.content if part.logprobs else None) or []
        assert (pieces, usage) == (said["text"], whole.usage)
        assert [t.logprob for t in entries] == said["token_logprobs"]
        print(f"chat at temperature {temperature}: {len(said['tokens'])} tokens, whole and streamed, are generate's")
    asyncio.run(check_together(base))
    check_scores(stillroom, model, client)
    check_errors(client, base)


async def check_together(base):
    client = openai.AsyncOpenAI(base_url=base, api_key=KEY, max_retries=0)
    ask = lambda i: client.completions.create(model="m", prompt=f"{i} apples", max_tokens=32, seed=i, temperature=1)
    together = await asyncio.gather(*(ask(i) for i in range(32)))
    for i, reply in enumerate(together):
        alone = await ask(i)
        assert alone.choices[0].text == reply.choices[0].text
    print("32 requests at once have the texts that they have one by one")


def check_scores(stillroom, model, client):
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(PROMPT)
        file.flush()
        said = run(stillroom, "score", model, "--text", file.name, "--json")
    reply = client.completions.create(model="m", prompt=said["tokens"], max_tokens=1, temperature=0, echo=True, logprobs=1)
    found = reply.choices[0].logprobs
    assert found.token_logprobs[0] is None and len(found.token_logprobs) == len(said["tokens"]) + 1
    far = max(abs(a - b) for a, b in zip(found.token_logprobs[1:-1], said["token_logprobs"][1:]))
    assert far < 1e-5, far
    assert all(max(top.values()) >= own for top, own in zip(found.top_logprobs[1:], found.token_logprobs[1:]))
    print(f"an echoed prompt of {len(said['tokens'])} tokens has score's numbers, at most {far:g} apart")


def check_errors(client, base):
    chat = lambda c=client, **more: c.chat.completions.create(**{"model": "m", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1, **more})
    for error, call in (
        (openai.AuthenticationError, lambda: chat(openai.OpenAI(base_url=base, api_key="another", max_retries=0))),
        (openai.NotFoundError, lambda: chat(model="other")),
        (openai.BadRequestError, lambda: chat(presence_penalty=1)),
        (openai.BadRequestError, lambda: chat(tools=[{"type": "function", "function": {"name": "f"}}])),
        (openai.BadRequestError, lambda: chat(max_tokens=10**6)),
    ):
        try:
            call()
        except error as found:
            assert found.body["message"] and found.body["type"], found.body
        else:
            raise AssertionError(f"no {error.__name__}")
    print("errors are those that the client knows")


if __name__ == "__main__":
    main()

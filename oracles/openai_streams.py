#!/usr/bin/env python3
"""Golden streams of chat completions, put together by OpenAI's own client.

Writes  crates/formats/tests/golden/openai_streams.json
Run     VENV/bin/python oracles/openai_streams.py [OUT_FILE]     (VENV has openai==3.57.0 and httpx, nothing else)
        Takes a second.

Each case has `stream`, the text that a server sends, and what the client makes of it: its decoder of events
(openai._streaming.SSEDecoder) cuts the bytes, and openai.lib.streaming.chat.ChatCompletionStreamState adds up the
chunks. Line ends, comments, other fields and data over several lines vary as the HTML standard allows.

  content, refusal, finish_reason     of choice 0
  tool_calls                          [[id, name, arguments], …]
  logprobs                            [[token, logprob, bytes or null], …], or null
  usage                               [prompt, completion, cached, reasoning], or null
"""
import json
import pathlib
import random
import sys

import openai
from openai._streaming import SSEDecoder
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "crates/formats/tests/golden/openai_streams.json"
WORDS = ["still", " room", " größer", "\n", " 🌱", "😀", " \"q\"", "\\", "\t", " </b>", " data:", "\u2028", " e\u0301", "日本", ":", " "]
CASES = 16


def text(rng, n_max=8):
    return [rng.choice(WORDS) for _ in range(rng.randrange(n_max + 1))]


def logprob(rng, token):
    others = [{"token": w, "logprob": -round(rng.random() * 9, 3), "bytes": list(w.encode())} for w in rng.sample(WORDS, 1)]
    has_bytes = rng.random() < 0.8
    return {"token": token, "logprob": -rng.random(), "bytes": list(token.encode()) if has_bytes else None, "top_logprobs": others}


def chunks(rng):
    head = {"id": f"chatcmpl-{rng.randrange(10**9)}", "object": "chat.completion.chunk", "created": 1, "model": "m"}

    def chunk(delta, finish=None, logprobs=None):
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**head, "choices": [choice]}

    out = [chunk({"role": "assistant", "content": ""})]
    wants_logprobs = rng.random() < 0.5
    refuses = rng.random() < 0.15
    for word in text(rng):
        content = [logprob(rng, word)] if wants_logprobs else None
        field = "refusal" if refuses else "content"
        out.append(chunk({field: word}, logprobs={field: content} if wants_logprobs and not refuses else None))
    n_calls = rng.choice([0, 0, 1, 2, 3]) if not refuses else 0
    for i in range(n_calls):
        function = {"name": f"f{i}", "arguments": ""}
        out.append(chunk({"tool_calls": [{"index": i, "id": f"call_{i}", "type": "function", "function": function}]}))
    arguments = [json.dumps({"x": "".join(text(rng, 3)), "n": [i]}, ensure_ascii=rng.random() < 0.5) for i in range(n_calls)]
    while any(arguments):
        i = rng.choice([i for i in range(n_calls) if arguments[i]])
        cut = rng.randrange(1, 9)
        piece, arguments[i] = arguments[i][:cut], arguments[i][cut:]
        out.append(chunk({"tool_calls": [{"index": i, "function": {"arguments": piece}}]}))
    out.append(chunk({}, finish="tool_calls" if n_calls else rng.choice(["stop", "length", "content_filter"])))
    if rng.random() < 0.7:
        usage = {"prompt_tokens": rng.randrange(1000), "completion_tokens": rng.randrange(1000), "total_tokens": 0}
        if rng.random() < 0.5:
            usage["prompt_tokens_details"] = {"cached_tokens": rng.randrange(100)}
            usage["completion_tokens_details"] = {"reasoning_tokens": rng.randrange(100)}
        out.append({**head, "choices": [], "usage": usage})
    return out


def written(rng, all_chunks):
    """The chunks as events, in one of the ways of writing them."""
    end = rng.choice(["\n", "\r\n", "\r"])
    colon = rng.choice([": ", ":"])
    lines = [": keep-alive", ""] if rng.random() < 0.5 else []
    for chunk in all_chunks:
        ascii_only = rng.random() < 0.3
        data = json.dumps(chunk, ensure_ascii=ascii_only, separators=(",", ":"))
        # JSON may have line ends between its tokens: then an event has several lines of data.
        data = data.replace(',"choices"', ',\n"choices"' if rng.random() < 0.2 else ',"choices"').split("\n")
        if rng.random() < 0.2:
            lines.append(rng.choice(["id: 7", ": comment", "retry: 100", "unknown: x"]))
        lines += [f"data{colon}{line}" for line in data] + [""]
        if rng.random() < 0.1:
            lines += [": ping", ""]
    lines += [f"data{colon}[DONE]", ""]
    return "".join(line + end for line in lines)


def put_together(stream):
    state = ChatCompletionStreamState()
    for event in SSEDecoder().iter_bytes(iter([stream.encode()])):
        if event.data == "[DONE]":
            break
        if event.data:
            state.handle_chunk(ChatCompletionChunk.model_validate_json(event.data))
    # `parse_…` of a reply that was cut by its length raises, so the plain snapshot is what counts.
    return state.current_completion_snapshot


def case(seed):
    rng = random.Random(seed)
    stream = written(rng, chunks(rng))
    whole = put_together(stream)
    choice, usage = whole.choices[0], whole.usage
    message = choice.message
    logprobs = choice.logprobs and choice.logprobs.content
    details = usage and usage.prompt_tokens_details, usage and usage.completion_tokens_details
    return {
        "stream": stream,
        "content": message.content or "",
        "refusal": message.refusal or "",
        "finish_reason": choice.finish_reason,
        "tool_calls": [[c.id, c.function.name, c.function.arguments] for c in message.tool_calls or []],
        "logprobs": logprobs and [[t.token, t.logprob, t.bytes] for t in logprobs],
        "usage": usage
        and [
            usage.prompt_tokens,
            usage.completion_tokens,
            details[0] and details[0].cached_tokens,
            details[1] and details[1].reasoning_tokens,
        ],
    }


def main():
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    golden = {"openai": openai.__version__, "cases": [case(seed) for seed in range(CASES)]}
    out.write_text(json.dumps(golden, ensure_ascii=False, indent=0) + "\n")
    print(out, out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Times greedy decoding with llama.cpp, batch 1: new tokens one at a time, the prompt's pass apart.

  decode_llamacpp.py --gguf FILE [--prompt-tokens P --tokens N]

A step writes N tokens after a prompt of P random ones. The largest logit is found by numpy, which takes a few
microseconds of a token's milliseconds.
"""
import common

args_parser = common.parser(__doc__.split("\n")[0])
add = args_parser.add_argument
common.gguf_arguments(add)
add("--prompt-tokens", type=int, default=16)
add("--tokens", type=int, default=128, help="new tokens that are timed; the prompt's pass gives one more")
args = args_parser.parse_args()
common.start(args)

import statistics  # noqa: E402
import time  # noqa: E402

import numpy as np  # noqa: E402

from llamacpp_session import Session, llamacpp  # noqa: E402


def main():
    imports = common.resident_bytes()
    positions = args.prompt_tokens + args.tokens + 1
    session = Session(args.gguf, args.threads, 1, positions, positions, args.flash, args.kv, args.llama_cpp)
    prompt_ids = np.random.default_rng(2).integers(session.n_vocab, size=args.prompt_tokens).tolist()
    prompt, one = session.batch([prompt_ids]), session.batch([[0]])
    prefills, wholes, written = [], [], []

    def step():
        began = time.perf_counter()
        session.forget()
        session.run(prompt)
        written[:] = [int(session.logits(args.prompt_tokens - 1).argmax())]
        prefills.append(time.perf_counter() - began)
        for k in range(args.tokens):
            one.token[0], one.pos[0] = written[-1], args.prompt_tokens + k
            session.run(one)
            written.append(int(session.logits(0).argmax()))
        wholes.append(time.perf_counter() - began)

    _, memory = common.time_steps(step, args.steps)
    timed = slice(common.WARM_UP_STEPS, None)
    seconds = [whole - prefill for whole, prefill in zip(wholes[timed], prefills[timed])]
    common.report(
        args,
        "decode",
        "llama.cpp",
        {"llama.cpp": llamacpp.RELEASE, "numpy": np.__version__},
        args.tokens,
        seconds,
        memory,
        imports_resident_bytes=imports,
        prefill_tokens_per_second=args.prompt_tokens / statistics.median(prefills[timed]),
        facts=session.facts(),
        first_ids=written[:8],
    )


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Times llama.cpp over prompts: B sequences of T tokens in one batch.

  score_llamacpp.py --gguf FILE [--batch B --sequence T] [--outputs all|last]

--outputs all: logits of every row and log p of the token after it, as llama-perplexity computes it (the softmax
by numpy on as many threads); this is what scoring needs. --outputs last: the prompt alone, logits of each
sequence's last row only; less work than scoring.
"""
import common

args_parser = common.parser(__doc__.split("\n")[0])
add = args_parser.add_argument
common.gguf_arguments(add)
add("--batch", type=int, default=4)
add("--sequence", type=int, default=512)
add("--micro-batch", type=int, default=512, help="rows that llama.cpp computes together (n_ubatch)")
add("--outputs", choices=["all", "last"], default="all")
args = args_parser.parse_args()
common.start(args)

from concurrent.futures import ThreadPoolExecutor  # noqa: E402

import numpy as np  # noqa: E402

from llamacpp_session import Session, llamacpp  # noqa: E402


def main():
    imports = common.resident_bytes()
    session = Session(
        args.gguf, args.threads, args.batch, args.sequence, args.micro_batch, args.flash, args.kv, args.llama_cpp
    )
    ids = np.random.default_rng(2).integers(session.n_vocab, size=(args.batch, args.sequence + 1))
    n = args.batch * args.sequence
    labels = ids[:, 1:].reshape(-1)
    batch = session.batch(ids[:, :-1].tolist(), all_outputs=args.outputs == "all")
    pool = ThreadPoolExecutor(args.threads)
    logprobs = np.empty(n)

    def score_rows(first):
        for row in range(first, n, args.threads):
            z = session.logits(row)
            top = z.max()
            logprobs[row] = z[labels[row]] - top - np.log(np.exp(z - top).sum())

    def step():
        session.forget()
        session.run(batch)
        # The first call waits for the computation; it is not made by two threads at once.
        session.logits(n - 1)
        if args.outputs == "all":
            list(pool.map(score_rows, range(args.threads)))

    seconds, memory = common.time_steps(step, args.steps)
    scored = {"nll_nats_per_token": -float(logprobs.mean())} if args.outputs == "all" else {}
    common.report(
        args,
        "score",
        "llama.cpp",
        {"llama.cpp": llamacpp.RELEASE, "numpy": np.__version__},
        n,
        seconds,
        memory,
        imports_resident_bytes=imports,
        facts=session.facts(),
        **scored,
    )


if __name__ == "__main__":
    main()

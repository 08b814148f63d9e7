#!/usr/bin/env python3
"""Times scoring with transformers, f32: log p of the token after each of B x T tokens.

  score_transformers.py --hf DIR [--batch B --sequence T] [--compile [--freeze]] [--chunk ROWS]

By default all logits [B, T, V] are made and the wanted log-probabilities gathered from them, as people write
it; --chunk works through the head that many rows at a time, which keeps the logits in the cache.
"""
import common

args_parser = common.parser(__doc__.split("\n")[0])
add = args_parser.add_argument
common.hf_arguments(add)
add("--batch", type=int, default=4)
add("--sequence", type=int, default=512)
add("--compile", action="store_true", help="torch.compile")
add("--freeze", action="store_true", help="with --compile: weights become constants, packed ahead of time")
add("--chunk", type=int, help="rows of the head that are computed together (default: all)")
args = args_parser.parse_args()
common.start(args)

import torch  # noqa: E402

import hf_model  # noqa: E402


def gather(logits, labels):
    """log softmax(logits)[label]: logits [n, V], labels [n] -> [n]."""
    return logits.gather(1, labels.unsqueeze(1)).squeeze(1) - torch.logsumexp(logits, dim=-1)


def main():
    model, imports = hf_model.load(args)
    ids = torch.randint(model.config.vocab_size, (args.batch, args.sequence + 1))
    inputs, labels = ids[:, :-1].contiguous(), ids[:, 1:].reshape(-1)

    def logprobs(inputs, labels):
        if args.chunk is None:
            logits = model(input_ids=inputs, use_cache=False).logits
            return gather(logits.flatten(0, 1), labels)
        h = model.model(input_ids=inputs, use_cache=False).last_hidden_state.flatten(0, 1)
        parts = zip(h.split(args.chunk), labels.split(args.chunk))
        return torch.cat([gather(model.lm_head(rows), wanted) for rows, wanted in parts])

    if args.freeze:
        import torch._inductor.config as inductor

        inductor.freezing = True
        inductor.max_autotune = True
    work = torch.compile(logprobs) if args.compile else logprobs
    found = []

    def step():
        # Freezing asks for no_grad; inference_mode is no faster where everything is compiled.
        with torch.no_grad() if args.freeze else torch.inference_mode():
            found[:] = [work(inputs, labels)]

    seconds, memory = common.time_steps(step, args.steps)
    hf_model.report(
        args,
        "score",
        args.batch * args.sequence,
        seconds,
        memory,
        imports_resident_bytes=imports,
        nll_nats_per_token=-found[0].double().mean().item(),
    )


if __name__ == "__main__":
    main()

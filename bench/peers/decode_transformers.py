#!/usr/bin/env python3
"""Times `generate` of transformers, f32: sampling with a batch, the prompts' pass apart.

  decode_transformers.py --hf DIR [--batch B --prompt-tokens P --tokens N --temperature T] [--cache dynamic|static]

A step is one call of `generate`; a logits processor that changes nothing takes the time of each token. Sampling
is from the whole distribution (no top-k, no top-p); --temperature 0 is greedy.
"""
import common

args_parser = common.parser(__doc__.split("\n")[0])
add = args_parser.add_argument
common.hf_arguments(add)
add("--batch", type=int, default=32)
add("--prompt-tokens", type=int, default=16)
add("--tokens", type=int, default=128, help="new tokens that are timed; the prompt's pass gives one more")
add("--temperature", type=float, default=1.0)
add("--cache", choices=["dynamic", "static"], default="dynamic")
add("--compile", action="store_true", help="with --cache static: torch.compile of the single-token pass")
args = args_parser.parse_args()
common.start(args)

import statistics  # noqa: E402
import time  # noqa: E402

import torch  # noqa: E402
from transformers import CompileConfig, GenerationConfig, LogitsProcessor  # noqa: E402

import hf_model  # noqa: E402


class Clock(LogitsProcessor):
    """The time at which each token's logits are there."""

    def __init__(self):
        self.times = []

    def __call__(self, input_ids, scores):
        self.times.append(time.perf_counter())
        return scores


def generation_config(pad):
    config = GenerationConfig(
        max_new_tokens=args.tokens + 1,
        min_new_tokens=args.tokens + 1,
        do_sample=args.temperature > 0,
        eos_token_id=None,
        pad_token_id=pad,
        cache_implementation=args.cache,
    )
    if args.temperature > 0:
        config.temperature, config.top_k, config.top_p = args.temperature, 0, 1.0
    if args.compile:
        # By itself `generate` compiles on accelerators only.
        config.compile_config = CompileConfig(mode="default", dynamic=False)
        config.compile_config._compile_all_devices = True
    else:
        config.disable_compile = True
    return config


def main():
    model, imports = hf_model.load(args)
    prompts = torch.randint(model.config.vocab_size, (args.batch, args.prompt_tokens))
    model.generation_config.eos_token_id = None
    config = generation_config(model.config.pad_token_id or 0)
    prefills, seconds = [], []

    def step():
        clock = Clock()
        began = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                generation_config=config,
                logits_processor=[clock],
            )
        ended = time.perf_counter()
        assert out.shape[1] == args.prompt_tokens + args.tokens + 1, out.shape
        prefills.append(clock.times[0] - began)
        # From the prompt's logits to the end: N passes of one token and N + 1 draws.
        seconds.append(ended - clock.times[0])

    _, memory = common.time_steps(step, args.steps)
    seconds, prefills = seconds[common.WARM_UP_STEPS :], prefills[common.WARM_UP_STEPS :]
    hf_model.report(
        args,
        "decode",
        args.batch * args.tokens,
        seconds,
        memory,
        imports_resident_bytes=imports,
        prefill_tokens_per_second=args.batch * args.prompt_tokens / statistics.median(prefills),
    )


if __name__ == "__main__":
    main()

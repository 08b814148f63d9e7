#!/usr/bin/env python3
"""Times training steps of a Llama in PyTorch, f32: gradients, clipping to 1, AdamW; the same batch each step.

  train_torch.py [--hidden N --layers N --heads N --kv-heads N --ffn N --vocab N --tied | --hf DIR]
                 [--batch B --sequence T] [--loss ce|dense_kd|sparse_kd] [--masked SHARE [--skip-masked]]
                 [--head full|torch|checkpoint|fused --chunk ROWS] [--compile] [--optimizer fused|foreach|compiled]

--masked is what a collator for supervised fine-tuning does: the first SHARE of each sequence has the label
-100, and every row's logits are computed all the same. --skip-masked takes the rows out before the head.
"""
import common

args_parser = common.parser(__doc__.split("\n")[0])
add = args_parser.add_argument
add("--hf", metavar="DIR", help="a Hugging Face folder, instead of random weights of the sizes below")
add("--implementation", choices=["own", "transformers"], default="own", help="of the model under --hf")
add("--hidden", type=int, default=384)
add("--layers", type=int, default=6)
add("--heads", type=int, default=6)
add("--kv-heads", type=int)
add("--ffn", type=int, default=1024)
add("--vocab", type=int, default=8192)
add("--tied", action="store_true", help="the embedding is the head too")
add("--batch", type=int, default=8)
add("--sequence", type=int, default=256)
add("--loss", choices=["ce", "dense_kd", "sparse_kd"], default="ce")
add("--draws", type=int, default=50, help="teacher ids per position of sparse_kd")
add("--masked", type=float, default=0.0, help="share of each sequence, from its front, without supervision")
add("--skip-masked", action="store_true", help="unsupervised rows take no part in the head")
add("--head", choices=["full", "torch", "checkpoint", "fused"], default="full", help="see heads.py")
add("--chunk", type=int, default=256, help="rows of a chunk where the head works in chunks")
add("--compile", action="store_true", help="torch.compile, as far as the head allows")
add("--optimizer", choices=["fused", "foreach", "compiled"], default="fused")
args = args_parser.parse_args()
common.start(args)

import torch  # noqa: E402
from torch.nn.utils import clip_grad_norm_  # noqa: E402

import heads  # noqa: E402
import llama_torch  # noqa: E402


def make_model():
    """The model, its sizes, and its hidden states [B * T, D] as a function of ids [B, T]."""
    if args.hf and args.implementation == "transformers":
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(args.hf, dtype=torch.float32, attn_implementation="sdpa")
        model.train()
        trunk = model.model
        head_of = lambda: model.lm_head.weight  # noqa: E731
        hidden = lambda ids: trunk(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)  # noqa: E731
        return model, model.config.vocab_size, hidden, head_of
    if args.hf:
        model = llama_torch.load(args.hf, args.sequence)
    else:
        kv_heads = args.kv_heads or args.heads
        sizes = llama_torch.Sizes(
            args.vocab, args.hidden, args.layers, args.heads, kv_heads, args.ffn, args.tied
        )
        model = llama_torch.Llama(sizes, args.sequence)
    return model, model.s.vocab, model, lambda: model.head


def teacher_ids(n, vocab):
    """Ids [n, K] without repeats in a row, and a distribution over them, uniform among all."""
    ids = torch.empty(n, args.draws, dtype=torch.int64)
    for row in ids:
        drawn = torch.randint(vocab, (2 * args.draws,)).unique()
        while len(drawn) < args.draws:
            drawn = torch.cat([drawn, torch.randint(vocab, (args.draws,))]).unique()
        row.copy_(drawn[torch.randperm(len(drawn))[: args.draws]].sort().values)
    p = torch.distributions.Exponential(1.0).sample((n, args.draws))
    return ids, p / p.sum(dim=-1, keepdim=True)


def make_data(vocab):
    """Ids [B, T], the rows that are supervised [B * T], and the targets of every row."""
    ids = torch.randint(vocab, (args.batch, args.sequence + 1))
    masked = min(round(args.masked * args.sequence), args.sequence - 1)
    supervised = (torch.arange(args.sequence) >= masked).repeat(args.batch)
    if args.loss == "ce":
        labels = ids[:, 1:].reshape(-1).clone()
        labels[~supervised] = heads.IGNORED
        targets = [labels]
    elif args.loss == "dense_kd":
        # Filled in chunks, so that the peak of memory is the training's and not this preparation's.
        p = torch.empty(supervised.numel(), vocab)
        p_log_p = torch.empty(supervised.numel())
        for rows, sums in zip(p.split(64), p_log_p.split(64)):
            torch.softmax(3.0 * torch.randn_like(rows), dim=-1, out=rows)
            sums.copy_(torch.special.xlogy(rows, rows).sum(dim=-1))
        targets = [p, p_log_p]
    else:
        at, p = teacher_ids(supervised.numel(), vocab)
        targets = [at, p, torch.special.xlogy(p, p).sum(dim=-1)]
    return ids[:, :-1].contiguous(), supervised, targets


def make_optimizer(parameters):
    """A function that clips, steps and clears the gradients."""
    kind = {"fused": True} if args.optimizer == "fused" else {"foreach": True}
    adamw = torch.optim.AdamW(parameters, lr=3e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, **kind)

    def clip_and_step():
        clip_grad_norm_(parameters, 1.0, foreach=True)
        adamw.step()

    update = torch.compile(clip_and_step) if args.optimizer == "compiled" else clip_and_step

    def optimise():
        update()
        adamw.zero_grad(set_to_none=True)

    return optimise


def main():
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    if args.loss != "ce" and args.masked:
        raise SystemExit("--masked goes with --loss ce")
    imports = common.resident_bytes()
    model, vocab, hidden, head_weight = make_model()
    parameters = list(model.parameters())
    torch.manual_seed(2)
    ids, supervised, targets = make_data(vocab)
    n = int(supervised.sum())
    head = heads.make_head(args.head, args.loss, args.chunk, args.compile)
    kept = supervised.nonzero().squeeze(1) if args.skip_masked else None
    if kept is not None:
        targets = [t[kept] for t in targets]

    def loss_of(ids, *targets):
        h = hidden(ids)
        return head(h if kept is None else h[kept], head_weight(), n, *targets)

    if args.compile and args.head == "full":
        loss_of = torch.compile(loss_of)
    elif args.compile:
        hidden = torch.compile(hidden)
    optimise = make_optimizer(parameters)
    losses = []

    def step():
        loss = loss_of(ids, *targets)
        loss.backward()
        optimise()
        losses.append(loss.item())

    seconds, memory = common.time_steps(step, args.steps)
    common.report(
        args,
        "train",
        "torch" if args.implementation == "own" else "transformers",
        {"torch": torch.__version__},
        args.batch * args.sequence,
        seconds,
        memory,
        imports_resident_bytes=imports,
        parameters=sum(p.numel() for p in parameters),
        supervised_tokens_per_step=n,
        first_loss=losses[0],
        last_loss=losses[-1],
    )


if __name__ == "__main__":
    main()

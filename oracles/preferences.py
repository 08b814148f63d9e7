"""Values and gradients of TRL's DPO loss (`sigmoid`), for crates/distill/tests/preferences.rs.

    python oracles/preferences.py > crates/distill/tests/data/preferences.json

TRL's own `DPOTrainer._compute_loss` is run in f64 on given log-probabilities: the model is a stand-in that returns
them, everything behind it is TRL's.
"""

import json
from collections import defaultdict
from types import SimpleNamespace

import torch
import trl
from trl import DPOTrainer


class Given:
    """A model whose log-probabilities are given."""

    training = True

    def __init__(self, logprobs):
        self.logprobs = logprobs

    def __call__(self, **_):
        zeros = torch.zeros_like(self.logprobs)
        return SimpleNamespace(
            log_probs=self.logprobs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), aux_loss=None
        )


def trl_loss(beta, logprobs, mask, reference):
    leaf = logprobs.clone().requires_grad_()
    model = Given(leaf * mask)
    metrics = {"train": defaultdict(list)}
    trainer = SimpleNamespace(
        model=model,
        accelerator=SimpleNamespace(
            device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda m: m
        ),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=0.0,
        use_weighting=False,
        _metrics=metrics,
        _total_train_tokens=0,
        _tp_size=1,
    )
    n = mask.shape[0]
    shifted = torch.cat([torch.zeros(n, 1), mask], dim=1)
    inputs = {
        "input_ids": torch.ones(n, mask.shape[1] + 1, dtype=torch.long),
        "attention_mask": torch.ones(n, mask.shape[1] + 1, dtype=torch.long),
        "completion_mask": shifted.long(),
        "ref_chosen_logps": reference[: n // 2],
        "ref_rejected_logps": reference[n // 2 :],
    }
    loss = DPOTrainer._compute_loss(trainer, model, inputs, False)
    loss.backward()
    of = {key: values[-1] for key, values in metrics["train"].items() if key.startswith("rewards/")}
    return loss.item(), leaf.grad, of


def case(seed, beta, sizes):
    """`sizes` is [(tokens of the chosen reply, of the rejected one)]."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [chosen for chosen, _ in sizes] + [rejected for _, rejected in sizes]
    width = max(lengths)
    # f32 values, so that both sides start from the same numbers.
    draw = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float32).double()
    logprobs = -4 * draw(len(lengths), width)
    mask = torch.tensor([[1.0 if t < n else 0.0 for t in range(width)] for n in lengths], dtype=torch.float64)
    reference = (logprobs * mask).sum(dim=1) + 6 * (draw(len(lengths)) - 0.5)
    loss, gradient, metrics = trl_loss(beta, logprobs, mask, reference)
    rows = lambda values: [[values[r, t].item() for t in range(n)] for r, n in enumerate(lengths)]
    n = len(sizes)
    pair = lambda values: [[values[i], values[n + i]] for i in range(n)]
    return {
        "beta": beta,
        "logprobs": pair(rows(logprobs)),
        "reference": pair(reference.tolist()),
        "loss": loss,
        "gradients": pair(rows(gradient)),
        "accuracy": metrics["rewards/accuracies"],
        "margin": metrics["rewards/margins"],
    }


cases = [case(i, beta, sizes) for i, (beta, sizes) in enumerate([
    (0.1, [(3, 5)]),
    (0.1, [(4, 2), (1, 1), (6, 3)]),
    (0.5, [(2, 7), (5, 5)]),
    (2.0, [(1, 4), (3, 1), (2, 2), (6, 6)]),
])]
print(json.dumps({"trl": trl.__version__, "torch": torch.__version__.split("+")[0], "cases": cases}))

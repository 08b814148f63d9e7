#!/usr/bin/env python3
"""Golden values and gradients of the losses across tokenizers, by f64 torch autograd and by TRL's own code.

Writes  crates/distill/tests/golden/alm.json and crates/kernels/tests/golden/two_vocabularies.json
Run     VENV/bin/python oracles/cross_tokenizer.py   (VENV made by oracles/install.sh)
        Needs torch and trl; seconds on a CPU, deterministic.

alm   A = log P of the teacher, B = log Q of the student, tau the temperature, 1e-6 taken off both:
      a = (A - 1e-6) / tau, b likewise; tau * KL(Bernoulli(e^a) || Bernoulli(e^b)), and its slope by B.
uld   tau^2 * sum |p_sorted - q_sorted|, zero-padded; p = softmax(t / tau), q = softmax(z / tau).
gold  tau^2 * (w * phi over pairs of ids that share a string + (1 - w) * uld over the other ids), where w is the share of
      the teacher's ids that are in a pair and phi is forward KL, JSD or reverse KL by beta: TRL's default weights.

`uld` and `gold` are TRL's own ULDLoss, called with one aligned position; TRL has no tau^2, which is multiplied on.
"""
import importlib.metadata
import json
import pathlib
import types

import torch
from trl.experimental.gold.gold_trainer import ULDLoss

ROOT = pathlib.Path(__file__).resolve().parent.parent
ALM = ROOT / "crates/distill/tests/golden/alm.json"
UNEQUAL = ROOT / "crates/kernels/tests/golden/two_vocabularies.json"
F64 = torch.float64
LESS = 1e-6

torch.set_num_threads(1)


def alm(teacher, student, tau):
    """By torch.distributions, whose formula is not ours: logits of each Bernoulli."""
    a, b = (teacher - LESS) / tau, (student - LESS) / tau
    p, q = (torch.distributions.Bernoulli(logits=x - torch.log(-torch.expm1(x))) for x in (a, b))
    return tau * torch.distributions.kl_divergence(p, q)


def alm_cases():
    cases = []
    for tau in (1.0, 8.0, 100.0):
        for a in (-0.001, -0.25, -1.5, -20.0):
            for b in (-0.0005, -0.03125, -0.75, -1.5, -6.0, -35.0):
                student = torch.tensor(b, dtype=F64, requires_grad=True)
                loss = alm(torch.tensor(a, dtype=F64), student, tau)
                (slope,) = torch.autograd.grad(loss, student)
                cases.append({"temperature": tau, "teacher": a, "student": b, "loss": loss.item(), "slope": slope.item()})
    return cases


class Words:
    """A tokenizer as far as ULDLoss looks at it: token strings by id."""

    def __init__(self, words):
        self.words = words

    def get_vocab(self):
        return {word: i for i, word in enumerate(self.words)}


def trl_loss(beta, student_words, teacher_words, tau):
    config = types.SimpleNamespace(
        uld_crossentropy_weight=0.0,
        uld_distillation_weight=1.0,
        uld_student_temperature=tau,
        uld_teacher_temperature=tau,
        uld_skip_student_eos=False,
        uld_skip_teacher_eos=False,
        use_extended_uld=True,
        uld_token_merge_strategy="observed",
        uld_use_hybrid_loss=beta is not None,
        uld_hybrid_matched_weight=None,
        uld_hybrid_unmatched_weight=None,
        beta=beta,
    )
    return ULDLoss(config, Words(student_words), Words(teacher_words))


def by_trl(loss, z, t):
    """One position with the same byte span on both sides. `observed` reads the logits at the labels' own positions."""
    ids, offsets = torch.zeros(1, 1, dtype=torch.long), torch.tensor([[[0, 1]]])
    return loss(z[None, None], t[None, None], ids, ids, ids, ids, offsets, offsets)


def short(x):
    """Numbers of few digits that f32 holds, so that both sides read the same."""
    return (x * 64).round() / 64


def distinct(size, gen):
    """Logits of which no two are equal: at a tie, a sort has no gradient of its own."""
    while True:
        z = short(2 * torch.randn(size, generator=gen, dtype=F64))
        if len(z.unique()) == size:
            return z


def digits(x):
    return [digits(y) for y in x] if isinstance(x, list) else float(f"{x:.10g}") if isinstance(x, float) else x


def vocabulary_cases(gen):
    cases = []
    golden = ([0.5, -1, 2, 0, 0.3], [1, 0, 1.5, -2, 0.7])
    shapes = [(5, 5, 2), (7, 4, 0), (4, 9, 3), (12, 12, 12), (40, 31, 20)]
    for n, m, n_pairs in shapes:
        pairs = list(zip(torch.randperm(n, generator=gen)[:n_pairs].tolist(), torch.randperm(m, generator=gen)[:n_pairs].tolist()))
        student, teacher = [f"s{j}" for j in range(n)], [f"t{i}" for i in range(m)]
        for j, i in pairs:
            student[j] = teacher[i] = f"both{i}"
        z, t = distinct(n, gen), distinct(m, gen)
        if (n, m) == (5, 5):
            z, t = (torch.tensor(x, dtype=F64) for x in golden)
        for tau in (1.0, 2.0):
            for beta in (None, 0.0, 0.25, 0.5, 1.0) if pairs else (None,):
                loss = trl_loss(beta, student, teacher, tau)
                moving = z.clone().requires_grad_(True)
                value = tau * tau * by_trl(loss, moving, t)
                (grad,) = torch.autograd.grad(value, moving)
                cases.append(
                    {
                        "beta": beta,
                        "temperature": tau,
                        "pairs": [list(pair) for pair in pairs],
                        "logits": z.tolist(),
                        "teacher_logits": t.tolist(),
                        "loss": digits(value.item()),
                        "grad": digits(grad.tolist()),
                    }
                )
    assert abs(cases[0]["loss"] - 0.4274502) < 5e-8, "the golden row of `uld`"
    return cases


def write(path, doc):
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"written_by": "oracles/cross_tokenizer.py", "torch": torch.__version__.split("+")[0]}
    head["trl"] = importlib.metadata.version("trl")
    parts = [f'\n "{key}": {json.dumps(value)}' for key, value in head.items()]
    for key, rows in doc.items():
        parts.append(f'\n "{key}": [\n  ' + ",\n  ".join(json.dumps(row) for row in rows) + "\n ]")
    path.write_text("{" + ",".join(parts) + "\n}\n")
    print(f"{path.name}: {path.stat().st_size} bytes")


def main():
    write(ALM, {"alm": alm_cases()})
    write(UNEQUAL, {"cases": vocabulary_cases(torch.Generator().manual_seed(20261124))})


if __name__ == "__main__":
    main()

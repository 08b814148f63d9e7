#!/usr/bin/env python3
"""Golden values and gradients of the losses across tokenizers, by f64 torch autograd and by TRL's own code.

Writes  crates/distill/tests/golden/alm.json
Run     VENV/bin/python oracles/cross_tokenizer.py   (VENV made by oracles/install.sh)
        Needs torch; seconds on a CPU, deterministic.

alm   A = log P of the teacher, B = log Q of the student, tau the temperature, 1e-6 taken off both:
      a = (A - 1e-6) / tau, b likewise; tau * KL(Bernoulli(e^a) || Bernoulli(e^b)), and its slope by B.
"""
import json
import pathlib

import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
ALM = ROOT / "crates/distill/tests/golden/alm.json"
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


def write(path, doc):
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"written_by": "oracles/cross_tokenizer.py", "torch": torch.__version__.split("+")[0]}
    parts = [f'\n "{key}": {json.dumps(value)}' for key, value in head.items()]
    for key, rows in doc.items():
        parts.append(f'\n "{key}": [\n  ' + ",\n  ".join(json.dumps(row) for row in rows) + "\n ]")
    path.write_text("{" + ",".join(parts) + "\n}\n")
    print(f"{path.name}: {path.stat().st_size} bytes")


def main():
    write(ALM, {"alm": alm_cases()})


if __name__ == "__main__":
    main()

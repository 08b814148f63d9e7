#!/usr/bin/env python3
"""Golden values and gradients of divergences from several teachers, by f64 torch autograd.

Writes  crates/kernels/tests/golden/several_teachers.json
Run     VENV/bin/python oracles/several_teachers.py [OUT_FILE]   (VENV made by oracles/install.sh)
        Needs torch; seconds on a CPU, deterministic.

p = sum_i w_i softmax(h_i W_i^T) over the first n_ids ids that all have, the weights w divided by their sum. Each loss is
tau^2 * D(softmax(log p / tau), softmax(h W^T / tau)), so the temperature is the mixture's own.
"""
import json
import pathlib
import sys

import torch

from divergences import F64, digits, phi, short

OUT = pathlib.Path(__file__).resolve().parent.parent / "crates/kernels/tests/golden/several_teachers.json"
LOSSES = [("forward_kl", 0.0), ("reverse_kl", 0.0), ("jsd", 0.25), ("skew_kl", 0.125), ("tvd", 0.0)]


def case(rows, n_ids, student, teachers, gen):
    """`student` is (width, table), a teacher (width, table, weight)."""
    numbers = lambda *shape: short(torch.randn(*shape, generator=gen, dtype=F64))
    width, table = student
    hidden, head = numbers(rows, width), numbers(table, width)
    given = [(numbers(rows, width), numbers(table, width), weight) for width, table, weight in teachers]
    total = sum(weight for _, _, weight in given)
    p = sum(w / total * torch.softmax((h @ m.T)[:, :n_ids], -1) for h, m, w in given)
    values = []
    for tau in (1.0, 2.0):
        softened = torch.softmax(p.log() / tau, -1)
        for name, parameter in LOSSES:
            h, m = hidden.clone().requires_grad_(True), head.clone().requires_grad_(True)
            q = torch.softmax((h @ m.T)[:, :n_ids] / tau, -1)
            losses = torch.stack([tau * tau * phi(name, parameter, softened[r], q[r]) for r in range(rows)])
            dh, dm = torch.autograd.grad(losses.sum(), (h, m))
            values.append(
                {
                    "divergence": name,
                    "parameter": parameter,
                    "temperature": tau,
                    "losses": losses.tolist(),
                    "dhidden": dh.flatten().tolist(),
                    "dhead": dm.flatten().tolist(),
                }
            )
    return {
        "rows": rows,
        "n_ids": n_ids,
        "hidden": hidden.flatten().tolist(),
        "head": head.flatten().tolist(),
        "teachers": [
            {"width": h.shape[1], "hidden": h.flatten().tolist(), "head": m.flatten().tolist(), "weight": w}
            for h, m, w in given
        ],
        "log_p": p.log().flatten().tolist(),
        "values": values,
    }


def main():
    torch.set_num_threads(1)
    gen = torch.Generator().manual_seed(20261125)
    cases = [
        case(3, 11, (4, 11), [(5, 11, 1.0), (3, 11, 1.0)], gen),
        # Tables of four sizes with eleven ids in common.
        case(2, 11, (4, 12), [(3, 13, 2.0), (5, 11, 0.5), (4, 14, 1.5)], gen),
    ]
    doc = {"written_by": "oracles/several_teachers.py", "torch": torch.__version__.split("+")[0], "cases": digits(cases)}
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    out.write_text(json.dumps(doc) + "\n")
    print(f"{out.name}: {len(cases)} cases, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()

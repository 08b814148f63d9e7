#!/usr/bin/env python3
"""Golden values and logit gradients of the distillation losses, by f64 torch autograd.

Writes  crates/kernels/tests/golden/losses.json
Run     VENV/bin/python oracles/losses.py [OUT_FILE]        (VENV made by oracles/install.sh)
        Needs only torch. Takes a few seconds; the output is deterministic.

Formulas (z = student logits, tau = temperature, q = softmax(z / tau); the teacher's
distribution p = softmax(t / tau) is given in the file already softened):

  cross_entropy     tau^2 * -log q[y]                              target_ids = [y], target_probs = [1]
  forward_kl        tau^2 * sum_i p_i (log p_i - log q_i)          all ids
  sparse_sampled    tau^2 * (-sum_i (c_i / N) log q_i - H(p))      c = counts of N draws from p,
                    target_probs = c / N, H(p) = teacher_entropy (entropy of the full p)
  topk_drop         tau^2 * sum_{i in K} p_i (log p_i - log q_i)   no renormalisation, can be < 0
  topk_bucket       topk_drop + tau^2 * P (log P - log Q)          P = 1 - sum_K p, Q = 1 - sum_K q
  topk_uniform      tau^2 * sum_i p~_i (log p~_i - log q_i)        p~ = p on K, P / (V - K) elsewhere

With K = V the tail is empty (tail_mass = 0 exactly) and its term is left out.
"""
import json
import math
import pathlib
import sys

import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "crates/kernels/tests/golden/losses.json"
F64 = torch.float64
HIDDEN = 5
ROWS = 6

torch.set_num_threads(1)


def log_q(z, tau):
    return torch.log_softmax(z / tau, dim=-1)


def xlogx_y(p, lq):
    """sum p (log p - lq), with 0 log 0 = 0."""
    keep = p > 0
    return (p[keep] * (p[keep].log() - lq[keep])).sum()


def entropy(p):
    keep = p > 0
    return -(p[keep] * p[keep].log()).sum()


def loss_of(kind, z, tau, ids, probs, teacher_entropy, tail_mass):
    lq = log_q(z, tau)
    v = z.numel()
    at = lq[ids]
    if kind == "cross_entropy":
        value = -(probs * at).sum()
    elif kind == "sparse_sampled":
        value = -(probs * at).sum() - teacher_entropy
    elif kind in ("forward_kl", "topk_drop"):
        value = xlogx_y(probs, at)
    elif kind == "topk_bucket":
        value = xlogx_y(probs, at)
        if tail_mass > 0:
            tail = torch.ones(v, dtype=torch.bool)
            tail[ids] = False
            value = value + tail_mass * (math.log(tail_mass) - torch.logsumexp(lq[tail], 0))
    elif kind == "topk_uniform":
        dense = torch.zeros(v, dtype=F64)
        if tail_mass > 0:
            dense[:] = tail_mass / (v - len(ids))
        dense[ids] = probs
        value = xlogx_y(dense, lq)
    else:
        raise ValueError(kind)
    return tau * tau * value


TAIL = {
    "cross_entropy": "none",
    "forward_kl": "none",
    "sparse_sampled": "none",
    "topk_drop": "drop",
    "topk_bucket": "bucket",
    "topk_uniform": "uniform",
}
K_OF = {7: [1, 2, 3, 5, 6, 7], 40: [1, 2, 4, 8, 20, 40]}
DRAWS = [1, 4, 12, 50, 50, 200]


def rows_for(v, gen):
    weight = torch.randn(v, HIDDEN, generator=gen, dtype=F64)
    out = []
    for row in range(ROWS):
        hidden = torch.randn(HIDDEN, generator=gen, dtype=F64)
        logits = weight @ hidden
        teacher = logits * 0.6 + 1.5 * torch.randn(v, generator=gen, dtype=F64)
        label = int(torch.randint(v, (1,), generator=gen))
        for tau in (1.0, 2.0):
            p = torch.softmax(teacher / tau, dim=-1)
            h = entropy(p).item()
            k = K_OF[v][row]
            n = DRAWS[row]
            draws = torch.multinomial(p, n, replacement=True, generator=gen)
            counts = torch.bincount(draws, minlength=v)
            sampled = counts.nonzero().flatten()
            top = torch.topk(p, k)
            everything = torch.arange(v)
            for kind in TAIL:
                extra = {}
                if kind == "cross_entropy":
                    ids, probs = torch.tensor([label]), torch.ones(1, dtype=F64)
                elif kind == "forward_kl":
                    ids, probs = everything, p
                elif kind == "sparse_sampled":
                    ids, probs = sampled, counts[sampled].to(F64) / n
                    extra = {"counts": counts[sampled].tolist(), "n": n}
                else:
                    ids, probs = top.indices, top.values
                tail_mass = 0.0
                if TAIL[kind] != "none" and len(ids) < v:
                    tail_mass = 1.0 - probs.sum().item()
                z = logits.clone().requires_grad_(True)
                loss = loss_of(kind, z, tau, ids, probs, h, tail_mass)
                (grad,) = torch.autograd.grad(loss, z)
                out.append(
                    {
                        "kind": kind,
                        "vocab": v,
                        "row": row,
                        "temperature": tau,
                        "tail": TAIL[kind],
                        "logits": logits.tolist(),
                        "target_ids": ids.tolist(),
                        "target_probs": probs.tolist(),
                        **extra,
                        "tail_mass": tail_mass,
                        "teacher_entropy": h,
                        "loss": loss.item(),
                        "grad": grad.tolist(),
                    }
                )
    return out


def divergence_table():
    """The closed-form table of the research notes, with gradients, as a check and as goldens."""
    s0 = torch.tensor([0.5, -1.0, 2.0, 0.0, 0.3], dtype=F64)
    t = torch.tensor([1.0, 0.0, 1.5, -2.0, 0.7], dtype=F64)
    p = torch.softmax(t, -1)

    def kl(a, b):
        return (a * (a.log() - b.log())).sum()

    def jsd(beta):
        def f(s):
            q = torch.softmax(s, -1)
            m = beta * p + (1 - beta) * q
            return beta * kl(p, m) + (1 - beta) * kl(q, m)

        return f

    def q_of(s):
        return torch.softmax(s, -1)

    def tau2(s):
        return 4.0 * kl(torch.softmax(t / 2, -1), torch.softmax(s / 2, -1))

    def top2(s, renorm):
        q = q_of(s)
        ids = torch.topk(p, 2).indices
        if renorm:
            return kl(p[ids] / p[ids].sum(), q[ids] / q[ids].sum())
        pt, qt = 1 - p[ids].sum(), 1 - q[ids].sum()
        return kl(p[ids], q[ids]) + pt * (pt.log() - qt.log())

    def uld(s):
        return (p.sort(descending=True).values - q_of(s).sort(descending=True).values).abs().sum()

    table = {
        "forward_kl": (lambda s: kl(p, q_of(s)), 0.1905367),
        # The notes print .2096362; plain f64 arithmetic without torch gives .2096356 as well.
        "reverse_kl": (lambda s: kl(q_of(s), p), 0.2096356),
        "jsd_beta_0.1": (jsd(0.1), 0.0170038),
        "jsd_beta_0.5": (jsd(0.5), 0.0471983),
        "jsd_beta_0.9": (jsd(0.9), 0.0181535),
        "skl_alpha_0.1": (lambda s: kl(p, 0.1 * p + 0.9 * q_of(s)), 0.1520107),
        "srkl_alpha_0.1": (lambda s: kl(q_of(s), 0.9 * p + 0.1 * q_of(s)), 0.1582619),
        "tvd": (lambda s: 0.5 * (p - q_of(s)).abs().sum(), 0.2674974),
        "uld": (uld, 0.4274502),
        "tau2_forward_kl_tau_2": (tau2, 0.3133504),
        "top2_bucket": (lambda s: top2(s, False), 0.0870559),
        "top2_renormalised": (lambda s: top2(s, True), 0.1048770),
    }
    out = {}
    for name, (f, want) in table.items():
        s = s0.clone().requires_grad_(True)
        loss = f(s)
        (grad,) = torch.autograd.grad(loss, s)
        assert abs(loss.item() - want) < 6e-8, (name, loss.item(), want)
        out[name] = {"loss": loss.item(), "grad": grad.tolist()}
    q = q_of(s0)
    closed = {
        "forward_kl": q - p,
        "reverse_kl": q * ((q / p).log() - kl(q, p)),
        "tau2_forward_kl_tau_2": 2 * (torch.softmax(s0 / 2, -1) - torch.softmax(t / 2, -1)),
    }
    for name, want in closed.items():
        got = torch.tensor(out[name]["grad"], dtype=F64)
        assert (got - want).abs().max() < 1e-12, name
    return {"student_logits": s0.tolist(), "teacher_logits": t.tolist(), "values": out}


def check(rows):
    """Identities that hold whatever the generator drew."""
    by = {(r["kind"], r["vocab"], r["row"], r["temperature"]): r for r in rows}
    for (kind, v, row, tau), r in by.items():
        grad = torch.tensor(r["grad"], dtype=F64)
        assert abs(grad.sum().item()) < 1e-12, (kind, v, row)
        if kind == "topk_bucket":
            full = by["forward_kl", v, row, tau]
            assert r["loss"] <= full["loss"] + 1e-12
            if len(r["target_ids"]) == v:
                assert abs(r["loss"] - full["loss"]) < 1e-12
        if kind == "topk_drop":
            z = torch.tensor(r["logits"], dtype=F64)
            q = torch.softmax(z / tau, -1)
            want = sum(r["target_probs"]) * q
            want[r["target_ids"]] -= torch.tensor(r["target_probs"], dtype=F64)
            assert (grad - tau * want).abs().max() < 1e-12


def main():
    gen = torch.Generator().manual_seed(20261123)
    rows = rows_for(7, gen) + rows_for(40, gen)
    check(rows)
    doc = {
        "written_by": "oracles/losses.py",
        "torch": torch.__version__.split("+")[0],
        "divergences": divergence_table(),
        "rows": rows,
    }
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    out.parent.mkdir(parents=True, exist_ok=True)
    # One row a line: readable diffs, and still small.
    lines = ",\n  ".join(json.dumps(r) for r in doc.pop("rows"))
    head = json.dumps(doc, indent=1)
    out.write_text(head[:-2] + ',\n "rows": [\n  ' + lines + "\n ]\n}\n")
    back = json.loads(out.read_text())
    assert back["rows"] == rows
    print(f"{out.name}: {len(rows)} rows, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()

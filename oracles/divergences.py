#!/usr/bin/env python3
"""Golden values and logit gradients of every divergence, by f64 torch autograd and by TRL's own code.

Writes  crates/kernels/tests/golden/divergences.json
Run     VENV/bin/python oracles/divergences.py [OUT_FILE]   (VENV made by oracles/install.sh)
        Needs torch, and the package trl for its `generalized_jsd_loss`; seconds on a CPU, deterministic.

z student logits, t teacher logits, tau temperature, q = softmax(z / tau), p = softmax(t / tau). Each loss
is tau^2 * sum over outcomes of phi(p, q):

  forward_kl          p log(p/q)                          reverse_kl       q log(q/p)
  jsd (beta)          beta p log(p/m) + (1-beta) q log(q/m),               m = beta p + (1-beta) q
  skew_kl (alpha)     p log(p/m),  m = alpha p + (1-alpha) q
  skew_reverse_kl     q log(q/m),  m = (1-alpha) p + alpha q
  tvd                 |p - q| / 2

Outcomes, by form (K the stored ids: the most probable under p, with their p):
  dense    every id
  drop     the ids of K; q is normalised over all ids, nothing is renormalised
  bucket   the ids of K, and one more with 1 - sum_K p and 1 - sum_K q
  renormalise  the ids of K with p / sum_K p; q is normalised over all ids (forward_kl only)
  uniform  every id, p outside K being (1 - sum_K p) / (V - K)

`trl` holds what TRL computes for the same logits, loss and gradient of the mean over rows. TRL's beta is
the teacher's share of the mixture, as here; at 0 and 1 it computes forward and reverse KL; no tau^2.
"""
import ast
import importlib.metadata
import importlib.util
import json
import pathlib
import sys

import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "crates/kernels/tests/golden/divergences.json"
F64 = torch.float64

torch.set_num_threads(1)

DIVERGENCES = [
    ("forward_kl", 0.0),
    ("reverse_kl", 0.0),
    ("jsd", 0.125),
    ("jsd", 0.5),
    ("jsd", 0.875),
    ("skew_kl", 0.125),
    ("skew_kl", 0.5),
    ("skew_reverse_kl", 0.125),
    ("skew_reverse_kl", 0.5),
    ("tvd", 0.0),
]
FORMS = ["dense", "drop", "bucket", "uniform", "renormalise"]


def kl(a, b):
    return (a * (a.log() - b.log())).sum()


def phi(name, parameter, p, q):
    if name == "forward_kl":
        return kl(p, q)
    if name == "reverse_kl":
        return kl(q, p)
    if name == "jsd":
        m = parameter * p + (1 - parameter) * q
        return parameter * kl(p, m) + (1 - parameter) * kl(q, m)
    if name == "skew_kl":
        return kl(p, parameter * p + (1 - parameter) * q)
    if name == "skew_reverse_kl":
        return kl(q, (1 - parameter) * p + parameter * q)
    if name == "tvd":
        return 0.5 * (p - q).abs().sum()
    raise ValueError(name)


def outcomes(form, p, q, ids):
    """What the divergence is taken of: (p, q) per outcome."""
    v, k = len(p), len(ids)
    if form == "dense":
        return p, q
    if form == "drop" or k == v:
        return p[ids], q[ids]
    if form == "renormalise":
        return p[ids] / p[ids].sum(), q[ids]
    rest = 1 - p[ids].sum()
    if form == "bucket":
        return torch.cat([p[ids], rest[None]]), torch.cat([q[ids], (1 - q[ids].sum())[None]])
    spread = torch.full((v,), rest.item() / (v - k), dtype=F64)
    spread[ids] = p[ids]
    return spread, q


def short(x):
    """Numbers of few digits that f32 holds, so that both sides read the same."""
    return (x * 64).round() / 64


def value_and_gradient(f, z):
    z = z.clone().requires_grad_(True)
    loss = f(z)
    (grad,) = torch.autograd.grad(loss, z)
    return loss.item(), grad.tolist()


def digits(x):
    """Ten digits are more than f32 has, and keep the file small."""
    if isinstance(x, list):
        return [digits(y) for y in x]
    return {k: digits(y) for k, y in x.items()} if isinstance(x, dict) else float(f"{x:.10g}") if isinstance(x, float) else x


def case(v, k, tau, gen):
    z = short(2 * torch.randn(v, generator=gen, dtype=F64))
    t = short(0.5 * z + 1.5 * torch.randn(v, generator=gen, dtype=F64))
    p = torch.softmax(t / tau, -1)
    ids = torch.topk(p, k).indices
    values = []
    for name, parameter in DIVERGENCES:
        for form in FORMS:
            if form == "renormalise" and name != "forward_kl":
                continue

            def loss(z, name=name, parameter=parameter, form=form):
                a, b = outcomes(form, p, torch.softmax(z / tau, -1), ids)
                return tau * tau * phi(name, parameter, a, b)

            value, grad = value_and_gradient(loss, z)
            values.append(
                {"divergence": name, "parameter": parameter, "form": form, "loss": value, "grad": grad}
            )
    return {
        "vocab": v,
        "temperature": tau,
        "logits": z.tolist(),
        "teacher_logits": t.tolist(),
        "ids": ids.tolist(),
        "probs": p[ids].tolist(),
        "values": values,
    }


def trl_loss():
    """TRL's function: imported, or where the package does not import here, taken out of its source."""
    version = importlib.metadata.version("trl")
    try:
        from trl.experimental.gkd import GKDTrainer

        return GKDTrainer.generalized_jsd_loss, version
    except Exception as error:
        print(f"trl {version} does not import here ({type(error).__name__}); its function is read from its source")
    package = pathlib.Path(importlib.util.find_spec("trl").origin).parent
    source = (package / "experimental/gkd/gkd_trainer.py").read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name == "generalized_jsd_loss":
            node.decorator_list = []
            scope = {"torch": torch, "F": torch.nn.functional}
            exec(compile(ast.Module([node], []), "gkd_trainer.py", "exec"), scope)
            return scope["generalized_jsd_loss"], version
    raise RuntimeError(f"trl {version} has no generalized_jsd_loss where it was")


def trl_cases(gen):
    loss_of, version = trl_loss()
    out = []
    for beta in (0.0, 0.125, 0.5, 0.875, 1.0):
        for tau in (1.0, 2.0):
            rows, v = 3, 9
            z = short(2 * torch.randn(1, rows, v, generator=gen, dtype=F64))
            t = short(2 * torch.randn(1, rows, v, generator=gen, dtype=F64))
            # The last row carries no label and does not count.
            labels = torch.tensor([[1, 2, -100]])
            loss, grad = value_and_gradient(lambda z: loss_of(z, t, labels, beta, tau), z)
            out.append(
                {
                    "beta": beta,
                    "temperature": tau,
                    "logits": z[0].tolist(),
                    "teacher_logits": t[0].tolist(),
                    "loss": loss,
                    "grad": grad[0],
                }
            )
    return version, out


def check(cases):
    for c in cases:
        by = {(v["divergence"], v["parameter"], v["form"]): v for v in c["values"]}
        for (name, parameter, form), v in by.items():
            dense = by[name, parameter, "dense"]
            assert abs(sum(v["grad"])) < 1e-12, (name, form)
            if form == "bucket":
                # Coarser distributions are never further apart.
                assert v["loss"] <= dense["loss"] + 1e-12, (name, form)
            if len(c["ids"]) == c["vocab"]:
                assert abs(v["loss"] - dense["loss"]) < 1e-12, (name, form)


def main():
    gen = torch.Generator().manual_seed(20261124)
    cases = [
        case(v, k, tau, gen) for v, k in ((5, 2), (11, 4), (11, 11), (37, 1), (37, 12)) for tau in (1.0, 2.0)
    ]
    check(cases)
    version, trl = trl_cases(gen)
    doc = {
        "written_by": "oracles/divergences.py",
        "torch": torch.__version__.split("+")[0],
        "trl_version": version,
    }
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = {name: ",\n  ".join(json.dumps(digits(r)) for r in rows) for name, rows in (("cases", cases), ("trl", trl))}
    body = "".join(f',\n "{name}": [\n  {text}\n ]' for name, text in lines.items())
    out.write_text(json.dumps(doc, indent=1)[:-2] + body + "\n}\n")
    assert json.loads(out.read_text())["cases"] == digits(cases)
    print(f"{out.name}: {len(cases)} cases, {len(trl)} by trl {version}, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()

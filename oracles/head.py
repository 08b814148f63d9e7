#!/usr/bin/env python3
"""E7: the head with all logits at once in PyTorch, and in chunks here: memory, time, and the same gradients.

Run     VENV/bin/python oracles/head.py HEAD_EXAMPLE [ROWS VOCABULARY WIDTH]    (VENV made by oracles/install.sh)
        HEAD_EXAMPLE is target/release/examples/head, built by
        cargo build --release -p stillroom-kernels --example head
        4096 × 49152, width 256, by default: some 6 GB of memory for PyTorch, a minute.

`ce` is cross-entropy on labels, `kl` is KL(teacher‖student) from a teacher's own hidden states and head. Each side runs
in a process of its own; memory is the peak resident less what was resident before the first pass, when inputs, weights
and gradients were there already. Prints one JSON object.
"""
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import torch
import torch.nn.functional as F

FILES = ["hidden", "weight", "teacher_hidden", "teacher_weight"]


def of_process(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return 1024 * int(line.split()[1])


def read(folder, name, shape, dtype=torch.float32):
    return torch.from_file(str(folder / name), size=torch.Size(shape).numel(), dtype=dtype).reshape(shape).clone()


def theirs(folder, loss, rows, vocab, width):
    """One process of PyTorch."""
    h, w = read(folder, "hidden", (rows, width)), read(folder, "weight", (vocab, width))
    labels = read(folder, "labels", (rows,), torch.int32).long()
    if loss == "kl":
        th, tw = read(folder, "teacher_hidden", (rows, width)), read(folder, "teacher_weight", (vocab, width))
    h.requires_grad_(True)
    w.requires_grad_(True)
    h.grad, w.grad = torch.ones_like(h), torch.ones_like(w)
    before = of_process("VmRSS:")
    best = float("inf")
    for _ in range(3):
        h.grad.zero_(), w.grad.zero_()
        began = time.monotonic()
        z = h @ w.T
        if loss == "ce":
            value = F.cross_entropy(z, labels)
        else:
            with torch.no_grad():
                log_p = F.log_softmax(th @ tw.T, dim=-1)
            value = F.kl_div(F.log_softmax(z, dim=-1), log_p, reduction="batchmean", log_target=True)
        value.backward()
        best = min(best, time.monotonic() - began)
        found = value.item()
        del z, value
    peak = of_process("VmHWM:") - before
    h.grad.numpy().tofile(folder / "dhidden.theirs")
    w.grad.numpy().tofile(folder / "dweight.theirs")
    print(json.dumps({"loss": found, "seconds": best, "bytes": peak}))


def main():
    if len(sys.argv) > 2 and sys.argv[1] == "--theirs":
        folder, loss, *sizes = sys.argv[2:]
        return theirs(pathlib.Path(folder), loss, *map(int, sizes))
    if len(sys.argv) not in (2, 5):
        sys.exit(__doc__)
    rows, vocab, width = map(int, sys.argv[2:]) if len(sys.argv) == 5 else (4096, 49152, 256)
    gen = torch.Generator().manual_seed(7)
    result = {"rows": rows, "vocabulary": vocab, "width": width, "one_logit_buffer_bytes": 4 * rows * vocab}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name in FILES:
            n = rows if "hidden" in name else vocab
            x = torch.randn(n, width, generator=gen) * (1.0 if "hidden" in name else 3.0 / width**0.5)
            x.numpy().tofile(folder / name)
        torch.randint(vocab, (rows,), generator=gen, dtype=torch.int32).numpy().tofile(folder / "labels")
        sizes = [str(n) for n in (rows, vocab, width)]
        for loss in ("ce", "kl"):
            run = lambda *command: json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            pytorch = run(sys.executable, __file__, "--theirs", str(folder), loss, *sizes)
            ours = run(sys.argv[1], str(folder), loss, *sizes)
            result[loss] = {"pytorch": pytorch, "ours": ours}
            for name, n in (("dhidden", rows), ("dweight", vocab)):
                a, b = (read(folder, f"{name}.{side}", (n, width)).double() for side in ("ours", "theirs"))
                result[loss][f"{name}_relative_difference"] = ((a - b).norm() / b.norm()).item()
    print(json.dumps(result, indent=1))


main()

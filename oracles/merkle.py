#!/usr/bin/env python3
"""Proofs of RFC 6962 trees that hold and that do not, as transparency-dev/merkle (Go) has them in its tests.

Writes  crates/governance/tests/golden/merkle.jsonl
Run     git clone https://github.com/transparency-dev/merkle DIR
        git -C DIR checkout 417fb0c314750d94e53942e9f92e79b6d35915db
        python3 oracles/merkle.py DIR

A row has the tree's sizes, its hashes as hex and whether the proof holds: `inclusion` is of `leaf`, number `index` of `size`
under `root`; `consistency` is of `old` leaves under `old_root` and `size` under `root`. Probes with a hash that is not 32 bytes
long are left out and counted: a digest here has no other length.
"""
import base64
import json
import pathlib
import sys

OUT = pathlib.Path(__file__).resolve().parent.parent / "crates/governance/tests/golden/merkle.jsonl"


def hexed(text):
    return base64.b64decode(text or "").hex()


def row(kind, name, probe):
    what = {"kind": kind, "name": name, "holds": not probe["wantErr"]}
    if kind == "inclusion":
        what |= {"index": probe["leafIdx"], "size": probe["treeSize"]}
        what |= {"leaf": hexed(probe["leafHash"]), "root": hexed(probe["root"])}
    else:
        what |= {"old": probe["size1"], "size": probe["size2"]}
        what |= {"old_root": hexed(probe["root1"]), "root": hexed(probe["root2"])}
    return what | {"proof": [hexed(beside) for beside in probe["proof"] or []]}


def is_of_digests(what):
    hashes = [what[key] for key in ("leaf", "root", "old_root") if key in what] + what["proof"]
    return all(len(text) == 64 for text in hashes)


def main(checkout):
    rows, left_out = [], 0
    for kind in ("inclusion", "consistency"):
        folder = checkout / "testdata" / kind
        for path in sorted(folder.rglob("*.json")):
            what = row(kind, str(path.relative_to(folder).with_suffix("")), json.loads(path.read_text()))
            if is_of_digests(what):
                rows.append(what)
            else:
                left_out += 1
    OUT.write_text("".join(json.dumps(what, separators=(",", ":")) + "\n" for what in rows))
    holding = sum(what["holds"] for what in rows)
    print(f"{len(rows)} probes, {holding} of them hold; {left_out} have a hash of another length")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

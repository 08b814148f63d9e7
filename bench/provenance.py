#!/usr/bin/env python3
"""What proof costs: the share of a run that goes into digests, log, documents and signature, and how long a check takes.

    cargo build --release
    bench/provenance.py run      the quickstart, sampled by `perf record` and its syncs timed by `strace` (5 minutes)
    bench/provenance.py verify   a signed release of 2.1 GB, checked with its files in memory and, as root, without (2 minutes, 7 GB of disk)

Prints one line of JSON. Debian's packages linux-perf and strace; Linux. Nothing else should run meanwhile.

`run` counts samples of the CPU clock in functions that only proof has: SHA-256, HMAC, the governance crate, curves, digests of
batches. Digests by which a run finds what it has done before are counted, too: the two cannot be told apart. What syncs take is
all that the run waits for the disk, with or without proof, so the sum is a bound from above.
"""
import argparse
import json
import pathlib
import re
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
STILLROOM = ROOT / "target/release/stillroom"
QUICKSTART = ROOT / "recipes/quickstart.toml"
PROOF = re.compile(r"sha2|sha256|hmac|stillroom_governance|[Dd]igest|p256|ecdsa|elliptic|primeorder|crypto_bigint")
# 268 million parameters, which learn nothing: only the size matters.
LARGE = """student.hidden_size=1024 student.num_hidden_layers=17 student.num_attention_heads=16 student.num_key_value_heads=8
    student.intermediate_size=4096 train.max_steps=2 train.save_steps=2 train.eval_steps=2 prompts.num_examples=16
    prompts.num_validation=4 evaluate.num_examples=2 evaluate.max_tokens=4 evaluate.controls=[]""".split()


def keyed(folder):
    subprocess.run([STILLROOM, "key", "new", folder / "key"], check=True, capture_output=True)
    return ["--output", folder / "run", "--set", f"release.key={folder / 'key'}", "--quiet"]


def cost(folder):
    samples, syncs = folder / "samples", folder / "syncs"
    tracer = ["strace", "-f", "--seccomp-bpf", "-c", "-w", "-e", "trace=fsync,fdatasync,rename", "-o", syncs]
    sampler = ["perf", "record", "-F", "199", "-e", "cpu-clock", "-o", samples, "--"]
    began = time.monotonic()
    subprocess.run([*tracer, *sampler, STILLROOM, "run", QUICKSTART, *keyed(folder)], check=True, capture_output=True)
    seconds = time.monotonic() - began
    report = ["perf", "report", "-i", samples, "--no-children", "--sort", "symbol", "--percent-limit", "0"]
    lines = subprocess.run([*report, "-F", "sample,symbol", "--stdio"], check=True, capture_output=True, text=True).stdout
    counted = re.findall(r"(?m)^\s*(\d+)\s+\[.\] (.*)$", lines)
    everything = sum(int(n) for n, _ in re.findall(r"(?m)^\s*(\d+)\s+(\[.\]) ", lines))
    proof = sum(int(n) for n, symbol in counted if PROOF.search(symbol))
    waited = float(re.search(r"(?m)^100\.00\s+(\S+)", syncs.read_text()).group(1))
    return {
        "seconds": round(seconds, 1),
        "samples": everything,
        "proof_share_of_cpu": round(proof / everything, 5),
        "syncs_share_of_time": round(waited / seconds, 5),
    }


def check(folder):
    settings = [part for setting in LARGE for part in ("--set", setting)]
    # It has not learned anything, and says so by exit code 1.
    subprocess.run([STILLROOM, "run", QUICKSTART, *keyed(folder), *settings], capture_output=True)
    release = folder / "run/release"
    verify = [STILLROOM, "verify", release, "--public-key", folder / "key.pub"]

    def timed():
        began = time.monotonic()
        subprocess.run(verify, check=True, capture_output=True)
        return round(time.monotonic() - began, 2)

    timed()
    warm = [timed() for _ in range(5)]
    cold = []
    try:
        for _ in range(3):
            subprocess.run(["sync"], check=True)
            pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
            cold.append(timed())
    except PermissionError:
        pass
    size = sum(file.stat().st_size for file in release.rglob("*") if file.is_file())
    return {"bytes": size, "seconds_in_memory": warm, "seconds_from_disk": cold}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "verify"])
    what = parser.parse_args().what
    with tempfile.TemporaryDirectory(dir=ROOT / "target") as folder:
        print(json.dumps({"run": cost, "verify": check}[what](pathlib.Path(folder))))


main()

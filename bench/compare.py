#!/usr/bin/env python3
"""Runs Stillroom and a peer in turn on the same work and says how they compare.

  compare.py --venv VENV --stillroom PATH [--hf DIR] [--gguf FILE] [--gguf-f32 FILE] [--row NAME ...]
             [--threads N] [--runs N] [--steps N] [--try-variants] [--output FILE]

For each row: peer, ours, peer, ours, ... (three runs of each by default), every one a fresh process; medians over
the runs; a Markdown table on stdout, progress on stderr, every measurement and every row as a line of JSON in
--output. A measurement during which other processes took more than a little of the processors is made again.
`--list` names the rows. Standard library only; README.md of this folder says what the rows mean.
"""
import argparse
import datetime
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time

import rows

PEERS = pathlib.Path(__file__).resolve().parent / "peers"
# A measurement that takes longer than this is stuck.
SECONDS_MAX = 3600
TRIAL_STEPS = 3
# Share of all processors' time that others may take beside a measurement.
OTHERS_MAX = 0.04
# How often a disturbed measurement is made again before it is taken as it is, and marked.
REPEATS_MAX = 3


class Failed(Exception):
    """A measurement that did not come about."""


def busy_seconds():
    """Processor time that the machine has spent since it started, all processors together, a hypervisor's included."""
    with open("/proc/stat", encoding="utf-8") as stat:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def children_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_json(command):
    """The JSON object that a process prints on stdout, with `others_share` of the processors beside it."""
    began, busy, own = time.monotonic(), busy_seconds(), children_seconds()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_MAX)
    except subprocess.TimeoutExpired:
        raise Failed(f"no result after {SECONDS_MAX} s: {' '.join(command)}") from None
    if done.returncode != 0:
        raise Failed(f"`{' '.join(command)}` exited {done.returncode}:\n{done.stderr[-2000:]}")
    available = (time.monotonic() - began) * os.cpu_count()
    others = (busy_seconds() - busy) - (children_seconds() - own)
    try:
        result = json.loads(done.stdout)
    except json.JSONDecodeError:
        raise Failed(f"`{' '.join(command)}` printed no JSON:\n{done.stdout[-2000:]}") from None
    if "source" in result.get("model", {}):
        result["model"]["source"] = os.path.basename(result["model"]["source"])
    return {**result, "others_share": round(max(others, 0.0) / available, 4)}


class Bench:
    """What the command line asks for, and the file that everything is written to."""

    def __init__(self, args):
        self.args = args
        self.files = {"hf": args.hf, "gguf": args.gguf, "gguf_f32": args.gguf_f32}
        self.output = open(args.output, "a", encoding="utf-8") if args.output else None

    def write(self, record):
        if self.output:
            self.output.write(json.dumps(record) + "\n")
            self.output.flush()

    def filled(self, arguments):
        """Arguments with `{hf}`, `{gguf}` and `{gguf_f32}` replaced by what the command line names."""
        missing = [name for name in self.files if f"{{{name}}}" in arguments and not self.files[name]]
        if missing:
            raise Failed("needs --" + " and --".join(missing).replace("_", "-"))
        return [self.files.get(a[1:-1], a) if a.startswith("{") else a for a in arguments]

    def common(self, row, steps):
        return ["--threads", str(row.threads or self.args.threads), "--steps", str(steps)]

    def steps(self, row):
        return self.args.steps or row.steps

    def ours(self, arguments, row):
        command = [self.args.stillroom, "bench", *self.filled(arguments), *self.common(row, self.steps(row)), "--json"]
        return run_json(command)

    def peer(self, row, variant, steps=None):
        if not row.script:
            return self.ours(variant.arguments, row)
        python = str(pathlib.Path(self.args.venv) / "bin/python")
        arguments = self.filled([*row.peer, *variant.arguments])
        return run_json([python, "-B", str(PEERS / row.script), *arguments, *self.common(row, steps or self.steps(row))])

    def best_variant(self, row):
        """The first variant, which was the fastest where the rows were written; the fastest here if asked for."""
        if not self.args.try_variants or len(row.variants) == 1:
            return row.variants[0]
        speeds = {}
        for variant in row.variants:
            try:
                result = self.peer(row, variant, TRIAL_STEPS)
            except Failed as failure:
                say(f"  {variant.name}: {failure}")
                continue
            speeds[variant] = result["tokens_per_second"]
            self.write({"row": row.name, "trial": variant.name, "result": result})
            say(f"  {variant.name}: {speeds[variant]:.1f} tokens/s")
        if not speeds:
            raise Failed("no variant of the peer ran")
        return max(speeds, key=speeds.get)

    def undisturbed(self, row, variant, side, run):
        """One measurement, made again while others are busy beside it; the discarded ones are written down too."""
        for repeat in range(REPEATS_MAX + 1):
            result = self.peer(row, variant) if side == "peer" else self.ours(row.ours, row)
            kept = result["others_share"] <= OTHERS_MAX or repeat == REPEATS_MAX
            record = {"row": row.name, "side": side, "run": run, "variant": variant.name, "kept": kept}
            self.write({**record, "result": result})
            others = f"{result['others_share']:.0%} of the processors to others"
            say(f"  {side} {run + 1}: {result['tokens_per_second']:.1f} tokens/s, {others}{'' if kept else ': again'}")
            if kept:
                return result

    def measure(self, row):
        """Peer and ours in turn; the row's summary."""
        self.filled([*row.peer, *row.ours, *row.variants[0].arguments])
        variant = self.best_variant(row)
        results = {"peer": [], "ours": []}
        for i in range(self.args.runs):
            for side in ("peer", "ours"):
                results[side].append(self.undisturbed(row, variant, side, i))
        summary = summarise(row, variant, results["peer"], results["ours"])
        self.write(summary)
        return summary


def say(text):
    print(text, file=sys.stderr, flush=True)


def median_of(results, key):
    """The median over the runs; None where a run lacks the figure."""
    values = [result.get(key) for result in results]
    return None if None in values else statistics.median(values)


def over(a, b):
    return a / b if a and b else None


def summarise(row, variant, peer, ours):
    peer_speed, our_speed = median_of(peer, "tokens_per_second"), median_of(ours, "tokens_per_second")
    peer_memory, our_memory = median_of(peer, "peak_resident_bytes"), median_of(ours, "peak_resident_bytes")
    peak, flops = median_of(ours, "fma_peak_flops"), median_of(ours, "algorithmic_flops_per_step")
    imports = median_of(peer, "imports_resident_bytes")
    peer_step = statistics.median(statistics.median(result["step_seconds"]) for result in peer)
    return {
        "row": row.name,
        "what": row.what,
        "variant": variant.name,
        "threads": ours[0]["threads"],
        "peer_tokens_per_second": peer_speed,
        "tokens_per_second": our_speed,
        "ratio": our_speed / peer_speed,
        "disturbed": max(result["others_share"] for result in peer + ours) > OTHERS_MAX,
        "target_ratio": row.ratio,
        "peer_peak_resident_bytes": peer_memory,
        "peak_resident_bytes": our_memory,
        "memory_ratio": over(our_memory, peer_memory),
        "target_memory_ratio": row.memory,
        # What the peer's libraries take before there is a model, left out.
        "memory_ratio_without_imports": over(our_memory, peer_memory - imports if imports else None),
        "fma_peak_flops": peak,
        "fma_peak_flops_of_each_run": [result["fma_peak_flops"] for result in ours],
        "fma_share": median_of(ours, "fma_share"),
        "target_fma_share": row.share,
        # The same operations in the peer's time: what is left above it is all that there is to win.
        "peer_fma_share": over(flops, peer_step * peak),
    }


def gigabytes(value):
    return "–" if value is None else f"{value / 1e9:.2f} GB"


def against(value, target, at_least):
    """A figure with its target, and whether it holds."""
    if value is None:
        return "–"
    if target is None:
        return f"{value:.2f}"
    holds = value >= target if at_least else value <= target
    return f"{value:.2f} ({'≥' if at_least else '≤'} {target:g}: {'yes' if holds else 'no'})"


HEADS = [
    "row",
    "peer",
    "threads",
    "peer, tokens/s",
    "ours, tokens/s",
    "speed",
    "peer, peak",
    "ours, peak",
    "memory",
    "… without imports",
    "FMA peak",
    "share",
    "peer's share",
]


def table(summaries):
    lines = ["| " + " | ".join(HEADS) + " |", "|---|---|" + "--:|" * (len(HEADS) - 2)]
    for s in summaries:
        cells = [
            s["row"] + (" (disturbed)" if s["disturbed"] else ""),
            s["variant"],
            str(s["threads"]),
            f"{s['peer_tokens_per_second']:,.1f}",
            f"{s['tokens_per_second']:,.1f}",
            against(s["ratio"], s["target_ratio"], True),
            gigabytes(s["peer_peak_resident_bytes"]),
            gigabytes(s["peak_resident_bytes"]),
            against(s["memory_ratio"], s["target_memory_ratio"], False),
            against(s["memory_ratio_without_imports"], None, False),
            f"{s['fma_peak_flops'] / 1e9:.0f} GFLOP/s",
            against(s["fma_share"], s["target_fma_share"], True),
            against(s["peer_fma_share"], None, True),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def first_line(path, starting_with=""):
    try:
        with open(path, encoding="utf-8") as f:
            return next((line.split(":", 1)[-1].strip() for line in f if line.startswith(starting_with)), None)
    except OSError:
        return None


def machine(stillroom):
    """What the measurements depend on besides the programs."""
    version = subprocess.run([stillroom, "--version"], capture_output=True, text=True).stdout.strip()
    return {
        "machine": {
            "cpu": first_line("/proc/cpuinfo", "model name"),
            "cores": os.cpu_count(),
            "memory": first_line("/proc/meminfo", "MemTotal"),
            "kernel": platform.release(),
            "huge_pages": first_line("/sys/kernel/mm/transparent_hugepage/enabled"),
            "load_average": os.getloadavg(),
            "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        },
        "stillroom": version,
    }


def parse_arguments():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--list", action="store_true", help="name the rows and stop")
    p.add_argument("--row", action="append", metavar="NAME", help="a row or a group (table, scaling); repeatable")
    p.add_argument("--venv", metavar="VENV", help="made by install-peers.sh")
    p.add_argument("--stillroom", metavar="PATH", default="target/release/stillroom")
    p.add_argument("--hf", metavar="DIR", help="SmolLM2-135M-Instruct in f32 as a Hugging Face folder")
    p.add_argument("--gguf", metavar="FILE", help="the same as Q4_1")
    p.add_argument("--gguf-f32", metavar="FILE", help="the same as F32, for llama.cpp's scoring")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--runs", type=int, default=3, help="of each side")
    p.add_argument("--steps", type=int, help="timed steps of each run (default: the row's)")
    p.add_argument("--try-variants", action="store_true", help="find the peer's fastest configuration here first")
    p.add_argument("--output", metavar="FILE", help="JSON lines are added to it")
    args = p.parse_args()
    try:
        args.rows = rows.chosen(args.row or ["table"])
    except KeyError as unknown:
        p.error(f"no row or group {unknown}; --list names them")
    if not args.list and not args.venv and any(row.script for row in args.rows):
        p.error("--venv is missing: where install-peers.sh put the peers")
    if args.runs < 1:
        p.error("--runs is at least 1")
    return args


def main():
    args = parse_arguments()
    if args.list:
        for row in rows.ALL:
            print(f"{row.name:24} {row.what}")
        return 0
    bench = Bench(args)
    bench.write(machine(args.stillroom))
    summaries, failures = [], []
    for row in args.rows:
        say(f"{row.name}: {row.what}")
        try:
            summaries.append(bench.measure(row))
        except Failed as failure:
            failures.append(row.name)
            bench.write({"row": row.name, "failed": str(failure)})
            say(f"  {failure}")
    print(table(summaries))
    if failures:
        say(f"not measured: {', '.join(failures)}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

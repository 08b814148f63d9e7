#!/usr/bin/env python3
"""What large prompt files and many calls cost, on made-up rows, with a teacher that stands on this machine.

    cargo build --release && cargo build --release -p stillroom-teacher --example fake_teacher
    bench/data.py prompts [--rows 1000000] [--form jsonl|jsonl.gz|companions]   reading, up to the first call
    bench/data.py calls   [--rows 20000]                                        every call answered at once, all durable

Prints one line of JSON: seconds, rows or calls per second, and the peak of resident memory (VmHWM). Standard library only, Linux.
`prompts` stops the run at its first call. Rows have up to 80 words of a vocabulary of 20,000 and an id.
"""
import argparse
import gzip
import json
import pathlib
import random
import signal
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECIPE = """[teacher]
kind = "openai"
model = "us:teacher"
endpoints = [{{ base_url = "{address}", max_in_flight = 64 }}]
stream = false
[prompts]
path = "{path}"
[policy.declare."us:teacher"]
owner = "us"
licence = "Apache-2.0"
"""
# Companion files are read where somebody is trained and measured.
STUDENT = """[student]
kind = "from_scratch"
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 32
tokenizer = "{assets}/quickstart-tokenizer"
"""


def row(random_, i):
    # Few words are frequent, as in a language.
    words = (f"w{int(random_.random() ** 3 * 20_000)}" for _ in range(random_.randint(20, 80)))
    return json.dumps({"id": f"r{i}", "prompt": " ".join(words)}) + "\n"


def write(folder, rows, form):
    random_ = random.Random(1)
    opened = gzip.open if form == "jsonl.gz" else open
    name = "train.jsonl.gz" if form == "jsonl.gz" else "train.jsonl"
    options = {"compresslevel": 1} if opened is gzip.open else {}
    with opened(folder / name, "wt", encoding="utf-8", **options) as out:
        for i in range(rows):
            out.write(row(random_, i))
    if form == "companions":
        with open(folder / "test.jsonl", "w", encoding="utf-8") as out:
            for i in range(rows, rows + 1000):
                out.write(row(random_, i))


def peak_mb(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def watch(run, out, until_first_call):
    """Seconds until the stage `prompts` was on record and until the end, and the peak so far."""
    begun, staged, peak = time.monotonic(), None, 0.0
    while run.poll() is None:
        if staged is None and (out / "stages/prompts.json").is_file():
            staged = time.monotonic() - begun
        try:
            peak = max(peak, peak_mb(run.pid))
        except (FileNotFoundError, ProcessLookupError):
            break
        if until_first_call and b"\n" in served(out.parent):
            run.send_signal(signal.SIGKILL)
            run.wait()
            break
        time.sleep(0.01)
    return staged, time.monotonic() - begun, peak


def served(folder):
    log = folder / "teacher.log"
    return log.read_bytes()[:4096] if log.is_file() else b""


def measure(work, rows, form, profile):
    built = ROOT / "target" / profile
    with tempfile.TemporaryDirectory(dir=ROOT / "target") as folder:
        folder = pathlib.Path(folder)
        (folder / "data").mkdir()
        write(folder / "data", rows, form)
        options = ["--port", "0", "--faults", "none", "--no-reasoning", "--log", folder / "teacher.log"]
        teacher = subprocess.Popen([built / "examples/fake_teacher", *options], stdout=subprocess.PIPE, text=True)
        try:
            address = teacher.stdout.readline().strip()
            recipe = folder / "recipe.toml"
            student = STUDENT.format(assets=ROOT / "assets") if form == "companions" else ""
            recipe.write_text(RECIPE.format(address=address, path=folder / "data") + student)
            command = [built / "stillroom", "teach", recipe, "--output", folder / "out", "--quiet"]
            run = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
            staged, seconds, peak = watch(run, folder / "out", work == "prompts")
            if work == "calls" and run.wait() != 0:
                raise SystemExit(f"the run ended with {run.returncode}")
        finally:
            teacher.kill()
    facts = {"work": work, "form": form, "rows": rows, "prompts_stage_s": round(staged or 0.0, 1), "seconds": round(seconds, 1)}
    if work == "calls":
        facts["calls_per_s"] = round(rows / max(seconds - (staged or 0.0), 1e-9))
    print(json.dumps(facts | {"peak_mb": round(peak, 1)}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["prompts", "calls"])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--form", choices=["jsonl", "jsonl.gz", "companions"], default="jsonl")
    parser.add_argument("--profile", choices=["release", "debug"], default="release")
    args = parser.parse_args()
    rows = args.rows or (1_000_000 if args.work == "prompts" else 20_000)
    measure(args.work, rows, args.form, args.profile)


if __name__ == "__main__":
    main()

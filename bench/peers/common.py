"""What every peer script shares: the arguments, the clock, the memory, and the JSON on stdout.

A script is one process and one measurement. It prints one JSON object whose fields are named as in
`stillroom bench --json`, so that ../compare.py reads both alike:

  tokens_per_second            tokens_per_step / median of step_seconds
  step_seconds                 wall-clock time of each step after the warm-up
  peak_resident_bytes          VmHWM of the whole process: imports, loading and compiling included
  steady_peak_resident_bytes   the same over the timed steps alone (the mark is reset before them);
                               never above the former, so the kinder figure of the two
  imports_resident_bytes       resident once the libraries were imported, before there was any model
"""
import argparse
import json
import os
import platform
import re
import statistics
import sys
import time

WARM_UP_STEPS = 2

# Set in the environment of the second start, so that there is no third.
STARTED = "STILLROOM_BENCH_STARTED"

# Which memory the C library hands out; glibc reads these once, before Python runs.
ALLOCATORS = {
    # glibc as it is: a large tensor is mapped when made and unmapped when freed, page by page.
    "default": {},
    # Tensors of 2 MiB and more in transparent huge pages, which PyTorch asks for by itself.
    "huge": {"THP_MEM_ALLOC_ENABLE": "1"},
    # Freed memory stays with the process and lies in huge pages: no page faults in a steady step.
    "keep": {
        "THP_MEM_ALLOC_ENABLE": "1",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736",
    },
}


def parser(description):
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--threads", type=int, default=os.cpu_count(), help="threads the peer computes with")
    p.add_argument("--steps", type=int, default=8, help=f"steps that are timed, after {WARM_UP_STEPS} that are not")
    p.add_argument("--allocator", choices=ALLOCATORS, default="default", help="see common.py")
    return p


def gguf_arguments(add):
    """What both scripts that time llama.cpp take."""
    add("--gguf", metavar="FILE", required=True)
    add("--llama-cpp", metavar="DIR", help="folder of the libraries (default: LLAMACPP_DIR, else VENV/llama.cpp)")
    add("--flash", choices=["auto", "on", "off"], default="auto")
    add("--kv", choices=["f16", "f32"], default="f16", help="type of the key-value cache")


def hf_arguments(add):
    """What both scripts that time transformers take."""
    add("--hf", metavar="DIR", required=True, help="a Hugging Face folder")
    add("--attention", choices=["sdpa", "eager"], default="sdpa")


def start(args):
    """Starts this script once more with the environment that the arguments ask for: OpenMP, MKL and glibc
    read theirs before Python does anything."""
    wanted = {**ALLOCATORS[args.allocator], "OMP_NUM_THREADS": str(args.threads), STARTED: "1"}
    wanted["TOKENIZERS_PARALLELISM"] = "false"
    wanted["HF_HUB_OFFLINE"] = wanted["TRANSFORMERS_OFFLINE"] = "1"
    if STARTED not in os.environ:
        os.execve(sys.executable, [sys.executable, "-B", *sys.argv], {**os.environ, **wanted})


def resident_bytes(field="VmRSS"):
    """What /proc/self/status says, in bytes."""
    with open("/proc/self/status") as status:
        return 1024 * int(re.search(field + r":\s+(\d+) kB", status.read()).group(1))


def peak_resident_bytes():
    return resident_bytes("VmHWM")


def reset_peak():
    """The high-water mark of resident memory falls to what is resident now."""
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")


def time_steps(step, steps, after_warm_up=lambda: None):
    """Seconds of each of `steps` calls after the warm-up, and the two peaks of memory in bytes."""
    for _ in range(WARM_UP_STEPS):
        step()
    after_warm_up()
    before = peak_resident_bytes()
    reset_peak()
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    steady = peak_resident_bytes()
    return seconds, {"peak_resident_bytes": max(before, steady), "steady_peak_resident_bytes": steady}


def cpu_name():
    with open("/proc/cpuinfo") as info:
        found = re.search(r"model name\s*:\s*(.+)", info.read())
    return found.group(1) if found else platform.machine()


def report(args, work, peer, versions, tokens_per_step, step_seconds, memory, **more):
    """Prints the measurement."""
    configuration = {key: value for key, value in vars(args).items() if value is not None}
    for path in configuration.keys() & {"hf", "gguf", "llama_cpp"}:
        configuration[path] = os.path.basename(configuration[path].rstrip("/"))
    print(
        json.dumps(
            {
                "work": work,
                "peer": peer,
                "versions": {"python": platform.python_version(), **versions},
                "cpu": cpu_name(),
                "threads": args.threads,
                "configuration": configuration,
                "tokens_per_step": tokens_per_step,
                "step_seconds": step_seconds,
                "tokens_per_second": tokens_per_step / statistics.median(step_seconds),
                **memory,
                **more,
            }
        )
    )

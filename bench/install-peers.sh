#!/usr/bin/env bash
# Makes the Python environment that the peers of this folder run in.
#
#   bench/install-peers.sh VENV_DIR
#
# It is the environment of oracles/install.sh: PyTorch, transformers, gguf, and llama.cpp's prebuilt libraries in
# VENV_DIR/llama.cpp. On top of it, torch.compile needs a C++ compiler and Python's headers, which are the
# system's affair: on Debian and Ubuntu the packages g++ and python3-dev. Without them install-peers.sh says so,
# and compare.py --try-variants still measures what runs without compiling.
set -euo pipefail
if [ $# -ne 1 ]; then
    echo "usage: $0 VENV_DIR" >&2
    exit 2
fi
venv=$1
"$(dirname "$0")/../oracles/install.sh" "$venv"

if [ ! -e "$venv/llama.cpp/libllama.v0.5.0.so" ]; then
    echo "install-peers.sh: no llama.cpp: its rows cannot be measured" >&2
fi

# What torch.compile generates is built and run once, so that a missing compiler shows here.
if ! "$venv/bin/python" - <<'PYTHON'
import torch

compiled = torch.compile(lambda x: torch.nn.functional.silu(x) * 2)
x = torch.randn(64, 64)
torch.testing.assert_close(compiled(x), torch.nn.functional.silu(x) * 2)
print("torch.compile works")
PYTHON
then
    echo "install-peers.sh: torch.compile does not work; it needs a C++ compiler and Python's headers" >&2
    echo "    on Debian and Ubuntu: apt-get install g++ python3-dev" >&2
    exit 1
fi

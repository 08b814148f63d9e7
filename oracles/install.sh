#!/usr/bin/env bash
# Makes the Python environment that the oracle scripts of this folder run in.
#
#   oracles/install.sh VENV_DIR
#
# Keep VENV_DIR outside the repository: it takes about 6.5 GB (torch comes with its CUDA
# libraries and does not import without them, though only the CPU is used here).
# Needs Python 3.11 or newer. Nothing here is needed to build or test Stillroom: the golden
# files are committed.
set -euo pipefail
if [ $# -ne 1 ]; then
    echo "usage: $0 VENV_DIR" >&2
    exit 2
fi
venv=$1
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

# torch without the parts that are not needed to import it (triton, cuda-bindings).
pip install --no-compile --no-deps torch==2.15.0
pip install --no-compile \
    "cuda-toolkit[cublas,cudart,cufft,cufile,cupti,cusolver,cusparse,nvjitlink,nvrtc,nvtx]==13.2.2" \
    nvidia-cudnn-cu13==9.26.0.51 nvidia-cusparselt-cu13==0.8.1 \
    nvidia-nccl-cu13==2.30.7 nvidia-nvshmem-cu13==3.7.2 \
    filelock==4.2.12 typing-extensions==4.16.0 sympy==1.14.0 networkx==3.6.1 jinja2==3.1.6 \
    fsspec==2026.9.0 numpy==2.4.6
pip install --no-compile transformers==5.23.0 tokenizers==0.23.3 safetensors==0.8.0 gguf==0.19.0
# transformers wants it to load a GGUF; --no-deps, for it would pull the rest of torch.
pip install --no-compile --no-deps accelerate==1.15.0 psutil==7.2.2
# For lora.py; it needs accelerate too.
pip install --no-compile --no-deps peft==0.21.2
# divergences.py reads the source of its losses, preferences.py runs its trainer's, which wants datasets.
pip install --no-compile --no-deps trl==1.16.0
pip install --no-compile datasets==5.2.0

# llama.cpp (release v0.5.0) as the prebuilt library of an npm package, for llamacpp.py. Linux x64.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if (cd "$work" && npm pack --silent @node-llama-cpp/linux-x64@3.22.1 >/dev/null && tar xzf ./*.tgz); then
    mkdir -p "$venv/llama.cpp"
    cp "$work"/package/bins/linux-x64/*.so "$work/package/LICENSE" "$venv/llama.cpp/"
else
    echo "install.sh: no llama.cpp (npm is missing or offline); smollm2.py needs it, check_export.py wants --no-llama-cpp" >&2
fi

"$venv/bin/python" -c 'import torch, transformers, tokenizers, gguf; print(torch.__version__, transformers.__version__)'

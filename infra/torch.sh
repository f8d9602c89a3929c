#!/usr/bin/env bash
# Install torch into a virtual environment: bash infra/torch.sh VENV cpu|cuda
# The CPU build is taken from the configured package index if it has one, else from PyTorch's own index (which uv knows)
# if it can be reached; otherwise the CUDA build is installed, which runs on a CPU too.
set -euo pipefail
venv=${1:?usage: infra/torch.sh VENV cpu|cuda}
build=${2:?usage: infra/torch.sh VENV cpu|cuda}
torch=2.13.0
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }

if [ "$build" = cuda ]; then
  pip install "torch==$torch"
else
  pip install "torch==$torch+cpu" 2>/dev/null \
    || { echo "set-up: the package index has no CPU build of torch; trying PyTorch's index"; false; } \
    || { pip install uv && "$venv/bin/uv" --quiet pip install --python "$venv/bin/python" --torch-backend cpu "torch==$torch"; } \
    || { echo "set-up: PyTorch's index cannot be reached; installing the default build, which is larger"; pip install "torch==$torch"; }
fi

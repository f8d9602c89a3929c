#!/usr/bin/env bash
# Install torch into a virtual environment: bash infra/torch.sh VENV cpu|cuda
# The CPU build comes from the configured package index if it has one, from PyTorch's own (which uv knows) if that
# answers, and at last it is the CUDA build, which runs on a CPU as well.
set -euo pipefail
venv=${1:?usage: infra/torch.sh VENV cpu|cuda}
kind=${2:?usage: infra/torch.sh VENV cpu|cuda}
torch=2.13.0
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }

if [ "$kind" = cuda ]; then
  pip install "torch==$torch"
else
  pip install "torch==$torch+cpu" 2>/dev/null \
    || { echo "set-up: the package index has no CPU build of torch; asking PyTorch's own"; false; } \
    || { pip install uv && "$venv/bin/uv" --quiet pip install --python "$venv/bin/python" --torch-backend cpu "torch==$torch"; } \
    || { echo "set-up: not reached; taking the default build, which is larger"; pip install "torch==$torch"; }
fi

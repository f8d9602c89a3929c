#!/usr/bin/env bash
# Create the virtual environment that `make demo`, `make test` and CI use: bash infra/venv.sh DIR
# requirements.lock pins everything by hash except torch, whose build (CPU or CUDA) depends on the machine.
set -euo pipefail
venv=${1:?usage: infra/venv.sh DIR}
python=${PYTHON:-python3}

fail() { echo "error: $1" >&2; exit 2; }
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
  || fail "$("$python" --version 2>&1) found, Python 3.11 or 3.12 needed; name one: make PYTHON=python3.11 ..."
[ "$(uname -sm)" = "Linux x86_64" ] || fail "$(uname -sm) found, Linux x86_64 needed: decord has no other wheels"
"$python" -c 'import sys, sysconfig, os; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
  || fail "the headers of $("$python" --version) are missing, with which DeepSpeed builds an extension: install python3-dev"
command -v c++ >/dev/null || fail "no C++ compiler found, with which DeepSpeed builds its CPU communication: install g++"

echo "set-up: $venv ($("$python" --version))"
"$python" -m venv --clear "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }

bash "$(dirname "$0")/torch.sh" "$venv" "$(nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)"
echo "set-up: $("$venv/bin/python" -m pip list 2>/dev/null | grep '^torch ' | tr -s ' '); installing the locked packages"
pip install --no-deps --require-hashes -r requirements.lock
pip install --no-deps --no-build-isolation --editable .
pip check
echo "set-up: building DeepSpeed's CPU communication"
DS_ACCELERATOR=cpu "$venv/bin/python" -c 'from cluster.training.deepspeed_ops import build_cpu_ops; build_cpu_ops()' >/dev/null
echo "set-up: ready"

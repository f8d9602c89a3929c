"""DeepSpeed's compiled CPU operator and its accelerator."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import time
from pathlib import Path

from vgan.errors import InputError

STALE_LOCK_S = 300.0  # the build takes about 30 s on two cores


def configure_deepspeed(use_gpu: bool = False) -> None:
    """Set DeepSpeed's device and check that its CPU operator can be built; call before any engine is created.

    DeepSpeed compiles one C++ extension at first use, here into the folder of the Python environment, unless it was
    installed with the extension (DS_BUILD_SHM_COMM=1), as in our images. A killed build leaves a lock file that every
    later process would wait for without end: a lock older than STALE_LOCK_S is removed.

    Args:
        use_gpu: leave the device and the operator alone.

    Raises:
        InputError: no C++ compiler.
    """
    if use_gpu:
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray does not hide GPUs from workers that requested none
    os.environ["DS_ACCELERATOR"] = "cpu"
    # torch searches the PATH for ninja, which is installed with DeepSpeed
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    extensions = Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions")))
    check_compiler()
    for lock in extensions.glob("*/lock"):
        if time.time() - lock.stat().st_mtime > STALE_LOCK_S:
            lock.unlink(missing_ok=True)


def has_prebuilt_cpu_op() -> bool:
    """Test for a prebuilt CPU communication operator of DeepSpeed, without the import, which would fix its device."""
    package = importlib.util.find_spec("deepspeed")
    folders = package.submodule_search_locations if package else None
    return any(list(Path(folder).glob("ops/comm/deepspeed_shm_comm_op*.so")) for folder in folders or ())


def check_compiler() -> None:
    """Raise InputError if DeepSpeed has to build its CPU communication operator and there is no C++ compiler."""
    if not has_prebuilt_cpu_op() and shutil.which(os.environ.get("CXX", "c++")) is None:
        raise InputError("no C++ compiler found; DeepSpeed builds its CPU communication with one: install g++")


def build_cpu_ops() -> None:
    """Compile DeepSpeed's CPU operator during set-up, so that no training run waits for it (about 30 s)."""
    configure_deepspeed()
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ShareMemCommBuilder().load(verbose=False)

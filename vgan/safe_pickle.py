"""Unpickling of NumPy arrays in plain containers, and of nothing else."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from vgan.errors import InputError

_ARRAYS = {  # the only names that a pickle of arrays refers to
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],  # name in NumPy 2
}


def read_arrays(content: bytes) -> Any:
    """Unpickle NumPy arrays in built-in containers; no other object is constructed or called.

    Raises:
        InputError: the pickle refers to anything except the constructors of arrays.
    """
    return _ArrayUnpickler(io.BytesIO(content)).load()


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler that allows only the constructors of NumPy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        """Return an allowed constructor, or raise InputError."""
        if (module, name) not in _ARRAYS:
            raise InputError(f"a pickle of arrays must not refer to {module}.{name}: the file is not the expected one")
        return _ARRAYS[module, name]

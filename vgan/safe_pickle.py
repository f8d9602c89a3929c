"""Unpickling of NumPy arrays in plain containers, and of nothing else."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from vgan.errors import InputError

_ARRAYS = {  # all that an array needs of a pickle
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],  # as NumPy 2 calls it
}


def read_arrays(content: bytes) -> Any:
    """A pickle of NumPy arrays in plain containers, of which nothing else is ever built or called.

    Raises:
        InputError: it asks for anything but what arrays are made of.
    """
    return _ArrayUnpickler(io.BytesIO(content)).load()


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise InputError(f"a file of arrays must not ask for {module}.{name}; it is not what it should be")
        return _ARRAYS[module, name]

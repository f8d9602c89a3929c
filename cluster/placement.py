"""Which nodes work goes to: those with the labels that a cluster names in the environment of its nodes.

  SCENE_DECODE_LABELS   video to clips: Ray Data's tasks, and those that pack, verify and export a dataset
  SCENE_TRAIN_LABELS    Ray Train's workers and the runs of a sweep

Each holds labels as `ray start --labels` takes them: key=value,key=value. Where there is none, as on a laptop, work
goes wherever there is room. Decode nodes should bear Ray Data's own key, `ray-subcluster`, and training nodes must not:
an elastic group counts no node that does.
"""

from __future__ import annotations

import os
import re

from vgan.errors import BadInput

DECODE, TRAIN = "SCENE_DECODE_LABELS", "SCENE_TRAIN_LABELS"


def decode_labels() -> dict[str, str] | None:
    """Labels of the nodes that turn video into clips, as Ray's `label_selector`; None for any node."""
    return _labels(DECODE)


def train_labels() -> dict[str, str] | None:
    """Labels of the nodes that train, as Ray's `label_selector`; None for any node."""
    return _labels(TRAIN)


def _labels(variable: str) -> dict[str, str] | None:
    text = os.environ.get(variable, "").strip()
    if not text:
        return None
    pairs = [re.fullmatch(r"\s*([\w./-]+)=([\w.-]+)\s*", pair) for pair in text.split(",")]
    if not all(pairs):
        raise BadInput(f"{variable}={text!r} in the environment is not key=value,key=value")
    return {pair[1]: pair[2] for pair in pairs if pair}

"""Placement of work on nodes by Ray node labels, which a cluster sets in the environment of its nodes.

  SCENE_DECODE_LABELS   nodes for video decoding: Ray Data tasks, and tasks that pack, verify and export a dataset
  SCENE_TRAIN_LABELS    nodes for training: Ray Train workers and the runs of a sweep

Values have the format of `ray start --labels`: key=value,key=value. If a variable is unset, as on a laptop, Ray may
place the work on any node. Decode nodes should have Ray Data's own label key, `ray-subcluster`, and training nodes must
not have it: an elastic worker group ignores nodes with that key.
"""

from __future__ import annotations

import os
import re

from vgan.errors import InputError

DECODE, TRAIN = "SCENE_DECODE_LABELS", "SCENE_TRAIN_LABELS"


def decode_labels() -> dict[str, str] | None:
    """Return the labels of decode nodes as Ray's `label_selector`; None for any node."""
    return _parse_labels(DECODE)


def train_labels() -> dict[str, str] | None:
    """Return the labels of training nodes as Ray's `label_selector`; None for any node."""
    return _parse_labels(TRAIN)


def _parse_labels(variable: str) -> dict[str, str] | None:
    """Parse the labels in an environment variable; None if it is unset or empty, InputError if it is malformed."""
    text = os.environ.get(variable, "").strip()
    if not text:
        return None
    matches = [re.fullmatch(r"\s*([\w./-]+)=([\w.-]+)\s*", pair) for pair in text.split(",")]
    if not all(matches):
        raise InputError(f"environment variable {variable}={text!r} must have the form key=value,key=value")
    return {match[1]: match[2] for match in matches if match}

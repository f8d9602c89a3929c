"""Synthetic videos with known ground truth: an action set in UCF101's layout, and clips with camera motion."""

from vgan.synthetic.action_set import DEFAULT_CLASSES, SyntheticDataset, make_action_set, split_test_groups
from vgan.synthetic.clips import CLASSES, SyntheticClip, draw_clip

__all__ = [
    "CLASSES",
    "DEFAULT_CLASSES",
    "SyntheticClip",
    "SyntheticDataset",
    "draw_clip",
    "make_action_set",
    "split_test_groups",
]

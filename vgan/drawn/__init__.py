"""Synthetic videos with known ground truth: an action set in UCF101's layout, and clips with camera motion."""

from vgan.drawn.action_set import DEFAULT_CLASSES, DrawnSet, draw_action_set, split_test_groups
from vgan.drawn.clips import CLASSES, DrawnClip, draw_clip

__all__ = ["CLASSES", "DEFAULT_CLASSES", "DrawnClip", "DrawnSet", "draw_action_set", "draw_clip", "split_test_groups"]

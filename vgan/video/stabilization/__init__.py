"""Removal of camera motion from a window of frames: registration, warp to the first frame, and measures of both."""

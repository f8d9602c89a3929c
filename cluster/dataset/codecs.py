"""Codecs of a dataset's pixels."""

from __future__ import annotations

CODECS = ("raw", "jpeg")

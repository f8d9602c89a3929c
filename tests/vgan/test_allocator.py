"""Retention of freed memory."""

from __future__ import annotations

import subprocess
import sys

FAULTS = """
import resource, sys, torch
from vgan.allocator import keep_freed_memory
assert sys.argv[1] == "return" or keep_freed_memory()
seen = []
for _ in range(45):
    torch.ones(2**24)  # 64 MB, 16,384 pages
    seen.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(seen[-1] - seen[-6])  # after the heap has found its size
"""


def faults(word: str) -> int:
    return int(subprocess.run([sys.executable, "-c", FAULTS, word], check=True, capture_output=True, text=True).stdout)


def test_kept_memory_is_not_fetched_page_by_page_again() -> None:
    assert faults("keep") < 1000
    assert faults("return") > 100  # the system may hand out huge pages, of which 160 hold what 81,920 small ones do

"""Freed memory goes back to the system."""

from __future__ import annotations

import subprocess
import sys

CHURN = """
from pathlib import Path
from gruard.daemon.edges.memory import give_back

def resident_kb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])

blocks = [bytes(60_000) for _ in range(1500)]   # under the mmap threshold: they live on the heap
last = bytes(60_000)                             # keeps the top of the heap in use
del blocks
before = resident_kb()
give_back()
print(before - resident_kb())
"""


def test_give_back_shrinks_a_heap_with_a_used_top() -> None:
    """Pages freed below a live block are returned; without the call they would stay for ever."""
    done = subprocess.run([sys.executable, "-c", CHURN], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 40_000

"""A short, bounded burn of CPU and memory: the real anomaly that the demo provokes on this machine.

`python -m gruard.daemon.demo.burn SECONDS BYTES` keeps one core busy and so many bytes filled, and exits by
itself: at its deadline, at the hard limit, or as soon as the process that started it is gone. Memory is part
of it so that the burn shows on a machine whose cores are busy anyway.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

LIMIT_S = 60.0  # no burn lasts longer, whatever was asked for


def burn(seconds: float, filled_bytes: int) -> None:
    """Keep this core and memory busy for `seconds` (at most `LIMIT_S`), less if the parent ends first."""
    parent = os.getppid()
    filled = bytearray(b"\x01") * filled_bytes  # written to, since untouched memory is not really taken
    deadline = time.monotonic() + min(seconds, LIMIT_S)
    while time.monotonic() < deadline and os.getppid() == parent:
        sum(number * number for number in range(20_000))
    del filled


class Burn:
    """Burning child processes that share `filled_bytes`; `stop` ends those that are left."""

    def __init__(self, seconds: float, processes: int, filled_bytes: int) -> None:
        each = str(filled_bytes // processes)
        command = [sys.executable, "-m", "gruard.daemon.demo.burn", str(seconds), each]
        self._children = [
            subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 (our own module, two numbers)
            for _ in range(processes)
        ]

    @property
    def alive(self) -> bool:
        """Whether any core is still burning."""
        return any(child.poll() is None for child in self._children)

    def stop(self) -> None:
        """End every child that still runs and wait for it."""
        for child in self._children:
            if child.poll() is None:
                child.kill()
        for child in self._children:
            child.wait()


if __name__ == "__main__":
    burn(float(sys.argv[1]), int(sys.argv[2]))

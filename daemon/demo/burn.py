"""A short, bounded CPU burn: the real anomaly that the demo provokes on this machine.

`python -m gruard.daemon.demo.burn SECONDS` keeps one core busy and exits by itself: at its deadline, at the
hard limit, or as soon as the process that started it is gone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

LIMIT_S = 60.0  # no burn lasts longer, whatever was asked for


def burn(seconds: float) -> None:
    """Keep this core busy for `seconds` (at most `LIMIT_S`), less if the parent process ends first."""
    parent = os.getppid()
    deadline = time.monotonic() + min(seconds, LIMIT_S)
    while time.monotonic() < deadline and os.getppid() == parent:
        sum(number * number for number in range(20_000))


class Burn:
    """One burning child process per core; `stop` ends those that are left."""

    def __init__(self, seconds: float, processes: int) -> None:
        command = [sys.executable, "-m", "gruard.daemon.demo.burn", str(seconds)]
        self._children = [
            subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 (our own module, a number)
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
    burn(float(sys.argv[1]))

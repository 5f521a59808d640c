"""The demo as a whole: real broker, real daemon, real telemetry, in their own processes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.alone]


@contextmanager
def demo(*, seconds: float, speed: float) -> Iterator[subprocess.Popen[str]]:
    """A running demo whose standard output is a pipe."""
    program = (
        "import sys; from gruard.daemon.demo.runner import run_demo;"
        f"sys.exit(run_demo(seconds={seconds}, speed={speed}, seed=0))"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield running
    finally:
        if running.poll() is None:
            running.terminate()
            running.communicate(timeout=60)


def descendants(running: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(running.pid).children(recursive=True)


def test_demo_finds_the_injected_faults_and_ends_by_itself() -> None:
    """A demo at twice its speed ends with 0: faults found, hardly a false alarm, every reading scored once.

    On a slow machine the first training holds so long that the embedded broker answers no more pings, and
    what it then sends again is a duplicate or late.
    """
    with demo(seconds=80, speed=20) as running:
        out, errors = running.communicate(timeout=180)

    lines = out.splitlines()
    found = [line for line in lines if re.match(r"fault: .* on pump-\d\d: FOUND \d+ s after onset: .+", line)]
    false_alarms = next(int(line.split()[2]) for line in lines if line.startswith("false alarms:"))
    counts = re.search(r"readings: (\d+) sent, \d+ counted by the daemon \(scored (\d+)", out)
    assert len([line for line in lines if line.startswith("fault: ")]) == 4, out + errors
    assert len(found) >= 3, out
    assert false_alarms <= 1, out
    assert counts is not None, out
    assert counts[1] == counts[2]
    assert any(line.startswith("burn on this machine: score before: median") for line in lines)
    assert "\x1b" not in out
    assert (running.returncode, lines[-1], errors) == (0, "result: ok", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_stops_cleanly_when_interrupted(number: signal.Signals) -> None:
    """Ctrl-C or a request to end gives the summary so far and leaves no process behind."""
    with demo(seconds=120, speed=10) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if "readings sent" in line and "online" in line:
                break
        started = descendants(running)
        running.send_signal(number)
        out, errors = running.communicate(timeout=60)

    assert len(started) >= 2
    assert out.count("NOT REACHED") == 4, out + errors
    assert out.splitlines()[-2:] == ["problem: interrupted", "result: not ok"]
    assert (running.returncode, errors) == (1, "")
    time.sleep(0.2)
    assert not [process for process in started if process.is_running()]

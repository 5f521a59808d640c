"""Within pytest: time each test, or run only the chosen ones, quickest first, each no longer than it may.

MUTANTS_TIMES=FILE    write name -> seconds of each test that passed
MUTANTS_CHOSEN=FILE   name -> usual seconds of the tests to run; one that takes far longer ends the run
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMES, CHOSEN = (os.environ.get(name) for name in ("MUTANTS_TIMES", "MUTANTS_CHOSEN"))
#: A test that hangs is a test that notices: so much is allowed, and so many times the usual.
ALLOWED_S, ALLOWED_TIMES = 5.0, 10.0

_seconds: dict[str, float] = {}
_failed: set[str] = set()
_usual: dict[str, float] = json.loads(Path(CHOSEN).read_text("utf-8")) if CHOSEN else {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the chosen tests, quickest first."""
    if CHOSEN:
        found = [item for item in items if item.nodeid in _usual]
        items[:] = sorted(found, key=lambda item: _usual[item.nodeid])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """End the whole run, children included, when a test hangs."""
    if not CHOSEN:
        return (yield)
    signal.signal(signal.SIGALRM, _end)
    signal.setitimer(signal.ITIMER_REAL, ALLOWED_S + ALLOWED_TIMES * _usual[item.nodeid])
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _end(*_: object) -> None:
    os.killpg(0, signal.SIGKILL)  # cosmic-ray gives each run a session of its own


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up the phases of a test."""
    _seconds[report.nodeid] = _seconds.get(report.nodeid, 0.0) + report.duration
    if not report.passed:
        _failed.add(report.nodeid)


def pytest_sessionfinish() -> None:
    """Write the times down."""
    if TIMES:
        passed = {name: seconds for name, seconds in _seconds.items() if name not in _failed}
        Path(TIMES).write_text(json.dumps(passed), "utf-8")

"""Kill the daemon, in every way and at every step, under 1,000 readings a second: the promises P1 to P5 hold.

A bounded part of `make torture`, which does the same hundreds of times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from torture import faults

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.alone]


def test_kill_at_random_under_load_loses_nothing_and_counts_nothing_twice(tmp_path: Path) -> None:
    """F1, with event times, with numbers and with neither: all comes out as if it had never died."""
    report = faults.kill_at_random(tmp_path, 7, 5)
    assert report.broken == []
    assert report.verdict.readings > 1000
    assert report.verdict.alerts > 10


def test_die_at_every_failpoint_loses_nothing_and_counts_nothing_twice(tmp_path: Path) -> None:
    """F2: each step that makes something durable is reached, and survived."""
    report = faults.die_at_failpoints(tmp_path, 1, 1, rate=400.0, chained=True)
    assert report.broken == []
    assert report.verdict.readings > 1000


def test_kill_while_recovering_up_to_five_times_in_a_row_recovers(tmp_path: Path) -> None:
    """F3: a recovery that is cut short costs nothing, and the next one is no longer."""
    report = faults.kill_while_recovering(tmp_path, 3, 2, rate=400.0)
    assert report.broken == []
    assert report.facts["deaths"] >= 2


def test_stop_under_load_is_quick_and_loses_nothing(tmp_path: Path) -> None:
    """F21: SIGTERM with readings on their way."""
    report = faults.stop_under_load(tmp_path, 5, 3)
    assert report.broken == []
    assert report.facts["stop_s"] <= 5.0

"""Restart, kill or cut off the broker under load: nothing acknowledged is lost, nothing counts twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from torture import faults
from torture.netns import why_not

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.alone]


def test_restart_of_a_busy_broker_loses_nothing_and_counts_nothing_twice(tmp_path: Path) -> None:
    """F9: a clean restart while the daemon has work waiting, dumb sensors included."""
    report = faults.restart_broker(tmp_path, 2, 2)
    assert report.broken == []
    assert report.facts["busy"] > 0


def test_kill_of_the_broker_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """F10: what the wire says we acknowledged is journalled once; the broker lost the rest by itself."""
    report = faults.kill_broker(tmp_path, 4, 1)
    assert report.broken == []
    assert report.verdict.readings > 500


def test_dead_link_is_noticed_in_time_and_nothing_is_lost(tmp_path: Path) -> None:
    """F12: no packet passes and nobody says so; noticed within twice the keepalive, back within 5 s."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    report = faults.cut_link(tmp_path, 1, 1)
    assert report.broken == []
    assert 1.0 < report.facts["noticed_s"] <= 11.0

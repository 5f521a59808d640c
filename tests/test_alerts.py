"""The alert state machine: hysteresis, severity, one id."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gruard.daemon.core import alerts
from gruard.daemon.core.alerts import CLOSE_AFTER, OPEN_AFTER, Track, alert_id, follow, severity_of


def play(
    track: Track, scores: list[float], *, every_s: float = 1e9, start_s: float = 0.0
) -> list[str | None]:
    """Follow a series of scores at threshold .8 and release .6, one a second."""
    return [
        follow(
            track,
            score=score,
            threshold=0.8,
            release=0.6,
            time_s=start_s + t,
            update_every_s=every_s,
            severity=severity_of(score, 0.8, learning=False),
            new_id=f"id-{start_s + t}",
        )
        for t, score in enumerate(scores)
    ]


def test_follow_single_spike_opens_nothing() -> None:
    """One reading above the threshold is not an alert."""
    assert play(Track(), [0.1, 0.99, 0.1, 0.99, 0.1]) == [None] * 5


def test_follow_lasting_excess_opens_once_and_resolves_once() -> None:
    """An excess makes exactly one opened and one resolved event under one id."""
    track = Track()
    told = play(track, [0.9] * 20 + [0.1] * 20)
    assert [word for word in told if word] == ["opened", "resolved"]
    assert told.index("opened") == OPEN_AFTER - 1
    assert told.index("resolved") == 20 + CLOSE_AFTER - 1
    assert not track.id


def test_follow_score_between_release_and_threshold_keeps_the_alert_open() -> None:
    """Hysteresis: a score that trembles around the threshold makes one alert, not many."""
    told = play(Track(), [0.9, 0.9] + [0.7, 0.82] * 30)
    assert [word for word in told if word] == ["opened"]


def test_follow_dip_shorter_than_close_after_does_not_resolve() -> None:
    """A few quiet readings inside a fault do not end the alert."""
    dip = [0.1] * (CLOSE_AFTER - 1) + [0.9]
    assert [w for w in play(Track(), [0.9, 0.9, *dip, *dip, *dip]) if w] == ["opened"]


def test_follow_open_alert_is_updated_at_most_every_interval() -> None:
    """An open alert is repeated on the clock of event time, no faster."""
    told = play(Track(), [0.9] * 50, every_s=20)
    assert [t for t, word in enumerate(told) if word == "updated"] == [21, 41]


def test_follow_worse_severity_updates_at_once() -> None:
    """Getting worse is news whatever the interval; getting better is not."""
    told = play(Track(), [0.81, 0.81, 0.81, 0.99, 0.99, 0.85])
    assert told == [None, "opened", None, "updated", None, None]


def test_follow_second_alert_has_another_id() -> None:
    """Each episode is an alert of its own."""
    track = Track()
    play(track, [0.9, 0.9])
    first = track.id
    play(track, [0.1] * CLOSE_AFTER, start_s=10)
    play(track, [0.9, 0.9], start_s=100)
    assert first == "id-1.0"
    assert track.id == "id-101"


@pytest.mark.parametrize(
    ("score", "learning", "expected"),
    [(0.81, False, "info"), (0.9, False, "warning"), (0.99, False, "critical"), (0.99, True, "warning")],
)
def test_severity_of_grows_with_the_excess(score: float, *, learning: bool, expected: str) -> None:
    """Severity counts in multiples of the threshold's u; the baseline never says critical."""
    assert severity_of(score, 0.8, learning=learning) == expected


def test_alert_id_same_moment_same_id() -> None:
    """The id depends on instance, device and opening time and on nothing else."""
    assert alert_id("a", "d", 1.5) == alert_id("a", "d", 1.5)
    others = {
        alert_id("b", "d", 1.5),
        alert_id("a", "e", 1.5),
        alert_id("a", "d", 1.25),
        alert_id("ad", "", 1.5),
    }
    assert alert_id("a", "d", 1.5) not in others
    assert len(others) == 4
    assert re.fullmatch(r"[0-9a-f]{16}", alert_id("a", "d", 1.5))


def test_module_table_names_every_constant_it_uses() -> None:
    """The table at the top of the module speaks of the constants that the code uses."""
    text = Path(str(alerts.__file__)).read_text(encoding="utf-8").split('"""')[1]
    assert "OPEN_AFTER" in text
    assert "CLOSE_AFTER" in text

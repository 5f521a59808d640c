"""What people are told of an alarm: one opening, updates by the clock of event time, one end, one id."""

from __future__ import annotations

import re

import pytest

from gruard.daemon.core.alerts import Track, alert_id, follow, severity_of


def play(
    track: Track,
    alarms: list[bool],
    scores: list[float] | None = None,
    *,
    every_s: float = 1e9,
    start_s: int = 0,
) -> list[str | None]:
    """Follow a series, one reading a second, scored 0.9 where nothing else is said, at threshold .8."""
    return [
        follow(
            track,
            alarm=alarm,
            time_s=start_s + t,
            update_every_s=every_s,
            severity=severity_of(0.9 if scores is None else scores[t], 0.8, learning=False),
            new_id=f"id-{start_s + t}",
        )
        for t, alarm in enumerate(alarms)
    ]


def test_follow_quiet_device_says_nothing() -> None:
    """Without an alarm there is nothing to tell, whatever the score."""
    track = Track()
    assert play(track, [False] * 20, [0.99] * 20) == [None] * 20
    assert not track.id


def test_follow_alarm_opens_at_once_and_resolves_at_once() -> None:
    """One opened and one resolved event an alarm, at its first reading and at the first after it."""
    track = Track()
    told = play(track, [False] * 3 + [True] * 20 + [False] * 20)
    assert [(t, word) for t, word in enumerate(told) if word] == [(3, "opened"), (23, "resolved")]
    assert not track.id


def test_follow_alarm_with_a_falling_score_stays_open() -> None:
    """The alarm alone says when it is over: a score under the threshold does not."""
    told = play(Track(), [True] * 10, [0.9, 0.9] + [0.1] * 8)
    assert [word for word in told if word] == ["opened"]


def test_follow_open_alert_is_updated_at_most_every_interval() -> None:
    """An open alert is repeated on the clock of event time, no faster."""
    told = play(Track(), [True] * 50, every_s=20)
    assert [t for t, word in enumerate(told) if word == "updated"] == [20, 40]


def test_follow_worse_severity_updates_at_once() -> None:
    """Getting worse is news whatever the interval; getting better is not."""
    told = play(Track(), [True] * 6, [0.81, 0.81, 0.81, 0.99, 0.99, 0.85])
    assert told == ["opened", None, None, "updated", None, None]


def test_follow_update_because_of_severity_restarts_the_interval() -> None:
    """The next regular update comes one interval after the last event, not after the opening."""
    told = play(Track(), [True] * 40, [0.81] * 10 + [0.99] * 30, every_s=20)
    assert [t for t, word in enumerate(told) if word == "updated"] == [10, 30]


def test_follow_second_alert_has_another_id() -> None:
    """Each alarm is an alert of its own."""
    track = Track()
    play(track, [True, True])
    first = track.id
    play(track, [False], start_s=10)
    play(track, [True, True], start_s=100)
    assert first == "id-0"
    assert track.id == "id-100"


@pytest.mark.parametrize(
    ("score", "learning", "expected"),
    [(0.81, False, "info"), (0.9, False, "warning"), (0.99, False, "critical"), (0.99, True, "warning")],
)
def test_severity_of_grows_with_the_excess(score: float, *, learning: bool, expected: str) -> None:
    """Severity counts in multiples of the threshold's u; the baseline never says critical."""
    assert severity_of(score, 0.8, learning=learning) == expected


def test_severity_of_alarm_under_the_threshold_is_info() -> None:
    """An open alarm whose score has fallen is the least bad kind, not an error."""
    assert severity_of(0.3, 0.8, learning=False) == "info"


def test_alert_id_same_reading_same_id() -> None:
    """The id depends on instance, device, opening time and number of the reading, and on nothing else."""
    assert alert_id("a", "d", 1.5, 7) == alert_id("a", "d", 1.5, 7)
    others = {
        alert_id("b", "d", 1.5, 7),
        alert_id("a", "e", 1.5, 7),
        alert_id("a", "d", 1.25, 7),
        alert_id("a", "d", 1.5, 8),
        alert_id("ad", "", 1.5, 7),
    }
    assert alert_id("a", "d", 1.5, 7) not in others
    assert len(others) == 5
    assert re.fullmatch(r"[0-9a-f]{16}", alert_id("a", "d", 1.5, 7))


def test_follow_severity_is_what_was_told_last() -> None:
    """An update that tells less makes what is worse than it news again."""
    track = Track()
    told = play(track, [True] * 8, [0.99, 0.99, 0.99, 0.99, 0.81, 0.81, 0.99, 0.99], every_s=4)
    assert [(t, word) for t, word in enumerate(told) if word] == [
        (0, "opened"),
        (4, "updated"),
        (6, "updated"),
    ]
    assert track.severity == "critical"


def test_follow_clock_set_back_never_makes_a_duration_negative() -> None:
    """An alert that was opened in a future that is taken back counts from now, and goes on being updated."""
    track = Track()
    assert play(track, [True], start_s=5000) == ["opened"]
    told = play(track, [True] * 50, every_s=20, start_s=1000)
    assert [t for t, word in enumerate(told) if word] == [20, 40]
    assert track.opened_s == 1000

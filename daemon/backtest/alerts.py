"""From alarms to the alerts that people would have been sent: the daemon's own alert table, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gruard.daemon.core import alerts as table
from gruard.daemon.core.events import Alert
from gruard.daemon.core.payloads import sentence

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from gruard.daemon.backtest.series import Series
    from gruard.daemon.records import Severity
    from gruard.models.lockstep import SeriesScores

#: Fields that an alert names at most.
TOP_FIELDS = 3


@dataclass(slots=True)
class Raised:
    """One alert, in rows of its series."""

    first: int  # where it opened
    last: int  # the last row in which it was open
    ended: bool  # resolved within the recording
    severity: str  # the worst it came to
    peak: float  # highest score while open
    shares: tuple[tuple[str, float], ...]  # at the opening, largest first
    message: str  # the sentence that people would have read


def raise_alerts(series: Series, scores: SeriesScores, update_every_s: float) -> list[Raised]:
    """Every alert of a series, oldest first."""
    track = table.Track()
    raised: list[Raised] = []
    times = series.history.time_s.tolist()
    values, thresholds = scores.value.tolist(), scores.threshold.tolist()
    for row, alarm in enumerate(scores.alarm.tolist()):
        if not (alarm or track.id):
            continue
        severity = table.severity_of(values[row], thresholds[row], learning=not bool(scores.ready[row]))
        change = table.follow(
            track,
            alarm=alarm,
            time_s=times[row],
            update_every_s=update_every_s,
            severity=severity,
            new_id="open",
        )
        if change == "opened":
            raised.append(_opened(series, scores, row, severity))
        elif change == "resolved":
            raised[-1].ended = True
        if track.id:
            newest = raised[-1]
            newest.last, newest.peak = row, max(newest.peak, values[row])
            newest.severity = track.severity
    return raised


def rows_open(raised: Sequence[Raised], rows: int) -> NDArray[np.bool_]:
    """Whether an alert was open, of each of `rows` rows (T,)."""
    is_open = np.zeros(rows, bool)
    for alert in raised:
        is_open[alert.first : alert.last + 1] = True
    return is_open


def _opened(series: Series, scores: SeriesScores, row: int, severity: Severity) -> Raised:
    shares = sorted(zip(series.fields, scores.share[row].tolist(), strict=True), key=lambda s: -s[1])
    time_s = float(series.history.time_s[row])
    alert = Alert(
        id="",
        state="opened",
        severity=severity,
        device=series.name,
        source="",
        group="",
        time_s=time_s,
        opened_s=time_s,
        score=float(scores.value[row]),
        threshold=float(scores.threshold[row]),
        value=_by_field(series.fields, series.history.values[row]),
        expected=_by_field(series.fields, scores.expected[row]),
        deviation={},
        contributions=tuple(shares),
        model="",
    )
    return Raised(
        row,
        row,
        ended=False,
        severity=severity,
        peak=alert.score,
        shares=tuple(shares[:TOP_FIELDS]),
        message=sentence(alert),
    )


def _by_field(fields: Sequence[str], row: NDArray[np.floating]) -> Mapping[str, float | None]:
    return {name: None if np.isnan(value) else float(value) for name, value in zip(fields, row, strict=True)}

"""What alarms are worth to whoever answers them: events caught, how late, and how often for nothing.

Arrays are one series: labels (T,) bool, alarm (T,) bool, scores (T,) float. An alarm that pauses for no
more than `gap` rows is one episode. It is false unless it falls in an event or the `grace` rows behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gruard.models.quality.ranking import checked, segments

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

#: Rows of silence that end an episode, and rows behind an event in which an alarm still counts for it.
GAP, GRACE = 30, 30
#: Rates are told per so many rows.
PER_ROWS = 10_000
#: Thresholds that `recall_at_budget` tries: tail quantiles of each series, thinned to so many in all.
TAIL, TRIED = np.geomspace(1e-5, 0.3, 60), 200


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the alarms of one series, or of several pooled, met its events."""

    events: int
    hit: int
    false_episodes: int
    quiet_rows: int  # rows in which an alarm would be false
    delays: tuple[int, ...]  # rows from an event's first row to its first alarm, one for each hit

    @property
    def recall(self) -> float:
        """Share of events hit; NaN without an event."""
        return self.hit / self.events if self.events else float("nan")

    @property
    def false_per_10k(self) -> float:
        """False episodes per 10,000 quiet rows; NaN without a quiet row."""
        return PER_ROWS * self.false_episodes / self.quiet_rows if self.quiet_rows else float("nan")

    @property
    def median_delay(self) -> float:
        """Rows until half of the events that were hit had been reported; NaN if none was."""
        return float(np.median(self.delays)) if self.delays else float("nan")


class Rates(NamedTuple):
    """Agreement row by row."""

    f1: float  # 0..1
    far: float  # false-alarm rate: percent of the normal rows
    mar: float  # missed-alarm rate: percent of the anomalous rows


@dataclass(frozen=True, slots=True)
class AtBudget:
    """The outcome at the lowest threshold that keeps within a budget of false episodes."""

    outcome: Outcome
    threshold: float  # infinite when even the highest one tried breaks the budget


def openings(alarm: NDArray[Any], gap: int = GAP) -> NDArray[np.int64]:
    """Rows at which an episode opens: an alarm after more than `gap` rows since the last one."""
    rows = np.flatnonzero(alarm)
    return rows[np.diff(rows, prepend=-gap - 2) > gap]


def judge(
    labels: NDArray[Any], alarm: NDArray[Any], *, start: int, gap: int = GAP, grace: int = GRACE
) -> Outcome:
    """Count events, hits and false episodes from row `start` on.

    Alarms before `start` are ignored, and so are events that ended before it. An event that is already on
    at `start` counts, with its delay from its own first row.

    Raises:
        ValueError: the lengths differ.
    """
    y, raised = checked(labels, alarm)
    heard = (raised != 0) & (np.arange(len(y)) >= start)
    excused = np.zeros(len(y), bool)
    events = [(first, last + grace + 1) for first, last in segments(y) if last >= start]
    delays = []
    for first, end in events:
        excused[first:end] = True
        answers = np.flatnonzero(heard[first:end])
        delays.extend(answers[:1].tolist())
    return Outcome(
        events=len(events),
        hit=len(delays),
        false_episodes=len(openings(heard & ~excused, gap)),
        quiet_rows=int(np.count_nonzero(~excused[start:])),
        delays=tuple(delays),
    )


def pooled(outcomes: Iterable[Outcome]) -> Outcome:
    """Several series as one."""
    parts = list(outcomes)
    return Outcome(
        events=sum(o.events for o in parts),
        hit=sum(o.hit for o in parts),
        false_episodes=sum(o.false_episodes for o in parts),
        quiet_rows=sum(o.quiet_rows for o in parts),
        delays=tuple(delay for o in parts for delay in o.delays),
    )


def binary(labels: NDArray[Any], alarm: NDArray[Any]) -> Rates:
    """F1, false-alarm rate and missed-alarm rate over rows. A rate of nothing is 0.

    Raises:
        ValueError: the lengths differ.
    """
    y, raised = checked(labels, alarm)
    said = raised != 0
    both, false, missed = (int(np.count_nonzero(rows)) for rows in (y & said, said & ~y, y & ~said))
    normal, anomalous = int(np.count_nonzero(~y)), int(np.count_nonzero(y))
    return Rates(
        f1=2.0 * both / max(2 * both + false + missed, 1),
        far=100.0 * false / max(normal, 1),
        mar=100.0 * missed / max(anomalous, 1),
    )


def recall_at_budget(
    series: Sequence[tuple[NDArray[Any], NDArray[Any], int]],
    per_10k: float,
    *,
    gap: int = GAP,
    grace: int = GRACE,
) -> AtBudget:
    """Compare detectors at one alarm load: series of (labels, scores, start), one threshold for all.

    The threshold is found with the labels at hand: this ranks detectors, it is not what a user would get.

    Raises:
        ValueError: there is no series, lengths differ or a score is not finite.
    """
    if not series:
        raise ValueError("no series to judge")

    def at(threshold: float) -> Outcome:
        return pooled(judge(y, s >= threshold, start=start, gap=gap, grace=grace) for y, s, start in series)

    nothing = at(np.inf)
    best = AtBudget(nothing, float("inf"))
    tried = _thresholds(series)
    low, high = 0, len(tried) - 1
    while low <= high:  # false episodes grow, nearly always, as the threshold falls
        middle = (low + high) // 2
        outcome = at(tried[middle])
        if PER_ROWS * outcome.false_episodes <= per_10k * max(outcome.quiet_rows, 1):
            best = AtBudget(outcome, float(tried[middle]))
            low = middle + 1
        else:
            high = middle - 1
    return best


def _thresholds(series: Sequence[tuple[NDArray[Any], NDArray[Any], int]]) -> NDArray[np.float64]:
    """Thresholds worth trying, falling: from the tails of all series, so that short ones have a say."""
    tails = [np.quantile(checked(y, s)[1][start:], 1 - TAIL) for y, s, start in series]
    distinct = np.unique(np.concatenate(tails))
    return np.unique(np.quantile(distinct, np.linspace(0, 1, TRIED), method="nearest"))[::-1]

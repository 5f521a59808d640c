"""How a detector did on a series: events found, how late, how often for nothing, and beside the controls.

What alerts are worth is counted behind the warm-up only; an alert is false when it opened outside of every
labelled anomaly and the GRACE rows behind it. Ranking (VUS-PR, AUC-PR) is over all rows, under
both conventions for the warm-up: its rows score zero, because a streaming detector is silent there and they
are known to be normal; or they score what the model that was fitted on them gives them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gruard.daemon.backtest.alerts import rows_open
from gruard.models.history import usual_gap
from gruard.models.quality import controls
from gruard.models.quality.episodes import GRACE, Outcome, binary, judge, pooled, recall_at_budget
from gruard.models.quality.ranking import auc_pr, period, segments, vus_pr

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from gruard.daemon.backtest.alerts import Raised
    from gruard.daemon.backtest.series import Series
    from gruard.models.lockstep import SeriesScores
    from gruard.models.quality.episodes import Rates

#: What our own detector is called beside the controls, and which of these are floors and no detectors.
GRUARD, FLOORS = "gruard", ("random", "always")
#: False episodes per 10,000 rows at which detectors are compared: each gets its best threshold for that.
BUDGET_PER_10K = 2.0
WEEK_S = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class Event:
    """One labelled anomaly and what became of it."""

    first: int  # rows, both inclusive
    last: int
    judged: bool  # false: it was over before the warm-up was
    alert: int | None  # index of the alert that found it
    delay: int | None  # rows from its first row to the first with an alert open
    delay_s: float | None
    peak: float  # highest score in it
    shares: tuple[tuple[str, float], ...]  # of the alert that found it


@dataclass(frozen=True, slots=True)
class Ranking:
    """How well one detector's scores rank anomalous rows above normal ones, 0..1."""

    vus_pr: float  # warm-up rows score zero
    auc_pr: float
    vus_pr_in_sample: float  # warm-up rows are scored by the model that was fitted on them
    auc_pr_in_sample: float
    found: int  # events, at the threshold that is best for BUDGET_PER_10K
    events: int


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """Scores that rank a series (T,), kept so that devices can be pooled."""

    labels: NDArray[np.bool_]
    start: int
    scores: Mapping[str, NDArray[np.float32]]  # detector -> (T,)


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What is said of one series. Without labels, `outcome` counts every alert as if it were false."""

    outcome: Outcome
    quiet_s: float | None  # time in which an alert would be false; None: the recording tells no time
    events: tuple[Event, ...]
    rates: Rates | None  # row by row, of our alerts; None without labels
    always: Rates | None  # the same for an alarm that never ends
    rankings: Mapping[str, Ranking]  # empty without an anomaly to rank
    ranked: Ranked | None

    @property
    def per_week(self) -> float | None:
        """False episodes per device and week."""
        return _per_week(self.outcome, self.quiet_s)


@dataclass(frozen=True, slots=True)
class Total:
    """All series together. Rates and rankings stand for those with labels, where there are any."""

    labelled: bool
    outcome: Outcome
    quiet_s: float | None
    delays_s: tuple[float, ...]
    rankings: Mapping[str, Ranking]  # VUS-PR, AUC-PR: means over the series that have an anomaly

    @property
    def per_week(self) -> float | None:
        """False episodes per device and week."""
        return _per_week(self.outcome, self.quiet_s)


def measure(
    series: Series,
    warmup: int,
    scores: SeriesScores,
    raised: Sequence[Raised],
    in_sample: NDArray[np.float32] | None,
) -> Measured:
    """Judge one scored series. `in_sample` (warmup,): the fitted model's scores of its own warm-up rows."""
    is_open = rows_open(raised, series.rows)
    labels = np.zeros(series.rows, bool) if series.labels is None else series.labels
    outcome = judge(labels, _told(labels, raised), start=warmup)
    gap_s = usual_gap(series.history.time_s)
    ranked = None
    rankings: dict[str, Ranking] = {}
    if series.anomalous and in_sample is not None:
        every = _every_score(series, warmup, scores, in_sample)
        window = period(series.history.values[:, 0])
        ranked = Ranked(labels, warmup, {name: s.astype(np.float32) for name, s in every.items()})
        rankings = {name: _ranking(labels, s, warmup, window) for name, s in every.items()}
    known = series.labels is not None
    return Measured(
        outcome,
        outcome.quiet_rows * gap_s if series.timed else None,
        tuple(_events(series, warmup, scores, raised)),
        binary(labels[warmup:], is_open[warmup:]) if known else None,
        binary(labels[warmup:], np.ones(series.rows - warmup, bool)) if known else None,
        rankings,
        ranked,
    )


def _told(labels: NDArray[np.bool_], raised: Sequence[Raised]) -> NDArray[np.bool_]:
    """Rows (T,) with an alert open, without the tails of alerts that opened in an anomaly or its grace.

    An alert that outlasts what it was raised for is no second alert, and nobody is called for it again.
    """
    excused = labels.copy()
    for first, last in segments(labels):
        excused[first : last + 1 + GRACE] = True
    told = np.zeros(len(labels), bool)
    for alert in raised:
        rows = slice(alert.first, alert.last + 1)
        told[rows] |= excused[rows] if excused[alert.first] else True
    return told


def total(measured: Sequence[tuple[Series, Measured]]) -> Total:
    """Several judged series as one."""
    labelled = [pair for pair in measured if pair[0].labels is not None]
    judged = labelled or list(measured)
    quiet = [m.quiet_s for _, m in judged]
    known_s = [seconds for seconds in quiet if seconds is not None]
    return Total(
        labelled=bool(labelled),
        outcome=pooled(m.outcome for _, m in judged),
        quiet_s=sum(known_s) if len(known_s) == len(quiet) else None,
        delays_s=tuple(e.delay_s for _, m in judged for e in m.events if e.delay_s is not None),
        rankings=_mean_rankings([m for _, m in judged]),
    )


def _per_week(outcome: Outcome, quiet_s: float | None) -> float | None:
    """False episodes per device and week; None where no time is known or none was quiet."""
    return outcome.false_episodes * WEEK_S / quiet_s if quiet_s else None


def _every_score(
    series: Series, warmup: int, scores: SeriesScores, in_sample: NDArray[np.float32]
) -> dict[str, NDArray[np.float64]]:
    """Detector -> scores (T,), with the warm-up rows as the fitted model scores them."""
    own = np.concatenate([in_sample, scores.value[warmup:]]).astype(np.float64)
    values = series.history.values
    return {GRUARD: own, **{name: controls.score(name, values, warmup) for name in controls.CONTROLS}}


def _ranking(labels: NDArray[np.bool_], scores: NDArray[np.float64], warmup: int, window: int) -> Ranking:
    silent = scores.copy()
    # Below every other score, whatever its scale.
    silent[:warmup] = min(0.0, float(scores.min()))
    outcome = recall_at_budget([(labels, scores, warmup)], BUDGET_PER_10K).outcome
    return Ranking(
        vus_pr(labels, silent, window),
        auc_pr(labels, silent),
        vus_pr(labels, scores, window),
        auc_pr(labels, scores),
        outcome.hit,
        outcome.events,
    )


def _mean_rankings(measured: Sequence[Measured]) -> dict[str, Ranking]:
    ranked = [m for m in measured if m.ranked is not None]
    if not ranked:
        return {}
    return {name: _mean_ranking(name, ranked) for name in ranked[0].rankings}


def _mean_ranking(name: str, measured: Sequence[Measured]) -> Ranking:
    kept = [m.ranked for m in measured if m.ranked is not None]
    outcome = recall_at_budget([(r.labels, r.scores[name], r.start) for r in kept], BUDGET_PER_10K).outcome
    each = [m.rankings[name] for m in measured]
    return Ranking(
        float(np.mean([r.vus_pr for r in each])),
        float(np.mean([r.auc_pr for r in each])),
        float(np.mean([r.vus_pr_in_sample for r in each])),
        float(np.mean([r.auc_pr_in_sample for r in each])),
        outcome.hit,
        outcome.events,
    )


def _events(series: Series, warmup: int, scores: SeriesScores, raised: Sequence[Raised]) -> list[Event]:
    if series.labels is None:
        return []
    only = np.zeros(series.rows, bool)
    is_open = rows_open(raised, series.rows)
    found = []
    for first, last in segments(series.labels):
        only[first : last + 1] = True
        delays = judge(only, is_open, start=warmup).delays
        only[first : last + 1] = False
        delay = delays[0] if delays else None
        alert = None if delay is None else _at(raised, first + delay)
        times = series.history.time_s
        found.append(
            Event(
                first,
                last,
                last >= warmup,
                alert,
                delay,
                None if delay is None or not series.timed else float(times[first + delay] - times[first]),
                float(scores.value[first : last + 1].max()),
                () if alert is None else raised[alert].shares,
            )
        )
    return found


def _at(raised: Sequence[Raised], row: int) -> int | None:
    return next((n for n, alert in enumerate(raised) if alert.first <= row <= alert.last), None)

"""From traces to figures: how well a contender did on a suite.

Ranking is told under both conventions for warm-up rows: `zero` puts them below every other score, because a
streaming detector is silent there and they are known to be normal; `scored` ranks what a fitted model gives
its own warm-up, or, of a detector that always adapts, what it said at the time. All else is counted behind
the warm-up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from quality.suites import NAB_SCORED, RANKED

from gruard.models.quality import controls
from gruard.models.quality.episodes import binary, judge, pooled, recall_at_budget
from gruard.models.quality.nab import nab_scores
from gruard.models.quality.ranking import auc_pr, period, vus_pr

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from quality.suites import Stream
    from quality.trace import Trace

    Floats = NDArray[np.float64]
    Pairs = Sequence[tuple[Stream, Trace]]

#: False episodes per 10,000 rows at which all are compared, each at its best threshold for that.
BUDGET_PER_10K = 2.0
#: Suites in which every row of the faulty stretch is labelled, so that rates by row mean something.
BY_ROW = ("skab",)
#: A score speaks where it exceeds its last so many values: for the NAB score of detectors without an onset
#: score of their own. NAB charges every row, so that a score that stays up would pay over and over.
QUIET_ROWS = 150


def figures(suite: str, pairs: Pairs, *, floor: bool = False) -> dict[str, Any]:
    """All figures of one contender and seed on one suite: name -> number, None where there is none."""
    found: dict[str, Any] = {
        "microseconds": float(np.median([trace.microseconds for _, trace in pairs])),
        "fit_seconds": float(np.mean([trace.fit_seconds for _, trace in pairs])),
    }
    found |= _at_budget(pairs) | _by_alarm(suite, pairs)
    if suite in RANKED:
        found |= _ranking(pairs)
    if suite == NAB_SCORED:
        series = [(_onsets(t, floor=floor), s.windows) for s, t in pairs]
        found |= {f"nab_{name}": score.value for name, score in nab_scores(series).items()}
    return {name: None if _is_nan(value) else value for name, value in found.items()}


def smoothed(trace: Trace) -> Trace:
    """The same detector behind a running mean, as gruard's controls are: its values alone."""
    values = controls.smoothed(trace.values)
    return type(trace)(
        values, None, None, None, trace.microseconds, trace.fit_seconds, trace.measured, trace.versions
    )


def silent(trace: Trace, warmup: int) -> Floats:
    """Scores (T,) with the warm-up below every other row, whatever the scale."""
    values = trace.values.copy()
    values[:warmup] = min(0.0, float(values.min()))
    return values


def scored(trace: Trace, warmup: int) -> Floats:
    """Scores (T,) with the warm-up as the fitted model scores it, or as it was scored at the time."""
    if trace.in_sample is None:
        return trace.values
    return np.concatenate([trace.in_sample, trace.values[warmup:]])


def loudest(values: Floats, rows: int = QUIET_ROWS) -> Floats:
    """Values (T,) where they exceed all of the last `rows`, elsewhere the least value of all."""
    padded = np.concatenate([np.full(rows, -np.inf), values])
    before = np.lib.stride_tricks.sliding_window_view(padded[:-1], rows).max(axis=1)
    return np.where(values > before, values, values.min())


def _ranking(pairs: Pairs) -> dict[str, Any]:
    """VUS-PR and AUC-PR under both conventions: means over the streams with an anomaly, and each stream's."""
    conventions: dict[str, Callable[[Trace, int], Floats]] = {"zero": silent, "scored": scored}
    found: dict[str, Any] = {}
    labelled = [(s, t) for s, t in pairs if s.labels.any()]
    windows = [period(s.values[:, 0]) for s, _ in labelled]
    for name, convention in conventions.items():
        scores = [convention(t, s.warmup) for s, t in labelled]
        each = [vus_pr(s.labels, v, w) for (s, _), v, w in zip(labelled, scores, windows, strict=True)]
        found[f"vus_{name}"] = float(np.mean(each))
        found[f"vus_{name}_streams"] = {s.name: vus for (s, _), vus in zip(labelled, each, strict=True)}
        found[f"auc_{name}"] = float(
            np.mean([auc_pr(s.labels, v) for (s, _), v in zip(labelled, scores, strict=True)])
        )
    return found


def _at_budget(pairs: Pairs) -> dict[str, Any]:
    best = recall_at_budget([(s.labels, t.values, s.warmup) for s, t in pairs], BUDGET_PER_10K)
    return {"budget_recall": best.outcome.recall, "budget_false": best.outcome.false_per_10k}


def _by_alarm(suite: str, pairs: Pairs) -> dict[str, Any]:
    """What the detector's own alarms were worth; {} for a detector that raises none."""
    raised = [(s, t.alarms) for s, t in pairs if t.alarms is not None]
    if not raised:
        return {}
    outcome = pooled(judge(s.labels, alarms, start=s.warmup) for s, alarms in raised)
    found = {
        "events": outcome.events,
        "hit": outcome.hit,
        "false_per_10k": outcome.false_per_10k,
        "delay": outcome.median_delay,
    }
    if suite in BY_ROW:
        labels = np.concatenate([s.labels[s.warmup :] for s, _ in raised])
        rates = binary(labels, np.concatenate([alarms[s.warmup :] for s, alarms in raised]))
        found |= {"f1": rates.f1, "far": rates.far, "mar": rates.mar}
    return found


def _onsets(trace: Trace, *, floor: bool) -> Floats:
    if trace.onsets is not None:
        return trace.onsets
    return trace.values if floor else loudest(trace.values)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and bool(np.isnan(value))

"""Recordings of N devices that share one network, scored causally: row t of every device is one live step.

It is `Detector` for many devices at once, and with one history it gives the same scores: rows before
`warmup` are scored by the adaptive baseline, a model is trained on them and takes charge, and nothing
depends on a later row.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from gruard.models.detector import LEAST_WARMUP, train_inline
from gruard.models.group import ENROL_AT, GroupScorer, Phase
from gruard.models.history import History

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from gruard.models.detector import DetectorConfig
    from gruard.models.group import Scores

#: Rows between two calls of `progress`.
TELL_EVERY = 100


@dataclass(frozen=True, slots=True, eq=False)
class SeriesScores:
    """What the T readings of one device scored, each before it was learnt from: see `Score`."""

    value: NDArray[np.float32]  # (T,) 0..1, higher = more anomalous; 0 while gathering
    threshold: NDArray[np.float32]  # (T,) the score that opens an alarm; 1 while gathering
    onset: NDArray[np.float32]  # (T,) 0..1, above 0 where something begins
    ready: NDArray[np.bool_]  # (T,) there is a model, and it or the calibrated baseline is in charge
    alarm: NDArray[np.bool_]  # (T,) above the false-alarm budget's threshold, with hysteresis
    expected: NDArray[np.float32]  # (T, F) physical units; NaN while gathering
    share: NDArray[np.float32]  # (T, F) how much each field contributes; sums to 1


def score_series(
    histories: Sequence[History],
    warmup: int,
    config: DetectorConfig,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[SeriesScores]:
    """Score the readings of N devices (T_n,), (T_n, F), which may differ in length but not in fields.

    The network is trained at row `warmup` on the rows before it of all devices; `normal` of a history is
    not read. `progress` is told how many readings are done, all devices together; when `stop` says so, the
    arrays end with the row before.

    Raises:
        ValueError: there is no device, the warm-up is too short, or devices have different fields.
        ModelError: there is too little in the warm-up to train on.
    """
    widths = {history.values.shape[1] for history in histories}
    if len(widths) != 1:
        raise ValueError(f"devices of one network have one set of fields, not {len(widths)}")
    if warmup < LEAST_WARMUP:
        raise ValueError(f"warmup must be at least {LEAST_WARMUP} readings, not {warmup}")
    group = GroupScorer(widths.pop(), config.budget)
    slots = np.array([group.add() for _ in histories])
    lengths = np.array([len(history.time_s) for history in histories])
    results = [_nothing(history) for history in histories]
    done = 0
    for row in range(int(lengths.max())):
        if stop is not None and stop():
            return [_cut(own, row) for own in results]
        here = np.flatnonzero(lengths > row).tolist()  # B devices
        if row == warmup:
            taught = [n for n in range(len(histories)) if lengths[n] >= warmup]
            heads = [_head(histories[n], warmup, results[n].alarm) for n in taught]
            train_inline(group, slots[taught], heads, config, whole=histories[taught[0]])
        time_s = np.array([histories[n].time_s[row] for n in here])
        scores = group.score(slots[here], time_s, np.array([histories[n].values[row] for n in here]))
        for b, n in enumerate(here):
            _note(results[n], row, scores, b, trained=group.forecaster is not None)
        if row + 1 in ENROL_AT and row + 1 < warmup:
            group.enrol(slots[here], [_head(histories[n], row + 1, results[n].alarm) for n in here])
        done += len(here)
        if progress is not None and (row % TELL_EVERY == TELL_EVERY - 1 or row + 1 == lengths.max()):
            progress(done)
    return results


def _nothing(history: History) -> SeriesScores:
    rows, width = history.values.shape
    return SeriesScores(
        value=np.zeros(rows, np.float32),
        threshold=np.ones(rows, np.float32),
        onset=np.zeros(rows, np.float32),
        ready=np.zeros(rows, bool),
        alarm=np.zeros(rows, bool),
        expected=np.full((rows, width), np.nan, np.float32),
        share=np.full((rows, width), 1.0 / width, np.float32),
    )


def _cut(own: SeriesScores, rows: int) -> SeriesScores:
    """The first rows of what a device scored."""
    return SeriesScores(**{part.name: getattr(own, part.name)[:rows] for part in fields(own)})


def _note(own: SeriesScores, row: int, scores: Scores, b: int, *, trained: bool) -> None:
    """Write down what entry b of a batch scored at `row`."""
    own.expected[row], own.share[row] = scores.reasons.expected[b], scores.reasons.share[b]
    own.alarm[row], own.onset[row] = scores.alarm[b], scores.onset[b]
    own.ready[row] = trained and scores.phase[b] >= Phase.LEARNING
    if scores.phase[b] != Phase.GATHERING:
        own.value[row] = scores.score[b]
        own.threshold[row] = scores.threshold[b]


def _head(history: History, rows: int, alarm: NDArray[np.bool_]) -> History:
    """The first rows of a history, without what was in alarm."""
    return History(history.time_s[:rows], history.values[:rows], ~alarm[:rows])

"""The NAB score: early alarms inside anomaly windows earn, alarms outside them cost.

Lavin & Ahmad, "Evaluating Real-Time Anomaly Detection Algorithms: the Numenta Anomaly Benchmark" (ICMLA
2015). A window pays once, for its earliest alarm: the most at its left edge, next to nothing at its right.
Every alarm row outside the windows costs, little just behind one and the full price far from any. One
threshold holds for the whole corpus and is the best one for the profile, by NAB's own protocol. 0 is the
score of silence, 100 of an alarm on the first row of every window and nowhere else.

Every alarm row outside a window is charged, so a detector does well to speak once: feed an onset score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

#: Leading share of a series in which nothing is scored, and the most rows that it may be.
PROBATION, MOST_PROBATION = 0.15, 750.0
#: Steepness of the reward curve, and how many window widths behind a window the full price is reached.
STEEPNESS, FULL_PRICE_AT = 5.0, 3.0


@dataclass(frozen=True, slots=True)
class Profile:
    """What the three outcomes are worth."""

    reward: float  # an alarm at the left edge of a window
    price: float  # an alarm row far from any window
    miss: float  # a window without an alarm


PROFILES: Mapping[str, Profile] = {
    "standard": Profile(1.0, 0.11, 1.0),
    "low_fp": Profile(1.0, 0.22, 1.0),
    "low_fn": Profile(1.0, 0.11, 2.0),
}


class NabScore(NamedTuple):
    """The score of one profile, and the corpus-wide threshold it was reached with (>= raises an alarm)."""

    value: float
    threshold: float


#: Scores (T,) of one series and its anomaly windows as (first, last) rows, inclusive, in order.
Series = tuple["NDArray[Any]", "Sequence[tuple[int, int]]"]


def nab_scores(
    series: Sequence[Series], thresholds: Mapping[str, float] | None = None
) -> dict[str, NabScore]:
    """Score a corpus in every profile, at the given threshold of each or at the best one.

    Raises:
        ValueError: there is no window in the corpus, or a score is not finite.
    """
    corpus = _join(series)
    return {
        name: _best(corpus, profile, None if thresholds is None else thresholds[name])
        for name, profile in PROFILES.items()
    }


@dataclass(frozen=True, slots=True)
class _Corpus:
    """All rows behind probation, highest score first."""

    scores: NDArray[np.float64]  # (R,)
    worth: NDArray[np.float64]  # (R,) share of the reward inside a window, of the price (negative) outside
    window: NDArray[np.int64]  # (R,) index of the window a row lies in, -1 outside
    windows: int  # in the labels, with those that lie in probation


def _join(series: Sequence[Series]) -> _Corpus:
    scores, worth, window, windows = [], [], [], 0
    for s, spans in series:
        counted = slice(int(min(PROBATION * len(s), MOST_PROBATION)), None)
        row_worth, row_window = _rows(len(s), spans)
        scores.append(np.asarray(s, np.float64)[counted])
        worth.append(row_worth[counted])
        window.append(np.where(row_window < 0, -1, row_window + windows)[counted])
        windows += len(spans)
    if windows == 0:
        raise ValueError("a corpus without anomaly windows has no NAB score")
    joined = np.concatenate(scores)
    if not np.isfinite(joined).all():
        raise ValueError("a score is not finite")
    order = np.argsort(-joined, kind="stable")
    return _Corpus(joined[order], np.concatenate(worth)[order], np.concatenate(window)[order], windows)


def _rows(rows: int, windows: Sequence[tuple[int, int]]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """What an alarm on each row of a series is worth, and the window it lies in (-1 = none): (T,) each."""
    worth, window = np.full(rows, -1.0), np.full(rows, -1)
    for k, (first, last) in enumerate(windows):
        width = last - first + 1
        inside = np.arange(first, last + 1)
        worth[inside] = _curve((inside - last - 1) / width) / _curve(-1.0)
        window[inside] = k
        if width > 1:
            behind = np.arange(last + 1, windows[k + 1][0] if k + 1 < len(windows) else rows)
            worth[behind] = _curve((behind - last) / (width - 1))
    return worth, window


def _curve(x: Any) -> NDArray[np.float64]:
    """NAB's scaled sigmoid, 2 / (1 + exp(5 x)) - 1, of a position in window widths past the right edge."""
    return np.where(x > FULL_PRICE_AT, -1.0, -np.tanh(STEEPNESS * np.asarray(x, np.float64) / 2.0))


def _best(corpus: _Corpus, profile: Profile, threshold: float | None) -> NabScore:
    """The score at `threshold`, or at the best of all distinct scores and silence."""
    gained = np.where(corpus.window < 0, profile.price * corpus.worth, 0.0)  # (R,)
    within = np.flatnonzero(corpus.window >= 0)
    reachable = np.unique(corpus.window[within])
    for k in reachable:  # as the threshold falls, a window pays what its best row adds to the best so far
        rows = within[corpus.window[within] == k]
        best_so_far = np.maximum.accumulate(profile.reward * corpus.worth[rows])
        gained[rows] = np.diff(best_so_far, prepend=-profile.miss)
    ends = np.append(np.flatnonzero(np.diff(corpus.scores)), len(corpus.scores) - 1)
    levels = np.append(np.inf, corpus.scores[ends])  # (L,) falling
    above_silence = np.append(0.0, np.cumsum(gained)[ends])
    if threshold is None:
        chosen = int(np.argmax(above_silence))
    else:
        chosen = int(np.count_nonzero(levels >= threshold)) - 1
    most = profile.reward * corpus.windows + profile.miss * len(reachable)
    return NabScore(float(100.0 * above_silence[chosen] / most), float(levels[chosen]))

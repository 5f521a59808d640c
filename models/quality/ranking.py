"""How well scores rank anomalous rows above normal ones, without any threshold of the detector's own.

Arrays here are one series: labels (T,) bool, scores (T,) float, higher = more anomalous. A measure of a
series without an anomaly is NaN: there is nothing to rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

#: Score levels at which the precision-recall surface is sampled, as TSB-AD does. With fewer, the same
#: scores read up to 0.1 lower where anomalies are rare.
THRESHOLDS = 250
#: Longest period looked for, the shortest, and the one taken for a series that has none.
LONGEST_PERIOD, SHORTEST_PERIOD, NO_PERIOD = 300, 3, 125
#: Rows of a series that its period is read from, and the lags that are tried.
PERIOD_ROWS, PERIOD_LAGS = 20_000, 400


def segments(flags: NDArray[Any]) -> list[tuple[int, int]]:
    """Runs of true rows in `flags` (T,) as (first, last) pairs, both inclusive."""
    edges = np.diff(np.concatenate([[0], (np.asarray(flags) != 0).astype(np.int8), [0]]))
    first, last = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1
    return list(zip(first.tolist(), last.tolist(), strict=True))


def auc_pr(labels: NDArray[Any], scores: NDArray[Any]) -> float:
    """Average precision: recall gained at each distinct score, times the precision there.

    Raises:
        ValueError: the lengths differ or a score is not finite.
    """
    y, s = checked(labels, scores)
    if not y.any():
        return float("nan")
    order = np.argsort(-s, kind="stable")
    level_ends = np.append(np.flatnonzero(np.diff(s[order])), len(s) - 1)
    found = np.cumsum(y[order])[level_ends]
    precision = found / (level_ends + 1)
    return float(np.sum(np.diff(found, prepend=0) * precision) / y.sum())


def period(x: NDArray[Any]) -> int:
    """The dominant period of one field x (T,) in rows: the highest peak of its autocorrelation.

    It is TSB-AD's rule for the width of VUS-PR's label shoulders, applied to the first field. A series
    without a peak gets NO_PERIOD. Missing values (NaN) count as the mean.
    """
    head = np.asarray(x, np.float64).ravel()[:PERIOD_ROWS]
    seen = np.isfinite(head)
    centred = np.where(seen, head - (head[seen].mean() if seen.any() else 0.0), 0.0)
    rows = len(centred)
    if rows < 10 or not centred.any():
        return NO_PERIOD
    width = 1 << (2 * rows - 1).bit_length()  # padded: a circular correlation would join end to start
    spectrum = np.fft.rfft(centred, width)
    lags = min(PERIOD_LAGS, rows - 1)
    correlation = np.fft.irfft(np.square(np.abs(spectrum)), width)[SHORTEST_PERIOD : lags + 1]
    inner = correlation[1:-1]
    peaks = np.flatnonzero((inner > correlation[:-2]) & (inner > correlation[2:])) + 1
    if len(peaks) == 0:
        return NO_PERIOD
    # TSB-AD judges the lag counted from the shortest one; kept, so that windows agree with its own.
    highest = int(peaks[np.argmax(correlation[peaks])])
    return highest + SHORTEST_PERIOD if SHORTEST_PERIOD <= highest <= LONGEST_PERIOD else NO_PERIOD


def vus_pr(labels: NDArray[Any], scores: NDArray[Any], window: int, thresholds: int = THRESHOLDS) -> float:
    """Volume under the surface of precision and recall, for label shoulders of 0..window rows.

    Paparrizos et al., "Volume Under the Surface" (VLDB 2022), in TSB-AD's convention. For each width w the
    labels gain shoulders of w // 2 rows on both sides of an event, worth sqrt(1 - distance / w), so that a
    score a little early or late still earns something. At each of `thresholds` score levels, spaced evenly
    by rank, precision is the label mass of the predicted rows over their number; recall is the same mass
    over the mean of the hard labels and the labels with the shoulders predicted, at most 1, times the share
    of events touched. The result is the area under the precision-recall steps, averaged over w.

    Raises:
        ValueError: lengths differ, a score is not finite, window < 0 or thresholds < 2.
    """
    y, s = checked(labels, scores)
    if window < 0 or thresholds < 2:
        raise ValueError(f"window must be 0 or more and thresholds 2 or more, not {window} and {thresholds}")
    if not y.any():
        return float("nan")
    levels = np.sort(s)[::-1][np.linspace(0, len(s) - 1, thresholds).astype(int)]  # (K,) falling
    level_of = np.searchsorted(-levels, -s)  # (T,) first level at which a row is predicted
    predicted = _cumulated(level_of, thresholds)  # (K,)
    hard = _cumulated(level_of[y], thresholds)  # (K,)
    events = segments(y)
    shoulders = _Shoulders(y, events, window // 2)
    side_levels = level_of[shoulders.rows]
    volume = 0.0
    for reach, region_levels in enumerate(_widening(events, level_of, window // 2)):
        touched = _cumulated(region_levels, thresholds) / len(region_levels)  # (K,)
        for w in range(2 * reach, min(2 * reach + 1, window) + 1):
            side = _cumulated(side_levels, thresholds, shoulders.mass(w))  # (K,)
            soft = hard + side
            recall = np.minimum(soft / (y.sum() + side / 2.0), 1.0) * touched
            volume += float(np.sum(np.diff(recall, prepend=0.0) * soft / predicted))
    return volume / (window + 1)


def checked(labels: NDArray[Any], scores: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Labels (T,) as bool and scores (T,) as float64.

    Raises:
        ValueError: the shapes differ, are not (T,), or a score is not finite.
    """
    y, s = np.asarray(labels) != 0, np.asarray(scores, np.float64)
    if y.ndim != 1 or y.shape != s.shape:
        raise ValueError(f"labels and scores must be two rows of one length, not {y.shape} and {s.shape}")
    if not np.isfinite(s).all():
        raise ValueError("a score is not finite: leave such rows out or score them 0")
    return y, s


def _cumulated(
    level_of: NDArray[np.int64], levels: int, mass: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Number (or mass) of rows predicted at each level or before: level_of (N,) -> (K,)."""
    return np.cumsum(np.bincount(level_of, mass, minlength=levels)).astype(np.float64)


def _widening(
    events: list[tuple[int, int]], level_of: NDArray[np.int64], reach: int
) -> Iterator[NDArray[np.int64]]:
    """The level at which each region is touched, with regions 0, 1, .. reach rows wider than their events.

    Regions that meet are one region, so there are fewer of them as they widen.
    """
    first, last = np.array(events).T  # (E,) each
    level = np.array([level_of[a : b + 1].min() for a, b in events])  # (E,)
    for widened in range(reach + 1):
        before, after = np.maximum(first - widened, 0), np.minimum(last + widened, len(level_of) - 1)
        level = np.minimum(level, np.minimum(level_of[before], level_of[after]))
        apart = np.append(True, last[:-1] + widened < first[1:] - widened)
        yield np.minimum.reduceat(level, np.flatnonzero(apart))


class _Shoulders:
    """The rows beside events that a softened label reaches, and what it is worth there."""

    def __init__(self, y: NDArray[np.bool_], events: list[tuple[int, int]], reach: int) -> None:
        first, last = np.array(events).T[..., None]  # (E, 1) each
        steps = np.arange(1, reach + 1)
        near = np.concatenate([first - steps, last + steps]).ravel(order="F")  # nearest to its event first
        inside = (near >= 0) & (near < len(y))
        inside[inside] &= ~y[near[inside]]
        self._distance = np.repeat(steps, 2 * len(events))[inside]
        self.rows, self._row = np.unique(near[inside], return_inverse=True)

    def mass(self, w: int) -> NDArray[np.float64]:
        """Soft label of each row in `rows` for shoulders of width w."""
        reached = np.searchsorted(self._distance, w // 2, side="right")
        worth = np.sqrt(1.0 - self._distance[:reached] / max(w, 1))
        return np.minimum(np.bincount(self._row[:reached], worth, minlength=len(self.rows)), 1.0)

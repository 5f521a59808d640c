"""From evidence to a score with one meaning everywhere, and from a false-alarm budget to a threshold.

    u_s   = max(e_s - med_s, 0) / (q_s - med_s)      stream s = line x scale; med, q: held-back rows
    u     = (mean of u_s^4)^(1/4)                    u = 1: about the most that normal rows have shown
    score = u^2 / (1 + u^2)                          0 .. 1, and 0.5 at u = 1

Which rows calibrate matters more than the formula: rows that were trained on look too good.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from gruard.models.quantiles import quantile

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The quantile of normal evidence that maps to u = 1.
QUANTILE = 0.995
#: Power of the mean over streams: close to the maximum, but several streams that agree weigh more.
POWER = 4
#: Least width of (q - med) in sigma and as a share of med: a constant signal must not divide by zero.
FLOOR, FLOOR_SHARE = 0.05, 0.05
#: Readings an alarm lasts at least, roughly: excesses come in runs of about the middle scale.
RUN_LENGTH = 30.0
#: An alarm is raised above a level within these bounds and falls back below FALL times that level.
LEVEL_LOW, LEVEL_HIGH, FALL = 1.25, 4.0, 0.8

#: A few hundred held-back rows may show hardly any tail; the mean excess is taken as at least this.
LEAST_EXCESS = 0.07


def fit(
    final: NDArray[Any], held_back: NDArray[Any] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Median and upper quantile of each stream: rows (T, S) -> med (S,), q (S,).

    `held_back` are rows the scoring model was not fitted on; the larger quantile wins.
    """
    med = quantile(final, 0.5)
    q = quantile(final, QUANTILE)
    if held_back is not None and len(held_back):
        q = np.maximum(q, quantile(held_back, QUANTILE))
    return med.astype(np.float32), q.astype(np.float32)


def exceedance(e: NDArray[Any], med: NDArray[Any], q: NDArray[Any]) -> NDArray[np.float32]:
    """u per stream, same shape as `e`."""
    width = np.maximum(q - med, 0.0) + FLOOR_SHARE * np.abs(med) + FLOOR
    return np.asarray(np.maximum(e - med, 0.0) / width, np.float32)


def combine(u: NDArray[Any]) -> NDArray[np.float32]:
    """u (..., S) -> (...,): the 4th-power mean over streams."""
    return np.asarray(np.mean(u.astype(np.float64) ** POWER, axis=-1) ** (1 / POWER), np.float32)


def to_score(u: NDArray[Any]) -> NDArray[np.float32]:
    """u -> 0..1, monotone; 0.5 at u = 1, 0.8 at u = 2."""
    squared = np.square(np.asarray(u, np.float64))
    return np.asarray(squared / (1.0 + squared), np.float32)


def alarm_level(u: NDArray[Any], alarms_per_reading: float) -> float:
    """The u above which normal readings raise about `alarms_per_reading` alarms.

    `u` (T,) is of held-back normal rows. The excess of u over its 0.9 quantile is taken as exponential
    (Pickands 1975: the tail beyond a high threshold, shape 0) and extrapolated to the rate asked for.
    """
    rate = max(alarms_per_reading * RUN_LENGTH, 1e-12)
    if len(u) < 2:
        return LEVEL_HIGH
    threshold = float(quantile(u, 0.9))
    excess = u[u > threshold] - threshold
    mean_excess = max(float(excess.mean()) if len(excess) else 0.0, LEAST_EXCESS)
    level = max(threshold + mean_excess * math.log(max(0.1 / rate, 1.0)), LEVEL_LOW)
    return min(level, LEVEL_HIGH)

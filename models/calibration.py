"""From evidence to a score with one meaning everywhere, and from a false-alarm budget to a threshold.

    u_s   = max(e_s - med_s, 0) / (q_s - med_s)      stream s = line x scale; med, q: held-back rows
    u     = (mean of u_s^4)^(1/4)                    u = 1: about the most that normal rows have shown
    u*    = max(u, (mean of u^4 over 16 readings)^(1/4))    a fault that trembles is one fault
    score = u*^2 / (1 + u*^2)                        0 .. 1, and 0.5 at u* = 1

Which rows calibrate matters more than the formula: rows that were trained on look too good.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gruard.models.quantiles import quantile

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The quantile of normal evidence that maps to u = 1.
QUANTILE = 0.995
#: Power of the mean over streams: close to the maximum, but several streams that agree weigh more.
POWER = 4
#: Least width of (q - med), in sigma and as a share of med: a constant signal must not divide by zero.
FLOOR, FLOOR_SHARE = 1e-3, 0.05
#: Share of the newest u^4 in the afterglow, a mean over 16 readings; and the largest u that enters it.
GLOW, MOST_GLOW = np.float32(2.0 / 17.0), np.float32(1e4)
#: Readings an alarm lasts at least, roughly: excesses come in runs of about the middle scale.
RUN_LENGTH = 30.0
#: Bounds of the level above which an alarm opens; the lower one where a rate of alarms is wanted.
LEVEL_LOW, LEVEL_HIGH, LEVEL_LEAST = 1.2, 1.5, 0.3
#: A few hundred held-back rows may show hardly any tail; the mean excess is taken as at least this.
LEAST_EXCESS = 0.03


@dataclass(frozen=True, slots=True)
class Budget:
    """How many false alarms a device may raise.

    In time they are the most that are accepted. Per reading they are a rate that is also wanted: where there
    are fewer, the threshold falls.
    """

    per_second: float = 1.0 / (7 * 86_400)
    per_reading: float | None = None

    def rate(self, usual_gap_s: float) -> float:
        """Alarms per reading of a device that reports every `usual_gap_s` seconds."""
        return self.per_second * usual_gap_s if self.per_reading is None else self.per_reading

    @property
    def least_level(self) -> float:
        """Lowest level at which an alarm may open."""
        return LEVEL_LOW if self.per_reading is None else LEVEL_LEAST


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


def inverse_width(med: NDArray[Any], q: NDArray[Any]) -> NDArray[np.float32]:
    """1 / (q - med), the width at least FLOOR and FLOOR_SHARE of med: same shape."""
    return np.asarray(1.0 / (np.maximum(q - med, 0.0) + FLOOR_SHARE * np.abs(med) + FLOOR), np.float32)


def exceedance(e: NDArray[Any], med: NDArray[Any], inverse: NDArray[Any]) -> NDArray[np.float32]:
    """u per stream, same shape as `e`."""
    return np.asarray(np.maximum(e - med, 0.0) * inverse, np.float32)


def combine(u: NDArray[Any], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """u (..., S), weights (S, J) that sum to 1 a column -> (..., J): weighted 4th-power means."""
    squared = u * u
    return np.asarray(np.sqrt(np.sqrt((squared * squared) @ weights)), np.float32)


def equal_weights(*chosen: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Weights of one mean for each choice (S,) of streams: (S, J), the same for every stream chosen."""
    return np.stack([c / c.sum() for c in chosen], axis=1).astype(np.float32)


def glowing(u: NDArray[Any]) -> NDArray[np.float32]:
    """What of u enters the afterglow: u^4, same shape."""
    squared = np.square(np.minimum(u, MOST_GLOW))
    return np.asarray(squared * squared, np.float32)


def to_score(u: NDArray[Any]) -> NDArray[np.float32]:
    """u -> 0..1, monotone; 0.5 at u = 1, 0.8 at u = 2."""
    squared = np.square(np.asarray(u, np.float32))
    return np.asarray(squared / (squared + np.float32(1.0)), np.float32)


def alarm_level(m: NDArray[Any], alarms_per_reading: float, least: float = LEVEL_LOW) -> float:
    """The m (see `gruard.models.alarm`) above which normal readings raise about that many alarms.

    `m` (T,) is of held-back normal rows. The excess over its 0.9 quantile is taken as exponential
    (Pickands 1975: the tail beyond a high threshold, shape 0) and extrapolated to the rate asked for.
    """
    rate = max(alarms_per_reading * RUN_LENGTH, 1e-12)
    if len(m) < 2:
        return LEVEL_HIGH
    threshold = float(quantile(m, 0.9))
    excess = m[m > threshold] - threshold
    mean_excess = max(float(excess.mean()) if len(excess) else 0.0, LEAST_EXCESS)
    level = max(threshold + mean_excess * math.log(max(0.1 / rate, 1.0)), least)
    return min(level, LEVEL_HIGH)

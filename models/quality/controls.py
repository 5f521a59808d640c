"""Simple causal detectors. A model that does not beat them is not worth its weights.

    level        distance of the reading from the learned normal, whitened, mean over 30 readings
    linear       the same distance of the residual of a linear forecaster (ridge VAR)
    ewma         distance from a running mean in running standard deviations, the worst field
    last_value   the same for the change since the reading before
    random       noise: the floor, which differs from one recording to the next
    always       one constant score

`level` and `linear` learn from the warm-up rows and stay as they are; `ewma` and `last_value` adapt with
every reading; the last two learn nothing. No score depends on a later row, except that the warm-up rows
of `level` and `linear` are scored by what was fitted on them.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from gruard.models import evidence, linear, scaling

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Control = Callable[[NDArray[np.float64], int, int], NDArray[np.float64]]

#: Readings that the exponential mean of `level` and `linear` spans.
SPAN = 30
#: Floor of the whitening, as a share of the mean variance.
FLOOR = 0.3
#: Constant part of the ridge penalty. The controls have numbers of their own: they are the measure.
PENALTY = 10.0
#: Share of the newest reading in the running mean: of the values, of their changes.
VALUE_ALPHA, CHANGE_ALPHA = 0.02, 0.005
#: Readings before a running deviation means anything, and its floor: absolute and as a share of the mean.
FIRST_ROWS, DEVIATION_FLOOR, DEVIATION_SHARE = 10, 1e-6, 1e-3


def score(name: str, values: NDArray[Any], warmup: int, *, seed: int = 0) -> NDArray[np.float64]:
    """Score one device with the control `name`: values (T, F) in physical units, NaN = missing -> (T,).

    Higher = more anomalous. Only rows before `warmup` are learned from; `seed` matters to `random` alone.

    Raises:
        ValueError: there is no such control, the shape is wrong or there are too few warm-up rows.
    """
    if name not in CONTROLS:
        raise ValueError(f"no control named {name!r}: there are {', '.join(CONTROLS)}")
    x = np.asarray(values, np.float64)
    if x.ndim != 2 or x.shape[1] < 1:
        raise ValueError(f"values must be (rows, fields), not {x.shape}")
    if warmup <= linear.LAGS:
        raise ValueError(f"warmup must be more than {linear.LAGS} readings, not {warmup}")
    return CONTROLS[name](x, warmup, seed)


def smoothed(scores: NDArray[Any], span: int = SPAN) -> NDArray[np.float64]:
    """Exponential mean of scores (T,) that spans `span` readings, from the first one on."""
    alpha = 2.0 / (span + 1)
    return np.array(list(accumulate(scores.tolist(), lambda mean, s: mean + alpha * (s - mean))), np.float64)


def _level(x: NDArray[np.float64], warmup: int, _seed: int) -> NDArray[np.float64]:
    z, mask = _filled(x, warmup)
    return _distance(z, mask, z[:warmup], FLOOR)


def _linear(x: NDArray[np.float64], warmup: int, _seed: int) -> NDArray[np.float64]:
    z, mask = _filled(x, warmup)
    sums = linear.RidgeSums(z.shape[1])
    sums.add(z[:warmup], mask[:warmup])
    weights = sums.solve(PENALTY)
    lags = linear.lagged(z, sums.order).reshape(len(z), -1)  # (T, order*F)
    residual = np.asarray(z - (lags @ weights[:-1] + weights[-1]), np.float32)
    residual[: sums.order] = 0.0  # forecast from before the recording began
    return _distance(residual, mask, residual[sums.order : warmup], FLOOR)


def _filled(x: NDArray[np.float64], warmup: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Sigma and the mask of seen fields, missing values filled forward: (T, F) each."""
    z = scaling.to_sigma(x, *scaling.fit(x[:warmup]))
    mask = np.isfinite(z)
    last_seen = np.maximum.accumulate(np.where(mask, np.arange(len(z))[:, None], -1), axis=0)
    filled = np.take_along_axis(z, np.maximum(last_seen, 0), axis=0)
    return np.where(last_seen < 0, np.float32(0.0), filled), mask


def _distance(
    r: NDArray[np.float32], mask: NDArray[np.bool_], learned: NDArray[np.float32], floor: float
) -> NDArray[np.float64]:
    """Smoothed whitened distance of r (T, F), with the covariance of the rows `learned`."""
    P = evidence.precision(np.clip(learned, -evidence.CLIP, evidence.CLIP), floor)
    return smoothed(evidence.distances(r[None], mask, P[None])[0][0])


def _ewma(x: NDArray[np.float64], _warmup: int, _seed: int) -> NDArray[np.float64]:
    return _running_deviation(x, VALUE_ALPHA)


def _last_value(x: NDArray[np.float64], _warmup: int, _seed: int) -> NDArray[np.float64]:
    return _running_deviation(np.diff(x, axis=0, prepend=x[:1]), CHANGE_ALPHA)


def _running_deviation(x: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """|x - mean| in standard deviations, the most over fields, both running: x (T, F) -> (T,).

    Finch, "Incremental calculation of weighted mean and variance" (2009), section 9; a plain mean until
    there are 1 / alpha readings. A missing field moves nothing.
    """
    mean, variance = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    out = np.zeros(len(x))
    for t, row in enumerate(x):
        weight = max(alpha, 1.0 / (t + 1))
        error = np.where(np.isfinite(row), row - mean, 0.0)  # (F,)
        if t + 1 >= FIRST_ROWS:
            floor = DEVIATION_FLOOR + DEVIATION_SHARE * np.abs(mean)
            out[t] = (np.abs(error) / (np.sqrt(variance) + floor)).max()
        mean += weight * error
        variance = (1.0 - weight) * (variance + weight * np.square(error))
    return out


def _random(x: NDArray[np.float64], _warmup: int, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).random(len(x))


def _always(x: NDArray[np.float64], _warmup: int, _seed: int) -> NDArray[np.float64]:
    return np.ones(len(x))


CONTROLS: Mapping[str, Control] = {
    "level": _level,
    "linear": _linear,
    "ewma": _ewma,
    "last_value": _last_value,
    "random": _random,
    "always": _always,
}

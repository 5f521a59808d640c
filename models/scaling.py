"""Physical units <-> robust sigma, per device and field.

    z = soft((x - m) / s),   m = median,  s = IQR / 1.35, or the standard deviation

`soft` is the identity within +-5 and grows like the logarithm beyond, so that one wild reading stays
visible without filling the hidden state. A nearly constant field gets a floor for s: without one its
first change would be an astronomical score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gruard.models.quantiles import quantile

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: |z| up to which scaling is linear.
LINEAR = 5.0
#: IQR of a normal distribution in standard deviations.
IQR_SIGMA = 1.349

#: The extremes that a handful of damaged readings may make up, one at least, and how many IQR beyond the
#: rest they may lie before they are pulled in: 1e12 from a loose wire must not become the scale.
RARE, FAR = 0.01, 10.0
#: Scale, as a share of its value, of a field that has never moved: how far it may is not known.
STILL = 0.02
#: Least scale where all fields of a device lie within +-1: flags and shares of a whole, 2 % of it is little.
UNIT_SCALE = 0.02


def fit(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Location and scale of `values` (T, F) in physical units, NaN = missing -> m (F,), s (F,).

    A field that was never seen gets m = 0, s = 1.
    """
    seen = np.isfinite(values).any(axis=0)  # (F,)
    x = np.where(seen, values, 0.0)  # (T, F)
    rare = min(max(RARE, 1.0 / max(len(x) - 1, 1)), 0.25)
    columns = [column[np.isfinite(column)] for column in x.T]
    low, q25, m, q75, high = (
        np.array([quantile(column, q) for column in columns]) for q in (rare, 0.25, 0.5, 0.75, 1 - rare)
    )  # (F,) each
    x = np.clip(x, low - FAR * (q75 - q25), high + FAR * (q75 - q25))
    sd = np.nanstd(x, axis=0)
    spread = np.nanmax(x, axis=0) - np.nanmin(x, axis=0)
    s = (q75 - q25) / IQR_SIGMA
    # Fields that mostly rest and sometimes move (commands, duty cycles) have an IQR that says nothing.
    s = np.where(s < 0.3 * sd, sd, s)
    s = np.maximum(s, 0.02 * spread)
    s = np.maximum(s, 1e-3 * (np.abs(m) + 1e-3) + 1e-6)
    s = np.where(spread > 0, s, np.maximum(s, STILL * np.abs(m)))
    if x.shape[1] > 1 and np.nanmax(np.abs(x)) <= 1.0:
        s = np.maximum(s, UNIT_SCALE)
    return np.where(seen, m, 0.0), np.where(seen, s, 1.0)


def to_sigma(x: NDArray[Any], m: NDArray[Any], s: NDArray[Any]) -> NDArray[np.float32]:
    """Physical units -> z, same shape, float32. NaN stays NaN."""
    z = (x - m) / s
    size = np.abs(z)
    if not np.count_nonzero(size > LINEAR):
        return np.asarray(z, np.float32)
    beyond = np.sign(z) * (LINEAR + np.log1p(np.maximum(size - LINEAR, 0.0)))
    return np.asarray(np.where(size > LINEAR, beyond, z), np.float32)


def to_units(z: NDArray[Any], m: NDArray[Any], s: NDArray[Any]) -> NDArray[np.float64]:
    """The inverse of `to_sigma`."""
    size = np.abs(z.astype(np.float64))
    # expm1 of a hostile forecast must not overflow: 30 is far past anything `to_sigma` gives.
    beyond = np.sign(z) * (LINEAR + np.expm1(np.minimum(np.maximum(size - LINEAR, 0.0), 30.0)))
    return np.asarray(m + s * np.where(size > LINEAR, beyond, z), dtype=np.float64)

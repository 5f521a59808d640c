"""Lines of evidence: how far a reading is from what was expected, in sigma, at several time scales.

    residual   sqrt(r' P r / F)   r = reading - forecast, P = inverse of its shrunk covariance; per horizon
    level      the same for the reading itself: distance from the learned normal
    tail       mean log(1 + r^2 / 3) per field: both of them for the baseline, which has too few rows for P

A one-step forecaster follows a fault and goes quiet; a longer horizon does so later, the level never. Each
line is smoothed by exponential means over SCALES readings: short ones see a jolt, long ones a slow departure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Readings that each exponential mean spans; alpha = 2 / (k + 1).
SCALES = (1, 4, 16, 60)
ALPHAS = np.array([2.0 / (k + 1) for k in SCALES], np.float32)
#: A residual beyond this many sigma says nothing more.
CLIP = 50.0
#: Shrinkage towards the diagonal, and the floor as a share of the mean variance. The high floor keeps a field
#: that hardly moved in a short history from outvoting the others when it does; what a longer horizon leaves
#: of a field is never that small.
SHRINK, FLOOR, LONG_FLOOR = 0.2, 1.0, 0.3


def floors(lines: int) -> list[float]:
    """The floor of every line: the shortest horizon, the longer ones, the level."""
    return [FLOOR, *[LONG_FLOOR] * (lines - 2), FLOOR]


def precision(rows: NDArray[Any], floor: float) -> NDArray[np.float32]:
    """P (F, F): inverse of 0.8 C + 0.2 diag C + floor (tr C / F) I, C the covariance of rows (T, F)."""
    fields = rows.shape[1]
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    covariance = centred.T @ centred / max(len(rows), 1)
    mean_variance = max(np.trace(covariance) / fields, 1e-6)
    shrunk = (1 - SHRINK) * covariance + SHRINK * np.diag(np.diag(covariance))
    return np.linalg.inv(shrunk + floor * mean_variance * np.eye(fields)).astype(np.float32)


def distances(
    r: NDArray[np.float32], mask: NDArray[np.bool_], P: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Whitened distances of E lines: r (E, B, F), mask (B, F) or (E, B, F), P (E, F, F) -> (E, B), (E, B, F).

    The second result is what each field contributes, 0 or more. Missing fields add nothing; the rest is
    rescaled to the full number of fields.
    """
    seen = np.minimum(np.maximum(r, -CLIP), CLIP)
    fields: Any = r.shape[-1]
    if np.count_nonzero(mask) < mask.size:
        seen = np.where(mask, seen, np.float32(0.0))
        fields = np.maximum(mask.sum(axis=-1), 1)
    parts = seen * (seen @ P)  # (E, B, F)
    squared = np.maximum(parts.sum(axis=-1), 0.0) / np.asarray(fields, np.float32)
    return np.sqrt(squared), np.maximum(parts, 0.0)


def tail(r: NDArray[np.float32], mask: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Heavy-tailed distance of r (B, F), already in units of its own scale -> d (B,), parts (B, F)."""
    seen = np.where(mask, np.clip(r, -CLIP, CLIP), 0.0)
    parts = np.log1p(np.square(seen) / 3.0).astype(np.float32)
    return parts.sum(axis=1) / np.maximum(mask.sum(axis=1), 1), parts


def smooth(means: NDArray[np.float32], d: NDArray[np.float32]) -> NDArray[np.float32]:
    """Exponential means one reading on: means (B, E, K) and evidence d (B, E) -> (B, E, K)."""
    return np.asarray(means + ALPHAS * (d[..., None] - means), np.float32)


def smooth_series(d: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """`smooth` along a series: d (T, N, E), valid (T, N) -> (T, N, E, K), from the first valid value."""
    out = np.zeros((*d.shape, len(SCALES)), np.float32)
    means = np.zeros(out.shape[1:], np.float32)
    begun = np.zeros(d.shape[1], bool)
    for t in range(len(d)):
        first = valid[t] & ~begun
        means[first] = d[t, first, :, None]
        means = np.where(valid[t][:, None, None], smooth(means, d[t]), means)
        begun |= valid[t]
        out[t] = means
    return out

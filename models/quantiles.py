"""Quantiles along the first axis. numpy's own load its masked arrays: a megabyte on a small board."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def quantile(x: NDArray[Any], q: float) -> NDArray[Any]:
    """The q-quantile of x (T, ...) by linear interpolation between order statistics -> (...,)."""
    ordered = np.sort(x, axis=0)
    at = q * (len(x) - 1)
    low = int(at)
    high = min(low + 1, len(x) - 1)
    return np.asarray(ordered[low] + (at - low) * (ordered[high] - ordered[low]))

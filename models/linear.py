"""Closed-form linear forecasters: ridge regression on the last p readings.

The vector form (VAR) lets every field be predicted from every field and is shared by a group; the
per-field form (AR) needs only some fifty readings and belongs to one device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Readings of history that every device carries, newest first. Both forms read from it.
LAGS = 8
#: Readings the vector form looks back; a single field uses all of LAGS.
VAR_LAGS = 4
#: Ridge penalty: a constant plus a share of the mean squared regressor.
PENALTY, PENALTY_SHARE = 3.0, 0.01


def var_order(fields: int) -> int:
    """Readings the vector form looks back for this many fields."""
    return LAGS if fields == 1 else VAR_LAGS


def lagged(z: NDArray[np.float32], order: int, ahead: int = 1) -> NDArray[np.float32]:
    """Lag rows of a series: z (..., T, F) -> (..., T, order, F), newest first, zero before the start.

    Row t holds z[t - ahead], z[t - ahead - 1], ...: what was known `ahead` readings before t was seen.
    """
    out = np.zeros((*z.shape[:-1], order, z.shape[-1]), np.float32)
    for k in range(ahead, ahead + order):
        if k < z.shape[-2]:
            out[..., k:, k - ahead, :] = z[..., :-k, :]
    return out


class RidgeSums:
    """Normal equations of a vector forecaster, added up device by device so that memory stays flat.

    z[t] = W' [z[t-h], ..., z[t-h-p+1], clock[t], 1], for one horizon h
    """

    def __init__(self, fields: int, ahead: int = 1, clock_columns: int = 0) -> None:
        self.order, self.ahead, self.clock_columns = var_order(fields), ahead, clock_columns
        width = self.order * fields + clock_columns + 1
        self.gram = np.zeros((width, width))
        self.cross = np.zeros((width, fields))
        self.weight = np.zeros(fields)

    def add(
        self,
        z: NDArray[np.float32],
        mask: NDArray[np.bool_],
        normal: NDArray[np.bool_] | None = None,
        clock: NDArray[np.float32] | None = None,
    ) -> None:
        """Add one device's rows: z (T, F) forward-filled, mask (T, F) true where the field was seen.

        A row teaches when it and the rows it looks back on are `normal` (T,). clock (T, C).
        """
        if normal is None:
            normal = np.ones(len(z), bool)
        teaches = normal.copy()
        first = self.ahead + self.order - 1
        for k in range(self.ahead, first + 1):
            teaches[k:] &= normal[:-k]
        teaches[:first] = False
        design = self._design(z, clock)[teaches]  # (T', P)
        target = np.where(mask, z, 0.0)[teaches].astype(np.float64)
        self.gram += design.T @ design
        # Rows where a field is missing add nothing to that field's cross product, but the Gram matrix
        # is shared by all fields: rescale by the share of rows seen (exact when none is missing).
        seen = mask[teaches].sum(axis=0)  # (F,)
        self.cross += (design.T @ target) * (len(design) / np.maximum(seen, 1))
        self.weight += seen

    def solve(self, constant: float = PENALTY) -> NDArray[np.float32]:
        """Weights (P, F), P = order * F + C + 1, the constant last. Zero for a field never seen."""
        penalty = constant + PENALTY_SHARE * np.trace(self.gram) / len(self.gram)
        weights = np.linalg.solve(self.gram + penalty * np.eye(len(self.gram)), self.cross)
        return np.where(self.weight > 0, weights, 0.0).astype(np.float32)

    def residuals(
        self, z: NDArray[np.float32], weights: NDArray[np.float32], clock: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """z (T, F) less its forecast by `weights` (P, F); 0 where the forecast looks back past the start."""
        r = np.asarray(z - self._design(z, clock) @ weights, np.float32)
        r[: self.ahead + self.order - 1] = 0.0
        return r

    def _design(self, z: NDArray[np.float32], clock: NDArray[np.float32] | None) -> NDArray[np.float64]:
        rows = lagged(z, self.order, self.ahead).reshape(len(z), -1).astype(np.float64)
        known = np.zeros((len(z), 0)) if clock is None else clock
        return np.concatenate([rows, known, np.ones((len(z), 1))], axis=1)


def fit_ar(z: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """One AR(LAGS) a field: z, mask (T, F) of one device -> weights (F, LAGS + 1), constant last."""
    lags = np.moveaxis(lagged(z, LAGS), -1, 0)  # (F, T, LAGS)
    design = np.concatenate([lags, np.ones((*lags.shape[:-1], 1), np.float32)], axis=-1)  # (F, T, P)
    seen = mask.T.astype(np.float32)  # (F, T)
    seen[:, :LAGS] = 0.0
    weighted = np.swapaxes(design * seen[..., None], -1, -2)  # (F, P, T)
    gram = (weighted @ design).astype(np.float64)  # (F, P, P)
    cross = (weighted @ z.T[..., None]).astype(np.float64)  # (F, P, 1)
    trace = np.trace(gram, axis1=-2, axis2=-1)[..., None, None] / gram.shape[-1]
    # Per device the rows are few: one row's worth of penalty, not ten, lets a slow field be followed.
    penalty = (1.0 + PENALTY_SHARE * trace) * np.eye(gram.shape[-1])
    return np.linalg.solve(gram + penalty, cross)[..., 0].astype(np.float32)


def forecast_ar(lags: NDArray[np.float32], weights: NDArray[Any]) -> NDArray[np.float32]:
    """Forecast per field: lags (B, LAGS, F), weights (B, F, LAGS + 1) -> (B, F)."""
    return np.asarray(np.einsum("bkf,bfk->bf", lags, weights[..., :-1]) + weights[..., -1], np.float32)

"""The adaptive baseline: five trivial forecasts, weighted by how well each did lately. Nothing is trained.

    last value | three running means | recursive least squares AR(4)        weight ~ (recent mean error)^-4

It forecasts usefully from about the tenth reading of a new device and is what the recurrent model has
to beat. Recursive least squares after Haykin, Adaptive Filter Theory, ch. 10, with forgetting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gruard.models.arena import Column

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from numpy.typing import NDArray

#: Smoothing constants of the running means: about the last 3, 20 and 100 readings.
MEAN_ALPHAS = np.array([0.5, 0.1, 0.02], np.float32)
EXPERTS = 1 + len(MEAN_ALPHAS) + 1
#: Order of the recursive AR and its forgetting factor (a memory of about 200 readings).
RLS_ORDER, RLS_FORGET = 4, 0.995
#: Starting covariance; also what a covariance that has blown up is set back to.
RLS_PRIOR, RLS_LIMIT = 1.0, 1e3
#: Memory of "recent error": about the last 40 readings. Sharpness of the weighting.
ERROR_ALPHA, SHARPNESS = 0.05, 4
#: Errors under this many sigma count as equal: a constant field must not divide by zero.
ERROR_FLOOR = 1e-3


def columns(fields: int) -> dict[str, Column]:
    """What a device carries for the baseline."""
    width = RLS_ORDER + 1
    return {
        "means": Column((len(MEAN_ALPHAS), fields)),
        "rls_weights": Column((fields, width)),
        "rls_cov": Column((fields, width, width)),
        "errors": Column((EXPERTS, fields)),
    }


def start(rows: MutableMapping[str, NDArray[Any]], z: NDArray[np.float32]) -> None:
    """Set the state of devices from their first reading z (B, F): all forecasts say "the same again"."""
    width = RLS_ORDER + 1
    rows["means"][:] = z[:, None]
    rows["rls_weights"][:] = np.eye(1, width, dtype=np.float32)[0]
    rows["rls_cov"][:] = RLS_PRIOR * np.eye(width, dtype=np.float32)
    rows["errors"][:] = 1.0


def forecasts(rows: Mapping[str, NDArray[Any]], lags: NDArray[np.float32]) -> NDArray[np.float32]:
    """The five forecasts of the next reading: lags (B, LAGS, F) -> (B, EXPERTS, F)."""
    weights = rows["rls_weights"]  # (B, F, P)
    recursive = np.einsum("bkf,bfk->bf", lags[:, :RLS_ORDER], weights[..., :-1]) + weights[..., -1]
    return np.concatenate([lags[:, :1], rows["means"], np.clip(recursive, -10, 10)[:, None]], axis=1)


def mix(rows: Mapping[str, NDArray[Any]], experts: NDArray[np.float32]) -> NDArray[np.float32]:
    """One forecast from five: experts (B, EXPERTS, F) -> (B, F)."""
    share = (rows["errors"] + ERROR_FLOOR) ** -SHARPNESS  # (B, EXPERTS, F)
    return np.asarray((share * experts).sum(axis=1) / share.sum(axis=1), np.float32)


def learn(
    rows: MutableMapping[str, NDArray[Any]],
    lags: NDArray[np.float32],
    experts: NDArray[np.float32],
    z: NDArray[np.float32],
    mask: NDArray[np.bool_],
) -> None:
    """Move the state past a reading: z, mask (B, F); lags as they were before it. Changes `rows`."""
    seen = mask[:, None]  # (B, 1, F)
    error = np.abs(z[:, None] - experts)
    rows["errors"] += np.where(seen, ERROR_ALPHA, 0.0).astype(np.float32) * (error - rows["errors"])
    step = np.where(seen, MEAN_ALPHAS[:, None], np.float32(0))  # (B, 3, F)
    rows["means"] += step * (z[:, None] - rows["means"])

    x = np.moveaxis(lags[:, :RLS_ORDER], 1, 2)  # (B, F, 4)
    x = np.concatenate([x, np.ones((*x.shape[:2], 1), np.float32)], axis=2)  # (B, F, P)
    cov = rows["rls_cov"]  # (B, F, P, P)
    cov_x = np.matmul(cov, x[..., None])[..., 0]  # (B, F, P)
    gain = cov_x / (RLS_FORGET + (x * cov_x).sum(axis=2, keepdims=True))  # (B, F, P)
    miss = z - (x * rows["rls_weights"]).sum(axis=2)  # (B, F)
    rows["rls_weights"] += gain * np.where(mask, np.clip(miss, -5, 5), 0.0)[..., None]
    moved = (cov - gain[..., None] * cov_x[..., None, :]) / RLS_FORGET
    rows["rls_cov"] = np.where(mask[..., None, None], moved, cov)
    # Forgetting without excitation grows the covariance for ever: set such a field back to the prior.
    wild = ~(np.trace(rows["rls_cov"], axis1=2, axis2=3) < RLS_LIMIT)  # (B, F), true for NaN as well
    if wild.any():
        width = RLS_ORDER + 1
        rows["rls_cov"][wild] = RLS_PRIOR * np.eye(width, dtype=np.float32)
        rows["rls_weights"][wild] = np.eye(1, width, dtype=np.float32)[0]

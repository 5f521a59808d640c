"""Recent readings of devices, brought to one form: what enrolment and training start from.

Shapes: N devices, T rows, F fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gruard.models import linear, scaling
from gruard.models.quantiles import quantile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

#: Share of the rows that fit; the rest is held back to calibrate.
FIT_SHARE = 0.6
#: Share of the rows that only warm the state up.
WARM_SHARE = 1 / 3


@dataclass(frozen=True, slots=True)
class History:
    """Recent readings of one device, oldest first."""

    time_s: NDArray[np.float64]  # (T,)
    values: NDArray[np.float64]  # (T, F) physical units, NaN = missing
    normal: NDArray[np.bool_]  # (T,) false where the device was in alarm
    vouched: NDArray[np.bool_] | None = None  # (T,) rows that a person says are normal; None: none


@dataclass(frozen=True, slots=True)
class Aligned:
    """Readings of N devices on one axis, padded in front: arrays (T, N, ...)."""

    valid: NDArray[np.bool_]  # (T, N) the device has a reading there
    mask: NDArray[np.bool_]  # (T, N, F) and the field was seen in it
    z: NDArray[np.float32]  # (T, N, F) sigma, filled forward
    gap_ratio: NDArray[np.float64]  # (T, N) since the reading before, in usual gaps
    time_s: NDArray[np.float64]  # (T, N)


def usual_gap(time_s: NDArray[np.float64]) -> float:
    """The median time between readings in seconds; 1 where it cannot be told."""
    gaps = np.diff(time_s)
    gaps = gaps[gaps > 0]
    return float(quantile(gaps, 0.5)) if len(gaps) else 1.0


def blank(
    histories: Sequence[History],
    known: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]] | None],
) -> dict[str, NDArray[Any]]:
    """Scaling and clock of N devices, rows (N, ...); `known` location and scale are taken as they are."""
    fields = histories[0].values.shape[1]
    location, scale = np.zeros((len(histories), fields)), np.ones((len(histories), fields))
    for n, (history, fixed) in enumerate(zip(histories, known, strict=True)):
        normal = history.normal if history.normal.sum() >= linear.LAGS else slice(None)
        location[n], scale[n] = scaling.fit(history.values[normal]) if fixed is None else fixed
    gaps = np.array([usual_gap(history.time_s) for history in histories])
    return {"location": location, "scale": scale, "usual_gap_s": gaps}


def align(rows: Mapping[str, NDArray[Any]], histories: Sequence[History]) -> Aligned:
    """Bring N histories to one time axis: sigma, newest last, missing values filled forward."""
    longest = max(len(h.time_s) for h in histories)
    shape = (longest, len(histories), histories[0].values.shape[1])
    valid, gap_ratio, time_s = np.zeros(shape[:2], bool), np.ones(shape[:2]), np.zeros(shape[:2])
    z = np.full(shape, np.nan, np.float32)
    for n, history in enumerate(histories):
        start = longest - len(history.time_s)
        valid[start:, n] = True
        z[start:, n] = scaling.to_sigma(history.values, rows["location"][n], rows["scale"][n])
        gap_ratio[start + 1 :, n] = np.diff(history.time_s) / rows["usual_gap_s"][n]
        time_s[start:, n] = history.time_s
    mask = np.isfinite(z)
    z[0] = np.where(mask[0], z[0], 0.0)
    for t in range(1, longest):
        z[t] = np.where(mask[t], z[t], z[t - 1])
    return Aligned(valid, mask, z, gap_ratio, time_s)


def normal_rows(histories: Sequence[History], total: int) -> NDArray[np.bool_]:
    """Which rows of the common axis (T, N) are readings outside an alarm."""
    normal = np.zeros((total, len(histories)), bool)
    for n, history in enumerate(histories):
        normal[total - len(history.normal) :, n] = history.normal
    return normal


def rows_to_use(normal: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_], int]:
    """Which of T rows calibrate, which of them are held back, and where the held-back part begins."""
    total = len(normal)
    warm, cut = int(total * WARM_SHARE), int(total * FIT_SHARE)
    # A device that was in alarm for nearly all of its history has no better normal than that.
    use = normal.copy() if normal[cut:].sum() >= linear.LAGS else np.ones(total, bool)
    held = use.copy()
    use[:warm], held[:cut] = False, False
    return use, held, cut


def mean_error(r: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """Mean |r| in sigma, each held within 5, over what was seen; 1 where nothing was."""
    return float(np.abs(np.clip(r, -5.0, 5.0))[mask].mean()) if mask.any() else 1.0

"""What a device remembers for the model, and how a reading moves it: forecasts kept until they come due.

Forecasts are made `h` readings ahead and wait in `pending`, one place for each reading until they come due:

    pending   [ h=1: next | h=16: next, the one after, ..., the 16th from now ]

so a residual is always that of a forecast made before its reading was seen. Live scoring and the replay
that enrols a device call the same two functions, so they cannot disagree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gruard.models import linear
from gruard.models.arena import Column
from gruard.models.forecaster import Forecaster, cell_inputs

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from numpy.typing import NDArray


def columns(forecaster: Forecaster) -> dict[str, Column]:
    """The memory of one device."""
    fields = forecaster.fields
    # Only where there are heads: elsewhere nothing is carried, and nothing looked up.
    head = {"head": Column((), "i8")} if forecaster.heads else {}  # whose weights: 0 = the shared ones
    return head | {
        "hidden": Column((forecaster.state_width,)),
        "lags": Column((linear.LAGS, fields)),  # z, newest first, missing values filled forward
        "pending": Column((sum(forecaster.horizons), fields)),
    }


def begin(rows: MutableMapping[str, NDArray[Any]], z: NDArray[np.float32]) -> None:
    """Start the memory of devices from their first reading z (B, F): all forecasts say "the same again"."""
    rows["hidden"][:] = 0.0
    rows["lags"][:] = rows["pending"][:] = z[:, None]


def advance(
    rows: MutableMapping[str, NDArray[Any]],
    z: NDArray[np.float32],
    mask: NDArray[np.bool_],
    gap_ratio: NDArray[np.float64],
    time_s: NDArray[np.float64],
    forecaster: Forecaster,
) -> tuple[NDArray[np.float32], int]:
    """Move B devices past a reading z (B, F), filled forward where mask is false. Changes `rows`.

    gap_ratio (B,): time since the reading before, in usual gaps. Returns how the reading differs from each
    forecast of it and, as the last line, from the learned normal, (E, B, F); and how many hidden states were
    not finite and start again.
    """
    pending, lags = rows["pending"], rows["lags"]
    clock = forecaster.clock_part(time_s)
    line = np.empty((len(forecaster.horizons) + 1, *z.shape), np.float32)  # (E, B, F)
    line[-1] = z
    lags[:, 1:] = lags[:, :-1]
    lags[:, 0] = z
    head = rows.get("head")
    ahead = forecaster.forecast(lags, head)  # (B, X, F)
    correction, hidden, resets = forecaster.remember(cell_inputs(z, mask, gap_ratio), rows["hidden"], head)
    rows["hidden"][...] = hidden
    ahead += correction
    first = 0
    for x, h in enumerate(forecaster.horizons):
        np.subtract(z, pending[:, first], out=line[x])
        last = first + h - 1
        if h > 1:
            pending[:, first:last] = pending[:, first + 1 : last + 1]
        pending[:, last] = ahead[:, x]
        first += h
    if clock is not None:
        line[:-1] -= np.moveaxis(clock, 1, 0)
    return line, resets

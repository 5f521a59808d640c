"""What people are told of a reading: what was expected instead, and which fields speak for it.

A forecast follows a fault within a few readings and then calls it expected. While the score is high, what
was expected is the forecast or the learned normal (0 sigma), whichever the reading is further from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gruard.models import scaling

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

#: Share of the alarm threshold from which on a forecast is suspected of following a fault.
LOUD = 0.75


@dataclass(frozen=True, slots=True)
class Reasons:
    """Arrays (B, F)."""

    expected: NDArray[np.float64]  # physical units, NaN while gathering
    deviation: NDArray[np.float64]  # (value - expected) in the field's usual spread, NaN = missing
    share: Floats  # who makes up the strongest line of evidence; sums to 1


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """B readings as they were scored, kept so that reasons may be asked for later. E lines, K scales."""

    z: Floats  # (B, F) sigma, filled forward
    mask: NDArray[np.bool_]  # (B, F)
    forecasts: Floats  # (E, B, F) or (1, B, F) sigma, of each line; 0 for the level
    streams: Floats  # (B, E, K) u
    parts: Floats  # (B, E, F) contributions to each line
    u: Floats  # (B,) of the state score
    threshold: Floats  # (B,) u that opens an alarm where it lasts
    location: NDArray[np.float64]  # (B, F)
    scale: NDArray[np.float64]


def nothing(batch: int, fields: int) -> Reasons:
    """The reasons of readings that are not scored yet."""
    unknown = np.full((batch, fields), np.nan)
    return Reasons(unknown, unknown.copy(), np.full((batch, fields), 1.0 / fields, np.float32))


def reasons(seen: Seen) -> Reasons:
    """Explain B readings by their strongest line of evidence."""
    strongest = seen.streams.max(axis=2).argmax(axis=1)  # (B,)
    each = np.arange(len(strongest))
    parts = seen.parts[each, strongest] + np.float32(1e-9)
    share = parts / parts.sum(axis=1, keepdims=True)
    forecast = np.broadcast_to(seen.forecasts, (seen.streams.shape[1], *seen.z.shape))[strongest, each]
    surprise = (share * np.abs(seen.z - forecast)).sum(axis=1)
    loud = seen.u > LOUD * seen.threshold
    follows = loud & (surprise < (share * np.abs(seen.z)).sum(axis=1))
    expected = np.where(follows[:, None], np.float32(0.0), forecast)
    units = scaling.to_units(expected, seen.location, seen.scale)
    values = scaling.to_units(seen.z, seen.location, seen.scale)
    deviation = np.where(seen.mask, (values - units) / seen.scale, np.nan)
    return Reasons(units, deviation, share)

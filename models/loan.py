"""What a group lends a device that no round has seen, and how it is given back.

    share of the loan after n own readings     n0 / (n0 + n)

    location, scale   n0 = LOOK (doubt / spread)^2, field by field       the weighing of two estimates
    thresholds        n0 = THRESHOLD_ROWS

`doubt` is how far LOOK readings of a device of the group are from what all of its readings say, and `spread`
how far its devices are from each other, both found by the trainer. Where devices sit at different levels, a
borrowed location is worth little; where a machine rests for hours, a borrowed scale is worth much. A device
that is further off than the group's devices are from each other is believed sooner: the spread is that of a
Student t. All of it follows from the package and the device's readings, so a recovery finds the same.

Shapes: F fields, E lines of evidence, K scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gruard.models import evidence, linear, scaling
from gruard.models.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from gruard.models.history import History

    Floats: TypeAlias = NDArray[np.float32]

#: Tensors of a package that hold a loan.
PREFIX = "group."
#: Readings that `doubt` is told for.
LOOK = 50
#: Own readings that weigh as much as the group's thresholds do, and after how many a loan is given back.
THRESHOLD_ROWS, REPAID_ROWS = 100.0, 1000
#: Own readings that any loan of location or scale may weigh at most.
MOST_ROWS = 2000.0
#: Degrees of freedom of the spread of locations.
FREEDOM = 4.0
#: What the alarm level is widened by while all of it is borrowed.
CAUTION = 0.1
#: What a spread or a doubt lies within: below, a division says nothing.
LEAST, MOST = 1e-4, 1e3
#: What locations and widths lie within, as `models.enrolment` has it for a device.
SMALLEST, LARGEST = 1e-12, 1e16


@dataclass(frozen=True, slots=True)
class Loan:
    """What a group knows that holds for a device of it: tensors `group.*` of a package."""

    location: NDArray[np.float64]  # (F,) physical units
    scale: NDArray[np.float64]  # (F,)
    location_spread: NDArray[np.float64]  # (F,) of devices, in scales
    location_doubt: NDArray[np.float64]  # (F,) after LOOK readings, in scales
    scale_spread: NDArray[np.float64]  # (F,) of log(scale)
    scale_doubt: NDArray[np.float64]  # (F,)
    median: Floats  # (E, K)
    width: Floats  # (E, K) upper quantile less median
    level: float

    def scaling(self, history: History) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Location and scale (F,) of a device with these readings."""
        normal = history.normal if history.normal.sum() >= linear.LAGS else slice(None)
        location, scale = scaling.fit(history.values[normal])
        seen = np.isfinite(history.values[normal]).sum(axis=0)  # (F,)
        n = np.maximum(seen, 1)
        doubt = np.square(self.location_doubt) * LOOK / n
        far = np.square((location - self.location) / self.scale) / (np.square(self.location_spread) + doubt)
        rows = _rows(self.location_doubt, self.location_spread) * (FREEDOM + 1.0) / (FREEDOM + far)
        share = np.where(seen > 0, rows / (rows + n), 1.0)
        lent = share * self.location + (1.0 - share) * location
        rows = _rows(self.scale_doubt, self.scale_spread)
        share = np.where(seen > 0, rows / (rows + n), 1.0)
        return lent, np.exp(share * np.log(self.scale) + (1.0 - share) * np.log(scale))

    def thresholds(self, median: Floats, quantile: Floats, own: int) -> tuple[Floats, Floats]:
        """Median and upper quantile (E, K) of a device from those that its `own` readings show."""
        share = np.float32(share_of(own))
        rest = np.float32(1.0) - share
        lent = share * self.median + rest * median
        return lent, lent + share * self.width + rest * (quantile - median)

    def alarm_level(self, level: float, own: int) -> float:
        """The level of a device from that which its `own` readings ask for, wider while much is borrowed."""
        share = share_of(own)
        return (share * self.level + (1.0 - share) * level) * (1.0 + CAUTION * share)


def share_of(own: int) -> float:
    """How much of its thresholds a device with so many readings of its own has borrowed: 0..1."""
    return THRESHOLD_ROWS / (THRESHOLD_ROWS + own)


def loan_of(tensors: Mapping[str, NDArray[Any]]) -> Loan | None:
    """The loan in a package's tensors; None in one that was made before there were loans.

    Raises:
        ModelError: a part of it is absent, of another shape, or holds a number that no round could find.
    """
    if not any(name.startswith(PREFIX) for name in tensors):
        return None
    lines, fields, _ = tensors["precision"].shape
    per_field, per_scale = (fields,), (lines, len(evidence.SCALES))
    spreads = {
        name: _tensor(tensors, name, per_field, LEAST, MOST).astype(np.float64)
        for name in ("location_spread", "location_doubt", "scale_spread", "scale_doubt")
    }
    return Loan(
        location=_tensor(tensors, "location", per_field, -LARGEST, LARGEST).astype(np.float64),
        scale=_tensor(tensors, "scale", per_field, SMALLEST, LARGEST).astype(np.float64),
        median=_tensor(tensors, "median", per_scale, 0.0, LARGEST).astype(np.float32),
        width=_tensor(tensors, "width", per_scale, 0.0, LARGEST).astype(np.float32),
        level=float(_tensor(tensors, "level", (1,), SMALLEST, LARGEST)[0]),
        **spreads,
    )


def _rows(doubt: NDArray[np.float64], spread: NDArray[np.float64]) -> NDArray[np.float64]:
    """n0: own readings that weigh as much as what the group says."""
    return np.asarray(np.minimum(LOOK * np.square(doubt / spread), MOST_ROWS))


def _tensor(
    tensors: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, ...], low: float, high: float
) -> NDArray[Any]:
    tensor = tensors.get(PREFIX + name)
    # Written so that NaN fails.
    if tensor is None or tensor.shape != shape or not ((tensor >= low) & (tensor <= high)).all():
        raise ModelError(f"tensor {PREFIX}{name} is not an array of shape {shape} from {low:g} to {high:g}")
    return tensor

"""What a group can lend to a device that no round has seen: read off all of its devices by the trainer.

Shapes: N devices, W windows, F fields, E lines of evidence, K scales.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gruard.models import scaling
from gruard.models.loan import LEAST, LOOK, MOST, PREFIX
from gruard.models.quantiles import quantile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gruard.models.enrolment import Fitted
    from gruard.models.history import History

    Numbers = NDArray[np.float64]

#: A device's range of normal is at least the one that this share of its group keeps within.
BORROWED = 0.9
#: What is believed before any two devices were compared: locations lie a scale apart, scales differ by two.
#: It counts as much as PRIOR pairs of devices.
LOCATION_SPREAD, SCALE_SPREAD, PRIOR = 1.0, float(np.log(2.0)), 1.0
#: Windows of LOOK readings that are looked at in one device, and the most that one of them may count for.
MOST_WINDOWS, FARTHEST = 40, 3.0


def group_width(fitted: Sequence[Fitted]) -> NDArray[np.float32]:
    """The width (E, K) that most devices of the group keep within."""
    return np.asarray(quantile(np.stack([f.quantile - f.median for f in fitted]), BORROWED), np.float32)


def loan_tensors(
    fitted: Sequence[Fitted], histories: Sequence[History], width: NDArray[np.float32]
) -> dict[str, NDArray[Any]]:
    """Tensors `group.*` of a package, from its devices (N) and what `group_width` found."""
    location, log_scale = np.stack([f.location for f in fitted]), np.log(np.stack([f.scale for f in fitted]))
    middle, usual = quantile(location, 0.5), quantile(log_scale, 0.5)  # (F,) each
    scale = np.exp(usual)
    looks = [_doubts(one, history) for one, history in zip(fitted, histories, strict=True)]
    doubt = np.sqrt(np.mean(np.concatenate(looks), axis=0))  # (2, F)
    lent = {
        "location": middle,
        "scale": scale,
        "location_spread": _held(_spread((location - middle) / scale, LOCATION_SPREAD)),
        "scale_spread": _held(_spread(log_scale - usual, SCALE_SPREAD)),
        "location_doubt": _held(doubt[0]),
        "scale_doubt": _held(doubt[1]),
        "median": np.asarray(quantile(np.stack([f.median for f in fitted]), 0.5), np.float32),
        "width": np.maximum(width, np.float32(0.0)),
        "level": np.asarray(quantile(np.array([[f.level] for f in fitted]), 0.5), np.float32),
    }
    return {PREFIX + name: tensor for name, tensor in lent.items()}


def _doubts(one: Fitted, history: History) -> Numbers:
    """Squared errors of location, in scales, and of log(scale) in windows of a device: (W, 2, F)."""
    rows = history.values[history.normal]
    count = max(len(rows) // LOOK, 1)
    chosen = np.unique(np.linspace(0, count - 1, min(count, MOST_WINDOWS)).astype(np.int64))
    found = []
    for at in (chosen * LOOK).tolist():
        location, scale = scaling.fit(rows[at : at + LOOK])
        found.append([(location - one.location) / one.scale, np.log(scale / one.scale)])
    return np.asarray(np.square(np.clip(np.array(found), -FARTHEST, FARTHEST)))


def _spread(off: Numbers, prior: float) -> Numbers:
    """How far devices are `off` (N, F) the middle one, with what was believed before -> (F,)."""
    squared = np.square(np.clip(off, -MOST, MOST)).sum(axis=0)
    return np.asarray(np.sqrt((squared + PRIOR * prior**2) / (len(off) - 1 + PRIOR)))


def _held(numbers: Numbers) -> Numbers:
    return np.clip(numbers, LEAST, MOST)

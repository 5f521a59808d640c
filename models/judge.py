"""From residuals to what the model says of a reading: evidence, smoothed and calibrated, combined twice.

    state    residuals at every horizon, every scale           stays up while a fault lasts
    onset    those and the level, the shorter scales           its first moment: see `gruard.models.onset`

Shapes: B devices, E lines of evidence (one a horizon, then the level), K scales, F fields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gruard.models import calibration, evidence
from gruard.models.arena import Column

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from numpy.typing import NDArray

    from gruard.models.forecaster import Forecaster

#: Longest scale that an onset listens to.
ONSET_SCALE = 16
#: Scale at which the longer horizons are not heard: over 4 readings their residuals are hardly calmer.
LONG_DEAF_TO = 4
#: Memory of "which field was it": about the last 16 readings, the scale of an alarm.
PARTS_ALPHA = np.float32(2.0 / 17.0)


def columns(forecaster: Forecaster) -> dict[str, Column]:
    """What a device carries for its judgement."""
    lines = len(forecaster.precision)
    streams = (lines, len(evidence.SCALES))
    return {
        "evidence": Column(streams),  # exponential means e
        "median": Column(streams),
        "inverse": Column(streams, fill=1.0),  # 1 / (q - med)
        "parts": Column((lines, forecaster.fields)),  # who contributed to each line lately
    }


def weights(lines: int) -> NDArray[np.float32]:
    """Weights (E * K, 2) of the two means; a stream that is not heard in one weighs nothing there."""
    scales = np.array(evidence.SCALES)
    line = np.arange(lines)[:, None]
    state = (line < lines - 1) & ((line == 0) | (scales != LONG_DEAF_TO))
    onset = np.broadcast_to(scales <= ONSET_SCALE, state.shape)
    return calibration.equal_weights(state.ravel(), onset.ravel())


def judge(
    rows: MutableMapping[str, NDArray[Any]],
    line: NDArray[np.float32],
    mask: NDArray[np.bool_],
    P: NDArray[np.float32],
    mix: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Move the evidence of B devices past a reading: line (E, B, F), mask (B, F), P (E, F, F); `rows` change.

    Returns u of state and onset (B, 2), combined by `mix` (E * K, 2), and u of every stream (B, E, K).
    """
    d, parts = evidence.distances(line, mask, P)  # (E, B), (E, B, F)
    e, smoothed = rows["evidence"], rows["parts"]
    e += evidence.ALPHAS * (d.T[..., None] - e)
    smoothed += PARTS_ALPHA * (np.swapaxes(parts, 0, 1) - smoothed)
    u = streams(rows, e)
    return calibration.combine(u.reshape(len(u), -1), mix), u


def streams(rows: Mapping[str, NDArray[Any]], e: NDArray[np.float32]) -> NDArray[np.float32]:
    """u of every stream: e (..., E, K) -> same shape."""
    return calibration.exceedance(e, rows["median"], rows["inverse"])

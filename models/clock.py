"""The time of day and week as inputs of a linear forecast: harmonics of a day and of a week.

    sin, cos (2 pi k t / day), k = 1..8          sin, cos (2 pi k t / week), k = 1..4

Time is UTC; the fit finds the phase. Whether a group gets them is decided on held-back rows: see
`gruard.models.training.panel`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DAY_S, WEEK_S = 86_400.0, 7 * 86_400.0
#: Harmonics of the day and of the week.
DAY_HARMONICS, WEEK_HARMONICS = 8, 4
#: History that is needed to know a day and a week, and the longest time between readings that shows a day.
LEAST_DAY_SPAN_S, LEAST_WEEK_SPAN_S, LONGEST_STEP_S = 2 * DAY_S, 2 * WEEK_S, 6 * 3600.0


def columns_for(time_s: NDArray[np.float64], usual_gap_s: float) -> int:
    """How many columns a history that spans `time_s` (T,) can teach: 0, those of the day, or all."""
    span = float(time_s[-1] - time_s[0]) if len(time_s) else 0.0
    if usual_gap_s > LONGEST_STEP_S or span < LEAST_DAY_SPAN_S:
        return 0
    return 2 * (DAY_HARMONICS + (WEEK_HARMONICS if span >= LEAST_WEEK_SPAN_S else 0))


def harmonics(time_s: NDArray[Any], columns: int) -> NDArray[np.float32]:
    """The first `columns` inputs at time_s (...,) Unix seconds -> (..., C)."""
    turns = [k / DAY_S for k in range(1, DAY_HARMONICS + 1)] + [
        k / WEEK_S for k in range(1, WEEK_HARMONICS + 1)
    ]
    # In double precision up to the whole turns: float32 cannot tell seconds of a year apart.
    phase = np.asarray(time_s, np.float64)[..., None] * np.array(turns[: columns // 2])
    angle = (2 * np.pi * (phase - np.floor(phase))).astype(np.float32)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(*angle.shape[:-1], columns)

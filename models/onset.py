"""When something begins: one mark an event, for people who are paged and for scoring by NAB's rules.

    v        (u - median) / (q99.5 - median)      of the device's own u, lately: a fading histogram
    onset    v where it is above RATIO times the last mark, 0 elsewhere; a mark is forgotten after MEMORY

The state score stays high while a fault lasts. The onset is for its first moment, so it adapts: what a
device does often is no onset, whatever its score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gruard.models.arena import Column

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

#: Bins of log u, and what they span.
BINS, LOW, HIGH = 80, 0.02, 200.0
#: Readings after which a reading counts half.
HALF_LIFE = 2000
MIDDLE, UPPER = 0.5, 0.995
#: Least width of (upper - median), in u.
LEAST_WIDTH = 0.02
#: Readings for which a mark is remembered, and how far the next one must go beyond it meanwhile.
MEMORY, RATIO = 150, 1.8
#: The quantiles are read anew every so many readings: they move slowly.
REFRESH = 8
#: Where each number of a device's state stands.
MEDIAN, WIDTH, MARK, AGE, SEEN = range(5)
_FADES = np.float32(0.5 ** (1.0 / HALF_LIFE))
_PER_LOG = BINS / np.log(HIGH / LOW)
_CENTRES = (LOW * (HIGH / LOW) ** ((np.arange(BINS) + 0.5) / BINS)).astype(np.float32)


def columns() -> dict[str, Column]:
    """The onset state of one device."""
    return {"onset_counts": Column((BINS,)), "onset": Column((5,))}


def follow(counts: Floats, state: Floats, u: Floats) -> Floats:
    """Move B devices past evidence u (B,): their onset marks v (B,), 0 where nothing begins.

    counts (B, BINS) and state (B, 5) are changed. The mark is judged by what came before u.
    """
    v = (u - state[:, MEDIAN]) / (state[:, WIDTH] + np.float32(LEAST_WIDTH))
    state[:, AGE : SEEN + 1] += 1.0
    state[:, MARK] *= state[:, AGE] <= MEMORY
    begins = v > state[:, MARK] * np.float32(RATIO)
    counts *= _FADES
    counts[np.arange(len(u)), bins(u)] += 1.0
    due = state[:, SEEN] >= REFRESH
    if np.count_nonzero(due):
        state[due, SEEN] = 0.0
        state[due, MEDIAN], state[due, WIDTH] = _quantiles(counts[due])
    marks = v * begins
    if np.count_nonzero(begins):
        state[begins, MARK] = v[begins]
        state[begins, AGE] = 0.0
    return marks


def settle(counts: Floats, state: Floats, u: Floats) -> None:
    """Fill the histogram of one device, counts (BINS,), state (5,), with the evidence u (T,) of its past."""
    fading = 0.5 ** (np.arange(len(u) - 1, -1, -1.0) / HALF_LIFE)
    counts[:] = np.bincount(bins(u), fading, BINS)
    median, width = _quantiles(counts[None])
    state[:] = median[0], width[0], 0.0, MEMORY, 0.0


def bins(u: Floats) -> NDArray[np.int64]:
    """The bin of each u, same shape."""
    at = np.log(np.maximum(u, np.float32(LOW)) * np.float32(1.0 / LOW)) * np.float32(_PER_LOG)
    return np.minimum(at.astype(np.int64), BINS - 1)


def _quantiles(counts: Floats) -> tuple[Floats, Floats]:
    """Median and (upper quantile - median) of histograms (B, BINS): (B,) each."""
    sums = np.cumsum(counts, axis=1)
    median, upper = (
        _CENTRES[np.argmax(sums >= np.float32(q) * sums[:, -1:], axis=1)] for q in (MIDDLE, UPPER)
    )
    return median, upper - median

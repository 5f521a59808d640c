"""Long series drawn small: the lowest and the highest value of each stretch, so that no spike is lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gruard.daemon.backtest.series import Series
    from gruard.models.lockstep import SeriesScores

#: Stretches that a chart is cut into: more than a screen shows, and fewer than tell nothing.
MOST_STRETCHES, FEWEST_STRETCHES = 600, 60
#: Characters that all charts of a page may take together, and what one stretch of one chart takes of them:
#: two pairs of points, of about seven characters each.
PAGE_CHARS, STRETCH_CHARS = 2_200_000, 28


@dataclass(frozen=True, slots=True, eq=False)
class Envelope:
    """Lowest and highest value of each stretch (S,); NaN where a stretch has none."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """What is drawn of one device."""

    rows: int
    starts: NDArray[np.int64]  # (S,) first row of each stretch
    score: Envelope
    threshold: NDArray[np.float64]  # (S,) the highest of each stretch, NaN before there is one
    fields: tuple[Envelope, ...]
    expected: tuple[Envelope, ...]  # of each field, beside `fields`


def stretches(series: Sequence[Series]) -> int:
    """Into how many stretches each chart is cut, so that a page with all of them stays small."""
    charts = sum(len(one.fields) + 1 for one in series)
    return min(max(PAGE_CHARS // (STRETCH_CHARS * max(charts, 1)), FEWEST_STRETCHES), MOST_STRETCHES)


def cut(rows: int, most: int) -> NDArray[np.int64]:
    """First rows of at most `most` stretches of nearly equal length."""
    count = min(rows, most)
    return np.arange(count, dtype=np.int64) * rows // count


def envelope(values: NDArray[Any], starts: NDArray[np.int64]) -> Envelope:
    """The envelope of values (T,)."""
    exact = np.asarray(values, np.float64)
    return Envelope(np.fmin.reduceat(exact, starts), np.fmax.reduceat(exact, starts))


def draw(series: Series, scores: SeriesScores, most: int) -> Drawing:
    """Everything that a page or picture shows of a device's readings, in at most `most` stretches."""
    starts = cut(series.rows, most)
    columns = range(len(series.fields))
    return Drawing(
        series.rows,
        starts,
        envelope(scores.value, starts),
        envelope(scores.threshold, starts).high,
        tuple(envelope(series.history.values[:, k], starts) for k in columns),
        tuple(envelope(scores.expected[:, k], starts) for k in columns),
    )

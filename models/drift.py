"""Slow drift: whether a device has left what it showed in its group's first days.

A retrained model learns a fouling filter as normal, a little each time. So what the first days showed is kept
and never learned anew: of every field the range in which the medians of short blocks of readings lay, how far
readings spread within a block, and how far the forecasts of the group's first model, the anchor, were off.

    level      the newest blocks lie outside the range by more than a share of its width
    spread     readings spread more than ever by a factor
    forecast   the anchor's forecasts are worse than ever by a factor

The median of the newest blocks counts, not one block: what passes is for the alarm to tell.

Shapes: T rows, F fields, K blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

#: Rows of a block, and blocks that must agree.
BLOCK_ROWS, NEWEST = 100, 3
#: How far outside the range of the first days a level must lie: a share of the range's width, but at least so
#: many of the usual spreads within a block.
BEYOND_RANGE, BEYOND_SPREAD = 0.5, 0.5
#: By how much readings must spread more, and forecasts be worse, than ever in the first days.
WIDER, WORSE = 1.5, 1.5
#: IQR of a normal distribution in standard deviations.
IQR_SIGMA = 1.349

Kind: TypeAlias = Literal["level", "spread", "forecast"]
KINDS: tuple[Kind, ...] = ("level", "spread", "forecast")


@dataclass(slots=True)
class FieldRange:
    """What a field of a device showed in the first days, in physical units."""

    low: float
    high: float  # of medians of blocks
    spread: float  # the largest, within a block
    error: float  # the largest mean error of the anchor's forecasts in a block


@dataclass(slots=True)
class Reference:
    """The first days of one device. `fields` in the group's order."""

    from_s: float  # event time at which they began
    until_s: float  # newest reading that was learned from
    fields: list[FieldRange | None]  # None: never seen


@dataclass(frozen=True, slots=True)
class Drift:
    """One field of a device that has left its first days behind, in physical units."""

    device: str
    field: str
    kind: Kind
    now: float
    low: float
    high: float  # the range of the first days; of spread and forecast error `low` is 0
    excess: float  # how far beyond, in units of what is allowed: above 1


@dataclass(frozen=True, slots=True)
class Blocks:
    """Readings in blocks, oldest first: medians, spreads and mean forecast errors (K, F), NaN = unknown."""

    end_s: list[float]
    median: list[list[float]]
    spread: list[list[float]]
    error: list[list[float]]


def blocks_of(time_s: Floats, values: Floats, error: Floats, normal: NDArray[np.bool_]) -> Blocks:
    """Cut rows into blocks that end with the newest; half of a block's rows must be normal and seen.

    time_s (T,), values (T, F) physical units, error (T, F) of the anchor's forecasts, normal (T,).
    """
    count = len(time_s) // BLOCK_ROWS
    found = Blocks([], [], [], [])
    for k in range(count, 0, -1):
        end = len(time_s) - (k - 1) * BLOCK_ROWS
        rows = slice(end - BLOCK_ROWS, end)
        x = np.where(normal[rows, None], values[rows], np.nan)  # (BLOCK_ROWS, F)
        columns = [column[np.isfinite(column)] for column in x.T]
        enough = [len(column) >= BLOCK_ROWS // 2 for column in columns]
        quartiles = [
            np.quantile(column, (0.25, 0.5, 0.75)) if known else np.full(3, np.nan)
            for column, known in zip(columns, enough, strict=True)
        ]
        off = np.where(normal[rows, None], error[rows], np.nan)
        found.end_s.append(float(time_s[end - 1]))
        found.median.append([float(q[1]) for q in quartiles])
        found.spread.append([float(q[2] - q[0]) / IQR_SIGMA for q in quartiles])
        found.error.append([_mean(column[np.isfinite(column)]) for column in off.T])
    return found


def learn(reference: Reference | None, blocks: Blocks, begins_s: float) -> Reference | None:
    """Widen what the first days showed by further blocks; those learned from already are passed over.

    `begins_s`: event time of the first reading there is, where there is no reference yet.
    """
    fresh = [k for k, end_s in enumerate(blocks.end_s) if reference is None or end_s > reference.until_s]
    if not fresh:
        return reference
    known = reference.fields if reference else [None] * len(blocks.median[0])
    fields = []
    for f, old in enumerate(known):
        medians = _known(blocks.median[k][f] for k in fresh)
        spreads = _known(blocks.spread[k][f] for k in fresh)
        errors = _known(blocks.error[k][f] for k in fresh)
        if old is not None:
            medians += [old.low, old.high]
            spreads.append(old.spread)
            errors.append(old.error)
        fields.append(
            FieldRange(min(medians), max(medians), max(spreads), max(errors, default=0.0)) if medians else old
        )
    return Reference(reference.from_s if reference else begins_s, blocks.end_s[-1], fields)


def drifts(device: str, names: Sequence[str], reference: Reference, blocks: Blocks) -> list[Drift]:
    """What of a device has left its first days behind: levels first, the farthest of a kind first."""
    found: list[Drift] = []
    for f, (name, usual) in enumerate(zip(names, reference.fields, strict=True)):
        if usual is None or len(blocks.end_s) < NEWEST:
            continue
        median, spread, error = (
            _median([rows[f] for rows in series[-NEWEST:]])
            for series in (blocks.median, blocks.spread, blocks.error)
        )
        floor = 1e-3 * max(abs(usual.low), abs(usual.high)) + 1e-9
        allowed = max(BEYOND_RANGE * (usual.high - usual.low), BEYOND_SPREAD * usual.spread, floor)
        beyond = max(usual.low - median, median - usual.high) / allowed
        found.append(Drift(device, name, "level", median, usual.low, usual.high, beyond))
        width = max(usual.spread, floor)
        found.append(Drift(device, name, "spread", spread, 0.0, usual.spread, spread / (WIDER * width)))
        if usual.error > 0.0:
            worse = error / (WORSE * max(usual.error, floor))
            found.append(Drift(device, name, "forecast", error, 0.0, usual.error, worse))
    left = (one for one in found if one.excess > 1.0)
    return sorted(left, key=lambda one: (KINDS.index(one.kind), -one.excess))


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _mean(column: Floats) -> float:
    return float(column.mean()) if len(column) >= BLOCK_ROWS // 2 else math.nan


def _median(values: list[float]) -> float:
    """NaN, which is beyond nothing, unless all are known."""
    return float(np.median(values)) if all(map(math.isfinite, values)) else math.nan

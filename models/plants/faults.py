"""Faults of known place and size, put into any recording: simulated or real, with gaps, of any width.

    kind        what happens from `first` to `last`, both included       size (hard - clear)
    shift       one field is off by a constant                           spreads, 0.5 - 4
    departure   one field leaves at a constant rate                      spreads at `last`, 1 - 6
    stuck       one field repeats one value                              its distance in spreads from the
                                                                         field's last reading, 0.05 - 2
    noise       one field gets additional white noise                    its sd in spreads, 0.1 - 1.5
    period      all fields run faster or slower                          |log2 of the speed|, 0.15 - 1
    cycle       all fields skip or repeat a part of their cycle          share of the cycle, 0.1 - 0.5
    link        one field shows what it showed at another time           rms change in spreads, 0.3 - 2

A spread is the field's robust standard deviation over the whole recording (`models.scaling`). `period` and
`cycle` leave the fields' relation to each other whole, and `link` each field's own course: what is wrong
is only the order in time, or only the company.

Guaranteed, and nothing more: labels are true exactly from `first` to `last`; every reading outside them is
untouched to the bit; what was missing stays missing and nothing else goes missing; at least one reading
inside differs. A fault ends at once: the way back, at `last` + 1, carries no label.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from gruard.models import scaling

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.random import Generator
    from numpy.typing import NDArray

Kind = Literal["shift", "departure", "stuck", "noise", "period", "cycle", "link"]

KINDS: tuple[Kind, ...] = ("shift", "departure", "stuck", "noise", "period", "cycle", "link")
#: From hard to clear, in the unit of the kind: see the table above.
SIZES: dict[Kind, tuple[float, float]] = {
    "shift": (0.5, 4.0),
    "departure": (1.0, 6.0),
    "stuck": (0.05, 2.0),
    "noise": (0.1, 1.5),
    "period": (0.15, 1.0),
    "cycle": (0.1, 0.5),
    "link": (0.3, 2.0),
}
#: Kinds that move the whole device in time when no field is named.
_WHOLE: tuple[Kind, ...] = ("period", "cycle")
#: Rows a spread is read from at most, so that a long recording costs no more than a short one.
_SAMPLE = 4096
#: Readings around a fault in which a field has to move to be chosen, and where its cycle is read from.
_AROUND = 256
_CYCLE_ROWS = 4096
#: A field with fewer different values than this around a fault is a mode, not a measurement.
_DISTINCT = 8
#: Other times that a `link` tries, to come near the size asked for.
_TIMES = 16
#: Readings whose median tells a field's course from its noise.
_CALM = 5


class UnfitError(ValueError):
    """This recording cannot carry this fault there; the text says why."""


class Placed(NamedTuple):
    """A fault that was put in: rows `first` to `last`, both included; its size in the unit of the kind."""

    kind: Kind
    first: int
    last: int
    size: float


def inject(
    values: NDArray[np.floating],
    kind: Kind,
    first: int,
    last: int,
    rng: Generator,
    *,
    size: float | None = None,
    field: int | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A copy of `values` (T, F), NaN = missing, with a fault in `first` to `last` -> values, labels (T,).

    Without `size` one is drawn from `SIZES`, small ones as often as large ones. Without `field` a fitting
    one is drawn: one that is seen and moves around there. For `period` and `cycle` all fields are meant
    unless one is named.

    Raises:
        UnfitError: a ValueError; nothing there can be changed in this way, for example `link` with one field.
        ValueError: no such kind or field, rows outside the recording, or a size that is not positive.
    """
    rows = _rows(values, kind, first, last)
    if field is not None and not 0 <= field < values.shape[1]:
        raise ValueError(f"there is no field {field} in a recording of {values.shape[1]}")
    if size is None:
        size = draw_size(kind, rng)
    elif size <= 0:
        raise ValueError(f"the size of a fault must be positive: {size}")
    changed, healthy = _copies(values)
    faulty = _faulty(healthy, _spreads(healthy), kind, rows, rng, size, field)
    changed[rows] = np.where(np.isnan(faulty), changed[rows], faulty)
    labels = np.zeros(len(values), bool)
    labels[rows] = True
    return changed, labels


def inject_all(
    values: NDArray[np.floating], plan: Iterable[tuple[Kind, int, int]], rng: Generator
) -> tuple[NDArray[np.float64], NDArray[np.bool_], list[Placed]]:
    """A copy of `values` (T, F) with every fault of `plan` -> values, labels (T,), what was put in.

    Each fault is made from the healthy recording, so none carries another along. Where a kind is unfit
    another one is drawn; where none fits, nothing is changed, labelled or listed.

    Raises:
        ValueError: no such kind, rows outside the recording, or faults that overlap.
    """
    changed, healthy = _copies(values)
    spreads, labels = _spreads(healthy), np.zeros(len(values), bool)
    placed: list[Placed] = []
    for wanted, first, last in plan:
        rows = _rows(values, wanted, first, last)
        if labels[rows].any():
            raise ValueError(f"the {wanted} in rows {first} to {last} overlaps another fault")
        others = [KINDS[k] for k in rng.permutation(len(KINDS)) if KINDS[k] != wanted]
        for kind in (wanted, *others):
            size = draw_size(kind, rng)
            try:
                faulty = _faulty(healthy, spreads, kind, rows, rng, size, None)
            except UnfitError:
                continue
            changed[rows] = np.where(np.isnan(faulty), changed[rows], faulty)
            labels[rows] = True
            placed.append(Placed(kind, first, last, size))
            break
    return changed, labels, placed


def schedule(
    rows: int,
    rng: Generator,
    *,
    kinds: Sequence[Kind] = KINDS,
    share: float = 0.2,
    shortest: int = 20,
    longest: int = 300,
    margin: int = 60,
    start: int = 0,
) -> list[tuple[Kind, int, int]]:
    """Faults (kind, first, last) for a recording of `rows` rows, in order, both ends included.

    They fill about `share` of the rows from `start` on, never more. Each has `shortest` to `longest` rows,
    short ones as often as long ones, and at least `margin` healthy rows before it and behind. Kinds take
    turns in a drawn order. Empty where not even one fits.

    Raises:
        ValueError: no kinds, a share outside 0..1, or lengths that contradict each other.
    """
    if not kinds or not 0.0 <= share <= 1.0 or not 1 <= shortest <= longest or margin < 0 or start < 0:
        raise ValueError(
            f"cannot schedule {len(kinds)} kinds on a share of {share} in {shortest} to {longest} rows, "
            f"margin {margin}, from row {start}"
        )
    room = rows - start
    lengths: list[int] = []
    while True:
        used = sum(lengths)
        most = min(longest, int(share * room) - used, room - used - (len(lengths) + 2) * margin)
        if most < shortest:
            break
        lengths.append(min(round(_log_uniform(rng, shortest, longest)), most))
    slack = room - sum(lengths) - (len(lengths) + 1) * margin
    gaps = rng.multinomial(max(slack, 0), rng.dirichlet(np.ones(len(lengths) + 1)))
    plan: list[tuple[Kind, int, int]] = []
    turn: list[Kind] = []
    first = start
    for gap, length in zip(gaps.tolist(), lengths, strict=False):
        turn = turn or [kinds[k] for k in rng.permutation(len(kinds))]
        first += margin + gap
        plan.append((turn.pop(), first, first + length - 1))
        first += length
    return plan


def draw_size(kind: Kind, rng: Generator) -> float:
    """A size of this kind from hard to clear, log-uniform."""
    return _log_uniform(rng, *SIZES[kind])


def _log_uniform(rng: Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _rows(values: NDArray[np.floating], kind: Kind, first: int, last: int) -> slice:
    """The rows of a fault, checked with its kind against the recording."""
    if kind not in KINDS:
        raise ValueError(f"no such kind of fault: {kind!r}; there are {', '.join(KINDS)}")
    if not 0 <= first <= last < len(values):
        raise ValueError(f"rows {first} to {last} are not in a recording of {len(values)} rows")
    return slice(first, last + 1)


def _copies(values: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The recording to change, and the one to look at, in which everything that is no number is NaN."""
    copy = np.array(values, dtype=np.float64)
    return copy, np.where(np.isfinite(copy), copy, np.nan)


def _spreads(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Robust spread of every field (T, F) -> (F,)."""
    return scaling.fit(values[:: max(1, len(values) // _SAMPLE)])[1]


def _faulty(
    values: NDArray[np.float64],
    spreads: NDArray[np.float64],
    kind: Kind,
    rows: slice,
    rng: Generator,
    size: float,
    field: int | None,
) -> NDArray[np.float64]:
    """The faulty rows (n, F) of `values` (T, F); the rest of the recording is only looked at."""
    if kind in _WHOLE and field is None:
        fields = np.arange(values.shape[1])
    else:
        fitting = _fitting(values, kind, rows)
        fields = np.array([rng.choice(fitting) if field is None else field])
    chosen = values[:, fields]  # (T, C)
    before, spread = chosen[rows], spreads[fields]  # (n, C), (C,)
    if kind in _WHOLE:
        move = _other_speed if kind == "period" else _other_phase
        # Neither reaches further than this, and a recording may have a million rows.
        begin = max(rows.start - _CYCLE_ROWS, 0)
        reach = _filled(chosen[begin : rows.stop + max(rows.stop - rows.start, _CYCLE_ROWS)])
        after = move(reach, slice(rows.start - begin, rows.stop - begin), rng, size)
    elif kind == "link":
        after = _other_time(_filled(chosen), rows, rng, size * spread)
    else:
        after = _off(chosen, kind, rows, rng, size * spread)
    # Rounding in the last digit is no fault; comparing with NaN is false.
    if not (np.abs(after - before) > 1e-6 * spread).any():
        raise UnfitError(f"a {kind} from row {rows.start} to {rows.stop - 1} would change nothing")
    whole = values[rows].copy()
    whole[:, fields] = np.where(np.isnan(before), before, after)
    return whole


def _fitting(values: NDArray[np.float64], kind: Kind, rows: slice) -> NDArray[np.int_]:
    """The fields that can best carry this fault there: measurements before modes before constants."""
    near = values[max(rows.start - _AROUND, 0) : rows.stop + _AROUND]  # (n, F)
    steps = np.diff(np.sort(near, axis=0), axis=0)  # NaN sort to the end and differ from nothing
    distinct = (steps > 0).sum(axis=0) + 1  # (F,)
    seen = np.isfinite(values[rows]).any(axis=0)  # (F,)
    moving = seen & (distinct > 1)
    if kind == "link" and moving.sum() < 2:
        raise UnfitError("a link needs two fields that move; here there are fewer")
    for tier in (moving & (distinct >= _DISTINCT), moving, seen):
        if tier.any():
            return np.flatnonzero(tier)
    raise UnfitError(f"nothing is seen from row {rows.start} to {rows.stop - 1}")


def _off(
    x: NDArray[np.float64], kind: Kind, rows: slice, rng: Generator, size: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Faults of the value itself: x (T, C), size (C,) in physical units -> (n, C)."""
    before = x[rows]
    signed = size * rng.choice([-1.0, 1.0])
    if kind == "shift":
        return np.asarray(before + signed)
    if kind == "departure":
        return np.asarray(before + signed * np.linspace(0.0, 1.0, len(before) + 1)[1:, None])
    if kind == "noise":
        return before + size * rng.standard_normal(before.shape)
    at = max(rows.start - 1, 0)
    return np.broadcast_to(_filled(x)[at] + signed, before.shape)


def _filled(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Missing values take the last one seen, or the first one to come: x (T, C) -> (T, C), NaN if none."""
    seen = np.isfinite(x)
    row = np.where(seen, np.arange(len(x))[:, None], -1)
    last = np.maximum.accumulate(row, axis=0)
    last = np.where(last < 0, seen.argmax(axis=0), last)
    return np.take_along_axis(x, last, axis=0)


def _other_speed(x: NDArray[np.float64], rows: slice, rng: Generator, octaves: float) -> NDArray[np.float64]:
    """x (T, C) run at 2^+-octaves of its speed from the first row on -> (n, C)."""
    n = rows.stop - rows.start
    speed = 2.0**octaves
    fits = rows.start + (n - 1) * speed <= len(x) - 1
    if not fits or rng.random() < 0.5:
        speed = 1.0 / speed
    there = rows.start + np.round(np.arange(n) * speed).astype(int)  # (n,)
    # The course is stretched, the noise is not: a slowed field would otherwise repeat its very readings.
    calm = _calm(x, slice(rows.start, max(rows.stop, there[-1] + 1)))
    return np.asarray(calm[there - rows.start] + (x[rows] - calm[:n]))


def _calm(x: NDArray[np.float64], rows: slice) -> NDArray[np.float64]:
    """Running median of x (T, C) in these rows: edges stay, and so does the sensor's resolution."""
    half = _CALM // 2
    around = np.clip(np.arange(rows.start - half, rows.stop + half), 0, len(x) - 1)
    windows = np.lib.stride_tricks.sliding_window_view(x[around], _CALM, axis=0)  # (n, C, 5)
    return np.asarray(np.sort(windows, axis=-1)[..., half])


def _other_phase(x: NDArray[np.float64], rows: slice, rng: Generator, share: float) -> NDArray[np.float64]:
    """x (T, C) a share of its cycle further on, or further back -> (n, C)."""
    by = max(1, round(share * _cycle(x, rows)))
    ways = [way for way in (by, -by) if rows.start + way >= 0 and rows.stop + way <= len(x)]
    if not ways:
        raise UnfitError(f"the recording is too short to move {rows.stop - rows.start} rows by {by}")
    way = int(rng.choice(ways))
    return x[rows.start + way : rows.stop + way]


def _cycle(x: NDArray[np.float64], rows: slice) -> int:
    """Readings in a cycle of x (T, C) around these rows: where their summed autocorrelation first peaks.

    A recording without a peak counts its whole as one cycle, at most 100 readings.
    """
    middle = (rows.start + rows.stop) // 2
    near = x[max(middle - _CYCLE_ROWS // 2, 0) : middle + _CYCLE_ROWS // 2]  # (n, C)
    centred = near - near.mean(axis=0)
    size = np.sqrt(np.square(centred).mean(axis=0))
    moving = np.isfinite(size) & (size > 0)
    n = len(near)
    spectrum = np.fft.rfft(centred[:, moving] / size[moving], 2 * n, axis=0)
    wave = np.fft.irfft(np.square(np.abs(spectrum)).sum(axis=1))[: n // 2]  # (n / 2,)
    wave = wave / np.arange(n, n - len(wave), -1)  # the same number of products behind every lag
    inner = wave[1:-1]
    peaks = np.flatnonzero((inner >= wave[:-2]) & (inner > wave[2:]) & (inner > 0.2 * moving.sum())) + 1
    # What wiggles before the wave has fallen is noise on the way down from lag 0.
    fallen = np.flatnonzero(wave < 0.2 * moving.sum())
    peaks = peaks[peaks > (fallen[0] if len(fallen) else n)]
    # Twice and three times the cycle peak as high: the first one of them is the cycle.
    return int(peaks[wave[peaks] > 0.9 * wave[peaks].max()][0]) if len(peaks) else min(100, n)


def _other_time(
    x: NDArray[np.float64], rows: slice, rng: Generator, aim: NDArray[np.float64]
) -> NDArray[np.float64]:
    """One field x (T, 1) as it was at the time whose rms change comes nearest to `aim` (1,) -> (n, 1)."""
    n = rows.stop - rows.start
    starts = rng.integers(0, len(x) - n + 1, _TIMES)
    there = x[starts[:, None] + np.arange(n), 0]  # (16, n)
    rms = np.sqrt(np.square(there - x[rows, 0]).mean(axis=1))  # (16,)
    # Showing the very same is no fault: such a time only counts if nothing else is left.
    wrong = np.where(rms > 0, np.abs(np.log((rms + 1e-300) / aim)), np.inf)
    return np.asarray(there[wrong.argmin()][:, None])

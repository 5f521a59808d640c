"""Which readings of the past were abnormal, told with hindsight: rows that training had better not learn.

Three things are asked of each row. How far it lies from the usual readings; what a linear regression on the
readings before and after it leaves of it; and what a two-sided network, which has the same and more of it,
leaves. The first is the only judge of a fault that lasts, whose neighbours are as wrong as itself. All are
whitened by a robust precision, taken for all fields together and for each field given the others, smoothed
over several spans, and compared with what the device itself does most of the time:

    far = above 4.5 times the spread of the bulk, and above twice what most stretches of its history reach

The second condition keeps what recurs, such as switching on, out of it, whatever its size. Much is not seen:
a fault that moves no field beyond what is usual there and breaks no relation between neighbours, such as a
sensor that sticks at a common value or a cycle that runs a little faster (bench/results/networks.md).

Shapes: N devices, T rows, F fields, I inputs, D distances (all fields, then each), K spans.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gruard.models import evidence, scaling
from gruard.models.forecaster import cell_inputs
from gruard.models.history import Aligned, align, normal_rows, usual_gap
from gruard.models.training.comparators import TWO_SIDED_CELL, OfflineConfig, OfflineNetwork
from gruard.models.training.fit import FitConfig, fit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from gruard.models.history import History

    Floats: TypeAlias = NDArray[np.float64]
    Flags: TypeAlias = NDArray[np.bool_]

#: Shorter histories are not judged: a bulk of fewer rows has no known edge.
FEWEST_ROWS = 100
#: A small net and few steps: one that predicts better follows a fault better too, and sees less.
NET = FitConfig(
    cell=TWO_SIDED_CELL,
    hidden=16,
    steps=80,
    streams=8,
    window=48,
    input_noise=0.1,
    input_drop=0.05,
    check_every=40,
)
#: Histories are cut into pieces of at most so many rows for training, so that a check costs the same for all;
#: the last rows of each are held back.
PIECE_ROWS, TRAIN_SHARE = 1000, 0.8
#: Readings on either side that the regression looks at; for each of them it takes so many rows per field.
NEIGHBOURS, FEWEST_PER_WEIGHT = 4, 8
#: Targets are held within this many sigma.
TARGET_LIMIT = 8.0
#: Rows that a centred mean spans, and how much further out a mean must lie: the means of a machine that
#: wanders slowly wander too, the longer ones the more.
SPANS = (1, 5, 17, 61)
SPAN_FACTORS = (1.0, 1.2, 1.5, 2.0)
#: Rows that are trusted in turn with the covariance, and how often that is repeated; shrinkage to the
#: diagonal; floors, as shares of the mean variance, for readings and for what the net leaves of them.
CORE, CORE_ROUNDS, SHRINK = 0.8, 4, 0.05
LEVEL_FLOOR, RESIDUAL_FLOOR = 0.05, 0.1
#: The bulk ends at this quantile; a single distance counts for at most so many of its spreads.
BULK, CAP = 0.9, 12.0
#: Spreads of the bulk beyond which a row is far; and the share of it at which its neighbours go with it.
FAR, NEAR = 4.5, 0.45
#: Stretches that a history is cut into, the share of them that says how far the usual goes, and the multiple
#: of it that is far.
STRETCHES, MOST, BEYOND_MOST = 24, 0.75, 2.0


def abnormal_rows(histories: Mapping[str, History], seed: int = 0) -> dict[str, Flags]:
    """Flag the rows of a group's devices that were abnormal in hindsight: name -> (T,) bool.

    Rows in alarm (`normal` false) are judged like the rest but teach nothing, unless they are the most. A
    device with fewer than FEWEST_ROWS rows gets no flags. The same arguments give the same flags.

    Raises:
        ModelError: the rows hold nothing to train or to judge a network on.
    """
    flags = {name: np.zeros(len(h.time_s), bool) for name, h in histories.items()}
    judged = {name: _trusting(h) for name, h in histories.items() if len(h.time_s) >= FEWEST_ROWS}
    if not judged:
        return flags
    listed = list(judged.values())
    readings = _aligned(listed)
    trusted = normal_rows(listed, len(readings.valid))  # (T, N)
    foreseen = _foreseen(readings, trusted, seed)  # (T, N, F)
    for n, (name, history) in enumerate(judged.items()):
        own = slice(len(readings.valid) - len(history.time_s), None), n
        z, mask = readings.z[own].astype(np.float64), readings.mask[own]  # (T, F)
        surprise = z - foreseen[own]
        surprise[0] = 0.0  # nobody foresaw the first
        left = _left_by_neighbours(z, trusted[own])
        asked = (z, LEVEL_FLOOR), (surprise, RESIDUAL_FLOOR), (left, RESIDUAL_FLOOR)
        lines = [_lines(x, mask, trusted[own], floor) for x, floor in asked]
        flags[name] = _far(np.concatenate(lines, axis=1), trusted[own])
    return flags


def _trusting(history: History) -> History:
    """The history itself; all rows trusted where most were in alarm, for then that says little."""
    if history.normal.mean() >= 0.5:
        return history
    return replace(history, normal=np.ones_like(history.normal))


def _aligned(histories: list[History]) -> Aligned:
    """Readings of N devices in sigma on one axis."""
    scales = [scaling.fit(h.values[h.normal]) for h in histories]
    rows: dict[str, NDArray[Any]] = {
        "location": np.stack([m for m, _ in scales]),
        "scale": np.stack([s for _, s in scales]),
        "usual_gap_s": np.array([usual_gap(h.time_s) for h in histories]),
    }
    return align(rows, histories)


def _foreseen(readings: Aligned, trusted: Flags, seed: int) -> NDArray[np.float32]:
    """What the net makes of each reading from those about it: (T, N, F) in sigma, 0 in the first row."""
    inputs = cell_inputs(readings.z, readings.mask, readings.gap_ratio)  # (T, N, I)
    target, seen = np.zeros_like(readings.z), np.zeros_like(readings.mask)
    target[:-1] = np.clip(readings.z[1:], -TARGET_LIMIT, TARGET_LIMIT)
    seen[:-1] = readings.mask[1:] & trusted[1:, :, None]
    whole, fields = np.ascontiguousarray(np.moveaxis(inputs, 0, 1)), target.shape[2]  # (N, T, I)
    pieces = _pieces(whole)  # (N * C, R, I)
    result = fit(
        pieces,
        _pieces(np.moveaxis(target, 0, 1)),
        _pieces(np.moveaxis(seen, 0, 1)),
        held_back_from=int(pieces.shape[1] * TRAIN_SHARE),
        config=replace(NET, value_inputs=fields, seed=seed),
    )
    shape = OfflineConfig(TWO_SIDED_CELL, whole.shape[2], NET.hidden, NET.layers, fields)
    y = OfflineNetwork(shape, result.weights).hindsight(whole)  # (N, T, F): row t tells of t + 1
    foreseen = np.zeros_like(readings.z)
    foreseen[1:] = np.moveaxis(y, 0, 1)[:-1]
    return foreseen


def _left_by_neighbours(z: Floats, trusted: Flags) -> Floats:
    """What a ridge regression on the readings before and behind each row leaves of it: z (T, F) -> (T, F).

    It is fitted to the share CORE of the trusted rows that it explains best, so that faults do not teach it.
    0 at both ends, and everywhere where there are too few rows for so many fields.
    """
    left = np.zeros_like(z)
    reach = min(len(z) // (FEWEST_PER_WEIGHT * z.shape[1]), NEIGHBOURS)
    if reach == 0:
        return left
    z = np.clip(z, -TARGET_LIMIT, TARGET_LIMIT)
    inner, rows = slice(reach, len(z) - reach), len(z) - 2 * reach
    shifts = [k for k in range(2 * reach + 1) if k != reach]
    beside = np.concatenate([*(z[k : k + rows] for k in shifts), np.ones((rows, 1))], axis=1)  # (R, P)
    core = able = trusted[inner]
    for _ in range(CORE_ROUNDS):
        gram = beside[core].T @ beside[core]
        penalty = 1.0 + 1e-3 * np.trace(gram) / len(gram)
        weights = np.linalg.solve(gram + penalty * np.eye(len(gram)), beside[core].T @ z[inner][core])
        left[inner] = z[inner] - beside @ weights
        spread = np.median(np.abs(left[inner][core]), axis=0) + 0.01
        squared = np.square(np.minimum(np.abs(left[inner]) / spread, CAP)).sum(axis=1)
        core = able & (squared <= np.quantile(squared[able], CORE))
    return left


def _pieces(series: NDArray[Any]) -> NDArray[Any]:
    """Series (N, T, ...) cut into equal pieces of at most PIECE_ROWS, padded in front -> (N * C, R, ...)."""
    total = series.shape[1]
    count = -(-total // PIECE_ROWS)
    rows = -(-total // count)
    padded = np.zeros((len(series), count * rows, *series.shape[2:]), series.dtype)
    padded[:, count * rows - total :] = series
    return padded.reshape(len(series) * count, rows, *series.shape[2:])


def _lines(x: Floats, mask: Flags, trusted: Flags, floor: float) -> Floats:
    """How far out a device's rows x (T, F) lie, in spreads of the bulk: (T, 2 K).

    First all fields together over each span, then the field that is furthest out for itself.
    """
    x, P = _whitener(np.clip(x, -evidence.CLIP, evidence.CLIP), mask, trusted, floor)
    pulled = x @ P  # (T, F)
    together = np.sqrt(np.maximum((x * pulled).sum(axis=1), 0.0) / np.maximum(mask.sum(axis=1), 1))
    # pulled_f / sqrt(P_ff) is how far field f is from its regression on the others, in sigma.
    apart = np.abs(pulled) / np.sqrt(np.diag(P))
    d = np.column_stack((together, apart))  # (T, D)
    low, high = np.quantile(d[trusted], (0.5, BULK), axis=0)
    d = np.minimum(d, low + CAP * (high - low) + 1e-6)
    u = _in_spreads(np.stack([_centred_mean(d, span) for span in SPANS], axis=2), trusted)  # (T, D, K)
    return np.concatenate((u[:, 0], _in_spreads(u[:, 1:].max(axis=1), trusted)), axis=1)


def _whitener(x: Floats, mask: Flags, trusted: Flags, floor: float) -> tuple[Floats, Floats]:
    """Rows about their median, 0 where missing (T, F), and the precision (F, F) of their core.

    The core is the rows that lie nearest by the precision before it (concentration steps of Rousseeuw & Van
    Driessen 1999, from the classical estimate), so that a few wild stretches do not widen it.
    """
    core = trusted
    for _ in range(CORE_ROUNDS):
        about = np.where(mask, x - np.median(x[core], axis=0), 0.0)
        covariance = about[core].T @ about[core] / core.sum()
        diagonal = np.diag(covariance)
        ridge = floor * diagonal.mean() + 1e-4
        P = np.linalg.inv((1 - SHRINK) * covariance + np.diag(SHRINK * diagonal + ridge))
        squared = (about * (about @ P)).sum(axis=1)  # (T,)
        core = trusted & (squared <= np.quantile(squared[trusted], CORE))
    return about, P


def _centred_mean(d: Floats, span: int) -> Floats:
    """Mean of the `span` rows about each row, of those there are: d (T, D) -> (T, D)."""
    sums = np.concatenate((np.zeros((1, d.shape[1])), np.cumsum(d, axis=0)))
    rows = np.arange(len(d))
    first, end = np.maximum(rows - span // 2, 0), np.minimum(rows + span // 2 + 1, len(d))
    return np.asarray((sums[end] - sums[first]) / (end - first)[:, None])


def _in_spreads(e: Floats, trusted: Flags) -> Floats:
    """Distance from the median, in units of the way from there to where the bulk ends: same shape."""
    low, high = np.quantile(e[trusted], (0.5, BULK), axis=0)
    return np.asarray((e - low) / (high - low + 0.05 * np.abs(low) + 0.02))


def _far(lines: Floats, trusted: Flags) -> Flags:
    """Rows that lie far out in any line, with those about them that are halfway there: (T, S) -> (T,)."""
    stretches = np.array_split(lines[trusted], STRETCHES)
    usual = np.quantile([stretch.max(axis=0) for stretch in stretches], MOST, axis=0)  # (S,)
    level = FAR * np.resize(SPAN_FACTORS, lines.shape[1])
    u = (lines / np.maximum(level, BEYOND_MOST * usual)).max(axis=1)  # (T,)
    edges = np.flatnonzero(np.diff(u > NEAR, prepend=False, append=False))
    flags = np.zeros(len(u), bool)
    for first, end in edges.reshape(-1, 2):
        flags[first:end] = (u[first:end] > 1.0).any()
    return flags

"""Devices that the shared linear weights do not fit get weights of their own, or share them with their kind.

A device is a misfit where weights from its own rows alone forecast its held-back rows with at most HEAD_EARNS
of the shared ones' squared error. A misfit joins a head whose weights do for it nearly what its own would;
else it founds one. The shared weights are then fitted anew on those that are left: in a group of two kinds
both were misfits, and the larger kind keeps the shared weights.

Shapes: N devices, T rows, F fields, X horizons, P regressors, C heads beside the shared one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from gruard.models.training.panel import Linear, early_residual, solve_linear, squared_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gruard.models.training.panel import Panel

    Floats: TypeAlias = NDArray[np.float32]

#: Own weights must forecast held-back rows with at most this share of the squared error of the shared ones.
HEAD_EARNS = 0.7
#: A misfit joins a head under which its squared error is at most so many times that under its own weights.
JOINS = 1.25
#: Heads beside the shared one; further misfits stay with the shared weights.
MOST_HEADS = 8


@dataclass(frozen=True, slots=True)
class Heads:
    """Linear forecasters of a group, and which device is forecast by which."""

    shared: Linear  # `early` holds the residuals of every device under its own head
    weights: Floats  # (C, P, X * F)
    of: NDArray[np.int64]  # (N,) 0 = shared


def fit_heads(panel: Panel, shared: Linear) -> Heads:
    """Find the misfits of a group and fit their heads. None where the clock is used: it is shared."""
    devices = len(panel.names)
    clusters = [] if devices < 2 or len(shared.clock) else _clusters(panel, shared)
    of = np.zeros(devices, np.int64)
    if not clusters:
        return Heads(shared, np.zeros((0, *shared.weights.shape), np.float32), of)
    rest = [n for n in range(devices) if not any(n in members for members in clusters)]
    kinds = sorted(clusters, key=len, reverse=True)
    if not rest:
        rest = kinds.pop(0)
    early = shared.early.copy()
    weights = []
    for number, members in enumerate((rest, *kinds)):
        of[members] = number
        solved = [solve_linear(panel, ahead, members) for ahead in panel.horizons]
        weights.append(np.concatenate(solved, axis=1))
        for x, ahead in enumerate(panel.horizons):
            early[x, :, members] = np.moveaxis(early_residual(panel, ahead, 0, members, members), 1, 0)
    return Heads(replace(shared, weights=weights[0], early=early), np.asarray(weights[1:]), of)


def _clusters(panel: Panel, shared: Linear) -> list[list[int]]:
    """The misfits, those of one kind together."""
    ahead = panel.horizons[0]
    found: list[list[int]] = []
    for n in range(len(panel.names)):
        own = _error(panel, ahead, [n], n)
        if own >= HEAD_EARNS * squared_error(panel, shared.early[0], n):
            continue
        kin = next((c for c in found if _error(panel, ahead, c, n) <= JOINS * own), None)
        if kin is not None:
            kin.append(n)
        elif len(found) < MOST_HEADS:
            found.append([n])
    return found


def _error(panel: Panel, ahead: int, teachers: Sequence[int], n: int) -> float:
    """Held-back squared error of device n under weights that only the teachers' rows made."""
    residual = np.zeros_like(panel.early.z)
    residual[:, [n]] = early_residual(panel, ahead, 0, teachers, [n])
    return squared_error(panel, residual, n)

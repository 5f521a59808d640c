"""What a linear forecaster leaves over of simulated plants: the task that networks are compared on.

Shapes: N devices, T rows, F fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gruard.models import scaling
from gruard.models.plants import faults
from gruard.models.plants.plants import simulate
from gruard.models.quality.controls import smoothed
from gruard.models.quality.ranking import period, vus_pr
from gruard.models.training.comparators import build
from gruard.models.training.fit import FitConfig, fit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

#: Readings that the ridge forecaster looks back, its penalty, and what counts of a residual at most.
LAGS, PENALTY, LIMIT = 8, 10.0, 8.0
#: Share of the rows that teach; the rest judges.
TAUGHT = 0.7
#: Shrinkage of the covariance to its diagonal, and its floor as a share of the mean variance.
SHRINK, FLOOR = 0.2, 0.3
#: A residual beyond this many spreads says nothing more.
CLIP = 50.0


@dataclass(frozen=True, slots=True)
class PlantTask:
    """Devices of one plant; rows from `cut` on judge, and may hold faults."""

    z: Floats  # (N, T, F) sigma
    left: Floats  # (N, T, F) what a ridge forecaster of the device's own, `ahead` rows before, left of row t
    labels: NDArray[np.bool_]  # (N, T) faulty
    known: NDArray[np.bool_]  # (T,) rows that were forecast, from rows on the same side of the cut
    cut: int
    ahead: int

    def huber_left(self, correction: Floats) -> NDArray[np.float64]:
        """Loss of the healthy rows that judge, by field, as a share of that without a correction: (F,)."""
        judged = self.known[None] & ~self.labels
        judged[:, : self.cut] = False
        losses = [huber((self.left - c)[judged]).sum(axis=0) for c in (correction, np.float32(0.0))]
        return np.asarray(losses[0] / losses[1])

    def vus_pr(self, correction: Floats) -> float:
        """How well the whitened distance of what is left, a mean over 30 rows, ranks faults: mean of N."""
        teaches = self.known[: self.cut]
        found = []
        for z, r, y in zip(self.z, self.left - correction, self.labels, strict=True):
            scores = smoothed(whitened(r, teaches))[self.cut :]
            found.append(vus_pr(y[self.cut :], scores, period(z[:, 0])))
        return float(np.mean(found))


def plant_task(plant: str, devices: int, rows: int, *, ahead: int = 1, faulty: bool = False) -> PlantTask:
    """Devices 0, 1, .. of the plant; with `faulty`, all kinds of fault in a fifth of the rows that judge."""
    cut = int(TAUGHT * rows)
    known = np.arange(rows) >= LAGS + ahead
    known[cut : cut + ahead] = False
    z, left, labels = [], [], np.zeros((devices, rows), np.bool_)
    for device in range(devices):
        values = simulate(plant, rows, seed=1, device=device).values
        if faulty:
            random = np.random.default_rng(device)
            plan = faults.schedule(rows, random, start=cut + 100)
            values, labels[device], _ = faults.inject_all(values, plan, random)
        own = scaling.to_sigma(values, *scaling.fit(values[:cut]))
        z.append(own)
        left.append(_ridge_leaves(own.astype(np.float64), known & (np.arange(rows) < cut), ahead))
    return PlantTask(np.stack(z), np.stack(left), labels, known, cut, ahead)


def corrections(task: PlantTask, config: FitConfig) -> Floats:
    """Train one network for all devices -> what it says of `left`, row by row (N, T, F), always before it."""
    mask = np.ascontiguousarray(np.broadcast_to(task.known[None, :, None], task.left.shape))
    mask[:, task.cut :] &= ~task.labels[:, task.cut :, None]
    targets = np.clip(task.left, -LIMIT, LIMIT)
    early = slice(None, -task.ahead)  # a row tells of the one `ahead` later
    later = slice(task.ahead, None)
    result = fit(task.z[:, early], targets[:, later], mask[:, later], task.cut - task.ahead, config)
    network = build(config.cell, task.z.shape[2], config.hidden, config.layers, task.left.shape[2])
    network.load_state_dict({name: torch.from_numpy(weight) for name, weight in result.weights.items()})
    said = np.zeros_like(task.left)
    for rows, part in network.run(torch.from_numpy(task.z[:, early])):
        said[:, rows.start + task.ahead : rows.start + task.ahead + part.shape[1]] = part.numpy()
    return said


def huber(error: Floats) -> NDArray[np.float64]:
    size = np.minimum(np.abs(error), LIMIT).astype(np.float64)
    return np.where(size < 1.0, 0.5 * size**2, size - 0.5)


def ridge_scores(
    values: NDArray[np.float64], teaches: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores of readings (T, F) by the first rows, those that `teaches` marks: (T,), and of these alone.

    Both are means over 30 rows; the second runs over the rows that teach as if there were no others. A row
    teaches only where none of those that the forecast looks back on is left out.
    """
    whole = np.lib.stride_tricks.sliding_window_view(teaches, LAGS + 1).all(axis=1)
    taught = np.zeros(len(values), np.bool_)
    taught[LAGS : len(teaches)] = whole
    z = scaling.to_sigma(values, *scaling.fit(values[: len(teaches)][teaches]))
    distance = whitened(_ridge_leaves(z.astype(np.float64), taught, 1), taught)
    return smoothed(distance), smoothed(distance[taught])


def whitened(r: Floats, teaches: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Distance of residuals r (T, F) by the covariance of the rows that teach: (T,)."""
    learned = np.clip(r[: len(teaches)][teaches], -CLIP, CLIP).astype(np.float64)
    covariance = learned.T @ learned / len(learned)
    floor = FLOOR * np.trace(covariance) / len(covariance)
    shrunk = (1 - SHRINK) * covariance + SHRINK * np.diag(np.diag(covariance))
    P = np.linalg.inv(shrunk + floor * np.eye(len(covariance)))
    held = np.clip(r, -CLIP, CLIP)
    return np.sqrt(np.maximum(np.einsum("tf,fg,tg->t", held, P, held), 0.0))


def _ridge_leaves(z: NDArray[Any], taught: NDArray[np.bool_], ahead: int) -> Floats:
    """Residual of z (T, F), each field in its own spreads."""
    lagged = [np.roll(z, ahead + k, axis=0) for k in range(LAGS)]
    design = np.concatenate([*lagged, np.ones((len(z), 1))], axis=1)
    gram = design[taught].T @ design[taught]
    weights = np.linalg.solve(gram + PENALTY * np.eye(len(gram)), design[taught].T @ z[taught])
    left = z - design @ weights
    left[: LAGS + ahead] = 0.0  # forecast from before the recording began
    spread = np.sqrt(np.square(np.clip(left[taught], -5, 5)).mean(axis=0)) + 0.05
    return (left / spread).astype(np.float32)

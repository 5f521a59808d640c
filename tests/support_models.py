"""A trained model package for tests, small and quick to make."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gruard.models import linear, weights
from gruard.models.calibration import Budget
from gruard.models.cells import NetworkConfig
from gruard.models.forecaster import HORIZONS, Forecaster, input_width
from gruard.models.training.candidate import TrainingOptions, train
from gruard.models.training.fit import FitConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from gruard.models.history import History
    from gruard.models.training.candidate import Candidate
    from gruard.models.weights import ModelPackage

BUDGET = Budget()


def random_forecaster(
    fields: int = 3,
    *,
    horizons: tuple[int, ...] = HORIZONS,
    clock_columns: int = 0,
    gate: float = 0.3,
    cell: str = "gru",
) -> Forecaster:
    """A forecaster that nobody trained: every part of it says something, and nothing blows up."""
    return Forecaster(*random_tensors(fields, horizons, clock_columns, gate, cell))


def random_tensors(
    fields: int = 3,
    horizons: tuple[int, ...] = HORIZONS,
    clock_columns: int = 0,
    gate: float = 0.3,
    cell: str = "gru",
) -> tuple[NetworkConfig, dict[str, NDArray[np.generic]]]:
    """What `random_forecaster` is made of."""
    rng = np.random.default_rng(0)

    def some(*shape: int) -> NDArray[np.generic]:
        return (0.2 * rng.standard_normal(shape)).astype(np.float32)

    width = len(horizons) * fields
    last_value = np.zeros((linear.var_order(fields) * fields + 1, width), np.float32)
    last_value[:fields] = np.tile(0.9 * np.eye(fields), len(horizons))
    config = NetworkConfig(cell, input_width(fields), 8, 1, width)
    tensors: dict[str, NDArray[np.generic]] = {
        **{name: some(*shape) for name, shape in config.weight_shapes().items()},
        "horizons": np.array(horizons, np.int64),
        "var.weights": last_value + some(*last_value.shape) / 4,
        "gate": np.full(width, gate, np.float32),
        "precision": np.tile(np.eye(fields, dtype=np.float32), (len(horizons) + 1, 1, 1)),
    }
    if clock_columns:
        tensors["var.clock"] = some(clock_columns, width)
    return config, tensors


def quick_candidate(histories: Mapping[str, History], **fit: object) -> Candidate:
    chosen = {"cell": "gru", "hidden": 8, "layers": 1, "steps": 30} | fit
    return train(histories, TrainingOptions(FitConfig(**chosen), BUDGET))  # type: ignore[arg-type]


def sealed_model(
    group: str, histories: Mapping[str, History], fields: tuple[str, ...] = ("f0", "f1", "f2"), **fit: object
) -> ModelPackage:
    candidate = quick_candidate(histories, **fit)
    used = [histories[name] for name in candidate.devices]
    return weights.seal(
        group=group,
        source="plant",
        fields=fields,
        cell=candidate.config.cell,
        hidden=candidate.config.hidden,
        layers=candidate.config.layers,
        created_s=2000.0,
        parent=None,
        span_start_s=float(used[0].time_s[0]),
        span_end_s=float(used[0].time_s[-1]),
        rows=candidate.rows,
        devices=candidate.devices,
        skill=candidate.skill,
        report=candidate.report,
        tensors=candidate.tensors,
    )

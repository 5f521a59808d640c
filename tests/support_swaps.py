"""A model that was really trained on a small fleet, and others made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from support_engine import plant_rows, readings_of
from support_pipeline import QUICK, finish_round, opened, play

from gruard.daemon.edges.trainer import MODELS
from gruard.models import weights

if TYPE_CHECKING:
    from pathlib import Path

    from gruard.daemon.records import Reading
    from gruard.models.weights import ModelPackage

#: Readings of each device that the model is trained on; more of each to play behind them.
SHOWN, REST = 400, 400
NAMES = ("a", "b", "c")


def fleet(first: int, until: int) -> list[Reading]:
    """The readings of three devices from one row to another, in the order of time."""
    found = [
        one
        for seed, name in enumerate(NAMES)
        for one in readings_of(
            name, plant_rows(SHOWN + REST, fields=2, seed=seed)[first:until], 1000.0 + first
        )
    ]
    return sorted(found, key=lambda reading: reading.time_s)


def trained(folder: Path) -> ModelPackage:
    """A model of the fleet's first rows, trained in a child process as the daemon does it."""
    with opened(folder, QUICK) as pipeline:
        play(pipeline, fleet(0, SHOWN))
        while not pipeline.models:
            if pipeline.rounds.trainer.group is None:
                pipeline.rounds.begin_now(None)
            finish_round(pipeline)
        (note,) = pipeline.models.values()
        return weights.read(folder / MODELS, note.id)


#: What is fitted for devices and the group: ranges that noise would leave.
FITTED = (weights.DEVICE_PREFIX, "group.")


def like(
    package: ModelPackage, by: float, *, which: str = "", created_s: float | None = None
) -> ModelPackage:
    """The model with noise of the size `by` on the weights whose names begin with `which`."""
    generator = np.random.default_rng(7)
    m = package.manifest
    tensors = {
        name: tensor + (by * generator.standard_normal(tensor.shape)).astype(tensor.dtype)
        if name.startswith(which) and tensor.dtype.kind == "f" and not name.startswith(FITTED)
        else tensor
        for name, tensor in package.tensors.items()
    }
    return weights.seal(
        group=m.group,
        source=m.source,
        fields=m.fields,
        cell=m.cell,
        hidden=m.hidden,
        layers=m.layers,
        created_s=m.created_s if created_s is None else created_s,
        parent=m.id,
        span_start_s=m.span_start_s,
        span_end_s=m.span_end_s,
        rows=m.rows,
        devices=m.devices,
        skill=m.skill,
        report=m.report,
        tensors=tensors,
    )

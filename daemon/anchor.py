"""The anchor of a group: what its first days showed, kept beside the weights, and watched in every round.

Written by the training process only, a small JSON file a group. One that is damaged or of other fields is
begun anew: the watch over slow drift then starts again, and the round says so.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from gruard.models import drift, memory
from gruard.models.arena import fresh
from gruard.models.drift import Drift, Reference  # noqa: TC001 -- msgspec reads the annotation
from gruard.models.enrolment import fitted_devices, replay
from gruard.models.forecaster import Forecaster
from gruard.models.history import align, blank
from gruard.models.weights import check_network, write_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from gruard.models.history import History
    from gruard.models.weights import ModelPackage


class Anchor(msgspec.Struct):
    """What is kept of a group."""

    model: str  # id of the group's first model, whose forecasts are watched
    fields: list[str]
    devices: dict[str, Reference]


def watch(
    folder: Path,
    group: str,
    package: ModelPackage,
    histories: Mapping[str, History],
    days_s: float,
    begun: Mapping[str, float],
) -> list[Drift]:
    """Compare the newest readings with the first days; while these last, learn from them.

    `package`: the group's first model; `days_s`: how long a device's first days last; `begun`: event time at
    which its newest normal began, and with it its first days anew.

    Raises:
        OSError: the file cannot be written.
    """
    fields = list(package.manifest.fields)
    path = folder / f"anchor-{hashlib.sha256(group.encode()).hexdigest()[:12]}.json"
    anchor = _read(path, package.manifest.id, fields)
    found: list[Drift] = []
    for device, error in _errors(package, histories).items():
        history = histories[device]
        blocks = drift.blocks_of(history.time_s, history.values, error, history.normal)
        if not blocks.end_s:
            continue
        known = anchor.devices.get(device)
        if known is not None and known.from_s < begun.get(device, -math.inf):
            known = None
        if known is None or blocks.end_s[-1] < known.from_s + days_s:
            learned = drift.learn(known, blocks, float(history.time_s[0]))
            if learned is not None:
                anchor.devices[device] = learned
        else:
            found += drift.drifts(device, fields, known, blocks)[:1]
    folder.mkdir(mode=0o700, exist_ok=True)
    write_file(path, msgspec.json.encode(anchor))
    return found


def _read(path: Path, model: str, fields: list[str]) -> Anchor:
    try:
        anchor = msgspec.json.decode(path.read_bytes(), type=Anchor)
    except (OSError, ValueError):
        return Anchor(model, fields, {})
    whole = all(len(known.fields) == len(fields) for known in anchor.devices.values())
    return anchor if (anchor.model, anchor.fields) == (model, fields) and whole else Anchor(model, fields, {})


def _errors(package: ModelPackage, histories: Mapping[str, History]) -> dict[str, NDArray[np.float64]]:
    """|error| of the first model's forecasts one reading ahead, in physical units: device -> (T, F)."""
    forecaster = Forecaster(check_network(package), package.tensors)
    fitted = fitted_devices(package.manifest.devices, package.tensors)
    if not histories:
        return {}
    listed = list(histories.values())
    scaling = [(fitted[name].location, fitted[name].scale) if name in fitted else None for name in histories]
    rows = blank(listed, scaling)
    readings = align(rows, listed)
    state = fresh(memory.columns(forecaster), len(listed))
    if forecaster.heads:
        state["head"][:] = [0 if name not in fitted else fitted[name].head for name in histories]
    lines = replay(state, readings, forecaster)
    off = np.where(readings.mask, np.abs(lines[0]), np.nan)  # (T, N, F) sigma
    return {
        name: off[len(off) - len(history.time_s) :, n] * rows["scale"][n]
        for n, (name, history) in enumerate(histories.items())
    }

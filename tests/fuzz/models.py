"""Sound files, wrong numbers: model packages whose tensors are missing, misshapen, odd or extreme."""

from __future__ import annotations

import random
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from support_engine import Bench, plant_rows, readings_of

from gruard.daemon.core.events import Scored
from gruard.models.calibration import LEVEL_HIGH
from gruard.models.cells import NetworkConfig
from gruard.models.errors import ModelError
from gruard.models.evidence import SCALES
from gruard.models.forecaster import HORIZONS, input_width
from gruard.models.linear import var_order
from gruard.models.weights import ModelPackage, seal

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Tensors = dict[str, NDArray[Any]]

_FIELDS, _HIDDEN = 2, 4
_DEVICES = ("pump-1", "pump-2")
_ROWS = 80
_ODD = [0.0, -0.0, -1.0, 1.0, 1e-38, 1e30, -1e30, 3e38, np.nan, np.inf, -np.inf, 1e300, 5e-324]


def sound_tensors(fields: int = _FIELDS) -> Tensors:
    """All that a package for so many fields and `_DEVICES` holds."""
    rng = np.random.default_rng(0)
    width, evidence = len(HORIZONS) * fields, len(HORIZONS) + 1
    shapes = NetworkConfig("gru", input_width(fields), _HIDDEN, 1, width).weight_shapes()
    network = {name: 0.3 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    devices = len(_DEVICES)
    return network | {
        "horizons": np.array(HORIZONS, np.int64),
        "var.weights": np.zeros((var_order(fields) * fields + 1, width), np.float32),
        "var.clock": np.zeros((2, width), np.float32),
        "gate": np.full(width, 0.5, np.float32),
        "precision": np.stack([np.eye(fields, dtype=np.float32)] * evidence),
        "device.location": np.full((devices, fields), 20.0),
        "device.scale": np.full((devices, fields), 2.0),
        "device.median": np.ones((devices, evidence, len(SCALES)), np.float32),
        "device.quantile": np.full((devices, evidence, len(SCALES)), 3.0, np.float32),
        "device.level": np.full(devices, LEVEL_HIGH, np.float32),
        "device.skill": np.full(devices, 0.5, np.float32),
    }


def sealed(tensors: Tensors, devices: tuple[str, ...] = _DEVICES) -> ModelPackage:
    """A package of these tensors for the group that `adopt` has; raises ModelError as a round would."""
    return seal(
        tensors=tensors,
        group="plant",
        source="plant",
        fields=tuple(f"f{n}" for n in range(_FIELDS)),
        cell="gru",
        hidden=_HIDDEN,
        layers=1,
        created_s=1.75e9,
        parent=None,
        span_start_s=0.0,
        span_end_s=1.0,
        rows=_ROWS,
        devices=devices,
        skill=0.5,
        report={},
    )


def adopt(content: bytes) -> None:
    """Put a package that was spoilt by the rules below in charge: refused by name, or scores stay finite."""
    bench, group = _bench()
    rng = random.Random(content)
    tensors = sound_tensors()
    for _ in range(rng.randrange(1, 4)):
        rng.choice(_CHANGES)(rng, tensors)
    devices = _DEVICES if rng.random() < 0.9 else rng.choice(((), _DEVICES[:1], ("a", "b", "c"), ("x",)))
    before = bench.engine.groups[group].model
    try:
        due = bench.engine.adopt(group, sealed(tensors, devices))
    except ModelError:
        assert bench.engine.groups[group].model == before, "refused, and yet something changed"
        return
    bench.engine.enrol({e.device: bench.history(e.device, e.fields, e.limit) for e in due})
    at_s = 1000.0 + _ROWS + next(_CLOCK)
    events = [e for name in _DEVICES for e in bench.feed(readings_of(name, plant_rows(2, 1, _FIELDS), at_s))]
    scored = [event for event in events if isinstance(event, Scored)]
    assert len(scored) == 2 * len(_DEVICES)
    for event in scored:
        assert np.isfinite(event.score) or event.phase == "warming"
        assert np.isfinite(event.threshold) or event.phase == "warming"


@cache
def _bench() -> tuple[Bench, str]:
    bench = Bench()
    for name in _DEVICES:
        bench.feed(readings_of(name, plant_rows(_ROWS, 0, _FIELDS)))
    (group,) = [group.name for group in bench.engine.groups.values() if group.devices]
    return bench, group


def _two_seconds() -> Any:
    step = 0
    while True:
        step += 2
        yield step


_CLOCK = _two_seconds()


def _drop(rng: random.Random, tensors: Tensors) -> None:
    del tensors[rng.choice(sorted(tensors))]


def _swap(rng: random.Random, tensors: Tensors) -> None:
    a, b = rng.choice(sorted(tensors)), rng.choice(sorted(tensors))
    tensors[a], tensors[b] = tensors[b], tensors[a]


def _reshape(rng: random.Random, tensors: Tensors) -> None:
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    change = rng.randrange(5)
    if change == 0:
        tensors[name] = tensor[:0]
    elif change == 1:
        tensors[name] = tensor.reshape(-1)
    elif change == 2:
        tensors[name] = tensor[..., None]
    elif change == 3:
        tensors[name] = np.concatenate([tensor, tensor])
    else:
        tensors[name] = np.ones((len(tensor), 99), tensor.dtype)


def _retype(rng: random.Random, tensors: Tensors) -> None:
    name = rng.choice(sorted(tensors))
    kind = rng.choice((np.float64, np.float32, np.int32, np.int64, np.float16, np.bool_, np.uint8))
    with np.errstate(all="ignore"):
        tensors[name] = tensors[name].astype(kind)


def _one_number(rng: random.Random, tensors: Tensors) -> None:
    tensor = tensors[rng.choice(sorted(tensors))]
    if tensor.size and tensor.dtype.kind == "f":
        with np.errstate(all="ignore"):
            tensor.flat[rng.randrange(tensor.size)] = rng.choice(_ODD)


def _all_numbers(rng: random.Random, tensors: Tensors) -> None:
    tensor = tensors[rng.choice(sorted(tensors))]
    if tensor.dtype.kind == "f":
        with np.errstate(all="ignore"):
            tensor[:] = rng.choice(_ODD)


def _horizons(rng: random.Random, tensors: Tensors) -> None:
    tensors["horizons"] = np.array(
        rng.choice(([1], [16, 1], [1, 1], [0, 1], [1, 2**31], [], [1, 17])), np.int64
    )


_CHANGES: list[Callable[[random.Random, Tensors], None]] = [
    *(_drop, _swap, _reshape, _retype, _one_number, _one_number, _all_numbers, _horizons)
]

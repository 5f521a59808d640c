"""A model for devices that lack some of its fields: what it says of a device that never shows them.

A field that is always missing stands at 0 sigma with its mask at 0, so its weights multiply nothing and its
own forecasts are heard by nobody. Leaving all of them out gives the same forecasts of the other fields: a
group without a model may start from that of a neighbour, and its devices borrow as newcomers do.

Shapes: F fields of the neighbour, G of them kept, X horizons.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gruard.models import linear
from gruard.models.loan import PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from gruard.models.cells import NetworkConfig

    Tensors = Mapping[str, NDArray[Any]]

#: Fewest fields that are kept, and the least share of the neighbour's: of less it knows too little.
FEWEST_FIELDS, LEAST_SHARE = 2, 0.5


def fits(fields: Sequence[str], neighbour: Sequence[str]) -> bool:
    """Whether a group with these fields may start from a model of the neighbour's."""
    kept = len(fields)
    return set(fields) < set(neighbour) and kept >= max(FEWEST_FIELDS, LEAST_SHARE * len(neighbour))


def narrowed(
    config: NetworkConfig, tensors: Tensors, neighbour: Sequence[str], fields: Sequence[str]
) -> tuple[NetworkConfig, dict[str, NDArray[Any]]]:
    """The neighbour's network and tensors for a part of its fields, in their order; no device is in them.

    The tensors are those of a package that a `Forecaster` has taken.
    """
    whole, kept = len(neighbour), np.array([list(neighbour).index(name) for name in fields])
    horizons = len(tensors["horizons"])
    outputs = (whole * np.arange(horizons)[:, None] + kept).ravel()  # of axis X * F
    inputs = np.concatenate([kept, whole + kept, [2 * whole]])  # values, mask, gap
    lags = (whole * np.arange(linear.var_order(whole))[:, None] + kept).ravel()
    regressors = np.append(lags, len(tensors["var.weights"]) - 1)
    found = {name: tensor for name, tensor in tensors.items() if not name.startswith("device.")}
    found["cell.weight_ih_l0"] = tensors["cell.weight_ih_l0"][:, inputs]
    found["precision"] = tensors["precision"][:, kept[:, None], kept]
    found["var.weights"] = tensors["var.weights"][regressors[:, None], outputs]
    for name in ("readout.weight", "readout.bias", "gate"):
        found[name] = tensors[name][outputs]
    if "var.clock" in tensors:
        found["var.clock"] = tensors["var.clock"][:, outputs]
    if "head.weights" in tensors:
        found["head.weights"] = tensors["head.weights"][:, regressors[:, None], outputs]
        found["head.gate"] = tensors["head.gate"][:, outputs]
    for name in ("location", "scale"):
        for part in (name, f"{name}_spread", f"{name}_doubt"):
            if PREFIX + part in tensors:
                found[PREFIX + part] = tensors[PREFIX + part][kept]
    config = replace(config, inputs=len(inputs), outputs=len(outputs))
    return config, {name: np.ascontiguousarray(tensor) for name, tensor in found.items()}

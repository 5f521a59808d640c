"""What a group shares: a linear forecast, a recurrent correction to it, and the two whiteners.

    forecast of z[t+1] = VAR(lags) + gate * readout(h[t]),      h[t] = cell(h[t-1], [z, mask, gap][t])

The gate is 0 for a field where the correction did not help on held-back rows, so the recurrent net can
only add. Parameters are fixed; everything that moves belongs to a device and lives in the arena.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gruard.models import linear
from gruard.models.cells import Network, NetworkConfig, finite_rows, repair
from gruard.models.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

#: Log of (gap / usual gap) is held within +-GAP_LIMIT before it enters the cell.
GAP_LIMIT = 3.0
#: A correction beyond this many sigma is the net talking nonsense about an input it never saw.
CORRECTION_LIMIT = 5.0


def input_width(fields: int) -> int:
    """Inputs of the cell: values, mask and the time gap."""
    return 2 * fields + 1


def cell_inputs(
    z: NDArray[np.float32], mask: NDArray[np.bool_], gap_ratio: NDArray[Any]
) -> NDArray[np.float32]:
    """[z, mask, log gap]: z and mask (..., F), gap_ratio (...,) = gap / usual gap -> (..., 2F + 1)."""
    log_gap = np.clip(np.log(np.maximum(gap_ratio, 1e-3)), -GAP_LIMIT, GAP_LIMIT)
    return np.concatenate([z, mask, log_gap[..., None]], axis=-1, dtype=np.float32)


class Forecaster:
    """The model lines of a group: built from the tensors of a model package, checked once, then fixed."""

    def __init__(self, config: NetworkConfig, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Take the tensors of a package.

        Raises:
            ModelError: a tensor is absent, of the wrong shape, or not finite.
        """
        fields = config.outputs
        if config.inputs != input_width(fields):
            raise ModelError(f"{config.inputs} cell inputs do not fit {fields} fields")
        self.network = Network(config, {n: tensors[n] for n in config.weight_shapes() if n in tensors})
        order = linear.var_order(fields)
        shapes = {
            "var.weights": (order * fields + 1, fields),
            "gate": (fields,),
            "residual.precision": (fields, fields),
            "level.precision": (fields, fields),
        }
        for name, shape in shapes.items():
            found = tensors.get(name)
            if found is None or found.shape != shape or not np.isfinite(found).all():
                raise ModelError(f"tensor {name} is not a finite array of shape {shape}")
        self.fields = fields
        self.state_width = config.state_width
        self.var_weights = tensors["var.weights"].astype(np.float32)
        self.gate = tensors["gate"].astype(np.float32)
        self.residual_precision = tensors["residual.precision"].astype(np.float32)
        self.level_precision = tensors["level.precision"].astype(np.float32)

    def forecast(self, lags: NDArray[np.float32], correction: NDArray[np.float32]) -> NDArray[np.float32]:
        """Forecast of the next reading: lags (B, LAGS, F), correction (B, F) -> (B, F)."""
        return linear.forecast_var(lags, self.var_weights) + correction

    def remember(
        self, inputs: NDArray[np.float32], hidden: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
        """Step the cell past a reading: inputs (B, I), hidden (B, W) -> correction (B, F), hidden', resets.

        The state is checked before and after: a row with a number that is not finite starts again from
        zero and is counted, because one such number would stay in the memory for ever.
        """
        hidden, before = repair(hidden)
        readout, moved = self.network.step(inputs, hidden)
        moved, after = repair(moved)
        readout = np.where(finite_rows(readout)[:, None], readout, 0.0)
        correction = np.clip(readout * self.gate, -CORRECTION_LIMIT, CORRECTION_LIMIT)
        return correction.astype(np.float32), moved, before + after

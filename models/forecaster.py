"""What a group shares: linear forecasts at several horizons, a recurrent correction, and the whiteners.

    forecast of z[t+h] = VAR_h(z[t], z[t-1], ...) + clock_h(t+h) + gate_h * readout_h(hidden[t])
    hidden[t] = cell(hidden[t-1], [z, mask, gap][t])

A device that the shared weights do not fit has a head of its own, or one with others of its kind: VAR_h and
gate_h are then those of the head. The gate is 0 for a field where the correction did not help on held-back
rows, so the recurrent net can only add. Parameters are fixed; everything that moves belongs to a device and
lives in the arena.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gruard.models import clock, linear
from gruard.models.cells import MAX_MAGNITUDE, Network, NetworkConfig, finite_rows, repair
from gruard.models.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

#: Readings ahead that are forecast. The long one still speaks of the time before a fault when the fault
#: has long reached the newest readings.
HORIZONS = (1, 16)
#: A horizon is used where the history is at least so many times as long.
HISTORY_PER_HORIZON = 12
#: Log of (gap / usual gap) is held within +-GAP_LIMIT before it enters the cell.
GAP_LIMIT = 3.0
#: A correction beyond this many sigma is the net talking nonsense about an input it never saw.
CORRECTION_LIMIT = 5.0


def horizons_for(rows: int) -> tuple[int, ...]:
    """The horizons that a history of so many rows can teach: the shortest one always."""
    return tuple(h for h in HORIZONS if h == min(HORIZONS) or h * HISTORY_PER_HORIZON <= rows)


def input_width(fields: int) -> int:
    """Inputs of the cell: values, mask and the time gap."""
    return 2 * fields + 1


def cell_inputs(
    z: NDArray[np.float32], mask: NDArray[np.bool_], gap_ratio: NDArray[Any]
) -> NDArray[np.float32]:
    """[z, mask, log gap]: z and mask (..., F), gap_ratio (...,) = gap / usual gap -> (..., 2F + 1)."""
    fields = z.shape[-1]
    inputs = np.empty((*z.shape[:-1], input_width(fields)), np.float32)
    inputs[..., :fields], inputs[..., fields:-1] = z, mask
    inputs[..., -1] = np.minimum(np.maximum(np.log(np.maximum(gap_ratio, 1e-3)), -GAP_LIMIT), GAP_LIMIT)
    return inputs


class Steps(Protocol):
    """A network that moves devices one reading on, as `gruard.models.cells.Network` does."""

    config: NetworkConfig

    def step(
        self, x: NDArray[np.float32], state: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """From x (B, I) and state (B, W) to outputs (B, O) and the new state."""


class Forecaster:
    """The model of a group: built from the tensors of a model package, checked once, then fixed.

    Shapes: B devices, F fields, X horizons, E = X + 1 lines of evidence, P regressors, C clock columns.
    """

    def __init__(
        self, config: NetworkConfig, tensors: Mapping[str, NDArray[Any]], network: Steps | None = None
    ) -> None:
        """Take the tensors of a package; `network` where another than a live cell is to be heard.

        Raises:
            ModelError: a tensor is absent, of the wrong shape, or not finite.
        """
        self.horizons = _horizons(tensors)
        fields, odd = divmod(config.outputs, len(self.horizons))
        if odd or config.inputs != input_width(fields):
            raise ModelError(
                f"{config.inputs} cell inputs and {config.outputs} outputs do not fit any number of fields"
            )
        if network is None:
            network = Network(config, {n: tensors[n] for n in config.weight_shapes() if n in tensors})
        self.network = network
        width = len(self.horizons) * fields
        self.order = linear.var_order(fields)
        self.clock_columns = len(tensors["var.clock"]) if "var.clock" in tensors else 0
        shapes: dict[str, tuple[int, ...]] = {
            "var.weights": (self.order * fields + 1, width),
            "gate": (width,),
            "precision": (len(self.horizons) + 1, fields, fields),
        }
        if self.clock_columns:
            shapes["var.clock"] = (self.clock_columns, width)
        of_heads = tensors.get("head.weights")
        if of_heads is not None and of_heads.ndim != 3:
            raise ModelError("tensor head.weights is no stack of matrices")
        self.heads = 0 if of_heads is None else len(of_heads)
        if of_heads is not None:
            shapes["head.weights"] = (self.heads, self.order * fields + 1, width)
            shapes["head.gate"] = (self.heads, width)
        for name, shape in shapes.items():
            found = tensors.get(name)
            # Written so that NaN fails.
            if found is None or found.shape != shape or not (np.abs(found) <= MAX_MAGNITUDE).all():
                raise ModelError(f"tensor {name} is not an array of shape {shape} within {MAX_MAGNITUDE:g}")
        self.fields = fields
        self.state_width = config.state_width
        weights = tensors["var.weights"].astype(np.float32)
        self._slopes, self._constant = np.ascontiguousarray(weights[:-1]), weights[-1]
        self._clock = tensors["var.clock"].astype(np.float32) if self.clock_columns else None
        self._gate = tensors["gate"].astype(np.float32)
        self._head_weights = None if of_heads is None else of_heads.astype(np.float32)
        if self.heads:  # a row for each head, the shared one first
            self._gate = np.concatenate([self._gate[None], tensors["head.gate"].astype(np.float32)])
        self._heard = bool(self._gate.any())
        self.precision = tensors["precision"].astype(np.float32)

    def forecast(
        self, lags: NDArray[np.float32], head: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Linear forecasts, without the clock: lags (B, LAGS, F), head (B,), 0 = shared -> (B, X, F)."""
        batch = len(lags)
        flat = lags[:, : self.order].reshape(batch, -1)  # (B, order * F)
        ahead = flat @ self._slopes
        ahead += self._constant
        if head is not None and self._head_weights is not None:
            for own in np.unique(head[head > 0]).tolist():
                here = head == own
                ahead[here] = flat[here] @ self._head_weights[own - 1, :-1] + self._head_weights[own - 1, -1]
        return np.asarray(ahead.reshape(batch, len(self.horizons), self.fields), np.float32)

    def clock_part(self, time_s: NDArray[np.float64]) -> NDArray[np.float32] | None:
        """What the time of a reading adds to its forecasts: time_s (B,) -> (B, X, F); None: no clock."""
        if self._clock is None:
            return None
        part = clock.harmonics(time_s, self.clock_columns) @ self._clock  # (B, X * F)
        return part.reshape(len(time_s), len(self.horizons), self.fields)

    def remember(
        self,
        inputs: NDArray[np.float32],
        hidden: NDArray[np.float32],
        head: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
        """Step the cell past a reading: inputs (B, I), hidden (B, W) -> correction (B, X, F), hidden, resets.

        `head` (B,) says whose gate is a device's. The state is checked before and after: a row with a number
        that is not finite starts again from zero and is counted, because one such number would stay in the
        memory for ever.
        """
        shape = len(inputs), len(self.horizons), self.fields
        if not self._heard:  # nobody listens to it anywhere: it costs nothing then
            return np.zeros(shape, np.float32), hidden, 0
        hidden, before = repair(hidden)
        readout, moved = self.network.step(inputs, hidden)
        moved, after = repair(moved)
        if before or after:
            readout = np.where(finite_rows(readout)[:, None], readout, 0.0)
        gate = self._gate if head is None else self._gate[head]
        correction = np.minimum(np.maximum(readout * gate, -CORRECTION_LIMIT), CORRECTION_LIMIT)
        return correction.reshape(shape), moved, before + after


def _horizons(tensors: Mapping[str, NDArray[Any]]) -> tuple[int, ...]:
    found = tensors.get("horizons")
    if found is None or found.ndim != 1 or not 1 <= len(found) <= 8:
        raise ModelError("tensor horizons is not a short list of whole numbers")
    horizons = tuple(int(h) for h in found.tolist())
    if any(not 1 <= h <= 256 for h in horizons) or list(horizons) != sorted(set(horizons)):
        raise ModelError(f"horizons {horizons} are not rising numbers from 1 to 256")
    return horizons

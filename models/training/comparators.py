"""Networks that the recurrent cells are measured against, offline: trained by the same `fit`, never live.

    mlp           feed-forward over the last LAGS readings: as much of the past as the linear forecaster has
    transformer   causal attention over the last 64 readings, one memory of inputs instead of a summary
    bigru         two GRUs in hindsight: reading t+1 from what came up to t and from t+2 on

The memory of the first two is a ring of past inputs, so nothing is hidden in it: no gradient flows through
time, and what a device costs is what the window holds.

Shapes: N series or B devices, T steps, I inputs, H hidden, L layers, O outputs, P past readings,
W state width.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import nn

from gruard.models.cells import CELLS, NetworkConfig, check_weights
from gruard.models.errors import ModelError
from gruard.models.linear import LAGS
from gruard.models.training.network import RecurrentForecaster, SequenceNetwork, quiet_readout

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from gruard.models.forecaster import Steps

    Floats: TypeAlias = NDArray[np.float32]

TWO_SIDED_CELL = "bigru"
OFFLINE_CELLS = ("mlp", "transformer", TWO_SIDED_CELL)

#: Readings that the transformer sees, its own included: L layers share the way, 63 // L back in each.
ATTENTION_READINGS = 64
#: The learned biases on age move this many times as fast as weights: a softmax picks out one reading of 64
#: only when its bias is above the others' by several units, and a short run could not go that far.
AGE_GAIN = 8.0
#: Series that `hindsight` runs side by side, to bound its memory.
SERIES_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class OfflineConfig(NetworkConfig):
    """Shape of a network that never runs live. Raises ModelError as NetworkConfig does, for its own names."""

    def __post_init__(self) -> None:
        if self.cell not in OFFLINE_CELLS:
            raise ModelError(f"cell {self.cell!r} is unknown: it must be one of {', '.join(OFFLINE_CELLS)}")
        NetworkConfig(CELLS[0], self.inputs, self.hidden, self.layers, self.outputs)  # the same limits hold

    @property
    def past_readings(self) -> int:
        """P: readings that the ring holds; 0 where the memory is no ring."""
        return {"mlp": LAGS - 1, "transformer": self.layers * self.reach}.get(self.cell, 0)

    @property
    def reach(self) -> int:
        """Readings back that one attention layer looks."""
        return (ATTENTION_READINGS - 1) // self.layers

    @property
    def state_width(self) -> int:
        """Floats of state that one device carries: P*I, a count more for the transformer; for bigru L*H.

        What bigru needs from the other side is not in it: no state holds the future.
        """
        if self.cell == TWO_SIDED_CELL:
            return self.layers * self.hidden
        return self.past_readings * self.inputs + (self.cell == "transformer")

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight."""
        with torch.device("meta"):  # shapes only: nothing is allocated or drawn at random
            network = _NETWORKS[self.cell](self)
        return {name: tuple(weight.shape) for name, weight in network.state_dict().items()}


def config_for(cell: str, inputs: int, hidden: int, layers: int, outputs: int) -> NetworkConfig:
    """Shape of a network of any cell, live or offline. Raises ModelError for a wrong name or number."""
    if cell in CELLS:
        return NetworkConfig(cell, inputs, hidden, layers, outputs)
    if cell in OFFLINE_CELLS:
        return OfflineConfig(cell, inputs, hidden, layers, outputs)
    raise ModelError(f"cell {cell!r} is unknown: it must be one of {', '.join(CELLS + OFFLINE_CELLS)}")


def build(
    cell: str, inputs: int, hidden: int, layers: int, outputs: int, dropout: float = 0.0
) -> SequenceNetwork:
    """A fresh network of any cell, live or offline. Raises ModelError for an unknown name or bad number."""
    config = config_for(cell, inputs, hidden, layers, outputs)
    if isinstance(config, OfflineConfig):
        return _NETWORKS[cell](config, dropout)
    return RecurrentForecaster(config, dropout)


def steps_over(config: NetworkConfig, tensors: Mapping[str, Floats], inputs: Floats | None) -> Steps | None:
    """What a Forecaster hears where its cell is a comparator; None where it is a live one.

    inputs (1, T, I): all that will be stepped through, for a cell that hears what follows.

    Raises:
        ModelError: the weights among the tensors do not fit, or a two-sided cell has no inputs.
    """
    if not isinstance(config, OfflineConfig):
        return None
    network = OfflineNetwork(config, {name: tensors[name] for name in config.weight_shapes()})
    if config.cell != TWO_SIDED_CELL:
        return network
    if inputs is None:
        raise ModelError(f"{config.cell} needs the readings that follow: it can score a recording only")
    return Hindsight(network, inputs)


class WindowMLP(SequenceNetwork):
    """L hidden layers of H over the inputs of the last LAGS readings.

    State: the inputs of the LAGS - 1 before, oldest first; zeros before a device's first reading.
    """

    def __init__(self, config: OfflineConfig, dropout: float = 0.0) -> None:
        super().__init__(config)
        widths = [LAGS * config.inputs, *[config.hidden] * config.layers]
        self.hidden = nn.Sequential(
            *(
                part
                for before, after in pairwise(widths)
                for part in (nn.Linear(before, after), nn.GELU(), nn.Dropout(dropout))
            )
        )
        self.readout = quiet_readout(config.hidden, config.outputs)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run T steps: x (N, T, I) and state (N, W) -> y (N, T, O) and the state after the last."""
        past = state.view(len(x), LAGS - 1, x.shape[2])
        rows = torch.cat((past, x), dim=1)  # (N, P + T, I)
        windows = rows.unfold(1, LAGS, 1).flatten(2)  # (N, T, I * LAGS)
        return self.readout(self.hidden(windows)), rows[:, -(LAGS - 1) :].flatten(1)


class WindowTransformer(SequenceNetwork):
    """Pre-norm attention (Vaswani et al. 2017; Xiong et al. 2020) over a sliding window, heads of H / 4.

    Positions are learned biases on the age of a reading (Press et al. 2022 with free slopes): the same window
    gives the same output wherever it stands in a series. State: readings in the ring, then the ring, oldest
    first; what the ring does not hold yet is not attended to.
    """

    def __init__(self, config: OfflineConfig, dropout: float = 0.0) -> None:
        super().__init__(config)
        self.past = config.past_readings
        self.embed = nn.Linear(config.inputs, config.hidden)
        self.blocks = nn.ModuleList(
            _AttentionBlock(config.hidden, config.reach, dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.hidden)
        self.dropout = nn.Dropout(dropout)
        self.readout = quiet_readout(config.hidden, config.outputs)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run T steps: x (N, T, I) and state (N, W) -> y (N, T, O) and the state after the last."""
        count, ring = state[:, :1], state[:, 1:].view(len(x), self.past, x.shape[2])
        rows = torch.cat((ring, x), dim=1)  # (N, P + T, I)
        there = torch.arange(rows.shape[1]) >= self.past - count  # (N, P + T)
        h = self.embed(rows)  # (N, P + T, H)
        for block in self.blocks:
            h = block(h, there[:, -h.shape[1] :])  # each layer spends its reach: (N, T, H) after the last
        after = torch.cat(
            ((count + x.shape[1]).clamp(max=self.past), rows[:, -self.past :].flatten(1)), dim=1
        )
        return self.readout(self.dropout(self.norm(h))), after


class _AttentionBlock(nn.Module):
    """One layer: rows R come in, those with `reach` readings before them come out."""

    def __init__(self, hidden: int, reach: int, dropout: float) -> None:
        super().__init__()
        self.reach = reach
        self.heads = next(heads for heads in (4, 2, 1) if hidden % heads == 0)
        self.query = nn.Linear(hidden, hidden)
        self.key_value = nn.Linear(hidden, 2 * hidden)
        self.joined = nn.Linear(hidden, hidden)
        self.norm, self.norm_wide = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.wide = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, hidden))
        self.dropout = nn.Dropout(dropout)
        # Heads begin with different spans, from the last few readings to all that the layer reaches.
        slopes = 4.0 ** -torch.arange(self.heads)[:, None]
        start = torch.randn(self.heads, reach + 1) - slopes * torch.arange(reach + 1)
        self.age_bias = nn.Parameter(start / AGE_GAIN)  # (heads, reach + 1)

    def forward(self, h: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """h (N, R, H), there (N, R) bool: which rows are readings -> (N, R - reach, H)."""
        normed = self.norm(h)
        q = self._by_head(self.query(normed[:, self.reach :]))
        k, v = (self._by_head(part) for part in self.key_value(normed).chunk(2, dim=2))
        rows = torch.arange(h.shape[1])
        age = rows[self.reach :, None] - rows  # (R - reach, R)
        # A row always sees itself: a softmax over nothing would be NaN, and NaN times zero weight still is.
        seen = (age == 0) | ((age > 0) & (age <= self.reach) & there[:, None, None])  # (N, 1, R - reach, R)
        bias = AGE_GAIN * self.age_bias[:, age.clamp(0, self.reach)]  # (heads, R - reach, R)
        attended = nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=bias.masked_fill(~seen, -torch.inf)
        )
        h = h[:, self.reach :] + self.dropout(self.joined(attended.transpose(1, 2).flatten(2)))
        h = h + self.dropout(self.wide(self.norm_wide(h)))
        return h  # noqa: RET504 -- named for its type

    def _by_head(self, rows: torch.Tensor) -> torch.Tensor:
        """(N, R, H) -> (N, heads, R, H / heads)."""
        return rows.view(*rows.shape[:2], self.heads, -1).transpose(1, 2)


class TwoSidedGRU(SequenceNetwork):
    """Two stacks of GRU layers, one from either end; row t of y tells of reading t+1, which neither has seen.

    The stacks stay apart up to the readout (torch's own bidirectional layers would mix them below it, and
    reading t+1 would then reach its own forecast). State: that of the forward stack; the backward one starts
    from zero behind the last row it is given.
    """

    both_sides = True

    def __init__(self, config: OfflineConfig, dropout: float = 0.0) -> None:
        super().__init__(config)
        between = dropout if config.layers > 1 else 0.0  # torch warns where there is no layer to drop between
        sizes = config.inputs, config.hidden, config.layers
        self.before = nn.GRU(*sizes, batch_first=True, dropout=between)
        self.after = nn.GRU(*sizes, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(dropout)
        self.readout = quiet_readout(2 * config.hidden, config.outputs)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run T steps: x (N, T, I) and state (N, W) -> y (N, T, O) and the state after the last."""
        layered = state.view(len(x), self.config.layers, -1).transpose(0, 1).contiguous()  # (L, N, H)
        earlier, last = self.before(x, layered)  # (N, T, H): row t has seen 0..t
        later = self.after(x.flip(1))[0].flip(1)  # (N, T, H): row t has seen t..T-1
        later = nn.functional.pad(later[:, 2:], (0, 0, 0, min(2, x.shape[1])))  # now t+2..T-1, zero if none
        return self.readout(self.dropout(torch.cat((earlier, later), dim=2))), last.transpose(0, 1).flatten(1)


_NETWORKS: dict[str, type[WindowMLP | WindowTransformer | TwoSidedGRU]] = {
    "mlp": WindowMLP,
    "transformer": WindowTransformer,
    TWO_SIDED_CELL: TwoSidedGRU,
}


class OfflineNetwork:
    """A trained comparator with numpy in and out, to be driven as `gruard.models.cells.Network` is.

    Raises ModelError when a weight is missing, foreign, of the wrong shape or type, not finite or huge.
    """

    def __init__(self, config: OfflineConfig, weights: Mapping[str, Floats]) -> None:
        check_weights(config, weights)
        self.config: NetworkConfig = config
        with torch.device("meta"):  # draws no random weights, which nobody would see
            self._network = _NETWORKS[config.cell](config)
        tensors = {name: torch.from_numpy(weight.copy()) for name, weight in weights.items()}
        self._network.load_state_dict(tensors, assign=True)

    def step(self, x: Floats, state: Floats) -> tuple[Floats, Floats]:
        """Move every device one reading on: x (B, I), state (B, W) -> outputs (B, O) and new state (B, W).

        A device's result does not depend on the others; a non-finite number spoils its own rows only.

        Raises:
            ValueError: the shapes do not fit.
            ModelError: the network is two-sided and has no step.
        """
        if self._network.both_sides:
            raise ModelError(f"{self.config.cell} needs the readings that follow: it has no step")
        rows = len(x)
        if x.shape != (rows, self.config.inputs) or state.shape != (rows, self.config.state_width):
            raise ValueError(f"step: x {x.shape} and state {state.shape} do not fit {self.config}")
        with torch.inference_mode():
            y, after = self._network(_tensor(x)[:, None], _tensor(state))
        return y[:, 0].numpy(), after.numpy()

    def hindsight(self, x: Floats) -> Floats:
        """Outputs of whole series, each from a zero state: x (N, T, I) -> (N, T, O), row t telling of t+1.

        For a causal network the same as T steps. Raises ValueError when the shape does not fit.
        """
        if x.ndim != 3 or x.shape[2] != self.config.inputs:
            raise ValueError(f"hindsight: x {x.shape} does not fit {self.config}")
        y = np.empty((*x.shape[:2], self.config.outputs), np.float32)
        for start in range(0, len(x), SERIES_AT_ONCE):
            series = slice(start, start + SERIES_AT_ONCE)
            for rows, part in self._network.run(_tensor(x[series])):
                y[series, rows] = part.numpy()
        return y


class Hindsight:
    """A two-sided network driven reading by reading: its outputs for one device's readings are there before.

    The first number of the state counts readings, which must be those of `inputs` (1, T, I) in their order.
    """

    def __init__(self, network: OfflineNetwork, inputs: Floats) -> None:
        self.config: NetworkConfig = network.config
        self._outputs = network.hindsight(inputs)[0]  # (T, O)

    def step(self, x: Floats, state: Floats) -> tuple[Floats, Floats]:  # noqa: ARG002 -- x was given before
        """Outputs (B, O) of the reading that the state (B, W) stands before, and the state behind it."""
        after = state.copy()
        after[:, 0] += 1.0
        return self._outputs[state[:, 0].astype(np.int64)], after


def _tensor(array: Floats) -> torch.Tensor:
    return torch.from_numpy(np.require(array, np.float32, ["C", "W"]))

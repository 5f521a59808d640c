"""The network as it is trained: torch, with the names and the state layout of `gruard.models.cells`.

`SequenceNetwork` is what training asks of any network: see `comparators` for those that never run live.

Shapes: N series, T steps, I inputs, H hidden, L layers, O outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gruard.models.cells import MEMORIES, NetworkConfig
from gruard.models.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

_CELL_TYPES = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}  # nn.RNN's nonlinearity is tanh by default

#: The readout starts near zero, so that an untrained correction corrects nothing.
READOUT_START = 0.1
#: Rows that a whole series is run at a time, to bound the memory.
CHUNK_ROWS = 256
#: Fewest rows that `open_gates` can spread its rates over.
SHORTEST_MEMORY = 3


class SequenceNetwork(nn.Module):
    """A network over readings with a memory that it is handed and hands back.

    `forward` takes x (N, T, I) and state (N, state_width); it gives y (N, T, O) and the state after row T.
    """

    both_sides = False  # y of a row depends on later rows too, as many as there are

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config

    def zero_state(self, series: int) -> torch.Tensor:
        """The memory of N series that have seen nothing: (N, state_width)."""
        return torch.zeros(series, self.config.state_width)

    def run(self, x: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Whole series x (N, T, I) from a zero memory, without dropout or gradients: rows, y (N, R, O).

        Some rows at a time, but all T at once where both sides count.
        """
        self.eval()
        rows = x.shape[1] if self.both_sides else CHUNK_ROWS
        state = self.zero_state(len(x))
        for start in range(0, x.shape[1], rows):
            part = slice(start, start + rows)
            with torch.no_grad():
                y, state = self(x[:, part], state)
            yield part, y

    def export(self) -> dict[str, NDArray[np.float32]]:
        """Weights by name, as `gruard.models.cells.Network` takes them: copies."""
        return {name: weight.detach().numpy().copy() for name, weight in self.state_dict().items()}


def open_gates(network: SequenceNetwork, longest: int) -> None:
    """Let half of each layer's units start as ones that forget at rates from one row to about `longest` rows.

    As torch builds them, gates stand half open: half of the memory is lost at each row, and no gradient comes
    back from far. The bias of the gate that keeps (gru: z; lstm: f) becomes log u, u uniform in
    [1, longest - 1], and the lstm's input gate gets its opposite (Tallec & Ollivier 2018, arXiv:1804.11188,
    "chrono initialisation"). The other half stays as built: with all units open a gru lost three quarters of
    what it gains one reading ahead (bench/results/networks.md). Draws from torch's random state.

    Raises:
        ModelError: the network has no gates, or longest is below SHORTEST_MEMORY.
    """
    if longest < SHORTEST_MEMORY:
        raise ModelError(
            f"a memory of {longest} rows is too short to open gates for: {SHORTEST_MEMORY} at least"
        )
    gated = [module for module in network.modules() if isinstance(module, nn.GRU | nn.LSTM)]
    if not gated:
        raise ModelError(f"cell {network.config.cell!r} has no gates to open")
    for cell in gated:
        hidden, kept = cell.hidden_size, cell.hidden_size // 2
        # torch's order of gates: gru r, z, n; lstm i, f, g, o.
        first, keep = slice(kept, hidden), slice(hidden + kept, 2 * hidden)
        for layer in range(cell.num_layers):
            inner, outer = (
                getattr(cell, f"bias_ih_l{layer}"),
                getattr(cell, f"bias_hh_l{layer}"),
            )  # (gates * H,)
            with torch.no_grad():
                inner[keep] = torch.empty(hidden - kept).uniform_(1.0, longest - 1.0).log()
                outer[keep] = 0.0
                if isinstance(cell, nn.LSTM):
                    inner[first], outer[first] = -inner[keep], 0.0


def quiet_readout(width: int, outputs: int) -> nn.Linear:
    """A linear readout that starts near zero."""
    readout = nn.Linear(width, outputs)
    with torch.no_grad():
        readout.weight *= READOUT_START
        readout.bias.zero_()
    return readout


class RecurrentForecaster(SequenceNetwork):
    """Stacked cells and a linear readout; dropout between layers and before the readout, in training only.

    Raises ModelError (from NetworkConfig) when the configuration is out of range.
    """

    def __init__(self, config: NetworkConfig, dropout: float = 0.0) -> None:
        super().__init__(config)
        self.cell = _CELL_TYPES[config.cell](
            config.inputs,
            config.hidden,
            config.layers,
            batch_first=True,
            dropout=dropout
            if config.layers > 1
            else 0.0,  # torch warns where there is no layer to drop between
        )
        self.dropout = nn.Dropout(dropout)
        self.readout = quiet_readout(config.hidden, config.outputs)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run T steps: x (N, T, I) and state (N, state_width) -> y (N, T, O) and the state after the last."""
        h, after = self.cell(x, self._to_torch(state))  # h (N, T, H)
        return self.readout(self.dropout(h)), self._from_torch(after)

    def _to_torch(self, state: torch.Tensor) -> Any:
        """From (N, W) to what torch's cells take: h (L, N, H), for an LSTM the pair (h, c)."""
        memories = MEMORIES[self.config.cell]
        shape = (len(state), memories, self.config.layers, self.config.hidden)
        parts = state.view(shape).permute(1, 2, 0, 3).contiguous()  # (memories, L, N, H)
        return tuple(parts) if memories > 1 else parts[0]

    def _from_torch(self, after: Any) -> torch.Tensor:
        """The inverse of _to_torch."""
        parts = torch.stack(after) if isinstance(after, tuple) else after[None]  # (memories, L, N, H)
        return parts.permute(2, 0, 1, 3).reshape(parts.shape[2], self.config.state_width)

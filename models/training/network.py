"""The network as it is trained: torch, with the names and the state layout of `gruard.models.cells`.

Shapes: N series, T steps, I inputs, H hidden, L layers, O outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gruard.models.cells import MEMORIES, NetworkConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CELL_TYPES = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}  # nn.RNN's nonlinearity is tanh by default

#: The readout starts near zero, so that an untrained correction corrects nothing.
READOUT_START = 0.1


class RecurrentForecaster(nn.Module):
    """Stacked cells and a linear readout; dropout between layers and before the readout, in training only.

    Raises ModelError (from NetworkConfig) when the configuration is out of range.
    """

    def __init__(self, config: NetworkConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
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
        self.readout = nn.Linear(config.hidden, config.outputs)
        with torch.no_grad():
            self.readout.weight *= READOUT_START
            self.readout.bias.zero_()

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run T steps: x (N, T, I) and state (N, state_width) -> y (N, T, O) and the state after the last."""
        h, after = self.cell(x, self._to_torch(state))  # h (N, T, H)
        return self.readout(self.dropout(h)), self._from_torch(after)

    def zero_state(self, series: int) -> torch.Tensor:
        """The memory of N series that have seen nothing: (N, state_width)."""
        return torch.zeros(series, self.config.state_width)

    def export(self) -> dict[str, NDArray[np.float32]]:
        """Weights as `gruard.models.cells.Network` takes them: copies, by name."""
        return {name: weight.detach().numpy().copy() for name, weight in self.state_dict().items()}

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

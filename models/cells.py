"""The recurrent step, batched over devices, in numpy alone. Start reading at `Network.step`.

One step takes B devices, each with one scaled reading and the memory it carries, and gives each its
outputs and its new memory. The equations, the order of the gates and the weight names are those of
`torch.nn.GRU`, `LSTM` and `RNN`, so what the trainer learns runs here unchanged:

    gru   Cho et al. 2014, arXiv:1406.1078          lstm  Hochreiter & Schmidhuber 1997, 9(8):1735-1780
    rnn   Elman 1990, Cognitive Science 14:179-211

Three things make it fast. The rows are laid out as [x | 1 | h], so that a product with one matrix per
gate adds inputs, memory and bias at once. All gates of a layer stand side by side in one buffer, each
contiguous, and activations run over them in place. And σ(a) = (1 + tanh(a/2)) / 2, which cannot overflow:
the halves are folded into the weights (exactly: a power of two), so the gates share one call of tanh.

Shapes: B devices, I inputs, H hidden, L layers, O outputs. All arrays float32.
State of a device, `state_width` floats: [h of layer 0 | h of layer 1 | ...], lstm then [c of layer 0 | ...].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from gruard.models.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float32]

CELLS = ("gru", "lstm", "rnn")
GATES = {"gru": 3, "lstm": 4, "rnn": 1}  # rows of H in torch's weight_ih and weight_hh
MEMORIES = {"gru": 1, "lstm": 2, "rnn": 1}  # vectors of H that a layer carries

#: Largest sizes a configuration may name: far above any use, so that a damaged one cannot claim all memory.
MAX_WIDTH = 4096
MAX_LAYERS = 8
#: Inputs are clipped to this and weights must be within it: no sum of products then overflows float32, which
#: becomes inf - inf = NaN where BLAS has no fused multiply-add. Scaled readings end near 20: none meets it.
MAX_MAGNITUDE = 1e6
#: Rows stepped at a time, so that the gates of a chunk stay in the second-level cache.
CHUNK_ROWS = 512
#: BLAS takes another path for a single row, and kernels for narrow products depend on the number of
#: rows. With two rows at least and widths in multiples of 16 (H is the caller's to choose), OpenBLAS on
#: AVX-512 gives a device the same bits whoever shares its batch; elsewhere results agree within 1e-6.
MIN_ROWS = 2
OUTPUT_MULTIPLE = 16


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Shape of a network. Raises ModelError when a number or the cell is out of range."""

    cell: str
    inputs: int  # I
    hidden: int  # H
    layers: int  # L
    outputs: int  # O

    def __post_init__(self) -> None:
        if self.cell not in CELLS:
            raise ModelError(f"cell {self.cell!r} is unknown: it must be one of {', '.join(CELLS)}")
        limits = {"inputs": MAX_WIDTH, "hidden": MAX_WIDTH, "layers": MAX_LAYERS, "outputs": MAX_WIDTH}
        for name, limit in limits.items():
            number = getattr(self, name)
            if type(number) is not int or not 1 <= number <= limit:
                raise ModelError(f"{name} is {number!r}: it must be a whole number from 1 to {limit}")

    @property
    def state_width(self) -> int:
        """Floats of state that one device carries: L*H, for an LSTM 2*L*H."""
        return MEMORIES[self.cell] * self.layers * self.hidden

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name (as in torch's state_dict) and shape of every weight."""
        rows, hidden = GATES[self.cell] * self.hidden, self.hidden
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(self.layers):
            shapes[f"cell.weight_ih_l{layer}"] = (rows, self.inputs if layer == 0 else hidden)
            shapes[f"cell.weight_hh_l{layer}"] = (rows, hidden)
            shapes[f"cell.bias_ih_l{layer}"] = (rows,)
            shapes[f"cell.bias_hh_l{layer}"] = (rows,)
        return shapes | {"readout.weight": (self.outputs, hidden), "readout.bias": (self.outputs,)}


class Network:
    """Stacked cells and a linear readout. Holds weights and work space, never a device's state.

    Raises ModelError when a weight is missing, foreign, of the wrong shape or type, not finite or huge.
    The work space is kept between calls, so one Network serves one thread.
    """

    def __init__(self, config: NetworkConfig, weights: Mapping[str, Floats]) -> None:
        check_weights(config, weights)
        self.config = config
        layer_type = _LAYER_TYPES[config.cell]
        parts = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        self._layers = [
            layer_type(*(weights[f"cell.{part}_l{n}"] for part in parts)) for n in range(config.layers)
        ]
        padded = -(-config.outputs // OUTPUT_MULTIPLE) * OUTPUT_MULTIPLE
        self._readout = np.zeros((config.hidden, padded), np.float32)
        self._readout[:, : config.outputs] = weights["readout.weight"].T
        self._readout_bias = np.zeros(padded, np.float32)
        self._readout_bias[: config.outputs] = weights["readout.bias"]
        self._work = _WorkSpace(config)

    def step(self, x: Floats, state: Floats) -> tuple[Floats, Floats]:
        """Move every device one reading on: outputs (B, O) and new state (B, state_width).

        x (B, I) in sigma, state (B, state_width); neither is changed. A device's result does not depend on
        the others. Finite inputs give finite results; a non-finite number spoils its own row only.
        Raises ValueError when the shapes do not fit.
        """
        rows = len(x)
        if x.shape != (rows, self.config.inputs) or state.shape != (rows, self.config.state_width):
            raise ValueError(f"step: x {x.shape} and state {state.shape} do not fit {self.config}")
        if rows == 1:
            y, after = self.step(np.concatenate((x, x)), np.concatenate((state, state)))
            return y[:1], after[:1]
        y = np.empty((rows, len(self._readout_bias)), np.float32)  # (B, O padded)
        after = np.empty((rows, self.config.state_width), np.float32)  # (B, W)
        with np.errstate(all="ignore"):  # non-finite rows are the caller's to find: see finite_rows
            for start in range(0, rows, CHUNK_ROWS):
                chunk = slice(min(start, rows - MIN_ROWS), start + CHUNK_ROWS)  # never a lone last row
                self._step_chunk(x[chunk], state[chunk], y[chunk], after[chunk])
        return y[:, : self.config.outputs], after

    def _step_chunk(self, x: Floats, state: Floats, y: Floats, after: Floats) -> None:
        """Fill y and after for at most CHUNK_ROWS devices (one more when a last row joins them)."""
        rows = len(x)
        self._work.grow(rows)
        h = x
        for number, layer in enumerate(self._layers):
            joined, gates = self._work.joined[number][:rows], self._work.gates_of(rows)
            width = layer.inputs
            if number == 0:
                x.clip(-MAX_MAGNITUDE, MAX_MAGNITUDE, out=joined[:, :width])
            else:
                joined[:, :width] = h
            old, new = self._memories(state, number), self._memories(after, number)
            joined[:, width + 1 :] = old[0]  # [x | 1 | h] (B, I+1+H)
            layer.step(joined, gates, old, new)
            h = new[0]  # (B, H)
        np.matmul(h, self._readout, out=y)  # (B, H) @ (H, O) -> (B, O)
        y += self._readout_bias

    def _memories(self, state: Floats, layer: int) -> list[Floats]:
        """Views of what one layer carries: [h (B, H)], for an LSTM [h, c]."""
        hidden, layers = self.config.hidden, self.config.layers
        starts = range(layer * hidden, state.shape[1], layers * hidden)
        return [state[:, start : start + hidden] for start in starts]


class _Layer(Protocol):
    """One layer of one kind of cell; its weights arranged for rows of [x | 1 | h]."""

    inputs: int

    def __init__(self, weight_ih: Floats, weight_hh: Floats, bias_ih: Floats, bias_hh: Floats) -> None: ...

    def step(self, joined: Floats, gates: Floats, old: list[Floats], new: list[Floats]) -> None:
        """From joined (B, I+1+H) and the old memories fill the new ones; gates (G, B, H) is work space."""


class _GRULayer:
    """Cho et al. 2014, eq. 5-8, in torch's form: the reset gate acts on the product, not on h.

    r = σ(W_ir x + b_ir + W_hr h + b_hr)            z = σ(W_iz x + b_iz + W_hz h + b_hz)
    n = tanh(W_in x + b_in + r (W_hn h + b_hn))     h' = (1 - z) n + z h
    """

    def __init__(self, weight_ih: Floats, weight_hh: Floats, bias_ih: Floats, bias_hh: Floats) -> None:
        self.inputs = weight_ih.shape[1]
        r, z, _ = _gate_matrices(weight_ih, weight_hh, bias_ih + bias_hh, gates=3)
        hidden = weight_hh.shape[1]
        self.reset_update = np.stack((r, z)) * np.float32(0.5)  # (2, I+1+H, H), halved for _sigmoid_of_double
        w_in, b_in = weight_ih[2 * hidden :], bias_ih[2 * hidden :]
        w_hn, b_hn = weight_hh[2 * hidden :], bias_hh[2 * hidden :]
        self.candidate_x = np.ascontiguousarray(np.vstack((w_in.T, b_in)))  # (I+1, H)
        self.candidate_h = np.ascontiguousarray(np.vstack((b_hn, w_hn.T)))  # (1+H, H)

    def step(self, joined: Floats, gates: Floats, old: list[Floats], new: list[Floats]) -> None:
        (h,), (after,) = old, new
        r, z, n, recall = gates  # each (B, H)
        np.matmul(joined, self.reset_update, out=gates[:2])  # (B, I+1+H) @ (2, I+1+H, H) -> (2, B, H)
        _sigmoid_of_double(gates[:2])
        np.matmul(joined[:, : self.inputs + 1], self.candidate_x, out=n)  # [x | 1] (B, I+1) -> (B, H)
        np.matmul(joined[:, self.inputs :], self.candidate_h, out=recall)  # [1 | h] (B, 1+H) -> (B, H)
        recall *= r
        n += recall
        np.tanh(n, out=n)
        change = np.subtract(h, n, out=recall)  # h' = n + z (h - n), which is (1 - z) n + z h
        change *= z
        np.add(n, change, out=after)


class _LSTMLayer:
    """Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000, no peepholes.

    i, f, o = σ(W x + U h + b) each     g = tanh(W_g x + U_g h + b_g)
    c' = f c + i g                      h' = o tanh(c')
    """

    def __init__(self, weight_ih: Floats, weight_hh: Floats, bias_ih: Floats, bias_hh: Floats) -> None:
        self.inputs = weight_ih.shape[1]
        i, f, g, o = _gate_matrices(weight_ih, weight_hh, bias_ih + bias_hh, gates=4)  # torch's order
        half = np.float32(0.5)
        self.all_gates = np.stack((i * half, f * half, o * half, g))  # (4, I+1+H, H), sigmoids first

    def step(self, joined: Floats, gates: Floats, old: list[Floats], new: list[Floats]) -> None:
        (_, c), (h_after, c_after) = old, new
        i, f, o, g = gates  # each (B, H)
        np.matmul(joined, self.all_gates, out=gates)  # (B, I+1+H) @ (4, I+1+H, H) -> (4, B, H)
        np.tanh(g, out=g)
        _sigmoid_of_double(gates[:3])
        np.multiply(f, c, out=c_after)  # c' = f c + i g
        i *= g
        c_after += i
        np.tanh(c_after, out=h_after)  # h' = o tanh(c')
        h_after *= o


class _RNNLayer:
    """Elman 1990: h' = tanh(W x + b + U h)."""

    def __init__(self, weight_ih: Floats, weight_hh: Floats, bias_ih: Floats, bias_hh: Floats) -> None:
        self.inputs = weight_ih.shape[1]
        (self.matrix,) = _gate_matrices(weight_ih, weight_hh, bias_ih + bias_hh, gates=1)  # (I+1+H, H)

    def step(self, joined: Floats, gates: Floats, old: list[Floats], new: list[Floats]) -> None:  # noqa: ARG002 -- h stands in joined already
        np.matmul(joined, self.matrix, out=gates[0])  # (B, I+1+H) @ (I+1+H, H) -> (B, H)
        np.tanh(gates[0], out=new[0])


_LAYER_TYPES: dict[str, type[_Layer]] = {"gru": _GRULayer, "lstm": _LSTMLayer, "rnn": _RNNLayer}


def _gate_matrices(weight_ih: Floats, weight_hh: Floats, bias: Floats, gates: int) -> list[Floats]:
    """Per gate the matrix (I+1+H, H) that [x | 1 | h] is multiplied with; torch stacks the gates by rows.

    Row-major, like every matrix here: BLAS takes other paths, with other roundings, for the rest.
    """
    joined = np.vstack((weight_ih.T, bias, weight_hh.T))  # (I+1+H, gates*H)
    return [np.ascontiguousarray(part) for part in np.split(joined, gates, axis=1)]


def _sigmoid_of_double(a: Floats) -> None:
    """In place σ(2a) = (1 + tanh(a)) / 2."""
    np.tanh(a, out=a)
    a *= 0.5
    a += 0.5


class _WorkSpace:
    """Buffers for one chunk, grown by doubling and kept: a step allocates nothing but its results."""

    def __init__(self, config: NetworkConfig) -> None:
        self._hidden = config.hidden
        self._gates = 4 if config.cell != "rnn" else 1  # the GRU parts its candidate in two
        self._inputs = [config.inputs, *[config.hidden] * (config.layers - 1)]
        self._rows = 0
        self.grow(MIN_ROWS)

    def grow(self, rows: int) -> None:
        if rows <= self._rows:
            return
        self._rows = max(rows, min(2 * self._rows, CHUNK_ROWS))
        self.joined = [np.zeros((self._rows, width + 1 + self._hidden), np.float32) for width in self._inputs]
        for joined, width in zip(self.joined, self._inputs, strict=True):
            joined[:, width] = 1.0
        self._flat = np.empty(self._gates * self._rows * self._hidden, np.float32)

    def gates_of(self, rows: int) -> Floats:
        """Room for the gates of so many rows, (G, rows, H), each gate contiguous."""
        size = self._gates * rows * self._hidden
        return self._flat[:size].reshape(self._gates, rows, self._hidden)


def check_weights(config: NetworkConfig, weights: Mapping[str, Floats]) -> None:
    """Raise ModelError unless these are exactly the network's weights: names, shapes, float32, sane size."""
    shapes = config.weight_shapes()
    missing, foreign = sorted(shapes.keys() - weights.keys()), sorted(weights.keys() - shapes.keys())
    if missing:
        raise ModelError(f"weights are missing: {', '.join(missing)}")
    if foreign:
        raise ModelError(f"weights do not belong to this network: {', '.join(foreign)}")
    for name, shape in shapes.items():
        weight = weights[name]
        if weight.dtype != np.float32:
            raise ModelError(f"weight {name} is {weight.dtype}, not float32")
        if weight.shape != shape:
            raise ModelError(f"weight {name} has shape {weight.shape}, not {shape}")
        if not (np.abs(weight) <= MAX_MAGNITUDE).all():
            raise ModelError(f"weight {name} holds a number that is not finite or beyond {MAX_MAGNITUDE:g}")


def finite_rows(state: Floats) -> NDArray[np.bool_]:
    """Which devices hold only finite numbers: (B,) from (B, W)."""
    return np.asarray(np.isfinite(state).all(axis=1), np.bool_)


def repair(state: Floats) -> tuple[Floats, int]:
    """State with every row that holds a non-finite number set to zero, and how many such rows there were.

    A poisoned memory never recovers alone. Returns the array itself when all rows are sound, else a copy.
    """
    every = state.ravel()
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.dot(every, every)
    if np.isfinite(squares):  # only if each number is: the usual case, at a fraction of the cost
        return state, 0
    sound = finite_rows(state)
    broken = len(sound) - int(np.count_nonzero(sound))
    if not broken:
        return state, 0
    return np.where(sound[:, np.newaxis], state, np.float32(0.0)), broken

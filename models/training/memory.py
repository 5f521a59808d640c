"""How far back a cell can learn to remember: measured, on a task where nothing but memory helps.

A gradient that crosses k steps is a product of k Jacobians. Where they shrink, it vanishes like q^k, and
what happened k steps ago cannot be learned (Bengio, Simard & Frasconi 1994, IEEE Trans. Neural Networks
5(2):157-166); where they grow, it explodes, and one step throws the weights away (Pascanu, Mikolov & Bengio
2013, arXiv:1211.5063, who clip its norm). A gate that stays open passes it on nearly whole (Hochreiter &
Schmidhuber 1997, Neural Computation 9(8):1735-1780). The gates torch starts with do not stay open: about
half of the memory is lost at each step. `chrono` opens them (`network.open_gates`).

Shapes: N series, T rows, I inputs, O outputs, H hidden.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import nn

from gruard.models.cells import NetworkConfig
from gruard.models.training.comparators import build
from gruard.models.training.network import open_gates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from gruard.models.training.network import SequenceNetwork

    Floats: TypeAlias = NDArray[np.float32]
    Task: TypeAlias = tuple[Floats, Floats, NDArray[np.bool_]]
    Start: TypeAlias = Callable[[SequenceNetwork], None]

#: Columns of the task: what the sensor says, and 1 where that is a flag to be remembered.
INPUTS = 2
#: Sigma of the readings that are not flags.
NOISE = 0.3
#: A flag is shown at most this many rows after the series began or the flag before it was asked for.
LONGEST_PAUSE = 10
#: Rows in front of the input whose gradient is taken, so that the memory is in its usual range.
WARM_UP_ROWS = 20
#: Series over which a gradient's norm is averaged: on a log scale four are enough.
GRADIENT_SERIES = 4
#: Held-back series that `recall` is judged on: a net that guesses is right in 0.50 +- 0.03 of them.
JUDGED_SERIES = 256
#: Training ends when the mean squared error, smoothed over about ten steps, is below this.
LEARNED_LOSS = 0.02


@dataclass(frozen=True, slots=True)
class Recall:
    """What a trained network recalls, on sequences it was never trained on."""

    explained: float  # share of the flags' variance; 0 is what always answering 0 gets
    accuracy: float  # share of flags with the right sign; 0.5 is chance
    steps_done: int
    weights: dict[str, Floats]


@dataclass(frozen=True, slots=True)
class Descent:
    """A training run step by step, as far as loss and gradient were finite."""

    losses: tuple[float, ...]
    gradients: tuple[float, ...]  # norms, before clipping
    updates: tuple[float, ...]  # norms of what was added to the weights
    finite: bool  # False: the run ended early, at a loss or a gradient that was not


def delayed_recall(rows: int, lag: int, seed: int | Sequence[int], series: int = 32) -> Task:
    """Readings among which rare flags of +1 or -1 show for one row, each to be told `lag` rows later.

    Gives inputs (N, T, 2): noise or the flag, and 1 where it is a flag; targets (N, T, 1): the flag, at the
    row where it is asked for, else 0; mask (N, T, 1): true at those rows. The noise of all other rows says
    nothing about the flag, and nothing marks the row that is asked for. The next flag shows after that row.

    Raises:
        ValueError: a series could be too short for one flag and its answer.
    """
    if lag < 1 or rows < lag + LONGEST_PAUSE:
        raise ValueError(f"{rows} rows are too few for a lag of {lag}: it takes {lag + LONGEST_PAUSE}")
    random = np.random.default_rng(seed)
    inputs = np.zeros((series, rows, INPUTS), np.float32)
    inputs[:, :, 0] = NOISE * random.standard_normal((series, rows), np.float32)
    targets, mask = np.zeros((series, rows, 1), np.float32), np.zeros((series, rows, 1), np.bool_)
    for n in range(series):
        shown = int(random.integers(LONGEST_PAUSE))
        while shown + lag < rows:
            flag = random.choice((-1.0, 1.0))
            inputs[n, shown] = flag, 1.0
            targets[n, shown + lag], mask[n, shown + lag] = flag, True
            shown += lag + 1 + int(random.integers(LONGEST_PAUSE))
    return inputs, targets, mask


def as_built(_model: SequenceNetwork) -> None:
    """Start as torch does: every weight uniform within 1/sqrt(H), so the gates stand about half open."""


def orthogonal(model: SequenceNetwork, gain: float = 1.0) -> None:
    """Start with recurrent matrices, one per gate, that turn the memory and scale it by `gain`.

    Saxe, McClelland & Ganguli 2014, arXiv:1312.6120. Draws from torch's random state.
    """
    for name, weight in model.named_parameters():
        if "weight_hh" in name:
            for block in weight.split(model.config.hidden):  # type: ignore[no-untyped-call]
                nn.init.orthogonal_(block, gain)


def chrono(longest: int) -> Start:
    """Start with half of the units' gates open for up to about `longest` rows: see `network.open_gates`."""
    return lambda model: open_gates(model, longest)


def gradient_norms(
    cell: str,
    hidden: int,
    lags: Sequence[int],
    seed: int,
    *,
    start: Start = as_built,
    weights: dict[str, Floats] | None = None,
) -> NDArray[np.float64]:
    """Norm of d h[t] / d x[t-k] for every lag k, where x[t-k] is a flag and all other rows are noise.

    The Frobenius norm of the exact Jacobian (H, I), in float64, root mean square over four series: one per
    lag. `weights` of a trained network stand in for those that `start` gives.

    Raises:
        ModelError: the cell is not recurrent, hidden is out of range, or the start does not suit the cell.
    """
    NetworkConfig(cell, INPUTS, hidden, 1, 1)  # refuses cells whose memory is no hidden state
    with _seeded(seed):
        model = _network(cell, hidden, start)
    if weights is not None:
        model.load_state_dict({name: torch.from_numpy(weight) for name, weight in weights.items()})
    model.double()
    return np.array([_gradient_norm(model, lag, seed) for lag in lags])


def recall(
    cell: str,
    lag: int,
    seed: int,
    *,
    start: Start = as_built,
    hidden: int = 32,
    steps: int = 300,
    series: int = 16,
    learning_rate: float = 1e-2,
    clip_norm: float = 1.0,
) -> Recall:
    """Train a network of any cell on `delayed_recall` with Adam and judge it on sequences it has not seen.

    Every step draws `series` new sequences, just long enough for one flag and its answer, and goes back
    through all of their rows: no shortage of rows or of window hides what the cell can do, as it may in
    `fit`, and any start can be tried. The same arguments give the same weights. Sets torch to one thread;
    its random state is left as found.

    Raises:
        ModelError: cell or hidden is out of range, or the start does not suit the cell.
        ValueError: the lag is below 1.
    """
    rows = lag + LONGEST_PAUSE
    with _seeded(seed):
        model = _network(cell, hidden, start)
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    smoothed, done = 1.0, 0
    while done < steps and smoothed > LEARNED_LOSS:
        done += 1
        loss = _loss(model, delayed_recall(rows, lag, (seed, done), series))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        smoothed += 0.1 * (loss.item() - smoothed)
    inputs, targets, mask = delayed_recall(rows, lag, (seed, 0), JUDGED_SERIES)
    with torch.no_grad():
        y = model(torch.from_numpy(inputs), model.zero_state(JUDGED_SERIES))[0].numpy()[mask]
    flags = targets[mask]
    return Recall(
        explained=float(1.0 - np.square(y - flags).mean() / flags.var()),
        accuracy=float(np.mean((y > 0) == (flags > 0))),
        steps_done=done,
        weights=model.export(),
    )


def exploding(
    clip_norm: float | None,
    seed: int,
    *,
    cell: str = "rnn",
    gain: float = 1.5,
    learning_rate: float = 0.1,
    steps: int = 150,
    hidden: int = 32,
) -> Descent:
    """Train from recurrent matrices that stretch the memory by `gain` a row, clipped or (None) not.

    Plain gradient descent, so that an update is as long as its gradient says and clipping bounds it by
    learning_rate * clip_norm; Adam divides by the gradient's own size, which hides the effect. The task is
    `delayed_recall` with a lag of 20 in 100 rows. The same arguments give the same numbers.

    Raises:
        ModelError: cell or hidden is out of range.
    """
    with _seeded(seed):
        model = _network(cell, hidden, lambda built: orthogonal(built, gain))
    weights = list(model.parameters())
    optimizer = torch.optim.SGD(weights, learning_rate)
    losses: list[float] = []
    gradients: list[float] = []
    updates: list[float] = []
    for step in range(steps):
        loss = _loss(model, delayed_recall(100, 20, (seed, step)))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(weights, math.inf if clip_norm is None else clip_norm)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            break
        before = nn.utils.parameters_to_vector(weights).detach()
        optimizer.step()
        losses.append(loss.item())
        gradients.append(float(norm))
        updates.append(float((nn.utils.parameters_to_vector(weights).detach() - before).norm()))
    return Descent(tuple(losses), tuple(gradients), tuple(updates), finite=len(losses) == steps)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """One thread and known random numbers; torch's own random state is left as found."""
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _network(cell: str, hidden: int, start: Start) -> SequenceNetwork:
    model = build(cell, INPUTS, hidden, 1, 1)
    start(model)
    return model


def _loss(model: SequenceNetwork, task: Task) -> torch.Tensor:
    """Mean squared error at the rows that are asked for."""
    inputs, targets, mask = (torch.from_numpy(part) for part in task)
    y, _ = model(inputs, model.zero_state(len(inputs)))  # (N, T, 1)
    return nn.functional.mse_loss(y[mask], targets[mask])


def _gradient_norm(model: SequenceNetwork, lag: int, seed: int) -> float:
    """Every series is run H times side by side, so that one pass back gives all rows of its Jacobian."""
    hidden = model.config.hidden
    random = np.random.default_rng((seed, lag))
    rows = NOISE * random.standard_normal((GRADIENT_SERIES, WARM_UP_ROWS + lag + 1, INPUTS))
    rows[:, :, 1] = 0.0
    rows[:, WARM_UP_ROWS, 0] = random.choice((-1.0, 1.0), GRADIENT_SERIES)
    rows[:, WARM_UP_ROWS, 1] = 1.0
    x = torch.from_numpy(rows).repeat_interleave(hidden, dim=0).requires_grad_()  # (N*H, T, I)
    _, after = model(x, model.zero_state(len(x)).double())
    h = after[:, :hidden].reshape(GRADIENT_SERIES, hidden, hidden)  # an lstm's c stands behind its h
    (jacobian,) = torch.autograd.grad(h.diagonal(dim1=1, dim2=2).sum(), x)  # (N*H, T, I)
    return math.sqrt(jacobian[:, WARM_UP_ROWS].square().sum().item() / GRADIENT_SERIES)

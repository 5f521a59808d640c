"""Teach a network on the histories of a group: one bounded, seeded, single-threaded run.

Truncated back-propagation through time (Williams & Peng 1990): S streams walk side by side through the
training rows, a window per step, and each carries its memory from window to window as it will when live.
What is predicted are residuals of a linear forecaster, mostly noise: hence the Huber loss, the disturbed
inputs, the clipped gradients and the early stop on rows that are never trained on.

Shapes: N series, T rows, I inputs, O outputs; S streams and R rows of a window in one step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from torch import nn

from gruard.models.errors import ModelError
from gruard.models.training import saved
from gruard.models.training.comparators import TWO_SIDED_CELL, build
from gruard.models.training.descent import Descent
from gruard.models.training.network import SHORTEST_MEMORY, open_gates
from gruard.models.training.windows import Rows, Streams, pieces_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from gruard.models.training.network import SequenceNetwork
    from gruard.models.training.saved import Keeper

    Floats: TypeAlias = NDArray[np.float32]

StopReason: TypeAlias = Literal["steps", "patience", "time", "not_finite"]

#: Series that early stopping looks at, spread evenly over those that have held-back rows: enough to choose
#: among checkpoints, and a check then costs the same for 64 devices and for 10,000.
CHECK_SERIES = 64
#: How often a fit that may be cut off is saved.
SAVE_S = 10.0


@dataclass(frozen=True, slots=True)
class FitConfig:
    """How to train. Raises ValueError when a number is out of range."""

    cell: str = "gru"  # any that comparators.build knows
    hidden: int = 32
    layers: int = 1
    longest_memory: int | None = None  # rows: network.open_gates; None: gates start as torch has them
    dropout: float = 0.0  # between layers and before the readout
    learning_rate: float = 8e-3  # top of the one-cycle schedule
    weight_decay: float = 1e-3
    window: int = 64  # rows back-propagated through at a time
    steps: int = 150
    streams: int = 16  # walked side by side
    burn_in: int = 8  # first rows after a zero state, not scored
    clip_norm: float = 1.0  # largest norm of a gradient
    input_noise: float = 0.3  # sigma, on the value inputs
    input_drop: float = 0.1  # share of the value inputs set to 0
    value_inputs: int | None = None  # first columns, those disturbed; None: all
    huber_delta: float = 1.0
    patience: int = 5  # checks without a new best before the run ends
    check_every: int = 15  # steps
    seed: int = 0
    max_seconds: float = 600.0  # by the clock given to fit

    def __post_init__(self) -> None:
        least = {
            "window": 1,
            "steps": 1,
            "streams": 1,
            "burn_in": 0,
            "patience": 1,
            "check_every": 1,
            "seed": 0,
        }
        optional = {"value_inputs": 0, "longest_memory": SHORTEST_MEMORY}
        least |= {name: number for name, number in optional.items() if getattr(self, name) is not None}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ValueError(f"{name} must be at least {number}, not {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm", "huber_delta", "max_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("weight_decay", "input_noise"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, and it is {getattr(self, name)}")
        for name in ("dropout", "input_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}")
        if self.window <= self.look_ahead:
            raise ValueError(f"window must be above {self.look_ahead} for {self.cell}, not {self.window}")

    @property
    def look_ahead(self) -> int:
        """Last rows of a window that are not scored, as burn_in is for the first: 0 for a causal cell.

        2 at least: past the end of its rows a stream repeats the last one, which is the target before it.
        """
        return max(self.burn_in, 2) if self.cell == TWO_SIDED_CELL else 0


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands, told after every check."""

    step: int
    steps: int
    loss: float  # of the last step, on disturbed inputs
    held_back_loss: float
    zero_loss: float


@dataclass(frozen=True, slots=True)
class FitResult:
    """What came of a run. Losses are mean Huber losses per target; `weights` are those of the best check."""

    weights: dict[str, Floats]
    losses: tuple[float, ...]  # one per step
    held_back_loss: float  # of these weights, on held-back rows of at most CHECK_SERIES series
    zero_loss: float  # of correcting nothing, on the same rows
    best_step: int  # 0: no check was better than the untrained network
    steps_done: int
    stopped_because: StopReason
    clipped: int  # steps whose gradient was longer than clip_norm
    resumed_at: int = 0  # steps that an earlier run had done, which was cut off


def fit(
    inputs: Floats,
    targets: Floats,
    target_mask: NDArray[np.bool_],
    held_back_from: int,
    config: FitConfig,
    progress: Callable[[Progress], None] | None = None,
    *,
    clock: Callable[[], float] | None = None,
    keeper: Keeper | None = None,
) -> FitResult:
    """Train on the rows before `held_back_from`, judge on the rest, return the best weights seen.

    inputs (N, T, I); targets (N, T, O), where targets[n, t] is what the readout shall give at row t;
    target_mask (N, T, O) False where there is no target: padding, missing fields, rows in alarm. `clock`
    gives monotonic seconds; without one `max_seconds` is not enforced. With a clock and a `keeper` the run is
    saved every SAVE_S, and goes on from what was saved of one with the same arguments. These give the same
    weights, also when a run was cut off. Sets torch to one thread; its random state is left as found.

    Raises:
        ModelError: shapes do not fit, a number is not finite, nothing is left to train or to judge on, or the
            cell has no gates and `longest_memory` asks for open ones.
    """
    _check(inputs, targets, target_mask, held_back_from)
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        c = config
        network = build(c.cell, inputs.shape[2], c.hidden, c.layers, targets.shape[2], c.dropout)
        if c.longest_memory is not None:
            open_gates(network, c.longest_memory)
        run = _Run(
            network,
            Rows(inputs, targets, target_mask),
            Streams(pieces_of(target_mask, held_back_from, config), config),
            _Judge(inputs, targets, target_mask, held_back_from, config.huber_delta),
            config,
        )
        if keeper is not None:
            run.resume(
                keeper,
                saved.key_of((config, held_back_from, torch.__version__), inputs, targets, target_mask),
            )
        return run.train(progress, clock)


#: What a run counts, by the names of its attributes.
_COUNTED = ("losses", "clipped", "best_step", "best_loss", "checks_since_best")


class _Run:
    """One training run: the network, its optimiser, and the best it has been."""

    def __init__(
        self, model: SequenceNetwork, rows: Rows, streams: Streams, judge: _Judge, config: FitConfig
    ) -> None:
        self.model, self.rows, self.streams, self.judge, self.config = model, rows, streams, judge, config
        self.descent = Descent(model.parameters(), config.steps, config.learning_rate, config.weight_decay)
        self.state = model.zero_state(config.streams)
        self.losses: list[float] = []
        self.clipped = 0
        self.best_step = 0
        self.best_loss = judge.loss(model)
        self.best = model.export()
        self.checks_since_best = 0
        self.resumed_at = 0
        self.keeper: Keeper | None = None
        self.key = ""

    def resume(self, keeper: Keeper, key: str) -> None:
        """Save there from now on, under the key, and go on from what was saved under it."""
        self.keeper, self.key = keeper, key
        content = keeper.load()
        found = None if content is None else saved.unpack(key, content)
        if found is not None:
            self._restore(*found)

    def _save(self) -> None:
        if self.keeper is None:
            return
        tensors: dict[str, NDArray[Any]] = {
            "memory": self.state.detach().numpy(),
            "random": torch.get_rng_state().numpy(),
        }
        for kind, places in self._moving().items():
            tensors |= {f"{kind}.{n}": place.numpy() for n, place in enumerate(places)}
        tensors |= {f"best.{name}": weight for name, weight in self.best.items()}
        numbers = {name: getattr(self, name) for name in _COUNTED}
        self.keeper.save(saved.pack(self.key, tensors, numbers | {"streams": self.streams.numbers()}))

    def _restore(self, tensors: dict[str, NDArray[Any]], numbers: dict[str, Any]) -> None:
        with torch.no_grad():
            for kind, places in self._moving().items():
                for n, place in enumerate(places):
                    place.copy_(torch.from_numpy(tensors[f"{kind}.{n}"]))
        self.state = torch.from_numpy(tensors["memory"].copy())
        torch.set_rng_state(torch.from_numpy(tensors["random"].copy()))
        self.best = {name: tensors[f"best.{name}"] for name in self.best}
        for name in _COUNTED:
            setattr(self, name, numbers[name])
        self.streams.restore(numbers["streams"])
        self.descent.done = self.resumed_at = len(self.losses)

    def _moving(self) -> dict[str, list[torch.Tensor]]:
        """What steps change, tensor by tensor."""
        d = self.descent
        return {"weight": [p.detach() for p in d.parameters], "mean": d.means, "square": d.squares}

    def train(
        self, progress: Callable[[Progress], None] | None, clock: Callable[[], float] | None
    ) -> FitResult:
        reason = self._steps(progress, clock)
        return FitResult(
            weights=self.best,
            losses=tuple(self.losses),
            held_back_loss=self.best_loss,
            zero_loss=self.judge.zero_loss,
            best_step=self.best_step,
            steps_done=len(self.losses),
            stopped_because=reason,
            clipped=self.clipped,
            resumed_at=self.resumed_at,
        )

    def _steps(
        self, progress: Callable[[Progress], None] | None, clock: Callable[[], float] | None
    ) -> StopReason:
        started = saved_s = clock() if clock else 0.0
        for step in range(len(self.losses) + 1, self.config.steps + 1):
            if self.keeper is not None and clock is not None and clock() - saved_s >= SAVE_S:
                saved_s = clock()
                self._save()
            if not self._step():
                return "not_finite"
            late = clock is not None and clock() - started >= self.config.max_seconds
            if step % self.config.check_every and step != self.config.steps and not late:
                continue
            loss = self.judge.loss(self.model)
            if not np.isfinite(loss):
                return "not_finite"
            self.checks_since_best = 0 if self._is_best(step, loss) else self.checks_since_best + 1
            if progress:
                progress(Progress(step, self.config.steps, self.losses[-1], loss, self.judge.zero_loss))
            if late:
                return "time"
            if self.checks_since_best >= self.config.patience:
                return "patience"
        return "steps"

    def _step(self) -> bool:
        """One window of every stream. False, weights untouched, when loss or gradient is not finite."""
        self.model.train()
        window = self.streams.advance()
        x, target, weight = self.rows.at(window)  # (S, R, I), (S, R, O), (S, R, O)
        # Carried, but cut off from the past: gradients end at the window's first row.
        memory = torch.where(window.fresh[:, None], 0.0, self.state.detach())  # (S, W)
        y, self.state = self.model(self._disturb(x), memory)  # (S, R, O)
        loss = (_huber(y, target, self.config.huber_delta) * weight).sum() / weight.sum().clamp(min=1.0)
        self.descent.forget_gradients()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            return False
        self.clipped += int(norm > self.config.clip_norm)
        self.descent.step()
        self.losses.append(loss.item())
        return True

    def _disturb(self, x: torch.Tensor) -> torch.Tensor:
        """Noise on the value inputs and some of them dropped; mask and gap columns stay true. (S, R, I)."""
        count = x.shape[2] if self.config.value_inputs is None else self.config.value_inputs
        values = x[:, :, :count] + self.config.input_noise * torch.randn_like(x[:, :, :count])
        kept = torch.rand_like(values) >= self.config.input_drop
        return torch.cat((values * kept, x[:, :, count:]), dim=2)

    def _is_best(self, step: int, loss: float) -> bool:
        if loss >= self.best_loss:
            return False
        self.best_loss, self.best_step, self.best = loss, step, self.model.export()
        return True


class _Judge:
    """The held-back rows: how well a network predicts them, its memory carried from row 0."""

    def __init__(
        self, inputs: Floats, targets: Floats, mask: NDArray[np.bool_], held_back_from: int, delta: float
    ) -> None:
        able = np.flatnonzero(mask[:, held_back_from:].any(axis=(1, 2)))
        chosen = able[np.linspace(0, len(able) - 1, min(len(able), CHECK_SERIES)).astype(np.int64)]
        last = int(np.flatnonzero(mask[chosen].any(axis=(0, 2)))[-1]) + 1
        judged = mask[chosen, :last].copy()
        judged[:, :held_back_from] = False
        self._rows = Rows(
            inputs[chosen, :last], np.where(judged, targets[chosen, :last], np.float32(0)), judged
        )
        self._delta = delta
        self._count = int(judged.sum())
        self.zero_loss = self._total(torch.zeros_like(self._rows.targets), slice(None)) / self._count

    def loss(self, model: SequenceNetwork) -> float:
        """Mean Huber loss per held-back target, without dropout or noise."""
        total = sum(self._total(y, part) for part, y in model.run(self._rows.inputs))
        return total / self._count

    def _total(self, y: torch.Tensor, part: slice) -> float:
        losses = _huber(y, self._rows.targets[:, part], self._delta)
        return float(losses[self._rows.mask[:, part]].double().sum())


def _huber(y: torch.Tensor, target: torch.Tensor, delta: float) -> torch.Tensor:
    """Element by element (Huber 1964)."""
    return nn.functional.huber_loss(y, target, reduction="none", delta=delta)


def _check(inputs: Floats, targets: Floats, mask: NDArray[np.bool_], held_back_from: int) -> None:
    if inputs.ndim != 3 or targets.ndim != 3 or inputs.shape[:2] != targets.shape[:2]:
        raise ModelError(f"inputs {inputs.shape} and targets {targets.shape} are not (N, T, I) and (N, T, O)")
    if mask.shape != targets.shape or mask.dtype != np.bool_:
        raise ModelError(f"target_mask is {mask.dtype} {mask.shape}, not bool {targets.shape}")
    # Series by series: what is taken of all at once is as large as the rows themselves.
    sound = (
        np.isfinite(x).all() and np.isfinite(y[m]).all()
        for x, y, m in zip(inputs, targets, mask, strict=True)
    )
    if not all(sound):
        raise ModelError("an input or a target that counts is not finite")
    if not 0 < held_back_from < inputs.shape[1]:
        raise ModelError(f"held_back_from {held_back_from} leaves no rows to train or none to judge on")
    if not mask[:, held_back_from:].any():
        raise ModelError("no held-back row has a target")

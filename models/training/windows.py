"""Which rows a step of training sees: streams that walk side by side through the histories.

Shapes: N series, T rows, I inputs, O outputs; S streams and R rows of a window in one step; P pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from gruard.models.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gruard.models.training.fit import FitConfig

    Floats: TypeAlias = NDArray[np.float32]

#: A stream moves on to another place after at most this share of the steps, so that a run sees several.
LONGEST_WALK = 0.25


@dataclass(frozen=True, slots=True)
class Window:
    """The next rows of every stream."""

    series: torch.Tensor  # (S, 1)
    rows: torch.Tensor  # (S, R)
    scored: torch.Tensor  # (S, R) bool: inside the stream's piece, past its burn-in, before its look-ahead
    fresh: torch.Tensor  # (S,) bool: the stream starts here, from a zero memory


class Rows:
    """The histories as tensors, and how to take windows from them."""

    def __init__(self, inputs: Floats, targets: Floats, mask: NDArray[np.bool_]) -> None:
        self.inputs = torch.from_numpy(np.require(inputs, np.float32, ["C", "W"]))
        self.targets = torch.from_numpy(np.require(targets, np.float32, ["C", "W"]))
        self.mask = torch.from_numpy(np.require(mask, np.bool_, ["C", "W"]))

    def at(self, window: Window) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inputs (S, R, I), targets (S, R, O) and their weights, 0 or 1 (S, R, O)."""
        place = window.series, window.rows
        known = self.mask[place]
        # What does not count may be anything, NaN too, and is zeroed here: not in a copy of all targets.
        target = torch.where(known, self.targets[place], 0.0)
        return self.inputs[place], target, (known & window.scored[:, :, None]).float()


class Streams:
    """Where each of the S streams stands.

    Pieces are dealt out in shuffled rounds; a stream walks through its piece a window at a time, its
    memory with it, then takes the next piece with a zero memory.
    """

    def __init__(self, pieces: NDArray[np.int64], config: FitConfig) -> None:
        self._pieces = pieces  # (P, 3): series, first row, end row
        self._window, self._burn_in, self._look_ahead = config.window, config.burn_in, config.look_ahead
        self._random = np.random.default_rng(config.seed)
        self._deck: list[int] = []
        # (S, 4): series, next row, end row, rows since zero memory
        self._at = np.zeros((config.streams, 4), np.int64)
        for stream in range(config.streams):
            self._deal(stream, spread=True)  # else all streams would see the same phase of a piece

    def advance(self) -> Window:
        """The next window of every stream; those at their piece's end take the next piece."""
        for stream in np.flatnonzero(self._at[:, 1] >= self._at[:, 2]):
            self._deal(int(stream), spread=False)
        series, first, end, age = self._at.T.copy()[:, :, None]  # each (S, 1)
        ahead = np.arange(self._window)  # (R,)
        rows = first + ahead  # (S, R)
        window = Window(
            series=torch.from_numpy(series),
            rows=torch.from_numpy(np.minimum(rows, end - 1)),
            scored=torch.from_numpy(
                (np.minimum(end - rows, self._window - ahead) > self._look_ahead)
                & (age + ahead >= self._burn_in)
            ),
            fresh=torch.from_numpy(age[:, 0] == 0),
        )
        self._at[:, [1, 3]] += self._window
        return window

    def numbers(self) -> dict[str, Any]:
        """Where the streams stand, as JSON can hold it."""
        return {"random": self._random.bit_generator.state, "deck": self._deck, "at": self._at.tolist()}

    def restore(self, numbers: dict[str, Any]) -> None:
        """Put back what `numbers` gave."""
        self._random.bit_generator.state = numbers["random"]
        self._deck, self._at = numbers["deck"], np.array(numbers["at"], np.int64)

    def _deal(self, stream: int, *, spread: bool) -> None:
        """Put a stream on the next piece: anywhere in it, or near its start (so that windows never align)."""
        if not self._deck:
            self._deck = self._random.permutation(len(self._pieces)).tolist()
        series, first, end = self._pieces[self._deck.pop()]
        room = max(end - first - self._window + 1, 1)
        offset = self._random.integers(room if spread else min(room, self._window))
        self._at[stream] = series, first + offset, end, 0


def pieces_of(mask: NDArray[np.bool_], end: int, config: FitConfig) -> NDArray[np.int64]:
    """Stretches (series, first row, end row) that streams walk: all rows in use before `end`, (P, 3).

    mask (N, T, O) says where targets are. Padding before a series' first and after its last is left out;
    long series are cut, so that one run visits several places.
    """
    longest = max(config.window, int(LONGEST_WALK * config.steps) * config.window)
    pieces = []
    for series, targets in enumerate(mask[:, :end]):
        used = targets.any(axis=1)  # (T,)
        rows = np.flatnonzero(used)
        if not len(rows):
            continue
        first, last = int(rows[0]), int(rows[-1]) + 1
        cuts = np.linspace(first, last, -(-(last - first) // longest) + 1).astype(np.int64)
        # A piece begins inside the one before it, so that no row falls to the burn-in but a series' first.
        starts = np.maximum(cuts[:-1] - config.burn_in, first)
        pieces += [
            (series, a, b)
            for a, b in zip(starts, cuts[1:], strict=True)
            if used[a + config.burn_in : b - config.look_ahead].any()
        ]
    if not pieces:
        raise ModelError(f"no series has a target more than {config.burn_in} rows after its first")
    return np.array(pieces, np.int64)

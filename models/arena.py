"""Per-device state as named arrays, one row a device. Growing doubles, so no message pays for a copy.

Columns come in blocks: what is always read together lies side by side, so that fetching a batch of devices
is one copy a block, and devices that stand next to each other are not copied at all.

A row written out by `dump` and read back by `load` is the whole memory of one device; `layout_id`
changes whenever the meaning of those bytes does, so that foreign bytes are refused and not guessed at.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gruard.models.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

#: Slots made at first; small, because most gateways have few devices in a group.
FIRST_CAPACITY = 16


@dataclass(frozen=True, slots=True)
class Column:
    """Shape of one device's row, its type, and the value a new device starts from."""

    shape: tuple[int, ...]
    dtype: str = "f4"
    fill: float = 0.0


class Rows(dict[str, "NDArray[Any]"]):
    """The rows of B devices in one block: name -> (B, *shape). Change them in place or put new arrays in."""

    __slots__ = ("matrices", "views")

    def __init__(self, matrices: dict[str, NDArray[Any]], places: Mapping[str, _Place]) -> None:
        super().__init__()
        self.matrices = matrices  # type -> (B, width)
        for name, place in places.items():
            part = matrices[place.dtype][:, place.start : place.end]
            self[name] = part.reshape(len(part), *place.shape)  # splitting the last axis copies nothing
        self.views = dict(self)  # what was handed out, to tell which arrays were replaced


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a column lies in its block's matrix of its type."""

    dtype: str
    start: int
    end: int
    shape: tuple[int, ...]


@dataclass(slots=True)
class _Block:
    columns: dict[str, Column]
    places: dict[str, _Place]
    matrices: dict[str, NDArray[Any]] = field(default_factory=dict)  # type -> (D, width)


class Arena:
    """Named arrays (D, *shape) with a free list. `arena[name]` is the whole array: index it by slots."""

    def __init__(self, blocks: Mapping[str, Mapping[str, Column]], salt: str = "") -> None:
        self._blocks = {name: _placed(dict(columns)) for name, columns in blocks.items()}
        self._block_of = {name: block for block in self._blocks.values() for name in block.columns}
        self._free: list[int] = []
        #: Rows of devices that stand next to each other, by (block, first slot, B): views, so they stay true.
        self._runs: dict[tuple[str, int, int], Rows] = {}
        self.capacity = 0  # D
        # In the order in which the bytes lie: columns that change places are another layout.
        every = [(name, column) for b in self._blocks.values() for name, column in b.columns.items()]
        text = salt + "".join(f"{n}{c.shape}{c.dtype};" for n, c in every)
        self.layout_id = hashlib.sha256(text.encode()).hexdigest()[:12]
        self._grow(FIRST_CAPACITY)

    def __getitem__(self, name: str) -> NDArray[Any]:
        block = self._block_of[name]
        place = block.places[name]
        part = block.matrices[place.dtype][:, place.start : place.end]
        return part.reshape(self.capacity, *place.shape)

    def __len__(self) -> int:
        """Devices that hold a slot."""
        return self.capacity - len(self._free)

    def __getstate__(self) -> dict[str, Any]:
        """For copies: a copied view would be a view of nothing."""
        return self.__dict__ | {"_runs": {}}

    def allocate(self) -> int:
        """Give out a slot with every column at its fill value."""
        if not self._free:
            self._grow(2 * self.capacity)
        slot = self._free.pop()
        for name, block in self._block_of.items():
            self[name][slot] = block.columns[name].fill
        return slot

    def release(self, slot: int) -> None:
        """Take a slot back. The caller must not use it again."""
        self._free.append(slot)

    def take_places(self, other: Arena) -> None:
        """Give the devices of another arena the same slots here, every column at its fill value."""
        while self.capacity < other.capacity:
            self._grow(2 * self.capacity)
        self._free = list(other._free) + list(range(other.capacity, self.capacity))

    def gather(self, slots: NDArray[np.int64], block: str) -> Rows:
        """The rows of `slots` (B,) in one block. After changing them, call `scatter`.

        Slots in a run give the arena's own rows, others a copy.
        """
        held, first = self._blocks[block], int(slots[0])
        count = len(slots)
        if count == 1 or (int(slots[-1]) - first == count - 1 and bool((np.diff(slots) == 1).all())):
            rows = self._runs.get((block, first, count))
            if rows is None:
                if len(self._runs) > self.capacity:
                    self._runs.clear()
                views = {t: matrix[first : first + count] for t, matrix in held.matrices.items()}
                rows = self._runs[block, first, count] = Rows(views, held.places)
            return rows
        return Rows({t: matrix[slots] for t, matrix in held.matrices.items()}, held.places)

    def scatter(self, slots: NDArray[np.int64], rows: Mapping[str, NDArray[Any]]) -> None:
        """Write rows (B, *shape) back to unique `slots` (B,): those from `gather`, or any columns."""
        if not isinstance(rows, Rows):
            for name, values in rows.items():
                self[name][slots] = values
            return
        for name, view in rows.views.items():
            values = rows[name]
            if values is not view:
                view[...] = values
                rows[name] = view
        block = self._block_of[next(iter(rows))]
        for dtype, matrix in rows.matrices.items():
            if matrix.base is not block.matrices[dtype]:
                block.matrices[dtype][slots] = matrix

    def dump(self, slot: int) -> bytes:
        """The device's memory as bytes, block by block."""
        return b"".join(matrix[slot].tobytes() for _, matrix in self._matrices())

    def load(self, slot: int, stored: bytes) -> None:
        """Put bytes from `dump` into a slot.

        Raises:
            ModelError: the length does not fit, or a number that must be finite is not.
        """
        if len(stored) != self.row_bytes:
            raise ModelError(f"a device row has {len(stored)} bytes, {self.row_bytes} expected")
        rows, at = [], 0
        for name, matrix in self._matrices():
            width = matrix.shape[1]
            row = np.frombuffer(stored, matrix.dtype, width, at)
            if matrix.dtype.kind == "f" and not np.isfinite(row).all():
                raise ModelError(f"a device row has a number in its {name} that is not finite")
            rows.append((matrix, row))
            at += row.nbytes
        for matrix, row in rows:
            matrix[slot] = row

    @property
    def row_bytes(self) -> int:
        """Bytes that one device occupies."""
        return sum(matrix[0].nbytes for _, matrix in self._matrices())

    def _matrices(self) -> list[tuple[str, NDArray[Any]]]:
        return [(name, matrix) for name, b in self._blocks.items() for matrix in b.matrices.values()]

    def _grow(self, capacity: int) -> None:
        self._runs.clear()
        for block in self._blocks.values():
            for dtype in sorted({place.dtype for place in block.places.values()}):
                places = {n: p for n, p in block.places.items() if p.dtype == dtype}
                width = max(place.end for place in places.values())
                grown = np.zeros((capacity, width), dtype)
                for name, place in places.items():
                    grown[:, place.start : place.end] = block.columns[name].fill
                if self.capacity:
                    grown[: self.capacity] = block.matrices[dtype]
                block.matrices[dtype] = grown
        # Lowest slots are given out first: dense rows make short gathers.
        self._free.extend(range(capacity - 1, self.capacity - 1, -1))
        self.capacity = capacity


def fresh(columns: Mapping[str, Column], devices: int) -> dict[str, NDArray[Any]]:
    """Columns of N devices (N, *shape) at their fill values, outside of any arena."""
    return {name: np.full((devices, *c.shape), c.fill, c.dtype) for name, c in columns.items()}


def _placed(columns: dict[str, Column]) -> _Block:
    """Columns of one type side by side, in their order."""
    places, ends = {}, dict.fromkeys((column.dtype for column in columns.values()), 0)
    for name, column in columns.items():
        start = ends[column.dtype]
        ends[column.dtype] = start + math.prod(column.shape)
        places[name] = _Place(column.dtype, start, ends[column.dtype], column.shape)
    return _Block(columns, places)

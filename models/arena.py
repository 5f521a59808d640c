"""Per-device state as named arrays, one row a device. Growing doubles, so no message pays for a copy.

A row written out by `dump` and read back by `load` is the whole memory of one device; `layout_id`
changes whenever the meaning of those bytes does, so that foreign bytes are refused and not guessed at.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
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


class Arena:
    """Named arrays (D, *shape) with a free list. `arena[name]` is the whole array: index it by slots."""

    def __init__(self, columns: Mapping[str, Column], salt: str = "") -> None:
        self._columns = dict(columns)
        self._arrays: dict[str, NDArray[Any]] = {}
        self._free: list[int] = []
        self.capacity = 0  # D
        text = salt + "".join(f"{n}{c.shape}{c.dtype};" for n, c in sorted(self._columns.items()))
        self.layout_id = hashlib.sha256(text.encode()).hexdigest()[:12]
        self._grow(FIRST_CAPACITY)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name]

    def __len__(self) -> int:
        """Devices that hold a slot."""
        return self.capacity - len(self._free)

    def allocate(self) -> int:
        """Give out a slot with every column at its fill value."""
        if not self._free:
            self._grow(2 * self.capacity)
        slot = self._free.pop()
        for name, column in self._columns.items():
            self._arrays[name][slot] = column.fill
        return slot

    def release(self, slot: int) -> None:
        """Take a slot back. The caller must not use it again."""
        self._free.append(slot)

    def take_places(self, other: Arena) -> None:
        """Give the devices of another arena the same slots here, every column at its fill value."""
        while self.capacity < other.capacity:
            self._grow(2 * self.capacity)
        self._free = list(other._free) + list(range(other.capacity, self.capacity))

    def gather(self, slots: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Copy the rows of `slots` (B,) out of every column: name -> (B, *shape)."""
        return {name: array[slots] for name, array in self._arrays.items()}

    def scatter(self, slots: NDArray[np.int64], rows: Mapping[str, NDArray[Any]]) -> None:
        """Write rows (B, *shape) back to unique `slots` (B,)."""
        for name, values in rows.items():
            self._arrays[name][slots] = values

    def dump(self, slot: int) -> bytes:
        """The device's memory as bytes, columns in name order."""
        return b"".join(self._arrays[name][slot].tobytes() for name in sorted(self._columns))

    def load(self, slot: int, stored: bytes) -> None:
        """Put bytes from `dump` into a slot.

        Raises:
            ModelError: the length does not fit, or a number that must be finite is not.
        """
        if len(stored) != self.row_bytes:
            raise ModelError(f"a device row has {len(stored)} bytes, {self.row_bytes} expected")
        rows, at = {}, 0
        for name in sorted(self._columns):
            column = self._arrays[name]
            size = column[slot].nbytes
            rows[name] = np.frombuffer(stored, column.dtype, size // column.itemsize, at)
            rows[name] = rows[name].reshape(column.shape[1:])
            if column.dtype.kind == "f" and not np.isfinite(rows[name]).all():
                raise ModelError(f"a device row has a number in {name} that is not finite")
            at += size
        for name, row in rows.items():
            self._arrays[name][slot] = row

    @property
    def row_bytes(self) -> int:
        """Bytes that one device occupies."""
        return sum(array[0].nbytes for array in self._arrays.values())

    def _grow(self, capacity: int) -> None:
        for name, column in self._columns.items():
            grown = np.full((capacity, *column.shape), column.fill, column.dtype)  # (D, *shape)
            if self.capacity:
                grown[: self.capacity] = self._arrays[name]
            self._arrays[name] = grown
        # Lowest slots are given out first: dense rows make short gathers.
        self._free.extend(range(capacity - 1, self.capacity - 1, -1))
        self.capacity = capacity

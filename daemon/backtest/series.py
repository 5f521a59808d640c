"""What a backtest runs on: the readings of one device, wherever they came from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gruard.models.history import History

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class StoredAlert:
    """An alert that the daemon raised when it was running."""

    opened_s: float
    resolved_s: float | None  # None: still open
    severity: str
    message: str


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """Readings of one device, oldest first, and what is known about them."""

    name: str  # the device
    fields: tuple[str, ...]
    history: History  # (T,) times, (T, F) values; every row counts as normal
    timed: bool  # false: the file tells no time, and `history.time_s` only counts rows
    labels: NDArray[np.bool_] | None = None  # (T,) true inside a known anomaly
    warmup: int | None = None  # rows that the file says may be learnt from
    stored: tuple[StoredAlert, ...] = ()  # oldest first
    notes: tuple[str, ...] = ()  # what was left out of the file, in sentences

    @property
    def rows(self) -> int:
        """Number of readings."""
        return len(self.history.time_s)

    def head(self, rows: int) -> Series:
        """The first rows, at most all, as a series of its own."""
        if rows >= self.rows:
            return self
        h = self.history
        history = History(h.time_s[:rows], h.values[:rows], h.normal[:rows])
        return replace(self, history=history, labels=None if self.labels is None else self.labels[:rows])

    @property
    def anomalous(self) -> bool:
        """Whether there are labels, and an anomaly among them."""
        return self.labels is not None and bool(self.labels.any())

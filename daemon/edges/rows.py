"""What the database takes and gives back: one plain class per kind of row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class StoredReading:
    """One reading as it stands in the journal, with what the engine made of it."""

    lsn: int  # position in the journal; unique, rising
    device: str
    source: str
    fields: tuple[str, ...]
    time_s: float  # event time, Unix seconds UTC
    received_s: float  # arrival time, Unix seconds UTC
    values: np.ndarray  # (F,) float64 in the order of `fields`, physical units, NaN = missing
    score: float  # NaN while there is none
    flags: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A device's memory after the reading at `lsn`."""

    device: str
    source: str
    fields: tuple[str, ...]
    lsn: int
    layout: str  # hash of how `state` is laid out
    model: str | None  # id of the model the state belongs to
    state: bytes


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """Readings of one device, oldest first, brought to one set of fields."""

    lsn: np.ndarray  # (T,) int64
    time_s: np.ndarray  # (T,) float64
    values: np.ndarray  # (T, F) float64 in the order asked for, NaN = missing
    score: np.ndarray  # (T,) float64, NaN = none
    flags: np.ndarray  # (T,) int64


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """What the database knows of a device without opening its state."""

    device: str
    source: str
    fields: tuple[str, ...]  # of its newest reading
    readings: int  # ever journalled, pruned ones included
    first_s: float | None  # event time of the first; None: never heard, only a checkpoint
    last_s: float | None  # event time of the newest


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """One message that waits for the broker."""

    seq: int
    topic: str
    payload: bytes
    qos: int
    retain: bool
    key: str


@dataclass(frozen=True, slots=True)
class AlertRow:
    """The newest word on one alert."""

    id: str
    device: str
    source: str
    state: str
    severity: str
    opened_s: float
    updated_s: float
    resolved_s: float | None  # None: still open
    score: float
    threshold: float
    payload: str  # the alert as published, JSON


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One model in the registry."""

    id: str
    group: str
    status: str  # candidate | live | retired | rolled_back | rejected
    created_s: float
    parent: str | None
    skill: float | None
    manifest: str  # JSON
    reason: str
    activated_lsn: int | None = None  # the first reading that this model scores
    activated_s: float | None = None


class DeviceEntry(NamedTuple):
    """A row of `devices`."""

    id: int
    device: str | None  # None: forgotten, its packs wait for pruning
    fieldset: int
    first_s: float | None
    last_s: float | None
    readings: int  # ever packed
    packed_rows: int
    packed_lsn: int
    next_pack: int


@dataclass(frozen=True, slots=True)
class Salvaged:
    """What was copied out of a damaged database, and what is known to be lost: table -> rows.

    Of packs and deliveries it is their readings and messages that count. `readings` are lost where the
    journal lacks an LSN, though a pack may have it. "unreadable" are entries of unknown tables.
    """

    rows: Mapping[str, int]
    lost: Mapping[str, int]

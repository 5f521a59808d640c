"""What the engine answers: one event a fact, in the order in which things happened."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from gruard.daemon.records import AlertKind, AlertState, Reading, Severity


@dataclass(frozen=True, slots=True)
class Scored:
    """A reading changed its device's state."""

    reading: Reading
    group: str
    fields: tuple[str, ...]
    values: NDArray[np.float64]  # (F,) in the order of `fields`, NaN = missing
    score: float  # 0..1; NaN while gathering
    threshold: float
    onset: float  # 0..1, above 0 where something begins
    phase: str  # "warming": no alerts yet, "learning": the baseline is in charge, "ready": the model is
    alarm: bool  # the device is in alarm, or its score is at the threshold


@dataclass(frozen=True, slots=True)
class Refused:
    """A reading changed nothing."""

    reading: Reading
    reason: str  # one of records.REJECT_REASONS; "" for a repetition of the newest reading


@dataclass(frozen=True, slots=True)
class Alert:
    """One change of one alert."""

    id: str
    state: AlertState
    severity: Severity
    device: str
    source: str
    group: str
    time_s: float
    opened_s: float
    score: float
    threshold: float
    value: Mapping[str, float | None]
    expected: Mapping[str, float | None]
    deviation: Mapping[str, float | None]
    contributions: tuple[tuple[str, float], ...]  # (field, share), largest first, shares sum to 1
    model: str  # id of the model in charge, or "baseline"
    kind: AlertKind = "anomaly"
    late_s: float | None = None  # of a backlog: seconds from event to arrival; 0 = cannot be known
    sentence: str = ""  # what to tell where the usual sentence does not fit


@dataclass(frozen=True, slots=True)
class EnrolDue:
    """The engine needs a device's recent readings before its next one: answer with Engine.enrol."""

    device: str
    source: str
    fields: tuple[str, ...]
    limit: int  # newest readings wanted
    normal_from_s: float = -math.inf  # readings between these event times are normal whatever their flags
    normal_to_s: float = -math.inf  # say, and readings before them are none of the device's normal


@dataclass(frozen=True, slots=True)
class Noted:
    """Something a person may want to read in the log."""

    device: str
    text: str


@dataclass(frozen=True, slots=True)
class Removed:
    """A device gave up its place: nothing is known of it any more, its open alert was resolved before."""

    device: str
    source: str
    reason: str  # one of REMOVAL_REASONS


@dataclass(frozen=True, slots=True)
class Reached:
    """A device was scored for the first time, or a model took charge of it for the first time."""

    device: str
    what: Literal["first_score", "ready"]
    seconds: float  # since its first reading arrived
    readings: int


#: Why a device was removed: it never showed enough to be one, or has been silent beyond the idle limit.
REMOVAL_REASONS = ("never_established", "idle")

Event = Scored | Refused | Alert | EnrolDue | Noted | Removed | Reached

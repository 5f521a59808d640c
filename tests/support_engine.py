"""Engines and readings for tests: a small plant whose devices are easy to predict and easy to break."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gruard.daemon.core.engine import Engine, EngineOptions
from gruard.daemon.core.events import EnrolDue, Event, Scored
from gruard.daemon.records import Reading, SourceOptions
from gruard.models.calibration import Budget
from gruard.models.history import History

if TYPE_CHECKING:
    from collections.abc import Sequence

SOURCE = SourceOptions("plant", "plant/{device}", time="ts")
#: One false alarm per device and week, at most.
BUDGET = Budget()


def plant_rows(n: int, seed: int = 0, fields: int = 3) -> np.ndarray:
    """Rows (n, fields): coupled slow oscillations with noise, in physical units."""
    rng = np.random.default_rng(seed)
    t = np.arange(n)
    drive = np.sin(2 * np.pi * t / 40) + 0.1 * rng.standard_normal(n)
    columns = [
        20 + 3 * np.roll(drive, k) * (1 + 0.2 * k) + 0.1 * rng.standard_normal(n) for k in range(fields)
    ]
    return np.stack(columns, axis=1)


def reading(device: str, time_s: float, values: dict[str, float], **more: object) -> Reading:
    return Reading(device, "plant", time_s, time_s, values, **more)  # type: ignore[arg-type]


def readings_of(device: str, rows: np.ndarray, start_s: float = 1000.0) -> list[Reading]:
    return [
        reading(device, start_s + t, {f"f{k}": float(v) for k, v in enumerate(row)})
        for t, row in enumerate(rows)
    ]


class Bench:
    """An engine that keeps its own history, the way the pipeline does with the database."""

    def __init__(self, *, most_devices: int = 100, source: SourceOptions = SOURCE) -> None:
        self.engine = Engine(EngineOptions((source,), BUDGET, most_devices=most_devices))
        self.rows: dict[str, list[Scored]] = {}

    def feed(self, readings: Sequence[Reading]) -> list[Event]:
        """Readings of any devices, one at a time in order; returns all events."""
        return [event for one in readings for event in self.feed_wave([one])]

    def feed_wave(self, wave: Sequence[Reading]) -> list[Event]:
        """One batch, each device at most once."""
        events = self.engine.receive(wave)
        for event in events:
            if isinstance(event, Scored):
                self.rows.setdefault(event.reading.device, []).append(event)
        self.engine.enrol({e.device: self._due_history(e) for e in events if isinstance(e, EnrolDue)})
        return events

    def _due_history(self, due: EnrolDue) -> History:
        """As `gruard.daemon.enrolment.history_of` would have it."""
        history = self.history(due.device, due.fields, due.limit)
        since = history.time_s >= due.normal_from_s
        normal = history.normal | (history.time_s <= due.normal_to_s)
        return History(history.time_s[since], history.values[since], normal[since])

    def history(self, device: str, fields: Sequence[str], limit: int) -> History:
        rows = self.rows.get(device, [])[-limit:]
        return History(
            np.array([r.reading.time_s for r in rows]),
            np.array([[r.reading.values.get(f, np.nan) for f in fields] for r in rows]).reshape(
                -1, len(fields)
            ),
            np.array([not r.alarm for r in rows], bool),
        )
